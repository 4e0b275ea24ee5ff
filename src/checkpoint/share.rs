//! The run by which this machine works on a share: one for all pieces, one after the other. How far
//! the share has come is known to Elasticsearch; this only carries a piece while it is worked on,
//! and keeps gaps and dead letters.

use rusqlite::{OptionalExtension, params};

use super::export::Chunk;
use super::run::{self, RunId, SourceMode};
use super::{Checkpoint, CheckpointError, left_out, now_ms, unsigned};

/// What stands where other backfills have their filters. One share has one run, whatever piece it
/// is at.
pub fn share_identity(share: &str) -> String {
    format!("share={share}")
}

impl Checkpoint {
    /// The run by which this machine works on a share.
    ///
    /// # Errors
    /// If the state file belongs to another cluster, or cannot be changed.
    pub fn share_run(&self, cluster: &str, share: &str) -> Result<RunId, CheckpointError> {
        self.write("open the run of a share", |transaction| {
            self.claim(transaction, cluster)?;
            let identity = share_identity(share);
            let id: Option<i64> = transaction
                .query_row(
                    "SELECT id FROM runs WHERE kind = 'backfill' AND filters = ?1",
                    [&identity],
                    |row| row.get(0),
                )
                .optional()?;
            if let Some(id) = id {
                return Ok(RunId(id));
            }
            transaction.execute(
                "INSERT INTO runs (kind, from_ms, to_ms, filters, position_ms, updated_ms)
                 VALUES ('backfill', 0, 0, ?1, 0, ?2)",
                params![identity, now_ms()],
            )?;
            Ok(RunId(transaction.last_insert_rowid()))
        })
    }

    /// Lets the run of a share go on with a piece of it, in milliseconds since 1970, of which
    /// everything before `position_ms`, and these chunks by day as far as they say, are settled.
    ///
    /// # Errors
    /// If there is no such run, or the state file cannot be changed.
    pub fn begin_piece(
        &self,
        run: RunId,
        from_ms: i64,
        to_ms: i64,
        position_ms: i64,
        chunks: &[(i32, Chunk)],
    ) -> Result<(), CheckpointError> {
        self.write("begin a piece of a share", |transaction| {
            run::forget_progress(transaction, run)?;
            run::forget_recordings(transaction, run)?;
            left_out::forget(transaction, run)?;
            // What lies in the chunks is worth nothing to a search.
            let mode = (!chunks.is_empty()).then_some(SourceMode::Export);
            let changed = transaction.execute(
                "UPDATE runs SET from_ms = ?2, to_ms = ?3, position_ms = ?4, mode = ?5,
                     finished = 0, events = 0, created = 0, safe_form = 0, already_there = 0,
                     dead_letters = 0, filtered = 0, document_bytes = 0, recordings = 0,
                     updated_ms = ?6
                 WHERE id = ?1 AND kind = 'backfill'",
                params![run.0, from_ms, to_ms, position_ms, mode, now_ms()],
            )?;
            if changed == 0 {
                return Err(run::unknown(run, "given a piece"));
            }
            let mut insert = transaction.prepare_cached(
                "INSERT INTO chunks (run_id, day, name, cursor, done) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT DO NOTHING",
            )?;
            for (day, chunk) in chunks {
                insert.execute(params![run.0, day, chunk.name, chunk.cursor, chunk.done])?;
            }
            Ok(())
        })
    }

    /// How many of the chunks that are listed so far are not read to their end.
    ///
    /// # Errors
    /// If the state file cannot be read.
    pub fn unfinished_chunks(&self, run: RunId) -> Result<u64, CheckpointError> {
        self.read("count the chunks of a piece", |transaction| {
            let count = transaction
                .prepare_cached("SELECT count(*) FROM chunks WHERE run_id = ?1 AND done = 0")?
                .query_row([run.0], |row| Ok(unsigned(row.get(0)?)))?;
            Ok(count)
        })
    }

