//! The command line. It says what the user typed; what the settings mean is decided in
//! [`config`](crate::config). The flags of settings come from the table in
//! [`keys`](crate::config::keys) and are declared there alone.

mod command;
mod configure;
mod dead_letters;
mod install;
mod manual;
mod share;
mod start;

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, value_parser};

use crate::config::HostUrl;
use crate::config::keys::{CONFIG_VARIABLE, Group, KEYS, Key, Kind, VERIFIER_API_KEY};
use crate::config::sources::FlagSetting;
use crate::config::values::parse_time;
use crate::output;

pub use self::command::{
    Backfill, Command, DeadLetters, Demo, DemoApi, DemoPart, MovePosition, Share, Start, State,
    Verify, Way,
};
pub use self::configure::Configure;
pub use self::install::{Grant, Kibana};
pub use self::manual::{completions, write_man_pages};

/// What the user typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation {
    /// What to do.
    pub command: Command,
    /// The configuration file, if one is named by flag.
    pub config: Option<PathBuf>,
    /// Which of several clusters, by the name of its table.
    pub cluster: Option<String>,
    /// Settings given as flags, unchecked.
    pub settings: Vec<FlagSetting>,
}

/// Why there is nothing to run: help was asked for, or the command line is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A text that was asked for: to stdout, code 0.
    Text(String),
    /// What is wrong: to stderr, code 2.
    Usage(String),
}

impl Exit {
    /// Prints the text where it belongs, and gives the exit code.
    ///
    /// # Errors
    /// If stdout cannot be written to; a closed pipe counts as written.
    pub fn print(&self) -> io::Result<u8> {
        match self {
            Self::Text(text) => output::data(text).map(|_| 0),
            Self::Usage(text) => {
                output::note(text);
                Ok(2)
            }
        }
    }
}

impl From<clap::Error> for Exit {
    fn from(error: clap::Error) -> Self {
        // Without colours: the text may go anywhere.
        let text = error.render().to_string().trim_end().to_owned();
        if error.use_stderr() {
            Self::Usage(text)
        } else {
            Self::Text(text)
        }
    }
}

const EVERY_GROUP: &[Group] = &[
    Group::State,
    Group::Reading,
    Group::Following,
    Group::Teleport,
    Group::Elasticsearch,
    Group::Install,
    Group::Limits,
    Group::Logging,
    Group::Listening,
    Group::Locks,
];

/// A backfill takes its range from the command, and does not poll.
const BACKFILL_GROUPS: &[Group] = &[
    Group::State,
    Group::Reading,
    Group::Teleport,
    Group::Elasticsearch,
    Group::Install,
    Group::Limits,
    Group::Logging,
];

const INSTALL_GROUPS: &[Group] = &[Group::Elasticsearch, Group::Install, Group::Logging];
const STATUS_GROUPS: &[Group] = &[
    Group::State,
    Group::Teleport,
    Group::Elasticsearch,
    Group::Logging,
    Group::Listening,
];
const DEMO_GROUPS: &[Group] = &[Group::Logging];

/// Reads the command line; the first argument is the program's own name.
///
/// # Errors
/// If there is nothing to run. The text shows no value of a setting: those are not looked at here.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Invocation, Exit> {
    let mut program = program();
    let matches = program.try_get_matches_from_mut(args)?;
    let (name, matches) = matches.subcommand().expect("clap requires a command");
    // Some have commands of their own; the flags are those of the innermost.
    let (inner_name, matches) = matches.subcommand().unwrap_or((name, matches));
    let command = command(name, inner_name, matches).map_err(|problem| {
        let command = program.find_subcommand_mut(name);
        let mut command = command.expect("clap has just found it");
        if inner_name != name {
            let inner = command.find_subcommand_mut(inner_name);
            command = inner.expect("clap has just found it");
        }
        Exit::from(command.error(ErrorKind::ValueValidation, problem))
    })?;
    Ok(Invocation {
        command,
        config: matches.get_one("config").cloned(),
        cluster: matches.get_one("cluster").cloned(),
        settings: settings(matches),
    })
}

