//! Reads by the search API: windows of time, each page by page, oldest event first.
//!
//! **Our own position is a time; the server's key is a hint.** The window is the outer loop, and
//! every window starts without a key. Within a window the key saves the server work; it is thrown
//! away whenever the server no longer takes it, and reading goes on from the time of the last
//! event that was read. Events at just that time come twice then, which their ids make harmless.
//! Keys have changed their format under running exporters, so none is ever stored.
//!
//! **Catching up** cuts what lies before now into windows that are planned in the state file and
//! read in parallel. **Following** looks at the log's end once a poll interval, one search at a
//! time.
//!
//! **Late events**, which appear with a time that has been passed, are found by looking back: a
//! few seconds at each poll, some minutes every other minute, hours every few hours. A long look
//! back is read a few pages at a time between polls, so that it delays nothing. What is found
//! twice costs Elasticsearch a look-up.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinSet;
use tracing::{Instrument, info};

use super::audit_log::{Context, End, SourceError};
use crate::checkpoint::{Filled, Run, Step, Window};
use crate::clock::now_ms;
use crate::event::{AuditEvent, DAY_MS};
use crate::pipeline::{Lane, Page};

mod follow;
mod hidden;
mod newest;
mod pages;

use follow::{Follower, first_unproven, newest_seen, remember};
use pages::{Next, Pages, Turn, UNREADABLE};

/// No window is cut shorter than this to give every reader one.
const SHORTEST_WINDOW_MS: i64 = 10 * 60 * 1000;

pub(super) async fn read(context: &Arc<Context>) -> Result<End, SourceError> {
    let mut run = context
        .blocking(|checkpoint, run| checkpoint.run(run))
        .await?;
    let is_daemon = context.reading.to_ms.is_none();
    if is_daemon {
        let has_types = !context.reading.types.is_empty();
        run.position_ms = first_unproven(&run, has_types, now_ms());
    }
    let cuts = Cuts {
        readers: context.reading.readers.most(),
        longest_ms: window_ms(context),
    };
    let (mut windows, mut planned_to) = unread(&run, &cuts);
    // The look-backs end at what had been read before this start; it may be long ago.
    let started_from_ms = planned_to;
    loop {
        let end = context
            .reading
            .to_ms
            .map_or_else(now_ms, |to_ms| to_ms.min(now_ms()));
        let fresh = cuts.cut(planned_to, end);
        let plan = fresh.clone();
        context
            .blocking(move |checkpoint, run| checkpoint.add_windows(run, &plan))
            .await?;
        windows.extend(fresh);
        planned_to = planned_to.max(end);
        match read_windows(context, std::mem::take(&mut windows)).await? {
            Some(End::Done) => {}
            Some(End::ApiGone) => return Ok(End::ApiGone),
            None => return Ok(End::Done),
        }
        if is_daemon && let Some(newest_ms) = newest_seen(context) {
            remember(context, newest_ms).await?;
        }
        if !is_daemon || context.reading.exit_on_last_event {
            return Ok(End::Done);
        }
        // What came while we were catching up is worth windows of its own if it is much.
        if now_ms() - planned_to < window_ms(context) {
            break;
        }
    }
    info!("caught up, following the audit log");
    let newest_ms = newest_seen(context).max(run.newest_ms);
    let newest_ms = newest_ms.unwrap_or(run.from_ms);
    Follower::new(planned_to, newest_ms, started_from_ms)
        .follow(context)
        .await
}

/// What a run that was broken off has yet to read of what it had begun, and the end of that: windows
/// that are not finished, and what lies between windows. Following does not plan: the state file
/// knows a window once something of it has settled, and a later window may be first.
fn unread(run: &Run, cuts: &Cuts) -> (Vec<Window>, i64) {
    let mut covered_to = run.position_ms;
    let mut unread = Vec::new();
    for window in &run.windows {
        unread.extend(cuts.cut(covered_to, window.from_ms));
        if !window.is_finished() {
            unread.push(*window);
        }
        covered_to = covered_to.max(window.to_ms);
    }
    (unread, covered_to)
}

fn window_ms(context: &Context) -> i64 {
    i64::try_from(context.reading.window.as_millis())
        .unwrap_or(i64::MAX)
        .max(1)
}

/// How spans of time are cut into windows.
struct Cuts {
    /// How many windows are read at once.
    readers: usize,
    longest_ms: i64,
}

impl Cuts {
    /// Cuts `[from, to)` into windows: at most the configured length, short enough to give every
    /// reader two if the span is long enough.
    fn cut(&self, from_ms: i64, to_ms: i64) -> Vec<Window> {
        if to_ms <= from_ms {
            return Vec::new();
        }
        let readers = i64::try_from(self.readers).unwrap_or(1);
        let share = (to_ms - from_ms) / (2 * readers);
        let length = share.max(SHORTEST_WINDOW_MS).min(self.longest_ms);
        // A gap may be of a whole second, and should not lie in two windows.
        let length = (length / 1000 * 1000).max(length.min(1000));
        let mut windows = Vec::new();
        let mut start = from_ms;
        while start < to_ms {
            let end = start.saturating_add(length).min(to_ms);
            windows.push(Window {
                from_ms: start,
                to_ms: end,
                reached_ms: start,
            });
            start = end;
        }
        windows
    }
}

