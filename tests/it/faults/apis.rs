//! A server that is upgraded to the export API and goes back from it, under a run.

use chrono::{TimeDelta, Utc};
use teleport_event_indexer::checkpoint::SourceMode;
use teleport_event_indexer::demo::auth::{AuthOptions, Method};
use teleport_event_indexer::demo::elastic::ElasticsearchOptions;
use tonic::Code;

use crate::support::rig::{Rig, event, midnight, realistic, rfc3339};
use crate::support::wait_until;

#[test]
fn from_search_to_export_and_back_nothing_is_lost_or_doubled() {
    let auth = AuthOptions {
        chunk_events: 1,
        export: false,
        ..AuthOptions::default()
    };
    let top = format!("start-time = {:?}\nbatch = 5", rfc3339(midnight(4)));
    let mut rig = Rig::with(auth, ElasticsearchOptions::default(), &top, "");
    rig.append(realistic(1, 60, 4, 1));
    // In the middle of catching up.
    rig.auth().fail_next(Method::Search, 6, Code::Ok);
    rig.auth().set_delay(std::time::Duration::from_millis(20));
    let mut daemon = rig.spawn(&["start"]);
    wait_until("some pages were read", || {
        match rig.auth().n_calls(Method::Search) {
            calls if calls >= 4 => Ok(()),
            calls => Err(calls),
        }
    });
    rig.auth().set_export(true);
    rig.auth().fail_next(Method::Search, 1, Code::Unimplemented);
    rig.wait_until_complete();
    wait_until_read_by(&rig, SourceMode::Export);
    rig.assert_nothing_was_passed();
    // What comes while the APIs change, and late.
    let ago = |minutes| Utc::now() - TimeDelta::minutes(minutes);
    rig.append([event("by export", "x", ago(0)), event("late", "x", ago(90))]);
    rig.wait_until_complete();
    rig.auth().set_export(false);
    rig.append([event("between", "x", ago(0)), event("later", "x", ago(200))]);
    rig.wait_until_complete();
    wait_until_read_by(&rig, SourceMode::Search);
    rig.append([event("by search", "x", Utc::now())]);
    rig.wait_until_complete();
    rig.assert_nothing_was_passed();
    daemon.terminate();
    let output = daemon.wait();
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    let changes = output
        .stderr
        .matches("no longer has the API in use")
        .count();
    assert_eq!(changes, 2, "{}", output.stderr);
    assert_eq!(rig.summary().gaps, 0);
}

fn wait_until_read_by(rig: &Rig, wanted: SourceMode) {
    wait_until("the event API changes", || match rig.daemon().mode {
        Some(mode) if mode == wanted => Ok(()),
        mode => Err(format!("{mode:?}")),
    });
}
