//! `filter_path`: the parts of an answer that a client wants to see.

use serde_json::{Map, Value};

use super::pattern::matches;

/// Comma-separated paths; their segments are separated by dots and may hold `*`, and `**` stands
/// for any number of segments. Lists are looked through as if they were not there; what is left
/// empty vanishes. (Elasticsearch also knows paths to leave out, with a minus sign.)
pub(super) struct Filter(Vec<Vec<String>>);

impl Filter {
    /// `None` if everything is wanted.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let path = |path: &str| path.trim().split('.').map(str::to_owned).collect();
        let paths = text.split(',').filter(|path| !path.trim().is_empty());
        let paths: Vec<Vec<String>> = paths.map(path).collect();
        (!paths.is_empty()).then_some(Self(paths))
    }

    /// What the client sees of `answer`; an empty object if nothing.
    pub(super) fn apply(&self, answer: &Value) -> Value {
        let paths: Vec<&[String]> = self.0.iter().map(Vec::as_slice).collect();
        kept(answer, &paths).unwrap_or_else(|| Value::Object(Map::new()))
    }
}

fn kept(value: &Value, paths: &[&[String]]) -> Option<Value> {
    match value {
        Value::Object(object) => {
            let fields = object.iter().filter_map(|(key, value)| {
                let below: Vec<&[String]> = paths.iter().flat_map(|path| step(path, key)).collect();
                let value = if below.iter().any(|path| path.is_empty()) {
                    value.clone()
                } else {
                    kept(value, &below)?
                };
                Some((key.clone(), value))
            });
            let fields: Map<String, Value> = fields.collect();
            (!fields.is_empty()).then_some(Value::Object(fields))
        }
        Value::Array(values) => {
            let values: Vec<Value> = values
                .iter()
                .filter_map(|value| kept(value, paths))
                .collect();
            (!values.is_empty()).then_some(Value::Array(values))
        }
        _ => None,
    }
}

/// What is left of `path` below `key`: none, one or, after `**`, several ways to go on.
fn step<'a>(path: &'a [String], key: &str) -> Vec<&'a [String]> {
    let Some((first, rest)) = path.split_first() else {
        return Vec::new();
    };
    if first == "**" {
        let mut ways = step(rest, key);
        ways.push(path);
        return ways;
    }
    if matches(first, key) {
        vec![rest]
    } else {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_named_is_left() {
        let answer = json!({
            "took": 3, "errors": true,
            "items": [
                {"create": {"_id": "a", "status": 201}},
                {"create": {"_id": "b", "status": 400, "error": {"type": "t", "reason": "r"}}},
            ],
        });
        let filtered = |text| Filter::parse(text).unwrap().apply(&answer);
        assert_eq!(
            filtered("took,errors,items.*.status,items.*.error"),
            json!({
                "took": 3, "errors": true,
                "items": [
                    {"create": {"status": 201}},
                    {"create": {"status": 400, "error": {"type": "t", "reason": "r"}}},
                ],
            })
        );
        // What is left empty vanishes, list elements too.
        assert_eq!(
            filtered("items.*.error.type"),
            json!({"items": [{"create": {"error": {"type": "t"}}}]})
        );
        assert_eq!(
            filtered("**.reason,t*k"),
            json!({
                "took": 3, "items": [{"create": {"error": {"reason": "r"}}}]
            })
        );
        assert_eq!(filtered("took.deeper,nothing"), json!({}));
        assert!(Filter::parse("").is_none());
    }
}
