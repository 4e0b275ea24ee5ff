//! The project's own stand-ins for both ends: everything that `demo` needs to run on a machine
//! with nothing else installed, and what the tests talk to instead of mocks.
//!
//! - [`certs`] makes a cluster's certificate authorities and identity files in Teleport's format.
//! - [`events`] generates realistic audit events, the same ones for the same seed.

pub mod certs;
pub mod events;
