//! One metric's lines of text.

use std::fmt::Write;

/// Takes the values of one metric.
#[derive(Debug)]
pub(super) struct Samples<'a> {
    pub(super) text: &'a mut String,
    pub(super) name: &'static str,
}

impl Samples<'_> {
    /// A value that has no label. One that is not known is left out.
    pub(super) fn one(&mut self, value: impl Into<Option<f64>>) {
        if let Some(value) = value.into() {
            self.line("", "", value);
        }
    }

    /// A value for one label, whose value has no character that needs care.
    pub(super) fn of(&mut self, label: &str, is: &str, value: impl Into<Option<f64>>) {
        if let Some(value) = value.into() {
            self.line("", &format!("{{{label}=\"{is}\"}}"), value);
        }
    }

    pub(super) fn line(&mut self, suffix: &str, labels: &str, value: f64) {
        let name = self.name;
        writeln!(self.text, "{name}{suffix}{labels} {value}").expect("a text takes all");
    }
}
