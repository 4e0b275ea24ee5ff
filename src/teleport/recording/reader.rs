//! One recording, from where it was left to its end, however often the stream breaks.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, warn};

use crate::checkpoint::{Filled, Gap, Recording, RecordingEnd, RecordingStep, Step};
use crate::clock::now_ms;
use crate::document::member;
use crate::event::AuditEvent;
use crate::output::Chain;
use crate::pipeline::retry::Backoff;
use crate::pipeline::{Lane, Page};
use crate::teleport::audit_log::{Answer, Context, SourceError};
use crate::teleport::client::{CallError, EventStream, Remedy};

use super::counter::Counter;
use super::patience::Patience;

/// A page is handed over once it has so many events or bytes.
const PAGE_EVENTS: u64 = 2000;
const PAGE_BYTES: usize = 512 << 10;

/// What has been read of a slow stream is handed over after so long.
const PAGE_AGE: Duration = Duration::from_millis(100);

/// A stream that breaks so often at the same place, while the server answers otherwise, has had its
/// round.
const TRIES: u32 = 3;

/// A recording that is not for us leaves its place to others for so long at first and at the most.
const DENIED_FIRST: Duration = Duration::from_secs(5);
const DENIED_MOST: Duration = Duration::from_secs(300);

pub(super) struct Reader<'c> {
    context: &'c Context,
    patience: Patience,
    recording: Recording,
    session: Arc<str>,
    lane: Lane,
    backoff: Backoff,
    /// How often the stream broke with nothing new since.
    failures: u32,
}

/// How reading has ended.
pub(super) enum Read {
    /// It is done with, or to be tried again later: that is on its way to the state file.
    Ended,
    /// It is not for us; the same holds.
    Denied(CallError),
    Stopped,
}

enum Streamed {
    Whole,
    Stopped,
    Broken(CallError),
}

impl<'c> Reader<'c> {
    pub(super) fn new(context: &'c Context, patience: Patience, recording: Recording) -> Self {
        Self {
            context,
            patience,
            session: recording.session.as_str().into(),
            recording,
            lane: context.new_lane(),
            backoff: Backoff::new(Duration::from_millis(500), Duration::from_secs(30)),
            failures: 0,
        }
    }

    /// Reads it to its end, or until it is clear that it cannot be read now.
    pub(super) async fn read(mut self) -> Result<Read, SourceError> {
        let context = self.context;
        loop {
            let from_index = i32::try_from(self.recording.next_index).unwrap_or(0);
            let open = || context.client.recording(&self.session, from_index);
            // Some servers refuse the call, some break the stream: treated alike, below.
            let give_up = |failed: &CallError, _| failed.is_denied() || failed.may_be_the_place();
            let failed = match context.patiently_unless(open, give_up).await {
                Answer::Stopped => return Ok(Read::Stopped),
                Answer::Cannot(_, refused) => refused,
                Answer::Got(stream) => match self.take_all(stream).await? {
                    Streamed::Whole => return Ok(Read::Ended),
                    Streamed::Stopped => return Ok(Read::Stopped),
                    Streamed::Broken(failed) => failed,
                },
            };
            let session = &*self.session;
            debug!(session, "a recording cannot be read: {}", Chain(&failed));
            match failed.remedy() {
                Remedy::NotFound => return self.not_there().await,
                // A server without the call is no reason to give recordings up either.
                Remedy::Hold | Remedy::Unknown => return self.denied(failed).await,
                // So servers call what is wrong with a recording, too.
                Remedy::Invalid | Remedy::Retry => {}
            }
            if !failed.is_too_much() {
                self.failures += 1;
            }
            if self.failures >= TRIES {
                // A server that fails everywhere is not at odds with one recording.
                if context.client.ping().await.is_ok() && !context.stop.is_cancelled() {
                    return self.broken(&failed).await;
                }
                self.failures = 0;
            }
            context.pause(&mut self.backoff, &failed).await;
            if context.stop.is_cancelled() {
                return Ok(Read::Stopped);
            }
        }
    }

    async fn not_there(mut self) -> Result<Read, SourceError> {
        self.recording.failures += 1;
        let (failures, upload_ms) = (self.recording.failures, self.recording.upload_ms);
        if !self.patience.is_missing(failures, upload_ms, now_ms()) {
            return self.try_again(failures).await;
        }
        let detail = format!(
            "the recording of session {} was not found in {failures} tries; a backfill over the \
             time of its upload looks for it once more",
            self.session
        );
        let page = self.page_with_gap("recording_missing", detail);
        self.end(page, RecordingEnd::Missing).await
    }

