//! Reads the recordings of sessions, each from where it was left to its end.
//!
//! A `session.upload` event tells that a recording is there; it is a row of the state file before
//! that event is handed over (`Context::send`). From the rows this takes what is due, a few at a
//! time, and each reader waits where the pipeline has no room. So neither the number of recordings
//! nor their length costs memory, and nothing is taken twice: a row counts as open until the end of
//! its reading is committed, and those whose end is on its way are remembered until then.
//!
//! What cannot be read yet goes back to the rows, with a time at which it is due again, out of the
//! way of the others:
//!
//! | the server says | what becomes of it |
//! |---|---|
//! | not found | tried again for two days (`session-wait`) from its upload, but five times at least; then a gap |
//! | breaks at the same place, or does not understand | tried three times in each of ten rounds; then what came is kept, and the rest is a gap |
//! | not allowed | held, for ever: somebody must act |
//! | anything else | tried again at once, by its reader, as with all calls |
//!
//! A run that is to end does not wait for days: it looks five times within about 15 s, and takes
//! three rounds, once there is nothing else to do, and then makes a gap of it. The daemon's next
//! start looks again for what was uploaded within `session-wait`.
//!
//! To read a recording makes an audit event itself, `session.recording.access`. It leads to nothing.

mod counter;
mod patience;
mod reader;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::checkpoint::{Recording, Upload};
use crate::clock::now_ms;
use crate::document::member;
use crate::event::{AuditEvent, DAY_MS};
use crate::pipeline::retry::Backoff;
use crate::teleport::audit_log::{Context, SourceError};

use patience::{Patience, wait_ms};
use reader::{Read, Reader};

/// The audit event that tells of a recording.
const UPLOAD: &[u8] = b"session.upload";

/// How many rows are taken from the state file at once, beside those that are under way.
const TAKEN: usize = 64;

/// The most recordings that were read and whose end is not committed. Commits are half a second
/// apart; with fewer, small recordings would wait for them.
const HANDED_OVER_MOST: usize = 1000;

/// How often the rows are looked at while nothing tells of new ones; and while something is about to
/// settle.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOK_SOON: Duration = Duration::from_millis(100);

/// How often old rows are forgotten, and how long before the position they are of use: as far back
/// as the log is read again, and a day.
const FORGET_EVERY: Duration = Duration::from_secs(3600);
const KEPT_MS: i64 = 8 * DAY_MS;

/// The recordings that these events tell of.
pub(super) fn uploads(events: &[AuditEvent]) -> Vec<Upload> {
    let uploads = events.iter().filter(|event| event.event_type == UPLOAD);
    uploads
        .map(|event| {
            // Without an id there is nothing to ask for: the server will say so, and a gap tells.
            let session = member::text(&event.body, "sid").ok().flatten();
            Upload {
                session: String::from_utf8_lossy(session.unwrap_or_default()).into_owned(),
                upload_ms: event.time.map_or_else(now_ms, |time| time.millis()),
            }
        })
        .collect()
}

/// Tells one end of a recording's reading from the next.
type Mark = (i64, u32);

fn mark(recording: &Recording) -> Mark {
    (recording.upload_ms, recording.readings)
}

/// What is being done.
#[derive(Default)]
struct UnderWay {
    queue: VecDeque<Recording>,
    read: HashSet<String>,
    /// Their reading has ended, and that is not committed.
    handed_over: HashMap<String, Mark>,
}

