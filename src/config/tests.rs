//! The gate as a whole: what comes through it, and every sentence that somebody may read who does
//! not get through.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::keys::{Group, KEYS};
use super::sources::{FlagSetting, collect};
use super::*;
use crate::output::Chain;
use crate::secret::Secret;

/// A directory with a file in it, settings around it, and the question what comes of them.
struct Gate {
    directory: tempfile::TempDir,
    has_file: bool,
    environment: Vec<(OsString, OsString)>,
    flags: Vec<FlagSetting>,
    needs: Needs,
}

const EVERYTHING: Needs = Needs {
    teleport: true,
    elasticsearch: true,
    storage: true,
};

/// The least that suffices for every command.
const LEAST: &str = r#"
storage = "/var/lib/x"
[teleport]
addr = "teleport.example.com:443"
identity = "/etc/x/identity"
[forward.elasticsearch]
hosts = ["https://es.example.com:9200"]
"#;

impl Gate {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            has_file: false,
            environment: Vec::new(),
            flags: Vec::new(),
            needs: Needs::default(),
        }
    }

    /// DIR in the text stands for the directory.
    fn file(self, name: &str, text: &str, mode: u32) -> Self {
        let path = self.directory.path().join(name);
        fs::write(&path, self.place(text)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        self
    }

    fn config(mut self, text: &str) -> Self {
        self.has_file = true;
        self.file("config.toml", text, 0o600)
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        let value = self.place(value);
        self.environment.push((name.into(), value.into()));
        self
    }

    fn flag(mut self, name: &str, value: &str) -> Self {
        let values = vec![self.place(value)];
        let key = keys::find(name).unwrap();
        self.flags.push(FlagSetting { key, values });
        self
    }

    fn needs(mut self, needs: Needs) -> Self {
        self.needs = needs;
        self
    }

    fn place(&self, text: &str) -> String {
        text.replace("DIR", self.directory.path().to_str().unwrap())
    }

    fn resolve(&self) -> Result<(Config, Vec<Warning>), String> {
        let path = self.directory.path().join("config.toml");
        let file = self.has_file.then_some(path.as_path());
        let raw = collect(file, self.environment.clone(), self.flags.clone());
        let raw = raw.map_err(|error| Chain(&error).to_string())?;
        Config::resolve(raw, self.needs).map_err(|mistakes| mistakes.to_string())
    }

    fn cleaned(&self, text: &str) -> String {
        text.replace(self.directory.path().to_str().unwrap(), "DIR")
    }

    fn mistakes(&self) -> String {
        match self.resolve() {
            Ok((config, _)) => panic!("came through:\n{}", config.show()),
            Err(text) => self.cleaned(&text),
        }
    }

    fn good(&self) -> Config {
        match self.resolve() {
            Ok((config, warnings)) => {
                assert_eq!(warnings, []);
                config
            }
            Err(text) => panic!("did not come through:\n{text}"),
        }
    }

    fn warnings(&self) -> String {
        let (_, warnings) = self.resolve().unwrap();
        let lines: Vec<_> = warnings.iter().map(Warning::to_string).collect();
        self.cleaned(&lines.join("\n"))
    }
}

#[test]
fn nothing_set_is_fine_where_nothing_is_needed() {
    let config = Gate::new().good();
    assert_eq!(config.poll_interval, Duration::from_secs(5));
    assert_eq!(config.page_limit, 10_000);
    assert!(config.storage.is_none() && config.teleport.is_none());
    assert!(config.elasticsearch.is_none() && config.start_time.is_none());
    assert_eq!(config.limits, Limits::default());
}

#[test]
fn nothing_set_is_missing_where_it_is_needed() {
    insta::assert_snapshot!(Gate::new().needs(EVERYTHING).mistakes(), @"");
}

#[test]
fn an_unreadable_file() {
    let mut gate = Gate::new();
    gate.has_file = true;
    insta::assert_snapshot!(gate.mistakes(), @"");
    let gate = Gate::new().variable("EVENT_INDEXER_CONFIG", "DIR");
    insta::assert_snapshot!(gate.mistakes(), @"");
    let error = collect(Some(Path::new("none")), [], Vec::new()).unwrap_err();
    insta::assert_snapshot!(error.hint(), @"");
}

#[test]
fn no_toml() {
    let text = "storage = \"/x\"\n[forward.elasticsearch]\npassword = \"hunter2\nuser = \"a\"\n";
    insta::assert_snapshot!(Gate::new().config(text).needs(EVERYTHING).mistakes(), @"");
    let text = "storage = \"/x\"\nstorage = \"/y\"\n";
    insta::assert_snapshot!(Gate::new().config(text).mistakes(), @"");
}

