//! `install`: puts the lifecycle policy and the index template into Elasticsearch, and gives rights
//! to who is to write there; data view and dashboards into Kibana.

mod kibana;
mod rights;

use std::num::NonZeroU32;

use anyhow::Context;
use bytes::Bytes;
use chrono::Utc;

use crate::cli::{Grant, Kibana};
use crate::commands::transfer::{Patience, reach_elasticsearch};
use crate::commands::{Exit, Failure, end};
use crate::config::{Config, ElasticsearchConfig};
use crate::elastic::assets::{
    self, Answer, InstallError, Method, Plan, Request, Server, Settings, Verdict,
};
use crate::elastic::client::{Body, Client, ClientError, Method as HttpMethod, OLDEST};
use crate::output;
use crate::shutdown::Shutdown;

/// What is to be installed beside the template and its policy.
pub(super) struct Wanted {
    pub(super) grant: Grant,
    pub(super) kibana: Option<Kibana>,
    /// What sharing a backfill needs.
    pub(super) work: bool,
}

pub(super) async fn install(
    config: &Config,
    dry_run: bool,
    overwrite: bool,
    wanted: Wanted,
    shutdown: &Shutdown,
) -> Result<Exit, Failure> {
    let config = config.elasticsearch.as_ref().expect("the command needs it");
    let reached = reach_elasticsearch(config, Patience::Seconds, &shutdown.stop).await?;
    let Some((client, server)) = reached else {
        return Ok(Exit::Failed);
    };
    // One part may fail without the others: each says what became of it.
    let mut exit = end(assets(&client, server, config, dry_run, overwrite).await);
    let Wanted {
        grant,
        kibana,
        work,
    } = wanted;
    if work {
        exit = exit.max(end(work_template(&client, server, dry_run, overwrite).await));
    }
    if grant.is_wanted() {
        let granted = rights::grant(&client, config, grant, work, dry_run, overwrite).await;
        exit = exit.max(end(granted));
    }
    if let Some(kibana) = kibana {
        let installed = kibana::kibana(config, kibana, dry_run, overwrite).await;
        exit = exit.max(end(installed));
    }
    Ok(exit)
}

/// The template and what it needs.
async fn assets(
    client: &Client,
    server: crate::elastic::client::Server,
    config: &ElasticsearchConfig,
    dry_run: bool,
    overwrite: bool,
) -> Result<Exit, Failure> {
    let settings = settings(config);
    let plan = plan(client, server, &settings).await?;
    for step in &plan.steps {
        for difference in &step.differences {
            output::note(format_args!("{step}: {difference}"));
        }
    }
    for note in &plan.notes {
        output::note(format_args!("note: {note}"));
    }
    if let Some(replicas) = settings.replicas
        && let Some(nodes) = data_nodes(client).await
        && u64::from(replicas) >= nodes
    {
        output::note(format_args!(
            "note: too few data nodes ({nodes}) for replicas = {replicas}: each index stays yellow; \
             --replicas auto makes no more copies than there are nodes for"
        ));
    }
    if dry_run {
        let requests = plan.steps.iter().filter_map(|step| step.request(overwrite));
        for request in requests {
            output::data(request)?;
        }
        return Ok(Exit::Done);
    }
    apply(client, &plan, overwrite).await?;
    verify(client, &plan, config).await
}

async fn apply(client: &Client, plan: &Plan, overwrite: bool) -> Result<(), Failure> {
    let send = async |request: Request| send(client, request).await;
    let mut lines = Vec::new();
    let applied = plan
        .apply(send, overwrite, |step, outcome| {
            lines.push(format!("{step}: {outcome}"))
        })
        .await;
    for line in lines {
        output::data(line)?;
    }
    match applied {
        Ok(()) => Ok(()),
        Err(in_the_way @ InstallError::InTheWay { .. }) => Err(in_the_way.into()),
        Err(failed) => Err(Failure::Failed(
            anyhow::Error::new(failed)
                .context("the installation is not complete; it may be repeated"),
        )),
    }
}

