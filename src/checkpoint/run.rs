//! Runs: the daemon's and the backfills'.

use std::fmt;

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{OptionalExtension, Row, Transaction, named_params, params};

use super::commit::Counts;
use super::error::Failure;
use super::export::{self, DAY_MS};
use super::{Checkpoint, CheckpointError, left_out, now_ms, unsigned};

/// How long after an event its chunk may appear without the change to search missing it. Servers
/// write chunks about once a minute; what is read twice because of this costs little.
const LATE_CHUNKS_MS: i64 = 6 * 3_600_000;

/// The number of a run in its state file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(pub(super) i64);

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The event API by which a run reads. Positions within one are not comparable with the other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceMode {
    /// Time windows and pages.
    Search,
    /// Chunks per day.
    Export,
}

impl SourceMode {
    /// `search` or `export`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Search => "search",
            Self::Export => "export",
        }
    }
}

impl fmt::Display for SourceMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl ToSql for SourceMode {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.as_str().into())
    }
}

impl FromSql for SourceMode {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        match value.as_str()? {
            "search" => Ok(Self::Search),
            "export" => Ok(Self::Export),
            _ => Err(FromSqlError::InvalidType),
        }
    }
}

/// What a run is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunKind {
    /// Follows the audit log for ever; one per state file.
    Daemon,
    /// Reads a closed range once. Its start, end and filters are its identity.
    Backfill {
        /// The end, exclusive; milliseconds since 1970.
        to_ms: i64,
        /// The filters in the caller's own canonical text; empty for none.
        filters: String,
    },
}

/// A walk over the audit log, as far as it has come. Times are milliseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Its number.
    pub id: RunId,
    /// The cluster whose audit log it reads.
    pub cluster: String,
    /// Where it began, or where somebody has moved that to.
    pub from_ms: i64,
    /// The start time that was configured when somebody moved it; `None` if nobody has.
    pub start_ms: Option<i64>,
    /// Where it ends, exclusive; `None` for the daemon.
    pub to_ms: Option<i64>,
    /// The event API it reads by; `None` until [`Checkpoint::set_mode`].
    pub mode: Option<SourceMode>,
    /// Everything before this is settled.
    pub position_ms: i64,
    /// The newest event that the daemon has seen by search: until then the server's clock had come
    /// for certain. `None` if there was none yet.
    pub newest_ms: Option<i64>,
    /// Whether a backfill has read and settled everything.
    pub finished: bool,
    /// Search: the windows that end after the position, by start; some of them may be finished.
    pub windows: Vec<Window>,
    /// What has settled since the run began, over all processes that worked on it.
    pub counts: Counts,
}

/// A time range of one search: from inclusive, to exclusive; milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The start.
    pub from_ms: i64,
    /// The end, at or after the start.
    pub to_ms: i64,
    /// Everything from the start up to this, exclusive, is settled; the end if all is.
    pub reached_ms: i64,
}

impl Window {
    /// Whether everything in it is settled.
    pub fn is_finished(&self) -> bool {
        self.reached_ms == self.to_ms
    }
}

impl Checkpoint {
    /// The daemon's run on `cluster`, and whether this made it. Only then `start_ms`, the time to
    /// start from in milliseconds since 1970, is asked for; it stays fixed from there on.
    ///
    /// # Errors
    /// If the state file belongs to another cluster, or cannot be changed.
    pub fn daemon_run(
        &self,
        cluster: &str,
        start_ms: impl FnOnce() -> i64,
    ) -> Result<(Run, bool), CheckpointError> {
        self.write("open the daemon's run", |transaction| {
            self.claim(transaction, cluster)?;
            let mut id: Option<i64> = transaction
                .query_row("SELECT id FROM runs WHERE kind = 'daemon'", [], |row| {
                    row.get(0)
                })
                .optional()?;
            let first_start = id.is_none();
            if first_start {
                transaction.execute(
                    "INSERT INTO runs (kind, from_ms, filters, position_ms, updated_ms)
                     VALUES ('daemon', ?1, '', ?1, ?2)",
                    params![start_ms(), now_ms()],
                )?;
                id = Some(transaction.last_insert_rowid());
            }
            let id = RunId(id.expect("found or just made"));
            Ok((load(transaction, id, "read")?, first_start))
        })
    }

