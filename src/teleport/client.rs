//! The gRPC client: one channel that connects by itself, and the calls of the audit log.

mod codec;
mod connection;
mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{IntoRequest, Status, Streaming};

use crate::config::TeleportConfig;
use crate::event::{AuditEvent, DAY_MS, Timestamp};
use crate::pipeline::quota;
use crate::telemetry::Stats;
use crate::teleport::dial::Route;
use crate::teleport::identity::{Credentials, IdentityError};
use crate::teleport::proto::auditlog;
use crate::teleport::proto::auditlog::audit_log_service_client::AuditLogServiceClient;
use crate::teleport::proto::auth::auth_service_client::AuthServiceClient;
use crate::teleport::proto::auth::{self, PingRequest, PingResponse};

use self::codec::{Answer, EventCodec};
use self::connection::Connection;

pub use self::codec::Exported;
pub use self::error::{CallError, Remedy};

/// A server that accepts a call and then says nothing for so long is taken for gone.
const SILENCE: Duration = Duration::from_secs(180);

/// The largest message that is accepted. A page holds 1 MiB of events or one larger event.
const MESSAGE_BYTES: usize = 64 << 20;

/// A connection to a cluster's Auth Service. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    connection: Arc<Connection>,
    cluster: Arc<str>,
    requests: Option<Arc<governor::DefaultDirectRateLimiter>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// The cluster's name.
    pub cluster: String,
    /// Its Auth Service's version, such as `18.2.0`.
    pub version: String,
}

impl Server {
    /// Whether it certainly has neither event API: they came with Teleport 14, and late in 13.
    pub fn is_too_old(&self) -> bool {
        let major = self.version.split('.').next();
        major.is_some_and(|major| major.parse::<u32>().is_ok_and(|major| major < 13))
    }
}

impl Client {
    /// Reads the credentials and prepares the channel. The connection itself is made by the first
    /// call, and again by the next one whenever it is lost.
    ///
    /// # Errors
    /// If the credentials cannot be used.
    pub fn new(
        config: &TeleportConfig,
        requests_per_second: Option<std::num::NonZeroU32>,
    ) -> Result<Self, IdentityError> {
        let connection = Connection::new(config)?;
        Ok(Self {
            cluster: connection.credentials().cluster.as_str().into(),
            connection: Arc::new(connection),
            requests: requests_per_second.map(|quota| Arc::new(quota::limiter(quota))),
        })
    }

    fn log(&self) -> AuditLogServiceClient<Channel> {
        AuditLogServiceClient::new(self.connection.channel())
    }

    /// For the calls whose answers we read ourselves.
    fn events(&self) -> Grpc<Channel> {
        Grpc::new(self.connection.channel()).max_decoding_message_size(MESSAGE_BYTES)
    }

    /// The credentials in use.
    pub fn credentials(&self) -> Arc<Credentials> {
        self.connection.credentials()
    }

    /// Renews connections when the credentials' files change, and warns before the certificate
    /// ends, until it is dropped. `asked` ends when somebody wants the files read at once.
    pub async fn keep_fresh(&self, asked: impl AsyncFnMut(), stats: &Stats) {
        let proves = async |channel| ping(channel).await.map(drop);
        let tell = |credentials: &Credentials| {
            for (known, time) in [
                (&stats.certificate_start_ms, credentials.not_before),
                (&stats.certificate_end_ms, credentials.not_after),
            ] {
                known.store(time.timestamp_millis(), Ordering::Relaxed);
            }
        };
        self.connection.keep_fresh(asked, proves, tell).await;
    }

    /// The cluster that the credentials lead to.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// How the last connection was made; `None` if there was none.
    pub async fn route(&self) -> Option<Route> {
        self.connection.route().await
    }

    async fn wait_for_quota(&self) {
        if let Some(limiter) = &self.requests {
            quota::pass(limiter, 1).await;
        }
    }

