//! The audit log as a source of pages, by whichever API the server has.

use std::collections::HashSet;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{NaiveDate, TimeDelta, Utc};
use thiserror::Error;
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::checkpoint::{
    Checkpoint, CheckpointError, Filled, Gap, RunId, SentEvent, SourceMode, Step,
};
use crate::clock::now_ms;
use crate::config::{EventFilter, LockConfig, SessionsConfig};
use crate::event::AuditEvent;
use crate::output::Chain;
use crate::pipeline::retry::Backoff;
use crate::pipeline::{Closed, Lane, Page, PageSender, Source, quota, unless_stopped};
use crate::telemetry::{Line, Stats};
use crate::teleport::client::{CallError, Client, Remedy};
use crate::teleport::pace::Pace;
use crate::teleport::part::Part;
use crate::teleport::readers::Readers;
use crate::teleport::{export, left_off, locking, recording, search};

/// The first and the longest pause before a failed call is made again. Teleport's own exporter
/// waits up to 90 s; a shorter cap costs the server little and shows recovery sooner.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// What is read, and how.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Events before this are not read, ms since 1970.
    pub from_ms: i64,
    /// Events of session recordings that lie before this are not written, ms since 1970: their days
    /// are too old. `None`: all are.
    pub kept_from_ms: Option<i64>,
    /// Events at this time or later are not read; `None`: follow the log for ever.
    pub to_ms: Option<i64>,
    /// Which types.
    pub filter: EventFilter,
    /// The types to ask the server for; all if empty.
    pub types: Vec<String>,
    /// Teleport's namespace.
    pub namespace: String,
    /// The most events of a search page.
    pub page_limit: i32,
    /// The longest window of one search.
    pub window: Duration,
    /// Of an export, which chunks.
    pub part: Part,
    /// The pause between two looks at the log's end.
    pub poll_interval: Duration,
    /// Who reads windows or chunks at once, and session recordings.
    pub readers: Readers,
    /// End once everything up to now has been read.
    pub exit_on_last_event: bool,
    /// Events a second.
    pub events_per_second: Option<std::num::NonZeroU32>,
    /// How session recordings are read; `None` if they are not.
    pub sessions: Option<SessionsConfig>,
    /// What the event handler has sent already.
    pub sent: Sent,
    /// When users are locked; `None` if they are not.
    pub lock: Option<LockConfig>,
}

/// Events that another exporter has sent, all of the second in which ours begins.
#[derive(Clone, Debug, Default)]
pub struct Sent {
    second: i64,
    events: Arc<HashSet<SentEvent>>,
}

impl Sent {
    /// These, at or after `from_ms`, milliseconds since 1970.
    pub fn new(from_ms: i64, events: Vec<SentEvent>) -> Self {
        Self {
            second: from_ms.div_euclid(1000),
            events: Arc::new(events.into_iter().collect()),
        }
    }

    fn holds(&self, event: &AuditEvent) -> bool {
        // Of nearly all events the first question tells.
        let is_near = event.time.is_some_and(|time| time.seconds == self.second);
        is_near && self.events.contains(&left_off::name(event))
    }
}

/// Why reading ended for good.
#[derive(Debug, Error)]
pub enum SourceError {
    /// The server has neither API.
    #[error(
        "this server has neither the export nor the search API for audit events: \
         Teleport 14 or newer is needed"
    )]
    TooOld,
    /// Our own state cannot be read or written.
    #[error("the plan of what to read cannot be kept")]
    Checkpoint(#[from] CheckpointError),
}

/// How one API's reading ended.
pub(super) enum End {
    /// Everything has been read, or we were told to stop.
    Done,
    /// The server no longer has this API.
    ApiGone,
}

/// The log's end: it holds nothing between two times, in ms since 1970.
#[derive(Clone, Copy)]
pub(super) struct Tail {
    pub from_ms: i64,
    pub to_ms: i64,
}

