//! The loop itself.

mod holding;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, info, warn};

use self::holding::{Storing, join_storing};
use super::batch::{Batch, BatchBuilder, Operation};
use super::blocked::Blocked;
use super::delivery::{Delivered, Delivery, InFlight};
use super::gap;
use super::progress::{Lane, PageNumber, Progress};
use super::retry::Backoff;
use super::session;
use super::{BUDGET_UNIT, Page, PageSender, PipelineError, Settings, Sink, Source};
use crate::checkpoint::{
    Checkpoint, CheckpointError, Committed, Counts, DeadLetter, DocumentForm, Gap, RunId, Step,
    UNCONVERTIBLE,
};
use crate::document::{DocumentId, Encoded, Encoder};
use crate::event::AuditEvent;
use crate::output::Chain;
use crate::telemetry::Stats;

/// Commits are this far apart: a crash repeats so much, and SQLite syncs twice a second at most.
const COMMIT_INTERVAL: Duration = Duration::from_millis(500);

/// All that a run needs beside its source.
pub struct Pipeline<K> {
    /// Where documents go.
    pub sink: K,
    /// The state file.
    pub checkpoint: Arc<Checkpoint>,
    /// Whose position moves.
    pub run: RunId,
    /// What Teleport calls the cluster that is read.
    pub cluster: String,
    /// Turns events into documents.
    pub encoder: Encoder,
    /// How to behave.
    pub settings: Settings,
    /// Where to count.
    pub stats: Arc<Stats>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The source came to its end and everything that it gave has settled.
    pub complete: bool,
    /// Documents that had not settled when the grace period ran out; they will be read again.
    pub abandoned: usize,
}

impl<K: Sink> Pipeline<K> {
    /// Runs until the source ends, or `stop` is cancelled and what was in flight has settled.
    ///
    /// # Errors
    /// If the source gives up for good or the checkpoint cannot be written.
    pub async fn run<S: Source + 'static>(
        self,
        source: S,
        stop: CancellationToken,
    ) -> Result<Summary, PipelineError<S::Error>> {
        let settings = self.settings;
        let (sender, pages) = PageSender::new(settings.in_flight_bytes);
        let (budget, budget_units) = (sender.budget.clone(), sender.budget_units as usize);
        let source_stop = stop.child_token();
        // In a set, so that the source ends with us if somebody drops the run.
        let mut reading = JoinSet::new();
        // With what is said of this run, as all tasks below: of several, the log tells which.
        reading.spawn(source.run(sender, source_stop.clone()).in_current_span());
        let mut state = Loop {
            delivery: Arc::new(Delivery {
                sink: self.sink,
                checkpoint: self.checkpoint.clone(),
                run: self.run,
                dead_letter_bytes: settings.dead_letter_bytes,
                in_flight: InFlight::new(settings.in_flight),
                limits: settings.batch,
                stats: self.stats.clone(),
            }),
            budget,
            budget_units,
            checkpoint: self.checkpoint,
            run: self.run,
            cluster: self.cluster,
            encoder: self.encoder,
            settings,
            stats: self.stats,
            builder: BatchBuilder::new(settings.batch),
            builder_due: None,
            ready: VecDeque::new(),
            requests: JoinSet::new(),
            progress: Progress::default(),
            blocked: Blocked::default(),
            storing: None,
            storing_due: Instant::now(),
            storing_backoff: Backoff::new(Duration::from_secs(1), Duration::from_secs(60)),
            is_stopping: false,
            steps: HashMap::new(),
            counts: Counts::default(),
            commit: None,
            commit_due: Instant::now(),
        };
        let ended = state.turn(pages, &stop).await;
        source_stop.cancel();
        let read = reading.join_next().await.expect("it was spawned");
        let read = read.expect("a source does not panic");
        let ended = ended.inspect_err(|failed| state.stats.note_uncommitted(failed.reason()));
        let abandoned = ended.map_err(PipelineError::Commit)?;
        if !stop.is_cancelled() {
            read.map_err(PipelineError::Source)?;
        }
        Ok(Summary {
            complete: !stop.is_cancelled() && abandoned == 0,
            abandoned,
        })
    }
}

