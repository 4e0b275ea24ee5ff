//! HTTPS to Elasticsearch: authorities of one's own, by certificate and by fingerprint, names,
//! client certificates, and an HTTP proxy on the way. The server is the stand-in behind a listener
//! that ends TLS.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use insta::assert_snapshot;
use teleport_event_indexer::config::CaFingerprint;
use teleport_event_indexer::demo::elastic::{
    Credentials, ElasticsearchOptions, StandInElasticsearch,
};
use teleport_event_indexer::demo::proxy::StandInHttpProxy;
use teleport_event_indexer::secret::Secret;

use crate::support::listener::{Authority, Listener};
use crate::support::program::Indexer;
use crate::support::stand_ins::{NOBODY, block_on, elasticsearch};

const NAMES: &[&str] = &["127.0.0.1"];

fn server() -> StandInElasticsearch {
    elasticsearch(ElasticsearchOptions::default())
}

/// Runs `install` and tells its exit code and what it said, but for the line on the connection.
fn install(indexer: &Indexer, hosts: &str, more: &[&str]) -> (Option<i32>, String) {
    let args = ["install", "--elasticsearch-hosts", hosts];
    let output = indexer.run(&[&args[..], more].concat());
    let lines = output.stderr.lines();
    let lines = lines.filter(|line| !line.contains("connected to Elasticsearch"));
    let said: Vec<&str> = lines.collect();
    (output.code, said.join("\n"))
}

fn succeeds(indexer: &Indexer, hosts: &str, more: &[&str]) {
    let (code, said) = install(indexer, hosts, more);
    assert_eq!(code, Some(0), "{said}");
}

/// What is said of a failure at `hosts`.
fn fails(indexer: &Indexer, hosts: &str, more: &[&str]) -> String {
    let (code, said) = install(indexer, hosts, more);
    assert_eq!(code, Some(1), "{said}");
    said.replace(hosts, "HOST")
}

fn https(listener: &Listener) -> String {
    format!("https://{}", listener.address)
}

