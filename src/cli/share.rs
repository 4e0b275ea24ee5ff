//! The arguments by which machines share a backfill.

use std::time::Duration;

use clap::{Arg, ArgMatches, value_parser};

use super::command::Share;
use super::switch;

const LONGEST_NAME: usize = 100;

pub(super) fn name_flag(help: &'static str) -> Arg {
    Arg::new("share")
        .long("share")
        .value_name("NAME")
        .value_parser(parse_name)
        .help(help)
}

pub(super) fn flags() -> [Arg; 3] {
    [
        name_flag("Share the work with all that give the same name, on any number of machines")
            .conflicts_with_all(["again", "dry-run"]),
        Arg::new("lease")
            .long("lease")
            .value_name("SECONDS")
            .value_parser(value_parser!(u64).range(1..=3600))
            .default_value("60")
            .requires("share")
            .help("How long a worker is not heard of before others take its piece"),
        switch("cancel", "End a shared backfill, for all that work on it").requires("share"),
    ]
}

/// The name becomes part of ids, and of the state file.
fn parse_name(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if text.is_empty() || text.len() > LONGEST_NAME || !text.chars().all(is_plain) {
        return Err(format!(
            "a name has 1 to {LONGEST_NAME} of A-Z a-z 0-9 - _ ."
        ));
    }
    Ok(text.to_owned())
}

pub(super) fn name(matches: &ArgMatches) -> Option<String> {
    matches.get_one("share").cloned()
}

pub(super) fn share(matches: &ArgMatches) -> Option<Share> {
    let lease = *matches.get_one("lease").expect("it has a default");
    Some(Share {
        name: name(matches)?,
        lease: Duration::from_secs(lease),
    })
}
