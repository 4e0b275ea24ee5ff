//! Choosing dead letters: to look at them, to send them again, to drop them.

use rusqlite::types::Value;
use rusqlite::{Row, Transaction, params_from_iter};

use super::super::{Checkpoint, CheckpointError, RunId, gap, unsigned};
use super::{DeadLetter, DeadLetterEntry};

/// Which dead letters are meant; all by default. What is given must all be true of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadLetterFilter {
    /// One of these document ids; any if empty.
    pub ids: Vec<String>,
    /// The event's type.
    pub event_type: Option<String>,
    /// Elasticsearch's error type, or a code of ours.
    pub error_type: Option<String>,
    /// The event's time at or after this; milliseconds since 1970.
    pub from_ms: Option<i64>,
    /// The event's time before this; milliseconds since 1970.
    pub to_ms: Option<i64>,
}

impl DeadLetterFilter {
    /// A condition on a row, and its parameters.
    fn condition(&self) -> (String, Vec<Value>) {
        let mut condition = "TRUE".to_owned();
        let mut parameters: Vec<Value> = Vec::new();
        let mut and = |sql: &str, values: Vec<Value>| {
            condition.push_str(" AND ");
            condition.push_str(sql);
            parameters.extend(values);
        };
        if !self.ids.is_empty() {
            let places = vec!["?"; self.ids.len()].join(", ");
            let ids = self.ids.iter().cloned().map(Value::Text).collect();
            and(&format!("document_id IN ({places})"), ids);
        }
        if let Some(text) = &self.event_type {
            and("event_type = ?", vec![text.clone().into()]);
        }
        if let Some(text) = &self.error_type {
            and("error_type = ?", vec![text.clone().into()]);
        }
        if let Some(from_ms) = self.from_ms {
            and("time_ms >= ?", vec![from_ms.into()]);
        }
        if let Some(to_ms) = self.to_ms {
            and("time_ms < ?", vec![to_ms.into()]);
        }
        (condition, parameters)
    }
}

/// What dropping dead letters came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// How many there were.
    pub letters: u64,
    /// How many gaps that told of their events are closed by it.
    pub gaps: u64,
}

/// Dead letters in the order in which they came, as far as was asked for.
#[derive(Clone, Debug, Default)]
pub struct DeadLetterPage {
    /// Each with the run that it is of.
    pub letters: Vec<(RunId, DeadLetter)>,
    /// Where the next page begins; `None` if this was the last one.
    pub next: Option<PagePlace>,
}

/// A place between two dead letters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PagePlace(i64);

