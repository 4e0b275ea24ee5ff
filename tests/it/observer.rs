//! What the program shows of itself: metrics and health through faults, and who may see them.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use bytes::Bytes;
use chrono::Utc;
use serde_json::Value;
use teleport_event_indexer::demo::auth::Method;
use teleport_event_indexer::demo::elastic::{Answer, Refusal};
use teleport_event_indexer::event::{AuditEvent, Timestamp};
use tonic::Code;

use crate::support::http::{self, request};
use crate::support::program::Running;
use crate::support::rig::{Rig, midnight, realistic, rfc3339, wait_until_said};
use crate::support::wait_until;

/// A port of the system's choice.
pub(crate) const ANYWHERE: [&str; 3] = ["start", "--listen-addr", "127.0.0.1:0"];

fn rig() -> Rig {
    Rig::new(&format!("start-time = {:?}", rfc3339(midnight(2))), "")
}

fn unavailable() -> Answer {
    Answer::Status {
        status: 503,
        body: String::new(),
        retry_after: None,
    }
}

/// host:port of the status page, once the program has said it.
pub(crate) fn address(running: &Running) -> String {
    wait_until("the program has said where its status page is", || {
        let said = running.stderr();
        let rest = said.split_once("health at http").map(|(_, rest)| rest);
        let url = rest.and_then(|rest| rest.split_once("://")?.1.split_once('/'));
        url.map(|(address, _)| address.to_owned()).ok_or(said)
    })
}

pub(crate) fn get(address: &str, path: &str) -> http::Answer {
    request(address, "GET", path, &[], b"").expect("the status page answers")
}

/// A metric, by its whole name with labels.
pub(crate) fn metric(address: &str, name: &str) -> Option<f64> {
    let answer = get(address, "/metrics").success();
    let values = answer
        .text()
        .lines()
        .filter_map(|line| line.split_once(' '));
    let mut ours = values.filter(|(given, _)| *given == name);
    let value = ours.next()?.1;
    Some(value.parse().expect("a metric is a number"))
}

