//! How the program stands, as JSON: what `status --json` prints and the status page shows. The shape
//! is written down in `docs/status.schema.json`. Additions may come; nothing changes its meaning.

use chrono::{DateTime, SecondsFormat};
use serde_json::{Map, Value, json};

use super::health::Health;
use super::history::{EVERY_SECONDS, History};
use super::process::Process;
use crate::checkpoint::{DeadLetterEntry, Holder, RunKind, RunSummary, Summary};
use crate::telemetry::{BulkRequest, End, Standing, Stats};

/// What a running daemon knows beyond its state file.
pub(super) struct Live<'a> {
    pub stats: &'a Stats,
    pub health: &'a Health,
    pub sentence: String,
    pub history: &'a History,
    pub dead_letters: &'a [(DeadLetterEntry, Option<Vec<u8>>)],
    pub process: Process,
    pub started_ms: i64,
    pub now_ms: i64,
}

/// A time as everybody reads it.
pub fn time(ms: i64) -> String {
    DateTime::from_timestamp_millis(ms).map_or_else(
        || ms.to_string(),
        |time| time.to_rfc3339_opts(SecondsFormat::Secs, true),
    )
}

/// What the state file alone tells.
pub fn of_state(summary: &Summary, daemon: Option<&Holder>, identity: Value, now_ms: i64) -> Value {
    let runs = summary.runs.iter().map(|run| of_run(run, now_ms));
    let gaps = summary.newest_gaps.iter().map(|found| {
        let gap = &found.gap;
        json!({"reason": gap.reason, "from": time(gap.from_ms), "to": time(gap.to_ms),
            "detail": gap.detail})
    });
    let (blocked, letters) = (&summary.blocked, &summary.dead_letters);
    json!({
        "now": time(now_ms),
        "state": null,
        "ready": null,
        "cluster": summary.cluster,
        "daemon": daemon.map(|Holder { pid, host }| json!({"pid": pid, "host": host})),
        "identity": identity,
        "runs": runs.collect::<Vec<_>>(),
        "gaps": {"count": summary.gaps, "closed": summary.closed_gaps, "newest": gaps.collect::<Vec<_>>()},
        "blocked": {"count": blocked.count, "bytes": blocked.bytes, "by_index": by_name(&blocked.by_index)},
        "dead_letters": {"count": letters.count, "bytes": letters.bytes,
            "by_error_type": by_name(&letters.by_error_type)},
        "live": null,
    })
}

/// Several clusters, each as its daemon or its state file tells of it.
pub fn of_clusters(now: String, clusters: Vec<Value>) -> Value {
    let daemons = || clusters.iter().map(|cluster| &cluster["daemon"]);
    let daemon = daemons().find(|daemon| daemon.is_object()).cloned();
    json!({"now": now, "state": null, "ready": null, "daemon": daemon, "clusters": clusters})
}

fn by_name(counts: &[(String, u64)]) -> Map<String, Value> {
    let counts = counts.iter();
    counts
        .map(|(name, n)| (name.clone(), (*n).into()))
        .collect()
}

