//! The program between the project's own stand-ins, and a record of what must come out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;

use chrono::{DateTime, Days, SecondsFormat, Utc};
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};
use teleport_event_indexer::checkpoint::{
    Checkpoint, DeadLetterFilter, Gap, RunKind, RunSummary, Summary,
};
use teleport_event_indexer::demo::auth::{AuthControl, AuthOptions, RecordingFault, StandInAuth};
use teleport_event_indexer::demo::certs::{Cluster, IdentityOptions};
use teleport_event_indexer::demo::elastic::{
    ElasticsearchControl, ElasticsearchOptions, StandInElasticsearch,
};
use teleport_event_indexer::demo::events::{self, Id};
use teleport_event_indexer::document::{Encoder, IndexPattern};
use teleport_event_indexer::event::AuditEvent;
use tokio::runtime::Runtime;

use super::faults::Faults;
use super::program::{Indexer, Output, Running};
use super::stand_ins;
use super::wait_until;

/// The name of the made-up cluster.
pub(crate) const CLUSTER: &str = "rig.example.com";

/// Both stand-ins, a folder for the program, and the events that the audit log holds.
pub(crate) struct Rig {
    auth: StandInAuth,
    elasticsearch: StandInElasticsearch,
    indexer: Indexer,
    encoder: Encoder,
    /// What each document must be, by index and id.
    expected: BTreeMap<Key, Value>,
    /// When the event of each took place, ms since 1970.
    times: BTreeMap<Key, i64>,
    // Last, so that the servers on it end first.
    runtime: Runtime,
}

/// Index and id of a document.
pub(crate) type Key = (String, String);

impl Rig {
    /// Starts both stand-ins and writes `config.toml`: `top` stands above its tables,
    /// `elasticsearch` in the table of that name.
    pub(crate) fn new(top: &str, elasticsearch: &str) -> Self {
        let options = (AuthOptions::default(), ElasticsearchOptions::default());
        Self::with(options.0, options.1, top, elasticsearch)
    }

    /// The same with options.
    pub(crate) fn with(
        auth: AuthOptions,
        elasticsearch: ElasticsearchOptions,
        top: &str,
        more: &str,
    ) -> Self {
        let runtime = Runtime::new().expect("the system gives us threads");
        let cluster = Cluster::new(CLUSTER).expect("the name fits into a certificate");
        let (auth, elasticsearch) = runtime.block_on(async {
            let auth = StandInAuth::start(&cluster, auth).await;
            let elasticsearch = StandInElasticsearch::start(elasticsearch).await;
            (
                auth.expect("there is a free port"),
                elasticsearch.expect("there is a free port"),
            )
        });
        let indexer = Indexer::new();
        let identity = cluster.identity(&IdentityOptions::default());
        let identity = identity.expect("the names fit");
        identity
            .write(&indexer.directory().join("identity"))
            .expect("the folder takes a file");
        let rig = Self {
            auth,
            elasticsearch,
            indexer,
            encoder: Encoder::new(&IndexPattern::default()),
            expected: BTreeMap::new(),
            times: BTreeMap::new(),
            runtime,
        };
        rig.configure(top, more);
        let template = json!({"index_patterns": ["audit-events-*"]});
        rig.put("/_index_template/audit-events", &template);
        rig
    }

    /// Puts something into Elasticsearch.
    pub(crate) fn put(&self, path: &str, body: &Value) {
        stand_ins::put(&self.elasticsearch, path, body);
    }

    /// Writes `config.toml` anew.
    pub(crate) fn configure(&self, top: &str, elasticsearch: &str) {
        // Made-up uploads have no recordings unless a test makes some.
        let sessions = if top.contains("sessions") {
            ""
        } else {
            "sessions = false"
        };
        let text = format!(
            r#"
storage = "state"
timeout = "50ms"
{sessions}
{top}
[teleport]
addr = "{}"
identity = "identity"
[forward.elasticsearch]
hosts = ["{}"]
batch-age = "20ms"
{elasticsearch}
"#,
            self.auth.address(),
            self.elasticsearch.url(),
        );
        self.indexer.write("config.toml", &text);
    }

    /// What steers the stand-in Auth Service.
    pub(crate) fn auth(&self) -> &AuthControl {
        self.auth.control()
    }

    /// Where Teleport listens.
    pub(crate) fn auth_address(&self) -> SocketAddr {
        self.auth.address()
    }

