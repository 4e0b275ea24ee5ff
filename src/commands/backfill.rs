//! `backfill`: the same pipeline over a closed range, once, with a checkpoint of its own.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use tokio::time::{Instant, sleep};
use tracing::warn;

use crate::checkpoint::{Checkpoint, Role, RoleLock, Run};
use crate::cli;
use crate::commands::old_days::first_to_write;
use crate::commands::status::{left_out_words, safe_form_words};
use crate::commands::transfer::{
    Patience, Transfer, beside, demand_template, reach_elasticsearch, reach_teleport, reading,
};
use crate::commands::{Exit, Failure};
use crate::config::{Config, EventFilter, SessionsConfig, TypeSet};
use crate::output::{self, Progress};
use crate::shutdown::Shutdown;
use crate::telemetry::Stats;

pub(super) async fn backfill(
    mut config: Config,
    range: cli::Backfill,
    shutdown: &Shutdown,
) -> Result<Exit, Failure> {
    let stop = &shutdown.stop;
    config.limits = config.backfill_limits;
    let now = Utc::now();
    let (from_ms, mut to_ms) = (range.from.timestamp() * 1000, range.to.timestamp() * 1000);
    if range.from >= now {
        return Err(Failure::Usage(format!(
            "--from {} lies in the future",
            range.from.to_rfc3339_opts(SecondsFormat::Secs, true)
        )));
    }
    if range.to > now {
        to_ms = now.timestamp() * 1000;
        warn!(
            "--to lies in the future, reading up to now; to go on after a stop, give `--to {}`",
            DateTime::from_timestamp_millis(to_ms)
                .unwrap_or_default()
                .to_rfc3339_opts(SecondsFormat::Secs, true)
        );
    }
    let storage = (!range.dry_run).then(|| config.storage.clone().expect("the command needs it"));
    let checkpoint = match &storage {
        Some(storage) => Checkpoint::open(storage)?,
        None => Checkpoint::open_in_memory()?,
    };
    let Some((client, _)) = reach_teleport(&config, Patience::None, stop).await? else {
        return Ok(Exit::Failed);
    };
    let filters = identity_with(config.sessions.as_ref(), identity_of(&config.filter));
    let role = Role::backfill(client.cluster(), from_ms, to_ms, &filters);
    let _lock = storage
        .map(|storage| RoleLock::acquire(&storage, &role))
        .transpose()?;
    let mut run = checkpoint.backfill_run(client.cluster(), from_ms, to_ms, &filters)?;
    if range.again {
        checkpoint.restart_run(run.id)?;
        run = checkpoint.run(run.id)?;
    }
    if run.finished {
        let summary = checkpoint.summary()?;
        let summary = summary.runs.iter().find(|summary| summary.id == run.id);
        if let Some(left_out) = summary.and_then(|run| left_out_words(&run.left_out)) {
            output::note(left_out);
        }
        output::note(format_args!(
            "this range is done: {} documents created, {} were there already; \
             `--again` reads it once more",
            run.counts.created, run.counts.already_there
        ));
        return Ok(Exit::Done);
    }
    let mut reading = reading(&config, from_ms);
    reading.to_ms = Some(to_ms);
    let stats = Arc::new(Stats::default());
    let checkpoint = Arc::new(checkpoint);
    let elasticsearch = config.elasticsearch.clone();
    let (id, before) = (run.id, run.counts);
    let bar = show_progress(stats.clone(), run.clone(), to_ms, "complete");
    let mut transfer = Transfer {
        config,
        client,
        checkpoint: checkpoint.clone(),
        run,
        reading,
        stats,
        reload: None,
        lease: None,
    };
    let stats = transfer.stats.clone();
    let summary = if range.dry_run {
        match transfer.onto_stdout(stop.clone()).await? {
            Some(summary) => summary,
            None => return Ok(Exit::Done),
        }
    } else {
        let elasticsearch = elasticsearch.expect("the command needs it");
        let reached = reach_elasticsearch(&elasticsearch, Patience::None, stop).await?;
        let Some((client, _)) = reached else {
            return Ok(Exit::Failed);
        };
        demand_template(&client, &elasticsearch).await?;
        let span = transfer.run.position_ms..to_ms;
        let first = first_to_write(&client, &elasticsearch, span, Patience::None, stop).await?;
        if let Some(first_ms) = first {
            transfer.leave_out_before(first_ms)?;
        }
        beside(transfer.into_elasticsearch(client, stop.clone()), bar).await?
    };
    if !summary.complete && range.dry_run {
        output::note("stopped before the end");
        return Ok(Exit::Failed);
    }
    if !summary.complete {
        output::note(format_args!(
            "stopped before the end, {} documents had not settled; \
             the same command goes on from there",
            summary.abandoned
        ));
        return Ok(Exit::Failed);
    }
    checkpoint.finish_run(id)?;
    // Of all processes that worked on it: one that was killed may have found them.
    let summary = checkpoint.summary()?;
    let run = summary.runs.iter().find(|run| run.id == id);
    let gaps = run.map_or(0, |run| run.gaps);
    if let Some(left_out) = run.and_then(|run| left_out_words(&run.left_out)) {
        output::note(left_out);
    }
    let dead_letters = before.dead_letters + Stats::get(&stats.dead_letters);
    output::note(format_args!(
        "done: {} documents created{}, {} were there already, {dead_letters} dead letters, \
         {gaps} gaps",
        before.created + Stats::get(&stats.created),
        safe_form_words(before.safe_form + Stats::get(&stats.safe_form)),
        before.already_there + Stats::get(&stats.already_there),
    ));
    Ok(if gaps + dead_letters > 0 {
        Exit::Failed
    } else {
        Exit::Done
    })
}

