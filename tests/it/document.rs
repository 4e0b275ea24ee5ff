//! Documents of odd and of malformed bytes, and of every event under `tests/fixtures`. What holds
//! for any bytes is in `src/document/fuzzing.rs`.
#![expect(
    clippy::unwrap_used,
    reason = "clippy takes only what is marked as a test for one, not what tests call"
)]

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use prost::Message as _;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value as Protobuf};
use serde_json::{Value, json};
use teleport_event_indexer::document::{
    DocumentError, DocumentId, Encoded, Encoder, IndexPattern, Marks,
};
use teleport_event_indexer::event::{AuditEvent, Timestamp};

fn encoder() -> Encoder {
    Encoder::new(&IndexPattern::parse("audit-events-%Y.%m.%d").unwrap())
}

fn event(body: Vec<u8>) -> AuditEvent {
    AuditEvent {
        event_type: Bytes::from_static(b"user.login"),
        id: Bytes::from_static(b"0b3bd9a1-5c1f-4b5e-9d5b-52a2f3c0a001"),
        time: Some(Timestamp::from_millis(1_767_312_000_123)),
        index: 3,
        body: body.into(),
        session: None,
    }
}

/// Encodes behind something else and gives the document's text, having looked at what is around.
fn document(event: &AuditEvent) -> Result<(Encoded, String), DocumentError> {
    let before = b"{\"create\":{}}\n{}\n";
    let mut out = before.to_vec();
    let mut encoder = encoder();
    let encoded = match encoder.encode(event, &mut out) {
        Ok(encoded) => encoded,
        Err(error) => {
            assert_eq!(out, before, "an error leaves nothing behind");
            return Err(error);
        }
    };
    // A second time with buffers that were used: the same bytes.
    let first = out.len();
    encoder.encode(event, &mut out).unwrap();
    assert_eq!(out[before.len()..first], out[first..]);
    out.truncate(first);

    let text = String::from_utf8(out.split_off(before.len())).unwrap();
    let (action, rest) = text.split_once('\n').unwrap();
    let source = rest.strip_suffix('\n').unwrap();
    assert!(!source.contains('\n'));
    assert_eq!(encoded.source_start, before.len() + action.len() + 1);
    let expected = json!({"create": {"_index": &*encoded.index_name, "_id": encoded.id.as_str()}});
    assert_eq!(serde_json::from_str::<Value>(action).unwrap(), expected);
    Ok((encoded, source.to_owned()))
}

// Wire bytes written by hand, for what no encoder writes.

fn varint(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    bytes.push(u8::try_from(value).unwrap());
    bytes
}

/// A length-delimited field.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2], &*varint(content.len()), content].concat()
}

fn member(key: &[u8], value: &[u8]) -> Vec<u8> {
    field(1, &[field(1, key), field(2, value)].concat())
}

fn string(text: &[u8]) -> Vec<u8> {
    field(3, text)
}

