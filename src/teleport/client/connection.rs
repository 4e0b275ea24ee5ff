//! The channel under all calls, and the credentials that it is made with.
//!
//! tbot renews a certificate three times in its life; whoever holds on to the old one is cut off
//! when it ends. So the files are looked at again: for each new connection, every interval, sooner
//! when the end comes near, and when somebody asks. Credentials that differ get a connection of
//! their own first. Only once the server has answered on it do new calls go that way; calls under
//! way end where they began. What cannot be read, or what the server refuses, changes nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use hyper_util::rt::TokioIo;
use tokio::time::sleep;
use tonic::transport::{Channel, Endpoint};
use tracing::{info, warn};

use super::error::{CallError, Unreachable};
use crate::config::{CredentialPaths, TeleportConfig};
use crate::output::Chain;
use crate::platform;
use crate::telemetry::Alarm;
use crate::teleport::dial::{AnyStream, Dialer, Route};
use crate::teleport::identity::{Credentials, IdentityError, shown};

/// What one HTTP/2 stream may have under way. A search page of 1 MiB and what is around it must
/// fit: else its last bytes cost one more round trip, and a distant server half of its rate.
const STREAM_WINDOW: u32 = 2 << 20;

/// The same for a whole connection: 80 MB/s over 100 ms. It counts in the memory bound.
const CONNECTION_WINDOW: u32 = 8 << 20;

/// How soon files that could not be read are read again: most likely they were being written.
const REREAD: Duration = Duration::from_secs(1);

/// The way to one cluster, whoever we are at the moment.
pub(super) struct Connection {
    shared: Arc<Shared>,
    channel: Mutex<Channel>,
}

