//! Documents put aside because their index is blocked. They hold no request's slot. Pure: no I/O,
//! and the clock is told.
//!
//! Each index is tried by itself, by one batch at a time: what keeps one index closed for days says
//! nothing about another that was closed for a moment.
//!
//! At first they wait in memory, where they hold that of their pages. A block that outlasts the
//! first attempt is *lasting*: from then on the documents go into the state file, where they cost
//! no memory, and as they are on the disk, they have settled. They are sent from there, a batch at
//! a time, once the index opens, also by the next process.

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
    /// Documents in the state file.
    on_disk: u64,
    /// It was tried in vain.
    is_lasting: bool,
    /// It is not known to have opened.
    is_shut: bool,
    backoff: Backoff,
    is_probing: bool,
    /// When to try again; none while a probe is under way, and while there is nothing to try it
    /// with.
    due: Option<Instant>,
}

impl Index {
    fn new() -> Self {
        Self {
            waiting: Vec::new(),
            on_disk: 0,
            is_lasting: false,
            is_shut: true,
            is_probing: false,
            backoff: Backoff::new(RETRY.0, RETRY.1),
            due: None,
        }
    }

    /// Returns in how long it is tried again, if that is worth a line.
    fn failed(&mut self, now: Instant) -> Option<Duration> {
        let failure = self.backoff.failed();
        self.due = Some(now + failure.wait);
        self.is_shut = true;
        failure.is_worth_a_line.then_some(failure.wait)
    }

    /// There is something to try it with.
    fn wake(&mut self, now: Instant) {
        if !self.is_probing {
            self.due.get_or_insert(now);
        }
    }
}

impl Blocked {
    /// An index for which documents wait in the state file since an earlier process. It is tried at
    /// once.
    pub(super) fn remember(&mut self, name: Arc<str>, on_disk: u64, now: Instant) {
        let index = self.indices.entry(name).or_insert_with(Index::new);
        index.on_disk = on_disk;
        index.is_lasting = true;
        index.due = Some(now);
    }

    /// Puts documents of a blocked index aside; `is_probe` if they were to try it out. Returns in
    /// how long it is tried again, if that is worth a line: not if it was known to be blocked.
    pub(super) fn put_aside(
        &mut self,
        name: &Arc<str>,
        batches: Vec<Batch>,
        is_probe: bool,
        now: Instant,
    ) -> Option<Duration> {
        let is_new = !self.indices.contains_key(name);
        let index = self.indices.entry(name.clone()).or_insert_with(Index::new);
        index.waiting.extend(batches);
        if is_probe {
            index.is_probing = false;
            index.is_lasting = true;
        }
        if is_new || is_probe {
            index.failed(now)
        } else {
            None
        }
    }

    /// Nothing waits for any index.
    pub(super) fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// When an index is to be tried next.
    pub(super) fn due(&self) -> Option<Instant> {
        self.indices.values().filter_map(|index| index.due).min()
    }

    /// One batch for each index whose time has come. Without documents if they are in the state
    /// file.
    pub(super) fn probes(&mut self, now: Instant) -> Vec<Batch> {
        let mut probes = Vec::new();
        for (name, index) in &mut self.indices {
            if index.due.is_none_or(|due| due > now) {
                continue;
            }
            index.due = None;
            // What waits in memory first: it holds that of its pages.
            let mut batch = match index.waiting.pop() {
                // All of it is on its way into the state file.
                None if index.on_disk == 0 => continue,
                batch => batch.unwrap_or_default(),
            };
            index.is_probing = true;
            batch.probe = Some(name.clone());
            probes.push(batch);
        }
        probes
    }

    /// A probe got through: gives all that waits in memory for the index, in batches within
    /// `limits`, and whether it was known to have opened. What waits in the state file is next.
    pub(super) fn free(
        &mut self,
        name: &str,
        limits: &BatchLimits,
        now: Instant,
    ) -> (Vec<Batch>, bool) {
        let Some(index) = self.indices.get_mut(name) else {
            return (Vec::new(), true);
        };
        let waiting = std::mem::take(&mut index.waiting);
        let was_open = !std::mem::replace(&mut index.is_shut, false);
        index.is_probing = false;
        index.is_lasting = false;
        index.backoff.succeeded();
        if index.on_disk > 0 {
            index.due = Some(now);
        } else {
            self.indices.remove(name);
        }
        (joined(waiting, limits), was_open)
    }

    /// A probe from the state file came to an end: so many of its documents have settled, and there
    /// are others or not. Returns in how long the index is tried again if it `is_blocked`; if not,
    /// it is to be freed.
    pub(super) fn sent_from_disk(
        &mut self,
        name: &str,
        settled: u64,
        is_left: bool,
        is_blocked: bool,
        now: Instant,
    ) -> Option<Duration> {
        let index = self.indices.get_mut(name)?;
        index.on_disk = index.on_disk.saturating_sub(settled);
        // The count is not exact where others send from there too; this is.
        index.on_disk = if is_left { index.on_disk.max(1) } else { 0 };
        if !is_blocked {
            return None;
        }
        index.is_probing = false;
        index.is_lasting = true;
        index.failed(now)
    }

