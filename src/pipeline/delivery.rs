//! Brings one batch to its end: every document created (in safe form if it was refused as it was),
//! found to be there already, or kept as a dead letter. Only documents whose index is blocked are
//! handed back.

mod from_disk;
mod refused;
mod too_large;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::{error, field, info, warn};

use self::refused::{give_up, in_safe_form};
use self::too_large::{TooLarge, too_large};
use crate::checkpoint::{Checkpoint, DeadLetter, RunId};
use crate::pipeline::Sink;
use crate::pipeline::batch::{Batch, BatchLimits, Operation};
use crate::pipeline::progress::PageNumber;
use crate::pipeline::retry::{Backoff, Failure};
use crate::telemetry::{BulkRequest, Line, Reason, RequestOutcome, Stats};

/// What a sink says after one attempt at a bulk request.
#[derive(Debug)]
pub enum Attempt {
    /// It was taken, and each of its documents was stored by it.
    AllCreated,
    /// It was taken and answered document by document: one outcome for each, in order.
    Items(Vec<Outcome>),
    /// It is too large as a whole: send it in halves. Alone, a document is refused with this.
    TooLarge(Refusal),
    /// It failed as a whole, in a way that passes by itself.
    Transient(Fault),
    /// It failed as a whole, until somebody does something.
    Blocked(Fault),
}

/// What became of one document.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Stored by this request.
    Created,
    /// Its id was there before: stored by an earlier request.
    AlreadyThere,
    /// Not stored, for a reason that passes by itself.
    Transient(Fault),
    /// Not stored, and never will be in this form.
    Refused(Refusal),
    /// Not stored until somebody does something about its index, the privileges or the cluster.
    Blocked(Fault),
}

impl Attempt {
    fn outcome(&self) -> RequestOutcome {
        match self {
            Self::AllCreated | Self::Items(_) => RequestOutcome::Answered,
            Self::TooLarge(_) => RequestOutcome::Halved,
            Self::Transient(_) => RequestOutcome::Transient,
            Self::Blocked(_) => RequestOutcome::Blocked,
        }
    }
}

/// Why an attempt failed, in words that may be logged: no part of any document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// What happened.
    pub what: String,
    /// What to do about it; empty where there is nothing to do.
    pub mend: String,
    /// The same in one word.
    pub reason: Reason,
    /// Elasticsearch has too much to do: fewer requests at once.
    pub overloaded: bool,
    /// How long the server asks to be left alone.
    pub retry_after: Option<Duration>,
    /// It may pass by itself within a minute, though it looks as if somebody had to do something.
    pub may_pass: bool,
}

/// Why a document was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status of the item.
    pub status: u16,
    /// Elasticsearch's error type.
    pub error_type: String,
    /// Elasticsearch's words. They may quote the document: kept with it, never logged.
    pub reason: String,
}

/// How many requests may be in flight: halves when Elasticsearch has too much to do and grows
/// back one by one.
#[derive(Debug)]
pub struct InFlight {
    most: usize,
    allowed: AtomicUsize,
}

impl InFlight {
    /// Allows `most` (at least one) to begin with.
    pub fn new(most: usize) -> Self {
        Self {
            most: most.max(1),
            allowed: AtomicUsize::new(most.max(1)),
        }
    }

    /// How many are allowed now.
    pub fn allowed(&self) -> usize {
        self.allowed.load(Ordering::Relaxed)
    }

    fn shrink(&self) {
        self.allowed
            .store((self.allowed() / 2).max(1), Ordering::Relaxed);
    }

    fn grow(&self) {
        self.allowed
            .store((self.allowed() + 1).min(self.most), Ordering::Relaxed);
    }
}

/// What bringing a batch to its end came to.
#[derive(Debug, Default)]
pub struct Delivered {
    /// Documents of each page that have settled; those that lay in the state file have none.
    pub settled: Vec<(PageNumber, usize)>,
    /// Stored by us just now.
    pub created: u64,
    /// Those of `created` that were refused as they were, and stored in safe form.
    pub safe_form: u64,
    /// Stored before.
    pub already_there: u64,
    /// Kept in the dead-letter store, by id and index.
    pub dead_letters: Vec<(String, String)>,
    /// Bytes of the documents that were created.
    pub document_bytes: u64,
    /// When the newest event of the documents that are stored took place, ms since 1970.
    pub newest_ms: Option<i64>,
    /// Documents that cannot be stored for now, by index, and why.
    pub blocked: BTreeMap<Arc<str>, Held>,
    /// The index that the batch was to try out.
    pub probe: Option<Arc<str>>,
    /// What the probe came to, if its documents lay in the state file. They are not in `blocked`.
    pub from_disk: Option<FromDisk>,
}

