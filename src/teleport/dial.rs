//! Makes the TLS connection on which gRPC runs.
//!
//! One profile serves the Auth Service and a Proxy with TLS routing alike: the SNI is
//! `<hex of the cluster's name>.teleport.cluster.local`, the first ALPN entry is
//! `teleport-auth@` with the same name, by which a Proxy passes the connection through to Auth
//! untouched, the second is `h2`, which Auth picks. Whatever stands in between, it is Auth's
//! certificate that is checked, against the CAs of the identity alone.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConfig};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tracing::debug;

use crate::config::Address;
use crate::teleport::identity::Credentials;

/// As long as Teleport's own client waits.
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);

/// A server that says nothing for so long after the handshake has accepted us, it seems.
const VERDICT_PATIENCE: Duration = Duration::from_secs(1);

/// A DNS label holds so many bytes.
const LABEL_MAX: usize = 63;

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum DialError {
    /// The name does not resolve.
    #[error("the name {host} does not resolve")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver says.
        #[source]
        source: io::Error,
    },
    /// No TCP connection.
    #[error("cannot connect to {address}")]
    Connect {
        /// Where to.
        address: Address,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// It took too long.
    #[error("no TLS connection to {address} within {} s", DIAL_TIMEOUT.as_secs())]
    Timeout {
        /// Where to.
        address: Address,
    },
    /// A connection, but no TLS on it.
    #[error("the TLS handshake with {address} failed: {problem}")]
    Handshake {
        /// Where to.
        address: Address,
        /// What it means, in plain words.
        problem: String,
        /// What to do about it; nothing where the connection merely ended.
        mend: Option<&'static str>,
    },
}

impl DialError {
    /// May pass by itself. A certificate that does not fit will not.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Resolve { .. } | Self::Connect { .. } | Self::Timeout { .. } => true,
            Self::Handshake { mend, .. } => mend.is_none(),
        }
    }

    /// What somebody should do, should it last.
    pub fn mend(&self) -> Option<&'static str> {
        match self {
            Self::Resolve { .. } => Some("check addr in [teleport]"),
            Self::Connect { .. } | Self::Timeout { .. } => {
                Some("check addr in [teleport], and that Teleport runs there")
            }
            Self::Handshake { mend, .. } => *mend,
        }
    }
}

