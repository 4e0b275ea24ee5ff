//! `state move`: a state goes from the file into Elasticsearch, or back.
//!
//! At each moment one place alone is the one to go on from, and the other one says where that is: the
//! head in Elasticsearch names the place of the file, or the file has another name. So a move
//! that was broken off leaves nobody to begin anew, and the same command brings it to its end.

use std::path::Path;
use std::time::Duration;

use chrono::Utc;
use tokio::time::{Instant, sleep};

use super::{position, state_name, whole_of};
use crate::checkpoint::{Checkpoint, Holder, Moving, PagePlace, Way};
use crate::commands::share::nonce;
use crate::commands::status::{no_state, time};
use crate::commands::transfer::{Patience, reach_elasticsearch};
use crate::commands::{Exit, Failure};
use crate::config::{Config, StateHome};
use crate::elastic::client::Client;
use crate::elastic::dead_letters::DeadLetterIndex;
use crate::elastic::state::{StateDocuments, new_base};
use crate::leader::image::Image;
use crate::leader::{Content, Head, has_ended};
use crate::output;
use crate::pipeline::unless_stopped;
use crate::share::Version;
use crate::shutdown::Shutdown;

/// For how long a move keeps daemons from leading, if it is broken off.
const LEASE: Duration = Duration::from_secs(120);

/// How often it is looked whether somebody leads.
const POLL: Duration = Duration::from_secs(1);

/// Dead letters are copied in pages of so many bytes.
const PAGE_BYTES: u64 = 16 << 20;

/// What is moved, and between what.
struct Move {
    moving: Moving,
    documents: StateDocuments,
    letters: DeadLetterIndex,
    /// Where the file lies, for people.
    place: String,
    /// The head as it is written next, and the version that it replaces.
    head: Head<Content>,
    over: Option<Version>,
}

pub(in crate::commands) async fn move_state(
    config: &Config,
    storage: &Path,
    to: StateHome,
    shutdown: &Shutdown,
) -> Result<Exit, Failure> {
    let moving = Moving::begin(storage)?;
    let elasticsearch = config.elasticsearch.as_ref();
    let elasticsearch = elasticsearch.expect("the command needs it");
    let reached = reach_elasticsearch(elasticsearch, Patience::Seconds, &shutdown.stop).await?;
    let Some((client, _)) = reached else {
        return Ok(Exit::Failed);
    };
    let work = async {
        match to {
            StateHome::Elasticsearch => leave(config, storage, moving, client).await,
            StateHome::Sqlite => come(config, storage, moving, client).await,
        }
    };
    // Broken off anywhere it can be repeated.
    match unless_stopped(&shutdown.stop, work).await {
        Some(done) => done.map(|()| Exit::Done),
        None => Ok(Exit::Failed),
    }
}

/// From the file into Elasticsearch.
async fn leave(
    config: &Config,
    storage: &Path,
    moving: Moving,
    client: Client,
) -> Result<(), Failure> {
    let begun = match moving.unfinished() {
        Some(Way::Comes) => return Err(unfinished("sqlite")),
        Some(Way::Leaves) => true,
        None if moving.has_state() => false,
        None => return Err(no_state(storage)),
    };
    let summary = moving.state()?.summary()?;
    let cluster = summary.cluster.ok_or_else(|| no_state(storage))?;
    if summary.blocked.count > 0 {
        return Err(Failure::Failed(anyhow::anyhow!(
            "{} documents of blocked indices wait in the state file, for which there is no place in \
             Elasticsearch: mend these indices, run `start` until all are stored, and repeat it",
            summary.blocked.count
        )));
    }
    let name = config.state_name.clone().unwrap_or_else(|| cluster.clone());
    let mut work = Move::of(moving, client, &name, storage).await?;
    work.documents.demand_template().await?;
    let is_new = work.over.is_none();
    let content = &mut work.head.content;
    if !["", &cluster].contains(&&*content.cluster) {
        return Err(Failure::Usage(format!(
            "the state {name} in Elasticsearch is of the cluster {:?}, and the file of {cluster:?}; \
             give each cluster its own state-name",
            content.cluster
        )));
    }
    content.cluster = cluster;
    match &content.moved_to {
        // The last thing of all is left.
        None if begun && !is_new => return work.has_left(&name),
        None if !is_new => {
            return Err(Failure::Usage(format!(
                "there is a state {name} in Elasticsearch already: choose another state-name, or \
                 go on with that one by state = \"elasticsearch\""
            )));
        }
        Some(place) if *place != work.place => return Err(elsewhere(&name, place)),
        _ => {}
    }
    content.moved_to = Some(work.place.clone());
    work.write().await?;
    if !begun {
        work.moving.leaves()?;
    }
    let state = work.moving.state()?;
    let mut place = Some(PagePlace::default());
    while let Some(from) = place {
        let page = state.dead_letter_page(&Default::default(), from, PAGE_BYTES)?;
        let letters: Vec<_> = page.letters.into_iter().map(|(_, letter)| letter).collect();
        work.letters.keep(&letters, u64::MAX).await?;
        place = page.next;
    }
    let whole = work.moving.image_without_letters()?;
    let (base, parts) = new_base(nonce()?, &whole);
    // Whoever repeats it after a crash knows what is to be deleted.
    work.head.content.leftovers.push(base.clone());
    work.write().await?;
    work.documents.write_base(&base, &parts).await?;
    let content = &mut work.head.content;
    content.leftovers.retain(|leftover| *leftover != base);
    content.image = Image::of(&whole, Some(&base), &whole);
    content.position = position(&state)?;
    content.moved_to = None;
    work.write().await?;
    drop(state);
    work.has_left(&name)
}

