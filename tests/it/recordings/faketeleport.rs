//! The same against Teleport's own wire format.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use teleport_event_indexer::demo::elastic::{ElasticsearchControl, ElasticsearchOptions};

use super::START;
use crate::support::faketeleport::FakeTeleport;
use crate::support::http;
use crate::support::journey::days_ago;
use crate::support::program::Indexer;
use crate::support::stand_ins;
use crate::support::wait_until;

/// All documents of events by session, index, type and `uid`.
fn events(elasticsearch: &ElasticsearchControl) -> BTreeMap<[String; 4], usize> {
    let mut events = BTreeMap::new();
    for document in elasticsearch.documents() {
        let source: Value = serde_json::from_str(&document.source).expect("it is JSON");
        let text = |key: &str| source[key].as_str().unwrap_or_default().to_owned();
        let key = [
            text("sid"),
            source["ei"].to_string(),
            text("event"),
            text("uid"),
        ];
        *events.entry(key).or_default() += 1;
    }
    events
}

#[test]
fn each_recorded_event_is_there_once() {
    const SESSIONS: usize = 200;
    let args = [
        "--events",
        "3000",
        "--days",
        "2",
        "--sessions",
        "200",
        "--session-events",
        "40",
    ];
    let Some(teleport) = FakeTeleport::start(&args) else {
        return;
    };
    let faults = json!({"session_notfound_first": 1, "reset_every": 900, "reset_mode": "fin"});
    teleport.faults(&faults);
    let elasticsearch = stand_ins::elasticsearch(ElasticsearchOptions::default());
    let control = elasticsearch.control();
    let template = json!({"index_patterns": ["audit-events-*"]}).to_string();
    let json = ["content-type: application/json"];
    let address = elasticsearch.address().to_string();
    let path = "/_index_template/audit-events";
    http::request(&address, "PUT", path, &json, template.as_bytes())
        .expect("the stand-in answers")
        .success();
    let indexer = Indexer::new();
    let (identity, url) = (teleport.identity(), elasticsearch.url());
    indexer.write(
        "config.toml",
        &format!(
            "storage = 'state'\nstart-time = {:?}\nskip-session-types = []\n[teleport]\n\
             addr = {:?}\nidentity = {identity:?}\n[forward.elasticsearch]\nhosts = [{url:?}]\n",
            days_ago(2),
            teleport.addr()
        ),
    );
    let args = [&["-c", "config.toml"], &START[..]].concat();
    for enough in [500, 3_000, 6_000, 9_000] {
        let mut running = indexer.spawn(&args);
        wait_until("enough is stored", || {
            let stored = control.count();
            let is_done = stored >= enough || !running.is_running();
            is_done.then_some(()).ok_or(stored)
        });
        running.kill();
    }
    let output = indexer.run(&args);
    assert_eq!(output.code, Some(0), "{}", output.stderr);

    let found = events(control);
    let mut expected = BTreeSet::new();
    for line in teleport.session_uids() {
        let parts: Vec<&str> = line.split('\t').collect();
        let [session, index, id, kind] = parts[..] else {
            panic!("{line}");
        };
        let uid = if kind == "print" { "" } else { id };
        expected.insert([session, index, kind, uid].map(str::to_owned));
    }
    assert_eq!(expected.len(), SESSIONS * 40);
    for key in &expected {
        assert_eq!(found.get(key), Some(&1), "{key:?}");
    }
    let documents: usize = found.values().sum();
    // The log's events, the recorded ones, one document about each session.
    assert_eq!(documents, 3000 + SESSIONS * 40 + SESSIONS);
}
