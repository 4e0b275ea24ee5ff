//! The credentials: an identity file as `tctl auth sign` and tbot write it, or key, certificate
//! and CAs in three files.
//!
//! An identity file is read line by line. The first PEM block is the private key, the second the
//! client certificate, all others are CAs, as Teleport itself reads it; labels must fit that. SSH
//! lines are passed over: everything here goes over TLS.

#[cfg(any(test, fuzzing))]
pub mod fuzzing;

use std::path::{Path, PathBuf};

use chrono::{DateTime, SecondsFormat, Utc};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use thiserror::Error;
use tracing::{error, warn};
use x509_cert::der::Decode;
use x509_cert::der::oid::ObjectIdentifier;

use crate::certificate::life;
use crate::config::CredentialPaths;
use crate::platform;
use crate::telemetry::Life;

/// Credentials that have been read and fit together.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The name of the cluster that they lead to: the one that the certificate routes to, which may
    /// be a leaf, else the one that issued it.
    pub cluster: String,
    /// The user's name.
    pub user: String,
    /// From when on the client certificate holds.
    pub not_before: DateTime<Utc>,
    /// Until when the client certificate holds.
    pub not_after: DateTime<Utc>,
    /// Client certificate, key and the cluster's CAs as the only roots; no ALPN yet.
    pub tls: ClientConfig,
    /// The file that one would renew.
    pub path: PathBuf,
    /// The file with the private key, if users other than its owner may read it.
    pub exposed: Option<PathBuf>,
    /// Client certificate and CAs, as read.
    certificates: Vec<CertificateDer<'static>>,
    /// How they can be renewed.
    renewal: String,
}

/// What is wrong with the credentials' files.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// It cannot be read.
    #[error("cannot read {what} {}", path.display())]
    Read {
        /// What it should be.
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It is not what it should be.
    #[error("{what} {}: {problem}", path.display())]
    Content {
        /// What it should be.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// What is wrong, and where.
        problem: String,
    },
    /// The client certificate has run out.
    #[error("the certificate in {} expired at {}", path.display(), shown(not_after))]
    Expired {
        /// The file.
        path: PathBuf,
        /// Until when it held.
        not_after: DateTime<Utc>,
        /// How to renew it.
        renewal: String,
    },
    /// The client certificate does not hold yet.
    #[error("the certificate in {} holds only from {} on", path.display(), shown(not_before))]
    NotYet {
        /// The file.
        path: PathBuf,
        /// From when on it holds.
        not_before: DateTime<Utc>,
    },
    /// Other credentials than the run began with.
    #[error(
        "the certificate in {} is now of cluster {found}, and this run reads {wanted}",
        path.display()
    )]
    OtherCluster {
        /// The file.
        path: PathBuf,
        /// The cluster now.
        found: String,
        /// The cluster at the start.
        wanted: String,
    },
}

impl IdentityError {
    /// What somebody should do.
    pub fn mend(&self) -> Option<String> {
        let mend = match self {
            Self::Read { .. } => "check identity, or key, cert and ca, in [teleport]",
            Self::Content { .. } => {
                "write new ones with `tctl auth sign`: --format=file for an identity file, \
                 --format=tls for key, certificate and CAs"
            }
            Self::Expired { renewal, .. } => renewal,
            Self::NotYet { .. } => "check this machine's clock",
            Self::OtherCluster { .. } => "put back an identity of that cluster, or restart",
        };
        Some(mend.to_owned())
    }
}

