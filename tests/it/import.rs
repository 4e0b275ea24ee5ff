//! Going on where Teleport's event handler has stopped: nothing that it has sent comes again, and
//! nothing else is missing.
#![expect(
    clippy::unwrap_used,
    reason = "clippy takes only what is marked as a test for one, not what tests call"
)]

use std::fs;
use std::path::{Path, PathBuf};

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use insta::assert_snapshot;
use serde_json::Value;
use teleport_event_indexer::config::{Address, CredentialPaths, TeleportConfig};
use teleport_event_indexer::demo::auth::AuthOptions;
use teleport_event_indexer::demo::elastic::ElasticsearchOptions;
use teleport_event_indexer::teleport::client::{Client, Query};

use crate::support::rig::{Rig, event, midnight, rfc3339};
use crate::support::seen::seen;

/// Events of two minutes, three in most seconds, which do not come in the order of their
/// milliseconds.
fn events(n: i64, from: DateTime<Utc>) -> Vec<Value> {
    let of = |n: i64| {
        let ms = (n / 3) * 2000 + [700, 20, 300][(n % 3) as usize];
        let time = from + TimeDelta::milliseconds(ms);
        let mut event = event(format!("{}-{n}", from.timestamp()), "user.login", time);
        let text = time.to_rfc3339_opts(SecondsFormat::Millis, true);
        event["time"] = text.into();
        event
    };
    (0..n).map(of).collect()
}

fn rig(export: bool, whole_seconds: bool) -> Rig {
    let auth = AuthOptions {
        export,
        whole_seconds,
        chunk_events: 25,
        ..AuthOptions::default()
    };
    Rig::with(auth, ElasticsearchOptions::default(), "", "")
}

/// A client of the rig's own, as the event handler is one.
fn client(rig: &Rig) -> Client {
    let config = TeleportConfig {
        addr: Address::parse(&rig.auth_address().to_string()).unwrap(),
        credentials: CredentialPaths::Identity(rig.indexer().directory().join("identity")),
        refresh: None,
    };
    rig.block_on(async { Client::new(&config, None).unwrap() })
}

