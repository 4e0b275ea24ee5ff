//! The commands; the only place that knows all parts.

use std::path::Path;

use anyhow::Context;

use self::log_level::{ConfigSource, LogLevel, Unusable};
use crate::cli::{self, Command, Invocation};
use crate::config::clusters::CLUSTER_FLAG;
use crate::config::{Config, Selected};
use crate::output::{self, Chain};
use crate::shutdown::{Reload, Shutdown};
use crate::telemetry;

mod backfill;
mod check;
mod configure;
mod dead_letters;
mod demo;
mod dry_run;
mod import;
mod install;
mod lead;
mod log_level;
mod mend;
mod new_position;
mod old_days;
mod room;
mod share;
mod start;
mod state;
mod status;
mod transfer;
mod verify;

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Exit {
    /// Done, or healthy.
    Done = 0,
    /// Failed, or unhealthy.
    Failed = 1,
    /// Wrong use or configuration.
    Usage = 2,
}

/// Why a command ended without doing what it should.
#[derive(Debug)]
pub(crate) enum Failure {
    /// What the user gave is wrong; nothing was done.
    Usage(String),
    /// A file that the user named cannot be used; nothing was done.
    Unusable(anyhow::Error),
    /// Something failed.
    Failed(anyhow::Error),
}

impl Failure {
    /// What went wrong, and what to do about it.
    fn told(&self) -> (String, Option<String>) {
        match self {
            Self::Usage(wrong) => (wrong.clone(), None),
            Self::Unusable(error) | Self::Failed(error) => {
                let what = Chain(error.as_ref()).to_string();
                (what, mend::mend(error.as_ref()))
            }
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Reads the configuration and does what was asked for. Prints what there is to say.
pub fn run(invocation: Invocation) -> Exit {
    let Invocation {
        command,
        config,
        cluster,
        settings,
    } = invocation;
    // These are about the program alone: no configuration is read, and none is in their way.
    match &command {
        Command::Completions(shell) => {
            return end(output::raw_data(&cli::completions(*shell))
                .map(|_| Exit::Done)
                .map_err(Failure::from));
        }
        Command::ManPages(folder) => return end(man_pages(folder)),
        // What is configured here is to be written.
        Command::Configure(options) => return end(configure::configure(options, settings)),
        _ => {}
    }
    let source = ConfigSource {
        file: config,
        flags: settings,
        cluster,
        needs: command.needs(),
    };
    let (selected, warnings) = match source.read() {
        Ok(resolved) => resolved,
        Err(Unusable { mistakes, hint }) => {
            for mistake in mistakes {
                output::note(format_args!("error: {mistake}"));
            }
            if let Some(hint) = hint {
                output::note(format_args!("hint: {hint}"));
            }
            return Exit::Usage;
        }
    };
    for warning in warnings {
        output::note(format_args!("warning: {warning}"));
    }
    let log = telemetry::start_log(&selected.any().log);
    let runtime = match runtime(&command) {
        Ok(runtime) => runtime,
        Err(failed) => {
            output::note(format_args!(
                "error: the system gives us no threads: {failed}"
            ));
            return Exit::Failed;
        }
    };
    let exit = runtime.block_on(async {
        let shutdown = match Shutdown::on_signals() {
            Ok(shutdown) => shutdown,
            Err(failed) => return Err(Failure::from(failed)),
        };
        let now = shutdown.now.clone();
        tokio::select! {
            biased;
            // The second signal: whatever is under way is dropped. The state file stands it.
            () = now.cancelled() => Ok(Exit::Failed),
            done = dispatch(command, selected, shutdown, LogLevel { log, source }) => done,
        }
    });
    // Work on blocking threads, if any is left, must not hold up the end.
    runtime.shutdown_background();
    end(exit)
}

fn man_pages(folder: &Path) -> Result<Exit, Failure> {
    cli::write_man_pages(folder)
        .with_context(|| format!("cannot write the man pages into {}", folder.display()))?;
    Ok(Exit::Done)
}

/// Says what went wrong, if something has.
fn end(exit: Result<Exit, Failure>) -> Exit {
    let failure = match exit {
        Ok(exit) => return exit,
        Err(failure) => failure,
    };
    let (what, mend) = failure.told();
    output::note(format_args!("error: {what}"));
    if let Some(mend) = mend {
        output::note(format_args!("hint: {mend}"));
    }
    match failure {
        Failure::Usage(_) | Failure::Unusable(_) => Exit::Usage,
        Failure::Failed(_) => Exit::Failed,
    }
}

/// One thread for all connections, beside the one that waits for the command and turns events into
/// documents. More would mostly wake each other: connections cost a third of a processor where
/// Elasticsearch takes 100,000 documents a second. What blocks or takes long has threads elsewhere.
fn runtime(command: &Command) -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    // The demo's servers are to have theirs.
    if !matches!(command, Command::Demo(_)) {
        builder.worker_threads(1);
    }
    builder.enable_all().build()
}

/// The one cluster that a command is about.
fn one(selected: Selected) -> Result<Config, Failure> {
    let mut configs = match selected {
        Selected::One(config) => return Ok(*config),
        Selected::Each(configs) => configs,
    };
    if configs.len() == 1 {
        return Ok(configs.remove(0));
    }
    let names = configs.iter().filter_map(|config| config.cluster.clone());
    let names: Vec<String> = names.collect();
    Err(Failure::Usage(format!(
        "this is about one cluster, and the configuration file has several: choose it with \
         {CLUSTER_FLAG}, which may be {}",
        names.join(", ")
    )))
}

async fn dispatch(
    mut command: Command,
    selected: Selected,
    shutdown: Shutdown,
    log_level: LogLevel,
) -> Result<Exit, Failure> {
    let config = match (selected, command) {
        (Selected::Each(configs), Command::Start(options)) => {
            let reload = Reload::on_signal("the log level")?;
            let work = start::clusters::start(configs, options, &shutdown);
            return transfer::beside(Box::pin(work), log_level.follow(reload)).await;
        }
        (Selected::Each(configs), Command::Status { json, share: None }) => {
            return status::status_of_each(&configs, json, &shutdown).await;
        }
        (Selected::Each(configs), Command::Check { show_config }) => {
            return check::check_each(&configs, show_config, &shutdown).await;
        }
        (selected, other) => {
            command = other;
            one(selected)?
        }
    };
    match command {
        Command::Configure(_) => unreachable!("it was done before, as it needs no configuration"),
        Command::Install {
            dry_run,
            overwrite,
            grant,
            kibana,
            work,
        } => {
            let wanted = install::Wanted {
                grant,
                kibana,
                work,
            };
            Box::pin(install::install(
                &config, dry_run, overwrite, wanted, &shutdown,
            ))
            .await
        }
        Command::Start(options) => {
            let reload = Reload::on_signal("the log level")?;
            let work = start::start(config, options, &shutdown);
            transfer::beside(Box::pin(work), log_level.follow(reload)).await
        }
        Command::Backfill(
            ref range @ cli::Backfill {
                share: Some(ref share),
                ..
            },
        ) => Box::pin(share::share(config, range, share, &shutdown)).await,
        Command::CancelShare { name } => share::cancel(&config, &name, &shutdown).await,
        Command::Status {
            json,
            share: Some(name),
        } => share::status::status(&config, &name, json, &shutdown).await,
        Command::Backfill(range) => Box::pin(backfill::backfill(config, range, &shutdown)).await,
        Command::Verify(range) => Box::pin(verify::verify(config, range, &shutdown)).await,
        Command::DeadLetters(command) => {
            Box::pin(dead_letters::dead_letters(config, command, &shutdown)).await
        }
        Command::State(command) => Box::pin(state::state(&config, &command, &shutdown)).await,
        Command::Status { json, share: None } => status::status(&config, json, &shutdown).await,
        Command::Check { show_config } => check::check(&config, show_config, &shutdown).await,
        Command::Demo(demo) => Box::pin(demo::demo(demo, &shutdown)).await,
        Command::Completions(_) | Command::ManPages(_) => {
            unreachable!("they are done before the configuration is read")
        }
        Command::Version => {
            output::data(format_args!(
                "teleport-event-indexer {}",
                env!("CARGO_PKG_VERSION")
            ))?;
            Ok(Exit::Done)
        }
    }
}
