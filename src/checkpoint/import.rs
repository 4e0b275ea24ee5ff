//! A daemon's run that goes on where another exporter has stopped.

use std::path::Path;

use chrono::NaiveDate;
use rusqlite::{OptionalExtension, named_params, params};

use super::export::{self, Chunk};
use super::recording::Upload;
use super::run::{self, Run, RunId, SourceMode};
use super::{Checkpoint, CheckpointError, now_ms};

/// How far the other one has come. Times are milliseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Import {
    /// Everything before this is done, and nothing of it is ever read.
    pub from_ms: i64,
    /// Where it had begun itself.
    pub start_ms: i64,
    /// Events at or after `from_ms` that it has sent.
    pub sent: Vec<SentEvent>,
    /// The chunks it had come to, if it has read by the export API.
    pub chunks: Option<Vec<(NaiveDate, Chunk)>>,
    /// Recordings that it had begun, with the index of the event to go on with.
    pub recordings: Vec<(Upload, i64)>,
}

/// What tells an event from all others of its second.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SentEvent {
    /// Its id.
    pub id: Vec<u8>,
    /// Its type.
    pub event_type: Vec<u8>,
    /// Its place within its session.
    pub index: i64,
}

/// Where a run was taken over from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The folder of the other one's state.
    pub directory: String,
    /// Where the other one had begun, in milliseconds since 1970.
    pub start_ms: i64,
    /// Events that it has sent and that would be read again.
    pub sent: Vec<SentEvent>,
}

impl Checkpoint {
    /// Makes the daemon's run on `cluster`, to go on from there. Only where
    /// [there is none](Self::has_daemon_run): whoever asks holds the daemon's lock.
    ///
    /// # Errors
    /// If the state file belongs to another cluster, or cannot be changed.
    pub fn import(
        &self,
        cluster: &str,
        directory: &Path,
        import: &Import,
    ) -> Result<Run, CheckpointError> {
        self.write("take over a state", |transaction| {
            self.claim(transaction, cluster)?;
            let mode = import.chunks.as_ref().map(|_| SourceMode::Export);
            transaction.execute(
                "INSERT INTO runs (kind, from_ms, filters, mode, position_ms, updated_ms)
                 VALUES ('daemon', ?1, '', ?2, ?1, ?3)",
                params![import.from_ms, mode, now_ms()],
            )?;
            let run = RunId(transaction.last_insert_rowid());
            transaction.execute(
                "INSERT INTO imports (run_id, directory, start_ms, imported_ms)
                 VALUES (?1, ?2, ?3, ?4)",
                params![
                    run.0,
                    directory.to_string_lossy(),
                    import.start_ms,
                    now_ms()
                ],
            )?;
            for event in &import.sent {
                transaction
                    .prepare_cached(
                        "INSERT INTO sent_events (run_id, id, event_type, event_index)
                         VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING",
                    )?
                    .execute(params![run.0, event.id, event.event_type, event.index])?;
            }
            for (date, chunk) in import.chunks.iter().flatten() {
                transaction
                    .prepare_cached(
                        "INSERT INTO chunks (run_id, day, name, cursor, done)
                         VALUES (:run, :day, :name, :cursor, :done)",
                    )?
                    .execute(named_params! {
                        ":run": run.0,
                        ":day": export::day(*date),
                        ":name": chunk.name,
                        ":cursor": chunk.cursor,
                        ":done": chunk.done,
                    })?;
            }
            for (upload, next_index) in &import.recordings {
                transaction
                    .prepare_cached(
                        "INSERT INTO recordings (run_id, session, upload_ms, next_index, due_ms)
                         VALUES (?1, ?2, ?3, ?4, ?5)",
                    )?
                    .execute(params![
                        run.0,
                        upload.session,
                        upload.upload_ms,
                        next_index,
                        now_ms()
                    ])?;
            }
            run::load(transaction, run, "read")
        })
    }

