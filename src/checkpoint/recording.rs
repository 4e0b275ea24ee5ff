//! Session recordings that are to be read, and how far each has been read.
//!
//! A recording is a row before the event that tells of it is handed over to anybody, so the position
//! cannot pass that event without it. However many wait, they wait here and cost no memory. What
//! becomes of a row is committed with the documents that it rests on, as a [`RecordingStep`].
//!
//! Rows of recordings that are done with stay for as long as the log may be read again from before
//! them: else each look back would have the recording read once more.

use rusqlite::types::Type;
use rusqlite::{Row, Transaction, named_params, params};
use serde::{Deserialize, Serialize};

use super::gap::{self, Gap};
use super::run::RunId;
use super::{Checkpoint, CheckpointError, now_ms};

/// A recording that the audit log tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// The session's id, in the server's words.
    pub session: String,
    /// When it was uploaded, in milliseconds since 1970.
    pub upload_ms: i64,
}

/// A recording that is to be read, and how far it has been.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    /// The session's id, in the server's words.
    pub session: String,
    /// When it was uploaded, in milliseconds since 1970.
    pub upload_ms: i64,
    /// The index of the last event that has settled: reading goes on with it.
    pub next_index: i64,
    /// How often reading it has ended, well or not. It tells whether an end is committed.
    pub readings: u32,
    /// How often it was not there, in a row.
    pub failures: u32,
    /// What has been read of it.
    pub recorded: Recorded,
}

/// What is known of a recording from its events so far. Times are milliseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// How many events it has, those that are left out included.
    pub events: u64,
    /// How many of them have the index at which reading goes on, and come again then.
    pub at_index: u64,
    /// How many of them are commands, queries or requests.
    pub commands: u64,
    /// The first one's time.
    pub start_ms: Option<i64>,
    /// The last one's time.
    pub end_ms: Option<i64>,
    /// Who is recorded.
    pub user: Option<String>,
    /// What kind of session it is, in Teleport's words: `ssh`, `k8s`, `db`, …
    pub kind: Option<String>,
    /// The session's end is among the events.
    pub has_end: bool,
    /// How many of them are not written, as their days are too old.
    #[serde(default)]
    pub too_old: u64,
    /// In how many rounds it broke at the same place, in a row.
    #[serde(default)]
    pub rounds: u32,
}

/// What becomes true of a recording when all events before it have settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordingStep {
    /// The recording, as far as it has been read.
    pub recording: Recording,
    /// How this reading of it has ended; `None` if it goes on.
    pub end: Option<RecordingEnd>,
    /// Whether a document is to tell of the session. Only for what is done with.
    pub has_summary: bool,
}

/// How reading a recording has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordingEnd {
    /// There is no more.
    Read,
    /// It is to be tried again.
    Again {
        /// When, in milliseconds since 1970.
        due_ms: i64,
    },
    /// It is not there, and is not waited for any longer.
    Missing,
    /// It breaks at the same place each time.
    Unreadable,
}

impl RecordingEnd {
    /// The row's state.
    fn state(self) -> &'static str {
        match self {
            Self::Again { .. } => "pending",
            Self::Read => "read",
            Self::Missing => "missing",
            Self::Unreadable => "unreadable",
        }
    }
}

