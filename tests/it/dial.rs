//! Every way to the Auth Service carries the whole log, and what does not lead there says why.
#![expect(
    clippy::unwrap_used,
    reason = "clippy takes only what is marked as a test for one, not what tests call"
)]

use std::path::Path;

use insta::assert_snapshot;
use serde_json::Value;

use teleport_event_indexer::demo::auth::AuthOptions;
use teleport_event_indexer::demo::certs::{Cluster, IdentityOptions};
use teleport_event_indexer::demo::events::{Id, encode};
use teleport_event_indexer::demo::proxy::{StandInHttpProxy, StandInProxy};

use crate::support::faketeleport::FakeTeleport;
use crate::support::listener::{Authority, Listener};
use crate::support::program::{Indexer, Output};
use crate::support::rig::{line_with, midnight, realistic, rfc3339};
use crate::support::stand_ins::{NOBODY, Teleport, block_on, parrot};

const EVENTS: &str = "20000";

/// Reads a whole log onto stdout.
fn read(indexer: &Indexer, addr: &str, identity: &Path) -> Output {
    let addr = format!("--teleport-addr={addr}");
    let identity = format!("--teleport-identity={}", identity.display());
    let start = format!("--start-time={}", rfc3339(midnight(4)));
    indexer.run(&[
        "start",
        "--dry-run",
        "--exit-on-last-event",
        "--sessions=false",
        &start,
        &addr,
        &identity,
    ])
}

/// Checks that the documents are these events, each once.
fn assert_exact(output: &Output, uids: &[String]) {
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    let lines = output.stdout.lines();
    let found = lines.map(|line| -> Value { serde_json::from_str(line).unwrap() });
    let mut found: Vec<String> = found
        .map(|event| event["uid"].as_str().unwrap().to_owned())
        .collect();
    found.sort_unstable();
    let mut uids = uids.to_vec();
    uids.sort_unstable();
    assert!(found == uids, "{} of {}", found.len(), uids.len());
}

/// What is said of the way.
fn connected(output: &Output) -> String {
    let line = line_with(&output.stderr, "connected to Teleport at").unwrap();
    let (_, route) = line.split_once(", ").unwrap();
    route.split_once(" cluster=").unwrap().0.to_owned()
}

fn through(teleport: &FakeTeleport, way: &str) -> i64 {
    teleport.stats()["proxy"][way].as_i64().unwrap()
}

/// Teleport's own library at the other end: Auth, a Proxy that routes by ALPN, and the same behind
/// what takes ALPN away. The cluster's name is too long to be a DNS label in hex.
#[test]
fn each_way_brings_every_event() {
    let cluster = "thirty-nine-letters-make.a.long.example";
    assert_eq!(cluster.len(), 39);
    let args = ["--proxy=127.0.0.1:0", "--alb=127.0.0.1:0", "--cluster"];
    let more = [cluster, "--events", EVENTS, "--sessions=20"];
    let Some(teleport) = FakeTeleport::start(&[&args[..], &more].concat()) else {
        return;
    };
    let uids = teleport.uids();
    assert_eq!(uids.len().to_string(), EVENTS);
    let authority = teleport.directory().join("web-ca.pem");
    let indexer = Indexer::new().env("SSL_CERT_FILE", authority.to_str().unwrap());

    let output = read(&indexer, teleport.addr(), &teleport.identity());
    assert_exact(&output, &uids);
    assert_snapshot!(connected(&output), @"straight to the Auth Service");
    assert_eq!(through(&teleport, "dials_to_auth"), 0);

    let output = read(&indexer, teleport.address("proxy"), &teleport.identity());
    assert_exact(&output, &uids);
    assert_snapshot!(connected(&output), @"through the Proxy by TLS routing");
    assert_eq!(through(&teleport, "upgraded_websocket"), 0);
    let routed = through(&teleport, "alpn_auth");
    assert!(routed > 0);

    let output = read(&indexer, teleport.address("alb"), &teleport.identity());
    assert_exact(&output, &uids);
    assert_snapshot!(connected(&output), @"through the Proxy by a connection upgrade");
    let upgraded = through(&teleport, "upgraded_websocket");
    assert!(upgraded > 0);

    // Once more where no upgrade is needed, since the user says so.
    let indexer = indexer.env("TELEPORT_TLS_ROUTING_CONN_UPGRADE", "true");
    let output = read(&indexer, teleport.address("proxy"), &teleport.identity());
    assert_exact(&output, &uids);
    assert_snapshot!(connected(&output), @"through the Proxy by a connection upgrade");
    assert!(through(&teleport, "upgraded_websocket") > upgraded);
    assert_eq!(through(&teleport, "upgraded_legacy"), 0);

    // A guest asks once who the server is, each time that it comes.
    let stats = teleport.stats();
    let rpcs = &stats["rpcs"];
    assert_eq!(rpcs["AuthService/Ping"], 4, "{rpcs}");
    // Teleport refuses versions of its own programs that are too old; one who names none is let in.
    let keys = stats["metadata_keys"].as_object().unwrap();
    let keys: Vec<_> = keys.keys().map(String::as_str).collect();
    assert_eq!(keys, [":authority", "content-type", "user-agent"]);
}

