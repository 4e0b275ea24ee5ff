//! Which of some documents an index has.
//!
//! Each id is asked for by itself, thousands in a request (`_mget`). That sees what was acknowledged
//! or deleted a moment ago, where a search sees it only after a refresh; so no refresh is needed,
//! nor a right to one, and `read` on the indices is all that it takes. It costs Elasticsearch about
//! as much as to count the ids by a search would, which could not say which ones are missing.
//!
//! | answer | means |
//! |---|---|
//! | `index_not_found_exception` for a document | the index has none of them |
//! | no answer; 408, 429, 5xx; a shard that is away; an answer that cannot be read | try again |
//! | 401 | try again: a node that has just started refuses good credentials for a moment |
//! | 403, a closed index and all else | somebody has to do something |

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Deserialize;
use serde_json::json;
use thiserror::Error;

use super::client::{Answer, Body, Client, ErrorAnswer, Method};
use crate::output::Chain;
use crate::pipeline::delivery::Fault;

/// Looks documents up by id.
#[derive(Debug)]
pub struct Lookup {
    client: Client,
    /// Indices that were not there when they were last asked. Elasticsearch says so at length for
    /// each id, so of these one id is asked for first.
    absent: Mutex<BTreeSet<String>>,
}

/// Why it is not known which documents there are.
#[derive(Debug, Error)]
pub enum LookupError {
    /// It passes by itself, or may.
    #[error("{}", .0.what)]
    Transient(Fault),
    /// Somebody has to do something.
    #[error("{}", .0.what)]
    Denied(Fault),
}

impl LookupError {
    /// What happened, and what to do about it.
    pub fn fault(&self) -> &Fault {
        match self {
            Self::Transient(fault) | Self::Denied(fault) => fault,
        }
    }
}

/// What to do about a 403.
pub const GIVE_READ: &str = "give `read` on the audit indices \
    (templates/elasticsearch-verifier-role.json), or name a key that has it as verifier-api-key";

#[derive(Deserialize)]
struct Documents {
    docs: Vec<Document>,
}

#[derive(Deserialize)]
struct Document {
    found: Option<bool>,
    error: Option<DocumentError>,
}

#[derive(Deserialize)]
struct DocumentError {
    #[serde(rename = "type")]
    error_type: String,
    #[serde(default)]
    reason: String,
}

/// Nothing of the documents themselves.
const CALL: &str = "_mget?_source=false&filter_path=docs.found,docs.error.type,docs.error.reason";

impl Lookup {
    /// Asks through `client`.
    pub fn new(client: Client) -> Self {
        Self {
            client,
            absent: Mutex::default(),
        }
    }

    /// Whether the index has each of these documents. One attempt; an id may be there twice.
    ///
    /// # Errors
    /// If Elasticsearch does not say.
    pub async fn found(&self, index_name: &str, ids: &[&str]) -> Result<Vec<bool>, LookupError> {
        let nothing = || vec![false; ids.len()];
        let was_absent = self.absent().contains(index_name);
        if was_absent && let Some(first) = ids.get(..1) {
            if self.ask(index_name, first).await?.is_none() {
                return Ok(nothing());
            }
            self.absent().remove(index_name);
        }
        let found = self.ask(index_name, ids).await?;
        if found.is_none() {
            self.absent().insert(index_name.to_owned());
        }
        Ok(found.unwrap_or_else(nothing))
    }

