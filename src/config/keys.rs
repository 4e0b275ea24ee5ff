//! The table of settings: one row per key, and nothing about a key is said anywhere else.
//!
//! A row's name is its place in the TOML file. The flag and the environment variable follow from
//! it: dots become dashes, and `forward.elasticsearch.` becomes `elasticsearch-`, so
//! `forward.elasticsearch.batch-bytes` is `--elasticsearch-batch-bytes` and
//! `EVENT_INDEXER_ELASTICSEARCH_BATCH_BYTES`.

use super::nearest::nearest;

/// What every environment variable of the program starts with.
pub const VARIABLE_PREFIX: &str = "EVENT_INDEXER_";

/// The variable that stands for `--config`; it names the file and so cannot be in it.
pub const CONFIG_VARIABLE: &str = "EVENT_INDEXER_CONFIG";

/// The tables a configuration file may have, those inside others first.
pub(crate) const TABLES: &[&str] = &[
    "forward.elasticsearch.install",
    "forward.elasticsearch",
    "teleport",
    "limits.backfill",
    "limits",
    "listen",
    "lock",
];

/// One setting.
#[derive(Debug)]
pub struct Key {
    /// Its canonical place in the file: `forward.elasticsearch.batch-bytes`.
    pub name: &'static str,
    /// Other places that mean the same; dashes may be underscores in every spelling.
    pub aliases: &'static [&'static str],
    /// What form its value has.
    pub kind: Kind,
    /// The value it has when nobody sets it, in the form a user would write.
    pub default: Option<&'static str>,
    /// What it says to the person who reads `--help`.
    pub help: &'static str,
    /// Where it stands in `--help`.
    pub group: Group,
    /// Variables of `teleport-event-handler` whose names do not follow from the key.
    pub former_variables: &'static [&'static str],
}

/// The form of a setting's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// Texts: an array in the file, with commas between them elsewhere.
    List,
    /// A length of time: `200ms`, `1h30m`, `365d`.
    Duration,
    /// A size: `4MiB`, `10MB`, or a plain count of bytes.
    Bytes,
    /// A whole number.
    Integer,
    /// `true` or `false`.
    Bool,
    /// A file or directory.
    Path,
    /// A text nobody may see, or `file:PATH`.
    Secret,
    /// RFC 3339, or a date.
    Time,
}

impl Kind {
    /// The word that stands for the value in `--help`.
    pub fn value_name(self) -> &'static str {
        match self {
            Self::Text => "TEXT",
            Self::List => "LIST",
            Self::Duration => "DURATION",
            Self::Bytes => "BYTES",
            Self::Integer => "N",
            Self::Bool => "true|false",
            Self::Path => "PATH",
            Self::Secret => "file:PATH",
            Self::Time => "TIME",
        }
    }
}

/// A heading of `--help`; commands offer whole groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Where the state lies.
    State,
    /// What is read, and how much at once.
    Reading,
    /// What only a daemon that follows the audit log needs.
    Following,
    /// How to reach Teleport.
    Teleport,
    /// How to reach Elasticsearch and to write to it.
    Elasticsearch,
    /// What `install` puts into Elasticsearch.
    Install,
    /// Upper bounds on speed.
    Limits,
    /// What the program says while it runs.
    Logging,
    /// Where it is to be seen how it is doing.
    Listening,
    /// When users are locked.
    Locks,
}

impl Group {
    /// The heading's text.
    pub fn heading(self) -> &'static str {
        match self {
            Self::State => "State",
            Self::Reading => "What to read",
            Self::Following => "Following the audit log",
            Self::Teleport => "Teleport",
            Self::Elasticsearch => "Elasticsearch",
            Self::Install => "Template and lifecycle policy",
            Self::Limits => "Limits",
            Self::Logging => "Logging",
            Self::Listening => "Status page, metrics and health",
            Self::Locks => "Automatic locks",
        }
    }
}

