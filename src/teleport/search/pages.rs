//! The pages of one span of time, and what to do about keys that a server will not take.

use std::time::Duration;

use tokio::time::sleep;
use tracing::warn;

use crate::output::Chain;
use crate::pipeline::retry::Backoff;
use crate::pipeline::unless_stopped;
use crate::teleport::audit_log::{Answer, Context, SourceError, day_to_come};
use crate::teleport::client::{CallError, Found, Query, Remedy};

/// The most events that a server gives in a page.
const LARGEST_PAGE: i32 = 10_000;

/// A call with a key that fails so often in a row, in a way that says nothing, is made without:
/// some servers do not say that it is the key which they cannot read.
const TRIES_WITH_KEY: u32 = 3;

/// The pages of one span of time, one after the other.
pub(super) struct Pages {
    from_ms: i64,
    to_ms: i64,
    key: String,
    limit: i32,
    /// Every event before this time has been read. A whole second, unless it is the span's end.
    pub(super) reached_ms: i64,
    /// How far reading had come when a key led to nothing, which is believed only if asking again
    /// without it, once, leads no further.
    end_doubted_at: Option<i64>,
    backoff: Backoff,
}

pub(super) enum Next {
    Found(Found),
    Stopped,
    ApiGone,
}

impl Pages {
    pub(super) fn new(context: &Context, from_ms: i64, to_ms: i64) -> Self {
        let backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
        Self {
            from_ms,
            to_ms,
            key: String::new(),
            limit: context.reading.page_limit,
            reached_ms: from_ms,
            end_doubted_at: None,
            backoff,
        }
    }

    pub(super) async fn next(&mut self, context: &Context) -> Result<Next, SourceError> {
        loop {
            let query = Query {
                namespace: &context.reading.namespace,
                from_ms: self.from_ms,
                to_ms: self.to_ms,
                types: &context.reading.types,
                limit: self.limit,
            };
            let search = || context.client.search(&query, &self.key);
            let is_doubtful = |failed: &CallError, failures| {
                !self.key.is_empty() && failures >= TRIES_WITH_KEY && failed.is_unexplained()
            };
            match context.patiently_unless(search, is_doubtful).await {
                Answer::Got(found) if found.last_key == self.key && !self.key.is_empty() => {
                    warn!("the server gives the same key again, dropping the key");
                    self.drop_key();
                    if self.pause(context).await.is_none() {
                        return Ok(Next::Stopped);
                    }
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
                }
                Answer::Got(found) => {
                    self.key.clone_from(&found.last_key);
                    let last = found.events.iter().rev().find_map(|event| event.time);
                    if let Some(last) = last {
                        let second_ms = last.seconds.saturating_mul(1000).min(self.to_ms);
                        if second_ms > self.reached_ms {
                            self.reached_ms = second_ms;
                            self.backoff.succeeded();
                        }
                    }
                    return Ok(Next::Found(found));
                }
                Answer::Cannot(Remedy::Unknown, _) => {
                    // Neither this API nor, as the probe has shown, the other.
                    return unknown(context).await;
                }
                Answer::Cannot(_, refused) if !self.key.is_empty() => {
                    warn!(
                        "the server does not take its own key, dropping it: {}",
                        Chain(&refused)
                    );
                    self.drop_key();
                    if self.pause(context).await.is_none() {
                        return Ok(Next::Stopped);
                    }
                }
                Answer::Cannot(_, refused) => {
                    context.pause(&mut self.backoff, &refused).await;
                    if context.stop.is_cancelled() {
                        return Ok(Next::Stopped);
                    }
                }
                Answer::Stopped => return Ok(Next::Stopped),
            }
        }
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

    async fn pause(&mut self, context: &Context) -> Option<()> {
        let pause = self.backoff.failed().wait;
        unless_stopped(&context.stop, sleep(pause)).await
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
