//! `install --kibana` against a small stand-in that keeps to what Kibana's API documents: there is
//! no Kibana here. What the objects look like on a screen is not tested.
#![expect(
    clippy::unwrap_used,
    reason = "clippy takes only what is marked as a test for one, not what tests call"
)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use insta::assert_snapshot;
use serde_json::{Value, json};
use teleport_event_indexer::demo::elastic::{ElasticsearchOptions, StandInElasticsearch};

use crate::support::program::Indexer;
use crate::support::seen::{PASSWORD, USER, assert_no_secret, beside_the_template, seen};
use crate::support::stand_ins::{NOBODY, block_on, elasticsearch, parrot};

/// What the stand-in holds, by path of the space, type and id.
#[derive(Default)]
struct Kibana {
    objects: BTreeMap<(String, String, String), Value>,
    /// Lines `METHOD path` as they came.
    asked: Vec<String>,
    /// The status with which everything that writes is refused.
    refuses: Option<u16>,
}

type Shared = Arc<Mutex<Kibana>>;

fn start() -> (Shared, String) {
    let shared = Shared::default();
    let router = Router::new().fallback(answer).with_state(shared.clone());
    let url = block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async { axum::serve(listener, router).await });
        url
    });
    (shared, url)
}

fn error(status: u16, message: &str) -> (StatusCode, String) {
    let body = json!({"statusCode": status, "error": "…", "message": message});
    (StatusCode::from_u16(status).unwrap(), body.to_string())
}

async fn answer(
    State(kibana): State<Shared>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, String) {
    let kibana = &mut *kibana.lock().unwrap();
    kibana.asked.push(format!("{method} {uri}"));
    let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap());
    use base64::Engine as _;
    let pair = base64::prelude::BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}"));
    if header("authorization") != Some(&*format!("Basic {pair}")) {
        return error(401, "[security_exception]: unable to authenticate user");
    }
    if method == Method::POST && header("kbn-xsrf").is_none() {
        return error(400, "Request must contain a kbn-xsrf header.");
    }
    let path = uri.path().strip_prefix("/base").unwrap_or(uri.path());
    let (space, path) = match path.strip_prefix("/s/") {
        Some(rest) => rest.split_once('/').unwrap(),
        None => ("default", path.trim_start_matches('/')),
    };
    if !["default", "security"].contains(&space) {
        return error(404, &format!("Saved object [space/{space}] not found"));
    }
    if let Some(status) = kibana.refuses.filter(|_| method == Method::POST) {
        return error(status, "Unable to bulk_create visualization");
    }
    let key = |kind: &str, id: &str| (space.to_owned(), kind.to_owned(), id.to_owned());
    if path == "api/saved_objects/_import" {
        let kind = header("content-type").unwrap();
        let boundary = kind.strip_prefix("multipart/form-data; boundary=").unwrap();
        let overwrite = uri.query() == Some("overwrite=true");
        return import(kibana, space, file_in(&body, boundary), overwrite);
    }
    let id = path.strip_prefix("api/data_views/data_view").unwrap();
    let sent: Value = serde_json::from_slice(&body).unwrap_or_default();
    let view = &sent["data_view"];
    match (method, id.strip_prefix('/')) {
        (Method::GET, Some(id)) => match kibana.objects.get(&key("index-pattern", id)) {
            Some(view) => (StatusCode::OK, json!({"data_view": view}).to_string()),
            None => error(404, &format!("Saved object [index-pattern/{id}] not found")),
        },
        (Method::POST, Some(id)) => {
            let held = kibana.objects.get_mut(&key("index-pattern", id)).unwrap();
            for (name, value) in view.as_object().unwrap() {
                held[name] = value.clone();
            }
            (StatusCode::OK, json!({"data_view": held}).to_string())
        }
        (_, _) => {
            assert_eq!(sent["override"], false);
            let name = view["name"].as_str().unwrap();
            let in_space = kibana.objects.iter().filter(|(key, _)| key.0 == space);
            if in_space
                .map(|(_, view)| view)
                .any(|other| other["name"] == name)
            {
                return error(400, &format!("Duplicate data view: {name}"));
            }
            let id = view["id"].as_str().unwrap();
            kibana
                .objects
                .insert(key("index-pattern", id), view.clone());
            (StatusCode::OK, json!({"data_view": view}).to_string())
        }
    }
}

/// The one part of a form, as Kibana's own reader demands it.
fn file_in<'a>(body: &'a [u8], boundary: &str) -> &'a str {
    let body = str::from_utf8(body).unwrap();
    let rest = body.strip_prefix(&format!("--{boundary}\r\n")).unwrap();
    let (head, rest) = rest.split_once("\r\n\r\n").unwrap();
    let disposition = head.lines().next().unwrap();
    assert!(disposition.starts_with("Content-Disposition: form-data; name=\"file\"; filename=\""));
    assert!(disposition.ends_with(".ndjson\""));
    rest.strip_suffix(&format!("\r\n--{boundary}--\r\n"))
        .unwrap()
}

