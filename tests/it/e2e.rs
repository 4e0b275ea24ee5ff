//! End to end on the real things: a whole audit log, from Teleport's own wire format into a real
//! Elasticsearch, each event exactly once, whatever breaks on the way.

use chrono::{SecondsFormat, TimeDelta, Utc};
use serde_json::{Value, json};

use crate::support::elasticsearch::{Elasticsearch, NEWEST, NEWEST_8, Options, oldest};
use crate::support::faketeleport::FakeTeleport;
use crate::support::journey::{Journey, days_ago};
use crate::support::wait_until;

mod faults;
mod hosts;
mod oddities;
mod refusals;
mod too_large;

/// An event API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Api {
    Export,
    Search,
}

impl Api {
    /// As in `status --json` and in the names of indices.
    fn name(self) -> &'static str {
        match self {
            Self::Export => "export",
            Self::Search => "search",
        }
    }

    /// Faults after which a server offers this one alone.
    fn faults(self) -> Value {
        json!({
            "unimplemented_export": self == Self::Search,
            "unimplemented_search": self == Self::Export,
        })
    }

    /// The last three days up to now on a server with this API, with events that have no id of
    /// their own among them. `None` where there can be no server.
    fn log(self, events: u64, more: &[&str]) -> Option<FakeTeleport> {
        let events = events.to_string();
        let size = ["--events", &events, "--days", "3"];
        let ids = ["--no-uid-every", "997", "--empty-id-every", "1009"];
        let teleport = FakeTeleport::start(&[&size[..], &ids, more].concat())?;
        teleport.faults(&self.faults());
        Some(teleport)
    }
}

/// Settings with which `start` begins before [`Api::log`] does.
fn start_time() -> String {
    format!("start-time = {:?}", days_ago(3))
}

/// Arguments of a backfill of [`Api::log`], the same at each call only on the same `to`.
fn backfill<'a>(from: &'a str, to: &'a str) -> [&'a str; 5] {
    ["backfill", "--from", from, "--to", to]
}

fn now() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true)
}

const START: [&str; 2] = ["start", "--exit-on-last-event"];

#[test]
fn a_hundred_thousand_events_arrive_by_export() {
    let Some(elasticsearch) = Elasticsearch::shared(NEWEST, true) else {
        return;
    };
    let Some(teleport) = Api::Export.log(100_000, &[]) else {
        return;
    };
    let journey = Journey::new("e2e-export", &teleport, elasticsearch, &start_time());
    journey.run(&START);
    assert_eq!(journey.assert_complete(), 100_000);
    let run = &journey.status()["runs"][0];
    let expected = json!({"kind": "daemon", "api": "export", "events": 100_000,
        "created": 100_000, "already_there": 0, "dead_letters": 0, "gaps": 0});
    assert_eq!(part(run, &expected), expected);
}

#[test]
fn a_hundred_thousand_events_arrive_by_search() {
    let Some(elasticsearch) = Elasticsearch::shared(NEWEST, true) else {
        return;
    };
    let Some(teleport) = Api::Search.log(100_000, &[]) else {
        return;
    };
    let journey = Journey::new("e2e-search", &teleport, elasticsearch, "");
    let output = journey.run(&backfill(&days_ago(3), &now()));
    let said = "done: 100000 documents created, 0 were there already, 0 dead letters, 0 gaps\n";
    assert!(output.stderr.ends_with(said), "{}", output.stderr);
    assert_eq!(journey.assert_complete(), 100_000);
    let run = &journey.status()["runs"][0];
    let expected = json!({"kind": "backfill", "api": "search", "finished": true,
        "created": 100_000, "already_there": 0, "dead_letters": 0, "gaps": 0});
    assert_eq!(part(run, &expected), expected);
}

#[test]
fn both_apis_give_the_oldest_elasticsearch_the_same_documents() {
    let Some(elasticsearch) = Elasticsearch::shared(oldest(), false) else {
        return;
    };
    let Some(teleport) = Api::Search.log(100_000, &[]) else {
        return;
    };
    let journey = Journey::new("e2e-both", &teleport, elasticsearch, &start_time());
    journey.run(&START);
    assert_eq!(journey.assert_complete(), 100_000);
    let before = journey.documents();

    teleport.faults(&Api::Export.faults());
    let output = journey.run(&backfill(&days_ago(3), &now()));
    let said = "done: 0 documents created, 100000 were there already, 0 dead letters, 0 gaps\n";
    assert!(output.stderr.ends_with(said), "{}", output.stderr);
    assert!(
        journey.documents() == before,
        "the second reading changed documents"
    );
    let runs = journey.status();
    assert_eq!(runs.pointer("/runs/0/api"), Some(&json!("search")));
    assert_eq!(runs.pointer("/runs/1/api"), Some(&json!("export")));
}