    /// Asks the server who it is; proves the connection and the certificate.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn ping(&self) -> Result<Server, CallError> {
        let answer = ping(self.connection.channel()).await?;
        let version = answer.server_version.trim_start_matches('v').to_owned();
        Ok(Server {
            cluster: answer.cluster_name,
            version,
        })
    }

    /// Makes a lock, or renews the one of this name.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn upsert_lock(&self, lock: &Lock) -> Result<(), CallError> {
        let request = auth::LockV2 {
            kind: "lock".into(),
            version: "v2".into(),
            metadata: Some(auth::Metadata {
                name: lock.name.clone(),
            }),
            spec: Some(auth::LockSpecV2 {
                target: Some(auth::LockTarget {
                    user: lock.user.clone(),
                }),
                message: lock.message.clone(),
                expires: lock.expires_ms.map(|ms| {
                    let Timestamp { seconds, nanos } = Timestamp::from_millis(ms);
                    auth::Timestamp { seconds, nanos }
                }),
            }),
            ..Default::default()
        };
        let mut auth = AuthServiceClient::new(self.connection.channel());
        answered("UpsertLock", auth.upsert_lock(request)).await?;
        Ok(())
    }

    /// One page of a search. `from` and `to` are both inclusive, `to` as a whole millisecond.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn search(&self, query: &Query<'_>, start_key: &str) -> Result<Found, CallError> {
        self.wait_for_quota().await;
        let request = auditlog::GetUnstructuredEventsRequest {
            namespace: query.namespace.into(),
            start_date: Some(wire_time(query.from_ms)),
            end_date: Some(auditlog::Timestamp {
                nanos: wire_time(query.to_ms).nanos + 999_999,
                ..wire_time(query.to_ms)
            }),
            event_types: query.types.to_vec(),
            limit: query.limit,
            start_key: start_key.into(),
            order: if query.newest_first {
                auditlog::Order::DescendingUnspecified.into()
            } else {
                auditlog::Order::Ascending.into()
            },
        };
        let mut events = self.events();
        answered("GetUnstructuredEvents", async {
            ready(&mut events).await?;
            let path = PathAndQuery::from_static(SEARCH_PATH);
            let codec = EventCodec::default();
            events.unary(request.into_request(), path, codec).await
        })
        .await
    }

    /// One event of the last day, if there is one: proves the right to read events.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn newest_event(&self, namespace: &str) -> Result<Option<AuditEvent>, CallError> {
        let to_ms = Utc::now().timestamp_millis();
        self.newest(namespace, to_ms - DAY_MS..to_ms, &[]).await
    }

    /// When the newest event was that took place at `from_ms` or later, and up to now; in ms since
    /// 1970, and one of `types`, unless that is empty.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn newest_since(
        &self,
        namespace: &str,
        from_ms: i64,
        types: &[String],
    ) -> Result<Option<i64>, CallError> {
        let to_ms = Utc::now().timestamp_millis().max(from_ms);
        let newest = self.newest(namespace, from_ms..to_ms, types).await?;
        let newest_ms = newest.and_then(|event| event.time).map(Timestamp::millis);
        // Servers that know whole seconds only give what was before, too.
        Ok(newest_ms.filter(|ms| *ms >= from_ms))
    }

    async fn newest(
        &self,
        namespace: &str,
        span_ms: Range<i64>,
        types: &[String],
    ) -> Result<Option<AuditEvent>, CallError> {
        let query = Query {
            namespace,
            from_ms: span_ms.start,
            to_ms: span_ms.end,
            types,
            limit: 1,
            newest_first: true,
        };
        Ok(self.search(&query, "").await?.events.pop())
    }

    /// All chunks of a UTC day.
    ///
    /// # Errors
    /// If the call fails; [`Remedy::Unknown`] where the server has no export API.
    pub async fn chunks(&self, day: chrono::NaiveDate) -> Result<Vec<String>, CallError> {
        const METHOD: &str = "GetEventExportChunks";
        self.wait_for_quota().await;
        let mut log = self.log();
        let request = auditlog::GetEventExportChunksRequest {
            date: Some(wire_day(day)),
        };
        let mut stream = answered(METHOD, log.get_event_export_chunks(request)).await?;
        let mut chunks = Vec::new();
        while let Some(chunk) = next(METHOD, &mut stream).await? {
            chunks.push(chunk.chunk);
        }
        Ok(chunks)
    }

    /// Reads a chunk from behind `cursor`, or from its start if that is empty.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn export(
        &self,
        day: chrono::NaiveDate,
        chunk: &str,
        cursor: &str,
    ) -> Result<EventStream<Exported>, CallError> {
        let request = auditlog::ExportUnstructuredEventsRequest {
            date: Some(wire_day(day)),
            chunk: chunk.into(),
            cursor: cursor.into(),
        };
        self.stream("ExportUnstructuredEvents", EXPORT_PATH, request)
            .await
    }

    /// Reads a session's recording from the event with this index on, which comes too.
    ///
    /// # Errors
    /// If the call fails; [`Remedy::NotFound`] where there is no such recording.
    pub async fn recording(
        &self,
        session: &str,
        from_index: i32,
    ) -> Result<EventStream<AuditEvent>, CallError> {
        let request = auditlog::StreamUnstructuredSessionEventsRequest {
            session_id: session.into(),
            start_index: from_index,
        };
        self.stream("StreamUnstructuredSessionEvents", RECORDING_PATH, request)
            .await
    }

    /// Proves the right to read recordings, by asking for one that is not there.
    ///
    /// # Errors
    /// If the call fails for another reason.
    pub async fn ask_for_recordings(&self) -> Result<(), CallError> {
        const NO_SESSION: &str = "00000000-0000-0000-0000-000000000000";
        let asked = async {
            let mut stream = self.recording(NO_SESSION, 0).await?;
            stream.next_by(Instant::now() + SILENCE).await
        };
        match asked.await {
            Err(failed) if failed.remedy() != Remedy::NotFound => Err(failed),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    async fn stream<Q, A>(
        &self,
        method: &'static str,
        path: &'static str,
        request: Q,
    ) -> Result<EventStream<A>, CallError>
    where
        Q: prost::Message + 'static,
        A: Answer,
    {
        self.wait_for_quota().await;
        let mut events = self.events();
        let stream = answered(method, async {
            ready(&mut events).await?;
            let path = PathAndQuery::from_static(path);
            let codec = EventCodec::default();
            let request = request.into_request();
            events.server_streaming(request, path, codec).await
        })
        .await?;
        Ok(EventStream {
            method,
            stream,
            silent: Duration::ZERO,
        })
    }
}

/// Events one by one, as the server sends them.
#[derive(Debug)]
pub struct EventStream<A> {
    method: &'static str,
    stream: Streaming<A>,
    /// How long we have waited for the next event.
    silent: Duration,
}

impl<A> EventStream<A> {
    /// The next event; `Some(None)` at the stream's end, `None` if there is nothing by `deadline`.
    /// What is there already is given even after that. Safe to drop: nothing is taken before it is
    /// given.
    ///
    /// # Errors
    /// If the stream breaks, or says nothing for too long.
    pub async fn next_by(&mut self, deadline: Instant) -> Result<Option<Option<A>>, CallError> {
        let method = self.method;
        // Most events are there already; a timer for each would cost more than its decoding.
        let next = match self.stream.message().now_or_never() {
            Some(next) => next,
            None => {
                let began = Instant::now();
                match timeout_at(deadline, self.stream.message()).await {
                    Ok(next) => next,
                    Err(_) => {
                        self.silent += began.elapsed();
                        let gone = self.silent >= SILENCE;
                        return if gone {
                            Err(CallError::Silence { method })
                        } else {
                            Ok(None)
                        };
                    }
                }
            }
        };
        let item = next.map_err(|status| CallError::new(method, &status))?;
        self.silent = Duration::ZERO;
        Ok(Some(item))
    }
}

/// What to search for.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// Teleport's namespace; servers ignore it.
    pub namespace: &'a str,
    /// Lower bound, inclusive, ms since 1970.
    pub from_ms: i64,
    /// The last millisecond, ms since 1970.
    pub to_ms: i64,
    /// Event types; all if empty.
    pub types: &'a [String],
    /// The most events of a page, 1 to 10,000.
    pub limit: i32,
    /// From the span's end to its start.
    pub newest_first: bool,
}

