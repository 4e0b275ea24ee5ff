//! What the stand-in is told to do and what it has seen.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::AuthOptions;
use super::log::Log;
use super::recordings::Recordings;
use crate::demo::events::Random;
use crate::demo::lock::Lock;
use crate::event::Timestamp;

/// A call of the stand-in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// `proto.AuthService/Ping`
    Ping,
    /// `AuditLogService/GetUnstructuredEvents`
    Search,
    /// `AuditLogService/GetEventExportChunks`
    ListChunks,
    /// `AuditLogService/ExportUnstructuredEvents`
    ReadChunk,
    /// `AuditLogService/StreamUnstructuredSessionEvents`
    ReadRecording,
    /// `proto.AuthService/UpsertLock`
    Lock,
}

/// What is wrong with the keys of searches. All of this has happened to exporters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyFault {
    /// Every call that brings a key fails with this.
    Refused(Code),
    /// Whoever brings a key gets the first page again, and with it the same key.
    Ignored,
    /// No key is found any more: whoever brings one gets an empty page that ends the range.
    Forgotten,
    /// Between any two pages comes an empty one with a key that goes on.
    EmptyPages,
}

/// What a server does about an event that it cannot send. Both have happened to exporters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// A search's page ends before it, and its last key is empty as at the range's end.
    Hidden,
    /// The call fails that would have to send it.
    Refused(Code),
}

/// What a server does about searches now and then, in no order. Both have happened to exporters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsteady {
    /// The call fails.
    Fails(Code),
    /// The answer is an empty page, with an empty key as at the range's end.
    Empty,
}

/// A request as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// For the cluster's name and version.
    Ping,
    /// For a page of a time range.
    Search {
        /// The range's start, inclusive.
        from: Option<Timestamp>,
        /// The range's end, inclusive.
        to: Option<Timestamp>,
        /// The event types; empty for all.
        types: Vec<String>,
        /// The most events wanted, as sent.
        limit: i32,
        /// Where to go on; empty for the start.
        start_key: String,
        /// Oldest first.
        ascending: bool,
    },
    /// For the chunks of a day.
    ListChunks {
        /// The day, as sent.
        date: Option<Timestamp>,
    },
    /// For the events of a chunk.
    ReadChunk {
        /// The day, as sent.
        date: Option<Timestamp>,
        /// The chunk's id.
        chunk: String,
        /// Where to go on; empty for the start.
        cursor: String,
    },
    /// For the events of a recording.
    ReadRecording {
        /// The session's id.
        session: String,
        /// The lowest index that is wanted.
        start_index: i32,
    },
    /// To lock a user.
    Lock {
        /// The lock's name.
        name: String,
        /// Whom it locks.
        user: String,
        /// What that user is told.
        message: String,
        /// When it ends.
        expires: Option<Timestamp>,
    },
}

pub(super) struct Script {
    pub(super) export: bool,
    pub(super) delay: Duration,
    pub(super) unreadable: Option<(usize, Unreadable)>,
    pub(super) key_fault: Option<KeyFault>,
    pub(super) unsteady: Option<(Random, u64, Unsteady)>,
    pub(super) failures: HashMap<Method, VecDeque<Code>>,
    pub(super) breaks: VecDeque<(usize, Code)>,
    /// Reading a recording makes an audit event, as Teleport's does.
    pub(super) audits_recordings: bool,
}

#[derive(Default)]
pub(super) struct Record {
    pub(super) n_calls: HashMap<Method, u64>,
    pub(super) requests: VecDeque<Request>,
}

// Enough for any test; a demo that runs for days must not grow.
const MOST_REQUESTS: usize = 10_000;

/// What all connections of one stand-in share.
pub(super) struct Shared {
    pub(super) cluster: String,
    pub(super) options: AuthOptions,
    pub(super) log: Lock<Log>,
    pub(super) recordings: Lock<Recordings>,
    pub(super) script: Lock<Script>,
    pub(super) record: Lock<Record>,
    /// By method.
    pub(super) n_handed_out: [AtomicU64; 6],
    pub(super) n_connections: AtomicU64,
    pub(super) n_failed_handshakes: AtomicU64,
    /// The parent of every connection's token.
    pub(super) connections: Lock<CancellationToken>,
}

impl Shared {
    pub(super) fn new(cluster: &str, options: AuthOptions) -> Self {
        Self {
            cluster: cluster.to_owned(),
            script: Lock::new(Script {
                export: options.export,
                delay: Duration::ZERO,
                unreadable: None,
                key_fault: None,
                unsteady: None,
                failures: HashMap::new(),
                breaks: VecDeque::new(),
                audits_recordings: false,
            }),
            log: Lock::new(Log::new(options.whole_seconds)),
            recordings: Lock::default(),
            options,
            record: Lock::default(),
            n_handed_out: Default::default(),
            n_connections: AtomicU64::new(0),
            n_failed_handshakes: AtomicU64::new(0),
            connections: Lock::default(),
        }
    }

    pub(super) fn note(&self, method: Method, request: Request) {
        let mut record = self.record.lock();
        *record.n_calls.entry(method).or_default() += 1;
        if record.requests.len() == MOST_REQUESTS {
            record.requests.pop_front();
        }
        record.requests.push_back(request);
    }
}
