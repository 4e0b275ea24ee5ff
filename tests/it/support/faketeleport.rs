//! An Auth Service and a Proxy Service built on Teleport's own API library (see
//! `tests/faketeleport/README.md`, which has all flags, requests and faults).

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use super::http;
use super::program::{Output, Running};
use super::{scratch, script, script_answer, target, wait_until};

/// A running Auth Service. Dropped, it is killed.
pub(crate) struct FakeTeleport {
    directory: TempDir,
    /// What it said when it was ready: its addresses by name.
    ready: Value,
    running: Running,
}

impl FakeTeleport {
    /// Starts it with these flags beside those for its folder and addresses. `None` where it cannot
    /// be had and need not be.
    ///
    /// # Panics
    /// If it does not start, or [`super::require_or_skip`] says so.
    pub(crate) fn start(args: &[&str]) -> Option<Self> {
        script_answer(
            &script("faketeleport/build")
                .output()
                .expect("it can be run"),
        )?;
        let directory = scratch("faketeleport");
        let ready = directory.path().join("ready.json");
        let mut command = Command::new(target().join("faketeleport/faketeleport"));
        command
            .args(["--addr", "127.0.0.1:0", "--ctrl", "127.0.0.1:0"])
            .arg("--dir")
            .arg(directory.path())
            .arg("--ready")
            .arg(&ready)
            .args(args);
        let mut running = Running::start(command);
        let ready = wait_until("faketeleport is ready", || {
            match std::fs::read_to_string(&ready) {
                Ok(text) => Ok(text),
                Err(_) if running.is_running() => Err("it runs, but is not ready"),
                Err(_) => panic!("faketeleport ended: {}", running.stderr()),
            }
        });
        Some(Self {
            ready: serde_json::from_str(&ready).expect("it writes JSON"),
            directory,
            running,
        })
    }

    /// Starts it on the events of a file, one JSON object a line.
    pub(crate) fn start_on(events: &Path, args: &[&str]) -> Option<Self> {
        let events = events.to_str().expect("the path is UTF-8");
        Self::start(&[&["--jsonl", events], args].concat())
    }

    /// host:port of the Auth Service.
    pub(crate) fn addr(&self) -> &str {
        self.address("auth")
    }

    /// host:port by name: `auth`, `ctrl`; `proxy`, `alb`, `ssh` where it was told to serve them.
    pub(crate) fn address(&self, name: &str) -> &str {
        self.ready[name]
            .as_str()
            .unwrap_or_else(|| panic!("no {name} in {}", self.ready))
    }

    /// Its folder: identities and CAs.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The identity file of a client with all rights.
    pub(crate) fn identity(&self) -> PathBuf {
        self.directory().join("identity")
    }

    fn control(&self, method: &str, path: &str, body: &[u8]) -> http::Answer {
        http::request(self.address("ctrl"), method, path, &[], body)
            .unwrap_or_else(|error| panic!("{method} {path}: {error}"))
            .success()
    }

    fn lines(&self, method: &str, path: &str) -> Vec<String> {
        let answer = self.control(method, path, b"");
        answer.text().lines().map(str::to_owned).collect()
    }

    /// What it has served, counted.
    pub(crate) fn stats(&self) -> Value {
        self.control("GET", "/stats", b"").json()
    }

    /// The ids of all events, in order of time.
    pub(crate) fn uids(&self) -> Vec<String> {
        self.lines("GET", "/uids")
    }

    /// All events, in order of time.
    pub(crate) fn events_jsonl(&self) -> Vec<Value> {
        self.lines("GET", "/events.jsonl")
            .iter()
            .map(|line| serde_json::from_str(line).expect("an event is JSON"))
            .collect()
    }

    /// Session, index, id and type of every recorded event, by tabs.
    pub(crate) fn session_uids(&self) -> Vec<String> {
        self.lines("GET", "/session-uids")
    }

    /// Adds events, by a query such as `n=5&days_ago=1`; their ids.
    pub(crate) fn append(&self, query: &str) -> Vec<String> {
        self.lines("POST", &format!("/append?{query}"))
    }

    /// Sets the faults that the object names; `"reset": true` clears the others.
    pub(crate) fn faults(&self, faults: &Value) {
        self.control("POST", "/faults", faults.to_string().as_bytes());
    }

    /// Breaks all connections; how many there were.
    pub(crate) fn kill_connections(&self) -> usize {
        let answer = self.control("POST", "/kill-conns", b"");
        answer.text().trim().parse().expect("it answers a number")
    }

    /// Ends it in order; its statistics are the output.
    pub(crate) fn quit(self) -> Output {
        self.control("POST", "/quit", b"");
        self.running.wait()
    }

    /// Reads the log with Teleport's own client and compares it, id by id, with what there is.
    pub(crate) fn reference_client(&self, operations: &str) -> Output {
        let mut command = Command::new(target().join("faketeleport/refclient"));
        command
            .args(["--addr", self.addr(), "--ctrl", self.address("ctrl")])
            .arg("--identity")
            .arg(self.identity())
            .args(["--ops", operations]);
        Running::start(command).wait()
    }
}
