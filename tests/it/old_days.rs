//! Days that are too old for the lifecycle policy: refused, left out or written, as is asked for, and
//! never in silence.

use chrono::{SecondsFormat, TimeDelta, Utc};
use serde_json::{Value, json};
use teleport_event_indexer::demo::auth::{AuthOptions, Method};
use teleport_event_indexer::demo::elastic::ElasticsearchOptions;

use crate::support::rig::{Rig, backfill, event, midnight, rfc3339};

const SKIP: &str = "--elasticsearch-old-days=skip";
const WRITE: &str = "--elasticsearch-old-days=write";
const START: [&str; 2] = ["start", "--exit-on-last-event"];

/// Five days of events, of which the policy deletes the oldest two and closes the third.
fn rig(export: bool) -> Rig {
    let auth = AuthOptions {
        export,
        ..AuthOptions::default()
    };
    let top = format!("start-time = {:?}", rfc3339(midnight(5)));
    let rig = Rig::with(auth, ElasticsearchOptions::default(), &top, "");
    keep(&rig, "4d", Some("3d"));
    let lifecycle = json!({"name": "keep", "parse_origination_date": "true"});
    let settings = json!({"index": {"lifecycle": lifecycle}});
    let template =
        json!({"index_patterns": ["audit-events-*"], "template": {"settings": settings}});
    rig.put("/_index_template/audit-events", &template);
    rig
}

fn keep(rig: &Rig, deletes: &str, closes: Option<&str>) {
    let mut phases = json!({"delete": {"min_age": deletes, "actions": {"delete": {}}}});
    if let Some(closes) = closes {
        phases["warm"] = json!({"min_age": closes, "actions": {"readonly": {}}});
    }
    rig.put("/_ilm/policy/keep", &json!({"policy": {"phases": phases}}));
}

fn of_day(days_ago: u64) -> Value {
    event(format!("{days_ago} days ago"), "x", midnight(days_ago))
}

fn day(days_ago: u64) -> String {
    midnight(days_ago).format("%F").to_string()
}

fn with<'a>(args: &'a [String], more: &'a str) -> Vec<&'a str> {
    args.iter().map(String::as_str).chain([more]).collect()
}

#[test]
fn a_backfill_by_export_refuses_leaves_out_or_writes() {
    choose(true);
}

#[test]
fn a_backfill_by_search_refuses_leaves_out_or_writes() {
    choose(false);
}

fn choose(export: bool) {
    let mut rig = rig(export);
    rig.append((0..3).map(of_day));
    rig.append_unwanted((3..=5).map(of_day));
    let backfill = backfill(5, 0);

    let refused = rig.run_to(1, &backfill);
    let (first, second, third) = (day(5), day(4), day(3));
    let old = format!(
        "{first} to {second} (2 days), which the lifecycle policy keep deletes (phase delete after \
         4d); {third} (1 day), which the lifecycle policy keep closes to writing (phase warm, \
         readonly after 3d)"
    );
    let said = format!(
        "error: some days are too old: {old}\nhint: install a policy that keeps them, or set \
         old-days to \"skip\" to leave them out, or to \"write\" to write them all the same\n"
    );
    assert!(refused.stderr.ends_with(&said), "{}", refused.stderr);
    assert_eq!(rig.elasticsearch().count(), 0);
    let reads = [Method::ReadChunk, Method::Search];
    assert_eq!(reads.map(|read| rig.auth().n_calls(read)), [0, 0]);

    let skipped = rig.run_to(0, &with(&backfill, SKIP));
    let said = format!("left out, as old-days says: {old}\n");
    assert!(skipped.stderr.contains(&said), "{}", skipped.stderr);
    let left_out =
        format!("left out, too old for the lifecycle policy: {first} to {third} (3 days)");
    let said = format!("{left_out}\ndone: 2 documents created, 0 were there");
    assert!(skipped.stderr.contains(&said), "{}", skipped.stderr);
    // Today is not of this range.
    let run = rig.backfill();
    assert!(run.finished);
    assert_eq!(run.position_ms, midnight(0).timestamp_millis());
    let span = midnight(5).timestamp_millis()..midnight(2).timestamp_millis();
    assert_eq!(run.left_out, [span]);
    let text = rig.run_to(0, &["status"]).stdout;
    assert!(text.contains(&format!("\n  {left_out}\n")), "{text}");
    let json = rig.run_to(0, &["status", "--json"]).stdout;
    let json: Value = serde_json::from_str(&json).expect("it is JSON");
    let time = |days| midnight(days).to_rfc3339_opts(SecondsFormat::Secs, true);
    assert_eq!(
        json["runs"][0]["left_out"],
        json!([{"from": time(5), "to": time(2)}])
    );

    // Finished is finished, but what it left out is said again; a longer retention lets it in.
    let again = rig.run_to(0, &backfill);
    assert!(
        again
            .stderr
            .contains(&format!("{left_out}\nthis range is done"))
    );
    keep(&rig, "4000d", None);
    rig.run_to(0, &with(&backfill, "--again"));
    assert_eq!(rig.backfill().left_out, []);
    assert_eq!(rig.elasticsearch().count(), 5);
}

