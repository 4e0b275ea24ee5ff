//! The rules and the dashboard for Prometheus, by Prometheus' own tool.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::{scratch, tool};

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/alerts"))
}

/// What it says, if it is content.
fn run(promtool: &Path, args: &[&str]) -> String {
    let output = Command::new(promtool)
        .args(args)
        .current_dir(folder())
        .output();
    let output = output.expect("promtool can be run");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{args:?}: {said}");
    said
}

/// All queries of the dashboard.
fn queries(part: &Value, found: &mut BTreeSet<String>) {
    match part {
        Value::Object(members) => {
            if let Some(query) = members.get("expr").and_then(Value::as_str) {
                found.insert(query.to_owned());
            }
            members.values().for_each(|member| queries(member, found));
        }
        Value::Array(items) => items.iter().for_each(|item| queries(item, found)),
        _ => {}
    }
}

#[test]
fn prometheus_understands_rules_and_dashboard_and_the_rules_rouse_whom_they_should() {
    let Some(promtool) = tool("promtool") else {
        return;
    };
    let rules = "teleport-event-indexer.rules.yaml";
    let said = run(&promtool, &["check", "rules", "--lint-fatal", rules]);
    assert!(said.contains("rules found"), "{said}");
    run(&promtool, &["test", "rules", "tests.yaml"]);
    // Each rule has a test in which it speaks.
    let [rules, tests] = [rules, "tests.yaml"]
        .map(|name| std::fs::read_to_string(folder().join(name)).expect("it is there"));
    let names = rules
        .lines()
        .filter_map(|line| line.split_once("- alert: "));
    for (_, name) in names {
        let mut of_rule = tests
            .split("alertname: ")
            .filter(|test| test.starts_with(name));
        let speaks = |test: &str| {
            let (test, _) = test.split_once("\n      - ").unwrap_or((test, ""));
            test.contains("exp_labels")
        };
        assert!(of_rule.any(speaks), "{name}");
    }

    let dashboard = std::fs::read_to_string(folder().join("grafana-dashboard.json"));
    let dashboard: Value = serde_json::from_str(&dashboard.expect("it is there")).expect("JSON");
    let mut found = BTreeSet::new();
    queries(&dashboard, &mut found);
    assert!(found.len() >= 18, "{found:?}");
    // Grafana's variables are not Prometheus' matter.
    let rules = found.iter().enumerate().map(|(n, query)| {
        let query = query
            .replace("$__rate_interval", "5m")
            .replace("$job", ".*")
            .replace("$cluster", ".*");
        json!({"record": format!("query:{n}"), "expr": query})
    });
    let file = json!({"groups": [{"name": "dashboard", "rules": rules.collect::<Vec<_>>()}]});
    let folder = scratch("dashboard");
    let file_name = folder.path().join("queries.yaml");
    std::fs::write(&file_name, file.to_string()).expect("there is room");
    let said = run(
        &promtool,
        &["check", "rules", &file_name.display().to_string()],
    );
    assert!(
        said.contains(&format!("{} rules found", found.len())),
        "{said}"
    );
}
