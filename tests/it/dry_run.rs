//! `--dry-run` prints exactly the documents, one on each line, and touches nothing.
#![expect(
    clippy::unwrap_used,
    reason = "clippy takes only what is marked as a test for one, not what tests call"
)]

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use teleport_event_indexer::demo::auth::AuthOptions;
use teleport_event_indexer::demo::certs::IdentityOptions;
use teleport_event_indexer::demo::events::{Id, encode, generate};

use crate::support::program::{Indexer, Output};
use crate::support::stand_ins::Teleport;

/// Two days and a half, so that windows and chunks border on midnights.
const EVENTS: u64 = 3_000;

fn from() -> DateTime<Utc> {
    "2026-01-01T12:00:00Z".parse().unwrap()
}

/// A cluster with its log, and an indexer that knows nothing but Teleport.
fn set_up(export: bool) -> (Indexer, Teleport, BTreeSet<String>) {
    let options = AuthOptions {
        export,
        ..AuthOptions::default()
    };
    let teleport = Teleport::start_with("a.example", options);
    let to = from() + TimeDelta::hours(60);
    let events: Vec<Value> = generate(1, EVENTS, from(), to, "a.example").collect();
    let encoded = events.iter().map(|event| encode(event, Id::OfEvent));
    teleport.auth.control().append(encoded);
    let indexer = Indexer::new();
    indexer.identify(&teleport.cluster, &IdentityOptions::default());
    let config = format!(
        "sessions = false\n[teleport]\naddr = \"{}\"\nidentity = \"identity\"\n",
        teleport.addr()
    );
    indexer.write("config.toml", &config);
    let wanted = events.iter().map(Value::to_string).collect();
    (indexer, teleport, wanted)
}

/// The documents, written in one and the same way, each of which must be there once.
fn documents(output: &Output) -> BTreeSet<String> {
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    let mut documents = BTreeSet::new();
    for line in output.stdout.lines() {
        let document: Value = serde_json::from_str(line).expect("each line is a document");
        assert!(documents.insert(document.to_string()), "twice: {line}");
    }
    documents
}

fn assert_nothing_left(indexer: &Indexer) {
    let mut names: Vec<_> = indexer.directory().read_dir().unwrap().collect();
    names.sort_by_key(|entry| entry.as_ref().unwrap().file_name());
    let names = names.into_iter().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.collect::<Vec<_>>(), ["config.toml", "identity"]);
}

#[test]
fn start_prints_the_documents_and_touches_nothing() {
    for export in [true, false] {
        let (indexer, _teleport, wanted) = set_up(export);
        let args = [
            "start",
            "--dry-run",
            "--exit-on-last-event",
            "-c",
            "config.toml",
        ];
        // A storage that is set is not made either.
        let more = ["--start-time=2026-01-01", "--storage=state"];
        let output = indexer.run(&[&args[..], &more].concat());
        assert!(documents(&output) == wanted, "export: {export}");
        assert_nothing_left(&indexer);
    }
}

#[test]
fn backfill_prints_the_documents_of_its_range_and_touches_nothing() {
    for export in [true, false] {
        let (indexer, _teleport, mut wanted) = set_up(export);
        let args = ["backfill", "--dry-run", "-c", "config.toml"];
        let range = ["--from=2026-01-02", "--to=2026-01-03", "--storage=state"];
        let output = indexer.run(&[&args[..], &range].concat());
        wanted.retain(|event| event.contains("\"time\":\"2026-01-02T"));
        assert!(wanted.len() > 1_000);
        assert!(documents(&output) == wanted, "export: {export}");
        assert_nothing_left(&indexer);
    }
}
