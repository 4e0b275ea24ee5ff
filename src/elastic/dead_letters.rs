//! Dead letters in an index, for a daemon whose state lies in Elasticsearch, too.
//!
//! Each is a document of its own, found by what is told of it; what was refused is not looked into by
//! Elasticsearch, so that it cannot be refused again. One that is large lies in parts, none of
//! them larger than a request that any server takes. The first part is written last: a letter
//! that is there is there as a whole.
//!
//! One that has left a gap in the log is not deleted when it has settled, but marked, so that
//! whoever leads closes the gap, which is part of the state, and then deletes it.

mod reading;
mod settled;
mod written;

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use self::reading::Place;
pub use self::settled::Settled;
use super::client::{Answer, Body, Client, ClientError, ErrorAnswer, Method};
use super::work::{GRANT, UNBLOCK};
use crate::checkpoint::{DeadLetter, DeadLetterSummary, DocumentForm};
use crate::packed;

/// Its name, and that of its template.
pub const INDEX: &str = "teleport-event-indexer-dead-letter";

/// What is needed on it.
pub const PRIVILEGES: &[&str] = &["read", "index", "delete", "auto_configure"];

/// A document up to this size is kept as the text that it is, and one part has no more.
const PART: usize = 512 << 10;

/// Letters that are asked for at once: some hundred KiB of ids.
const ASKED: usize = 2_000;

/// The dead letters of one state.
#[derive(Clone, Debug)]
pub struct DeadLetterIndex {
    client: Client,
    state: String,
}

/// Why the index cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterIndexError {
    /// No answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A refusal.
    #[error("Elasticsearch does not {doing} {INDEX}: {error}")]
    Refused {
        /// Read or write.
        doing: &'static str,
        /// The server's words.
        error: ErrorAnswer,
    },
    /// An answer that is none, or a document that is none of ours.
    #[error("Elasticsearch gave an answer without the expected content when asked to {0} {INDEX}")]
    Unexpected(&'static str),
    /// It holds as much as it may.
    #[error(
        "the dead-letter index is full: {bytes} bytes with the documents that were just refused, \
         {cap_bytes} are allowed; look at it with `dead-letters list`, then retry or drop documents"
    )]
    Full {
        /// What it would have held.
        bytes: u64,
        /// What it may hold.
        cap_bytes: u64,
    },
}

impl DeadLetterIndexError {
    /// What somebody can do about it.
    pub fn mend(&self) -> Option<&'static str> {
        match self {
            Self::Client(failed) => failed.mend(),
            Self::Refused { error, .. } if error.is_block() => Some(UNBLOCK),
            Self::Refused { error, .. } if error.status == 403 => Some(GRANT),
            Self::Full { .. } => {
                Some("find out why they were refused, then raise dead-letter-bytes")
            }
            Self::Refused { .. } | Self::Unexpected(_) => None,
        }
    }
}

const READ: &str = "read";
const WRITE: &str = "write to";

/// The first part.
#[derive(Serialize, Deserialize)]
struct Letter {
    state: String,
    settled: bool,
    document_id: String,
    index_name: String,
    event_type: String,
    time_ms: Option<i64>,
    form: String,
    status: Option<u16>,
    error_type: String,
    reason: String,
    first_seen_ms: i64,
    /// As the cap counts them.
    bytes: u64,
    /// The document as it is, if it is a small text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    document: Option<String>,
    /// Else its first part: gzip, then base64; and how many there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    packed: Option<String>,
    #[serde(default)]
    parts: usize,
}

#[derive(Serialize, Deserialize)]
struct Part {
    packed: String,
}

impl DeadLetterIndex {
    /// The dead letters of the state of this name.
    pub fn new(client: Client, state: &str) -> Self {
        Self {
            client,
            state: state.to_owned(),
        }
    }

    fn id(&self, document_id: &str, index_name: &str) -> String {
        format!("{}/{document_id}/{index_name}", self.state)
    }

    /// Stores letters. One that is there already, by id and index, is replaced, but keeps the time at
    /// which it was first seen. What does not make the store larger is never too much for it.
    ///
    /// # Errors
    /// If they would be more than `cap_bytes`, or Elasticsearch does not say that each is there.
    pub async fn keep(
        &self,
        letters: &[DeadLetter],
        cap_bytes: u64,
    ) -> Result<(), DeadLetterIndexError> {
        let known = self.known(letters).await?;
        let is_new = |letter: &&DeadLetter| {
            !known.contains_key(&self.id(&letter.document_id, &letter.index_name))
        };
        let more: u64 = letters.iter().filter(is_new).map(DeadLetter::bytes).sum();
        let bytes = self.summary().await?.bytes + more;
        if more > 0 && bytes > cap_bytes {
            return Err(DeadLetterIndexError::Full { bytes, cap_bytes });
        }
        let packed: Vec<_> = letters.iter().map(packed_of).collect();
        let mut writer = self.writer();
        for (letter, packed) in letters.iter().zip(&packed) {
            let id = self.id(&letter.document_id, &letter.index_name);
            for (number, packed) in packed.iter().enumerate().skip(1) {
                let packed = packed.clone();
                let part = json!(Part { packed });
                writer.add(&part_id(&id, number), &part).await?;
            }
        }
        // Within one request a first part may be stored and one before it refused.
        writer.send().await?;
        for (letter, packed) in letters.iter().zip(&packed) {
            let id = self.id(&letter.document_id, &letter.index_name);
            let before = known.get(&id).copied();
            let first_seen_ms = before.map_or(letter.first_seen_ms, |before| {
                before.min(letter.first_seen_ms)
            });
            let first = json!(self.first(letter, packed, first_seen_ms));
            writer.add(&id, &first).await?;
        }
        writer.send().await
    }

