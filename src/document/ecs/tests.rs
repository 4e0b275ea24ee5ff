//! Against a plain reference: from the event's tree of JSON, field by field, without a thought for
//! speed.

use std::fs;
use std::path::Path;

use chrono::{SecondsFormat, TimeDelta, Utc};
use prost::Message as _;
use prost_types::value::Kind as AnyKind;
use prost_types::{ListValue, Struct, Value as Any};
use serde_json::{Map, Value, json};

use super::address::Endpoint;
use super::*;
use crate::demo::events::{Id, encode, generate};
use crate::document::{Encoder, IndexPattern, Schema};
use crate::event::{AuditEvent, Timestamp};

/// The fields that are added to an event.
fn reference(event: &Value, time_ms: i64) -> Map<String, Value> {
    let text = |key: &str| {
        let text = event[key].as_str()?;
        (!text.is_empty() && text.len() <= 8191).then(|| json!(text))
    };
    let whole = |key: &str| {
        let number = event[key].as_f64()?;
        let is_whole = number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_992.0;
        is_whole.then(|| json!(format!("{number:.0}").parse::<i64>().unwrap()))
    };
    let texts = |key: &str| {
        let list = event[key].as_array()?;
        let texts: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
        (!list.is_empty()).then_some(texts)
    };
    let action = event["event"]
        .as_str()
        .filter(|text| text.len() <= 8191)
        .unwrap_or_default();
    let rule = Rule::of(action.as_bytes());
    let list = |json: &str| serde_json::from_str(json).ok();
    let time = DateTime::from_timestamp_millis(time_ms).unwrap();
    let is_web = action.starts_with("app.session.");
    let is_kubernetes = action == "kube.request";
    let path_is = |target: &str| match (action, is_web) {
        ("session.command", _) => target == "process.executable",
        (_, true) => target == "url.path",
        (_, false) => target == "file.path",
    };
    let path = |target: &str| path_is(target).then(|| text("path")).flatten();
    let exit_code = || {
        let text = event["exitCode"].as_str()?;
        text.parse::<i32>().ok().map(Value::from)
    };
    let http = |kubernetes: Option<Value>, web: Option<Value>| match (is_kubernetes, is_web) {
        (true, _) => kubernetes,
        (false, true) => web,
        _ => None,
    };

    let mut fields = Map::new();
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            fields.insert(name.to_owned(), value);
        }
    };
    let to_millis = time.to_rfc3339_opts(SecondsFormat::Millis, true);
    set("@timestamp", Some(json!(to_millis)));
    set("event.action", text("event"));
    set("event.category", list(rule.category));
    set("event.code", text("code"));
    set("event.dataset", Some(json!("teleport.audit")));
    set("event.end", text("session_stop"));
    set("event.id", text("uid"));
    set("event.kind", Some(json!("event")));
    set("event.module", Some(json!("teleport")));
    let outcome = |success| {
        if success {
            json!("success")
        } else {
            json!("failure")
        }
    };
    set("event.outcome", event["success"].as_bool().map(outcome));
    set("event.reason", text("reason"));
    set("event.sequence", whole("ei"));
    set("event.start", text("session_start"));
    set("event.type", list(rule.kind));
    set("error.message", text("error"));
    set("file.path", path("file.path"));
    set("host.hostname", text("server_hostname"));
    set("host.id", text("server_id"));
    set("host.name", text("server_hostname"));
    set("http.request.method", http(text("verb"), text("method")));
    set(
        "http.response.status_code",
        http(whole("response_code"), whole("status_code")),
    );
    set("network.protocol", text("proto"));
    set("orchestrator.cluster.name", text("cluster_name"));
    set("process.args", texts("argv").map(|texts| json!(texts)));
    let initial = texts("initial_command").map(|texts| json!(texts.join(" ")));
    set("process.command_line", initial.or(text("command")));
    set("process.executable", path("process.executable"));
    set("process.exit_code", whole("return_code").or_else(exit_code));
    set("process.name", text("program"));
    set("process.parent.pid", whole("ppid"));
    set("process.pid", whole("pid"));
    set(
        "related.hosts",
        text("server_hostname").map(|host| json!([host])),
    );
    let users = ["user", "impersonator", "login", "db_user"].map(text);
    set("related.user", each_once(users));
    let path = path("url.path");
    set(
        "url.path",
        if is_kubernetes {
            text("request_path")
        } else {
            path
        },
    );
    set("url.query", text("raw_query"));
    set("user.name", text("user"));
    set("user_agent.original", text("user_agent"));

    let mut ips = Vec::new();
    for (name, address, port) in [
        ("client", text("addr.remote"), None),
        ("destination", text("dst_addr"), whole("dst_port")),
        ("server", text("addr.local").or(text("server_addr")), None),
        ("source", text("src_addr").or(text("addr.remote")), None),
    ] {
        let Some(address) = address else { continue };
        let split = Endpoint::of(address.as_str().unwrap().as_bytes());
        let ip = split.ip.map(|ip| json!(str::from_utf8(ip).unwrap()));
        let own_port = split.port.map(Value::from);
        let port = port.filter(|port| (0..=65_535).contains(&port.as_i64().unwrap()));
        set(&format!("{name}.port"), own_port.or(port));
        set(&format!("{name}.address"), Some(address));
        set(&format!("{name}.ip"), ip.clone());
        ips.push(ip);
    }
    set("related.ip", each_once(ips));
    fields.retain(|name, _| event.get(name).is_none());
    fields
}

