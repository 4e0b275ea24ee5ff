//! What `install` says and does on a real server, whatever it finds there and whoever asks.

use insta::assert_snapshot;
use serde_json::{Value, json};

use crate::support::elasticsearch::{Elasticsearch, oldest, with_security};
use crate::support::program::Indexer;
use crate::support::seen::{PASSWORD, seen};
use crate::support::stand_ins::NOBODY;

/// A server, and an indexer whose user has these privileges on the cluster, and all on the indices.
struct Setup {
    server: &'static Elasticsearch,
    indexer: Indexer,
}

impl Setup {
    fn new(name: &str, privileges: &[&str]) -> Option<Self> {
        let server = Elasticsearch::shared(with_security(), true)?;
        let indexer = Indexer::new();
        let more = format!(
            "index = \"{name}-%Y.%m.%d\"\ninstall = {{ template = \"{name}\", policy = \"{name}\" }}"
        );
        indexer.configure(NOBODY, &server.url(), &more);
        let setup = Self { server, indexer };
        Some(setup.with_user(name, privileges))
    }

    /// The same with a user who has these privileges.
    fn with_user(mut self, name: &str, privileges: &[&str]) -> Self {
        let indices = json!([{"names": [format!("{name}-*")], "privileges": ["all"]}]);
        let role = json!({"cluster": privileges, "indices": indices});
        let user = format!("{name}-{}", privileges.join("-"));
        self.server.create_user(&user, PASSWORD, &role);
        let variable = "EVENT_INDEXER_ELASTICSEARCH_USER";
        self.indexer = self.indexer.env(variable, &user);
        self
    }

    /// What is seen of one installation; the next finds another state.
    fn install(&self, args: &[&str]) -> String {
        let args = [&["install", "-c", "config.toml"], args].concat();
        seen(&self.indexer.run(&args), self.indexer.directory())
    }
}

