//! Elasticsearch API keys in every spelling that people have at hand.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::prelude::BASE64_STANDARD;

use crate::secret::Secret;

const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The text is no API key. Does not say what it is.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "is no API key: give id:api_key, or what Elasticsearch calls `encoded`, or an Elastic Cloud \
     key (essu_…)"
)]
pub(super) struct ApiKeyError;

/// The form in which a key follows the word `ApiKey` in a header.
///
/// - `id:api_key`, the two fields of the answer to its creation, becomes base64.
/// - Base64 of that, the answer's field `encoded`, stays as it is.
/// - `essu_…`, a key of Elastic Cloud, goes out whole: Elasticsearch takes it so since 9.1, and
///   what it consists of is not public.
/// - `ApiKey …`, copied from a header, is one of these with a word in front.
///
/// # Errors
/// If it is none of these; most often only the second half was copied, and the id is missing.
pub(super) fn header_form(text: &str) -> Result<Secret, ApiKeyError> {
    let text = text.trim();
    let text = text.strip_prefix("ApiKey ").unwrap_or(text).trim_start();
    if text.contains(|c: char| !c.is_ascii_graphic()) {
        return Err(ApiKeyError);
    }
    if let Some(rest) = text.strip_prefix("essu_") {
        return match rest {
            "" => Err(ApiKeyError),
            _ => Ok(Secret::new(text)),
        };
    }
    if text.contains(':') {
        return encode(text);
    }
    let decoded = LENIENT.decode(text).map_err(|_| ApiKeyError)?;
    encode(&String::from_utf8(decoded).map_err(|_| ApiKeyError)?)
}

fn encode(pair: &str) -> Result<Secret, ApiKeyError> {
    match pair.split_once(':') {
        Some((id, key)) if !id.is_empty() && !key.is_empty() => {
            Ok(Secret::new(BASE64_STANDARD.encode(pair)))
        }
        _ => Err(ApiKeyError),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_ends_as_one_header() {
        for text in [
            "the-id:the-key",
            "dGhlLWlkOnRoZS1rZXk=",
            "dGhlLWlkOnRoZS1rZXk",
            " ApiKey dGhlLWlkOnRoZS1rZXk=\n",
        ] {
            assert_eq!(
                header_form(text).unwrap().expose(),
                "dGhlLWlkOnRoZS1rZXk=",
                "{text}"
            );
        }
        assert_eq!(header_form("essu_YWJj").unwrap().expose(), "essu_YWJj");
        for text in [
            "",
            ":",
            "the-id:",
            ":the-key",
            "aATekzVwRemmgCSxJXcWsw",
            "essu_",
            "a b:c",
        ] {
            assert_eq!(header_form(text), Err(ApiKeyError), "{text}");
        }
    }
}
