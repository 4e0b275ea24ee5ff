//! What the configuration's files hold, and the transports that are made with it.

use std::error::Error;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use elasticsearch::auth::{ClientCertificate, Credentials};
use elasticsearch::cert::{Certificate, CertificateValidation};
use elasticsearch::http::headers::{
    ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER,
};
use elasticsearch::http::transport::{SingleNodeConnectionPool, Transport, TransportBuilder};
use elasticsearch::http::{Method, Url};
use hyper_util::client::proxy::matcher::Matcher;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::OnceCell;
use x509_cert::der::Decode;

use super::pinned::{self, NotShown};
use super::{Answer, Body, ClientError};
use crate::certificate::life;
use crate::config::{Auth, CaFingerprint, ElasticsearchConfig};
use crate::telemetry::Life;

/// What the files hold that the configuration names.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Files {
    auth: Option<Auth>,
    ca: Option<Vec<u8>>,
    /// Client certificate and key.
    identity: Option<Vec<u8>>,
}

impl Files {
    pub(super) fn read(config: &ElasticsearchConfig) -> Result<Self, ClientError> {
        let identity = config.client_certificate.as_ref();
        let identity = identity.map(identity_of).transpose()?;
        let ca = config.ca.as_ref();
        let auth = match &config.auth_file {
            Some(file) => Some(file.read().map_err(ClientError::Auth)?),
            None => config.auth.clone(),
        };
        Ok(Self {
            auth,
            ca: ca.map(|path| read(CA, path)).transpose()?,
            identity,
        })
    }
}

impl Files {
    /// The id of the API key, if that is what they hold. A key for all of Elastic's cloud has none to
    /// ask about.
    pub(super) fn api_key_id(&self) -> Option<String> {
        let Some(Auth::ApiKey(key)) = &self.auth else {
            return None;
        };
        let decoded = BASE64_STANDARD.decode(key.expose()).ok()?;
        let decoded = String::from_utf8(decoded).ok()?;
        decoded.split_once(':').map(|(id, _)| id.to_owned())
    }

    /// From when until when the client certificate holds; `None` if there is none.
    pub(super) fn certificate_life(&self) -> Option<Life> {
        let pem = self.identity.as_ref()?;
        let leaf = CertificateDer::pem_slice_iter(pem).next()?.ok()?;
        let leaf = x509_cert::Certificate::from_der(&leaf).ok()?;
        Some(life(&leaf))
    }
}

/// A way to each host, with the same credentials.
pub(super) struct Access {
    pub(super) files: Files,
    pub(super) hosts: Vec<Host>,
}

impl fmt::Debug for Access {
    /// Not what the files hold: it may be a private key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts = self.hosts.iter().map(|host| host.setup.url.as_str());
        f.debug_list().entries(hosts).finish()
    }
}