    fn absent(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.absent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None`: there is no such index.
    async fn ask(&self, index_name: &str, ids: &[&str]) -> Result<Option<Vec<bool>>, LookupError> {
        let path = format!("/{}/{CALL}", in_path(index_name));
        let body = Body::Json(json!({"ids": ids}).to_string().into());
        let answer = match self.client.request(Method::Post, &path, body).await {
            Ok(answer) => answer,
            Err(failed) => {
                return Err(LookupError::Transient(Fault {
                    what: Chain(&failed).to_string(),
                    mend: failed.mend().unwrap_or_default().to_owned(),
                    ..Fault::default()
                }));
            }
        };
        refuse(&answer, index_name)?;
        let Documents { docs } = self.read(&answer)?;
        if docs.len() != ids.len() {
            let (got, asked) = (docs.len(), ids.len());
            let what = format!("{got} answers for {asked} documents of {index_name}");
            return Err(transient(what));
        }
        docs.into_iter()
            .map(|document| found(index_name, document))
            .collect()
    }

    fn read<'a, T: Deserialize<'a>>(&self, answer: &'a Answer) -> Result<T, LookupError> {
        let address = &answer.host;
        serde_json::from_slice(&answer.body).map_err(|broken| {
            if answer.is_elasticsearch {
                transient(format!(
                    "{address} gave an answer that cannot be read: {broken}"
                ))
            } else {
                LookupError::Denied(Fault {
                    what: format!("what answers at {address} is not Elasticsearch"),
                    mend: "check `hosts`, and any proxy in between".to_owned(),
                    ..Fault::default()
                })
            }
        })
    }
}

fn transient(what: String) -> LookupError {
    LookupError::Transient(Fault {
        what,
        ..Fault::default()
    })
}

/// What is wrong with an answer as a whole.
fn refuse(answer: &Answer, index_name: &str) -> Result<(), LookupError> {
    let fault = |mend: &str| Fault {
        what: format!(
            "cannot look into {index_name}: {}",
            ErrorAnswer::read(answer)
        ),
        mend: mend.to_owned(),
        ..Fault::default()
    };
    Err(match answer.status {
        200..=299 => return Ok(()),
        status @ (408 | 429 | 500..=599) => LookupError::Transient(Fault {
            overloaded: status == 429 || status == 503,
            retry_after: answer.retry_after,
            ..fault("")
        }),
        401 => LookupError::Transient(fault(
            "check verifier-api-key, or whatever else says who we are, in [forward.elasticsearch]",
        )),
        403 => LookupError::Denied(fault(GIVE_READ)),
        _ => LookupError::Denied(fault("check `hosts`, and any proxy in between")),
    })
}

fn found(index_name: &str, document: Document) -> Result<Option<bool>, LookupError> {
    let (error_type, reason) = match (document.found, document.error) {
        (Some(found), None) => return Ok(Some(found)),
        (None, Some(error)) if error.error_type == "index_not_found_exception" => return Ok(None),
        (_, Some(error)) => (error.error_type, error.reason),
        (None, None) => (String::new(), "neither found nor not".to_owned()),
    };
    let fault = |mend: &str| Fault {
        what: format!("cannot look into {index_name}: {error_type}: {reason}"),
        mend: mend.to_owned(),
        ..Fault::default()
    };
    Err(match error_type.as_str() {
        "security_exception" => LookupError::Denied(fault(GIVE_READ)),
        "index_closed_exception" => LookupError::Denied(fault("open the index")),
        "illegal_argument_exception" => LookupError::Denied(fault(
            "`index` must give the names of indices, or of aliases of one index each",
        )),
        _ => LookupError::Transient(fault("")),
    })
}

/// A name of an index as a segment of a path.
fn in_path(index_name: &str) -> String {
    let mut segment = String::with_capacity(index_name.len());
    for byte in index_name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_') {
            segment.push(char::from(byte));
        } else {
            write!(segment, "%{byte:02X}").expect("a String takes any text");
        }
    }
    segment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_goes_into_a_path_whatever_it_holds() {
        assert_eq!(
            in_path("audit-events-2026.01.02"),
            "audit-events-2026.01.02"
        );
        assert_eq!(in_path("prüfung-%"), "pr%C3%BCfung-%25");
    }

    #[test]
    fn a_document_is_there_or_not_or_nobody_knows() {
        let answer = |text: &str| found("i", serde_json::from_str(text).unwrap());
        assert_eq!(answer(r#"{"found":true}"#).unwrap(), Some(true));
        assert_eq!(answer(r#"{"found":false}"#).unwrap(), Some(false));
        let no_index = r#"{"error":{"type":"index_not_found_exception"}}"#;
        assert_eq!(answer(no_index).unwrap(), None);
        for (text, passes) in [
            (
                r#"{"error":{"type":"no_shard_available_action_exception"}}"#,
                true,
            ),
            (
                r#"{"found":true,"error":{"type":"circuit_breaking_exception"}}"#,
                true,
            ),
            ("{}", true),
            (r#"{"error":{"type":"illegal_argument_exception"}}"#, false),
        ] {
            let failed = answer(text).unwrap_err();
            assert_eq!(
                matches!(failed, LookupError::Transient(_)),
                passes,
                "{text}"
            );
        }
    }
}
