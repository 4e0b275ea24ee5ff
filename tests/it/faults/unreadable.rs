//! Events that a server cannot hand out: stepped over one by one, told of, and fetched when they
//! can be read.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use teleport_event_indexer::checkpoint::Gap;
use teleport_event_indexer::demo::auth::{AuthOptions, Method, Unreadable, Unsteady};
use teleport_event_indexer::demo::elastic::ElasticsearchOptions;
use tonic::Code;

use crate::support::rig::{Rig, backfill, event, midnight, wait_until_said};
use crate::support::wait_until;

/// Larger bodies cannot be sent.
const MOST_BYTES: usize = 20_000;

/// A small event, and one that cannot be sent.
const SMALL: &str = "small";
const LARGE: &str = "large";

fn rig(export: bool, whole_seconds: bool, top: &str) -> Rig {
    let auth = AuthOptions {
        export,
        whole_seconds,
        ..AuthOptions::default()
    };
    Rig::with(auth, ElasticsearchOptions::default(), top, "")
}

fn at(kind: &str, time: DateTime<Utc>, place: usize) -> Value {
    let mut event = event(format!("{kind} {time} {place}"), kind, time);
    if kind == LARGE {
        event["command"] = "x".repeat(2 * MOST_BYTES).into();
    }
    event
}

/// Days of events: what each is about, and its events by milliseconds behind 10:00.
const DAYS: &[(&str, &[(&str, i64)])] = &[
    ("the first of the log", &[(LARGE, 7), (SMALL, 60_000)]),
    (
        "in the middle",
        &[(SMALL, 0), (LARGE, 3_600_123), (SMALL, 7_200_000)],
    ),
    (
        "two in a row",
        &[
            (SMALL, 0),
            (LARGE, 5_001),
            (LARGE, 9_999_002),
            (SMALL, 10_000_000),
        ],
    ),
    (
        "two with one between",
        &[(SMALL, 0), (LARGE, 5_001), (SMALL, 6_000), (LARGE, 7_777)],
    ),
    (
        "of a day's first millisecond",
        &[(LARGE, -36_000_000), (SMALL, 5)],
    ),
    ("alone in its day", &[(LARGE, 1_000)]),
    ("nothing", &[]),
    (
        "of one millisecond with others",
        &[
            (SMALL, 500),
            (SMALL, 777),
            (LARGE, 777),
            (SMALL, 777),
            (SMALL, 778),
        ],
    ),
    (
        "of one second with others",
        &[
            (SMALL, 100),
            (LARGE, 300),
            (SMALL, 400),
            (LARGE, 500),
            (SMALL, 600),
            (SMALL, 1_700),
        ],
    ),
    (
        "the last of the log",
        // What was read before it seemed to lie ahead, again and again.
        &[
            (SMALL, 0),
            (SMALL, 0),
            (SMALL, 86_399_000 - 36_000_000),
            (LARGE, 86_399_000 - 36_000_000),
        ],
    ),
];

