//! What a user sees of a run, the same on each machine and each day, for snapshots of all of it.

use std::fmt::Write;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use chrono::{DateTime, TimeDelta, Utc};

use super::program::{Indexer, Output, Running};
use super::wait_until;

/// The password that tests give to the program. Nothing it prints may hold it.
pub(crate) const PASSWORD: &str = "hunter2 of the tests";

/// The user it belongs to.
pub(crate) const USER: &str = "indexer-of-the-tests";

/// The log level at which the libraries speak as well: a bare level is about the program alone.
pub(crate) const EVERYTHING: &str = "trace,teleport_event_indexer=trace";

impl Indexer {
    /// Runs the program to its end, and once more with the whole log, which must end in the same
    /// way. Neither run may show a secret. What the user saw of the first one.
    pub(crate) fn seen(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let traced = self.run(&[args, &["--log-level", EVERYTHING]].concat());
        assert_eq!(traced.code, output.code, "{output:?}\n{traced:?}");
        for output in [&output, &traced] {
            assert_no_secret(output);
        }
        seen(&output, self.directory())
    }

    /// Starts the program, waits until its log holds `words`, and asks it to end, which it must do
    /// at once with exit code 0. Secrets are looked for as in [`Indexer::seen`].
    pub(crate) fn seen_until(&self, words: &str, args: &[&str]) -> String {
        let traced = [args, &["--log-level", EVERYTHING]].concat();
        let [output, traced] = [args, &traced].map(|args| {
            let mut running = self.spawn(args);
            wait_for_words(&mut running, words);
            running.terminate();
            running.wait()
        });
        for output in [&output, &traced] {
            assert_no_secret(output);
            assert_eq!(output.code, Some(0), "{output:?}");
        }
        seen(&output, self.directory())
    }
}

/// Waits until a program's log holds `words`.
pub(crate) fn wait_for_words(running: &mut Running, words: &str) {
    wait_until(&format!("it says {words:?}"), || {
        let is_running = running.is_running();
        let said = running.stderr();
        if said.contains(words) {
            return Ok(());
        }
        assert!(is_running, "it ended: {said}");
        Err(said)
    });
}

/// Looks for the password, plain and in base64, and for private keys.
pub(crate) fn assert_no_secret(output: &Output) {
    let mut secrets = vec![PASSWORD.to_owned(), "PRIVATE KEY-----".to_owned()];
    for before in ["", "x", "xx"] {
        // As it is within `user:password` in base64, whatever the user; what depends on the
        // neighbours is left out.
        let encoded = BASE64_STANDARD.encode(format!("{before}{PASSWORD}"));
        let inner = encoded.get(4..encoded.len() - 4);
        secrets.push(inner.expect("base64 is ASCII").to_owned());
    }
    for secret in secrets {
        for text in [&output.stdout, &output.stderr] {
            assert!(!text.contains(&secret), "{secret} is shown: {text}");
        }
    }
}

/// Exit code, stdout and stderr, without what differs between two runs.
pub(crate) fn seen(output: &Output, directory: &Path) -> String {
    let mut text = match output.code {
        Some(code) => format!("exit code {code}\n"),
        None => format!("signal {:?}\n", output.signal),
    };
    for (name, stream) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
        if !stream.is_empty() {
            write!(text, "--- {name}\n{}", masked(stream, directory)).expect("it is a String");
        }
    }
    text
}

/// What is seen of `install`, but for what it says of the template and what belongs to it.
pub(crate) fn beside_the_template(seen: &str) -> String {
    let of_the_template = [
        "lifecycle policy ",
        "component template ",
        "index template ",
        "verified: ",
        "not verified: ",
    ];
    let is_other = |line: &&str| !of_the_template.iter().any(|begin| line.starts_with(begin));
    let lines: Vec<&str> = seen.lines().filter(is_other).collect();
    let mut text = String::new();
    for (n, line) in lines.iter().enumerate() {
        // Of a stream of which nothing is left there is no head, either.
        let next = lines.get(n + 1).unwrap_or(&"--- ");
        if !line.starts_with("--- ") || !next.starts_with("--- ") {
            writeln!(text, "{line}").expect("it is a String");
        }
    }
    text
}