fn write(directory: &Path, files: &[(&str, &str)]) {
    for (name, content) in files {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

fn folder(rig: &Rig) -> PathBuf {
    rig.indexer().directory().join("handler/localhost_3025")
}

/// Reads pages of twenty as the event handler does until so many events are sent, and lays out its
/// state. What it has sent is given by uid.
fn searches(rig: &Rig, window: DateTime<Utc>, n_sent: usize) -> Vec<String> {
    let client = client(rig);
    let query = Query {
        namespace: "default",
        from_ms: window.timestamp_millis(),
        to_ms: Utc::now().timestamp_millis(),
        types: &[],
        limit: 20,
        newest_first: false,
    };
    let (mut key, mut sent) = (String::new(), Vec::new());
    rig.block_on(async {
        loop {
            let found = client.search(&query, &key).await.unwrap();
            for event in &found.events {
                if sent.len() < n_sent {
                    sent.push(String::from_utf8(event.id.to_vec()).unwrap());
                }
            }
            if sent.len() == n_sent || found.last_key.is_empty() {
                return;
            }
            key = found.last_key;
        }
    });
    let (start, window) = (rfc3339(window), rfc3339(window));
    let last = sent.last().map_or("", String::as_str);
    let files = [
        ("start_time", start.as_str()),
        ("window_time", &window),
        ("cursor", &key),
        ("id", last),
    ];
    write(&folder(rig), &files);
    sent
}

/// Starts on the state and checks that what was sent does not come, and all else does.
fn assert_goes_on(rig: &Rig, all: &[Value], sent: &[String]) {
    let args = ["start", "--exit-on-last-event", "--import-state", "handler"];
    rig.run_to(0, &args);
    let (stored, _) = rig.stored();
    let mut stored: Vec<String> = stored.values().map(uid).collect();
    let is_sent = |uid: &String| sent.contains(uid);
    let mut expected: Vec<String> = all.iter().map(uid).filter(|uid| !is_sent(uid)).collect();
    stored.sort();
    expected.sort();
    assert_eq!(stored, expected);
}

fn uid(event: &Value) -> String {
    event["uid"].as_str().unwrap().to_owned()
}

#[test]
fn a_search_goes_on_behind_the_last_event_that_was_sent() {
    for (whole_seconds, n_sent) in [
        (false, 0),
        (false, 47),
        (true, 47),
        (true, 40),
        (false, 120),
    ] {
        let mut rig = rig(false, whole_seconds);
        let all = events(120, midnight(1));
        rig.append(all.clone());
        let sent = searches(&rig, midnight(1), n_sent);
        assert_eq!(sent.len(), n_sent);
        assert_goes_on(&rig, &all, &sent);
        // Each start leaves out the same; what is new comes. The folder is not needed any more.
        fs::remove_dir_all(folder(&rig)).unwrap();
        let new = events(9, midnight(0) - TimeDelta::hours(1));
        rig.append(new.clone());
        let whole = [all, new].concat();
        assert_goes_on(&rig, &whole, &sent);
    }
}

#[test]
fn a_key_that_is_not_taken_any_more_and_a_server_that_exports_now_change_nothing() {
    let mut rig = rig(false, true);
    let all = events(120, midnight(1));
    rig.append(all.clone());
    let sent = searches(&rig, midnight(1), 70);
    write(&folder(&rig), &[("cursor", "of another version")]);
    rig.auth().set_export(true);
    assert_goes_on(&rig, &all, &sent);
}

#[test]
fn an_export_goes_on_in_each_chunk_where_it_was() {
    let mut rig = rig(true, false);
    let (first, second) = (events(70, midnight(2)), events(70, midnight(1)));
    rig.append(first.clone());
    rig.append(second.clone());
    let client = client(&rig);
    let mut sent = Vec::new();
    let (mut files, mut done) = (Vec::new(), String::new());
    let day = midnight(1).date_naive();
    rig.block_on(async {
        for (n, chunk) in client.chunks(day).await.unwrap().into_iter().enumerate() {
            let mut stream = client.export(day, &chunk, "").await.unwrap();
            // The first is done, of the second ten were sent, the third is not known.
            let n_sent = [usize::MAX, 10].get(n).copied().unwrap_or(0);
            let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
            let (mut n_read, mut cursor) = (0, String::new());
            while n_read < n_sent
                && let Some(Some(found)) = stream.next_by(deadline).await.unwrap()
            {
                n_read += 1;
                sent.push(String::from_utf8(found.event.id.to_vec()).unwrap());
                cursor = String::from_utf8(found.cursor.to_vec()).unwrap();
            }
            match n {
                0 => done = format!("{chunk}\n"),
                1 => files.push((format!("cursor_v2/{day}/{chunk}.chunk"), cursor)),
                _ => {}
            }
        }
    });
    assert!(sent.len() > 20, "{sent:?}");
    files.push((format!("cursor_v2/{day}/completed-chunks"), done));
    files.push(("start_time".into(), rfc3339(midnight(4))));
    let files = files
        .iter()
        .map(|(name, text)| (name.as_str(), text.as_str()));
    write(&folder(&rig), &files.collect::<Vec<_>>());
    // The first day is done, as its folder is gone.
    sent.extend(first.iter().map(uid));
    assert_goes_on(&rig, &[first, second].concat(), &sent);
}

#[test]
fn what_cannot_be_gone_on_from_is_refused() {
    let mut rig = rig(false, false);
    let shown = |rig: &Rig, args: &[&str]| {
        let args = [
            &["start", "--exit-on-last-event", "-c", "config.toml"],
            args,
        ]
        .concat();
        seen(&rig.indexer().run(&args), rig.indexer().directory())
    };
    let import = ["--import-state", "handler"];
    assert_snapshot!(shown(&rig, &import), @r#"
    exit code 2
    --- stderr
    error: the event handler's state cannot be taken over: cannot read the folder handler: No such file or directory (os error 2)
    "#);
    write(
        &folder(&rig),
        &[("start_time", "soon"), ("session", "x"), ("id", "b7c1")],
    );
    assert_snapshot!(shown(&rig, &import), @r#"
    exit code 2
    --- stderr
    error: the event handler's state cannot be taken over: handler/localhost_3025/start_time: "soon" is no time in RFC 3339, such as TIME; handler/localhost_3025/session: is no index of an event: 8 bytes, big-endian, not negative; handler/localhost_3025/session: has no session's id in its name; handler/localhost_3025/window_time is missing or empty, without which cursor and id say nothing
    "#);
    fs::remove_dir_all(folder(&rig)).unwrap();
    rig.append(events(9, midnight(1)));
    write(
        &folder(&rig),
        &[
            ("start_time", "2026-11-01T00:00:00Z"),
            ("window_time", "2026-11-02T00:00:00Z"),
            ("cursor", "of another version"),
            ("id", "of no event"),
        ],
    );
    let start = ["--start-time=2026-11-02T00:00:00Z"];
    assert_snapshot!(shown(&rig, &[&import[..], &start[..]].concat()), @r#"
    exit code 2
    --- stderr
    error: start-time is 2026-11-02T00:00:00Z but the event handler has started from 2026-11-01T00:00:00Z, and reading goes on where it has stopped: remove start-time, or leave out --import-state
    "#);
    assert_snapshot!(shown(&rig, &import), @r#"
    exit code 1
    --- stderr
    TIME  INFO credentials read cluster=rig.example.com address=127.0.0.1:PORT expires=TIME
    TIME  INFO connected to Teleport at 127.0.0.1:PORT, straight to the Auth Service cluster="rig.example.com" version="18.2.0"
    error: the place at which the event handler has stopped is not in Teleport's audit log: Teleport does not take its cursor any more, and the last event that it has sent (id "of no event") is not among those since 2026-11-02T00:00:00+00:00; start without --import-state, with start-time set to where the log is to be read from
    "#);
    assert!(rig.summary().runs.is_empty());
    // A state of our own stands in the way.
    rig.run_to(0, &["start", "--exit-on-last-event"]);
    assert_snapshot!(shown(&rig, &import), @r#"
    exit code 2
    --- stderr
    error: --import-state: this storage follows the audit log already; leave the flag out, or give a new storage
    "#);
}
