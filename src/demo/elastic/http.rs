//! From a request to its answer: who asks, what for, with which body.

use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::body::{Body, HttpBody as _};
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, header};
use axum::response::Response;
use axum::serve::IncomingStream;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::Credentials;
use super::answers::{Reply, unauthorized};
use super::bulk;
use super::filter::Filter;
use super::routes::{self, Call};
use super::script::{Answer, Request, Shared};
use crate::demo::connection::Cuttable;

/// Accepts connections that can be cut.
pub(super) struct Listener {
    listener: TcpListener,
    shared: Arc<Shared>,
}

impl Listener {
    pub(super) fn new(listener: TcpListener, shared: Arc<Shared>) -> Self {
        Self { listener, shared }
    }
}

impl axum::serve::Listener for Listener {
    type Io = Cuttable<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (connection, address) = axum::serve::Listener::accept(&mut self.listener).await;
        // Small answers would otherwise wait for the client's acknowledgement.
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!(%error, "cannot switch off the delay of small packets");
        }
        let token = self.shared.connections.lock().child_token();
        (Cuttable::new(connection, token), address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// What cuts the connection that a request came by.
#[derive(Clone)]
struct Peer(CancellationToken);

impl Connected<IncomingStream<'_, Listener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Listener>) -> Self {
        Self(stream.io().token().clone())
    }
}

/// Serves until `stop`, and then until the connections are gone.
pub(super) async fn serve(listener: Listener, shared: Arc<Shared>, stop: CancellationToken) {
    let router = Router::new().fallback(handle).with_state(shared);
    let served = axum::serve(
        listener,
        router.into_make_service_with_connect_info::<Peer>(),
    )
    .with_graceful_shutdown(stop.cancelled_owned())
    .await;
    if let Err(error) = served {
        tracing::warn!(%error, "the stand-in Elasticsearch ended");
    }
}

async fn handle(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: axum::extract::Request,
) -> Response {
    let product_header = shared.options.product_header;
    answer(shared, peer, request)
        .await
        .into_response(product_header)
}

async fn answer(shared: Arc<Shared>, peer: Peer, request: axum::extract::Request) -> Reply {
    let (head, body) = request.into_parts();
    let (path, query) = (head.uri.path(), head.uri.query().unwrap_or(""));
    shared.note(Request {
        method: head.method.to_string(),
        path: path.to_owned(),
        query: query.to_owned(),
    });
    let credentials = shared.script.lock().credentials.clone();
    if let Some(reply) = refused(credentials.as_ref(), &head.headers, path) {
        return reply;
    }
    let call = Call::new(&head.method, path, query);
    if let Some(index) = call.bulk_index() {
        let index = index.map(str::to_owned);
        return take_bulk(shared, peer, &call, &head.headers, body, index).await;
    }
    match read(shared.options.max_content_bytes, body, &head.headers).await {
        Ok((body, _)) => blocking(move || routes::answer(&shared, &call, &body)).await,
        Err(reply) => reply,
    }
}

/// What keeps a request without the right credentials out.
fn refused(needed: Option<&Credentials>, headers: &HeaderMap, path: &str) -> Option<Reply> {
    let (scheme, text) = match needed? {
        Credentials::Basic { user, password } => ("Basic", format!("{user}:{}", password.expose())),
        Credentials::ApiKey { id, key } => ("ApiKey", format!("{id}:{}", key.expose())),
    };
    let Some(given) = headers.get(header::AUTHORIZATION) else {
        let reason = format!("missing authentication credentials for REST request [{path}]");
        return Some(unauthorized(&reason));
    };
    let given = given.to_str().ok().and_then(|given| given.split_once(' '));
    let is_right = given.is_some_and(|(given_scheme, given)| {
        given_scheme.eq_ignore_ascii_case(scheme) && given == STANDARD.encode(&text)
    });
    if is_right {
        return None;
    }
    let reason =
        format!("unable to authenticate with provided credentials for REST request [{path}]");
    Some(unauthorized(&reason))
}

