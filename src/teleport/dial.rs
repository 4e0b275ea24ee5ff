//! Finds a way to a cluster's Auth Service and makes the TLS connection on which gRPC runs.
//!
//! | way | right for | how |
//! |---|---|---|
//! | TLS | the Auth Service itself; a Proxy with TLS routing | SNI `<hex of the cluster's name>.teleport.cluster.local`; the first ALPN entry is `teleport-auth@` with the same name, by which a Proxy passes the connection through to Auth untouched, the second is `h2`, which Auth picks |
//! | upgrade | a Proxy behind a load balancer that ends TLS | the same within a websocket, which the load balancer passes on |
//! | transport | a Proxy without TLS routing | the same within a gRPC stream to the Proxy's SSH port, which the Proxy's web service tells |
//!
//! They are tried in this order, which is that of their cost; what has worked is tried first from
//! then on. A way is left out where it cannot do better than the one before: if nobody listens
//! there, or if Auth has answered and refuses us.
//!
//! Whatever stands in between, it is Auth's certificate that is checked at the end, against the CAs
//! of the identity alone. What is spoken with on the way as a web server is checked against the
//! authorities that the system trusts.
//!
//! A leaf cluster is reached through the Proxy of its root by its name alone.

mod error;
mod tcp;
mod tls;
mod transport;
mod upgrade;

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hyper_util::client::proxy::matcher::Matcher;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tracing::debug;

use crate::config::Address;
use crate::output::Chain;
use crate::teleport::identity::Credentials;

pub use self::error::DialError;
pub(crate) use self::error::explain_alert;

use self::error::AttemptError;

/// How long one way may take; as long as Teleport's own client waits.
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);

/// The variable by which Teleport's clients are told whether connections need an upgrade.
const UPGRADE_SETTING: &str = "TELEPORT_TLS_ROUTING_CONN_UPGRADE";

/// What carries bytes both ways.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection of any kind.
pub(crate) type AnyStream = Box<dyn Stream>;

/// A way to Auth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Tls,
    Upgrade,
    Transport,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Tls => "straight or by TLS routing",
            Self::Upgrade => "by a connection upgrade",
            Self::Transport => "by the transport service",
        }
    }
}

/// How the last connection was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    kind: RouteKind,
    http_proxy: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RouteKind {
    Straight,
    TlsRouting,
    Upgrade,
    Transport,
}

impl fmt::Display for Route {
    /// Goes on where `connected to Teleport` ends.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            RouteKind::Straight => "straight to the Auth Service",
            RouteKind::TlsRouting => "through the Proxy by TLS routing",
            RouteKind::Upgrade => "through the Proxy by a connection upgrade",
            RouteKind::Transport => "through the Proxy by its transport service",
        })?;
        match &self.http_proxy {
            Some(proxy) => write!(f, ", by way of the HTTP proxy {proxy}"),
            None => Ok(()),
        }
    }
}

/// Makes connections to the Auth Service behind one address, and remembers how.
pub(crate) struct Dialer {
    address: Address,
    proxies: Matcher,
    /// Whether the user says that an upgrade is needed.
    upgrade: Option<bool>,
    worked: Mutex<Option<Worked>>,
}

/// A way that has led to Auth.
#[derive(Clone)]
struct Worked {
    way: Way,
    /// What was dialled.
    at: Address,
}

impl Dialer {
    /// Takes proxies and the need of an upgrade from the environment.
    pub(crate) fn from_environment(address: Address) -> Self {
        let setting = std::env::var(UPGRADE_SETTING).unwrap_or_default();
        Self {
            upgrade: upgrade::decided(&setting, &address),
            address,
            proxies: Matcher::from_env(),
            worked: Mutex::new(None),
        }
    }

