//! Refused documents: in safe form first, then dead letters.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::sleep;
use tracing::{error, info, warn};

use super::{Delivered, Delivery, Fault, Refusal};
use crate::checkpoint::{DeadLetter, DeadLetterError, DocumentForm};
use crate::document::safe_form::{self, Original};
use crate::output::Chain;
use crate::pipeline::Sink;
use crate::pipeline::batch::{Batch, Operation};
use crate::pipeline::progress::PageNumber;
use crate::pipeline::retry::Backoff;

impl<K: Sink> Delivery<K> {
    /// Puts letters into the store; waits for ever where it cannot.
    pub(super) async fn keep(
        &self,
        letters: Vec<(Option<PageNumber>, DeadLetter)>,
        delivered: &mut Delivered,
    ) {
        if letters.is_empty() {
            return;
        }
        let (pages, letters): (Vec<_>, Vec<_>) = letters.into_iter().unzip();
        let letters = Arc::new(letters);
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        loop {
            let Err(Fault { what, mend, .. }) = self.try_to_keep(&letters).await else {
                break;
            };
            let failure = backoff.failed();
            let pause = failure.wait;
            if failure.is_worth_a_line {
                error!(
                    documents = letters.len(),
                    ?pause,
                    mend,
                    "cannot keep dead letters, nothing is lost, holding: {what}"
                );
            }
            sleep(pause).await;
        }
        if let Some(after) = backoff.lasting() {
            info!(?after, "dead letters can be kept again");
        }
        for page in pages {
            delivered.settle(page);
        }
        let key = |letter: &DeadLetter| (letter.document_id.clone(), letter.index_name.clone());
        delivered.dead_letters = letters.iter().map(key).collect();
        // One line a batch, however many there are; `status` counts them by error type.
        let first = &letters[0];
        warn!(
            documents = letters.len(),
            first_id = first.document_id,
            index = first.index_name,
            event_type = first.event_type,
            error_type = first.error_type,
            "dead letter: kept with the reason"
        );
    }

    async fn try_to_keep(&self, letters: &Arc<Vec<DeadLetter>>) -> Result<(), Fault> {
        if let Some(kept) = self.sink.keep(letters, self.dead_letter_bytes).await {
            return kept;
        }
        let (checkpoint, kept) = (self.checkpoint.clone(), letters.clone());
        let (run, cap) = (self.run, self.dead_letter_bytes);
        let stored = tokio::task::spawn_blocking(move || {
            checkpoint.insert_dead_letters(run, &kept, cap).map(drop)
        });
        let stored = stored.await.expect("storing dead letters does not panic");
        stored.map_err(|failed| Fault {
            what: Chain(&failed).to_string(),
            mend: match failed {
                DeadLetterError::Full { .. } => {
                    "find out why they were refused, then raise dead-letter-bytes"
                }
                DeadLetterError::Checkpoint(_) => "see to the storage directory",
            }
            .to_owned(),
            ..Fault::default()
        })
    }
}

/// The same documents in safe form, under the same ids in the same indices.
#[cold]
pub(super) fn in_safe_form(part: &Batch, refused: &[(Operation, Refusal)]) -> Batch {
    let mut body = Vec::new();
    let mut operations = Vec::with_capacity(refused.len());
    for (operation, refusal) in refused {
        let start = body.len();
        body.extend_from_slice(&part.body[operation.start..operation.source_start]);
        let source_start = body.len();
        let Refusal {
            error_type, reason, ..
        } = refusal;
        let source = part.source(operation);
        safe_form::write(&source, operation.time_ms, error_type, reason, &mut body);
        body.push(b'\n');
        operations.push(Operation {
            start,
            source_start,
            end: body.len(),
            is_safe_form: true,
            ..operation.clone()
        });
    }
    Batch {
        body: body.into(),
        operations,
        ..Batch::default()
    }
}

/// What is kept of a document that was refused in safe form too, or is too large: the document as
/// it was first. `None` of a safe form without its text, as the document lies in the store already.
pub(super) fn dead_letter(
    part: &Batch,
    operation: &Operation,
    mut refusal: Refusal,
) -> Option<DeadLetter> {
    let mut source = part.source(operation);
    if operation.is_safe_form {
        let original = Original::of(&source)?;
        source = original.source.into();
        let Refusal {
            error_type, reason, ..
        } = &refusal;
        refusal.reason = format!("{}; in safe form: {error_type}: {reason}", original.reason);
        refusal.error_type = original.error_type;
    }
    Some(DeadLetter {
        document_id: operation.id.to_string(),
        index_name: operation.index_name.to_string(),
        event_type: event_type_of(&source),
        time_ms: Some(operation.time_ms),
        document: source.to_vec(),
        form: DocumentForm::Json,
        status: Some(refusal.status),
        error_type: refusal.error_type,
        reason: refusal.reason,
        first_seen_ms: chrono::Utc::now().timestamp_millis(),
    })
}

/// Gives a document up: its letter joins the others, and with that it settles.
pub(super) fn give_up(
    part: &Batch,
    (operation, refusal): (Operation, Refusal),
    letters: &mut Vec<(Option<PageNumber>, DeadLetter)>,
    delivered: &mut Delivered,
) {
    let error_type = refusal.error_type.clone();
    match dead_letter(part, &operation, refusal) {
        Some(letter) => letters.push((operation.page, letter)),
        None => {
            warn!(
                id = %operation.id,
                index = %operation.index_name,
                error_type,
                "refused in safe form without its text, too: it is a dead letter alone"
            );
            delivered.settle(operation.page);
        }
    }
}

/// The `event` of a document; empty if it has none that is a text.
fn event_type_of(source: &Bytes) -> String {
    #[derive(serde::Deserialize)]
    struct Head {
        event: String,
    }
    serde_json::from_slice::<Head>(source)
        .map(|head| head.event)
        .unwrap_or_default()
}
