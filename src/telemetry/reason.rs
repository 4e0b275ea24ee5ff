//! Reasons as labels of metrics: few, and none that comes from outside.

use std::sync::atomic::AtomicU64;

use super::Stats;

/// Why a call failed, documents wait, or an event makes none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reason {
    /// There is no connection, or no answer.
    Unreachable,
    /// The credentials are refused, or cannot be used.
    Credentials,
    /// The credentials are good, and this is not allowed with them.
    Denied,
    /// The server has too much to do.
    Overloaded,
    /// The index takes no writes.
    ReadOnly,
    /// The index is closed.
    Closed,
    /// The disk is full: Elasticsearch's, or the one under the state file.
    DiskFull,
    /// The cluster has as many shards as it may have.
    ShardLimit,
    /// Our store of what waits is full.
    StoreFull,
    /// The event cannot be read.
    Malformed,
    /// The event has no time to tell its index from.
    NoTime,
    /// Anything else; the log says what.
    #[default]
    Other,
}

impl Reason {
    /// Why calls and requests fail.
    pub const OF_FAILURES: [Self; 5] = [
        Self::Unreachable,
        Self::Credentials,
        Self::Denied,
        Self::Overloaded,
        Self::Other,
    ];

    /// Why documents wait.
    pub const OF_BLOCKS: [Self; 7] = [
        Self::Denied,
        Self::ReadOnly,
        Self::Closed,
        Self::DiskFull,
        Self::ShardLimit,
        Self::StoreFull,
        Self::Other,
    ];

    /// Why events make no document.
    pub const OF_EVENTS: [Self; 2] = [Self::Malformed, Self::NoTime];

    /// Why checkpoints cannot be written.
    pub const OF_COMMITS: [Self; 2] = [Self::DiskFull, Self::Other];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Credentials => "credentials",
            Self::Denied => "denied",
            Self::Overloaded => "overloaded",
            Self::ReadOnly => "read_only",
            Self::Closed => "closed",
            Self::DiskFull => "disk_full",
            Self::ShardLimit => "shard_limit",
            Self::StoreFull => "store_full",
            Self::Malformed => "malformed",
            Self::NoTime => "no_time",
            Self::Other => "other",
        }
    }
}

/// The reasons of gaps. One that is not among them counts as the last.
pub const GAP_REASONS: [&str; 7] = [
    "event_unreadable",
    "event_malformed",
    "chunk_unreadable",
    "chunk_vanished",
    "recording_missing",
    "recording_unreadable",
    "other",
];

/// Where a reason is among some, of which the last takes what has no other.
pub(super) fn place<T: PartialEq>(all: &[T], reason: &T) -> usize {
    let place = all.iter().position(|known| known == reason);
    place.unwrap_or(all.len() - 1)
}

/// Counts by reasons, of which the last takes what has no other.
#[derive(Debug)]
pub struct Counts<const N: usize>([AtomicU64; N]);

impl<const N: usize> Default for Counts<N> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl<const N: usize> Counts<N> {
    pub(super) fn note<T: PartialEq>(&self, all: &[T; N], reason: &T) {
        Stats::add(&self.0[place(all, reason)], 1);
    }

    /// In the order of the reasons.
    pub fn each(&self) -> [u64; N] {
        self.0.each_ref().map(Stats::get)
    }

    /// All of them.
    pub fn sum(&self) -> u64 {
        self.each().iter().sum()
    }
}
