//! `check`: proves the configuration and both ends before anything runs. All checks run; the
//! findings come together.

use crate::commands::transfer::{Patience, reach_elasticsearch, reach_teleport};
use crate::commands::{Exit, Failure, install};
use crate::config::{Config, ElasticsearchConfig};
use crate::elastic::assets::State;
use crate::output::{self, Chain};
use crate::shutdown::Shutdown;
use crate::teleport::client::Remedy;

pub(super) async fn check(
    config: &Config,
    show_config: bool,
    shutdown: &Shutdown,
) -> Result<Exit, Failure> {
    if show_config {
        output::data(config.show().trim_end())?;
        return Ok(Exit::Done);
    }
    let findings = [
        teleport(config, shutdown).await,
        elasticsearch(
            config.elasticsearch.as_ref().expect("the command needs it"),
            shutdown,
        )
        .await,
    ];
    let mut exit = Exit::Done;
    for finding in findings.into_iter().flatten() {
        match finding {
            Ok(good) => output::data(format_args!("ok    {good}"))?,
            Err(bad) => {
                exit = Exit::Failed;
                output::data(format_args!("FAIL  {bad}"))?
            }
        };
    }
    Ok(exit)
}

type Finding = Result<String, String>;

fn words(failure: Failure) -> String {
    match failure {
        Failure::Usage(text) => text,
        Failure::Failed(error) => Chain(error.as_ref()).to_string(),
    }
}

async fn teleport(config: &Config, shutdown: &Shutdown) -> Vec<Finding> {
    let (client, server) = match reach_teleport(config, Patience::None, &shutdown.stop).await {
        Ok(Some(reached)) => reached,
        Ok(None) => return vec![Err("stopped".into())],
        Err(failure) => return vec![Err(words(failure))],
    };
    let mut findings = vec![Ok(format!(
        "Teleport {}, cluster {}",
        server.version, server.cluster
    ))];
    let today = chrono::Utc::now().date_naive();
    findings.push(match client.chunks(today).await {
        Ok(chunks) => Ok(format!(
            "audit events by the export API, {} chunks today",
            chunks.len()
        )),
        Err(failed) if failed.remedy() == Remedy::Unknown => match client.newest_event().await {
            Ok(_) => Ok("audit events by the search API".into()),
            Err(failed) => Err(format!("{}; {}", Chain(&failed), failed.mend())),
        },
        Err(failed) => Err(format!("{}; {}", Chain(&failed), failed.mend())),
    });
    findings
}

async fn elasticsearch(config: &ElasticsearchConfig, shutdown: &Shutdown) -> Vec<Finding> {
    let (client, server) = match reach_elasticsearch(config, Patience::None, &shutdown.stop).await {
        Ok(Some(reached)) => reached,
        Ok(None) => return vec![Err("stopped".into())],
        Err(failure) => return vec![Err(words(failure))],
    };
    let version = server
        .version
        .map_or_else(|| "of unknown version".into(), |v| v.to_string());
    let mut findings = vec![Ok(format!("Elasticsearch {version}"))];
    let settings = install::settings(config);
    match client.lacks_privileges(&settings.index_wildcard).await {
        Ok(lacking) if lacking.is_empty() => findings.push(Ok("privileges to write".into())),
        Ok(lacking) => findings.push(Err(format!(
            "the user lacks {} on {}: give the role in templates/elasticsearch-writer-role.json",
            lacking.join(", "),
            settings.index_wildcard
        ))),
        Err(failed) => findings.push(Err(Chain(&failed).to_string())),
    }
    match install::plan(&client, server, &settings).await {
        Ok(plan) => findings.extend(plan.steps.iter().map(|step| match step.state {
            State::UpToDate => Ok(format!("{step}: up to date")),
            State::Kept => Ok(format!("{step}: there")),
            State::Absent => Err(format!("{step}: missing; run `install`")),
            _ => Err(format!(
                "{step}: differs from this version's; run `install --dry-run`"
            )),
        })),
        // The writer's role need not let us look.
        Err(failure) => findings.push(Ok(format!("templates not compared: {}", words(failure)))),
    }
    findings
}
