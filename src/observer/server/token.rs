//! Whether a request shows the token.

use axum::http::{HeaderMap, header};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::digest::{SHA256, digest};

use crate::secret::Secret;

/// As a bearer's, or as the password of any user.
pub(super) fn is_shown(token: &Secret, headers: &HeaderMap) -> bool {
    let shown = headers.get(header::AUTHORIZATION);
    let Some((scheme, rest)) = shown
        .and_then(|shown| shown.to_str().ok())
        .and_then(|shown| shown.split_once(' '))
    else {
        return false;
    };
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return is_equal(token, rest.as_bytes());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return false;
    }
    let Ok(decoded) = BASE64_STANDARD.decode(rest) else {
        return false;
    };
    let colon = decoded.iter().position(|byte| *byte == b':');
    colon.is_some_and(|colon| is_equal(token, &decoded[colon + 1..]))
}

/// In the same time wherever they differ: of digests, so that not even the length shows.
fn is_equal(token: &Secret, shown: &[u8]) -> bool {
    let (token, shown) = (
        digest(&SHA256, token.expose().as_bytes()),
        digest(&SHA256, shown),
    );
    let pairs = token.as_ref().iter().zip(shown.as_ref());
    std::hint::black_box(pairs.fold(0, |differs, (a, b)| differs | (a ^ b))) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_a_bearers_or_anybodys_password() {
        let token = Secret::new("s3:cret");
        let basic = |pair: &str| format!("Basic {}", BASE64_STANDARD.encode(pair));
        for (shown, admits) in [
            ("Bearer s3:cret".to_owned(), true),
            ("bearer  s3:cret".to_owned(), true),
            (basic("anybody:s3:cret"), true),
            (basic(":s3:cret"), true),
            ("Bearer s3:cre".to_owned(), false),
            ("Bearer s3:crett".to_owned(), false),
            ("Bearer ".to_owned(), false),
            ("s3:cret".to_owned(), false),
            ("Digest s3:cret".to_owned(), false),
            (basic("s3:cret"), false),
            (basic("anybody"), false),
            ("Basic s3:cret".to_owned(), false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, shown.parse().unwrap());
            assert_eq!(is_shown(&token, &headers), admits, "{shown}");
        }
        assert!(!is_shown(&token, &HeaderMap::new()));
    }
}
