//! The connection below TLS: each address of a name in turn, or through an HTTP proxy.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use http::{HeaderValue, Uri};
use hyper_util::client::proxy::matcher::Matcher;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::error::AttemptError;
use super::tls;
use super::{AnyStream, Stream};
use crate::config::Address;

/// How long one of several addresses may take before the next is tried. The system's own limit
/// would be minutes, where for instance IPv6 leads nowhere.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(3);

/// The head of an answer is a few lines.
const HEAD_BYTES: usize = 16 << 10;

/// An HTTP proxy that stands before an address.
pub(super) struct HttpProxy {
    address: Address,
    is_tls: bool,
    authorization: Option<HeaderValue>,
}

/// The proxy that `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` name for an address.
///
/// # Errors
/// If it is none that we can speak with.
pub(super) fn http_proxy(
    proxies: &Matcher,
    address: &Address,
) -> Result<Option<HttpProxy>, AttemptError> {
    let Ok(uri) = format!("https://{address}/").parse::<Uri>() else {
        return Ok(None);
    };
    let Some(found) = proxies.intercept(&uri) else {
        return Ok(None);
    };
    // Never the whole URI: it may hold a password.
    let host = found.uri().host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let (is_tls, port) = match found.uri().scheme_str() {
        Some("http") => (false, 80),
        Some("https") => (true, 443),
        scheme => {
            return Err(AttemptError::HttpProxy {
                proxy: host.to_owned(),
                address: address.clone(),
                problem: format!(
                    "its scheme is {}, and only http and https are known",
                    scheme.unwrap_or("missing")
                ),
                is_transient: false,
            });
        }
    };
    Ok(Some(HttpProxy {
        address: Address {
            host: host.to_owned(),
            port: found.uri().port_u16().unwrap_or(port),
        },
        is_tls,
        authorization: found.basic_auth().cloned(),
    }))
}

/// Connects to an address, through its proxy if it has one.
pub(super) async fn connect(
    proxies: &Matcher,
    address: &Address,
) -> Result<AnyStream, AttemptError> {
    match http_proxy(proxies, address)? {
        None => Ok(Box::new(straight(address).await?)),
        Some(proxy) => proxy.connect(address).await,
    }
}

async fn straight(address: &Address) -> Result<TcpStream, AttemptError> {
    let resolve = |source| AttemptError::Resolve {
        host: address.host.clone(),
        source,
    };
    let target = (address.host.as_str(), address.port);
    let resolved = tokio::net::lookup_host(target).await.map_err(resolve)?;
    let mut resolved: Vec<SocketAddr> = resolved.collect();
    resolved.dedup();
    first_of(&resolved, address).await
}

/// Tries the addresses of the name in the order in which the system gives them.
async fn first_of(resolved: &[SocketAddr], address: &Address) -> Result<TcpStream, AttemptError> {
    let mut failures = Vec::new();
    for (n, at) in resolved.iter().enumerate() {
        let is_last = n + 1 == resolved.len();
        let connected = if is_last {
            TcpStream::connect(at).await
        } else {
            let attempt = timeout(ADDRESS_PATIENCE, TcpStream::connect(at)).await;
            attempt.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        };
        match connected.and_then(|stream| stream.set_nodelay(true).map(|()| stream)) {
            Ok(stream) => return Ok(stream),
            Err(failed) => failures.push((at, failed)),
        }
    }
    let address = address.clone();
    if failures.len() > 1 {
        let problems = failures
            .iter()
            .map(|(at, failed)| format!("{at}: {failed}"));
        let problems = problems.collect::<Vec<_>>().join(", ");
        return Err(AttemptError::ConnectAny { address, problems });
    }
    let source = match failures.pop() {
        Some((_, failed)) => failed,
        None => io::Error::other("its name has no address"),
    };
    Err(AttemptError::Connect { address, source })
}

impl fmt::Display for HttpProxy {
    /// Without user and password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

impl HttpProxy {
    async fn connect(&self, address: &Address) -> Result<AnyStream, AttemptError> {
        let stream = straight(&self.address).await;
        let stream = stream.map_err(|failed| self.failed(address, plain(&failed), true))?;
        if self.is_tls {
            let stream = tls::to_web(Box::new(stream), &self.address, &[]).await;
            let mut stream = stream.map_err(|failed| {
                self.failed(address, failed.to_string(), failed.is_transient())
            })?;
            self.tunnel(&mut stream, address).await?;
            return Ok(Box::new(stream));
        }
        let mut stream = stream;
        self.tunnel(&mut stream, address).await?;
        Ok(Box::new(stream))
    }

