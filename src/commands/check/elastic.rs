//! What `check` finds at Elasticsearch's end.

use chrono::{DateTime, TimeDelta, Utc};

use super::{Fault, Finding, stopped};
use crate::commands::install::{self, send};
use crate::commands::old_days;
use crate::commands::transfer::{Patience, reach_elasticsearch};
use crate::config::{Config, ElasticsearchConfig, OldDays, StateHome};
use crate::elastic::assets::{self, Asset, InstallError, Note, Retention, Settings, State, Step};
use crate::elastic::client::{Client, Server};
use crate::elastic::{dead_letters, work};
use crate::shutdown::Shutdown;

/// Clocks that are no further apart agree: asking takes some time, too.
const AGREEING: TimeDelta = TimeDelta::seconds(30);

const INSTALL: &str = "run `teleport-event-indexer install`";
const WRITER_ROLE: &str = "give the role in templates/elasticsearch-writer-role.json";

pub(super) async fn findings(config: &Config, shutdown: &Shutdown) -> Vec<Finding> {
    let elasticsearch = config.elasticsearch.as_ref();
    let elasticsearch = elasticsearch.expect("the command needs it");
    let reached = reach_elasticsearch(elasticsearch, Patience::Seconds, &shutdown.stop).await;
    let (client, server) = match reached {
        Ok(Some(reached)) => reached,
        Ok(None) => return vec![Err(stopped())],
        Err(failure) => return vec![Err(failure.into())],
    };
    let mut findings = vec![Ok(format!("Elasticsearch {server}"))];
    let settings = install::settings(elasticsearch);
    findings.extend(privileges(&client, &settings).await);
    findings.extend(installed(&client, server, &settings).await);
    findings.push(applying(&client, elasticsearch, &settings).await);
    findings.extend(sharing(&client, server).await);
    if config.state != StateHome::Sqlite {
        findings.extend(state_indices(&client, server).await);
    }
    findings.extend(
        days(
            &client,
            &settings,
            config.start_time,
            elasticsearch.old_days,
        )
        .await,
    );
    findings.extend(clock(&client).await);
    findings
}

async fn privileges(client: &Client, settings: &Settings) -> Vec<Finding> {
    let indices = &settings.index_wildcard;
    let lacking = match client.lacks_privileges(indices).await {
        Ok(lacking) => lacking,
        Err(failed) => return vec![Err(failed.into())],
    };
    let mut findings = Vec::new();
    if lacking.index.is_empty() {
        findings.push(Ok("privileges to write".into()));
    } else {
        let lacks = lacking.index.join(" and ");
        let what = format!("the user lacks {lacks} on {indices}");
        findings.push(Err(Fault::new(what, WRITER_ROLE)));
    }
    if !lacking.cluster.is_empty() {
        let lacks = lacking.cluster.join(" and ");
        let what = format!("the user lacks {lacks} on the cluster, so not all can be checked");
        findings.push(Err(Fault::new(what, WRITER_ROLE).harmless()));
    }
    findings
}

/// The policy and the templates: there, and ours.
async fn installed(client: &Client, server: Server, settings: &Settings) -> Vec<Finding> {
    let server = install::known(server);
    let looked = assets::look(
        async |request| send(client, request).await,
        server,
        settings,
    )
    .await;
    let steps = looked.steps.into_iter();
    let mut findings: Vec<Finding> = steps.map(|(asset, step)| state(asset, step)).collect();
    if !looked.has_lifecycle {
        findings.push(Err(Fault {
            what: Note::NoLifecycle.to_string(),
            mend: None,
            is_fatal: false,
        }));
    }
    findings
}

fn state(asset: Asset, step: Result<Step, InstallError>) -> Finding {
    let step = match step {
        Ok(step) => step,
        // The writer's role need not let us look.
        Err(failed @ InstallError::Forbidden { .. }) => {
            let what = format!("{asset} not compared: {failed}");
            return Err(Fault::new(what, WRITER_ROLE).harmless());
        }
        Err(failed) => return Err(failed.into()),
    };
    let differs = |how, mend| Err(Fault::new(format!("{step}: {how}"), mend).harmless());
    match step.state {
        State::UpToDate => Ok(format!("{step}: up to date")),
        State::Kept => Ok(format!("{step}: there")),
        State::Absent => Err(Fault::new(format!("{step}: missing"), INSTALL)),
        State::Outdated => differs(
            "installed by an older version or with other settings",
            INSTALL,
        ),
        State::Newer => differs(
            "installed by a newer version of this program",
            "use that version here, too",
        ),
        State::Edited => differs(
            "edited or made by somebody else",
            "`teleport-event-indexer install --dry-run` shows where it differs",
        ),
    }
}

