//! Odd events: each is a document equal to it, or its safe form with the reason.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::Path;

use chrono::{DateTime, Days, TimeDelta, Utc};
use serde_json::{Value, json};
use teleport_event_indexer::checkpoint::{Checkpoint, DeadLetterFilter};
use teleport_event_indexer::demo::events::{self, Id};
use teleport_event_indexer::document::{Encoder, IndexPattern};

use super::Api;
use crate::support::elasticsearch::{Elasticsearch, NEWEST, oldest};
use crate::support::faketeleport::FakeTeleport;
use crate::support::journey::{Journey, install, same_form};
use crate::support::scratch;

/// Invented events beside those of the fixtures, on the same day.
const INVENTED: u64 = 2_000;

/// What became of a log.
#[derive(Debug, PartialEq, Eq)]
struct Fates {
    /// As they were.
    documents: usize,
    /// By the type of the error for which they are in safe form.
    safe_forms: BTreeMap<String, usize>,
    dead_letters: usize,
}

#[test]
fn odd_events_on_the_newest_elasticsearch() {
    let Some(elasticsearch) = Elasticsearch::shared(NEWEST, true) else {
        return;
    };
    // One has a member `_id`, which Elasticsearch keeps for itself.
    let safe_forms = [("document_parsing_exception".to_owned(), 1)];
    check(elasticsearch, Api::Export, safe_forms.into());
}

#[test]
fn odd_events_on_the_oldest_elasticsearch() {
    let Some(elasticsearch) = Elasticsearch::shared(oldest(), false) else {
        return;
    };
    // `_id` again, and before 8.11 no object can be where a text is mapped: `target` of the locks
    // in a fixture and among the invented events.
    let safe_forms = [("mapper_parsing_exception".to_owned(), 3)];
    check(elasticsearch, Api::Search, safe_forms.into());
}

