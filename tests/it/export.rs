//! Reading by the export API: cursors, chunks that vanish, come late or are odd, and servers that
//! have the API one day and not the next.

use chrono::{TimeDelta, Utc};
use serde_json::json;
use teleport_event_indexer::checkpoint::SourceMode;
use teleport_event_indexer::demo::auth::{AuthOptions, Method, Request};
use teleport_event_indexer::demo::elastic::{ElasticsearchOptions, Refusal};
use tonic::Code;

use crate::support::rig::{Rig, backfill, event, midnight, realistic, rfc3339, wait_until_said};
use crate::support::wait_until;

fn rig(chunk_events: usize, top: &str) -> Rig {
    let auth = AuthOptions {
        chunk_events,
        ..AuthOptions::default()
    };
    Rig::with(auth, ElasticsearchOptions::default(), top, "")
}

/// The cursors with which chunks were opened.
fn cursors(rig: &Rig) -> Vec<String> {
    let requests = rig.auth().requests().into_iter();
    let cursors = requests.filter_map(|request| match request {
        Request::ReadChunk { cursor, .. } => Some(cursor),
        _ => None,
    });
    cursors.collect()
}

/// Begins before all events of these tests.
fn start_time() -> String {
    format!("start-time = {:?}", rfc3339(midnight(8)))
}

#[test]
fn a_broken_stream_goes_on_at_its_cursor_and_begins_anew_where_that_is_refused() {
    let mut rig = rig(300, "concurrency = 1");
    rig.append(realistic(1, 300, 3, 2));
    for n_events in [100, 50] {
        rig.auth().break_next_stream(n_events, Code::Unavailable);
    }
    rig.run_to(0, &backfill(3, 2));
    rig.assert_complete();
    assert_eq!(cursors(&rig), ["", "c1:100", "c1:150"]);
    assert_eq!(rig.auth().n_handed_out(Method::ReadChunk), 300);

    rig.append(realistic(2, 300, 5, 4));
    rig.auth().break_next_stream(100, Code::Unavailable);
    rig.auth().fail_next(Method::ReadChunk, 1, Code::Ok);
    rig.auth()
        .fail_next(Method::ReadChunk, 1, Code::InvalidArgument);
    let output = rig.run_to(0, &backfill(5, 4));
    assert!(output.stderr.contains("does not take its own cursor"));
    rig.assert_complete();
    assert_eq!(cursors(&rig)[3..], ["", "c1:100", ""]);
    assert_eq!(rig.auth().n_handed_out(Method::ReadChunk), 700);
}

#[test]
fn a_killed_run_goes_on_at_the_cursor_that_has_settled() {
    let mut rig = rig(300, "concurrency = 1");
    rig.append(realistic(3, 100, 3, 2));
    // Of the same chunk, since a chunk holds what comes in one go.
    let held = (0..50).map(|n| event(n, "held", midnight(5)));
    rig.append(realistic(4, 100, 5, 4).chain(held));
    rig.elasticsearch().add_rule(|operation| {
        operation
            .contains("\"held\"")
            .then(|| Refusal::write_block(operation.index))
    });
    rig.auth().break_next_stream(100, Code::Unavailable);
    let mut running = rig.spawn(&backfill(5, 4));
    wait_until("the first hundred are committed", || {
        match rig.try_backfill().map(|run| run.counts.created) {
            Some(100) => Ok(()),
            created => Err(format!("{created:?}")),
        }
    });
    wait_until_said(&running, "blocked");
    running.kill();
    rig.assert_nothing_was_passed();
    rig.elasticsearch().clear_rules();
    rig.run_to(0, &backfill(5, 4));
    assert_eq!(cursors(&rig), ["", "c1:100", "c1:100"]);
    rig.run_to(0, &backfill(3, 2));
    rig.assert_complete();
}

#[test]
fn a_chunk_that_vanished_becomes_a_gap_and_the_rest_is_read() {
    let mut rig = rig(20, "concurrency = 1");
    rig.append(realistic(5, 40, 3, 2));
    rig.auth().fail_next(Method::ReadChunk, 1, Code::NotFound);
    let output = rig.run_to(1, &backfill(3, 2));
    assert!(output.stderr.contains("a listed chunk is gone"));
    // What it says of the gap is a document too.
    let done = "done: 21 documents created, 0 were there already, 0 dead letters, 1 gaps";
    assert!(output.stderr.contains(done), "{}", output.stderr);
    let (stored, own) = rig.stored();
    assert_eq!(stored.len(), 20);
    let [gap] = &own[..] else {
        panic!("{own:?}");
    };
    assert_eq!(gap["event_indexer.gap.reason"], "chunk_vanished");
    assert_eq!(gap["time"], midnight(3).to_rfc3339());
    assert_eq!(gap["event_indexer.gap.to"], midnight(2).to_rfc3339());
    let summary = rig.summary();
    assert_eq!((summary.gaps, summary.runs[0].finished), (1, true));
    let found = &summary.newest_gaps[0].gap;
    assert!(found.chunk.is_some());
    assert_eq!(gap["event_indexer.gap.detail"], json!(found.detail));

    // Another look at the same finds the chunk there, and says so of the gap.
    let mut again = backfill(3, 2);
    again.push("--again".into());
    rig.run_to(0, &again);
    let (stored, own) = rig.stored();
    assert_eq!((stored.len(), own.len()), (40, 2));
    let closed = |gap: &&serde_json::Value| gap.get("event_indexer.gap.closed").is_some();
    assert_eq!(own.iter().filter(closed).count(), 1);
    let summary = rig.summary();
    assert_eq!((summary.gaps, summary.closed_gaps), (0, 1));
    let status = rig.run_to(0, &["status"]);
    assert!(status.stdout.contains("gaps           0 open, 1 closed"));
}

