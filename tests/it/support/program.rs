//! Programs that a test runs: what they print can be read while they run, and none of them outlives
//! the test process.

use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tempfile::TempDir;

use super::faults::Faults;
use super::{scratch, wait_until};

/// The program under test, with a folder of its own, which is its working folder too.
pub(crate) struct Indexer {
    directory: TempDir,
    environment: Vec<(String, String)>,
}

impl Indexer {
    pub(crate) fn new() -> Self {
        Self {
            directory: scratch("indexer"),
            environment: Vec::new(),
        }
    }

    /// The folder: for the configuration, the state, and what the program writes.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Writes a file into the folder; its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory().join(name);
        std::fs::write(&path, text).expect("the folder takes a file");
        path
    }

    /// Sets an environment variable for all runs from now on.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same for a program that is part of something.
    pub(crate) fn set_env(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Lets faults of the system befall all runs from now on.
    pub(crate) fn befall(&mut self) -> Faults {
        let faults = Faults::new(self.directory());
        let environment = faults.environment();
        let environment = environment.map(|(name, value)| (name.to_owned(), value));
        self.environment.extend(environment);
        faults
    }

    /// Runs the program to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.spawn(args).wait()
    }

    /// Starts the program.
    pub(crate) fn spawn(&self, args: &[&str]) -> Running {
        self.spawn_through(&[], args)
    }

    /// Starts it by another program, which these words call: `env`, `unshare`, …
    pub(crate) fn spawn_through(&self, words: &[&str], args: &[&str]) -> Running {
        let program = env!("CARGO_BIN_EXE_teleport-event-indexer");
        let words = [words, &[program], args].concat();
        let mut command = Command::new(words[0]);
        for (name, _) in std::env::vars_os() {
            // What the developer has set for another run must not reach this one.
            let text = name.to_string_lossy().to_ascii_uppercase();
            let ours = [
                "EVENT_INDEXER_",
                "FDFWD_",
                "RUST_LOG",
                "SSL_CERT_",
                "TELEPORT_",
            ];
            if ours.iter().any(|prefix| text.starts_with(prefix)) || text.ends_with("_PROXY") {
                command.env_remove(&name);
            }
        }
        // Programs of many tests run at once, and there is one address by default.
        if args.first() == Some(&"start") {
            command.env("EVENT_INDEXER_LISTEN_ADDR", "off");
        }
        command
            .args(&words[1..])
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(self.directory());
        Running::start(command)
    }
}

/// What a program left behind.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// The exit code; none if a signal ended it.
    pub(crate) code: Option<i32>,
    /// The signal that ended it.
    pub(crate) signal: Option<i32>,
}

/// A program that was started. Dropped, it is killed.
pub(crate) struct Running {
    child: Child,
    leash: Leash,
    stdout: Captured,
    stderr: Captured,
}

impl Running {
    /// # Panics
    /// If there is no such program.
    pub(crate) fn start(mut command: Command) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Self {
            leash: Leash::on(child.id()),
            stdout: Captured::from(child.stdout.take().expect("stdout is piped")),
            stderr: Captured::from(child.stderr.take().expect("stderr is piped")),
            child,
        }
    }

    /// What it has printed to stdout so far.
    pub(crate) fn stdout(&self) -> String {
        self.stdout.so_far()
    }

    /// What it has printed to stderr so far.
    pub(crate) fn stderr(&self) -> String {
        self.stderr.so_far()
    }

    /// Whether it has not ended yet.
    pub(crate) fn is_running(&mut self) -> bool {
        self.ended().is_none()
    }

    /// The most memory that it has had resident so far, in bytes; `None` where the system does not
    /// tell.
    pub(crate) fn peak_bytes(&self) -> Option<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
        let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kib * 1024)
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end (SIGTERM).
    pub(crate) fn terminate(&mut self) {
        self.signal("TERM");
    }

    /// Asks it to end as Ctrl-C does (SIGINT).
    pub(crate) fn interrupt(&mut self) {
        self.signal("INT");
    }

    /// Asks it to read again what may have changed (SIGHUP).
    pub(crate) fn hang_up(&mut self) {
        self.signal("HUP");
    }

    /// Stops it, as a machine that hangs would (SIGSTOP).
    pub(crate) fn pause(&self) {
        signal("STOP", self.child.id());
    }

    /// Lets it go on (SIGCONT).
    pub(crate) fn resume(&self) {
        signal("CONT", self.child.id());
    }

    fn signal(&mut self, name: &str) {
        // Asking first: the id of a program that was waited for may be somebody else's.
        if self.is_running() {
            signal(name, self.child.id());
        }
    }

    /// Ends it on the spot (SIGKILL).
    pub(crate) fn kill(&mut self) -> Output {
        self.child.kill().expect("a child can be killed");
        self.outcome()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it does not end, with what it said.
    pub(crate) fn wait(mut self) -> Output {
        self.outcome()
    }

    fn outcome(&mut self) -> Output {
        let status = wait_until("the program has ended", || {
            self.ended()
                .ok_or_else(|| format!("{}{}", self.stdout(), self.stderr()))
        });
        Output {
            stdout: self.stdout.all(),
            stderr: self.stderr.all(),
            code: status.code(),
            signal: status.signal(),
        }
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.try_wait().expect("a child can be asked");
        if status.is_some() {
            self.leash.let_go();
        }
        status
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_running() && self.child.kill().is_ok() {
            wait_until("a killed program is gone", || {
                self.ended().ok_or("it is still there")
            });
        }
    }
}

