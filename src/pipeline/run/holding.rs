//! The loop's part for documents whose index is blocked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{error, info};

use super::Loop;
use crate::checkpoint::{BlockedDocument, BlockedError, CheckpointError};
use crate::output::Chain;
use crate::pipeline::Sink;
use crate::pipeline::batch::Batch;
use crate::pipeline::delivery::{Fault, FromDisk, Held};
use crate::telemetry::Reason;

/// Documents of a blocked index that were to be stored, and how many were new.
pub(super) type Storing = (Batch, Result<u64, BlockedError>);

impl<K: Sink> Loop<K> {
    /// Puts documents of blocked indices aside, so that those of others go on, and takes back those
    /// of an index that a probe has found open.
    pub(super) fn put_aside(
        &mut self,
        blocked: BTreeMap<Arc<str>, Held>,
        probe: Option<Arc<str>>,
        from_disk: Option<FromDisk>,
    ) {
        let mut is_blocked = false;
        for (index, held) in blocked {
            let is_probe = probe.as_ref() == Some(&index);
            is_blocked |= is_probe;
            let now = Instant::now();
            let told = self.blocked.put_aside(&index, held.batches, is_probe, now);
            self.say_blocked(&index, told, &held.fault);
        }
        if self.is_stopping {
            self.blocked.all_last();
        }
        if let Some((index, from_disk)) = probe.as_ref().zip(from_disk) {
            let FromDisk {
                settled,
                is_left,
                fault,
            } = from_disk;
            is_blocked = fault.is_some();
            let now = Instant::now();
            let told = self
                .blocked
                .sent_from_disk(index, settled, is_left, is_blocked, now);
            if let Some(fault) = fault {
                self.say_blocked(index, told, &fault);
            }
        }
        if let Some(index) = probe
            && !is_blocked
        {
            let limits = &self.settings.batch;
            self.stats.let_go(&index);
            let (freed, was_open) = self.blocked.free(&index, limits, Instant::now());
            if !was_open {
                info!(%index, "no longer blocked");
            }
            self.ready.extend(freed);
        }
        self.count_blocked();
    }

    fn say_blocked(&self, index: &Arc<str>, told: Option<Duration>, fault: &Fault) {
        let Fault { what, mend, .. } = fault;
        self.stats.hold_up(index, fault.reason, what, mend);
        let Some(pause) = told else { return };
        let documents = self.blocked.documents();
        error!(
            %index,
            documents,
            ?pause,
            mend,
            "blocked, nothing is lost, holding: {what}"
        );
    }

    /// What an earlier process has left in the state file is sent from there.
    pub(super) async fn remember_blocked(&mut self) -> Result<(), CheckpointError> {
        let (checkpoint, run) = (self.checkpoint.clone(), self.run);
        let indices = tokio::task::spawn_blocking(move || checkpoint.blocked_indices(run))
            .await
            .expect("listing the blocked indices does not panic")?;
        for (index, documents) in indices {
            info!(
                index,
                documents, "documents of an index that was blocked wait in the state file"
            );
            let index: Arc<str> = index.into();
            let what = "its documents wait in the state file since an earlier run";
            self.stats.hold_up(&index, Reason::Other, what, "");
            self.blocked.remember(index, documents, Instant::now());
        }
        self.count_blocked();
        Ok(())
    }

    pub(super) fn storing_is_wanted(&self) -> bool {
        self.storing.is_none() && self.blocked.has_lasting()
    }

    /// Brings documents whose index stays blocked into the state file.
    pub(super) fn begin_storing(&mut self) {
        let Some(batch) = self.blocked.take_lasting(&self.settings.batch) else {
            return;
        };
        let (checkpoint, run) = (self.checkpoint.clone(), self.run);
        let cap = self.settings.blocked_bytes;
        self.storing = Some(tokio::task::spawn_blocking(move || {
            let documents = batch.operations.iter().map(|operation| BlockedDocument {
                index_name: &operation.index_name,
                document_id: operation.id.as_str(),
                time_ms: operation.time_ms,
                is_safe_form: operation.is_safe_form,
                document: &batch.body[operation.source_start..operation.end - 1],
            });
            let stored = checkpoint.put_blocked(run, documents, cap);
            (batch, stored)
        }));
    }

    /// What lies on the disk has settled.
    pub(super) fn stored(&mut self, (batch, stored): Storing) {
        let index = batch.probe.clone();
        let index = index.expect("what is taken names its index");
        let now = Instant::now();
        match stored {
            Ok(new) => {
                if let Some(after) = self.storing_backoff.lasting() {
                    info!(%index, ?after, "the state file takes documents of blocked indices again");
                }
                self.storing_backoff.succeeded();
                self.blocked.stored(&index, new, now);
                for page in batch.operations.iter().filter_map(|o| o.page) {
                    if let Some((lane, step)) = self.progress.settle(page, 1) {
                        self.steps.insert(lane, step);
                    }
                }
            }
            Err(failed) => {
                let mend = "open the index again, or raise blocked-bytes";
                let what = format!("holding in memory: {}", Chain(&failed));
                let reason = match failed {
                    BlockedError::Full { .. } => Reason::StoreFull,
                    _ => Reason::Other,
                };
                self.stats.hold_up(&index, reason, &what, mend);
                let failure = self.storing_backoff.failed();
                let pause = failure.wait;
                self.storing_due = now + pause;
                if failure.is_worth_a_line {
                    error!(
                        %index,
                        documents = batch.operations.len(),
                        ?pause,
                        mend,
                        "blocked, nothing is lost, holding in memory: {}",
                        Chain(&failed)
                    );
                }
                self.blocked.take_back(&index, batch, now);
            }
        }
        self.count_blocked();
    }

    pub(super) fn try_blocked(&mut self) {
        for probe in self.blocked.probes(Instant::now()) {
            self.ready.push_front(probe);
        }
    }

    fn count_blocked(&self) {
        let documents = self.blocked.documents();
        let indices = self.blocked.indices() as u64;
        let stats = &self.stats;
        stats.blocked.store(documents, Ordering::Relaxed);
        stats.blocked_indices.store(indices, Ordering::Relaxed);
    }
}

pub(super) async fn join_storing(storing: &mut Option<JoinHandle<Storing>>) -> Storing {
    match storing {
        Some(storing) => storing.await.expect("storing documents does not panic"),
        None => std::future::pending().await,
    }
}
