//! Answers in Elasticsearch's shapes.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde_json::{Value, json};

/// An answer on its way out: `None` as body is a truly empty one.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) body: Option<Body>,
    pub(super) content_type: &'static str,
    pub(super) close: bool,
    pub(super) retry_after: Option<u32>,
}

impl Reply {
    pub(super) fn json(status: u16, value: &Value) -> Self {
        Self::text(status, value.to_string(), "application/json")
    }

    pub(super) fn text(status: u16, text: impl Into<Body>, content_type: &'static str) -> Self {
        Self {
            status,
            body: Some(text.into()),
            content_type,
            close: false,
            retry_after: None,
        }
    }

    /// An error with type and reason, given twice as Elasticsearch does.
    pub(super) fn error(status: u16, kind: &str, reason: &str) -> Self {
        let cause = json!({"type": kind, "reason": reason});
        let error = json!({
            "error": {"root_cause": [cause], "type": kind, "reason": reason},
            "status": status,
        });
        Self::json(status, &error)
    }

    /// An error that is a mere text, for what is refused before any handler sees it.
    pub(super) fn bare_error(status: u16, reason: &str) -> Self {
        Self::json(status, &json!({"error": reason, "status": status}))
    }

    /// 413: an empty body, and the connection is closed.
    pub(super) fn too_large() -> Self {
        Self {
            status: 413,
            body: None,
            content_type: "application/json",
            close: true,
            retry_after: None,
        }
    }

    pub(super) fn into_response(self, product_header: bool) -> Response {
        let has_body = self.body.is_some();
        let mut response = Response::new(self.body.unwrap_or_default());
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        if product_header {
            headers.insert(
                "x-elastic-product",
                HeaderValue::from_static("Elasticsearch"),
            );
        }
        if has_body {
            let value = HeaderValue::from_static(self.content_type);
            headers.insert(header::CONTENT_TYPE, value);
        }
        if self.close {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// `GET /`
pub(super) fn root(version: &str, serverless: bool) -> Value {
    let flavor = if serverless { "serverless" } else { "default" };
    json!({
        "name": "stand-in",
        "cluster_name": "stand-in",
        "cluster_uuid": "c3RhbmQtaW4tZWxhc3Rp",
        "version": {
            "number": version,
            "build_flavor": flavor,
            "build_type": "tar",
            "build_hash": "0000000000000000000000000000000000000000",
            "build_date": "2026-01-01T00:00:00.000000000Z",
            "build_snapshot": false,
            "lucene_version": "10.3.0",
            "minimum_wire_compatibility_version": "8.19.0",
            "minimum_index_compatibility_version": "8.0.0",
        },
        "tagline": "You Know, for Search",
    })
}

/// `GET /_cluster/health`
pub(super) fn health(n_indices: usize) -> Value {
    json!({
        "cluster_name": "stand-in", "status": "green", "timed_out": false,
        "number_of_nodes": 1, "number_of_data_nodes": 1,
        "active_primary_shards": n_indices, "active_shards": n_indices,
        "relocating_shards": 0, "initializing_shards": 0, "unassigned_shards": 0,
        "active_shards_percent_as_number": 100.0,
    })
}

/// What a request that touched all shards says of them.
pub(super) fn shards(count: usize) -> Value {
    json!({"total": count, "successful": count, "skipped": 0, "failed": 0})
}

pub(super) fn index_not_found(name: &str) -> Reply {
    let reason = format!("no such index [{name}]");
    Reply::error(404, "index_not_found_exception", &reason)
}

pub(super) fn unauthorized(reason: &str) -> Reply {
    Reply::error(401, "security_exception", reason)
}
