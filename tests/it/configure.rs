//! `configure`: the files it writes and what it says, whole.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use insta::assert_snapshot;

use crate::support::program::Indexer;
use crate::support::seen::seen;

fn shown(indexer: &Indexer, args: &[&str]) -> String {
    seen(&indexer.run(args), indexer.directory())
}

fn read(indexer: &Indexer, name: &str) -> String {
    fs::read_to_string(indexer.directory().join(name)).expect("it was written")
}

/// Values for Helm, without the time of the run.
fn without_now(text: &str) -> String {
    let lines = text.lines();
    let lines = lines.map(|line| match line.split_once("start-time: ") {
        Some((before, _)) => format!("{before}start-time: NOW"),
        None => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The lines of a configuration that set something, without the time of the run.
fn settings(text: &str) -> String {
    let lines = text.lines();
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let lines = lines.map(|line| match line.split_once("start-time = ") {
        Some(("", time)) if time.ends_with("Z\"") => "start-time = NOW",
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn everything_for_a_new_cluster() {
    let indexer = Indexer::new();
    indexer.write("key", "id:key");
    let args = [
        "configure",
        "out",
        "teleport.example.com:443",
        "--locks",
        "--elasticsearch-hosts=https://one.example.com:9200,https://two.example.com:9200",
        "--elasticsearch-api-key=file:key",
        "--storage=state",
    ];
    assert_snapshot!(shown(&indexer, &args), @r#"
    exit code 0
    --- stdout
    out/config.toml: the configuration
    out/teleport-role.yaml: role and user for Teleport
    out/teleport-impersonator-role.yaml: role for who signs the identity
    out/tbot.yaml: Machine ID, which keeps the identity fresh
    out/elasticsearch-writer-role.json: role for Elasticsearch, for who makes it by hand
    out/teleport-event-indexer.service: systemd unit
    out/kubernetes.yaml: configuration, volume and deployment for Kubernetes, without Helm
    out/helm-values.yaml: values for the Helm chart

    Next, Teleport knows the indexer. Once, with tctl:

      tctl create out/teleport-role.yaml

    and then its identity comes from one of these:

      a workstation with tctl, for a trial:
        tctl auth sign --format=file --user=teleport-event-indexer --ttl=24h --out=identity
        and set identity in [teleport] to that file (whoever is no administrator needs teleport-impersonator-role.yaml: docs/teleport.md)
      a Linux machine, with Machine ID, which keeps it fresh:
        tctl bots add teleport-event-indexer --roles=teleport-event-indexer
        put the token that it prints into out/tbot.yaml, then: tbot start -c out/tbot.yaml
      Kubernetes, with Machine ID in the cluster:
        let tbot write a secret (output kubernetes_secret) named teleport-event-indexer-identity,
        or have the Helm chart run a tbot beside the indexer: see tbot in out/helm-values.yaml

    Elasticsearch: as a user who may:

      teleport-event-indexer install --elasticsearch-hosts https://one.example.com:9200,https://two.example.com:9200 \
          --elasticsearch-user elastic --elasticsearch-password file:elastic-password \
          --create-api-key --secret-file elasticsearch-api-key

    and have api-key in [forward.elasticsearch] name that file.

    Then prove it all, and go:

      teleport-event-indexer check -c out/config.toml
      teleport-event-indexer start -c out/config.toml

    or, on Kubernetes, in the namespace where the secret with the identity is:

      kubectl create secret generic teleport-event-indexer-elasticsearch --from-file=api-key=elasticsearch-api-key
      helm install teleport-event-indexer packaging/helm/teleport-event-indexer --values out/helm-values.yaml
      (without Helm: kubectl apply -f out/kubernetes.yaml)
    "#);
    assert_snapshot!(without_now(&read(&indexer, "out/helm-values.yaml")), @r#"
    # Values for the chart in packaging/helm/teleport-event-indexer, which has many more:
    #   helm install teleport-event-indexer packaging/helm/teleport-event-indexer --values helm-values.yaml
    # They hold no secret: the chart takes secrets of the cluster by name.
    config:
      forward:
        elasticsearch:
          hosts: ["https://one.example.com:9200","https://two.example.com:9200"]
      start-time: NOW
      teleport:
        addr: "teleport.example.com:443"

    image:
      # Where your cluster finds the image that you have built from the Dockerfile.
      repository: teleport-event-indexer

    elasticsearch:
      # Has the API key in the key `api-key`.
      existingSecret: teleport-event-indexer-elasticsearch
      # Has the CA in the key `ca.crt`; empty: the system's certificate authorities.
      caSecret: ""

    teleport:
      # Has the identity in the key `identity`; used while tbot is off.
      identitySecret: teleport-event-indexer-identity

    # Better: a tbot beside the indexer keeps the identity fresh. It joins by the pod's own token, so it
    # needs a join token of the method `kubernetes`, named here, and the cluster's name.
    tbot:
      enabled: false
      token: teleport-event-indexer
      clusterName: teleport.example.com
    "#);
    assert_snapshot!(settings(&read(&indexer, "out/config.toml")), @r#"
    storage = "state"
    start-time = NOW
    [teleport]
    addr = "teleport.example.com:443"
    identity = "/var/lib/teleport-event-indexer/identity"
    [forward.elasticsearch]
    hosts = ["https://one.example.com:9200", "https://two.example.com:9200"]
    api-key = "file:key"
    [forward.elasticsearch.install]
    [lock]
    [limits]
    [limits.backfill]
    [listen]
    "#);
    assert_snapshot!(read(&indexer, "out/teleport-role.yaml"), @r#"
    # What the indexer may do in Teleport, and who it is:  tctl create teleport-role.yaml
    kind: role
    version: v7
    metadata:
      name: teleport-event-indexer
    spec:
      allow:
        rules:
          # The audit log, and session recordings.
          - resources: [event, session]
            verbs: [list, read]
          # Locks for users who fail to log in again and again.
          - resources: [lock]
            verbs: [list, read, create, update]
    ---
    kind: user
    version: v2
    metadata:
      name: teleport-event-indexer
    spec:
      roles: [teleport-event-indexer]
    "#);
    assert_snapshot!(read(&indexer, "out/tbot.yaml"), @r#"
    # Machine ID keeps the identity fresh:  tbot start -c tbot.yaml
    version: v2
    proxy_server: "teleport.example.com:443"
    onboarding:
      join_method: token
      # As `tctl bots add teleport-event-indexer --roles=teleport-event-indexer` prints it.
      token: "TOKEN"
    storage:
      type: directory
      path: /var/lib/teleport/bot
    outputs:
      - type: identity
        destination:
          type: directory
          path: "/var/lib/teleport-event-indexer/identity"
    "#);
    assert_snapshot!(read(&indexer, "out/kubernetes.yaml").lines().filter(|line| line.starts_with("    storage = ") || line.starts_with("    identity = ") || line.starts_with("    api-key = ")).collect::<Vec<_>>().join("\n"), @r#"
    storage = "/state"
    identity = "/identity"
    api-key = "file:/secrets/api-key"
    "#);
    // What was written is a configuration.
    let status = indexer.run(&["status", "-c", "out/config.toml"]);
    assert_ne!(status.code, Some(2), "{}", status.stderr);

    let before = read(&indexer, "out/config.toml");
    assert_snapshot!(shown(&indexer, &["configure", "out", "other.example.com:443"]), @r#"
    exit code 2
    --- stderr
    error: these are there already: out/config.toml, out/teleport-role.yaml, out/teleport-impersonator-role.yaml, out/tbot.yaml, out/elasticsearch-writer-role.json, out/teleport-event-indexer.service, out/kubernetes.yaml, out/helm-values.yaml; name another folder, or replace them with --force
    "#);
    assert_eq!(read(&indexer, "out/config.toml"), before);
    let forced = indexer.run(&["configure", "out", "other.example.com:443", "--force"]);
    assert_eq!(forced.code, Some(0), "{}", forced.stderr);
    assert!(read(&indexer, "out/config.toml").contains("other.example.com:443"));
    assert!(!read(&indexer, "out/teleport-role.yaml").contains("lock"));
    let left = fs::read_dir(indexer.directory().join("out")).expect("it is there");
    assert_eq!(left.count(), 8);
}

#[test]
fn all_may_read_what_holds_no_secret_and_nobody_else_may_write() {
    for umask in ["000", "022", "077"] {
        let indexer = Indexer::new();
        let with_umask = format!("umask {umask} && exec \"$0\" \"$@\"");
        let args = ["configure", "out", "teleport.example.com:443"];
        let output = indexer
            .spawn_through(&["sh", "-c", &with_umask], &args)
            .wait();
        assert_eq!(output.code, Some(0), "{}", output.stderr);
        let found = fs::read_dir(indexer.directory().join("out")).expect("it is there");
        for file in found {
            let file = file.expect("it can be listed");
            let mode = file.metadata().expect("it is there").permissions().mode() & 0o777;
            let expected = match file.file_name() == "config.toml" {
                true => 0o600,
                false => 0o644,
            };
            assert_eq!(mode, expected, "{umask}: {}", file.path().display());
        }
    }
}

#[test]
fn the_event_handlers_configuration_translated() {
    let indexer = Indexer::new();
    indexer.write(
        "teleport-event-handler.toml",
        r#"storage = "./storage"
timeout = "10s"
batch = 20
skip-session-types = ["print"]
types = "user.login,session.upload"
debug = true
dry-run = false

[forward.fluentd]
ca = "ca.crt"
cert = "client.crt"
key = "client.key"
url = "https://fluentd.example.com:8888/test.log"
session-url = "https://fluentd.example.com:8888/session"

[teleport]
addr = "teleport.example.com:443"
identity = "identity"
refresh.enabled = true
"#,
    );
    let args = ["configure", "out", "--from", "teleport-event-handler.toml"];
    let said = shown(&indexer, &args);
    let notes = said.split("--- stderr").nth(1).unwrap_or_default();
    assert_snapshot!(notes, @r#"

    note: teleport-event-handler.toml:6: debug is left out: set log-level = "debug"
    note: teleport-event-handler.toml:7: dry-run is left out: it is a flag of the command: start --dry-run
    note: teleport-event-handler.toml:9: forward.fluentd is left out: events go straight to Elasticsearch; put [forward.elasticsearch] in its place, with hosts or cloud-id, and user and password or api-key
    note: teleport-event-handler.toml:10: forward.fluentd.ca is left out: events go straight to Elasticsearch; set forward.elasticsearch.ca
    note: teleport-event-handler.toml:11: forward.fluentd.cert is left out: events go straight to Elasticsearch; set forward.elasticsearch.client-cert
    note: teleport-event-handler.toml:12: forward.fluentd.key is left out: events go straight to Elasticsearch; set forward.elasticsearch.client-key
    note: teleport-event-handler.toml:14: forward.fluentd.session-url is left out: events of session recordings go into the same indices as all others; leave it out
    note: teleport-event-handler.toml:13: forward.fluentd.url is left out: events go straight to Elasticsearch; set forward.elasticsearch.hosts
    note: teleport-event-handler.toml:3: batch is left out: so small a page makes searches slow
    "#);
    assert!(
        said.contains("start -c out/config.toml --import-state ./storage"),
        "{said}"
    );
    // Whatever starts the program says where to go on: nothing begins at its own moment.
    let unit = read(&indexer, "out/teleport-event-indexer.service");
    let start =
        "start --config /etc/teleport-event-indexer/config.toml --import-state \"./storage\"";
    assert!(unit.contains(start), "{unit}");
    let manifest = read(&indexer, "out/kubernetes.yaml");
    for part in [
        "args: [start, -c, /config/config.toml, --import-state, /event-handler]",
        "- {name: event-handler, mountPath: /event-handler, readOnly: true}",
        "- {name: event-handler, persistentVolumeClaim: {claimName: teleport-plugin-event-handler}}",
    ] {
        assert!(manifest.contains(part), "{manifest}");
    }
    let values = read(&indexer, "out/helm-values.yaml");
    let claim = "importState:\n  claim: teleport-plugin-event-handler\n";
    assert!(values.contains(claim), "{values}");
    // Where the folder is, its place holds from everywhere.
    let storage = indexer.directory().join("storage");
    fs::create_dir(&storage).expect("a new folder");
    // Ours is another one.
    let more = ["--storage=state", "--force"];
    let said = shown(&indexer, &[&args[..], &more].concat());
    let storage = storage.canonicalize().expect("it is there");
    let unit = read(&indexer, "out/teleport-event-indexer.service");
    let flag = format!("--import-state \"{}\"", storage.display());
    assert!(unit.contains(&flag), "{unit} {said}");
    assert_snapshot!(settings(&read(&indexer, "out/config.toml")), @r#"
    storage = "state"
    types = ["user.login", "session.upload"]
    skip-session-types = ["print"]
    timeout = "10s"
    [teleport]
    addr = "teleport.example.com:443"
    identity = "identity"
    refresh.enabled = true
    [forward.elasticsearch]
    hosts = ["https://elasticsearch.example.com:9200"]
    api-key = "file:/etc/teleport-event-indexer/elasticsearch-api-key"
    [forward.elasticsearch.install]
    [lock]
    [limits]
    [limits.backfill]
    [listen]
    "#);
}

#[test]
fn what_has_no_purpose_or_is_wrong() {
    let indexer = Indexer::new();
    let args =
        |more: &[&'static str]| [&["configure", "out", "teleport.example.com:443"], more].concat();
    assert_snapshot!(shown(&indexer, &args(&["--ttl=87600h", "--dns-names", "localhost", "--cn", "x", "--length=4096", "--output", "fluentd"])), @r#"
    exit code 2
    --- stderr
    error: --cn: it was for the certificates between the event handler and Fluentd or Logstash; there is nothing between this program and Elasticsearch, so leave it out
    --dns-names: it was for the certificates between the event handler and Fluentd or Logstash; there is nothing between this program and Elasticsearch, so leave it out
    --length: it was for the certificates between the event handler and Fluentd or Logstash; there is nothing between this program and Elasticsearch, so leave it out
    --ttl: it was for the certificates between the event handler and Fluentd or Logstash; there is nothing between this program and Elasticsearch, so leave it out
    --output: there is one kind of output, for Elasticsearch; leave it out

    Usage: teleport-event-indexer configure [OPTIONS] <DIR> [ADDR]

    For more information, try '--help'.
    "#);
    assert_snapshot!(shown(&indexer, &["configure", "out"]), @r#"
    exit code 2
    --- stderr
    error: ADDR is missing: Teleport's address, such as teleport.example.com:443

    Usage: teleport-event-indexer configure [OPTIONS] <DIR> [ADDR]

    For more information, try '--help'.
    "#);
    assert_snapshot!(shown(&indexer, &["configure", "out", "teleport.example.com", "--concurrency=many"]), @r#"
    exit code 2
    --- stderr
    error: --concurrency="many": must be a whole number from 1 to 64
    error: --teleport-addr="teleport.example.com": needs a port: host:443 for a Proxy Service, host:3025 for an Auth Service
    "#);
    indexer.write("a-file", "");
    assert_snapshot!(shown(&indexer, &["configure", "a-file", "teleport.example.com:443"]), @r#"
    exit code 2
    --- stderr
    error: cannot make the folder a-file: File exists (os error 17)
    "#);
    assert_snapshot!(shown(&indexer, &["configure", "out", "--from", "nowhere.toml"]), @r#"
    exit code 2
    --- stderr
    error: cannot read the configuration file nowhere.toml: No such file or directory (os error 2)
    "#);
    assert!(!indexer.directory().join("out").exists());
}

#[test]
fn a_state_in_elasticsearch_takes_several_pods_and_no_volume() {
    let indexer = Indexer::new();
    let args = [
        "configure",
        "out",
        "teleport.example.com:443",
        "--elasticsearch-hosts=https://one.example.com:9200",
        "--state=elasticsearch",
    ];
    let said = shown(&indexer, &args);
    assert!(said.contains("event-indexer install --work "), "{said}");
    let manifest = read(&indexer, "out/kubernetes.yaml");
    for (part, is_there) in [
        ("kind: PodDisruptionBudget\n", true),
        ("  minAvailable: 1\n", true),
        ("  replicas: 2\n", true),
        ("topologyKey: kubernetes.io/hostname\n", true),
        ("    state = \"elasticsearch\"\n", true),
        ("    storage = ", false),
        ("PersistentVolumeClaim", false),
        ("mountPath: /state", false),
        ("Recreate", false),
        ("@", false),
    ] {
        assert_eq!(manifest.contains(part), is_there, "{part} {manifest}");
    }
    let config = read(&indexer, "out/config.toml");
    assert!(!config.contains("\nstorage = "), "{config}");

    // Who takes over from the event handler begins alone.
    indexer.write(
        "handler.toml",
        "storage = \"./storage\"\n[teleport]\naddr = \"teleport.example.com:443\"\nidentity = \"identity\"\n",
    );
    let more = ["--from=handler.toml", "--force"];
    shown(&indexer, &[&args[..], &more].concat());
    let manifest = read(&indexer, "out/kubernetes.yaml");
    assert!(manifest.contains("  replicas: 1\n"), "{manifest}");
    assert!(manifest.contains("  maxUnavailable: 1\n"), "{manifest}");
    let values = read(&indexer, "out/helm-values.yaml");
    assert!(values.contains("\nreplicas: 1\n"), "{values}");
}
