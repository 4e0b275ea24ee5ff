//! `dead-letters` and `state`: what Elasticsearch refused is looked at, sent again, exported and
//! dropped; the state is copied and put aside.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use bytes::Bytes;
use chrono::TimeDelta;
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use teleport_event_indexer::demo::elastic::Refusal;
use teleport_event_indexer::demo::events::{self, Id};
use teleport_event_indexer::event::AuditEvent;

use crate::support::rig::{Rig, backfill, event, midnight, rfc3339, wait_until_said};
use crate::support::wait_until;

const SECRET: &str = "what nobody asked to see";

/// A log of which Elasticsearch refuses all of some types, and a backfill that has met it.
fn refused() -> Rig {
    let mut rig = Rig::new("", "batch-documents = 4");
    for (n, kind) in (0..).zip(["odd.a", "odd.a", "odd.b", "odd.b", "odd.b", "fine"]) {
        let time = midnight(3) + TimeDelta::hours(n);
        let mut event = event(n, kind, time);
        event["command"] = SECRET.into();
        rig.append([event]);
    }
    rig.elasticsearch().add_rule(|operation| {
        let limit = || Refusal::new(400, "illegal_argument_exception", "limit of fields");
        match operation {
            _ if operation.contains("odd.a") => Some(Refusal::mapping_failure()),
            _ if operation.contains("odd.b") => Some(limit()),
            _ => None,
        }
    });
    rig.run_to(1, &backfill(3, 2));
    rig.assert_complete_but(&["odd.a", "odd.b"]);
    rig
}

fn json_list(rig: &Rig, filters: &[&str]) -> Vec<Value> {
    let command = [&["dead-letters", "list", "--json"][..], filters].concat();
    let output = rig.run_to(0, &command);
    serde_json::from_str(&output.stdout).expect("it is JSON")
}

#[test]
fn dead_letters_are_listed_and_shown_without_their_documents() {
    let rig = refused();
    let list = rig.run_to(0, &["dead-letters", "list"]);
    let mut lines = list.stdout.lines();
    let head: Vec<_> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(head[..4], ["ID", "TIME", "TYPE", "ERROR"]);
    assert_eq!(lines.count(), 5, "{}", list.stdout);
    let few = rig.run_to(0, &["dead-letters", "list", "--limit", "2"]);
    assert_eq!(few.stdout.lines().count(), 3);
    assert!(few.stderr.contains("and 3 more"), "{}", few.stderr);

    let after = rfc3339(midnight(3) + TimeDelta::hours(1));
    let before = rfc3339(midnight(3) + TimeDelta::hours(3));
    for (filters, expected) in [
        (&["--type", "odd.a"][..], 2),
        (&["--error-type", "illegal_argument_exception"], 3),
        (&["--from", &after, "--to", &before], 2),
        (&["--from", &after, "--type", "odd.a"], 1),
        (&["--type", "fine"], 0),
    ] {
        assert_eq!(json_list(&rig, filters).len(), expected, "{filters:?}");
    }
    let none = rig.run_to(0, &["dead-letters", "list", "--type", "fine"]);
    assert_eq!(
        (none.stdout.as_str(), none.stderr.as_str()),
        ("", "no dead letters\n")
    );

    let entry = &json_list(&rig, &["--type", "odd.a"])[0];
    let id = entry["id"].as_str().unwrap();
    let show = rig.run_to(0, &["dead-letters", "show", id]);
    let payload = rig.run_to(0, &["dead-letters", "show", id, "--payload"]);
    for output in [&list, &few, &show] {
        assert!(!output.stdout.contains(SECRET) && !output.stderr.contains(SECRET));
    }
    let mut shown: Value = serde_json::from_str(&payload.stdout).unwrap();
    assert_eq!(shown["document"]["command"], SECRET);
    shown.as_object_mut().unwrap().remove("document");
    assert_eq!(serde_json::from_str::<Value>(&show.stdout).unwrap(), shown);
    let reason = shown["reason"].as_str().unwrap();
    assert!(
        reason.starts_with(&Refusal::mapping_failure().reason),
        "{reason}"
    );

    let unknown = rig.run_to(1, &["dead-letters", "show", "nobody"]);
    let said = "error: there is no dead letter with the id \"nobody\"\n";
    assert_eq!(unknown.stderr, said);
}

