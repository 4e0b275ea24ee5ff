//! A document that Elasticsearch, or a proxy before it, does not take alone because of its size. It is
//! stored in safe form without its text, so that it is found by user, type and time, and kept whole
//! as a dead letter, as nothing of it may be lost.
//!
//! **413 says so at once. 429 does not:** it means that there is too much to do, but Elasticsearch also
//! answers so, for ever, to what is larger than all the memory that it has for indexing
//! (`indexing_pressure.memory.limit`). The words of the answer are not gone by. So a request
//! is halved while it is refused so, and a large document that has been refused alone for a minute is
//! taken for too large if its safe form is taken at just that time. If that is refused as well, the
//! server has too much to do, and nothing is decided.

use tracing::error;

use super::refused::{dead_letter, give_up};
use super::{Attempt, Delivered, Delivery, Outcome, Refusal, sort};
use crate::checkpoint::DeadLetter;
use crate::document::safe_form;
use crate::pipeline::Sink;
use crate::pipeline::batch::{Batch, Operation};
use crate::pipeline::progress::PageNumber;
use crate::pipeline::retry::Failure;

/// A request of several documents is halved if it is larger and has been refused so often. A server
/// with too much to do takes small ones sooner, too.
const HALVED_BYTES: usize = 64 << 10;
const TRIES: u32 = 3;

/// A smaller document is never refused for its size by a server that anybody works with.
const LARGE_BYTES: usize = 1 << 20;

/// A document that is kept whole, and its safe form without its text, which is to be stored.
pub(super) struct TooLarge {
    pub(super) letter: DeadLetter,
    pub(super) short: Batch,
}

/// `None` if what was refused is the safe form without its text.
#[cold]
pub(super) fn too_large(
    part: &Batch,
    operation: &Operation,
    refusal: &Refusal,
) -> Option<TooLarge> {
    let letter = dead_letter(part, operation, refusal.clone())?;
    let mut body = part.body[operation.start..operation.source_start].to_vec();
    let source_start = body.len();
    let reason = format!(
        "{}; its text is left out here and kept as a dead letter",
        letter.reason
    );
    safe_form::write_without_raw(
        &letter.document,
        operation.time_ms,
        &letter.error_type,
        &reason,
        &mut body,
    );
    body.push(b'\n');
    let operation = Operation {
        start: 0,
        source_start,
        end: body.len(),
        is_safe_form: true,
        ..operation.clone()
    };
    Some(TooLarge {
        letter,
        short: Batch {
            body: body.into(),
            operations: vec![operation],
            ..Batch::default()
        },
    })
}

/// Says loudly and by name what has become of it.
pub(super) fn tell(letter: &DeadLetter) {
    error!(
        id = letter.document_id,
        index = letter.index_name,
        event_type = letter.event_type,
        bytes = letter.document.len(),
        error_type = letter.error_type,
        mend = "raise the server's or the proxy's limit, delete the document there, then \
                `dead-letters retry`",
        "too large for Elasticsearch: stored in safe form without its text, kept whole as a dead \
         letter"
    );
}

impl<K: Sink> Delivery<K> {
    /// What to send next after a request was refused because there is too much to do; nothing if it
    /// has settled all the same.
    pub(super) async fn smaller(
        &self,
        part: Batch,
        failure: Failure,
        letters: &mut Vec<(Option<PageNumber>, DeadLetter)>,
        delivered: &mut Delivered,
    ) -> Vec<Batch> {
        if let [operation] = &part.operations[..] {
            let is_settled = failure.is_lasting()
                && part.body.len() > LARGE_BYTES
                && self
                    .is_stored_short(&part, operation, letters, delivered)
                    .await;
            return if is_settled { Vec::new() } else { vec![part] };
        }
        if part.body.len() <= HALVED_BYTES || failure.failures < TRIES {
            return vec![part];
        }
        let (left, right) = part.halves();
        vec![right, left]
    }

