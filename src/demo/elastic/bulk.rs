//! `_bulk`: from the body to one answer per operation.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::answers::Reply;
use super::document::check;
use super::filter::Filter;
use super::script::{Operation, Refusal, Shared};
use super::store::Create;

/// The longest id in bytes.
const MOST_ID_BYTES: usize = 512;

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Action<'a> {
    #[serde(borrow)]
    Create(Metadata<'a>),
    #[serde(borrow)]
    Index(Metadata<'a>),
    #[serde(borrow)]
    Update(Metadata<'a>),
    #[serde(borrow)]
    Delete(Metadata<'a>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata<'a> {
    #[serde(borrow, default, rename = "_index")]
    index: Option<Cow<'a, str>>,
    #[serde(borrow, default, rename = "_id")]
    id: Option<Cow<'a, str>>,
    // The other keys that Elasticsearch knows; they have no meaning here.
    #[serde(default, rename = "routing")]
    _routing: Option<Value>,
    #[serde(default, rename = "pipeline")]
    _pipeline: Option<Value>,
    #[serde(default, rename = "require_alias")]
    _require_alias: Option<Value>,
    #[serde(default, rename = "require_data_stream")]
    _require_data_stream: Option<Value>,
}

struct Parsed<'a> {
    action: &'static str,
    index: Cow<'a, str>,
    id: Cow<'a, str>,
    /// Empty for `delete`.
    source: &'a [u8],
}

/// Refuses the whole request.
struct Malformed {
    kind: &'static str,
    reason: String,
}

fn malformed(reason: String) -> Malformed {
    Malformed {
        kind: "illegal_argument_exception",
        reason,
    }
}

fn parse<'a>(body: &'a [u8], default_index: Option<&'a str>) -> Result<Vec<Parsed<'a>>, Malformed> {
    let Some(lines) = body.strip_suffix(b"\n") else {
        return Err(if body.is_empty() {
            Malformed {
                kind: "parse_exception",
                reason: "request body is required".to_owned(),
            }
        } else {
            malformed("The bulk request must be terminated by a newline [\\n]".to_owned())
        });
    };
    let mut lines = lines.split(|byte| *byte == b'\n').zip(1..);
    let mut operations = Vec::new();
    let mut faults = Vec::new();
    while let Some((line, number)) = lines.next() {
        let action: Action<'a> = serde_json::from_slice(line).map_err(|error| {
            malformed(format!(
                "Malformed action/metadata line [{number}]: {error}"
            ))
        })?;
        let (action, metadata) = match action {
            Action::Create(metadata) => ("create", metadata),
            Action::Index(metadata) => ("index", metadata),
            Action::Update(metadata) => ("update", metadata),
            Action::Delete(metadata) => ("delete", metadata),
        };
        let source = if action == "delete" {
            &[][..]
        } else if let Some((source, _)) = lines.next() {
            source
        } else {
            let reason = format!("The bulk request ends after the action on line [{number}]");
            return Err(malformed(reason));
        };
        let index = metadata.index.or(default_index.map(Cow::Borrowed));
        let id = metadata.id.unwrap_or_default();
        if index.is_none() {
            faults.push("index is missing".to_owned());
        }
        if id.len() > MOST_ID_BYTES {
            faults.push(format!(
                "id [{id}] is too long, must be no longer than {MOST_ID_BYTES} bytes but was: {}",
                id.len()
            ));
        }
        operations.push(Parsed {
            action,
            index: index.unwrap_or_default(),
            id,
            source,
        });
    }
    if faults.is_empty() {
        return Ok(operations);
    }
    let faults = faults
        .iter()
        .zip(1..)
        .map(|(fault, n)| format!(" {n}: {fault};"));
    Err(Malformed {
        kind: "action_request_validation_exception",
        reason: format!("Validation Failed:{}", faults.collect::<String>()),
    })
}

/// What stands in the way of an operation before the store is asked.
fn obstacle(operation: &Parsed<'_>) -> Option<Refusal> {
    let refuse = |kind: &str, reason: &str| Some(Refusal::new(400, kind, reason));
    if operation.action != "create" {
        let reason = format!(
            "the stand-in carries out [create] only, not [{}]: an audit trail is never changed",
            operation.action
        );
        return refuse("illegal_argument_exception", &reason);
    }
    if operation.id.is_empty() {
        let reason =
            "the stand-in makes up no ids: without its own a repeated event is there twice";
        return refuse("illegal_argument_exception", reason);
    }
    let name = &operation.index;
    let fault = if name.chars().any(char::is_uppercase) {
        "must be lowercase"
    } else if name.is_empty() || name.starts_with(['_', '-', '+']) {
        "must not be empty or start with '_', '-', or '+'"
    } else if name.contains(['\\', '/', '*', '?', '"', '<', '>', '|', ' ', ',', '#', ':']) {
        "must not contain the following characters [' ','\"','*',',','/','<','>','?','\\','|','#',':']"
    } else {
        return None;
    };
    let reason = format!("Invalid index name [{name}], {fault}");
    refuse("invalid_index_name_exception", &reason)
}

enum Outcome {
    Created,
    Refused(Refusal),
}

/// Carries a bulk request out and answers it.
pub(super) fn bulk(
    shared: &Shared,
    body: &[u8],
    default_index: Option<&str>,
    filter: Option<&Filter>,
) -> Reply {
    let started = tokio::time::Instant::now();
    let operations = match parse(body, default_index) {
        Ok(operations) => operations,
        Err(Malformed { kind, reason }) => return Reply::error(400, kind, &reason),
    };
    let rules = shared.script.lock().rules.clone();
    let mut outcomes: Vec<Option<Outcome>> = Vec::with_capacity(operations.len());
    let mut creates = Vec::with_capacity(operations.len());
    for operation in &operations {
        let view = Operation {
            index: &operation.index,
            id: &operation.id,
            source: operation.source,
        };
        let refusal = obstacle(operation).or_else(|| rules.iter().find_map(|rule| rule(&view)));
        let checked = match refusal {
            Some(refusal) => Err(refusal),
            None => check(operation.source)
                .map_err(|reason| Refusal::new(400, "document_parsing_exception", &reason)),
        };
        match checked {
            Ok(checked) => {
                creates.push(Create {
                    index: &operation.index,
                    id: &operation.id,
                    source: std::str::from_utf8(operation.source).expect("it was checked"),
                    time: checked.time,
                });
                outcomes.push(None);
            }
            Err(refusal) => outcomes.push(Some(Outcome::Refused(refusal))),
        }
    }
    let mut created = match shared.store.create(&creates) {
        Ok(created) => created.into_iter(),
        Err(error) => return Reply::error(500, "sqlite_exception", &error.to_string()),
    };
    let outcomes = outcomes
        .into_iter()
        .zip(&operations)
        .map(|(outcome, operation)| {
            outcome.unwrap_or_else(|| {
                if created
                    .next()
                    .expect("one for each operation that was carried out")
                {
                    return Outcome::Created;
                }
                Outcome::Refused(Refusal {
                    status: 409,
                    error_type: "version_conflict_engine_exception".to_owned(),
                    reason: format!(
                        "[{}]: version conflict, document already exists (current version [1])",
                        operation.id
                    ),
                })
            })
        });
    let mut statuses: HashMap<u16, u64> = HashMap::new();
    let mut items = Items::new(filter);
    for (outcome, operation) in outcomes.zip(&operations) {
        let status = match &outcome {
            Outcome::Created => 201,
            Outcome::Refused(refusal) => refusal.status,
        };
        *statuses.entry(status).or_default() += 1;
        items.push(operation, &outcome);
    }
    let errors = statuses.keys().any(|status| *status != 201);
    shared.note_items(statuses);
    let took = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    Reply::text(200, items.answer(took, errors), "application/json")
}

/// Writes the items of an answer, filtered.
struct Items<'f> {
    filter: Option<&'f Filter>,
    /// The item of a document that was created, if all look alike through the filter.
    created: Option<String>,
    text: String,
}

