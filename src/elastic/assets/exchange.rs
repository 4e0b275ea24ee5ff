//! One request and its answer, and what an answer that is an error says.

use std::error::Error;
use std::fmt;
use std::fmt::Write as _;

use serde_json::Value;

/// The method of a request to Elasticsearch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Reads.
    Get,
    /// Creates or replaces.
    Put,
    /// Asks with a body.
    Post,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Post => "POST",
        })
    }
}

/// A request to Elasticsearch; shown as Kibana's console takes it: the line with method and path,
/// then the body.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// The path, percent-encoded where needed, with its leading slash.
    pub path: String,
    /// The body, if there is one.
    pub body: Option<Value>,
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)?;
        match &self.body {
            Some(body) => write!(f, "\n{body:#}"),
            None => Ok(()),
        }
    }
}

/// What Elasticsearch answered, whatever the status.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body; `null` if it was empty or no JSON.
    pub body: Value,
}

/// Why the assets could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The request did not get through.
    #[error("cannot {doing}")]
    Send {
        /// What was tried.
        doing: String,
        /// What the client says.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The user lacks a privilege (403).
    #[error(
        "Elasticsearch does not let this user {doing}: {}",
        lacking(privileges, reason)
    )]
    Forbidden {
        /// What was tried.
        doing: String,
        /// The privileges of which one would do, as the server names them; may be empty.
        privileges: Vec<String>,
        /// The server's own words.
        reason: String,
    },
    /// Any other answer that is an error.
    #[error("Elasticsearch refused to {doing} (HTTP {status}, {kind}): {reason}")]
    Refused {
        /// What was tried.
        doing: String,
        /// The HTTP status.
        status: u16,
        /// The `type` of the error, or `unknown error`.
        kind: String,
        /// The server's own words, with their causes.
        reason: String,
    },
    /// A success whose body is not what it should be.
    #[error("Elasticsearch gave an answer without the expected content when asked to {doing}")]
    Unexpected {
        /// What was tried.
        doing: String,
    },
    /// Somebody else's work is in the way; nothing was sent.
    #[error(
        "nothing was installed, since {} in the way: compare, then repeat with --overwrite to replace",
        list(assets)
    )]
    InTheWay {
        /// The assets, as [`Step`](super::Step) names them, with the reason.
        assets: Vec<String>,
    },
}

impl InstallError {
    /// What somebody should do; `None` where the message says it all.
    pub fn mend(&self) -> Option<&'static str> {
        match self {
            Self::Forbidden { .. } => Some(
                "install as a user with the role in templates/elasticsearch-installer-role.json",
            ),
            Self::Send { .. }
            | Self::Refused { .. }
            | Self::Unexpected { .. }
            | Self::InTheWay { .. } => None,
        }
    }

    /// Passes by itself, or so it seems: no answer, or the server is starting or busy.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Send { .. } => true,
            Self::Refused { status, .. } => *status == 429 || *status >= 500,
            Self::Forbidden { .. } | Self::Unexpected { .. } | Self::InTheWay { .. } => false,
        }
    }
}

pub(super) fn lacking(privileges: &[String], reason: &str) -> String {
    if privileges.is_empty() {
        return reason.to_owned();
    }
    format!("it takes one of the privileges {}", privileges.join(", "))
}

fn list(assets: &[String]) -> String {
    let verb = if assets.len() == 1 { "is" } else { "are" };
    format!("{} {verb}", assets.join(" and "))
}

pub(in crate::elastic) async fn exchange<S, E>(
    send: &S,
    request: Request,
    doing: &str,
) -> Result<Answer, InstallError>
where
    S: AsyncFn(Request) -> Result<Answer, E>,
    E: Error + Send + Sync + 'static,
{
    send(request).await.map_err(|error| InstallError::Send {
        doing: doing.to_owned(),
        source: Box::new(error),
    })
}

pub(in crate::elastic) fn failure(doing: String, answer: &Answer) -> InstallError {
    let reason = reasons(&answer.body);
    if answer.status == 403 {
        return InstallError::Forbidden {
            doing,
            privileges: privileges(&reason),
            reason,
        };
    }
    InstallError::Refused {
        doing,
        status: answer.status,
        kind: error_type(&answer.body)
            .unwrap_or("unknown error")
            .to_owned(),
        reason,
    }
}

pub(super) fn error_type(body: &Value) -> Option<&str> {
    body.pointer("/error/type")?.as_str()
}

pub(in crate::elastic) fn has_no_handler(body: &Value) -> bool {
    let error = body.get("error").and_then(Value::as_str);
    error.is_some_and(|error| error.starts_with("no handler found"))
}

/// The reason of an error and of its causes. Some errors are a plain text, some have no body.
fn reasons(body: &Value) -> String {
    let Some(error) = body.get("error") else {
        return "no reason given".to_owned();
    };
    if let Some(text) = error.as_str() {
        return text.to_owned();
    }
    let mut reasons = String::new();
    let mut cause = Some(error);
    while let Some(error) = cause {
        // A cause often stands in its effect's reason already.
        let reason = error["reason"].as_str().unwrap_or_default();
        if !reasons.contains(reason) {
            let separator = if reasons.is_empty() { "" } else { ": " };
            write!(reasons, "{separator}{reason}").expect("writing to a String cannot fail");
        }
        cause = error.get("caused_by");
    }
    if reasons.is_empty() {
        return error.to_string();
    }
    reasons
}

/// The privileges that a security exception names: `… is granted by the cluster privileges
/// [manage_ilm,manage,all]`.
fn privileges(reason: &str) -> Vec<String> {
    let named = reason
        .split_once("is granted by the ")
        .and_then(|(_, rest)| rest.split_once('['))
        .and_then(|(_, rest)| rest.split_once(']'));
    let Some((named, _)) = named else {
        return Vec::new();
    };
    named
        .split(',')
        .map(|name| name.trim().to_owned())
        .collect()
}

/// A name as one segment of a path.
pub(in crate::elastic) fn percent_encoded(name: &str) -> String {
    let mut segment = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~@".contains(&byte) {
            segment.push(char::from(byte));
        } else {
            write!(segment, "%{byte:02X}").expect("writing to a String cannot fail");
        }
    }
    segment
}