    /// Whether a document's safe form without its text was taken, while the document is not.
    async fn is_stored_short(
        &self,
        part: &Batch,
        operation: &Operation,
        letters: &mut Vec<(Option<PageNumber>, DeadLetter)>,
        delivered: &mut Delivered,
    ) -> bool {
        let refusal = Refusal {
            status: 429,
            error_type: "es_rejected_execution_exception".into(),
            reason: "the document alone is larger than what indexing_pressure.memory.limit lets \
                     through"
                .into(),
        };
        let Some(TooLarge { letter, short }) = too_large(part, operation, &refusal) else {
            return false;
        };
        let outcomes = match self.sink.send(short.body.clone(), 1).await {
            Attempt::AllCreated => vec![Outcome::Created],
            Attempt::Items(outcomes) => outcomes,
            _ => return false,
        };
        let sorted = sort(&short, outcomes, delivered);
        if !sorted.transient.is_empty() || !sorted.blocked.is_empty() {
            return false;
        }
        tell(&letter);
        letters.push((None, letter));
        for refused in sorted.refused_for_good {
            give_up(&short, refused, letters, delivered);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use bytes::Bytes;
    use serde_json::{Value, json};
    use tokio::time::Instant;

    use super::super::{Fault, InFlight};
    use super::*;
    use crate::checkpoint::{Checkpoint, DeadLetterFilter, PagePlace};
    use crate::document::DocumentId;
    use crate::pipeline::batch::{BatchLimits, StoredDocument};

    /// Takes requests of so many bytes at most, and none before its time.
    struct Server {
        most_bytes: usize,
        opens: Instant,
        stored: Mutex<Vec<Value>>,
    }

    impl Sink for Arc<Server> {
        async fn send(&self, body: Bytes, _operations: usize) -> Attempt {
            if Instant::now() < self.opens || body.len() > self.most_bytes {
                return Attempt::Transient(Fault {
                    overloaded: true,
                    ..Fault::default()
                });
            }
            let lines = body.split(|byte| *byte == b'\n').skip(1).step_by(2);
            let documents = lines.map(|line| serde_json::from_slice(line).unwrap());
            self.stored.lock().unwrap().extend(documents);
            Attempt::AllCreated
        }
    }

    /// What a server has after a small document, several that are too large together, and one that
    /// may be so alone; what the store has; and how long it took.
    async fn deliver(most_bytes: usize, closed: Duration) -> (Vec<Value>, Vec<Value>, Duration) {
        let began = Instant::now();
        let sink = Arc::new(Server {
            most_bytes,
            opens: began + closed,
            stored: Mutex::default(),
        });
        let checkpoint = Arc::new(Checkpoint::open_in_memory().unwrap());
        let run = checkpoint.daemon_run("c", || 0).unwrap().0.id;
        let limits = BatchLimits {
            bytes: usize::MAX,
            documents: 10,
            age: Duration::ZERO,
        };
        let delivery = Delivery {
            sink: sink.clone(),
            checkpoint: checkpoint.clone(),
            run,
            dead_letter_bytes: u64::MAX,
            in_flight: InFlight::new(1),
            limits,
            stats: Arc::default(),
        };
        let documents = SIZES.map(|bytes| StoredDocument {
            index_name: "i".into(),
            id: DocumentId::of_own(0, &[&bytes.to_be_bytes()]),
            time_ms: 0,
            is_safe_form: false,
            source: event(bytes).to_string().into(),
        });
        delivery.deliver(Batch::of_stored(&documents)).await;
        let letters = checkpoint
            .dead_letter_page(&DeadLetterFilter::default(), PagePlace::default(), u64::MAX)
            .unwrap();
        let letters = letters.letters.iter().map(|(_, letter)| {
            assert!(letter.is_too_large(), "{letter:?}");
            serde_json::from_slice(&letter.document).unwrap()
        });
        let stored = sink.stored.lock().unwrap().clone();
        (stored, letters.collect(), began.elapsed())
    }

    const SIZES: [usize; 4] = [1, 600_000, 700_000, 1_500_000];

    fn event(bytes: usize) -> Value {
        json!({"event": format!("of {bytes}"), "user": "alice", "message": "x".repeat(bytes)})
    }

    fn kinds(documents: &[Value]) -> Vec<(&str, bool)> {
        let mut kinds: Vec<_> = documents
            .iter()
            .map(|document| {
                let is_short = document.get("event_indexer.refused.type").is_some();
                (document["event"].as_str().unwrap(), is_short)
            })
            .collect();
        kinds.sort_unstable();
        kinds
    }

    #[tokio::test(start_paused = true)]
    async fn a_document_that_is_refused_alone_while_others_are_taken_is_too_large() {
        let (stored, letters, _) = deliver(1_200_000, Duration::ZERO).await;
        let expected = [
            ("of 1", false),
            ("of 1500000", true),
            ("of 600000", false),
            ("of 700000", false),
        ];
        assert_eq!(kinds(&stored), expected);
        assert_eq!(letters, [event(1_500_000)]);
        let short = stored
            .iter()
            .find(|document| document["event"] == "of 1500000");
        let short = short.unwrap();
        assert_eq!(short["user"], "alice");
        assert_eq!(short.get("event_indexer.raw"), None);
        let reason = short["event_indexer.refused.reason"].as_str().unwrap();
        assert!(reason.contains("kept as a dead letter"), "{reason}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_takes_nothing_for_an_hour_finds_no_document_too_large() {
        let hour = Duration::from_secs(3600);
        let (stored, letters, took) = deliver(usize::MAX, hour).await;
        assert_eq!(
            kinds(&stored)
                .iter()
                .filter(|(_, is_short)| *is_short)
                .count(),
            0
        );
        assert_eq!((stored.len(), letters.len()), (SIZES.len(), 0));
        assert!(took >= hour);
    }
}
