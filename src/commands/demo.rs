//! `demo`: the whole way on one machine with nothing else installed. A stand-in Auth Service hands
//! out invented events, a stand-in Elasticsearch (or a real one) takes them, and between the two
//! runs the real pipeline, over real sockets and TLS.
//!
//! The events are moved twice, the second time with a state of its own and, where both are
//! offered, by the other event API: every document is there already then, which proves that none
//! is missing and that an event's id does not depend on the way it came.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::checkpoint::Checkpoint;
use crate::cli::{Demo, DemoApi, DemoPart};
use crate::commands::backfill::show_progress;
use crate::commands::start::{company, watch};
use crate::commands::transfer::{
    Patience, Transfer, beside, reach_elasticsearch, reach_teleport, reading,
};
use crate::commands::{Exit, Failure, install};
use crate::config::keys::{self, Key};
use crate::config::sources::{self, FlagSetting};
use crate::config::{Config, HostUrl, Needs};
use crate::demo::auth::{AuthControl, AuthOptions, StandInAuth};
use crate::demo::certs::{Cluster, IdentityOptions};
use crate::demo::elastic::{ElasticsearchOptions, StandInElasticsearch};
use crate::demo::events::{self, Id};
use crate::output;
use crate::platform;
use crate::shutdown::Shutdown;
use crate::telemetry::Stats;

mod log;
mod proof;
mod setting;

use log::{Log, emit};
use setting::{Folder, INDEX_PREFIX, Setting};

/// The invented cluster.
const CLUSTER: &str = "demo.example.com";

/// The same events at every run, but for their times.
const SEED: u64 = 7;

/// How often a stand-in that stays has something new, and how much.
const LIVE_EVERY: Duration = Duration::from_millis(500);
const LIVE_EVENTS: u64 = 5;

/// A stand-in that stays renews its clients' identity this often; it holds for a day.
const RENEW_EVERY: Duration = Duration::from_secs(3600);

pub(super) async fn demo(demo: Demo, shutdown: &Shutdown) -> Result<Exit, Failure> {
    let stop = &shutdown.stop;
    let cluster = Cluster::new(CLUSTER)?;
    let to = Utc::now();
    let from = to - TimeDelta::days(i64::from(demo.days));
    let log = Log {
        n_events: demo.events,
        from,
        to,
    };
    let (elasticsearch, stay) = match &demo.part {
        DemoPart::AuthService {
            listen,
            identity_dir,
        } => {
            let options = AuthOptions {
                listen: *listen,
                ..AuthOptions::default()
            };
            return serve_auth(&cluster, options, &log, identity_dir, demo.api, stop).await;
        }
        DemoPart::Whole {
            elasticsearch,
            stay,
        } => (elasticsearch, *stay),
    };

    let folder = Folder::new()?;
    output::note(format_args!(
        "inventing {} events of {} days",
        log.n_events, demo.days
    ));
    let auth = StandInAuth::start(&cluster, AuthOptions::default()).await?;
    let mut emitted = log.n_events;
    let recorded = emit(auth.control(), log.values());
    cluster
        .identity(&IdentityOptions::default())?
        .write(&folder.identity())?;
    let stand_in = match elasticsearch {
        Some(_) => None,
        None => Some(StandInElasticsearch::start(folder.elasticsearch()).await?),
    };
    let url = match (elasticsearch, &stand_in) {
        (Some(url), _) => url.clone(),
        (None, Some(stand_in)) => HostUrl::parse(&stand_in.url())?,
        (None, None) => unreachable!("without a real one there is a stand-in"),
    };
    output::note(format_args!(
        "stand-in Auth Service   {} (mTLS, gRPC)",
        auth.address()
    ));
    let kind = if stand_in.is_some() {
        "stand-in Elasticsearch"
    } else {
        "Elasticsearch"
    };
    output::note(format_args!("{kind:<23} {url}"));

    let setting = Setting {
        folder: &folder,
        auth: &auth,
        url: &url,
        log: &log,
    };
    let passes = match demo.api {
        DemoApi::Export => [DemoApi::Export, DemoApi::Export],
        DemoApi::Search => [DemoApi::Search, DemoApi::Search],
        DemoApi::Both => [DemoApi::Export, DemoApi::Search],
    };
    let n_documents = emitted + recorded.documents();
    for (place, api) in passes.into_iter().enumerate() {
        auth.control().set_export(api == DemoApi::Export);
        let config = setting.config(place)?;
        if place == 0 {
            install_into(&config, stop).await?;
        }
        let Some(moved) = Box::pin(move_all(&config, api, true, stop)).await? else {
            return Ok(Exit::Failed);
        };
        let (created, already_there) = if place == 0 {
            (n_documents, 0)
        } else {
            (0, n_documents)
        };
        if (moved.created, moved.already_there) != (created, already_there) {
            return Err(Failure::Failed(anyhow::anyhow!(
                "{} documents created and {} there already, where {created} and {already_there} \
                 were expected",
                moved.created,
                moved.already_there
            )));
        }
    }
    let config = setting.config(0)?;
    proof::prove(&config, &log, n_documents).await?;
    output::note(format_args!(
        "every event that was emitted is there, once, as it was emitted: {emitted} of the log, {} of \
         {} session recordings ({} of what was on the screen left out), and a document about each \
         session",
        recorded.events, recorded.recordings, recorded.skipped
    ));

    if stay {
        auth.control().set_export(demo.api != DemoApi::Search);
        say_how_to_look(&folder, &url, stand_in.is_some(), &setting, true);
        let living = emit_live(auth.control(), stop, &mut emitted);
        Box::pin(beside(follow(&config, stop), living)).await?;
        output::note(format_args!("{emitted} events emitted in all"));
    } else {
        say_how_to_look(&folder, &url, stand_in.is_some(), &setting, false);
    }
    if let Some(stand_in) = stand_in {
        stand_in.stop().await;
    }
    auth.stop().await;
    Ok(Exit::Done)
}