#[test]
fn late_chunks_are_found_behind_the_position() {
    let mut rig = rig(50, &start_time());
    rig.append(realistic(6, 200, 8, 0));
    let mut daemon = rig.spawn(&["start"]);
    rig.wait_until_complete();
    let now = Utc::now() - TimeDelta::seconds(1);
    rig.append([
        event("yesterday", "late", midnight(1) + TimeDelta::minutes(1)),
        event("now", "prompt", now),
    ]);
    rig.wait_until_complete();
    wait_until("the position is past the newest event", || {
        match rig.daemon().position_ms {
            passed if passed > now.timestamp_millis() => Ok(()),
            position_ms => Err(position_ms),
        }
    });
    daemon.terminate();
    assert_eq!(daemon.wait().code, Some(0));
    let handed_out = rig.auth().n_handed_out(Method::ReadChunk);
    assert_eq!(handed_out, rig.n_events() as u64);

    // Older days are listed every ten minutes, and at each start.
    rig.append([event("five days ago", "late", midnight(5))]);
    rig.run_to(0, &["start", "--exit-on-last-event"]);
    rig.assert_complete();
    rig.assert_nothing_was_passed();
    assert_eq!(rig.auth().n_handed_out(Method::ReadChunk), handed_out + 1);
}

#[test]
fn single_events_empty_days_bounds_and_filters() {
    // Every tenth day of forty has a few chunks of one event; the position moves all the same.
    let mut rig = rig(1, "skip-event-types = [\"unwanted\"]");
    let noon = |days_ago| midnight(days_ago) + TimeDelta::hours(12);
    let (from, to) = (noon(40), noon(10));
    rig.append([
        event("first", "x", from),
        event("middle", "x", noon(30)),
        event("later", "x", noon(20)),
        event("last", "x", to - TimeDelta::milliseconds(1)),
    ]);
    rig.append_unwanted([
        event("before", "x", from - TimeDelta::milliseconds(1)),
        event("filtered", "unwanted", noon(30)),
        event("at the end", "x", to),
        event("after", "x", to + TimeDelta::hours(1)),
    ]);
    let args = ["backfill", "--from", &rfc3339(from), "--to", &rfc3339(to)];
    rig.run_to(0, &args);
    rig.assert_complete();
    let run = rig.backfill();
    assert_eq!(
        (run.finished, run.position_ms),
        (true, to.timestamp_millis())
    );
    assert_eq!((run.counts.events, run.counts.filtered), (8, 4));

    // Nothing but what is not wanted.
    let args = [&args[..], &["--types", "nothing"]].concat();
    rig.run_to(0, &args);
    let run = rig.backfill();
    assert_eq!(
        (run.finished, run.position_ms),
        (true, to.timestamp_millis())
    );
    assert_eq!((run.counts.events, run.counts.filtered), (8, 8));
}

#[test]
fn a_server_may_lose_the_export_in_mid_run_and_have_it_again() {
    let mut rig = rig(20, &start_time());
    rig.append(realistic(7, 300, 7, 0));
    rig.append([event("newest", "x", Utc::now() - TimeDelta::seconds(2))]);
    rig.auth().fail_next(Method::ReadChunk, 4, Code::Ok);
    rig.auth()
        .fail_next(Method::ReadChunk, 1, Code::Unimplemented);
    // As the fifth chunk is opened; from then on it is gone for good.
    let switched = rig.auth().clone();
    let mut daemon = rig.spawn(&["start"]);
    wait_until("the fifth chunk was asked for", || {
        match switched.n_calls(Method::ReadChunk) {
            calls if calls >= 5 => Ok(()),
            calls => Err(calls),
        }
    });
    switched.set_export(false);
    rig.wait_until_complete();
    wait_until("it reads by search", || match rig.daemon().mode {
        Some(SourceMode::Search) => Ok(()),
        mode => Err(format!("{mode:?}")),
    });
    rig.append([event("by search", "x", Utc::now())]);
    rig.wait_until_complete();
    daemon.terminate();
    assert_eq!(daemon.wait().code, Some(0));
    rig.assert_nothing_was_passed();

    rig.auth().set_export(true);
    rig.append([event("by export", "x", Utc::now())]);
    rig.run_to(0, &["start", "--exit-on-last-event"]);
    rig.assert_complete();
    rig.assert_nothing_was_passed();
    assert_eq!(rig.daemon().mode, Some(SourceMode::Export));
}

#[test]
fn a_late_chunk_that_was_not_read_when_the_export_went_away_is_not_forgotten() {
    let mut rig = rig(20, &start_time());
    rig.append(realistic(8, 60, 7, 0));
    let args = ["start", "--exit-on-last-event"];
    rig.run_to(0, &args);
    rig.append([event("late", "held", midnight(5))]);
    rig.elasticsearch().add_rule(|operation| {
        operation
            .contains("\"held\"")
            .then(|| Refusal::write_block(operation.index))
    });
    let mut running = rig.spawn(&args);
    wait_until_said(&running, "blocked");
    running.kill();
    rig.elasticsearch().clear_rules();
    rig.auth().set_export(false);
    rig.run_to(0, &args);
    rig.assert_complete();
    rig.assert_nothing_was_passed();
}
