//! Letters that are done with, and all of a state that has moved elsewhere.
//!
//! Many are done with at once, and by few requests, between any two of which the program may be
//! killed. So nothing is taken away but what is as it was when it was looked at: a letter that was
//! kept again meanwhile stays, with its parts. One that lies in parts is no letter any more before
//! the first of them goes, and is known by its marker until the last has gone.

use std::collections::HashMap;

use serde_json::json;

use super::reading::version_of;
use super::{
    ASKED, DeadLetterIndex, DeadLetterIndexError, INDEX, Place, READ, WRITE, part_id, read,
};
use crate::elastic::assets::percent_encoded;
use crate::elastic::client::{Body, Method};
use crate::share::Version;

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
    /// Takes away letters that have settled or were given up, by the ids of their documents and by
    /// index; those that are not there are gone already.
    ///
    /// # Errors
    /// If Elasticsearch does not say that each is gone; some may be.
    pub async fn settle(&self, letters: &[(String, String)]) -> Result<(), DeadLetterIndexError> {
        for letters in letters.chunks(ASKED) {
            let ids = letters.iter().map(|(id, index)| self.id(id, index));
            self.settle_by_id(ids).await?;
        }
        Ok(())
    }

    async fn settle_by_id(
        &self,
        ids: impl IntoIterator<Item = String>,
    ) -> Result<(), DeadLetterIndexError> {
        let fields = [
            "settled",
            "document_id",
            "index_name",
            "form",
            "parts",
            "first_seen_ms",
        ];
        let mut writer = self.writer_over();
        for (id, version, letter) in self.get(ids, &json!(fields)).await? {
            if letter["settled"] == true {
                continue;
            }
            // Whoever leads closes its gap, or deletes its parts.
            let stays = letter["form"] == "protobuf" || letter["parts"].as_u64() > Some(1);
            if stays {
                let marker = json!({
                    "state": self.state,
                    "settled": true,
                    "document_id": letter["document_id"],
                    "index_name": letter["index_name"],
                    "first_seen_ms": letter["first_seen_ms"],
                    "parts": letter["parts"].as_u64().unwrap_or(0),
                });
                writer.replace(&id, version, &marker).await?;
            } else {
                writer.delete(&id, version).await?;
            }
        }
        writer.send().await
    }

    /// Letters that have settled, from a place on, and may have gaps that are open; and where the
    /// next ones begin.
    ///
    /// # Errors
    /// If Elasticsearch does not say.
    pub async fn settled(
        &self,
        from: Option<Place>,
    ) -> Result<(Vec<Settled>, Option<Place>), DeadLetterIndexError> {
        self.list(true, from).await
    }

    async fn list(
        &self,
        settled: bool,
        from: Option<Place>,
    ) -> Result<(Vec<Settled>, Option<Place>), DeadLetterIndexError> {
        let fields = ["document_id", "parts"];
        let (hits, next) = self.search(settled, from, &fields).await?;
        let listed = hits.iter().map(|hit| {
            Some(Settled {
                id: hit["_id"].as_str()?.to_owned(),
                version: version_of(hit)?,
                document_id: hit["_source"]["document_id"].as_str()?.to_owned(),
                parts: usize::try_from(hit["_source"]["parts"].as_u64()?).ok()?,
            })
        });
        let listed: Option<Vec<_>> = listed.collect();
        let listed = listed.ok_or(DeadLetterIndexError::Unexpected(READ))?;
        Ok((listed, next))
    }

    /// Deletes letters that have settled, their parts first, but nothing of one that was kept again
    /// meanwhile.
    ///
    /// # Errors
    /// If Elasticsearch does not say that each is gone.
    pub async fn forget(&self, settled: &[Settled]) -> Result<(), DeadLetterIndexError> {
        let parts = settled.iter().flat_map(|settled| {
            let parts = 1..settled.parts;
            parts.map(|number| (part_id(&settled.id, number), settled.version))
        });
        let parts: Vec<_> = parts.collect();
        let mut writer = self.writer_over();
        for parts in parts.chunks(ASKED) {
            let markers: HashMap<_, _> = parts.iter().cloned().collect();
            let ids = parts.iter().map(|(id, _)| id.clone());
            for (id, version, _) in self.get(ids, &json!(false)).await? {
                // Whoever keeps the letter again at this time writes its parts first. In one shard
                // what was written later has a higher number.
                if markers
                    .get(&id)
                    .is_some_and(|of| version.seq_no < of.seq_no)
                {
                    writer.delete(&id, version).await?;
                }
            }
        }
        writer.send().await?;
        for settled in settled {
            writer.delete(&settled.id, settled.version).await?;
        }
        writer.send().await
    }

    /// Deletes all letters of the state, and what is left of those that have settled.
    ///
    /// # Errors
    /// If Elasticsearch does not say that each is gone.
    pub async fn clear(&self) -> Result<(), DeadLetterIndexError> {
        let mut place = None;
        loop {
            let (letters, next) = self.list(false, place).await?;
            let ids = letters.into_iter().map(|letter| letter.id);
            self.settle_by_id(ids).await?;
            place = next;
            if place.is_none() {
                break;
            }
        }
        // They are markers now.
        self.wait_until_shown().await?;
        loop {
            let (settled, next) = self.settled(place).await?;
            self.forget(&settled).await?;
            place = next;
            if place.is_none() {
                return Ok(());
            }
        }
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
