//! Documents of a blocked index that wait in the state file: sent from there, a batch at a time.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Delivered, Delivery, Fault, FromDisk};
use crate::checkpoint::{Checkpoint, CheckpointError, WaitingDocument};
use crate::document::DocumentId;
use crate::output::Chain;
use crate::pipeline::Sink;
use crate::pipeline::batch::{Batch, StoredDocument};

impl<K: Sink> Delivery<K> {
    /// Sends some of the documents that wait for an index in the state file, and forgets those that
    /// have settled.
    pub(super) async fn deliver_from_disk(&self, index: Arc<str>) -> Delivered {
        let (run, limits, name) = (self.run, self.limits, index.clone());
        let read = move |checkpoint: &Checkpoint| {
            checkpoint.waiting(run, &name, limits.documents, limits.bytes)
        };
        let waiting = match self.at_state_file(read).await {
            Ok(waiting) => waiting,
            Err(failed) => {
                return Delivered {
                    from_disk: Some(FromDisk {
                        settled: 0,
                        is_left: true,
                        fault: Some(state_fault(&failed)),
                    }),
                    probe: Some(index),
                    ..Delivered::default()
                };
            }
        };
        let (numbers, documents) = stored_documents(&index, waiting);
        let mut delivered = self.send_all(Batch::of_stored(&documents)).await;
        let held = std::mem::take(&mut delivered.blocked);
        let operations = held.values().flat_map(|held| &held.batches);
        let blocked: HashSet<DocumentId> = operations
            .flat_map(|batch| batch.operations.iter().map(|operation| operation.id))
            .collect();
        let settled: Vec<i64> = numbers
            .into_iter()
            .filter_map(|(number, id)| (!blocked.contains(&id)).then_some(number))
            .collect();
        let (count, name) = (settled.len() as u64, index.clone());
        let forget = move |checkpoint: &Checkpoint| checkpoint.settle_blocked(run, &name, &settled);
        let fault = held.into_values().next().map(|held| held.fault);
        delivered.from_disk = Some(match self.at_state_file(forget).await {
            Ok(is_left) => FromDisk {
                settled: count,
                is_left,
                fault,
            },
            // They are sent once more then, and found to be there.
            Err(failed) => FromDisk {
                settled: 0,
                is_left: true,
                fault: Some(state_fault(&failed)),
            },
        });
        delivered.probe = Some(index);
        delivered
    }

    async fn at_state_file<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Checkpoint) -> Result<T, CheckpointError> + Send + 'static,
    ) -> Result<T, CheckpointError> {
        let checkpoint = self.checkpoint.clone();
        let work = tokio::task::spawn_blocking(move || work(&checkpoint));
        work.await.expect("work at the state file does not panic")
    }
}

/// Documents that waited for an index as a batch takes them, and their numbers in the state file.
fn stored_documents(
    index: &str,
    waiting: Vec<WaitingDocument>,
) -> (Vec<(i64, DocumentId)>, Vec<StoredDocument>) {
    let mut numbers = Vec::with_capacity(waiting.len());
    let mut documents = Vec::with_capacity(waiting.len());
    for waiting in waiting {
        let id = waiting.document_id.parse();
        let id: DocumentId = id.expect("only ids of documents were stored");
        numbers.push((waiting.number, id));
        documents.push(StoredDocument {
            index_name: index.to_owned(),
            id,
            time_ms: waiting.time_ms,
            is_safe_form: waiting.is_safe_form,
            source: waiting.document,
        });
    }
    (numbers, documents)
}

fn state_fault(failed: &CheckpointError) -> Fault {
    Fault {
        what: Chain(failed).to_string(),
        mend: "see to the storage directory".to_owned(),
        ..Fault::default()
    }
}
