//! The form in which a document is sent once more after Elasticsearch has refused it: what people
//! search by, typed so that the index template takes it, and the event as one text that no mapping
//! can refuse. Pure.
//!
//! ```json
//! {"time": "2026-01-02T03:04:05.678Z", "event": "user.login", "user": "alice", …,
//!  "event_indexer.raw": "{\"_id\":1,\"code\":…}",
//!  "event_indexer.refused.type": "document_parsing_exception",
//!  "event_indexer.refused.reason": "[1:2] Field [_id] is a metadata field …"}
//! ```
//!
//! `event_indexer.raw` is the refused document byte for byte, so nothing of it is lost, and
//! [`Original::of`] gets it back. Of a document that is too large it is left out: there it would be
//! too large as well.

use chrono::{DateTime, SecondsFormat, Timelike, Utc};
use serde::Deserialize;
use serde_json::{Map, Value};

/// How a field that is known to the index template is typed there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// `keyword`: takes any scalar; given texts, whole numbers and booleans.
    Keyword,
    /// `long`.
    Long,
    /// `boolean`.
    Boolean,
    /// `date`.
    Date,
}

use Kind::{Boolean, Date, Keyword, Long};

/// What is taken over where the event has a fitting scalar there: the same type in every template,
/// whatever the server's version. `time` is not among them: it is always there.
const FIELDS: &[(&str, Kind)] = &[
    ("@timestamp", Date),
    ("addr", Keyword),
    ("addr.local", Keyword),
    ("addr.remote", Keyword),
    ("app_name", Keyword),
    ("cluster_name", Keyword),
    ("code", Keyword),
    ("command", Keyword),
    ("connector", Keyword),
    ("db_name", Keyword),
    ("db_query", Keyword),
    ("db_service", Keyword),
    ("db_user", Keyword),
    ("dst_addr", Keyword),
    ("dst_port", Long),
    ("ei", Long),
    ("error", Keyword),
    ("event", Keyword),
    ("exitCode", Keyword),
    ("expires", Date),
    ("impersonator", Keyword),
    ("interactive", Boolean),
    ("kubernetes_cluster", Keyword),
    ("login", Keyword),
    ("message", Keyword),
    ("method", Keyword),
    ("name", Keyword),
    ("namespace", Keyword),
    ("path", Keyword),
    ("pid", Long),
    ("ppid", Long),
    ("proto", Keyword),
    ("reason", Keyword),
    ("server_addr", Keyword),
    ("server_hostname", Keyword),
    ("server_id", Keyword),
    ("session_start", Date),
    ("session_stop", Date),
    ("sid", Keyword),
    ("src_addr", Keyword),
    ("state", Keyword),
    ("success", Boolean),
    ("uid", Keyword),
    ("user", Keyword),
    ("user_agent", Keyword),
    ("user_cluster_name", Keyword),
    ("user_kind", Keyword),
];

const RAW: &str = "event_indexer.raw";
const REFUSED_TYPE: &str = "event_indexer.refused.type";
const REFUSED_REASON: &str = "event_indexer.refused.reason";

/// A longer text is not indexed as a keyword anyway (`ignore_above` in the template).
const KEYWORD_CHARACTERS: usize = 8191;

/// Elasticsearch reads nanoseconds and no more.
const LONGEST_TIME: &str = "2026-01-02T03:04:05.678901234+00:00";

/// Bytes of the error's type and of its reason that are kept. A reason may quote the document,
/// which lies beside it in whole.
const TYPE_BYTES: usize = 200;
const REASON_BYTES: usize = 2000;

/// Appends the safe form of a document, one line without its end, to `out`.
///
/// `source` is the document that was refused, `time_ms` its event's time in milliseconds since
/// 1970, `error_type` and `reason` are Elasticsearch's words. A `source` that is no JSON object,
/// which this program does not write, is kept as well; there is only no field to take over.
pub fn write(source: &[u8], time_ms: i64, error_type: &str, reason: &str, out: &mut Vec<u8>) {
    let mut safe = without_raw(source, time_ms, error_type, reason);
    let raw = String::from_utf8_lossy(source).into_owned();
    safe.insert(RAW.to_owned(), raw.into());
    serde_json::to_writer(out, &safe).expect("a Vec takes any JSON value");
}

/// The same without the document's text, for one that is too large. No [`Original`] can be read
/// from it.
pub fn write_without_raw(
    source: &[u8],
    time_ms: i64,
    error_type: &str,
    reason: &str,
    out: &mut Vec<u8>,
) {
    let safe = without_raw(source, time_ms, error_type, reason);
    serde_json::to_writer(out, &safe).expect("a Vec takes any JSON value");
}

