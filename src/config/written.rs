//! Writes a configuration file: the commented example with the settings that are known.

use std::collections::BTreeMap;
use std::path::Path;

use super::keys::{self, Key, Kind};
use super::mistakes::{Mistakes, Warning};
use super::sources::{self, FileError, FlagSetting, Raw, Setting, Value};
use super::{Config, Needs};

/// The commented example, with every key.
const EXAMPLE: &str = include_str!("../../templates/config.toml");

/// Fewer events a page than this are left out: they suit the event handler alone.
const SMALL_PAGE: i64 = 1000;

/// Settings for a file that is to be written.
#[derive(Debug)]
pub struct Written {
    /// By key, as TOML has the value.
    settings: BTreeMap<&'static str, String>,
    /// What of the event handler's configuration has no place here: one line each.
    pub notes: Vec<String>,
    /// The event handler's storage, which is not ours.
    pub former_storage: Option<String>,
    raw: Raw,
}

impl Written {
    /// Takes the settings of the event handler's configuration file, if there is one, and over them
    /// those of flags.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn new(former: Option<&Path>, flags: Vec<FlagSetting>) -> Result<Self, FileError> {
        let former_storage = former_storage(former)?;
        let mut raw = sources::translate(former, flags)?;
        let mut notes: Vec<String> = raw
            .warnings
            .drain(..)
            .map(|note| note.to_string())
            .collect();
        let mut settings = BTreeMap::new();
        let is_dropped = |key: &Key, text: &str| {
            let is_small = || text.parse::<i64>().is_ok_and(|size| size < SMALL_PAGE);
            (key == &keys::BATCH && is_small()).then_some("so small a page makes searches slow")
        };
        raw.settings.retain(|name, setting| {
            let text = toml(setting);
            if setting.key == &keys::STORAGE && setting.is_of_file() {
                return false;
            }
            let dropped = is_dropped(setting.key, &text)
                .or_else(|| (!is_in_example(name)).then_some("this version does not have it"));
            if let (Some(reason), true) = (dropped, setting.is_of_file()) {
                notes.push(format!("{} is left out: {reason}", setting.place()));
                return false;
            }
            settings.insert(*name, text);
            true
        });
        Ok(Self {
            settings,
            notes,
            former_storage,
            raw,
        })
    }

    /// Whether a setting was made.
    pub fn is_set(&self, name: &str) -> bool {
        self.settings.contains_key(name)
    }

    /// The settings that were made, with their values.
    pub fn values(&self) -> impl Iterator<Item = (&'static Key, serde_json::Value)> {
        let known = |(name, text): (&&'static str, &String)| Some((keys::find(name)?, value(text)));
        self.settings.iter().filter_map(known)
    }

    /// A setting that is a text.
    pub fn text_of(&self, key: &Key) -> Option<String> {
        match &self.raw.settings.get(key.name)?.value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        }
    }

    /// Teleport's address; empty if it is not known.
    pub fn addr(&self) -> String {
        self.text_of(&keys::TELEPORT_ADDR).unwrap_or_default()
    }

    /// The file's text, with what is kept of the settings, and these in place of others.
    pub fn text(&self, is_kept: impl Fn(&Key) -> bool, changes: &[(&'static str, &str)]) -> String {
        let mut settings = self.settings.clone();
        settings.retain(|name, _| keys::find(name).is_some_and(&is_kept));
        for (name, value) in changes {
            settings.insert(name, sources::quoted(value));
        }
        let is_set = |names: &[&str]| names.iter().any(|name| settings.contains_key(*name));
        // What stands in the example as one way must not contradict another that was chosen.
        let is_replaced = |name: &str| match name {
            "storage" => settings
                .get("state")
                .is_some_and(|s| s.contains("elasticsearch")),
            "teleport.identity" => is_set(&["teleport.key"]),
            "forward.elasticsearch.hosts" => is_set(&["forward.elasticsearch.cloud-id"]),
            "forward.elasticsearch.api-key" => is_set(&[
                "forward.elasticsearch.user",
                "forward.elasticsearch.cloud-auth",
                "forward.elasticsearch.client-cert",
            ]),
            _ => false,
        };
        let mut text = String::new();
        for (line, name) in lines() {
            let value = name.as_deref().and_then(|name| settings.get(name));
            let key = line.trim_start_matches('#').split(" = ").next();
            match (name.as_deref(), value, key) {
                (Some(_), Some(value), Some(key)) => text.push_str(&format!("{key} = {value}")),
                (Some(name), None, _) if is_replaced(name) && !line.starts_with('#') => {
                    text.push_str(&format!("#{line}"));
                }
                _ => text.push_str(line),
            }
            text.push('\n');
        }
        text
    }

    /// Judges the settings as a start would, but for what is missing, and for secrets, whose files
    /// need not be there yet.
    ///
    /// # Errors
    /// If any of them is wrong.
    pub fn check(mut self) -> Result<Vec<Warning>, Mistakes> {
        let is_credential = |key: &Key| key.kind == Kind::Secret || key == &keys::USER;
        self.raw
            .settings
            .retain(|_, setting| !is_credential(setting.key));
        Config::resolve(self.raw, Needs::default()).map(|(_, warnings)| warnings)
    }
}

/// The event handler's storage: a flag that says where ours is does not hide it.
fn former_storage(former: Option<&Path>) -> Result<Option<String>, FileError> {
    let raw = sources::translate(former, Vec::new())?;
    let setting = raw.settings.get(keys::STORAGE.name);
    Ok(setting.and_then(|setting| match &setting.value {
        Value::Text(storage) => Some(storage.clone()),
        _ => None,
    }))
}

/// A setting's value as a file has it: flags give texts alone.
fn toml(setting: &Setting) -> String {
    let Value::Text(text) = &setting.value else {
        return sources::toml_text(&setting.value);
    };
    match setting.key.kind {
        Kind::List => {
            let texts = text.split(',').map(str::trim).map(str::to_owned);
            sources::toml_text(&Value::List(texts.collect()))
        }
        Kind::Integer if text.parse::<i64>().is_ok() => text.clone(),
        Kind::Bool if text.parse::<bool>().is_ok() => text.clone(),
        _ => sources::quoted(text),
    }
}

/// A value as TOML has it, for other formats.
fn value(text: &str) -> serde_json::Value {
    let parsed: Result<toml::Value, _> = text.parse();
    match parsed {
        Ok(toml::Value::Datetime(_)) | Err(_) => text.into(),
        Ok(value) => serde_json::to_value(value).unwrap_or_else(|_| text.into()),
    }
}

/// The example's lines, with the key that a line shows or sets.
fn lines() -> impl Iterator<Item = (&'static str, Option<String>)> {
    let mut table = "";
    EXAMPLE.lines().map(move |line| {
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|line| line.strip_suffix(']'))
        {
            table = name;
            return (line, None);
        }
        let key = line.trim_start_matches('#').split_once(" = ");
        let path = key.map(|(key, _)| match table {
            "" => key.to_owned(),
            table => format!("{table}.{key}"),
        });
        (line, path.filter(|path| keys::find(path).is_some()))
    })
}

