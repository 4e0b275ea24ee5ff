//! What holds for every answer that carries events, be it one or not.
//!
//! The reference is prost. Its messages here have a list of `bytes` wherever the real ones have
//! one message, since prost merges a message that comes twice, where here the last one counts.

use bytes::Bytes;
use prost::{DecodeError, Message};

use super::Found;
use super::codec::{Answer, Exported};
use crate::event::{AuditEvent, Timestamp};
use crate::teleport::proto::auditlog;

#[derive(Clone, PartialEq, prost::Message)]
struct Export {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    events: Vec<Bytes>,
    #[prost(string, tag = "2")]
    cursor: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Page {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    items: Vec<Bytes>,
    #[prost(string, tag = "2")]
    last_key: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Event {
    #[prost(bytes = "bytes", tag = "1")]
    event_type: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    id: Bytes,
    #[prost(bytes = "bytes", repeated, tag = "3")]
    times: Vec<Bytes>,
    #[prost(int64, tag = "4")]
    index: i64,
    #[prost(bytes = "bytes", tag = "5")]
    unstructured: Bytes,
}

fn export(wire: &Bytes) -> Result<(AuditEvent, String), DecodeError> {
    let Export { events, cursor } = Export::decode(wire.clone())?;
    // All are read, the last one counts.
    let mut events = events
        .into_iter()
        .map(event)
        .collect::<Result<Vec<_>, _>>()?;
    Ok((events.pop().unwrap_or_default(), cursor))
}

fn page(wire: &Bytes) -> Result<(Vec<AuditEvent>, String), DecodeError> {
    let Page { items, last_key } = Page::decode(wire.clone())?;
    let events = items.into_iter().map(event).collect::<Result<_, _>>()?;
    Ok((events, last_key))
}

fn event(wire: Bytes) -> Result<AuditEvent, DecodeError> {
    let event = Event::decode(wire)?;
    let times = event.times.into_iter().map(auditlog::Timestamp::decode);
    let times = times.collect::<Result<Vec<_>, _>>()?;
    Ok(AuditEvent {
        event_type: event.event_type,
        id: event.id,
        time: times.last().map(|time| Timestamp {
            seconds: time.seconds,
            nanos: time.nanos,
        }),
        index: event.index,
        body: event.unstructured,
        session: None,
    })
}

/// A message is read as prost reads it, as an export's, a search's and a recording's, or refused
/// where prost refuses it, too.
///
/// # Panics
/// If that is not so.
pub fn event_answer(message: &[u8]) {
    let message = Bytes::copy_from_slice(message);
    let exported = read::<Exported, _>(&message, export(&message));
    if let Some((exported, expected)) = exported {
        let cursor = std::str::from_utf8(&exported.cursor).expect("UTF-8, as promised");
        assert_eq!((&exported.event, cursor), (&expected.0, &*expected.1));
    }
    if let Some((found, expected)) = read::<Found, _>(&message, page(&message)) {
        assert_eq!((found.events, found.last_key), expected);
    }
    if let Some((found, expected)) = read::<AuditEvent, _>(&message, event(message.clone())) {
        assert_eq!(found, expected);
    }
}

/// The message as we and as prost read it, if both do.
fn read<A: Answer, T>(message: &Bytes, expected: Result<T, DecodeError>) -> Option<(A, T)> {
    match A::read(message) {
        Ok(answer) => Some((answer, expected.expect("what we read, prost reads"))),
        Err(malformed) => {
            assert!(malformed.offset <= message.len(), "{malformed:?}");
            // prost steps over groups; no encoder has written any for many years.
            let is_agreed = expected.is_err() || malformed.what == "group";
            assert!(is_agreed, "{malformed:?}");
            None
        }
    }
}
