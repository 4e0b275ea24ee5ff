//! `backfill`: once over a closed range, resumable, and no trouble to anybody else.

use std::time::Duration;

use chrono::Utc;
use teleport_event_indexer::checkpoint::Checkpoint;
use teleport_event_indexer::demo::auth::Method;

use crate::support::rig::{Rig, backfill, event, midnight, realistic, rfc3339};
use crate::support::wait_until;

#[test]
fn a_killed_backfill_goes_on_and_a_finished_one_says_so() {
    let mut rig = Rig::new("concurrency = 1", "in-flight = 1\nbatch-documents = 20");
    rig.append(realistic(1, 300, 4, 1));
    rig.elasticsearch().set_delay(Duration::from_millis(100));
    let mut running = rig.spawn(&backfill(4, 1));
    wait_until("a day is passed", || {
        match rig.try_backfill().map(|run| run.position_ms) {
            Some(passed) if passed >= midnight(3).timestamp_millis() => Ok(()),
            position => Err(format!("{position:?}")),
        }
    });
    running.kill();
    rig.assert_nothing_was_passed();
    let position_ms = rig.backfill().position_ms;
    assert!(position_ms < midnight(1).timestamp_millis());

    rig.elasticsearch().set_delay(Duration::ZERO);
    rig.run_to(0, &backfill(4, 1));
    rig.assert_complete();
    let run = rig.backfill();
    assert!(run.finished);
    // What had settled and was not committed is read again, no more.
    assert!(run.counts.already_there < 300, "{run:?}");
    let n_calls = rig.auth().n_calls(Method::ReadChunk);

    let output = rig.run_to(0, &backfill(4, 1));
    let said = format!(
        "this range is done: {} documents created, {} were there already; \
         `--again` reads it once more",
        run.counts.created, run.counts.already_there
    );
    assert!(output.stderr.contains(&said), "{}", output.stderr);
    assert_eq!(rig.auth().n_calls(Method::ReadChunk), n_calls);

    let mut again = backfill(4, 1);
    again.push("--again".into());
    let output = rig.run_to(0, &again);
    let said = "done: 0 documents created, 300 were there already, 0 dead letters, 0 gaps";
    assert!(output.stderr.contains(said), "{}", output.stderr);
    rig.assert_complete();
}

#[test]
fn backfills_run_beside_a_daemon_and_each_other_but_not_beside_themselves() {
    let mut rig = Rig::new(
        &format!("start-time = {:?}", rfc3339(midnight(1))),
        "in-flight = 1\nbatch-documents = 20",
    );
    rig.append(realistic(2, 200, 5, 3));
    rig.append([event("now", "x", Utc::now())]);
    let mut daemon = rig.spawn(&["start"]);
    rig.wait_until_stored(1);
    rig.elasticsearch().set_delay(Duration::from_millis(50));
    let mut first = rig.spawn(&backfill(5, 4));
    let second = rig.spawn(&backfill(4, 3));
    wait_until("the first one reads", || {
        let runs = rig.summary().runs.len();
        if runs == 3 { Ok(()) } else { Err(runs) }
    });
    let twin = rig.run(&backfill(5, 4));
    assert_eq!(twin.code, Some(1), "{}", twin.stderr);
    assert!(first.is_running(), "it has ended too early for this test");
    assert!(
        twin.stderr.contains("run of this backfill"),
        "{}",
        twin.stderr
    );
    for running in [first, second] {
        let output = running.wait();
        assert_eq!(output.code, Some(0), "{}", output.stderr);
    }
    rig.elasticsearch().set_delay(Duration::ZERO);
    rig.append([event("still following", "x", Utc::now())]);
    rig.wait_until_complete();
    assert!(daemon.is_running());
    daemon.terminate();
    assert_eq!(daemon.wait().code, Some(0));
    assert_eq!(rig.daemon().counts.created, 2, "the daemon's own alone");
    assert_eq!(rig.daemon().from_ms, midnight(1).timestamp_millis());
    rig.assert_nothing_was_passed();
}

#[test]
fn the_daemons_position_is_its_own() {
    let mut rig = Rig::new(&format!("start-time = {:?}", rfc3339(midnight(3))), "");
    rig.append(realistic(3, 50, 3, 0).filter(|e| e["time"].as_str() < Some(&rfc3339(Utc::now()))));
    let args = ["start", "--exit-on-last-event"];
    rig.run_to(0, &args);
    let before = rig.daemon();
    rig.append(realistic(4, 50, 6, 3));
    rig.run_to(0, &backfill(6, 2));
    rig.assert_complete();
    let after = rig.daemon();
    assert_eq!(
        (after.position_ms, after.counts, after.open_chunks),
        (before.position_ms, before.counts, before.open_chunks)
    );
    let checkpoint = Checkpoint::open(&rig.storage()).unwrap();
    assert!(checkpoint.run(rig.backfill().id).unwrap().finished);
}