    /// A run as far as it has come.
    ///
    /// # Errors
    /// If there is no such run, or the state file cannot be read.
    pub fn run(&self, run: RunId) -> Result<Run, CheckpointError> {
        self.read("read a run", |transaction| load(transaction, run, "read"))
    }

    /// The backfill of `cluster` with this identity, new or as far as it has come: `from_ms`
    /// inclusive, `to_ms` exclusive, `filters` in the caller's canonical text.
    ///
    /// # Errors
    /// If the state file belongs to another cluster, or cannot be changed.
    pub fn backfill_run(
        &self,
        cluster: &str,
        from_ms: i64,
        to_ms: i64,
        filters: &str,
    ) -> Result<Run, CheckpointError> {
        self.write("open the backfill's run", |transaction| {
            self.claim(transaction, cluster)?;
            transaction.execute(
                "INSERT INTO runs (kind, from_ms, to_ms, filters, position_ms, updated_ms)
                 VALUES ('backfill', ?1, ?2, ?3, ?1, ?4)
                 ON CONFLICT DO NOTHING",
                params![from_ms, to_ms, filters, now_ms()],
            )?;
            let id = transaction.query_row(
                "SELECT id FROM runs
                 WHERE kind = 'backfill' AND from_ms = ?1 AND to_ms = ?2 AND filters = ?3",
                params![from_ms, to_ms, filters],
                |row| row.get(0).map(RunId),
            )?;
            load(transaction, id, "read")
        })
    }

    /// Lets a backfill begin anew: unfinished, at its start, with no counts and no API chosen.
    /// Its gaps and dead letters stay: the new walk meets them again, or others mend them.
    ///
    /// # Errors
    /// If there is no such backfill, or the state file cannot be changed.
    pub fn restart_run(&self, run: RunId) -> Result<(), CheckpointError> {
        self.write("restart a backfill", |transaction| {
            load_backfill(transaction, run, "restarted")?;
            forget_progress(transaction, run)?;
            left_out::forget(transaction, run)?;
            forget_recordings(transaction, run)?;
            transaction.execute(
                "UPDATE runs SET finished = 0, mode = NULL, position_ms = from_ms,
                     events = 0, created = 0, safe_form = 0, already_there = 0, dead_letters = 0, filtered = 0,
                     document_bytes = 0, recordings = 0, updated_ms = ?2
                 WHERE id = ?1",
                params![run.0, now_ms()],
            )?;
            Ok(())
        })
    }

    /// Writes down that a backfill has settled everything up to its end.
    ///
    /// # Errors
    /// If its position says otherwise, if there is no such backfill, or if the state file cannot
    /// be changed.
    pub fn finish_run(&self, run: RunId) -> Result<(), CheckpointError> {
        self.write("finish a backfill", |transaction| {
            let (position_ms, to_ms) = load_backfill(transaction, run, "finished")?;
            if position_ms < to_ms {
                return Err(Failure::Refused(CheckpointError::Unfinished {
                    run,
                    position_ms,
                    to_ms,
                }));
            }
            forget_progress(transaction, run)?;
            forget_recordings(transaction, run)?;
            transaction.execute(
                "UPDATE runs SET finished = 1, updated_ms = ?2 WHERE id = ?1",
                params![run.0, now_ms()],
            )?;
            Ok(())
        })
    }