fn is_in_example(name: &str) -> bool {
    lines().any(|(_, key)| key.as_deref() == Some(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys::KEYS;

    fn flag(key: &'static Key, value: &str) -> FlagSetting {
        FlagSetting {
            key,
            values: vec![value.to_owned()],
        }
    }

    #[test]
    fn settings_take_their_place_in_the_example() {
        let none = Written::new(None, Vec::new()).unwrap();
        assert_eq!(none.text(|_| true, &[]), EXAMPLE);
        let chosen = Written::new(
            None,
            vec![
                flag(&keys::TELEPORT_ADDR, "one.example.com:443"),
                flag(&keys::CLOUD_ID, "audit:Y2xvdWQuZXhhbXBsZS5jb20kZQ=="),
                flag(&keys::CLOUD_AUTH, "file:/secret"),
                flag(&keys::TYPES, "user.login,session.*"),
                flag(&keys::CONCURRENCY, "8"),
            ],
        )
        .unwrap();
        let text = chosen.text(|_| true, &[("storage", "/state")]);
        let changed = EXAMPLE.lines().zip(text.lines());
        let changed: Vec<&str> = changed
            .filter(|(before, after)| before != after)
            .map(|(_, after)| after)
            .collect();
        insta::assert_snapshot!(changed.join("\n"), @r#"
        storage = "/state"
        types = ["user.login", "session.*"]
        concurrency = 8
        addr = "one.example.com:443"
        #hosts = ["https://elasticsearch.example.com:9200"]
        cloud-id = "audit:Y2xvdWQuZXhhbXBsZS5jb20kZQ=="
        #api-key = "file:/etc/teleport-event-indexer/elasticsearch-api-key"
        cloud-auth = "file:/secret"
        "#);
        chosen.check().unwrap();
        let wrong = Written::new(None, vec![flag(&keys::CONCURRENCY, "many")]).unwrap();
        wrong.check().unwrap_err();
    }

    #[test]
    fn each_key_has_its_place() {
        for key in KEYS {
            assert!(is_in_example(key.name), "{}", key.name);
        }
    }
}
