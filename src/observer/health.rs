//! Whether the program does its work, and how that is said.

use std::fmt;
use std::iter::Sum;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::picture::time;
use crate::checkpoint::Summary;
use crate::telemetry::{End, Standing, Stats};

/// An end that fails for less than this is on its way back: a node restarts, a connection is made
/// anew.
const FAILS_AFTER_MS: i64 = 10_000;

/// Behind by more than this, the log is being caught up with.
const BEHIND: Duration = Duration::from_secs(120);

/// What keeps the program from doing its work.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Empty: both ends have answered, and what there is goes on its way.
    pub troubles: Vec<Trouble>,
}

/// One thing that keeps the program from doing its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// This end has never answered.
    NotReached(&'static str),
    /// This end does not do what it is asked.
    Fails {
        /// Which one.
        end: &'static str,
        /// Since when, ms since 1970.
        since_ms: i64,
        /// What was last said about it.
        said: String,
    },
    /// The run has ended, and begins anew.
    Ended {
        /// Since when, ms since 1970.
        since_ms: i64,
        /// Why, in words that may be logged.
        said: String,
    },
    /// There are newer events than those that are stored, and nothing moves.
    Stalled {
        /// Since when, ms since 1970.
        since_ms: i64,
    },
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReached(end) => write!(f, "{end} has not answered yet"),
            Self::Fails {
                end,
                since_ms,
                said,
            } => write!(f, "{end} fails since {}: {said}", time(*since_ms)),
            Self::Ended { since_ms, said } => {
                write!(f, "not followed since {}: {said}", time(*since_ms))
            }
            Self::Stalled { since_ms } => write!(
                f,
                "stalled: nothing has moved since {}, though Teleport has newer events",
                time(*since_ms)
            ),
        }
    }
}

impl Health {
    pub(super) fn of(stats: &Stats, motion: &Motion, failed: Option<&Failed>, now_ms: i64) -> Self {
        if let Some(failed) = failed.filter(|failed| !failed.is_over(stats)) {
            let (since_ms, said) = (failed.since_ms, failed.said.clone());
            return Self {
                troubles: vec![Trouble::Ended { since_ms, said }],
            };
        }
        let ends = [
            ("Teleport", &stats.teleport),
            ("Elasticsearch", &stats.elasticsearch),
        ];
        if stats.lead.is_waiting() {
            // It does its work, which is to wait; only this end tells it when to begin.
            let (name, end) = ends[1];
            let troubles = of_end(name, end, now_ms).into_iter().collect();
            return Self { troubles };
        }
        let mut troubles: Vec<_> = ends
            .into_iter()
            .filter_map(|(name, end)| of_end(name, end, now_ms))
            .collect();
        if troubles.is_empty()
            && let Some(since_ms) = motion.still_since(now_ms)
            && stats.newest_at_teleport_ms.load(Ordering::Relaxed) >= stats.unknown_from()
        {
            troubles.push(Trouble::Stalled { since_ms });
        }
        Self { troubles }
    }

    /// Whether nothing moves, though both ends answer.
    pub fn is_stalled(&self) -> bool {
        let mut troubles = self.troubles.iter();
        troubles.any(|trouble| matches!(trouble, Trouble::Stalled { .. }))
    }
}

/// A run that has ended, though nobody wanted it to.
#[derive(Debug)]
pub(super) struct Failed {
    /// When the first of those did that have ended in a row, ms since 1970.
    pub(super) since_ms: i64,
    /// When this one did.
    pub(super) last_ms: i64,
    /// Why, in words that may be logged.
    pub(super) said: String,
}

impl Failed {
    /// Whether another one does its work: it commits, which it does in a quiet log as well.
    pub(super) fn is_over(&self, stats: &Stats) -> bool {
        Stats::time(&stats.committed_ms).is_some_and(|committed_ms| committed_ms > self.last_ms)
    }
}

fn of_end(name: &'static str, end: &End, now_ms: i64) -> Option<Trouble> {
    match end.standing() {
        Standing::Answers => None,
        Standing::NotReached => Some(Trouble::NotReached(name)),
        Standing::Fails { since_ms, said } => {
            (now_ms - since_ms >= FAILS_AFTER_MS).then_some(Trouble::Fails {
                end: name,
                since_ms,
                said,
            })
        }
    }
}

