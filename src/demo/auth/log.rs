//! The stand-in's audit log: events in immutable chunks by UTC day, and all of them by time.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, NaiveDate, Utc};
use tonic::Code;

use super::script::Unreadable;
use crate::demo::events::Random;
use crate::event::{AuditEvent, Timestamp};
use crate::teleport::proto::auditlog as proto;

/// The most bytes of events in a page of a search, as Teleport has it.
const PAGE_BYTES: usize = 1 << 20;

/// Events of one day. Its texts and bodies share one allocation.
pub(super) struct Chunk {
    pub(super) id: String,
    date: NaiveDate,
    pub(super) events: Vec<proto::EventUnstructured>,
}

/// Where an event is, in the order of a search: by time, then in the order of arrival.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    time: Timestamp,
    chunk: u32,
    event: u32,
}

#[derive(Default)]
pub(super) struct Log {
    chunks: Vec<Arc<Chunk>>,
    days: BTreeMap<NaiveDate, Vec<Arc<Chunk>>>,
    places: Vec<Place>,
    whole_seconds: bool,
}

/// What a search asks for; both ends inclusive.
pub(super) struct Query<'a> {
    pub(super) from: Timestamp,
    pub(super) to: Timestamp,
    pub(super) types: &'a [String],
    pub(super) limit: usize,
    pub(super) start_key: &'a str,
    pub(super) ascending: bool,
    /// Events with larger bodies cannot be sent.
    pub(super) unreadable: Option<(usize, Unreadable)>,
}

/// The day a time belongs to. A missing time is the epoch, as protobuf reads it; one that no
/// calendar has is put there too.
pub(super) fn day(time: Option<Timestamp>) -> NaiveDate {
    let time = DateTime::<Utc>::from_timestamp(time.unwrap_or_default().seconds, 0);
    time.unwrap_or_default().date_naive()
}

/// Cuts events into chunks by day, at most `chunk_events` in each.
pub(super) fn chunks(
    events: impl IntoIterator<Item = AuditEvent>,
    chunk_events: usize,
) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    let mut open: BTreeMap<NaiveDate, Vec<AuditEvent>> = BTreeMap::new();
    for event in events {
        let date = day(event.time);
        let events = open.entry(date).or_default();
        events.push(event);
        if events.len() >= chunk_events.max(1) {
            chunks.push(chunk(date, std::mem::take(events)));
        }
    }
    for (date, events) in open {
        if !events.is_empty() {
            chunks.push(chunk(date, events));
        }
    }
    chunks
}

fn chunk(date: NaiveDate, events: Vec<AuditEvent>) -> Chunk {
    let parts = |event: &AuditEvent| {
        [
            event.event_type.clone(),
            event.id.clone(),
            event.body.clone(),
        ]
    };
    let length = events.iter().flat_map(parts).map(|part| part.len()).sum();
    let mut buffer = Vec::with_capacity(length);
    for part in events.iter().flat_map(parts) {
        buffer.extend_from_slice(&part);
    }
    let mut rest = Bytes::from(buffer);
    let events = events.iter().map(|event| proto::EventUnstructured {
        r#type: rest.split_to(event.event_type.len()),
        id: rest.split_to(event.id.len()),
        unstructured: rest.split_to(event.body.len()),
        ..wire(event)
    });
    Chunk {
        id: String::new(), // known once the chunk is in the log
        date,
        events: events.collect(),
    }
}

/// An event as it is sent, alone.
pub(super) fn wire(event: &AuditEvent) -> proto::EventUnstructured {
    proto::EventUnstructured {
        r#type: event.event_type.clone(),
        id: event.id.clone(),
        time: event.time.map(|time| proto::Timestamp {
            seconds: time.seconds,
            nanos: time.nanos,
        }),
        index: event.index,
        unstructured: event.body.clone(),
    }
}

impl Log {
    pub(super) fn new(whole_seconds: bool) -> Self {
        Self {
            whole_seconds,
            ..Self::default()
        }
    }

    /// The time by which a search finds an event.
    fn time(&self, event: &proto::EventUnstructured) -> Timestamp {
        let time = event.time.unwrap_or_default();
        Timestamp {
            seconds: time.seconds,
            nanos: if self.whole_seconds { 0 } else { time.nanos },
        }
    }

