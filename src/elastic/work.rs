//! The index by which machines share work: its documents, replaced by compare-and-set alone.
//!
//! | answer | means |
//! |---|---|
//! | 409 | there is a newer version, or one at all |
//! | none; 401, 408, 429, 5xx | carried out or not: ask again |
//! | 403 and all else | somebody has to do something |

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use thiserror::Error;
use tokio::time::sleep;
use tracing::{debug, warn};

use super::assets::percent_encoded;
use super::client::{Answer as HttpAnswer, Body, Client, ClientError, ErrorAnswer, Method};
use crate::output::Chain;
use crate::share::worker::{Answer, Request};
use crate::share::{Listing, Piece, PieceState, Share, ShareState, Tally, Version};
use crate::telemetry::Reason;

/// Its name, and that of its template.
pub const INDEX: &str = "teleport-event-indexer-work";

/// What is needed on it; `delete` for what a state does not need any more.
pub const PRIVILEGES: &[&str] = &["read", "index", "delete", "auto_configure"];

/// Pieces that are shown at once: all with a lease, and some of the open ones to choose from.
const SHOWN: usize = 500;

/// Pieces that are made by one request.
const MADE_AT_ONCE: usize = 1_000;

/// The documents of one share.
#[derive(Clone, Debug)]
pub struct Work {
    client: Client,
    share: String,
}

/// Why the index cannot be used.
#[derive(Debug, Error)]
pub enum WorkError {
    /// No answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The template is missing.
    #[error("the index template {index} is not in Elasticsearch at {address}")]
    NoTemplate {
        /// Its name.
        index: &'static str,
        /// Where it is not.
        address: String,
    },
    /// A privilege is missing.
    #[error("Elasticsearch does not let this user {doing} {INDEX}: {error}")]
    Forbidden {
        /// Read or write.
        doing: &'static str,
        /// The server's words.
        error: ErrorAnswer,
    },
    /// Another refusal.
    #[error("Elasticsearch does not {doing} {INDEX}: {error}")]
    Refused {
        /// Read or write.
        doing: &'static str,
        /// The server's words.
        error: ErrorAnswer,
    },
    /// An answer that is none.
    #[error("Elasticsearch gave an answer without the expected content when asked to {0} {INDEX}")]
    Unexpected(&'static str),
}

impl WorkError {
    /// What somebody can do about it.
    pub fn mend(&self) -> Option<&'static str> {
        match self {
            Self::Client(failed) => failed.mend(),
            Self::NoTemplate { .. } => Some("run `teleport-event-indexer install --work` first"),
            Self::Forbidden { .. } => Some(GRANT),
            Self::Refused { error, .. } => error.is_block().then_some(UNBLOCK),
            Self::Unexpected(_) => None,
        }
    }

    /// What to count it as.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Client(_) => Reason::Unreachable,
            Self::Forbidden { .. } => Reason::Denied,
            Self::Refused { error, .. } => match error.status {
                401 => Reason::Credentials,
                429 | 503 => Reason::Overloaded,
                _ => Reason::Other,
            },
            Self::NoTemplate { .. } | Self::Unexpected(_) => Reason::Other,
        }
    }

    /// It may pass by itself.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Client(_) => true,
            Self::Refused { error, .. } => {
                matches!(error.status, 401 | 408 | 429 | 500..=599)
            }
            Self::NoTemplate { .. } | Self::Forbidden { .. } | Self::Unexpected(_) => false,
        }
    }
}

/// What to do where a privilege is missing on one of our own indices.
pub(super) const GRANT: &str = "give `read`, `index`, `delete` and `auto_configure` on it, as `install --work --create-role` does";

/// What to do about a block.
pub(super) const UNBLOCK: &str =
    "set its `index.blocks.…` to null, and free disk space if Elasticsearch has set it";

pub(super) const READ: &str = "read";
pub(super) const WRITE: &str = "write to";

