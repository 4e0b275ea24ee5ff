//! Signals: the first one asks for an orderly end, the second one ends at once.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// What signals lead to.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Cancelled by the first SIGTERM or SIGINT: stop reading, settle what is in flight, commit.
    pub stop: CancellationToken,
    /// Cancelled by the second: end now.
    pub now: CancellationToken,
}

impl Shutdown {
    /// Listens to SIGTERM and SIGINT from here on.
    ///
    /// # Errors
    /// If the system does not let us.
    pub fn on_signals() -> io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = Self::default();
        let tokens = shutdown.clone();
        tokio::spawn(async move {
            // Waiting for a signal may be dropped: one that has come is not forgotten.
            let mut next = async || {
                tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                }
            };
            let first = next().await;
            info!(signal = first, "stopping; a second signal ends at once");
            tokens.stop.cancel();
            let second = next().await;
            warn!(signal = second, "ending at once");
            tokens.now.cancel();
        });
        Ok(shutdown)
    }
}

/// SIGHUP, which asks a daemon to read again what may have changed. Without this it ends a process.
/// Each listener and each clone of it is told of each signal.
#[derive(Clone, Debug)]
pub struct Reload(watch::Receiver<()>);

impl Reload {
    /// Listens from here on, to read `what` again.
    ///
    /// # Errors
    /// If the system does not let us.
    pub fn on_signal(what: &'static str) -> io::Result<Self> {
        let mut hangup = signal(SignalKind::hangup())?;
        let (sender, receiver) = watch::channel(());
        tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                info!(signal = "SIGHUP", "reading {what} again");
                sender.send_replace(());
            }
        });
        Ok(Self(receiver))
    }

    /// Waits until somebody asks. May be dropped: a signal that has come is not forgotten.
    pub async fn asked(&mut self) {
        if self.0.changed().await.is_err() {
            // The system sends no more.
            std::future::pending().await
        }
    }
}
