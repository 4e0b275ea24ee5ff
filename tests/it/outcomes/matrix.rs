//! One row for each way in which Elasticsearch, or what sits before it, can fail: each is provoked,
//! said, and leaves every event in place, once.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use serde_json::json;
use teleport_event_indexer::demo::elastic::{Answer, Refusal};

use crate::support::rig::{Rig, backfill, event, midnight};

/// What goes wrong, and passes.
#[derive(Clone)]
enum Fault {
    /// The first requests are answered so.
    Requests(Vec<Answer>),
    /// Each document of every other event is refused so when it comes for the first time.
    Items(fn(&str) -> Refusal),
}

/// What becomes of the documents that met it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    AsTheyWere,
    SafeForm,
    /// Stored by a request of which the answer never came.
    AlreadyThere,
}

struct Row {
    name: &'static str,
    fault: Fault,
    /// What is in the log, on one line.
    said: &'static [&'static str],
    fate: Fate,
}

fn answer(status: u16, body: &str) -> Fault {
    Fault::Requests(vec![answer_after(status, body, None)])
}

fn answer_after(status: u16, body: &str, retry_after: Option<u32>) -> Answer {
    Answer::Status {
        status,
        body: body.to_owned(),
        retry_after,
    }
}

fn error(kind: &str) -> String {
    json!({"error": {"type": kind, "reason": "because"}, "status": 0}).to_string()
}

const AGAIN: &str = "bulk request failed, trying again";
const HOLDING: &str = "blocked, nothing is lost, holding";
const MINUTE: &str = "trying again for a minute";
const HTML: &str = "<html><body>not found here</body></html>";
const ONE_ITEM: &str = r#"{"items":[{"create":{"status":201}}]}"#;
const CUT_OFF: &str = r#"{"items":[{"create":{"status":201}},{"crea"#;

/// E1, E2 and E8 of what is known of real servers; ids are never too long, as they have one length.
fn whole_requests() -> Vec<Row> {
    let row = |name, fault, said| Row {
        name,
        fault,
        said,
        fate: Fate::AsTheyWere,
    };
    let many = format!("[{}]", vec![r#"{"create":{"status":201}}"#; 100].join(","));
    let many = format!(r#"{{"items":{many}}}"#);
    let hasty = vec![answer_after(429, "{}", Some(2))];
    let busy = vec![answer_after(503, HTML, Some(1))];
    let twice_401 = vec![answer_after(401, &error("security_exception"), None); 2];
    vec![
        row("reset", Fault::Requests(vec![Answer::Drop]), &[AGAIN]),
        row(
            "no answer",
            Fault::Requests(vec![Answer::Hang]),
            &[AGAIN, "in time"],
        ),
        row(
            "429",
            answer(429, &error("es_rejected_execution_exception")),
            &[AGAIN, "429"],
        ),
        row(
            "429 with a word on when",
            Fault::Requests(hasty),
            &[AGAIN, "pause=2s"],
        ),
        row(
            "503 with a word on when",
            Fault::Requests(busy),
            &[AGAIN, "pause=1s"],
        ),
        row("408", answer(408, ""), &[AGAIN, "408"]),
        row("500", answer(500, &error("exception")), &[AGAIN, "500"]),
        row("502 of a proxy", answer(502, HTML), &[AGAIN, "502"]),
        row("504 of a proxy", answer(504, HTML), &[AGAIN, "504"]),
        row("413", answer(413, ""), &[]),
        row(
            "400 of a poisoned line",
            answer(400, &error("illegal_argument_exception")),
            &[],
        ),
        row(
            "400 of a proxy",
            answer(400, HTML),
            &[HOLDING, "any proxy in between"],
        ),
        row(
            "401 after a restart",
            Fault::Requests(twice_401),
            &[MINUTE, "credentials"],
        ),
        row(
            "403",
            answer(403, &error("security_exception")),
            &[HOLDING, "create_doc"],
        ),
        row(
            "404 of a proxy",
            answer(404, HTML),
            &[HOLDING, "any proxy in between"],
        ),
        row(
            "406",
            answer(406, r#"{"error":"no handler"}"#),
            &[HOLDING, "no handler"],
        ),
        row(
            "302 to a page for signing in",
            answer(302, ""),
            &[HOLDING, "302"],
        ),
        row(
            "a page of HTML",
            answer(200, HTML),
            &[AGAIN, "cannot be read"],
        ),
        row(
            "an answer cut off",
            answer(200, CUT_OFF),
            &[AGAIN, "cannot be read"],
        ),
        row("no items", answer(200, "{}"), &[AGAIN, "cannot be read"]),
        row(
            "fewer items",
            answer(200, ONE_ITEM),
            &[AGAIN, "1 items for 20"],
        ),
        row(
            "more items",
            answer(200, &many),
            &[AGAIN, "100 items for 20"],
        ),
        Row {
            fate: Fate::AlreadyThere,
            ..row(
                "stored, and reset",
                Fault::Requests(vec![Answer::StoreAndDrop]),
                &[AGAIN],
            )
        },
    ]
}

fn items() -> Vec<Row> {
    fn row(name: &'static str, refusal: fn(&str) -> Refusal, said: &'static [&'static str]) -> Row {
        Row {
            name,
            fault: Fault::Items(refusal),
            said,
            fate: Fate::AsTheyWere,
        }
    }
    let safe = |name, refusal| Row {
        fate: Fate::SafeForm,
        ..row(name, refusal, &["stored in safe form"])
    };
    vec![
        row(
            "429 queue",
            |_| Refusal::rejected_execution(),
            &[AGAIN, "es_rejected"],
        ),
        row(
            "429 memory",
            |_| Refusal::new(429, "circuit_breaking_exception", "too large"),
            &[AGAIN, "circuit_breaking"],
        ),
        row(
            "503 shards",
            |_| Refusal::new(503, "unavailable_shards_exception", "away"),
            &[AGAIN, "unavailable_shards"],
        ),
        row(
            "503 cluster",
            |_| Refusal::new(503, "process_cluster_event_timeout_exception", "slow"),
            &[AGAIN, "process_cluster_event"],
        ),
        row(
            "500",
            |_| Refusal::new(500, "exception", "what"),
            &[AGAIN, "500"],
        ),
        row(
            "429 flood stage",
            Refusal::flood_stage,
            &[HOLDING, "disk is full"],
        ),
        row(
            "403 write block",
            Refusal::write_block,
            &[HOLDING, "lift its block"],
        ),
        row(
            "400 closed",
            |_| Refusal::closed_index(),
            &[HOLDING, "open the index"],
        ),
        row(
            "400 shard limit",
            |_| {
                let reason = "this action would add [2] shards, but this cluster currently has \
                              [1000]/[1000] maximum normal shards open;";
                Refusal::new(400, "validation_exception", reason)
            },
            &[HOLDING, "max_shards_per_node"],
        ),
        row(
            "404 not created by itself",
            |_| Refusal::new(404, "index_not_found_exception", "no such index"),
            &[HOLDING, "auto_create_index"],
        ),
        row(
            "403 privilege",
            |_| {
                let reason = "action [indices:data/write/bulk[s]] is unauthorized for user [x], \
                              this action is granted by the index privileges [create_doc]";
                Refusal::new(403, "security_exception", reason)
            },
            &[HOLDING, "granted by the index privileges [create_doc]"],
        ),
        row(
            "400 index name",
            |_| Refusal::new(400, "invalid_index_name_exception", "must be lowercase"),
            &[HOLDING, "correct `index`"],
        ),
        row(
            "418",
            |_| Refusal::new(418, "teapot", "short"),
            &[HOLDING, "own log"],
        ),
        safe("400 mapping", |_| Refusal::mapping_failure()),
        safe("400 mapping before 8.8", |_| {
            Refusal::new(400, "mapper_parsing_exception", "no")
        }),
        safe("400 limit of fields", |_| {
            Refusal::new(400, "illegal_argument_exception", "Limit of total fields")
        }),
        safe("400 strict", |_| {
            Refusal::new(400, "strict_dynamic_mapping_exception", "no")
        }),
    ]
}

#[test]
fn every_failure_of_a_whole_request_passes_without_loss() {
    walk(whole_requests());
}

#[test]
fn every_failure_of_an_item_passes_without_loss() {
    walk(items());
}

/// A few rows at a time: most of them wait for a backoff.
fn walk(rows: Vec<Row>) {
    let rows = Arc::new(Mutex::new(rows));
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                loop {
                    let row = rows.lock().expect("nobody panics while holding it").pop();
                    let Some(row) = row else { break };
                    prove(&row);
                }
            });
        }
    });
}

