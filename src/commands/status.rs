//! `status`: how far the audit log is indexed, from the state file.

use std::ops::Range;
use std::path::Path;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};

use crate::checkpoint::{Checkpoint, Holder, Role, RoleLock, RunKind, RunSummary, Summary};
use crate::commands::{Exit, Failure, old_days};
use crate::config::Config;
use crate::output::{self, Chain};
use crate::teleport::identity::{Credentials, IdentityError};

pub(super) fn status(config: &Config, as_json: bool) -> Result<Exit, Failure> {
    let storage = config.storage.as_ref().expect("the command needs it");
    let checkpoint =
        Checkpoint::open_existing_read_only(storage)?.ok_or_else(|| no_state(storage))?;
    let summary = checkpoint.summary()?;
    let daemon = RoleLock::holder(storage, &Role::Daemon)?;
    let now_ms = Utc::now().timestamp_millis();
    let identity = config.teleport.as_ref();
    let identity = identity.map(|teleport| Credentials::load(&teleport.credentials));
    let text = if as_json {
        let mut value = as_value(&summary, daemon.as_ref(), now_ms);
        value["identity"] = identity.as_ref().map_or(Value::Null, identity_value);
        serde_json::to_string_pretty(&value)?
    } else {
        let mut text = as_text(&summary, daemon.as_ref(), now_ms);
        if let Some(identity) = &identity {
            text += &format!("\nidentity       {}", identity_words(identity));
        }
        text
    };
    output::data(text)?;
    Ok(Exit::Done)
}

/// Whose the files are now, and until when: the daemon itself may still have those before.
fn identity_words(identity: &Result<Credentials, IdentityError>) -> String {
    match identity {
        Err(unusable) => Chain(unusable).to_string(),
        Ok(credentials) => {
            let end = time(credentials.not_after.timestamp_millis());
            let text = format!("of user {}, valid until {end}", credentials.user);
            if credentials.ends_soon(Utc::now()) {
                format!("{text}: {}", credentials.renewal())
            } else {
                text
            }
        }
    }
}

fn identity_value(identity: &Result<Credentials, IdentityError>) -> Value {
    match identity {
        Err(unusable) => json!({"error": Chain(unusable).to_string()}),
        Ok(credentials) => json!({
            "user": credentials.user,
            "expires": time(credentials.not_after.timestamp_millis()),
            "expires_soon": credentials.ends_soon(Utc::now()),
        }),
    }
}

pub(super) fn no_state(storage: &Path) -> Failure {
    Failure::Failed(anyhow::anyhow!(
        "there is no state in {}: nothing has been started with this storage",
        storage.display()
    ))
}

pub(super) fn time(ms: i64) -> String {
    DateTime::from_timestamp_millis(ms).map_or_else(
        || ms.to_string(),
        |time| time.to_rfc3339_opts(SecondsFormat::Secs, true),
    )
}

fn as_text(summary: &Summary, daemon: Option<&Holder>, now_ms: i64) -> String {
    let mut lines = Vec::new();
    let cluster = summary.cluster.as_deref().unwrap_or("none yet");
    lines.push(format!("cluster        {cluster}"));
    lines.push(match daemon {
        Some(holder) => format!("daemon         runs: {holder}"),
        None => "daemon         does not run".into(),
    });
    for run in &summary.runs {
        lines.extend(run_lines(run, now_ms));
    }
    lines.push(match summary.closed_gaps {
        0 => format!("gaps           {}", summary.gaps),
        closed => format!("gaps           {} open, {closed} closed", summary.gaps),
    });
    for found in &summary.newest_gaps {
        let gap = &found.gap;
        let (from, to) = (time(gap.from_ms), time(gap.to_ms));
        lines.push(format!(
            "  {} from {from} to {to}: {}",
            gap.reason, gap.detail
        ));
    }
    let blocked = &summary.blocked;
    if blocked.count > 0 {
        lines.push(format!(
            "blocked        {} ({} bytes) wait for their index",
            blocked.count, blocked.bytes
        ));
    }
    for (index, count) in &blocked.by_index {
        lines.push(format!("  {count} × {index}"));
    }
    let letters = &summary.dead_letters;
    lines.push(format!(
        "dead letters   {} ({} bytes)",
        letters.count, letters.bytes
    ));
    for (error_type, count) in &letters.by_error_type {
        lines.push(format!("  {count} × {error_type}"));
    }
    lines.join("\n")
}

