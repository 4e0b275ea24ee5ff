//! Documents put aside because their index is blocked. They hold no request's slot, but their
//! pages' memory. Pure: no I/O, and the clock is told.
//!
//! Each index is tried by itself, by one batch at a time: what keeps one index closed for days says
//! nothing about another that was closed for a moment.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::batch::{Batch, BatchLimits};
use super::retry::Backoff;

/// The first and the longest pause between two attempts at an index.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The blocked indices and what waits for each.
#[derive(Debug, Default)]
pub(super) struct Blocked {
    indices: BTreeMap<Arc<str>, Index>,
}

#[derive(Debug)]
struct Index {
    waiting: Vec<Batch>,
    backoff: Backoff,
    /// When to try again; none while a probe is under way.
    due: Option<Instant>,
}

impl Blocked {
    /// Puts a batch of documents of blocked indices aside; `probe` is the index that the batch was
    /// to try out, if any. Returns the indices that are tried again later because of this, and in
    /// how long: not those which were known to be blocked.
    pub(super) fn put_aside(
        &mut self,
        batch: &Batch,
        probe: Option<&str>,
        now: Instant,
    ) -> Vec<(Arc<str>, Duration)> {
        let mut by_index: BTreeMap<&Arc<str>, Vec<_>> = BTreeMap::new();
        for operation in &batch.operations {
            let operations = by_index.entry(&operation.index_name).or_default();
            operations.push(operation.clone());
        }
        let mut told = Vec::new();
        for (name, operations) in by_index {
            let is_new = !self.indices.contains_key(name);
            let index = self.indices.entry(name.clone()).or_insert_with(|| Index {
                waiting: Vec::new(),
                backoff: Backoff::new(RETRY.0, RETRY.1),
                due: None,
            });
            index.waiting.push(batch.of(operations));
            if is_new || probe == Some(name) {
                let pause = index.backoff.failed().wait;
                index.due = Some(now + pause);
                told.push((name.clone(), pause));
            }
        }
        told
    }

    /// When an index is to be tried next.
    pub(super) fn due(&self) -> Option<Instant> {
        self.indices.values().filter_map(|index| index.due).min()
    }

    /// One batch for each index whose time has come.
    pub(super) fn probes(&mut self, now: Instant) -> Vec<Batch> {
        let mut probes = Vec::new();
        for (name, index) in &mut self.indices {
            if index.due.is_some_and(|due| due <= now)
                && let Some(mut batch) = index.waiting.pop()
            {
                index.due = None;
                batch.probe = Some(name.clone());
                probes.push(batch);
            }
        }
        probes
    }

    /// A probe got through: gives all that waits for the index, in batches within `limits`.
    pub(super) fn free(&mut self, name: &str, limits: &BatchLimits) -> Vec<Batch> {
        let Some(Index { waiting, .. }) = self.indices.remove(name) else {
            return Vec::new();
        };
        let mut freed = Vec::new();
        let mut parts: Vec<Batch> = Vec::new();
        let (mut bytes, mut documents) = (0, 0);
        for batch in waiting {
            let is_full = bytes + batch.body.len() > limits.bytes
                || documents + batch.operations.len() > limits.documents;
            if is_full && !parts.is_empty() {
                freed.push(Batch::joined(&std::mem::take(&mut parts)));
                (bytes, documents) = (0, 0);
            }
            bytes += batch.body.len();
            documents += batch.operations.len();
            parts.push(batch);
        }
        if !parts.is_empty() {
            freed.push(Batch::joined(&parts));
        }
        freed
    }

    /// How many documents wait, not counting those under way in a probe.
    pub(super) fn documents(&self) -> usize {
        let batches = self.indices.values().flat_map(|index| &index.waiting);
        batches.map(|batch| batch.operations.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::DocumentId;
    use crate::pipeline::batch::Operation;
    use crate::pipeline::progress::{Lane, Progress};

    /// A batch with one document for each of these indices.
    fn batch(indices: &[&str]) -> Batch {
        let mut body = Vec::new();
        let operations = indices.iter().map(|index| {
            let start = body.len();
            body.extend_from_slice(b"{}\n");
            body.extend_from_slice(index.as_bytes());
            body.push(b'\n');
            Operation {
                start,
                source_start: start + 3,
                end: body.len(),
                page: Some(Progress::<(), ()>::default().take(Lane(0), None, ())),
                index_name: (*index).into(),
                id: DocumentId::of_own(0, &[]),
                time_ms: 0,
                is_safe_form: false,
            }
        });
        let operations = operations.collect();
        Batch {
            body: body.into(),
            operations,
            ..Batch::default()
        }
    }

    fn names(told: Vec<(Arc<str>, Duration)>) -> Vec<String> {
        told.into_iter().map(|(name, _)| name.to_string()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn an_index_that_stays_closed_does_not_hold_up_one_that_opens() {
        let limits = BatchLimits {
            bytes: 1000,
            documents: 2,
            age: Duration::ZERO,
        };
        let mut blocked = Blocked::default();
        let now = Instant::now();
        for _ in 0..50 {
            blocked.put_aside(&batch(&["shut"]), None, now);
        }
        let told = blocked.put_aside(&batch(&["moment", "shut", "moment"]), None, now);
        assert_eq!(names(told), ["moment"]);
        blocked.put_aside(&batch(&["moment"]), None, now);
        assert_eq!(blocked.documents(), 54);
        assert!(blocked.due().is_some_and(|due| due > now));
        assert!(blocked.probes(now).is_empty());

        let later = now + RETRY.0;
        let probes = blocked.probes(later);
        let of: Vec<_> = probes.iter().map(|p| p.probe.as_deref().unwrap()).collect();
        assert_eq!(of, ["moment", "shut"]);
        assert_eq!((blocked.due(), blocked.probes(later).len()), (None, 0));
        let told = blocked.put_aside(&probes[1], Some("shut"), later);
        assert_eq!(names(told), ["shut"]);

        let freed = blocked.free("moment", &limits);
        let sizes: Vec<_> = freed.iter().map(|batch| batch.operations.len()).collect();
        assert_eq!(sizes, [2]);
        assert_eq!(freed[0].body, "{}\nmoment\n{}\nmoment\n");
        assert!(blocked.free("moment", &limits).is_empty());
        assert_eq!(blocked.documents(), 51);
        let sizes = blocked.free("shut", &limits);
        assert_eq!(sizes.len(), 26);
        assert_eq!(blocked.due(), None);
    }
}
