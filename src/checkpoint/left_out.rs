//! What a run leaves out because it would not be kept or because somebody has it skipped, and the
//! position behind it.

use std::ops::Range;

use rusqlite::{Transaction, params};

use super::commit::Standing;
use super::export::DAY_MS;
use super::run::RunId;
use super::{Checkpoint, CheckpointError};

/// Why a span is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// It would not be kept.
    TooOld,
    /// Somebody has moved the position over it.
    Skipped,
}

/// What has been left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Nothing from before this is to be read or written, in milliseconds since 1970: what was
    /// asked for, or the end of what the run left out earlier if that is later.
    pub first_ms: i64,
    /// Session recordings that were to be read and are not any more.
    pub recordings: usize,
}

impl Why {
    fn as_str(self) -> &'static str {
        match self {
            Self::TooOld => "too_old",
            Self::Skipped => "skipped",
        }
    }
}

impl Checkpoint {
    /// Moves a run's position to `until_ms`, a midnight in milliseconds since 1970, and writes down
    /// that what it passes over was left out. The plan for it is thrown away. Nothing changes if
    /// the position is there already; a run with an end goes no further than that.
    ///
    /// Recordings that were uploaded before that and are still to be read are forgotten.
    ///
    /// # Errors
    /// If there is no such run, or the state file cannot be changed.
    pub fn leave_out(&self, run: RunId, until_ms: i64) -> Result<LeftOut, CheckpointError> {
        self.write("leave out what is too old", |transaction| {
            let standing = Standing::load(transaction, run)?;
            if let Some(span) = standing.pass_over(transaction, until_ms)? {
                insert(transaction, run, span, Why::TooOld)?;
            }
            let last = of(transaction, run, Why::TooOld)?.pop();
            let first_ms = last.map_or(until_ms, |last| last.end.max(until_ms));
            let recordings = transaction.execute(
                "DELETE FROM recordings
                 WHERE run_id = ?1 AND state = 'pending' AND upload_ms < ?2",
                params![run.0, first_ms],
            )?;
            Ok(LeftOut {
                first_ms,
                recordings,
            })
        })
    }
}

