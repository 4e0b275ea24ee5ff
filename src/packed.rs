//! Bytes as texts that a JSON document may have: gzip, then base64, in parts.

use std::io::{self, Read, Write};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

/// Bytes in parts, none longer than `most` characters. There is one at least.
pub(crate) fn parts(bytes: &[u8], most: usize) -> Vec<String> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    packed.write_all(bytes).expect("a vector takes all");
    let packed = packed.finish().expect("a vector takes all");
    let parts = packed.chunks((most / 4 * 3).max(1));
    parts.map(|part| BASE64_STANDARD.encode(part)).collect()
}

/// The way back from [`parts`], and no more than the first `most` bytes.
///
/// # Errors
/// If they are no such parts.
pub(crate) fn joined(parts: &[impl AsRef<str>], most: usize) -> io::Result<Vec<u8>> {
    let mut packed = Vec::new();
    for part in parts {
        let part = BASE64_STANDARD.decode(part.as_ref());
        let part = part.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        packed.extend(part);
    }
    let mut bytes = Vec::new();
    GzDecoder::new(&packed[..])
        .take(most as u64)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::events::random::Random;

    #[test]
    fn bytes_come_back_from_their_parts() {
        // Nothing that packs well.
        let mut random = Random::new(1);
        let bytes: Vec<u8> = std::iter::repeat_with(|| random.next().to_be_bytes()[0])
            .take(2 << 20)
            .collect();
        for most in [1000, 512 << 10] {
            let parts = parts(&bytes, most);
            assert!(parts.len() > 4 && parts.len() > bytes.len() / most);
            assert!(parts.iter().all(|part| part.len() <= most));
            assert_eq!(joined(&parts, 1 << 30).unwrap(), bytes);
            assert_eq!(joined(&parts, 10).unwrap(), bytes[..10]);
            joined(&parts[1..], 1 << 30).unwrap_err();
        }
        assert_eq!(parts(b"", 1000).len(), 1);
        joined(&["no base64"], 10).unwrap_err();
    }
}