fn check(elasticsearch: &Elasticsearch, api: Api, safe_forms: BTreeMap<String, usize>) {
    install("e2e-odd", elasticsearch);
    let log = fixtures_and_invented();
    let Some(fates) = serve("e2e-odd-fixtures", &log, elasticsearch, api) else {
        return;
    };
    let documents = log.len() - safe_forms.values().sum::<usize>();
    let expected = Fates {
        documents,
        safe_forms,
        dead_letters: 0,
    };
    assert_eq!(fates, expected);

    let Some(folder) = std::env::var_os("EVENT_SAMPLES") else {
        return;
    };
    for file in files(Path::new(&folder), "ndjson") {
        let name = file.file_stem().expect("it has a name").to_string_lossy();
        let (log, left_out) = sample(&fs::read_to_string(&file).expect("it is a text"));
        let prefix = format!("e2e-odd-{}", name.to_lowercase());
        let fates = serve(&prefix, &log, elasticsearch, api);
        // As for a skip: a passing test's own output is kept back.
        writeln!(
            std::io::stderr(),
            "{} {name}: {} events, left out {left_out:?}, {fates:?}",
            api.name(),
            log.len()
        )
        .expect("stderr takes a line");
        assert_eq!(fates.map_or(0, |fates| fates.dead_letters), 0);
    }
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

fn fresh_uid(event: &mut Value, place: usize) {
    event["uid"] = format!("e2e00000-0000-4000-8000-{place:012}").into();
}

/// All fixtures whose oddity `faketeleport` can tell of, among invented events of the same day.
fn fixtures_and_invented() -> Vec<Value> {
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
    log.extend(events::generate(1, INVENTED, from, to, "odd.example.test"));
    log
}

/// The events of a file, each with a uid of its own, and how many rows cannot be served, by reason.
fn sample(text: &str) -> (Vec<Value>, BTreeMap<&'static str, usize>) {
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

/// Serves a log and says what became of it. `None` where it cannot be served.
///
/// # Panics
/// If an event is neither a document equal to it, its safe form nor a dead letter.
fn serve(prefix: &str, log: &[Value], elasticsearch: &Elasticsearch, api: Api) -> Option<Fates> {
    let directory = scratch("odd");
    let path = directory.path().join("events.jsonl");
    let lines: Vec<String> = log.iter().map(Value::to_string).collect();
    fs::write(&path, lines.join("\n")).expect("the folder takes a file");
    let teleport = FakeTeleport::start_on(&path, &[])?;
    teleport.faults(&api.faults());
    let served = teleport.events_jsonl();
    for (served, given) in sorted(&served).iter().zip(&sorted(log)) {
        assert_eq!(served, given, "it serves what it was given");
    }
    assert_eq!(served.len(), log.len());

    // One chunk and one request at a time: which of two events that do not go together is refused
    // must not be chance.
    let settings = "concurrency = 1";
    let journey = Journey::installed("e2e-odd", prefix, &teleport, elasticsearch, settings);
    let day = |event: &Value| {
        event["time"]
            .as_str()
            .and_then(|time| time.get(..10))
            .map(str::to_owned)
    };
    let (first, last) = (served.first().and_then(day)?, served.last().and_then(day)?);
    let to = last
        .parse::<chrono::NaiveDate>()
        .ok()?
        .succ_opt()?
        .to_string();
    let output = journey
        .spawn(&[
            "backfill",
            "--from",
            &first,
            "--to",
            &to,
            "--elasticsearch-in-flight",
            "1",
        ])
        .wait();

    let state = Checkpoint::open_existing_read_only(&journey.indexer.directory().join("state"));
    let state = state.expect("the state can be read").expect("there is one");
    let letters = state
        .dead_letters(&DeadLetterFilter::default(), u32::MAX)
        .expect("the state can be read");
    let code = if letters.is_empty() { 0 } else { 1 };
    assert_eq!(output.code, Some(code), "{}", output.stderr);

    let mut safe_forms = BTreeMap::new();
    let mut refused = BTreeSet::new();
    for letter in letters {
        assert!(!letter.reason.is_empty(), "{letter:?}");
        refused.insert((letter.index_name, letter.document_id));
    }
    let documents = journey.documents();
    let pattern = IndexPattern::parse(&format!("{prefix}-%Y.%m.%d")).expect("it is a pattern");
    let mut encoder = Encoder::new(&pattern);
    for event in &served {
        let encoded = encoder
            .encode(&events::encode(event, Id::OfEvent), &mut Vec::new())
            .expect("it has a usable time");
        let key = (encoded.index_name.to_string(), encoded.id.to_string());
        assert_eq!(key.0, journey.index_of(event));
        match documents.get(&key) {
            Some(source) if source.get(REFUSED_TYPE).is_some() => {
                assert_safe_form(source, event);
                let error_type = source[REFUSED_TYPE].as_str().expect("it is a text");
                *safe_forms.entry(error_type.to_owned()).or_default() += 1;
            }
            Some(source) => {
                let source = same_form(source.clone());
                assert_eq!(source, same_form(event.clone()));
                assert!(!refused.contains(&key), "both: {event}");
            }
            None => assert!(refused.contains(&key), "lost: {event}"),
        }
    }
    assert_eq!(documents.len() + refused.len(), served.len());
    let n_safe_forms: usize = safe_forms.values().sum();
    Some(Fates {
        documents: documents.len() - n_safe_forms,
        safe_forms,
        dead_letters: refused.len(),
    })
}

const REFUSED_TYPE: &str = "event_indexer.refused.type";

/// Checks that a document holds the whole event, and what people search by where they look for it.
fn assert_safe_form(document: &Value, event: &Value) {
    let raw = document["event_indexer.raw"].as_str().expect("a text");
    let raw: Value = serde_json::from_str(raw).expect("the document as it was");
    assert_eq!(same_form(raw), same_form(event.clone()));
    let time = |document: &Value| {
        DateTime::parse_from_rfc3339(document["time"].as_str().expect("a text")).expect("a time")
    };
    assert_eq!(time(document), time(event));
    for name in ["event", "code", "uid", "user"] {
        if event[name].is_string() {
            assert_eq!(document[name], event[name], "{name}");
        }
    }
}

/// Events as a protobuf Struct has them, in an order that does not depend on where they come from.
fn sorted(log: &[Value]) -> Vec<Value> {
    let mut log: Vec<Value> = log.iter().map(as_struct).collect();
    log.sort_by_key(|event| event["uid"].to_string());
    log
}

/// With doubles for numbers.
fn as_struct(value: &Value) -> Value {
    match value {
        Value::Number(number) => json!(number.as_f64()),
        Value::Array(values) => values.iter().map(as_struct).collect(),
        Value::Object(members) => {
            let members = members.iter();
            members
                .map(|(key, value)| (key.clone(), as_struct(value)))
                .collect()
        }
        other => other.clone(),
    }
}
