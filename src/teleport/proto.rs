//! The generated bindings; `tests/it/bindings.rs` keeps them equal to `proto/*.proto`.
#![allow(
    unreachable_pub,
    unused_qualifications,
    elided_lifetimes_in_paths,
    clippy::all,
    clippy::unwrap_used,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]

/// `teleport.auditlog.v1`: the audit log service.
#[rustfmt::skip]
pub(crate) mod auditlog;

/// `proto`: the Auth Service.
#[rustfmt::skip]
pub(crate) mod auth;

/// `teleport.transport.v1`: a Proxy's transport service.
#[rustfmt::skip]
pub(crate) mod transport;