impl Key {
    /// The flag without its leading dashes.
    pub fn flag(&self) -> String {
        flag_of(self.name)
    }

    /// The environment variable.
    pub fn variable(&self) -> String {
        let flag = self.flag().to_uppercase().replace('-', "_");
        format!("{VARIABLE_PREFIX}{flag}")
    }

    /// The table it stands in (empty at the top of the file), and its name there.
    pub fn place(&self) -> (&'static str, &'static str) {
        TABLES
            .iter()
            .find_map(|table| {
                let rest = self.name.strip_prefix(table)?.strip_prefix('.')?;
                Some((*table, rest))
            })
            .unwrap_or(("", self.name))
    }

    const fn default(mut self, text: &'static str) -> Self {
        self.default = Some(text);
        self
    }

    const fn aliases(mut self, names: &'static [&'static str]) -> Self {
        self.aliases = names;
        self
    }

    const fn formerly(mut self, variables: &'static [&'static str]) -> Self {
        self.former_variables = variables;
        self
    }
}

const fn key(name: &'static str, kind: Kind, group: Group, help: &'static str) -> Key {
    Key {
        name,
        aliases: &[],
        kind,
        default: None,
        help,
        group,
        former_variables: &[],
    }
}

macro_rules! table {
    ($($id:ident = $key:expr;)*) => {
        $(pub(crate) static $id: Key = $key;)*

        /// Every setting, in the order of the file and of `--help`.
        pub static KEYS: &[&Key] = &[$(&$id),*];
    };
}

