//! The Teleport side: reaches the Auth Service and reads audit events through either of its two
//! event APIs.

pub(crate) mod proto;
