//! Signals: the first one asks for an orderly end, the second one ends at once.

use std::io;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::platform::{Hangups, Stops};

/// What signals lead to.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Cancelled by the first (SIGTERM or SIGINT; Ctrl-C and the like on Windows): stop reading, settle what is in flight, commit.
    pub stop: CancellationToken,
    /// Cancelled by the second: end now.
    pub now: CancellationToken,
}

impl Shutdown {
    /// Listens from here on.
    ///
    /// # Errors
    /// If the system does not let us.
    pub fn on_signals() -> io::Result<Self> {
        let mut stops = Stops::listen()?;
        let shutdown = Self::default();
        let tokens = shutdown.clone();
        tokio::spawn(async move {
            let first = stops.next().await;
            info!(signal = first, "stopping; a second signal ends at once");
            tokens.stop.cancel();
            let second = stops.next().await;
            warn!(signal = second, "ending at once");
            tokens.now.cancel();
        });
        Ok(shutdown)
    }
}

/// SIGHUP, which asks a daemon to read again what may have changed. There is none on Windows.
/// Each listener and each clone of it is told of each signal.
#[derive(Clone, Debug)]
pub struct Reload(watch::Receiver<()>);

impl Reload {
    /// Listens from here on, to read `what` again.
    ///
    /// # Errors
    /// If the system does not let us.
    pub fn on_signal(what: &'static str) -> io::Result<Self> {
        let mut hangups = Hangups::listen()?;
        let (sender, receiver) = watch::channel(());
        tokio::spawn(async move {
            while hangups.next().await.is_some() {
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
