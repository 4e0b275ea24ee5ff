//! A make-believe cluster's certificate authorities, and credentials in the files that Teleport
//! writes: the identity file of `tctl auth sign --format=file` and the trio of `--format=tls`.

mod ssh;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use chrono::{DateTime, TimeDelta, Utc};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ED25519,
};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;

use crate::platform;

/// Why certificates could not be made or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The certificate library refused, for instance because of a name that no certificate holds.
    #[error("cannot make the certificate of {subject}")]
    Certificate {
        /// Whose certificate it was to be.
        subject: String,
        /// What the library says.
        source: rcgen::Error,
    },
    /// The TLS library refused the certificates just made.
    #[error("cannot set up TLS for cluster {cluster}")]
    Tls {
        /// The cluster's name.
        cluster: String,
        /// What the library says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// The kind of private key. Teleport's older RSA keys cannot be generated here: the cryptography
/// library makes none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyKind {
    /// ECDSA over P-256, what current clusters use for TLS.
    #[default]
    EcdsaP256,
    /// Ed25519.
    Ed25519,
}

/// What an identity says of its holder.
#[derive(Clone, Debug)]
pub struct IdentityOptions {
    /// The user; subject CN of the certificate.
    pub user: String,
    /// The user's roles; subject O.
    pub roles: Vec<String>,
    /// The first second of validity; to be set before `not_after`.
    pub not_before: DateTime<Utc>,
    /// The last second of validity; in the past for credentials that have run out.
    pub not_after: DateTime<Utc>,
    /// The kind of the private key.
    pub key: KeyKind,
    /// The cluster that the certificate routes to: a leaf of the one that issues it. `None`: the
    /// issuing one.
    pub route_to: Option<String>,
}

impl Default for IdentityOptions {
    /// Valid from an hour ago for a day, ECDSA, for the user that `configure` sets up.
    fn default() -> Self {
        let now = Utc::now();
        Self {
            user: "teleport-event-indexer".to_owned(),
            roles: vec!["teleport-event-indexer".to_owned()],
            not_before: now - TimeDelta::hours(1),
            not_after: now + TimeDelta::days(1),
            key: KeyKind::default(),
            route_to: None,
        }
    }
}

/// The authorities of one cluster. As in Teleport, servers are certified by the host CA and people
/// by the user CA, and both bear the cluster's name as CN and O.
pub struct Cluster {
    name: String,
    host: Authority,
    user: Authority,
    /// User authorities beside its own.
    trusted: Vec<CertificateDer<'static>>,
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
    ssh_key: KeyPair,
}

/// A client's credentials in Teleport's formats.
pub struct Identity {
    /// The private key, PKCS#8 PEM.
    pub key: String,
    /// The TLS client certificate, PEM; its issuer's CN is the cluster's name.
    pub certificate: String,
    /// The cluster's host CA certificates, PEM.
    pub authorities: String,
    ssh_certificate: String,
    ssh_authorities: String,
}

impl Cluster {
    /// Makes both authorities anew; two clusters of one name do not trust each other.
    ///
    /// # Errors
    /// If `name` does not fit into a certificate.
    pub fn new(name: &str) -> Result<Self, Error> {
        Ok(Self {
            name: name.to_owned(),
            host: Authority::new(name)?,
            user: Authority::new(name)?,
            trusted: Vec::new(),
        })
    }

    /// From the next start on its servers accept the users of another cluster, too: of the root
    /// whose leaf this is, or of the same one before or after its authorities were rotated.
    pub fn trust_users_of(&mut self, other: &Self) {
        self.trusted.push(other.user.der.clone());
    }

