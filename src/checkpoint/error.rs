//! What can be wrong with the state file, in words for the person who must mend it.

use std::path::{Path, PathBuf};

use rusqlite::ffi::ErrorCode;
use thiserror::Error;

use super::storage::StorageError;
use super::{RunId, SourceMode};
use crate::telemetry::Reason;

/// Why the state file could not be opened, read or changed. Nothing was changed then.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// The `storage` directory cannot be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The file is no database any more.
    #[error("the state file {path} is damaged")]
    Corrupt {
        /// The state file.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// The file belongs to another program.
    #[error(
        "{path} is a database of another program; choose another storage directory or move it away"
    )]
    Foreign {
        /// The state file.
        path: PathBuf,
    },
    /// A newer version of this program has changed the file's tables.
    #[error(
        "the state file {path} has format {found}, this program knows formats up to {known}; it was \
         written by a newer version: use that version"
    )]
    Newer {
        /// The state file.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The newest format of this program.
        known: i64,
    },
    /// Only reading was asked for, and the tables are those of an older version of this program.
    #[error(
        "the state file {path} has format {found}, this program reads format {known}; it is brought \
         up to date by the next start"
    )]
    Older {
        /// The state file.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The format of this program.
        known: i64,
    },
    /// The state is on its way to another place, or from there.
    #[error(
        "the move of the state in {path} is not finished: run `state move --to {to}` once more"
    )]
    Moving {
        /// `storage` as configured.
        path: PathBuf,
        /// Whereto.
        to: &'static str,
    },
    /// The file is about another cluster.
    #[error(
        "the state file {path} belongs to the cluster {stored:?}, and the Auth Service is that of \
         {given:?}; give each cluster its own storage directory"
    )]
    OtherCluster {
        /// The state file.
        path: PathBuf,
        /// The cluster it was made for.
        stored: String,
        /// The cluster that was given.
        given: String,
    },
    /// There is no room left.
    #[error("no room left to {doing} in the state file {path}")]
    Full {
        /// The state file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// The file, or one beside it, may not be opened or written.
    #[error("cannot {doing}: no access to the state file {path}")]
    NoAccess {
        /// The state file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// Another process kept the file locked for longer than any change of ours takes.
    #[error("cannot {doing}: another process has kept the state file {path} locked for 10 s")]
    Busy {
        /// The state file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// Anything else that SQLite reports.
    #[error("cannot {doing} in the state file {path}")]
    Sqlite {
        /// The state file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// The number names no run, or one that cannot do what was asked for.
    #[error("the state file has no run {run} that can be {asked}")]
    UnknownRun {
        /// The number.
        run: RunId,
        /// What was to be done with it.
        asked: &'static str,
    },
    /// A step of one event API was to be committed to a run that reads by the other.
    #[error("a step of {step} cannot be committed to run {run}, which reads by {}", shown(.mode))]
    WrongMode {
        /// The run.
        run: RunId,
        /// The API of the step.
        step: SourceMode,
        /// The API of the run; `None` if none was chosen yet.
        mode: Option<SourceMode>,
    },
    /// A backfill was to be called finished before everything in it was settled.
    #[error("run {run} is not finished: it is settled up to {position_ms} of {to_ms} ms")]
    Unfinished {
        /// The run.
        run: RunId,
        /// Everything before this is settled; milliseconds since 1970.
        position_ms: i64,
        /// The end of the backfill, exclusive; milliseconds since 1970.
        to_ms: i64,
    },
}

impl CheckpointError {
    /// For the count of such errors.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Full { .. } => Reason::DiskFull,
            _ => Reason::Other,
        }
    }

    /// What somebody should do, where the message does not say it already.
    pub fn mend(&self) -> Option<String> {
        match self {
            Self::Storage(error) => error.mend().map(str::to_owned),
            Self::Corrupt { path, .. } => {
                let path = path.display();
                Some(format!(
                    "move it away together with {path}-wal and {path}-shm, and set start-time: a \
                     missing file is a first start, which reads again from there and makes no \
                     duplicates"
                ))
            }
            Self::Full { .. } => Some("make room on its disk".to_owned()),
            Self::NoAccess { .. } => Some(
                "the file, its directory and the files beside it must be writable for the user who \
                 runs this program"
                    .to_owned(),
            ),
            Self::Moving { .. }
            | Self::Foreign { .. }
            | Self::Newer { .. }
            | Self::Older { .. }
            | Self::OtherCluster { .. }
            | Self::Busy { .. }
            | Self::Sqlite { .. }
            | Self::UnknownRun { .. }
            | Self::WrongMode { .. }
            | Self::Unfinished { .. } => None,
        }
    }
}

fn shown(mode: &Option<SourceMode>) -> &'static str {
    mode.map_or("no API yet", SourceMode::as_str)
}

/// What stops a transaction: SQLite, or a rule of ours.
pub(super) enum Failure<E> {
    Sqlite(rusqlite::Error),
    Refused(E),
}

impl<E> From<rusqlite::Error> for Failure<E> {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// Gives SQLite's error the name under which a person can act on it.
pub(super) fn classify(
    path: &Path,
    doing: &'static str,
    source: rusqlite::Error,
) -> CheckpointError {
    let path = path.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            CheckpointError::Corrupt { path, source }
        }
        Some(ErrorCode::DiskFull) => CheckpointError::Full {
            path,
            doing,
            source,
        },
        Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            CheckpointError::NoAccess {
                path,
                doing,
                source,
            }
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => CheckpointError::Busy {
            path,
            doing,
            source,
        },
        _ => CheckpointError::Sqlite {
            path,
            doing,
            source,
        },
    }
}
