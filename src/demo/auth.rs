//! A stand-in for Teleport's Auth Service: the audit log's calls and `Ping`, over mutual TLS, on
//! 127.0.0.1. It keeps its events in memory, encoded once.
//!
//! What it promises is what Teleport's servers do, not more: chunks are listed in no order and
//! completely each time; a day without events is an empty stream; a cursor resumes after its
//! event; a page may be shorter than its limit and only an empty last key ends it; a start key
//! that is not in the range gives an empty page; both ends of a search range are inclusive; of a
//! recording come the events from an index on, that one included. A client without a certificate passes the handshake and is refused at each call.

mod log;
mod recordings;
mod script;
mod service;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::stream;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::demo::certs::{self, Cluster};
use crate::demo::connection::Cuttable;
use crate::demo::events::Random;
use crate::event::AuditEvent;
use crate::teleport::proto::auditlog::audit_log_service_server::AuditLogServiceServer;
use crate::teleport::proto::auth::auth_service_server::AuthServiceServer;
use script::Shared;
use service::Service;

pub use recordings::RecordingFault;
pub use script::{KeyFault, Method, Request, Unreadable, Unsteady};

/// Why the stand-in did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its own certificate could not be made.
    #[error("cannot set up TLS for the stand-in Auth Service")]
    Certificates(#[source] certs::Error),
    /// The port is not to be had.
    #[error("cannot listen on {listen}")]
    Listen {
        /// What was asked for; port 0 is any.
        listen: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
}

/// How the stand-in is set up.
#[derive(Clone, Debug)]
pub struct AuthOptions {
    /// Where to listen; port 0 for a free one. Whoever has an identity of the cluster is served.
    pub listen: SocketAddr,
    /// The version that `Ping` tells.
    pub server_version: String,
    /// The most events in one export chunk; at least 1.
    pub chunk_events: usize,
    /// Whether the audit backend has the export API. Only Athena's has.
    pub export: bool,
    /// Whether searches sort by whole seconds only, as DynamoDB's do, and take the bounds of a
    /// range so.
    pub whole_seconds: bool,
}

impl Default for AuthOptions {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            server_version: "18.2.0".to_owned(),
            chunk_events: 1_000,
            export: true,
            whole_seconds: false,
        }
    }
}

/// The running server. Dropping it stops it without waiting; connections are cut.
pub struct StandInAuth {
    address: SocketAddr,
    control: AuthControl,
    stop: CancellationToken,
    server: Option<JoinHandle<()>>,
}

