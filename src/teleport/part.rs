//! A part of the chunks of an export, for a day that is too large for one.

use std::fmt;

use ring::digest::{SHA256, digest};

/// Those chunks whose names' numbers leave `number` as the rest of a division by `of`. All parts `of`
/// the same together have each chunk once, also one that is listed only later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which, from 0.
    pub number: u64,
    /// Of how many.
    pub of: u64,
}

impl Part {
    /// All chunks.
    pub const WHOLE: Self = Self { number: 0, of: 1 };

    /// `None` if there is no such part.
    pub fn new(number: u64, of: u64) -> Option<Self> {
        (number < of).then_some(Self { number, of })
    }

    /// Whether it has the chunk of this name.
    pub fn has(self, chunk: &str) -> bool {
        number(chunk) % self.of == self.number
    }

    /// Whether it is all of them.
    pub fn is_whole(&self) -> bool {
        *self == Self::WHOLE
    }

    /// Cuts it into so many; `None` where it is as small as a part can be.
    pub fn cut(self, parts: u32) -> Option<Vec<Self>> {
        let of = self.of.checked_mul(parts.into())?;
        let numbers = (0..u64::from(parts)).map(|part| self.number + self.of * part);
        Some(numbers.map(|number| Self { number, of }).collect())
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.number + 1, self.of)
    }
}

impl Default for Part {
    fn default() -> Self {
        Self::WHOLE
    }
}

/// A chunk's number. It must stay the same for ever, in all versions of this program: else two
/// workers mean different chunks by the same part.
fn number(chunk: &str) -> u64 {
    let digest = digest(&SHA256, chunk.as_bytes());
    let first = digest.as_ref().first_chunk().expect("it has 32 bytes");
    u64::from_be_bytes(*first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_chunk_is_in_one_part_however_often_they_are_cut() {
        let mut parts = vec![Part::WHOLE];
        for cut in [2, 4, 3] {
            parts = parts
                .iter()
                .flat_map(|part| part.cut(cut).unwrap())
                .collect();
            for chunk in (0..100).map(|n| format!("2026-11-26/{n}")) {
                let with_it = parts.iter().filter(|part| part.has(&chunk)).count();
                assert_eq!(with_it, 1, "{chunk} of {}", parts.len());
            }
        }
        let smallest = Part {
            number: 1,
            of: u64::MAX,
        };
        assert_eq!(smallest.cut(2), None);
    }

    /// The first 16 digits that `printf chunk | sha256sum` gives.
    #[test]
    fn a_chunk_has_the_same_number_in_all_versions() {
        assert_eq!(number("chunk"), 0x6c87_f683_71b2_8954);
    }
}
