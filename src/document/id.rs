//! The id of a document. It makes sending an event again harmless, so how it is made may never
//! change: every event that is already in an index would come in a second time.
//!
//! An id is 18 bytes, written as 24 characters of base64url (RFC 4648 section 5, no padding):
//!
//! | bytes | what |
//! |---|---|
//! | 0–5 | the time in milliseconds since 1970, big-endian |
//! | 6–17 | the first 12 bytes of a SHA-256 |
//!
//! The time makes ids readable and keeps those of one index close together. The hash keeps
//! different events apart, also from somebody who would like one event to hide another. It runs
//! over a domain of eight ASCII bytes, which says what follows, and then, with integers
//! big-endian and every text or list of bytes preceded by its length in bytes as a u32:
//!
//! | domain | then |
//! |---|---|
//! | `event  1` | i64 time in milliseconds · i64 index within the session · type · code · id |
//! | `json   1` | the same with the event's JSON in the place of the id; for events without an id |
//! | `record 1` | the same as the one or the other, then the session; for events of a recording that have neither `uid` nor `sid` |
//! | `raw    1` | i64 seconds · i64 nanoseconds, both the lowest i64 if there is no time · i64 index within the session · type · id · body, and the session if there is one; for events that make no document |
//! | `own    1` | i64 time in milliseconds · each part; for documents about what is no event |
//!
//! Type and id are those of the event's header, `code` is the string of that name in its body,
//! empty if there is none. The JSON is that of [`Encoder`](super::Encoder), without marks.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{Context, Digest, SHA256, digest};
use thiserror::Error;

use crate::event::AuditEvent;

/// How long an id is, in bytes and in characters.
pub(super) const ID_BYTES: usize = 24;

/// The `_id` of a document: 24 characters of base64url. Ids sort by themselves in no useful order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DocumentId([u8; ID_BYTES]);

/// The text is no id that this program gives.
#[derive(Debug, Error)]
#[error("{0:?} is not a document id of 24 base64url characters")]
pub struct DocumentIdError(String);

impl DocumentId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("base64url is ASCII")
    }

    /// The time in it, in milliseconds since 1970: for a document's id, that of its event.
    pub fn time_ms(&self) -> i64 {
        let [a, b, c, d, e, f, ..] = self.to_bytes();
        i64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }

    /// The bytes that it is written for; they sort by time.
    pub fn to_bytes(&self) -> [u8; 18] {
        let mut bytes = [0; 18];
        URL_SAFE_NO_PAD
            .decode_slice(self.0, &mut bytes)
            .expect("it is 24 characters of base64url");
        bytes
    }

    pub(super) fn as_bytes(&self) -> &[u8; ID_BYTES] {
        &self.0
    }

    /// The id for an event that cannot be turned into a document, such as one without a usable
    /// time: the same for the same header and the same body, byte for byte. It never equals the id
    /// of a document. The time in it is the header's, or 0 where that does not fit.
    pub fn of_raw(event: &AuditEvent) -> Self {
        let (seconds, nanos) = event.time.map_or((i64::MIN, i64::MIN), |time| {
            (time.seconds, time.nanos.into())
        });
        let mut hasher = Hasher::new(b"raw    1")
            .integer(seconds)
            .integer(nanos)
            .integer(event.index)
            .text(&event.event_type)
            .text(&event.id)
            .text(&event.body);
        if let Some(session) = &event.session {
            hasher = hasher.text(session.as_bytes());
        }
        hasher.finish(event.time.map_or(0, |time| time.millis()))
    }

    /// The id for a document that the program writes about something that is no event: the same
    /// for the same time (milliseconds since 1970) and parts, of which the first should say what
    /// it is about.
    pub fn of_own(time_ms: i64, parts: &[&[u8]]) -> Self {
        let mut hasher = Hasher::new(b"own    1").integer(time_ms);
        for part in parts {
            hasher = hasher.text(part);
        }
        hasher.finish(time_ms)
    }

    /// The id of an event that has a usable time. `json` is what the event was written as, and
    /// counts only if the header holds no id.
    pub(super) fn of_event(event: &AuditEvent, time_ms: i64, code: &[u8], json: &[u8]) -> Self {
        let (domain, content) = match &*event.id {
            b"" => (b"json   1", json),
            id => (b"event  1", id),
        };
        let domain = event.session.as_ref().map_or(domain, |_| b"record 1");
        let mut hasher = Hasher::new(domain)
            .integer(time_ms)
            .integer(event.index)
            .text(&event.event_type)
            .text(code)
            .text(content);
        if let Some(session) = &event.session {
            hasher = hasher.text(session.as_bytes());
        }
        hasher.finish(time_ms)
    }
}

