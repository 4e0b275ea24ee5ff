//! The requests other than `_bulk`.

use axum::http::Method;
use serde_json::{Value, json};

use super::answers::{self, Reply, index_not_found, shards};
use super::filter::Filter;
use super::pattern;
use super::script::Shared;
use super::search::search;
use super::store::Asset;

/// A request's line, taken apart and decoded.
pub(super) struct Call {
    method: Method,
    uri: String,
    segments: Vec<String>,
    parameters: Vec<(String, String)>,
}

/// What `_bulk` may be asked beside its body.
const BULK_PARAMETERS: &[&str] = &[
    "error_trace",
    "filter_path",
    "human",
    "include_source_on_error",
    "pipeline",
    "pretty",
    "refresh",
    "require_alias",
    "require_data_stream",
    "routing",
    "timeout",
    "wait_for_active_shards",
];

impl Call {
    pub(super) fn new(method: &Method, path: &str, query: &str) -> Self {
        let segments = path.split('/').filter(|segment| !segment.is_empty());
        let parameters = query.split('&').filter(|parameter| !parameter.is_empty());
        Self {
            method: method.clone(),
            uri: if query.is_empty() {
                path.to_owned()
            } else {
                format!("{path}?{query}")
            },
            segments: segments.map(decoded).collect(),
            parameters: parameters
                .map(|parameter| {
                    let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
                    (decoded(name), decoded(value))
                })
                .collect(),
        }
    }

    /// A parameter's value, empty if there is none.
    pub(super) fn parameter(&self, name: &str) -> String {
        let found = self.parameters.iter().find(|(key, _)| key == name);
        found.map_or_else(String::new, |(_, value)| value.clone())
    }

    /// For `_bulk`, the index that the path names, if it names one.
    pub(super) fn bulk_index(&self) -> Option<Option<&str>> {
        let segments: Vec<&str> = self.segments.iter().map(String::as_str).collect();
        match (&self.method, segments.as_slice()) {
            (&Method::POST | &Method::PUT, ["_bulk"]) => Some(None),
            (&Method::POST | &Method::PUT, [index, "_bulk"]) => Some(Some(index)),
            _ => None,
        }
    }

    pub(super) fn check_bulk_parameters(&self) -> Result<(), Reply> {
        let unknown = |(name, _): &&(String, String)| !BULK_PARAMETERS.contains(&name.as_str());
        let Some((name, _)) = self.parameters.iter().find(unknown) else {
            return Ok(());
        };
        let path = self.uri.split('?').next().unwrap_or("");
        let reason = format!("request [{path}] contains unrecognized parameter: [{name}]");
        Err(Reply::error(400, "illegal_argument_exception", &reason))
    }
}

