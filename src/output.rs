//! The only module that prints. stdout carries data that somebody may pipe on; progress, logs and
//! hints go to stderr. A closed pipe is not an error.

use std::error::Error;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// What to do where the system gives no more file descriptors.
pub const RAISE_OPEN_FILES: &str =
    "raise the limit of open files: LimitNOFILE= of a systemd unit, `ulimit -n` of a shell";

/// Shows an error with all its causes in one line: `this: that: the other`.
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut cause = self.0.source();
        while let Some(next) = cause {
            // Some libraries repeat the cause in their own words, or are repeated by it; once is
            // enough.
            let words = next.to_string();
            if !said.ends_with(&words) && !words.ends_with(&said) {
                write!(f, ": {words}")?;
                said = words;
            }
            cause = next.source();
        }
        Ok(())
    }
}

/// Whether somebody still reads what goes to stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// Written, or so the system says.
    There,
    /// The pipe is closed: whoever closed it wants no more.
    Gone,
}

/// Writes data to stdout as it is.
///
/// # Errors
/// If stdout cannot be written to; a closed pipe is no error.
pub fn raw_data(bytes: &[u8]) -> io::Result<Reader> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(Reader::There),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => {
            let words = format!("cannot write to stdout: {error}");
            Err(io::Error::new(error.kind(), words))
        }
    }
}

/// Writes a line of data to stdout.
///
/// # Errors
/// If stdout cannot be written to; a closed pipe is no error.
pub fn data(line: impl fmt::Display) -> io::Result<Reader> {
    raw_data(format!("{line}\n").as_bytes())
}

/// Writes a line for the person at the terminal to stderr.
pub fn note(line: impl fmt::Display) {
    // If even stderr is closed there is nowhere to say so.
    suspend(|| writeln!(io::stderr().lock(), "{line}").unwrap_or_default());
}

/// Whether stderr is a terminal whose user wants colours.
pub fn is_colourful() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The bar on the terminal; at most one. Whoever writes to stderr lifts it for the moment.
static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

fn suspend<T>(print: impl FnOnce() -> T) -> T {
    let bar = BAR.lock().unwrap_or_else(PoisonError::into_inner);
    match &*bar {
        Some(bar) => bar.suspend(print),
        None => print(),
    }
}

/// Takes one line of the log and writes it to stderr when dropped.
#[derive(Debug, Default)]
pub struct LogWriter(Vec<u8>);

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        // There is nowhere to say that the log cannot be written.
        suspend(|| io::stderr().lock().write_all(&self.0).unwrap_or_default());
    }
}

/// How far something has come: a bar on a terminal, a plain line now and then elsewhere.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    last_line: tokio::time::Instant,
}

/// Without a terminal there is a line this often.
const LINE_EVERY: Duration = Duration::from_secs(10);

impl Progress {
    /// Shows progress in thousandths.
    pub fn new() -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(1000);
            let colour = if is_colourful() { ".cyan" } else { "" };
            let template = format!("{{bar:30{colour}}} {{percent:>3}} % {{msg}}");
            if let Ok(style) = ProgressStyle::with_template(&template) {
                bar.set_style(style);
            }
            bar
        });
        BAR.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone_from(&bar);
        Self {
            bar,
            last_line: tokio::time::Instant::now(),
        }
    }

    /// Says how far it has come.
    pub fn show(&mut self, thousandths: u64, message: impl fmt::Display) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(thousandths.min(1000));
                bar.set_message(message.to_string());
            }
            None if self.last_line.elapsed() >= LINE_EVERY => {
                self.last_line = tokio::time::Instant::now();
                note(format_args!("{} %, {message}", thousandths.min(1000) / 10));
            }
            None => {}
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = BAR.lock().unwrap_or_else(PoisonError::into_inner).take() {
            bar.finish_and_clear();
        }
    }
}