/// Kills a process when this one ends, however it ends: a shell waits at a pipe that the kernel
/// closes with us. It is in a process group of its own, as Ctrl-C at the terminal would else end it
/// first.
struct Leash {
    watcher: Child,
    pipe: Option<ChildStdin>,
}

impl Leash {
    fn on(process: u32) -> Self {
        let mut watcher = Command::new("sh")
            .args(["-c", "cat > /dev/null; kill -KILL \"$1\"", "leash"])
            .arg(process.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("there is a shell");
        let pipe = watcher.stdin.take();
        Self { watcher, pipe }
    }

    /// The process has ended: its id may soon be somebody else's.
    fn let_go(&mut self) {
        if self.pipe.is_some() {
            self.watcher.kill().expect("a child can be killed");
            self.watcher.wait().expect("a child can be waited for");
            self.pipe = None;
        }
    }
}

/// What comes out of a pipe, read by a thread of its own so that the writer never waits.
struct Captured {
    text: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Captured {
    fn from(mut pipe: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&text);
        let reader = std::thread::spawn(move || {
            let mut piece = [0; 8192];
            while let Ok(length @ 1..) = pipe.read(&mut piece) {
                let mut text = shared.lock().unwrap_or_else(PoisonError::into_inner);
                text.extend_from_slice(&piece[..length]);
            }
        });
        let reader = Some(reader);
        Self { text, reader }
    }

    fn so_far(&self) -> String {
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&text).into_owned()
    }

    /// All of it: the writer has ended.
    fn all(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader does not panic");
        }
        self.so_far()
    }
}

/// Sends a signal, by its name without SIG.
fn signal(name: &str, process: u32) {
    let status = Command::new("sh")
        .args(["-c", "kill -\"$1\" \"$2\"", "signal", name])
        .arg(process.to_string())
        .status()
        .expect("there is a shell");
    assert!(status.success(), "no signal {name} to {process}");
}

/// A shell script as a running program.
#[cfg(test)]
fn shell(text: &str) -> Running {
    let mut command = Command::new("sh");
    command.args(["-c", text]);
    Running::start(command)
}

#[test]
fn output_can_be_read_while_it_runs_and_signals_arrive() {
    let mut polite =
        shell("trap 'echo bye; exit 7' TERM; echo up; echo no >&2; while :; do sleep 0.02; done");
    wait_until("it is up", || match polite.stdout() {
        text if text == "up\n" => Ok(()),
        text => Err(text),
    });
    polite.terminate();
    let output = polite.wait();
    assert_eq!((output.code, output.signal), (Some(7), None));
    assert_eq!(output.stdout, "up\nbye\n");
    assert_eq!(output.stderr, "no\n");

    let mut stubborn = shell("trap '' TERM; echo up; while :; do sleep 0.02; done");
    wait_until("it is up", || {
        (stubborn.stdout() == "up\n")
            .then_some(())
            .ok_or("nothing yet")
    });
    stubborn.terminate();
    assert!(stubborn.is_running());
    assert_eq!(stubborn.kill().signal, Some(9));
}

#[test]
fn a_program_dies_with_the_process_that_holds_its_leash() {
    let mut orphan = shell("while :; do sleep 0.02; done");
    orphan.leash.pipe = None; // what the kernel does when this process ends
    assert_eq!(orphan.outcome().signal, Some(9));
}

#[test]
fn the_program_under_test_runs_in_its_folder() {
    let indexer = Indexer::new().env("NO_COLOR", "1");
    let written = indexer.write("config.toml", "");
    assert!(written.starts_with(indexer.directory()));
    let output = indexer.run(&["--help"]);
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
}