fn command(name: &str, inner_name: &str, matches: &ArgMatches) -> Result<Command, String> {
    Ok(match name {
        "configure" => Command::Configure(configure::configure(matches)?),
        "install" => Command::Install {
            dry_run: matches.get_flag("dry-run"),
            overwrite: matches.get_flag("overwrite"),
            grant: install::grant(matches)?,
            kibana: install::kibana(matches)?,
            work: matches.get_flag("work"),
        },
        "start" => Command::Start(start::start(matches)?),
        "backfill" if matches.get_flag("cancel") => Command::CancelShare {
            name: share::name(matches).expect("clap requires it"),
        },
        "backfill" => {
            let (from, to) = range(matches)?;
            Command::Backfill(Backfill {
                from,
                to,
                again: matches.get_flag("again"),
                dry_run: matches.get_flag("dry-run"),
                share: share::share(matches),
            })
        }
        "verify" => {
            let (from, to) = range(matches)?;
            Command::Verify(Verify {
                from,
                to,
                refill: matches.get_flag("refill"),
                json: matches.get_flag("json"),
            })
        }
        "status" => Command::Status {
            json: matches.get_flag("json"),
            share: share::name(matches),
        },
        "dead-letters" => return dead_letters::dead_letters(inner_name, matches),
        "state" => return dead_letters::state(inner_name, matches),
        "check" => Command::Check {
            show_config: matches.get_flag("show-config"),
        },
        "demo" => Command::Demo(demo(matches)?),
        "completions" => Command::Completions(manual::shell(matches)),
        "man" => Command::ManPages(manual::folder(matches)),
        "version" => Command::Version,
        other => unreachable!("clap knows no command {other}"),
    })
}

fn range(matches: &ArgMatches) -> Result<(DateTime<Utc>, DateTime<Utc>), String> {
    let time = |id| *matches.get_one(id).expect("clap requires it");
    let (from, to) = (time("from"), time("to"));
    if from >= to {
        return Err("--from must be before --to, which is exclusive".to_owned());
    }
    Ok((from, to))
}

fn demo(matches: &ArgMatches) -> Result<Demo, String> {
    // Not by clap, which would repeat a URL that may hold a password.
    let elasticsearch = matches.get_one::<String>("elasticsearch");
    let elasticsearch = elasticsearch
        .map(|text| HostUrl::parse(text))
        .transpose()
        .map_err(|error| format!("the URL of --elasticsearch {error}"))?;
    let listen = matches.get_one("auth-listen").copied();
    let identity_dir = matches.get_one("identity-dir").cloned();
    Ok(Demo {
        events: *matches.get_one("events").expect("it has a default"),
        days: *matches.get_one("days").expect("it has a default"),
        api: *matches.get_one("api").expect("it has a default"),
        // clap sees to it that both are there or none.
        part: match listen.zip(identity_dir) {
            Some((listen, identity_dir)) => DemoPart::AuthService {
                listen,
                identity_dir,
            },
            None => DemoPart::Whole {
                elasticsearch,
                stay: matches.get_flag("stay"),
            },
        },
    })
}

/// The settings among the flags; which of them exist depends on the command.
fn settings(matches: &ArgMatches) -> Vec<FlagSetting> {
    let given = KEYS.iter().filter_map(|key| {
        let values = matches.try_get_many::<String>(key.name).ok()??;
        Some(FlagSetting {
            key,
            values: values.cloned().collect(),
        })
    });
    given.collect()
}

fn program() -> clap::Command {
    let config = Arg::new("config")
        .long("config")
        .short('c')
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .global(true)
        .help(format!(
            "Configuration file in TOML [env: {CONFIG_VARIABLE}]"
        ));
    let cluster = Arg::new("cluster")
        .long("cluster")
        .value_name("NAME")
        .global(true)
        .help("Which of several clusters: the name of its table");
    clap::Command::new("teleport-event-indexer")
        .about("Moves Teleport audit events into Elasticsearch: complete, and once each")
        .version(env!("CARGO_PKG_VERSION"))
        .after_help(
            "Every setting is a key of the configuration file, a flag and an environment \
             variable; a flag beats a variable, a variable beats the file.",
        )
        .subcommand_required(true)
        .arg_required_else_help(true)
        .args([config, cluster])
        .subcommands([
            configure::command().args(setting_flags(EVERY_GROUP)),
            install_command(),
            start::command(),
            backfill_command(),
            verify_command(),
            status_command(),
            dead_letters::dead_letters_command(),
            dead_letters::state_command(),
            check_command(),
            demo_command(),
            manual::completions_command(),
            manual::man_command(),
            clap::Command::new("version").about("Print the version"),
        ])
}

