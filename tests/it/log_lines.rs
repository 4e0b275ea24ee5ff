//! What the log says of each state that holds the program up, in full: when it begins, that it is not
//! said again and again, and when it is over.

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use insta::assert_snapshot;
use serde_json::Value;
use teleport_event_indexer::demo::auth::{AuthOptions, Unreadable, Unsteady};
use teleport_event_indexer::demo::certs::IdentityOptions;
use teleport_event_indexer::demo::elastic::{Credentials, ElasticsearchOptions, Refusal};
use teleport_event_indexer::secret::Secret;
use tonic::Code;

use crate::support::listener::{Conduct, Listener};
use crate::support::program::{Indexer, Running};
use crate::support::rig::{Rig, backfill, event, midnight, rfc3339, wait_until_said};
use crate::support::seen::masked_lines;
use crate::support::stand_ins::Teleport;
use crate::support::wait_until;

/// What lasts for less has no line of its own when it is over.
const WORTH_AN_END: Duration = Duration::from_secs(10);

/// A daemon that follows a log with nothing in it, by search.
fn following(more: &str) -> (Rig, Running) {
    let auth = AuthOptions {
        export: false,
        ..AuthOptions::default()
    };
    let top = format!("start-time = {:?}\n{more}", rfc3339(midnight(1)));
    let rig = Rig::with(auth, ElasticsearchOptions::default(), &top, "");
    let running = rig.spawn(&["start"]);
    wait_until_said(&running, "following");
    (rig, running)
}

fn last_for(least: Duration) {
    let begin = Utc::now();
    wait_until("it lasts", || {
        let lasted = (Utc::now() - begin).to_std().unwrap_or_default();
        (lasted > least).then_some(()).ok_or(format!("{lasted:?}"))
    });
}

/// The log behind the line with this, without what differs between two runs. The line a minute that says
/// how it goes is left out, and what SIGHUP brings besides.
fn lines(indexer: &Indexer, said: &str, behind: &str) -> String {
    let lines = said.lines().skip_while(|line| !line.contains(behind));
    let others = ["documents settled", "SIGHUP", "log level"];
    let lines = lines
        .skip(1)
        .filter(|line| !others.iter().any(|other| line.contains(other)));
    let said = lines.collect::<Vec<_>>().join("\n");
    let mut text = masked_lines(&said, indexer.directory()).join("\n");
    // How often it was tried within a minute is chance.
    for n in 5..20 {
        text = text.replace(&format!("failures={n} "), "failures=MANY ");
        text = text.replace(&format!("failures={n}\n"), "failures=MANY\n");
    }
    for days in 0..4 {
        let day = midnight(days).format("%Y.%m.%d").to_string();
        text = text.replace(&day, "DAY");
    }
    text
}

