//! The program is killed at each named step of its work, which the stand-ins or a lock on the state
//! file hold it at; the next process makes good what was left.
#![expect(
    clippy::unwrap_used,
    reason = "clippy takes only what is marked as a test for one, not what tests call"
)]

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::TimeDelta;
use rusqlite::{Connection, OpenFlags};
use teleport_event_indexer::demo::auth::{AuthOptions, Method, Unreadable};
use teleport_event_indexer::demo::elastic::{Answer, ElasticsearchOptions, Refusal};
use tonic::Code;

use crate::support::rig::{Rig, backfill, event, midnight, wait_until_said};
use crate::support::wait_until;

const BATCH: u64 = 50;
const REFUSED: &str = "refused.one";

/// One request after the other, each of [`BATCH`] documents; a chunk fills one.
fn rig(export: bool) -> Rig {
    let auth = AuthOptions {
        export,
        chunk_events: 50,
        ..AuthOptions::default()
    };
    let more = format!("in-flight = 1\nbatch-documents = {BATCH}");
    let options = ElasticsearchOptions::default();
    let mut rig = Rig::with(auth, options, "concurrency = 1", &more);
    for (day, first) in [(3, 0), (2, 2 * BATCH)] {
        let hour = |n| midnight(day) + TimeDelta::hours(i64::try_from(n / 5).unwrap());
        let events = (0..2 * BATCH).map(|n| event(first + n, "plain", hour(n)));
        rig.append(events);
    }
    rig
}

/// What is run, with batches that close by their number of documents alone.
fn run(more: &[&str]) -> Vec<String> {
    let more = [&["--elasticsearch-batch-age=10s"], more].concat();
    let more = more.into_iter().map(str::to_owned);
    backfill(3, 1).into_iter().chain(more).collect()
}

/// The next requests are answered so, and the one behind them never is.
fn answer(rig: &Rig, answers: &[Answer]) {
    for answer in answers {
        rig.elasticsearch().answer_next(1, answer.clone());
    }
    rig.elasticsearch().answer_next(1, Answer::Hang);
}

/// Starts the program, waits until it is at a step, and kills it there.
fn kill_at(rig: &Rig, args: &[String], step: &str, is_there: impl Fn() -> bool) {
    let mut running = rig.spawn(args);
    wait_until(step, || {
        let is_running = running.is_running();
        if is_there() {
            return Ok(());
        }
        assert!(is_running, "{}", running.stderr());
        Err(running.stderr())
    });
    assert_eq!(running.kill().signal, Some(9));
    rig.assert_nothing_was_passed();
}

/// Whether so many more requests than by now have come.
fn sent(rig: &Rig, n_requests: u64) -> impl Fn() -> bool {
    let elasticsearch = rig.elasticsearch().clone();
    let before = elasticsearch.n_bulk_requests();
    move || elasticsearch.n_bulk_requests() >= before + n_requests
}

/// The next process comes to the end, by finding so many documents there already.
fn finish(rig: &Rig, code: i32, already_there: u64) {
    let before = rig.elasticsearch().duplicates_refused();
    rig.run_to(code, &run(&[]));
    let refused = rig.elasticsearch().duplicates_refused() - before;
    assert_eq!(refused, already_there);
    assert!(rig.backfill().finished);
    assert!(rig.waiting().is_empty());
}

#[test]
fn before_teleport_has_answered_for_the_first_time() {
    let rig = rig(true);
    rig.auth().fail_next(Method::Ping, 5, Code::Unavailable);
    let mut running = rig.spawn(&["start"]);
    wait_until_said(&running, "trying again");
    assert_eq!(running.kill().signal, Some(9));
    assert!(rig.summary().runs.is_empty());
    wait_until("Teleport answers", || match rig.run(&run(&[])) {
        output if output.code == Some(0) => Ok(()),
        output => Err(output.stderr),
    });
    assert_eq!(rig.elasticsearch().duplicates_refused(), 0);
    rig.assert_complete();
}

#[test]
fn pages_were_pulled_and_nothing_was_sent() {
    for export in [true, false] {
        let rig = rig(export);
        let method = match export {
            true => Method::ReadChunk,
            false => Method::Search,
        };
        // Several pages, each of which takes a while, and one batch for them all.
        rig.auth().set_delay(Duration::from_secs(1));
        let slowly = run(&["--batch=50", "--elasticsearch-batch-documents=1000"]);
        kill_at(&rig, &slowly, "pages were pulled", || {
            rig.auth().n_handed_out(method) >= BATCH
        });
        assert_eq!(rig.elasticsearch().n_bulk_requests(), 0);
        rig.auth().set_delay(Duration::ZERO);
        finish(&rig, 0, 0);
        rig.assert_complete();
    }
}

#[test]
fn a_request_was_sent_and_not_carried_out() {
    for export in [true, false] {
        let rig = rig(export);
        answer(&rig, &[]);
        kill_at(&rig, &run(&[]), "it was sent", sent(&rig, 1));
        assert_eq!(rig.elasticsearch().count(), 0);
        finish(&rig, 0, 0);
        rig.assert_complete();
    }
}

#[test]
fn a_request_was_carried_out_and_not_answered() {
    for export in [true, false] {
        let rig = rig(export);
        answer(&rig, &[Answer::StoreAndDrop]);
        kill_at(&rig, &run(&[]), "it was sent again", sent(&rig, 2));
        assert_eq!(rig.elasticsearch().count(), BATCH);
        assert_eq!(rig.backfill().counts.created, 0);
        finish(&rig, 0, BATCH);
        rig.assert_complete();
    }
}

/// A connection to the state file which lets nobody else write.
fn lock(path: &Path) -> Connection {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
    let connection = Connection::open_with_flags(path, flags).unwrap();
    connection.busy_timeout(Duration::from_secs(5)).unwrap();
    connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    connection
}

