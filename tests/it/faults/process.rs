//! What befalls the process itself: no file descriptors left, a clock that jumps, SIGHUP.
#![expect(
    clippy::unwrap_used,
    reason = "clippy takes only what is marked as a test for one, not what tests call"
)]

use chrono::{TimeDelta, Utc};
use insta::assert_snapshot;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use teleport_event_indexer::demo::auth::AuthOptions;
use teleport_event_indexer::demo::elastic::ElasticsearchOptions;

use crate::support::program::Running;
use crate::support::rig::{Rig, event, midnight, rfc3339, wait_until_said};
use crate::support::wait_until;

fn rig(export: bool) -> Rig {
    let auth = AuthOptions {
        export,
        ..AuthOptions::default()
    };
    Rig::with(auth, ElasticsearchOptions::default(), &top("info"), "")
}

fn top(log_level: &str) -> String {
    let start = rfc3339(midnight(9));
    format!("start-time = {start:?}\nlog-level = {log_level:?}")
}

/// From now on the process may have so many files and connections open; `None` for as many as we.
fn limit_files(running: &Running, most: Option<u64>) {
    let id = i32::try_from(running.id()).ok().and_then(Pid::from_raw);
    let ours = getrlimit(Resource::Nofile);
    let limit = Rlimit {
        current: most.or(ours.current),
        ..ours
    };
    prlimit(id, Resource::Nofile, limit).unwrap();
}

#[test]
fn without_file_descriptors_it_waits_until_there_are_some() {
    for export in [true, false] {
        let mut rig = rig(export);
        rig.append([event("before", "x", Utc::now())]);
        let mut daemon = rig.spawn(&["start"]);
        rig.wait_until_complete();

        // Fewer than it has: each connection that is lost, and each file, is one that it cannot have.
        limit_files(&daemon, Some(3));
        rig.auth().drop_connections();
        rig.elasticsearch().drop_connections();
        rig.append((0..50).map(|n| event(n, "x", Utc::now())));
        wait_until_said(&daemon, "Too many open files");
        daemon.hang_up();
        wait_until_said(&daemon, "keeping the credentials");
        wait_until_said(&daemon, "keeping the log level");
        rig.assert_nothing_was_passed();

        limit_files(&daemon, None);
        rig.wait_until_complete();
        daemon.terminate();
        let output = daemon.wait();
        assert_eq!(output.code, Some(0), "{}", output.stderr);
        println!("{}", output.stderr);
    }
}

/// Ours alone jumps, a day ahead, back, and a day back; the cluster's is right.
#[test]
fn a_clock_that_jumps_a_day_forward_and_back_loses_nothing() {
    for export in [true, false] {
        let mut rig = rig(export);
        let clock = rig.befall();
        let day = TimeDelta::days(1).num_seconds();
        let mut daemon = rig.spawn(&["start"]);
        for (n, ahead) in [0, day, 0, day, 0].into_iter().enumerate() {
            clock.set_clock_ahead(ahead);
            for m in 0..3 {
                let uid = format!("{n} {m} {ahead}");
                rig.append([event(uid, "x", Utc::now())]);
                rig.wait_until_complete();
            }
        }
        // A day behind: to it, what happens now lies ahead, and waits for no longer than that lasts.
        clock.set_clock_ahead(-day);
        rig.append([event("behind", "x", Utc::now())]);
        let polls = rig.auth().requests().len();
        wait_until("it goes on asking", || {
            let more = rig.auth().requests().len() - polls;
            (more > 5 && daemon.is_running()).then_some(()).ok_or(more)
        });
        clock.set_clock_ahead(0);
        rig.wait_until_complete();
        rig.assert_nothing_was_passed();
        daemon.terminate();
        let output = daemon.wait();
        assert_eq!(output.code, Some(0), "{}", output.stderr);

        rig.append([event("later", "x", Utc::now())]);
        rig.run_to(0, &["start", "--exit-on-last-event"]);
        rig.assert_complete();
    }
}

#[test]
fn hanging_up_changes_the_log_level_and_no_other_setting() {
    let rig = rig(true);
    let mut daemon = rig.spawn(&["start"]);
    wait_until_said(&daemon, "reading by the export API");
    let mut said_after = |top: &str, part: &str| {
        rig.configure(top, "");
        daemon.hang_up();
        let line = wait_until_said(&daemon, part);
        // Behind the time.
        line.split_once("  ").unwrap().1.to_owned()
    };
    assert_snapshot!(said_after(&top("info"), "has not changed level"), @r#"INFO the log level has not changed level="info""#);
    assert_snapshot!(said_after(&top("debug"), "debug"), @r#"INFO the log level changes from="info" to="debug""#);
    assert_snapshot!(said_after(&top("loud"), "loud"), @r#"WARN keeping the log level: config.toml:6: log-level = "loud": must be off, error, warn, info, debug or trace, or such levels by target: info,teleport_event_indexer::teleport=debug"#);
    assert_snapshot!(said_after(&top("error"), "\"error\""), @r#"INFO the log level changes from="debug" to="error""#);
    assert_snapshot!(said_after(&top("info"), "from=\"error\""), @r#"INFO the log level has changed from="error" to="info""#);
    daemon.terminate();
    let output = daemon.wait();
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    let n_told = output.stderr.matches("reading the log level again").count();
    // Not while only errors were wanted.
    assert_eq!(n_told, 4, "{}", output.stderr);
}