#[test]
fn unknown_keys() {
    let text = r#"
storge = "/x"
teleport-addr = "a:443"
debug = true
teleport_event = 1

[teleport]
adr = "a:443"
root_cas = "/x"
client-key = "/x"
key = "/x"

[elasticsearch]
hosts = ["http://localhost:9200"]

[forward]
elasticsearch = "http://localhost:9200"
kafka.topic = "x"

[forward.fluentd]
url = "https://localhost:8888/test.log"
ca = "/x"

[lock.enabled]
x = 1

[empty]
"#;
    insta::assert_snapshot!(Gate::new().config(text).mistakes(), @"");
}

#[test]
fn values_of_a_wrong_form_all_at_once() {
    let text = r#"
storage = "~/state"
timeout = 5
batch = 20000
window-size = "0s"
types = ["user.*"]
skip-event-types = "user.login session.start"
start-time = 2026-01-31T08:00:00
concurrency = "many"
grace-period = "30"
dead-letter-bytes = "4G"
log-level = "loud"
log-format = 1.5
namespace = " "
sessions = true

[teleport]
addr = "https://teleport.example.com"
identity = ["/x"]
refresh.enabled = "yes"
refresh.interval = "1w"

[forward.elasticsearch]
hosts = ["localhost:9200", "https://elastic:hunter2@es.example.com", "https://a", "https://a/"]
ca-fingerprint = "00:11"
index = "Audit-%Y"
gzip = 1
batch-bytes = 1024
batch-documents = 0
batch-age = "1m"
in-flight = 99999999999999999999
request-timeout = "-5s"

[forward.elasticsearch.install]
template = "a b"
policy = "audit-%Y"
retention = "1h"
shards = -1
replicas = 1000

[limits]
teleport-requests-per-second = 0
bytes-per-second = "1TiB"

[listen]
addr = ":8080"

[lock]
enabled = true
for = "a while"
"#;
    insta::assert_snapshot!(Gate::new().config(text).needs(EVERYTHING).mistakes(), @"");
}

#[test]
fn contradictions() {
    let text = r#"
types = ["user.login", "session.start"]
skip-event-types = ["session.start"]
[teleport]
addr = "a:443"
identity = "/x"
client-crt = "/x"
[forward.elasticsearch]
hosts = ["http://localhost:9200"]
cloud-id = "a:Y2xvdWQuZXhhbXBsZSRlcw=="
cloud-auth = "elastic:hunter2"
api-key = "id:hunter3"
user = "elastic"
client-cert = "/x"
"#;
    insta::assert_snapshot!(Gate::new().config(text).mistakes(), @"");

    let gate = Gate::new()
        .variable("EVENT_INDEXER_TELEPORT_KEY", "/x")
        .variable("EVENT_INDEXER_ELASTICSEARCH_PASSWORD", "hunter2")
        .flag("forward.elasticsearch.cloud-id", "a:!")
        .flag("forward.elasticsearch.hosts", "")
        .flag("forward.elasticsearch.client-key", "/x");
    insta::assert_snapshot!(gate.mistakes(), @"");
}

#[test]
fn variables_and_flags_of_a_wrong_form() {
    let gate = Gate::new()
        .variable("EVENT_INDEXER_BATCH", "many")
        .variable("EVENT_INDEXER_ELASTICSEARCH_HOST", "http://localhost:9200")
        .variable("EVENT_INDEXER_COLOUR", "red")
        .variable("EVENT_INDEXER_STORAGE", "")
        .flag("timeout", "5")
        .flag("types", "*")
        .flag("forward.elasticsearch.user", "elastic:hunter2");
    insta::assert_snapshot!(gate.mistakes(), @"");
}

#[test]
fn variables_that_kubernetes_sets_are_none_of_ours() {
    let gate = Gate::new()
        .variable("EVENT_INDEXER_SERVICE_HOST", "10.0.0.1")
        .variable("EVENT_INDEXER_SERVICE_PORT", "9000")
        .variable("EVENT_INDEXER_SERVICE_PORT_METRICS", "9000")
        .variable("EVENT_INDEXER_PORT", "tcp://10.0.0.1:9000")
        .variable("EVENT_INDEXER_PORT_9000_TCP", "tcp://10.0.0.1:9000")
        .variable("EVENT_INDEXER_PORT_9000_TCP_ADDR", "10.0.0.1");
    gate.good();
    let gate = gate.variable("EVENT_INDEXER_PORT_X", "10.0.0.1");
    insta::assert_snapshot!(gate.mistakes(), @"");
}

