//! Commands, their help, and where their output goes.

use std::fs;
use std::process::{Command, Stdio};

use chrono::{TimeDelta, Utc};
use insta::assert_snapshot;
use serde_json::{Value, json};
use teleport_event_indexer::demo::certs::IdentityOptions;
use teleport_event_indexer::demo::elastic::{ElasticsearchOptions, StandInElasticsearch};
use teleport_event_indexer::demo::events::{Id, encode, generate};

use crate::support::elasticsearch::{Elasticsearch, NEWEST};
use crate::support::program::Indexer;
use crate::support::seen::{PASSWORD, wait_for_words};
use crate::support::stand_ins::{NOBODY, Teleport, elasticsearch};
use crate::support::wait_until;

/// Both ends, and an indexer between them: the template is installed and the log has events.
fn set_up(events: u64) -> (Indexer, Teleport, StandInElasticsearch) {
    let teleport = Teleport::start("a.example");
    let now = Utc::now();
    let events = generate(1, events, now - TimeDelta::hours(2), now, "a.example");
    let events = events.map(|event| encode(&event, Id::OfEvent));
    teleport.auth.control().append(events);
    let server = elasticsearch(ElasticsearchOptions::default());
    let indexer = Indexer::new();
    indexer.configure(&teleport.addr(), &server.url(), "");
    indexer.identify(&teleport.cluster, &IdentityOptions::default());
    let installed = indexer.run(&["install", "-c", "config.toml"]);
    assert_eq!(installed.code, Some(0), "{}", installed.stderr);
    (indexer, teleport, server)
}

const RUN: &[&str] = &[
    "start",
    "-c",
    "config.toml",
    "--exit-on-last-event",
    "--start-time=2026-01-01",
];
const STATUS: &[&str] = &["status", "-c", "config.toml"];

#[test]
fn help() {
    let indexer = Indexer::new().env("COLUMNS", "100");
    let output = indexer.run(&["--help"]);
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
    assert_snapshot!(output.stdout, @"
    Moves Teleport audit events into Elasticsearch: complete, and once each

    Usage: teleport-event-indexer [OPTIONS] <COMMAND>

    Commands:
      configure     Write the configuration, roles for both ends, and units to run it by
      install       Put index template and lifecycle policy into Elasticsearch; safe to repeat
      start         Follow the audit log
      backfill      Index a closed range of time; beside a daemon if there is one, and resumable
      verify        Compare Teleport with Elasticsearch, document by document; beside a daemon
      status        Say how far the audit log is indexed, and what is missing
      dead-letters  Look after documents that Elasticsearch refused
      state         Back up, reset or move the state
      check         Prove the configuration and both ends before anything runs
      demo          Show it all on this machine: invented events, stand-ins for both ends
      completions   Print completions for a shell
      man           Write the man pages, one for each command, into a folder
      version       Print the version
      help          Print this message or the help of the given subcommand(s)

    Options:
      -c, --config <FILE>   Configuration file in TOML [env: EVENT_INDEXER_CONFIG]
          --cluster <NAME>  Which of several clusters: the name of its table
      -h, --help            Print help
      -V, --version         Print version

    Every setting is a key of the configuration file, a flag and an environment variable; a flag beats a
    variable, a variable beats the file.
    ");
    // Without a command the same text comes, as a mistake.
    let bare = indexer.run(&[]);
    assert_eq!((bare.code, bare.stdout.as_str()), (Some(2), ""));
    assert_eq!(bare.stderr.trim(), output.stdout.trim());
}

#[test]
fn each_command_has_help_that_names_its_flags() {
    for (command, flags) in [
        (
            "install",
            &["--dry-run", "--overwrite", "--elasticsearch-hosts"][..],
        ),
        (
            "start",
            &[
                "--exit-on-last-event",
                "--dry-run",
                "--start-time",
                "--storage",
            ],
        ),
        (
            "backfill",
            &["--from", "--to", "--again", "--dry-run", "--storage"],
        ),
        ("status", &["--json", "--storage"]),
        ("dead-letters", &["list", "show", "retry", "export", "drop"]),
        ("state", &["backup", "reset"]),
        ("check", &["--show-config", "--teleport-addr"]),
        (
            "demo",
            &["--events", "--days", "--api", "--elasticsearch", "--stay"],
        ),
        ("version", &["--config"]),
    ] {
        let output = Indexer::new().run(&[command, "--help"]);
        assert_eq!(
            (output.code, output.stderr.as_str()),
            (Some(0), ""),
            "{command}"
        );
        for flag in flags {
            assert!(
                output.stdout.contains(flag),
                "{command} {flag}: {}",
                output.stdout
            );
        }
        let again = Indexer::new().run(&["help", command]);
        assert_eq!((again.code, &again.stdout), (Some(0), &output.stdout));
    }
}

#[test]
fn version() {
    let expected = concat!("teleport-event-indexer ", env!("CARGO_PKG_VERSION"), "\n");
    for args in [&["version"][..], &["--version"], &["-V"]] {
        let output = Indexer::new().run(args);
        assert_eq!(
            (output.code, output.stdout.as_str(), output.stderr.as_str()),
            (Some(0), expected, ""),
            "{args:?}"
        );
    }
}

#[test]
fn completions_and_man_pages_know_each_command_and_need_no_configuration() {
    let indexer = Indexer::new().env("EVENT_INDEXER_TIMEOUT", "no duration");
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = indexer.run(&["completions", shell]);
        assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
        for word in ["backfill", "exit-on-last-event"] {
            assert!(output.stdout.contains(word), "{shell} {word}");
        }
    }
    let folder = indexer.directory().join("man");
    let target = folder.to_str().unwrap();
    let missing = indexer.run(&["man", target]);
    assert_eq!((missing.code, missing.stdout.as_str()), (Some(1), ""));
    assert!(
        missing.stderr.contains("cannot write the man pages into"),
        "{}",
        missing.stderr
    );
    fs::create_dir(&folder).unwrap();
    let output = indexer.run(&["man", target]);
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
    let start = folder.join("teleport-event-indexer-start.1");
    let start = fs::read_to_string(start).unwrap();
    assert!(start.contains(r"\-\-exit\-on\-last\-event"), "{start}");
    assert!(folder.join("teleport-event-indexer.1").exists());
}