impl Checkpoint {
    /// The newest dead letters that `filter` chooses, at most `limit` of them.
    ///
    /// # Errors
    /// If the state file cannot be read.
    pub fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        limit: u32,
    ) -> Result<Vec<DeadLetterEntry>, CheckpointError> {
        let (condition, mut parameters) = filter.condition();
        parameters.push(i64::from(limit).into());
        self.read("list the dead letters", |transaction| {
            let entries = transaction
                .prepare(&format!(
                    "SELECT document_id, index_name, event_type, time_ms, status, error_type,
                         reason, first_seen_ms, bytes
                     FROM dead_letters WHERE {condition}
                     ORDER BY first_seen_ms DESC, rowid DESC LIMIT ?"
                ))?
                .query_map(params_from_iter(parameters), |row| {
                    Ok(DeadLetterEntry {
                        document_id: row.get("document_id")?,
                        index_name: row.get("index_name")?,
                        event_type: row.get("event_type")?,
                        time_ms: row.get("time_ms")?,
                        status: row.get("status")?,
                        error_type: row.get("error_type")?,
                        reason: row.get("reason")?,
                        first_seen_ms: row.get("first_seen_ms")?,
                        bytes: row.get("bytes").map(unsigned)?,
                    })
                })?
                .collect::<Result<_, _>>()?;
            Ok(entries)
        })
    }

    /// How many dead letters `filter` chooses.
    ///
    /// # Errors
    /// If the state file cannot be read.
    pub fn count_dead_letters(&self, filter: &DeadLetterFilter) -> Result<u64, CheckpointError> {
        let (condition, parameters) = filter.condition();
        self.read("count the dead letters", |transaction| {
            let query = format!("SELECT count(*) FROM dead_letters WHERE {condition}");
            let parameters = params_from_iter(parameters);
            Ok(transaction.query_row(&query, parameters, |row| row.get(0).map(unsigned))?)
        })
    }

    /// Dead letters that `filter` chooses, whole, from a place on: until there are none left, or
    /// so many bytes. One at least, if there is one.
    ///
    /// # Errors
    /// If the state file cannot be read.
    pub fn dead_letter_page(
        &self,
        filter: &DeadLetterFilter,
        from: PagePlace,
        most_bytes: u64,
    ) -> Result<DeadLetterPage, CheckpointError> {
        let (condition, mut parameters) = filter.condition();
        parameters.push(from.0.into());
        self.read("read the dead letters", |transaction| {
            let mut statement = transaction.prepare(&format!(
                "SELECT rowid, * FROM dead_letters WHERE {condition} AND rowid > ? ORDER BY rowid"
            ))?;
            let mut rows = statement.query(params_from_iter(parameters))?;
            let mut page = DeadLetterPage::default();
            let (mut place, mut bytes) = (from, 0);
            while let Some(row) = rows.next()? {
                let letter = read(row)?;
                bytes += letter.bytes();
                if bytes > most_bytes && !page.letters.is_empty() {
                    page.next = Some(place);
                    break;
                }
                place = PagePlace(row.get("rowid")?);
                page.letters.push((RunId(row.get("run_id")?), letter));
            }
            Ok(page)
        })
    }

    /// The dead letter of a document for an index, whole.
    ///
    /// # Errors
    /// If the state file cannot be read.
    pub fn dead_letter(
        &self,
        id: &str,
        index_name: &str,
    ) -> Result<Option<DeadLetter>, CheckpointError> {
        self.read("read a dead letter", |transaction| {
            let mut statement = transaction.prepare_cached(
                "SELECT * FROM dead_letters WHERE document_id = ?1 AND index_name = ?2",
            )?;
            let mut rows = statement.query((id, index_name))?;
            Ok(rows.next()?.map(read).transpose()?)
        })
    }

    /// Drops dead letters that `filter` chooses, and closes the gaps that tell of their events.
    ///
    /// # Errors
    /// If the state file cannot be changed; none was dropped then.
    pub fn drop_dead_letters(&self, filter: &DeadLetterFilter) -> Result<Dropped, CheckpointError> {
        let (condition, parameters) = filter.condition();
        self.write("drop dead letters", |transaction| {
            let sql = format!("DELETE FROM dead_letters WHERE {condition} RETURNING document_id");
            let ids: Vec<String> = transaction
                .prepare(&sql)?
                .query_map(params_from_iter(parameters), |row| row.get(0))?
                .collect::<Result<_, _>>()?;
            let mut dropped = Dropped {
                letters: ids.len() as u64,
                gaps: 0,
            };
            for id in ids {
                dropped.gaps += gap::close_of_dead_letter(transaction, &id)? as u64;
            }
            Ok(dropped)
        })
    }

    /// Drops dead letters by id and index, as documents with their ids are there. Those that were too
    /// large stay: what is there is their safe form without their text.
    ///
    /// # Errors
    /// If the state file cannot be changed; none was dropped then.
    pub fn settle_dead_letters<'a>(
        &self,
        keys: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<(), CheckpointError> {
        self.write("drop dead letters that have settled", |transaction| {
            for (id, index_name) in keys {
                settle(transaction, id, index_name, false)?;
            }
            Ok(())
        })
    }

    /// Drops a dead letter by id and index, as it was stored as it is, and closes the gaps that tell
    /// of its event.
    ///
    /// # Errors
    /// If the state file cannot be changed.
    pub fn settle_whole(&self, id: &str, index_name: &str) -> Result<(), CheckpointError> {
        self.write("drop a dead letter that was stored", |transaction| {
            settle(transaction, id, index_name, true)?;
            gap::close_of_dead_letter(transaction, id)?;
            Ok(())
        })
    }
}

fn settle(
    transaction: &Transaction<'_>,
    id: &str,
    index_name: &str,
    is_whole: bool,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "DELETE FROM dead_letters WHERE document_id = ?1 AND index_name = ?2
                 AND (?3 OR ifnull(status, 0) NOT IN (413, 429))",
        )?
        .execute((id, index_name, is_whole))
        .map(drop)
}

