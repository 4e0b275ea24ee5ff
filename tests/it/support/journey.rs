//! One audit log's way into one Elasticsearch: the program between a real Elasticsearch and
//! `faketeleport`, with indices, template and writer of its own, and the comparison of both ends.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Days, Utc};
use serde_json::{Number, Value};
use teleport_event_indexer::config::{Config, Needs, sources};
use teleport_event_indexer::elastic;

use super::elasticsearch::{Client, Elasticsearch, PASSWORD as SUPERUSER_PASSWORD};
use super::faketeleport::FakeTeleport;
use super::program::{Indexer, Output, Running};
use super::wait_until;

/// The password of the writers, who may do nothing else.
pub(crate) const PASSWORD: &str = "a long password";

/// The largest whole number that a double holds along with all below it.
const EXACT: i64 = 1 << 53;

/// The installed program, ready to be started.
pub(crate) struct Journey<'a> {
    pub(crate) indexer: Indexer,
    teleport: &'a FakeTeleport,
    elasticsearch: Client,
    /// What the indices' names begin with.
    prefix: String,
}

impl<'a> Journey<'a> {
    /// Installs the index template of this name, makes a writer where there are users, and writes
    /// the configuration, with `settings` as its first lines.
    ///
    /// # Panics
    /// If anything of it fails, or installing it again would change something.
    pub(crate) fn new(
        name: &str,
        teleport: &'a FakeTeleport,
        elasticsearch: &Elasticsearch,
        settings: &str,
    ) -> Self {
        install(name, elasticsearch);
        Self::installed(name, name, teleport, elasticsearch, settings)
    }

    /// As [`Journey::new`] once that has installed the template `name`, into indices with
    /// another prefix, which must begin with `name`.
    pub(crate) fn installed(
        name: &str,
        prefix: &str,
        teleport: &'a FakeTeleport,
        elasticsearch: &Elasticsearch,
        settings: &str,
    ) -> Self {
        let indexer = Indexer::new();
        let credentials = if elasticsearch.has_security() {
            format!("user = {name:?}\npassword = {PASSWORD:?}")
        } else {
            String::new()
        };
        let sessions = if settings.contains("sessions") {
            ""
        } else {
            "sessions = false"
        };
        indexer.write(
            "config.toml",
            &format!(
                r#"storage = "state"
                {sessions}
                {settings}
                [teleport]
                addr = {addr:?}
                identity = {identity:?}
                [forward.elasticsearch]
                hosts = [{url:?}]
                {credentials}
                index = "{prefix}-%Y.%m.%d"
                install.template = {name:?}
                "#,
                addr = teleport.addr(),
                identity = teleport.identity(),
                url = elasticsearch.url(),
            ),
        );
        Self {
            indexer,
            teleport,
            elasticsearch: (**elasticsearch).clone(),
            prefix: prefix.to_owned(),
        }
    }

    /// Starts the program on the configuration.
    pub(crate) fn spawn(&self, args: &[&str]) -> Running {
        let with_config = [&["--config", "config.toml"], args].concat();
        self.indexer.spawn(&with_config)
    }

    /// Runs the program to its end.
    ///
    /// # Panics
    /// If its exit code is not 0.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        let output = self.spawn(args).wait();
        assert_eq!(output.code, Some(0), "{args:?}: {}", output.stderr);
        output
    }

    /// The state as `status --json` tells it.
    pub(crate) fn status(&self) -> Value {
        let output = self.run(&["status", "--json"]);
        serde_json::from_str(&output.stdout).expect("status prints JSON")
    }

    /// The indices, as a wildcard.
    pub(crate) fn indices(&self) -> String {
        format!("{}-*", self.prefix)
    }

    /// How many documents were created since the node's start. Unlike a count it waits for no
    /// refresh and causes none.
    pub(crate) fn created(&self) -> u64 {
        let path = format!("/{}/_stats/indexing", self.indices());
        let answer = self.elasticsearch.request("GET", &path, &Value::Null);
        let total = &answer.success().json()["_all"]["primaries"]["indexing"]["index_total"];
        total.as_u64().unwrap_or(0)
    }

    /// How many documents there are; 0 while an index is on its way.
    pub(crate) fn count(&self) -> u64 {
        let ask = |method: &str, what: &str| {
            let path = format!("/{}/{what}", self.indices());
            self.elasticsearch.request(method, &path, &Value::Null)
        };
        ask("POST", "_refresh");
        let counted = ask("GET", "_count");
        let count = (counted.status == 200).then(|| counted.json()["count"].as_u64());
        count.flatten().unwrap_or(0)
    }

    /// Waits until so many documents were created since the node's start.
    ///
    /// # Panics
    /// If the program ends before.
    pub(crate) fn wait_for_created(&self, documents: u64, running: &mut Running) {
        wait_until("there are enough documents", || {
            let is_running = running.is_running();
            match self.created() {
                created if created >= documents => Ok(()),
                created if is_running => Err(format!("{created} of {documents}")),
                created => panic!("{created} of {documents}: {}", running.stderr()),
            }
        });
    }

    /// All documents: `_source` by `_index` and `_id`.
    pub(crate) fn documents(&self) -> BTreeMap<(String, String), Value> {
        self.elasticsearch.refresh(&self.indices());
        self.elasticsearch.all_documents(&self.indices())
    }

    /// The index for an event.
    pub(crate) fn index_of(&self, event: &Value) -> String {
        let time = DateTime::parse_from_rfc3339(event["time"].as_str().unwrap_or_default())
            .unwrap_or_else(|error| panic!("{error}: {event}"));
        format!("{}-{}", self.prefix, time.to_utc().format("%Y.%m.%d"))
    }

    /// Compares all that Teleport has with all that Elasticsearch has; how many events these are.
    ///
    /// # Panics
    /// If an event is not a document exactly once, equal to it and in the index of its day, or if
    /// there is another document.
    pub(crate) fn assert_complete(&self) -> usize {
        let emitted = self.teleport.events_jsonl();
        let documents = self.documents();
        let count = self.elasticsearch.count(&self.indices());
        assert_eq!(count, emitted.len() as u64, "documents and events");
        let uids = |events: &mut dyn Iterator<Item = &Value>| {
            let uids: BTreeSet<String> = events.map(|event| event["uid"].to_string()).collect();
            uids.len()
        };
        assert_eq!(uids(&mut documents.values()), uids(&mut emitted.iter()));
        let found = documents
            .into_iter()
            .map(|((index_name, _), source)| (index_name, same_form(source).to_string()));
        let sent = emitted
            .into_iter()
            .map(|event| (self.index_of(&event), same_form(event).to_string()));
        let (mut found, mut sent): (Vec<_>, Vec<_>) = (found.collect(), sent.collect());
        found.sort_unstable();
        sent.sort_unstable();
        if let Some(place) = (0..sent.len()).find(|&place| found[place] != sent[place]) {
            panic!("{:?}\nis sent, found is\n{:?}", sent[place], found[place]);
        }
        sent.len()
    }
}

