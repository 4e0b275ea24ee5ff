//! Writes JSON strings and numbers.

/// Writes the text at `start..end` of `haystack` as a JSON string. `faulty` becomes true if it was
/// no valid UTF-8, each fault of which becomes one U+FFFD, as `String::from_utf8_lossy` has it.
///
/// Escaped are `"`, `\` and the characters below U+0020, and nothing else: a string can leave
/// neither its quotes nor its line. The spelling of an escape is part of the ids of events
/// without an id of their own and may not change.
///
/// `SHORT` is how long most texts are at most, a multiple of 16. These are looked at and copied
/// together with what follows them in the haystack: work of a fixed length needs no call and no
/// guess at a length that differs from text to text.
#[inline]
pub(super) fn write_string<const SHORT: usize>(
    haystack: &[u8],
    start: usize,
    end: usize,
    faulty: &mut bool,
    out: &mut Vec<u8>,
) {
    let length = end - start;
    match haystack[start..].first_chunk::<SHORT>() {
        Some(chunk) if length <= SHORT && begins_plain(chunk, length) => {
            out.push(b'"');
            let begin = out.len();
            out.extend_from_slice(chunk);
            out.truncate(begin + length);
            out.push(b'"');
        }
        _ => *faulty |= write_any(&haystack[start..end], out),
    }
}

/// Whether the first `length` bytes are ASCII without anything to escape. Written such that the
/// compiler looks at sixteen bytes at once.
#[inline]
fn begins_plain<const SHORT: usize>(chunk: &[u8; SHORT], length: usize) -> bool {
    let length = u8::try_from(length).unwrap_or(u8::MAX);
    let mut odd = false;
    for (n, byte) in (0_u8..).zip(chunk) {
        // Below the space or beyond ASCII.
        let is_odd = (byte.wrapping_sub(b' ') >= 0x60) | (*byte == b'"') | (*byte == b'\\');
        odd |= is_odd & (n < length);
    }
    !odd
}

/// Any text, at the end of `out`; `true` if it was no valid UTF-8.
#[inline(never)]
fn write_any(text: &[u8], out: &mut Vec<u8>) -> bool {
    let (chunks, rest) = text.as_chunks::<16>();
    let is_plain = chunks.iter().all(|chunk| begins_plain(chunk, 16))
        && rest
            .iter()
            .all(|byte| byte.is_ascii() && !is_escaped(*byte));
    if is_plain {
        out.push(b'"');
        out.extend_from_slice(text);
        out.push(b'"');
        return false;
    }
    out.push(b'"');
    let is_utf8 = std::str::from_utf8(text).is_ok();
    if is_utf8 {
        write_escaped(text, out);
    } else {
        write_mended(text, out);
    }
    out.push(b'"');
    !is_utf8
}

#[cold]
fn write_mended(text: &[u8], out: &mut Vec<u8>) {
    for chunk in text.utf8_chunks() {
        write_escaped(chunk.valid().as_bytes(), out);
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
}

fn write_escaped(mut text: &[u8], out: &mut Vec<u8>) {
    while let Some(at) = find_escaped(text) {
        let (run, rest) = text.split_at(at);
        out.extend_from_slice(run);
        let byte = rest[0];
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            _ => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
            }
        }
        text = &rest[1..];
    }
    out.extend_from_slice(text);
}

const LOWEST_BITS: u64 = u64::from_ne_bytes([0x01; 8]);
const HIGHEST_BITS: u64 = u64::from_ne_bytes([0x80; 8]);

/// Looks at eight bytes at once. Of the bytes to be escaped, the lowest has its highest bit set in
/// the answer; bits above it may be set by the borrow of a subtraction; none is set if there is
/// no such byte.
#[inline]
fn escaped_of_eight(eight: u64) -> u64 {
    let below_space = eight.wrapping_sub(LOWEST_BITS * 0x20) & !eight;
    let quote = eight ^ (LOWEST_BITS * u64::from(b'"'));
    let backslash = eight ^ (LOWEST_BITS * u64::from(b'\\'));
    let quote = quote.wrapping_sub(LOWEST_BITS) & !quote;
    let backslash = backslash.wrapping_sub(LOWEST_BITS) & !backslash;
    (below_space | quote | backslash) & HIGHEST_BITS
}

