//! `start`: follows the audit log for ever.

use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, Utc};
use tracing::{info, warn};

use crate::checkpoint::{Checkpoint, Role, RoleLock, Run};
use crate::cli::Start;
use crate::commands::import;
use crate::commands::new_position::NewPosition;
use crate::commands::old_days::first_to_write;
use crate::commands::transfer::{
    Patience, Transfer, beside, demand_template, reach_elasticsearch, reach_teleport, reading,
};
use crate::commands::{Exit, Failure};
use crate::config::Config;
use crate::pipeline::Summary;
use crate::shutdown::{Reload, Shutdown};
use crate::telemetry::{self, Stats};
use crate::teleport::audit_log::Sent;

pub(super) async fn start(
    config: Config,
    options: Start,
    shutdown: &Shutdown,
) -> Result<Exit, Failure> {
    let Start {
        exit_on_last_event,
        dry_run,
        import_state,
        new_position,
    } = options;
    let stop = &shutdown.stop;
    let left_off = import_state.map(|directory| import::read(&directory, &config));
    let left_off = left_off.transpose()?;
    let reload = Reload::on_signal("the credentials")?;
    // The lock is held until the end; whoever comes second learns who holds it.
    let (checkpoint, _lock) = if dry_run {
        (Checkpoint::open_in_memory()?, None)
    } else {
        let storage = config.storage.clone().expect("the command needs it");
        let checkpoint = Checkpoint::open(&storage)?;
        (
            checkpoint,
            Some(RoleLock::acquire(&storage, &Role::Daemon)?),
        )
    };
    let new_position = new_position.map(|order| NewPosition::of(order, &checkpoint, Utc::now()));
    let new_position = new_position.transpose()?;
    let Some((client, _)) = reach_teleport(&config, Patience::Endless, stop).await? else {
        return Ok(Exit::Done);
    };
    if let Some(state) = &left_off
        && !import::take_over(state, &config, &client, &checkpoint, stop).await?
    {
        return Ok(Exit::Done);
    }
    let start = config.start_time.unwrap_or_else(Utc::now);
    let (run, is_first) = checkpoint.daemon_run(client.cluster(), || start.timestamp() * 1000)?;
    let imported = checkpoint.imported()?;
    if new_position.is_none() {
        let imported_ms = imported.as_ref().map(|imported| imported.start_ms);
        say_where_it_starts(&config, &run, is_first, imported_ms)?;
    }
    let mut reading = reading(&config, run.from_ms);
    if let Some(imported) = imported {
        reading.sent = Sent::new(run.from_ms, imported.sent);
    }
    reading.exit_on_last_event = exit_on_last_event;
    if !dry_run {
        reading.lock.clone_from(&config.lock);
    }
    let stats = Arc::new(Stats::default());
    let elasticsearch = config.elasticsearch.clone();
    let mut transfer = Transfer {
        config,
        client,
        checkpoint: Arc::new(checkpoint),
        run,
        reading,
        stats: stats.clone(),
        reload: Some(reload),
    };
    let summary = if dry_run {
        match transfer.onto_stdout(stop.clone()).await? {
            Some(summary) => summary,
            None => return Ok(Exit::Done),
        }
    } else {
        let elasticsearch = elasticsearch.expect("the command needs it");
        let reached = reach_elasticsearch(&elasticsearch, Patience::Endless, stop).await?;
        let Some((client, _)) = reached else {
            return Ok(Exit::Done);
        };
        demand_template(&client, &elasticsearch).await?;
        let begin_ms = new_position.as_ref().map(NewPosition::to_ms);
        let begin_ms = begin_ms.unwrap_or(transfer.run.position_ms);
        let span = begin_ms..Utc::now().timestamp_millis();
        let patience = Patience::Endless;
        let first = first_to_write(&client, &elasticsearch, span, patience, stop).await?;
        // Not before it is known that these days may be written.
        if let Some(new_position) = new_position {
            new_position.take(&mut transfer)?;
        }
        if let Some(first_ms) = first {
            transfer.leave_out_before(first_ms)?;
        }
        let work = transfer.into_elasticsearch(client, stop.clone());
        beside(work, telemetry::report_each_minute(&stats)).await?
    };
    info!(
        events = Stats::get(&stats.events),
        created = Stats::get(&stats.created),
        safe_form = Stats::get(&stats.safe_form),
        already_there = Stats::get(&stats.already_there),
        dead_letters = Stats::get(&stats.dead_letters),
        "ended"
    );
    Ok(end(summary))
}

/// A run that was stopped has done its duty if everything in flight has settled.
fn end(summary: Summary) -> Exit {
    if summary.abandoned > 0 {
        Exit::Failed
    } else {
        Exit::Done
    }
}

/// The start time is fixed by the first start, and a gap that nobody sees must not come of it.
/// Where it was taken over from the event handler, that one's start is as good, and where somebody has
/// moved the position, so is what was configured then.
fn say_where_it_starts(
    config: &Config,
    run: &Run,
    is_first: bool,
    imported_ms: Option<i64>,
) -> Result<(), Failure> {
    let from = DateTime::from_timestamp_millis(run.from_ms)
        .unwrap_or_default()
        .to_rfc3339_opts(SecondsFormat::Secs, true);
    let fits = [Some(run.from_ms), run.start_ms, imported_ms];
    match config.start_time {
        None if is_first => warn!(
            start_time = from,
            "first start, and no start-time is set: events before this moment are not read; \
             `backfill` reads them"
        ),
        Some(_) if is_first => info!(start_time = from, "first start"),
        Some(asked) if !fits.contains(&Some(asked.timestamp() * 1000)) => {
            return Err(Failure::Usage(format!(
                "start-time is {} but this state has started from {from}; put that into the \
                 configuration. `start --rewind-to` or `--forward-to` moves where reading goes \
                 on, and `teleport-event-indexer backfill --from … --to …` reads other times",
                asked.to_rfc3339_opts(SecondsFormat::Secs, true)
            )));
        }
        _ => info!(start_time = from, "going on where the last run ended"),
    }
    Ok(())
}
