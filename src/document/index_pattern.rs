//! The name of the index that an event belongs to, made from the event's own time.

use std::fmt::{self, Write as _};
use std::ops::Range;

use chrono::{DateTime, Datelike as _, NaiveDate};
use thiserror::Error;

/// Times outside of this have no index, in milliseconds since 1970: 1971-01-01 up to, not
/// including, 2200-01-01. Nobody had an audit log before, and what claims to be further ahead is
/// a placeholder or a mistake, which should not make an index of its own. The clock is not asked,
/// so that an event makes the same document whenever it is read.
pub const USABLE_MILLIS: Range<i64> = 31_536_000_000..7_258_118_400_000;

/// A pattern such as `audit-events-%Y.%m.%d` that gives a legal index name for any usable time.
///
/// Known are `%Y` `%m` `%d` `%j` (day of the year) `%G` `%V` (ISO year and week) and `%%`, as in
/// `strftime`, all in UTC and all of fixed width.
#[derive(Clone, PartialEq, Eq)]
pub struct IndexPattern {
    text: String,
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Year,
    Month,
    Day,
    DayOfYear,
    IsoYear,
    IsoWeek,
}

/// Why a text is no [`IndexPattern`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum IndexPatternError {
    /// Nothing there.
    #[error("the index name is empty")]
    Empty,
    /// A specifier that is not one of ours.
    #[error("{0:?} in the index name is none of %Y %m %d %j %G %V %%")]
    UnknownSpecifier(String),
    /// Months, days or weeks of different years would share an index.
    #[error("{specifier} in the index name needs {year} beside it")]
    NoYear {
        /// The specifier as written.
        specifier: &'static str,
        /// The year that goes with it.
        year: &'static str,
    },
    /// Around New Year the calendar's and the ISO weeks' years differ, so that dates made from
    /// both would be wrong.
    #[error("{specifier} in the index name does not go with {year}")]
    OtherYear {
        /// The specifier as written.
        specifier: &'static str,
        /// The year that does not go with it.
        year: &'static str,
    },
    /// A character that Elasticsearch does not take.
    #[error("{0:?} cannot be part of an index name")]
    Character(char),
    /// An upper-case letter.
    #[error("{0:?} cannot be part of an index name, which must be in lower case")]
    UpperCase(char),
    /// A beginning that Elasticsearch does not take.
    #[error("an index name cannot start with {0:?}")]
    Start(char),
    /// The pattern has no text in front, so that its wildcard would be `*`.
    #[error("the index name starts with {0}: without a text in front it would match every index")]
    StartsWithDate(&'static str),
    /// `.` or `..`.
    #[error("{0:?} cannot be an index name")]
    Dots(String),
    /// Longer than Elasticsearch takes.
    #[error("the index name has {0} bytes, more than 255")]
    TooLong(usize),
}

impl fmt::Debug for IndexPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

impl Default for IndexPattern {
    fn default() -> Self {
        Self::parse("audit-events-%Y.%m.%d").expect("the usual pattern is legal")
    }
}

impl IndexPattern {
    /// Takes a pattern as the user writes it.
    ///
    /// # Errors
    /// If it has an unknown specifier, could put different years into one index, or gives a name
    /// that Elasticsearch would refuse.
    pub fn parse(text: &str) -> Result<Self, IndexPatternError> {
        let pieces = split(text)?;
        check_years(&pieces)?;
        match pieces.first() {
            None => return Err(IndexPatternError::Empty),
            Some(Piece::Text(first)) => {
                if let Some(start @ ('-' | '_' | '+')) = first.chars().next() {
                    return Err(IndexPatternError::Start(start));
                }
            }
            Some(date) => return Err(IndexPatternError::StartsWithDate(date.specifier())),
        }
        for piece in &pieces {
            if let Piece::Text(text) = piece {
                text.chars().try_for_each(check_character)?;
            }
        }
        let pattern = Self {
            text: text.to_owned(),
            pieces,
        };
        // All dates are of the same width, so that one name stands for all.
        let name = pattern.name_on(NaiveDate::default());
        if matches!(&*name, "." | "..") {
            return Err(IndexPatternError::Dots(name));
        }
        if name.len() > 255 {
            return Err(IndexPatternError::TooLong(name.len()));
        }
        Ok(pattern)
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What matches every name that the pattern gives: the text up to the first specifier, and
    /// `*`. A pattern without a date is its own wildcard.
    pub fn wildcard(&self) -> String {
        match &*self.pieces {
            [Piece::Text(name)] => name.clone(),
            [Piece::Text(start), ..] => format!("{start}*"),
            _ => unreachable!("a pattern starts with a text"),
        }
    }

    /// Whether names end in `-2026.01.02`, which is the only form from which Elasticsearch reads
    /// an index's date (`parse_origination_date`).
    pub fn is_daily_dotted(&self) -> bool {
        self.text.ends_with("-%Y.%m.%d")
    }

    /// The index name for a time in milliseconds since 1970; `None` outside of
    /// [`USABLE_MILLIS`].
    pub fn name_for(&self, time_ms: i64) -> Option<String> {
        if !USABLE_MILLIS.contains(&time_ms) {
            return None;
        }
        let time = DateTime::from_timestamp_millis(time_ms)?;
        Some(self.name_on(time.date_naive()))
    }

    fn name_on(&self, date: NaiveDate) -> String {
        let mut name = String::with_capacity(self.text.len() + 16);
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => name.write_str(text),
                Piece::Year => write!(name, "{:04}", date.year()),
                Piece::Month => write!(name, "{:02}", date.month()),
                Piece::Day => write!(name, "{:02}", date.day()),
                Piece::DayOfYear => write!(name, "{:03}", date.ordinal()),
                Piece::IsoYear => write!(name, "{:04}", date.iso_week().year()),
                Piece::IsoWeek => write!(name, "{:02}", date.iso_week().week()),
            }
            .expect("a String takes any text");
        }
        name
    }
}

