//! Steps, and the position that follows from them.

use std::ops::{AddAssign, Range};

use chrono::NaiveDate;
use rusqlite::{OptionalExtension, Transaction, named_params, params};

use super::error::Failure;
use super::export::{self, DAY_MS};
use super::gap::{self, Filled};
use super::recording::{self, RecordingStep};
use super::run::{self, RunId, SourceMode, Window};
use super::{Checkpoint, CheckpointError, left_out, now_ms, signed};

/// What becomes true when all events of a page are settled. A page of which nothing was wanted
/// has one too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Search: everything of the window from its start up to `reached_ms`, exclusive, is settled.
    /// The window need not be known yet. Milliseconds since 1970.
    Window {
        /// The window's start.
        from_ms: i64,
        /// The window's end, exclusive.
        to_ms: i64,
        /// Between the two; the end if the window is finished.
        reached_ms: i64,
    },
    /// Export: everything of the chunk up to the cursor is settled. Comes to nothing for a chunk
    /// that is done.
    Chunk {
        /// The UTC day for which the server listed the chunk.
        date: NaiveDate,
        /// The chunk, in the server's words.
        chunk: String,
        /// Where to go on, in the server's words.
        cursor: String,
    },
    /// Export: everything of the chunk is settled.
    ChunkDone {
        /// The UTC day for which the server listed the chunk.
        date: NaiveDate,
        /// The chunk, in the server's words.
        chunk: String,
    },
    /// How far a session's recording has been read.
    Recording(Box<RecordingStep>),
    /// The same as another step, and what was missing is there now.
    Filled {
        /// The other step, unless the read moves nothing.
        by: Option<Box<Step>>,
        /// The gaps that are closed.
        filled: Filled,
    },
}

impl Step {
    /// The event API by which it was made; `None` if that does not matter.
    fn mode(&self) -> Option<SourceMode> {
        match self {
            Self::Window { .. } => Some(SourceMode::Search),
            Self::Chunk { .. } | Self::ChunkDone { .. } => Some(SourceMode::Export),
            Self::Recording(_) => None,
            Self::Filled { by, .. } => by.as_ref()?.mode(),
        }
    }

    /// How far a session's recording has been read, if it is about that.
    pub fn of_recording(&self) -> Option<&RecordingStep> {
        match self {
            Self::Recording(step) => Some(step),
            Self::Filled { by, .. } => by.as_ref()?.of_recording(),
            _ => None,
        }
    }
}

/// What has become of events; each event is counted once for each time it was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Read from Teleport.
    pub events: u64,
    /// New in Elasticsearch.
    pub created: u64,
    /// Those of `created` that are there in safe form, as they were refused as they were.
    pub safe_form: u64,
    /// Found in Elasticsearch, under their ids.
    pub already_there: u64,
    /// Refused by Elasticsearch for good, and kept here.
    pub dead_letters: u64,
    /// Not wanted, by configuration.
    pub filtered: u64,
    /// Bytes of the documents sent, without the lines around them.
    pub document_bytes: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, more: Self) {
        self.events += more.events;
        self.created += more.created;
        self.safe_form += more.safe_form;
        self.already_there += more.already_there;
        self.dead_letters += more.dead_letters;
        self.filtered += more.filtered;
        self.document_bytes += more.document_bytes;
    }
}

/// What a commit has led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Everything before this is settled; milliseconds since 1970.
    pub position_ms: i64,
}

