//! `demo`, as the README tells a new user to try it, and its parts.

use serde_json::Value;

use super::support::elasticsearch::{self, Elasticsearch, Options};
use super::support::program::Indexer;
use super::support::wait_until;

const END: &str = "every event that was emitted is there, once, as it was emitted: 3000 of the log, 590 of 107 \
    session recordings (483 of what was on the screen left out), and a document about each session";

/// The line of stderr that begins so.
fn line<'a>(stderr: &'a str, start: &str) -> &'a str {
    let found = stderr.lines().find(|line| line.starts_with(start));
    found.unwrap_or_else(|| panic!("no line begins with {start:?}:\n{stderr}"))
}

#[test]
fn it_ends_by_itself_with_a_proof() {
    let indexer = Indexer::new();
    let temporary = indexer.directory().display().to_string();
    let indexer = indexer.env("TMPDIR", &temporary);
    for api in ["export", "search", "both"] {
        let output = indexer.run(&["demo", "--events", "3000", "--api", api]);
        assert_eq!(output.code, Some(0), "{}", output.stderr);
        assert_eq!(output.stdout, "");
        assert_eq!(line(&output.stderr, "every event"), END);
        let second = if api == "export" { "export" } else { "search" };
        let first = if api == "search" { "search" } else { "export" };
        let created = "3697 created, 0 there already, 0 dead letters";
        let again = "0 created, 3697 there already, 0 dead letters";
        line(&output.stderr, &format!("by the {first} API: {created}"));
        line(&output.stderr, &format!("by the {second} API: {again}"));

        // What it says about looking at the result is true.
        let command = line(&output.stderr, "state: teleport-event-indexer ");
        let args: Vec<&str> = command.split(' ').skip(2).collect();
        let status = indexer.run(&args);
        assert_eq!(status.code, Some(0), "{}", status.stderr);
        assert!(
            status.stdout.contains("3697 documents created"),
            "{}",
            status.stdout
        );
    }
}

#[test]
fn it_takes_a_real_elasticsearch() {
    let Some(server) = Elasticsearch::shared(elasticsearch::NEWEST, true) else {
        return;
    };
    let indexer = Indexer::new()
        .env("EVENT_INDEXER_ELASTICSEARCH_USER", "elastic")
        .env(
            "EVENT_INDEXER_ELASTICSEARCH_PASSWORD",
            elasticsearch::PASSWORD,
        );
    let output = indexer.run(&["demo", "--events", "3000", "--elasticsearch", &server.url()]);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert_eq!(line(&output.stderr, "every event"), END);
}

/// What `docker compose up` does where no Teleport is configured: the stand-in Auth Service in one
/// process, the indexer in another, live events between them.
#[test]
fn an_indexer_follows_the_stand_in_auth_service() {
    let options = Options {
        security: false,
        ..Options::default()
    };
    let Some(server) = Elasticsearch::shared(options.version, options.security) else {
        return;
    };
    let indexer = Indexer::new();
    let mut auth = indexer.spawn(&[
        "demo",
        "--auth-listen",
        "127.0.0.1:0",
        "--identity-dir",
        ".",
        "--events",
        "500",
        "--days",
        "2",
    ]);
    let address = wait_until("the stand-in serves", || {
        let stderr = auth.stderr();
        let start = "stand-in Auth Service on ";
        let line = stderr.lines().find_map(|line| line.strip_prefix(start));
        line.and_then(|line| line.split_once(','))
            .map(|(address, _)| address.to_owned())
            .ok_or(stderr)
    });
    let url = server.url();
    let to = [
        "--elasticsearch-hosts",
        &url,
        "--elasticsearch-index",
        "compose-%Y.%m.%d",
        "--elasticsearch-install-template",
        "compose",
        "--elasticsearch-install-policy",
        "compose",
    ];
    let installed = indexer.run(&[&["install"], &to[..]].concat());
    assert_eq!(installed.code, Some(0), "{}", installed.stderr);
    let week_ago = (chrono::Utc::now() - chrono::TimeDelta::days(7)).to_rfc3339();
    let from = [
        "--teleport-addr",
        &address,
        "--teleport-identity",
        "identity",
        "--storage",
        "state",
        "--start-time",
        &week_ago,
        "--timeout",
        "200ms",
    ];
    let mut start = indexer.spawn(&[&["start"], &from[..], &to[..]].concat());
    wait_until("the past and some live events are there", || {
        // Not by a search: that fails while the shard of a new day is on its way.
        let stats = server.request("GET", "/compose-*/_stats/indexing", &Value::Null);
        let total = &stats.success().json()["_all"]["primaries"]["indexing"]["index_total"];
        match total.as_u64() {
            Some(count) if count > 510 => Ok(()),
            count => Err(format!("{count:?} documents; {}", start.stderr())),
        }
    });
    start.terminate();
    assert_eq!(start.wait().code, Some(0));
    auth.terminate();
    assert_eq!(auth.wait().code, Some(0));
}