/// What both ways of reading share.
pub(super) struct Context {
    pub client: Client,
    pub checkpoint: Arc<Checkpoint>,
    pub run: RunId,
    pub reading: Reading,
    pub pages: PageSender,
    pub stats: Arc<Stats>,
    pub stop: CancellationToken,
    pub events: Option<governor::DefaultDirectRateLimiter>,
    pace: Pace,
    /// The newest event that was found by search in a window, ms since 1970.
    pub newest_ms: AtomicI64,
    tail: Mutex<Option<Tail>>,
    /// Gaps that may be filled by what is read; not those of recordings.
    open_gaps: Mutex<Vec<Gap>>,
    /// There are recordings to read that were not there before.
    pub uploads: Notify,
    /// There are locks to make that were not there before.
    pub failed_logins: Notify,
    /// Why a recording or a failed login could not be written down, which ends the run.
    failure: Mutex<Option<CheckpointError>>,
    lanes: std::sync::atomic::AtomicU64,
}

/// The audit log of one cluster.
#[derive(Debug)]
pub struct AuditLog {
    /// How the cluster is reached.
    pub client: Client,
    /// Where the plan is kept.
    pub checkpoint: Arc<Checkpoint>,
    /// Whose plan it is.
    pub run: RunId,
    /// What to read.
    pub reading: Reading,
    /// Where to say how far a listing has moved the position.
    pub stats: Arc<Stats>,
}

impl Source for AuditLog {
    type Error = SourceError;

    async fn run(self, pages: PageSender, stop: CancellationToken) -> Result<(), SourceError> {
        let events = self.reading.events_per_second.map(quota::limiter);
        let context = Arc::new(Context {
            client: self.client,
            checkpoint: self.checkpoint,
            run: self.run,
            reading: self.reading,
            stats: self.stats,
            pages,
            stop,
            events,
            pace: Pace::default(),
            newest_ms: AtomicI64::new(i64::MIN),
            tail: Mutex::default(),
            open_gaps: Mutex::default(),
            uploads: Notify::new(),
            failed_logins: Notify::new(),
            failure: Mutex::default(),
            lanes: Default::default(),
        });
        let of_all_runs = context.reads_all();
        let open = context
            .blocking(move |checkpoint, run| checkpoint.open_gaps(run, of_all_runs))
            .await?;
        *context.open_gaps() = open;
        let log_ended = CancellationToken::new();
        let log = async {
            let read = read_log(&context).await;
            log_ended.cancel();
            read.inspect_err(|_| context.stop.cancel())
        };
        let recordings = async {
            if context.reading.sessions.is_none() {
                return Ok(());
            }
            let read = Box::pin(recording::read(&context, &log_ended)).await;
            read.inspect_err(|_| context.stop.cancel())
        };
        let locks = async {
            let Some(config) = &context.reading.lock else {
                return Ok(());
            };
            let made = Box::pin(locking::make(&context, config, &log_ended)).await;
            made.inspect_err(|_| context.stop.cancel())
        };
        let (log, recordings, locks) = tokio::join!(Box::pin(log), recordings, locks);
        let failure = context.failure.lock();
        if let Some(failure) = failure.unwrap_or_else(PoisonError::into_inner).take() {
            return Err(failure.into());
        }
        log.and(recordings).and(locks)
    }
}

/// Reads the log itself, by the API that the server has.
async fn read_log(context: &Arc<Context>) -> Result<(), SourceError> {
    loop {
        let Some(mode) = context.probe().await else {
            return Ok(());
        };
        context
            .blocking(move |checkpoint, run| checkpoint.set_mode(run, mode))
            .await?;
        let is_export = mode == SourceMode::Export;
        context.stats.is_export.store(is_export, Ordering::Relaxed);
        let end = match mode {
            SourceMode::Export => {
                info!("reading by the export API");
                export::read(context).await?
            }
            SourceMode::Search => {
                info!("reading by the search API: the server has no export API");
                search::read(context).await?
            }
        };
        match end {
            End::Done => return Ok(()),
            End::ApiGone => warn!("the server no longer has the API in use, asking anew"),
        }
    }
}

/// A call's answer, as far as the caller must care.
pub(super) enum Answer<T> {
    Got(T),
    /// The server does not know the call, has not what was asked for, or does not understand it.
    Cannot(Remedy, CallError),
    Stopped,
}

