//! One bulk request and its answer, document by document.
//!
//! Whether a document is stored is decided by the status and error type of its own item, never by
//! the request's status alone and never by searching the body's text. An answer is believed only
//! if it has exactly one item for each operation. Whatever is not understood is held, not dropped:
//!
//! | seen | means |
//! |---|---|
//! | 2xx on the item | created |
//! | 409 on the item | was there already: success |
//! | 429, 408, 5xx; no answer; an answer cut off or with the wrong number of items | transient |
//! | 429 `cluster_block_exception` on the item (disk full) | blocked: may last for days |
//! | 400 on the item, but for the operational kinds below | refused: this document |
//! | 400 `index_closed_exception`, `validation_exception` (shard limit), `invalid_index_name…` | blocked |
//! | 401, 403, 404 and all else | blocked |
//! | 413, or a 400 of Elasticsearch's own, for the whole request | too large or poisoned: halve it |

#[cfg(any(test, fuzzing))]
pub mod fuzzing;

use std::borrow::Cow;
use std::fmt;
use std::io::Write;
use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use tokio::sync::Semaphore;

use crate::elastic::client::{Answer, Body, CHECK_CREDENTIALS, Client, ErrorAnswer, Method};
use crate::output::Chain;
use crate::pipeline::Sink;
use crate::pipeline::delivery::{Attempt, Fault, Outcome, Refusal};
use crate::pipeline::quota::{self, Limiter};
use crate::telemetry::Reason;

/// All that is read of an answer; the rest is not even sent.
const PATH: &str = "/_bulk?filter_path=items.*.status,items.*.error.type,items.*.error.reason";

/// Sends batches to Elasticsearch.
#[derive(Debug)]
pub struct Bulk {
    client: Client,
    gzip: bool,
    bytes_per_second: Option<Arc<Limiter>>,
    /// As many as there may be requests at once, of all that share it.
    places: Option<Arc<Semaphore>>,
}

impl Bulk {
    /// A sink that sends through `client`, gzipped or not, at most so many bytes a second.
    pub fn new(client: Client, gzip: bool, bytes_per_second: Option<Arc<Limiter>>) -> Self {
        Self {
            client,
            gzip,
            bytes_per_second,
            places: None,
        }
    }

    /// The same as one of several, which take turns for these places.
    pub fn one_of(self, places: Arc<Semaphore>) -> Self {
        let places = Some(places);
        Self { places, ..self }
    }
}

impl Sink for Bulk {
    async fn send(&self, body: Bytes, operations: usize) -> Attempt {
        if let Some(limiter) = &self.bytes_per_second {
            quota::pass(limiter, body.len()).await;
        }
        let _place = match &self.places {
            Some(places) => Some(places.acquire().await.expect("nobody closes it")),
            None => None,
        };
        let body = if self.gzip {
            // Milliseconds: too long for the thread that all connections share.
            let gzipped = tokio::task::spawn_blocking(move || gzip(&body));
            Body::GzippedNdjson(gzipped.await.expect("gzip does not panic"))
        } else {
            Body::Ndjson(body)
        };
        match self.client.request(Method::Post, PATH, body).await {
            Ok(answer) => read(&answer, operations),
            Err(failed) => Attempt::Transient(Fault {
                what: Chain(&failed).to_string(),
                mend: failed.mend().unwrap_or_default().to_owned(),
                reason: Reason::Unreachable,
                ..Fault::default()
            }),
        }
    }
}

fn gzip(body: &Bytes) -> Bytes {
    // Level 1 makes a fifth of them for 1.7 s of processor a GB; level 2 a seventh for 2.7 s, level 6
    // a ninth for 5 s: `cargo bench --bench pipeline -- gzip`.
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 8), Compression::fast());
    encoder
        .write_all(body)
        .and_then(|()| encoder.finish())
        .expect("writing into memory does not fail")
        .into()
}

#[derive(Deserialize)]
struct BulkAnswer<'a> {
    #[serde(borrow)]
    items: Vec<Object<Item<'a>>>,
}

