//! What the user wants, typed, complete and valid.
//!
//! [`sources::collect`] gathers what file, environment and flags say; [`Config::resolve`] is the
//! one gate behind it. Past the gate nobody checks a setting, fills in a default or reads the
//! environment. Each setting is declared once, in the table of [`keys`].

pub mod address;
mod api_key;
pub mod auth;
pub mod ca_fingerprint;
pub mod cloud_id;
pub mod clusters;
mod event_filter;
mod file;
pub(crate) mod former;
pub mod forward;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod keys;
pub mod listen;
pub mod mistakes;
mod nearest;
mod quantity;
mod resolver;
mod secret_file;
mod show;
pub mod sources;
pub mod teleport;
pub(crate) mod values;
pub mod written;

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, Utc};

pub use self::address::{Address, HostUrl};
pub use self::auth::{Auth, AuthFile, AuthFileError};
pub use self::ca_fingerprint::CaFingerprint;
pub use self::clusters::Selected;
pub use self::event_filter::{EventFilter, TypeSet};
pub use self::forward::{ClientCertificate, ElasticsearchConfig, InstallConfig, OldDays};
pub use self::listen::{ListenConfig, ListenTls};
pub use self::mistakes::{Mistake, Mistakes, Warning};
pub use self::show::Effective;
pub use self::sources::Raw;
pub use self::teleport::{CredentialPaths, TeleportConfig};

use self::resolver::Resolver;
use crate::platform;

/// The parts of a configuration without which a command cannot run. Parts that are given are
/// checked always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// [`Config::teleport`].
    pub teleport: bool,
    /// [`Config::elasticsearch`].
    pub elasticsearch: bool,
    /// [`Config::storage`].
    pub storage: bool,
    /// Where [`Config::state`] says that the state lies.
    pub state: bool,
}

/// A valid configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name of its table, if the file has several clusters.
    pub cluster: Option<String>,
    /// Directory of the state file.
    pub storage: Option<PathBuf>,
    /// Where a daemon's state lies.
    pub state: StateHome,
    /// Its name in Elasticsearch; that of the Teleport cluster if `None`.
    pub state_name: Option<String>,
    /// Pause between two polls.
    pub poll_interval: Duration,
    /// Nothing moves for so long though there are newer events: it is stalled.
    pub stalled_after: Duration,
    /// Events per page of the search API, 1 to 10,000.
    pub page_limit: i32,
    /// Teleport's namespace.
    pub namespace: String,
    /// Longest span of one search, at least a second.
    pub window_size: Duration,
    /// Which events are wanted.
    pub filter: EventFilter,
    /// How session recordings are read; `None` if they are not.
    pub sessions: Option<SessionsConfig>,
    /// When users are locked; `None` if they are not.
    pub lock: Option<LockConfig>,
    /// Where the very first start begins, to the second; the moment of that start if `None`.
    pub start_time: Option<DateTime<Utc>>,
    /// Windows or chunks that are read side by side while catching up, 1 to 64.
    pub concurrency: usize,
    /// Longest time to settle what is in flight when told to stop.
    pub grace_period: Duration,
    /// Most bytes of the dead-letter store.
    pub dead_letter_bytes: u64,
    /// Most bytes of documents of blocked indices that wait in the state file.
    pub blocked_bytes: u64,
    /// What the program says while it runs.
    pub log: LogConfig,
    /// Where status page, metrics and health are served, if anywhere.
    pub listen: Option<ListenConfig>,
    /// How to reach Teleport; present if needed or complete.
    pub teleport: Option<TeleportConfig>,
    /// How to reach Elasticsearch; present if needed or if it names a host.
    pub elasticsearch: Option<ElasticsearchConfig>,
    /// Upper bounds on speed.
    pub limits: Limits,
    /// Those of a backfill: its own, and `limits` where it has none.
    pub backfill_limits: Limits,
    /// Every setting in effect and where it comes from, for [`Config::show`].
    pub effective: Effective,
}

/// Where a daemon's state lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StateHome {
    /// In a file in [`Config::storage`].
    #[default]
    Sqlite,
    /// In Elasticsearch.
    Elasticsearch,
}

/// How session recordings are read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionsConfig {
    /// Types of their events that are left out.
    pub skip_types: TypeSet,
    /// Whether a document tells of each session whose recording is done with.
    pub has_summaries: bool,
    /// How long a recording that is not there is looked for, from its upload on.
    pub wait: Duration,
}

impl SessionsConfig {
    /// Whether events of this type are left out.
    pub fn skips(&self, event_type: &[u8]) -> bool {
        self.skip_types.contains(event_type)
    }
}

/// When users are locked after failed logins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockConfig {
    /// After so many, at least one.
    pub failed_attempts_count: usize,
    /// Within this time.
    pub period: Duration,
    /// For so long; until somebody removes the lock if `None`.
    pub lock_for: Option<Duration>,
}

