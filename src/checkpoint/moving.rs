//! A state file on its way to another place, or from there.
//!
//! While it is, it has another name, so that nobody takes the directory for one without a state and
//! begins anew: whoever opens it is told to finish the move.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use chrono::Utc;
use thiserror::Error;

use super::error::classify;
use super::lock::{LockError, RoleLock};
use super::storage::{self, StorageError};
use super::{BackupError, Checkpoint, CheckpointError, FILE_NAME, OPENING_LOCK};
use crate::platform;

/// What the file is called on its way to elsewhere, and on its way here.
const LEAVING: &str = "state.sqlite.leaving";
const COMING: &str = "state.sqlite.coming";

/// What of it is sent.
const COPY: &str = "state.sqlite.copy";

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From this directory to elsewhere.
    Leaves,
    /// From elsewhere into this directory.
    Comes,
}

impl Way {
    fn file_name(self) -> &'static str {
        match self {
            Self::Leaves => LEAVING,
            Self::Comes => COMING,
        }
    }
}

/// Why a state cannot be moved.
#[derive(Debug, Error)]
pub enum MoveError {
    /// A daemon or a backfill works on it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The directory cannot be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The state cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// There is no copy of it.
    #[error(transparent)]
    Copy(#[from] BackupError),
    /// The operating system refuses.
    #[error("cannot rename or remove {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

/// The directory whose state is moved; nobody works in it as long as the value lives.
#[derive(Debug)]
pub struct Moving {
    storage: PathBuf,
    _held: Vec<RoleLock>,
}

impl Moving {
    /// Keeps all others away from `storage`, which is created if missing.
    ///
    /// # Errors
    /// If somebody works there, or it cannot be used.
    pub fn begin(storage: &Path) -> Result<Self, MoveError> {
        Ok(Self {
            storage: storage.to_owned(),
            _held: RoleLock::acquire_all(storage)?,
        })
    }

    /// Which move was begun and not finished.
    pub fn unfinished(&self) -> Option<Way> {
        unfinished(&self.storage)
    }

    /// Whether there is a state that does not move.
    pub fn has_state(&self) -> bool {
        self.storage.join(FILE_NAME).exists()
    }

    /// The state, before it leaves.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn state(&self) -> Result<Checkpoint, MoveError> {
        match self.unfinished() {
            Some(way) => self.open(way),
            None => Ok(Checkpoint::open(&self.storage)?),
        }
    }

    /// From now on nobody can open it but by [`Moving::state`].
    ///
    /// # Errors
    /// If it cannot be renamed.
    pub fn leaves(&self) -> Result<(), MoveError> {
        self.rename(FILE_NAME, LEAVING)
    }

    /// It is elsewhere. The file stays, under a name with the time in it.
    ///
    /// # Errors
    /// If it cannot be renamed.
    pub fn has_left(&self) -> Result<PathBuf, MoveError> {
        let name = format!("state-{}.sqlite", Utc::now().format("%Y%m%dT%H%M%S%3fZ"));
        self.rename(LEAVING, &name)?;
        Ok(self.storage.join(name))
    }

    /// The state that leaves as bytes, without its dead letters.
    ///
    /// # Errors
    /// If there is no room for a copy, or the state cannot be read.
    pub fn image_without_letters(&self) -> Result<Vec<u8>, MoveError> {
        let copy = self.storage.join(COPY);
        self.remove(COPY)?;
        self.state()?.back_up(&copy)?;
        let image = Checkpoint::open_file(copy).and_then(|copied| copied.without_letters());
        self.remove(COPY)?;
        Ok(image?)
    }

    /// Writes a state that comes; nobody can open it but by [`Moving::state`].
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn comes(&self, state: &Checkpoint) -> Result<Checkpoint, MoveError> {
        self.remove(COMING)?;
        state.back_up(&self.storage.join(COMING))?;
        self.open(Way::Comes)
    }

    /// It is here, and nowhere else.
    ///
    /// # Errors
    /// If it cannot be renamed.
    pub fn has_come(&self) -> Result<(), MoveError> {
        self.rename(COMING, FILE_NAME)
    }

    fn open(&self, way: Way) -> Result<Checkpoint, MoveError> {
        Ok(Checkpoint::open_file(self.storage.join(way.file_name()))?)
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), MoveError> {
        let opening_path = self.storage.join(OPENING_LOCK);
        let opening = storage::open_private(&opening_path)?;
        opening.lock().map_err(|source| MoveError::File {
            path: opening_path,
            source,
        })?;
        for [from, to] in with_logs(&self.storage, [from, to]) {
            done(&from, fs::rename(&from, &to))?;
        }
        // It shall not come back by a power failure.
        done(&self.storage, platform::sync_folder(&self.storage))
    }

    fn remove(&self, name: &str) -> Result<(), MoveError> {
        for [path] in with_logs(&self.storage, [name]) {
            done(&path, fs::remove_file(&path))?;
        }
        Ok(())
    }
}

impl Checkpoint {
    fn without_letters(&self) -> Result<Vec<u8>, CheckpointError> {
        // All of them, as nothing is chosen; and gaps stay open.
        self.write("leave the dead letters behind", |transaction| {
            transaction.execute("DELETE FROM dead_letters", [])?;
            Ok::<_, super::error::Failure<CheckpointError>>(())
        })?;
        let vacuumed = self.connection().execute_batch("VACUUM");
        vacuumed.map_err(|error| classify(&self.path, "make it smaller", error))?;
        self.image()
    }
}

/// Refuses a directory whose state is on its way.
pub(super) fn refuse_unfinished(storage: &Path) -> Result<(), CheckpointError> {
    let to = match unfinished(storage) {
        None => return Ok(()),
        Some(Way::Leaves) => "elasticsearch",
        Some(Way::Comes) => "sqlite",
    };
    let path = storage.to_owned();
    Err(CheckpointError::Moving { path, to })
}

fn unfinished(storage: &Path) -> Option<Way> {
    let ways = [Way::Leaves, Way::Comes].into_iter();
    ways.rev()
        .find(|way| storage.join(way.file_name()).exists())
}

/// Names in a directory, and those of the logs of changes that belong to them; these first, since
/// they hold what is not in the file yet and are nothing by themselves.
fn with_logs<const N: usize>(storage: &Path, names: [&str; N]) -> [[PathBuf; N]; 3] {
    ["-wal", "-shm", ""].map(|suffix| names.map(|name| storage.join(format!("{name}{suffix}"))))
}

/// A file that is not there is done with.
fn done(path: &Path, result: io::Result<()>) -> Result<(), MoveError> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(|source| MoveError::File {
            path: path.to_owned(),
            source,
        }),
    }
}
