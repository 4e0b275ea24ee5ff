//! The pages of one span of time: what to do about keys that a server will not take, and what about
//! events that it cannot hand out.
//!
//! A span's end is proven ([`proof`]) before it is believed.
//! What turns out to be hidden is searched for by halving the time ([`super::hidden`]), becomes a
//! gap of the server's smallest unit of time, and reading goes on behind it.

use std::time::Duration;

use tokio::time::sleep;
use tracing::{info, warn};

use crate::checkpoint::Gap;
use crate::clock::now_ms;
use crate::event::AuditEvent;
use crate::output::Chain;
use crate::pipeline::retry::Backoff;
use crate::pipeline::unless_stopped;
use crate::teleport::audit_log::{Answer, Context, SourceError, day_to_come};
use crate::teleport::client::{CallError, Found, Query, Remedy};

use super::hidden::{Ahead, Halt, Hidden, Looker};
use super::newest::Newest;

mod proof;

use proof::Proven;

/// The most events that a server gives in a page.
const LARGEST_PAGE: i32 = 10_000;

/// A call that fails so often in a row, in a way that may be due to its key or to what it asks for,
/// is not simply made again.
const TRIES: u32 = 3;

/// The reason of the gaps that are found here.
pub(super) const UNREADABLE: &str = "event_unreadable";

/// The pages of one span of time, one after the other.
pub(super) struct Pages {
    /// The whole span, from inclusive, to exclusive.
    pub(super) span: (i64, i64),
    from_ms: i64,
    /// The span's last millisecond, all of it.
    to_ms: i64,
    key: String,
    limit: i32,
    /// Every event before this time has been read, or lies in a gap. A whole second, unless it is
    /// the span's end or that of a gap.
    pub(super) reached_ms: i64,
    /// How far reading had come when a key led to nothing, which is believed only if asking again
    /// without it, once, leads no further.
    end_doubted_at: Option<i64>,
    /// The same of a key with which calls failed, perhaps for another reason.
    key_doubted_at: Option<i64>,
    backoff: Backoff,
    /// What was read before this span, and is not given again.
    before: Newest,
    pub(super) newest: Newest,
    is_poll: bool,
    /// Nothing was read since something hidden.
    pub(super) is_behind_hidden: bool,
    /// What could not be read.
    pub(super) met: Vec<Gap>,
}

/// What one request has led to.
pub(super) struct Turn {
    /// Oldest first.
    pub(super) events: Vec<AuditEvent>,
    /// What lies behind these and could not be read.
    pub(super) gap: Option<Box<Gap>>,
    /// There is no more in the span.
    pub(super) is_last: bool,
}

pub(super) enum Next {
    Found(Turn),
    Stopped,
    ApiGone,
}

impl Pages {
    /// Of a span that is to be read in full.
    pub(super) fn new(context: &Context, from_ms: i64, to_ms: i64) -> Self {
        let backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
        Self {
            span: (from_ms, to_ms),
            from_ms,
            to_ms: to_ms - 1,
            key: String::new(),
            limit: context.reading.page_limit,
            reached_ms: from_ms,
            end_doubted_at: None,
            key_doubted_at: None,
            backoff,
            before: Newest::default(),
            newest: Newest::default(),
            is_poll: false,
            is_behind_hidden: false,
            met: Vec::new(),
        }
    }

    /// Of the log's end, of which `before` is known.
    pub(super) fn poll(context: &Context, from_ms: i64, to_ms: i64, before: Newest) -> Self {
        Self {
            newest: before.clone(),
            before,
            is_poll: true,
            ..Self::new(context, from_ms, to_ms)
        }
    }

    /// Whether the whole span was read and its end proven, so that no gap within is left but
    /// those that were met.
    pub(super) fn is_proof(&self) -> bool {
        !self.is_poll
    }

