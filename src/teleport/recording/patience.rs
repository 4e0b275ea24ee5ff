//! When a recording that cannot be read is tried again, and when no more.

use std::time::Duration;

use crate::teleport::audit_log::Reading;

/// What is looked for so often may be missing for good; if it is old enough, it is.
const TRIES: u32 = 5;

/// What breaks at the same place in so many rounds is broken for good. With the pauses of a run
/// without end that takes 43 minutes: a store of recordings that is away looks the same.
const ROUNDS: u32 = 10;
const ROUNDS_OF_SHORT: u32 = 3;

/// How long a run can wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// It follows the log for ever, and looks for a recording for so long from its upload on.
    Long {
        /// In milliseconds.
        wait_ms: i64,
    },
    /// It is to end.
    Short,
}

impl Patience {
    pub(super) fn of(reading: &Reading) -> Self {
        if reading.to_ms.is_some() || reading.exit_on_last_event {
            Self::Short
        } else {
            Self::Long {
                wait_ms: wait_ms(reading),
            }
        }
    }

    /// The pause after so many failures in a row.
    pub(super) fn pause(self, failures: u32) -> Duration {
        let (first, longest) = match self {
            // Whoever waits for a short time only has it used for tries.
            Self::Long { wait_ms } => (
                Duration::from_secs(5).min(Duration::from_millis(wait_ms.unsigned_abs() / 16)),
                Duration::from_secs(3600),
            ),
            Self::Short => (Duration::from_secs(1), Duration::from_secs(8)),
        };
        let doublings = failures.saturating_sub(1).min(20);
        first.saturating_mul(1 << doublings).min(longest)
    }

    /// Whether a recording that was not there so often is not looked for any more.
    pub(super) fn is_missing(self, failures: u32, upload_ms: i64, now_ms: i64) -> bool {
        let is_old = match self {
            Self::Long { wait_ms } => now_ms.saturating_sub(upload_ms) >= wait_ms,
            Self::Short => true,
        };
        failures >= TRIES && is_old
    }

    /// Whether a recording that broke in so many rounds is not read any further.
    pub(super) fn is_unreadable(self, failures: u32) -> bool {
        let rounds = match self {
            Self::Long { .. } => ROUNDS,
            Self::Short => ROUNDS_OF_SHORT,
        };
        failures >= rounds
    }
}

/// How long a recording is looked for from its upload on.
pub(super) fn wait_ms(reading: &Reading) -> i64 {
    let wait = reading.sessions.as_ref().map(|sessions| sessions.wait);
    i64::try_from(wait.unwrap_or_default().as_millis()).unwrap_or(i64::MAX)
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
        let two_days = Patience::Long {
            wait_ms: 48 * 3600 * 1000,
        };
        let (count, last_s) = tries(two_days, 0);
        assert!((50..70).contains(&count), "{count}");
        assert!((48 * 3600..49 * 3600).contains(&last_s), "{last_s}");
        assert_eq!(tries(two_days, 48 * 3600), (5, 75));
        assert_eq!(tries(Patience::Short, 0), (5, 15));
        // A short wait is used for tries, too.
        let half_a_minute = Patience::Long { wait_ms: 32_000 };
        assert_eq!(tries(half_a_minute, 0), (6, 62));
        assert_eq!(tries(half_a_minute, 40), (5, 30));
    }
}
