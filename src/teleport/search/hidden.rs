//! Finds the smallest span of time in which a server has events that it cannot hand out.
//!
//! Two questions are asked, each with a limit of about one event: what is the first event from here
//! on, and what is the last one up to there. Neither sees past an event that cannot be sent: the
//! answer ends there as if there were no more, or fails. So, between what was read and the next
//! event that can be read, the last time from which that next one is not seen is the end of what is
//! hidden, and the first time up to which what was read is not seen is its start. Both are found by
//! halving: some fifty requests for a day in milliseconds.
//!
//! A server that fails, or shows nothing, now and then must not be taken for one that hides
//! something. So a question has failed, or has nothing for an answer, only if it was so each time it
//! was asked; halving must come to the same place twice; and there the failures count only if, before
//! and after each, the server answers a question about a time without events, in an order that no
//! "every n-th call fails" gives.

use crate::event::AuditEvent;
use crate::output::Chain;
use crate::teleport::audit_log::{Answer, Context};
use crate::teleport::client::{Found, Query, Remedy};

use super::newest::Newest;

/// So often a question is asked that fails, or to which there is nothing.
const TRIES: u32 = 3;

/// Events of the hidden one's own instant that can be read from its other side are, up to so many.
const MOST_OTHERS: usize = 10_000;

/// Where from, and what is known there.
pub(super) struct Looker<'a> {
    pub(super) context: &'a Context,
    /// Everything up to these has been read.
    pub(super) newest: &'a Newest,
    /// Everything before this time has been read.
    pub(super) from_ms: i64,
    /// The start lies directly behind something hidden, with nothing read since.
    pub(super) is_behind_hidden: bool,
}

/// The search cannot go on.
pub(super) enum Halt {
    Stopped,
    /// The server does not know the call.
    Unknown,
}

/// What lies behind what was read.
pub(super) enum Ahead {
    /// Events that can be read.
    Visible(Vec<AuditEvent>),
    Hidden(Hidden),
    /// Nothing, as far as the server shows.
    Nothing,
    /// Something, but its place could not be told for certain.
    Unsure,
}

/// A span with at least one event that the server cannot hand out.
pub(super) struct Hidden {
    pub(super) from_ms: i64,
    /// Exclusive.
    pub(super) to_ms: i64,
    /// What of it could be read from its end.
    pub(super) others: Vec<AuditEvent>,
}

/// Where something is hidden.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Span {
    from_ms: i64,
    /// Exclusive.
    to_ms: i64,
    /// There is an event to be seen between the span's end and this time, inclusive.
    seen_up_to_ms: Option<i64>,
}

/// The last event up to some time.
enum Last {
    None,
    Known,
    New(i64),
    Failed,
}

