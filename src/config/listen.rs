//! The table `[listen]`: where status page, metrics and health are to be seen, and by whom.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::keys;
use super::resolver::Resolver;
use super::sources::Value;
use super::values::{self, Problem};
use crate::secret::Secret;

/// Where status page, metrics and health are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenConfig {
    /// Where to listen. Not on this machine alone only with a token and TLS.
    pub addr: SocketAddr,
    /// It is the address that the program has by itself: if it is taken, it goes on without.
    pub is_default: bool,
    /// What a client must show, for all but the bare health.
    pub token: Option<Secret>,
    /// Certificate and key.
    pub tls: Option<ListenTls>,
    /// Names by which clients may call the server, beside this machine's own.
    pub hosts: Vec<String>,
    /// Whether the page shows the documents of dead letters.
    pub shows_payloads: bool,
}

/// What TLS needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenTls {
    /// The certificate and those above it, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// An address, or that there is to be none.
fn addr(value: &Value) -> Result<Option<SocketAddr>, Problem> {
    let text = values::text(value)?;
    if text == "off" {
        return Ok(None);
    }
    let address = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text,
    };
    let parsed = address.parse().map(Some);
    parsed.map_err(|_| "must be an IP address with a port (127.0.0.1:9747), or off".to_owned())
}

/// Reads the table; `None` if nothing is to be served.
pub(super) fn resolve(resolver: &mut Resolver) -> Option<ListenConfig> {
    let addr = resolver.value(&keys::LISTEN_ADDR, addr);
    let token = resolver.secret(&keys::LISTEN_TOKEN);
    let cert = resolver.optional(&keys::LISTEN_CERT, values::path);
    let key = resolver.optional(&keys::LISTEN_KEY, values::path);
    let hosts = resolver.optional(&keys::LISTEN_HOSTS, values::list);
    let shows_payloads = resolver.value(&keys::LISTEN_SHOW_PAYLOADS, values::boolean);
    for (one, other) in [
        (&keys::LISTEN_CERT, &keys::LISTEN_KEY),
        (&keys::LISTEN_KEY, &keys::LISTEN_CERT),
    ] {
        if resolver.is_set(one) && !resolver.is_set(other) {
            resolver.wrong(one, format!("goes with {}: give both", other.name));
        }
    }
    let addr = addr?;
    let has_tls = resolver.is_set(&keys::LISTEN_CERT) && resolver.is_set(&keys::LISTEN_KEY);
    let has_token = resolver.is_set(&keys::LISTEN_TOKEN);
    let is_guarded = has_tls && has_token;
    if !addr.ip().is_loopback() && !is_guarded {
        resolver.wrong(
            &keys::LISTEN_ADDR,
            "others than this machine can reach it there, so it needs listen.token, and \
             listen.cert and listen.key; or listen on 127.0.0.1",
        );
    }
    Some(ListenConfig {
        addr,
        is_default: keys::LISTEN_ADDR.default == Some(&*addr.to_string()),
        token,
        tls: cert.zip(key).map(|(cert, key)| ListenTls { cert, key }),
        hosts: hosts.unwrap_or_default(),
        shows_payloads,
    })
}