/// The type of the event that tells of a login, failed or not.
pub(crate) const LOGIN_EVENT: &str = "user.login";

/// What the program says while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// The form of a line.
    pub format: LogFormat,
    /// `info`, or levels by target: `info,teleport_event_indexer::teleport=debug`.
    pub level: String,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines: one JSON object per line.
    Json,
}

/// Upper bounds on speed; `None` is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Calls to Teleport per second.
    pub teleport_requests_per_second: Option<NonZeroU32>,
    /// Events read per second.
    pub events_per_second: Option<NonZeroU32>,
    /// Bytes sent to Elasticsearch per second, before compression.
    pub bytes_per_second: Option<NonZeroU32>,
}

impl Limits {
    /// The other's bounds, and these where it has none.
    fn replaced_by(self, other: Self) -> Self {
        Self {
            teleport_requests_per_second: other
                .teleport_requests_per_second
                .or(self.teleport_requests_per_second),
            events_per_second: other.events_per_second.or(self.events_per_second),
            bytes_per_second: other.bytes_per_second.or(self.bytes_per_second),
        }
    }
}

/// Below this many events per page the calls, not the events, decide the speed.
const SMALL_PAGE: i32 = 500;

impl Config {
    /// Checks everything the user has set and fills in the rest.
    ///
    /// # Errors
    /// With every mistake there is, if there is one.
    pub fn resolve(raw: Raw, needs: Needs) -> Result<(Self, Vec<Warning>), Mistakes> {
        if raw.is_partial
            && let Some(mistakes) = Mistakes::of(raw.mistakes.clone())
        {
            // Half a file would be reported as incomplete, which the whole may not be.
            return Err(mistakes);
        }
        let mut resolver = Resolver::new(raw);
        let r = &mut resolver;
        let storage = r.optional(&keys::STORAGE, values::path);
        let state = r.value(&keys::STATE, values::state_home);
        let state_name = r.optional(&keys::STATE_NAME, values::state_name);
        let is_sqlite = state == StateHome::Sqlite;
        let needs_storage = needs.storage || (needs.state && is_sqlite);
        let needs_elasticsearch = needs.elasticsearch || (needs.state && !is_sqlite);
        if needs_storage && !r.is_set(&keys::STORAGE) {
            r.missing(&keys::STORAGE, "name a directory for the state file");
        }
        if let Some(path) = &storage
            && platform::is_open_to_others(path)
        {
            let (folder, mend) = (path.display(), platform::mend_rights(path));
            r.warn(format!(
                "storage: {} what is in {folder}; {mend}",
                platform::OTHERS
            ));
        }
        let own = [
            &keys::TELEPORT_REQUESTS_PER_SECOND,
            &keys::EVENTS_PER_SECOND,
        ];
        let limits = limits_of(r, own, &keys::BYTES_PER_SECOND);
        let own = [
            &keys::BACKFILL_REQUESTS_PER_SECOND,
            &keys::BACKFILL_EVENTS_PER_SECOND,
        ];
        let backfill_limits =
            limits.replaced_by(limits_of(r, own, &keys::BACKFILL_BYTES_PER_SECOND));
        let filter = filter(r);
        let config = Self {
            cluster: None,
            storage,
            state,
            state_name,
            poll_interval: r.value(
                &keys::TIMEOUT,
                values::duration(Duration::from_millis(10), Duration::from_hours(1)),
            ),
            stalled_after: r.value(
                &keys::LISTEN_STALLED_AFTER,
                values::duration(Duration::from_secs(1), Duration::from_hours(24)),
            ),
            page_limit: page_limit(r),
            namespace: r.value(&keys::NAMESPACE, values::text),
            window_size: r.value(
                &keys::WINDOW_SIZE,
                values::duration(Duration::from_secs(1), Duration::from_hours(24 * 366)),
            ),
            lock: lock(r, &filter),
            filter,
            sessions: sessions(r),
            start_time: r.optional(&keys::START_TIME, values::time),
            concurrency: r.value(&keys::CONCURRENCY, values::integer(1, 64)),
            grace_period: r.value(
                &keys::GRACE_PERIOD,
                values::duration(Duration::ZERO, Duration::from_hours(1)),
            ),
            dead_letter_bytes: r.value(&keys::DEAD_LETTER_BYTES, values::bytes(4 << 10, 1 << 40)),
            blocked_bytes: r.value(&keys::BLOCKED_BYTES, values::bytes(0, 1 << 40)),
            log: LogConfig {
                format: r.value(&keys::LOG_FORMAT, log_format),
                level: r.value(&keys::LOG_LEVEL, values::log_level),
            },
            listen: listen::resolve(r),
            teleport: teleport::resolve(r, needs.teleport),
            elasticsearch: forward::resolve(r, needs_elasticsearch),
            limits,
            backfill_limits,
            effective: Effective::default(),
        };
        let has_name = config.state_name.is_some() || config.teleport.is_some();
        if needs.state && !is_sqlite && !has_name {
            let what = "name the state, or give teleport, from which its name comes";
            r.missing(&keys::STATE_NAME, what);
        }
        let (raw, warnings) = resolver.finish()?;
        let effective = Effective::of(&raw);
        Ok((
            Self {
                effective,
                ..config
            },
            warnings,
        ))
    }