#[test]
fn an_elasticsearch_that_refuses_the_credentials_and_then_the_request() {
    let (mut rig, running) = following("");
    let require = |key: &str| {
        rig.elasticsearch().require(Some(Credentials::ApiKey {
            id: "id".into(),
            key: Secret::new(key),
        }));
    };
    require("another");
    rig.append([event("a", "one", Utc::now())]);
    wait_until_said(&running, "refuses the credentials");
    last_for(WORTH_AN_END);
    rig.elasticsearch().require(None);
    rig.wait_until_complete();
    wait_until_said(&running, "again after");
    assert_snapshot!(lines(rig.indexer(), &running.stderr(), "following"), @r#"
    TIME  WARN trying again for a minute, as this may pass: http://127.0.0.1:PORT/ refuses the credentials: status 401, security_exception: missing authentication credentials for REST request [/_bulk] documents=1 pause=PAUSE mend="check user and password, or api-key, in [forward.elasticsearch]; with client-cert alone, Elasticsearch needs a PKI realm that trusts its authority"
    TIME  INFO Elasticsearch answers again after=AFTER
    "#);

    rig.elasticsearch().refuse_larger(Some((0, 403)));
    rig.append([event("b", "one", Utc::now())]);
    wait_until_said(&running, "refuses the request");
    last_for(WORTH_AN_END);
    rig.elasticsearch().refuse_larger(None);
    rig.wait_until_complete();
    wait_until("it is said", || {
        let n = running.stderr().matches("again after").count();
        (n == 2).then_some(()).ok_or(n)
    });
    assert_snapshot!(lines(rig.indexer(), &running.stderr(), "again after"), @r#"
    TIME ERROR blocked, nothing is lost, holding: http://127.0.0.1:PORT/ refuses the request: status 403, es_rejected_execution_exception: rejected execution of coordinating operation documents=1 pause=PAUSE mend="give the writer's role `create_doc` and `auto_configure` on the audit indices"
    TIME  INFO Elasticsearch answers again after=AFTER
    "#);
}

/// Both do not listen any more: for as long as it takes to be a warning.
#[test]
fn ends_that_are_away() {
    let (mut rig, first) = following("");
    drop(first);
    let [teleport, elasticsearch] = [rig.auth_address(), rig.elasticsearch_address()]
        .map(|target| Listener::before(target, Conduct::Passes));
    let addr = format!("--teleport-addr={}", teleport.address);
    let hosts = format!("--elasticsearch-hosts=http://{}", elasticsearch.address);
    let running = rig.spawn(&["start", &addr, &hosts]);
    wait_until_said(&running, "following");
    elasticsearch.dies();
    rig.append([event("a", "one", Utc::now())]);
    wait_until_said(&running, "bulk request failed");
    teleport.dies();
    wait_until_said(&running, "WARN reading failed");
    wait_until_said(&running, "WARN bulk request failed");
    let _revived = [teleport.revived(), elasticsearch.revived()];
    rig.append([event("b", "one", Utc::now())]);
    rig.wait_until_complete();
    for end in ["Teleport", "Elasticsearch"] {
        wait_until_said(&running, &format!("{end} answers again after="));
    }
    let text = lines(rig.indexer(), &running.stderr(), "following");
    // What becomes of one end stands between what becomes of the other.
    let of = |words: [&str; 2]| {
        let is_of = |line: &&str| words.iter().any(|word| line.contains(word));
        let lines: Vec<&str> = text.lines().filter(is_of).collect();
        lines.join("\n")
    };
    let of_teleport = of(["reading failed", "Teleport answers"]);
    let of_elasticsearch = of(["bulk request failed", "Elasticsearch answers"]);
    assert_eq!(text.lines().count(), 6, "{text}");
    assert_snapshot!(of_teleport, @r#"
    TIME  INFO reading failed, trying again: cannot reach Teleport: cannot connect to 127.0.0.1:PORT: Connection refused (os error 111) pause=PAUSE failures=1
    TIME  WARN reading failed, trying again: cannot reach Teleport: cannot connect to 127.0.0.1:PORT: Connection refused (os error 111) pause=PAUSE failures=MANY
    TIME  INFO Teleport answers again after=AFTER
    "#);
    assert_snapshot!(of_elasticsearch, @r#"
    TIME  INFO bulk request failed, trying again: no answer from Elasticsearch at http://127.0.0.1:PORT/: nothing listens there documents=1 failures=1 pause=PAUSE mend="check hosts in [forward.elasticsearch], and that Elasticsearch runs there"
    TIME  WARN bulk request failed, trying again: no answer from Elasticsearch at http://127.0.0.1:PORT/: nothing listens there documents=1 failures=MANY pause=PAUSE mend="check hosts in [forward.elasticsearch], and that Elasticsearch runs there"
    TIME  INFO Elasticsearch answers again after=AFTER
    "#);
}

#[test]
fn a_teleport_that_refuses_what_is_asked_for() {
    let (mut rig, running) = following("");
    let fails = Unsteady::Fails(Code::PermissionDenied);
    rig.auth().set_unsteady(Some((1, 1, fails)));
    wait_until_said(&running, "cannot read");
    last_for(WORTH_AN_END);
    rig.auth().set_unsteady(None);
    rig.append([event("a", "one", Utc::now())]);
    rig.wait_until_complete();
    wait_until_said(&running, "again after");
    assert_snapshot!(lines(rig.indexer(), &running.stderr(), "following"), @r#"
    TIME ERROR cannot read, nothing is lost, holding: Teleport answered GetUnstructuredEvents with PermissionDenied: unsteady pause=PAUSE mend="give the identity's user a role with the rule `resources: [event, session], verbs: [list, read]`"
    TIME  INFO Teleport answers again after=AFTER
    "#);
}

#[test]
fn a_certificate_that_has_ended() {
    let teleport = Teleport::start("ended.example.com");
    let indexer = Indexer::new();
    let identity = |seconds| {
        let options = IdentityOptions {
            not_after: Utc::now() + TimeDelta::seconds(seconds),
            ..IdentityOptions::default()
        };
        let identity = teleport.cluster.identity(&options).unwrap();
        indexer.write_private("identity", &identity.text());
    };
    identity(4);
    let addr = format!("--teleport-addr={}", teleport.auth.address());
    let start = format!("--start-time={}", rfc3339(midnight(1)));
    let mut running = indexer.spawn(&[
        "start",
        "--dry-run",
        "--timeout=50ms",
        "--teleport-identity=identity",
        &addr,
        &start,
    ]);
    wait_until_said(&running, "reading by");
    last_for(Duration::from_secs(5));
    teleport.auth.control().drop_connections();
    wait_until_said(&running, "cannot read");
    last_for(WORTH_AN_END);
    identity(86_400);
    running.hang_up();
    wait_until_said(&running, "again after");
    // Some tasks speak of it, in any order.
    let text = lines(&indexer, &running.stderr(), "connected to Teleport");
    let mut sorted: Vec<&str> = text.lines().collect();
    sorted.sort_unstable();
    assert_snapshot!(sorted.join("\n"), @r#"
    TIME  INFO Teleport answers again after=AFTER
    TIME  INFO credentials renewed expires=TIME
    TIME  INFO first start start_time="TIME"
    TIME  INFO reading by the export API
    TIME  WARN the certificate in identity expires soon, at TIME mend="renew it with `tctl auth sign --format=file --user=teleport-event-indexer --out=identity --overwrite`, or let tbot do it"
    TIME ERROR cannot read, nothing is lost, holding: the certificate in identity expired at TIME pause=PAUSE mend="renew it with `tctl auth sign --format=file --user=teleport-event-indexer --out=identity --overwrite`, or let tbot do it"
    TIME ERROR the certificate in identity expired at TIME mend="renew it with `tctl auth sign --format=file --user=teleport-event-indexer --out=identity --overwrite`, or let tbot do it"
    "#);
}

#[test]
fn ends_with_too_much_to_do() {
    let (mut rig, running) = following("");
    let fails = Unsteady::Fails(Code::ResourceExhausted);
    rig.auth().set_unsteady(Some((1, 1, fails)));
    wait_until_said(&running, "reading failed");
    rig.auth().set_unsteady(None);
    rig.elasticsearch().refuse_larger(Some((0, 429)));
    rig.append([event("a", "one", Utc::now())]);
    wait_until_said(&running, "bulk request failed");
    rig.elasticsearch().refuse_larger(None);
    rig.wait_until_complete();
    assert_snapshot!(lines(rig.indexer(), &running.stderr(), "following"), @r#"
    TIME  INFO too many requests for Teleport, halving their rate pause=PAUSE
    TIME  INFO reading failed, trying again: Teleport answered GetUnstructuredEvents with ResourceExhausted: rate limit exceeded pause=PAUSE failures=1
    TIME  INFO bulk request failed, trying again: http://127.0.0.1:PORT/ answered status 429, es_rejected_execution_exception: rejected execution of coordinating operation documents=1 failures=1 pause=PAUSE mend=""
    "#);
}

#[test]
fn indices_with_a_full_disk_a_block_and_closed() {
    let mut rig = Rig::new("", "");
    for (n, days_ago) in (0..).zip([3, 2, 1]) {
        rig.append([event(n, "one", midnight(days_ago))]);
    }
    let day = |days: u64| midnight(days).format("%Y.%m.%d").to_string();
    let (full, shut) = (day(3), day(2));
    rig.elasticsearch().add_rule(move |operation| {
        let index = operation.index;
        Some(if index.ends_with(&full) {
            Refusal::flood_stage(index)
        } else if index.ends_with(&shut) {
            Refusal::closed_index()
        } else {
            Refusal::write_block(index)
        })
    });
    let running = rig.spawn(&backfill(4, 0));
    let each = |words: &str| {
        wait_until(&format!("each is told of: {words}"), || {
            let n = running.stderr().matches(words).count();
            (n == 3).then_some(()).ok_or(running.stderr())
        });
    };
    each("blocked, nothing is lost");
    // They are tried several times meanwhile.
    let before = rig.elasticsearch().n_bulk_requests();
    wait_until("they are tried again and again", || {
        let tried = rig.elasticsearch().n_bulk_requests() - before;
        (tried >= 9).then_some(()).ok_or(tried)
    });
    rig.elasticsearch().clear_rules();
    each("no longer blocked");
    rig.wait_until_complete();
    // Their order is that of the answers, and how many documents wait so far follows from it.
    let mut text = lines(rig.indexer(), &running.stderr(), "reading by");
    for n in 1..=3 {
        text = text.replace(&format!("documents={n}"), "documents=SOME");
    }
    let mut sorted: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("blocked"))
        .collect();
    sorted.sort_unstable();
    assert_snapshot!(sorted.join("\n"), @r#"
    TIME  INFO no longer blocked index=audit-events-DAY
    TIME  INFO no longer blocked index=audit-events-DAY
    TIME  INFO no longer blocked index=audit-events-TODAY
    TIME ERROR blocked, nothing is lost, holding: status 400, index_closed_exception: closed index=audit-events-DAY documents=SOME pause=PAUSE mend="open the index"
    TIME ERROR blocked, nothing is lost, holding: status 403, cluster_block_exception: index [audit-events-TODAY] blocked by: [FORBIDDEN/8/index write (api)]; index=audit-events-TODAY documents=SOME pause=PAUSE mend="the index is read-only: lift its block"
    TIME ERROR blocked, nothing is lost, holding: status 429, cluster_block_exception: index [audit-events-DAY] blocked by: [TOO_MANY_REQUESTS/12/disk usage exceeded flood-stage watermark, index has read-only-allow-delete block]; index=audit-events-DAY documents=SOME pause=PAUSE mend="Elasticsearch's disk is full: free space, then the index opens by itself"
    "#);
}

#[test]
fn a_store_for_blocked_documents_that_is_full() {
    let top = "blocked-bytes = \"64KiB\"";
    let mut rig = Rig::new(top, "in-flight = 1\nbatch-bytes = \"1MiB\"");
    rig.append((0..20).map(|n| large(n, "large")));
    rig.elasticsearch()
        .add_rule(|_| Some(Refusal::closed_index()));
    let running = rig.spawn(&backfill(2, 0));
    wait_until_said(&running, "holding in memory");
    rig.elasticsearch().clear_rules();
    let said = running.wait().stderr;
    assert_snapshot!(lines(rig.indexer(), &said, "reading by"), @r#"
    TIME ERROR blocked, nothing is lost, holding: status 400, index_closed_exception: closed index=audit-events-TODAY documents=20 pause=PAUSE mend="open the index"
    TIME ERROR blocked, nothing is lost, holding in memory: the state file has no room for more documents of blocked indices: 103550 bytes with these, 65536 are allowed index=audit-events-TODAY documents=20 pause=PAUSE mend="open the index again, or raise blocked-bytes"
    TIME  INFO no longer blocked index=audit-events-TODAY
    done: 20 documents created, 0 were there already, 0 dead letters, 0 gaps
    "#);
}

#[test]
fn a_dead_letter_store_that_is_full() {
    let mut rig = Rig::new("dead-letter-bytes = \"12KiB\"", "");
    let mut first = event(1, "refused", midnight(2));
    first["command"] = "x".repeat(5000).into();
    rig.append([first]);
    rig.elasticsearch()
        .add_rule(|_| Some(Refusal::mapping_failure()));
    rig.run_to(1, &backfill(3, 1));
    assert_eq!(rig.summary().dead_letters.count, 1);
    rig.append([large(2, "refused"), large(3, "refused")]);
    let running = rig.spawn(&backfill(1, 0));
    wait_until_said(&running, "cannot keep");
    rig.run_to(0, &["dead-letters", "drop", "--all", "--yes"]);
    let said = running.wait().stderr;
    let text = lines(rig.indexer(), &said, "reading by");
    let (_, id) = text.split_once("first_id=\"").unwrap();
    let (id, _) = id.split_once('"').unwrap();
    assert_snapshot!(text.replace(id, "ID"), @r#"
    TIME ERROR cannot keep dead letters, nothing is lost, holding: the dead-letter store is full: 16116 bytes with the documents that were just refused, 12288 are allowed; look at it with `dead-letters list`, then retry or drop documents documents=2 pause=PAUSE mend="find out why they were refused, then raise dead-letter-bytes"
    TIME  INFO dead letters can be kept again after=AFTER
    TIME  WARN dead letter: kept with the reason documents=2 first_id="ID" index="audit-events-TODAY" event_type="refused" error_type="document_parsing_exception"
    done: 0 documents created, 0 were there already, 2 dead letters, 0 gaps
    "#);
}

#[test]
fn an_event_that_teleport_cannot_hand_out() {
    let mut rig = Rig::new("", "");
    rig.auth().set_export(false);
    rig.append([event(1, "small", midnight(1)), large(2, "large")]);
    let refused = Unreadable::Refused(Code::Internal);
    rig.auth().set_unreadable(Some((4000, refused)));
    let said = rig.run_to(1, &backfill(2, 0)).stderr;
    let text = lines(rig.indexer(), &said, "reading by");
    let gap: Vec<&str> = text.lines().filter(|l| l.contains("gap")).collect();
    assert_snapshot!(gap.join("\n"), @r#"
    TIME ERROR gap: Teleport has an event of this time that it hands out to nobody: most likely it is too large for it; of what lies between two such events nothing is known reason="event_unreadable" from="TIME" to="TIME"
    done: 2 documents created, 0 were there already, 0 dead letters, 1 gaps
    "#);
}

/// An event whose document takes some 5 KB.
fn large(n: i64, kind: &str) -> Value {
    let mut event = event(n, kind, midnight(1));
    event["command"] = "x".repeat(5000).into();
    event
}

/// Machines read the same as fields.
#[test]
fn a_line_in_json() {
    let mut rig = Rig::new("", "");
    rig.append([event("a", "one", midnight(1))]);
    rig.elasticsearch()
        .add_rule(|_| Some(Refusal::closed_index()));
    let mut args = backfill(2, 0);
    args.push("--log-format=json".into());
    let running = rig.spawn(&args);
    let blocked = wait_until_said(&running, "blocked, nothing is lost");
    rig.elasticsearch().clear_rules();
    let open = wait_until_said(&running, "no longer blocked");
    let day = midnight(1).format("%Y.%m.%d").to_string();
    let [blocked, open] = [blocked, open].map(|line| {
        let mut line: Value = serde_json::from_str(&line).unwrap();
        let time = line["timestamp"].as_str().unwrap().parse();
        let time: chrono::DateTime<Utc> = time.unwrap();
        assert!((Utc::now() - time).abs() < TimeDelta::minutes(5));
        line["timestamp"] = "TIME".into();
        if line.get("pause").is_some() {
            line["pause"] = "PAUSE".into();
        }
        line.to_string().replace(&day, "DAY")
    });
    assert_snapshot!(blocked, @r#"{"documents":1,"index":"audit-events-DAY","level":"ERROR","mend":"open the index","message":"blocked, nothing is lost, holding: status 400, index_closed_exception: closed","pause":"PAUSE","target":"teleport_event_indexer::pipeline::run::holding","timestamp":"TIME"}"#);
    assert_snapshot!(open, @r#"{"index":"audit-events-DAY","level":"INFO","message":"no longer blocked","target":"teleport_event_indexer::pipeline::run::holding","timestamp":"TIME"}"#);
}
