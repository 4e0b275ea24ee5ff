//! The way to Teleport, and who we are there.

use std::fs;
use std::net::TcpListener;
use std::sync::Arc;

use chrono::{TimeDelta, TimeZone, Utc};
use insta::assert_snapshot;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use teleport_event_indexer::demo::auth::{AuthOptions, Method};
use teleport_event_indexer::demo::certs::{Cluster, IdentityOptions};
use tonic::Code;

use crate::support::faketeleport::FakeTeleport;
use crate::support::listener::{Conduct, Listener};
use crate::support::program::Indexer;
use crate::support::stand_ins::{NOBODY, Teleport, parrot};

const START: &[&str] = &["start", "-c", "config.toml", "--start-time=2026-01-01"];
const BACKFILL: &[&str] = &[
    "backfill",
    "-c",
    "config.toml",
    "--from=2026-01-01",
    "--to=2026-01-02",
];
const CHECK: &[&str] = &["check", "-c", "config.toml"];

/// An indexer for a cluster whose Auth Service is said to be at `addr`. Elasticsearch is away.
fn indexer(cluster: &Cluster, addr: &str) -> Indexer {
    let indexer = Indexer::new();
    indexer.configure(addr, &format!("http://{NOBODY}"), "");
    indexer.identify(cluster, &IdentityOptions::default());
    indexer
}

fn cluster() -> Cluster {
    Cluster::new("a.example").expect("the name fits into a certificate")
}

