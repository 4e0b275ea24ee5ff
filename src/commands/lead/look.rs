//! The state in Elasticsearch, for commands that look at it.

use crate::checkpoint::{Checkpoint, DeadLetter, DeadLetterFilter, PagePlace};
use crate::commands::lead::{state_name, whole_of};
use crate::commands::transfer::{Patience, reach_elasticsearch};
use crate::commands::{Exit, Failure};
use crate::config::Config;
use crate::elastic::dead_letters::DeadLetterIndex;
use crate::elastic::state::StateDocuments;
use crate::leader::{Content, Head};
use crate::shutdown::Shutdown;

/// How often the head is read anew when its base was replaced meanwhile.
const TRIES: u32 = 5;

/// Bytes of letters that are in memory at once, beyond one.
const PAGE_BYTES: u64 = 1 << 20;

/// A state as it was a moment ago.
pub(in crate::commands) struct Found {
    pub head: Head<Content>,
    /// In memory: changes are forgotten.
    pub checkpoint: Checkpoint,
    pub letters: DeadLetterIndex,
}

/// Reads the state. `Err(Exit)`: told to stop.
pub(in crate::commands) async fn find(
    config: &Config,
    shutdown: &Shutdown,
) -> Result<Result<Found, Exit>, Failure> {
    let name = state_name(config)?;
    let elasticsearch = config.elasticsearch.as_ref();
    let elasticsearch = elasticsearch.expect("the command needs it");
    let reached = reach_elasticsearch(elasticsearch, Patience::Seconds, &shutdown.stop).await?;
    let Some((client, _)) = reached else {
        return Ok(Err(Exit::Failed));
    };
    let documents = StateDocuments::new(client.clone(), &name);
    let mut tried = 0;
    let (head, whole) = loop {
        let Some((head, _)) = documents.head().await? else {
            return Err(Failure::Failed(anyhow::anyhow!(
                "there is no state {name} in Elasticsearch: nothing has been started with this name"
            )));
        };
        tried += 1;
        match whole_of(&documents, &head.content, None).await {
            Ok(whole) => break (head, whole),
            Err(failed) if tried == TRIES => return Err(failed),
            Err(_) => {}
        }
    };
    let checkpoint = Checkpoint::of_image(&whole, &format!("{name} in Elasticsearch"))?;
    Ok(Ok(Found {
        head,
        checkpoint,
        letters: DeadLetterIndex::new(client, &name),
    }))
}

impl Found {
    /// The dead letters in a store of their own, with the gaps that some have left, which is on the
    /// disk once it is large.
    pub(in crate::commands) async fn store(&self) -> Result<Checkpoint, Failure> {
        let store = Checkpoint::open_temporary()?;
        let (run, _) = store.daemon_run(&self.head.content.cluster, || 0)?;
        let mut place = None;
        loop {
            let (letters, next) = self.letters.page(place).await?;
            store.insert_dead_letters(run.id, &letters, u64::MAX)?;
            for letter in &letters {
                for gap in self
                    .checkpoint
                    .open_gaps_of_dead_letter(&letter.document_id)?
                {
                    store.record_gap(run.id, &gap)?;
                }
            }
            place = next;
            if place.is_none() {
                return Ok(store);
            }
        }
    }

    /// Gives up in Elasticsearch what `filter` chooses of that store.
    pub(in crate::commands) async fn give_up(
        &self,
        filter: &DeadLetterFilter,
        store: &Checkpoint,
    ) -> Result<(), Failure> {
        let mut place = Some(PagePlace::default());
        while let Some(from) = place {
            let page = store.dead_letter_page(filter, from, PAGE_BYTES)?;
            let keys = page.letters.into_iter();
            let keys = keys.map(|(_, letter)| (letter.document_id, letter.index_name));
            self.letters.settle(&keys.collect::<Vec<_>>()).await?;
            place = page.next;
        }
        Ok(())
    }

    /// Does in Elasticsearch what has become in that store of letters that were sent again.
    pub(in crate::commands) async fn follow(
        &self,
        sent: Vec<Before>,
        store: &Checkpoint,
    ) -> Result<(), Failure> {
        let (mut settled, mut refused) = (Vec::new(), Vec::new());
        for before in sent {
            match store.dead_letter(&before.document_id, &before.index_name)? {
                None => settled.push((before.document_id, before.index_name)),
                // For another reason.
                Some(now) if Before::of(&now) != before => refused.push(now),
                Some(_) => {}
            }
        }
        self.letters.settle(&settled).await?;
        if !refused.is_empty() {
            self.letters.keep(&refused, u64::MAX).await?;
        }
        Ok(())
    }
}

/// Which letter was sent again, and why it had been refused.
#[derive(PartialEq, Eq)]
pub(in crate::commands) struct Before {
    document_id: String,
    index_name: String,
    status: Option<u16>,
    error_type: String,
    reason: String,
}

impl Before {
    pub(in crate::commands) fn of(letter: &DeadLetter) -> Self {
        Self {
            document_id: letter.document_id.clone(),
            index_name: letter.index_name.clone(),
            status: letter.status,
            error_type: letter.error_type.clone(),
            reason: letter.reason.clone(),
        }
    }
}
