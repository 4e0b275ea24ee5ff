//! What holds for every configuration, be it one or not.

use std::path::Path;

use super::keys::{CONFIG_VARIABLE, Kind};
use super::sources::{self, Raw, Value};
use super::{Config, Effective, Needs, Selected, Warning};

/// Stands for a secret in whatever is tried.
const SECRET: &str = "hunter2";

/// A text as a configuration file, and its lines as environment variables: either a configuration
/// that shows itself as a file which makes the same, or mistakes and doubts, each in one line,
/// without any secret.
///
/// # Panics
/// If that is not so.
pub fn configuration(text: &[u8]) {
    // Another text is refused when the file is read.
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let everything = Needs {
        teleport: true,
        elasticsearch: true,
        storage: true,
        ..Needs::default()
    };
    check(|| file(text), text, Needs::default());
    check(|| file(text), text, everything);
    let is_variable = |(name, _): &(&str, &str)| name.contains('_') && *name != CONFIG_VARIABLE;
    let variables = text.lines().filter_map(|line| line.split_once('='));
    let variables: Vec<_> = variables
        .filter(is_variable)
        .map(|(name, value)| (name.into(), value.into()))
        .collect();
    if !variables.is_empty() {
        let collect = || sources::collect(None, variables.clone(), Vec::new());
        let collect = || collect().expect("there is no file to be read");
        check(collect, text, everything);
    }
}

fn file(text: &str) -> Raw {
    let mut raw = Raw::default();
    raw.add_file(Path::new("config.toml"), text);
    raw
}

fn check(collect: impl Fn() -> Raw, text: &str, needs: Needs) {
    let raw = collect();
    let secrets = raw.settings.values().filter(|s| s.key.kind == Kind::Secret);
    let secrets: Vec<&str> = secrets
        .filter_map(|setting| match &setting.value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
        .collect();
    // Files are not read here: they may be devices.
    if secrets.iter().any(|secret| secret.starts_with("file:")) {
        return;
    }
    // In its own place; elsewhere nobody can know that it is one. Of a file that is no TOML,
    // nothing is shown.
    let count = |text: &str| text.matches(SECRET).count();
    let in_place: usize = secrets.iter().map(|secret| count(secret)).sum();
    let is_secret = in_place == count(text) || raw.is_partial;
    let has_secret = !secrets.is_empty();
    let check_line = |line: &str| {
        assert!(!line.contains(char::is_control), "{line:?}");
        assert!(!is_secret || !line.contains(SECRET), "{line:?}");
    };

    let (selected, warnings) = match Config::select(raw, needs, None, |_| None) {
        Ok(good) => good,
        Err(mistakes) => {
            assert!(!mistakes.list().is_empty());
            for mistake in mistakes.list() {
                check_line(&mistake.text);
            }
            return;
        }
    };
    warnings
        .iter()
        .map(Warning::to_string)
        .for_each(|doubt| check_line(&doubt));
    let (shown, configs) = match selected {
        Selected::One(config) => (config.show(), vec![*config]),
        Selected::Each(configs) => (Config::show_each(&configs), configs),
    };
    shown.lines().for_each(check_line);
    if has_secret {
        return;
    }
    let again = Config::select(file(&shown), needs, None, |_| None);
    let (again, _) = again.unwrap_or_else(|mistakes| panic!("{mistakes}\nin\n{shown}"));
    let again = match again {
        Selected::One(config) => vec![*config],
        Selected::Each(configs) => configs,
    };
    assert_eq!(without_origins(&configs), without_origins(&again));
    for config in configs {
        // One of several is what a file for it alone would give.
        let shown = config.show();
        let (again, _) = Config::resolve(file(&shown), needs)
            .unwrap_or_else(|mistakes| panic!("{mistakes}\nin\n{shown}"));
        let cluster = None;
        let config = Config { cluster, ..config };
        assert_eq!(without_origins(&[config]), without_origins(&[again]));
    }
}

fn without_origins(configs: &[Config]) -> String {
    let effective = Effective::default;
    let configs = configs.iter().map(|config| Config {
        effective: effective(),
        ..config.clone()
    });
    format!("{:?}", configs.collect::<Vec<_>>())
}
