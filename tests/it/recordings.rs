//! Session recordings: each of their events is there once, whatever breaks, and what cannot be read
//! is told of.

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};
use teleport_event_indexer::demo::auth::{AuthOptions, Method, RecordingFault, Request};
use teleport_event_indexer::demo::elastic::ElasticsearchOptions;
use tonic::Code;

use crate::support::rig::{Rig, backfill, midnight, realistic, rfc3339, wait_until_said};
use crate::support::wait_until;

mod faketeleport;

const START: [&str; 2] = ["start", "--exit-on-last-event"];

/// What is on by default, from three days ago on.
fn sessions() -> String {
    format!("sessions = true\nstart-time = {:?}", rfc3339(midnight(3)))
}

fn rig(export: bool, top: &str) -> Rig {
    let auth = AuthOptions {
        export,
        ..AuthOptions::default()
    };
    Rig::with(auth, ElasticsearchOptions::default(), top, "")
}

fn name(number: usize) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}

/// When the session with this number was uploaded.
fn uploaded(number: usize) -> DateTime<Utc> {
    let minutes = i64::try_from(number).expect("a small number");
    midnight(2) + TimeDelta::minutes(minutes)
}

fn upload(number: usize) -> Value {
    let session = name(number);
    json!({"event": "session.upload", "code": "T2005I", "uid": format!("upload {number}"),
        "time": rfc3339(uploaded(number)), "ei": 2_147_483_647, "sid": session})
}

/// A recording as Teleport makes them: what is on the screen has neither id nor session, a change of
/// the window's size no session.
fn recorded(number: usize, count: usize) -> Vec<Value> {
    let session = name(number);
    let start = uploaded(number) - TimeDelta::minutes(5);
    let event = |place: usize| {
        // The same in all sessions, of many of which it is the same millisecond.
        let time = if place % 5 == 1 {
            midnight(2)
        } else {
            start + TimeDelta::seconds(i64::try_from(place).expect("a small number"))
        };
        let uid = format!("{session} {place}");
        let (time, ei) = (rfc3339(time), place);
        match place {
            0 => json!({"event": "session.start", "code": "T2000I", "uid": uid, "time": time,
                "ei": ei, "sid": session, "user": "alice", "proto": "ssh"}),
            _ if place == count - 1 => json!({"event": "session.end", "code": "T2004I", "uid": uid,
                "time": time, "ei": ei, "sid": session, "user": "alice"}),
            _ => match place % 5 {
                1 | 2 => json!({"event": "print", "time": time, "ei": ei, "ci": place,
                    "data": "JCA="}),
                3 => json!({"event": "resize", "uid": uid, "time": time, "ei": ei,
                    "terminal_size": "80:25"}),
                _ => json!({"event": "session.command", "code": "T4000I", "uid": uid,
                    "time": time, "ei": ei, "sid": session, "program": "ls"}),
            },
        }
    };
    (0..count).map(event).collect()
}

fn is_no_print(_: usize, event: &Value) -> bool {
    event["event"] != "print"
}

/// The documents about sessions, by what they say of the recording.
fn summaries(rig: &Rig, state: &str) -> BTreeSet<String> {
    let own = rig.stored().1.into_iter();
    let own = own.filter(|own| own["event_indexer.session.recording"] == state);
    own.map(|own| {
        own["event_indexer.session.sid"]
            .as_str()
            .expect("it has one")
            .to_owned()
    })
    .collect()
}

fn gaps(rig: &Rig, reason: &str) -> Vec<Value> {
    let own = rig.stored().1.into_iter();
    own.filter(|own| own["event_indexer.gap.reason"] == reason)
        .collect()
}