#[test]
fn a_search_steps_over_each_event_that_cannot_be_sent_and_over_no_other() {
    let refused = |code| Unreadable::Refused(code);
    let rows = [
        ("hidden", Unreadable::Hidden, false, ""),
        (
            "hidden, short windows",
            Unreadable::Hidden,
            false,
            "window-size = \"1h\"",
        ),
        (
            "hidden, small pages",
            Unreadable::Hidden,
            false,
            "batch = 2",
        ),
        ("hidden, whole seconds", Unreadable::Hidden, true, ""),
        ("too large", refused(Code::ResourceExhausted), false, ""),
        ("internal", refused(Code::Internal), false, "batch = 3"),
        ("unknown, whole seconds", refused(Code::Unknown), true, ""),
        (
            "unavailable",
            refused(Code::Unavailable),
            false,
            "window-size = \"6h\"",
        ),
    ];
    let days = DAYS.len() as u64;
    let range = backfill(days, 0);
    let running = rows.map(|(name, how, whole_seconds, top)| {
        let mut rig = rig(false, whole_seconds, top);
        for (day, (_, events)) in (0..).zip(DAYS) {
            let ten = midnight(days - day) + TimeDelta::hours(10);
            let events = (0..).zip(*events);
            rig.append(
                events
                    .map(|(place, (kind, ms))| at(kind, ten + TimeDelta::milliseconds(*ms), place)),
            );
        }
        rig.auth().set_unreadable(Some((MOST_BYTES, how)));
        (name, whole_seconds, rig.spawn(&range), rig)
    });
    let large = DAYS.iter().flat_map(|(_, events)| *events);
    let large = large.filter(|(kind, _)| *kind == LARGE).count();
    for (name, whole_seconds, running, rig) in running {
        let output = running.wait();
        assert_eq!(output.code, Some(1), "{name}: {}", output.stderr);
        let mut missing = rig.assert_complete_but_for_gaps();
        missing.sort_unstable();
        // What lies between two in one second can be read from neither side, by whole seconds.
        let between = if whole_seconds { &[SMALL][..] } else { &[] };
        let mut expected = vec![LARGE; large];
        expected.extend(between);
        expected.sort_unstable();
        assert_eq!(missing, expected, "{name}: {}", output.stderr);
        // Each is told of by the smallest unit of time there is; only two in a row, between which
        // nothing can be seen, may be in one gap.
        let gaps = rig.open_gaps();
        let unit_ms = if whole_seconds { 1000 } else { 1 };
        let is_row = |gap: &&Gap| gap.to_ms - gap.from_ms > unit_ms;
        let rows = gaps.iter().filter(is_row).count();
        assert!(rows <= 2, "{name}: {gaps:#?}");
        assert!(gaps.iter().all(|gap| gap.reason == "event_unreadable"));
        let (_, own) = rig.stored();
        assert_eq!(own.len(), gaps.len(), "{name}: {own:?}");

        // The server is mended: all of it arrives, and each gap is closed by a second document.
        rig.auth().set_unreadable(None);
        let mut again = range.clone();
        again.push("--again".into());
        let output = rig.run_to(0, &again);
        rig.assert_complete();
        let summary = rig.summary();
        let counts = (summary.gaps, summary.closed_gaps);
        assert_eq!(counts, (0, gaps.len() as u64), "{name}: {}", output.stderr);
        let (_, own) = rig.stored();
        let closed = own
            .iter()
            .filter(|gap| gap.get("event_indexer.gap.closed").is_some());
        assert_eq!(
            (own.len(), closed.count()),
            (2 * gaps.len(), gaps.len()),
            "{name}"
        );
        rig.run_to(0, &range);
    }
}

/// Neither a rate limit nor a server that answers nobody is an event that cannot be sent.
#[test]
fn a_server_that_fails_at_random_or_for_a_while_makes_no_gap() {
    for (name, code) in [
        ("exhausted", Code::ResourceExhausted),
        ("internal", Code::Internal),
    ] {
        let mut rig = rig(false, false, "window-size = \"6h\"");
        rig.append((0..40).map(|n| at(SMALL, midnight(3) + TimeDelta::minutes(30 * n), 0)));
        // Seven in a row, and then in an order that seems to depend on what is asked for.
        rig.auth().fail_next(Method::Search, 7, code);
        for n_good in [1, 1, 2, 1, 3, 1, 1, 2, 1, 1] {
            rig.auth().fail_next(Method::Search, n_good, Code::Ok);
            rig.auth().fail_next(Method::Search, 1, code);
        }
        let output = rig.run_to(0, &backfill(3, 2));
        rig.assert_complete();
        assert!(output.stderr.contains("reading failed"), "{name}");
        assert_eq!(rig.summary().gaps, 0, "{name}");
        let slowed = output.stderr.contains("halving their rate");
        assert_eq!(slowed, code == Code::ResourceExhausted, "{}", output.stderr);
    }
}

