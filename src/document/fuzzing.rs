//! What holds for every body, be it an event or not.
//!
//! The reference is the plain way: messages of prost, from them a tree of JSON, from it the text,
//! whose keys serde_json keeps sorted. The messages have `bytes` wherever those of
//! `google.protobuf.Struct` have texts or further messages, since prost refuses a text that is no
//! UTF-8, and merges a message that comes twice, where here the last one counts. So both read the
//! same bodies, and alike.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use chrono::DateTime;
use prost::{DecodeError, Message as _};
use serde_json::{Value, json};

use super::json::{LEVELS_MAX, MARKS_KEY};
use super::{DocumentError, Encoder, IndexPattern, Marks, Transcoder, USABLE_MILLIS};
use crate::event::{AuditEvent, Timestamp};

#[derive(Clone, PartialEq, prost::Message)]
struct Object {
    #[prost(bytes = "vec", repeated, tag = "1")]
    fields: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Field {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Any {
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5, 6")]
    kind: Option<Kind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Kind {
    #[prost(int32, tag = "1")]
    Null(i32),
    #[prost(double, tag = "2")]
    Number(f64),
    #[prost(bytes, tag = "3")]
    String(Vec<u8>),
    #[prost(bool, tag = "4")]
    Bool(bool),
    #[prost(bytes, tag = "5")]
    Object(Vec<u8>),
    #[prost(bytes, tag = "6")]
    List(Vec<u8>),
}

#[derive(Clone, PartialEq, prost::Message)]
struct List {
    #[prost(bytes = "vec", repeated, tag = "1")]
    values: Vec<Vec<u8>>,
}

/// A body's tree and text as the plain way gives them, or why prost cannot read it.
type Reference = Result<(Value, String, Marks), DecodeError>;

fn reference(body: &[u8]) -> Reference {
    let mut marks = Marks::default();
    let tree = object(body, 1, &mut marks)?;
    let text = tree.to_string();
    Ok((tree, text, marks))
}

/// An object that lies in `level - 1` others.
fn object(wire: &[u8], level: usize, marks: &mut Marks) -> Result<Value, DecodeError> {
    let mut members = BTreeMap::new();
    for field in Object::decode(wire)?.fields {
        let Field { key, value } = Field::decode(&*field)?;
        members.insert(text(&key, marks), value);
    }
    // Only the last of members with one key is looked at.
    let members = members.into_iter();
    members
        .map(|(key, wire)| Ok((key, value(&wire, level, marks)?)))
        .collect()
}

fn value(wire: &[u8], level: usize, marks: &mut Marks) -> Result<Value, DecodeError> {
    Ok(match Any::decode(wire)?.kind {
        None | Some(Kind::Null(_)) => Value::Null,
        Some(Kind::Bool(bool)) => bool.into(),
        Some(Kind::Number(number)) => json_number(number),
        Some(Kind::String(bytes)) => text(&bytes, marks).into(),
        Some(Kind::Object(_) | Kind::List(_)) if level == LEVELS_MAX => {
            marks.too_deep = true;
            format!("base64:{}", STANDARD.encode(wire)).into()
        }
        Some(Kind::Object(wire)) => object(&wire, level + 1, marks)?,
        Some(Kind::List(wire)) => {
            let values = List::decode(&*wire)?.values.into_iter();
            values
                .map(|wire| value(&wire, level + 1, marks))
                .collect::<Result<_, _>>()?
        }
    })
}

fn text(bytes: &[u8], marks: &mut Marks) -> String {
    let text = String::from_utf8_lossy(bytes);
    marks.invalid_utf8 |= text.as_bytes() != bytes;
    text.into_owned()
}

fn json_number(number: f64) -> Value {
    if number.is_nan() {
        "NaN".into()
    } else if number.is_infinite() {
        let name = if number > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        };
        name.into()
    } else if number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_992.0 {
        let digits = format!("{number:.0}");
        digits.parse::<i64>().expect("16 digits at most").into()
    } else {
        number.into()
    }
}

/// A body becomes the reference's document, or an error where prost has one, too; whatever the
/// transcoder has read before; and an error leaves nothing behind.
///
/// # Panics
/// If that is not so.
pub fn document(body: &[u8]) {
    let expected = reference(body);
    let mut fresh = Transcoder::default();
    transcode(&mut fresh, body, &expected);
    // Now its keys are known.
    transcode(&mut fresh, body, &expected);
    // And with keys that come to be known in another order. Any of an object's members are an
    // object.
    if let Ok(Object { fields }) = Object::decode(body) {
        let mut other = Transcoder::default();
        let (former, latter) = fields.split_at(fields.len() / 2);
        for half in [latter, former] {
            let fields = half.to_vec();
            let half = Object { fields }.encode_to_vec();
            transcode(&mut other, &half, &reference(&half));
        }
        transcode(&mut other, body, &expected);
    }
    let body = Bytes::copy_from_slice(body);
    let mut encoder = Encoder::new(&IndexPattern::default());
    encode(&mut encoder, &body, Some(1_767_312_000_123), &expected);
    encode(&mut encoder, &body, None, &expected);
}

/// What is in front of everything that is appended.
const BEFORE: &[u8] = b"{\"create\":{}}\n{}\n";

fn transcode(transcoder: &mut Transcoder, body: &[u8], expected: &Reference) {
    let mut out = BEFORE.to_vec();
    match transcoder.transcode(body, &mut out) {
        Ok(marks) => {
            let (_, text, expected_marks) = expected.as_ref().expect("what we read, prost reads");
            let written = out.strip_prefix(BEFORE).expect("only appended to");
            assert_eq!(String::from_utf8_lossy(written), *text);
            assert_eq!(marks, *expected_marks);
        }
        Err(error) => {
            assert_eq!(out, BEFORE, "an error leaves nothing behind");
            refused(body, &error, expected);
        }
    }
}

/// The reference refuses as well.
fn refused(body: &[u8], error: &DocumentError, expected: &Reference) {
    let DocumentError::Malformed { offset, what } = error else {
        panic!("{error}, where no time was asked for");
    };
    assert!(*offset <= body.len(), "{offset}");
    // prost steps over groups; no encoder has written any for many years.
    assert!(expected.is_err() || *what == "group", "{error}");
}

/// Encodes an event with this time in its header.
fn encode(encoder: &mut Encoder, body: &Bytes, time_ms: Option<i64>, expected: &Reference) {
    let event = AuditEvent {
        event_type: Bytes::from_static(b"user.login"),
        time: time_ms.map(Timestamp::from_millis),
        body: body.clone(),
        ..AuditEvent::default()
    };
    let time_in_tree = |tree: &Value| {
        let time = DateTime::parse_from_rfc3339(tree["time"].as_str()?).ok()?;
        let millis = time.timestamp_millis();
        USABLE_MILLIS.contains(&millis).then_some(millis)
    };
    let mut out = BEFORE.to_vec();
    let encoded = match encoder.encode(&event, &mut out) {
        Ok(encoded) => encoded,
        Err(error) => {
            assert_eq!(out, BEFORE, "an error leaves nothing behind");
            return match (error, expected) {
                (DocumentError::NoTime(_), Ok((tree, ..))) => {
                    assert_eq!((time_ms, time_in_tree(tree)), (None, None));
                }
                (DocumentError::NoTime(_), Err(_)) => assert_eq!(time_ms, None),
                (malformed, _) => refused(body, &malformed, expected),
            };
        }
    };
    let (tree, text, marks) = expected.as_ref().expect("what we read, prost reads");
    assert_eq!(
        Some(encoded.time_ms),
        time_ms.or_else(|| time_in_tree(tree))
    );
    assert_eq!(encoded.marks, *marks);

    let (head, source) = out.split_at(encoded.source_start);
    let action = head.strip_prefix(BEFORE).expect("only appended to");
    let action = action.strip_suffix(b"\n").expect("a line");
    let expected = json!({"create": {"_index": &*encoded.index_name, "_id": encoded.id.as_str()}});
    let action: Value = serde_json::from_slice(action).expect("JSON");
    assert_eq!(action, expected);

    let mut line = text.clone();
    let marks_key = std::str::from_utf8(MARKS_KEY).expect("ASCII");
    if !marks.is_empty() && tree.get(marks_key).is_none() {
        line.pop();
        let names: Value = marks.names().collect();
        line.push_str(&format!(",\"{marks_key}\":{names}}}"));
    }
    line.push('\n');
    assert_eq!(String::from_utf8_lossy(source), line);
    assert!(!line.trim_end_matches('\n').contains('\n'));
    serde_json::from_str::<&serde_json::value::RawValue>(&line).expect("JSON");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost_types::value::Kind;
    use prost_types::{ListValue, Struct, Value as Protobuf};

    use super::*;

    fn any_text() -> impl Strategy<Value = String> {
        let characters = prop_oneof![
            4 => prop::char::range(' ', '~'),
            1 => any::<char>(),
            1 => prop::sample::select(vec!['"', '\\', '\n', '\u{0}', '\u{1f}', '\u{7f}', '\u{2028}', '.']),
        ];
        // Around the lengths at which texts are treated in another way.
        let length = prop_oneof![6 => 0..20_usize, 3 => 28..70_usize, 1 => 120..140_usize];
        prop_oneof![
            1 => prop::sample::select(vec!["time", "code", "addr", "addr.local", "server_hostname"])
                .prop_map(str::to_owned),
            3 => (prop::collection::vec(characters, 140), length)
                .prop_map(|(characters, length)| characters.into_iter().take(length).collect()),
        ]
    }

    fn any_number() -> impl Strategy<Value = f64> {
        prop_oneof![
            prop::num::f64::ANY,
            any::<i32>().prop_map(f64::from),
            (-2.0..2.0_f64),
            prop::sample::select(vec![
                0.0,
                -0.0,
                9_007_199_254_740_991.0,
                9_007_199_254_740_993.0,
                9_007_199_254_740_994.0,
                -9_007_199_254_740_992.0,
                f64::MAX,
                f64::MIN_POSITIVE,
                5e-324,
                f64::NAN,
                f64::INFINITY,
                f64::NEG_INFINITY,
            ]),
        ]
    }

    fn any_object() -> impl Strategy<Value = Struct> {
        let leaf = prop_oneof![
            Just(None),
            Just(Some(Kind::NullValue(0))),
            any::<bool>().prop_map(|bool| Some(Kind::BoolValue(bool))),
            any_number().prop_map(|number| Some(Kind::NumberValue(number))),
            any_text().prop_map(|text| Some(Kind::StringValue(text))),
        ]
        .prop_map(|kind| Protobuf { kind });
        let value = leaf.prop_recursive(5, 60, 8, |value| {
            let list = prop::collection::vec(value.clone(), 0..6)
                .prop_map(|values| Kind::ListValue(ListValue { values }));
            let object = prop::collection::btree_map(any_text(), value, 0..8)
                .prop_map(|fields| Kind::StructValue(Struct { fields }));
            prop_oneof![list, object].prop_map(|kind| Protobuf { kind: Some(kind) })
        });
        prop::collection::btree_map(any_text(), value, 0..30).prop_map(|fields| Struct { fields })
    }

    /// A value's wire bytes with the members of all objects in an order given by `seed`.
    fn shuffled(value: &Protobuf, seed: u64) -> Vec<u8> {
        let kind = match &value.kind {
            Some(Kind::StructValue(object)) => super::Kind::Object(shuffled_members(object, seed)),
            Some(Kind::ListValue(list)) => {
                let values = list.values.iter().map(|value| shuffled(value, seed));
                let values = values.collect();
                super::Kind::List(List { values }.encode_to_vec())
            }
            _ => return value.encode_to_vec(),
        };
        Any { kind: Some(kind) }.encode_to_vec()
    }

    fn shuffled_members(object: &Struct, seed: u64) -> Vec<u8> {
        let mut members: Vec<_> = object.fields.iter().collect();
        // A poor man's random order: multiply what the key's bytes give.
        members.sort_by_key(|(key, _)| {
            key.bytes().fold(seed | 1, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
            })
        });
        let fields = members.into_iter().map(|(key, value)| {
            let field = Field {
                key: key.clone().into_bytes(),
                value: shuffled(value, seed),
            };
            field.encode_to_vec()
        });
        let fields = fields.collect();
        Object { fields }.encode_to_vec()
    }

    /// The operation of an event that has no id, so that its id is made from the text.
    fn operation(body: Vec<u8>) -> Vec<u8> {
        let event = AuditEvent {
            time: Some(Timestamp::from_millis(1_767_312_000_123)),
            body: body.into(),
            ..AuditEvent::default()
        };
        let mut out = Vec::new();
        let mut encoder = Encoder::new(&IndexPattern::default());
        encoder.encode(&event, &mut out).unwrap();
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// In whatever order its keys come.
        #[test]
        fn any_event_is_written_as_the_reference_writes_it(object in any_object(), seed: u64) {
            let (sorted, other) = (object.encode_to_vec(), shuffled_members(&object, seed));
            let (_, _, marks) = reference(&sorted).unwrap();
            prop_assert!(marks.is_empty());
            document(&sorted);
            document(&other);
            prop_assert_eq!(operation(sorted), operation(other));
        }

        /// Either a document or an error, for noise as for an event that was damaged.
        #[test]
        fn bytes_that_are_no_event_do_no_harm(
            object in any_object(),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut in prop::option::of(any::<prop::sample::Index>()),
            noise in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let mut damaged = object.encode_to_vec();
            for (at, byte) in damage {
                if !damaged.is_empty() {
                    let at = at.index(damaged.len());
                    damaged[at] = byte;
                }
            }
            if let Some(cut) = cut {
                damaged.truncate(cut.index(damaged.len() + 1));
            }
            document(&noise);
            document(&damaged);
        }
    }
}
