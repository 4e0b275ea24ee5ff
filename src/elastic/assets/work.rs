//! The template of the index by which machines share work.

use std::error::Error;

use serde_json::json;

use super::exchange::{Answer, InstallError, Request};
use super::wanted::Wanted;
use super::{Asset, Plan, Server, render};
use crate::elastic::work::INDEX;

const TEMPLATE: &str = include_str!("../../../templates/work.json");

/// Compares the template with what Elasticsearch holds.
///
/// # Errors
/// As [`plan`](super::plan).
pub async fn plan_work<S, E>(send: S, server: Server) -> Result<Plan, InstallError>
where
    S: AsyncFn(Request) -> Result<Answer, E>,
    E: Error + Send + Sync + 'static,
{
    let mut template = render::embedded(TEMPLATE);
    if !server.serverless {
        let index = &mut template["template"]["settings"]["index"];
        // With one shard a search that shows a write shows all that were answered before it.
        index["number_of_shards"] = json!(1);
        index["auto_expand_replicas"] = json!("0-1");
    }
    let template = render::stamped(template);
    let wanted = Wanted {
        asset: Asset::Template,
        name: INDEX.to_owned(),
        content: template.clone(),
    };
    let doing = wanted.doing("read");
    let step = wanted.compare(&send).await?;
    Ok(Plan {
        steps: vec![step.ok_or(InstallError::Unexpected { doing })?],
        notes: Vec::new(),
        template,
    })
}
