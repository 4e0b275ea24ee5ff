//! Looks up, and adds, single members of an event while it still is the wire bytes of a
//! `google.protobuf.Struct`.

use bytes::Bytes;

use super::json::{Kind, kind, next_member};
use crate::wire::{LENGTH, Malformed, Reader, Span, tag};

/// The text of one of the event's own members, if it has it and it is a string. Of several with
/// this key the last one counts, as in the document.
pub(crate) fn text<'a>(body: &'a [u8], key: &str) -> Result<Option<&'a [u8]>, Malformed> {
    Ok(match of(body, key)? {
        Some(Kind::String(text)) => Some(text.bytes(body)),
        _ => None,
    })
}

/// The same of a member that is true or false.
pub(crate) fn truth(body: &[u8], key: &str) -> Result<Option<bool>, Malformed> {
    Ok(match of(body, key)? {
        Some(Kind::Bool(truth)) => Some(truth),
        _ => None,
    })
}

fn of(body: &[u8], key: &str) -> Result<Option<Kind>, Malformed> {
    let mut found = None;
    let mut members = Reader::new(body, Span::of(body)?);
    while let Some((name, value)) = next_member(body, &mut members)? {
        if name.bytes(body) == key.as_bytes() {
            found = Some(value);
        }
    }
    found.map(|value| kind(body, value)).transpose()
}

/// The event with one more member, which takes the place of one of the same key.
pub(crate) fn with_text(body: &[u8], key: &str, text: &[u8]) -> Bytes {
    const MEMBER: u32 = tag(1, LENGTH);
    const KEY: u32 = tag(1, LENGTH);
    const VALUE: u32 = tag(2, LENGTH);
    const STRING: u32 = tag(3, LENGTH);

    let mut value = Vec::new();
    put(&mut value, STRING, text);
    let mut member = Vec::new();
    put(&mut member, KEY, key.as_bytes());
    put(&mut member, VALUE, &value);
    let mut event = Vec::with_capacity(body.len() + member.len() + 12);
    event.extend_from_slice(body);
    put(&mut event, MEMBER, &member);
    event.into()
}

/// Appends a field of bytes. Its tag is below 128.
fn put(out: &mut Vec<u8>, tag: u32, bytes: &[u8]) {
    let low = |number: usize| u8::try_from(number & 0x7f).expect("seven bits");
    out.push(u8::try_from(tag).expect("a small tag"));
    let mut length = bytes.len();
    while length > 0x7f {
        out.push(low(length) | 0x80);
        length >>= 7;
    }
    out.push(low(length));
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::demo::events::struct_bytes;
    use crate::document::Transcoder;

    #[test]
    fn a_member_is_added_and_found_and_takes_the_place_of_another() {
        let body = struct_bytes(&json!({"event": "print", "sid": "", "ci": 3, "b": {"sid": "x"}}));
        assert_eq!(text(&body, "sid").unwrap(), Some(&b""[..]));
        assert_eq!(text(&body, "uid").unwrap(), None);
        assert_eq!(text(&body, "ci").unwrap(), None);
        assert_eq!(truth(&body, "ci").unwrap(), None);
        let body = struct_bytes(&json!({"success": false, "b": true, "sid": "", "ci": 3}));
        assert_eq!(truth(&body, "success").unwrap(), Some(false));
        assert_eq!(truth(&body, "b").unwrap(), Some(true));
        let body = struct_bytes(&json!({"event": "print", "sid": "", "ci": 3, "b": {"sid": "x"}}));
        let long = "s".repeat(70_000);
        for sid in ["6f1e", &long] {
            let body = with_text(&body, "sid", sid.as_bytes());
            assert_eq!(text(&body, "sid").unwrap(), Some(sid.as_bytes()));
            let mut json = Vec::new();
            Transcoder::default().transcode(&body, &mut json).unwrap();
            let expected = json!({"event": "print", "sid": sid, "ci": 3, "b": {"sid": "x"}});
            let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
            assert_eq!(json, expected);
        }
        text(b"\x0a\x05", "sid").unwrap_err();
    }
}
