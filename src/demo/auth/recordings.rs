//! The stand-in's session recordings, and what may be wrong with each.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tonic::{Code, Status};

use super::log::wire;
use crate::event::AuditEvent;
use crate::teleport::proto::auditlog as proto;

/// What is wrong with a recording. All of this has happened to exporters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordingFault {
    /// It is not found, ever.
    Missing,
    /// It is not found by the first so many calls.
    MissingFirst(usize),
    /// It is not found by the first so many calls, and breaks before its first event in so many more.
    MissingThenBroken(usize, usize),
    /// No call gets past its first so many events.
    Corrupt(usize, Code),
    /// Each call breaks after so many events of its own.
    Breaks(usize, Code),
    /// It is not for whoever asks.
    Denied,
    /// Each event takes so long.
    Slow(Duration),
}

struct Recording {
    events: Arc<[proto::EventUnstructured]>,
    fault: Option<RecordingFault>,
    n_calls: usize,
}

#[derive(Default)]
pub(super) struct Recordings(HashMap<String, Recording>);

/// What a call is answered with.
pub(super) struct Played {
    pub(super) events: Arc<[proto::EventUnstructured]>,
    /// How many of them are sent.
    pub(super) to: usize,
    /// How the stream ends then, if not well.
    pub(super) last: Option<Status>,
    pub(super) pause: Duration,
}

impl Recordings {
    pub(super) fn set(
        &mut self,
        session: String,
        events: impl IntoIterator<Item = AuditEvent>,
        fault: Option<RecordingFault>,
    ) {
        let recording = Recording {
            events: events.into_iter().map(|event| wire(&event)).collect(),
            fault,
            n_calls: 0,
        };
        self.0.insert(session, recording);
    }

    pub(super) fn set_fault(&mut self, session: &str, fault: Option<RecordingFault>) {
        if let Some(recording) = self.0.get_mut(session) {
            recording.fault = fault;
        }
    }

    pub(super) fn play(&mut self, session: &str, start_index: i64) -> Result<Played, Status> {
        let not_found =
            || Status::not_found(format!("a recording for session {session} was not found"));
        let recording = self.0.get_mut(session).ok_or_else(not_found)?;
        recording.n_calls += 1;
        let is_from_here = |event: &proto::EventUnstructured| event.index >= start_index;
        // As Teleport does: what comes before the index is left out, wherever it is.
        let events: Arc<[_]> = if start_index > 0 {
            let events = recording.events.iter().filter(|event| is_from_here(event));
            events.cloned().collect()
        } else {
            recording.events.clone()
        };
        let mut played = Played {
            to: events.len(),
            events,
            last: None,
            pause: Duration::ZERO,
        };
        let broken = |code| Some(Status::new(code, "unexpected EOF in the recording"));
        match recording.fault {
            Some(RecordingFault::Missing) => return Err(not_found()),
            Some(RecordingFault::MissingFirst(n)) if recording.n_calls <= n => {
                return Err(not_found());
            }
            Some(RecordingFault::MissingThenBroken(missing, broken))
                if recording.n_calls <= missing + broken =>
            {
                return Err(match recording.n_calls {
                    n if n <= missing => not_found(),
                    _ => Status::unknown("unexpected EOF in the recording"),
                });
            }
            Some(RecordingFault::Denied) => {
                return Err(Status::permission_denied("access denied to the session"));
            }
            Some(RecordingFault::Corrupt(n_events, code)) => {
                let skipped = recording.events.len() - played.to;
                played.to = played.to.min(n_events.saturating_sub(skipped));
                played.last = broken(code);
            }
            Some(RecordingFault::Breaks(n_events, code)) if n_events < played.to => {
                played.to = n_events;
                played.last = broken(code);
            }
            Some(RecordingFault::Slow(pause)) => played.pause = pause,
            _ => {}
        }
        Ok(played)
    }
}
