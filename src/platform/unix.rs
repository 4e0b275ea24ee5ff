//! Linux, macOS and their like.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

use rustix::io::Errno;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How a sentence about a file begins for which [`others_may_read`] is true.
pub(crate) const OTHERS: &str = "other users can read";

/// What ends that.
pub(crate) fn mend_rights(path: &Path) -> String {
    format!("chmod 600 {}", path.display())
}

/// Whether more users than necessary may read the file: everybody, or the group of a file that is
/// our own. A group that gives *us* the right to somebody else's file is as it should be.
pub(crate) fn others_may_read(_path: &Path, metadata: &Metadata) -> bool {
    let mode = metadata.mode();
    let is_ours = metadata.uid() == rustix::process::geteuid().as_raw();
    metadata.is_file() && (mode & 0o004 != 0 || (mode & 0o040 != 0 && is_ours))
}

/// Whether others may read what this module makes private, in this folder: its mode does not matter.
pub(crate) fn is_open_to_others(_folder: &Path) -> bool {
    false
}

/// Creates what is missing for this user alone (0600), less what the umask takes away.
pub(crate) fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

/// Creates a folder for this user alone (0700).
pub(crate) fn private_folder() -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.mode(0o700);
    builder
}

/// Takes away what others may do with a file, whatever the umask said.
///
/// A file of another owner, to which a group gives access (a volume with an `fsGroup`), keeps its
/// mode: only the owner may change it.
pub(crate) fn make_private(path: &Path) -> io::Result<()> {
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & 0o777 == 0o600 {
        return Ok(());
    }
    match fs::set_permissions(path, Permissions::from_mode(0o600)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other,
    }
}

/// Lets all read a file that is ours, and nobody else write it (0644), whatever the umask said. Where a
/// file system has no modes of its own, as those of Windows, that file keeps what it has.
pub(crate) fn make_public(file: &File) -> io::Result<()> {
    match file.set_permissions(Permissions::from_mode(0o644)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other,
    }
}

/// Makes what was renamed or removed in a folder outlast a power failure.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// The name of the file system on which the folder lies, if several machines may share it.
#[cfg(target_os = "linux")]
pub(crate) fn network_file_system(folder: &Path) -> io::Result<Option<&'static str>> {
    let status = rustix::fs::statfs(folder)?;
    #[allow(
        clippy::cast_possible_truncation,
        reason = "the number has 32 bits; the type that carries it differs between machines"
    )]
    let magic = status.f_type as u32;
    Ok(shared_by_machines(magic))
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn network_file_system(_folder: &Path) -> io::Result<Option<&'static str>> {
    Ok(None)
}

/// The numbers are those of Linux' `statfs(2)`. FUSE is not among them: it hides sshfs behind the
/// same number as the root of a rootless container.
#[cfg(any(target_os = "linux", test))]
fn shared_by_machines(magic: u32) -> Option<&'static str> {
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

/// The name of this host or container.
pub(crate) fn host_name() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}

/// The process has as many files and connections open as it may have, or the system has.
pub(crate) fn is_out_of_files(error: &io::Error) -> bool {
    let full = [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error);
    error
        .raw_os_error()
        .is_some_and(|code| full.contains(&code))
}

/// What asks the program to stop: SIGTERM and SIGINT.
#[derive(Debug)]
pub(crate) struct Stops {
    terminate: Signal,
    interrupt: Signal,
}

impl Stops {
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for one and names it. May be dropped.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            // Either may be dropped: a signal that has come is not forgotten.
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// SIGHUP, which without this ends a process.
#[derive(Debug)]
pub(crate) struct Hangups(Signal);

impl Hangups {
    pub(crate) fn listen() -> io::Result<Self> {
        signal(SignalKind::hangup()).map(Self)
    }

    /// `None` if none will come any more.
    pub(crate) async fn next(&mut self) -> Option<()> {
        self.0.recv().await
    }
}

/// Where systemd listens.
#[derive(Debug)]
pub(crate) struct NotifySocket {
    socket: UnixDatagram,
    address: SocketAddr,
}

impl NotifySocket {
    pub(crate) fn open(name: &OsStr) -> io::Result<Self> {
        let address = match name.as_bytes() {
            #[cfg(target_os = "linux")]
            [b'@', rest @ ..] => {
                use std::os::linux::net::SocketAddrExt;
                SocketAddr::from_abstract_name(rest)?
            }
            _ => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, address })
    }

    /// Never waits.
    pub(crate) fn send(&self, text: &[u8]) -> io::Result<()> {
        self.socket.send_to_addr(text, &self.address).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_told_from_local_ones() {
        for (magic, name) in [(0x6969, "nfs"), (0xFF53_4D42, "cifs"), (0x0102_1997, "9p")] {
            assert_eq!(shared_by_machines(magic), Some(name));
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
            assert_eq!(shared_by_machines(magic), None);
        }
    }
}
