//! A state as bytes, and as what has changed of it since a base.

use std::io::{self, Write};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use ring::digest;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::packed;

/// SQLite's page: what changes, changes by whole ones.
const PAGE: usize = 4096;

/// Larger than any state that SQLite keeps in memory: what claims to be larger is none.
pub const LARGEST: usize = 1 << 30;

/// A state, whole or as what differs from its base.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// What it differs from; `None`: it is all there.
    pub base: Option<Base>,
    /// Its length in bytes; 0: there is no state yet.
    pub bytes: usize,
    /// The SHA-256 of the whole, in hex.
    pub sha256: String,
    /// The pages that differ, each behind its number; gzip, then base64.
    pub changes: String,
}

/// A whole state in documents of its own, which are never changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// What their ids have in common. No two bases have the same one.
    pub name: String,
    /// How many there are.
    pub parts: usize,
}

/// Why a state cannot be put together.
#[derive(Debug, Error)]
pub enum ImageError {
    /// What should be base64 or gzip is none.
    #[error("the state in Elasticsearch is damaged: its pages cannot be unpacked")]
    Packed(#[source] io::Error),
    /// It is not what was written.
    #[error("the state in Elasticsearch is damaged: its checksum differs")]
    Checksum,
}

impl Image {
    /// A state as what differs from a base.
    pub fn of(whole: &[u8], base: Option<&Base>, base_whole: &[u8]) -> Self {
        let mut packed = GzEncoder::new(Vec::new(), Compression::default());
        let mut put = |bytes: &[u8]| packed.write_all(bytes).expect("a vector takes all");
        for (number, page) in whole.chunks(PAGE).enumerate() {
            let from = number * PAGE;
            if base_whole.get(from..from + page.len()) != Some(page) {
                let number = u32::try_from(number).expect("a state has fewer pages");
                put(&number.to_be_bytes());
                put(page);
            }
        }
        let packed = packed.finish().expect("a vector takes all");
        Self {
            base: base.cloned(),
            bytes: whole.len(),
            sha256: sha256(whole),
            changes: BASE64_STANDARD.encode(packed),
        }
    }

    /// The state, with the whole of its base, which is empty if it has none.
    ///
    /// # Errors
    /// If it is not what was written.
    pub fn whole(&self, mut base_whole: Vec<u8>) -> Result<Vec<u8>, ImageError> {
        if self.bytes > LARGEST {
            return Err(ImageError::Checksum);
        }
        let most = self.bytes.saturating_mul(2) + PAGE;
        let changes = packed::joined(&[&self.changes], most).map_err(ImageError::Packed)?;
        base_whole.resize(self.bytes, 0);
        let mut rest = &changes[..];
        while let Some((number, behind)) = rest.split_first_chunk::<4>() {
            let from = u32::from_be_bytes(*number) as usize * PAGE;
            let to = (from + PAGE).min(self.bytes);
            let length = to.saturating_sub(from);
            let (Some(place), Some(page)) = (base_whole.get_mut(from..to), behind.get(..length))
            else {
                return Err(ImageError::Checksum);
            };
            place.copy_from_slice(page);
            if length == 0 {
                break;
            }
            rest = &behind[length..];
        }
        if sha256(&base_whole) == self.sha256 {
            Ok(base_whole)
        } else {
            Err(ImageError::Checksum)
        }
    }
}

fn sha256(bytes: &[u8]) -> String {
    let hash = digest::digest(&digest::SHA256, bytes);
    hash.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(numbers: &[u8], tail: usize) -> Vec<u8> {
        let pages = numbers.iter().flat_map(|number| [*number; PAGE]);
        pages.chain(std::iter::repeat_n(7, tail)).collect()
    }

    #[test]
    fn what_changed_since_a_base_brings_the_whole_back() {
        let base = Base {
            name: "b".to_owned(),
            parts: 3,
        };
        let before = pages(&[1, 2, 3], 0);
        let all = [
            before.clone(),
            pages(&[1, 9, 3], 0),
            pages(&[1, 2, 3, 4, 5], 0),
            pages(&[1], 0),
            pages(&[4], 100),
            Vec::new(),
        ];
        for whole in all {
            let image = Image::of(&whole, Some(&base), &before);
            assert_eq!(image.whole(before.clone()).unwrap(), whole);
            let alone = Image::of(&whole, None, &[]);
            assert_eq!(alone.whole(Vec::new()).unwrap(), whole);
        }
        assert_eq!(Image::default().bytes, 0);
    }

    #[test]
    fn what_is_not_what_was_written_is_refused() {
        let before = pages(&[1, 2, 3], 0);
        let whole = pages(&[1, 9, 3], 0);
        let image = Image::of(&whole, None, &before);
        // Another base.
        let error = image.whole(pages(&[1, 2, 4], 0)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the state in Elasticsearch is damaged: its checksum differs"
        );
        let mut other = image.clone();
        other.changes = "no base64".to_owned();
        assert_eq!(
            other.whole(before.clone()).unwrap_err().to_string(),
            "the state in Elasticsearch is damaged: its pages cannot be unpacked"
        );
        let mut other = image;
        other.bytes = usize::MAX;
        other.whole(before).unwrap_err();
    }
}
