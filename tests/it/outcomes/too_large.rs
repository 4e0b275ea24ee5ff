//! Documents that are too large for Elasticsearch, or for a proxy before it: halved out of their
//! requests, found by what one searches by, and kept whole until they can be stored.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use teleport_event_indexer::demo::elastic::Refusal;
use tokio::time::Instant;

use super::{Letter, letters};
use crate::support::program::Running;
use crate::support::rig::{
    Rig, backfill, event, line_with, midnight, realistic, rfc3339, wait_until_said,
};
use crate::support::wait_until;

const LARGE: &str = "large.one";
const LARGER: &str = "large.two";

fn large(kind: &str, bytes: usize) -> Value {
    let mut event = event(kind, kind, midnight(3) + TimeDelta::hours(7));
    event["user"] = "alice".into();
    event["success"] = true.into();
    event["message"] = "x".repeat(bytes).into();
    event
}

/// What the safe form of one of these is, without its text.
fn safe_form(event: &Value, error_type: &str, reason: &str) -> Value {
    let mut expected = event.clone();
    let members = expected.as_object_mut().expect("it is an object");
    members.remove("message");
    let reason = format!("{reason}; its text is left out here and kept as a dead letter");
    members.insert("event_indexer.refused.type".into(), error_type.into());
    members.insert("event_indexer.refused.reason".into(), reason.into());
    expected
}

fn assert_in_safe_form(rig: &Rig, events: &[&Value], status: u16) {
    let (stored, _) = rig.stored();
    assert_eq!(stored.len(), rig.n_events());
    let letters = letters(rig);
    assert_eq!(letters.len(), events.len());
    for (event, letter) in events.iter().zip(&letters) {
        let Letter {
            index,
            id,
            error_type,
            reason,
            ..
        } = letter;
        assert_eq!(letter.status, Some(status));
        let document: Value = serde_json::from_slice(&letter.document).expect("it is JSON");
        assert_eq!(document, **event);
        let short = stored.get(&(index.clone(), id.clone()));
        assert_eq!(short, Some(&safe_form(event, error_type, reason)));
    }
}

#[test]
fn what_is_refused_for_its_size_alone_is_found_and_kept_whole() {
    let mut rig = Rig::new("", "");
    rig.append(realistic(2, 300, 3, 2));
    let (one, two) = (large(LARGE, 12_000), large(LARGER, 13_000));
    rig.append([one.clone(), two.clone()]);
    rig.elasticsearch().refuse_larger(Some((12_000, 413)));
    let output = rig.run_to(1, &backfill(3, 2));
    assert_in_safe_form(&rig, &[&one, &two], 413);
    let line = line_with(&output.stderr, "too large for Elasticsearch").expect("it is said");
    assert!(line.contains("request_entity_too_large"), "{line}");
    for letter in letters(&rig) {
        assert!(output.stderr.contains(&letter.id), "{}", output.stderr);
    }
    let counts = rig.backfill().counts;
    assert_eq!((counts.created, counts.dead_letters), (302, 2));

    // Read again, by a run or to fill holes, it is the same.
    let mut again = backfill(3, 2);
    again.push("--again".into());
    rig.run_to(1, &again);
    let (from, to) = (midnight(3), midnight(2));
    let day = |time: DateTime<Utc>| time.format("%Y-%m-%d").to_string();
    let (from, to) = (day(from), day(to));
    let refill = ["verify", "--from", &from, "--to", &to, "--refill"];
    rig.run(&refill);
    let retry = ["dead-letters", "retry"];
    let output = rig.run_to(1, &retry);
    assert!(
        output.stderr.contains("2 refused again"),
        "{}",
        output.stderr
    );
    assert_in_safe_form(&rig, &[&one, &two], 413);

    // With another limit, what is there must go first, as the writer may only create.
    rig.elasticsearch().refuse_larger(None);
    let output = rig.run_to(1, &retry);
    let said = "2 were too large, and are there without their text";
    assert!(output.stderr.contains(said), "{}", output.stderr);
    assert_in_safe_form(&rig, &[&one, &two], 413);
    let keys: Vec<_> = letters(&rig)
        .into_iter()
        .map(|letter| (letter.index, letter.id))
        .collect();
    assert_eq!(rig.elasticsearch().delete(&keys), 2);
    // Refilled as they are, nobody knows that the letters are not needed any more: they stay.
    rig.run(&refill);
    assert_eq!(letters(&rig).len(), 2);
    assert_eq!(rig.elasticsearch().delete(&keys[..1]), 1);
    let output = rig.run_to(1, &retry);
    assert!(output.stderr.contains("1 stored"), "{}", output.stderr);
    rig.run_to(0, &["dead-letters", "drop", "--all", "--yes"]);
    rig.assert_complete();
}