/// Documents of one index that is blocked.
#[derive(Debug)]
pub struct Held {
    /// The documents, in one batch or several.
    pub batches: Vec<Batch>,
    /// What is said of the index.
    pub fault: Fault,
}

/// What sending documents from the state file came to.
#[derive(Debug)]
pub struct FromDisk {
    /// How many have settled, and are in the file no more.
    pub settled: u64,
    /// Whether others still wait there for the index.
    pub is_left: bool,
    /// Why some of them could not be stored, or not be taken from the file.
    pub fault: Option<Fault>,
}

impl Delivered {
    fn created(&mut self, operation: &Operation) {
        self.created += 1;
        self.safe_form += u64::from(operation.is_safe_form);
        self.document_bytes += (operation.end - operation.source_start - 1) as u64;
        self.stored(operation);
    }

    fn stored(&mut self, operation: &Operation) {
        self.newest_ms = self.newest_ms.max(Some(operation.time_ms));
        self.settle(operation.page);
    }

    fn settle(&mut self, page: Option<PageNumber>) {
        let Some(page) = page else { return };
        match self.settled.last_mut() {
            Some((last, count)) if *last == page => *count += 1,
            _ => self.settled.push((page, 1)),
        }
    }
}

/// What all deliveries share.
#[derive(Debug)]
pub struct Delivery<K> {
    /// Where the documents go.
    pub sink: K,
    /// Where refused ones are kept.
    pub checkpoint: Arc<Checkpoint>,
    /// Whose dead letters they are.
    pub run: RunId,
    /// Bytes that the dead-letter store may hold.
    pub dead_letter_bytes: u64,
    /// How many requests may be in flight.
    pub in_flight: InFlight,
    /// How many documents one request takes from the state file.
    pub limits: BatchLimits,
    /// Where to count.
    pub stats: Arc<Stats>,
}

/// The first and the longest pause before a failed request is sent again.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// Within this two clocks see the same failure, but not the next one, which comes half the first pause
/// later at the earliest.
const AT_ONCE: Duration = Duration::from_millis(60);

/// No server is obeyed that asks for more, as it may be a proxy that knows nothing.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);

/// The wait of ours, or what the server asks for if that is longer.
fn pause(wait: Duration, fault: &Fault) -> Duration {
    let asked = fault.retry_after.unwrap_or_default();
    wait.max(asked.min(LONGEST_RETRY_AFTER))
}

impl<K: Sink> Delivery<K> {
    /// Sends a batch until each of its documents has settled or is blocked. Transient faults are
    /// tried again for ever: whoever wants to stop drops the future, and what has not settled by
    /// then is read from Teleport again.
    ///
    /// A probe without documents stands for those that wait for its index in the state file.
    pub async fn deliver(&self, batch: Batch) -> Delivered {
        match batch.probe.clone() {
            Some(index) if batch.operations.is_empty() => self.deliver_from_disk(index).await,
            _ => self.send_all(batch).await,
        }
    }

