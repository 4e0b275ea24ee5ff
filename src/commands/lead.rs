//! `start` with its state in Elasticsearch: of several daemons one leads, and the others wait.

mod asking;
pub(super) mod look;
pub(super) mod moving;
mod publisher;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::asking::Asking;
use self::publisher::Publisher;
use crate::checkpoint::{Checkpoint, CheckpointError, Holder};
use crate::commands::room::Room;
use crate::commands::share::nonce;
use crate::commands::start::{Order, follow};
use crate::commands::status::time;
use crate::commands::transfer::{Patience, beside, reach_elasticsearch};
use crate::commands::{Exit, Failure};
use crate::config::{Config, TeleportConfig};
use crate::elastic::client::Client;
use crate::elastic::dead_letters::DeadLetterIndex;
use crate::elastic::state::{BaseError, StateDocuments};
use crate::leader::candidate::{Answer, Candidate, Ended, Next, Rules};
use crate::leader::lease::Lease;
use crate::leader::{Content, Head};
use crate::observer::InMemory;
use crate::shutdown::Reload;
use crate::telemetry::Stats;
use crate::teleport::identity::Credentials;

/// Another leads at most about 13 s after a leader has died: the lease, its tenth, two looks and the
/// way to Teleport.
const RULES: Rules = Rules {
    lease: Duration::from_secs(10),
    publish: Duration::from_secs(2),
    poll: Duration::from_secs(1),
};

/// A state that cannot be read just now is read again so much later.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Under what a run sends.
pub(super) struct Led {
    pub(super) lease: Lease,
    pub(super) letters: DeadLetterIndex,
}

/// What the run of a leader is made of.
struct Setting {
    config: Config,
    documents: StateDocuments,
    client: Client,
    cluster: String,
    stats: Arc<Stats>,
    reload: Reload,
    room: Room,
    shown: InMemory,
}

/// A state that was there, and which somebody has deleted.
#[derive(Debug, thiserror::Error)]
#[error("the state {0} was in Elasticsearch and is no more; to begin a new one, start again")]
struct Gone(String);

/// Whether a run has ended because its state is gone: whoever began anew by itself would leave out,
/// without a word, what lies before its start.
pub(super) fn is_gone(failure: &Failure) -> bool {
    matches!(failure, Failure::Failed(failed) if failed.is::<Gone>())
}

/// The candidate, and a call for whoever drives it.
#[derive(Clone)]
struct Shared {
    candidate: Rc<RefCell<Candidate<Content>>>,
    news: Rc<Notify>,
}

/// The work of this process while it leads.
struct Work {
    /// Ends with the run.
    run: JoinSet<Result<Exit, Failure>>,
    stop: CancellationToken,
    until: watch::Sender<Instant>,
    publisher: Rc<Publisher>,
}

/// The name of the state.
pub(super) fn state_name(config: &Config) -> Result<String, Failure> {
    if let Some(name) = &config.state_name {
        return Ok(name.clone());
    }
    let Some(teleport) = &config.teleport else {
        return Err(Failure::Usage(
            "state-name is not set, and there is no identity from which it would come".to_owned(),
        ));
    };
    cluster_of(teleport)
}

/// The cluster that the identity is of.
fn cluster_of(teleport: &TeleportConfig) -> Result<String, Failure> {
    let credentials = Credentials::load(&teleport.credentials);
    let credentials = credentials.map_err(|unusable| Failure::Unusable(unusable.into()))?;
    Ok(credentials.cluster)
}

/// Follows one cluster whenever it is this process' turn, until it is told to stop.
pub(super) async fn lead(
    config: Config,
    stats: Arc<Stats>,
    shown: InMemory,
    (reload, room): (Reload, Room),
    order: Order,
    stop: &CancellationToken,
) -> Result<Exit, Failure> {
    let teleport = config.teleport.as_ref().expect("the command needs it");
    let cluster = cluster_of(teleport)?;
    let name = config.state_name.clone().unwrap_or_else(|| cluster.clone());
    stats.lead.waits();
    let elasticsearch = config.elasticsearch.as_ref().expect("the command needs it");
    let patience = Patience::Endless(&stats.elasticsearch);
    let Some((client, _)) = reach_elasticsearch(elasticsearch, patience, stop).await? else {
        return Ok(Exit::Done);
    };
    let documents = StateDocuments::new(client.clone(), &name);
    match documents.demand_template().await {
        // That it was not told passes, and then it shows.
        Err(failed) if failed.is_transient() => {}
        known => known?,
    }
    let setting = Rc::new(Setting {
        config,
        documents,
        client: client.clone(),
        cluster,
        stats,
        reload: reload.clone(),
        room,
        shown,
    });
    let mut reload = reload;
    let fresh = async move {
        client
            .keep_fresh(async || reload.asked().await, |_| {})
            .await
    };
    let tasks = LocalSet::new();
    let driven = tasks.run_until(Box::pin(drive(setting, order, stop)));
    beside(driven, Box::pin(fresh)).await
}