type Incoming = mpsc::Receiver<(Page, Option<OwnedSemaphorePermit>)>;

struct Loop<K> {
    delivery: Arc<Delivery<K>>,
    checkpoint: Arc<Checkpoint>,
    run: RunId,
    cluster: String,
    encoder: Encoder,
    settings: Settings,
    stats: Arc<Stats>,
    /// Of the pages in flight.
    budget: Arc<Semaphore>,
    budget_units: usize,
    builder: BatchBuilder,
    /// When the batch under construction has waited long enough.
    builder_due: Option<Instant>,
    /// Closed batches that no request carries yet.
    ready: VecDeque<Batch>,
    requests: JoinSet<Delivered>,
    progress: Progress<Step, Option<OwnedSemaphorePermit>>,
    /// Documents whose index is blocked.
    blocked: Blocked,
    /// Some of them on their way into the state file.
    storing: Option<JoinHandle<Storing>>,
    /// Not before this, as there was no room.
    storing_due: Instant,
    storing_backoff: Backoff,
    is_stopping: bool,
    /// The newest step of each lane that is not committed.
    steps: HashMap<Lane, Step>,
    counts: Counts,
    commit: Option<JoinHandle<Result<Committed, CheckpointError>>>,
    commit_due: Instant,
}

impl<K: Sink> Loop<K> {
    /// Turns until the source has ended and everything has settled and is committed, or grace has
    /// run out. Returns how many documents were abandoned.
    async fn turn(
        &mut self,
        mut pages: Incoming,
        stop: &CancellationToken,
    ) -> Result<usize, CheckpointError> {
        self.remember_blocked().await?;
        let mut source_open = true;
        let mut grace_ends: Option<Instant> = None;
        loop {
            self.start_requests();
            // What waits in the state file may wait there, but nobody calls that indexed.
            let is_settled = self.builder.is_empty() && self.progress.in_flight() == 0;
            if !source_open && is_settled && (self.is_stopping || self.blocked.is_empty()) {
                break;
            }
            // Every arm only waits; what it waited for is handled below it, so an arm that loses
            // loses nothing: `join_next`, `recv` and the timers are safe to drop, requests and
            // the commit run in tasks of their own.
            tokio::select! {
                biased;
                () = wait_for(grace_ends) => {
                    warn!(documents = self.progress.unsettled_documents(),
                        "the grace period is over; what has not settled will be read again");
                    break;
                }
                () = stop.cancelled(), if grace_ends.is_none() => {
                    grace_ends = Some(Instant::now() + self.settings.grace_period);
                    info!(documents = self.progress.unsettled_documents(), "draining");
                    self.is_stopping = true;
                    self.blocked.all_last();
                }
                Some(delivered) = self.requests.join_next(), if !self.requests.is_empty() => {
                    self.settle(delivered.expect("a delivery does not panic"));
                }
                committed = join(&mut self.commit), if self.commit.is_some() => {
                    self.commit = None;
                    self.committed(committed?);
                }
                () = wait_for(Some(self.commit_due)), if self.commit_is_wanted() => {
                    self.begin_commit();
                }
                stored = join_storing(&mut self.storing), if self.storing.is_some() => {
                    self.storing = None;
                    self.stored(stored);
                }
                () = wait_for(Some(self.storing_due)), if self.storing_is_wanted() => {
                    self.begin_storing();
                }
                () = wait_for(self.blocked.due()) => self.try_blocked(),
                () = wait_for(self.builder_due) => self.close_batch(),
                page = pages.recv(), if source_open && self.ready.is_empty() => match page {
                    Some((page, permit)) => self.take(page, permit).await?,
                    None => {
                        source_open = false;
                        self.close_batch();
                    }
                },
            }
        }
        let abandoned = self.progress.unsettled_documents();
        self.requests.shutdown().await;
        if let Some(commit) = self.commit.take() {
            let committed = commit.await.expect("a commit does not panic")?;
            self.committed(committed);
        }
        if self.commit_is_wanted() {
            self.begin_commit();
            let committed = join(&mut self.commit).await?;
            self.committed(committed);
        }
        Ok(abandoned)
    }