#[derive(Deserialize)]
struct Document<T> {
    #[serde(rename = "_seq_no")]
    seq_no: u64,
    #[serde(rename = "_primary_term")]
    primary_term: u64,
    #[serde(rename = "_source")]
    source: T,
}

/// Refuses to go on where the template of this index is known to be missing.
pub(super) async fn demand_template(client: &Client, index: &'static str) -> Result<(), WorkError> {
    let path = format!("/_index_template/{index}?filter_path=index_templates.name");
    let answer = client.request(Method::Get, &path, Body::Empty).await?;
    if answer.status == 404 {
        let address = client.address().to_owned();
        return Err(WorkError::NoTemplate { index, address });
    }
    // Who may not look learns it from the first write.
    Ok(())
}

/// A document as it is at this moment; `None` if it is not there.
pub(super) async fn get<T: DeserializeOwned>(
    client: &Client,
    id: &str,
) -> Result<Option<(T, Version)>, WorkError> {
    let path = format!("/{INDEX}/_doc/{}", percent_encoded(id));
    let answer = client.request(Method::Get, &path, Body::Empty).await?;
    // A proxy before it says the same of what it cannot reach.
    if answer.status == 404 && answer.is_elasticsearch {
        return Ok(None);
    }
    demand(&answer, READ)?;
    let document: Document<T> = parse(&answer.body, READ)?;
    let version = Version {
        seq_no: document.seq_no,
        primary_term: document.primary_term,
    };
    Ok(Some((document.source, version)))
}

/// Writes a document. `None`: there is a newer version, or one at all.
pub(super) async fn put(
    client: &Client,
    id: &str,
    body: Vec<u8>,
    over: Option<Version>,
) -> Result<Option<Version>, WorkError> {
    let id = percent_encoded(id);
    let path = match over {
        None => format!("/{INDEX}/_create/{id}"),
        Some(Version {
            seq_no,
            primary_term,
        }) => format!("/{INDEX}/_doc/{id}?if_seq_no={seq_no}&if_primary_term={primary_term}"),
    };
    let body = Body::Json(Bytes::from(body));
    let answer = client.request(Method::Put, &path, body).await?;
    if answer.status == 409 {
        return Ok(None);
    }
    demand(&answer, WRITE)?;
    let Written {
        seq_no,
        primary_term,
    } = parse(&answer.body, WRITE)?;
    Ok(Some(Version {
        seq_no,
        primary_term,
    }))
}

/// Carries out as many actions of one kind as there are in a body; each has to come to a status that
/// will do.
pub(super) async fn bulk(
    client: &Client,
    action: &str,
    body: Bytes,
    wanted: usize,
    will_do: impl Fn(u64) -> bool,
) -> Result<(), WorkError> {
    let path = format!("/{INDEX}/_bulk?filter_path=items.{action}.status");
    let answer = client
        .request(Method::Post, &path, Body::Ndjson(body))
        .await?;
    demand(&answer, WRITE)?;
    let answer: Value = parse(&answer.body, WRITE)?;
    let items = answer["items"].as_array().map_or(&[][..], Vec::as_slice);
    let is_done = |item: &Value| item[action]["status"].as_u64().is_some_and(&will_do);
    if items.len() == wanted && items.iter().all(is_done) {
        Ok(())
    } else {
        Err(WorkError::Unexpected(WRITE))
    }
}

#[derive(Deserialize)]
struct Written {
    #[serde(rename = "_seq_no")]
    seq_no: u64,
    #[serde(rename = "_primary_term")]
    primary_term: u64,
}

impl Work {
    /// The documents of the share of this name.
    pub fn new(client: Client, share: &str) -> Self {
        Self {
            client,
            share: share.to_owned(),
        }
    }

    /// Refuses to go on where the template is known to be missing: the index would be made with
    /// guessed mappings.
    ///
    /// # Errors
    /// If it is missing, or there is no answer.
    pub async fn demand_template(&self) -> Result<(), WorkError> {
        demand_template(&self.client, INDEX).await
    }

