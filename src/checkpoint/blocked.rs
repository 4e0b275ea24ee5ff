//! Documents whose index is blocked, for as long as that lasts. Here they cost no memory, and as
//! they are on the disk, the position may pass them.

use rusqlite::{Transaction, named_params, params};
use thiserror::Error;

use super::error::Failure;
use super::run::RunId;
use super::{Checkpoint, CheckpointError, signed, unsigned};

/// A document that waits for its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockedDocument<'a> {
    /// The index it is meant for.
    pub index_name: &'a str,
    /// The document's id.
    pub document_id: &'a str,
    /// The event's time in milliseconds since 1970.
    pub time_ms: i64,
    /// Whether it is in safe form.
    pub is_safe_form: bool,
    /// What is to be sent.
    pub document: &'a [u8],
}

impl BlockedDocument<'_> {
    /// What counts against the cap.
    fn bytes(&self) -> u64 {
        let length = self.document.len() + self.document_id.len() + self.index_name.len();
        u64::try_from(length).unwrap_or(u64::MAX)
    }
}

/// A document that waited, as it was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingDocument {
    /// Its number in the state file.
    pub number: i64,
    /// The document's id.
    pub document_id: String,
    /// The event's time in milliseconds since 1970.
    pub time_ms: i64,
    /// Whether it is in safe form.
    pub is_safe_form: bool,
    /// What is to be sent.
    pub document: Vec<u8>,
}

/// Why blocked documents were not stored. None of them was.
#[derive(Debug, Error)]
pub enum BlockedError {
    /// There is no more room; they have to wait in memory, and reading stops.
    #[error(
        "the state file has no room for more documents of blocked indices: {bytes} bytes with \
         these, {cap_bytes} are allowed"
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

/// The rows that a run sends: its own, and the daemon those of backfills too, of which nobody knows
/// whether they are ever run again.
const IS_MINE: &str =
    "(run_id = :run OR EXISTS (SELECT 1 FROM runs WHERE id = :run AND kind = 'daemon'))";

impl Checkpoint {
    /// Stores documents of blocked indices, all or none. One that is there already, by index and
    /// id, stays as it is. Returns how many are new.
    ///
    /// # Errors
    /// [`BlockedError::Full`] if they would hold more than `cap_bytes`; otherwise if there is no
    /// such run or the state file cannot be changed.
    pub fn put_blocked<'a>(
        &self,
        run: RunId,
        documents: impl IntoIterator<Item = BlockedDocument<'a>>,
        cap_bytes: u64,
    ) -> Result<u64, BlockedError> {
        self.write("store documents of blocked indices", |transaction| {
            let (count_before, bytes_before) = totals(transaction)?;
            for document in documents {
                insert(transaction, run, &document)?;
            }
            let (count, bytes) = totals(transaction)?;
            if bytes > cap_bytes && bytes > bytes_before {
                return Err(Failure::Refused(BlockedError::Full { bytes, cap_bytes }));
            }
            Ok(count - count_before)
        })
    }

    /// The indices for which documents of this run wait, and how many. The daemon's run takes
    /// those of all others as well.
    ///
    /// # Errors
    /// If the state file cannot be read.
    pub fn blocked_indices(&self, run: RunId) -> Result<Vec<(String, u64)>, CheckpointError> {
        self.read("list the blocked indices", |transaction| {
            let indices = transaction
                .prepare_cached(&format!(
                    "SELECT index_name, count(*) FROM blocked WHERE {IS_MINE}
                     GROUP BY index_name ORDER BY index_name"
                ))?
                .query_map(named_params! { ":run": run.0 }, |row| {
                    Ok((row.get(0)?, unsigned(row.get(1)?)))
                })?
                .collect::<Result<_, _>>()?;
            Ok(indices)
        })
    }

    /// Documents that wait for an index, the oldest first: so many at most, and so many bytes, but
    /// one at least, if there is one.
    ///
    /// # Errors
    /// If the state file cannot be read.
    pub fn waiting(
        &self,
        run: RunId,
        index_name: &str,
        most_documents: usize,
        most_bytes: usize,
    ) -> Result<Vec<WaitingDocument>, CheckpointError> {
        self.read("read documents of a blocked index", |transaction| {
            let mut statement = transaction.prepare_cached(&format!(
                "SELECT id, document_id, time_ms, safe_form, document FROM blocked
                 WHERE index_name = :index AND {IS_MINE} ORDER BY id"
            ))?;
            let mut rows =
                statement.query(named_params! { ":index": index_name, ":run": run.0 })?;
            let (mut waiting, mut bytes) = (Vec::new(), 0);
            while waiting.len() < most_documents
                && let Some(row) = rows.next()?
            {
                let document: Vec<u8> = row.get("document")?;
                bytes += document.len();
                if bytes > most_bytes && !waiting.is_empty() {
                    break;
                }
                waiting.push(WaitingDocument {
                    number: row.get("id")?,
                    document_id: row.get("document_id")?,
                    time_ms: row.get("time_ms")?,
                    is_safe_form: row.get("safe_form")?,
                    document,
                });
            }
            Ok(waiting)
        })
    }

