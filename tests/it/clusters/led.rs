//! Several clusters with their states in Elasticsearch: of each one daemon leads, whoever leads another.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};

use super::faketeleport::compare;
use crate::leader;
use crate::support::elasticsearch::{Elasticsearch, Options, oldest};
use crate::support::faketeleport::FakeTeleport;
use crate::support::journey::{days_ago, install};
use crate::support::program::{Indexer, Running};
use crate::support::wait_until;

const NAME: &str = "led-clusters";
const START: [&str; 3] = ["--config", "config.toml", "start"];

/// A daemon's folder. `tables` stands in the table of each cluster.
fn indexer(url: &str, logs: [(&str, &FakeTeleport); 2], tables: &str) -> Indexer {
    let indexer = Indexer::new();
    let mut text = format!(
        r#"state = "elasticsearch"
        timeout = "500ms"
        sessions = false
        start-time = {:?}
        [forward.elasticsearch]
        hosts = [{url:?}]
        index = "{NAME}-%Y.%m.%d"
        install.template = {NAME:?}
        "#,
        days_ago(2)
    );
    for (name, teleport) in logs {
        text += &format!(
            "[[cluster]]\nname = {name:?}\n{tables}\n[cluster.teleport]\naddr = {:?}\nidentity = {:?}\n",
            teleport.addr(),
            teleport.identity()
        );
    }
    indexer.write("config.toml", &text);
    indexer
}

fn log(cluster: &str, seed: &str) -> Option<FakeTeleport> {
    let size = ["--events", "2000", "--days", "2", "--seed", seed];
    FakeTeleport::start(&[&size[..], &["--cluster", cluster]].concat())
}

fn leads(running: &Running, cluster: &str) -> bool {
    let said = running.stderr();
    let mut lines = said.lines();
    lines.any(|line| line.contains(leader::LEADS) && line.contains(cluster))
}

#[test]
fn each_cluster_has_a_leader_of_its_own_and_all_go_on_when_a_daemon_dies() {
    let Some(server) = Elasticsearch::start(Options {
        version: oldest(),
        ..Options::default()
    }) else {
        return;
    };
    let (Some(east), Some(west)) = (log("east.example.com", "1"), log("west.example.com", "2"))
    else {
        return;
    };
    install(NAME, &server);
    leader::install(&server, NAME);
    let logs = [("east", &east), ("west", &west)];
    let [a, b] = [(); 2].map(|()| indexer(&server.url(), logs, ""));
    let indices = format!("{NAME}-*");
    let all_are_there = |running: &mut Running| {
        let all = (east.uids().len() + west.uids().len()) as u64;
        wait_until("all events of both are there", || {
            assert!(running.is_running(), "{}", running.stderr());
            let path = format!("/{indices}/_refresh");
            server.request("POST", &path, &Value::Null);
            let path = format!("/{indices}/_count");
            let counted = server.request("GET", &path, &Value::Null).json();
            (counted["count"] == all).then_some(()).ok_or(counted)
        });
    };
    let wait_to_lead = |running: &Running, cluster: &str| {
        wait_until("it leads", || {
            let does = leads(running, cluster);
            does.then_some(()).ok_or_else(|| running.stderr())
        });
    };

    // One is there for one of them alone. The other one leads the other cluster beside it.
    let mut first = a.spawn(&[&START[..], &["--cluster", "east"]].concat());
    wait_to_lead(&first, "east.example.com");
    let mut second = b.spawn(&START);
    wait_to_lead(&second, "west.example.com");
    all_are_there(&mut second);
    assert!(!leads(&second, "east.example.com"));
    let append = || {
        for log in [&east, &west] {
            log.append("n=100");
        }
    };
    append();
    first.kill();
    append();
    wait_to_lead(&second, "east.example.com");
    all_are_there(&mut second);

    // Both change hands.
    let mut first = a.spawn(&START);
    leader::says(&mut first, "standing by: process ", 2);
    append();
    second.kill();
    append();
    for cluster in ["east.example.com", "west.example.com"] {
        wait_to_lead(&first, cluster);
    }
    all_are_there(&mut first);
    let picture = wait_until("status tells who leads", || {
        let output = b.run(&["--config", "config.toml", "status", "--json"]);
        assert_eq!(output.code, Some(0), "{}", output.stderr);
        let picture: Value = serde_json::from_str(&output.stdout).expect("it prints JSON");
        let by_first = |n: usize| leader::is_led_by(&picture["clusters"][n], &first);
        (by_first(0) && by_first(1))
            .then_some(picture.clone())
            .ok_or(picture)
    });
    for (n, name) in [(0, "east"), (1, "west")] {
        let of_one = &picture["clusters"][n];
        assert_eq!(of_one["name"], name);
        assert_eq!(
            (&of_one["gaps"]["count"], &of_one["dead_letters"]["count"]),
            (&json!(0), &json!(0))
        );
    }
    let text = b.run(&["--config", "config.toml", "status"]).stdout;
    let told = text.matches("daemon         leads: process ").count();
    assert_eq!(told, 2, "{text}");

    server.refresh(&indices);
    let expected = BTreeMap::from([("east.example.com", &east), ("west.example.com", &west)]);
    compare(server.all_documents(&indices), expected);

    // Nobody begins anew by itself where the states were deleted: that would leave something out.
    let path = "/teleport-event-indexer-work";
    server.request("DELETE", path, &Value::Null).success();
    let output = first.wait();
    assert_eq!(output.code, Some(1), "{}", output.stderr);
    let told = output.stderr.matches("is not followed: the state ").count();
    assert_eq!(told, 2, "{}", output.stderr);
}

