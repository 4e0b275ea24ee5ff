//! From a value as written to a typed one, or to a sentence that says which form is allowed.

use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, NaiveTime, SubsecRound, Utc};

use super::StateHome;
use super::event_filter::TypeSet;
use super::quantity::{bytes_text, duration_text, parse_bytes, parse_duration};
use super::sources::Value;
use crate::document::IndexPattern;

/// The problem, without place and value.
pub(super) type Problem = String;

const DURATION_FORM: &str = "must be a duration such as 200ms, 5s, 1h30m or 365d";

pub(super) fn text(value: &Value) -> Result<String, Problem> {
    match value {
        Value::Text(text) if text.trim().is_empty() => Err("must not be empty".to_owned()),
        Value::Text(text) => Ok(text.clone()),
        _ => Err("must be a text in quotes".to_owned()),
    }
}

pub(super) fn path(value: &Value) -> Result<PathBuf, Problem> {
    let text = text(value)?;
    if text.starts_with("~/") {
        return Err("must be a whole path: nobody replaces the ~ here".to_owned());
    }
    Ok(PathBuf::from(text))
}

/// Where a state lies.
pub(super) fn state_home(value: &Value) -> Result<StateHome, Problem> {
    match text(value).as_deref() {
        Ok("sqlite") => Ok(StateHome::Sqlite),
        Ok("elasticsearch") => Ok(StateHome::Elasticsearch),
        _ => Err("must be sqlite or elasticsearch".to_owned()),
    }
}

/// A name that is part of documents' ids.
pub(super) fn state_name(value: &Value) -> Result<String, Problem> {
    let name = text(value)?;
    let is_good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.len() <= 100 && name.chars().all(is_good) {
        Ok(name)
    } else {
        Err("must be at most 100 letters, digits, dots, dashes and underscores".to_owned())
    }
}

/// Texts between commas, or an array; blanks around them do not count.
pub(super) fn list(value: &Value) -> Result<Vec<String>, Problem> {
    let parts: Vec<&str> = match value {
        Value::Text(text) => text.split(',').collect(),
        Value::List(texts) => texts.iter().flat_map(|text| text.split(',')).collect(),
        _ => return Err("must be a list of texts: [\"one\", \"two\"]".to_owned()),
    };
    let parts = parts.into_iter().map(str::trim);
    Ok(parts
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect())
}

pub(super) fn boolean(value: &Value) -> Result<bool, Problem> {
    match value {
        Value::Bool(truth) => Ok(*truth),
        Value::Text(text) if text == "true" => Ok(true),
        Value::Text(text) if text == "false" => Ok(false),
        _ => Err("must be true or false".to_owned()),
    }
}

/// A whole number within both bounds.
pub(super) fn integer<T>(least: T, most: T) -> impl FnOnce(&Value) -> Result<T, Problem>
where
    T: TryFrom<i64> + PartialOrd + Display,
{
    move |value| {
        let number = match value {
            Value::Integer(number) => Some(*number),
            Value::Text(text) => text.parse().ok(),
            _ => None,
        };
        number
            .and_then(|number| T::try_from(number).ok())
            .filter(|number| *number >= least && *number <= most)
            .ok_or_else(|| format!("must be a whole number from {least} to {most}"))
    }
}

pub(super) fn any_duration(value: &Value) -> Result<Duration, Problem> {
    match value {
        Value::Text(text) => match parse_duration(text) {
            Some(duration) => Ok(duration),
            None if text.parse::<f64>().is_ok_and(|number| number >= 0.0) => Err(no_unit(text)),
            None => Err(DURATION_FORM.to_owned()),
        },
        Value::Integer(number) if *number >= 0 => Err(no_unit(&number.to_string())),
        _ => Err(DURATION_FORM.to_owned()),
    }
}

fn no_unit(number: &str) -> Problem {
    format!("needs a unit: {number}s, {number}m or {number}h")
}

/// A duration within both bounds.
pub(super) fn duration(
    least: Duration,
    most: Duration,
) -> impl FnOnce(&Value) -> Result<Duration, Problem> {
    move |value| {
        let duration = any_duration(value)?;
        if duration < least || duration > most {
            let (least, most) = (duration_text(least), duration_text(most));
            return Err(format!("must be from {least} to {most}"));
        }
        Ok(duration)
    }
}

/// A count of bytes within both bounds.
pub(super) fn bytes(least: u64, most: u64) -> impl FnOnce(&Value) -> Result<u64, Problem> {
    move |value| {
        let bytes = match value {
            Value::Integer(number) => u64::try_from(*number).ok(),
            Value::Text(text) => parse_bytes(text),
            _ => None,
        };
        let bytes = bytes.ok_or("must be a size such as 64KiB, 4MiB, 10MB or a count of bytes")?;
        if bytes < least || bytes > most {
            let (least, most) = (bytes_text(least), bytes_text(most));
            return Err(format!("must be from {least} to {most}"));
        }
        Ok(bytes)
    }
}

/// A point in time, cut to the second as both of Teleport's event APIs do.
pub(super) fn time(value: &Value) -> Result<DateTime<Utc>, Problem> {
    match value {
        Value::Text(text) | Value::Time(text) => parse_time(text),
        _ => Err(TIME_FORM.to_owned()),
    }
}

const TIME_FORM: &str =
    "must be RFC 3339 with a zone (2026-01-31T08:00:00Z) or a date (2026-01-31, midnight UTC)";

