//! A stand-in for Teleport's Proxy Service, in front of the Auth Services of one or more clusters,
//! and one for the HTTP proxy of a company. Both listen on 127.0.0.1.
//!
//! The Proxy does what Teleport's does on one port: a connection whose first ALPN entry is
//! `teleport-auth@<hex>.teleport.cluster.local` it passes on unopened to the Auth Service of the
//! cluster of that name, which may be a leaf's. All others speak TLS with itself, and find its
//! transport service.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::{Stream, StreamExt, stream};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::io::ReaderStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::demo::auth::{Error, Peer};
use crate::demo::certs::Cluster;
use crate::demo::connection::Cuttable;
use crate::demo::lock::Lock;
use crate::teleport::proto::transport::transport_service_server::{
    TransportService, TransportServiceServer,
};
use crate::teleport::proto::transport::{Frame, ProxyClusterRequest, ProxyClusterResponse};

/// More than any ClientHello.
const HELLO_BYTES: usize = 16 << 10;

/// A running Proxy. Dropping it stops it; connections are cut.
pub struct StandInProxy {
    address: SocketAddr,
    ways: Arc<Ways>,
    stop: CancellationToken,
}

/// What all connections share.
struct Ways {
    /// Auth Services by their clusters' names.
    auths: HashMap<String, SocketAddr>,
    routes_tls: bool,
    n_routed: AtomicU64,
    n_carried: AtomicU64,
    stop: CancellationToken,
}

