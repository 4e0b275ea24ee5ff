//! What a real Elasticsearch refuses for a while: blocked indices, a role that is too small,
//! credentials that are withdrawn, and more than it can take.

use std::fs;

use serde_json::{Value, json};

use super::{Api, START, start_time};
use crate::support::elasticsearch::{Elasticsearch, NEWEST, NEWEST_8, Options, oldest};
use crate::support::journey::{Journey, install};
use crate::support::program::Running;
use crate::support::wait_until;

const EVENTS: u64 = 3_000;

/// A block by name, how it is set and lifted (method, what follows the index, body), and what is
/// said of it.
type Block = (
    &'static str,
    (&'static str, &'static str, Value),
    (&'static str, &'static str, Value),
    &'static str,
);

fn blocks() -> [Block; 3] {
    let settings = |name: &str, value: Value| ("PUT", "_settings", json!({ name: value }));
    [
        (
            "write",
            settings("index.blocks.write", true.into()),
            settings("index.blocks.write", Value::Null),
            "lift its block",
        ),
        (
            "full",
            settings("index.blocks.read_only_allow_delete", true.into()),
            settings("index.blocks.read_only_allow_delete", Value::Null),
            "disk is full",
        ),
        (
            "closed",
            ("POST", "_close", Value::Null),
            ("POST", "_open", Value::Null),
            "open the index",
        ),
    ]
}

#[test]
fn a_blocked_index_of_the_newest_elasticsearch_is_waited_for_on_the_disk() {
    wait_for_blocked(Elasticsearch::shared(NEWEST, true), Api::Export);
}

#[test]
fn a_blocked_index_of_the_oldest_elasticsearch_is_waited_for_on_the_disk() {
    wait_for_blocked(Elasticsearch::shared(oldest(), false), Api::Search);
}

fn wait_for_blocked(elasticsearch: Option<&Elasticsearch>, api: Api) {
    let Some(elasticsearch) = elasticsearch else {
        return;
    };
    let Some(teleport) = api.log(EVENTS, &[]) else {
        return;
    };
    install("e2e-blocked", elasticsearch);
    for (name, set, lift, said) in blocks() {
        let prefix = format!("e2e-blocked-{name}");
        let settings = start_time();
        let journey =
            Journey::installed("e2e-blocked", &prefix, &teleport, elasticsearch, &settings);
        let log = teleport.events_jsonl();
        let index = journey.index_of(&log[log.len() / 2]);
        let blocked = log.iter().filter(|event| journey.index_of(event) == index);
        let others = EVENTS - blocked.count() as u64;
        let request = |(method, action, body): &(&str, &str, Value)| {
            let path = format!("/{index}/{action}");
            elasticsearch.request(method, &path, body).success();
        };
        elasticsearch
            .request("PUT", &format!("/{index}"), &Value::Null)
            .success();
        request(&set);

        let mut running = journey.spawn(&START);
        wait_for_words(&mut running, said);
        // The node itself lifts this one as soon as it looks at its disk, which has room.
        if name != "full" {
            wait_until("all blocked documents are on the disk", || {
                let waiting = journey.status()["blocked"]["count"].as_u64();
                let waiting = waiting.expect("status counts them");
                (waiting == EVENTS - others).then_some(()).ok_or(waiting)
            });
            journey.wait_for_created(others, &mut running);
            assert!(running.is_running());
        }
        request(&lift);
        let output = running.wait();
        assert_eq!(output.code, Some(0), "{name}: {}", output.stderr);
        assert_eq!(journey.assert_complete() as u64, EVENTS, "{name}");
        assert_eq!(journey.status()["blocked"]["count"], 0);
    }
}

fn wait_for_words(running: &mut Running, words: &str) {
    wait_until(&format!("it says {words:?}"), || {
        let is_running = running.is_running();
        let said = running.stderr();
        assert!(is_running || said.contains(words), "{said}");
        said.contains(words).then_some(()).ok_or(said)
    });
}

#[test]
fn a_small_role_or_a_changed_password_at_the_newest_elasticsearch_holds_everything() {
    small_role_and_changed_password(NEWEST);
}

#[test]
fn a_small_role_or_a_changed_password_at_the_newest_elasticsearch_8_holds_everything() {
    small_role_and_changed_password(NEWEST_8);
}

fn small_role_and_changed_password(version: &'static str) {
    let Some(elasticsearch) = Elasticsearch::shared(version, true) else {
        return;
    };
    let Some(teleport) = Api::Export.log(EVENTS, &[]) else {
        return;
    };
    let name = "e2e-rights";
    let journey = Journey::new(name, &teleport, elasticsearch, &start_time());
    let put = |path: &str, body: &Value| elasticsearch.request("PUT", path, body).success();
    let role = format!("/_security/role/{name}");
    let writer = elasticsearch
        .request("GET", &role, &Value::Null)
        .success()
        .json();
    let writer = json!({"cluster": writer[name]["cluster"], "indices": writer[name]["indices"]});
    let mut small = writer.clone();
    small["indices"][0]["privileges"] = json!(["auto_configure"]);
    put(&role, &small);
    let mut running = journey.spawn(&START);
    wait_for_words(&mut running, "`create_doc` and `auto_configure`");
    assert_eq!(journey.created(), 0);
    put(&role, &writer);
    let output = running.wait();
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert_eq!(journey.assert_complete() as u64, EVENTS);

    // Another log into other indices, while the password is another one.
    let prefix = "e2e-rights-password";
    let journey = Journey::installed(name, prefix, &teleport, elasticsearch, &start_time());
    teleport.faults(&json!({"delay_per_event_us": 1_000}));
    let mut running = journey.spawn(&START);
    journey.wait_for_created(1, &mut running);
    let hash = format!("/_security/user/{name}/_password");
    put(&hash, &json!({"password": "quite another one"}));
    wait_for_words(&mut running, "refuses the credentials");
    put(
        &hash,
        &json!({"password": crate::support::journey::PASSWORD}),
    );
    let output = running.wait();
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert_eq!(journey.assert_complete() as u64, EVENTS);
}

