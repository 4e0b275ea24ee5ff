//! A state that moves from a file into a real Elasticsearch, and back.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use bytes::Bytes;
use serde_json::{Value, json};
use teleport_event_indexer::event::{AuditEvent, Timestamp};

use crate::leader::{LEADS, install, says, started};
use crate::support::elasticsearch::{Elasticsearch, Options};
use crate::support::program::{Output, Running};
use crate::support::rig::{CLUSTER, Rig, midnight, realistic, rfc3339};
use crate::support::wait_until;

const INDICES: &str = "moved-*";
const LETTERS: &str = "teleport-event-indexer-dead-letter";

struct Moved<'s> {
    rig: Rig,
    server: &'s Elasticsearch,
}

impl Moved<'_> {
    fn spawn(&self, place: &str, args: &[&str]) -> Running {
        let args = [args, &["--state", place]].concat();
        started(&self.rig, self.server, &args)
    }

    fn run(&self, place: &str, args: &[&str], code: i32) -> Output {
        let output = self.spawn(place, args).wait();
        assert_eq!(output.code, Some(code), "{args:?}: {}", output.stderr);
        output
    }

    fn json(&self, place: &str, args: &[&str]) -> Value {
        let output = self.run(place, args, 0);
        serde_json::from_str(&output.stdout).expect("it prints JSON")
    }

    /// Follows the log to its end; each event is there, once.
    fn follows(&self, place: &str) {
        self.run(place, &["start", "--exit-on-last-event"], 0);
        self.server.refresh(INDICES);
        let documents = self.server.all_documents(INDICES);
        let uids = documents.values().filter_map(|d| d["uid"].as_str());
        let (n_documents, uids) = (uids.clone().count(), uids.collect::<BTreeSet<_>>());
        let all = self.rig.n_events();
        assert_eq!((n_documents, uids.len()), (all, all));
    }

    fn moves(&self, to: &str, code: i32) -> Output {
        self.run("sqlite", &["state", "move", "--to", to], code)
    }

    /// What is to be the same in both places.
    fn told(&self, place: &str) -> Value {
        let status = wait_until("a search shows the letters", || {
            let status = self.json(place, &["status", "--json"]);
            let is_shown = status["dead_letters"]["count"] == 2;
            is_shown.then_some(status).ok_or("not yet")
        });
        json!([
            status["runs"][0]["position"],
            status["runs"][0]["counts"],
            status["gaps"],
            status["dead_letters"],
        ])
    }

    fn head(&self) -> Value {
        let path = format!("/teleport-event-indexer-work/_doc/state:{CLUSTER}");
        self.server.request("GET", &path, &Value::Null).json()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.rig.storage().join(name)
    }

    /// The one that was put aside.
    fn aside(&self) -> PathBuf {
        let names = fs::read_dir(self.rig.storage()).expect("it is there");
        let mut names = names.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let name = names.find(|name| name.starts_with("state-"));
        let name = name.expect("it was kept");
        self.file(&name)
    }
}

fn not_finished(to: &str) -> String {
    format!("the move of the state in state is not finished: run `state move --to {to}` once more")
}

