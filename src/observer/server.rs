//! The small HTTP server for people, Prometheus and whoever probes. It only reads.
//!
//! | path | what | needs the token, if there is one |
//! |---|---|---|
//! | `/` | the status page | yes |
//! | `/status.json` | what `status --json` prints | yes |
//! | `/metrics` | Prometheus' text format | yes |
//! | `/livez`, `/readyz` | 200 or 503 | no, but without it they answer in one word |
//!
//! A page of somebody else's that the operator's browser has open must not read it. Where there is
//! a token it cannot have that. Where there is none, the name by which the browser calls us must be
//! one of ours: a name of theirs may well lead to this machine (DNS rebinding). It cannot be an IP
//! address, as the browser takes the address for whom it is.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info};

use self::certificate::Certificate;
use super::Observers;
use crate::config::ListenConfig;
use crate::output::Chain;

mod certificate;
mod page;
mod token;

pub use self::certificate::CertificateError;

/// Connections at once: a browser or two, Prometheus, probes.
const MOST_CONNECTIONS: usize = 64;

/// How long a client may take for its handshake, and for a request's head.
const PATIENCE: Duration = Duration::from_secs(10);

/// No connection is open for longer: whoever has more to ask comes again.
const LONGEST_CONNECTION: Duration = Duration::from_mins(5);

/// Why nothing can be served.
#[derive(Debug, Error)]
pub enum ListenError {
    /// The address cannot be had.
    #[error(
        "cannot listen on {addr} for status page, metrics and health; choose another listen.addr, \
         or off"
    )]
    Address {
        /// As the configuration has it.
        addr: SocketAddr,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// `listen.cert` or `listen.key` cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

/// The server, bound to its address.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    certificate: Option<Certificate>,
    doors: Arc<Doors>,
}

/// Who is let in, and to whom.
#[derive(Debug)]
struct Doors {
    config: ListenConfig,
    observers: Arc<Observers>,
}

impl Server {
    /// Binds the address.
    ///
    /// # Errors
    /// If it cannot be had, or certificate and key cannot be used.
    pub async fn bind(
        config: &ListenConfig,
        observers: Arc<Observers>,
    ) -> Result<Self, ListenError> {
        let certificate = config.tls.as_ref().map(Certificate::load).transpose()?;
        let addr = config.addr;
        let bound = TcpListener::bind(addr).await;
        let failed = |source| ListenError::Address { addr, source };
        let listener = bound.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self {
            listener,
            address,
            certificate,
            doors: Arc::new(Doors {
                config: config.clone(),
                observers,
            }),
        })
    }

    /// Where the status page is.
    pub fn url(&self) -> String {
        let scheme = if self.certificate.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}/", self.address)
    }

    /// Serves until it is dropped, and all connections with it.
    pub async fn serve(mut self) {
        info!("status page, metrics and health at {}", self.url());
        let router = router(&self.doors);
        let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let place = places.clone().acquire_owned().await;
            let place = place.expect("nobody closes it");
            let (connection, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(failed) => {
                    // Of one connection that is gone, or of all for want of descriptors.
                    debug!("cannot take a connection: {failed}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            while connections.try_join_next().is_some() {}
            let acceptor = self.certificate.as_mut().map(Certificate::acceptor);
            let router = router.clone();
            connections.spawn(async move {
                let served = timeout(LONGEST_CONNECTION, serve_one(connection, acceptor, router));
                if let Ok(Err(failed)) = served.await {
                    debug!(%peer, "a connection broke: {}", Chain(&*failed));
                }
                drop(place);
            });
        }
    }
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

async fn serve_one(
    connection: TcpStream,
    acceptor: Option<TlsAcceptor>,
    router: Router,
) -> Result<(), Failed> {
    connection.set_nodelay(true)?;
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    let service = TowerToHyperService::new(router);
    match acceptor {
        Some(acceptor) => {
            let connection = timeout(PATIENCE, acceptor.accept(connection)).await??;
            http.serve_connection(TokioIo::new(connection), service)
                .await?;
        }
        None => {
            http.serve_connection(TokioIo::new(connection), service)
                .await?
        }
    }
    Ok(())
}

fn router(doors: &Arc<Doors>) -> Router {
    let guarded = Router::new()
        .route("/", get(page::page))
        .route("/status.json", get(status))
        .route("/metrics", get(metrics))
        .route_layer(from_fn_with_state(doors.clone(), demand_token));
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .merge(guarded)
        .layer(from_fn_with_state(doors.clone(), guard))
        .with_state(doors.clone())
}

/// What is true of each answer: nobody keeps, frames or guesses it.
async fn guard(State(doors): State<Arc<Doors>>, request: Request, next: Next) -> Response {
    let mut response = if doors.admits_name(request.headers()) {
        next.run(request).await
    } else {
        let words = "this server is not known by that name; call it by its IP address or \
                     localhost, or add the name to listen.hosts\n";
        (StatusCode::MISDIRECTED_REQUEST, words).into_response()
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let policy = header::CONTENT_SECURITY_POLICY;
    headers.entry(policy).or_insert(HeaderValue::from_static(
        "default-src 'none'; frame-ancestors 'none'",
    ));
    response
}

async fn demand_token(State(doors): State<Arc<Doors>>, request: Request, next: Next) -> Response {
    if doors.admits(request.headers()) {
        return next.run(request).await;
    }
    // Browsers ask for user and password; the password is the token.
    let how = [(
        header::WWW_AUTHENTICATE,
        "Basic realm=\"teleport-event-indexer\"",
    )];
    let words = "give listen.token as the password, or as `Authorization: Bearer …`\n";
    (StatusCode::UNAUTHORIZED, how, words).into_response()
}

impl Doors {
    /// Whether the client may see all there is.
    fn admits(&self, headers: &HeaderMap) -> bool {
        let token = self.config.token.as_ref();
        token.is_none_or(|token| token::is_shown(token, headers))
    }

    /// Whether the client calls us by a name that is ours.
    fn admits_name(&self, headers: &HeaderMap) -> bool {
        if self.config.token.is_some() {
            return true;
        }
        let host = headers.get(header::HOST);
        let Some(name) = host.and_then(|host| Authority::try_from(host.as_bytes()).ok()) else {
            return false;
        };
        let name = name.host().trim_start_matches('[').trim_end_matches(']');
        let mut ours = self.config.hosts.iter().map(String::as_str);
        name.parse::<IpAddr>().is_ok()
            || name.eq_ignore_ascii_case("localhost")
            || ours.any(|our| name.eq_ignore_ascii_case(our))
    }
}

async fn metrics(State(doors): State<Arc<Doors>>) -> Response {
    let kind = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    (kind, doors.observers.metrics()).into_response()
}

async fn status(State(doors): State<Arc<Doors>>) -> Response {
    doors.observers.freshen().await;
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, doors.observers.picture().to_string()).into_response()
}

async fn livez(State(doors): State<Arc<Doors>>) -> Response {
    if doors.observers.is_alive() {
        "alive\n".into_response()
    } else {
        let words = "the thread that moves events hangs\n";
        (StatusCode::SERVICE_UNAVAILABLE, words).into_response()
    }
}

async fn readyz(State(doors): State<Arc<Doors>>, headers: HeaderMap) -> Response {
    let troubles = doors.observers.troubles();
    if troubles.is_empty() {
        return "ready\n".into_response();
    }
    let words = if doors.admits(&headers) {
        troubles
            .iter()
            .map(|trouble| format!("{trouble}\n"))
            .collect()
    } else {
        "not ready\n".to_owned()
    };
    (StatusCode::SERVICE_UNAVAILABLE, words).into_response()
}
