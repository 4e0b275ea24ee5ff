//! The state file and its directory.

use std::fs;

use insta::assert_snapshot;
use teleport_event_indexer::demo::certs::{Cluster, IdentityOptions};

use crate::support::program::Indexer;
use crate::support::seen::wait_for_words;
use crate::support::stand_ins::{NOBODY, Teleport};

const START: &[&str] = &["start", "-c", "config.toml", "--start-time=2026-01-01"];
const BACKFILL: &[&str] = &[
    "backfill",
    "-c",
    "config.toml",
    "--from=2026-01-01",
    "--to=2026-01-02",
];
const STATUS: &[&str] = &["status", "-c", "config.toml"];

/// An indexer that gets as far as Teleport.
fn set_up() -> (Indexer, Teleport) {
    let teleport = Teleport::start("a.example");
    let indexer = Indexer::new();
    indexer.configure(&teleport.addr(), &format!("http://{NOBODY}"), "");
    indexer.identify(&teleport.cluster, &IdentityOptions::default());
    (indexer, teleport)
}

/// The same with a state file that a start has made.
fn started() -> (Indexer, Teleport) {
    let (indexer, teleport) = set_up();
    indexer.seen_until("no answer from Elasticsearch", START);
    (indexer, teleport)
}

#[test]
fn a_file_in_place_of_the_directory() {
    let (indexer, _teleport) = set_up();
    indexer.write("state", "");
    assert_snapshot!(indexer.seen(START), @"
    exit code 1
    --- stderr
    error: the storage path state is not a directory; choose a directory or a new path
    ");
    assert_snapshot!(indexer.seen(STATUS), @"
    exit code 1
    --- stderr
    error: the storage path state is not a directory; choose a directory or a new path
    ");
}

#[test]
fn a_directory_that_takes_no_files() {
    let (indexer, _teleport) = set_up();
    // No user, root included, can make a directory or a file here.
    let elsewhere = |storage| [START, &["--storage", storage]].concat();
    assert_snapshot!(indexer.seen(&elsewhere("/proc/state")), @"
    exit code 1
    --- stderr
    error: cannot use or create the storage directory /proc/state: No such file or directory (os error 2)
    hint: the directory named by storage, and the files in it, must be writable for the user who runs this program
    ");
    assert_snapshot!(indexer.seen(&elsewhere("/proc")), @"
    exit code 1
    --- stderr
    error: cannot write /proc/open.lock: No such file or directory (os error 2)
    hint: the directory named by storage, and the files in it, must be writable for the user who runs this program
    ");
}

#[test]
fn a_second_daemon() {
    let (indexer, _teleport) = set_up();
    let mut first = indexer.spawn(START);
    wait_for_words(&mut first, "trying again");
    assert_snapshot!(indexer.seen(START), @"
    exit code 1
    --- stderr
    error: another daemon already works in state: process PID on HOST; stop it first, or give each its own storage directory
    ");
}

#[test]
fn the_state_of_another_cluster() {
    let (indexer, _teleport) = started();
    let other = Teleport::start("b.example");
    indexer.configure(&other.addr(), &format!("http://{NOBODY}"), "");
    indexer.identify(&other.cluster, &IdentityOptions::default());
    assert_snapshot!(indexer.seen(START), @r#"
    exit code 1
    --- stderr
    TIME  INFO credentials read cluster=b.example address=127.0.0.1:PORT expires=TIME
    TIME  INFO connected to Teleport at 127.0.0.1:PORT, straight to the Auth Service cluster="b.example" version="18.2.0"
    error: the state file state/state.sqlite belongs to the cluster "a.example", and the Auth Service is that of "b.example"; give each cluster its own storage directory
    "#);
    assert_snapshot!(indexer.seen(BACKFILL), @r#"
    exit code 1
    --- stderr
    TIME  INFO credentials read cluster=b.example address=127.0.0.1:PORT expires=TIME
    TIME  INFO connected to Teleport at 127.0.0.1:PORT, straight to the Auth Service cluster="b.example" version="18.2.0"
    error: the state file state/state.sqlite belongs to the cluster "a.example", and the Auth Service is that of "b.example"; give each cluster its own storage directory
    "#);
}

#[test]
fn another_start_time_later() {
    let (indexer, _teleport) = started();
    let later = ["start", "-c", "config.toml", "--start-time=2026-02-01"];
    assert_snapshot!(indexer.seen(&later), @r#"
    exit code 2
    --- stderr
    TIME  INFO credentials read cluster=a.example address=127.0.0.1:PORT expires=TIME
    TIME  INFO connected to Teleport at 127.0.0.1:PORT, straight to the Auth Service cluster="a.example" version="18.2.0"
    error: start-time is 2026-02-01T00:00:00Z but this state has started from 2026-01-01T00:00:00Z; put that into the configuration. `start --rewind-to` or `--forward-to` moves where reading goes on, and `teleport-event-indexer backfill --from … --to …` reads other times
    "#);
    // None at all goes on.
    let none = ["start", "-c", "config.toml"];
    assert_snapshot!(indexer.seen_until("no answer from Elasticsearch", &none), @r#"
    exit code 0
    --- stderr
    TIME  INFO credentials read cluster=a.example address=127.0.0.1:PORT expires=TIME
    TIME  INFO connected to Teleport at 127.0.0.1:PORT, straight to the Auth Service cluster="a.example" version="18.2.0"
    TIME  INFO going on where the last run ended start_time="2026-01-01T00:00:00Z"
    TIME  WARN trying again: no answer from Elasticsearch at http://127.0.0.1:PORT/: nothing listens there pause=PAUSE mend="check hosts in [forward.elasticsearch], and that Elasticsearch runs there"
    TIME  INFO stopping; a second signal ends at once signal="SIGTERM"
    "#);
}

#[test]
fn a_state_file_that_is_damaged() {
    let (indexer, _teleport) = started();
    let file = indexer.directory().join("state/state.sqlite");
    let bytes = fs::read(&file).unwrap();
    fs::write(
        &file,
        "no database at all, but long enough to be read as one\n".repeat(40),
    )
    .unwrap();
    assert_snapshot!(indexer.seen(START), @"
    exit code 1
    --- stderr
    error: the state file state/state.sqlite is damaged: file is not a database
    hint: move it away together with state/state.sqlite-wal and state/state.sqlite-shm, and set start-time: a missing file is a first start, which reads again from there and makes no duplicates
    ");
    assert_snapshot!(indexer.seen(STATUS), @"
    exit code 1
    --- stderr
    error: the state file state/state.sqlite is damaged: file is not a database
    hint: move it away together with state/state.sqlite-wal and state/state.sqlite-shm, and set start-time: a missing file is a first start, which reads again from there and makes no duplicates
    ");

    // Its head is whole, and most of the rest is gone.
    let mut damaged = bytes;
    damaged[4096..].fill(0xA5);
    fs::write(&file, damaged).unwrap();
    assert_snapshot!(indexer.seen(START), @"
    exit code 1
    --- stderr
    error: the state file state/state.sqlite is damaged: database disk image is malformed
    hint: move it away together with state/state.sqlite-wal and state/state.sqlite-shm, and set start-time: a missing file is a first start, which reads again from there and makes no duplicates
    ");
}

#[test]
fn a_state_file_of_another_program() {
    let (indexer, _teleport) = started();
    let file = indexer.directory().join("state/state.sqlite");
    // The header says whose database it is: there, of one of Fossil's.
    let mut bytes = fs::read(&file).unwrap();
    bytes[68..72].copy_from_slice(&252_006_673_u32.to_be_bytes());
    fs::write(&file, bytes).unwrap();
    assert_snapshot!(indexer.seen(START), @"
    exit code 1
    --- stderr
    error: state/state.sqlite is a database of another program; choose another storage directory or move it away
    ");
}

#[test]
fn nothing_was_started_yet() {
    let (indexer, _teleport) = set_up();
    assert_snapshot!(indexer.seen(STATUS), @"
    exit code 1
    --- stderr
    error: there is no state in state: nothing has been started with this storage
    ");
    assert!(!indexer.directory().join("state").exists());
}

#[test]
fn the_credentials_of_nobody() {
    let (indexer, _teleport) = set_up();
    let stranger = Cluster::new("a.example").unwrap();
    indexer.identify(&stranger, &IdentityOptions::default());
    indexer.run(START);
    // What never reached Teleport claims the state for no cluster.
    assert_snapshot!(indexer.seen(STATUS), @"
    exit code 0
    --- stdout
    cluster        none yet
    daemon         does not run
    gaps           0
    dead letters   0 (0 bytes)
    identity       of user teleport-event-indexer, valid until TIME
    ");
}
