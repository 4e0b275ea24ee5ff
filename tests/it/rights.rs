//! Roles, users and API keys that `install` makes, on a real Elasticsearch with security.
#![expect(
    clippy::unwrap_used,
    reason = "clippy takes only what is marked as a test for one, not what tests call"
)]

use std::os::unix::fs::PermissionsExt;

use chrono::{TimeDelta, Utc};
use insta::assert_snapshot;
use serde_json::{Value, json};
use teleport_event_indexer::demo::certs::IdentityOptions;
use teleport_event_indexer::demo::events::{Id, encode, generate};

use crate::observer::{address, wait_for_metric};
use crate::support::elasticsearch::{
    Client, Elasticsearch, NEWEST, PASSWORD as SUPERUSER, with_security,
};
use crate::support::program::{Indexer, Output};
use crate::support::rig::wait_until_said;
use crate::support::seen::{EVERYTHING, beside_the_template, seen};
use crate::support::stand_ins::Teleport;

/// An indexer whose `install` acts as this user, on assets of this name.
fn installer(name: &str, server: &Elasticsearch, user: &str, password: &str) -> Indexer {
    let indexer = Indexer::new();
    let credentials = if server.has_security() {
        format!("user = {user:?}\npassword = {password:?}")
    } else {
        String::new()
    };
    indexer.write_private("install.toml", &settings(name, server, &credentials));
    indexer
}

fn settings(name: &str, server: &Elasticsearch, credentials: &str) -> String {
    format!(
        r#"[forward.elasticsearch]
hosts = ["{}"]
{credentials}
index = "{name}-%Y.%m.%d"
install = {{ template = {name:?}, policy = {name:?}, replicas = 0 }}
"#,
        server.url()
    )
}

fn run(indexer: &Indexer, args: &[&str]) -> Output {
    let command = ["install", "-c", "install.toml", "--log-level", "warn"];
    indexer.run(&[&command, args].concat())
}

/// What the user sees, but for the part about the template.
fn shown(indexer: &Indexer, args: &[&str]) -> String {
    beside_the_template(&seen(&run(indexer, args), indexer.directory()))
}

/// The statuses of what a writer must not do, and of what a reader may.
fn statuses(client: &Client, index: &str) -> Vec<u16> {
    let get = |path: String| client.request("GET", &path, &Value::Null).status;
    let send =
        |method: &str, path: String| client.request(method, &path, &json!({"doc": {}})).status;
    vec![
        get(format!("/{index}/_search")),
        get(format!("/{index}/_doc/1")),
        send("PUT", format!("/{index}/_doc/1")),
        send("POST", format!("/{index}/_update/1")),
        client
            .request("DELETE", &format!("/{index}/_doc/1"), &Value::Null)
            .status,
        client
            .request("DELETE", &format!("/{index}"), &Value::Null)
            .status,
    ]
}

fn keys(server: &Elasticsearch, name: &str) -> usize {
    let path = format!("/_security/api_key?name={name}");
    let found = server.request("GET", &path, &Value::Null).success().json();
    found["api_keys"].as_array().expect("a list").len()
}