/// Before 15.1 a Proxy's web service upgrades connections without websockets.
#[test]
fn a_proxy_of_teleport_14_behind_a_load_balancer_brings_every_event() {
    let args = ["--alb=127.0.0.1:0", "--server-version=14.3.33"];
    let more = ["--events", EVENTS, "--sessions=20"];
    let Some(teleport) = FakeTeleport::start(&[&args[..], &more].concat()) else {
        return;
    };
    let authority = teleport.directory().join("web-ca.pem");
    let indexer = Indexer::new().env("SSL_CERT_FILE", authority.to_str().unwrap());
    let output = read(&indexer, teleport.address("alb"), &teleport.identity());
    assert_exact(&output, &teleport.uids());
    assert_snapshot!(connected(&output), @"through the Proxy by a connection upgrade");
    assert!(through(&teleport, "upgraded_legacy") > 0);
    assert_eq!(through(&teleport, "upgraded_websocket"), 0);
}

#[test]
fn an_auth_service_is_reached_by_ipv6() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return;
    }
    let options = AuthOptions {
        listen: "[::1]:0".parse().unwrap(),
        ..AuthOptions::default()
    };
    let teleport = Teleport::start_with("a.example", options);
    let uids = fill(&teleport);
    let (indexer, identity) = member(&teleport.cluster);
    let output = read(&indexer, &teleport.addr(), &identity);
    assert_exact(&output, &uids);
}

/// A cluster whose log is not empty, and the ids in it.
fn with_log(name: &str) -> (Teleport, Vec<String>) {
    let teleport = Teleport::start(name);
    let uids = fill(&teleport);
    (teleport, uids)
}

/// Fills a log; the ids in it.
fn fill(teleport: &Teleport) -> Vec<String> {
    let events: Vec<Value> = realistic(1, 2_000, 2, 1).collect();
    let encoded = events.iter().map(|event| encode(event, Id::OfEvent));
    teleport.auth.control().append(encoded);
    let uids = events
        .iter()
        .map(|event| event["uid"].as_str().unwrap().to_owned());
    uids.collect()
}

/// An indexer with an identity of this cluster, and the identity's path.
fn member(cluster: &Cluster) -> (Indexer, std::path::PathBuf) {
    let indexer = Indexer::new();
    indexer.identify(cluster, &IdentityOptions::default());
    let identity = indexer.directory().join("identity");
    (indexer, identity)
}

#[test]
fn a_proxy_without_tls_routing_carries_every_event() {
    let (teleport, uids) = with_log("a.example");
    let auths = [("a.example".to_owned(), teleport.auth.address())];
    let proxy = block_on(StandInProxy::start(&teleport.cluster, auths, false)).unwrap();
    let (indexer, identity) = member(&teleport.cluster);

    // The port of the service itself.
    let output = read(&indexer, &proxy.address().to_string(), &identity);
    assert_exact(&output, &uids);
    assert_snapshot!(connected(&output), @"through the Proxy by its transport service");
    let carried = proxy.n_carried();
    assert!(carried > 0);

    // The port of the web service, which tells where the other one is.
    let find = format!(
        r#"{{"proxy": {{"tls_routing_enabled": false, "ssh": {{"ssh_public_addr": "{}"}}}}}}"#,
        proxy.address()
    );
    let web = parrot(format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{find}",
        find.len()
    ));
    let authority = Authority::new();
    let web = Listener::before(web, authority.ends_tls(&["127.0.0.1"], None));
    indexer.write("web.pem", &authority.pem);
    let indexer = indexer.env("SSL_CERT_FILE", "web.pem");
    let output = read(&indexer, &web.address.to_string(), &identity);
    assert_exact(&output, &uids);
    assert_snapshot!(connected(&output), @"through the Proxy by its transport service");
    assert!(proxy.n_carried() > carried);
}