fn without_raw(source: &[u8], time_ms: i64, error_type: &str, reason: &str) -> Map<String, Value> {
    let event: Map<String, Value> = serde_json::from_slice(source).unwrap_or_default();
    let mut safe = Map::new();
    for (name, kind) in FIELDS {
        if let Some(value) = event.get(*name).and_then(|value| fitting(value, *kind)) {
            safe.insert((*name).to_owned(), value);
        }
    }
    let time = event.get("time").and_then(|value| fitting(value, Date));
    let time = time.unwrap_or_else(|| text_of(DateTime::from_timestamp_millis(time_ms)));
    safe.insert("time".to_owned(), time);
    let cut = |text, most| Value::from(shortened(text, most));
    safe.insert(REFUSED_TYPE.to_owned(), cut(error_type, TYPE_BYTES));
    safe.insert(REFUSED_REASON.to_owned(), cut(reason, REASON_BYTES));
    safe
}

/// A value as a field of this kind takes it, if it does.
fn fitting(value: &Value, kind: Kind) -> Option<Value> {
    match (kind, value) {
        (Keyword, Value::String(text)) => text
            .chars()
            .nth(KEYWORD_CHARACTERS)
            .is_none()
            .then(|| value.clone()),
        // A fraction would not come out as it was, digit for digit.
        (Keyword, Value::Number(number)) => (!number.is_f64()).then(|| value.clone()),
        (Keyword | Boolean, Value::Bool(_)) => Some(value.clone()),
        (Long, Value::Number(number)) => number.as_i64().map(Value::from),
        (Date, Value::String(text)) => {
            let time = DateTime::parse_from_rfc3339(text).ok()?;
            // chrono's way to tell of a leap second, which Elasticsearch does not know.
            let is_leap = time.nanosecond() >= 1_000_000_000;
            // RFC 3339 allows more than Elasticsearch reads: a space, lower case, any precision.
            let is_plain = text.as_bytes().get(10) == Some(&b'T') && !text.ends_with('z');
            if is_leap {
                None
            } else if is_plain && text.len() <= LONGEST_TIME.len() {
                Some(value.clone())
            } else {
                Some(text_of(Some(time.to_utc())))
            }
        }
        _ => None,
    }
}

fn text_of(time: Option<DateTime<Utc>>) -> Value {
    let time = time.unwrap_or_default();
    time.to_rfc3339_opts(SecondsFormat::AutoSi, true).into()
}

/// The first so many bytes of a text, at the border of a character.
fn shortened(text: &str, most_bytes: usize) -> &str {
    let end = text.floor_char_boundary(most_bytes);
    text.get(..end).unwrap_or_default()
}

/// What a safe form was made of.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Original {
    /// The document as it was.
    #[serde(rename = "event_indexer.raw")]
    pub source: String,
    /// Elasticsearch's type of the error.
    #[serde(rename = "event_indexer.refused.type")]
    pub error_type: String,
    /// Elasticsearch's words, or their beginning.
    #[serde(rename = "event_indexer.refused.reason")]
    pub reason: String,
}

