//! What a comparison has found, as a table or JSON.

use std::collections::BTreeMap;

use chrono::NaiveDate;
use serde_json::{Value, json};

use crate::checkpoint::tally::ByDayAndType;
use crate::checkpoint::{Gap, Kept};
use crate::commands::dead_letters::printable;
use crate::commands::status::time;

/// By day (UTC) and event type; events without a usable time have no day.
#[derive(Debug)]
pub(super) struct Report {
    rows: BTreeMap<(Option<NaiveDate>, String), Row>,
    /// Whether what was missing was sent.
    pub refilled: bool,
    /// What Teleport could not hand out.
    pub gaps: Vec<Gap>,
}

/// What became of the events of one day and type, or of all.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Row {
    /// Events that Teleport has.
    pub events: u64,
    /// Those that Elasticsearch has not.
    pub missing: u64,
    /// Those that it had not at first.
    pub refilled: u64,
    /// Those of `missing` that are dead letters.
    pub dead_letters: u64,
    /// Those of `missing` that wait for their index.
    pub waiting: u64,
    /// Those of `missing` that an open gap tells of.
    pub in_gaps: u64,
}

impl Row {
    /// One more document that is missing, and what the state file knows of it.
    pub(super) fn miss(&mut self, kept: Option<Kept>, is_in_gap: bool) {
        self.missing += 1;
        match kept {
            Some(Kept::DeadLetter) => self.dead_letters += 1,
            Some(Kept::Waiting) => self.waiting += 1,
            None => self.in_gaps += u64::from(is_in_gap),
        }
    }

    /// `2 dead letters, 1 in a gap`; empty where nothing is known.
    pub(super) fn explained(&self) -> String {
        let kinds = [
            (self.dead_letters, "dead letters"),
            (self.waiting, "waiting for their index"),
            (self.in_gaps, "in gaps"),
        ];
        let words = kinds.into_iter().filter(|(count, _)| *count > 0);
        let words: Vec<_> = words.map(|(n, kind)| format!("{n} {kind}")).collect();
        words.join(", ")
    }

    fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.missing += other.missing;
        self.refilled += other.refilled;
        self.dead_letters += other.dead_letters;
        self.waiting += other.waiting;
        self.in_gaps += other.in_gaps;
    }

    fn value(&self) -> Value {
        json!({
            "teleport": self.events,
            "elasticsearch": self.events - self.missing,
            "missing": self.missing,
            "refilled": self.refilled,
            "dead_letters": self.dead_letters,
            "waiting": self.waiting,
            "in_gaps": self.in_gaps,
        })
    }
}

impl Report {
    /// Nothing is missing yet.
    pub(super) fn new(events: ByDayAndType, refilled: bool, gaps: Vec<Gap>) -> Self {
        let mut report = Self {
            rows: BTreeMap::new(),
            refilled,
            gaps,
        };
        for ((day, event_type), events) in events {
            report.row(Some(day), event_type).events = events;
        }
        report
    }

    /// The row of a day (days since 1970) and type.
    pub(super) fn row(&mut self, day: Option<i64>, event_type: String) -> &mut Row {
        let day = day
            .and_then(|day| i32::try_from(day).ok())
            .and_then(NaiveDate::from_epoch_days);
        self.rows.entry((day, event_type)).or_default()
    }

    /// All rows in one.
    pub(super) fn total(&self) -> Row {
        let mut total = Row::default();
        for row in self.rows.values() {
            total.add(row);
        }
        total
    }

    /// Nothing is missing, and nothing could not be read.
    pub(super) fn is_complete(&self) -> bool {
        self.total().missing == 0 && self.gaps.is_empty()
    }

    /// For people.
    pub(super) fn table(&self) -> String {
        let mut lines: Vec<Vec<String>> = Vec::with_capacity(self.rows.len() + 2);
        let head = ["DAY", "TYPE", "TELEPORT", "ELASTICSEARCH", "MISSING"];
        let mut head: Vec<_> = head.map(str::to_owned).into();
        if self.refilled {
            head.push("REFILLED".to_owned());
        }
        head.push("KNOWN AS".to_owned());
        lines.push(head);
        for ((day, event_type), row) in &self.rows {
            let day = day.map_or_else(|| "-".to_owned(), |day| day.to_string());
            lines.push(self.cells(day, printable(event_type), row));
        }
        lines.push(self.cells("total".to_owned(), String::new(), &self.total()));
        let mut text = aligned(&lines);
        for gap in &self.gaps {
            let (from, to) = (time(gap.from_ms), time(gap.to_ms));
            text += &format!(
                "\ncannot be read from Teleport: {} from {from} to {to}: {}",
                gap.reason, gap.detail
            );
        }
        text
    }

    fn cells(&self, day: String, event_type: String, row: &Row) -> Vec<String> {
        let there = row.events - row.missing;
        let mut cells = vec![day, event_type];
        cells.extend([row.events, there, row.missing].map(|n| n.to_string()));
        if self.refilled {
            cells.push(row.refilled.to_string());
        }
        cells.push(row.explained());
        cells
    }

    /// For programs.
    pub(super) fn value(&self, from_ms: i64, to_ms: i64) -> Value {
        let rows = self.rows.iter().map(|((day, event_type), row)| {
            let mut value = row.value();
            value["day"] = json!(day.map(|day| day.to_string()));
            value["type"] = json!(event_type);
            value
        });
        let gaps = self.gaps.iter().map(|gap| {
            json!({
                "reason": gap.reason,
                "from": time(gap.from_ms),
                "to": time(gap.to_ms),
                "detail": gap.detail,
            })
        });
        json!({
            "from": time(from_ms),
            "to": time(to_ms),
            "complete": self.is_complete(),
            "total": self.total().value(),
            "rows": rows.collect::<Vec<_>>(),
            "gaps": gaps.collect::<Vec<_>>(),
        })
    }
}

/// Texts to the left, numbers to the right.
fn aligned(lines: &[Vec<String>]) -> String {
    const TEXTS: usize = 2;
    let mut widths = vec![0; lines.first().map_or(0, Vec::len)];
    for line in lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let last = widths.len().saturating_sub(1);
    let lines = lines.iter().map(|line| {
        let cells = line.iter().zip(&widths).enumerate();
        let cells: Vec<_> = cells
            .map(|(place, (cell, &width))| match place {
                place if place < TEXTS || place == last => format!("{cell:width$}"),
                _ => format!("{cell:>width$}"),
            })
            .collect();
        cells.join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}