impl Checkpoint {
    /// Writes down what has settled, in one transaction: the steps in their order, the counts and
    /// the position that follows. The only way in which a position moves forward, besides
    /// [`Checkpoint::add_listing`] and [`Checkpoint::leave_out`]. Steps that were committed before change nothing, and so do those
    /// of an event API that the run no longer reads by: its plan is gone, only the counts count.
    ///
    /// # Errors
    /// If there is no such run, if a window's `reached_ms` lies outside of it, or if the state file
    /// cannot be changed. Nothing was committed then.
    pub fn commit(
        &self,
        run: RunId,
        steps: &[Step],
        counts: &Counts,
    ) -> Result<Committed, CheckpointError> {
        self.write("commit what has settled", |transaction| {
            let standing = Standing::load(transaction, run)?;
            for step in steps {
                // Whichever API has filled a gap, it is filled.
                if let Step::Filled { filled, .. } = step {
                    gap::close(transaction, run, filled)?;
                }
                if step.mode().is_none_or(|mode| standing.reads_by(mode)) {
                    take(transaction, run, step)?;
                }
            }
            transaction
                .prepare_cached(
                    "UPDATE runs SET
                         events = events + :events,
                         created = created + :created,
                         safe_form = safe_form + :safe_form,
                         already_there = already_there + :already_there,
                         dead_letters = dead_letters + :dead_letters,
                         filtered = filtered + :filtered,
                         document_bytes = document_bytes + :document_bytes
                     WHERE id = :run",
                )?
                .execute(named_params! {
                    ":run": run.0,
                    ":events": signed(counts.events),
                    ":created": signed(counts.created),
                    ":safe_form": signed(counts.safe_form),
                    ":already_there": signed(counts.already_there),
                    ":dead_letters": signed(counts.dead_letters),
                    ":filtered": signed(counts.filtered),
                    ":document_bytes": signed(counts.document_bytes),
                })?;
            let position_ms = standing.advance(transaction)?;
            Ok(Committed { position_ms })
        })
    }

    /// Writes down windows that are going to be read, so that a restart reads the same ones. What
    /// is known of a window with the same bounds already stays.
    ///
    /// # Errors
    /// As [`Checkpoint::commit`].
    pub fn add_windows(&self, run: RunId, windows: &[Window]) -> Result<(), CheckpointError> {
        self.write("plan windows", |transaction| {
            let standing = Standing::load(transaction, run)?;
            standing.expect_mode(SourceMode::Search)?;
            for window in windows {
                upsert_window(transaction, run, window)?;
            }
            standing.advance(transaction)?;
            Ok(())
        })
    }
}

fn take(transaction: &Transaction<'_>, run: RunId, step: &Step) -> rusqlite::Result<()> {
    match step {
        &Step::Window {
            from_ms,
            to_ms,
            reached_ms,
        } => upsert_window(
            transaction,
            run,
            &Window {
                from_ms,
                to_ms,
                reached_ms,
            },
        ),
        Step::Chunk {
            date,
            chunk,
            cursor,
        } => transaction
            .prepare_cached(
                "INSERT INTO chunks (run_id, day, name, cursor) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO UPDATE SET cursor = excluded.cursor WHERE done = 0",
            )?
            .execute(params![run.0, export::day(*date), chunk, cursor])
            .map(drop),
        Step::Recording(step) => recording::take(transaction, run, step),
        Step::Filled { by, .. } => match by {
            Some(by) => take(transaction, run, by),
            None => Ok(()),
        },
        Step::ChunkDone { date, chunk } => transaction
            .prepare_cached(
                "INSERT INTO chunks (run_id, day, name, done) VALUES (?1, ?2, ?3, 1)
                 ON CONFLICT DO UPDATE SET cursor = NULL, done = 1 WHERE done = 0",
            )?
            .execute(params![run.0, export::day(*date), chunk])
            .map(drop),
    }
}

fn upsert_window(
    transaction: &Transaction<'_>,
    run: RunId,
    window: &Window,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "INSERT INTO windows (run_id, from_ms, to_ms, reached_ms) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT DO UPDATE SET reached_ms = excluded.reached_ms
             WHERE excluded.reached_ms > reached_ms",
        )?
        .execute(params![
            run.0,
            window.from_ms,
            window.to_ms,
            window.reached_ms
        ])
        .map(drop)
}

/// Where a run stands at the start of a transaction.
pub(super) struct Standing {
    run: RunId,
    mode: Option<SourceMode>,
    position_ms: i64,
    /// `i64::MAX` for a run without an end.
    to_ms: i64,
}

