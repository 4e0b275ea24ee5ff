//! What `status` tells of the state file.

use std::ops::Range;

use rusqlite::Transaction;

use super::commit::Counts;
use super::gap::{self, Gap};
use super::left_out::Why;
use super::run::{self, COUNT_COLUMNS, RunId, RunKind, SourceMode};
use super::{Checkpoint, CheckpointError, blocked, dead_letter, left_out, unsigned};

/// How many gaps [`Summary`] names; it counts all.
const NEWEST_GAPS: u32 = 5;

/// The state file in short, as of one moment. Times are milliseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// The cluster it belongs to; `None` if nothing was ever started.
    pub cluster: Option<String>,
    /// All runs, the oldest first.
    pub runs: Vec<RunSummary>,
    /// How many gaps are open.
    pub gaps: u64,
    /// How many were closed: what was missing came later.
    pub closed_gaps: u64,
    /// The open gaps found last, the newest first.
    pub newest_gaps: Vec<FoundGap>,
    /// The dead-letter store.
    pub dead_letters: DeadLetterSummary,
    /// Documents that wait here because their index is blocked.
    pub blocked: BlockedSummary,
}

/// A run in short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunSummary {
    /// Its number.
    pub id: RunId,
    /// The daemon's or a backfill's.
    pub kind: RunKind,
    /// Where it began.
    pub from_ms: i64,
    /// The event API it reads by, if one was chosen.
    pub mode: Option<SourceMode>,
    /// Everything before this is settled.
    pub position_ms: i64,
    /// Whether a backfill has settled everything.
    pub finished: bool,
    /// What has settled since the run began.
    pub counts: Counts,
    /// When it was last changed.
    pub updated_ms: i64,
    /// Search: windows that are planned or begun.
    pub open_windows: u64,
    /// Export: chunks that are listed or begun.
    pub open_chunks: u64,
    /// Session recordings that were read to their end.
    pub recordings: u64,
    /// Those that are to be read, or to be looked for again.
    pub open_recordings: u64,
    /// Those of them that could not be read so far.
    pub failed_recordings: u64,
    /// Gaps that it found and that are open.
    pub gaps: u64,
    /// What it left out, the oldest first; see [`Checkpoint::leave_out`].
    pub left_out: Vec<Range<i64>>,
    /// What it skipped because somebody has moved its position, the oldest first; see
    /// [`Checkpoint::move_position`].
    pub skipped: Vec<Range<i64>>,
}

/// A gap and the run that found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundGap {
    /// The run.
    pub run: RunId,
    /// The gap.
    pub gap: Gap,
}

/// The dead-letter store in short.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadLetterSummary {
    /// How many documents it holds.
    pub count: u64,
    /// How many bytes it holds, as its cap counts them.
    pub bytes: u64,
    /// Documents by error type, the most frequent first.
    pub by_error_type: Vec<(String, u64)>,
}

/// Documents of blocked indices in short.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockedSummary {
    /// How many wait here.
    pub count: u64,
    /// How many bytes they hold, as their cap counts them.
    pub bytes: u64,
    /// Documents by index, the most first.
    pub by_index: Vec<(String, u64)>,
}

impl Checkpoint {
    /// The state file in short. Reads one consistent state beside whoever writes.
    ///
    /// # Errors
    /// If the state file cannot be read.
    pub fn summary(&self) -> Result<Summary, CheckpointError> {
        self.read("read the summary", |transaction| {
            let (count, bytes) = dead_letter::totals(transaction)?;
            let (blocked, blocked_bytes) = blocked::totals(transaction)?;
            Ok(Summary {
                cluster: transaction
                    .query_row("SELECT cluster FROM state", [], |row| row.get(0))?,
                runs: runs(transaction)?,
                gaps: count_gaps(transaction, "closed_ms IS NULL")?,
                closed_gaps: count_gaps(transaction, "closed_ms IS NOT NULL")?,
                newest_gaps: newest_gaps(transaction)?,
                dead_letters: DeadLetterSummary {
                    count,
                    bytes,
                    by_error_type: by_error_type(transaction)?,
                },
                blocked: BlockedSummary {
                    count: blocked,
                    bytes: blocked_bytes,
                    by_index: by_index(transaction)?,
                },
            })
        })
    }
}