    /// Chooses the event API of a run. A change of it throws away the windows or chunks of the
    /// other one; what had settled beyond the position is read again.
    ///
    /// A change to search keeps the position. A change from export moves it back, to before what a
    /// server may list late and before the first day with a chunk that is not done: an export's
    /// position says nothing of chunks that appear behind it, and the plan that did is gone.
    ///
    /// # Errors
    /// If there is no such run, or the state file cannot be changed.
    pub fn set_mode(&self, run: RunId, mode: SourceMode) -> Result<(), CheckpointError> {
        self.write("choose the event API", |transaction| {
            let Run {
                mode: current,
                from_ms,
                mut position_ms,
                ..
            } = load(transaction, run, "read by an event API")?;
            if current == Some(mode) {
                return Ok(());
            }
            if current == Some(SourceMode::Export) {
                let first_open = export::first_open_day(transaction, run)?;
                position_ms = first_open
                    .map_or(i64::MAX, |day| day * DAY_MS)
                    .min(position_ms - LATE_CHUNKS_MS)
                    .max(from_ms);
            }
            forget_progress(transaction, run)?;
            transaction.execute(
                "UPDATE runs SET mode = ?2, position_ms = ?3, newest_ms = NULL, updated_ms = ?4
                 WHERE id = ?1",
                params![run.0, mode, position_ms, now_ms()],
            )?;
            Ok(())
        })
    }

    /// Writes down the newest event, in milliseconds since 1970, that a run has seen by search. It
    /// only moves forward.
    ///
    /// # Errors
    /// If the state file cannot be changed.
    pub fn set_newest(&self, run: RunId, newest_ms: i64) -> Result<(), CheckpointError> {
        self.write("write down the newest event", |transaction| {
            transaction
                .prepare_cached(
                    "UPDATE runs SET newest_ms = max(ifnull(newest_ms, ?2), ?2) WHERE id = ?1",
                )?
                .execute(params![run.0, newest_ms])?;
            Ok(())
        })
    }

    /// Binds the file to the first cluster that comes; refuses every other one.
    pub(super) fn claim(
        &self,
        transaction: &Transaction<'_>,
        cluster: &str,
    ) -> Result<(), Failure<CheckpointError>> {
        let stored: Option<String> =
            transaction.query_row("SELECT cluster FROM state", [], |row| row.get(0))?;
        match stored {
            None => {
                transaction.execute("UPDATE state SET cluster = ?1", [cluster])?;
                Ok(())
            }
            Some(stored) if stored == cluster => Ok(()),
            Some(stored) => Err(Failure::Refused(CheckpointError::OtherCluster {
                path: self.path.clone(),
                stored,
                given: cluster.to_owned(),
            })),
        }
    }
}

/// The columns that [`read_counts`] reads.
pub(super) const COUNT_COLUMNS: &str =
    "events, created, safe_form, already_there, dead_letters, filtered, document_bytes";

pub(super) fn read_counts(row: &Row<'_>) -> rusqlite::Result<Counts> {
    let count = |column| row.get(column).map(unsigned);
    Ok(Counts {
        events: count("events")?,
        created: count("created")?,
        safe_form: count("safe_form")?,
        already_there: count("already_there")?,
        dead_letters: count("dead_letters")?,
        filtered: count("filtered")?,
        document_bytes: count("document_bytes")?,
    })
}

pub(super) fn unknown(run: RunId, asked: &'static str) -> Failure<CheckpointError> {
    Failure::Refused(CheckpointError::UnknownRun { run, asked })
}

pub(super) fn load(
    transaction: &Transaction<'_>,
    id: RunId,
    asked: &'static str,
) -> Result<Run, Failure<CheckpointError>> {
    let run = transaction
        .prepare_cached(&format!(
            "SELECT (SELECT cluster FROM state) AS cluster, from_ms, start_ms, to_ms, mode,
                 position_ms, newest_ms, finished, {COUNT_COLUMNS}
             FROM runs WHERE id = :run"
        ))?
        .query_row(named_params! { ":run": id.0 }, |row| {
            Ok(Run {
                id,
                cluster: row.get("cluster")?,
                from_ms: row.get("from_ms")?,
                start_ms: row.get("start_ms")?,
                to_ms: row.get("to_ms")?,
                mode: row.get("mode")?,
                position_ms: row.get("position_ms")?,
                newest_ms: row.get("newest_ms")?,
                finished: row.get("finished")?,
                windows: Vec::new(),
                counts: read_counts(row)?,
            })
        })
        .optional()?;
    let mut run = run.ok_or_else(|| unknown(id, asked))?;
    run.windows = transaction
        .prepare_cached(
            "SELECT from_ms, to_ms, reached_ms FROM windows WHERE run_id = ?1
             ORDER BY from_ms, to_ms",
        )?
        .query_map([id.0], |row| {
            Ok(Window {
                from_ms: row.get(0)?,
                to_ms: row.get(1)?,
                reached_ms: row.get(2)?,
            })
        })?
        .collect::<Result<_, _>>()?;
    Ok(run)
}

