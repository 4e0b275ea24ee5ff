//! Daemons that share a state in a real Elasticsearch, of which one leads.

mod hosts;
mod kills;
mod letters;
mod not_ready;
mod refused;

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use teleport_event_indexer::event::{AuditEvent, Timestamp};
use tokio::time::Instant;

use crate::support::elasticsearch::{Elasticsearch, Options, with_security};
use crate::support::faketeleport::FakeTeleport;
use crate::support::journey::{Journey, PASSWORD, days_ago, installer};
use crate::support::program::Running;
use crate::support::rig::{Rig, midnight, realistic, rfc3339};
use crate::support::wait_until;

const NAME: &str = "leader";
const START: [&str; 1] = ["start"];
pub(crate) const LEADS: &str = "leads from now on";

/// Far above what a take-over may take, since machines that test are slow.
const LONG: Duration = Duration::from_secs(60);

/// The superuser's `install`, with what a state in Elasticsearch needs.
pub(crate) fn install(server: &Elasticsearch, name: &str) -> String {
    let indexer = installer(name, server);
    let mut args = vec!["-c", "config.toml", "install", "--work"];
    if server.has_security() {
        args.push("--create-role");
    }
    let output = indexer.run(&args);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    output.stdout
}

pub(crate) fn says(running: &mut Running, text: &str, times: usize) {
    wait_until(text, || {
        let said = running.stderr();
        if said.matches(text).count() >= times {
            return Ok(());
        }
        assert!(running.is_running(), "it has ended: {said}");
        Err(said)
    });
}

/// Waits until `next` has taken the lead for the nth time, and says how long that took.
fn takes_over(next: &mut Running, times: usize, why: &str) {
    let began = Instant::now();
    says(next, LEADS, times);
    let took = began.elapsed();
    assert!(took < LONG, "{why}: {took:?}");
}

/// The first lines of the configuration of a daemon that follows a log of two days from its start.
fn settings() -> String {
    format!(
        "state = \"elasticsearch\"\ntimeout = \"500ms\"\nstart-time = {:?}",
        days_ago(2)
    )
}

/// Two daemons of one state, with all that is to be installed for them.
fn pair<'a>(
    name: &str,
    teleport: &'a FakeTeleport,
    server: &Elasticsearch,
    settings: &str,
) -> [Journey<'a>; 2] {
    let first = Journey::new(name, teleport, server, settings);
    let second = Journey::installed(name, name, teleport, server, settings);
    install(server, name);
    [first, second]
}

/// Whether the leader that `status --json` names is this process.
pub(crate) fn is_led_by(status: &Value, running: &Running) -> bool {
    let name = status["leader"]["name"].to_string();
    name.contains(&format!("process {} ", running.id()))
}

fn wait_for_all(journey: &Journey<'_>, teleport: &FakeTeleport) {
    let all = teleport.uids().len() as u64;
    wait_until("all events are there", || match journey.count() {
        count if count >= all => Ok(()),
        count => Err(format!("{count} of {all}")),
    });
}

