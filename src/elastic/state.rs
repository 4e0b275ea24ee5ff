//! A state in the index by which machines share work: see [`leader`](crate::leader).

use std::fmt::Write as _;

use serde::Deserialize;
use serde_json::json;

use super::client::Client;
use super::dead_letters;
use super::work::{self, WorkError, bulk, demand_template, get, put};
use crate::leader::candidate::{Answer, Request};
use crate::leader::image::{Base, ImageError, LARGEST};
use crate::leader::{Content, Head};
use crate::packed;
use crate::share::Version;

/// Characters of one document of a base. A request carries one: far below what any server takes.
const PART: usize = 1 << 20;

/// The documents of the state of one name.
#[derive(Clone, Debug)]
pub struct StateDocuments {
    client: Client,
    name: String,
}

/// A document of a base.
#[derive(Deserialize)]
struct Part {
    part: String,
}

impl StateDocuments {
    /// The documents of the state of this name.
    pub fn new(client: Client, name: &str) -> Self {
        Self {
            client,
            name: name.to_owned(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Refuses to go on where a template is known to be missing: the index, or that of the dead letters,
    /// would be made with guessed mappings.
    ///
    /// # Errors
    /// If it is missing, or there is no answer.
    pub async fn demand_template(&self) -> Result<(), WorkError> {
        for index in [work::INDEX, dead_letters::INDEX] {
            demand_template(&self.client, index).await?;
        }
        Ok(())
    }

    fn head_id(&self) -> String {
        format!("state:{}", self.name)
    }

    fn part_id(&self, base: &Base, part: usize) -> String {
        format!("state:{}:{}:{part}", self.name, base.name)
    }

    /// The head as it is at this moment.
    ///
    /// # Errors
    /// If Elasticsearch does not say.
    pub async fn head(&self) -> Result<Option<(Head<Content>, Version)>, WorkError> {
        get(&self.client, &self.head_id()).await
    }

    /// Replaces the head. `None`: there is a newer version, or one at all.
    ///
    /// # Errors
    /// If Elasticsearch does not say.
    pub async fn write_head(
        &self,
        head: &Head<Content>,
        over: Option<Version>,
    ) -> Result<Option<Version>, WorkError> {
        let body = serde_json::to_vec(head).expect("a head is JSON");
        put(&self.client, &self.head_id(), body, over).await
    }

    /// Carries out what a candidate asks for. One attempt.
    ///
    /// # Errors
    /// If Elasticsearch does not say.
    pub async fn carry_out(
        &self,
        request: &Request<Content>,
    ) -> Result<Answer<Content>, WorkError> {
        match request {
            Request::Look => self.head().await.map(|found| match found {
                Some((head, version)) => Answer::Found(Box::new(head), version),
                None => Answer::Missing,
            }),
            Request::Write { head, over } => {
                let written = self.write_head(head, *over).await;
                written.map(|written| written.map_or(Answer::Conflict, Answer::Written))
            }
        }
    }

    /// Writes the documents of a new base, and says how many there are.
    ///
    /// # Errors
    /// If Elasticsearch does not say that each is there.
    pub async fn write_base(&self, base: &Base, parts: &[String]) -> Result<(), WorkError> {
        for (number, part) in parts.iter().enumerate() {
            let id = self.part_id(base, number);
            let body = serde_json::to_vec(&json!({"part": part})).expect("it is JSON");
            // One that is there was written by an attempt that was not answered.
            put(&self.client, &id, body, None).await?;
        }
        Ok(())
    }

    /// The whole state of a base; `None` if a document is missing, as another one took its place.
    ///
    /// # Errors
    /// If Elasticsearch does not say, or what it says is no state.
    pub async fn base(&self, base: &Base) -> Result<Option<Vec<u8>>, BaseError> {
        let mut parts = Vec::new();
        for number in 0..base.parts {
            let id = self.part_id(base, number);
            let Some((Part { part }, _)) = get(&self.client, &id).await? else {
                return Ok(None);
            };
            parts.push(part);
        }
        let whole = packed::joined(&parts, LARGEST).map_err(ImageError::Packed)?;
        Ok(Some(whole))
    }

    /// Deletes the documents of bases; those that are not there are no error.
    ///
    /// # Errors
    /// If Elasticsearch does not say that each is gone.
    pub async fn delete_bases(&self, bases: &[Base]) -> Result<(), WorkError> {
        let mut body = String::new();
        let mut wanted = 0;
        for base in bases {
            for part in 0..base.parts {
                let action = json!({"delete": {"_id": self.part_id(base, part)}});
                writeln!(body, "{action}").expect("a text takes all");
                wanted += 1;
            }
        }
        if wanted == 0 {
            return Ok(());
        }
        let is_gone = |status| matches!(status, 200..300 | 404);
        bulk(&self.client, "delete", body.into(), wanted, is_gone).await
    }
}

/// The documents of a new base with this whole state, and how it is called.
pub fn new_base(name: String, whole: &[u8]) -> (Base, Vec<String>) {
    let parts = packed::parts(whole, PART);
    let base = Base {
        name,
        parts: parts.len(),
    };
    (base, parts)
}

/// Why a base cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// Elasticsearch does not say.
    #[error(transparent)]
    Work(#[from] WorkError),
    /// It is no state.
    #[error(transparent)]
    Image(#[from] ImageError),
}
