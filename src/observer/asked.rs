//! Asking a running daemon how it stands.

use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode, header};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::config::ListenConfig;

/// It is on this machine, and the answer is ready.
const PATIENCE: Duration = Duration::from_secs(5);

/// The answer has some ten kilobytes, and with payloads some megabytes.
const LONGEST_ANSWER: usize = 64 << 20;

/// What the daemon that listens there shows, or why it cannot be asked. Whether it is the right one,
/// the answer tells.
///
/// # Errors
/// In words, if nobody answers as a daemon does.
pub async fn ask(listen: &ListenConfig) -> Result<Value, String> {
    if listen.tls.is_some() {
        return Err("it serves TLS; look at the page".to_owned());
    }
    let asked = timeout(PATIENCE, exchange(listen)).await;
    let asked = asked.map_err(|_| "no answer in time".to_owned());
    asked
        .and_then(|asked| asked.map_err(|failed| failed.to_string()))
        .map_err(|why| format!("at {}: {why}", listen.addr))
}

async fn exchange(
    listen: &ListenConfig,
) -> Result<Value, Box<dyn std::error::Error + Send + Sync>> {
    let connection = TokioIo::new(TcpStream::connect(listen.addr).await?);
    let (mut sender, connection) = http1::handshake(connection).await?;
    let mut driving = JoinSet::new();
    driving.spawn(connection);
    let mut request = Request::get("/status.json").header(header::HOST, listen.addr.to_string());
    if let Some(token) = &listen.token {
        let bearer = format!("Bearer {}", token.expose());
        request = request.header(header::AUTHORIZATION, bearer);
    }
    let answer = sender.send_request(request.body(Body::empty())?).await?;
    if answer.status() != StatusCode::OK {
        return Err(format!("status {}", answer.status()).into());
    }
    let body = to_bytes(Body::new(answer.into_body()), LONGEST_ANSWER).await?;
    Ok(serde_json::from_slice(&body)?)
}
