//! Counters of one run. Nearly all of them are touched once a page or once a request, not once an
//! event.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::Utc;

use super::reason::{Counts, GAP_REASONS, place};
use super::{End, Lead, Reason};
use crate::event::AuditEvent;

/// Counters of one run, since the process started. Cheap to write, read by progress bars, the
/// minute's log line, metrics and the status page.
#[derive(Debug, Default)]
pub struct Stats {
    /// Events that came from Teleport, filtered ones included.
    pub events: AtomicU64,
    /// Those of them that came by the export API; the others came by search.
    pub exported: AtomicU64,
    /// Whether the export API is in use.
    pub is_export: AtomicBool,
    /// Events that filters took out.
    pub filtered: AtomicU64,
    /// Documents stored.
    pub created: AtomicU64,
    /// Those of them that were stored in safe form, having been refused as they were.
    pub safe_form: AtomicU64,
    /// Documents that were there already.
    pub already_there: AtomicU64,
    /// Documents refused and kept.
    pub dead_letters: AtomicU64,
    /// Spans that could not be read.
    pub gaps: Counts<{ GAP_REASONS.len() }>,
    /// Events that made no document, by [`Reason::OF_EVENTS`].
    pub unconverted: Counts<{ Reason::OF_EVENTS.len() }>,
    /// Checkpoints that could not be written, by [`Reason::OF_COMMITS`].
    pub uncommitted: Counts<{ Reason::OF_COMMITS.len() }>,
    /// Bytes of the documents stored.
    pub document_bytes: AtomicU64,
    /// Everything before this is settled, ms since 1970; 0: not known yet.
    pub position_ms: AtomicI64,
    /// When the position was last committed, ms since 1970; 0: not yet.
    pub committed_ms: AtomicI64,
    /// When the newest event that has settled took place, ms since 1970; 0: none yet.
    pub newest_settled_ms: AtomicI64,
    /// When the newest event was that Teleport had when it was last asked, which is where nothing
    /// moves, ms since 1970; 0: none that has not settled.
    pub newest_at_teleport_ms: AtomicI64,
    /// Documents that wait because their index is blocked.
    pub blocked: AtomicU64,
    /// Indices that are blocked.
    pub blocked_indices: AtomicU64,
    /// From when our certificate for Teleport holds, ms since 1970; 0: not known yet.
    pub certificate_start_ms: AtomicI64,
    /// Until when our certificate for Teleport holds, ms since 1970; 0: not known yet.
    pub certificate_end_ms: AtomicI64,
    /// From when our credentials for Elasticsearch hold, ms since 1970; 0: not known.
    pub credentials_start_ms: AtomicI64,
    /// Until when our credentials for Elasticsearch hold, ms since 1970; 0: not known, or for ever.
    pub credentials_end_ms: AtomicI64,
    /// Documents that were taken in and have not settled.
    pub in_flight_documents: AtomicU64,
    /// Bytes of events that were taken in and have not settled.
    pub in_flight_bytes: AtomicU64,
    /// Bulk requests under way.
    pub in_flight_requests: AtomicU64,
    /// Bulk requests that have ended, by how.
    pub requests: RequestOutcomes,
    /// How long they took.
    pub request_durations: Durations,
    /// Bytes of the bulk requests, before compression.
    pub request_bytes: AtomicU64,
    /// Documents that were sent once more, as what hindered them passes by itself.
    pub retried: AtomicU64,
    /// Whether this process leads, where several may.
    pub lead: Lead,
    /// How Teleport answers.
    pub teleport: End,
    /// How Elasticsearch answers.
    pub elasticsearch: End,
    event_types: Mutex<BTreeMap<Box<str>, u64>>,
    recent: Mutex<VecDeque<BulkRequest>>,
    held_up: Mutex<BTreeMap<Arc<str>, HeldUp>>,
}

/// How a bulk request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestOutcome {
    /// It was answered document by document.
    Answered,
    /// It was too large, or one of its lines spoils it: it is sent in halves.
    Halved,
    /// It failed in a way that passes by itself.
    Transient,
    /// It failed until somebody does something.
    Blocked,
}

impl RequestOutcome {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Answered, Self::Halved, Self::Transient, Self::Blocked];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Halved => "halved",
            Self::Transient => "transient",
            Self::Blocked => "blocked",
        }
    }
}

/// How many bulk requests ended in each way.
#[derive(Debug, Default)]
pub struct RequestOutcomes([AtomicU64; RequestOutcome::ALL.len()]);

impl RequestOutcomes {
    /// How many ended like this.
    pub fn get(&self, outcome: RequestOutcome) -> u64 {
        Stats::get(&self.0[outcome as usize])
    }
}

/// The upper bounds of the buckets of [`Durations`], in milliseconds.
pub const DURATION_BOUNDS: [u64; 12] = [
    5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000,
];

