//! `verify`: what is missing is found, to the document; what is sent again is that and no more.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use chrono::{TimeDelta, Utc};
use serde_json::{Value, json};
use teleport_event_indexer::checkpoint::Checkpoint;
use teleport_event_indexer::demo::auth::{AuthOptions, Method, Unreadable};
use teleport_event_indexer::demo::elastic::{ElasticsearchOptions, Refusal};

use crate::support::elasticsearch::{Elasticsearch, NEWEST, oldest};
use crate::support::faketeleport::FakeTeleport;
use crate::support::http;
use crate::support::journey::{Journey, PASSWORD, days_ago};
use crate::support::program::Output;
use crate::support::rig::{
    CLUSTER, Key, Rig, backfill, event, midnight, realistic, rfc3339, wait_until_said,
};
use crate::support::wait_until;

/// Documents by day and type.
type Counts = BTreeMap<(String, String), u64>;

/// Arguments of a comparison between these days ago.
fn verify(from: u64, to: u64, more: &[&str]) -> Vec<String> {
    let mut args = backfill(from, to);
    args[0] = "verify".to_owned();
    args.extend(more.iter().map(|&arg| arg.to_owned()));
    args
}

fn report(output: &Output) -> Value {
    serde_json::from_str(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", output.stdout, output.stderr))
}

/// One column of the report, where it is not 0.
fn column(report: &Value, name: &str) -> Counts {
    let rows = report["rows"].as_array().expect("there are rows").iter();
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let counts = rows.map(|row| {
        let count = row[name].as_u64().expect("it is a count");
        ((text(&row["day"]), text(&row["type"])), count)
    });
    counts.filter(|(_, count)| *count > 0).collect()
}

/// Documents, given as index and source, by day and type.
fn counted<'a>(documents: impl IntoIterator<Item = (&'a Key, &'a Value)>) -> Counts {
    let mut counts = Counts::new();
    for ((index_name, _), source) in documents {
        let day = index_name.rsplit('-').next().expect("a name has a date");
        let kind = source["event"].as_str().expect("it has a type").to_owned();
        *counts.entry((day.replace('.', "-"), kind)).or_default() += 1;
    }
    counts
}

fn rig_with(export: bool, top: &str, more: &str) -> Rig {
    let auth = AuthOptions {
        export,
        ..AuthOptions::default()
    };
    Rig::with(auth, ElasticsearchOptions::default(), top, more)
}

#[test]
fn what_was_deleted_is_found_missing_and_refilled_by_either_api() {
    for export in [true, false] {
        let mut rig = rig_with(export, "", "batch-documents = 100");
        rig.append(realistic(5, 2_000, 4, 1));
        rig.run_to(0, &backfill(4, 1));
        let whole = rig.run_to(0, &verify(4, 1, &["--json"]));
        let (stored, _) = rig.stored();
        let told = report(&whole);
        assert_eq!(column(&told, "teleport"), counted(&stored));
        assert_eq!(told["complete"], true);
        let said = "nothing is missing: 2000 events compared\n";
        assert!(whole.stderr.ends_with(said), "{}", whole.stderr);

        let deleted: BTreeMap<_, _> = stored.iter().step_by(7).collect();
        let keys: Vec<Key> = deleted.keys().map(|&key| key.clone()).collect();
        assert_eq!(rig.elasticsearch().delete(&keys), keys.len() as u64);
        let runs = rig.summary().runs;
        let holed = rig.run_to(1, &verify(4, 1, &["--json"]));
        let told = report(&holed);
        let expected = counted(deleted.iter().map(|(&key, &source)| (key, source)));
        assert_eq!(column(&told, "missing"), expected);
        assert_eq!(column(&told, "teleport"), counted(&stored));
        assert_eq!(column(&told, "refilled"), Counts::new());
        assert_eq!(
            rig.summary().runs,
            runs,
            "a mere comparison changed the state"
        );

        let before = rig.elasticsearch().n_items(201);
        let refill = rig.run_to(0, &verify(4, 1, &["--refill", "--json"]));
        let told = report(&refill);
        assert_eq!(column(&told, "refilled"), expected);
        assert_eq!(column(&told, "missing"), Counts::new());
        assert_eq!(rig.elasticsearch().n_items(201) - before, keys.len() as u64);
        assert_eq!(
            rig.elasticsearch().duplicates_refused(),
            0,
            "others were sent"
        );
        rig.assert_complete();
        rig.run_to(0, &verify(4, 1, &[]));
    }
}