#[test]
fn a_backfill_writes_old_days_if_it_is_told_to() {
    let mut rig = rig(true);
    rig.append((1..=5).map(of_day));
    let written = rig.run_to(0, &with(&backfill(5, 0), WRITE));
    let said = format!("writing all the same, as old-days says: {}", day(5));
    assert!(written.stderr.contains(&said), "{}", written.stderr);
    rig.assert_complete();
    assert_eq!(rig.backfill().left_out, []);
}

#[test]
fn a_daemon_by_export_refuses_or_leaves_out() {
    start(true);
}

#[test]
fn a_daemon_by_search_refuses_or_leaves_out() {
    start(false);
}

fn start(export: bool) {
    let mut rig = rig(export);
    rig.append((0..3).map(of_day));
    rig.append_unwanted((3..=5).map(of_day));
    let refused = rig.run_to(1, &START);
    let said = format!(
        "error: some days are too old: {} to {} (2 days)",
        day(5),
        day(4)
    );
    assert!(refused.stderr.contains(&said), "{}", refused.stderr);
    assert_eq!(rig.elasticsearch().count(), 0);
    assert_eq!(rig.daemon().position_ms, midnight(5).timestamp_millis());

    rig.run_to(0, &[&START[..], &[SKIP]].concat());
    rig.assert_complete();
    let run = rig.daemon();
    assert!(run.position_ms > midnight(0).timestamp_millis());
    let span = midnight(5).timestamp_millis()..midnight(2).timestamp_millis();
    assert_eq!(run.left_out, [span]);

    // From here on nothing is too old, and the look back stays within what is kept.
    rig.append_unwanted([event("late", "x", midnight(4))]);
    rig.append([event("new", "x", Utc::now())]);
    rig.run_to(0, &START);
    rig.assert_complete();
}

#[test]
fn of_a_recording_what_is_too_old_is_left_out_and_told() {
    let mut rig = rig(false);
    rig.configure(
        &format!("sessions = true\nstart-time = {:?}", rfc3339(midnight(5))),
        "",
    );
    let upload = |session: &str, time| {
        json!({"event": "session.upload", "code": "T2005I",
        "uid": format!("upload {session}"), "time": rfc3339(time), "sid": session})
    };
    let at = |place: usize, time| {
        json!({"event": "session.command", "sid": "long", "ei": place,
        "uid": format!("command {place}"), "time": rfc3339(time)})
    };
    // It began on the day that is closed, and ended on one that is open.
    let recorded = [
        at(0, midnight(3)),
        at(1, midnight(2) - TimeDelta::seconds(1)),
        at(2, midnight(2)),
        at(3, midnight(1)),
    ];
    rig.append([upload("long", midnight(1))]);
    rig.append_unwanted([upload("old", midnight(3))]);
    rig.record("long", &recorded, None, |place, _| place > 1);
    rig.record("old", &[at(9, midnight(3))], None, |_, _| false);
    let output = rig.run_to(0, &[&START[..], &[SKIP]].concat());
    rig.assert_complete();
    let said = "left out, too old for the lifecycle policy: events of a session recording \
                session=\"long\" events=2";
    assert!(output.stderr.contains(said), "{}", output.stderr);
    let own = rig.stored().1;
    assert_eq!(own.len(), 1, "{own:?}");
    assert_eq!(own[0]["event_indexer.session.recording"], "too_old");
    assert_eq!(rig.summary().blocked.count, 0);
}

#[test]
fn a_refill_refuses_or_leaves_out() {
    let mut rig = rig(true);
    rig.append((1..3).map(of_day));
    rig.append_unwanted((3..=5).map(of_day));
    let mut verify = backfill(5, 0);
    verify[0] = "verify".into();
    verify.push("--refill".into());
    let refused = rig.run_to(1, &verify);
    let said = format!("error: some days are too old: {} to {}", day(5), day(4));
    assert!(refused.stderr.contains(&said), "{}", refused.stderr);
    assert_eq!(rig.elasticsearch().count(), 0);

    let refilled = rig.run_to(0, &with(&verify, SKIP));
    let said = format!("left out, as old-days says: {}", day(5));
    assert!(refilled.stderr.contains(&said), "{}", refilled.stderr);
    rig.assert_complete();
    let span = midnight(5).timestamp_millis()..midnight(2).timestamp_millis();
    assert_eq!(rig.backfill().left_out, [span]);
}

#[test]
fn without_a_policy_nothing_is_too_old_and_the_lack_of_it_is_said() {
    let mut rig = rig(true);
    rig.append((1..=5).map(of_day));
    let lifecycle = json!({"name": "gone", "parse_origination_date": "true"});
    let settings = json!({"index": {"lifecycle": lifecycle}});
    let template =
        json!({"index_patterns": ["audit-events-*"], "template": {"settings": settings}});
    rig.put("/_index_template/audit-events", &template);
    let output = rig.run_to(0, &backfill(5, 0));
    let said = "the lifecycle policy gone, which the index template names, is not in Elasticsearch";
    assert!(output.stderr.contains(said), "{}", output.stderr);
    rig.assert_complete();
}
