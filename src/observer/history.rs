//! Lag and rate over the last hour.

use std::collections::VecDeque;

use crate::telemetry::Stats;

/// How many points make an hour.
const MOST: usize = 360;

/// How far apart they are.
pub(super) const EVERY_SECONDS: u32 = 10;

/// A point every ten seconds, for an hour; a few kilobytes.
#[derive(Debug, Default)]
pub(super) struct History {
    points: VecDeque<Point>,
    last: Option<(i64, u64)>,
}

/// How it stood at a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    /// ms since 1970.
    pub at_ms: i64,
    /// How far behind the position was; `None` while it was not known.
    pub lag_seconds: Option<f64>,
    /// Documents that settled a second since the point before.
    pub per_second: f64,
}

impl History {
    pub(super) fn note(&mut self, stats: &Stats, now_ms: i64) {
        let settled = stats.settled();
        let (last_ms, before) = self
            .last
            .replace((now_ms, settled))
            .unwrap_or((now_ms, settled));
        // A clock that is set back gives no negative time.
        let seconds = (now_ms - last_ms).max(1) as f64 / 1000.0;
        let per_second = settled.saturating_sub(before) as f64 / seconds;
        if self.points.len() == MOST {
            self.points.pop_front();
        }
        self.points.push_back(Point {
            at_ms: now_ms,
            lag_seconds: stats.lag(now_ms).map(|lag| lag.as_secs_f64()),
            per_second,
        });
    }

    /// The oldest first.
    pub(super) fn points(&self) -> impl Iterator<Item = &Point> {
        self.points.iter()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn an_hour_is_kept_and_no_more() {
        let stats = Stats::default();
        let mut history = History::default();
        history.note(&stats, 1_000_000);
        stats.position_ms.store(1_004_000, Ordering::Relaxed);
        Stats::add(&stats.created, 40);
        history.note(&stats, 1_010_000);
        let points: Vec<_> = history.points().copied().collect();
        let point = |at_ms, lag_seconds, per_second| Point {
            at_ms,
            lag_seconds,
            per_second,
        };
        let first = point(1_000_000, None, 0.0);
        assert_eq!(points, [first, point(1_010_000, Some(6.0), 4.0)]);
        for n in 0..1000 {
            history.note(&stats, 1_020_000 + n * 10_000);
        }
        let kept: Vec<_> = history.points().collect();
        assert_eq!((kept.len(), kept[MOST - 1].at_ms), (MOST, 11_010_000));
    }
}