impl Context {
    /// Which API the server has: it is asked for the chunks of a day to come, which costs nothing.
    async fn probe(&self) -> Option<SourceMode> {
        loop {
            match self.patiently(|| self.client.chunks(day_to_come())).await {
                Answer::Got(_) => return Some(SourceMode::Export),
                Answer::Cannot(Remedy::Unknown, _) => return Some(SourceMode::Search),
                Answer::Cannot(_, strange) => {
                    error!(
                        "cannot find out which event API the server has: {}",
                        Chain(&strange)
                    );
                    unless_stopped(&self.stop, sleep(RETRY.1)).await?;
                }
                Answer::Stopped => return None,
            }
        }
    }

    /// Makes a call until it succeeds, the server says that it cannot, or we are told to stop.
    pub(super) async fn patiently<T, F>(&self, call: impl Fn() -> F) -> Answer<T>
    where
        F: Future<Output = Result<T, CallError>>,
    {
        self.patiently_unless(call, |_, _| false).await
    }

    /// The same, but leaves it to `give_up` when to try no more: it sees the failure and how many
    /// there were in a row.
    pub(super) async fn patiently_unless<T, F>(
        &self,
        call: impl Fn() -> F,
        give_up: impl Fn(&CallError, u32) -> bool,
    ) -> Answer<T>
    where
        F: Future<Output = Result<T, CallError>>,
    {
        let mut failures = 0;
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let in_turn = async {
                self.pace.turn().await;
                call().await
            };
            let failed = match unless_stopped(&self.stop, in_turn).await {
                None => return Answer::Stopped,
                Some(Ok(answer)) => {
                    self.pace.answered();
                    if let Some(lasted) = self.stats.teleport.answered() {
                        info!(after = ?lasted, "Teleport answers again");
                    }
                    return Answer::Got(answer);
                }
                Some(Err(failed)) => failed,
            };
            failures += 1;
            if failed.is_too_much()
                && let Some(pause) = self.pace.halve()
            {
                info!(?pause, "too many requests for Teleport, halving their rate");
            }
            match failed.remedy() {
                Remedy::Retry | Remedy::Hold if !give_up(&failed, failures) => {
                    self.pause(&mut backoff, &failed).await;
                }
                remedy => return Answer::Cannot(remedy, failed),
            }
        }
    }

    /// Says what went wrong and waits before the next attempt.
    pub(super) async fn pause(&self, backoff: &mut Backoff, failed: &CallError) {
        let failure = backoff.failed();
        let (pause, failures, mend) = (failure.wait, failure.failures, failed.mend());
        let said = Chain(failed).to_string();
        self.stats.teleport.failed(failed.reason(), &said);
        let must_act = failed.remedy() == Remedy::Hold;
        let teleport = &self.stats.teleport;
        match teleport.line(failed.reason(), failure.failing(), must_act) {
            Line::None => {}
            _ if must_act => error!(
                ?pause,
                mend, "cannot read, nothing is lost, holding: {said}"
            ),
            Line::Lasting => warn!(?pause, failures, "reading failed, trying again: {said}"),
            Line::Brief => info!(?pause, failures, "reading failed, trying again: {said}"),
        }
        unless_stopped(&self.stop, sleep(pause)).await;
    }

    /// Without filters: what is read is all that there is.
    pub(super) fn reads_all(&self) -> bool {
        self.reading.filter.admits_all()
    }

    fn open_gaps(&self) -> MutexGuard<'_, Vec<Gap>> {
        let open = self.open_gaps.lock();
        open.unwrap_or_else(PoisonError::into_inner)
    }

    /// The log's end, as it was last looked at.
    pub(super) fn tail(&self) -> Option<Tail> {
        *self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_tail(&self, tail: Tail) {
        *self.tail.lock().unwrap_or_else(PoisonError::into_inner) = Some(tail);
    }

    /// Takes those gaps away that what was read has filled; `None` if there are none.
    pub(super) fn filled(&self, is_filled: impl Fn(&Gap) -> bool) -> Option<Filled> {
        let gaps: Vec<Gap> = self
            .open_gaps()
            .extract_if(.., |gap| is_filled(gap))
            .collect();
        (!gaps.is_empty()).then(|| Filled {
            gaps,
            of_all_runs: self.reads_all(),
        })
    }

    /// A lane that no other reader has.
    pub(super) fn new_lane(&self) -> Lane {
        Lane(self.lanes.fetch_add(1, Ordering::Relaxed))
    }

    /// Hands a page over, within the quota. The recordings that it tells of are written down before:
    /// the position may pass their events as soon as it is handed over.
    pub(super) async fn send(&self, page: Page) -> Result<(), Closed> {
        let of_recording = page.reached.as_ref().and_then(Step::of_recording);
        if self.reading.sessions.is_some() && of_recording.is_none() {
            self.note_uploads(&page).await?;
        }
        if let Some(config) = &self.reading.lock
            && of_recording.is_none()
        {
            self.note_failed_logins(&page, config).await?;
        }
        if let Some(gap) = &page.gap
            && gap.session.is_none()
        {
            let mut open = self.open_gaps();
            if !open.iter().any(|known| known.is_same(gap)) {
                open.push(gap.clone());
            }
        }
        if let Some(limiter) = &self.events {
            let events = page.events.len();
            if unless_stopped(&self.stop, quota::pass(limiter, events))
                .await
                .is_none()
            {
                return Err(Closed);
            }
        }
        match unless_stopped(&self.stop, self.pages.send(page)).await {
            Some(sent) => sent,
            None => Err(Closed),
        }
    }

    async fn note_uploads(&self, page: &Page) -> Result<(), Closed> {
        let uploads = recording::uploads(&page.events);
        if uploads.is_empty() {
            return Ok(());
        }
        let noted = self
            .blocking(move |checkpoint, run| checkpoint.add_uploads(run, &uploads))
            .await;
        self.or_end(noted)?;
        self.uploads.notify_one();
        Ok(())
    }

    async fn note_failed_logins(&self, page: &Page, config: &LockConfig) -> Result<(), Closed> {
        let (failed, rule) = locking::failed_logins(&page.events, config, now_ms());
        if failed.is_empty() {
            return Ok(());
        }
        let noted = self
            .blocking(move |checkpoint, _| checkpoint.add_failed_logins(&failed, rule))
            .await;
        if self.or_end(noted)? {
            self.failed_logins.notify_one();
        }
        Ok(())
    }

    /// What cannot be written down ends the run.
    fn or_end<T>(&self, noted: Result<T, CheckpointError>) -> Result<T, Closed> {
        noted.map_err(|failed| {
            let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
            failure.get_or_insert(failed);
            self.stop.cancel();
            Closed
        })
    }

    /// Runs something on the state file, off the executor's threads.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Checkpoint, RunId) -> Result<T, CheckpointError> + Send + 'static,
    ) -> Result<T, CheckpointError> {
        let (checkpoint, run) = (self.checkpoint.clone(), self.run);
        tokio::task::spawn_blocking(move || work(&checkpoint, run))
            .await
            .expect("work on the state file does not panic")
    }

    /// Whether the event is wanted: its type, and its time within `[from, to)`.
    pub(super) fn wants(&self, event: &AuditEvent) -> bool {
        let Reading {
            from_ms,
            to_ms,
            filter,
            sent,
            ..
        } = &self.reading;
        // Without a time it cannot be placed; it goes on, to become a dead letter.
        let in_time = event.time.is_none_or(|time| {
            let ms = time.millis();
            ms >= *from_ms && to_ms.is_none_or(|to_ms| ms < to_ms)
        });
        in_time && filter.admits(&event.event_type) && !sent.holds(event)
    }
}

/// A day without chunks: to list it tells whether the server has the export API, at no cost.
pub(super) fn day_to_come() -> NaiveDate {
    (Utc::now() + TimeDelta::days(2)).date_naive()
}

/// The UTC day of a time.
pub(super) fn day_of(ms: i64) -> NaiveDate {
    chrono::DateTime::from_timestamp_millis(ms).map_or(NaiveDate::MIN, |time| time.date_naive())
}
