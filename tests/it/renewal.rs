//! Credentials that change while the program runs: what is good is taken, what is not changes
//! nothing, and no event is lost.
#![expect(
    clippy::unwrap_used,
    reason = "clippy takes only what is marked as a test for one, not what tests call"
)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;

use chrono::{TimeDelta, Utc};
use insta::assert_snapshot;
use serde_json::{Value, json};
use teleport_event_indexer::demo::certs::{Cluster, IdentityOptions};
use teleport_event_indexer::demo::events::{Id, encode};

use crate::support::faketeleport::FakeTeleport;
use crate::support::program::{Indexer, Running};
use crate::support::rig::{event, line_with, midnight, realistic, rfc3339, wait_until_said};
use crate::support::stand_ins::Teleport;
use crate::support::wait_until;

/// The ids of the documents on stdout. The last line may be only a part of one.
fn printed(running: &Running) -> BTreeSet<String> {
    let stdout = running.stdout();
    let lines = stdout.lines();
    let events = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let uids = events.map(|event| event["uid"].as_str().unwrap_or_default().to_owned());
    uids.collect()
}

fn follow(indexer: &Indexer, addr: &str, more: &[&str]) -> Running {
    let start = format!("--start-time={}", rfc3339(midnight(4)));
    let addr = format!("--teleport-addr={addr}");
    let args = ["start", "--dry-run", "--timeout=200ms", &start, &addr];
    indexer.spawn(&[&args[..], more].concat())
}

/// The server closes connections whose certificate has ended, so whoever does not renew in time
/// is seen; the interval is the usual minute, far longer than such a certificate lives.
#[test]
fn certificates_that_live_for_seconds_lose_no_event() {
    let args = ["--cert-ttl=15s", "--renew-every=5s", "--events=3000"];
    let more = ["--days=3", "--sessions=0", "--chunk=500"];
    let Some(teleport) = FakeTeleport::start(&[&args[..], &more].concat()) else {
        return;
    };
    teleport.faults(&json!({"enforce_expiry": true}));
    let indexer = Indexer::new();
    let identity = format!("--teleport-identity={}", teleport.identity().display());
    let mut running = follow(&indexer, teleport.addr(), &[&identity]);
    for n_certificates in 1..=5 {
        wait_until("the next certificate is in use", || {
            let seen = teleport.stats()["client_cert_serials"].clone();
            let n_seen = seen.as_object().map_or(0, |seen| seen.len());
            let enough = n_seen >= n_certificates && running.is_running();
            enough.then_some(()).ok_or_else(|| running.stderr())
        });
        teleport.append("n=50");
    }
    let wanted: BTreeSet<String> = teleport.uids().into_iter().collect();
    assert_eq!(wanted.len(), 3_250);
    wait_until("all events are there", || {
        let found = printed(&running);
        (found == wanted).then_some(()).ok_or(found.len())
    });
    running.terminate();
    let output = running.wait();
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    for wrong in ["ERROR", "reading failed", "keeping the credentials"] {
        assert_eq!(line_with(&output.stderr, wrong), None);
    }
}

/// A Kubernetes secret's mount: all that it holds lies behind one symbolic link, which is swapped.
struct Mount<'a>(&'a Indexer);

impl Mount<'_> {
    fn new(indexer: &Indexer) -> Mount<'_> {
        let mount = indexer.directory().join("mount");
        fs::create_dir(&mount).unwrap();
        symlink("..data/identity", mount.join("identity")).unwrap();
        Mount(indexer)
    }

    fn swap(&self, version: &str, identity: &str) {
        let mount = self.0.directory().join("mount");
        fs::create_dir(mount.join(version)).unwrap();
        self.0
            .write_private(&format!("mount/{version}/identity"), identity);
        symlink(version, mount.join("..fresh")).unwrap();
        fs::rename(mount.join("..fresh"), mount.join("..data")).unwrap();
    }
}

fn text(cluster: &Cluster, options: &IdentityOptions) -> String {
    cluster.identity(options).unwrap().text()
}

