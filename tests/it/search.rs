//! Reading by the search API: the borders of windows and pages, keys that servers will not take,
//! and following the end of the log.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use teleport_event_indexer::checkpoint::SourceMode;
use teleport_event_indexer::demo::auth::{AuthOptions, KeyFault, Method, Request};
use teleport_event_indexer::demo::elastic::{ElasticsearchOptions, Refusal};
use tonic::Code;

use crate::support::rig::{Rig, event, midnight, realistic, rfc3339, wait_until_said};
use crate::support::wait_until;

fn rig(whole_seconds: bool, top: &str) -> Rig {
    let auth = AuthOptions {
        export: false,
        whole_seconds,
        ..AuthOptions::default()
    };
    Rig::with(auth, ElasticsearchOptions::default(), top, "")
}

fn range(from: DateTime<Utc>, to: DateTime<Utc>) -> Vec<String> {
    let [from, to] = [from, to].map(rfc3339);
    vec!["backfill".into(), "--from".into(), from, "--to".into(), to]
}

fn noon() -> DateTime<Utc> {
    midnight(3) + TimeDelta::hours(12)
}

/// Events at these milliseconds behind noon.
fn at(millis: impl IntoIterator<Item = i64>) -> Vec<Value> {
    let numbered = millis.into_iter().enumerate();
    numbered
        .map(|(n, ms)| {
            event(
                format!("{n} {ms}"),
                "x",
                noon() + TimeDelta::milliseconds(ms),
            )
        })
        .collect()
}

#[test]
fn borders_of_windows_and_pages_lose_and_repeat_nothing() {
    // At each border of a window of a second: before it, five times on it, behind it.
    let borders = (0..12_000).step_by(1000);
    let near = borders.flat_map(|ms| [ms, ms, ms, ms, ms, ms + 1, ms + 999]);
    let events = at(near);
    let running = [1, 2, 3, 7, 10_000].map(|limit| {
        let top = format!("window-size = \"1s\"\nbatch = {limit}\nconcurrency = 3");
        let mut rig = rig(false, &top);
        rig.append(events.clone());
        rig.append_unwanted(at([-1, -1000, 12_000, 12_000, 12_001, 13_000]));
        let running = rig.spawn(&range(noon(), noon() + TimeDelta::seconds(12)));
        (limit, rig, running)
    });
    for (limit, rig, running) in running {
        let output = running.wait();
        assert_eq!(output.code, Some(0), "{limit}: {}", output.stderr);
        rig.assert_complete();
        let run = rig.backfill();
        assert_eq!(run.counts.created, rig.n_events() as u64, "{limit}");
        assert!(run.finished);
    }
}

#[test]
fn a_key_is_only_a_hint() {
    // Three pages, of which one has more of the same millisecond than it holds; within a second
    // the order is none that we know of.
    let millis = (0..30).map(|n| 900 - 30 * n).chain([5500; 15]);
    let millis = millis.chain((0..5).map(|n| 9900 - 100 * n));
    let events = at(millis);
    let faults = [
        None,
        Some(KeyFault::Refused(Code::InvalidArgument)),
        Some(KeyFault::Refused(Code::Unknown)),
        Some(KeyFault::Ignored),
        Some(KeyFault::Forgotten),
        Some(KeyFault::EmptyPages),
    ];
    let running = faults.map(|fault| {
        let mut rig = rig(true, "batch = 10");
        rig.append(events.clone());
        rig.auth().set_key_fault(fault);
        let running = rig.spawn(&range(noon(), noon() + TimeDelta::minutes(10)));
        (fault, rig, running)
    });
    for (fault, rig, running) in running {
        let output = running.wait();
        assert_eq!(output.code, Some(0), "{fault:?}: {}", output.stderr);
        assert_eq!(rig.stored().0.len(), rig.n_events(), "{fault:?}");
        rig.assert_complete();
        let drops = output.stderr.matches("dropping").count();
        let is_said = !matches!(
            fault,
            None | Some(KeyFault::EmptyPages | KeyFault::Forgotten)
        );
        assert_eq!(drops > 0, is_said, "{fault:?}: {}", output.stderr);
        if fault.is_none() {
            // Besides the pages, the end is looked at from the other side.
            assert_eq!(rig.auth().n_calls(Method::Search), 6, "no key was in doubt");
        }
    }
}

#[test]
fn a_key_refused_once_costs_no_more_than_its_second() {
    let mut rig = rig(false, "batch = 10\nconcurrency = 1");
    rig.append(at((0..40).map(|n| 500 * n)));
    rig.auth().fail_next(Method::Search, 2, Code::Ok);
    rig.auth()
        .fail_next(Method::Search, 1, Code::InvalidArgument);
    let args = range(noon(), noon() + TimeDelta::minutes(1));
    let output = rig.run_to(0, &args);
    assert!(output.stderr.contains("dropping it"), "{}", output.stderr);
    rig.assert_complete();
    let counts = rig.backfill().counts;
    assert_eq!((counts.created, counts.already_there), (40, 2));
}