/// From Elasticsearch into a file.
async fn come(
    config: &Config,
    storage: &Path,
    moving: Moving,
    client: Client,
) -> Result<(), Failure> {
    if moving.unfinished() == Some(Way::Leaves) {
        return Err(unfinished("elasticsearch"));
    }
    if moving.has_state() {
        return Err(Failure::Usage(format!(
            "there is a state file in {} already: move it away by `state reset --yes`, or give \
             another storage",
            storage.display()
        )));
    }
    let name = state_name(config)?;
    let mut work = Move::of(moving, client, &name, storage).await?;
    let content = &work.head.content;
    if content.image.bytes == 0 && content.moved_to.is_none() {
        return Err(Failure::Failed(anyhow::anyhow!(
            "there is no state {name} in Elasticsearch: nothing has been started with this name"
        )));
    }
    match &work.head.content.moved_to {
        Some(place) if *place == work.place && work.moving.unfinished().is_some() => {
            return work.has_come(&name).await;
        }
        Some(place) => return Err(elsewhere(&name, place)),
        None => {}
    }
    work.wait_until_nobody_leads(&name).await?;
    work.head.leader = Some(format!(
        "the move of the state by {}",
        Holder::this_process()
    ));
    work.head.claim = Some(nonce()?);
    work.head.lease_ms = u64::try_from(LEASE.as_millis()).expect("it is short");
    work.write().await?;

    let whole = whole_of(&work.documents, &work.head.content, None).await?;
    let state = Checkpoint::of_image(&whole, &format!("{name} in Elasticsearch"))?;
    work.letters.wait_until_shown().await?;
    let mut place = None;
    loop {
        let (settled, next) = work.letters.settled(place).await?;
        for letter in settled {
            state.settle_whole(&letter.document_id, "")?;
        }
        place = next;
        if place.is_none() {
            break;
        }
    }
    let file = work.moving.comes(&state)?;
    let (run, _) = file.daemon_run(&work.head.content.cluster, || 0)?;
    loop {
        let (letters, next) = work.letters.page(place).await?;
        file.insert_dead_letters(run.id, &letters, u64::MAX)?;
        place = next;
        if place.is_none() {
            break;
        }
    }
    drop(file);
    let content = &mut work.head.content;
    content.leftovers.extend(content.image.base.take());
    content.image = Image::default();
    content.moved_to = Some(work.place.clone());
    (work.head.leader, work.head.claim) = (None, None);
    work.write().await?;
    work.has_come(&name).await
}

impl Move {
    async fn of(
        moving: Moving,
        client: Client,
        name: &str,
        storage: &Path,
    ) -> Result<Self, Failure> {
        let documents = StateDocuments::new(client.clone(), name);
        let (head, over) = match documents.head().await? {
            Some((head, version)) => (head, Some(version)),
            None => (Head::default(), None),
        };
        let host = Holder::this_process().host.unwrap_or_default();
        let storage = storage.canonicalize()?;
        Ok(Self {
            moving,
            documents,
            letters: DeadLetterIndex::new(client, name),
            place: format!("{} on {host}", storage.display()),
            head,
            over,
        })
    }

    async fn write(&mut self) -> Result<(), Failure> {
        self.head.content.written = time(Utc::now().timestamp_millis());
        let written = self.documents.write_head(&self.head, self.over).await?;
        if written.is_none() {
            return Err(Failure::Failed(anyhow::anyhow!(
                "somebody else has changed the state {} in Elasticsearch meanwhile: stop all \
                 daemons, and repeat it",
                self.documents.name()
            )));
        }
        self.over = written;
        Ok(())
    }

    /// One that has died leads until its lease has ended.
    async fn wait_until_nobody_leads(&mut self, name: &str) -> Result<(), Failure> {
        let began = Instant::now();
        let Some(leader) = self
            .head
            .leader
            .clone()
            .filter(|_| self.head.claim.is_some())
        else {
            return Ok(());
        };
        output::note(format_args!(
            "{leader} led last; waiting until its lease of {} s has ended",
            self.head.lease_ms / 1000
        ));
        while !has_ended(began.elapsed(), self.head.lease_ms) {
            sleep(POLL).await;
            let found = self.documents.head().await?;
            if found.as_ref().map(|(_, version)| *version) != self.over {
                return Err(Failure::Failed(anyhow::anyhow!(
                    "{leader} leads with the state {name}: stop all daemons, and repeat it"
                )));
            }
        }
        Ok(())
    }

    fn has_left(self, name: &str) -> Result<(), Failure> {
        let kept = self.moving.has_left()?;
        output::note(format_args!(
            "the state lies in Elasticsearch now, as {name}: set state = \"elasticsearch\"; the file \
             is kept as {}",
            kept.display()
        ));
        Ok(())
    }

    async fn has_come(self, name: &str) -> Result<(), Failure> {
        // Else those that settle from now on would be there again after a move back.
        self.letters.wait_until_shown().await?;
        self.letters.clear().await?;
        self.documents
            .delete_bases(&self.head.content.leftovers)
            .await?;
        self.moving.has_come()?;
        output::note(format_args!(
            "the state {name} lies in {} now: set state = \"sqlite\"",
            self.place
        ));
        Ok(())
    }
}

fn unfinished(to: &str) -> Failure {
    Failure::Usage(format!(
        "a move the other way is not finished: run `state move --to {to}` first"
    ))
}

fn elsewhere(name: &str, place: &str) -> Failure {
    Failure::Usage(format!(
        "the state {name} has moved to {place}: go on from there, or move it from there"
    ))
}