/// Does what the candidate says until it has ended.
async fn drive(
    setting: Rc<Setting>,
    order: Order,
    stop: &CancellationToken,
) -> Result<Exit, Failure> {
    let owner = Holder::this_process().to_string();
    let shared = Shared {
        candidate: Rc::new(RefCell::new(Candidate::new(owner, nonce()?, RULES))),
        news: Rc::new(Notify::new()),
    };
    let candidate = &shared.candidate;
    let began = Instant::now();
    let mut asking = Asking::default();
    let exit_on_last_event = order.exit_on_last_event;
    let mut first_order = Some(order);
    let mut work: Option<Work> = None;
    let mut leaving = false;
    let mut result = Ok(Exit::Done);
    loop {
        let next = candidate.borrow_mut().next(began.elapsed());
        match next {
            Next::Ask(request) => {
                let sent = began.elapsed();
                let documents = setting.documents.carry_out(&request);
                let answer = asking.ask(documents, &setting).await?;
                if let Answer::Found(head, _) = &answer
                    && work.is_none()
                {
                    refuse(&setting, head, first_order.as_ref())?;
                    asking.say_who_leads(head);
                }
                let now = began.elapsed();
                candidate.borrow_mut().answered(&request, sent, now, answer);
                let until = candidate.borrow().valid_until();
                if let (Some(work), Some(until)) = (&work, until) {
                    work.until.send_replace(began + until);
                }
            }
            Next::Lead(head) => {
                let until = candidate.borrow().valid_until().unwrap_or_default();
                info!(
                    state = setting.documents.name(),
                    position = head.content.position,
                    "leads from now on"
                );
                setting.stats.lead.leads();
                let order = first_order.take();
                let order = order.unwrap_or_else(|| Order::only(exit_on_last_event));
                work = Some(begin(&setting, &shared, *head, order, began + until));
            }
            Next::Stop => {
                warn!(
                    state = setting.documents.name(),
                    "the lease is over: nothing more is sent, and another one may lead"
                );
                if let Some(mut lost) = work.take() {
                    lost.run.shutdown().await;
                }
                setting.stand_by();
                if leaving {
                    candidate.borrow_mut().leave();
                }
            }
            Next::Ended(Ended::Left) => return result,
            Next::Ended(Ended::Gone) => {
                let gone = Gone(setting.documents.name().to_owned());
                return Err(Failure::Failed(gone.into()));
            }
            Next::Wait(until) => {
                // Every arm only waits, and joining a task may be begun again.
                tokio::select! {
                    biased;
                    ended = ended(&mut work), if work.is_some() => {
                        let done = work.take().expect("it was there");
                        // What has settled since the last time, and then the lead.
                        if let Err(failed) = done.publisher.publish().await {
                            warn!("the last of the state is not written: {}", failed.told().0);
                        }
                        leaving = true;
                        result = ended;
                        candidate.borrow_mut().release(began.elapsed());
                        setting.stand_by();
                    }
                    () = stop.cancelled(), if !leaving => {
                        leaving = true;
                        match &work {
                            Some(work) => work.stop.cancel(),
                            None => candidate.borrow_mut().leave(),
                        }
                    }
                    () = shared.news.notified() => {}
                    () = sleep_until(began + until) => {}
                }
            }
        }
    }
}

/// Whether this state may be used at all, and with what was ordered.
fn refuse(setting: &Setting, head: &Head<Content>, order: Option<&Order>) -> Result<(), Failure> {
    let name = setting.documents.name();
    let Content {
        cluster, moved_to, ..
    } = &head.content;
    if !cluster.is_empty() && *cluster != setting.cluster {
        return Err(Failure::Usage(format!(
            "the state {name} in Elasticsearch belongs to the cluster {cluster:?}, and the identity \
             is of {:?}; give each cluster its own state-name",
            setting.cluster
        )));
    }
    if let Some(place) = moved_to {
        return Err(Failure::Usage(format!(
            "the state {name} does not lie in Elasticsearch, but in {place}: set state = \"sqlite\" \
             there, or bring it by `state move --to elasticsearch`"
        )));
    }
    if let (Some(leader), Some(_)) = (&head.leader, order.filter(|order| order.moves())) {
        return Err(Failure::Usage(format!(
            "--rewind-to and --forward-to are for a daemon that runs alone, and {leader} leads: stop all others, and repeat it"
        )));
    }
    Ok(())
}

