//! What the program shows of itself while it runs: metrics, health, the status page and what
//! systemd is told. It only watches: nothing of it is in the way of an event.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tracing::{error, error_span, info, warn};

use crate::checkpoint::{
    Checkpoint, CheckpointError, DeadLetterEntry, DeadLetterFilter, Holder, Summary,
};
use crate::clock::now_ms;
use crate::output::Chain;
use crate::telemetry::Stats;

mod all;
pub mod asked;
mod health;
mod history;
mod in_memory;
pub mod metrics;
pub mod newer;
mod notify;
pub mod picture;
mod process;
mod server;

pub use self::all::Observers;
pub use self::health::{Health, Trouble};
pub use self::in_memory::InMemory;
pub use self::server::{CertificateError, ListenError, Server};

use self::health::{Buts, Failed, Motion};
use self::history::History;

/// How many dead letters are shown.
const SHOWN_DEAD_LETTERS: u32 = 20;

/// Watches one run.
#[derive(Debug)]
pub struct Observer {
    /// The name of the cluster's table, if there are several.
    cluster: Option<String>,
    stats: Arc<Stats>,
    place: Place,
    started_ms: i64,
    motion: Mutex<Motion>,
    /// The end of the last run, if it was none that somebody wanted.
    failed: Mutex<Option<Failed>>,
    was_stalled: Mutex<bool>,
    history: Mutex<History>,
    state: Mutex<Option<Arc<State>>>,
    shows_payloads: bool,
    identity: Identity,
}

/// Where the state lies.
#[derive(Debug)]
pub enum Place {
    /// In a file in this directory.
    Storage(PathBuf),
    /// In memory, while this process leads.
    InMemory(InMemory),
}

/// Says whose the files are that prove who we are to Teleport, and until when.
pub struct Identity(pub Box<dyn Fn() -> Value + Send + Sync>);

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity")
    }
}

/// What the state file tells, as of a few seconds ago.
#[derive(Debug)]
struct State {
    summary: Summary,
    identity: Value,
    dead_letters: Vec<(DeadLetterEntry, Option<Vec<u8>>)>,
}

impl Observer {
    /// Watches what is counted in `stats`, and the state, of the cluster of this name if there are
    /// several. It takes a run for stalled when nothing has moved for `stall_after`.
    pub fn new(
        cluster: Option<String>,
        stats: Arc<Stats>,
        place: Place,
        stall_after: Duration,
        shows_payloads: bool,
        identity: Identity,
    ) -> Arc<Self> {
        let now_ms = now_ms();
        Arc::new(Self {
            cluster,
            stats,
            place,
            started_ms: now_ms,
            failed: Mutex::default(),
            was_stalled: Mutex::default(),
            motion: Mutex::new(Motion::new(stall_after, now_ms)),
            history: Mutex::default(),
            state: Mutex::default(),
            shows_payloads,
            identity,
        })
    }

    /// Notes that the run has ended, though nobody wanted it to.
    pub fn run_has_failed(&self, what: &str) {
        let mut failed = lock(&self.failed);
        let is_first = failed
            .as_ref()
            .is_none_or(|before| before.is_over(&self.stats));
        let before = failed.take().filter(|_| !is_first);
        *failed = Some(Failed {
            since_ms: before.map_or_else(now_ms, |before| before.since_ms),
            last_ms: now_ms(),
            said: what.to_owned(),
        });
    }

    /// Says so once when it is stalled, and when it no longer is.
    fn tell_whether_it_moves(&self, health: &Health) {
        let mut was_stalled = lock(&self.was_stalled);
        self.name_it(|| tell_whether_it_moves(health, &mut was_stalled));
    }

    /// Says it as the run itself would, whose span this is not.
    fn name_it(&self, say: impl FnOnce()) {
        match &self.cluster {
            Some(name) => error_span!("follow", cluster = %name).in_scope(say),
            None => say(),
        }
    }

