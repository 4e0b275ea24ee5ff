//! The loop that events go through: pages in, bulk requests out, the checkpoint behind them.
//!
//! Five invariants, and the reason that this program exists:
//!
//! 1. The checkpoint never moves past an event that is neither in Elasticsearch nor in the state
//!    file: as a dead letter, or waiting there for a blocked index.
//! 2. Every page carries the step which it reaches. Skipped and filtered events move the position
//!    too, so a page of only skipped events makes progress.
//! 3. Sending an event again gives the same `_id` in the same index; "already there" is success.
//! 4. What is in flight is bounded: [`Settings::in_flight_bytes`] of events on the wire's form and
//!    about as much again as JSON, plus, for each reader of the source, one page that waits for
//!    room. A slow sink stops the source.
//! 5. An event that cannot be converted or is refused never stops the others.
//!
//! Elasticsearch and SQLite share no transaction, so the order is always: Elasticsearch has
//! answered, then SQLite commits. A crash in between means a repeat, which rule 3 makes harmless.
//!
//! | task | on stop | on failure |
//! |---|---|---|
//! | the source's readers | end; their senders drop | retried inside; a source that gives up ends the run |
//! | the loop (this module) | drains: sends and settles what it has, within the grace period | ends the run |
//! | one per bulk request | goes on until its documents settle or grace runs out | retried inside, for ever |
//! | documents of a blocked index on their way to the disk | goes on; what is not written is read again | said, tried again |
//! | the commit | finishes | ends the run: a checkpoint that cannot be written is no checkpoint |

use std::error::Error;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::checkpoint::{CheckpointError, DeadLetter, Gap, Step};
use crate::event::AuditEvent;

pub mod batch;
mod blocked;
pub mod delivery;
pub(crate) mod gap;
pub mod progress;
pub mod quota;
pub mod retry;
mod run;
mod session;

pub use progress::Lane;
pub use run::{Pipeline, Summary};

/// Where events come from.
pub trait Source: Send {
    /// Why it gave up for good.
    type Error: Error + Send + Sync + 'static;

    /// Reads from where the checkpoint stands and hands over page after page, until there is no
    /// more to read or `stop` is cancelled. Transient faults are dealt with inside.
    fn run(
        self,
        pages: PageSender,
        stop: CancellationToken,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// Where documents go.
pub trait Sink: Send + Sync + 'static {
    /// One attempt at a bulk request of `operations` operations. No retry inside.
    fn send(
        &self,
        body: Bytes,
        operations: usize,
    ) -> impl Future<Output = delivery::Attempt> + Send;

    /// Keeps documents that were refused for good, up to so many bytes of them in all. One attempt.
    /// `None`: that is for the state file to do.
    fn keep(
        &self,
        _letters: &[DeadLetter],
        _cap_bytes: u64,
    ) -> impl Future<Output = Option<Result<(), delivery::Fault>>> + Send {
        std::future::ready(None)
    }
}

impl<K: Sink> Sink for Arc<K> {
    async fn send(&self, body: Bytes, operations: usize) -> delivery::Attempt {
        K::send(self, body, operations).await
    }

    async fn keep(
        &self,
        letters: &[DeadLetter],
        cap_bytes: u64,
    ) -> Option<Result<(), delivery::Fault>> {
        K::keep(self, letters, cap_bytes).await
    }
}

/// What one read of the source gave.
#[derive(Debug)]
pub struct Page {
    /// What was read in order, one after the other.
    pub lane: Lane,
    /// The events, less those that filters took out.
    pub events: Vec<AuditEvent>,
    /// How many events filters took out.
    pub filtered: u64,
    /// What becomes true once this page and all before it in its lane have settled.
    pub reached: Option<Step>,
    /// What could not be read.
    pub gap: Option<Gap>,
}

impl Page {
    /// A page that carries nothing but a step.
    pub fn step(lane: Lane, step: Step) -> Self {
        Self {
            lane,
            events: Vec::new(),
            filtered: 0,
            reached: Some(step),
            gap: None,
        }
    }

