//! What time it is, as all of the program counts it.

use chrono::Utc;

/// Now, in milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    Utc::now().timestamp_millis()
}
