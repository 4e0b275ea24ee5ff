//! The work on one piece: a small backfill, in the run of the share.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinHandle, spawn_local};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::checkpoint::{Checkpoint, CheckpointError, Chunk, Counts, Run, RunId, SourceMode};
use crate::commands::Failure;
use crate::commands::transfer::{Transfer, reading};
use crate::config::Config;
use crate::elastic::client as elastic;
use crate::pipeline::Summary;
use crate::share::cut::Cut;
use crate::share::worker::Finish;
use crate::share::{ChunkMark, Piece, Progress, Tally};
use crate::telemetry::Stats;
use crate::teleport::client as teleport;

/// Chunks that are written into the piece at most, so that its document stays small: of more than
/// these, those that are left out are read again by whoever takes it over.
const MARKED_CHUNKS: u32 = 2_000;

/// Into how many pieces what is left of a large one is cut, and the shortest that is cut.
const PARTS: u32 = 4;
const SHORTEST_CUT_MS: i64 = 60_000;

/// What each piece needs.
pub(super) struct PieceWork {
    pub(super) config: Config,
    pub(super) teleport: teleport::Client,
    pub(super) client: elastic::Client,
    pub(super) checkpoint: Arc<Checkpoint>,
    pub(super) run: RunId,
    /// Events of session recordings that lie before this are of days that are too old.
    pub(super) kept_from_ms: Option<i64>,
    /// A piece that takes longer is large.
    pub(super) cut_after: Duration,
}

/// The pipeline on one piece.
pub(super) struct Working {
    pub(super) piece: Piece,
    pub(super) stop: CancellationToken,
    pub(super) began: Instant,
    /// It was stopped so that others can help.
    pub(super) cut: Option<Cut>,
    cut_due: Option<Instant>,
    stats: Arc<Stats>,
    task: JoinHandle<Result<Summary, Failure>>,
}

impl Working {
    /// When the piece has proved large; `None` if nothing more is to be done about it.
    pub(super) fn cut_due(&self) -> Option<Instant> {
        self.cut_due
    }

    /// Waits until the pipeline has ended.
    pub(super) async fn ended(mut self) -> Result<Summary, Failure> {
        join(&mut self).await
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        // Where the whole process ends early; a task that has ended minds no more.
        self.task.abort();
    }
}

async fn join(working: &mut Working) -> Result<Summary, Failure> {
    (&mut working.task)
        .await
        .expect("a pipeline does not panic")
}

/// Waits until the work has ended, for ever if there is none. May be begun again.
pub(super) async fn joined(working: &mut Option<Working>) -> Result<Summary, Failure> {
    match working {
        Some(working) => join(working).await,
        None => std::future::pending().await,
    }
}

impl PieceWork {
    /// Begins where the piece says that it stands. Only within a `LocalSet`.
    pub(super) async fn begin(&self, piece: Piece) -> Result<Working, Failure> {
        let Piece {
            from_ms,
            to_ms,
            part,
            ..
        } = piece;
        let position_ms = piece.progress.position_ms;
        let chunks: Vec<_> = piece.progress.chunks.iter().map(begun).collect();
        let run = self
            .blocking(move |checkpoint, run| {
                checkpoint.begin_piece(run, from_ms, to_ms, position_ms, &chunks)?;
                checkpoint.run(run)
            })
            .await?;
        let mut reading = reading(&self.config, from_ms);
        reading.to_ms = Some(to_ms);
        reading.part = part;
        reading.kept_from_ms = self.kept_from_ms;
        let stats = Arc::new(Stats::default());
        let stop = CancellationToken::new();
        let transfer = Transfer {
            config: self.config.clone(),
            client: self.teleport.clone(),
            checkpoint: self.checkpoint.clone(),
            run,
            reading,
            stats: stats.clone(),
            reload: None,
            lease: None,
        };
        let (client, token) = (self.client.clone(), stop.clone());
        let began = Instant::now();
        Ok(Working {
            piece,
            stop,
            began,
            cut: None,
            cut_due: Some(began + self.cut_after),
            stats,
            task: spawn_local(async move { transfer.into_elasticsearch(client, token).await }),
        })
    }

    /// How far everything is settled, by the state file.
    pub(super) async fn progress(&self, working: &Working) -> Result<(Progress, Tally), Failure> {
        let pieces = working.cut.map_or(1, Cut::pieces);
        let before = working.piece.progress.clone();
        let (progress, counts) = self
            .blocking(move |checkpoint, run| progress(checkpoint, run, before, pieces))
            .await?;
        let gaps = working.stats.gaps.sum();
        let tally = Tally {
            events: counts.events,
            created: counts.created,
            safe_form: counts.safe_form,
            already_there: counts.already_there,
            dead_letters: counts.dead_letters,
            gaps,
        };
        Ok((progress, tally))
    }

