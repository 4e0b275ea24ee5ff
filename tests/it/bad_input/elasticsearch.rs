//! The way to Elasticsearch, who we are there, and what is found.

use insta::{allow_duplicates, assert_snapshot};
use serde_json::{Value, json};
use teleport_event_indexer::demo::certs::IdentityOptions;
use teleport_event_indexer::demo::elastic::{Credentials, ElasticsearchOptions};
use teleport_event_indexer::secret::Secret;

use crate::support::elasticsearch::{Elasticsearch, NEWEST, NEWEST_8};
use crate::support::program::Indexer;
use crate::support::seen::{EVERYTHING, PASSWORD, USER, assert_no_secret, seen};
use crate::support::stand_ins::{NOBODY, Teleport, elasticsearch, parrot};

const START: &[&str] = &["start", "-c", "config.toml", "--start-time=2026-01-01"];
const BACKFILL: &[&str] = &[
    "backfill",
    "-c",
    "config.toml",
    "--from=2026-01-01",
    "--to=2026-01-02",
];
const CHECK: &[&str] = &["check", "-c", "config.toml"];
const INSTALL: &[&str] = &["install", "-c", "config.toml"];

/// Teleport is well; Elasticsearch is said to be at `url`.
fn set_up(url: &str, more: &str) -> (Indexer, Teleport) {
    let teleport = Teleport::start("a.example");
    let indexer = Indexer::new();
    indexer.configure(&teleport.addr(), url, more);
    indexer.identify(&teleport.cluster, &IdentityOptions::default());
    (indexer, teleport)
}

/// Names that no other test uses, for assets on a shared server.
fn names(name: &str) -> String {
    format!(
        "index = \"{name}-%Y.%m.%d\"\n[forward.elasticsearch.install]\ntemplate = \"{name}\"\n\
         policy = \"{name}\"\nreplicas = 0\n"
    )
}