    /// Asks for a tunnel.
    async fn tunnel(
        &self,
        stream: &mut impl Stream,
        address: &Address,
    ) -> Result<(), AttemptError> {
        let mut request = format!("CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n").into_bytes();
        if let Some(authorization) = &self.authorization {
            request.extend_from_slice(b"Proxy-Authorization: ");
            request.extend_from_slice(authorization.as_bytes());
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"\r\n");
        let broken = |failed: io::Error| self.failed(address, failed.to_string(), true);
        stream.write_all(&request).await.map_err(broken)?;
        stream.flush().await.map_err(broken)?;
        let answer = read_head(stream).await.map_err(broken)?;
        let status_line = answer.lines().next().unwrap_or_default();
        let status = status_line
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        match status {
            Some(200..=299) => Ok(()),
            Some(status @ 500..) => Err(self.failed(address, format!("status {status}"), true)),
            Some(407) => {
                let problem = "status 407: it wants a user and password, as in \
                               HTTPS_PROXY=http://user:password@host:port";
                Err(self.failed(address, problem.to_owned(), false))
            }
            Some(status @ 0u16..) => Err(self.failed(address, format!("status {status}"), false)),
            None => Err(self.failed(address, "it does not speak HTTP".to_owned(), false)),
        }
    }

    fn failed(&self, address: &Address, problem: String, is_transient: bool) -> AttemptError {
        AttemptError::HttpProxy {
            proxy: self.to_string(),
            address: address.clone(),
            problem,
            is_transient,
        }
    }
}

/// Reads the head of an answer. What follows it belongs to somebody else, so it is read byte by
/// byte.
pub(super) async fn read_head(stream: &mut impl Stream) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == HEAD_BYTES {
            return Err(io::Error::other("its answer has no end"));
        }
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// The whole of an error in one line.
fn plain(error: &AttemptError) -> String {
    crate::output::Chain(error).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(no: &str, address: &str) -> Option<String> {
        let proxies = Matcher::builder()
            .https("http://user:secret@proxy.example:3128")
            .no(no)
            .build();
        let address = Address::parse(address).unwrap();
        let found = http_proxy(&proxies, &address).unwrap_or_else(|error| panic!("{error}"));
        found.map(|proxy| {
            assert_eq!(proxy.authorization.unwrap(), "Basic dXNlcjpzZWNyZXQ=");
            proxy.address.to_string()
        })
    }

    #[test]
    fn the_environment_names_a_proxy_and_who_goes_without() {
        let found = Some("proxy.example:3128".to_owned());
        assert_eq!(proxy("", "teleport.example:443"), found);
        assert_eq!(proxy("other.example", "teleport.example:443"), found);
        assert_eq!(proxy("teleport.example", "teleport.example:443"), None);
        assert_eq!(proxy(".example", "teleport.example:443"), None);
        assert_eq!(proxy("*", "teleport.example:443"), None);
        assert_eq!(proxy("10.0.0.0/8", "10.1.2.3:3025"), None);
        assert_eq!(proxy("::1", "[::1]:3025"), None);
        assert_eq!(proxy("10.0.0.0/8", "[2001:db8::1]:3025"), found);
    }

    #[test]
    fn a_proxy_of_another_kind_is_refused_without_its_password() {
        let proxies = Matcher::builder()
            .all("socks5://user:secret@proxy.example:1080")
            .build();
        let address = Address::parse("teleport.example:443").unwrap();
        let Err(refused) = http_proxy(&proxies, &address) else {
            panic!("it was accepted");
        };
        assert_eq!(
            refused.to_string(),
            "the HTTP proxy proxy.example does not connect us to teleport.example:443: its scheme \
             is socks5, and only http and https are known"
        );
    }

    #[tokio::test]
    async fn the_next_address_is_tried_where_one_leads_nowhere() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let somebody = listener.local_addr().unwrap();
        let [nobody, nobody_else] = [1, 2].map(|n| SocketAddr::from(([127, 0, 0, n], 1)));
        let address = Address::parse("teleport.example:443").unwrap();
        let stream = first_of(&[nobody, somebody], &address).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), somebody);
        let failed = first_of(&[nobody, nobody_else], &address)
            .await
            .unwrap_err();
        assert_eq!(
            failed.to_string(),
            "cannot connect to teleport.example:443: 127.0.0.1:1: Connection refused (os error \
             111), 127.0.0.2:1: Connection refused (os error 111)"
        );
    }
}