impl Original {
    /// Reads it from a safe form. `None` if `safe_form` is none.
    pub fn of(safe_form: &[u8]) -> Option<Self> {
        serde_json::from_slice(safe_form).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const TIME_MS: i64 = 1_772_582_400_123;

    fn safe_form(source: &str) -> Value {
        let mut out = Vec::new();
        write(source.as_bytes(), TIME_MS, "kind", "why", &mut out);
        assert!(!out.contains(&b'\n'));
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn scalars_that_fit_are_taken_over_and_everything_is_in_the_raw_text() {
        let source = json!({
            "time": "2026-03-04t00:00:00.5+01:00", "event": "lock.created", "user": {"name": "x"},
            "code": 7, "success": true, "ei": 3, "pid": 1.5, "ppid": "12", "uid": ["a"],
            "interactive": "yes", "expires": "never", "session_start": "2016-12-31T23:59:60Z",
            "addr.remote": "10.0.0.1", "addr": "10.0.0.2", "target": {"a": 1}, "unknown": 1,
            "_id": "own", "command": "x".repeat(8192), "login": "é".repeat(8191), "sid": null,
        })
        .to_string();
        assert_eq!(
            safe_form(&source),
            json!({
                "time": "2026-03-03T23:00:00.500Z", "event": "lock.created", "code": 7,
                "success": true, "ei": 3, "addr.remote": "10.0.0.1", "addr": "10.0.0.2",
                "login": "é".repeat(8191),
                "event_indexer.raw": source,
                "event_indexer.refused.type": "kind", "event_indexer.refused.reason": "why",
            })
        );
    }

    #[test]
    fn an_event_without_a_usable_time_gets_its_header_s() {
        for source in [
            r#"{"time":"yesterday"}"#,
            r#"{"time":7}"#,
            "{}",
            "[]",
            "no JSON",
        ] {
            assert_eq!(
                safe_form(source),
                json!({
                    "time": "2026-03-04T00:00:00.123Z", "event_indexer.raw": source,
                    "event_indexer.refused.type": "kind", "event_indexer.refused.reason": "why",
                })
            );
        }
    }

    #[test]
    fn a_reason_is_cut_between_two_characters() {
        let mut out = Vec::new();
        write(b"{}", TIME_MS, "", &"é…".repeat(1000), &mut out);
        let original = Original::of(&out).unwrap();
        assert_eq!(original.reason, "é…".repeat(400));
    }

    /// Else a safe form would be refused for what it is to get around.
    #[test]
    fn every_template_types_each_field_so() {
        let newest = include_str!("../../templates/audit-events.json");
        let older = include_str!("../../templates/audit-events-before-8.11.json");
        let [newest, older] =
            [newest, older].map(|text| serde_json::from_str::<Value>(text).unwrap());
        let newest = &newest["template"]["mappings"]["properties"];
        for (name, kind) in FIELDS.iter().chain([&("time", Date)]) {
            let expected = match kind {
                Keyword => "keyword",
                Long => "long",
                Boolean => "boolean",
                Date => "date",
            };
            assert_eq!(newest[name]["type"], expected, "{name}");
            assert_eq!(older["mappings"]["properties"][name], Value::Null, "{name}");
        }
        assert_eq!(newest[RAW]["index"], false);
        assert!(newest[REFUSED_TYPE].is_object() && newest[REFUSED_REASON].is_object());
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            (0..4_102_444_800_i64).prop_map(|s| text_of(DateTime::from_timestamp(s, 0))),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map(any::<String>(), inner, 0..4)
                    .prop_map(|members| members.into_iter().collect()),
            ]
        })
    }

    fn event() -> impl Strategy<Value = Value> {
        let names: Vec<_> = FIELDS.iter().map(|field| field.0).collect();
        let known = prop::sample::select([&names[..], &["time", RAW, "_id"]].concat());
        let name = prop_oneof![3 => known.prop_map(str::to_owned), 1 => any::<String>()];
        prop::collection::hash_map(name, value(), 0..12)
            .prop_map(|members| members.into_iter().collect())
    }

    proptest! {
        #[test]
        fn any_object_becomes_one_of_the_known_shape(
            event in event(), time_ms in 0..4_102_444_800_000_i64, reason in any::<String>(),
        ) {
            let source = event.to_string();
            let mut out = b"before".to_vec();
            write(source.as_bytes(), time_ms, "kind", &reason, &mut out);
            let line = &out[b"before".len()..];
            let mut safe: Map<String, Value> = serde_json::from_slice(line).unwrap();

            let time = DateTime::parse_from_rfc3339(safe["time"].as_str().unwrap()).unwrap();
            let own = event["time"].as_str().map(DateTime::parse_from_rfc3339);
            match own {
                Some(Ok(own)) => prop_assert_eq!(time, own),
                _ => prop_assert_eq!(time.timestamp_millis(), time_ms),
            }
            for (name, value) in &safe {
                let kind = FIELDS.iter().find(|field| field.0 == name).map(|field| field.1);
                match kind {
                    Some(Keyword) => {
                        let is_whole = value.is_i64() || value.is_u64();
                        let is_scalar = value.is_string() || is_whole || value.is_boolean();
                        prop_assert!(is_scalar && *value == event[name]);
                    }
                    Some(Long) => prop_assert!(value.is_i64() && *value == event[name]),
                    Some(Boolean) => prop_assert!(value.is_boolean() && *value == event[name]),
                    Some(Date) => prop_assert!(value.is_string()),
                    None => prop_assert!(
                        ["time", RAW, REFUSED_TYPE, REFUSED_REASON].contains(&name.as_str())
                    ),
                }
            }
            let original = Original::of(line).unwrap();
            prop_assert_eq!(original.source, &*source);
            prop_assert!(reason.starts_with(&original.reason));

            let mut out = Vec::new();
            write_without_raw(source.as_bytes(), time_ms, "kind", &reason, &mut out);
            prop_assert!(Original::of(&out).is_none());
            let short: Map<String, Value> = serde_json::from_slice(&out).unwrap();
            safe.remove(RAW);
            prop_assert_eq!(short, safe);
        }
    }
}
