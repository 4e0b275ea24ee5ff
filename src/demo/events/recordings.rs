//! What is in the recording of a session.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use super::random::Random;
use super::rfc3339;

/// The recording that a `session.upload` event tells of: its session and its events, in the forms in
/// which Teleport has them. What was on the screen has neither id nor session. `None` for any other
/// event.
pub fn recording(event: &Value) -> Option<(&str, Vec<Value>)> {
    if event["event"] != "session.upload" {
        return None;
    }
    let session = event["sid"].as_str()?;
    let upload: DateTime<Utc> = event["time"].as_str()?.parse().ok()?;
    let cluster = &event["cluster_name"];
    let seed = session.bytes().fold(0, |seed: u64, byte| {
        seed.wrapping_mul(31).wrapping_add(byte.into())
    });
    let mut random = Random::new(seed);
    let count = i64::try_from(random.between(5, 16)).expect("small");
    let start = upload - TimeDelta::seconds(10 * count);
    let events = (0..count).map(|place| {
        let time = rfc3339(start + TimeDelta::seconds(10 * place));
        let common = |kind: &str, code: &str, uid: String| {
            json!({"event": kind, "code": code, "uid": uid, "time": time, "ei": place,
                "cluster_name": cluster})
        };
        let uid = random.uuid();
        if place == 0 || place == count - 1 {
            let (kind, code) = if place == 0 {
                ("session.start", "T2000I")
            } else {
                ("session.end", "T2004I")
            };
            let mut event = common(kind, code, uid);
            event["sid"] = session.into();
            event["user"] = "ada@example.com".into();
            event["login"] = "ada".into();
            event["proto"] = "ssh".into();
            return event;
        }
        match place % 4 {
            1 | 2 => json!({"event": "print", "time": time, "ei": place, "ci": place - 1,
                "bytes": 2, "ms": 10_000 * place, "offset": 2 * place, "data": "JCA="}),
            3 => {
                let mut event = common("resize", "T2002I", uid);
                event["size"] = "120:40".into();
                event
            }
            _ => {
                let mut event = common("session.command", "T4000I", uid);
                event["sid"] = session.into();
                event["program"] = "ls".into();
                event["argv"] = json!(["-la", "/var/log"]);
                event["pid"] = random.between(1000, 60_000).into();
                event
            }
        }
    });
    Some((session, events.collect()))
}
