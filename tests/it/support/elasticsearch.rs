//! A real Elasticsearch (see `tests/elasticsearch/README.md`): one of its own for a test that kills
//! it or changes its settings, else one that all tests of this process share, each with indices of
//! its own.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::ops::Deref;
use std::path::Path;
use std::process::{ChildStdin, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::http::{self, Answer};
use super::{scratch, script, script_answer, wait_until};

/// The newest version that the program supports.
pub(crate) const NEWEST: &str = "9.5.3";

/// The newest of 8.x, which has security as well; others of 8.x do not.
pub(crate) const NEWEST_8: &str = "8.19.21";

/// The oldest one; another of 8.x where `ELASTICSEARCH_8` names it. It is built without security.
pub(crate) fn oldest() -> &'static str {
    static VERSION: LazyLock<String> =
        LazyLock::new(|| std::env::var("ELASTICSEARCH_8").unwrap_or_else(|_| "8.4.1".to_owned()));
    &VERSION
}

/// The newest one, for tests on users, roles and keys; another that has security where
/// `ELASTICSEARCH_WITH_SECURITY` names it.
pub(crate) fn with_security() -> &'static str {
    static VERSION: LazyLock<String> = LazyLock::new(|| {
        std::env::var("ELASTICSEARCH_WITH_SECURITY").unwrap_or_else(|_| NEWEST.to_owned())
    });
    &VERSION
}

/// The password of the user `elastic` where security is on.
pub(crate) const PASSWORD: &str = "changeme";

/// Documents in one page of [`Client::all_documents`]: a few MiB.
const PAGE: usize = 5_000;

/// What to start.
#[derive(Clone, Copy)]
pub(crate) struct Options {
    pub(crate) version: &'static str,
    /// Users, roles and API keys; of 8.x only for [`NEWEST_8`].
    pub(crate) security: bool,
    /// As for java's `-Xmx`.
    pub(crate) heap: &'static str,
    /// More settings of the node: `key=value`, separated by commas.
    pub(crate) extra: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            version: NEWEST,
            security: false,
            heap: "512m",
            extra: "",
        }
    }
}

/// A running node. As a [`Client`] it is its superuser.
pub(crate) struct Elasticsearch {
    options: Options,
    port: u16,
    /// None for the shared ones, whose folder goes with the node.
    directory: Option<TempDir>,
    client: Client,
    /// The node runs for as long as this is open. The kernel closes it with this process, so a node
    /// outlives neither a crash nor the statics, which nobody drops.
    lifeline: Option<ChildStdin>,
}

impl Elasticsearch {
    /// Starts a node for the caller alone, on a free port, with an empty data folder. `None` where
    /// it cannot be had and need not be.
    ///
    /// # Panics
    /// If the node does not start, or [`super::require_or_skip`] says so.
    pub(crate) fn start(options: Options) -> Option<Self> {
        let directory = scratch("elasticsearch");
        let lifeline = up(options, free_port(), directory.path(), "1");
        Self::reached(options, lifeline, Some(directory))
    }

    /// The node that all tests of this process share; started by the first that asks.
    pub(crate) fn shared(version: &'static str, security: bool) -> Option<&'static Self> {
        type Shared = BTreeMap<(&'static str, bool), Option<&'static Elasticsearch>>;
        static SHARED: Mutex<Shared> = Mutex::new(BTreeMap::new());
        // Others wait meanwhile: two Java machines that start at once are slower than one after the
        // other. After a panic the next one tries again, and fails with a reason of its own.
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        *shared.entry((version, security)).or_insert_with(|| {
            let options = Options {
                version,
                security,
                ..Options::default()
            };
            let directory = scratch("elasticsearch").keep();
            let lifeline = up(options, 0, &directory, "remove");
            let server = Self::reached(options, lifeline, None)?;
            Some(Box::leak(Box::new(server)))
        })
    }

    fn reached(
        options: Options,
        up: Option<(u16, ChildStdin)>,
        directory: Option<TempDir>,
    ) -> Option<Self> {
        let (port, lifeline) = up?;
        let anyone = Client {
            address: format!("127.0.0.1:{port}"),
            authorization: None,
        };
        let client = if options.security {
            anyone.with_password("elastic", PASSWORD)
        } else {
            anyone
        };
        Some(Self {
            options,
            port,
            directory,
            client,
            lifeline: Some(lifeline),
        })
    }

    /// `http://127.0.0.1:PORT`
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.client.address)
    }

    /// Its version: `9.5.3`.
    pub(crate) fn name(&self) -> &'static str {
        self.options.version
    }

    /// The first two parts of its version.
    pub(crate) fn version(&self) -> (u32, u32) {
        let mut parts = self.options.version.split('.').map(str::parse);
        match (parts.next(), parts.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
            _ => panic!("{} is no version", self.options.version),
        }
    }

    /// Whether it asks who one is.
    pub(crate) fn has_security(&self) -> bool {
        self.options.security
    }

    /// Ends the node on the spot (SIGKILL).
    pub(crate) fn kill(&mut self) {
        self.lifeline = None;
        let address = &self.client.address;
        wait_until("nothing listens any more", || {
            match TcpListener::bind(address) {
                Ok(_) => Ok(()),
                Err(error) => Err(format!("{address}: {error}")),
            }
        });
    }

    /// Starts a killed node again, on the same port and data.
    pub(crate) fn restart(&mut self) {
        let directory = self.directory.as_ref().expect("it is not a shared one");
        let (_, lifeline) = up(self.options, self.port, directory.path(), "1")
            .expect("what could be started once can be again");
        self.lifeline = Some(lifeline);
    }

    /// Makes a user, with a role of the same name.
    pub(crate) fn create_user(&self, name: &str, password: &str, role: &Value) -> Client {
        let put = |kind: &str, body: &Value| {
            self.request("PUT", &format!("/_security/{kind}/{name}"), body)
                .success()
        };
        put("role", role);
        put("user", &json!({"password": password, "roles": [name]}));
        self.client.with_password(name, password)
    }
}

