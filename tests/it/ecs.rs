//! Documents with the fields of the Elastic Common Schema, in the oldest and the newest server.
#![expect(
    clippy::unwrap_used,
    reason = "clippy takes only what is marked as a test for one, not what tests call"
)]

use std::collections::BTreeSet;

use chrono::{SecondsFormat, TimeDelta, Utc};
use serde_json::{Value, json};
use teleport_event_indexer::demo::certs::IdentityOptions;
use teleport_event_indexer::demo::events::{Id, encode, generate};

use crate::support::elasticsearch::{Elasticsearch, NEWEST, oldest};
use crate::support::program::Indexer;
use crate::support::stand_ins::Teleport;

#[test]
fn both_fields_are_found_in_the_newest_elasticsearch() {
    both_fields_are_found(NEWEST);
}

#[test]
fn both_fields_are_found_in_the_oldest_elasticsearch() {
    both_fields_are_found(oldest());
}

fn both_fields_are_found(version: &'static str) {
    let Some(server) = Elasticsearch::shared(version, false) else {
        return;
    };
    let teleport = Teleport::start("a.example");
    let now = Utc::now();
    let since = now - TimeDelta::hours(2);
    let events = generate(3, 2_000, since, now, "a.example");
    // Objects in place of texts the oldest server takes in safe form only, ECS or not.
    let mut events: Vec<Value> = events
        .filter(|event| !event["target"].is_object())
        .collect();
    let time = since.to_rfc3339_opts(SecondsFormat::Millis, true);
    let mut odd = |uid: &str, mut event: Value| {
        event["uid"] = json!(uid);
        event["time"] = json!(time);
        events.push(event);
    };
    odd(
        "v4",
        json!({"event": "user.login", "code": "T1000W", "user": "ecs-alice", "success": false,
        "addr.remote": "10.9.8.7:567", "addr.local": "[2001:db8::1]:3022", "error": "no"}),
    );
    odd(
        "name",
        json!({"event": "user.login", "user": "ecs-bob", "success": true,
        "addr.remote": "host.example.com:22"}),
    );
    odd(
        "garbage",
        json!({"event": "session.command", "user": "ecs-carol", "path": "/bin/ls-ecs",
        "argv": ["-l-ecs"], "pid": "x", "ei": 0.5, "session_start": "soon", "program": 7}),
    );
    let sent: BTreeSet<String> = events
        .iter()
        .map(|event| event["uid"].to_string())
        .collect();
    assert_eq!(sent.len(), events.len());
    let wire = events.iter().map(|event| encode(event, Id::OfEvent));
    teleport.auth.control().append(wire);

    let indexer = Indexer::new();
    indexer.identify(&teleport.cluster, &IdentityOptions::default());
    indexer.write(
        "config.toml",
        &format!(
            r#"storage = "state"
sessions = false
[teleport]
addr = {:?}
identity = "identity"
[forward.elasticsearch]
hosts = [{:?}]
index = "ecs-%Y.%m.%d"
schema = "ecs"
install = {{ template = "ecs", policy = "ecs", replicas = 0 }}
"#,
            teleport.addr(),
            server.url()
        ),
    );
    let config = ["--config", "config.toml"];
    for said in ["created", "up to date"] {
        let installed = indexer.run(&[&config[..], &["install"]].concat());
        assert_eq!(installed.code, Some(0), "{}", installed.stderr);
        assert!(
            installed
                .stdout
                .contains(&format!("index template ecs: {said}\n"))
        );
        assert!(
            installed.stderr.contains("verified: "),
            "{}",
            installed.stderr
        );
    }
    let start = ["start", "--exit-on-last-event", "--start-time=2026-01-01"];
    let ran = indexer.run(&[&config[..], &start].concat());
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    server.refresh("ecs-*");
    let documents = server.all_documents("ecs-*");
    let is_safe_form = |source: &&Value| source.get("event_indexer.raw").is_some();
    let refused: Vec<_> = documents.values().filter(is_safe_form).collect();
    assert!(refused.is_empty(), "{refused:?}");
    assert_eq!(documents.len(), events.len());
    for source in documents.values() {
        assert_eq!(source["event.action"], source["event"]);
        assert_eq!(source["user.name"].as_str(), source["user"].as_str());
        assert_eq!(source["event.module"], "teleport");
    }
    let found = |query: Value| {
        let body = json!({"query": query, "size": 100, "sort": ["@timestamp"]});
        let answer = server
            .request("POST", "/ecs-*/_search", &body)
            .success()
            .json();
        let hits = answer["hits"]["hits"].as_array().expect("a list").clone();
        let mut names: Vec<String> = hits
            .iter()
            .map(|hit| hit["_source"]["uid"].as_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    };
    // A network is found only in a field of addresses.
    for field in ["client.ip", "source.ip", "related.ip"] {
        assert_eq!(
            found(json!({"term": {field: "10.9.8.0/24"}})),
            ["v4"],
            "{field}"
        );
    }
    assert_eq!(
        found(json!({"term": {"server.ip": "2001:db8::/32"}})),
        ["v4"]
    );
    assert_eq!(
        found(json!({"range": {"client.port": {"gte": 567, "lte": 567}}})),
        ["v4"]
    );
    assert_eq!(
        found(json!({"term": {"client.address": "host.example.com:22"}})),
        ["name"]
    );
    for (field, value, uid) in [
        ("user", "ecs-alice", "v4"),
        ("user.name", "ecs-alice", "v4"),
        ("related.user", "ecs-bob", "name"),
        ("process.executable", "/bin/ls-ecs", "garbage"),
        ("process.args", "-l-ecs", "garbage"),
    ] {
        assert_eq!(found(json!({"term": {field: value}})), [uid], "{field}");
    }
    let failed = json!({"bool": {"filter": [
        {"term": {"event.outcome": "failure"}},
        {"term": {"event.category": "authentication"}},
        {"prefix": {"user.name": "ecs-"}},
    ]}});
    assert_eq!(found(failed), ["v4"]);
}
