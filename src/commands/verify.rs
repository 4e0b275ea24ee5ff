//! `verify`: whether Elasticsearch has every event of a closed range, by document id.
//!
//! It is a backfill with another sink: what is read, what filters leave out, what makes a document
//! and which id and index that has are the pipeline's own doing. Where a backfill sends a batch,
//! this asks which of its documents are there ([`Lookup`]). At the end whatever was missing is asked
//! for once more, since a daemon may have brought it meanwhile.
//!
//! Without `--refill` nothing is written anywhere: the plan of what to read lies in a temporary
//! state file. With it, what is missing goes through the pipeline's own delivery, and the plan,
//! gaps and dead letters lie in the state file, under a run of its own that begins anew each time.

mod comparison;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::Utc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::comparison::Comparison;
use self::report::Report;
use crate::checkpoint::tally::{MissingDocument, Tally, day_of};
use crate::checkpoint::{
    Checkpoint, CheckpointError, DeadLetterFilter, Kept, PagePlace, Role, RoleLock, RunId, RunKind,
    UNCONVERTIBLE,
};
use crate::cli;
use crate::commands::backfill::{identity_of, show_progress};
use crate::commands::old_days::first_to_write;
use crate::commands::room::Room;
use crate::commands::status::time;
use crate::commands::transfer::{
    Patience, Transfer, beside, demand_template, reach_elasticsearch, reach_teleport, reading,
};
use crate::commands::{Exit, Failure};
use crate::config::{Config, ElasticsearchConfig, EventFilter};
use crate::document::DocumentId;
use crate::elastic::bulk::Bulk;
use crate::elastic::lookup::{GIVE_READ, Lookup, LookupError};
use crate::output::{self, Chain};
use crate::pipeline::delivery::Fault;
use crate::pipeline::retry::Backoff;
use crate::pipeline::unless_stopped;
use crate::shutdown::Shutdown;
use crate::telemetry::Stats;

/// Missing documents that are asked for again at once.
const PAGE: u32 = 5_000;

/// Bytes of events without a document that are in memory at once, beyond one.
const LETTER_BYTES: u64 = 1 << 20;

/// The first and the longest pause before Elasticsearch is asked again.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

pub(super) async fn verify(
    mut config: Config,
    range: cli::Verify,
    shutdown: &Shutdown,
) -> Result<Exit, Failure> {
    config.limits = config.backfill_limits;
    let (from_ms, mut to_ms) = (range.from.timestamp() * 1000, range.to.timestamp() * 1000);
    let now_ms = Utc::now().timestamp() * 1000;
    if from_ms >= now_ms {
        return Err(Failure::Usage(format!(
            "--from {} lies in the future",
            time(from_ms)
        )));
    }
    if to_ms > now_ms {
        to_ms = now_ms;
        warn!("--to lies in the future, comparing up to {}", time(to_ms));
    }
    // Dropped at any point, it leaves nothing that the next one would stumble over.
    let comparing = Box::pin(compare(config, from_ms, to_ms, range.refill));
    let Some(compared) = unless_stopped(&shutdown.stop, comparing).await else {
        output::note("stopped before the end, so this proves nothing");
        return Ok(Exit::Failed);
    };
    let (compared, report) = compared?;
    if range.json {
        let value = report.value(from_ms, to_ms);
        output::data(serde_json::to_string_pretty(&value)?)?;
    } else {
        output::data(report.table())?;
    }
    compared.conclude(&report)?;
    Ok(if report.is_complete() {
        Exit::Done
    } else {
        Exit::Failed
    })
}

/// What was compared.
struct Compared {
    from_ms: i64,
    to_ms: i64,
    is_refill: bool,
    filter: EventFilter,
    lookup: Arc<Lookup>,
    tally: Arc<Tally>,
    /// Where the plan lies.
    checkpoint: Arc<Checkpoint>,
    run: RunId,
    /// The state file, if there is one. With `--refill` the plan lies there.
    state: Option<Arc<Checkpoint>>,
    _lock: Option<RoleLock>,
}

