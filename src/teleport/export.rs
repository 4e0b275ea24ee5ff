//! Reads by the export API: the chunks of each UTC day, several at once, in no order.
//!
//! A chunk never changes once it is listed, and a stream that ends well has given all of it. Its
//! cursor goes into the state file with the events before it; a cursor that the server no longer
//! takes is dropped and the chunk read from its start.
//!
//! No day is ever marked as complete by the server: chunks appear late. Today and yesterday are
//! listed at every poll, the six days before them every ten minutes; older days once per start of
//! the program, if the state file has them open. What is listed no more is forgotten.
//!
//! Days are those of this machine's clock. One that is ahead by hours or days only lists days that
//! are empty yet, as those before are listed all the same; one that is behind lists a new day late.
//! Where it is set back, the last days are listed again.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use chrono::{Days, NaiveDate};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tracing::{Instrument, warn};

use crate::clock::now_ms;
use crate::pipeline::retry::Backoff;
use crate::teleport::audit_log::{Answer, Context, End, SourceError, day_of};
use crate::teleport::client::Remedy;
use crate::teleport::search::jittered;

mod chunk;

use chunk::{Chunk, Read};

/// Days behind today that are listed again and again.
const POLLED_DAYS: u64 = 7;

/// How often those before yesterday are.
const OLD_DAYS_EVERY: Duration = Duration::from_secs(600);

/// How long a chunk that breaks at the same event each time leaves its place to others.
const STUCK_PAUSE: Duration = Duration::from_secs(60);

/// The days that are looked at, and which of their chunks readers have or had.
struct Listed {
    next_new: NaiveDate,
    polled: HashMap<NaiveDate, HashSet<String>>,
    old_days_listed: Instant,
}

pub(super) async fn read(context: &Arc<Context>) -> Result<End, SourceError> {
    let run = context
        .blocking(|checkpoint, run| checkpoint.run(run))
        .await?;
    // Days before the position are settled but for late chunks.
    let first = day_of(context.reading.from_ms);
    let resumed = day_of(run.position_ms.min(now_ms()))
        .checked_sub_days(Days::new(POLLED_DAYS))
        .map_or(first, |day| day.max(first));
    let mut days = Listed {
        next_new: resumed,
        polled: HashMap::new(),
        old_days_listed: Instant::now(),
    };
    let mut waiting: VecDeque<Chunk> = VecDeque::new();
    let mut readers = JoinSet::new();
    let mut next_pass = Instant::now();
    let mut found_nothing_new = false;
    let mut tidied = NaiveDate::MIN;
    let mut stuck: VecDeque<(Instant, Chunk)> = VecDeque::new();
    loop {
        let today = day_of(now_ms());
        days.mind_the_clock(first, today);
        while let Some((_, chunk)) = stuck.pop_front_if(|(due, _)| *due <= Instant::now()) {
            waiting.push_back(chunk);
        }
        if context.reading.to_ms.is_none() && tidied < today {
            forget_old_days(context).await?;
            tidied = today;
        }
        while !waiting.is_empty()
            && let Some(place) = context.reading.readers.place(readers.len())
            && let Some(chunk) = waiting.pop_front()
        {
            let context = context.clone();
            let read = async move {
                let _place = place;
                chunk.read(&context).await
            };
            readers.spawn(read.in_current_span());
        }
        let all_read = waiting.is_empty() && readers.is_empty() && stuck.is_empty();
        let idle = all_read && !days.has_new(context);
        let stuck_due = stuck.front().map(|(due, _)| *due);
        let closed = context.reading.to_ms.is_some() || context.reading.exit_on_last_event;
        if closed && idle && found_nothing_new {
            return Ok(End::Done);
        }
        let hurry = days.has_new(context) || (closed && idle);
        let room = waiting.len() < context.reading.readers.most();
        // A reader is a task of its own, and the timer may be set anew: nothing is lost.
        tokio::select! {
            biased;
            () = context.stop.cancelled() => return Ok(End::Done),
            Some(read) = readers.join_next(), if !readers.is_empty() => {
                match read.expect("a reader does not panic") {
                    Read::Whole => {}
                    Read::Stuck(chunk) => stuck.push_back((Instant::now() + STUCK_PAUSE, chunk)),
                    Read::Stopped => return Ok(End::Done),
                    Read::ApiGone => return Ok(End::ApiGone),
                }
            }
            () = sleep_until(stuck_due.unwrap_or(next_pass)), if stuck_due.is_some() => {}
            () = sleep_until(if hurry { Instant::now() } else { next_pass }), if room => {
                let mut fresh = 0;
                for day in days.due(context) {
                    match list(context, &mut days, day).await? {
                        Some(Ok(chunks)) => {
                            fresh += chunks.len();
                            waiting.extend(chunks);
                        }
                        Some(Err(end)) => return Ok(end),
                        None => return Ok(End::Done),
                    }
                }
                found_nothing_new = fresh == 0;
                next_pass = Instant::now() + jittered(context.reading.poll_interval);
            }
        }
    }
}