struct Hasher {
    /// What is not yet in `context`. Nearly always this is all there is, and hashing it in one go
    /// is cheaper than piece by piece.
    buffer: [u8; 192],
    buffered: usize,
    context: Option<Context>,
}

impl Hasher {
    fn new(domain: &[u8; 8]) -> Self {
        let hasher = Self {
            buffer: [0; 192],
            buffered: 0,
            context: None,
        };
        hasher.bytes(domain)
    }

    #[inline]
    fn bytes(mut self, bytes: &[u8]) -> Self {
        let end = self.buffered + bytes.len();
        if let Some(free) = self.buffer.get_mut(self.buffered..end) {
            free.copy_from_slice(bytes);
            self.buffered = end;
        } else {
            let context = self.context.get_or_insert_with(|| Context::new(&SHA256));
            context.update(&self.buffer[..self.buffered]);
            context.update(bytes);
            self.buffered = 0;
        }
        self
    }

    fn integer(self, integer: i64) -> Self {
        self.bytes(&integer.to_be_bytes())
    }

    /// The length goes first, so that no two lists of texts give the same bytes.
    fn text(self, text: &[u8]) -> Self {
        // What came in a gRPC message is below 4 GiB, as the message's own length has 32 bits.
        let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
        self.bytes(&length.to_be_bytes()).bytes(text)
    }

    fn digest(self) -> Digest {
        let rest = &self.buffer[..self.buffered];
        match self.context {
            None => digest(&SHA256, rest),
            Some(mut context) => {
                context.update(rest);
                context.finish()
            }
        }
    }

    fn finish(self, time_ms: i64) -> DocumentId {
        let time = if (0..1 << 48).contains(&time_ms) {
            time_ms
        } else {
            0
        };
        let mut bytes = [0; 18];
        bytes[..6].copy_from_slice(&time.to_be_bytes()[2..]);
        bytes[6..].copy_from_slice(&self.digest().as_ref()[..12]);
        let mut id = [0; ID_BYTES];
        let n_written = URL_SAFE_NO_PAD
            .encode_slice(bytes, &mut id)
            .expect("18 bytes are 24 characters");
        debug_assert_eq!(n_written, ID_BYTES);
        DocumentId(id)
    }
}

impl fmt::Display for DocumentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for DocumentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for DocumentId {
    type Err = DocumentIdError;

