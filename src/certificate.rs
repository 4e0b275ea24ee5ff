//! What is read of X.509 certificates, whoever has shown them.

use chrono::{DateTime, Utc};
use x509_cert::Certificate;
use x509_cert::time::Time;

use crate::telemetry::Life;

/// From when until when it holds.
pub(crate) fn life(certificate: &Certificate) -> Life {
    let time = |time: Time| {
        let seconds = i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX);
        DateTime::from_timestamp(seconds, 0).unwrap_or(DateTime::<Utc>::MAX_UTC)
    };
    let validity = certificate.tbs_certificate().validity();
    Life {
        start: time(validity.not_before),
        end: time(validity.not_after),
    }
}
