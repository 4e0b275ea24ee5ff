//! The dead-letter store: documents that Elasticsearch refused for good.

mod selection;

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Transaction, named_params};
use thiserror::Error;

use super::error::Failure;
use super::run::RunId;
use super::{Checkpoint, CheckpointError, signed, unsigned};

pub use self::selection::{DeadLetterFilter, DeadLetterPage, Dropped, PagePlace};

/// A document that Elasticsearch refused for good, or an event that could not become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The document's id.
    pub document_id: String,
    /// The index it was meant for.
    pub index_name: String,
    /// The event's type.
    pub event_type: String,
    /// The event's time in milliseconds since 1970, if it has a usable one.
    pub time_ms: Option<i64>,
    /// What would be sent again.
    pub document: Vec<u8>,
    /// What `document` is.
    pub form: DocumentForm,
    /// The HTTP status of the refusal; `None` if it never came to Elasticsearch.
    pub status: Option<u16>,
    /// Elasticsearch's error type, or a code of ours.
    pub error_type: String,
    /// Elasticsearch's reason, or ours, for a person.
    pub reason: String,
    /// When it was first refused; milliseconds since 1970.
    pub first_seen_ms: i64,
}

impl DeadLetter {
    /// Whether it was refused for its size alone. What Elasticsearch has under its id is the safe
    /// form without its text then.
    pub fn is_too_large(&self) -> bool {
        matches!(self.status, Some(413 | 429))
    }

    /// What counts against the cap: its bytes and texts, so that even an empty document counts.
    pub fn bytes(&self) -> u64 {
        let length = self.document.len()
            + self.document_id.len()
            + self.index_name.len()
            + self.event_type.len()
            + self.error_type.len()
            + self.reason.len();
        u64::try_from(length).unwrap_or(u64::MAX)
    }
}

/// In which form the body of a dead letter is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DocumentForm {
    /// The document's JSON text.
    Json,
    /// The event's body as Teleport sent it: wire bytes of a `google.protobuf.Struct`.
    Protobuf,
}

impl DocumentForm {
    /// `json` or `protobuf`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Protobuf => "protobuf",
        }
    }
}

impl ToSql for DocumentForm {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.as_str().into())
    }
}

impl FromSql for DocumentForm {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        match value.as_str()? {
            "json" => Ok(Self::Json),
            "protobuf" => Ok(Self::Protobuf),
            _ => Err(FromSqlError::InvalidType),
        }
    }
}

/// What storing dead letters has led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// How many of them were not there before.
    pub new: u64,
    /// How many lie in the store now.
    pub count: u64,
    /// How many bytes the store holds now, as the cap counts them.
    pub bytes: u64,
}

/// The error type of an event of which no document can be made.
pub const UNCONVERTIBLE: &str = "unconvertible_event";

/// Why dead letters were not stored. None of them was.
#[derive(Debug, Error)]
pub enum DeadLetterError {
    /// The store has reached its cap. Everything has to wait: to drop a document is to lose it.
    #[error(
        "the dead-letter store is full: {bytes} bytes with the documents that were just refused, \
         {cap_bytes} are allowed; look at it with `dead-letters list`, then retry or drop documents"
    )]
    Full {
        /// What it would have held, in bytes.
        bytes: u64,
        /// What it may hold, in bytes.
        cap_bytes: u64,
    },
    /// The state file cannot be changed.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// A dead letter without its body, for a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterEntry {
    /// The document's id.
    pub document_id: String,
    /// The index it was meant for.
    pub index_name: String,
    /// The event's type.
    pub event_type: String,
    /// The event's time in milliseconds since 1970, if it has a usable one.
    pub time_ms: Option<i64>,
    /// The HTTP status of the refusal; `None` if it never came to Elasticsearch.
    pub status: Option<u16>,
    /// Elasticsearch's error type, or a code of ours.
    pub error_type: String,
    /// Elasticsearch's reason, or ours.
    pub reason: String,
    /// When it was first refused; milliseconds since 1970.
    pub first_seen_ms: i64,
    /// What it counts against the cap.
    pub bytes: u64,
}

impl Checkpoint {
    /// Stores documents, all of them or none. One that is there already, by id and index, is
    /// replaced, but keeps the time at which it was first seen. What does not make the store
    /// larger is never too much for it.
    ///
    /// # Errors
    /// [`DeadLetterError::Full`] if the store would hold more than `cap_bytes`; otherwise if there
    /// is no such run or the state file cannot be changed.
    pub fn insert_dead_letters(
        &self,
        run: RunId,
        letters: &[DeadLetter],
        cap_bytes: u64,
    ) -> Result<Stored, DeadLetterError> {
        self.write("store dead letters", |transaction| {
            let (count_before, bytes_before) = totals(transaction)?;
            for letter in letters {
                upsert(transaction, run, letter)?;
            }
            let (count, bytes) = totals(transaction)?;
            if bytes > cap_bytes && bytes > bytes_before {
                return Err(Failure::Refused(DeadLetterError::Full { bytes, cap_bytes }));
            }
            Ok(Stored {
                new: count - count_before,
                count,
                bytes,
            })
        })
    }
}

