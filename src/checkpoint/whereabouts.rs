//! What the state file knows of documents that are not in Elasticsearch.

use rusqlite::named_params;

use super::gap::{self, Gap};
use super::{Checkpoint, CheckpointError};

/// Where a document lies that is not in Elasticsearch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Among the dead letters: it was refused.
    DeadLetter,
    /// Among those that wait for a blocked index.
    Waiting,
}

impl Checkpoint {
    /// Where each of these documents lies, by id and index; `None` where the file does not have it.
    ///
    /// # Errors
    /// If the state file cannot be read.
    pub fn whereabouts<'a>(
        &self,
        documents: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Vec<Option<Kept>>, CheckpointError> {
        self.read("look for documents", |transaction| {
            let mut dead_letter = transaction.prepare_cached(
                "SELECT 1 FROM dead_letters WHERE document_id = ?1 AND index_name = ?2",
            )?;
            let mut waiting = transaction.prepare_cached(
                "SELECT 1 FROM blocked WHERE document_id = ?1 AND index_name = ?2",
            )?;
            let mut kept = Vec::new();
            for (id, index_name) in documents {
                kept.push(if dead_letter.exists([id, index_name])? {
                    Some(Kept::DeadLetter)
                } else if waiting.exists([id, index_name])? {
                    Some(Kept::Waiting)
                } else {
                    None
                });
            }
            Ok(kept)
        })
    }

    /// The open gaps of all runs that reach into a span, by where they begin. Times are
    /// milliseconds since 1970; the end is exclusive.
    ///
    /// # Errors
    /// If the state file cannot be read.
    pub fn open_gaps_within(&self, from_ms: i64, to_ms: i64) -> Result<Vec<Gap>, CheckpointError> {
        self.read("read the open gaps", |transaction| {
            let gaps = transaction
                .prepare_cached(
                    "SELECT * FROM gaps WHERE closed_ms IS NULL AND from_ms < :to AND to_ms > :from
                     ORDER BY from_ms, id",
                )?
                .query_map(named_params! {":from": from_ms, ":to": to_ms}, gap::read)?
                .collect::<Result<_, _>>()?;
            Ok(gaps)
        })
    }
}
