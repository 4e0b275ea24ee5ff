//! `check`: proves the configuration and both ends before anything runs. All checks run; the
//! findings come together.

mod elastic;

use chrono::{SecondsFormat, Utc};

use crate::commands::transfer::{Patience, reach_teleport};
use crate::commands::{Exit, Failure};
use crate::config::Config;
use crate::output::{self, Reader};
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
        elastic::findings(config, shutdown).await,
    ];
    tell(findings.into_iter().flatten())
}

/// Of several clusters, and of the Elasticsearch that they share.
pub(super) async fn check_each(
    configs: &[Config],
    show_config: bool,
    shutdown: &Shutdown,
) -> Result<Exit, Failure> {
    if show_config {
        output::data(Config::show_each(configs).trim_end())?;
        return Ok(Exit::Done);
    }
    let mut findings = Vec::new();
    for config in configs {
        let name = config.cluster.as_deref().unwrap_or_default();
        let of_it = teleport(config, shutdown).await.into_iter();
        findings.extend(of_it.map(|finding| match finding {
            Ok(good) => Ok(format!("{name}: {good}")),
            Err(fault) => Err(Fault {
                what: format!("{name}: {}", fault.what),
                ..fault
            }),
        }));
    }
    // Which days are kept matters most to the one that begins first.
    let begins = |config: &&Config| config.start_time.unwrap_or_else(Utc::now);
    let first = configs.iter().min_by_key(begins);
    let first = first.expect("there is a table");
    findings.extend(elastic::findings(first, shutdown).await);
    tell(findings)
}

fn tell(findings: impl IntoIterator<Item = Finding>) -> Result<Exit, Failure> {
    let mut exit = Exit::Done;
    for finding in findings {
        match finding {
            Ok(good) => output::data(format_args!("ok    {good}"))?,
            Err(Fault {
                what,
                mend,
                is_fatal,
            }) => {
                if is_fatal {
                    exit = Exit::Failed;
                }
                let grade = if is_fatal { "FAIL" } else { "warn" };
                output::data(format_args!("{grade}  {what}"))?;
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
    /// Nothing would work with it; else something is amiss, and the rest works.
    is_fatal: bool,
}

impl Fault {
    fn new(what: String, mend: &str) -> Self {
        Self {
            what,
            mend: Some(mend.to_owned()),
            is_fatal: true,
        }
    }

    fn harmless(self) -> Self {
        Self {
            is_fatal: false,
            ..self
        }
    }
}

impl<E: Into<Failure>> From<E> for Fault {
    fn from(failure: E) -> Self {
        let (what, mend) = failure.into().told();
        Self {
            what,
            mend,
            is_fatal: true,
        }
    }
}

fn stopped() -> Fault {
    Fault {
        what: "stopped".to_owned(),
        mend: None,
        is_fatal: true,
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
        Err(failed) if failed.remedy() == Remedy::Unknown => match client
            .newest_event(&config.namespace)
            .await
        {
            Ok(_) => Ok("audit events by the search API".into()),
            Err(failed) if failed.remedy() == Remedy::Unknown => Err(SourceError::TooOld.into()),
            Err(failed) => Err(failed.into()),
        },
        Err(failed) => Err(failed.into()),
    });
    if config.sessions.is_some() {
        findings.push(match client.ask_for_recordings().await {
            Ok(()) => Ok("session recordings".into()),
            Err(failed) => Err(failed.into()),
        });
    }
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
    if credentials.life().ends_soon(Utc::now()) {
        return format!("{text}, which is soon: {}", credentials.renewal());
    }
    text
}
