//! Ten minutes in which the leader is killed every 20 seconds.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{START, is_led_by, pair, settings, wait_for_all};
use crate::support::elasticsearch::{Elasticsearch, Options};
use crate::support::faketeleport::FakeTeleport;
use crate::support::wait_until;

const LASTS: Duration = Duration::from_secs(600);
const BETWEEN: Duration = Duration::from_secs(20);

/// `cargo test --release --test it -- --ignored --nocapture leaders_are_killed`
#[test]
#[ignore = "takes ten minutes for each API; see ARCHITECTURE.md"]
fn leaders_are_killed_for_ten_minutes() {
    for export in [false, true] {
        if let Some(said) = run(export) {
            println!("by export: {export}: {said}");
        }
    }
}

/// What it came to.
fn run(export: bool) -> Option<String> {
    let mut server = Elasticsearch::start(Options::default())?;
    let teleport = FakeTeleport::start(&["--events", "20000", "--days", "2", "--sessions", "0"])?;
    teleport.faults(&json!({"unimplemented_export": !export}));
    let name = "kills";
    let settings = format!("{}\nstate-name = {name:?}", settings());
    let journeys = pair(name, &teleport, &server, &settings);
    let mut running = journeys.each_ref().map(|journey| journey.spawn(&START));
    wait_for_all(&journeys[0], &teleport);

    let began = Instant::now();
    let mut killed = Vec::new();
    let mut pauses = Vec::new();
    let mut restarted = false;
    let (mut created, mut grew) = (0, Instant::now());
    while began.elapsed() < LASTS {
        let next = Instant::now() + BETWEEN;
        wait_until("it is time", || {
            teleport.append("n=2");
            let now = journeys[0].created();
            if now != created {
                let since = std::mem::replace(&mut grew, Instant::now());
                if killed.last().is_some_and(|killed| *killed >= since) {
                    pauses.push(grew - since);
                }
                created = now;
            }
            (Instant::now() >= next).then_some(()).ok_or("not yet")
        });
        if !restarted && began.elapsed() > LASTS / 2 {
            restarted = true;
            server.kill();
            server.restart();
            continue;
        }
        let leader = wait_until("somebody leads", || {
            let status = journeys[0].status();
            let mut daemons = running.iter();
            let leader = daemons.position(|daemon| is_led_by(&status, daemon));
            leader.ok_or(status)
        });
        running[leader].kill();
        killed.push(Instant::now());
        running[leader] = journeys[leader].spawn(&START);
    }
    wait_for_all(&journeys[0], &teleport);
    let status = journeys[0].status();
    for running in &mut running {
        assert!(running.is_running(), "{}", running.stderr());
        running.terminate();
    }
    for running in running {
        let output = running.wait();
        assert_eq!(output.code, Some(0), "{}", output.stderr);
    }
    let events = journeys[0].assert_complete();
    assert_eq!(status["gaps"]["count"], 0);
    assert_eq!(status["dead_letters"]["count"], 0);
    let path = format!("/teleport-event-indexer-work/_doc/state:{name}?_source=false");
    let head = server.request("GET", &path, &Value::Null);
    let writes = head.success().json()["_version"].clone();
    pauses.sort_unstable();
    let (longest, median) = (pauses.last()?, pauses[pauses.len() / 2]);
    Some(format!(
        "{events} events, each there once; {} kills; without a new document after one for \
         {longest:.1?} at most, {median:.1?} in the median; {writes} writes of the state",
        killed.len()
    ))
}