#[test]
fn an_own_authority_is_trusted_and_no_other() {
    let server = server();
    let (ours, other) = (Authority::new(), Authority::new());
    let good = Listener::before(server.address(), ours.ends_tls(NAMES, None));
    let misnamed = ours.ends_tls(&["elsewhere.example"], None);
    let misnamed = Listener::before(server.address(), misnamed);
    let indexer = Indexer::new();
    indexer.write("ca.pem", &ours.pem);
    indexer.write("other.pem", &other.pem);
    indexer.write("both.pem", &format!("{}{}", other.pem, ours.pem));

    let ca = ["--elasticsearch-ca", "ca.pem"];
    succeeds(&indexer, &https(&good), &ca);
    let both = ["--elasticsearch-ca", "both.pem"];
    succeeds(&indexer, &https(&good), &both);
    assert_snapshot!(fails(&indexer, &https(&good), &[]), @"
    error: no answer from Elasticsearch at HOST/: its certificate comes from an authority that is not trusted here
    hint: give that authority's certificate as ca in [forward.elasticsearch]
    ");
    let other = ["--elasticsearch-ca", "other.pem"];
    assert_snapshot!(fails(&indexer, &https(&good), &other), @"
    error: no answer from Elasticsearch at HOST/: its certificate comes from an authority that is not trusted here
    hint: give that authority's certificate as ca in [forward.elasticsearch]
    ");
    assert_snapshot!(fails(&indexer, &https(&misnamed), &ca), @"
    error: no answer from Elasticsearch at HOST/: its certificate is for another name
    hint: write the certificate's name into hosts in [forward.elasticsearch]
    ");

    // The system's own authorities, which here are these.
    let indexer = indexer.env("SSL_CERT_FILE", "ca.pem");
    succeeds(&indexer, &https(&good), &[]);
}

#[test]
fn an_authority_is_known_by_its_fingerprint() {
    let server = server();
    let (ours, other) = (Authority::new(), Authority::new());
    let clients = Authority::new();
    let good = Listener::before(server.address(), ours.ends_tls(NAMES, None));
    let misnamed = ours.ends_tls(&["elsewhere.example"], None);
    let misnamed = Listener::before(server.address(), misnamed);
    let asks = ours.ends_tls(NAMES, Some(&clients));
    let asks = Listener::before(server.address(), asks);
    let indexer = Indexer::new();
    let (certificate, key) = clients.leaf(&["indexer"]);
    indexer.write("client.crt", &certificate.pem());
    indexer.write("client.key", &key.serialize_pem());

    let ours = CaFingerprint::of(&ours.der()).to_string();
    let by = |fingerprint: &str| format!("--elasticsearch-ca-fingerprint={fingerprint}");
    let with_colons = by(&ours);
    succeeds(&indexer, &https(&good), &[&with_colons]);
    let bare = by(&ours.replace(':', "").to_lowercase());
    succeeds(&indexer, &https(&good), &[&bare]);
    let files = [
        "--elasticsearch-client-cert=client.crt",
        "--elasticsearch-client-key=client.key",
    ];
    let with_files = [&[&*with_colons][..], &files].concat();
    succeeds(&indexer, &https(&asks), &with_files);

    let other = by(&CaFingerprint::of(&other.der()).to_string());
    let said = fails(&indexer, &https(&good), &[&other]);
    let (said, theirs) = said.split_once("theirs: ").unwrap_or((&said, ""));
    assert_snapshot!(said, @"error: no answer from Elasticsearch at HOST/: no certificate that it shows has the fingerprint ca-fingerprint; ");
    let (theirs, hint) = theirs.split_once('\n').unwrap_or((theirs, ""));
    let (leaf, authority) = theirs.split_once(", ").unwrap_or((theirs, ""));
    assert_eq!((leaf.len(), authority), (ours.len(), &*ours));
    assert_snapshot!(hint, @"hint: compare with `openssl x509 -noout -fingerprint -sha256 -in http_ca.crt`; where the server shows its own certificate alone, give its CA's as ca");
    // What `openssl s_client` shows first.
    let ours_again = Authority::new();
    let (certificate, key) = ours_again.leaf(NAMES);
    let own = by(&CaFingerprint::of(certificate.der()).to_string());
    let shows = ours_again.shows((certificate, key), None);
    let shows = Listener::before(server.address(), shows);
    let said = fails(&indexer, &https(&shows), &[&own]);
    let theirs = CaFingerprint::of(&ours_again.der()).to_string();
    assert_snapshot!(said.replace(&theirs, "THEIRS"), @"
    error: no answer from Elasticsearch at HOST/: ca-fingerprint is that of its own certificate, not of the CA that issued it; CAs that it shows: THEIRS
    hint: give the CA's fingerprint, once you know it to be yours, or its certificate as ca
    ");
    // Trusted for its own names alone.
    assert_snapshot!(fails(&indexer, &https(&misnamed), &[&with_colons]), @"
    error: no answer from Elasticsearch at HOST/: its certificate is for another name
    hint: write the certificate's name into hosts in [forward.elasticsearch]
    ");
    assert_snapshot!(fails(&indexer, &server.url().replace("http:", "https:"), &[&with_colons]), @"
    error: no answer from Elasticsearch at HOST/: it does not speak TLS
    hint: check hosts in [forward.elasticsearch]: http:// in place of https://?
    ");
    assert_snapshot!(fails(&indexer, &format!("https://{NOBODY}"), &[&with_colons]), @"
    error: no answer from Elasticsearch at HOST/: nothing listens there
    hint: check hosts in [forward.elasticsearch], and that Elasticsearch runs there
    ");
    let (code, said) = install(
        &indexer,
        &server.url(),
        &[&bare, "--elasticsearch-ca=ca.pem"],
    );
    assert_eq!(code, Some(2));
    assert_snapshot!(said, @"
    error: --elasticsearch-ca-fingerprint: excludes --elasticsearch-ca; keep one of them
    error: --elasticsearch-ca-fingerprint: goes with hosts of https:// alone: what is not encrypted shows no certificate
    ");
}

#[test]
fn a_client_certificate_goes_beside_an_api_key() {
    let credentials = Credentials::ApiKey {
        id: "id".into(),
        key: Secret::new("s3cret"),
    };
    let server = elasticsearch(ElasticsearchOptions {
        credentials: Some(credentials),
        ..ElasticsearchOptions::default()
    });
    let (ours, clients) = (Authority::new(), Authority::new());
    let conduct = ours.ends_tls(NAMES, Some(&clients));
    let listener = Listener::before(server.address(), conduct);
    let host = https(&listener);
    let indexer = Indexer::new();
    let (certificate, key) = clients.leaf(&["indexer"]);
    indexer.write("ca.pem", &ours.pem);
    indexer.write("client.crt", &certificate.pem());
    indexer.write_private("client.key", &key.serialize_pem());
    indexer.write_private("api-key", "id:s3cret\n");
    indexer.write_private("encoded", "ApiKey aWQ6czNjcmV0\n");

    let ca = "--elasticsearch-ca=ca.pem";
    let key = "--elasticsearch-api-key=file:api-key";
    let files = [
        "--elasticsearch-client-cert=client.crt",
        "--elasticsearch-client-key=client.key",
    ];
    succeeds(&indexer, &host, &[&[ca, key][..], &files].concat());
    let encoded = "--elasticsearch-api-key=file:encoded";
    succeeds(&indexer, &host, &[&[ca, encoded][..], &files].concat());

    assert_snapshot!(fails(&indexer, &host, &[ca, key]), @"
    error: no answer from Elasticsearch at HOST/: it asks for a client certificate
    hint: set client-cert and client-key in [forward.elasticsearch]
    ");
    assert_snapshot!(fails(&indexer, &host, &[&[ca][..], &files].concat()), @"
    error: Elasticsearch at HOST/ refuses the credentials: status 401, security_exception: missing authentication credentials for REST request [/]
    hint: check user and password, or api-key, in [forward.elasticsearch]; with client-cert alone, Elasticsearch needs a PKI realm that trusts its authority
    ");
    // Of another authority, and of another key.
    let (stranger, key_of_stranger) = Authority::new().leaf(&["indexer"]);
    indexer.write("client.crt", &stranger.pem());
    let (code, said) = install(&indexer, &host, &[&[ca, key][..], &files].concat());
    assert_eq!(code, Some(2));
    assert_snapshot!(said.replace(&host, "HOST"), @"
    error: the client certificate client.crt and the key client.key do not belong together
    hint: check ca, client-cert and client-key in [forward.elasticsearch]
    ");
    indexer.write_private("client.key", &key_of_stranger.serialize_pem());
    assert_snapshot!(fails(&indexer, &host, &[&[ca, key][..], &files].concat()), @"
    error: no answer from Elasticsearch at HOST/: it does not accept our client certificate
    hint: give one of an authority that it trusts as client-cert and client-key in [forward.elasticsearch]
    ");
}

/// Names that only the proxy can resolve.
#[test]
fn an_http_proxy_leads_to_elasticsearch_and_not_to_this_machine() {
    const HOST: &str = "https://elasticsearch.invalid:9200";
    let server = server();
    let ours = Authority::new();
    let conduct = ours.ends_tls(&["elasticsearch.invalid", "127.0.0.1"], None);
    let listener = Listener::before(server.address(), conduct);
    // What curl makes of user:secret.
    let start = StandInHttpProxy::start(listener.address, Some("Basic dXNlcjpzZWNyZXQ="));
    let proxy = block_on(start).expect("there is a free port");
    let indexer = Indexer::new();
    indexer.write("ca.pem", &ours.pem);
    let by_ca = ["--elasticsearch-ca=ca.pem"];
    let fingerprint = CaFingerprint::of(&ours.der());
    let by_fingerprint = [&*format!("--elasticsearch-ca-fingerprint={fingerprint}")];
    let with = |user: &str| format!("http://{user}{}", proxy.address());
    let indexer = indexer.env("HTTPS_PROXY", &with("user:secret@"));
    for trust in [&by_ca, &by_fingerprint] {
        let n_asked = proxy.asked().len();
        succeeds(&indexer, HOST, trust);
        let asked = proxy.asked();
        assert!(asked.len() > n_asked);
        for asked in asked {
            assert_eq!(asked, "CONNECT elasticsearch.invalid:9200 HTTP/1.1");
        }
    }
    let n_asked = proxy.asked().len();
    succeeds(&indexer, &https(&listener), &by_ca);
    assert_eq!(proxy.asked().len(), n_asked);

    let indexer = indexer.env("HTTPS_PROXY", &with(""));
    let said = fails(&indexer, HOST, &by_ca);
    let said = said.replace(&proxy.address().to_string(), "PROXY");
    assert_snapshot!(said, @"
    error: no answer from Elasticsearch at HOST/ by way of the HTTP proxy PROXY: the proxy wants a user and password
    hint: set HTTPS_PROXY=http://user:password@host:port
    ");
    let indexer = indexer.env("HTTPS_PROXY", &format!("http://user:secret@{NOBODY}"));
    assert_snapshot!(fails(&indexer, HOST, &by_ca), @"
    error: no answer from Elasticsearch at HOST/ by way of the HTTP proxy 127.0.0.1:1: nothing listens there
    hint: check HTTPS_PROXY, or name the host in NO_PROXY if it can be reached without
    ");
    let indexer = indexer.env("NO_PROXY", "elasticsearch.invalid");
    assert_snapshot!(fails(&indexer, HOST, &by_ca), @"
    error: no answer from Elasticsearch at HOST/: the name does not resolve
    hint: check hosts (or cloud-id) in [forward.elasticsearch]
    ");
}

/// Names that only the proxy can resolve, again: nobody here has a deployment in the cloud.
#[test]
fn a_cloud_id_and_its_login_lead_to_the_deployment() {
    let login = Credentials::Basic {
        user: "elastic".into(),
        password: Secret::new("pass:word"),
    };
    let server = elasticsearch(ElasticsearchOptions {
        credentials: Some(login),
        ..ElasticsearchOptions::default()
    });
    let ours = Authority::new();
    let conduct = ours.ends_tls(&["es.cloud.invalid", "kibana.cloud.invalid"], None);
    let listener = Listener::before(server.address(), conduct);
    let proxy = block_on(StandInHttpProxy::start(listener.address, None));
    let proxy = proxy.expect("there is a free port");
    let indexer = Indexer::new();
    indexer.write("ca.pem", &ours.pem);
    indexer.write_private("login", "elastic:pass:word\n");
    let indexer = indexer.env("HTTPS_PROXY", &format!("http://{}", proxy.address()));
    let and = |parts: &str, label: &str, more: &[&str]| {
        let id = BASE64_STANDARD.encode(parts);
        let id = format!(
            "--elasticsearch-cloud-id={label}:{}",
            id.trim_end_matches('=')
        );
        let args = [
            "install",
            &id,
            "--elasticsearch-cloud-auth=file:login",
            "--elasticsearch-ca=ca.pem",
        ];
        indexer.run(&[&args, more].concat())
    };
    let with = |parts: &str, label: &str| and(parts, label, &[]);
    for (parts, port) in [
        ("cloud.invalid$es$kibana", 443),
        ("cloud.invalid:9243$es$undefined", 9243),
        ("cloud.invalid:9243$es:9244$", 9244),
    ] {
        let n_asked = proxy.asked().len();
        let output = with(parts, "a label: with colons");
        assert_eq!(output.code, Some(0), "{parts}: {}", output.stderr);
        let asked = proxy.asked();
        let wanted = format!("CONNECT es.cloud.invalid:{port} HTTP/1.1");
        assert!(asked.len() > n_asked);
        assert!(
            asked[n_asked..].iter().all(|asked| *asked == wanted),
            "{asked:?}"
        );
    }
    // So does Kibana's part, where what answers here is Elasticsearch again.
    for (parts, code, told) in [
        (
            "cloud.invalid$es$kibana:9243",
            1,
            "error: what answers there is no Kibana",
        ),
        (
            "cloud.invalid$es$undefined",
            2,
            "error: --kibana needs a URL",
        ),
    ] {
        let output = and(parts, "label", &["--kibana"]);
        assert_eq!(output.code, Some(code), "{}", output.stderr);
        assert!(output.stderr.contains(told), "{}", output.stderr);
    }
    let of_kibana = "CONNECT kibana.cloud.invalid:9243 HTTP/1.1";
    assert!(proxy.asked().iter().any(|asked| asked == of_kibana));
    indexer.write_private("login", "elastic\n");
    let output = with("cloud.invalid", "label");
    assert_eq!(output.code, Some(2));
    assert_snapshot!(output.stderr, @"
    error: --elasticsearch-cloud-auth: must be user:password
    error: --elasticsearch-cloud-id: is no cloud id: it names no host or no Elasticsearch; copy it whole
    ");
}
