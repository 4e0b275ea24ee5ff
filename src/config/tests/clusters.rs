//! Several clusters in one file.

use super::*;

/// What comes of the file for all tables, or for the chosen one.
fn select(gate: &Gate, choice: Option<&str>) -> Result<(Selected, Vec<Warning>), String> {
    let cluster_of = |paths: &CredentialPaths| match paths {
        CredentialPaths::Identity(path) => {
            Some(format!("{}.example.com", path.file_name()?.display()))
        }
        CredentialPaths::KeyPair { .. } => None,
    };
    let selected = Config::select(gate.raw()?, gate.needs, choice, cluster_of);
    selected.map_err(|mistakes| gate.cleaned(&mistakes.to_string()))
}

fn each(gate: &Gate) -> Vec<Config> {
    match select(gate, None) {
        Ok((Selected::Each(configs), warnings)) => {
            assert_eq!(warnings, []);
            configs
        }
        other => panic!("{other:?}"),
    }
}

const TWO: &str = r#"
storage = "/var/lib/x"
skip-event-types = ["session.*"]
concurrency = 2
[teleport]
addr = "one.example.com:443"
identity = "/etc/x/one"
refresh.interval = "2m"
[forward.elasticsearch]
hosts = ["https://es.example.com:9200"]
[[cluster]]
name = "one"
[[cluster]]
name = "two-2"
start-time = "2026-11-01"
skip_event_types = []
concurrency = 3
[cluster.teleport]
addr = "two.example.com:443"
key = "/etc/x/key"
client-crt = "/etc/x/cert"
ca = "/etc/x/ca"
[cluster.lock]
enabled = true
"#;

#[test]
fn a_table_takes_over_what_it_does_not_set_and_is_as_a_file_of_its_own() {
    let gate = Gate::new().config(TWO).needs(EVERYTHING);
    let [one, two] = <[Config; 2]>::try_from(each(&gate)).unwrap();
    assert_eq!(one.cluster.as_deref(), Some("one"));
    assert_eq!(one.storage.as_deref(), Some(Path::new("/var/lib/x/one")));
    let alone = r#"
storage = "/var/lib/x/two-2"
start-time = "2026-11-01"
skip-event-types = []
concurrency = 3
[teleport]
addr = "two.example.com:443"
key = "/etc/x/key"
cert = "/etc/x/cert"
ca = "/etc/x/ca"
refresh.interval = "2m"
[forward.elasticsearch]
hosts = ["https://es.example.com:9200"]
[lock]
enabled = true
"#;
    let alone = Gate::new().config(alone).needs(EVERYTHING).good();
    let as_if_alone = |config: &Config| {
        let (cluster, effective) = (None, Effective::default());
        let config = config.clone();
        format!(
            "{:?}",
            Config {
                cluster,
                effective,
                ..config
            }
        )
    };
    assert_eq!(as_if_alone(&two), as_if_alone(&alone));
    let Ok((Selected::One(chosen), _)) = select(&gate, Some("two-2")) else {
        panic!("not chosen");
    };
    assert_eq!(format!("{chosen:?}"), format!("{two:?}"));
}

#[test]
fn a_flag_and_a_variable_hold_for_all_and_beat_the_tables() {
    let gate = Gate::new()
        .config(TWO)
        .flag("concurrency", "7")
        .variable("EVENT_INDEXER_TYPES", "user.*")
        .needs(EVERYTHING);
    for config in each(&gate) {
        assert_eq!(config.concurrency, 7);
        assert!(config.filter.admits(b"user.login") && !config.filter.admits(b"x"));
    }
}

#[test]
fn what_needs_no_cluster_gets_what_stands_above_all() {
    let needs = Needs {
        elasticsearch: true,
        ..Needs::default()
    };
    let gate = Gate::new().config(TWO).needs(needs);
    let Ok((Selected::One(config), _)) = select(&gate, None) else {
        panic!("it was to need no cluster");
    };
    assert!(config.cluster.is_none() && config.teleport.is_none());
    assert!(config.elasticsearch.is_some());
}

