//! Reaches Elasticsearch: hosts with fail-over, credentials, certificates, time limits.
//!
//! The `elasticsearch` crate makes one attempt, knows no time limit of its own, gives `Ok` for any
//! status and does not follow which host is well; so time limits, fail-over and the reading of
//! statuses are here, one transport for each host. Retries are the caller's.
//!
//! One host is asked for as long as it answers; then the next, and so on around, so that one that
//! was away is asked again once the others fail.

mod access;
mod error;
mod fresh;
mod pinned;

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
pub use elasticsearch::http::Method;
use elasticsearch::http::headers::{HeaderMap, HeaderValue};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::config::{ElasticsearchConfig, HostUrl};
use crate::elastic::assets::Version;

pub(in crate::elastic) use self::error::CHECK_CREDENTIALS;
pub use self::error::{ClientError, ErrorAnswer, ServerError};

use self::access::{Access, Files};

/// For so long a [patient](Client::patient) client asks again, and how often.
const PATIENCE: Duration = Duration::from_secs(10);
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// A cluster's way in. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
    is_patient: bool,
}

#[derive(Debug)]
struct Shared {
    config: ElasticsearchConfig,
    /// What each request bears beside the credentials.
    headers: HeaderMap,
    /// Made with what the files held last that was good. Replaced as a whole.
    access: Mutex<Arc<Access>>,
    /// The place of the host that answered last.
    current: AtomicUsize,
}

/// What Elasticsearch, or whatever sits there, answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The address of the host that gave it.
    pub host: String,
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
    /// A form whose one part, `file`, is a file of NDJSON.
    NdjsonFile(Bytes),
    /// NDJSON, already gzipped.
    GzippedNdjson(Bytes),
}

impl Client {
    /// Prepares one transport for each host. Connects nowhere yet.
    ///
    /// # Errors
    /// If a file cannot be read or used.
    pub fn new(config: &ElasticsearchConfig) -> Result<Self, ClientError> {
        Self::with_headers(config, HeaderMap::new())
    }

    /// The same credentials and certificates for the Kibana at `url`, which wants a header of its
    /// own with everything that writes.
    ///
    /// # Errors
    /// If a file cannot be read or used.
    pub fn for_kibana(config: &ElasticsearchConfig, url: &HostUrl) -> Result<Self, ClientError> {
        let config = ElasticsearchConfig {
            hosts: vec![url.clone()],
            ..config.clone()
        };
        let mut headers = HeaderMap::new();
        headers.insert("kbn-xsrf", HeaderValue::from_static("true"));
        Self::with_headers(&config, headers)
    }

    fn with_headers(config: &ElasticsearchConfig, headers: HeaderMap) -> Result<Self, ClientError> {
        assert!(!config.hosts.is_empty(), "the configuration demands a host");
        let access = Access::new(config, Files::read(config)?, &headers)?;
        let shared = Shared {
            config: config.clone(),
            headers,
            access: Mutex::new(Arc::new(access)),
            current: AtomicUsize::new(0),
        };
        Ok(Self {
            shared: Arc::new(shared),
            is_patient: false,
        })
    }

    /// For a command after which nobody asks again: where the answer is 429 or 503, it asks again for
    /// some seconds. So Elasticsearch answers while it starts, and of an index that was made just now
    /// until its shards are there. What changes something is sent once all the same.
    #[must_use]
    pub fn patient(self) -> Self {
        Self {
            is_patient: true,
            ..self
        }
    }

    fn access(&self) -> Arc<Access> {
        let access = self.shared.access.lock();
        access.unwrap_or_else(PoisonError::into_inner).clone()
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
        let began = Instant::now();
        loop {
            let answer = self
                .request_by(&self.access(), method, path, body.clone())
                .await?;
            let passes = matches!(answer.status, 429 | 503)
                && self.is_patient
                && only_asks(method, path)
                && began.elapsed() < PATIENCE;
            if !passes {
                return Ok(answer);
            }
            sleep(ASK_AGAIN).await;
        }
    }

