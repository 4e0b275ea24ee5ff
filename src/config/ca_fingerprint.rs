//! The fingerprint of a CA certificate, as Elasticsearch shows it at its first start.

use std::fmt;

/// SHA-256 of a certificate in DER.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CaFingerprint([u8; 32]);

/// The text is no fingerprint.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be the SHA-256 of a CA certificate: 64 hexadecimal digits, with or without colons")]
pub(super) struct CaFingerprintError;

impl CaFingerprint {
    /// Reads 64 hexadecimal digits of either case, between which colons may stand.
    ///
    /// # Errors
    /// If the text has another form.
    pub(super) fn parse(text: &str) -> Result<Self, CaFingerprintError> {
        let digits: Option<Vec<u8>> = text
            .trim()
            .chars()
            .filter(|character| *character != ':')
            .map(|digit| u8::try_from(digit.to_digit(16)?).ok())
            .collect();
        let digits: [u8; 64] = digits
            .and_then(|digits| digits.try_into().ok())
            .ok_or(CaFingerprintError)?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
        Ok(Self(bytes))
    }

    /// That of a certificate.
    pub fn of(der: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, der);
        let digest = digest.as_ref().try_into();
        Self(digest.expect("SHA-256 has 32 bytes"))
    }
}

impl fmt::Display for CaFingerprint {
    /// As `openssl x509 -fingerprint` writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, byte) in self.0.iter().enumerate() {
            let separator = if n == 0 { "" } else { ":" };
            write!(f, "{separator}{byte:02X}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for CaFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CaFingerprint({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_spelling_is_read_and_nothing_else() {
        let fingerprint = CaFingerprint::of(b"a certificate");
        let shown = fingerprint.to_string();
        assert_eq!(shown.len(), 95);
        for text in [
            shown.clone(),
            shown.to_lowercase(),
            shown.replace(':', ""),
            format!(" {}\n", shown.replace(':', "").to_lowercase()),
        ] {
            assert_eq!(CaFingerprint::parse(&text), Ok(fingerprint), "{text}");
        }
        let short = shown.trim_end_matches(|c| c != ':');
        for text in [
            "",
            "00:11",
            short,
            &format!("{shown}:00"),
            &shown.replace(':', "-"),
        ] {
            assert_eq!(
                CaFingerprint::parse(text),
                Err(CaFingerprintError),
                "{text}"
            );
        }
    }
}
