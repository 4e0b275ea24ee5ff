//! `status`: how far the audit log is indexed, from the state file.

use std::ops::Range;
use std::path::Path;

use chrono::Utc;
use serde_json::{Value, json};

use crate::checkpoint::{Checkpoint, Holder, Role, RoleLock, RunKind, RunSummary, Summary};
use crate::commands::lead::look;
use crate::commands::{Exit, Failure, old_days};
use crate::config::{Config, StateHome};
use crate::leader::Head;
use crate::observer::{asked, picture};
use crate::output::{self, Chain};
use crate::shutdown::Shutdown;
use crate::teleport::identity::{Credentials, IdentityError};

pub(super) use crate::observer::picture::time;

pub(super) async fn status(
    config: &Config,
    as_json: bool,
    shutdown: &Shutdown,
) -> Result<Exit, Failure> {
    let Some(told) = tell(config, &mut None, shutdown).await? else {
        return Ok(Exit::Failed);
    };
    let text = if as_json {
        serde_json::to_string_pretty(&told.value)?
    } else {
        told.text
    };
    output::data(text)?;
    Ok(Exit::Done)
}

/// What is to be told of one cluster.
struct Told {
    text: String,
    value: Value,
}

/// What the daemon says, once it has been asked: it tells of all its clusters at once.
type Asked = Option<Result<Value, String>>;

/// `None`: told to stop.
async fn tell(
    config: &Config,
    asked: &mut Asked,
    shutdown: &Shutdown,
) -> Result<Option<Told>, Failure> {
    if config.state != StateHome::Sqlite {
        return in_elasticsearch(config, shutdown).await;
    }
    let look = Look::at(config, asked).await?;
    Ok(Some(Told {
        text: look.text(),
        value: look.value(),
    }))
}

/// Of several clusters: each, whatever is wrong with another.
pub(super) async fn status_of_each(
    configs: &[Config],
    as_json: bool,
    shutdown: &Shutdown,
) -> Result<Exit, Failure> {
    let mut exit = Exit::Done;
    let (mut texts, mut values) = (Vec::new(), Vec::new());
    let mut asked = None;
    for config in configs {
        let name = config.cluster.as_deref().unwrap_or_default();
        let head = format!("name           {name}");
        match tell(config, &mut asked, shutdown).await {
            Ok(None) => return Ok(Exit::Failed),
            Ok(Some(Told { text, mut value })) => {
                texts.push(format!("{head}\n{text}"));
                value["name"] = name.into();
                values.push(value);
            }
            Err(failure) => {
                exit = Exit::Failed;
                let (what, mend) = failure.told();
                let mend = mend.map_or_else(String::new, |mend| format!("\nhint           {mend}"));
                texts.push(format!("{head}\nerror          {what}{mend}"));
                values.push(json!({"name": name, "error": what}));
            }
        }
    }
    let now = time(Utc::now().timestamp_millis());
    let mut value = picture::of_clusters(now, values);
    // Of all together as its page does, if it was this daemon that has answered.
    if let Some(Ok(all)) = asked
        && all["daemon"] == value["daemon"]
    {
        value["state"] = all["state"].clone();
        value["ready"] = all["ready"].clone();
    }
    if let Some(state) = value["state"].as_str() {
        texts.insert(0, format!("now            {state}"));
    }
    let text = if as_json {
        serde_json::to_string_pretty(&value)?
    } else {
        texts.join("\n\n")
    };
    output::data(text)?;
    Ok(exit)
}

/// What is to be seen of one cluster.
struct Look {
    summary: Summary,
    daemon: Option<Holder>,
    /// What the daemon says, if one runs.
    live: Option<Result<Value, String>>,
    identity: Option<Result<Credentials, IdentityError>>,
    now_ms: i64,
}

impl Look {
    async fn at(config: &Config, asked: &mut Asked) -> Result<Self, Failure> {
        let storage = config.storage.as_ref().expect("the command needs it");
        let checkpoint =
            Checkpoint::open_existing_read_only(storage)?.ok_or_else(|| no_state(storage))?;
        let summary = checkpoint.summary()?;
        let mut daemon = RoleLock::holder(storage, &Role::Daemon)?;
        if let (None, Some(_), Some(above)) = (&daemon, &config.cluster, storage.parent()) {
            // One of several that waits to begin anew.
            daemon = RoleLock::holder(above, &Role::Daemon)?;
        }
        let live = match &daemon {
            Some(holder) => Some(ask(config, holder, asked).await),
            None => None,
        };
        let teleport = config.teleport.as_ref();
        Ok(Self {
            summary,
            daemon,
            live,
            identity: teleport.map(|teleport| Credentials::load(&teleport.credentials)),
            now_ms: Utc::now().timestamp_millis(),
        })
    }

    fn value(&self) -> Value {
        if let Some(Ok(picture)) = &self.live {
            return picture.clone();
        }
        let identity = self.identity.as_ref().map_or(Value::Null, identity_value);
        picture::of_state(&self.summary, self.daemon.as_ref(), identity, self.now_ms)
    }

