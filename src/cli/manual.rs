//! What packages bring along beside the program: completions for shells, and man pages. Both are
//! made of the command line itself, so that they cannot differ from it.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::Shell;

use super::program;

pub(super) fn completions_command() -> Command {
    let shell = Arg::new("shell")
        .required(true)
        .value_name("SHELL")
        .value_parser(value_parser!(Shell))
        .help("Which shell");
    Command::new("completions")
        .about("Print completions for a shell")
        .arg(shell)
}

pub(super) fn man_command() -> Command {
    let folder = Arg::new("folder")
        .required(true)
        .value_name("DIR")
        .value_parser(value_parser!(PathBuf))
        .help("A folder that is there");
    Command::new("man")
        .about("Write the man pages, one for each command, into a folder")
        .arg(folder)
}

pub(super) fn shell(matches: &ArgMatches) -> Shell {
    *matches.get_one("shell").expect("clap requires it")
}

pub(super) fn folder(matches: &ArgMatches) -> PathBuf {
    let folder: Option<&PathBuf> = matches.get_one("folder");
    folder.expect("clap requires it").clone()
}

/// What this shell reads to complete our commands and flags.
pub fn completions(shell: Shell) -> Vec<u8> {
    let mut program = program();
    let name = program.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut program, name, &mut script);
    script
}

/// Writes one page for the program and one for each command.
///
/// # Errors
/// If a file cannot be written.
pub fn write_man_pages(folder: &Path) -> io::Result<()> {
    clap_mangen::generate_to(program(), folder)
}
