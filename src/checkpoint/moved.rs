//! The daemon's position where somebody has moved it: back, to read again; forward, to skip.

use rusqlite::params;

use super::commit::Standing;
use super::export::DAY_MS;
use super::left_out::{self, Why};
use super::run::{self, RunId};
use super::{Checkpoint, CheckpointError, now_ms};

impl Checkpoint {
    /// Moves a run's position to `to_ms`, milliseconds since 1970, in either event API. `start_ms` is
    /// the start time that is configured by now, which fits the run from there on as well.
    ///
    /// Back, everything from there on is read again, session recordings too, and what had been left
    /// out there is not any more; the run may come to begin earlier than it did. Forward, the run
    /// begins there, and what it has passed over is written down as skipped.
    ///
    /// # Errors
    /// If there is no such run, or the state file cannot be changed.
    pub fn move_position(
        &self,
        run: RunId,
        to_ms: i64,
        start_ms: Option<i64>,
    ) -> Result<(), CheckpointError> {
        self.write("move the position", |transaction| {
            let standing = Standing::load(transaction, run)?;
            let position_ms = run::load(transaction, run, "moved")?.position_ms;
            transaction.execute(
                "UPDATE runs SET start_ms = coalesce(?2, start_ms, from_ms), updated_ms = ?3
                 WHERE id = ?1",
                params![run.0, start_ms, now_ms()],
            )?;
            if to_ms >= position_ms {
                if let Some(span) = standing.pass_over(transaction, to_ms)? {
                    left_out::insert(transaction, run, span, Why::Skipped)?;
                }
                transaction.execute(
                    "UPDATE runs SET from_ms = ?2 WHERE id = ?1",
                    params![run.0, to_ms],
                )?;
                return Ok(());
            }
            for table in ["chunks", "days"] {
                transaction.execute(
                    &format!("DELETE FROM {table} WHERE run_id = ?1 AND day >= ?2"),
                    params![run.0, to_ms.div_euclid(DAY_MS)],
                )?;
            }
            transaction.execute("DELETE FROM windows WHERE run_id = ?1", [run.0])?;
            transaction.execute(
                "DELETE FROM recordings
                 WHERE run_id = ?1 AND upload_ms >= ?2 AND state != 'pending'",
                params![run.0, to_ms],
            )?;
            left_out::forget_from(transaction, run, to_ms)?;
            transaction.execute(
                "UPDATE runs SET position_ms = ?2, from_ms = min(from_ms, ?2) WHERE id = ?1",
                params![run.0, to_ms],
            )?;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use chrono::NaiveDate;

    use super::*;
    use crate::checkpoint::{Counts, RunSummary, SourceMode, Step, Upload, Window};

    fn summary(checkpoint: &Checkpoint) -> RunSummary {
        checkpoint.summary().unwrap().runs.remove(0)
    }

    /// What is too old and what is skipped, each from and to.
    fn spans(checkpoint: &Checkpoint) -> [Vec<(i64, i64)>; 2] {
        let run = summary(checkpoint);
        [run.left_out, run.skipped].map(|spans| {
            let spans = spans.into_iter();
            spans.map(|span| (span.start, span.end)).collect()
        })
    }

    #[test]
    fn by_search_it_reads_again_or_skips() {
        let checkpoint = Checkpoint::open_in_memory().unwrap();
        let run = checkpoint.daemon_run("example", || 1000).unwrap().0.id;
        checkpoint.set_mode(run, SourceMode::Search).unwrap();
        let window = |from_ms, to_ms, reached_ms| Window {
            from_ms,
            to_ms,
            reached_ms,
        };
        let planned = [
            window(1000, 5000, 5000),
            window(5000, 6000, 5000),
            window(6000, 7000, 7000),
        ];
        checkpoint.add_windows(run, &planned).unwrap();
        let done = Step::Window {
            from_ms: 1000,
            to_ms: 5000,
            reached_ms: 5000,
        };
        checkpoint.commit(run, &[done], &Counts::default()).unwrap();

        checkpoint.move_position(run, 5500, None).unwrap();
        let moved = checkpoint.run(run).unwrap();
        assert_eq!((moved.from_ms, moved.position_ms), (5500, 5500));
        assert_eq!(moved.windows, [window(5000, 6000, 5500), planned[2]]);
        assert_eq!(spans(&checkpoint), [vec![], vec![(5000, 5500)]]);
        assert_eq!(moved.start_ms, Some(1000));

        // Into what was skipped, and to before all.
        checkpoint.move_position(run, 5200, Some(7)).unwrap();
        let moved = checkpoint.run(run).unwrap();
        assert_eq!((moved.from_ms, moved.position_ms), (5200, 5200));
        assert_eq!((moved.windows, moved.start_ms), (vec![], Some(7)));
        assert_eq!(spans(&checkpoint), [vec![], vec![(5000, 5200)]]);
        checkpoint.move_position(run, 10, None).unwrap();
        let moved = checkpoint.run(run).unwrap();
        assert_eq!((moved.from_ms, moved.position_ms), (10, 10));
        assert_eq!(moved.start_ms, Some(7));
        assert_eq!(spans(&checkpoint), [vec![], vec![]]);

        // What is too old and what is skipped are not one, though they touch.
        checkpoint.leave_out(run, DAY_MS).unwrap();
        checkpoint.move_position(run, 2 * DAY_MS, None).unwrap();
        let (old, skipped) = ((10, DAY_MS), (DAY_MS, 2 * DAY_MS));
        assert_eq!(spans(&checkpoint), [vec![old], vec![skipped]]);
    }

    #[test]
    fn by_export_days_from_there_on_are_read_again_with_their_recordings() {
        let checkpoint = Checkpoint::open_in_memory().unwrap();
        let run = checkpoint.daemon_run("example", || 0).unwrap().0.id;
        checkpoint.set_mode(run, SourceMode::Export).unwrap();
        let date = |day| NaiveDate::from_epoch_days(day).unwrap();
        for day in 0..4 {
            let chunks = ["a".to_owned()];
            checkpoint
                .add_listing(run, date(day), 9 * DAY_MS, &chunks)
                .unwrap();
            let done = Step::ChunkDone {
                date: date(day),
                chunk: "a".to_owned(),
            };
            checkpoint.commit(run, &[done], &Counts::default()).unwrap();
        }
        let uploads = [1, 3].map(|day| Upload {
            session: format!("of day {day}"),
            upload_ms: day * DAY_MS + 5,
        });
        checkpoint.add_uploads(run, &uploads).unwrap();
        assert_eq!(checkpoint.run(run).unwrap().position_ms, 4 * DAY_MS);

        let noon = 2 * DAY_MS + DAY_MS / 2;
        checkpoint.move_position(run, noon, None).unwrap();
        let moved = checkpoint.run(run).unwrap();
        assert_eq!((moved.from_ms, moved.position_ms), (0, noon));
        let known = |day| checkpoint.chunks(run, date(day)).unwrap().len();
        assert_eq!([known(0), known(1), known(2), known(3)], [1, 1, 0, 0]);
        // Those that wait go on waiting.
        assert_eq!(summary(&checkpoint).open_recordings, 2);

        checkpoint.move_position(run, 6 * DAY_MS + 7, None).unwrap();
        let moved = checkpoint.run(run).unwrap();
        let place = 6 * DAY_MS + 7;
        assert_eq!((moved.from_ms, moved.position_ms), (place, place));
        assert_eq!([known(0), known(1)], [0, 0]);
        assert_eq!(spans(&checkpoint), [vec![], vec![(noon, place)]]);
    }
}
