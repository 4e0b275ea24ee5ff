//! What is wrong, or merely doubtful, in what the user has set.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;

/// Where a setting was made. Ordered as mistakes are listed: by line, then by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// A line of the configuration file, counted from one.
    File {
        /// The file, as the user named it.
        path: PathBuf,
        /// The line of the key.
        line: usize,
    },
    /// An environment variable, by name.
    Variable(String),
    /// A flag, with its dashes.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

/// One mistake: where, what was found there, what is allowed, what to do. Never shows a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Absent if the mistake is that something is nowhere.
    pub origin: Option<Origin>,
    /// The whole sentence, its origin included.
    pub text: String,
}

/// Every mistake of a configuration. Its text has one line for each: those of the file by line,
/// then variables, then flags, then what is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(Vec<Mistake>);

impl Mistakes {
    /// `None` if there are none.
    pub(crate) fn of(mut mistakes: Vec<Mistake>) -> Option<Self> {
        if mistakes.is_empty() {
            return None;
        }
        for mistake in &mut mistakes {
            in_one_line(&mut mistake.text);
        }
        mistakes
            .sort_by(|a, b| (a.origin.is_none(), &a.origin).cmp(&(b.origin.is_none(), &b.origin)));
        Some(Self(mistakes))
    }

    /// The mistakes in the order in which they are listed; at least one.
    pub fn list(&self) -> &[Mistake] {
        &self.0
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mistake) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            f.write_str(&mistake.text)?;
        }
        Ok(())
    }
}

impl Error for Mistakes {}

/// Keys, names of variables and paths may hold anything, line ends and commands to a terminal
/// included.
pub(super) fn in_one_line(text: &mut String) {
    if text.contains(char::is_control) {
        *text = text.replace(char::is_control, "\u{fffd}");
    }
}

/// Something that works but is probably not what the user wants. Never shows a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning(pub(crate) String);

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
