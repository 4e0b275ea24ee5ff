//! When a span of a search is at its end. The server says so by an empty key, but also where an
//! event comes next that is too large for it, and some fail there. So it is believed only if
//!
//! - seen from the span's end, with the newest first, the last event is the one that was read last;
//! - or, where none was read, the first event from the span's start on lies behind the span;
//! - or, where there is none behind it either, that is the log's end, seen from where the last event
//!   is one from before the span.
//!
//! That is one small request for each span, three at the log's end.

use super::super::DAY_MS;
use super::super::hidden::{Ahead, Halt, Looker};
use super::super::newest::Newest;
use super::Pages;
use crate::clock::now_ms;
use crate::event::AuditEvent;
use crate::teleport::audit_log::{Context, Tail};

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
    pub(super) async fn prove(&mut self, context: &Context) -> Result<Proven, Halt> {
        if self.newest.is_empty() {
            return self.prove_empty(context).await;
        }
        let looker = self.looker(context);
        Ok(match looker.is_end(self.to_ms).await? {
            true => Proven::End,
            false => Proven::Ahead(looker.ahead(self.to_ms).await?),
        })
    }

    /// The same where nothing was read since the span's start or a gap: what lies around it tells.
    async fn prove_empty(&mut self, context: &Context) -> Result<Proven, Halt> {
        let looker = self.looker(context);
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
        let is_before = |event: &AuditEvent| event.time.is_some_and(|time| time.millis() < from_ms);
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
        let mut newest = Newest::default();
        newest.note(before.as_slice());
        while !newest.is_empty() {
            let from_before = Looker {
                newest: &newest,
                ..looker
            };
            if from_before.is_end(sight_ms).await? {
                context.set_tail(Tail {
                    from_ms,
                    to_ms: sight_ms,
                });
                // The next poll begins there.
                self.newest = newest;
                return Ok(Proven::End);
            }
            // Seen from the end, the last that is known is not the last: something hides it.
            if let Some(ahead) = seen_ahead(&looker, sight_ms).await? {
                return Ok(Proven::Ahead(ahead));
            }
            match from_before.ahead(sight_ms).await? {
                // It was stepped over before, or another span will.
                Ahead::Hidden(hidden) if hidden.to_ms <= from_ms => return Ok(Proven::End),
                // Nearer to the span, but not of it.
                Ahead::Visible(events) if events.iter().all(is_before) => newest.note(&events),
                ahead => return Ok(Proven::Ahead(ahead)),
            }
        }
        let ahead = seen_ahead(&looker, sight_ms).await?;
        Ok(ahead.map_or(Proven::End, Proven::Ahead))
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

/// What comes next, where nothing is known, if something up to `sight_ms` is seen from behind it.
async fn seen_ahead(looker: &Looker<'_>, sight_ms: i64) -> Result<Option<Ahead>, Halt> {
    let seen = looker.last_visible(looker.from_ms, sight_ms).await?;
    let Some(time) = seen.and_then(|event| event.time) else {
        return Ok(None);
    };
    Ok(Some(match looker.ahead(time.millis()).await? {
        // It was seen just now.
        Ahead::Nothing => Ahead::Unsure,
        ahead => ahead,
    }))
}
