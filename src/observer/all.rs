//! All that one process follows: one run, or one for each of several clusters.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;
use tracing::warn;

use super::health::{Buts, Health, sentence};
use super::metrics::{self, Facts};
use super::notify::ServiceManager;
use super::picture::{self, time};
use super::{Observer, history, lock, now_ms, process};
use crate::checkpoint::CheckpointError;

/// How often it looks around.
pub(super) const TICK: Duration = Duration::from_secs(1);

/// How many ticks lie between two looks into the state file, and two points of the history.
const TICKS_A_LOOK: u32 = history::EVERY_SECONDS;

/// Without a tick for so long, the program hangs. A tick needs the thread that turns events into
/// documents.
const HANGS_AFTER: Duration = Duration::from_secs(30);

/// What watches each run, and is shown as one.
#[derive(Debug)]
pub struct Observers {
    runs: Vec<Arc<Observer>>,
    /// They are of several clusters, be it one at the moment.
    are_several: bool,
    started_ms: i64,
    /// When it last looked around, ms since 1970.
    ticked_ms: AtomicI64,
    /// When it last looked into the state files.
    looked_ms: AtomicI64,
}

impl Observers {
    /// Of the one run that the process is there for.
    pub fn of_one(run: Arc<Observer>) -> Arc<Self> {
        Self::new(vec![run], false)
    }

    /// Of one run for each of several clusters.
    pub fn of_clusters(runs: Vec<Arc<Observer>>) -> Arc<Self> {
        Self::new(runs, true)
    }

    fn new(runs: Vec<Arc<Observer>>, are_several: bool) -> Arc<Self> {
        let now_ms = now_ms();
        Arc::new(Self {
            runs,
            are_several,
            started_ms: now_ms,
            ticked_ms: AtomicI64::new(now_ms),
            looked_ms: AtomicI64::new(0),
        })
    }