impl StandInAuth {
    /// Listens and serves the audit log of `cluster`, at first empty.
    ///
    /// # Errors
    /// If the certificate cannot be made or the port is taken.
    pub async fn start(cluster: &Cluster, options: AuthOptions) -> Result<Self, Error> {
        let tls = cluster.server_config().map_err(Error::Certificates)?;
        let failed = |source| Error::Listen {
            listen: options.listen,
            source,
        };
        let listener = TcpListener::bind(options.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let shared = Arc::new(Shared::new(cluster.name(), options));
        let stop = CancellationToken::new();

        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(accept(
            listener,
            TlsAcceptor::from(Arc::new(tls)),
            Arc::clone(&shared),
            sender,
            stop.clone(),
        ));
        let incoming = stream::unfold(receiver, |mut receiver| async {
            let connection = receiver.recv().await?;
            Some((Ok::<_, io::Error>(connection), receiver))
        });
        let service = Service::new(Arc::clone(&shared));
        let serve = Server::builder()
            .add_service(AuditLogServiceServer::new(service.clone()))
            .add_service(AuthServiceServer::new(service))
            .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        let server = tokio::spawn(async move {
            if let Err(error) = serve.await {
                tracing::warn!(
                    error = %crate::output::Chain(&error),
                    "the stand-in Auth Service ended"
                );
            }
        });
        Ok(Self {
            address,
            control: AuthControl(shared),
            stop,
            server: Some(server),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What changes it and tells what it saw; clones serve the same server.
    pub fn control(&self) -> &AuthControl {
        &self.control
    }

    /// Cuts all connections and waits until the port is free again.
    pub async fn stop(mut self) {
        self.cut();
        if let Some(server) = self.server.take() {
            server.await.expect("the server task does not panic");
        }
    }

    fn cut(&self) {
        self.stop.cancel();
        self.control.0.connections.lock().cancel();
    }
}

impl Drop for StandInAuth {
    fn drop(&mut self) {
        self.cut();
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    shared: Arc<Shared>,
    sender: mpsc::Sender<Cuttable<TlsStream<TcpStream>>>,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            // Nothing is lost with an accept that is dropped: the connection stays in the queue.
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let Ok((connection, _)) = accepted else {
            continue;
        };
        let (acceptor, shared, sender) = (acceptor.clone(), Arc::clone(&shared), sender.clone());
        // In a task of its own: a client that is slow to greet must not hold up the others.
        tokio::spawn(async move {
            // Small answers would otherwise wait for the client's acknowledgement.
            if let Err(error) = connection.set_nodelay(true) {
                tracing::debug!(%error, "cannot switch off the delay of small packets");
            }
            let token = shared.connections.lock().child_token();
            let Ok(stream) = acceptor.accept(connection).await else {
                shared.n_failed_handshakes.fetch_add(1, Ordering::Relaxed);
                return;
            };
            shared.n_connections.fetch_add(1, Ordering::Relaxed);
            // If nobody receives, the server is stopping, and the connection ends here.
            drop(sender.send(Cuttable::new(stream, token)).await);
        });
    }
}

/// What a call knows of its connection.
#[derive(Clone, Copy)]
pub(crate) struct Peer {
    pub(crate) has_certificate: bool,
}

impl Connected for Cuttable<TlsStream<TcpStream>> {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        let (_, session) = self.get_ref().get_ref();
        Peer {
            has_certificate: session.peer_certificates().is_some(),
        }
    }
}

/// Changes the stand-in while it runs, and tells what it has seen.
#[derive(Clone)]
pub struct AuthControl(Arc<Shared>);

impl AuthControl {
    /// Adds events to the log. Each UTC day among them gets new chunks, filled in the order given;
    /// existing chunks never change. Events of past days are what Teleport calls late.
    pub fn append(&self, events: impl IntoIterator<Item = AuditEvent>) {
        let chunks = log::chunks(events, self.0.options.chunk_events);
        self.0.log.lock().add(chunks);
    }

    /// How many events the log holds.
    pub fn n_events(&self) -> usize {
        self.0.log.lock().n_events()
    }

    /// Has a recording of this session, instead of one that was there.
    pub fn record(
        &self,
        session: impl Into<String>,
        events: impl IntoIterator<Item = AuditEvent>,
        fault: Option<RecordingFault>,
    ) {
        let mut recordings = self.0.recordings.lock();
        recordings.set(session.into(), events, fault);
    }

    /// From now on this is wrong with a recording, or nothing.
    pub fn set_recording_fault(&self, session: &str, fault: Option<RecordingFault>) {
        self.0.recordings.lock().set_fault(session, fault);
    }

    /// Whether each call for a recording makes an event in the audit log, as Teleport's do. Not at
    /// first.
    pub fn audit_recordings(&self, audits: bool) {
        self.0.script.lock().audits_recordings = audits;
    }

    /// Whether the export API answers, or ends with `Unimplemented`.
    pub fn set_export(&self, export: bool) {
        self.0.script.lock().export = export;
    }

    /// Every call waits so long before it answers.
    pub fn set_delay(&self, delay: Duration) {
        self.0.script.lock().delay = delay;
    }

    /// Events with a larger body than this cannot be sent, and what happens then: chunks hide none.
    /// `None`, at first: all events are handed out.
    pub fn set_unreadable(&self, fault: Option<(usize, Unreadable)>) {
        self.0.script.lock().unreadable = fault;
    }

    /// From now on something is wrong with the keys of searches, or no longer.
    pub fn set_key_fault(&self, fault: Option<KeyFault>) {
        self.0.script.lock().key_fault = fault;
    }

    /// One in so many searches goes wrong from now on, by this seed, or none any more.
    pub fn set_unsteady(&self, fault: Option<(u64, u64, Unsteady)>) {
        let fault = fault.map(|(seed, one_in, fault)| (Random::new(seed), one_in, fault));
        self.0.script.lock().unsteady = fault;
    }

    /// The next `n_calls` of `method` fail with `code`, after those already planned; with
    /// [`Code::Ok`] they succeed, and those planned behind them fail.
    pub fn fail_next(&self, method: Method, n_calls: usize, code: Code) {
        let mut script = self.0.script.lock();
        let planned = script.failures.entry(method).or_default();
        planned.extend(std::iter::repeat_n(code, n_calls));
    }

    /// The next chunk that is read ends with `code` after `n_events` events, or at its end.
    pub fn break_next_stream(&self, n_events: usize, code: Code) {
        self.0.script.lock().breaks.push_back((n_events, code));
    }

    /// Cuts all connections; new ones are accepted.
    pub fn drop_connections(&self) {
        let mut connections = self.0.connections.lock();
        connections.cancel();
        *connections = CancellationToken::new();
    }

    /// How many calls of `method` came, those refused included.
    pub fn n_calls(&self, method: Method) -> u64 {
        self.0
            .record
            .lock()
            .n_calls
            .get(&method)
            .copied()
            .unwrap_or(0)
    }

    /// How many events (or, for [`Method::ListChunks`], chunks) went out by `method`.
    pub fn n_handed_out(&self, method: Method) -> u64 {
        self.0.n_handed_out[method as usize].load(Ordering::Relaxed)
    }

    /// The last 10,000 requests, oldest first.
    pub fn requests(&self) -> Vec<Request> {
        self.0.record.lock().requests.iter().cloned().collect()
    }

    /// How many connections were made, handshake and all.
    pub fn n_connections(&self) -> u64 {
        self.0.n_connections.load(Ordering::Relaxed)
    }

    /// How many connections did not get past the TLS handshake.
    pub fn n_failed_handshakes(&self) -> u64 {
        self.0.n_failed_handshakes.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests;