    async fn look_into_state_file(self: &Arc<Self>) -> Result<(), CheckpointError> {
        let observer = self.clone();
        let read = tokio::task::spawn_blocking(move || State::read(&observer));
        let read = read.await.expect("reading the state file does not panic");
        if let Some(state) = read? {
            *lock(&self.state) = Some(Arc::new(state));
        }
        Ok(())
    }

    fn tell_of_state_file(&self, failed: &CheckpointError) {
        self.name_it(|| warn!("cannot look into the state file: {}", Chain(failed)));
    }

    fn state(&self) -> Option<Arc<State>> {
        lock(&self.state).clone()
    }

    /// What keeps it from doing its work, if anything does.
    pub fn health(&self) -> Health {
        let failed = lock(&self.failed);
        Health::of(&self.stats, &lock(&self.motion), failed.as_ref(), now_ms())
    }

    /// How it stands, in one sentence.
    pub fn sentence(&self, health: &Health) -> String {
        health::sentence(health, &self.stats, self.buts(), now_ms())
    }

    fn buts(&self) -> Buts {
        let state = self.state();
        Buts::of(&self.stats, state.as_ref().map(|state| &state.summary))
    }

    /// How it stands, as [`picture`] shows it.
    pub fn picture(&self) -> Value {
        let (health, state) = (self.health(), self.state());
        let now_ms = now_ms();
        let nothing = Summary::default();
        let (summary, identity, dead_letters) = match state.as_deref() {
            Some(state) => (
                &state.summary,
                state.identity.clone(),
                &state.dead_letters[..],
            ),
            None => (&nothing, Value::Null, &[][..]),
        };
        let daemon = Holder::this_process();
        let mut picture = picture::of_state(summary, Some(&daemon), identity, now_ms);
        let live = picture::Live {
            stats: &self.stats,
            sentence: self.sentence(&health),
            health: &health,
            history: &lock(&self.history),
            dead_letters,
            process: process::look(),
            started_ms: self.started_ms,
            now_ms,
        };
        live.add_to(&mut picture);
        picture
    }
}

impl State {
    fn read(observer: &Observer) -> Result<Option<Self>, CheckpointError> {
        // A connection of its own: the one that commits must not wait for it.
        let (checkpoint, letters) = match &observer.place {
            Place::Storage(storage) => {
                let found = Checkpoint::open_existing_read_only(storage)?;
                (found.map(Arc::new), None)
            }
            Place::InMemory(shown) => (shown.checkpoint(), Some(shown.letters())),
        };
        let Some(checkpoint) = checkpoint else {
            return Ok(None);
        };
        let mut summary = checkpoint.summary()?;
        if let Some(letters) = letters {
            summary.dead_letters = letters;
        }
        let newest = checkpoint.dead_letters(&DeadLetterFilter::default(), SHOWN_DEAD_LETTERS)?;
        let mut dead_letters = Vec::new();
        for entry in newest {
            let payload = if observer.shows_payloads {
                let filter = DeadLetterFilter {
                    ids: vec![entry.document_id.clone()],
                    ..DeadLetterFilter::default()
                };
                let page = checkpoint.dead_letter_page(&filter, Default::default(), 1)?;
                page.letters
                    .into_iter()
                    .next()
                    .map(|(_, letter)| letter.document)
            } else {
                None
            };
            dead_letters.push((entry, payload));
        }
        Ok(Some(Self {
            summary,
            identity: (observer.identity.0)(),
            dead_letters,
        }))
    }
}

/// Says so once when it is stalled, and when it no longer is.
fn tell_whether_it_moves(health: &Health, was_stalled: &mut bool) {
    let is_stalled = health.is_stalled();
    if is_stalled && !*was_stalled {
        for trouble in &health.troubles {
            error!(
                mend = "the status page and the lines before say what is held up, if anything \
                        is known; if nothing is, restart it: nothing is lost by that",
                "{trouble}"
            );
        }
    } else if *was_stalled && !is_stalled {
        info!("no longer stalled: it moves again, or an end does not answer");
    }
    *was_stalled = is_stalled;
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
