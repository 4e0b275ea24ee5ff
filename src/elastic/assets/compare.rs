//! Compares what is to be installed with what Elasticsearch holds.
//!
//! Elasticsearch gives a template back in other words than it was sent: settings as strings below
//! `index`, dotted keys nested, dates of creation added. Both sides are therefore brought into one
//! flat form, path → text, in which equal content is equal.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fmt::Write as _;

use ring::digest::{Context, SHA256};
use serde_json::Value;

/// Where an asset carries the fingerprint of its own content.
const FINGERPRINT: &str = "_meta.content_sha256";

/// What servers add by themselves (9.x stamps templates), which is nobody's edit.
const STAMPS: [&str; 4] = [
    "created_date",
    "created_date_millis",
    "modified_date",
    "modified_date_millis",
];

/// The settings of a template. A path below them may or may not name the `index` it belongs to.
const SETTINGS: &str = "template.settings.";

/// One place in which two assets disagree; shown as `path: theirs → ours`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The place, its keys joined by dots: `template.settings.index.codec`.
    pub path: String,
    /// What Elasticsearch holds there, if anything.
    pub theirs: Option<String>,
    /// What would be installed there, if anything.
    pub ours: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let theirs = self.theirs.as_deref().unwrap_or("(absent)");
        let ours = self.ours.as_deref().unwrap_or("(absent)");
        write!(f, "{}: {theirs} → {ours}", self.path)
    }
}

/// An asset in the form in which it can be compared.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::elastic) struct Content(BTreeMap<String, String>);

impl Content {
    pub(in crate::elastic) fn of(asset: &Value) -> Self {
        let mut flat = BTreeMap::new();
        flatten(String::new(), asset, &mut flat);
        for stamp in STAMPS {
            flat.remove(stamp);
        }
        Self(flat)
    }

    /// The fingerprint that was written into the asset when it was installed.
    pub(in crate::elastic) fn recorded_fingerprint(&self) -> Option<&str> {
        self.0.get(FINGERPRINT).map(String::as_str)
    }

    /// SHA-256 over all of the content but the recorded fingerprint, in lower-case hexadecimal.
    pub(in crate::elastic) fn fingerprint(&self) -> String {
        let mut context = Context::new(&SHA256);
        for (path, text) in self.0.iter().filter(|(path, _)| *path != FINGERPRINT) {
            // Lengths first, so that no two contents run together into the same bytes.
            for part in [path, text] {
                context.update(&part.len().to_be_bytes());
                context.update(part.as_bytes());
            }
        }
        let mut hex = String::with_capacity(64);
        for byte in context.finish().as_ref() {
            write!(hex, "{byte:02x}").expect("writing to a String cannot fail");
        }
        hex
    }

    /// Where this content, which is ours, differs from what Elasticsearch holds.
    pub(in crate::elastic) fn differences(&self, theirs: &Self) -> Vec<Difference> {
        let paths: BTreeSet<&String> = self.0.keys().chain(theirs.0.keys()).collect();
        paths
            .into_iter()
            .filter(|path| *path != FINGERPRINT)
            .filter(|path| self.0.get(*path) != theirs.0.get(*path))
            .map(|path| Difference {
                path: path.clone(),
                theirs: theirs.0.get(path).cloned(),
                ours: self.0.get(path).cloned(),
            })
            .collect()
    }

    /// Where an index that got `theirs` would not be what this template says. What they have
    /// beyond ours does not count, and of a field or a dynamic template only its type does:
    /// Elasticsearch leaves out what is a default already.
    pub(super) fn missing_from(&self, theirs: &Self) -> Vec<Difference> {
        let mut differences = self.differences(theirs);
        differences.retain(|difference| {
            let path = &difference.path;
            let of_a_field = path.contains(".properties.") || path.contains(".dynamic_templates.");
            difference.ours.is_some() && (!of_a_field || path.ends_with(".type"))
        });
        differences
    }
}

fn flatten(path: String, value: &Value, flat: &mut BTreeMap<String, String>) {
    match value {
        // Nothing set and set to nothing are the same.
        Value::Null => {}
        Value::Object(members) => {
            for (key, value) in members {
                flatten(join(&path, key), value, flat);
            }
        }
        // Dynamic templates: a list of named ones. By name, since a component template's own stand
        // before ours in the composed list and would shift every number.
        Value::Array(items) if !items.is_empty() && items.iter().all(is_named) => {
            for item in items {
                flatten(path.clone(), item, flat);
            }
        }
        Value::Array(items) if items.is_empty() => {}
        Value::Array(items) => {
            let texts: Vec<String> = items.iter().map(text).collect();
            flat.insert(path, texts.join(", "));
        }
        scalar => {
            flat.insert(path, text(scalar));
        }
    }
}

