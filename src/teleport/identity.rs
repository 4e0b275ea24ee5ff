//! The credentials: an identity file as `tctl auth sign` and tbot write it, or key, certificate
//! and CAs in three files.
//!
//! An identity file is read line by line. The first PEM block is the private key, the second the
//! client certificate, all others are CAs; labels are not looked at to tell which is which. SSH
//! lines are passed over: everything here goes over TLS.

use std::fmt;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use thiserror::Error;
use x509_cert::der::Decode;

use crate::config::CredentialPaths;

/// Credentials that have been read and fit together.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The name of the cluster that issued the client certificate.
    pub cluster: String,
    /// From when on the client certificate holds.
    pub not_before: DateTime<Utc>,
    /// Until when the client certificate holds.
    pub not_after: DateTime<Utc>,
    /// Client certificate, key and the cluster's CAs as the only roots; no ALPN yet.
    pub tls: ClientConfig,
    /// The file that one would renew.
    pub path: PathBuf,
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
    #[error(
        "the certificate in {} expired at {}: renew it (`tctl auth sign`, or let tbot do it)",
        path.display(),
        not_after.to_rfc3339()
    )]
    Expired {
        /// The file.
        path: PathBuf,
        /// Until when it held.
        not_after: DateTime<Utc>,
    },
    /// The client certificate does not hold yet.
    #[error(
        "the certificate in {} holds only from {} on: check this machine's clock",
        path.display(),
        not_before.to_rfc3339()
    )]
    NotYet {
        /// The file.
        path: PathBuf,
        /// From when on it holds.
        not_before: DateTime<Utc>,
    },
}

impl Credentials {
    /// Reads and checks them. Does not look at the clock: see [`Credentials::check_time`].
    ///
    /// # Errors
    /// If a file cannot be read, is not what it should be, or the parts do not fit together.
    pub fn load(paths: &CredentialPaths) -> Result<Self, IdentityError> {
        match paths {
            CredentialPaths::Identity(path) => {
                let what = "the identity file";
                let blocks = pem_blocks(what, path)?;
                let problem = |problem: &str| content(what, path, problem.to_owned());
                let [key, certificate, cas @ ..] = &blocks[..] else {
                    return Err(problem(
                        "it should hold a private key, a certificate and the cluster's CAs as PEM; \
                         write one with `tctl auth sign --format=file`",
                    ));
                };
                if cas.is_empty() {
                    return Err(problem(
                        "it holds no CA certificate behind the client certificate",
                    ));
                }
                Self::assemble(what, path, key, std::slice::from_ref(certificate), cas)
            }
            CredentialPaths::KeyPair { key, cert, ca } => {
                let keys = pem_blocks("the key file", key)?;
                let Some(first) = keys.first() else {
                    return Err(content("the key file", key, "it holds no PEM".into()));
                };
                let chain = pem_blocks("the certificate file", cert)?;
                if chain.is_empty() {
                    return Err(content(
                        "the certificate file",
                        cert,
                        "it holds no PEM".into(),
                    ));
                }
                let cas = pem_blocks("the CA file", ca)?;
                if cas.is_empty() {
                    return Err(content("the CA file", ca, "it holds no PEM".into()));
                }
                // Whose line it was is told by the block itself, so one file's name serves.
                Self::assemble("the certificate file", cert, first, &chain, &cas)
            }
        }
    }

    fn assemble(
        what: &'static str,
        path: &Path,
        key: &Block,
        chain: &[Block],
        cas: &[Block],
    ) -> Result<Self, IdentityError> {
        let bad = |block: &Block, problem: &dyn fmt::Display| {
            content(what, path, format!("line {}: {problem}", block.line))
        };
        let private_key = PrivateKeyDer::from_pem_slice(key.text.as_bytes())
            .map_err(|_| bad(key, &format!("{} is no usable private key", key.label())))?;
        let certificate = |block: &Block| {
            CertificateDer::from_pem_slice(block.text.as_bytes())
                .map_err(|_| bad(block, &format!("{} is no certificate", block.label())))
        };
        let chain_der = chain
            .iter()
            .map(certificate)
            .collect::<Result<Vec<_>, _>>()?;
        let mut roots = RootCertStore::empty();
        for ca in cas {
            roots
                .add(certificate(ca)?)
                .map_err(|broken| bad(ca, &format!("this CA certificate is broken: {broken}")))?;
        }
        let leaf = x509_cert::Certificate::from_der(&chain_der[0])
            .map_err(|broken| bad(&chain[0], &format!("the certificate is broken: {broken}")))?;
        let validity = leaf.tbs_certificate().validity();
        let time = |time: x509_cert::time::Time| {
            let seconds = i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX);
            DateTime::from_timestamp(seconds, 0).unwrap_or(DateTime::<Utc>::MAX_UTC)
        };
        let (not_before, not_after) = (time(validity.not_before), time(validity.not_after));
        let issuer = leaf.tbs_certificate().issuer().common_name();
        let cluster = issuer
            .ok()
            .flatten()
            .map(|name| name.value().into_owned())
            .filter(|name| !name.is_empty())
            .ok_or_else(|| {
                bad(
                    &chain[0],
                    &"its issuer has no name (CN): not a Teleport one",
                )
            })?;
        let tls = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain_der, private_key)
            .map_err(|unfit| match unfit {
                rustls::Error::InconsistentKeys(_) => {
                    bad(key, &"the private key belongs to another certificate")
                }
                other => bad(key, &other),
            })?;
        Ok(Self {
            cluster,
            not_before,
            not_after,
            tls,
            path: path.to_owned(),
        })
    }

    /// Says whether the client certificate holds at `now`.
    ///
    /// # Errors
    /// If it has expired or does not hold yet.
    pub fn check_time(&self, now: DateTime<Utc>) -> Result<(), IdentityError> {
        if now >= self.not_after {
            let (path, not_after) = (self.path.clone(), self.not_after);
            return Err(IdentityError::Expired { path, not_after });
        }
        if now < self.not_before {
            let (path, not_before) = (self.path.clone(), self.not_before);
            return Err(IdentityError::NotYet { path, not_before });
        }
        Ok(())
    }
}

fn content(what: &'static str, path: &Path, problem: String) -> IdentityError {
    IdentityError::Content {
        what,
        path: path.to_owned(),
        problem,
    }
}

/// A PEM block with the line it begins on.
struct Block {
    line: usize,
    text: String,
}

impl Block {
    fn label(&self) -> String {
        let first = self.text.lines().next().unwrap_or_default();
        first
            .trim_matches('-')
            .trim_start_matches("BEGIN ")
            .to_owned()
    }
}

fn pem_blocks(what: &'static str, path: &Path) -> Result<Vec<Block>, IdentityError> {
    let bytes = std::fs::read(path).map_err(|source| IdentityError::Read {
        what,
        path: path.to_owned(),
        source,
    })?;
    let text = String::from_utf8(bytes)
        .map_err(|_| content(what, path, "it is not a text file".into()))?;
    if text.trim().is_empty() {
        return Err(content(what, path, "it is empty".into()));
    }
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        match &mut open {
            None if line.starts_with("-----BEGIN") => {
                open = Some(Block {
                    line: number + 1,
                    text: format!("{line}\n"),
                });
            }
            None => {}
            Some(block) => {
                block.text.push_str(line);
                block.text.push('\n');
                if line.starts_with("-----END") {
                    blocks.extend(open.take());
                }
            }
        }
    }
    match open {
        Some(block) => {
            let problem = format!("line {}: the file ends within this PEM block", block.line);
            Err(content(what, path, problem))
        }
        None => Ok(blocks),
    }
}