    /// Stops the work on a large piece, so that what is left of it can be cut, if it can.
    pub(super) fn cut(&self, working: &mut Working) -> Result<(), Failure> {
        working.cut_due = None;
        let run = self.checkpoint.run(self.run)?;
        let piece = &working.piece;
        let cut = match run.mode {
            Some(SourceMode::Search) if piece.to_ms - run.position_ms >= SHORTEST_CUT_MS => {
                Cut::Time(PARTS)
            }
            // A chunk is read from its start to its end, so the last one cannot be shared.
            Some(SourceMode::Export) if self.checkpoint.unfinished_chunks(self.run)? > 1 => {
                Cut::Chunks(PARTS)
            }
            _ => return Ok(()),
        };
        info!("the piece is large: what is left of it is cut");
        working.cut = Some(cut);
        working.stop.cancel();
        Ok(())
    }

    /// What the end of the work means for the piece.
    pub(super) fn judge(&self, done: &Working, summary: Summary) -> Result<Finish, Failure> {
        if summary.complete {
            // Refuses if the position is not at the end.
            self.checkpoint.finish_run(self.run)?;
            return Ok(Finish::Done);
        }
        Ok(done.cut.map_or(Finish::Back, Finish::Cut))
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Checkpoint, RunId) -> Result<T, CheckpointError> + Send + 'static,
    ) -> Result<T, Failure> {
        let (checkpoint, run) = (self.checkpoint.clone(), self.run);
        let done = tokio::task::spawn_blocking(move || work(&checkpoint, run));
        Ok(done.await.expect("the checkpoint does not panic")?)
    }
}

/// How far everything is settled that is to be divided among so many pieces. No session recording that
/// is to be read is passed: whoever takes a piece over finds it only by the event that tells of it.
fn progress(
    checkpoint: &Checkpoint,
    run: RunId,
    before: Progress,
    pieces: u32,
) -> Result<(Progress, Counts), CheckpointError> {
    // Of a cut each new piece may have as many.
    let chunks = checkpoint.begun_chunks(run, MARKED_CHUNKS.saturating_mul(pieces))?;
    let Run {
        position_ms,
        counts,
        ..
    } = checkpoint.run(run)?;
    // The last: what is read meanwhile is settled.
    let progress = match checkpoint.first_upload_to_read_ms(run)? {
        // In which chunk that event lies is not known.
        Some(upload_ms) => Progress {
            position_ms: position_ms.min(upload_ms).max(before.position_ms),
            chunks: before.chunks,
        },
        None => Progress {
            position_ms,
            chunks: chunks.into_iter().map(mark).collect(),
        },
    };
    Ok((progress, counts))
}

fn begun(mark: &ChunkMark) -> (i32, Chunk) {
    let chunk = Chunk {
        name: mark.chunk.clone(),
        cursor: mark.cursor.clone(),
        done: mark.cursor.is_none(),
    };
    (mark.day, chunk)
}

fn mark((day, chunk): (i32, Chunk)) -> ChunkMark {
    ChunkMark {
        day,
        chunk: chunk.name,
        cursor: chunk.cursor,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::DAY_MS;

    /// A day may have any number of chunks, and a document in Elasticsearch may not be of any size.
    #[test]
    fn of_many_chunks_so_many_are_marked_for_each_piece_and_those_that_are_done_first() {
        let checkpoint = Checkpoint::open_in_memory().unwrap();
        let run = checkpoint.share_run("example", "large").unwrap();
        let chunk = |n: u32| {
            let done = n % 2 == 1;
            let cursor = (!done).then(|| "7".to_owned());
            let name = format!("{n:05}");
            (1, Chunk { name, cursor, done })
        };
        let begun: Vec<_> = (0..2 * 5 * MARKED_CHUNKS).map(chunk).collect();
        checkpoint
            .begin_piece(run, DAY_MS, 2 * DAY_MS, DAY_MS, &begun)
            .unwrap();
        for pieces in [1, PARTS] {
            let before = Progress::default();
            let (progress, _) = progress(&checkpoint, run, before, pieces).unwrap();
            let n_marks = (MARKED_CHUNKS * pieces) as usize;
            assert_eq!(progress.chunks.len(), n_marks);
            assert!(progress.chunks.iter().all(|mark| mark.cursor.is_none()));
        }
    }
}