    async fn send_all(&self, mut batch: Batch) -> Delivered {
        let mut delivered = Delivered {
            probe: batch.probe.clone(),
            ..Delivered::default()
        };
        let unconverted = std::mem::take(&mut batch.unconverted).into_iter();
        let mut letters: Vec<(Option<PageNumber>, DeadLetter)> = unconverted
            .map(|(page, letter)| (Some(page), letter))
            .collect();
        let mut first_refused = None;
        let mut parts = vec![batch];
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        while let Some(part) = parts.pop() {
            if part.operations.is_empty() {
                continue;
            }
            let mut again = None;
            match self.send(&part).await {
                Attempt::AllCreated => {
                    for operation in &part.operations {
                        delivered.created(operation);
                    }
                    backoff.succeeded();
                    self.in_flight.grow();
                }
                Attempt::Items(outcomes) => {
                    let sorted = sort(&part, outcomes, &mut delivered);
                    for refused in sorted.refused_for_good {
                        give_up(&part, refused, &mut letters, &mut delivered);
                    }
                    if let Some((operation, refusal)) = sorted.refused.first() {
                        let why = (operation.clone(), refusal.error_type.clone());
                        first_refused.get_or_insert(why);
                        parts.push(in_safe_form(&part, &sorted.refused));
                    }
                    if let Some(fault) = sorted.transient_fault {
                        again = Some((part.of(sorted.transient), fault));
                    } else {
                        backoff.succeeded();
                        self.in_flight.grow();
                    }
                    for (index, (operations, fault)) in sorted.blocked {
                        let held = delivered.blocked.entry(index).or_insert_with(|| Held {
                            batches: Vec::new(),
                            fault,
                        });
                        held.batches.push(part.of(operations));
                    }
                }
                Attempt::TooLarge(refusal) if part.operations.len() == 1 => {
                    let operation = &part.operations[0];
                    let too_large = match refusal.status {
                        413 => too_large(&part, operation, &refusal),
                        _ => None,
                    };
                    if let Some(TooLarge { letter, short }) = too_large {
                        too_large::tell(&letter);
                        // It settles with its safe form.
                        letters.push((None, letter));
                        parts.push(short);
                    } else if operation.is_safe_form {
                        let refused = (operation.clone(), refusal);
                        give_up(&part, refused, &mut letters, &mut delivered);
                    } else {
                        let why = (operation.clone(), refusal.error_type.clone());
                        first_refused.get_or_insert(why);
                        parts.push(in_safe_form(&part, &[(operation.clone(), refusal)]));
                    }
                }
                Attempt::TooLarge(_) => {
                    let (left, right) = part.halves();
                    parts.extend([right, left]);
                }
                Attempt::Transient(fault) => again = Some((part, fault)),
                Attempt::Blocked(fault) => {
                    self.hold(&mut backoff, &fault, part.operations.len()).await;
                    parts.push(part);
                }
            }
            if let Some((part, fault)) = again {
                let failure = self.failed(&mut backoff, &fault, &part);
                let smaller = match fault.overloaded {
                    true => {
                        self.smaller(part, failure, &mut letters, &mut delivered)
                            .await
                    }
                    false => vec![part],
                };
                if !smaller.is_empty() {
                    sleep(pause(failure.wait, &fault)).await;
                }
                parts.extend(smaller);
            }
        }
        if let Some((first, error_type)) = first_refused
            && delivered.safe_form > 0
        {
            // One line a batch, however many there are; the reasons lie with the documents.
            warn!(
                documents = delivered.safe_form,
                first_id = %first.id,
                index = %first.index_name,
                error_type,
                "refused as it was, stored in safe form"
            );
        }
        self.keep(letters, &mut delivered).await;
        delivered
    }

    /// One attempt, counted.
    async fn send(&self, part: &Batch) -> Attempt {
        let Stats {
            in_flight_requests,
            elasticsearch,
            ..
        } = &*self.stats;
        in_flight_requests.fetch_add(1, Ordering::Relaxed);
        let began = Instant::now();
        let (documents, bytes) = (part.operations.len(), part.body.len());
        let attempt = self.sink.send(part.body.clone(), documents).await;
        in_flight_requests.fetch_sub(1, Ordering::Relaxed);
        self.stats.note_request(BulkRequest {
            ended_ms: chrono::Utc::now().timestamp_millis(),
            documents,
            bytes,
            duration: began.elapsed(),
            outcome: attempt.outcome(),
        });
        match &attempt {
            Attempt::Transient(fault) | Attempt::Blocked(fault) => {
                elasticsearch.failed(fault.reason, &fault.what);
            }
            _ => {
                if let Some(lasted) = elasticsearch.answered() {
                    info!(after = ?lasted, "Elasticsearch answers again");
                }
            }
        }
        attempt
    }