    /// The cluster's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Credentials of a user of this cluster.
    ///
    /// # Errors
    /// If the user's or a role's name does not fit into a certificate.
    pub fn identity(&self, options: &IdentityOptions) -> Result<Identity, Error> {
        let failed = |source| Error::Certificate {
            subject: format!("user {:?}", options.user),
            source,
        };
        let key = key_pair(options.key).map_err(failed)?;
        let mut params = leaf(options.not_before, options.not_after);
        params
            .distinguished_name
            .push(DnType::CommonName, &options.user);
        for role in &options.roles {
            params
                .distinguished_name
                .push(DnType::OrganizationName, role);
        }
        // The attribute in which Teleport notes the cluster that the user belongs to.
        params.distinguished_name.push(
            DnType::CustomDnType(vec![1, 3, 9999, 1, 7]),
            self.name.as_str(),
        );
        // The street address is where Teleport notes the cluster that the certificate routes to.
        params.distinguished_name.push(
            DnType::CustomDnType(vec![2, 5, 4, 9]),
            options.route_to.as_deref().unwrap_or(&self.name),
        );
        let certificate = params.signed_by(&key, &self.user.issuer).map_err(failed)?;
        Ok(Identity {
            key: key.serialize_pem(),
            certificate: certificate.pem(),
            authorities: self.host.pem.clone(),
            ssh_certificate: ssh::certificate_line(&key, options, &self.user.ssh_key),
            ssh_authorities: ssh::authority_line(&self.name, &self.host.ssh_key),
        })
    }

    /// The Auth Service's side of mutual TLS: a host certificate for Teleport's internal names,
    /// ALPN `h2`, and client certificates checked against the user CA *if* one is sent. As with
    /// Teleport, a client without one gets through the handshake and is refused at its first call.
    ///
    /// # Errors
    /// If the TLS library does not accept what was just made.
    pub fn server_config(&self) -> Result<rustls::ServerConfig, Error> {
        self.host_config("Auth")
    }

    /// The same for the services of a Proxy that clients of the cluster speak with.
    ///
    /// # Errors
    /// If the TLS library does not accept what was just made.
    pub fn proxy_config(&self) -> Result<rustls::ServerConfig, Error> {
        let mut config = self.host_config("Proxy")?;
        let transport = b"teleport-proxy-ssh-grpc".to_vec();
        config.alpn_protocols.insert(0, transport);
        Ok(config)
    }

    fn host_config(&self, role: &str) -> Result<rustls::ServerConfig, Error> {
        let failed = |source| Error::Certificate {
            subject: format!("the {role} Service of {:?}", self.name),
            source,
        };
        let key = key_pair(KeyKind::EcdsaP256).map_err(failed)?;
        let now = Utc::now();
        let mut params = leaf(now - TimeDelta::hours(1), now + TimeDelta::days(365));
        params
            .distinguished_name
            .push(DnType::CommonName, format!("host.{}", self.name));
        params
            .distinguished_name
            .push(DnType::OrganizationName, role);
        for name in ["*.teleport.cluster.local", "teleport.cluster.local"] {
            params.subject_alt_names.push(rcgen::SanType::DnsName(
                name.try_into().expect("plain ASCII is a DNS name"),
            ));
        }
        let certificate = params.signed_by(&key, &self.host.issuer).map_err(failed)?;

        let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Tls {
            cluster: self.name.clone(),
            source,
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut users = RootCertStore::empty();
        for authority in std::iter::once(&self.user.der).chain(&self.trusted) {
            users
                .add(authority.clone())
                .map_err(|error| failed(error.into()))?;
        }
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(users), Arc::clone(&provider))
                .allow_unauthenticated()
                .build()
                .map_err(|error| failed(error.into()))?;
        let key = PrivateKeyDer::try_from(key.serialize_der())
            .map_err(|message| failed(message.into()))?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(error.into()))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate.der().clone()], key)
            .map_err(|error| failed(error.into()))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        // As with Go, whose servers resume no session of a certificate that has ended.
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

impl Authority {
    fn new(cluster: &str) -> Result<Self, Error> {
        let failed = |source| Error::Certificate {
            subject: format!("the authorities of cluster {cluster:?}"),
            source,
        };
        let now = Utc::now();
        let mut params = CertificateParams::default();
        params.not_before = at(now - TimeDelta::days(30));
        params.not_after = at(now + TimeDelta::days(3650));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, cluster);
        params.distinguished_name.push(DnType::CommonName, cluster);
        let key = key_pair(KeyKind::EcdsaP256).map_err(failed)?;
        let certificate = params.self_signed(&key).map_err(failed)?;
        Ok(Self {
            pem: certificate.pem(),
            der: certificate.der().clone(),
            issuer: Issuer::new(params, key),
            ssh_key: key_pair(KeyKind::Ed25519).map_err(failed)?,
        })
    }
}

impl Identity {
    /// The identity file's text: private key, SSH certificate, TLS certificate, SSH authorities,
    /// TLS authorities, in this order.
    pub fn text(&self) -> String {
        let Self {
            key,
            certificate,
            authorities,
            ssh_certificate,
            ssh_authorities,
        } = self;
        format!("{key}{ssh_certificate}\n{certificate}{ssh_authorities}\n{authorities}")
    }