/// Those members of an object that another has.
fn part(whole: &Value, wanted: &Value) -> Value {
    let wanted = wanted.as_object().expect("it is an object");
    wanted
        .keys()
        .map(|key| (key.clone(), whole[key].clone()))
        .collect()
}

#[test]
fn ten_kills_while_exporting_lose_and_double_nothing() {
    let seed = seed();
    println!("E2E_SEED={seed}");
    // Five streams at once: the whole takes ten seconds.
    let slow = json!({"delay_per_event_us": 400});
    kill_ten_times(Api::Export, &["--chunk", "1000"], &slow, seed);
}

#[test]
fn ten_kills_while_searching_lose_and_double_nothing() {
    let seed = seed();
    println!("E2E_SEED={seed}");
    // Hundreds of pages, five at once.
    let slow = json!({"delay_ms": 100});
    kill_ten_times(Api::Search, &["--page-bytes", "131072"], &slow, seed);
}

/// From `E2E_SEED`, to repeat what has failed; else another each time.
fn seed() -> u64 {
    match std::env::var("E2E_SEED") {
        Ok(text) => text.parse().expect("E2E_SEED is a number"),
        Err(_) => std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0u8),
    }
}

/// Kills the program each time when it has come to a random place of the log, and starts it again.
fn kill_ten_times(api: Api, flags: &[&str], slow: &Value, seed: u64) {
    const EVENTS: u64 = 100_000;
    let Some(elasticsearch) = Elasticsearch::shared(NEWEST, true) else {
        return;
    };
    let Some(teleport) = api.log(EVENTS, flags) else {
        return;
    };
    let name = format!("e2e-kill-{}", api.name());
    let journey = Journey::new(&name, &teleport, elasticsearch, &start_time());
    teleport.faults(slow);
    let (from, to) = (days_ago(3), now());
    let backfill = backfill(&from, &to);
    let args: &[&str] = if api == Api::Export {
        &START
    } else {
        &backfill
    };

    let mut state = seed;
    let mut random = |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) % below
    };
    // The program must not be done when the last kill comes.
    let mut places = [0; 10].map(|_| random(EVENTS * 8 / 10));
    places.sort_unstable();
    let mut position = String::new();
    let mut committed = 0;
    for place in places {
        let mut running = journey.spawn(args);
        journey.wait_for_created(place, &mut running);
        // It is seen to be there just after a request was answered, when least is in flight.
        let mut looks = random(25);
        wait_until("some more time has passed", || {
            looks = looks.saturating_sub(1);
            (looks == 0).then_some(()).ok_or(looks)
        });
        let signal = running.kill().signal;
        assert_eq!(signal, Some(9), "it ended before its time");
        // Killed before it made a state, it has none.
        let output = journey.spawn(&["status", "--json"]).wait();
        let status: Value = serde_json::from_str(&output.stdout).unwrap_or_default();
        let run = &status["runs"][0];
        let now = run["position"].as_str().unwrap_or_default();
        assert!(now >= position.as_str(), "back from {position} to {now}");
        position = now.to_owned();
        committed = run["created"].as_u64().unwrap_or(0);
    }
    assert!(committed > 0, "what was stored was never written down");
    teleport.faults(&json!({"delay_ms": 0, "delay_per_event_us": 0}));
    let read = events_read(&teleport);
    journey.run(args);
    let read = events_read(&teleport) - read;
    assert!(read < EVENTS, "{read} events were read to find the rest");
    assert_eq!(journey.assert_complete() as u64, EVENTS);
}

/// How many events the server has given away.
fn events_read(teleport: &FakeTeleport) -> u64 {
    let stats = teleport.stats();
    let of = |api: Api| {
        let count = &stats[format!("{}_events", api.name())];
        count.as_u64().expect("it counts them")
    };
    of(Api::Export) + of(Api::Search)
}

#[test]
fn a_slow_stream_is_stored_as_it_comes_and_left_when_asked_to_end() {
    let Some(elasticsearch) = Elasticsearch::shared(NEWEST, true) else {
        return;
    };
    // One chunk, which takes half a minute.
    let Some(teleport) = Api::Export.log(600, &["--days", "1", "--sessions", "0"]) else {
        return;
    };
    teleport.faults(&json!({"delay_per_event_us": 50_000}));
    let journey = Journey::new("e2e-slow", &teleport, elasticsearch, &start_time());
    let mut running = journey.spawn(&START);
    journey.wait_for_created(10, &mut running);
    running.terminate();
    let output = running.wait();
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    let created = journey.created();
    assert!(created < 300, "{created} documents came at once");
    let status = journey.status();
    assert_eq!(status["runs"][0]["created"], created);
}