/// Joins a span with those that it touches, of the same reason.
pub(super) fn insert(
    transaction: &Transaction<'_>,
    run: RunId,
    span: Range<i64>,
    why: Why,
) -> rusqlite::Result<()> {
    let Range { start, end } = span;
    let why = why.as_str();
    let (from_ms, to_ms): (i64, i64) = transaction.query_row(
        "SELECT min(?2, ifnull(min(from_ms), ?2)), max(?3, ifnull(max(to_ms), ?3)) FROM left_out
         WHERE run_id = ?1 AND from_ms <= ?3 AND to_ms >= ?2 AND why = ?4",
        params![run.0, start, end, why],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    transaction.execute(
        "DELETE FROM left_out WHERE run_id = ?1 AND from_ms >= ?2 AND to_ms <= ?3 AND why = ?4",
        params![run.0, from_ms, to_ms, why],
    )?;
    transaction.execute(
        "INSERT INTO left_out (run_id, from_ms, to_ms, why) VALUES (?1, ?2, ?3, ?4)",
        params![run.0, from_ms, to_ms, why],
    )?;
    Ok(())
}

/// What a run has left out for this reason, the oldest first.
pub(super) fn of(
    transaction: &Transaction<'_>,
    run: RunId,
    why: Why,
) -> rusqlite::Result<Vec<Range<i64>>> {
    transaction
        .prepare_cached(
            "SELECT from_ms, to_ms FROM left_out WHERE run_id = ?1 AND why = ?2 ORDER BY from_ms",
        )?
        .query_map(params![run.0, why.as_str()], |row| {
            Ok(row.get(0)?..row.get(1)?)
        })?
        .collect()
}

/// Forgets what was left out from a time on, as that is read now.
pub(super) fn forget_from(
    transaction: &Transaction<'_>,
    run: RunId,
    from_ms: i64,
) -> rusqlite::Result<()> {
    transaction.execute(
        "DELETE FROM left_out WHERE run_id = ?1 AND from_ms >= ?2",
        params![run.0, from_ms],
    )?;
    transaction
        .execute(
            "UPDATE left_out SET to_ms = min(to_ms, ?2) WHERE run_id = ?1",
            params![run.0, from_ms],
        )
        .map(drop)
}

/// Forgets what a run has left out, as it begins anew.
pub(super) fn forget(transaction: &Transaction<'_>, run: RunId) -> rusqlite::Result<()> {
    transaction
        .execute("DELETE FROM left_out WHERE run_id = ?1", [run.0])
        .map(drop)
}

/// Throws away what is planned for before a midnight, in both event APIs.
pub(super) fn drop_plan(
    transaction: &Transaction<'_>,
    run: RunId,
    until_ms: i64,
) -> rusqlite::Result<()> {
    let until_day = until_ms.div_euclid(DAY_MS);
    for table in ["chunks", "days"] {
        transaction.execute(
            &format!("DELETE FROM {table} WHERE run_id = ?1 AND day < ?2"),
            params![run.0, until_day],
        )?;
    }
    transaction.execute(
        "DELETE FROM windows WHERE run_id = ?1 AND to_ms <= ?2",
        params![run.0, until_ms],
    )?;
    transaction.execute(
        "UPDATE windows SET reached_ms = max(reached_ms, ?2)
         WHERE run_id = ?1 AND from_ms < ?2",
        params![run.0, until_ms],
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use chrono::NaiveDate;

    use super::*;
    use crate::checkpoint::{Counts, SourceMode, Step, Upload, Window};

    fn window(from_ms: i64, to_ms: i64, reached_ms: i64) -> Window {
        Window {
            from_ms,
            to_ms,
            reached_ms,
        }
    }

    fn left_out(checkpoint: &Checkpoint) -> Vec<Range<i64>> {
        checkpoint.summary().unwrap().runs[0].left_out.clone()
    }

    #[test]
    fn the_position_passes_what_is_left_out_and_what_had_settled_behind_it() {
        let checkpoint = Checkpoint::open_in_memory().unwrap();
        let run = checkpoint.daemon_run("example", || 10).unwrap().0.id;
        checkpoint.set_mode(run, SourceMode::Search).unwrap();
        let planned = [
            window(10, DAY_MS - 5, 20),
            window(DAY_MS - 5, DAY_MS + 5, DAY_MS - 5),
            window(DAY_MS + 5, DAY_MS + 9, DAY_MS + 9),
        ];
        checkpoint.add_windows(run, &planned).unwrap();

        checkpoint.leave_out(run, DAY_MS).unwrap();
        let stands = checkpoint.run(run).unwrap();
        assert_eq!(stands.position_ms, DAY_MS);
        let rest = window(DAY_MS - 5, DAY_MS + 5, DAY_MS);
        assert_eq!(stands.windows, [rest, planned[2]]);
        // From where it stood, which was behind its start by then.
        let first = 20..DAY_MS;
        let first = std::slice::from_ref(&first);
        assert_eq!(left_out(&checkpoint), first);

        let step = Step::Window {
            from_ms: rest.from_ms,
            to_ms: rest.to_ms,
            reached_ms: rest.to_ms,
        };
        let committed = checkpoint.commit(run, &[step], &Counts::default());
        assert_eq!(committed.unwrap().position_ms, DAY_MS + 9);
        // Passed already.
        assert_eq!(checkpoint.leave_out(run, DAY_MS).unwrap().first_ms, DAY_MS);
        assert_eq!(checkpoint.leave_out(run, 0).unwrap().first_ms, DAY_MS);
        assert_eq!(left_out(&checkpoint), first);
        checkpoint.leave_out(run, 3 * DAY_MS).unwrap();
        let spans = [20..DAY_MS, DAY_MS + 9..3 * DAY_MS];
        assert_eq!(left_out(&checkpoint), spans);
        checkpoint.leave_out(run, 4 * DAY_MS).unwrap();
        assert_eq!(left_out(&checkpoint), [20..DAY_MS, DAY_MS + 9..4 * DAY_MS]);
    }

    #[test]
    fn recordings_uploaded_before_what_is_kept_are_not_read_any_more() {
        let checkpoint = Checkpoint::open_in_memory().unwrap();
        let run = checkpoint.daemon_run("example", || 0).unwrap().0.id;
        let other = checkpoint.backfill_run("example", 0, 9, "").unwrap().id;
        let uploads = [("old", DAY_MS - 1), ("kept", DAY_MS)].map(|(session, upload_ms)| Upload {
            session: session.to_owned(),
            upload_ms,
        });
        for run in [run, other] {
            checkpoint.add_uploads(run, &uploads).unwrap();
        }
        assert_eq!(checkpoint.leave_out(run, DAY_MS).unwrap().recordings, 1);
        assert_eq!(checkpoint.leave_out(run, DAY_MS).unwrap().recordings, 0);
        let left = |run| checkpoint.due_recordings(run, i64::MAX, 9).unwrap();
        assert_eq!(left(run)[0].session, "kept");
        assert_eq!([left(run).len(), left(other).len()], [1, 2]);
    }

    #[test]
    fn chunks_of_days_that_are_left_out_hold_nothing_up() {
        let checkpoint = Checkpoint::open_in_memory().unwrap();
        let end_ms = 2 * DAY_MS + 7;
        let run = checkpoint.backfill_run("example", 0, end_ms, "");
        let run = run.unwrap().id;
        checkpoint.set_mode(run, SourceMode::Export).unwrap();
        let date = |day| NaiveDate::from_epoch_days(day).unwrap();
        for day in 0..3 {
            let chunks = ["a".to_owned()];
            checkpoint
                .add_listing(run, date(day), 9 * DAY_MS, &chunks)
                .unwrap();
        }
        checkpoint.leave_out(run, DAY_MS).unwrap();
        let chunks = |day| checkpoint.chunks(run, date(day)).unwrap().len();
        assert_eq!([chunks(0), chunks(1), chunks(2)], [0, 1, 1]);
        let done = Step::ChunkDone {
            date: date(1),
            chunk: "a".to_owned(),
        };
        let committed = checkpoint.commit(run, &[done], &Counts::default());
        assert_eq!(committed.unwrap().position_ms, 2 * DAY_MS);

        // No further than its end, and begun anew nothing is left out.
        checkpoint.leave_out(run, 5 * DAY_MS).unwrap();
        checkpoint.finish_run(run).unwrap();
        assert_eq!(left_out(&checkpoint), [0..DAY_MS, 2 * DAY_MS..end_ms]);
        checkpoint.restart_run(run).unwrap();
        assert_eq!(left_out(&checkpoint), []);
    }
}
