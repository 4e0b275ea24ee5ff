//! Several daemons of which one works: the state lies in one document in Elasticsearch, and so does
//! the lease of who leads.
//!
//! That document, the [`Head`], is only ever replaced by compare-and-set over the version that is
//! known. So whoever has replaced it once knows that nobody else can, until somebody takes it over;
//! and what a leader that was stopped for hours still sends is refused. [`candidate::Candidate`]
//! decides what is sent when, and sends nothing itself.
//!
//! # Whose lease has ended
//! As in [`share`](crate::share): no clock is compared with that of another machine. The leader
//! counts its lease from the moment at which it *sent* the last write that was answered, and stops
//! when that is over. All others count from the moment at which they were *shown* a version, and a
//! tenth longer. So the leader has stopped when its lease is taken, as long as no clock runs by more
//! than a tenth faster than another.
//!
//! # Why one document, and not a log of changes
//! A log's entries have to be deleted some day, and then a number that was used looks like one that
//! was not: somebody who was stopped in between could write it a second time. A document's version
//! is never used again.
//!
//! # What it carries
//! The state is the SQLite database of [`checkpoint`](crate::checkpoint), in memory. The head has
//! all its pages that differ from the last [`image::Base`], compressed; a new state has no base,
//! and a small one, as most are, never gets one. Where the differences grow too large the whole
//! becomes the next base, in documents of its own that are never changed.

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub mod candidate;
pub mod image;
pub mod lease;

#[cfg(test)]
mod tests;

use self::image::{Base, Image};

/// The document by which candidates know of one another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head<P> {
    /// Who leads, for people.
    pub leader: Option<String>,
    /// Who leads: no two claims have the same one. `None`: nobody, by its own will.
    pub claim: Option<String>,
    /// For how long a claim lasts after each write.
    pub lease_ms: u64,
    /// How often it was taken from somebody whose lease had ended.
    pub taken_over: u64,
    /// What the leader writes into it.
    #[serde(flatten)]
    pub content: P,
}

/// Clocks run at slightly different rates: nobody calls a lease ended before this share of it more.
const MARGIN: u32 = 10;

/// Whether a lease has ended for whoever has seen one version of the head for so long.
pub fn has_ended(seen: Duration, lease_ms: u64) -> bool {
    let lease = Duration::from_millis(lease_ms);
    seen > lease + lease / MARGIN
}

/// What a leader writes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// The cluster whose audit log is read.
    pub cluster: String,
    /// Everything before this is settled, for people.
    pub position: Option<String>,
    /// When this was written, by the leader's clock, for people.
    pub written: String,
    /// Where the state lies now, if it does not lie here any more.
    pub moved_to: Option<String>,
    /// The state.
    pub image: Image,
    /// Bases whose documents may be there though nobody needs them.
    pub leftovers: Vec<Base>,
}