#[test]
fn secrets_and_where_they_lie() {
    let secrets = |text: &str| {
        let gate = Gate::new().config(&format!("[forward.elasticsearch]\n{text}"));
        gate.file("good", "hunter2\n", 0o600)
            .file("open", "hunter2\n", 0o644)
            .file("empty", "\n", 0o600)
    };
    insta::assert_snapshot!(secrets("user = 'a'\npassword = 'file:DIR/none'").mistakes(), @"");
    insta::assert_snapshot!(secrets("user = 'a'\npassword = 'file:DIR/empty'").mistakes(), @"");
    insta::assert_snapshot!(secrets("user = 'a'\npassword = 12345678").mistakes(), @"");
    insta::assert_snapshot!(secrets("api-key = 'hunter2'\ncloud-auth = ''").mistakes(), @"");
    insta::assert_snapshot!(secrets("cloud-auth = 'hunter2'").mistakes(), @"");
    let gate = secrets("user = 'a'").flag("forward.elasticsearch.password", "hunter2");
    insta::assert_snapshot!(gate.mistakes(), @"");

    let gate = secrets("user = 'a'\npassword = 'file:DIR/open'");
    insta::assert_snapshot!(gate.warnings(), @"");
    let gate = Gate::new().config("").file(
        "config.toml",
        "[forward.elasticsearch]\nuser = 'a'\npassword = 'hunter2'",
        0o644,
    );
    insta::assert_snapshot!(gate.warnings(), @"");
    let auth = |text: &str| {
        let hosts = "hosts = ['https://es.example.com']";
        secrets(&format!("{hosts}\n{text}"))
            .good()
            .elasticsearch
            .unwrap()
            .auth
            .unwrap()
    };
    let expected = Auth::Basic {
        user: "a".to_owned(),
        password: Secret::new("hunter2"),
    };
    assert_eq!(auth("user = 'a'\npassword = 'file:DIR/good'"), expected);
    assert_eq!(auth("cloud-auth = 'a:hunter2'"), expected);
    let expected = Auth::ApiKey(Secret::new("aWQ6aHVudGVyMg=="));
    assert_eq!(auth("api-key = 'id:hunter2'"), expected);
}

#[test]
fn doubts() {
    let text = r#"
batch = 20
skip-session-types = ["print"]
sessions = false
lock.enabled = false
lock.failed-attempts-count = 3
lock.period = "1m"
lock.for = "0"
[teleport]
refresh.interval = "1m"
[forward.elasticsearch]
hosts = ["http://localhost:9200", "http://es.example.com:9200", "https://es.example.com:9200"]
api-key = "id:hunter2"
"#;
    let gate = Gate::new()
        .config(text)
        .variable("FDFWD_STORAGE", "/x")
        .variable("FDWRD_TELEPORT_CERT", "/x")
        .variable("FDFWD_LOCKING_ENABLED", "false")
        .variable("FDFWD_FLUENTD_URL", "https://localhost:8888")
        .variable("FDFWD_DRY_RUN", "true")
        .variable("FDFWD_DEBUG", "true")
        .variable("FDFWD_CONFIG", "x.toml")
        .variable("FDFWD_CURSOR", "x");
    insta::assert_snapshot!(gate.warnings(), @"");
}

#[test]
fn a_flag_beats_a_variable_beats_the_file() {
    let gate = Gate::new().config("timeout = '1s'\nwindow_size = '1h'\nbatch = 1000");
    let gate = gate
        .variable("EVENT_INDEXER_TIMEOUT", "2s")
        .variable("EVENT_INDEXER_BATCH", "2000")
        .flag("batch", "3000");
    let config = gate.good();
    assert_eq!(config.window_size, Duration::from_hours(1));
    assert_eq!(config.poll_interval, Duration::from_secs(2));
    assert_eq!(config.page_limit, 3000);
}

#[test]
fn every_value_arrives() {
    let text = r#"
storage = "/var/lib/x"
timeout = "10s"
batch = 5000
namespace = "other"
window_size = "12h"
types = ["user.login"]
skip-event-types = "cert.create, session.start"
start-time = 2026-01-31T08:00:00.9+01:00
concurrency = 8
grace-period = "0s"
dead-letter-bytes = 1048576
log-level = "info,h2=warn"
log-format = "json"

[teleport]
addr = "[::1]:3025"
client_key = "/a.key"
client_crt = "/a.crt"
root_cas = "/a.cas"
refresh.enabled = true
refresh.interval = "30s"

[forward.elasticsearch]
cloud-id = "a:Y2xvdWQuZXhhbXBsZSRlcw=="
api_key = "essu_abc"
client-cert = "/es.crt"
client-key = "/es.key"
ca = "/es-ca.crt"
index = "teleport-%Y.%m.%d"
gzip = false
batch-bytes = "1MiB"
batch-documents = 500
batch-age = "1s"
in-flight = 2
request-timeout = "30s"

[forward.elasticsearch.install]
template = "teleport"
policy = "teleport-policy"
retention = "never"
shards = 2
replicas = 0

[limits]
teleport-requests-per-second = 10
events-per-second = 5000
bytes-per-second = "10MB"
"#;
    let config = Gate::new().config(text).needs(EVERYTHING).good();
    let without_origins = Config {
        effective: Effective::default(),
        ..config
    };
    insta::assert_snapshot!(format!("{without_origins:#?}"), @"");
}