/// Each upload that lies before the daemon's position is a row. May be asked at any time.
fn assert_no_upload_was_passed(rig: &Rig, uploads: usize) {
    let Some(summary) = rig.try_summary() else {
        return;
    };
    let path = rig.storage().join("state.sqlite");
    let file = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY);
    let file = file.expect("there is a state file");
    let mut rows = file
        .prepare("SELECT session FROM recordings")
        .expect("there is such a table");
    let rows: BTreeSet<String> = rows
        .query_map([], |row| row.get(0))
        .expect("there are no parameters")
        .map(|row| row.expect("it is a text"))
        .collect();
    let Some(run) = summary.runs.first() else {
        return;
    };
    for number in 0..uploads {
        let is_passed = uploaded(number).timestamp_millis() < run.position_ms;
        assert!(!is_passed || rows.contains(&name(number)), "{number}");
    }
}

#[test]
fn each_event_is_there_once_over_kills_and_breaks_by_both_apis() {
    for export in [true, false] {
        const RECORDINGS: usize = 60;
        let mut rig = rig(
            export,
            &format!("{}\nconcurrency = 3\nskip-session-types = []", sessions()),
        );
        rig.append((0..RECORDINGS).map(upload));
        // One upload is told of twice.
        let mut again = upload(0);
        again["uid"] = "again".into();
        rig.append([again]);
        for number in 0..RECORDINGS {
            let fault = match number % 4 {
                0 => Some(RecordingFault::MissingFirst(2)),
                1 => Some(RecordingFault::Breaks(17, Code::Unavailable)),
                _ => None,
            };
            rig.record(&name(number), &recorded(number, 60), fault, |_, _| true);
        }
        for enough in [20, 400, 1200, 2000] {
            let mut running = rig.spawn(&START);
            wait_until("enough is stored", || {
                let stored = rig.elasticsearch().count();
                let is_done = stored >= enough || !running.is_running();
                is_done.then_some(()).ok_or(stored)
            });
            running.kill();
            rig.assert_nothing_was_passed();
            assert_no_upload_was_passed(&rig, RECORDINGS);
        }
        rig.run_to(0, &START);
        rig.assert_complete();
        assert_eq!(summaries(&rig, "complete").len(), RECORDINGS);
        let run = rig.daemon();
        assert_eq!((run.recordings, run.open_recordings, run.gaps), (60, 0, 0));

        // A backfill has rows of its own, and finds all there.
        let output = rig.run_to(0, &backfill(3, 1));
        let said = output.stderr.lines().last().unwrap_or_default();
        let is_all_there = said.starts_with("done: 0 documents created, ");
        assert!(
            is_all_there && said.ends_with(", 0 gaps"),
            "{}",
            output.stderr
        );
        assert_eq!(rig.backfill().recordings, 60);
    }
}

#[test]
fn what_was_missing_has_all_its_rounds_once_it_is_there() {
    let mut rig = rig(true, &sessions());
    rig.append([upload(1)]);
    // Each alone is less than makes a gap: five tries, and three rounds of three.
    let fault = Some(RecordingFault::MissingThenBroken(4, 6));
    rig.record(&name(1), &recorded(1, 30), fault, is_no_print);
    rig.run_to(0, &START);
    rig.assert_complete();
    assert_eq!(gaps(&rig, "recording_unreadable").len(), 0);
    assert_eq!(summaries(&rig, "complete").len(), 1);
}