    /// When those of them that are there were first seen, by id.
    async fn known(
        &self,
        letters: &[DeadLetter],
    ) -> Result<HashMap<String, i64>, DeadLetterIndexError> {
        let mut known = HashMap::new();
        let fields = json!(["first_seen_ms", "settled"]);
        for letters in letters.chunks(ASKED) {
            let ids = letters
                .iter()
                .map(|l| self.id(&l.document_id, &l.index_name));
            let found = self.get(ids, &fields).await?;
            known.extend(found.into_iter().filter_map(|(id, _, letter)| {
                let first_seen_ms = letter["first_seen_ms"].as_i64()?;
                (letter["settled"] == false).then_some((id, first_seen_ms))
            }));
        }
        Ok(known)
    }

    fn first(&self, letter: &DeadLetter, packed: &[String], first_seen_ms: i64) -> Letter {
        let document = match packed {
            [] => Some(String::from_utf8_lossy(&letter.document).into_owned()),
            _ => None,
        };
        Letter {
            state: self.state.clone(),
            settled: false,
            document_id: letter.document_id.clone(),
            index_name: letter.index_name.clone(),
            event_type: letter.event_type.clone(),
            time_ms: letter.time_ms,
            form: letter.form.as_str().to_owned(),
            status: letter.status,
            error_type: letter.error_type.clone(),
            reason: letter.reason.clone(),
            first_seen_ms,
            bytes: letter.bytes(),
            document,
            parts: packed.len(),
            packed: packed.first().cloned(),
        }
    }

    /// How many there are.
    ///
    /// # Errors
    /// If Elasticsearch does not say.
    pub async fn summary(&self) -> Result<DeadLetterSummary, DeadLetterIndexError> {
        let query = json!({
            "size": 0,
            "track_total_hits": true,
            "query": self.letters(false),
            "aggs": {
                "bytes": {"sum": {"field": "bytes"}},
                "error_types": {"terms": {"field": "error_type", "size": 100}},
            },
        });
        // Where two ask the same at a time, Elasticsearch computes it once and keeps it for both; but if
        // the one for whom it does goes away meanwhile, the other's search fails with a 400.
        let path = format!("/{INDEX}/_search?ignore_unavailable=true&request_cache=false");
        let found = self.ask(Method::Post, &path, &query, READ).await?;
        let sums = &found["aggregations"];
        let buckets = sums["error_types"]["buckets"].as_array();
        let by_error_type = buckets.into_iter().flatten().map(|bucket| {
            let name = bucket["key"].as_str().unwrap_or_default().to_owned();
            (name, bucket["doc_count"].as_u64().unwrap_or(0))
        });
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a search sums in floating point; a count is whole, and saturates"
        )]
        let bytes = sums["bytes"]["value"].as_f64().unwrap_or_default() as u64;
        Ok(DeadLetterSummary {
            count: found["hits"]["total"]["value"].as_u64().unwrap_or(0),
            bytes,
            by_error_type: by_error_type.collect(),
        })
    }

    fn letters(&self, settled: bool) -> Value {
        json!({"bool": {"filter": [
            {"term": {"state": self.state}},
            {"term": {"settled": settled}},
        ]}})
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: &Value,
        doing: &'static str,
    ) -> Result<Value, DeadLetterIndexError> {
        let body = Body::Json(body.to_string().into());
        let answer = self.client.request(method, path, body).await?;
        read(&answer, doing)
    }
}

/// A document in parts; none of one that is kept as the text that it is.
fn packed_of(letter: &DeadLetter) -> Vec<String> {
    let is_small = letter.document.len() <= PART;
    let is_text = letter.form == DocumentForm::Json && str::from_utf8(&letter.document).is_ok();
    if is_small && is_text {
        return Vec::new();
    }
    packed::parts(&letter.document, PART)
}

fn part_id(id: &str, number: usize) -> String {
    match number {
        0 => id.to_owned(),
        number => format!("{id}/{number}"),
    }
}

fn read(answer: &Answer, doing: &'static str) -> Result<Value, DeadLetterIndexError> {
    match answer.status {
        200..=299 => {}
        // There is no such index yet.
        404 if doing == READ => return Ok(Value::Null),
        _ => {
            let error = ErrorAnswer::read(answer);
            return Err(DeadLetterIndexError::Refused { doing, error });
        }
    }
    serde_json::from_slice(&answer.body).map_err(|_| DeadLetterIndexError::Unexpected(doing))
}
