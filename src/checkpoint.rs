//! How far the work has come, kept where a crash cannot reach it: the state file.
//!
//! Elasticsearch and SQLite cannot share a transaction, so the order is always: Elasticsearch has
//! answered for every document of a page, or the document lies in the dead-letter store in this
//! very file; then the page's [`Step`] is committed. A crash between the two makes the page come
//! again, which its document ids make harmless. A crash after the commit makes nothing come again.
//!
//! # Runs and positions
//! A *run* is one walk over the audit log: the daemon's, which never ends, or a backfill's. Its
//! *position* is a time before which everything is settled. It is derived from what has settled
//! and stored in the same transaction, and it never moves back by a commit, only where somebody
//! asks for that ([`Checkpoint::move_position`]):
//!
//! | what is committed | what becomes of the position |
//! |---|---|
//! | search: a window that begins at or before the position, reached beyond it | moves to what the window reached, and on through all windows that join there |
//! | search: a window that begins after the position | waits until the windows before it join |
//! | export: a day before the position's has an unfinished chunk | stays |
//! | export: the position's day was never listed, or has an unfinished chunk | stays |
//! | export: all chunks of the position's day are done | moves to the moment of the day's newest listing, at most to the end of the day; from there on by the same rule |
//! | a step that was committed before (replay) | stays; never an error |
//!
//! So a day is passed only if it was listed after it had ended. The position of a backfill stops
//! at its end. A step that does not fit is refused with all that was to be committed with it.
//!
//! # Several processes
//! The file is in WAL mode, and each change is one short immediate transaction: the daemon,
//! backfills and `status` use it at the same time. [`RoleLock`] keeps two daemons apart.
//!
//! All functions here block, for a disk's `fsync` at most as a rule; call them on a thread that
//! may block.

mod blocked;
mod commit;
mod dead_letter;
mod error;
mod export;
mod failed_login;
mod gap;
mod import;
mod left_out;
mod lock;
mod memory;
mod moved;
mod moving;
mod recording;
mod run;
mod schema;
mod share;
mod storage;
mod summary;
pub mod tally;
mod whereabouts;
mod whole;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

use crate::clock::now_ms;

pub use blocked::{BlockedDocument, BlockedError, WaitingDocument};
pub use commit::{Committed, Counts, Step};
pub use dead_letter::{
    DeadLetter, DeadLetterEntry, DeadLetterError, DeadLetterFilter, DeadLetterPage, DocumentForm,
    Dropped, PagePlace, Stored, UNCONVERTIBLE,
};
pub use error::CheckpointError;
pub use export::{Chunk, Listed};
pub use failed_login::{DueLock, FailedLogin, LockRule};
pub use gap::{Filled, Gap};
pub use import::{Import, Imported, SentEvent};
pub use left_out::LeftOut;
pub use lock::{Holder, LockError, Role, RoleLock};
pub use moving::{MoveError, Moving, Way};
pub use recording::{Recorded, Recording, RecordingEnd, RecordingStep, Upload};
pub use run::{Run, RunId, RunKind, SourceMode, Window};
pub use share::share_identity;
pub use storage::StorageError;
pub use summary::{BlockedSummary, DeadLetterSummary, FoundGap, RunSummary, Summary};
pub use whereabouts::Kept;
pub use whole::{BackupError, ResetError, reset};

use error::{Failure, classify};
use schema::Format;

/// The state file's name in `storage`.
const FILE_NAME: &str = "state.sqlite";

/// Held while the file is opened and brought up to date. Turning WAL mode on does not wait for
/// others that do the same; this lock makes them wait.
const OPENING_LOCK: &str = "open.lock";

/// How long a change waits for that of another process. Changes take milliseconds; only a disk
/// that hangs makes one wait this long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// More than there are different statements here, so that each is compiled once.
const CACHED_STATEMENTS: usize = 64;