/// Position and end of a backfill.
fn load_backfill(
    transaction: &Transaction<'_>,
    run: RunId,
    asked: &'static str,
) -> Result<(i64, i64), Failure<CheckpointError>> {
    transaction
        .query_row(
            "SELECT position_ms, to_ms FROM runs WHERE id = ?1 AND kind = 'backfill'",
            [run.0],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()?
        .ok_or_else(|| unknown(run, asked))
}

pub(super) fn forget_progress(transaction: &Transaction<'_>, run: RunId) -> rusqlite::Result<()> {
    for table in ["windows", "days", "chunks"] {
        transaction.execute(&format!("DELETE FROM {table} WHERE run_id = ?1"), [run.0])?;
    }
    Ok(())
}

/// A change of the event API leaves them alone: they are read by a call of their own.
pub(super) fn forget_recordings(transaction: &Transaction<'_>, run: RunId) -> rusqlite::Result<()> {
    transaction
        .execute("DELETE FROM recordings WHERE run_id = ?1", [run.0])
        .map(drop)
}

#[cfg(test)]
mod tests {
    use crate::checkpoint::Step;

    use super::*;

    fn window(from_ms: i64, to_ms: i64, reached_ms: i64) -> Window {
        Window {
            from_ms,
            to_ms,
            reached_ms,
        }
    }

    fn step(from_ms: i64, to_ms: i64, reached_ms: i64) -> Step {
        Step::Window {
            from_ms,
            to_ms,
            reached_ms,
        }
    }

    #[test]
    fn a_backfill_goes_on_finishes_and_begins_anew() {
        let directory = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        let new = checkpoint.backfill_run("example", 10, 30, "a").unwrap();
        let others = [(10, 30, "b"), (10, 31, "a"), (11, 30, "a")];
        for (from_ms, to_ms, filters) in others {
            let other = checkpoint.backfill_run("example", from_ms, to_ms, filters);
            assert_ne!(other.unwrap().id, new.id);
        }
        let counts = Counts {
            events: 7,
            created: 6,
            document_bytes: 500,
            ..Counts::default()
        };
        checkpoint.set_mode(new.id, SourceMode::Search).unwrap();
        let planned = [window(10, 20, 10), window(20, 30, 20)];
        checkpoint.add_windows(new.id, &planned).unwrap();
        checkpoint
            .commit(new.id, &[step(20, 30, 25)], &counts)
            .unwrap();
        checkpoint
            .commit(new.id, &[step(10, 20, 20)], &counts)
            .unwrap();
        // Planned again after a restart: what is known stays.
        checkpoint.add_windows(new.id, &planned).unwrap();

        let run = checkpoint.backfill_run("example", 10, 30, "a").unwrap();
        assert_eq!(
            run,
            Run {
                mode: Some(SourceMode::Search),
                position_ms: 25,
                windows: vec![window(20, 30, 25)],
                counts: Counts {
                    events: 14,
                    created: 12,
                    document_bytes: 1000,
                    ..Counts::default()
                },
                ..new.clone()
            }
        );
        assert_eq!(
            checkpoint.finish_run(run.id).unwrap_err().to_string(),
            format!(
                "run {} is not finished: it is settled up to 25 of 30 ms",
                run.id
            )
        );
        // A live window may run past the end; the position does not.
        checkpoint
            .commit(run.id, &[step(24, 90, 80)], &Counts::default())
            .unwrap();
        checkpoint.finish_run(run.id).unwrap();
        let done = checkpoint.backfill_run("example", 10, 30, "a").unwrap();
        assert_eq!((done.position_ms, done.finished), (30, true));
        assert!(done.windows.is_empty());

        checkpoint.restart_run(run.id).unwrap();
        assert_eq!(
            checkpoint.backfill_run("example", 10, 30, "a").unwrap(),
            new
        );
    }

    #[test]
    fn what_does_not_fit_is_refused_whole() {
        let directory = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        let run = checkpoint.daemon_run("example", || 0).unwrap().0.id;
        let commit = |steps: &[Step]| checkpoint.commit(run, steps, &Counts::default());
        let message = |steps: &[Step]| commit(steps).unwrap_err().to_string();
        let plan = [Window {
            from_ms: 0,
            to_ms: 9,
            reached_ms: 0,
        }];
        assert_eq!(
            checkpoint.add_windows(run, &plan).unwrap_err().to_string(),
            format!("a step of search cannot be committed to run {run}, which reads by no API yet")
        );
        checkpoint.set_mode(run, SourceMode::Search).unwrap();
        // What was in flight when the API changed: nothing of its plan is left to move.
        let chunk = Step::ChunkDone {
            date: chrono::NaiveDate::default(),
            chunk: "c".to_owned(),
        };
        assert_eq!(commit(&[chunk]).unwrap().position_ms, 0);
        assert_eq!(
            message(&[step(0, 9, 5), step(0, 9, 10)]),
            format!(
                "cannot commit what has settled in the state file {}",
                directory.path().join("state.sqlite").display()
            )
        );
        assert_eq!(commit(&[]).unwrap().position_ms, 0);
        assert_eq!(
            checkpoint.restart_run(run).unwrap_err().to_string(),
            format!("the state file has no run {run} that can be restarted")
        );
    }

    #[test]
    fn changing_the_api_keeps_nothing_but_a_position_that_all_lies_before() {
        const HOUR_MS: i64 = 3_600_000;
        let directory = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        let id = checkpoint.daemon_run("example", || 0).unwrap().0.id;
        let look = || checkpoint.daemon_run("example", || 0).unwrap().0;
        let list = |day: i32, listed_ms, chunk: &str| {
            let date = chrono::NaiveDate::from_epoch_days(day).unwrap();
            let listed = checkpoint.add_listing(id, date, listed_ms, &[chunk.to_owned()]);
            assert_eq!(listed.unwrap().unfinished.len(), 1);
            date
        };
        checkpoint.set_mode(id, SourceMode::Search).unwrap();
        let (reached, end) = (9 * DAY_MS + 10 * HOUR_MS, 10 * DAY_MS);
        let steps = [step(0, end, reached), step(end, end + 20, end + 20)];
        checkpoint.commit(id, &steps, &Counts::default()).unwrap();
        checkpoint.set_mode(id, SourceMode::Search).unwrap();
        assert_eq!(look().windows.len(), 2);

        checkpoint.set_mode(id, SourceMode::Export).unwrap();
        assert_eq!((look().position_ms, look().windows.len()), (reached, 0));
        let today = list(9, reached, "chunk");
        let chunk = "chunk".to_owned();
        let done = Step::ChunkDone { date: today, chunk };
        checkpoint.commit(id, &[done], &Counts::default()).unwrap();
        checkpoint.set_mode(id, SourceMode::Search).unwrap();
        assert!(checkpoint.chunks(id, today).unwrap().is_empty());
        assert_eq!(look().position_ms, reached - 6 * HOUR_MS);

        // A late chunk of a day that was passed, of which not all is settled.
        checkpoint.set_mode(id, SourceMode::Export).unwrap();
        list(7, reached, "late");
        checkpoint.set_mode(id, SourceMode::Search).unwrap();
        assert_eq!(look().position_ms, 7 * DAY_MS);
    }
}
