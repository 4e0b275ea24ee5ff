//! What can be wrong between us and Elasticsearch, in words for the person who must mend it.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;

use elasticsearch::http::Url;
use elasticsearch::http::transport::BuildError;
use serde_json::Value;
use thiserror::Error;
use tracing::debug;

use super::{Answer, OLDEST};
use crate::config::{AuthFileError, CaFingerprint};
use crate::elastic::assets::Version;
use crate::output::{Chain, RAISE_OPEN_FILES};

/// Why there is no client, or no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// A file that the configuration names cannot be read.
    #[error("cannot read {what} {}", path.display())]
    File {
        /// What it is for.
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// Why it cannot be read.
        #[source]
        source: std::io::Error,
    },
    /// A file that the configuration names has the wrong content.
    #[error("{what} {} holds no usable PEM", path.display())]
    Pem {
        /// What it is for.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: elasticsearch::Error,
    },
    /// A certificate and a key that are no pair, or one of them is none.
    #[error("the client certificate {} and the key {} {problem}", certificate.display(), key.display())]
    Identity {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong with them.
        problem: String,
    },
    /// The file of a secret cannot be used.
    #[error(transparent)]
    Auth(AuthFileError),
    /// The server wants other credentials than those in the files now.
    #[error("Elasticsearch refuses those in the files now: {0}")]
    Refused(ErrorAnswer),
    /// The server shows none with the fingerprint that is trusted.
    #[error(
        "{NO_ANSWER}{url}: no certificate that it shows has the fingerprint ca-fingerprint; \
         theirs: {}",
        shown(others)
    )]
    OtherCertificates {
        /// The host.
        url: String,
        /// The fingerprints of those that it shows: first its own, then those of its CAs, if any.
        others: Vec<CaFingerprint>,
    },
    /// The fingerprint is that of the server's own certificate, which another one issued.
    #[error(
        "{NO_ANSWER}{url}: ca-fingerprint is that of its own certificate, not of the CA that issued \
         it; CAs that it shows: {}",
        shown(authorities)
    )]
    OwnCertificate {
        /// The host.
        url: String,
        /// The fingerprints of the CAs that it shows.
        authorities: Vec<CaFingerprint>,
    },
    /// The transport does not accept the settings.
    #[error("cannot set up the connection to {url}")]
    Build {
        /// The host.
        url: Url,
        /// What it does not accept.
        #[source]
        source: BuildError,
    },
    /// None of several hosts gave an answer: what happened at each.
    #[error("{}", each(.0))]
    NoHost(Vec<Self>),
    /// A host gave no answer.
    #[error("{NO_ANSWER}{url}: {reason}")]
    NoAnswer {
        /// The host.
        url: String,
        /// What happened there, in plain words.
        reason: String,
        /// What somebody should do, should it last.
        mend: &'static str,
    },
    /// There is a server, but it did not accept us or is none of ours.
    #[error("{0}")]
    Unfit(String),
}

impl ClientError {
    /// What somebody should do; `None` where the message says it all.
    pub fn mend(&self) -> Option<&'static str> {
        match self {
            Self::File { .. } | Self::Pem { .. } | Self::Identity { .. } => {
                Some("check ca, client-cert and client-key in [forward.elasticsearch]")
            }
            Self::Auth(_) => Some("check the files named by password, cloud-auth or api-key"),
            Self::OtherCertificates { .. } => Some(
                "compare with `openssl x509 -noout -fingerprint -sha256 -in http_ca.crt`; where \
                 the server shows its own certificate alone, give its CA's as ca",
            ),
            Self::OwnCertificate { .. } => Some(
                "give the CA's fingerprint, once you know it to be yours, or its certificate as ca",
            ),
            Self::NoHost(failures) => failures.iter().find_map(Self::mend),
            Self::NoAnswer { mend, .. } => Some(mend),
            Self::Build { .. } | Self::Refused(_) | Self::Unfit(_) => None,
        }
    }

    /// May pass by itself.
    fn is_transient(&self) -> bool {
        match self {
            Self::NoAnswer { .. } => true,
            Self::NoHost(failures) => failures.iter().any(Self::is_transient),
            Self::File { .. }
            | Self::Identity { .. }
            | Self::Auth(_)
            | Self::Refused(_)
            | Self::OtherCertificates { .. }
            | Self::OwnCertificate { .. }
            | Self::Pem { .. }
            | Self::Build { .. }
            | Self::Unfit(_) => false,
        }
    }

    /// The crate's error names three layers of libraries before it comes to the point.
    pub(super) fn no_answer(
        url: &Url,
        http_proxy: Option<&str>,
        error: &(dyn Error + 'static),
    ) -> Self {
        debug!("no answer from {url}: {}", Chain(error));
        let (reason, mut mend) = explain(error);
        if mend == CHECK_THAT_IT_RUNS && url.port().is_none() {
            mend = CHECK_PORT;
        }
        if reason == HANGS_UP && url.scheme() == "http" {
            mend = CHECK_SCHEME;
        }
        match http_proxy {
            None => Self::NoAnswer {
                url: url.to_string(),
                reason,
                mend,
            },
            Some(http_proxy) => Self::NoAnswer {
                url: format!("{url} by way of the HTTP proxy {http_proxy}"),
                reason,
                // With a proxy nothing else of ours is resolved or connected to.
                mend: if [CHECK_HOSTS, CHECK_PORT, CHECK_THAT_IT_RUNS].contains(&mend) {
                    CHECK_PROXY
                } else {
                    mend
                },
            },
        }
    }
}