/// The state file of one cluster, open. Any number of threads and processes may use it at once.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    connection: Mutex<Connection>,
}

impl Checkpoint {
    /// Opens the state file in `storage` for this user alone; directory and file are created if
    /// missing, and a file of an older version is brought up to date.
    ///
    /// # Errors
    /// If `storage` is no directory, cannot be written or lies on a network file system; if the
    /// file is damaged, of another program or of a newer version, in which cases it is not touched.
    pub fn open(storage: &Path) -> Result<Self, CheckpointError> {
        storage::prepare_directory(storage)?;
        let lock_path = storage.join(OPENING_LOCK);
        let opening = storage::open_private(&lock_path)?;
        opening.lock().map_err(|source| StorageError::File {
            path: lock_path,
            source,
        })?;

        moving::refuse_unfinished(storage)?;
        let path = storage.join(FILE_NAME);
        storage::create_private(&path)?;
        Self::open_file(path)
    }

    /// Opens a file that is there, and brings it up to date.
    fn open_file(path: PathBuf) -> Result<Self, CheckpointError> {
        let failed = |error| classify(&path, "open the tables", error);
        let mut connection =
            Connection::open_with_flags(&path, flags(OpenFlags::SQLITE_OPEN_READ_WRITE))
                .map_err(failed)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
        // Before anything is written: switching to WAL mode changes the file already.
        refuse_unknown(&path, &schema::format(&connection).map_err(failed)?)?;
        set_pragmas(&connection).map_err(failed)?;
        schema::migrate(&mut connection, schema::MIGRATIONS)
            .map_err(|error| classify(&path, "bring the tables up to date", error))?;
        Ok(Self::new(path, connection))
    }