/// An item has one member, named after the action. We send `create` alone.
#[derive(Deserialize)]
struct Item<'a> {
    #[serde(borrow)]
    create: Object<ItemAnswer<'a>>,
}

#[derive(Deserialize)]
struct ItemAnswer<'a> {
    status: u16,
    #[serde(borrow)]
    error: Option<Object<ItemError<'a>>>,
}

#[derive(Deserialize)]
struct ItemError<'a> {
    #[serde(borrow, default, rename = "type")]
    error_type: Cow<'a, str>,
    #[serde(borrow, default)]
    reason: Option<Cow<'a, str>>,
}

/// A JSON object. serde alone takes a list for a struct, too, by the order of its members.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(members))
            }
        }

        let members = deserializer.deserialize_map(Members(PhantomData))?;
        Ok(Self(members))
    }
}

/// Whether this is, byte for byte, the answer that all of so many operations have created their
/// documents: nearly every answer is, and then nothing of it need be taken apart.
fn all_created(body: &[u8], operations: usize) -> bool {
    const BEGIN: &[u8] = b"{\"items\":[";
    const CREATED: &[u8] = b"{\"create\":{\"status\":201}},";
    const END: &[u8] = b"]}";

    let Some(items) = body.strip_prefix(BEGIN).and_then(|b| b.strip_suffix(END)) else {
        return false;
    };
    // The last one has no comma.
    let mut chunks = items.chunks_exact(CREATED.len());
    items.len() + 1 == operations * CREATED.len()
        && chunks.all(|item| item == CREATED)
        && chunks.remainder() == &CREATED[..CREATED.len() - 1]
}

/// Reads the answer to a bulk request of `operations` operations.
fn read(answer: &Answer, operations: usize) -> Attempt {
    let address = &answer.host;
    let error = || ErrorAnswer::read(answer);
    let fault = |what: String, mend: &str| Fault {
        what,
        mend: mend.into(),
        ..Fault::default()
    };
    match answer.status {
        200..=299 if all_created(&answer.body, operations) => Attempt::AllCreated,
        200..=299 => {
            let items = match serde_json::from_slice::<Object<BulkAnswer<'_>>>(&answer.body) {
                Ok(Object(bulk)) if bulk.items.len() == operations => bulk.items,
                Ok(Object(bulk)) => {
                    let got = bulk.items.len();
                    let what =
                        format!("{address} answered {got} items for {operations} operations");
                    return Attempt::Transient(fault(what, ""));
                }
                Err(_) if !answer.is_elasticsearch => {
                    let what = format!("what answers at {address} is not Elasticsearch");
                    return Attempt::Blocked(fault(what, "check `hosts` and any proxy in between"));
                }
                Err(broken) => {
                    let what = format!("{address} gave an answer that cannot be read: {broken}");
                    return Attempt::Transient(fault(what, ""));
                }
            };
            let outcomes = items.into_iter().map(|Object(item)| outcome(item.create.0));
            Attempt::Items(outcomes.collect())
        }
        // The body of a 413 is empty.
        413 => Attempt::TooLarge(Refusal {
            status: 413,
            error_type: "request_entity_too_large".into(),
            reason:
                "the document alone is larger than what http.max_content_length, or a proxy on \
                     the way, lets through"
                    .into(),
        }),
        // One poisoned line spoils a whole request: halving finds it. Only if Elasticsearch
        // itself says so; a proxy's 400 says nothing about any document.
        400 if answer.is_elasticsearch && !error().error_type.is_empty() => {
            let ErrorAnswer {
                error_type, reason, ..
            } = error();
            Attempt::TooLarge(Refusal {
                status: 400,
                error_type,
                reason,
            })
        }
        status @ (429 | 408 | 500..=599) => Attempt::Transient(Fault {
            overloaded: status == 429 || status == 503,
            reason: match status {
                429 | 503 => Reason::Overloaded,
                _ => Reason::Other,
            },
            retry_after: answer.retry_after,
            ..fault(format!("{address} answered {}", error()), "")
        }),
        // A node that has just started refuses good credentials until it has loaded its own
        // security index.
        401 => Attempt::Blocked(Fault {
            may_pass: true,
            reason: Reason::Credentials,
            ..fault(
                format!("{address} refuses the credentials: {}", error()),
                CHECK_CREDENTIALS,
            )
        }),
        403 => Attempt::Blocked(Fault {
            reason: Reason::Denied,
            ..fault(
                format!("{address} refuses the request: {}", error()),
                "give the writer's role `create_doc` and `auto_configure` on the audit indices",
            )
        }),
        _ => Attempt::Blocked(fault(
            format!("{address} answered {}", error()),
            "check `hosts` and any proxy in between",
        )),
    }
}

