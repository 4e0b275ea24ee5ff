//! `_search`, as far as it goes: everything, sorted, page by page.

use chrono::DateTime;
use rusqlite::types::Value as Sql;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::answers::{Reply, index_not_found, shards};
use super::script::Shared;
use super::store::{Column, Search};

/// The most documents that Elasticsearch gives in one page, or skips.
const MOST_HITS: u64 = 10_000;

/// Answers a search with a body, or an empty one.
pub(super) fn search(shared: &Shared, list: &str, body: &[u8]) -> Reply {
    if let Some(name) = shared.store.missing(list) {
        return index_not_found(name);
    }
    let (search, with_source) = match parse(body) {
        Ok(parsed) => parsed,
        Err(reason) => return Reply::error(400, "parsing_exception", &reason),
    };
    let total = shared.store.count(list).unwrap_or(0);
    let hits = match shared.store.search(list, &search) {
        Ok(hits) => hits,
        Err(error) => return Reply::error(500, "sqlite_exception", &error.to_string()),
    };
    let is_sorted = search.sort != [(Column::Arrival, true)];
    let hits = hits.into_iter().map(|hit| {
        let mut fields = Map::new();
        fields.insert("_index".to_owned(), json!(hit.document.index));
        fields.insert("_id".to_owned(), json!(hit.document.id));
        fields.insert(
            "_score".to_owned(),
            if is_sorted { Value::Null } else { json!(1.0) },
        );
        if is_sorted {
            let values = hit.sort.iter().map(json_of);
            fields.insert("sort".to_owned(), values.collect());
        }
        let mut text = Value::Object(fields).to_string();
        if with_source {
            // As it was sent, to the letter.
            text.truncate(text.len() - 1);
            text.push_str(",\"_source\":");
            text.push_str(&hit.document.source);
            text.push('}');
        }
        RawValue::from_string(text).expect("documents are JSON, or they would not be stored")
    });
    let hits: Vec<Box<RawValue>> = hits.collect();
    let hits = serde_json::to_string(&hits).expect("JSON becomes JSON");
    let n_shards = shared.store.indices(list).len();
    Reply::text(
        200,
        format!(
            r#"{{"took":0,"timed_out":false,"_shards":{},"hits":{{"total":{{"value":{total},"relation":"eq"}},"max_score":null,"hits":{hits}}}}}"#,
            shards(n_shards)
        ),
        "application/json",
    )
}

fn json_of(value: &Sql) -> Value {
    match value {
        Sql::Integer(number) => json!(number),
        Sql::Text(text) => json!(text),
        Sql::Real(number) => json!(number),
        Sql::Null | Sql::Blob(_) => Value::Null,
    }
}

fn parse(body: &[u8]) -> Result<(Search, bool), String> {
    let mut search = Search {
        size: 10,
        from: 0,
        sort: Vec::new(),
        after: Vec::new(),
    };
    let mut with_source = true;
    let body: Map<String, Value> = if body.iter().all(u8::is_ascii_whitespace) {
        Map::new()
    } else {
        serde_json::from_slice(body).map_err(|error| format!("Failed to parse: {error}"))?
    };
    let count = |value: &Value| value.as_u64().filter(|count| *count <= MOST_HITS);
    for (key, value) in &body {
        let wrong = || format!("[{key}] cannot be {value}");
        match key.as_str() {
            "size" => search.size = count(value).ok_or_else(wrong)?,
            "from" => search.from = count(value).ok_or_else(wrong)?,
            "track_total_hits" => {}
            "_source" => with_source = value.as_bool().ok_or_else(wrong)?,
            "query" => {
                let kinds: Vec<&String> = value.as_object().ok_or_else(wrong)?.keys().collect();
                if kinds != ["match_all"] {
                    return Err(format!("the stand-in knows match_all only, not {value}"));
                }
            }
            "sort" => search.sort = sort(value)?,
            "search_after" => {
                let values = value.as_array().ok_or_else(wrong)?;
                search.after = values.iter().map(sql_of).collect::<Result<_, _>>()?;
            }
            _ => return Err(format!("the stand-in knows no [{key}]")),
        }
    }
    if search.sort.is_empty() {
        search.sort.push((Column::Arrival, true));
    }
    if !search.after.is_empty() {
        if search.after.len() != search.sort.len() {
            return Err("[search_after] must have as many values as there are sorts".to_owned());
        }
        for ((column, _), value) in search.sort.iter().zip(&mut search.after) {
            // A time may be given as a text too.
            if let (Column::Time, Sql::Text(text)) = (column, &*value) {
                let time = DateTime::parse_from_rfc3339(text).map_err(|error| error.to_string())?;
                *value = Sql::Integer(time.timestamp_millis());
            }
        }
    }
    Ok((search, with_source))
}

fn sql_of(value: &Value) -> Result<Sql, String> {
    match value {
        Value::String(text) => Ok(Sql::Text(text.clone())),
        Value::Number(number) if number.is_i64() => {
            Ok(Sql::Integer(number.as_i64().unwrap_or_default()))
        }
        _ => Err(format!("[search_after] cannot hold {value}")),
    }
}

/// `["time", {"_id": "desc"}, {"time": {"order": "desc"}}]`, or one of them alone.
fn sort(value: &Value) -> Result<Vec<(Column, bool)>, String> {
    let column = |name: &str| match name {
        "_id" => Ok(Column::Id),
        "time" => Ok(Column::Time),
        "_doc" | "_shard_doc" => Ok(Column::Arrival),
        _ => Err(format!("No mapping found for [{name}] in order to sort on")),
    };
    let one = |value: &Value| match value {
        Value::String(name) => Ok((column(name)?, true)),
        Value::Object(fields) if fields.len() == 1 => {
            let (name, order) = fields.iter().next().expect("there is one");
            let order = order.get("order").unwrap_or(order);
            match order.as_str() {
                Some("desc") => Ok((column(name)?, false)),
                Some("asc") | None => Ok((column(name)?, true)),
                Some(other) => Err(format!("Unknown order [{other}]")),
            }
        }
        _ => Err(format!("[sort] cannot be {value}")),
    };
    match value {
        Value::Array(values) => values.iter().map(one).collect(),
        value => Ok(vec![one(value)?]),
    }
}