async fn take_bulk(
    shared: Arc<Shared>,
    peer: Peer,
    call: &Call,
    headers: &HeaderMap,
    body: Body,
    index: Option<String>,
) -> Reply {
    shared.n_bulk_requests.fetch_add(1, Ordering::Relaxed);
    if let Err(reply) = check_content_type(headers) {
        return reply;
    }
    if let Err(reply) = call.check_bulk_parameters() {
        return reply;
    }
    let body = match read(shared.options.max_content_bytes, body, headers).await {
        Ok((body, n_sent)) => {
            shared.n_bulk_bytes.fetch_add(n_sent, Ordering::Relaxed);
            body
        }
        Err(reply) => return reply,
    };
    let (planned, delay, largest, cut_above) = {
        let mut script = shared.script.lock();
        let planned = script.answers.pop_front();
        (planned, script.delay, script.largest, script.cut_above)
    };
    if cut_above.is_some_and(|bytes| body.len() > bytes) {
        peer.0.cancel();
        return std::future::pending().await;
    }
    match largest {
        Some((most_bytes, 413)) if body.len() > most_bytes => {
            return Reply::too_large();
        }
        Some((most_bytes, status)) if body.len() > most_bytes => {
            let reason = "rejected execution of coordinating operation";
            return Reply::error(status, "es_rejected_execution_exception", reason);
        }
        _ => {}
    }
    if shared.options.keep_bodies {
        shared.record.lock().bodies.push(body.clone());
    }
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let store_first = match planned {
        None | Some(Answer::Ordinary) => false,
        Some(Answer::StoreAndDrop) => true,
        Some(Answer::Status {
            status,
            body,
            retry_after,
        }) => {
            let mut reply = Reply::text(status, body, "application/json");
            reply.retry_after = retry_after;
            return reply;
        }
        Some(Answer::Hang) => return std::future::pending().await,
        Some(Answer::Drop) => {
            peer.0.cancel();
            return std::future::pending().await;
        }
    };
    if shared.options.sink {
        let n_operations = memchr::memchr_iter(b'\n', &body).count() / 2;
        shared.note_items([(201, n_operations as u64)]);
        return Reply::text(200, bulk::sink_answer(n_operations), "application/json");
    }
    let filter = Filter::parse(&call.parameter("filter_path"));
    let reply =
        blocking(move || bulk::bulk(&shared, &body, index.as_deref(), filter.as_ref())).await;
    if store_first {
        peer.0.cancel();
        return std::future::pending().await;
    }
    reply
}

/// Runs what waits for SQLite where it keeps nobody waiting.
async fn blocking(work: impl FnOnce() -> Reply + Send + 'static) -> Reply {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Reply::error(500, "stand_in_exception", &error.to_string()))
}

fn check_content_type(headers: &HeaderMap) -> Result<(), Reply> {
    let given = headers.get(header::CONTENT_TYPE);
    let given = given.and_then(|given| given.to_str().ok()).unwrap_or("");
    let kind = given.split(';').next().unwrap_or("").trim();
    if matches!(kind, "application/x-ndjson" | "application/json") {
        return Ok(());
    }
    let reason = format!("Content-Type header [{given}] is not supported");
    Err(Reply::bare_error(406, &reason))
}

/// The whole body, inflated if it came so, and its length as it came. One that is too large is still read to its end: a
/// client is to see the answer, not a reset while it sends.
async fn read(most: usize, body: Body, headers: &HeaderMap) -> Result<(Bytes, u64), Reply> {
    let expected = usize::try_from(body.size_hint().lower()).unwrap_or(0);
    let mut bytes = Vec::with_capacity(expected.min(most));
    let mut n_bytes = 0;
    let mut parts = body.into_data_stream();
    while let Some(part) = parts.next().await {
        let Ok(part) = part else {
            return Err(Reply::error(
                400,
                "illegal_argument_exception",
                "the body broke off",
            ));
        };
        n_bytes += part.len();
        if n_bytes <= most {
            bytes.extend_from_slice(&part);
        }
    }
    if n_bytes > most {
        return Err(Reply::too_large());
    }
    let encoding = headers.get(header::CONTENT_ENCODING);
    let bytes = match encoding.map(|value| value.as_bytes()) {
        None => Bytes::from(bytes),
        Some(b"gzip") => inflate(bytes, most).await?,
        Some(other) => {
            let other = String::from_utf8_lossy(other);
            let reason = format!("unknown Content-Encoding [{other}]");
            return Err(Reply::error(400, "illegal_argument_exception", &reason));
        }
    };
    Ok((bytes, n_bytes as u64))
}

async fn inflate(bytes: Vec<u8>, most: usize) -> Result<Bytes, Reply> {
    let inflated = tokio::task::spawn_blocking(move || {
        let mut inflated = Vec::with_capacity(bytes.len().saturating_mul(4).min(most));
        let limit = most as u64 + 1;
        let reader = flate2::read::MultiGzDecoder::new(&*bytes);
        reader
            .take(limit)
            .read_to_end(&mut inflated)
            .map(|_| inflated)
    });
    match inflated.await {
        Ok(Ok(inflated)) if inflated.len() > most => Err(Reply::too_large()),
        Ok(Ok(inflated)) => Ok(Bytes::from(inflated)),
        _ => Err(Reply::error(400, "zip_exception", "Not in GZIP format")),
    }
}
