//! What the stand-in is told to do and what it has seen.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::store::Store;
use super::{Credentials, ElasticsearchOptions};
use crate::demo::lock::Lock;

/// The answer to a whole bulk request.
#[derive(Clone, Debug)]
pub enum Answer {
    /// This status and body; nothing is stored.
    Status {
        /// The HTTP status.
        status: u16,
        /// The body, JSON or not.
        body: String,
        /// The header `Retry-After` in seconds.
        retry_after: Option<u32>,
    },
    /// None at all, for as long as the client waits; nothing is stored.
    Hang,
    /// The connection is cut; nothing is stored.
    Drop,
    /// Everything is stored, and then the connection is cut before the answer.
    StoreAndDrop,
    /// As if nothing was planned, for what is planned behind it.
    Ordinary,
}

/// An operation that is about to be carried out.
#[derive(Clone, Copy, Debug)]
pub struct Operation<'a> {
    /// The name of the index.
    pub index: &'a str,
    /// The document's id.
    pub id: &'a str,
    /// The document as it was sent, one line of JSON.
    pub source: &'a [u8],
}

impl Operation<'_> {
    /// Whether the document's JSON holds these bytes anywhere.
    pub fn contains(&self, text: &str) -> bool {
        memchr::memmem::find(self.source, text.as_bytes()).is_some()
    }
}

/// Why one operation is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The item's status.
    pub status: u16,
    /// The item's `error.type`.
    pub error_type: String,
    /// The item's `error.reason`.
    pub reason: String,
}

impl Refusal {
    /// Any refusal.
    pub fn new(status: u16, error_type: &str, reason: &str) -> Self {
        Self {
            status,
            error_type: error_type.to_owned(),
            reason: reason.to_owned(),
        }
    }

    /// 400: the document does not fit the mapping.
    pub fn mapping_failure() -> Self {
        let reason = "[1:2] failed to parse field [x] of type [long] in document";
        Self::new(400, "document_parsing_exception", reason)
    }

    /// 429: the write queue is full.
    pub fn rejected_execution() -> Self {
        let reason = "rejected execution of primary operation";
        Self::new(429, "es_rejected_execution_exception", reason)
    }

    /// 403: the index takes no writes, as ILM leaves it.
    pub fn write_block(index: &str) -> Self {
        let reason = format!("index [{index}] blocked by: [FORBIDDEN/8/index write (api)];");
        Self::new(403, "cluster_block_exception", &reason)
    }

    /// 429: the disk is full.
    pub fn flood_stage(index: &str) -> Self {
        let reason = format!(
            "index [{index}] blocked by: [TOO_MANY_REQUESTS/12/disk usage exceeded flood-stage \
             watermark, index has read-only-allow-delete block];"
        );
        Self::new(429, "cluster_block_exception", &reason)
    }

    /// 400: the index is closed.
    pub fn closed_index() -> Self {
        Self::new(400, "index_closed_exception", "closed")
    }
}

/// A request as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `POST`, …
    pub method: String,
    /// The path, still encoded.
    pub path: String,
    /// What follows the question mark, still encoded; empty if nothing.
    pub query: String,
}

pub(super) type Rule = Arc<dyn Fn(&Operation<'_>) -> Option<Refusal> + Send + Sync>;

#[derive(Default)]
pub(super) struct Script {
    pub(super) credentials: Option<Credentials>,
    pub(super) answers: VecDeque<Answer>,
    pub(super) rules: Vec<Rule>,
    pub(super) delay: Duration,
    /// The largest body of a bulk request, and the status that larger ones get.
    pub(super) largest: Option<(usize, u16)>,
    /// The connection of a larger one is cut, as by a proxy that says no more than that.
    pub(super) cut_above: Option<usize>,
    /// So many requests other than bulk requests find no shard.
    pub(super) n_without_shard: usize,
}

#[derive(Default)]
pub(super) struct Record {
    pub(super) n_items: HashMap<u16, u64>,
    pub(super) requests: VecDeque<Request>,
    pub(super) bodies: Vec<Bytes>,
}

// Enough for any test; a demo that runs for days must not grow.
const MOST_REQUESTS: usize = 10_000;

/// What all connections of one stand-in share.
pub(super) struct Shared {
    pub(super) options: ElasticsearchOptions,
    pub(super) store: Store,
    pub(super) script: Lock<Script>,
    pub(super) record: Lock<Record>,
    pub(super) n_bulk_requests: AtomicU64,
    pub(super) n_bulk_bytes: AtomicU64,
    /// The parent of every connection's token.
    pub(super) connections: Lock<CancellationToken>,
}

impl Shared {
    pub(super) fn new(options: ElasticsearchOptions, store: Store) -> Self {
        let script = Script {
            credentials: options.credentials.clone(),
            ..Script::default()
        };
        Self {
            options,
            store,
            script: Lock::new(script),
            record: Lock::default(),
            n_bulk_requests: AtomicU64::new(0),
            n_bulk_bytes: AtomicU64::new(0),
            connections: Lock::default(),
        }
    }

    pub(super) fn note(&self, request: Request) {
        let mut record = self.record.lock();
        if record.requests.len() == MOST_REQUESTS {
            record.requests.pop_front();
        }
        record.requests.push_back(request);
    }

    pub(super) fn note_items(&self, statuses: impl IntoIterator<Item = (u16, u64)>) {
        let mut record = self.record.lock();
        for (status, count) in statuses {
            *record.n_items.entry(status).or_default() += count;
        }
    }

    /// Whether this request finds no shard.
    pub(super) fn is_without_shard(&self) -> bool {
        let left = &mut self.script.lock().n_without_shard;
        let is_one = *left > 0;
        *left = left.saturating_sub(1);
        is_one
    }
}