/// A text without what differs between two runs: the test's folder, ports, process ids, the day and
/// the time, how long something lasted, pauses of random length; what is said several times in a row is there once.
pub(crate) fn masked(text: &str, directory: &Path) -> String {
    let mut lines = masked_lines(text, directory);
    lines.dedup();
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// The same, but each line is there as often as it was said.
pub(crate) fn masked_lines(text: &str, directory: &Path) -> Vec<String> {
    let directory = directory.to_str().expect("the path is UTF-8");
    let text = text.replace(directory, "DIR");
    let digit = |c: char| c.is_ascii_digit();
    let mut text = mask(&text, "127.0.0.1:", "PORT", digit);
    for (before, mask_with, is_masked) in [
        ("localhost:", "PORT", &digit as &dyn Fn(char) -> bool),
        ("process ", "PID", &digit),
        ("pause=", "PAUSE", &|c: char| !c.is_whitespace()),
        ("after=", "AFTER", &|c: char| !c.is_whitespace()),
        ("process PID on ", "HOST", &|c: char| {
            !c.is_whitespace() && c != ';'
        }),
    ] {
        text = mask(&text, before, mask_with, is_masked);
    }
    for day in [Utc::now(), Utc::now() - TimeDelta::days(1)] {
        text = text.replace(&day.format("%Y.%m.%d").to_string(), "TODAY");
    }
    text.lines().map(mask_times).collect()
}

/// Replaces what follows `before`, as long as `is_masked` says.
fn mask(text: &str, before: &str, with: &str, is_masked: impl Fn(char) -> bool) -> String {
    let mut parts = text.split(before);
    let mut masked = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(&is_masked);
        let mask = if rest.len() < part.len() { with } else { "" };
        masked.extend([before, mask, rest]);
    }
    masked
}

/// Replaces times of today, or so. Others come from the test itself.
fn mask_times(line: &str) -> String {
    let mut masked = String::new();
    let mut rest = line;
    while let Some(place) = rest.find("20") {
        let (before, candidate) = rest.split_at(place);
        masked.push_str(before);
        let length = candidate
            .find(|c: char| !c.is_ascii_digit() && !"-:.TZ+".contains(c))
            .unwrap_or(candidate.len());
        let (candidate, _) = candidate.split_at(length);
        let candidate = candidate.trim_end_matches([':', '.', '-']);
        match DateTime::parse_from_rfc3339(candidate) {
            Ok(time) if (time.to_utc() - Utc::now()).abs() < TimeDelta::days(3) => {
                masked.push_str("TIME");
            }
            _ => masked.push_str(candidate),
        }
        (_, rest) = rest.split_at(place + candidate.len());
    }
    masked + rest
}

#[test]
fn only_what_differs_between_runs_is_masked() {
    let now = Utc::now();
    let text = format!(
        "{}  WARN a pause=512.3ms\n{}  WARN a pause=1.1s\n2020-01-01T00:00:00Z: /x/y/z, port 80, \
         until {}; process 77 on h-1; 127.0.0.1:9200/ 127.0.0.1 200",
        now.to_rfc3339(),
        (now - TimeDelta::hours(30)).to_rfc3339(),
        now.format("%FT%TZ"),
    );
    assert_eq!(
        masked(&text, Path::new("/x/y")),
        "TIME  WARN a pause=PAUSE\n2020-01-01T00:00:00Z: DIR/z, port 80, until TIME; \
         process PID on HOST; 127.0.0.1:PORT/ 127.0.0.1 200\n"
    );
}

#[test]
fn a_secret_is_found_whoever_it_belongs_to() {
    for user in ["a", "ab", "abc", USER] {
        let header = BASE64_STANDARD.encode(format!("{user}:{PASSWORD}"));
        for text in [PASSWORD, &header] {
            let output = Output {
                stdout: String::new(),
                stderr: format!("authorization: Basic {text}\n"),
                code: Some(0),
                signal: None,
            };
            let found = std::panic::catch_unwind(|| assert_no_secret(&output));
            assert!(found.is_err(), "{text} went unseen");
        }
    }
}