/// A histogram of durations.
#[derive(Debug, Default)]
pub struct Durations {
    /// One for each bound, and one above all.
    buckets: [AtomicU64; DURATION_BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl Durations {
    fn note(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = DURATION_BOUNDS.partition_point(|bound| bound * 1000 < micros);
        Stats::add(&self.buckets[bucket], 1);
        Stats::add(&self.micros, micros);
    }

    /// How many took at most as long as each bound, and how many there are in all.
    pub fn cumulative(&self) -> [u64; DURATION_BOUNDS.len() + 1] {
        let mut sum = 0;
        self.buckets.each_ref().map(|bucket| {
            sum += Stats::get(bucket);
            sum
        })
    }

    /// All of them together.
    pub fn sum(&self) -> Duration {
        Duration::from_micros(Stats::get(&self.micros))
    }
}

/// A bulk request that has ended.
#[derive(Clone, Debug)]
pub struct BulkRequest {
    /// When, ms since 1970.
    pub ended_ms: i64,
    /// Its documents.
    pub documents: usize,
    /// Its bytes before compression.
    pub bytes: usize,
    /// How long it took.
    pub duration: Duration,
    /// How it ended.
    pub outcome: RequestOutcome,
}

/// An index whose documents wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldUp {
    /// Since when, ms since 1970.
    pub since_ms: i64,
    /// Why, in words that may be logged.
    pub what: String,
    /// What to do about it; empty where there is nothing.
    pub mend: String,
    /// The same in one word.
    pub reason: Reason,
}

/// How many of the last bulk requests are remembered.
const RECENT_REQUESTS: usize = 20;

/// How many event types are counted by name; Teleport has fewer than 300. The rest is `other`.
const MOST_TYPES: usize = 300;

/// The longest name of a type that is counted as one. Teleport's longest has about 40 bytes.
const LONGEST_TYPE: usize = 100;

/// How many indices are remembered as held up.
const MOST_HELD_UP: usize = 100;

impl Stats {
    /// Adds to a counter.
    pub fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    /// Reads a counter.
    pub fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }

    /// Reads a time; `None` if it is not known yet.
    pub fn time(time_ms: &AtomicI64) -> Option<i64> {
        match time_ms.load(Ordering::Relaxed) {
            0 => None,
            known => Some(known),
        }
    }

    /// Documents that have settled.
    pub fn settled(&self) -> u64 {
        Self::get(&self.created) + Self::get(&self.already_there) + Self::get(&self.dead_letters)
    }

    /// Events at this time or later may not have settled: the log is not read so far, nor has any
    /// later one settled. In ms since 1970.
    pub fn unknown_from(&self) -> i64 {
        let newest_ms = self.newest_settled_ms.load(Ordering::Relaxed);
        self.position_ms.load(Ordering::Relaxed).max(newest_ms + 1)
    }

    /// How far behind now the position is: everything older is settled. `None`: not known yet.
    pub fn lag(&self, now_ms: i64) -> Option<Duration> {
        let position_ms = Self::time(&self.position_ms)?;
        let behind = u64::try_from(now_ms - position_ms).unwrap_or(0);
        Some(Duration::from_millis(behind))
    }

    /// The run is gone, and with it all that was under way.
    pub fn run_is_gone(&self) {
        for gauge in [
            &self.in_flight_documents,
            &self.in_flight_bytes,
            &self.in_flight_requests,
            &self.blocked,
            &self.blocked_indices,
        ] {
            gauge.store(0, Ordering::Relaxed);
        }
        lock(&self.held_up).clear();
    }

    /// Counts a page's events by their types.
    pub fn note_types(&self, events: &[AuditEvent]) {
        if events.is_empty() {
            return;
        }
        // A page has few types, and often the same one again and again.
        let mut of_page: Vec<(&[u8], u64)> = Vec::new();
        for event in events {
            let event_type = &event.event_type[..];
            match of_page.iter_mut().find(|(known, _)| *known == event_type) {
                Some((_, count)) => *count += 1,
                None => of_page.push((event_type, 1)),
            }
        }
        let mut all = lock(&self.event_types);
        for (event_type, count) in of_page {
            let name = String::from_utf8_lossy(event_type);
            let is_known = all.contains_key(&*name);
            let fits = name.len() <= LONGEST_TYPE && all.len() < MOST_TYPES;
            let name = if is_known || fits { &*name } else { "other" };
            match all.get_mut(name) {
                Some(sum) => *sum += count,
                None => drop(all.insert(name.into(), count)),
            }
        }
    }

    /// Events by type, the most frequent first. The names are as Teleport gave them.
    pub fn event_types(&self) -> Vec<(String, u64)> {
        let all = lock(&self.event_types);
        let mut types: Vec<_> = all.iter().map(|(name, n)| (name.to_string(), *n)).collect();
        drop(all);
        types.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        types
    }

