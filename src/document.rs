//! An event's document: its JSON text, its `_id` and the name of its index, all pure functions of
//! the event, so that sending it again is harmless.
//!
//! `_source` is the event as Teleport gives it: the same keys and the same values. Two things are
//! ours. The keys are sorted by their bytes at every level, since Teleport's come in random order
//! and an index of sorted ones is smaller. And an event that could not be given quite as it is
//! says so in a last member, `event_indexer.marks`; see [`Marks`].

mod ecs;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod id;
mod index_pattern;
mod json;
mod keys;
pub(crate) mod member;
pub mod safe_form;
mod text;

use std::sync::Arc;

use chrono::DateTime;
use serde_json::Value;
use thiserror::Error;

use crate::event::{AuditEvent, DAY_MS};

use self::ecs::Ecs;

pub use self::id::{DocumentId, DocumentIdError};
pub use self::index_pattern::{IndexPattern, IndexPatternError, USABLE_MILLIS};
pub use self::json::Transcoder;
use crate::telemetry::Reason;
use crate::wire::Malformed;

/// Writes documents as operations of a `_bulk` request. It keeps its buffers, so that an event
/// costs no allocation once the largest has passed.
pub struct Encoder {
    index_pattern: IndexPattern,
    /// The days met, as few as an exporter works on at a time.
    days: Vec<Day>,
    /// Where the last event's day lies in `days`.
    last_day: usize,
    transcoder: Transcoder,
    /// What adds fields, if the schema has more than the event's.
    ecs: Option<Box<Ecs>>,
}

/// Which fields a document has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Schema {
    /// Those of the event.
    #[default]
    Raw,
    /// Those of the event, and beside them those of the Elastic Common Schema.
    Ecs,
}

/// What all events of one UTC day share.
struct Day {
    /// Days since 1970.
    number: i64,
    index_name: Arc<str>,
    /// The operation's first line up to where the id stands.
    action: Vec<u8>,
}

/// One operation that was appended.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// The index that it goes to. Mostly shared with the other operations of its day.
    pub index_name: Arc<str>,
    /// The document's `_id`.
    pub id: DocumentId,
    /// The time that gave the index and the id's beginning, in milliseconds since 1970.
    pub time_ms: i64,
    /// Where in the caller's buffer the document's JSON begins. It goes up to the line end that is
    /// the last byte appended.
    pub source_start: usize,
    /// What the event could not be given as.
    pub marks: Marks,
}

/// What of an event is not in its document as it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// A text was no valid UTF-8; each fault in it has become U+FFFD. Where keys became equal by
    /// that, the last is kept.
    pub invalid_utf8: bool,
    /// A value lay in more than 64 objects and lists; it has become the string `base64:` with its
    /// bytes as a `google.protobuf.Value` in standard base64.
    pub too_deep: bool,
}

impl Marks {
    /// Whether the document is the event as it was.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// The words for these marks in documents.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        [
            (self.invalid_utf8, "invalid_utf8"),
            (self.too_deep, "too_deep"),
        ]
        .into_iter()
        .filter_map(|(is_set, name)| is_set.then_some(name))
    }
}

/// Why an event makes no document. It concerns this event only, and no later try will help.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DocumentError {
    /// The body cannot be read.
    #[error("the event's body is no protobuf Struct: {what} at byte {offset}")]
    Malformed {
        /// Where in the body, in bytes.
        offset: usize,
        /// What is there.
        what: &'static str,
    },
    /// There is no time to tell the index from.
    #[error("the event has no usable time: {0}")]
    NoTime(TimeFault),
}

impl DocumentError {
    /// For the count of such errors.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Malformed { .. } => Reason::Malformed,
            Self::NoTime(_) => Reason::NoTime,
        }
    }
}

/// What is wrong with an event's time. The event's own text is not repeated, as errors are logged.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum TimeFault {
    /// Neither the header nor the body has one.
    #[error("it has none at all")]
    Missing,
    /// The header has none and the body's is not in RFC 3339's form.
    #[error("its text is not of the form 2026-01-02T03:04:05Z")]
    Unreadable,
    /// A time outside of [`USABLE_MILLIS`].
    #[error("{millis} ms since 1970 lie outside of the years 1971 to 2199")]
    OutOfRange {
        /// Milliseconds since 1970.
        millis: i64,
    },
}

/// Stands where the id will be until the document, which it may depend on, is written.
const ID_PLACEHOLDER: &[u8; id::ID_BYTES] = b"________________________";

impl Encoder {
    /// An encoder for indices of this pattern.
    pub fn new(index_pattern: &IndexPattern) -> Self {
        Self {
            index_pattern: index_pattern.clone(),
            days: Vec::new(),
            last_day: 0,
            transcoder: Transcoder::default(),
            ecs: None,
        }
    }

    /// The same with another schema.
    pub fn with_schema(mut self, schema: Schema) -> Self {
        self.ecs = (schema == Schema::Ecs).then(Box::default);
        self
    }

    /// Appends the operation that creates an event's document: two lines.
    ///
    /// The time is the header's; if there is none, the body's `time`.
    ///
    /// # Errors
    /// If the body cannot be read or there is no usable time; `out` is as before.
    pub fn encode(
        &mut self,
        event: &AuditEvent,
        out: &mut Vec<u8>,
    ) -> Result<Encoded, DocumentError> {
        let start = out.len();
        let encoded = self.append(event, out);
        if encoded.is_err() {
            out.truncate(start);
        }
        encoded
    }