    /// Does something that waits.
    pub(crate) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Where Elasticsearch listens.
    pub(crate) fn elasticsearch_address(&self) -> SocketAddr {
        self.elasticsearch.address()
    }

    /// The folder for the program.
    pub(crate) fn indexer(&self) -> &Indexer {
        &self.indexer
    }

    /// What steers the stand-in Elasticsearch.
    pub(crate) fn elasticsearch(&self) -> &ElasticsearchControl {
        self.elasticsearch.control()
    }

    /// Puts events into the audit log. Each must come out as a document.
    pub(crate) fn append(&mut self, events: impl IntoIterator<Item = Value>) {
        let events: Vec<AuditEvent> = events
            .into_iter()
            .map(|value| {
                let event = events::encode(&value, Id::OfEvent);
                let key = self.key(&event);
                let time_ms = event.time.expect("it has one").millis();
                self.times.insert(key.clone(), time_ms);
                let before = self.expected.insert(key, value);
                assert_eq!(before, None, "two events of one id");
                event
            })
            .collect();
        self.auth().append(events);
    }

    /// Has a recording of a session. Those of its events that are wanted must come out, by their place
    /// and as they are.
    pub(crate) fn record(
        &mut self,
        session: &str,
        events: &[Value],
        fault: Option<RecordingFault>,
        is_wanted: impl Fn(usize, &Value) -> bool,
    ) {
        let encoded = events
            .iter()
            .map(|value| events::encode(value, Id::OfEvent));
        self.auth().record(session, encoded, fault);
        for (place, value) in events.iter().enumerate() {
            if is_wanted(place, value) {
                let mut event = events::encode(value, Id::OfEvent);
                let mut value = value.clone();
                if value.get("sid").is_none() {
                    value["sid"] = session.into();
                    event.body = events::struct_bytes(&value).into();
                    event.session = value.get("uid").is_none().then(|| session.into());
                }
                let key = self.key(&event);
                let before = self.expected.insert(key, value);
                assert_eq!(before, None, "two events of one id");
            }
        }
    }

    /// Puts events into the audit log of which none may come out.
    pub(crate) fn append_unwanted(&self, events: impl IntoIterator<Item = Value>) {
        let events = events.into_iter();
        self.auth()
            .append(events.map(|value| events::encode(&value, Id::OfEvent)));
    }

    /// The document that an event becomes.
    pub(crate) fn key(&mut self, event: &AuditEvent) -> Key {
        let encoded = self.encoder.encode(event, &mut Vec::new());
        let encoded = encoded.expect("it can be converted");
        (encoded.index_name.to_string(), encoded.id.to_string())
    }

    /// How many events the log holds, of those that make documents.
    pub(crate) fn n_events(&self) -> usize {
        self.expected.len()
    }

    /// Sets an environment variable for all runs from now on.
    pub(crate) fn set_env(&mut self, name: &str, value: &str) {
        self.indexer.set_env(name, value);
    }

    /// Lets faults of the system befall all runs from now on.
    pub(crate) fn befall(&mut self) -> Faults {
        self.indexer.befall()
    }

    /// Starts the program with this configuration.
    pub(crate) fn spawn(&self, args: &[impl AsRef<str>]) -> Running {
        let args = args.iter().map(AsRef::as_ref);
        let args: Vec<&str> = args.chain(["-c", "config.toml"]).collect();
        self.indexer.spawn(&args)
    }

    /// Runs the program to its end.
    pub(crate) fn run(&self, args: &[impl AsRef<str>]) -> Output {
        self.spawn(args).wait()
    }

    /// The same, started by another program, which these words call.
    pub(crate) fn run_through(&self, words: &[&str], args: &[&str]) -> Output {
        let args = [args, &["-c", "config.toml"]].concat();
        self.indexer.spawn_through(words, &args).wait()
    }

    /// Runs it and expects an exit code.
    pub(crate) fn run_to(&self, code: i32, args: &[impl AsRef<str>]) -> Output {
        let output = self.run(args);
        assert_eq!(output.code, Some(code), "{}", output.stderr);
        output
    }

    /// The folder of the state file.
    pub(crate) fn storage(&self) -> PathBuf {
        self.indexer.directory().join("state")
    }

