//! `start --rewind-to` and `--forward-to`: reading goes on elsewhere, and what that means is told first.

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde_json::{Value, json};
use teleport_event_indexer::checkpoint::Checkpoint;
use teleport_event_indexer::demo::auth::AuthOptions;
use teleport_event_indexer::demo::elastic::ElasticsearchOptions;

use crate::support::rig::{CLUSTER, Rig, event, midnight};

const START: [&str; 2] = ["start", "--exit-on-last-event"];

fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn rig(export: bool) -> Rig {
    let auth = AuthOptions {
        export,
        ..AuthOptions::default()
    };
    let top = format!("start-time = {:?}", rfc3339(midnight(6)));
    Rig::with(auth, ElasticsearchOptions::default(), &top, "")
}

fn last_line(rig: &Rig, code: i32, args: &[&str]) -> String {
    let output = rig.run_to(code, args);
    output.stderr.lines().last().unwrap_or_default().to_owned()
}

#[test]
fn skipped_and_read_again_by_either_api() {
    for export in [true, false] {
        skip_and_read_again(export);
    }
}

fn skip_and_read_again(export: bool) {
    let mut rig = rig(export);
    let noon = midnight(2) + TimeDelta::hours(12);
    let of_day = |day| {
        event(
            format!("of day {day}"),
            "x",
            midnight(day) + TimeDelta::hours(1),
        )
    };
    let skipped = [of_day(4), of_day(3), of_day(2)];
    rig.append_unwanted([of_day(5)]);
    rig.append_unwanted(skipped.clone());
    rig.append([event("behind noon", "x", noon), of_day(1)]);
    {
        // As if it had been stopped six days ago.
        let checkpoint = Checkpoint::open(&rig.storage()).expect("the folder can be made");
        let run = checkpoint.daemon_run(CLUSTER, || midnight(6).timestamp_millis());
        run.expect("there is none yet");
    }
    let (begin, target) = (rfc3339(midnight(6)), rfc3339(noon));
    let (first, last) = (midnight(6).format("%F"), noon.format("%F"));
    let meaning = format!(
        "reading goes on at {target}: events from {begin} up to then are skipped, {first} to {last} \
         (5 days), and `start` will never read them; `teleport-event-indexer backfill --from {begin} \
         --to {target}` does"
    );
    let forward = [&START[..], &["--forward-to", &target]].concat();
    assert_eq!(
        last_line(&rig, 2, &forward),
        format!("error: --forward-to: {meaning}. Nothing is changed yet: add --yes to do so")
    );
    assert_eq!(rig.daemon().position_ms, midnight(6).timestamp_millis());
    let output = rig.run_to(0, &[&forward[..], &["--yes"]].concat());
    assert!(output.stderr.contains(&meaning), "{}", output.stderr);
    rig.assert_complete();
    let span = midnight(6).timestamp_millis()..noon.timestamp_millis();
    assert_eq!(
        (rig.daemon().skipped, rig.daemon().left_out),
        (vec![span], vec![])
    );
    let text = rig.run_to(0, &["status"]).stdout;
    let line = format!("\n  skipped by start --forward-to: {begin} to {target}\n");
    assert!(text.contains(&line), "{text}");
    let json = rig.run_to(0, &["status", "--json"]).stdout;
    let json: Value = serde_json::from_str(&json).expect("it is JSON");
    assert_eq!(
        json["runs"][0]["skipped"],
        json!([{"from": begin, "to": target}])
    );
    // The start-time that is configured still fits, and none of it is read later on.
    rig.run_to(0, &START);
    rig.assert_complete();

    // Back over what was skipped, but for its oldest day: that is wanted now.
    rig.append(skipped);
    let target = rfc3339(midnight(4));
    let rewind = [&START[..], &["--rewind-to", &target]].concat();
    let told = last_line(&rig, 2, &rewind);
    let parts = [
        format!(
            "error: --rewind-to: reading goes back from {}",
            Utc::now().format("%F")
        ),
        format!(
            " to {target}: {} to {} (5 days) are read again, session recordings too. Documents that \
             are in Elasticsearch are recognised and not written twice; those that somebody has \
             deleted there come back. Nothing is changed yet: add --yes to do so",
            midnight(4).format("%F"),
            Utc::now().format("%F")
        ),
    ];
    assert!(
        told.starts_with(&parts[0]) && told.ends_with(&parts[1]),
        "{told}"
    );
    let before = rig.daemon().counts;
    rig.run_to(0, &[&rewind[..], &["--yes"]].concat());
    rig.assert_complete();
    let counts = rig.daemon().counts;
    assert_eq!(counts.created - before.created, 3);
    assert!(counts.already_there >= before.already_there + 2);
    let span = midnight(6).timestamp_millis()..midnight(4).timestamp_millis();
    assert_eq!(rig.daemon().skipped, [span]);
    rig.run_to(0, &START);
    rig.assert_complete();
}

#[test]
fn orders_that_make_no_sense() {
    let rig = rig(false);
    let [old, older, to_come] = [1, 2, -1].map(|days| rfc3339(Utc::now() - TimeDelta::days(days)));
    for flag in ["--rewind-to", "--forward-to"] {
        assert_eq!(
            last_line(&rig, 2, &["start", flag, &old, "--yes"]),
            format!(
                "error: {flag}: nothing has been read yet; the first start begins at start-time"
            )
        );
    }
    {
        let checkpoint = Checkpoint::open(&rig.storage()).expect("the folder can be made");
        let position_ms = midnight(1).timestamp_millis();
        checkpoint
            .daemon_run(CLUSTER, || position_ms)
            .expect("there is none yet");
    }
    let position = rfc3339(midnight(1));
    for (order, problem) in [
        (
            ["--rewind-to", &position],
            format!("{position} is not before the position, {position}; --forward-to skips"),
        ),
        (
            ["--forward-to", &older],
            format!("{older} is not behind the position, {position}; --rewind-to goes back"),
        ),
        (
            ["--forward-to", &to_come],
            format!("{to_come} lies in the future"),
        ),
    ] {
        let args = [&["start", "--yes"][..], &order].concat();
        let expected = format!("error: {}: {problem}", order[0]);
        assert_eq!(last_line(&rig, 2, &args), expected);
    }
    // Days that may not be written are found before anything is moved.
    rig.put(
        "/_ilm/policy/keep",
        &json!({"policy": {"phases": {"delete": {"min_age": "2d", "actions": {"delete": {}}}}}}),
    );
    let lifecycle = json!({"name": "keep", "parse_origination_date": "true"});
    let settings = json!({"index": {"lifecycle": lifecycle}});
    let template =
        json!({"index_patterns": ["audit-events-*"], "template": {"settings": settings}});
    rig.put("/_index_template/audit-events", &template);
    let ancient = rfc3339(midnight(9));
    let refused = rig.run_to(1, &["start", "--rewind-to", &ancient, "--yes"]);
    assert!(
        refused.stderr.contains("some days are too old"),
        "{}",
        refused.stderr
    );
    assert_eq!(rig.daemon().position_ms, midnight(1).timestamp_millis());
}