/// The template of the index by which machines share work.
async fn work_template(
    client: &Client,
    server: crate::elastic::client::Server,
    dry_run: bool,
    overwrite: bool,
) -> Result<Exit, Failure> {
    let plan = work_plan(client, server).await?;
    for step in &plan.steps {
        for difference in &step.differences {
            output::note(format_args!("{step}: {difference}"));
        }
        if dry_run && let Some(request) = step.request(overwrite) {
            output::data(request)?;
        }
    }
    if !dry_run {
        apply(client, &plan, overwrite).await?;
    }
    Ok(Exit::Done)
}

/// Compares that template with what is there.
pub(super) async fn work_plan(
    client: &Client,
    server: crate::elastic::client::Server,
) -> Result<Plan, InstallError> {
    let send = async |request: Request| send(client, request).await;
    assets::plan_work(send, known(server)).await
}

/// How many nodes can hold copies, if the server says so.
async fn data_nodes(client: &Client) -> Option<u64> {
    let request = Request {
        method: Method::Get,
        path: "/_cluster/health?filter_path=number_of_data_nodes".to_owned(),
        body: None,
    };
    let answer = send(client, request).await.ok()?;
    answer.body["number_of_data_nodes"].as_u64()
}

/// What is to be installed, by the configuration.
pub(super) fn settings(config: &ElasticsearchConfig) -> Settings {
    let days = config
        .install
        .retention
        .map(|age| age.as_secs() / (24 * 3600));
    Settings {
        template: config.install.template.clone(),
        policy: config.install.policy.clone(),
        index_wildcard: config.index.wildcard(),
        daily: config.index.is_daily_dotted(),
        schema: config.schema,
        retention_days: days.and_then(|days| NonZeroU32::new(u32::try_from(days).ok()?)),
        shards: NonZeroU32::new(config.install.shards).unwrap_or(NonZeroU32::MIN),
        replicas: config.install.replicas,
        refresh_interval: config.install.refresh_interval,
        dynamic: config.install.dynamic,
    }
}

/// Compares what should be there with what is.
pub(super) async fn plan(
    client: &Client,
    server: crate::elastic::client::Server,
    settings: &Settings,
) -> Result<Plan, Failure> {
    let send = async |request: Request| send(client, request).await;
    Ok(assets::plan(send, known(server), settings).await?)
}

/// Without the right to ask for the version, what the oldest server takes serves all.
pub(super) fn known(server: crate::elastic::client::Server) -> Server {
    Server {
        version: server.version.unwrap_or(OLDEST),
        serverless: server.serverless,
    }
}

/// Sends one request of the installation.
pub(super) async fn send(client: &Client, request: Request) -> Result<Answer, ClientError> {
    let method = match request.method {
        Method::Get => HttpMethod::Get,
        Method::Put => HttpMethod::Put,
        Method::Post => HttpMethod::Post,
    };
    let body = match request.body {
        Some(body) => Body::Json(Bytes::from(body.to_string())),
        None => Body::Empty,
    };
    let answer = client.request(method, &request.path, body).await?;
    let body = serde_json::from_slice(&answer.body).unwrap_or_default();
    Ok(Answer {
        status: answer.status,
        body,
    })
}

/// Asks the server what the next index would get.
async fn verify(
    client: &Client,
    plan: &Plan,
    config: &ElasticsearchConfig,
) -> Result<Exit, Failure> {
    let index_name = config
        .index
        .name_for(Utc::now().timestamp_millis())
        .context("this machine's clock is out of all bounds")?;
    let verdict = plan
        .verify(async |request| send(client, request).await, &index_name)
        .await?;
    match verdict {
        Verdict::AsInstalled => {
            output::note(format_args!(
                "verified: a new index {index_name} gets this template"
            ));
            Ok(Exit::Done)
        }
        Verdict::NotAllowed(reason) => {
            output::note(format_args!(
                "not verified: this user may not simulate an index: {reason}"
            ));
            Ok(Exit::Done)
        }
        Verdict::Shadowed => Err(Failure::Failed(anyhow::anyhow!(
            "another index template with a higher priority applies to {index_name}: \
             lower its priority or change its pattern"
        ))),
        Verdict::Differs(differences) => {
            for difference in differences {
                output::note(format_args!("{difference}"));
            }
            Err(Failure::Failed(anyhow::anyhow!(
                "a new index {index_name} would not get what the template says"
            )))
        }
    }
}
