//! The `storage` directory and the private files in it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::platform;

/// Why the `storage` directory, or a file in it, cannot be used.
#[derive(Debug, Error)]
pub enum StorageError {
    /// `storage`, or something above it, is no directory.
    #[error("the storage path {path} is not a directory; choose a directory or a new path")]
    NotADirectory {
        /// `storage` as configured.
        path: PathBuf,
    },
    /// `storage` is missing and cannot be made, or cannot be looked at.
    #[error("cannot use or create the storage directory {path}")]
    Directory {
        /// `storage` as configured.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// A file in `storage` cannot be opened for writing.
    #[error("cannot write {path}")]
    File {
        /// The file, inside of `storage`.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// `storage` lies on a file system that several machines may share.
    #[error(
        "the storage directory {path} lies on a network file system ({name}), where the state file \
         could be damaged without a trace; choose a directory on a local disk"
    )]
    Network {
        /// `storage` as configured.
        path: PathBuf,
        /// What the file system calls itself.
        name: &'static str,
    },
}

impl StorageError {
    /// What somebody should do, where the message does not say it already.
    pub fn mend(&self) -> Option<&'static str> {
        match self {
            Self::Directory { .. } | Self::File { .. } => Some(
                "the directory named by storage, and the files in it, must be writable for the \
                 user who runs this program",
            ),
            Self::NotADirectory { .. } | Self::Network { .. } => None,
        }
    }
}

/// Makes sure that `storage` is a directory on a local file system; a missing one is created for
/// this user alone (0700).
pub(super) fn prepare_directory(storage: &Path) -> Result<(), StorageError> {
    match fs::metadata(storage) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return Err(not_a_directory(storage)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => platform::private_folder()
            .recursive(true)
            .create(storage)
            .map_err(|source| directory(storage, source))?,
        Err(source) => return Err(directory(storage, source)),
    }
    refuse_network_file_system(storage)
}

/// Opens a file for reading and writing, for this user alone (0600) whatever the umask says;
/// its content stays as it is.
///
/// Never for the database: closing *any* descriptor of a file drops all POSIX locks that the
/// process holds on it, those of SQLite too.
pub(super) fn open_private(path: &Path) -> Result<File, StorageError> {
    let failed = |source| file(path, source);
    let file = platform::private_file()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(failed)?;
    platform::make_private(path).map_err(failed)?;
    Ok(file)
}

/// Creates an empty file for this user alone, or leaves an existing one unopened and takes away
/// what others may do with it. See [`open_private`] for why it is not opened.
pub(super) fn create_private(path: &Path) -> Result<(), StorageError> {
    let created = platform::private_file()
        .write(true)
        .create_new(true)
        .open(path);
    match created {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => return Err(file(path, source)),
    }
    platform::make_private(path).map_err(|source| file(path, source))
}

/// A WAL is unsafe there: its readers and writers must share memory and locks, which two machines
/// cannot and which these do not always offer even on one.
fn refuse_network_file_system(storage: &Path) -> Result<(), StorageError> {
    match platform::network_file_system(storage) {
        Ok(None) => Ok(()),
        Ok(Some(name)) => Err(StorageError::Network {
            path: storage.to_owned(),
            name,
        }),
        Err(source) => Err(directory(storage, source)),
    }
}

fn not_a_directory(path: &Path) -> StorageError {
    StorageError::NotADirectory {
        path: path.to_owned(),
    }
}

fn directory(path: &Path, source: io::Error) -> StorageError {
    if source.kind() == io::ErrorKind::NotADirectory {
        return not_a_directory(path);
    }
    StorageError::Directory {
        path: path.to_owned(),
        source,
    }
}

fn file(path: &Path, source: io::Error) -> StorageError {
    StorageError::File {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_network_file_system_is_named() {
        let error = StorageError::Network {
            path: "/mnt/share".into(),
            name: "nfs",
        };
        assert_eq!(
            error.to_string(),
            "the storage directory /mnt/share lies on a network file system (nfs), where the state \
             file could be damaged without a trace; choose a directory on a local disk"
        );
    }

    #[test]
    fn files_are_private_whatever_they_were() {
        let directory = tempfile::tempdir().unwrap();
        let storage = directory.path().join("a/b");
        prepare_directory(&storage).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&storage), 0o700);

        let path = storage.join("file");
        fs::write(&path, "text").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        create_private(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        drop(open_private(&path).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"text");
    }

    #[test]
    fn a_file_in_the_way_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        for path in [file.clone(), file.join("below")] {
            assert_eq!(
                prepare_directory(&path).unwrap_err().to_string(),
                format!(
                    "the storage path {} is not a directory; choose a directory or a new path",
                    path.display()
                )
            );
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_directory_that_takes_no_files_is_told() {
        // No user, root included, can make a file or a directory here.
        let file = Path::new("/proc/state.sqlite");
        assert_eq!(
            create_private(file).unwrap_err().to_string(),
            "cannot write /proc/state.sqlite"
        );
        assert_eq!(
            prepare_directory(Path::new("/proc/storage"))
                .unwrap_err()
                .to_string(),
            "cannot use or create the storage directory /proc/storage"
        );
    }
}
