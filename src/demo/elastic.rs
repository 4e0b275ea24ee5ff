//! A stand-in for Elasticsearch: plain HTTP on 127.0.0.1, documents in SQLite.
//!
//! It is strict about `_bulk`, stricter than the real one in two respects, so that what it accepts
//! a real one accepts: the only action it performs is `create`, and every operation must bring its
//! id. It keeps index templates, component templates and ILM policies as given without applying
//! them; it has no mappings. Whatever it does not know it answers as Elasticsearch does a path
//! without a handler.

mod answers;
mod bulk;
mod document;
mod filter;
mod http;
mod pattern;
mod routes;
mod script;
mod search;
mod store;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::secret::Secret;
use http::Listener;
use script::Shared;
use store::Store;

pub use script::{Answer, Operation, Refusal, Request};
pub use store::StoredDocument;

/// Why the stand-in did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database is not to be had.
    #[error("cannot open the stand-in's database {}", database.display())]
    Open {
        /// The file; empty for a temporary one.
        database: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// The port is not to be had.
    #[error("cannot listen on 127.0.0.1:{port}")]
    Listen {
        /// The port that was asked for; 0 is any.
        port: u16,
        /// What the system says.
        source: io::Error,
    },
}

/// What a request must bring to be let in.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// User and password.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: Secret,
    },
    /// An API key, sent as base64 of `id:key`.
    ApiKey {
        /// The key's id.
        id: String,
        /// The key itself.
        key: Secret,
    },
}

/// How the stand-in is set up.
#[derive(Clone, Debug)]
pub struct ElasticsearchOptions {
    /// The port on 127.0.0.1; 0 for a free one.
    pub port: u16,
    /// The version it says it is.
    pub version: String,
    /// Whether it is a project of Elastic Cloud Serverless, which has no lifecycle policies.
    pub serverless: bool,
    /// Whether it says in every answer that it is Elasticsearch.
    pub product_header: bool,
    /// The database file; a temporary one if there is none.
    pub database: Option<PathBuf>,
    /// The largest body it takes, before and after inflating.
    pub max_content_bytes: usize,
    /// What it asks for; nothing means that everybody may do everything.
    pub credentials: Option<Credentials>,
    /// Answers every bulk request at once with success for each pair of lines: checks nothing and
    /// keeps nothing but counts. For benchmarks.
    pub sink: bool,
    /// Keeps the body of each bulk request, inflated; see [`ElasticsearchControl::bodies`].
    pub keep_bodies: bool,
}

impl Default for ElasticsearchOptions {
    fn default() -> Self {
        Self {
            port: 0,
            version: "9.5.3".to_owned(),
            serverless: false,
            product_header: true,
            database: None,
            max_content_bytes: 100 << 20,
            credentials: None,
            sink: false,
            keep_bodies: false,
        }
    }
}

/// The running server. Dropping it stops it without waiting; connections are cut.
pub struct StandInElasticsearch {
    address: SocketAddr,
    control: ElasticsearchControl,
    stop: CancellationToken,
    server: Option<JoinHandle<()>>,
}