impl Setting {
    /// Nothing of a run is shown any more.
    fn stand_by(&self) {
        self.stats.lead.waits();
        self.stats.run_is_gone();
        // How far the log is indexed is for another one to tell.
        self.stats.position_ms.store(0, Ordering::Relaxed);
        self.shown.clear();
    }
}

/// Begins to work on a state.
fn begin(
    setting: &Rc<Setting>,
    shared: &Shared,
    head: Head<Content>,
    order: Order,
    until: Instant,
) -> Work {
    let (sender, lease) = Lease::new(until);
    let stop = CancellationToken::new();
    let publisher = Rc::new(Publisher::new(
        setting.documents.clone(),
        DeadLetterIndex::new(setting.client.clone(), setting.documents.name()),
        shared.clone(),
        setting.cluster.clone(),
        &head.content,
        setting.shown.clone(),
    ));
    let mut run = JoinSet::new();
    run.spawn_local(work_on(
        setting.clone(),
        publisher.clone(),
        head,
        order,
        lease,
        stop.clone(),
    ));
    Work {
        run,
        stop,
        until: sender,
        publisher,
    }
}

async fn work_on(
    setting: Rc<Setting>,
    publisher: Rc<Publisher>,
    head: Head<Content>,
    mut order: Order,
    lease: Lease,
    stop: CancellationToken,
) -> Result<Exit, Failure> {
    let load = async || loop {
        match load(&setting, &publisher, &head).await {
            Err(failed) if passes(&failed) => {
                warn!("cannot read the state, trying again: {}", failed.told().0);
                sleep(TRY_AGAIN).await;
            }
            loaded => return loaded,
        }
    };
    let checkpoint = lease.within(load()).await?;
    publisher.take(checkpoint.clone());
    setting.shown.show(checkpoint.clone());
    let mut config = setting.config.clone();
    // There is no disk on which they could wait.
    config.blocked_bytes = 0;
    order.led = Some(Led {
        lease: lease.clone(),
        letters: DeadLetterIndex::new(setting.client.clone(), setting.documents.name()),
    });
    let run = follow(
        config,
        checkpoint,
        setting.stats.clone(),
        setting.reload.clone(),
        setting.room.clone(),
        order,
        &stop,
    );
    let work = beside(Box::pin(run), publisher.publish_for_ever());
    lease.within(work).await
}

/// Elasticsearch did not answer, or has too much to do.
fn passes(failed: &Failure) -> bool {
    let Failure::Failed(failed) = failed else {
        return false;
    };
    let failed = failed.downcast_ref::<BaseError>();
    matches!(failed, Some(BaseError::Work(failed)) if failed.is_transient())
}

/// The state that the head tells of.
async fn load(
    setting: &Setting,
    publisher: &Publisher,
    head: &Head<Content>,
) -> Result<Arc<Checkpoint>, Failure> {
    let name = setting.documents.name();
    let whole = whole_of(&setting.documents, &head.content, Some(publisher)).await?;
    let place = format!("{name} in Elasticsearch");
    Ok(Arc::new(Checkpoint::of_image(&whole, &place)?))
}

/// The state of a head as bytes; what it has for a base is told to the publisher.
async fn whole_of(
    documents: &StateDocuments,
    content: &Content,
    publisher: Option<&Publisher>,
) -> Result<Vec<u8>, Failure> {
    let image = &content.image;
    let mut base_whole = Vec::new();
    if let Some(base) = &image.base {
        let found = documents.base(base).await?;
        base_whole = found.ok_or_else(|| {
            anyhow::anyhow!(
                "the state {} in Elasticsearch is damaged: documents of {} are missing",
                documents.name(),
                base.name
            )
        })?;
        if let Some(publisher) = publisher {
            publisher.base_is(base.clone(), base_whole.clone());
        }
    }
    if image.bytes == 0 {
        return Ok(Vec::new());
    }
    Ok(image.whole(base_whole)?)
}

/// How far a state says that the log is indexed, for people.
fn position(state: &Checkpoint) -> Result<Option<String>, CheckpointError> {
    let runs = state.summary()?.runs;
    Ok(runs.first().map(|run| time(run.position_ms)))
}

async fn ended(work: &mut Option<Work>) -> Result<Exit, Failure> {
    match work {
        Some(work) => {
            let ended = work.run.join_next().await.expect("it runs");
            ended.expect("a run does not panic")
        }
        None => std::future::pending().await,
    }
}