fn is_escaped(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

fn find_escaped(text: &[u8]) -> Option<usize> {
    let (eights, rest) = text.as_chunks::<8>();
    for (n, eight) in eights.iter().enumerate() {
        let found = escaped_of_eight(u64::from_le_bytes(*eight));
        if found != 0 {
            return Some(n * 8 + found.trailing_zeros() as usize / 8);
        }
    }
    let at = rest.iter().position(|byte| is_escaped(*byte))?;
    Some(eights.len() * 8 + at)
}

/// Writes a number: a whole one of at most 2^53 either side of zero without a fraction, −0 as `0`,
/// any other finite one in the shortest form that reads back equal. NaN and the infinities, which
/// JSON does not have, become the strings of protobuf's own JSON form.
#[inline]
pub(super) fn write_number(number: f64, out: &mut Vec<u8>) {
    const WHOLE_MAX: i64 = 1 << 53;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a number that the cast changes is told by the comparison"
    )]
    let whole = number as i64;
    if (-WHOLE_MAX..=WHOLE_MAX).contains(&whole) && whole as f64 == number {
        return out.extend_from_slice(itoa::Buffer::new().format(whole).as_bytes());
    }
    if number.is_finite() {
        let mut buffer = zmij::Buffer::new();
        return out.extend_from_slice(buffer.format_finite(number).as_bytes());
    }
    let name: &[u8] = if number.is_nan() {
        b"\"NaN\""
    } else if number > 0.0 {
        b"\"Infinity\""
    } else {
        b"\"-Infinity\""
    };
    out.extend_from_slice(name);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (number, text) in [
            (0.0, "0"),
            (-0.0, "0"),
            (3.0, "3"),
            (-17.0, "-17"),
            (9_007_199_254_740_991.0, "9007199254740991"),
            (9_007_199_254_740_992.0, "9007199254740992"),
            (-9_007_199_254_740_992.0, "-9007199254740992"),
            (9_007_199_254_740_994.0, "9007199254740994.0"),
            (18_446_744_073_709_551_615.0, "1.8446744073709552e+19"),
            (0.1, "0.1"),
            (-2.5, "-2.5"),
            (1e300, "1e+300"),
            (f64::MAX, "1.7976931348623157e+308"),
            (f64::MIN_POSITIVE, "2.2250738585072014e-308"),
            (5e-324, "5e-324"),
            (f64::NAN, "\"NaN\""),
            (f64::INFINITY, "\"Infinity\""),
            (f64::NEG_INFINITY, "\"-Infinity\""),
        ] {
            let mut out = Vec::new();
            write_number(number, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), text);
            if number.is_finite() {
                let value: serde_json::Value = serde_json::from_str(text).unwrap();
                assert_eq!(value.as_f64(), Some(number));
            }
        }
    }

    #[test]
    fn each_byte_at_each_place_is_written_as_serde_json_writes_it() {
        for length in 1..20 {
            for at in 0..length {
                for byte in 0..128 {
                    let mut text = vec![b'x'; length];
                    text[at] = byte;
                    // Once with nothing behind the text and once with what must not count.
                    for behind in [&b""[..], b"\"\n\xff\"\"\"\"\"\""] {
                        let haystack = [b"\"", &*text, behind].concat();
                        let mut out = Vec::new();
                        let mut faulty = false;
                        write_string::<16>(&haystack, 1, 1 + length, &mut faulty, &mut out);
                        assert!(!faulty);
                        let text = std::str::from_utf8(&text).unwrap();
                        assert_eq!(out, serde_json::to_vec(text).unwrap());
                    }
                }
            }
        }
    }

    #[test]
    fn utf8_stays_and_what_is_none_is_replaced() {
        for text in [
            &b"\xc3\xa9 \xe2\x80\xa8 \xf0\x9f\xa6\x80 \x7f"[..],
            b"long enough for more than one step \xe2\x80\xa9\n",
            b"\xff",
            b"plain \xc3",
            b"\xe2\x80",
            b"\xf0\x9f\xa6 \"mid\" \xed\xa0\x80 \x80\x80",
            b"12345678\xfe12345678\"",
        ] {
            let mut out = Vec::new();
            let mut faulty = false;
            write_string::<16>(text, 0, text.len(), &mut faulty, &mut out);
            let lossy = String::from_utf8_lossy(text);
            assert_eq!(faulty, matches!(lossy, std::borrow::Cow::Owned(_)));
            assert_eq!(out, serde_json::to_vec(&lossy).unwrap());
        }
    }
}