fn each_once(values: impl IntoIterator<Item = Option<Value>>) -> Option<Value> {
    let mut once: Vec<Value> = Vec::new();
    for value in values.into_iter().flatten() {
        if !once.contains(&value) {
            once.push(value);
        }
    }
    (!once.is_empty()).then_some(Value::Array(once))
}

fn wire(value: &Value) -> Any {
    let kind = match value {
        Value::Null => AnyKind::NullValue(0),
        Value::Bool(bool) => AnyKind::BoolValue(*bool),
        Value::Number(number) => AnyKind::NumberValue(number.as_f64().unwrap()),
        Value::String(text) => AnyKind::StringValue(text.clone()),
        Value::Array(values) => AnyKind::ListValue(ListValue {
            values: values.iter().map(wire).collect(),
        }),
        Value::Object(members) => AnyKind::StructValue(Struct {
            fields: members
                .iter()
                .map(|(key, value)| (key.clone(), wire(value)))
                .collect(),
        }),
    };
    Any { kind: Some(kind) }
}

fn event_of(body: &Value) -> AuditEvent {
    let Some(AnyKind::StructValue(body)) = wire(body).kind else {
        panic!("an event is an object");
    };
    AuditEvent {
        event_type: b"x".as_slice().into(),
        time: Some(Timestamp::from_millis(1_767_312_000_123)),
        body: body.encode_to_vec().into(),
        ..AuditEvent::default()
    }
}

/// Both encoders see one event after the other, as in a run.
struct Both {
    raw: Encoder,
    ecs: Encoder,
}

impl Both {
    fn new() -> Self {
        let raw = || Encoder::new(&IndexPattern::default());
        Self {
            raw: raw(),
            ecs: raw().with_schema(Schema::Ecs),
        }
    }

    /// The event as it was, byte for byte, and behind it the reference's fields; the same id.
    fn check(&mut self, event: &AuditEvent) -> Map<String, Value> {
        let (mut raw, mut ecs) = (b"before\n".to_vec(), b"before\n".to_vec());
        let encoded = self.raw.encode(event, &mut raw).unwrap();
        let start = encoded.source_start;
        let mut with_ecs = self.ecs.encode(event, &mut ecs).unwrap();
        assert_eq!((with_ecs.id, with_ecs.source_start), (encoded.id, start));
        assert_eq!(with_ecs.marks, encoded.marks);
        with_ecs.time_ms = encoded.time_ms;
        assert_eq!(raw[..start], ecs[..start]);
        let own: Value = serde_json::from_slice(&raw[start..]).unwrap();
        let text = String::from_utf8(ecs.split_off(start)).unwrap();
        if encoded.marks.is_empty() {
            let same = &raw[start..raw.len() - 2];
            assert!(text.as_bytes().starts_with(same), "{text}");
        }
        // serde_json takes a key that comes twice, Elasticsearch does not.
        let mut all: Map<String, Value> = serde_json::from_str(&text).unwrap();
        let own = own.as_object().unwrap();
        for (key, value) in own {
            assert_eq!(all.remove(key).as_ref(), Some(value), "{key}");
        }
        let expected = reference(&Value::Object(own.clone()), encoded.time_ms);
        assert_eq!(
            Value::Object(all),
            Value::Object(expected.clone()),
            "{text}"
        );
        let n_keys = expected.len() + own.len();
        assert_eq!(n_keys_of(&text), n_keys, "{text}");
        expected
    }
}

