//! One metric's lines of text.

use std::fmt::Write;

use crate::telemetry::{DURATION_BOUNDS, Durations};

/// A label and its value, which has no character that needs care.
type Label<'a> = (&'a str, &'a str);

/// Takes the values of one metric.
#[derive(Debug)]
pub(super) struct Samples<'a> {
    pub(super) text: &'a mut String,
    pub(super) name: &'static str,
    /// Goes with each of them, if there are several.
    pub(super) cluster: Option<&'a str>,
}

impl Samples<'_> {
    /// A value that has no label. One that is not known is left out.
    pub(super) fn one(&mut self, value: impl Into<Option<f64>>) {
        if let Some(value) = value.into() {
            self.line("", &[], value);
        }
    }

    /// A value for one label.
    pub(super) fn of(&mut self, label: &str, is: &str, value: impl Into<Option<f64>>) {
        if let Some(value) = value.into() {
            self.line("", &[(label, is)], value);
        }
    }

    /// How long things took: a histogram.
    pub(super) fn durations(&mut self, durations: &Durations) {
        let counts = durations.cumulative();
        for (bound, count) in DURATION_BOUNDS.into_iter().zip(counts) {
            let bound = (bound as f64 / 1000.0).to_string();
            self.line("_bucket", &[("le", &bound)], count as f64);
        }
        let all = counts[DURATION_BOUNDS.len()] as f64;
        self.line("_bucket", &[("le", "+Inf")], all);
        self.line("_sum", &[], durations.sum().as_secs_f64());
        self.line("_count", &[], all);
    }

    pub(super) fn line(&mut self, suffix: &str, labels: &[Label<'_>], value: f64) {
        let name = self.name;
        write!(self.text, "{name}{suffix}").expect("a text takes all");
        let cluster = self.cluster.map(|cluster| ("cluster", cluster));
        let labels = cluster.iter().chain(labels);
        let labels: Vec<String> = labels
            .map(|(label, is)| format!("{label}=\"{is}\""))
            .collect();
        if !labels.is_empty() {
            write!(self.text, "{{{}}}", labels.join(",")).expect("a text takes all");
        }
        writeln!(self.text, " {value}").expect("a text takes all");
    }
}
