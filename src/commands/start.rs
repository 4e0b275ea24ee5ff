//! `start`: follows the audit log for ever.

pub(super) mod clusters;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::Utc;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::checkpoint::{Checkpoint, Role, RoleLock, Run};
use crate::cli::{MovePosition, Start};
use crate::commands::lead::Led;
use crate::commands::new_position::NewPosition;
use crate::commands::old_days::first_to_write;
use crate::commands::room::Room;
use crate::commands::status::{identity_value, time};
use crate::commands::transfer::{
    Patience, Transfer, beside, demand_template, reach_elasticsearch, reach_teleport, reading,
};
use crate::commands::{Exit, Failure, import, lead};
use crate::config::{Config, ListenConfig, StateHome};
use crate::elastic;
use crate::observer::{Identity, InMemory, ListenError, Observer, Observers, Place, Server, newer};
use crate::output::Chain;
use crate::pipeline::Summary;
use crate::shutdown::{Reload, Shutdown};
use crate::telemetry::{self, Stats};
use crate::teleport::audit_log::Sent;
use crate::teleport::identity::Credentials;

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
    let reload = Reload::on_signal("the credentials")?;
    let stats = Arc::new(Stats::default());
    let order = Order {
        exit_on_last_event,
        dry_run,
        import_state,
        new_position,
        led: None,
    };
    if config.state != StateHome::Sqlite && !dry_run {
        let shown = InMemory::default();
        let place = Place::InMemory(shown.clone());
        let observers = Observers::of_one(observe(None, &config, place, &stats));
        let (watching, _) = show(config.listen.as_ref(), observers).await?;
        let with = (reload, Room::for_one(&config));
        let work = lead::lead(config, stats, shown, with, order, stop);
        return beside(Box::pin(work), watching).await;
    }
    let (checkpoint, _lock) = open(&config, dry_run)?;
    if let (None, Some(storage), false) = (&config.cluster, &config.storage, dry_run) {
        clusters::tell_of_left_states(storage, &[]);
    }
    let watching = match &config.storage {
        Some(storage) if !dry_run => Some(watch(&config, storage, &stats).await?.0),
        _ => None,
    };
    let room = Room::for_one(&config);
    let work = Box::pin(follow(
        config,
        Arc::new(checkpoint),
        stats,
        reload,
        room,
        order,
        stop,
    ));
    match watching {
        Some(watching) => beside(work, watching).await,
        None => work.await,
    }
}

/// The state file, and its lock, which is to be held until the end: whoever comes second learns who
/// holds it.
fn open(config: &Config, dry_run: bool) -> Result<(Checkpoint, Option<RoleLock>), Failure> {
    if dry_run {
        return Ok((Checkpoint::open_in_memory()?, None));
    }
    let storage = config.storage.as_ref().expect("the command needs it");
    let checkpoint = Checkpoint::open(storage)?;
    let lock = RoleLock::acquire(storage, &Role::Daemon)?;
    Ok((checkpoint, Some(lock)))
}

/// What the command line asks for.
pub(super) struct Order {
    pub(super) exit_on_last_event: bool,
    dry_run: bool,
    import_state: Option<PathBuf>,
    new_position: Option<MovePosition>,
    /// Under what it runs, if there may be others.
    pub(super) led: Option<Led>,
}

impl Order {
    /// To go on where the state stands.
    pub(super) fn only(exit_on_last_event: bool) -> Self {
        Self {
            exit_on_last_event,
            dry_run: false,
            import_state: None,
            new_position: None,
            led: None,
        }
    }

    /// Whether it is about where to go on.
    pub(super) fn moves(&self) -> bool {
        self.new_position.is_some()
    }
}

/// Follows one cluster until it is told to stop, or comes to what will not pass by itself.
pub(super) async fn follow(
    config: Config,
    checkpoint: Arc<Checkpoint>,
    stats: Arc<Stats>,
    reload: Reload,
    room: Room,
    order: Order,
    stop: &CancellationToken,
) -> Result<Exit, Failure> {
    let Order {
        exit_on_last_event,
        dry_run,
        import_state,
        new_position,
        led,
    } = order;
    let left_off = import_state.map(|directory| import::read(&directory, &config, &checkpoint));
    let left_off = left_off.transpose()?.flatten();
    let new_position = new_position.map(|order| NewPosition::of(order, &checkpoint, Utc::now()));
    let new_position = new_position.transpose()?;
    let Some((client, _)) =
        reach_teleport(&config, Patience::Endless(&stats.teleport), stop).await?
    else {
        return Ok(Exit::Done);
    };
    if let Some(state) = &left_off
        && !import::take_over(state, &config, &client, &checkpoint, &stats.teleport, stop).await?
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
    stats.position_ms.store(run.position_ms, Ordering::Relaxed);
    let mut reading = reading(&config, run.from_ms);
    if let Some(imported) = imported {
        reading.sent = Sent::new(run.from_ms, imported.sent);
    }
    reading.exit_on_last_event = exit_on_last_event;
    if !dry_run {
        reading.lock.clone_from(&config.lock);
    }
    let elasticsearch = config.elasticsearch.clone();
    let mut transfer = Transfer {
        config,
        client,
        checkpoint,
        run,
        reading,
        stats: stats.clone(),
        reload: Some(reload),
        lease: led.as_ref().map(|led| led.lease.clone()),
    };
    let summary = if dry_run {
        match transfer.onto_stdout(stop.clone()).await? {
            Some(summary) => summary,
            None => return Ok(Exit::Done),
        }
    } else {
        let elasticsearch = elasticsearch.expect("the command needs it");
        let patience = Patience::Endless(&stats.elasticsearch);
        let reached = reach_elasticsearch(&elasticsearch, patience, stop).await?;
        let Some((client, _)) = reached else {
            return Ok(Exit::Done);
        };
        demand_template(&client, &elasticsearch).await?;
        let begin_ms = new_position.as_ref().map(NewPosition::to_ms);
        let begin_ms = begin_ms.unwrap_or(transfer.run.position_ms);
        let span = begin_ms..Utc::now().timestamp_millis();
        let first = first_to_write(&client, &elasticsearch, span, patience, stop).await?;
        // Not before it is known that these days may be written.
        if let Some(new_position) = new_position {
            new_position.take(&mut transfer)?;
            let position_ms = transfer.run.position_ms;
            stats.position_ms.store(position_ms, Ordering::Relaxed);
        }
        if let Some(first_ms) = first {
            transfer.leave_out_before(first_ms)?;
        }
        let company = Box::pin(company(&transfer));
        let stop = stop.clone();
        match led {
            None => {
                let work = transfer.into_sink(room, client, |bulk| bulk, stop);
                beside(work, company).await?
            }
            Some(Led { lease, letters }) => {
                let sink = |bulk| elastic::led::Led {
                    bulk,
                    lease,
                    letters,
                };
                let work = transfer.into_sink(room, client, sink, stop);
                beside(work, company).await?
            }
        }
    };
    say_ended(&stats);
    Ok(end(summary))
}

