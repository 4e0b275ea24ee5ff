//! Through a layer-7 load balancer: it ends TLS and so takes ALPN away, by which a Proxy would
//! know where to pass a connection on to. A websocket to the Proxy's web service carries the true
//! TLS connection instead. The subprotocol `alpn-ping` has the Proxy send pings, for load balancers
//! that cut what is silent.

use std::future::ready;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use http::{Request, StatusCode, header};
use hyper_util::client::proxy::matcher::Matcher;
use rustls::{AlertDescription, PeerMisbehaved};
use tokio::time::timeout;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::{Error as WebSocketError, Message};
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};
use tracing::debug;

use super::error::{self, AttemptError};
use super::{AnyStream, tcp, tls};
use crate::config::Address;

/// As long as Teleport's own client waits for the test.
const TEST_PATIENCE: Duration = Duration::from_secs(5);

/// A protocol that every Proxy with TLS routing knows.
const PROBE: &[u8] = b"teleport-reversetunnel";

const SUBPROTOCOL: &str = "alpn-ping";

/// Whether the user has decided by `TELEPORT_TLS_ROUTING_CONN_UPGRADE` if this address needs an
/// upgrade: a list of `bool` for all addresses and `host:port=bool`, which wins.
pub(super) fn decided(setting: &str, address: &Address) -> Option<bool> {
    if setting.trim().is_empty() {
        return None;
    }
    let address = address.to_string();
    let mut for_all = false;
    for item in setting.split([',', ';']).map(str::trim) {
        match item.rsplit_once('=') {
            Some((of, is_needed)) if of.trim() == address => return Some(is_true(is_needed)),
            Some(_) => {}
            None => for_all = is_true(item),
        }
    }
    Some(for_all)
}

fn is_true(text: &str) -> bool {
    let text = text.trim().to_ascii_lowercase();
    matches!(&*text, "1" | "t" | "true" | "y" | "yes" | "on")
}

/// Finds out whether ALPN gets lost on the way.
pub(super) async fn test(proxies: &Matcher, address: &Address) -> Result<(), AttemptError> {
    let stream = tcp::connect(proxies, address).await?;
    let handshake = tls::web_handshake(stream, address, &[PROBE]);
    let handshake = timeout(TEST_PATIENCE, handshake).await;
    let failed = match handshake {
        Ok(Ok(stream)) if stream.get_ref().1.alpn_protocol().is_some() => {
            let address = address.clone();
            return Err(AttemptError::NotNeeded { address });
        }
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(failed)) => failed,
        Err(_) => io::ErrorKind::TimedOut.into(),
    };
    match error::tls_error(&failed) {
        Some(
            rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)
            | rustls::Error::PeerMisbehaved(PeerMisbehaved::SelectedUnofferedApplicationProtocol),
        ) => Ok(()),
        _ => {
            let (problem, is_transient) = error::web(&failed);
            Err(AttemptError::Web {
                address: address.clone(),
                problem,
                is_transient,
            })
        }
    }
}

/// Makes a stream of bytes that ends at the Proxy behind the load balancer.
pub(super) async fn connect(
    proxies: &Matcher,
    address: &Address,
) -> Result<AnyStream, AttemptError> {
    let stream = tcp::connect(proxies, address).await?;
    // Without ALPN this is HTTP/1.1, as websockets need it.
    let stream = tls::to_web(stream, address, &[]).await?;
    let refused = |problem: String, is_transient| AttemptError::Upgrade {
        address: address.clone(),
        problem,
        is_transient,
    };
    let request = Request::get(format!("wss://{address}/webapi/connectionupgrade"))
        .header(header::HOST, address.to_string())
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, generate_key())
        .header(header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL)
        .header("X-Teleport-Upgrade", SUBPROTOCOL)
        .body(())
        .expect("an address is a header's value");
    let (socket, _) = client_async(request, stream).await.map_err(|failed| {
        debug!("{address} does not upgrade the connection: {failed}");
        let is_transient = match &failed {
            WebSocketError::Http(answer) => answer.status().is_server_error(),
            WebSocketError::Io(_) => true,
            _ => false,
        };
        let problem = match &failed {
            WebSocketError::Http(answer) if answer.status() == StatusCode::NOT_FOUND => {
                "it answers 404 Not Found, so it is no Proxy Service, or an old one".to_owned()
            }
            WebSocketError::Http(answer) => format!("it answers {}", answer.status()),
            other => other.to_string(),
        };
        refused(problem, is_transient)
    })?;
    let (sink, stream) = socket.split();
    Ok(Box::new(tokio::io::join(reader(stream), writer(sink))))
}

/// The messages hold a stream of bytes; where one ends means nothing. Pings are answered below.
fn reader(
    messages: impl Stream<Item = Result<Message, WebSocketError>> + Send + Unpin + 'static,
) -> impl tokio::io::AsyncRead + Send + Unpin {
    StreamReader::new(messages.filter_map(|message| {
        ready(match message {
            Ok(Message::Binary(bytes)) => Some(Ok(bytes)),
            // Whatever comes besides; a stream that was closed ends by itself.
            Ok(_) | Err(WebSocketError::ConnectionClosed | WebSocketError::AlreadyClosed) => None,
            Err(WebSocketError::Io(failed)) => Some(Err(failed)),
            Err(failed) => Some(Err(io::Error::other(failed))),
        })
    }))
}

fn writer(
    messages: impl Sink<Message, Error = WebSocketError> + Send + Unpin + 'static,
) -> impl tokio::io::AsyncWrite + Send + Unpin {
    let frames = messages
        .sink_map_err(io::Error::other)
        .with(|bytes: Bytes| ready(Ok::<_, io::Error>(Message::Binary(bytes))));
    SinkWriter::new(CopyToBytes::new(frames))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_may_decide() {
        let address = Address::parse("a.example:443").unwrap();
        let decided = |setting| decided(setting, &address);
        assert_eq!(decided(""), None);
        assert_eq!(decided(" "), None);
        for yes in [
            "true",
            "YES",
            "1",
            "false,a.example:443=true",
            "on; a.example:80=no",
        ] {
            assert_eq!(decided(yes), Some(true), "{yes}");
        }
        for no in [
            "false",
            "0",
            "yes,a.example:443=no",
            "a.example:80=true",
            "maybe",
        ] {
            assert_eq!(decided(no), Some(false), "{no}");
        }
    }
}
