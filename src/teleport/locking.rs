//! Locks users after failed logins.
//!
//! A failure counts by its own time, and only while that is fresh: so a backfill, a rewind or days
//! that were caught up with lock nobody. Each counts once, however often it is read; failures and
//! the locks that come of them are rows of the state file before the page with them is handed over,
//! so a restart neither forgets nor repeats any. The lock is put on the user alone: one that named
//! the login, too, would lock everybody who uses it.

use std::time::Duration;

use chrono::Utc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::checkpoint::{DueLock, FailedLogin, LockRule};
use crate::clock::now_ms;
use crate::config::{LOGIN_EVENT, LockConfig};
use crate::document::member;
use crate::event::AuditEvent;
use crate::output::Chain;
use crate::pipeline::retry::Backoff;
use crate::teleport::audit_log::{Context, SourceError};
use crate::teleport::client::{CallError, Lock, Remedy};

/// A failure that is older when it is read, or as far in the future, locks nobody: servers hand
/// events out within a minute or two.
const FRESH_MS: i64 = 5 * 60 * 1000;

/// A lock that cannot be made for so long is not made any more: nobody expects it then.
const LATEST_MS: i64 = 3600 * 1000;

/// What users are told who are locked, in the event handler's own words.
const MESSAGE: &str = "User is locked due to too many failed login attempts";

/// Failed logins that count, and the rule by which they do.
pub(super) fn failed_logins(
    events: &[AuditEvent],
    config: &LockConfig,
    now_ms: i64,
) -> (Vec<FailedLogin>, LockRule) {
    let logins = events
        .iter()
        .filter(|event| event.event_type == LOGIN_EVENT);
    let failed = logins.filter_map(|event| {
        let time_ms = event.time?.millis();
        let is_fresh = now_ms.abs_diff(time_ms) <= FRESH_MS.unsigned_abs();
        // A body that cannot be read is told of elsewhere; it accuses nobody.
        let is_failed = || {
            matches!(
                member::truth(&event.body, "success"),
                Ok(None | Some(false))
            )
        };
        let text = |key| {
            let text = member::text(&event.body, key).ok().flatten();
            String::from_utf8_lossy(text.unwrap_or_default()).into_owned()
        };
        let user = text("user");
        (is_fresh && !user.is_empty() && is_failed()).then(|| FailedLogin {
            user,
            login: text("login"),
            event: event.id.to_vec(),
            time_ms,
        })
    });
    let period_ms = i64::try_from(config.period.as_millis()).unwrap_or(i64::MAX);
    let rule = LockRule {
        attempts: config.failed_attempts_count,
        period_ms,
        known_from_ms: now_ms.saturating_sub(period_ms).saturating_sub(FRESH_MS),
    };
    (failed.collect(), rule)
}

/// Makes the locks that are due, until the log has come to its end, or we are told to stop.
pub(super) async fn make(
    context: &Context,
    config: &LockConfig,
    log_ended: &CancellationToken,
) -> Result<(), SourceError> {
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
    let mut next_try = Instant::now();
    loop {
        let is_last = log_ended.is_cancelled();
        let mut waits = false;
        if is_last || next_try <= Instant::now() {
            let due = context
                .blocking(|checkpoint, _| checkpoint.due_locks())
                .await?;
            for lock in due {
                match attempt(context, config, lock).await? {
                    None => backoff.succeeded(),
                    Some(failed) => {
                        waits = true;
                        // What is not allowed is not for the others either.
                        if failed.remedy() == Remedy::Hold {
                            break;
                        }
                    }
                }
            }
            if waits {
                next_try = Instant::now() + backoff.failed().wait;
            }
        } else {
            waits = true;
        }
        if is_last {
            // What could not be made waits for the next start.
            return Ok(());
        }
        // Looking is all there is to lose: what is due is in the state file.
        tokio::select! {
            biased;
            () = context.stop.cancelled() => return Ok(()),
            () = log_ended.cancelled() => {}
            () = context.failed_logins.notified() => {}
            () = sleep_until(next_try), if waits => {}
        }
    }
}

/// Tries to make one lock. Why it is to be tried again, if it is.
async fn attempt(
    context: &Context,
    config: &LockConfig,
    due: DueLock,
) -> Result<Option<CallError>, SourceError> {
    let DueLock {
        user,
        login,
        failed_ms,
        failures,
    } = &due;
    if now_ms().saturating_sub(*failed_ms) > LATEST_MS {
        warn!(
            ?user,
            failures, "not locked: it could not be done for an hour"
        );
    } else {
        let lock = Lock {
            name: format!("event-handler-auto-lock-{user}-{login}"),
            user: user.clone(),
            message: MESSAGE.to_owned(),
            expires_ms: config
                .lock_for
                .map(|length| (Utc::now() + length).timestamp_millis()),
        };
        let name = &lock.name;
        match context.client.upsert_lock(&lock).await {
            Ok(()) => warn!(?user, failures, lock = ?name, "locked a user after failed logins"),
            Err(refused) if refused.remedy() == Remedy::Invalid => {
                error!(
                    ?user,
                    failures,
                    "cannot lock this user: {}",
                    Chain(&refused)
                );
            }
            Err(failed) => {
                error!(
                    ?user,
                    failures,
                    mend = failed.mend(),
                    "cannot lock a user, trying again: {}",
                    Chain(&failed)
                );
                return Ok(Some(failed));
            }
        }
    }
    context
        .blocking(move |checkpoint, _| checkpoint.settle_lock(&due))
        .await?;
    Ok(None)
}
