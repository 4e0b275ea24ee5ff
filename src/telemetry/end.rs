//! Whether one of the two ends answers.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use chrono::Utc;

/// How an end has answered so far. Said by whoever calls it, at each call.
#[derive(Debug, Default)]
pub struct End {
    is_reached: AtomicBool,
    /// When the first of the failures since the last answer was, ms since 1970; 0: it answers.
    failing_since_ms: AtomicI64,
    failures: AtomicU64,
    said: Mutex<String>,
}

/// How an end answers now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nobody has had an answer yet.
    NotReached,
    /// The last call was answered.
    Answers,
    /// The last call failed.
    Fails {
        /// Since when calls fail, ms since 1970.
        since_ms: i64,
        /// The last failure, in words that may be logged.
        said: String,
    },
}

impl End {
    /// A call was answered. Cheap where that is no news.
    pub fn answered(&self) {
        if !self.is_reached.load(Ordering::Relaxed) {
            self.is_reached.store(true, Ordering::Relaxed);
        }
        if self.failing_since_ms.load(Ordering::Relaxed) != 0 {
            self.failing_since_ms.store(0, Ordering::Relaxed);
        }
    }

    /// A call failed, for this reason.
    pub fn failed(&self, said: &str) {
        said.clone_into(&mut self.said.lock().unwrap_or_else(PoisonError::into_inner));
        self.failures.fetch_add(1, Ordering::Relaxed);
        // Whoever was first says since when.
        let now = Utc::now().timestamp_millis();
        let since = &self.failing_since_ms;
        since
            .compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed)
            .unwrap_or_default();
    }

    /// How many calls have failed.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// How it answers now.
    pub fn standing(&self) -> Standing {
        match self.failing_since_ms.load(Ordering::Relaxed) {
            0 if self.is_reached.load(Ordering::Relaxed) => Standing::Answers,
            0 => Standing::NotReached,
            since_ms => Standing::Fails {
                since_ms,
                said: self
                    .said
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clone(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_fails_from_its_first_failure_to_its_next_answer() {
        let end = End::default();
        assert_eq!(end.standing(), Standing::NotReached);
        end.answered();
        assert_eq!(end.standing(), Standing::Answers);
        end.failed("no route");
        let Standing::Fails { since_ms, said } = end.standing() else {
            panic!("{:?}", end.standing());
        };
        assert_eq!(said, "no route");
        end.failed("refused");
        let again = Standing::Fails {
            since_ms,
            said: "refused".into(),
        };
        assert_eq!((end.standing(), end.failures()), (again, 2));
        end.answered();
        assert_eq!((end.standing(), end.failures()), (Standing::Answers, 2));
    }
}
