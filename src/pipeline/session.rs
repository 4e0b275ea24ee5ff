//! What is told of a recorded session in Elasticsearch once its recording is done with: one document
//! by which sessions are found whose recording is not complete.

use serde_json::{Map, Value, json};

use crate::checkpoint::{Recorded, RecordingEnd, RecordingStep};
use crate::document::DocumentId;
use crate::pipeline::gap::{CLUSTER_NAME, time};

/// The document's `event`.
const EVENT: &str = "event_indexer.session";

/// The document and its time; `None` if none is wanted, or the recording goes on. Its id depends on
/// the session, its upload and what has become of the recording, so reading it again makes no
/// second one, unless that comes to something else.
pub(super) fn summary(cluster: &str, step: &RecordingStep) -> Option<(i64, (DocumentId, Value))> {
    let RecordingStep {
        recording,
        end,
        has_summary,
    } = step;
    let state = state((*end)?, &recording.recorded).filter(|_| *has_summary)?;
    let (session, time_ms) = (&recording.session, recording.upload_ms);
    let id = DocumentId::of_own(time_ms, &[b"session", session.as_bytes(), state.as_bytes()]);
    let Recorded {
        events,
        commands,
        start_ms,
        end_ms,
        user,
        kind,
        ..
    } = &recording.recorded;
    let duration_ms = start_ms.zip(*end_ms).map(|(start, end)| end - start);
    let mut members = Map::new();
    members.insert("time".into(), json!(time(time_ms)));
    members.insert("event".into(), EVENT.into());
    members.insert(CLUSTER_NAME.into(), cluster.into());
    for (name, value) in [
        ("sid", json!(session)),
        ("recording", json!(state)),
        ("user", json!(user)),
        ("kind", json!(kind)),
        ("start", json!(start_ms.map(time))),
        ("end", json!(end_ms.map(time))),
        ("duration_ms", json!(duration_ms)),
        ("events", json!(events)),
        ("commands", json!(commands)),
    ] {
        if !value.is_null() {
            members.insert(format!("{EVENT}.{name}"), value);
        }
    }
    Some((time_ms, (id, Value::Object(members))))
}

/// What has become of a recording, in one word; `None` if it goes on.
fn state(end: RecordingEnd, recorded: &Recorded) -> Option<&'static str> {
    match end {
        RecordingEnd::Read if recorded.too_old > 0 => Some("too_old"),
        RecordingEnd::Read if recorded.has_end => Some("complete"),
        // The session was cut off, or its end was not recorded.
        RecordingEnd::Read => Some("without_end"),
        RecordingEnd::Missing => Some("missing"),
        RecordingEnd::Unreadable => Some("unreadable"),
        RecordingEnd::Again { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Recording;

    #[test]
    fn each_state_has_a_document_of_its_own_and_reading_again_none() {
        let step = |end, has_end| RecordingStep {
            recording: Recording {
                session: "6f1e".into(),
                upload_ms: 60_000,
                next_index: 9,
                readings: 3,
                failures: 0,
                recorded: Recorded {
                    events: 10,
                    commands: 2,
                    start_ms: Some(1000),
                    end_ms: Some(31_500),
                    user: Some("alice".into()),
                    has_end,
                    ..Recorded::default()
                },
            },
            end: Some(end),
            has_summary: true,
        };
        let complete = step(RecordingEnd::Read, true);
        let of = |step: &RecordingStep| summary("east", step);
        let (time_ms, (id, document)) = of(&complete).unwrap();
        assert_eq!(time_ms, 60_000);
        let expected = json!({
            "time": "1970-01-01T00:01:00+00:00", "event": "event_indexer.session",
            "cluster_name": "east",
            "event_indexer.session.sid": "6f1e", "event_indexer.session.recording": "complete",
            "event_indexer.session.user": "alice",
            "event_indexer.session.start": "1970-01-01T00:00:01+00:00",
            "event_indexer.session.end": "1970-01-01T00:00:31.500+00:00",
            "event_indexer.session.duration_ms": 30_500,
            "event_indexer.session.events": 10, "event_indexer.session.commands": 2,
        });
        assert_eq!(document, expected);
        let mut again = complete;
        again.recording.readings = 7;
        assert_eq!(of(&again).unwrap().1.0, id);
        let mut ids = std::collections::BTreeSet::from([id]);
        for end in [
            RecordingEnd::Read,
            RecordingEnd::Missing,
            RecordingEnd::Unreadable,
        ] {
            assert!(ids.insert(of(&step(end, false)).unwrap().1.0));
        }
        let mut too_old = step(RecordingEnd::Read, true);
        too_old.recording.recorded.too_old = 1;
        let (id, document) = of(&too_old).unwrap().1;
        assert!(ids.insert(id));
        assert_eq!(document["event_indexer.session.recording"], "too_old");
        assert_eq!(of(&step(RecordingEnd::Again { due_ms: 1 }, true)), None);
        again.has_summary = false;
        assert_eq!(of(&again), None);
    }
}
