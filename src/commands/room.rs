//! What the runs of one process share, so that several clusters take no more than one would.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::config::Config;
use crate::pipeline::quota::{self, Limiter};

/// What a run may take of memory and of Elasticsearch's time.
#[derive(Clone, Debug)]
pub(super) struct Room {
    /// How many runs share it.
    runs: usize,
    /// As many as there may be bulk requests at once, whosoever they are.
    requests: Arc<Semaphore>,
    /// Of bytes sent to Elasticsearch.
    bytes: Option<Arc<Limiter>>,
}

impl Room {
    /// Room for one run.
    pub(super) fn for_one(config: &Config) -> Self {
        Self::for_several(config, 1)
    }

    /// Room for so many runs together as `config` allows for one.
    pub(super) fn for_several(config: &Config, runs: usize) -> Self {
        let in_flight = config.elasticsearch.as_ref().map_or(1, |e| e.in_flight);
        let bytes = config.limits.bytes_per_second;
        Self {
            runs: runs.max(1),
            requests: Arc::new(Semaphore::new(in_flight.max(1))),
            bytes: bytes.map(|bytes| Arc::new(quota::limiter(bytes))),
        }
    }

    /// One run's part of a memory budget. Each needs enough for a request that is under way, one that
    /// is filled, and a page behind it.
    pub(super) fn part_of(&self, in_flight_bytes: usize, batch_bytes: usize) -> usize {
        let least = batch_bytes.saturating_mul(3);
        (in_flight_bytes / self.runs).max(least.min(in_flight_bytes))
    }

    /// As many as there may be bulk requests at once.
    pub(super) fn requests(&self) -> Arc<Semaphore> {
        self.requests.clone()
    }

    /// What keeps to the limit of bytes a second, if there is one.
    pub(super) fn bytes(&self) -> Option<Arc<Limiter>> {
        self.bytes.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Needs;
    use crate::config::sources::Raw;

    #[test]
    fn several_runs_divide_what_one_would_have_and_each_has_enough_to_move() {
        let (config, _) = Config::resolve(Raw::default(), Needs::default()).unwrap();
        let part = |runs, all| Room::for_several(&config, runs).part_of(all, 2);
        assert_eq!(Room::for_one(&config).part_of(20, 2), 20);
        assert_eq!((part(2, 20), part(3, 20), part(10, 20)), (10, 6, 6));
        // A single run never gets less than all, however small that is.
        assert_eq!(Room::for_one(&config).part_of(4, 2), 4);
    }
}