fn of_run(run: &RunSummary, now_ms: i64) -> Value {
    let counts = &run.counts;
    let (kind, to, filters) = match &run.kind {
        RunKind::Daemon => ("daemon", None, None),
        RunKind::Backfill { to_ms, filters } => {
            ("backfill", Some(time(*to_ms)), Some(filters.as_str()))
        }
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
        "filters": filters.filter(|filters| !filters.is_empty()),
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
}

impl Live<'_> {
    /// Adds what only the running daemon knows.
    pub(super) fn add_to(&self, picture: &mut Value) {
        picture["state"] = self.sentence.as_str().into();
        picture["ready"] = self.health.troubles.is_empty().into();
        picture["live"] = self.value();
    }

    fn value(&self) -> Value {
        let stats = self.stats;
        let troubles = self.health.troubles.iter().map(ToString::to_string);
        let held_up = stats.held_up().into_iter().map(|(index, held)| {
            json!({"index": &*index, "since": time(held.since_ms), "what": held.what,
                "mend": held.mend})
        });
        let types = stats.event_types().into_iter();
        let types = types.map(|(name, count)| json!({"type": name, "count": count}));
        let requests = stats.recent_requests();
        let points = || self.history.points();
        json!({
            "started": time(self.started_ms),
            "troubles": troubles.collect::<Vec<_>>(),
            "lag_seconds": stats.lag(self.now_ms).map(|lag| lag.as_secs()),
            "newest_event": Stats::time(&stats.newest_settled_ms).map(time),
            "committed": Stats::time(&stats.committed_ms).map(time),
            "totals": {
                "events": Stats::get(&stats.events),
                "filtered": Stats::get(&stats.filtered),
                "created": Stats::get(&stats.created),
                "safe_form": Stats::get(&stats.safe_form),
                "already_there": Stats::get(&stats.already_there),
                "dead_letters": Stats::get(&stats.dead_letters),
                "document_bytes": Stats::get(&stats.document_bytes),
            },
            "in_flight": {
                "documents": Stats::get(&stats.in_flight_documents),
                "bytes": Stats::get(&stats.in_flight_bytes),
                "requests": Stats::get(&stats.in_flight_requests),
            },
            "teleport": of_end(&stats.teleport, Stats::time(&stats.certificate_end_ms)),
            "elasticsearch": of_end(&stats.elasticsearch, Stats::time(&stats.credentials_end_ms)),
            "held_up": held_up.collect::<Vec<_>>(),
            "blocked_documents": Stats::get(&stats.blocked),
            "event_types": types.collect::<Vec<_>>(),
            "bulk_requests": requests.iter().map(of_request).collect::<Vec<_>>(),
            "dead_letters": self.dead_letters.iter().map(of_letter).collect::<Vec<_>>(),
            "history": {
                "every_seconds": EVERY_SECONDS,
                "at": points().map(|point| time(point.at_ms)).collect::<Vec<_>>(),
                "lag_seconds": points().map(|point| point.lag_seconds).collect::<Vec<_>>(),
                "per_second": points().map(|point| point.per_second).collect::<Vec<_>>(),
            },
            "process": {
                "cpu_seconds": self.process.cpu_seconds,
                "resident_bytes": self.process.resident_bytes,
                "open_files": self.process.open_files,
            },
        })
    }
}

fn of_end(end: &End, credentials_end_ms: Option<i64>) -> Value {
    let (answers, since, said) = match end.standing() {
        Standing::NotReached => (false, None, None),
        Standing::Answers => (true, None, None),
        Standing::Fails { since_ms, said } => (false, Some(time(since_ms)), Some(said)),
    };
    json!({"answers": answers, "failing_since": since, "said": said, "failures": end.failures(),
        "credentials_expire": credentials_end_ms.map(time)})
}

fn of_request(request: &BulkRequest) -> Value {
    json!({
        "ended": time(request.ended_ms),
        "documents": request.documents,
        "bytes": request.bytes,
        "milliseconds": u64::try_from(request.duration.as_millis()).unwrap_or(u64::MAX),
        "outcome": request.outcome.as_str(),
    })
}

/// A reason may quote the document at length.
const LONGEST_REASON: usize = 500;

fn of_letter((letter, payload): &(DeadLetterEntry, Option<Vec<u8>>)) -> Value {
    let payload = payload.as_ref();
    json!({
        "id": letter.document_id,
        "index": letter.index_name,
        "event_type": letter.event_type,
        "time": letter.time_ms.map(time),
        "status": letter.status,
        "error_type": letter.error_type,
        "reason": letter.reason.chars().take(LONGEST_REASON).collect::<String>(),
        "first_seen": time(letter.first_seen_ms),
        "payload": payload.map(|bytes| String::from_utf8_lossy(bytes).into_owned()),
    })
}
