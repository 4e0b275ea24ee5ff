//! When credentials end, and when to say so.

use chrono::{DateTime, TimeDelta, Utc};

/// From when until when credentials hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// Not before this.
    pub start: DateTime<Utc>,
    /// Not after this.
    pub end: DateTime<Utc>,
}

impl Life {
    /// The same from milliseconds since 1970; `None` if there are no such times.
    pub fn from_millis(start_ms: i64, end_ms: i64) -> Option<Self> {
        let [start, end] = [start_ms, end_ms].map(DateTime::from_timestamp_millis);
        Some(Self {
            start: start?,
            end: end?,
        })
    }

    /// Whether they end so soon that somebody should know: within a week, or within the last quarter
    /// of a life shorter than four weeks.
    pub fn ends_soon(&self, now: DateTime<Utc>) -> bool {
        let whole = self.end - self.start;
        self.end - now <= (whole / 4).min(TimeDelta::days(7))
    }
}

/// Says when it is time to warn that credentials end: once it is soon, each time that half of what
/// was left has passed, and every hour once they have ended.
#[derive(Debug, Default)]
pub struct Alarm {
    /// What ends, and what was left of it at the last warning.
    last: Option<(DateTime<Utc>, TimeDelta)>,
}

impl Alarm {
    /// Whether to say it now.
    pub fn is_due(&mut self, life: Life, now: DateTime<Utc>) -> bool {
        let end = life.end;
        let left = end - now;
        if !life.ends_soon(now) {
            return false;
        }
        let (minute, zero) = (TimeDelta::minutes(1), TimeDelta::zero());
        let next = match self.last {
            Some((of, last)) if of == end && last > minute => last / 2,
            Some((of, last)) if of == end && last > zero => zero,
            Some((of, last)) if of == end => last - TimeDelta::hours(1),
            _ => left,
        };
        let is_due = left <= next;
        if is_due {
            self.last = Some((end, left));
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_told_more_often_the_nearer_it_is() {
        let start = Utc::now();
        let life = Life {
            start,
            end: start + TimeDelta::hours(40),
        };
        let mut alarm = Alarm::default();
        let minutes = (0..43 * 60).map(TimeDelta::minutes);
        let due = minutes.filter(|minute| alarm.is_due(life, start + *minute));
        let left: Vec<i64> = due.map(|minute| 40 * 60 - minute.num_minutes()).collect();
        assert_eq!(left, [600, 300, 150, 75, 37, 18, 9, 4, 2, 1, 0, -60, -120]);
    }
}
