//! One chunk, from its cursor to its end, however often the stream breaks.

use std::time::Duration;

use chrono::NaiveDate;
use tokio::time::Instant;
use tracing::warn;

use crate::checkpoint::{Gap, Step};
use crate::output::Chain;
use crate::pipeline::retry::Backoff;
use crate::pipeline::{Lane, Page};
use crate::teleport::audit_log::{Answer, Context, now_ms};
use crate::teleport::client::{CallError, ChunkStream, Remedy};

/// A page is handed over once it has so many events or bytes.
const PAGE_EVENTS: usize = 2000;
const PAGE_BYTES: usize = 512 << 10;

/// What has been read of a slow stream is handed over after so long.
const PAGE_AGE: Duration = Duration::from_millis(100);

/// A chunk that is to be read.
pub(super) struct Chunk {
    day: NaiveDate,
    name: String,
    /// The server's: behind the last event that was handed over; empty at the start.
    cursor: String,
    lane: Lane,
    backoff: Backoff,
}

/// How reading a chunk ended.
pub(super) enum Read {
    Whole,
    Stopped,
    ApiGone,
}

enum Streamed {
    Whole,
    Stopped,
    Broken(CallError),
}

impl Chunk {
    pub(super) fn new(context: &Context, day: NaiveDate, name: String, cursor: String) -> Self {
        let backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
        Self {
            day,
            name,
            cursor,
            lane: context.new_lane(),
            backoff,
        }
    }

    /// Reads it to its end.
    pub(super) async fn read(mut self, context: &Context) -> Read {
        loop {
            let open = || context.client.export(self.day, &self.name, &self.cursor);
            let failed = match context.patiently(open).await {
                Answer::Stopped => return Read::Stopped,
                Answer::Cannot(_, refused) => refused,
                Answer::Got(stream) => match self.take_all(context, stream).await {
                    Streamed::Whole => return Read::Whole,
                    Streamed::Stopped => return Read::Stopped,
                    Streamed::Broken(failed) => failed,
                },
            };
            match failed.remedy() {
                Remedy::Unknown => return Read::ApiGone,
                Remedy::NotFound => return self.vanished(context, &failed).await,
                Remedy::Invalid if !self.cursor.is_empty() => {
                    warn!(day = %self.day, chunk = self.name, "the server does not take its own \
                        cursor, reading the chunk from its start: {}", Chain(&failed));
                    self.cursor.clear();
                }
                Remedy::Invalid | Remedy::Retry | Remedy::Hold => {
                    context.pause(&mut self.backoff, &failed).await;
                }
            }
            if context.stop.is_cancelled() {
                return Read::Stopped;
            }
        }
    }

    /// A chunk that was listed and is not there any more: nothing can bring it back, so it is
    /// written down and passed.
    async fn vanished(self, context: &Context, failed: &CallError) -> Read {
        let Self {
            day, name, lane, ..
        } = self;
        warn!(%day, chunk = name, "a listed chunk is gone: {}", Chain(failed));
        let from_ms = day
            .and_time(chrono::NaiveTime::MIN)
            .and_utc()
            .timestamp_millis();
        let gap = Gap {
            reason: "chunk_vanished".into(),
            from_ms,
            to_ms: from_ms + 24 * 3600 * 1000,
            detail: format!("export chunk {name} of {day} was listed, then gone"),
            date: Some(day),
            chunk: Some(name.clone()),
            found_ms: now_ms(),
            ..Gap::default()
        };
        let done = Step::ChunkDone {
            date: day,
            chunk: name,
        };
        match context
            .send(Page {
                gap: Some(gap),
                ..Page::step(lane, done)
            })
            .await
        {
            Ok(()) => Read::Whole,
            Err(_) => Read::Stopped,
        }
    }

    /// Takes a stream until it ends or breaks, page by page.
    async fn take_all(&mut self, context: &Context, mut stream: ChunkStream) -> Streamed {
        loop {
            let (mut page, end) = self.take_page(context, &mut stream).await;
            let is_empty = page.events.is_empty() && page.filtered == 0;
            let (date, chunk) = (self.day, self.name.clone());
            page.reached = match &end {
                Some(Streamed::Stopped) => return Streamed::Stopped,
                Some(Streamed::Whole) => Some(Step::ChunkDone { date, chunk }),
                _ if is_empty => None,
                _ => Some(Step::Chunk {
                    date,
                    chunk,
                    cursor: self.cursor.clone(),
                }),
            };
            if page.reached.is_some() {
                self.backoff.succeeded();
                if context.send(page).await.is_err() {
                    return Streamed::Stopped;
                }
            }
            if let Some(end) = end {
                return end;
            }
        }
    }

    /// Takes events until the page is full or old enough, or the stream is at its end.
    async fn take_page(
        &mut self,
        context: &Context,
        stream: &mut ChunkStream,
    ) -> (Page, Option<Streamed>) {
        let mut page = Page {
            lane: self.lane,
            events: Vec::new(),
            filtered: 0,
            reached: None,
            gap: None,
        };
        let mut bytes = 0;
        let mut taken = 0;
        let mut cursor = None;
        let mut due = Instant::now() + PAGE_AGE;
        let end = loop {
            let next = tokio::select! {
                biased;
                // Neither arm takes anything before it is done.
                () = context.stop.cancelled() => break Some(Streamed::Stopped),
                next = stream.next_by(due) => next,
            };
            match next {
                Ok(Some(Some((event, behind)))) => {
                    cursor = Some(behind);
                    taken += 1;
                    if context.wants(&event) {
                        bytes += event.body.len();
                        page.events.push(event);
                    } else {
                        page.filtered += 1;
                    }
                    if taken >= PAGE_EVENTS || bytes >= PAGE_BYTES {
                        break None;
                    }
                }
                Ok(Some(None)) => break Some(Streamed::Whole),
                Ok(None) if taken == 0 => due = Instant::now() + PAGE_AGE,
                Ok(None) => break None,
                Err(failed) => break Some(Streamed::Broken(failed)),
            }
        };
        if let Some(cursor) = cursor {
            self.cursor = String::from_utf8_lossy(&cursor).into_owned();
        }
        (page, end)
    }
}
