//! What is told of gaps in Elasticsearch: one document says what is missing, a second one that it
//! came after all. Nothing is ever changed there, as the writer may only create.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};

use crate::checkpoint::{DeadLetter, Gap};
use crate::document::DocumentId;

/// The `event` of both documents.
const EVENT: &str = "event_indexer.gap";

/// What Teleport calls the cluster in each event, and so we do in documents of our own: whoever looks
/// for one cluster's events finds them.
pub(super) const CLUSTER_NAME: &str = "cluster_name";

/// The document that says what is missing. Its id depends on what is missing of which cluster alone, so
/// a gap that is met again is the same document.
pub(super) fn opened(cluster: &str, gap: &Gap) -> (DocumentId, Value) {
    let id = id("gap", cluster, gap);
    (id, Value::Object(members(cluster, gap)))
}

/// The document that says that what was missing has come. It lies beside the first one.
pub(crate) fn closed(cluster: &str, gap: &Gap, now: DateTime<Utc>) -> (DocumentId, Value) {
    let mut members = members(cluster, gap);
    members.insert(format!("{EVENT}.closed"), now.to_rfc3339().into());
    (id("gap closed", cluster, gap), Value::Object(members))
}

/// The gap that an event leaves which came, but makes no document: `None` where no index can be
/// told for one, since the dead letter is all there can be then.
pub(super) fn of_malformed(letter: &DeadLetter, event_id: &[u8]) -> Option<Gap> {
    let from_ms = letter.time_ms?;
    Some(Gap {
        reason: "event_malformed".into(),
        from_ms,
        to_ms: from_ms + 1,
        detail: format!("{}; its bytes are kept as a dead letter", letter.reason),
        event_type: Some(letter.event_type.clone()),
        event_id: Some(String::from_utf8_lossy(event_id).into_owned()),
        dead_letter: Some(letter.document_id.clone()),
        found_ms: letter.first_seen_ms,
        ..Gap::default()
    })
}

fn id(kind: &str, cluster: &str, gap: &Gap) -> DocumentId {
    let text = |text: &Option<String>| text.clone().unwrap_or_default().into_bytes();
    let to_ms = gap.to_ms.to_be_bytes();
    let (chunk, dead_letter) = (text(&gap.chunk), text(&gap.dead_letter));
    let mut parts: Vec<&[u8]> = vec![
        kind.as_bytes(),
        cluster.as_bytes(),
        gap.reason.as_bytes(),
        &to_ms,
        &chunk,
        &dead_letter,
    ];
    // Only where there is one: the ids of other gaps stay what they were.
    if let Some(session) = &gap.session {
        parts.push(session.as_bytes());
    }
    DocumentId::of_own(gap.from_ms, &parts)
}

/// A time as documents of our own have it; `None` if no calendar does.
pub(super) fn time(ms: i64) -> Option<String> {
    DateTime::from_timestamp_millis(ms).map(|time| time.to_rfc3339())
}

fn members(cluster: &str, gap: &Gap) -> Map<String, Value> {
    let mut members = Map::new();
    members.insert("time".into(), json!(time(gap.from_ms)));
    members.insert("event".into(), EVENT.into());
    members.insert(CLUSTER_NAME.into(), cluster.into());
    for (name, value) in [
        ("reason", json!(gap.reason)),
        ("from", json!(time(gap.from_ms))),
        ("to", json!(time(gap.to_ms))),
        ("detail", json!(gap.detail)),
        ("chunk", json!(gap.chunk)),
        ("event_type", json!(gap.event_type)),
        ("event_id", json!(gap.event_id)),
        ("dead_letter", json!(gap.dead_letter)),
        ("sid", json!(gap.session)),
    ] {
        if !value.is_null() {
            members.insert(format!("{EVENT}.{name}"), value);
        }
    }
    members
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_from_what_is_missing_and_nothing_else() {
        let gap = Gap {
            reason: "chunk_vanished".into(),
            from_ms: 10,
            to_ms: 20,
            chunk: Some("one".into()),
            ..Gap::default()
        };
        let met_again = Gap {
            detail: "other words".into(),
            found_ms: 99,
            ..gap.clone()
        };
        let others = [
            Gap {
                to_ms: 21,
                ..gap.clone()
            },
            Gap {
                chunk: Some("two".into()),
                ..gap.clone()
            },
            Gap {
                dead_letter: Some("one".into()),
                chunk: None,
                ..gap.clone()
            },
            Gap {
                session: Some("one".into()),
                ..gap.clone()
            },
        ];
        let id = |gap| opened("east", gap).0;
        assert_eq!(id(&gap), id(&met_again));
        assert_ne!(id(&gap), opened("west", &gap).0);
        for other in &others {
            assert_ne!(id(&gap), id(other), "{other:?}");
        }
        let closed = |now| closed("east", &gap, now);
        let (one, two) = (closed(DateTime::UNIX_EPOCH), closed(Utc::now()));
        assert_eq!(one.0, two.0);
        assert_ne!(one.0, id(&gap));
        assert_eq!(one.1["cluster_name"], "east");
        assert_eq!(
            one.1["event_indexer.gap.closed"],
            "1970-01-01T00:00:00+00:00"
        );
    }
}