    /// Takes an id that was written down or came back from Elasticsearch.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_base64url = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        match <[u8; ID_BYTES]>::try_from(text.as_bytes()) {
            Ok(id) if id.iter().all(is_base64url) => Ok(Self(id)),
            _ => Err(DocumentIdError(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::event::Timestamp;

    fn login() -> AuditEvent {
        AuditEvent {
            event_type: Bytes::from_static(b"user.login"),
            id: Bytes::from_static(b"3f0c5ba1-9a5e-4a0e-8ed5-6b9d2c9f5a10"),
            time: Some(Timestamp::from_millis(1_767_312_000_123)),
            index: 7,
            body: Bytes::from_static(b"\x0a\x05\x0a\x01a\x12\x00"),
            session: None,
        }
    }

    /// These may never change. They were made from the page's table with another program.
    #[test]
    fn ids_are_for_ever() {
        let event = login();
        let anonymous = AuditEvent {
            id: Bytes::new(),
            ..login()
        };
        let time_ms = 1_767_312_000_123;
        let json = br#"{"a":null}"#;
        for (id, golden) in [
            (
                DocumentId::of_event(&event, time_ms, b"T1000I", b""),
                "AZt8AQR7cMUsp7QHn8ViBsj9",
            ),
            (
                DocumentId::of_event(&anonymous, time_ms, b"", json),
                "AZt8AQR7YoUA8GJ9C79218Ko",
            ),
            (DocumentId::of_raw(&event), "AZt8AQR7N-GjUVAe36uWF5zO"),
            (
                DocumentId::of_raw(&AuditEvent::default()),
                "AAAAAAAAG9oKDX3RnWVPd0ay",
            ),
            (
                DocumentId::of_own(time_ms, &[b"gap", &[b'x'; 500], b"y"]),
                "AZt8AQR7VU8YQ4D5wrPULTyD",
            ),
            (
                DocumentId::of_own(time_ms, &[b"gap", b"2026-01-02"]),
                "AZt8AQR75pPxpPzbeyDqEOjc",
            ),
        ] {
            assert_eq!(id.as_str(), golden);
        }
    }

    #[test]
    fn whatever_differs_makes_another_id() {
        let time_ms = 1_767_312_000_123;
        let id =
            |event: &AuditEvent, code: &[u8]| DocumentId::of_event(event, time_ms, code, b"{}");
        let mut ids = std::collections::HashSet::new();
        let event = login();
        assert!(ids.insert(id(&event, b"T1000I")));
        assert!(ids.insert(id(&event, b"T1000W")));
        assert!(ids.insert(DocumentId::of_event(&event, time_ms + 1, b"T1000I", b"")));
        assert!(ids.insert(id(
            &AuditEvent {
                index: 8,
                ..login()
            },
            b"T1000I"
        )));
        // The same bytes cut in another way, and the JSON's text sent as an id.
        let moved = |event_type, event_id| AuditEvent {
            event_type: Bytes::from_static(event_type),
            id: Bytes::from_static(event_id),
            ..login()
        };
        assert!(ids.insert(id(&moved(b"user.loginT", b"x"), b"1000I")));
        assert!(ids.insert(id(&moved(b"user.login", b"x"), b"T1000I")));
        assert!(ids.insert(id(&moved(b"user.login", b""), b"T1000I")));
        assert!(ids.insert(id(&moved(b"user.login", b"{}"), b"T1000I")));
        // Two sessions may have recorded the same.
        let recorded = |session: &str| AuditEvent {
            session: Some(session.into()),
            ..login()
        };
        assert!(ids.insert(id(&recorded("6f1e"), b"T1000I")));
        assert!(ids.insert(id(&recorded("6f1f"), b"T1000I")));
        // What cannot be converted: each part counts.
        assert!(ids.insert(DocumentId::of_raw(&event)));
        for raw in [
            AuditEvent {
                time: None,
                ..login()
            },
            AuditEvent {
                time: Some(Timestamp::default()),
                ..login()
            },
            AuditEvent {
                body: Bytes::new(),
                ..login()
            },
            AuditEvent {
                index: 0,
                ..login()
            },
            moved(b"", b"user.login"),
            recorded("6f1e"),
        ] {
            assert!(ids.insert(DocumentId::of_raw(&raw)));
        }
        assert!(ids.insert(DocumentId::of_own(time_ms, &[b"ab", b"c"])));
        assert!(ids.insert(DocumentId::of_own(time_ms, &[b"a", b"bc"])));
    }

    #[test]
    fn reads_back_what_it_writes_and_nothing_else() {
        let id = DocumentId::of_raw(&login());
        assert_eq!(id.to_string().parse::<DocumentId>().unwrap(), id);
        for text in [
            "",
            "3f0c5ba1-9a5e-4a0e-8ed5-6b9d2c9f5a10",
            "abcdefghijklmnopqrstuvw\"",
        ] {
            let error = text.parse::<DocumentId>().unwrap_err();
            assert!(error.to_string().contains("24 base64url characters"));
        }
    }
}