fn import(kibana: &mut Kibana, space: &str, file: &str, overwrite: bool) -> (StatusCode, String) {
    let (mut errors, mut results) = (Vec::new(), Vec::new());
    let objects: Vec<Value> = file
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let key = |object: &Value| {
        let text = |key: &str| object[key].as_str().unwrap().to_owned();
        (space.to_owned(), text("type"), text("id"))
    };
    for object in &objects {
        let is_there = kibana.objects.contains_key(&key(object));
        let is_known = |reference: &Value| {
            kibana.objects.contains_key(&key(reference))
                || objects.iter().any(|o| key(o) == key(reference))
        };
        let mut failed = |why: Value| {
            errors.push(json!({"id": object["id"], "type": object["type"], "error": why}));
        };
        if !object["references"]
            .as_array()
            .unwrap()
            .iter()
            .all(is_known)
        {
            failed(json!({"type": "missing_references"}));
        } else if is_there && !overwrite {
            failed(json!({"type": "conflict"}));
        } else {
            results
                .push(json!({"id": object["id"], "type": object["type"], "overwrite": is_there}));
        }
    }
    // As in Kibana, one error and nothing is taken.
    if errors.is_empty() {
        for object in objects {
            kibana.objects.insert(key(&object), object);
        }
    }
    let answer = json!({"success": errors.is_empty(), "successCount": results.len(),
        "errors": errors, "successResults": results});
    (StatusCode::OK, answer.to_string())
}

/// An indexer on a stand-in Elasticsearch on which everything else is installed.
fn installed() -> (Indexer, StandInElasticsearch) {
    let server = elasticsearch(ElasticsearchOptions::default());
    let indexer = Indexer::new().env("EVENT_INDEXER_LOG_LEVEL", "warn");
    indexer.configure(NOBODY, &server.url(), "");
    let output = indexer.run(&["install", "-c", "config.toml"]);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    (indexer, server)
}

const INSTALL: &[&str] = &["install", "-c", "config.toml"];

/// What the user sees, but for the part about the template.
fn shown(indexer: &Indexer, args: &[&str]) -> String {
    beside_the_template(&indexer.seen(&[INSTALL, args].concat()))
}

/// The same, for what would not end in the same way a second time.
fn once(indexer: &Indexer, args: &[&str]) -> String {
    let output = indexer.run(&[INSTALL, args].concat());
    assert_no_secret(&output);
    beside_the_template(&seen(&output, indexer.directory()))
}

