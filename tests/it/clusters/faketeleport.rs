//! On the real things: two audit logs in Teleport's own wire format, into one real Elasticsearch.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::elasticsearch::{Elasticsearch, NEWEST};
use crate::support::faketeleport::FakeTeleport;
use crate::support::journey::{PASSWORD, days_ago, install, same_form};
use crate::support::program::Indexer;
use crate::support::wait_until;

const EVENTS: usize = 20_000;

fn log(cluster: &str, seed: &str, faults: &Value) -> Option<FakeTeleport> {
    let events = EVENTS.to_string();
    let size = ["--events", &events, "--days", "3", "--seed", seed];
    let teleport = FakeTeleport::start(&[&size[..], &["--cluster", cluster]].concat())?;
    teleport.faults(faults);
    Some(teleport)
}

#[test]
fn two_logs_come_into_the_same_indices_exactly_over_kills() {
    let Some(elasticsearch) = Elasticsearch::shared(NEWEST, true) else {
        return;
    };
    let by_export = json!({"unimplemented_search": true});
    let Some(east) = log("east.example.com", "1", &by_export) else {
        return;
    };
    let by_search = json!({"unimplemented_export": true});
    let Some(west) = log("west.example.com", "2", &by_search) else {
        return;
    };
    let name = "two-logs";
    install(name, elasticsearch);
    let indexer = Indexer::new();
    let table = |table: &str, teleport: &FakeTeleport| {
        format!(
            "[[cluster]]\nname = {table:?}\n[cluster.teleport]\naddr = {:?}\nidentity = {:?}\n",
            teleport.addr(),
            teleport.identity()
        )
    };
    indexer.write(
        "config.toml",
        &format!(
            r#"storage = "state"
            sessions = false
            start-time = {start:?}
            [forward.elasticsearch]
            hosts = [{url:?}]
            user = {name:?}
            password = {PASSWORD:?}
            index = "{name}-%Y.%m.%d"
            install.template = {name:?}
            {east}
            {west}
            "#,
            start = days_ago(3),
            url = elasticsearch.url(),
            east = table("east", &east),
            west = table("west", &west),
        ),
    );
    let indices = format!("{name}-*");
    let created = || {
        let path = format!("/{indices}/_stats/indexing");
        let answer = elasticsearch.request("GET", &path, &Value::Null);
        let total = &answer.success().json()["_all"]["primaries"]["indexing"]["index_total"];
        total.as_u64().unwrap_or(0)
    };
    let start = ["--config", "config.toml", "start", "--exit-on-last-event"];
    for part in [1, 2] {
        let mut running = indexer.spawn(&start);
        wait_until("a third more is there", || {
            let created = created();
            let is_enough = created >= part * (2 * EVENTS as u64) / 3;
            (is_enough || !running.is_running())
                .then_some(())
                .ok_or(created)
        });
        running.kill();
    }
    let output = indexer.run(&start);
    assert_eq!(output.code, Some(0), "{}", output.stderr);

    elasticsearch.refresh(&indices);
    let documents = elasticsearch.all_documents(&indices);
    assert_eq!(documents.len(), 2 * EVENTS);
    let logs = BTreeMap::from([("east.example.com", &east), ("west.example.com", &west)]);
    compare(documents, logs);
    let output = indexer.run(&["--config", "config.toml", "status", "--json"]);
    let picture: Value = serde_json::from_str(&output.stdout).expect("it prints JSON");
    let run = |n: usize| {
        let run = &picture["clusters"][n]["runs"][0];
        (
            run["api"].clone(),
            run["gaps"].clone(),
            run["dead_letters"].clone(),
        )
    };
    assert_eq!(run(0), (json!("export"), json!(0), json!(0)));
    assert_eq!(run(1), (json!("search"), json!(0), json!(0)));
}

/// Compares all documents, by index and id, with all events of the logs of these clusters.
///
/// # Panics
/// If an event is not a document exactly once, equal to it, or if there is another document.
pub(super) fn compare(
    documents: BTreeMap<(String, String), Value>,
    logs: BTreeMap<&str, &FakeTeleport>,
) {
    let mut by_cluster: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for source in documents.into_values() {
        let cluster = source["cluster_name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let documents = by_cluster.entry(cluster).or_default();
        documents.push(same_form(source).to_string());
    }
    for (cluster, teleport) in logs {
        let mut found = by_cluster.remove(cluster).unwrap_or_default();
        let events = teleport.events_jsonl().into_iter();
        let mut sent: Vec<String> = events.map(|event| same_form(event).to_string()).collect();
        found.sort_unstable();
        sent.sort_unstable();
        assert_eq!(found.len(), sent.len(), "{cluster}");
        for (found, sent) in found.iter().zip(&sent) {
            assert_eq!(found, sent);
        }
    }
    assert_eq!(by_cluster, BTreeMap::new());
}