/// Reads recordings until the log has come to its end and none waits, or we are told to stop.
pub(super) async fn read(
    context: &Arc<Context>,
    log_ended: &CancellationToken,
) -> Result<(), SourceError> {
    let patience = Patience::of(&context.reading);
    if context.reading.to_ms.is_none() {
        let since_ms = now_ms().saturating_sub(wait_ms(&context.reading));
        context
            .blocking(move |checkpoint, run| checkpoint.look_again_for_recordings(run, since_ms))
            .await?;
    }
    if patience == Patience::Short {
        context
            .blocking(|checkpoint, run| checkpoint.make_recordings_due(run))
            .await?;
    }
    let mut under_way = UnderWay::default();
    let mut readers = JoinSet::new();
    let mut next_look = Instant::now();
    let mut next_forget = Instant::now();
    let mut denied = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
    loop {
        let is_full = under_way.handed_over.len() >= HANDED_OVER_MOST;
        if is_full {
            under_way.queue.clear();
        }
        while !under_way.queue.is_empty()
            && let Some(place) = context.reading.readers.place(readers.len())
            && let Some(recording) = under_way.queue.pop_front()
        {
            under_way.read.insert(recording.session.clone());
            let context = context.clone();
            let read = async move {
                let _place = place;
                let (session, mark) = (recording.session.clone(), mark(&recording));
                let read = Reader::new(&context, patience, recording).read().await;
                (session, mark, read)
            };
            readers.spawn(read.in_current_span());
        }
        let wants_more =
            under_way.queue.is_empty() && readers.len() < context.reading.readers.most();
        if wants_more && next_look <= Instant::now() {
            under_way.take_due(context).await?;
            if !under_way.queue.is_empty() && under_way.handed_over.len() < HANDED_OVER_MOST {
                continue;
            }
            let is_idle = readers.is_empty() && under_way.handed_over.is_empty();
            if is_idle && log_ended.is_cancelled() && !is_any_open(context).await? {
                return Ok(());
            }
            let soon = !is_idle || patience == Patience::Short;
            next_look = Instant::now() + if soon { LOOK_SOON } else { LOOK_EVERY };
        }
        if context.reading.to_ms.is_none() && next_forget <= Instant::now() {
            forget_old(context).await?;
            next_forget = Instant::now() + FORGET_EVERY;
        }
        // A reader is a task of its own, and the timer may be set anew: nothing is lost.
        tokio::select! {
            biased;
            () = context.stop.cancelled() => return Ok(()),
            Some(ended) = readers.join_next(), if !readers.is_empty() => {
                let (session, mark, read) = ended.expect("a reader does not panic");
                under_way.read.remove(&session);
                under_way.handed_over.insert(session, mark);
                match read? {
                    Read::Ended => denied.succeeded(),
                    // It is so with most of them, then: no need to ask for each.
                    Read::Denied(failed) => context.pause(&mut denied, &failed).await,
                    Read::Stopped => return Ok(()),
                }
            }
            () = context.uploads.notified() => next_look = Instant::now(),
            () = log_ended.cancelled(), if !log_ended.is_cancelled() => next_look = Instant::now(),
            () = sleep_until(next_look), if wants_more => {}
        }
    }
}

impl UnderWay {
    /// Queues what is due and not under way.
    async fn take_due(&mut self, context: &Context) -> Result<(), SourceError> {
        let limit = TAKEN + self.read.len() + self.handed_over.len();
        let due = context
            .blocking(move |checkpoint, run| checkpoint.due_recordings(run, now_ms(), limit))
            .await?;
        let mut uncommitted = HashMap::new();
        self.queue.clear();
        for recording in due {
            let mark = mark(&recording);
            if self.handed_over.get(&recording.session) == Some(&mark) {
                uncommitted.insert(recording.session, mark);
            } else if !self.read.contains(&recording.session) {
                self.queue.push_back(recording);
            }
        }
        self.handed_over = uncommitted;
        Ok(())
    }
}

async fn is_any_open(context: &Context) -> Result<bool, SourceError> {
    let next = context
        .blocking(|checkpoint, run| checkpoint.next_recording_ms(run))
        .await?;
    Ok(next.is_some())
}

async fn forget_old(context: &Context) -> Result<(), SourceError> {
    let forgotten = context.blocking(|checkpoint, run| {
        let before_ms = checkpoint.run(run)?.position_ms - KEPT_MS;
        checkpoint.forget_recordings(run, before_ms)
    });
    Ok(forgotten.await?)
}