#[test]
fn a_broken_stream_goes_on_where_it_was() {
    let mut rig = rig(true, &sessions());
    rig.append([upload(1)]);
    let fault = Some(RecordingFault::Breaks(10, Code::Unavailable));
    rig.record(&name(1), &recorded(1, 30), fault, is_no_print);
    rig.run_to(0, &START);
    rig.assert_complete();
    let asked: Vec<i32> = rig
        .auth()
        .requests()
        .into_iter()
        .filter_map(|request| match request {
            Request::ReadRecording { start_index, .. } => Some(start_index),
            _ => None,
        })
        .collect();
    // The last event comes again each time: the index is inclusive.
    assert_eq!(asked, [0, 9, 18, 27]);
    let own = rig.stored().1;
    let expected = json!({
        "time": uploaded(1).to_rfc3339(), "event": "event_indexer.session",
        "cluster_name": "rig.example.com",
        "event_indexer.session.sid": name(1), "event_indexer.session.recording": "complete",
        "event_indexer.session.user": "alice", "event_indexer.session.kind": "ssh",
        "event_indexer.session.events": 30, "event_indexer.session.commands": 10,
        "event_indexer.session.start": own[0]["event_indexer.session.start"],
        "event_indexer.session.end": own[0]["event_indexer.session.end"],
        "event_indexer.session.duration_ms": own[0]["event_indexer.session.duration_ms"],
    });
    assert_eq!(own, [expected]);
}

#[test]
fn one_that_is_not_there_is_told_of_and_found_by_the_next_start() {
    let mut rig = rig(false, &sessions());
    // Young enough to be looked for again.
    let time = Utc::now() - TimeDelta::hours(3);
    let session = name(7);
    rig.append([
        json!({"event": "session.upload", "code": "T2005I", "uid": "upload",
        "time": rfc3339(time), "ei": 2_147_483_647, "sid": session}),
    ]);
    rig.run_to(0, &START);
    rig.assert_complete();
    assert_eq!(rig.auth().n_calls(Method::ReadRecording), 5);
    let run = rig.daemon();
    assert_eq!((run.recordings, run.open_recordings, run.gaps), (0, 0, 1));
    let told = gaps(&rig, "recording_missing");
    assert_eq!(told.len(), 1);
    assert_eq!(told[0]["event_indexer.gap.sid"], *session);
    assert_eq!(summaries(&rig, "missing"), [session.clone()].into());

    rig.record(&session, &recorded(7, 12), None, is_no_print);
    rig.run_to(0, &START);
    rig.assert_complete();
    let run = rig.daemon();
    assert_eq!((run.recordings, run.gaps), (1, 0));
    let closed = gaps(&rig, "recording_missing");
    let closed = closed
        .iter()
        .filter(|gap| gap.get("event_indexer.gap.closed").is_some());
    assert_eq!(closed.count(), 1);
    assert_eq!(summaries(&rig, "complete"), [session].into());
}

#[test]
fn of_a_corrupt_one_what_was_read_stays_and_the_rest_is_a_gap() {
    let mut rig = rig(true, &sessions());
    rig.append((0..3).map(upload));
    // What Teleport says of a broken file.
    let fault = Some(RecordingFault::Corrupt(10, Code::InvalidArgument));
    let until_ten = |place, event: &Value| place < 10 && is_no_print(place, event);
    rig.record(&name(0), &recorded(0, 30), fault, until_ten);
    let fault = Some(RecordingFault::Corrupt(0, Code::Unknown));
    rig.record(&name(1), &recorded(1, 30), fault, |_, _| false);
    // Its end is missing, and the server finds nothing wrong with that.
    let cut = &recorded(2, 30)[..20];
    rig.record(&name(2), cut, None, is_no_print);
    let output = rig.run_to(1, &backfill(3, 1));
    rig.assert_complete();
    assert!(output.stderr.contains(", 2 gaps"), "{}", output.stderr);
    let mut told: Vec<Value> = gaps(&rig, "recording_unreadable");
    told.sort_by_key(|gap| gap["event_indexer.gap.sid"].to_string());
    assert_eq!(told[0]["event_indexer.gap.sid"], name(0));
    let detail = told[0]["event_indexer.gap.detail"]
        .as_str()
        .expect("a text");
    assert!(detail.contains("behind its first 10 events"), "{detail}");
    assert_eq!(summaries(&rig, "unreadable"), [name(0), name(1)].into());
    assert_eq!(summaries(&rig, "without_end"), [name(2)].into());
    assert!(rig.backfill().finished);
}