    /// The document of the share itself, as it is now.
    ///
    /// # Errors
    /// If Elasticsearch does not say.
    pub async fn share(&self) -> Result<Option<(Share, Version)>, WorkError> {
        get(&self.client, &self.share).await
    }

    /// Writes the document of the share; whether it was written, and nobody was faster.
    ///
    /// # Errors
    /// If Elasticsearch does not say.
    pub async fn write_share(
        &self,
        share: &Share,
        over: Option<Version>,
    ) -> Result<bool, WorkError> {
        let body = serde_json::to_vec(share).expect("a share is JSON");
        Ok(put(&self.client, &self.share, body, over).await?.is_some())
    }

    /// Makes pieces; those that are there already stay as they are.
    ///
    /// # Errors
    /// If Elasticsearch does not say that each is there.
    pub async fn create(&self, pieces: &[Piece]) -> Result<(), WorkError> {
        for pieces in pieces.chunks(MADE_AT_ONCE) {
            let mut body = Vec::new();
            for piece in pieces {
                let action = json!({"create": {"_id": piece.id()}});
                for line in [action, json!(piece)] {
                    body.extend(line.to_string().into_bytes());
                    body.push(b'\n');
                }
            }
            let is_there = |status| matches!(status, 200..300 | 409);
            bulk(&self.client, "create", body.into(), pieces.len(), is_there).await?;
        }
        Ok(())
    }

    /// Carries out what a worker asks for. One attempt.
    ///
    /// # Errors
    /// If somebody has to do something. What passes by itself is [`Answer::Unknown`].
    pub async fn carry_out(&self, request: &Request) -> Result<Answer, WorkError> {
        let answer = match request {
            Request::List => self
                .list()
                .await
                .map(|listing| Answer::Listed(Box::new(listing))),
            Request::Look(id) => self.look(id).await,
            Request::Write { id, piece, over } => {
                let body = serde_json::to_vec(piece).expect("a piece is JSON");
                let written = put(&self.client, id, body, *over).await;
                written.map(|written| written.map_or(Answer::Conflict, Answer::Written))
            }
        };
        match answer {
            Err(failed) if failed.is_transient() => {
                warn!(
                    share = self.share,
                    "no word about the share, trying again: {}",
                    Chain(&failed)
                );
                Ok(Answer::Unknown)
            }
            Ok(Answer::Conflict) => {
                debug!(share = self.share, "somebody was faster");
                Ok(Answer::Conflict)
            }
            answer => answer,
        }
    }

    async fn look(&self, id: &str) -> Result<Answer, WorkError> {
        let found: Option<(Piece, _)> = get(&self.client, id).await?;
        Ok(found.map_or(Answer::Missing, |(piece, version)| {
            Answer::Found(Box::new(piece.with_id(id)), version)
        }))
    }