    /// The configuration in effect as TOML, each line with its origin behind it, and the word
    /// `[secret]` where a secret is.
    pub fn show(&self) -> String {
        self.effective.to_string()
    }

    /// The same of several clusters, as one file.
    pub fn show_each(configs: &[Self]) -> String {
        show::each(configs)
    }
}

fn page_limit(resolver: &mut Resolver) -> i32 {
    let limit = resolver.value(&keys::BATCH, values::integer(1, 10_000));
    if (1..SMALL_PAGE).contains(&limit) {
        resolver.warn_about(
            &keys::BATCH,
            "so small a page makes searches slow; leave it out to read 10000 events at a time",
        );
    }
    limit
}

fn filter(resolver: &mut Resolver) -> EventFilter {
    let mut types = |key| {
        let types = resolver.optional(key, values::event_types);
        types.unwrap_or_default()
    };
    let mut filter = EventFilter {
        types: types(&keys::TYPES),
        skip_types: types(&keys::SKIP_EVENT_TYPES),
    };
    let is_skipped = |name: &&str| filter.skip_types.contains(name.as_bytes());
    let skipped: Vec<&str> = filter.types.names().filter(is_skipped).collect();
    if !skipped.is_empty() {
        let problem = format!("names what types names too: {}", skipped.join(", "));
        resolver.wrong(&keys::SKIP_EVENT_TYPES, problem);
    } else if is_skipped(&"*") {
        resolver.wrong(&keys::SKIP_EVENT_TYPES, "leaves nothing to read");
    }
    if filter.types.contains(b"*") {
        // So it is known that all are read.
        filter.types = TypeSet::default();
    }
    filter
}

fn sessions(resolver: &mut Resolver) -> Option<SessionsConfig> {
    let is_on = resolver.value(&keys::SESSIONS, values::boolean);
    let config = SessionsConfig {
        skip_types: resolver.value(&keys::SKIP_SESSION_TYPES, values::event_types),
        has_summaries: resolver.value(&keys::SESSION_SUMMARIES, values::boolean),
        wait: resolver.value(
            &keys::SESSION_WAIT,
            values::duration(Duration::from_secs(1), Duration::from_secs(7 * 24 * 3600)),
        ),
    };
    is_on.then_some(config)
}

fn lock(resolver: &mut Resolver, filter: &EventFilter) -> Option<LockConfig> {
    let is_enabled = resolver.value(&keys::LOCK_ENABLED, values::boolean);
    let attempts = resolver.value(
        &keys::LOCK_FAILED_ATTEMPTS_COUNT,
        values::integer(1_u32, 1000),
    );
    let hour = Duration::from_hours(1);
    let config = LockConfig {
        failed_attempts_count: usize::try_from(attempts).unwrap_or(usize::MAX).max(1),
        period: resolver.value(
            &keys::LOCK_PERIOD,
            values::duration(Duration::from_secs(1), 24 * hour),
        ),
        lock_for: Some(resolver.value(
            &keys::LOCK_FOR,
            values::duration(Duration::ZERO, 24 * 366 * hour),
        ))
        .filter(|length| !length.is_zero()),
    };
    if is_enabled && !filter.admits(LOGIN_EVENT.as_bytes()) {
        let problem =
            format!("needs the events {LOGIN_EVENT}, which types or skip-event-types leave out");
        resolver.wrong(&keys::LOCK_ENABLED, problem);
    }
    is_enabled.then_some(config)
}

fn log_format(value: &sources::Value) -> Result<LogFormat, values::Problem> {
    match values::text(value).as_deref() {
        Ok("text") => Ok(LogFormat::Text),
        Ok("json") => Ok(LogFormat::Json),
        _ => Err("must be text or json".to_owned()),
    }
}

/// `counts`: of requests and of events.
fn limits_of(resolver: &mut Resolver, counts: [&keys::Key; 2], bytes: &keys::Key) -> Limits {
    let [requests, events] = counts.map(|key| limit(resolver, key));
    Limits {
        teleport_requests_per_second: requests,
        events_per_second: events,
        bytes_per_second: resolver
            .optional(bytes, values::bytes(1, u32::MAX.into()))
            .and_then(|bytes| NonZeroU32::new(u32::try_from(bytes).ok()?)),
    }
}

fn limit(resolver: &mut Resolver, key: &keys::Key) -> Option<NonZeroU32> {
    let number = resolver.optional(key, values::integer(1, u32::MAX))?;
    NonZeroU32::new(number)
}

#[cfg(test)]
mod tests;
