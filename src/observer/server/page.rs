//! The status page: one file, compiled in, that loads nothing but `status.json`.

use std::sync::LazyLock;

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::digest::{SHA256, digest};

const PAGE: &str = include_str!("../page.html");

/// Only the script and the style that are in the page, and only news from us: whatever an event
/// might bring into it could neither run nor send anything away.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = |element| BASE64_STANDARD.encode(digest(&SHA256, within(element).as_bytes()));
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; \
         img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'; trusted-types 'none'",
        hash("script"),
        hash("style")
    );
    policy.try_into().expect("base64 is legal in a header")
});

/// What stands in the page's one element of this name.
fn within(element: &str) -> &'static str {
    let (_, rest) = PAGE
        .split_once(&format!("<{element}>"))
        .expect("the page has one");
    let (text, _) = rest
        .split_once(&format!("</{element}>"))
        .expect("the page closes it");
    text
}

pub(super) async fn page() -> Response {
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/html; charset=utf-8"),
        ),
        (header::CONTENT_SECURITY_POLICY, POLICY.clone()),
    ];
    (headers, PAGE).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_loads_nothing_from_elsewhere_and_takes_text_for_markup_nowhere() {
        assert_eq!(PAGE.matches("<script").count(), 1);
        assert_eq!(PAGE.matches("<style").count(), 1);
        for refused in [
            "src=",
            "href=",
            "@import",
            "url(",
            "innerHTML",
            "outerHTML",
            "insertAdjacent",
            "document.write",
            "eval(",
            "Function(",
            "style=",
            "onclick",
            "DOMParser",
        ] {
            assert!(!PAGE.contains(refused), "{refused}");
        }
        let addresses: Vec<&str> = PAGE.matches("://").collect();
        // The name of SVG, which nobody fetches.
        assert_eq!(
            (
                addresses.len(),
                PAGE.matches("http://www.w3.org/2000/svg").count()
            ),
            (1, 1)
        );
        let policy = POLICY.to_str().unwrap();
        assert!(!policy.contains("unsafe"), "{policy}");
    }
}
