//! One process per role: an OS lock on a small file, which also says who holds it.
//!
//! The lock ends with the process, however that ends; the file stays and means nothing by itself.

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ring::digest;
use thiserror::Error;

use super::storage::{self, StorageError};
use crate::platform;

/// How often, and with what pause, a lock is tried that somebody holds. [`RoleLock::holder`] must
/// take it for an instant to see whether it is free, and a start must not fail because of that.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(20);

/// What a process does with the state file; there is one lock for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Following the audit log for ever.
    Daemon,
    /// One backfill, by its identity. Made by [`Role::backfill`].
    Backfill {
        /// A short hash of the identity, for the name of the lock file.
        hash: String,
    },
}

impl Role {
    /// The role of the backfill with this identity (times in milliseconds since 1970); different
    /// backfills may run side by side.
    pub fn backfill(cluster: &str, from_ms: i64, to_ms: i64, filters: &str) -> Self {
        // Debug quotes the texts: no two identities run into the same line.
        let identity = format!("{cluster:?} {from_ms} {to_ms} {filters:?}");
        let hash = digest::digest(&digest::SHA256, identity.as_bytes());
        let hex = hash.as_ref().iter().take(8).map(|b| format!("{b:02x}"));
        Self::Backfill {
            hash: hex.collect(),
        }
    }

    fn of_backfill_file(name: &str) -> Option<Self> {
        let hash = name.strip_prefix("backfill-")?.strip_suffix(".lock")?;
        let hash = hash.to_owned();
        Some(Self::Backfill { hash })
    }

    fn file_name(&self) -> String {
        match self {
            Self::Daemon => "daemon.lock".to_owned(),
            Self::Backfill { hash } => format!("backfill-{hash}.lock"),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Daemon => f.write_str("daemon"),
            Self::Backfill { .. } => f.write_str("run of this backfill"),
        }
    }
}

/// Who holds a lock, as far as the lock file tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holder {
    /// Its process id, as seen on its own host or in its own container.
    pub pid: Option<u32>,
    /// The name of its host or container.
    pub host: Option<String>,
}

impl Holder {
    /// Who we are.
    pub fn this_process() -> Self {
        Self {
            pid: Some(std::process::id()),
            host: Some(platform::host_name()),
        }
    }

    fn parse(text: &str) -> Self {
        let value = |key| text.lines().find_map(|line| line.strip_prefix(key));
        Self {
            pid: value("pid ").and_then(|pid| pid.parse().ok()),
            host: value("host ").map(str::to_owned),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "process {pid}")?,
            None => f.write_str("an unknown process")?,
        }
        match &self.host {
            Some(host) => write!(f, " on {host}"),
            None => Ok(()),
        }
    }
}

/// Why a role cannot be taken.
#[derive(Debug, Error)]
pub enum LockError {
    /// The `storage` directory or the lock file in it cannot be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Another process has the role.
    #[error(
        "another {role} already works in {storage}: {holder}; stop it first, or give each its own \
         storage directory"
    )]
    Held {
        /// The role that was asked for.
        role: Role,
        /// `storage` as configured.
        storage: PathBuf,
        /// Who has it.
        holder: Holder,
    },
    /// The operating system would not say whether the lock is free.
    #[error("cannot lock {path}")]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
}

/// A role that this process has for as long as the value lives.
#[derive(Debug)]
#[must_use = "the role is given back when this is dropped"]
pub struct RoleLock {
    file: File,
}

