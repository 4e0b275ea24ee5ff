//! Certificate and key of the server. Renewed files are taken over with the next connection.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

use crate::config::ListenTls;
use crate::output::Chain;

/// Why certificate and key cannot be used.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// One of the files cannot be read, or is none.
    #[error("listen.{key}: no PEM can be read from {}", path.display())]
    File {
        /// `cert` or `key`.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// They do not belong together, or are not fit for a server.
    #[error("listen.cert {} and listen.key {} cannot be used together", cert.display(), key.display())]
    Unfit {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// Why not.
        #[source]
        source: Box<rustls::Error>,
    },
}

/// Certificate and key as they were last read.
pub(super) struct Certificate {
    files: ListenTls,
    changed: [Option<SystemTime>; 2],
    acceptor: TlsAcceptor,
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.files.fmt(f)
    }
}

impl Certificate {
    pub(super) fn load(files: &ListenTls) -> Result<Self, CertificateError> {
        Ok(Self {
            files: files.clone(),
            changed: changed(files),
            acceptor: read(files)?,
        })
    }

    /// For the next connection.
    pub(super) fn acceptor(&mut self) -> TlsAcceptor {
        let now = changed(&self.files);
        if now != self.changed {
            self.changed = now;
            match read(&self.files) {
                Ok(renewed) => {
                    info!("certificate of the status page renewed");
                    self.acceptor = renewed;
                }
                Err(unusable) => warn!(
                    "keeping the certificate of the status page: {}",
                    Chain(&unusable)
                ),
            }
        }
        self.acceptor.clone()
    }
}

fn changed(files: &ListenTls) -> [Option<SystemTime>; 2] {
    [&files.cert, &files.key].map(|path| fs::metadata(path).and_then(|file| file.modified()).ok())
}

fn read(files: &ListenTls) -> Result<TlsAcceptor, CertificateError> {
    let failed = |key, path: &Path| {
        let path = path.to_owned();
        move |source| CertificateError::File { key, path, source }
    };
    let certificates = CertificateDer::pem_file_iter(&files.cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(failed("cert", &files.cert))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(failed("key", &files.key))?;
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .map_err(|source| CertificateError::Unfit {
            cert: files.cert.clone(),
            key: files.key.clone(),
            source: Box::new(source),
        })?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