#[test]
fn a_leader_dies_hangs_ends_and_loses_elasticsearch_and_each_event_is_there_once() {
    let Some(mut server) = Elasticsearch::start(Options {
        version: with_security(),
        security: true,
        ..Options::default()
    }) else {
        return;
    };
    let Some(teleport) = FakeTeleport::start(&["--events", "2000", "--days", "2"]) else {
        return;
    };
    let settings = settings();
    let first = Journey::new(NAME, &teleport, &server, &settings);
    let second = Journey::installed(NAME, NAME, &teleport, &server, &settings);

    let missing = first.spawn(&START).wait();
    let error = format!(
        "error: the index template teleport-event-indexer-work is not in Elasticsearch at {}/\n\
         hint: run `teleport-event-indexer install --work` first",
        server.url()
    );
    assert!(missing.stderr.contains(&error), "{}", missing.stderr);
    let said = install(&server, NAME);
    assert!(said.contains("index template teleport-event-indexer-dead-letter: created\n"));
    let warned = first.spawn(&["check"]).wait().stdout;
    for index in ["work", "dead-letter"] {
        let lacks = format!(
            "FAIL  the user lacks read and index and delete and auto_configure on \
             teleport-event-indexer-{index}"
        );
        assert!(warned.contains(&lacks), "{warned}");
    }
    let user = json!({"password": PASSWORD, "roles": [format!("{NAME}-writer")]});
    let path = format!("/_security/user/{NAME}");
    server.request("PUT", &path, &user).success();
    let checked = first.spawn(&["check"]).wait().stdout;
    assert!(
        checked.contains("ok    privileges on teleport-event-indexer-dead-letter\n"),
        "{checked}"
    );

    let mut a = first.spawn(&START);
    says(&mut a, LEADS, 1);
    let mut b = second.spawn(&START);
    says(&mut b, "standing by: process ", 1);
    wait_for_all(&first, &teleport);
    wait_until("the position is known", || {
        let status = first.run(&["status"]).stdout;
        let is_there = status.contains("daemon         leads: process ")
            && status.contains("complete up to ")
            && status.contains("2000 documents created");
        is_there.then_some(()).ok_or(status)
    });

    // Killed.
    teleport.append("n=100");
    a.kill();
    teleport.append("n=100");
    takes_over(&mut b, 1, "killed");
    wait_for_all(&first, &teleport);
    let mut a = first.spawn(&START);
    says(&mut a, "standing by: process ", 1);

    // Hangs for longer than its lease, and goes on.
    b.pause();
    teleport.append("n=100");
    takes_over(&mut a, 1, "stopped");
    teleport.append("n=100");
    b.resume();
    says(&mut b, "the lease is over", 1);
    wait_for_all(&first, &teleport);

    // Told to end.
    teleport.append("n=100");
    a.terminate();
    takes_over(&mut b, 2, "told to end");
    let output = a.wait();
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    wait_for_all(&first, &teleport);

    // Elasticsearch is away for longer than a lease. Either may lead then.
    let mut a = first.spawn(&START);
    says(&mut a, "standing by: process ", 1);
    server.kill();
    teleport.append("n=100");
    says(&mut b, "the lease is over", 2);
    server.restart();
    wait_until("somebody leads", || {
        let led = a.stderr().matches(LEADS).count() + b.stderr().matches(LEADS).count();
        (led >= 3).then_some(()).ok_or(led)
    });
    wait_for_all(&first, &teleport);
    let status = first.status();
    assert_eq!(status["gaps"]["count"], 0);
    assert_eq!(status["dead_letters"]["count"], 0);
    assert!(status["leader"]["name"].is_string(), "{status}");
    assert!(
        status["leader"]["taken_over"].as_u64() >= Some(2),
        "{status}"
    );
    for running in [&mut a, &mut b] {
        running.terminate();
    }
    for running in [a, b] {
        let output = running.wait();
        assert_eq!(output.code, Some(0), "{}", output.stderr);
    }
    assert_eq!(first.assert_complete(), 2600);
}

/// The program between the stand-in for Teleport and a real Elasticsearch.
pub(crate) fn started(rig: &Rig, server: &Elasticsearch, args: &[&str]) -> Running {
    let url = server.url();
    let settings = ["--elasticsearch-hosts", &url];
    let args = [&["--config", "config.toml"], args, &settings].concat();
    rig.indexer().spawn(&args)
}

