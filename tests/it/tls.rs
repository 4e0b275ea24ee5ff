//! HTTPS to Elasticsearch: an authority of one's own, one that is not trusted, a client
//! certificate beside an API key. The server is the stand-in behind a TLS listener.
#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::net::SocketAddr;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use teleport_event_indexer::demo::elastic::{
    Credentials, ElasticsearchOptions, StandInElasticsearch,
};
use teleport_event_indexer::secret::Secret;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::support::program::Indexer;

pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(super) pem: String,
}

impl Authority {
    pub(super) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// A certificate for these names and its key.
    fn leaf(&self, names: &[&str]) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let names = names
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<Vec<_>>();
        let params = CertificateParams::new(names).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }
}

/// Ends TLS before `target`; asks clients for a certificate of `clients` if there is such.
pub(super) async fn tls_before(
    target: SocketAddr,
    authority: &Authority,
    names: &[&str],
    clients: Option<&Authority>,
) -> SocketAddr {
    let (certificate, key) = authority.leaf(names);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let mut roots = RootCertStore::empty();
            let pem = clients.pem.as_bytes();
            let der = rustls::pki_types::pem::PemObject::from_pem_slice(pem).unwrap();
            roots.add(der).unwrap();
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.unwrap())
        }
    };
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = builder
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut client) = acceptor.accept(client).await else {
                    return;
                };
                let Ok(mut server) = TcpStream::connect(target).await else {
                    return;
                };
                // Either side may go away at any time; that is what ends the copy.
                drop(tokio::io::copy_bidirectional(&mut client, &mut server).await);
            });
        }
    });
    address
}

async fn install(indexer: Arc<Indexer>, args: Vec<String>) -> (Option<i32>, String) {
    tokio::task::spawn_blocking(move || {
        let args: Vec<&str> = ["install"]
            .into_iter()
            .chain(args.iter().map(|a| &**a))
            .collect();
        let output = indexer.run(&args);
        (output.code, output.stderr)
    })
    .await
    .unwrap()
}

fn flags(address: SocketAddr, more: &[(&str, &str)]) -> Vec<String> {
    let hosts = format!("https://127.0.0.1:{}", address.port());
    let mut flags = vec!["--elasticsearch-hosts".to_owned(), hosts];
    for (flag, value) in more {
        flags.extend([(*flag).to_owned(), (*value).to_owned()]);
    }
    flags
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_own_authority_is_trusted_and_no_other() {
    let server = StandInElasticsearch::start(ElasticsearchOptions::default())
        .await
        .unwrap();
    let (ours, other) = (Authority::new(), Authority::new());
    let address = tls_before(server.address(), &ours, &["127.0.0.1"], None).await;
    let misnamed = tls_before(server.address(), &ours, &["elsewhere.example"], None).await;
    let indexer = Arc::new(Indexer::new());
    indexer.write("ca.pem", &ours.pem);
    indexer.write("other.pem", &other.pem);

    let ca = ("--elasticsearch-ca", "ca.pem");
    let (code, stderr) = install(indexer.clone(), flags(address, &[ca])).await;
    assert_eq!(code, Some(0), "{stderr}");

    let untrusted = "its certificate comes from an authority that is not trusted here";
    let (code, stderr) = install(indexer.clone(), flags(address, &[])).await;
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains(untrusted), "{stderr}");
    let other = ("--elasticsearch-ca", "other.pem");
    let (code, stderr) = install(indexer.clone(), flags(address, &[other])).await;
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains(untrusted), "{stderr}");

    let (code, stderr) = install(indexer.clone(), flags(misnamed, &[ca])).await;
    assert_eq!(code, Some(1), "{stderr}");
    let wrong_name = "its certificate is for another name";
    assert!(stderr.contains(wrong_name), "{stderr}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_certificate_goes_beside_an_api_key() {
    let credentials = Credentials::ApiKey {
        id: "id".into(),
        key: Secret::new("s3cret"),
    };
    let options = ElasticsearchOptions {
        credentials: Some(credentials),
        ..ElasticsearchOptions::default()
    };
    let server = StandInElasticsearch::start(options).await.unwrap();
    let (ours, clients) = (Authority::new(), Authority::new());
    let address = tls_before(server.address(), &ours, &["127.0.0.1"], Some(&clients)).await;
    let indexer = Arc::new(Indexer::new());
    let (certificate, key) = clients.leaf(&["indexer"]);
    indexer.write("ca.pem", &ours.pem);
    indexer.write("client.crt", &certificate.pem());
    indexer.write("client.key", &key.serialize_pem());
    indexer.write("api-key", "id:s3cret\n");

    let ca = ("--elasticsearch-ca", "ca.pem");
    let key = ("--elasticsearch-api-key", "file:api-key");
    let certificate = [
        ("--elasticsearch-client-cert", "client.crt"),
        ("--elasticsearch-client-key", "client.key"),
    ];
    let with_all = [&[ca, key][..], &certificate].concat();
    let (code, stderr) = install(indexer.clone(), flags(address, &with_all)).await;
    assert_eq!(code, Some(0), "{stderr}");

    let (code, stderr) = install(indexer.clone(), flags(address, &[ca, key])).await;
    assert_eq!(code, Some(1), "{stderr}");
    let without_key = [&[ca][..], &certificate].concat();
    let (code, stderr) = install(indexer.clone(), flags(address, &without_key)).await;
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("refuses the credentials"), "{stderr}");
    assert!(!stderr.contains("s3cret"), "{stderr}");
}