#[test]
fn a_port_where_nothing_listens() {
    let (indexer, _teleport) = set_up(&format!("http://{NOBODY}"), "");
    assert_snapshot!(indexer.seen_until("trying again", START), @r#"
    exit code 0
    --- stderr
    TIME  INFO credentials read cluster=a.example address=127.0.0.1:PORT expires=TIME
    TIME  INFO connected to Teleport at 127.0.0.1:PORT, straight to the Auth Service cluster="a.example" version="18.2.0"
    TIME  INFO first start start_time="2026-01-01T00:00:00Z"
    TIME  WARN trying again: no answer from Elasticsearch at http://127.0.0.1:PORT/: nothing listens there pause=PAUSE mend="check hosts in [forward.elasticsearch], and that Elasticsearch runs there"
    TIME  INFO stopping; a second signal ends at once signal="SIGTERM"
    "#);
    assert_snapshot!(indexer.seen(BACKFILL), @r#"
    exit code 1
    --- stderr
    TIME  INFO credentials read cluster=a.example address=127.0.0.1:PORT expires=TIME
    TIME  INFO connected to Teleport at 127.0.0.1:PORT, straight to the Auth Service cluster="a.example" version="18.2.0"
    error: no answer from Elasticsearch at http://127.0.0.1:PORT/: nothing listens there
    hint: check hosts in [forward.elasticsearch], and that Elasticsearch runs there
    "#);
    assert_snapshot!(indexer.seen(INSTALL), @"
    exit code 1
    --- stderr
    error: no answer from Elasticsearch at http://127.0.0.1:PORT/: nothing listens there
    hint: check hosts in [forward.elasticsearch], and that Elasticsearch runs there
    ");
    assert_snapshot!(indexer.seen(CHECK), @r#"
    exit code 1
    --- stdout
    ok    Teleport 18.2.0, cluster a.example, connected straight to the Auth Service
    ok    credentials of user teleport-event-indexer, valid until TIME
    ok    audit events by the export API, 0 chunks today
    FAIL  no answer from Elasticsearch at http://127.0.0.1:PORT/: nothing listens there
          hint: check hosts in [forward.elasticsearch], and that Elasticsearch runs there
    --- stderr
    TIME  INFO credentials read cluster=a.example address=127.0.0.1:PORT expires=TIME
    TIME  INFO connected to Teleport at 127.0.0.1:PORT, straight to the Auth Service cluster="a.example" version="18.2.0"
    "#);
}

#[test]
fn a_host_that_does_not_resolve() {
    let (indexer, _teleport) = set_up("https://nothing.invalid:9200", "");
    assert_snapshot!(indexer.seen(INSTALL), @"
    exit code 1
    --- stderr
    error: no answer from Elasticsearch at https://nothing.invalid:9200/: the name does not resolve
    hint: check hosts (or cloud-id) in [forward.elasticsearch]
    ");
}

#[test]
fn https_where_http_is_spoken() {
    let server = elasticsearch(ElasticsearchOptions::default());
    let url = server.url().replace("http:", "https:");
    let (indexer, _teleport) = set_up(&url, "");
    assert_snapshot!(indexer.seen(INSTALL), @"
    exit code 1
    --- stderr
    error: no answer from Elasticsearch at https://127.0.0.1:PORT/: it does not speak TLS
    hint: check hosts in [forward.elasticsearch]: http:// in place of https://?
    ");
}

#[test]
fn something_that_is_not_elasticsearch() {
    let addr = parrot("HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\n{}\n");
    let (indexer, _teleport) = set_up(&format!("http://{addr}"), "");
    assert_snapshot!(indexer.seen(START), @r#"
    exit code 1
    --- stderr
    TIME  INFO credentials read cluster=a.example address=127.0.0.1:PORT expires=TIME
    TIME  INFO connected to Teleport at 127.0.0.1:PORT, straight to the Auth Service cluster="a.example" version="18.2.0"
    TIME  INFO first start start_time="2026-01-01T00:00:00Z"
    error: what answers at http://127.0.0.1:PORT/ is not Elasticsearch: it sends no X-Elastic-Product header
    hint: check hosts in [forward.elasticsearch], and any proxy on the way; OpenSearch and Elasticsearch before 7.14 are not supported
    "#);
    assert_snapshot!(indexer.seen(INSTALL), @"
    exit code 1
    --- stderr
    error: what answers at http://127.0.0.1:PORT/ is not Elasticsearch: it sends no X-Elastic-Product header
    hint: check hosts in [forward.elasticsearch], and any proxy on the way; OpenSearch and Elasticsearch before 7.14 are not supported
    ");
}

#[test]
fn an_elasticsearch_that_is_too_old() {
    let server = elasticsearch(ElasticsearchOptions {
        version: "7.17.0".to_owned(),
        ..ElasticsearchOptions::default()
    });
    let (indexer, _teleport) = set_up(&server.url(), "");
    assert_snapshot!(indexer.seen(START), @r#"
    exit code 1
    --- stderr
    TIME  INFO credentials read cluster=a.example address=127.0.0.1:PORT expires=TIME
    TIME  INFO connected to Teleport at 127.0.0.1:PORT, straight to the Auth Service cluster="a.example" version="18.2.0"
    TIME  INFO first start start_time="2026-01-01T00:00:00Z"
    error: Elasticsearch at http://127.0.0.1:PORT/ is version 7.17.0; 8.4.1 or newer is needed
    "#);
}

#[test]
fn a_certificate_authority_that_is_not_there() {
    let (indexer, _teleport) = set_up("https://localhost:9200", "ca = \"none.crt\"");
    assert_snapshot!(indexer.seen(INSTALL), @"
    exit code 2
    --- stderr
    error: cannot read the certificate authority none.crt: No such file or directory (os error 2)
    hint: check ca, client-cert and client-key in [forward.elasticsearch]
    ");
    indexer.write("none.crt", "no PEM at all\n");
    assert_snapshot!(indexer.seen(INSTALL), @"
    exit code 2
    --- stderr
    error: the certificate authority none.crt holds no usable PEM: could not find PEM certificate in input data
    hint: check ca, client-cert and client-key in [forward.elasticsearch]
    ");
}

#[test]
fn the_template_is_not_installed() {
    let server = elasticsearch(ElasticsearchOptions::default());
    let (indexer, _teleport) = set_up(&server.url(), "");
    assert_snapshot!(indexer.seen(START), @r#"
    exit code 1
    --- stderr
    TIME  INFO credentials read cluster=a.example address=127.0.0.1:PORT expires=TIME
    TIME  INFO connected to Teleport at 127.0.0.1:PORT, straight to the Auth Service cluster="a.example" version="18.2.0"
    TIME  INFO first start start_time="2026-01-01T00:00:00Z"
    TIME  INFO connected to Elasticsearch at http://127.0.0.1:PORT/ version="9.5.3"
    error: the index template `audit-events` is not in Elasticsearch at http://127.0.0.1:PORT/: run `teleport-event-indexer install` first
    "#);
    assert_snapshot!(indexer.seen(BACKFILL), @r#"
    exit code 1
    --- stderr
    TIME  INFO credentials read cluster=a.example address=127.0.0.1:PORT expires=TIME
    TIME  INFO connected to Teleport at 127.0.0.1:PORT, straight to the Auth Service cluster="a.example" version="18.2.0"
    TIME  INFO connected to Elasticsearch at http://127.0.0.1:PORT/ version="9.5.3"
    error: the index template `audit-events` is not in Elasticsearch at http://127.0.0.1:PORT/: run `teleport-event-indexer install` first
    "#);
}

/// The other tests look for secrets as well; here they are all put to use, and the log proves to
/// be that of the libraries too.
#[test]
fn the_whole_log_of_what_succeeds_shows_no_secret() {
    let server = elasticsearch(ElasticsearchOptions {
        credentials: Some(Credentials::Basic {
            user: USER.to_owned(),
            password: Secret::new(PASSWORD),
        }),
        ..ElasticsearchOptions::default()
    });
    let (indexer, _teleport) = set_up(&server.url(), "");
    for args in [INSTALL, CHECK] {
        let output = indexer.run(&[args, &["--log-level", EVERYTHING]].concat());
        assert_eq!(output.code, Some(0), "{output:?}");
        let address = server.address();
        let line = format!("DEBUG connected to {address}");
        assert!(output.stderr.contains(&line), "{}", output.stderr);
        assert_no_secret(&output);
    }
}

#[test]
fn a_wrong_password_for_the_newest_elasticsearch() {
    allow_duplicates!(wrong_password(NEWEST));
}

#[test]
fn a_wrong_password_for_the_newest_elasticsearch_8() {
    allow_duplicates!(wrong_password(NEWEST_8));
}

fn wrong_password(version: &'static str) {
    let Some(server) = Elasticsearch::shared(version, true) else {
        return;
    };
    let (indexer, _teleport) = set_up(&server.url(), "");
    assert_snapshot!(indexer.seen_until("trying again", START), @r#"
    exit code 0
    --- stderr
    TIME  INFO credentials read cluster=a.example address=127.0.0.1:PORT expires=TIME
    TIME  INFO connected to Teleport at 127.0.0.1:PORT, straight to the Auth Service cluster="a.example" version="18.2.0"
    TIME  INFO first start start_time="2026-01-01T00:00:00Z"
    TIME  WARN trying again: Elasticsearch at http://127.0.0.1:PORT/ refuses the credentials: status 401, security_exception: unable to authenticate user [indexer-of-the-tests] for REST request [/] pause=PAUSE mend="check user and password, or api-key, in [forward.elasticsearch]; with client-cert alone, Elasticsearch needs a PKI realm that trusts its authority"
    TIME  INFO stopping; a second signal ends at once signal="SIGTERM"
    "#);
    assert_snapshot!(indexer.seen(BACKFILL), @r#"
    exit code 1
    --- stderr
    TIME  INFO credentials read cluster=a.example address=127.0.0.1:PORT expires=TIME
    TIME  INFO connected to Teleport at 127.0.0.1:PORT, straight to the Auth Service cluster="a.example" version="18.2.0"
    error: Elasticsearch at http://127.0.0.1:PORT/ refuses the credentials: status 401, security_exception: unable to authenticate user [indexer-of-the-tests] for REST request [/]
    hint: check user and password, or api-key, in [forward.elasticsearch]; with client-cert alone, Elasticsearch needs a PKI realm that trusts its authority
    "#);
    assert_snapshot!(indexer.seen(INSTALL), @"
    exit code 1
    --- stderr
    error: Elasticsearch at http://127.0.0.1:PORT/ refuses the credentials: status 401, security_exception: unable to authenticate user [indexer-of-the-tests] for REST request [/]
    hint: check user and password, or api-key, in [forward.elasticsearch]; with client-cert alone, Elasticsearch needs a PKI realm that trusts its authority
    ");
    assert_snapshot!(indexer.seen(CHECK), @r#"
    exit code 1
    --- stdout
    ok    Teleport 18.2.0, cluster a.example, connected straight to the Auth Service
    ok    credentials of user teleport-event-indexer, valid until TIME
    ok    audit events by the export API, 0 chunks today
    FAIL  Elasticsearch at http://127.0.0.1:PORT/ refuses the credentials: status 401, security_exception: unable to authenticate user [indexer-of-the-tests] for REST request [/]
          hint: check user and password, or api-key, in [forward.elasticsearch]; with client-cert alone, Elasticsearch needs a PKI realm that trusts its authority
    --- stderr
    TIME  INFO credentials read cluster=a.example address=127.0.0.1:PORT expires=TIME
    TIME  INFO connected to Teleport at 127.0.0.1:PORT, straight to the Auth Service cluster="a.example" version="18.2.0"
    "#);
}

#[test]
fn a_role_without_privileges_at_the_newest_elasticsearch() {
    allow_duplicates!(role_without_privileges(NEWEST));
}

#[test]
fn a_role_without_privileges_at_the_newest_elasticsearch_8() {
    allow_duplicates!(role_without_privileges(NEWEST_8));
}

fn role_without_privileges(version: &'static str) {
    let Some(server) = Elasticsearch::shared(version, true) else {
        return;
    };
    server.create_user("nobody", PASSWORD, &json!({"cluster": [], "indices": []}));
    let (indexer, _teleport) = set_up(&server.url(), &names("lacks-privileges"));
    let as_nobody = |args: &[&'static str]| [args, &["--elasticsearch-user", "nobody"]].concat();
    assert_snapshot!(indexer.seen(&as_nobody(INSTALL)), @"
    exit code 1
    --- stderr
    TIME  INFO connected to Elasticsearch at http://127.0.0.1:PORT/
    error: Elasticsearch does not let this user read the lifecycle policy lacks-privileges (GET /_ilm/policy/lacks-privileges): it takes one of the privileges read_ilm, manage_ilm, manage, all
    hint: install as a user with the role in templates/elasticsearch-installer-role.json
    ");
    assert_snapshot!(indexer.seen(&as_nobody(CHECK)), @r#"
    exit code 1
    --- stdout
    ok    Teleport 18.2.0, cluster a.example, connected straight to the Auth Service
    ok    credentials of user teleport-event-indexer, valid until TIME
    ok    audit events by the export API, 0 chunks today
    ok    Elasticsearch of unknown version
    FAIL  the user lacks create_doc and auto_configure on lacks-privileges-*
          hint: give the role in templates/elasticsearch-writer-role.json
    warn  the user lacks monitor and read_ilm on the cluster, so not all can be checked
          hint: give the role in templates/elasticsearch-writer-role.json
    warn  lifecycle policy not compared: Elasticsearch does not let this user read the lifecycle policy lacks-privileges (GET /_ilm/policy/lacks-privileges): it takes one of the privileges read_ilm, manage_ilm, manage, all
          hint: give the role in templates/elasticsearch-writer-role.json
    warn  component template not compared: Elasticsearch does not let this user read the component template lacks-privileges@custom (GET /_component_template/lacks-privileges@custom): it takes one of the privileges manage_index_templates, monitor, manage, all
          hint: give the role in templates/elasticsearch-writer-role.json
    warn  index template not compared: Elasticsearch does not let this user read the index template lacks-privileges (GET /_index_template/lacks-privileges): it takes one of the privileges manage_index_templates, monitor, manage, all
          hint: give the role in templates/elasticsearch-writer-role.json
    warn  not known which template a new index gets: Elasticsearch does not let this user list the index templates (GET /_index_template): it takes one of the privileges manage_index_templates, monitor, manage, all
          hint: give the role in templates/elasticsearch-writer-role.json
    --- stderr
    TIME  INFO credentials read cluster=a.example address=127.0.0.1:PORT expires=TIME
    TIME  INFO connected to Teleport at 127.0.0.1:PORT, straight to the Auth Service cluster="a.example" version="18.2.0"
    TIME  INFO connected to Elasticsearch at http://127.0.0.1:PORT/
    "#);
}

/// The shared server as its superuser, and an indexer that is one too.
fn superuser(name: &str) -> Option<(&'static Elasticsearch, Indexer)> {
    let server = Elasticsearch::shared(NEWEST, true)?;
    let role = json!({
        "cluster": ["all"],
        "indices": [{"names": ["*"], "privileges": ["all"]}],
    });
    let user = format!("{name}-root");
    server.create_user(&user, PASSWORD, &role);
    let indexer = Indexer::new().env("EVENT_INDEXER_ELASTICSEARCH_USER", &user);
    indexer.configure(NOBODY, &server.url(), &names(name));
    Some((server, indexer))
}

#[test]
fn a_template_of_somebody_else_with_the_same_pattern() {
    let Some((server, indexer)) = superuser("contested") else {
        return;
    };
    let ours: Value = serde_json::from_str(include_str!("../../../templates/audit-events.json"))
        .expect("it is JSON");
    let template = json!({
        "index_patterns": ["contested-*"],
        "priority": ours["priority"],
        "template": {"settings": {"number_of_shards": 1}},
    });
    let path = "/_index_template/somebody-else";
    server.request("PUT", path, &template).success();
    assert_snapshot!(indexer.seen(INSTALL), @r#"
    exit code 1
    --- stdout
    lifecycle policy contested: created
    component template contested@custom: created
    --- stderr
    TIME  INFO connected to Elasticsearch at http://127.0.0.1:PORT/ version="9.5.3"
    error: the installation is not complete; it may be repeated: Elasticsearch refused to install the index template contested (PUT /_index_template/contested) (HTTP 400, illegal_argument_exception): index template [contested] has index patterns [contested-*] matching patterns from existing templates [somebody-else] with patterns (somebody-else => [contested-*]) that have the same priority [501], multiple index templates may not match during index creation, please use a different priority
    "#);

    // A higher one takes effect in place of ours.
    let mut higher = template;
    higher["priority"] = json!(ours["priority"].as_u64().expect("a number") + 1);
    server.request("PUT", path, &higher).success();
    assert_snapshot!(indexer.seen(INSTALL), @r#"
    exit code 1
    --- stdout
    lifecycle policy contested: up to date
    component template contested@custom: yours, left as it is
    index template contested: created
    --- stderr
    TIME  INFO connected to Elasticsearch at http://127.0.0.1:PORT/ version="9.5.3"
    error: another index template with a higher priority applies to contested-TODAY: lower its priority or change its pattern
    "#);
    server.request("DELETE", path, &Value::Null).success();
}

#[test]
fn a_policy_and_a_template_that_somebody_has_edited() {
    let Some((server, indexer)) = superuser("edited") else {
        return;
    };
    let install = |args: &[&'static str]| seen_once(&indexer, &[INSTALL, args].concat());
    assert_snapshot!(install(&[]), @r#"
    exit code 0
    --- stdout
    lifecycle policy edited: created
    component template edited@custom: created
    index template edited: created
    --- stderr
    TIME  INFO connected to Elasticsearch at http://127.0.0.1:PORT/ version="9.5.3"
    verified: a new index edited-TODAY gets this template
    "#);

    let path = "/_ilm/policy/edited";
    let policy = server.request("GET", path, &Value::Null).success().json();
    let mut policy = json!({"policy": policy["edited"]["policy"]});
    policy["policy"]["phases"]["delete"]["min_age"] = json!("30d");
    server.request("PUT", path, &policy).success();
    let path = "/_index_template/edited";
    let found = server.request("GET", path, &Value::Null).success().json();
    let mut template = found["index_templates"][0]["index_template"].clone();
    // Elasticsearch tells these dates and does not take them.
    for date in [
        "created_date_millis",
        "modified_date_millis",
        "created_date",
        "modified_date",
    ] {
        template.as_object_mut().expect("an object").remove(date);
    }
    template["template"]["mappings"]["properties"]["user"] = json!({"type": "text"});
    server.request("PUT", path, &template).success();

    assert_snapshot!(indexer.seen(INSTALL), @r#"
    exit code 1
    --- stderr
    TIME  INFO connected to Elasticsearch at http://127.0.0.1:PORT/ version="9.5.3"
    lifecycle policy edited: phases.delete.min_age: 30d → 365d
    index template edited: template.mappings.properties.user.ignore_above: (absent) → 8191
    index template edited: template.mappings.properties.user.type: text → keyword
    note: the index template takes effect with the next index; those that exist keep their mapping
    error: nothing was installed, since the lifecycle policy edited, edited or made by somebody else, and the index template edited, edited or made by somebody else, are in the way: compare, then repeat with --overwrite to replace
    "#);
    assert_snapshot!(indexer.seen(&["check", "-c", "config.toml"]), @r#"
    exit code 1
    --- stdout
    FAIL  cannot read the identity file identity: No such file or directory (os error 2)
          hint: check identity, or key, cert and ca, in [teleport]
    ok    Elasticsearch 9.5.3
    ok    privileges to write
    warn  lifecycle policy edited: edited or made by somebody else
          hint: `teleport-event-indexer install --dry-run` shows where it differs
    ok    component template edited@custom: there
    warn  index template edited: edited or made by somebody else
          hint: `teleport-event-indexer install --dry-run` shows where it differs
    ok    a new index edited-TODAY gets this template
    ok    indices are deleted 30d after their day
    ok    this machine's clock and Elasticsearch's agree
    --- stderr
    TIME  INFO connected to Elasticsearch at http://127.0.0.1:PORT/ version="9.5.3"
    "#);
    assert_snapshot!(install(&["--overwrite"]), @r#"
    exit code 0
    --- stdout
    lifecycle policy edited: overwritten
    component template edited@custom: yours, left as it is
    index template edited: overwritten
    --- stderr
    TIME  INFO connected to Elasticsearch at http://127.0.0.1:PORT/ version="9.5.3"
    lifecycle policy edited: phases.delete.min_age: 30d → 365d
    index template edited: template.mappings.properties.user.ignore_above: (absent) → 8191
    index template edited: template.mappings.properties.user.type: text → keyword
    note: the index template takes effect with the next index; those that exist keep their mapping
    verified: a new index edited-TODAY gets this template
    "#);
    assert_snapshot!(indexer.seen(INSTALL), @r#"
    exit code 0
    --- stdout
    lifecycle policy edited: up to date
    component template edited@custom: yours, left as it is
    index template edited: up to date
    --- stderr
    TIME  INFO connected to Elasticsearch at http://127.0.0.1:PORT/ version="9.5.3"
    verified: a new index edited-TODAY gets this template
    "#);
}

/// As [`Indexer::seen`], for what would not end in the same way a second time.
fn seen_once(indexer: &Indexer, args: &[&str]) -> String {
    seen(&indexer.run(args), indexer.directory())
}
