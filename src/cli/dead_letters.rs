//! `dead-letters` and `state`: their own commands and arguments.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use clap::{Arg, ArgMatches, value_parser};

use super::command::{Command, DeadLetters, State};
use super::{setting_flags, switch};
use crate::checkpoint::DeadLetterFilter;
use crate::config::StateHome;
use crate::config::keys::Group;
use crate::config::values::parse_time;

/// Those of the two ends say where a state in Elasticsearch lies, and what it is called.
const STATE_GROUPS: &[Group] = &[
    Group::State,
    Group::Teleport,
    Group::Elasticsearch,
    Group::Logging,
];
const RETRY_GROUPS: &[Group] = &[
    Group::State,
    Group::Teleport,
    Group::Elasticsearch,
    Group::Limits,
    Group::Logging,
];

pub(super) fn dead_letters_command() -> clap::Command {
    let command = |name: &'static str, about: &'static str| clap::Command::new(name).about(about);
    let ids = || {
        Arg::new("id")
            .value_name("ID")
            .num_args(0..)
            .help("Document ids, as `dead-letters list` shows them; all if none is given")
    };
    let list = command("list", "List what Elasticsearch refused, the newest first")
        .args(filters())
        .arg(
            Arg::new("limit")
                .long("limit")
                .value_name("N")
                .value_parser(value_parser!(u32).range(1..))
                .default_value("100")
                .help("Show no more than so many"),
        )
        .arg(switch("json", "As JSON, with the reasons"))
        .args(setting_flags(STATE_GROUPS));
    let show = command("show", "Show one with its reason")
        .arg(
            Arg::new("id")
                .value_name("ID")
                .required(true)
                .help("The document's id"),
        )
        .arg(switch(
            "payload",
            "With the document, which may hold secrets",
        ))
        .args(setting_flags(STATE_GROUPS));
    let retry = command(
        "retry",
        "Send them again, in safe form if they are refused again; a daemon may run beside it",
    )
    .arg(ids())
    .args(filters())
    .args(setting_flags(RETRY_GROUPS));
    let export = command("export", "Write them as NDJSON, with their documents")
        .arg(ids())
        .args(filters())
        .arg(
            Arg::new("output")
                .long("output")
                .short('o')
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("A new file, for its owner alone, instead of stdout"),
        )
        .args(setting_flags(STATE_GROUPS));
    let drop = command("drop", "Delete them for good")
        .arg(ids().help("Document ids, as `dead-letters list` shows them"))
        .args(filters())
        .arg(
            switch(
                "all",
                "Not only single ones: all, or all that the filters choose",
            )
            .conflicts_with("id"),
        )
        .arg(switch("yes", "Really do it"))
        .args(setting_flags(STATE_GROUPS));
    command(
        "dead-letters",
        "Look after documents that Elasticsearch refused",
    )
    .subcommand_required(true)
    .arg_required_else_help(true)
    .subcommands([list, show, retry, export, drop])
}

fn filters() -> impl Iterator<Item = Arg> {
    let filter = |id: &'static str, value_name, help| {
        Arg::new(id).long(id).value_name(value_name).help(help)
    };
    let time = |arg: Arg| arg.value_parser(parse_time);
    [
        filter("type", "TYPE", "Only events of this type"),
        filter("error-type", "TYPE", "Only those refused with this error"),
        time(filter("from", "TIME", "Only events of this time or later")),
        time(filter("to", "TIME", "Only events before this time")),
    ]
    .into_iter()
}

pub(super) fn state_command() -> clap::Command {
    let backup = clap::Command::new("backup")
        .about("Copy the state file as of one moment; a daemon may run beside it")
        .arg(
            Arg::new("file")
                .value_name("FILE")
                .required(true)
                .value_parser(value_parser!(PathBuf))
                .help("A new file, for its owner alone"),
        )
        .args(setting_flags(STATE_GROUPS));
    let reset = clap::Command::new("reset")
        .about("Move the state file aside, so that the next start is a first one")
        .arg(switch("yes", "Really do it"))
        .args(setting_flags(STATE_GROUPS));
    let moving = clap::Command::new("move")
        .about("Bring the state from the file into Elasticsearch, or back; no daemon may run")
        .arg(
            Arg::new("to")
                .long("to")
                .value_name("PLACE")
                .required(true)
                .value_parser(["elasticsearch", "sqlite"])
                .help("Where it is to lie"),
        )
        .args(setting_flags(STATE_GROUPS));
    clap::Command::new("state")
        .about("Back up, reset or move the state")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([backup, reset, moving])
}

pub(super) fn dead_letters(name: &str, matches: &ArgMatches) -> Result<Command, String> {
    Ok(Command::DeadLetters(match name {
        "list" => DeadLetters::List {
            filter: filter(matches)?,
            limit: *matches.get_one("limit").expect("it has a default"),
            json: matches.get_flag("json"),
        },
        "show" => DeadLetters::Show {
            id: matches
                .get_one::<String>("id")
                .expect("clap requires it")
                .clone(),
            payload: matches.get_flag("payload"),
        },
        "retry" => DeadLetters::Retry(filter(matches)?),
        "export" => DeadLetters::Export {
            filter: filter(matches)?,
            output: matches.get_one("output").cloned(),
        },
        "drop" => {
            let filter = filter(matches)?;
            if filter.ids.is_empty() && !matches.get_flag("all") {
                return Err("name the ids of the documents to drop, or --all".to_owned());
            }
            demand_yes(matches, "dropped documents are lost; `export` keeps a copy")?;
            DeadLetters::Drop(filter)
        }
        other => unreachable!("clap knows no command {other}"),
    }))
}

pub(super) fn state(name: &str, matches: &ArgMatches) -> Result<Command, String> {
    Ok(Command::State(match name {
        "backup" => State::Backup {
            file: matches
                .get_one::<PathBuf>("file")
                .expect("clap requires it")
                .clone(),
        },
        "reset" => {
            demand_yes(
                matches,
                "the position is forgotten, and dead letters are put away with it",
            )?;
            State::Reset
        }
        "move" => State::Move {
            to: match matches.get_one::<String>("to").map(String::as_str) {
                Some("elasticsearch") => StateHome::Elasticsearch,
                _ => StateHome::Sqlite,
            },
        },
        other => unreachable!("clap knows no command {other}"),
    }))
}

fn demand_yes(matches: &ArgMatches, because: &str) -> Result<(), String> {
    if matches.get_flag("yes") {
        return Ok(());
    }
    Err(format!("this needs --yes: {because}"))
}

fn filter(matches: &ArgMatches) -> Result<DeadLetterFilter, String> {
    let text = |id| matches.get_one::<String>(id).cloned();
    let time = |id| {
        let time: Option<&DateTime<Utc>> = matches.get_one(id);
        time.map(DateTime::timestamp_millis)
    };
    // Not every command takes ids.
    let ids = matches.try_get_many::<String>("id").ok().flatten();
    let filter = DeadLetterFilter {
        ids: ids.map(|ids| ids.cloned().collect()).unwrap_or_default(),
        event_type: text("type"),
        error_type: text("error-type"),
        from_ms: time("from"),
        to_ms: time("to"),
    };
    match (filter.from_ms, filter.to_ms) {
        (Some(from), Some(to)) if from >= to => {
            Err("--from must be before --to, which is exclusive".to_owned())
        }
        _ => Ok(filter),
    }
}
