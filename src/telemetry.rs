//! What the program tells about itself while it runs: counters and the log.

mod alarm;
mod end;
mod lead;
mod reason;
mod stats;
mod told;

use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tracing::{Level, enabled, info};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use crate::config::{LogConfig, LogFormat};
use crate::output;

pub use self::alarm::{Alarm, Life};
pub use self::end::{End, Failing, Line, Standing};
pub use self::lead::Lead;
pub use self::reason::{GAP_REASONS, Reason};
pub use self::stats::{
    BulkRequest, DURATION_BOUNDS, Durations, HeldUp, RequestOutcome, RequestOutcomes, Stats,
};
pub use self::told::Told;

/// Sends the log to stderr from here on, as text for people or JSON for machines.
///
/// `level` is a level or a list such as `info,teleport_event_indexer::teleport=debug`; the
/// configuration has checked it. May be called once.
pub fn start_log(log: &LogConfig) -> Log {
    let (filter, handle) = reload::Layer::new(filter(&log.level));
    let writer = tracing_subscriber::fmt::layer().with_writer(output::LogWriter::default);
    let registry = tracing_subscriber::registry();
    match log.format {
        LogFormat::Text => {
            let plain = writer.with_ansi(output::is_colourful()).with_target(false);
            registry.with(plain.with_filter(filter)).init();
        }
        LogFormat::Json => {
            let json = writer.json().flatten_event(true);
            registry.with(json.with_filter(filter)).init();
        }
    }
    Log {
        filter: handle,
        level: Mutex::new(log.level.clone()),
    }
}

fn filter(level: &str) -> Targets {
    match level.parse::<LevelFilter>() {
        // A bare level is about this program; its libraries log every HTTP/2 frame at debug.
        Ok(level) => Targets::new()
            .with_default(level.min(LevelFilter::WARN))
            .with_target("teleport_event_indexer", level),
        Err(_) => level.parse().unwrap_or_else(|_| Targets::new()),
    }
}

/// The log of this process.
pub struct Log {
    filter: reload::Handle<Targets, Registry>,
    level: Mutex<String>,
}

impl Log {
    /// Says from here on what `level` says, and tells of the change.
    pub fn set_level(&self, level: &str) {
        let mut current = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        if *current == level {
            info!(level, "the log level has not changed");
            return;
        }
        let before = std::mem::replace(&mut *current, level.to_owned());
        let apply = || {
            let applied = self.filter.reload(filter(level));
            applied.expect("the log lasts as long as the process");
        };
        // At whichever of the two lets it through.
        if enabled!(Level::INFO) {
            info!(from = before, to = level, "the log level changes");
            apply();
        } else {
            apply();
            info!(from = before, to = level, "the log level has changed");
        }
    }
}

/// Writes one line a minute that says how a run stands, until it is dropped.
pub async fn report_each_minute(stats: &Stats) {
    let mut before = 0;
    loop {
        tokio::time::sleep(Duration::from_secs(60)).await;
        let settled = stats.settled();
        let position_ms = stats.position_ms.load(Ordering::Relaxed);
        let lag =
            (position_ms > 0).then(|| (chrono::Utc::now().timestamp_millis() - position_ms) / 1000);
        info!(
            per_second = (settled - before) / 60,
            lag_seconds = lag,
            created = Stats::get(&stats.created),
            safe_form = Stats::get(&stats.safe_form),
            already_there = Stats::get(&stats.already_there),
            dead_letters = Stats::get(&stats.dead_letters),
            blocked = Stats::get(&stats.blocked),
            "documents settled"
        );
        before = settled;
    }
}
