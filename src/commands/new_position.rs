//! `start --rewind-to` and `--forward-to`: moves where reading goes on. Without `--yes` it only tells
//! what that means.

use chrono::{DateTime, Utc};
use tracing::warn;

use crate::checkpoint::{Checkpoint, RunKind};
use crate::cli::{MovePosition, Way};
use crate::commands::Failure;
use crate::commands::old_days::days;
use crate::commands::status::time;
use crate::commands::transfer::Transfer;

/// Where reading is to go on, and what that means.
#[derive(Debug)]
pub(super) struct NewPosition {
    to_ms: i64,
    meaning: String,
}

impl NewPosition {
    /// Looks at what the order means for the daemon's run, before anything is reached or changed.
    ///
    /// # Errors
    /// If it makes no sense, or the user has not confirmed it.
    pub(super) fn of(
        order: MovePosition,
        checkpoint: &Checkpoint,
        now: DateTime<Utc>,
    ) -> Result<Self, Failure> {
        let MovePosition {
            way,
            to,
            is_confirmed,
        } = order;
        let flag = way.flag();
        let wrong = |problem: String| Err(Failure::Usage(format!("{flag}: {problem}")));
        let mut runs = checkpoint.summary()?.runs.into_iter();
        let Some(run) = runs.find(|run| run.kind == RunKind::Daemon) else {
            return wrong(
                "nothing has been read yet; the first start begins at start-time".to_owned(),
            );
        };
        let to_ms = to.timestamp_millis();
        let (asked, position) = (time(to_ms), time(run.position_ms));
        let meaning = match way {
            _ if to > now => return wrong(format!("{asked} lies in the future")),
            Way::Back if to_ms >= run.position_ms => {
                return wrong(format!(
                    "{asked} is not before the position, {position}; --forward-to skips"
                ));
            }
            Way::Forward if to_ms <= run.position_ms => {
                return wrong(format!(
                    "{asked} is not behind the position, {position}; --rewind-to goes back"
                ));
            }
            Way::Back => {
                let imported = checkpoint.imported()?;
                let doubles = if imported.is_some() && to_ms < run.from_ms {
                    format!(
                        ". What the event handler had sent before {} comes a second time: other \
                         exporters' documents have other ids",
                        time(run.from_ms)
                    )
                } else {
                    String::new()
                };
                format!(
                    "reading goes back from {position} to {asked}: {} are read again, session \
                     recordings too. Documents that are in Elasticsearch are recognised and not \
                     written twice; those that somebody has deleted there come back{doubles}",
                    days(&(to_ms..run.position_ms))
                )
            }
            Way::Forward => format!(
                "reading goes on at {asked}: events from {position} up to then are skipped, {}, and \
                 `start` will never read them; `teleport-event-indexer backfill --from {position} \
                 --to {asked}` does",
                days(&(run.position_ms..to_ms))
            ),
        };
        if !is_confirmed {
            return wrong(format!(
                "{meaning}. Nothing is changed yet: add --yes to do so"
            ));
        }
        Ok(Self { to_ms, meaning })
    }

    /// The new position, in milliseconds since 1970.
    pub(super) fn to_ms(&self) -> i64 {
        self.to_ms
    }

    /// Moves the run there.
    pub(super) fn take(self, transfer: &mut Transfer) -> Result<(), Failure> {
        let start_time = transfer.config.start_time;
        let start_ms = start_time.map(|start| start.timestamp() * 1000);
        let id = transfer.run.id;
        transfer
            .checkpoint
            .move_position(id, self.to_ms, start_ms)?;
        transfer.run = transfer.checkpoint.run(id)?;
        transfer.reading.from_ms = transfer.run.from_ms;
        warn!("{}", self.meaning);
        Ok(())
    }
}
