//! Asks Teleport whether it has newer events where nothing moves, since only then something is
//! stalled. A log that moves is not asked about.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::sleep;

use super::all::TICK;
use super::health::Motion;
use super::now_ms;
use crate::telemetry::{Reason, Standing, Stats};

/// The longest pause between two questions.
const EVERY: Duration = Duration::from_secs(60);

/// Asks until it is dropped, each minute in which nothing has moved for `still_after` though both
/// ends answer. `newest_since` tells when the newest event of a time, in ms since 1970, or later
/// was, if there is one; or why it cannot tell.
pub async fn ask_when_still(
    stats: &Stats,
    still_after: Duration,
    newest_since: impl AsyncFn(i64) -> Result<Option<i64>, (Reason, String)>,
) {
    let mut motion = Motion::new(still_after, now_ms());
    let mut has_failed = false;
    loop {
        sleep(TICK).await;
        let now_ms = now_ms();
        motion.look(stats, now_ms);
        let answers = [&stats.teleport, &stats.elasticsearch]
            .iter()
            .all(|end| end.standing() == Standing::Answers);
        // A failure of our own is ours to take back: a reader that hangs never does.
        if motion.still_since(now_ms).is_none() || !(answers || has_failed) {
            continue;
        }
        match newest_since(stats.unknown_from()).await {
            Ok(newest_ms) => {
                let newest_ms = newest_ms.unwrap_or_default();
                let known = &stats.newest_at_teleport_ms;
                known.store(newest_ms, Ordering::Relaxed);
                if has_failed {
                    stats.teleport.answered();
                }
                has_failed = false;
            }
            Err((reason, said)) => {
                stats.teleport.failed(reason, &said);
                has_failed = true;
            }
        }
        sleep(EVERY.min(still_after)).await;
    }
}
