//! The templates of the indices by which machines share work, and in which a daemon whose state lies
//! in Elasticsearch keeps its dead letters.

use std::error::Error;

use serde_json::json;

use super::exchange::{Answer, InstallError, Request};
use super::wanted::Wanted;
use super::{Asset, Plan, Server, render};
use crate::elastic::{dead_letters, work};

const TEMPLATES: [(&str, &str); 2] = [
    (work::INDEX, include_str!("../../../templates/work.json")),
    (
        dead_letters::INDEX,
        include_str!("../../../templates/dead-letter.json"),
    ),
];

/// Compares the templates with what Elasticsearch holds.
///
/// # Errors
/// As [`plan`](super::plan).
pub async fn plan_work<S, E>(send: S, server: Server) -> Result<Plan, InstallError>
where
    S: AsyncFn(Request) -> Result<Answer, E>,
    E: Error + Send + Sync + 'static,
{
    let mut steps = Vec::new();
    let mut templates = Vec::new();
    for (name, text) in TEMPLATES {
        let mut template = render::embedded(text);
        if !server.serverless {
            let index = &mut template["template"]["settings"]["index"];
            // With one shard a search that shows a write shows all that were answered before it.
            index["number_of_shards"] = json!(1);
            index["auto_expand_replicas"] = json!("0-1");
        }
        let template = render::stamped(template);
        let wanted = Wanted {
            asset: Asset::Template,
            name: name.to_owned(),
            content: template.clone(),
        };
        let doing = wanted.doing("read");
        let step = wanted.compare(&send).await?;
        steps.push(step.ok_or(InstallError::Unexpected { doing })?);
        templates.push(template);
    }
    Ok(Plan {
        steps,
        notes: Vec::new(),
        template: templates.swap_remove(0),
    })
}
