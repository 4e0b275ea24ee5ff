//! Brings the state of a leader into Elasticsearch.
//!
//! The run commits into memory, and what was committed is written a little later. That is safe: a
//! state is a whole, and an older one only has events read again. What must not come before a
//! state is written waits for it here: closed gaps' dead letters, and old bases.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::{Shared, position};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::commands::Failure;
use crate::commands::share::nonce;
use crate::commands::status::time;
use crate::elastic::dead_letters::DeadLetterIndex;
use crate::elastic::state::{StateDocuments, new_base};
use crate::leader::Content;
use crate::leader::image::{Base, Image};
use crate::observer::InMemory;

/// How often it is looked whether there is something to write.
const EVERY: Duration = Duration::from_secs(1);

/// How often it is looked what has become of dead letters.
const LETTERS_EVERY: Duration = Duration::from_secs(10);

/// Characters of changes from which on the whole becomes the next base. Smaller: bases are written
/// more often. Larger: each renewal of the lease carries so much.
const MOST_CHANGES: usize = 128 << 10;

pub(super) struct Publisher {
    documents: StateDocuments,
    letters: DeadLetterIndex,
    shared: Shared,
    cluster: String,
    shown: InMemory,
    known: RefCell<Known>,
}

#[derive(Default)]
struct Known {
    checkpoint: Option<Arc<Checkpoint>>,
    base: Option<Base>,
    base_whole: Arc<Vec<u8>>,
    leftovers: Vec<Base>,
    /// Of the state that was published last.
    sha256: String,
    /// What [`Checkpoint::changes`] said when it was looked at last.
    changes: Option<u64>,
}

impl Publisher {
    pub(super) fn new(
        documents: StateDocuments,
        letters: DeadLetterIndex,
        shared: Shared,
        cluster: String,
        found: &Content,
        shown: InMemory,
    ) -> Self {
        Self {
            documents,
            letters,
            shared,
            cluster,
            shown,
            known: RefCell::new(Known {
                leftovers: found.leftovers.clone(),
                sha256: found.image.sha256.clone(),
                ..Known::default()
            }),
        }
    }

    /// What the state was found to differ from.
    pub(super) fn base_is(&self, base: Base, whole: Vec<u8>) {
        let known = &mut *self.known.borrow_mut();
        known.leftovers.retain(|leftover| *leftover != base);
        known.base = Some(base);
        known.base_whole = Arc::new(whole);
    }

    /// What is to be published.
    pub(super) fn take(&self, checkpoint: Arc<Checkpoint>) {
        self.known.borrow_mut().checkpoint = Some(checkpoint);
    }

    /// It may be dropped at any point.
    pub(super) async fn publish_for_ever(&self) {
        let mut letters_at = Instant::now();
        loop {
            let mut done = match self.publish().await {
                Ok(Some((whole, position))) => self.rebase(whole, position).await,
                Ok(None) => Ok(()),
                Err(failed) => Err(failed),
            };
            if done.is_ok() && !self.known.borrow().leftovers.is_empty() {
                done = self.clean().await;
            }
            if done.is_ok() && Instant::now() >= letters_at {
                letters_at = Instant::now() + LETTERS_EVERY;
                done = Box::pin(self.look_at_letters()).await;
            }
            if let Err(failed) = done {
                warn!(
                    "the state is not brought up to date, trying again: {}",
                    failed.told().0
                );
            }
            sleep(EVERY).await;
        }
    }

