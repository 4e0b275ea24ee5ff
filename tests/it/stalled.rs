//! When the program calls itself stalled: what does not move, though Teleport has newer events.

use chrono::{TimeDelta, Utc};
use insta::assert_snapshot;
use teleport_event_indexer::demo::auth::{Method, Unreadable};
use teleport_event_indexer::demo::elastic::Refusal;
use tonic::Code;

use crate::observer::{address, get, metric, wait_for_metric, wait_for_readiness};
use crate::support::rig::{Rig, event, midnight, rfc3339, wait_until_said};
use crate::support::seen::masked_lines;
use crate::support::wait_until;

const ARGS: [&str; 5] = [
    "start",
    "--listen-addr",
    "127.0.0.1:0",
    "--listen-stalled-after",
    "1s",
];

#[test]
fn whoever_cannot_go_on_is_stalled_until_it_goes_on() {
    // There is no room for all that is blocked, so no more is read.
    let top = format!(
        "start-time = {:?}\nconcurrency = 2\nblocked-bytes = \"64KiB\"",
        rfc3339(midnight(2))
    );
    let mut rig = Rig::new(&top, "in-flight = 1\nbatch-bytes = \"64KiB\"");
    rig.append((0..3000).map(|n| {
        let time = midnight(1) + TimeDelta::seconds(n);
        let mut event = event(n, "large", time);
        event["command"] = "x".repeat(5000).into();
        event
    }));
    rig.elasticsearch()
        .add_rule(|_| Some(Refusal::closed_index()));
    let running = rig.spawn(&ARGS);
    let address = address(&running);
    let words = "stalled: nothing has moved since ";
    wait_for_readiness(&address, 503, words);
    wait_for_metric(&address, "event_indexer_stalled", 1.0);
    let full = "event_indexer_blocked_indices{reason=\"store_full\"}";
    wait_for_metric(&address, full, 1.0);
    let said = wait_until_said(&running, words);
    assert!(said.contains("ERROR"), "{said}");
    rig.elasticsearch().clear_rules();
    rig.wait_until_complete();
    wait_for_readiness(&address, 200, "ready");
    wait_for_metric(&address, "event_indexer_stalled", 0.0);
    wait_until_said(&running, "no longer stalled");
    // It is told once, not each time that somebody looks.
    let mut said = masked_lines(&running.stderr(), rig.indexer().directory());
    said.retain(|line| line.contains("stalled"));
    assert_snapshot!(said.join("\n"), @r#"
    TIME ERROR stalled: nothing has moved since TIME, though Teleport has newer events mend="the status page and the lines before say what is held up, if anything is known; if nothing is, restart it: nothing is lost by that"
    TIME  INFO no longer stalled: it moves again, or an end does not answer
    "#);
}

#[test]
fn a_log_whose_newest_event_is_stored_is_not_stalled_though_its_position_stands() {
    let top = format!("start-time = {:?}", rfc3339(midnight(2)));
    let mut rig = Rig::new(&top, "");
    // The position does not pass a day that has a chunk which cannot be read.
    let mut large = event(0, "large", midnight(1));
    large["command"] = "x".repeat(5000).into();
    rig.append_unwanted([large]);
    rig.append([event(1, "small", Utc::now() - TimeDelta::seconds(5))]);
    let refused = Unreadable::Refused(Code::ResourceExhausted);
    rig.auth().set_unreadable(Some((4000, refused)));
    let running = rig.spawn(&ARGS);
    let address = address(&running);
    wait_until_said(&running, "a chunk breaks at the same event each time");
    rig.wait_until_stored(1);
    let position = || metric(&address, "event_indexer_checkpoint_time_seconds");
    let stands = position();
    assert!(stands.is_some());
    // It is asked again and again, and each time there is nothing newer.
    wait_until("Teleport was asked five times", || {
        let answer = get(&address, "/readyz");
        assert_eq!((answer.status, answer.text()), (200, "ready\n"));
        match rig.auth().n_calls(Method::Search) {
            5.. => Ok(()),
            n => Err(n),
        }
    });
    assert_eq!(position(), stands);
    assert!(!running.stderr().contains("stalled"));
    // Now there is, and it cannot be read either.
    rig.auth()
        .fail_next(Method::ReadChunk, 1000, Code::DataLoss);
    rig.append([event(2, "small", Utc::now() - TimeDelta::seconds(1))]);
    wait_for_readiness(&address, 503, "stalled: nothing has moved since ");
}
