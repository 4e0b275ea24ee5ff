//! Collects documents until a bulk request is worth sending. Pure: no I/O, no clock.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::checkpoint::DeadLetter;
use crate::document::DocumentId;
use crate::pipeline::progress::PageNumber;

/// When a batch is closed.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Bytes of NDJSON. A batch is closed once it has so many, so it may pass them by one document.
    pub bytes: usize,
    /// Documents.
    pub documents: usize,
    /// The longest that the first document of a batch waits for company.
    pub age: std::time::Duration,
}

/// One operation of a bulk request: where its two lines are, and what must be known to settle it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Byte offset of the action line.
    pub start: usize,
    /// Byte offset of the document line.
    pub source_start: usize,
    /// Byte offset behind the document line's newline.
    pub end: usize,
    /// The page which the document's event came with; `None` for a document that lay in the state
    /// file, whose page has settled.
    pub page: Option<PageNumber>,
    /// Where the document goes.
    pub index_name: Arc<str>,
    /// The document's `_id`.
    pub id: DocumentId,
    /// The event's time, ms since 1970.
    pub time_ms: i64,
    /// The document is in [`safe_form`](crate::document::safe_form): it was refused as it was.
    pub is_safe_form: bool,
}

/// Documents on the way to one bulk request, and events that never became documents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The request's body: NDJSON.
    pub body: Bytes,
    /// One for each two lines of `body`, in order.
    pub operations: Vec<Operation>,
    /// Events that could not be converted, on their way to the dead-letter store.
    pub unconverted: Vec<(PageNumber, DeadLetter)>,
    /// The index that it is to try out: its documents were put aside because that was blocked, and
    /// its fate tells that of the others there. Without documents it stands for those that wait in
    /// the state file.
    pub probe: Option<Arc<str>>,
}

/// A document that lay in the state file, to be sent again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredDocument {
    /// Where it goes.
    pub index_name: String,
    /// Its `_id`.
    pub id: DocumentId,
    /// The event's time, ms since 1970.
    pub time_ms: i64,
    /// It is in safe form.
    pub is_safe_form: bool,
    /// Its JSON, one line.
    pub source: Vec<u8>,
}

impl Batch {
    /// A batch of documents that lay in the state file.
    pub fn of_stored(documents: &[StoredDocument]) -> Batch {
        let mut body = Vec::with_capacity(documents.iter().map(|d| d.source.len() + 100).sum());
        let mut operations = Vec::with_capacity(documents.len());
        for document in documents {
            let StoredDocument {
                index_name,
                id,
                time_ms,
                is_safe_form,
                source,
            } = document;
            let start = body.len();
            // A legal name holds nothing that JSON would have to escape.
            let action =
                format!("{{\"create\":{{\"_index\":\"{index_name}\",\"_id\":\"{id}\"}}}}\n");
            body.extend_from_slice(action.as_bytes());
            let source_start = body.len();
            body.extend_from_slice(source);
            body.push(b'\n');
            operations.push(Operation {
                start,
                source_start,
                end: body.len(),
                page: None,
                index_name: index_name.as_str().into(),
                id: *id,
                time_ms: *time_ms,
                is_safe_form: *is_safe_form,
            });
        }
        Batch {
            body: body.into(),
            operations,
            ..Batch::default()
        }
    }

    /// The document line of an operation, without its newline.
    pub fn source(&self, operation: &Operation) -> Bytes {
        self.body.slice(operation.source_start..operation.end - 1)
    }

    /// A batch of some of the operations, with a body of its own.
    pub fn of(&self, operations: impl IntoIterator<Item = Operation>) -> Batch {
        let mut body = Vec::new();
        let operations = operations
            .into_iter()
            .map(|operation| {
                let start = body.len();
                body.extend_from_slice(&self.body[operation.start..operation.end]);
                Operation {
                    start,
                    source_start: start + (operation.source_start - operation.start),
                    end: body.len(),
                    ..operation
                }
            })
            .collect();
        Batch {
            body: body.into(),
            operations,
            ..Batch::default()
        }
    }

    /// All operations of several batches in one.
    pub fn joined(parts: &[Batch]) -> Batch {
        let mut body = Vec::with_capacity(parts.iter().map(|part| part.body.len()).sum());
        let mut operations = Vec::with_capacity(parts.iter().map(|p| p.operations.len()).sum());
        for part in parts {
            let offset = body.len();
            body.extend_from_slice(&part.body);
            operations.extend(part.operations.iter().map(|operation| Operation {
                start: operation.start + offset,
                source_start: operation.source_start + offset,
                end: operation.end + offset,
                ..operation.clone()
            }));
        }
        Batch {
            body: body.into(),
            operations,
            ..Batch::default()
        }
    }

    /// The two halves of a batch of two operations or more.
    pub fn halves(&self) -> (Batch, Batch) {
        let (left, right) = self.operations.split_at(self.operations.len() / 2);
        (
            self.of(left.iter().cloned()),
            self.of(right.iter().cloned()),
        )
    }
}

/// Buffers that bodies were in and others will be: memory that is given back to the system and
/// fetched again costs more than what is written into it.
#[derive(Debug, Default)]
struct Spare(Mutex<Vec<Vec<u8>>>);

impl Spare {
    fn take(&self) -> Option<Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn keep(&self, buffer: Vec<u8>) {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        spare.push(buffer);
    }
}

