//! `dead-letters retry`: sends them again, after a template was mended or a limit raised.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use crate::checkpoint::{Checkpoint, DeadLetter, DeadLetterFilter, DocumentForm, PagePlace, RunId};
use crate::commands::status::safe_form_words;
use crate::commands::transfer::{Patience, demand_template, reach_elasticsearch};
use crate::commands::{Exit, Failure};
use crate::config::Config;
use crate::elastic::bulk::Bulk;
use crate::output;
use crate::pipeline::batch::{Batch, BatchLimits, StoredDocument};
use crate::pipeline::delivery::{Delivery, InFlight};
use crate::pipeline::{quota, unless_stopped};
use crate::shutdown::Shutdown;

/// What has become of them.
#[derive(Default)]
struct Fates {
    created: u64,
    safe_form: u64,
    already_there: u64,
    refused: u64,
    blocked: u64,
    /// Events that never became documents.
    unconverted: u64,
}

/// Each is sent once, and dropped from the store once it has settled. A daemon that runs beside it
/// does no harm: what both send has one id, and what both drop is gone.
pub(super) async fn retry(
    config: &Config,
    checkpoint: Checkpoint,
    filter: &DeadLetterFilter,
    shutdown: &Shutdown,
) -> Result<Exit, Failure> {
    let elasticsearch = config.elasticsearch.as_ref();
    let elasticsearch = elasticsearch.expect("the command needs it");
    let reached = reach_elasticsearch(elasticsearch, Patience::None, &shutdown.stop).await?;
    let Some((client, _)) = reached else {
        return Ok(Exit::Failed);
    };
    demand_template(&client, elasticsearch).await?;
    let gzip = elasticsearch.gzip.unwrap_or(!client.is_local());
    let bytes = config.limits.bytes_per_second.map(quota::limiter);
    let mut sender = Sender {
        sink: Arc::new(Bulk::new(client, gzip, bytes)),
        checkpoint: Arc::new(checkpoint),
        limits: BatchLimits {
            bytes: elasticsearch.batch_bytes,
            documents: elasticsearch.batch_documents,
            age: elasticsearch.batch_age,
        },
        fates: Fates::default(),
    };
    let mut place = Some(PagePlace::default());
    while let Some(from) = place {
        let most = elasticsearch.batch_bytes as u64;
        let page = sender.checkpoint.dead_letter_page(filter, from, most)?;
        place = page.next;
        let mut by_run: BTreeMap<RunId, Vec<DeadLetter>> = BTreeMap::new();
        for (run, letter) in page.letters {
            by_run.entry(run).or_default().push(letter);
        }
        for (run, letters) in by_run {
            let sent = sender.send(run, &letters);
            match unless_stopped(&shutdown.stop, sent).await {
                Some(sent) => sent?,
                None => {
                    output::note("stopped before the end; the rest is as it was");
                    return Ok(Exit::Failed);
                }
            }
        }
    }
    let Fates {
        created,
        safe_form,
        already_there,
        refused,
        blocked,
        unconverted,
    } = sender.fates;
    let safe_form = safe_form_words(safe_form);
    output::note(format_args!(
        "{created} stored{safe_form}, {already_there} were there already, {refused} refused again, \
         {blocked} blocked"
    ));
    if unconverted > 0 {
        output::note(format_args!(
            "{unconverted} are events of which no document can be made; `export` gives their bytes"
        ));
    }
    Ok(if refused + blocked + unconverted > 0 {
        Exit::Failed
    } else {
        Exit::Done
    })
}

struct Sender {
    sink: Arc<Bulk>,
    checkpoint: Arc<Checkpoint>,
    limits: BatchLimits,
    fates: Fates,
}

impl Sender {
    async fn send(&mut self, run: RunId, letters: &[DeadLetter]) -> Result<(), Failure> {
        let documents: Vec<_> = letters.iter().filter_map(document).collect();
        self.fates.unconverted += (letters.len() - documents.len()) as u64;
        let delivery = Delivery {
            sink: self.sink.clone(),
            checkpoint: self.checkpoint.clone(),
            run,
            // They are in the store already; only their reasons change.
            dead_letter_bytes: u64::MAX,
            in_flight: InFlight::new(1),
            limits: self.limits,
        };
        let delivered = delivery.deliver(Batch::of_stored(&documents)).await;
        let fates = &mut self.fates;
        fates.created += delivered.created;
        fates.safe_form += delivered.safe_form;
        fates.already_there += delivered.already_there;
        fates.refused += delivered.dead_letters.len() as u64;
        let mut left: HashSet<(String, String)> = delivered.dead_letters.into_iter().collect();
        for (index, held) in delivered.blocked {
            output::note(format_args!("blocked: {index}: {}", held.fault.what));
            output::note(format_args!("hint: {}", held.fault.mend));
            let operations = held.batches.iter().flat_map(|batch| &batch.operations);
            for operation in operations {
                fates.blocked += 1;
                left.insert((operation.id.to_string(), index.to_string()));
            }
        }
        let keys = documents.iter();
        let keys: Vec<_> = keys
            .map(|document| (document.id.to_string(), document.index_name.clone()))
            .filter(|key| !left.contains(key))
            .collect();
        let keys = keys.iter().map(|(id, index)| (id.as_str(), index.as_str()));
        Ok(self.checkpoint.settle_dead_letters(keys)?)
    }
}

/// What is sent of a letter: the document as it was refused first.
fn document(letter: &DeadLetter) -> Option<StoredDocument> {
    match letter.form {
        DocumentForm::Json => Some(StoredDocument {
            index_name: letter.index_name.clone(),
            id: letter.document_id.parse().ok()?,
            time_ms: letter.time_ms.unwrap_or_default(),
            is_safe_form: false,
            source: letter.document.clone(),
        }),
        DocumentForm::Protobuf => None,
    }
}
