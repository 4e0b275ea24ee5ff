//! The sink of a comparison: looks for each document in Elasticsearch instead of sending it, and
//! sends only what is missing, if it is to send at all.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::checkpoint::tally::{Sighting, Tally, TallyError};
use crate::document::DocumentId;
use crate::elastic::bulk::Bulk;
use crate::elastic::lookup::{Lookup, LookupError};
use crate::pipeline::Sink;
use crate::pipeline::delivery::{Attempt, Outcome};

/// What our own documents have as their `event` begins with this.
const OWN: &str = "event_indexer.";

/// Compares batch by batch. To the pipeline, what is there and what need not be sent is "already
/// there".
pub(super) struct Comparison {
    /// Asks what there is.
    pub lookup: Arc<Lookup>,
    /// Where it is counted.
    pub tally: Arc<Tally>,
    /// Where what is missing goes; `None`: nowhere.
    pub refill: Option<Bulk>,
    /// Why nothing can be compared any more.
    pub end: Arc<Mutex<Option<anyhow::Error>>>,
    /// Cancelled then. What had been asked for is never answered: whoever waits must give up.
    pub given_up: CancellationToken,
}

/// What is known of the operations of one batch, in their order.
struct Asked {
    body: Bytes,
    operations: Vec<Operation>,
}

struct Operation {
    /// Its two lines.
    lines: Range<usize>,
    index_name: String,
    id: DocumentId,
    event_type: String,
}

impl Operation {
    fn is_own(&self) -> bool {
        self.event_type.starts_with(OWN)
    }
}

#[derive(Deserialize)]
struct Action<'a> {
    #[serde(borrow)]
    create: Target<'a>,
}

#[derive(Deserialize)]
struct Target<'a> {
    #[serde(borrow, rename = "_index")]
    index: Cow<'a, str>,
    #[serde(borrow, rename = "_id")]
    id: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    event: Cow<'a, str>,
}

impl Asked {
    /// Takes a request's body apart, which our own encoder has made.
    fn read(body: Bytes) -> Self {
        let mut operations = Vec::new();
        let mut start = 0;
        let mut ends = memchr::memchr_iter(b'\n', &body).map(|end| end + 1);
        while let (Some(source), Some(end)) = (ends.next(), ends.next()) {
            let action: Action<'_> = serde_json::from_slice(&body[start..source])
                .expect("the encoder writes an action that creates");
            // An event whose type is no text has none.
            let head = serde_json::from_slice::<Head<'_>>(&body[source..end]);
            operations.push(Operation {
                lines: start..end,
                index_name: action.create.index.into_owned(),
                id: action.create.id.parse().expect("the encoder gives ids"),
                event_type: head.map_or_else(|_| String::new(), |head| head.event.into_owned()),
            });
            start = end;
        }
        drop(ends);
        Self { body, operations }
    }

    /// Whether each operation's document is there; our own count as missing without being asked
    /// for.
    async fn look_up(&self, lookup: &Lookup) -> Result<Vec<bool>, LookupError> {
        let mut by_index: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (place, operation) in self.operations.iter().enumerate() {
            if !operation.is_own() {
                let places = by_index.entry(&operation.index_name).or_default();
                places.push(place);
            }
        }
        let mut is_found = vec![false; self.operations.len()];
        for (index_name, places) in by_index {
            let ids: Vec<&str> = places
                .iter()
                .map(|&place| self.operations[place].id.as_str())
                .collect();
            let found = lookup.found(index_name, &ids).await?;
            for (place, found) in places.into_iter().zip(found) {
                is_found[place] = found;
            }
        }
        Ok(is_found)
    }

    fn record(&self, tally: &Tally, is_found: &[bool]) -> Result<(), TallyError> {
        let operations = self.operations.iter().zip(is_found);
        let mut sightings: Vec<_> = operations
            .filter(|(operation, _)| !operation.is_own())
            .map(|(operation, &is_found)| Sighting {
                id: operation.id,
                index_name: &operation.index_name,
                event_type: &operation.event_type,
                is_found,
            })
            .collect();
        tally.record(&mut sightings)
    }
}

impl Comparison {
    async fn give_up(&self, why: anyhow::Error) -> Attempt {
        {
            let mut first = self.end.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(why);
        }
        self.given_up.cancel();
        std::future::pending().await
    }
}

impl Sink for Comparison {
    async fn send(&self, body: Bytes, operations: usize) -> Attempt {
        // Milliseconds: too long for the thread that all connections share.
        let asked = tokio::task::spawn_blocking(move || Asked::read(body));
        let asked = asked.await.expect("our own lines can be read");
        let is_found = match asked.look_up(&self.lookup).await {
            Ok(is_found) => is_found,
            Err(LookupError::Transient(fault)) => return Attempt::Transient(fault),
            Err(denied @ LookupError::Denied(_)) => return self.give_up(denied.into()).await,
        };
        let tally = self.tally.clone();
        let recorded = tokio::task::spawn_blocking(move || {
            let recorded = asked.record(&tally, &is_found);
            recorded.map(|()| (asked, is_found))
        });
        let (asked, is_found) = match recorded.await.expect("counting does not panic") {
            Ok(back) => back,
            Err(failed) => return self.give_up(failed.into()).await,
        };
        let mut outcomes: Vec<Outcome> = std::iter::repeat_with(|| Outcome::AlreadyThere)
            .take(operations)
            .collect();
        let Some(bulk) = &self.refill else {
            return Attempt::Items(outcomes);
        };
        let places = (0..operations).filter(|&place| !is_found[place]);
        let missing: Vec<usize> = places.collect();
        if missing.is_empty() {
            return Attempt::Items(outcomes);
        }
        let mut lines = Vec::new();
        for &place in &missing {
            lines.extend_from_slice(&asked.body[asked.operations[place].lines.clone()]);
        }
        match bulk.send(lines.into(), missing.len()).await {
            Attempt::AllCreated => {
                for place in missing {
                    outcomes[place] = Outcome::Created;
                }
            }
            Attempt::Items(items) => {
                for (place, item) in missing.into_iter().zip(items) {
                    outcomes[place] = item;
                }
            }
            // Of the whole request, and so of this one too: it comes again, or in halves.
            other => return other,
        }
        Attempt::Items(outcomes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_taken_apart_as_it_was_made() {
        let id = DocumentId::of_own(1, &[b"a"]);
        let action = format!("{{\"create\":{{\"_index\":\"i-%\",\"_id\":\"{id}\"}}}}\n");
        let documents = [
            r#"{"a":{"event":"inner"},"event":"user.login"}"#,
            r#"{"event":7}"#,
            r#"{"event":"event_indexer.gap"}"#,
        ];
        let body: String = documents.map(|d| format!("{action}{d}\n")).concat();
        let asked = Asked::read(body.clone().into());
        let types = asked.operations.iter().map(|o| o.event_type.as_str());
        assert_eq!(
            types.collect::<Vec<_>>(),
            ["user.login", "", "event_indexer.gap"]
        );
        let own = asked.operations.iter().map(Operation::is_own);
        assert_eq!(own.collect::<Vec<_>>(), [false, false, true]);
        let lines = asked.operations.iter().map(|o| o.lines.clone());
        let lines: Vec<u8> = lines
            .flat_map(|lines| body.as_bytes()[lines].to_vec())
            .collect();
        assert_eq!(lines, body.as_bytes());
        for Operation {
            index_name,
            id: read,
            ..
        } in &asked.operations
        {
            assert_eq!((index_name.as_str(), read), ("i-%", &id));
        }
    }
}
