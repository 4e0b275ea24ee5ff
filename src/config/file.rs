//! The configuration file: which settings it makes, and where.

use std::collections::BTreeMap;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::clusters;
use super::former;
use super::keys::{self, Key};
use super::mistakes::{Mistake, Origin, Warning};
use super::sources::{ClusterTable, Raw, Setting, Value};

impl Raw {
    /// Adds the settings of a file with this text.
    pub(super) fn add_file(&mut self, path: &Path, text: &str) {
        let mut file = File {
            path,
            text,
            raw: self,
            table: None,
        };
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            let offset = error.span().map_or(0, |span| span.start);
            // Only the parser's words: the line itself may hold a secret.
            file.mistake(offset, &format!("no valid TOML: {}", error.message()));
        }
        if errors.is_empty() {
            file.walk("", table.get_ref());
        } else {
            // What the parser makes of the rest is a guess; mistakes found in it might be its own.
            self.is_partial = true;
        }
    }
}

const NO_TABLES: &str =
    "cluster: must be written [[cluster]], in two brackets: one such table for each cluster";

/// The configuration file while it is read.
struct File<'a> {
    path: &'a Path,
    text: &'a str,
    raw: &'a mut Raw,
    /// The table `[[cluster]]` in which it is read.
    table: Option<ClusterTable>,
}