/// Reads RFC 3339, cut to the second, or a date, which is its midnight in UTC.
///
/// # Errors
/// The form that is allowed, as a sentence.
pub(crate) fn parse_time(text: &str) -> Result<DateTime<Utc>, Problem> {
    if let Ok(date) = NaiveDate::parse_from_str(text, "%Y-%m-%d") {
        return Ok(date.and_time(NaiveTime::MIN).and_utc());
    }
    DateTime::parse_from_rfc3339(text)
        .map(|time| time.to_utc().trunc_subsecs(0))
        .map_err(|_| TIME_FORM.to_owned())
}

/// Names of event types, with `*` for any characters.
pub(super) fn event_types(value: &Value) -> Result<TypeSet, Problem> {
    let types = list(value)?;
    for event_type in &types {
        if event_type.contains(char::is_whitespace) {
            return Err(format!(
                "{event_type:?} is no event type; put commas between them"
            ));
        }
    }
    Ok(types.into_iter().collect())
}

/// One level, or levels by target: `info,teleport_event_indexer::teleport=debug`.
pub(super) fn log_level(value: &Value) -> Result<String, Problem> {
    let text = text(value)?;
    let is_level = |level: &str| {
        ["off", "error", "warn", "info", "debug", "trace"]
            .iter()
            .any(|known| level.eq_ignore_ascii_case(known))
    };
    let is_target = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '-' | '.');
    for part in text.split(',') {
        let is_fine = match part.split_once('=') {
            Some((target, level)) => {
                !target.is_empty() && target.chars().all(is_target) && is_level(level)
            }
            None => is_level(part),
        };
        if !is_fine {
            return Err(
                "must be off, error, warn, info, debug or trace, or such levels by target: \
                 info,teleport_event_indexer::teleport=debug"
                    .to_owned(),
            );
        }
    }
    Ok(text)
}

/// The name of an index, in which parts of the date may stand.
pub(super) fn index_pattern(value: &Value) -> Result<IndexPattern, Problem> {
    IndexPattern::parse(&text(value)?).map_err(|wrong| wrong.to_string())
}

/// A name for an index template or a lifecycle policy.
pub(super) fn asset_name(value: &Value) -> Result<String, Problem> {
    let text = text(value)?;
    if text.contains('%') {
        return Err("must not contain %".to_owned());
    }
    check_name(&text)?;
    Ok(text)
}

/// Elasticsearch's own rules for the name of an index.
fn check_name(name: &str) -> Result<(), Problem> {
    const FORBIDDEN: &str = "\\/*?\"<>|,#: ";
    if name.chars().any(char::is_uppercase) {
        return Err("must be in lower case (the date's %Y aside)".to_owned());
    }
    if let Some(c) = name
        .chars()
        .find(|c| FORBIDDEN.contains(*c) || c.is_control())
    {
        return Err(format!("must not contain {c:?}"));
    }
    if name.starts_with(['-', '_', '+', '.']) {
        return Err("must not begin with -, _, + or .".to_owned());
    }
    if name.len() > 255 {
        return Err("must be at most 255 bytes long".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    #[test]
    fn times() {
        for (text, expected) in [
            ("2026-01-31", Some("2026-01-31T00:00:00+00:00")),
            (
                "2026-01-31T08:00:00.999Z",
                Some("2026-01-31T08:00:00+00:00"),
            ),
            (
                "2026-01-31T08:00:00+02:00",
                Some("2026-01-31T06:00:00+00:00"),
            ),
            ("2026-01-31T08:00:00", None),
            ("31.01.2026", None),
            ("2026-02-30", None),
            ("yesterday", None),
        ] {
            let time = parse_time(text).ok().map(|time| time.to_rfc3339());
            assert_eq!(time.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn lists() {
        for value in [
            written(" user.login, session.start ,"),
            Value::List(vec!["user.login".to_owned(), "session.start".to_owned()]),
            Value::List(vec!["user.login,session.start".to_owned()]),
        ] {
            assert_eq!(list(&value).unwrap(), ["user.login", "session.start"]);
        }
        assert!(list(&Value::Bool(true)).is_err());
    }

    #[test]
    fn log_levels() {
        for text in [
            "info",
            "OFF",
            "info,teleport_event_indexer::teleport=debug",
            "h2=warn",
        ] {
            assert_eq!(log_level(&written(text)).as_deref(), Ok(text));
        }
        for text in [
            "loud",
            "info,",
            "=info",
            "h2=loud",
            "a b=info",
            "info;h2=warn",
        ] {
            assert!(log_level(&written(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn index_names() {
        for text in ["audit-events-%Y.%m.%d", "audit", "teleport-%Y%m"] {
            assert_eq!(index_pattern(&written(text)).unwrap().as_str(), text);
        }
        for text in [
            "Audit-%Y", "audit-%H", "audit %Y", "_audit", "audit/%Y", "audit-%", "audit:x",
        ] {
            assert!(index_pattern(&written(text)).is_err(), "{text}");
        }
        assert!(index_pattern(&written(&"a".repeat(256))).is_err());
    }

    #[test]
    fn numbers_keep_to_their_bounds() {
        let least_to_most = || integer(1_i32, 10);
        assert_eq!(least_to_most()(&Value::Integer(10)), Ok(10));
        assert_eq!(least_to_most()(&written("1")), Ok(1));
        for value in [
            Value::Integer(0),
            Value::Integer(11),
            Value::Integer(i64::MAX),
            Value::Number("1.0".to_owned()),
            written("1.0"),
            written("one"),
        ] {
            let problem = least_to_most()(&value).unwrap_err();
            assert_eq!(problem, "must be a whole number from 1 to 10");
        }
    }
}