#[test]
fn over_what_an_older_version_has_installed() {
    let Some(setup) = Setup::new("install-older", &["all"]) else {
        return;
    };
    // As the program of version 0.1.0 with format 1 of its template has sent it.
    let assets: Value =
        serde_json::from_str(include_str!("install/version_1.json")).expect("it is JSON");
    for asset in assets.as_array().expect("it is a list") {
        let path = asset["path"].as_str().expect("it is a text");
        setup.server.request("PUT", path, &asset["body"]).success();
    }
    assert_snapshot!(setup.install(&[]), @r#"
    exit code 0
    --- stdout
    lifecycle policy install-older: up to date
    component template install-older@custom: yours, left as it is
    index template install-older: updated
    --- stderr
    TIME  INFO connected to Elasticsearch at http://127.0.0.1:PORT/ version="9.5.3"
    index template install-older: template.mappings.properties.event_indexer.gap.sid.ignore_above: (absent) → 8191
    index template install-older: template.mappings.properties.event_indexer.gap.sid.type: (absent) → keyword
    index template install-older: template.mappings.properties.event_indexer.session.commands.type: (absent) → long
    index template install-older: template.mappings.properties.event_indexer.session.duration_ms.type: (absent) → long
    index template install-older: template.mappings.properties.event_indexer.session.end.type: (absent) → date
    index template install-older: template.mappings.properties.event_indexer.session.events.type: (absent) → long
    index template install-older: template.mappings.properties.event_indexer.session.kind.ignore_above: (absent) → 8191
    index template install-older: template.mappings.properties.event_indexer.session.kind.type: (absent) → keyword
    index template install-older: template.mappings.properties.event_indexer.session.recording.ignore_above: (absent) → 8191
    index template install-older: template.mappings.properties.event_indexer.session.recording.type: (absent) → keyword
    index template install-older: template.mappings.properties.event_indexer.session.sid.ignore_above: (absent) → 8191
    index template install-older: template.mappings.properties.event_indexer.session.sid.type: (absent) → keyword
    index template install-older: template.mappings.properties.event_indexer.session.start.type: (absent) → date
    index template install-older: template.mappings.properties.event_indexer.session.user.ignore_above: (absent) → 8191
    index template install-older: template.mappings.properties.event_indexer.session.user.type: (absent) → keyword
    index template install-older: template.settings.index.auto_expand_replicas: (absent) → 0-1
    index template install-older: template.settings.index.number_of_replicas: 1 → (absent)
    index template install-older: version: 1 → 2
    note: the index template takes effect with the next index; those that exist keep their mapping
    verified: a new index install-older-TODAY gets this template
    "#);
    assert_snapshot!(setup.install(&[]), @r#"
    exit code 0
    --- stdout
    lifecycle policy install-older: up to date
    component template install-older@custom: yours, left as it is
    index template install-older: up to date
    --- stderr
    TIME  INFO connected to Elasticsearch at http://127.0.0.1:PORT/ version="9.5.3"
    verified: a new index install-older-TODAY gets this template
    "#);
}

#[test]
fn the_dynamic_template_and_back() {
    let Some(setup) = Setup::new("install-dynamic", &["all"]) else {
        return;
    };
    assert_snapshot!(setup.install(&["--dynamic", "--replicas=0"]), @r#"
    exit code 0
    --- stdout
    lifecycle policy install-dynamic: created
    component template install-dynamic@custom: created
    index template install-dynamic: created
    --- stderr
    TIME  INFO connected to Elasticsearch at http://127.0.0.1:PORT/ version="9.5.3"
    note: Elasticsearch guesses each field by the first event that has it; events that do not fit go into safe form. Without dynamic the typed template takes its place
    verified: a new index install-dynamic-TODAY gets this template
    "#);
    let path = "/_index_template/install-dynamic";
    let found = setup.server.request("GET", path, &Value::Null).success();
    let template = found.json()["index_templates"][0]["index_template"]["template"].take();
    assert_eq!(template["mappings"]["dynamic"], "true");
    assert_eq!(template["settings"]["index"].get("codec"), None);
    let said = setup.install(&["--replicas=0"]);
    let lines = said.lines().filter(|line| !line.contains("mappings."));
    assert_snapshot!(lines.collect::<Vec<_>>().join("\n"), @r#"
    exit code 0
    --- stdout
    lifecycle policy install-dynamic: up to date
    component template install-dynamic@custom: yours, left as it is
    index template install-dynamic: updated
    --- stderr
    TIME  INFO connected to Elasticsearch at http://127.0.0.1:PORT/ version="9.5.3"
    index template install-dynamic: _meta.description: Teleport audit events as Teleport's guide has them: Elasticsearch guesses each field by the first event that has it, and events that do not fit the guess go into safe form. `install` without --dynamic puts the typed template back. → Teleport audit events, one index per day. Add to it in the component template; edits made here are refused by the next install.
    index template install-dynamic: template.settings.index.codec: (absent) → best_compression
    index template install-dynamic: template.settings.index.mapping.ignore_malformed: (absent) → true
    index template install-dynamic: template.settings.index.mapping.total_fields.ignore_dynamic_beyond_limit: (absent) → true
    index template install-dynamic: template.settings.index.mapping.total_fields.limit: (absent) → 2000
    note: the index template takes effect with the next index; those that exist keep their mapping
    verified: a new index install-dynamic-TODAY gets this template
    "#);
}

#[test]
fn a_single_node_stays_green_unless_told_otherwise() {
    let Some(setup) = Setup::new("install-replicas", &["all"]) else {
        return;
    };
    let args = ["--retention=30d", "--shards=2", "--refresh-interval=500ms"];
    assert_snapshot!(setup.install(&args), @r#"
    exit code 0
    --- stdout
    lifecycle policy install-replicas: created
    component template install-replicas@custom: created
    index template install-replicas: created
    --- stderr
    TIME  INFO connected to Elasticsearch at http://127.0.0.1:PORT/ version="9.5.3"
    verified: a new index install-replicas-TODAY gets this template
    "#);
    let status = |index: &str| {
        let path = format!("/{index}");
        setup.server.request("PUT", &path, &Value::Null).success();
        let path = format!("/_cluster/health/{index}?wait_for_no_initializing_shards=true");
        let health = setup.server.request("GET", &path, &Value::Null);
        health.success().json()["status"].clone()
    };
    assert_eq!(status("install-replicas-2026.01.01"), "green");
    let path = "/install-replicas-2026.01.01/_settings?flat_settings=true";
    let found = setup.server.request("GET", path, &Value::Null).success();
    let settings = found.json()["install-replicas-2026.01.01"]["settings"].take();
    for (name, value) in [
        ("index.auto_expand_replicas", "0-1"),
        ("index.lifecycle.name", "install-replicas"),
        ("index.lifecycle.parse_origination_date", "true"),
        ("index.number_of_shards", "2"),
        ("index.refresh_interval", "500ms"),
    ] {
        assert_eq!(settings[name], value, "{name}");
    }
    let path = "/_ilm/policy/install-replicas";
    let policy = setup.server.request("GET", path, &Value::Null).success();
    let phases = policy.json()["install-replicas"]["policy"]["phases"].take();
    assert_eq!(phases["delete"]["min_age"], "30d");

    let args = [&args[..], &["--replicas=1"]].concat();
    assert_snapshot!(setup.install(&args), @r#"
    exit code 0
    --- stdout
    lifecycle policy install-replicas: up to date
    component template install-replicas@custom: yours, left as it is
    index template install-replicas: updated
    --- stderr
    TIME  INFO connected to Elasticsearch at http://127.0.0.1:PORT/ version="9.5.3"
    index template install-replicas: template.settings.index.auto_expand_replicas: 0-1 → (absent)
    index template install-replicas: template.settings.index.number_of_replicas: (absent) → 1
    note: the index template takes effect with the next index; those that exist keep their mapping
    note: too few data nodes (1) for replicas = 1: each index stays yellow; --replicas auto makes no more copies than there are nodes for
    verified: a new index install-replicas-TODAY gets this template
    "#);
    assert_eq!(status("install-replicas-2026.01.02"), "yellow");
}

#[test]
fn a_user_without_one_of_the_privileges() {
    let name = "install-rights";
    let Some(setup) = Setup::new(name, &["monitor", "manage_ilm"]) else {
        return;
    };
    assert_snapshot!(setup.install(&[]), @r#"
    exit code 1
    --- stdout
    lifecycle policy install-rights: created
    --- stderr
    TIME  INFO connected to Elasticsearch at http://127.0.0.1:PORT/ version="9.5.3"
    error: the installation is not complete; it may be repeated: Elasticsearch does not let this user install the component template install-rights@custom (PUT /_component_template/install-rights@custom): it takes one of the privileges manage_index_templates, manage, all
    hint: install as a user with the role in templates/elasticsearch-installer-role.json
    "#);
    let setup = setup.with_user(name, &["monitor", "manage_index_templates"]);
    assert_snapshot!(setup.install(&[]), @r#"
    exit code 1
    --- stderr
    TIME  INFO connected to Elasticsearch at http://127.0.0.1:PORT/ version="9.5.3"
    error: Elasticsearch does not let this user read the lifecycle policy install-rights (GET /_ilm/policy/install-rights): it takes one of the privileges read_ilm, manage_ilm, manage, all
    hint: install as a user with the role in templates/elasticsearch-installer-role.json
    "#);
    // What is there already is found, and no more is needed for that.
    let setup = setup.with_user(name, &["monitor", "read_ilm", "manage_index_templates"]);
    assert_snapshot!(setup.install(&[]), @r#"
    exit code 0
    --- stdout
    lifecycle policy install-rights: up to date
    component template install-rights@custom: created
    index template install-rights: created
    --- stderr
    TIME  INFO connected to Elasticsearch at http://127.0.0.1:PORT/ version="9.5.3"
    verified: a new index install-rights-TODAY gets this template
    "#);
    assert_snapshot!(setup.install(&["--retention=30d"]), @r#"
    exit code 1
    --- stderr
    TIME  INFO connected to Elasticsearch at http://127.0.0.1:PORT/ version="9.5.3"
    lifecycle policy install-rights: phases.delete.min_age: 365d → 30d
    error: the installation is not complete; it may be repeated: Elasticsearch does not let this user install the lifecycle policy install-rights (PUT /_ilm/policy/install-rights): it takes one of the privileges manage_ilm, manage, all
    hint: install as a user with the role in templates/elasticsearch-installer-role.json
    "#);
    // A server that does not say its version gets what the oldest takes.
    let setup = setup.with_user(name, &["manage_ilm", "manage_index_templates"]);
    let said = setup.install(&[]);
    let lines = said.lines().filter(|line| !line.contains("mappings."));
    assert_snapshot!(lines.collect::<Vec<_>>().join("\n"), @"
    exit code 0
    --- stdout
    lifecycle policy install-rights: up to date
    component template install-rights@custom: yours, left as it is
    index template install-rights: updated
    --- stderr
    TIME  INFO connected to Elasticsearch at http://127.0.0.1:PORT/
    index template install-rights: template.settings.index.mapping.total_fields.ignore_dynamic_beyond_limit: true → (absent)
    note: the index template takes effect with the next index; those that exist keep their mapping
    verified: a new index install-rights-TODAY gets this template
    ");
}

#[test]
fn a_user_who_may_only_look() {
    let name = "install-reader";
    let Some(setup) = Setup::new(name, &["monitor", "read_ilm"]) else {
        return;
    };
    assert_snapshot!(setup.install(&[]), @r#"
    exit code 1
    --- stderr
    TIME  INFO connected to Elasticsearch at http://127.0.0.1:PORT/ version="9.5.3"
    error: the installation is not complete; it may be repeated: Elasticsearch does not let this user install the lifecycle policy install-reader (PUT /_ilm/policy/install-reader): it takes one of the privileges manage_ilm, manage, all
    hint: install as a user with the role in templates/elasticsearch-installer-role.json
    "#);
    let setup = setup.with_user(name, &["all"]);
    setup.install(&[]);
    let setup = setup.with_user(name, &["monitor", "read_ilm"]);
    assert_snapshot!(setup.install(&[]), @r#"
    exit code 0
    --- stdout
    lifecycle policy install-reader: up to date
    component template install-reader@custom: yours, left as it is
    index template install-reader: up to date
    --- stderr
    TIME  INFO connected to Elasticsearch at http://127.0.0.1:PORT/ version="9.5.3"
    not verified: this user may not simulate an index: it takes one of the privileges manage_index_templates, manage, all
    "#);
}

#[test]
fn a_server_with_security_switched_off() {
    let Some(server) = Elasticsearch::shared(oldest(), false) else {
        return;
    };
    let indexer = Indexer::new();
    let more = "index = \"install-open-%Y.%m.%d\"\ninstall = { template = \"install-open\", \
                policy = \"install-open\" }";
    indexer.configure(NOBODY, &server.url(), more);
    let run = |args: &[&str]| {
        let output = indexer.run(&[args, &["-c", "config.toml"]].concat());
        seen(&output, indexer.directory()).replace(server.name(), "VERSION")
    };
    assert_snapshot!(run(&["install"]), @r#"
    exit code 0
    --- stdout
    lifecycle policy install-open: created
    component template install-open@custom: created
    index template install-open: created
    --- stderr
    TIME  INFO connected to Elasticsearch at http://127.0.0.1:PORT/ version="VERSION"
    verified: a new index install-open-TODAY gets this template
    "#);
    assert_snapshot!(run(&["install"]), @r#"
    exit code 0
    --- stdout
    lifecycle policy install-open: up to date
    component template install-open@custom: yours, left as it is
    index template install-open: up to date
    --- stderr
    TIME  INFO connected to Elasticsearch at http://127.0.0.1:PORT/ version="VERSION"
    verified: a new index install-open-TODAY gets this template
    "#);
    assert_snapshot!(run(&["check"]), @r#"
    exit code 1
    --- stdout
    FAIL  cannot read the identity file identity: No such file or directory (os error 2)
          hint: check identity, or key, cert and ca, in [teleport]
    ok    Elasticsearch VERSION
    ok    privileges to write
    ok    lifecycle policy install-open: up to date
    ok    component template install-open@custom: there
    ok    index template install-open: up to date
    ok    a new index install-open-TODAY gets this template
    ok    indices are deleted 365d after their day
    ok    this machine's clock and Elasticsearch's agree
    --- stderr
    TIME  INFO connected to Elasticsearch at http://127.0.0.1:PORT/ version="VERSION"
    "#);
}
