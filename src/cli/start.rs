//! `start`: its flags beside the settings, and those of the event handler that are none here.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgGroup, ArgMatches, value_parser};

use super::command::{MovePosition, Start, Way};
use super::{EVERY_GROUP, setting_flags, switch, time_argument};
use crate::config::former::Former;

pub(super) fn command() -> clap::Command {
    clap::Command::new("start")
        .about("Follow the audit log")
        .arg(switch(
            "exit-on-last-event",
            "Stop once everything that is there is indexed",
        ))
        .arg(switch(
            "dry-run",
            "Read, but neither write documents nor move the checkpoint",
        ))
        .arg(
            Arg::new("import-state")
                .long("import-state")
                .value_name("DIR")
                .value_parser(value_parser!(PathBuf))
                .help("Go on where Teleport's event handler has stopped, whose storage this is"),
        )
        .args(position_arguments())
        .args(former_flags())
        .group(ArgGroup::new("position").args(["rewind-to", "forward-to"]))
        .args(setting_flags(EVERY_GROUP))
}

fn position_arguments() -> [Arg; 3] {
    let order = |id, help| time_argument(id, help).conflicts_with_all(["dry-run", "import-state"]);
    [
        order("rewind-to", "Read again from this time on; with --yes"),
        order(
            "forward-to",
            "Go on at this time, and skip what lies before; with --yes",
        )
        .conflicts_with("rewind-to"),
        switch("yes", "Do so: without it, only what it means is told").requires("position"),
    ]
}

pub(super) fn start(matches: &ArgMatches) -> Result<Start, String> {
    refuse_former_flags(matches)?;
    Ok(Start {
        exit_on_last_event: matches.get_flag("exit-on-last-event"),
        dry_run: matches.get_flag("dry-run"),
        import_state: matches.get_one("import-state").cloned(),
        new_position: new_position(matches),
    })
}

fn new_position(matches: &ArgMatches) -> Option<MovePosition> {
    let order = |id, way| {
        matches.get_one(id).map(|to| MovePosition {
            way,
            to: *to,
            is_confirmed: matches.get_flag("yes"),
        })
    };
    order("rewind-to", Way::Back).or_else(|| order("forward-to", Way::Forward))
}

/// Flags of the event handler's `start`: each is named, with what to use instead.
fn refuse_former_flags(matches: &ArgMatches) -> Result<(), String> {
    let given = Former::flags().filter(|former| matches.contains_id(former.flag));
    let refused: Vec<String> = given
        .map(|former| {
            let (flag, mend) = (former.flag, former.as_flag());
            format!("--{flag}: this belongs to teleport-event-handler: {mend}")
        })
        .collect();
    if refused.is_empty() {
        return Ok(());
    }
    Err(refused.join("\n"))
}

fn former_flags() -> impl Iterator<Item = Arg> {
    Former::flags().map(|former| {
        let flag = Arg::new(former.flag).long(former.flag).hide(true);
        let flag = flag.num_args(0..=1).action(ArgAction::Append);
        if former.flag == "debug" {
            return flag.short('d');
        }
        flag
    })
}
