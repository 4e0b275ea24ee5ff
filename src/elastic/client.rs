//! Reaches Elasticsearch: hosts with fail-over, credentials, certificates, time limits.
//!
//! The `elasticsearch` crate makes one attempt, knows no time limit of its own, gives `Ok` for any
//! status and does not follow which host is well; so time limits, fail-over and the reading of
//! statuses are here, one transport for each host. Retries are the caller's.

mod error;

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use elasticsearch::auth::{ClientCertificate, Credentials};
use elasticsearch::cert::{Certificate, CertificateValidation};
pub use elasticsearch::http::Method;
use elasticsearch::http::Url;
use elasticsearch::http::headers::{
    ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER,
};
use elasticsearch::http::transport::{SingleNodeConnectionPool, Transport, TransportBuilder};
use serde_json::Value;

use crate::config::{Auth, ElasticsearchConfig};
use crate::elastic::assets::Version;

pub use self::error::{ClientError, ErrorAnswer, ServerError};

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
    is_loopback: bool,
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
    /// How long the server, or a proxy before it, asks to be left alone.
    pub retry_after: Option<Duration>,
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
            if host.is_loopback() {
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
            let is_loopback = host.is_loopback();
            hosts.push(Host {
                url,
                transport,
                is_loopback,
            });
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
        let retry_after = response.headers().get(RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| seconds_or_date(value.to_str().ok()?));
        let body = response.bytes().await?;
        Ok(Answer {
            status,
            body,
            is_elasticsearch,
            retry_after,
        })
    }

    /// The first host's address, for messages.
    pub fn address(&self) -> &str {
        self.hosts[0].url.as_str()
    }

    /// All hosts are on this machine.
    pub fn is_local(&self) -> bool {
        self.hosts.iter().all(|host| host.is_loopback)
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

    /// The privileges of a writer on `indices` that these credentials lack.
    ///
    /// # Errors
    /// If there is no answer, or one that says nothing about privileges.
    pub async fn lacks_privileges(&self, indices: &str) -> Result<Lacking, ClientError> {
        let cluster = &["monitor", "read_ilm"];
        let wanted = &["create_doc", "auto_configure"];
        self.lacks(cluster, indices, wanted).await
    }

    /// Whether these credentials lack the privilege to read `indices`.
    ///
    /// # Errors
    /// If there is no answer, or one that says nothing about privileges.
    pub async fn lacks_read(&self, indices: &str) -> Result<bool, ClientError> {
        let lacking = self.lacks(&[], indices, &["read"]).await?;
        Ok(!lacking.index.is_empty())
    }

    async fn lacks(
        &self,
        cluster: &[&'static str],
        indices: &str,
        wanted: &[&'static str],
    ) -> Result<Lacking, ClientError> {
        let body = serde_json::json!({
            "cluster": cluster,
            "index": [{"names": [indices], "privileges": wanted}],
        });
        let path = "/_security/user/_has_privileges";
        let answer = self
            .request(Method::Post, path, Body::Json(body.to_string().into()))
            .await?;
        let error = ErrorAnswer::read(&answer);
        // Where security is switched off everybody may do everything, and nobody answers.
        if answer.status == 400 && error.reason.contains("no handler found") {
            return Ok(Lacking::default());
        }
        if answer.status != 200 {
            return Err(ClientError::Unfit(format!(
                "cannot ask for privileges: {error}"
            )));
        }
        let has: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let lacks = |privileges: &[&'static str], has: &Value| {
            let privileges = privileges.iter().copied();
            privileges.filter(|name| has[*name] != true).collect()
        };
        Ok(Lacking {
            cluster: lacks(cluster, &has["cluster"]),
            index: lacks(wanted, &has["index"][indices]),
        })
    }

    /// How far this machine's clock is ahead of Elasticsearch's; negative if it is behind. `None`
    /// where the server does not tell its time.
    ///
    /// # Errors
    /// If there is no answer.
    pub async fn clock_ahead(&self) -> Result<Option<TimeDelta>, ClientError> {
        let path = "/_nodes/_local/stats/process?filter_path=nodes.*.timestamp";
        let before = Utc::now();
        let answer = self.request(Method::Get, path, Body::Empty).await?;
        let after = Utc::now();
        let nodes: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let node = nodes["nodes"]
            .as_object()
            .and_then(|nodes| nodes.values().next());
        let theirs =
            node.and_then(|node| DateTime::from_timestamp_millis(node["timestamp"].as_i64()?));
        // It was asked some time between the two.
        Ok(theirs.map(|theirs| before + (after - before) / 2 - theirs))
    }
}

/// Privileges of a writer that somebody lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lacking {
    /// On the cluster: without them one can write, but not look.
    pub cluster: Vec<&'static str>,
    /// On the indices: without them nothing can be written.
    pub index: Vec<&'static str>,
}

/// The value of a `Retry-After`: a count of seconds, or a date.
fn seconds_or_date(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = DateTime::parse_from_rfc2822(text).ok()?;
    (date.to_utc() - Utc::now()).to_std().ok()
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

/// The oldest Elasticsearch that works.
pub const OLDEST: Version = Version::new(8, 4, 1);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retry_after_is_seconds_or_a_date() {
        assert_eq!(seconds_or_date("120"), Some(Duration::from_secs(120)));
        let later = seconds_or_date("Fri, 31 Dec 9999 23:59:59 GMT");
        assert!(later.is_some_and(|later| later > Duration::from_secs(3600)));
        for text in ["Sun, 06 Nov 1994 08:49:37 GMT", "-1", "soon", ""] {
            assert_eq!(seconds_or_date(text), None, "{text}");
        }
    }
}