impl Access {
    /// Prepares the transports; each request bears the headers. Connects nowhere yet.
    pub(super) fn new(
        config: &ElasticsearchConfig,
        files: Files,
        headers: &HeaderMap,
    ) -> Result<Self, ClientError> {
        let mut headers = headers.clone();
        if let Some(auth) = &files.auth {
            let mut value = HeaderValue::from_str(&authorization(auth))
                .expect("base64 and ASCII words are legal in a header");
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        // The same that the crate's client reads.
        let proxies = Matcher::from_env();
        let mut hosts = Vec::new();
        for host in &config.hosts {
            let found = host.as_str().parse().ok();
            let found = found.and_then(|uri| proxies.intercept(&uri));
            let http_proxy = found.filter(|_| !host.is_loopback());
            let setup = Setup {
                url: Url::parse(host.as_str()).expect("the configuration has checked it"),
                // Without user and password.
                http_proxy: http_proxy.and_then(|proxy| {
                    let (uri, port) = (proxy.uri(), proxy.uri().port());
                    let port = port.map_or_else(String::new, |port| format!(":{port}"));
                    Some(format!("{}{port}", uri.host()?))
                }),
                is_loopback: host.is_loopback(),
                timeout: config.request_timeout,
                headers: headers.clone(),
                identity: files.identity.clone(),
            };
            let ca = match (&files.ca, &config.ca) {
                (Some(pem), Some(path)) => Some(certificate(pem, path)?),
                _ => None,
            };
            // Built in any case, so that unfit files show at once.
            let transport = setup.transport(ca)?;
            let (transport, fingerprint) = match config.ca_fingerprint {
                // What is trusted is not known before the server has shown it.
                Some(fingerprint) => (OnceCell::new(), Some(fingerprint)),
                None => (OnceCell::new_with(Some(transport)), None),
            };
            hosts.push(Host {
                setup,
                fingerprint,
                transport,
            });
        }
        Ok(Self { files, hosts })
    }
}

/// One host.
pub(super) struct Host {
    setup: Setup,
    fingerprint: Option<CaFingerprint>,
    transport: OnceCell<Transport>,
}

/// What the transport to one host is made of.
struct Setup {
    url: Url,
    http_proxy: Option<String>,
    is_loopback: bool,
    timeout: Duration,
    headers: HeaderMap,
    identity: Option<Vec<u8>>,
}

impl Setup {
    fn transport(&self, ca: Option<Certificate>) -> Result<Transport, ClientError> {
        let pool = SingleNodeConnectionPool::new(self.url.clone());
        let mut builder = TransportBuilder::new(pool)
            .headers(self.headers.clone())
            .timeout(self.timeout);
        if self.is_loopback {
            // A proxy for the outside must not see what stays on this machine.
            builder = builder.disable_proxy();
        }
        if let Some(ca) = ca {
            builder = builder.cert_validation(CertificateValidation::Full(ca));
        }
        if let Some(pem) = &self.identity {
            let certificate = ClientCertificate::Pem(pem.clone());
            builder = builder.auth(Credentials::Certificate(certificate));
        }
        builder.build().map_err(|source| ClientError::Build {
            url: self.url.clone(),
            source,
        })
    }
}

impl Host {
    /// The transport; with a fingerprint it is made once the server has shown the certificate.
    async fn transport(&self) -> Result<&Transport, ClientError> {
        let make = async || {
            let fingerprint = self.fingerprint.expect("the others are there already");
            let setup = &self.setup;
            let shown = pinned::ca_of(&setup.url, setup.is_loopback, setup.timeout, fingerprint);
            let shown = shown.await.map_err(|failed| match failed {
                NotShown::NoAnswer(failed) => self.no_answer(&failed),
                NotShown::Own(authorities) => ClientError::OwnCertificate {
                    url: setup.url.to_string(),
                    authorities,
                },
                NotShown::Others(others) => ClientError::OtherCertificates {
                    url: setup.url.to_string(),
                    others,
                },
            })?;
            let ca = Certificate::from_der(&shown).map_err(|failed| self.no_answer(&failed))?;
            setup.transport(Some(ca))
        };
        self.transport.get_or_try_init(make).await
    }

    /// One attempt at one request.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<Answer, ClientError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let ndjson = HeaderValue::from_static("application/x-ndjson");
        let bytes = match body {
            Body::Empty => None,
            Body::Json(bytes) => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                Some(bytes)
            }
            Body::Ndjson(bytes) => {
                headers.insert(CONTENT_TYPE, ndjson);
                Some(bytes)
            }
            Body::NdjsonFile(file) => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static(FORM));
                Some(form_of(&file))
            }
            Body::GzippedNdjson(bytes) => {
                headers.insert(CONTENT_TYPE, ndjson);
                headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                Some(bytes)
            }
        };
        let transport = self.transport().await?;
        let answered = self.answered(transport, method, path, headers, bytes);
        answered.await.map_err(|failed| self.no_answer(&failed))
    }

    fn no_answer(&self, failed: &(dyn Error + 'static)) -> ClientError {
        ClientError::no_answer(&self.setup.url, self.setup.http_proxy.as_deref(), failed)
    }

    async fn answered(
        &self,
        transport: &Transport,
        method: Method,
        path: &str,
        headers: HeaderMap,
        bytes: Option<Bytes>,
    ) -> Result<Answer, elasticsearch::Error> {
        let timeout = Some(self.setup.timeout);
        let response = transport
            .send(method, path, headers, None::<&()>, bytes, timeout)
            .await?;
        let status = response.status_code().as_u16();
        let product = response.headers().get("x-elastic-product");
        let is_elasticsearch = product.is_some_and(|name| name == "Elasticsearch");
        let retry_after = response.headers().get(RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| seconds_or_date(value.to_str().ok()?));
        let body = response.bytes().await?;
        Ok(Answer {
            host: self.setup.url.to_string(),
            status,
            body,
            is_elasticsearch,
            retry_after,
        })
    }
}

