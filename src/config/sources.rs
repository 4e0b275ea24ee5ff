//! Collects what the user has set, and where: flags over environment over file.
//!
//! Nothing is judged here but names. An unknown key, variable or syntax error becomes a mistake
//! that [`Config::resolve`](super::Config::resolve) reports together with its own.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::former::Former;
use super::keys::{self, CONFIG_VARIABLE, KEYS, Key, Kind, VARIABLE_PREFIX};
use super::mistakes::{Mistake, Origin, Warning};
use crate::platform;

/// Prefixes of the variables of `teleport-event-handler`; it has used both.
const FORMER_PREFIXES: [&str; 2] = ["FDFWD_", "FDWRD_"];

/// A setting given as a flag. Its `Debug` does not show the value, which may be a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct FlagSetting {
    /// Which setting.
    pub key: &'static Key,
    /// The texts given: several if the flag of a list is repeated.
    pub values: Vec<String>,
}

impl fmt::Debug for FlagSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--{}", self.key.flag())
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Key {}

/// The configuration file cannot be read at all.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the configuration file {}", path.display())]
pub struct FileError {
    /// The file, as the user named it.
    pub path: PathBuf,
    source: io::Error,
}

impl FileError {
    /// What the user can do about it.
    pub fn hint(&self) -> String {
        format!(
            "name another file with --config or {CONFIG_VARIABLE}, or leave both out and make \
             every setting by flag or variable"
        )
    }
}

/// A value as it was written.
#[derive(Clone, PartialEq)]
pub(crate) enum Value {
    /// Everything outside the file is text.
    Text(String),
    Integer(i64),
    /// A fraction, or a number beyond 64 bits; no setting takes it.
    Number(String),
    Bool(bool),
    Time(String),
    List(Vec<String>),
}

/// A setting as it was made.
#[derive(Clone)]
pub(crate) struct Setting {
    pub(crate) key: &'static Key,
    pub(crate) value: Value,
    pub(crate) origin: Origin,
    /// The key in the user's own spelling, with its table.
    pub(crate) spelled: String,
}

impl Setting {
    /// Whether it was made in a file.
    pub(crate) fn is_of_file(&self) -> bool {
        matches!(self.origin, Origin::File { .. })
    }

    /// The place, without the value.
    pub(crate) fn place(&self) -> String {
        match &self.origin {
            Origin::File { .. } => format!("{}: {}", self.origin, self.spelled),
            origin => origin.to_string(),
        }
    }

    /// The place and the value; only the place if the value may hold a secret.
    pub(crate) fn shown(&self) -> String {
        let place = self.place();
        if self.key.kind == Kind::Secret {
            return place;
        }
        let value = abridge(&toml_text(&self.value));
        match self.origin {
            Origin::File { .. } => format!("{place} = {value}"),
            _ => format!("{place}={value}"),
        }
    }
}

/// A value as TOML would have it.
pub(crate) fn toml_text(value: &Value) -> String {
    match value {
        Value::Text(text) => quoted(text),
        Value::Integer(number) => number.to_string(),
        Value::Bool(truth) => truth.to_string(),
        Value::Number(text) | Value::Time(text) => text.clone(),
        Value::List(texts) => {
            let texts: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
            format!("[{}]", texts.join(", "))
        }
    }
}

/// A text as a basic string of TOML.
pub(crate) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn abridge(text: &str) -> String {
    const MOST: usize = 80;
    if text.chars().count() <= MOST {
        return text.to_owned();
    }
    let start: String = text.chars().take(MOST).collect();
    format!("{start}…")
}

/// All that the user has set. Has no useful `Debug`, since it holds secrets.
#[derive(Default)]
pub struct Raw {
    pub(crate) settings: BTreeMap<&'static str, Setting>,
    pub(crate) mistakes: Vec<Mistake>,
    pub(crate) warnings: Vec<Warning>,
    /// The file could be read only in part, so that nothing can be said about what is missing.
    pub(crate) is_partial: bool,
    /// The file, if users other than its owner may read it.
    pub(crate) exposed_file: Option<PathBuf>,
    /// The file is the event handler's: keys that only that one has are told of, and no mistakes.
    pub(super) is_former: bool,
    /// The tables `[[cluster]]`, in the order of the file.
    pub(super) tables: Vec<ClusterTable>,
    /// Whose settings these are, if they are one cluster's of several: what mistakes call it, and where
    /// its table begins.
    pub(super) table: Option<(String, Origin)>,
}

/// One table `[[cluster]]`.
pub(super) struct ClusterTable {
    pub(super) name: String,
    /// What it is called in mistakes.
    pub(super) label: String,
    pub(super) origin: Origin,
    pub(super) settings: BTreeMap<&'static str, Setting>,
}

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.settings.keys()).finish()
    }
}

