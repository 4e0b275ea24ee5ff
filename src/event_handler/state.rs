//! The event handler's storage: how far it has read, as files in a folder.
//!
//! | entry | content |
//! |---|---|
//! | `start_time` | where it began, RFC 3339 |
//! | `window_time`, `cursor`, `id` | by the search API: the window's start, the key of its page, the last event of it that was sent |
//! | `cursor_v2/DATE/completed-chunks` | by the export API: names of chunks that are done, one a line |
//! | `cursor_v2/DATE/CHUNK.chunk` | the cursor in a chunk that is not |
//! | `sessionID` | a recording that is being read: the index it has come to, 8 bytes, big-endian |
//! | `missing_recordingID` | one that was not there: JSON with `Index` and `Timestamp` |
//!
//! If there is anything of the export API, that counts: the rest is from before.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use chrono::{DateTime, NaiveDate, Utc};
use serde::Deserialize;

/// How far the event handler had come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandlerState {
    /// The folder in which its files lie.
    pub directory: PathBuf,
    /// Where it began.
    pub start: DateTime<Utc>,
    /// How far it has read the audit log.
    pub place: Place,
    /// The recordings that it had not read to their end, by session.
    pub recordings: BTreeMap<String, PendingRecording>,
}

/// How far it has read the audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// By the search API.
    Search(SearchPlace),
    /// By the export API: days in their order, at least one. Earlier ones are done.
    Export(Vec<ExportDay>),
}

/// A place in a search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SearchPlace {
    /// The window's start.
    pub window: DateTime<Utc>,
    /// The key of the page that it had come to; empty for the first.
    pub key: String,
    /// The id of the last event that it has sent; empty if there was none.
    pub last_id: String,
}

/// A day of the export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportDay {
    /// The day, in UTC.
    pub date: NaiveDate,
    /// The chunks that were begun, by name; with the cursor, or `None` if they are done.
    pub chunks: BTreeMap<String, Option<String>>,
}

/// A recording that was not read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingRecording {
    /// The index of the event to go on with.
    pub next_index: i64,
    /// When it was uploaded, as far as the event handler has noted that.
    pub uploaded: Option<DateTime<Utc>>,
}

/// Why a folder cannot be gone on from; all that is wrong with it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the event handler's state cannot be taken over: {}", .0.join("; "))]
pub struct Unusable(Vec<String>);

const EXPORT: &str = "cursor_v2";
const DONE: &str = "completed-chunks";
const CHUNK: &str = ".chunk";
const SESSION: &str = "session";
const MISSING: &str = "missing_recording";

impl HandlerState {
    /// Reads the folder, or the only one in it: the event handler makes one of its own, named by
    /// Teleport's address, in what is called `storage` in its configuration.
    ///
    /// # Errors
    /// If the folder is none of the event handler's, or anything in it is not as it must be.
    pub fn read(directory: &Path) -> Result<Self, Unusable> {
        let directory = find(directory).map_err(|problem| Unusable(vec![problem]))?;
        let mut reader = Reader {
            directory: &directory,
            problems: Vec::new(),
        };
        let start = reader.time("start_time");
        let window = reader.time("window_time");
        let key = reader.text("cursor").unwrap_or_default();
        let last_id = reader.text("id").unwrap_or_default();
        let days = reader.days();
        let recordings = reader.recordings();
        let mut problems = reader.problems;
        if !directory.join("start_time").exists() {
            problems.push(format!(
                "{} is missing: the event handler writes it when it first starts",
                directory.join("start_time").display()
            ));
        }
        if days.is_empty() && window.is_none() && !(key.is_empty() && last_id.is_empty()) {
            problems.push(format!(
                "{} is missing or empty, without which cursor and id say nothing",
                directory.join("window_time").display()
            ));
        }
        match start {
            Some(start) if problems.is_empty() => Ok(Self {
                start,
                place: if days.is_empty() {
                    let window = window.unwrap_or(start);
                    Place::Search(SearchPlace {
                        window,
                        key,
                        last_id,
                    })
                } else {
                    Place::Export(days)
                },
                recordings,
                directory,
            }),
            _ => Err(Unusable(problems)),
        }
    }
}