    /// Takes documents of one index, named as the batch's probe, for the state file: of a lasting
    /// block alone, and about as many as fit into `limits`.
    pub(super) fn take_lasting(&mut self, limits: &BatchLimits) -> Option<Batch> {
        let (name, index) = self
            .indices
            .iter_mut()
            .find(|(_, index)| index.is_lasting && !index.waiting.is_empty())?;
        let (mut parts, mut bytes) = (Vec::new(), 0);
        while let Some(part) = index.waiting.pop() {
            bytes += part.body.len();
            parts.push(part);
            if bytes >= limits.bytes {
                break;
            }
        }
        let mut batch = Batch::joined(&parts);
        batch.probe = Some(name.clone());
        Some(batch)
    }

    /// Documents that were taken lie in the state file; so many were not there before.
    pub(super) fn stored(&mut self, name: &Arc<str>, new: u64, now: Instant) {
        // It may have opened meanwhile.
        let index = self.indices.entry(name.clone()).or_insert_with(Index::new);
        // Even if each was there before: whose it is shows when it is sent.
        index.on_disk = (index.on_disk + new).max(1);
        index.wake(now);
    }

    /// Documents that were taken could not be stored.
    pub(super) fn take_back(&mut self, name: &Arc<str>, batch: Batch, now: Instant) {
        let index = self.indices.entry(name.clone()).or_insert_with(Index::new);
        index.waiting.push(batch);
        index.wake(now);
    }

    /// Something waits in memory for an index whose block lasts.
    pub(super) fn has_lasting(&self) -> bool {
        let mut indices = self.indices.values();
        indices.any(|index| index.is_lasting && !index.waiting.is_empty())
    }

    /// Takes every block for a lasting one: there is no time left to find out.
    pub(super) fn all_last(&mut self) {
        for index in self.indices.values_mut() {
            index.is_lasting = true;
        }
    }

    /// How many indices documents wait for.
    pub(super) fn indices(&self) -> usize {
        self.indices.len()
    }

    /// How many documents wait, not counting those under way in a probe.
    pub(super) fn documents(&self) -> u64 {
        let in_memory = |index: &Index| -> u64 {
            let batches = index.waiting.iter();
            batches.map(|batch| batch.operations.len() as u64).sum()
        };
        let indices = self.indices.values();
        indices.map(|index| in_memory(index) + index.on_disk).sum()
    }
}

