//! When a recording that cannot be read is tried again, and when no more.

use std::time::Duration;

use crate::teleport::audit_log::Reading;

/// A recording is looked for so long from its upload on. Uploads of large recordings take hours
/// where a node comes back after it was cut off.
pub(super) const GIVEN_UP_MS: i64 = 2 * 24 * 3600 * 1000;

/// What is looked for so often may be missing for good; what is older than two days is then.
const TRIES: u32 = 5;

/// What breaks at the same place in so many rounds is broken for good.
const ROUNDS: u32 = 3;

/// How long a run can wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// It follows the log for ever.
    Long,
    /// It is to end.
    Short,
}

impl Patience {
    pub(super) fn of(reading: &Reading) -> Self {
        if reading.to_ms.is_some() || reading.exit_on_last_event {
            Self::Short
        } else {
            Self::Long
        }
    }

    /// The pause after so many failures in a row.
    pub(super) fn pause(self, failures: u32) -> Duration {
        let (first, longest) = match self {
            Self::Long => (Duration::from_secs(5), Duration::from_secs(3600)),
            Self::Short => (Duration::from_secs(1), Duration::from_secs(8)),
        };
        let doublings = failures.saturating_sub(1).min(20);
        first.saturating_mul(1 << doublings).min(longest)
    }

    /// Whether a recording that was not there so often is not looked for any more.
    pub(super) fn is_missing(self, failures: u32, upload_ms: i64, now_ms: i64) -> bool {
        failures >= TRIES && (self == Self::Short || now_ms - upload_ms >= GIVEN_UP_MS)
    }

    /// Whether a recording that broke in so many rounds is not read any further.
    pub(super) fn is_unreadable(failures: u32) -> bool {
        failures >= ROUNDS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tries, and when the last one is, in seconds from an upload that was so old when it was met.
    fn tries(patience: Patience, age_s: i64) -> (u32, i64) {
        let (mut failures, mut now_s) = (0, age_s);
        loop {
            failures += 1;
            if patience.is_missing(failures, 0, now_s * 1000) {
                return (failures, now_s - age_s);
            }
            now_s += i64::try_from(patience.pause(failures).as_secs()).unwrap();
        }
    }

    #[test]
    fn two_days_if_it_may_come_and_five_tries_if_it_may_not() {
        let (count, last_s) = tries(Patience::Long, 0);
        assert!((50..70).contains(&count), "{count}");
        assert!((48 * 3600..49 * 3600).contains(&last_s), "{last_s}");
        assert_eq!(tries(Patience::Long, 48 * 3600), (5, 75));
        assert_eq!(tries(Patience::Short, 0), (5, 15));
    }
}