impl<'f> Items<'f> {
    fn new(filter: Option<&'f Filter>) -> Self {
        let mut items = Self {
            filter,
            created: None,
            text: String::new(),
        };
        let [one, other] = ["one", "other"].map(|name| {
            let operation = Parsed {
                action: "create",
                index: Cow::Borrowed(name),
                id: Cow::Borrowed(name),
                source: &[],
            };
            items.filtered(&item(&operation, &Outcome::Created))
        });
        if one == other {
            items.created = Some(one);
        }
        items
    }

    fn push(&mut self, operation: &Parsed<'_>, outcome: &Outcome) {
        let text = match (&self.created, outcome) {
            (Some(created), Outcome::Created) => Cow::Borrowed(created.as_str()),
            _ => Cow::Owned(self.filtered(&item(operation, outcome))),
        };
        if text.is_empty() {
            return;
        }
        let separator = if self.text.is_empty() { "" } else { "," };
        let text = format!("{separator}{text}");
        self.text.push_str(&text);
    }

    /// The item as text, empty if the filter leaves nothing of it.
    fn filtered(&self, item: &Value) -> String {
        let Some(filter) = self.filter else {
            return item.to_string();
        };
        let answer = filter.apply(&json!({"items": [item]}));
        answer["items"]
            .get(0)
            .map_or_else(String::new, Value::to_string)
    }

    fn answer(self, took: u64, errors: bool) -> String {
        let head = json!({"errors": errors, "took": took});
        let head = self
            .filter
            .map_or_else(|| head.clone(), |filter| filter.apply(&head));
        let head = head.to_string();
        let head = head.trim_end_matches('}');
        if self.text.is_empty() && self.filter.is_some() {
            return format!("{head}}}");
        }
        let separator = if head == "{" { "" } else { "," };
        format!("{head}{separator}\"items\":[{}]}}", self.text)
    }
}

fn item(operation: &Parsed<'_>, outcome: &Outcome) -> Value {
    let Parsed {
        index, id, action, ..
    } = operation;
    let body = match outcome {
        Outcome::Created => json!({
            "_index": index, "_id": id, "_version": 1, "result": "created",
            "_shards": {"total": 2, "successful": 1, "failed": 0},
            "_seq_no": 0, "_primary_term": 1, "status": 201,
        }),
        Outcome::Refused(refusal) => json!({
            "_index": index, "_id": id, "status": refusal.status,
            "error": {"type": refusal.error_type, "reason": refusal.reason, "index": index},
        }),
    };
    json!({*action: body})
}

/// The answer of a sink: success for each of `n_operations`, in the shape that the filter
/// `took,errors,items.*.status` leaves.
pub(super) fn sink_answer(n_operations: usize) -> String {
    const ITEM: &str = r#"{"create":{"status":201}},"#;
    let items = ITEM.repeat(n_operations);
    let items = items.trim_end_matches(',');
    format!(r#"{{"took":0,"errors":false,"items":[{items}]}}"#)
}
