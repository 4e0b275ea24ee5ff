//! Reads the answers that carry events straight from their wire bytes.
//!
//! A message stays as it came, in one piece; an event's texts and body are pieces of it. What prost
//! makes of a message costs an allocation for each text instead.

use std::marker::PhantomData;

use bytes::{Buf, Bytes};
use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic_prost::ProstEncoder;

use super::Found;
use crate::event::{AuditEvent, Timestamp};
use crate::wire::{LENGTH, Malformed, Reader, Span, VARINT, tag};

/// Collects what comes in pieces of this size: a few dozen events. It is also how much is allocated
/// at once, and so what the last event of a page may keep from being freed.
const BUFFER_BYTES: usize = 32 << 10;

/// From a request of prost's to an answer of ours.
#[derive(Debug)]
pub(super) struct EventCodec<Q, A>(PhantomData<(Q, A)>);

impl<Q, A> Default for EventCodec<Q, A> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<Q, A> Codec for EventCodec<Q, A>
where
    Q: Message + Send + 'static,
    A: Answer,
{
    type Encode = Q;
    type Decode = A;
    type Encoder = ProstEncoder<Q>;
    type Decoder = EventDecoder<A>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        EventDecoder(PhantomData)
    }
}

/// Reads answers.
#[derive(Debug)]
pub(super) struct EventDecoder<A>(PhantomData<A>);

impl<A: Answer> Decoder for EventDecoder<A> {
    type Item = A;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<A>, Status> {
        // No copy: the bytes are split off the buffer that they came in.
        let message = source.copy_to_bytes(source.remaining());
        match A::read(&message) {
            Ok(answer) => Ok(Some(answer)),
            Err(Malformed { offset, what }) => Err(Status::internal(format!(
                "the answer is no protobuf message: {what} at byte {offset}"
            ))),
        }
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, BUFFER_BYTES)
    }
}

/// A message that can be read from its wire bytes.
pub(super) trait Answer: Sized + Send + Sync + 'static {
    fn read(message: &Bytes) -> Result<Self, Malformed>;
}

/// An event of an export.
#[derive(Debug, Default)]
pub struct Exported {
    /// The event.
    pub event: AuditEvent,
    /// Where to go on behind it; UTF-8.
    pub cursor: Bytes,
}

impl Answer for Exported {
    fn read(message: &Bytes) -> Result<Self, Malformed> {
        const EVENT: u32 = tag(1, LENGTH);
        const CURSOR: u32 = tag(2, LENGTH);

        let mut exported = Self::default();
        let mut fields = Reader::new(message, Span::of(message)?);
        while let Some(found) = fields.next_tag()? {
            match found {
                EVENT => exported.event = event(message, fields.length_delimited()?)?,
                CURSOR => exported.cursor = text(message, fields.length_delimited()?)?,
                _ => fields.skip_unknown(found, 2)?,
            }
        }
        Ok(exported)
    }
}

impl Answer for Found {
    fn read(message: &Bytes) -> Result<Self, Malformed> {
        const ITEMS: u32 = tag(1, LENGTH);
        const LAST_KEY: u32 = tag(2, LENGTH);

        let mut events = Vec::new();
        let mut last_key = Bytes::new();
        let mut fields = Reader::new(message, Span::of(message)?);
        while let Some(found) = fields.next_tag()? {
            match found {
                ITEMS => events.push(event(message, fields.length_delimited()?)?),
                LAST_KEY => last_key = text(message, fields.length_delimited()?)?,
                _ => fields.skip_unknown(found, 2)?,
            }
        }
        let last_key = String::from_utf8_lossy(&last_key).into_owned();
        Ok(Self { events, last_key })
    }
}

impl Answer for AuditEvent {
    fn read(message: &Bytes) -> Result<Self, Malformed> {
        event(message, Span::of(message)?)
    }
}

