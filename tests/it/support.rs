//! What the integration tests share: the program under test, real servers for it to talk to, and
//! ways to wait.

pub(crate) mod elasticsearch;
pub(crate) mod faketeleport;
pub(crate) mod faults;
pub(crate) mod http;
pub(crate) mod journey;
pub(crate) mod listener;
pub(crate) mod program;
pub(crate) mod rig;
pub(crate) mod samples;
pub(crate) mod seen;
pub(crate) mod stand_ins;

use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::Instant;

/// How long [`wait_until`] waits. A server on a busy machine may take most of it; a test that is
/// right never does.
const LIMIT: Duration = Duration::from_secs(90);

/// Polls until `look` gives `Ok`; its `Err` says what is there instead.
///
/// # Panics
/// After [`LIMIT`], with what was seen last.
pub(crate) fn wait_until<T, S: Display>(what: &str, mut look: impl FnMut() -> Result<T, S>) -> T {
    let start = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) if start.elapsed() > LIMIT => {
                panic!("waited {LIMIT:?} until {what}; last seen: {seen}")
            }
            Err(_) => pause(),
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place that polls; a test's own thread runs nothing else"
)]
fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}

/// Says that a test is left out as this machine lacks something, or fails it where
/// `REQUIRE_ELASTICSEARCH=1` (set in CI) demands that nothing is left out. Always `None`, so that
/// `return require_or_skip(…)` ends whatever should have given a server.
pub(crate) fn require_or_skip<T>(missing: &str) -> Option<T> {
    let required = std::env::var_os("REQUIRE_ELASTICSEARCH").is_some_and(|value| value == "1");
    assert!(!required, "REQUIRE_ELASTICSEARCH=1, but: {missing}");
    let test = std::thread::current();
    let test = test.name().unwrap_or("a test");
    // Not eprintln: the test harness keeps what a passing test prints to itself.
    writeln!(std::io::stderr(), "skipped {test}: {missing}").expect("stderr takes a line");
    None
}

/// A new folder inside the target folder, deleted when dropped.
pub(crate) fn scratch(name: &str) -> TempDir {
    tempfile::Builder::new()
        .prefix(&format!("{name}-"))
        .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
        .expect("the target folder takes a new folder")
}

/// Where the scripts below `tests/` put what they build.
fn target() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("Cargo's folder for tests lies in the target folder")
}

/// A script of `tests/`, given as a path below it.
fn script(path: &str) -> Command {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut command = Command::new(tests.join(path));
    command
        .env("CARGO_TARGET_DIR", target())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The program `helm` or `promtool`. `None` where it cannot be had and need not be.
pub(crate) fn tool(name: &str) -> Option<PathBuf> {
    let built = script("tool/build").arg(name).output();
    script_answer(&built.expect("it can be run")).map(PathBuf::from)
}

/// A script's trimmed stdout; `None` where it says, by exit code 3, that this machine lacks
/// something and that may be.
///
/// # Panics
/// If the script failed in another way.
fn script_answer(output: &Output) -> Option<String> {
    let errors = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => Some(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        Some(3) => require_or_skip(errors.trim()),
        _ => panic!("{}: {errors}", output.status),
    }
}
