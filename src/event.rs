//! One audit event as Teleport hands it out. Its body stays protobuf wire bytes.

use std::sync::Arc;

use bytes::Bytes;

/// A UTC day in milliseconds; there are no leap seconds in time since 1970.
pub const DAY_MS: i64 = 24 * 3600 * 1000;

/// An event of Teleport's audit log: the decoded header of an `EventUnstructured` and its body,
/// a `google.protobuf.Struct`, as wire bytes.
///
/// The texts are bytes because a server may send what is no valid UTF-8; that must spoil one
/// document, not the page around it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditEvent {
    /// `user.login`, `session.start`, …; equal to the body's key `event`.
    pub event_type: Bytes,
    /// The event's `uid`, else the lower-hex SHA-256 of its JSON, else empty.
    pub id: Bytes,
    /// When the event took place; absent if the server sent no time at all.
    pub time: Option<Timestamp>,
    /// The position within its session (the body's key `ei`); no dense sequence.
    pub index: i64,
    /// The event: wire bytes of a `google.protobuf.Struct`.
    pub body: Bytes,
    /// The session in whose recording it was found, if it has neither that nor a `uid` itself: two
    /// sessions may have recorded the same otherwise. `None` for all other events.
    pub session: Option<Arc<str>>,
}

/// A point in time as protobuf has it: seconds since 1970 and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Whole seconds since 1970-01-01T00:00:00Z, negative before.
    pub seconds: i64,
    /// 0 to 999,999,999; counts forward whatever the sign of `seconds`.
    pub nanos: i32,
}

impl Timestamp {
    /// Milliseconds since 1970, rounded down; saturates far outside any year that has a name.
    pub fn millis(self) -> i64 {
        self.seconds
            .saturating_mul(1000)
            .saturating_add(i64::from(self.nanos / 1_000_000))
    }

    /// The point that is `millis` milliseconds after 1970.
    pub fn from_millis(millis: i64) -> Self {
        let nanos = i32::try_from(millis.rem_euclid(1000)).expect("below 1000") * 1_000_000;
        Self {
            seconds: millis.div_euclid(1000),
            nanos,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_go_there_and_back() {
        for millis in [0, 1, -1, 999, 1000, -1000, -1001, 1_790_000_000_123] {
            assert_eq!(Timestamp::from_millis(millis).millis(), millis);
        }
        assert_eq!(
            Timestamp {
                seconds: i64::MAX,
                nanos: 0
            }
            .millis(),
            i64::MAX
        );
    }
}
