//! The form in which holders of rights are compared: what they may do, in one order, without what
//! Elasticsearch adds by itself.

use serde_json::{Map, Value, json};

use super::Kind;
use crate::elastic::assets::Content;

/// The part of a holder that gives rights, whether it is to be made or was found.
pub(super) fn content(kind: Kind, holder: &Value) -> Content {
    let mut rights = match kind {
        Kind::Role => of_role(holder),
        Kind::User => {
            let roles = sorted(&holder["roles"]);
            let enabled = &holder["enabled"];
            Map::from_iter([
                ("roles".to_owned(), roles),
                ("enabled".to_owned(), enabled.clone()),
            ])
        }
        Kind::ApiKey => {
            let descriptors = holder["role_descriptors"].as_object();
            let descriptors = descriptors.into_iter().flatten();
            let descriptors = descriptors.map(|(name, role)| {
                // An administrator who makes the key by hand may give the role as it is.
                (name.clone(), Value::Object(of_role(role)))
            });
            descriptors.collect()
        }
    };
    rights.insert(
        "_meta".to_owned(),
        json!({"content_sha256": fingerprint(holder)}),
    );
    Content::of(&Value::Object(rights))
}

/// Records the fingerprint of a holder in itself, so that a later edit shows.
pub(super) fn stamped(kind: Kind, mut holder: Value) -> Value {
    let fingerprint = content(kind, &holder).fingerprint();
    holder["metadata"]["managed_by"] = json!("teleport-event-indexer");
    holder["metadata"]["content_sha256"] = json!(fingerprint);
    holder
}

fn fingerprint(holder: &Value) -> Option<&str> {
    holder.pointer("/metadata/content_sha256")?.as_str()
}

fn of_role(role: &Value) -> Map<String, Value> {
    let mut rights = role.as_object().cloned().unwrap_or_default();
    for no_right in ["metadata", "transient_metadata", "description"] {
        rights.remove(no_right);
    }
    if let Some(cluster) = rights.get_mut("cluster") {
        *cluster = sorted(cluster);
    }
    for index in rights
        .get_mut("indices")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        for list in ["names", "privileges"] {
            index[list] = sorted(&index[list]);
        }
        if let Some(index) = index.as_object_mut()
            && index.get("allow_restricted_indices") == Some(&Value::Bool(false))
        {
            index.remove("allow_restricted_indices");
        }
    }
    rights
}

fn sorted(list: &Value) -> Value {
    let mut names: Vec<Value> = list.as_array().cloned().unwrap_or_default();
    names.sort_by_key(Value::to_string);
    Value::Array(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_elasticsearch_adds_and_the_order_do_not_count_but_each_right_does() {
        let sent = stamped(
            Kind::Role,
            json!({"cluster": ["monitor", "read_ilm"],
                "indices": [{"names": ["a-*"], "privileges": ["create_doc", "auto_configure"]}]}),
        );
        let mut found = json!({"cluster": ["read_ilm", "monitor"], "applications": [], "run_as": [],
            "indices": [{"names": ["a-*"], "privileges": ["auto_configure", "create_doc"],
                "allow_restricted_indices": false}],
            "transient_metadata": {"enabled": true}, "metadata": sent["metadata"]});
        let ours = content(Kind::Role, &sent);
        let theirs = content(Kind::Role, &found);
        assert!(ours.differences(&theirs).is_empty());
        assert_eq!(theirs.recorded_fingerprint(), Some(&*ours.fingerprint()));

        found["indices"][0]["allow_restricted_indices"] = json!(true);
        let theirs = content(Kind::Role, &found);
        assert_eq!(ours.differences(&theirs).len(), 1);
        assert_ne!(theirs.recorded_fingerprint(), Some(&*theirs.fingerprint()));
        found["run_as"] = json!(["elastic"]);
        assert_eq!(ours.differences(&content(Kind::Role, &found)).len(), 2);
    }
}