impl fmt::Display for IndexPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Piece {
    fn specifier(&self) -> &'static str {
        match self {
            Self::Text(_) => "%%",
            Self::Year => "%Y",
            Self::Month => "%m",
            Self::Day => "%d",
            Self::DayOfYear => "%j",
            Self::IsoYear => "%G",
            Self::IsoWeek => "%V",
        }
    }
}

fn split(text: &str) -> Result<Vec<Piece>, IndexPatternError> {
    let mut pieces = Vec::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        let literal = match character {
            '%' => match characters.next() {
                Some('%') => '%',
                Some('Y') => {
                    pieces.push(Piece::Year);
                    continue;
                }
                Some('m') => {
                    pieces.push(Piece::Month);
                    continue;
                }
                Some('d') => {
                    pieces.push(Piece::Day);
                    continue;
                }
                Some('j') => {
                    pieces.push(Piece::DayOfYear);
                    continue;
                }
                Some('G') => {
                    pieces.push(Piece::IsoYear);
                    continue;
                }
                Some('V') => {
                    pieces.push(Piece::IsoWeek);
                    continue;
                }
                other => {
                    let specifier = format!("%{}", other.map(String::from).unwrap_or_default());
                    return Err(IndexPatternError::UnknownSpecifier(specifier));
                }
            },
            other => other,
        };
        match pieces.last_mut() {
            Some(Piece::Text(text)) => text.push(literal),
            _ => pieces.push(Piece::Text(literal.to_string())),
        }
    }
    Ok(pieces)
}

fn check_years(pieces: &[Piece]) -> Result<(), IndexPatternError> {
    for piece in pieces {
        let (needed, other) = match piece {
            Piece::Text(_) | Piece::Year | Piece::IsoYear => continue,
            Piece::Month | Piece::Day | Piece::DayOfYear => (Piece::Year, Piece::IsoYear),
            Piece::IsoWeek => (Piece::IsoYear, Piece::Year),
        };
        let specifier = piece.specifier();
        if pieces.contains(&other) {
            let year = other.specifier();
            return Err(IndexPatternError::OtherYear { specifier, year });
        }
        if !pieces.contains(&needed) {
            let year = needed.specifier();
            return Err(IndexPatternError::NoYear { specifier, year });
        }
    }
    Ok(())
}

