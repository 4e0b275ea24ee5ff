//! The calls themselves.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::{Stream, StreamExt, stream};
use tonic::{Code, Response, Status};

use super::Peer;
use super::log::{Query, chunks, day};
use super::recordings::Played;
use super::script::{KeyFault, Method, Request, Shared, Unreadable, Unsteady};
use crate::demo::events::{Id, encode};
use crate::event::Timestamp;
use crate::teleport::proto::auditlog::audit_log_service_server::AuditLogService;
use crate::teleport::proto::auditlog::{
    self, EventExportChunk, EventUnstructured, ExportEventUnstructured,
};
use crate::teleport::proto::auth;
use crate::teleport::proto::auth::auth_service_server::AuthService;

/// The limit of a search that names none.
const DEFAULT_LIMIT: usize = 500;
/// The largest limit that a search may name.
const MOST_LIMIT: usize = 10_000;

#[derive(Clone)]
pub(super) struct Service {
    shared: Arc<Shared>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A stream whose status comes when it is drained, as Teleport's Go server sends it.
fn failed<T: Send + 'static>(status: Status) -> Response<Answers<T>> {
    Response::new(Box::pin(stream::iter([Err(status)])))
}

fn timestamp(time: Option<auditlog::Timestamp>) -> Option<Timestamp> {
    time.map(|time| Timestamp {
        seconds: time.seconds,
        nanos: time.nanos,
    })
}

impl Service {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// What comes before any answer: the record, the planned delay and failure, the check who asks.
    async fn admit<T>(
        &self,
        call: &tonic::Request<T>,
        method: Method,
        request: Request,
    ) -> Result<(), Status> {
        self.shared.note(method, request);
        let delay = self.shared.script.lock().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let planned = {
            let mut script = self.shared.script.lock();
            let codes = script.failures.get_mut(&method);
            codes.and_then(|codes| codes.pop_front())
        };
        if let Some(code) = planned.filter(|code| *code != Code::Ok) {
            return Err(Status::new(code, "planned failure"));
        }
        let peer = call.extensions().get::<Peer>();
        if !peer.is_some_and(|peer| peer.has_certificate) {
            return Err(Status::permission_denied("access denied to anonymous user"));
        }
        Ok(())
    }

    fn hand_out(&self, method: Method, count: usize) {
        self.shared.n_handed_out[method as usize].fetch_add(count as u64, Ordering::Relaxed);
    }

    fn need_export(&self) -> Result<(), Status> {
        if self.shared.script.lock().export {
            return Ok(());
        }
        Err(Status::unimplemented(
            "the audit backend does not support bulk export of events",
        ))
    }

    fn list(&self, request: &auditlog::GetEventExportChunksRequest) -> Result<Vec<String>, Status> {
        self.need_export()?;
        let date = needed_date(request.date)?;
        Ok(self.shared.log.lock().chunk_ids(date))
    }

    fn read(
        &self,
        request: &auditlog::ExportUnstructuredEventsRequest,
    ) -> Result<Answers<ExportEventUnstructured>, Status> {
        self.need_export()?;
        let date = needed_date(request.date)?;
        if request.chunk.is_empty() {
            return Err(Status::invalid_argument(
                "missing required parameter 'chunk'",
            ));
        }
        let Some(chunk) = self.shared.log.lock().chunk(date, &request.chunk) else {
            let message = format!("event chunk {:?} not found", request.chunk);
            return Err(Status::not_found(message));
        };
        let Some(start) = position(&request.cursor).filter(|start| *start <= chunk.events.len())
        else {
            let message = format!("invalid cursor {:?}", request.cursor);
            return Err(Status::invalid_argument(message));
        };
        let mut end = chunk.events.len();
        let (planned, unreadable) = {
            let mut script = self.shared.script.lock();
            (script.breaks.pop_front(), script.unreadable)
        };
        let mut last = None;
        if let Some((n_events, code)) = planned {
            end = end.min(start.saturating_add(n_events));
            last = Some(Err(Status::new(code, "planned break of the stream")));
        }
        if let Some((most, Unreadable::Refused(code))) = unreadable
            && let Some(before) = chunk.events[start..end]
                .iter()
                .position(|event| event.unstructured.len() > most)
        {
            end = start + before;
            last = Some(Err(too_large(code)));
        }
        let service = self.clone();
        let events = (start..end).map(move |n| {
            service.hand_out(Method::ReadChunk, 1);
            Ok(ExportEventUnstructured {
                event: Some(chunk.events[n].clone()),
                cursor: format!("c1:{}", n + 1),
            })
        });
        Ok(Box::pin(stream::iter(events.chain(last))))
    }