    /// Opens the state file in `storage` to look at it; `None` if there is none, or one that no
    /// run has been written to. Creates nothing and changes nothing.
    ///
    /// # Errors
    /// As [`Checkpoint::open`], and if the file is of an older version.
    pub fn open_existing_read_only(storage: &Path) -> Result<Option<Self>, CheckpointError> {
        const DOING: &str = "read it";
        moving::refuse_unfinished(storage)?;
        let path = storage.join(FILE_NAME);
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            // A file in the way and the like: the same words as when opening for writing.
            Err(_) => storage::prepare_directory(storage)?,
            Ok(_) => {}
        }
        let failed = |error| classify(&path, DOING, error);
        let connection =
            Connection::open_with_flags(&path, flags(OpenFlags::SQLITE_OPEN_READ_ONLY))
                .map_err(failed)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
        let format = schema::format(&connection).map_err(failed)?;
        refuse_unknown(&path, &format)?;
        match format {
            Format::Ours(found) if found < known_format() => Err(CheckpointError::Older {
                path,
                found,
                known: known_format(),
            }),
            Format::Ours(_) => Ok(Some(Self::new(path, connection))),
            Format::Empty | Format::Foreign => Ok(None),
        }
    }

    /// A state that is forgotten with the value: for a dry run, which must leave nothing behind.
    ///
    /// # Errors
    /// If SQLite does not work at all.
    pub fn open_in_memory() -> Result<Self, CheckpointError> {
        Self::open_unnamed(":memory:")
    }

    /// The same, but on the disk once it has become large: for a comparison, which keeps what
    /// cannot be compared.
    ///
    /// # Errors
    /// If SQLite does not work at all.
    pub fn open_temporary() -> Result<Self, CheckpointError> {
        Self::open_unnamed("")
    }

    fn open_unnamed(name: &str) -> Result<Self, CheckpointError> {
        let path = PathBuf::from(name);
        let failed = |error| classify(&path, "open it", error);
        let mut connection =
            Connection::open_with_flags(name, OpenFlags::default()).map_err(failed)?;
        schema::migrate(&mut connection, schema::MIGRATIONS).map_err(failed)?;
        Ok(Self::new(path, connection))
    }

    fn new(path: PathBuf, connection: Connection) -> Self {
        connection.set_prepared_statement_cache_capacity(CACHED_STATEMENTS);
        Self {
            path,
            connection: Mutex::new(connection),
        }
    }

    /// Runs `change` in one transaction of its own: all of it is on the disk afterwards, or none.
    fn write<T, E: From<CheckpointError>>(
        &self,
        doing: &'static str,
        change: impl FnOnce(&Transaction<'_>) -> Result<T, Failure<E>>,
    ) -> Result<T, E> {
        self.transact(TransactionBehavior::Immediate, doing, change)
    }

    /// Runs `look` on one state of the file, whatever others change meanwhile.
    fn read<T>(
        &self,
        doing: &'static str,
        look: impl FnOnce(&Transaction<'_>) -> Result<T, Failure<CheckpointError>>,
    ) -> Result<T, CheckpointError> {
        self.transact(TransactionBehavior::Deferred, doing, look)
    }

    /// A panic within a transaction has rolled it back: the connection is as good as before.
    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn transact<T, E: From<CheckpointError>>(
        &self,
        behavior: TransactionBehavior,
        doing: &'static str,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Failure<E>>,
    ) -> Result<T, E> {
        let mut connection = self.connection();
        let done = connection
            .transaction_with_behavior(behavior)
            .map_err(Failure::Sqlite)
            .and_then(|transaction| {
                let value = work(&transaction)?;
                transaction.commit()?;
                Ok(value)
            });
        done.map_err(|failure| match failure {
            Failure::Sqlite(error) => classify(&self.path, doing, error).into(),
            Failure::Refused(error) => error,
        })
    }
}

/// One thread at a time uses a connection, as the mutex around it sees to.
fn flags(access: OpenFlags) -> OpenFlags {
    access | OpenFlags::SQLITE_OPEN_NO_MUTEX
}

fn known_format() -> i64 {
    i64::try_from(schema::MIGRATIONS.len()).expect("a handful")
}

fn refuse_unknown(path: &Path, format: &Format) -> Result<(), CheckpointError> {
    let path = path.to_owned();
    match *format {
        Format::Foreign => Err(CheckpointError::Foreign { path }),
        Format::Ours(found) if found > known_format() => Err(CheckpointError::Newer {
            path,
            found,
            known: known_format(),
        }),
        Format::Ours(_) | Format::Empty => Ok(()),
    }
}

fn set_pragmas(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "locking_mode", "NORMAL")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // FULL: a commit is on the disk when it returns, even if the power fails at that moment.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)
}