/// Reads windows, as many at once as is allowed, oldest first. `None`: told to stop.
async fn read_windows(
    context: &Arc<Context>,
    windows: Vec<Window>,
) -> Result<Option<End>, SourceError> {
    let mut waiting: VecDeque<Window> = windows.into();
    let mut readers = JoinSet::new();
    loop {
        while !waiting.is_empty()
            && let Some(place) = context.reading.readers.place(readers.len())
            && let Some(window) = waiting.pop_front()
        {
            let context = context.clone();
            let read = async move {
                let _place = place;
                let mut pages = Pages::new(&context, window.reached_ms, window.to_ms);
                read_window_by(&context, window, &mut pages).await
            };
            readers.spawn(read.in_current_span());
        }
        match readers.join_next().await {
            None => return Ok(Some(End::Done)),
            Some(read) => match read.expect("a reader does not panic") {
                Ok(Read::Whole) => {}
                Ok(Read::Stopped) => return Ok(None),
                Ok(Read::ApiGone) => return Ok(Some(End::ApiGone)),
                Err(failed) => return Err(failed),
            },
        }
    }
}

enum Read {
    Whole,
    Stopped,
    ApiGone,
}

/// Reads one window to its end, by pages that end there. They may start before the window: what
/// is found there is sent, but moves nothing.
async fn read_window_by(
    context: &Context,
    window: Window,
    pages: &mut Pages,
) -> Result<Read, SourceError> {
    let lane = context.new_lane();
    let mut turn = match pages.next(context).await? {
        Next::Found(turn) => turn,
        Next::Stopped => return Ok(Read::Stopped),
        Next::ApiGone => return Ok(Read::ApiGone),
    };
    loop {
        let is_last = turn.is_last;
        let reached_ms = if is_last {
            window.to_ms
        } else {
            pages.reached_ms.min(window.to_ms)
        };
        let mut reached = (reached_ms > window.from_ms).then_some(Step::Window {
            from_ms: window.from_ms,
            to_ms: window.to_ms,
            reached_ms,
        });
        if is_last {
            if let Some(newest_ms) = pages.newest.last_ms() {
                context.newest_ms.fetch_max(newest_ms, Ordering::Relaxed);
            }
            if let Some(filled) = context.filled_by_span(pages) {
                let by = reached.map(Box::new);
                reached = Some(Step::Filled { by, filled });
            }
        }
        let page = page_of(lane, turn, reached, |event| {
            // What was looked at behind the window belongs to another one.
            let inside = event.time.is_none_or(|time| time.millis() < window.to_ms);
            inside && context.wants(event)
        });
        if is_last {
            return Ok(match context.send(page).await {
                Ok(()) => Read::Whole,
                Err(_) => Read::Stopped,
            });
        }
        // The next page is on its way while this one waits to be taken.
        let (sent, next) = tokio::join!(context.send(page), pages.next(context));
        turn = match next? {
            _ if sent.is_err() => return Ok(Read::Stopped),
            Next::Found(turn) => turn,
            Next::Stopped => return Ok(Read::Stopped),
            Next::ApiGone => return Ok(Read::ApiGone),
        };
    }
}

impl Context {
    /// The gaps that a span which was read in full has filled.
    fn filled_by_span(&self, pages: &Pages) -> Option<Filled> {
        let (from_ms, to_ms) = pages.span;
        self.filled(|gap| {
            let lies_within = gap.from_ms >= from_ms && gap.to_ms <= to_ms;
            let was_met = || pages.met.iter().any(|met| met.is_same(gap));
            pages.is_proof() && gap.reason == UNREADABLE && lies_within && !was_met()
        })
    }
}

/// A page of those of the events that are wanted; the others are counted.
fn page_of(
    lane: Lane,
    turn: Turn,
    reached: Option<Step>,
    wanted: impl Fn(&AuditEvent) -> bool,
) -> Page {
    let Turn {
        mut events, gap, ..
    } = turn;
    let all = events.len();
    events.retain(wanted);
    Page {
        lane,
        filtered: (all - events.len()) as u64,
        events,
        reached,
        gap: gap.map(|gap| *gap),
    }
}

/// Up to a seventh shorter, so that many exporters do not ask at once.
pub(super) fn jittered(interval: Duration) -> Duration {
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0u8);
    let part = u32::try_from(random % 1024).expect("below 1024");
    interval - interval / 7 * part / 1024
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Checkpoint, Counts, SourceMode};

    /// Following, windows settle in any order, and the state file knows only those of which
    /// something has settled.
    #[test]
    fn after_a_break_what_no_window_covers_is_read_too() {
        let checkpoint = Checkpoint::open_in_memory().unwrap();
        let run = checkpoint.daemon_run("example", || 1000).unwrap().0.id;
        checkpoint.set_mode(run, SourceMode::Search).unwrap();
        let window = |from_ms, to_ms, reached_ms| Window {
            from_ms,
            to_ms,
            reached_ms,
        };
        let step = |from_ms, to_ms, reached_ms| Step::Window {
            from_ms,
            to_ms,
            reached_ms,
        };
        let steps = [
            step(1000, 2000, 2000),
            step(3000, 4000, 4000),
            step(5000, 7000, 6000),
            step(7000, 8000, 8000),
        ];
        checkpoint.commit(run, &steps, &Counts::default()).unwrap();
        let cuts = Cuts {
            readers: 1,
            longest_ms: 600,
        };
        let (unread, covered_to) = unread(&checkpoint.run(run).unwrap(), &cuts);
        let expected = [
            window(2000, 2600, 2000),
            window(2600, 3000, 2600),
            window(4000, 4600, 4000),
            window(4600, 5000, 4600),
            window(5000, 7000, 6000),
        ];
        assert_eq!((unread.as_slice(), covered_to), (&expected[..], 8000));
    }
}