    fn play(
        &self,
        request: &auditlog::StreamUnstructuredSessionEventsRequest,
    ) -> Result<Answers<EventUnstructured>, Status> {
        let session = &request.session_id;
        if session.is_empty() {
            return Err(Status::invalid_argument("missing session id"));
        }
        if self.shared.script.lock().audits_recordings {
            self.audit(session);
        }
        let index = request.start_index.into();
        let played = self.shared.recordings.lock().play(session, index)?;
        let Played {
            events,
            to,
            last,
            pause,
        } = played;
        let service = self.clone();
        let events = (0..to).map(move |n| {
            service.hand_out(Method::ReadRecording, 1);
            Ok(events[n].clone())
        });
        let events = stream::iter(events.chain(last.map(Err)));
        Ok(Box::pin(events.then(move |event| async move {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            event
        })))
    }

    /// Says in the audit log that somebody has read a recording.
    fn audit(&self, session: &str) {
        let mut log = self.shared.log.lock();
        let uid = format!("access {}", log.n_events());
        let time = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
        let event = serde_json::json!({
            "event": "session.recording.access", "code": "T2012I", "uid": uid, "time": time,
            "ei": 0, "sid": session, "cluster_name": self.shared.cluster,
        });
        log.add(chunks([encode(&event, Id::OfEvent)], 1));
    }
}

fn too_large(code: Code) -> Status {
    Status::new(code, "trying to send message larger than max")
}

/// What a search begins with.
enum StartKey<'a> {
    Key(&'a str),
    /// Nothing is looked for.
    Empty {
        last_key: String,
    },
}

fn start_key(given: &str, fault: Option<KeyFault>) -> Result<StartKey<'_>, Status> {
    /// Stands before a key that was given with an empty page.
    const PASSED: &str = "empty:";
    let Some(fault) = fault.filter(|_| !given.is_empty()) else {
        return Ok(StartKey::Key(given.trim_start_matches(PASSED)));
    };
    match fault {
        KeyFault::Refused(code) => Err(Status::new(code, "cannot read the start key")),
        KeyFault::Ignored => Ok(StartKey::Key("")),
        KeyFault::Forgotten => Ok(StartKey::Empty {
            last_key: String::new(),
        }),
        KeyFault::EmptyPages => Ok(match given.strip_prefix(PASSED) {
            Some(key) => StartKey::Key(key),
            None => StartKey::Empty {
                last_key: format!("{PASSED}{given}"),
            },
        }),
    }
}

/// The cursor's position: how many events of the chunk are passed.
fn position(cursor: &str) -> Option<usize> {
    if cursor.is_empty() {
        return Some(0);
    }
    cursor.strip_prefix("c1:")?.parse().ok()
}

fn needed_date(date: Option<auditlog::Timestamp>) -> Result<chrono::NaiveDate, Status> {
    match timestamp(date) {
        None => Err(Status::invalid_argument(
            "missing required parameter 'date'",
        )),
        date => Ok(day(date)),
    }
}

#[tonic::async_trait]
impl AuditLogService for Service {
    async fn get_unstructured_events(
        &self,
        call: tonic::Request<auditlog::GetUnstructuredEventsRequest>,
    ) -> Result<Response<auditlog::EventsUnstructured>, Status> {
        let request = call.get_ref().clone();
        let (from, to) = (timestamp(request.start_date), timestamp(request.end_date));
        let ascending = request.order == i32::from(auditlog::Order::Ascending);
        let noted = Request::Search {
            from,
            to,
            types: request.event_types.clone(),
            limit: request.limit,
            start_key: request.start_key.clone(),
            ascending,
        };
        self.admit(&call, Method::Search, noted).await?;
        let limit = match usize::try_from(request.limit) {
            Err(_) | Ok(0) => DEFAULT_LIMIT,
            Ok(limit) if limit > MOST_LIMIT => {
                let message = format!("limit {limit} exceeds the maximum of {MOST_LIMIT}");
                return Err(Status::invalid_argument(message));
            }
            Ok(limit) => limit,
        };
        let (from, to) = (from.unwrap_or_default(), to.unwrap_or_default());
        if from > to {
            return Err(Status::invalid_argument(
                "the start date is after the end date",
            ));
        }
        let (unreadable, fault, unsteady) = {
            let mut script = self.shared.script.lock();
            let unsteady = script
                .unsteady
                .as_mut()
                .and_then(|(random, one_in, fault)| (random.below(*one_in) == 0).then_some(*fault));
            (script.unreadable, script.key_fault, unsteady)
        };
        match unsteady {
            Some(Unsteady::Fails(Code::ResourceExhausted)) => {
                return Err(Status::resource_exhausted("rate limit exceeded"));
            }
            Some(Unsteady::Fails(code)) => return Err(Status::new(code, "unsteady")),
            Some(Unsteady::Empty) => {
                return Ok(Response::new(auditlog::EventsUnstructured::default()));
            }
            None => {}
        }
        let start_key = match start_key(&request.start_key, fault)? {
            StartKey::Key(key) => key,
            StartKey::Empty { last_key } => {
                return Ok(Response::new(auditlog::EventsUnstructured {
                    last_key,
                    ..Default::default()
                }));
            }
        };
        let page = self.shared.log.lock().search(&Query {
            from,
            to,
            types: &request.event_types,
            limit,
            start_key,
            ascending,
            unreadable,
        });
        let page = page.map_err(too_large)?;
        self.hand_out(Method::Search, page.items.len());
        Ok(Response::new(page))
    }