impl StandInElasticsearch {
    /// Opens the database, listens and serves.
    ///
    /// # Errors
    /// If the database cannot be opened or the port is taken.
    pub async fn start(options: ElasticsearchOptions) -> Result<Self, Error> {
        let failed = |source| Error::Listen {
            port: options.port,
            source,
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, options.port))
            .await
            .map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let database = options.database.clone().unwrap_or_default();
        let store = Store::open(&database).map_err(|source| Error::Open { database, source })?;
        let shared = Arc::new(Shared::new(options, store));
        let stop = CancellationToken::new();
        let listener = Listener::new(listener, Arc::clone(&shared));
        let serve = http::serve(listener, Arc::clone(&shared), stop.clone());
        Ok(Self {
            address,
            control: ElasticsearchControl(shared),
            server: Some(tokio::spawn(serve)),
            stop,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same as a URL, without a slash at its end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What changes it and tells what it saw; clones serve the same server.
    pub fn control(&self) -> &ElasticsearchControl {
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

impl Drop for StandInElasticsearch {
    fn drop(&mut self) {
        self.cut();
    }
}

/// Changes the stand-in while it runs, and tells what it has seen. What reads documents waits for
/// SQLite for a moment.
#[derive(Clone)]
pub struct ElasticsearchControl(Arc<Shared>);

impl ElasticsearchControl {
    /// From now on asks for these credentials.
    pub fn require(&self, credentials: Option<Credentials>) {
        self.0.script.lock().credentials = credentials;
    }

    /// The next `n_requests` bulk requests get this answer, after those already planned.
    pub fn answer_next(&self, n_requests: usize, answer: Answer) {
        let mut script = self.0.script.lock();
        script
            .answers
            .extend(std::iter::repeat_n(answer, n_requests));
    }

    /// Asks `rule` about each operation before it is carried out; what it gives is the answer and
    /// the document is not kept. Rules are asked in the order they were added.
    pub fn add_rule(
        &self,
        rule: impl Fn(&Operation<'_>) -> Option<Refusal> + Send + Sync + 'static,
    ) {
        self.0.script.lock().rules.push(Arc::new(rule));
    }

    /// Refuses no operation any more.
    pub fn clear_rules(&self) {
        self.0.script.lock().rules.clear();
    }

    /// Bulk requests with a larger body than so many bytes get this status from now on: 413 as from
    /// `http.max_content_length` or a proxy, 429 as from `indexing_pressure.memory.limit`.
    pub fn refuse_larger(&self, limit: Option<(usize, u16)>) {
        self.0.script.lock().largest = limit;
    }

    /// From now on a bulk request with a larger body has its connection cut; none if `None`.
    pub fn cut_larger(&self, bytes: Option<usize>) {
        self.0.script.lock().cut_above = bytes;
    }

    /// The next `n_requests` that ask for something in an index get a 503, as after it was made, until
    /// its shards are there.
    pub fn has_no_shard(&self, n_requests: usize) {
        self.0.script.lock().n_without_shard = n_requests;
    }

    /// Every bulk request waits so long before it is carried out.
    pub fn set_delay(&self, delay: Duration) {
        self.0.script.lock().delay = delay;
    }

    /// Cuts all connections; new ones are accepted.
    pub fn drop_connections(&self) {
        let mut connections = self.0.connections.lock();
        connections.cancel();
        *connections = CancellationToken::new();
    }

    /// How many documents it holds.
    pub fn count(&self) -> u64 {
        self.0.store.count("*").unwrap_or(0)
    }

    /// Deletes documents, by index and id, as somebody may do by hand; how many there were.
    ///
    /// # Panics
    /// If the database cannot be written, which is no state to go on testing in.
    pub fn delete(&self, documents: &[(String, String)]) -> u64 {
        let deleted = self.0.store.delete(documents);
        deleted.expect("the database can be written")
    }

    /// All documents, in the order in which they came.
    ///
    /// # Panics
    /// If the database cannot be read, which is no state to go on testing in.
    pub fn documents(&self) -> Vec<StoredDocument> {
        self.0.store.documents().expect("the database can be read")
    }

    /// How many operations were answered with 409 because their id was there already.
    pub fn duplicates_refused(&self) -> u64 {
        self.n_items(409)
    }

    /// How many operations were answered with this status.
    pub fn n_items(&self, status: u16) -> u64 {
        self.0
            .record
            .lock()
            .n_items
            .get(&status)
            .copied()
            .unwrap_or(0)
    }

    /// How many bulk requests came, those refused included.
    pub fn n_bulk_requests(&self) -> u64 {
        self.0.n_bulk_requests.load(Ordering::Relaxed)
    }

    /// How many bytes the bodies of bulk requests had as they came over the wire; those refused
    /// before they were read or for their size do not count.
    pub fn n_bulk_bytes(&self) -> u64 {
        self.0.n_bulk_bytes.load(Ordering::Relaxed)
    }

    /// The last 10,000 requests, oldest first.
    pub fn requests(&self) -> Vec<Request> {
        self.0.record.lock().requests.iter().cloned().collect()
    }

    /// The bodies of all bulk requests that got as far as being read, if they are kept.
    pub fn bodies(&self) -> Vec<Bytes> {
        self.0.record.lock().bodies.clone()
    }
}

#[cfg(test)]
mod tests;