#[test]
fn a_whole_day_without_an_index_is_missing() {
    let mut rig = Rig::new("", "");
    for (day, kind) in [(3, "a"), (2, "a"), (2, "b")] {
        rig.append([event(kind, kind, midnight(day) + TimeDelta::hours(1))]);
    }
    rig.run_to(0, &backfill(3, 2));
    let output = rig.run_to(1, &verify(3, 1, &[]));
    let [first, second] = [3, 2].map(|days| midnight(days).format("%F").to_string());
    let table = format!(
        "DAY         TYPE  TELEPORT  ELASTICSEARCH  MISSING  KNOWN AS\n\
         {first}  a            1              1        0\n\
         {second}  a            1              0        1\n\
         {second}  b            1              0        1\n\
         total                    3              1        2\n"
    );
    assert_eq!(output.stdout, table);
    let said = "2 are missing: 3 events compared\nhint: --refill sends what is missing\n";
    assert!(output.stderr.ends_with(said), "{}", output.stderr);
    // A daemon that has come as far as the second day.
    let checkpoint = Checkpoint::open(&rig.storage()).expect("it can be opened");
    let position = || midnight(2).timestamp_millis();
    checkpoint
        .daemon_run(CLUSTER, position)
        .expect("it can be written");
    drop(checkpoint);
    let output = rig.run_to(1, &verify(3, 1, &[]));
    let said = format!(
        "note: the daemon is complete up to {second}T00:00:00Z; what lies behind may be on its way\n"
    );
    assert!(output.stderr.ends_with(&said), "{}", output.stderr);
    let output = rig.run_to(0, &verify(3, 1, &["--refill"]));
    let table = format!(
        "DAY         TYPE  TELEPORT  ELASTICSEARCH  MISSING  REFILLED  KNOWN AS\n\
         {first}  a            1              1        0         0\n\
         {second}  a            1              1        0         1\n\
         {second}  b            1              1        0         1\n\
         total                    3              3        0         2\n"
    );
    assert_eq!(output.stdout, table);
    let said = "nothing is missing: 3 events compared, 2 of them refilled\n";
    assert!(output.stderr.ends_with(said), "{}", output.stderr);
    rig.assert_complete();
}

#[test]
fn filters_say_what_is_expected() {
    let mut rig = Rig::new("skip-event-types = [\"skipped\"]", "");
    let time = midnight(2) + TimeDelta::hours(1);
    rig.append(["a", "b", "c"].map(|kind| event(kind, kind, time)));
    rig.append_unwanted([event("skipped", "skipped", time)]);
    rig.run_to(0, &backfill(2, 1));
    rig.run_to(0, &verify(2, 1, &[]));
    let (stored, _) = rig.stored();
    let is_c = |(_, source): &(&Key, &Value)| source["event"] == "c";
    let lost: Vec<Key> = stored
        .iter()
        .filter(is_c)
        .map(|(key, _)| key.clone())
        .collect();
    assert_eq!(rig.elasticsearch().delete(&lost), 1);
    let output = rig.run_to(0, &verify(2, 1, &["--types", "a,b", "--json"]));
    assert_eq!(report(&output)["total"]["teleport"], 2);
    rig.run_to(1, &verify(2, 1, &["--types=c"]));
    rig.run_to(1, &verify(2, 1, &[]));
    // Somebody else's documents, and more of them than there should be, are no fault.
    rig.append_unwanted([event("again", "skipped", time)]);
    rig.run_to(
        0,
        &verify(
            2,
            1,
            &["--types", "skipped", "--skip-event-types=x", "--refill"],
        ),
    );
    rig.run_to(0, &verify(2, 1, &["--types", "a"]));
}

#[test]
fn what_is_missing_is_known_as_what_it_is() {
    let mut rig = Rig::new("", "");
    let blocked = format!("audit-events-{}", midnight(2).format("%Y.%m.%d"));
    let times = [3, 2].map(|days| midnight(days) + TimeDelta::hours(1));
    rig.append([event(1, "refused", times[0]), event(2, "fine", times[0])]);
    rig.append([event(3, "waits", times[1])]);
    rig.elasticsearch().add_rule(move |operation| {
        if operation.contains("\"refused\"") || operation.contains("event_indexer.raw") {
            return Some(Refusal::mapping_failure());
        }
        (operation.index == blocked).then(|| Refusal::write_block(&blocked))
    });
    let mut running = rig.spawn(&backfill(3, 1));
    wait_until("a document waits in the state file", || {
        let waiting = if rig.try_summary().is_some() {
            rig.waiting().len()
        } else {
            0
        };
        if waiting == 1 { Ok(()) } else { Err(waiting) }
    });
    running.terminate();
    assert_eq!(running.wait().code, Some(1));
    let output = rig.run_to(1, &verify(3, 1, &["--json"]));
    let told = report(&output);
    let total = json!({"teleport": 3, "elasticsearch": 1, "missing": 2, "refilled": 0,
        "dead_letters": 1, "waiting": 1, "in_gaps": 0});
    assert_eq!(told["total"], total);
    assert!(
        output
            .stderr
            .contains("2 are missing (1 dead letters, 1 waiting for their index): 3 events"),
        "{}",
        output.stderr
    );
    rig.elasticsearch().clear_rules();
    rig.run_to(0, &verify(3, 1, &["--refill"]));
    rig.assert_complete();
}

