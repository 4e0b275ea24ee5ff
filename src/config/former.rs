//! Settings of `teleport-event-handler` that are none here, and what to use instead: one row for each,
//! whichever way it is made. Those that have their names here are not in it.

use super::keys::{self, Key};

/// A setting that is none here.
#[derive(Debug)]
pub(crate) struct Former {
    /// Its flag, without the leading dashes.
    pub(crate) flag: &'static str,
    /// Its place in a file.
    place: &'static str,
    /// Its variables, without their prefixes; several where names have changed.
    variables: &'static [&'static str],
    /// What has become of it.
    reason: &'static str,
    instead: Instead,
}

/// What to use instead.
#[derive(Debug)]
enum Instead {
    /// A setting, with the value that stands for this one if there is only one.
    Set(&'static Key, Option<&'static str>),
    /// A flag of `start`, which is no setting.
    Flag,
    /// Nothing.
    LeaveOut,
}

const STRAIGHT: &str = "events go straight to Elasticsearch";

/// In the order of the event handler's own help.
pub(crate) static FORMER: &[Former] = &[
    Former {
        flag: "debug",
        place: "debug",
        variables: &["DEBUG"],
        reason: "",
        instead: Instead::Set(&keys::LOG_LEVEL, Some("debug")),
    },
    Former {
        flag: "fluentd-url",
        place: "forward.fluentd.url",
        variables: &["FLUENTD_URL"],
        reason: STRAIGHT,
        instead: Instead::Set(&keys::HOSTS, None),
    },
    Former {
        flag: "fluentd-session-url",
        place: "forward.fluentd.session-url",
        variables: &["FLUENTD_SESSION_URL"],
        reason: "events of session recordings go into the same indices as all others",
        instead: Instead::LeaveOut,
    },
    Former {
        flag: "fluentd-ca",
        place: "forward.fluentd.ca",
        variables: &["FLUENTD_CA"],
        reason: STRAIGHT,
        instead: Instead::Set(&keys::CA, None),
    },
    Former {
        flag: "fluentd-cert",
        place: "forward.fluentd.cert",
        variables: &["FLUENTD_CERT"],
        reason: STRAIGHT,
        instead: Instead::Set(&keys::CLIENT_CERT, None),
    },
    Former {
        flag: "fluentd-key",
        place: "forward.fluentd.key",
        variables: &["FLUENTD_KEY"],
        reason: STRAIGHT,
        instead: Instead::Set(&keys::CLIENT_KEY, None),
    },
    Former {
        flag: "fluentd-max-connections",
        place: "forward.fluentd.max-connections",
        variables: &["FLUENTD_MAX_CONNECTIONS", "MAX_CONNECTIONS"],
        reason: "one request carries thousands of events",
        instead: Instead::Set(&keys::IN_FLIGHT, None),
    },
    Former {
        flag: "cursor",
        place: "cursor",
        variables: &["CURSOR"],
        reason: "the position is kept in the state file, and --import-state takes over the event \
            handler's",
        instead: Instead::LeaveOut,
    },
    Former {
        flag: "dry-run",
        place: "dry-run",
        variables: &["DRY_RUN"],
        reason: "",
        instead: Instead::Flag,
    },
    Former {
        flag: "exit-on-last-event",
        place: "exit-on-last-event",
        variables: &["EXIT_ON_LAST_EVENT"],
        reason: "",
        instead: Instead::Flag,
    },
];

/// The table that stood where `[forward.elasticsearch]` stands.
const FLUENTD: &str = "forward.fluentd";

impl Former {
    /// Those that are flags there and none here.
    pub(crate) fn flags() -> impl Iterator<Item = &'static Self> {
        FORMER
            .iter()
            .filter(|former| !matches!(former.instead, Instead::Flag))
    }

    /// The one of this variable, whose prefix is taken away.
    pub(super) fn of_variable(rest: &str) -> Option<&'static Self> {
        FORMER
            .iter()
            .find(|former| former.variables.contains(&rest))
    }

    fn told(&self, set: impl Fn(&Key, Option<&str>) -> String) -> String {
        let instead = match &self.instead {
            Instead::Set(key, value) => set(key, *value),
            Instead::Flag => format!("it is a flag of the command: start --{}", self.flag),
            Instead::LeaveOut => "leave it out".to_owned(),
        };
        match self.reason {
            "" => instead,
            reason => format!("{reason}; {instead}"),
        }
    }

    /// What to do about it in a file.
    fn in_file(&self) -> String {
        self.told(|key, value| match value {
            Some(value) => format!("set {} = {value:?}", key.name),
            None => format!("set {}", key.name),
        })
    }

    /// What to do about the flag.
    pub(crate) fn as_flag(&self) -> String {
        self.told(|key, value| match value {
            Some(value) => format!("give --{}={value}", key.flag()),
            None => format!("give --{}", key.flag()),
        })
    }

    /// What to do about the variable.
    pub(super) fn as_variable(&self) -> String {
        self.told(|key, value| match value {
            Some(value) => format!("set {}={value}", key.variable()),
            None => format!("set {}", key.variable()),
        })
    }
}

