//! `state`: the state as a whole.

use std::path::Path;

use crate::checkpoint::{self, Checkpoint};
use crate::cli::State;
use crate::commands::lead::moving;
use crate::commands::status::no_state;
use crate::commands::{Exit, Failure};
use crate::config::Config;
use crate::output;
use crate::shutdown::Shutdown;

pub(super) async fn state(
    config: &Config,
    command: &State,
    shutdown: &Shutdown,
) -> Result<Exit, Failure> {
    let storage = config.storage.as_ref().expect("the command needs it");
    match command {
        State::Backup { file } => backup(storage, file),
        State::Reset => reset(storage),
        State::Move { to } => moving::move_state(config, storage, *to, shutdown).await,
    }
}

fn backup(storage: &Path, file: &Path) -> Result<Exit, Failure> {
    let checkpoint =
        Checkpoint::open_existing_read_only(storage)?.ok_or_else(|| no_state(storage))?;
    checkpoint.back_up(file)?;
    output::note(format_args!("the state lies in {}", file.display()));
    Ok(Exit::Done)
}

fn reset(storage: &Path) -> Result<Exit, Failure> {
    let Some(aside) = checkpoint::reset(storage)? else {
        return Err(no_state(storage));
    };
    output::note(format_args!(
        "the state lies in {} now; the next start is a first one and reads from start-time on",
        aside.display()
    ));
    Ok(Exit::Done)
}
