//! Whether one of the two ends answers.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::Utc;

use super::reason::{Counts, place};
use super::{Reason, Told};

/// How an end has answered so far. Said by whoever calls it, at each call.
#[derive(Debug, Default)]
pub struct End {
    is_reached: AtomicBool,
    /// When the first of the failures since the last answer was, ms since 1970; 0: it answers.
    failing_since_ms: AtomicI64,
    failures: Counts<{ Reason::OF_FAILURES.len() }>,
    said: Mutex<String>,
    /// Several calls fail at once, and each again and again: one line a minute tells of all.
    told: Mutex<[Told; Reason::OF_FAILURES.len()]>,
    /// It was told as something that does not pass quickly.
    is_loud: AtomicBool,
}

/// What lasted for less is over before anybody looks.
const WORTH_AN_END: Duration = Duration::from_secs(10);

/// A failure that has lasted for so long is worth a warning.
const LASTING_MS: i64 = 60_000;

/// How a failure is told of in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// Not at all, as it has just been told of.
    None,
    /// At info: it may be over in a moment.
    Brief,
    /// As a warning: it has lasted for a minute.
    Lasting,
}

/// How a caller has failed so far.
#[derive(Clone, Copy, Debug)]
pub struct Failing {
    /// For the first time in a row.
    pub is_first: bool,
    /// For a minute.
    pub is_lasting: bool,
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
    /// A call was answered. Cheap where that is no news. Where the log was told that calls fail, and
    /// not just for a moment, gives for how long they did, once, so that it is told of the end, too.
    pub fn answered(&self) -> Option<Duration> {
        if !self.is_reached.load(Ordering::Relaxed) {
            self.is_reached.store(true, Ordering::Relaxed);
        }
        if self.failing_since_ms.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let since_ms = self.failing_since_ms.swap(0, Ordering::Relaxed);
        let was_loud = self.is_loud.swap(false, Ordering::Relaxed);
        let lasted_ms = Utc::now().timestamp_millis() - since_ms;
        let lasted = Duration::from_millis(u64::try_from(lasted_ms).unwrap_or(0));
        (since_ms != 0 && was_loud && lasted >= WORTH_AN_END).then_some(lasted)
    }

    /// How to tell of a failure that has just been: the first for this reason at once, and then one a
    /// minute, whoever fails. If somebody `must_act` the log is told of the end of it, too.
    /// `failure` counts those of the caller, which tell where calls are answered and parts of them fail.
    pub fn line(&self, reason: Reason, failure: Failing, must_act: bool) -> Line {
        let since_ms = self.failing_since_ms.load(Ordering::Relaxed);
        {
            let told = &mut self.told()[place(&Reason::OF_FAILURES, &reason)];
            if since_ms == 0 && failure.is_first {
                told.forget();
            }
            if !told.once_a_minute() {
                return Line::None;
            }
        }
        let lasting_ms = Utc::now().timestamp_millis() - since_ms;
        let is_lasting = failure.is_lasting || since_ms != 0 && lasting_ms >= LASTING_MS;
        if is_lasting || must_act {
            self.is_loud.store(true, Ordering::Relaxed);
        }
        if is_lasting {
            Line::Lasting
        } else {
            Line::Brief
        }
    }

    /// A call failed, for this reason.
    pub fn failed(&self, reason: Reason, said: &str) {
        said.clone_into(&mut self.said.lock().unwrap_or_else(PoisonError::into_inner));
        self.failures.note(&Reason::OF_FAILURES, &reason);
        // Whoever is first says since when, and has it told of anew.
        let now = Utc::now().timestamp_millis();
        let since = &self.failing_since_ms;
        let begins = since.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        if begins.is_ok() {
            self.told().iter_mut().for_each(Told::forget);
        }
    }

    fn told(&self) -> MutexGuard<'_, [Told; Reason::OF_FAILURES.len()]> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For how long no call has been answered; zero if the last one was.
    pub fn unanswered(&self) -> Duration {
        match self.failing_since_ms.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since_ms => {
                let lasting_ms = Utc::now().timestamp_millis() - since_ms;
                Duration::from_millis(u64::try_from(lasting_ms).unwrap_or(0))
            }
        }
    }

    /// How many calls have failed.
    pub fn failures(&self) -> u64 {
        self.failures.sum()
    }

    /// The same by [`Reason::OF_FAILURES`].
    pub fn failures_by_reason(&self) -> [u64; Reason::OF_FAILURES.len()] {
        self.failures.each()
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

    #[tokio::test(start_paused = true)]
    async fn many_failures_are_told_of_once_a_minute_and_their_end_once() {
        let end = End::default();
        let failing = |is_first| Failing {
            is_first,
            is_lasting: false,
        };
        let line = |reason, is_first, must_act| end.line(reason, failing(is_first), must_act);
        let pass = async |ms: u32| {
            end.failing_since_ms.fetch_sub(ms.into(), Ordering::Relaxed);
            tokio::time::advance(Duration::from_millis(ms.into())).await;
        };
        end.failed(Reason::Unreachable, "away");
        assert_eq!(line(Reason::Unreachable, true, false), Line::Brief);
        // Another call, and the same one again; but for another reason.
        assert_eq!(line(Reason::Unreachable, true, false), Line::None);
        assert_eq!(line(Reason::Overloaded, false, false), Line::Brief);
        pass(59_999).await;
        assert_eq!(line(Reason::Unreachable, false, false), Line::None);
        pass(1).await;
        assert_eq!(line(Reason::Unreachable, false, false), Line::Lasting);
        assert_eq!(line(Reason::Unreachable, true, false), Line::None);
        assert!(end.answered() >= Some(Duration::from_secs(60)));
        assert_eq!(end.answered(), None);
        // A new row is news again; its end is not, if it was short or nobody was roused.
        for (lasted_ms, must_act, is_told) in [
            (0, true, false),
            (20_000, false, false),
            (20_000, true, true),
        ] {
            end.failed(Reason::Denied, "no");
            assert_eq!(line(Reason::Denied, false, must_act), Line::Brief);
            pass(lasted_ms).await;
            assert_eq!(end.answered().is_some(), is_told, "{lasted_ms} {must_act}");
        }
        // It answers, but something within the answers fails.
        assert_eq!(line(Reason::Other, true, false), Line::Brief);
        assert_eq!(line(Reason::Other, false, false), Line::None);
    }

    #[test]
    fn an_end_fails_from_its_first_failure_to_its_next_answer() {
        let end = End::default();
        assert_eq!(end.standing(), Standing::NotReached);
        end.answered();
        assert_eq!(end.standing(), Standing::Answers);
        end.failed(Reason::Unreachable, "no route");
        let Standing::Fails { since_ms, said } = end.standing() else {
            panic!("{:?}", end.standing());
        };
        assert_eq!(said, "no route");
        end.failed(Reason::Closed, "refused");
        let again = Standing::Fails {
            since_ms,
            said: "refused".into(),
        };
        assert_eq!((end.standing(), end.failures()), (again, 2));
        assert_eq!(end.failures_by_reason(), [1, 0, 0, 0, 1]);
        end.answered();
        assert_eq!((end.standing(), end.failures()), (Standing::Answers, 2));
    }
}