    fn text(&self) -> String {
        let daemon = match &self.daemon {
            Some(holder) => format!("runs: {holder}"),
            None => "does not run".into(),
        };
        let mut text = as_text(&self.summary, &daemon, self.now_ms);
        if let Some(identity) = &self.identity {
            text += &format!("\nidentity       {}", identity_words(identity));
        }
        match &self.live {
            None => {}
            Some(Ok(picture)) => {
                for line in live_lines(picture) {
                    text += "\n";
                    text += &line;
                }
            }
            Some(Err(why)) => text += &format!("\nnow            cannot be asked: {why}"),
        }
        text
    }
}

/// The same of a state in Elasticsearch, as its leader has written it last.
async fn in_elasticsearch(config: &Config, shutdown: &Shutdown) -> Result<Option<Told>, Failure> {
    let Ok(found) = look::find(config, shutdown).await? else {
        return Ok(None);
    };
    let mut summary = found.checkpoint.summary()?;
    summary.dead_letters = found.letters.summary().await?;
    let now_ms = Utc::now().timestamp_millis();
    let identity = config.teleport.as_ref();
    let identity = identity.map(|teleport| Credentials::load(&teleport.credentials));
    let Head {
        leader,
        taken_over,
        content,
        ..
    } = &found.head;
    let known = identity.as_ref().map_or(Value::Null, identity_value);
    let mut value = picture::of_state(&summary, None, known, now_ms);
    value["leader"] = json!({
        "name": leader,
        "written": content.written,
        "taken_over": taken_over,
        "moved_to": content.moved_to,
    });
    let words = match (leader, &content.moved_to) {
        (_, Some(place)) => format!("none: the state has moved to {place}"),
        (Some(leader), None) => format!("leads: {leader}"),
        (None, None) => "none leads".to_owned(),
    };
    let mut text = as_text(&summary, &words, now_ms);
    text += &format!(
        "\nstate          written {}, taken over {taken_over} times",
        content.written
    );
    if let Some(identity) = &identity {
        text += &format!("\nidentity       {}", identity_words(identity));
    }
    Ok(Some(Told { text, value }))
}

/// Asks the daemon that has the lock.
async fn ask(config: &Config, holder: &Holder, asked: &mut Asked) -> Result<Value, String> {
    let Some(listen) = &config.listen else {
        return Err("listen.addr is off".to_owned());
    };
    if asked.is_none() {
        *asked = Some(asked::ask(listen).await);
    }
    let answer = asked.as_ref().expect("it has just been asked");
    let picture = answer.as_ref().map_err(Clone::clone)?;
    let picture = match picture["clusters"].as_array() {
        // One that follows several has a picture of each.
        Some(clusters) => {
            let mut clusters = clusters.iter();
            clusters.find(|picture| picture["name"].as_str() == config.cluster.as_deref())
        }
        None => Some(picture),
    };
    let is_ours = |picture: &&Value| picture["daemon"]["pid"].as_u64() == holder.pid.map(u64::from);
    picture
        .filter(is_ours)
        .cloned()
        .ok_or_else(|| format!("at {}: another daemon answers", listen.addr))
}

