//! How the program ends: what was in flight settles and is committed, or is said to be left.

use std::time::Duration;

use teleport_event_indexer::demo::auth::Method;
use teleport_event_indexer::demo::elastic::Answer;
use tonic::Code;

use crate::support::rig::{Rig, backfill, midnight, realistic, rfc3339, wait_until_said};
use crate::support::wait_until;

const RUN: [&str; 2] = ["start", "--exit-on-last-event"];

fn rig(top: &str) -> Rig {
    let start = rfc3339(midnight(3));
    let top = format!("start-time = {start:?}\n{top}");
    Rig::new(&top, "in-flight = 3\nbatch-documents = 50")
}

fn wait_until_sent(rig: &Rig, n_requests: u64) {
    wait_until("requests are under way", || {
        match rig.elasticsearch().n_bulk_requests() {
            sent if sent >= n_requests => Ok(()),
            sent => Err(sent),
        }
    });
}

/// What the state file says was stored.
fn committed(rig: &Rig) -> u64 {
    let counts = rig.daemon().counts;
    counts.created + counts.already_there
}

#[test]
fn a_signal_lets_what_is_in_flight_settle_and_commits_it() {
    for is_interrupt in [false, true] {
        let mut rig = rig("");
        rig.append(realistic(1, 600, 2, 1));
        rig.elasticsearch().set_delay(Duration::from_millis(150));
        let mut running = rig.spawn(&["start"]);
        wait_until_sent(&rig, 4);
        if is_interrupt {
            running.interrupt();
        } else {
            running.terminate();
        }
        let output = running.wait();
        assert_eq!(
            (output.code, output.signal),
            (Some(0), None),
            "{}",
            output.stderr
        );
        let stored = rig.elasticsearch().count();
        assert!(stored >= 50, "{stored}");
        assert_eq!(committed(&rig), stored);
        rig.assert_nothing_was_passed();

        rig.elasticsearch().set_delay(Duration::ZERO);
        rig.run_to(0, &RUN);
        rig.assert_complete();
        let counts = rig.daemon().counts;
        assert_eq!((counts.created, counts.already_there), (600, 0));
    }
}

#[test]
fn when_elasticsearch_hangs_the_grace_period_ends_it_and_what_is_left_is_said() {
    let mut rig = rig("grace-period = \"300ms\"");
    rig.append(realistic(2, 400, 2, 1));
    rig.elasticsearch().answer_next(3, Answer::Ordinary);
    rig.elasticsearch().answer_next(100, Answer::Hang);
    let mut running = rig.spawn(&["start"]);
    wait_until_sent(&rig, 6);
    wait_until("what was answered is committed", || match committed(&rig) {
        150 => Ok(()),
        settled => Err(settled),
    });
    running.terminate();
    let output = running.wait();
    assert_eq!(output.code, Some(1), "{}", output.stderr);
    let said = "the grace period is over; what has not settled will be read again documents=250";
    assert!(output.stderr.contains(said), "{}", output.stderr);
    assert_eq!(committed(&rig), 150);
    rig.assert_nothing_was_passed();
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut rig = rig("grace-period = \"1h\"");
    rig.append(realistic(3, 100, 2, 1));
    rig.elasticsearch().answer_next(100, Answer::Hang);
    let mut running = rig.spawn(&["start"]);
    wait_until_sent(&rig, 2);
    running.terminate();
    wait_until_said(&running, "draining");
    assert!(running.is_running());
    running.interrupt();
    let output = running.wait();
    assert_eq!(
        (output.code, output.signal),
        (Some(1), None),
        "{}",
        output.stderr
    );
    assert!(output.stderr.contains("ending at once"));
    rig.assert_nothing_was_passed();
}

#[test]
fn it_ends_while_teleport_is_away_and_knows_where_it_was() {
    let mut rig = rig("");
    rig.auth().fail_next(Method::Ping, 2, Code::Unavailable);
    let mut running = rig.spawn(&["start"]);
    wait_until_said(&running, "trying again");
    running.terminate();
    let output = running.wait();
    assert_eq!(output.code, Some(0), "{}", output.stderr);

    rig.append(realistic(4, 100, 2, 1));
    let mut running = rig.spawn(&["start"]);
    rig.wait_until_complete();
    wait_until("everything is committed", || match committed(&rig) {
        100 => Ok(()),
        settled => Err(settled),
    });
    rig.auth()
        .fail_next(Method::ListChunks, 1000, Code::Unavailable);
    rig.auth().drop_connections();
    wait_until_said(&running, "reading failed, trying again");
    running.terminate();
    let output = running.wait();
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert!(rig.daemon().position_ms > midnight(1).timestamp_millis());
    assert_eq!(rig.auth().n_handed_out(Method::ReadChunk), 100);
}

#[test]
fn a_backfill_that_is_stopped_says_how_to_go_on() {
    let mut rig = rig("");
    rig.append(realistic(5, 400, 2, 1));
    rig.elasticsearch().set_delay(Duration::from_millis(150));
    let mut running = rig.spawn(&backfill(2, 1));
    wait_until_sent(&rig, 2);
    running.terminate();
    let output = running.wait();
    assert_eq!(output.code, Some(1), "{}", output.stderr);
    let said = "stopped before the end, 0 documents had not settled; the same command goes on \
                from there";
    assert!(output.stderr.contains(said), "{}", output.stderr);
    rig.elasticsearch().set_delay(Duration::ZERO);
    rig.run_to(0, &backfill(2, 1));
    rig.assert_complete();
    assert_eq!(rig.backfill().counts.already_there, 0);
}