    /// Converts a page's events into the batch under construction.
    async fn take(
        &mut self,
        page: Page,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<(), CheckpointError> {
        let Page {
            lane,
            events,
            filtered,
            reached,
            gap,
        } = page;
        let read = events.len() as u64 + filtered;
        Stats::add(&self.stats.events, read);
        Stats::add(&self.stats.filtered, filtered);
        if self.stats.is_export.load(Ordering::Relaxed) {
            Stats::add(&self.stats.exported, read);
        }
        self.stats.note_types(&events);
        self.counts.events += read;
        self.counts.filtered += filtered;
        let filled = match &reached {
            Some(Step::Filled { filled, .. }) => filled.gaps.clone(),
            _ => Vec::new(),
        };
        let of_recording = reached.as_ref().and_then(Step::of_recording);
        let summary = of_recording.and_then(|step| session::summary(&self.cluster, step));
        let number = self.progress.take(lane, reached, permit);
        if let Some(gap) = gap {
            self.take_gap(number, gap).await?;
        }
        for event in &events {
            self.progress.add(number, 1);
            if let Err(refused) = self.encode(number, event) {
                let gap = gap::of_malformed(&refused, &event.id);
                self.builder.push_unconverted(number, *refused);
                if let Some(gap) = gap {
                    self.take_gap(number, gap).await?;
                }
            }
            self.close_if_full();
        }
        // Behind the events that fill them.
        for filled in &filled {
            self.push_own(
                number,
                filled.from_ms,
                gap::closed(&self.cluster, filled, chrono::Utc::now()),
            );
        }
        if let Some((time_ms, summary)) = summary {
            self.push_own(number, time_ms, summary);
        }
        if let Some(step) = self.progress.complete(number) {
            self.steps.insert(step.0, step.1);
        }
        if !self.builder.is_empty() && self.builder_due.is_none() {
            self.builder_due = Some(Instant::now() + self.settings.batch.age);
        }
        self.count_in_flight();
        Ok(())
    }

    fn encode(&mut self, page: PageNumber, event: &AuditEvent) -> Result<(), Box<DeadLetter>> {
        let body = self.builder.body();
        let start = body.len();
        let encoded = self.encoder.encode(event, body);
        match encoded.inspect_err(|failed| self.stats.note_unconverted(failed.reason())) {
            Ok(encoded) => {
                self.push(page, start, encoded);
                Ok(())
            }
            Err(refused) => Err(Box::new(DeadLetter {
                document_id: DocumentId::of_raw(event).to_string(),
                index_name: String::new(),
                event_type: String::from_utf8_lossy(&event.event_type).into_owned(),
                time_ms: event.time.map(|time| time.millis()),
                document: event.body.to_vec(),
                form: DocumentForm::Protobuf,
                status: None,
                error_type: UNCONVERTIBLE.into(),
                reason: Chain(&refused).to_string(),
                first_seen_ms: chrono::Utc::now().timestamp_millis(),
            })),
        }
    }

    /// A gap becomes a row in the state file and a document that says what is missing.
    async fn take_gap(&mut self, page: PageNumber, gap: Gap) -> Result<(), CheckpointError> {
        let (checkpoint, run, row) = (self.checkpoint.clone(), self.run, gap.clone());
        let new = tokio::task::spawn_blocking(move || checkpoint.record_gap(run, &row))
            .await
            .expect("recording a gap does not panic")?;
        // Looks back meet a gap again and again.
        if new {
            self.stats.note_gap(&gap.reason);
            error!(
                reason = gap.reason,
                from = gap::time(gap.from_ms),
                to = gap::time(gap.to_ms),
                "gap: {}",
                gap.detail
            );
        }
        self.push_own(page, gap.from_ms, gap::opened(&self.cluster, &gap));
        Ok(())
    }

    /// Puts a document of our own into the batch.
    fn push_own(&mut self, page: PageNumber, time_ms: i64, own: (DocumentId, serde_json::Value)) {
        let (id, document) = own;
        let body = self.builder.body();
        let start = body.len();
        match self.encoder.encode_own(time_ms, id, &document, body) {
            Ok(encoded) => {
                self.progress.add(page, 1);
                self.push(page, start, encoded);
                self.close_if_full();
            }
            // The row in the state file tells of a gap all the same.
            Err(unusable) => error!(
                "no document can be made of a gap or a session: {}",
                Chain(&unusable)
            ),
        }
    }

    /// Registers what the encoder has just appended to the batch, from `start` on.
    fn push(&mut self, page: PageNumber, start: usize, encoded: Encoded) {
        let end = self.builder.body().len();
        let Encoded {
            index_name,
            id,
            time_ms,
            source_start,
            ..
        } = encoded;
        self.builder.push(Operation {
            start,
            source_start,
            end,
            page: Some(page),
            index_name,
            id,
            time_ms,
            is_safe_form: false,
        });
    }

    fn close_if_full(&mut self) {
        if self.builder.is_full() {
            self.close_batch();
        }
    }

    fn close_batch(&mut self) {
        self.builder_due = None;
        if !self.builder.is_empty() {
            self.ready.push_back(self.builder.close());
        }
    }

    fn start_requests(&mut self) {
        while self.requests.len() < self.delivery.in_flight.allowed()
            && let Some(batch) = self.ready.pop_front()
        {
            let delivery = self.delivery.clone();
            self.requests
                .spawn(async move { delivery.deliver(batch).await }.in_current_span());
        }
    }

    fn settle(&mut self, delivered: Delivered) {
        let Delivered {
            settled,
            created,
            safe_form,
            already_there,
            dead_letters,
            document_bytes,
            newest_ms,
            ..
        } = delivered;
        let dead_letters = dead_letters.len() as u64;
        for (page, documents) in settled {
            if let Some((lane, step)) = self.progress.settle(page, documents) {
                self.steps.insert(lane, step);
            }
        }
        Stats::add(&self.stats.created, created);
        Stats::add(&self.stats.safe_form, safe_form);
        Stats::add(&self.stats.already_there, already_there);
        Stats::add(&self.stats.dead_letters, dead_letters);
        Stats::add(&self.stats.document_bytes, document_bytes);
        self.counts.created += created;
        self.counts.safe_form += safe_form;
        self.counts.already_there += already_there;
        self.counts.dead_letters += dead_letters;
        self.counts.document_bytes += document_bytes;
        // A time to come is some clock's mistake, and would hide all that follows.
        let now_ms = chrono::Utc::now().timestamp_millis();
        if let Some(newest_ms) = newest_ms.filter(|newest_ms| *newest_ms <= now_ms) {
            let newest = &self.stats.newest_settled_ms;
            newest.fetch_max(newest_ms, Ordering::Relaxed);
        }
        self.put_aside(delivered.blocked, delivered.probe, delivered.from_disk);
        self.count_in_flight();
    }

    fn count_in_flight(&self) {
        let documents = self.progress.unsettled_documents() as u64;
        let free = self.budget.available_permits();
        let bytes = (self.budget_units - free.min(self.budget_units)) * BUDGET_UNIT;
        let stats = &self.stats;
        stats
            .in_flight_documents
            .store(documents, Ordering::Relaxed);
        stats.in_flight_bytes.store(bytes as u64, Ordering::Relaxed);
    }

    fn commit_is_wanted(&self) -> bool {
        self.commit.is_none() && (!self.steps.is_empty() || self.counts != Counts::default())
    }

    fn begin_commit(&mut self) {
        self.commit_due = Instant::now() + COMMIT_INTERVAL;
        let steps: Vec<Step> = self.steps.drain().map(|(_, step)| step).collect();
        let counts = std::mem::take(&mut self.counts);
        let (checkpoint, run) = (self.checkpoint.clone(), self.run);
        self.commit = Some(tokio::task::spawn_blocking(move || {
            checkpoint.commit(run, &steps, &counts)
        }));
    }

    fn committed(&self, committed: Committed) {
        let now_ms = chrono::Utc::now().timestamp_millis();
        self.stats.committed_ms.store(now_ms, Ordering::Relaxed);
        let position = &self.stats.position_ms;
        position.store(committed.position_ms, Ordering::Relaxed);
    }
}

async fn wait_for(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

async fn join(
    commit: &mut Option<JoinHandle<Result<Committed, CheckpointError>>>,
) -> Result<Committed, CheckpointError> {
    match commit {
        Some(commit) => commit.await.expect("a commit does not panic"),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
