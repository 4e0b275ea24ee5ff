//! How fast Teleport is asked, all readers together: as fast as it answers, until it says that it
//! is too much. Its limit on searches is shared with its own users.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::telemetry::Told;

/// The pause between two requests after the first refusal: about half of what one reader gets done.
const FIRST: Duration = Duration::from_millis(100);

/// Never slower than this; the strictest limit known of, five searches a minute, lets it pass.
const SLOWEST: Duration = Duration::from_secs(12);

/// A pause below this is none.
const NONE: Duration = Duration::from_millis(20);

/// Halves the rate at each refusal and lets it grow by a third with each answer.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Between two requests.
    pause: Duration,
    next: Option<Instant>,
    slowed: Option<Instant>,
    /// That it is halved: a rate at its limit is, again and again.
    told: Told,
}

impl Pace {
    /// Waits for the turn of one more request. Dropped, its turn is lost, no more.
    pub(super) async fn turn(&self) {
        let turn = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if state.pause.is_zero() {
                return;
            }
            let now = Instant::now();
            let turn = state.next.map_or(now, |next| next.max(now));
            state.next = Some(turn + state.pause);
            turn
        };
        sleep_until(turn).await;
    }

    /// It was too much. Refusals of requests that were made before the rate was last halved say
    /// nothing new, so it is halved once in the time of one pause. The new pause, if that is worth a line.
    pub(super) fn halve(&self) -> Option<Duration> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if state
            .slowed
            .is_some_and(|slowed| now - slowed < state.pause)
        {
            return None;
        }
        state.pause = (state.pause * 2).clamp(FIRST, SLOWEST);
        state.slowed = Some(now);
        state.next = Some(now + state.pause);
        state.told.once_a_minute().then_some(state.pause)
    }

    /// It was answered.
    pub(super) fn answered(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.pause.is_zero() {
            state.pause = state.pause * 3 / 4;
            if state.pause < NONE {
                state.pause = Duration::ZERO;
                state.slowed = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_refusal_halves_the_rate_and_answers_bring_it_back() {
        let pace = Pace::default();
        let elapsed = async |requests: u32| {
            let began = Instant::now();
            for _ in 0..requests {
                pace.turn().await;
            }
            began.elapsed()
        };
        assert_eq!(elapsed(1000).await, Duration::ZERO);
        assert_eq!(pace.halve(), Some(FIRST));
        assert_eq!(pace.halve(), None, "of the same moment");
        assert_eq!(elapsed(10).await, FIRST * 10);
        assert_eq!(pace.halve(), None, "it has just been told of");
        assert_eq!(elapsed(10).await, FIRST * 20);
        let mut told = 0;
        for _ in 0..20 {
            tokio::time::advance(SLOWEST).await;
            told += usize::from(pace.halve().is_some());
        }
        assert_eq!(told, 4, "once a minute");
        assert_eq!(elapsed(5).await, SLOWEST * 5);
        for _ in 0..60 {
            pace.answered();
        }
        assert_eq!(elapsed(1000).await, Duration::ZERO);
    }
}