#[test]
fn an_event_without_a_document_is_missing_for_good() {
    let mut rig = Rig::new("", "");
    let time = midnight(2) + TimeDelta::hours(1);
    rig.append([event(1, "fine", time)]);
    let mut broken = teleport_event_indexer::demo::events::encode(
        &event(2, "broken", time),
        teleport_event_indexer::demo::events::Id::OfEvent,
    );
    broken.body = bytes::Bytes::from_static(b"\x0a\xff");
    rig.auth().append([broken]);
    rig.run_to(1, &backfill(2, 1));
    for more in [&["--json"][..], &["--json", "--refill"]] {
        let told = report(&rig.run_to(1, &verify(2, 1, more)));
        let broken = (midnight(2).format("%F").to_string(), "broken".to_owned());
        for name in ["missing", "dead_letters"] {
            assert_eq!(column(&told, name), Counts::from([(broken.clone(), 1)]));
        }
        assert_eq!(told["gaps"], json!([]));
    }
}

#[test]
fn a_gap_is_told_of_and_filled_once_it_can_be_read() {
    const MOST_BYTES: usize = 20_000;
    let mut rig = rig_with(false, "", "");
    let time = midnight(2) + TimeDelta::hours(1);
    rig.append([event(1, "small", time)]);
    let mut large = event(2, "large", time + TimeDelta::hours(1));
    large["command"] = "x".repeat(2 * MOST_BYTES).into();
    rig.append([large, event(3, "small", time + TimeDelta::hours(2))]);
    rig.auth()
        .set_unreadable(Some((MOST_BYTES, Unreadable::Hidden)));
    rig.run_to(1, &backfill(2, 1));
    assert_eq!(rig.open_gaps().len(), 1);

    let output = rig.run_to(1, &verify(2, 1, &[]));
    let told = "\ncannot be read from Teleport: event_unreadable from ";
    assert!(output.stdout.contains(told), "{}", output.stdout);
    let said = "1 spans cannot be read from Teleport, so nobody knows what is missing there";
    assert!(output.stderr.contains(said), "{}", output.stderr);

    rig.auth().set_unreadable(None);
    let told = report(&rig.run_to(1, &verify(2, 1, &["--json"])));
    assert_eq!(told["total"]["in_gaps"], 1);
    assert_eq!(told["total"]["missing"], 1);
    assert_eq!(rig.open_gaps().len(), 1, "a mere comparison closed it");
    rig.run_to(0, &verify(2, 1, &["--refill"]));
    rig.assert_complete();
    assert_eq!(rig.open_gaps(), []);
    let (_, own) = rig.stored();
    let closed = |own: &&Value| !own["event_indexer.gap.closed"].is_null();
    assert_eq!(own.iter().filter(closed).count(), 1, "{own:?}");
}

#[test]
fn it_runs_beside_a_daemon_and_does_not_touch_its_position() {
    let start = midnight(2);
    let mut rig = Rig::new(&format!("start-time = {:?}", rfc3339(start)), "");
    rig.append(realistic(6, 300, 2, 1));
    let mut daemon = rig.spawn(&["start"]);
    rig.wait_until_complete();
    let (stored, _) = rig.stored();
    let keys: Vec<Key> = stored.keys().step_by(3).cloned().collect();
    rig.elasticsearch().delete(&keys);
    rig.run_to(1, &verify(2, 1, &[]));
    rig.run_to(0, &verify(2, 1, &["--refill"]));
    rig.append([event("still following", "x", Utc::now())]);
    rig.wait_until_complete();
    assert!(daemon.is_running());
    daemon.terminate();
    assert_eq!(daemon.wait().code, Some(0));
    assert_eq!(rig.daemon().from_ms, start.timestamp_millis());
    assert_eq!(rig.daemon().counts.created, 301, "the daemon's own alone");
    rig.assert_nothing_was_passed();
}