async fn install_into(config: &Config, stop: &CancellationToken) -> Result<(), Failure> {
    let elasticsearch = config.elasticsearch.as_ref().expect("it was asked for");
    let reached = reach_elasticsearch(elasticsearch, Patience::None, stop).await?;
    let Some((client, server)) = reached else {
        return Ok(());
    };
    let mut settings = install::settings(elasticsearch);
    // One template for all demonstrations on this Elasticsearch.
    settings.index_wildcard = format!("{INDEX_PREFIX}*");
    let plan = install::plan(&client, server, &settings).await?;
    let send = async |request| install::send(&client, request).await;
    let report = |step: &_, outcome| output::note(format_args!("{step}: {outcome}"));
    plan.apply(send, false, report).await?;
    Ok(())
}

/// What a pass came to.
struct Moved {
    created: u64,
    already_there: u64,
}

/// Moves everything there is, once. `None`: stopped before the end.
async fn move_all(
    config: &Config,
    api: DemoApi,
    is_closed: bool,
    stop: &CancellationToken,
) -> Result<Option<Moved>, Failure> {
    let Some((client, _)) = reach_teleport(config, Patience::None, stop).await? else {
        return Ok(None);
    };
    let elasticsearch = config.elasticsearch.as_ref().expect("it was asked for");
    let reached = reach_elasticsearch(elasticsearch, Patience::None, stop).await?;
    let Some((sink, _)) = reached else {
        return Ok(None);
    };
    let checkpoint = Checkpoint::open(config.storage.as_ref().expect("it was asked for"))?;
    let start = config.start_time.expect("it was asked for");
    let (run, _) = checkpoint.daemon_run(client.cluster(), || start.timestamp() * 1000)?;
    let mut reading = reading(config, run.from_ms);
    reading.exit_on_last_event = is_closed;
    let stats = Arc::new(Stats::default());
    stats.position_ms.store(run.position_ms, Ordering::Relaxed);
    let began = Instant::now();
    let transfer = Transfer {
        config: config.clone(),
        client,
        checkpoint: Arc::new(checkpoint),
        run: run.clone(),
        reading,
        stats: stats.clone(),
        reload: None,
        lease: None,
    };
    let company = Box::pin(company(&transfer));
    let work = transfer.into_elasticsearch(sink, stop.clone());
    let summary = if is_closed {
        let bar = show_progress(
            stats.clone(),
            run,
            Utc::now().timestamp_millis(),
            "complete",
        );
        beside(work, bar).await?
    } else {
        let storage = config.storage.as_ref().expect("it was asked for");
        let (watching, page) = watch(config, storage, &stats).await?;
        if let Some(page) = page {
            output::note(format_args!("look:  {page} in a browser"));
        }
        Box::pin(beside(beside(work, company), watching)).await?
    };
    let settled = stats.settled();
    let seconds = began.elapsed().as_secs_f64();
    if is_closed && summary.complete {
        let way = if api == DemoApi::Export {
            "export"
        } else {
            "search"
        };
        output::note(format_args!(
            "by the {way} API: {} created, {} there already, {} dead letters, \
             {:.1} s, {:.0} events/s",
            Stats::get(&stats.created),
            Stats::get(&stats.already_there),
            Stats::get(&stats.dead_letters),
            seconds,
            settled as f64 / seconds,
        ));
    }
    let moved = Moved {
        created: Stats::get(&stats.created),
        already_there: Stats::get(&stats.already_there),
    };
    Ok((summary.complete || !is_closed).then_some(moved))
}

