//! Elasticsearch refuses all there is, in safe form too, and the leader dies while it keeps that.

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use teleport_event_indexer::elastic::dead_letters::INDEX;

use super::{LEADS, START, pair, says};
use crate::support::elasticsearch::{Elasticsearch, Options};
use crate::support::faketeleport::FakeTeleport;
use crate::support::journey::days_ago;
use crate::support::wait_until;

const NAME: &str = "refusing";
const EVENTS: usize = 20_000;

/// The ids of the events that are dead letters. What was written just now is among them.
fn kept(server: &Elasticsearch) -> BTreeSet<String> {
    let path = format!("/{INDEX}/_refresh");
    if server.request("POST", &path, &Value::Null).status == 404 {
        return BTreeSet::new();
    }
    let letters = server.all_documents(INDEX);
    let uids = letters.values().map(|letter| {
        assert_eq!(letter["settled"], false, "{letter}");
        let document = letter["document"].as_str().expect("it is small");
        let document: Value = serde_json::from_str(document).expect("it is whole");
        document["uid"].as_str().expect("it has an id").to_owned()
    });
    let uids: Vec<_> = uids.collect();
    let distinct: BTreeSet<_> = uids.iter().cloned().collect();
    assert_eq!(uids.len(), distinct.len(), "each is one letter");
    distinct
}

#[test]
fn a_refusal_of_all_is_kept_though_the_leader_dies_half_way() {
    let Some(server) = Elasticsearch::start(Options::default()) else {
        return;
    };
    let events = EVENTS.to_string();
    let Some(teleport) = FakeTeleport::start(&["--events", &events, "--days", "2"]) else {
        return;
    };
    let settings = format!("state = \"elasticsearch\"\nstart-time = {:?}", days_ago(3));
    let [first, second] = pair(NAME, &teleport, &server, &settings);
    // As somebody's own indices may have it. The safe form has this field as well.
    let mappings = json!({"properties": {"event": {"type": "long", "ignore_malformed": false}}});
    for days in 0..5 {
        let day = Utc::now() + TimeDelta::days(1) - TimeDelta::days(days);
        let path = format!("/{NAME}-{}", day.format("%Y.%m.%d"));
        let index = json!({"mappings": mappings});
        server.request("PUT", &path, &index).success();
    }

    // Many batches, so that it dies between some of them.
    let args = [&START[..], &["--elasticsearch-batch-documents=200"]].concat();
    let mut a = first.spawn(&args);
    says(&mut a, LEADS, 1);
    let mut b = second.spawn(&args);
    says(&mut b, "standing by: process ", 1);
    wait_until("some are kept", || match kept(&server).len() {
        some if some > 0 => Ok(()),
        none => Err(none),
    });
    a.kill();
    // What is told first, since letters that come after it prove nothing.
    let status = first.status();
    let half = kept(&server);
    assert!((1..EVENTS).contains(&half.len()), "{}", half.len());
    let time = |value: &Value| {
        let time = value.as_str().expect("it is a time");
        DateTime::parse_from_rfc3339(time).expect("it is a time")
    };
    // None: no state has been written yet, and nothing is passed.
    let position = status["runs"].get(0).map(|run| time(&run["position"]));
    for event in teleport.events_jsonl() {
        let uid = event["uid"].as_str().expect("it has an id");
        let is_passed = position.is_some_and(|position| time(&event["time"]) < position);
        assert!(!is_passed || half.contains(uid), "{status} {event}");
    }

    says(&mut b, LEADS, 1);
    wait_until("all are kept, and passed", || {
        let kept = kept(&server).len();
        let status = first.status();
        let is_told = status["dead_letters"]["count"] == EVENTS && status["gaps"]["count"] == 0;
        let is_done = kept == EVENTS && is_told;
        is_done.then_some(()).ok_or(format!("{kept} {status}"))
    });
    b.terminate();
    let output = b.wait();
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    let all: BTreeSet<_> = teleport.uids().into_iter().collect();
    assert_eq!(kept(&server), all);
    assert_eq!(first.count(), 0);
}