fn read(row: &Row<'_>) -> rusqlite::Result<DeadLetter> {
    Ok(DeadLetter {
        document_id: row.get("document_id")?,
        index_name: row.get("index_name")?,
        event_type: row.get("event_type")?,
        time_ms: row.get("time_ms")?,
        document: row.get("document")?,
        form: row.get("form")?,
        status: row.get("status")?,
        error_type: row.get("error_type")?,
        reason: row.get("reason")?,
        first_seen_ms: row.get("first_seen_ms")?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::DocumentForm;
    use super::*;

    fn letter(id: &str, event_type: &str, time_ms: Option<i64>, error_type: &str) -> DeadLetter {
        DeadLetter {
            document_id: id.to_owned(),
            index_name: "i".to_owned(),
            event_type: event_type.to_owned(),
            time_ms,
            document: vec![b'x'; 100],
            form: DocumentForm::Json,
            status: None,
            error_type: error_type.to_owned(),
            reason: String::new(),
            first_seen_ms: 0,
        }
    }

    #[test]
    fn a_filter_chooses_by_all_that_it_says() {
        let checkpoint = Checkpoint::open_in_memory().unwrap();
        let run = checkpoint.daemon_run("c", || 0).unwrap().0.id;
        let letters = [
            letter("a", "x", Some(10), "e"),
            letter("b", "x", Some(20), "f"),
            letter("c", "y", Some(30), "e"),
            letter("d", "x", None, "e"),
        ];
        checkpoint
            .insert_dead_letters(run, &letters, u64::MAX)
            .unwrap();
        let none = DeadLetterFilter::default();
        let text = |text: &str| Some(text.to_owned());
        let filters = [
            (none.clone(), "abcd"),
            (
                DeadLetterFilter {
                    ids: vec!["c".into(), "a".into(), "z".into()],
                    ..none.clone()
                },
                "ac",
            ),
            (
                DeadLetterFilter {
                    event_type: text("x"),
                    error_type: text("e"),
                    ..none.clone()
                },
                "ad",
            ),
            (
                DeadLetterFilter {
                    from_ms: Some(10),
                    to_ms: Some(30),
                    ..none.clone()
                },
                "ab",
            ),
        ];
        for (filter, expected) in &filters {
            let mut listed: Vec<_> = checkpoint
                .dead_letters(filter, 9)
                .unwrap()
                .into_iter()
                .map(|entry| entry.document_id)
                .collect();
            listed.reverse();
            assert_eq!(listed.concat(), *expected);
            let count = checkpoint.count_dead_letters(filter).unwrap();
            assert_eq!(count, expected.len() as u64);

            // Of 100 bytes and some more each, so one at a time, and then two.
            for most_bytes in [0, 250] {
                let (mut ids, mut place) = (String::new(), Some(PagePlace::default()));
                while let Some(from) = place {
                    let page = checkpoint
                        .dead_letter_page(filter, from, most_bytes)
                        .unwrap();
                    let most = if most_bytes == 0 { 1 } else { 2 };
                    assert!((1..=most).contains(&page.letters.len()));
                    ids.extend(page.letters.iter().map(|(_, letter)| &*letter.document_id));
                    place = page.next;
                }
                assert_eq!(ids, *expected);
            }
        }
        let dropped = checkpoint.drop_dead_letters(&filters[2].0).unwrap();
        assert_eq!((dropped.letters, dropped.gaps), (2, 0));
        let mut too_large = letter("e", "x", Some(40), "e");
        too_large.status = Some(413);
        checkpoint
            .insert_dead_letters(run, &[too_large], u64::MAX)
            .unwrap();
        checkpoint
            .settle_dead_letters([("b", "i"), ("c", "other"), ("e", "i")])
            .unwrap();
        let left = || checkpoint.dead_letters(&none, 9).unwrap().len();
        assert_eq!(left(), 2);
        checkpoint.settle_whole("e", "other").unwrap();
        assert_eq!(left(), 2);
        checkpoint.settle_whole("e", "i").unwrap();
        assert_eq!(left(), 1);
    }
}
