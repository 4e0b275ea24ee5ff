//! Makes up audit events: the types, codes, fields and proportions of a busy cluster, with
//! invented people and machines and addresses from the ranges reserved for documentation.
//!
//! The same arguments give the same events. Among them are the shapes that are odd and real:
//! keys with dots in them (`addr.local`, `addr.remote`, and `addr` beside them), labels with dots
//! and slashes, `ei` as a marker near 2^31, numbers above 2^32, empty lists, nulls, nested lists,
//! one key with different types in different events, names that are no ASCII.

mod cast;
mod catalogue;
pub(crate) mod random;
mod recordings;
mod services;
mod sessions;
mod shells;
mod wire;

use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::Value;

use crate::event::{AuditEvent, Timestamp};
use catalogue::Scene;

pub(crate) use random::Random;
pub use recordings::recording;
pub use wire::struct_bytes;

/// `count` events of `cluster` spread evenly over `from` (inclusive) to `to` (exclusive), in the
/// order of their times, which are whole milliseconds. Each is a JSON object as Teleport's event
/// would be: `event`, `code`, `uid`, `time`, `ei`, `cluster_name` and the fields of its type.
///
/// With a range of no length all events have the time `from`.
pub fn generate(
    seed: u64,
    count: u64,
    from: DateTime<Utc>,
    to: DateTime<Utc>,
    cluster: &str,
) -> impl Iterator<Item = Value> + Send + use<> {
    let mut scene = Scene::new(Random::new(seed), cluster);
    let start = i128::from(from.timestamp_millis());
    let length = (i128::from(to.timestamp_millis()) - start).max(0);
    let share = move |place: u64| start + length * i128::from(place) / i128::from(count.max(1));
    (0..count).map(move |place| {
        // Each event has its own share of the range: in order, and yet not like clockwork.
        let (low, high) = (share(place), share(place + 1));
        let width = u64::try_from((high - low).max(1)).expect("the range was made of i64");
        let millis = low + i128::from(scene.random.below(width));
        let time = i64::try_from(millis)
            .ok()
            .and_then(DateTime::from_timestamp_millis)
            .expect("between two times there are only times");
        scene.event(time)
    })
}

/// The form in which Teleport writes times: RFC 3339, UTC, milliseconds.
fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// What the header of an `EventUnstructured` says of the event's identity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Id {
    /// As Teleport: the `uid`, and without one the lower-hex SHA-256 of the event's JSON.
    #[default]
    OfEvent,
    /// Nothing at all, as some old rows have it.
    Empty,
}