pub(crate) fn wait_for_metric(address: &str, name: &str, wanted: f64) {
    wait_until(&format!("{name} is {wanted}"), || {
        match metric(address, name) {
            Some(value) if value == wanted => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

pub(crate) fn wait_for_readiness(address: &str, status: u16, words: &str) {
    wait_until(&format!("/readyz says {status} {words}"), || {
        let answer = get(address, "/readyz");
        let is_wanted = answer.status == status && answer.text().contains(words);
        is_wanted.then_some(()).ok_or_else(|| format!("{answer:?}"))
    });
}

#[test]
fn metrics_and_health_follow_what_befalls_both_ends() {
    let mut rig = rig();
    rig.append(realistic(1, 300, 1, 1));
    let mut running = rig.spawn(&ANYWHERE);
    let address = address(&running);
    wait_for_readiness(&address, 200, "ready");
    let created = "event_indexer_documents_total{outcome=\"created\"}";
    wait_for_metric(&address, created, 300.0);
    wait_for_metric(&address, "event_indexer_in_flight_documents", 0.0);
    wait_for_metric(&address, "event_indexer_in_flight_bytes", 0.0);
    let read = metric(
        &address,
        "event_indexer_source_events_total{source=\"export\"}",
    );
    assert!(read >= Some(300.0), "{read:?}");
    wait_until("the log is caught up with", || {
        match metric(&address, "event_indexer_lag_seconds") {
            Some(lag) if lag < 60.0 => Ok(()),
            lag => Err(format!("{lag:?}")),
        }
    });
    assert_eq!(metric(&address, "event_indexer_ready"), Some(1.0));
    let end = metric(
        &address,
        "event_indexer_credential_expiry_time_seconds{end=\"teleport\"}",
    );
    assert!(end.is_some_and(|end| end > 1.7e9), "{end:?}");
    let start = metric(
        &address,
        "event_indexer_credential_start_time_seconds{end=\"teleport\"}",
    );
    assert!(start.is_some() && start < end, "{start:?}");
    let alive = get(&address, "/livez");
    assert_eq!((alive.status, alive.text()), (200, "alive\n"));

    // Elasticsearch has too much to do.
    rig.elasticsearch().answer_next(7, unavailable());
    rig.append(realistic(2, 50, 0, 0));
    let up = "event_indexer_end_up{end=\"elasticsearch\"}";
    wait_for_metric(&address, up, 0.0);
    wait_for_metric(&address, "event_indexer_in_flight_documents", 50.0);
    wait_for_readiness(&address, 503, "Elasticsearch fails since ");
    let too_much = "event_indexer_errors_total{stage=\"send\",reason=\"overloaded\"}";
    assert!(metric(&address, too_much) >= Some(1.0));
    assert!(metric(&address, "event_indexer_retried_documents_total") >= Some(50.0));
    assert_eq!(get(&address, "/livez").status, 200);
    let picture = get(&address, "/status.json").success().json();
    let state = picture["state"].as_str().unwrap_or_default();
    assert!(state.starts_with("Held up, complete up to "), "{state}");
    assert_eq!(picture["ready"], false);
    wait_for_readiness(&address, 200, "ready");
    wait_for_metric(&address, created, 350.0);

    // Then Teleport has.
    rig.auth()
        .fail_next(Method::ListChunks, 6, Code::Unavailable);
    wait_for_readiness(&address, 503, "Teleport fails since ");
    wait_for_metric(&address, "event_indexer_end_up{end=\"teleport\"}", 0.0);
    let away = "event_indexer_errors_total{stage=\"pull\",reason=\"unreachable\"}";
    assert!(metric(&address, away) >= Some(1.0));
    wait_for_readiness(&address, 200, "ready");

    // An event that makes no document.
    let unconverted = "event_indexer_errors_total{stage=\"convert\",reason=\"malformed\"}";
    assert_eq!(metric(&address, unconverted), Some(0.0));
    rig.auth().append([AuditEvent {
        event_type: "1.broken".into(),
        id: "raw".into(),
        time: Some(Timestamp::from_millis(Utc::now().timestamp_millis())),
        body: Bytes::from_static(b"\x0a\x7fno Struct at all"),
        ..AuditEvent::default()
    }]);
    wait_for_metric(&address, unconverted, 1.0);
    let dead = "event_indexer_documents_total{outcome=\"dead_letter\"}";
    wait_for_metric(&address, dead, 1.0);
    running.terminate();
    assert_eq!(running.wait().code, Some(0));
}

#[test]
fn nobody_sees_it_who_should_not() {
    let rig = rig();
    let running = rig.spawn(&ANYWHERE);
    let address = address(&running);
    let port = address
        .rsplit_once(':')
        .map(|(_, port)| port)
        .expect("host:port");
    for (host, status) in [
        (format!("127.0.0.1:{port}"), 200),
        (format!("localhost:{port}"), 200),
        (format!("[::1]:{port}"), 200),
        // A name of theirs that leads here.
        (format!("rebound.example.com:{port}"), 421),
        ("127.0.0.1.example.com".to_owned(), 421),
        (String::new(), 421),
    ] {
        let host = format!("host: {host}");
        for path in ["/metrics", "/status.json", "/livez", "/readyz", "/nothing"] {
            let answer = request(&address, "GET", path, &[&host], b"");
            let answer = answer.expect("it answers");
            let is_refused = answer.status == 421;
            assert_eq!(
                is_refused,
                status == 421,
                "{host} {path}: {}",
                answer.status
            );
            assert!(
                answer.head.contains("x-content-type-options: nosniff"),
                "{}",
                answer.head
            );
        }
    }
    let posted = request(&address, "POST", "/metrics", &[], b"").expect("it answers");
    assert_eq!(posted.status, 405);
}

#[test]
fn with_a_token_only_health_is_told_to_strangers() {
    let rig = rig();
    let args = [
        "start",
        "--listen-addr",
        "127.0.0.1:0",
        "--listen-token",
        "file:token",
    ];
    rig.indexer().write_private("token", "s3cret\n");
    let running = rig.spawn(&args);
    let address = address(&running);
    let with = |path: &str, headers: &[&str]| {
        request(&address, "GET", path, headers, b"")
            .expect("it answers")
            .status
    };
    for path in ["/metrics", "/status.json"] {
        assert_eq!(with(path, &[]), 401);
        assert_eq!(with(path, &["authorization: Bearer wrong"]), 401);
        assert_eq!(with(path, &["authorization: Bearer s3cret"]), 200);
        // anybody:s3cret
        assert_eq!(
            with(path, &["authorization: Basic YW55Ym9keTpzM2NyZXQ="]),
            200
        );
    }
    assert_eq!(with("/livez", &[]), 200);
    wait_for_readiness(&address, 200, "ready");
    rig.auth()
        .fail_next(Method::ListChunks, 6, Code::Unavailable);
    wait_for_readiness(&address, 503, "not ready");
    assert_eq!(get(&address, "/readyz").text(), "not ready\n");
    let own = ["authorization: Bearer s3cret"];
    let own = request(&address, "GET", "/readyz", &own, b"").expect("it answers");
    assert!(own.text().starts_with("Teleport fails since "), "{own:?}");
}

#[test]
fn what_others_can_reach_needs_a_token_and_tls() {
    let rig = rig();
    for (more, said) in [
        (
            vec!["--listen-addr", "0.0.0.0:0"],
            "error: --listen-addr: others than this machine can reach it there, so it needs \
             listen.token, and listen.cert and listen.key; or listen on 127.0.0.1\n",
        ),
        (
            vec!["--listen-addr", "somewhere"],
            "error: --listen-addr=\"somewhere\": must be an IP address with a port \
             (127.0.0.1:9747), or off\n",
        ),
        (
            vec!["--listen-cert", "a.crt"],
            "error: --listen-cert: goes with listen.key: give both\n",
        ),
    ] {
        let output = rig.run(&[&["start"], &more[..]].concat());
        assert_eq!((output.code, output.stderr.as_str()), (Some(2), said));
    }
}

#[test]
fn systemd_is_told_of_readiness_and_life() {
    let mut rig = rig();
    let socket = rig.indexer().directory().join("notify");
    let manager = UnixDatagram::bind(&socket).expect("there is room for a socket");
    let long = Some(Duration::from_secs(60));
    manager
        .set_read_timeout(long)
        .expect("a minute is a time limit");
    rig.set_env("NOTIFY_SOCKET", &socket.display().to_string());
    rig.set_env("WATCHDOG_USEC", "1000000");
    let running = rig.spawn(&["start"]);
    let mut told = Vec::new();
    while !["READY=1", "WATCHDOG=1", "STATUS=Up to date"]
        .iter()
        .all(|wanted| told.iter().any(|line: &String| line.starts_with(wanted)))
    {
        let mut line = [0; 4096];
        let length = manager.recv(&mut line);
        let length = length.unwrap_or_else(|_| panic!("{told:?}: {}", running.stderr()));
        told.push(String::from_utf8_lossy(&line[..length]).into_owned());
    }
    assert!(told.contains(&"READY=1".to_owned()));
}

/// Where a value is not as the schema says; the few words of JSON Schema that ours uses.
fn strays(schema: &Value, value: &Value, place: &str, found: &mut Vec<String>) {
    let words = |value: &Value| match value {
        Value::Array(words) => words.clone(),
        word => vec![word.clone()],
    };
    let is_of = |kind: &Value| match kind.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some("null") => value.is_null(),
        _ => panic!("{place}: the schema has {kind}"),
    };
    if let Some(kinds) = schema.get("type")
        && !words(kinds).iter().any(is_of)
    {
        found.push(format!("{place}: {value} is not {kinds}"));
    }
    if let Some(allowed) = schema.get("enum")
        && !words(allowed).contains(value)
    {
        found.push(format!("{place}: {value} is none of {allowed}"));
    }
    for (n, item) in value.as_array().into_iter().flatten().enumerate() {
        strays(&schema["items"], item, &format!("{place}[{n}]"), found);
    }
    let Some(members) = value.as_object() else {
        return;
    };
    for name in schema["required"].as_array().into_iter().flatten() {
        if !members.contains_key(name.as_str().unwrap_or_default()) {
            found.push(format!("{place}: no {name}"));
        }
    }
    for (name, member) in members {
        let place = format!("{place}.{name}");
        match (
            schema["properties"].get(name),
            schema.get("additionalProperties"),
        ) {
            (Some(schema), _) => strays(schema, member, &place, found),
            (None, Some(Value::Bool(false))) => found.push(format!("{place} is unknown")),
            (None, Some(schema)) => strays(schema, member, &place, found),
            (None, None) => {}
        }
    }
}

pub(crate) fn assert_keeps_to_schema(picture: &Value) {
    let schema = include_str!("../../docs/status.schema.json");
    let schema: Value = serde_json::from_str(schema).expect("the schema is JSON");
    let of = |name: &str| &schema["$defs"][name];
    let mut found = Vec::new();
    match picture["clusters"].as_array() {
        None => strays(of("cluster"), picture, "", &mut found),
        Some(clusters) => {
            let mut all = picture.clone();
            all["clusters"] = Value::Array(Vec::new());
            strays(of("clusters"), &all, "", &mut found);
            for cluster in clusters {
                let is_read = cluster.get("error").is_none();
                let kind = if is_read { "cluster" } else { "unread" };
                strays(of(kind), cluster, &cluster["name"].to_string(), &mut found);
            }
        }
    }
    assert_eq!(found, [""; 0], "{picture:#}");
}

#[test]
fn status_has_one_shape_from_the_daemon_and_from_the_file() {
    let mut rig = rig();
    rig.append(realistic(1, 200, 1, 1));
    let unused = std::net::TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    let address = unused.local_addr().expect("it is bound").to_string();
    drop(unused);
    let listen = ["--listen-addr", &address, "--listen-token", "file:token"];
    rig.indexer().write_private("token", "s3cret\n");
    // Something of everything: a blocked index, and a dead letter.
    let day = midnight(1).format("%Y.%m.%d").to_string();
    let blocked = format!("audit-events-{day}");
    let index = blocked.clone();
    rig.elasticsearch().add_rule(move |operation| {
        (operation.index == index).then(|| Refusal::write_block(&index))
    });
    rig.append(realistic(3, 20, 0, 0));
    let mut running = rig.spawn(&[&["start"][..], &listen].concat());
    // The state file is there by then.
    wait_until_said(&running, "health at http");
    wait_until("the index is blocked", || {
        let picture = status_json(&rig, &listen);
        let held = picture["live"]["held_up"][0]["index"] == *blocked;
        let rest = picture["live"]["totals"]["created"].as_u64() >= Some(20);
        (held && rest).then_some(()).ok_or(picture)
    });
    let picture = status_json(&rig, &listen);
    assert_keeps_to_schema(&picture);
    assert!(
        picture["live"]["event_types"]
            .as_array()
            .is_some_and(|types| types.len() > 3)
    );
    assert_eq!(picture["daemon"]["pid"], running.id());
    let text = rig.run(&[&["status"][..], &listen].concat()).stdout;
    let state = picture["state"].as_str().unwrap_or_default();
    assert!(state.ends_with(", but for 1 blocked index."), "{state}");
    assert!(text.contains("\nnow            "), "{text}");
    assert!(
        text.contains(&format!("\n  held up: {blocked} since ")),
        "{text}"
    );

    // Not the token: the file alone.
    let refused = rig.run(&["status", "--listen-addr", &address]).stdout;
    let said = format!("\nnow            cannot be asked: at {address}: status 401 Unauthorized\n");
    assert!(refused.ends_with(&said), "{refused}");

    running.terminate();
    running.wait();
    let alone = status_json(&rig, &listen);
    assert_keeps_to_schema(&alone);
    assert_eq!(
        (&alone["live"], &alone["daemon"]),
        (&Value::Null, &Value::Null)
    );
    assert!(alone["blocked"]["count"].as_u64() > Some(0), "{alone}");
}

fn status_json(rig: &Rig, listen: &[&str]) -> Value {
    let output = rig.run(&[&["status", "--json"], listen].concat());
    serde_json::from_str(&output.stdout).unwrap_or_else(|_| panic!("{}", output.stderr))
}
