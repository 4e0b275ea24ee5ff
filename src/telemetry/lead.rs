//! Whether this process leads, where one of several does.

use std::sync::atomic::{AtomicU8, Ordering};

/// How this process stands among those that share a state.
#[derive(Debug, Default)]
pub struct Lead(AtomicU8);

const ALONE: u8 = 0;
const WAITS: u8 = 1;
const LEADS: u8 = 2;

impl Lead {
    /// It waits for its turn.
    pub fn waits(&self) {
        self.0.store(WAITS, Ordering::Relaxed);
    }

    /// It has taken the lead.
    pub fn leads(&self) {
        self.0.store(LEADS, Ordering::Relaxed);
    }

    /// Whether it does the work, where several may; `None`: it is alone.
    pub fn is_leading(&self) -> Option<bool> {
        match self.0.load(Ordering::Relaxed) {
            ALONE => None,
            standing => Some(standing == LEADS),
        }
    }

    /// The same as a gauge.
    pub fn as_gauge(&self) -> Option<f64> {
        self.is_leading().map(u8::from).map(f64::from)
    }

    /// Whether another process does the work.
    pub fn is_waiting(&self) -> bool {
        self.is_leading() == Some(false)
    }
}