fn install_command() -> clap::Command {
    clap::Command::new("install")
        .about("Put index template and lifecycle policy into Elasticsearch; safe to repeat")
        .arg(switch("dry-run", "Only show the requests"))
        .arg(switch("overwrite", "Replace what somebody has edited"))
        .arg(switch(
            "work",
            "With the index by which machines share a backfill, and rights on it for the role",
        ))
        .args(install::grant_flags())
        .args(install::kibana_flags())
        .args(setting_flags(INSTALL_GROUPS).map(with_short_name))
}

/// Here, what is installed needs no longer name: `--retention` is `--elasticsearch-install-retention`.
fn with_short_name(flag: Arg) -> Arg {
    let name = flag.get_long().unwrap_or_default();
    match name.strip_prefix("elasticsearch-install-") {
        Some(short) => {
            let short = short.to_owned();
            flag.visible_alias(short)
        }
        None => flag,
    }
}

fn time_argument(id: &'static str, help: &'static str) -> Arg {
    Arg::new(id)
        .long(id)
        .value_name("TIME")
        .value_parser(parse_time)
        .help(help)
}

fn range_arguments() -> [Arg; 2] {
    [
        time_argument(
            "from",
            "Begin, inclusive: RFC 3339, or a date for its midnight in UTC",
        )
        .required(true),
        time_argument("to", "End, exclusive").required(true),
    ]
}

fn backfill_command() -> clap::Command {
    clap::Command::new("backfill")
        .about("Index a closed range of time; beside a daemon if there is one, and resumable")
        .args(range_arguments().map(|arg| arg.required(false).required_unless_present("cancel")))
        .args(share::flags())
        .arg(switch("again", "Read a finished range once more"))
        .arg(switch(
            "dry-run",
            "Read, but neither write documents nor move the checkpoint",
        ))
        .args(setting_flags(BACKFILL_GROUPS))
}

fn verify_command() -> clap::Command {
    let flags = setting_flags(BACKFILL_GROUPS).map(|flag| {
        if flag.get_id() == VERIFIER_API_KEY.name {
            // The one setting that is mostly given here.
            flag.visible_alias("verifier-api-key")
        } else {
            flag
        }
    });
    clap::Command::new("verify")
        .about("Compare Teleport with Elasticsearch, document by document; beside a daemon")
        .args(range_arguments())
        .arg(switch("refill", "Send what is missing, and look again"))
        .arg(switch("json", "As JSON"))
        .args(flags)
}

fn status_command() -> clap::Command {
    clap::Command::new("status")
        .about("Say how far the audit log is indexed, and what is missing")
        .arg(switch("json", "As JSON"))
        .arg(share::name_flag(
            "Tell of a shared backfill instead, which Elasticsearch knows",
        ))
        .args(setting_flags(STATUS_GROUPS))
}

fn check_command() -> clap::Command {
    clap::Command::new("check")
        .about("Prove the configuration and both ends before anything runs")
        .arg(switch(
            "show-config",
            "Print the configuration in effect, without secrets",
        ))
        .args(setting_flags(EVERY_GROUP))
}

fn demo_command() -> clap::Command {
    let option = |id: &'static str, value_name: &'static str, help| {
        Arg::new(id).long(id).value_name(value_name).help(help)
    };
    let api =
        PossibleValuesParser::new(["export", "search", "both"]).map(|name| match name.as_str() {
            "export" => DemoApi::Export,
            "search" => DemoApi::Search,
            _ => DemoApi::Both,
        });
    clap::Command::new("demo")
        .about("Show it all on this machine: invented events, stand-ins for both ends")
        .args([
            option("events", "N", "How many events to invent")
                .value_parser(value_parser!(u64).range(1..))
                .default_value("100000"),
            option("days", "N", "Over how many days, up to now")
                .value_parser(value_parser!(u32).range(1..=366))
                .default_value("3"),
            option(
                "api",
                "API",
                "Event APIs that the stand-in Auth Service offers",
            )
            .value_parser(api)
            .default_value("both"),
            option(
                "elasticsearch",
                "URL",
                "A real Elasticsearch instead of the stand-in",
            ),
            switch(
                "stay",
                "Go on until stopped instead of ending when all is indexed",
            ),
            option(
                "auth-listen",
                "ADDR",
                "Only serve the stand-in Auth Service, on this ip:port",
            )
            .value_parser(value_parser!(SocketAddr))
            .requires("identity-dir")
            .conflicts_with_all(["elasticsearch", "stay"]),
            option(
                "identity-dir",
                "DIR",
                "Where the stand-in Auth Service writes an identity file for its clients",
            )
            .value_parser(value_parser!(PathBuf))
            .requires("auth-listen"),
        ])
        .args(setting_flags(DEMO_GROUPS))
}