    pub(super) async fn next(&mut self, context: &Context) -> Result<Next, SourceError> {
        loop {
            let answer = self.search(context).await;
            let turned = match answer {
                Answer::Got(found) if found.last_key == self.key && !self.key.is_empty() => {
                    warn!("the server gives the same key again, dropping the key");
                    self.drop_key();
                    self.pause(context).await;
                    Ok(None)
                }
                // A server that does not know the key any more may look for it until the span
                // ends, and then say that this was all.
                Answer::Got(found)
                    if found.events.is_empty()
                        && found.last_key.is_empty()
                        && !self.key.is_empty()
                        && self.end_doubted_at != Some(self.reached_ms) =>
                {
                    self.end_doubted_at = Some(self.reached_ms);
                    self.drop_key();
                    Ok(None)
                }
                Answer::Got(found) => self.take(context, found).await.map(Some),
                Answer::Cannot(Remedy::Unknown, _) => Err(Halt::Unknown),
                Answer::Cannot(_, failed) => self.failed(context, &failed).await,
                Answer::Stopped => Err(Halt::Stopped),
            };
            match turned {
                Ok(_) if context.stop.is_cancelled() => return Ok(Next::Stopped),
                Ok(None) => {}
                Ok(Some(turn)) => return Ok(Next::Found(turn)),
                Err(Halt::Stopped) => return Ok(Next::Stopped),
                // Neither this API nor, as the probe has shown, the other.
                Err(Halt::Unknown) => return unknown(context).await,
            }
        }
    }

    async fn search(&self, context: &Context) -> Answer<Found> {
        let query = Query {
            namespace: &context.reading.namespace,
            from_ms: self.from_ms,
            to_ms: self.to_ms,
            types: &context.reading.types,
            limit: self.limit,
            newest_first: false,
        };
        let search = || context.client.search(&query, &self.key);
        let is_doubtful = |failed: &CallError, failures| {
            let of_key = !self.key.is_empty() && failed.is_unexplained();
            failures >= TRIES && (of_key || failed.may_be_the_place())
        };
        context.patiently_unless(search, is_doubtful).await
    }

    /// Takes a page, and sees to its end where it is the last.
    async fn take(&mut self, context: &Context, mut found: Found) -> Result<Turn, Halt> {
        self.key.clone_from(&found.last_key);
        let most = context.reading.page_limit;
        if self.limit < most {
            self.limit = self.limit.saturating_mul(2).min(most);
        }
        self.note(&found.events);
        found.events.retain(|event| !self.before.knows(event));
        let mut turn = Turn {
            events: found.events,
            gap: None,
            is_last: found.last_key.is_empty(),
        };
        if turn.is_last {
            match self.prove(context).await? {
                Proven::End => {}
                Proven::Ahead(ahead) => {
                    let is_unsure = matches!(ahead, Ahead::Unsure);
                    self.go_ahead(ahead, &mut turn);
                    if is_unsure {
                        warn!("Teleport hides something behind what was read, looking again");
                        self.pause(context).await;
                    }
                }
            }
        }
        Ok(turn)
    }

    fn note(&mut self, events: &[AuditEvent]) {
        self.newest.note(events);
        self.is_behind_hidden &= events.is_empty();
        let last = events.iter().rev().find_map(|event| event.time);
        if let Some(last) = last {
            let second_ms = last.seconds.saturating_mul(1000).min(self.to_ms);
            if second_ms > self.reached_ms {
                self.reached_ms = second_ms;
                self.backoff.succeeded();
            }
        }
    }

    fn looker<'a>(&'a self, context: &'a Context) -> Looker<'a> {
        Looker {
            context,
            newest: &self.newest,
            from_ms: self.reached_ms,
            is_behind_hidden: self.is_behind_hidden,
        }
    }

    /// Goes on with what was found by looking closely.
    fn go_ahead(&mut self, ahead: Ahead, turn: &mut Turn) {
        match ahead {
            Ahead::Nothing => {}
            Ahead::Unsure => {
                turn.is_last = false;
                self.key.clear();
                self.from_ms = self.reached_ms;
            }
            Ahead::Visible(events) => {
                self.note(&events);
                turn.is_last = false;
                turn.events.extend(events);
                self.key.clear();
                self.from_ms = self.reached_ms;
            }
            // Not ours: the span in which it lies will come to it.
            Ahead::Hidden(hidden) if hidden.from_ms >= self.span.1 => {}
            Ahead::Hidden(hidden) => {
                turn.is_last = false;
                self.step_over(hidden, turn);
            }
        }
    }