async fn compare(
    config: Config,
    from_ms: i64,
    to_ms: i64,
    is_refill: bool,
) -> Result<(Compared, Report), Failure> {
    // Whoever stops this drops it.
    let stop = CancellationToken::new();
    const NOBODY: &str = "nobody stops it";
    let elasticsearch = config.elasticsearch.clone();
    let elasticsearch = elasticsearch.expect("the command needs it");
    let (client, _) = reach_teleport(&config, Patience::None, &stop)
        .await?
        .expect(NOBODY);
    let lookup = Arc::new(reader(&elasticsearch, &stop).await?);
    let (refill, first_to_write) = match is_refill {
        true => {
            let writer = writer(&config, &elasticsearch, from_ms..to_ms, &stop);
            let (writer, first_to_write) = writer.await?;
            (Some(writer), first_to_write)
        }
        false => (None, None),
    };
    let mut filters = identity_of(&config.filter);
    let (state, checkpoint, lock) = if is_refill {
        let storage = config.storage.as_ref().expect("the command needs it");
        filters = match filters.as_str() {
            "" => "refill".to_owned(),
            filters => format!("refill;{filters}"),
        };
        let state = Arc::new(Checkpoint::open(storage)?);
        let role = Role::backfill(client.cluster(), from_ms, to_ms, &filters);
        let lock = RoleLock::acquire(storage, &role)?;
        (Some(state.clone()), state, Some(lock))
    } else {
        let state = match &config.storage {
            Some(storage) => Checkpoint::open_existing_read_only(storage)?,
            None => None,
        };
        let plan = Arc::new(Checkpoint::open_temporary()?);
        (state.map(Arc::new), plan, None)
    };
    let mut run = checkpoint.backfill_run(client.cluster(), from_ms, to_ms, &filters)?;
    checkpoint.restart_run(run.id)?;
    run = checkpoint.run(run.id)?;
    let compared = Compared {
        from_ms,
        to_ms,
        is_refill,
        filter: config.filter.clone(),
        lookup,
        tally: Arc::new(Tally::new()?),
        checkpoint: checkpoint.clone(),
        run: run.id,
        state,
        _lock: lock,
    };
    let (end, given_up) = (Arc::new(Mutex::new(None)), CancellationToken::new());
    let sink = Comparison {
        lookup: compared.lookup.clone(),
        tally: compared.tally.clone(),
        refill,
        end: end.clone(),
        given_up: given_up.clone(),
    };
    let mut reading = reading(&config, from_ms);
    reading.to_ms = Some(to_ms);
    reading.sessions = None;
    let stats = Arc::new(Stats::default());
    let bar = show_progress(stats.clone(), run.clone(), to_ms, "compared");
    let mut transfer = Transfer {
        config,
        client,
        checkpoint,
        run,
        reading,
        stats,
        reload: None,
        lease: None,
    };
    // What would not be kept is not missed.
    if let Some(first_ms) = first_to_write {
        transfer.leave_out_before(first_ms)?;
    }
    let through = beside(transfer.through(sink, stop), bar);
    match unless_stopped(&given_up, Box::pin(through)).await {
        Some(summary) => assert!(summary?.complete, "{NOBODY}"),
        None => {
            let why = end.lock().unwrap_or_else(PoisonError::into_inner).take();
            return Err(Failure::Failed(why.expect("it was set before")));
        }
    }
    compared.checkpoint.finish_run(compared.run)?;
    let report = compared.report().await?;
    Ok((compared, report))
}