fn event(message: &Bytes, span: Span) -> Result<AuditEvent, Malformed> {
    const TYPE: u32 = tag(1, LENGTH);
    const ID: u32 = tag(2, LENGTH);
    const TIME: u32 = tag(3, LENGTH);
    const INDEX: u32 = tag(4, VARINT);
    const UNSTRUCTURED: u32 = tag(5, LENGTH);

    let mut event = AuditEvent::default();
    let mut fields = Reader::new(message, span);
    while let Some(found) = fields.next_tag()? {
        match found {
            TYPE => event.event_type = piece(message, fields.length_delimited()?),
            ID => event.id = piece(message, fields.length_delimited()?),
            TIME => event.time = Some(timestamp(message, fields.length_delimited()?)?),
            INDEX => event.index = fields.varint()?.cast_signed(),
            UNSTRUCTURED => event.body = piece(message, fields.length_delimited()?),
            _ => fields.skip_unknown(found, 5)?,
        }
    }
    Ok(event)
}

fn timestamp(message: &Bytes, span: Span) -> Result<Timestamp, Malformed> {
    const SECONDS: u32 = tag(1, VARINT);
    const NANOS: u32 = tag(2, VARINT);

    let mut time = Timestamp::default();
    let mut fields = Reader::new(message, span);
    while let Some(found) = fields.next_tag()? {
        match found {
            SECONDS => time.seconds = fields.varint()?.cast_signed(),
            #[expect(
                clippy::cast_possible_truncation,
                reason = "an int32 comes sign-extended to 64 bits; protobuf drops the upper half"
            )]
            NANOS => time.nanos = fields.varint()? as i32,
            _ => fields.skip_unknown(found, 2)?,
        }
    }
    Ok(time)
}

fn piece(message: &Bytes, span: Span) -> Bytes {
    message.slice(span.start as usize..span.end as usize)
}

/// A key or cursor, which goes back to the server as protobuf's `string`.
fn text(message: &Bytes, span: Span) -> Result<Bytes, Malformed> {
    match std::str::from_utf8(span.bytes(message)) {
        Ok(_) => Ok(piece(message, span)),
        Err(_) => Err(Malformed {
            offset: span.start as usize,
            what: "key or cursor that is no UTF-8",
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fuzzing::event_answer;
    use super::*;
    use crate::teleport::proto::auditlog;

    fn audit_event(event: auditlog::EventUnstructured) -> AuditEvent {
        AuditEvent {
            event_type: event.r#type,
            id: event.id,
            time: event.time.map(|time| Timestamp {
                seconds: time.seconds,
                nanos: time.nanos,
            }),
            index: event.index,
            body: event.unstructured,
            session: None,
        }
    }

    fn any_event() -> impl Strategy<Value = auditlog::EventUnstructured> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from);
        let time = prop::option::of((any::<i64>(), any::<i32>()));
        (bytes(), bytes(), time, any::<i64>(), bytes()).prop_map(
            |(r#type, id, time, index, unstructured)| auditlog::EventUnstructured {
                r#type,
                id,
                time: time.map(|(seconds, nanos)| auditlog::Timestamp { seconds, nanos }),
                index,
                unstructured,
            },
        )
    }

    proptest! {
        #[test]
        fn reads_what_prost_has_written(
            items in prop::collection::vec(any_event(), 0..5),
            last_key in ".{0,20}",
        ) {
            let page = auditlog::EventsUnstructured { items: items.clone(), last_key: last_key.clone() };
            let found = Found::read(&page.encode_to_vec().into()).unwrap();
            let expected: Vec<_> = items.iter().cloned().map(audit_event).collect();
            prop_assert_eq!((&found.events, &found.last_key), (&expected, &last_key));
            for (item, expected) in items.into_iter().zip(expected) {
                let sent = auditlog::ExportEventUnstructured { event: Some(item), cursor: last_key.clone() };
                let exported = Exported::read(&sent.encode_to_vec().into()).unwrap();
                prop_assert_eq!((exported.event, &*exported.cursor), (expected, last_key.as_bytes()));
            }
        }

        #[test]
        fn damaged_messages_are_read_as_prost_reads_them(
            item in any_event(),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let sent = auditlog::ExportEventUnstructured { event: Some(item), cursor: "c".into() };
            let mut bytes = sent.encode_to_vec();
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            event_answer(&bytes);
        }
    }
}
