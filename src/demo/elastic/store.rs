//! Documents and assets in SQLite.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use rusqlite::types::Value as Sql;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params, params_from_iter};

use super::pattern::names;
use crate::demo::events::Random;
use crate::demo::lock::Lock;

/// A document that was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredDocument {
    /// The name of the index.
    pub index: String,
    /// The document's id.
    pub id: String,
    /// Its JSON as it was sent.
    pub source: String,
}

/// An index as the catalogue shows it.
#[derive(Clone, Debug)]
pub(super) struct Index {
    pub(super) name: String,
    pub(super) uuid: String,
    pub(super) n_documents: u64,
    pub(super) n_bytes: u64,
    number: i64,
}

/// An operation to carry out.
pub(super) struct Create<'a> {
    pub(super) index: &'a str,
    pub(super) id: &'a str,
    pub(super) source: &'a str,
    pub(super) time: Option<i64>,
}

/// A template or policy as it was given.
pub(super) struct Asset {
    pub(super) name: String,
    /// 1 at first, and one more with each replacement.
    pub(super) version: i64,
    /// JSON.
    pub(super) body: String,
}

/// A document found by a search.
pub(super) struct Hit {
    pub(super) document: StoredDocument,
    /// The values of the sort columns.
    pub(super) sort: Vec<Sql>,
}

/// What to sort by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Column {
    Id,
    Time,
    Arrival,
}

impl Column {
    /// Documents without a time come last, as if they were of the far future.
    fn sql(self) -> &'static str {
        match self {
            Self::Id => "d.id",
            Self::Time => "ifnull(d.time, 9223372036854775807)",
            Self::Arrival => "d.sequence",
        }
    }
}

/// Which documents a search wants, and in what order.
pub(super) struct Search {
    pub(super) size: u64,
    pub(super) from: u64,
    /// Columns and whether they ascend.
    pub(super) sort: Vec<(Column, bool)>,
    /// The sort values after which to go on; as many as columns, or none.
    pub(super) after: Vec<Sql>,
}

struct State {
    connection: Connection,
    indices: BTreeMap<String, Index>,
}

pub(super) struct Store(Lock<State>);

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS indices (
        number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE
    );
    CREATE TABLE IF NOT EXISTS documents (
        sequence INTEGER PRIMARY KEY, index_number INTEGER NOT NULL, id TEXT NOT NULL,
        time INTEGER, source TEXT NOT NULL
    );
    CREATE UNIQUE INDEX IF NOT EXISTS documents_by_id ON documents (index_number, id);
    CREATE TABLE IF NOT EXISTS assets (
        kind TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL, body TEXT NOT NULL,
        PRIMARY KEY (kind, name)
    );
";