/// SQLite has no unsigned numbers; what does not fit is as large as it gets.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The way back from [`signed`]; what is stored as a count is never negative.
fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::thread;

    use super::*;

    const PAGE: Step = Step::Window {
        from_ms: 1000,
        to_ms: 5000,
        reached_ms: 3000,
    };

    fn shared<T: Send + Sync>(value: T) -> T {
        value
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    /// Changes a closed state file as another program, or another version, might have.
    fn tamper(storage: &Path, sql: &str) {
        Connection::open_with_flags(storage.join(FILE_NAME), OpenFlags::default())
            .unwrap()
            .execute_batch(sql)
            .unwrap();
    }

    #[test]
    fn a_new_file_is_private_safe_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let storage = directory.path().join("storage");
        assert!(
            Checkpoint::open_existing_read_only(&storage)
                .unwrap()
                .is_none()
        );
        assert!(!storage.exists());

        let checkpoint = shared(Checkpoint::open(&storage).unwrap());
        let (run, first_start) = checkpoint.daemon_run("example", || 1000).unwrap();
        assert!(first_start);
        checkpoint.set_mode(run.id, SourceMode::Search).unwrap();
        checkpoint
            .commit(run.id, &[PAGE], &Counts::default())
            .unwrap();
        assert_eq!(mode(&storage), 0o700);
        let mut names: Vec<_> = fs::read_dir(&storage)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let expected = [
            "open.lock",
            FILE_NAME,
            "state.sqlite-shm",
            "state.sqlite-wal",
        ];
        assert_eq!(names, expected);
        for name in names {
            assert_eq!(mode(&storage.join(&name)), 0o600, "{name}");
        }
        let pragma = |name: &str| {
            let connection = checkpoint.connection.lock().unwrap();
            connection
                .pragma_query_value(None, name, |row| row.get::<_, rusqlite::types::Value>(0))
                .unwrap()
        };
        assert_eq!(pragma("journal_mode"), "wal".to_owned().into());
        assert_eq!(pragma("synchronous"), 2.into());
        assert_eq!(pragma("foreign_keys"), 1.into());

        drop(checkpoint);
        let checkpoint = Checkpoint::open(&storage).unwrap();
        let (again, first_start) = checkpoint
            .daemon_run("example", || panic!("the start is fixed"))
            .unwrap();
        assert!(!first_start);
        assert_eq!((again.from_ms, again.position_ms), (1000, 3000));
        drop(checkpoint);
        let look = Checkpoint::open_existing_read_only(&storage)
            .unwrap()
            .unwrap();
        assert_eq!(look.summary().unwrap().runs[0].position_ms, 3000);
        assert_eq!(
            look.set_mode(again.id, SourceMode::Export)
                .unwrap_err()
                .to_string(),
            format!(
                "cannot choose the event API: no access to the state file {}",
                storage.join(FILE_NAME).display()
            )
        );
    }

    #[test]
    fn a_file_that_is_not_ours_is_refused_and_left_alone() {
        let with = |sql: &str| {
            let directory = tempfile::tempdir().unwrap();
            drop(Checkpoint::open(directory.path()).unwrap());
            tamper(directory.path(), sql);
            directory
        };
        let newer = with("PRAGMA user_version = 99;");
        let foreign = with("PRAGMA application_id = 7;");
        let damaged = tempfile::tempdir().unwrap();
        fs::write(damaged.path().join(FILE_NAME), [b'x'; 4096]).unwrap();
        let known = known_format();
        for (directory, message) in [
            (
                newer,
                format!(
                    "the state file PATH has format 99, this program knows formats up to {known}; \
                     it was written by a newer version: use that version"
                ),
            ),
            (
                foreign,
                "PATH is a database of another program; choose another storage directory or move \
                 it away"
                    .to_owned(),
            ),
            (damaged, "the state file PATH is damaged".to_owned()),
        ] {
            let path = directory.path().join(FILE_NAME);
            let before = fs::read(&path).unwrap();
            let message = message.replace("PATH", &path.display().to_string());
            let storage = directory.path();
            assert_eq!(Checkpoint::open(storage).unwrap_err().to_string(), message);
            assert_eq!(
                Checkpoint::open_existing_read_only(storage)
                    .unwrap_err()
                    .to_string(),
                message
            );
            assert!(fs::read(&path).unwrap() == before, "the file was changed");
        }
    }

    #[test]
    fn looking_needs_tables_of_this_version() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE_NAME);
        fs::write(&path, "").unwrap();
        let look = || Checkpoint::open_existing_read_only(directory.path());
        assert!(look().unwrap().is_none(), "a first start that was cut off");

        drop(Checkpoint::open(directory.path()).unwrap());
        tamper(directory.path(), "PRAGMA user_version = 0;");
        assert_eq!(
            look().unwrap_err().to_string(),
            format!(
                "the state file {} has format 0, this program reads format {}; it is brought up to \
                 date by the next start",
                path.display(),
                known_format()
            )
        );

        let below_a_file = path.join("storage");
        for error in [
            Checkpoint::open(&below_a_file).unwrap_err(),
            Checkpoint::open_existing_read_only(&below_a_file).unwrap_err(),
        ] {
            assert_eq!(
                error.to_string(),
                format!(
                    "the storage path {} is not a directory; choose a directory or a new path",
                    below_a_file.display()
                )
            );
        }
    }

    #[test]
    fn a_full_disk_is_told_and_loses_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        let run = checkpoint.daemon_run("example", || 1000).unwrap().0.id;
        checkpoint.set_mode(run, SourceMode::Search).unwrap();
        {
            let connection = checkpoint.connection.lock().unwrap();
            connection.pragma_update(None, "max_page_count", 1).unwrap();
        }
        let letter = DeadLetter {
            document_id: "id".to_owned(),
            index_name: "index".to_owned(),
            event_type: "user.login".to_owned(),
            time_ms: None,
            document: vec![0; 1 << 20],
            form: DocumentForm::Json,
            status: Some(400),
            error_type: "mapper_parsing_exception".to_owned(),
            reason: "no".to_owned(),
            first_seen_ms: 0,
        };
        assert_eq!(
            checkpoint
                .insert_dead_letters(run, &[letter], u64::MAX)
                .unwrap_err()
                .to_string(),
            format!(
                "no room left to store dead letters in the state file {}",
                directory.path().join(FILE_NAME).display()
            )
        );
        assert!(
            checkpoint
                .dead_letters(&DeadLetterFilter::default(), 9)
                .unwrap()
                .is_empty()
        );
        let committed = checkpoint.commit(run, &[PAGE], &Counts::default()).unwrap();
        assert_eq!(committed.position_ms, 3000);
    }

    #[test]
    fn daemon_backfill_and_status_share_one_file() {
        const COMMITS: i64 = 30;
        let directory = tempfile::tempdir().unwrap();
        let storage = directory.path();
        thread::scope(|scope| {
            for backfill in [false, true] {
                scope.spawn(move || {
                    let checkpoint = Checkpoint::open(storage).unwrap();
                    let run = if backfill {
                        checkpoint.backfill_run("example", 0, COMMITS, "").unwrap()
                    } else {
                        checkpoint.daemon_run("example", || 0).unwrap().0
                    };
                    checkpoint.set_mode(run.id, SourceMode::Search).unwrap();
                    for reached_ms in 1..=COMMITS {
                        let step = Step::Window {
                            from_ms: 0,
                            to_ms: COMMITS,
                            reached_ms,
                        };
                        let counts = Counts {
                            events: 1,
                            ..Counts::default()
                        };
                        checkpoint.commit(run.id, &[step], &counts).unwrap();
                    }
                });
            }
            scope.spawn(|| {
                for _ in 0..COMMITS {
                    let Some(look) = Checkpoint::open_existing_read_only(storage).unwrap() else {
                        continue;
                    };
                    for run in look.summary().unwrap().runs {
                        let settled = u64::try_from(run.position_ms).unwrap();
                        assert_eq!(run.counts.events, settled, "half a commit was seen");
                    }
                }
            });
        });
        let summary = Checkpoint::open(storage).unwrap().summary().unwrap();
        assert_eq!(summary.runs.len(), 2);
        for run in summary.runs {
            assert_eq!((run.position_ms, run.open_windows), (COMMITS, 0));
        }
    }

    #[test]
    fn a_file_belongs_to_one_cluster() {
        let directory = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        checkpoint.backfill_run("one", 0, 1, "").unwrap();
        let message = format!(
            "the state file {} belongs to the cluster \"one\", and the Auth Service is that of \
             \"two\"; give each cluster its own storage directory",
            directory.path().join(FILE_NAME).display()
        );
        for error in [
            checkpoint.daemon_run("two", || 0).unwrap_err(),
            checkpoint.backfill_run("two", 0, 1, "").unwrap_err(),
        ] {
            assert_eq!(error.to_string(), message);
        }
        assert_eq!(checkpoint.summary().unwrap().runs.len(), 1);
    }
}
