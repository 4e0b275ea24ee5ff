//! Users are locked after failed logins: those, once, and not by what is read again.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use teleport_event_indexer::demo::auth::{AuthOptions, Method, Request};
use teleport_event_indexer::demo::elastic::ElasticsearchOptions;
use teleport_event_indexer::event::Timestamp;
use tonic::Code;

use crate::support::faketeleport::FakeTeleport;
use crate::support::rig::{Rig, event, midnight, rfc3339, wait_until_said};

const START: [&str; 2] = ["start", "--exit-on-last-event"];
const LOCK: &str = "--lock-enabled";

fn rig(export: bool) -> Rig {
    let auth = AuthOptions {
        export,
        ..AuthOptions::default()
    };
    let top = format!("start-time = {:?}", rfc3339(midnight(3)));
    Rig::with(auth, ElasticsearchOptions::default(), &top, "")
}

fn login(user: &str, number: i64, time: DateTime<Utc>, success: Option<bool>) -> Value {
    let mut event = event(format!("{user} {number}"), "user.login", time);
    event["user"] = user.into();
    if let Some(success) = success {
        event["success"] = success.into();
    }
    event
}

/// Failures of this user, ten seconds apart, up to now.
fn failures(user: &str, count: i64) -> Vec<Value> {
    let ago = |n| Utc::now() - TimeDelta::seconds(5 + 10 * (count - n));
    (0..count)
        .map(|n| login(user, n, ago(n), (n > 0).then_some(false)))
        .collect()
}

/// Name, target, message and end of all locks that were asked for.
fn locks(rig: &Rig) -> Vec<(String, String, String, Option<Timestamp>)> {
    let requests = rig.auth().requests().into_iter();
    let locks = requests.filter_map(|request| match request {
        Request::Lock {
            name,
            user,
            message,
            expires,
        } => Some((name, user, message, expires)),
        _ => None,
    });
    locks.collect()
}

fn names(rig: &Rig) -> Vec<String> {
    locks(rig).into_iter().map(|lock| lock.0).collect()
}

#[test]
fn three_failures_within_a_minute_lock_that_user_once() {
    for export in [true, false] {
        let mut rig = rig(export);
        rig.append(failures("alice", 3));
        // Two; three, of which one is a minute and a second before; three that came through.
        rig.append(failures("bob", 2));
        let long_ago = Utc::now() - TimeDelta::seconds(90);
        rig.append(failures("carol", 2));
        rig.append([login("carol", 9, long_ago, Some(false))]);
        let mut fine = failures("dave", 3);
        for login in &mut fine {
            login["success"] = true.into();
        }
        rig.append(fine);
        // Three an hour ago, which are only read now.
        let hour_ago = Utc::now() - TimeDelta::hours(1);
        rig.append((0..3).map(|n| login("erin", n, hour_ago, Some(false))));

        let locked = [&START[..], &[LOCK, "--lock-for=1h"]].concat();
        rig.run_to(0, &locked);
        let made = locks(&rig);
        let [(name, user, message, expires)] = &made[..] else {
            panic!("one lock: {made:?}");
        };
        assert_eq!(
            [name, user, message],
            [
                "event-handler-auto-lock-alice-",
                "alice",
                "User is locked due to too many failed login attempts"
            ]
        );
        let left = expires.expect("it ends").seconds - Utc::now().timestamp();
        assert!((3500..=3600).contains(&left), "{left}");

        // Read again, by the next start, from far back, and by a backfill: nobody is locked.
        rig.run_to(0, &locked);
        let target = rfc3339(midnight(2));
        rig.run_to(
            0,
            &[&locked[..], &["--rewind-to", &target, "--yes"]].concat(),
        );
        assert_eq!(names(&rig), ["event-handler-auto-lock-alice-"]);
        rig.assert_complete();
        // But a third failure of bob's does, behind a restart.
        rig.append([login("bob", 7, Utc::now(), Some(false))]);
        rig.run_to(0, &[&START[..], &[LOCK]].concat());
        let made = locks(&rig);
        assert_eq!(
            (made.len(), made[1].1.as_str(), made[1].3),
            (2, "bob", None)
        );
    }
}