/// The same documents in batches within `limits`.
fn joined(waiting: Vec<Batch>, limits: &BatchLimits) -> Vec<Batch> {
    let mut joined = Vec::new();
    let mut parts: Vec<Batch> = Vec::new();
    let (mut bytes, mut documents) = (0, 0);
    for batch in waiting {
        let is_full = bytes + batch.body.len() > limits.bytes
            || documents + batch.operations.len() > limits.documents;
        if is_full && !parts.is_empty() {
            joined.push(Batch::joined(&std::mem::take(&mut parts)));
            (bytes, documents) = (0, 0);
        }
        bytes += batch.body.len();
        documents += batch.operations.len();
        parts.push(batch);
    }
    if !parts.is_empty() {
        joined.push(Batch::joined(&parts));
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::DocumentId;
    use crate::pipeline::batch::Operation;
    use crate::pipeline::progress::{Lane, Progress};

    const LIMITS: BatchLimits = BatchLimits {
        bytes: 1000,
        documents: 2,
        age: Duration::ZERO,
    };

    /// A batch with so many documents for this index.
    fn batch(index: &str, documents: usize) -> Batch {
        let mut body = Vec::new();
        let operations = (0..documents).map(|_| {
            let start = body.len();
            body.extend_from_slice(b"{}\n");
            body.extend_from_slice(index.as_bytes());
            body.push(b'\n');
            Operation {
                start,
                source_start: start + 3,
                end: body.len(),
                page: Some(Progress::<(), ()>::default().take(Lane(0), None, ())),
                index_name: index.into(),
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

    /// Puts a batch aside as the loop does; whether the index is told of.
    fn put(blocked: &mut Blocked, index: &str, documents: usize, is_probe: bool) -> bool {
        let batches = vec![batch(index, documents)];
        let told = blocked.put_aside(&index.into(), batches, is_probe, Instant::now());
        told.is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn an_index_that_stays_closed_does_not_hold_up_one_that_opens() {
        let mut blocked = Blocked::default();
        let now = Instant::now();
        assert!(put(&mut blocked, "shut", 1, false));
        for _ in 0..49 {
            assert!(!put(&mut blocked, "shut", 1, false));
        }
        assert!(put(&mut blocked, "moment", 2, false));
        assert!(!put(&mut blocked, "shut", 1, false));
        assert!(!put(&mut blocked, "moment", 1, false));
        assert_eq!(blocked.documents(), 54);
        assert!(blocked.due().is_some_and(|due| due > now));
        assert!(blocked.probes(now).is_empty());
        assert!(!blocked.has_lasting());

        let later = now + RETRY.0;
        let probes = blocked.probes(later);
        let of: Vec<_> = probes.iter().map(|p| p.probe.as_deref().unwrap()).collect();
        assert_eq!(of, ["moment", "shut"]);
        assert_eq!((blocked.due(), blocked.probes(later).len()), (None, 0));
        // It is told of once a minute.
        assert!(!put(&mut blocked, "shut", 1, true));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(put(&mut blocked, "shut", 0, true));

        let (freed, was_open) = blocked.free("moment", &LIMITS, later);
        let sizes: Vec<_> = freed.iter().map(|batch| batch.operations.len()).collect();
        assert_eq!((sizes, was_open), (vec![2], false));
        assert_eq!(freed[0].body, "{}\nmoment\n{}\nmoment\n");
        assert!(blocked.free("moment", &LIMITS, later).0.is_empty());
        assert_eq!(blocked.documents(), 51);
        assert_eq!(blocked.free("shut", &LIMITS, later).0.len(), 26);
        assert!(blocked.is_empty() && blocked.due().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lasting_block_is_waited_for_in_the_state_file() {
        let shut: Arc<str> = "shut".into();
        let mut blocked = Blocked::default();
        put(&mut blocked, "shut", 2, false);
        put(&mut blocked, "shut", 3, false);
        let now = Instant::now() + RETRY.0;
        assert_eq!(blocked.probes(now).len(), 1);
        assert!(blocked.take_lasting(&LIMITS).is_none());
        put(&mut blocked, "shut", 3, true);

        let taken = blocked.take_lasting(&LIMITS).unwrap();
        assert_eq!(
            (taken.operations.len(), &taken.probe),
            (5, &Some(shut.clone()))
        );
        // Nothing to try it with, until that is written.
        let now = now + RETRY.1;
        assert!(blocked.probes(now).is_empty() && blocked.due().is_none());
        blocked.stored(&shut, 4, now);
        assert_eq!(blocked.documents(), 4);
        let probe = &blocked.probes(now)[0];
        assert!(probe.operations.is_empty() && probe.probe == Some(shut.clone()));
        assert_eq!(blocked.sent_from_disk("shut", 0, true, true, now), None);

        // What comes now goes there at once, unless there is no room.
        put(&mut blocked, "shut", 1, false);
        let taken = blocked.take_lasting(&LIMITS).unwrap();
        blocked.take_back(&shut, taken, now);
        assert!(blocked.has_lasting());
        let now = blocked.due().unwrap();
        let probes = blocked.probes(now);
        assert_eq!(probes[0].operations.len(), 1);
        assert_eq!(blocked.free("shut", &LIMITS, now), (vec![], false));

        // It is open, and the rest comes from the disk page by page.
        for (settled, is_left, left) in [(3, true, 1), (1, false, 0)] {
            assert!(blocked.probes(now)[0].operations.is_empty());
            let told = blocked.sent_from_disk("shut", settled, is_left, false, now);
            assert_eq!((told, blocked.documents()), (None, left));
            assert_eq!(blocked.free("shut", &LIMITS, now), (vec![], true));
        }
        assert!(blocked.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn an_index_that_opens_while_documents_are_written_is_tried_again_for_them() {
        let mut blocked = Blocked::default();
        let now = Instant::now();
        put(&mut blocked, "shut", 1, false);
        put(&mut blocked, "shut", 1, false);
        blocked.all_last();
        let probes = blocked.probes(now + RETRY.0);
        assert_eq!(probes[0].operations.len(), 1);
        let taken = blocked.take_lasting(&LIMITS).unwrap();
        blocked.free("shut", &LIMITS, now);
        assert!(blocked.is_empty());
        // Each of them was there already.
        blocked.stored(&"shut".into(), 0, now);
        assert_eq!((blocked.due(), blocked.probes(now).len()), (Some(now), 1));
        blocked.sent_from_disk("shut", 0, false, false, now);
        blocked.free("shut", &LIMITS, now);
        blocked.take_back(&"shut".into(), taken, now);
        assert_eq!(blocked.probes(now)[0].operations.len(), 1);

        blocked.remember("old".into(), 7, now);
        assert_eq!((blocked.documents(), blocked.probes(now).len()), (7, 1));
    }
}