impl File<'_> {
    fn origin(&self, offset: usize) -> Origin {
        let before = self.text.as_bytes().iter().take(offset);
        Origin::File {
            path: self.path.to_owned(),
            line: before.filter(|byte| **byte == b'\n').count() + 1,
        }
    }

    fn mistake(&mut self, offset: usize, problem: &str) {
        let origin = self.origin(offset);
        let of_table = self.of_table();
        self.raw.mistakes.push(Mistake {
            text: format!("{origin}: {of_table}{problem}"),
            origin: Some(origin),
        });
    }

    /// What stands before all that is said of something in a table `[[cluster]]`.
    fn of_table(&self) -> String {
        let table = self.table.as_ref();
        table.map_or_else(String::new, |table| format!("{}: ", table.label))
    }

    fn walk(&mut self, above: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let offset = name.span().start;
            let path = match above {
                "" => name.get_ref().to_string(),
                above => format!("{above}.{}", name.get_ref()),
            };
            let is_of_all = self.table.is_none() && !self.raw.is_former;
            if is_of_all && path == clusters::TABLES {
                self.clusters(offset, value.get_ref());
            } else if self.table.is_some() && path == "name" {
                // It was looked at before all else.
            } else if let Some(mend) = former::in_file(&path) {
                self.former(&path, offset, &mend);
                if let DeValue::Table(table) = value.get_ref() {
                    self.walk(&path, table);
                }
            } else if let Some(key) = keys::find(&path) {
                self.add(key, path, offset, value.get_ref());
            } else {
                match value.get_ref() {
                    DeValue::Table(table) if keys::is_table(&path) || !table.is_empty() => {
                        self.walk(&path, table);
                    }
                    _ if keys::is_table(&path) => {
                        let problem = format!(
                            "{path}: this is a table and has no value itself; write [{path}] and \
                             its settings below"
                        );
                        self.mistake(offset, &problem);
                    }
                    _ => self.unknown(&path, offset),
                }
            }
        }
    }

    fn clusters(&mut self, offset: usize, value: &DeValue<'_>) {
        let DeValue::Array(tables) = value else {
            self.mistake(offset, NO_TABLES);
            return;
        };
        if tables.is_empty() {
            self.mistake(offset, NO_TABLES);
        }
        for (at, table) in tables.iter().enumerate() {
            let offset = table.span().start;
            match table.get_ref() {
                DeValue::Table(table) => self.cluster(at, offset, table),
                _ => self.mistake(offset, "cluster: must be tables, [[cluster]]"),
            }
        }
    }

    fn cluster(&mut self, at: usize, offset: usize, table: &DeTable<'_>) {
        let named = table.get("name");
        let name = named.and_then(|name| name.get_ref().as_str());
        let good = name.map(clusters::check_name);
        let label = match (name, good) {
            (Some(name), Some(Ok(()))) => clusters::label(name),
            _ => format!("cluster {}", at + 1),
        };
        self.table = Some(ClusterTable {
            name: name.unwrap_or_default().to_owned(),
            label,
            origin: self.origin(offset),
            settings: BTreeMap::new(),
        });
        let at = named.map_or(offset, |name| name.span().start);
        match good {
            _ if named.is_none() => self.mistake(
                at,
                "name is not set: give each cluster one, such as name = \"production\"; its state \
                 lies in a directory of that name below storage",
            ),
            None => self.mistake(at, "name: must be a text in quotes"),
            Some(Err(problem)) => self.mistake(at, &format!("name: {problem}")),
            Some(Ok(())) => {
                let mut before = self.raw.tables.iter();
                let same = before.find(|table| Some(table.name.as_str()) == name);
                if let Some(same) = same {
                    let problem = format!("name: is that of the table at {} too", same.origin);
                    self.mistake(at, &problem);
                }
            }
        }
        self.walk("", table);
        self.raw.tables.extend(self.table.take());
    }

    fn former(&mut self, path: &str, offset: usize, mend: &str) {
        if self.raw.is_former {
            let origin = self.origin(offset);
            let note = format!("{origin}: {path} is left out: {mend}");
            self.raw.warnings.push(Warning(note));
        } else {
            let problem = format!("{path}: this belongs to teleport-event-handler: {mend}");
            self.mistake(offset, &problem);
        }
    }

    fn unknown(&mut self, path: &str, offset: usize) {
        let mend = match keys::suggest(path) {
            _ if path == "clusters" => "did you mean [[cluster]]?".to_owned(),
            Some(known) => format!("did you mean {known}?"),
            None => "`teleport-event-indexer start --help` lists all settings".to_owned(),
        };
        self.mistake(offset, &format!("{path}: unknown key; {mend}"));
    }

    fn add(&mut self, key: &'static Key, path: String, offset: usize, value: &DeValue<'_>) {
        if let (Some(_), Some(reason)) = (&self.table, clusters::refusal(key)) {
            let problem = format!("{path}: cannot differ between clusters: {reason}");
            self.mistake(offset, &problem);
            return;
        }
        let settings = match &self.table {
            Some(table) => &table.settings,
            None => &self.raw.settings,
        };
        if let Some(other) = settings.get(key.name) {
            let problem = format!(
                "{path}: this is the same setting as {} ({}); keep one of them",
                other.spelled, other.origin
            );
            self.mistake(offset, &problem);
            return;
        }
        match convert(value) {
            Ok(value) => {
                let origin = self.origin(offset);
                let spelled = format!("{}{path}", self.of_table());
                let setting = Setting {
                    key,
                    value,
                    origin,
                    spelled,
                };
                let settings = match &mut self.table {
                    Some(table) => &mut table.settings,
                    None => &mut self.raw.settings,
                };
                settings.insert(key.name, setting);
            }
            Err(problem) => self.mistake(offset, &format!("{path}: {problem}")),
        }
    }
}

fn convert(value: &DeValue<'_>) -> Result<Value, &'static str> {
    Ok(match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Boolean(truth) => Value::Bool(*truth),
        DeValue::Float(number) => Value::Number(number.as_str().to_owned()),
        DeValue::Datetime(time) => Value::Time(time.to_string()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => Value::Number(number.to_string()),
        },
        DeValue::Array(items) => {
            let texts = items.iter().map(|item| item.get_ref().as_str());
            let texts: Option<Vec<_>> = texts.map(|text| text.map(str::to_owned)).collect();
            Value::List(texts.ok_or("must be a list of texts in quotes: [\"one\", \"two\"]")?)
        }
        DeValue::Table(_) => return Err("takes a value, not a table"),
    })
}