fn is_named(item: &Value) -> bool {
    item.as_object()
        .is_some_and(|item| item.len() == 1 && item.values().all(Value::is_object))
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        return key.to_owned();
    }
    let joined = format!("{path}.{key}");
    match joined.strip_prefix(SETTINGS) {
        Some(setting) if setting != "index" && !setting.starts_with("index.") => {
            format!("{SETTINGS}index.{setting}")
        }
        _ => joined,
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_same_content_in_other_words_is_equal() {
        let sent = json!({
            "version": 1,
            "composed_of": ["x@custom"],
            "template": {
                "settings": {"number_of_shards": 1, "index.codec": "best_compression",
                             "index": {"mapping": {"ignore_malformed": true}}},
                "mappings": {"dynamic": true, "properties": {"addr.local": {"type": "keyword"}}}
            }
        });
        let returned = json!({
            "version": 1,
            "composed_of": ["x@custom"],
            "ignore_missing_component_templates": [],
            "data_stream": null,
            "created_date_millis": 1_795_426_300_103_i64,
            "modified_date": "2026-11-23T09:34:48.511Z",
            "template": {
                "aliases": {},
                "settings": {"index": {"number_of_shards": "1", "codec": "best_compression",
                                       "mapping.ignore_malformed": "true"}},
                "mappings": {"dynamic": "true", "properties": {"addr": {"local": {"type": "keyword"}}}}
            }
        });
        let (sent, returned) = (Content::of(&sent), Content::of(&returned));
        assert_eq!(sent.differences(&returned), []);
        assert_eq!(sent.fingerprint(), returned.fingerprint());
    }

    #[test]
    fn each_difference_is_shown_on_its_own_line() {
        let theirs = json!({
            "_meta": {"content_sha256": "1"},
            "template": {"settings": {"index.codec": "default", "index.sort.field": ["time", "ei"]}}
        });
        let ours = json!({
            "_meta": {"content_sha256": "2"},
            "template": {"settings": {"codec": "best_compression"},
                         "mappings": {"dynamic_templates": [{"a": {"match": "x"}}, {"b": {"match": "y"}}]}}
        });
        let (theirs, ours) = (Content::of(&theirs), Content::of(&ours));
        let shown: Vec<String> = ours
            .differences(&theirs)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            shown,
            [
                "template.mappings.dynamic_templates.a.match: (absent) → x",
                "template.mappings.dynamic_templates.b.match: (absent) → y",
                "template.settings.index.codec: default → best_compression",
                "template.settings.index.sort.field: time, ei → (absent)",
            ]
        );
        assert_eq!(theirs.recorded_fingerprint(), Some("1"));
    }

    #[test]
    fn an_index_may_have_more_than_its_template_says() {
        let ours = json!({"template": {
            "settings": {"codec": "best_compression"},
            "mappings": {"properties": {"ei": {"type": "long", "ignore_malformed": true}}}
        }});
        let theirs = |kind: &str| {
            json!({"template": {
                "settings": {"index": {"codec": "best_compression", "number_of_replicas": "1"}},
                "mappings": {"properties": {"ei": {"type": kind}, "mine": {"type": "long"}}}
            }})
        };
        let missing = |kind| Content::of(&ours).missing_from(&Content::of(&theirs(kind)));
        assert_eq!(missing("long"), []);
        assert_eq!(
            missing("keyword")[0].path,
            "template.mappings.properties.ei.type"
        );
    }

    #[test]
    fn the_fingerprint_follows_the_content_and_not_itself() {
        let asset = |codec: &str, fingerprint: &str| {
            Content::of(&json!({"codec": codec, "_meta": {"content_sha256": fingerprint}}))
                .fingerprint()
        };
        assert_eq!(asset("a", "1"), asset("a", "2"));
        assert_ne!(asset("a", "1"), asset("b", "1"));
        assert_ne!(
            Content::of(&json!({"ab": "c"})).fingerprint(),
            Content::of(&json!({"a": "bc"})).fingerprint()
        );
    }
}
