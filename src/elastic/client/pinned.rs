//! A CA that is known by its fingerprint alone: the server must show it.
//!
//! The `elasticsearch` crate takes CA certificates and no fingerprints. So the server is asked for
//! its chain first, on a connection of our own that sends no credentials; what is found there is
//! checked against the name and the clock as any other CA is.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use elasticsearch::http::Url;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use crate::config::CaFingerprint;

/// Why there is no such certificate.
#[derive(Debug)]
pub(super) enum NotShown {
    /// No handshake, or one that failed for another reason.
    NoAnswer(reqwest::Error),
    /// The server shows certificates with other fingerprints.
    Others(Vec<CaFingerprint>),
    /// It is the server's own, which others issued; those it shows.
    Own(Vec<CaFingerprint>),
}

/// The certificate with this fingerprint, in DER, if the server at `url` shows it and it vouches
/// for the server.
pub(super) async fn ca_of(
    url: &Url,
    is_loopback: bool,
    timeout: Duration,
    fingerprint: CaFingerprint,
) -> Result<Vec<u8>, NotShown> {
    let provider = CryptoProvider::get_default().expect("main installs one");
    let verifier = Arc::new(Verifier {
        fingerprint,
        provider: provider.clone(),
        shown: Mutex::default(),
    });
    let tls = ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_no_client_auth();
    let mut client = reqwest::Client::builder()
        .use_preconfigured_tls(tls)
        .timeout(timeout);
    if is_loopback {
        client = client.no_proxy();
    }
    let asked = async { client.build()?.head(url.clone()).send().await };
    // Whatever is answered to somebody without credentials.
    let answer = asked.await;
    let mut shown = verifier
        .shown
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    match (std::mem::take(&mut *shown), answer) {
        (Shown::Ca(der), _) => Ok(der),
        (Shown::Others(others), _) => Err(NotShown::Others(others)),
        (Shown::Own(authorities), _) => Err(NotShown::Own(authorities)),
        (Shown::Nothing, Err(failed)) => Err(NotShown::NoAnswer(failed)),
        (Shown::Nothing, Ok(_)) => unreachable!("hosts with a fingerprint speak TLS"),
    }
}

/// What the server has shown.
#[derive(Debug, Default)]
enum Shown {
    /// There was no handshake, or it ended for another reason.
    #[default]
    Nothing,
    /// The certificate that was looked for; the server's own is good by it.
    Ca(Vec<u8>),
    /// The fingerprints of all that it has shown, which are others.
    Others(Vec<CaFingerprint>),
    /// The certificate that was looked for, as the server's own. It is not good by itself.
    Own(Vec<CaFingerprint>),
}

#[derive(Debug)]
struct Verifier {
    fingerprint: CaFingerprint,
    provider: Arc<CryptoProvider>,
    shown: Mutex<Shown>,
}

impl Verifier {
    fn note(&self, shown: Shown) {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = shown;
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = || std::iter::once(end_entity).chain(intermediates);
        let is_wanted = |der: &&CertificateDer<'_>| CaFingerprint::of(der) == self.fingerprint;
        let Some(ca) = chain().find(is_wanted) else {
            let others = chain().map(|der| CaFingerprint::of(der));
            self.note(Shown::Others(others.collect()));
            return Err(CertificateError::UnknownIssuer.into());
        };
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
                .build()
                .map_err(|unfit| Error::General(unfit.to_string()))?;
        let verified =
            verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let is_issued = matches!(
            &verified,
            Err(Error::InvalidCertificate(CertificateError::UnknownIssuer))
        );
        if is_issued && ca == end_entity {
            let authorities = intermediates.iter().map(|der| CaFingerprint::of(der));
            self.note(Shown::Own(authorities.collect()));
        }
        let verified = verified?;
        self.note(Shown::Ca(ca.to_vec()));
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}