/// Whether anything moves: a document settles, or the position goes on.
#[derive(Debug)]
pub(super) struct Motion {
    still_after: Duration,
    settled: u64,
    position_ms: i64,
    moved_ms: i64,
}

impl Motion {
    pub(super) fn new(still_after: Duration, now_ms: i64) -> Self {
        Self {
            still_after,
            settled: 0,
            position_ms: 0,
            moved_ms: now_ms,
        }
    }

    pub(super) fn look(&mut self, stats: &Stats, now_ms: i64) {
        let settled = stats.settled();
        let position_ms = stats.position_ms.load(Ordering::Relaxed);
        if settled != self.settled || position_ms != self.position_ms {
            (self.settled, self.position_ms) = (settled, position_ms);
            self.moved_ms = now_ms;
        }
    }

    pub(super) fn still_since(&self, now_ms: i64) -> Option<i64> {
        let still_ms = u128::try_from(now_ms - self.moved_ms).unwrap_or(0);
        (still_ms >= self.still_after.as_millis()).then_some(self.moved_ms)
    }
}

/// What is not where it should be, though reading goes on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Buts {
    gaps: u64,
    dead_letters: u64,
    blocked_indices: u64,
}

impl Buts {
    pub(super) fn of(stats: &Stats, summary: Option<&Summary>) -> Self {
        Self {
            gaps: summary.map_or(0, |summary| summary.gaps),
            dead_letters: summary.map_or(0, |summary| summary.dead_letters.count),
            blocked_indices: Stats::get(&stats.blocked_indices),
        }
    }
}

impl Sum for Buts {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            gaps: sum.gaps + one.gaps,
            dead_letters: sum.dead_letters + one.dead_letters,
            blocked_indices: sum.blocked_indices + one.blocked_indices,
        })
    }
}

/// `, but for 2 open gaps and 1 dead letter`, or nothing if there is nothing.
impl fmt::Display for Buts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let buts: Vec<String> = [
            (self.gaps, "open gap", "open gaps"),
            (self.dead_letters, "dead letter", "dead letters"),
            (self.blocked_indices, "blocked index", "blocked indices"),
        ]
        .into_iter()
        .filter_map(|(count, one, many)| match count {
            0 => None,
            1 => Some(format!("1 {one}")),
            count => Some(format!("{count} {many}")),
        })
        .collect();
        match buts.split_last() {
            None => Ok(()),
            Some((last, [])) => write!(f, ", but for {last}"),
            Some((last, rest)) => write!(f, ", but for {} and {last}", rest.join(", ")),
        }
    }
}

/// How it stands, in one sentence.
pub(super) fn sentence(health: &Health, stats: &Stats, buts: Buts, now_ms: i64) -> String {
    let position = Stats::time(&stats.position_ms);
    let complete = match position {
        None => String::new(),
        Some(position_ms) => format!("complete up to {}", time(position_ms)),
    };
    if let Some(trouble) = health.troubles.first() {
        return match trouble {
            Trouble::NotReached(_) => format!("Starting: {trouble}."),
            _ if complete.is_empty() => format!("Held up: {trouble}."),
            _ => format!("Held up, {complete}: {trouble}."),
        };
    }
    if stats.lead.is_waiting() {
        return "Standing by: another process leads.".to_owned();
    }
    let Some(lag) = stats.lag(now_ms) else {
        return "Starting: nothing has been committed yet.".to_owned();
    };
    if lag >= BEHIND {
        format!("Catching up, {complete}, {} behind{buts}.", roughly(lag))
    } else {
        format!("Up to date, {complete}{buts}.")
    }
}