    /// Counts a bulk request that has ended.
    pub fn note_request(&self, request: BulkRequest) {
        Self::add(&self.requests.0[request.outcome as usize], 1);
        Self::add(&self.request_bytes, request.bytes as u64);
        self.request_durations.note(request.duration);
        let mut recent = lock(&self.recent);
        if recent.len() == RECENT_REQUESTS {
            recent.pop_front();
        }
        recent.push_back(request);
    }

    /// The last bulk requests, the newest first.
    pub fn recent_requests(&self) -> Vec<BulkRequest> {
        lock(&self.recent).iter().rev().cloned().collect()
    }

    /// Counts a gap that was found.
    pub fn note_gap(&self, reason: &str) {
        self.gaps.note(&GAP_REASONS, &reason);
    }

    /// Counts an event that makes no document.
    pub fn note_unconverted(&self, reason: Reason) {
        self.unconverted.note(&Reason::OF_EVENTS, &reason);
    }

    /// Counts a checkpoint that could not be written.
    pub fn note_uncommitted(&self, reason: Reason) {
        self.uncommitted.note(&Reason::OF_COMMITS, &reason);
    }

    /// How many indices are blocked, by [`Reason::OF_BLOCKS`]; those that are too many to remember
    /// why are among the last.
    pub fn blocked_by_reason(&self) -> [u64; Reason::OF_BLOCKS.len()] {
        let mut counts = [0; Reason::OF_BLOCKS.len()];
        let mut remembered = 0;
        let last = counts.len() - 1;
        for held in lock(&self.held_up).values() {
            counts[place(&Reason::OF_BLOCKS, &held.reason)] += 1;
            remembered += 1;
        }
        counts[last] += Self::get(&self.blocked_indices).saturating_sub(remembered);
        counts
    }

    /// Says why documents of an index wait.
    pub fn hold_up(&self, index: &Arc<str>, reason: Reason, what: &str, mend: &str) {
        let mut held_up = lock(&self.held_up);
        let since_ms = held_up.get(index).map(|held| held.since_ms);
        if since_ms.is_none() && held_up.len() == MOST_HELD_UP {
            return;
        }
        let since_ms = since_ms.unwrap_or_else(|| Utc::now().timestamp_millis());
        let held = HeldUp {
            since_ms,
            what: what.to_owned(),
            mend: mend.to_owned(),
            reason,
        };
        held_up.insert(index.clone(), held);
    }

    /// Documents of an index wait no longer.
    pub fn let_go(&self, index: &str) {
        lock(&self.held_up).remove(index);
    }

    /// The indices whose documents wait, and why.
    pub fn held_up(&self) -> Vec<(Arc<str>, HeldUp)> {
        let held_up = lock(&self.held_up);
        let held_up = held_up.iter();
        held_up
            .map(|(index, held)| (index.clone(), held.clone()))
            .collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded_whatever_comes() {
        let stats = Stats::default();
        let event = |event_type: String| AuditEvent {
            event_type: event_type.into(),
            ..AuditEvent::default()
        };
        for turn in 0..2 {
            let strange = (0..1000).map(|n| event(format!("type.{n}")));
            let mut page: Vec<AuditEvent> = strange.collect();
            page.push(event("x".repeat(1 << 20)));
            page.push(event("type.0".into()));
            stats.note_types(&page);
            let types = stats.event_types();
            assert!(types.len() <= MOST_TYPES + 1, "{}", types.len());
            let sum: u64 = types.iter().map(|(_, count)| count).sum();
            assert_eq!(sum, (turn + 1) * 1002);
            assert_eq!(types[0].0, "other");
            assert_eq!(types[1], ("type.0".into(), 2 * (turn + 1)));
        }
        for n in 0..200 {
            stats.note_request(BulkRequest {
                ended_ms: n,
                documents: 1,
                bytes: 10,
                duration: Duration::from_millis(25),
                outcome: RequestOutcome::Answered,
            });
            stats.hold_up(
                &format!("index-{n}").into(),
                Reason::Closed,
                "closed",
                "open it",
            );
        }
        let recent = stats.recent_requests();
        assert_eq!((recent.len(), recent[0].ended_ms), (RECENT_REQUESTS, 199));
        assert_eq!(stats.held_up().len(), MOST_HELD_UP);
        let since_ms = stats.held_up()[0].1.since_ms;
        stats.hold_up(&"index-0".into(), Reason::DiskFull, "no room", "make some");
        let held = stats.held_up()[0].1.clone();
        assert_eq!((held.since_ms, held.what.as_str()), (since_ms, "no room"));
        stats.blocked_indices.store(200, Ordering::Relaxed);
        assert_eq!(stats.blocked_by_reason(), [0, 0, 99, 1, 0, 0, 100]);
        stats.let_go("index-0");
        assert_eq!(stats.held_up().len(), MOST_HELD_UP - 1);
        assert_eq!(stats.requests.get(RequestOutcome::Answered), 200);
        assert_eq!(stats.request_durations.cumulative()[1..4], [0, 200, 200]);
        assert_eq!(stats.request_durations.sum(), Duration::from_secs(5));
    }
}
