//! Days that are too old for the lifecycle policy: their index would be deleted as soon as it is
//! written, or is closed to writing. What to do about them is the user's choice; what was done is
//! never silent.

use std::fmt;
use std::ops::Range;

use chrono::{DateTime, Utc};
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::commands::Failure;
use crate::commands::install::{self, send};
use crate::commands::transfer::{Patience, reach};
use crate::config::{ElasticsearchConfig, OldDays};
use crate::elastic::assets::{self, Age, Ages, InstallError, Retention};
use crate::elastic::client::Client;
use crate::event::DAY_MS;
use crate::output::Chain;

/// Asks Elasticsearch which days of `span`, milliseconds since 1970, may be written, and decides by
/// the configuration about those that may not.
///
/// Of what it gives, events before that time are not to be written; what of `span` lies before it
/// was said to be left out, and the caller writes that down, see
/// [`Checkpoint::leave_out`](crate::checkpoint::Checkpoint::leave_out). Outside of `span` it is the
/// bound for what is read once more. `None`: everything may be written.
///
/// # Errors
/// If there are such days and the configuration refuses them, or Elasticsearch cannot be asked.
pub(super) async fn first_to_write(
    client: &Client,
    config: &ElasticsearchConfig,
    span: Range<i64>,
    patience: Patience<'_>,
    stop: &CancellationToken,
) -> Result<Option<i64>, Failure> {
    let settings = install::settings(config);
    let ask = async || {
        let asked = assets::retention(async |request| send(client, request).await, &settings);
        match asked.await {
            // What can be written shows when it is.
            Err(failed) if !failed.is_transient() => {
                Ok(Retention::NotKnown(Chain(&failed).to_string()))
            }
            asked => asked,
        }
    };
    let retention = reach(patience, stop, ask, InstallError::is_transient).await?;
    let ages = match retention {
        Some(Retention::ByDay(ages)) => ages,
        // Told to stop.
        None => return Ok(None),
        Some(other) => {
            say_why_unbound(&other);
            return Ok(None);
        }
    };
    let old = Old::of(&ages, span, Utc::now().timestamp_millis());
    match config.old_days {
        OldDays::Refuse if old.is_empty() => {}
        OldDays::Refuse => return Err(TooOld(old.to_string()).into()),
        OldDays::Write => {
            if !old.is_empty() {
                warn!("writing all the same, as old-days says: {old}");
            }
            return Ok(None);
        }
        OldDays::Skip => {
            if !old.is_empty() {
                warn!("left out, as old-days says: {old}");
            }
            return Ok(old.first_open_ms);
        }
    }
    // Late events of closed days are still worth waiting for; those of deleted days are not.
    Ok(old.first_kept_ms)
}

/// Which days of a span are too old now, and why; `None` if none is.
pub(super) fn told(ages: &Ages, span: Range<i64>) -> Option<String> {
    let old = Old::of(ages, span, Utc::now().timestamp_millis());
    (!old.is_empty()).then(|| old.to_string())
}

fn say_why_unbound(retention: &Retention) {
    match retention {
        Retention::ByDay(_) | Retention::Unbound => {}
        Retention::NoLifecycle => {
            info!("this Elasticsearch has no lifecycle policies: no index is deleted by age")
        }
        Retention::Missing(policy) => warn!(
            "the lifecycle policy {policy}, which the index template names, is not in \
             Elasticsearch: no index is deleted by age until `teleport-event-indexer install` \
             has put it there"
        ),
        Retention::NotKnown(reason) => {
            warn!("it is not known whether days are too old for the lifecycle policy: {reason}")
        }
    }
}

/// Why nothing was written.
#[derive(Debug, Error)]
#[error("some days are too old: {0}")]
pub(super) struct TooOld(String);

impl TooOld {
    /// What somebody can do about it.
    pub(super) fn mend() -> &'static str {
        "install a policy that keeps them, or set old-days to \"skip\" to leave them out, or to \
         \"write\" to write them all the same"
    }
}

