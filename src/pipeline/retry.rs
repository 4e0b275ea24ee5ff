//! How long to wait before trying again, and how loudly to say so.

use std::time::Duration;

use tokio::time::Instant;

use crate::telemetry::{Failing, Told};

/// Exponential backoff with a cap and jitter. It never gives up.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    failures: u32,
    since: Option<Instant>,
    told: Told,
    random: u64,
}

/// One more failure, as [`Backoff::failed`] sees it.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    /// How long to wait before the next attempt.
    pub wait: Duration,
    /// Failures in a row, this one included.
    pub failures: u32,
    /// How long it has been failing.
    pub lasting: Duration,
    /// It is worth a line in the log: the first in a row, and then one a minute.
    pub is_worth_a_line: bool,
}

impl Backoff {
    /// Waits `first`, then twice as long each time, at most `cap`; each wait is cut by up to a
    /// half at random, so that many clients do not come back at once.
    ///
    /// # Panics
    /// If `first` is zero or larger than `cap`.
    pub fn new(first: Duration, cap: Duration) -> Self {
        assert!(first > Duration::ZERO && first <= cap);
        // The address space layout and the hasher's keys are random enough for jitter.
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0u8);
        Self {
            first,
            cap,
            failures: 0,
            since: None,
            told: Told::default(),
            random: random | 1,
        }
    }

    /// Notes a failure and says how long to wait.
    pub fn failed(&mut self) -> Failure {
        let now = Instant::now();
        let since = *self.since.get_or_insert(now);
        let full = self
            .first
            .saturating_mul(1 << self.failures.min(20))
            .min(self.cap);
        self.failures = self.failures.saturating_add(1);
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        // 1/2 … 1 of the full wait, in 1/1024 steps.
        let part = 512 + u32::try_from(self.random % 512).expect("below 512");
        Failure {
            wait: full * part / 1024,
            failures: self.failures,
            lasting: now - since,
            is_worth_a_line: self.told.once_a_minute(),
        }
    }

    /// How long it has been failing; `None` if it has not.
    pub fn lasting(&self) -> Option<Duration> {
        self.since.map(|since| since.elapsed())
    }

    /// Notes a success: the next failure is a first one again.
    pub fn succeeded(&mut self) {
        self.failures = 0;
        self.since = None;
        self.told.forget();
    }
}

impl Failure {
    /// Worth a warning: it has lasted for a minute. Before that it is worth a line at info.
    pub fn is_lasting(&self) -> bool {
        self.lasting >= Duration::from_secs(60)
    }

    /// The same as the end at which it fails sees it.
    pub fn failing(&self) -> Failing {
        Failing {
            is_first: self.failures == 1,
            is_lasting: self.is_lasting(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_grow_to_the_cap_and_start_again_after_a_success() {
        let (first, cap) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut backoff = Backoff::new(first, cap);
        let mut full = first;
        for failure in 1..=40 {
            let Failure {
                wait,
                failures,
                is_worth_a_line,
                ..
            } = backoff.failed();
            assert_eq!((failures, is_worth_a_line), (failure, failure == 1));
            assert!(
                wait >= full / 2 && wait <= full,
                "{wait:?} is not within half of {full:?}"
            );
            full = (full * 2).min(cap);
        }
        tokio::time::advance(Duration::from_secs(61)).await;
        let failure = backoff.failed();
        assert!(failure.is_lasting() && failure.is_worth_a_line);
        assert!(!backoff.failed().is_worth_a_line);
        assert_eq!(backoff.lasting(), Some(Duration::from_secs(61)));
        backoff.succeeded();
        assert_eq!(backoff.lasting(), None);
        let failure = backoff.failed();
        assert!(failure.wait <= first && !failure.is_lasting() && failure.is_worth_a_line);
    }
}
