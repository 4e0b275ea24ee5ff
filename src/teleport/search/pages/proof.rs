//! When a span of a search is at its end. The server says so by an empty key, but also where an
//! event comes next that is too large for it, and some fail there. So it is believed only if
//!
//! - seen from the span's end, with the newest first, the last event is the one that was read last;
//! - or, where none was read, the first event from the span's start on lies behind the span;
//! - or, where there is none behind it either, that is the log's end, seen from where the last event
//!   is one from before the span.
//!
//! That is one small request for each span that is read in full, three at the log's end. A poll, of
//! a span that is a few seconds long, is proven only if it brought something new, so a quiet log
//! costs no request more; what such a poll does not see, the next look back does, as it begins at an
//! event that is known.

use super::super::DAY_MS;
use super::super::hidden::{Ahead, Halt, Looker};
use super::super::newest::Newest;
use super::Pages;
use crate::event::AuditEvent;
use crate::teleport::audit_log::{Context, Tail, now_ms};

/// How far before a span an event is looked for that can be read, to see from the log's end
/// whether it is the last one.
const LONGEST_LOOK_BEFORE_MS: i64 = 7 * DAY_MS;

/// What the end of a page led to.
pub(super) enum Proven {
    End,
    Ahead(Ahead),
}

impl Pages {
    /// Whether the end that the server tells of is one.
    pub(super) async fn prove(&self, context: &Context) -> Result<Proven, Halt> {
        if self.is_poll && !self.has_new {
            return Ok(Proven::End);
        }
        let looker = self.looker(context);
        if !self.newest.is_empty() {
            return self.proven_up_to(&looker, self.to_ms).await;
        }
        self.prove_empty(context, &looker).await
    }

    /// The same where nothing was read since the span's start or a gap: what lies around it tells.
    async fn prove_empty(&self, context: &Context, looker: &Looker<'_>) -> Result<Proven, Halt> {
        let (from_ms, to_ms) = (self.reached_ms, self.to_ms);
        let sight_ms = self.sight_ms(context);
        let next = looker.next(sight_ms).await?;
        if !next.is_empty() {
            let is_inside =
                |event: &AuditEvent| event.time.is_some_and(|time| time.millis() <= to_ms);
            return Ok(match next.iter().any(is_inside) {
                true => Proven::Ahead(Ahead::Visible(next)),
                false => Proven::End,
            });
        }
        // None is seen from here on, up to the log's end.
        let tail = context.tail();
        if tail.is_some_and(|tail| tail.from_ms <= from_ms && to_ms <= tail.to_ms) {
            return Ok(Proven::End);
        }
        let back_ms = match context.reading.types.is_empty() {
            true => LONGEST_LOOK_BEFORE_MS,
            false => self.span.1 - self.span.0,
        };
        let before = looker.last_visible(from_ms - back_ms, from_ms - 1).await?;
        let newest = match &before {
            Some(event) => looker.newest_from(event, from_ms - 1).await?,
            None => Newest::default(),
        };
        let from_before = Looker {
            newest: &newest,
            ..*looker
        };
        if before.is_some() && from_before.is_end(sight_ms).await? {
            context.set_tail(Tail {
                from_ms,
                to_ms: sight_ms,
            });
            return Ok(Proven::End);
        }
        // Seen from the end, the last that is known is not the last: something hides it.
        let seen = looker.last_visible(from_ms, sight_ms).await?;
        if let Some(time) = seen.and_then(|event| event.time) {
            return self.proven_up_to(looker, time.millis()).await;
        }
        if before.is_none() {
            return Ok(Proven::End);
        }
        Ok(match from_before.ahead(sight_ms).await? {
            // It was stepped over before, or another span will.
            Ahead::Hidden(hidden) if hidden.to_ms <= from_ms => Proven::End,
            ahead => Proven::Ahead(ahead),
        })
    }

    async fn proven_up_to(&self, looker: &Looker<'_>, end_ms: i64) -> Result<Proven, Halt> {
        if looker.is_end(end_ms).await? {
            return Ok(Proven::End);
        }
        Ok(Proven::Ahead(looker.ahead(end_ms).await?))
    }

    /// How far behind the span the next event is looked for. With a filter, that may cost the
    /// server as much as reading, so it is no further than the span itself.
    fn sight_ms(&self, context: &Context) -> i64 {
        let (from_ms, to_ms) = self.span;
        match (self.is_poll, context.reading.types.is_empty()) {
            (true, _) => to_ms,
            (false, true) => to_ms.max(now_ms()),
            (false, false) => to_ms
                .saturating_add(to_ms - from_ms)
                .min(to_ms.max(now_ms())),
        }
    }
}
