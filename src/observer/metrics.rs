//! Every metric, in one table: name, kind, labels, what it says, and where it comes from.

use std::fmt::Write;

use self::samples::Samples;
use super::health::Health;
use super::process::Process;
use crate::checkpoint::{RunKind, Summary};
use crate::telemetry::{GAP_REASONS, Reason, RequestOutcome, Standing, Stats};

mod samples;

/// What metrics are made of.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    /// The name of the cluster's table, if there are several.
    pub(super) cluster: Option<&'a str>,
    pub(super) stats: &'a Stats,
    pub(super) health: &'a Health,
    /// What the state file tells; `None` before it was looked into.
    pub(super) summary: Option<&'a Summary>,
    pub(super) process: Process,
    pub(super) started_ms: i64,
    pub(super) now_ms: i64,
}

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It goes up and down.
    Gauge,
    /// It goes up, and begins at 0 with the process.
    Counter,
    /// Counts by size.
    Histogram,
}

impl Kind {
    /// Prometheus' word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
            Self::Histogram => "histogram",
        }
    }
}

/// One metric.
#[derive(Debug)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// Its labels and all values of each; empty if it has none.
    pub labels: &'static str,
    /// What it says.
    pub help: &'static str,
    read: fn(&Facts<'_>, &mut Samples<'_>),
}

const fn metric(
    name: &'static str,
    kind: Kind,
    labels: &'static str,
    help: &'static str,
    read: fn(&Facts<'_>, &mut Samples<'_>),
) -> Metric {
    Metric {
        name,
        kind,
        labels,
        help,
        read,
    }
}

/// What a summary tells, once there is one.
fn told(facts: &Facts<'_>, of: impl Fn(&Summary) -> u64) -> Option<f64> {
    facts.summary.map(|summary| of(summary) as f64)
}

fn seconds(ms: Option<i64>) -> Option<f64> {
    ms.map(|ms| ms as f64 / 1000.0)
}

/// What of their time the backfills have to read that have not ended: in all and still, in seconds.
fn backfills(facts: &Facts<'_>) -> Option<(u64, f64, f64)> {
    let mut sums = (0, 0.0, 0.0);
    for run in &facts.summary?.runs {
        if let RunKind::Backfill { to_ms, .. } = run.kind
            && !run.finished
        {
            sums.0 += 1;
            sums.1 += (to_ms - run.from_ms) as f64 / 1000.0;
            sums.2 += (to_ms - run.position_ms) as f64 / 1000.0;
        }
    }
    Some(sums)
}

const ENDS: &str = "`end`: `teleport`, `elasticsearch`";

use Kind::{Counter, Gauge, Histogram};