#[test]
fn a_key_is_made_once_and_start_and_check_run_with_it() {
    let Some(server) = Elasticsearch::shared(with_security(), true) else {
        return;
    };
    let indexer = installer("rights-key", server, "elastic", SUPERUSER);
    let make = ["--create-role", "--create-api-key", "--secret-file", "key"];
    assert_snapshot!(shown(&indexer, &make), @r#"
    exit code 0
    --- stdout
    role rights-key-writer: created
    API key rights-key-writer: created
    api-key = "file:key"
    "#);
    let path = indexer.directory().join("key");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let key = std::fs::read_to_string(&path).unwrap();
    assert_snapshot!(shown(&indexer, &make), @r"
    exit code 0
    --- stdout
    role rights-key-writer: up to date
    API key rights-key-writer: up to date
    ");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), key);
    assert_eq!(keys(server, "rights-key-writer"), 1);
    // A file that is there is not written over, and then no key is made.
    assert_snapshot!(shown(&indexer, &[&make[..], &["--new-secret"]].concat()), @r"
    exit code 2
    --- stdout
    role rights-key-writer: up to date
    --- stderr
    error: no secret was made, since the file key cannot be created: File exists (os error 17)
    ");
    assert_eq!(keys(server, "rights-key-writer"), 1);

    // The daemon lives on it.
    let teleport = Teleport::start("a.example");
    let now = Utc::now();
    let events = generate(1, 500, now - TimeDelta::hours(2), now, "a.example");
    teleport
        .auth
        .control()
        .append(events.map(|event| encode(&event, Id::OfEvent)));
    indexer.identify(&teleport.cluster, &IdentityOptions::default());
    indexer.write_private(
        "config.toml",
        &format!(
            "storage = \"state\"\nsessions = false\n[teleport]\naddr = {:?}\nidentity = \"identity\"\n{}",
            teleport.addr(),
            settings("rights-key", server, "api-key = \"file:key\"")
        ),
    );
    let checked = indexer.run(&["check", "-c", "config.toml"]);
    assert_eq!(checked.code, Some(0), "{}", checked.stdout);
    assert!(checked.stdout.contains("ok    privileges to write\n"));
    let start = [
        "start",
        "-c",
        "config.toml",
        "--exit-on-last-event",
        "--start-time=2026-01-01",
    ];
    let ran = indexer.run(&start);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    server.refresh("rights-key-*");
    assert_eq!(server.count("rights-key-*"), 500);

    let writer = server.with_api_key(key.trim());
    let index = now.format("rights-key-%Y.%m.%d").to_string();
    assert_eq!(statuses(&writer, &index), [403; 6]);
}

#[test]
fn a_new_key_leaves_the_old_one_and_no_secret_is_in_the_log() {
    let Some(server) = Elasticsearch::shared(with_security(), true) else {
        return;
    };
    let indexer = installer("rights-new", server, "elastic", SUPERUSER);
    let secret_of = |output: &Output| {
        let line = output
            .stdout
            .lines()
            .find_map(|line| line.strip_prefix("verifier-api-key = "));
        line.expect("there is a key").trim_matches('"').to_owned()
    };
    let first = run(&indexer, &["--create-api-key", "--verifier"]);
    assert_eq!(first.code, Some(0), "{}", first.stderr);
    let again = ["--create-api-key", "--verifier", "--new-secret"];
    let second = indexer.run(
        &[
            &["install", "-c", "install.toml", "--log-level", EVERYTHING],
            &again[..],
        ]
        .concat(),
    );
    assert_eq!(second.code, Some(0), "{}", second.stderr);
    assert!(
        second
            .stderr
            .contains("older keys of this name go on working until")
    );
    let (first, second) = ((secret_of(&first), first), (secret_of(&second), second));
    for (secret, output) in [&first, &second] {
        assert!(!output.stderr.contains(secret.as_str()));
        let (_, secret) = decoded(secret)
            .split_once(':')
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .unwrap();
        assert!(!output.stderr.contains(&secret));
    }
    assert_ne!(first.0, second.0);
    // Both work, and may read besides.
    server
        .request("PUT", "/rights-new-2026.01.01", &Value::Null)
        .success();
    for secret in [&first.0, &second.0] {
        let verifier = server.with_api_key(secret);
        let found = statuses(&verifier, "rights-new-2026.01.01");
        assert_eq!(found, [200, 404, 403, 403, 403, 403]);
    }
}

/// The server is asked by the key itself, which needs no right for that.
#[test]
fn the_end_of_a_writers_key_is_known_warned_of_and_the_reason_when_it_has_come() {
    let Some(server) = Elasticsearch::shared(with_security(), true) else {
        return;
    };
    let indexer = installer("rights-end", server, "elastic", SUPERUSER);
    assert_eq!(run(&indexer, &[]).code, Some(0));
    let key = |expiration: &str| {
        let rights =
            json!({"names": ["rights-end-*"], "privileges": ["create_doc", "auto_configure"]});
        let asked = json!({"name": "rights-end", "expiration": expiration,
            "role_descriptors": {"writer": {"cluster": ["monitor"], "indices": [rights]}}});
        let made = server.request("POST", "/_security/api_key", &asked);
        let made = made.success().json();
        indexer.write_private("key", made["encoded"].as_str().unwrap());
        made["expiration"].as_f64().unwrap() / 1000.0
    };
    let later = key("1h");
    let teleport = Teleport::start("a.example");
    indexer.identify(&teleport.cluster, &IdentityOptions::default());
    indexer.write_private(
        "config.toml",
        &format!(
            "storage = \"state\"\nsessions = false\ntimeout = \"50ms\"\n[teleport]\naddr = {:?}\nidentity = \
             \"identity\"\n{}",
            teleport.addr(),
            settings("rights-end", server, "api-key = \"file:key\"")
        ),
    );
    let running = indexer.spawn(&["start", "-c", "config.toml", "--listen-addr=127.0.0.1:0"]);
    let address = address(&running);
    let end = "event_indexer_credential_expiry_time_seconds{end=\"elasticsearch\"}";
    wait_for_metric(&address, end, later);
    assert!(!running.stderr().contains("expire soon"));

    // A new one that ends before anybody could act.
    let soon = key("48s");
    wait_for_metric(&address, end, soon);
    wait_until_said(
        &running,
        "the credentials for Elasticsearch expire soon, at ",
    );
    wait_until_said(&running, "the credentials for Elasticsearch expired at ");
    let now = Utc::now();
    let events = generate(1, 5, now, now + TimeDelta::seconds(1), "a.example");
    let events = events.map(|event| encode(&event, Id::OfEvent));
    teleport.auth.control().append(events);
    wait_until_said(&running, "(API key: api key is expired)");

    key("1h");
    wait_until_said(&running, "Elasticsearch answers again");
}

fn decoded(key: &str) -> String {
    use base64::Engine as _;
    let bytes = base64::prelude::BASE64_STANDARD.decode(key).unwrap();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn a_user_with_a_password() {
    let Some(server) = Elasticsearch::shared(with_security(), true) else {
        return;
    };
    let indexer = installer("rights-user", server, "elastic", SUPERUSER);
    let make = ["--create-user", "teleport", "--teleport-plugin"];
    let output = run(&indexer, &make);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    let (said, password) = output.stdout.split_once("password = \"").unwrap();
    let password = password.trim_end().trim_end_matches('"');
    assert!(
        said.ends_with(
            "role teleport-plugin: created\nuser teleport: created\nuser = \"teleport\"\n"
        )
    );
    assert_eq!(password.len(), 32);
    assert_snapshot!(shown(&indexer, &make), @r"
    exit code 0
    --- stdout
    role teleport-plugin: up to date
    user teleport: up to date
    ");
    let teleport = server.with_password("teleport", password);
    // Teleport's guide lets it overwrite, and delete whole indices.
    let index = "rights-user-2026.01.01";
    assert_eq!(statuses(&teleport, index), [403, 403, 201, 200, 200, 200]);

    let renewed = run(
        &indexer,
        &[&make[..], &["--new-secret", "--secret-file", "pw"]].concat(),
    );
    assert!(
        renewed
            .stdout
            .ends_with("user teleport: updated\nuser = \"teleport\"\npassword = \"file:pw\"\n"),
        "{renewed:?}"
    );
    let renewed = std::fs::read_to_string(indexer.directory().join("pw")).unwrap();
    let who = |password: &str| {
        let client = server.with_password("teleport", password);
        client
            .request("GET", "/_security/_authenticate", &Value::Null)
            .status
    };
    assert_eq!((who(password), who(renewed.trim())), (401, 200));
}

#[test]
fn what_somebody_has_edited_is_left_until_told_otherwise() {
    let Some(server) = Elasticsearch::shared(with_security(), true) else {
        return;
    };
    let indexer = installer("rights-edited", server, "elastic", SUPERUSER);
    let make = ["--create-user", "rights-edited"];
    assert_eq!(run(&indexer, &make).code, Some(0));
    let path = "/_security/role/rights-edited-writer";
    let role = server.request("GET", path, &Value::Null).success().json();
    let mut role = role["rights-edited-writer"].clone();
    role.as_object_mut().unwrap().remove("transient_metadata");
    role["indices"][0]["privileges"] = json!(["all"]);
    server.request("PUT", path, &role).success();
    assert_snapshot!(shown(&indexer, &make), @r#"
    exit code 1
    --- stdout
    user rights-edited: up to date
    --- stderr
    role rights-edited-writer: indices: {"names":["rights-edited-*"],"privileges":["all"]} → {"names":["rights-edited-*"],"privileges":["auto_configure","create_doc"]}
    error: the role rights-edited-writer, edited or made by somebody else, is in the way: compare, then repeat with --overwrite to replace
    "#);
    assert!(
        shown(&indexer, &[&make[..], &["--overwrite"]].concat())
            .contains("role rights-edited-writer: overwritten\nuser rights-edited: up to date\n")
    );

    // One of ours for other indices is brought up to date without a word.
    let text = std::fs::read_to_string(indexer.directory().join("install.toml")).unwrap();
    indexer.write_private(
        "install.toml",
        &text.replace("\"rights-edited-%", "\"rights-edited-b-%"),
    );
    assert!(shown(&indexer, &make).contains("role rights-edited-writer: updated\n"));
}

#[test]
fn without_the_right_to_give_rights_the_requests_are_shown_for_somebody_else() {
    let Some(server) = Elasticsearch::shared(with_security(), true) else {
        return;
    };
    let role = include_str!("../../templates/elasticsearch-installer-role.json");
    let role = serde_json::from_str(role).unwrap();
    server.create_user("rights-none", "a long password", &role);
    let indexer = installer("rights-none", server, "rights-none", "a long password");
    let make = ["--create-user", "rights-none-user"];
    let output = run(&indexer, &make);
    let (template, rights) = output
        .stdout
        .split_once("index template rights-none: created\n")
        .unwrap();
    assert!(template.starts_with("lifecycle policy rights-none: created\n"));
    assert_eq!(output.code, Some(1));
    assert_snapshot!(rights, @r#"
    PUT /_security/role/rights-none-writer
    {
      "cluster": [
        "monitor",
        "read_ilm"
      ],
      "indices": [
        {
          "names": [
            "rights-none-*"
          ],
          "privileges": [
            "create_doc",
            "auto_configure"
          ]
        }
      ],
      "metadata": {
        "content_sha256": "bb8451f8b994f4a4d620770c94988803a25fa2580eb94d2519b3a72ed8f1f4e2",
        "description": "Adds audit events and creates the index of a new day; can neither read, change nor delete any.",
        "managed_by": "teleport-event-indexer"
      }
    }
    PUT /_security/user/rights-none-user
    {
      "enabled": true,
      "metadata": {
        "content_sha256": "f8d8ab04686908a8a1d1229466d56f3d2fafa0968c663bbac76485b7b7eb09ae",
        "managed_by": "teleport-event-indexer"
      },
      "password": "<password>",
      "roles": [
        "rights-none-writer"
      ]
    }
    "#);
    assert_snapshot!(shown(&indexer, &make).split_once("--- stderr\n").unwrap().1, @r"
    error: the role rights-none-writer was not made: Elasticsearch does not let this user look for the role rights-none-writer (GET /_security/role/rights-none-writer): it takes one of the privileges read_security, manage_security, all
    error: the user rights-none-user was not made: Elasticsearch does not let this user look for the user rights-none-user (GET /_security/user/rights-none-user): it takes one of the privileges read_security, manage_security, all
    hint: give these requests, for Kibana's Dev Tools, to somebody who has one of the cluster privileges manage_security
    ");
    // What an administrator then sends is found to be as it should be.
    for (request, body) in requests(rights) {
        let (method, path) = request.split_once(' ').unwrap();
        server.request(method, path, &body).success();
    }
    let indexer = installer("rights-none", server, "elastic", SUPERUSER);
    assert_snapshot!(shown(&indexer, &make), @r"
    exit code 0
    --- stdout
    role rights-none-writer: up to date
    user rights-none-user: up to date
    ");
}

/// Requests in the form of Kibana's console.
fn requests(text: &str) -> Vec<(String, Value)> {
    let mut requests = Vec::new();
    let mut rest = text;
    while let Some((line, after)) = rest.split_once('\n') {
        let mut values = serde_json::Deserializer::from_str(after).into_iter::<Value>();
        let body = values.next().unwrap().unwrap();
        requests.push((line.to_owned(), body));
        let (_, behind) = after.split_at(values.byte_offset());
        rest = behind.trim_start();
    }
    requests
}

#[test]
fn a_key_cannot_have_more_than_who_makes_it() {
    let Some(server) = Elasticsearch::shared(with_security(), true) else {
        return;
    };
    let role = json!({"cluster": ["monitor", "manage_index_templates", "manage_ilm", "manage_own_api_key"]});
    server.create_user("rights-few", "a long password", &role);
    let indexer = installer("rights-few", server, "rights-few", "a long password");
    assert_snapshot!(shown(&indexer, &["--create-api-key"]), @r"
    exit code 1
    --- stderr
    error: no API key was made, since a key can do no more than whoever makes it, and this user lacks create_doc on rights-few-*, auto_configure on rights-few-*: make it as another user, or use --create-user
    ");
    assert_eq!(keys(server, "rights-few-writer"), 0);
    // Asked for by a key, even one with all rights, Elasticsearch makes none.
    let body = json!({"name": "rights-few-all"});
    let all = server
        .request("POST", "/_security/api_key", &body)
        .success()
        .json();
    let config = format!("api-key = {}", all["encoded"]);
    indexer.write_private("install.toml", &settings("rights-few", server, &config));
    assert_snapshot!(shown(&indexer, &["--create-api-key"]), @r"
    exit code 1
    --- stderr
    error: no API key was made, since Elasticsearch lets no API key make another one that has rights: install with user and password
    ");
}

#[test]
fn a_dry_run_shows_the_requests_and_makes_nothing() {
    let Some(server) = Elasticsearch::shared(with_security(), true) else {
        return;
    };
    let indexer = installer("rights-dry", server, "elastic", SUPERUSER);
    let output = run(
        &indexer,
        &["--dry-run", "--create-role", "--create-api-key"],
    );
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    let lines = output.stdout.lines().filter(|line| line.contains(" /_"));
    let lines: Vec<_> = lines.collect();
    assert_eq!(
        lines,
        [
            "PUT /_ilm/policy/rights-dry",
            "PUT /_component_template/rights-dry@custom",
            "PUT /_index_template/rights-dry",
            "PUT /_security/role/rights-dry-writer",
            "POST /_security/api_key",
        ]
    );
    let role = server.request("GET", "/_security/role/rights-dry-writer", &Value::Null);
    assert_eq!((role.status, keys(server, "rights-dry-writer")), (404, 0));
}

#[test]
fn with_security_switched_off_there_is_nothing_to_make() {
    let Some(server) = Elasticsearch::shared(NEWEST, false) else {
        return;
    };
    let indexer = installer("rights-off", server, "", "");
    assert_snapshot!(shown(&indexer, &["--create-role", "--create-api-key", "--secret-file", "key"]), @r"
    exit code 0
    --- stderr
    note: security is switched off in this Elasticsearch: it has no roles, users or keys, and lets everybody write
    ");
    assert!(!indexer.directory().join("key").exists());
}

#[test]
fn flags_that_contradict_each_other_are_wrong_use() {
    for (args, words) in [
        (
            &["--verifier"][..],
            "go with --create-role, --create-user or --create-api-key",
        ),
        (
            &["--secret-file", "key", "--create-role"],
            "go with --create-user or --create-api-key",
        ),
        (
            &["--create-role", "--verifier", "--teleport-plugin"],
            "cannot be used with",
        ),
        (
            &["--create-user", "a", "--create-api-key"],
            "make a secret each: one at a time",
        ),
        (
            &["--create-user", "a:b"],
            "--create-user takes 1 to 507 letters",
        ),
    ] {
        let output = Indexer::new().run(&[&["install"], args].concat());
        assert_eq!(output.code, Some(2), "{args:?}");
        assert!(output.stderr.contains(words), "{args:?}: {}", output.stderr);
    }
}
