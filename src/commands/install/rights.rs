//! Roles, users and API keys. A secret is shown once, on stdout as a line of the configuration or
//! in a file of its own, and nowhere else.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::Context;

use crate::cli::Grant;
use crate::commands::{Exit, Failure, end};
use crate::config::ElasticsearchConfig;
use crate::elastic::client::Client;
use crate::elastic::rights::{self, Kind, Made, Plan, Rights, RightsError, State, Step, Wanted};
use crate::output;
use crate::platform;

pub(super) async fn grant(
    client: &Client,
    config: &ElasticsearchConfig,
    grant: Grant,
    work: bool,
    dry_run: bool,
    overwrite: bool,
) -> Result<Exit, Failure> {
    let wanted = Wanted {
        rights: match (grant.verifier, grant.teleport_plugin) {
            (true, _) => Rights::Verifier,
            (_, true) => Rights::TeleportPlugin,
            _ => Rights::Writer,
        },
        template: config.install.template.clone(),
        index_wildcard: config.index.wildcard(),
        role: grant.role,
        user: grant.user,
        api_key: grant.api_key,
        new_secret: grant.new_secret,
        work,
    };
    let send = async |request| super::send(client, request).await;
    let Some(plan) = rights::plan(send, wanted).await? else {
        output::note(
            "note: security is switched off in this Elasticsearch: it has no roles, users or keys, \
             and lets everybody write",
        );
        return Ok(Exit::Done);
    };
    for step in &plan.steps {
        for difference in &step.differences {
            output::note(format_args!("{step}: {difference}"));
        }
    }
    if dry_run {
        return show(&plan, overwrite);
    }
    let mut exit = Exit::Done;
    let mut for_others = Vec::new();
    for step in &plan.steps {
        match apply(client, &plan, step, grant.secret_file.as_deref(), overwrite).await {
            Ok(()) => {}
            Err(Failed::Forbidden(reason)) => {
                output::note(format_args!("error: the {step} was not made: {reason}"));
                for_others.push(step);
                exit = exit.max(Exit::Failed);
            }
            Err(Failed::Otherwise(failure)) => exit = exit.max(end(Err(failure))),
        }
    }
    hand_over(&for_others, overwrite)?;
    Ok(exit)
}

/// The requests, as far as they can be known.
fn show(plan: &Plan, overwrite: bool) -> Result<Exit, Failure> {
    for step in &plan.steps {
        if let State::Hidden(reason) = &step.state {
            output::note(format_args!("note: {reason}"));
        }
        if let Some(request) = step.request(overwrite) {
            output::data(request)?;
        }
    }
    Ok(Exit::Done)
}

/// What somebody with more rights is to send for us.
fn hand_over(steps: &[&Step], overwrite: bool) -> Result<(), Failure> {
    let Some(first) = steps.first() else {
        return Ok(());
    };
    output::note(format_args!(
        "hint: give these requests, for Kibana's Dev Tools, to somebody who has one of the cluster \
         privileges {}",
        first.kind.needs()
    ));
    for step in steps {
        if let Some(request) = step.request(overwrite) {
            output::data(request)?;
        }
    }
    Ok(())
}

/// Why a step was not done.
enum Failed {
    Forbidden(String),
    Otherwise(Failure),
}

impl<E: Into<Failure>> From<E> for Failed {
    fn from(failure: E) -> Self {
        Self::Otherwise(failure.into())
    }
}

async fn apply(
    client: &Client,
    plan: &Plan,
    step: &Step,
    secret_file: Option<&Path>,
    overwrite: bool,
) -> Result<(), Failed> {
    // Opened before there is a secret, so that none is made that cannot be kept.
    let file = match secret_file {
        Some(path) if step.will_make_secret(overwrite) => Some((create(path)?, path)),
        _ => None,
    };
    let send = async |request| super::send(client, request).await;
    let Made { outcome, secret } = match plan.apply(step, send, overwrite).await {
        Ok(made) => made,
        Err(failed) => {
            if let Some((_, path)) = file {
                fs::remove_file(path).context("cannot remove the empty file for the secret")?;
            }
            return Err(match failed {
                RightsError::Forbidden(reason) => Failed::Forbidden(reason),
                other => anyhow::Error::from(other).into(),
            });
        }
    };
    output::data(format_args!("{step}: {outcome}"))?;
    let Some(secret) = secret else {
        return Ok(());
    };
    if step.kind == Kind::User {
        output::data(format_args!("user = {:?}", step.name))?;
    }
    let key = match step.kind {
        Kind::ApiKey if plan.is_for_verifier() => "verifier-api-key",
        Kind::ApiKey => "api-key",
        Kind::Role | Kind::User => "password",
    };
    match file {
        Some((mut file, path)) => {
            let text = format!("{}\n", secret.expose());
            let written = file
                .write_all(text.as_bytes())
                .and_then(|()| file.sync_all());
            written.with_context(|| {
                format!(
                    "the secret of the {step} is lost, since {} cannot be written: repeat with \
                     --new-secret",
                    path.display()
                )
            })?;
            output::data(format_args!(
                "{key} = {:?}",
                format!("file:{}", path.display())
            ))?;
        }
        None => {
            output::data(format_args!("{key} = {:?}", secret.expose()))?;
            output::note("note: the secret is shown this once and kept nowhere");
        }
    }
    if !step.ids.is_empty() {
        output::note(format_args!(
            "note: older keys of this name go on working until somebody invalidates them: {}",
            step.ids.join(", ")
        ));
    }
    Ok(())
}

fn create(path: &Path) -> Result<File, Failure> {
    platform::create_private(path).map_err(|error| {
        let words = format!(
            "no secret was made, since the file {} cannot be created",
            path.display()
        );
        Failure::Unusable(anyhow::Error::new(error).context(words))
    })
}
