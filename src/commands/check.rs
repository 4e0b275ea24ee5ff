//! `check`: proves the configuration and both ends before anything runs. All checks run; the
//! findings come together.

use chrono::{SecondsFormat, Utc};

use crate::commands::transfer::{Patience, reach_elasticsearch, reach_teleport};
use crate::commands::{Exit, Failure, install, mend};
use crate::config::{Config, ElasticsearchConfig};
use crate::elastic::assets::State;
use crate::output::{self, Chain, Reader};
use crate::shutdown::Shutdown;
use crate::teleport::audit_log::SourceError;
use crate::teleport::client::Remedy;
use crate::teleport::identity::Credentials;

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
            Err(Fault { what, mend }) => {
                exit = Exit::Failed;
                output::data(format_args!("FAIL  {what}"))?;
                match mend {
                    Some(mend) => output::data(format_args!("      hint: {mend}"))?,
                    None => Reader::There,
                }
            }
        };
    }
    Ok(exit)
}

type Finding = Result<String, Fault>;

/// Something that is not as it should be, and what to do about it.
struct Fault {
    what: String,
    mend: Option<String>,
}

impl Fault {
    fn new(what: String, mend: &str) -> Self {
        let mend = Some(mend.to_owned());
        Self { what, mend }
    }
}

impl<E: Into<Failure>> From<E> for Fault {
    fn from(failure: E) -> Self {
        match failure.into() {
            Failure::Usage(what) => Self { what, mend: None },
            Failure::Unusable(error) | Failure::Failed(error) => Self {
                what: Chain(error.as_ref()).to_string(),
                mend: mend::mend(error.as_ref()),
            },
        }
    }
}

fn stopped() -> Fault {
    Fault {
        what: "stopped".to_owned(),
        mend: None,
    }
}

async fn teleport(config: &Config, shutdown: &Shutdown) -> Vec<Finding> {
    let (client, server) = match reach_teleport(config, Patience::None, &shutdown.stop).await {
        Ok(Some(reached)) => reached,
        Ok(None) => return vec![Err(stopped())],
        Err(failure) => return vec![Err(failure.into())],
    };
    let route = client.route().await;
    let route = route.map_or_else(String::new, |route| format!(", connected {route}"));
    let mut findings = vec![
        Ok(format!(
            "Teleport {}, cluster {}{route}",
            server.version, server.cluster
        )),
        Ok(credentials(&client.credentials())),
    ];
    if server.is_too_old() {
        findings.push(Err(Fault::new(
            format!("Teleport {} has no API for audit events", server.version),
            "Teleport 14 or newer is needed",
        )));
        return findings;
    }
    let today = Utc::now().date_naive();
    findings.push(match client.chunks(today).await {
        Ok(chunks) => Ok(format!(
            "audit events by the export API, {} chunks today",
            chunks.len()
        )),
        Err(failed) if failed.remedy() == Remedy::Unknown => match client.newest_event().await {
            Ok(_) => Ok("audit events by the search API".into()),
            Err(failed) if failed.remedy() == Remedy::Unknown => Err(SourceError::TooOld.into()),
            Err(failed) => Err(failed.into()),
        },
        Err(failed) => Err(failed.into()),
    });
    findings
}

/// Who we are, and for how long.
fn credentials(credentials: &Credentials) -> String {
    let end = credentials.not_after;
    let end = end.to_rfc3339_opts(SecondsFormat::Secs, true);
    let text = format!(
        "credentials of user {}, valid until {end}",
        credentials.user
    );
    if credentials.ends_soon(Utc::now()) {
        return format!("{text}, which is soon: {}", credentials.renewal());
    }
    text
}

async fn elasticsearch(config: &ElasticsearchConfig, shutdown: &Shutdown) -> Vec<Finding> {
    let (client, server) = match reach_elasticsearch(config, Patience::None, &shutdown.stop).await {
        Ok(Some(reached)) => reached,
        Ok(None) => return vec![Err(stopped())],
        Err(failure) => return vec![Err(failure.into())],
    };
    let version = server
        .version
        .map_or_else(|| "of unknown version".into(), |v| v.to_string());
    let mut findings = vec![Ok(format!("Elasticsearch {version}"))];
    let settings = install::settings(config);
    match client.lacks_privileges(&settings.index_wildcard).await {
        Ok(lacking) if lacking.is_empty() => findings.push(Ok("privileges to write".into())),
        Ok(lacking) => findings.push(Err(Fault::new(
            format!(
                "the user lacks {} on {}",
                lacking.join(", "),
                settings.index_wildcard
            ),
            "give the role in templates/elasticsearch-writer-role.json",
        ))),
        Err(failed) => findings.push(Err(failed.into())),
    }
    match install::plan(&client, server, &settings).await {
        Ok(plan) => findings.extend(plan.steps.iter().map(|step| match step.state {
            State::UpToDate => Ok(format!("{step}: up to date")),
            State::Kept => Ok(format!("{step}: there")),
            State::Absent => Err(Fault::new(
                format!("{step}: missing"),
                "run `teleport-event-indexer install`",
            )),
            State::Outdated | State::Newer | State::Edited => Err(Fault::new(
                format!("{step}: differs from this version's"),
                "`teleport-event-indexer install --dry-run` shows where",
            )),
        })),
        // The writer's role need not let us look.
        Err(failure) => {
            let Fault { what, .. } = failure.into();
            findings.push(Ok(format!("templates not compared: {what}")));
        }
    }
    findings
}
