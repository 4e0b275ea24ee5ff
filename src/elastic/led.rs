//! A sink for a process that leads: sends only while its lease lasts, and keeps what is refused in an
//! index.

use bytes::Bytes;

use super::bulk::Bulk;
use super::dead_letters::DeadLetterIndex;
use crate::checkpoint::DeadLetter;
use crate::leader::lease::Lease;
use crate::output::Chain;
use crate::pipeline::Sink;
use crate::pipeline::delivery::{Attempt, Fault};

/// Sends batches under a lease.
#[derive(Debug)]
pub struct Led {
    /// How they are sent.
    pub bulk: Bulk,
    /// Until when.
    pub lease: Lease,
    /// Where what is refused is kept.
    pub letters: DeadLetterIndex,
}

impl Sink for Led {
    async fn send(&self, body: Bytes, operations: usize) -> Attempt {
        self.lease.within(self.bulk.send(body, operations)).await
    }

    async fn keep(&self, letters: &[DeadLetter], cap_bytes: u64) -> Option<Result<(), Fault>> {
        let kept = self
            .lease
            .within(self.letters.keep(letters, cap_bytes))
            .await;
        Some(kept.map_err(|failed| Fault {
            what: Chain(&failed).to_string(),
            mend: failed.mend().unwrap_or_default().to_owned(),
            ..Fault::default()
        }))
    }
}