/// One that fails, or shows nothing where something is, every few requests, in no order.
#[test]
fn an_unsteady_server_makes_no_gap_and_none_is_left_out() {
    let fails = Unsteady::Fails(Code::Internal);
    let running = [
        (1, 4, fails, None),
        (2, 4, Unsteady::Empty, None),
        (3, 3, Unsteady::Empty, None),
        (4, 30, fails, Some(Unreadable::Refused(Code::Internal))),
        (5, 30, Unsteady::Empty, Some(Unreadable::Hidden)),
    ]
    .map(|(seed, one_in, fault, unreadable)| {
        let mut rig = rig(false, false, "window-size = \"1h\"\nbatch = 100");
        let has_large = unreadable.is_some();
        rig.append((0..400).map(|n| {
            let is_large = has_large && [0, 77, 200, 399].contains(&n);
            let kind = if is_large { LARGE } else { SMALL };
            at(kind, midnight(2) + TimeDelta::minutes(7 * n), 0)
        }));
        let unreadable = unreadable.map(|how| (MOST_BYTES, how));
        rig.auth().set_unreadable(unreadable);
        rig.auth().set_unsteady(Some((seed, one_in, fault)));
        let missing = if has_large { 4 } else { 0 };
        (seed, missing, rig.spawn(&backfill(2, 0)), rig)
    });
    for (seed, missing, running, rig) in running {
        let output = running.wait();
        let code = i32::from(missing > 0);
        assert_eq!(output.code, Some(code), "{seed}: {}", output.stderr);
        assert_eq!(rig.assert_complete_but_for_gaps(), vec![LARGE; missing]);
        let summary = rig.summary();
        let gaps = (summary.gaps, summary.closed_gaps);
        assert_eq!(gaps, (missing as u64, 0), "{seed}: {}", output.stderr);
    }
}

/// Found while following, before what lies behind it is taken for read; and fetched by a look back
/// once it can be read.
#[test]
fn following_steps_over_what_cannot_be_sent() {
    for (how, export) in [
        (Unreadable::Hidden, false),
        (Unreadable::Refused(Code::Internal), false),
    ] {
        let ago = |seconds| Utc::now() - TimeDelta::seconds(seconds);
        let mut rig = rig(export, false, "start-time = \"2020-01-01T00:00:00Z\"");
        rig.append([at(SMALL, ago(3600), 0)]);
        rig.auth().set_unreadable(Some((MOST_BYTES, how)));
        let mut daemon = rig.spawn(&["start"]);
        wait_until_said(&daemon, "following");
        rig.append([
            at(SMALL, ago(3), 0),
            at(LARGE, ago(2), 0),
            at(SMALL, ago(1), 0),
        ]);
        wait_until("all others are there", || {
            let (stored, own) = rig.stored();
            if (stored.len(), own.len()) == (3, 1) {
                Ok(())
            } else {
                Err(format!("{stored:?} {own:?} {}", daemon.stderr()))
            }
        });
        assert_eq!(rig.assert_complete_but_for_gaps(), [LARGE]);
        daemon.terminate();
        assert_eq!(daemon.wait().code, Some(0));

        rig.auth().set_unreadable(None);
        let mut daemon = rig.spawn(&["start"]);
        rig.wait_until_stored(5);
        wait_until("the gap is closed", || {
            let summary = rig.summary();
            match (summary.gaps, summary.closed_gaps) {
                (0, 1) => Ok(()),
                other => Err(format!("{other:?} {}", daemon.stderr())),
            }
        });
        rig.assert_complete();
        daemon.terminate();
        assert_eq!(daemon.wait().code, Some(0));
    }
}