    /// The state file in short, if the program has made one.
    pub(crate) fn try_summary(&self) -> Option<Summary> {
        // Between making the file and making its tables the program may be killed, or be slow.
        let checkpoint = Checkpoint::open_existing_read_only(&self.storage()).ok()??;
        Some(checkpoint.summary().expect("the state can be read"))
    }

    /// The state file in short.
    pub(crate) fn summary(&self) -> Summary {
        self.try_summary().expect("there is a state file")
    }

    /// The daemon's run.
    pub(crate) fn daemon(&self) -> RunSummary {
        let mut runs = self.summary().runs.into_iter();
        runs.find(|run| run.kind == RunKind::Daemon)
            .expect("the daemon has run")
    }

    /// The newest backfill's run.
    pub(crate) fn backfill(&self) -> RunSummary {
        self.try_backfill().expect("a backfill has run")
    }

    /// The same, if one has come so far.
    pub(crate) fn try_backfill(&self) -> Option<RunSummary> {
        let mut runs = self.try_summary()?.runs.into_iter().rev();
        runs.find(|run| run.kind != RunKind::Daemon)
    }

    /// What Elasticsearch holds of the audit log, by index and id, and what the program has
    /// written of its own.
    pub(crate) fn stored(&self) -> (BTreeMap<Key, Value>, Vec<Value>) {
        let mut stored = BTreeMap::new();
        let mut own = Vec::new();
        for document in self.elasticsearch().documents() {
            let source: Value = serde_json::from_str(&document.source).expect("it is JSON");
            if source["event"]
                .as_str()
                .is_some_and(|kind| kind.starts_with("event_indexer."))
            {
                own.push(source);
            } else {
                stored.insert((document.index, document.id), source);
            }
        }
        (stored, own)
    }

    /// Checks that every event but those of `dead` types is there, as it was, once, and nothing
    /// else; and that the others are dead letters.
    pub(crate) fn assert_complete_but(&self, dead: &[&str]) {
        self.assert_complete_but_for(&[], dead);
    }

    /// The same, and that those of `missing` types are nowhere.
    pub(crate) fn assert_complete_but_for(&self, missing: &[&str], dead: &[&str]) {
        let (stored, _) = self.stored();
        let is_of =
            |kinds: &[&str], event: &Value| kinds.iter().any(|kind| event["event"] == **kind);
        let mut n_stored = 0;
        for (key, event) in &self.expected {
            if !is_of(dead, event) && !is_of(missing, event) {
                assert_eq!(stored.get(key), Some(event), "{key:?}");
                n_stored += 1;
            }
        }
        assert_eq!(stored.len(), n_stored);
        if self.try_summary().is_some() {
            let letters = self.dead_letters();
            let expected = self.expected.iter();
            let expected = expected.filter(|(_, event)| is_of(dead, event));
            let expected: BTreeSet<Key> = expected.map(|(key, _)| key.clone()).collect();
            assert_eq!(letters, expected);
        }
    }

    /// Checks that every event is there, as it was, once, and nothing else.
    pub(crate) fn assert_complete(&self) {
        self.assert_complete_but(&[]);
    }

    /// The gaps that are open, of all runs.
    pub(crate) fn open_gaps(&self) -> Vec<Gap> {
        let checkpoint = Checkpoint::open_existing_read_only(&self.storage());
        let checkpoint = checkpoint.expect("it can be read").expect("it is there");
        let run = checkpoint.summary().expect("it can be read").runs[0].id;
        checkpoint.open_gaps(run, true).expect("it can be read")
    }

    /// Checks that every event is there, as it was, once, or lies in an open gap, and nothing else;
    /// the types of those that lie in gaps.
    pub(crate) fn assert_complete_but_for_gaps(&self) -> Vec<String> {
        let (stored, _) = self.stored();
        let gaps = self.open_gaps();
        let mut missing = Vec::new();
        for (key, event) in &self.expected {
            let time_ms = self.times[key];
            match stored.get(key) {
                Some(found) => assert_eq!(found, event, "{key:?}"),
                None => {
                    let is_told = |gap: &Gap| (gap.from_ms..gap.to_ms).contains(&time_ms);
                    assert!(
                        gaps.iter().any(is_told),
                        "{} of {time_ms} is in no gap of {gaps:#?}",
                        event["uid"]
                    );
                    missing.push(event["event"].as_str().unwrap_or_default().to_owned());
                }
            }
        }
        assert_eq!(stored.len() + missing.len(), self.expected.len());
        missing
    }