#[test]
fn everything_is_created_once_and_then_left() {
    let (kibana, url) = start();
    let (indexer, _server) = installed();
    assert_snapshot!(once(&indexer, &["--kibana", &url]), @"
    exit code 0
    --- stdout
    data view Teleport Audit Events: created
    saved search Teleport Audit: failed logins: created
    saved search Teleport Audit: gaps and refused documents: created
    dashboard Teleport Audit: overview: created
    saved search Teleport Audit: sessions: created
    dashboard Teleport Audit: sessions: created
    saved search Teleport Audit: database queries: created
    dashboard Teleport Audit: databases: created
    saved search Teleport Audit: Kubernetes requests: created
    dashboard Teleport Audit: Kubernetes: created
    saved search Teleport Audit: privilege changes: created
    dashboard Teleport Audit: privilege changes: created
    ");
    assert_snapshot!(shown(&indexer, &["--kibana", &url]), @"
    exit code 0
    --- stdout
    data view Teleport Audit Events: up to date
    saved search Teleport Audit: failed logins: there already, left as it is
    saved search Teleport Audit: gaps and refused documents: there already, left as it is
    dashboard Teleport Audit: overview: there already, left as it is
    saved search Teleport Audit: sessions: there already, left as it is
    dashboard Teleport Audit: sessions: there already, left as it is
    saved search Teleport Audit: database queries: there already, left as it is
    dashboard Teleport Audit: databases: there already, left as it is
    saved search Teleport Audit: Kubernetes requests: there already, left as it is
    dashboard Teleport Audit: Kubernetes: there already, left as it is
    saved search Teleport Audit: privilege changes: there already, left as it is
    dashboard Teleport Audit: privilege changes: there already, left as it is
    ");
    let n_objects = kibana.lock().unwrap().objects.len();
    assert_eq!(n_objects, 30);
    // What is missing comes back, what is there stays.
    let gone =
        |(_, kind, id): &(String, String, String)| kind == "dashboard" && id.ends_with("-sessions");
    kibana.lock().unwrap().objects.retain(|key, _| !gone(key));
    let said = once(&indexer, &["--kibana", &url]);
    assert!(
        said.contains("dashboard Teleport Audit: sessions: created\n"),
        "{said}"
    );
    assert_eq!(said.matches(": created\n").count(), 1, "{said}");
    assert_eq!(kibana.lock().unwrap().objects.len(), n_objects);

    // Another space has ids of its own; a base path stays in front.
    kibana.lock().unwrap().asked.clear();
    let base = format!("{url}/base");
    let said = once(&indexer, &["--kibana", &base, "--kibana-space", "security"]);
    assert_eq!(said.matches(": created\n").count(), 12, "{said}");
    let kibana = kibana.lock().unwrap();
    assert_eq!(kibana.objects.len(), 2 * n_objects);
    assert_eq!(
        kibana.asked,
        [
            "GET /base/s/security/api/data_views/data_view/teleport-audit-events-security",
            "POST /base/s/security/api/data_views/data_view",
            "POST /base/s/security/api/saved_objects/_import?overwrite=false",
        ]
    );
}

#[test]
fn what_was_edited_is_replaced_only_if_asked_for() {
    let (kibana, url) = start();
    let (indexer, _server) = installed();
    once(&indexer, &["--kibana", &url]);
    let key = (
        "default".to_owned(),
        "index-pattern".to_owned(),
        "teleport-audit-events".to_owned(),
    );
    kibana.lock().unwrap().objects.get_mut(&key).unwrap()["timeFieldName"] = json!("@timestamp");
    let said = shown(&indexer, &["--kibana", &url]);
    let (_, errors) = said.split_once("--- stderr\n").unwrap();
    assert_snapshot!(errors, @"error: the data view Teleport Audit Events was edited: timeFieldName: @timestamp → time; compare, then repeat with --overwrite to replace");
    assert!(said.starts_with("exit code 1\n"));
    let said = once(&indexer, &["--kibana", &url, "--overwrite"]);
    assert_eq!(said.matches(": overwritten\n").count(), 12, "{said}");
    assert_eq!(
        kibana.lock().unwrap().objects[&key]["timeFieldName"],
        "time"
    );
}

#[test]
fn a_failure_of_kibana_is_told_and_hides_nothing() {
    let (kibana, url) = start();
    let (indexer, _server) = installed();
    kibana.lock().unwrap().refuses = Some(403);
    assert_snapshot!(indexer.seen(&[INSTALL, &["--kibana", &url]].concat()), @"
    exit code 1
    --- stdout
    lifecycle policy audit-events: up to date
    component template audit-events@custom: yours, left as it is
    index template audit-events: up to date
    --- stderr
    verified: a new index audit-events-TODAY gets this template
    error: Kibana refused to create the data view (HTTP 403): Unable to bulk_create visualization
    hint: in this space the user needs the Kibana privileges All for Discover, Dashboard, Visualize Library, Data View Management and Saved Objects Management
    ");
    kibana.lock().unwrap().refuses = None;
    assert_snapshot!(shown(&indexer, &["--kibana", &url, "--kibana-space", "nowhere"]), @"
    exit code 1
    --- stderr
    error: Kibana refused to look for the data view (HTTP 404): Saved object [space/nowhere] not found
    hint: check --kibana-space, or make the space
    ");
    let html = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 6\r\nconnection: close\r\n\r\n<html>";
    let other = format!("http://{}", parrot(html));
    assert_snapshot!(shown(&indexer, &["--kibana", &other]), @"
    exit code 1
    --- stderr
    error: what answers there is no Kibana (HTTP 200)
    hint: check the URL of --kibana, with its base path if it has one
    ");
    let nobody = format!("http://{NOBODY}");
    assert_snapshot!(shown(&indexer, &["--kibana", &nobody]), @"
    exit code 1
    --- stderr
    error: no answer from Kibana at http://127.0.0.1:PORT/: nothing listens there
    hint: check the URL of --kibana, with its base path if it has one
    ");
    assert_snapshot!(shown(&indexer, &["--kibana"]), @"
    exit code 2
    --- stderr
    error: --kibana needs a URL, as no cloud id tells of one: --kibana https://kibana.example.com
    ");
    // Somebody has made one of that name by hand: it is not thrown away.
    let view = json!({"name": "Teleport Audit Events", "title": "audit-events-*"});
    let key = (
        "default".to_owned(),
        "index-pattern".to_owned(),
        "by-hand".to_owned(),
    );
    kibana.lock().unwrap().objects.insert(key, view);
    assert_snapshot!(shown(&indexer, &["--kibana", &url]), @"
    exit code 1
    --- stderr
    error: Kibana refused to create the data view (HTTP 400): Duplicate data view: Teleport Audit Events
    hint: rename or delete in Kibana the data view that somebody has made
    ");
}

#[test]
fn a_dry_run_shows_what_kibana_would_be_sent() {
    let (kibana, url) = start();
    let (indexer, _server) = installed();
    let said = once(&indexer, &["--kibana", &url, "--dry-run"]);
    assert!(
        said.contains("POST kbn:/api/data_views/data_view\n"),
        "{said}"
    );
    assert!(
        said.contains("POST kbn:/api/saved_objects/_import?overwrite=false"),
        "{said}"
    );
    assert_eq!(kibana.lock().unwrap().asked, [""; 0]);
}