/// Undoes percent encoding; what is no such encoding stays as it is.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after
            .get(..2)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.map(|digits| u8::from_str_radix(digits, 16)) {
            Some(Ok(byte)) if *first == b'%' => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Answers everything but `_bulk`. May wait for SQLite.
pub(super) fn answer(shared: &Shared, call: &Call, body: &[u8]) -> Reply {
    let segments: Vec<&str> = call.segments.iter().map(String::as_str).collect();
    if !segments.is_empty() && shared.is_without_shard() {
        let kind = "no_shard_available_action_exception";
        return Reply::error(503, kind, &format!("No shard available for [{}]", call.uri));
    }
    let reply = match (call.method.as_str(), segments.as_slice()) {
        ("GET" | "HEAD", []) => {
            let options = &shared.options;
            let root = answers::root(&options.version, options.serverless);
            Ok(json_reply(call, &root))
        }
        ("GET" | "POST", ["_count"]) => Ok(count(shared, call, "*")),
        ("GET" | "POST", [list, "_count"]) => Ok(count(shared, call, list)),
        ("GET" | "POST", ["_search"]) => Ok(search(shared, "*", body)),
        ("GET" | "POST", [list, "_search"]) => Ok(search(shared, list, body)),
        ("GET" | "POST", ["_refresh"]) => Ok(refresh(shared, call, "*")),
        ("GET" | "POST", [list, "_refresh"]) => Ok(refresh(shared, call, list)),
        ("GET", [index, "_doc", id]) => document(shared, call, index, id),
        ("GET" | "POST", [index, "_mget"]) => get_many(shared, call, index, body),
        ("GET", ["_cat", "indices"]) => Ok(cat_indices(shared, call, "*")),
        ("GET", ["_cat", "indices", list]) => Ok(cat_indices(shared, call, list)),
        ("GET", ["_cluster", "health"]) => {
            let n_indices = shared.store.indices("*").len();
            Ok(json_reply(call, &answers::health(n_indices)))
        }
        ("POST", ["_index_template", "_simulate_index", index]) => simulate(shared, call, index),
        ("PUT" | "POST", [kind @ ("_index_template" | "_component_template"), name]) => {
            put_asset(shared, kind, name, body)
        }
        (method, ["_ilm", ..]) if shared.options.serverless => {
            let reason = format!(
                "Request for uri [{}] with method [{method}] exists but is not available when \
                 running in serverless mode",
                call.uri
            );
            Ok(Reply::error(410, "api_not_available_exception", &reason))
        }
        ("PUT", ["_ilm", "policy", name]) => put_asset(shared, "_ilm", name, body),
        ("GET", ["_index_template"]) => index_templates(shared, call, "*"),
        ("GET", ["_index_template", list]) => index_templates(shared, call, list),
        ("GET", ["_component_template"]) => component_templates(shared, call, "*"),
        ("GET", ["_component_template", list]) => component_templates(shared, call, list),
        ("GET", ["_ilm", "policy"]) => policies(shared, call, "*"),
        ("GET", ["_ilm", "policy", list]) => policies(shared, call, list),
        (method, _) => {
            let reason = format!(
                "no handler found for uri [{}] and method [{method}]",
                call.uri
            );
            Ok(Reply::json(400, &json!({"error": reason})))
        }
    };
    reply.unwrap_or_else(|error| Reply::error(500, "sqlite_exception", &error.to_string()))
}

/// An answer with 200, filtered if the client wants it so.
fn json_reply(call: &Call, value: &Value) -> Reply {
    match Filter::parse(&call.parameter("filter_path")) {
        Some(filter) => Reply::json(200, &filter.apply(value)),
        None => Reply::json(200, value),
    }
}

fn count(shared: &Shared, call: &Call, list: &str) -> Reply {
    if let Some(name) = shared.store.missing(list) {
        return index_not_found(name);
    }
    let n_shards = shared.store.indices(list).len();
    let count = shared.store.count(list).unwrap_or(0);
    json_reply(call, &json!({"count": count, "_shards": shards(n_shards)}))
}

fn refresh(shared: &Shared, call: &Call, list: &str) -> Reply {
    if let Some(name) = shared.store.missing(list) {
        return index_not_found(name);
    }
    let n_shards = shared.store.indices(list).len();
    json_reply(call, &json!({"_shards": shards(n_shards)}))
}

fn document(shared: &Shared, call: &Call, index: &str, id: &str) -> rusqlite::Result<Reply> {
    if let Some(name) = shared.store.missing(index) {
        return Ok(index_not_found(name));
    }
    let Some(document) = shared.store.get(index, id)? else {
        let absent = json!({"_index": index, "_id": id, "found": false});
        return Ok(Reply::json(404, &absent));
    };
    let source: Value = serde_json::from_str(&document.source).unwrap_or_default();
    let found = json!({
        "_index": index, "_id": id, "_version": 1, "_seq_no": 0, "_primary_term": 1,
        "found": true, "_source": source,
    });
    Ok(json_reply(call, &found))
}

/// Gives documents one by one, in the order in which they were asked for.
fn get_many(shared: &Shared, call: &Call, index: &str, body: &[u8]) -> rusqlite::Result<Reply> {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let Some(ids) = texts(&body["ids"]).filter(|ids| !ids.is_empty()) else {
        let reason = "Validation Failed: 1: no documents to get;";
        return Ok(Reply::error(
            400,
            "action_request_validation_exception",
            reason,
        ));
    };
    let is_there = shared.store.missing(index).is_none();
    let with_source = call.parameter("_source") != "false";
    let mut documents = Vec::with_capacity(ids.len());
    for id in ids {
        let mut document = json!({"_index": index, "_id": id});
        if !is_there {
            let cause = json!({
                "type": "index_not_found_exception",
                "reason": format!("no such index [{index}]"),
            });
            let mut error = cause.clone();
            error["root_cause"] = json!([cause]);
            document["error"] = error;
        } else if let Some(found) = shared.store.get(index, id)? {
            document["_version"] = json!(1);
            document["found"] = json!(true);
            if with_source {
                document["_source"] = serde_json::from_str(&found.source).unwrap_or_default();
            }
        } else {
            document["found"] = json!(false);
        }
        documents.push(document);
    }
    Ok(json_reply(call, &json!({"docs": documents})))
}

fn texts(value: &Value) -> Option<Vec<&str>> {
    value.as_array()?.iter().map(Value::as_str).collect()
}

fn cat_indices(shared: &Shared, call: &Call, list: &str) -> Reply {
    if let Some(name) = shared.store.missing(list) {
        return index_not_found(name);
    }
    let indices = shared.store.indices(list);
    if call.parameter("format") == "json" {
        let rows = indices.iter().map(|index| {
            let bytes = index.n_bytes.to_string();
            json!({
                "health": "green", "status": "open", "index": index.name, "uuid": index.uuid,
                "pri": "1", "rep": "0", "docs.count": index.n_documents.to_string(),
                "docs.deleted": "0", "store.size": bytes, "pri.store.size": bytes,
            })
        });
        return Reply::json(200, &rows.collect());
    }
    let rows = indices.iter().map(|index| {
        let (name, uuid, count, bytes) =
            (&index.name, &index.uuid, index.n_documents, index.n_bytes);
        format!("green open {name} {uuid} 1 0 {count} 0 {bytes} {bytes}\n")
    });
    Reply::text(200, rows.collect::<String>(), "text/plain; charset=UTF-8")
}

fn put_asset(shared: &Shared, kind: &str, name: &str, body: &[u8]) -> rusqlite::Result<Reply> {
    let parsed: Result<Value, _> = serde_json::from_slice(body);
    let body = match parsed {
        Ok(body) if body.is_object() => body,
        Ok(_) => {
            return Ok(Reply::error(
                400,
                "x_content_parse_exception",
                "expected an object",
            ));
        }
        Err(error) => {
            return Ok(Reply::error(
                400,
                "x_content_parse_exception",
                &error.to_string(),
            ));
        }
    };
    shared.store.put_asset(kind, name, &body.to_string())?;
    Ok(Reply::json(200, &json!({"acknowledged": true})))
}

/// Shows the assets that a list names; none is an error only if there is no `*` in the list.
fn assets(
    shared: &Shared,
    call: &Call,
    (kind, list): (&str, &str),
    missing: &str,
    show: impl FnOnce(&mut dyn Iterator<Item = (Asset, Value)>) -> Value,
) -> rusqlite::Result<Reply> {
    let assets = shared.store.assets(kind, list)?;
    if assets.is_empty() && !list.contains('*') {
        return Ok(Reply::error(404, "resource_not_found_exception", missing));
    }
    let mut assets = assets.into_iter().map(|asset| {
        let body = serde_json::from_str(&asset.body).unwrap_or_default();
        (asset, body)
    });
    Ok(json_reply(call, &show(&mut assets)))
}

fn index_templates(shared: &Shared, call: &Call, list: &str) -> rusqlite::Result<Reply> {
    let missing = format!("index template matching [{list}] not found");
    assets(
        shared,
        call,
        ("_index_template", list),
        &missing,
        |assets| {
            let templates: Value = assets
                .map(|(asset, body)| json!({"name": asset.name, "index_template": body}))
                .collect();
            json!({"index_templates": templates})
        },
    )
}

/// What a new index would get: the template of the highest priority that is for it. Component
/// templates are kept, not applied.
fn simulate(shared: &Shared, call: &Call, index: &str) -> rusqlite::Result<Reply> {
    let missing = String::new();
    assets(shared, call, ("_index_template", "*"), &missing, |assets| {
        let mut fitting: Vec<(String, Value)> = assets
            .filter(|(_, body)| {
                let patterns = body["index_patterns"].as_array().into_iter().flatten();
                patterns
                    .filter_map(Value::as_str)
                    .any(|pattern| pattern::names(pattern, index))
            })
            .map(|(asset, body)| (asset.name, body))
            .collect();
        fitting.sort_by_key(|(_, body)| body["priority"].as_u64());
        let applied = fitting
            .pop()
            .map_or(Value::Null, |(_, body)| body["template"].clone());
        let overlapping: Value = fitting
            .into_iter()
            .map(|(name, body)| json!({"name": name, "index_patterns": body["index_patterns"]}))
            .collect();
        json!({"template": applied, "overlapping": overlapping})
    })
}

fn component_templates(shared: &Shared, call: &Call, list: &str) -> rusqlite::Result<Reply> {
    let missing = format!("component template matching [{list}] not found");
    assets(
        shared,
        call,
        ("_component_template", list),
        &missing,
        |assets| {
            let templates: Value = assets
                .map(|(asset, body)| json!({"name": asset.name, "component_template": body}))
                .collect();
            json!({"component_templates": templates})
        },
    )
}

fn policies(shared: &Shared, call: &Call, list: &str) -> rusqlite::Result<Reply> {
    let missing = format!("Lifecycle policy not found: {list}");
    assets(shared, call, ("_ilm", list), &missing, |assets| {
        let policies = assets.map(|(asset, body)| {
            let policy = json!({
                "version": asset.version, "modified_date": "2026-01-01T00:00:00.000Z",
                "policy": body["policy"],
                "in_use_by": {"indices": [], "data_streams": [], "composable_templates": []},
            });
            (asset.name, policy)
        });
        policies.collect()
    })
}