impl Checkpoint {
    /// Writes down recordings that are to be read; those that are known stay as they are, unless
    /// they were uploaded once more.
    ///
    /// # Errors
    /// If there is no such run, or the state file cannot be changed.
    pub fn add_uploads(&self, run: RunId, uploads: &[Upload]) -> Result<(), CheckpointError> {
        self.write("write down session recordings", |transaction| {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO recordings (run_id, session, upload_ms, due_ms)
                 VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO UPDATE SET
                     upload_ms = excluded.upload_ms, due_ms = excluded.due_ms, state = 'pending',
                     next_index = 0, failures = 0, recorded = NULL, readings = readings + 1
                 WHERE excluded.upload_ms > upload_ms",
            )?;
            for upload in uploads {
                insert.execute(params![run.0, upload.session, upload.upload_ms, now_ms()])?;
            }
            Ok(())
        })
    }

    /// The recordings that are to be read by now, the one that waits longest first; at most
    /// `limit`.
    ///
    /// # Errors
    /// If the state file cannot be read.
    pub fn due_recordings(
        &self,
        run: RunId,
        now_ms: i64,
        limit: usize,
    ) -> Result<Vec<Recording>, CheckpointError> {
        self.read("read which session recordings are due", |transaction| {
            let due = transaction
                .prepare_cached(
                    "SELECT * FROM recordings
                     WHERE run_id = ?1 AND state = 'pending' AND due_ms <= ?2
                     ORDER BY due_ms LIMIT ?3",
                )?
                .query_map(
                    params![run.0, now_ms, i64::try_from(limit).unwrap_or(i64::MAX)],
                    read,
                )?
                .collect::<Result<_, _>>()?;
            Ok(due)
        })
    }

    /// When the next recording is due, in milliseconds since 1970; `None` if none waits.
    ///
    /// # Errors
    /// If the state file cannot be read.
    pub fn next_recording_ms(&self, run: RunId) -> Result<Option<i64>, CheckpointError> {
        self.read("read whether session recordings wait", |transaction| {
            let next = transaction
                .prepare_cached(
                    "SELECT min(due_ms) FROM recordings WHERE run_id = ?1 AND state = 'pending'",
                )?
                .query_row([run.0], |row| row.get(0))?;
            Ok(next)
        })
    }

    /// Has those looked for once more that were missing or not readable, and were uploaded at
    /// `since_ms` or later.
    ///
    /// # Errors
    /// If the state file cannot be changed.
    pub fn look_again_for_recordings(
        &self,
        run: RunId,
        since_ms: i64,
    ) -> Result<(), CheckpointError> {
        self.write(
            "look again for recordings that could not be read",
            |transaction| {
                transaction.execute(
                    "UPDATE recordings SET state = 'pending', due_ms = ?3, failures = 0,
                     recorded = json_remove(recorded, '$.rounds')
                 WHERE run_id = ?1 AND state IN ('missing', 'unreadable') AND upload_ms >= ?2",
                    params![run.0, since_ms, now_ms()],
                )?;
                Ok(())
            },
        )
    }

    /// Has all that are to be tried again later tried now: for a run that does not wait as long.
    ///
    /// # Errors
    /// If the state file cannot be changed.
    pub fn make_recordings_due(&self, run: RunId) -> Result<(), CheckpointError> {
        self.write("have session recordings read now", |transaction| {
            transaction.execute(
                "UPDATE recordings SET due_ms = ?2
                 WHERE run_id = ?1 AND state = 'pending' AND due_ms > ?2",
                params![run.0, now_ms()],
            )?;
            Ok(())
        })
    }

    /// Forgets recordings that are done with and were uploaded before `before_ms`.
    ///
    /// # Errors
    /// If the state file cannot be changed.
    pub fn forget_recordings(&self, run: RunId, before_ms: i64) -> Result<(), CheckpointError> {
        self.write("forget old session recordings", |transaction| {
            transaction.execute(
                "DELETE FROM recordings
                 WHERE run_id = ?1 AND state != 'pending' AND upload_ms < ?2",
                params![run.0, before_ms],
            )?;
            Ok(())
        })
    }

    /// The open gaps that tell of a session's recording: the run's own, or those of all runs.
    ///
    /// # Errors
    /// If the state file cannot be read.
    pub fn open_gaps_of_session(
        &self,
        run: RunId,
        of_all_runs: bool,
        session: &str,
    ) -> Result<Vec<Gap>, CheckpointError> {
        self.read("read a recording's gaps", |transaction| {
            let gaps = transaction
                .prepare_cached(
                    "SELECT * FROM gaps
                     WHERE session = :session AND closed_ms IS NULL AND (:all OR run_id = :run)",
                )?
                .query_map(
                    named_params! {":session": session, ":all": of_all_runs, ":run": run.0},
                    gap::read,
                )?
                .collect::<Result<_, _>>()?;
            Ok(gaps)
        })
    }
}

/// Commits how far a recording has been read. Comes to nothing if it was uploaded once more since.
pub(super) fn take(
    transaction: &Transaction<'_>,
    run: RunId,
    step: &RecordingStep,
) -> rusqlite::Result<()> {
    let RecordingStep { recording, end, .. } = step;
    let due_ms = match end {
        Some(RecordingEnd::Again { due_ms }) => Some(*due_ms),
        _ => None,
    };
    let recorded = serde_json::to_string(&recording.recorded).expect("it is numbers and texts");
    let rows = transaction
        .prepare_cached(
            "UPDATE recordings SET
                 next_index = :next_index, failures = :failures, recorded = :recorded,
                 state = :state, due_ms = ifnull(:due, due_ms), readings = readings + :ended
             WHERE run_id = :run AND session = :session AND upload_ms = :upload
                 AND state = 'pending'",
        )?
        .execute(named_params! {
            ":run": run.0,
            ":session": recording.session,
            ":upload": recording.upload_ms,
            ":next_index": recording.next_index,
            ":failures": recording.failures,
            ":recorded": recorded,
            ":state": end.map_or("pending", RecordingEnd::state),
            ":due": due_ms,
            ":ended": end.is_some(),
        })?;
    if rows == 1 && *end == Some(RecordingEnd::Read) {
        transaction
            .prepare_cached("UPDATE runs SET recordings = recordings + 1 WHERE id = ?1")?
            .execute([run.0])?;
    }
    Ok(())
}