fn switch(id: &'static str, help: &'static str) -> Arg {
    Arg::new(id).long(id).action(ArgAction::SetTrue).help(help)
}

fn setting_flags(groups: &[Group]) -> impl Iterator<Item = Arg> {
    let keys = KEYS.iter().filter(|key| groups.contains(&key.group));
    keys.map(|key| setting_flag(key))
}

fn setting_flag(key: &'static Key) -> Arg {
    let default = key.default.map(|text| format!(" [default: {text}]"));
    let default = default.unwrap_or_default();
    let flag = Arg::new(key.name)
        .long(key.flag())
        .value_name(key.kind.value_name())
        .help_heading(key.group.heading())
        .help(format!("{}{default}", key.help))
        .long_help(format!("{}{default} [env: {}]", key.help, key.variable()));
    match key.kind {
        Kind::List => flag.action(ArgAction::Append),
        // As in the event handler, the bare flag means true.
        Kind::Bool => flag
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
        _ => flag,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Invocation, Exit> {
        let args = line.split_whitespace().map(OsString::from);
        parse(
            [OsString::from("teleport-event-indexer")]
                .into_iter()
                .chain(args),
        )
    }

    fn usage(line: &str) -> String {
        match parsed(line) {
            Err(Exit::Usage(text)) => text,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        program().debug_assert();
    }

    #[test]
    fn help_shows_every_flag_and_variable() {
        for name in ["start", "check"] {
            let Err(Exit::Text(help)) = parsed(&format!("{name} --help")) else {
                panic!("{name} has no help");
            };
            for key in KEYS {
                let flag = format!("--{}", key.flag());
                let is_shown = |line: &str| line.split([' ', '[', '=']).any(|word| word == flag);
                assert!(help.lines().any(is_shown), "{flag}");
                assert!(help.contains(&key.variable()), "{flag}");
            }
        }
    }

    #[test]
    fn each_command_offers_what_it_uses() {
        assert!(parsed("backfill --from 2026-01-01 --to 2026-01-02 --batch 100").is_ok());
        for line in [
            "backfill --from 2026-01-01 --to 2026-01-02 --start-time 2026-01-01",
            "install --teleport-addr a:443",
            "status --batch 100",
            "version --log-level info",
        ] {
            assert!(usage(line).contains("unexpected argument"), "{line}");
        }
    }

    #[test]
    fn settings_come_as_they_were_typed() {
        let invocation = parsed(
            "start -c x.toml --types a,b --types c --teleport-refresh-enabled --lock-enabled=false \
             --batch abc --dry-run",
        )
        .unwrap();
        assert_eq!(
            invocation.command,
            Command::Start(Start {
                dry_run: true,
                ..Start::default()
            })
        );
        assert_eq!(invocation.config, Some(PathBuf::from("x.toml")));
        let settings: Vec<_> = invocation
            .settings
            .iter()
            .map(|setting| (setting.key.name, setting.values.join(" ")))
            .collect();
        assert_eq!(
            settings,
            [
                ("batch", "abc".to_owned()),
                ("types", "a,b c".to_owned()),
                ("teleport.refresh.enabled", "true".to_owned()),
                ("lock.enabled", "false".to_owned()),
            ]
        );
        assert_eq!(
            parsed("-c before.toml check").unwrap().config,
            Some(PathBuf::from("before.toml"))
        );
    }

    #[test]
    fn what_is_installed_has_short_names_where_it_is_installed() {
        let line = "install --retention 30d --replicas 0 --dynamic --shards=2 \
                    --refresh-interval 1s --elasticsearch-install-policy keep";
        let given: Vec<_> = parsed(line)
            .unwrap()
            .settings
            .iter()
            .map(|setting| {
                let (_, name) = setting.key.place();
                format!("{name}={}", setting.values.join(" "))
            })
            .collect();
        assert_eq!(
            given,
            [
                "policy=keep",
                "retention=30d",
                "shards=2",
                "replicas=0",
                "refresh-interval=1s",
                "dynamic=true",
            ]
        );
        let both = "install --retention 30d --elasticsearch-install-retention 40d";
        assert!(usage(both).contains("cannot be used multiple times"));
        assert!(usage("start --retention 30d").contains("unexpected argument"));
    }

    #[test]
    fn a_range_must_be_one() {
        let line = "backfill --from 2026-01-01 --to 2026-01-02T03:04:05.6Z --again";
        let Command::Backfill(backfill) = parsed(line).unwrap().command else {
            panic!("no backfill");
        };
        assert_eq!(backfill.from.to_rfc3339(), "2026-01-01T00:00:00+00:00");
        assert_eq!(backfill.to.to_rfc3339(), "2026-01-02T03:04:05+00:00");
        assert!(backfill.again && !backfill.dry_run);

        insta::assert_snapshot!(usage("backfill --from 2026-01-02 --to 2026-01-02"), @r#"
        error: --from must be before --to, which is exclusive

        Usage: teleport-event-indexer backfill [OPTIONS]

        For more information, try '--help'.
        "#);
        insta::assert_snapshot!(usage("backfill --from yesterday --to 2026-01-02"), @r#"
        error: invalid value 'yesterday' for '--from <TIME>': must be RFC 3339 with a zone (2026-01-31T08:00:00Z) or a date (2026-01-31, midnight UTC)

        For more information, try '--help'.
        "#);
    }

    #[test]
    fn a_comparison_has_a_range_and_the_flags_of_a_backfill() {
        let line = "verify --from 2026-01-01 --to 2026-01-02 --types a,b --refill --json \
                    --verifier-api-key file:key";
        let invocation = parsed(line).unwrap();
        let Command::Verify(verify) = &invocation.command else {
            panic!("no comparison");
        };
        assert_eq!((verify.refill, verify.json), (true, true));
        assert_eq!(verify.from.to_rfc3339(), "2026-01-01T00:00:00+00:00");
        let given: Vec<_> = invocation.settings.iter().map(|s| s.key.name).collect();
        assert_eq!(given, ["types", "forward.elasticsearch.verifier-api-key"]);
        insta::assert_snapshot!(usage("verify --from 2026-01-02 --to 2026-01-02"), @r#"
        error: --from must be before --to, which is exclusive

        Usage: teleport-event-indexer verify [OPTIONS] --from <TIME> --to <TIME>

        For more information, try '--help'.
        "#);
        insta::assert_snapshot!(usage("verify --from 2026-01-02"), @r#"
        error: the following required arguments were not provided:
          --to <TIME>

        Usage: teleport-event-indexer verify --from <TIME> --to <TIME>

        For more information, try '--help'.
        "#);
        insta::assert_snapshot!(usage("verify --from 2026-01-02 --to soon"), @r#"
        error: invalid value 'soon' for '--to <TIME>': must be RFC 3339 with a zone (2026-01-31T08:00:00Z) or a date (2026-01-31, midnight UTC)

        For more information, try '--help'.
        "#);
    }

    #[test]
    fn the_demonstration_is_whole_or_serves_one_end() {
        let Command::Demo(demo) = parsed("demo --elasticsearch http://localhost:9200 --stay")
            .unwrap()
            .command
        else {
            panic!("no demo");
        };
        assert_eq!(
            (demo.events, demo.days, demo.api),
            (100_000, 3, DemoApi::Both)
        );
        assert_eq!(
            demo.part,
            DemoPart::Whole {
                elasticsearch: Some(HostUrl::parse("http://localhost:9200").unwrap()),
                stay: true
            }
        );
        let Command::Demo(demo) =
            parsed("demo --auth-listen 0.0.0.0:3025 --identity-dir /identity --api search")
                .unwrap()
                .command
        else {
            panic!("no demo");
        };
        assert_eq!(demo.api, DemoApi::Search);
        assert_eq!(
            demo.part,
            DemoPart::AuthService {
                listen: "0.0.0.0:3025".parse().unwrap(),
                identity_dir: PathBuf::from("/identity")
            }
        );
        for line in [
            "demo --auth-listen 0.0.0.0:3025",
            "demo --identity-dir /identity",
            "demo --auth-listen 0.0.0.0:3025 --identity-dir /identity --stay",
            "demo --elasticsearch localhost:9200",
            "demo --days 0",
        ] {
            usage(line);
        }
        assert!(
            !usage("demo --elasticsearch https://elastic:hunter2@localhost").contains("hunter2")
        );
    }

    #[test]
    fn help_and_version_are_asked_for_and_nothing_is_not() {
        for line in ["--help", "help", "start -h", "--version", "help status"] {
            assert!(matches!(parsed(line), Err(Exit::Text(_))), "{line}");
        }
        for line in ["", "stop", "start --unknown"] {
            usage(line);
        }
    }
}