#[test]
fn a_new_api_key_for_the_newest_elasticsearch_is_read_from_its_file() {
    change_api_key(NEWEST);
}

#[test]
fn a_new_api_key_for_the_newest_elasticsearch_8_is_read_from_its_file() {
    change_api_key(NEWEST_8);
}

/// The key is changed in time once, and once only after it was invalidated; the program runs on.
fn change_api_key(version: &'static str) {
    let Some(elasticsearch) = Elasticsearch::shared(version, true) else {
        return;
    };
    let Some(teleport) = Api::Export.log(EVENTS, &[]) else {
        return;
    };
    let journey = Journey::new("e2e-key", &teleport, elasticsearch, &start_time());
    let path = journey.indexer.directory().join("config.toml");
    let by_password = fs::read_to_string(path).expect("there is a configuration");
    let lines = by_password.lines().filter_map(|line| match line.trim() {
        line if line.starts_with("user = ") => Some("api-key = \"file:api-key\"".to_owned()),
        line if line.starts_with("password = ") => None,
        line => Some(line.to_owned()),
    });
    let by_key: Vec<String> = lines.collect();
    journey.indexer.write("config.toml", &by_key.join("\n"));
    // Both spellings that people have at hand.
    let use_key = |is_encoded: bool| {
        let key = json!({"name": "e2e-key"});
        let key = elasticsearch.request("POST", "/_security/api_key", &key);
        let key = key.success().json();
        let text = |name: &str| key[name].as_str().expect("it is a text").to_owned();
        let spelled = if is_encoded {
            text("encoded")
        } else {
            format!("{}:{}", text("id"), text("api_key"))
        };
        journey.indexer.write_private("api-key", &spelled);
        text("id")
    };
    let invalidate = |id: String| {
        let body = json!({"ids": [id]});
        let answer = elasticsearch.request("DELETE", "/_security/api_key", &body);
        answer.success();
    };
    let first = use_key(true);
    teleport.faults(&json!({"delay_per_event_us": 20_000}));
    let mut running = journey.spawn(&START);
    journey.wait_for_created(1, &mut running);
    let second = use_key(false);
    running.hang_up();
    wait_for_words(&mut running, "credentials for Elasticsearch renewed");
    invalidate(first);
    let created = journey.created();
    journey.wait_for_created(created + 100, &mut running);
    assert!(!running.stderr().contains("refuses the credentials"));

    invalidate(second);
    wait_for_words(&mut running, "refuses the credentials");
    use_key(true);
    // What comes after is about the key alone.
    teleport.faults(&json!({"delay_per_event_us": 0}));
    teleport.kill_connections();
    let output = running.wait();
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert_eq!(journey.assert_complete() as u64, EVENTS);
}

#[test]
fn more_than_the_newest_elasticsearch_can_take_arrives_all_the_same() {
    overload(NEWEST);
}

#[test]
fn more_than_the_oldest_elasticsearch_can_take_arrives_all_the_same() {
    overload(oldest());
}

/// A node that takes requests of 400 kB, one and a half of them at once, writes one shard at a time
/// and lets one more wait; and that has no room for more shards at first.
fn overload(version: &'static str) {
    const MANY: u64 = 20_000;
    let Some(elasticsearch) = Elasticsearch::start(Options {
        version,
        extra: "http.max_content_length=400kb,indexing_pressure.memory.limit=600kb,\
                thread_pool.write.size=1,thread_pool.write.queue_size=1",
        ..Options::default()
    }) else {
        return;
    };
    let Some(teleport) = Api::Export.log(MANY, &[]) else {
        return;
    };
    let name = "e2e-overload";
    let journey = Journey::new(name, &teleport, &elasticsearch, &start_time());
    let shards = |most: Value| {
        let body = json!({"persistent": {"cluster.max_shards_per_node": most}});
        let path = "/_cluster/settings";
        elasticsearch.request("PUT", path, &body).success();
    };
    shards(1.into());
    let args = [
        &START[..],
        &[
            "--elasticsearch-in-flight=8",
            "--elasticsearch-batch-bytes=1MiB",
        ],
    ]
    .concat();
    let mut running = journey.spawn(&args);
    wait_for_words(&mut running, "raise cluster.max_shards_per_node");
    shards(Value::Null);
    let output = running.wait();
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert_eq!(journey.assert_complete() as u64, MANY);
    assert_eq!(journey.status()["dead_letters"]["count"], 0);

    let path = "/_nodes/stats/thread_pool,indexing_pressure";
    let stats = elasticsearch.request("GET", path, &Value::Null);
    let stats = stats.success().json();
    let nodes = stats["nodes"].as_object().expect("there are nodes");
    let node = nodes.values().next().expect("there is one");
    let count = |pointer: &str| node.pointer(pointer).and_then(Value::as_u64);
    let queue = count("/thread_pool/write/rejected");
    let memory = count("/indexing_pressure/memory/total/coordinating_rejections");
    assert!(
        queue > Some(0),
        "{queue:?} items were refused for the queue"
    );
    assert!(
        memory > Some(0),
        "{memory:?} requests were refused for their memory"
    );
}