/// A time as it is shown everywhere.
pub(super) fn shown(time: &DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

impl Credentials {
    /// Reads and checks them. Does not look at the clock: see [`Credentials::check_time`].
    ///
    /// # Errors
    /// If a file cannot be read, is not what it should be, or the parts do not fit together.
    pub fn load(paths: &CredentialPaths) -> Result<Self, IdentityError> {
        match paths {
            CredentialPaths::Identity(path) => {
                // Where tbot writes to a folder, naming that is as good.
                let inside = path.is_dir().then(|| path.join("identity"));
                let file = inside.as_ref().unwrap_or(path);
                Self::from_identity(&PemFile::read("the identity file", file)?)
            }
            CredentialPaths::KeyPair { key, cert, ca } => Self::from_key_pair(
                &PemFile::read("the key file", key)?,
                &PemFile::read("the certificate file", cert)?,
                &PemFile::read("the CA file", ca)?,
            ),
        }
    }

    fn from_identity(file: &PemFile) -> Result<Self, IdentityError> {
        let [key, certificate, cas @ ..] = &file.blocks[..] else {
            return Err(file.wrong(
                "it should hold a private key, a certificate and the cluster's CAs as PEM",
            ));
        };
        if cas.is_empty() {
            return Err(file.wrong("it holds no CA certificate behind the client certificate"));
        }
        let certificate = std::slice::from_ref(certificate);
        Self::assemble((file, key), (file, certificate), (file, cas))
    }

    fn from_key_pair(
        keys: &PemFile,
        chain: &PemFile,
        cas: &PemFile,
    ) -> Result<Self, IdentityError> {
        // What openssl writes may begin with the parameters of a curve.
        let key = keys.blocks.iter().find(|block| block.is_key());
        let Some(key) = key.or(keys.blocks.first()) else {
            return Err(keys.wrong("it holds no PEM"));
        };
        for file in [chain, cas] {
            if file.blocks.is_empty() {
                return Err(file.wrong("it holds no PEM"));
            }
        }
        Self::assemble((keys, key), (chain, &chain.blocks), (cas, &cas.blocks))
    }

    /// Each part comes with the file that it was found in.
    fn assemble(
        (key_file, key): (&PemFile, &Block),
        (chain_file, chain): (&PemFile, &[Block]),
        (ca_file, cas): (&PemFile, &[Block]),
    ) -> Result<Self, IdentityError> {
        if !key.is_key() {
            let problem = format!("a private key must come first, and this is {}", key.label());
            return Err(key_file.wrong_at(key, &problem));
        }
        let private_key = PrivateKeyDer::from_pem_slice(key.text.as_bytes())
            .map_err(|_| key_file.wrong_at(key, &format!("this {} cannot be used", key.label())))?;
        let chain_der = chain
            .iter()
            .map(|block| chain_file.certificate(block))
            .collect::<Result<Vec<_>, _>>()?;
        let mut roots = RootCertStore::empty();
        let mut certificates = chain_der.clone();
        for ca in cas {
            let ca_der = ca_file.certificate(ca)?;
            certificates.push(ca_der.clone());
            roots
                .add(ca_der)
                .map_err(|_| ca_file.wrong_at(ca, "this CA certificate is damaged"))?;
        }
        let (leaf, leaf_der) = (&chain[0], &chain_der[0]);
        let certificate = x509_cert::Certificate::from_der(leaf_der)
            .map_err(|_| chain_file.wrong_at(leaf, "this certificate is damaged"))?;
        let Life {
            start: not_before,
            end: not_after,
        } = life(&certificate);
        let issuer = certificate.tbs_certificate().issuer().common_name();
        let cluster = issuer
            .ok()
            .flatten()
            .map(|name| name.value().into_owned())
            .filter(|name| !name.is_empty())
            .ok_or_else(|| {
                let problem = "this certificate names no cluster as its issuer, so it is not one \
                               of Teleport's";
                chain_file.wrong_at(leaf, problem)
            })?;
        let subject = certificate.tbs_certificate().subject();
        let route = subject.iter().find(|part| part.oid == ROUTE_TO_CLUSTER);
        let route = route.and_then(|part| part.value.decode_as::<String>().ok());
        let cluster = route.filter(|name| !name.is_empty()).unwrap_or(cluster);
        let user = subject.common_name().ok().flatten();
        let user = user.map_or_else(String::new, |name| name.value().into_owned());
        let renewal = renewal(&user, key_file, chain_file);
        let tls = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain_der, private_key)
            .map_err(|unfit| match unfit {
                rustls::Error::InconsistentKeys(_) => {
                    key_file.wrong_at(key, "this private key belongs to another certificate")
                }
                rustls::Error::InvalidCertificate(_) => {
                    chain_file.wrong_at(leaf, "this certificate is damaged")
                }
                other => {
                    let problem = format!("this {} cannot be used: {other}", key.label());
                    key_file.wrong_at(key, &problem)
                }
            })?;
        Ok(Self {
            cluster,
            user,
            not_before,
            not_after,
            tls,
            path: chain_file.path.clone(),
            exposed: key_file.is_exposed.then(|| key_file.path.clone()),
            certificates,
            renewal,
        })
    }

    /// Whether these are the same, but for the key's form.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.certificates == other.certificates
    }

    /// From when until when the certificate holds.
    pub fn life(&self) -> Life {
        Life {
            start: self.not_before,
            end: self.not_after,
        }
    }

    /// Says in the log when the certificate ends, and what to do.
    pub(super) fn warn_of_end(&self, now: DateTime<Utc>) {
        let (path, end) = (self.path.display(), shown(&self.not_after));
        let mend = self.renewal();
        if now < self.not_after {
            warn!(mend, "the certificate in {path} expires soon, at {end}");
        } else {
            error!(mend, "the certificate in {path} expired at {end}");
        }
    }

    /// How to renew them.
    pub fn renewal(&self) -> &str {
        &self.renewal
    }

    /// Says whether they lead to the same cluster as those used before.
    ///
    /// # Errors
    /// If they do not.
    pub(super) fn check_cluster(&self, before: &Self) -> Result<(), IdentityError> {
        if self.cluster == before.cluster {
            return Ok(());
        }
        Err(IdentityError::OtherCluster {
            path: self.path.clone(),
            found: self.cluster.clone(),
            wanted: before.cluster.clone(),
        })
    }

    /// Says whether the client certificate holds at `now`.
    ///
    /// # Errors
    /// If it has expired or does not hold yet.
    pub fn check_time(&self, now: DateTime<Utc>) -> Result<(), IdentityError> {
        if now >= self.not_after {
            return Err(IdentityError::Expired {
                path: self.path.clone(),
                not_after: self.not_after,
                renewal: self.renewal.clone(),
            });
        }
        if now < self.not_before {
            let (path, not_before) = (self.path.clone(), self.not_before);
            return Err(IdentityError::NotYet { path, not_before });
        }
        Ok(())
    }
}

