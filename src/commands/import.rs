//! Takes over the state of Teleport's event handler, so that reading goes on where it has stopped.

use std::path::Path;

use chrono::{NaiveDate, TimeDelta, Utc};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::checkpoint::{Checkpoint, Chunk, Import, Imported, Upload};
use crate::commands::Failure;
use crate::commands::status::time;
use crate::commands::transfer::{Patience, reach};
use crate::config::Config;
use crate::event::DAY_MS;
use crate::event_handler::state::{ExportDay, HandlerState, Place};
use crate::telemetry::End;
use crate::teleport::client::Client;
use crate::teleport::left_off::{LeftOff, LocateError};

/// Reads the folder, before Teleport is asked anything. `None` if its state was taken over before:
/// the flag may stay in a unit or a manifest, and the folder need not.
pub(super) fn read(
    directory: &Path,
    config: &Config,
    checkpoint: &Checkpoint,
) -> Result<Option<HandlerState>, Failure> {
    if let Some(Imported {
        directory: known, ..
    }) = checkpoint.imported()?
        && Path::new(&known).starts_with(directory)
    {
        info!(
            directory = known,
            "the event handler's state was taken over before"
        );
        return Ok(None);
    }
    if checkpoint.has_daemon_run()? {
        return Err(Failure::Usage(
            "--import-state: this storage follows the audit log already; leave the flag out, or \
             give a new storage"
                .to_owned(),
        ));
    }
    let state =
        HandlerState::read(directory).map_err(|unusable| Failure::Unusable(unusable.into()))?;
    match config.start_time {
        Some(asked) if asked.timestamp() != state.start.timestamp() => {
            Err(Failure::Usage(format!(
                "start-time is {} but the event handler has started from {}, and reading goes on \
                 where it has stopped: remove start-time, or leave out --import-state",
                time(asked.timestamp_millis()),
                time(state.start.timestamp_millis())
            )))
        }
        _ => Ok(Some(state)),
    }
}

/// Makes the daemon's run of it. `false`: told to stop.
pub(super) async fn take_over(
    state: &HandlerState,
    config: &Config,
    client: &Client,
    checkpoint: &Checkpoint,
    end: &End,
    stop: &CancellationToken,
) -> Result<bool, Failure> {
    let directory = state.directory.display().to_string();
    let Some(mut import) = place_of(state, config, client, end, stop).await? else {
        return Ok(false);
    };
    let recordings = state.recordings.iter().map(|(session, recording)| {
        let uploaded = recording.uploaded.unwrap_or_else(Utc::now);
        let upload = Upload {
            session: session.clone(),
            upload_ms: uploaded.timestamp_millis(),
        };
        (upload, recording.next_index)
    });
    if config.sessions.is_some() {
        import.recordings = recordings.collect();
    } else if !state.recordings.is_empty() {
        let recordings = state.recordings.len();
        warn!(
            recordings,
            "session recordings that the event handler has not read to their end are left out, since sessions = false"
        );
    }
    let run = checkpoint.import(client.cluster(), &state.directory, &import)?;
    info!(
        directory,
        from = time(run.from_ms),
        sent_of_that_second = import.sent.len(),
        chunks = import.chunks.as_ref().map(Vec::len),
        recordings = import.recordings.len(),
        "taken over from the event handler; it must not run any more"
    );
    Ok(true)
}

async fn place_of(
    state: &HandlerState,
    config: &Config,
    client: &Client,
    end: &End,
    stop: &CancellationToken,
) -> Result<Option<Import>, Failure> {
    let start_ms = state.start.timestamp() * 1000;
    let place = match &state.place {
        Place::Export(days) => {
            return Ok(Some(Import {
                from_ms: midnight_ms(days[0].date),
                start_ms,
                chunks: Some(days.iter().flat_map(chunks).collect()),
                ..Import::default()
            }));
        }
        Place::Search(place) => place,
    };
    let types = config.filter.for_server();
    let left_off = LeftOff {
        window_ms: place.window.timestamp_millis(),
        key: &place.key,
        last_id: &place.last_id,
        types: &types,
        namespace: &config.namespace,
    };
    // Its log may go on a little beyond our time.
    let to_ms = (Utc::now() + TimeDelta::days(1)).timestamp_millis();
    let locate = async || left_off.locate(client, to_ms).await;
    let passes = LocateError::is_transient;
    let found = reach(Patience::Endless(end), stop, locate, passes).await?;
    Ok(found.map(|place| Import {
        from_ms: place.from_ms,
        start_ms,
        sent: place.sent,
        ..Import::default()
    }))
}

fn chunks(day: &ExportDay) -> impl Iterator<Item = (NaiveDate, Chunk)> + use<'_> {
    day.chunks.iter().map(|(name, cursor)| {
        let chunk = Chunk {
            name: name.clone(),
            cursor: cursor.clone().filter(|cursor| !cursor.is_empty()),
            done: cursor.is_none(),
        };
        (day.date, chunk)
    })
}

fn midnight_ms(date: NaiveDate) -> i64 {
    i64::from(date.to_epoch_days()) * DAY_MS
}