#[test]
fn several_are_shown_as_one_file_that_makes_the_same() {
    let gate = Gate::new().config(TWO).needs(EVERYTHING);
    let configs = each(&gate);
    let shown = Config::show_each(&configs);
    let again = each(&Gate::new().config(&shown).needs(EVERYTHING));
    let without_origins = |configs: &[Config]| {
        let effective = Effective::default();
        let configs = configs.iter().cloned().map(|config| Config {
            effective: effective.clone(),
            ..config
        });
        format!("{:?}", configs.collect::<Vec<_>>())
    };
    assert_eq!(without_origins(&configs), without_origins(&again));
    let shown = gate.cleaned(&shown);
    let set = shown.lines().filter(|line| !line.ends_with("# default"));
    insta::assert_snapshot!(set.collect::<Vec<_>>().join("\n"), @r#"
    storage = "/var/lib/x"  # DIR/config.toml:2

    [forward.elasticsearch]
    hosts = ["https://es.example.com:9200"]  # DIR/config.toml:10

    [forward.elasticsearch.install]

    [listen]

    [[cluster]]
    name = "one"
    skip-event-types = ["session.*"]  # DIR/config.toml:3
    concurrency = 2  # DIR/config.toml:4

    [cluster.teleport]
    addr = "one.example.com:443"  # DIR/config.toml:6
    identity = "/etc/x/one"  # DIR/config.toml:7
    refresh.interval = "2m"  # DIR/config.toml:8

    [cluster.lock]

    [[cluster]]
    name = "two-2"
    skip-event-types = []  # DIR/config.toml:16
    concurrency = 3  # DIR/config.toml:17
    start-time = "2026-11-01"  # DIR/config.toml:15

    [cluster.teleport]
    addr = "two.example.com:443"  # DIR/config.toml:19
    key = "/etc/x/key"  # DIR/config.toml:20
    cert = "/etc/x/cert"  # DIR/config.toml:21
    ca = "/etc/x/ca"  # DIR/config.toml:22
    refresh.interval = "2m"  # DIR/config.toml:8

    [cluster.lock]
    enabled = true  # DIR/config.toml:24
    "#);
}

#[test]
fn every_mistake_in_any_table_is_told_at_once_with_the_table() {
    let text = r#"
storage = "/var/lib/x"
concurrency = "many"
[forward.elasticsearch]
hosts = ["https://es.example.com:9200"]
[[cluster]]
name = "prod"
storage = "/elsewhere"
log-level = "debug"
colour = "red"
batch = 0
[cluster.teleport]
addr = "one.example.com"
key = "/etc/x/key"
[cluster.forward.elasticsearch]
password = "hunter2"
[cluster.limits]
bytes-per-second = "1MiB"
[[cluster]]
name = "Prod 2"
[cluster.teleport]
addr = "two.example.com:443"
identity = "/etc/x/two"
[[cluster]]
[cluster.cluster]
name = "inner"
[[cluster]]
name = 5
[[cluster]]
name = "prod"
[cluster.teleport]
addr = "two.example.com:443"
identity = "/etc/x/two"
[cluster.listen]
addr = "off"
[cluster.forward.fluentd]
url = "https://fluentd"
"#;
    let gate = Gate::new().config(text).needs(EVERYTHING);
    insta::assert_snapshot!(select(&gate, None).unwrap_err(), @r#"
    DIR/config.toml:3: concurrency = "many": must be a whole number from 1 to 64
    DIR/config.toml:8: cluster "prod": storage: cannot differ between clusters: each cluster has a directory of its own below it, by its name
    DIR/config.toml:9: cluster "prod": log-level: cannot differ between clusters: the process has one log
    DIR/config.toml:10: cluster "prod": colour: unknown key; `teleport-event-indexer start --help` lists all settings
    DIR/config.toml:11: cluster "prod": batch = 0: must be a whole number from 1 to 10000
    DIR/config.toml:13: cluster "prod": teleport.addr = "one.example.com": needs a port: host:443 for a Proxy Service, host:3025 for an Auth Service
    DIR/config.toml:14: cluster "prod": teleport.key: goes with teleport.cert and teleport.ca: give all three, or an identity
    DIR/config.toml:16: cluster "prod": forward.elasticsearch.password: cannot differ between clusters: all clusters go into the same Elasticsearch, in the same way
    DIR/config.toml:18: cluster "prod": limits.bytes-per-second: cannot differ between clusters: it is about Elasticsearch, which all clusters share
    DIR/config.toml:20: cluster 2: name: must be of lower-case letters, digits and dashes, with no dash at either end, and of at most 63 characters
    DIR/config.toml:24: cluster 3: name is not set: give each cluster one, such as name = "production"; its state lies in a directory of that name below storage
    DIR/config.toml:24: cluster 3: teleport.addr is not set: give host:443 of a Proxy Service or host:3025 of an Auth Service, in this table or above all tables
    DIR/config.toml:24: cluster 3: teleport.identity is not set: name the identity file, or set key, cert and ca, in this table or above all tables
    DIR/config.toml:26: cluster 3: cluster.name: unknown key; `teleport-event-indexer start --help` lists all settings
    DIR/config.toml:27: cluster 4: teleport.addr is not set: give host:443 of a Proxy Service or host:3025 of an Auth Service, in this table or above all tables
    DIR/config.toml:27: cluster 4: teleport.identity is not set: name the identity file, or set key, cert and ca, in this table or above all tables
    DIR/config.toml:28: cluster 4: name: must be a text in quotes
    DIR/config.toml:30: cluster "prod": name: is that of the table at DIR/config.toml:6 too
    DIR/config.toml:35: cluster "prod": listen.addr: cannot differ between clusters: the process has one status page
    DIR/config.toml:36: cluster "prod": forward.fluentd: this belongs to teleport-event-handler: events go straight to Elasticsearch; put [forward.elasticsearch] in its place, with hosts or cloud-id, and user and password or api-key
    DIR/config.toml:37: cluster "prod": forward.fluentd.url: this belongs to teleport-event-handler: events go straight to Elasticsearch; set forward.elasticsearch.hosts
    "#);
}

#[test]
fn two_tables_must_not_read_the_same() {
    let text = TWO
        .replace("addr = \"two.example.com:443\"", "")
        .replace("key = ", "#")
        .replace("client-crt = ", "#")
        .replace("ca = ", "#");
    let gate = Gate::new().config(&text).needs(EVERYTHING);
    insta::assert_snapshot!(select(&gate, None).unwrap_err(), @r#"DIR/config.toml:13: cluster "two-2": has the teleport.addr and the credentials of cluster "one" (DIR/config.toml:11), so it is the same cluster"#);
    // Of one address there may be several clusters, told apart by their identities.
    let text = TWO.replace("addr = \"two.example.com:443\"", "");
    assert_eq!(each(&Gate::new().config(&text).needs(EVERYTHING)).len(), 2);
    // A variable that was left over makes all of them the same.
    let gate = Gate::new()
        .config(TWO)
        .variable("EVENT_INDEXER_TELEPORT_ADDR", "three.example.com:443")
        .variable("EVENT_INDEXER_TELEPORT_IDENTITY", "/etc/x/three")
        .needs(EVERYTHING);
    insta::assert_snapshot!(select(&gate, None).unwrap_err(), @r#"DIR/config.toml:13: cluster "two-2": has the teleport.addr and the credentials of cluster "one" (DIR/config.toml:11), so it is the same cluster"#);
}

const LED: &str = r#"
state = "elasticsearch"
[forward.elasticsearch]
hosts = ["https://es.example.com:9200"]
[[cluster]]
name = "one"
[cluster.teleport]
addr = "one.example.com:443"
identity = "/etc/x/one"
[[cluster]]
name = "two"
[cluster.teleport]
addr = "two.example.com:443"
identity = "/etc/x/two"
[[cluster]]
name = "three"
[cluster.teleport]
addr = "three.example.com:443"
identity = "/etc/x/three"
"#;

#[test]
fn two_tables_must_not_have_one_state() {
    let needs = Needs {
        storage: false,
        ..EVERYTHING
    };
    assert_eq!(each(&Gate::new().config(LED).needs(needs)).len(), 3);
    let named = |text: &str, table: &str, name: &str| {
        let head = format!("name = \"{table}\"");
        text.replace(&head, &format!("{head}\nstate-name = \"{name}\""))
    };
    let wrong = |text: &str| select(&Gate::new().config(text).needs(needs), None).unwrap_err();
    // The same name twice, that of another one's cluster before and behind it, and another mistake.
    let text = named(LED, "one", "a");
    let text = named(&text, "two", "a").replace("three.example.com:443", "three.example.com");
    insta::assert_snapshot!(wrong(&text), @r#"
    DIR/config.toml:13: cluster "two": state-name = "a": cluster "one" (DIR/config.toml:5) and cluster "two" (DIR/config.toml:11) would have this one state: give each a state-name of its own in its table, or none
    DIR/config.toml:17: cluster "three": state-name is not set: name the state, or give teleport, from which its name comes, in this table or above all tables
    DIR/config.toml:20: cluster "three": teleport.addr = "three.example.com": needs a port: host:443 for a Proxy Service, host:3025 for an Auth Service
    "#);
    insta::assert_snapshot!(wrong(&named(LED, "one", "three.example.com")), @r#"DIR/config.toml:7: cluster "one": state-name = "three.example.com": cluster "one" (DIR/config.toml:5) and cluster "three" (DIR/config.toml:16) would have this one state: give each a state-name of its own in its table, or none"#);
    insta::assert_snapshot!(wrong(&named(LED, "three", "one.example.com")), @r#"DIR/config.toml:17: cluster "three": state-name = "one.example.com": cluster "one" (DIR/config.toml:5) and cluster "three" (DIR/config.toml:15) would have this one state: give each a state-name of its own in its table, or none"#);
    // Two ways to one cluster.
    let text = LED.replace("/etc/x/two", "/etc/y/one");
    insta::assert_snapshot!(wrong(&text), @r#"DIR/config.toml:10: cluster "two": its credentials lead to one.example.com, as those of cluster "one" (DIR/config.toml:5) do, so both would have one state: take one of them away, or give one a state-name"#);
    assert_eq!(
        each(&Gate::new().config(&named(&text, "two", "b")).needs(needs)).len(),
        3
    );
    // Of all tables it is a mistake, as a flag only for all.
    let text = LED.replacen("state =", "state-name = \"a\"\nstate =", 1);
    insta::assert_snapshot!(wrong(&text), @r#"
    DIR/config.toml:2: state-name = "a": cluster "one" (DIR/config.toml:6) and cluster "two" (DIR/config.toml:11) would have this one state: give each a state-name of its own in its table, or none
    DIR/config.toml:2: state-name = "a": cluster "one" (DIR/config.toml:6) and cluster "three" (DIR/config.toml:16) would have this one state: give each a state-name of its own in its table, or none
    "#);
    let gate = Gate::new().config(LED).flag("state-name", "a").needs(needs);
    insta::assert_snapshot!(select(&gate, None).unwrap_err(), @r#"
    --state-name="a": cluster "one" (DIR/config.toml:5) and cluster "two" (DIR/config.toml:10) would have this one state: give each a state-name of its own in its table, or none
    --state-name="a": cluster "one" (DIR/config.toml:5) and cluster "three" (DIR/config.toml:15) would have this one state: give each a state-name of its own in its table, or none
    "#);
    assert!(select(&gate, Some("one")).is_ok());
    // In files they have directories of their own, and no names.
    let text = text.replace("\"elasticsearch\"", "\"sqlite\"");
    assert_eq!(
        each(
            &Gate::new()
                .config(&format!("storage = \"/x\"{text}"))
                .needs(needs)
        )
        .len(),
        3
    );
}

#[test]
fn the_table_of_the_example_can_be_used_as_it_stands() {
    let (of_one, table) = EXAMPLE.split_once("\n#[[cluster]]\n").unwrap();
    let text = format!("{of_one}\n[[cluster]]\n{}", table.replace('#', ""));
    let text = text.replace("file:/etc/teleport-event-indexer/", "file:DIR/");
    let gate = Gate::new()
        .config(&text)
        .file("elasticsearch-api-key", "id:key\n", 0o600)
        .needs(EVERYTHING);
    let configs = each(&gate);
    let names = configs.iter().map(|config| config.cluster.as_deref());
    assert_eq!(names.collect::<Vec<_>>(), [Some("production")]);
}

#[test]
fn what_is_no_table_is_told() {
    for (text, told) in [
        ("cluster = 5", "must be written [[cluster]]"),
        ("[cluster]\nname = \"prod\"", "must be written [[cluster]]"),
        ("cluster = []", "must be written [[cluster]]"),
        ("cluster = [5]", "must be tables, [[cluster]]"),
        (
            "[[clusters]]\nname = \"prod\"",
            "clusters: unknown key; did you mean [[cluster]]?",
        ),
    ] {
        let mistakes = select(&Gate::new().config(text), None).unwrap_err();
        assert!(mistakes.contains(told), "{mistakes}");
    }
}

#[test]
fn a_choice_must_be_one_of_the_tables() {
    let gate = Gate::new().config(TWO).needs(EVERYTHING);
    insta::assert_snapshot!(select(&gate, Some("three")).unwrap_err(), @r#"--cluster three: there is no such table [[cluster]] in the configuration file, only one, two-2"#);
    let gate = Gate::new().config(LEAST).needs(EVERYTHING);
    insta::assert_snapshot!(select(&gate, Some("one")).unwrap_err(), @r#"--cluster one: the configuration file has no tables [[cluster]]"#);
}