/// A body that has been closed. Once nobody needs it any more its buffer is spare again.
struct Body {
    bytes: Vec<u8>,
    spare: Arc<Spare>,
    /// One that has grown for a large event is not kept.
    capacity_max: usize,
}

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if self.bytes.capacity() <= self.capacity_max {
            let mut buffer = std::mem::take(&mut self.bytes);
            buffer.clear();
            self.spare.keep(buffer);
        }
    }
}

/// Fills one batch after the other.
#[derive(Debug)]
pub struct BatchBuilder {
    limits: BatchLimits,
    spare: Arc<Spare>,
    body: Vec<u8>,
    operations: Vec<Operation>,
    unconverted: Vec<(PageNumber, DeadLetter)>,
    /// Bytes of the events in `unconverted`.
    unconverted_bytes: usize,
}

impl BatchBuilder {
    /// An empty one.
    pub fn new(limits: BatchLimits) -> Self {
        Self {
            limits,
            spare: Arc::default(),
            body: Vec::new(),
            operations: Vec::new(),
            unconverted: Vec::new(),
            unconverted_bytes: 0,
        }
    }

    /// Where the next operation is to be appended.
    pub fn body(&mut self) -> &mut Vec<u8> {
        &mut self.body
    }

    /// Registers the operation that has been appended to [`BatchBuilder::body`].
    pub fn push(&mut self, operation: Operation) {
        debug_assert_eq!(operation.end, self.body.len());
        self.operations.push(operation);
    }

    /// Takes an event that could not be converted.
    pub fn push_unconverted(&mut self, page: PageNumber, letter: DeadLetter) {
        self.unconverted_bytes += letter.document.len();
        self.unconverted.push((page, letter));
    }

    /// Nothing in it.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty() && self.unconverted.is_empty()
    }

    /// Large enough to be sent without waiting for more.
    pub fn is_full(&self) -> bool {
        self.body.len() + self.unconverted_bytes >= self.limits.bytes
            || self.operations.len() + self.unconverted.len() >= self.limits.documents
    }

    /// Gives the batch away and starts an empty one.
    pub fn close(&mut self) -> Batch {
        // The next batch will most likely be of the size of this one: one allocation, not twenty.
        let length = self.body.len().min(self.limits.bytes) * 17 / 16;
        let next = match self.spare.take() {
            Some(buffer) => buffer,
            None => Vec::with_capacity(length),
        };
        let operations = Vec::with_capacity(self.operations.len() * 17 / 16);
        self.unconverted_bytes = 0;
        Batch {
            body: Bytes::from_owner(Body {
                bytes: std::mem::replace(&mut self.body, next),
                spare: self.spare.clone(),
                capacity_max: self.limits.bytes.saturating_mul(2),
            }),
            operations: std::mem::replace(&mut self.operations, operations),
            unconverted: std::mem::take(&mut self.unconverted),
            probe: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::progress::{Lane, Progress};

    fn page() -> PageNumber {
        Progress::<(), ()>::default().take(Lane(0), None, ())
    }

    fn filled(documents: &[&str]) -> BatchBuilder {
        let limits = BatchLimits {
            bytes: 100,
            documents: 3,
            age: std::time::Duration::from_millis(1),
        };
        let mut builder = BatchBuilder::new(limits);
        for document in documents {
            let start = builder.body().len();
            builder.body().extend_from_slice(b"{}\n");
            let source_start = builder.body().len();
            builder.body().extend_from_slice(document.as_bytes());
            builder.body().push(b'\n');
            let end = builder.body().len();
            builder.push(Operation {
                start,
                source_start,
                end,
                page: Some(page()),
                index_name: "i".into(),
                id: DocumentId::of_own(0, &[document.as_bytes()]),
                time_ms: 0,
                is_safe_form: false,
            });
        }
        builder
    }

    #[test]
    fn closes_by_count_and_by_bytes() {
        assert!(filled(&[]).is_empty());
        assert!(!filled(&["a", "b"]).is_full());
        assert!(filled(&["a", "b", "c"]).is_full());
        assert!(filled(&[&"x".repeat(100)]).is_full());
    }

    #[test]
    fn a_buffer_is_used_again_once_nobody_reads_it() {
        let mut builder = filled(&["one", "two"]);
        let batch = builder.close();
        let first = batch.body.as_ptr();
        assert!(builder.spare.take().is_none());
        let reader = batch.body.clone();
        drop(batch);
        assert!(builder.spare.take().is_none());
        assert_eq!(reader, "{}\none\n{}\ntwo\n");
        drop(reader);
        assert_eq!(
            builder.spare.take().map(|b| (b.as_ptr(), b.len())),
            Some((first, 0))
        );
        // One that was made for a large event is given back to the system.
        drop(filled(&[&"x".repeat(300)]).close());
        assert!(builder.spare.take().is_none());
    }

    #[test]
    fn a_part_has_its_operations_lines_and_no_others() {
        let batch = filled(&["one", "two", "three"]).close();
        let part = batch.of(batch.operations.iter().skip(1).cloned());
        assert_eq!(part.body, "{}\ntwo\n{}\nthree\n");
        assert_eq!(part.source(&part.operations[1]), "three");
        let (left, right) = batch.halves();
        assert_eq!(
            (left.body.as_ref(), right.operations.len()),
            (&b"{}\none\n"[..], 2)
        );
        let again = Batch::joined(&[right, left]);
        assert_eq!(again.body, "{}\ntwo\n{}\nthree\n{}\none\n");
        let sources = again.operations.iter().map(|o| again.source(o));
        assert_eq!(sources.collect::<Vec<_>>(), ["two", "three", "one"]);
    }
}