    async fn broken(mut self, failed: &CallError) -> Result<Read, SourceError> {
        self.recording.recorded.rounds += 1;
        let rounds = self.recording.recorded.rounds;
        if !self.patience.is_unreadable(rounds) {
            return self.try_again(rounds).await;
        }
        let detail = format!(
            "the recording of session {} cannot be read behind its first {} events: {}",
            self.session,
            self.recording.recorded.events,
            Chain(failed)
        );
        let page = self.page_with_gap("recording_unreadable", detail);
        self.end(page, RecordingEnd::Unreadable).await
    }

    /// After so many failures of one kind. They are counted apart: what was missing for two days has
    /// all its rounds before it once it is there.
    async fn try_again(self, failures: u32) -> Result<Read, SourceError> {
        let due_ms = due_in(self.patience.pause(failures));
        let page = self.page();
        self.end(page, RecordingEnd::Again { due_ms }).await
    }

    /// Not a failure of the recording's: it never becomes a gap by this.
    async fn denied(self, failed: CallError) -> Result<Read, SourceError> {
        let doublings = self.recording.readings.min(10);
        let due_ms = due_in((DENIED_FIRST * (1 << doublings)).min(DENIED_MOST));
        let page = self.page();
        Ok(
            match self.end(page, RecordingEnd::Again { due_ms }).await? {
                Read::Stopped => Read::Stopped,
                Read::Ended | Read::Denied(_) => Read::Denied(failed),
            },
        )
    }

    fn page(&self) -> Page {
        Page {
            lane: self.lane,
            events: Vec::new(),
            filtered: 0,
            reached: None,
            gap: None,
        }
    }

    fn page_with_gap(&self, reason: &str, detail: String) -> Page {
        let from_ms = self.recording.upload_ms;
        Page {
            gap: Some(Gap {
                reason: reason.into(),
                from_ms,
                to_ms: from_ms + 1,
                detail,
                session: Some(self.recording.session.clone()),
                found_ms: now_ms(),
                ..Gap::default()
            }),
            ..self.page()
        }
    }

    /// Its index would be deleted as soon as it is written, or is closed to writing.
    fn is_too_old(&self, event: &AuditEvent) -> bool {
        let time_ms = event.time.map(|time| time.millis());
        let kept_from_ms = self.context.reading.kept_from_ms;
        time_ms
            .zip(kept_from_ms)
            .is_some_and(|(time, kept_from)| time < kept_from)
    }

    /// Hands the last page of this reading over.
    async fn end(&self, mut page: Page, end: RecordingEnd) -> Result<Read, SourceError> {
        let is_over = !matches!(end, RecordingEnd::Again { .. });
        let too_old = self.recording.recorded.too_old;
        if is_over && too_old > 0 {
            warn!(
                session = &*self.session,
                events = too_old,
                "left out, too old for the lifecycle policy: events of a session recording"
            );
        }
        let sessions = self.context.reading.sessions.as_ref();
        let mut step = Step::Recording(Box::new(RecordingStep {
            recording: self.recording.clone(),
            end: Some(end),
            has_summary: is_over && sessions.is_some_and(|sessions| sessions.has_summaries),
        }));
        if end == RecordingEnd::Read {
            let (session, of_all_runs) = (self.session.clone(), self.context.reads_all());
            let gaps = self
                .context
                .blocking(move |checkpoint, run| {
                    checkpoint.open_gaps_of_session(run, of_all_runs, &session)
                })
                .await?;
            if !gaps.is_empty() {
                step = Step::Filled {
                    by: Some(Box::new(step)),
                    filled: Filled { gaps, of_all_runs },
                };
            }
        }
        page.reached = Some(step);
        Ok(match self.context.send(page).await {
            Ok(()) => Read::Ended,
            Err(_) => Read::Stopped,
        })
    }

    /// Takes a stream until it ends or breaks, page by page.
    async fn take_all(
        &mut self,
        mut stream: EventStream<AuditEvent>,
    ) -> Result<Streamed, SourceError> {
        let mut counter = Counter::new(&self.recording);
        let mut fresh = 0;
        loop {
            let (mut page, end) = self.take_page(&mut stream, &mut counter).await;
            if counter.fresh > fresh {
                fresh = counter.fresh;
                self.backoff.succeeded();
                self.failures = 0;
                self.clear_failures();
            }
            match &end {
                Some(Streamed::Stopped) => return Ok(Streamed::Stopped),
                Some(Streamed::Whole) => {
                    self.clear_failures();
                    return Ok(match self.end(page, RecordingEnd::Read).await? {
                        Read::Stopped => Streamed::Stopped,
                        Read::Ended | Read::Denied(_) => Streamed::Whole,
                    });
                }
                _ => {}
            }
            if !page.events.is_empty() || page.filtered > 0 {
                page.reached = Some(Step::Recording(Box::new(RecordingStep {
                    recording: self.recording.clone(),
                    end: None,
                    has_summary: false,
                })));
                if self.context.send(page).await.is_err() {
                    return Ok(Streamed::Stopped);
                }
            }
            if let Some(end) = end {
                return Ok(end);
            }
        }
    }