#[test]
fn dead_letters_are_exported_for_their_owner_alone() {
    let rig = refused();
    let out = rig.run_to(0, &["dead-letters", "export", "--type", "odd.b"]);
    let lines: Vec<Value> = out
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 3);
    let is_whole = |line: &Value| line["document"]["event"] == "odd.b" && line["form"] == "json";
    assert!(lines.iter().all(is_whole), "{lines:?}");

    let path = rig.storage().parent().unwrap().join("letters.ndjson");
    let export = ["dead-letters", "export", "-o", path.to_str().unwrap()];
    let said = rig.run_to(0, &export);
    assert_eq!(
        (said.stdout.as_str(), said.stderr.as_str()),
        ("", "5 dead letters exported\n")
    );
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 5);
    let again = rig.run_to(1, &export);
    assert!(
        again.stderr.contains("which must not exist"),
        "{}",
        again.stderr
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}

#[test]
fn dead_letters_are_dropped_only_by_name_or_all_and_only_with_yes() {
    let rig = refused();
    let id = json_list(&rig, &["--type", "odd.a"])[0]["id"].clone();
    let id = id.as_str().unwrap();
    for (arguments, said) in [
        (&["drop", "--yes"][..], "name the ids"),
        (&["drop", id], "this needs --yes"),
        (&["drop", "--all"], "this needs --yes"),
        (&["drop", id, "--all", "--yes"], "cannot be used with"),
    ] {
        let output = rig.run_to(2, &[&["dead-letters"], arguments].concat());
        assert!(output.stderr.contains(said), "{}", output.stderr);
    }
    assert_eq!(rig.summary().dead_letters.count, 5);
    rig.run_to(0, &["dead-letters", "drop", id, "--yes"]);
    rig.run_to(1, &["dead-letters", "drop", id, "--yes"]);
    assert_eq!(rig.summary().dead_letters.count, 4);
    let by_type = ["dead-letters", "drop", "--all", "--type", "odd.b", "--yes"];
    let output = rig.run_to(0, &by_type);
    assert_eq!(output.stderr, "3 dead letters dropped\n");
    assert_eq!(json_list(&rig, &[]).len(), 1);
}

#[test]
fn what_is_sent_again_and_settles_is_a_dead_letter_no_more_also_beside_a_daemon() {
    let rig = refused();
    rig.configure(&format!("start-time = {:?}", rfc3339(midnight(3))), "");
    let running = rig.spawn(&["start"]);
    wait_until_said(&running, "first start");
    wait_until("the daemon has met them too", || {
        match rig.daemon().counts {
            counts if counts.dead_letters == 5 => Ok(()),
            counts => Err(counts.dead_letters),
        }
    });
    // As before: they are refused again, in safe form too.
    let output = rig.run_to(1, &["dead-letters", "retry"]);
    assert!(
        output
            .stderr
            .contains("0 stored, 0 were there already, 5 refused again, 0 blocked"),
        "{}",
        output.stderr
    );
    assert_eq!(json_list(&rig, &[]).len(), 5);

    rig.elasticsearch().clear_rules();
    rig.elasticsearch().add_rule(|operation| {
        let is_raw = operation.contains("odd.b") && !operation.contains("event_indexer.raw");
        is_raw.then(Refusal::mapping_failure)
    });
    let output = rig.run_to(0, &["dead-letters", "retry", "--type", "odd.b"]);
    let settled = "3 stored (3 in safe form), 0 were there already, 0 refused again, 0 blocked";
    assert!(output.stderr.contains(settled), "{}", output.stderr);
    assert_eq!(json_list(&rig, &[]).len(), 2);

    rig.elasticsearch().clear_rules();
    let name = format!("audit-events-{}", midnight(3).format("%Y.%m.%d"));
    rig.elasticsearch()
        .add_rule(move |operation| (operation.index == name).then(Refusal::closed_index));
    let output = rig.run_to(1, &["dead-letters", "retry"]);
    assert!(
        output.stderr.contains("hint: open the index"),
        "{}",
        output.stderr
    );
    assert_eq!(json_list(&rig, &[]).len(), 2);

    rig.elasticsearch().clear_rules();
    rig.run_to(0, &["dead-letters", "retry"]);
    rig.run_to(0, &["dead-letters", "retry"]);
    assert_eq!(rig.summary().dead_letters.count, 0);
    let (stored, _) = rig.stored();
    assert_eq!(stored.len(), rig.n_events());
    drop(running);
    let bare = Rig::new("", "");
    let output = bare.run_to(1, &["dead-letters", "retry"]);
    assert!(
        output.stderr.contains("there is no state in"),
        "{}",
        output.stderr
    );
}

