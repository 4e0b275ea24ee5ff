//! The only module that prints. stdout carries data that somebody may pipe on; progress, logs and
//! hints go to stderr. A closed pipe is not an error.
#![expect(clippy::print_stderr, reason = "this is the module that prints")]

use std::error::Error;
use std::fmt;
use std::io::{self, Write};

/// Shows an error with all its causes in one line: `this: that: the other`.
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(next) = cause {
            write!(f, ": {next}")?;
            cause = next.source();
        }
        Ok(())
    }
}

/// Writes a line of data to stdout.
///
/// # Errors
/// If stdout cannot be written to, except that a closed pipe counts as written: whoever closed it
/// wants no more.
pub fn data(line: impl fmt::Display) -> io::Result<()> {
    match writeln!(io::stdout().lock(), "{line}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Writes a line for the person at the terminal to stderr.
pub fn note(line: impl fmt::Display) {
    eprintln!("{line}");
}
