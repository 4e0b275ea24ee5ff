//! What goes wrong on Teleport's side, one after the other: the result is always the same.

use serde_json::{Value, json};

use super::{Api, START, start_time};
use crate::support::elasticsearch::{Elasticsearch, NEWEST};
use crate::support::journey::{Journey, install};

/// Of each log: enough for several chunks a day and for dozens of pages.
const EVENTS: u64 = 5_000;

/// A fault by name, how it is ordered, and the place of the number which shows that it came.
type Fault = (&'static str, Value, &'static str);

#[test]
fn whatever_breaks_while_exporting_the_result_is_exact() {
    let broken = "/codes/ExportUnstructuredEvents Unavailable";
    let internal = json!({"stream_error_every": 400, "stream_error_code": "INTERNAL"});
    walk(
        Api::Export,
        &["--chunk", "500"],
        &[
            ("reset", json!({"reset_every": 700}), "/resets"),
            (
                "closed",
                json!({"reset_every": 700, "reset_mode": "fin"}),
                "/resets",
            ),
            ("broken", json!({"stream_error_every": 120}), broken),
            (
                "internal",
                internal,
                "/codes/ExportUnstructuredEvents Internal",
            ),
            (
                "exhausted",
                json!({"resource_exhausted_every": 3}),
                "/codes/ExportUnstructuredEvents ResourceExhausted",
            ),
            // Of five chunks at once one at least comes to its end before each reset.
            (
                "cursor",
                json!({"bad_cursor": true, "reset_every": 3_000}),
                "/codes/ExportUnstructuredEvents InvalidArgument",
            ),
            (
                "border",
                json!({"dup_page_border": true, "stream_error_every": 300}),
                "/already_there",
            ),
        ],
        &json!({"delay_per_event_us": 5_000}),
    );
}

#[test]
fn whatever_breaks_while_searching_the_result_is_exact() {
    walk(
        Api::Search,
        &["--page-bytes", "100000"],
        &[
            ("reset", json!({"reset_every": 700}), "/resets"),
            (
                "closed",
                json!({"reset_every": 700, "reset_mode": "fin"}),
                "/resets",
            ),
            (
                "exhausted",
                json!({"resource_exhausted_every": 3}),
                "/codes/GetUnstructuredEvents ResourceExhausted",
            ),
            (
                "key",
                json!({"bad_cursor": true}),
                "/codes/GetUnstructuredEvents InvalidArgument",
            ),
            ("border", json!({"dup_page_border": true}), "/already_there"),
            ("empty", json!({"empty_page_every": 5}), "/keys_dropped"),
        ],
        &json!({"delay_ms": 500}),
    );
}

/// Reads a log of its own through each of the faults, and at last, slowed down, through a restart
/// of the Auth Service.
fn walk(api: Api, flags: &[&str], faults: &[Fault], slow: &Value) {
    let Some(elasticsearch) = Elasticsearch::shared(NEWEST, true) else {
        return;
    };
    let name = format!("e2e-faults-{}", api.name());
    install(&name, elasticsearch);
    let unavailable = match api {
        Api::Export => "/codes/ExportUnstructuredEvents Unavailable",
        Api::Search => "/codes/GetUnstructuredEvents Unavailable",
    };
    let restart = ("restart", slow.clone(), unavailable);
    for (fault, settings, evidence) in faults.iter().chain([&restart]) {
        let Some(teleport) = api.log(EVENTS, flags) else {
            return;
        };
        teleport.faults(settings);
        let prefix = format!("{name}-{fault}");
        let journey = Journey::installed(&name, &prefix, &teleport, elasticsearch, &start_time());
        let mut running = journey.spawn(&START);
        if *fault == "restart" {
            journey.wait_for_created(1, &mut running);
            teleport.faults(&json!({"unavailable_seconds": 2}));
            assert!(teleport.kill_connections() > 0);
        }
        let output = running.wait();
        assert_eq!(output.code, Some(0), "{fault}: {}", output.stderr);
        let status = journey.status();
        assert_eq!(status["gaps"]["count"], 0, "{fault}: {}", output.stderr);
        let complete = journey.assert_complete();
        assert_eq!(complete as u64, EVENTS, "{fault}");

        let mut seen = teleport.stats();
        seen["already_there"] = status["runs"][0]["already_there"].clone();
        seen["keys_dropped"] = output.stderr.matches("dropping the key").count().into();
        let times = seen.pointer(evidence).and_then(Value::as_u64).unwrap_or(0);
        assert!(times > 0, "{fault} did not come: {seen}\n{}", output.stderr);
    }
}