/// How an error begins whose next word is a URL.
const NO_ANSWER: &str = "no answer from Elasticsearch at ";

const CHECK_HOSTS: &str = "check hosts (or cloud-id) in [forward.elasticsearch]";

const CHECK_THAT_IT_RUNS: &str =
    "check hosts in [forward.elasticsearch], and that Elasticsearch runs there";

const CHECK_PORT: &str = "check hosts in [forward.elasticsearch]: without a port they mean 80 or \
                          443, and Elasticsearch's own is 9200";

const HANGS_UP: &str = "it closes the connection without an answer";

const CHECK_SCHEME: &str = "check hosts in [forward.elasticsearch]: https:// in place of http://?";

const CHECK_PROXY: &str =
    "check HTTPS_PROXY, or name the host in NO_PROXY if it can be reached without";

fn each(failures: &[ClientError]) -> String {
    let failures = failures.iter().map(ToString::to_string);
    let at_each = failures.map(|text| text.replacen(NO_ANSWER, "", 1));
    format!("{NO_ANSWER}{}", at_each.collect::<Vec<_>>().join("; at "))
}

fn shown(fingerprints: &[CaFingerprint]) -> String {
    if fingerprints.is_empty() {
        return "none".to_owned();
    }
    let shown = fingerprints.iter().map(CaFingerprint::to_string);
    shown.collect::<Vec<_>>().join(", ")
}

/// What the crate's error means in plain words, and what to do about it.
fn explain(error: &(dyn Error + 'static)) -> (String, &'static str) {
    let text = Chain(error).to_string();
    let has = |part: &str| text.contains(part);
    // An authority made anew under its old name, as Elasticsearch's own are, gives the second.
    let (reason, mend) = if let Some((_, alert)) = text.split_once("received fatal alert: ") {
        match alert {
            "CertificateRequired" => (
                "it asks for a client certificate",
                "set client-cert and client-key in [forward.elasticsearch]",
            ),
            "CertificateExpired" => (
                "it says that our client certificate has expired",
                "renew the files of client-cert and client-key in [forward.elasticsearch]",
            ),
            "UnknownCA"
            | "BadCertificate"
            | "CertificateUnknown"
            | "CertificateRevoked"
            | "UnsupportedCertificate"
            | "DecryptError"
            | "AccessDenied" => (
                "it does not accept our client certificate",
                "give one of an authority that it trusts as client-cert and client-key in \
                 [forward.elasticsearch]",
            ),
            other => return (format!("it ended the TLS handshake: {other}"), CHECK_HOSTS),
        }
    } else if has("proxy authorization required") {
        (
            "the proxy wants a user and password",
            "set HTTPS_PROXY=http://user:password@host:port",
        )
    } else if has("tunnel error: unsuccessful") {
        ("the proxy does not let us through", CHECK_PROXY)
    } else if has("UnknownIssuer") || has("BadSignature") {
        (
            "its certificate comes from an authority that is not trusted here",
            "give that authority's certificate as ca in [forward.elasticsearch]",
        )
    } else if has("CaUsedAsEndEntity") {
        (
            "the certificate that it shows as its own is an authority's",
            "give the server one that an authority has issued, as `elasticsearch-certutil http` does",
        )
    } else if has("NotValidForName") || has("not valid for name") {
        (
            "its certificate is for another name",
            "write the certificate's name into hosts in [forward.elasticsearch]",
        )
    } else if has("certificate expired") || has("Expired") || has("certificate has expired") {
        (
            "its certificate has expired",
            "check this machine's clock, then the server's certificate",
        )
    } else if has("InvalidContentType") || has("corrupt message") {
        (
            "it does not speak TLS",
            "check hosts in [forward.elasticsearch]: http:// in place of https://?",
        )
    } else if has("Connection refused") {
        ("nothing listens there", CHECK_THAT_IT_RUNS)
    } else if has("connection closed before") || has("reset by peer") || has("Broken pipe") {
        (HANGS_UP, CHECK_HOSTS)
    } else if has("Too many open files") {
        ("too many open files", RAISE_OPEN_FILES)
    } else if has("failed to lookup address") || has("dns error") {
        ("the name does not resolve", CHECK_HOSTS)
    } else if has("timed out") {
        (
            "it did not answer in time",
            "see whether Elasticsearch is overloaded, or set request-timeout higher",
        )
    } else {
        let mut cause = error;
        while let Some(next) = cause.source() {
            cause = next;
        }
        return (cause.to_string(), CHECK_HOSTS);
    };
    (reason.to_owned(), mend)
}

/// Why the cluster cannot be used.
#[derive(Debug, Error)]
pub enum ServerError {
    /// No answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// It wants other credentials.
    #[error("Elasticsearch at {url} refuses the credentials: {error}")]
    Unauthorized {
        /// The host.
        url: String,
        /// Its words.
        error: ErrorAnswer,
    },
    /// Something else answers there.
    #[error("what answers at {url} is not Elasticsearch: it sends no X-Elastic-Product header")]
    OtherProduct {
        /// The host.
        url: String,
    },
    /// It does not work at the moment.
    #[error("Elasticsearch at {url} is not ready: {error}")]
    NotReady {
        /// The host.
        url: String,
        /// Its words.
        error: ErrorAnswer,
    },
    /// Older than what we know to work.
    #[error("Elasticsearch at {url} is version {version}; {OLDEST} or newer is needed")]
    TooOld {
        /// The host.
        url: String,
        /// What it is.
        version: Version,
    },
}

/// What to do where Elasticsearch answers 401.
pub(in crate::elastic) const CHECK_CREDENTIALS: &str = "check user and password, or api-key, in [forward.elasticsearch]; with client-cert alone, \
     Elasticsearch needs a PKI realm that trusts its authority";

impl ServerError {
    /// What somebody should do; `None` where waiting is all, or the message says it.
    pub fn mend(&self) -> Option<&'static str> {
        match self {
            Self::Client(error) => error.mend(),
            Self::Unauthorized { .. } => Some(CHECK_CREDENTIALS),
            Self::OtherProduct { .. } => Some(
                "check hosts in [forward.elasticsearch], and any proxy on the way; OpenSearch and \
                 Elasticsearch before 7.14 are not supported",
            ),
            Self::NotReady { .. } | Self::TooOld { .. } => None,
        }
    }

    /// Passes by itself, or so it seems: the server is away, starting or busy.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Client(failed) => failed.is_transient(),
            Self::NotReady { .. } => true,
            Self::Unauthorized { .. } | Self::OtherProduct { .. } | Self::TooOld { .. } => false,
        }
    }
}