    fn step_over(&mut self, hidden: Hidden, turn: &mut Turn) {
        let Hidden {
            from_ms,
            to_ms,
            others,
        } = hidden;
        turn.events.extend(others);
        // A gap lies in one span, as whoever reads that again closes it. A poll's is no span that is
        // read again, and may end within the second that the server takes for one.
        let (begin_ms, end_ms) = match self.is_poll {
            true => (from_ms, to_ms),
            false => self.span,
        };
        let gap = Gap {
            reason: UNREADABLE.into(),
            from_ms: from_ms.max(begin_ms),
            to_ms: to_ms.min(end_ms),
            detail: "Teleport has an event of this time that it hands out to nobody: most likely \
                     it is too large for it; of what lies between two such events nothing is known"
                .into(),
            found_ms: now_ms(),
            ..Gap::default()
        };
        self.met.push(gap.clone());
        turn.gap = Some(Box::new(gap));
        self.key.clear();
        self.from_ms = to_ms;
        self.reached_ms = self.reached_ms.max(to_ms);
        self.newest = Newest::default();
        self.is_behind_hidden = true;
        self.backoff.succeeded();
        if to_ms > self.to_ms {
            turn.is_last = true;
        }
    }

    /// What to do about a call that has failed several times.
    async fn failed(
        &mut self,
        context: &Context,
        failed: &CallError,
    ) -> Result<Option<Turn>, Halt> {
        let may_be_the_place = failed.may_be_the_place();
        let may_be_the_key = !may_be_the_place
            || failed.is_unexplained() && self.key_doubted_at != Some(self.reached_ms);
        if !self.key.is_empty() && may_be_the_key {
            self.key_doubted_at = Some(self.reached_ms);
            warn!(
                "the server does not take its own key, dropping it: {}",
                Chain(failed)
            );
            self.drop_key();
            self.pause(context).await;
            return Ok(None);
        }
        // A server that fails everywhere is not at odds with one event.
        let looker = self.looker(context);
        if may_be_the_place && looker.answers().await? {
            info!(
                "looking for what Teleport cannot hand out: {}",
                Chain(failed)
            );
            let ahead = looker.ahead(self.to_ms).await?;
            if !matches!(ahead, Ahead::Nothing | Ahead::Unsure) {
                let mut turn = Turn {
                    events: Vec::new(),
                    gap: None,
                    is_last: false,
                };
                // Small pages get past it, if it is the size of pages that the server minds.
                self.limit = (self.limit / 8).max(1);
                self.go_ahead(ahead, &mut turn);
                if turn.is_last || turn.gap.is_some() || !turn.events.is_empty() {
                    return Ok(Some(turn));
                }
            }
        }
        context.pause(&mut self.backoff, failed).await;
        Ok(None)
    }

    /// Goes on without a key. Where that has led no further than the last time, only a larger page
    /// can: more events are at one time than the page held.
    fn drop_key(&mut self) {
        self.key.clear();
        if self.reached_ms == self.from_ms {
            self.limit = LARGEST_PAGE;
        }
        self.from_ms = self.reached_ms;
    }

    async fn pause(&mut self, context: &Context) {
        let pause = self.backoff.failed().wait;
        unless_stopped(&context.stop, sleep(pause)).await;
    }
}

/// The server does not know the search. If it has the export by now, that is the way on.
async fn unknown(context: &Context) -> Result<Next, SourceError> {
    let list = || context.client.chunks(day_to_come());
    match context.patiently(list).await {
        Answer::Got(_) => Ok(Next::ApiGone),
        Answer::Cannot(..) => Err(SourceError::TooOld),
        Answer::Stopped => Ok(Next::Stopped),
    }
}
