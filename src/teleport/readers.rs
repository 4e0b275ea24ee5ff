//! How many readers a run may have at once: of windows or chunks, and of session recordings.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The readers of one run.
#[derive(Clone, Debug)]
pub struct Readers {
    most: usize,
    /// What several runs have to share beyond the first reader of each.
    spare: Option<Arc<Semaphore>>,
}

/// Room for one reader, for as long as it is held.
#[derive(Debug)]
pub(super) struct Place(
    #[expect(dead_code, reason = "held, not read")] Option<OwnedSemaphorePermit>,
);

impl Readers {
    /// So many at once, and as many again for session recordings; at least one.
    pub fn at_most(most: usize) -> Self {
        Self {
            most: most.max(1),
            spare: None,
        }
    }

    /// The same, but all beyond the first need one of these places, which other runs want, too.
    #[must_use]
    pub fn sharing(self, spare: Option<Arc<Semaphore>>) -> Self {
        Self { spare, ..self }
    }

    /// How many at once where nobody else wants the places.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// A place for one more beside so many of the same kind. Where it is refused, one of those ends
    /// in time, and its end is the moment to ask again.
    pub(super) fn place(&self, running: usize) -> Option<Place> {
        match &self.spare {
            _ if running >= self.most => None,
            Some(spare) if running > 0 => {
                let permit = spare.clone().try_acquire_owned().ok()?;
                Some(Place(Some(permit)))
            }
            _ => Some(Place(None)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of a kind a run gets to have, one after the other.
    fn taken(readers: &Readers) -> Vec<Place> {
        let mut places = Vec::new();
        while let Some(place) = readers.place(places.len()) {
            places.push(place);
        }
        places
    }

    #[test]
    fn one_run_has_all_it_may_and_several_share_what_is_beyond_the_first_of_each() {
        assert_eq!(taken(&Readers::at_most(5)).len(), 5);
        let readers = Readers::at_most(5).sharing(Some(Arc::new(Semaphore::new(3))));
        let greedy = taken(&readers);
        let late = taken(&readers);
        assert_eq!((greedy.len(), late.len()), (4, 1));
        drop(greedy);
        assert!(readers.place(late.len()).is_some(), "given back");
    }
}
