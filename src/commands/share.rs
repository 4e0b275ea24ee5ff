//! `backfill --share`: one of any number of processes that work on the same range. What each does
//! next is decided in [`crate::share::worker`]; here it is done.

mod piece;
pub(super) mod status;

use std::sync::Arc;
use std::time::Duration;

use chrono::{Days, Utc};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::piece::{PieceWork, Working};
use crate::checkpoint::{Checkpoint, Holder, Role, RoleLock, share_identity};
use crate::cli;
use crate::commands::backfill::{identity_of, identity_with};
use crate::commands::old_days::first_to_write;
use crate::commands::status::{safe_form_words, time};
use crate::commands::transfer::{
    Patience, demand_template, reach, reach_elasticsearch, reach_teleport,
};
use crate::commands::{Exit, Failure};
use crate::config::Config;
use crate::elastic::client::Client;
use crate::elastic::work::{Work, WorkError};
use crate::event::DAY_MS;
use crate::output;
use crate::share::worker::{Ended, Finish, Next, Rules, Worker};
use crate::share::{Share, ShareState};
use crate::shutdown::Shutdown;
use crate::telemetry::End;
use crate::teleport::client as teleport;
use crate::teleport::client::Remedy;

/// All workers together ask for pieces, and renew leases, about twice a second at most. More
/// often would only cost Elasticsearch; less often, small pieces wait for their workers.
const TURN: Duration = Duration::from_millis(500);

pub(super) async fn share(
    mut config: Config,
    range: &cli::Backfill,
    joined: &cli::Share,
    shutdown: &Shutdown,
) -> Result<Exit, Failure> {
    let stop = &shutdown.stop;
    config.limits = config.backfill_limits;
    // What waits on this machine's disk is not settled for whoever takes its piece over.
    config.blocked_bytes = 0;
    if range.to > Utc::now() {
        return Err(Failure::Usage(format!(
            "--to {} lies in the future: all that share a backfill must mean the same end",
            time(range.to.timestamp_millis())
        )));
    }
    let storage = config.storage.clone().expect("the command needs it");
    let checkpoint = Arc::new(Checkpoint::open(&storage)?);
    let Some((teleport, _)) = reach_teleport(&config, Patience::None, stop).await? else {
        return Ok(Exit::Failed);
    };
    let elasticsearch = config.elasticsearch.clone().expect("the command needs it");
    let reached = reach_elasticsearch(&elasticsearch, Patience::None, stop).await?;
    let Some((client, _)) = reached else {
        return Ok(Exit::Failed);
    };
    demand_template(&client, &elasticsearch).await?;
    let role = Role::backfill(teleport.cluster(), 0, 0, &share_identity(&joined.name));
    let _lock = RoleLock::acquire(&storage, &role)?;
    let run = checkpoint.share_run(teleport.cluster(), &joined.name)?;

    let work = Work::new(client.clone(), &joined.name);
    work.demand_template().await?;
    let share = join(
        &work,
        &config,
        range,
        &joined.name,
        (&teleport, &client),
        stop,
    )
    .await?;
    let Some(share) = share else {
        return Ok(Exit::Failed);
    };
    if share.first_ms > share.from_ms {
        output::note(format_args!(
            "left out, too old for the lifecycle policy: {} to {}",
            time(share.from_ms),
            time(share.first_ms)
        ));
    }
    // Of no span: nothing is refused or left out by it, it only tells what is kept.
    let kept = share.first_ms..share.first_ms;
    let kept = first_to_write(&client, &elasticsearch, kept, Patience::None, stop).await?;
    let owner = Holder::this_process().to_string();
    let rules = Rules {
        lease: joined.lease,
        turn: TURN,
    };
    let piece_work = PieceWork {
        config,
        teleport,
        client,
        checkpoint: checkpoint.clone(),
        run,
        kept_from_ms: kept,
        // Several leases: long enough for a piece of ordinary size.
        cut_after: joined.lease * 5,
    };
    let worker = Worker::new(owner, nonce()?, share.planned, rules);
    let tasks = LocalSet::new();
    let ended = tasks.run_until(work_on(worker, &work, &piece_work, stop));
    let ended = ended.await?;
    Ok(match ended {
        Ended::Left => {
            output::note("stopped before the end; the same command joins in again");
            Exit::Failed
        }
        Ended::Cancelled => {
            output::note(format_args!("share {} was cancelled", joined.name));
            Exit::Failed
        }
        Ended::Complete(tally) => {
            output::note(format_args!(
                "done by all workers together: {} documents created{}, {} were there already, \
                 {} dead letters, {} gaps",
                tally.created,
                safe_form_words(tally.safe_form),
                tally.already_there,
                tally.dead_letters,
                tally.gaps
            ));
            if tally.dead_letters + tally.gaps > 0 {
                Exit::Failed
            } else {
                Exit::Done
            }
        }
    })
}

