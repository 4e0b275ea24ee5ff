//! What the runs of one process share, so that several clusters take no more than one would.

use std::slice;
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
    /// Readers beyond the first of each run; `None`: the one run may have all it wants.
    readers: Option<Arc<Semaphore>>,
}

impl Room {
    /// Room for one run.
    pub(super) fn for_one(config: &Config) -> Self {
        Self::for_several(slice::from_ref(config))
    }

    /// Room for these runs together, as much as the first one's settings allow one alone; readers as
    /// many as the one may have that may have most, and one for each.
    pub(super) fn for_several(configs: &[Config]) -> Self {
        let config = configs.first().expect("there is a run");
        let readers = configs.iter().map(|config| config.concurrency).max();
        let in_flight = config.elasticsearch.as_ref().map_or(1, |e| e.in_flight);
        let bytes = config.limits.bytes_per_second;
        Self {
            runs: configs.len(),
            requests: Arc::new(Semaphore::new(in_flight.max(1))),
            bytes: bytes.map(|bytes| Arc::new(quota::limiter(bytes))),
            readers: readers
                .filter(|_| configs.len() > 1)
                .map(|most| Arc::new(Semaphore::new(most.saturating_sub(1)))),
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

    /// Places for readers beyond the first of each run, if there are several runs.
    pub(super) fn readers(&self) -> Option<Arc<Semaphore>> {
        self.readers.clone()
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
        let part = |runs, all| Room::for_several(&vec![config.clone(); runs]).part_of(all, 2);
        assert_eq!(Room::for_one(&config).part_of(20, 2), 20);
        assert_eq!((part(2, 20), part(3, 20), part(10, 20)), (10, 6, 6));
        // A single run never gets less than all, however small that is.
        assert_eq!(Room::for_one(&config).part_of(4, 2), 4);
    }
}
