//! The index template: whatever comes, in whatever order, Elasticsearch takes it, and its size stays
//! bounded. The real pipeline, without Teleport before it.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use teleport_event_indexer::checkpoint::{Checkpoint, DeadLetterFilter};
use teleport_event_indexer::demo::events::{self, Id};
use teleport_event_indexer::document::{Encoder, IndexPattern, Schema};
use teleport_event_indexer::elastic::bulk::Bulk;
use teleport_event_indexer::event::AuditEvent;
use teleport_event_indexer::pipeline::batch::BatchLimits;
use teleport_event_indexer::pipeline::{
    Lane, Page, PageSender, Pipeline, Settings, Source, Summary,
};
use teleport_event_indexer::telemetry::Stats;
use tokio_util::sync::CancellationToken;

use crate::support::elasticsearch::{Elasticsearch, NEWEST, PASSWORD, oldest};
use crate::support::journey::client;
use crate::support::program::Indexer;
use crate::support::samples;
use crate::support::stand_ins::block_on;

/// Orders in which each log is sent.
const ORDERS: u64 = 10;

/// Documents of one request: few, so that what comes later meets a mapping that others have made.
const BATCH: usize = 50;

/// An installed template, and a way to send events to indices that get it.
struct Installed<'a> {
    name: &'static str,
    elasticsearch: &'a Elasticsearch,
    schema: Schema,
    indexer: Indexer,
}

/// What became of events.
#[derive(Debug, Default, PartialEq, Eq)]
struct Fates {
    /// As they were.
    documents: usize,
    /// The ids' events that are in safe form, with the error's type.
    safe_forms: Vec<(String, Value)>,
    dead_letters: usize,
}

impl<'a> Installed<'a> {
    fn new(name: &'static str, elasticsearch: &'a Elasticsearch, schema: Schema) -> Self {
        let indexer = Indexer::new();
        let credentials = if elasticsearch.has_security() {
            format!("user = \"elastic\"\npassword = {PASSWORD:?}")
        } else {
            String::new()
        };
        let schema_name = match schema {
            Schema::Raw => "raw",
            Schema::Ecs => "ecs",
        };
        // No day in the name: all events of a log meet in one index.
        indexer.write(
            "config.toml",
            &format!(
                "[forward.elasticsearch]\nhosts = [{url:?}]\n{credentials}\nindex = \"{name}-%Y\"\n\
                 schema = {schema_name:?}\n\
                 [forward.elasticsearch.install]\ntemplate = {name:?}\npolicy = {name:?}\n",
                url = elasticsearch.url(),
            ),
        );
        let output = indexer.run(&["install", "-c", "config.toml"]);
        assert_eq!(output.code, Some(0), "{}", output.stderr);
        assert!(output.stderr.contains("verified: "), "{}", output.stderr);
        Self {
            name,
            elasticsearch,
            schema,
            indexer,
        }
    }

    /// Sends events in their order into an index of their own, and looks at all that is there then.
    ///
    /// # Panics
    /// If an event is neither a document equal to it nor in safe form nor a dead letter.
    fn index(&self, log: &[Value]) -> Fates {
        let index = format!("{}-1", self.name);
        let pattern = IndexPattern::parse(&index).expect("it is a pattern");
        let events: Vec<AuditEvent> = log
            .iter()
            .map(|event| events::encode(event, Id::OfEvent))
            .collect();
        let checkpoint = Arc::new(Checkpoint::open_in_memory().expect("SQLite works"));
        let run = checkpoint.backfill_run("mapping", 0, 1, "");
        let pipeline = Pipeline {
            sink: Bulk::new(client(&self.indexer), false, None),
            checkpoint: checkpoint.clone(),
            run: run.expect("there is a run").id,
            cluster: "mapping".into(),
            encoder: Encoder::new(&pattern).with_schema(self.schema),
            settings: Settings {
                batch: BatchLimits {
                    bytes: 2 << 20,
                    documents: BATCH,
                    age: Duration::from_secs(60),
                },
                // Else the order would be chance.
                in_flight: 1,
                in_flight_bytes: 64 << 20,
                grace_period: Duration::ZERO,
                dead_letter_bytes: 1 << 30,
                blocked_bytes: 0,
            },
            stats: Arc::new(Stats::default()),
        };
        let source = InOrder(events.clone());
        let ended = block_on(Box::pin(pipeline.run(source, CancellationToken::new())));
        let complete = Summary {
            complete: true,
            abandoned: 0,
        };
        assert_eq!(ended.expect("it runs"), complete);

        let letters = checkpoint.dead_letters(&DeadLetterFilter::default(), u32::MAX);
        let letters = letters.expect("the state can be read");
        let refused: BTreeSet<String> = letters
            .into_iter()
            .map(|letter| letter.document_id)
            .collect();
        self.elasticsearch.refresh(&index);
        let mut found = self.elasticsearch.all_documents(&index);
        let mut fates = Fates::default();
        let mut encoder = Encoder::new(&pattern).with_schema(self.schema);
        for (event, given) in events.iter().zip(log) {
            let mut text = Vec::new();
            let encoded = encoder.encode(event, &mut text).expect("it has a time");
            let document: Value =
                serde_json::from_slice(&text[encoded.source_start..]).expect("it is JSON");
            let id = encoded.id.to_string();
            match found.remove(&(index.clone(), id.clone())) {
                Some(source) if source.get(REFUSED_TYPE).is_some() => {
                    let raw = source[RAW].as_str().expect("it is a text");
                    assert_eq!(serde_json::from_str::<Value>(raw).ok(), Some(document));
                    let kind = source[REFUSED_TYPE].as_str().expect("it is a text");
                    fates.safe_forms.push((kind.to_owned(), given.clone()));
                }
                Some(source) => {
                    assert_eq!(source, document, "_source is what was sent");
                    fates.documents += 1;
                }
                None => {
                    assert!(refused.contains(&id), "lost: {given}");
                    fates.dead_letters += 1;
                }
            }
        }
        assert_eq!(found, BTreeMap::new(), "nothing else is there");
        let path = format!("/{index}");
        self.elasticsearch
            .request("DELETE", &path, &Value::Null)
            .success();
        fates
    }
}