table! {
    STORAGE = key("storage", Kind::Path, Group::State,
        "Directory of the state file: how far the audit log is indexed, and dead letters");
    STATE = key("state", Kind::Text, Group::State,
        "Where start keeps the state: sqlite, a file in storage; or elasticsearch, for several of which one \
         leads").default("sqlite");
    STATE_NAME = key("state-name", Kind::Text, Group::State,
        "The state's name in Elasticsearch; that of the Teleport cluster if not set");
    DEAD_LETTER_BYTES = key("dead-letter-bytes", Kind::Bytes, Group::State,
        "Room for documents that Elasticsearch refuses; when it is used up, everything waits")
        .default("1GiB");
    BLOCKED_BYTES = key("blocked-bytes", Kind::Bytes, Group::State,
        "Room for documents of blocked indices; when it is used up, they wait in memory")
        .default("1GiB");
    GRACE_PERIOD = key("grace-period", Kind::Duration, Group::State,
        "Longest time to finish what is in flight when told to stop").default("30s");
    BATCH = key("batch", Kind::Integer, Group::Reading,
        "Events per page of the search API; the server gives at most 10000").default("10000");
    NAMESPACE = key("namespace", Kind::Text, Group::Reading,
        "Teleport namespace to search").default("default");
    WINDOW_SIZE = key("window-size", Kind::Duration, Group::Reading,
        "Longest span of time that one search covers").default("24h");
    TYPES = key("types", Kind::List, Group::Reading,
        "Only events of these types, * for any characters; all types if not set");
    SKIP_EVENT_TYPES = key("skip-event-types", Kind::List, Group::Reading,
        "No events of these types, * for any characters");
    SESSIONS = key("sessions", Kind::Bool, Group::Reading,
        "Whether the events of session recordings are read").default("true");
    SKIP_SESSION_TYPES = key("skip-session-types", Kind::List, Group::Reading,
        "No events of these types of session recordings, * for any characters")
        .default("print,desktop.recording");
    SESSION_SUMMARIES = key("session-summaries", Kind::Bool, Group::Reading,
        "Whether a document tells of each session whose recording was read").default("true");
    SESSION_WAIT = key("session-wait", Kind::Duration, Group::Reading,
        "How long start looks for a session recording that is not there, from its upload on").default("48h");
    CONCURRENCY = key("concurrency", Kind::Integer, Group::Reading,
        "Windows or chunks read side by side while catching up, and session recordings").default("5");
    TIMEOUT = key("timeout", Kind::Duration, Group::Following,
        "Pause between two polls of the audit log").default("5s");
    START_TIME = key("start-time", Kind::Time, Group::Following,
        "Where the very first start begins, RFC 3339 or a date; the moment of that start if not set");
    LOG_LEVEL = key("log-level", Kind::Text, Group::Logging,
        "off, error, warn, info, debug or trace, or such levels by target: \
         info,teleport_event_indexer::teleport=debug").default("info");
    LOG_FORMAT = key("log-format", Kind::Text, Group::Logging, "text or json").default("text");
    TELEPORT_ADDR = key("teleport.addr", Kind::Text, Group::Teleport,
        "Proxy Service or Auth Service, host:port");
    TELEPORT_IDENTITY = key("teleport.identity", Kind::Path, Group::Teleport,
        "Identity file of `tctl auth sign`, or tbot's folder; excludes key, certificate and CA");
    TELEPORT_KEY = key("teleport.key", Kind::Path, Group::Teleport,
        "Private key; goes with certificate and CA").aliases(&["teleport.client-key"]);
    TELEPORT_CERT = key("teleport.cert", Kind::Path, Group::Teleport,
        "Client certificate; goes with key and CA")
        .aliases(&["teleport.client-crt", "teleport.client-cert"]);
    TELEPORT_CA = key("teleport.ca", Kind::Path, Group::Teleport,
        "Teleport's CA certificates; go with key and certificate").aliases(&["teleport.root-cas"]);
    TELEPORT_REFRESH_ENABLED = key("teleport.refresh.enabled", Kind::Bool, Group::Teleport,
        "Look again at the credentials' files, for renewed certificates").default("true");
    TELEPORT_REFRESH_INTERVAL = key("teleport.refresh.interval", Kind::Duration, Group::Teleport,
        "How often to look").default("1m");

    CLOUD_ID = key("forward.elasticsearch.cloud-id", Kind::Text, Group::Elasticsearch,
        "Cloud id of an Elastic Cloud deployment; excludes hosts");
    CLOUD_AUTH = key("forward.elasticsearch.cloud-auth", Kind::Secret, Group::Elasticsearch,
        "user:password, as Elastic Cloud shows it; excludes user, password and api-key");
    HOSTS = key("forward.elasticsearch.hosts", Kind::List, Group::Elasticsearch,
        "URLs of one cluster, https://host:9200; a path prefix is allowed");
    USER = key("forward.elasticsearch.user", Kind::Text, Group::Elasticsearch,
        "User name; goes with password");
    PASSWORD = key("forward.elasticsearch.password", Kind::Secret, Group::Elasticsearch,
        "The user's password");
    API_KEY = key("forward.elasticsearch.api-key", Kind::Secret, Group::Elasticsearch,
        "API key: id:key, its encoded form, or an Elastic Cloud key; excludes user and password");
    VERIFIER_API_KEY = key("forward.elasticsearch.verifier-api-key", Kind::Secret,
        Group::Elasticsearch,
        "API key with which `verify` reads; without it, the credentials that documents are written with");
    CLIENT_CERT = key("forward.elasticsearch.client-cert", Kind::Path, Group::Elasticsearch,
        "Client certificate; goes with client-key")
        .aliases(&["forward.elasticsearch.client-crt"]);
    CLIENT_KEY = key("forward.elasticsearch.client-key", Kind::Path, Group::Elasticsearch,
        "Private key of the client certificate");
    CA = key("forward.elasticsearch.ca", Kind::Path, Group::Elasticsearch,
        "CA certificates to trust for Elasticsearch beside the system's");
    CA_FINGERPRINT = key("forward.elasticsearch.ca-fingerprint", Kind::Text, Group::Elasticsearch,
        "SHA-256 of a CA certificate that Elasticsearch must show, to trust in place of ca");
    INDEX = key("forward.elasticsearch.index", Kind::Text, Group::Elasticsearch,
        "Index name; %Y, %m and %d stand for the event's own date in UTC")
        .default("audit-events-%Y.%m.%d");
    SCHEMA = key("forward.elasticsearch.schema", Kind::Text, Group::Elasticsearch,
        "raw: documents have the event's own fields; ecs: those of the Elastic Common Schema beside")
        .default("raw");
    GZIP = key("forward.elasticsearch.gzip", Kind::Bool, Group::Elasticsearch,
        "Compress requests; if not set, only where a host is not on this machine");
    BATCH_BYTES = key("forward.elasticsearch.batch-bytes", Kind::Bytes, Group::Elasticsearch,
        "Most bytes of one bulk request, before compression").default("2MiB");
    BATCH_DOCUMENTS = key("forward.elasticsearch.batch-documents", Kind::Integer,
        Group::Elasticsearch, "Most documents of one bulk request").default("10000");
    BATCH_AGE = key("forward.elasticsearch.batch-age", Kind::Duration, Group::Elasticsearch,
        "Longest time a document waits for its batch to fill").default("200ms");
    IN_FLIGHT = key("forward.elasticsearch.in-flight", Kind::Integer, Group::Elasticsearch,
        "Most bulk requests at a time").default("4");
    REQUEST_TIMEOUT = key("forward.elasticsearch.request-timeout", Kind::Duration,
        Group::Elasticsearch, "Longest wait for the answer to one request").default("60s");
    OLD_DAYS = key("forward.elasticsearch.old-days", Kind::Text, Group::Elasticsearch,
        "Days that the lifecycle policy deletes or has closed: refuse to run, write, or skip them")
        .default("refuse");

    TEMPLATE = key("forward.elasticsearch.install.template", Kind::Text, Group::Install,
        "Name of the index template").default("audit-events");
    POLICY = key("forward.elasticsearch.install.policy", Kind::Text, Group::Install,
        "Name of the lifecycle policy").default("audit-events");
    RETENTION = key("forward.elasticsearch.install.retention", Kind::Duration, Group::Install,
        "Age at which an index is deleted; `never` keeps all").default("365d");
    SHARDS = key("forward.elasticsearch.install.shards", Kind::Integer, Group::Install,
        "Primary shards of each index").default("1");
    REPLICAS = key("forward.elasticsearch.install.replicas", Kind::Text, Group::Install,
        "Copies of each shard: a number, or `auto` for one where there is a second node")
        .default("auto");
    REFRESH_INTERVAL = key("forward.elasticsearch.install.refresh-interval", Kind::Duration,
        Group::Install, "Longest time until a search finds a new document").default("5s");
    DYNAMIC = key("forward.elasticsearch.install.dynamic", Kind::Bool, Group::Install,
        "The template of Teleport's guide, which leaves all fields to guesses, in place of the \
         typed one").default("false");

    TELEPORT_REQUESTS_PER_SECOND = key("limits.teleport-requests-per-second", Kind::Integer,
        Group::Limits, "Most requests to Teleport per second; no limit if not set");
    EVENTS_PER_SECOND = key("limits.events-per-second", Kind::Integer, Group::Limits,
        "Most events read per second; no limit if not set");
    BYTES_PER_SECOND = key("limits.bytes-per-second", Kind::Bytes, Group::Limits,
        "Most bytes sent to Elasticsearch per second, before compression; no limit if not set");
    BACKFILL_REQUESTS_PER_SECOND = key("limits.backfill.teleport-requests-per-second",
        Kind::Integer, Group::Limits, "The same for a backfill, in place of the one above");
    BACKFILL_EVENTS_PER_SECOND = key("limits.backfill.events-per-second", Kind::Integer,
        Group::Limits, "The same for a backfill, in place of the one above");
    BACKFILL_BYTES_PER_SECOND = key("limits.backfill.bytes-per-second", Kind::Bytes,
        Group::Limits, "The same for a backfill, in place of the one above");

    LISTEN_ADDR = key("listen.addr", Kind::Text, Group::Listening,
        "Address of status page, metrics and health, or off").default("127.0.0.1:9747");
    LISTEN_TOKEN = key("listen.token", Kind::Secret, Group::Listening,
        "What a client must show; needed where others than this machine can reach it");
    LISTEN_CERT = key("listen.cert", Kind::Path, Group::Listening,
        "Certificate to serve it with (PEM)");
    LISTEN_KEY = key("listen.key", Kind::Path, Group::Listening, "Private key of listen.cert (PEM)");
    LISTEN_HOSTS = key("listen.hosts", Kind::List, Group::Listening,
        "Names by which browsers may call it, beside localhost");
    LISTEN_SHOW_PAYLOADS = key("listen.show-payloads", Kind::Bool, Group::Listening,
        "Let the status page show the documents of dead letters").default("false");
    LISTEN_STALLED_AFTER = key("listen.stalled-after", Kind::Duration, Group::Listening,
        "Not ready if nothing has moved for so long though Teleport has newer events").default("5m");
    LOCK_ENABLED = key("lock.enabled", Kind::Bool, Group::Locks,
        "Lock users after failed logins")
        .default("false").formerly(&["LOCKING_ENABLED"]);
    LOCK_FAILED_ATTEMPTS_COUNT = key("lock.failed-attempts-count", Kind::Integer, Group::Locks,
        "So many failed logins of a user lead to a lock").default("3").formerly(&["LOCKING_FAILED_ATTEMPTS"]);
    LOCK_PERIOD = key("lock.period", Kind::Duration, Group::Locks,
        "Within so long a time").default("1m").formerly(&["LOCKING_PERIOD"]);
    LOCK_FOR = key("lock.for", Kind::Duration, Group::Locks,
        "How long a lock lasts; 0s: until somebody removes it").default("0s").formerly(&["LOCKING_FOR"]);
}