/// The share as all others know it; whoever comes first makes it. `None`: told to stop.
async fn join(
    work: &Work,
    config: &Config,
    range: &cli::Backfill,
    name: &str,
    (teleport, client): (&teleport::Client, &Client),
    stop: &CancellationToken,
) -> Result<Option<Share>, Failure> {
    let elasticsearch = config.elasticsearch.as_ref();
    let elasticsearch = elasticsearch.expect("the command needs it");
    let (from_ms, to_ms) = (range.from.timestamp_millis(), range.to.timestamp_millis());
    let mut wanted = Share {
        name: name.to_owned(),
        state: ShareState::Planning,
        cluster: teleport.cluster().to_owned(),
        from_ms,
        to_ms,
        first_ms: from_ms,
        piece_ms: DAY_MS,
        filters: identity_with(config.sessions.as_ref(), identity_of(&config.filter)),
        index: elasticsearch.index.to_string(),
        schema: format!("{:?}", elasticsearch.schema).to_lowercase(),
        planned: 0,
        made_by: Holder::this_process().to_string(),
    };
    loop {
        let Some(known) = patiently(stop, async || work.share().await).await? else {
            return Ok(None);
        };
        let Some((found, version)) = known else {
            let span = from_ms..to_ms;
            let first = first_to_write(client, elasticsearch, span, Patience::None, stop).await?;
            if stop.is_cancelled() {
                return Ok(None);
            }
            let first = first.unwrap_or(from_ms);
            wanted.first_ms = first.clamp(from_ms, to_ms);
            wanted.piece_ms = piece_ms(config, teleport).await?;
            patiently(stop, async || work.write_share(&wanted, None).await).await?;
            continue;
        };
        refuse_others(&found, &wanted)?;
        match found.state {
            ShareState::Cancelled => {
                return Err(Failure::Usage(format!(
                    "share {name} was cancelled: choose another name"
                )));
            }
            ShareState::Planned => return Ok(Some(found)),
            // Who began may have died: this may be done twice, and at once.
            ShareState::Planning => {
                let pieces = found.pieces();
                patiently(stop, async || work.create(&pieces).await).await?;
                let planned = Share {
                    state: ShareState::Planned,
                    planned: pieces.len() as u64,
                    ..found
                };
                info!(pieces = planned.planned, "share {name} is cut into pieces");
                let write = async || work.write_share(&planned, Some(version)).await;
                patiently(stop, write).await?;
            }
        }
    }
}

/// Tries until Elasticsearch, which was there a moment ago, has done it. `None`: told to stop.
async fn patiently<T>(
    stop: &CancellationToken,
    attempt: impl AsyncFn() -> Result<T, WorkError>,
) -> Result<Option<T>, Failure> {
    let end = End::default();
    let patience = Patience::Endless(&end);
    reach(patience, stop, attempt, WorkError::is_transient).await
}

/// Days for an export, which lists chunks by day; windows for a search.
async fn piece_ms(config: &Config, teleport: &teleport::Client) -> Result<i64, Failure> {
    let day_to_come = Utc::now().date_naive() + Days::new(1);
    match teleport.chunks(day_to_come).await {
        Ok(_) => Ok(DAY_MS),
        Err(failed) if failed.remedy() == Remedy::Unknown => {
            let window = i64::try_from(config.window_size.as_millis());
            Ok(window.unwrap_or(DAY_MS).max(1000))
        }
        Err(failed) => Err(failed.into()),
    }
}

/// All that share a backfill must mean the same.
fn refuse_others(found: &Share, wanted: &Share) -> Result<(), Failure> {
    let text = |text: &str| {
        if text.is_empty() {
            "none".to_owned()
        } else {
            text.to_owned()
        }
    };
    let compared = [
        ("cluster", text(&found.cluster), text(&wanted.cluster)),
        ("--from", time(found.from_ms), time(wanted.from_ms)),
        ("--to", time(found.to_ms), time(wanted.to_ms)),
        ("types", text(&found.filters), text(&wanted.filters)),
        ("index", text(&found.index), text(&wanted.index)),
        ("schema", text(&found.schema), text(&wanted.schema)),
    ];
    let differ = compared.iter().filter(|(_, there, here)| there != here);
    let differ = differ.map(|(what, there, here)| format!("{what} is {there} there, {here} here"));
    let differ: Vec<_> = differ.collect();
    if differ.is_empty() {
        return Ok(());
    }
    Err(Failure::Usage(format!(
        "share {} is about something else: {}; give the same, or choose another name",
        found.name,
        differ.join("; ")
    )))
}

