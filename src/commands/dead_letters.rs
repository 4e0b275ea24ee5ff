//! `dead-letters`: what Elasticsearch refused, in safe form too.

mod retry;

use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::checkpoint::{
    Checkpoint, DeadLetter, DeadLetterEntry, DeadLetterFilter, DocumentForm, Dropped, PagePlace,
};
use crate::cli::DeadLetters;
use crate::commands::lead::look;
use crate::commands::status::{no_state, time};
use crate::commands::{Exit, Failure};
use crate::config::{Config, StateHome};
use crate::output::{self, Reader};
use crate::platform;
use crate::shutdown::Shutdown;

/// Bytes of documents that are in memory at once, beyond one.
const PAGE_BYTES: u64 = 1 << 20;

pub(super) async fn dead_letters(
    config: Config,
    command: DeadLetters,
    shutdown: &Shutdown,
) -> Result<Exit, Failure> {
    if config.state != StateHome::Sqlite {
        return in_elasticsearch(&config, command, shutdown).await;
    }
    let storage = config.storage.as_ref().expect("the command needs it");
    let look = Checkpoint::open_existing_read_only(storage)?.ok_or_else(|| no_state(storage))?;
    match command {
        DeadLetters::Drop(filter) => drop_them(&Checkpoint::open(storage)?, &filter),
        DeadLetters::Retry(filter) => {
            let checkpoint = Arc::new(Checkpoint::open(storage)?);
            retry::retry(&config, checkpoint, None, &filter, shutdown).await
        }
        command => look_at(&look, command),
    }
}

/// The same with those that lie in an index, in a store that they are loaded into.
async fn in_elasticsearch(
    config: &Config,
    command: DeadLetters,
    shutdown: &Shutdown,
) -> Result<Exit, Failure> {
    let found = match look::find(config, shutdown).await? {
        Ok(found) => found,
        Err(stopped) => return Ok(stopped),
    };
    let store = Arc::new(found.store().await?);
    match command {
        DeadLetters::Drop(filter) => {
            found.give_up(&filter, &store).await?;
            drop_them(&store, &filter)
        }
        DeadLetters::Retry(filter) => {
            retry::retry(config, store, Some(&found), &filter, shutdown).await
        }
        command => look_at(&store, command),
    }
}

fn look_at(checkpoint: &Checkpoint, command: DeadLetters) -> Result<Exit, Failure> {
    match command {
        DeadLetters::List {
            filter,
            limit,
            json,
        } => list(checkpoint, &filter, limit, json),
        DeadLetters::Show { id, payload } => show(checkpoint, id, payload),
        DeadLetters::Export { filter, output } => export(checkpoint, &filter, output.as_deref()),
        DeadLetters::Drop(_) | DeadLetters::Retry(_) => unreachable!("they change something"),
    }
}

fn drop_them(checkpoint: &Checkpoint, filter: &DeadLetterFilter) -> Result<Exit, Failure> {
    let Dropped { letters, gaps } = checkpoint.drop_dead_letters(filter)?;
    output::note(format_args!("{letters} dead letters dropped"));
    if gaps > 0 {
        output::note(format_args!(
            "{gaps} gaps closed, as their events are given up; Elasticsearch goes on telling of them, \
             since they will never be there"
        ));
    }
    // Whoever names documents expects them to be there.
    Ok(if letters == 0 && !filter.ids.is_empty() {
        Exit::Failed
    } else {
        Exit::Done
    })
}

fn list(
    checkpoint: &Checkpoint,
    filter: &DeadLetterFilter,
    limit: u32,
    as_json: bool,
) -> Result<Exit, Failure> {
    let entries = checkpoint.dead_letters(filter, limit)?;
    let count = checkpoint.count_dead_letters(filter)?;
    if as_json {
        let entries: Vec<Value> = entries.iter().map(entry_value).collect();
        output::data(serde_json::to_string_pretty(&entries)?)?;
    } else if !entries.is_empty() {
        output::data(table(&entries))?;
    }
    match count.saturating_sub(entries.len() as u64) {
        0 if count == 0 => output::note("no dead letters"),
        0 => {}
        more => output::note(format_args!("and {more} more; see --limit and --help")),
    }
    Ok(Exit::Done)
}