#[test]
fn a_request_was_answered_and_not_committed() {
    for export in [true, false] {
        let rig = rig(export);
        let path = rig.storage().join("state.sqlite");
        let locked = Arc::new(Mutex::new(None));
        let shared = locked.clone();
        // Before the first document is stored, so before anything can be committed.
        rig.elasticsearch().add_rule(move |_| {
            shared.lock().unwrap().get_or_insert_with(|| lock(&path));
            None
        });
        answer(&rig, &[Answer::Ordinary]);
        kill_at(&rig, &run(&[]), "the first was answered", sent(&rig, 2));
        rig.elasticsearch().clear_rules();
        *locked.lock().unwrap() = None;
        assert_eq!(rig.elasticsearch().count(), BATCH);
        assert_eq!(rig.backfill().counts.created, 0);
        finish(&rig, 0, BATCH);
        rig.assert_complete();
    }
}

#[test]
fn what_was_answered_was_committed() {
    let rig = rig(true);
    answer(&rig, &[Answer::Ordinary]);
    kill_at(&rig, &run(&[]), "the first is committed", || {
        rig.try_backfill()
            .is_some_and(|run| run.counts.created == BATCH)
    });
    // Its chunk is done, so nobody asks for it again.
    finish(&rig, 0, 0);
    rig.assert_complete();
}

#[test]
fn a_dead_letter_was_stored_and_its_page_not_committed() {
    let mut rig = rig(true);
    let second = midnight(2) + TimeDelta::hours(1);
    rig.append([
        event("refused", REFUSED, midnight(2)),
        event("behind it in its page", "plain", second),
    ]);
    let refuse = || {
        rig.elasticsearch().add_rule(|operation| {
            let refused = operation.contains(REFUSED);
            refused.then(Refusal::mapping_failure)
        });
    };
    refuse();
    rig.elasticsearch().add_rule(|operation| {
        let behind = operation.contains("behind it");
        behind.then(Refusal::rejected_execution)
    });
    let one_by_one = run(&["--elasticsearch-batch-documents=1"]);
    kill_at(&rig, &one_by_one, "there is a dead letter", || {
        rig.try_summary()
            .is_some_and(|summary| summary.dead_letters.count == 1)
    });
    let rows = "SELECT count(*) FROM chunks WHERE done = 0";
    let path = rig.storage().join("state.sqlite");
    let n_open: i64 = lock(&path).query_row(rows, [], |row| row.get(0)).unwrap();
    assert!(n_open > 0);

    rig.elasticsearch().clear_rules();
    refuse();
    rig.run_to(1, &run(&[]));
    assert!(rig.backfill().finished);
    rig.assert_complete_but(&[REFUSED]);
}

#[test]
fn blocked_documents_were_put_on_the_disk_and_then_sent_from_there() {
    let rig = rig(true);
    let blocked = midnight(2).format("audit-events-%Y.%m.%d").to_string();
    rig.elasticsearch().add_rule(move |operation| {
        let blocked = operation.index == blocked;
        blocked.then(|| Refusal::write_block(operation.index))
    });
    let of_day = rig.n_events() / 2;
    kill_at(&rig, &run(&[]), "all else is done", || {
        let at_end = |ms| ms == midnight(1).timestamp_millis();
        let is_at_end = rig
            .try_backfill()
            .is_some_and(|run| at_end(run.position_ms));
        is_at_end && rig.waiting().len() == of_day
    });

    // The next one sends them, and dies before it can know.
    rig.elasticsearch().clear_rules();
    answer(&rig, &[Answer::StoreAndDrop]);
    kill_at(&rig, &run(&[]), "they were sent", sent(&rig, 2));
    assert_eq!(rig.waiting().len(), of_day);
    assert!(rig.elasticsearch().count() > rig.n_events() as u64 / 2);

    finish(&rig, 0, BATCH);
    rig.assert_complete();
}

#[test]
fn a_gap_was_recorded_and_nothing_tells_of_it_yet() {
    let mut rig = rig(false);
    let large = |mut event: serde_json::Value| {
        event["command"] = "x".repeat(20_000).into();
        event
    };
    // At the time of the last others, so that nothing lies behind it.
    let last = midnight(2) + TimeDelta::hours(19);
    rig.append([large(event("large", "large", last))]);
    rig.auth()
        .set_unreadable(Some((10_000, Unreadable::Hidden)));
    rig.elasticsearch().add_rule(|operation| {
        let tells = operation.contains("event_indexer.gap");
        tells.then(Refusal::rejected_execution)
    });
    kill_at(&rig, &run(&[]), "the gap is recorded", || {
        rig.try_backfill().is_some() && rig.open_gaps().len() == 1
    });
    let told = |rig: &Rig| rig.stored().1.len();
    assert_eq!(told(&rig), 0);
    rig.elasticsearch().clear_rules();
    rig.run_to(1, &run(&[]));
    assert_eq!(rig.assert_complete_but_for_gaps(), ["large"]);
    assert_eq!((told(&rig), rig.open_gaps().len()), (1, 1));

    // What was missing comes, and that it did is not said.
    rig.auth().set_unreadable(None);
    rig.elasticsearch().add_rule(|operation| {
        let closes = operation.contains("event_indexer.gap.closed");
        closes.then(Refusal::rejected_execution)
    });
    kill_at(&rig, &run(&["--again"]), "it has come", || {
        rig.elasticsearch().count() == rig.n_events() as u64 + 1
    });
    assert_eq!(rig.open_gaps().len(), 1);
    rig.elasticsearch().clear_rules();
    rig.run_to(0, &run(&[]));
    rig.assert_complete();
    assert_eq!((told(&rig), rig.open_gaps().len()), (2, 0));
}
