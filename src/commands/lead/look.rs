//! The state in Elasticsearch, for commands that look at it.

use std::collections::BTreeMap;

use crate::checkpoint::{Checkpoint, DeadLetterFilter};
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
    let reached = reach_elasticsearch(elasticsearch, Patience::None, &shutdown.stop).await?;
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

    /// Does in Elasticsearch what was done in that store since `before` was listed by `filter`.
    pub(in crate::commands) async fn apply(
        &self,
        before: &Listed,
        filter: &DeadLetterFilter,
        store: &Checkpoint,
    ) -> Result<(), Failure> {
        let after = Listed::of(store, filter)?.0;
        for (letter, told) in &before.0 {
            let (id, index) = letter;
            match after.get(letter) {
                None => self.letters.settle(id, index).await?,
                // Refused again, for another reason.
                Some(now) if now != told => {
                    let filter = DeadLetterFilter {
                        ids: vec![id.clone()],
                        ..DeadLetterFilter::default()
                    };
                    let page = store.dead_letter_page(&filter, Default::default(), u64::MAX)?;
                    for (_, letter) in page.letters {
                        if letter.index_name == *index {
                            self.letters.keep(&[letter], u64::MAX).await?;
                        }
                    }
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

/// Why dead letters were refused, by id and index.
pub(in crate::commands) struct Listed(BTreeMap<(String, String), Why>);

type Why = (Option<u16>, String, String);

impl Listed {
    pub(in crate::commands) fn of(
        store: &Checkpoint,
        filter: &DeadLetterFilter,
    ) -> Result<Self, Failure> {
        let entries = store.dead_letters(filter, u32::MAX)?.into_iter();
        let entries = entries.map(|entry| {
            let why = (entry.status, entry.error_type, entry.reason);
            ((entry.document_id, entry.index_name), why)
        });
        Ok(Self(entries.collect()))
    }
}
