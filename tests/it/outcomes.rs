//! Whatever Elasticsearch answers: each document is stored once or kept with the reason, the
//! others are not held up, and what is held is said.

mod matrix;
mod too_large;

use std::collections::BTreeSet;
use std::sync::Mutex;

use bytes::Bytes;
use chrono::TimeDelta;
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};
use teleport_event_indexer::demo::auth::Method;
use teleport_event_indexer::demo::elastic::{Answer, Refusal};
use teleport_event_indexer::demo::events::{self, Id};
use teleport_event_indexer::document::DocumentId;
use teleport_event_indexer::event::{AuditEvent, Timestamp};

use crate::support::rig::{
    Rig, backfill, event, line_with, midnight, realistic, rfc3339, wait_until_said,
};
use crate::support::wait_until;

fn status(status: u16, body: &str) -> Answer {
    Answer::Status {
        status,
        body: body.to_owned(),
        retry_after: None,
    }
}

/// A row of the dead-letter store.
#[derive(Debug, PartialEq, Eq)]
struct Letter {
    id: String,
    index: String,
    form: String,
    status: Option<u16>,
    error_type: String,
    reason: String,
    document: Vec<u8>,
}

fn letters(rig: &Rig) -> Vec<Letter> {
    let path = rig.storage().join("state.sqlite");
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .expect("there is a state file");
    let mut statement = connection
        .prepare(
            "SELECT document_id, index_name, form, status, error_type, reason, document
             FROM dead_letters ORDER BY event_type",
        )
        .expect("the table has these columns");
    let rows = statement.query_map([], |row| {
        Ok(Letter {
            id: row.get(0)?,
            index: row.get(1)?,
            form: row.get(2)?,
            status: row.get(3)?,
            error_type: row.get(4)?,
            reason: row.get(5)?,
            document: row.get(6)?,
        })
    });
    rows.expect("there are no parameters")
        .map(|row| row.expect("the columns are of these types"))
        .collect()
}

/// One request at a time, so that the answers come in the order in which they were planned.
const ONE_BY_ONE: &str = "in-flight = 1\nbatch-documents = 40\nrequest-timeout = \"400ms\"";

