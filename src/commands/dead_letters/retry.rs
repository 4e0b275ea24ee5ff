//! `dead-letters retry`: sends them again, after a template was mended or a limit raised.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use crate::checkpoint::{
    Checkpoint, DeadLetter, DeadLetterFilter, DocumentForm, Gap, PagePlace, RunId,
};
use crate::commands::lead::look::{Before, Found};
use crate::commands::room::Room;
use crate::commands::status::safe_form_words;
use crate::commands::transfer::{Patience, demand_template, reach_elasticsearch};
use crate::commands::{Exit, Failure};
use crate::config::Config;
use crate::document::{Encoded, Encoder};
use crate::elastic::bulk::Bulk;
use crate::event::{AuditEvent, Timestamp};
use crate::output::{self, Progress};
use crate::pipeline::batch::{Batch, BatchLimits, StoredDocument};
use crate::pipeline::delivery::{Delivery, InFlight};
use crate::pipeline::{gap, unless_stopped};
use crate::shutdown::Shutdown;

/// What has become of them.
#[derive(Clone, Copy, Default)]
struct Fates {
    created: u64,
    safe_form: u64,
    already_there: u64,
    refused: u64,
    blocked: u64,
    /// Events that never became documents.
    unconverted: u64,
    /// Of which the safe form without their text is there.
    short: u64,
}

/// Each is sent once, and dropped from the store once it has settled. A daemon that runs beside it
/// does no harm: what both send has one id, and what both drop is gone. Those that lie in
/// Elasticsearch were loaded into the store, and follow it there page by page.
pub(super) async fn retry(
    config: &Config,
    checkpoint: Arc<Checkpoint>,
    found: Option<&Found>,
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
    let bytes = Room::for_one(config).bytes();
    // Whoever has a letter has followed a cluster.
    let cluster = checkpoint.summary()?.cluster.unwrap_or_default();
    let mut sender = Sender {
        sink: Arc::new(Bulk::new(client, gzip, bytes)),
        checkpoint,
        limits: BatchLimits {
            bytes: elasticsearch.batch_bytes,
            documents: elasticsearch.batch_documents,
            age: elasticsearch.batch_age,
        },
        cluster,
        encoder: Encoder::new(&elasticsearch.index).with_schema(elasticsearch.schema),
        fates: Fates::default(),
    };
    let all = sender.checkpoint.count_dead_letters(filter)?;
    let mut progress = Progress::new();
    let mut tried = 0;
    let mut show = |tried: u64| {
        // A daemon may add to them meanwhile.
        let thousandths = tried.min(all) * 1000 / all.max(1);
        let said = format_args!("{tried} of {all} dead letters tried");
        progress.show(thousandths, said);
    };
    show(tried);
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
            tried += letters.len() as u64;
            let followed = found.map(|found| {
                let before: Vec<_> = letters.iter().map(Before::of).collect();
                (found, before)
            });
            let sent = unless_stopped(&shutdown.stop, sender.send_all(run, letters)).await;
            // Whatever has become of some of them.
            if let Some((found, before)) = followed {
                found.follow(before, &sender.checkpoint).await?;
            }
            match sent {
                Some(sent) => sent?,
                None => {
                    output::note("stopped before the end; the rest is as it was");
                    return Ok(Exit::Failed);
                }
            }
            show(tried);
        }
    }
    drop(progress);
    let Fates {
        created,
        safe_form,
        already_there,
        refused,
        blocked,
        unconverted,
        short,
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
    if short > 0 {
        output::note(format_args!(
            "{short} were too large, and are there without their text: delete those documents by \
             their ids, and retry; or drop them here"
        ));
    }
    Ok(if refused + blocked + unconverted + short > 0 {
        Exit::Failed
    } else {
        Exit::Done
    })
}

struct Sender {
    sink: Arc<Bulk>,
    checkpoint: Arc<Checkpoint>,
    limits: BatchLimits,
    cluster: String,
    encoder: Encoder,
    fates: Fates,
}

impl Sender {
    /// Most go together. Those that were too large go one by one, as it must be known whether each
    /// was stored as it is; so do those that made no document, each with its gap.
    async fn send_all(&mut self, run: RunId, letters: Vec<DeadLetter>) -> Result<(), Failure> {
        let is_alone = |letter: &DeadLetter| letter.is_too_large() || document(letter).is_none();
        let (alone, others): (Vec<_>, Vec<_>) = letters.into_iter().partition(is_alone);
        let documents: Vec<_> = others.iter().filter_map(document).collect();
        let left = self.deliver(run, &documents).await;
        let keys = documents.iter().map(key).filter(|key| !left.contains(key));
        let keys: Vec<_> = keys.collect();
        let keys = keys.iter().map(|(id, index)| (id.as_str(), index.as_str()));
        self.checkpoint.settle_dead_letters(keys)?;
        for letter in &alone {
            match document(letter) {
                Some(document) => self.send_large(run, &document).await?,
                None => self.send_malformed(run, letter).await?,
            }
        }
        Ok(())
    }

