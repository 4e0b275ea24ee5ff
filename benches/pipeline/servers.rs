//! The servers at both ends: `faketeleport`, built on Teleport's own API library, and a real
//! Elasticsearch. Both are built from `tests/` if they are not there yet.

use std::fs;
use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use tempfile::TempDir;

use super::program;
use super::sink;

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join(name)
}

/// A running Auth Service.
pub(crate) struct Teleport {
    directory: TempDir,
    child: Child,
    address: String,
    control: String,
}

impl Teleport {
    /// Serves so many events, which it makes by itself, of about 0.7 kB.
    pub(crate) fn start(events: usize, more: &[&str]) -> Result<Self> {
        let built = Command::new(script("faketeleport/build")).output()?;
        ensure!(built.status.success(), "faketeleport cannot be built here");
        let target = Path::new(program::program()).ancestors().nth(2);
        let path = target.context("it lies in target/PROFILE")?;
        let directory = tempfile::tempdir()?;
        let ready = directory.path().join("ready.json");
        let mut child = Command::new(path.join("faketeleport/faketeleport"))
            .args(["--addr", "127.0.0.1:0", "--ctrl", "127.0.0.1:0"])
            .args([
                "--days",
                "3",
                "--sessions",
                "0",
                "--events",
                &events.to_string(),
            ])
            .args(more)
            .arg("--dir")
            .arg(directory.path())
            .arg("--ready")
            .arg(&ready)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let text = loop {
            match fs::read_to_string(&ready) {
                Ok(text) => break text,
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
            ensure!(child.try_wait()?.is_none(), "faketeleport has ended");
        };
        let ready: Value = serde_json::from_str(&text)?;
        let address = |name: &str| ready[name].as_str().unwrap_or_default().to_owned();
        Ok(Self {
            directory,
            child,
            address: address("auth"),
            control: address("ctrl"),
        })
    }

    /// Has the export API, or not.
    pub(crate) fn serve_by(&self, api: Api) -> Result<()> {
        let faults = match api {
            Api::Export => r#"{"reset":true}"#,
            Api::Search => r#"{"reset":true,"unimplemented_export":true}"#,
        };
        request(&self.control, "POST", "/faults", "", faults.as_bytes())?;
        Ok(())
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn identity(&self) -> PathBuf {
        self.directory.path().join("identity")
    }
}

impl Drop for Teleport {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The two event APIs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Api {
    Export,
    Search,
}

impl Api {
    pub(crate) const BOTH: [Self; 2] = [Self::Export, Self::Search];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Export => "export",
            Self::Search => "search",
        }
    }
}

/// A running Elasticsearch of its own, with security on.
pub(crate) struct Elasticsearch {
    address: String,
    pid: u32,
    _directory: TempDir,
    /// The node runs for as long as this is open.
    _lifeline: ChildStdin,
}

const VERSION: &str = "9.5.3";

/// The password that the script gives the superuser.
const PASSWORD: &str = "changeme";

impl Elasticsearch {
    /// Starts a node with a heap of 1 GiB and the program's templates.
    pub(crate) fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut es_up = Command::new(script("elasticsearch/es-up"))
            .args([VERSION, "0"])
            .arg(directory.path())
            .arg("1g")
            .envs([("SECURITY", "1"), ("ES_UNTIL_EOF", "1")])
            .env("ES_PASSWORD", PASSWORD)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let lifeline = es_up.stdin.take().context("stdin is piped")?;
        let answer = es_up.wait_with_output()?;
        ensure!(answer.status.success(), "Elasticsearch does not start here");
        let port: u16 = String::from_utf8(answer.stdout)?.trim().parse()?;
        let pid = fs::read_to_string(directory.path().join("es.pid"))?;
        let node = Self {
            address: format!("127.0.0.1:{port}"),
            pid: pid.trim().parse()?,
            _directory: directory,
            _lifeline: lifeline,
        };
        node.install()?;
        Ok(node)
    }