/// What Teleport writes the cluster into that a certificate routes to: the street address.
const ROUTE_TO_CLUSTER: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.9");

/// How to renew credentials of this user in these files.
fn renewal(user: &str, key_file: &PemFile, chain_file: &PemFile) -> String {
    let path = &chain_file.path;
    // tbot is such a user, and nobody else is.
    if user.starts_with("bot-") {
        return format!(
            "see why tbot has not renewed it: whether it runs, and writes to {}",
            path.display()
        );
    }
    let (format, out) = if key_file.path == *path {
        ("file", path.to_owned())
    } else {
        ("tls", path.with_extension(""))
    };
    format!(
        "renew it with `tctl auth sign --format={format} --user={user} --out={} --overwrite`, or \
         let tbot do it",
        out.display()
    )
}

/// A PEM block with the line it begins on.
struct Block {
    line: usize,
    text: String,
}

impl Block {
    /// What its first line says it is. Only what looks like a label is repeated: where line ends
    /// went lost, the rest of the line is the key.
    fn label(&self) -> &str {
        let is_label = |text: &&str| {
            let mut words = text.split(' ');
            words.all(|word| {
                let is_upper = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit();
                (1..=20).contains(&word.len()) && word.bytes().all(is_upper)
            })
        };
        let first = self.text.lines().next().unwrap_or_default();
        first
            .strip_prefix("-----BEGIN ")
            .and_then(|rest| rest.strip_suffix("-----"))
            .filter(is_label)
            .unwrap_or("a block without a proper first line; did line ends go lost?")
    }

    fn is_key(&self) -> bool {
        self.label().ends_with("PRIVATE KEY")
    }
}

/// A file of PEM blocks, between which anything may stand.
struct PemFile {
    what: &'static str,
    path: PathBuf,
    is_exposed: bool,
    blocks: Vec<Block>,
}

impl PemFile {
    fn read(what: &'static str, path: &Path) -> Result<Self, IdentityError> {
        let unreadable = |source| IdentityError::Read {
            what,
            path: path.to_owned(),
            source,
        };
        let bytes = std::fs::read(path).map_err(unreadable)?;
        let metadata = std::fs::metadata(path).map_err(unreadable)?;
        let file = Self {
            what,
            path: path.to_owned(),
            is_exposed: platform::others_may_read(path, &metadata),
            blocks: Vec::new(),
        };
        file.with_blocks_of(bytes)
    }

    /// Takes in the blocks of the file's text.
    fn with_blocks_of(mut self, bytes: Vec<u8>) -> Result<Self, IdentityError> {
        let Ok(text) = String::from_utf8(bytes) else {
            return Err(self.wrong("it is not a text file"));
        };
        if text.trim().is_empty() {
            return Err(self.wrong("it is empty"));
        }
        let mut open: Option<Block> = None;
        // Editors on Windows put a byte order mark before the text.
        for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            let line = line.trim();
            let begins = line.starts_with("-----BEGIN");
            match &mut open {
                Some(block) if begins => {
                    let problem = format!(
                        "this PEM block has no end before the next begins on line {}",
                        number + 1
                    );
                    return Err(self.wrong_at(block, &problem));
                }
                Some(block) => {
                    block.text.push_str(line);
                    block.text.push('\n');
                    if line.starts_with("-----END") {
                        self.blocks.extend(open.take());
                    }
                }
                None if begins => {
                    open = Some(Block {
                        line: number + 1,
                        text: format!("{line}\n"),
                    });
                }
                None => {}
            }
        }
        match open {
            Some(block) => Err(self.wrong_at(&block, "the file ends within this PEM block")),
            None => Ok(self),
        }
    }

    fn certificate(&self, block: &Block) -> Result<CertificateDer<'static>, IdentityError> {
        if block.label() != "CERTIFICATE" {
            let problem = format!("a certificate must be here, and this is {}", block.label());
            return Err(self.wrong_at(block, &problem));
        }
        CertificateDer::from_pem_slice(block.text.as_bytes())
            .map_err(|_| self.wrong_at(block, "this certificate is damaged"))
    }

    fn wrong_at(&self, block: &Block, problem: &str) -> IdentityError {
        self.wrong(&format!("line {}: {problem}", block.line))
    }

    fn wrong(&self, problem: &str) -> IdentityError {
        IdentityError::Content {
            what: self.what,
            path: self.path.clone(),
            problem: problem.to_owned(),
        }
    }
}