    /// Notes a failure that passes by itself, and says so. If it lasts, is of one document alone, and
    /// that or another request has been answered since it began, it may be that document's
    /// doing, so it is named.
    fn failed(&self, backoff: &mut Backoff, fault: &Fault, part: &Batch) -> Failure {
        if fault.overloaded {
            self.in_flight.shrink();
        }
        let failure = backoff.failed();
        let documents = part.operations.len();
        Stats::add(&self.stats.retried, documents as u64);
        let Fault { what, mend, .. } = fault;
        let (failures, pause) = (failure.failures, pause(failure.wait, fault));
        let elasticsearch = &self.stats.elasticsearch;
        match elasticsearch.line(fault.reason, failure.failing(), false) {
            Line::None => {}
            Line::Lasting => {
                let is_answered = fault.reason != Reason::Unreachable
                    || elasticsearch.unanswered() + AT_ONCE < failure.lasting;
                let alone = part.operations.first();
                let alone = alone.filter(|_| documents == 1 && is_answered);
                warn!(
                    documents,
                    id = alone.map(|operation| field::display(&operation.id)),
                    index = alone.map(|operation| &*operation.index_name),
                    bytes = alone.map(|operation| operation.end - operation.source_start - 1),
                    failures,
                    ?pause,
                    mend,
                    "bulk request failed, trying again: {what}"
                );
            }
            Line::Brief => info!(
                documents,
                failures,
                ?pause,
                mend,
                "bulk request failed, trying again: {what}"
            ),
        }
        failure
    }

    async fn hold(&self, backoff: &mut Backoff, fault: &Fault, documents: usize) {
        let failure = backoff.failed();
        let Fault { what, mend, .. } = fault;
        let pause = pause(failure.wait, fault);
        let elasticsearch = &self.stats.elasticsearch;
        let line = elasticsearch.line(fault.reason, failure.failing(), true);
        if line == Line::None {
            // It has been told of.
        } else if fault.may_pass && line == Line::Brief {
            warn!(
                documents,
                ?pause,
                mend,
                "trying again for a minute, as this may pass: {what}"
            );
        } else {
            error!(
                documents,
                ?pause,
                mend,
                "blocked, nothing is lost, holding: {what}"
            );
        }
        sleep(pause).await;
    }
}

/// A part's documents by what became of them; settled ones are already counted.
#[derive(Default)]
struct Sorted {
    transient: Vec<Operation>,
    transient_fault: Option<Fault>,
    /// By index: each has its own reason.
    blocked: BTreeMap<Arc<str>, (Vec<Operation>, Fault)>,
    /// To be sent in safe form.
    refused: Vec<(Operation, Refusal)>,
    /// In safe form too.
    refused_for_good: Vec<(Operation, Refusal)>,
}

fn sort(part: &Batch, outcomes: Vec<Outcome>, delivered: &mut Delivered) -> Sorted {
    let mut sorted = Sorted::default();
    for (operation, outcome) in part.operations.iter().zip(outcomes) {
        match outcome {
            Outcome::Created => delivered.created(operation),
            Outcome::AlreadyThere => {
                delivered.already_there += 1;
                delivered.stored(operation);
            }
            Outcome::Transient(fault) => {
                sorted.transient.push(operation.clone());
                sorted.transient_fault.get_or_insert(fault);
            }
            Outcome::Blocked(fault) => {
                let index = operation.index_name.clone();
                let blocked = sorted.blocked.entry(index);
                let (operations, _) = blocked.or_insert_with(|| (Vec::new(), fault));
                operations.push(operation.clone());
            }
            Outcome::Refused(refusal) if !operation.is_safe_form => {
                sorted.refused.push((operation.clone(), refusal));
            }
            Outcome::Refused(refusal) => {
                sorted.refused_for_good.push((operation.clone(), refusal));
            }
        }
    }
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_left_alone_for_as_long_as_it_asks_but_not_for_ever() {
        let wait = Duration::from_secs(5);
        for (asked, expected) in [(None, 5), (Some(2), 5), (Some(7), 7), (Some(86_400), 60)] {
            let fault = Fault {
                retry_after: asked.map(Duration::from_secs),
                ..Fault::default()
            };
            assert_eq!(
                pause(wait, &fault),
                Duration::from_secs(expected),
                "{asked:?}"
            );
        }
    }
}
