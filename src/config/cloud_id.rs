//! Elastic Cloud's cloud id: `label:base64(host[:port]$elasticsearch[:port]$kibana[:port])`.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// Copies of a cloud id often lack the padding at its end.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

const DEFAULT_PORT: u16 = 443;

/// Where a cloud id leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloudId {
    /// URL of Elasticsearch, with its port.
    pub elasticsearch: String,
    /// URL of Kibana, with its port, if the deployment has one.
    pub kibana: Option<String>,
}

/// Why a text is no cloud id.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloudIdError {
    /// The part after the last colon is not base64 of a text.
    #[error("is no cloud id: what follows the label is not base64; copy it whole")]
    Base64,
    /// The decoded text names no host or no Elasticsearch.
    #[error("is no cloud id: it names no host or no Elasticsearch; copy it whole")]
    Part,
    /// A part would lead the URL elsewhere.
    #[error("is no cloud id: it holds a character that no host name has")]
    Character,
    /// A port is no number from 1 to 65535.
    #[error("is no cloud id: a port in it must be a number from 1 to 65535")]
    Port,
}

impl CloudId {
    /// Reads a cloud id. The label may be missing, and may itself contain colons; a port in the
    /// part of a service beats the one of the host, and 443 is used where there is none.
    ///
    /// # Errors
    /// If the text has another form.
    pub fn parse(text: &str) -> Result<Self, CloudIdError> {
        let text = text.trim();
        let encoded = text.rsplit(':').next().unwrap_or(text);
        let decoded = BASE64.decode(encoded).map_err(|_| CloudIdError::Base64)?;
        let decoded = String::from_utf8(decoded).map_err(|_| CloudIdError::Base64)?;
        let mut parts = decoded.trim().split('$');
        let (host, port) = split_port(parts.next().unwrap_or_default())?;
        let port = port.unwrap_or(DEFAULT_PORT);
        let elasticsearch = service(parts.next(), host, port)?;
        Ok(Self {
            elasticsearch: elasticsearch.ok_or(CloudIdError::Part)?,
            kibana: service(parts.next(), host, port)?,
        })
    }
}

/// The URL of a service; `None` if its part is absent, empty or `undefined`, as it is where a
/// deployment lacks the service.
fn service(part: Option<&str>, host: &str, port: u16) -> Result<Option<String>, CloudIdError> {
    let (id, own_port) = split_port(part.unwrap_or_default())?;
    if host.is_empty() {
        return Err(CloudIdError::Part);
    }
    if id.is_empty() || id == "undefined" {
        return Ok(None);
    }
    let port = own_port.unwrap_or(port);
    Ok(Some(format!("https://{id}.{host}:{port}")))
}

fn split_port(part: &str) -> Result<(&str, Option<u16>), CloudIdError> {
    let is_foreign = |c: char| !c.is_alphanumeric() && !matches!(c, '-' | '.' | '_' | ':');
    if part.contains(is_foreign) {
        return Err(CloudIdError::Character);
    }
    let Some((name, port)) = part.split_once(':') else {
        return Ok((part, None));
    };
    match port.parse() {
        Ok(port) if port > 0 => Ok((name, Some(port))),
        _ => Err(CloudIdError::Port),
    }
}

#[cfg(test)]
mod tests {
    use base64::prelude::BASE64_STANDARD;

    use super::*;

    #[test]
    fn every_form_leads_to_its_hosts() {
        for (label, decoded, elasticsearch, kibana) in [
            (
                "audit:",
                "cloud.example$es$kb",
                "https://es.cloud.example:443",
                Some("https://kb.cloud.example:443"),
            ),
            (
                "",
                "cloud.example$es$kb",
                "https://es.cloud.example:443",
                Some("https://kb.cloud.example:443"),
            ),
            (
                "a:b:c:",
                "cloud.example$es$",
                "https://es.cloud.example:443",
                None,
            ),
            (
                "a:",
                "cloud.example$es",
                "https://es.cloud.example:443",
                None,
            ),
            (
                "a:",
                "cloud.example$es$undefined",
                "https://es.cloud.example:443",
                None,
            ),
            (
                "a:",
                "cloud.example:9243$es$kb",
                "https://es.cloud.example:9243",
                Some("https://kb.cloud.example:9243"),
            ),
            (
                "a:",
                "cloud.example:9243$es:9244$kb:9245",
                "https://es.cloud.example:9244",
                Some("https://kb.cloud.example:9245"),
            ),
            (
                "a:",
                "cloud.example$es$kb$more",
                "https://es.cloud.example:443",
                Some("https://kb.cloud.example:443"),
            ),
        ] {
            let encoded = BASE64_STANDARD.encode(decoded);
            let expected = CloudId {
                elasticsearch: elasticsearch.to_owned(),
                kibana: kibana.map(str::to_owned),
            };
            for text in [
                format!("{label}{encoded}"),
                format!("  {label}{encoded}\n"),
                format!("{label}{}", encoded.trim_end_matches('=')),
            ] {
                assert_eq!(
                    CloudId::parse(&text).as_ref(),
                    Ok(&expected),
                    "{text} ({decoded})"
                );
            }
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for (decoded, error) in [
            ("", CloudIdError::Part),
            ("cloud.example", CloudIdError::Part),
            ("cloud.example$", CloudIdError::Part),
            ("cloud.example$undefined$kb", CloudIdError::Part),
            ("$es$kb", CloudIdError::Part),
            ("cloud.example/x$es", CloudIdError::Character),
            ("cloud.example$es@evil", CloudIdError::Character),
            ("cloud.example$es?$kb", CloudIdError::Character),
            ("cloud.example$es$k#b", CloudIdError::Character),
            ("cloud.example:0$es", CloudIdError::Port),
            ("cloud.example:x$es", CloudIdError::Port),
            ("cloud.example$es:65536", CloudIdError::Port),
        ] {
            let text = format!("a:{}", BASE64_STANDARD.encode(decoded));
            assert_eq!(CloudId::parse(&text), Err(error), "{decoded}");
        }
        assert_eq!(CloudId::parse("a:!!"), Err(CloudIdError::Base64));
        assert_eq!(CloudId::parse("a:/w=="), Err(CloudIdError::Base64));
    }
}
