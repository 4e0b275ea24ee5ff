//! What a comparison has seen: each event once, however often Teleport gives it, and those that
//! Elasticsearch did not have. It lies in a temporary file, so that neither ten million ids nor a
//! whole missing year need memory. It is no part of the state, and gone when dropped.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OpenFlags, params};
use thiserror::Error;

use crate::document::DocumentId;
use crate::event::DAY_MS;

/// What SQLite may hold in memory of it.
const CACHE_KIB: i64 = 8 * 1024;

const SCHEMA: &str = "
    CREATE TABLE seen (id BLOB PRIMARY KEY) STRICT, WITHOUT ROWID;
    CREATE TABLE missing (
        number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, index_name TEXT NOT NULL,
        event_type TEXT NOT NULL
    ) STRICT;
";

/// An event of Teleport's, and whether its document was found.
#[derive(Clone, Copy, Debug)]
pub struct Sighting<'a> {
    /// The document's id.
    pub id: DocumentId,
    /// The index it belongs to.
    pub index_name: &'a str,
    /// The event's type.
    pub event_type: &'a str,
    /// Whether the index has it.
    pub is_found: bool,
}

/// A document that was not found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingDocument {
    /// Its number, by which the next page begins.
    pub number: i64,
    /// Its id.
    pub id: DocumentId,
    /// The index it belongs to.
    pub index_name: String,
    /// The event's type.
    pub event_type: String,
}

/// Events by day (days since 1970, UTC) and type.
pub type ByDayAndType = BTreeMap<(i64, String), u64>;

/// The day of a time in milliseconds since 1970, as [`ByDayAndType`] counts it.
pub fn day_of(time_ms: i64) -> i64 {
    time_ms.div_euclid(DAY_MS)
}

/// The temporary file cannot be used.
#[derive(Debug, Error)]
#[error("cannot keep what was compared in a temporary file")]
pub struct TallyError(#[from] rusqlite::Error);

impl TallyError {
    /// What somebody should do.
    pub fn mend(&self) -> &'static str {
        "make room in the directory for temporary files, or name another one in TMPDIR: it takes \
         about 35 bytes an event"
    }
}

/// The tally of one comparison.
#[derive(Debug)]
pub struct Tally(Mutex<State>);

#[derive(Debug)]
struct State {
    connection: Connection,
    events: ByDayAndType,
}

impl Tally {
    /// An empty one.
    ///
    /// # Errors
    /// If SQLite does not work at all.
    pub fn new() -> Result<Self, TallyError> {
        // A file without a name is temporary, and is made only once the cache is full.
        let connection = Connection::open_with_flags("", OpenFlags::default())?;
        connection.pragma_update(None, "journal_mode", "OFF")?;
        connection.pragma_update(None, "synchronous", "OFF")?;
        connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
        connection.execute_batch(SCHEMA)?;
        Ok(Self(Mutex::new(State {
            connection,
            events: BTreeMap::new(),
        })))
    }

    /// Takes events down. One that comes again counts once.
    ///
    /// # Errors
    /// If the temporary file cannot be written.
    pub fn record(&self, sightings: &mut [Sighting<'_>]) -> Result<(), TallyError> {
        // In order, neighbours lie in the same page of the file.
        sightings.sort_unstable_by_key(|sighting| sighting.id.to_bytes());
        let mut state = self.state();
        let State { connection, events } = &mut *state;
        let transaction = connection.transaction()?;
        {
            let mut see = transaction
                .prepare_cached("INSERT INTO seen VALUES (?1) ON CONFLICT DO NOTHING")?;
            let mut miss = transaction.prepare_cached(
                "INSERT INTO missing (id, index_name, event_type) VALUES (?1, ?2, ?3)
                 ON CONFLICT DO NOTHING",
            )?;
            for Sighting {
                id,
                index_name,
                event_type,
                is_found,
            } in sightings.iter()
            {
                if see.execute([id.to_bytes()])? == 1 {
                    let key = (day_of(id.time_ms()), (*event_type).to_owned());
                    *events.entry(key).or_default() += 1;
                }
                if !is_found {
                    miss.execute(params![id.as_str(), index_name, event_type])?;
                }
            }
        }
        Ok(transaction.commit()?)
    }

    /// How many events there were.
    pub fn events(&self) -> ByDayAndType {
        self.state().events.clone()
    }

    /// Documents that were not found, those after a number first, at most so many.
    ///
    /// # Errors
    /// If the temporary file cannot be read.
    pub fn missing_after(
        &self,
        number: i64,
        limit: u32,
    ) -> Result<Vec<MissingDocument>, TallyError> {
        let state = self.state();
        let mut statement = state.connection.prepare_cached(
            "SELECT number, id, index_name, event_type FROM missing WHERE number > ?1
             ORDER BY number LIMIT ?2",
        )?;
        let rows = statement.query_map(params![number, limit], |row| {
            let id: String = row.get("id")?;
            Ok(MissingDocument {
                number: row.get("number")?,
                id: id.parse().expect("only ids were put there"),
                index_name: row.get("index_name")?,
                event_type: row.get("event_type")?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_counts_once_however_often_it_comes() {
        let tally = Tally::new().unwrap();
        let sighting = |n: u8, time_ms, event_type, is_found| Sighting {
            id: DocumentId::of_own(time_ms, &[&[n]]),
            index_name: "i",
            event_type,
            is_found,
        };
        let mut first = [
            sighting(1, 0, "a", true),
            sighting(2, DAY_MS - 1, "a", false),
            sighting(3, DAY_MS, "a", true),
        ];
        let missing = first[1].id;
        tally.record(&mut first).unwrap();
        let mut again = [
            sighting(2, DAY_MS - 1, "a", false),
            sighting(4, DAY_MS, "b", true),
            sighting(1, 0, "a", true),
        ];
        tally.record(&mut again).unwrap();
        let expected = [((0, "a"), 2), ((1, "a"), 1), ((1, "b"), 1)];
        let expected = expected.map(|((day, kind), n)| ((day, kind.to_owned()), n));
        assert_eq!(tally.events(), ByDayAndType::from(expected));
        let page = tally.missing_after(0, 10).unwrap();
        assert_eq!(page.len(), 1);
        assert_eq!((page[0].id, page[0].event_type.as_str()), (missing, "a"));
        assert!(tally.missing_after(page[0].number, 10).unwrap().is_empty());
    }
}