    /// Looks around until it is dropped, which it may be at any point. To be polled by the task
    /// that moves events: if that hangs, so does this, and it shows.
    pub async fn watch(self: Arc<Self>) {
        let mut manager = ServiceManager::from_environment();
        let (mut is_ready, mut are_told) = (false, false);
        let mut ticks = 0;
        let mut interval = tokio::time::interval(TICK);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let now_ms = now_ms();
            self.ticked_ms.store(now_ms, Ordering::Relaxed);
            let is_long = ticks % TICKS_A_LOOK == 0;
            for run in &self.runs {
                lock(&run.motion).look(&run.stats, now_ms);
                if is_long {
                    lock(&run.history).note(&run.stats, now_ms);
                }
            }
            if is_long {
                let looked = self.look_into_state_files().await;
                for (run, looked) in self.runs.iter().zip(looked) {
                    if let Err(failed) = looked {
                        run.tell_of_state_file(&failed);
                    }
                }
            }
            let health = self.health();
            for (run, health) in self.runs.iter().zip(&health) {
                run.tell_whether_it_moves(health);
            }
            // One that does its work is enough: whoever waits for us would end them all.
            if !is_ready && health.iter().any(|health| health.troubles.is_empty()) {
                is_ready = true;
                manager.tell("READY=1");
            }
            if is_long {
                are_told = are_told || self.tell_of_the_same();
                manager.tell(&format!("STATUS={}", self.sentence(&health)));
            }
            manager.feed_watchdog();
            ticks = ticks.wrapping_add(1);
        }
    }

    async fn look_into_state_files(&self) -> Vec<Result<(), CheckpointError>> {
        self.looked_ms.store(now_ms(), Ordering::Relaxed);
        join_all(self.runs.iter().map(Observer::look_into_state_file)).await
    }

    /// Looks into the state files for somebody who asks now, at most once a tick. Where that fails the
    /// picture stays as it was, and the log is told at the next look of our own.
    pub async fn freshen(&self) {
        let age_ms = now_ms() - self.looked_ms.load(Ordering::Relaxed);
        if !(0..1000).contains(&age_ms) {
            self.look_into_state_files().await;
        }
    }

    /// Whether two are the same cluster of Teleport, which is harmless and not what anybody wants.
    fn tell_of_the_same(&self) -> bool {
        let mut seen = BTreeMap::new();
        for run in &self.runs {
            let state = run.state();
            let cluster = state.and_then(|state| state.summary.cluster.clone());
            let Some(cluster) = cluster else { continue };
            if let Some(other) = seen.insert(cluster.clone(), run) {
                warn!(
                    one = other.cluster,
                    other = run.cluster,
                    "two tables [[cluster]] are the same cluster of Teleport, {cluster}: each of its \
                     events is read twice; take one of them out"
                );
                return true;
            }
        }
        false
    }

    /// Whether the program turns at all.
    pub fn is_alive(&self) -> bool {
        let silent_ms = now_ms() - self.ticked_ms.load(Ordering::Relaxed);
        u128::try_from(silent_ms).unwrap_or(0) < HANGS_AFTER.as_millis()
    }

    fn health(&self) -> Vec<Health> {
        self.runs.iter().map(|run| run.health()).collect()
    }

    /// What keeps it from doing its work, if anything does; of several clusters with their names.
    pub fn troubles(&self) -> Vec<String> {
        let all = self.runs.iter().zip(self.health());
        let troubles = all.flat_map(|(run, health)| {
            let troubles = health.troubles.into_iter();
            troubles.map(|trouble| match &run.cluster {
                Some(name) => format!("{name}: {trouble}"),
                None => trouble.to_string(),
            })
        });
        troubles.collect()
    }

    /// How it stands, in one sentence: of several clusters that of the worst, and how many there are.
    fn sentence(&self, health: &[Health]) -> String {
        let all = || self.runs.iter().zip(health);
        let held_up = all().filter(|(_, health)| !health.troubles.is_empty());
        let (n_held_up, n_all) = (held_up.clone().count(), self.runs.len());
        let worst = held_up.clone().next().or_else(|| {
            let now_ms = now_ms();
            all().max_by_key(|(run, _)| run.stats.lag(now_ms))
        });
        let (run, health) = worst.expect("there is a run");
        match &run.cluster {
            None => run.sentence(health),
            Some(_) if n_all == 1 => run.sentence(health),
            Some(name) if n_held_up == 0 => {
                let buts: Buts = self.runs.iter().map(|run| run.buts()).sum();
                let last = sentence(health, &run.stats, Buts::default(), now_ms());
                format!("All {n_all} clusters are followed{buts}; the last of them, {name}: {last}")
            }
            Some(name) => {
                let sentence = run.sentence(health);
                format!("{n_held_up} of {n_all} clusters held up; {name}: {sentence}")
            }
        }
    }

    /// How it stands, as [`picture`] shows it.
    pub fn picture(&self) -> Value {
        if !self.are_several {
            let run = self.runs.first().expect("there is a run");
            return run.picture();
        }
        let health = self.health();
        let clusters = self.runs.iter().map(|run| {
            let mut picture = run.picture();
            picture["name"] = run.cluster.as_deref().into();
            picture
        });
        let mut picture = picture::of_clusters(time(now_ms()), clusters.collect());
        picture["state"] = self.sentence(&health).into();
        picture["ready"] = health
            .iter()
            .all(|health| health.troubles.is_empty())
            .into();
        picture
    }

    /// All metrics, as Prometheus reads them.
    pub fn metrics(&self) -> String {
        let (health, now_ms) = (self.health(), now_ms());
        let states: Vec<_> = self.runs.iter().map(|run| run.state()).collect();
        let process = process::look();
        let facts = self.runs.iter().zip(&health).zip(&states);
        let facts = facts.map(|((run, health), state)| Facts {
            cluster: run.cluster.as_deref(),
            stats: &run.stats,
            health,
            summary: state.as_ref().map(|state| &state.summary),
            process,
            started_ms: self.started_ms,
            now_ms,
        });
        metrics::render(&facts.collect::<Vec<_>>())
    }
}