#[test]
fn a_state_moves_and_none_is_begun_anew() {
    let Some(server) = Elasticsearch::start(Options {
        extra: "http.max_content_length=2mb",
        ..Options::default()
    }) else {
        return;
    };
    install(&server, "moved");
    let start = rfc3339(midnight(3));
    let top = format!("start-time = {start:?}");
    let settings = "index = \"moved-%Y.%m.%d\"\ninstall.template = \"moved\"";
    let mut rig = Rig::new(&top, settings);
    let mut events: Vec<Value> = realistic(3, 60, 3, 1).collect();
    // Too large for a request.
    events[7]["message"] = "x".repeat(3 << 20).into();
    let later = events.split_off(20);
    rig.append(events);
    let noon = midnight(3) + chrono::TimeDelta::hours(12);
    rig.auth().append([AuditEvent {
        event_type: Bytes::from_static(b"1.broken"),
        id: Bytes::from_static(b"raw"),
        time: Some(Timestamp::from_millis(noon.timestamp_millis())),
        index: 0,
        body: Bytes::from_static(b"\x0a\x7fno Struct at all"),
        session: None,
    }]);
    let mut moved = Moved {
        rig,
        server: &server,
    };
    assert!(moved.moves("elasticsearch", 1).stderr.contains("no state"));
    moved.follows("sqlite");
    let before = moved.told("sqlite");

    // Into Elasticsearch.
    let said = moved.moves("elasticsearch", 0).stderr;
    assert!(
        said.contains(&format!("in Elasticsearch now, as {CLUSTER}")),
        "{said}"
    );
    assert!(!moved.file("state.sqlite").exists());
    assert_eq!(moved.told("elasticsearch"), before);
    let mut later = later.into_iter();
    moved.rig.append(later.by_ref().take(10));
    moved.follows("elasticsearch");

    // As after a crash at the very end: nobody else is let in, and the move is brought to its end.
    let head = moved.head();
    fs::rename(moved.aside(), moved.file("state.sqlite.leaving")).unwrap();
    let refused = moved.run("sqlite", &["start"], 1).stderr;
    assert!(
        refused.contains(&not_finished("elasticsearch")),
        "{refused}"
    );
    let refused = moved.run("sqlite", &["status"], 1).stderr;
    assert!(
        refused.contains(&not_finished("elasticsearch")),
        "{refused}"
    );
    let refused = moved.moves("sqlite", 2).stderr;
    assert!(
        refused.contains("a move the other way is not finished"),
        "{refused}"
    );
    moved.moves("elasticsearch", 0);
    assert_eq!(moved.head(), head);

    // A state that is in use does not move, nor does another one take its place.
    let mut leader = moved.spawn("elasticsearch", &["start"]);
    says(&mut leader, LEADS, 1);
    let refused = moved.moves("sqlite", 1).stderr;
    assert!(refused.contains("leads with the state"), "{refused}");
    leader.kill();
    let before = moved.told("elasticsearch");

    // Back, once the lease of the dead one has ended.
    let said = moved.moves("sqlite", 0).stderr;
    assert!(
        said.contains("waiting until its lease of 10 s has ended"),
        "{said}"
    );
    assert_eq!(moved.told("sqlite"), before);
    assert_eq!(moved.head()["_source"]["image"]["bytes"], 0);
    wait_until("its letters are gone there", || {
        server.refresh(LETTERS);
        let count = server.count(LETTERS);
        (count == 0).then_some(()).ok_or(count)
    });
    let refused = moved.run("elasticsearch", &["start"], 2).stderr;
    assert!(
        refused.contains("does not lie in Elasticsearch, but in"),
        "{refused}"
    );
    moved.rig.append(later.by_ref().take(10));
    moved.follows("sqlite");
    let refused = moved.moves("sqlite", 2).stderr;
    assert!(refused.contains("there is a state file in"), "{refused}");

    // As after a crash at the very end.
    fs::rename(
        moved.file("state.sqlite"),
        moved.file("state.sqlite.coming"),
    )
    .unwrap();
    let refused = moved.run("sqlite", &["start"], 1).stderr;
    assert!(refused.contains(&not_finished("sqlite")), "{refused}");
    let refused = moved.moves("elasticsearch", 2).stderr;
    assert!(
        refused.contains("a move the other way is not finished"),
        "{refused}"
    );
    moved.moves("sqlite", 0);

    // And there again, where what was left before does not count; broken off at once.
    fs::rename(
        moved.file("state.sqlite"),
        moved.file("state.sqlite.leaving"),
    )
    .unwrap();
    let refused = moved.run("elasticsearch", &["start"], 2).stderr;
    assert!(
        refused.contains("does not lie in Elasticsearch, but in"),
        "{refused}"
    );
    moved.moves("elasticsearch", 0);
    moved.told("elasticsearch");
    moved.rig.append(later);
    moved.follows("elasticsearch");
}