/// A lock to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    /// Its name.
    pub name: String,
    /// Whom it locks.
    pub user: String,
    /// What that user is told.
    pub message: String,
    /// When it ends, ms since 1970; never if `None`.
    pub expires_ms: Option<i64>,
}

/// A page of a search.
#[derive(Debug)]
pub struct Found {
    /// In the order that was asked for.
    pub events: Vec<AuditEvent>,
    /// Opaque; empty if there is no further page for now.
    pub last_key: String,
}

async fn ping(channel: Channel) -> Result<PingResponse, CallError> {
    let mut auth = AuthServiceClient::new(channel);
    answered("Ping", auth.ping(PingRequest {})).await
}

const SEARCH_PATH: &str = "/teleport.auditlog.v1.AuditLogService/GetUnstructuredEvents";
const EXPORT_PATH: &str = "/teleport.auditlog.v1.AuditLogService/ExportUnstructuredEvents";
const RECORDING_PATH: &str =
    "/teleport.auditlog.v1.AuditLogService/StreamUnstructuredSessionEvents";

/// Waits until the channel takes a call.
async fn ready(events: &mut Grpc<Channel>) -> Result<(), Status> {
    let ready = events.ready().await;
    ready.map_err(|failed| Status::from_error(failed.into()))
}

async fn answered<T>(
    method: &'static str,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, CallError> {
    // On the heap: a call's state is large, and callers' futures hold several.
    match timeout(SILENCE, Box::pin(call)).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(CallError::new(method, &status)),
        Err(_) => Err(CallError::Silence { method }),
    }
}

async fn next<T>(method: &'static str, stream: &mut Streaming<T>) -> Result<Option<T>, CallError> {
    match timeout(SILENCE, stream.message()).await {
        Ok(Ok(message)) => Ok(message),
        Ok(Err(status)) => Err(CallError::new(method, &status)),
        Err(_) => Err(CallError::Silence { method }),
    }
}

fn wire_time(ms: i64) -> auditlog::Timestamp {
    let Timestamp { seconds, nanos } = Timestamp::from_millis(ms);
    auditlog::Timestamp { seconds, nanos }
}

fn wire_day(day: chrono::NaiveDate) -> auditlog::Timestamp {
    let midnight: DateTime<Utc> = day.and_time(chrono::NaiveTime::MIN).and_utc();
    wire_time(midnight.timestamp_millis())
}
