//! Where the two ends are: `host:port` for Teleport, URLs for Elasticsearch.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use reqwest::Url;

/// Host and port of a Proxy Service or Auth Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// A name or an IP address; an IPv6 address without brackets.
    pub host: String,
    /// 1 to 65535.
    pub port: u16,
}

/// Why a text is no [`Address`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// A URL was given.
    #[error("must be host:port, without a scheme")]
    Scheme,
    /// The two services listen on different ports, so guessing would go wrong half the time.
    #[error("needs a port: host:443 for a Proxy Service, host:3025 for an Auth Service")]
    NoPort,
    /// Nobody could tell the address from the port.
    #[error("an IPv6 address must be in brackets: [2001:db8::1]:443")]
    NoBrackets,
    /// The part after the last colon.
    #[error("the port must be a number from 1 to 65535")]
    Port,
    /// The part before it.
    #[error("must be host:port, and the host a name or an IP address")]
    Host,
}

impl Address {
    /// Reads `host:port`, where an IPv6 address is in brackets.
    ///
    /// # Errors
    /// If the text has another form.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        if text.contains("://") {
            return Err(AddressError::Scheme);
        }
        let (host, port) = if let Some(bracketed) = text.strip_prefix('[') {
            let (host, rest) = bracketed.split_once(']').ok_or(AddressError::NoBrackets)?;
            host.parse::<Ipv6Addr>().map_err(|_| AddressError::Host)?;
            (host, rest.strip_prefix(':').ok_or(AddressError::NoPort)?)
        } else {
            if text.parse::<Ipv6Addr>().is_ok() || text.matches(':').count() > 1 {
                return Err(AddressError::NoBrackets);
            }
            let (host, port) = text.split_once(':').ok_or(AddressError::NoPort)?;
            let is_allowed = |c: char| c.is_alphanumeric() || matches!(c, '-' | '.' | '_');
            if host.is_empty() || !host.chars().all(is_allowed) {
                return Err(AddressError::Host);
            }
            (host, port)
        };
        let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
        match port.parse() {
            Ok(port) if port > 0 && is_number => Ok(Self {
                host: host.to_owned(),
                port,
            }),
            _ => Err(AddressError::Port),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// The URL of one Elasticsearch host: `http` or `https`, no user info, query or fragment. It
/// always ends with a slash, so that paths can be appended whether it has a prefix or not.
#[derive(Clone, PartialEq, Eq)]
pub struct HostUrl(Url);

impl fmt::Debug for HostUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostUrl({:?})", self.as_str())
    }
}

/// Why a text is no [`HostUrl`]. No variant holds the text: it may contain a password.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostUrlError {
    /// Such as `localhost:9200`.
    #[error("must begin with http:// or https://")]
    Scheme,
    /// `https://user:password@host`.
    #[error("holds a user or password; move them to user and password (or cloud-auth, or api-key)")]
    UserInfo,
    /// `?…` or `#…`.
    #[error("must end after the path: no ? and no #")]
    Query,
    /// Anything else.
    #[error("is no URL such as https://elasticsearch.example.com:9200")]
    Other,
}

impl HostUrl {
    /// Reads a URL.
    ///
    /// # Errors
    /// If it has a part that it must not have, or lacks one.
    pub fn parse(text: &str) -> Result<Self, HostUrlError> {
        if text.contains('@') {
            return Err(HostUrlError::UserInfo);
        }
        let lower = text.to_ascii_lowercase();
        if !lower.starts_with("http://") && !lower.starts_with("https://") {
            return Err(HostUrlError::Scheme);
        }
        let mut url = Url::parse(text).map_err(|_| HostUrlError::Other)?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err(HostUrlError::Query);
        }
        if url.port() == Some(0) || url.host_str().is_none_or(str::is_empty) {
            return Err(HostUrlError::Other);
        }
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        Ok(Self(url))
    }

    /// The URL, with a slash at its end.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Whether what is sent there is encrypted.
    pub fn is_https(&self) -> bool {
        self.0.scheme() == "https"
    }

    /// Whether it leads to this machine.
    pub fn is_loopback(&self) -> bool {
        let host = self.0.host_str().unwrap_or_default();
        let address = host.trim_start_matches('[').trim_end_matches(']');
        match address.parse::<IpAddr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => host == "localhost" || host.ends_with(".localhost"),
        }
    }
}

impl fmt::Display for HostUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, host, port) in [
            ("teleport.example.com:443", "teleport.example.com", 443),
            ("127.0.0.1:3025", "127.0.0.1", 3025),
            ("[::1]:3025", "::1", 3025),
        ] {
            let address = Address::parse(text).unwrap();
            assert_eq!((address.host.as_str(), address.port), (host, port));
            assert_eq!(address.to_string(), text);
        }
        for (text, error) in [
            ("https://teleport.example.com:443", AddressError::Scheme),
            ("teleport.example.com", AddressError::NoPort),
            ("[::1]", AddressError::NoPort),
            ("::1", AddressError::NoBrackets),
            ("2001:db8::1:443", AddressError::NoBrackets),
            ("a:0", AddressError::Port),
            ("a:+1", AddressError::Port),
            ("a:65536", AddressError::Port),
            (":443", AddressError::Host),
            ("a b:443", AddressError::Host),
            ("[a]:443", AddressError::Host),
            ("a/b:443", AddressError::Host),
        ] {
            assert_eq!(Address::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn host_urls() {
        for (text, url, is_https, is_loopback) in [
            (
                "http://localhost:9200",
                "http://localhost:9200/",
                false,
                true,
            ),
            (
                "https://es.example.com",
                "https://es.example.com/",
                true,
                false,
            ),
            (
                "HTTPS://proxy.example.com/es",
                "https://proxy.example.com/es/",
                true,
                false,
            ),
            ("http://[::1]:9200/", "http://[::1]:9200/", false, true),
            (
                "http://127.8.0.1:9200",
                "http://127.8.0.1:9200/",
                false,
                true,
            ),
            (
                "http://localhost.example.com",
                "http://localhost.example.com/",
                false,
                false,
            ),
        ] {
            let host = HostUrl::parse(text).unwrap();
            assert_eq!(
                (host.as_str(), host.is_https(), host.is_loopback()),
                (url, is_https, is_loopback)
            );
        }
        for (text, error) in [
            ("localhost:9200", HostUrlError::Scheme),
            ("ftp://localhost", HostUrlError::Scheme),
            (
                "https://elastic:hunter2@es.example.com",
                HostUrlError::UserInfo,
            ),
            ("https://es.example.com/?pretty", HostUrlError::Query),
            ("https://es.example.com:99999", HostUrlError::Other),
            ("https://es.example.com:0", HostUrlError::Other),
            ("https://", HostUrlError::Other),
        ] {
            assert_eq!(HostUrl::parse(text), Err(error), "{text}");
        }
    }
}
