//! Which pages have settled, and how far the checkpoint may move because of it.
//!
//! Pages settle in any order, since the batches that carry their documents do. A lane (one search
//! window, one export chunk) is read in order, so within a lane the checkpoint may only take the
//! end of the unbroken prefix of settled pages. Pure: no I/O, no clock.

use std::collections::{BTreeMap, HashMap};

/// Names a lane. Steps of one lane follow each other; lanes are independent of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane(pub u64);

/// Names a page that was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageNumber(u64);

/// What is known of one page that has not settled.
#[derive(Debug)]
struct PageState<S, H> {
    lane: Lane,
    sequence: u64,
    unsettled: usize,
    /// Every event of the page is in some batch, so `unsettled` can only shrink.
    complete: bool,
    reached: Option<S>,
    hold: H,
}

/// A lane's settled pages behind its unbroken prefix.
#[derive(Debug)]
struct LaneState<S> {
    taken: u64,
    next: u64,
    settled: BTreeMap<u64, Option<S>>,
}

/// Follows pages from being taken in until they have settled.
///
/// `S` is the step that a page carries, `H` whatever must live exactly as long as the page is in
/// flight (the permits of the memory budget).
#[derive(Debug)]
pub struct Progress<S, H> {
    next_page: u64,
    pages: HashMap<u64, PageState<S, H>>,
    lanes: HashMap<Lane, LaneState<S>>,
    unsettled: usize,
}

impl<S, H> Default for Progress<S, H> {
    fn default() -> Self {
        Self {
            next_page: 0,
            pages: HashMap::new(),
            lanes: HashMap::new(),
            unsettled: 0,
        }
    }
}

impl<S, H> Progress<S, H> {
    /// Takes a page in, at its lane's end. `reached` is what becomes true once it and every page
    /// before it in its lane have settled; `None` for a page that moves nothing (a second look at
    /// a past time).
    pub fn take(&mut self, lane: Lane, reached: Option<S>, hold: H) -> PageNumber {
        let number = self.next_page;
        self.next_page += 1;
        let state = self.lanes.entry(lane).or_insert_with(|| LaneState {
            taken: 0,
            next: 0,
            settled: BTreeMap::new(),
        });
        let sequence = state.taken;
        state.taken += 1;
        let page = PageState {
            lane,
            sequence,
            unsettled: 0,
            complete: false,
            reached,
            hold,
        };
        self.pages.insert(number, page);
        PageNumber(number)
    }

    /// Says that `n_documents` more of the page's documents are on their way.
    ///
    /// # Panics
    /// If the page is unknown: a page in flight is forgotten only when it settles.
    pub fn add(&mut self, page: PageNumber, n_documents: usize) {
        self.pages
            .get_mut(&page.0)
            .expect("a page being taken in is in flight")
            .unsettled += n_documents;
        self.unsettled += n_documents;
    }

    /// Says that all documents of the page have been added. Returns the step that this allows.
    pub fn complete(&mut self, page: PageNumber) -> Option<(Lane, S)> {
        self.pages
            .get_mut(&page.0)
            .expect("a page being taken in is in flight")
            .complete = true;
        self.settle(page, 0)
    }

    /// Says that `n_documents` of the page have settled. Returns the step that this allows: the
    /// last one of the lane's unbroken settled prefix, if that prefix grew.
    pub fn settle(&mut self, page: PageNumber, n_documents: usize) -> Option<(Lane, S)> {
        let state = self.pages.get_mut(&page.0).expect("a page settles once");
        state.unsettled = state
            .unsettled
            .checked_sub(n_documents)
            .expect("no more documents settle than were added");
        self.unsettled -= n_documents;
        if state.unsettled > 0 || !state.complete {
            return None;
        }
        let PageState {
            lane,
            sequence,
            reached,
            hold,
            ..
        } = self
            .pages
            .remove(&page.0)
            .expect("it was there a moment ago");
        drop(hold);
        let state = self
            .lanes
            .get_mut(&lane)
            .expect("a lane lives as long as its pages");
        state.settled.insert(sequence, reached);
        let mut step = None;
        while let Some(reached) = state.settled.remove(&state.next) {
            state.next += 1;
            step = reached.or(step);
        }
        // Lanes come and go by the thousand; one with nothing in flight starts again from nothing.
        if state.next == state.taken {
            self.lanes.remove(&lane);
        }
        step.map(|step| (lane, step))
    }

    /// Pages that have not settled.
    pub fn in_flight(&self) -> usize {
        self.pages.len()
    }

    /// Documents that have not settled.
    pub fn unsettled_documents(&self) -> usize {
        self.unsettled
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_page_without_documents_still_moves_its_lane() {
        let mut progress = Progress::default();
        let page = progress.take(Lane(1), Some("end"), ());
        assert_eq!(progress.complete(page), Some((Lane(1), "end")));
        assert_eq!(progress.in_flight(), 0);
    }

    #[test]
    fn a_later_page_waits_for_the_earlier_one() {
        let mut progress = Progress::default();
        let first = progress.take(Lane(1), Some(1), ());
        progress.add(first, 2);
        assert_eq!(progress.complete(first), None);
        let second = progress.take(Lane(1), Some(2), ());
        progress.add(second, 1);
        assert_eq!(progress.complete(second), None);
        assert_eq!(progress.settle(second, 1), None);
        assert_eq!(progress.settle(first, 1), None);
        assert_eq!(progress.settle(first, 1), Some((Lane(1), 2)));
    }

    proptest! {
        /// Whatever the order in which documents settle, a lane's step never passes a page of it
        /// that has an unsettled document, and in the end every lane has reached its last page.
        #[test]
        fn steps_never_pass_an_unsettled_page(
            pages in prop::collection::vec((0u64..3, 0usize..4), 1..30),
            seed in any::<u64>(),
        ) {
            let mut progress = Progress::default();
            let mut open: Vec<(PageNumber, usize, u64, usize)> = Vec::new();
            let mut last_step: HashMap<u64, usize> = HashMap::new();
            let mut expected_end: HashMap<u64, usize> = HashMap::new();
            for (position, &(lane, documents)) in pages.iter().enumerate() {
                let number = progress.take(Lane(lane), Some(position), ());
                progress.add(number, documents);
                if let Some((lane, step)) = progress.complete(number) {
                    last_step.insert(lane.0, step);
                }
                open.extend((0..documents).map(|_| (number, 1, lane, position)));
                expected_end.insert(lane, position);
            }
            let mut state = seed | 1;
            while !open.is_empty() {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let pick = usize::try_from(state >> 33).unwrap() % open.len();
                let (number, count, lane, _) = open.swap_remove(pick);
                if let Some((moved, step)) = progress.settle(number, count) {
                    prop_assert_eq!(moved.0, lane);
                    prop_assert!(last_step.get(&lane).is_none_or(|&before| before < step));
                    let passed = open.iter().any(|o| o.2 == lane && o.3 <= step);
                    prop_assert!(!passed, "step {} passes an unsettled page", step);
                    last_step.insert(lane, step);
                }
            }
            prop_assert_eq!(last_step, expected_end);
            prop_assert_eq!(progress.in_flight(), 0);
            prop_assert_eq!(progress.unsettled_documents(), 0);
        }
    }
}
