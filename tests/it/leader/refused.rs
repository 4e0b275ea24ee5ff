//! Elasticsearch refuses all there is, in safe form too, and the leader dies while it keeps that.

use std::collections::BTreeSet;

use std::sync::mpsc::{self, TryRecvError};
use std::thread;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use teleport_event_indexer::checkpoint::{DeadLetter, DocumentForm};
use teleport_event_indexer::elastic::dead_letters::{DeadLetterIndex, INDEX};
use tokio::time::{sleep, timeout};

use super::letters::letter;
use super::{LEADS, START, install, pair, says};
use crate::support::elasticsearch::{Elasticsearch, NEWEST, Options};
use crate::support::faketeleport::FakeTeleport;
use crate::support::journey::{client, days_ago, installer};
use crate::support::stand_ins::block_on;
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
    let type_of_event = json!({"type": "long", "ignore_malformed": false});
    create_indices(&server, &json!({"properties": {"event": type_of_event}}));

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

    // Refused for another reason now, by which they were not chosen.
    delete_indices(&server);
    create_indices(&server, &json!({"_routing": {"required": true}}));
    let retry = ["dead-letters", "retry"];
    let chosen = [&retry[..], &["--error-type", "document_parsing_exception"]].concat();
    assert_eq!(first.spawn(&chosen).wait().code, Some(1));
    assert_eq!(kept(&server), all);
    let status = first.status();
    let types = json!({"routing_missing_exception": EVENTS});
    assert_eq!(status["dead_letters"]["by_error_type"], types, "{status}");

    // Whoever sends them again dies half-way.
    delete_indices(&server);
    let mut sends = first.spawn(&[&retry[..], &["--elasticsearch-batch-bytes=100000"]].concat());
    wait_until("some are gone", || match kept(&server).len() {
        some if some < EVENTS => Ok(()),
        all => Err(all),
    });
    sends.kill();
    let left = kept(&server);
    assert!(!left.is_empty(), "it was done");
    let stored = first.documents().into_values();
    let stored = stored.map(|event| event["uid"].as_str().expect("it has an id").to_owned());
    let stored: BTreeSet<_> = stored.collect();
    assert_eq!(&stored | &left, all);
    first.run(&retry);
    assert_eq!(kept(&server), BTreeSet::new());
    assert_eq!(first.assert_complete(), EVENTS);
}

fn create_indices(server: &Elasticsearch, mappings: &Value) {
    for days in 0..5 {
        let day = Utc::now() + TimeDelta::days(1) - TimeDelta::days(days);
        let path = format!("/{NAME}-{}", day.format("%Y.%m.%d"));
        let index = json!({"mappings": mappings});
        server.request("PUT", &path, &index).success();
    }
}

fn delete_indices(server: &Elasticsearch) {
    let path = format!("/_cat/indices/{NAME}-*?format=json");
    let indices = server.request("GET", &path, &Value::Null).success().json();
    for index in indices.as_array().expect("they are listed") {
        let name = index["index"].as_str().expect("it has a name");
        let path = format!("/{name}");
        server.request("DELETE", &path, &Value::Null).success();
    }
}

/// Elasticsearch gives up a search whose client has gone, and with it any other that waits for the
/// same sums. So a leader that dies must not take along those of its successor.
#[test]
fn sums_are_told_though_others_who_ask_for_them_go_away() {
    let Some(server) = Elasticsearch::shared(NEWEST, false) else {
        return;
    };
    let name = "gone";
    let indexer = installer(name, server);
    install(server, name);
    let letters = DeadLetterIndex::new(client(&indexer), name);
    block_on(letters.keep(&many(name), u64::MAX)).expect("there is room");
    // Sums are computed anew only after a write and a refresh.
    let (is_over, over) = mpsc::channel::<()>();
    let writer = thread::spawn(move || {
        let path = format!("/{INDEX}/_doc/{name}?refresh=true");
        while over.try_recv() == Err(TryRecvError::Empty) {
            server.request("PUT", &path, &json!({})).success();
        }
    });
    let goes_away = async || {
        for round in (0..4).cycle() {
            let patience = Duration::from_millis(2) + Duration::from_micros(500) * round;
            drop(timeout(patience, letters.summary()).await);
            // Faster than Elasticsearch takes connections is of no use.
            sleep(Duration::from_millis(2)).await;
        }
    };
    let asks = async {
        for _ in 0..1_000 {
            let told = letters.summary().await;
            told.expect("nothing is in its way");
        }
    };
    block_on(async {
        tokio::select! {
            () = asks => {}
            () = async { tokio::join!(goes_away(), goes_away(), goes_away()); } => {}
        }
    });
    drop(is_over);
    writer.join().expect("it has written");
}

fn many(index_name: &str) -> Vec<DeadLetter> {
    let numbers = 0..5_000;
    numbers
        .map(|number| {
            letter(
                &number.to_string(),
                index_name,
                "{}".to_owned(),
                DocumentForm::Json,
            )
        })
        .collect()
}
