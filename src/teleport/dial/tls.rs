//! TLS with Auth, by the identity's CAs, and with web servers, by the system's.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tracing::debug;
use x509_cert::der::Decode;

use super::AnyStream;
use super::error::{self, AttemptError};
use crate::config::Address;
use crate::teleport::identity::Credentials;

/// A server that says nothing for so long after the handshake has accepted us, it seems.
const VERDICT_PATIENCE: Duration = Duration::from_secs(1);

/// A DNS label holds so many bytes.
const LABEL_MAX: usize = 63;

/// Received at once. rustls asks for 4 KiB at a time, and each time costs a system call: a quarter
/// of a TLS record.
const RECEIVE_BYTES: usize = 64 << 10;

/// What the first word of a server fits into; longer reads go past this buffer.
const FIRST_WORD_BYTES: usize = 1 << 10;

/// `teleport.cluster.local` with the cluster's name in hex before it, which hides the dots of the
/// name from the certificate's wildcard. A name too long for a DNS label goes without.
fn server_name(cluster: &str) -> String {
    let label = hex(cluster);
    if label.len() > LABEL_MAX {
        return "teleport.cluster.local".into();
    }
    format!("{label}.teleport.cluster.local")
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// What a Proxy with TLS routing reads first, and `h2`, which Auth picks.
pub(super) fn routed_alpn(cluster: &str) -> Vec<Vec<u8>> {
    let auth = format!("teleport-auth@{}.teleport.cluster.local", hex(cluster));
    vec![auth.into_bytes(), b"h2".to_vec()]
}

/// Shakes hands with whoever holds a host certificate of the cluster.
pub(super) async fn to_cluster(
    stream: AnyStream,
    address: &Address,
    credentials: &Credentials,
    alpn: Vec<Vec<u8>>,
) -> Result<TlsStream<AnyStream>, AttemptError> {
    let mut config = credentials.tls.clone();
    config.alpn_protocols = alpn;
    let name = ServerName::try_from(server_name(&credentials.cluster))
        .expect("hex digits and a fixed name are a DNS name");
    let stream: AnyStream = Box::new(BufReader::with_capacity(RECEIVE_BYTES, stream));
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(|failed| {
            debug!("the TLS handshake with {address} failed: {failed}");
            error::handshake(address, &failed, &credentials.cluster)
        })
}

/// Shakes hands with Auth, whatever stands in between, and waits for its first word.
///
/// In TLS 1.3 the client is done before the server has looked at its certificate. Whoever writes at
/// once may only learn that the connection broke, and never see the alert that tells why; a server
/// of HTTP/2 speaks first anyway.
pub(super) async fn to_auth(
    stream: AnyStream,
    address: &Address,
    credentials: &Credentials,
) -> Result<AnyStream, AttemptError> {
    let alpn = routed_alpn(&credentials.cluster);
    let stream = to_cluster(stream, address, credentials, alpn).await?;
    if is_proxy(&stream) {
        let address = address.clone();
        return Err(AttemptError::ProxyAnswers { address });
    }
    let mut stream = BufReader::with_capacity(FIRST_WORD_BYTES, stream);
    let failed = |failed: io::Error| {
        debug!("{address} does not accept us: {failed}");
        error::handshake(address, &failed, &credentials.cluster)
    };
    match timeout(VERDICT_PATIENCE, stream.fill_buf()).await {
        Ok(Ok([])) => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
        Ok(Ok(_)) => {}
        Ok(Err(refused)) => return Err(failed(refused)),
        Err(_) => debug!("{address} waits for us to speak first"),
    }
    Ok(Box::new(stream))
}

/// Whether the host at the other end is a Proxy: its certificate names the role as organization.
pub(super) fn is_proxy(stream: &TlsStream<AnyStream>) -> bool {
    let (_, session) = stream.get_ref();
    let leaf = session.peer_certificates().and_then(|chain| chain.first());
    let Some(Ok(leaf)) = leaf.map(|leaf| x509_cert::Certificate::from_der(leaf)) else {
        return false;
    };
    let role = leaf.tbs_certificate().subject().organization();
    role.ok()
        .flatten()
        .is_some_and(|role| role.value() == "Proxy")
}

/// Shakes hands as with a web server: its certificate must be for the address's host, from an
/// authority that the system trusts. `SSL_CERT_FILE` and `SSL_CERT_DIR` name others.
pub(super) async fn to_web(
    stream: AnyStream,
    address: &Address,
    alpn: &[&[u8]],
) -> Result<TlsStream<AnyStream>, AttemptError> {
    let failed = |failed: io::Error| {
        let (problem, is_transient) = error::web(&failed);
        AttemptError::Web {
            address: address.clone(),
            problem,
            is_transient,
        }
    };
    let (connector, name) = web_connector(address, alpn).await.map_err(failed)?;
    connector.connect(name, stream).await.map_err(failed)
}

/// As [`to_web`], but gives the raw error.
pub(super) async fn web_handshake(
    stream: AnyStream,
    address: &Address,
    alpn: &[&[u8]],
) -> io::Result<TlsStream<AnyStream>> {
    let (connector, name) = web_connector(address, alpn).await?;
    connector.connect(name, stream).await
}

async fn web_connector(
    address: &Address,
    alpn: &[&[u8]],
) -> io::Result<(TlsConnector, ServerName<'static>)> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
    let name = ServerName::try_from(address.host.clone()).map_err(invalid)?;
    let found = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs);
    let found = found.await.map_err(io::Error::other)?;
    for failed in &found.errors {
        debug!("some of the system's authorities cannot be read: {failed}");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    let mut config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok((TlsConnector::from(Arc::new(config)), name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_hide_the_dots_of_the_cluster() {
        let name = server_name("a.example");
        assert_eq!(name, "612e6578616d706c65.teleport.cluster.local");
        assert_eq!(server_name(&"x".repeat(32)), "teleport.cluster.local");
        // However long the name, it is what a Proxy routes by.
        let alpn = routed_alpn(&"x".repeat(39));
        let first = format!("teleport-auth@{}.teleport.cluster.local", "78".repeat(39));
        assert_eq!(alpn, [first.as_bytes(), b"h2"]);
    }
}
