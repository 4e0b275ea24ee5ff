//! Following the log: its end once a poll interval, and looks back for what came late.
//!
//! **Two clocks.** A poll reads up to this machine's time, and the position goes there even if
//! nothing came, as otherwise a quiet log would seem to lag. But the events bear the cluster's
//! time. So what is read does not rest on ours: a poll begins behind the newest event that was
//! read, wherever this clock stands, up to two days back; so does the longest look back, up to seven
//! days. The newest event is kept in the state file, and a start begins there if that is before
//! the position. Where this clock is ahead, events come as they happen all the same. Where it is
//! behind, they come when it has got there; nothing is read that would be ahead of it, since a
//! single event with a wrong time would drag the position along. Where it is set back, reading goes
//! back with it.
//!
//! **A quiet log costs one small request a poll**: for the last event from the newest one on. If that
//! is the newest one, nothing has come. Anything else has the poll read in full from there, and its
//! end proven, so that the position passes nothing that a hidden event stands before.
//!
//! With a filter of types, which may make a long quiet time dear for the server, the small request
//! begins no earlier than the short look back. Nothing to be seen is then taken for nothing, as it is
//! directly behind something hidden: what is hidden there is found once something comes behind it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use super::hidden::Looker;
use super::newest::Newest;
use super::pages::{Next, Pages};
use super::{DAY_MS, Read, jittered, page_of, read_window_by};
use crate::checkpoint::{Run, Step, Window};
use crate::clock::now_ms;
use crate::pipeline::{Page, unless_stopped};
use crate::teleport::audit_log::{Context, End, SourceError};

/// Each poll looks back so far.
const SHORT_LOOK_BACK_MS: i64 = 10_000;

/// How far the longer looks go back, and how often they are made. Together with the short one
/// they read each event about seven times within its first hours.
const LOOK_BACKS: [(Duration, Duration); 2] = [
    (Duration::from_secs(5 * 60), Duration::from_secs(2 * 60)),
    (Duration::from_secs(6 * 3600), Duration::from_secs(3 * 3600)),
];

/// Pages of a longer look back that are read between two polls.
const LOOK_BACK_PAGES: usize = 4;

/// A quiet time is read again by each poll if it is no longer than this: more than a day, by which
/// clocks are most likely to be wrong.
const LONGEST_POLL_MS: i64 = 2 * DAY_MS;

/// The same of the longest look back, and of a start after a clock that was ahead.
const LONGEST_LOOK_MS: i64 = 7 * DAY_MS;

/// A clock that is set back by less is an ordinary correction.
const CORRECTION_MS: i64 = 60_000;

/// Where reading begins after a start: at the position, or at the newest event if that is older,
/// since time without events may be time that has not come yet.
pub(super) fn first_unproven(run: &Run, has_types: bool, now_ms: i64) -> i64 {
    let shown_ms = run.newest_ms.unwrap_or(run.from_ms);
    let is_ahead = run.position_ms > now_ms + CORRECTION_MS;
    if is_ahead {
        warn!(
            "this machine's clock was ahead when it was last read up to: reading again from the \
             newest event"
        );
    }
    let earliest_ms = match (is_ahead, has_types) {
        (true, _) => now_ms - LONGEST_LOOK_MS,
        (false, true) => run.position_ms,
        (false, false) => run.position_ms - LONGEST_POLL_MS,
    };
    // What was skipped is not looked at either.
    shown_ms
        .max(earliest_ms)
        .max(run.from_ms)
        .min(run.position_ms)
}

/// Follows the log from where it has been read up to, for ever.
pub(super) struct Follower {
    position_ms: i64,
    /// Everything up to these has been read, by whichever clock. Empty behind something hidden, and
    /// where nothing can be seen; `None` before the first poll.
    newest: Option<Newest>,
    /// When the newest was, or what lies behind something hidden begins.
    newest_ms: i64,
    is_behind_hidden: bool,
    /// The end of what was stepped over last: no poll comes by there again, as it would be to find
    /// out once more what is hidden there.
    behind_hidden_ms: i64,
    looks: LookBacks,
}

impl Follower {
    /// `started_from_ms` is what had been read when this process started, which may be long ago.
    pub(super) fn new(position_ms: i64, newest_ms: i64, started_from_ms: i64) -> Self {
        Self {
            position_ms,
            newest: None,
            newest_ms,
            is_behind_hidden: false,
            behind_hidden_ms: i64::MIN,
            looks: LookBacks::new(started_from_ms),
        }
    }

    pub(super) async fn follow(mut self, context: &Arc<Context>) -> Result<End, SourceError> {
        loop {
            if let Some(end) = self.poll(context, now_ms()).await? {
                return Ok(end);
            }
            let looked = self.looks.go_on(context, self.position_ms, self.newest_ms);
            if let Some(end) = looked.await? {
                return Ok(end);
            }
            let pause = sleep(jittered(context.reading.poll_interval));
            if unless_stopped(&context.stop, pause).await.is_none() {
                return Ok(End::Done);
            }
        }
    }