fn run_lines(run: &RunSummary, now_ms: i64) -> Vec<String> {
    let counts = &run.counts;
    let (head, second) = match &run.kind {
        RunKind::Daemon => {
            let lag = (now_ms - run.position_ms) / 1000;
            let head = format!("following      since {}", time(run.from_ms));
            (
                head,
                format!("  complete up to {} ({lag} s ago)", time(run.position_ms)),
            )
        }
        RunKind::Backfill { to_ms, filters } => {
            let only = if filters.is_empty() {
                String::new()
            } else {
                format!(", {filters}")
            };
            let (from, to) = (time(run.from_ms), time(*to_ms));
            let head = format!("backfill       {from} to {to}{only}");
            let done = if run.finished {
                "  done".into()
            } else {
                format!("  complete up to {}", time(run.position_ms))
            };
            (head, done)
        }
    };
    let safe_form = safe_form_words(counts.safe_form);
    let mut lines = vec![
        head,
        second,
        format!(
            "  {} events read, {} filtered, {} documents created{safe_form}, {} already there, \
             {} dead letters",
            counts.events,
            counts.filtered,
            counts.created,
            counts.already_there,
            counts.dead_letters
        ),
    ];
    if run.recordings + run.open_recordings > 0 {
        let failed = match run.failed_recordings {
            0 => String::new(),
            failed => format!(", {failed} of them could not be read yet"),
        };
        lines.push(format!(
            "  {} session recordings read, {} to be read{failed}",
            run.recordings, run.open_recordings
        ));
    }
    lines.extend(left_out_words(&run.left_out).map(|words| format!("  {words}")));
    lines.extend(skipped_words(&run.skipped).map(|words| format!("  {words}")));
    lines
}

/// `left out, too old for the lifecycle policy: 2025-01-01 to 2025-01-31 (31 days)`, or nothing if
/// nothing is.
pub(super) fn left_out_words(spans: &[Range<i64>]) -> Option<String> {
    if spans.is_empty() {
        return None;
    }
    let days: Vec<String> = spans.iter().map(old_days::days).collect();
    Some(format!(
        "left out, too old for the lifecycle policy: {}",
        days.join(", ")
    ))
}

/// `skipped by start --forward-to: 2026-11-01T00:00:00Z to 2026-11-03T12:00:00Z`, or nothing if nothing
/// is.
fn skipped_words(spans: &[Range<i64>]) -> Option<String> {
    if spans.is_empty() {
        return None;
    }
    let spans = spans.iter();
    let spans: Vec<_> = spans
        .map(|span| format!("{} to {}", time(span.start), time(span.end)))
        .collect();
    Some(format!(
        "skipped by start --forward-to: {}",
        spans.join(", ")
    ))
}

/// ` (3 in safe form)`, or nothing if there are none.
pub(super) fn safe_form_words(count: u64) -> String {
    match count {
        0 => String::new(),
        count => format!(" ({count} in safe form)"),
    }
}

fn as_value(summary: &Summary, daemon: Option<&Holder>, now_ms: i64) -> Value {
    let runs = summary.runs.iter().map(|run| {
        let counts = &run.counts;
        let (kind, to) = match &run.kind {
            RunKind::Daemon => ("daemon", None),
            RunKind::Backfill { to_ms, .. } => ("backfill", Some(time(*to_ms))),
        };
        let lag = (kind == "daemon").then(|| (now_ms - run.position_ms) / 1000);
        let [left_out, skipped] = [&run.left_out, &run.skipped].map(|spans| {
            let spans = spans.iter();
            let spans = spans.map(|span| json!({"from": time(span.start), "to": time(span.end)}));
            spans.collect::<Vec<_>>()
        });
        json!({
            "kind": kind,
            "from": time(run.from_ms),
            "to": to,
            "api": run.mode.map(|mode| mode.as_str()),
            "position": time(run.position_ms),
            "lag_seconds": lag,
            "finished": run.finished,
            "events": counts.events,
            "filtered": counts.filtered,
            "created": counts.created,
            "safe_form": counts.safe_form,
            "already_there": counts.already_there,
            "dead_letters": counts.dead_letters,
            "document_bytes": counts.document_bytes,
            "open_windows": run.open_windows,
            "open_chunks": run.open_chunks,
            "recordings": {"read": run.recordings, "open": run.open_recordings,
                "failed": run.failed_recordings},
            "gaps": run.gaps,
            "left_out": left_out,
            "skipped": skipped,
            "updated": time(run.updated_ms),
        })
    });
    let gaps = summary.newest_gaps.iter().map(|found| {
        let gap = &found.gap;
        json!({"reason": gap.reason, "from": time(gap.from_ms), "to": time(gap.to_ms),
            "detail": gap.detail})
    });
    let blocked = &summary.blocked;
    let by_index: serde_json::Map<String, Value> = blocked
        .by_index
        .iter()
        .map(|(index, n)| (index.clone(), (*n).into()))
        .collect();
    let letters = &summary.dead_letters;
    let by_type: serde_json::Map<String, Value> = letters
        .by_error_type
        .iter()
        .map(|(kind, n)| (kind.clone(), (*n).into()))
        .collect();
    json!({
        "cluster": summary.cluster,
        "daemon": daemon.map(|Holder { pid, host }| json!({"pid": pid, "host": host})),
        "runs": runs.collect::<Vec<_>>(),
        "gaps": {"count": summary.gaps, "closed": summary.closed_gaps, "newest": gaps.collect::<Vec<_>>()},
        "blocked": {"count": blocked.count, "bytes": blocked.bytes, "by_index": by_index},
        "dead_letters": {"count": letters.count, "bytes": letters.bytes, "by_error_type": by_type},
    })
}