#[test]
fn status_before_during_and_after() {
    let (indexer, _teleport, _server) = set_up(500);
    let none = indexer.run(STATUS);
    assert_eq!((none.code, none.stdout.as_str()), (Some(1), ""));

    let run = indexer.run(RUN);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let seen = indexer.seen(STATUS);
    // How many seconds ago that was depends on the machine.
    let (before, after) = seen.split_once(" (").expect("it says when");
    let (_, after) = after.split_once(" s ago)").expect("it says when");
    let seen = format!("{before} …{after}");
    assert_snapshot!(seen, @"
    exit code 0
    --- stdout
    cluster        a.example
    daemon         does not run
    following      since 2026-01-01T00:00:00Z
      complete up to TIME …
      500 events read, 0 filtered, 500 documents created, 0 already there, 0 dead letters
    gaps           0
    dead letters   0 (0 bytes)
    identity       of user teleport-event-indexer, valid until TIME
    ");
    let status = json_status(&indexer);
    let run = &status["runs"][0];
    assert_eq!(status["daemon"], Value::Null);
    assert_eq!(status["cluster"], "a.example");
    assert_eq!(run["kind"], "daemon");
    assert_eq!(run["from"], "2026-01-01T00:00:00Z");
    assert_eq!(
        (&run["events"], &run["created"]),
        (&json!(500), &json!(500))
    );
    assert_eq!(status["gaps"]["count"], 0);
    assert_eq!(status["dead_letters"]["count"], 0);

    let follow = ["start", "-c", "config.toml"];
    let mut daemon = indexer.spawn(&follow);
    wait_for_words(&mut daemon, "connected to Elasticsearch");
    let runs = wait_until("the daemon is seen", || {
        let status = json_status(&indexer);
        match status["daemon"]["pid"].as_u64() {
            Some(_) => Ok(status),
            None => Err(status),
        }
    });
    assert!(runs["daemon"]["host"].is_string(), "{runs}");
    let text = indexer.run(STATUS).stdout;
    let pid = &runs["daemon"]["pid"];
    assert!(
        text.contains(&format!("daemon         runs: process {pid} on ")),
        "{text}"
    );
    daemon.terminate();
    assert_eq!(daemon.wait().code, Some(0));
    assert_eq!(json_status(&indexer)["daemon"], Value::Null);
}

fn json_status(indexer: &Indexer) -> Value {
    let output = indexer.run(&[STATUS, &["--json"]].concat());
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
    serde_json::from_str(&output.stdout).expect("it is JSON")
}

#[test]
fn install_dry_run_prints_the_requests_and_sends_none() {
    let server = elasticsearch(ElasticsearchOptions::default());
    let indexer = Indexer::new();
    indexer.configure(NOBODY, &server.url(), "");
    let output = indexer.run(&["install", "-c", "config.toml", "--dry-run"]);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    // Each is a line with method and path, and a body that Kibana's console takes.
    let mut requests = Vec::new();
    let mut rest = output.stdout.as_str();
    while let Some((line, after)) = rest.split_once('\n') {
        requests.push(line.to_owned());
        let mut bodies = serde_json::Deserializer::from_str(after).into_iter::<Value>();
        let body = bodies.next().expect("there is a body").expect("it is JSON");
        assert!(body.is_object());
        rest = after.split_at(bodies.byte_offset()).1.trim_start();
    }
    assert_eq!(
        requests,
        [
            "PUT /_ilm/policy/audit-events",
            "PUT /_component_template/audit-events@custom",
            "PUT /_index_template/audit-events",
        ]
    );
    let sent = server.control().requests();
    assert!(!sent.is_empty() && sent.iter().all(|request| request.method == "GET"));

    // Once it is done there is nothing to show.
    assert_eq!(indexer.run(&["install", "-c", "config.toml"]).code, Some(0));
    let output = indexer.run(&["install", "-c", "config.toml", "--dry-run"]);
    assert_eq!((output.code, output.stdout.as_str()), (Some(0), ""));
}

#[test]
fn check_finds_both_ends_well() {
    let Some(server) = Elasticsearch::shared(NEWEST, true) else {
        return;
    };
    let role = json!({
        "cluster": ["all"],
        "indices": [{"names": ["cli-check-*"], "privileges": ["all"]}],
    });
    server.create_user("cli-check-root", PASSWORD, &role);
    let mut role: Value = serde_json::from_str(include_str!(
        "../../templates/elasticsearch-writer-role.json"
    ))
    .expect("it is JSON");
    role["indices"][0]["names"] = json!(["cli-check-*"]);
    server.create_user("cli-check-writer", PASSWORD, &role);

    let teleport = Teleport::start("a.example");
    let indexer = Indexer::new();
    let names = "index = \"cli-check-%Y.%m.%d\"\n[forward.elasticsearch.install]\n\
                 template = \"cli-check\"\npolicy = \"cli-check\"\nreplicas = 0\n";
    indexer.configure(&teleport.addr(), &server.url(), names);
    indexer.identify(&teleport.cluster, &IdentityOptions::default());
    let seen = |args: &[&'static str], user: &'static str| {
        let more = ["-c", "config.toml", "--elasticsearch-user", user];
        indexer.seen(&[args, &more].concat())
    };
    assert_snapshot!(seen(&["check"], "cli-check-root"), @r#"
    exit code 1
    --- stdout
    ok    Teleport 18.2.0, cluster a.example, connected straight to the Auth Service
    ok    credentials of user teleport-event-indexer, valid until TIME
    ok    audit events by the export API, 0 chunks today
    ok    Elasticsearch 9.5.3
    ok    privileges to write
    FAIL  lifecycle policy cli-check: missing
          hint: run `teleport-event-indexer install`
    FAIL  component template cli-check@custom: missing
          hint: run `teleport-event-indexer install`
    FAIL  index template cli-check: missing
          hint: run `teleport-event-indexer install`
    FAIL  a new index cli-check-TODAY gets no index template
          hint: run `teleport-event-indexer install`
    ok    this machine's clock and Elasticsearch's agree
    --- stderr
    TIME  INFO credentials read cluster=a.example address=127.0.0.1:PORT expires=TIME
    TIME  INFO connected to Teleport at 127.0.0.1:PORT, straight to the Auth Service cluster="a.example" version="18.2.0"
    TIME  INFO connected to Elasticsearch at http://127.0.0.1:PORT/ version="9.5.3"
    "#);
    seen(&["install"], "cli-check-root");
    assert_snapshot!(seen(&["check", "--log-format=json"], "cli-check-writer"), @r#"
    exit code 0
    --- stdout
    ok    Teleport 18.2.0, cluster a.example, connected straight to the Auth Service
    ok    credentials of user teleport-event-indexer, valid until TIME
    ok    audit events by the export API, 0 chunks today
    ok    Elasticsearch 9.5.3
    ok    privileges to write
    ok    lifecycle policy cli-check: up to date
    ok    component template cli-check@custom: there
    ok    index template cli-check: up to date
    ok    a new index cli-check-TODAY gets this template
    ok    indices are deleted 365d after their day
    ok    this machine's clock and Elasticsearch's agree
    --- stderr
    {"timestamp":"TIME","level":"INFO","message":"credentials read","cluster":"a.example","address":"127.0.0.1:PORT","expires":"TIME","target":"teleport_event_indexer::teleport::client::connection"}
    {"timestamp":"TIME","level":"INFO","message":"connected to Teleport at 127.0.0.1:PORT, straight to the Auth Service","cluster":"a.example","version":"18.2.0","target":"teleport_event_indexer::commands::transfer"}
    {"timestamp":"TIME","level":"INFO","message":"connected to Elasticsearch at http://127.0.0.1:PORT/","version":"9.5.3","target":"teleport_event_indexer::commands::transfer"}
    "#);
    teleport.auth.control().set_export(false);
    assert_snapshot!(seen(&["check"], "cli-check-root"), @r#"
    exit code 0
    --- stdout
    ok    Teleport 18.2.0, cluster a.example, connected straight to the Auth Service
    ok    credentials of user teleport-event-indexer, valid until TIME
    ok    audit events by the search API
    ok    Elasticsearch 9.5.3
    ok    privileges to write
    ok    lifecycle policy cli-check: up to date
    ok    component template cli-check@custom: there
    ok    index template cli-check: up to date
    ok    a new index cli-check-TODAY gets this template
    ok    indices are deleted 365d after their day
    ok    this machine's clock and Elasticsearch's agree
    --- stderr
    TIME  INFO credentials read cluster=a.example address=127.0.0.1:PORT expires=TIME
    TIME  INFO connected to Teleport at 127.0.0.1:PORT, straight to the Auth Service cluster="a.example" version="18.2.0"
    TIME  INFO connected to Elasticsearch at http://127.0.0.1:PORT/ version="9.5.3"
    "#);
    let shown = seen(&["check", "--show-config"], "cli-check-writer");
    assert!(shown.contains("password = \"[secret]\""), "{shown}");
}

/// What runs with a stdout of its own: exit code and stderr.
fn onto(stdout: impl Into<Stdio>, indexer: &Indexer, args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_teleport-event-indexer"));
    let child = command
        .args(args)
        .current_dir(indexer.directory())
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(Stdio::piped())
        .spawn()
        .expect("it can be run");
    let output = child.wait_with_output().expect("a child can be waited for");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), stderr)
}

/// What prints documents until it is stopped, and what prints many.
fn dry_runs() -> [Vec<&'static str>; 2] {
    [
        &["start", "--start-time=2026-01-01"][..],
        &["backfill", "--from=2026-01-01", "--to=2100-01-01"],
    ]
    .map(|args| [args, &["--dry-run", "-c", "config.toml"]].concat())
}

#[test]
fn a_closed_pipe_is_harmless() {
    let (indexer, _teleport, _server) = set_up(3_000);
    assert_eq!(indexer.run(RUN).code, Some(0));
    let dry_runs = dry_runs();
    for args in [
        &["--help"][..],
        &["version"],
        STATUS,
        &["install", "-c", "config.toml", "--dry-run", "--overwrite"],
        &["check", "-c", "config.toml", "--show-config"],
        &dry_runs[0],
        &dry_runs[1],
    ] {
        let (reader, writer) = std::io::pipe().expect("the system gives us a pipe");
        drop(reader);
        let (code, stderr) = onto(writer, &indexer, args);
        assert_eq!(code, Some(0), "{args:?}: {stderr}");
        let is_harmless = |line: &str| !line.contains("ERROR") && !line.contains("error:");
        assert!(stderr.lines().all(is_harmless), "{args:?}: {stderr}");
        assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_stdout_that_takes_nothing_is_a_failure() {
    let (indexer, _teleport, _server) = set_up(100);
    let dry_runs = dry_runs();
    for args in [&["version"][..], &dry_runs[0], &dry_runs[1]] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full");
        let full = full.expect("Linux has it");
        let (code, stderr) = onto(full, &indexer, args);
        assert_eq!(code, Some(1), "{args:?}: {stderr}");
        let error = "error: cannot write to stdout: No space left on device (os error 28)\n";
        assert!(stderr.ends_with(error), "{args:?}: {stderr}");
    }
}