#[test]
fn what_does_not_work_changes_nothing() {
    let teleport = Teleport::start("a.example");
    let events: Vec<Value> = realistic(1, 100, 2, 1).collect();
    let log = teleport.auth.control();
    log.append(events.iter().map(|event| encode(event, Id::OfEvent)));
    let indexer = Indexer::new();
    let mount = Mount::new(&indexer);
    let good = IdentityOptions::default();
    mount.swap("..1", &text(&teleport.cluster, &good));
    // Without looking by itself, so that each look is ours.
    let flags = [
        "--teleport-identity=mount",
        "--teleport-refresh-enabled=false",
    ];
    let mut running = follow(&indexer, &teleport.addr(), &flags);
    let arrives = |running: &Running, uid: &str| {
        let event = event(uid, "user.login", midnight(1));
        log.append([encode(&event, Id::OfEvent)]);
        wait_until("the event is there", || {
            let found = printed(running).contains(uid);
            found.then_some(()).ok_or_else(|| running.stderr())
        });
    };
    arrives(&running, "before");
    let n_connections = log.n_connections();
    let mut said_of = |version: &str, identity: &str, part: &str| {
        mount.swap(version, identity);
        running.hang_up();
        let line = wait_until_said(&running, part);
        arrives(&running, version);
        // Behind the time and the level.
        let words = line.split_whitespace().skip(2).collect::<Vec<_>>();
        words.join(" ")
    };

    let whole = text(&teleport.cluster, &good);
    let (half, _) = whole.split_at(whole.len() / 2);
    assert_snapshot!(said_of("..2", half, "keeping"), @"keeping the credentials read before: the identity file mount/identity: line 7: the file ends within this PEM block");
    let ended = IdentityOptions {
        not_before: Utc::now() - TimeDelta::days(2),
        not_after: midnight(1),
        ..good.clone()
    };
    let ended = text(&teleport.cluster, &ended);
    let said = said_of("..3", &ended, "expired at");
    let said = said.replace(&rfc3339(midnight(1)).replace(".000Z", "Z"), "YESTERDAY");
    assert_snapshot!(said, @"keeping the credentials read before: the certificate in mount/identity expired at YESTERDAY");
    let other = text(&Cluster::new("b.example").unwrap(), &good);
    assert_snapshot!(said_of("..4", &other, "b.example"), @"keeping the credentials read before: the certificate in mount/identity is now of cluster b.example, and this run reads a.example");
    assert_eq!(log.n_connections(), n_connections);
    // The right name, and nobody knows who issued it.
    let stranger = text(&Cluster::new("a.example").unwrap(), &good);
    let said = said_of("..5", &stranger, "going back");
    let said = said.replace(&teleport.addr(), "TELEPORT");
    assert_snapshot!(said, @"going back to the credentials read before, as the new ones fail: no way to TELEPORT works: straight or by TLS routing: the TLS handshake with TELEPORT failed: its certificate comes from none of the CAs in the identity of cluster a.example; by a connection upgrade: cannot speak HTTPS with TELEPORT: its certificate comes from no authority that this machine trusts");
    let n_connections = log.n_connections();
    let renewed = text(&teleport.cluster, &good);
    let said = said_of("..6", &renewed, "credentials renewed");
    assert!(said.starts_with("credentials renewed expires="), "{said}");
    assert_eq!(log.n_connections(), n_connections + 1);
    running.hang_up();
    wait_until_said(&running, "the credentials have not changed");
    running.terminate();
    let output = running.wait();
    assert_eq!(output.code, Some(0), "{}", output.stderr);
}

#[test]
fn a_certificate_that_ends_soon_is_told_at_the_start() {
    let teleport = Teleport::start("a.example");
    let warning = |user: &str, left: TimeDelta| {
        let indexer = Indexer::new();
        let options = IdentityOptions {
            user: user.to_owned(),
            not_before: Utc::now() - TimeDelta::days(30),
            not_after: Utc::now() + left,
            ..IdentityOptions::default()
        };
        indexer.identify(&teleport.cluster, &options);
        let flags = ["--teleport-identity=identity", "--exit-on-last-event"];
        let output = follow(&indexer, &teleport.addr(), &flags).wait();
        assert_eq!(output.code, Some(0), "{}", output.stderr);
        let line = line_with(&output.stderr, "expires soon")?;
        let (_, words) = line.split_once("WARN ").unwrap();
        let end = options.not_after.format("%Y-%m-%dT%H:%M:%SZ").to_string();
        Some(words.replace(&end, "END"))
    };
    assert_eq!(warning("alice", TimeDelta::days(8)), None);
    assert_snapshot!(warning("alice", TimeDelta::days(6)).unwrap(), @r#"the certificate in identity expires soon, at END mend="renew it with `tctl auth sign --format=file --user=alice --out=identity --overwrite`, or let tbot do it""#);
    assert_snapshot!(warning("bot-indexer", TimeDelta::days(6)).unwrap(), @r#"the certificate in identity expires soon, at END mend="see why tbot has not renewed it: whether it runs, and writes to identity""#);
}
