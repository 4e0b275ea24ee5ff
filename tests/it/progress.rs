//! How far something has come: a bar on a terminal, plain lines elsewhere.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::process::Command;
use std::time::Duration;

use chrono::TimeDelta;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use teleport_event_indexer::demo::elastic::Refusal;

use crate::support::rig::{Rig, backfill, event, midnight};

const LETTERS: i64 = 60;

const RETRY: [&str; 2] = ["dead-letters", "retry"];

/// What comes to a terminal at which the program speaks, and its exit code.
fn on_a_terminal(rig: &Rig, args: &[&str], environment: &[(&str, &str)]) -> (String, Option<i32>) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("there are terminals");
    grantpt(&master).expect("it is ours");
    unlockpt(&master).expect("it is ours");
    let name = ptsname(&master, Vec::new()).expect("it has a name");
    let name = name.to_str().expect("names of terminals are ASCII");
    let terminal = File::options().read(true).write(true).open(name);
    let terminal = terminal.expect("it can be opened");
    let mut child = Command::new(env!("CARGO_BIN_EXE_teleport-event-indexer"))
        .args(args)
        .args(["-c", "config.toml"])
        .env_remove("NO_COLOR")
        .env("TERM", "xterm-256color")
        .envs(environment.iter().copied())
        .current_dir(rig.indexer().directory())
        .stdout(terminal.try_clone().expect("there are file descriptors"))
        .stderr(terminal)
        .spawn()
        .expect("it can be run");
    let (mut seen, mut piece) = (Vec::new(), [0; 4096]);
    let mut master = File::from(master);
    loop {
        match master.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => seen.extend_from_slice(&piece[..length]),
            Err(failed) if failed.kind() == ErrorKind::Interrupted => {}
            // So Linux says that nobody is at the terminal any more.
            Err(_) => break,
        }
    }
    let code = child.wait().expect("it is our child").code();
    (String::from_utf8_lossy(&seen).into_owned(), code)
}

#[test]
fn a_bar_on_a_terminal_and_plain_lines_elsewhere() {
    let mut rig = Rig::new("", "batch-bytes = \"64KiB\"");
    rig.append((0..LETTERS).map(|n| {
        let mut event = event(n, "refused", midnight(2) + TimeDelta::minutes(n));
        event["command"] = "x".repeat(5000).into();
        event
    }));
    rig.elasticsearch()
        .add_rule(|_| Some(Refusal::mapping_failure()));
    let range = backfill(2, 1);
    let range: Vec<&str> = range.iter().map(String::as_str).collect();
    let (seen, code) = on_a_terminal(&rig, &range, &[]);
    assert_eq!(code, Some(1), "{seen}");
    for part in ["\u{1b}[36m", " % 0 documents, 0/s, complete up to "] {
        assert!(seen.contains(part), "{part:?} {seen:?}");
    }

    rig.elasticsearch().set_delay(Duration::from_millis(200));
    let steps = |seen: &str| {
        let steps = seen.split(" of 60 dead letters tried");
        let steps = steps.filter_map(|step| {
            let n = step.rsplit(' ').next()?;
            n.parse().ok()
        });
        let mut steps: Vec<i64> = steps.collect();
        steps.dedup();
        steps
    };
    let (seen, code) = on_a_terminal(&rig, &RETRY, &[]);
    assert_eq!(code, Some(1), "{seen}");
    let coloured = steps(&seen);
    assert!(coloured.len() > 3 && coloured.is_sorted(), "{coloured:?}");
    assert_eq!(
        (coloured.first(), coloured.last()),
        (Some(&0), Some(&LETTERS))
    );
    assert!(seen.contains("\u{1b}[36m"), "{seen:?}");
    // It is gone in the end, and what is said stays.
    let (_, end) = seen.rsplit_once("\u{1b}[2K").expect("a bar is wiped away");
    assert_eq!(
        end.trim(),
        "0 stored, 0 were there already, 60 refused again, 0 blocked"
    );

    let (seen, code) = on_a_terminal(&rig, &RETRY, &[("NO_COLOR", "1")]);
    assert_eq!(code, Some(1), "{seen}");
    assert!(steps(&seen).len() > 3, "{seen:?}");
    assert!(!seen.contains("\u{1b}[3"), "{seen:?}");

    // A line each ten seconds, of which there are few.
    rig.elasticsearch().set_delay(Duration::from_millis(1500));
    let output = rig.run_to(1, &RETRY);
    assert!(!output.stderr.contains('\u{1b}'), "{}", output.stderr);
    let lines = output.stderr.lines().filter(|line| {
        let rest = line.split_once(" %, ").map(|(_, rest)| rest);
        rest.is_some_and(|rest| rest.ends_with(" of 60 dead letters tried"))
    });
    let n_lines = lines.count();
    assert!((1..=4).contains(&n_lines), "{}", output.stderr);
}
