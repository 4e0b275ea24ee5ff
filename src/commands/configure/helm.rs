//! The values for the project's Helm chart. They hold no secret: of those the chart takes names.

use serde_json::{Map, Value};

use super::handover::{self, Handover};
use super::manifest;
use crate::config::keys;
use crate::config::written::Written;

/// The file's text, with these settings beside those that are known.
pub(super) fn values(
    written: &Written,
    changes: &[(&'static str, &str)],
    handover: Option<&Handover>,
) -> String {
    let mut config = Map::new();
    for (key, value) in written.values() {
        if !super::is_of_this_machine(key) {
            put(&mut config, key.name, value);
        }
    }
    for (name, value) in changes {
        put(&mut config, name, Value::from(*value));
    }
    if written.is_set(keys::CLOUD_ID.name) {
        // Else those of the chart's own values would stand beside it.
        put(&mut config, keys::HOSTS.name, Value::Null);
    } else if !written.is_set(keys::HOSTS.name) {
        let example = vec![Value::from("https://elasticsearch.example.com:9200")];
        put(&mut config, keys::HOSTS.name, Value::from(example));
    }
    let mut lines = String::new();
    write(&config, 1, &mut lines);
    let ca_secret = written.is_set(keys::CA.name);
    include_str!("../../../templates/configure/helm-values.yaml")
        .replace("@CONFIG@\n", &lines)
        .replace(
            "@IMPORT@\n",
            &handover::values(handover, manifest::is_led(written)),
        )
        .replace("@CA-SECRET@", if ca_secret { super::SECRET } else { "" })
        .replace("@SECRET@", super::SECRET)
}

/// Puts a value where its dotted name says.
fn put(table: &mut Map<String, Value>, name: &str, value: Value) {
    match name.split_once('.') {
        Some((outer, inner)) => {
            let entry = table.entry(outer).or_insert_with(|| Map::new().into());
            let table = entry.as_object_mut().expect("no setting is a table");
            put(table, inner, value);
        }
        None => drop(table.insert(name.to_owned(), value)),
    }
}

/// Tables as YAML; what is no table is JSON, which YAML takes.
fn write(table: &Map<String, Value>, depth: usize, text: &mut String) {
    for (name, value) in table {
        text.push_str(&format!("{:1$}{name}:", "", depth * 2));
        match value {
            Value::Object(table) => {
                text.push('\n');
                write(table, depth + 1, text);
            }
            value => text.push_str(&format!(" {value}\n")),
        }
    }
}