const REFUSED_TYPE: &str = "event_indexer.refused.type";
const RAW: &str = "event_indexer.raw";

/// Events in a given order.
struct InOrder(Vec<AuditEvent>);

impl Source for InOrder {
    type Error = Infallible;

    async fn run(self, pages: PageSender, _: CancellationToken) -> Result<(), Infallible> {
        let page = Page {
            lane: Lane(0),
            events: self.0,
            filtered: 0,
            reached: None,
            gap: None,
        };
        pages.send(page).await.expect("the pipeline takes it");
        Ok(())
    }
}

/// Puts a log into one of many orders.
fn shuffle(log: &mut [Value], order: u64) {
    let mut random = order.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for end in (1..log.len()).rev() {
        // Marsaglia's xorshift.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let end = u64::try_from(end).expect("it fits");
        let other = (random >> 33) % (end + 1);
        let place = |place: u64| usize::try_from(place).expect("it fits");
        log.swap(place(end), place(other));
    }
}

/// From when on Elasticsearch takes objects where no mapping names them.
fn takes_unknown_objects(elasticsearch: &Elasticsearch) -> bool {
    elasticsearch.version() >= (8, 11)
}

/// Members that Elasticsearch keeps for itself.
fn has_reserved_key(event: &Value) -> bool {
    let reserved = ["_id", "_index", "_source"];
    reserved.iter().any(|key| event.get(key).is_some())
}

#[test]
fn the_newest_elasticsearch_takes_any_order() {
    let elasticsearch = Elasticsearch::shared(NEWEST, true);
    any_order("mapping-new", elasticsearch, Schema::Raw);
}

#[test]
fn the_oldest_elasticsearch_takes_any_order() {
    let elasticsearch = Elasticsearch::shared(oldest(), false);
    any_order("mapping-old", elasticsearch, Schema::Raw);
}

#[test]
fn the_newest_elasticsearch_takes_any_order_of_ecs_fields() {
    let elasticsearch = Elasticsearch::shared(NEWEST, true);
    any_order("mapping-ecs-new", elasticsearch, Schema::Ecs);
}

#[test]
fn the_oldest_elasticsearch_takes_any_order_of_ecs_fields() {
    let elasticsearch = Elasticsearch::shared(oldest(), false);
    any_order("mapping-ecs-old", elasticsearch, Schema::Ecs);
}

fn any_order(name: &'static str, elasticsearch: Option<&Elasticsearch>, schema: Schema) {
    let Some(elasticsearch) = elasticsearch else {
        return;
    };
    let installed = Installed::new(name, elasticsearch, schema);
    let mut logs = vec![("own".to_owned(), samples::fixtures_and_invented(300))];
    let more = samples::of_folder();
    logs.extend(more.into_iter().map(|sample| (sample.name, sample.log)));
    if logs.len() > 1 {
        let mixed = logs.iter().flat_map(|(_, log)| log.clone()).collect();
        logs.push(("mixed".to_owned(), mixed));
    }
    for (name, mut log) in logs {
        for (place, event) in log.iter_mut().enumerate() {
            event["uid"] = format!("{name}-{place}").into();
        }
        let mut safe_forms = Vec::new();
        for order in 0..ORDERS {
            shuffle(&mut log, order);
            let fates = installed.index(&log);
            assert_eq!(fates.dead_letters, 0, "{name}, order {order}");
            if takes_unknown_objects(elasticsearch) {
                for (kind, event) in &fates.safe_forms {
                    assert!(has_reserved_key(event), "{kind}, order {order}: {event}");
                }
            }
            safe_forms.push(fates.safe_forms.len());
        }
        let (least, most) = (safe_forms.iter().min(), safe_forms.iter().max());
        // As for a skip: a passing test's own output is kept back.
        writeln!(
            std::io::stderr(),
            "{} ({schema:?}): {name}: {} events in {ORDERS} orders, in safe form {} to {}, no dead letter",
            elasticsearch.name(),
            log.len(),
            least.unwrap_or(&0),
            most.unwrap_or(&0),
        )
        .expect("stderr takes a line");
    }
}

