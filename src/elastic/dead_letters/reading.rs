//! Reading many of them by few requests.

use std::mem;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    ASKED, DeadLetterIndex, DeadLetterIndexError, INDEX, Letter, PART, Part, READ, part_id, read,
};
use crate::checkpoint::{DeadLetter, DocumentForm};
use crate::elastic::assets::percent_encoded;
use crate::elastic::client::{Body, ErrorAnswer, Method};
use crate::packed;
use crate::share::Version;

/// A message of Teleport's has 64 MiB at most.
const LARGEST: usize = 1 << 30;

/// Bytes of the letters of one page, but for the later parts of large ones.
const PAGE: u64 = 16 << 20;

/// Where a page of letters ends.
#[derive(Clone, Debug)]
pub struct Place(Value);

impl DeadLetterIndex {
    /// Letters from a place on, in the order in which they came, and where the next page begins. What
    /// was written in the last second may be missing.
    ///
    /// # Errors
    /// If Elasticsearch does not say, or a document is none of ours.
    pub async fn page(
        &self,
        from: Option<Place>,
    ) -> Result<(Vec<DeadLetter>, Option<Place>), DeadLetterIndexError> {
        // How large they are is known before they are asked for.
        let (hits, mut next) = self.search(false, from, &["bytes"]).await?;
        let mut bytes = 0;
        let fits = hits.iter().take_while(|hit| {
            bytes += hit["_source"]["bytes"]
                .as_u64()
                .unwrap_or(0)
                .min(PART as u64);
            bytes <= PAGE
        });
        let some = fits.count().max(1);
        if some < hits.len() {
            next = Some(Place(hits[some - 1]["sort"].clone()));
        }
        let ids = hits.iter().take(some).filter_map(|hit| hit["_id"].as_str());
        let found = self.get(ids.map(str::to_owned), &json!(true)).await?;
        let mut letters = Vec::new();
        for (id, _, letter) in found {
            if letter["settled"] == true {
                continue;
            }
            let letter = Letter::deserialize(letter);
            let letter = letter.map_err(|_| DeadLetterIndexError::Unexpected(READ))?;
            letters.extend(self.whole(&id, letter).await?);
        }
        Ok((letters, next))
    }

    /// What a search shows of letters from a place on, and where the next ones begin.
    pub(super) async fn search(
        &self,
        settled: bool,
        from: Option<Place>,
        fields: &[&str],
    ) -> Result<(Vec<Value>, Option<Place>), DeadLetterIndexError> {
        let mut query = json!({
            "size": ASKED,
            "query": self.letters(settled),
            "sort": ["first_seen_ms", "document_id", "index_name"],
            "seq_no_primary_term": true,
            "_source": fields,
        });
        if let Some(Place(place)) = from {
            query["search_after"] = place;
        }
        let path = format!("/{INDEX}/_search?ignore_unavailable=true");
        let mut found = self.ask(Method::Post, &path, &query, READ).await?;
        if found.is_null() {
            // There is no such index yet.
            return Ok((Vec::new(), None));
        }
        let hits = found["hits"]["hits"].as_array_mut().map(mem::take);
        let hits = hits.ok_or(DeadLetterIndexError::Unexpected(READ))?;
        let next = hits.last().filter(|_| hits.len() == ASKED);
        let next = next.map(|hit| Place(hit["sort"].clone()));
        Ok((hits, next))
    }

    /// `None`: it was deleted meanwhile.
    async fn whole(
        &self,
        id: &str,
        letter: Letter,
    ) -> Result<Option<DeadLetter>, DeadLetterIndexError> {
        let document = match (letter.document, letter.packed) {
            (Some(text), _) => text.into_bytes(),
            (None, Some(first)) => {
                let mut parts = vec![first];
                for number in 1..letter.parts {
                    let id = percent_encoded(&part_id(id, number));
                    let path = format!("/{INDEX}/_doc/{id}");
                    let answer = self.client.request(Method::Get, &path, Body::Empty).await?;
                    if answer.status == 404 {
                        return Ok(None);
                    }
                    let part = Part::deserialize(&read(&answer, READ)?["_source"]);
                    let part = part.map_err(|_| DeadLetterIndexError::Unexpected(READ))?;
                    parts.push(part.packed);
                }
                packed::joined(&parts, LARGEST)
                    .map_err(|_| DeadLetterIndexError::Unexpected(READ))?
            }
            (None, None) => Vec::new(),
        };
        let form = match letter.form.as_str() {
            "json" => DocumentForm::Json,
            _ => DocumentForm::Protobuf,
        };
        Ok(Some(DeadLetter {
            document_id: letter.document_id,
            index_name: letter.index_name,
            event_type: letter.event_type,
            time_ms: letter.time_ms,
            document,
            form,
            status: letter.status,
            error_type: letter.error_type,
            reason: letter.reason,
            first_seen_ms: letter.first_seen_ms,
        }))
    }

    /// Those of these documents that are there, in their newest versions, with so much of each.
    pub(super) async fn get(
        &self,
        ids: impl IntoIterator<Item = String>,
        source: &Value,
    ) -> Result<Vec<(String, Version, Value)>, DeadLetterIndexError> {
        let ids = ids.into_iter();
        let docs: Vec<_> = ids
            .map(|id| json!({"_id": id, "_source": source}))
            .collect();
        if docs.is_empty() {
            return Ok(Vec::new());
        }
        let path = format!("/{INDEX}/_mget");
        let query = json!({ "docs": docs });
        let mut answer = self.ask(Method::Post, &path, &query, READ).await?;
        let docs = answer["docs"].as_array_mut().map(mem::take);
        let mut there = Vec::new();
        for mut doc in docs.unwrap_or_default() {
            match doc["error"]["type"].as_str() {
                None if doc["found"] == false => continue,
                None => {}
                Some("index_not_found_exception") => continue,
                Some(error_type) => return Err(not_read(error_type, &doc["error"]["reason"])),
            }
            let id = doc["_id"].as_str().map(str::to_owned);
            let found = id.zip(version_of(&doc));
            let (id, version) = found.ok_or(DeadLetterIndexError::Unexpected(READ))?;
            there.push((id, version, doc["_source"].take()));
        }
        Ok(there)
    }
}

pub(super) fn version_of(found: &Value) -> Option<Version> {
    Some(Version {
        seq_no: found["_seq_no"].as_u64()?,
        primary_term: found["_primary_term"].as_u64()?,
    })
}

/// Of one document of several no status is told.
fn not_read(error_type: &str, reason: &Value) -> DeadLetterIndexError {
    let status = match error_type {
        "security_exception" => 403,
        _ => 503,
    };
    DeadLetterIndexError::Refused {
        doing: READ,
        error: ErrorAnswer {
            status,
            error_type: error_type.to_owned(),
            reason: reason.as_str().unwrap_or_default().to_owned(),
        },
    }
}