/// Who looks for documents.
async fn reader(config: &ElasticsearchConfig, stop: &CancellationToken) -> Result<Lookup, Failure> {
    let mut config = config.clone();
    let verifier = config.verifier_auth.take();
    let has_own_key = verifier.is_some();
    if verifier.is_some() {
        (config.auth, config.auth_file) = (verifier, None);
    }
    let reached = reach_elasticsearch(&config, Patience::None, stop).await;
    let reached = reached.map_err(|failure| match failure {
        Failure::Failed(error) if has_own_key => {
            Failure::Failed(error.context("cannot log in with verifier-api-key"))
        }
        other => other,
    });
    let (client, _) = reached?.expect("nobody stops it");
    let indices = config.index.wildcard();
    // If nobody tells, it shows at the first look.
    if client.lacks_read(&indices).await.unwrap_or(false) {
        return Err(Failure::Failed(
            LookupError::Denied(Fault {
                what: format!(
                    "the credentials for {} lack the privilege `read` on {indices}",
                    client.address()
                ),
                mend: GIVE_READ.to_owned(),
                ..Fault::default()
            })
            .into(),
        ));
    }
    Ok(Lookup::new(client))
}

/// Who sends what is missing, and from when on that may be sent.
async fn writer(
    config: &Config,
    elasticsearch: &ElasticsearchConfig,
    span: Range<i64>,
    stop: &CancellationToken,
) -> Result<(Bulk, Option<i64>), Failure> {
    let reached = reach_elasticsearch(elasticsearch, Patience::None, stop).await?;
    let (client, _) = reached.expect("nobody stops it");
    demand_template(&client, elasticsearch).await?;
    let first = first_to_write(&client, elasticsearch, span, Patience::None, stop).await?;
    let gzip = elasticsearch.gzip.unwrap_or(!client.is_local());
    let bytes = Room::for_one(config).bytes();
    Ok((Bulk::new(client, gzip, bytes), first))
}

impl Compared {
    /// Asks for whatever was missing once more, and adds what the state file knows of the rest.
    async fn report(&self) -> Result<Report, Failure> {
        let mut gaps = self.checkpoint.open_gaps(self.run, false)?;
        // Of an event that came and makes no document the dead letter tells.
        gaps.retain(|gap| gap.dead_letter.is_none());
        let mut report = Report::new(self.tally.events(), self.is_refill, gaps);
        let known_gaps = match &self.state {
            Some(state) => state.open_gaps_within(self.from_ms, self.to_ms)?,
            None => Vec::new(),
        };
        let mut last = 0;
        loop {
            let page = self.tally.missing_after(last, PAGE)?;
            let Some(end) = page.last() else { break };
            last = end.number;
            let is_found = self.found(&page).await?;
            let (found, missing): (Vec<_>, Vec<_>) =
                page.into_iter().partition(|d| is_found.contains(&d.id));
            self.settle_dead_letters(&found)?;
            for document in found {
                let day = day_of(document.id.time_ms());
                report.row(Some(day), document.event_type).refilled += 1;
            }
            let kept = self.whereabouts(missing.iter().map(|d| (d.id.as_str(), &*d.index_name)))?;
            for (document, kept) in missing.into_iter().zip(kept) {
                let time_ms = document.id.time_ms();
                let mut gaps = known_gaps.iter();
                let is_in_gap = gaps.any(|gap| (gap.from_ms..gap.to_ms).contains(&time_ms));
                let row = report.row(Some(day_of(time_ms)), document.event_type);
                row.miss(kept, is_in_gap);
            }
        }
        self.add_unconverted(&mut report)?;
        Ok(report)
    }

    /// Those of the documents that are there by now.
    async fn found(&self, documents: &[MissingDocument]) -> Result<BTreeSet<DocumentId>, Failure> {
        let mut by_index: BTreeMap<&str, Vec<DocumentId>> = BTreeMap::new();
        for document in documents {
            let ids = by_index.entry(&document.index_name).or_default();
            ids.push(document.id);
        }
        let mut there = BTreeSet::new();
        for (index_name, ids) in by_index {
            let texts: Vec<&str> = ids.iter().map(DocumentId::as_str).collect();
            let mut backoff = Backoff::new(RETRY.0, RETRY.1);
            let is_found = loop {
                match self.lookup.found(index_name, &texts).await {
                    Ok(is_found) => break is_found,
                    Err(failed @ LookupError::Transient(_)) => {
                        let pause = backoff.failed().wait;
                        let mend = &failed.fault().mend;
                        warn!(?pause, mend, "trying again: {}", Chain(&failed));
                        sleep(pause).await;
                    }
                    Err(denied) => return Err(denied.into()),
                }
            };
            let found = ids.into_iter().zip(is_found);
            there.extend(found.filter(|(_, is_found)| *is_found).map(|(id, _)| id));
        }
        Ok(there)
    }