#[test]
fn fields_of_the_newest_elasticsearch_stay_few() {
    few_fields("mapping-many-new", Elasticsearch::shared(NEWEST, true));
}

#[test]
fn fields_of_the_oldest_elasticsearch_stay_few() {
    few_fields("mapping-many-old", Elasticsearch::shared(oldest(), false));
}

/// New label keys in each event become no fields, and new members are refused by no version that
/// can leave them unindexed.
fn few_fields(name: &'static str, elasticsearch: Option<&Elasticsearch>) {
    let Some(elasticsearch) = elasticsearch else {
        return;
    };
    let installed = Installed::new(name, elasticsearch, Schema::Raw);
    let event = |place: usize| {
        json!({"event": "session.start", "code": "T2000I", "uid": format!("many-{place}"),
            "time": "2026-03-04T05:06:07Z", "ei": place})
    };
    let maps = ["server_labels", "labels", "user_traits", "later_labels"];
    let labels: Vec<Value> = (0..300)
        .map(|place| {
            let mut event = event(place);
            for key in 0..10 {
                event[maps[place % maps.len()]][format!("k{place}.{key}")] = "v".into();
            }
            event
        })
        .collect();
    let fates = installed.index(&labels);
    assert_eq!((fates.documents, fates.dead_letters), (300, 0), "{fates:?}");

    let members: Vec<Value> = (0..300)
        .map(|place| {
            let mut event = event(place);
            for key in 0..10 {
                event[format!("k{place}_{key}")] = "v".into();
            }
            event
        })
        .collect();
    let fates = installed.index(&members);
    assert_eq!(fates.dead_letters, 0);
    if elasticsearch.version() >= (8, 13) {
        assert_eq!(fates.safe_forms, []);
    } else {
        // Up to the limit of 2,000 they are fields.
        assert!((150..200).contains(&fates.documents), "{fates:?}");
    }
}

#[test]
fn nothing_is_too_odd_for_the_newest_elasticsearch() {
    oddest("mapping-odd-new", Elasticsearch::shared(NEWEST, true));
}

#[test]
fn nothing_is_too_odd_for_the_oldest_elasticsearch() {
    oddest("mapping-odd-old", Elasticsearch::shared(oldest(), false));
}

/// Long texts, deep objects and keys of dots, wherever they stand.
fn oddest(name: &'static str, elasticsearch: Option<&Elasticsearch>) {
    let Some(elasticsearch) = elasticsearch else {
        return;
    };
    let installed = Installed::new(name, elasticsearch, Schema::Raw);
    let long = Value::from("é".repeat(20_000));
    let deep = (0..25).fold(json!({"leaf": 1}), |inner, _| json!({"n": inner}));
    let values = [("long", &long), ("deep", &deep)];
    let places = [
        "db_query",
        "user",
        "unknown",
        "args",
        "server_labels",
        "time_of_day",
        "addr",
    ];
    let mut log = Vec::new();
    let mut add = |what: String, mut event: Value| {
        event["event"] = "odd".into();
        event["uid"] = what.into();
        event["time"] = "2026-03-04T05:06:07Z".into();
        log.push(event);
    };
    for (what, value) in values {
        for place in places {
            // A scalar where a map is known is no event of Teleport's.
            if place == "args" && value.is_string() || place == "server_labels" && value.is_string()
            {
                add(format!("{what} in {place}"), json!({place: {"k": value}}));
            } else {
                add(format!("{what} at {place}"), json!({place: value}));
            }
        }
    }
    for key in ["a..b", ".x", "x.", "", " ", ".", "_id", "_source", "a.b"] {
        add(format!("{key:?} at the top"), json!({key: "v"}));
        add(format!("{key:?} with an object"), json!({key: {"k": "v"}}));
        for map in ["server_labels", "unknown_labels", "unknown"] {
            add(format!("{key:?} in {map}"), json!({map: {key: "v"}}));
        }
    }
    let fates = installed.index(&log);
    assert_eq!(fates.dead_letters, 0, "{fates:?}");
    if takes_unknown_objects(elasticsearch) {
        let mut refused: Vec<_> = fates
            .safe_forms
            .iter()
            .map(|(_, event)| event["uid"].as_str().expect("it is a text"))
            .collect();
        refused.sort_unstable();
        let expected = [
            r#"" " at the top"#,
            r#"" " with an object"#,
            r#""" at the top"#,
            r#""" with an object"#,
            r#""_id" at the top"#,
            r#""_source" at the top"#,
        ];
        assert_eq!(refused, expected);
    }
}
