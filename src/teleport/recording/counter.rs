//! What is known of a session by the events of its recording, one after the other.

use crate::checkpoint::{Recorded, Recording};
use crate::document::member;
use crate::event::AuditEvent;

/// Indices from here on are marks that Teleport puts on events outside of the order; reading goes on
/// from none of them.
const MARKS: i64 = 2_000_000_000;

/// Names are cut here: they are kept in the state file.
const NAME_CHARS: usize = 256;

/// Counts the events of one stream.
pub(super) struct Counter {
    /// Events at the index of the start that come again and are counted already.
    repeated: u64,
    from_index: i64,
    /// Events that came, those included.
    pub(super) met: u64,
    /// Events that have brought the recording further. One with a lower index than others before
    /// it does not: else a stream that always breaks behind it would pass for one that goes on.
    pub(super) fresh: u64,
}

impl Counter {
    /// For a stream that goes on where the recording was left.
    pub(super) fn new(recording: &Recording) -> Self {
        Self {
            repeated: recording.recorded.at_index,
            from_index: recording.next_index,
            met: 0,
            fresh: 0,
        }
    }

    /// Whether it is the first time that the event came.
    pub(super) fn count(&mut self, event: &AuditEvent, recording: &mut Recording) -> bool {
        self.met += 1;
        if event.index == self.from_index && self.repeated > 0 {
            self.repeated -= 1;
            return false;
        }
        let Recording {
            next_index,
            recorded,
            ..
        } = recording;
        if event.index == *next_index {
            recorded.at_index += 1;
            self.fresh += 1;
        } else if event.index > *next_index && event.index < MARKS {
            (*next_index, recorded.at_index) = (event.index, 1);
            self.fresh += 1;
        }
        add(recorded, event);
        true
    }
}

fn add(recorded: &mut Recorded, event: &AuditEvent) {
    recorded.events += 1;
    if let Some(time) = event.time {
        let ms = time.millis();
        recorded.start_ms = Some(recorded.start_ms.map_or(ms, |start| start.min(ms)));
        recorded.end_ms = Some(recorded.end_ms.map_or(ms, |end| end.max(ms)));
    }
    let event_type = &*event.event_type;
    if is_command(event_type) {
        recorded.commands += 1;
    }
    let is_start = event_type.ends_with(b"session.start");
    let is_end = event_type.ends_with(b"session.end");
    recorded.has_end |= is_end;
    if (is_start || is_end) && recorded.kind.is_none() {
        recorded.kind = Some(kind(event_type, text(event, "proto").as_deref()).to_owned());
        recorded.user = text(event, "user");
    }
}

fn is_command(event_type: &[u8]) -> bool {
    matches!(
        event_type,
        b"session.command"
            | b"exec"
            | b"kube.request"
            | b"db.session.query"
            | b"app.session.request"
    )
}

/// Teleport's word for the kind of a session that begins or ends with this event.
fn kind(event_type: &[u8], protocol: Option<&str>) -> &'static str {
    match event_type {
        b"windows.desktop.session.start" | b"windows.desktop.session.end" => "windows_desktop",
        b"db.session.start" | b"db.session.end" => "db",
        b"app.session.start" | b"app.session.end" => "app",
        b"session.start" | b"session.end" if protocol == Some("kube") => "k8s",
        b"session.start" | b"session.end" => "ssh",
        _ => "unknown",
    }
}

fn text(event: &AuditEvent, key: &str) -> Option<String> {
    let text = member::text(&event.body, key).ok().flatten()?;
    Some(
        String::from_utf8_lossy(text)
            .chars()
            .take(NAME_CHARS)
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::demo::events::{Id, encode};

    /// How many events were fresh.
    fn stream(recording: &mut Recording, events: &[Value]) -> u64 {
        let mut counter = Counter::new(recording);
        for event in events {
            let event = encode(event, Id::OfEvent);
            if event.index >= counter.from_index {
                counter.count(&event, recording);
            }
        }
        counter.fresh
    }

    #[test]
    fn a_session_is_counted_once_wherever_its_streams_break() {
        let event = |kind: &str, index: i64, second: i64| {
            json!({"event": kind, "ei": index, "time": format!("2026-01-02T03:04:{second:02}Z"),
                "user": "alice", "proto": "ssh"})
        };
        let events = [
            event("session.start", 0, 1),
            event("print", 1, 1),
            event("session.command", 2, 2),
            event("session.command", 2, 2),
            event("session.data", 2_147_483_646, 3),
            event("print", 3, 3),
            event("session.end", 4, 59),
        ];
        let new = Recording {
            session: "6f1e".into(),
            upload_ms: 1,
            next_index: 0,
            readings: 0,
            failures: 0,
            recorded: Recorded::default(),
        };
        let mut whole = new.clone();
        stream(&mut whole, &events);
        let recorded = &whole.recorded;
        assert_eq!(
            (whole.next_index, recorded.events, recorded.commands),
            (4, 7, 2)
        );
        assert_eq!(
            (recorded.kind.as_deref(), recorded.user.as_deref()),
            (Some("ssh"), Some("alice"))
        );
        assert_eq!(
            recorded.end_ms.unwrap() - recorded.start_ms.unwrap(),
            58_000
        );
        assert!(recorded.has_end);
        for broken in 0..events.len() {
            let mut recording = new.clone();
            stream(&mut recording, &events[..broken]);
            assert!(!recording.recorded.has_end);
            stream(&mut recording, &events);
            // The mark comes again each time.
            let twice = u64::from(broken >= 5);
            assert_eq!(recording.recorded.events, 7 + twice, "{broken}");
            recording.recorded.events = 7;
            assert_eq!(recording, whole, "{broken}");
        }
        // Out of order: what came before is no progress once more.
        let unordered = [5, 6, 3].map(|index| event("print", index, 1));
        let mut recording = new;
        assert_eq!(stream(&mut recording, &unordered), 2);
        for _ in 0..3 {
            assert_eq!(stream(&mut recording, &unordered), 0);
            assert_eq!(recording.next_index, 6);
        }
    }
}