fn read(row: &Row<'_>) -> rusqlite::Result<Recording> {
    let recorded: Option<String> = row.get("recorded")?;
    let recorded = recorded.map_or_else(
        || Ok(Recorded::default()),
        |text| serde_json::from_str(&text),
    );
    Ok(Recording {
        session: row.get("session")?,
        upload_ms: row.get("upload_ms")?,
        next_index: row.get("next_index")?,
        readings: row.get("readings")?,
        failures: row.get("failures")?,
        recorded: recorded.map_err(|wrong| {
            rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(wrong))
        })?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Counts, Step};

    fn upload(session: &str, upload_ms: i64) -> Upload {
        Upload {
            session: session.to_owned(),
            upload_ms,
        }
    }

    #[test]
    fn a_recording_is_read_once_however_often_the_log_tells_of_it() {
        let checkpoint = Checkpoint::open_in_memory().unwrap();
        let run = checkpoint.daemon_run("example", || 0).unwrap().0.id;
        let other = checkpoint.backfill_run("example", 0, 9, "").unwrap().id;
        let due = |run| checkpoint.due_recordings(run, now_ms() + 9, 10).unwrap();
        let names = |run| {
            let due = due(run).into_iter();
            due.map(|recording| recording.session).collect::<Vec<_>>()
        };
        let commit = |recording: &Recording, end| {
            let step = Step::Recording(Box::new(RecordingStep {
                recording: recording.clone(),
                end,
                has_summary: false,
            }));
            checkpoint.commit(run, &[step], &Counts::default()).unwrap();
        };
        let uploads = [upload("a", 100), upload("b", 200)];
        checkpoint.add_uploads(run, &uploads).unwrap();
        checkpoint.add_uploads(other, &uploads[..1]).unwrap();
        assert_eq!(
            checkpoint
                .due_recordings(run, now_ms() + 9, 1)
                .unwrap()
                .len(),
            1
        );

        // Half of it, and that stays known.
        let mut half = due(run).remove(0);
        half.next_index = 17;
        half.recorded.events = 18;
        half.recorded.user = Some("alice".into());
        commit(&half, None);
        assert!(due(run).contains(&half));
        commit(&half, Some(RecordingEnd::Read));
        checkpoint.add_uploads(run, &uploads).unwrap();
        assert_eq!(
            (names(run), names(other)),
            (vec!["b".into()], vec!["a".into()])
        );

        // Not yet: out of the way until then.
        let later = due(run).remove(0);
        let due_ms = now_ms() + 60_000;
        commit(&later, Some(RecordingEnd::Again { due_ms }));
        assert_eq!(names(run), [""; 0]);
        assert_eq!(checkpoint.next_recording_ms(run).unwrap(), Some(due_ms));
        checkpoint.make_recordings_due(other).unwrap();
        assert_eq!(checkpoint.next_recording_ms(run).unwrap(), Some(due_ms));
        checkpoint.make_recordings_due(run).unwrap();
        assert_eq!(names(run), ["b"]);
        let later = &checkpoint.due_recordings(run, due_ms, 10).unwrap()[0];
        assert_eq!((later.readings, &*later.session), (1, "b"));
        commit(later, Some(RecordingEnd::Missing));
        assert_eq!(checkpoint.next_recording_ms(run).unwrap(), None);
        checkpoint.look_again_for_recordings(run, 201).unwrap();
        assert_eq!(names(run), [""; 0]);
        checkpoint.look_again_for_recordings(run, 200).unwrap();
        assert_eq!(names(run), ["b"]);

        // Uploaded once more: read from its start, whatever an older reading still says.
        checkpoint.add_uploads(run, &[upload("a", 300)]).unwrap();
        commit(&half, Some(RecordingEnd::Read));
        let again = due(run).into_iter().find(|again| again.session == "a");
        let again = again.unwrap();
        assert_eq!((again.next_index, again.recorded.events), (0, 0));
        assert!(again.readings > half.readings);

        checkpoint.forget_recordings(run, i64::MAX).unwrap();
        assert_eq!(names(run).len(), 2);
        let summary = checkpoint.summary().unwrap();
        let told = |n: usize| (summary.runs[n].recordings, summary.runs[n].open_recordings);
        assert_eq!((told(0), told(1)), ((1, 2), (0, 1)));
    }
}
