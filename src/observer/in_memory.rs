//! The state of a process that keeps it in Elasticsearch, and has it in memory while it leads.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::checkpoint::{Checkpoint, DeadLetterSummary};

/// What there is to show of it. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct InMemory(Arc<Mutex<Shown>>);

#[derive(Debug, Default)]
struct Shown {
    checkpoint: Option<Arc<Checkpoint>>,
    letters: DeadLetterSummary,
}

impl InMemory {
    /// This process leads, with this state.
    pub fn show(&self, checkpoint: Arc<Checkpoint>) {
        self.shown().checkpoint = Some(checkpoint);
    }

    /// It does not lead any more.
    pub fn clear(&self) {
        self.shown().checkpoint = None;
    }

    /// How many dead letters lie in their index.
    pub fn letters_are(&self, letters: DeadLetterSummary) {
        self.shown().letters = letters;
    }

    /// Reads the state, if there is one.
    pub(super) fn checkpoint(&self) -> Option<Arc<Checkpoint>> {
        self.shown().checkpoint.clone()
    }

    pub(super) fn letters(&self) -> DeadLetterSummary {
        self.shown().letters.clone()
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
