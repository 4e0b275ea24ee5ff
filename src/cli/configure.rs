//! `configure`: the files that somebody needs who sets the program up.

use std::path::PathBuf;

use clap::{Arg, ArgMatches, value_parser};

use super::switch;

/// What to write, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configure {
    /// The folder.
    pub directory: PathBuf,
    /// Teleport's address; that of `from` if `None`.
    pub addr: Option<String>,
    /// The event handler's configuration, to be translated.
    pub from: Option<PathBuf>,
    /// Replace what is there.
    pub force: bool,
    /// Whether the role may lock users.
    pub locks: bool,
}

/// Flags of the event handler's own `configure`, and why there is nothing for them to do.
const FORMER: &[(&str, &str)] = &[
    ("cn", CERTIFICATES),
    ("dns-names", CERTIFICATES),
    ("ip", CERTIFICATES),
    ("length", CERTIFICATES),
    ("ttl", CERTIFICATES),
    (
        "output",
        "there is one kind of output, for Elasticsearch; leave it out",
    ),
];

const CERTIFICATES: &str = "it was for the certificates between the event handler and Fluentd or \
    Logstash; there is nothing between this program and Elasticsearch, so leave it out";

pub(super) fn command() -> clap::Command {
    let former = FORMER.iter().map(|(name, _)| {
        Arg::new(*name)
            .long(*name)
            .num_args(0..=1)
            .hide(true)
            .allow_hyphen_values(true)
    });
    clap::Command::new("configure")
        .about("Write the configuration, roles for both ends, and units to run it by")
        .arg(
            Arg::new("directory")
                .value_name("DIR")
                .required(true)
                .value_parser(value_parser!(PathBuf))
                .help("Folder for the files; made if it is not there"),
        )
        .arg(
            Arg::new("addr")
                .value_name("ADDR")
                .help("Proxy Service or Auth Service, host:port"),
        )
        .arg(
            Arg::new("from")
                .long("from")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("Translate this configuration of teleport-event-handler"),
        )
        .arg(switch("force", "Replace files that are there"))
        .arg(switch(
            "locks",
            "Let the role lock users, for [lock] in the configuration",
        ))
        .args(former)
}

pub(super) fn configure(matches: &ArgMatches) -> Result<Configure, String> {
    let refused: Vec<String> = FORMER
        .iter()
        .filter(|(name, _)| matches.contains_id(name))
        .map(|(name, reason)| format!("--{name}: {reason}"))
        .collect();
    if !refused.is_empty() {
        return Err(refused.join("\n"));
    }
    let configure = Configure {
        directory: matches
            .get_one("directory")
            .cloned()
            .expect("clap requires it"),
        addr: matches.get_one("addr").cloned(),
        from: matches.get_one("from").cloned(),
        force: matches.get_flag("force"),
        locks: matches.get_flag("locks"),
    };
    if configure.addr.is_none() && configure.from.is_none() {
        return Err("ADDR is missing: Teleport's address, such as teleport.example.com:443".into());
    }
    Ok(configure)
}
