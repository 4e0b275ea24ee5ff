//! Logs of odd events: the project's own, and those of a folder that the environment names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use chrono::{DateTime, Days, TimeDelta, Utc};
use serde_json::Value;
use teleport_event_indexer::demo::events;

/// The events of one file.
pub(crate) struct Sample {
    /// The file's name without its extension, in lower case.
    pub(crate) name: String,
    pub(crate) log: Vec<Value>,
    /// How many rows cannot be served, by reason.
    pub(crate) left_out: BTreeMap<&'static str, usize>,
}

/// The files (`*.ndjson`, one event a line) of the folder that `EVENT_SAMPLES` names; none where it
/// names none.
pub(crate) fn of_folder() -> Vec<Sample> {
    let Some(folder) = std::env::var_os("EVENT_SAMPLES") else {
        return Vec::new();
    };
    let files = files(Path::new(&folder), "ndjson").into_iter();
    let samples = files.map(|file| {
        let name = file.file_stem().expect("it has a name").to_string_lossy();
        let text = fs::read_to_string(&file).expect("it is a text");
        let (log, left_out) = read(&text);
        Sample {
            name: name.to_lowercase(),
            log,
            left_out,
        }
    });
    samples.collect()
}

/// The files of a folder with this extension, in order.
fn files(folder: &Path, extension: &str) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).expect("there is such a folder");
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("it can be read").path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    files.sort();
    files
}

/// Rows of public samples share their uids.
fn fresh_uid(event: &mut Value, place: usize) {
    event["uid"] = format!("e2e00000-0000-4000-8000-{place:012}").into();
}

/// All fixtures whose oddity `faketeleport` can tell of, among invented events of the same day.
pub(crate) fn fixtures_and_invented(invented: u64) -> Vec<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut log = Vec::new();
    let mut left_out = BTreeSet::new();
    for (place, file) in files(&folder, "json").into_iter().enumerate() {
        let text = fs::read_to_string(&file).expect("a fixture is a text");
        let mut fixture: Value = serde_json::from_str(&text).expect("a fixture is JSON");
        // It makes the header from the body, and its times have 64 bits of nanoseconds.
        if fixture.get("header").is_some() || fixture.get("index_name").is_none() {
            let name = file.file_stem().expect("a fixture has a name");
            left_out.insert(name.to_string_lossy().into_owned());
            continue;
        }
        fresh_uid(&mut fixture["body"], place);
        log.push(fixture["body"].take());
    }
    let expected = [
        "header_and_body_differ",
        "no_time",
        "time_in_the_body_only",
        "time_is_no_date",
        "year_1",
        "year_9999",
    ];
    assert_eq!(left_out, expected.map(str::to_owned).into());
    let from = DateTime::from_timestamp(1_772_582_400, 0).expect("2026-03-04T00:00:00Z");
    let to = from + TimeDelta::days(1);
    log.extend(events::generate(1, invented, from, to, "odd.example.test"));
    log
}

/// The events of a file, each with a uid of its own, and how many rows cannot be served, by reason.
fn read(text: &str) -> (Vec<Value>, BTreeMap<&'static str, usize>) {
    let mut log = Vec::new();
    let mut left_out = BTreeMap::new();
    let now = Utc::now();
    for (place, line) in text.lines().enumerate() {
        match readable(line, now) {
            Ok(mut event) => {
                fresh_uid(&mut event, place);
                log.push(event);
            }
            Err(reason) => *left_out.entry(reason).or_default() += 1,
        }
    }
    (log, left_out)
}

/// A row as an event that lies in the past.
fn readable(line: &str, now: DateTime<Utc>) -> Result<Value, &'static str> {
    let mut event: Value = serde_json::from_str(line).map_err(|_| "no JSON")?;
    if event["event"].as_str().is_none_or(str::is_empty) {
        return Err("no type");
    }
    let text = event["time"].as_str().ok_or("no time")?;
    let time = DateTime::parse_from_rfc3339(text).map_err(|_| "the time is no date")?;
    let earlier = time.checked_sub_days(Days::new(366)).ok_or("year 1")?;
    if time > now {
        // A sample of this year may be ahead of this machine's clock; anything else is an oddity
        // that no server would find by a search up to now.
        if earlier > now {
            return Err("far future");
        }
        event["time"] = earlier.to_rfc3339().into();
    }
    if time.timestamp() < 0 {
        return Err("before 1970");
    }
    Ok(event)
}