impl StandInProxy {
    /// Listens before the Auth Services of these clusters. `root` is the Proxy's own one; without
    /// TLS routing there is its transport service alone.
    ///
    /// # Errors
    /// If the certificate cannot be made or there is no port.
    pub async fn start(
        root: &Cluster,
        auths: impl IntoIterator<Item = (String, SocketAddr)>,
        routes_tls: bool,
    ) -> Result<Self, Error> {
        let tls = root.proxy_config().map_err(Error::Certificates)?;
        let (listener, address) = listen().await?;
        let stop = CancellationToken::new();
        let ways = Arc::new(Ways {
            auths: auths.into_iter().collect(),
            routes_tls,
            n_routed: AtomicU64::new(0),
            n_carried: AtomicU64::new(0),
            stop: stop.clone(),
        });
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(accept(
            listener,
            TlsAcceptor::from(Arc::new(tls)),
            Arc::clone(&ways),
            sender,
        ));
        let incoming = stream::unfold(receiver, |mut receiver| async {
            let connection = receiver.recv().await?;
            Some((Ok::<_, io::Error>(connection), receiver))
        });
        let service = TransportServiceServer::new(Transport(Arc::clone(&ways)));
        let serve = Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        tokio::spawn(serve);
        Ok(Self {
            address,
            ways,
            stop,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections were passed on by ALPN.
    pub fn n_routed(&self) -> u64 {
        self.ways.n_routed.load(Ordering::Relaxed)
    }

    /// How many connections the transport service has carried.
    pub fn n_carried(&self) -> u64 {
        self.ways.n_carried.load(Ordering::Relaxed)
    }
}

impl Drop for StandInProxy {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn listen() -> Result<(TcpListener, SocketAddr), Error> {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let failed = |source| Error::Listen { listen, source };
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// Small pieces go on at once, as with every proxy written in Go.
async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    ways: Arc<Ways>,
    sender: mpsc::Sender<Cuttable<TlsStream<TcpStream>>>,
) {
    while let Some(accepted) = ways.stop.run_until_cancelled(listener.accept()).await {
        let Ok((mut client, _)) = accepted else {
            continue;
        };
        let (acceptor, ways, sender) = (acceptor.clone(), Arc::clone(&ways), sender.clone());
        tokio::spawn(async move {
            let token = ways.stop.child_token();
            if let Err(error) = client.set_nodelay(true) {
                tracing::debug!(%error, "cannot switch off the delay of small packets");
            }
            let routed = ways.routed(&client).await;
            if let Some(auth) = routed {
                ways.n_routed.fetch_add(1, Ordering::Relaxed);
                if let Ok(mut auth) = connect(auth).await {
                    // Either side may go away at any time; that is what ends the copy.
                    let copy = copy_bidirectional(&mut client, &mut auth);
                    drop(token.run_until_cancelled(copy).await);
                }
                return;
            }
            if let Ok(stream) = acceptor.accept(client).await {
                // If nobody receives, the server is stopping, and the connection ends here.
                drop(sender.send(Cuttable::new(stream, token)).await);
            }
        });
    }
}

impl Ways {
    /// The Auth Service that the client asks for in its ClientHello, which stays unread.
    async fn routed(&self, client: &TcpStream) -> Option<SocketAddr> {
        if !self.routes_tls {
            return None;
        }
        let mut seen = vec![0; HELLO_BYTES];
        loop {
            let length = client.peek(&mut seen).await.ok()?;
            let mut acceptor = rustls::server::Acceptor::default();
            acceptor.read_tls(&mut &seen[..length]).ok()?;
            match acceptor.accept() {
                Ok(Some(accepted)) => {
                    let hello = accepted.client_hello();
                    let first = hello.alpn()?.next()?;
                    return self.auths.get(&asked_for(first)?).copied();
                }
                // A part of it. What has come stays readable, so there is nothing to wait for.
                Ok(None) if length > 0 => tokio::task::yield_now().await,
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

/// The name of the cluster in the ALPN entry by which a Proxy routes.
fn asked_for(protocol: &[u8]) -> Option<String> {
    let protocol = std::str::from_utf8(protocol).ok()?;
    let hex = protocol
        .strip_prefix("teleport-auth@")?
        .strip_suffix(".teleport.cluster.local")?;
    let digits: Option<Vec<u8>> = hex
        .chars()
        .map(|digit| u8::try_from(digit.to_digit(16)?).ok())
        .collect();
    let bytes = digits?
        .chunks(2)
        .map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit))
        .collect();
    String::from_utf8(bytes).ok()
}

/// The Proxy's transport service.
struct Transport(Arc<Ways>);

#[tonic::async_trait]
impl TransportService for Transport {
    type ProxyClusterStream =
        Pin<Box<dyn Stream<Item = Result<ProxyClusterResponse, Status>> + Send>>;

    async fn proxy_cluster(
        &self,
        call: Request<Streaming<ProxyClusterRequest>>,
    ) -> Result<Response<Self::ProxyClusterStream>, Status> {
        let peer = call.extensions().get::<Peer>();
        if !peer.is_some_and(|peer| peer.has_certificate) {
            return Err(Status::permission_denied("access denied to anonymous user"));
        }
        let mut requests = call.into_inner();
        let first = requests.message().await?;
        let first = first.ok_or_else(|| Status::invalid_argument("no request came"))?;
        let Some(auth) = self.0.auths.get(&first.cluster) else {
            let message = format!("cluster {:?} is not connected", first.cluster);
            return Err(Status::not_found(message));
        };
        let auth = connect(*auth).await?;
        self.0.n_carried.fetch_add(1, Ordering::Relaxed);
        let (from, mut to) = auth.into_split();
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                let payload = request.frame.unwrap_or_default().payload;
                if to.write_all(&payload).await.is_err() {
                    return;
                }
            }
        });
        let answers = ReaderStream::new(from).map(|payload| {
            let frame = Frame { payload: payload? };
            Ok(ProxyClusterResponse { frame: Some(frame) })
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

/// An HTTP proxy that knows CONNECT alone, and leads to one address whatever it is asked for: the
/// names that it is asked for need not exist. Dropping it stops it; connections are cut.
pub struct StandInHttpProxy {
    address: SocketAddr,
    asked: Arc<Lock<Vec<String>>>,
    stop: CancellationToken,
}

impl StandInHttpProxy {
    /// Listens, and demands this `Proxy-Authorization` if there is one.
    ///
    /// # Errors
    /// If there is no port.
    pub async fn start(target: SocketAddr, authorization: Option<&str>) -> Result<Self, Error> {
        let (listener, address) = listen().await?;
        let stop = CancellationToken::new();
        let asked = Arc::new(Lock::<Vec<String>>::default());
        let authorization = authorization.map(|value| format!("Proxy-Authorization: {value}"));
        let (all, seen) = (stop.clone(), Arc::clone(&asked));
        tokio::spawn(async move {
            while let Some(accepted) = all.run_until_cancelled(listener.accept()).await {
                let Ok((client, _)) = accepted else {
                    continue;
                };
                let tunnel = tunnel(client, target, authorization.clone(), Arc::clone(&seen));
                let stop = all.clone();
                tokio::spawn(async move {
                    // The client may go away at any time.
                    drop(stop.run_until_cancelled(tunnel).await);
                });
            }
        });
        Ok(Self {
            address,
            asked,
            stop,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What was asked for: the first line of each request.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().clone()
    }
}

impl Drop for StandInHttpProxy {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn tunnel(
    client: TcpStream,
    target: SocketAddr,
    authorization: Option<String>,
    seen: Arc<Lock<Vec<String>>>,
) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut client = BufReader::new(client);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        client.read_line(&mut line).await?;
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_owned()),
        }
    }
    seen.lock().extend(head.first().cloned());
    if authorization.is_some_and(|wanted| !head.contains(&wanted)) {
        let refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n";
        return client.write_all(refusal).await;
    }
    let mut server = connect(target).await?;
    client
        .write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
        .await?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}