/// How many dead letters there are, and their bytes. Triggers keep both numbers.
pub(super) fn totals(transaction: &Transaction<'_>) -> rusqlite::Result<(u64, u64)> {
    transaction
        .prepare_cached("SELECT dead_letters, dead_letter_bytes FROM state")?
        .query_row([], |row| Ok((unsigned(row.get(0)?), unsigned(row.get(1)?))))
}

fn upsert(transaction: &Transaction<'_>, run: RunId, letter: &DeadLetter) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "INSERT INTO dead_letters (document_id, index_name, run_id, event_type, time_ms, form,
                 status, error_type, reason, first_seen_ms, bytes, document)
             VALUES (:id, :index, :run, :type, :time, :form, :status, :error, :reason, :seen,
                 :bytes, :document)
             ON CONFLICT DO UPDATE SET
                 run_id = excluded.run_id,
                 event_type = excluded.event_type,
                 time_ms = excluded.time_ms,
                 form = excluded.form,
                 status = excluded.status,
                 error_type = excluded.error_type,
                 reason = excluded.reason,
                 first_seen_ms = min(first_seen_ms, excluded.first_seen_ms),
                 bytes = excluded.bytes,
                 document = excluded.document",
        )?
        .execute(named_params! {
            ":id": letter.document_id,
            ":index": letter.index_name,
            ":run": run.0,
            ":type": letter.event_type,
            ":time": letter.time_ms,
            ":form": letter.form,
            ":status": letter.status,
            ":error": letter.error_type,
            ":reason": letter.reason,
            ":seen": letter.first_seen_ms,
            ":bytes": signed(letter.bytes()),
            ":document": letter.document,
        })
        .map(drop)
}

#[cfg(test)]
mod tests {
    use crate::checkpoint::DeadLetterSummary;

    use super::*;

    fn letter(id: &str, document: &str, error_type: &str, first_seen_ms: i64) -> DeadLetter {
        DeadLetter {
            document_id: id.to_owned(),
            index_name: "i".to_owned(),
            event_type: String::new(),
            time_ms: Some(1),
            document: document.into(),
            form: DocumentForm::Json,
            status: Some(400),
            error_type: error_type.to_owned(),
            reason: format!("refused {first_seen_ms}"),
            first_seen_ms,
        }
    }

    #[test]
    fn the_store_keeps_one_of_each_up_to_its_cap() {
        let directory = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        let run = checkpoint.daemon_run("example", || 0).unwrap().0.id;
        let any = DeadLetterFilter::default();
        let put = |letters: &[DeadLetter], cap| checkpoint.insert_dead_letters(run, letters, cap);

        let first = [letter("a", "{}", "x", 100), letter("b", "{}", "y", 200)];
        let bytes = first.iter().map(DeadLetter::bytes).sum();
        let stored = Stored {
            new: 2,
            count: 2,
            bytes,
        };
        assert_eq!(put(&first, bytes).unwrap(), stored);
        // The same page again, later and under a cap that was lowered since.
        let again = [letter("a", "{}", "x", 300), letter("b", "{}", "y", 400)];
        assert_eq!(put(&again, 1).unwrap(), Stored { new: 0, ..stored });

        // One would have fitted; none is stored.
        let more = [letter("c", "", "y", 500), letter("d", "{}", "y", 600)];
        let all = bytes + more.iter().map(DeadLetter::bytes).sum::<u64>();
        let cap = all - 1;
        assert_eq!(
            put(&more, cap).unwrap_err().to_string(),
            format!(
                "the dead-letter store is full: {all} bytes with the documents that were just \
                 refused, {cap} are allowed; look at it with `dead-letters list`, then retry or \
                 drop documents"
            )
        );
        assert_eq!(checkpoint.dead_letters(&any, 9).unwrap().len(), 2);
        assert_eq!(put(&more[..1], cap).unwrap().new, 1);

        let list = checkpoint.dead_letters(&any, 2).unwrap();
        let ids: Vec<_> = list
            .iter()
            .map(|entry| (entry.document_id.as_str(), entry.first_seen_ms))
            .collect();
        assert_eq!(ids, [("c", 500), ("b", 200)]);
        assert_eq!(list[1].reason, "refused 400");
        assert_eq!(
            checkpoint.summary().unwrap().dead_letters,
            DeadLetterSummary {
                count: 3,
                bytes: bytes + more[0].bytes(),
                by_error_type: vec![("y".to_owned(), 2), ("x".to_owned(), 1)],
            }
        );

        // Whoever drops documents makes room.
        let connection = checkpoint.connection.lock().unwrap();
        connection.execute("DELETE FROM dead_letters", []).unwrap();
        drop(connection);
        assert_eq!(put(&more, cap).unwrap().count, 2);
    }
}