fn count_gaps(transaction: &Transaction<'_>, which: &str) -> rusqlite::Result<u64> {
    transaction
        .prepare_cached(&format!("SELECT count(*) FROM gaps WHERE {which}"))?
        .query_row([], |row| row.get(0).map(unsigned))
}

fn runs(transaction: &Transaction<'_>) -> rusqlite::Result<Vec<RunSummary>> {
    let mut runs: Vec<RunSummary> = transaction
        .prepare_cached(&format!(
            "SELECT id, from_ms, to_ms, filters, mode, position_ms, finished, updated_ms, recordings,
                 (SELECT count(*) FROM recordings WHERE run_id = runs.id AND state = 'pending')
                     AS open_recordings,
                 (SELECT count(*) FROM recordings
                     WHERE run_id = runs.id AND state = 'pending' AND failures > 0)
                     AS failed_recordings,
                 (SELECT count(*) FROM windows WHERE run_id = runs.id AND reached_ms < windows.to_ms)
                     AS open_windows,
                 (SELECT count(*) FROM chunks WHERE run_id = runs.id AND done = 0) AS open_chunks,
                 (SELECT count(*) FROM gaps WHERE run_id = runs.id AND closed_ms IS NULL) AS gaps,
                 {COUNT_COLUMNS}
             FROM runs ORDER BY id"
        ))?
        .query_map([], |row| {
            let to_ms: Option<i64> = row.get("to_ms")?;
            let kind = match to_ms {
                None => RunKind::Daemon,
                Some(to_ms) => RunKind::Backfill {
                    to_ms,
                    filters: row.get("filters")?,
                },
            };
            Ok(RunSummary {
                id: RunId(row.get("id")?),
                kind,
                from_ms: row.get("from_ms")?,
                mode: row.get("mode")?,
                position_ms: row.get("position_ms")?,
                finished: row.get("finished")?,
                counts: run::read_counts(row)?,
                updated_ms: row.get("updated_ms")?,
                open_windows: row.get("open_windows").map(unsigned)?,
                open_chunks: row.get("open_chunks").map(unsigned)?,
                recordings: row.get("recordings").map(unsigned)?,
                open_recordings: row.get("open_recordings").map(unsigned)?,
                failed_recordings: row.get("failed_recordings").map(unsigned)?,
                gaps: row.get("gaps").map(unsigned)?,
                left_out: Vec::new(),
                skipped: Vec::new(),
            })
        })?
        .collect::<Result<_, _>>()?;
    for run in &mut runs {
        run.left_out = left_out::of(transaction, run.id, Why::TooOld)?;
        run.skipped = left_out::of(transaction, run.id, Why::Skipped)?;
    }
    Ok(runs)
}

fn newest_gaps(transaction: &Transaction<'_>) -> rusqlite::Result<Vec<FoundGap>> {
    transaction
        .prepare_cached(
            "SELECT * FROM gaps WHERE closed_ms IS NULL ORDER BY found_ms DESC, id DESC LIMIT ?1",
        )?
        .query_map([NEWEST_GAPS], |row| {
            Ok(FoundGap {
                run: RunId(row.get("run_id")?),
                gap: gap::read(row)?,
            })
        })?
        .collect()
}

fn by_error_type(transaction: &Transaction<'_>) -> rusqlite::Result<Vec<(String, u64)>> {
    transaction
        .prepare_cached(
            "SELECT error_type, count(*) FROM dead_letters GROUP BY error_type
             ORDER BY count(*) DESC, error_type",
        )?
        .query_map([], |row| Ok((row.get(0)?, unsigned(row.get(1)?))))?
        .collect()
}

fn by_index(transaction: &Transaction<'_>) -> rusqlite::Result<Vec<(String, u64)>> {
    transaction
        .prepare_cached(
            "SELECT index_name, count(*) FROM blocked GROUP BY index_name
             ORDER BY count(*) DESC, index_name",
        )?
        .query_map([], |row| Ok((row.get(0)?, unsigned(row.get(1)?))))?
        .collect()
}