/// The key at this place of a file, whichever way it is spelled.
pub fn find(path: &str) -> Option<&'static Key> {
    let path = path.replace('_', "-");
    KEYS.iter()
        .find(|key| key.name == path || key.aliases.contains(&path.as_str()))
        .copied()
}

/// Whether keys may stand below this place of a file.
pub(crate) fn is_table(path: &str) -> bool {
    let path = format!("{}.", path.replace('_', "-"));
    KEYS.iter().any(|key| key.name.starts_with(&path))
}

/// The key that stands where a variable of `teleport-event-handler` stood. `rest` is its name
/// without the prefix.
pub(crate) fn find_former_variable(rest: &str) -> Option<&'static Key> {
    KEYS.iter()
        .find(|key| {
            key.former_variables.contains(&rest)
                || key.variable().strip_prefix(VARIABLE_PREFIX) == Some(rest)
        })
        .copied()
}

/// The known key which the unknown one most likely means.
pub(crate) fn suggest(path: &str) -> Option<&'static str> {
    let path = path.replace('_', "-");
    // What is written in the wrong table, or as a flag, has the right flag all the same.
    let flag = flag_of(&path);
    if let Some(key) = KEYS.iter().find(|key| key.flag() == flag) {
        return Some(key.name);
    }
    let last = path.rsplit('.').next().unwrap_or(&path);
    let most = (last.chars().count() / 3).clamp(1, 3);
    let names = KEYS
        .iter()
        .flat_map(|key| key.aliases.iter().chain([&key.name]).copied());
    let flags = KEYS.iter().map(|key| (key.flag(), key.name));
    nearest(&path, most, names.map(|name| (name, name)))
        .or_else(|| nearest(&flag, MOST_IN_FLAGS, flags))
}

