-- What this program had written at format 2, with a daemon that has come some way.

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

PRAGMA application_id = 1413826904;
PRAGMA user_version = 2;

UPDATE state SET cluster = 'rig.example.com';
INSERT INTO runs (kind, from_ms, filters, mode, position_ms, updated_ms)
VALUES ('daemon', 1780000000000, '', 'search', 1790000000000, 1790000000000);
INSERT INTO gaps (run_id, reason, from_ms, to_ms, detail, found_ms)
VALUES (1, 'event_unreadable', 1785000000000, 1785000000001, 'one', 1790000000000),
       (1, 'event_unreadable', 1786000000000, 1786000000001, 'two', 1790000000000);
INSERT INTO dead_letters (document_id, index_name, run_id, event_type, form, status, error_type, reason,
    first_seen_ms, bytes, document)
VALUES ('AAAAAAAAAAAAAAAAAAAAAAAA', 'audit-events-2026.09.21', 1, 'user.login', 'json', 400,
    'strict_dynamic_mapping_exception', 'no such field', 1790000000000, 2, x'7b7d');