    /// Connects and shakes hands with Auth.
    ///
    /// # Errors
    /// If no way leads there, or one takes longer than 30 s.
    pub(crate) async fn dial(&self, credentials: &Credentials) -> Result<AnyStream, DialError> {
        let worked = self.worked();
        let mut ways = match self.upgrade {
            None => vec![Way::Tls, Way::Upgrade, Way::Transport],
            Some(true) => vec![Way::Upgrade, Way::Tls, Way::Transport],
            Some(false) => vec![Way::Tls, Way::Transport],
        };
        if let Some(worked) = &worked {
            ways.sort_by_key(|way| *way != worked.way);
        }
        let mut transport = worked.filter(|worked| worked.way == Way::Transport);
        let mut attempts = Vec::new();
        for way in ways {
            if way == Way::Upgrade && transport.is_some() {
                continue;
            }
            let known = transport.as_ref().map(|known| known.at.clone());
            let attempt = timeout(DIAL_TIMEOUT, self.go(way, known, credentials)).await;
            let failed = match attempt {
                Ok(Ok((stream, at))) => {
                    self.remember(Some(Worked { way, at }));
                    return Ok(stream);
                }
                Ok(Err(failed)) => failed,
                Err(_) => AttemptError::Timeout {
                    address: self.address.clone(),
                },
            };
            debug!("{}: {}", way.name(), Chain(&failed));
            if let AttemptError::ProxyAnswers { address } = &failed {
                let at = address.clone();
                transport = Some(Worked { way, at });
            }
            let ends_here = !failed.leaves_other_ways();
            attempts.push((way, failed));
            if ends_here {
                break;
            }
        }
        self.remember(None);
        Err(DialError {
            address: self.address.clone(),
            attempts,
        })
    }

    fn worked(&self) -> Option<Worked> {
        let worked = self.worked.lock().unwrap_or_else(PoisonError::into_inner);
        worked.clone()
    }

    fn remember(&self, worked: Option<Worked>) {
        *self.worked.lock().unwrap_or_else(PoisonError::into_inner) = worked;
    }

    /// Goes one way; what comes with the connection is the address dialled. `transport` is where
    /// the transport service is, if that is known.
    async fn go(
        &self,
        way: Way,
        transport: Option<Address>,
        credentials: &Credentials,
    ) -> Result<(AnyStream, Address), AttemptError> {
        let Self {
            address, proxies, ..
        } = self;
        let (stream, at) = match way {
            Way::Tls => (tcp::connect(proxies, address).await?, address.clone()),
            Way::Upgrade => {
                let has_worked = self.worked().is_some_and(|worked| worked.way == way);
                if self.upgrade.is_none() && !has_worked {
                    upgrade::test(proxies, address).await?;
                }
                (upgrade::connect(proxies, address).await?, address.clone())
            }
            Way::Transport => {
                let at = match transport {
                    Some(at) => at,
                    None => transport::find(address).await?,
                };
                (transport::connect(proxies, &at, credentials).await?, at)
            }
        };
        Ok((tls::to_auth(stream, &at, credentials).await?, at))
    }

    /// How the last connection was made; `None` if there was none.
    ///
    /// Auth and a Proxy with TLS routing cannot be told apart by a connection that works with both.
    /// So this makes another that works with Auth alone, and drops it.
    pub(crate) async fn route(&self, credentials: &Credentials) -> Option<Route> {
        let kind = match self.worked()?.way {
            Way::Upgrade => RouteKind::Upgrade,
            Way::Transport => RouteKind::Transport,
            Way::Tls if self.is_auth(credentials).await => RouteKind::Straight,
            Way::Tls => RouteKind::TlsRouting,
        };
        let proxy = tcp::http_proxy(&self.proxies, &self.address);
        let http_proxy = proxy.ok().flatten().map(|proxy| proxy.to_string());
        Some(Route { kind, http_proxy })
    }

    async fn is_auth(&self, credentials: &Credentials) -> bool {
        let handshake = async {
            let stream = tcp::connect(&self.proxies, &self.address).await?;
            tls::to_cluster(stream, &self.address, credentials, vec![b"h2".to_vec()]).await
        };
        match timeout(DIAL_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => !tls::is_proxy(&stream),
            Ok(Err(_)) | Err(_) => false,
        }
    }
}
