//! Files, variables and flags. The wording of each mistake has its tests beside the configuration
//! itself; these show how mistakes come out of the program.

use insta::assert_snapshot;

use crate::support::program::Indexer;
use crate::support::seen::PASSWORD;

#[test]
fn a_configuration_file_that_is_not_there() {
    let indexer = Indexer::new();
    assert_snapshot!(indexer.seen(&["start", "-c", "config.toml"]), @"
    exit code 2
    --- stderr
    error: cannot read the configuration file config.toml: No such file or directory (os error 2)
    hint: name another file with --config or EVENT_INDEXER_CONFIG, or leave both out and make every setting by flag or variable
    ");
}

#[test]
fn all_mistakes_of_a_file_at_once() {
    let indexer = Indexer::new();
    indexer.write(
        "config.toml",
        &format!(
            r#"
storge = "state"
timeout = 5
[teleport]
addr = "teleport.example.com:443"
identity = "identity"
key = "teleport.key"
cert = "teleport.crt"
ca = "teleport.cas"
[forward.fluentd]
url = "https://localhost:8888/test.log"
[forward.elasticsearch]
hosts = ["https://elastic:{PASSWORD}@es.example.com"]
password = "{PASSWORD}"
"#
        ),
    );
    assert_snapshot!(indexer.seen(&["start", "-c", "config.toml"]), @"
    exit code 2
    --- stderr
    error: config.toml:2: storge: unknown key; did you mean storage?
    error: config.toml:3: timeout = 5: needs a unit: 5s, 5m or 5h
    error: config.toml:6: teleport.identity: excludes teleport.key (config.toml:7); keep either the identity file or key, cert and ca
    error: config.toml:10: forward.fluentd: this belongs to teleport-event-handler: events go straight to Elasticsearch; put [forward.elasticsearch] in its place, with hosts or cloud-id, and user and password or api-key
    error: config.toml:11: forward.fluentd.url: this belongs to teleport-event-handler: events go straight to Elasticsearch; set forward.elasticsearch.hosts
    error: config.toml:13: forward.elasticsearch.hosts: host 1 holds a user or password; move them to user and password (or cloud-auth, or api-key)
    error: config.toml:14: forward.elasticsearch.password: goes with user, which is not set
    error: storage is not set: name a directory for the state file (or --storage, or EVENT_INDEXER_STORAGE)
    ");
}

#[test]
fn text_that_is_no_toml() {
    let indexer = Indexer::new();
    let text = format!("[forward.elasticsearch]\npassword = \"{PASSWORD}\nuser = \"a\"\n");
    indexer.write("config.toml", &text);
    assert_snapshot!(indexer.seen(&["start", "-c", "config.toml"]), @r#"
    exit code 2
    --- stderr
    error: config.toml:2: no valid TOML: invalid basic string, expected `"`
    "#);
}

#[test]
fn flags_of_the_event_handler() {
    let args = [
        "start",
        "-d",
        "--fluentd-url=https://localhost:8888/a.log",
        "--fluentd-session-url",
        "https://localhost:8888/session",
        "--fluentd-ca",
        "ca.crt",
        "--fluentd-cert=client.crt",
        "--fluentd-key=client.key",
        "--fluentd-max-connections",
        "10",
        "--cursor=",
        "--batch",
        "20",
    ];
    assert_snapshot!(Indexer::new().seen(&args), @"
    exit code 2
    --- stderr
    error: --debug: this belongs to teleport-event-handler: give --log-level=debug
    --fluentd-url: this belongs to teleport-event-handler: events go straight to Elasticsearch; give --elasticsearch-hosts
    --fluentd-session-url: this belongs to teleport-event-handler: events of session recordings go into the same indices as all others; leave it out
    --fluentd-ca: this belongs to teleport-event-handler: events go straight to Elasticsearch; give --elasticsearch-ca
    --fluentd-cert: this belongs to teleport-event-handler: events go straight to Elasticsearch; give --elasticsearch-client-cert
    --fluentd-key: this belongs to teleport-event-handler: events go straight to Elasticsearch; give --elasticsearch-client-key
    --fluentd-max-connections: this belongs to teleport-event-handler: one request carries thousands of events; give --elasticsearch-in-flight
    --cursor: this belongs to teleport-event-handler: the position is kept in the state file, and --import-state takes over the event handler's; leave it out

    Usage: teleport-event-indexer start [OPTIONS]

    For more information, try '--help'.
    ");
}

#[test]
fn nothing_set_at_all() {
    assert_snapshot!(Indexer::new().seen(&["backfill", "--from", "2026-01-01", "--to", "2026-01-02"]), @"
    exit code 2
    --- stderr
    error: storage is not set: name a directory for the state file (or --storage, or EVENT_INDEXER_STORAGE)
    error: teleport.addr is not set: give host:443 of a Proxy Service or host:3025 of an Auth Service (or --teleport-addr, or EVENT_INDEXER_TELEPORT_ADDR)
    error: teleport.identity is not set: name the identity file, or set key, cert and ca (or --teleport-identity, or EVENT_INDEXER_TELEPORT_IDENTITY)
    error: forward.elasticsearch.hosts is not set: give the URLs of the cluster, or an Elastic Cloud id as cloud-id (or --elasticsearch-hosts, or EVENT_INDEXER_ELASTICSEARCH_HOSTS)
    ");
}

#[test]
fn a_password_on_the_command_line() {
    let indexer = Indexer::new();
    let hosts = ["install", "--elasticsearch-hosts", "http://localhost:9200"];
    let plain = format!("--elasticsearch-password={PASSWORD}");
    let args = [&hosts[..], &["--elasticsearch-user", "a", &plain]].concat();
    assert_snapshot!(indexer.seen(&args), @"
    exit code 2
    --- stderr
    error: --elasticsearch-password: a secret on the command line is visible in the process list; use file:PATH or EVENT_INDEXER_ELASTICSEARCH_PASSWORD
    ");

    // Where no such flag is, nobody repeats what was given with it.
    assert_snapshot!(indexer.seen(&["version", &plain]), @"
    exit code 2
    --- stderr
    error: unexpected argument '--elasticsearch-password' found

    Usage: teleport-event-indexer version [OPTIONS]

    For more information, try '--help'.
    ");
    let misspelled = plain.replace("password", "pasword");
    assert_snapshot!(indexer.seen(&["install", &misspelled]), @"
    exit code 2
    --- stderr
    error: unexpected argument '--elasticsearch-pasword' found

      tip: a similar argument exists: '--elasticsearch-password'

    Usage: teleport-event-indexer install --elasticsearch-password <file:PATH>

    For more information, try '--help'.
    ");
}

#[test]
fn a_secret_in_a_file_that_is_not_there() {
    let indexer = Indexer::new();
    let hosts = ["install", "--elasticsearch-hosts", "http://localhost:9200"];
    let args = [&hosts[..], &["--elasticsearch-api-key", "file:api-key"]].concat();
    assert_snapshot!(indexer.seen(&args), @"
    exit code 2
    --- stderr
    error: --elasticsearch-api-key: no secret in the file api-key: it cannot be read: No such file or directory (os error 2)
    ");
}

#[test]
fn ranges_that_make_no_sense() {
    let indexer = Indexer::new();
    let range = |from, to| indexer.seen(&["backfill", "--dry-run", "--from", from, "--to", to]);
    assert_snapshot!(range("yesterday", "2026-01-02"), @"
    exit code 2
    --- stderr
    error: invalid value 'yesterday' for '--from <TIME>': must be RFC 3339 with a zone (2026-01-31T08:00:00Z) or a date (2026-01-31, midnight UTC)

    For more information, try '--help'.
    ");
    assert_snapshot!(range("2026-01-02", "2026-01-01"), @"
    exit code 2
    --- stderr
    error: --from must be before --to, which is exclusive

    Usage: teleport-event-indexer backfill [OPTIONS]

    For more information, try '--help'.
    ");
}