#[test]
fn what_is_wrong_is_said_before_anything_is_read() {
    let rig = Rig::new("", "");
    let [from, to] = ["--from=2199-01-01", "--to=2199-01-02"];
    let output = rig.run_to(2, &["verify", from, to]);
    assert_eq!(
        output.stderr,
        "error: --from 2199-01-01T00:00:00Z lies in the future\n"
    );
    let output = rig.run_to(2, &verify(2, 1, &["--verifier-api-key=id:hunter2"]));
    assert_eq!(
        output.stderr,
        "error: --elasticsearch-verifier-api-key: a secret on the command line is visible in the \
         process list; use file:PATH or EVENT_INDEXER_ELASTICSEARCH_VERIFIER_API_KEY\n"
    );
    assert_eq!(rig.auth().n_calls(Method::Ping), 0);
}

#[test]
fn it_ends_at_once_when_told_to() {
    let mut rig = Rig::new("", "");
    rig.append(realistic(7, 500, 2, 1));
    let slowly = "--limits-backfill-events-per-second=1";
    let mut running = rig.spawn(&verify(2, 1, &["--refill", slowly]));
    wait_until_said(&running, "reading by the export API");
    running.interrupt();
    let output = running.wait();
    assert_eq!(output.code, Some(1));
    assert_eq!(output.stdout, "");
    let said = "stopped before the end, so this proves nothing\n";
    assert!(output.stderr.ends_with(said), "{}", output.stderr);
}

#[test]
fn elasticsearch_away_for_a_moment_is_no_hole() {
    let mut rig = Rig::new("", "batch-documents = 10");
    rig.append(realistic(8, 300, 2, 1));
    rig.run_to(0, &backfill(2, 1));
    let slowly = "--limits-backfill-events-per-second=100";
    let running = rig.spawn(&verify(2, 1, &[slowly]));
    wait_until("it asks", || {
        let asked = rig.elasticsearch().requests();
        let asks = asked.iter().any(|request| request.path.contains("_mget"));
        if asks { Ok(()) } else { Err("not yet") }
    });
    rig.elasticsearch().drop_connections();
    let output = running.wait();
    assert_eq!(output.code, Some(0), "{}", output.stderr);
}

/// The stand-in says the same as the real one to what `verify` asks.
#[test]
fn the_stand_in_answers_as_elasticsearch_does() {
    let rig = Rig::new("", "");
    let address = rig.elasticsearch_address().to_string();
    let stand_in = |method: &str, path: &str, body: &str| {
        let kind = if path.contains("_bulk") {
            "content-type: application/x-ndjson"
        } else {
            "content-type: application/json"
        };
        http::request(&address, method, path, &[kind], body.as_bytes()).expect("it answers")
    };
    for version in [NEWEST, oldest()] {
        let Some(server) = Elasticsearch::shared(version, version == NEWEST) else {
            continue;
        };
        let index = format!("verify-lookup-{version}");
        let action = json!({"create": {"_index": index, "_id": "a"}});
        let bulk = format!("{action}\n{{\"event\":\"x\"}}\n");
        stand_in("POST", "/_bulk", &bulk).success();
        server.request("POST", "/_bulk", &bulk.into()).success();
        let filtered = "_mget?_source=false&filter_path=docs.found,docs.error.type";
        for (index, call, body) in [
            (&*index, filtered, json!({"ids": ["b", "a", "a", "c"]})),
            ("verify-none", filtered, json!({"ids": ["a", "b"]})),
            (
                &*index,
                "_mget?filter_path=docs._source,docs._id",
                json!({"ids": ["a", "b"]}),
            ),
            (
                &*index,
                "_mget?filter_path=status,error.type",
                json!({"ids": []}),
            ),
        ] {
            let path = format!("/{index}/{call}");
            let real = server.request("POST", &path, &body);
            let ours = stand_in("POST", &path, &body.to_string());
            assert_eq!(
                (ours.status, ours.json()),
                (real.status, real.json()),
                "{path} {body}"
            );
        }
    }
}

