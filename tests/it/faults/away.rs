//! A server that is away for longer than anything waits silently.

use std::time::Duration;

use chrono::Utc;
use teleport_event_indexer::demo::auth::{AuthOptions, Method, Unsteady};
use teleport_event_indexer::demo::elastic::ElasticsearchOptions;
use tonic::Code;

use crate::support::rig::{Rig, event, midnight, realistic, rfc3339, wait_until_said};
use crate::support::wait_until;

/// Longer than the poll interval and the short look back of polls together.
const AWAY: Duration = Duration::from_secs(65);

#[test]
fn a_server_that_is_away_for_more_than_a_minute_is_said_and_then_read_on() {
    let auth = AuthOptions {
        export: false,
        ..AuthOptions::default()
    };
    let top = format!("start-time = {:?}", rfc3339(midnight(4)));
    let mut rig = Rig::with(auth, ElasticsearchOptions::default(), &top, "");
    rig.append(realistic(1, 100, 4, 1));
    let mut daemon = rig.spawn(&["start"]);
    rig.wait_until_complete();
    wait_until_said(&daemon, "following");

    rig.auth()
        .set_unsteady(Some((1, 1, Unsteady::Fails(Code::Unavailable))));
    rig.auth().drop_connections();
    let left = Utc::now();
    rig.append([event("while it was away", "late", left)]);
    wait_until("it has been away for long enough", || {
        let away = (Utc::now() - left).to_std().unwrap_or_default();
        (away > AWAY).then_some(()).ok_or(format!("{away:?}"))
    });
    rig.assert_nothing_was_passed();
    wait_until("it is said as a warning", || {
        let said = daemon.stderr();
        let mut lines = said.lines();
        let is_said = lines.any(|line| line.contains("WARN reading failed, trying again"));
        is_said.then_some(()).ok_or(said)
    });
    // However often it was tried: when it began, and once a minute.
    let lines = daemon
        .stderr()
        .matches("reading failed, trying again")
        .count();
    assert!(rig.auth().n_calls(Method::Search) > 8);
    assert!((2..=4).contains(&lines), "{}", daemon.stderr());

    rig.auth().set_unsteady(None);
    rig.append([event("when it was back", "prompt", Utc::now())]);
    rig.wait_until_complete();
    wait_until_said(&daemon, "INFO Teleport answers again after=");
    daemon.terminate();
    assert_eq!(daemon.wait().code, Some(0));
    let summary = rig.summary();
    assert_eq!((summary.gaps, summary.dead_letters.count), (0, 0));
}
