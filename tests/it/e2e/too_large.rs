//! Events that are too large for a real Elasticsearch: one for what it takes in a request, one for the
//! memory that it has for indexing.

use std::fs;
use std::time::Duration;

use chrono::TimeDelta;
use serde_json::Value;
use teleport_event_indexer::checkpoint::{Checkpoint, DeadLetterFilter, PagePlace};
use tokio::time::Instant;

use super::Api;
use crate::support::elasticsearch::{Elasticsearch, Options, oldest};
use crate::support::faketeleport::FakeTeleport;
use crate::support::journey::Journey;
use crate::support::rig::{event, midnight, wait_until_said};
use crate::support::{scratch, wait_until};

#[test]
fn events_that_are_too_large_for_the_oldest_elasticsearch_are_found_and_kept_whole() {
    check(oldest());
}

fn check(version: &'static str) {
    let Some(elasticsearch) = Elasticsearch::start(Options {
        version,
        extra: "http.max_content_length=4mb,indexing_pressure.memory.limit=1500kb",
        ..Options::default()
    }) else {
        return;
    };
    let of = |kind: &str, place: i64, bytes: usize| {
        let mut event = event(place, kind, midnight(2) + TimeDelta::minutes(place));
        event["user"] = "alice".into();
        event["message"] = "x".repeat(bytes).into();
        event
    };
    // Those of 400 kB are too large together.
    let mut log: Vec<Value> = (0..100).map(|n| of("small", n, 10)).collect();
    log.extend((100..120).map(|n| of("fitting", n, 400_000)));
    log.extend([
        of("too.large", 120, 2_000_000),
        of("larger", 121, 5_000_000),
    ]);
    let directory = scratch("too-large");
    let path = directory.path().join("events.jsonl");
    let lines: Vec<String> = log.iter().map(Value::to_string).collect();
    fs::write(&path, lines.join("\n")).expect("the folder takes a file");
    let Some(teleport) = FakeTeleport::start_on(&path, &[]) else {
        return;
    };
    teleport.faults(&Api::Export.faults());

    let journey = Journey::new("e2e-too-large", &teleport, &elasticsearch, "");
    let day = |days_ago| midnight(days_ago).format("%Y-%m-%d").to_string();
    let (from, to) = (day(2), day(1));
    let args = [
        &super::backfill(&from, &to)[..],
        &["--elasticsearch-batch-bytes=3MiB"],
    ];
    let running = journey.spawn(&args.concat());
    // Only after a minute a 429 is taken for what it is.
    wait_until_said(&running, "bulk request failed, trying again: ");
    let failing = Instant::now();
    wait_until("it has failed for a minute", || {
        let lasting = failing.elapsed();
        let is_long = lasting > Duration::from_secs(60);
        is_long.then_some(()).ok_or(format!("{lasting:?}"))
    });
    wait_until_said(&running, "event_type=\"too.large\"");
    let output = running.wait();
    assert_eq!(output.code, Some(1), "{}", output.stderr);
    let documents = journey.documents();
    assert_eq!(documents.len(), log.len());

    let state = Checkpoint::open_existing_read_only(&journey.indexer.directory().join("state"));
    let state = state.expect("the state can be read").expect("there is one");
    let page = state
        .dead_letter_page(&DeadLetterFilter::default(), PagePlace::default(), u64::MAX)
        .expect("the state can be read");
    let mut letters: Vec<_> = page.letters.into_iter().map(|(_, letter)| letter).collect();
    letters.sort_by_key(|letter| letter.status);
    assert_eq!(letters.len(), 2);
    for (letter, (status, event)) in letters.iter().zip([(413, &log[121]), (429, &log[120])]) {
        assert_eq!(letter.status, Some(status));
        let document: Value = serde_json::from_slice(&letter.document).expect("it is JSON");
        assert_eq!(document, *event);
        let key = (letter.index_name.clone(), letter.document_id.clone());
        let short = &documents[&key];
        for same in ["time", "event", "user", "uid", "cluster_name"] {
            assert_eq!(short[same], event[same], "{same}");
        }
        assert_eq!(short["event_indexer.refused.type"], *letter.error_type);
        assert_eq!(short.get("message"), None);
        let mut lines = output.stderr.lines();
        let is_told = lines.any(|line| {
            line.contains("too large for Elasticsearch") && line.contains(&letter.document_id)
        });
        assert!(is_told, "{}", output.stderr);
    }
}
