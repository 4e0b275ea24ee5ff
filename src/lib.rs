//! Moves Teleport audit events into Elasticsearch.
//!
//! The modules in reading order: what the user says ([`cli`], [`config`]), what the program does
//! with it ([`commands`]), the walk of one event ([`teleport`] → [`event`] → [`document`] →
//! [`pipeline`] → [`elastic`] → [`checkpoint`]), what is shown of it ([`observer`]), and
//! what serves all of them ([`output`], [`secret`], [`shutdown`], [`telemetry`]). [`demo`] holds stand-ins for both ends,
//! [`event_handler`] reads what its users come over with.
//!
//! `ARCHITECTURE.md` tells why it is built this way.

pub mod cli;

pub mod config;

pub mod commands;

pub mod teleport;

pub mod event;

pub mod document;

pub mod pipeline;

pub mod elastic;

pub mod checkpoint;

pub mod observer;

pub mod demo;

pub mod event_handler;

#[cfg(any(test, fuzzing))]
pub mod fuzzing;

mod certificate;
mod clock;
pub mod leader;
pub mod output;
mod packed;
mod platform;
pub mod secret;
pub mod share;
pub mod shutdown;
pub mod telemetry;
mod wire;