/// `3 min`, `2 h`, `5 d`: the largest unit of which there are at least two.
fn roughly(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{BlockedSummary, DeadLetterSummary};
    use crate::telemetry::Reason;

    const NOW: i64 = 1_790_000_000_000;
    const STALL: Duration = Duration::from_secs(300);

    fn running() -> Stats {
        let stats = Stats::default();
        stats.teleport.answered();
        stats.elasticsearch.answered();
        stats.position_ms.store(NOW - 2000, Ordering::Relaxed);
        stats
    }

    fn said(stats: &Stats, motion: &Motion, summary: Option<&Summary>) -> String {
        let buts = Buts::of(stats, summary);
        sentence(&Health::of(stats, motion, None, NOW), stats, buts, NOW)
    }

    #[test]
    fn each_state_has_its_sentence() {
        let motion = Motion::new(STALL, NOW);
        let stats = Stats::default();
        assert_eq!(
            said(&stats, &motion, None),
            "Starting: Teleport has not answered yet."
        );
        stats.teleport.answered();
        assert_eq!(
            said(&stats, &motion, None),
            "Starting: Elasticsearch has not answered yet."
        );
        stats.elasticsearch.answered();
        assert_eq!(
            said(&stats, &motion, None),
            "Starting: nothing has been committed yet."
        );

        let stats = running();
        assert_eq!(
            said(&stats, &motion, None),
            "Up to date, complete up to 2026-09-21T14:13:18Z."
        );
        stats.position_ms.store(NOW - 7_500_000, Ordering::Relaxed);
        assert_eq!(
            said(&stats, &motion, None),
            "Catching up, complete up to 2026-09-21T12:08:20Z, 2 h behind."
        );
        stats.blocked_indices.store(1, Ordering::Relaxed);
        let mut summary = Summary {
            cluster: None,
            runs: Vec::new(),
            gaps: 0,
            closed_gaps: 3,
            newest_gaps: Vec::new(),
            dead_letters: DeadLetterSummary::default(),
            blocked: BlockedSummary::default(),
        };
        assert_eq!(
            said(&stats, &motion, Some(&summary)),
            "Catching up, complete up to 2026-09-21T12:08:20Z, 2 h behind, but for 1 blocked index."
        );
        summary.gaps = 2;
        summary.dead_letters.count = 7;
        assert_eq!(
            said(&stats, &motion, Some(&summary)),
            "Catching up, complete up to 2026-09-21T12:08:20Z, 2 h behind, but for 2 open gaps, \
             7 dead letters and 1 blocked index."
        );
    }

    #[test]
    fn an_end_is_in_trouble_when_it_has_failed_for_a_while() {
        let stats = running();
        stats.elasticsearch.failed(Reason::Overloaded, "status 503");
        let Standing::Fails { since_ms, .. } = stats.elasticsearch.standing() else {
            panic!("it fails");
        };
        let motion = Motion::new(STALL, since_ms);
        let at = |now_ms| Health::of(&stats, &motion, None, now_ms);
        assert_eq!(at(since_ms + FAILS_AFTER_MS - 1), Health::default());
        let health = at(since_ms + FAILS_AFTER_MS);
        let words = format!("Elasticsearch fails since {}: status 503", time(since_ms));
        assert_eq!(health.troubles[0].to_string(), words);
        let words = format!("Held up, complete up to 2026-09-21T14:13:18Z: {words}.");
        assert_eq!(sentence(&health, &stats, Buts::default(), since_ms), words);
        stats.elasticsearch.answered();
        assert_eq!(at(since_ms + FAILS_AFTER_MS), Health::default());
    }

    #[test]
    fn what_moves_is_not_stalled_however_far_behind() {
        let stats = running();
        let mut motion = Motion::new(STALL, NOW);
        motion.look(&stats, NOW);
        let step = 299_999;
        let later = NOW + step;
        motion.look(&stats, later);
        assert_eq!(motion.still_since(later), None);
        assert_eq!(motion.still_since(later + 1), Some(NOW));
        // Either of them is enough.
        Stats::add(&stats.created, 1);
        motion.look(&stats, later);
        assert_eq!(motion.still_since(later + step), None);
        stats.position_ms.fetch_add(1, Ordering::Relaxed);
        motion.look(&stats, later + step);
        assert_eq!(motion.still_since(later + 2 * step), None);
        // Only if Teleport has something that is not known.
        let known_ms = NOW + 7;
        stats.newest_settled_ms.store(known_ms, Ordering::Relaxed);
        for (newest_ms, is_stalled) in [(0, false), (known_ms, false), (known_ms + 1, true)] {
            let newest = &stats.newest_at_teleport_ms;
            newest.store(newest_ms, Ordering::Relaxed);
            let health = Health::of(&stats, &motion, None, later + 3 * step);
            assert_eq!(health.is_stalled(), is_stalled, "{newest_ms}");
        }
        let health = Health::of(&stats, &motion, None, later + 3 * step);
        assert_eq!(
            health.troubles[0].to_string(),
            "stalled: nothing has moved since 2026-09-21T14:23:19Z, though Teleport has newer \
             events"
        );
    }
}