#[test]
fn a_leaf_cluster_is_reached_through_the_proxy_of_its_root() {
    let root = Teleport::start("root.example");
    let (leaf, uids) = with_log("leaf.example");
    let auths = [
        ("root.example".to_owned(), root.auth.address()),
        ("leaf.example".to_owned(), leaf.auth.address()),
    ];
    let proxy = block_on(StandInProxy::start(&root.cluster, auths, true)).unwrap();
    let (indexer, identity) = member(&leaf.cluster);
    let output = read(&indexer, &proxy.address().to_string(), &identity);
    assert_exact(&output, &uids);
    assert_snapshot!(connected(&output), @"through the Proxy by TLS routing");
    assert!(proxy.n_routed() > 0);
    assert_eq!(root.auth.control().n_connections(), 0);
}

/// Without TLS routing. As with Teleport, the root issues the identity, and the leaf trusts it.
#[test]
fn a_leaf_cluster_is_reached_through_the_transport_service_of_its_root() {
    let root = Teleport::start("root.example");
    let mut leaf = Cluster::new("leaf.example").unwrap();
    leaf.trust_users_of(&root.cluster);
    let leaf = Teleport::of(leaf, AuthOptions::default());
    let uids = fill(&leaf);
    let auths = [
        ("root.example".to_owned(), root.auth.address()),
        ("leaf.example".to_owned(), leaf.auth.address()),
    ];
    let proxy = block_on(StandInProxy::start(&root.cluster, auths, false)).unwrap();
    let indexer = Indexer::new();
    let options = IdentityOptions {
        route_to: Some("leaf.example".to_owned()),
        ..IdentityOptions::default()
    };
    let issued = root.cluster.identity(&options).unwrap();
    let authorities = leaf.cluster.identity(&options).unwrap().authorities;
    indexer.write_private("identity", &(issued.text() + &authorities));
    let identity = indexer.directory().join("identity");
    let output = read(&indexer, &proxy.address().to_string(), &identity);
    assert_exact(&output, &uids);
    assert_snapshot!(connected(&output), @"through the Proxy by its transport service");
    assert!(proxy.n_carried() > 0);
    assert_eq!(root.auth.control().n_connections(), 0);
}

