//! The configuration in effect, as a file that would make it so.

use std::fmt;

use super::keys::{KEYS, Key, Kind};
use super::sources::{Raw, Setting, Value, quoted, toml_text};

/// Every setting in effect, with its origin, without secrets. Its text is TOML.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effective(Vec<Line>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    table: &'static str,
    name: &'static str,
    /// As TOML.
    value: String,
    origin: String,
}

impl Effective {
    /// What is set, and what is set by default where nothing else is.
    pub(super) fn of(raw: &Raw) -> Self {
        let lines = KEYS.iter().filter_map(|key| {
            let (table, name) = key.place();
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
            Some(Line {
                table,
                name,
                value,
                origin,
            })
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
        let mut table = "";
        for (i, line) in self.0.iter().enumerate() {
            if line.table != table {
                let gap = if i > 0 { "\n" } else { "" };
                writeln!(f, "{gap}[{}]", line.table)?;
                table = line.table;
            }
            // A comment ends with its line, whatever a path may hold.
            let origin = line.origin.replace(char::is_control, "\u{fffd}");
            let end = if i + 1 < self.0.len() { "\n" } else { "" };
            write!(f, "{} = {}  # {origin}{end}", line.name, line.value)?;
        }
        Ok(())
    }
}
