//! Through a Proxy without TLS routing: its transport service carries bytes to the Auth Service of
//! a cluster, as messages of a gRPC stream. It listens where SSH does (usually port 3023), and asks
//! for the same client certificate as Auth does.

use std::future::ready;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, TryStreamExt, stream};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};
use tokio_util::sync::PollSender;
use tonic::transport::Endpoint;
use tonic::{Code, Status};
use tracing::debug;

use super::error::AttemptError;
use super::{AnyStream, tcp, tls};
use crate::config::Address;
use crate::output::Chain;
use crate::teleport::identity::Credentials;
use crate::teleport::proto::transport::transport_service_client::TransportServiceClient;
use crate::teleport::proto::transport::{Frame, ProxyClusterRequest};

/// How long the Proxy may take to say where its services listen.
const FIND_PATIENCE: Duration = Duration::from_secs(5);

/// Where a Proxy listens for SSH if it says nothing else.
const SSH_PORT: u16 = 3023;

/// How many pieces of at most 16 KiB may wait for the Proxy to take them.
const QUEUE: usize = 16;

/// The part of `/webapi/find` that tells where services listen.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Found {
    proxy: FoundProxy,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct FoundProxy {
    tls_routing_enabled: bool,
    ssh: FoundSsh,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct FoundSsh {
    ssh_public_addr: String,
    listen_addr: String,
}

impl Found {
    /// Where the transport service is, of a Proxy whose web service is at `web`.
    fn transport(&self, web: &Address) -> Address {
        if self.proxy.tls_routing_enabled {
            return web.clone();
        }
        if let Ok(public) = Address::parse(&self.proxy.ssh.ssh_public_addr) {
            return public;
        }
        // It may listen on all addresses, so that only the port tells us something.
        let listens = Address::parse(&self.proxy.ssh.listen_addr);
        Address {
            host: web.host.clone(),
            port: listens.map_or(SSH_PORT, |listens| listens.port),
        }
    }
}

/// Asks the Proxy's web service where the transport service is.
pub(super) async fn find(web: &Address) -> Result<Address, AttemptError> {
    let asked = async {
        // It reads the same environment for proxies and authorities as everything here.
        let client = reqwest::Client::builder().timeout(FIND_PATIENCE).build()?;
        let answer = client
            .get(format!("https://{web}/webapi/find"))
            .send()
            .await?;
        answer.error_for_status()?.bytes().await
    };
    let answer = asked.await.map_err(|error| {
        let is_transient = match error.status() {
            Some(status) => status.is_server_error(),
            None => true,
        };
        let error = error.without_url();
        unknown(web, Chain(&error.without_url()).to_string(), is_transient)
    })?;
    let found: Found = serde_json::from_slice(&answer).map_err(|_| {
        let problem = "it does not answer as a Proxy Service does".to_owned();
        unknown(web, problem, false)
    })?;
    debug!(?found, "{web} tells where its services are");
    Ok(found.transport(web))
}

fn unknown(web: &Address, problem: String, is_transient: bool) -> AttemptError {
    AttemptError::Find {
        address: web.clone(),
        problem,
        is_transient,
    }
}

/// Makes a stream of bytes that ends at the Auth Service of the credentials' cluster.
pub(super) async fn connect(
    proxies: &Matcher,
    address: &Address,
    credentials: &Credentials,
) -> Result<AnyStream, AttemptError> {
    let tcp = tcp::connect(proxies, address).await?;
    // The second name is for a Proxy that knows gRPC alone on this port.
    let alpn = vec![b"teleport-proxy-ssh-grpc".to_vec(), b"h2".to_vec()];
    let tls = tls::to_cluster(tcp, address, credentials, alpn).await?;
    if !tls::is_proxy(&tls) {
        return Err(failed(address, "no Proxy Service answers there", false));
    }
    let mut once = Some(TokioIo::new(tls));
    let connector = tower::service_fn(move |_| {
        let stream = once.take();
        // If it breaks, a new one is dialled above.
        async { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
    });
    let channel = Endpoint::from_static("http://teleport.cluster.local")
        .http2_keep_alive_interval(Duration::from_secs(60))
        .keep_alive_timeout(Duration::from_secs(180))
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
        .map_err(|error| failed(address, &Chain(&error).to_string(), true))?;
    let mut client = TransportServiceClient::new(channel);

    let (sender, mut receiver) = mpsc::channel(QUEUE);
    let first = ProxyClusterRequest {
        cluster: credentials.cluster.clone(),
        frame: None,
    };
    let later = stream::poll_fn(move |context| receiver.poll_recv(context));
    let requests = stream::iter([first]).chain(later);
    // The Proxy may not answer before the first bytes have come, and these come only once this is
    // polled, so it is a part of reading. The client is kept: without it the connection would end.
    let call = async move {
        let answers = client.proxy_cluster(requests).await?.into_inner();
        Ok::<_, Status>(answers.map_ok(move |answer| {
            let _kept = &client;
            answer.frame.unwrap_or_default().payload
        }))
    };
    let answers = stream::once(call).try_flatten().map_err(io::Error::other);
    let reader = StreamReader::new(Box::pin(answers));
    let requests = PollSender::new(sender)
        .sink_map_err(io::Error::other)
        .with(|payload: Bytes| {
            ready(Ok::<_, io::Error>(ProxyClusterRequest {
                cluster: String::new(),
                frame: Some(Frame { payload }),
            }))
        });
    let writer = SinkWriter::new(CopyToBytes::new(requests));
    Ok(Box::new(tokio::io::join(reader, writer)))
}

/// What a broken stream means if it is this service that broke it.
pub(super) fn explain(address: &Address, error: &io::Error) -> Option<AttemptError> {
    let status: &Status = error.get_ref()?.downcast_ref()?;
    let is_final = matches!(
        status.code(),
        Code::Unimplemented | Code::PermissionDenied | Code::Unauthenticated | Code::NotFound
    );
    let problem = match status.code() {
        Code::Unimplemented => "it has none; Teleport 12 or newer does".to_owned(),
        code => format!("{code:?}: {}", status.message()),
    };
    Some(failed(address, &problem, !is_final))
}

fn failed(address: &Address, problem: &str, is_transient: bool) -> AttemptError {
    AttemptError::Transport {
        address: address.clone(),
        problem: problem.to_owned(),
        is_transient,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_is_where_the_proxy_says() {
        let web = Address::parse("proxy.example:3080").unwrap();
        let at = |json: &str| {
            let found: Found = serde_json::from_str(json).unwrap();
            found.transport(&web).to_string()
        };
        let public = r#"{"proxy": {"ssh": {"ssh_public_addr": "ssh.example:4023",
            "listen_addr": "0.0.0.0:3023", "public_addr": "proxy.example:3080"}}}"#;
        assert_eq!(at(public), "ssh.example:4023");
        let listens = r#"{"proxy": {"ssh": {"listen_addr": "[::]:5023"}}, "cluster_name": "a"}"#;
        assert_eq!(at(listens), "proxy.example:5023");
        assert_eq!(at("{}"), "proxy.example:3023");
        let routed = r#"{"proxy": {"tls_routing_enabled": true}}"#;
        assert_eq!(at(routed), "proxy.example:3080");
    }
}