impl RoleLock {
    /// Takes a role in `storage`, which is created if missing. Blocks for 0.1 s at most.
    ///
    /// # Errors
    /// If another process, or another value of this type in the same process, has it; if the lock
    /// file cannot be written.
    pub fn acquire(storage: &Path, role: &Role) -> Result<Self, LockError> {
        storage::prepare_directory(storage)?;
        let path = storage.join(role.file_name());
        let failed = |source| LockError::Lock {
            path: path.clone(),
            source,
        };
        let mut file = storage::open_private(&path)?;
        for attempt in 1.. {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if attempt < TRIES => {
                    std::thread::park_timeout(PAUSE);
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(LockError::Held {
                        role: role.clone(),
                        storage: storage.to_owned(),
                        holder: read_holder(&mut file),
                    });
                }
                Err(TryLockError::Error(source)) => return Err(failed(source)),
            }
        }
        let Holder { pid, host } = Holder::this_process();
        let text = format!(
            "pid {}\nhost {}\n",
            pid.unwrap_or_default(),
            host.unwrap_or_default()
        );
        file.set_len(0).map_err(failed)?;
        file.write_all(text.as_bytes()).map_err(failed)?;
        Ok(Self { file })
    }

    /// Takes every role that any process has ever had in `storage`, so that nobody works there.
    ///
    /// # Errors
    /// As [`RoleLock::acquire`], for the first that is held.
    pub(super) fn acquire_all(storage: &Path) -> Result<Vec<Self>, LockError> {
        let mut held = vec![Self::acquire(storage, &Role::Daemon)?];
        let failed = |source| LockError::Lock {
            path: storage.to_owned(),
            source,
        };
        for entry in fs::read_dir(storage).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if let Some(role) = name.to_str().and_then(Role::of_backfill_file) {
                held.push(Self::acquire(storage, &role)?);
            }
        }
        Ok(held)
    }

    /// Tells who has a role in `storage` now; `None` if nobody has.
    ///
    /// # Errors
    /// If there is a lock file and it cannot be read or tried.
    pub fn holder(storage: &Path, role: &Role) -> Result<Option<Holder>, LockError> {
        let path = storage.join(role.file_name());
        let failed = |source| LockError::Lock {
            path: path.clone(),
            source,
        };
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed(source)),
        };
        // Shared, so that two who look do not take each other for the holder.
        match file.try_lock_shared() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => Ok(Some(read_holder(&mut file))),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

impl Drop for RoleLock {
    fn drop(&mut self) {
        // Who is refused in the instant before the next holder has written its name shall not be
        // told ours. Should it fail, the text is merely old: the lock itself ends with the file.
        self.file.set_len(0).ok();
    }
}

/// Unknown if the file cannot be read: a lock of Windows keeps others from its content, too.
fn read_holder(file: &mut File) -> Holder {
    let mut text = Vec::new();
    let read = file.rewind();
    match read.and_then(|()| file.take(1024).read_to_end(&mut text)) {
        Ok(_) => Holder::parse(&String::from_utf8_lossy(&text)),
        Err(_) => Holder::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_and_told_who_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let storage = directory.path().join("new");
        let first = RoleLock::acquire(&storage, &Role::Daemon).unwrap();
        let me = Holder::this_process();
        let (pid, host) = (std::process::id(), me.host.clone().unwrap());
        assert!(!host.is_empty());

        assert_eq!(
            RoleLock::acquire(&storage, &Role::Daemon)
                .unwrap_err()
                .to_string(),
            format!(
                "another daemon already works in {}: process {pid} on {host}; stop it first, or \
                 give each its own storage directory",
                storage.display()
            )
        );
        assert_eq!(RoleLock::holder(&storage, &Role::Daemon).unwrap(), Some(me));

        drop(first);
        assert_eq!(RoleLock::holder(&storage, &Role::Daemon).unwrap(), None);
        drop(RoleLock::acquire(&storage, &Role::Daemon).unwrap());
    }

    #[test]
    fn each_backfill_has_its_own_role() {
        let directory = tempfile::tempdir().unwrap();
        let roles = [
            Role::Daemon,
            Role::backfill("a", 0, 1, ""),
            Role::backfill("a", 0, 1, "user.login"),
            Role::backfill("a", 0, 2, ""),
        ];
        let held: Vec<_> = roles
            .iter()
            .map(|role| RoleLock::acquire(directory.path(), role).unwrap())
            .collect();
        for role in &roles {
            assert!(RoleLock::holder(directory.path(), role).unwrap().is_some());
        }
        drop(held);
        assert_eq!(
            Role::backfill("a", 0, 1, "").to_string(),
            "run of this backfill"
        );
    }

    #[test]
    fn a_lock_file_without_a_name_is_no_fault() {
        assert_eq!(Holder::parse("").to_string(), "an unknown process");
        assert_eq!(
            Holder::parse("pid x\nhost h").to_string(),
            "an unknown process on h"
        );
        assert_eq!(
            Holder::parse("pid 7\nhost a b\n").to_string(),
            "process 7 on a b"
        );
    }
}
