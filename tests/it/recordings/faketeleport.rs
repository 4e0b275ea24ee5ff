//! The same against Teleport's own wire format.

use std::collections::{BTreeMap, BTreeSet};

use chrono::Utc;
use serde_json::{Value, json};
use teleport_event_indexer::demo::elastic::{ElasticsearchControl, StandInElasticsearch};

use super::START;
use crate::support::faketeleport::FakeTeleport;
use crate::support::journey::days_ago;
use crate::support::program::Indexer;
use crate::support::rig::rfc3339;
use crate::support::stand_ins;
use crate::support::wait_until;

/// All documents of events by session, index, type and `uid`.
fn events(elasticsearch: &ElasticsearchControl) -> BTreeMap<[String; 4], usize> {
    let mut events = BTreeMap::new();
    for document in elasticsearch.documents() {
        let source: Value = serde_json::from_str(&document.source).expect("it is JSON");
        let text = |key: &str| source[key].as_str().unwrap_or_default().to_owned();
        let key = [
            text("sid"),
            source["ei"].to_string(),
            text("event"),
            text("uid"),
        ];
        *events.entry(key).or_default() += 1;
    }
    events
}

/// A log with so many sessions of [`RECORDED`] events each, and what reads it. `None` where there is
/// no Go.
struct Setting {
    teleport: FakeTeleport,
    elasticsearch: StandInElasticsearch,
    indexer: Indexer,
}

const LOG: u32 = 3000;
const RECORDED: usize = 40;

impl Setting {
    fn new(sessions: usize, faults: &Value, top: &str) -> Option<Self> {
        let (log, sessions) = (LOG.to_string(), sessions.to_string());
        let recorded = RECORDED.to_string();
        let teleport = FakeTeleport::start(&[
            "--events",
            &log,
            "--days",
            "2",
            "--sessions",
            &sessions,
            "--session-events",
            &recorded,
        ])?;
        teleport.faults(faults);
        let elasticsearch = stand_ins::elasticsearch_with_template();
        let indexer = Indexer::new();
        let (identity, url) = (teleport.identity(), elasticsearch.url());
        indexer.write(
            "config.toml",
            &format!(
                "storage = 'state'\nstart-time = {:?}\nskip-session-types = []\n{top}\n[teleport]\n\
                 addr = {:?}\nidentity = {identity:?}\n[forward.elasticsearch]\nhosts = [{url:?}]\n",
                days_ago(2),
                teleport.addr()
            ),
        );
        Some(Self {
            teleport,
            elasticsearch,
            indexer,
        })
    }

    fn control(&self) -> &ElasticsearchControl {
        self.elasticsearch.control()
    }

    fn kill_at(&self, args: &[&str], enough: u64) {
        let mut running = self.indexer.spawn(args);
        wait_until("enough is stored", || {
            let stored = self.control().count();
            let is_done = stored >= enough || !running.is_running();
            is_done.then_some(()).ok_or(stored)
        });
        running.kill();
    }

    /// How many documents say this of a recording.
    fn told(&self, state: &str) -> usize {
        let documents = self.control().documents();
        let text = format!("\"event_indexer.session.recording\":{state:?}");
        let told = documents
            .iter()
            .filter(|document| document.source.contains(&text));
        told.count()
    }

    /// Every recorded event is there once, but for those of so many sessions, of which none is.
    fn assert_recorded(&self, sessions: usize, missing: usize) {
        let found = events(self.control());
        let mut by_session: BTreeMap<String, BTreeSet<_>> = BTreeMap::new();
        for line in self.teleport.session_uids() {
            let parts: Vec<&str> = line.split('\t').collect();
            let [session, index, id, kind] = parts[..] else {
                panic!("{line}");
            };
            let uid = if kind == "print" { "" } else { id };
            let key = [session, index, kind, uid].map(str::to_owned);
            by_session
                .entry(session.to_owned())
                .or_default()
                .insert(key);
        }
        assert_eq!(by_session.len(), sessions);
        let mut absent = 0;
        for (session, keys) in &by_session {
            assert_eq!(keys.len(), RECORDED);
            let is_there = |key: &&[String; 4]| found.contains_key(*key);
            match keys.iter().filter(is_there).count() {
                RECORDED => {}
                0 => absent += 1,
                other => panic!("{other} of {RECORDED} events of {session}"),
            }
            for key in keys {
                assert!(found.get(key).is_none_or(|count| *count == 1), "{key:?}");
            }
        }
        assert_eq!(absent, missing);
    }
}

#[test]
fn each_recorded_event_is_there_once() {
    const SESSIONS: usize = 200;
    let faults = json!({"session_notfound_first": 1, "reset_every": 900, "reset_mode": "fin"});
    let Some(setting) = Setting::new(SESSIONS, &faults, "") else {
        return;
    };
    let args = [&["-c", "config.toml"], &START[..]].concat();
    for enough in [500, 3_000, 6_000, 9_000] {
        setting.kill_at(&args, enough);
    }
    let output = setting.indexer.run(&args);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    setting.assert_recorded(SESSIONS, 0);
    // The log's events, the recorded ones, one document about each session.
    let documents: usize = events(setting.control()).values().sum();
    assert_eq!(documents, LOG as usize + SESSIONS * (RECORDED + 1));
}

#[test]
fn those_that_come_late_are_read_and_those_that_never_come_are_told_of() {
    const SESSIONS: usize = 40;
    const MISSING: usize = 4;
    let faults = json!({"session_notfound_first": 3, "session_missing_every": 10});
    let Some(setting) = Setting::new(SESSIONS, &faults, "session-wait = '4s'") else {
        return;
    };
    let start = ["-c", "config.toml", "start"];
    setting.kill_at(&start, u64::from(LOG / 2));
    setting.kill_at(&start, u64::from(LOG + 1));
    let mut running = setting.indexer.spawn(&start);
    wait_until("all are read or given up", || {
        let told = (setting.told("complete"), setting.told("missing"));
        let is_done = told == (SESSIONS - MISSING, MISSING);
        is_done.then_some(()).ok_or(format!("{told:?}"))
    });
    running.terminate();
    assert_eq!(running.wait().code, Some(0));
    setting.assert_recorded(SESSIONS, MISSING);
    let reason = "\"event_indexer.gap.reason\":\"recording_missing\"";
    let gaps = || {
        let documents = setting.control().documents();
        let gaps = documents
            .iter()
            .filter(|document| document.source.contains(reason));
        gaps.count()
    };
    assert_eq!(gaps(), MISSING);

    // They come after all: a backfill finds them, and a second document of each gap closes it.
    setting.teleport.faults(&json!({"reset": true}));
    let (from, to) = (days_ago(2), rfc3339(Utc::now()));
    let backfill = [
        "-c",
        "config.toml",
        "backfill",
        "--from",
        &from,
        "--to",
        &to,
    ];
    let output = setting.indexer.run(&backfill);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    setting.assert_recorded(SESSIONS, 0);
    assert_eq!(setting.told("complete"), SESSIONS);
    assert_eq!(gaps(), 2 * MISSING);
    let status = setting
        .indexer
        .run(&["-c", "config.toml", "status", "--json"]);
    let status: Value = serde_json::from_str(&status.stdout).expect("it is JSON");
    for run in status["runs"].as_array().expect("there are runs") {
        assert_eq!(
            (&run["gaps"], &run["recordings"]["open"]),
            (&json!(0), &json!(0)),
            "{status}"
        );
    }
}