#[test]
fn odd_but_legal_wire() {
    let number = |number: f64| [&[0x11], &number.to_le_bytes()[..]].concat();
    let unknown = [
        &[0x78, 0x96, 0x01][..],         // field 15, varint
        &[0x7d, 1, 2, 3, 4],             // field 15, 32 bits
        &[0x79, 1, 2, 3, 4, 5, 6, 7, 8], // field 15, 64 bits
        &[0x82, 0x01, 0x02, 0xff, 0xff], // field 16, two bytes
    ]
    .concat();
    for (body, text) in [
        (vec![], "{}"),
        // The last of several members with one key.
        (
            [
                member(b"a", &number(1.0)),
                member(b"b", &[]),
                member(b"a", &string(b"2")),
            ]
            .concat(),
            r#"{"a":"2","b":null}"#,
        ),
        (
            [
                member(b"long_key_1", &number(1.0)),
                member(b"long_key_1", &number(2.0)),
            ]
            .concat(),
            r#"{"long_key_1":2}"#,
        ),
        // The last of several kinds, of several values, of several keys.
        (
            member(b"a", &[number(1.0), string(b"x")].concat()),
            r#"{"a":"x"}"#,
        ),
        (
            field(
                1,
                &[field(1, b"a"), field(2, &string(b"x")), field(2, &[])].concat(),
            ),
            r#"{"a":null}"#,
        ),
        (
            field(
                1,
                &[field(2, &string(b"x")), field(1, b"b"), field(1, b"a")].concat(),
            ),
            r#"{"a":"x"}"#,
        ),
        // No key, no value, neither.
        (field(1, &field(2, &string(b"x"))), r#"{"":"x"}"#),
        (field(1, &field(1, b"a")), r#"{"a":null}"#),
        (field(1, &[]), r#"{"":null}"#),
        // Zeros behind a key count.
        (
            [member(b"a\0", &[]), member(b"a", &[])].concat(),
            r#"{"a":null,"a\u0000":null}"#,
        ),
        // A bool is any varint, also one of ten bytes.
        (
            member(
                b"a",
                &[
                    0x20, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01,
                ],
            ),
            r#"{"a":true}"#,
        ),
        (member(b"a", &[0x20, 0x80, 0x00]), r#"{"a":false}"#),
        // Fields that nobody knows, at each place.
        (
            [
                unknown.clone(),
                field(
                    1,
                    &[
                        &unknown,
                        &*field(1, b"a"),
                        &*field(2, &[&*unknown, &string(b"x")].concat()),
                    ]
                    .concat(),
                ),
                member(
                    b"b",
                    &field(6, &[&*unknown, &field(1, &string(b"y"))].concat()),
                ),
            ]
            .concat(),
            r#"{"a":"x","b":["y"]}"#,
        ),
    ] {
        assert_eq!(document(&event(body)).unwrap().1, text);
    }
}

#[test]
fn malformed_wire_is_named() {
    for (body, offset, what) in [
        (&[0x0a][..], 1, "truncated field"),
        (&[0x0a, 0x05, 0x0a], 2, "length beyond the end"),
        (
            &[
                0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01,
            ],
            11,
            "length beyond the end",
        ),
        (
            &[
                0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02,
            ],
            1,
            "varint of more than 64 bits",
        ),
        (&[0x00], 0, "impossible field number"),
        (
            &[0xff, 0xff, 0xff, 0xff, 0x7f, 0x00],
            0,
            "impossible field number",
        ),
        (&[0x7b], 1, "group"),
        (&[0x7c], 1, "group"),
        (&[0x7e], 1, "unknown wire type"),
        (&[0x7d, 1, 2], 3, "truncated field"),
        (&[0x08, 0x01], 1, "known field of another wire type"),
        // Within a member's value: a double cut short, a string that reaches beyond its value.
        (
            &[0x0a, 0x07, 0x0a, 0x01, b'a', 0x12, 0x02, 0x11, 0x00],
            9,
            "truncated field",
        ),
        (
            &[0x0a, 0x07, 0x0a, 0x01, b'a', 0x12, 0x02, 0x1a, 0x01],
            9,
            "length beyond the end",
        ),
    ] {
        assert_eq!(
            document(&event(body.to_vec())).unwrap_err(),
            DocumentError::Malformed { offset, what },
            "{body:?}"
        );
    }
}

/// `n_levels` objects and lists in each other with a string in the innermost, and the `Value` in
/// which level 65 lies.
fn nested(n_levels: usize, with_lists: bool) -> (Vec<u8>, Vec<u8>) {
    let mut value = string(b"x");
    let mut level_65 = Vec::new();
    for level in (2..=n_levels).rev() {
        value = if with_lists && level % 2 == 0 {
            field(6, &field(1, &value))
        } else {
            field(5, &member(b"a", &value))
        };
        if level == 65 {
            level_65.clone_from(&value);
        }
    }
    (member(b"a", &value), level_65)
}

#[test]
fn what_is_too_deep_is_kept_as_base64() {
    for with_lists in [false, true] {
        let (body, _) = nested(64, with_lists);
        let (encoded, text) = document(&event(body)).unwrap();
        assert!(encoded.marks.is_empty());
        assert!(!text.contains("base64") && text.contains(r#""x""#));

        for n_levels in [65, 66, 5000] {
            let (body, level_65) = nested(n_levels, with_lists);
            let (encoded, text) = document(&event(body)).unwrap();
            let names: Vec<_> = encoded.marks.names().collect();
            assert_eq!(names, ["too_deep"]);
            assert!(text.ends_with(r#","event_indexer.marks":["too_deep"]}"#));
            serde_json::from_str::<Value>(&text).unwrap();
            let (_, base64) = text.split_once("\"base64:").unwrap();
            let (base64, _) = base64.split_once('"').unwrap();
            assert_eq!(STANDARD.decode(base64).unwrap(), level_65);
        }
    }
}

#[test]
fn invalid_utf8_is_replaced_and_marked() {
    let inner = field(5, &member(b"in\xffner", &string(b"\xc3")));
    for (body, text) in [
        (
            member(b"user", &string(b"al\xffce")),
            "{\"user\":\"al\u{fffd}ce\",\"event_indexer.marks\":[\"invalid_utf8\"]}",
        ),
        (
            member(b"z", &inner),
            "{\"z\":{\"in\u{fffd}ner\":\"\u{fffd}\"},\"event_indexer.marks\":[\"invalid_utf8\"]}",
        ),
        // Keys that become equal are one key, and are sorted as they are written: U+FFFD lies
        // before what takes four bytes.
        (
            [
                member(b"\xff", &string(b"1")),
                member("\u{1f980}".as_bytes(), &string(b"3")),
                member(b"\xfe", &string(b"2")),
            ]
            .concat(),
            "{\"\u{fffd}\":\"2\",\"\u{1f980}\":\"3\",\"event_indexer.marks\":[\"invalid_utf8\"]}",
        ),
        // No key may come twice: an event with a member of that name keeps its own.
        (
            [
                member(b"event_indexer.marks", &string(b"own")),
                member(b"user", &string(b"\xff")),
            ]
            .concat(),
            "{\"event_indexer.marks\":\"own\",\"user\":\"\u{fffd}\"}",
        ),
    ] {
        let (encoded, found) = document(&event(body)).unwrap();
        assert_eq!(found, text);
        let marks = Marks {
            invalid_utf8: true,
            too_deep: false,
        };
        assert_eq!(encoded.marks, marks);
    }
}

#[test]
fn many_days_in_turn() {
    let mut encoder = encoder();
    let mut out = Vec::new();
    // Twice over more days than are kept.
    for day in (0..200).chain(0..200) {
        let time_ms = 1_767_225_600_000 + day * 86_400_000;
        let event = AuditEvent {
            time: Some(Timestamp::from_millis(time_ms)),
            ..event(vec![])
        };
        let encoded = encoder.encode(&event, &mut out).unwrap();
        let date = chrono::DateTime::from_timestamp_millis(time_ms).unwrap();
        let expected = date.format("audit-events-%Y.%m.%d").to_string();
        assert_eq!(*encoded.index_name, *expected);
        assert_eq!(encoded.time_ms, time_ms);
    }
}

#[test]
fn own_documents_have_the_same_frame() {
    let time_ms = 1_767_312_000_123;
    let id = DocumentId::of_own(time_ms, &[b"gap"]);
    let mut out = b"before\n".to_vec();
    let gap = json!({"time": "2026-01-02T00:00:00.123Z", "event_indexer": {"text": "a\nb"}});
    let encoded = encoder().encode_own(time_ms, id, &gap, &mut out).unwrap();
    let action = format!(r#"{{"create":{{"_index":"audit-events-2026.01.02","_id":"{id}"}}}}"#);
    assert_eq!(
        String::from_utf8(out.clone()).unwrap(),
        format!("before\n{action}\n{gap}\n")
    );
    assert_eq!(encoded.source_start, "before\n".len() + action.len() + 1);

    let before = out.clone();
    assert!(encoder().encode_own(-1, id, &gap, &mut out).is_err());
    assert_eq!(out, before);
}

fn protobuf(value: &Value) -> Protobuf {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(bool) => Kind::BoolValue(*bool),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap()),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(values) => Kind::ListValue(ListValue {
            values: values.iter().map(protobuf).collect(),
        }),
        Value::Object(_) => Kind::StructValue(protobuf_object(value)),
    };
    Protobuf { kind: Some(kind) }
}

fn protobuf_object(value: &Value) -> Struct {
    let members = value.as_object().expect("an event is an object").iter();
    Struct {
        fields: members
            .map(|(key, value)| (key.clone(), protobuf(value)))
            .collect(),
    }
}

/// Numbers are compared as the doubles that they are on the wire.
fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => left.as_f64() == right.as_f64(),
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(l, r)| same(l, r))
        }
        (Value::Object(left), Value::Object(right)) => {
            let both = left.iter().zip(right);
            left.len() == right.len() && both.into_iter().all(|(l, r)| l.0 == r.0 && same(l.1, r.1))
        }
        _ => left == right,
    }
}

/// A fixture says what is odd in it, holds an event's `body`, perhaps a `header` that is not to be
/// derived from the body (`time_ms`: null for none), and what becomes of it: its `index_name`
/// and `id`, which may never change, or an `error`.
#[test]
fn each_fixture_becomes_its_document_or_a_named_error() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut n_fixtures = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let fixture: Value = serde_json::from_slice(&fs::read(&path).unwrap())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        n_fixtures += 1;

        let (body, header) = (&fixture["body"], &fixture["header"]);
        let text = |value: &Value| Bytes::from(value.as_str().unwrap_or_default().to_owned());
        let time_of_body = body["time"]
            .as_str()
            .and_then(|time| chrono::DateTime::parse_from_rfc3339(time).ok())
            .map(|time| time.timestamp_millis());
        let time_ms = match header.get("time_ms") {
            Some(time) => time.as_i64(),
            None => time_of_body,
        };
        let event = AuditEvent {
            event_type: text(&body["event"]),
            id: text(&body["uid"]),
            time: time_ms.map(Timestamp::from_millis),
            index: body["ei"].as_i64().unwrap_or_default(),
            body: protobuf_object(body).encode_to_vec().into(),
            session: None,
        };
        match document(&event) {
            Ok((encoded, source)) => {
                let source: Value = serde_json::from_str(&source).unwrap();
                assert!(same(&source, body), "{name}: {source}");
                assert_eq!(encoded.id.as_str(), fixture["id"], "{name}");
                assert_eq!(*encoded.index_name, fixture["index_name"], "{name}");
                assert!(encoded.marks.is_empty(), "{name}");
            }
            Err(error) => assert_eq!(error.to_string(), fixture["error"], "{name}"),
        }
    }
    assert!(n_fixtures >= 20, "only {n_fixtures} fixtures found");
}