/// Follows the log until stopped.
async fn follow(config: &Config, stop: &CancellationToken) -> Result<(), Failure> {
    Box::pin(move_all(config, DemoApi::Both, false, stop))
        .await
        .map(drop)
}

/// Emits a few events twice a second until stopped.
async fn emit_live(control: &AuthControl, stop: &CancellationToken, emitted: &mut u64) {
    let mut last = Utc::now();
    let mut seed = SEED;
    let mut tick = tokio::time::interval(LIVE_EVERY);
    while crate::pipeline::unless_stopped(stop, tick.tick())
        .await
        .is_some()
    {
        let now = Utc::now();
        seed += 1;
        let live = events::generate(seed, LIVE_EVENTS, last, now, CLUSTER);
        emit(control, live);
        *emitted += LIVE_EVENTS;
        last = now;
    }
}

/// Serves the stand-in Auth Service alone, with a past and live events, until stopped.
async fn serve_auth(
    cluster: &Cluster,
    options: AuthOptions,
    log: &Log,
    identity_dir: &Path,
    api: DemoApi,
    stop: &CancellationToken,
) -> Result<Exit, Failure> {
    let auth = StandInAuth::start(cluster, options).await?;
    auth.control().set_export(api != DemoApi::Search);
    emit(auth.control(), log.values());
    let identity = identity_dir.join("identity");
    // Last, since whoever waits for the server waits for this file.
    cluster
        .identity(&IdentityOptions::default())?
        .write(&identity)?;
    output::note(format_args!(
        "stand-in Auth Service on {}, identity in {}, {} events and more to come",
        auth.address(),
        identity.display(),
        log.n_events
    ));
    let renewing = async {
        loop {
            tokio::time::sleep(RENEW_EVERY).await;
            let renewed = cluster
                .identity(&IdentityOptions::default())
                .and_then(|fresh| fresh.write(&identity));
            if let Err(failed) = renewed {
                tracing::error!("cannot renew the identity: {}", output::Chain(&failed));
            }
        }
    };
    let mut emitted = log.n_events;
    beside(emit_live(auth.control(), stop, &mut emitted), renewing).await;
    auth.stop().await;
    Ok(Exit::Done)
}

fn say_how_to_look(
    folder: &Folder,
    url: &HostUrl,
    is_stand_in: bool,
    setting: &Setting<'_>,
    stays: bool,
) {
    let state = folder.state(0);
    output::note(format_args!(
        "state: teleport-event-indexer status --storage {}",
        state.display()
    ));
    let index = setting.index().replace("%Y.%m.%d", "*");
    if stays || !is_stand_in {
        output::note(format_args!(
            "look:  curl '{url}{index}/_search?size=3&pretty'"
        ));
    }
    if is_stand_in {
        let file = folder.documents();
        output::note(format_args!(
            "look:  sqlite3 {} 'SELECT source FROM documents LIMIT 3'",
            file.display()
        ));
        if !stays {
            output::note("with --stay the servers go on, with live events, until Ctrl-C");
        }
    }
}