    async fn send_large(&mut self, run: RunId, document: &StoredDocument) -> Result<(), Failure> {
        let before = self.fates;
        let left = self.deliver(run, std::slice::from_ref(document)).await;
        if left.contains(&key(document)) {
            return Ok(());
        }
        if self.fates.already_there > before.already_there {
            self.fates = before;
            self.fates.short += 1;
            return Ok(());
        }
        let (id, index_name) = key(document);
        Ok(self.checkpoint.settle_whole(&id, &index_name)?)
    }

    /// An event of which this version may make a document. What its gap tells of it is needed for
    /// that.
    async fn send_malformed(&mut self, run: RunId, letter: &DeadLetter) -> Result<(), Failure> {
        let gaps = self
            .checkpoint
            .open_gaps_of_dead_letter(&letter.document_id)?;
        let made = gaps.first().and_then(|gap| {
            let document = convert(&mut self.encoder, letter, gap)?;
            Some((document, closing(&self.cluster, &mut self.encoder, gap)?))
        });
        let Some((document, closing)) = made else {
            self.fates.unconverted += 1;
            return Ok(());
        };
        if !self.deliver(run, &[document]).await.is_empty() {
            return Ok(());
        }
        let of_event = self.fates;
        if self.deliver(run, &[closing]).await.is_empty() {
            self.fates = of_event;
            let DeadLetter {
                document_id,
                index_name,
                ..
            } = letter;
            self.checkpoint.settle_whole(document_id, index_name)?;
        }
        Ok(())
    }

    /// Sends documents; those that have not settled.
    async fn deliver(
        &mut self,
        run: RunId,
        documents: &[StoredDocument],
    ) -> HashSet<(String, String)> {
        let delivery = Delivery {
            sink: self.sink.clone(),
            checkpoint: self.checkpoint.clone(),
            run,
            // They are in the store already; only their reasons change.
            dead_letter_bytes: u64::MAX,
            in_flight: InFlight::new(1),
            limits: self.limits,
            stats: Arc::default(),
        };
        let delivered = delivery.deliver(Batch::of_stored(documents)).await;
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
        left
    }
}

fn key(document: &StoredDocument) -> (String, String) {
    (document.id.to_string(), document.index_name.clone())
}

/// The document of an event that made none before.
fn convert(encoder: &mut Encoder, letter: &DeadLetter, gap: &Gap) -> Option<StoredDocument> {
    let mut event = AuditEvent {
        event_type: letter.event_type.clone().into(),
        id: gap.event_id.clone().unwrap_or_default().into(),
        time: letter.time_ms.map(Timestamp::from_millis),
        index: 0,
        body: letter.document.clone().into(),
        session: None,
    };
    let mut out = Vec::new();
    let encoded = encoder.encode(&event, &mut out).ok()?;
    // It is in the header, too, and the id rests on that.
    let written: serde_json::Value = serde_json::from_slice(&out[encoded.source_start..]).ok()?;
    event.index = written["ei"].as_i64().unwrap_or_default();
    // One with neither may be of a recording, on which its id would rest.
    written.get("uid").or(written.get("sid"))?;
    out.clear();
    let encoded = encoder.encode(&event, &mut out).ok()?;
    Some(stored(&encoded, &out))
}

/// The document that closes the gap.
fn closing(cluster: &str, encoder: &mut Encoder, gap: &Gap) -> Option<StoredDocument> {
    let (id, document) = gap::closed(cluster, gap, chrono::Utc::now());
    let mut out = Vec::new();
    let encoded = encoder
        .encode_own(gap.from_ms, id, &document, &mut out)
        .ok()?;
    Some(stored(&encoded, &out))
}

fn stored(encoded: &Encoded, out: &[u8]) -> StoredDocument {
    StoredDocument {
        index_name: encoded.index_name.to_string(),
        id: encoded.id,
        time_ms: encoded.time_ms,
        is_safe_form: false,
        source: out[encoded.source_start..out.len() - 1].to_vec(),
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