/// Whether today's index would get the template, if it were made now.
async fn applying(client: &Client, config: &ElasticsearchConfig, settings: &Settings) -> Finding {
    let Some(index_name) = config.index.name_for(Utc::now().timestamp_millis()) else {
        return Err(Fault::new(
            "this machine's clock is out of all bounds".into(),
            "correct it",
        ));
    };
    let applying = assets::applying(async |request| send(client, request).await, &index_name);
    match applying.await {
        Ok(Some(name)) if name == settings.template => {
            Ok(format!("a new index {index_name} gets this template"))
        }
        Ok(Some(other)) => Err(Fault::new(
            format!("a new index {index_name} gets the index template {other}"),
            "lower the priority of that template, or change its pattern",
        )),
        Ok(None) => Err(Fault::new(
            format!("a new index {index_name} gets no index template"),
            INSTALL,
        )),
        Err(failed @ InstallError::Forbidden { .. }) => {
            let what = format!("not known which template a new index gets: {failed}");
            Err(Fault::new(what, WRITER_ROLE).harmless())
        }
        Err(failed) => Err(failed.into()),
    }
}

/// Where backfills are to be shared, whether this user may.
async fn sharing(client: &Client, server: Server) -> Option<Finding> {
    let plan = install::work_plan(client, server).await.ok()?;
    let step = plan.steps.first()?;
    if step.state == State::Absent {
        return None;
    }
    let lacking = client.lacks_on(work::INDEX, work::PRIVILEGES).await.ok()?;
    if lacking.is_empty() {
        return Some(Ok("privileges to share backfills".into()));
    }
    let lacks = lacking.join(" and ");
    let what = format!("the user lacks {lacks} on {}", work::INDEX);
    let mend = "`install --work --create-role` gives them; only `backfill --share` needs them";
    Some(Err(Fault::new(what, mend).harmless()))
}

/// What a state in Elasticsearch lies in: its templates, and whether this user may write it.
async fn state_indices(client: &Client, server: Server) -> Vec<Finding> {
    const MEND: &str = "run `teleport-event-indexer install --work`";
    let mut findings = Vec::new();
    // Who may not look has been told of above.
    if let Ok(plan) = install::work_plan(client, server).await {
        let missing = plan.steps.iter().filter(|step| step.state == State::Absent);
        for step in missing {
            findings.push(Err(Fault::new(format!("{step}: missing"), MEND)));
        }
    }
    for (index, privileges) in [
        (work::INDEX, work::PRIVILEGES),
        (dead_letters::INDEX, dead_letters::PRIVILEGES),
    ] {
        let lacking = match client.lacks_on(index, privileges).await {
            Ok(lacking) => lacking,
            Err(failed) => return vec![Err(failed.into())],
        };
        findings.push(if lacking.is_empty() {
            Ok(format!("privileges on {index}"))
        } else {
            let what = format!("the user lacks {} on {index}", lacking.join(" and "));
            Err(Fault::new(
                what,
                "`install --work --create-role` gives them",
            ))
        });
    }
    findings
}

/// How long days are kept, and whether a first start would begin with days that are not.
async fn days(
    client: &Client,
    settings: &Settings,
    start_time: Option<DateTime<Utc>>,
    choice: OldDays,
) -> Option<Finding> {
    let asked = assets::retention(async |request| send(client, request).await, settings);
    // All else was told with the policy and the template.
    let Ok(Retention::ByDay(ages)) = asked.await else {
        return None;
    };
    let now_ms = Utc::now().timestamp_millis();
    let start_ms = start_time.map_or(now_ms, |start| start.timestamp_millis());
    let Some(old) = old_days::told(&ages, start_ms..now_ms) else {
        let kept = match &ages.deletes {
            Some(age) => format!("indices are deleted {} after their day", age.text),
            None => "no index is deleted by age".to_owned(),
        };
        return Some(Ok(kept));
    };
    let what = match choice {
        OldDays::Refuse => format!("a first start is refused, as some days are too old: {old}"),
        OldDays::Write => format!("a first start writes days that are too old: {old}"),
        OldDays::Skip => format!("a first start leaves out days that are too old: {old}"),
    };
    let mend = "set a later start-time, install a policy that keeps them, or choose by old-days";
    Some(Err(Fault::new(what, mend).harmless()))
}

async fn clock(client: &Client) -> Option<Finding> {
    // Who does not answer now has been told of above.
    let ahead = client.clock_ahead().await.ok()??;
    if ahead.abs() <= AGREEING {
        return Some(Ok("this machine's clock and Elasticsearch's agree".into()));
    }
    let (seconds, side) = (
        ahead.abs().num_seconds(),
        if ahead > TimeDelta::zero() {
            "ahead of"
        } else {
            "behind"
        },
    );
    Some(Err(Fault::new(
        format!("this machine's clock is {seconds} s {side} Elasticsearch's"),
        "set both by a time server: lag, and which days are too old, are told by this machine's",
    )
    .harmless()))
}
