//! The lock that the stand-ins use.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A lock that is held for a few lines and never across an await. One that a panicked holder left
/// behind is taken over: what it guards is whole between any two statements.
#[derive(Default)]
pub(crate) struct Lock<T>(Mutex<T>);

impl<T> Lock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