#[test]
fn a_filter_admits_by_exact_type() {
    let types = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let filter = EventFilter {
        types: types(&["user.login"]),
        skip_types: types(&[]),
    };
    assert!(filter.admits(b"user.login") && !filter.admits(b"user") && !filter.admits(b"x"));
    let filter = EventFilter {
        types: types(&[]),
        skip_types: types(&["user.login"]),
    };
    assert!(!filter.admits(b"user.login") && filter.admits(b"user") && filter.admits(b"\xff"));
}

#[test]
fn what_is_shown_is_what_is_in_effect() {
    let gate = Gate::new()
        .config(LEAST)
        .file("password", "hunter2\n", 0o600)
        .variable("EVENT_INDEXER_BATCH", "5000")
        .variable("EVENT_INDEXER_ELASTICSEARCH_PASSWORD", "file:DIR/password")
        .flag("types", "user.login,session.start")
        .flag("forward.elasticsearch.user", "elastic")
        .flag("teleport.refresh.enabled", "true")
        .needs(EVERYTHING);
    let shown = gate.good().show();
    insta::assert_snapshot!(gate.cleaned(&shown), @"");

    // The text is a configuration itself, and the same one.
    let again = shown.replace("[secret]", "hunter2");
    let again = Gate::new().config(&again).needs(EVERYTHING).good().show();
    let values = |text: &str| -> Vec<String> {
        let values = text.lines().map(|line| line.split("  #").next().unwrap());
        values.map(str::to_owned).collect()
    };
    assert_eq!(values(&again), values(&shown));

    let api_key = gate_with_plain_key().good().show();
    assert!(!api_key.contains("hunter2") && api_key.contains("api-key = \"[secret]\""));
}

fn gate_with_plain_key() -> Gate {
    Gate::new().variable("EVENT_INDEXER_ELASTICSEARCH_API_KEY", "id:hunter2")
}

#[test]
fn debug_shows_no_secret() {
    let gate = gate_with_plain_key()
        .flag("forward.elasticsearch.password", "hunter2")
        .flag("forward.elasticsearch.hosts", "https://es.example.com");
    let raw = collect(None, gate.environment.clone(), gate.flags.clone()).unwrap();
    assert!(!format!("{raw:?} {:?}", gate.flags).contains("hunter2"));
    let config = gate_with_plain_key()
        .flag("forward.elasticsearch.hosts", "https://es.example.com")
        .good();
    assert!(!format!("{config:?}").contains("aWQ6aHVudGVyMg=="));
}

const EXAMPLE: &str = include_str!("../../templates/config.toml");

#[test]
fn the_example_comes_through() {
    let text = EXAMPLE.replace("file:/etc/teleport-event-indexer/", "file:DIR/");
    let gate = Gate::new()
        .config(&text)
        .file("elasticsearch-api-key", "id:key\n", 0o600)
        .needs(EVERYTHING);
    gate.good();
}

#[test]
fn the_example_names_every_key_with_its_default() {
    let mut table = "";
    let mut lines = Vec::new();
    for line in EXAMPLE.lines() {
        if let Some(name) = line.strip_prefix('[') {
            table = name.trim_end_matches(']');
        } else if let Some((name, value)) = line.trim_start_matches('#').split_once(" = ") {
            lines.push((table, name, value));
        }
    }
    for key in KEYS.iter().filter(|key| key.group != Group::Later) {
        let (table, name) = key.place();
        let found = lines.iter().find(|line| (line.0, line.1) == (table, name));
        let (_, _, value) = found.unwrap_or_else(|| panic!("the example lacks {}", key.name));
        let is_active = EXAMPLE.contains(&format!("\n{name} = {value}\n"));
        if let (Some(default), false) = (key.default, is_active) {
            let raw = collect(None, [], Vec::new()).unwrap();
            let shown = Effective::of(&raw).to_string();
            assert!(
                shown.contains(&format!("{name} = {value}  # default")),
                "{} is {default} by default",
                key.name
            );
        }
    }
    for (table, name, _) in lines {
        let path = format!("{table}.{name}");
        assert!(keys::find(path.trim_start_matches('.')).is_some(), "{path}");
    }
}