    /// A document that has been stored after all is no dead letter any more.
    fn settle_dead_letters(&self, found: &[MissingDocument]) -> Result<(), CheckpointError> {
        match &self.state {
            Some(state) if self.is_refill => {
                let keys = found.iter();
                state.settle_dead_letters(keys.map(|d| (d.id.as_str(), d.index_name.as_str())))
            }
            _ => Ok(()),
        }
    }

    fn whereabouts<'a>(
        &self,
        documents: impl ExactSizeIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Vec<Option<Kept>>, CheckpointError> {
        match &self.state {
            Some(state) => state.whereabouts(documents),
            None => Ok(vec![None; documents.len()]),
        }
    }

    /// Events of which no document can be made never came to the sink. They lie among the dead
    /// letters of this run.
    fn add_unconverted(&self, report: &mut Report) -> Result<(), CheckpointError> {
        let filter = DeadLetterFilter {
            error_type: Some(UNCONVERTIBLE.to_owned()),
            ..DeadLetterFilter::default()
        };
        let range = self.from_ms..self.to_ms;
        let mut place = Some(PagePlace::default());
        while let Some(from) = place {
            let page = self
                .checkpoint
                .dead_letter_page(&filter, from, LETTER_BYTES)?;
            place = page.next;
            for (run, letter) in page.letters {
                let is_in_range = letter.time_ms.is_none_or(|ms| range.contains(&ms));
                let is_wanted = self.filter.admits(letter.event_type.as_bytes());
                if run != self.run || !is_in_range || !is_wanted {
                    continue;
                }
                let key = (letter.document_id.as_str(), letter.index_name.as_str());
                let kept = self.whereabouts(std::iter::once(key))?;
                let row = report.row(letter.time_ms.map(day_of), letter.event_type);
                row.events += 1;
                row.miss(kept.into_iter().next().flatten(), false);
            }
        }
        Ok(())
    }

    /// Says in a line or two what came out, and what to do about it.
    fn conclude(&self, report: &Report) -> Result<(), CheckpointError> {
        let total = report.total();
        let refilled = match total.refilled {
            refilled if refilled > 0 && self.is_refill => format!(", {refilled} of them refilled"),
            _ => String::new(),
        };
        let compared = format!("{} events compared{refilled}", total.events);
        if report.is_complete() {
            output::note(format_args!("nothing is missing: {compared}"));
            return Ok(());
        }
        let explained = match total.explained() {
            explained if explained.is_empty() => explained,
            explained => format!(" ({explained})"),
        };
        output::note(format_args!(
            "{} are missing{explained}: {compared}",
            total.missing
        ));
        if !report.gaps.is_empty() {
            output::note(format_args!(
                "{} spans cannot be read from Teleport, so nobody knows what is missing there",
                report.gaps.len()
            ));
        }
        if !self.is_refill && total.missing > total.dead_letters + total.waiting {
            output::note("hint: --refill sends what is missing");
        }
        if total.dead_letters > 0 {
            output::note(
                "hint: `dead-letters list` tells why documents were refused, `dead-letters retry` \
                 sends them again",
            );
        }
        if total.waiting > 0 {
            output::note("hint: `status` names the blocked indices; open them");
        }
        if let Some(state) = &self.state {
            let runs = state.summary()?.runs;
            let daemon = runs.into_iter().find(|run| run.kind == RunKind::Daemon);
            if let Some(daemon) = daemon.filter(|daemon| daemon.position_ms < self.to_ms) {
                output::note(format_args!(
                    "note: the daemon is complete up to {}; what lies behind may be on its way",
                    time(daemon.position_ms)
                ));
            }
        }
        Ok(())
    }
}