impl Store {
    /// Opens `path`; an empty one is a temporary file that goes away with the store.
    pub(super) fn open(path: &Path) -> rusqlite::Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        // Speed before durability: a stand-in that loses the last moment with the machine's power
        // misleads nobody.
        connection.execute_batch(
            "PRAGMA page_size = 8192; PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;
             PRAGMA wal_autocheckpoint = 4000; PRAGMA cache_size = -32768;",
        )?;
        connection.execute_batch(SCHEMA)?;
        let indices = {
            let mut statement = connection.prepare(
                "SELECT i.number, i.name, count(d.sequence), ifnull(sum(length(d.source)), 0)
                 FROM indices i LEFT JOIN documents d ON d.index_number = i.number
                 GROUP BY i.number",
            )?;
            let rows = statement.query_map((), |row| {
                let name: String = row.get(1)?;
                let index = Index {
                    uuid: uuid(row.get(0)?),
                    name: name.clone(),
                    n_documents: row.get::<_, i64>(2)?.unsigned_abs(),
                    n_bytes: row.get::<_, i64>(3)?.unsigned_abs(),
                    number: row.get(0)?,
                };
                Ok((name, index))
            })?;
            rows.collect::<rusqlite::Result<_>>()?
        };
        Ok(Self(Lock::new(State {
            connection,
            indices,
        })))
    }

    /// Carries the operations out in one transaction; says for each whether the document is new.
    pub(super) fn create(&self, operations: &[Create<'_>]) -> rusqlite::Result<Vec<bool>> {
        let mut state = self.0.lock();
        let State {
            connection,
            indices,
        } = &mut *state;
        let mut touched = indices.clone();
        let transaction = connection.transaction()?;
        let mut created = Vec::with_capacity(operations.len());
        {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO documents (index_number, id, time, source) VALUES (?, ?, ?, ?)
                 ON CONFLICT DO NOTHING",
            )?;
            for operation in operations {
                if !touched.contains_key(operation.index) {
                    transaction
                        .execute("INSERT INTO indices (name) VALUES (?)", [operation.index])?;
                    let number = transaction.last_insert_rowid();
                    let index = Index {
                        name: operation.index.to_owned(),
                        uuid: uuid(number),
                        n_documents: 0,
                        n_bytes: 0,
                        number,
                    };
                    touched.insert(index.name.clone(), index);
                }
                let index = touched
                    .get_mut(operation.index)
                    .expect("it was just put there");
                let Create {
                    id, time, source, ..
                } = operation;
                let is_new = insert.execute(params![index.number, id, time, source])? == 1;
                if is_new {
                    index.n_documents += 1;
                    index.n_bytes += source.len() as u64;
                }
                created.push(is_new);
            }
        }
        transaction.commit()?;
        *indices = touched;
        Ok(created)
    }

    /// The indices that a list of patterns names.
    pub(super) fn indices(&self, list: &str) -> Vec<Index> {
        let state = self.0.lock();
        let named = state
            .indices
            .values()
            .filter(|index| names(list, &index.name));
        named.cloned().collect()
    }

    /// How many documents these indices hold; `None` if one is named in full that there is not.
    pub(super) fn count(&self, list: &str) -> Option<u64> {
        if self.missing(list).is_some() {
            return None;
        }
        Some(
            self.indices(list)
                .iter()
                .map(|index| index.n_documents)
                .sum(),
        )
    }

    /// Deletes documents, as somebody may do by hand; how many there were.
    pub(super) fn delete(&self, ids: &[(String, String)]) -> rusqlite::Result<u64> {
        let mut state = self.0.lock();
        let State {
            connection,
            indices,
        } = &mut *state;
        let transaction = connection.transaction()?;
        let mut deleted = 0;
        for (name, id) in ids {
            let Some(index) = indices.get_mut(name) else {
                continue;
            };
            let bytes: Option<i64> = transaction
                .prepare_cached(
                    "DELETE FROM documents WHERE index_number = ? AND id = ?
                     RETURNING length(source)",
                )?
                .query_row(params![index.number, id], |row| row.get(0))
                .optional()?;
            if let Some(bytes) = bytes {
                index.n_documents -= 1;
                index.n_bytes -= bytes.unsigned_abs();
                deleted += 1;
            }
        }
        transaction.commit()?;
        Ok(deleted)
    }

    /// The first name in the list that has no `*` and is no index.
    pub(super) fn missing<'l>(&self, list: &'l str) -> Option<&'l str> {
        let state = self.0.lock();
        list.split(',').find(|name| {
            !name.contains('*') && *name != "_all" && !state.indices.contains_key(*name)
        })
    }

    pub(super) fn get(&self, index: &str, id: &str) -> rusqlite::Result<Option<StoredDocument>> {
        let state = self.0.lock();
        let Some(found) = state.indices.get(index) else {
            return Ok(None);
        };
        let mut statement = state
            .connection
            .prepare_cached("SELECT source FROM documents WHERE index_number = ? AND id = ?")?;
        let source = statement.query_row(params![found.number, id], |row| row.get(0));
        let source: Option<String> = source.optional()?;
        Ok(source.map(|source| StoredDocument {
            index: index.to_owned(),
            id: id.to_owned(),
            source,
        }))
    }

    /// All documents, oldest arrival first.
    pub(super) fn documents(&self) -> rusqlite::Result<Vec<StoredDocument>> {
        let everything = Search {
            size: u64::from(u32::MAX),
            from: 0,
            sort: vec![(Column::Arrival, true)],
            after: Vec::new(),
        };
        let hits = self.search("*", &everything)?;
        Ok(hits.into_iter().map(|hit| hit.document).collect())
    }

    pub(super) fn search(&self, list: &str, search: &Search) -> rusqlite::Result<Vec<Hit>> {
        let numbers: Vec<String> = self
            .indices(list)
            .iter()
            .map(|index| index.number.to_string())
            .collect();
        // (a, b) comes after (x, y) if a is after x, or is x and b is after y.
        let mut after = Vec::new();
        let mut values = Vec::new();
        for (last, (column, ascends)) in search.sort.iter().enumerate().take(search.after.len()) {
            let mut all: Vec<String> = search.sort[..last]
                .iter()
                .map(|(column, _)| format!("{} = ?", column.sql()))
                .collect();
            let comparison = if *ascends { ">" } else { "<" };
            all.push(format!("{} {comparison} ?", column.sql()));
            after.push(format!("({})", all.join(" AND ")));
            values.extend_from_slice(&search.after[..=last]);
        }
        let condition = if after.is_empty() {
            String::new()
        } else {
            format!("AND ({})", after.join(" OR "))
        };
        let columns: String = search
            .sort
            .iter()
            .map(|(column, _)| format!(", {}", column.sql()))
            .collect();
        let order: Vec<String> = search
            .sort
            .iter()
            .map(|(column, ascends)| {
                format!("{} {}", column.sql(), if *ascends { "ASC" } else { "DESC" })
            })
            .collect();
        let sql = format!(
            "SELECT i.name, d.id, d.source{columns}
             FROM documents d JOIN indices i ON i.number = d.index_number
             WHERE d.index_number IN ({}) {condition}
             ORDER BY {} LIMIT {} OFFSET {}",
            numbers.join(","),
            order.join(", "),
            search.size,
            search.from,
        );
        let state = self.0.lock();
        let mut statement = state.connection.prepare(&sql)?;
        let n_columns = search.sort.len();
        let rows = statement.query_map(params_from_iter(values), |row| {
            Ok(Hit {
                document: StoredDocument {
                    index: row.get(0)?,
                    id: row.get(1)?,
                    source: row.get(2)?,
                },
                sort: (3..3 + n_columns)
                    .map(|n| row.get(n))
                    .collect::<Result<_, _>>()?,
            })
        })?;
        rows.collect()
    }

    /// Keeps a template or policy; a second one of its name replaces the first and has the next
    /// version.
    pub(super) fn put_asset(&self, kind: &str, name: &str, body: &str) -> rusqlite::Result<()> {
        let state = self.0.lock();
        state.connection.execute(
            "INSERT INTO assets (kind, name, version, body) VALUES (?, ?, 1, ?)
             ON CONFLICT DO UPDATE SET version = version + 1, body = excluded.body",
            [kind, name, body],
        )?;
        Ok(())
    }

    /// The assets that a list of patterns names, by name.
    pub(super) fn assets(&self, kind: &str, list: &str) -> rusqlite::Result<Vec<Asset>> {
        let state = self.0.lock();
        let mut statement = state.connection.prepare_cached(
            "SELECT name, version, body FROM assets WHERE kind = ? ORDER BY name",
        )?;
        let rows = statement.query_map([kind], |row| {
            Ok(Asset {
                name: row.get(0)?,
                version: row.get(1)?,
                body: row.get(2)?,
            })
        })?;
        let mut assets: Vec<Asset> = rows.collect::<Result<_, _>>()?;
        assets.retain(|asset| names(list, &asset.name));
        Ok(assets)
    }
}

/// An index's own id, of Elasticsearch's length.
fn uuid(number: i64) -> String {
    Random::new(number.unsigned_abs()).hex(22)
}
