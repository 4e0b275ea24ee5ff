//! The `storage` directory and the private files in it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

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
        Err(error) if error.kind() == io::ErrorKind::NotFound => DirBuilder::new()
            .recursive(true)
            .mode(0o700)
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
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    make_private(path)?;
    Ok(file)
}

/// Creates an empty file for this user alone, or leaves an existing one unopened and takes away
/// what others may do with it. See [`open_private`] for why it is not opened.
pub(super) fn create_private(path: &Path) -> Result<(), StorageError> {
    let created = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    match created {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => return Err(file(path, source)),
    }
    make_private(path)
}

/// A file of another owner, to which a group gives access (a volume with an `fsGroup`), keeps its
/// mode: only the owner may change it.
fn make_private(path: &Path) -> Result<(), StorageError> {
    let failed = |source| file(path, source);
    let mode = fs::metadata(path).map_err(failed)?.permissions().mode();
    if mode & 0o777 == 0o600 {
        return Ok(());
    }
    match fs::set_permissions(path, fs::Permissions::from_mode(0o600)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other.map_err(failed),
    }
}

#[cfg(target_os = "linux")]
fn refuse_network_file_system(storage: &Path) -> Result<(), StorageError> {
    let status = rustix::fs::statfs(storage).map_err(|errno| directory(storage, errno.into()))?;
    #[allow(
        clippy::cast_possible_truncation,
        reason = "the number has 32 bits; the type that carries it differs between machines"
    )]
    let magic = status.f_type as u32;
    match network_file_system(magic) {
        Some(name) => Err(StorageError::Network {
            path: storage.to_owned(),
            name,
        }),
        None => Ok(()),
    }
}

#[cfg(not(target_os = "linux"))]
fn refuse_network_file_system(_storage: &Path) -> Result<(), StorageError> {
    Ok(())
}

/// The name of a file system on which a WAL is unsafe: its readers and writers must share memory
/// and locks, which two machines cannot and which these do not always offer even on one.
///
/// The numbers are those of Linux' `statfs(2)`. FUSE is not among them: it hides sshfs behind the
/// same number as the root of a rootless container.
#[cfg(any(target_os = "linux", test))]
fn network_file_system(magic: u32) -> Option<&'static str> {
    Some(match magic {
        0x6969 => "nfs",
        0x517B => "smb",
        0xFF53_4D42 => "cifs",
        0xFE53_4D42 => "smb2",
        0x0102_1997 => "9p",
        0x00C3_6400 => "ceph",
        0x5346_414F | 0x6B41_4653 => "afs",
        0x7375_7245 => "coda",
        0x564C => "ncp",
        0x0BD0_0BD0 => "lustre",
        0x4750_4653 => "gpfs",
        0x1983_0326 => "beegfs",
        0x0116_1970 => "gfs2",
        0x7461_636F => "ocfs2",
        0x786F_4256 => "vboxsf",
        _ => return None,
    })
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
    use super::*;

    #[test]
    fn network_file_systems_are_told_from_local_ones() {
        for (magic, name) in [(0x6969, "nfs"), (0xFF53_4D42, "cifs"), (0x0102_1997, "9p")] {
            assert_eq!(network_file_system(magic), Some(name));
        }
        // ext4, xfs, btrfs, tmpfs, overlay, zfs, f2fs, FUSE
        for magic in [
            0xEF53,
            0x5846_5342,
            0x9123_683E,
            0x0102_1994,
            0x794C_7630,
            0x2FC1_2FC1,
            0xF2F5_2010,
            0x6573_5546,
        ] {
            assert_eq!(network_file_system(magic), None);
        }
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
