//! Gaps: spans of the audit log that could not be read, and what became of them.

use chrono::NaiveDate;
use rusqlite::{Row, Transaction, named_params};

use super::run::RunId;
use super::{Checkpoint, CheckpointError, export, now_ms};

/// A known span that could not be read, with the reason. Times are milliseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gap {
    /// A short code, such as `event_unreadable`.
    pub reason: String,
    /// The start of the span.
    pub from_ms: i64,
    /// The end of the span, exclusive.
    pub to_ms: i64,
    /// What is known about it, for a person.
    pub detail: String,
    /// Export: the day of the chunk.
    pub date: Option<NaiveDate>,
    /// Export: the chunk, in the server's words.
    pub chunk: Option<String>,
    /// The type of the one event that is missing, if it is one and its type is known.
    pub event_type: Option<String>,
    /// The same of its id.
    pub event_id: Option<String>,
    /// The id of the dead letter that holds its bytes.
    pub dead_letter: Option<String>,
    /// The session whose recording it is about.
    pub session: Option<String>,
    /// When it was found.
    pub found_ms: i64,
}

impl Gap {
    /// Whether the two are about the same: reason, span, chunk, dead letter and session.
    pub fn is_same(&self, other: &Self) -> bool {
        let identity = |gap: &Self| {
            let Self {
                reason,
                chunk,
                dead_letter,
                session,
                ..
            } = gap.clone();
            let place = (gap.from_ms, gap.to_ms, gap.date);
            (reason, place, chunk, dead_letter, session)
        };
        identity(self) == identity(other)
    }
}

/// Gaps that a read has filled: everything that was missing has settled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filled {
    /// Which; they need not be there.
    pub gaps: Vec<Gap>,
    /// Those of other runs too: what was read was not filtered.
    pub of_all_runs: bool,
}

impl Checkpoint {
    /// Writes a gap down, and says whether it is new: the same run, reason, span, chunk, dead
    /// letter and session are the same gap, however often it is met. One that was closed stays closed, as what
    /// was missing has settled.
    ///
    /// # Errors
    /// If there is no such run, or the state file cannot be changed.
    pub fn record_gap(&self, run: RunId, gap: &Gap) -> Result<bool, CheckpointError> {
        self.write("record a gap", |transaction| {
            let rows = transaction
                .prepare_cached(
                    "INSERT INTO gaps
                         (run_id, reason, from_ms, to_ms, day, chunk, detail, event_type, event_id,
                          dead_letter, session, found_ms)
                     VALUES (:run, :reason, :from, :to, :day, :chunk, :detail, :type, :id,
                         :dead_letter, :session, :found)
                     ON CONFLICT DO NOTHING",
                )?
                .execute(named_params! {
                    ":run": run.0,
                    ":reason": gap.reason,
                    ":from": gap.from_ms,
                    ":to": gap.to_ms,
                    ":day": gap.date.map(export::day),
                    ":chunk": gap.chunk,
                    ":detail": gap.detail,
                    ":type": gap.event_type,
                    ":id": gap.event_id,
                    ":dead_letter": gap.dead_letter,
                    ":session": gap.session,
                    ":found": gap.found_ms,
                })?;
            Ok(rows == 1)
        })
    }

    /// The open gaps, of all runs, that an event has left whose bytes are this dead letter.
    ///
    /// # Errors
    /// If the state file cannot be read.
    pub fn open_gaps_of_dead_letter(&self, id: &str) -> Result<Vec<Gap>, CheckpointError> {
        self.read("read the gaps of a dead letter", |transaction| {
            let gaps = transaction
                .prepare_cached("SELECT * FROM gaps WHERE closed_ms IS NULL AND dead_letter = ?1")?
                .query_map([id], read)?
                .collect::<Result<_, _>>()?;
            Ok(gaps)
        })
    }

    /// The open gaps of the log that a run may close, by when they were found: its own; those of
    /// all runs if it reads without filters. Not those of session recordings, which may be many.
    ///
    /// # Errors
    /// If the state file cannot be read.
    pub fn open_gaps(&self, run: RunId, of_all_runs: bool) -> Result<Vec<Gap>, CheckpointError> {
        self.read("read the open gaps", |transaction| {
            let gaps = transaction
                .prepare_cached(
                    "SELECT * FROM gaps
                     WHERE closed_ms IS NULL AND session IS NULL AND (:all OR run_id = :run)
                     ORDER BY found_ms, id",
                )?
                .query_map(named_params! {":all": of_all_runs, ":run": run.0}, read)?
                .collect::<Result<_, _>>()?;
            Ok(gaps)
        })
    }
}

