//! Whether a line is a document: one JSON object in UTF-8 without duplicate keys at any level.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use chrono::DateTime;
use serde::Deserialize as _;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

/// What the store needs of a document beside its text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Checked {
    /// The field `time` in milliseconds since 1970, if there is one that can be read.
    pub(super) time: Option<i64>,
}

/// Checks a document; an `Err` holds the reason in words like those of Elasticsearch.
pub(super) fn check(line: &[u8]) -> Result<Checked, String> {
    if line.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Err("[1:1] failed to parse: Malformed content, must start with an object".into());
    }
    let mut reader = serde_json::Deserializer::from_slice(line);
    let mut time = None;
    let parsed = Strict {
        time: Some(&mut time),
    }
    .deserialize(&mut reader);
    parsed.and_then(|()| reader.end()).map_err(|error| {
        format!(
            "[{}:{}] failed to parse: {error}",
            error.line(),
            error.column()
        )
    })?;
    Ok(Checked { time })
}

/// Reads any value and keeps nothing, except `time` of the outermost object.
struct Strict<'t> {
    time: Option<&'t mut Option<i64>>,
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<(), A::Error> {
        while values.next_element_seed(Strict { time: None })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        let mut keys: HashSet<Cow<'de, str>> = HashSet::new();
        let mut time = self.time;
        while let Some(key) = fields.next_key_seed(Text)? {
            match time.as_deref_mut() {
                Some(time) if key == "time" => *time = fields.next_value_seed(Time)?,
                _ => fields.next_value_seed(Strict { time: None })?,
            }
            if let Some(key) = keys.replace(key) {
                return Err(A::Error::custom(format!("Duplicate field '{key}'")));
            }
        }
        Ok(())
    }
}

/// A text, borrowed where it can be.
struct Text;

impl<'de> DeserializeSeed<'de> for Text {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Text {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

/// The value of `time`: a text, or what any other value is.
struct Time;

impl<'de> DeserializeSeed<'de> for Time {
    type Value = Option<i64>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let time = value.as_str().map(DateTime::parse_from_rfc3339);
        Ok(time
            .and_then(Result::ok)
            .map(|time| time.timestamp_millis()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_objects_without_duplicate_keys() {
        let good = r#"{"a":[{"b":1},{"b":null}],"c":{"a":-1.5e3},"time":"1970-01-01T00:00:01.5Z"}"#;
        assert_eq!(check(good.as_bytes()), Ok(Checked { time: Some(1500) }));
        assert_eq!(
            check(b" {\"time\":{\"time\":1}} "),
            Ok(Checked { time: None })
        );
        for (bad, reason) in [
            (&b"[1]"[..], "must start with an object"),
            (b"", "must start with an object"),
            (b"{\"a\":1}{}", "trailing characters"),
            (b"{\"a\":1,}", "trailing comma"),
            (b"{\"a\":NaN}", "expected value"),
            (b"{\"a\":1,\"a\":2}", "Duplicate field 'a'"),
            (b"{\"x\":[{\"a\":1,\"\\u0061\":2}]}", "Duplicate field 'a'"),
            (b"{\"a\":\"\xff\"}", "invalid unicode"),
            (b"{\"a\":\"\x01\"}", "control character"),
        ] {
            let error = check(bad).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