/// All of them, in the order in which they are given.
pub static METRICS: &[Metric] = &[
    metric(
        "event_indexer_lag_seconds",
        Gauge,
        "",
        "How far behind now the position is: every older event is stored or kept, or its gap is told of.",
        |f, to| to.one(f.stats.lag(f.now_ms).map(|lag| lag.as_secs_f64())),
    ),
    metric(
        "event_indexer_checkpoint_time_seconds",
        Gauge,
        "",
        "The position itself, in seconds since 1970: everything before it is settled.",
        |f, to| to.one(seconds(Stats::time(&f.stats.position_ms))),
    ),
    metric(
        "event_indexer_commit_time_seconds",
        Gauge,
        "",
        "When the state file was last written, in seconds since 1970.",
        |f, to| to.one(seconds(Stats::time(&f.stats.committed_ms))),
    ),
    metric(
        "event_indexer_newest_event_time_seconds",
        Gauge,
        "",
        "When the newest event that is stored took place, in seconds since 1970.",
        |f, to| to.one(seconds(Stats::time(&f.stats.newest_settled_ms))),
    ),
    metric(
        "event_indexer_ready",
        Gauge,
        "",
        "1 if both ends answer and nothing is stalled, as /readyz says; else 0.",
        |f, to| to.one(f64::from(f.health.troubles.is_empty())),
    ),
    metric(
        "event_indexer_stalled",
        Gauge,
        "",
        "1 if both ends answer and Teleport has newer events, and yet nothing has moved for listen.stalled-after; else 0.",
        |f, to| to.one(f64::from(f.health.is_stalled())),
    ),
    metric(
        "event_indexer_leading",
        Gauge,
        "",
        "Where the state lies in Elasticsearch: 1 if this process leads, 0 if it stands by.",
        |f, to| to.one(f.stats.lead.as_gauge()),
    ),
    metric(
        "event_indexer_end_up",
        Gauge,
        ENDS,
        "1 if the last call to this end was answered; else 0.",
        |f, to| {
            for (name, end) in [
                ("teleport", &f.stats.teleport),
                ("elasticsearch", &f.stats.elasticsearch),
            ] {
                to.of("end", name, f64::from(end.standing() == Standing::Answers));
            }
        },
    ),
    metric(
        "event_indexer_source_events_total",
        Counter,
        "`source`: `export`, `search`",
        "Events read from Teleport, each as often as it was read.",
        |f, to| {
            let (all, exported) = (Stats::get(&f.stats.events), Stats::get(&f.stats.exported));
            to.of("source", "export", exported as f64);
            to.of("source", "search", all.saturating_sub(exported) as f64);
        },
    ),
    metric(
        "event_indexer_filtered_events_total",
        Counter,
        "",
        "Events that filters of the configuration took out.",
        |f, to| to.one(Stats::get(&f.stats.filtered) as f64),
    ),
    metric(
        "event_indexer_documents_total",
        Counter,
        "`outcome`: `created`, `safe_form`, `already_there`, `dead_letter`",
        "Documents that have settled, by what became of them.",
        |f, to| {
            let (created, safe_form) =
                (Stats::get(&f.stats.created), Stats::get(&f.stats.safe_form));
            to.of(
                "outcome",
                "created",
                created.saturating_sub(safe_form) as f64,
            );
            to.of("outcome", "safe_form", safe_form as f64);
            to.of(
                "outcome",
                "already_there",
                Stats::get(&f.stats.already_there) as f64,
            );
            to.of(
                "outcome",
                "dead_letter",
                Stats::get(&f.stats.dead_letters) as f64,
            );
        },
    ),
    metric(
        "event_indexer_document_bytes_total",
        Counter,
        "",
        "Bytes of the documents that were created.",
        |f, to| to.one(Stats::get(&f.stats.document_bytes) as f64),
    ),
    metric(
        "event_indexer_bulk_requests_total",
        Counter,
        "`outcome`: `answered`, `halved`, `transient`, `blocked`",
        "Bulk requests that have ended: answered document by document, too large and sent in halves, failed and sent again, or held until somebody does something.",
        |f, to| {
            for outcome in RequestOutcome::ALL {
                to.of(
                    "outcome",
                    outcome.as_str(),
                    f.stats.requests.get(outcome) as f64,
                );
            }
        },
    ),
    metric(
        "event_indexer_bulk_request_duration_seconds",
        Histogram,
        "",
        "How long bulk requests took, failed ones included.",
        |f, to| to.durations(&f.stats.request_durations),
    ),
    metric(
        "event_indexer_bulk_request_bytes_total",
        Counter,
        "",
        "Bytes of bulk requests before compression, each as often as it was sent.",
        |f, to| to.one(Stats::get(&f.stats.request_bytes) as f64),
    ),
    metric(
        "event_indexer_errors_total",
        Counter,
        "`stage`: `pull`, `send`; `reason`: `unreachable`, `credentials`, `denied`, `overloaded`, `other`; `stage`: `convert`; `reason`: `malformed`, `no_time`; `stage`: `commit`; `reason`: `disk_full`, `other`",
        "Calls to Teleport and bulk requests that failed as a whole, each of which is tried again; events that make no document (dead letters); checkpoints that could not be written, which ends the run, and the process where it follows one cluster.",
        |f, to| {
            let mut stage = |stage, reasons: &[Reason], counts: &[u64]| {
                for (reason, count) in reasons.iter().zip(counts) {
                    let labels = [("stage", stage), ("reason", reason.as_str())];
                    to.line("", &labels, *count as f64);
                }
            };
            let (pull, send) = (&f.stats.teleport, &f.stats.elasticsearch);
            stage("pull", &Reason::OF_FAILURES, &pull.failures_by_reason());
            stage("convert", &Reason::OF_EVENTS, &f.stats.unconverted.each());
            stage("send", &Reason::OF_FAILURES, &send.failures_by_reason());
            stage("commit", &Reason::OF_COMMITS, &f.stats.uncommitted.each());
        },
    ),
    metric(
        "event_indexer_retried_documents_total",
        Counter,
        "",
        "Documents that were sent once more, as what hindered them passes by itself.",
        |f, to| to.one(Stats::get(&f.stats.retried) as f64),
    ),
    metric(
        "event_indexer_in_flight_documents",
        Gauge,
        "",
        "Documents whose events were read and that have not settled.",
        |f, to| to.one(Stats::get(&f.stats.in_flight_documents) as f64),
    ),
    metric(
        "event_indexer_in_flight_bytes",
        Gauge,
        "",
        "Bytes of those events, as far as they count against the memory budget.",
        |f, to| to.one(Stats::get(&f.stats.in_flight_bytes) as f64),
    ),
    metric(
        "event_indexer_in_flight_requests",
        Gauge,
        "",
        "Bulk requests under way.",
        |f, to| to.one(Stats::get(&f.stats.in_flight_requests) as f64),
    ),
    metric(
        "event_indexer_gaps_total",
        Counter,
        "`reason`: `event_unreadable`, `event_malformed`, `chunk_unreadable`, `chunk_vanished`, `recording_missing`, `recording_unreadable`, `other`",
        "Spans found that could not be read from Teleport, by why.",
        |f, to| {
            for (reason, count) in GAP_REASONS.into_iter().zip(f.stats.gaps.each()) {
                to.of("reason", reason, count as f64);
            }
        },
    ),
    metric(
        "event_indexer_open_gaps",
        Gauge,
        "",
        "Gaps in the state file that nothing has filled yet.",
        |f, to| to.one(told(f, |summary| summary.gaps)),
    ),
    metric(
        "event_indexer_dead_letters",
        Gauge,
        "",
        "Documents in the dead-letter store.",
        |f, to| to.one(told(f, |summary| summary.dead_letters.count)),
    ),
    metric(
        "event_indexer_dead_letter_bytes",
        Gauge,
        "",
        "Bytes in the dead-letter store, as dead-letter-bytes counts them.",
        |f, to| to.one(told(f, |summary| summary.dead_letters.bytes)),
    ),
    metric(
        "event_indexer_blocked_indices",
        Gauge,
        "`reason`: `denied`, `read_only`, `closed`, `disk_full`, `shard_limit`, `store_full`, `other`",
        "Indices that take nothing until somebody does something, by why; the log and the status page say what. `store_full`: blocked-bytes is used up, so nothing more is read.",
        |f, to| {
            let counts = f.stats.blocked_by_reason();
            for (reason, count) in Reason::OF_BLOCKS.into_iter().zip(counts) {
                to.of("reason", reason.as_str(), count as f64);
            }
        },
    ),
    metric(
        "event_indexer_blocked_documents",
        Gauge,
        "",
        "Documents that wait for them, in memory and in the state file.",
        |f, to| to.one(Stats::get(&f.stats.blocked) as f64),
    ),
    metric(
        "event_indexer_blocked_bytes",
        Gauge,
        "",
        "Bytes of those in the state file, as blocked-bytes counts them.",
        |f, to| to.one(told(f, |summary| summary.blocked.bytes)),
    ),
    metric(
        "event_indexer_credential_start_time_seconds",
        Gauge,
        ENDS,
        "From when the credentials in use hold, in seconds since 1970, as those of the next row; between the two lies their life.",
        |f, to| {
            to.of(
                "end",
                "teleport",
                seconds(Stats::time(&f.stats.certificate_start_ms)),
            );
            to.of(
                "end",
                "elasticsearch",
                seconds(Stats::time(&f.stats.credentials_start_ms)),
            );
        },
    ),
    metric(
        "event_indexer_credential_expiry_time_seconds",
        Gauge,
        ENDS,
        "When the credentials in use end, in seconds since 1970: the certificate for Teleport, the API key or client certificate for Elasticsearch. Left out where they do not end, or it is not known.",
        |f, to| {
            to.of(
                "end",
                "teleport",
                seconds(Stats::time(&f.stats.certificate_end_ms)),
            );
            to.of(
                "end",
                "elasticsearch",
                seconds(Stats::time(&f.stats.credentials_end_ms)),
            );
        },
    ),
    metric(
        "event_indexer_unfinished_backfills",
        Gauge,
        "",
        "Backfills in the state file that have not ended, whether they run or not.",
        |f, to| to.one(backfills(f).map(|(count, ..)| count as f64)),
    ),
    metric(
        "event_indexer_backfill_progress_ratio",
        Gauge,
        "",
        "How much of their time they have behind them, from 0 to 1; 1 if there are none.",
        |f, to| {
            to.one(
                backfills(f).map(|(_, all, left)| if all > 0.0 { 1.0 - left / all } else { 1.0 }),
            )
        },
    ),
    metric(
        "event_indexer_backfill_remaining_seconds",
        Gauge,
        "",
        "How much time of the audit log they have still to read.",
        |f, to| to.one(backfills(f).map(|(.., left)| left)),
    ),
    metric(
        "event_indexer_recordings_pending",
        Gauge,
        "",
        "Session recordings of all runs that are still to be read.",
        |f, to| {
            to.one(told(f, |summary| {
                summary.runs.iter().map(|run| run.open_recordings).sum()
            }))
        },
    ),
    metric(
        "event_indexer_recordings_failed",
        Gauge,
        "",
        "Session recordings of all runs that could not be read so far.",
        |f, to| {
            to.one(told(f, |summary| {
                summary.runs.iter().map(|run| run.failed_recordings).sum()
            }))
        },
    ),
    metric(
        "event_indexer_build_info",
        Gauge,
        "`version`: that of the program",
        "Always 1.",
        |_, to| to.of("version", env!("CARGO_PKG_VERSION"), 1.0),
    ),
    metric(
        "process_cpu_seconds_total",
        Counter,
        "",
        "Processor time that the process has taken (Linux).",
        |f, to| to.one(f.process.cpu_seconds),
    ),
    metric(
        "process_resident_memory_bytes",
        Gauge,
        "",
        "Memory of the process that is resident (Linux).",
        |f, to| to.one(f.process.resident_bytes.map(|bytes| bytes as f64)),
    ),
    metric(
        "process_open_fds",
        Gauge,
        "",
        "Open files and connections (Linux).",
        |f, to| to.one(f.process.open_files.map(|files| files as f64)),
    ),
    metric(
        "process_start_time_seconds",
        Gauge,
        "",
        "When the process started, in seconds since 1970.",
        |f, to| to.one(seconds(Some(f.started_ms))),
    ),
];