#[test]
fn windows_that_settle_in_any_order_survive_a_kill() {
    let mut rig = rig(false, "window-size = \"1h\"\nconcurrency = 4");
    rig.append(realistic(1, 240, 4, 3));
    rig.append((0..3).map(|n| event(n, "held", midnight(4) + TimeDelta::hours(2 + 7 * n))));
    hold(&rig);
    let args = range(midnight(4), midnight(3));
    let mut running = rig.spawn(&args);
    wait_until("all others are stored and committed", || {
        match rig.try_backfill().map(|run| run.counts.created) {
            Some(240) => Ok(()),
            created => Err(format!("{created:?}")),
        }
    });
    running.kill();
    let position_ms = rig.backfill().position_ms;
    let first_held_ms = (midnight(4) + TimeDelta::hours(2)).timestamp_millis();
    assert_eq!(position_ms, first_held_ms);
    rig.assert_nothing_was_passed();

    rig.elasticsearch().clear_rules();
    let before = rig.auth().n_calls(Method::Search);
    rig.run_to(0, &args);
    rig.assert_complete();
    // Three of the twenty-four windows had something left: a page each, and one for its end.
    assert_eq!(rig.auth().n_calls(Method::Search) - before, 6);
}

/// Lets nothing of the type `held` in.
fn hold(rig: &Rig) {
    rig.elasticsearch().add_rule(|operation| {
        operation
            .contains("\"held\"")
            .then(|| Refusal::write_block(operation.index))
    });
}

fn following() -> Rig {
    let start = rfc3339(Utc::now() - TimeDelta::hours(8));
    rig(false, &format!("start-time = {start:?}"))
}

#[test]
fn following_finds_what_comes_now_late_and_early() {
    let mut rig = following();
    let ago = |seconds| Utc::now() - TimeDelta::seconds(seconds);
    rig.append((0..50).map(|n| event(format!("old {n}"), "x", ago(25_000 + n))));
    let mut daemon = rig.spawn(&["start"]);
    rig.wait_until_complete();
    wait_until_said(&daemon, "following");
    rig.append([event("now", "x", Utc::now())]);
    rig.wait_until_complete();
    // Behind the position, and ahead of our clock: found once it has come so far.
    rig.append([
        event("late", "x", ago(7)),
        event("early", "x", ago(-2)),
        event("earlier", "x", ago(-3)),
    ]);
    rig.wait_until_complete();
    daemon.terminate();
    assert_eq!(daemon.wait().code, Some(0));
    let passed_ms = rig.daemon().position_ms;

    // Later than each poll looks back to: the looks at a start go back for hours, from where the
    // last run ended.
    rig.append([
        event("minutes late", "x", ago(4 * 60)),
        event("hours late", "x", ago(5 * 3600)),
    ]);
    let mut daemon = rig.spawn(&["start"]);
    rig.wait_until_complete();
    daemon.terminate();
    assert_eq!(daemon.wait().code, Some(0));
    assert!(rig.daemon().position_ms >= passed_ms);
    assert_eq!(rig.daemon().mode, Some(SourceMode::Search));
    rig.assert_nothing_was_passed();
    // From the other side only the one event is looked at that proves an end.
    let in_order = |request| match request {
        Request::Search {
            ascending, limit, ..
        } => ascending || limit == 1,
        _ => true,
    };
    assert!(rig.auth().requests().into_iter().all(in_order));
}

/// Following, a window that holds something blocked does not hold up what comes later. A kill then
/// must not lose it, nor leave the position behind for ever.
#[test]
fn a_window_that_was_overtaken_is_read_after_a_kill() {
    let mut rig = following();
    let mut daemon = rig.spawn(&["start"]);
    wait_until_said(&daemon, "following");
    hold(&rig);
    let held = Utc::now();
    rig.append([event("held", "held", held)]);
    wait_until_said(&daemon, "blocked");
    let later = Utc::now();
    rig.append([event("later", "x", later)]);
    rig.wait_until_stored(1);
    wait_until("what came later is committed", || {
        match rig.daemon().counts.created {
            1 => Ok(()),
            created => Err(created),
        }
    });
    daemon.kill();
    rig.assert_nothing_was_passed();
    assert!(rig.daemon().position_ms <= held.timestamp_millis());

    rig.elasticsearch().clear_rules();
    rig.run_to(0, &["start", "--exit-on-last-event"]);
    rig.assert_complete();
    assert!(rig.daemon().position_ms > later.timestamp_millis());
}