/// The folder that holds the files.
fn find(directory: &Path) -> Result<PathBuf, String> {
    if is_state(directory) {
        return Ok(directory.to_owned());
    }
    let names = entries(directory)?;
    let folders = names.iter().map(|name| directory.join(name));
    let states: Vec<PathBuf> = folders.filter(|folder| is_state(folder)).collect();
    match states.as_slice() {
        [state] => Ok(state.clone()),
        [] => Err(format!(
            "{} holds no state of the event handler: neither start_time nor {EXPORT} is in it, or \
             in a folder in it; give the folder that is `storage` in the event handler's \
             configuration",
            directory.display()
        )),
        several => {
            let several: Vec<String> = several
                .iter()
                .map(|state| state.display().to_string())
                .collect();
            Err(format!(
                "{} holds the states of several addresses, give one of them: {}",
                directory.display(),
                several.join(", ")
            ))
        }
    }
}

fn is_state(directory: &Path) -> bool {
    directory.join("start_time").is_file() || directory.join(EXPORT).is_dir()
}

/// The names of what is in a folder, in their order.
fn entries(directory: &Path) -> Result<Vec<String>, String> {
    let read = || -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(directory)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    };
    read().map_err(|error| format!("cannot read the folder {}: {error}", directory.display()))
}

struct Reader<'d> {
    directory: &'d Path,
    problems: Vec<String>,
}

