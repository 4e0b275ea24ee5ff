//! Windows. Compiled for each release, and run by nobody yet.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::path::{Component, Path, PathBuf, Prefix, absolute};

use tokio::signal::windows::{
    CtrlBreak, CtrlC, CtrlClose, CtrlShutdown, ctrl_break, ctrl_c, ctrl_close, ctrl_shutdown,
};

/// How a sentence about a file begins for which [`others_may_read`] is true.
pub(crate) const OTHERS: &str = "other users may be able to read";

/// What ends that.
pub(crate) fn mend_rights(_path: &Path) -> String {
    "keep it in the profile folder of the user who runs this program, or see to the access rights \
     of its folder, which it cannot judge"
        .to_owned()
}

/// Whether it is a file of which nothing says that only this user may read it.
pub(crate) fn others_may_read(path: &Path, metadata: &Metadata) -> bool {
    metadata.is_file() && is_open_to_others(path)
}

/// Whether what is made here takes over rights of which the program knows nothing.
pub(crate) fn is_open_to_others(path: &Path) -> bool {
    let profile = std::env::var_os("USERPROFILE").filter(|profile| !profile.is_empty());
    let profile = profile.and_then(|profile| PathBuf::from(profile).canonicalize().ok());
    match (profile, true_path(path)) {
        (Some(profile), Some(path)) => !path.starts_with(profile),
        _ => true,
    }
}

/// Where it is, or the nearest folder above it that is there. Links are followed.
fn true_path(path: &Path) -> Option<PathBuf> {
    let path = absolute(path).ok()?;
    path.ancestors().find_map(|path| path.canonicalize().ok())
}

/// Creates what is missing with the rights of its folder.
pub(crate) fn private_file() -> OpenOptions {
    OpenOptions::new()
}

/// Creates a folder with the rights of the one above.
pub(crate) fn private_folder() -> DirBuilder {
    DirBuilder::new()
}

/// A file has the rights of its folder: see [`is_open_to_others`].
pub(crate) fn make_private(_path: &Path) -> io::Result<()> {
    Ok(())
}

/// The same.
pub(crate) fn make_public(_file: &File) -> io::Result<()> {
    Ok(())
}

/// There is nothing like it: NTFS writes names into its journal soon, at a time of its own.
pub(crate) fn sync_folder(_folder: &Path) -> io::Result<()> {
    Ok(())
}

/// A drive letter of a share leads to the share's own name.
pub(crate) fn network_file_system(folder: &Path) -> io::Result<Option<&'static str>> {
    let folder = folder.canonicalize()?;
    Ok(match folder.components().next() {
        Some(Component::Prefix(prefix)) => match prefix.kind() {
            Prefix::UNC(..) | Prefix::VerbatimUNC(..) => Some("a network share"),
            _ => None,
        },
        _ => None,
    })
}

/// The name of this machine; Windows gives it to every process.
pub(crate) fn host_name() -> String {
    let name = std::env::var_os("COMPUTERNAME").unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// The process has as many files and connections open as it may have.
pub(crate) fn is_out_of_files(error: &io::Error) -> bool {
    const ERROR_TOO_MANY_OPEN_FILES: i32 = 4;
    const WSAEMFILE: i32 = 10024;
    matches!(
        error.raw_os_error(),
        Some(ERROR_TOO_MANY_OPEN_FILES | WSAEMFILE)
    )
}

/// What asks the program to stop: two keys, the end of the console, and that of the system. The
/// system waits some seconds after the latter two, and then ends the process.
#[derive(Debug)]
pub(crate) struct Stops {
    interrupt: CtrlC,
    r#break: CtrlBreak,
    close: CtrlClose,
    shutdown: CtrlShutdown,
}

impl Stops {
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: ctrl_c()?,
            r#break: ctrl_break()?,
            close: ctrl_close()?,
            shutdown: ctrl_shutdown()?,
        })
    }

    /// Waits for one and names it. May be dropped.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            // Each may be dropped: what has come is not forgotten.
            _ = self.interrupt.recv() => "CTRL_C",
            _ = self.r#break.recv() => "CTRL_BREAK",
            _ = self.close.recv() => "CTRL_CLOSE",
            _ = self.shutdown.recv() => "CTRL_SHUTDOWN",
        }
    }
}

/// There is no SIGHUP.
#[derive(Debug)]
pub(crate) struct Hangups;

impl Hangups {
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self)
    }

    /// `None`, since none will come.
    pub(crate) async fn next(&mut self) -> Option<()> {
        None
    }
}

/// There is no systemd, so none of these.
#[derive(Debug)]
pub(crate) enum NotifySocket {}

impl NotifySocket {
    pub(crate) fn open(_name: &OsStr) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn send(&self, _text: &[u8]) -> io::Result<()> {
        match *self {}
    }
}
