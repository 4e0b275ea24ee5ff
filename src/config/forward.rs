//! The table `[forward.elasticsearch]`.

use std::path::PathBuf;
use std::time::Duration;

use super::address::HostUrl;
use super::auth::{self, Auth, AuthFile};
use super::ca_fingerprint::CaFingerprint;
use super::cloud_id::CloudId;
use super::keys;
use super::resolver::Resolver;
use super::sources::Value;
use super::values::{self, Problem};
use crate::document::{IndexPattern, Schema};

/// How to reach Elasticsearch, and how to write to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElasticsearchConfig {
    /// Hosts of one cluster, at least one.
    pub hosts: Vec<HostUrl>,
    /// Where the cloud id says that Kibana is.
    pub kibana: Option<HostUrl>,
    /// Who we are; `None` where security is switched off, or a client certificate says it.
    pub auth: Option<Auth>,
    /// Where `auth` was read from, if from a file.
    pub auth_file: Option<AuthFile>,
    /// Who we are where `verify` reads, if somebody else.
    pub verifier_auth: Option<Auth>,
    /// A certificate to show.
    pub client_certificate: Option<ClientCertificate>,
    /// CA certificates to trust beside those of the system.
    pub ca: Option<PathBuf>,
    /// The CA certificate that the server must show, to trust beside those of the system.
    pub ca_fingerprint: Option<CaFingerprint>,
    /// Name of the indices, with `%Y`, `%m` and `%d` for the event's date in UTC.
    pub index: IndexPattern,
    /// Which fields documents have.
    pub schema: Schema,
    /// Whether requests are compressed; `None` leaves it to the host: not on this machine.
    pub gzip: Option<bool>,
    /// Most bytes of a bulk request, uncompressed.
    pub batch_bytes: usize,
    /// Most documents of a bulk request.
    pub batch_documents: usize,
    /// Longest time a document waits for its batch to fill.
    pub batch_age: Duration,
    /// Most bulk requests at a time.
    pub in_flight: usize,
    /// Longest wait for the answer to a request.
    pub request_timeout: Duration,
    /// What to do about days that are too old for the lifecycle policy.
    pub old_days: OldDays,
    /// What `install` makes.
    pub install: InstallConfig,
}

/// What to do about days whose index the lifecycle policy would delete as soon as it is written, or
/// has closed to writing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OldDays {
    /// Write nothing at all.
    #[default]
    Refuse,
    /// Write them.
    Write,
    /// Leave them out.
    Skip,
}

/// PEM files of a client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate, with its chain.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// The table `[forward.elasticsearch.install]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstallConfig {
    /// Name of the index template.
    pub template: String,
    /// Name of the lifecycle policy.
    pub policy: String,
    /// Age at which an index is deleted; `None` keeps all.
    pub retention: Option<Duration>,
    /// Primary shards of each index.
    pub shards: u32,
    /// Copies of each shard; `None`: one where there is a second node.
    pub replicas: Option<u32>,
    /// Longest time until a search finds a new document.
    pub refresh_interval: Duration,
    /// The template of Teleport's guide in place of the typed one.
    pub dynamic: bool,
}

const DAY: Duration = Duration::from_hours(24);

/// Reads the table; `None` if it names no host and need not.
pub(super) fn resolve(resolver: &mut Resolver, is_needed: bool) -> Option<ElasticsearchConfig> {
    let hosts = hosts(resolver, is_needed);
    let kibana = kibana(resolver);
    let (auth, auth_file) = auth::resolve(resolver).unzip();
    let verifier_auth = auth::verifier(resolver);
    let exposed = if auth.is_some() || verifier_auth.is_some() {
        "credentials and events"
    } else {
        "events"
    };
    for host in hosts.iter().flatten() {
        if !host.is_https() && !host.is_loopback() {
            resolver.warn(format!(
                "{host} is not encrypted: {exposed} cross the network in the clear; use https"
            ));
        }
    }
    let client_certificate = client_certificate(resolver);
    let ca = resolver.optional(&keys::CA, values::path);
    let ca_fingerprint = ca_fingerprint(resolver, hosts.as_deref());
    let index = resolver.value(&keys::INDEX, values::index_pattern);
    let schema = resolver.value(&keys::SCHEMA, schema);
    let gzip = resolver.optional(&keys::GZIP, values::boolean);
    let batch_bytes = resolver.value(&keys::BATCH_BYTES, values::bytes(64 << 10, 64 << 20));
    let batch_documents = resolver.value(&keys::BATCH_DOCUMENTS, values::integer(1, 100_000));
    let batch_age = resolver.value(
        &keys::BATCH_AGE,
        values::duration(Duration::from_millis(1), Duration::from_secs(10)),
    );
    let in_flight = resolver.value(&keys::IN_FLIGHT, values::integer(1, 64));
    let request_timeout = resolver.value(
        &keys::REQUEST_TIMEOUT,
        values::duration(Duration::from_millis(100), Duration::from_hours(1)),
    );
    let old_days = resolver.value(&keys::OLD_DAYS, old_days);
    let install = InstallConfig {
        template: resolver.value(&keys::TEMPLATE, values::asset_name),
        policy: resolver.value(&keys::POLICY, values::asset_name),
        retention: resolver.value(&keys::RETENTION, retention),
        shards: resolver.value(&keys::SHARDS, values::integer(1, 1024)),
        replicas: resolver.value(&keys::REPLICAS, replicas),
        refresh_interval: resolver.value(
            &keys::REFRESH_INTERVAL,
            values::duration(Duration::from_millis(100), Duration::from_hours(1)),
        ),
        dynamic: resolver.value(&keys::DYNAMIC, values::boolean),
    };
    if install.dynamic && schema == Schema::Ecs {
        resolver.wrong(
            &keys::SCHEMA,
            "ecs needs the typed template, in which `user` and `user.name` both have room; leave \
             install.dynamic out",
        );
    }
    Some(ElasticsearchConfig {
        hosts: hosts?,
        kibana,
        auth,
        auth_file: auth_file.flatten(),
        verifier_auth,
        client_certificate,
        ca,
        ca_fingerprint,
        index,
        schema,
        gzip,
        batch_bytes: usize::try_from(batch_bytes).expect("at most 64 MiB"),
        batch_documents,
        batch_age,
        in_flight,
        request_timeout,
        old_days,
        install,
    })
}

