//! Letters that are done with, and all of a state that has moved elsewhere.

use std::fmt::Write as _;
use std::ops::Range;

use serde_json::{Value, json};

use super::{DeadLetterIndex, DeadLetterIndexError, INDEX, READ, WRITE, part_id, read};
use crate::elastic::assets::percent_encoded;
use crate::elastic::client::{Body, Method};
use crate::share::Version;

/// Letters that are listed at once.
const LISTED: usize = 100;

/// A letter that is done with, as it was when a search showed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    id: String,
    version: Version,
    parts: usize,
    /// The id of the document that was refused.
    pub document_id: String,
}

impl DeadLetterIndex {
    /// Takes away a letter that has settled or was given up.
    ///
    /// # Errors
    /// If Elasticsearch does not say that it is gone.
    pub async fn settle(
        &self,
        document_id: &str,
        index_name: &str,
    ) -> Result<(), DeadLetterIndexError> {
        let id = self.id(document_id, index_name);
        let escaped = percent_encoded(&id);
        let path = format!("/{INDEX}/_doc/{escaped}?_source_includes=form,parts,first_seen_ms");
        let answer = self.client.request(Method::Get, &path, Body::Empty).await?;
        if answer.status == 404 {
            return Ok(());
        }
        let found = &read(&answer, READ)?["_source"];
        let parts = found["parts"].as_u64();
        let parts = parts
            .and_then(|parts| usize::try_from(parts).ok())
            .unwrap_or(0);
        if found["form"] == "protobuf" {
            // Its gap is to be closed by whoever leads.
            let marker = json!({
                "state": self.state,
                "settled": true,
                "document_id": document_id,
                "index_name": index_name,
                "first_seen_ms": found["first_seen_ms"],
                "parts": parts,
            });
            let mut writer = self.writer();
            writer.add(&id, &marker).await?;
            writer.send().await
        } else {
            self.delete_parts(&id, 0..parts.max(1)).await
        }
    }

    /// Letters that have settled, and may have gaps that are open: their documents' ids here, how many
    /// parts they had, and the ids of what was refused.
    ///
    /// # Errors
    /// If Elasticsearch does not say.
    pub async fn settled(&self) -> Result<Vec<Settled>, DeadLetterIndexError> {
        let mut settled = Vec::new();
        let mut place = Some(Value::Null);
        while let Some(from) = place {
            let (more, next) = self.list(self.letters(true), &from).await?;
            settled.extend(more);
            place = next;
        }
        Ok(settled)
    }

    /// Letters from a place on, and where the next ones begin; none if there are no more.
    async fn list(
        &self,
        which: Value,
        from: &Value,
    ) -> Result<(Vec<Settled>, Option<Value>), DeadLetterIndexError> {
        let mut query = json!({
            "size": LISTED,
            "query": which,
            "sort": ["first_seen_ms", "document_id", "index_name"],
            "seq_no_primary_term": true,
            "_source": ["document_id", "parts"],
        });
        if !from.is_null() {
            query["search_after"] = from.clone();
        }
        let path = format!("/{INDEX}/_search?ignore_unavailable=true");
        let found = self.ask(Method::Post, &path, &query, READ).await?;
        let hits = found["hits"]["hits"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        let listed = hits.iter().map(|hit| {
            Some(Settled {
                id: hit["_id"].as_str()?.to_owned(),
                version: Version {
                    seq_no: hit["_seq_no"].as_u64()?,
                    primary_term: hit["_primary_term"].as_u64()?,
                },
                document_id: hit["_source"]["document_id"].as_str()?.to_owned(),
                parts: usize::try_from(hit["_source"]["parts"].as_u64()?).ok()?,
            })
        });
        let listed: Option<Vec<_>> = listed.collect();
        let listed = listed.ok_or(DeadLetterIndexError::Unexpected(READ))?;
        let next = hits.last().map(|hit| hit["sort"].clone());
        Ok((listed, next))
    }

    /// Deletes letters, but not one that was kept again meanwhile.
    ///
    /// # Errors
    /// If Elasticsearch does not say that each is gone.
    pub async fn forget(&self, settled: &[Settled]) -> Result<(), DeadLetterIndexError> {
        for settled in settled {
            let Version {
                seq_no,
                primary_term,
            } = settled.version;
            let action = json!({"delete": {
                "_id": settled.id,
                "if_seq_no": seq_no,
                "if_primary_term": primary_term,
            }});
            if !self.delete(&[action]).await?.contains(&409) {
                self.delete_parts(&settled.id, 1..settled.parts).await?;
            }
        }
        Ok(())
    }

    async fn delete_parts(
        &self,
        id: &str,
        parts: Range<usize>,
    ) -> Result<(), DeadLetterIndexError> {
        let actions = parts.map(|number| json!({"delete": {"_id": part_id(id, number)}}));
        let actions: Vec<_> = actions.collect();
        self.delete(&actions).await.map(drop)
    }

    /// The statuses of what was carried out.
    async fn delete(&self, actions: &[Value]) -> Result<Vec<u16>, DeadLetterIndexError> {
        if actions.is_empty() {
            return Ok(Vec::new());
        }
        let mut body = String::new();
        for action in actions {
            writeln!(body, "{action}").expect("a text takes all");
        }
        let done = self.bulk(body, actions.len()).await?;
        // One that is gone, or was kept again meanwhile, is no failure.
        done.into_iter()
            .map(|item| match item.status {
                status @ (404 | 409) => Ok(status),
                _ => item.success(),
            })
            .collect()
    }

    /// Deletes all letters of the state, and what is left of those that have settled.
    ///
    /// # Errors
    /// If Elasticsearch does not say that each is gone.
    pub async fn clear(&self) -> Result<(), DeadLetterIndexError> {
        let mut place = Some(Value::Null);
        while let Some(from) = place {
            let all = json!({"term": {"state": self.state}});
            let (found, next) = self.list(all, &from).await?;
            self.forget(&found).await?;
            place = next;
        }
        Ok(())
    }

    /// Waits until searches show all that was written before. To ask for it right away is not for the
    /// writer to do; but whoever writes may wait until what it has written shows.
    ///
    /// # Errors
    /// If Elasticsearch does not say so.
    pub async fn wait_until_shown(&self) -> Result<(), DeadLetterIndexError> {
        let id = percent_encoded(&format!("{}/", self.state));
        let path = format!("/{INDEX}/_doc/{id}?refresh=wait_for");
        let answer = self
            .client
            .request(Method::Delete, &path, Body::Empty)
            .await?;
        // It is never there; nor is the index, perhaps.
        match answer.status {
            404 => Ok(()),
            _ => read(&answer, WRITE).map(drop),
        }
    }
}