#[test]
fn neither_a_dry_run_nor_a_backfill_locks_anybody() {
    let mut rig = rig(false);
    rig.append(failures("alice", 5));
    rig.run_to(0, &[&START[..], &[LOCK, "--dry-run"]].concat());
    // A backfill does not even know the flag; what the file says means nothing to it.
    let (from, to) = (
        rfc3339(midnight(1)),
        rfc3339(Utc::now() + TimeDelta::days(1)),
    );
    let top = format!(
        "start-time = {:?}\nlock.enabled = true",
        rfc3339(midnight(3))
    );
    rig.configure(&top, "");
    rig.run_to(0, &["backfill", "--from", &from, "--to", &to]);
    rig.assert_complete();
    assert_eq!(rig.auth().n_calls(Method::Lock), 0);
}

#[test]
fn a_lock_that_is_refused_is_tried_again_and_survives_a_restart() {
    let mut rig = rig(false);
    let denied = Code::PermissionDenied;
    rig.auth().fail_next(Method::Lock, 2, denied);
    rig.append(failures("alice", 3));
    let output = rig.run_to(0, &[&START[..], &[LOCK]].concat());
    let said =
        "cannot lock a user, trying again: Teleport answered UpsertLock with PermissionDenied";
    assert!(output.stderr.contains(said), "{}", output.stderr);
    let mend = "resources: [lock], verbs: [create, update]";
    assert!(output.stderr.contains(mend), "{}", output.stderr);
    // The events are there all the same.
    rig.assert_complete();
    let mut daemon = rig.spawn(&["start", LOCK]);
    wait_until_said(&daemon, "locked a user after failed logins");
    assert_eq!(rig.auth().n_calls(Method::Lock), 3);
    daemon.terminate();
    assert_eq!(daemon.wait().code, Some(0));

    // What the server does not understand is not asked for again.
    rig.auth().fail_next(Method::Lock, 1, Code::InvalidArgument);
    rig.append((0..3).map(|n| login("bob", n, Utc::now(), Some(false))));
    let output = rig.run_to(0, &[&START[..], &[LOCK]].concat());
    assert!(
        output.stderr.contains("cannot lock this user: "),
        "{}",
        output.stderr
    );
    rig.run_to(0, &[&START[..], &[LOCK]].concat());
    assert_eq!(rig.auth().n_calls(Method::Lock), 4);
}

/// What Teleport's own library makes of the request.
#[test]
fn teleport_understands_the_lock() {
    let Some(teleport) = FakeTeleport::start(&["--events=20"]) else {
        return;
    };
    let rig = rig(false);
    let identity = teleport.identity();
    let end = ["--teleport-addr", teleport.addr(), "--teleport-identity"];
    let args = [
        &START[..],
        &[LOCK, "--lock-for=2h"],
        &end,
        &[identity.to_str().unwrap()],
    ]
    .concat();
    teleport.append("n=2&type=failed-login&user=bob");
    rig.run_to(0, &args);
    assert_eq!(teleport.stats()["locks"], json!([]));
    teleport.append("n=3&type=failed-login&user=alice");
    rig.run_to(0, &args);
    rig.run_to(0, &args);
    let mut locks = teleport.stats()["locks"].take();
    let lock = &mut locks[0];
    for time in ["at", "expires"] {
        assert!(
            lock[time]
                .as_str()
                .is_some_and(|text| text.starts_with("20")),
            "{lock}"
        );
        lock[time] = json!("TIME");
    }
    insta::assert_snapshot!(locks.to_string(), @r#"[{"at":"TIME","expires":"TIME","kind":"lock","message":"User is locked due to too many failed login attempts","name":"event-handler-auto-lock-alice-","target":{"user":"alice"},"user":"alice","version":"v2"}]"#);
}
