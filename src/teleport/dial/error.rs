//! Why a way to Teleport does not work, in words that somebody can act on.

use std::error::Error;
use std::fmt;
use std::io;

use rustls::{AlertDescription, CertificateError};
use thiserror::Error;

use super::{DIAL_TIMEOUT, Way, transport};
use crate::config::Address;
use crate::output::{Chain, RAISE_OPEN_FILES};
use crate::platform::is_out_of_files;

/// Why there is no connection: what came of each way that was tried.
#[derive(Debug)]
pub struct DialError {
    pub(super) address: Address,
    /// At least one, in the order tried.
    pub(super) attempts: Vec<(Way, AttemptError)>,
}

impl DialError {
    /// May pass by itself. A certificate that does not fit will not.
    pub fn is_transient(&self) -> bool {
        self.attempts
            .iter()
            .any(|(_, failed)| failed.is_transient())
    }

    /// What somebody should do, should it last: the advice of the way that led furthest.
    pub fn mend(&self) -> Option<&'static str> {
        let errors = || self.attempts.iter().map(|(_, failed)| failed);
        let reached_proxy = errors().find(|failed| failed.comes_from_a_proxy());
        reached_proxy.or(errors().next())?.mend()
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [(_, only)] = &self.attempts[..] {
            return only.fmt(f);
        }
        write!(f, "no way to {} works", self.address)?;
        for (n, (way, failed)) in self.attempts.iter().enumerate() {
            let separator = if n == 0 { ": " } else { "; " };
            write!(f, "{separator}{}: {}", way.name(), Chain(failed))?;
        }
        Ok(())
    }
}

impl Error for DialError {
    /// Several attempts have no one cause: the message holds them all.
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.attempts[..] {
            [(_, only)] => only.source(),
            _ => None,
        }
    }
}

/// Why one way does not work.
#[derive(Debug, Error)]
pub(super) enum AttemptError {
    /// The name does not resolve.
    #[error("the name {host} does not resolve")]
    Resolve {
        host: String,
        #[source]
        source: io::Error,
    },
    /// No TCP connection.
    #[error("cannot connect to {address}")]
    Connect {
        address: Address,
        #[source]
        source: io::Error,
    },
    /// No TCP connection to any of the addresses of one name.
    #[error("cannot connect to {address}: {problems}")]
    ConnectAny { address: Address, problems: String },
    /// The HTTP proxy does not let us through.
    #[error("the HTTP proxy {proxy} does not connect us to {address}: {problem}")]
    HttpProxy {
        proxy: String,
        address: Address,
        problem: String,
        is_transient: bool,
    },
    /// It took too long.
    #[error("no TLS connection to {address} within {} s", DIAL_TIMEOUT.as_secs())]
    Timeout { address: Address },
    /// A connection, but no TLS with Auth on it.
    #[error("the TLS handshake with {address} failed: {problem}")]
    Handshake {
        address: Address,
        /// What it means, in plain words.
        problem: String,
        /// What to do about it; nothing where the connection merely ended.
        mend: Option<&'static str>,
        /// Whether Auth itself cannot have said it.
        may_be_other_server: bool,
    },
    /// The handshake succeeded, with the Proxy in place of Auth.
    #[error("a Proxy Service without TLS routing answers at {address}")]
    ProxyAnswers { address: Address },
    /// TLS as to a web site failed.
    #[error("cannot speak HTTPS with {address}: {problem}")]
    Web {
        address: Address,
        problem: String,
        is_transient: bool,
    },
    /// The test says that ALPN passes.
    #[error("not needed, as nothing on the way to {address} takes ALPN away")]
    NotNeeded { address: Address },
    /// The answer to the upgrade is not the one hoped for.
    #[error("{address} does not upgrade the connection: {problem}")]
    Upgrade {
        address: Address,
        problem: String,
        is_transient: bool,
    },
    /// The web service does not tell where the transport service is.
    #[error("{address} does not tell where its transport service is: {problem}")]
    Find {
        address: Address,
        problem: String,
        is_transient: bool,
    },
    /// The Proxy's transport service does not carry us to Auth.
    #[error("the transport service at {address} does not carry us to Auth: {problem}")]
    Transport {
        address: Address,
        problem: String,
        is_transient: bool,
    },
}