/// What to do about a key or table of the event handler's file that is none here.
pub(super) fn in_file(place: &str) -> Option<String> {
    let place = place.replace('_', "-");
    if place == FLUENTD {
        return Some(format!(
            "{STRAIGHT}; put [forward.elasticsearch] in its place, with hosts or cloud-id, and user \
             and password or api-key"
        ));
    }
    let former = FORMER.iter().find(|former| former.place == place)?;
    Some(former.in_file())
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    #[test]
    fn each_is_told_wherever_it_is_made() {
        let mut text = String::new();
        for former in FORMER {
            let Former {
                flag,
                place,
                variables,
                ..
            } = former;
            let file = in_file(place).unwrap();
            let (as_flag, as_variable) = (former.as_flag(), former.as_variable());
            writeln!(
                text,
                "{place}: {file}\n  --{flag}: {as_flag}\n  {variables:?}: {as_variable}"
            )
            .unwrap();
        }
        insta::assert_snapshot!(text, @r#"
        debug: set log-level = "debug"
          --debug: give --log-level=debug
          ["DEBUG"]: set EVENT_INDEXER_LOG_LEVEL=debug
        forward.fluentd.url: events go straight to Elasticsearch; set forward.elasticsearch.hosts
          --fluentd-url: events go straight to Elasticsearch; give --elasticsearch-hosts
          ["FLUENTD_URL"]: events go straight to Elasticsearch; set EVENT_INDEXER_ELASTICSEARCH_HOSTS
        forward.fluentd.session-url: events of session recordings go into the same indices as all others; leave it out
          --fluentd-session-url: events of session recordings go into the same indices as all others; leave it out
          ["FLUENTD_SESSION_URL"]: events of session recordings go into the same indices as all others; leave it out
        forward.fluentd.ca: events go straight to Elasticsearch; set forward.elasticsearch.ca
          --fluentd-ca: events go straight to Elasticsearch; give --elasticsearch-ca
          ["FLUENTD_CA"]: events go straight to Elasticsearch; set EVENT_INDEXER_ELASTICSEARCH_CA
        forward.fluentd.cert: events go straight to Elasticsearch; set forward.elasticsearch.client-cert
          --fluentd-cert: events go straight to Elasticsearch; give --elasticsearch-client-cert
          ["FLUENTD_CERT"]: events go straight to Elasticsearch; set EVENT_INDEXER_ELASTICSEARCH_CLIENT_CERT
        forward.fluentd.key: events go straight to Elasticsearch; set forward.elasticsearch.client-key
          --fluentd-key: events go straight to Elasticsearch; give --elasticsearch-client-key
          ["FLUENTD_KEY"]: events go straight to Elasticsearch; set EVENT_INDEXER_ELASTICSEARCH_CLIENT_KEY
        forward.fluentd.max-connections: one request carries thousands of events; set forward.elasticsearch.in-flight
          --fluentd-max-connections: one request carries thousands of events; give --elasticsearch-in-flight
          ["FLUENTD_MAX_CONNECTIONS", "MAX_CONNECTIONS"]: one request carries thousands of events; set EVENT_INDEXER_ELASTICSEARCH_IN_FLIGHT
        cursor: the position is kept in the state file, and --import-state takes over the event handler's; leave it out
          --cursor: the position is kept in the state file, and --import-state takes over the event handler's; leave it out
          ["CURSOR"]: the position is kept in the state file, and --import-state takes over the event handler's; leave it out
        dry-run: it is a flag of the command: start --dry-run
          --dry-run: it is a flag of the command: start --dry-run
          ["DRY_RUN"]: it is a flag of the command: start --dry-run
        exit-on-last-event: it is a flag of the command: start --exit-on-last-event
          --exit-on-last-event: it is a flag of the command: start --exit-on-last-event
          ["EXIT_ON_LAST_EVENT"]: it is a flag of the command: start --exit-on-last-event
        "#);
    }
}