/// Where its safe form with the text is too large, and where no form of it is taken.
#[test]
fn a_document_that_is_refused_for_its_mapping_and_then_for_its_size_is_kept_too() {
    let mut rig = Rig::new("", "batch-documents = 10");
    rig.append((0..20).map(|n| event(n, "fine", midnight(3))));
    // The text of one full of quotes is twice as long within JSON.
    let mut quoted = large(LARGE, 0);
    quoted["message"] = json!([["\"".repeat(5_000)]]);
    let mut hopeless = large(LARGER, 0);
    hopeless["message"] = "x".repeat(13_000).into();
    rig.append([quoted.clone(), hopeless.clone()]);
    rig.elasticsearch().refuse_larger(Some((12_000, 413)));
    rig.elasticsearch().add_rule(|operation| {
        let is_safe_form = operation.contains("event_indexer.refused");
        let is_refused = operation.contains(LARGE) && !is_safe_form || operation.contains(LARGER);
        is_refused.then(Refusal::mapping_failure)
    });
    let output = rig.run_to(1, &backfill(3, 2));
    let said = "refused in safe form without its text, too";
    assert!(output.stderr.contains(said), "{}", output.stderr);
    let (stored, _) = rig.stored();
    assert_eq!(stored.len(), 21);
    let letters = letters(&rig);
    let [one, two] = &letters[..] else {
        panic!("{letters:?}");
    };
    assert_eq!((one.status, two.status), (Some(413), Some(413)));
    assert!(
        one.reason
            .contains("in safe form: request_entity_too_large")
    );
    for (letter, event) in [(one, &quoted), (two, &hopeless)] {
        let document: Value = serde_json::from_slice(&letter.document).expect("it is JSON");
        assert_eq!(document, *event);
    }
    let short = stored.get(&(one.index.clone(), one.id.clone()));
    let Refusal { error_type, .. } = Refusal::mapping_failure();
    assert_eq!(short, Some(&safe_form(&quoted, &error_type, &one.reason)));
}

/// As `indexing_pressure.memory.limit` does: by a status that means, of smaller ones, to try again.
#[test]
fn what_is_refused_for_ever_as_if_it_were_for_a_moment_is_told_of_by_name() {
    let mut rig = Rig::new("", "batch-bytes = \"4MiB\"");
    rig.append(realistic(4, 200, 3, 2));
    // Too large together, but not alone.
    rig.append((0..9).map(|n| {
        let mut event = large("fitting", 300_000);
        event["uid"] = n.into();
        event["time"] = rfc3339(midnight(3)).into();
        event
    }));
    let one = large(LARGE, 2_000_000);
    rig.append([one.clone()]);
    rig.elasticsearch().refuse_larger(Some((1_500_000, 429)));
    let running = rig.spawn(&backfill(3, 2));
    // It takes more than a minute until it is taken for what it is. Whether a warning comes before is a
    // matter of when the last line was.
    wait_a_minute(&running);
    wait_until_said(&running, "too large for Elasticsearch");
    let output = running.wait();
    assert_eq!(output.code, Some(1), "{}", output.stderr);
    assert_in_safe_form(&rig, &[&one], 429);
    let line = line_with(&output.stderr, "too large for Elasticsearch").expect("it is said");
    assert!(line.contains(LARGE) && line.contains("es_rejected_execution_exception"));
    assert_eq!(rig.backfill().counts.dead_letters, 1);
}

/// From the first failure on. Before that nothing more is said, and the last pause may be half a
/// minute more.
fn wait_a_minute(running: &Running) {
    wait_until_said(running, "INFO bulk request failed, trying again: ");
    let begun = Instant::now();
    wait_until("a minute has passed", || {
        let left = Duration::from_secs(60).saturating_sub(begun.elapsed());
        left.is_zero().then_some(()).ok_or(left.as_secs())
    });
}

/// One that nobody would take for too large: it is tried for as long as it takes, by name.
#[test]
fn what_is_refused_alone_for_long_is_named() {
    let mut rig = Rig::new("", "");
    rig.append([large(LARGE, 900_000)]);
    rig.elasticsearch().refuse_larger(Some((700_000, 429)));
    let running = rig.spawn(&backfill(3, 2));
    wait_a_minute(&running);
    let line = wait_until_said(&running, "WARN bulk request failed, trying again: ");
    rig.elasticsearch().refuse_larger(None);
    let output = running.wait();
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    rig.assert_complete();
    let (stored, _) = rig.stored();
    let ((index, id), _) = stored.first_key_value().expect("it is there");
    let named = format!("documents=1 id={id} index=\"{index}\" bytes=900");
    assert!(line.contains(&named), "{line}");
}

/// What is said of a document whose connection a proxy has cut for a minute.
fn said_when_cut_off(meanwhile: impl FnOnce(&mut Rig)) -> String {
    let top = format!("start-time = {:?}", rfc3339(midnight(1)));
    let mut rig = Rig::new(&top, "");
    let mut stuck = large(LARGE, 900_000);
    stuck["time"] = rfc3339(Utc::now()).into();
    rig.append([stuck]);
    rig.elasticsearch().cut_larger(Some(700_000));
    let mut running = rig.spawn(&["start"]);
    wait_until_said(&running, "INFO bulk request failed, trying again: ");
    meanwhile(&mut rig);
    wait_a_minute(&running);
    let line = wait_until_said(&running, "WARN bulk request failed, trying again: ");
    rig.elasticsearch().cut_larger(None);
    wait_until("all are there", || match rig.stored().0.len() {
        all if all == rig.n_events() => Ok(()),
        some => Err(some),
    });
    running.terminate();
    assert_eq!(running.wait().code, Some(0));
    rig.assert_complete();
    line
}

#[test]
fn what_is_cut_off_alone_for_long_is_named_if_others_are_answered() {
    let line = said_when_cut_off(|rig| {
        rig.append([event("small", "small.one", Utc::now())]);
        wait_until("the other one is there", || match rig.stored().0.len() {
            0 => Err(0),
            _ => Ok(()),
        });
    });
    let named = line.contains("documents=1 id=") && line.contains(" bytes=900");
    assert!(named, "{line}");
}

#[test]
fn what_is_cut_off_as_all_others_would_be_is_not_named() {
    let line = said_when_cut_off(|_| {});
    assert!(line.contains("documents=1 failures="), "{line}");
}