    /// Writes the identity file, mode 0600. A reader sees the old or the new file, never a part.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        write_secret(path, self.text().as_bytes())
    }

    /// Writes `base.key`, `base.crt` and `base.cas`, mode 0600.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write_trio(&self, base: &Path) -> Result<(), Error> {
        let Self {
            key,
            certificate,
            authorities,
            ..
        } = self;
        for (extension, text) in [("key", key), ("crt", certificate), ("cas", authorities)] {
            let mut path = base.as_os_str().to_owned();
            path.push(".");
            path.push(extension);
            write_secret(Path::new(&path), text.as_bytes())?;
        }
        Ok(())
    }
}

fn key_pair(kind: KeyKind) -> Result<KeyPair, rcgen::Error> {
    KeyPair::generate_for(match kind {
        KeyKind::EcdsaP256 => &PKCS_ECDSA_P256_SHA256,
        KeyKind::Ed25519 => &PKCS_ED25519,
    })
}

fn leaf(not_before: DateTime<Utc>, not_after: DateTime<Utc>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = at(not_before);
    params.not_after = at(not_after);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params
}

/// Into whatever type of time the certificate library has.
fn at<T: From<SystemTime>>(time: DateTime<Utc>) -> T {
    SystemTime::from(time).into()
}

fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let failed = |source| Error::Write {
        path: path.to_owned(),
        source,
    };
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let mut file = platform::private_file()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&fresh)
        .map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    std::fs::rename(&fresh, path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use x509_cert::Certificate;
    use x509_cert::der::DecodePem as _;

    use super::*;

    #[test]
    fn an_identity_file_has_its_parts_in_teleports_order() {
        let cluster = Cluster::new("demo.example.com").unwrap();
        let directory = tempfile::tempdir().unwrap();
        for key in [KeyKind::EcdsaP256, KeyKind::Ed25519] {
            let options = IdentityOptions {
                key,
                ..IdentityOptions::default()
            };
            let identity = cluster.identity(&options).unwrap();
            let path = directory.path().join("identity");
            identity.write(&path).unwrap();
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);

            let text = std::fs::read_to_string(&path).unwrap();
            let kinds: Vec<&str> = text
                .lines()
                .filter(|line| line.contains(' ') && !line.starts_with("-----END"))
                .map(|line| line.split_once(' ').unwrap().0)
                .collect();
            let ssh_kind = match key {
                KeyKind::EcdsaP256 => "ecdsa-sha2-nistp256-cert-v01@openssh.com",
                KeyKind::Ed25519 => "ssh-ed25519-cert-v01@openssh.com",
            };
            let begin = "-----BEGIN";
            assert_eq!(kinds, [begin, ssh_kind, begin, "@cert-authority", begin]);
        }
    }

    #[test]
    fn certificates_name_the_cluster_and_their_validity() {
        let cluster = Cluster::new("demo.example.com").unwrap();
        let now = Utc::now();
        let identity = cluster
            .identity(&IdentityOptions {
                not_before: now - TimeDelta::hours(9),
                not_after: now - TimeDelta::hours(1),
                ..IdentityOptions::default()
            })
            .unwrap();
        let certificate = Certificate::from_pem(identity.certificate.as_bytes()).unwrap();
        let tbs = certificate.tbs_certificate();
        assert_eq!(
            tbs.issuer().to_string(),
            "CN=demo.example.com,O=demo.example.com"
        );
        assert_eq!(
            i64::try_from(tbs.validity().not_after.to_unix_duration().as_secs()).unwrap(),
            (now - TimeDelta::hours(1)).timestamp()
        );
        let authority = Certificate::from_pem(identity.authorities.as_bytes()).unwrap();
        assert_eq!(
            authority.tbs_certificate().subject(),
            authority.tbs_certificate().issuer()
        );

        let directory = tempfile::tempdir().unwrap();
        identity.write_trio(&directory.path().join("X")).unwrap();
        for (name, text) in [
            ("X.key", &identity.key),
            ("X.crt", &identity.certificate),
            ("X.cas", &identity.authorities),
        ] {
            let written = std::fs::read_to_string(directory.path().join(name)).unwrap();
            assert_eq!(&written, text);
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 3);
    }
}