/// An event of which no document can be made is a gap, and stays one until its letter is gone.
#[test]
fn the_gap_of_an_event_that_made_no_document_closes_with_its_letter() {
    let mut rig = Rig::new("", "");
    rig.append([event("fine", "fine", midnight(3))]);
    let noon = midnight(3) + TimeDelta::hours(12);
    // What they should have been, and have become.
    let [one, two] = [1, 2].map(|ei| {
        let mut event = event(format!("broken {ei}"), &format!("broken.{ei}"), noon);
        event["ei"] = ei.into();
        let mut encoded = events::encode(&event, Id::OfEvent);
        let body = std::mem::replace(&mut encoded.body, Bytes::from_static(b"\x0a\x7fno Struct"));
        rig.auth().append([encoded.clone()]);
        (event, AuditEvent { body, ..encoded })
    });
    rig.run_to(1, &backfill(3, 2));
    let gaps = |open: usize, closed: u64, documents: usize| {
        assert_eq!(rig.open_gaps().len(), open);
        assert_eq!(rig.summary().closed_gaps, closed);
        assert_eq!(rig.stored().1.len(), documents);
    };
    gaps(2, 0, 2);
    let retry = ["dead-letters", "retry"];
    let output = rig.run_to(1, &retry);
    let said = "2 are events of which no document can be made";
    assert!(output.stderr.contains(said), "{}", output.stderr);
    gaps(2, 0, 2);

    // As if this were a version that can read the bytes of one of them.
    let path = rig.storage().join("state.sqlite");
    let state = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap();
    let changed = state.execute(
        "UPDATE dead_letters SET document = ?1 WHERE event_type = 'broken.1'",
        [&one.1.body[..]],
    );
    assert_eq!(changed.unwrap(), 1);
    state.close().unwrap();
    let output = rig.run_to(1, &retry);
    assert!(output.stderr.contains("1 stored"), "{}", output.stderr);
    gaps(1, 1, 3);
    let (stored, own) = rig.stored();
    let closed = own
        .iter()
        .filter(|document| document.get("event_indexer.gap.closed").is_some());
    let closed: Vec<_> = closed
        .map(|gap| &gap["event_indexer.gap.event_type"])
        .collect();
    assert_eq!(closed, ["broken.1"]);

    let drop = ["dead-letters", "drop", "--all", "--yes"];
    let output = rig.run_to(0, &drop);
    let said = "1 gaps closed, as their events are given up";
    assert!(output.stderr.contains(said), "{}", output.stderr);
    gaps(0, 2, 3);
    assert_eq!(rig.summary().dead_letters.count, 0);

    // The id is that which the event has when Teleport hands it out as it should be.
    assert_eq!(stored.get(&rig.key(&one.1)), Some(&one.0));
    assert_eq!(stored.get(&rig.key(&two.1)), None);
}

#[test]
fn the_state_is_copied_beside_a_daemon_and_put_aside_without_one() {
    let mut rig = Rig::new(
        &format!(
            "start-time = {:?}\ngrace-period = \"5s\"",
            rfc3339(midnight(3))
        ),
        "",
    );
    rig.append((0..50).map(|n| event(n, "fine", midnight(3))));
    let mut running = rig.spawn(&["start"]);
    rig.wait_until_complete();
    let copy = rig.storage().parent().unwrap().join("copy.sqlite");
    let back_up = ["state", "backup", copy.to_str().unwrap()];
    rig.run_to(0, &back_up);
    assert!(
        rig.run_to(1, &back_up)
            .stderr
            .contains("which must not exist")
    );

    let needs_yes = rig.run_to(2, &["state", "reset"]);
    assert!(
        needs_yes.stderr.contains("this needs --yes"),
        "{}",
        needs_yes.stderr
    );
    let held = rig.run_to(1, &["state", "reset", "--yes"]);
    assert!(
        held.stderr.contains("another daemon already works in"),
        "{}",
        held.stderr
    );
    running.terminate();
    assert_eq!(running.wait().code, Some(0));

    let output = rig.run_to(0, &["state", "reset", "--yes"]);
    assert!(
        output.stderr.contains("the next start is a first one"),
        "{}",
        output.stderr
    );
    assert!(rig.try_summary().is_none());
    rig.run_to(1, &["state", "reset", "--yes"]);
    rig.run_to(0, &["start", "--exit-on-last-event"]);
    let counts = rig.daemon().counts;
    assert_eq!((counts.created, counts.already_there), (0, 50));

    // The copy goes on where it was taken.
    rig.run_to(0, &["state", "reset", "--yes"]);
    fs::copy(&copy, rig.storage().join("state.sqlite")).unwrap();
    let output = rig.run_to(0, &["start", "--exit-on-last-event"]);
    assert!(output.stderr.contains("going on where the last run ended"));
    rig.assert_complete();
}