/// What Elasticsearch says went wrong. Read leniently: `error` is an object, but a text where no
/// handler was found, and a proxy in between may answer with anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorAnswer {
    /// HTTP status.
    pub status: u16,
    /// `security_exception` and the like; empty if the answer names none.
    pub error_type: String,
    /// Elasticsearch's words; empty if there are none.
    pub reason: String,
}

impl ErrorAnswer {
    /// Reads an answer's body.
    pub fn read(answer: &Answer) -> Self {
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let error = &body["error"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut reason = match error.as_str() {
            Some(reason) => reason.to_owned(),
            None => text(&error["reason"]),
        };
        // Of a search it is said only there why the shards have failed.
        let cause = &error["root_cause"][0];
        if let Some(kind) = cause["type"].as_str().filter(|kind| error["type"] != *kind) {
            let why = text(&cause["reason"]);
            let colon = if why.is_empty() { "" } else { ": " };
            reason = format!("{reason} ({kind}{colon}{why})");
        }
        // Only there is it said that a key has expired.
        if let Some(why) = error["additional_unsuccessful_credentials"].as_str() {
            reason = format!("{reason} ({why})");
        }
        Self {
            status: answer.status,
            error_type: text(&error["type"]),
            reason,
        }
    }
}

impl ErrorAnswer {
    /// The index, or the cluster, takes this from nobody.
    pub fn is_block(&self) -> bool {
        self.error_type == "cluster_block_exception"
    }
}

impl fmt::Display for ErrorAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status {}", self.status)?;
        if !self.error_type.is_empty() {
            write!(f, ", {}", self.error_type)?;
        }
        if !self.reason.is_empty() {
            write!(f, ": {}", self.reason)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn error_answers_are_read_leniently() {
        let read = |status, body: &'static str| {
            let body = Bytes::from_static(body.as_bytes());
            ErrorAnswer::read(&Answer {
                host: String::new(),
                status,
                body,
                is_elasticsearch: true,
                retry_after: None,
            })
            .to_string()
        };
        let typed = r#"{"error":{"type":"security_exception","reason":"no"},"status":403}"#;
        assert_eq!(read(403, typed), "status 403, security_exception: no");
        let shards = r#"{"error":{"root_cause":[{"type":"task_cancelled_exception","reason":"closed"}],
            "type":"search_phase_execution_exception","reason":"all shards failed"},"status":400}"#;
        assert_eq!(
            read(400, shards),
            "status 400, search_phase_execution_exception: all shards failed \
             (task_cancelled_exception: closed)"
        );
        let silent = r#"{"error":{"root_cause":[{"type":"no_shard_available","reason":null}],
            "type":"search_phase_execution_exception","reason":"all shards failed"},"status":503}"#;
        assert_eq!(
            read(503, silent),
            "status 503, search_phase_execution_exception: all shards failed (no_shard_available)"
        );
        let text = r#"{"error":"no handler found for uri [/x]"}"#;
        assert_eq!(read(400, text), "status 400: no handler found for uri [/x]");
        assert_eq!(read(502, "<html>bad gateway</html>"), "status 502");
        assert_eq!(read(413, ""), "status 413");
    }
}
