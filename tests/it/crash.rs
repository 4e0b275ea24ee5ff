//! Random faults at both ends and a program that is killed again and again: nothing is lost,
//! nothing is twice, and the checkpoint is never past what has settled.

mod kills;
mod steps;
mod writes;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use teleport_event_indexer::demo::auth::{AuthOptions, Method};
use teleport_event_indexer::demo::elastic::{Answer, ElasticsearchOptions, Refusal};
use tonic::Code;

use crate::support::rig::{Rig, backfill, event, midnight, realistic};
use crate::support::wait_until;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn count(&mut self, end: u64) -> usize {
        usize::try_from(self.below(end)).expect("a small number")
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.count(from.len() as u64)].clone()
    }
}

const REFUSED: &str = "refused.one";

#[test]
fn whatever_breaks_and_whenever_it_dies_each_event_is_there_once() {
    const ROUNDS: u64 = 12;
    // Most of a round is waiting, so some run side by side.
    const AT_ONCE: usize = 6;
    std::thread::scope(|scope| {
        for first in 0..AT_ONCE as u64 {
            scope.spawn(move || {
                for seed in (first..ROUNDS).step_by(AT_ONCE) {
                    println!("round with seed {seed} begins");
                    round(seed);
                    println!("round with seed {seed} is well");
                }
            });
        }
    });
}

fn round(seed: u64) {
    let mut random = Random(seed);
    let auth = AuthOptions {
        chunk_events: random.pick(&[1, 20, 150]),
        export: random.below(2) == 0,
        whole_seconds: random.below(2) == 0,
        ..AuthOptions::default()
    };
    let top = format!(
        "concurrency = {}\nbatch = {}\nwindow-size = \"{}h\"",
        random.pick(&[1, 3, 8]),
        random.pick(&[3, 50, 10_000]),
        random.pick(&[1, 7, 24]),
    );
    let more = format!(
        "in-flight = {}\nbatch-documents = {}\nrequest-timeout = \"300ms\"",
        random.pick(&[1, 2, 5]),
        random.pick(&[1, 10, 60]),
    );
    let n_events = 250;
    let mut rig = Rig::with(auth, ElasticsearchOptions::default(), &top, &more);
    rig.append(realistic(seed, n_events, 4, 2));
    let refused = (0..5).map(|n| event(format!("refused {n}"), REFUSED, midnight(3)));
    rig.append(refused);

    plan(&rig, &mut random);
    let args = backfill(4, 2);
    for _ in 0..random.below(5) {
        let mut running = rig.spawn(&args);
        let enough = rig.elasticsearch().n_bulk_requests() + random.below(12);
        wait_until("it has sent enough or is done", || {
            let sent = rig.elasticsearch().n_bulk_requests();
            let is_done = sent >= enough || !running.is_running();
            is_done.then_some(()).ok_or(sent)
        });
        running.kill();
        rig.assert_nothing_was_passed();
    }
    // One that ended by itself before it was to be killed says so with 0.
    let output = rig.run(&args);
    let is_done = output.stderr.contains("this range is done");
    assert_eq!(output.code, Some(i32::from(!is_done)), "{}", output.stderr);
    assert!(rig.backfill().finished);
    rig.assert_nothing_was_passed();
    rig.assert_complete_but(&[REFUSED]);
}

/// Breaks a bit of everything.
fn plan(rig: &Rig, random: &mut Random) {
    let (auth, elasticsearch) = (rig.auth(), rig.elasticsearch());
    for method in [Method::ListChunks, Method::ReadChunk, Method::Search] {
        for _ in 0..3 {
            let n_good = random.count(6);
            auth.fail_next(method, n_good, Code::Ok);
            let code = random.pick(&[Code::Unavailable, Code::ResourceExhausted, Code::Unknown]);
            auth.fail_next(method, 1, code);
        }
    }
    for _ in 0..4 {
        let n_events = random.count(150);
        auth.break_next_stream(n_events, random.pick(&[Code::Unavailable, Code::Internal]));
    }
    auth.set_delay(Duration::from_millis(random.below(4)));
    let status = |status: u16| Answer::Status {
        status,
        body: "{}".to_owned(),
        retry_after: None,
    };
    let faults = [
        Answer::Drop,
        Answer::StoreAndDrop,
        Answer::StoreAndDrop,
        Answer::Hang,
        status(429),
        status(503),
        status(401),
    ];
    for _ in 0..5 {
        let n_good = random.count(5);
        elasticsearch.answer_next(n_good, Answer::Ordinary);
        elasticsearch.answer_next(1, random.pick(&faults));
    }
    elasticsearch.set_delay(Duration::from_millis(random.below(30)));
    let (seen, seed) = (Mutex::new(BTreeSet::new()), random.next());
    elasticsearch.add_rule(move |operation| {
        if operation.contains(REFUSED) {
            return Some(Refusal::mapping_failure());
        }
        let id = operation.id.bytes().fold(seed, |sum, byte| {
            Random(sum.wrapping_add(u64::from(byte))).next()
        });
        let mut seen = seen.lock().expect("nobody panics while holding it");
        let is_first = seen.insert(operation.id.to_owned());
        match (is_first, id % 64) {
            (true, 0) => Some(Refusal::rejected_execution()),
            (true, 1) => Some(Refusal::new(503, "unavailable_shards_exception", "")),
            (true, 2) => Some(Refusal::flood_stage(operation.index)),
            (true, 3) => Some(Refusal::write_block(operation.index)),
            _ => None,
        }
    });
}
