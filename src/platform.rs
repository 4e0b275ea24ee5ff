//! What each operating system has in a way of its own: who may read a file, what asks the program
//! to stop, what the machine is called. The rest of the program asks here and does not care on which it runs.
//!
//! **Who may read a file** is a matter of its mode on Unix, and the program sets that. On Windows a
//! new file takes over the access rights of its folder, and asking for them takes calls that need
//! `unsafe`. So there the program knows one thing, from the paths alone: the folder of a user's
//! profile shuts out other users unless somebody has changed that. Of every other place it says
//! that it cannot tell.

#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

use std::fs::File;
use std::io;
use std::path::Path;

#[cfg(unix)]
use self::unix as system;
#[cfg(windows)]
use self::windows as system;
use crate::output;

pub(crate) use self::system::{
    Hangups, NotifySocket, OTHERS, Stops, host_name, is_open_to_others, is_out_of_files,
    make_private, make_public, mend_rights, network_file_system, others_may_read, private_file,
    private_folder, sync_folder,
};

/// Creates a file without secrets, which must not exist: all may read it, and only this user may write.
/// What is made to be handed on must not depend on the umask of whoever has made it.
pub(crate) fn create_public(path: &Path) -> io::Result<File> {
    // Never writable for others, not even until its mode is set.
    let file = private_file().write(true).create_new(true).open(path)?;
    make_public(&file)?;
    Ok(file)
}

/// Creates a file for this user alone, which must not exist, and says so where that cannot be known.
pub(crate) fn create_private(path: &Path) -> io::Result<File> {
    let file = private_file().write(true).create_new(true).open(path)?;
    if others_may_read(path, &file.metadata()?) {
        let (path, mend) = (path.display(), mend_rights(path));
        output::note(format_args!("warning: {OTHERS} {path}; {mend}"));
    }
    Ok(file)
}