    async fn poll(
        &mut self,
        context: &Arc<Context>,
        now_ms: i64,
    ) -> Result<Option<End>, SourceError> {
        if now_ms < self.position_ms {
            let back_ms = self.position_ms - now_ms;
            if back_ms > CORRECTION_MS {
                warn!(
                    back_ms,
                    "this machine's clock is behind what was read up to: reading again from the \
                     newest event"
                );
            }
            self.position_ms = now_ms;
        }
        if now_ms == self.position_ms {
            return Ok(None);
        }
        let window = Window {
            from_ms: self.position_ms,
            to_ms: now_ms,
            reached_ms: self.position_ms,
        };
        if self.is_quiet(context, now_ms).await {
            let Window { from_ms, to_ms, .. } = window;
            let reached_ms = to_ms;
            let step = Step::Window {
                from_ms,
                to_ms,
                reached_ms,
            };
            let page = Page::step(context.new_lane(), step);
            if context.send(page).await.is_err() {
                return Ok(Some(End::Done));
            }
            self.position_ms = now_ms;
            return Ok(None);
        }
        let from_ms = self.poll_from(context);
        let before = self.newest.clone().unwrap_or_default();
        let mut pages = Pages::poll(context, from_ms, now_ms, before);
        pages.is_behind_hidden = self.is_behind_hidden;
        match read_window_by(context, window, &mut pages).await? {
            Read::Whole => {}
            Read::Stopped => return Ok(Some(End::Done)),
            Read::ApiGone => return Ok(Some(End::ApiGone)),
        }
        self.position_ms = now_ms;
        self.is_behind_hidden = pages.is_behind_hidden;
        if let Some(gap) = pages.met.last() {
            self.behind_hidden_ms = gap.to_ms;
        }
        // A server that knows whole seconds only shows what is of a moment to come, too; that was
        // left for the next poll.
        let mut newest = pages.newest;
        newest.forget_from(now_ms);
        let newest_ms = match self.is_behind_hidden {
            true => Some(pages.reached_ms),
            false => newest.last_ms(),
        };
        if let Some(newest_ms) = newest_ms
            && newest_ms > self.newest_ms
        {
            self.newest_ms = newest_ms;
            remember(context, newest_ms).await?;
        }
        if !newest.is_empty() || self.is_behind_hidden || self.newest.is_none() {
            self.newest = Some(newest);
        }
        Ok(None)
    }

    fn short_ms(&self) -> i64 {
        self.position_ms - SHORT_LOOK_BACK_MS
    }

    /// Whether a small request shows that nothing has come; the same three times, if it shows nothing.
    async fn is_quiet(&self, context: &Context, now_ms: i64) -> bool {
        let Some(newest) = &self.newest else {
            return false;
        };
        // Else something may have come late, before the newest.
        if !newest.is_empty() && self.newest_ms >= self.short_ms() {
            return false;
        }
        let nothing = Newest::default();
        let (newest, from_ms) = match context.reading.types.is_empty() {
            true => (newest, self.poll_from(context)),
            false => (&nothing, self.short_ms().max(self.earliest_ms(context))),
        };
        let looker = Looker {
            context,
            newest,
            from_ms,
            is_behind_hidden: false,
        };
        matches!(looker.is_end(now_ms).await, Ok(true))
    }

    fn poll_from(&self, context: &Context) -> i64 {
        let short_ms = self.short_ms();
        let from_ms = match self.newest.as_ref().map(Newest::last_ms) {
            // What is known is not asked for again.
            Some(Some(known_ms)) => short_ms.min(known_ms + 1),
            _ => short_ms.min(self.newest_ms),
        };
        let earliest_ms = short_ms.min(self.position_ms - LONGEST_POLL_MS);
        from_ms.max(earliest_ms).max(self.earliest_ms(context))
    }

    fn earliest_ms(&self, context: &Context) -> i64 {
        self.behind_hidden_ms.max(context.reading.from_ms)
    }
}

/// Keeps the newest event for the next start.
pub(super) async fn remember(context: &Context, newest_ms: i64) -> Result<(), SourceError> {
    let kept = context.blocking(move |checkpoint, run| checkpoint.set_newest(run, newest_ms));
    Ok(kept.await?)
}

/// The longer looks back, of which one at a time is under way.
struct LookBacks {
    last: [Option<Instant>; LOOK_BACKS.len()],
    /// What had been read when this process started: the first looks go back from there.
    started_from_ms: i64,
    under_way: VecDeque<Pages>,
}

impl LookBacks {
    fn new(started_from_ms: i64) -> Self {
        Self {
            last: [None; LOOK_BACKS.len()],
            started_from_ms,
            under_way: VecDeque::new(),
        }
    }