/// What ends a part of a form; nothing that is sent as a file holds it.
const FORM: &str = "multipart/form-data; boundary=end-of-a-part-of-teleport-event-indexer";
const PART_BEGIN: &str = "--end-of-a-part-of-teleport-event-indexer\r\n\
     Content-Disposition: form-data; name=\"file\"; filename=\"objects.ndjson\"\r\n\
     Content-Type: application/ndjson\r\n\r\n";
const PART_END: &str = "\r\n--end-of-a-part-of-teleport-event-indexer--\r\n";

/// A form with one file.
fn form_of(file: &[u8]) -> Bytes {
    [PART_BEGIN.as_bytes(), file, PART_END.as_bytes()]
        .concat()
        .into()
}

const CA: &str = "the certificate authority";

/// Certificate and key as one text, if they are a pair.
fn identity_of(files: &crate::config::ClientCertificate) -> Result<Vec<u8>, ClientError> {
    let mut pem = read("the client certificate", &files.certificate)?;
    let key = read("the client key", &files.key)?;
    let unfit = |problem: String| ClientError::Identity {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        problem,
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.map_err(|_| unfit("cannot be used: the certificate is damaged".into()))?;
    let private_key = PrivateKeyDer::from_pem_slice(&key)
        .map_err(|_| unfit("cannot be used: there is no key as plain PEM".into()))?;
    if chain.is_empty() {
        return Err(unfit(
            "cannot be used: there is no certificate as PEM".into(),
        ));
    }
    rustls::ClientConfig::builder()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_client_auth_cert(chain, private_key)
        .map_err(|refused| match refused {
            rustls::Error::InconsistentKeys(_) => unfit("do not belong together".into()),
            other => unfit(format!("cannot be used: {other}")),
        })?;
    pem.push(b'\n');
    pem.extend(key);
    Ok(pem)
}

fn certificate(pem: &[u8], path: &Path) -> Result<Certificate, ClientError> {
    Certificate::from_pem(pem).map_err(|source| ClientError::Pem {
        what: CA,
        path: path.to_owned(),
        source,
    })
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, ClientError> {
    std::fs::read(path).map_err(|source| ClientError::File {
        what,
        path: path.to_owned(),
        source,
    })
}

/// The value of a `Retry-After`: a count of seconds, or a date.
fn seconds_or_date(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = chrono::DateTime::parse_from_rfc2822(text).ok()?;
    (date.to_utc() - chrono::Utc::now()).to_std().ok()
}

fn authorization(auth: &Auth) -> String {
    use base64::Engine;
    match auth {
        Auth::Basic { user, password } => {
            let pair = format!("{user}:{}", password.expose());
            format!("Basic {}", BASE64_STANDARD.encode(pair))
        }
        Auth::ApiKey(key) => format!("ApiKey {}", key.expose()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    #[test]
    fn the_end_of_a_client_certificate_is_known() {
        let cluster = crate::demo::certs::Cluster::new("example").unwrap();
        let identity = cluster.identity(&crate::demo::certs::IdentityOptions::default());
        let folder = tempfile::tempdir().unwrap();
        identity
            .unwrap()
            .write(&folder.path().join("identity"))
            .unwrap();
        let pem = std::fs::read(folder.path().join("identity")).unwrap();
        let files = |identity| Files {
            auth: None,
            ca: None,
            identity,
        };
        let life = files(Some(pem)).certificate_life().unwrap();
        let now = chrono::Utc::now();
        let left = life.end - now;
        assert!((1..=25).contains(&left.num_hours()), "{left}");
        assert!(life.start <= now, "{life:?}");
        assert_eq!(files(None).certificate_life(), None);
    }

    #[test]
    fn the_id_of_an_api_key_is_what_its_encoded_form_begins_with() {
        let id = |auth| {
            let files = Files {
                auth,
                ca: None,
                identity: None,
            };
            files.api_key_id()
        };
        let key = |encoded| Some(Auth::ApiKey(Secret::new(encoded)));
        assert_eq!(id(key("aWQ6c2VjcmV0")).as_deref(), Some("id"));
        assert_eq!(id(key("essu_abc")), None);
        assert_eq!(id(None), None);
    }

    #[test]
    fn a_retry_after_is_seconds_or_a_date() {
        assert_eq!(seconds_or_date("120"), Some(Duration::from_secs(120)));
        let later = seconds_or_date("Fri, 31 Dec 9999 23:59:59 GMT");
        assert!(later.is_some_and(|later| later > Duration::from_secs(3600)));
        for text in ["Sun, 06 Nov 1994 08:49:37 GMT", "-1", "soon", ""] {
            assert_eq!(seconds_or_date(text), None, "{text}");
        }
    }
}