/// Deletes what a real Elasticsearch has, has it found and refilled.
fn holes_in(version: &'static str, security: bool, unimplemented: &str) {
    let Some(server) = Elasticsearch::shared(version, security) else {
        return;
    };
    let Some(teleport) = FakeTeleport::start(&["--events", "20000", "--days", "3"]) else {
        return;
    };
    teleport.faults(&json!({unimplemented: true}));
    let name = format!("verify-{}-{unimplemented}", version.replace('.', "-"));
    let name = name.replace('_', "-");
    let journey = Journey::new(&name, &teleport, server, "");
    let (from, to) = (days_ago(3), rfc3339(Utc::now()));
    let args = |command, more: &'static str| {
        [command, "--from", &from, "--to", &to, more].map(str::to_owned)
    };
    let run = |args: [String; 6], code| {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = journey.spawn(&args).wait();
        assert_eq!(output.code, Some(code), "{}", output.stderr);
        output
    };
    run(args("backfill", "--log-level=info"), 0);
    let documents = journey.documents();
    if security {
        // The writer may not read: the role that may is the one of the templates.
        let refused = run(args("verify", "--json"), 1);
        let url = server.url();
        let said = format!(
            "error: the credentials for {url}/ lack the privilege `read` on {name}-*\n\
             hint: give `read` on the audit indices \
             (templates/elasticsearch-verifier-role.json), or name a key that has it as \
             verifier-api-key\n"
        );
        assert!(refused.stderr.ends_with(&said), "{}", refused.stderr);
        assert_eq!(refused.stdout, "");
        let wrong = journey.indexer.write("wrong-key", "id:wrong");
        std::fs::set_permissions(&wrong, Permissions::from_mode(0o600)).expect("it is ours");
        let refused = run(args("verify", "--verifier-api-key=file:wrong-key"), 1);
        let said = format!(
            "error: cannot log in with verifier-api-key: Elasticsearch at {url}/ refuses the \
             credentials: "
        );
        assert!(refused.stderr.contains(&said), "{}", refused.stderr);
        journey
            .indexer
            .write("verifier-key", &verifier_key(server, &name));
    }
    let verify = |more: &'static str, code| {
        let mut args = args("verify", more).to_vec();
        args.push("--json".to_owned());
        if security {
            args.push("--verifier-api-key=file:verifier-key".to_owned());
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = journey.spawn(&args).wait();
        assert_eq!(output.code, Some(code), "{}", output.stderr);
        report(&output)
    };
    let told = verify("--log-level=info", 0);
    assert_eq!(column(&told, "teleport"), counted(&documents));

    let deleted: BTreeMap<_, _> = documents.iter().step_by(101).collect();
    let mut lines = String::new();
    for (index, id) in deleted.keys() {
        lines += &format!("{}\n", json!({"delete": {"_index": index, "_id": id}}));
    }
    let answer = server.request("POST", "/_bulk", &lines.into()).success();
    assert_eq!(answer.json()["errors"], false);
    // No refresh here: what was deleted a moment ago is missing now.
    let told = verify("--log-level=info", 1);
    let expected = counted(deleted.iter().map(|(&key, &source)| (key, source)));
    assert_eq!(column(&told, "missing"), expected);

    let told = verify("--refill", 0);
    assert_eq!(column(&told, "refilled"), expected);
    verify("--log-level=info", 0);
    assert!(
        journey.documents() == documents,
        "refilled documents differ"
    );

    let day = documents.keys().next().map(|(index, _)| index.clone());
    let day = day.expect("there are documents");
    server
        .request("DELETE", &format!("/{day}"), &Value::Null)
        .success();
    let told = verify("--log-level=info", 1);
    let of_day = documents.iter().filter(|((index, _), _)| *index == day);
    assert_eq!(column(&told, "missing"), counted(of_day));
    verify("--refill", 0);
    assert!(
        journey.documents() == documents,
        "refilled documents differ"
    );
}

/// An API key that may do what the verifier's role says, and its documents are those of `name`.
fn verifier_key(server: &Elasticsearch, name: &str) -> String {
    let role = include_str!("../../templates/elasticsearch-verifier-role.json");
    let role = role.replace("audit-events-*", &format!("{name}-*"));
    let mut role: Value = serde_json::from_str(&role).expect("the role is JSON");
    let user = format!("{name}-verifier");
    server.create_user(&user, PASSWORD, &role);
    role.as_object_mut()
        .expect("it is an object")
        .remove("metadata");
    let body = json!({"name": user, "role_descriptors": {"verifier": role}});
    let answer = server
        .request("POST", "/_security/api_key", &body)
        .success();
    let encoded = answer.json()["encoded"].clone();
    encoded.as_str().expect("the answer has it").to_owned()
}

#[test]
fn holes_in_the_newest_elasticsearch_are_found_by_export() {
    holes_in(NEWEST, true, "unimplemented_search");
}

#[test]
fn holes_in_the_newest_elasticsearch_are_found_by_search() {
    holes_in(NEWEST, true, "unimplemented_export");
}

#[test]
fn holes_in_the_oldest_elasticsearch_are_found() {
    holes_in(oldest(), false, "unimplemented_export");
}