impl Standing {
    pub(super) fn load(
        transaction: &Transaction<'_>,
        run: RunId,
    ) -> Result<Self, Failure<CheckpointError>> {
        transaction
            .prepare_cached("SELECT mode, position_ms, to_ms FROM runs WHERE id = ?1")?
            .query_row([run.0], |row| {
                Ok(Self {
                    run,
                    mode: row.get(0)?,
                    position_ms: row.get(1)?,
                    to_ms: row.get::<_, Option<i64>>(2)?.unwrap_or(i64::MAX),
                })
            })
            .optional()?
            .ok_or_else(|| run::unknown(run, "moved forward"))
    }

    /// Whether the run reads by this event API now.
    fn reads_by(&self, mode: SourceMode) -> bool {
        self.mode == Some(mode)
    }

    pub(super) fn expect_mode(&self, step: SourceMode) -> Result<(), Failure<CheckpointError>> {
        if self.reads_by(step) {
            return Ok(());
        }
        Err(Failure::Refused(CheckpointError::WrongMode {
            run: self.run,
            step,
            mode: self.mode,
        }))
    }

    /// Derives the position from what is stored now, and stores it. The last thing a transaction
    /// does, as what the position has passed is thrown away.
    pub(super) fn advance(&self, transaction: &Transaction<'_>) -> rusqlite::Result<i64> {
        let reached_ms = match self.mode {
            Some(SourceMode::Search) => self.joined_windows(transaction)?,
            Some(SourceMode::Export) => self.clear_days(transaction)?,
            None => self.position_ms,
        };
        let position_ms = reached_ms.min(self.to_ms).max(self.position_ms);
        transaction
            .prepare_cached("UPDATE runs SET position_ms = ?2, updated_ms = ?3 WHERE id = ?1")?
            .execute(params![self.run.0, position_ms, now_ms()])?;
        Ok(position_ms)
    }

    /// Moves the position to `until_ms`, or to the run's end if that is before; what it has passed
    /// over, if anything.
    pub(super) fn pass_over(
        mut self,
        transaction: &Transaction<'_>,
        until_ms: i64,
    ) -> rusqlite::Result<Option<Range<i64>>> {
        let until_ms = until_ms.min(self.to_ms);
        let passed = self.position_ms..until_ms;
        if passed.is_empty() {
            return Ok(None);
        }
        left_out::drop_plan(transaction, self.run, until_ms)?;
        self.position_ms = until_ms;
        self.advance(transaction)?;
        Ok(Some(passed))
    }

    /// Follows the windows that join at the position; drops those that it has passed.
    fn joined_windows(&self, transaction: &Transaction<'_>) -> rusqlite::Result<i64> {
        // Both go by `from_ms`, the key: windows that lie ahead cost nothing, however many.
        let mut next = transaction.prepare_cached(
            "SELECT max(reached_ms) FROM windows
             WHERE run_id = ?1 AND from_ms <= ?2 AND reached_ms > ?2",
        )?;
        let mut pass = transaction.prepare_cached(
            "DELETE FROM windows WHERE run_id = ?1 AND from_ms <= ?2 AND to_ms <= ?2",
        )?;
        let mut position_ms = self.position_ms;
        loop {
            // Dropped at each turn, so that a thousand windows that join are not looked at a
            // thousand times.
            pass.execute(params![self.run.0, position_ms])?;
            let reached_ms: Option<i64> =
                next.query_row(params![self.run.0, position_ms], |row| row.get(0))?;
            match reached_ms {
                Some(reached_ms) => position_ms = reached_ms,
                None => return Ok(position_ms),
            }
        }
    }

