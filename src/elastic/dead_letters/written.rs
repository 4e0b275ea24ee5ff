//! Writing many of them by few requests: a refusal of all that comes refuses thousands at once.

use std::mem;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{DeadLetterIndex, DeadLetterIndexError, INDEX, WRITE, read};
use crate::elastic::client::{Body, ErrorAnswer, Method};
use crate::share::Version;

/// Bytes of a request, but for one document that is larger. Any server takes that.
const REQUEST: usize = 1 << 20;

/// What has become of one action.
#[derive(Deserialize)]
struct Item {
    status: u16,
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
    fn success(self) -> Result<(), DeadLetterIndexError> {
        if (200..300).contains(&self.status) {
            return Ok(());
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
    actions: usize,
    /// What one that finds another version, or none, comes to.
    conflict: Conflict,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Conflict {
    /// There is none to be found.
    Fails,
    /// Somebody was quicker, and is right.
    Passes,
}

impl Writer<'_> {
    /// Adds a document. It replaces what is under its id: a letter that was marked as settled and is
    /// refused again is a letter again.
    pub(super) async fn add(
        &mut self,
        id: &str,
        document: &Value,
    ) -> Result<(), DeadLetterIndexError> {
        let action = json!({"index": {"_id": id}});
        self.push(format!("{action}\n{document}\n")).await
    }

    /// Adds a document that replaces this version of another.
    pub(super) async fn replace(
        &mut self,
        id: &str,
        version: Version,
        document: &Value,
    ) -> Result<(), DeadLetterIndexError> {
        let action = json!({"index": over(id, version)});
        self.push(format!("{action}\n{document}\n")).await
    }

    /// Deletes this version of a document.
    pub(super) async fn delete(
        &mut self,
        id: &str,
        version: Version,
    ) -> Result<(), DeadLetterIndexError> {
        let action = json!({"delete": over(id, version)});
        self.push(format!("{action}\n")).await
    }

    /// Sends those before it if they fill a request.
    async fn push(&mut self, lines: String) -> Result<(), DeadLetterIndexError> {
        if self.body.len() + lines.len() > REQUEST {
            self.send().await?;
        }
        self.body.push_str(&lines);
        self.actions += 1;
        Ok(())
    }

    /// Sends what is left. Once it is `Ok` all that was added has been done.
    pub(super) async fn send(&mut self) -> Result<(), DeadLetterIndexError> {
        if self.actions == 0 {
            return Ok(());
        }
        let actions = mem::take(&mut self.actions);
        let body = mem::take(&mut self.body);
        for item in self.index.bulk(body, actions).await? {
            let conflicts = matches!(item.status, 404 | 409);
            if !(conflicts && self.conflict == Conflict::Passes) {
                item.success()?;
            }
        }
        Ok(())
    }
}

fn over(id: &str, version: Version) -> Value {
    json!({
        "_id": id,
        "if_seq_no": version.seq_no,
        "if_primary_term": version.primary_term,
    })
}

impl DeadLetterIndex {
    pub(super) fn writer(&self) -> Writer<'_> {
        Writer {
            index: self,
            body: String::new(),
            actions: 0,
            conflict: Conflict::Fails,
        }
    }

    /// The same for what is to change only what it was made for.
    pub(super) fn writer_over(&self) -> Writer<'_> {
        Writer {
            conflict: Conflict::Passes,
            ..self.writer()
        }
    }

    /// One bulk request, and what has become of each of its actions.
    async fn bulk(&self, body: String, actions: usize) -> Result<Vec<Item>, DeadLetterIndexError> {
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