/// All metrics as Prometheus reads them, text format 0.0.4; there are facts of each cluster.
pub(super) fn render(facts: &[Facts<'_>]) -> String {
    let mut text = String::with_capacity(8 << 10);
    for metric in METRICS {
        let (name, kind) = (metric.name, metric.kind.as_str());
        writeln!(text, "# HELP {name} {}\n# TYPE {name} {kind}", metric.help)
            .expect("a text takes all");
        // It is about the process, however many clusters it follows.
        let is_of_process = name.starts_with("process_") || name == "event_indexer_build_info";
        for facts in facts {
            let mut samples = Samples {
                text: &mut text,
                name,
                cluster: facts.cluster.filter(|_| !is_of_process),
            };
            (metric.read)(facts, &mut samples);
            if is_of_process {
                break;
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::super::health::Motion;
    use super::*;
    use crate::checkpoint::{RunId, RunSummary};
    use crate::telemetry::BulkRequest;

    fn rendered(stats: &Stats, summary: Option<&Summary>) -> String {
        let motion = Motion::new(Duration::from_secs(300), 0);
        render(&[Facts {
            cluster: None,
            stats,
            health: &Health::of(stats, &motion, None, 1),
            summary,
            process: Process::default(),
            started_ms: 1500,
            now_ms: 10_000,
        }])
    }

    #[test]
    fn the_table_in_the_docs_is_that_of_the_program() {
        let docs = include_str!("../../docs/metrics.md");
        let is_row = |line: &&str| line.starts_with("| `") && !line.starts_with("| `/");
        let written: Vec<&str> = docs.lines().filter(is_row).collect();
        let ours = METRICS.iter().map(|metric| {
            let Metric {
                name,
                kind,
                labels,
                help,
                ..
            } = metric;
            format!("| `{name}` | {} | {labels} | {help} |", kind.as_str())
        });
        let ours: Vec<String> = ours.collect();
        assert_eq!(written, ours);
    }

    #[test]
    fn alerts_and_dashboard_ask_for_what_there_is() {
        let rules = include_str!("../../alerts/teleport-event-indexer.rules.yaml");
        let dashboard = include_str!("../../alerts/grafana-dashboard.json");
        let of_name = |c: char| c.is_ascii_lowercase() || c == '_';
        for (text, least) in [(rules, 9), (dashboard, 15)] {
            let words = text.split(|c| !of_name(c));
            let names: BTreeSet<&str> = words
                .filter(|word| word.starts_with("event_indexer_") || word.starts_with("process_"))
                .map(|name| name.trim_end_matches("_bucket"))
                .collect();
            assert!(names.len() >= least, "{names:?}");
            for name in names {
                assert!(METRICS.iter().any(|metric| metric.name == name), "{name}");
            }
        }
        serde_json::from_str::<serde_json::Value>(dashboard).unwrap();
    }

    #[test]
    fn each_metric_is_described_once_and_has_the_labels_of_the_table() {
        let stats = Stats::default();
        stats.teleport.answered();
        for end in [
            &stats.certificate_start_ms,
            &stats.certificate_end_ms,
            &stats.credentials_start_ms,
            &stats.credentials_end_ms,
            &stats.position_ms,
        ] {
            end.store(4000, std::sync::atomic::Ordering::Relaxed);
        }
        let text = rendered(&stats, Some(&Summary::default()));
        for metric in METRICS {
            let Metric {
                name,
                kind,
                help,
                labels,
                ..
            } = metric;
            let head = format!("# HELP {name} {help}\n# TYPE {name} {}\n", kind.as_str());
            assert_eq!(text.matches(&head).count(), 1, "{name}");
            let is_ours = |line: &&str| line.starts_with(&format!("{name}{{"));
            let values = text.lines().filter(is_ours).flat_map(|line| {
                let (_, rest) = line.split_once('{').unwrap();
                rest.split('"').skip(1).step_by(2)
            });
            let values: BTreeSet<&str> = values.collect();
            let told = labels
                .split("; ")
                .flat_map(|label| label.split('`').skip(3).step_by(2));
            let told: BTreeSet<&str> = told.collect();
            if *name != "event_indexer_build_info" {
                assert_eq!(values, told, "{name}");
            }
            let is_counter = *kind == Counter;
            assert_eq!(name.ends_with("_total"), is_counter, "{name}");
        }
        let is_plain = |line: &str| line.starts_with('#') || line.split(' ').count() == 2;
        assert!(text.lines().all(is_plain), "{text}");
    }

    #[test]
    fn values_are_those_that_were_counted() {
        let stats = Stats::default();
        let relaxed = std::sync::atomic::Ordering::Relaxed;
        stats.position_ms.store(7500, relaxed);
        for (counter, n) in [
            (&stats.events, 10),
            (&stats.exported, 4),
            (&stats.created, 5),
            (&stats.safe_form, 2),
        ] {
            Stats::add(counter, n);
        }
        stats.note_request(BulkRequest {
            ended_ms: 0,
            documents: 5,
            bytes: 100,
            duration: Duration::from_millis(30),
            outcome: RequestOutcome::Transient,
        });
        stats.elasticsearch.failed(Reason::Denied, "no");
        stats.note_unconverted(Reason::NoTime);
        stats.note_uncommitted(Reason::DiskFull);
        stats.note_gap("recording_missing");
        stats.note_gap("something new");
        stats.hold_up(&"index".into(), Reason::Closed, "closed", "");
        stats.blocked_indices.store(1, relaxed);
        let backfill = |from_ms, position_ms, to_ms, finished| RunSummary {
            id: RunId::default(),
            kind: RunKind::Backfill {
                to_ms,
                filters: String::new(),
            },
            from_ms,
            position_ms,
            finished,
            mode: None,
            counts: Default::default(),
            updated_ms: 0,
            open_windows: 0,
            open_chunks: 0,
            gaps: 0,
            recordings: 3,
            open_recordings: 2,
            failed_recordings: 1,
            left_out: Vec::new(),
            skipped: Vec::new(),
        };
        let summary = Summary {
            runs: vec![
                backfill(0, 30_000, 40_000, false),
                backfill(0, 0, 40_000, false),
                backfill(0, 9, 9, true),
            ],
            ..Summary::default()
        };
        let text = rendered(&stats, Some(&summary));
        for line in [
            "event_indexer_lag_seconds 2.5",
            "event_indexer_checkpoint_time_seconds 7.5",
            "event_indexer_ready 0",
            "event_indexer_end_up{end=\"teleport\"} 0",
            "event_indexer_source_events_total{source=\"export\"} 4",
            "event_indexer_source_events_total{source=\"search\"} 6",
            "event_indexer_documents_total{outcome=\"created\"} 3",
            "event_indexer_documents_total{outcome=\"safe_form\"} 2",
            "event_indexer_bulk_requests_total{outcome=\"transient\"} 1",
            "event_indexer_bulk_request_duration_seconds_bucket{le=\"0.025\"} 0",
            "event_indexer_bulk_request_duration_seconds_bucket{le=\"0.05\"} 1",
            "event_indexer_bulk_request_duration_seconds_bucket{le=\"+Inf\"} 1",
            "event_indexer_bulk_request_duration_seconds_sum 0.03",
            "event_indexer_bulk_request_duration_seconds_count 1",
            "event_indexer_errors_total{stage=\"send\",reason=\"denied\"} 1",
            "event_indexer_errors_total{stage=\"pull\",reason=\"denied\"} 0",
            "event_indexer_errors_total{stage=\"convert\",reason=\"malformed\"} 0",
            "event_indexer_errors_total{stage=\"convert\",reason=\"no_time\"} 1",
            "event_indexer_errors_total{stage=\"commit\",reason=\"disk_full\"} 1",
            "event_indexer_errors_total{stage=\"commit\",reason=\"other\"} 0",
            "event_indexer_gaps_total{reason=\"recording_missing\"} 1",
            "event_indexer_gaps_total{reason=\"other\"} 1",
            "event_indexer_blocked_indices{reason=\"closed\"} 1",
            "event_indexer_blocked_indices{reason=\"other\"} 0",
            "event_indexer_unfinished_backfills 2",
            "event_indexer_backfill_progress_ratio 0.375",
            "event_indexer_backfill_remaining_seconds 50",
            "event_indexer_recordings_pending 6",
            "event_indexer_recordings_failed 3",
            "process_start_time_seconds 1.5",
        ] {
            assert!(
                text.lines().any(|given| given == line),
                "no {line} in {text}"
            );
        }
        // What is not known is not made up.
        let text = rendered(&Stats::default(), None);
        let given = |name: &str| text.lines().any(|line| line.starts_with(name));
        assert!(!given("event_indexer_lag_seconds") && !given("event_indexer_open_gaps"));
    }
}
