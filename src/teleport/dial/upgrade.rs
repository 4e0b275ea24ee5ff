//! Through a layer-7 load balancer: it ends TLS and so takes ALPN away, by which a Proxy would
//! know where to pass a connection on to. A websocket to the Proxy's web service carries the true
//! TLS connection instead. The subprotocol `alpn-ping` has the Proxy send pings, for load balancers
//! that cut what is silent.
//!
//! Proxies before 15.1 know no websockets here. They take the second protocol that is asked for,
//! `alpn-ping` itself: packets with their length before them, of which empty ones are pings; or
//! `alpn`, bytes as they are.

use std::future::ready;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use http::StatusCode;
use hyper_util::client::proxy::matcher::Matcher;
use rustls::{AlertDescription, PeerMisbehaved};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error as WebSocketError, Message};
use tokio_util::codec::{Framed, LengthDelimitedCodec};
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};
use tracing::debug;

use super::error::{self, AttemptError};
use super::{AnyStream, tcp, tls};
use crate::config::Address;

/// As long as Teleport's own client waits for the test.
const TEST_PATIENCE: Duration = Duration::from_secs(5);

/// A protocol that every Proxy with TLS routing knows.
const PROBE: &[u8] = b"teleport-reversetunnel";

const WEBSOCKET: &str = "websocket";

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
    let mut stream = tls::to_web(stream, address, &[]).await?;
    let refused = |problem: String, is_transient| AttemptError::Upgrade {
        address: address.clone(),
        problem,
        is_transient,
    };
    let key = generate_key();
    let request = format!(
        "GET /webapi/connectionupgrade HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\n\
         Upgrade: {WEBSOCKET}\r\nUpgrade: {SUBPROTOCOL}\r\nX-Teleport-Upgrade: {SUBPROTOCOL}\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\
         Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n"
    );
    let asked = async {
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        tcp::read_head(&mut stream).await
    };
    let head = asked.await.map_err(|failed| {
        debug!("{address} does not upgrade the connection: {failed}");
        refused(failed.to_string(), true)
    })?;
    let upgraded = upgraded(&head, &key);
    let protocol = upgraded.map_err(|(problem, is_transient)| refused(problem, is_transient))?;
    Ok(match protocol {
        Protocol::WebSocket => {
            let socket = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
            let (sink, stream) = socket.split();
            Box::new(tokio::io::join(reader(stream), writer(sink)))
        }
        Protocol::Packets => packets(stream),
        Protocol::Bytes => Box::new(stream),
    })
}

/// What carries bytes from now on.
#[derive(Debug, PartialEq, Eq)]
enum Protocol {
    WebSocket,
    Packets,
    Bytes,
}

/// What the answer's head says; or what is wrong with it, and whether that may pass.
fn upgraded(head: &str, key: &str) -> Result<Protocol, (String, bool)> {
    let (status_line, headers) = head.split_once("\r\n").unwrap_or((head, ""));
    let status = status_line.split(' ').nth(1).map(StatusCode::from_str);
    match status {
        Some(Ok(StatusCode::SWITCHING_PROTOCOLS)) => {}
        Some(Ok(StatusCode::NOT_FOUND)) => {
            let problem = "it answers 404 Not Found, so it is no Proxy Service, or an old one";
            return Err((problem.to_owned(), false));
        }
        Some(Ok(other)) => return Err((format!("it answers {other}"), other.is_server_error())),
        Some(Err(_)) | None => return Err(("it does not speak HTTP".to_owned(), false)),
    }
    let header = |wanted: &str| {
        let mut headers = headers.lines().filter_map(|line| line.split_once(':'));
        let found = headers.find(|(name, _)| name.eq_ignore_ascii_case(wanted));
        found.map_or("", |(_, value)| value.trim())
    };
    let protocol = header("Upgrade");
    if protocol.eq_ignore_ascii_case(SUBPROTOCOL) {
        return Ok(Protocol::Packets);
    }
    if protocol.eq_ignore_ascii_case("alpn") {
        return Ok(Protocol::Bytes);
    }
    let is_ours = header("Sec-WebSocket-Accept") == derive_accept_key(key.as_bytes());
    if protocol.eq_ignore_ascii_case(WEBSOCKET)
        && is_ours
        && header("Sec-WebSocket-Protocol") == SUBPROTOCOL
    {
        return Ok(Protocol::WebSocket);
    }
    Err((
        "it upgrades to something else than was asked for".to_owned(),
        false,
    ))
}

/// Bytes in packets with their length before them; empty ones are pings, which nobody answers.
fn packets(stream: impl super::Stream + 'static) -> AnyStream {
    let framed = Framed::new(stream, LengthDelimitedCodec::new());
    let (sink, stream) = framed.split();
    let is_ping = |packet: &Result<BytesMut, _>| packet.as_ref().is_ok_and(BytesMut::is_empty);
    let reader = StreamReader::new(stream.filter(move |packet| ready(!is_ping(packet))));
    let writer = SinkWriter::new(CopyToBytes::new(sink));
    Box::new(tokio::io::join(reader, writer))
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

    #[test]
    fn an_answer_is_believed_if_it_is_one_of_those_asked_for() {
        // The example of RFC 6455.
        let (key, accept) = ("dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let read = |rest: &str| upgraded(&format!("HTTP/1.1 101 Switching\r\n{rest}\r\n\r\n"), key);
        let websocket = format!(
            "upgrade: WebSocket\r\nSec-Websocket-Accept: {accept}\r\n\
             Sec-WebSocket-Protocol: alpn-ping"
        );
        assert_eq!(read(&websocket), Ok(Protocol::WebSocket));
        assert_eq!(read("Upgrade: alpn-ping"), Ok(Protocol::Packets));
        assert_eq!(read("Upgrade: alpn"), Ok(Protocol::Bytes));
        for other in [
            "",
            "Upgrade: h2c",
            "Upgrade: websocket",
            &websocket.replace("s3p", "s3q"),
            &websocket.replace("-ping", ""),
        ] {
            let (problem, is_transient) = read(other).unwrap_err();
            assert_eq!(problem, "it upgrades to something else than was asked for");
            assert!(!is_transient);
        }
        assert_eq!(
            upgraded("SSH-2.0-Go\r\n", key),
            Err(("it does not speak HTTP".to_owned(), false))
        );
    }
}