impl Deref for Elasticsearch {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for Elasticsearch {
    fn drop(&mut self) {
        // Only once it has ended does its folder stay deleted.
        if self.lifeline.is_some() {
            self.kill();
        }
    }
}

/// Starts a node by `es-up` and waits until it answers: its port, and what keeps it alive.
fn up(options: Options, port: u16, data: &Path, until_eof: &str) -> Option<(u16, ChildStdin)> {
    let mut es_up = script("elasticsearch/es-up")
        .args([options.version, &port.to_string()])
        .arg(data)
        .arg(options.heap)
        .env("SECURITY", if options.security { "1" } else { "0" })
        .env("ES_PASSWORD", PASSWORD)
        .env("ES_EXTRA", options.extra)
        .env("ES_UNTIL_EOF", until_eof)
        // A test's node lives for seconds: without the second compiler it starts twice as fast.
        .env("ES_JAVA_OPTS", "-XX:TieredStopAtLevel=1")
        .stdin(Stdio::piped())
        .spawn()
        .expect("es-up can be run");
    let lifeline = es_up.stdin.take().expect("stdin is piped");
    let output = es_up.wait_with_output().expect("a child can be waited for");
    let port = script_answer(&output)?;
    Some((port.parse().expect("es-up prints the port"), lifeline))
}

/// A free port below those which the kernel gives to outgoing connections: else one of these could
/// take it while the node is down, or even be connected to itself.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 10_000).expect("below 10,000");
    loop {
        let port = 20_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// One user's view of a node.
#[derive(Clone)]
pub(crate) struct Client {
    /// host:port
    address: String,
    authorization: Option<String>,
}

impl Client {
    /// The same node without any credentials.
    pub(crate) fn anonymous(&self) -> Self {
        Self {
            address: self.address.clone(),
            authorization: None,
        }
    }

    /// The same node as another user.
    pub(crate) fn with_password(&self, user: &str, password: &str) -> Self {
        let credentials = BASE64_STANDARD.encode(format!("{user}:{password}"));
        Self {
            address: self.address.clone(),
            authorization: Some(format!("authorization: Basic {credentials}")),
        }
    }

    /// The same node by an API key in its encoded form.
    pub(crate) fn with_api_key(&self, encoded: &str) -> Self {
        Self {
            address: self.address.clone(),
            authorization: Some(format!("authorization: ApiKey {encoded}")),
        }
    }

    /// # Errors
    /// If the node cannot be reached.
    pub(crate) fn try_request(&self, method: &str, path: &str, body: &[u8]) -> io::Result<Answer> {
        let kind = if path.contains("_bulk") {
            "content-type: application/x-ndjson"
        } else {
            "content-type: application/json"
        };
        let mut headers: Vec<&str> = self.authorization.as_deref().into_iter().collect();
        if !body.is_empty() {
            headers.push(kind);
        }
        http::request(&self.address, method, path, &headers, body)
    }

    /// Sends a request; `Value::Null` is no body, a string one as it is (for `_bulk`).
    ///
    /// # Panics
    /// If the node cannot be reached.
    pub(crate) fn request(&self, method: &str, path: &str, body: &Value) -> Answer {
        let body = match body {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let ask = || {
            self.try_request(method, path, body.as_bytes())
                .unwrap_or_else(|error| panic!("{method} {path}: {error}"))
        };
        // The first user, role or key makes the index of all of them, and for some seconds none of them
        // can be asked for then.
        let is_repeatable = method == "GET" && path.starts_with("/_security/");
        wait_until("the index of the users is there", || match ask() {
            answer if answer.status == 503 && is_repeatable => Err(format!("{method} {path}: 503")),
            answer => Ok(answer),
        })
    }

    /// Makes all that was written to the indices visible to search.
    pub(crate) fn refresh(&self, indices: &str) {
        self.request("POST", &format!("/{indices}/_refresh"), &Value::Null)
            .success();
    }

    /// How many documents a search in the indices finds.
    pub(crate) fn count(&self, indices: &str) -> u64 {
        self.request("GET", &format!("/{indices}/_count"), &Value::Null)
            .success()
            .json()["count"]
            .as_u64()
            .expect("a count is a number")
    }

    /// All documents that a search in the indices finds: `_source` by `_index` and `_id`.
    pub(crate) fn all_documents(&self, indices: &str) -> BTreeMap<(String, String), Value> {
        let mut documents = BTreeMap::new();
        let first = json!({"size": PAGE, "sort": ["_doc"]});
        let mut page = self
            .request("POST", &format!("/{indices}/_search?scroll=2m"), &first)
            .success()
            .json();
        loop {
            let scroll = json!({"scroll": "2m", "scroll_id": page["_scroll_id"]});
            let Some(Value::Array(hits)) = page.pointer_mut("/hits/hits").map(Value::take) else {
                panic!("a page without hits: {page}");
            };
            if hits.is_empty() {
                let end = json!({"scroll_id": scroll["scroll_id"]});
                self.request("DELETE", "/_search/scroll", &end).success();
                return documents;
            }
            for mut hit in hits {
                let text = |value: &Value| value.as_str().expect("it is a text").to_owned();
                let key = (text(&hit["_index"]), text(&hit["_id"]));
                documents.insert(key, hit["_source"].take());
            }
            page = self
                .request("POST", "/_search/scroll", &scroll)
                .success()
                .json();
        }
    }
}
