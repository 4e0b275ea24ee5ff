//! Runs the program under measurement, and says what a process has cost.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Days, NaiveTime, Utc};

/// What one run of the program took.
#[derive(Clone, Copy)]
pub(crate) struct Cost {
    /// By the clock, from its start to its end.
    pub(crate) elapsed: Duration,
    /// On the processors, user and system.
    pub(crate) cpu_seconds: f64,
    /// The most memory that was resident at once.
    pub(crate) peak_bytes: u64,
}

/// Where the program reads and writes.
pub(crate) struct Route<'a> {
    /// host:port of the Auth Service.
    pub(crate) teleport: &'a str,
    pub(crate) identity: &'a Path,
    /// host:port of Elasticsearch.
    pub(crate) elasticsearch: &'a str,
    /// Lines of `[forward.elasticsearch]`: credentials and what is to be tried.
    pub(crate) settings: &'a str,
}

/// Days before today from whose start everything is read; the logs made here are shorter.
const DAYS_BACK: u64 = 10;

/// Reads the whole log once, with an empty state, and no recordings.
pub(crate) fn run(route: &Route<'_>) -> Result<Cost> {
    run_with(route, "sessions = false")
}

/// The same with other lines about recordings.
pub(crate) fn run_with(route: &Route<'_>, sessions: &str) -> Result<Cost> {
    let folder = tempfile::tempdir()?;
    let config = write_config(folder.path(), route, sessions)?;
    let began = Instant::now();
    let mut child = Command::new(program())
        .arg("--config")
        .arg(config)
        .args(["start", "--exit-on-last-event", "--log-level", "warn"])
        .stdout(Stdio::null())
        .spawn()?;
    let mut peak_bytes = 0;
    let status = loop {
        // It only ever grows, and is gone with the process: what is seen last misses little.
        peak_bytes = resident_peak(child.id()).unwrap_or(peak_bytes);
        if has_ended(child.id()) {
            break cpu_and_wait(&mut child)?;
        }
        thread::sleep(Duration::from_millis(2));
    };
    let (cpu_seconds, succeeded) = status;
    ensure!(succeeded, "the program has failed");
    Ok(Cost {
        elapsed: began.elapsed(),
        cpu_seconds,
        peak_bytes,
    })
}

/// The program in the same profile as this benchmark.
pub(crate) fn program() -> &'static str {
    env!("CARGO_BIN_EXE_teleport-event-indexer")
}

/// Writes a configuration whose state lies beside it.
fn write_config(folder: &Path, route: &Route<'_>, sessions: &str) -> Result<PathBuf> {
    let start: DateTime<Utc> = Utc::now()
        .checked_sub_days(Days::new(DAYS_BACK))
        .context("today is after 1970")?
        .date_naive()
        .and_time(NaiveTime::MIN)
        .and_utc();
    let path = folder.join("config.toml");
    let text = format!(
        "storage = {:?}\nstart-time = \"{}\"\n{sessions}\n[teleport]\naddr = {:?}\nidentity = {:?}\n\
         [forward.elasticsearch]\nhosts = [\"http://{}\"]\n{}\n",
        folder.join("state"),
        start.to_rfc3339(),
        route.teleport,
        route.identity,
        route.elasticsearch,
        route.settings,
    );
    write_secret(&path, &text)?;
    Ok(path)
}

/// Writes a file that is for this user alone.
pub(crate) fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    options.open(path)?.write_all(text.as_bytes())
}

fn cpu_and_wait(child: &mut Child) -> io::Result<(f64, bool)> {
    // A process that has ended keeps its times until it is waited for.
    let cpu = cpu_seconds(child.id())?;
    Ok((cpu, child.wait()?.success()))
}

/// Processor time of a process so far.
pub(crate) fn cpu_seconds(pid: u32) -> io::Result<f64> {
    /// Linux counts in hundredths of a second, whatever the machine.
    const TICKS_PER_SECOND: f64 = 100.0;

    let fields = stat(pid)?;
    let ticks = |n: usize| fields.get(n).and_then(|field| field.parse::<u32>().ok());
    match (ticks(11), ticks(12)) {
        (Some(user), Some(system)) => Ok(f64::from(user + system) / TICKS_PER_SECOND),
        _ => Err(io::Error::other("/proc/PID/stat has no times")),
    }
}

fn has_ended(pid: u32) -> bool {
    stat(pid).is_ok_and(|fields| fields.first().is_some_and(|state| state == "Z"))
}

/// The fields of /proc/PID/stat behind the name, which may hold spaces.
fn stat(pid: u32) -> io::Result<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = text
        .rsplit_once(") ")
        .ok_or_else(|| io::Error::other("/proc/PID/stat has no name"))?;
    Ok(fields.split(' ').map(str::to_owned).collect())
}

fn resident_peak(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}