    async fn request_by(
        &self,
        access: &Access,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<Answer, ClientError> {
        let (hosts, current) = (&access.hosts, &self.shared.current);
        let first = current.load(Ordering::Relaxed);
        let mut failures = Vec::new();
        for turn in 0..hosts.len() {
            let place = (first + turn) % hosts.len();
            match hosts[place].ask(method, path, body.clone()).await {
                Ok(answer) => {
                    // One that is starting, stopping or behind a broken proxy answers with these:
                    // it is not asked again before the others.
                    let next = if (502..=504).contains(&answer.status) {
                        place + 1
                    } else {
                        place
                    };
                    current.store(next % hosts.len(), Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(failed) => failures.push(failed),
            }
        }
        // Whoever comes next starts with another host than the one that failed first.
        current.store((first + 1) % hosts.len(), Ordering::Relaxed);
        let last = failures.pop().expect("there is a host");
        if failures.is_empty() {
            return Err(last);
        }
        failures.push(last);
        Err(ClientError::NoHost(failures))
    }

    /// Whoever asks next asks another host, if there is one: for somebody who has waited for this one
    /// for less than its time limit.
    pub fn turn_to_the_next_host(&self) {
        let (hosts, current) = (self.shared.config.hosts.len(), &self.shared.current);
        let next = (current.load(Ordering::Relaxed) + 1) % hosts;
        current.store(next, Ordering::Relaxed);
    }

    /// The address of the host that is in use, for messages.
    pub fn address(&self) -> &str {
        self.shared.config.hosts[self.shared.current.load(Ordering::Relaxed)].as_str()
    }

    /// All hosts are on this machine.
    pub fn is_local(&self) -> bool {
        self.shared.config.hosts.iter().all(HostUrl::is_loopback)
    }

    /// Asks the cluster who it is.
    ///
    /// # Errors
    /// If there is no answer, it is no Elasticsearch, it is too old, or refuses the credentials.
    pub async fn server(&self) -> Result<Server, ServerError> {
        let answer = self.request(Method::Get, "/", Body::Empty).await?;
        let url = answer.host.as_str();
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

    /// Those of some privileges on an index that these credentials lack.
    ///
    /// # Errors
    /// If there is no answer, or one that says nothing about privileges.
    pub async fn lacks_on(
        &self,
        index: &str,
        privileges: &[&'static str],
    ) -> Result<Vec<&'static str>, ClientError> {
        let lacking = self.lacks(&[], index, privileges).await?;
        Ok(lacking.index)
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

/// Whether a request changes nothing.
fn only_asks(method: Method, path: &str) -> bool {
    let path = path.split('?').next().unwrap_or_default();
    let asks = ["_search", "_mget", "_count", "_has_privileges"];
    let is_question = || {
        path.rsplit('/')
            .next()
            .is_some_and(|end| asks.contains(&end))
    };
    method == Method::Get || (method == Method::Post && is_question())
}

/// Privileges of a writer that somebody lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lacking {
    /// On the cluster: without them one can write, but not look.
    pub cluster: Vec<&'static str>,
    /// On the indices: without them nothing can be written.
    pub index: Vec<&'static str>,
}

/// Who the cluster says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    /// Absent where the credentials do not allow asking.
    pub version: Option<Version>,
    /// Elastic Cloud Serverless.
    pub serverless: bool,
}

impl fmt::Display for Server {
    /// Its version; that of a serverless project tells nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            _ if self.serverless => f.write_str("Serverless"),
            Some(version) => version.fmt(f),
            None => f.write_str("of unknown version"),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_something_is_no_question() {
        for (method, path, is_question) in [
            (Method::Get, "/_security/role/a", true),
            (Method::Post, "/a/_search?ignore_unavailable=true", true),
            (Method::Post, "/_security/user/_has_privileges", true),
            (Method::Post, "/_security/api_key", false),
            (Method::Post, "/a/_bulk?filter_path=items", false),
            (Method::Put, "/a/_create/_search", false),
        ] {
            assert_eq!(only_asks(method, path), is_question, "{method:?} {path}");
        }
    }
}