#[test]
fn an_identity_that_is_not_there() {
    let indexer = indexer(&cluster(), NOBODY);
    fs::remove_file(indexer.directory().join("identity")).unwrap();
    assert_snapshot!(indexer.seen(START), @"
    exit code 2
    --- stderr
    error: cannot read the identity file identity: No such file or directory (os error 2)
    hint: check identity, or key, cert and ca, in [teleport]
    ");
}

#[test]
fn a_certificate_that_has_expired() {
    let teleport = Teleport::start("a.example");
    let indexer = indexer(&teleport.cluster, &teleport.addr());
    let options = IdentityOptions {
        not_before: Utc.with_ymd_and_hms(2026, 1, 1, 0, 0, 0).unwrap(),
        not_after: Utc.with_ymd_and_hms(2026, 1, 2, 0, 0, 0).unwrap(),
        ..IdentityOptions::default()
    };
    indexer.identify(&teleport.cluster, &options);
    assert_snapshot!(indexer.seen(START), @"
    exit code 2
    --- stderr
    error: the certificate in identity expired at 2026-01-02T00:00:00Z
    hint: renew it with `tctl auth sign --format=file --user=teleport-event-indexer --out=identity --overwrite`, or let tbot do it
    ");
    assert_snapshot!(indexer.seen(CHECK), @"
    exit code 1
    --- stdout
    FAIL  the certificate in identity expired at 2026-01-02T00:00:00Z
          hint: renew it with `tctl auth sign --format=file --user=teleport-event-indexer --out=identity --overwrite`, or let tbot do it
    FAIL  no answer from Elasticsearch at http://127.0.0.1:PORT/: nothing listens there
          hint: check hosts in [forward.elasticsearch], and that Elasticsearch runs there
    ");
}

#[test]
fn a_certificate_that_does_not_hold_yet() {
    let teleport = Teleport::start("a.example");
    let indexer = indexer(&teleport.cluster, &teleport.addr());
    let options = IdentityOptions {
        not_before: Utc::now() + TimeDelta::hours(2),
        ..IdentityOptions::default()
    };
    indexer.identify(&teleport.cluster, &options);
    assert_snapshot!(indexer.seen(START), @"
    exit code 2
    --- stderr
    error: the certificate in identity holds only from TIME on
    hint: check this machine's clock
    ");
}

#[test]
fn an_identity_of_another_cluster() {
    let teleport = Teleport::start("a.example");
    // Neither side knows the other's authority.
    let other = indexer(&Cluster::new("b.example").unwrap(), &teleport.addr());
    assert_snapshot!(other.seen(START), @"
    exit code 1
    --- stderr
    TIME  INFO credentials read cluster=b.example address=127.0.0.1:PORT expires=TIME
    error: cannot reach Teleport: no way to 127.0.0.1:PORT works: straight or by TLS routing: the TLS handshake with 127.0.0.1:PORT failed: its certificate comes from none of the CAs in the identity of cluster b.example; by a connection upgrade: cannot speak HTTPS with 127.0.0.1:PORT: its certificate comes from no authority that this machine trusts
    hint: check addr and identity in [teleport]: another cluster answers there, or something on the way ends TLS
    ");
    assert_snapshot!(other.seen(CHECK), @"
    exit code 1
    --- stdout
    FAIL  cannot reach Teleport: no way to 127.0.0.1:PORT works: straight or by TLS routing: the TLS handshake with 127.0.0.1:PORT failed: its certificate comes from none of the CAs in the identity of cluster b.example; by a connection upgrade: cannot speak HTTPS with 127.0.0.1:PORT: its certificate comes from no authority that this machine trusts
          hint: check addr and identity in [teleport]: another cluster answers there, or something on the way ends TLS
    FAIL  no answer from Elasticsearch at http://127.0.0.1:PORT/: nothing listens there
          hint: check hosts in [forward.elasticsearch], and that Elasticsearch runs there
    --- stderr
    TIME  INFO credentials read cluster=b.example address=127.0.0.1:PORT expires=TIME
    ");
}

#[test]
fn an_identity_from_before_the_authority_was_rotated() {
    let teleport = Teleport::start("a.example");
    let indexer = indexer(&teleport.cluster, &teleport.addr());
    // The server is trusted, but the client's certificate comes from an authority of old.
    let old = cluster().identity(&IdentityOptions::default()).unwrap();
    let new = teleport.cluster.identity(&IdentityOptions::default());
    let text = format!("{}{}{}", old.key, old.certificate, new.unwrap().authorities);
    indexer.write_private("identity", &text);
    assert_snapshot!(indexer.seen(START), @"
    exit code 1
    --- stderr
    TIME  INFO credentials read cluster=a.example address=127.0.0.1:PORT expires=TIME
    error: cannot reach Teleport: the TLS handshake with 127.0.0.1:PORT failed: it does not accept our certificate
    hint: issue a new identity, if this one is of the right cluster: its certificate may be from before the cluster's CA was rotated
    ");
}

/// What looks into TLS on the way, with a certificate of the cluster's own authority, cannot show
/// Auth the certificate of whom it speaks for.
#[test]
fn a_connection_on_which_no_client_certificate_arrives() {
    let teleport = Teleport::start("a.example");
    let authorities = teleport.cluster.identity(&IdentityOptions::default());
    let mut roots = rustls::RootCertStore::empty();
    for der in CertificateDer::pem_slice_iter(authorities.unwrap().authorities.as_bytes()) {
        roots.add(der.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut onward = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    onward.alpn_protocols = vec![b"h2".to_vec()];
    let server = teleport.cluster.server_config().unwrap();
    let conduct = Conduct::InTheMiddle(Arc::new(server).into(), Arc::new(onward).into());
    let middle = Listener::before(teleport.auth.address(), conduct);
    let indexer = indexer(&teleport.cluster, &middle.address.to_string());
    assert_snapshot!(indexer.seen(START), @"
    exit code 1
    --- stderr
    TIME  INFO credentials read cluster=a.example address=127.0.0.1:PORT expires=TIME
    error: Teleport answered Ping with PermissionDenied: access denied to anonymous user
    hint: our certificate did not reach the Auth Service: check what stands between
    ");
    assert_snapshot!(indexer.seen(CHECK), @"
    exit code 1
    --- stdout
    FAIL  Teleport answered Ping with PermissionDenied: access denied to anonymous user
          hint: our certificate did not reach the Auth Service: check what stands between
    FAIL  no answer from Elasticsearch at http://127.0.0.1:PORT/: nothing listens there
          hint: check hosts in [forward.elasticsearch], and that Elasticsearch runs there
    --- stderr
    TIME  INFO credentials read cluster=a.example address=127.0.0.1:PORT expires=TIME
    ");
}

#[test]
fn a_user_who_may_not_read_events() {
    let teleport = Teleport::start("a.example");
    let indexer = indexer(&teleport.cluster, &teleport.addr());
    let denied = teleport.auth.control();
    denied.fail_next(Method::ListChunks, 1_000, Code::PermissionDenied);
    assert_snapshot!(indexer.seen(CHECK), @r#"
    exit code 1
    --- stdout
    ok    Teleport 18.2.0, cluster a.example, connected straight to the Auth Service
    ok    credentials of user teleport-event-indexer, valid until TIME
    FAIL  Teleport answered GetEventExportChunks with PermissionDenied: planned failure
          hint: give the identity's user a role with the rule `resources: [event, session], verbs: [list, read]`
    FAIL  no answer from Elasticsearch at http://127.0.0.1:PORT/: nothing listens there
          hint: check hosts in [forward.elasticsearch], and that Elasticsearch runs there
    --- stderr
    TIME  INFO credentials read cluster=a.example address=127.0.0.1:PORT expires=TIME
    TIME  INFO connected to Teleport at 127.0.0.1:PORT, straight to the Auth Service cluster="a.example" version="18.2.0"
    "#);
    let dry_run = [START, &["--dry-run"]].concat();
    assert_snapshot!(indexer.seen_until("holding", &dry_run), @r#"
    exit code 0
    --- stderr
    TIME  INFO credentials read cluster=a.example address=127.0.0.1:PORT expires=TIME
    TIME  INFO connected to Teleport at 127.0.0.1:PORT, straight to the Auth Service cluster="a.example" version="18.2.0"
    TIME  INFO first start start_time="2026-01-01T00:00:00Z"
    TIME ERROR cannot read, nothing is lost, holding: Teleport answered GetEventExportChunks with PermissionDenied: planned failure pause=PAUSE mend="give the identity's user a role with the rule `resources: [event, session], verbs: [list, read]`"
    TIME  INFO stopping; a second signal ends at once signal="SIGTERM"
    TIME  INFO draining documents=0
    TIME  INFO ended events=0 created=0 safe_form=0 already_there=0 dead_letters=0
    "#);
}

/// Asked for only where recordings are to be read.
#[test]
fn a_user_who_may_not_read_recordings() {
    let teleport = Teleport::start("a.example");
    let indexer = indexer(&teleport.cluster, &teleport.addr());
    let denied = teleport.auth.control();
    denied.fail_next(Method::ReadRecording, 1_000, Code::PermissionDenied);
    let found = |sessions: &str| {
        let output = indexer.run(&[CHECK, &[sessions]].concat());
        assert_eq!(output.code, Some(1), "{}", output.stderr);
        let lines = output.stdout.lines().skip(2);
        lines.take(3).collect::<Vec<_>>().join("\n")
    };
    assert_snapshot!(found("--sessions=true"), @"
    ok    audit events by the export API, 0 chunks today
    FAIL  Teleport answered StreamUnstructuredSessionEvents with PermissionDenied: planned failure
          hint: give the identity's user a role with the rule `resources: [session], verbs: [list, read]`
    ");
    assert_snapshot!(found("--sessions=false"), @"
    ok    audit events by the export API, 0 chunks today
    FAIL  no answer from Elasticsearch at http://127.0.0.1:1/: nothing listens there
          hint: check hosts in [forward.elasticsearch], and that Elasticsearch runs there
    ");
}

#[test]
fn a_server_without_either_event_api() {
    let options = AuthOptions {
        server_version: "12.4.0".to_owned(),
        export: false,
        ..AuthOptions::default()
    };
    let teleport = Teleport::start_with("a.example", options);
    let old = indexer(&teleport.cluster, &teleport.addr());
    let unknown = teleport.auth.control();
    unknown.fail_next(Method::Search, 1_000, Code::Unimplemented);
    assert_snapshot!(old.seen(CHECK), @r#"
    exit code 1
    --- stdout
    ok    Teleport 12.4.0, cluster a.example, connected straight to the Auth Service
    ok    credentials of user teleport-event-indexer, valid until TIME
    FAIL  Teleport 12.4.0 has no API for audit events
          hint: Teleport 14 or newer is needed
    FAIL  no answer from Elasticsearch at http://127.0.0.1:PORT/: nothing listens there
          hint: check hosts in [forward.elasticsearch], and that Elasticsearch runs there
    --- stderr
    TIME  INFO credentials read cluster=a.example address=127.0.0.1:PORT expires=TIME
    TIME  INFO connected to Teleport at 127.0.0.1:PORT, straight to the Auth Service cluster="a.example" version="12.4.0"
    "#);
    let dry_run = [START, &["--dry-run"]].concat();
    assert_snapshot!(old.seen(&dry_run), @r#"
    exit code 1
    --- stderr
    TIME  INFO credentials read cluster=a.example address=127.0.0.1:PORT expires=TIME
    TIME  INFO connected to Teleport at 127.0.0.1:PORT, straight to the Auth Service cluster="a.example" version="12.4.0"
    TIME  INFO first start start_time="2026-01-01T00:00:00Z"
    TIME  INFO reading by the search API: the server has no export API
    error: the run has ended: reading the audit log failed for good: this server has neither the export nor the search API for audit events: Teleport 14 or newer is needed
    "#);
}

#[test]
fn what_denies_us_tells_what_is_missing() {
    let args = ["--events=10", "--sessions=0", r#"--faults={"deny": true}"#];
    let Some(teleport) = FakeTeleport::start(&args) else {
        return;
    };
    let indexer = Indexer::new();
    indexer.configure(teleport.addr(), &format!("http://{NOBODY}"), "");
    fs::copy(teleport.identity(), indexer.directory().join("identity")).unwrap();
    assert_snapshot!(indexer.seen(CHECK), @r#"
    exit code 1
    --- stdout
    ok    Teleport 17.2.1, cluster fake.example.test, connected straight to the Auth Service
    ok    credentials of user teleport-event-handler, valid until TIME
    FAIL  Teleport answered GetEventExportChunks with PermissionDenied: access denied to perform action "list" on "event"
          hint: give the identity's user a role with the rule `resources: [event, session], verbs: [list, read]`
    FAIL  no answer from Elasticsearch at http://127.0.0.1:PORT/: nothing listens there
          hint: check hosts in [forward.elasticsearch], and that Elasticsearch runs there
    --- stderr
    TIME  INFO credentials read cluster=fake.example.test address=127.0.0.1:PORT expires=TIME
    TIME  INFO connected to Teleport at 127.0.0.1:PORT, straight to the Auth Service cluster="fake.example.test" version="17.2.1"
    "#);
}

#[test]
fn a_host_that_does_not_resolve() {
    let indexer = indexer(&cluster(), "nothing.invalid:443");
    assert_snapshot!(indexer.seen_until("trying again", START), @r#"
    exit code 0
    --- stderr
    TIME  INFO credentials read cluster=a.example address=nothing.invalid:443 expires=TIME
    TIME  WARN trying again: cannot reach Teleport: the name nothing.invalid does not resolve: failed to lookup address information: Name or service not known pause=PAUSE mend="check addr in [teleport]"
    TIME  INFO stopping; a second signal ends at once signal="SIGTERM"
    "#);
    assert_snapshot!(indexer.seen(BACKFILL), @"
    exit code 1
    --- stderr
    TIME  INFO credentials read cluster=a.example address=nothing.invalid:443 expires=TIME
    error: cannot reach Teleport: the name nothing.invalid does not resolve: failed to lookup address information: Name or service not known
    hint: check addr in [teleport]
    ");
}

#[test]
fn a_port_where_nothing_listens() {
    let indexer = indexer(&cluster(), NOBODY);
    assert_snapshot!(indexer.seen_until("trying again", START), @r#"
    exit code 0
    --- stderr
    TIME  INFO credentials read cluster=a.example address=127.0.0.1:PORT expires=TIME
    TIME  WARN trying again: cannot reach Teleport: cannot connect to 127.0.0.1:PORT: Connection refused (os error 111) pause=PAUSE mend="check addr in [teleport], and that Teleport runs there"
    TIME  INFO stopping; a second signal ends at once signal="SIGTERM"
    "#);
    assert_snapshot!(indexer.seen(BACKFILL), @"
    exit code 1
    --- stderr
    TIME  INFO credentials read cluster=a.example address=127.0.0.1:PORT expires=TIME
    error: cannot reach Teleport: cannot connect to 127.0.0.1:PORT: Connection refused (os error 111)
    hint: check addr in [teleport], and that Teleport runs there
    ");
    assert_snapshot!(indexer.seen(CHECK), @"
    exit code 1
    --- stdout
    FAIL  cannot reach Teleport: cannot connect to 127.0.0.1:PORT: Connection refused (os error 111)
          hint: check addr in [teleport], and that Teleport runs there
    FAIL  no answer from Elasticsearch at http://127.0.0.1:PORT/: nothing listens there
          hint: check hosts in [forward.elasticsearch], and that Elasticsearch runs there
    --- stderr
    TIME  INFO credentials read cluster=a.example address=127.0.0.1:PORT expires=TIME
    ");
}

#[test]
fn a_port_that_speaks_plain_http() {
    let addr = parrot("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
    let indexer = indexer(&cluster(), &addr.to_string());
    assert_snapshot!(indexer.seen(START), @"
    exit code 1
    --- stderr
    TIME  INFO credentials read cluster=a.example address=127.0.0.1:PORT expires=TIME
    error: cannot reach Teleport: the TLS handshake with 127.0.0.1:PORT failed: it does not speak TLS
    hint: check addr in [teleport]: host:443 of a Proxy Service, or host:3025 of an Auth Service
    ");
}

#[test]
fn a_port_that_hangs_up() {
    let indexer = indexer(&cluster(), &parrot("").to_string());
    assert_snapshot!(indexer.seen(BACKFILL), @"
    exit code 1
    --- stderr
    TIME  INFO credentials read cluster=a.example address=127.0.0.1:PORT expires=TIME
    error: cannot reach Teleport: the TLS handshake with 127.0.0.1:PORT failed: the connection ended within it
    ");
}

#[test]
fn a_server_whose_certificate_is_for_another_name() {
    // Made by the authority that the identity trusts.
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let authority = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let names = ["www.example.com".to_owned()];
    let certificate = CertificateParams::new(names).unwrap();
    let certificate = certificate.signed_by(&key, &issuer).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            let mut session = rustls::ServerConnection::new(config.clone()).unwrap();
            // Ends with the client's refusal.
            session.complete_io(&mut connection).unwrap_or_default();
        }
    });
    let indexer = indexer(&cluster(), &addr);
    let identity = cluster().identity(&IdentityOptions::default()).unwrap();
    let text = format!(
        "{}{}{}",
        identity.key,
        identity.certificate,
        authority.pem()
    );
    indexer.write_private("identity", &text);
    assert_snapshot!(indexer.seen(START), @"
    exit code 1
    --- stderr
    TIME  INFO credentials read cluster=a.example address=127.0.0.1:PORT expires=TIME
    error: cannot reach Teleport: no way to 127.0.0.1:PORT works: straight or by TLS routing: the TLS handshake with 127.0.0.1:PORT failed: its certificate is not one of a Teleport Auth Service; by a connection upgrade: cannot speak HTTPS with 127.0.0.1:PORT: its certificate comes from no authority that this machine trusts
    hint: check addr in [teleport]: host:443 of a Proxy Service, or host:3025 of an Auth Service
    ");
}