/// How many members the text's object has, those that come twice counted twice.
fn n_keys_of(text: &str) -> usize {
    struct Count(usize);
    impl<'de> serde::Deserialize<'de> for Count {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Visitor;
            impl<'de> serde::de::Visitor<'de> for Visitor {
                type Value = Count;
                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("an object")
                }
                fn visit_map<A: serde::de::MapAccess<'de>>(
                    self,
                    mut map: A,
                ) -> Result<Count, A::Error> {
                    let mut count = 0;
                    while map.next_entry::<String, serde::de::IgnoredAny>()?.is_some() {
                        count += 1;
                    }
                    Ok(Count(count))
                }
            }
            deserializer.deserialize_map(Visitor)
        }
    }
    serde_json::from_str::<Count>(text).unwrap().0
}

#[test]
fn every_fixture_has_the_fields_of_the_reference() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut both = Both::new();
    let mut n_fixtures = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let text = fs::read(entry.unwrap().path()).unwrap();
        let fixture: Value = serde_json::from_slice(&text).unwrap();
        both.check(&event_of(&fixture["body"]));
        n_fixtures += 1;
    }
    assert!(n_fixtures >= 20);
}

#[test]
fn events_of_all_kinds_have_the_fields_of_the_reference() {
    let now = Utc::now();
    let mut both = Both::new();
    let mut names = std::collections::BTreeSet::new();
    for event in generate(7, 5_000, now - TimeDelta::days(1), now, "a.example") {
        let added = both.check(&encode(&event, Id::OfEvent));
        names.extend(added.into_iter().map(|(name, _)| name));
    }
    for name in [
        "client.ip",
        "client.port",
        "event.category",
        "user.name",
        "host.name",
    ] {
        assert!(names.contains(name), "{name}");
    }
}