/// What only the running daemon knows.
fn live_lines(picture: &Value) -> Vec<String> {
    let live = &picture["live"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let rates = live["history"]["per_second"].as_array();
    let rate = rates
        .and_then(|rates| rates.last()?.as_f64())
        .unwrap_or(0.0);
    let flight = &live["in_flight"];
    let mut lines = vec![
        format!("now            {}", text(&picture["state"])),
        format!(
            "  {rate:.0} documents/s, {} documents and {} requests in flight",
            flight["documents"], flight["requests"]
        ),
    ];
    // The first is in the sentence.
    for trouble in live["troubles"].as_array().into_iter().flatten().skip(1) {
        lines.push(format!("  held up: {}", text(trouble)));
    }
    for held in live["held_up"].as_array().into_iter().flatten() {
        let (index, since) = (text(&held["index"]), text(&held["since"]));
        let (what, mend) = (text(&held["what"]), text(&held["mend"]));
        let mend = if mend.is_empty() {
            mend
        } else {
            format!("; {mend}")
        };
        lines.push(format!("  held up: {index} since {since}: {what}{mend}"));
    }
    lines
}

/// Whose the files are now, and until when: the daemon itself may still have those before.
fn identity_words(identity: &Result<Credentials, IdentityError>) -> String {
    match identity {
        Err(unusable) => Chain(unusable).to_string(),
        Ok(credentials) => {
            let end = time(credentials.not_after.timestamp_millis());
            let text = format!("of user {}, valid until {end}", credentials.user);
            if credentials.life().ends_soon(Utc::now()) {
                format!("{text}: {}", credentials.renewal())
            } else {
                text
            }
        }
    }
}

pub(super) fn identity_value(identity: &Result<Credentials, IdentityError>) -> Value {
    match identity {
        Err(unusable) => json!({"error": Chain(unusable).to_string()}),
        Ok(credentials) => json!({
            "user": credentials.user,
            "expires": time(credentials.not_after.timestamp_millis()),
            "expires_soon": credentials.life().ends_soon(Utc::now()),
        }),
    }
}

pub(super) fn no_state(storage: &Path) -> Failure {
    Failure::Failed(anyhow::anyhow!(
        "there is no state in {}: nothing has been started with this storage",
        storage.display()
    ))
}

fn as_text(summary: &Summary, daemon: &str, now_ms: i64) -> String {
    let mut lines = Vec::new();
    let cluster = summary.cluster.as_deref().unwrap_or("none yet");
    lines.push(format!("cluster        {cluster}"));
    lines.push(format!("daemon         {daemon}"));
    for run in &summary.runs {
        lines.extend(run_lines(run, now_ms));
    }
    lines.push(match summary.closed_gaps {
        0 => format!("gaps           {}", summary.gaps),
        closed => format!("gaps           {} open, {closed} closed", summary.gaps),
    });
    for found in &summary.newest_gaps {
        let gap = &found.gap;
        let (from, to) = (time(gap.from_ms), time(gap.to_ms));
        lines.push(format!(
            "  {} from {from} to {to}: {}",
            gap.reason, gap.detail
        ));
    }
    let blocked = &summary.blocked;
    if blocked.count > 0 {
        lines.push(format!(
            "blocked        {} ({} bytes) wait for their index",
            blocked.count, blocked.bytes
        ));
    }
    for (index, count) in &blocked.by_index {
        lines.push(format!("  {count} × {index}"));
    }
    let letters = &summary.dead_letters;
    lines.push(format!(
        "dead letters   {} ({} bytes)",
        letters.count, letters.bytes
    ));
    for (error_type, count) in &letters.by_error_type {
        lines.push(format!("  {count} × {error_type}"));
    }
    lines.join("\n")
}

fn run_lines(run: &RunSummary, now_ms: i64) -> Vec<String> {
    let counts = &run.counts;
    let (head, second) = match &run.kind {
        RunKind::Daemon => {
            let lag = (now_ms - run.position_ms) / 1000;
            let head = format!("following      since {}", time(run.from_ms));
            (
                head,
                format!("  complete up to {} ({lag} s ago)", time(run.position_ms)),
            )
        }
        RunKind::Backfill { to_ms, filters } => {
            let only = if filters.is_empty() {
                String::new()
            } else {
                format!(", {filters}")
            };
            let (from, to) = (time(run.from_ms), time(*to_ms));
            let head = format!("backfill       {from} to {to}{only}");
            let done = if run.finished {
                "  done".into()
            } else {
                format!("  complete up to {}", time(run.position_ms))
            };
            (head, done)
        }
    };
    let safe_form = safe_form_words(counts.safe_form);
    let mut lines = vec![
        head,
        second,
        format!(
            "  {} events read, {} filtered, {} documents created{safe_form}, {} already there, \
             {} dead letters",
            counts.events,
            counts.filtered,
            counts.created,
            counts.already_there,
            counts.dead_letters
        ),
    ];
    if run.recordings + run.open_recordings > 0 {
        let failed = match run.failed_recordings {
            0 => String::new(),
            failed => format!(", {failed} of them could not be read yet"),
        };
        lines.push(format!(
            "  {} session recordings read, {} to be read{failed}",
            run.recordings, run.open_recordings
        ));
    }
    lines.extend(left_out_words(&run.left_out).map(|words| format!("  {words}")));
    lines.extend(skipped_words(&run.skipped).map(|words| format!("  {words}")));
    lines
}

/// `left out, too old for the lifecycle policy: 2025-01-01 to 2025-01-31 (31 days)`, or nothing if
/// nothing is.
pub(super) fn left_out_words(spans: &[Range<i64>]) -> Option<String> {
    if spans.is_empty() {
        return None;
    }
    let days: Vec<String> = spans.iter().map(old_days::days).collect();
    Some(format!(
        "left out, too old for the lifecycle policy: {}",
        days.join(", ")
    ))
}

/// `skipped by start --forward-to: 2026-11-01T00:00:00Z to 2026-11-03T12:00:00Z`, or nothing if nothing
/// is.
fn skipped_words(spans: &[Range<i64>]) -> Option<String> {
    if spans.is_empty() {
        return None;
    }
    let spans = spans.iter();
    let spans: Vec<_> = spans
        .map(|span| format!("{} to {}", time(span.start), time(span.end)))
        .collect();
    Some(format!(
        "skipped by start --forward-to: {}",
        spans.join(", ")
    ))
}

/// ` (3 in safe form)`, or nothing if there are none.
pub(super) fn safe_form_words(count: u64) -> String {
    match count {
        0 => String::new(),
        count => format!(" ({count} in safe form)"),
    }
}