    /// Hands the state over to be written, if it is news. Some: it should become the next base.
    pub(super) async fn publish(&self) -> Result<Option<(Vec<u8>, Option<String>)>, Failure> {
        let Some(checkpoint) = self.known.borrow().checkpoint.clone() else {
            return Ok(None);
        };
        // Before the image is taken: what comes meanwhile is news the next time.
        let changes = Some(checkpoint.changes());
        let (base, base_whole) = {
            let known = self.known.borrow();
            if known.changes == changes {
                return Ok(None);
            }
            (known.base.clone(), known.base_whole.clone())
        };
        let made = tokio::task::spawn_blocking(move || {
            let whole = checkpoint.image()?;
            let image = Image::of(&whole, base.as_ref(), &base_whole);
            let position = position(&checkpoint)?;
            Ok::<_, CheckpointError>((whole, image, position))
        });
        let (whole, image, position) = made.await.expect("copying a state does not panic")?;
        {
            let known = &mut *self.known.borrow_mut();
            known.changes = changes;
            if image.sha256 == known.sha256 {
                return Ok(None);
            }
        }
        let is_large = image.changes.len() > MOST_CHANGES;
        self.put(image, position.clone());
        Ok(is_large.then_some((whole, position)))
    }

    fn put(&self, image: Image, position: Option<String>) -> Option<u64> {
        let known = &mut *self.known.borrow_mut();
        known.sha256.clone_from(&image.sha256);
        let content = Content {
            cluster: self.cluster.clone(),
            position,
            written: time(Utc::now().timestamp_millis()),
            moved_to: None,
            image,
            leftovers: known.leftovers.clone(),
        };
        let number = self.shared.candidate.borrow_mut().publish(content);
        self.shared.news.notify_one();
        number
    }

    /// Waits until Elasticsearch has it. It never comes if the lease is lost: the run is dropped then.
    async fn written(&self, number: Option<u64>) {
        let pause = Duration::from_millis(50);
        loop {
            if number.is_some_and(|number| self.shared.candidate.borrow().is_written(number)) {
                return;
            }
            sleep(pause).await;
        }
    }

    /// Makes the whole state the base of all that comes.
    async fn rebase(&self, whole: Vec<u8>, position: Option<String>) -> Result<(), Failure> {
        let name = nonce()?;
        let of_whole = whole.clone();
        let made = tokio::task::spawn_blocking(move || new_base(name, &of_whole));
        let (base, parts) = made.await.expect("packing a state does not panic");
        info!(
            base = base.name,
            bytes = whole.len(),
            "the state gets a new base"
        );
        // Whoever comes after a crash knows what to delete.
        let (before, before_whole) = {
            let known = &mut *self.known.borrow_mut();
            known.leftovers.push(base.clone());
            (known.base.clone(), known.base_whole.clone())
        };
        let image = Image::of(&whole, before.as_ref(), &before_whole);
        self.written(self.put(image, position.clone())).await;
        self.documents.write_base(&base, &parts).await?;
        {
            let known = &mut *self.known.borrow_mut();
            known.leftovers.retain(|leftover| *leftover != base);
            known.leftovers.extend(before);
            known.base = Some(base.clone());
            known.base_whole = Arc::new(whole.clone());
        }
        let image = Image::of(&whole, Some(&base), &whole);
        self.written(self.put(image, position)).await;
        Ok(())
    }

    /// Deletes what nobody needs. What is in Elasticsearch names the base that is in use.
    async fn clean(&self) -> Result<(), Failure> {
        let leftovers = self.known.borrow().leftovers.clone();
        self.documents.delete_bases(&leftovers).await?;
        let known = &mut *self.known.borrow_mut();
        known
            .leftovers
            .retain(|leftover| !leftovers.contains(leftover));
        Ok(())
    }

    /// Closes the gaps of dead letters that have settled, and counts those that have not.
    async fn look_at_letters(&self) -> Result<(), Failure> {
        self.shown.letters_are(self.letters.summary().await?);
        let Some(checkpoint) = self.known.borrow().checkpoint.clone() else {
            return Ok(());
        };
        let mut place = None;
        loop {
            let (settled, next) = self.letters.settled(place).await?;
            if settled.is_empty() {
                return Ok(());
            }
            for letter in &settled {
                checkpoint.settle_whole(&letter.document_id, "")?;
            }
            self.publish().await?;
            // Published before, if it was no news.
            let number = self.shared.candidate.borrow().published();
            self.written(number).await;
            self.letters.forget(&settled).await?;
            place = next;
            if place.is_none() {
                return Ok(());
            }
        }
    }
}
