//! Finds the place within a search at which Teleport's event handler has stopped.
//!
//! It keeps the key of a page and the id of the last event of it that it has sent. Our position is a
//! time. So the second of that event is where we begin, and what has been sent of that second is
//! left out by its id: some servers sort by whole seconds only, so that what was sent may be later
//! than what was not.

use thiserror::Error;

use crate::checkpoint::SentEvent;
use crate::event::AuditEvent;
use crate::teleport::client::{CallError, Client, Query, Remedy};

/// What the event handler knows of its place. Times are milliseconds since 1970.
#[derive(Clone, Debug)]
pub struct LeftOff<'a> {
    /// The start of the window that it had come to.
    pub window_ms: i64,
    /// The key of the page; empty for the window's first.
    pub key: &'a str,
    /// The id of the last event that it has sent; empty if there is none.
    pub last_id: &'a str,
    /// The types that it asks for; all if empty.
    pub types: &'a [String],
    /// Teleport's namespace.
    pub namespace: &'a str,
}

/// Where to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Everything before this was sent; milliseconds since 1970.
    pub from_ms: i64,
    /// What was sent from there on.
    pub sent: Vec<SentEvent>,
}

/// Why the place was not found.
#[derive(Debug, Error)]
pub enum LocateError {
    /// A call has failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Teleport does not know it any more.
    #[error(
        "the place at which the event handler has stopped is not in Teleport's audit log: Teleport \
         does not take its cursor any more, and the last event that it has sent (id {last_id:?}) is \
         not among those since {window}; start without --import-state, with start-time set to where \
         the log is to be read from"
    )]
    Gone {
        /// The event's id.
        last_id: String,
        /// The window's start.
        window: String,
    },
}

impl LocateError {
    /// Whether another attempt may find it.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Call(failed) => failed.remedy() == Remedy::Retry,
            Self::Gone { .. } => false,
        }
    }
}

/// The most that a server gives at once.
const PAGE: i32 = 10_000;

/// What was sent last, or what comes next.
enum Border {
    Behind(AuditEvent),
    Before(AuditEvent),
}

impl LeftOff<'_> {
    /// Asks Teleport, whose log goes up to `now_ms`.
    ///
    /// # Errors
    /// If a call fails, or Teleport does not know the place.
    pub async fn locate(&self, client: &Client, now_ms: i64) -> Result<Place, LocateError> {
        let nothing_sent = Place {
            from_ms: self.window_ms,
            sent: Vec::new(),
        };
        if self.key.is_empty() && self.last_id.is_empty() {
            return Ok(nothing_sent);
        }
        let whole = self.query(self.window_ms, now_ms);
        let is_last = |event: &AuditEvent| event.id == self.last_id.as_bytes();
        let page = match client.search(&whole, self.key).await {
            Ok(found) => found.events,
            // Its format changes with the server's version.
            Err(failed) if !self.key.is_empty() && failed.remedy() == Remedy::Invalid => Vec::new(),
            Err(failed) => return Err(failed.into()),
        };
        let mut last = page.iter().find(|event| is_last(event)).cloned();
        if last.is_none() && !self.last_id.is_empty() {
            last = self.find(client, &whole, is_last, |_| {}).await?;
        }
        let border = match (last, page.into_iter().next()) {
            (Some(last), _) => Border::Behind(last),
            // It has sent an earlier window's last, and nothing of this one.
            (None, _) if self.key.is_empty() => return Ok(nothing_sent),
            // As itself it would send this page from its start.
            (None, Some(first)) => Border::Before(first),
            (None, None) => return Err(self.gone()),
        };
        self.within_second(client, &border).await
    }

    /// What has been sent of the border's second.
    async fn within_second(&self, client: &Client, border: &Border) -> Result<Place, LocateError> {
        let (Border::Behind(event) | Border::Before(event)) = border;
        let time = event.time.ok_or_else(|| self.gone())?;
        let from_ms = time.seconds.saturating_mul(1000);
        let mut sent = Vec::new();
        let is_border = |found: &AuditEvent| name(found) == name(event);
        let note = |found: &AuditEvent| sent.push(name(found));
        let second = self.query(from_ms, from_ms + 999);
        let found = self.find(client, &second, is_border, note).await?;
        let found = found.ok_or_else(|| self.gone())?;
        if matches!(border, Border::Behind(_)) {
            sent.push(name(&found));
        }
        Ok(Place { from_ms, sent })
    }

    /// The first event that is wanted; those before it are passed to `note`.
    async fn find(
        &self,
        client: &Client,
        query: &Query<'_>,
        is_wanted: impl Fn(&AuditEvent) -> bool,
        mut note: impl FnMut(&AuditEvent),
    ) -> Result<Option<AuditEvent>, LocateError> {
        let mut key = String::new();
        loop {
            let found = client.search(query, &key).await?;
            for event in found.events {
                if is_wanted(&event) {
                    return Ok(Some(event));
                }
                note(&event);
            }
            if found.last_key.is_empty() || found.last_key == key {
                return Ok(None);
            }
            key = found.last_key;
        }
    }

    fn query(&self, from_ms: i64, to_ms: i64) -> Query<'_> {
        Query {
            namespace: self.namespace,
            from_ms,
            to_ms,
            types: self.types,
            limit: PAGE,
            newest_first: false,
        }
    }

    fn gone(&self) -> LocateError {
        let window = chrono::DateTime::from_timestamp_millis(self.window_ms);
        LocateError::Gone {
            last_id: self.last_id.to_owned(),
            window: window.unwrap_or_default().to_rfc3339(),
        }
    }
}

/// What tells an event from all others of its second.
pub(super) fn name(event: &AuditEvent) -> SentEvent {
    SentEvent {
        id: event.id.to_vec(),
        event_type: event.event_type.to_vec(),
        index: event.index,
    }
}