/// `teleport.cluster.local` with the cluster's name in hex before it, which hides the dots of the
/// name from the certificate's wildcard. A name too long for a DNS label goes without.
pub(crate) fn server_name(cluster: &str) -> String {
    let label = hex(cluster);
    if label.len() > LABEL_MAX {
        return "teleport.cluster.local".into();
    }
    format!("{label}.teleport.cluster.local")
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// The credentials' TLS settings with the ALPN list for their cluster.
pub(crate) fn tls_config(credentials: &Credentials) -> Arc<ClientConfig> {
    let mut tls = credentials.tls.clone();
    let auth = format!(
        "teleport-auth@{}.teleport.cluster.local",
        hex(&credentials.cluster)
    );
    tls.alpn_protocols = vec![auth.into_bytes(), b"h2".to_vec()];
    Arc::new(tls)
}

/// Connects and shakes hands.
///
/// # Errors
/// If any step fails or all take longer than 30 s.
pub(crate) async fn dial(
    address: &Address,
    credentials: &Credentials,
) -> Result<TlsStream<TcpStream>, DialError> {
    match timeout(DIAL_TIMEOUT, dial_patiently(address, credentials)).await {
        Ok(dialled) => dialled,
        Err(_) => Err(DialError::Timeout {
            address: address.clone(),
        }),
    }
}

async fn dial_patiently(
    address: &Address,
    credentials: &Credentials,
) -> Result<TlsStream<TcpStream>, DialError> {
    let target = (address.host.as_str(), address.port);
    let resolved: Vec<_> = tokio::net::lookup_host(target)
        .await
        .map_err(|source| DialError::Resolve {
            host: address.host.clone(),
            source,
        })?
        .collect();
    let connect = |source| DialError::Connect {
        address: address.clone(),
        source,
    };
    let tcp = TcpStream::connect(&resolved[..]).await.map_err(connect)?;
    tcp.set_nodelay(true).map_err(connect)?;
    let name = ServerName::try_from(server_name(&credentials.cluster))
        .expect("hex digits and a fixed name are a DNS name");
    let failed = |source: io::Error| {
        debug!("the TLS handshake with {address} failed: {source}");
        let (problem, mend) = explain(&source, &credentials.cluster);
        DialError::Handshake {
            address: address.clone(),
            problem,
            mend,
        }
    };
    let mut stream = TlsConnector::from(tls_config(credentials))
        .connect(name, tcp)
        .await
        .map_err(failed)?;
    match timeout(VERDICT_PATIENCE, verdict(&mut stream)).await {
        Ok(verdict) => verdict.map_err(failed)?,
        Err(_) => debug!("{address} waits for us to speak first"),
    }
    Ok(stream)
}

/// Waits until the server has said something. In TLS 1.3 the client is done before the server has
/// looked at its certificate. Whoever writes at once may only learn that the connection broke, and
/// never see the alert that tells why; a server of HTTP/2 speaks first anyway.
async fn verdict(stream: &mut TlsStream<TcpStream>) -> io::Result<()> {
    let (tcp, session) = stream.get_mut();
    loop {
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let state = session.process_new_packets().map_err(invalid)?;
        if state.plaintext_bytes_to_read() > 0 {
            return Ok(());
        }
        tcp.readable().await?;
        match session.read_tls(&mut Received(tcp)) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// What has come from the network so far.
struct Received<'a>(&'a TcpStream);

impl io::Read for Received<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(into)
    }
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// What a failed handshake means in plain words, and what to do about it.
fn explain(error: &io::Error, cluster: &str) -> (String, Option<&'static str>) {
    let check_addr = "check addr in [teleport]: host:443 of a Proxy Service, or host:3025 of an \
                      Auth Service";
    let (problem, mend) = match tls_error(error) {
        // The second: a cluster that was set up anew under its old name.
        Some(rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        )) => {
            let problem = format!(
                "its certificate comes from none of the CAs in the identity of cluster {cluster}"
            );
            let mend = "check addr and identity in [teleport]: another cluster answers there, or \
                        something on the way ends TLS";
            return (problem, Some(mend));
        }
        Some(rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => (
            "its certificate is not one of a Teleport Auth Service",
            check_addr,
        ),
        Some(rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) => (
            "its certificate has expired",
            "check this machine's clock, then the server's certificate",
        ),
        Some(rustls::Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        )) => (
            "its certificate does not hold yet",
            "check this machine's clock, then the server's",
        ),
        Some(rustls::Error::AlertReceived(alert)) => explain_alert(*alert),
        Some(rustls::Error::InvalidMessage(_)) => ("it does not speak TLS", check_addr),
        Some(other) => return (other.to_string(), Some(check_addr)),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            return ("the connection ended within it".to_owned(), None);
        }
        None => return (error.to_string(), None),
    };
    (problem.to_owned(), Some(mend))
}

/// What it means when the server sends this alert, and what to do about it.
pub(crate) fn explain_alert(alert: AlertDescription) -> (&'static str, &'static str) {
    match alert {
        AlertDescription::CertificateExpired => (
            "it says that our certificate has expired",
            "check the clocks on both sides, and renew the identity",
        ),
        // Which one it is depends on the server's library, and on whether its CA has the name of
        // the one that made the certificate.
        AlertDescription::UnknownCA
        | AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::CertificateRevoked
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::DecryptError
        | AlertDescription::AccessDenied => (
            "it does not accept our certificate",
            "issue a new identity, if this one is of the right cluster: its certificate may be \
             from before the cluster's CA was rotated",
        ),
        AlertDescription::NoApplicationProtocol => (
            "it knows neither gRPC nor TLS routing",
            "check addr in [teleport]: host:443 of a Proxy Service, or host:3025 of an Auth Service",
        ),
        _ => (
            "it ended the handshake",
            "check addr and identity in [teleport]",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_hide_the_dots_of_the_cluster() {
        let name = server_name("a.example");
        assert_eq!(name, "612e6578616d706c65.teleport.cluster.local");
        assert_eq!(server_name(&"x".repeat(32)), "teleport.cluster.local");
    }
}
