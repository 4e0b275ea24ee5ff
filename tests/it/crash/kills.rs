//! One long run, killed again and again at moments that nobody chose.

use std::time::Duration;

use teleport_event_indexer::demo::auth::AuthOptions;
use teleport_event_indexer::demo::elastic::ElasticsearchOptions;
use tokio::time::Instant;

use super::{Random, plan};
use crate::support::rig::{Rig, backfill, realistic};
use crate::support::wait_until;

const KILLS: u32 = 200;
const EVENTS: u64 = 200_000;

/// Takes minutes: `cargo test --test it -- --ignored --nocapture two_hundred_kills`. Faults at both
/// ends come on top, as in a round of the short test.
#[test]
#[ignore = "takes minutes; see ARCHITECTURE.md"]
fn two_hundred_kills_in_a_run_of_200_000_events() {
    for export in [true, false] {
        println!("by export: {export}: {}", run(export, 1));
    }
}

/// What it came to.
fn run(export: bool, seed: u64) -> String {
    let mut random = Random(seed);
    let auth = AuthOptions {
        export,
        ..AuthOptions::default()
    };
    // So slow that the last kill comes before the end.
    let top = "window-size = \"1h\"\nlimits.backfill.events-per-second = 4000";
    let more = "batch-documents = 200\nin-flight = 3\nrequest-timeout = \"1s\"";
    let mut rig = Rig::with(auth, ElasticsearchOptions::default(), top, more);
    rig.append(realistic(seed, EVENTS, 4, 2));
    let args = backfill(4, 2);
    let (mut n_alive, began) = (0, Instant::now());
    for kill in 1..=KILLS {
        if kill % 10 == 0 {
            rig.elasticsearch().clear_rules();
            plan(&rig, &mut random);
        }
        let mut running = rig.spawn(&args);
        let (start, life) = (Instant::now(), Duration::from_millis(random.below(900)));
        wait_until("its time is over", || {
            let left = life.saturating_sub(start.elapsed());
            left.is_zero().then_some(()).ok_or("not yet")
        });
        n_alive += u32::from(running.is_running());
        assert_eq!(
            running.kill().signal,
            Some(9),
            "it ended before kill {kill}"
        );
        if kill % 40 == 0 {
            rig.assert_nothing_was_passed();
        }
    }
    rig.configure("", "");
    rig.elasticsearch().clear_rules();
    rig.run_to(0, &args);
    assert!(rig.backfill().finished);
    rig.assert_nothing_was_passed();
    rig.assert_complete();
    let counts = rig.backfill().counts;
    format!(
        "{n_alive} of {KILLS} killed alive, {:?}: {} events read, {} created and {} found there in \
         what was committed; {} conflicts in all; each of {EVENTS} is there once",
        began.elapsed(),
        counts.events,
        counts.created,
        counts.already_there,
        rig.elasticsearch().duplicates_refused(),
    )
}