fn hosts(resolver: &mut Resolver, is_needed: bool) -> Option<Vec<HostUrl>> {
    resolver.exclude(&keys::CLOUD_ID, &keys::HOSTS, "keep one of them");
    let from_cloud = resolver.unshown(&keys::CLOUD_ID, |value| {
        let id = CloudId::parse(&values::text(value)?).map_err(|error| error.to_string())?;
        let host = HostUrl::parse(&id.elasticsearch).map_err(|error| error.to_string())?;
        Ok(vec![host])
    });
    let is_set = resolver.is_set(&keys::HOSTS);
    if !is_set && !resolver.is_set(&keys::CLOUD_ID) && is_needed {
        resolver.missing(
            &keys::HOSTS,
            "give the URLs of the cluster, or an Elastic Cloud id as cloud-id",
        );
    }
    if !is_set {
        return from_cloud;
    }
    let texts = resolver.unshown(&keys::HOSTS, |value| match values::list(value)? {
        texts if texts.is_empty() => Err("must name at least one host".to_owned()),
        texts => Ok(texts),
    })?;
    let mut hosts: Vec<HostUrl> = Vec::new();
    for (i, text) in texts.iter().enumerate() {
        match HostUrl::parse(text) {
            Ok(host) if hosts.contains(&host) => {
                resolver.wrong(&keys::HOSTS, format!("{host} is given twice"));
            }
            Ok(host) => hosts.push(host),
            // What may hold a password is counted, not shown.
            Err(error) if text.contains('@') => {
                resolver.wrong(&keys::HOSTS, format!("host {} {error}", i + 1));
            }
            Err(error) => resolver.wrong(&keys::HOSTS, format!("{text:?} {error}")),
        }
    }
    Some(hosts)
}

/// A mistake in the cloud id is told with the hosts.
fn kibana(resolver: &Resolver) -> Option<HostUrl> {
    let cloud_id = resolver.setting(&keys::CLOUD_ID)?;
    let id = CloudId::parse(&values::text(&cloud_id.value).ok()?).ok()?;
    HostUrl::parse(&id.kibana?).ok()
}

fn ca_fingerprint(resolver: &mut Resolver, hosts: Option<&[HostUrl]>) -> Option<CaFingerprint> {
    resolver.exclude(&keys::CA_FINGERPRINT, &keys::CA, "keep one of them");
    let fingerprint = resolver.optional(&keys::CA_FINGERPRINT, |value| {
        CaFingerprint::parse(&values::text(value)?).map_err(|error| error.to_string())
    });
    if fingerprint.is_some() && hosts.is_some_and(|hosts| !hosts.iter().all(HostUrl::is_https)) {
        let problem =
            "goes with hosts of https:// alone: what is not encrypted shows no certificate";
        resolver.wrong(&keys::CA_FINGERPRINT, problem);
    }
    fingerprint
}

fn client_certificate(resolver: &mut Resolver) -> Option<ClientCertificate> {
    let certificate = resolver.optional(&keys::CLIENT_CERT, values::path);
    let key = resolver.optional(&keys::CLIENT_KEY, values::path);
    match (
        resolver.is_set(&keys::CLIENT_CERT),
        resolver.is_set(&keys::CLIENT_KEY),
    ) {
        (true, false) => {
            resolver.wrong(&keys::CLIENT_CERT, "goes with client-key, which is not set");
        }
        (false, true) => {
            resolver.wrong(&keys::CLIENT_KEY, "goes with client-cert, which is not set");
        }
        _ => {}
    }
    Some(ClientCertificate {
        certificate: certificate?,
        key: key?,
    })
}

fn schema(value: &Value) -> Result<Schema, Problem> {
    match values::text(value).as_deref() {
        Ok("raw") => Ok(Schema::Raw),
        Ok("ecs") => Ok(Schema::Ecs),
        _ => Err("must be raw or ecs".to_owned()),
    }
}

/// Lifecycle policies look every ten minutes, and indices span a day: less makes no sense.
fn retention(value: &Value) -> Result<Option<Duration>, Problem> {
    if values::text(value).is_ok_and(|text| text == "never") {
        return Ok(None);
    }
    match values::any_duration(value) {
        Ok(age) if age < DAY || age.subsec_nanos() > 0 => {
            Err("must be at least 1d, in whole seconds, or never".to_owned())
        }
        Ok(age) => Ok(Some(age)),
        Err(problem) => Err(format!("{problem}, or never")),
    }
}

fn old_days(value: &Value) -> Result<OldDays, Problem> {
    match values::text(value).as_deref() {
        Ok("refuse") => Ok(OldDays::Refuse),
        Ok("write") => Ok(OldDays::Write),
        Ok("skip") => Ok(OldDays::Skip),
        _ => Err("must be refuse, write or skip".to_owned()),
    }
}

fn replicas(value: &Value) -> Result<Option<u32>, Problem> {
    if values::text(value).is_ok_and(|text| text == "auto") {
        return Ok(None);
    }
    match values::integer(0, 100)(value) {
        Ok(replicas) => Ok(Some(replicas)),
        Err(problem) => Err(format!("{problem}, or auto")),
    }
}