    fn install(&self) -> Result<()> {
        let folder = tempfile::tempdir()?;
        let config = folder.path().join("config.toml");
        let text = format!(
            "[forward.elasticsearch]\nhosts = [\"http://{}\"]\n{}\n",
            self.address,
            Self::settings()
        );
        program::write_secret(&config, &text)?;
        let installed = Command::new(program::program())
            .arg("--config")
            .arg(config)
            .arg("install")
            .output()?;
        let said = String::from_utf8_lossy(&installed.stderr);
        ensure!(installed.status.success(), "install has failed: {said}");
        Ok(())
    }

    /// Puts the template in the place of ours that leaves all to Elasticsearch's guesses.
    pub(crate) fn guess_mappings(&self) -> Result<()> {
        let template = r#"{"index_patterns":["audit-events-*"],"priority":500,"template":{
            "mappings":{"dynamic":true,"properties":{"time":{"type":"date"}}},
            "settings":{"number_of_replicas":0}}}"#;
        self.request("PUT", "/_index_template/audit-events", template)?;
        Ok(())
    }

    /// The lines of `[forward.elasticsearch]` that let the program in.
    pub(crate) fn settings() -> String {
        format!("user = \"elastic\"\npassword = {PASSWORD:?}\ngzip = false")
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The header by which a client of our own is let in.
    pub(crate) fn authorization() -> String {
        let pair = BASE64_STANDARD.encode(format!("elastic:{PASSWORD}"));
        format!("authorization: Basic {pair}\r\n")
    }

    /// Processor time of the server so far.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        Ok(program::cpu_seconds(self.pid)?)
    }

    /// Sends a request and reads the JSON that comes back.
    pub(crate) fn request(&self, method: &str, path: &str, body: &str) -> Result<Value> {
        let authorization = Self::authorization();
        let answer = request(&self.address, method, path, &authorization, body.as_bytes())?;
        Ok(serde_json::from_slice(&answer)?)
    }

    /// Documents in the audit indices, which become visible by this.
    pub(crate) fn documents(&self) -> Result<u64> {
        self.request("POST", "/audit-events-*/_refresh", "")?;
        let count = self.request("GET", "/audit-events-*/_count", "")?;
        count["count"].as_u64().context("the answer has no count")
    }

    /// What the audit indices take on disk.
    pub(crate) fn stored_bytes(&self) -> Result<f64> {
        self.request("POST", "/audit-events-*/_flush", "")?;
        let stats = self.request("GET", "/audit-events-*/_stats/store", "")?;
        let bytes = &stats["_all"]["primaries"]["store"]["size_in_bytes"];
        bytes.as_f64().context("the answer has no size")
    }

    /// Deletes the audit indices and waits until the server has nothing left to do.
    pub(crate) fn clear(&self) -> Result<()> {
        let indices = self.request(
            "GET",
            "/_cat/indices/audit-events-*?format=json&h=index",
            "",
        )?;
        for index in indices.as_array().into_iter().flatten() {
            let name = index["index"].as_str().context("an index has a name")?;
            self.request("DELETE", &format!("/{name}"), "")?;
        }
        self.settle()
    }

    /// Waits until merges, and whatever else goes on behind the scenes, are done.
    pub(crate) fn settle(&self) -> Result<()> {
        let began = Instant::now();
        loop {
            let before = self.cpu_seconds()?;
            thread::sleep(Duration::from_secs(1));
            if self.cpu_seconds()? - before < 0.1 {
                return Ok(());
            }
            if began.elapsed() > Duration::from_secs(120) {
                bail!("Elasticsearch does not come to rest");
            }
        }
    }
}

/// One request on a connection of its own; the body of the answer, whose status must be 2xx.
pub(crate) fn request(
    address: &str,
    method: &str,
    path: &str,
    headers: &str,
    body: &[u8],
) -> Result<Vec<u8>> {
    let mut connection = TcpStream::connect(address)?;
    write!(
        connection,
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{headers}\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )?;
    connection.write_all(body)?;
    let mut reader = BufReader::new(connection);
    let (status, length) = sink::head(&mut reader)?.context("no answer")?;
    let answer = sink::body(&mut reader, length)?;
    ensure!(
        status.starts_with("HTTP/1.1 2"),
        "{method} {path}: {}{}",
        status,
        String::from_utf8_lossy(&answer)
    );
    Ok(answer)
}
