//! Gaps: spans of the audit log that could not be read.

use chrono::NaiveDate;
use rusqlite::{Row, named_params};

use super::run::RunId;
use super::{Checkpoint, CheckpointError, export};

/// A known span that could not be read, with the reason. Times are milliseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// A short code, such as `event_too_large`.
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
    /// When it was found.
    pub found_ms: i64,
}

impl Checkpoint {
    /// Writes a gap down, and says whether it is new: the same run, reason, span and chunk are the
    /// same gap, however often it is met.
    ///
    /// # Errors
    /// If there is no such run, or the state file cannot be changed.
    pub fn record_gap(&self, run: RunId, gap: &Gap) -> Result<bool, CheckpointError> {
        self.write("record a gap", |transaction| {
            let rows = transaction
                .prepare_cached(
                    "INSERT INTO gaps
                         (run_id, reason, from_ms, to_ms, day, chunk, detail, found_ms)
                     VALUES (:run, :reason, :from, :to, :day, :chunk, :detail, :found)
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
                    ":found": gap.found_ms,
                })?;
            Ok(rows == 1)
        })
    }
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
        found_ms: row.get("found_ms")?,
    })
}

#[cfg(test)]
mod tests {
    use crate::checkpoint::FoundGap;

    use super::*;

    #[test]
    fn a_gap_met_twice_is_one() {
        let directory = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        let run = checkpoint.daemon_run("example", || 0).unwrap().0.id;
        let gap = Gap {
            reason: "event_too_large".to_owned(),
            from_ms: 10,
            to_ms: 11,
            detail: "4.5 MiB".to_owned(),
            date: None,
            chunk: None,
            found_ms: 100,
        };
        let of_a_chunk = Gap {
            date: NaiveDate::from_ymd_opt(2031, 5, 9),
            chunk: Some("chunk".to_owned()),
            found_ms: 50,
            ..gap.clone()
        };
        let met_again = Gap {
            detail: "another word".to_owned(),
            found_ms: 300,
            ..gap.clone()
        };
        let new: Vec<_> = [&gap, &of_a_chunk, &met_again, &of_a_chunk]
            .into_iter()
            .map(|gap| checkpoint.record_gap(run, gap).unwrap())
            .collect();
        assert_eq!(new, [true, true, false, false]);

        let summary = checkpoint.summary().unwrap();
        assert_eq!((summary.gaps, summary.runs[0].gaps), (2, 2));
        let found = |gap| FoundGap { run, gap };
        assert_eq!(summary.newest_gaps, [found(gap), found(of_a_chunk)]);
    }
}