#[test]
fn whatever_is_answered_every_document_is_stored_once_or_kept_with_the_reason() {
    let mut rig = Rig::new("", ONE_BY_ONE);
    rig.append(realistic(1, 900, 4, 2));
    let odd = event("odd", "odd.one", midnight(3));
    rig.append([odd.clone()]);
    let elasticsearch = rig.elasticsearch();
    let security = |kind: &str| json!({"error": {"type": kind, "reason": "no"}}).to_string();
    for answer in [
        status(429, "{}"),
        status(503, "<html>busy</html>"),
        Answer::Drop,
        Answer::StoreAndDrop,
        Answer::Hang,
        status(502, "<html>bad gateway</html>"),
        status(200, "<html>log in</html>"),
        status(200, r#"{"items":[{"create":{"status":201}}]}"#),
        status(413, ""),
        status(401, &security("security_exception")),
        status(403, &security("security_exception")),
    ] {
        elasticsearch.answer_next(1, answer);
        elasticsearch.answer_next(1, Answer::Ordinary);
    }
    let seen = Mutex::new(BTreeSet::new());
    elasticsearch.add_rule(move |operation| {
        if operation.contains("odd.one") {
            return Some(Refusal::mapping_failure());
        }
        // One in eight at first, each for a reason that passes.
        let pick = operation.id.as_bytes()[20] % 24;
        let is_first = seen.lock().unwrap().insert(operation.id.to_owned());
        match (is_first, pick) {
            (true, 0) => Some(Refusal::rejected_execution()),
            (true, 1) => Some(Refusal::new(503, "unavailable_shards_exception", "")),
            (true, 2) => Some(Refusal::new(500, "", "")),
            _ => None,
        }
    });

    // A dead letter makes it 1.
    let output = rig.run_to(1, &backfill(5, 1));
    rig.assert_complete_but(&["odd.one"]);
    for said in [
        "refuses the credentials",
        "refuses the request",
        "answered 1 items for",
        "it did not answer in time",
        "gave an answer that cannot be read",
        "status 429",
    ] {
        assert!(output.stderr.contains(said), "{said}: {}", output.stderr);
    }
    let run = rig.backfill();
    assert!(run.finished);
    let counts = run.counts;
    assert_eq!((counts.events, counts.dead_letters), (901, 1));
    assert_eq!(counts.created + counts.already_there, 900);
    assert!(
        counts.already_there > 0,
        "the answer that was lost: {counts:?}"
    );
    for reason in [429, 503, 500] {
        assert!(rig.elasticsearch().n_items(reason) > 0, "{reason}");
    }
    let [letter] = &letters(&rig)[..] else {
        panic!("{:?}", letters(&rig));
    };
    let document: Value = serde_json::from_slice(&letter.document).unwrap();
    assert_eq!(document, odd);
    let Refusal {
        status,
        error_type,
        reason,
    } = Refusal::mapping_failure();
    assert_eq!(letter.status, Some(status));
    assert_eq!(letter.error_type, error_type);
    let twice = format!("{reason}; in safe form: {error_type}: {reason}");
    assert_eq!(letter.reason, twice);
    assert!(
        !output.stderr.contains(&reason),
        "a reason may quote the document"
    );
}

/// Stands where no mapping of ours is, as `_id` does for a real server.
const REFUSED_KEY: &str = "_refused";

#[test]
fn a_refused_document_is_stored_in_safe_form_and_found_by_user_type_and_time() {
    let mut rig = Rig::new("", ONE_BY_ONE);
    rig.append(realistic(7, 200, 4, 2));
    let odd: Vec<Value> = (0..3)
        .map(|n| {
            let mut event = event(format!("odd{n}"), "odd.two", midnight(3));
            event[REFUSED_KEY] = json!({"deep": [n]});
            event["user"] = "alice".into();
            event["success"] = "no boolean".into();
            event
        })
        .collect();
    rig.append(odd.clone());
    let is_raw = |operation: &str| operation.starts_with("{\"_refused");
    rig.elasticsearch().add_rule(move |operation| {
        let source = std::str::from_utf8(operation.source).unwrap();
        is_raw(source).then(Refusal::mapping_failure)
    });
    let output = rig.run_to(0, &backfill(5, 1));
    let said = "done: 203 documents created (3 in safe form), 0 were there already, 0 dead letters";
    assert!(output.stderr.contains(said), "{}", output.stderr);
    let line = line_with(&output.stderr, "stored in safe form").expect("it is said");
    assert!(line.contains("documents=3") && line.contains("document_parsing_exception"));
    assert!(!output.stderr.contains(&Refusal::mapping_failure().reason));

    let (stored, _) = rig.stored();
    assert_eq!(stored.len(), 203);
    for event in &odd {
        let key = rig.key(&events::encode(event, Id::OfEvent));
        let mut expected = event.clone();
        let members = expected.as_object_mut().unwrap();
        members.remove(REFUSED_KEY);
        members.remove("success");
        members.insert("event_indexer.raw".into(), event.to_string().into());
        let Refusal {
            error_type, reason, ..
        } = Refusal::mapping_failure();
        members.insert("event_indexer.refused.type".into(), error_type.into());
        members.insert("event_indexer.refused.reason".into(), reason.into());
        assert_eq!(stored.get(&key), Some(&expected));
    }

    // Read again they are refused again, and found in safe form.
    let mut again = backfill(5, 1);
    again.push("--again".into());
    rig.run_to(0, &again);
    let counts = rig.backfill().counts;
    assert_eq!(
        (counts.created, counts.safe_form, counts.already_there),
        (0, 0, 203)
    );
}

#[test]
fn events_that_make_no_document_are_kept_as_they_came_and_the_rest_goes_on() {
    let mut rig = Rig::new("", "");
    rig.append(realistic(3, 200, 3, 2));
    let raw = |kind: &'static str, body: &'static [u8], time_ms: Option<i64>| AuditEvent {
        event_type: Bytes::from_static(kind.as_bytes()),
        id: Bytes::from_static(b"raw"),
        time: time_ms.map(Timestamp::from_millis),
        index: 0,
        body: Bytes::from_static(body),
        session: None,
    };
    let noon = midnight(3).timestamp_millis() + 43_200_000;
    let broken = raw("1.broken", b"\x0a\x7fno Struct at all", Some(noon));
    rig.auth().append([broken.clone()]);
    // Chunks go by the header, in which no time is 1970: such an event is met there, by a server
    // that lists it.
    let timeless = raw("2.timeless", b"", None);
    rig.auth().append([timeless.clone()]);
    rig.run_to(1, &backfill(3, 2));
    let epoch = ["backfill", "--from", "1970-01-01", "--to", "1970-01-02"];
    rig.run_to(1, &epoch);
    rig.auth().set_export(false);
    let mut again = backfill(3, 2);
    again.push("--again".into());
    rig.run_to(1, &again);

    let found = letters(&rig);
    let expected = [
        (&broken, "no protobuf Struct"),
        (&timeless, "no usable time"),
    ];
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (letter, (event, reason)) in found.iter().zip(expected) {
        assert_eq!(letter.id, DocumentId::of_raw(event).to_string());
        assert_eq!((&*letter.index, &*letter.form), ("", "protobuf"));
        assert_eq!(
            (letter.status, &*letter.error_type),
            (None, "unconvertible_event")
        );
        assert!(letter.reason.contains(reason), "{}", letter.reason);
        assert_eq!(letter.document, event.body);
    }
    let (stored, own) = rig.stored();
    assert_eq!(stored.len(), 200);

    // The one that has a time is a gap besides, once, which says where its bytes are.
    let gaps = rig.open_gaps();
    let [gap] = &gaps[..] else {
        panic!("{gaps:?}");
    };
    assert_eq!((gap.from_ms, gap.to_ms), (noon, noon + 1));
    assert_eq!(gap.event_type.as_deref(), Some("1.broken"));
    let [document] = &own[..] else {
        panic!("{own:?}");
    };
    assert_eq!(document["event_indexer.gap.reason"], "event_malformed");
    assert_eq!(document["event_indexer.gap.event_id"], "raw");
    assert_eq!(document["event_indexer.gap.dead_letter"], *found[0].id);
    assert_eq!(rig.summary().closed_gaps, 0);
}

#[test]
fn a_blocked_index_holds_its_own_documents_and_no_others() {
    let blocks: [fn(&str) -> Refusal; 3] = [Refusal::flood_stage, Refusal::write_block, |_| {
        Refusal::closed_index()
    }];
    for (block, export) in blocks.into_iter().zip([true, false, false]) {
        let mut rig = Rig::new("", "batch-documents = 100");
        rig.auth().set_export(export);
        rig.append(realistic(4, 300, 4, 3));
        let others = rig.n_events() as u64;
        let blocked = format!("audit-events-{}", midnight(3).format("%Y.%m.%d"));
        let name = blocked.clone();
        rig.elasticsearch()
            .add_rule(move |operation| (operation.index == name).then(|| block(operation.index)));
        rig.append(realistic(5, 300, 3, 2));
        rig.append(realistic(6, 300, 2, 1));

        let mut running = rig.spawn(&backfill(4, 1));
        rig.wait_until_stored(others + 300);
        let said = wait_until_said(&running, "blocked, nothing is lost, holding");
        assert!(said.contains(&blocked), "{said}");
        // Once the block is known to last, they wait on the disk, and the position passes them.
        wait_until("all of it is passed", || match rig.backfill().position_ms {
            passed if passed >= midnight(1).timestamp_millis() => Ok(()),
            position_ms => Err(position_ms),
        });
        rig.assert_nothing_was_passed();
        assert_eq!(rig.waiting().len(), 300);
        assert!(!rig.backfill().finished && running.is_running());
        let status = rig.run_to(0, &["status"]);
        let line = line_with(&status.stdout, "wait for their index");
        assert!(line.is_some_and(|l| l.starts_with("blocked        300 (")));
        if export {
            assert_eq!(running.kill().signal, Some(9));
            rig.assert_nothing_was_passed();
            running = rig.spawn(&backfill(4, 1));
            wait_until_said(&running, "blocked, nothing is lost, holding");
        }
        rig.elasticsearch().clear_rules();
        let output = running.wait();
        assert_eq!(output.code, Some(0), "{}", output.stderr);
        assert!(line_with(&output.stderr, "no longer blocked").is_some());
        rig.assert_complete();
        assert_eq!(rig.waiting().len(), 0);
    }
}

#[test]
fn each_blocked_index_is_told_of_in_its_own_words() {
    let mut rig = Rig::new("", "");
    for (n, days_ago) in (0..).zip([4, 3, 2]) {
        rig.append([event(n, "one", midnight(days_ago))]);
    }
    let [full, shut] = [4, 3].map(|days| {
        let day = midnight(days).format("%Y.%m.%d");
        format!("audit-events-{day}")
    });
    let names = [full.clone(), shut.clone()];
    rig.elasticsearch().add_rule(move |operation| {
        if operation.index == full {
            Some(Refusal::flood_stage(operation.index))
        } else if operation.index == shut {
            Some(Refusal::closed_index())
        } else {
            None
        }
    });
    let running = rig.spawn(&backfill(5, 1));
    for (name, words) in names.iter().zip(["disk is full", "open the index"]) {
        let said = wait_until_said(&running, name);
        assert!(said.contains("blocked") && said.contains(words), "{said}");
    }
    rig.elasticsearch().clear_rules();
    assert_eq!(running.wait().code, Some(0));
    rig.assert_complete();
}

#[test]
fn a_block_that_outlasts_the_memory_and_the_process_costs_the_disk_alone() {
    // About 20 MiB for an index that is blocked, where there is room for about 8 in memory.
    const EVENTS: usize = 4000;
    let top = format!("start-time = {:?}\nconcurrency = 2", rfc3339(midnight(3)));
    let mut rig = Rig::new(&top, "in-flight = 1\nbatch-bytes = \"64KiB\"");
    rig.append((0..EVENTS).map(|n| {
        let time = midnight(3) + TimeDelta::seconds(i64::try_from(n).unwrap());
        let mut event = event(n, "large", time);
        event["command"] = "x".repeat(5000).into();
        event
    }));
    // Refused as it is, and in safe form on its way to the disk.
    let mut odd = event("odd", "odd", midnight(3) + TimeDelta::hours(3));
    odd["_refused"] = true.into();
    rig.append_unwanted([odd]);
    let blocked = format!("audit-events-{}", midnight(3).format("%Y.%m.%d"));
    let block = move |rig: &Rig| {
        let name = blocked.clone();
        rig.elasticsearch().add_rule(move |operation| {
            if operation.source.starts_with(b"{\"_refused") {
                return Some(Refusal::mapping_failure());
            }
            (operation.index == name).then(|| Refusal::write_block(operation.index))
        });
    };
    block(&rig);
    rig.append(realistic(8, 100, 2, 1));
    let mut running = rig.spawn(&["start"]);
    wait_until("all but the blocked are stored and those wait", || {
        let runs = rig.try_summary().map(|summary| summary.runs);
        let position_ms = runs.and_then(|runs| Some(runs.first()?.position_ms));
        match (rig.elasticsearch().count(), position_ms) {
            (100, Some(position_ms)) if position_ms > midnight(1).timestamp_millis() => Ok(()),
            seen => Err(format!("{seen:?}")),
        }
    });
    assert_eq!(rig.waiting().len(), EVENTS + 1);
    rig.assert_nothing_was_passed();
    // What is on the disk need not be waited for.
    running.terminate();
    let output = running.wait();
    assert_eq!(output.code, Some(0), "{}", output.stderr);

    let running = rig.spawn(&["start", "--exit-on-last-event"]);
    wait_until_said(&running, "wait in the state file");
    wait_until_said(&running, "blocked, nothing is lost, holding");
    rig.elasticsearch().clear_rules();
    let output = running.wait();
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    let said = output.stderr.matches("no longer blocked").count();
    assert_eq!(said, 1, "{}", output.stderr);
    assert_eq!(rig.waiting().len(), 0);
    let (stored, _) = rig.stored();
    assert_eq!(stored.len(), rig.n_events() + 1);
    let safe = stored
        .values()
        .filter(|source| source["event_indexer.raw"].is_string());
    assert_eq!(safe.count(), 1);
    let counts = rig.daemon().counts;
    assert_eq!(counts.created, stored.len() as u64);
    assert_eq!(counts.safe_form, 1);
}

#[test]
fn the_daemon_sends_what_a_backfill_has_left_on_the_disk() {
    let mut rig = Rig::new("", "");
    rig.append([event("a", "one", midnight(3))]);
    rig.elasticsearch()
        .add_rule(|_| Some(Refusal::closed_index()));
    let mut running = rig.spawn(&backfill(3, 2));
    wait_until("it waits on the disk", || match rig.try_summary() {
        Some(summary) if summary.blocked.count == 1 => Ok(()),
        _ => Err("not yet"),
    });
    running.kill();
    rig.elasticsearch().clear_rules();
    rig.configure(&format!("start-time = {:?}", rfc3339(midnight(1))), "");
    rig.run_to(0, &["start", "--exit-on-last-event"]);
    assert_eq!(rig.daemon().counts.created, 1);
    rig.assert_complete();
}

#[test]
fn a_full_dead_letter_store_holds_everything_until_there_is_room() {
    let mut rig = Rig::new("dead-letter-bytes = \"4KiB\"\ngrace-period = \"0s\"", "");
    rig.append((0..20).map(|n| {
        let mut event = event(n, "refused", midnight(3));
        event["command"] = "x".repeat(400).into();
        event
    }));
    rig.elasticsearch()
        .add_rule(|_| Some(Refusal::mapping_failure()));
    let mut running = rig.spawn(&backfill(3, 2));
    let said = wait_until_said(&running, "cannot keep dead letters");
    assert!(said.contains("raise dead-letter-bytes"), "{said}");
    running.terminate();
    let output = running.wait();
    assert_eq!(output.code, Some(1), "{}", output.stderr);
    assert!(output.stderr.contains("20 documents had not settled"));
    assert_eq!(rig.summary().dead_letters.count, 0);
    rig.assert_nothing_was_passed();

    rig.configure("dead-letter-bytes = \"1MiB\"", "");
    rig.run_to(1, &backfill(3, 2));
    rig.assert_complete_but(&["refused"]);
    assert_eq!(rig.auth().n_handed_out(Method::ReadChunk), 40);
}

#[test]
fn while_documents_cannot_be_stored_no_more_is_read_than_the_settings_allow() {
    // Room for 8 MiB and three batches of 64 KiB, and a page for each of two readers; there are
    // about 20 MiB.
    const BYTES: usize = 5000;
    const EVENTS: u64 = 4000;
    for is_blocked in [false, true] {
        let more = "in-flight = 1\nbatch-bytes = \"64KiB\"";
        // The disk has no room for what is blocked.
        let mut rig = Rig::new("concurrency = 2\nblocked-bytes = \"64KiB\"", more);
        rig.append((0..EVENTS).map(|n| {
            let time = midnight(3) + TimeDelta::seconds(i64::try_from(n).unwrap());
            let mut event = event(n, "large", time);
            event["command"] = "x".repeat(BYTES).into();
            event
        }));
        if is_blocked {
            rig.elasticsearch()
                .add_rule(|_| Some(Refusal::closed_index()));
        } else {
            rig.elasticsearch().answer_next(1, Answer::Hang);
        }
        let running = rig.spawn(&backfill(3, 2));
        wait_until("documents are on their way", || {
            match rig.elasticsearch().n_bulk_requests() {
                0 => Err("none"),
                _ => Ok(()),
            }
        });
        let (mut last, mut same) = (0, 0);
        let held = wait_until("no more is read", || {
            let now = rig.auth().n_handed_out(Method::ReadChunk);
            same = if now == last { same + 1 } else { 0 };
            last = now;
            // For as long as reading all of it takes.
            if same >= 40 { Ok(now) } else { Err(now) }
        });
        if is_blocked {
            wait_until_said(
                &running,
                "has no room for more documents of blocked indices",
            );
        }
        let bytes = held * BYTES as u64;
        assert!(bytes < 13 << 20, "{held} of {EVENTS} events");
        assert_eq!(rig.elasticsearch().count(), 0);
        rig.elasticsearch().clear_rules();
        rig.elasticsearch().drop_connections();
        let output = running.wait();
        assert_eq!(output.code, Some(0), "{}", output.stderr);
        rig.assert_complete();
        assert_eq!(rig.auth().n_handed_out(Method::ReadChunk), EVENTS);
    }
}
