//! Several clusters in one process: each exact, whatever befalls another.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use chrono::{DateTime, TimeDelta, Utc};
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};
use teleport_event_indexer::demo::auth::{AuthOptions, Method};
use teleport_event_indexer::demo::certs::IdentityOptions;
use teleport_event_indexer::demo::elastic::{Refusal, StandInElasticsearch};
use teleport_event_indexer::demo::events::{self, Id};
use teleport_event_indexer::document::{Encoder, IndexPattern};
use tonic::Code;

use crate::observer::{
    ANYWHERE, address, assert_keeps_to_schema, get, metric, wait_for_metric, wait_for_readiness,
};
use crate::support::program::{Indexer, Output, Running};
use crate::support::rig::{Key, event, midnight, rfc3339, wait_until_said};
use crate::support::seen::masked;
use crate::support::stand_ins::{self, NOBODY, Teleport};
use crate::support::wait_until;

mod faketeleport;
mod led;
mod shown;

/// One Auth Service for each cluster, one Elasticsearch, and the program's folder.
struct Clusters {
    teleports: Vec<(&'static str, Teleport)>,
    elasticsearch: StandInElasticsearch,
    indexer: Indexer,
    /// What each document must be.
    expected: BTreeMap<Key, Value>,
}

impl Clusters {
    /// Of these names, each with a log of its own. Events are read from two days ago on.
    fn new(names: &[&'static str]) -> Self {
        let elasticsearch = stand_ins::elasticsearch_with_template();
        let indexer = Indexer::new();
        let teleports = names.iter().map(|name| {
            let teleport = Teleport::start_with(&domain(name), AuthOptions::default());
            let identity = teleport.cluster.identity(&IdentityOptions::default());
            let path = indexer.directory().join(format!("identity-{name}"));
            let written = identity.expect("the names fit").write(&path);
            written.expect("the folder takes a file");
            (*name, teleport)
        });
        let clusters = Self {
            teleports: teleports.collect(),
            elasticsearch,
            indexer,
            expected: BTreeMap::new(),
        };
        clusters.configure("");
        clusters
    }

    /// Writes `config.toml`; `more` stands behind the tables.
    fn configure(&self, more: &str) {
        let mut text = format!(
            r#"
storage = "state"
timeout = "50ms"
sessions = false
start-time = "{}"
[forward.elasticsearch]
hosts = ["{}"]
batch-age = "20ms"
"#,
            rfc3339(midnight(2)),
            self.elasticsearch.url(),
        );
        for (name, teleport) in &self.teleports {
            let addr = teleport.addr();
            text += &format!(
                "[[cluster]]\nname = \"{name}\"\n[cluster.teleport]\naddr = \"{addr}\"\n\
                 identity = \"identity-{name}\"\nrefresh.interval = \"1s\"\n"
            );
        }
        self.indexer.write("config.toml", &(text + more));
    }

    fn teleport(&self, name: &str) -> &Teleport {
        let mut all = self.teleports.iter();
        &all.find(|(known, _)| *known == name).expect("it is one").1
    }

    /// Puts made-up events of the time between into its log, each of which must come out.
    fn append(&mut self, name: &str, seed: u64, count: u64, from: u64, to: u64) {
        let (from, to) = (midnight(from), midnight(to));
        let values: Vec<Value> = events::generate(seed, count, from, to, &domain(name)).collect();
        self.append_these(name, values);
    }

    fn append_these(&mut self, name: &str, values: Vec<Value>) {
        let mut encoder = Encoder::new(&IndexPattern::default());
        for value in values {
            let event = events::encode(&value, Id::OfEvent);
            let encoded = encoder.encode(&event, &mut Vec::new());
            let encoded = encoded.expect("it can be converted");
            let key = (encoded.index_name.to_string(), encoded.id.to_string());
            let before = self.expected.insert(key, value);
            assert_eq!(before, None, "two events of one id");
            self.teleport(name).auth.control().append([event]);
        }
    }

    fn spawn(&self, args: &[&str]) -> Running {
        self.indexer.spawn(&[args, &["-c", "config.toml"]].concat())
    }

    fn run(&self, code: i32, args: &[&str]) -> Output {
        let output = self.spawn(args).wait();
        assert_eq!(output.code, Some(code), "{args:?}: {}", output.stderr);
        output
    }

    /// What the program says of a mistake, all of it.
    fn mistake(&self, args: &[&str]) -> String {
        let output = self.run(2, args);
        assert_eq!(output.stdout, "");
        masked(&output.stderr, self.indexer.directory())
    }

    fn stored(&self) -> BTreeMap<Key, Value> {
        let documents = self.elasticsearch.control().documents();
        let documents = documents.into_iter().map(|document| {
            let source = serde_json::from_str(&document.source).expect("it is JSON");
            ((document.index, document.id), source)
        });
        documents.collect()
    }

    /// Waits until there are so many documents.
    fn wait_until_stored(&self, n_documents: usize) {
        wait_until(
            &format!("{n_documents} documents are stored"),
            || match self.elasticsearch.control().count() {
                count if count >= n_documents as u64 => Ok(()),
                count => Err(count),
            },
        );
    }

    /// Waits until every event is there, and checks that each is as it was, once, and nothing else.
    fn wait_until_complete(&self) {
        self.wait_until_stored(self.expected.len());
        self.assert_complete();
    }

    fn assert_complete(&self) {
        let stored = self.stored();
        for (key, value) in &self.expected {
            assert_eq!(stored.get(key), Some(value), "{key:?}");
        }
        assert_eq!(stored.len(), self.expected.len());
    }

    fn storage(&self, name: &str) -> PathBuf {
        self.indexer.directory().join("state").join(name)
    }

    fn status(&self, args: &[&str]) -> Value {
        let output = self.run(0, &[&["status", "--json"], args].concat());
        serde_json::from_str(&output.stdout).expect("it prints JSON")
    }
}

fn domain(name: &str) -> String {
    format!("{name}.example.com")
}

/// The position of a cluster's daemon.
fn position(picture: &Value) -> DateTime<Utc> {
    let runs = picture["runs"].as_array().into_iter().flatten();
    let mut daemons = runs.filter(|run| run["kind"] == "daemon");
    let position = &daemons.next().expect("the daemon has run")["position"];
    position
        .as_str()
        .unwrap_or_default()
        .parse()
        .expect("a time")
}

#[test]
fn all_are_exact_over_kills_and_each_keeps_its_own_position() {
    let mut clusters = Clusters::new(&["one", "two"]);
    clusters.teleport("two").auth.control().set_export(false);
    clusters.append("one", 1, 4000, 2, 0);
    clusters.append("two", 2, 4000, 2, 0);
    for part in [1000, 4000, 7000] {
        let mut running = clusters.spawn(&["start"]);
        clusters.wait_until_stored(part);
        running.kill();
    }
    let mut running = clusters.spawn(&ANYWHERE);
    clusters.wait_until_complete();
    let page = address(&running);
    wait_for_readiness(&page, 200, "ready");
    // One goes on while the other stands still.
    let control = clusters.teleport("two").auth.control();
    for method in [Method::Search, Method::ListChunks] {
        control.fail_next(method, 1_000_000, Code::Unavailable);
    }
    let now = Utc::now();
    let live = (0..50).map(|n| event(format!("live-{n}"), "user.login", now));
    clusters.append_these("one", live.collect());
    clusters.wait_until_complete();
    wait_until("the position of one alone has gone on", || {
        let picture = get(&page, "/status.json").success().json();
        let [one, two] = [0, 1].map(|n| position(&picture["clusters"][n]));
        (one > two).then_some(()).ok_or(format!("{one} {two}"))
    });

    let picture = get(&page, "/status.json").success().json();
    assert_keeps_to_schema(&picture);
    let of = |n: usize| picture["clusters"][n].clone();
    assert_eq!(
        (&of(0)["name"], &of(1)["name"]),
        (&json!("one"), &json!("two"))
    );
    assert_eq!(of(1)["cluster"], "two.example.com");
    let mode = |n: usize| of(n)["runs"][0]["api"].clone();
    assert_eq!((mode(0), mode(1)), (json!("export"), json!("search")));
    running.terminate();
    assert_eq!(running.wait().code, Some(0));

    let picture = clusters.status(&[]);
    assert_keeps_to_schema(&picture);
    let alone = clusters.status(&["--cluster", "two"]);
    assert_keeps_to_schema(&alone);
    assert_eq!(alone["cluster"], "two.example.com");
    let [one, two] = [0, 1].map(|n| position(&picture["clusters"][n]));
    assert_eq!(position(&alone), two);
    assert!(one > two, "{one} {two}");
    let text = clusters.run(0, &["status"]).stdout;
    for line in ["name           one", "cluster        two.example.com"] {
        assert!(text.lines().any(|said| said == line), "{text}");
    }
}

#[test]
fn one_that_cannot_go_on_is_told_again_and_again_and_the_others_do() {
    let mut clusters = Clusters::new(&["good", "refused"]);
    clusters.configure(&format!(
        "[[cluster]]\nname = \"away\"\n[cluster.teleport]\naddr = \"{NOBODY}\"\n\
         identity = \"identity-good\"\n"
    ));
    clusters.append("good", 1, 500, 2, 0);
    clusters.run(
        0,
        &["start", "--exit-on-last-event", "--cluster", "refused"],
    );
    let identity = clusters.indexer.directory().join("identity-refused");
    let good_identity = fs::read(&identity).expect("it is there");
    fs::write(&identity, "no identity").expect("the folder takes it");
    let level = ["--log-level", "warn,teleport_event_indexer::observer=info"];
    let mut running = clusters.spawn(&[&ANYWHERE[..], &level].concat());
    clusters.wait_until_complete();
    let said = wait_until_said(&running, "is not followed, beginning anew");
    for part in [
        "ERROR",
        "follow{cluster=refused}",
        "mend=",
        "identity-refused",
    ] {
        assert!(said.contains(part), "{said}");
    }
    let said = wait_until_said(&running, "trying again");
    assert!(said.contains("follow{cluster=away}"), "{said}");
    // Once more.
    wait_until("it is told twice", || {
        let said = running.stderr();
        let n_told = said.matches("is not followed, beginning anew").count();
        (n_told >= 2).then_some(()).ok_or(said)
    });
    let page = address(&running);
    let ready = |name: &str| format!("event_indexer_ready{{cluster=\"{name}\"}}");
    wait_for_metric(&page, &ready("good"), 1.0);
    wait_for_metric(&page, &ready("refused"), 0.0);
    wait_for_readiness(&page, 503, "refused: not followed since ");
    wait_for_readiness(&page, 503, "away: Teleport fails since ");
    let picture = get(&page, "/status.json").success().json();
    assert_keeps_to_schema(&picture);
    assert_eq!(
        (&picture["ready"], &picture["clusters"][0]["ready"]),
        (&json!(false), &json!(true))
    );
    let state = picture["state"].as_str().unwrap_or_default();
    assert!(
        state.starts_with("2 of 3 clusters held up; refused: "),
        "{state}"
    );
    // Between two tries it has no lock, but is known.
    let args = ["status", "--listen-addr", &page, "--cluster", "refused"];
    let text = clusters.run(0, &args).stdout;
    assert!(text.contains("\nnow            "), "{text}");
    assert!(text.contains("not followed since "), "{text}");
    let said = clusters.run(1, &["start"]).stderr;
    assert!(
        said.contains("another daemon already works in state"),
        "{said}"
    );

    // Mended while it runs: the run begins anew, and the others have not noticed. The events are there
    // before: it lists the day before yesterday when it begins, and then not for ten minutes.
    clusters.append("refused", 2, 500, 2, 0);
    fs::write(&identity, good_identity).expect("the folder takes it");
    clusters.append("good", 3, 500, 1, 0);
    clusters.wait_until_complete();
    wait_for_metric(&page, &ready("refused"), 1.0);
    running.terminate();
    assert_eq!(running.wait().code, Some(0));
}

/// Told to stop between two tries: there is nothing left to be done, and so nothing has failed.
#[test]
fn one_that_waits_to_begin_anew_ends_in_order() {
    let clusters = Clusters::new(&["refused"]);
    clusters.indexer.write("identity-refused", "no identity");
    let mut running = clusters.spawn(&["start"]);
    wait_until_said(&running, "is not followed, beginning anew");
    running.terminate();
    let output = running.wait();
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    let mut lines = output.stderr.lines();
    let is_end = |line: &str| line.contains(" ended events=0 ");
    assert!(lines.any(is_end), "{}", output.stderr);
}

#[test]
fn a_checkpoint_that_cannot_be_written_is_counted_and_holds_up_its_own_cluster() {
    let mut clusters = Clusters::new(&["good", "stuck"]);
    for (name, seed) in [("good", 1), ("stuck", 2)] {
        clusters.teleport(name).auth.control().set_export(false);
        clusters.append(name, seed, 100, 2, 0);
    }
    let mut running = clusters.spawn(&ANYWHERE);
    clusters.wait_until_complete();
    let page = address(&running);
    let failed = |name: &str| {
        format!(
            "event_indexer_errors_total{{cluster=\"{name}\",stage=\"commit\",reason=\"other\"}}"
        )
    };
    assert_eq!(metric(&page, &failed("stuck")), Some(0.0));
    // SQLite refuses what each commit changes, and nothing else.
    let state = clusters.storage("stuck").join("state.sqlite");
    let state =
        Connection::open_with_flags(state, OpenFlags::SQLITE_OPEN_READ_WRITE).expect("it is there");
    let refuse = "CREATE TRIGGER refuse BEFORE UPDATE OF created ON runs
                  BEGIN SELECT RAISE(ABORT, 'not now'); END";
    state.execute_batch(refuse).expect("SQLite takes it");
    for (name, seed) in [("good", 3), ("stuck", 4)] {
        let now = Utc::now();
        let live = events::generate(seed, 50, now - TimeDelta::seconds(20), now, &domain(name));
        clusters.append_these(name, live.collect());
    }
    let said = wait_until_said(&running, "the checkpoint could not be written");
    assert!(said.contains("follow{cluster=stuck}"), "{said}");
    wait_until("it is counted", || {
        let count = metric(&page, &failed("stuck"));
        (count >= Some(1.0))
            .then_some(())
            .ok_or_else(|| format!("{count:?}"))
    });
    assert_eq!(metric(&page, &failed("good")), Some(0.0));
    state
        .execute_batch("DROP TRIGGER refuse")
        .expect("SQLite takes it");
    clusters.wait_until_complete();
    let ready = "event_indexer_ready{cluster=\"stuck\"}";
    wait_for_metric(&page, ready, 1.0);
    running.terminate();
    assert_eq!(running.wait().code, Some(0));
}

#[test]
fn what_elasticsearch_refuses_of_one_lies_with_that_one() {
    let mut clusters = Clusters::new(&["one", "two"]);
    let day = midnight(1);
    let event = |name: &str, n: u32| {
        let mut event = event(format!("{name}-{n}"), "user.login", day);
        event["cluster_name"] = domain(name).into();
        event
    };
    for name in ["one", "two"] {
        let events = (0..20).map(|n| event(name, n)).collect();
        clusters.append_these(name, events);
    }
    let refused = domain("two");
    clusters.elasticsearch.control().add_rule(move |operation| {
        let is_of_two = operation.contains(&refused);
        is_of_two.then(Refusal::mapping_failure)
    });
    clusters.run(0, &["start", "--exit-on-last-event"]);
    let stored = clusters.stored();
    assert_eq!(stored.len(), 20);
    assert!(
        stored
            .values()
            .all(|event| event["cluster_name"] == "one.example.com")
    );
    let list = |name| {
        clusters
            .run(0, &["dead-letters", "list", "--json", "--cluster", name])
            .stdout
    };
    assert_eq!(list("two").matches("user.login").count(), 20);
    assert_eq!(list("one").matches("user.login").count(), 0);
    assert!(clusters.storage("two").join("state.sqlite").exists());
    let to = rfc3339(midnight(0));
    let from = rfc3339(midnight(2));
    let range = ["backfill", "--from", &from, "--to", &to, "--cluster", "one"];
    let said = clusters.run(0, &range).stderr;
    assert!(said.contains("one.example.com"), "{said}");
    let picture = clusters.status(&[]);
    let n_runs = |n: usize| picture["clusters"][n]["runs"].as_array().map(Vec::len);
    assert_eq!((n_runs(0), n_runs(1)), (Some(2), Some(1)));
}

#[test]
fn what_is_about_one_cluster_asks_which() {
    let clusters = Clusters::new(&["one", "two"]);
    insta::assert_snapshot!(clusters.mistake(&["dead-letters", "list"]), @r#"error: this is about one cluster, and the configuration file has several: choose it with --cluster, which may be one, two"#);
    insta::assert_snapshot!(clusters.mistake(&["start", "--dry-run"]), @r#"error: --dry-run is about one cluster, and the configuration file has several: choose it with --cluster"#);
    insta::assert_snapshot!(clusters.mistake(&["start", "--cluster", "three"]), @r#"error: --cluster three: there is no such table [[cluster]] in the configuration file, only one, two"#);
    let of_one = ["start", "--exit-on-last-event", "--cluster", "one"];
    clusters.run(0, &of_one);
    assert!(clusters.storage("one").exists() && !clusters.storage("two").exists());
    // The other has nothing to tell yet, which hides nothing of the first.
    let output = clusters.run(1, &["status"]);
    assert!(
        output.stdout.contains("one.example.com"),
        "{}",
        output.stdout
    );
    assert!(
        output.stdout.contains("there is no state in state/two"),
        "{}",
        output.stdout
    );
    // A table was renamed.
    let (from, to) = (
        clusters.storage("former"),
        clusters.indexer.directory().join("state"),
    );
    fs::rename(clusters.storage("one"), &from).expect("it can be moved");
    let said = clusters.run(0, &["start", "--exit-on-last-event"]).stderr;
    let told = "state/former holds the state of a cluster that is not followed";
    assert_eq!(said.matches(told).count(), 1, "{said}");
    assert!(said.contains("cluster=\"one.example.com\""), "{said}");
    // What a time with one cluster has left must not be forgotten.
    fs::rename(from.join("state.sqlite"), to.join("state.sqlite")).expect("it can be moved");
    insta::assert_snapshot!(clusters.mistake(&["start"]), @r#"error: state holds the state of a time with one cluster, and each of several has a directory of its own: move all files in state into state/NAME, NAME being the table [[cluster]] of that cluster, or elsewhere if it is not wanted"#);
}

#[test]
fn both_ends_of_each_are_checked() {
    let clusters = Clusters::new(&["one", "two"]);
    // The stand-in has no policy.
    let output = clusters.run(1, &["check"]);
    for part in [
        "ok    one: Teleport ",
        "cluster one.example.com",
        "ok    two: Teleport ",
        "ok    Elasticsearch ",
    ] {
        assert!(output.stdout.contains(part), "{}", output.stdout);
    }
    let identity = clusters.indexer.directory().join("identity-two");
    fs::write(&identity, "no identity").expect("the folder takes it");
    let output = clusters.run(1, &["check"]);
    assert!(output.stdout.contains("FAIL  two: "), "{}", output.stdout);
    assert!(
        output.stdout.contains("ok    one: Teleport "),
        "{}",
        output.stdout
    );
    let output = clusters.run(0, &["check", "--show-config"]);
    assert_eq!(output.stdout.matches("\n[[cluster]]\n").count(), 2);
}