/// No chunk has a way past such an event, so it is held, and the others are not.
#[test]
fn a_chunk_that_cannot_be_read_further_is_held_and_told_of() {
    let mut rig = rig(true, false, "concurrency = 1");
    let time = |seconds| midnight(2) + TimeDelta::seconds(seconds);
    rig.append([
        at(SMALL, time(1), 0),
        at(LARGE, time(2), 0),
        at(SMALL, time(3), 0),
    ]);
    rig.append([at(SMALL, time(4), 0)]);
    rig.append([at(SMALL, midnight(1), 0)]);
    let how = Unreadable::Refused(Code::ResourceExhausted);
    rig.auth().set_unreadable(Some((MOST_BYTES, how)));
    let range = backfill(3, 0);
    let mut running = rig.spawn(&range);
    wait_until_said(&running, "nothing is lost, holding");
    // Two of the others, what comes before it in its chunk, and what is told of it.
    rig.wait_until_stored(4);
    assert_eq!(rig.assert_complete_but_for_gaps(), [LARGE, SMALL]);
    rig.assert_nothing_was_passed();
    assert!(rig.backfill().position_ms <= midnight(2).timestamp_millis());
    assert!(running.is_running());
    running.kill();

    rig.auth().set_unreadable(None);
    rig.run_to(0, &range);
    rig.assert_complete();
    let summary = rig.summary();
    assert_eq!((summary.gaps, summary.closed_gaps), (0, 1));
    let (_, own) = rig.stored();
    let reasons: Vec<_> = own
        .iter()
        .map(|gap| &gap["event_indexer.gap.reason"])
        .collect();
    assert_eq!(
        reasons,
        [&json!("chunk_unreadable"), &json!("chunk_unreadable")]
    );
}

/// Also where it comes first after a quiet time, so that a poll sees nothing: neither what follows
/// waits for a look back, nor is the position ever past what was not told of. But by types, and
/// directly behind another one, it shows only once something comes behind it.
#[test]
fn a_poll_that_sees_nothing_passes_nothing() {
    let ago = |seconds| Utc::now() - TimeDelta::seconds(seconds);
    let by_types = "types = [\"small\", \"large\"]";
    let mut running = [
        (Unreadable::Hidden, false, ""),
        (Unreadable::Hidden, true, ""),
        (Unreadable::Refused(Code::Internal), false, ""),
        (Unreadable::Hidden, false, by_types),
    ]
    .map(|(how, whole_seconds, types)| {
        let top = format!("start-time = \"2020-01-01T00:00:00Z\"\n{types}");
        let mut rig = rig(false, whole_seconds, &top);
        rig.append([at(SMALL, ago(3600), 0)]);
        rig.auth().set_unreadable(Some((MOST_BYTES, how)));
        let daemon = rig.spawn(&["start"]);
        wait_until_said(&daemon, "following");
        (
            format!("{how:?} {whole_seconds} {types}"),
            types,
            daemon,
            rig,
        )
    });
    for round in 1..=3 {
        for (_, types, _, rig) in &mut running {
            // Of a moment to come: what comes late may have been passed.
            let mut events = vec![at(LARGE, ago(-2), round), at(SMALL, ago(-3), round)];
            if round == 2 && types.is_empty() {
                events.pop();
            }
            rig.append(events);
        }
        for (name, types, daemon, rig) in &running {
            wait_until("the rest is there, and what is missing is told", || {
                if round < 3 && types.is_empty() {
                    rig.assert_nothing_was_passed();
                }
                let (stored, own) = rig.stored();
                match rig.n_events() - stored.len() == round && own.len() == round {
                    true => Ok(()),
                    false => Err(format!("{name} {round}: {own:#?} {}", daemon.stderr())),
                }
            });
            assert_eq!(rig.assert_complete_but_for_gaps(), vec![LARGE; round]);
        }
        // Past the short look back of polls, it is as quiet as at first.
        let quiet_ms = (Utc::now() + TimeDelta::seconds(14)).timestamp_millis();
        for (name, _, _, rig) in &running {
            wait_until(&format!("it is quiet: {name}"), || {
                match rig.daemon().position_ms {
                    position_ms if position_ms > quiet_ms => Ok(()),
                    position_ms => Err(position_ms),
                }
            });
        }
    }
}
