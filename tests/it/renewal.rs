//! Credentials that change while the program runs: what is good is taken, what is not changes
//! nothing, and no event is lost.
#![expect(
    clippy::unwrap_used,
    reason = "clippy takes only what is marked as a test for one, not what tests call"
)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;

use chrono::{DateTime, TimeDelta, Utc};
use insta::assert_snapshot;
use serde_json::{Value, json};
use teleport_event_indexer::demo::auth::AuthOptions;
use teleport_event_indexer::demo::certs::{Cluster, IdentityOptions};
use teleport_event_indexer::demo::events::{Id, encode};

use crate::support::faketeleport::FakeTeleport;
use crate::support::listener::{Conduct, Listener};
use crate::support::program::{Indexer, Running};
use crate::support::rig::{event, line_with, midnight, realistic, rfc3339, wait_until_said};
use crate::support::stand_ins::{NOBODY, Teleport};
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
    let args = ["start", "--dry-run", "--timeout=200ms", "--sessions=false"];
    let args = [&args[..], &[&start, &addr]].concat();
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

/// Key, certificate and CAs in files of their own, written one after the other.
#[test]
fn a_trio_is_taken_over_once_it_fits_together() {
    let teleport = Teleport::start("a.example");
    let log = teleport.auth.control();
    let indexer = Indexer::new();
    let issue = || {
        let identity = teleport.cluster.identity(&IdentityOptions::default());
        identity.unwrap()
    };
    let first = issue();
    indexer.write_private("key", &first.key);
    indexer.write("cert", &first.certificate);
    indexer.write("cas", &first.authorities);
    let flags = [
        "--teleport-key=key",
        "--teleport-cert=cert",
        "--teleport-ca=cas",
        "--teleport-refresh-enabled=false",
    ];
    let mut running = follow(&indexer, &teleport.addr(), &flags);
    let arrives = |running: &Running, uid: &str| {
        log.append([encode(&event(uid, "user.login", midnight(1)), Id::OfEvent)]);
        wait_until("the event is there", || {
            let found = printed(running).contains(uid);
            found.then_some(()).ok_or_else(|| running.stderr())
        });
    };
    arrives(&running, "before");
    let n_connections = log.n_connections();
    let second = issue();
    indexer.write_private("key", &second.key);
    running.hang_up();
    let line = wait_until_said(&running, "keeping");
    assert!(
        line.ends_with("the key file key: line 1: this private key belongs to another certificate"),
        "{line}"
    );
    arrives(&running, "between");
    indexer.write("cert", &second.certificate);
    running.hang_up();
    wait_until_said(&running, "credentials renewed");
    arrives(&running, "after");
    assert_eq!(log.n_connections(), n_connections + 1);
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

/// As `tctl auth rotate` goes: first users are certified anew and both authorities trusted, then
/// the servers, then the old authorities are trusted no more.
#[test]
fn a_rotation_of_the_authorities_loses_no_event() {
    let [mut before, mut after] = [(); 2].map(|()| Cluster::new("a.example").unwrap());
    after.trust_users_of(&before);
    before.trust_users_of(&after);
    let good = IdentityOptions::default();
    let [of_old, of_new] = [&before, &after].map(|cluster| cluster.identity(&good).unwrap());
    let first = of_old.text();
    let both = of_new.text() + &of_old.authorities;
    let last = after.identity(&good).unwrap().text();

    // One log, kept twice.
    let users = Teleport::of(before, AuthOptions::default());
    let servers = Teleport::of(after, AuthOptions::default());
    let events: Vec<Value> = realistic(1, 500, 3, 1).collect();
    let mut uids: BTreeSet<String> = BTreeSet::new();
    let mut append = |events: &[Value]| {
        for teleport in [&users, &servers] {
            let log = teleport.auth.control();
            log.append(events.iter().map(|event| encode(event, Id::OfEvent)));
        }
        uids.extend(
            events
                .iter()
                .map(|event| event["uid"].as_str().unwrap().to_owned()),
        );
        uids.clone()
    };
    append(&events);

    let listener = Listener::before(users.auth.address(), Conduct::Passes);
    let indexer = Indexer::new();
    indexer.write_private("identity", &first);
    let flags = ["--teleport-identity=identity"];
    let mut running = follow(&indexer, &listener.address.to_string(), &flags);
    let mut arrives = |running: &Running, uid: &str| {
        let wanted = append(&[event(uid, "user.login", midnight(1))]);
        wait_until("all events are there", || {
            let found = printed(running);
            (found == wanted)
                .then_some(())
                .ok_or_else(|| running.stderr())
        });
    };
    let renew = |running: &mut Running, identity: &str| {
        let heard = running.stderr().matches("credentials renewed").count();
        indexer.write_private("identity", identity);
        running.hang_up();
        wait_until("the new credentials are in use", || {
            let said = running.stderr();
            let n_renewed = said.matches("credentials renewed").count();
            (n_renewed > heard).then_some(()).ok_or(said)
        });
    };
    arrives(&running, "before");
    renew(&mut running, &both);
    arrives(&running, "users");
    listener.leads_to(servers.auth.address());
    arrives(&running, "servers");
    renew(&mut running, &last);
    arrives(&running, "after");
    // Had it come without both, the server would have been a stranger's.
    assert_eq!(servers.auth.control().n_failed_handshakes(), 0);
    running.terminate();
    let output = running.wait();
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert_eq!(line_with(&output.stderr, "ERROR"), None);
}

#[test]
fn status_tells_until_when_the_identity_is_valid() {
    let teleport = Teleport::start("a.example");
    let indexer = Indexer::new();
    indexer.configure(&teleport.addr(), &format!("http://{NOBODY}"), "");
    let until = |end: DateTime<Utc>| IdentityOptions {
        not_before: Utc::now() - TimeDelta::days(30),
        not_after: end,
        ..IdentityOptions::default()
    };
    let far = Utc::now() + TimeDelta::days(30);
    indexer.identify(&teleport.cluster, &until(far));
    // Makes the state, and ends as nobody is there to write to.
    let args = [
        "backfill",
        "-c",
        "config.toml",
        "--from=2026-01-01",
        "--to=2026-01-02",
    ];
    assert_eq!(indexer.run(&args).code, Some(1));
    let status = |more: &[&'static str]| {
        let output = indexer.run(&[&["status", "-c", "config.toml"], more].concat());
        assert_eq!(output.code, Some(0), "{}", output.stderr);
        output.stdout
    };
    let shown = |end: DateTime<Utc>| end.format("%Y-%m-%dT%H:%M:%SZ").to_string();
    let line = line_with(&status(&[]), "identity ")
        .unwrap()
        .replace(&shown(far), "END");
    assert_snapshot!(line, @"identity       of user teleport-event-indexer, valid until END");
    let soon = Utc::now() + TimeDelta::days(1);
    indexer.identify(&teleport.cluster, &until(soon));
    let line = line_with(&status(&[]), "identity ")
        .unwrap()
        .replace(&shown(soon), "END");
    assert_snapshot!(line, @"identity       of user teleport-event-indexer, valid until END: renew it with `tctl auth sign --format=file --user=teleport-event-indexer --out=identity --overwrite`, or let tbot do it");
    let value: Value = serde_json::from_str(&status(&["--json"])).unwrap();
    let expected = json!({"user": "teleport-event-indexer", "expires": shown(soon),
        "expires_soon": true});
    assert_eq!(value["identity"], expected);
    fs::remove_file(indexer.directory().join("identity")).unwrap();
    let said = status(&[]);
    let line = line_with(&said, "identity ").unwrap();
    assert_snapshot!(line, @"identity       cannot read the identity file identity: No such file or directory (os error 2)");
}
