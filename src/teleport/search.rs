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
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tracing::{debug, info};

use super::audit_log::{Context, End, SourceError, now_ms};
use crate::checkpoint::{Run, Step, Window};
use crate::event::AuditEvent;
use crate::pipeline::{Lane, Page, unless_stopped};

mod pages;

use pages::{Next, Pages};

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

/// No window is cut shorter than this to give every reader one.
const SHORTEST_WINDOW_MS: i64 = 10 * 60 * 1000;

pub(super) async fn read(context: &Arc<Context>) -> Result<End, SourceError> {
    let run = context
        .blocking(|checkpoint, run| checkpoint.run(run))
        .await?;
    let cuts = Cuts {
        readers: context.reading.concurrency,
        longest_ms: window_ms(context),
    };
    let (mut windows, mut planned_to) = unread(&run, &cuts);
    // The look-backs end at what had been read before this start; it may be long ago.
    let mut looks = LookBacks::new(planned_to);
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
        let closed = context.reading.to_ms.is_some() || context.reading.exit_on_last_event;
        if closed {
            return Ok(End::Done);
        }
        // What came while we were catching up is worth windows of its own if it is much.
        if now_ms() - planned_to < window_ms(context) {
            break;
        }
    }
    info!("caught up, following the audit log");
    follow(context, planned_to, &mut looks).await
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
        while readers.len() < context.reading.concurrency
            && let Some(window) = waiting.pop_front()
        {
            let context = context.clone();
            readers.spawn(async move { read_window(&context, window, window.reached_ms).await });
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

/// Reads one window to its end. Starts at `from_ms`, which may lie before the window: what is
/// found there is sent, but moves nothing.
async fn read_window(context: &Context, window: Window, from_ms: i64) -> Result<Read, SourceError> {
    let lane = context.new_lane();
    let mut pages = Pages::new(context, from_ms, window.to_ms);
    let mut found = match pages.next(context).await? {
        Next::Found(found) => found,
        Next::Stopped => return Ok(Read::Stopped),
        Next::ApiGone => return Ok(Read::ApiGone),
    };
    loop {
        let is_last = found.last_key.is_empty();
        let reached_ms = if is_last {
            window.to_ms
        } else {
            pages.reached_ms
        };
        let reached = (reached_ms > window.from_ms).then_some(Step::Window {
            from_ms: window.from_ms,
            to_ms: window.to_ms,
            reached_ms,
        });
        let page = page_of(lane, found.events, reached, |event| {
            // The server's upper end is inclusive, a window's is not.
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
        found = match next? {
            _ if sent.is_err() => return Ok(Read::Stopped),
            Next::Found(found) => found,
            Next::Stopped => return Ok(Read::Stopped),
            Next::ApiGone => return Ok(Read::ApiGone),
        };
    }
}

/// A page of those of the events that are wanted; the others are counted.
fn page_of(
    lane: Lane,
    mut events: Vec<AuditEvent>,
    reached: Option<Step>,
    wanted: impl Fn(&AuditEvent) -> bool,
) -> Page {
    let all = events.len();
    events.retain(wanted);
    Page {
        lane,
        filtered: (all - events.len()) as u64,
        events,
        reached,
        gap: None,
    }
}

/// Looks at the log's end once a poll interval, for ever.
async fn follow(
    context: &Arc<Context>,
    mut position_ms: i64,
    looks: &mut LookBacks,
) -> Result<End, SourceError> {
    loop {
        let now = now_ms();
        if now > position_ms {
            let window = Window {
                from_ms: position_ms,
                to_ms: now,
                reached_ms: position_ms,
            };
            let from_ms = (position_ms - SHORT_LOOK_BACK_MS).max(context.reading.from_ms);
            match read_window(context, window, from_ms).await? {
                Read::Whole => {}
                Read::Stopped => return Ok(End::Done),
                Read::ApiGone => return Ok(End::ApiGone),
            }
            position_ms = now;
        }
        if let Some(end) = looks.go_on(context, position_ms).await? {
            return Ok(end);
        }
        if unless_stopped(
            &context.stop,
            sleep(jittered(context.reading.poll_interval)),
        )
        .await
        .is_none()
        {
            return Ok(End::Done);
        }
    }
}

/// Up to a seventh shorter, so that many exporters do not ask at once.
pub(super) fn jittered(interval: Duration) -> Duration {
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0u8);
    let part = u32::try_from(random % 1024).expect("below 1024");
    interval - interval / 7 * part / 1024
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
    ) -> Result<Option<End>, SourceError> {
        self.begin(context, position_ms);
        let Some(pages) = self.under_way.front_mut() else {
            return Ok(None);
        };
        let lane = context.new_lane();
        for _ in 0..LOOK_BACK_PAGES {
            let found = match pages.next(context).await? {
                Next::Found(found) => found,
                Next::Stopped => return Ok(Some(End::Done)),
                Next::ApiGone => return Ok(Some(End::ApiGone)),
            };
            let is_last = found.last_key.is_empty();
            let page = page_of(lane, found.events, None, |event| context.wants(event));
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

    fn begin(&mut self, context: &Context, position_ms: i64) {
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
            let before = |ms: i64| (ms - back_ms).max(context.reading.from_ms);
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
