//! Splits the addresses of events.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The longest text of an IP address.
const IP_BYTES_MAX: usize = 45;

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Endpoint<'a> {
    /// The whole text.
    pub(super) address: &'a [u8],
    /// The IP address in it, if it is one.
    pub(super) ip: Option<&'a [u8]>,
    /// The port, if there is an IP address.
    pub(super) port: Option<u16>,
}

impl<'a> Endpoint<'a> {
    /// Takes `1.2.3.4:567`, `[::1]:22`, and the same without a port apart; `::1` too. All else, such
    /// as a host's name, stays whole.
    pub(super) fn of(address: &'a [u8]) -> Self {
        let split = split(address);
        Self {
            address,
            ip: split.map(|(ip, _)| ip),
            port: split.and_then(|(_, port)| port),
        }
    }
}

fn split(address: &[u8]) -> Option<(&[u8], Option<u16>)> {
    if let Some(rest) = address.strip_prefix(b"[") {
        let end = memchr::memchr(b']', rest)?;
        let (ip, rest) = (&rest[..end], &rest[end + 1..]);
        return is_ipv6(ip).then_some((ip, port(rest)?));
    }
    let colon = memchr::memchr(b':', address).unwrap_or(address.len());
    let (ip, rest) = address.split_at(colon);
    if is_ipv4(ip) {
        return Some((ip, port(rest)?));
    }
    is_ipv6(address).then_some((address, None))
}

/// What follows an IP address: nothing, or a colon and a port. `None`: something else.
fn port(rest: &[u8]) -> Option<Option<u16>> {
    let Some(digits) = rest.strip_prefix(b":") else {
        return rest.is_empty().then_some(None);
    };
    let is_plain = digits.iter().all(u8::is_ascii_digit);
    let number = is_plain.then(|| std::str::from_utf8(digits).ok()?.parse().ok());
    number?.map(Some)
}

fn is_ipv4(text: &[u8]) -> bool {
    text.len() <= IP_BYTES_MAX
        && std::str::from_utf8(text).is_ok_and(|t| t.parse::<Ipv4Addr>().is_ok())
}

/// Without a zone: what comes from another machine has none that means anything here.
fn is_ipv6(text: &[u8]) -> bool {
    text.len() <= IP_BYTES_MAX
        && std::str::from_utf8(text).is_ok_and(|t| t.parse::<Ipv6Addr>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ip_and_port_are_split_and_all_else_is_left_whole() {
        for (address, ip, port) in [
            ("1.2.3.4:567", Some("1.2.3.4"), Some(567)),
            ("1.2.3.4", Some("1.2.3.4"), None),
            ("[::1]:22", Some("::1"), Some(22)),
            ("[2001:db8::7]", Some("2001:db8::7"), None),
            ("::ffff:10.0.0.1", Some("::ffff:10.0.0.1"), None),
            ("::1", Some("::1"), None),
            ("1.2.3.4:0", Some("1.2.3.4"), Some(0)),
            ("1.2.3.4:65536", None, None),
            ("1.2.3.4:", None, None),
            ("1.2.3.4:+5", None, None),
            ("1.2.3.4:22:33", None, None),
            ("01.2.3.4:22", None, None),
            ("1.2.3:22", None, None),
            ("[1.2.3.4]:22", None, None),
            ("[::1", None, None),
            ("[::1]22", None, None),
            ("fe80::1%eth0", None, None),
            ("example.com:443", None, None),
            ("pipe", None, None),
            ("é:1", None, None),
            (":22", None, None),
        ] {
            let endpoint = Endpoint::of(address.as_bytes());
            assert_eq!(endpoint.ip, ip.map(str::as_bytes), "{address}");
            assert_eq!(endpoint.port, port, "{address}");
            assert_eq!(endpoint.address, address.as_bytes());
        }
    }
}
