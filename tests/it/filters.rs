//! Only some types of events: picked by the server where it can, by us always.

use chrono::{TimeDelta, Utc};
use teleport_event_indexer::demo::auth::{AuthOptions, Method, Request};
use teleport_event_indexer::demo::elastic::ElasticsearchOptions;

use crate::support::rig::{Rig, event, midnight, rfc3339};

const WANTED: [&str; 3] = ["session.start", "session.x.end", "user.login"];
const UNWANTED: [&str; 4] = [
    "session.network",
    "session",
    "x.session.start",
    "user.login.x",
];

/// A log that ends with what is not wanted, read by either API with these filters.
fn read(export: bool, filters: &str) -> Rig {
    let auth = AuthOptions {
        export,
        ..AuthOptions::default()
    };
    let top = format!("start-time = {:?}\n{filters}", rfc3339(midnight(3)));
    let mut rig = Rig::with(auth, ElasticsearchOptions::default(), &top, "");
    for (place, wanted) in WANTED.iter().enumerate() {
        rig.append([event(wanted, wanted, midnight(place as u64))]);
    }
    let ago = Utc::now() - TimeDelta::minutes(1);
    for unwanted in UNWANTED {
        rig.append_unwanted([event(format!("{unwanted} old"), unwanted, midnight(2))]);
        rig.append_unwanted([event(format!("{unwanted} new"), unwanted, ago)]);
    }
    let before = Utc::now();
    rig.run_to(0, &["start", "--exit-on-last-event"]);
    rig.assert_complete();
    // What is filtered holds nothing back: not the position, and no second look finds a gap.
    let daemon = rig.daemon();
    let position = if export { ago } else { before };
    assert!(
        daemon.position_ms >= position.timestamp_millis(),
        "{filters}"
    );
    assert!(rig.open_gaps().is_empty());
    rig
}

#[test]
fn wildcards_pick_the_same_by_either_api() {
    let filters = "types = [\"session.*\", \"user.login\"]\nskip-event-types = [\"*.network\"]";
    for export in [true, false] {
        let rig = read(export, filters);
        assert_eq!(rig.daemon().counts.created, 3);
        assert_eq!(rig.daemon().counts.filtered, 8);
        assert!(asked_for(&rig).iter().all(Vec::is_empty));
    }
}

#[test]
fn the_server_picks_where_types_are_whole_names() {
    let filters = "types = [\"user.login\", \"session.start\", \"session.x.end\"]";
    let rig = read(false, filters);
    // Nothing that is not wanted has come from there at all.
    assert_eq!(
        (rig.daemon().counts.created, rig.daemon().counts.filtered),
        (3, 0)
    );
    let asked_for = asked_for(&rig);
    assert!(
        asked_for
            .iter()
            .all(|types| types == &["session.start", "session.x.end", "user.login"])
    );
    assert!(!asked_for.is_empty());

    // The export API knows no types.
    let rig = read(true, filters);
    assert_eq!(
        (rig.daemon().counts.created, rig.daemon().counts.filtered),
        (3, 8)
    );
    assert!(rig.auth().n_calls(Method::ReadChunk) > 0);
}

/// The types of every search there was.
fn asked_for(rig: &Rig) -> Vec<Vec<String>> {
    let requests = rig.auth().requests().into_iter();
    let types = requests.filter_map(|request| match request {
        Request::Search { types, .. } => Some(types),
        _ => None,
    });
    types.collect()
}