impl AttemptError {
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Resolve { .. }
            | Self::Connect { .. }
            | Self::ConnectAny { .. }
            | Self::Timeout { .. } => true,
            Self::Handshake { mend, .. } => mend.is_none(),
            Self::ProxyAnswers { .. } | Self::NotNeeded { .. } => false,
            Self::HttpProxy { is_transient, .. }
            | Self::Web { is_transient, .. }
            | Self::Upgrade { is_transient, .. }
            | Self::Find { is_transient, .. }
            | Self::Transport { is_transient, .. } => *is_transient,
        }
    }

    /// Whether another way might do better. Where nobody answers, or Auth itself refuses us, or not
    /// even the web service can be spoken with, none will.
    pub(super) fn leaves_other_ways(&self) -> bool {
        match self {
            Self::Resolve { .. }
            | Self::Connect { .. }
            | Self::ConnectAny { .. }
            | Self::HttpProxy { .. }
            | Self::Web { .. } => false,
            Self::Handshake {
                may_be_other_server,
                ..
            } => *may_be_other_server,
            Self::Timeout { .. }
            | Self::ProxyAnswers { .. }
            | Self::NotNeeded { .. }
            | Self::Upgrade { .. }
            | Self::Find { .. }
            | Self::Transport { .. } => true,
        }
    }

    /// A Teleport Proxy, or a load balancer before one, has said this.
    fn comes_from_a_proxy(&self) -> bool {
        matches!(self, Self::Upgrade { .. } | Self::Transport { .. })
    }

    fn mend(&self) -> Option<&'static str> {
        match self {
            Self::Resolve { .. } => Some("check addr in [teleport]"),
            Self::Connect { source, .. } if is_out_of_files(source) => Some(RAISE_OPEN_FILES),
            Self::Connect { .. } | Self::ConnectAny { .. } | Self::Timeout { .. } => {
                Some("check addr in [teleport], and that Teleport runs there")
            }
            Self::HttpProxy { .. } => {
                Some("check HTTPS_PROXY, or name the host in NO_PROXY if it can be reached without")
            }
            Self::Handshake { mend, .. } => *mend,
            Self::ProxyAnswers { .. } | Self::Find { .. } => Some(CHECK_ADDR),
            Self::NotNeeded { .. } => None,
            Self::Web { .. } => Some(
                "if a load balancer is there with a certificate of your own authority, name that \
                 in SSL_CERT_FILE",
            ),
            Self::Upgrade { .. } => Some(
                "check addr in [teleport] and the load balancer there: it must pass websockets to \
                 a Proxy Service",
            ),
            Self::Transport { .. } => Some(
                "check that addr in [teleport] is of the identity's own cluster, and that its \
                 Proxy Service reaches the Auth Service",
            ),
        }
    }
}

const CHECK_ADDR: &str =
    "check addr in [teleport]: host:443 of a Proxy Service, or host:3025 of an Auth Service";

/// What a failed handshake with what should be Auth means.
pub(super) fn handshake(address: &Address, error: &io::Error, cluster: &str) -> AttemptError {
    if let Some(not_carried) = transport::explain(address, error) {
        return not_carried;
    }
    let may_be_other_server = match tls_error(error) {
        Some(rustls::Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        )) => false,
        // These are about our certificate; only Auth asks for it.
        Some(rustls::Error::AlertReceived(alert)) => !is_about_our_certificate(*alert),
        Some(rustls::Error::InvalidMessage(_)) => false,
        Some(_) => true,
        None => false,
    };
    let (problem, mend) = explain(error, cluster);
    AttemptError::Handshake {
        address: address.clone(),
        problem,
        mend,
        may_be_other_server,
    }
}

/// What a failed handshake with a web server means, and whether it may pass.
pub(super) fn web(error: &io::Error) -> (String, bool) {
    let problem = match tls_error(error) {
        Some(rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        )) => "its certificate comes from no authority that this machine trusts",
        Some(rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => "its certificate is for another name",
        Some(rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) => "its certificate has expired",
        Some(other) => return (other.to_string(), false),
        None => return (error.to_string(), true),
    };
    (problem.to_owned(), false)
}

pub(super) fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// What a failed handshake means in plain words, and what to do about it.
fn explain(error: &io::Error, cluster: &str) -> (String, Option<&'static str>) {
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
            CHECK_ADDR,
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
        Some(rustls::Error::InvalidMessage(_)) => ("it does not speak TLS", CHECK_ADDR),
        Some(other) => return (other.to_string(), Some(CHECK_ADDR)),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            return ("the connection ended within it".to_owned(), None);
        }
        None => return (error.to_string(), None),
    };
    (problem.to_owned(), Some(mend))
}

/// Which one it is depends on the server's library, and on whether its CA has the name of the one
/// that made the certificate.
fn is_about_our_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::CertificateExpired
            | AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRevoked
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::DecryptError
            | AlertDescription::AccessDenied
    )
}

/// What it means when the server sends this alert, and what to do about it.
pub(crate) fn explain_alert(alert: AlertDescription) -> (&'static str, &'static str) {
    match alert {
        AlertDescription::CertificateExpired => (
            "it says that our certificate has expired",
            "check the clocks on both sides, and renew the identity",
        ),
        alert if is_about_our_certificate(alert) => (
            "it does not accept our certificate",
            "issue a new identity, if this one is of the right cluster: its certificate may be \
             from before the cluster's CA was rotated",
        ),
        AlertDescription::NoApplicationProtocol => {
            ("it knows neither gRPC nor TLS routing", CHECK_ADDR)
        }
        _ => (
            "it ended the handshake",
            "check addr and identity in [teleport]",
        ),
    }
}
