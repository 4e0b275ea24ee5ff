//! The program's own stand-ins for both ends, for tests whose threads wait for the program.

use std::fs::Permissions;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::sync::LazyLock;

use serde_json::{Value, json};
use teleport_event_indexer::demo::auth::{AuthOptions, StandInAuth};
use teleport_event_indexer::demo::certs::{Cluster, IdentityOptions};
use teleport_event_indexer::demo::elastic::{ElasticsearchOptions, StandInElasticsearch};
use tokio::runtime::Runtime;

use super::http;
use super::program::Indexer;
use super::seen::{PASSWORD, USER};

/// What all stand-ins of this process run on.
static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Runtime::new().expect("the system gives us threads"));

/// A stand-in Auth Service with its cluster.
pub(crate) struct Teleport {
    pub(crate) cluster: Cluster,
    pub(crate) auth: StandInAuth,
}

impl Teleport {
    /// Starts it, with an empty log.
    pub(crate) fn start(cluster: &str) -> Self {
        Self::start_with(cluster, AuthOptions::default())
    }

    /// Starts it with options of its own.
    pub(crate) fn start_with(cluster: &str, options: AuthOptions) -> Self {
        let cluster = Cluster::new(cluster).expect("the name fits into a certificate");
        Self::of(cluster, options)
    }

    /// Starts that of a cluster which is there already.
    pub(crate) fn of(cluster: Cluster, options: AuthOptions) -> Self {
        let auth = RUNTIME.block_on(StandInAuth::start(&cluster, options));
        let auth = auth.expect("there is a free port");
        Self { cluster, auth }
    }

    /// host:port
    pub(crate) fn addr(&self) -> String {
        self.auth.address().to_string()
    }
}

/// Runs something on the stand-ins' threads.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    RUNTIME.block_on(future)
}

/// Leaves something running on the stand-ins' threads.
pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) {
    RUNTIME.spawn(future);
}

/// Starts a stand-in Elasticsearch.
pub(crate) fn elasticsearch(options: ElasticsearchOptions) -> StandInElasticsearch {
    let started = RUNTIME.block_on(StandInElasticsearch::start(options));
    started.expect("there is a free port")
}

/// Starts one that has the index template that the program asks for.
pub(crate) fn elasticsearch_with_template() -> StandInElasticsearch {
    let elasticsearch = elasticsearch(ElasticsearchOptions::default());
    let template = json!({"index_patterns": ["audit-events-*"]});
    put(&elasticsearch, "/_index_template/audit-events", &template);
    elasticsearch
}

/// Puts something into it.
pub(crate) fn put(elasticsearch: &StandInElasticsearch, path: &str, body: &Value) {
    let address = elasticsearch.address().to_string();
    let json = ["content-type: application/json"];
    http::request(&address, "PUT", path, &json, body.to_string().as_bytes())
        .expect("the stand-in answers")
        .success();
}

/// A server that answers each connection with the same bytes, whatever it was asked, and closes it.
/// It listens until the process ends.
pub(crate) fn parrot(answer: impl Into<String>) -> SocketAddr {
    let answer = answer.into();
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let Ok(mut connection) = connection else {
                continue;
            };
            // The client may be gone before it has the answer: it is the one under test.
            let mut asked = [0; 4096];
            if connection.read(&mut asked).is_ok() {
                connection.write_all(answer.as_bytes()).unwrap_or_default();
            }
        }
    });
    address
}

/// An address at which nothing listens: of a port that the system gives to nobody.
pub(crate) const NOBODY: &str = "127.0.0.1:1";

impl Indexer {
    /// Writes `config.toml` for these two ends (host:port, URL), with the user and password that
    /// tests use, and `storage`, which is to be `state`. `more` is appended: further settings of
    /// `[forward.elasticsearch]`, or tables. What belongs above all tables can be a flag.
    pub(crate) fn configure(&self, teleport: &str, elasticsearch: &str, more: &str) {
        let text = format!(
            r#"
storage = "state"
timeout = "100ms"
sessions = false
[teleport]
addr = "{teleport}"
identity = "identity"
[forward.elasticsearch]
hosts = ["{elasticsearch}"]
user = "{USER}"
password = "{PASSWORD}"
{more}
"#
        );
        self.write_private("config.toml", &text);
    }

    /// Writes a file that nobody else can read.
    pub(crate) fn write_private(&self, name: &str, text: &str) {
        let path = self.write(name, text);
        let private = Permissions::from_mode(0o600);
        std::fs::set_permissions(path, private).expect("it is ours");
    }

    /// Writes `identity` for a client of this cluster.
    pub(crate) fn identify(&self, cluster: &Cluster, options: &IdentityOptions) {
        let identity = cluster.identity(options).expect("the names fit");
        let path = self.directory().join("identity");
        identity.write(&path).expect("the folder takes a file");
    }
}