#[test]
fn what_is_not_for_us_is_held_until_it_is() {
    let mut rig = rig(true, &sessions());
    rig.append((0..2).map(upload));
    let fault = Some(RecordingFault::Denied);
    rig.record(&name(0), &recorded(0, 9), fault, is_no_print);
    rig.record(&name(1), &recorded(1, 9), None, is_no_print);
    let mut running = rig.spawn(&START);
    let said = wait_until_said(&running, "holding");
    let rule = "the rule `resources: [session], verbs: [list, read]`";
    assert!(said.contains(rule), "{said}");
    wait_until("the other one is read", || {
        let read = rig.daemon().recordings;
        (read == 1).then_some(()).ok_or(read)
    });
    assert!(running.is_running());
    let status = rig.run_to(0, &["status"]).stdout;
    let line = "  1 session recordings read, 1 to be read\n";
    assert!(status.contains(line), "{status}");
    rig.auth().set_recording_fault(&name(0), None);
    assert_eq!(running.wait().code, Some(0));
    rig.assert_complete();
}

#[test]
fn the_events_that_reading_makes_lead_to_nothing() {
    let mut rig = rig(true, &sessions());
    rig.append((0..5).map(upload));
    for number in 0..5 {
        rig.record(&name(number), &recorded(number, 9), None, is_no_print);
    }
    rig.auth().audit_recordings(true);
    rig.run_to(0, &START);
    assert_eq!(rig.auth().n_calls(Method::ReadRecording), 5);
    // The events of the first run are read by the second one, and no recording is.
    rig.run_to(0, &START);
    let stored = rig.stored().0;
    let access = stored
        .values()
        .filter(|event| event["event"] == "session.recording.access");
    assert_eq!(access.count(), 5);
    assert_eq!(rig.auth().n_calls(Method::ReadRecording), 5);
}

#[test]
fn nothing_is_read_where_that_is_not_wanted() {
    for (top, is_read, has_summary) in [
        ("sessions = false", false, false),
        (
            "sessions = true\nskip-event-types = [\"session.upload\"]",
            false,
            false,
        ),
        ("sessions = true\nsession-summaries = false", true, false),
        (
            "sessions = true\nskip-session-types = [\"session.command\", \"print\"]",
            true,
            true,
        ),
    ] {
        let mut rig = rig(
            true,
            &format!("{top}\nstart-time = {:?}", rfc3339(midnight(3))),
        );
        if top.contains("session.upload") {
            rig.append_unwanted([upload(0)]);
        } else {
            rig.append([upload(0)]);
        }
        let skips_commands = top.contains("session.command");
        rig.record(&name(0), &recorded(0, 30), None, |place, event| {
            let is_command = event["event"] == "session.command";
            is_read && is_no_print(place, event) && !(skips_commands && is_command)
        });
        rig.run_to(0, &START);
        rig.assert_complete();
        let calls = rig.auth().n_calls(Method::ReadRecording);
        assert_eq!(calls, u64::from(is_read), "{top}");
        let told = summaries(&rig, "complete").len();
        assert_eq!(told, usize::from(has_summary), "{top}");
    }
}

#[test]
fn a_daemon_reads_recordings_as_they_come() {
    let mut rig = rig(false, &sessions());
    rig.append(realistic(5, 50, 3, 2).filter(|event| event["event"] != "session.upload"));
    let mut running = rig.spawn(&["start"]);
    wait_until_said(&running, "caught up");
    for number in 0..3 {
        rig.record(&name(number), &recorded(number, 9), None, is_no_print);
        let mut upload = upload(number);
        upload["time"] = rfc3339(Utc::now()).into();
        rig.append([upload]);
        wait_until("it is read", || {
            let read = rig.daemon().recordings;
            (read == number as u64 + 1).then_some(()).ok_or(read)
        });
    }
    running.terminate();
    assert_eq!(running.wait().code, Some(0));
    rig.assert_complete();
}
