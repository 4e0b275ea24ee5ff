//! Reaches Elasticsearch: hosts with fail-over, credentials, certificates, time limits.
//!
//! The `elasticsearch` crate makes one attempt, knows no time limit of its own, gives `Ok` for any
//! status and does not follow which host is well; so time limits, fail-over and the reading of
//! statuses are here, one transport for each host. Retries are the caller's.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use elasticsearch::auth::{ClientCertificate, Credentials};
use elasticsearch::cert::{Certificate, CertificateValidation};
pub use elasticsearch::http::Method;
use elasticsearch::http::Url;
use elasticsearch::http::headers::{
    ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue,
};
use elasticsearch::http::transport::{
    BuildError, SingleNodeConnectionPool, Transport, TransportBuilder,
};
use serde_json::Value;
use thiserror::Error;
use tracing::debug;

use crate::config::{Auth, ElasticsearchConfig};
use crate::elastic::assets::Version;
use crate::output::Chain;

/// A cluster's way in.
#[derive(Debug)]
pub struct Client {
    hosts: Vec<Host>,
    /// The host that answered last.
    current: AtomicUsize,
    timeout: Duration,
}

#[derive(Debug)]
struct Host {
    url: Url,
    transport: Transport,
}

/// What Elasticsearch, or whatever sits there, answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The body, whole.
    pub body: Bytes,
    /// The answer carries the header by which Elasticsearch names itself.
    pub is_elasticsearch: bool,
}

/// What a request carries.
#[derive(Clone, Debug)]
pub enum Body {
    /// Nothing.
    Empty,
    /// JSON.
    Json(Bytes),
    /// NDJSON as it is.
    Ndjson(Bytes),
    /// NDJSON, already gzipped.
    GzippedNdjson(Bytes),
}

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
    /// The transport does not accept the settings.
    #[error("cannot set up the connection to {url}")]
    Build {
        /// The host.
        url: Url,
        /// What it does not accept.
        #[source]
        source: BuildError,
    },
    /// No host gave an answer.
    #[error("no answer from Elasticsearch at {url}: {reason}")]
    NoAnswer {
        /// The host that was asked last.
        url: Url,
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
            Self::File { .. } | Self::Pem { .. } => {
                Some("check ca, client-cert and client-key in [forward.elasticsearch]")
            }
            Self::NoAnswer { mend, .. } => Some(mend),
            Self::Build { .. } | Self::Unfit(_) => None,
        }
    }

    /// The crate's error names three layers of libraries before it comes to the point.
    fn no_answer(url: &Url, error: &elasticsearch::Error) -> Self {
        debug!("no answer from {url}: {}", Chain(error));
        let (reason, mend) = explain(error);
        Self::NoAnswer {
            url: url.clone(),
            reason,
            mend,
        }
    }
}

