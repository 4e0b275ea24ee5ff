//! Export: the days that were listed and their chunks.

use chrono::NaiveDate;
use rusqlite::{Transaction, params};

use super::commit::Standing;
use super::run::{RunId, SourceMode};
use super::{Checkpoint, CheckpointError};
pub(super) use crate::event::DAY_MS;

/// The number of a day, counted from 1970-01-01.
pub(super) fn day(date: NaiveDate) -> i64 {
    i64::from(date.to_epoch_days())
}

/// The first day with a chunk that is not done.
pub(super) fn first_open_day(
    transaction: &Transaction<'_>,
    run: RunId,
) -> rusqlite::Result<Option<i64>> {
    transaction
        .prepare_cached("SELECT min(day) FROM chunks WHERE run_id = ?1 AND done = 0")?
        .query_row([run.0], |row| row.get(0))
}

/// A chunk of one day, in the server's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The chunk's opaque id.
    pub name: String,
    /// Where to go on reading; `None` at the start, and when it is done.
    pub cursor: Option<String>,
    /// Whether all of it is settled.
    pub done: bool,
}

/// What a listing has led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The chunks of the day that are not done, those of earlier listings too, by name.
    pub unfinished: Vec<Chunk>,
    /// Everything before this is settled; milliseconds since 1970. An empty day moves it.
    pub position_ms: i64,
}

impl Checkpoint {
    /// Writes down a complete listing of a day. `listed_ms` is the moment at which it was asked
    /// for, not that of its end: what came between the two may be missing from it.
    ///
    /// # Errors
    /// If there is no such run, if it does not read by export, or if the state file cannot be
    /// changed.
    pub fn add_listing(
        &self,
        run: RunId,
        date: NaiveDate,
        listed_ms: i64,
        chunks: &[String],
    ) -> Result<Listed, CheckpointError> {
        self.write("write down a listing", |transaction| {
            let standing = Standing::load(transaction, run)?;
            standing.expect_mode(SourceMode::Export)?;
            transaction
                .prepare_cached(
                    "INSERT INTO days (run_id, day, listed_ms) VALUES (?1, ?2, ?3)
                     ON CONFLICT DO UPDATE SET listed_ms = excluded.listed_ms
                     WHERE excluded.listed_ms > listed_ms",
                )?
                .execute(params![run.0, day(date), listed_ms])?;
            let mut insert = transaction.prepare_cached(
                "INSERT INTO chunks (run_id, day, name) VALUES (?1, ?2, ?3)
                 ON CONFLICT DO NOTHING",
            )?;
            for chunk in chunks {
                insert.execute(params![run.0, day(date), chunk])?;
            }
            let unfinished = transaction
                .prepare_cached(
                    "SELECT name, cursor FROM chunks WHERE run_id = ?1 AND day = ?2 AND done = 0
                     ORDER BY name",
                )?
                .query_map(params![run.0, day(date)], |row| {
                    Ok(Chunk {
                        name: row.get(0)?,
                        cursor: row.get(1)?,
                        done: false,
                    })
                })?
                .collect::<Result<_, _>>()?;
            Ok(Listed {
                unfinished,
                position_ms: standing.advance(transaction)?,
            })
        })
    }

    /// The chunks of a day that are known so far, by name.
    ///
    /// # Errors
    /// If the state file cannot be read.
    pub fn chunks(&self, run: RunId, date: NaiveDate) -> Result<Vec<Chunk>, CheckpointError> {
        self.read("read the chunks of a day", |transaction| {
            let chunks = transaction
                .prepare_cached(
                    "SELECT name, cursor, done FROM chunks WHERE run_id = ?1 AND day = ?2
                     ORDER BY name",
                )?
                .query_map(params![run.0, day(date)], |row| {
                    Ok(Chunk {
                        name: row.get(0)?,
                        cursor: row.get(1)?,
                        done: row.get(2)?,
                    })
                })?
                .collect::<Result<_, _>>()?;
            Ok(chunks)
        })
    }

