//! Listeners of the tests' own before a server: they end TLS, and go away when a test says so.
#![expect(
    clippy::unwrap_used,
    reason = "clippy takes only what is marked as a test for one, not what tests call"
)]

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

use super::stand_ins::{block_on, spawn};

/// An authority that only who is told of it trusts.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // As Elasticsearch's own are, all are of the same name.
        params
            .distinguished_name
            .push(DnType::CommonName, "an authority of the tests");
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// The certificate itself.
    pub(crate) fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()
    }

    /// A certificate for these names and its key.
    pub(crate) fn leaf(&self, names: &[&str]) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let names = names.iter().map(|name| (*name).to_owned());
        let params = CertificateParams::new(names.collect::<Vec<_>>()).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// Ends TLS as a server of these names, and shows this authority's certificate as well; asks
    /// for a client certificate of `clients` if there is such.
    pub(crate) fn ends_tls(&self, names: &[&str], clients: Option<&Self>) -> Conduct {
        self.shows(self.leaf(names), clients)
    }

    /// The same with a certificate that it has issued, and its key.
    pub(crate) fn shows(
        &self,
        (certificate, key): (rcgen::Certificate, KeyPair),
        clients: Option<&Self>,
    ) -> Conduct {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let mut roots = RootCertStore::empty();
                roots.add(clients.der()).unwrap();
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.unwrap())
            }
        };
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let chain = vec![certificate.der().clone(), self.der()];
        let config = builder.with_single_cert(chain, key).unwrap();
        Conduct::EndsTls(TlsAcceptor::from(Arc::new(config)))
    }
}

/// What a listener does with connections.
#[derive(Clone)]
pub(crate) enum Conduct {
    /// Passes them on.
    Passes,
    /// Passes on requests whose path begins so, without that; hangs up on others.
    Strips(&'static str),
    /// Passes on what is within TLS.
    EndsTls(TlsAcceptor),
    /// Ends TLS and begins it anew, without a certificate of the client's.
    InTheMiddle(TlsAcceptor, TlsConnector),
    /// Accepts them and hangs up.
    HangsUp,
    /// Accepts them and does nothing; so it is with those of before, which are not cut.
    Hangs,
}

/// A listener before a server.
pub(crate) struct Listener {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    /// Ends listening.
    open: CancellationToken,
}

struct Shared {
    target: Mutex<SocketAddr>,
    conduct: Mutex<Conduct>,
    /// Ends the connections of now.
    connections: Mutex<CancellationToken>,
    n_accepted: AtomicU64,
}

impl Listener {
    /// Listens on a port of its own.
    pub(crate) fn before(target: SocketAddr, conduct: Conduct) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), target, conduct)
    }

    fn at(address: SocketAddr, target: SocketAddr, conduct: Conduct) -> Self {
        let listener = block_on(TcpListener::bind(address)).unwrap();
        let address = listener.local_addr().unwrap();
        let open = CancellationToken::new();
        let shared = Arc::new(Shared {
            target: Mutex::new(target),
            conduct: Mutex::new(conduct),
            connections: Mutex::default(),
            n_accepted: AtomicU64::new(0),
        });
        let (all, until) = (shared.clone(), open.clone());
        spawn(async move {
            while let Some(accepted) = until.run_until_cancelled(listener.accept()).await {
                let Ok((client, _)) = accepted else {
                    continue;
                };
                all.n_accepted.fetch_add(1, Ordering::Relaxed);
                let lasts = all.connections();
                let all = all.clone();
                tokio::spawn(async move {
                    let mut served = pin!(serve(client, all.target(), all.conduct()));
                    let is_cut = lasts.run_until_cancelled(served.as_mut()).await.is_none();
                    if is_cut && matches!(all.conduct(), Conduct::Hangs) {
                        // Nothing moves, and nothing is closed.
                        std::future::pending().await
                    }
                });
            }
        });
        Self {
            address,
            shared,
            open,
        }
    }

    /// From now on does this with connections; those of now are cut.
    pub(crate) fn conducts(&self, conduct: Conduct) {
        let now = self.shared.conduct.lock();
        *now.unwrap_or_else(PoisonError::into_inner) = conduct;
        self.cut();
    }

    /// From now on leads to another server; the connections of now are cut.
    pub(crate) fn leads_to(&self, target: SocketAddr) {
        let now = self.shared.target.lock();
        *now.unwrap_or_else(PoisonError::into_inner) = target;
        self.cut();
    }

    fn cut(&self) {
        let connections = &self.shared.connections;
        let mut connections = connections.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *connections).cancel();
    }

    /// Nobody listens any more, and connections are cut.
    pub(crate) fn dies(&self) {
        self.open.cancel();
        self.cut();
    }

    /// Listens again where it did before it died.
    pub(crate) fn revived(&self) -> Self {
        Self::at(self.address, self.shared.target(), self.shared.conduct())
    }

    /// How many connections it has accepted.
    pub(crate) fn n_accepted(&self) -> u64 {
        self.shared.n_accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.dies();
    }
}

impl Shared {
    fn target(&self) -> SocketAddr {
        *self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn conduct(&self) -> Conduct {
        let conduct = self.conduct.lock();
        conduct.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn connections(&self) -> CancellationToken {
        let connections = self.connections.lock();
        connections.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn serve(client: TcpStream, target: SocketAddr, conduct: Conduct) {
    match conduct {
        Conduct::Passes => pass(client, target).await,
        Conduct::Strips(prefix) => strip(client, target, prefix).await,
        Conduct::EndsTls(acceptor) => {
            if let Ok(client) = acceptor.accept(client).await {
                pass(client, target).await;
            }
        }
        Conduct::InTheMiddle(acceptor, connector) => {
            let name = ServerName::try_from("teleport.cluster.local").unwrap();
            let Ok(mut client) = acceptor.accept(client).await else {
                return;
            };
            let server = TcpStream::connect(target).await.unwrap();
            if let Ok(mut server) = connector.connect(name, server).await {
                drop(copy_bidirectional(&mut client, &mut server).await);
            }
        }
        Conduct::HangsUp => {}
        Conduct::Hangs => std::future::pending().await,
    }
}

/// Clients here send the head of a request with one write, and no request before they have the
/// answer to the last one.
async fn strip(client: TcpStream, target: SocketAddr, prefix: &str) {
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let requests = async {
        let mut piece = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from_client.read(&mut piece).await {
            let piece = &piece[..length];
            let stripped = ["GET ", "HEAD ", "POST ", "PUT "]
                .into_iter()
                .find_map(|method| {
                    let path = piece.strip_prefix(method.as_bytes())?;
                    Some(
                        path.strip_prefix(prefix.as_bytes())
                            .map(|path| [method.as_bytes(), path]),
                    )
                });
            let sent = match stripped {
                None => to_server.write_all(piece).await,
                Some(Some(pieces)) => to_server.write_all(&pieces.concat()).await,
                Some(None) => return,
            };
            if sent.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = requests => {}
        // Whatever ends it, the client sees it.
        _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
    }
}

async fn pass(mut client: impl AsyncRead + AsyncWrite + Unpin, target: SocketAddr) {
    if let Ok(mut server) = TcpStream::connect(target).await {
        // Either side may go away at any time; that is what ends the copy.
        drop(copy_bidirectional(&mut client, &mut server).await);
    }
}