/// Each source at once, in values as they are and as they should not be, and by both ways to find
/// members: by place, and where a key is not known by comparing.
#[test]
fn each_source_is_taken_where_it_fits() {
    let whole = json!({
        "addr.local": "10.0.0.2:3022", "addr.remote": "[2001:db8::1]:50000", "argv": ["-l", "a\"b", 3],
        "cluster_name": "a.example", "code": "T4000I", "command": "ls -l", "db_user": "alice",
        "dst_addr": "10.0.0.3", "dst_port": 443, "ei": 7, "error": "no\nway", "event": "session.command",
        "exitCode": "2", "impersonator": "bob", "initial_command": ["ls", "-l\u{e9}", "\""],
        "login": "root", "method": "GET", "path": "/bin/ls", "pid": 3, "ppid": 2, "program": "ls",
        "proto": "ssh", "raw_query": "a=b", "reason": "why", "request_path": "/api", "response_code": 403,
        "server_addr": "10.9.9.9:1", "server_hostname": "node", "server_id": "id",
        "session_start": "2026-01-01T00:00:00Z", "session_stop": "2026-01-01T01:00:00Z",
        "src_addr": "10.0.0.4", "status_code": 200, "success": false, "uid": "u", "user": "alice",
        "user_agent": "curl", "verb": "get",
    });
    let mut both = Both::new();
    let added = both.check(&event_of(&whole));
    insta::assert_snapshot!(Value::Object(added), @r#"{"@timestamp":"2026-01-02T00:00:00.123Z","client.address":"[2001:db8::1]:50000","client.ip":"2001:db8::1","client.port":50000,"destination.address":"10.0.0.3","destination.ip":"10.0.0.3","destination.port":443,"error.message":"no\nway","event.action":"session.command","event.category":["process"],"event.code":"T4000I","event.dataset":"teleport.audit","event.end":"2026-01-01T01:00:00Z","event.id":"u","event.kind":"event","event.module":"teleport","event.outcome":"failure","event.reason":"why","event.sequence":7,"event.start":"2026-01-01T00:00:00Z","event.type":["start"],"host.hostname":"node","host.id":"id","host.name":"node","network.protocol":"ssh","orchestrator.cluster.name":"a.example","process.args":["-l","a\"b"],"process.command_line":"ls -lé \"","process.executable":"/bin/ls","process.exit_code":2,"process.name":"ls","process.parent.pid":2,"process.pid":3,"related.hosts":["node"],"related.ip":["2001:db8::1","10.0.0.3","10.0.0.2","10.0.0.4"],"related.user":["alice","bob","root"],"server.address":"10.0.0.2:3022","server.ip":"10.0.0.2","server.port":3022,"source.address":"10.0.0.4","source.ip":"10.0.0.4","url.query":"a=b","user.name":"alice","user_agent.original":"curl"}"#);
    let long = "x".repeat(40);
    for action in [
        "session.command",
        "app.session.request",
        "kube.request",
        "scp",
        "",
        "\u{e9}",
    ] {
        for more in [
            json!(null),
            json!(1),
            json!(-0.5),
            json!(true),
            json!([]),
            json!(["a", ["b"]]),
            json!({"name": "x"}),
            json!(""),
            json!("x".repeat(8191)),
            json!("\u{e9}".repeat(4096)),
            json!(1e300),
            json!("client:1"),
            json!(65_536),
        ] {
            let mut event = whole.clone();
            event["event"] = json!(action);
            for source in SOURCES.iter().filter(|source| **source != "event") {
                event[source] = more.clone();
                both.check(&event_of(&event));
            }
            // Too long to be a known key.
            event[&long] = json!(1);
            both.check(&event_of(&event));
        }
    }
}

#[test]
fn an_event_with_a_member_of_a_field_s_name_keeps_its_own() {
    let mut both = Both::new();
    for target in TARGETS {
        let event =
            json!({"event": "user.login", "user": "a", *target: "own", "addr.remote": "1.2.3.4:5"});
        let added = both.check(&event_of(&event));
        assert!(!added.contains_key(*target));
    }
    both.check(&event_of(&json!({})));
    both.check(&event_of(&json!({"@timestamp": 1})));
}

#[test]
fn the_template_maps_each_field() {
    let read = |text| serde_json::from_str::<Value>(text).unwrap();
    let base = read(include_str!("../../../templates/audit-events.json"));
    let ecs = read(include_str!("../../../templates/audit-events-ecs.json"));
    let of_base = &base["template"]["mappings"]["properties"];
    let of_ecs = ecs["mappings"]["properties"].as_object().unwrap();
    for target in TARGETS {
        let mapped = [of_base.get(target), of_ecs.get(*target)];
        assert_eq!(mapped.iter().flatten().count(), 1, "{target}");
    }
    assert_eq!(of_ecs.len() + 1, TARGETS.len());
}

#[test]
fn what_is_marked_has_its_marks_last() {
    let body = b"\x0a\x0d\x0a\x04user\x12\x05\x1a\x03a\xffb".as_slice();
    let event = AuditEvent {
        time: Some(Timestamp::from_millis(1_767_312_000_123)),
        body: body.into(),
        ..AuditEvent::default()
    };
    let mut out = Vec::new();
    let mut encoder = Encoder::new(&IndexPattern::default()).with_schema(Schema::Ecs);
    let encoded = encoder.encode(&event, &mut out).unwrap();
    let text = str::from_utf8(&out[encoded.source_start..]).unwrap();
    insta::assert_snapshot!(text.trim_end(), @r#"{"user":"a�b","@timestamp":"2026-01-02T00:00:00.123Z","event.dataset":"teleport.audit","event.kind":"event","event.module":"teleport","event.type":["info"],"related.user":["a�b"],"user.name":"a�b","event_indexer.marks":["invalid_utf8"]}"#);
}
