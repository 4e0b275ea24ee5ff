//! One chunk, from its cursor to its end, however often the stream breaks.
//!
//! A stream may break at the same event each time: one that is too large for the server, or for us.
//! There is no way past it, since only the server can make the cursor behind it. To give the rest of
//! the chunk up would be to lose events that can be read, so the chunk is *held*: it stays open, the
//! position does not pass its day, and it is tried again and again, out of the way of the others. A
//! gap says so for as long as that lasts, and is closed when the chunk has been read.

use std::time::Duration;

use chrono::NaiveDate;
use tokio::time::Instant;
use tracing::{error, warn};

use crate::checkpoint::{Gap, Step};
use crate::clock::now_ms;
use crate::output::Chain;
use crate::pipeline::retry::Backoff;
use crate::pipeline::{Lane, Page};
use crate::teleport::audit_log::{Answer, Context, day_to_come};
use crate::teleport::client::{CallError, EventStream, Exported, Remedy};

/// A page is handed over once it has so many events or bytes.
const PAGE_EVENTS: usize = 2000;
const PAGE_BYTES: usize = 512 << 10;

/// What has been read of a slow stream is handed over after so long.
const PAGE_AGE: Duration = Duration::from_millis(100);

/// A stream that breaks so often at the same place, while the server answers otherwise, is stuck.
const TRIES: u32 = 6;

/// A chunk that is to be read.
pub(super) struct Chunk {
    day: NaiveDate,
    name: String,
    /// The server's: behind the last event that was handed over; empty at the start.
    cursor: String,
    lane: Lane,
    backoff: Backoff,
    /// How often it broke with nothing read since.
    failures: u32,
    /// A gap says that it is held.
    is_told: bool,
}

/// How reading a chunk ended.
pub(super) enum Read {
    Whole,
    /// It breaks at the same place each time.
    Stuck(Chunk),
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
            failures: 0,
            is_told: false,
        }
    }

    /// Reads it to its end.
    pub(super) async fn read(mut self, context: &Context) -> Read {
        loop {
            let open = || context.client.export(self.day, &self.name, &self.cursor);
            // Some servers refuse the call, some break the stream: counted together, below.
            let give_up = |failed: &CallError, _| failed.may_be_the_place();
            let failed = match context.patiently_unless(open, give_up).await {
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
                    self.failures += 1;
                    if self.failures >= TRIES && failed.may_be_the_place() {
                        // A server that fails everywhere is not at odds with one chunk.
                        let answers = context.client.chunks(day_to_come()).await.is_ok();
                        if answers && !context.stop.is_cancelled() {
                            return self.hold(context, &failed).await;
                        }
                        self.failures = 0;
                    }
                }
            }
            if context.stop.is_cancelled() {
                return Read::Stopped;
            }
        }
    }

    /// Says once that the chunk cannot be read for now.
    async fn hold(mut self, context: &Context, failed: &CallError) -> Read {
        let Self {
            day, name, cursor, ..
        } = &self;
        error!(
            %day,
            chunk = name,
            cursor,
            mend = "look into the Auth Service's log for what it cannot send",
            "a chunk breaks at the same event each time, nothing is lost, holding: {}",
            Chain(failed)
        );
        if !self.is_told {
            let detail = format!(
                "export chunk {name} of {day} cannot be read any further; it is tried again until \
                 it can"
            );
            let page = Page {
                lane: context.new_lane(),
                events: Vec::new(),
                filtered: 0,
                reached: None,
                gap: Some(self.gap("chunk_unreadable", detail)),
            };
            if context.send(page).await.is_err() {
                return Read::Stopped;
            }
        }
        (self.is_told, self.failures) = (true, 0);
        Read::Stuck(self)
    }

    /// All of the chunk, as far as it can be told which time that is.
    fn gap(&self, reason: &str, detail: String) -> Gap {
        let from_ms = self
            .day
            .and_time(chrono::NaiveTime::MIN)
            .and_utc()
            .timestamp_millis();
        Gap {
            reason: reason.into(),
            from_ms,
            to_ms: from_ms + crate::event::DAY_MS,
            detail,
            date: Some(self.day),
            chunk: Some(self.name.clone()),
            found_ms: now_ms(),
            ..Gap::default()
        }
    }

    /// The last step of the chunk, and the gaps that are filled by it.
    fn done(&self, context: &Context) -> Step {
        let done = Step::ChunkDone {
            date: self.day,
            chunk: self.name.clone(),
        };
        let of_this = |gap: &Gap| {
            gap.date == Some(self.day) && gap.chunk.as_deref() == Some(self.name.as_str())
        };
        match context.filled(of_this) {
            Some(filled) => Step::Filled {
                by: Some(Box::new(done)),
                filled,
            },
            None => done,
        }
    }

    /// A chunk that was listed and is not there any more: nothing can bring it back, so it is
    /// written down and passed.
    async fn vanished(self, context: &Context, failed: &CallError) -> Read {
        let Self {
            day, name, lane, ..
        } = &self;
        warn!(%day, chunk = name, "a listed chunk is gone: {}", Chain(failed));
        let detail = format!("export chunk {name} of {day} was listed, then gone");
        let done = Step::ChunkDone {
            date: *day,
            chunk: name.clone(),
        };
        let page = Page {
            gap: Some(self.gap("chunk_vanished", detail)),
            ..Page::step(*lane, done)
        };
        match context.send(page).await {
            Ok(()) => Read::Whole,
            Err(_) => Read::Stopped,
        }
    }

    /// Takes a stream until it ends or breaks, page by page.
    async fn take_all(&mut self, context: &Context, mut stream: EventStream<Exported>) -> Streamed {
        loop {
            let (mut page, end) = self.take_page(context, &mut stream).await;
            let is_empty = page.events.is_empty() && page.filtered == 0;
            page.reached = match &end {
                Some(Streamed::Stopped) => return Streamed::Stopped,
                Some(Streamed::Whole) => Some(self.done(context)),
                _ if is_empty => None,
                _ => Some(Step::Chunk {
                    date: self.day,
                    chunk: self.name.clone(),
                    cursor: self.cursor.clone(),
                }),
            };
            if page.reached.is_some() {
                self.backoff.succeeded();
                self.failures = 0;
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
        stream: &mut EventStream<Exported>,
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
                Ok(Some(Some(Exported {
                    event,
                    cursor: behind,
                }))) => {
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