    /// Begins a look if one is due, and reads a few pages of the one under way.
    async fn go_on(
        &mut self,
        context: &Context,
        position_ms: i64,
        newest_ms: i64,
    ) -> Result<Option<End>, SourceError> {
        self.begin(context, position_ms, newest_ms);
        let Some(pages) = self.under_way.front_mut() else {
            return Ok(None);
        };
        let lane = context.new_lane();
        for _ in 0..LOOK_BACK_PAGES {
            let turn = match pages.next(context).await? {
                Next::Found(turn) => turn,
                Next::Stopped => return Ok(Some(End::Done)),
                Next::ApiGone => return Ok(Some(End::ApiGone)),
            };
            let is_last = turn.is_last;
            let filled = is_last.then(|| context.filled_by_span(pages)).flatten();
            let reached = filled.map(|filled| Step::Filled { by: None, filled });
            let page = page_of(lane, turn, reached, |event| context.wants(event));
            if context.send(page).await.is_err() {
                return Ok(Some(End::Done));
            }
            if is_last {
                self.under_way.pop_front();
                break;
            }
        }
        Ok(None)
    }

    fn begin(&mut self, context: &Context, position_ms: i64, newest_ms: i64) {
        if !self.under_way.is_empty() {
            return;
        }
        // The longest look that is due serves the shorter ones too.
        for (place, (back, every)) in LOOK_BACKS.iter().enumerate().rev() {
            let is_first = self.last[place].is_none();
            if self.last[place].is_some_and(|last| last.elapsed() < *every) {
                continue;
            }
            for shorter in &mut self.last[..=place] {
                *shorter = Some(Instant::now());
            }
            let back_ms = i64::try_from(back.as_millis()).expect("hours in milliseconds");
            let is_longest = place == LOOK_BACKS.len() - 1;
            let before = |ms: i64| {
                let mut from_ms = ms - back_ms;
                if is_longest {
                    // From something that is known to be there: see `pages`.
                    from_ms = from_ms.min(newest_ms).max(ms - LONGEST_LOOK_MS);
                }
                from_ms.max(context.reading.from_ms)
            };
            let started_from_ms = self.started_from_ms.min(position_ms);
            if !is_first {
                self.look(context, before(position_ms), position_ms);
            } else if started_from_ms >= before(position_ms) {
                self.look(context, before(started_from_ms), position_ms);
            } else {
                // What lies between was caught up with just now, long after it happened.
                self.look(context, before(started_from_ms), started_from_ms);
                self.look(context, before(position_ms), position_ms);
            }
            return;
        }
    }

    fn look(&mut self, context: &Context, from_ms: i64, to_ms: i64) {
        if from_ms < to_ms {
            debug!(from_ms, to_ms, "looking back for late events");
            let pages = Pages::new(context, from_ms, to_ms);
            self.under_way.push_back(pages);
        }
    }
}

/// The newest event that catching up has seen, if there was one.
pub(super) fn newest_seen(context: &Context) -> Option<i64> {
    let newest_ms = context.newest_ms.load(Ordering::Relaxed);
    (newest_ms > i64::MIN).then_some(newest_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Checkpoint, Counts, SourceMode};

    const HOUR_MS: i64 = 3_600_000;

    #[test]
    fn a_start_begins_at_the_newest_event_where_time_without_events_proves_nothing() {
        let checkpoint = Checkpoint::open_in_memory().unwrap();
        let start_ms = 100 * DAY_MS;
        let id = checkpoint.daemon_run("example", || start_ms).unwrap().0.id;
        checkpoint.set_mode(id, SourceMode::Search).unwrap();
        let position_ms = start_ms + 30 * DAY_MS;
        let step = Step::Window {
            from_ms: start_ms,
            to_ms: position_ms,
            reached_ms: position_ms,
        };
        checkpoint.commit(id, &[step], &Counts::default()).unwrap();
        for (newest_ms, now_ms, any, typed) in [
            // Nothing was seen: as far back as polls go, and not beyond.
            (
                None,
                position_ms,
                position_ms - LONGEST_POLL_MS,
                position_ms,
            ),
            (
                Some(position_ms - HOUR_MS),
                position_ms + 1,
                position_ms - HOUR_MS,
                position_ms,
            ),
            // The clock was a day ahead: what came before it was set right counts.
            (
                Some(position_ms - 25 * HOUR_MS),
                position_ms - 24 * HOUR_MS,
                position_ms - 25 * HOUR_MS,
                position_ms - 25 * HOUR_MS,
            ),
            // Read after the position by an unfinished window.
            (
                Some(position_ms + 5),
                position_ms + 9,
                position_ms,
                position_ms,
            ),
        ] {
            let run = Run {
                newest_ms,
                ..checkpoint.run(id).unwrap()
            };
            assert_eq!(first_unproven(&run, false, now_ms), any, "{newest_ms:?}");
            assert_eq!(first_unproven(&run, true, now_ms), typed, "{newest_ms:?}");
        }
    }
}