    /// Where the daemon's run was taken over from; `None` if it was not, or if there is none.
    ///
    /// # Errors
    /// If the state file cannot be read.
    pub fn imported(&self) -> Result<Option<Imported>, CheckpointError> {
        self.read("read where it was taken over from", |transaction| {
            let found = transaction
                .query_row(
                    "SELECT run_id, directory, imports.start_ms FROM imports
                     JOIN runs ON runs.id = run_id AND kind = 'daemon'",
                    [],
                    |row| {
                        let imported = Imported {
                            directory: row.get(1)?,
                            start_ms: row.get(2)?,
                            sent: Vec::new(),
                        };
                        Ok((row.get::<_, i64>(0)?, imported))
                    },
                )
                .optional()?;
            let Some((run, mut imported)) = found else {
                return Ok(None);
            };
            imported.sent = transaction
                .prepare_cached(
                    "SELECT id, event_type, event_index FROM sent_events WHERE run_id = ?1",
                )?
                .query_map([run], |row| {
                    Ok(SentEvent {
                        id: row.get(0)?,
                        event_type: row.get(1)?,
                        index: row.get(2)?,
                    })
                })?
                .collect::<Result<_, _>>()?;
            Ok(Some(imported))
        })
    }

    /// Whether there is a daemon's run.
    ///
    /// # Errors
    /// If the state file cannot be read.
    pub fn has_daemon_run(&self) -> Result<bool, CheckpointError> {
        self.read("look for the daemon's run", |transaction| {
            let mut select = transaction.prepare("SELECT 1 FROM runs WHERE kind = 'daemon'")?;
            Ok(select.exists([])?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_taken_over_once() {
        let checkpoint = Checkpoint::open_in_memory().unwrap();
        assert_eq!(checkpoint.imported().unwrap(), None);
        assert!(!checkpoint.has_daemon_run().unwrap());
        let date: NaiveDate = "2026-11-24".parse().unwrap();
        let chunk = |name: &str, cursor: Option<&str>| Chunk {
            name: name.into(),
            cursor: cursor.map(str::to_owned),
            done: cursor.is_none(),
        };
        let chunks = [chunk("five", Some("a1:9")), chunk("three", None)];
        let upload = Upload {
            session: "6f1e".into(),
            upload_ms: 5,
        };
        let sent = SentEvent {
            id: b"b7c1".to_vec(),
            event_type: b"user.login".to_vec(),
            index: 2,
        };
        let from_ms = i64::from(date.to_epoch_days()) * export::DAY_MS;
        let import = Import {
            from_ms,
            start_ms: 1000,
            sent: vec![sent.clone()],
            chunks: Some(chunks.iter().map(|chunk| (date, chunk.clone())).collect()),
            recordings: vec![(upload, 7)],
        };
        let directory = Path::new("/var/lib/teleport/plugins/event-handler");
        let run = checkpoint.import("example", directory, &import).unwrap();
        assert_eq!(
            (run.from_ms, run.position_ms, run.mode),
            (from_ms, from_ms, Some(SourceMode::Export))
        );
        assert_eq!(checkpoint.chunks(run.id, date).unwrap(), chunks);
        let due = checkpoint.due_recordings(run.id, now_ms(), 9).unwrap();
        assert_eq!((due.len(), due[0].next_index), (1, 7));
        let imported = checkpoint.imported().unwrap().unwrap();
        assert_eq!(imported.directory, directory.to_str().unwrap());
        assert_eq!((imported.start_ms, imported.sent), (1000, vec![sent]));
        // Not once more, whoever forgets to ask first.
        assert!(checkpoint.has_daemon_run().unwrap());
        let again = checkpoint.import("example", directory, &import);
        again.unwrap_err();
        let (same, is_first) = checkpoint.daemon_run("example", || 0).unwrap();
        assert_eq!((same.id, is_first), (run.id, false));
    }
}
