//! Clocks that differ: nothing that was not read is passed for good.

use chrono::{TimeDelta, Utc};
use teleport_event_indexer::checkpoint::{Checkpoint, Counts, SourceMode, Step};
use teleport_event_indexer::demo::auth::AuthOptions;
use teleport_event_indexer::demo::elastic::ElasticsearchOptions;

use crate::support::rig::{CLUSTER, Rig, event, midnight, rfc3339, wait_until_said};

fn rig(export: bool) -> Rig {
    let auth = AuthOptions {
        export,
        ..AuthOptions::default()
    };
    let start = rfc3339(midnight(9));
    let top = format!("start-time = {start:?}");
    Rig::with(auth, ElasticsearchOptions::default(), &top, "")
}

/// The cluster's clock is three hours behind ours, or ours as much ahead: what happens there now
/// lies hours back for us, and comes all the same within a few polls.
#[test]
fn events_of_a_cluster_whose_clock_is_behind_come_as_they_happen() {
    let mut rig = rig(false);
    let there = || Utc::now() - TimeDelta::hours(3);
    rig.append([event("before", "x", there())]);
    let mut daemon = rig.spawn(&["start"]);
    wait_until_said(&daemon, "following");
    rig.wait_until_complete();
    for n in 0..5 {
        rig.append([event(n, "x", there())]);
        rig.wait_until_complete();
    }
    daemon.terminate();
    assert_eq!(daemon.wait().code, Some(0));

    // And what happens while we do not look.
    rig.append([event("between", "x", there())]);
    rig.run_to(0, &["start", "--exit-on-last-event"]);
    rig.assert_complete();
}

/// Our clock was a day ahead, with the position read up to there; then it was set right.
#[test]
fn after_a_clock_that_was_ahead_nothing_is_left_out() {
    for export in [false, true] {
        let mut rig = rig(export);
        let now = Utc::now();
        rig.append([event("yesterday", "x", now - TimeDelta::hours(20))]);
        rig.run_to(0, &["start", "--exit-on-last-event"]);
        let ahead = (now + TimeDelta::days(1)).timestamp_millis();
        {
            let checkpoint = Checkpoint::open(&rig.storage()).unwrap();
            let run = checkpoint.daemon_run(CLUSTER, || 0).unwrap().0;
            if export {
                for day in 0..=1 {
                    let date = (now + TimeDelta::days(day)).date_naive();
                    checkpoint.add_listing(run.id, date, ahead, &[]).unwrap();
                }
            } else {
                assert_eq!(run.mode, Some(SourceMode::Search));
                let step = Step::Window {
                    from_ms: run.position_ms,
                    to_ms: ahead,
                    reached_ms: ahead,
                };
                checkpoint
                    .commit(run.id, &[step], &Counts::default())
                    .unwrap();
            }
            assert_eq!(checkpoint.run(run.id).unwrap().position_ms, ahead);
        }
        rig.append([event("just now", "x", Utc::now() - TimeDelta::minutes(10))]);
        let mut daemon = rig.spawn(&["start"]);
        rig.wait_until_complete();
        rig.append([event("now", "x", Utc::now())]);
        rig.wait_until_complete();
        daemon.terminate();
        assert_eq!(daemon.wait().code, Some(0));
        rig.append([event("later", "x", Utc::now())]);
        rig.run_to(0, &["start", "--exit-on-last-event"]);
        rig.assert_complete();
    }
}
