//! Secrets that lie in files of their own.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::platform;
use crate::secret::Secret;

/// More than any key or password has; keeps a wrong path (a device, a log) from being read whole.
const MOST_BYTES: u64 = 64 * 1024;

/// Why a secret cannot be taken from a file.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// The system says why.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// There may be text below.
    #[error("its first line is empty")]
    Empty,
}

/// The first line of the file, and whether other users may read it ([`platform::others_may_read`]).
pub(super) fn read(path: &Path) -> Result<(Secret, bool), SecretFileError> {
    let file = File::open(path).map_err(SecretFileError::Read)?;
    let metadata = file.metadata().map_err(SecretFileError::Read)?;
    let mut text = String::new();
    file.take(MOST_BYTES)
        .read_to_string(&mut text)
        .map_err(SecretFileError::Read)?;
    match text.lines().next() {
        None | Some("") => Err(SecretFileError::Empty),
        Some(line) => Ok((
            Secret::new(line),
            platform::others_may_read(path, &metadata),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::output::Chain;

    #[test]
    fn the_first_line_counts_and_the_mode_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        for (text, mode, expected) in [
            ("hunter2\n", 0o600, Ok(("hunter2", false))),
            ("hunter2\r\nmore", 0o644, Ok(("hunter2", true))),
            (" hunter 2 ", 0o640, Ok((" hunter 2 ", true))),
            ("\nhunter2", 0o600, Err("its first line is empty")),
            ("", 0o600, Err("its first line is empty")),
        ] {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let found = read(&path).map_err(|error| error.to_string());
            let expected = expected
                .map(|(secret, exposed)| (Secret::new(secret), exposed))
                .map_err(str::to_owned);
            assert_eq!(found, expected);
        }
        let error = read(&directory.path().join("none")).unwrap_err();
        assert_eq!(
            Chain(&error).to_string(),
            "it cannot be read: No such file or directory (os error 2)"
        );
    }
}