    type GetEventExportChunksStream = Answers<EventExportChunk>;

    async fn get_event_export_chunks(
        &self,
        call: tonic::Request<auditlog::GetEventExportChunksRequest>,
    ) -> Result<Response<Self::GetEventExportChunksStream>, Status> {
        let noted = Request::ListChunks {
            date: timestamp(call.get_ref().date),
        };
        let admitted = self.admit(&call, Method::ListChunks, noted).await;
        Ok(match admitted.and_then(|()| self.list(call.get_ref())) {
            Err(status) => failed(status),
            Ok(ids) => {
                self.hand_out(Method::ListChunks, ids.len());
                let chunks = ids.into_iter().map(|chunk| Ok(EventExportChunk { chunk }));
                Response::new(Box::pin(stream::iter(chunks)))
            }
        })
    }

    type ExportUnstructuredEventsStream = Answers<ExportEventUnstructured>;

    async fn export_unstructured_events(
        &self,
        call: tonic::Request<auditlog::ExportUnstructuredEventsRequest>,
    ) -> Result<Response<Self::ExportUnstructuredEventsStream>, Status> {
        let request = call.get_ref();
        let noted = Request::ReadChunk {
            date: timestamp(request.date),
            chunk: request.chunk.clone(),
            cursor: request.cursor.clone(),
        };
        let admitted = self.admit(&call, Method::ReadChunk, noted).await;
        Ok(match admitted.and_then(|()| self.read(call.get_ref())) {
            Err(status) => failed(status),
            Ok(events) => Response::new(events),
        })
    }

    type StreamUnstructuredSessionEventsStream = Answers<EventUnstructured>;

    async fn stream_unstructured_session_events(
        &self,
        call: tonic::Request<auditlog::StreamUnstructuredSessionEventsRequest>,
    ) -> Result<Response<Self::StreamUnstructuredSessionEventsStream>, Status> {
        let request = call.get_ref();
        let noted = Request::ReadRecording {
            session: request.session_id.clone(),
            start_index: request.start_index,
        };
        let admitted = self.admit(&call, Method::ReadRecording, noted).await;
        Ok(match admitted.and_then(|()| self.play(call.get_ref())) {
            Err(status) => failed(status),
            Ok(events) => Response::new(events),
        })
    }
}

#[tonic::async_trait]
impl AuthService for Service {
    async fn ping(
        &self,
        call: tonic::Request<auth::PingRequest>,
    ) -> Result<Response<auth::PingResponse>, Status> {
        self.admit(&call, Method::Ping, Request::Ping).await?;
        Ok(Response::new(auth::PingResponse {
            cluster_name: self.shared.cluster.clone(),
            server_version: self.shared.options.server_version.clone(),
            server_features: Some(auth::Features { cloud: false }),
        }))
    }

    async fn upsert_lock(
        &self,
        call: tonic::Request<auth::LockV2>,
    ) -> Result<Response<auth::Empty>, Status> {
        let auth::LockV2 { metadata, spec, .. } = call.get_ref().clone();
        let auth::LockSpecV2 {
            target,
            message,
            expires,
        } = spec.unwrap_or_default();
        let user = target.unwrap_or_default().user;
        let has_target = !user.is_empty();
        let noted = Request::Lock {
            name: metadata.unwrap_or_default().name,
            user,
            message,
            expires: expires.map(|time| Timestamp {
                seconds: time.seconds,
                nanos: time.nanos,
            }),
        };
        self.admit(&call, Method::Lock, noted).await?;
        if !has_target {
            return Err(Status::invalid_argument(
                "at least one target field must be set",
            ));
        }
        Ok(Response::new(auth::Empty {}))
    }
}
