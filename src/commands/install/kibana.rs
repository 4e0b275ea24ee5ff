//! Data view, dashboards and saved searches in Kibana.

use crate::cli::Kibana;
use crate::commands::{Exit, Failure};
use crate::config::{ElasticsearchConfig, HostUrl};
use crate::elastic::client::Client;
use crate::elastic::kibana::Wanted;
use crate::output;

pub(super) async fn kibana(
    config: &ElasticsearchConfig,
    kibana: Kibana,
    dry_run: bool,
    overwrite: bool,
) -> Result<Exit, Failure> {
    let url = url(config, kibana.url)?;
    let wanted = Wanted {
        space: kibana.space,
        index_wildcard: config.index.wildcard(),
        overwrite,
    };
    if dry_run {
        for request in wanted.requests() {
            output::data(request)?;
        }
        return Ok(Exit::Done);
    }
    if config.auth.is_some() && !url.is_https() && !url.is_loopback() {
        output::note(format_args!(
            "warning: {url} is not encrypted: credentials cross the network in the clear; use https"
        ));
    }
    let client =
        Client::for_kibana(config, &url).map_err(|unusable| Failure::Unusable(unusable.into()))?;
    let mut lines = Vec::new();
    let installed = wanted.install(&client, |done| lines.push(done)).await;
    for line in lines {
        output::data(line)?;
    }
    installed?;
    Ok(Exit::Done)
}

/// The URL that was given, else the one in the cloud id.
fn url(config: &ElasticsearchConfig, given: Option<HostUrl>) -> Result<HostUrl, Failure> {
    if let Some(url) = given.or_else(|| config.kibana.clone()) {
        return Ok(url);
    }
    Err(Failure::Usage(
        "--kibana needs a URL, as no cloud id tells of one: --kibana https://kibana.example.com"
            .to_owned(),
    ))
}
