//! The gate as a whole: what comes through it, and every sentence that somebody may read who does
//! not get through.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::keys::KEYS;
use super::sources::{FlagSetting, collect};
use super::*;
use crate::output::Chain;
use crate::secret::Secret;

mod clusters;

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
    state: true,
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

    fn raw(&self) -> Result<Raw, String> {
        let path = self.directory.path().join("config.toml");
        let file = self.has_file.then_some(path.as_path());
        let raw = collect(file, self.environment.clone(), self.flags.clone());
        raw.map_err(|error| Chain(&error).to_string())
    }

    fn resolve(&self) -> Result<(Config, Vec<Warning>), String> {
        Config::resolve(self.raw()?, self.needs).map_err(|mistakes| mistakes.to_string())
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
fn a_backfill_has_limits_of_its_own_and_the_others_where_it_has_none() {
    let text = "
[limits]
teleport-requests-per-second = 10
bytes-per-second = \"10MB\"
[limits.backfill]
events-per-second = 300
bytes-per-second = \"1MB\"
";
    let config = Gate::new().config(text).good();
    let limits = |requests, events, bytes| Limits {
        teleport_requests_per_second: NonZeroU32::new(requests),
        events_per_second: NonZeroU32::new(events),
        bytes_per_second: NonZeroU32::new(bytes),
    };
    assert_eq!(config.limits, limits(10, 0, 10_000_000));
    assert_eq!(config.backfill_limits, limits(10, 300, 1_000_000));
}

#[test]
fn nothing_set_is_missing_where_it_is_needed() {
    insta::assert_snapshot!(Gate::new().needs(EVERYTHING).mistakes(), @r#"
    storage is not set: name a directory for the state file (or --storage, or EVENT_INDEXER_STORAGE)
    teleport.addr is not set: give host:443 of a Proxy Service or host:3025 of an Auth Service (or --teleport-addr, or EVENT_INDEXER_TELEPORT_ADDR)
    teleport.identity is not set: name the identity file, or set key, cert and ca (or --teleport-identity, or EVENT_INDEXER_TELEPORT_IDENTITY)
    forward.elasticsearch.hosts is not set: give the URLs of the cluster, or an Elastic Cloud id as cloud-id (or --elasticsearch-hosts, or EVENT_INDEXER_ELASTICSEARCH_HOSTS)
    "#);
}

#[test]
fn an_unreadable_file() {
    let mut gate = Gate::new();
    gate.has_file = true;
    insta::assert_snapshot!(gate.mistakes(), @r#"cannot read the configuration file DIR/config.toml: No such file or directory (os error 2)"#);
    let gate = Gate::new().variable("EVENT_INDEXER_CONFIG", "DIR");
    insta::assert_snapshot!(gate.mistakes(), @r#"cannot read the configuration file DIR: Is a directory (os error 21)"#);
    let error = collect(Some(Path::new("none")), [], Vec::new()).unwrap_err();
    insta::assert_snapshot!(error.hint(), @r#"name another file with --config or EVENT_INDEXER_CONFIG, or leave both out and make every setting by flag or variable"#);
}

#[test]
fn no_toml() {
    let text = "storage = \"/x\"\n[forward.elasticsearch]\npassword = \"hunter2\nuser = \"a\"\n";
    insta::assert_snapshot!(Gate::new().config(text).needs(EVERYTHING).mistakes(), @r#"DIR/config.toml:3: no valid TOML: invalid basic string, expected `"`"#);
    let text = "storage = \"/x\"\nstorage = \"/y\"\n";
    insta::assert_snapshot!(Gate::new().config(text).mistakes(), @r#"DIR/config.toml:2: no valid TOML: duplicate key"#);
}

/// Line ends and what commands a terminal, wherever the user may have put them.
#[test]
fn each_sentence_is_one_line() {
    let mistakes = Gate::new()
        .config("\"sto\\nrge\\u001b[31m\" = 1\n")
        .variable("EVENT_INDEXER_\rX", "1")
        .mistakes();
    insta::assert_snapshot!(mistakes, @r"
    DIR/config.toml:1: sto�rge�[31m: unknown key; `teleport-event-indexer start --help` lists all settings
    EVENT_INDEXER_�X: unknown variable; `teleport-event-indexer start --help` lists all
    ");
    let warnings = Gate::new().variable("FDFWD_\u{7}STORAGE", "1").warnings();
    insta::assert_snapshot!(warnings, @"FDFWD_�STORAGE is set and not read, it belongs to teleport-event-handler: nothing here stands for it");
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
    insta::assert_snapshot!(Gate::new().config(text).mistakes(), @r#"
    DIR/config.toml:2: storge: unknown key; did you mean storage?
    DIR/config.toml:3: teleport-addr: unknown key; did you mean teleport.addr?
    DIR/config.toml:4: debug: this belongs to teleport-event-handler: set log-level = "debug"
    DIR/config.toml:5: teleport_event: unknown key; `teleport-event-indexer start --help` lists all settings
    DIR/config.toml:8: teleport.adr: unknown key; did you mean teleport.addr?
    DIR/config.toml:10: teleport.client-key: goes with teleport.cert: give all three, or an identity
    DIR/config.toml:11: teleport.key: this is the same setting as teleport.client-key (DIR/config.toml:10); keep one of them
    DIR/config.toml:14: elasticsearch.hosts: unknown key; did you mean forward.elasticsearch.hosts?
    DIR/config.toml:17: forward.elasticsearch: this is a table and has no value itself; write [forward.elasticsearch] and its settings below
    DIR/config.toml:18: forward.kafka.topic: unknown key; `teleport-event-indexer start --help` lists all settings
    DIR/config.toml:20: forward.fluentd: this belongs to teleport-event-handler: events go straight to Elasticsearch; put [forward.elasticsearch] in its place, with hosts or cloud-id, and user and password or api-key
    DIR/config.toml:21: forward.fluentd.url: this belongs to teleport-event-handler: events go straight to Elasticsearch; set forward.elasticsearch.hosts
    DIR/config.toml:22: forward.fluentd.ca: this belongs to teleport-event-handler: events go straight to Elasticsearch; set forward.elasticsearch.ca
    DIR/config.toml:24: lock.enabled: takes a value, not a table
    DIR/config.toml:27: empty: unknown key; `teleport-event-indexer start --help` lists all settings
    "#);
}

#[test]
fn values_of_a_wrong_form_all_at_once() {
    let text = r#"
storage = "~/state"
timeout = 5
batch = 20000
window-size = "0s"
types = ["user.*", "a b"]
skip-event-types = "user.login session.start"
start-time = 2026-01-31T08:00:00
concurrency = "many"
grace-period = "30"
dead-letter-bytes = "4G"
log-level = "loud"
log-format = 1.5
namespace = " "
sessions = "always"

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
    insta::assert_snapshot!(Gate::new().config(text).needs(EVERYTHING).mistakes(), @r#"
    DIR/config.toml:2: storage = "~/state": must be a whole path: nobody replaces the ~ here
    DIR/config.toml:3: timeout = 5: needs a unit: 5s, 5m or 5h
    DIR/config.toml:4: batch = 20000: must be a whole number from 1 to 10000
    DIR/config.toml:5: window-size = "0s": must be from 1s to 366d
    DIR/config.toml:6: types = ["user.*", "a b"]: "a b" is no event type; put commas between them
    DIR/config.toml:7: skip-event-types = "user.login session.start": "user.login session.start" is no event type; put commas between them
    DIR/config.toml:8: start-time = 2026-01-31T08:00:00: must be RFC 3339 with a zone (2026-01-31T08:00:00Z) or a date (2026-01-31, midnight UTC)
    DIR/config.toml:9: concurrency = "many": must be a whole number from 1 to 64
    DIR/config.toml:10: grace-period = "30": needs a unit: 30s, 30m or 30h
    DIR/config.toml:11: dead-letter-bytes = "4G": must be a size such as 64KiB, 4MiB, 10MB or a count of bytes
    DIR/config.toml:12: log-level = "loud": must be off, error, warn, info, debug or trace, or such levels by target: info,teleport_event_indexer::teleport=debug
    DIR/config.toml:13: log-format = 1.5: must be text or json
    DIR/config.toml:14: namespace = " ": must not be empty
    DIR/config.toml:15: sessions = "always": must be true or false
    DIR/config.toml:18: teleport.addr = "https://teleport.example.com": must be host:port, without a scheme
    DIR/config.toml:19: teleport.identity = ["/x"]: must be a text in quotes
    DIR/config.toml:20: teleport.refresh.enabled = "yes": must be true or false
    DIR/config.toml:21: teleport.refresh.interval = "1w": must be a duration such as 200ms, 5s, 1h30m or 365d
    DIR/config.toml:24: forward.elasticsearch.hosts: "localhost:9200" must begin with http:// or https://
    DIR/config.toml:24: forward.elasticsearch.hosts: host 2 holds a user or password; move them to user and password (or cloud-auth, or api-key)
    DIR/config.toml:24: forward.elasticsearch.hosts: https://a/ is given twice
    DIR/config.toml:25: forward.elasticsearch.ca-fingerprint = "00:11": must be the SHA-256 of a CA certificate: 64 hexadecimal digits, with or without colons
    DIR/config.toml:26: forward.elasticsearch.index = "Audit-%Y": 'A' cannot be part of an index name, which must be in lower case
    DIR/config.toml:27: forward.elasticsearch.gzip = 1: must be true or false
    DIR/config.toml:28: forward.elasticsearch.batch-bytes = 1024: must be from 64KiB to 64MiB
    DIR/config.toml:29: forward.elasticsearch.batch-documents = 0: must be a whole number from 1 to 100000
    DIR/config.toml:30: forward.elasticsearch.batch-age = "1m": must be from 1ms to 10s
    DIR/config.toml:31: forward.elasticsearch.in-flight = 99999999999999999999: must be a whole number from 1 to 64
    DIR/config.toml:32: forward.elasticsearch.request-timeout = "-5s": must be a duration such as 200ms, 5s, 1h30m or 365d
    DIR/config.toml:35: forward.elasticsearch.install.template = "a b": must not contain ' '
    DIR/config.toml:36: forward.elasticsearch.install.policy = "audit-%Y": must not contain %
    DIR/config.toml:37: forward.elasticsearch.install.retention = "1h": must be at least 1d, in whole seconds, or never
    DIR/config.toml:38: forward.elasticsearch.install.shards = -1: must be a whole number from 1 to 1024
    DIR/config.toml:39: forward.elasticsearch.install.replicas = 1000: must be a whole number from 0 to 100, or auto
    DIR/config.toml:42: limits.teleport-requests-per-second = 0: must be a whole number from 1 to 4294967295
    DIR/config.toml:43: limits.bytes-per-second = "1TiB": must be from 1B to 4294967295B
    DIR/config.toml:46: listen.addr = ":8080": must be an IP address with a port (127.0.0.1:9747), or off
    DIR/config.toml:50: lock.for = "a while": must be a duration such as 200ms, 5s, 1h30m or 365d
    "#);
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
    insta::assert_snapshot!(Gate::new().config(text).mistakes(), @r#"
    DIR/config.toml:3: skip-event-types: names what types names too: session.start
    DIR/config.toml:6: teleport.identity: excludes teleport.client-crt (DIR/config.toml:7); keep either the identity file or key, cert and ca
    DIR/config.toml:10: forward.elasticsearch.cloud-id: excludes forward.elasticsearch.hosts (DIR/config.toml:9); keep one of them
    DIR/config.toml:11: forward.elasticsearch.cloud-auth: excludes forward.elasticsearch.user (DIR/config.toml:13); keep one way to log in
    DIR/config.toml:12: forward.elasticsearch.api-key: excludes forward.elasticsearch.user (DIR/config.toml:13); keep one way to log in
    DIR/config.toml:12: forward.elasticsearch.api-key: excludes forward.elasticsearch.cloud-auth (DIR/config.toml:11); keep one way to log in
    DIR/config.toml:13: forward.elasticsearch.user: goes with password, which is not set
    DIR/config.toml:14: forward.elasticsearch.client-cert: goes with client-key, which is not set
    "#);

    let gate = Gate::new()
        .variable("EVENT_INDEXER_TELEPORT_KEY", "/x")
        .variable("EVENT_INDEXER_ELASTICSEARCH_PASSWORD", "hunter2")
        .flag("forward.elasticsearch.cloud-id", "a:!")
        .flag("forward.elasticsearch.hosts", "")
        .flag("forward.elasticsearch.client-key", "/x");
    insta::assert_snapshot!(gate.mistakes(), @r#"
    EVENT_INDEXER_ELASTICSEARCH_PASSWORD: goes with user, which is not set
    EVENT_INDEXER_TELEPORT_KEY: goes with teleport.cert and teleport.ca: give all three, or an identity
    --elasticsearch-client-key: goes with client-cert, which is not set
    --elasticsearch-cloud-id: excludes --elasticsearch-hosts; keep one of them
    --elasticsearch-cloud-id: is no cloud id: what follows the label is not base64; copy it whole
    --elasticsearch-hosts: must name at least one host
    "#);
}

#[test]
fn variables_and_flags_of_a_wrong_form() {
    let gate = Gate::new()
        .variable("EVENT_INDEXER_BATCH", "many")
        .variable("EVENT_INDEXER_ELASTICSEARCH_HOST", "http://localhost:9200")
        .variable("EVENT_INDEXER_COLOUR", "red")
        .variable("EVENT_INDEXER_STORAGE", "")
        .flag("timeout", "5")
        .flag("types", "a b")
        .flag("forward.elasticsearch.user", "elastic:hunter2");
    insta::assert_snapshot!(gate.mistakes(), @r#"
    EVENT_INDEXER_BATCH="many": must be a whole number from 1 to 10000
    EVENT_INDEXER_COLOUR: unknown variable; `teleport-event-indexer start --help` lists all
    EVENT_INDEXER_ELASTICSEARCH_HOST: unknown variable; did you mean EVENT_INDEXER_ELASTICSEARCH_HOSTS?
    --elasticsearch-user: must not contain a colon; user:password together is cloud-auth
    --elasticsearch-user: goes with password, which is not set
    --timeout="5": needs a unit: 5s, 5m or 5h
    --types="a b": "a b" is no event type; put commas between them
    "#);
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
    insta::assert_snapshot!(gate.mistakes(), @r#"EVENT_INDEXER_PORT_X: unknown variable; `teleport-event-indexer start --help` lists all"#);
}

#[test]
fn secrets_and_where_they_lie() {
    let secrets = |text: &str| {
        let gate = Gate::new().config(&format!("[forward.elasticsearch]\n{text}"));
        gate.file("good", "hunter2\n", 0o600)
            .file("open", "hunter2\n", 0o644)
            .file("empty", "\n", 0o600)
    };
    insta::assert_snapshot!(secrets("user = 'a'\npassword = 'file:DIR/none'").mistakes(), @r#"DIR/config.toml:3: forward.elasticsearch.password: no secret in the file DIR/none: it cannot be read: No such file or directory (os error 2)"#);
    insta::assert_snapshot!(secrets("user = 'a'\npassword = 'file:DIR/empty'").mistakes(), @r#"DIR/config.toml:3: forward.elasticsearch.password: no secret in the file DIR/empty: its first line is empty"#);
    insta::assert_snapshot!(secrets("user = 'a'\npassword = 12345678").mistakes(), @r#"DIR/config.toml:3: forward.elasticsearch.password: must be a text in quotes"#);
    insta::assert_snapshot!(secrets("api-key = 'hunter2'\ncloud-auth = ''").mistakes(), @r#"
    DIR/config.toml:2: forward.elasticsearch.api-key: excludes forward.elasticsearch.cloud-auth (DIR/config.toml:3); keep one way to log in
    DIR/config.toml:2: forward.elasticsearch.api-key: is no API key: give id:api_key, or what Elasticsearch calls `encoded`, or an Elastic Cloud key (essu_…)
    DIR/config.toml:3: forward.elasticsearch.cloud-auth: must not be empty
    "#);
    insta::assert_snapshot!(secrets("cloud-auth = 'hunter2'").mistakes(), @r#"DIR/config.toml:2: forward.elasticsearch.cloud-auth: must be user:password"#);
    let gate = secrets("user = 'a'").flag("forward.elasticsearch.password", "hunter2");
    insta::assert_snapshot!(gate.mistakes(), @r#"--elasticsearch-password: a secret on the command line is visible in the process list; use file:PATH or EVENT_INDEXER_ELASTICSEARCH_PASSWORD"#);

    let gate = secrets("user = 'a'\npassword = 'file:DIR/open'");
    insta::assert_snapshot!(gate.warnings(), @r#"DIR/config.toml:3: forward.elasticsearch.password: other users can read DIR/open; chmod 600 DIR/open"#);
    let gate = Gate::new().config("").file(
        "config.toml",
        "[forward.elasticsearch]\nuser = 'a'\npassword = 'hunter2'",
        0o644,
    );
    insta::assert_snapshot!(gate.warnings(), @r#"DIR/config.toml:3: forward.elasticsearch.password: other users can read this secret; chmod 600 DIR/config.toml, or use file:PATH"#);
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
    let hosts = "hosts = ['https://es.example.com']\napi-key = 'id:other'";
    let verifier = secrets(&format!("{hosts}\nverifier-api-key = 'id:hunter2'")).good();
    assert_eq!(
        verifier.elasticsearch.unwrap().verifier_auth,
        Some(expected)
    );
}

#[test]
fn doubts() {
    let text = r#"
batch = 20
lock.enabled = false
lock.failed-attempts-count = 3
lock.period = "1m"
lock.for = "0"
[teleport]
refresh.interval = "1m"
refresh.enabled = false
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
    insta::assert_snapshot!(gate.warnings(), @r#"
    FDFWD_CONFIG is set and not read, it belongs to teleport-event-handler: its name here is EVENT_INDEXER_CONFIG
    FDFWD_CURSOR is set and not read, it belongs to teleport-event-handler: the position is kept in the state file, and --import-state takes over the event handler's; leave it out
    FDFWD_DEBUG is set and not read, it belongs to teleport-event-handler: set EVENT_INDEXER_LOG_LEVEL=debug
    FDFWD_DRY_RUN is set and not read, it belongs to teleport-event-handler: it is a flag of the command: start --dry-run
    FDFWD_FLUENTD_URL is set and not read, it belongs to teleport-event-handler: events go straight to Elasticsearch; set EVENT_INDEXER_ELASTICSEARCH_HOSTS
    FDFWD_LOCKING_ENABLED is set and not read, it belongs to teleport-event-handler: its name here is EVENT_INDEXER_LOCK_ENABLED
    FDFWD_STORAGE is set and not read, it belongs to teleport-event-handler: its name here is EVENT_INDEXER_STORAGE
    FDWRD_TELEPORT_CERT is set and not read, it belongs to teleport-event-handler: its name here is EVENT_INDEXER_TELEPORT_CERT
    DIR/config.toml:2: batch = 20: so small a page makes searches slow; leave it out to read 10000 events at a time
    DIR/config.toml:8: teleport.refresh.interval = "1m": has no effect unless refresh.enabled is true
    http://es.example.com:9200/ is not encrypted: credentials and events cross the network in the clear; use https
    "#);
}

/// Every variable that some version of the event handler knows is named, with what stands for it.
#[test]
fn variables_of_the_event_handler() {
    let named = |rest: &str| match rest {
        "CONFIG" => "EVENT_INDEXER_CONFIG".to_owned(),
        "LOCKING_ENABLED" => "EVENT_INDEXER_LOCK_ENABLED".to_owned(),
        "LOCKING_FAILED_ATTEMPTS" => "EVENT_INDEXER_LOCK_FAILED_ATTEMPTS_COUNT".to_owned(),
        "LOCKING_PERIOD" => "EVENT_INDEXER_LOCK_PERIOD".to_owned(),
        "LOCKING_FOR" => "EVENT_INDEXER_LOCK_FOR".to_owned(),
        rest => format!("EVENT_INDEXER_{rest}"),
    };
    for rest in [
        "BATCH",
        "CONCURRENCY",
        "CONFIG",
        "LOCKING_ENABLED",
        "LOCKING_FAILED_ATTEMPTS",
        "LOCKING_FOR",
        "LOCKING_PERIOD",
        "SKIP_EVENT_TYPES",
        "SKIP_SESSION_TYPES",
        "START_TIME",
        "STORAGE",
        "TELEPORT_ADDR",
        "TELEPORT_CA",
        "TELEPORT_CERT",
        "TELEPORT_IDENTITY",
        "TELEPORT_KEY",
        "TELEPORT_REFRESH_ENABLED",
        "TELEPORT_REFRESH_INTERVAL",
        "TIMEOUT",
        "TYPES",
        "WINDOW_SIZE",
    ] {
        for prefix in ["FDFWD_", "FDWRD_"] {
            let name = format!("{prefix}{rest}");
            assert_eq!(
                Gate::new().variable(&name, "1").warnings(),
                format!(
                    "{name} is set and not read, it belongs to teleport-event-handler: its name \
                     here is {}",
                    named(rest)
                )
            );
        }
    }
}

#[test]
fn what_crosses_the_network_in_the_clear_is_told() {
    let hosts = |hosts: &str| {
        let gate = Gate::new().variable("EVENT_INDEXER_ELASTICSEARCH_HOSTS", hosts);
        gate.warnings()
    };
    insta::assert_snapshot!(hosts("http://a:9200,https://b,http://10.0.0.1"), @"
    http://a:9200/ is not encrypted: events cross the network in the clear; use https
    http://10.0.0.1/ is not encrypted: events cross the network in the clear; use https
    ");
    assert_eq!(
        hosts("http://localhost:9200,http://127.0.0.5,http://[::1]"),
        ""
    );
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
skip-session-types = "print"
session-summaries = false
session-wait = "12h"
start-time = 2026-01-31T08:00:00.9+01:00
concurrency = 8
grace-period = "0s"
dead-letter-bytes = 1048576
state-name = "x"
blocked-bytes = 0
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
verifier-api-key = "id:hunter2"
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
old-days = "skip"

[forward.elasticsearch.install]
template = "teleport"
policy = "teleport-policy"
retention = "never"
shards = 2
replicas = 0
refresh-interval = "1s"
dynamic = true

[limits]
teleport-requests-per-second = 10
events-per-second = 5000
bytes-per-second = "10MB"

[listen]
addr = "0.0.0.0:443"
token = "hunter2"
cert = "/page.crt"
key = "/page.key"
hosts = ["indexer.internal"]
show-payloads = true
"#;
    let config = Gate::new().config(text).needs(EVERYTHING).good();
    let without_origins = Config {
        effective: Effective::default(),
        ..config
    };
    insta::assert_snapshot!(format!("{without_origins:#?}"), @r#"
    Config {
        cluster: None,
        storage: Some(
            "/var/lib/x",
        ),
        state: Sqlite,
        state_name: Some(
            "x",
        ),
        poll_interval: 10s,
        stalled_after: 300s,
        page_limit: 5000,
        namespace: "other",
        window_size: 43200s,
        filter: EventFilter {
            types: {
                "user.login",
            },
            skip_types: {
                "cert.create",
                "session.start",
            },
        },
        sessions: Some(
            SessionsConfig {
                skip_types: {
                    "print",
                },
                has_summaries: false,
                wait: 43200s,
            },
        ),
        lock: None,
        start_time: Some(
            2026-01-31T07:00:00Z,
        ),
        concurrency: 8,
        grace_period: 0ns,
        dead_letter_bytes: 1048576,
        blocked_bytes: 0,
        log: LogConfig {
            format: Json,
            level: "info,h2=warn",
        },
        listen: Some(
            ListenConfig {
                addr: 0.0.0.0:443,
                is_default: false,
                token: Some(
                    [secret],
                ),
                tls: Some(
                    ListenTls {
                        cert: "/page.crt",
                        key: "/page.key",
                    },
                ),
                hosts: [
                    "indexer.internal",
                ],
                shows_payloads: true,
            },
        ),
        teleport: Some(
            TeleportConfig {
                addr: Address {
                    host: "::1",
                    port: 3025,
                },
                credentials: KeyPair {
                    key: "/a.key",
                    cert: "/a.crt",
                    ca: "/a.cas",
                },
                refresh: Some(
                    30s,
                ),
            },
        ),
        elasticsearch: Some(
            ElasticsearchConfig {
                hosts: [
                    HostUrl("https://es.cloud.example/"),
                ],
                kibana: None,
                auth: Some(
                    ApiKey(
                        [secret],
                    ),
                ),
                auth_file: None,
                verifier_auth: Some(
                    ApiKey(
                        [secret],
                    ),
                ),
                client_certificate: Some(
                    ClientCertificate {
                        certificate: "/es.crt",
                        key: "/es.key",
                    },
                ),
                ca: Some(
                    "/es-ca.crt",
                ),
                ca_fingerprint: None,
                index: "teleport-%Y.%m.%d",
                schema: Raw,
                gzip: Some(
                    false,
                ),
                batch_bytes: 1048576,
                batch_documents: 500,
                batch_age: 1s,
                in_flight: 2,
                request_timeout: 30s,
                old_days: Skip,
                install: InstallConfig {
                    template: "teleport",
                    policy: "teleport-policy",
                    retention: None,
                    shards: 2,
                    replicas: Some(
                        0,
                    ),
                    refresh_interval: 1s,
                    dynamic: true,
                },
            },
        ),
        limits: Limits {
            teleport_requests_per_second: Some(
                10,
            ),
            events_per_second: Some(
                5000,
            ),
            bytes_per_second: Some(
                10000000,
            ),
        },
        backfill_limits: Limits {
            teleport_requests_per_second: Some(
                10,
            ),
            events_per_second: Some(
                5000,
            ),
            bytes_per_second: Some(
                10000000,
            ),
        },
        effective: Effective(
            [],
        ),
    }
    "#);
}

#[test]
fn a_filter_that_contradicts_itself() {
    for (types, skipped, problem) in [
        (
            "session.*,user.login",
            "session.*,cert.*",
            Some("names what types names too: session.*"),
        ),
        (
            "session.start,user.login",
            "session.*",
            Some("names what types names too: session.start"),
        ),
        (
            "session.*.end",
            "session*",
            Some("names what types names too: session.*.end"),
        ),
        ("", "**", Some("leaves nothing to read")),
        ("session.*", "session.network,session.*.end", None),
        ("*", "session.*", None),
    ] {
        let mut gate = Gate::new().flag("skip-event-types", skipped);
        if !types.is_empty() {
            gate = gate.flag("types", types);
        }
        match problem {
            Some(problem) => assert_eq!(gate.mistakes(), format!("--skip-event-types: {problem}")),
            None => assert!(gate.resolve().is_ok(), "{types} {skipped}"),
        }
    }
    let all = Gate::new().flag("types", "user.*,*").resolve();
    assert!(all.is_ok_and(|(config, _)| config.filter.admits_all()));
}

#[test]
fn locks_need_the_events_of_logins_and_a_bound() {
    let gate = || Gate::new().flag("lock.enabled", "true");
    let lock = gate().good().lock.unwrap();
    assert_eq!(
        (lock.failed_attempts_count, lock.period, lock.lock_for),
        (3, Duration::from_secs(60), None)
    );
    let gate = gate()
        .flag("types", "session.*")
        .flag("lock.failed-attempts-count", "0")
        .flag("lock.period", "2d");
    insta::assert_snapshot!(gate.mistakes(), @r#"
    --lock-enabled: needs the events user.login, which types or skip-event-types leave out
    --lock-failed-attempts-count="0": must be a whole number from 1 to 1000
    --lock-period="2d": must be from 1s to 1d
    "#);
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
    insta::assert_snapshot!(gate.cleaned(&shown), @r#"
    storage = "/var/lib/x"  # DIR/config.toml:2
    state = "sqlite"  # default
    dead-letter-bytes = "1GiB"  # default
    blocked-bytes = "1GiB"  # default
    grace-period = "30s"  # default
    batch = 5000  # EVENT_INDEXER_BATCH
    namespace = "default"  # default
    window-size = "24h"  # default
    types = ["user.login", "session.start"]  # --types
    sessions = true  # default
    skip-session-types = ["print", "desktop.recording"]  # default
    session-summaries = true  # default
    session-wait = "48h"  # default
    concurrency = 5  # default
    timeout = "5s"  # default
    log-level = "info"  # default
    log-format = "text"  # default

    [teleport]
    addr = "teleport.example.com:443"  # DIR/config.toml:4
    identity = "/etc/x/identity"  # DIR/config.toml:5
    refresh.enabled = true  # --teleport-refresh-enabled
    refresh.interval = "1m"  # default

    [forward.elasticsearch]
    hosts = ["https://es.example.com:9200"]  # DIR/config.toml:7
    user = "elastic"  # --elasticsearch-user
    password = "[secret]"  # file:DIR/password, EVENT_INDEXER_ELASTICSEARCH_PASSWORD
    index = "audit-events-%Y.%m.%d"  # default
    schema = "raw"  # default
    batch-bytes = "2MiB"  # default
    batch-documents = 10000  # default
    batch-age = "200ms"  # default
    in-flight = 4  # default
    request-timeout = "60s"  # default
    old-days = "refuse"  # default

    [forward.elasticsearch.install]
    template = "audit-events"  # default
    policy = "audit-events"  # default
    retention = "365d"  # default
    shards = 1  # default
    replicas = "auto"  # default
    refresh-interval = "5s"  # default
    dynamic = false  # default

    [listen]
    addr = "127.0.0.1:9747"  # default
    show-payloads = false  # default
    stalled-after = "5m"  # default

    [lock]
    enabled = false  # default
    failed-attempts-count = 3  # default
    period = "1m"  # default
    for = "0s"  # default
    "#);

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
    let (of_one, _) = EXAMPLE.split_once("\n#[[cluster]]\n").unwrap();
    for line in of_one.lines() {
        if let Some(name) = line.strip_prefix('[') {
            table = name.trim_end_matches(']');
        } else if let Some((name, value)) = line.trim_start_matches('#').split_once(" = ") {
            lines.push((table, name, value));
        }
    }
    for key in KEYS {
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

#[test]
fn a_state_in_elasticsearch_needs_a_name_and_no_storage() {
    let needs = Needs {
        state: true,
        ..Needs::default()
    };
    let resolved = |text: &str| {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        let raw = collect(Some(file.path()), Vec::new(), Vec::new()).unwrap();
        let place = file.path().display().to_string();
        let resolved =
            Config::resolve(raw, needs).map(|(config, _)| (config.state, config.state_name));
        resolved.map_err(|wrong| wrong.to_string().replace(&place, "FILE"))
    };
    let hosts = "[forward.elasticsearch]\nhosts = [\"http://127.0.0.1:9200\"]\n";
    let named = format!("state = \"elasticsearch\"\nstate-name = \"a.b-c_1\"\n{hosts}");
    let name = Some("a.b-c_1".to_owned());
    assert_eq!(resolved(&named), Ok((StateHome::Elasticsearch, name)));
    insta::assert_snapshot!(
        resolved(&format!("state = \"elasticsearch\"\n{hosts}")).unwrap_err(),
        @r#"state-name is not set: name the state, or give teleport, from which its name comes (or --state-name, or EVENT_INDEXER_STATE_NAME)"#
    );
    insta::assert_snapshot!(resolved("state = \"disk\"\nstate-name = \"a/b\"").unwrap_err(), @r#"
    FILE:1: state = "disk": must be sqlite or elasticsearch
    FILE:2: state-name = "a/b": must be at most 100 letters, digits, dots, dashes and underscores
    storage is not set: name a directory for the state file (or --storage, or EVENT_INDEXER_STORAGE)
    "#);
}
