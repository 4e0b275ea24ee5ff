//! The invented audit log, with the recordings that it tells of.

use super::*;

/// The invented audit log.
pub(super) struct Log {
    pub(super) n_events: u64,
    pub(super) from: DateTime<Utc>,
    pub(super) to: DateTime<Utc>,
}

impl Log {
    pub(super) fn values(&self) -> impl Iterator<Item = Value> + use<> {
        events::generate(SEED, self.n_events, self.from, self.to, CLUSTER)
    }
}

/// What the sessions' recordings hold.
#[derive(Default)]
pub(super) struct Recorded {
    pub(super) recordings: u64,
    /// Events that are indexed.
    pub(super) events: u64,
    /// Events that are left out.
    pub(super) skipped: u64,
}

impl Recorded {
    /// One for each event, and one about each session.
    pub(super) fn documents(&self) -> u64 {
        self.events + self.recordings
    }
}

/// Puts events into the log, and beside it the recordings that they tell of.
pub(super) fn emit(control: &AuthControl, log: impl Iterator<Item = Value>) -> Recorded {
    let mut recorded = Recorded::default();
    let encode = |event: &Value| events::encode(event, Id::OfEvent);
    control.append(log.map(|event| {
        if let Some((session, recording)) = events::recording(&event) {
            let skipped = recording.iter().filter(|event| is_skipped(event)).count() as u64;
            recorded.recordings += 1;
            recorded.skipped += skipped;
            recorded.events += recording.len() as u64 - skipped;
            control.record(session, recording.iter().map(encode), None);
        }
        encode(&event)
    }));
    recorded
}

/// By the default of `skip-session-types`.
pub(super) fn is_skipped(event: &Value) -> bool {
    event["event"] == "print"
}
