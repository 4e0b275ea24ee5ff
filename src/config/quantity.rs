//! Durations and sizes as people write them.

use std::time::Duration;

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// Units of a duration, Go's and the day, in nanoseconds.
const DURATION_UNITS: &[(&str, u128)] = &[
    ("d", 86_400 * NANOS_PER_SECOND),
    ("h", 3_600 * NANOS_PER_SECOND),
    ("m", 60 * NANOS_PER_SECOND),
    ("s", NANOS_PER_SECOND),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("µs", 1_000),
    ("ns", 1),
];

/// Units of a size, in bytes. `M` alone is missing because nobody knows which of the two it means.
const SIZE_UNITS: &[(&str, u64)] = &[
    ("b", 1),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
];

/// A duration in Go's form with days added: `200ms`, `1h30m`, `1.5h`, `365d`. A number without a
/// unit is none, except `0`.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut nanos = 0_u128;
    while !rest.is_empty() {
        let (number, after) = split_where(rest, |c| !c.is_ascii_digit() && c != '.');
        let (unit, after) = split_where(after, |c| c.is_ascii_digit() || c == '.');
        let (_, scale) = DURATION_UNITS.iter().find(|(name, _)| *name == unit)?;
        nanos = nanos.checked_add(scaled(number, *scale)?)?;
        rest = after;
    }
    if text.is_empty() {
        return None;
    }
    let seconds = u64::try_from(nanos / NANOS_PER_SECOND).ok()?;
    let nanos = u32::try_from(nanos % NANOS_PER_SECOND).expect("below 10^9");
    Some(Duration::new(seconds, nanos))
}

/// A size: `4MiB`, `10MB`, or a plain count of bytes.
pub(super) fn parse_bytes(text: &str) -> Option<u64> {
    let (number, unit) = split_where(text, |c| !c.is_ascii_digit());
    let number: u64 = number.parse().ok()?;
    let unit = unit.trim_start().to_ascii_lowercase();
    if unit.is_empty() {
        return Some(number);
    }
    let (_, scale) = SIZE_UNITS.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*scale)
}

/// A duration in its largest whole unit: `90m`, not `1h30m` nor `5400s`.
pub(super) fn duration_text(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let unit = DURATION_UNITS
        .iter()
        .find(|(_, scale)| nanos > 0 && nanos.is_multiple_of(*scale));
    unit.map_or("0s".to_owned(), |(name, scale)| {
        format!("{}{name}", nanos / scale)
    })
}

/// A size in its largest whole binary unit.
pub(super) fn bytes_text(bytes: u64) -> String {
    let units = [
        (1 << 40, "TiB"),
        (1 << 30, "GiB"),
        (1 << 20, "MiB"),
        (1 << 10, "KiB"),
    ];
    let unit = units
        .iter()
        .find(|(scale, _)| bytes > 0 && bytes.is_multiple_of(*scale));
    unit.map_or(format!("{bytes}B"), |(scale, name)| {
        format!("{}{name}", bytes / scale)
    })
}

fn split_where(text: &str, ends: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(ends).unwrap_or(text.len()))
}

/// A decimal number times `scale`, rounded down, without the detour over a float.
fn scaled(number: &str, scale: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let parse = |digits: &str| match digits {
        "" => Some(0),
        digits => digits.parse::<u128>().ok(),
    };
    // Nineteen digits are finer than a nanosecond of any unit.
    let fraction: String = fraction.chars().take(19).collect();
    let divisor = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    parse(whole)?
        .checked_mul(scale)?
        .checked_add(parse(&fraction)?.checked_mul(scale)? / divisor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let second = Duration::from_secs(1);
        for (text, expected) in [
            ("200ms", Some(second / 5)),
            ("1h30m", Some(second * 5400)),
            ("1.5h", Some(second * 5400)),
            (".5s", Some(second / 2)),
            ("365d", Some(second * 31_536_000)),
            ("3µs4us", Some(Duration::from_micros(7))),
            ("0", Some(Duration::ZERO)),
            ("0.123456789s", Some(Duration::from_nanos(123_456_789))),
            ("5", None),
            ("", None),
            ("-5s", None),
            ("5 s", None),
            ("1.2.3s", None),
            (".s", None),
            ("s", None),
            ("5S", None),
            ("1w", None),
            ("99999999999999999999999999999999d", None),
            ("999999999999999999d", None),
        ] {
            assert_eq!(parse_duration(text), expected, "{text:?}");
        }
    }

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("4MiB", Some(4 << 20)),
            ("10MB", Some(10_000_000)),
            ("4 mib", Some(4 << 20)),
            ("65536", Some(65536)),
            ("1B", Some(1)),
            ("4M", None),
            ("1.5GiB", None),
            ("-1", None),
            ("", None),
            ("MiB", None),
            ("99999999TiB", None),
        ] {
            assert_eq!(parse_bytes(text), expected, "{text:?}");
        }
    }

    #[test]
    fn texts_read_back() {
        for text in ["200ms", "90m", "24h", "366d", "1ns", "0s"] {
            let duration = parse_duration(text).unwrap();
            assert_eq!(parse_duration(&duration_text(duration)), Some(duration));
        }
        assert_eq!(duration_text(Duration::from_secs(5400)), "90m");
        for text in ["64KiB", "1GiB", "1000B", "0B"] {
            assert_eq!(bytes_text(parse_bytes(text).unwrap()), text);
        }
    }
}
