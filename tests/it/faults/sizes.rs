//! Events of sizes that no audit log should hold, and one does.

use chrono::TimeDelta;
use teleport_event_indexer::demo::auth::AuthOptions;
use teleport_event_indexer::demo::elastic::ElasticsearchOptions;

use crate::support::rig::{Rig, event, midnight, realistic, rfc3339};

/// A large event is there as wire bytes, as JSON and as a request at once: four times the largest,
/// and what the program takes in any case.
const PEAK_BYTES: u64 = 4 * (20 << 20) + (32 << 20);

#[test]
fn events_of_4_and_of_20_mib_arrive_by_both_apis_within_the_bound() {
    for export in [false, true] {
        let auth = AuthOptions {
            export,
            ..AuthOptions::default()
        };
        let top = format!("start-time = {:?}", rfc3339(midnight(4)));
        let mut rig = Rig::with(auth, ElasticsearchOptions::default(), &top, "");
        rig.append(realistic(1, 100, 4, 1));
        for (name, mib) in [("four", 4), ("twenty", 20)] {
            let mut large = event(
                name,
                "db.session.query",
                midnight(2) + TimeDelta::hours(mib),
            );
            let bytes = usize::try_from(mib).expect("it is positive") << 20;
            large["db_query"] = "SELECT 1;".repeat(bytes / 9).into();
            rig.append([large]);
        }
        let mut daemon = rig.spawn(&["start"]);
        rig.wait_until_complete();
        if let Some(peak) = daemon.peak_bytes() {
            assert!(peak < PEAK_BYTES, "{peak} bytes");
        }
        daemon.terminate();
        assert_eq!(daemon.wait().code, Some(0));
        let summary = rig.summary();
        assert_eq!((summary.gaps, summary.dead_letters.count), (0, 0));
    }
}