/// The midnight, so many days ago, that a log of so many days begins after.
pub(crate) fn days_ago(days: u64) -> String {
    let day = Utc::now().checked_sub_days(Days::new(days));
    let day = day.expect("there were days before today");
    day.format("%Y-%m-%dT00:00:00Z").to_string()
}

/// The same value with its numbers in one form: both ends have only doubles, and what is whole and
/// exact must be written as a whole number, but the others may be written in several ways.
pub(crate) fn same_form(value: Value) -> Value {
    match value {
        Value::Number(number) => {
            let whole = number.as_i64().filter(|whole| whole.abs() <= EXACT);
            let double = number.as_f64().and_then(Number::from_f64);
            match (whole, double) {
                (Some(whole), _) => whole.into(),
                // Only Go writes it.
                (None, Some(zero)) if zero.as_f64() == Some(0.0) => 0.into(),
                (None, Some(double)) => Value::Number(double),
                (None, None) => Value::Number(number),
            }
        }
        Value::Array(values) => values.into_iter().map(same_form).collect(),
        Value::Object(members) => {
            let members = members.into_iter();
            members
                .map(|(key, value)| (key, same_form(value)))
                .collect()
        }
        other => other,
    }
}

/// A client with the configuration of a program.
pub(crate) fn client(indexer: &Indexer) -> elastic::client::Client {
    let path = indexer.directory().join("config.toml");
    let raw = sources::collect(Some(&path), Vec::new(), Vec::new());
    let needs = Needs {
        elasticsearch: true,
        ..Needs::default()
    };
    let resolved = Config::resolve(raw.expect("it can be read"), needs);
    let (config, _) = resolved.expect("it is right");
    elastic::client::Client::new(&config.elasticsearch.expect("it is needed"))
        .expect("it names no file")
}

/// A folder with the configuration by which the superuser installs the index template of this name.
pub(crate) fn installer(name: &str, elasticsearch: &Elasticsearch) -> Indexer {
    let indexer = Indexer::new();
    let credentials = if elasticsearch.has_security() {
        format!("user = \"elastic\"\npassword = {SUPERUSER_PASSWORD:?}")
    } else {
        String::new()
    };
    let settings = format!(
        r#"[forward.elasticsearch]
        hosts = [{url:?}]
        {credentials}
        index = "{name}-%Y.%m.%d"
        install = {{ template = {name:?}, policy = {name:?}, replicas = 0, retention = "never" }}
        "#,
        url = elasticsearch.url(),
    );
    indexer.write("config.toml", &settings);
    indexer
}

/// Installs the index template of this name twice, as the superuser, with a policy for which no
/// sample is too old, and makes the user who may only write.
///
/// # Panics
/// If that fails, or the second time is not told from the first.
pub(crate) fn install(name: &str, elasticsearch: &Elasticsearch) {
    let indexer = installer(name, elasticsearch);
    let path = format!("/_index_template/{name}");
    let mut templates = Vec::new();
    for (policy_and_template, component) in [
        ("created", "created"),
        ("up to date", "yours, left as it is"),
    ] {
        let output = indexer.run(&["--config", "config.toml", "install"]);
        assert_eq!(output.code, Some(0), "{}", output.stderr);
        let said = format!(
            "lifecycle policy {name}: {policy_and_template}\n\
             component template {name}@custom: {component}\n\
             index template {name}: {policy_and_template}\n"
        );
        assert_eq!(output.stdout, said, "{}", output.stderr);
        let verified = format!("verified: a new index {name}-");
        assert!(output.stderr.contains(&verified), "{}", output.stderr);
        let template = elasticsearch.request("GET", &path, &Value::Null);
        templates.push(template.success().json());
    }
    assert_eq!(templates[0], templates[1]);
    if elasticsearch.has_security() {
        let role = include_str!("../../../templates/elasticsearch-writer-role.json");
        let role = role.replace("audit-events-*", &format!("{name}-*"));
        let role = serde_json::from_str(&role).expect("the role is JSON");
        elasticsearch.create_user(name, PASSWORD, &role);
    }
}