    fn bytes(&self) -> usize {
        let per_event = size_of::<AuditEvent>();
        self.events
            .iter()
            .map(|e| e.body.len() + e.id.len() + e.event_type.len() + per_event)
            .sum()
    }
}

/// The pipeline has ended; there is nobody to take a page.
#[derive(Debug, Error)]
#[error("the pipeline has ended")]
pub struct Closed;

/// The source's end of the pipeline.
#[derive(Clone, Debug)]
pub struct PageSender {
    pages: mpsc::Sender<(Page, Option<OwnedSemaphorePermit>)>,
    budget: Arc<Semaphore>,
    budget_units: u32,
}

/// The memory budget is counted in units of this many bytes, since a semaphore counts in `u32`.
const BUDGET_UNIT: usize = 1024;

impl PageSender {
    fn new(budget_bytes: usize) -> (Self, mpsc::Receiver<(Page, Option<OwnedSemaphorePermit>)>) {
        let budget_units = u32::try_from(budget_bytes / BUDGET_UNIT)
            .unwrap_or(u32::MAX)
            .max(1);
        let budget = Arc::new(Semaphore::new(budget_units as usize));
        // Few: pages wait in their readers, where they have not yet taken from the budget.
        let (sender, receiver) = mpsc::channel(4);
        (
            Self {
                pages: sender,
                budget,
                budget_units,
            },
            receiver,
        )
    }

    /// Hands a page over; waits while too much is in flight. A page larger than the whole budget
    /// waits until it is alone.
    ///
    /// # Errors
    /// If the pipeline has ended.
    pub async fn send(&self, page: Page) -> Result<(), Closed> {
        // Rounded up: pages of one small event each, whose index is blocked, are many in the end.
        let units = u32::try_from(page.bytes().div_ceil(BUDGET_UNIT)).unwrap_or(u32::MAX);
        let permit = match units.min(self.budget_units) {
            0 => None,
            units => {
                let budget = self.budget.clone();
                Some(budget.acquire_many_owned(units).await.map_err(|_| Closed)?)
            }
        };
        self.pages.send((page, permit)).await.map_err(|_| Closed)
    }
}

/// How the loop behaves.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// When a batch is closed.
    pub batch: batch::BatchLimits,
    /// How many bulk requests may be in flight at once.
    pub in_flight: usize,
    /// How many bytes of events may be in flight, on the wire's form.
    pub in_flight_bytes: usize,
    /// How long the drain may take once stopped.
    pub grace_period: Duration,
    /// Bytes that the dead-letter store may hold.
    pub dead_letter_bytes: u64,
    /// Bytes of documents of blocked indices that may wait in the state file.
    pub blocked_bytes: u64,
}

/// Why a run ended before its time.
#[derive(Debug, Error)]
pub enum PipelineError<E: Error + 'static> {
    /// The source gave up.
    #[error("reading the audit log failed for good")]
    Source(#[source] E),
    /// The checkpoint could not be written. Nothing is lost: it stays where it was.
    #[error("the checkpoint could not be written; it stays where it was, so nothing is lost")]
    Commit(#[source] CheckpointError),
}

/// Runs a future until it ends or `stop` is cancelled. Dropping the future must be harmless.
pub async fn unless_stopped<T>(
    stop: &CancellationToken,
    future: impl Future<Output = T>,
) -> Option<T> {
    let future = pin!(future);
    tokio::select! {
        biased;
        () = stop.cancelled() => None,
        done = future => Some(done),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// Documents of a blocked index may wait for days, and come one by one.
    #[tokio::test]
    async fn the_smallest_page_takes_its_part_of_the_budget() {
        let (sender, mut pages) = PageSender::new(2 * BUDGET_UNIT);
        let page = || Page {
            lane: Lane(0),
            events: vec![AuditEvent::default()],
            filtered: 0,
            reached: None,
            gap: None,
        };
        for _ in 0..2 {
            sender.send(page()).await.unwrap();
        }
        let mut held = vec![pages.recv().await, pages.recv().await];
        assert!(sender.send(page()).now_or_never().is_none());
        held.pop();
        assert!(sender.send(page()).now_or_never().is_some());
    }
}