/// The filters as part of a backfill's identity.
pub(super) fn identity_of(filter: &EventFilter) -> String {
    if filter.admits_all() {
        return String::new();
    }
    format!(
        "types={};skip={}",
        list(&filter.types),
        list(&filter.skip_types)
    )
}

fn list(types: &TypeSet) -> String {
    types.names().collect::<Vec<_>>().join(",")
}

/// What of session recordings is left out by default. It is not in a backfill's identity, so this may
/// not change with the default.
const SKIPPED_BY_DEFAULT: &str = "desktop.recording,print";

/// The same with what is read of session recordings.
pub(super) fn identity_with(sessions: Option<&SessionsConfig>, filters: String) -> String {
    let part = match sessions {
        None => "sessions=false".to_owned(),
        Some(sessions) => {
            let skipped = list(&sessions.skip_types);
            if skipped == SKIPPED_BY_DEFAULT {
                return filters;
            }
            format!("skip-sessions={skipped}")
        }
    };
    if filters.is_empty() {
        return part;
    }
    format!("{filters};{part}")
}

/// Shows how far the run has come, and by `done` what that means, until it is dropped.
pub(super) async fn show_progress(stats: Arc<Stats>, run: Run, to_ms: i64, done: &'static str) {
    let mut progress = Progress::new();
    let began = Instant::now();
    loop {
        let position_ms = stats.position_ms.load(std::sync::atomic::Ordering::Relaxed);
        let position_ms = position_ms.max(run.position_ms);
        let span = (to_ms - run.from_ms).max(1);
        let thousandths = (position_ms - run.from_ms).max(0).saturating_mul(1000) / span;
        let settled = stats.settled();
        let rate = settled / began.elapsed().as_secs().max(1);
        let day = DateTime::from_timestamp_millis(position_ms).unwrap_or_default();
        progress.show(
            u64::try_from(thousandths).unwrap_or(0),
            format_args!(
                "{settled} documents, {rate}/s, {done} up to {}",
                day.format("%F %T")
            ),
        );
        sleep(Duration::from_millis(200)).await;
    }
}