    /// The share's pieces, as a search shows them.
    ///
    /// # Errors
    /// If Elasticsearch does not say.
    pub async fn list(&self) -> Result<Listing, WorkError> {
        let sums = [
            "events",
            "created",
            "safe_form",
            "already_there",
            "dead_letters",
            "gaps",
        ];
        let mut aggregations = json!({
            "states": {"terms": {"field": "state", "size": 10}},
            "worked_ms": {"sum": {"field": "worked_ms"}},
        });
        for name in sums {
            aggregations[name] = json!({"sum": {"field": format!("tally.{name}")}});
        }
        let query = json!({
            "size": SHOWN,
            "seq_no_primary_term": true,
            "query": {"term": {"share": self.share}},
            "post_filter": {"terms": {"state": ["leased", "open"]}},
            // Those with a lease first: all of them are watched.
            "sort": ["state", "from_ms"],
            "aggs": aggregations,
        });
        let path = format!("/{INDEX}/_search?ignore_unavailable=true");
        let body = Body::Json(query.to_string().into());
        let answer = self.client.request(Method::Post, &path, body).await?;
        demand(&answer, READ)?;
        let found: Found = parse(&answer.body, READ)?;
        let Some(aggregations) = found.aggregations else {
            // There is no such index yet.
            return Ok(Listing::default());
        };
        let sum = |name: &str| {
            let value = aggregations.get(name).and_then(|sum| sum["value"].as_f64());
            // A search sums in floating point.
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a count is whole, and saturates"
            )]
            let whole = value.unwrap_or_default() as u64;
            whole
        };
        let buckets = aggregations.get("states");
        let buckets = buckets.and_then(|states| states["buckets"].as_array());
        let of_state = |name: &str| {
            let mut buckets = buckets.into_iter().flatten();
            let bucket = buckets.find(|bucket| bucket["key"] == name);
            bucket
                .and_then(|bucket| bucket["doc_count"].as_u64())
                .unwrap_or(0)
        };
        let (n_done, n_leased, n_open) = (of_state("done"), of_state("leased"), of_state("open"));
        Ok(Listing {
            n_pieces: n_done + n_leased + n_open,
            n_done,
            n_leased,
            cancelled: of_state("cancelled") > 0,
            tally: Tally {
                events: sum("events"),
                created: sum("created"),
                safe_form: sum("safe_form"),
                already_there: sum("already_there"),
                dead_letters: sum("dead_letters"),
                gaps: sum("gaps"),
            },
            worked_ms: sum("worked_ms"),
            pieces: found
                .hits
                .hits
                .into_iter()
                .map(|hit| {
                    let version = Version {
                        seq_no: hit.seq_no,
                        primary_term: hit.primary_term,
                    };
                    let piece = hit.source.with_id(&hit.id);
                    (hit.id, piece, version)
                })
                .collect(),
        })
    }

    /// Ends the share for all: marks it, then takes the leases away.
    ///
    /// # Errors
    /// If Elasticsearch does not say; it may be repeated.
    pub async fn cancel(&self) -> Result<Option<Share>, WorkError> {
        let share = loop {
            let Some((mut share, version)) = self.share().await? else {
                return Ok(None);
            };
            share.state = ShareState::Cancelled;
            if self.write_share(&share, Some(version)).await? {
                break share;
            }
        };
        // Whoever holds a piece learns it from its next renewal, all others from their next look.
        // Until searches show that it is cancelled, somebody may still claim one.
        loop {
            let listing = self.list().await?;
            for (id, mut piece, version) in listing.pieces {
                if piece.claim.take().is_some() {
                    piece.owner = None;
                    piece.state = PieceState::Stopped;
                    let body = serde_json::to_vec(&piece).expect("a piece is JSON");
                    put(&self.client, &id, body, Some(version)).await?;
                }
            }
            if listing.cancelled && listing.n_leased == 0 {
                return Ok(Some(share));
            }
            sleep(Duration::from_secs(1)).await;
        }
    }
}

#[derive(Deserialize)]
struct Found {
    hits: Hits,
    aggregations: Option<HashMap<String, Value>>,
}

#[derive(Deserialize)]
struct Hits {
    hits: Vec<Hit>,
}

#[derive(Deserialize)]
struct Hit {
    #[serde(rename = "_id")]
    id: String,
    #[serde(rename = "_seq_no")]
    seq_no: u64,
    #[serde(rename = "_primary_term")]
    primary_term: u64,
    #[serde(rename = "_source")]
    source: Piece,
}

pub(super) fn demand(answer: &HttpAnswer, doing: &'static str) -> Result<(), WorkError> {
    let error = || ErrorAnswer::read(answer);
    match answer.status {
        200..=299 => Ok(()),
        403 if !error().is_block() => Err(WorkError::Forbidden {
            doing,
            error: error(),
        }),
        _ => Err(WorkError::Refused {
            doing,
            error: error(),
        }),
    }
}

pub(super) fn parse<'a, T: Deserialize<'a>>(
    body: &'a [u8],
    doing: &'static str,
) -> Result<T, WorkError> {
    serde_json::from_slice(body).map_err(|_| WorkError::Unexpected(doing))
}