/// What the crate's error means in plain words, and what to do about it.
fn explain(error: &elasticsearch::Error) -> (String, &'static str) {
    let text = Chain(error).to_string();
    let has = |part: &str| text.contains(part);
    let check_hosts = "check hosts (or cloud-id) in [forward.elasticsearch]";
    // An authority made anew under its old name, as Elasticsearch's own are, gives the second.
    let (reason, mend) = if has("UnknownIssuer") || has("BadSignature") {
        (
            "its certificate comes from an authority that is not trusted here",
            "give that authority's certificate as ca in [forward.elasticsearch]",
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
        (
            "nothing listens there",
            "check hosts in [forward.elasticsearch], and that Elasticsearch runs there",
        )
    } else if has("failed to lookup address") || has("dns error") {
        ("the name does not resolve", check_hosts)
    } else if has("timed out") {
        (
            "it did not answer in time",
            "see whether Elasticsearch is overloaded, or set request-timeout higher",
        )
    } else {
        let mut cause: &dyn Error = error;
        while let Some(next) = cause.source() {
            cause = next;
        }
        return (cause.to_string(), check_hosts);
    };
    (reason.to_owned(), mend)
}

impl Client {
    /// Builds one transport for each host. Connects nowhere yet.
    ///
    /// # Errors
    /// If a certificate file cannot be read or used.
    pub fn new(config: &ElasticsearchConfig) -> Result<Self, ClientError> {
        let identity = match &config.client_certificate {
            Some(files) => {
                let mut pem = read("the client certificate", &files.certificate)?;
                pem.push(b'\n');
                pem.extend(read("the client key", &files.key)?);
                Some(pem)
            }
            None => None,
        };
        let mut headers = HeaderMap::new();
        if let Some(auth) = &config.auth {
            let mut value = HeaderValue::from_str(&authorization(auth))
                .expect("base64 and ASCII words are legal in a header");
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let mut hosts = Vec::new();
        for host in &config.hosts {
            let url = Url::parse(host.as_str()).expect("the configuration has checked it");
            let mut builder = TransportBuilder::new(SingleNodeConnectionPool::new(url.clone()))
                .headers(headers.clone())
                .timeout(config.request_timeout);
            if is_loopback(&url) {
                // A proxy for the outside must not see what stays on this machine.
                builder = builder.disable_proxy();
            }
            if let Some(path) = &config.ca {
                let ca = pem("the certificate authority", path, Certificate::from_pem)?;
                builder = builder.cert_validation(CertificateValidation::Full(ca));
            }
            if let Some(pem) = &identity {
                let certificate = ClientCertificate::Pem(pem.clone());
                builder = builder.auth(Credentials::Certificate(certificate));
            }
            let transport = builder.build().map_err(|source| ClientError::Build {
                url: url.clone(),
                source,
            })?;
            hosts.push(Host { url, transport });
        }
        assert!(!hosts.is_empty(), "the configuration demands a host");
        Ok(Self {
            hosts,
            current: AtomicUsize::new(0),
            timeout: config.request_timeout,
        })
    }

    /// One request; goes on to the next host where one gives no answer.
    ///
    /// # Errors
    /// If no host answers. Any answer, whatever its status, is `Ok`.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<Answer, ClientError> {
        let first = self.current.load(Ordering::Relaxed);
        let mut last = None;
        for turn in 0..self.hosts.len() {
            let place = (first + turn) % self.hosts.len();
            let host = &self.hosts[place];
            match self.ask(host, method, path, body.clone()).await {
                Ok(answer) => {
                    // One that is starting, stopping or behind a broken proxy answers with these:
                    // it is not asked again before the others.
                    let next = if (502..=504).contains(&answer.status) {
                        place + 1
                    } else {
                        place
                    };
                    self.current
                        .store(next % self.hosts.len(), Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(error) => last = Some(ClientError::no_answer(&host.url, &error)),
            }
        }
        // Whoever comes next starts with another host than the one that failed first.
        self.current
            .store((first + 1) % self.hosts.len(), Ordering::Relaxed);
        Err(last.expect("there is a host"))
    }

    async fn ask(
        &self,
        host: &Host,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<Answer, elasticsearch::Error> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let ndjson = HeaderValue::from_static("application/x-ndjson");
        let bytes = match body {
            Body::Empty => None,
            Body::Json(bytes) => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                Some(bytes)
            }
            Body::Ndjson(bytes) => {
                headers.insert(CONTENT_TYPE, ndjson);
                Some(bytes)
            }
            Body::GzippedNdjson(bytes) => {
                headers.insert(CONTENT_TYPE, ndjson);
                headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                Some(bytes)
            }
        };
        let response = host
            .transport
            .send(
                method,
                path,
                headers,
                None::<&()>,
                bytes,
                Some(self.timeout),
            )
            .await?;
        let status = response.status_code().as_u16();
        let product = response.headers().get("x-elastic-product");
        let is_elasticsearch = product.is_some_and(|name| name == "Elasticsearch");
        let body = response.bytes().await?;
        Ok(Answer {
            status,
            body,
            is_elasticsearch,
        })
    }

    /// The first host's address, for messages.
    pub fn address(&self) -> &str {
        self.hosts[0].url.as_str()
    }

    /// All hosts are on this machine.
    pub fn is_local(&self) -> bool {
        self.hosts.iter().all(|host| is_loopback(&host.url))
    }

    /// Asks the cluster who it is.
    ///
    /// # Errors
    /// If there is no answer, it is no Elasticsearch, it is too old, or refuses the credentials.
    pub async fn server(&self) -> Result<Server, ServerError> {
        let answer = self.request(Method::Get, "/", Body::Empty).await?;
        let url = self.hosts[self.current.load(Ordering::Relaxed)]
            .url
            .as_str();
        let error = ErrorAnswer::read(&answer);
        match answer.status {
            401 => {
                return Err(ServerError::Unauthorized {
                    url: url.into(),
                    error,
                });
            }
            // A writer without `monitor` may do all it needs but this. The refusal may come before
            // Elasticsearch has set the header by which it names itself.
            403 if answer.is_elasticsearch || error.error_type == "security_exception" => {
                return Ok(Server {
                    version: None,
                    serverless: false,
                });
            }
            200..=299 if answer.is_elasticsearch => {}
            200..=299 => return Err(ServerError::OtherProduct { url: url.into() }),
            status if answer.is_elasticsearch || status >= 500 || status == 429 => {
                return Err(ServerError::NotReady {
                    url: url.into(),
                    error,
                });
            }
            _ => return Err(ServerError::OtherProduct { url: url.into() }),
        }
        let root: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let number = root["version"]["number"].as_str().unwrap_or_default();
        let serverless = root["version"]["build_flavor"] == "serverless";
        let Some(version) = Version::parse(number) else {
            return Err(ServerError::OtherProduct { url: url.into() });
        };
        if version < OLDEST && !serverless {
            return Err(ServerError::TooOld {
                url: url.into(),
                version,
            });
        }
        Ok(Server {
            version: Some(version),
            serverless,
        })
    }
}

impl Client {
    /// The privileges of a writer on `indices` that these credentials lack.
    ///
    /// # Errors
    /// If there is no answer, or one that says nothing about privileges.
    pub async fn lacks_privileges(&self, indices: &str) -> Result<Vec<String>, ClientError> {
        let wanted = ["create_doc", "auto_configure"];
        let body = serde_json::json!({
            "cluster": ["monitor"],
            "index": [{"names": [indices], "privileges": wanted}],
        });
        let path = "/_security/user/_has_privileges";
        let answer = self
            .request(Method::Post, path, Body::Json(body.to_string().into()))
            .await?;
        let error = ErrorAnswer::read(&answer);
        // Where security is switched off everybody may do everything, and nobody answers.
        if answer.status == 400 && error.reason.contains("no handler found") {
            return Ok(Vec::new());
        }
        if answer.status != 200 {
            return Err(ClientError::Unfit(format!(
                "cannot ask for privileges: {error}"
            )));
        }
        let has: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let mut lacking = Vec::new();
        if has["cluster"]["monitor"] != true {
            lacking.push("cluster privilege monitor".to_owned());
        }
        for privilege in wanted {
            if has["index"][indices][privilege] != true {
                lacking.push(privilege.to_owned());
            }
        }
        Ok(lacking)
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host_str() {
        Some("localhost" | "[::1]") => true,
        Some(host) => host
            .parse::<std::net::Ipv4Addr>()
            .is_ok_and(|ip| ip.is_loopback()),
        None => false,
    }
}

fn read(what: &'static str, path: &PathBuf) -> Result<Vec<u8>, ClientError> {
    std::fs::read(path).map_err(|source| ClientError::File {
        what,
        path: path.clone(),
        source,
    })
}

fn pem<T>(
    what: &'static str,
    path: &PathBuf,
    parse: impl Fn(&[u8]) -> Result<T, elasticsearch::Error>,
) -> Result<T, ClientError> {
    parse(&read(what, path)?).map_err(|source| ClientError::Pem {
        what,
        path: path.clone(),
        source,
    })
}

fn authorization(auth: &Auth) -> String {
    use base64::Engine;
    match auth {
        Auth::Basic { user, password } => {
            let pair = format!("{user}:{}", password.expose());
            format!("Basic {}", base64::prelude::BASE64_STANDARD.encode(pair))
        }
        Auth::ApiKey(key) => format!("ApiKey {}", key.expose()),
    }
}

/// Who the cluster says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    /// Absent where the credentials do not allow asking.
    pub version: Option<Version>,
    /// Elastic Cloud Serverless.
    pub serverless: bool,
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

impl ServerError {
    /// What somebody should do; `None` where waiting is all, or the message says it.
    pub fn mend(&self) -> Option<&'static str> {
        match self {
            Self::Client(error) => error.mend(),
            Self::Unauthorized { .. } => {
                Some("check user and password, or api-key, in [forward.elasticsearch]")
            }
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
            Self::Client(ClientError::NoAnswer { .. }) | Self::NotReady { .. } => true,
            Self::Client(
                ClientError::File { .. }
                | ClientError::Pem { .. }
                | ClientError::Build { .. }
                | ClientError::Unfit(_),
            )
            | Self::Unauthorized { .. }
            | Self::OtherProduct { .. }
            | Self::TooOld { .. } => false,
        }
    }
}

/// The oldest Elasticsearch that works.
pub const OLDEST: Version = Version::new(8, 4, 1);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
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
        let reason = match error.as_str() {
            Some(reason) => reason.to_owned(),
            None => text(&error["reason"]),
        };
        Self {
            status: answer.status,
            error_type: text(&error["type"]),
            reason,
        }
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
    use super::*;

    #[test]
    fn error_answers_are_read_leniently() {
        let read = |status, body: &'static str| {
            let body = Bytes::from_static(body.as_bytes());
            ErrorAnswer::read(&Answer {
                status,
                body,
                is_elasticsearch: true,
            })
            .to_string()
        };
        let typed = r#"{"error":{"type":"security_exception","reason":"no"},"status":403}"#;
        assert_eq!(read(403, typed), "status 403, security_exception: no");
        let text = r#"{"error":"no handler found for uri [/x]"}"#;
        assert_eq!(read(400, text), "status 400: no handler found for uri [/x]");
        assert_eq!(read(502, "<html>bad gateway</html>"), "status 502");
        assert_eq!(read(413, ""), "status 413");
    }
}
