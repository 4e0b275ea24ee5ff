//! The disk under the state file: full, broken, not to be written. Nothing is passed, what is wrong
//! is said, and once it is mended everything comes.
#![expect(
    clippy::unwrap_used,
    reason = "clippy takes only what is marked as a test for one, not what tests call"
)]

use std::fs;
use std::process::Command;

use chrono::Utc;
use insta::assert_snapshot;
use rusqlite::{Connection, OpenFlags};
use teleport_event_indexer::demo::elastic::Refusal;

use crate::support::faults::{IO_ERROR, NO_SPACE};
use crate::support::program::Output;
use crate::support::rig::{Rig, event, midnight, rfc3339, wait_until_said};
use crate::support::seen::masked;
use crate::support::wait_until;

const RUN: [&str; 2] = ["start", "--exit-on-last-event"];

fn rig() -> Rig {
    let start = rfc3339(midnight(2));
    Rig::new(&format!("start-time = {start:?}"), "")
}

/// Exit code, and what went wrong and what to do about it.
fn said(rig: &Rig, output: &Output) -> String {
    let lines = output.stderr.lines();
    let last = lines.skip_while(|line| !line.starts_with("error: "));
    let last: Vec<_> = last.collect();
    let directory = rig.storage();
    let text = masked(&last.join("\n"), directory.parent().unwrap());
    format!("exit code {:?}\n{text}", output.code)
}

/// The same without what it was about to write, which is chance.
fn said_at_last(rig: &Rig, output: &Output) -> String {
    let said = said(rig, output);
    let (before, error) = said.split_once("in the state file").unwrap();
    assert!(before.contains("error: the run has ended: "), "{said}");
    format!("exit code {:?}\nin the state file{error}", output.code)
}

