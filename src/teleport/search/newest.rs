//! The newest events that were read, so that they are known when they are met again.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::event::AuditEvent;

/// The events of the newest second of which one was read. Less than a second is not enough: some
/// servers sort by whole seconds only.
#[derive(Clone, Debug, Default)]
pub(super) struct Newest {
    second: i64,
    /// By what tells them apart; when each was, ms since 1970.
    events: HashMap<u64, i64>,
}

impl Newest {
    /// Takes what was read, in any order.
    pub(super) fn note(&mut self, events: &[AuditEvent]) {
        let seconds = events.iter().filter_map(|event| Some(event.time?.seconds));
        let Some(second) = seconds.max() else {
            return;
        };
        if self.is_empty() || second > self.second {
            self.second = second;
            self.events.clear();
        }
        for event in events {
            if let Some(time) = event.time
                && time.seconds == self.second
            {
                self.events.insert(fingerprint(event), time.millis());
            }
        }
    }

    /// Forgets those at this time or later.
    pub(super) fn forget_from(&mut self, ms: i64) {
        self.events.retain(|_, time| *time < ms);
    }

    pub(super) fn knows(&self, event: &AuditEvent) -> bool {
        let is_near = event.time.is_some_and(|time| time.seconds == self.second);
        is_near && self.events.contains_key(&fingerprint(event))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    /// When the newest was, ms since 1970.
    pub(super) fn last_ms(&self) -> Option<i64> {
        self.events.values().copied().max()
    }

    /// How many of those known were at this time or later.
    pub(super) fn n_from(&self, ms: i64) -> usize {
        self.events.values().filter(|time| **time >= ms).count()
    }
}

/// Not the body: an event without an id comes with its keys in another order each time.
fn fingerprint(event: &AuditEvent) -> u64 {
    let mut hasher = DefaultHasher::new();
    let nanos = event.time.map(|time| time.nanos);
    (&event.id, &event.event_type, event.index, nanos).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Timestamp;

    #[test]
    fn the_events_of_the_newest_second_are_known_again() {
        let event = |id: &'static str, ms| AuditEvent {
            id: id.into(),
            time: Some(Timestamp::from_millis(ms)),
            ..AuditEvent::default()
        };
        let mut newest = Newest::default();
        newest.note(&[]);
        newest.note(&[event("a", 1500), event("b", 2900), event("c", 2100)]);
        newest.note(&[event("b", 2900), event("late", 1999)]);
        newest.note(&[event("d", 2100)]);
        let known = [
            ("a", 1500),
            ("b", 2900),
            ("c", 2100),
            ("d", 2100),
            ("e", 2100),
        ];
        let known = known.map(|(id, ms)| newest.knows(&event(id, ms)));
        assert_eq!(known, [false, true, true, true, false]);
        assert_eq!((newest.last_ms(), newest.len()), (Some(2900), 3));
        assert_eq!([2100, 2101, 2901].map(|ms| newest.n_from(ms)), [3, 1, 0]);
        newest.note(&[event("e", 3000)]);
        assert_eq!((newest.last_ms(), newest.len()), (Some(3000), 1));
        newest.note(&[event("f", 3001)]);
        newest.forget_from(3001);
        assert_eq!((newest.last_ms(), newest.len()), (Some(3000), 1));
    }
}