    pub(super) fn add(&mut self, chunks: Vec<Chunk>) {
        for mut chunk in chunks {
            let number = u32::try_from(self.chunks.len()).expect("far fewer than 2^32 chunks");
            chunk.id = Random::new(u64::from(number)).uuid();
            for (event, n) in chunk.events.iter().zip(0..) {
                self.places.push(Place {
                    time: self.time(event),
                    chunk: number,
                    event: n,
                });
            }
            let chunk = Arc::new(chunk);
            self.days
                .entry(chunk.date)
                .or_default()
                .push(Arc::clone(&chunk));
            self.chunks.push(chunk);
        }
        // Mostly in order already, which this sort is quick to find out.
        self.places.sort();
    }

    pub(super) fn n_events(&self) -> usize {
        self.places.len()
    }

    /// The ids of a day's chunks, in an order that changes whenever there are more of them.
    pub(super) fn chunk_ids(&self, date: NaiveDate) -> Vec<String> {
        let chunks = self.days.get(&date).map_or(&[][..], Vec::as_slice);
        let mut ids: Vec<String> = chunks.iter().map(|chunk| chunk.id.clone()).collect();
        let mut random = Random::new(ids.len() as u64);
        for last in (1..ids.len()).rev() {
            let other = random.below(last as u64 + 1);
            ids.swap(last, usize::try_from(other).expect("an index of the ids"));
        }
        ids
    }

    pub(super) fn chunk(&self, date: NaiveDate, id: &str) -> Option<Arc<Chunk>> {
        let chunk = self.days.get(&date)?.iter().find(|chunk| chunk.id == id);
        chunk.cloned()
    }

    /// A page, or the code with which the call fails.
    pub(super) fn search(&self, query: &Query<'_>) -> Result<proto::EventsUnstructured, Code> {
        let mut page = proto::EventsUnstructured::default();
        let mut from = query.from;
        if self.whole_seconds {
            from.nanos = 0;
        }
        let mut low = self.places.partition_point(|place| place.time < from);
        let mut high = self.places.partition_point(|place| place.time <= query.to);
        if !query.start_key.is_empty() {
            // As the file log: what is not found is looked for until the range ends.
            let Some(place) = self
                .find(query.start_key)
                .filter(|place| (low..high).contains(place))
            else {
                return Ok(page);
            };
            if query.ascending {
                low = place + 1;
            } else {
                high = place;
            }
        }
        let places = &self.places[low..high];
        let mut matching = (0..places.len())
            .map(|n| {
                places[if query.ascending {
                    n
                } else {
                    places.len() - 1 - n
                }]
            })
            .map(|place| {
                (
                    place,
                    &self.chunks[place.chunk as usize].events[place.event as usize],
                )
            })
            .filter(|(_, event)| {
                let wanted = |name: &String| event.r#type == name.as_bytes();
                query.types.is_empty() || query.types.iter().any(wanted)
            });
        let mut bytes = 0;
        let mut last = None;
        // An event more than fits is looked at, since only one more makes the last key.
        for (place, event) in matching.by_ref() {
            let size = event.unstructured.len();
            match query.unreadable {
                Some((most, Unreadable::Hidden)) if size > most => break,
                Some((most, Unreadable::Refused(code)))
                    if size > most && page.items.len() < query.limit =>
                {
                    return Err(code);
                }
                _ => {}
            }
            let full = page.items.len() >= query.limit || bytes + size > PAGE_BYTES;
            if let (true, Some(last)) = (full, last) {
                page.last_key = key(last);
                break;
            }
            bytes += size;
            page.items.push(event.clone());
            last = Some(place);
        }
        Ok(page)
    }

    fn find(&self, start_key: &str) -> Option<usize> {
        let (chunk, event) = start_key.strip_prefix("k1:")?.split_once('-')?;
        let (chunk, event): (u32, u32) = (chunk.parse().ok()?, event.parse().ok()?);
        let found = self
            .chunks
            .get(chunk as usize)?
            .events
            .get(event as usize)?;
        let place = Place {
            time: self.time(found),
            chunk,
            event,
        };
        self.places.binary_search(&place).ok()
    }
}

fn key(place: Place) -> String {
    format!("k1:{}-{}", place.chunk, place.event)
}
