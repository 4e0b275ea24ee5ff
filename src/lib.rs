//! Moves Teleport audit events into Elasticsearch.
//!
//! The modules in reading order: what the user says ([`cli`], [`config`]), what the program does
//! with it ([`commands`]), the walk of one event ([`teleport`] → [`event`] → [`document`] →
//! [`pipeline`] → [`elastic`] → [`checkpoint`]), and what serves all of them ([`output`],
//! [`secret`], [`shutdown`], [`telemetry`]). [`demo`] holds stand-ins for both ends.
//!
//! `ARCHITECTURE.md` tells why it is built this way.

pub mod elastic;
pub mod event;
pub mod output;
pub mod secret;
pub mod teleport;