fn prove(row: &Row) {
    const EVENTS: usize = 20;
    let mut rig = Rig::new(
        "",
        "in-flight = 1\nrequest-timeout = \"400ms\"\ngzip = false",
    );
    rig.append((0..EVENTS).map(|n| event(n, "any", midnight(3))));
    match &row.fault {
        Fault::Requests(answers) => {
            for answer in answers {
                rig.elasticsearch().answer_next(1, answer.clone());
            }
        }
        Fault::Items(refusal) => {
            let (refusal, seen) = (*refusal, Mutex::new(BTreeSet::new()));
            let is_safe_form = row.fate == Fate::SafeForm;
            rig.elasticsearch().add_rule(move |operation| {
                // The odd ones; what is refused for good is refused as it was each time.
                let meets = operation.id.as_bytes()[23] % 2 == 1;
                let mut seen = seen.lock().expect("nobody panics while holding it");
                let is_first = seen.insert(operation.id.to_owned());
                let is_raw = !operation.contains("event_indexer.raw");
                let again = if is_safe_form { is_raw } else { is_first };
                (meets && again).then(|| refusal(operation.index))
            });
        }
    }
    let output = rig.run(&backfill(3, 2));
    let context = format!("{}: {}", row.name, output.stderr);
    assert_eq!(output.code, Some(0), "{context}");
    let mut lines = output.stderr.lines();
    let is_said = |line: &str| row.said.iter().all(|words| line.contains(words));
    assert!(row.said.is_empty() || lines.any(is_said), "{context}");
    let counts = rig.backfill().counts;
    assert_eq!(
        counts.created + counts.already_there,
        EVENTS as u64,
        "{context}"
    );
    assert_eq!(counts.dead_letters, 0, "{context}");
    assert_eq!(rig.waiting().len(), 0, "{context}");
    let (stored, _) = rig.stored();
    assert_eq!(stored.len(), EVENTS, "{context}");
    match row.fate {
        Fate::AsTheyWere => rig.assert_complete(),
        Fate::AlreadyThere => {
            rig.assert_complete();
            assert_eq!(counts.already_there, EVENTS as u64, "{context}");
        }
        Fate::SafeForm => {
            let safe = stored
                .values()
                .filter(|source| source["event_indexer.raw"].is_string());
            let n_safe = safe.count() as u64;
            assert!(n_safe > 0 && n_safe == counts.safe_form, "{context}");
        }
    }
}
