//! The servers that other tests build on are what these take them for.

use serde_json::{Value, json};

use crate::support::elasticsearch::{Elasticsearch, NEWEST, Options, oldest};
use crate::support::faketeleport::FakeTeleport;
use crate::support::scratch;

/// A `_bulk` body that creates documents with these numbers as ids.
fn creates(index: &str, numbers: std::ops::Range<u32>) -> Value {
    let mut body = String::new();
    for number in numbers {
        let action = json!({"create": {"_index": index, "_id": format!("{number}")}});
        body += &format!("{action}\n{}\n", json!({"number": number}));
    }
    Value::String(body)
}

#[test]
fn security_asks_who_it_is_and_what_they_may() {
    let Some(server) = Elasticsearch::shared(NEWEST, true) else {
        return;
    };
    let refused = server.anonymous().request("GET", "/", &Value::Null);
    assert_eq!(refused.status, 401);
    assert_eq!(
        refused.json()["error"]["type"],
        "security_exception",
        "{refused:?}"
    );
    let root = server.request("GET", "/", &Value::Null);
    assert_eq!(root.status, 200);
    assert!(
        root.head
            .to_lowercase()
            .contains("x-elastic-product: elasticsearch")
    );
    assert_eq!(root.json()["version"]["number"], NEWEST);

    let role = json!({"indices": [{"names": ["servers-*"], "privileges": ["create_doc", "auto_configure"]}]});
    let writer = server.create_user("servers-writer", "a long password", &role);
    let answer = writer.request("POST", "/_bulk", &creates("servers-role", 0..1));
    assert_eq!(answer.json()["items"][0]["create"]["status"], 201);
    let answer = writer.request("POST", "/_bulk", &creates("others", 0..1));
    assert_eq!(answer.json()["items"][0]["create"]["status"], 403);
    let answer = writer.request("GET", "/servers-role/_search", &Value::Null);
    assert_eq!(answer.status, 403);
}

#[test]
fn the_newest_elasticsearch_keeps_what_it_acknowledged() {
    keeps_what_it_acknowledged(NEWEST);
}

#[test]
fn the_oldest_elasticsearch_keeps_what_it_acknowledged() {
    keeps_what_it_acknowledged(oldest());
}

fn keeps_what_it_acknowledged(version: &'static str) {
    let Some(mut server) = Elasticsearch::start(Options {
        version,
        extra: "http.max_content_length=1mb",
        ..Options::default()
    }) else {
        return;
    };
    let root = server.request("GET", "/", &Value::Null).success().json();
    assert_eq!(root["version"]["number"], version);

    // More than one page of all_documents, in two indices.
    for (index, numbers) in [("kept-1", 0..4_000), ("kept-2", 4_000..7_000)] {
        let answer = server.request("POST", "/_bulk", &creates(index, numbers));
        assert_eq!(answer.success().json()["errors"], false);
    }
    let too_large = "x".repeat(2 << 20).into();
    assert_eq!(server.request("POST", "/_bulk", &too_large).status, 413);

    server.kill();
    assert!(server.try_request("GET", "/", b"").is_err());
    let url = server.url();
    server.restart();
    assert_eq!(server.url(), url);

    let again = server.request("POST", "/_bulk", &creates("kept-1", 0..1));
    assert_eq!(again.json()["items"][0]["create"]["status"], 409);
    server.refresh("kept-*");
    assert_eq!(server.count("kept-*"), 7_000);
    let documents = server.all_documents("kept-*");
    assert_eq!(documents.len(), 7_000);
    let key = ("kept-2".to_owned(), "6999".to_owned());
    assert_eq!(documents[&key], json!({"number": 6_999}));
}

#[test]
fn faketeleport_serves_its_log_and_another() {
    let Some(teleport) = FakeTeleport::start(&["--events", "100", "--sessions", "2"]) else {
        return;
    };
    let events = teleport.events_jsonl();
    assert_eq!(events.len(), 100);
    let uids: Vec<_> = events.iter().map(|event| event["uid"].clone()).collect();
    assert_eq!(json!(teleport.uids()), Value::Array(uids));

    let added = teleport.append("n=3&type=user.login");
    assert_eq!(added, teleport.uids()[100..]);

    teleport.faults(&json!({"unimplemented_export": true}));
    let output = teleport.reference_client("export");
    assert_eq!(output.code, Some(1), "{output:?}");
    teleport.faults(&json!({"reset": true}));
    let output = teleport.reference_client("search,export,sessions");
    assert_eq!(output.code, Some(0), "{output:?}");
    assert_eq!(teleport.stats()["log_events"], 103);
    assert_eq!(teleport.kill_connections(), 0);

    let log = scratch("log");
    let path = log.path().join("events.jsonl");
    let lines: Vec<_> = events.iter().map(Value::to_string).collect();
    std::fs::write(&path, lines.join("\n")).unwrap();
    let other = FakeTeleport::start_on(&path, &["--cluster", "other.example.test"]).unwrap();
    assert_eq!(other.events_jsonl(), events);
    assert_eq!(other.quit().code, Some(0));
}
