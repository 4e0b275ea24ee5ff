//! The tables of the state file, and how a file comes to have them.

use rusqlite::{Connection, Transaction, TransactionBehavior};

/// Says whose database it is, in the file's header: "TEIX".
const APPLICATION_ID: i64 = 0x5445_4958;

/// One entry per format; entry *n* turns format *n* into *n* + 1. Entries that were released are
/// never changed.
pub(super) const MIGRATIONS: &[&str] = &[
    FORMAT_1, FORMAT_2, FORMAT_3, FORMAT_4, FORMAT_5, FORMAT_6, FORMAT_7, FORMAT_8,
];

/// What a file is, by its header.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// No table in it: a file that was just created.
    Empty,
    /// Ours, with this format.
    Ours(i64),
    /// A database of another program.
    Foreign,
}

/// Times are milliseconds since 1970, days are counted from 1970-01-01.
///
/// `windows`, `days` and `chunks` have their whole row as key or nearly so; they are kept without
/// row ids. The body of a dead letter is its last column, so that reading the others does not
/// read it.
const FORMAT_1: &str = "
CREATE TABLE state (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    cluster TEXT,
    dead_letters INTEGER NOT NULL DEFAULT 0,
    dead_letter_bytes INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO state (id) VALUES (1);

CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('daemon', 'backfill')),
    from_ms INTEGER NOT NULL,
    to_ms INTEGER CHECK ((to_ms IS NULL) = (kind = 'daemon')),
    filters TEXT NOT NULL,
    mode TEXT CHECK (mode IN ('search', 'export')),
    position_ms INTEGER NOT NULL,
    finished INTEGER NOT NULL DEFAULT 0 CHECK (finished IN (0, 1)),
    events INTEGER NOT NULL DEFAULT 0,
    created INTEGER NOT NULL DEFAULT 0,
    already_there INTEGER NOT NULL DEFAULT 0,
    dead_letters INTEGER NOT NULL DEFAULT 0,
    filtered INTEGER NOT NULL DEFAULT 0,
    document_bytes INTEGER NOT NULL DEFAULT 0,
    updated_ms INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX runs_daemon ON runs (kind) WHERE kind = 'daemon';
CREATE UNIQUE INDEX runs_backfill ON runs (from_ms, to_ms, filters) WHERE kind = 'backfill';

CREATE TABLE windows (
    run_id INTEGER NOT NULL REFERENCES runs (id),
    from_ms INTEGER NOT NULL,
    to_ms INTEGER NOT NULL,
    reached_ms INTEGER NOT NULL,
    PRIMARY KEY (run_id, from_ms, to_ms),
    CONSTRAINT reached_lies_in_window CHECK (from_ms <= reached_ms AND reached_ms <= to_ms)
) STRICT, WITHOUT ROWID;

CREATE TABLE days (
    run_id INTEGER NOT NULL REFERENCES runs (id),
    day INTEGER NOT NULL,
    listed_ms INTEGER NOT NULL,
    PRIMARY KEY (run_id, day)
) STRICT, WITHOUT ROWID;