#[test]
fn an_http_proxy_may_speak_tls_itself() {
    let (teleport, uids) = with_log("a.example");
    let start = StandInHttpProxy::start(teleport.auth.address(), Some("Basic dXNlcjpzZWNyZXQ="));
    let proxy = block_on(start).unwrap();
    let authority = Authority::new();
    let secure = Listener::before(proxy.address(), authority.ends_tls(&["127.0.0.1"], None));
    let (indexer, identity) = member(&teleport.cluster);
    indexer.write("web.pem", &authority.pem);
    let indexer = indexer.env("SSL_CERT_FILE", "web.pem").env(
        "HTTPS_PROXY",
        &format!("https://user:secret@{}", secure.address),
    );
    let output = read(&indexer, "teleport.invalid:3025", &identity);
    assert_exact(&output, &uids);
    assert_eq!(proxy.asked()[0], "CONNECT teleport.invalid:3025 HTTP/1.1");
    let n_asked = proxy.asked().len();

    // Nobody is to read on the way what the proxy is told.
    let indexer = indexer.env("SSL_CERT_FILE", "identity");
    let output = indexer.run(&[
        "backfill",
        "--dry-run",
        "--from=2026-01-01",
        "--to=2026-01-02",
        "--teleport-addr=teleport.invalid:3025",
        "--teleport-identity=identity",
    ]);
    assert_eq!(output.code, Some(1), "{}", output.stderr);
    let said = output.stderr.replace(&secure.address.to_string(), "PROXY");
    assert_snapshot!(said.lines().skip(1).collect::<Vec<_>>().join("\n"), @"
    error: cannot reach Teleport: the HTTP proxy PROXY does not connect us to teleport.invalid:3025: cannot speak HTTPS with PROXY: its certificate comes from no authority that this machine trusts
    hint: check HTTPS_PROXY, or name the host in NO_PROXY if it can be reached without
    ");
    assert_eq!(proxy.asked().len(), n_asked);
}

#[test]
fn an_http_proxy_is_asked_for_names_that_only_it_knows() {
    let (teleport, uids) = with_log("a.example");
    // What curl makes of user:secret.
    let authorization = "Basic dXNlcjpzZWNyZXQ=";
    let start = StandInHttpProxy::start(teleport.auth.address(), Some(authorization));
    let proxy = block_on(start).unwrap();
    let (indexer, identity) = member(&teleport.cluster);
    let with = |user: &str| format!("http://{user}{}", proxy.address());
    let indexer = indexer.env("HTTPS_PROXY", &with("user:secret@"));
    let output = read(&indexer, "teleport.invalid:3025", &identity);
    assert_exact(&output, &uids);
    let route = connected(&output).replace(&proxy.address().to_string(), "PROXY");
    assert_snapshot!(route, @"straight to the Auth Service, by way of the HTTP proxy PROXY");
    assert_eq!(proxy.asked()[0], "CONNECT teleport.invalid:3025 HTTP/1.1");

    let n_asked = proxy.asked().len();
    let indexer = indexer.env("NO_PROXY", "127.0.0.1,.internal");
    let output = read(&indexer, &teleport.addr(), &identity);
    assert_exact(&output, &uids);
    assert_eq!(proxy.asked().len(), n_asked);

    let failure = |indexer: &Indexer, addr: &str| {
        let output = indexer.run(&[
            "backfill",
            "--dry-run",
            "--from=2026-01-01",
            "--to=2026-01-02",
            &format!("--teleport-addr={addr}"),
            "--teleport-identity=identity",
        ]);
        assert_eq!(output.code, Some(1), "{}", output.stderr);
        let said = output.stderr.replace(&proxy.address().to_string(), "PROXY");
        said.lines().skip(1).collect::<Vec<_>>().join("\n")
    };
    let indexer = indexer.env("HTTPS_PROXY", &with(""));
    assert_snapshot!(failure(&indexer, "teleport.invalid:3025"), @r"
    error: cannot reach Teleport: the HTTP proxy PROXY does not connect us to teleport.invalid:3025: status 407: it wants a user and password, as in HTTPS_PROXY=http://user:password@host:port
    hint: check HTTPS_PROXY, or name the host in NO_PROXY if it can be reached without
    ");
    let indexer = indexer.env("HTTPS_PROXY", &format!("http://user:secret@{NOBODY}"));
    assert_snapshot!(failure(&indexer, "teleport.invalid:3025"), @r"
    error: cannot reach Teleport: the HTTP proxy 127.0.0.1:1 does not connect us to teleport.invalid:3025: cannot connect to 127.0.0.1:1: Connection refused (os error 111)
    hint: check HTTPS_PROXY, or name the host in NO_PROXY if it can be reached without
    ");
}

/// A web server with a good certificate that is no Teleport, and one that a load balancer before
/// Teleport could be.
#[test]
fn each_way_that_failed_is_told() {
    let cluster = Cluster::new("a.example").unwrap();
    let (indexer, _) = member(&cluster);
    let authority = Authority::new();
    indexer.write("web.pem", &authority.pem);
    let indexer = indexer.env("SSL_CERT_FILE", "web.pem");
    let failure = |answer: &'static str| {
        let web = parrot(answer);
        let web = Listener::before(web, authority.ends_tls(&["127.0.0.1"], None));
        let web = web.address;
        let output = indexer.run(&[
            "backfill",
            "--dry-run",
            "--from=2026-01-01",
            "--to=2026-01-02",
            &format!("--teleport-addr={web}"),
            "--teleport-identity=identity",
        ]);
        assert_eq!(output.code, Some(1), "{}", output.stderr);
        let said = output.stderr.replace(&web.to_string(), "WEB");
        said.lines().skip(1).collect::<Vec<_>>().join("\n")
    };
    assert_snapshot!(failure("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"), @"
    error: cannot reach Teleport: no way to WEB works: straight or by TLS routing: the TLS handshake with WEB failed: its certificate comes from none of the CAs in the identity of cluster a.example; by a connection upgrade: WEB does not upgrade the connection: it answers 404 Not Found, so it is no Proxy Service, or an old one; by the transport service: WEB does not tell where its transport service is: HTTP status client error (404 Not Found)
    hint: check addr in [teleport] and the load balancer there: it must pass websockets to a Proxy Service
    ");
    assert_snapshot!(failure("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"), @"
    error: cannot reach Teleport: no way to WEB works: straight or by TLS routing: the TLS handshake with WEB failed: its certificate comes from none of the CAs in the identity of cluster a.example; by a connection upgrade: WEB does not upgrade the connection: it answers 200 OK; by the transport service: WEB does not tell where its transport service is: it does not answer as a Proxy Service does
    hint: check addr in [teleport] and the load balancer there: it must pass websockets to a Proxy Service
    ");
    assert_snapshot!(failure("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n"), @"
    error: cannot reach Teleport: no way to WEB works: straight or by TLS routing: the TLS handshake with WEB failed: its certificate comes from none of the CAs in the identity of cluster a.example; by a connection upgrade: WEB does not upgrade the connection: it answers 502 Bad Gateway; by the transport service: WEB does not tell where its transport service is: HTTP status server error (502 Bad Gateway)
    hint: check addr in [teleport] and the load balancer there: it must pass websockets to a Proxy Service
    ");
}