    fn append(&mut self, event: &AuditEvent, out: &mut Vec<u8>) -> Result<Encoded, DocumentError> {
        self.transcoder.read(&event.body)?;
        let time_ms = match event.time {
            Some(time) => time.millis(),
            None => self.time_in(&event.body)?,
        };
        let index_name = self.begin(time_ms, event.body.len(), out)?;
        let source_start = out.len();
        let code = self.transcoder.string(&event.body, b"code");
        // Writing takes the members off, so this is asked before it is known to matter.
        let has_marks_member = self.transcoder.has_marks_member(&event.body);
        if let Some(ecs) = &mut self.ecs {
            ecs.read(&self.transcoder, &event.body);
        }
        let marks = self.transcoder.write(&event.body, out)?;
        let code = code.unwrap_or_default();
        let id = DocumentId::of_event(event, time_ms, code, &out[source_start..]);
        if let Some(ecs) = &mut self.ecs {
            ecs.write(&event.body, time_ms, source_start, out);
        }
        // An event that brings this member itself keeps its own: a key may not come twice.
        if !marks.is_empty() && !has_marks_member {
            write_marks(marks, out);
        }
        out.push(b'\n');
        set_id(id, source_start, out);
        Ok(Encoded {
            index_name,
            id,
            time_ms,
            source_start,
            marks,
        })
    }

    /// Appends the operation that creates a document which is not an event as it was given: one of
    /// the program's own, or an event's in another form, then with the event's time and id.
    ///
    /// # Errors
    /// If the time is outside of [`USABLE_MILLIS`]; `out` is as before.
    pub fn encode_own(
        &mut self,
        time_ms: i64,
        id: DocumentId,
        document: &Value,
        out: &mut Vec<u8>,
    ) -> Result<Encoded, DocumentError> {
        let index_name = self.begin(time_ms, 0, out)?;
        let source_start = out.len();
        serde_json::to_writer(&mut *out, document).expect("a Vec takes any JSON value");
        if self.ecs.is_some() && document.get("@timestamp").is_none() {
            ecs::write_timestamp(time_ms, out);
        }
        out.push(b'\n');
        set_id(id, source_start, out);
        Ok(Encoded {
            index_name,
            id,
            time_ms,
            source_start,
            marks: Marks::default(),
        })
    }

    /// Appends the first line.
    fn begin(
        &mut self,
        time_ms: i64,
        body_bytes: usize,
        out: &mut Vec<u8>,
    ) -> Result<Arc<str>, DocumentError> {
        let day = self.day(time_ms)?;
        // As wire and as text an event is about equally long.
        out.reserve(day.action.len() + body_bytes + body_bytes / 8 + 64);
        out.extend_from_slice(&day.action);
        out.extend_from_slice(ID_PLACEHOLDER);
        out.extend_from_slice(ACTION_END);
        Ok(Arc::clone(&day.index_name))
    }

    fn day(&mut self, time_ms: i64) -> Result<&Day, DocumentError> {
        /// Many more days than are read side by side, few enough to look through.
        const DAYS_MAX: usize = 64;

        let number = time_ms.div_euclid(DAY_MS);
        let known = match self.days.get(self.last_day) {
            Some(day) if day.number == number => Some(self.last_day),
            _ => self.days.iter().position(|day| day.number == number),
        };
        self.last_day = match known {
            Some(index) => index,
            None => {
                let index_name =
                    self.index_pattern
                        .name_for(time_ms)
                        .ok_or(DocumentError::NoTime(TimeFault::OutOfRange {
                            millis: time_ms,
                        }))?;
                if self.days.len() == DAYS_MAX {
                    self.days.clear();
                }
                self.days.push(Day {
                    number,
                    // A legal name holds nothing that JSON would have to escape.
                    action: format!(r#"{{"create":{{"_index":"{index_name}","_id":""#).into(),
                    index_name: index_name.into(),
                });
                self.days.len() - 1
            }
        };
        Ok(&self.days[self.last_day])
    }

    fn time_in(&self, body: &[u8]) -> Result<i64, DocumentError> {
        let text = self
            .transcoder
            .string(body, b"time")
            .ok_or(DocumentError::NoTime(TimeFault::Missing))?;
        std::str::from_utf8(text)
            .ok()
            .and_then(|text| DateTime::parse_from_rfc3339(text).ok())
            .map(|time| time.timestamp_millis())
            .ok_or(DocumentError::NoTime(TimeFault::Unreadable))
    }
}

/// What stands between the id and the document.
const ACTION_END: &[u8] = b"\"}}\n";

fn set_id(id: DocumentId, source_start: usize, out: &mut [u8]) {
    let end = source_start - ACTION_END.len();
    out[end - ID_PLACEHOLDER.len()..end].copy_from_slice(id.as_bytes());
}

/// Puts the marks behind the last member of the object that `out` ends in.
#[cold]
fn write_marks(marks: Marks, out: &mut Vec<u8>) {
    // Something is marked, so the object has a member.
    out.pop();
    out.extend_from_slice(b",\"");
    out.extend_from_slice(json::MARKS_KEY);
    out.extend_from_slice(b"\":[");
    for (n, name) in marks.names().enumerate() {
        let comma = if n > 0 { "," } else { "" };
        out.extend_from_slice(format!("{comma}\"{name}\"").as_bytes());
    }
    out.extend_from_slice(b"]}");
}

impl From<Malformed> for DocumentError {
    fn from(malformed: Malformed) -> Self {
        let Malformed { offset, what } = malformed;
        Self::Malformed { offset, what }
    }
}