    /// Forgets the days before `date`, which are listed no more. Days that the position has not
    /// passed, and days with a chunk that is not done, stay all the same: without their done
    /// chunks a later listing would have all of them read again.
    ///
    /// # Errors
    /// If the state file cannot be changed.
    pub fn forget_days_before(&self, run: RunId, date: NaiveDate) -> Result<(), CheckpointError> {
        self.write("forget old days", |transaction| {
            for table in ["chunks", "days"] {
                transaction
                    .prepare_cached(&format!(
                        "DELETE FROM {table}
                         WHERE run_id = ?1 AND day < ?2
                             AND (day + 1) * {DAY_MS} <= (SELECT position_ms FROM runs WHERE id = ?1)
                             AND day NOT IN
                                 (SELECT day FROM chunks WHERE run_id = ?1 AND done = 0)"
                    ))?
                    .execute(params![run.0, day(date)])?;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::checkpoint::{Counts, Step};

    use super::*;

    fn date(day: i32) -> NaiveDate {
        NaiveDate::from_epoch_days(day).unwrap()
    }

    fn done(day: i32, chunk: &str) -> Step {
        Step::ChunkDone {
            date: date(day),
            chunk: chunk.to_owned(),
        }
    }

    #[test]
    fn listings_know_what_was_read_and_days_are_forgotten_when_it_is_safe() {
        let directory = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        let run = checkpoint.daemon_run("example", || 0).unwrap().0.id;
        checkpoint.set_mode(run, SourceMode::Export).unwrap();
        let list = |day, listed_ms, names: &[&str]| {
            let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
            let listed = checkpoint.add_listing(run, date(day), listed_ms, &names);
            let listed = listed.unwrap();
            let open: Vec<_> = listed
                .unfinished
                .into_iter()
                .map(|chunk| (chunk.name, chunk.cursor.unwrap_or_default()))
                .collect();
            (open, listed.position_ms)
        };
        let commit = |steps: &[Step]| {
            let counts = Counts::default();
            checkpoint.commit(run, steps, &counts).unwrap().position_ms
        };
        let open = |name: &str, cursor: &str| (name.to_owned(), cursor.to_owned());

        let (unfinished, position_ms) = list(0, 2 * DAY_MS, &["a", "b"]);
        assert_eq!(unfinished, [open("a", ""), open("b", "")]);
        assert_eq!(position_ms, 0);
        let half = Step::Chunk {
            date: date(0),
            chunk: "b".to_owned(),
            cursor: "half".to_owned(),
        };
        assert_eq!(commit(&[half.clone(), done(0, "a")]), 0);
        // "c" came late; "b" is listed no more, but not done either.
        let (unfinished, _) = list(0, 2 * DAY_MS, &["a", "c"]);
        assert_eq!(unfinished, [open("b", "half"), open("c", "")]);
        assert_eq!(commit(&[done(0, "b"), half, done(0, "c")]), DAY_MS);
        assert_eq!(list(0, 2 * DAY_MS, &["a", "c"]).0, []);

        // Day 1 was last listed before it ended: not passed, whatever is known of day 2.
        let noon = DAY_MS + DAY_MS / 2;
        assert_eq!(list(1, noon, &[]), (vec![], noon));
        assert_eq!(list(2, 3 * DAY_MS, &["d"]).1, noon);
        assert_eq!(commit(&[done(2, "d")]), noon);
        assert_eq!(list(1, 2 * DAY_MS, &[]).1, 3 * DAY_MS);

        // A late chunk of a day that was passed holds the position until it is read.
        list(1, 4 * DAY_MS, &["late"]);
        assert_eq!(list(3, 5 * DAY_MS, &[]).1, 3 * DAY_MS);
        checkpoint.forget_days_before(run, date(9)).unwrap();
        let known = |day| checkpoint.chunks(run, date(day)).unwrap().len();
        assert_eq!([known(0), known(1), known(2)], [0, 1, 0]);
        assert_eq!(commit(&[done(1, "late")]), 4 * DAY_MS);
    }
}