#[test]
fn a_disk_that_is_full_or_broken_ends_it_where_it_was() {
    let mut rig = rig();
    let faults = rig.befall();
    rig.append([event("first", "x", midnight(1))]);
    let mut daemon = rig.spawn(&["start"]);
    rig.wait_until_complete();

    faults.fail_writes(NO_SPACE);
    rig.append([event("second", "x", Utc::now())]);
    let output = daemon.wait();
    assert_snapshot!(said_at_last(&rig, &output), @"
    exit code Some(1)
    in the state file state/state.sqlite: database or disk is full
    hint: make room on its disk
    ");
    // Nor does it start.
    let output = rig.run(&RUN);
    assert_snapshot!(said(&rig, &output), @"
    exit code Some(1)
    error: the run has ended: reading the audit log failed for good: the plan of what to read cannot be kept: no room left to write down a listing in the state file state/state.sqlite: database or disk is full
    hint: make room on its disk
    ");
    rig.assert_nothing_was_passed();
    let status = rig.run(&["status"]);
    assert_eq!(status.code, Some(0), "{}", status.stderr);

    faults.fail_writes(0);
    rig.run_to(0, &RUN);
    rig.assert_complete();

    daemon = rig.spawn(&["start"]);
    wait_until_said(&daemon, "reading by the export API");
    faults.fail_writes(IO_ERROR);
    rig.append([event("third", "x", Utc::now())]);
    let output = daemon.wait();
    assert_snapshot!(said_at_last(&rig, &output), @"
    exit code Some(1)
    in the state file state/state.sqlite: disk I/O error
    ");
    rig.assert_nothing_was_passed();
    faults.fail_writes(0);
    rig.run_to(0, &RUN);
    rig.assert_complete();
}

#[test]
fn with_a_full_disk_what_would_be_a_dead_letter_is_not_passed() {
    let mut rig = rig();
    let faults = rig.befall();
    let refused = event("refused", "refused.one", midnight(1));
    rig.elasticsearch().add_rule(|operation| {
        let refused = operation.contains("refused.one");
        refused.then(Refusal::mapping_failure)
    });
    let mut daemon = rig.spawn(&["start"]);
    rig.append([event("first", "x", midnight(1))]);
    rig.wait_until_complete();
    faults.fail_writes(NO_SPACE);
    rig.append([refused]);
    let output = daemon.wait();
    assert_snapshot!(said_at_last(&rig, &output), @"
    exit code Some(1)
    in the state file state/state.sqlite: database or disk is full
    hint: make room on its disk
    ");
    rig.assert_nothing_was_passed();
    faults.fail_writes(0);
    daemon = rig.spawn(&["start"]);
    wait_until("it is a dead letter", || {
        let summary = rig.summary();
        (summary.dead_letters.count == 1)
            .then_some(())
            .ok_or("none")
    });
    daemon.terminate();
    assert_eq!(daemon.wait().code, Some(0));
    rig.assert_complete_but(&["refused.one"]);
}

/// Root writes where it likes, so the file system itself is made to refuse.
#[test]
fn a_file_system_that_is_read_only() {
    let mut rig = rig();
    rig.append([event("first", "x", midnight(1))]);
    rig.run_to(0, &RUN);
    let script =
        "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" && shift && exec \"$@\"";
    let storage = rig.storage();
    let read_only = [
        "unshare",
        "-rm",
        "sh",
        "-c",
        script,
        storage.to_str().unwrap(),
        "--",
    ];
    let can = Command::new(read_only[0])
        .args(&read_only[1..])
        .arg("true")
        .output();
    if !can.is_ok_and(|can| can.status.success()) {
        println!("no mounts of our own here");
        return;
    }
    let output = rig.run_through(&read_only, &RUN);
    assert_snapshot!(said(&rig, &output), @"
    exit code Some(1)
    error: cannot write state/open.lock: Read-only file system (os error 30)
    hint: the directory named by storage, and the files in it, must be writable for the user who runs this program
    ");
    let output = rig.run_through(&read_only, &["status"]);
    assert_snapshot!(said(&rig, &output), @"
    exit code Some(1)
    error: cannot read it: no access to the state file state/state.sqlite: unable to open database file
    hint: the file, its directory and the files beside it must be writable for the user who runs this program
    ");
    fs::remove_dir_all(&storage).unwrap();
    fs::create_dir(&storage).unwrap();
    let output = rig.run_through(&read_only, &RUN);
    assert_snapshot!(said(&rig, &output), @"
    exit code Some(1)
    error: cannot write state/open.lock: Read-only file system (os error 30)
    hint: the directory named by storage, and the files in it, must be writable for the user who runs this program
    ");
}

#[test]
fn a_file_that_is_gone_is_a_first_start() {
    let mut rig = rig();
    rig.append((0..100).map(|n| event(n, "x", midnight(1))));
    rig.run_to(0, &RUN);
    fs::remove_dir_all(rig.storage()).unwrap();
    rig.append([event("more", "x", midnight(1))]);
    let output = rig.run_to(0, &RUN);
    let said = format!(
        "first start start_time={:?}",
        rfc3339(midnight(2)).replace(".000", "")
    );
    assert!(output.stderr.contains(&said), "{}", output.stderr);
    rig.assert_complete();
    let counts = rig.daemon().counts;
    assert_eq!((counts.created, counts.already_there), (1, 100));
}

#[test]
fn a_file_of_a_newer_version_and_one_that_cannot_be_brought_up_to_date() {
    let mut rig = rig();
    rig.append([event("first", "x", midnight(1))]);
    rig.run_to(0, &RUN);
    let position_ms = rig.daemon().position_ms;
    let path = rig.storage().join("state.sqlite");
    let open = || Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap();
    let known: i64 = open()
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .unwrap();
    let said_of = |format: i64, args: &[&str]| {
        let set = open().pragma_update(None, "user_version", format);
        set.unwrap();
        said(&rig, &rig.run(args)).replace(&format!(" {known};"), " KNOWN;")
    };
    for args in [&RUN[..], &["status"]] {
        let said = said_of(99, args);
        let wanted = "exit code Some(1)\nerror: the state file state/state.sqlite has format 99, \
                      this program knows formats up to KNOWN; it was written by a newer version: \
                      use that version\n";
        assert_eq!(said, wanted);
    }
    // A column of format 2 is there already.
    assert_snapshot!(said_of(1, &RUN), @"
    exit code Some(1)
    error: cannot bring the tables up to date in the state file state/state.sqlite: duplicate column name: safe_form: Error code 1: SQL logic error
    ");
    assert_snapshot!(said_of(1, &["status"]), @"
    exit code Some(1)
    error: the state file state/state.sqlite has format 1, this program reads format KNOWN; it is brought up to date by the next start
    ");
    let as_it_was = said_of(known, &["status"]);
    assert!(as_it_was.starts_with("exit code Some(0)"), "{as_it_was}");
    assert_eq!(rig.daemon().position_ms, position_ms);
    rig.run_to(0, &RUN);
    rig.assert_complete();
}

/// One page of the file is overwritten; which one, decides who notices.
#[test]
fn a_page_that_is_damaged_while_nobody_looks() {
    let mut rig = rig();
    rig.append((0..300).map(|n| event(n, "x", midnight(1))));
    rig.run_to(0, &RUN);
    let path = rig.storage().join("state.sqlite");
    // All of it is in the file itself, once the last one has closed it.
    let whole = fs::read(&path).unwrap();
    let n_pages = whole.len() / 4096;
    let mut n_refused = 0;
    for page in 0..n_pages {
        let mut damaged = whole.clone();
        damaged[page * 4096..(page + 1) * 4096].fill(0xA5);
        fs::write(&path, damaged).unwrap();
        let output = rig.run(&RUN);
        // Who only looks on, for the status page, may find more than the run itself meets.
        let is_end = |line: &str| line.starts_with("error: ") && line.contains("is damaged");
        let told = output.stderr.lines().any(is_end);
        assert_eq!(
            output.code,
            Some(i32::from(told)),
            "page {page}: {}",
            output.stderr
        );
        n_refused += usize::from(told);
        fs::remove_dir_all(rig.storage()).unwrap();
        fs::create_dir(rig.storage()).unwrap();
    }
    // The others are of tables in which such a run finds nothing.
    println!("{n_refused} of {n_pages} pages were missed");
    assert!(n_refused > n_pages / 3);
    rig.run_to(0, &RUN);
    rig.assert_complete();
}
