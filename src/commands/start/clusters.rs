//! `start` for several clusters: a run for each, all into one Elasticsearch.
//!
//! Each has its own state, credentials and position, and comes to nothing that would stop another:
//! what ends a run for good ends a process that follows one cluster, and here that run alone. It
//! is told loudly and begins anew after a pause, as most of what ends a run is mended outside:
//! an identity, a full disk, a template.
//!
//! All runs are polled by one task, so that the watchdog sees if any of them hangs.

use std::any::Any;
use std::collections::BTreeMap;
use std::fs;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, error_span, warn};

use super::{Order, follow, observe, open, say_ended, show};
use crate::checkpoint::{Checkpoint, Role, RoleLock, Summary};
use crate::cli::Start;
use crate::commands::lead;
use crate::commands::room::Room;
use crate::commands::transfer::beside;
use crate::commands::{Exit, Failure};
use crate::config::clusters::CLUSTER_FLAG;
use crate::config::{Config, StateHome};
use crate::observer::{InMemory, Observer, Observers, Place};
use crate::pipeline::retry::Backoff;
use crate::pipeline::unless_stopped;
use crate::shutdown::{Reload, Shutdown};
use crate::telemetry::Stats;

/// A run that ends is begun anew after about this, and twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(5);

/// The longest pause: so often it is told, and so long a mended fault may go unnoticed.
const LONGEST_PAUSE: Duration = Duration::from_mins(5);

/// A run that has lasted for so long was well: what ends it is new.
const WELL_AFTER: Duration = Duration::from_mins(10);

pub(in crate::commands) async fn start(
    configs: Vec<Config>,
    options: Start,
    shutdown: &Shutdown,
) -> Result<Exit, Failure> {
    let first = configs.first().expect("there is a table");
    refuse_what_is_about_one(&options)?;
    let _lock = match first.state {
        StateHome::Sqlite => Some(take_storage(&configs)?),
        StateHome::Elasticsearch => None,
    };
    let reload = Reload::on_signal("the credentials")?;
    let room = Room::for_several(&configs);
    let listen = first.listen.clone();
    let states = States::default();
    let clusters: Vec<Cluster> = configs
        .into_iter()
        .map(|config| {
            let exit_on_last_event = options.exit_on_last_event;
            Cluster::new(config, &reload, &room, &states, exit_on_last_event)
        })
        .collect();
    let observers = clusters.iter().map(|cluster| cluster.observer.clone());
    let observers = Observers::of_clusters(observers.collect());
    let (watching, _) = show(listen.as_ref(), observers).await?;
    let stop = &shutdown.stop;
    let mut runs: FuturesUnordered<_> = clusters
        .into_iter()
        .map(|cluster| {
            // Of the highest level, so that it is there at whatever level the log has.
            let span = error_span!("follow", cluster = %cluster.name);
            Box::pin(cluster.follow_on(stop).instrument(span))
        })
        .collect();
    let work = async {
        let mut worst = Exit::Done;
        while let Some(exit) = runs.next().await {
            worst = worst.max(exit);
        }
        worst
    };
    Ok(beside(work, watching).await)
}

/// These would do to each cluster what somebody wants of one.
fn refuse_what_is_about_one(options: &Start) -> Result<(), Failure> {
    let flag = match options {
        Start { dry_run: true, .. } => "--dry-run",
        Start {
            import_state: Some(_),
            ..
        } => "--import-state",
        Start {
            new_position: Some(order),
            ..
        } => order.way.flag(),
        _ => return Ok(()),
    };
    Err(Failure::Usage(format!(
        "{flag} is about one cluster, and the configuration file has several: choose it with \
         {CLUSTER_FLAG}"
    )))
}

/// The directory above those of all clusters.
fn take_storage(configs: &[Config]) -> Result<RoleLock, Failure> {
    let first = configs.first().expect("there is a table");
    let above = first.storage.as_deref().and_then(Path::parent);
    let above = above.expect("the command needs it");
    refuse_state_of_one(above)?;
    // Else a second process would try in vain for ever. It says who is there, too, while a run waits to
    // begin anew and has no lock.
    let lock = RoleLock::acquire(above, &Role::Daemon)?;
    tell_of_left_states(above, configs);
    Ok(lock)
}

/// The position of a cluster that was alone before would be forgotten without a word.
fn refuse_state_of_one(above: &Path) -> Result<(), Failure> {
    if Checkpoint::open_existing_read_only(above)?.is_none() {
        return Ok(());
    }
    let above = above.display();
    Err(Failure::Usage(format!(
        "{above} holds the state of a time with one cluster, and each of several has a directory \
         of its own: move all files in {above} into {above}/NAME, NAME being the table [[cluster]] \
         of that cluster, or elsewhere if it is not wanted"
    )))
}

