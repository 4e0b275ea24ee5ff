//! What systemd is told: that the program is ready, how it stands, and that it is alive. The
//! protocol is a line of text in a datagram.

use std::io;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use crate::platform::NotifySocket;

/// Whoever has started the program and wants to hear of it. Mostly nobody.
#[derive(Debug)]
pub(super) struct ServiceManager {
    socket: Option<NotifySocket>,
    /// How often it wants to hear that the program is alive.
    watchdog: Option<Duration>,
    fed: Option<Instant>,
}

impl ServiceManager {
    pub(super) fn from_environment() -> Self {
        let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
        let name = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty());
        let socket = name.and_then(|name| match NotifySocket::open(&name) {
            Ok(socket) => Some(socket),
            Err(failed) => {
                warn!("systemd cannot be told how the program stands: {failed}");
                None
            }
        });
        let is_for_us =
            number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        // Twice in that time, as systemd asks.
        let watchdog = number("WATCHDOG_USEC").filter(|_| is_for_us);
        Self {
            socket,
            watchdog: watchdog.map(|micros| Duration::from_micros(micros / 2)),
            fed: None,
        }
    }

    /// Tells it something, if there is somebody. Never waits.
    pub(super) fn tell(&mut self, words: &str) {
        let Some(socket) = &self.socket else {
            return;
        };
        // One assignment, whatever is in it.
        let line = words.replace(['\n', '\r'], " ");
        match socket.send(line.as_bytes()) {
            Ok(()) => {}
            // It has much to read; the next one will do.
            Err(full) if full.kind() == io::ErrorKind::WouldBlock => {}
            Err(failed) => {
                warn!("systemd is no longer told how the program stands: {failed}");
                self.socket = None;
            }
        }
    }

    /// Says that the program is alive, if that is due.
    pub(super) fn feed_watchdog(&mut self) {
        let Some(every) = self.watchdog else { return };
        let is_due = self.fed.is_none_or(|fed| fed.elapsed() >= every);
        // Looks come once a second, so one that is a little early is better than one too late.
        if is_due || every < Duration::from_secs(2) {
            self.fed = Some(Instant::now());
            self.tell("WATCHDOG=1");
        }
    }
}