/// The known variable which the unknown one most likely means.
pub(crate) fn suggest_variable(name: &str) -> Option<String> {
    let variables = KEYS.iter().map(|key| key.variable());
    nearest(
        name,
        MOST_IN_FLAGS,
        variables.map(|name| (name.clone(), name)),
    )
}

/// The distance up to which a flag or variable is likely meant. They are long and much alike, so
/// that three changes lead from many to another.
const MOST_IN_FLAGS: usize = 2;

fn flag_of(path: &str) -> String {
    path.strip_prefix("forward.")
        .unwrap_or(path)
        .replace('.', "-")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn flags_and_variables_follow_from_the_key() {
        let key = find("forward.elasticsearch.batch_bytes").unwrap();
        assert_eq!(key.flag(), "elasticsearch-batch-bytes");
        assert_eq!(key.variable(), "EVENT_INDEXER_ELASTICSEARCH_BATCH_BYTES");
        assert_eq!(TELEPORT_REFRESH_ENABLED.flag(), "teleport-refresh-enabled");
        assert_eq!(
            TELEPORT_REFRESH_ENABLED.place(),
            ("teleport", "refresh.enabled")
        );
        assert_eq!(SHARDS.place(), ("forward.elasticsearch.install", "shards"));
    }

    #[test]
    fn no_two_keys_share_a_name_flag_or_variable() {
        let names = KEYS
            .iter()
            .flat_map(|key| key.aliases.iter().chain([&key.name]));
        assert_eq!(
            names.clone().collect::<BTreeSet<_>>().len(),
            names.count(),
            "a name is given twice"
        );
        let flags: BTreeSet<_> = KEYS.iter().map(|key| key.flag()).collect();
        let variables: BTreeSet<_> = KEYS.iter().map(|key| key.variable()).collect();
        assert_eq!((flags.len(), variables.len()), (KEYS.len(), KEYS.len()));
        assert!(!variables.contains(CONFIG_VARIABLE));
        for key in KEYS {
            assert!(find(key.name).is_some_and(|found| std::ptr::eq(found, *key)));
            assert!(
                !key.help.is_empty() && !key.help.ends_with('.'),
                "{}",
                key.name
            );
        }
    }

    #[test]
    fn suggestions_are_near_or_absent() {
        for (wrong, right) in [
            ("storge", Some("storage")),
            (
                "forward.elasticsearch.bach-bytes",
                Some("forward.elasticsearch.batch-bytes"),
            ),
            (
                "forward.elasticsearch.host",
                Some("forward.elasticsearch.hosts"),
            ),
            ("elasticsearch.hosts", Some("forward.elasticsearch.hosts")),
            ("elasticsearch.host", Some("forward.elasticsearch.hosts")),
            ("telport.identity", Some("teleport.identity")),
            ("teleport-addr", Some("teleport.addr")),
            ("teleport.root_ca", Some("teleport.root-cas")),
            ("forward.elasticsearch.xyz", None),
            ("colour", None),
            ("teleport_event", None),
        ] {
            assert_eq!(suggest(wrong), right, "{wrong}");
        }
        assert_eq!(
            suggest_variable("EVENT_INDEXER_ELASTICSEARCH_HOST").as_deref(),
            Some("EVENT_INDEXER_ELASTICSEARCH_HOSTS")
        );
        assert_eq!(suggest_variable("EVENT_INDEXER_COLOUR"), None);
    }

    #[test]
    fn variables_of_the_event_handler_find_their_keys() {
        for (rest, name) in [
            ("STORAGE", Some("storage")),
            ("TELEPORT_CERT", Some("teleport.cert")),
            (
                "LOCKING_FAILED_ATTEMPTS",
                Some("lock.failed-attempts-count"),
            ),
            ("FLUENTD_URL", None),
        ] {
            assert_eq!(find_former_variable(rest).map(|key| key.name), name);
        }
    }
}