    /// Follows the days of which everything listed is done.
    fn clear_days(&self, transaction: &Transaction<'_>) -> rusqlite::Result<i64> {
        let first_open = export::first_open_day(transaction, self.run)?;
        let mut listed = transaction
            .prepare_cached("SELECT listed_ms FROM days WHERE run_id = ?1 AND day = ?2")?;
        let mut position_ms = self.position_ms;
        while position_ms < self.to_ms {
            let day = position_ms.div_euclid(DAY_MS);
            if first_open.is_some_and(|open| open <= day) {
                break;
            }
            let listed_ms: Option<i64> = listed
                .query_row(params![self.run.0, day], |row| row.get(0))
                .optional()?;
            let Some(listed_ms) = listed_ms else { break };
            let end_ms = (day + 1) * DAY_MS;
            position_ms = position_ms.max(listed_ms.min(end_ms));
            if position_ms < end_ms {
                break;
            }
        }
        Ok(position_ms)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;
    use proptest::sample::Index;
    use tempfile::TempDir;

    use super::*;

    /// A run in a file of its own that can be closed and opened at any point.
    struct Walk {
        directory: TempDir,
        checkpoint: Option<Checkpoint>,
        run: RunId,
    }

    impl Walk {
        fn new(from_ms: i64, to_ms: Option<i64>, mode: SourceMode) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let checkpoint = Checkpoint::open(directory.path()).unwrap();
            let run = match to_ms {
                Some(to_ms) => checkpoint.backfill_run("c", from_ms, to_ms, "").unwrap(),
                None => checkpoint.daemon_run("c", || from_ms).unwrap().0,
            };
            checkpoint.set_mode(run.id, mode).unwrap();
            Self {
                directory,
                checkpoint: Some(checkpoint),
                run: run.id,
            }
        }

        fn open(&self) -> &Checkpoint {
            self.checkpoint.as_ref().unwrap()
        }

        fn commit(&self, steps: &[Step]) -> i64 {
            let counts = Counts::default();
            let committed = self.open().commit(self.run, steps, &counts).unwrap();
            committed.position_ms
        }

        fn restart(&mut self) {
            // The old one is closed before the new one is opened.
            self.checkpoint = None;
            self.checkpoint = Some(Checkpoint::open(self.directory.path()).unwrap());
        }

        fn position(&self) -> i64 {
            self.open().summary().unwrap().runs[0].position_ms
        }
    }

    const END: i64 = 60;

    /// A window with a place in it: mostly one of a plan without holes, else any window.
    fn window_step() -> impl Strategy<Value = Step> {
        let planned = (0..6_i64, 0..=10_i64).prop_map(|(window, reached)| {
            let from_ms = window * 10;
            (from_ms, from_ms + 10, from_ms + reached)
        });
        let any = [0..=END, 0..=END, 0..=END].prop_map(|mut at| {
            at.sort_unstable();
            let [from_ms, reached_ms, to_ms] = at;
            (from_ms, to_ms, reached_ms)
        });
        prop_oneof![4 => planned, 1 => any].prop_map(|(from_ms, to_ms, reached_ms)| Step::Window {
            from_ms,
            to_ms,
            reached_ms,
        })
    }

    #[derive(Clone, Debug)]
    enum Exported {
        /// Day, the moment in eighths of a day since 1970, chunks.
        List(i32, i64, Vec<u8>),
        Steps(Vec<(i32, u8, bool)>),
    }

    fn exported() -> impl Strategy<Value = Exported> {
        let list = (0..4_i32, 0..=40_i64, prop::collection::vec(0..3_u8, 0..3))
            .prop_map(|(day, at, chunks)| Exported::List(day, at, chunks));
        let step = (0..4_i32, 0..3_u8, prop::bool::weighted(0.8));
        let steps = prop::collection::vec(step, 1..6).prop_map(Exported::Steps);
        prop_oneof![list, steps]
    }

    const EIGHTH_MS: i64 = DAY_MS / 8;

