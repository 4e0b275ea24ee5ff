//! Writing many of them by few requests: a refusal of all that comes refuses thousands at once.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{DeadLetterIndex, DeadLetterIndexError, INDEX, WRITE, read};
use crate::elastic::client::{Body, ErrorAnswer, Method};

/// Bytes of a request, but for one document that is larger. Any server takes that.
const REQUEST: usize = 1 << 20;

/// What has become of one action.
#[derive(Deserialize)]
pub(super) struct Item {
    pub(super) status: u16,
    error: Option<ItemError>,
}

#[derive(Deserialize)]
struct ItemError {
    #[serde(rename = "type", default)]
    error_type: String,
    #[serde(default)]
    reason: String,
}

impl Item {
    /// Its status, if it was carried out.
    pub(super) fn success(self) -> Result<u16, DeadLetterIndexError> {
        if (200..300).contains(&self.status) {
            return Ok(self.status);
        }
        let (error_type, reason) = self
            .error
            .map(|error| (error.error_type, error.reason))
            .unwrap_or_default();
        Err(DeadLetterIndexError::Refused {
            doing: WRITE,
            error: ErrorAnswer {
                status: self.status,
                error_type,
                reason,
            },
        })
    }
}

/// What is to be written next.
pub(super) struct Writer<'a> {
    index: &'a DeadLetterIndex,
    body: String,
    documents: usize,
}

impl Writer<'_> {
    /// Adds a document, and sends those before it if they fill a request. It replaces what is under
    /// its id: a letter that was marked as settled and is refused again is a letter again.
    pub(super) async fn add(
        &mut self,
        id: &str,
        document: &Value,
    ) -> Result<(), DeadLetterIndexError> {
        let lines = format!("{}\n{document}\n", json!({"index": {"_id": id}}));
        if self.body.len() + lines.len() > REQUEST {
            self.send().await?;
        }
        self.body.push_str(&lines);
        self.documents += 1;
        Ok(())
    }

    /// Sends what is left. Once it is `Ok` each document that was added is there.
    pub(super) async fn send(&mut self) -> Result<(), DeadLetterIndexError> {
        if self.documents == 0 {
            return Ok(());
        }
        let documents = std::mem::take(&mut self.documents);
        let body = std::mem::take(&mut self.body);
        let items = self.index.bulk(body, documents).await?;
        items
            .into_iter()
            .try_for_each(|item| item.success().map(drop))
    }
}

impl DeadLetterIndex {
    pub(super) fn writer(&self) -> Writer<'_> {
        Writer {
            index: self,
            body: String::new(),
            documents: 0,
        }
    }

    /// One bulk request, and what has become of each of its actions.
    pub(super) async fn bulk(
        &self,
        body: String,
        actions: usize,
    ) -> Result<Vec<Item>, DeadLetterIndexError> {
        let path = format!(
            "/{INDEX}/_bulk?filter_path=items.*.status,items.*.error.type,items.*.error.reason"
        );
        let body = Body::Ndjson(body.into());
        let answer = self.client.request(Method::Post, &path, body).await?;
        let answer = read(&answer, WRITE)?;
        let items = answer["items"].as_array().map_or(&[][..], Vec::as_slice);
        let items = items.iter().map(|item| {
            let (_, item) = item.as_object()?.iter().next()?;
            Item::deserialize(item).ok()
        });
        let items: Option<Vec<_>> = items.collect();
        items
            .filter(|items| items.len() == actions)
            .ok_or(DeadLetterIndexError::Unexpected(WRITE))
    }
}