#[test]
fn dead_letters_lie_in_an_index_and_close_their_gaps() {
    let Some(server) = Elasticsearch::start(Options {
        extra: "http.max_content_length=2mb",
        ..Options::default()
    }) else {
        return;
    };
    install(&server, "letters");
    let start = rfc3339(midnight(3));
    let top = format!("state = \"elasticsearch\"\nstart-time = {start:?}");
    let mut rig = Rig::new(
        &top,
        "index = \"letters-%Y.%m.%d\"\ninstall.template = \"letters\"",
    );
    let mut events: Vec<Value> = realistic(3, 50, 3, 2).collect();
    // Too large for a request.
    events[7]["message"] = "x".repeat(3 << 20).into();
    let large = events[7].clone();
    rig.append(events);
    let noon = midnight(3) + chrono::TimeDelta::hours(12);
    rig.auth().append([AuditEvent {
        event_type: Bytes::from_static(b"1.broken"),
        id: Bytes::from_static(b"raw"),
        time: Some(Timestamp::from_millis(noon.timestamp_millis())),
        index: 0,
        body: Bytes::from_static(b"\x0a\x7fno Struct at all"),
        session: None,
    }]);
    let to_the_end = ["start", "--exit-on-last-event"];
    let output = started(&rig, &server, &to_the_end).wait();
    assert_eq!(output.code, Some(0), "{}", output.stderr);

    let json = |args: &[&str]| -> Value {
        let output = started(&rig, &server, args).wait();
        assert_eq!(output.code, Some(0), "{}", output.stderr);
        serde_json::from_str(&output.stdout).expect("it prints JSON")
    };
    let listed = || {
        wait_until("a search shows them", || {
            let list = json(&["dead-letters", "list", "--json"]);
            let known = list.as_array().map_or(0, Vec::len);
            (known == 2).then_some(list).ok_or(known)
        })
    };
    let list = listed();
    let id_of = |kind: &str| {
        let letter = list
            .as_array()
            .unwrap()
            .iter()
            .find(|l| l["error_type"] == kind);
        let letter = letter.unwrap_or_else(|| panic!("no {kind} in {list}"));
        letter["id"].as_str().unwrap().to_owned()
    };
    let broken = id_of("unconvertible_event");
    let too_large = list.as_array().unwrap().iter().find(|l| l["status"] == 413);
    let too_large = too_large.expect("it was too large")["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let status = json(&["status", "--json"]);
    assert_eq!(
        (&status["gaps"]["count"], &status["dead_letters"]["count"]),
        (&json!(1), &json!(2))
    );
    let shown = json(&["dead-letters", "show", &too_large, "--payload"]);
    assert_eq!(shown["document"], large);
    let shown = json(&["dead-letters", "show", &broken, "--payload"]);
    assert_eq!(shown["form"], "protobuf");

    // Neither can be stored by trying again.
    let retried = started(&rig, &server, &["dead-letters", "retry"]).wait();
    assert_eq!(retried.code, Some(1), "{}", retried.stderr);
    listed();

    // The same events again, as after a crash: the same letters.
    let rewind = [
        "start",
        "--exit-on-last-event",
        "--rewind-to",
        &start,
        "--yes",
    ];
    let output = started(&rig, &server, &rewind).wait();
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    listed();

    for id in [&broken, &too_large] {
        let dropped = started(&rig, &server, &["dead-letters", "drop", id, "--yes"]).wait();
        assert_eq!(dropped.code, Some(0), "{}", dropped.stderr);
    }
    wait_until("they are gone", || {
        let list = json(&["dead-letters", "list", "--json"]);
        (list == json!([])).then_some(()).ok_or(list.to_string())
    });
    // Whoever leads closes the gap, and nothing is left.
    let mut running = started(&rig, &server, &START);
    wait_until("the gap is closed", || {
        let gaps = json(&["status", "--json"])["gaps"].clone();
        let is_closed = gaps["count"] == 0 && gaps["closed"] == 1;
        is_closed.then_some(()).ok_or(gaps.to_string())
    });
    wait_until("nothing is left of them", || {
        server.refresh("teleport-event-indexer-dead-letter");
        let count = server.count("teleport-event-indexer-dead-letter");
        (count == 0).then_some(()).ok_or(count)
    });
    running.terminate();
    assert_eq!(running.wait().code, Some(0));
}
