//! `teleport-event-indexer`: from Teleport's audit log into Elasticsearch.

use std::process::ExitCode;

use teleport_event_indexer::{cli, commands};

fn main() -> ExitCode {
    // Two libraries speak TLS, and rustls will not choose for them.
    rustls::crypto::ring::default_provider()
        .install_default()
        .expect("nothing has installed another one before main");
    match cli::parse(std::env::args_os()) {
        Ok(invocation) => ExitCode::from(commands::run(invocation) as u8),
        Err(exit) => ExitCode::from(exit.print().unwrap_or(1)),
    }
}