/// Decides about one document. The error's reason may quote it, so it goes into the dead letter;
/// into the log go only reasons of kinds that speak of index and privileges.
fn outcome(item: ItemAnswer<'_>) -> Outcome {
    let status = item.status;
    let (error_type, reason) = match item.error {
        Some(Object(error)) => (error.error_type, error.reason.unwrap_or_default()),
        None => (Cow::default(), Cow::default()),
    };
    let fault = |kind, mend: &str| Fault {
        what: format!("status {status}, {error_type}: {reason}"),
        mend: mend.into(),
        reason: kind,
        ..Fault::default()
    };
    match (status, &*error_type) {
        (200..=299, _) => Outcome::Created,
        (409, _) => Outcome::AlreadyThere,
        (429, "cluster_block_exception") => Outcome::Blocked(fault(
            Reason::DiskFull,
            "Elasticsearch's disk is full: free space, then the index opens by itself",
        )),
        (429 | 408 | 500..=599, _) => Outcome::Transient(Fault {
            what: format!("status {status}, {error_type}"),
            overloaded: status == 429,
            reason: match status {
                429 => Reason::Overloaded,
                _ => Reason::Other,
            },
            ..Fault::default()
        }),
        (400, "index_closed_exception") => {
            Outcome::Blocked(fault(Reason::Closed, "open the index"))
        }
        (400, "validation_exception") => Outcome::Blocked(fault(
            Reason::ShardLimit,
            "delete old indices, add nodes or raise cluster.max_shards_per_node",
        )),
        (400, "invalid_index_name_exception") => {
            Outcome::Blocked(fault(Reason::Other, "correct `index`"))
        }
        (400, _) => Outcome::Refused(Refusal {
            status,
            error_type: error_type.into_owned(),
            reason: reason.into_owned(),
        }),
        (403, "cluster_block_exception") => Outcome::Blocked(fault(
            Reason::ReadOnly,
            "the index is read-only: lift its block",
        )),
        (401 | 403, _) => Outcome::Blocked(fault(
            Reason::Denied,
            "give the writer's role `create_doc` and `auto_configure` on the audit indices",
        )),
        (404, _) => Outcome::Blocked(fault(
            Reason::Other,
            "the index cannot be created by itself: check action.auto_create_index",
        )),
        _ => Outcome::Blocked(fault(Reason::Other, "see Elasticsearch's own log")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(status: u16, error_type: &str) -> Outcome {
        let error = (!error_type.is_empty()).then(|| {
            Object(ItemError {
                error_type: error_type.into(),
                reason: Some("why".into()),
            })
        });
        outcome(ItemAnswer { status, error })
    }

    fn kind(outcome: &Outcome) -> &'static str {
        match outcome {
            Outcome::Created => "created",
            Outcome::AlreadyThere => "already there",
            Outcome::Transient(_) => "transient",
            Outcome::Refused(_) => "refused",
            Outcome::Blocked(_) => "blocked",
        }
    }

    /// Statuses and error types as real servers gave them.
    #[test]
    fn every_known_item_has_its_outcome() {
        for (status, error_type, expected) in [
            (201, "", "created"),
            (409, "version_conflict_engine_exception", "already there"),
            (429, "es_rejected_execution_exception", "transient"),
            (429, "circuit_breaking_exception", "transient"),
            (429, "cluster_block_exception", "blocked"),
            (503, "unavailable_shards_exception", "transient"),
            (503, "process_cluster_event_timeout_exception", "transient"),
            (500, "", "transient"),
            (403, "cluster_block_exception", "blocked"),
            (403, "security_exception", "blocked"),
            (401, "security_exception", "blocked"),
            (404, "index_not_found_exception", "blocked"),
            (400, "index_closed_exception", "blocked"),
            (400, "validation_exception", "blocked"),
            (400, "document_parsing_exception", "refused"),
            (400, "mapper_parsing_exception", "refused"),
            (400, "illegal_argument_exception", "refused"),
            (400, "strict_dynamic_mapping_exception", "refused"),
            (418, "teapot", "blocked"),
        ] {
            assert_eq!(
                kind(&item(status, error_type)),
                expected,
                "{status} {error_type}"
            );
        }
    }

    fn whole(status: u16, body: &'static str, is_elasticsearch: bool) -> Attempt {
        let body = Bytes::from_static(body.as_bytes());
        read(
            &Answer {
                host: "http://es/".to_owned(),
                status,
                body,
                is_elasticsearch,
                retry_after: None,
            },
            2,
        )
    }

    #[test]
    fn an_answer_is_believed_only_if_it_is_whole() {
        let both = r#"{"items":[{"create":{"status":201}},{"create":{"status":409,"error":
            {"type":"version_conflict_engine_exception","reason":"[x]: \"there\""}}}]}"#;
        match whole(200, both, true) {
            Attempt::Items(items) => {
                assert_eq!(items, [Outcome::Created, Outcome::AlreadyThere]);
            }
            other => panic!("{other:?}"),
        }
        let created = r#"{"items":[{"create":{"status":201}},{"create":{"status":201}}]}"#;
        assert!(matches!(whole(200, created, true), Attempt::AllCreated));
        // The same said with other bytes.
        let spaced = r#"{"items": [{"create":{"status":201}},{"create":{"status":201}}]}"#;
        match whole(200, spaced, true) {
            Attempt::Items(items) => assert_eq!(items, [Outcome::Created, Outcome::Created]),
            other => panic!("{other:?}"),
        }
        let one = r#"{"items":[{"create":{"status":201}}]}"#;
        let cut = r#"{"items":[{"create":{"status":201}},{"cre"#;
        // Lists in place of objects, which serde would take.
        let lists = r#"[[{"create":[201,null]},{"create":[201,null]}]]"#;
        let list = r#"{"items":[{"create":[201,null]},{"create":[201,null]}]}"#;
        for body in [one, cut, lists, list, "{}", ""] {
            assert!(
                matches!(whole(200, body, true), Attempt::Transient(_)),
                "{body}"
            );
        }
        assert!(matches!(
            whole(200, "<html>hello</html>", false),
            Attempt::Blocked(_)
        ));
    }

    #[test]
    fn whole_requests_are_judged_by_who_speaks() {
        let error = r#"{"error":{"type":"illegal_argument_exception","reason":"id too long"}}"#;
        assert!(matches!(whole(400, error, true), Attempt::TooLarge(_)));
        assert!(matches!(whole(400, "<html>", false), Attempt::Blocked(_)));
        assert!(matches!(whole(413, "", false), Attempt::TooLarge(_)));
        assert!(matches!(
            whole(429, "", true),
            Attempt::Transient(Fault {
                overloaded: true,
                ..
            })
        ));
        assert!(matches!(whole(502, "<html>", false), Attempt::Transient(_)));
        for status in [401, 403, 404, 301] {
            assert!(
                matches!(whole(status, error, true), Attempt::Blocked(_)),
                "{status}"
            );
        }
    }

    #[test]
    fn gzip_reads_back() {
        use std::io::Read;
        let body = Bytes::from("line\n".repeat(1000));
        let mut back = String::new();
        flate2::read::GzDecoder::new(gzip(&body).as_ref())
            .read_to_string(&mut back)
            .unwrap();
        assert_eq!(back, body);
    }
}
