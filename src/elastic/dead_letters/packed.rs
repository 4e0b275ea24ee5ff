//! A refused document in parts, none of them larger than what any server takes.

use std::io::{Read, Write};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

/// A document up to this size is kept as the text that it is, and one part has no more.
pub(super) const PART: usize = 512 << 10;

/// Gzip, then base64, in parts.
pub(super) fn pack(document: &[u8]) -> Vec<String> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(document).expect("a vector takes all");
    let packed = packed.finish().expect("a vector takes all");
    let parts = packed.chunks(PART / 4 * 3);
    parts.map(|part| BASE64_STANDARD.encode(part)).collect()
}

pub(super) fn unpack(parts: &[String]) -> Option<Vec<u8>> {
    let mut packed = Vec::new();
    for part in parts {
        packed.extend(BASE64_STANDARD.decode(part).ok()?);
    }
    let mut document = Vec::new();
    // A message of Teleport's has 64 MiB at most.
    let mut limited = GzDecoder::new(&packed[..]).take(1 << 30);
    limited.read_to_end(&mut document).ok()?;
    Some(document)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_large_comes_back_from_its_parts() {
        let mut noise = 1_u64;
        let document: Vec<u8> = std::iter::repeat_with(|| {
            noise = noise
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            noise.to_be_bytes()[0]
        })
        .take(2 << 20)
        .collect();
        let parts = pack(&document);
        assert!(parts.len() > 4, "{}", parts.len());
        assert!(parts.iter().all(|part| part.len() <= PART));
        assert_eq!(unpack(&parts).unwrap(), document);
        assert_eq!(pack(b"").len(), 1);
    }
}