#[test]
fn elasticsearch_may_be_killed_twice_in_mid_run() {
    kill_elasticsearch(NEWEST, 2, 100_000);
}

#[test]
fn the_newest_elasticsearch_8_may_be_killed_in_mid_run() {
    kill_elasticsearch(NEWEST_8, 1, 30_000);
}

/// With security on: for a moment after its start a node refuses good credentials.
fn kill_elasticsearch(version: &'static str, kills: u64, events: u64) {
    let Some(mut elasticsearch) = Elasticsearch::start(Options {
        version,
        security: true,
        ..Options::default()
    }) else {
        return;
    };
    let Some(teleport) = Api::Export.log(events, &["--chunk", "1000"]) else {
        return;
    };
    let journey = Journey::new("e2e-restart", &teleport, &elasticsearch, &start_time());
    teleport.faults(&json!({"delay_per_event_us": 200}));
    let mut running = journey.spawn(&START);
    for _ in 0..kills {
        journey.wait_for_created(events / 4, &mut running);
        elasticsearch.kill();
        let told = "bulk request failed, trying again";
        let failures = running.stderr().matches(told).count();
        wait_until("the program notices", || {
            let text = running.stderr();
            (text.matches(told).count() > failures)
                .then_some(())
                .ok_or(text)
        });
        elasticsearch.restart();
    }
    let output = running.wait();
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert_eq!(journey.assert_complete() as u64, events);
}

#[test]
fn live_and_late_chunks_are_exported_within_a_few_polls() {
    let late = ["--late", "40", "--late-after", "5s"];
    follow(Api::Export, &late, 40, |round| match round {
        0 => "n=20".to_owned(),
        1 => "n=7&days_ago=1&chunks=3".to_owned(),
        _ => "n=5&delay=1s".to_owned(),
    });
}

#[test]
fn live_and_late_events_are_found_by_search_within_a_few_polls() {
    follow(Api::Search, &[], 0, |round| match round {
        0 => "n=20".to_owned(),
        1 => {
            let past = Utc::now() - TimeDelta::seconds(2);
            format!(
                "n=7&at={}",
                past.to_rfc3339_opts(SecondsFormat::Millis, true)
            )
        }
        _ => "n=5&type=user.login".to_owned(),
    });
}

/// Follows a log to which `query` adds; `late` events are added by the server itself.
fn follow(api: Api, flags: &[&str], late: u64, query: impl Fn(u32) -> String) {
    const EVENTS: u64 = 2_000;
    /// Well below the two minutes after which a longer look back would find a late event.
    const FEW: u64 = 100;
    let Some(elasticsearch) = Elasticsearch::shared(NEWEST, true) else {
        return;
    };
    let Some(teleport) = api.log(EVENTS, flags) else {
        return;
    };
    let name = format!("e2e-follow-{}", api.name());
    let settings = format!("{}\ntimeout = \"200ms\"", start_time());
    let journey = Journey::new(&name, &teleport, elasticsearch, &settings);
    let mut running = journey.spawn(&["start"]);
    let mut events = EVENTS + late;
    journey.wait_for_created(events, &mut running);
    for round in 0..3 {
        let before = wait_for_position(&journey, "");
        let polls = calls(&teleport);
        events += teleport.append(&query(round)).len() as u64;
        journey.wait_for_created(events, &mut running);
        let polls = calls(&teleport) - polls;
        assert!(polls < FEW, "round {round} took {polls} polls");
        wait_for_position(&journey, &before);
    }
    running.terminate();
    let output = running.wait();
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert_eq!(journey.assert_complete() as u64, events);
}

/// Waits until the daemon's position is behind `before` and close to now; the position.
fn wait_for_position(journey: &Journey<'_>, before: &str) -> String {
    wait_until("the position moves", || {
        let status = journey.status();
        let run = &status["runs"][0];
        // A daemon looks into its state file every few seconds.
        let position = run["position"].as_str().unwrap_or_default();
        let lag = run["lag_seconds"].as_i64().unwrap_or(i64::MAX);
        if position > before && lag < 10 && status["daemon"]["pid"].is_u64() {
            Ok(position.to_owned())
        } else {
            Err(status.to_string())
        }
    })
}

/// Calls that look for events.
fn calls(teleport: &FakeTeleport) -> u64 {
    let calls = &teleport.stats()["rpcs"];
    let of = |call| {
        calls[format!("AuditLogService/{call}")]
            .as_u64()
            .unwrap_or(0)
    };
    // Today and yesterday are listed each time.
    of("GetEventExportChunks") / 2 + of("GetUnstructuredEvents")
}