    fn clear_failures(&mut self) {
        (self.recording.failures, self.recording.recorded.rounds) = (0, 0);
    }

    /// Takes events until the page is full or old enough, or the stream is at its end.
    async fn take_page(
        &mut self,
        stream: &mut EventStream<AuditEvent>,
        counter: &mut Counter,
    ) -> (Page, Option<Streamed>) {
        let sessions = self.context.reading.sessions.as_ref();
        let mut page = self.page();
        let mut bytes = 0;
        let before = counter.met;
        let mut due = Instant::now() + PAGE_AGE;
        let end = loop {
            let next = tokio::select! {
                biased;
                // Neither arm takes anything before it is done.
                () = self.context.stop.cancelled() => break Some(Streamed::Stopped),
                next = stream.next_by(due) => next,
            };
            match next {
                Ok(Some(Some(event))) => {
                    let is_new = counter.count(&event, &mut self.recording);
                    if sessions.is_some_and(|sessions| sessions.skips(&event.event_type)) {
                        page.filtered += 1;
                    } else if self.is_too_old(&event) {
                        self.recording.recorded.too_old += u64::from(is_new);
                        page.filtered += 1;
                    } else {
                        bytes += event.body.len();
                        page.events.push(own(event, &self.session));
                    }
                    if counter.met - before >= PAGE_EVENTS || bytes >= PAGE_BYTES {
                        break None;
                    }
                }
                Ok(Some(None)) => break Some(Streamed::Whole),
                Ok(None) if counter.met == before => due = Instant::now() + PAGE_AGE,
                Ok(None) => break None,
                Err(failed) => break Some(Streamed::Broken(failed)),
            }
        };
        (page, end)
    }
}

fn due_in(pause: Duration) -> i64 {
    now_ms() + i64::try_from(pause.as_millis()).expect("hours at the most")
}

/// The event with its session, where it does not say that itself.
fn own(mut event: AuditEvent, session: &Arc<str>) -> AuditEvent {
    let text = |key| member::text(&event.body, key);
    let is_there = |text: Option<&[u8]>| text.is_some_and(|text| !text.is_empty());
    let (has_session, has_uid) = match (text("sid"), text("uid")) {
        (Ok(sid), Ok(uid)) => (is_there(sid), is_there(uid)),
        // It makes no document, and is kept as it came.
        _ => {
            event.session = Some(session.clone());
            return event;
        }
    };
    if has_session {
        return event;
    }
    event.body = member::with_text(&event.body, "sid", session.as_bytes());
    // A header's id that is no uid is a hash of what was recorded, without the session.
    if !has_uid {
        event.session = Some(session.clone());
    }
    event
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::*;
    use crate::demo::events::{Id, encode};

    #[test]
    fn an_event_gets_its_session_and_its_id_stays_that_of_the_audit_log() {
        let session: Arc<str> = "6f1e".into();
        let time = "2026-01-02T03:04:05Z";
        let with_sid = json!({"event": "session.start", "time": time, "sid": "other", "uid": "u"});
        let hashed = json!({"event": "session.command", "time": time, "sid": "6f1e"});
        for event in [&with_sid, &hashed] {
            let event = encode(event, Id::OfEvent);
            assert_eq!(own(event.clone(), &session), event);
        }
        let with_uid = json!({"event": "resize", "time": time, "uid": "u"});
        let nameless = json!({"event": "print", "time": time});
        for (event, is_hash) in [(with_uid, false), (nameless, true)] {
            let mut whole = event.clone();
            whole["sid"] = "6f1e".into();
            let found = own(encode(&event, Id::OfEvent), &session);
            assert_eq!(
                member::text(&found.body, "sid").unwrap(),
                Some(&b"6f1e"[..])
            );
            assert_eq!(found.session.is_some(), is_hash);
            assert_eq!(found.id, encode(&event, Id::OfEvent).id);
        }
        let broken = AuditEvent {
            body: Bytes::from_static(b"\x0a\x05"),
            ..AuditEvent::default()
        };
        let found = own(broken.clone(), &session);
        assert_eq!((found.body, found.session), (broken.body, Some(session)));
    }
}