/// The last line of a run.
fn say_ended(stats: &Stats) {
    info!(
        events = Stats::get(&stats.events),
        created = Stats::get(&stats.created),
        safe_form = Stats::get(&stats.safe_form),
        already_there = Stats::get(&stats.already_there),
        dead_letters = Stats::get(&stats.dead_letters),
        "ended"
    );
}

/// What goes on beside a run that follows the log: its line each minute, and the question whether
/// Teleport has newer events where nothing moves.
pub(super) fn company(transfer: &Transfer) -> impl Future<Output = ()> + use<> {
    let (stats, client) = (transfer.stats.clone(), transfer.client.clone());
    let types = transfer.reading.types.clone();
    let namespace = transfer.config.namespace.clone();
    let still_after = stalled_after(&transfer.config);
    async move {
        let newest_since = async |from_ms| {
            let newest = client.newest_since(&namespace, from_ms, &types).await;
            newest.map_err(|failed| (failed.reason(), Chain(&failed).to_string()))
        };
        let asking = newer::ask_when_still(&stats, still_after, newest_since);
        tokio::join!(asking, telemetry::report_each_minute(&stats));
    }
}

/// A quiet log moves with each look at its end.
fn stalled_after(config: &Config) -> Duration {
    config.stalled_after.max(config.poll_interval * 3)
}

/// What watches the run, and shows it to whoever asks; and where.
pub(super) async fn watch(
    config: &Config,
    storage: &Path,
    stats: &Arc<Stats>,
) -> Result<(impl Future<Output = ()> + use<>, Option<String>), Failure> {
    let place = Place::Storage(storage.to_owned());
    let observers = Observers::of_one(observe(None, config, place, stats));
    show(config.listen.as_ref(), observers).await
}

/// What watches one run: that of the cluster of this name, if there are several.
fn observe(
    cluster: Option<&str>,
    config: &Config,
    place: Place,
    stats: &Arc<Stats>,
) -> Arc<Observer> {
    let listen = config.listen.as_ref();
    let shows_payloads = listen.is_some_and(|listen| listen.shows_payloads);
    Observer::new(
        cluster.map(str::to_owned),
        stats.clone(),
        place,
        stalled_after(config),
        shows_payloads,
        identity(config),
    )
}

/// Shows what is watched to whoever asks; and where.
async fn show(
    listen: Option<&ListenConfig>,
    observers: Arc<Observers>,
) -> Result<(impl Future<Output = ()> + use<>, Option<String>), Failure> {
    let server = match listen {
        None => None,
        Some(listen) => match Server::bind(listen, observers.clone()).await {
            Ok(server) => Some(server),
            // Another program may have it, and events matter more.
            Err(taken @ ListenError::Address { .. }) if listen.is_default => {
                warn!("going on without a status page: {}", Chain(&taken));
                None
            }
            Err(unusable @ ListenError::Certificate(_)) => {
                return Err(Failure::Unusable(unusable.into()));
            }
            Err(failed) => return Err(failed.into()),
        },
    };
    let url = server.as_ref().map(Server::url);
    let watching = async move {
        // Dropped with the rest.
        let mut serving = JoinSet::new();
        if let Some(server) = server {
            serving.spawn(server.serve());
        }
        observers.watch().await;
    };
    Ok((watching, url))
}

fn identity(config: &Config) -> Identity {
    let paths = config.teleport.as_ref().map(|t| t.credentials.clone());
    Identity(Box::new(move || match &paths {
        Some(paths) => identity_value(&Credentials::load(paths)),
        None => Value::Null,
    }))
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
    let from = time(run.from_ms);
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
                time(asked.timestamp_millis())
            )));
        }
        _ => info!(start_time = from, "going on where the last run ended"),
    }
    Ok(())
}