impl Reader<'_> {
    fn wrong(&mut self, path: &Path, problem: impl fmt::Display) {
        self.problems.push(format!("{}: {problem}", path.display()));
    }

    fn bytes(&mut self, path: &Path) -> Option<Vec<u8>> {
        match fs::read(path) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                self.wrong(path, format_args!("cannot be read: {error}"));
                None
            }
        }
    }

    fn text_at(&mut self, path: &Path) -> Option<String> {
        match String::from_utf8(self.bytes(path)?) {
            Ok(text) => Some(text.trim().to_owned()),
            Err(_) => {
                self.wrong(path, "is no text");
                None
            }
        }
    }

    fn text(&mut self, name: &str) -> Option<String> {
        self.text_at(&self.directory.join(name))
    }

    fn time(&mut self, name: &str) -> Option<DateTime<Utc>> {
        let path = self.directory.join(name);
        let text = self.text_at(&path)?;
        if text.is_empty() && name != "start_time" {
            return None;
        }
        match DateTime::parse_from_rfc3339(&text) {
            Ok(time) => Some(time.to_utc()),
            Err(_) => {
                self.wrong(
                    &path,
                    format_args!("{text:?} is no time in RFC 3339, such as 2026-11-25T10:20:30Z"),
                );
                None
            }
        }
    }

    fn names(&mut self, directory: &Path) -> Vec<String> {
        match entries(directory) {
            Ok(names) => names,
            Err(problem) => {
                self.problems.push(problem);
                Vec::new()
            }
        }
    }

    /// An empty folder of a day counts: the export has come to it.
    fn days(&mut self) -> Vec<ExportDay> {
        let export = self.directory.join(EXPORT);
        if !export.is_dir() {
            return Vec::new();
        }
        let mut days = Vec::new();
        for name in self.names(&export) {
            let path = export.join(&name);
            match NaiveDate::parse_from_str(&name, "%Y-%m-%d") {
                Ok(date) if path.is_dir() => {
                    let chunks = self.chunks(&path);
                    days.push(ExportDay { date, chunks });
                }
                Ok(_) => self.wrong(&path, "is a file where the folder of a day must be"),
                Err(_) => self.wrong(&path, "is named by no day, such as 2026-11-25"),
            }
        }
        days
    }

    fn chunks(&mut self, day: &Path) -> BTreeMap<String, Option<String>> {
        let mut chunks = BTreeMap::new();
        for name in self.names(day) {
            let path = day.join(&name);
            match name.strip_suffix(CHUNK) {
                Some(chunk) if !chunk.is_empty() => {
                    let cursor = self.text_at(&path).unwrap_or_default();
                    chunks.insert(chunk.to_owned(), Some(cursor));
                }
                _ if name == DONE => {}
                _ => self.wrong(
                    &path,
                    format_args!("is neither {DONE} nor a chunk's cursor"),
                ),
            }
        }
        // Written before the cursor is removed: a chunk may be in both.
        let done = self.text_at(&day.join(DONE)).unwrap_or_default();
        let done = done.lines().map(str::trim).filter(|line| !line.is_empty());
        chunks.extend(done.map(|chunk| (chunk.to_owned(), None)));
        chunks
    }

    fn recordings(&mut self) -> BTreeMap<String, PendingRecording> {
        let mut recordings = BTreeMap::new();
        for name in self.names(self.directory) {
            let path = self.directory.join(&name);
            let (session, recording) = if let Some(session) = name.strip_prefix(MISSING) {
                (session, self.missing(&path))
            } else if let Some(session) = name.strip_prefix(SESSION) {
                (session, self.begun(&path))
            } else {
                continue;
            };
            if session.is_empty() {
                self.wrong(&path, "has no session's id in its name");
            } else if let Some(recording) = recording {
                recordings.insert(session.to_owned(), recording);
            }
        }
        recordings
    }

    fn begun(&mut self, path: &Path) -> Option<PendingRecording> {
        let bytes = self.bytes(path)?;
        let index = bytes.as_slice().try_into().ok().map(i64::from_be_bytes);
        match index {
            Some(next_index) if next_index >= 0 => Some(PendingRecording {
                next_index,
                uploaded: None,
            }),
            _ => {
                self.wrong(
                    path,
                    "is no index of an event: 8 bytes, big-endian, not negative",
                );
                None
            }
        }
    }

    fn missing(&mut self, path: &Path) -> Option<PendingRecording> {
        #[derive(Deserialize)]
        struct Missing {
            #[serde(rename = "Index", default)]
            index: i64,
            #[serde(rename = "Timestamp", alias = "UploadTime")]
            timestamp: Option<String>,
        }
        let missing: Missing = match serde_json::from_slice(&self.bytes(path)?) {
            Ok(missing) => missing,
            Err(error) => {
                self.wrong(
                    path,
                    format_args!("is no JSON with Index and Timestamp: {error}"),
                );
                return None;
            }
        };
        let uploaded = missing
            .timestamp
            .as_deref()
            .map(DateTime::parse_from_rfc3339);
        let Ok(uploaded) = uploaded.transpose() else {
            self.wrong(path, "has a Timestamp that is no time in RFC 3339");
            return None;
        };
        if missing.index < 0 {
            self.wrong(path, "has a negative Index");
            return None;
        }
        Some(PendingRecording {
            next_index: missing.index,
            uploaded: uploaded.map(|time| time.to_utc()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, files: &[(&str, &[u8])]) {
        for (name, content) in files {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }

    fn time(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    const START: (&str, &[u8]) = ("start_time", b"2026-11-01T00:00:00Z");

    #[test]
    fn a_search_is_found_below_the_storage() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("teleport.example.com_443");
        let index = 7i64.to_be_bytes();
        write(
            &folder,
            &[
                START,
                ("window_time", b"2026-11-24T00:00:00Z\n"),
                ("cursor", b"{\"date\":\"x\"}"),
                ("id", b"b7c1"),
                ("session6f1e", &index),
                (
                    "missing_recording77aa",
                    br#"{"Index":3,"Attempt":1,"Timestamp":"2026-11-24T09:00:00Z"}"#,
                ),
            ],
        );
        let state = HandlerState::read(root.path()).unwrap();
        assert_eq!(state, HandlerState::read(&folder).unwrap());
        let place = Place::Search(SearchPlace {
            window: time("2026-11-24T00:00:00Z"),
            key: "{\"date\":\"x\"}".into(),
            last_id: "b7c1".into(),
        });
        assert_eq!((state.directory, state.place), (folder, place));
        let recording = |next_index, uploaded| PendingRecording {
            next_index,
            uploaded,
        };
        let expected = [
            ("6f1e".to_owned(), recording(7, None)),
            (
                "77aa".to_owned(),
                recording(3, Some(time("2026-11-24T09:00:00Z"))),
            ),
        ];
        assert_eq!(state.recordings, expected.into());
    }

    #[test]
    fn what_was_exported_counts_before_what_was_searched() {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            &[
                START,
                ("window_time", b"2026-11-02T00:00:00Z"),
                ("cursor_v2/2026-11-23/completed-chunks", b"one\ntwo\n"),
                ("cursor_v2/2026-11-24/completed-chunks", b"three\nfour"),
                ("cursor_v2/2026-11-24/three.chunk", b"a1:7"),
                ("cursor_v2/2026-11-24/five.chunk", b"a1:9"),
            ],
        );
        fs::create_dir(root.path().join("cursor_v2/2026-11-25")).unwrap();
        let state = HandlerState::read(root.path()).unwrap();
        let day = |date: &str, chunks: &[(&str, Option<&str>)]| ExportDay {
            date: date.parse().unwrap(),
            chunks: chunks
                .iter()
                .map(|(name, cursor)| ((*name).to_owned(), cursor.map(str::to_owned)))
                .collect(),
        };
        let expected = vec![
            day("2026-11-23", &[("one", None), ("two", None)]),
            day(
                "2026-11-24",
                &[("three", None), ("four", None), ("five", Some("a1:9"))],
            ),
            day("2026-11-25", &[]),
        ];
        assert_eq!(state.place, Place::Export(expected));
    }

    #[test]
    fn whatever_is_wrong_is_told_at_once() {
        let root = tempfile::tempdir().unwrap();
        let shown = |root: &Path| {
            let unusable = HandlerState::read(root).unwrap_err().to_string();
            unusable.replace(&root.display().to_string(), "DIR")
        };
        insta::assert_snapshot!(shown(root.path()), @"the event handler's state cannot be taken over: DIR holds no state of the event handler: neither start_time nor cursor_v2 is in it, or in a folder in it; give the folder that is `storage` in the event handler's configuration");
        insta::assert_snapshot!(shown(&root.path().join("nowhere")), @"the event handler's state cannot be taken over: cannot read the folder DIR: No such file or directory (os error 2)");
        write(
            root.path(),
            &[
                ("start_time", b"yesterday"),
                ("cursor", b"key"),
                ("cursor_v2/today/completed-chunks", b""),
                ("cursor_v2/2026-11-24", b""),
                ("session6f1e", b"short"),
                ("session", b"12345678"),
                ("missing_recording77aa", b"{"),
            ],
        );
        insta::assert_snapshot!(shown(root.path()).replace("; ", ";\n"), @r#"
        the event handler's state cannot be taken over: DIR/start_time: "yesterday" is no time in RFC 3339, such as 2026-11-25T10:20:30Z;
        DIR/cursor_v2/2026-11-24: is a file where the folder of a day must be;
        DIR/cursor_v2/today: is named by no day, such as 2026-11-25;
        DIR/missing_recording77aa: is no JSON with Index and Timestamp: EOF while parsing an object at line 1 column 1;
        DIR/session: has no session's id in its name;
        DIR/session6f1e: is no index of an event: 8 bytes, big-endian, not negative;
        DIR/window_time is missing or empty, without which cursor and id say nothing
        "#);
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            &[("a_443/start_time", START.1), ("b_443/start_time", START.1)],
        );
        insta::assert_snapshot!(shown(root.path()), @"the event handler's state cannot be taken over: DIR holds the states of several addresses, give one of them: DIR/a_443, DIR/b_443");
    }
}