/// What all channels share.
struct Shared {
    dialer: Dialer,
    paths: CredentialPaths,
    refresh: Option<Duration>,
    /// Those that were good last.
    credentials: Mutex<Arc<Credentials>>,
    /// Those to try with the next connection.
    candidate: Mutex<Option<Arc<Credentials>>>,
    /// Those that the server has refused.
    refused: Mutex<Option<Arc<Credentials>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What they hold is replaced as a whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Connection {
    /// Reads the credentials and prepares the channel.
    pub(super) fn new(config: &TeleportConfig) -> Result<Self, IdentityError> {
        let credentials = Credentials::load(&config.credentials)?;
        credentials.check_time(Utc::now())?;
        info!(cluster = %credentials.cluster, address = %config.addr, expires = %shown(&credentials.not_after),
            "credentials read");
        if let Some(file) = &credentials.exposed {
            warn!(
                "{} the private key in {}: {}",
                platform::OTHERS,
                file.display(),
                platform::mend_rights(file)
            );
        }
        let shared = Arc::new(Shared {
            dialer: Dialer::from_environment(config.addr.clone()),
            paths: config.credentials.clone(),
            refresh: config.refresh,
            credentials: Mutex::new(Arc::new(credentials)),
            candidate: Mutex::new(None),
            refused: Mutex::new(None),
        });
        Ok(Self {
            channel: Mutex::new(channel(shared.clone())),
            shared,
        })
    }

    /// The channel for the next call.
    pub(super) fn channel(&self) -> Channel {
        lock(&self.channel).clone()
    }

    /// The credentials that were good last.
    pub(super) fn credentials(&self) -> Arc<Credentials> {
        lock(&self.shared.credentials).clone()
    }

    /// How the last connection was made.
    pub(super) async fn route(&self) -> Option<Route> {
        self.shared.dialer.route(&self.credentials()).await
    }

    /// Looks after the credentials until it is dropped, which it may be at any point.
    ///
    /// `asked` ends when somebody wants the files read now; `proves` makes a call on a new channel;
    /// `tell` is told of the certificate in use, each time that it is looked at.
    pub(super) async fn keep_fresh(
        &self,
        mut asked: impl AsyncFnMut(),
        proves: impl AsyncFn(Channel) -> Result<(), CallError>,
        tell: impl Fn(&Credentials),
    ) {
        let mut alarm = Alarm::default();
        let mut pause = None;
        loop {
            let now = Utc::now();
            let current = self.credentials();
            tell(&current);
            if alarm.is_due(current.life(), now) {
                current.warn_of_end(now);
            }
            let pause_now = pause
                .take()
                .unwrap_or_else(|| self.shared.next_look(&current, now));
            let is_asked = tokio::select! {
                // A signal that has come is not forgotten; a sleep is begun anew.
                () = asked() => true,
                () = sleep(pause_now) => false,
            };
            if !is_asked && self.shared.refresh.is_none() {
                continue;
            }
            match self.shared.read_again() {
                Ok(Some(fresh)) => {
                    *lock(&self.shared.candidate) = Some(fresh.clone());
                    let new = channel(self.shared.clone());
                    match proves(new.clone()).await {
                        Ok(()) if self.credentials().is_same(&fresh) => {
                            *lock(&self.channel) = new;
                            info!(expires = %shown(&fresh.not_after), "credentials renewed");
                        }
                        // The way back to the old ones has been told.
                        Ok(()) => {}
                        Err(failed) => {
                            warn!(
                                "no connection with the new credentials yet: {}",
                                Chain(&failed)
                            );
                        }
                    }
                }
                Ok(None) if is_asked => info!("the credentials have not changed"),
                Ok(None) => {}
                Err(unusable) => {
                    warn!("keeping the credentials read before: {}", Chain(&unusable));
                    pause = Some(REREAD);
                }
            }
        }
    }
}

/// A channel that makes its connection with the first call, and again whenever it is lost.
fn channel(shared: Arc<Shared>) -> Channel {
    let connector = tower::service_fn(move |_| {
        let shared = shared.clone();
        async move { shared.connect().await.map(TokioIo::new) }
    });
    // The URI only fills the `:authority` of requests; the connector knows where to go. The server
    // enforces at least 60 s between keepalive pings.
    Endpoint::from_static("http://teleport.cluster.local")
        .http2_keep_alive_interval(Duration::from_secs(60))
        .keep_alive_timeout(Duration::from_secs(180))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .connect_with_connector_lazy(connector)
}

impl Shared {
    /// Connects with the newest credentials that lead anywhere.
    async fn connect(&self) -> Result<AnyStream, Unreachable> {
        let current = lock(&self.credentials).clone();
        let candidate = lock(&self.candidate).take();
        let fresh = match candidate {
            None if self.refresh.is_some() => self.read_again().unwrap_or_else(|unusable| {
                // tbot may be writing at this moment: what we have may still work.
                warn!("keeping the credentials read before: {}", Chain(&unusable));
                None
            }),
            candidate => candidate,
        };
        if let Some(fresh) = fresh {
            match self.dialer.dial(&fresh).await {
                Ok(stream) => {
                    *lock(&self.credentials) = fresh;
                    return Ok(stream);
                }
                Err(failed) if failed.is_transient() => {
                    return Err(Unreachable::Dial(Arc::new(failed)));
                }
                Err(refused) => {
                    let refused = Chain(&refused);
                    warn!(
                        "going back to the credentials read before, as the new ones fail: {refused}"
                    );
                    *lock(&self.refused) = Some(fresh);
                }
            }
        }
        self.dialer.dial(&current).await.map_err(|failed| {
            // The clock here may be wrong, so it is the server that decides; but it cannot always
            // tell its reason.
            match current.check_time(Utc::now()) {
                Err(ended) => Unreachable::Identity(Arc::new(ended)),
                Ok(()) => Unreachable::Dial(Arc::new(failed)),
            }
        })
    }

    /// The credentials in the files, if they are others than those in use, and worth a try.
    fn read_again(&self) -> Result<Option<Arc<Credentials>>, IdentityError> {
        let fresh = Credentials::load(&self.paths)?;
        let current = lock(&self.credentials).clone();
        let is_refused = |refused: &Arc<Credentials>| refused.is_same(&fresh);
        if fresh.is_same(&current) || lock(&self.refused).as_ref().is_some_and(is_refused) {
            return Ok(None);
        }
        fresh.check_time(Utc::now())?;
        fresh.check_cluster(&current)?;
        Ok(Some(Arc::new(fresh)))
    }

    /// How long to wait before the files are looked at again: the interval, but several times in
    /// what is left of a short life.
    fn next_look(&self, current: &Credentials, now: DateTime<Utc>) -> Duration {
        let interval = self.refresh.unwrap_or(Duration::from_secs(60));
        let left = (current.not_after - now).to_std().unwrap_or_default();
        (left / 3).clamp(REREAD.min(interval), interval)
    }
}