#[test]
fn two_clusters_cannot_have_one_state() {
    let (Some(east), Some(west)) = (log("east.example.com", "1"), log("west.example.com", "2"))
    else {
        return;
    };
    let logs = [("east", &east), ("west", &west)];
    let indexer = indexer("http://127.0.0.1:1", logs, "");
    let path = indexer.directory().join("config.toml");
    let text = fs::read_to_string(path).expect("it is there");
    // As that of the cluster that the other one's identity leads to.
    let named = "name = \"east\"\nstate-name = \"west.example.com\"";
    indexer.write("config.toml", &text.replace("name = \"east\"", named));
    let output = indexer.run(&START);
    assert_eq!(output.code, Some(2), "{}", output.stderr);
    let said = "state-name = \"west.example.com\": cluster \"east\" (config.toml:";
    assert!(output.stderr.contains(said), "{}", output.stderr);
}

/// One whose identity comes only later may turn out to be another one's cluster.
#[test]
fn two_clusters_cannot_come_to_one_state() {
    let Some(east) = log("east.example.com", "1") else {
        return;
    };
    let indexer = indexer("http://127.0.0.1:1", [("east", &east), ("west", &east)], "");
    let path = indexer.directory().join("config.toml");
    let text = fs::read_to_string(path).expect("it is there");
    let (of_all, west) = text.split_at(text.rfind("[[cluster]]").expect("it has tables"));
    let identity = east.identity();
    let west = west.replace(identity.to_str().expect("the path is UTF-8"), "later");
    indexer.write("config.toml", &format!("{of_all}{west}"));
    let mut running = indexer.spawn(&START);
    let is_told = |text: &str| {
        wait_until(text, || {
            let said = running.stderr();
            let mut lines = said.lines().filter(|line| line.contains("cluster=west"));
            let is_said = lines.any(|line| line.contains(text));
            is_said.then_some(()).ok_or(said)
        });
    };
    is_told("later: No such file");
    fs::copy(identity, indexer.directory().join("later")).expect("the folder takes it");
    is_told("the clusters east and west would have one state: east.example.com, to which");
    running.terminate();
    assert_eq!(running.wait().code, Some(0));
}
