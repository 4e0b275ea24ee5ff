//! What Teleport's event handler has left behind, for those who come over from it.

pub mod state;
