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

use crate::config::Address;
use crate::teleport::identity::Credentials;

/// As long as Teleport's own client waits.
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);

/// A DNS label holds so many bytes.
const LABEL_MAX: usize = 63;

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum DialError {
    /// The name does not resolve.
    #[error("the name {host} does not resolve: check `addr` in [teleport]")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver says.
        #[source]
        source: io::Error,
    },
    /// No TCP connection.
    #[error("cannot connect to {address}: check `addr` in [teleport] and that Teleport runs there")]
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
        /// What the TLS library says.
        #[source]
        source: io::Error,
    },
}

impl DialError {
    /// May pass by itself. A certificate that does not fit will not.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Resolve { .. } | Self::Connect { .. } | Self::Timeout { .. } => true,
            Self::Handshake { source, .. } => tls_error(source).is_none(),
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
    TlsConnector::from(tls_config(credentials))
        .connect(name, tcp)
        .await
        .map_err(|source| {
            let problem = explain(&source, &credentials.cluster);
            DialError::Handshake {
                address: address.clone(),
                problem,
                source,
            }
        })
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

fn explain(error: &io::Error, cluster: &str) -> String {
    match tls_error(error) {
        // The second: a cluster that was set up anew under its old name.
        Some(rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        )) => format!(
            "its certificate comes from none of the CAs in the identity (cluster {cluster}): \
             wrong address, an identity of another cluster, or TLS is ended on the way"
        ),
        Some(rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => "its certificate is not one of a Teleport Auth Service".into(),
        Some(rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) => "its certificate has expired, or this machine's clock is wrong".into(),
        Some(rustls::Error::AlertReceived(alert)) => explain_alert(*alert).into(),
        Some(rustls::Error::InvalidMessage(_)) => "it does not speak TLS: wrong port?".into(),
        _ => "the connection ended within it".into(),
    }
}

/// What it means when the server sends this alert.
pub(crate) fn explain_alert(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::CertificateExpired => "it says that our certificate has expired",
        AlertDescription::UnknownCA | AlertDescription::BadCertificate => {
            "it does not accept our certificate: an identity of another cluster, \
             or issued before the cluster's CA was rotated"
        }
        AlertDescription::NoApplicationProtocol => {
            "it knows neither gRPC nor TLS routing: wrong port?"
        }
        _ => "it ended the handshake",
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
