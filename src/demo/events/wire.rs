//! A JSON object as the wire bytes of a `google.protobuf.Struct`.

use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
use serde_json::{Map, Value};

use super::random::Random;

// Field numbers of google.protobuf.Struct, its map entries, Value and ListValue.
const STRUCT_FIELDS: u32 = 1;
const ENTRY_KEY: u32 = 1;
const ENTRY_VALUE: u32 = 2;
const NULL_VALUE: u32 = 1;
const NUMBER_VALUE: u32 = 2;
const STRING_VALUE: u32 = 3;
const BOOL_VALUE: u32 = 4;
const STRUCT_VALUE: u32 = 5;
const LIST_VALUE: u32 = 6;
const LIST_VALUES: u32 = 1;

/// The object as a protobuf Struct. The keys come in an order that looks random and is the same
/// every time, at every level, as Teleport's come in the random order of a Go map. A `value` that
/// is no object gives the empty Struct; numbers become doubles, as a Struct has nothing else.
pub fn struct_bytes(value: &Value) -> Vec<u8> {
    let Some(object) = value.as_object() else {
        return Vec::new();
    };
    let mut bytes = Vec::with_capacity(struct_length(object));
    let mut random = Random::new(seed(object));
    put_struct(&mut bytes, object, &mut random);
    bytes
}

/// A number that follows from the object: its texts, FNV-1a.
fn seed(object: &Map<String, Value>) -> u64 {
    let texts = object
        .iter()
        .flat_map(|(key, value)| [key.as_str(), value.as_str().unwrap_or("")]);
    texts
        .flat_map(str::bytes)
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
}

// Every tag here is below 16, so each key is one byte long.
const KEY: usize = 1;

fn delimited(length: usize) -> usize {
    KEY + encoded_len_varint(length as u64) + length
}

fn struct_length(object: &Map<String, Value>) -> usize {
    let entries = object
        .iter()
        .map(|(key, value)| delimited(delimited(key.len()) + delimited(value_length(value))));
    entries.sum()
}

fn value_length(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) => KEY + 1,
        Value::Number(_) => KEY + 8,
        Value::String(text) => delimited(text.len()),
        Value::Object(object) => delimited(struct_length(object)),
        Value::Array(values) => delimited(list_length(values)),
    }
}

fn list_length(values: &[Value]) -> usize {
    let items = values.iter().map(|value| delimited(value_length(value)));
    items.sum()
}

fn put_head(bytes: &mut Vec<u8>, tag: u32, length: usize) {
    encode_key(tag, WireType::LengthDelimited, bytes);
    encode_varint(length as u64, bytes);
}

fn put_text(bytes: &mut Vec<u8>, tag: u32, text: &str) {
    put_head(bytes, tag, text.len());
    bytes.extend_from_slice(text.as_bytes());
}

fn put_struct(bytes: &mut Vec<u8>, object: &Map<String, Value>, random: &mut Random) {
    let mut entries: Vec<(&String, &Value)> = object.iter().collect();
    for last in (1..entries.len()).rev() {
        let other = random.below(last as u64 + 1);
        entries.swap(
            last,
            usize::try_from(other).expect("an index of the entries"),
        );
    }
    for (key, value) in entries {
        let length = value_length(value);
        put_head(
            bytes,
            STRUCT_FIELDS,
            delimited(key.len()) + delimited(length),
        );
        put_text(bytes, ENTRY_KEY, key);
        put_head(bytes, ENTRY_VALUE, length);
        put_value(bytes, value, random);
    }
}

fn put_value(bytes: &mut Vec<u8>, value: &Value, random: &mut Random) {
    match value {
        // The enum's 0 is written out: a Value without any field would mean nothing at all.
        Value::Null => {
            encode_key(NULL_VALUE, WireType::Varint, bytes);
            bytes.push(0);
        }
        Value::Bool(truth) => {
            encode_key(BOOL_VALUE, WireType::Varint, bytes);
            bytes.push(u8::from(*truth));
        }
        Value::Number(number) => {
            encode_key(NUMBER_VALUE, WireType::SixtyFourBit, bytes);
            let double = number.as_f64().expect("a JSON number is a double here");
            bytes.extend_from_slice(&double.to_le_bytes());
        }
        Value::String(text) => put_text(bytes, STRING_VALUE, text),
        Value::Object(object) => {
            put_head(bytes, STRUCT_VALUE, struct_length(object));
            put_struct(bytes, object, random);
        }
        Value::Array(values) => {
            put_head(bytes, LIST_VALUE, list_length(values));
            for value in values {
                put_head(bytes, LIST_VALUES, value_length(value));
                put_value(bytes, value, random);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use prost_types::value::Kind;
    use serde_json::json;

    use super::*;

    fn json_of(value: &prost_types::Value) -> Value {
        match value.kind.as_ref().expect("every value has a kind") {
            Kind::NullValue(_) => Value::Null,
            Kind::BoolValue(truth) => json!(truth),
            Kind::NumberValue(number) => json!(number),
            Kind::StringValue(text) => json!(text),
            Kind::StructValue(object) => json_of_struct(object),
            Kind::ListValue(list) => list.values.iter().map(json_of).collect(),
        }
    }

    fn json_of_struct(object: &prost_types::Struct) -> Value {
        let entries = object.fields.iter();
        entries
            .map(|(key, value)| (key.clone(), json_of(value)))
            .collect()
    }

    #[test]
    fn protobufs_own_decoder_reads_back_what_was_written() {
        let long = "x".repeat(300);
        let value = json!({
            "": "", "addr.local": "192.0.2.1:3022", "null": null, "yes": true, "no": false,
            "zero": 0.0, "large": 9007199254740991.0, "half": -0.5, "text": long,
            "empty": {}, "none": [], "unicode": "Zoë 🦀 \u{0}",
            "deep": {"list": [[1.0, ["a", {"b": [null]}]], {}, []]},
        });
        let bytes = struct_bytes(&value);
        assert_eq!(bytes.len(), struct_length(value.as_object().unwrap()));
        assert_eq!(
            json_of_struct(&prost_types::Struct::decode(&*bytes).unwrap()),
            value
        );
        assert_eq!(bytes, struct_bytes(&value), "the same bytes every time");
    }

    #[test]
    fn keys_are_not_in_sorted_order() {
        let first_key = |value: Value| struct_bytes(&value)[4];
        let firsts: std::collections::BTreeSet<u8> = (0..20)
            .map(|n| first_key(json!({"a": n.to_string(), "b": 1, "c": 2})))
            .collect();
        assert_eq!(firsts.len(), 3);
    }
}
