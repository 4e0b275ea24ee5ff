//! Looks for the events in Elasticsearch, as anybody would: over HTTP.

use super::*;
use crate::document::Encoder;
use crate::elastic::client::{Body, Client, Method};

/// How many documents are fetched and compared with their events.
const COMPARED: u64 = 1000;

/// Proves that there are as many documents as there must be, and that documents picked evenly from
/// all of them are their events, member by member.
pub(super) async fn prove(config: &Config, log: &Log, expected: u64) -> Result<(), Failure> {
    let elasticsearch = config.elasticsearch.as_ref().expect("it was asked for");
    let client = Client::new(elasticsearch)?;
    let wildcard = elasticsearch.index.wildcard();
    get(&client, Method::Post, &format!("/{wildcard}/_refresh")).await?;
    let counted = get(&client, Method::Get, &format!("/{wildcard}/_count")).await?;
    let count = counted["count"]
        .as_u64()
        .context("the answer to _count has no count")?;
    ensure_that(count == expected, || {
        format!("{count} documents where there must be {expected}")
    })?;

    let mut encoder = Encoder::new(&elasticsearch.index);
    let mut operation = Vec::new();
    let every = usize::try_from(log.n_events.div_ceil(COMPARED).max(1)).unwrap_or(usize::MAX);
    for event in log.values().step_by(every) {
        // Of a recording the last one: it has an id, and a session.
        let recorded = events::recording(&event).and_then(|(_, mut events)| events.pop());
        for event in [Some(event), recorded].into_iter().flatten() {
            operation.clear();
            let encoded = encoder.encode(&events::encode(&event, Id::OfEvent), &mut operation)?;
            let (index, id) = (&encoded.index_name, encoded.id);
            let found = get(&client, Method::Get, &format!("/{index}/_doc/{id}")).await?;
            ensure_that(found["_source"] == event, || {
                format!("the document {id} in {index} is not the event that was emitted")
            })?;
        }
    }
    Ok(())
}

fn ensure_that(holds: bool, otherwise: impl Fn() -> String) -> Result<(), Failure> {
    (|| {
        ensure!(holds, "{}", otherwise());
        Ok(())
    })()
    .map_err(Failure::Failed)
}

async fn get(client: &Client, method: Method, path: &str) -> Result<Value, Failure> {
    let answer = client.request(method, path, Body::Empty).await?;
    ensure_that(answer.status == 200, || {
        format!("{path}: status {}", answer.status)
    })?;
    Ok(serde_json::from_slice(&answer.body)?)
}