CREATE TABLE chunks (
    run_id INTEGER NOT NULL REFERENCES runs (id),
    day INTEGER NOT NULL,
    name TEXT NOT NULL,
    cursor TEXT,
    done INTEGER NOT NULL DEFAULT 0 CHECK (done IN (0, 1)),
    PRIMARY KEY (run_id, day, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX chunks_open ON chunks (run_id, day) WHERE done = 0;

CREATE TABLE gaps (
    id INTEGER PRIMARY KEY,
    run_id INTEGER NOT NULL REFERENCES runs (id),
    reason TEXT NOT NULL,
    from_ms INTEGER NOT NULL,
    to_ms INTEGER NOT NULL,
    day INTEGER,
    chunk TEXT,
    detail TEXT NOT NULL,
    found_ms INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX gaps_identity
    ON gaps (run_id, reason, from_ms, to_ms, ifnull(day, ''), ifnull(chunk, ''));

CREATE TABLE dead_letters (
    document_id TEXT NOT NULL,
    index_name TEXT NOT NULL,
    run_id INTEGER NOT NULL REFERENCES runs (id),
    event_type TEXT NOT NULL,
    time_ms INTEGER,
    form TEXT NOT NULL CHECK (form IN ('json', 'protobuf')),
    status INTEGER,
    error_type TEXT NOT NULL,
    reason TEXT NOT NULL,
    first_seen_ms INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    document BLOB NOT NULL,
    PRIMARY KEY (document_id, index_name)
) STRICT;
CREATE INDEX dead_letters_by_error ON dead_letters (error_type);
CREATE INDEX dead_letters_by_age ON dead_letters (first_seen_ms);
CREATE TRIGGER dead_letter_added AFTER INSERT ON dead_letters BEGIN
    UPDATE state
    SET dead_letters = dead_letters + 1, dead_letter_bytes = dead_letter_bytes + new.bytes;
END;
CREATE TRIGGER dead_letter_changed AFTER UPDATE OF bytes ON dead_letters BEGIN
    UPDATE state SET dead_letter_bytes = dead_letter_bytes - old.bytes + new.bytes;
END;
CREATE TRIGGER dead_letter_dropped AFTER DELETE ON dead_letters BEGIN
    UPDATE state
    SET dead_letters = dead_letters - 1, dead_letter_bytes = dead_letter_bytes - old.bytes;
END;
";

/// Counts the documents in safe form; keeps those of blocked indices.
const FORMAT_2: &str = "
ALTER TABLE runs ADD COLUMN safe_form INTEGER NOT NULL DEFAULT 0;

ALTER TABLE state ADD COLUMN blocked INTEGER NOT NULL DEFAULT 0;
ALTER TABLE state ADD COLUMN blocked_bytes INTEGER NOT NULL DEFAULT 0;
CREATE TABLE blocked (
    id INTEGER PRIMARY KEY,
    run_id INTEGER NOT NULL REFERENCES runs (id),
    index_name TEXT NOT NULL,
    document_id TEXT NOT NULL,
    time_ms INTEGER NOT NULL,
    safe_form INTEGER NOT NULL CHECK (safe_form IN (0, 1)),
    bytes INTEGER NOT NULL,
    document BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX blocked_identity ON blocked (index_name, document_id);
CREATE INDEX blocked_by_index ON blocked (index_name, id);
CREATE TRIGGER blocked_added AFTER INSERT ON blocked BEGIN
    UPDATE state SET blocked = blocked + 1, blocked_bytes = blocked_bytes + new.bytes;
END;
CREATE TRIGGER blocked_dropped AFTER DELETE ON blocked BEGIN
    UPDATE state SET blocked = blocked - 1, blocked_bytes = blocked_bytes - old.bytes;
END;
";

/// Gaps are closed, and know of the one event that is missing if that was seen; runs know the newest
/// event that they have read.
const FORMAT_3: &str = "
ALTER TABLE gaps ADD COLUMN event_type TEXT;
ALTER TABLE gaps ADD COLUMN event_id TEXT;
ALTER TABLE gaps ADD COLUMN dead_letter TEXT;
ALTER TABLE gaps ADD COLUMN closed_ms INTEGER;
DROP INDEX gaps_identity;
CREATE UNIQUE INDEX gaps_identity ON gaps (
    run_id, reason, from_ms, to_ms, ifnull(day, ''), ifnull(chunk, ''), ifnull(dead_letter, ''));
ALTER TABLE runs ADD COLUMN newest_ms INTEGER;
";

/// Spans that runs have left out as too old, none of which touch one another.
const FORMAT_4: &str = "
CREATE TABLE left_out (
    run_id INTEGER NOT NULL REFERENCES runs (id),
    from_ms INTEGER NOT NULL,
    to_ms INTEGER NOT NULL,
    PRIMARY KEY (run_id, from_ms)
) STRICT, WITHOUT ROWID;
";

/// Keeps the session recordings that are to be read; gaps know of which session they are.
const FORMAT_5: &str = "
CREATE TABLE recordings (
    run_id INTEGER NOT NULL REFERENCES runs (id),
    session TEXT NOT NULL,
    upload_ms INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'pending'
        CHECK (state IN ('pending', 'read', 'missing', 'unreadable')),
    next_index INTEGER NOT NULL DEFAULT 0,
    readings INTEGER NOT NULL DEFAULT 0,
    failures INTEGER NOT NULL DEFAULT 0,
    due_ms INTEGER NOT NULL,
    recorded TEXT,
    PRIMARY KEY (run_id, session)
) STRICT, WITHOUT ROWID;
CREATE INDEX recordings_due ON recordings (run_id, due_ms) WHERE state = 'pending';
ALTER TABLE runs ADD COLUMN recordings INTEGER NOT NULL DEFAULT 0;
ALTER TABLE gaps ADD COLUMN session TEXT;
DROP INDEX gaps_identity;
CREATE UNIQUE INDEX gaps_identity ON gaps (
    run_id, reason, from_ms, to_ms, ifnull(day, ''), ifnull(chunk, ''), ifnull(dead_letter, ''),
    ifnull(session, ''));
CREATE INDEX gaps_of_session ON gaps (session) WHERE session IS NOT NULL AND closed_ms IS NULL;
";

/// Knows of a state that was taken over from another exporter, and which events that had sent.
const FORMAT_6: &str = "
CREATE TABLE imports (
    run_id INTEGER PRIMARY KEY REFERENCES runs (id),
    directory TEXT NOT NULL,
    start_ms INTEGER NOT NULL,
    imported_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE sent_events (
    run_id INTEGER NOT NULL REFERENCES runs (id),
    id BLOB NOT NULL,
    event_type BLOB NOT NULL,
    event_index INTEGER NOT NULL,
    PRIMARY KEY (run_id, id, event_type, event_index)
) STRICT, WITHOUT ROWID;
";

/// Tells what is too old from what somebody has skipped; keeps the start time that is configured where
/// somebody has moved the position.
const FORMAT_7: &str = "
ALTER TABLE left_out ADD COLUMN why TEXT NOT NULL DEFAULT 'too_old'
    CHECK (why IN ('too_old', 'skipped'));
ALTER TABLE runs ADD COLUMN start_ms INTEGER;
";

/// Knows of failed logins, which ones of them have led to a lock, and which locks are to be made.
const FORMAT_8: &str = "
CREATE TABLE failed_logins (
    user TEXT NOT NULL,
    time_ms INTEGER NOT NULL,
    event BLOB NOT NULL,
    counted INTEGER NOT NULL DEFAULT 0 CHECK (counted IN (0, 1)),
    PRIMARY KEY (user, time_ms, event)
) STRICT, WITHOUT ROWID;
CREATE INDEX failed_logins_by_age ON failed_logins (time_ms);
CREATE TABLE locks (
    user TEXT PRIMARY KEY,
    login TEXT NOT NULL,
    failed_ms INTEGER NOT NULL,
    failures INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";

/// Reads whose file it is and which format it has; changes nothing.
pub(super) fn format(connection: &Connection) -> rusqlite::Result<Format> {
    let (application, format, tables): (i64, i64, i64) = connection.query_row(
        "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_schema)
         FROM pragma_application_id, pragma_user_version",
        [],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )?;
    Ok(match (application, format, tables) {
        (0, 0, 0) => Format::Empty,
        (APPLICATION_ID, format, _) => Format::Ours(format),
        _ => Format::Foreign,
    })
}

/// Brings a file to the newest format, all of the way or not at all. A newer file and that of
/// another program stay as they are; the caller refuses those.
pub(super) fn migrate(connection: &mut Connection, migrations: &[&str]) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Read again inside of the transaction: another process may just have done the work.
    let found = match format(&transaction)? {
        Format::Ours(found) => usize::try_from(found).unwrap_or_default(),
        Format::Empty => 0,
        Format::Foreign => return Ok(()),
    };
    if found >= migrations.len() {
        return Ok(());
    }
    for migration in &migrations[found..] {
        transaction.execute_batch(migration)?;
    }
    stamp(&transaction, migrations.len())?;
    transaction.commit()
}

fn stamp(transaction: &Transaction<'_>, format: usize) -> rusqlite::Result<()> {
    transaction.execute_batch(&format!(
        "PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {format};"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEXT: &str = "ALTER TABLE runs ADD COLUMN note TEXT NOT NULL DEFAULT 'none';";

    fn newest() -> i64 {
        i64::try_from(MIGRATIONS.len()).unwrap()
    }

    fn with_a_run() -> Connection {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, MIGRATIONS).unwrap();
        connection
            .execute_batch(
                "INSERT INTO runs (kind, from_ms, filters, position_ms, updated_ms)
                 VALUES ('daemon', 1, '', 7, 0);",
            )
            .unwrap();
        connection
    }

    fn text(connection: &Connection, query: &str) -> rusqlite::Result<String> {
        connection.query_row(query, [], |row| row.get(0))
    }

    #[test]
    fn each_format_is_brought_to_the_next_with_its_data() {
        for known in 0..MIGRATIONS.len() {
            let mut connection = Connection::open_in_memory().unwrap();
            migrate(&mut connection, &MIGRATIONS[..known]).unwrap();
            migrate(&mut connection, MIGRATIONS).unwrap();
            assert_eq!(format(&connection).unwrap(), Format::Ours(newest()));
        }
        // A gap of before there were recordings is the same gap afterwards.
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, &MIGRATIONS[..3]).unwrap();
        let gap = "INSERT INTO gaps (run_id, reason, from_ms, to_ms, detail, found_ms)
             VALUES (1, 'event_unreadable', 1, 2, '', 3);";
        let run = "INSERT INTO runs (kind, from_ms, filters, position_ms, updated_ms)
             VALUES ('daemon', 1, '', 7, 0);";
        connection.execute_batch(&format!("{run}{gap}")).unwrap();
        migrate(&mut connection, MIGRATIONS).unwrap();
        connection.execute_batch(gap).unwrap_err();
        connection
            .execute_batch(
                &gap.replace("found_ms)", "found_ms, session)")
                    .replace("3);", "3, 's');"),
            )
            .unwrap();

        let mut connection = with_a_run();
        migrate(&mut connection, &[MIGRATIONS, &[NEXT]].concat()).unwrap();
        assert_eq!(format(&connection).unwrap(), Format::Ours(newest() + 1));
        assert_eq!(
            text(&connection, "SELECT note || position_ms FROM runs").unwrap(),
            "none7"
        );
    }

    #[test]
    fn a_migration_that_fails_leaves_everything_as_it_was() {
        let mut connection = with_a_run();
        let broken = format!("{NEXT} DELETE FROM runs; INSERT INTO nowhere VALUES (1);");
        migrate(&mut connection, &[MIGRATIONS, &[&broken]].concat()).unwrap_err();
        assert_eq!(format(&connection).unwrap(), Format::Ours(newest()));
        assert_eq!(
            text(&connection, "SELECT position_ms || kind FROM runs").unwrap(),
            "7daemon"
        );
        text(&connection, "SELECT note FROM runs").unwrap_err();
    }
}
