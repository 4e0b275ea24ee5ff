//! The project's own stand-ins for both ends: everything that `demo` needs to run on a machine
//! with nothing else installed, and what the tests talk to instead of mocks.
//!
//! - [`certs`] makes a cluster's certificate authorities and identity files in Teleport's format.
//! - [`events`] generates realistic audit events, the same ones for the same seed.
//! - [`auth`] serves them as Teleport's Auth Service does: gRPC over mutual TLS, both event APIs.
//! - [`proxy`] stands before it, as Teleport's Proxy does, or as the HTTP proxy of a company.
//! - [`elastic`] takes them as Elasticsearch does, keeps them in SQLite and answers questions.
//!
//! The servers listen on 127.0.0.1 unless they are told otherwise. They are strict where the real server is strict, record
//! what they saw, and can be told to fail while they run. They know nothing about the rest of this
//! program: they share its words on the wire and nothing else.

pub mod auth;
pub mod certs;
mod connection;
pub mod elastic;
pub mod events;
mod lock;
pub mod proxy;