fn table(entries: &[DeadLetterEntry]) -> String {
    let head = ["ID", "TIME", "TYPE", "ERROR TYPE", "BYTES", "FIRST REFUSED"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(entries.iter().map(|entry| {
        [
            entry.document_id.clone(),
            entry.time_ms.map_or_else(|| "-".to_owned(), time),
            printable(&entry.event_type),
            printable(&entry.error_type),
            entry.bytes.to_string(),
            time(entry.first_seen_ms),
        ]
    }));
    let mut widths = [0; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let lines = rows.iter().map(|row| {
        let cells = row.iter().zip(widths);
        let cells: Vec<_> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        cells.join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Words of others as one word: an event's type may hold anything, control characters too.
pub(super) fn printable(text: &str) -> String {
    match text {
        "" => "-".to_owned(),
        text => text.escape_debug().to_string(),
    }
}

fn show(checkpoint: &Checkpoint, id: String, payload: bool) -> Result<Exit, Failure> {
    let filter = DeadLetterFilter {
        ids: vec![id],
        ..DeadLetterFilter::default()
    };
    // The same id may be in several indices, if `index` was changed in between.
    let page = checkpoint.dead_letter_page(&filter, PagePlace::default(), u64::MAX)?;
    if page.letters.is_empty() {
        return Err(Failure::Failed(anyhow::anyhow!(
            "there is no dead letter with the id {:?}",
            filter.ids[0]
        )));
    }
    for (_, letter) in &page.letters {
        let text = letter_text(letter, payload, serde_json::to_string_pretty)?;
        output::data(text)?;
    }
    Ok(Exit::Done)
}

fn export(
    checkpoint: &Checkpoint,
    filter: &DeadLetterFilter,
    path: Option<&Path>,
) -> Result<Exit, Failure> {
    let mut file = match path {
        Some(path) => Some(BufWriter::new(new_private_file(path)?)),
        None => None,
    };
    let (mut place, mut exported) = (Some(PagePlace::default()), 0_u64);
    while let Some(from) = place {
        let page = checkpoint.dead_letter_page(filter, from, PAGE_BYTES)?;
        for (_, letter) in &page.letters {
            let mut line = letter_text(letter, true, serde_json::to_string)?.into_bytes();
            line.push(b'\n');
            match &mut file {
                Some(file) => file
                    .write_all(&line)
                    .with_context(|| failed_to_write(path))?,
                None if output::raw_data(&line)? == Reader::Gone => return Ok(Exit::Done),
                None => {}
            }
            exported += 1;
        }
        place = page.next;
    }
    if let Some(file) = file {
        let file = file.into_inner().map_err(io::IntoInnerError::into_error);
        file.and_then(|file| file.sync_all())
            .with_context(|| failed_to_write(path))?;
    }
    output::note(format_args!("{exported} dead letters exported"));
    Ok(Exit::Done)
}

fn failed_to_write(path: Option<&Path>) -> String {
    let path = path.unwrap_or_else(|| Path::new("-"));
    format!("cannot write {}", path.display())
}

fn new_private_file(path: &Path) -> Result<std::fs::File, Failure> {
    let file = platform::create_private(path);
    Ok(file.with_context(|| format!("cannot create {}, which must not exist", path.display()))?)
}

fn entry_value(entry: &DeadLetterEntry) -> Value {
    json!({
        "id": entry.document_id,
        "index": entry.index_name,
        "type": entry.event_type,
        "time": entry.time_ms.map(time),
        "status": entry.status,
        "error_type": entry.error_type,
        "reason": entry.reason,
        "first_refused": time(entry.first_seen_ms),
        "bytes": entry.bytes,
    })
}

/// A letter as JSON text, on one line or over several.
fn letter_text(
    letter: &DeadLetter,
    with_document: bool,
    text: impl Fn(&Value) -> serde_json::Result<String>,
) -> serde_json::Result<String> {
    let mut value = json!({
        "id": letter.document_id,
        "index": letter.index_name,
        "type": letter.event_type,
        "time": letter.time_ms.map(time),
        "status": letter.status,
        "error_type": letter.error_type,
        "reason": letter.reason,
        "first_refused": time(letter.first_seen_ms),
        "form": letter.form.as_str(),
    });
    if !with_document {
        return text(&value);
    }
    let document = match letter.form {
        DocumentForm::Json => std::str::from_utf8(&letter.document).ok(),
        DocumentForm::Protobuf => None,
    };
    let Some(document) = document else {
        // The bytes of the event as Teleport sent it.
        value["document_base64"] = BASE64_STANDARD.encode(&letter.document).into();
        return text(&value);
    };
    // As it is: reading and writing it anew could change the last digit of a number.
    let text = text(&value)?;
    let head = text.trim_end_matches('}').trim_end();
    Ok(format!("{head},\"document\":{document}}}"))
}