/// Collects all settings. `file` is the one named on the command line; without it
/// [`CONFIG_VARIABLE`] may name one. An empty variable counts as not set, as container files
/// cannot help but set them.
///
/// # Errors
/// If there is a file and it cannot be read, or is no UTF-8. All else is a mistake that waits in
/// the result.
pub fn collect(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    flags: Vec<FlagSetting>,
) -> Result<Raw, FileError> {
    let mut raw = Raw::default();
    let environment: BTreeMap<OsString, OsString> = environment
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .collect();
    let from_environment = environment
        .iter()
        .find_map(|(name, value)| (name == CONFIG_VARIABLE).then_some(Path::new(value)));
    if let Some(path) = file.or(from_environment) {
        raw.read_file(path)?;
    }
    for (name, value) in environment {
        raw.add_variable(name, value);
    }
    raw.add_flags(flags);
    Ok(raw)
}

/// Collects the settings of the event handler's configuration file, and over them those of flags.
/// Keys that have no place here become warnings.
///
/// # Errors
/// If there is a file and it cannot be read, or is no UTF-8.
pub(super) fn translate(former: Option<&Path>, flags: Vec<FlagSetting>) -> Result<Raw, FileError> {
    let mut raw = Raw {
        is_former: true,
        ..Raw::default()
    };
    if let Some(path) = former {
        raw.read_file(path)?;
        raw.exposed_file = None;
    }
    raw.add_flags(flags);
    Ok(raw)
}

impl Raw {
    fn add_flags(&mut self, flags: Vec<FlagSetting>) {
        for FlagSetting { key, values } in flags {
            let flag = format!("--{}", key.flag());
            // Only the flag of a list can be there more than once.
            let value = Value::Text(values.join(","));
            self.set(key, value, Origin::Flag(flag.clone()), flag);
        }
    }

    /// A later source replaces what an earlier one said.
    fn set(&mut self, key: &'static Key, value: Value, origin: Origin, spelled: String) {
        let setting = Setting {
            key,
            value,
            origin,
            spelled,
        };
        self.settings.insert(key.name, setting);
    }

    fn read_file(&mut self, path: &Path) -> Result<(), FileError> {
        let failed = |source| FileError {
            path: path.to_owned(),
            source,
        };
        let text = std::fs::read_to_string(path).map_err(failed)?;
        let metadata = std::fs::metadata(path).map_err(failed)?;
        if platform::others_may_read(path, &metadata) {
            self.exposed_file = Some(path.to_owned());
        }
        self.add_file(path, &text);
        Ok(())
    }

    fn add_variable(&mut self, name: OsString, value: OsString) {
        let Some(name) = name.to_str() else {
            return;
        };
        if let Some(rest) = FORMER_PREFIXES
            .iter()
            .find_map(|prefix| name.strip_prefix(prefix))
        {
            self.warnings.push(former_variable(name, rest));
        }
        if !name.starts_with(VARIABLE_PREFIX) || name == CONFIG_VARIABLE {
            return;
        }
        let origin = Origin::Variable(name.to_owned());
        let Some(key) = KEYS.iter().find(|key| key.variable() == name) else {
            if !is_service_link(name, &value.to_string_lossy()) {
                let mend = match keys::suggest_variable(name) {
                    Some(known) => format!("did you mean {known}?"),
                    None => "`teleport-event-indexer start --help` lists all".to_owned(),
                };
                self.mistakes.push(Mistake {
                    text: format!("{origin}: unknown variable; {mend}"),
                    origin: Some(origin),
                });
            }
            return;
        };
        match value.into_string() {
            Ok(value) => self.set(key, Value::Text(value), origin, name.to_owned()),
            Err(_) => self.mistakes.push(Mistake {
                text: format!("{origin}: the value is no valid UTF-8"),
                origin: Some(origin),
            }),
        }
    }
}

fn former_variable(name: &str, rest: &str) -> Warning {
    let mend = match (keys::find_former_variable(rest), Former::of_variable(rest)) {
        (Some(key), _) => format!("its name here is {}", key.variable()),
        (None, Some(former)) => former.as_variable(),
        (None, None) if rest == "CONFIG" => format!("its name here is {CONFIG_VARIABLE}"),
        (None, None) => "nothing here stands for it".to_owned(),
    };
    Warning(format!(
        "{name} is set and not read, it belongs to teleport-event-handler: {mend}"
    ))
}

/// Whether Kubernetes has set the variable for a service named `event-indexer` or with such a
/// beginning: `…_SERVICE_HOST`, `…_SERVICE_PORT[_NAME]`, `…_PORT=tcp://…`, `…_PORT_9000_TCP[_ADDR]`.
fn is_service_link(name: &str, value: &str) -> bool {
    let by_port = |(_, rest): (&str, &str)| {
        let mut parts = rest.split('_');
        parts.next().is_some_and(|port| port.parse::<u16>().is_ok())
            && matches!(parts.next(), Some("TCP" | "UDP" | "SCTP"))
    };
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || (name.ends_with("_PORT") && value.contains("://"))
        || name.split_once("_PORT_").is_some_and(by_port)
}
