//! The configuration in effect, as a file that would make it so.

use std::fmt::{self, Write};
use std::path::Path;

use super::Config;
use super::clusters;
use super::keys::{self, KEYS, Key, Kind};
use super::sources::{Raw, Setting, Value, quoted, toml_text};

/// Every setting in effect, with its origin, without secrets. Its text is TOML.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effective(Vec<Line>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    key: &'static Key,
    /// As TOML.
    value: String,
    origin: String,
}

impl Effective {
    /// What is set, and what is set by default where nothing else is.
    pub(super) fn of(raw: &Raw) -> Self {
        let lines = KEYS.iter().filter_map(|key| {
            let (value, origin) = match raw.settings.get(key.name) {
                Some(setting) if key.kind == Kind::Secret => secret(setting),
                Some(setting) => (
                    toml_text(&typed(key, &setting.value)),
                    setting.origin.to_string(),
                ),
                None => {
                    let default = Value::Text(key.default?.to_owned());
                    (toml_text(&typed(key, &default)), "default".to_owned())
                }
            };
            Some(Line { key, value, origin })
        });
        Self(lines.collect())
    }
}

/// The path of a secret's file is none itself, and helps to find a mistake.
fn secret(setting: &Setting) -> (String, String) {
    let origin = match &setting.value {
        Value::Text(text) if text.starts_with("file:") => format!("{text}, {}", setting.origin),
        _ => setting.origin.to_string(),
    };
    (quoted("[secret]"), origin)
}

/// Outside the file all is text; in it numbers, truths and lists have a form of their own.
fn typed(key: &Key, value: &Value) -> Value {
    let typed = match (key.kind, value) {
        (Kind::Integer, Value::Text(text)) => text.parse().ok().map(Value::Integer),
        (Kind::Bool, Value::Text(text)) => text.parse().ok().map(Value::Bool),
        (Kind::List, value) => super::values::list(value).ok().map(Value::List),
        _ => None,
    };
    typed.unwrap_or_else(|| value.clone())
}

impl fmt::Display for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(text("", self.0.iter()).trim_end())
    }
}

/// Those of several clusters: first what all have in common, then a table for each.
pub(super) fn each(configs: &[Config]) -> String {
    let is_of_all = |line: &&Line| clusters::refusal(line.key).is_some();
    let mut shown = String::new();
    if let Some(first) = configs.first() {
        let lines = first.effective.0.iter().filter(is_of_all).cloned();
        let lines: Vec<Line> = lines.map(|line| line.above(first)).collect();
        shown += &text("", lines.iter());
    }
    for config in configs {
        let name = quoted(config.cluster.as_deref().unwrap_or_default());
        write!(shown, "\n[[cluster]]\nname = {name}\n").expect("a text takes all");
        let lines = config.effective.0.iter().filter(|line| !is_of_all(line));
        shown += &text("cluster.", lines);
    }
    shown
}

impl Line {
    /// As it stands above all tables: there is the directory that all directories lie in.
    fn above(self, config: &Config) -> Self {
        let parent = config.storage.as_deref().and_then(Path::parent);
        match parent {
            Some(parent) if self.key == &keys::STORAGE => Self {
                value: quoted(&parent.to_string_lossy()),
                ..self
            },
            _ => self,
        }
    }
}

/// `above`: what stands before the names of tables.
fn text<'a>(above: &str, lines: impl Iterator<Item = &'a Line>) -> String {
    let mut shown = String::new();
    let mut last = "";
    for line in lines {
        let (table, name) = line.key.place();
        if table != last {
            let gap = if shown.is_empty() && above.is_empty() {
                ""
            } else {
                "\n"
            };
            writeln!(shown, "{gap}[{above}{table}]").expect("a text takes all");
            last = table;
        }
        // A comment ends with its line, whatever a path may hold.
        let origin = line.origin.replace(char::is_control, "\u{fffd}");
        writeln!(shown, "{name} = {}  # {origin}", line.value).expect("a text takes all");
    }
    shown
}
