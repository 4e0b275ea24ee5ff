//! The Teleport side: reaches the Auth Service and reads audit events through either of its two
//! event APIs.
//!
//! Servers whose audit backend can (Athena, so Teleport Cloud) hand out *export chunks*: unordered
//! pieces of a UTC day that never change once listed. All others have the *search*: pages in time
//! order. [`audit_log::AuditLog`] asks which it is and reads with the one or the other, and beside it
//! the recordings of sessions that the log tells of.

pub mod audit_log;
pub mod client;
pub mod dial;
mod export;
pub mod identity;
pub mod left_off;
mod locking;
mod pace;
pub mod part;
pub(crate) mod proto;
pub mod readers;
mod recording;
mod search;