    /// A time is clear if each day from the start to it was listed, at that time or after the
    /// day's end, and no day before it has a chunk that is not done. Looks at every eighth of a
    /// day.
    fn clear_until(from: i64, listed: &BTreeMap<i32, i64>, open: &BTreeSet<(i32, u8)>) -> i64 {
        let bounds = |day: i32| (i64::from(day) * 8, i64::from(day + 1) * 8);
        let clear = |at: i64| {
            let mut days = (0..4_i32).filter(|&day| bounds(day).0 < at && bounds(day).1 > from);
            days.all(|day| {
                let needed = at.min(bounds(day).1);
                listed.get(&day).is_some_and(|&listed| listed >= needed)
            }) && open.iter().all(|&(day, _)| bounds(day).0 >= at)
        };
        (from..=32).filter(|&at| clear(at)).max().unwrap_or(from)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

        /// Against a model that marks each settled millisecond.
        #[test]
        fn search_stands_at_the_first_millisecond_that_is_not_settled(
            commits in prop::collection::vec(prop::collection::vec(window_step(), 0..5), 1..16),
            start in 0..15_i64,
            end in prop::option::of(40..50_i64),
            restart in any::<Index>(),
        ) {
            let mut walk = Walk::new(start, end, SourceMode::Search);
            let mut settled = BTreeSet::new();
            let restart = restart.index(commits.len());
            for (number, steps) in commits.iter().enumerate() {
                for step in steps {
                    if let &Step::Window { from_ms, reached_ms, .. } = step {
                        settled.extend(from_ms..reached_ms);
                    }
                }
                let open = (start..).find(|at| !settled.contains(at)).unwrap();
                let expected = end.map_or(open, |end| open.min(end));
                prop_assert_eq!(walk.commit(steps), expected);
                // Replayed in another order, it comes to the same.
                let reversed: Vec<_> = steps.iter().rev().cloned().collect();
                prop_assert_eq!(walk.commit(&reversed), expected);
                if number == restart {
                    walk.restart();
                    prop_assert_eq!(walk.position(), expected);
                }
            }
        }

        /// Against a model that knows which chunks are open and looks at each eighth of a day.
        #[test]
        fn export_stands_before_the_first_day_that_is_not_clear(
            work in prop::collection::vec(exported(), 1..24),
            start in 0..12_i64,
            end in prop::option::of(20..32_i64),
            restart in any::<Index>(),
        ) {
            let end_ms = end.map(|end| end * EIGHTH_MS);
            let mut walk = Walk::new(start * EIGHTH_MS, end_ms, SourceMode::Export);
            let (mut listed, mut open, mut done) =
                (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
            let mut expected = start;
            let restart = restart.index(work.len());
            let date = |day| NaiveDate::from_epoch_days(day).unwrap();
            for (number, piece) in work.iter().enumerate() {
                let position_ms = match piece {
                    Exported::List(day, at, chunks) => {
                        let newest = listed.entry(*day).or_insert(*at);
                        *newest = (*newest).max(*at);
                        for &chunk in chunks {
                            if !done.contains(&(*day, chunk)) {
                                open.insert((*day, chunk));
                            }
                        }
                        let names: Vec<_> = chunks.iter().map(u8::to_string).collect();
                        let answer = walk
                            .open()
                            .add_listing(walk.run, date(*day), at * EIGHTH_MS, &names)
                            .unwrap();
                        let names: Vec<_> = answer.unfinished.into_iter().map(|c| c.name).collect();
                        let of_day = open.iter().filter(|chunk| chunk.0 == *day);
                        let wanted: Vec<_> = of_day.map(|chunk| chunk.1.to_string()).collect();
                        prop_assert_eq!(names, wanted);
                        answer.position_ms
                    }
                    Exported::Steps(steps) => {
                        let steps: Vec<_> = steps
                            .iter()
                            .map(|&(day, chunk, is_done)| {
                                if is_done {
                                    done.insert((day, chunk));
                                    open.remove(&(day, chunk));
                                } else if !done.contains(&(day, chunk)) {
                                    open.insert((day, chunk));
                                }
                                let (date, chunk) = (date(day), chunk.to_string());
                                if is_done {
                                    Step::ChunkDone { date, chunk }
                                } else {
                                    Step::Chunk { date, chunk, cursor: "c".to_owned() }
                                }
                            })
                            .collect();
                        walk.commit(&steps)
                    }
                };
                let clear = clear_until(start, &listed, &open);
                expected = expected.max(end.map_or(clear, |end| clear.min(end)));
                prop_assert_eq!(position_ms, expected * EIGHTH_MS);
                if number == restart {
                    walk.restart();
                    prop_assert_eq!(walk.position(), expected * EIGHTH_MS);
                }
            }
        }
    }
}