    /// Forgets documents that have settled; whether others of this run still wait for the index.
    ///
    /// # Errors
    /// If the state file cannot be changed; none was forgotten then.
    pub fn settle_blocked(
        &self,
        run: RunId,
        index_name: &str,
        numbers: &[i64],
    ) -> Result<bool, CheckpointError> {
        self.write("forget documents that have settled", |transaction| {
            let mut forget = transaction.prepare_cached("DELETE FROM blocked WHERE id = ?1")?;
            for number in numbers {
                forget.execute([number])?;
            }
            // Not how many: counting them all for each page would take longer than sending them.
            let is_left = transaction
                .prepare_cached(&format!(
                    "SELECT 1 FROM blocked WHERE index_name = :index AND {IS_MINE} LIMIT 1"
                ))?
                .exists(named_params! { ":index": index_name, ":run": run.0 })?;
            Ok(is_left)
        })
    }
}

fn insert(
    transaction: &Transaction<'_>,
    run: RunId,
    document: &BlockedDocument<'_>,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "INSERT INTO blocked (run_id, index_name, document_id, time_ms, safe_form, bytes,
                 document)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO NOTHING",
        )?
        .execute(params![
            run.0,
            document.index_name,
            document.document_id,
            document.time_ms,
            document.is_safe_form,
            signed(document.bytes()),
            document.document,
        ])
        .map(drop)
}

/// How many wait, and their bytes. Triggers keep both numbers.
pub(super) fn totals(transaction: &Transaction<'_>) -> rusqlite::Result<(u64, u64)> {
    transaction
        .prepare_cached("SELECT blocked, blocked_bytes FROM state")?
        .query_row([], |row| Ok((unsigned(row.get(0)?), unsigned(row.get(1)?))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document<'a>(index_name: &'a str, document_id: &'a str) -> BlockedDocument<'a> {
        BlockedDocument {
            index_name,
            document_id,
            time_ms: 7,
            is_safe_form: document_id == "b",
            document: b"0123456789",
        }
    }

    #[test]
    fn each_waits_once_up_to_the_cap_until_it_has_settled() {
        let checkpoint = Checkpoint::open_in_memory().unwrap();
        let daemon = checkpoint.daemon_run("c", || 0).unwrap().0.id;
        let backfill = checkpoint.backfill_run("c", 0, 9, "").unwrap().id;
        let two = [document("i", "a"), document("i", "b")];
        let bytes = 24;
        assert_eq!(checkpoint.put_blocked(backfill, two, bytes).unwrap(), 2);
        // Met again on a second look, by the daemon: no more room is needed.
        assert_eq!(checkpoint.put_blocked(daemon, two, 1).unwrap(), 0);
        let more = [document("i", "a"), document("j", "c")];
        assert_eq!(
            checkpoint
                .put_blocked(daemon, more, 35)
                .unwrap_err()
                .to_string(),
            "the state file has no room for more documents of blocked indices: 36 bytes with \
             these, 35 are allowed"
        );
        assert_eq!(checkpoint.put_blocked(daemon, more, 36).unwrap(), 1);

        let indices = |run| checkpoint.blocked_indices(run).unwrap();
        assert_eq!(indices(backfill), [("i".to_owned(), 2)]);
        assert_eq!(indices(daemon), [("i".to_owned(), 2), ("j".to_owned(), 1)]);
        let waiting = |documents, bytes| {
            let waiting = checkpoint.waiting(daemon, "i", documents, bytes).unwrap();
            waiting.into_iter()
        };
        let ids = |documents, bytes| -> String {
            waiting(documents, bytes).map(|w| w.document_id).collect()
        };
        assert_eq!(
            [ids(9, 99), ids(9, 19), ids(9, 0), ids(1, 99)],
            ["ab", "a", "a", "a"]
        );
        let safe: Vec<_> = waiting(9, 99).map(|w| w.is_safe_form).collect();
        assert_eq!(safe, [false, true]);
        let first = waiting(1, 99).next().unwrap();
        assert_eq!((first.time_ms, &*first.document), (7, &b"0123456789"[..]));
        let settle = |number| checkpoint.settle_blocked(backfill, "i", &[number]).unwrap();
        assert!(settle(first.number) && settle(first.number));
        let summary = checkpoint.summary().unwrap().blocked;
        assert_eq!((summary.count, summary.bytes), (2, 24));
        let by_index = [("i".to_owned(), 1), ("j".to_owned(), 1)];
        assert_eq!(summary.by_index, by_index);
    }
}