    /// The time of the first upload, in milliseconds since 1970, whose recording is to be read yet.
    ///
    /// # Errors
    /// If the state file cannot be read.
    pub fn first_upload_to_read_ms(&self, run: RunId) -> Result<Option<i64>, CheckpointError> {
        self.read("look for recordings to read", |transaction| {
            let first = transaction
                .prepare_cached(
                    "SELECT min(upload_ms) FROM recordings
                     WHERE run_id = ?1 AND state = 'pending'",
                )?
                .query_row([run.0], |row| row.get(0))?;
            Ok(first)
        })
    }

    /// The chunks of a run of which something is settled, with their days, done ones first; at most
    /// so many.
    ///
    /// # Errors
    /// If the state file cannot be read.
    pub fn begun_chunks(
        &self,
        run: RunId,
        limit: u32,
    ) -> Result<Vec<(i32, Chunk)>, CheckpointError> {
        self.read("read the chunks of a piece", |transaction| {
            let chunks = transaction
                .prepare_cached(
                    "SELECT day, name, cursor, done FROM chunks
                     WHERE run_id = ?1 AND (done = 1 OR cursor IS NOT NULL)
                     ORDER BY done DESC, name LIMIT ?2",
                )?
                .query_map(params![run.0, limit], |row| {
                    let chunk = Chunk {
                        name: row.get(1)?,
                        cursor: row.get(2)?,
                        done: row.get(3)?,
                    };
                    Ok((row.get(0)?, chunk))
                })?
                .collect::<Result<_, _>>()?;
            Ok(chunks)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Counts, Step};
    use crate::event::DAY_MS;
    use chrono::NaiveDate;

    #[test]
    fn one_run_carries_one_piece_after_the_other() {
        let checkpoint = Checkpoint::open_in_memory().unwrap();
        let run = checkpoint.share_run("example", "years").unwrap();
        assert_eq!(checkpoint.share_run("example", "years").unwrap(), run);
        assert_ne!(checkpoint.share_run("example", "more").unwrap(), run);
        let chunk = |name: &str, cursor: Option<&str>, done| Chunk {
            name: name.into(),
            cursor: cursor.map(str::to_owned),
            done,
        };
        let begun = [
            (1, chunk("b", None, true)),
            (1, chunk("a", Some("3"), false)),
        ];
        checkpoint
            .begin_piece(run, DAY_MS, 2 * DAY_MS, DAY_MS, &begun)
            .unwrap();
        let date = NaiveDate::from_epoch_days(1).unwrap();
        checkpoint.set_mode(run, SourceMode::Export).unwrap();
        let names = ["a", "b", "c"].map(str::to_owned);
        let listed = checkpoint
            .add_listing(run, date, 3 * DAY_MS, &names)
            .unwrap();
        let unfinished = [chunk("a", Some("3"), false), chunk("c", None, false)];
        assert_eq!(listed.unfinished, unfinished);
        assert_eq!(checkpoint.begun_chunks(run, 9).unwrap(), begun);
        let done = ["a", "c"].map(|name| Step::ChunkDone {
            date,
            chunk: name.into(),
        });
        let counts = Counts {
            created: 7,
            ..Counts::default()
        };
        let committed = checkpoint.commit(run, &done, &counts).unwrap();
        assert_eq!(committed.position_ms, 2 * DAY_MS);

        checkpoint
            .begin_piece(run, 5 * DAY_MS, 6 * DAY_MS, 5 * DAY_MS + 9, &[])
            .unwrap();
        let next = checkpoint.run(run).unwrap();
        assert_eq!((next.from_ms, next.to_ms), (5 * DAY_MS, Some(6 * DAY_MS)));
        assert_eq!((next.position_ms, next.mode), (5 * DAY_MS + 9, None));
        assert_eq!(next.counts, Counts::default());
        assert!(checkpoint.begun_chunks(run, 9).unwrap().is_empty());
        let unknown = checkpoint.begin_piece(RunId(99), 0, 1, 0, &[]);
        assert!(unknown.is_err());
    }
}