    /// Waits until every event is there.
    pub(crate) fn wait_until_complete(&self) {
        let expected = self.expected.len() as u64;
        self.wait_until_stored(expected);
        self.assert_complete();
    }

    /// Waits until there are so many documents.
    pub(crate) fn wait_until_stored(&self, n_documents: u64) {
        wait_until(
            &format!("{n_documents} documents are stored"),
            || match self.elasticsearch().count() {
                count if count >= n_documents => Ok(()),
                count => Err(count),
            },
        );
    }

    fn dead_letters(&self) -> BTreeSet<Key> {
        let checkpoint = Checkpoint::open_existing_read_only(&self.storage());
        let checkpoint = checkpoint.expect("it can be read").expect("it is there");
        let letters = checkpoint
            .dead_letters(&DeadLetterFilter::default(), 1_000_000)
            .expect("they are there");
        let keys = letters.into_iter();
        keys.map(|letter| (letter.index_name, letter.document_id))
            .collect()
    }

    /// Documents that wait in the state file for their index.
    pub(crate) fn waiting(&self) -> BTreeSet<Key> {
        let path = self.storage().join("state.sqlite");
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY);
        let connection = connection.expect("there is a state file");
        let mut statement = connection
            .prepare("SELECT index_name, document_id FROM blocked")
            .expect("the table has these columns");
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
        rows.expect("there are no parameters")
            .map(|row| row.expect("the columns are of these types"))
            .collect()
    }

    /// The first invariant: no position is past an event that is neither stored nor kept as a dead
    /// letter, does not wait on the disk for its index, and lies in no gap. May be asked at any time.
    pub(crate) fn assert_nothing_was_passed(&self) {
        // In this order: what settles in between cannot hide what was passed before.
        let Some(summary) = self.try_summary() else {
            return;
        };
        let waiting = self.waiting();
        let letters = self.dead_letters();
        let gaps = match summary.runs.is_empty() {
            true => Vec::new(),
            false => self.open_gaps(),
        };
        let (stored, _) = self.stored();
        for run in &summary.runs {
            let range = run.from_ms..run.position_ms;
            for (key, time_ms) in &self.times {
                let is_told = |gap: &Gap| (gap.from_ms..gap.to_ms).contains(time_ms);
                let is_settled = stored.contains_key(key)
                    || letters.contains(key)
                    || waiting.contains(key)
                    || gaps.iter().any(is_told);
                assert!(
                    is_settled || !range.contains(time_ms),
                    "{key:?} of {time_ms} was passed by {run:?}"
                );
            }
        }
    }
}

/// The midnight, UTC, with which the day so many days ago began.
pub(crate) fn midnight(days_ago: u64) -> DateTime<Utc> {
    let day = Utc::now().date_naive() - Days::new(days_ago);
    day.and_time(chrono::NaiveTime::MIN).and_utc()
}

/// As the command line takes it.
pub(crate) fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// A small event of this type.
pub(crate) fn event(uid: impl ToString, kind: &str, time: DateTime<Utc>) -> Value {
    json!({"event": kind, "code": "T0000I", "uid": uid.to_string(), "time": rfc3339(time),
        "ei": 0, "cluster_name": CLUSTER})
}

/// `count` realistic events between these days ago, the later one exclusive.
pub(crate) fn realistic(seed: u64, count: u64, from: u64, to: u64) -> impl Iterator<Item = Value> {
    events::generate(seed, count, midnight(from), midnight(to), CLUSTER)
}

/// Arguments of a backfill between these days ago.
pub(crate) fn backfill(from: u64, to: u64) -> Vec<String> {
    let [from, to] = [from, to].map(|days| rfc3339(midnight(days)));
    vec!["backfill".into(), "--from".into(), from, "--to".into(), to]
}

/// The last line that `text` holds with this in it.
pub(crate) fn line_with<'t>(text: &'t str, part: &str) -> Option<&'t str> {
    text.lines().rev().find(|line| line.contains(part))
}

/// Waits until a program has said this, and gives the line.
pub(crate) fn wait_until_said(program: &Running, part: &str) -> String {
    wait_until(&format!("it says {part:?}"), || {
        let said = program.stderr();
        line_with(&said, part).map(str::to_owned).ok_or(said)
    })
}