/// A table that was renamed, or taken out, leaves a state behind that nobody goes on with.
pub(super) fn tell_of_left_states(above: &Path, followed: &[Config]) {
    let directories = fs::read_dir(above).into_iter().flatten().flatten();
    for directory in directories.map(|entry| entry.path()) {
        let is_followed = |config: &Config| config.storage.as_deref() == Some(&directory);
        if !directory.is_dir() || followed.iter().any(is_followed) {
            continue;
        }
        let left = Checkpoint::open_existing_read_only(&directory)
            .ok()
            .flatten();
        if let Some(Summary {
            cluster: Some(cluster),
            ..
        }) = left.and_then(|left| left.summary().ok())
        {
            warn!(
                cluster,
                mend = "if its table was renamed, stop, and give the directory the table's name; if \
                        there are no tables any more, move its files one up; else take it away",
                "{} holds the state of a cluster that is not followed",
                directory.display()
            );
        }
    }
}

/// The names of the states in Elasticsearch, by cluster. Two with one name are a mistake of the
/// configuration, but credentials that came only later were not known then.
#[derive(Clone, Default)]
struct States(Arc<Mutex<BTreeMap<String, String>>>);

impl States {
    /// Takes a name for a cluster, unless another one has it.
    fn take(&self, cluster: &str, name: String) -> Result<(), Failure> {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_taken = |(other, taken): &(&String, &String)| *other != cluster && **taken == name;
        if let Some((other, _)) = names.iter().find(is_taken) {
            return Err(Failure::Usage(format!(
                "the clusters {other} and {cluster} would have one state: {name}, to which the \
                 credentials of one of them lead; mend these, or give one a state-name"
            )));
        }
        names.insert(cluster.to_owned(), name);
        Ok(())
    }
}

/// One of several clusters.
struct Cluster {
    name: String,
    config: Config,
    stats: Arc<Stats>,
    /// Its state, while it leads; none with a state in a file.
    shown: InMemory,
    observer: Arc<Observer>,
    reload: Reload,
    room: Room,
    states: States,
    exit_on_last_event: bool,
}

impl Cluster {
    fn new(
        config: Config,
        reload: &Reload,
        room: &Room,
        states: &States,
        exit_on_last_event: bool,
    ) -> Self {
        let stats = Arc::new(Stats::default());
        let shown = InMemory::default();
        let place = match (config.state, &config.storage) {
            (StateHome::Elasticsearch, _) => Place::InMemory(shown.clone()),
            (StateHome::Sqlite, storage) => {
                Place::Storage(storage.clone().expect("the command needs it"))
            }
        };
        let name = config.cluster.clone().expect("each has a table");
        let observer = observe(Some(&name), &config, place, &stats);
        Self {
            name,
            config,
            stats,
            shown,
            observer,
            reload: reload.clone(),
            room: room.clone(),
            states: states.clone(),
            exit_on_last_event,
        }
    }

    /// Follows it until told to stop, whatever happens.
    async fn follow_on(self, stop: &CancellationToken) -> Exit {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let began = Instant::now();
            // A fault of ours must not end the others. What a run has left behind is in its state file
            // alone, which stands any end.
            let ended = AssertUnwindSafe(self.follow_once(stop)).catch_unwind();
            let (is_over, (what, mend)) = match Box::pin(ended).await {
                Ok(Ok(exit)) => return exit,
                Ok(Err(failure)) => (lead::is_gone(&failure), failure.told()),
                Err(panic) => (false, (of_panic(&*panic), None)),
            };
            if began.elapsed() >= WELL_AFTER {
                backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
            }
            self.stats.run_is_gone();
            self.observer.run_has_failed(&what);
            if is_over || self.exit_on_last_event || stop.is_cancelled() {
                error!(mend, "is not followed: {what}");
                return Exit::Failed;
            }
            let pause = backoff.failed().wait;
            error!(?pause, mend, "is not followed, beginning anew: {what}");
            if unless_stopped(stop, sleep(pause)).await.is_none() {
                // The failure was told, and what was settled before it is written: nothing is left
                // to be done for an orderly end.
                say_ended(&self.stats);
                return Exit::Done;
            }
        }
    }

    async fn follow_once(&self, stop: &CancellationToken) -> Result<Exit, Failure> {
        let order = Order::only(self.exit_on_last_event);
        let (config, stats) = (self.config.clone(), self.stats.clone());
        let (reload, room) = (self.reload.clone(), self.room.clone());
        if config.state == StateHome::Elasticsearch {
            self.states.take(&self.name, lead::state_name(&config)?)?;
            // A run that has failed leaves nothing to be shown.
            self.shown.clear();
            let shown = self.shown.clone();
            return lead::lead(config, stats, shown, (reload, room), order, stop).await;
        }
        let (checkpoint, _lock) = open(&self.config, false)?;
        let checkpoint = Arc::new(checkpoint);
        Box::pin(follow(config, checkpoint, stats, reload, room, order, stop)).await
    }
}

fn of_panic(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    let text = text.unwrap_or("no more is known");
    format!("a fault of this program: {text}")
}