/// The event as Teleport sends it: header fields taken from the JSON's `event`, `time` and `ei`,
/// body as a protobuf Struct. Without a readable `time` the header has none.
pub fn encode(value: &Value, id: Id) -> AuditEvent {
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or("");
    let id = match (id, text("uid")) {
        (Id::Empty, _) => String::new(),
        (Id::OfEvent, "") => {
            let digest = ring::digest::digest(&ring::digest::SHA256, value.to_string().as_bytes());
            let hex = digest.as_ref().iter().map(|byte| format!("{byte:02x}"));
            hex.collect()
        }
        (Id::OfEvent, uid) => uid.to_owned(),
    };
    let time = DateTime::parse_from_rfc3339(text("time")).ok();
    AuditEvent {
        event_type: Bytes::copy_from_slice(text("event").as_bytes()),
        id: Bytes::from(id),
        time: time.map(|time| Timestamp {
            seconds: time.timestamp(),
            // A leap second has a second's worth of nanoseconds on top; protobuf knows none.
            nanos: i32::try_from(time.timestamp_subsec_nanos().min(999_999_999))
                .expect("below 10^9"),
        }),
        index: value.get("ei").and_then(Value::as_i64).unwrap_or(0),
        body: Bytes::from(struct_bytes(value)),
        session: None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use chrono::TimeDelta;
    use serde_json::json;

    use super::*;

    fn noon() -> DateTime<Utc> {
        DateTime::from_timestamp(1_790_000_000, 0).unwrap()
    }

    fn sample(count: u64) -> Vec<Value> {
        generate(
            7,
            count,
            noon(),
            noon() + TimeDelta::hours(6),
            "demo.example.com",
        )
        .collect()
    }

    #[test]
    fn the_same_seed_makes_the_same_events_and_another_makes_others() {
        assert_eq!(sample(500), sample(500));
        let other = generate(
            8,
            500,
            noon(),
            noon() + TimeDelta::hours(6),
            "demo.example.com",
        );
        assert_ne!(sample(500), other.collect::<Vec<_>>());
    }

    #[test]
    fn events_are_in_time_order_within_the_range_and_carry_the_common_fields() {
        let events = sample(5_000);
        let mut uids = BTreeSet::new();
        let mut last = String::new();
        for event in &events {
            let text = |key: &str| {
                event[key]
                    .as_str()
                    .unwrap_or_else(|| panic!("{key}: {event}"))
            };
            assert!(uids.insert(text("uid").to_owned()));
            let uid: Vec<usize> = text("uid").split('-').map(str::len).collect();
            assert_eq!(uid, [8, 4, 4, 4, 12]);
            assert!(text("time").ends_with('Z') && text("time").len() == 24);
            assert!(text("time") >= last.as_str());
            last = text("time").to_owned();
            assert!(!text("event").is_empty() && !text("code").is_empty());
            assert_eq!(text("cluster_name"), "demo.example.com");
            assert!(event["ei"].is_u64(), "{event}");
        }
        assert!(events[0]["time"].as_str().unwrap() >= rfc3339(noon()).as_str());
        assert!(last < rfc3339(noon() + TimeDelta::hours(6)));
        let same_time = generate(1, 3, noon(), noon(), "x");
        assert!(
            same_time
                .into_iter()
                .all(|event| event["time"] == rfc3339(noon()))
        );
    }

    #[test]
    fn the_sample_has_many_types_and_the_odd_shapes() {
        let events = sample(30_000);
        let mut types: BTreeMap<&str, usize> = BTreeMap::new();
        for event in &events {
            *types.entry(event["event"].as_str().unwrap()).or_default() += 1;
        }
        assert!(types.len() >= 45, "{types:?}");
        for required in [
            "user.login",
            "cert.create",
            "session.start",
            "session.data",
            "session.end",
            "session.upload",
            "session.join",
            "session.leave",
            "session.command",
            "session.network",
            "session.disk",
            "exec",
            "scp",
            "sftp",
            "port",
            "subsystem",
            "kube.request",
            "db.session.start",
            "db.session.query",
            "db.session.end",
            "db.session.postgres.statements.parse",
            "app.session.start",
            "app.session.request",
            "app.session.end",
            "windows.desktop.session.start",
            "windows.desktop.session.end",
            "role.created",
            "role.updated",
            "user.create",
            "user.update",
            "lock.created",
            "access_request.create",
            "access_request.review",
            "bot.join",
            "instance.join",
            "mfa.add",
            "device.enroll",
            "join_token.create",
            "saml.idp.auth",
            "auth",
            "client.disconnect",
            "x11-forward",
            "session.rejected",
            "access_list.create",
            "unknown",
        ] {
            assert!(types.contains_key(required), "no {required} in {types:?}");
        }
        let some = |what: &str, holds: &dyn Fn(&Value) -> bool| {
            assert!(events.iter().any(holds), "no event with {what}");
        };
        some("addr beside addr.local", &|event| {
            event["addr"].is_string() && event["addr.local"].is_string()
        });
        some("a label with dot and slash", &|event| {
            event["server_labels"].as_object().is_some_and(|labels| {
                labels
                    .keys()
                    .any(|key| key.contains('.') && key.contains('/'))
            })
        });
        some("a number above 2^32", &|event| {
            event["cgroup_id"].as_u64() > Some(1 << 32)
        });
        some("an empty list", &|event| {
            let empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
            event.as_object().unwrap().values().any(empty)
        });
        some("a failed login", &|event| {
            event["event"] == "user.login" && event["success"] == false
        });
        some("text beyond ASCII", &|event| !event.to_string().is_ascii());
        some("a list in a list", &|event| {
            let lists = |value: &Value| {
                value
                    .as_array()
                    .is_some_and(|v| v.iter().any(Value::is_array))
            };
            event.as_object().unwrap().values().any(lists)
        });
    }

    #[test]
    fn a_recorded_session_is_of_one_piece() {
        let events = sample(20_000);
        let of = |kind: &'static str| events.iter().filter(move |event| event["event"] == kind);
        let starts: BTreeMap<&str, &Value> = of("session.start")
            .map(|event| (event["sid"].as_str().unwrap(), event))
            .collect();
        let mut ended = 0;
        for end in of("session.end") {
            let Some(start) = starts.get(end["sid"].as_str().unwrap()) else {
                continue;
            };
            ended += 1;
            assert_eq!(start["user"], end["user"]);
            assert_eq!(start["server_id"], end["server_id"]);
            assert_eq!(start["time"], end["session_start"]);
        }
        assert!(ended > 100, "{ended}");
        for upload in of("session.upload") {
            assert_eq!(upload["ei"], 2_147_483_647);
        }
    }

    #[test]
    fn the_header_says_what_the_body_says() {
        let event = json!({
            "event": "user.login", "uid": "u-1", "ei": 4, "time": "2026-02-03T04:05:06.789Z",
        });
        let encoded = encode(&event, Id::OfEvent);
        assert_eq!(encoded.event_type, "user.login");
        assert_eq!(encoded.id, "u-1");
        assert_eq!(encoded.index, 4);
        assert_eq!(encoded.time.unwrap().millis(), 1_770_091_506_789);
        assert_eq!(encode(&event, Id::Empty).id, "");
        let nameless = encode(&json!({"event": "print"}), Id::OfEvent);
        assert_eq!(
            nameless.id,
            "3739b2d5355eae7b794640df37f713c5814396245e80023a5edb83e063330e3d"
        );
        assert_eq!(nameless.time, None);
    }
}