/// Closes the gaps of an event whose dead letter is no more; how many.
pub(super) fn close_of_dead_letter(
    transaction: &Transaction<'_>,
    id: &str,
) -> rusqlite::Result<usize> {
    transaction
        .prepare_cached(
            "UPDATE gaps SET closed_ms = ?2 WHERE closed_ms IS NULL AND dead_letter = ?1",
        )?
        .execute((id, now_ms()))
}

/// Closes gaps.
pub(super) fn close(
    transaction: &Transaction<'_>,
    run: RunId,
    filled: &Filled,
) -> rusqlite::Result<()> {
    let mut close = transaction.prepare_cached(
        "UPDATE gaps SET closed_ms = :now
         WHERE closed_ms IS NULL AND (:all OR run_id = :run)
             AND reason = :reason AND from_ms = :from AND to_ms = :to
             AND day IS :day AND chunk IS :chunk AND dead_letter IS :dead_letter
             AND session IS :session",
    )?;
    for gap in &filled.gaps {
        close.execute(named_params! {
            ":now": now_ms(),
            ":all": filled.of_all_runs,
            ":run": run.0,
            ":reason": gap.reason,
            ":from": gap.from_ms,
            ":to": gap.to_ms,
            ":day": gap.date.map(export::day),
            ":chunk": gap.chunk,
            ":dead_letter": gap.dead_letter,
            ":session": gap.session,
        })?;
    }
    Ok(())
}

/// Reads a row of `gaps`.
pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Gap> {
    let day: Option<i32> = row.get("day")?;
    Ok(Gap {
        reason: row.get("reason")?,
        from_ms: row.get("from_ms")?,
        to_ms: row.get("to_ms")?,
        detail: row.get("detail")?,
        date: day.and_then(NaiveDate::from_epoch_days),
        chunk: row.get("chunk")?,
        event_type: row.get("event_type")?,
        event_id: row.get("event_id")?,
        dead_letter: row.get("dead_letter")?,
        session: row.get("session")?,
        found_ms: row.get("found_ms")?,
    })
}

#[cfg(test)]
mod tests {
    use crate::checkpoint::{Counts, FoundGap, Step};

    use super::*;

    #[test]
    fn a_gap_met_twice_is_one_and_once_closed_stays_closed() {
        let directory = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        let run = checkpoint.daemon_run("example", || 0).unwrap().0.id;
        let other = checkpoint.backfill_run("example", 0, 9, "").unwrap().id;
        let gap = Gap {
            reason: "event_unreadable".to_owned(),
            from_ms: 10,
            to_ms: 11,
            detail: "4.5 MiB".to_owned(),
            found_ms: 100,
            ..Gap::default()
        };
        let of_a_chunk = Gap {
            date: NaiveDate::from_ymd_opt(2031, 5, 9),
            chunk: Some("chunk".to_owned()),
            found_ms: 50,
            ..gap.clone()
        };
        let of_an_event = Gap {
            event_type: Some("exec".to_owned()),
            dead_letter: Some("letter".to_owned()),
            found_ms: 20,
            ..gap.clone()
        };
        let met_again = Gap {
            detail: "another word".to_owned(),
            found_ms: 300,
            ..gap.clone()
        };
        let record = |run, gap| checkpoint.record_gap(run, gap).unwrap();
        let new = [&gap, &of_a_chunk, &of_an_event, &met_again].map(|gap| record(run, gap));
        assert_eq!(new, [true, true, true, false]);
        assert!(record(other, &gap));

        let look = || {
            let summary = checkpoint.summary().unwrap();
            let counts = (summary.gaps, summary.closed_gaps, summary.runs[0].gaps);
            (counts, summary.newest_gaps)
        };
        let found = |run, gap: &Gap| FoundGap {
            run,
            gap: gap.clone(),
        };
        let newest = [
            found(other, &gap),
            found(run, &gap),
            found(run, &of_a_chunk),
            found(run, &of_an_event),
        ];
        assert_eq!(look(), ((4, 0, 3), newest.to_vec()));

        // A step closes them even if the run reads by no event API any more: it has settled.
        let fill = |gaps: &[&Gap], of_all_runs| {
            let filled = Filled {
                gaps: gaps.iter().map(|gap| (*gap).clone()).collect(),
                of_all_runs,
            };
            let steps = [Step::Filled { by: None, filled }];
            checkpoint.commit(run, &steps, &Counts::default()).unwrap();
        };
        fill(&[&met_again, &of_an_event], false);
        assert_eq!(look().0, (2, 2, 1));
        let own = checkpoint.open_gaps(run, false).unwrap();
        assert_eq!(own.as_slice(), std::slice::from_ref(&of_a_chunk));
        assert_eq!(checkpoint.open_gaps(run, true).unwrap().len(), 2);
        fill(&[&gap], true);
        assert_eq!(look().0, (1, 3, 1));
        assert!(!record(run, &gap));
        assert_eq!(look().0, (1, 3, 1));
    }
}