/// Days of a span that are too old.
#[derive(Debug, PartialEq, Eq)]
struct Old<'a> {
    deleted: Option<(Range<i64>, &'a Age)>,
    closed: Option<(Range<i64>, &'a Age)>,
    policy: &'a str,
    /// The first day that is not deleted.
    first_kept_ms: Option<i64>,
    /// The first day that is neither deleted nor closed.
    first_open_ms: Option<i64>,
}

impl<'a> Old<'a> {
    fn of(ages: &'a Ages, span: Range<i64>, now_ms: i64) -> Self {
        let first = |age: &Option<Age>| age.as_ref().map(|age| age.first_younger_ms(now_ms));
        let first_kept_ms = first(&ages.deletes);
        let first_open_ms = first(&ages.closes).max(first_kept_ms);
        let mut from_ms = span.start;
        let mut part = |age: &'a Option<Age>, end_ms: Option<i64>| {
            let start_ms = from_ms;
            let end_ms = end_ms.unwrap_or(start_ms).min(span.end);
            from_ms = from_ms.max(end_ms);
            (start_ms < end_ms).then_some((start_ms..end_ms, age.as_ref()?))
        };
        Self {
            deleted: part(&ages.deletes, first_kept_ms),
            closed: part(&ages.closes, first_open_ms),
            policy: &ages.policy,
            first_kept_ms,
            first_open_ms,
        }
    }

    fn is_empty(&self) -> bool {
        self.deleted.is_none() && self.closed.is_none()
    }
}

impl fmt::Display for Old<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            (&self.deleted, "deletes"),
            (&self.closed, "closes to writing"),
        ];
        let mut separator = "";
        for (part, does) in parts {
            if let Some((span, Age { action, text, .. })) = part {
                let (days, policy) = (days(span), self.policy);
                write!(
                    f,
                    "{separator}{days}, which the lifecycle policy {policy} {does} ({action} after \
                     {text})"
                )?;
                separator = "; ";
            }
        }
        Ok(())
    }
}

/// The days of a span: `2025-01-01 to 2025-01-31 (31 days)`.
pub(super) fn days(span: &Range<i64>) -> String {
    let day = |ms: i64| DateTime::from_timestamp_millis(ms).unwrap_or_default();
    let (first, last) = (day(span.start), day(span.end - 1));
    match span.end.div_euclid(DAY_MS) - span.start.div_euclid(DAY_MS)
        + i64::from(span.end.rem_euclid(DAY_MS) > 0)
    {
        1 => format!("{} (1 day)", first.format("%F")),
        count => format!(
            "{} to {} ({count} days)",
            first.format("%F"),
            last.format("%F")
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn ms(day: &str) -> i64 {
        let day: chrono::NaiveDate = day.parse().unwrap();
        i64::from(day.to_epoch_days()) * DAY_MS
    }

    fn ages(deletes: Option<u64>, closes: Option<u64>) -> Ages {
        let age = |days: u64, action: &str| Age {
            text: format!("{days}d"),
            length: Duration::from_hours(24 * days),
            action: action.to_owned(),
        };
        Ages {
            policy: "keep".to_owned(),
            deletes: deletes.map(|days| age(days, "phase delete")),
            closes: closes.map(|days| age(days, "phase warm, readonly")),
        }
    }

    #[test]
    fn what_is_too_old_is_told_by_day_and_reason() {
        let now_ms = ms("2026-11-25") + 5;
        let told =
            |ages: &Ages, from: &str, to: &str| Old::of(ages, ms(from)..ms(to), now_ms).to_string();
        let both = ages(Some(10), Some(3));
        insta::assert_snapshot!(told(&both, "2026-11-01", "2026-11-25"), @"2026-11-01 to 2026-11-15 (15 days), which the lifecycle policy keep deletes (phase delete after 10d); 2026-11-16 to 2026-11-22 (7 days), which the lifecycle policy keep closes to writing (phase warm, readonly after 3d)");
        insta::assert_snapshot!(told(&both, "2026-11-15", "2026-11-16"), @"2026-11-15 (1 day), which the lifecycle policy keep deletes (phase delete after 10d)");
        insta::assert_snapshot!(told(&both, "2026-11-20", "2026-11-21"), @"2026-11-20 (1 day), which the lifecycle policy keep closes to writing (phase warm, readonly after 3d)");
        assert_eq!(told(&both, "2026-11-23", "2026-11-25"), "");
        assert_eq!(told(&ages(None, None), "2020-01-01", "2026-11-25"), "");
    }

    #[test]
    fn the_first_day_to_write_lies_behind_all_that_is_too_old() {
        let now_ms = ms("2026-11-25");
        let first = |deletes, closes| {
            let ages = ages(deletes, closes);
            let old = Old::of(&ages, 0..now_ms, now_ms);
            (old.first_kept_ms, old.first_open_ms)
        };
        let (kept, open) = (ms("2026-11-16"), ms("2026-11-23"));
        assert_eq!(first(Some(10), Some(3)), (Some(kept), Some(open)));
        assert_eq!(first(Some(10), None), (Some(kept), Some(kept)));
        assert_eq!(first(None, Some(3)), (None, Some(open)));
        assert_eq!(first(None, None), (None, None));
    }
}