impl Looker<'_> {
    /// Where looking begins.
    fn start_ms(&self) -> i64 {
        self.newest.last_ms().unwrap_or(self.from_ms)
    }

    /// Asks until something is there, as only that is certain at once; whoever fails or shows nothing
    /// now and then will not do so each time.
    async fn ask(
        &self,
        (from_ms, to_ms): (i64, i64),
        limit: usize,
        newest_first: bool,
        key: &str,
    ) -> Result<Option<Found>, Halt> {
        let mut empty = None;
        for _ in 0..TRIES {
            match self
                .ask_once((from_ms, to_ms), limit, newest_first, key)
                .await?
            {
                Some(found) if found.events.is_empty() => empty = Some(found),
                None => {}
                found => return Ok(found),
            }
        }
        Ok(empty)
    }

    async fn ask_once(
        &self,
        (from_ms, to_ms): (i64, i64),
        limit: usize,
        newest_first: bool,
        key: &str,
    ) -> Result<Option<Found>, Halt> {
        if from_ms > to_ms {
            let (events, last_key) = (Vec::new(), String::new());
            return Ok(Some(Found { events, last_key }));
        }
        let reading = &self.context.reading;
        let query = Query {
            namespace: &reading.namespace,
            from_ms,
            to_ms,
            types: &reading.types,
            limit: i32::try_from(limit).unwrap_or(i32::MAX).min(10_000),
            newest_first,
        };
        let search = || self.context.client.search(&query, key);
        let asked = self
            .context
            .patiently_unless(search, |failed, _| failed.may_be_the_place());
        match asked.await {
            Answer::Got(found) => Ok(Some(found)),
            Answer::Stopped => Err(Halt::Stopped),
            Answer::Cannot(Remedy::Unknown, _) => Err(Halt::Unknown),
            Answer::Cannot(_, failed) => {
                let said = Chain(&failed).to_string();
                self.context.stats.teleport.failed(failed.reason(), &said);
                Ok(None)
            }
        }
    }

    /// The first events from `from_ms` to `to_ms`, both inclusive, that were not read; empty if the
    /// server shows none. `None` if it fails.
    async fn first(&self, from_ms: i64, to_ms: i64) -> Result<Option<Vec<AuditEvent>>, Halt> {
        let mut limit = self.newest.n_from(from_ms) + 1;
        loop {
            let Some(mut found) = self.ask((from_ms, to_ms), limit, false, "").await? else {
                return Ok(None);
            };
            found.events.retain(|event| !self.newest.knows(event));
            // By whole seconds, what was read of this one may come before the rest.
            let whole_second = self.newest.len() + 1;
            if found.events.is_empty() && !found.last_key.is_empty() && limit < whole_second {
                limit = whole_second;
                continue;
            }
            return Ok(Some(found.events));
        }
    }

    /// What comes next, up to `to_ms`; empty if nothing is shown.
    pub(super) async fn next(&self, to_ms: i64) -> Result<Vec<AuditEvent>, Halt> {
        let next = self.first(self.start_ms(), to_ms).await?;
        Ok(next.unwrap_or_default())
    }

    async fn shows(&self, from_ms: i64, to_ms: i64) -> Result<bool, Halt> {
        let first = self.first(from_ms, to_ms).await?;
        Ok(first.is_some_and(|events| !events.is_empty()))
    }

    async fn last(&self, from_ms: i64, to_ms: i64) -> Result<Last, Halt> {
        let found = self.ask((from_ms, to_ms), 1, true, "").await?;
        Ok(match found {
            None => Last::Failed,
            Some(mut found) => match found.events.pop() {
                None => Last::None,
                Some(event) if self.newest.knows(&event) => Last::Known,
                // Without a time it lies where it was found.
                Some(event) => Last::New(event.time.map_or(to_ms, |time| time.millis())),
            },
        })
    }

    /// Whether what was read is all that there is up to `to_ms`, seen from there.
    pub(super) async fn is_end(&self, to_ms: i64) -> Result<bool, Halt> {
        // By whole seconds, what was read may lie behind the end that was asked for.
        let start_ms = self.start_ms();
        Ok(start_ms > to_ms || self.is_clear(start_ms, to_ms).await?)
    }

    /// The last event from `from_ms` to `to_ms` that is seen from somewhere behind it. The very last
    /// may be hidden, so it is looked at from ever further back, and then from as near as it can be.
    pub(super) async fn last_visible(
        &self,
        from_ms: i64,
        to_ms: i64,
    ) -> Result<Option<AuditEvent>, Halt> {
        let (mut end_ms, mut blind_ms) = (to_ms, None);
        let mut back_ms = 1000;
        while end_ms >= from_ms {
            if let Some(mut last) = self.last_up_to(from_ms, end_ms).await? {
                while let Some(blind) = blind_ms
                    && blind - end_ms > 1
                {
                    let middle_ms = end_ms + (blind - end_ms) / 2;
                    match self.last_up_to(from_ms, middle_ms).await? {
                        Some(later) => (end_ms, last) = (middle_ms, later),
                        None => blind_ms = Some(middle_ms),
                    }
                }
                return Ok(Some(last));
            }
            blind_ms = Some(end_ms);
            end_ms = to_ms - back_ms;
            back_ms *= 2;
        }
        Ok(None)
    }

    async fn last_up_to(&self, from_ms: i64, to_ms: i64) -> Result<Option<AuditEvent>, Halt> {
        let found = self.ask((from_ms, to_ms), 1, true, "").await?;
        Ok(found.and_then(|mut found| found.events.pop()))
    }

    /// Whether the server answers where no event can be.
    pub(super) async fn answers(&self) -> Result<bool, Halt> {
        Ok(self.ask_once((0, 0), 1, false, "").await?.is_some())
    }

    /// What comes next, up to `end_ms`, inclusive.
    pub(super) async fn ahead(&self, end_ms: i64) -> Result<Ahead, Halt> {
        let start_ms = self.start_ms();
        let next = self.next(end_ms).await?;
        if !next.is_empty() {
            return Ok(Ahead::Visible(next));
        }
        let Some(span) = self.span(start_ms, end_ms).await? else {
            return Ok(Ahead::Nothing);
        };
        let is_found_again = self.span(start_ms, end_ms).await? == Some(span);
        if !is_found_again || !self.is_certain(start_ms, span).await? {
            return Ok(Ahead::Unsure);
        }
        let Span { from_ms, to_ms, .. } = span;
        Ok(Ahead::Hidden(Hidden {
            from_ms,
            to_ms,
            others: self.others(from_ms, to_ms).await?,
        }))
    }

    /// The place of what is hidden next, where something is.
    async fn span(&self, start_ms: i64, end_ms: i64) -> Result<Option<Span>, Halt> {
        Ok(match self.last(start_ms, end_ms).await? {
            Last::New(ms) => Some(self.between(start_ms, ms.max(start_ms), end_ms).await?),
            Last::Known => None,
            Last::None | Last::Failed => self.before_the_end(start_ms, end_ms).await?,
        })
    }

    /// Whether the server knows milliseconds, or whole seconds only: in ms, by asking for a time at
    /// which an event is not, but in whose second it is.
    async fn instant_ms(&self, sample_ms: i64) -> Result<i64, Halt> {
        let second_ms = sample_ms.div_euclid(1000) * 1000;
        let other_ms = match sample_ms == second_ms {
            true => second_ms + 999,
            false => second_ms,
        };
        for newest_first in [false, true] {
            let found = self.ask((other_ms, other_ms), 1, newest_first, "").await?;
            // Where it fails, what is hidden in that second is found by another time in it.
            let is_other =
                |event: &AuditEvent| event.time.is_some_and(|time| time.millis() != other_ms);
            if found.is_none_or(|found| found.events.iter().any(is_other)) {
                return Ok(1000);
            }
        }
        Ok(1)
    }

    /// What is hidden between the start and an event at `seen_ms`, the first of it if it is several
    /// with readable ones in between; end exclusive.
    async fn between(&self, start_ms: i64, seen_ms: i64, mut end_ms: i64) -> Result<Span, Halt> {
        let instant = self.instant_ms(seen_ms).await?;
        let start = start_ms.div_euclid(instant);
        let mut seen = seen_ms.div_euclid(instant);
        loop {
            let behind = if self.shows(seen * instant, end_ms).await? {
                let (mut hidden, mut shown) = (start, seen);
                while shown - hidden > 1 {
                    let middle = hidden + (shown - hidden) / 2;
                    match self.shows(middle * instant, end_ms).await? {
                        true => shown = middle,
                        false => hidden = middle,
                    }
                }
                shown
            } else {
                // In the same instant, before it.
                seen + 1
            };
            let last = behind - 1;
            if last <= start {
                return Ok(Span {
                    from_ms: start * instant,
                    to_ms: behind * instant,
                    seen_up_to_ms: Some(end_ms),
                });
            }
            let before_ms = last * instant - 1;
            let mut before = self.last(start_ms, before_ms).await?;
            // With nothing read to go by, an earlier one may be seen from further back.
            if matches!(before, Last::None | Last::Failed)
                && self.newest.is_empty()
                && let Some(event) = self.last_visible(start_ms, before_ms).await?
            {
                before = Last::New(event.time.map_or(before_ms, |time| time.millis()));
            }
            let first = match before {
                Last::New(ms) => {
                    end_ms = before_ms;
                    seen = ms.max(start_ms).div_euclid(instant);
                    continue;
                }
                Last::Known => last,
                // Directly behind something hidden, what lies between may be hidden as well, unless
                // the server fails where something is.
                Last::None if self.newest.is_empty() => {
                    let hidden = (last * instant, behind * instant - 1);
                    let fails = self.first(hidden.0, hidden.1).await?.is_none();
                    match self.is_behind_hidden && !fails {
                        true => start,
                        false => last,
                    }
                }
                Last::None | Last::Failed => self.first_hidden(start_ms, last, instant).await?,
            };
            return Ok(Span {
                from_ms: first * instant,
                to_ms: behind * instant,
                seen_up_to_ms: Some(end_ms),
            });
        }
    }

    /// What is hidden with nothing to be seen behind it, as far as its start can be told.
    async fn before_the_end(&self, start_ms: i64, end_ms: i64) -> Result<Option<Span>, Halt> {
        if self.is_clear(start_ms, end_ms).await? {
            return Ok(None);
        }
        let instant = self.instant_ms(start_ms).await?;
        let end = end_ms.div_euclid(instant);
        let first = self.first_hidden(start_ms, end, instant).await?;
        Ok(Some(Span {
            from_ms: first * instant,
            to_ms: (first + 1) * instant,
            seen_up_to_ms: None,
        }))
    }

    /// The first instant up to which what was read is not seen; at `hidden` it is not.
    async fn first_hidden(&self, start_ms: i64, hidden: i64, instant: i64) -> Result<i64, Halt> {
        let (mut clear, mut hidden) = (start_ms.div_euclid(instant), hidden);
        if !self.is_clear(start_ms, (clear + 1) * instant - 1).await? {
            return Ok(clear);
        }
        while hidden - clear > 1 {
            let middle = clear + (hidden - clear) / 2;
            match self.is_clear(start_ms, (middle + 1) * instant - 1).await? {
                true => clear = middle,
                false => hidden = middle,
            }
        }
        Ok(hidden)
    }

    /// Whether from the start to `to_ms` there is nothing but what was read.
    async fn is_clear(&self, start_ms: i64, to_ms: i64) -> Result<bool, Halt> {
        Ok(match self.last(start_ms, to_ms).await? {
            Last::Known => true,
            Last::None => self.newest.is_empty(),
            Last::New(_) | Last::Failed => false,
        })
    }

    /// Whether it is the span, and not the moment, that the server has no answer for.
    async fn is_certain(&self, start_ms: i64, span: Span) -> Result<bool, Halt> {
        let Span {
            from_ms,
            to_ms,
            seen_up_to_ms,
        } = span;
        for n_answers in [1, 2, 1, 3] {
            if let Some(events) = self.first(from_ms, to_ms - 1).await? {
                // It does not fail there, so it must hide what is on the other side, and do so
                // without failing.
                let Some(seen_up_to_ms) = seen_up_to_ms else {
                    let is_clear =
                        from_ms <= start_ms || self.is_clear(start_ms, from_ms - 1).await?;
                    let last = self.last(start_ms, to_ms - 1).await?;
                    return Ok(is_clear && !self.newest.is_empty() && matches!(last, Last::None));
                };
                let from_here = self.first(from_ms, seen_up_to_ms).await?;
                let is_hiding = from_here.is_some_and(|events| events.is_empty());
                // Behind it, or in its own instant from the other side.
                let is_seen = self.shows(to_ms, seen_up_to_ms).await?
                    || matches!(self.last(from_ms, to_ms - 1).await?, Last::New(_));
                return Ok(events.is_empty() && is_hiding && is_seen);
            }
            for _ in 0..n_answers {
                if !self.answers().await? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// What of a hidden span can be read from its end.
    async fn others(&self, from_ms: i64, to_ms: i64) -> Result<Vec<AuditEvent>, Halt> {
        let mut others = Vec::new();
        let mut key = String::new();
        while others.len() < MOST_OTHERS {
            let span = (from_ms, to_ms - 1);
            let Some(found) = self.ask(span, 1, true, &key).await? else {
                break;
            };
            let new = found
                .events
                .into_iter()
                .find(|event| !self.newest.knows(event));
            let Some(event) = new else { break };
            others.push(event);
            if found.last_key.is_empty() || found.last_key == key {
                break;
            }
            key = found.last_key;
        }
        Ok(others)
    }
}
