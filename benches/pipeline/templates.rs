//! What the index template costs on the disk: the same events under the one of Teleport's guide,
//! which leaves all fields to guesses, and under ours, each with either codec.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::elasticsearch::through_program;
use super::median;
use super::servers::{Elasticsearch, Teleport};

/// As the guide has it, word for word.
const GUIDE: &str = r#"{"index_patterns":["audit-events-*"],
    "template":{"settings":{},"mappings":{"dynamic":"true"}}}"#;

const PATH: &str = "/_index_template/audit-events";

pub(crate) fn measure(events: usize, turns: usize) -> Result<()> {
    let teleport = Teleport::start(events, &[])?;
    let server = Elasticsearch::start()?;
    let ours = installed(&server)?;
    let guide: Value = serde_json::from_str(GUIDE)?;
    let ways = [
        ("the guide's", "default", with_codec(&guide, "default")),
        (
            "the guide's",
            "best_compression",
            with_codec(&guide, "best_compression"),
        ),
        ("ours", "default", with_codec(&ours, "default")),
        ("ours", "best_compression", ours),
    ];
    let mut sizes: [Vec<f64>; 4] = Default::default();
    let mut safe_forms = [0; 4];
    for turn in 0..turns {
        for (place, (_, _, template)) in ways.iter().enumerate() {
            // Its indices first: a template in use by none can be anything.
            server.clear()?;
            server.request("PUT", PATH, &template.to_string())?;
            through_program(&teleport, &server, events)?;
            server.request("POST", "/audit-events-*/_forcemerge?max_num_segments=1", "")?;
            sizes[place].push(server.stored_bytes()?);
            if turn == 0 {
                let refused = json!({"query": {"exists": {"field": "event_indexer.refused.type"}}});
                let found =
                    server.request("POST", "/audit-events-*/_count", &refused.to_string())?;
                safe_forms[place] = found["count"].as_u64().context("there is a count")?;
            }
        }
    }
    println!("{events} events, {turns} turns, merged to one segment a day\n");
    println!("| template | codec | bytes a document | of the guide's | in safe form |");
    println!("|---|---|---|---|---|");
    let sizes = sizes.map(|sizes| median(sizes.into_iter()));
    for (place, (name, codec, _)) in ways.iter().enumerate() {
        println!(
            "| {name} | {codec} | {:.0} | {:.2} | {} |",
            sizes[place] / events as f64,
            sizes[place] / sizes[0],
            safe_forms[place]
        );
    }
    Ok(())
}

/// Our template as it can be put again.
fn installed(server: &Elasticsearch) -> Result<Value> {
    let mut found = server.request("GET", PATH, "")?;
    let mut template = found["index_templates"][0]["index_template"].take();
    let members = template.as_object_mut().context("the template is there")?;
    // Elasticsearch tells these dates and does not take them.
    members
        .retain(|name, _| !name.starts_with("created_date") && !name.starts_with("modified_date"));
    Ok(template)
}

fn with_codec(template: &Value, codec: &str) -> Value {
    let mut template = template.clone();
    template["template"]["settings"]["index"]["codec"] = codec.into();
    template
}