fn check_character(character: char) -> Result<(), IndexPatternError> {
    match character {
        '\\' | '/' | '*' | '?' | '"' | '<' | '>' | '|' | ',' | '#' | ':' => {
            Err(IndexPatternError::Character(character))
        }
        _ if character.is_whitespace() || character.is_control() => {
            Err(IndexPatternError::Character(character))
        }
        _ if !character.to_lowercase().eq([character]) => {
            Err(IndexPatternError::UpperCase(character))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(text: &str) -> i64 {
        DateTime::parse_from_rfc3339(text)
            .unwrap()
            .timestamp_millis()
    }

    #[test]
    fn names_around_midnight_and_new_year() {
        for (pattern, time, name) in [
            (
                "audit-events-%Y.%m.%d",
                "2026-01-02T00:00:00Z",
                "audit-events-2026.01.02",
            ),
            (
                "audit-events-%Y.%m.%d",
                "2026-01-01T23:59:59.999Z",
                "audit-events-2026.01.01",
            ),
            (
                "audit-events-%Y.%m.%d",
                "2026-01-01T01:00:00+02:00",
                "audit-events-2025.12.31",
            ),
            (
                "audit-events-%Y.%m.%d",
                "2024-02-29T12:00:00Z",
                "audit-events-2024.02.29",
            ),
            (
                "audit-events-%Y.%m.%d",
                "1971-01-01T00:00:00Z",
                "audit-events-1971.01.01",
            ),
            (
                "audit-events-%Y.%m.%d",
                "2199-12-31T23:59:59.999Z",
                "audit-events-2199.12.31",
            ),
            ("a-%Y-%j", "2024-12-31T00:00:00Z", "a-2024-366"),
            ("a-%Y-%j", "2025-01-01T00:00:00Z", "a-2025-001"),
            ("a-%G-w%V", "2024-12-30T00:00:00Z", "a-2025-w01"),
            ("a-%G-w%V", "2027-01-03T23:59:59Z", "a-2026-w53"),
            ("a-%%-%Y%%", "2026-06-01T00:00:00Z", "a-%-2026%"),
            ("audit-events", "2026-06-01T00:00:00Z", "audit-events"),
            ("prüfung.%Y", "2026-06-01T00:00:00Z", "prüfung.2026"),
        ] {
            let pattern = IndexPattern::parse(pattern).unwrap();
            assert_eq!(pattern.name_for(millis(time)).as_deref(), Some(name));
        }
    }

    #[test]
    fn times_that_have_no_index() {
        let pattern = IndexPattern::parse("audit-events-%Y.%m.%d").unwrap();
        for time in [
            millis("1970-12-31T23:59:59.999Z"),
            millis("2200-01-01T00:00:00Z"),
            millis("0001-01-01T00:00:00Z"),
            millis("9999-12-31T23:59:59Z"),
            -1,
            i64::MIN,
            i64::MAX,
        ] {
            assert_eq!(pattern.name_for(time), None);
        }
    }

    #[test]
    fn refusals_name_the_offending_piece() {
        for (pattern, message) in [
            ("", "the index name is empty"),
            (
                "a-%Y.%b",
                r#""%b" in the index name is none of %Y %m %d %j %G %V %%"#,
            ),
            (
                "a-%",
                r#""%" in the index name is none of %Y %m %d %j %G %V %%"#,
            ),
            (
                "a-%-d",
                r#""%-" in the index name is none of %Y %m %d %j %G %V %%"#,
            ),
            ("a-%m.%d", "%m in the index name needs %Y beside it"),
            ("a-%V", "%V in the index name needs %G beside it"),
            ("a-%Y.%V", "%V in the index name does not go with %Y"),
            ("a-%G.%Y.%m", "%m in the index name does not go with %G"),
            (
                "Audit-%Y",
                "'A' cannot be part of an index name, which must be in lower case",
            ),
            ("a b", "' ' cannot be part of an index name"),
            ("a\n", r"'\n' cannot be part of an index name"),
            ("a:b", "':' cannot be part of an index name"),
            ("a-%Y\"", "'\"' cannot be part of an index name"),
            ("_a", "an index name cannot start with '_'"),
            ("-%Y", "an index name cannot start with '-'"),
            (
                "%Y-audit",
                "the index name starts with %Y: without a text in front it would match every index",
            ),
            ("..", r#"".." cannot be an index name"#),
        ] {
            assert_eq!(
                IndexPattern::parse(pattern).unwrap_err().to_string(),
                message
            );
        }
        for character in r#"\/*?"<>| ,#:"#.chars() {
            assert!(IndexPattern::parse(&format!("a{character}")).is_err());
        }
        let longest = "a".repeat(251);
        assert!(IndexPattern::parse(&format!("{longest}%Y")).is_ok());
        assert_eq!(
            IndexPattern::parse(&format!("{longest}a%Y")),
            Err(IndexPatternError::TooLong(256))
        );
    }

    #[test]
    fn wildcard_and_form() {
        for (pattern, wildcard, daily) in [
            ("audit-events-%Y.%m.%d", "audit-events-*", true),
            ("audit-events-%Y.%m", "audit-events-*", false),
            ("audit-%%-%Y-%m-%d", "audit-%-*", false),
            ("audit-events", "audit-events", false),
        ] {
            let pattern = IndexPattern::parse(pattern).unwrap();
            assert_eq!(pattern.wildcard(), wildcard);
            assert_eq!(pattern.is_daily_dotted(), daily);
        }
    }
}
