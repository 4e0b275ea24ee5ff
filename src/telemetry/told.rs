//! How often the log is told of what goes on.

use std::time::Duration;

use tokio::time::Instant;

/// When the log was last told of something that repeats or lasts. It is worth a line at once and then one
/// a minute, for as long as it goes on; the line says how often or for how long it has been so, since
/// those in between are left out. Less often, and whoever looks at the end of a log would miss what
/// holds it up; more often, and it would hide all else.
#[derive(Debug, Default)]
pub struct Told(Option<Instant>);

const EVERY: Duration = Duration::from_secs(60);

impl Told {
    /// Whether it is worth a line now. If so it counts as told.
    pub fn once_a_minute(&mut self) -> bool {
        let now = Instant::now();
        let is_due = self.0.is_none_or(|told| now - told >= EVERY);
        if is_due {
            self.0 = Some(now);
        }
        is_due
    }

    /// It is over, or another now: the next time is news.
    pub fn forget(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_goes_on_is_told_at_once_and_then_each_minute() {
        let mut told = Told::default();
        let mut lines = Vec::new();
        for second in 0..150 {
            if second == 130 {
                told.forget();
            }
            if told.once_a_minute() {
                lines.push(second);
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(lines, [0, 60, 120, 130]);
    }
}
