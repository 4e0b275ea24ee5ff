//! The state file as a whole: copied, or moved aside.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use chrono::Utc;
use thiserror::Error;

use super::error::classify;
use super::lock::{LockError, RoleLock};
use super::storage::{self, StorageError};
use super::{Checkpoint, CheckpointError, FILE_NAME, OPENING_LOCK};
use crate::platform;

/// Why there is no copy. Nothing was left behind.
#[derive(Debug, Error)]
pub enum BackupError {
    /// The copy's file cannot be made; one that is there already is left alone.
    #[error("cannot create {path}, which must not exist")]
    File {
        /// Where the copy was to be.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The state file cannot be read, or the copy not be written.
    #[error("the state was not copied")]
    Copy(#[source] CheckpointError),
    /// The copy was written, but it is not known to be on the disk.
    #[error("cannot bring {path} to the disk")]
    Sync {
        /// Where the copy was to be.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
}

/// Why the state was not moved aside. It is as it was.
#[derive(Debug, Error)]
pub enum ResetError {
    /// A daemon or a backfill works on it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The directory cannot be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The operating system refuses.
    #[error("cannot move {path} aside")]
    Move {
        /// The file.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

impl Checkpoint {
    /// Copies the state as of one moment into a new file for this user alone (0600), beside
    /// whoever writes. Put in the state file's place, it is a state to go on from.
    ///
    /// # Errors
    /// If the file exists or cannot be written, or the state cannot be read.
    pub fn back_up(&self, path: &Path) -> Result<(), BackupError> {
        let named = || path.to_owned();
        let refused = |source| BackupError::File {
            path: named(),
            source,
        };
        // SQLite takes a name as text alone.
        let name = path.to_str().ok_or_else(|| {
            refused(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the name is no valid UTF-8",
            ))
        })?;
        let file = platform::create_private(path).map_err(refused)?;
        let copied = self.copy_into(name).map_err(BackupError::Copy);
        let done = copied.and_then(|()| {
            file.sync_all().map_err(|source| BackupError::Sync {
                path: named(),
                source,
            })
        });
        if done.is_err() {
            // Half a copy must not pass for one. If even that fails, the first error says more.
            fs::remove_file(path).unwrap_or_default();
        }
        done
    }

    fn copy_into(&self, name: &str) -> Result<(), CheckpointError> {
        let connection = self.connection();
        connection
            // Fills an empty file, and leaves no journal beside it.
            .execute("VACUUM INTO ?1", [name])
            .map(drop)
            .map_err(|error| classify(&self.path, "copy", error))
    }
}

/// Moves the state file in `storage` aside, under a name with the time in it; `None` if there is
/// none. Works for a damaged one too.
///
/// # Errors
/// If a daemon or a backfill works on it, or the files cannot be renamed.
pub fn reset(storage: &Path) -> Result<Option<PathBuf>, ResetError> {
    let path = storage.join(FILE_NAME);
    if !path.exists() {
        return Ok(None);
    }
    let _held = RoleLock::acquire_all(storage)?;
    // Nobody may open it between one renaming and the next.
    let opening_path = storage.join(OPENING_LOCK);
    let opening = storage::open_private(&opening_path)?;
    opening.lock().map_err(|source| ResetError::Move {
        path: opening_path,
        source,
    })?;
    let name = format!("state-{}.sqlite", Utc::now().format("%Y%m%dT%H%M%S%3fZ"));
    let aside = storage.join(name);
    // The log of changes first: it holds what is not in the file yet, and by itself it is nothing.
    for suffix in ["-wal", "-shm", ""] {
        let [from, to] = [&path, &aside].map(|path| {
            let mut path = path.clone().into_os_string();
            path.push(suffix);
            PathBuf::from(path)
        });
        match fs::rename(&from, &to) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(ResetError::Move { path: from, source }),
        }
    }
    Ok(Some(aside))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::{Role, SourceMode};
    use super::*;

    #[test]
    fn a_copy_is_whole_private_and_can_be_gone_on_from() {
        let directory = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(&directory.path().join("first")).unwrap();
        let run = checkpoint.daemon_run("example", || 7).unwrap().0.id;
        checkpoint.set_mode(run, SourceMode::Search).unwrap();
        let second = directory.path().join("second");
        fs::create_dir(&second).unwrap();
        let copy = second.join(FILE_NAME);

        // By one that may only read, too.
        let look = Checkpoint::open_existing_read_only(&directory.path().join("first"));
        look.unwrap().unwrap().back_up(&copy).unwrap();
        let mode = fs::metadata(&copy).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(&second).unwrap().count(), 1);
        let error = checkpoint.back_up(&copy).unwrap_err().to_string();
        let expected = format!("cannot create {}, which must not exist", copy.display());
        assert_eq!(error, expected);

        let gone_on = Checkpoint::open(&second).unwrap();
        assert_eq!(gone_on.summary().unwrap(), checkpoint.summary().unwrap());
        assert!(!gone_on.daemon_run("example", || 8).unwrap().1);
    }

    #[test]
    fn a_state_is_moved_aside_unless_somebody_works_on_it() {
        let directory = tempfile::tempdir().unwrap();
        let storage = directory.path();
        assert!(reset(storage).unwrap().is_none());
        let checkpoint = Checkpoint::open(storage).unwrap();
        checkpoint.daemon_run("example", || 7).unwrap();
        for role in [Role::Daemon, Role::backfill("example", 0, 1, "")] {
            let held = RoleLock::acquire(storage, &role).unwrap();
            assert!(matches!(reset(storage), Err(ResetError::Lock(_))));
            drop(held);
        }
        drop(checkpoint);
        fs::write(storage.join("state.sqlite-wal"), "left by a crash").unwrap();
        let aside = reset(storage).unwrap().unwrap();
        assert!(aside.exists() && !storage.join(FILE_NAME).exists());
        assert!(!storage.join("state.sqlite-wal").exists());
        assert!(
            Checkpoint::open(storage)
                .unwrap()
                .daemon_run("other", || 8)
                .unwrap()
                .1
        );
    }
}
