//! Reads one setting after the other and keeps every mistake instead of stopping at the first.

use std::path::PathBuf;

use super::clusters;
use super::keys::Key;
use super::mistakes::{Mistake, Mistakes, Origin, Warning, in_one_line};
use super::secret_file;
use super::sources::{Raw, Setting, Value};
use super::values::Problem;
use crate::output::Chain;
use crate::platform;
use crate::secret::Secret;

/// The form of a secret that lies in a file.
const FILE_PREFIX: &str = "file:";

/// What has been set, and what has been found wrong with it so far.
pub(super) struct Resolver {
    raw: Raw,
    mistakes: Vec<Mistake>,
    warnings: Vec<Warning>,
}

impl Resolver {
    /// Starts with the mistakes that were made before any value was looked at.
    pub(super) fn new(mut raw: Raw) -> Self {
        Self {
            mistakes: std::mem::take(&mut raw.mistakes),
            warnings: std::mem::take(&mut raw.warnings),
            raw,
        }
    }

    /// All mistakes, or the warnings and the settings if there are none.
    pub(super) fn finish(mut self) -> Result<(Raw, Vec<Warning>), Mistakes> {
        for Warning(text) in &mut self.warnings {
            in_one_line(text);
        }
        match Mistakes::of(self.mistakes) {
            Some(mistakes) => Err(mistakes),
            None => Ok((self.raw, self.warnings)),
        }
    }

    /// The setting, if the user made it.
    pub(super) fn setting(&self, key: &Key) -> Option<&Setting> {
        self.raw.settings.get(key.name)
    }

    /// Whether the user made the setting.
    pub(super) fn is_set(&self, key: &Key) -> bool {
        self.setting(key).is_some()
    }

    /// The value of a key which has a default. After a mistake it is any value: there will be no
    /// configuration.
    pub(super) fn value<T: Default>(
        &mut self,
        key: &Key,
        parse: impl FnOnce(&Value) -> Result<T, Problem>,
    ) -> T {
        if self.is_set(key) {
            return self.optional(key, parse).unwrap_or_default();
        }
        let default = key.default.expect("only called for keys with a default");
        parse(&Value::Text(default.to_owned())).expect("defaults are valid")
    }

    /// The value of a key, if it is set and valid. Defaults do not count here.
    pub(super) fn optional<T>(
        &mut self,
        key: &Key,
        parse: impl FnOnce(&Value) -> Result<T, Problem>,
    ) -> Option<T> {
        let setting = self.raw.settings.get(key.name)?;
        match parse(&setting.value) {
            Ok(value) => Some(value),
            Err(problem) => {
                let text = format!("{}: {problem}", setting.shown());
                let origin = Some(setting.origin.clone());
                self.mistakes.push(Mistake { origin, text });
                None
            }
        }
    }

    /// As [`Resolver::optional`], for keys where people put passwords by mistake: the value is
    /// never shown.
    pub(super) fn unshown<T>(
        &mut self,
        key: &Key,
        parse: impl FnOnce(&Value) -> Result<T, Problem>,
    ) -> Option<T> {
        match parse(&self.setting(key)?.value) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.wrong(key, problem);
                None
            }
        }
    }

    /// A secret: the value itself or, after `file:`, the first line of a file.
    pub(super) fn secret(&mut self, key: &Key) -> Option<Secret> {
        let setting = self.raw.settings.get(key.name)?;
        let place = setting.place();
        let problem = match &setting.value {
            Value::Text(text) => match text.strip_prefix(FILE_PREFIX) {
                Some(path) => match secret_file::read(path.as_ref()) {
                    Ok((secret, is_exposed)) => {
                        if is_exposed {
                            self.warn(format!(
                                "{place}: {} {path}; {}",
                                platform::OTHERS,
                                platform::mend_rights(path.as_ref())
                            ));
                        }
                        return Some(secret);
                    }
                    Err(error) => format!("no secret in the file {path}: {}", Chain(&error)),
                },
                None if text.is_empty() => "must not be empty".to_owned(),
                None if matches!(setting.origin, Origin::Flag(_)) => format!(
                    "a secret on the command line is visible in the process list; use \
                     {FILE_PREFIX}PATH or {}",
                    key.variable()
                ),
                None => {
                    let secret = Secret::new(text);
                    let file = match setting.origin {
                        Origin::File { .. } => self.raw.exposed_file.as_ref(),
                        _ => None,
                    };
                    if let Some(file) = file {
                        self.warn(format!(
                            "{place}: {} this secret; {}, or use {FILE_PREFIX}PATH",
                            platform::OTHERS,
                            platform::mend_rights(file)
                        ));
                    }
                    return Some(secret);
                }
            },
            _ => "must be a text in quotes".to_owned(),
        };
        self.wrong(key, problem);
        None
    }

    /// The file that a secret was read from, if it was.
    pub(super) fn secret_path(&self, key: &Key) -> Option<PathBuf> {
        match &self.setting(key)?.value {
            Value::Text(text) => text.strip_prefix(FILE_PREFIX).map(PathBuf::from),
            _ => None,
        }
    }

    /// A mistake about a setting that was made, shown without its value.
    pub(super) fn wrong(&mut self, key: &Key, problem: impl AsRef<str>) {
        let setting = self.setting(key).expect("only called for what is set");
        let text = format!("{}: {}", setting.place(), problem.as_ref());
        let origin = Some(setting.origin.clone());
        self.mistakes.push(Mistake { origin, text });
    }

    /// Two settings that exclude each other, if both are made.
    pub(super) fn exclude(&mut self, key: &Key, other: &Key, mend: &str) {
        if self.is_set(key)
            && let Some(other) = self.setting(other)
        {
            let problem = match &other.origin {
                Origin::File { .. } => {
                    format!("excludes {} ({}); {mend}", other.spelled, other.origin)
                }
                origin => format!("excludes {origin}; {mend}"),
            };
            self.wrong(key, problem);
        }
    }

    /// A setting that must be made and is not.
    pub(super) fn missing(&mut self, key: &Key, what: &str) {
        let mistake = match &self.raw.table {
            Some((label, origin)) if clusters::refusal(key).is_none() => Mistake {
                origin: Some(origin.clone()),
                text: format!(
                    "{origin}: {label}: {} is not set: {what}, in this table or above all tables",
                    key.name
                ),
            },
            _ => Mistake {
                origin: None,
                text: format!(
                    "{} is not set: {what} (or --{}, or {})",
                    key.name,
                    key.flag(),
                    key.variable()
                ),
            },
        };
        self.mistakes.push(mistake);
    }

    /// A doubt.
    pub(super) fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(Warning(text.into()));
    }

    /// A doubt about a setting that was made, shown with its value unless that is secret.
    pub(super) fn warn_about(&mut self, key: &Key, doubt: &str) {
        let setting = self.setting(key).expect("only called for what is set");
        self.warnings
            .push(Warning(format!("{}: {doubt}", setting.shown())));
    }
}