/// A text that no other process has.
pub(super) fn nonce() -> Result<String, Failure> {
    let mut bytes = [0; 12];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| anyhow::anyhow!("the system gives no random numbers"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Does what the worker says until it has ended.
async fn work_on(
    mut worker: Worker,
    work: &Work,
    pieces: &PieceWork,
    stop: &CancellationToken,
) -> Result<Ended, Failure> {
    let began = Instant::now();
    let mut working: Option<Working> = None;
    let mut failure = None;
    let mut leaving = false;
    let mut spent = Spent::default();
    let ended = loop {
        if let Some(working) = &working {
            let (progress, tally) = pieces.progress(working).await?;
            worker.progress(progress, tally);
        }
        match worker.next(began.elapsed()) {
            Next::Ask(request) => {
                let sent = began.elapsed();
                let answer = work.carry_out(&request).await?;
                spent.requests += 1;
                worker.answered(&request, sent, began.elapsed(), answer);
            }
            Next::Work(piece) => {
                info!(
                    from = time(piece.from_ms),
                    to = time(piece.to_ms),
                    part = (!piece.part.is_whole()).then(|| display(piece.part)),
                    settled_up_to = time(piece.progress.position_ms),
                    taken_over = piece.taken_over,
                    "working on a piece"
                );
                working = Some(pieces.begin(piece).await?);
            }
            Next::GiveUp => {
                warn!("the lease of the piece is lost: somebody else goes on with it");
                if let Some(lost) = working.take() {
                    spent.working += lost.began.elapsed();
                    lost.stop.cancel();
                    // What still settles has ids: it is there once all the same.
                    if let Err(failed) = lost.ended().await {
                        failure.get_or_insert(failed);
                    }
                }
            }
            Next::Ended(ended) => break ended,
            Next::Wait(until) => {
                let cut_due = working.as_ref().and_then(Working::cut_due);
                // Every arm only waits, and joining a task may be begun again.
                tokio::select! {
                    biased;
                    ended = piece::joined(&mut working), if working.is_some() => {
                        let done = working.take().expect("it was there");
                        spent.working += done.began.elapsed();
                        spent.pieces += 1;
                        let (progress, tally) = pieces.progress(&done).await?;
                        worker.progress(progress, tally);
                        let finish = match ended.and_then(|summary| pieces.judge(&done, summary)) {
                            Ok(finish) => finish,
                            Err(failed) => {
                                failure = Some(failed);
                                worker.leave(began.elapsed());
                                leaving = true;
                                Finish::Back
                            }
                        };
                        worker.finished(finish, began.elapsed());
                    }
                    () = stop.cancelled(), if !leaving => {
                        leaving = true;
                        if let Some(working) = &working {
                            working.stop.cancel();
                        }
                        worker.leave(began.elapsed());
                    }
                    () = wait_for(cut_due) => {
                        if let Some(working) = &mut working {
                            pieces.cut(working)?;
                        }
                    }
                    () = sleep_until(began + until) => {}
                }
            }
        }
    };
    spent.say(began.elapsed());
    match failure {
        Some(failed) => Err(failed),
        None => Ok(ended),
    }
}

async fn wait_for(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// What this worker did with its time.
#[derive(Default)]
struct Spent {
    working: Duration,
    pieces: u64,
    requests: u64,
}

impl Spent {
    fn say(&self, whole: Duration) {
        info!(
            pieces = self.pieces,
            requests = self.requests,
            seconds = format!("{:.1}", whole.as_secs_f64()),
            seconds_between_pieces = format!("{:.1}", (whole - self.working).as_secs_f64()),
            "this worker has ended"
        );
    }
}

/// `backfill --share NAME --cancel`
pub(super) async fn cancel(
    config: &Config,
    name: &str,
    shutdown: &Shutdown,
) -> Result<Exit, Failure> {
    let elasticsearch = config.elasticsearch.as_ref();
    let elasticsearch = elasticsearch.expect("the command needs it");
    let reached = reach_elasticsearch(elasticsearch, Patience::Seconds, &shutdown.stop).await?;
    let Some((client, _)) = reached else {
        return Ok(Exit::Failed);
    };
    match Work::new(client, name).cancel().await? {
        Some(_) => {
            output::note(format_args!(
                "share {name} is cancelled; what was indexed stays"
            ));
            Ok(Exit::Done)
        }
        None => Err(unknown(name)),
    }
}

fn unknown(name: &str) -> Failure {
    Failure::Failed(anyhow::anyhow!("there is no share {name}"))
}