impl Listed {
    /// Begins again where this machine's clock has been set back by days. What readers have had
    /// is known to the state file.
    fn mind_the_clock(&mut self, first: NaiveDate, today: NaiveDate) {
        let is_ahead = (self.next_new - today).num_days() > 1;
        if is_ahead && self.next_new > first {
            warn!("this machine's clock was ahead: listing the last days again");
            let begin = today.checked_sub_days(Days::new(POLLED_DAYS));
            self.next_new = begin.map_or(first, |day| day.max(first));
        }
    }

    fn last(context: &Context) -> NaiveDate {
        let now = day_of(now_ms());
        context
            .reading
            .to_ms
            .map_or(now, |to_ms| day_of(to_ms - 1).min(now))
    }

    /// There is a day that has not been listed since the program's start.
    fn has_new(&self, context: &Context) -> bool {
        self.next_new <= Self::last(context)
    }

    /// The days to list now: one new one, so that readers get to work on it before the next is
    /// listed; or, when there is none, those whose turn it is.
    fn due(&mut self, context: &Context) -> Vec<NaiveDate> {
        let today = day_of(now_ms());
        let oldest = today
            .checked_sub_days(Days::new(POLLED_DAYS))
            .unwrap_or(today);
        // An old day is listed once, so which of its chunks readers have had matters no more.
        self.polled.retain(|day, _| *day >= oldest);
        if self.has_new(context) {
            let day = self.next_new;
            self.next_new = day.succ_opt().expect("a day within reach has a successor");
            return vec![day];
        }
        let yesterday = today.pred_opt().unwrap_or(today);
        let old_too = self.old_days_listed.elapsed() >= OLD_DAYS_EVERY;
        if old_too {
            self.old_days_listed = Instant::now();
        }
        let mut due: Vec<_> = self
            .polled
            .keys()
            .copied()
            .filter(|day| old_too || *day >= yesterday)
            .collect();
        due.sort_unstable();
        due
    }
}

/// Forgets the chunks of days that no start will list again.
async fn forget_old_days(context: &Context) -> Result<(), SourceError> {
    let forgotten = context.blocking(|checkpoint, run| {
        let position = day_of(checkpoint.run(run)?.position_ms);
        match position.checked_sub_days(Days::new(POLLED_DAYS)) {
            Some(first_listed) => checkpoint.forget_days_before(run, first_listed),
            None => Ok(()),
        }
    });
    Ok(forgotten.await?)
}

/// Lists a day, writes the listing down and returns the chunks that no reader has had.
async fn list(
    context: &Context,
    days: &mut Listed,
    day: NaiveDate,
) -> Result<Option<Result<Vec<Chunk>, End>>, SourceError> {
    let listed_ms = now_ms();
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
    let mut chunks = loop {
        match context.patiently(|| context.client.chunks(day)).await {
            Answer::Got(chunks) => break chunks,
            Answer::Cannot(Remedy::Unknown, _) => return Ok(Some(Err(End::ApiGone))),
            Answer::Cannot(_, refused) => {
                context.pause(&mut backoff, &refused).await;
                if context.stop.is_cancelled() {
                    return Ok(None);
                }
            }
            Answer::Stopped => return Ok(None),
        }
    };
    chunks.retain(|chunk| context.reading.part.has(chunk));
    let listed = context
        .blocking(move |checkpoint, run| checkpoint.add_listing(run, day, listed_ms, &chunks))
        .await?;
    let position = &context.stats.position_ms;
    position.fetch_max(listed.position_ms, std::sync::atomic::Ordering::Relaxed);
    let had = days.polled.entry(day).or_default();
    let fresh: Vec<Chunk> = listed
        .unfinished
        .into_iter()
        .filter(|open| had.insert(open.name.clone()))
        .map(|open| Chunk::new(context, day, open.name, open.cursor.unwrap_or_default()))
        .collect();
    Ok(Some(Ok(fresh)))
}
