//! What the installed lifecycle policy does to days that are long past, so that nobody writes what
//! is deleted within minutes, or waits for an index that stays closed.
//!
//! Ages count from the day in the index name where the template has `parse_origination_date`; else
//! from the index's creation, and a day that is written now is young, whenever it was.

use std::error::Error;
use std::time::Duration;

use serde_json::Value;

use super::exchange::{
    Answer, InstallError, Method, Request, error_type, exchange, failure, has_no_handler,
};
use super::{Asset, Settings};
use crate::event::DAY_MS;

/// Actions after which an index takes no documents any more.
const CLOSING_ACTIONS: [&str; 4] = ["readonly", "shrink", "searchable_snapshot", "downsample"];

/// What Elasticsearch says of the ages at which something happens to an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Retention {
    /// This policy takes effect, by the day in the index name.
    ByDay(Ages),
    /// No day is too old: the index template names no policy, or ages do not count from the day.
    Unbound,
    /// The server has no lifecycle policies.
    NoLifecycle,
    /// The policy that the index template names is not there.
    Missing(String),
    /// This user may not look, or nobody can make sense of what is there.
    NotKnown(String),
}

/// The ages at which a policy does something that bears on writing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ages {
    /// The policy's name.
    pub policy: String,
    /// When an index is deleted.
    pub deletes: Option<Age>,
    /// When an index is closed to writing, if that is before it is deleted.
    pub closes: Option<Age>,
}

/// An age and what happens then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Age {
    /// As the policy has it: `365d`.
    pub text: String,
    /// The same as a length of time.
    pub length: Duration,
    /// The phase, and what it does: `phase warm, readonly`.
    pub action: String,
}

impl Age {
    /// The midnight of the first day that is younger, both in milliseconds since 1970.
    pub fn first_younger_ms(&self, now_ms: i64) -> i64 {
        let length = i64::try_from(self.length.as_millis()).unwrap_or(i64::MAX);
        let newest = now_ms.saturating_sub(length).div_euclid(DAY_MS);
        newest.saturating_add(1).saturating_mul(DAY_MS)
    }
}

impl Ages {
    /// Of a policy as `GET _ilm/policy` gives it; `None` if an age cannot be read.
    fn of(policy: &str, found: &Value) -> Option<Self> {
        let phases = found["phases"].as_object();
        let phases: Vec<_> = phases.into_iter().flatten().collect();
        let first = |actions: &[&str]| -> Option<Option<Age>> {
            let mut first: Option<Age> = None;
            for (phase, content) in &phases {
                let present = |action: &&&str| content["actions"].get(**action).is_some();
                let Some(action) = actions.iter().find(present) else {
                    continue;
                };
                let text = content["min_age"].as_str().unwrap_or("0ms");
                let length = time_value(text)?;
                if first.as_ref().is_none_or(|first| length < first.length) {
                    first = Some(Age {
                        text: text.to_owned(),
                        length,
                        action: match *action {
                            "delete" => format!("phase {phase}"),
                            action => format!("phase {phase}, {action}"),
                        },
                    });
                }
            }
            Some(first)
        };
        let deletes = first(&["delete"])?;
        let closes = first(&CLOSING_ACTIONS)?;
        let is_before = |closes: &Age| {
            let deletes = deletes.as_ref();
            deletes.is_none_or(|deletes| closes.length < deletes.length)
        };
        Some(Self {
            policy: policy.to_owned(),
            closes: closes.filter(is_before),
            deletes,
        })
    }
}

/// A length of time as Elasticsearch writes it.
fn time_value(text: &str) -> Option<Duration> {
    let unit = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit);
    let number: u64 = number.parse().ok()?;
    Some(match unit {
        "d" => Duration::from_secs(number.checked_mul(24 * 3600)?),
        "h" => Duration::from_secs(number.checked_mul(3600)?),
        "m" => Duration::from_secs(number.checked_mul(60)?),
        "s" => Duration::from_secs(number),
        "ms" => Duration::from_millis(number),
        "micros" => Duration::from_micros(number),
        "nanos" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Asks which ages hold for the indices of the index template.
///
/// # Errors
/// If the template or the policy cannot be read for another reason than a missing privilege.
pub async fn retention<S, E>(send: S, settings: &Settings) -> Result<Retention, InstallError>
where
    S: AsyncFn(Request) -> Result<Answer, E>,
    E: Error + Send + Sync + 'static,
{
    let (answer, doing) = read(&send, Asset::Template, &settings.template).await?;
    let template = Asset::Template.found_in(&settings.template, &answer.body);
    let policy = match (answer.status, template) {
        (200..300, Some(template)) => {
            let lifecycle = &template["template"]["settings"]["index"]["lifecycle"];
            let by_day = &lifecycle["parse_origination_date"];
            match lifecycle["name"].as_str() {
                Some(name) if *by_day == true || by_day == "true" => name.to_owned(),
                _ => return Ok(Retention::Unbound),
            }
        }
        (200..300, None) => return Err(InstallError::Unexpected { doing }),
        (404, _) => return Ok(Retention::Unbound),
        // Then what would be installed is the best guess.
        (403, _) if settings.daily => settings.policy.clone(),
        (403, _) => return Ok(Retention::Unbound),
        _ => return Err(failure(doing, &answer)),
    };
    let (answer, doing) = read(&send, Asset::Policy, &policy).await?;
    match answer.status {
        200..300 => {
            let found = Asset::Policy.found_in(&policy, &answer.body);
            let ages = found.and_then(|found| Ages::of(&policy, &found));
            ages.map(Retention::ByDay)
                .ok_or(InstallError::Unexpected { doing })
        }
        404 if error_type(&answer.body) == Some("resource_not_found_exception") => {
            Ok(Retention::Missing(policy))
        }
        404 | 410 => Ok(Retention::NoLifecycle),
        400 if has_no_handler(&answer.body) => Ok(Retention::NoLifecycle),
        _ => match failure(doing, &answer) {
            forbidden @ InstallError::Forbidden { .. } => {
                Ok(Retention::NotKnown(forbidden.to_string()))
            }
            other => Err(other),
        },
    }
}

/// The answer, and what was tried.
async fn read<S, E>(send: &S, asset: Asset, name: &str) -> Result<(Answer, String), InstallError>
where
    S: AsyncFn(Request) -> Result<Answer, E>,
    E: Error + Send + Sync + 'static,
{
    let path = asset.path(name);
    let doing = format!("read the {asset} {name} (GET {path})");
    let request = Request {
        method: Method::Get,
        path,
        body: None,
    };
    Ok((exchange(send, request, &doing).await?, doing))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use serde_json::json;

    use super::*;

    const NOW: &str = "2026-11-25T10:00:00Z";

    fn ms(text: &str) -> i64 {
        let time = chrono::DateTime::parse_from_rfc3339(text).unwrap();
        time.timestamp_millis()
    }

    fn ages(phases: Value) -> Option<Ages> {
        Ages::of("keep", &json!({"phases": phases}))
    }

    #[test]
    fn a_day_is_too_old_once_its_midnight_is() {
        let first_younger = |text: &str, now: &str| {
            let age = Age {
                text: text.to_owned(),
                length: time_value(text).unwrap(),
                action: String::new(),
            };
            age.first_younger_ms(ms(now))
        };
        for (age, now, first) in [
            ("1d", NOW, "2026-11-25T00:00:00Z"),
            ("1d", "2026-11-25T00:00:00Z", "2026-11-25T00:00:00Z"),
            ("1d", "2026-11-24T23:59:59.999Z", "2026-11-24T00:00:00Z"),
            ("365d", NOW, "2025-11-26T00:00:00Z"),
            ("30h", NOW, "2026-11-25T00:00:00Z"),
            ("36h", NOW, "2026-11-24T00:00:00Z"),
            ("0ms", NOW, "2026-11-26T00:00:00Z"),
        ] {
            assert_eq!(first_younger(age, now), ms(first), "{age} at {now}");
        }
        assert!(first_younger("99999999999d", NOW) < 0);
    }

    #[test]
    fn ages_are_those_of_the_first_phase_that_closes_or_deletes() {
        let ours: Value =
            serde_json::from_str(include_str!("../../../ilm/audit-events.json")).unwrap();
        let ours = Ages::of("audit-events", &ours["policy"]).unwrap();
        assert_eq!(ours.closes, None);
        assert_eq!(ours.deletes.unwrap().text, "365d");

        let several = ages(json!({
            "hot": {"actions": {"set_priority": {"priority": 1}}},
            "frozen": {"min_age": "60d", "actions": {"searchable_snapshot": {}}},
            "warm": {"min_age": "36h", "actions": {"shrink": {}, "forcemerge": {}}},
            "delete": {"min_age": "90d", "actions": {"delete": {}}},
        }));
        let several = several.unwrap();
        let closes = several.closes.unwrap();
        assert_eq!(
            (closes.text.as_str(), closes.action.as_str()),
            ("36h", "phase warm, shrink")
        );
        assert_eq!(
            several.deletes.unwrap().length,
            Duration::from_hours(90 * 24)
        );

        // Deleted before it is closed; a delete phase that only waits deletes nothing.
        let closes_late = ages(json!({
            "warm": {"min_age": "9d", "actions": {"readonly": {}}},
            "delete": {"min_age": "9d", "actions": {"delete": {}}},
        }));
        assert_eq!(closes_late.unwrap().closes, None);
        let waits = json!({"delete": {"min_age": "9d", "actions": {"wait_for_snapshot": {}}}});
        assert_eq!(ages(waits).unwrap().deletes, None);
        let strange = json!({"delete": {"min_age": "9 moons", "actions": {"delete": {}}}});
        assert_eq!(ages(strange), None);
    }

    /// A server that answers like this for the template and for the policy.
    async fn asked(template: (u16, Value), policy: (u16, Value)) -> Retention {
        let send = async |request: Request| {
            let is_policy = request.path == "/_ilm/policy/keep";
            let (status, body) = if is_policy { &policy } else { &template };
            Ok::<_, Infallible>(Answer {
                status: *status,
                body: body.clone(),
            })
        };
        let settings = Settings {
            policy: "keep".to_owned(),
            ..Settings::default()
        };
        retention(send, &settings).await.unwrap()
    }

    #[tokio::test]
    async fn what_cannot_be_known_is_told_apart() {
        let template = |lifecycle: Value| {
            let template = json!({"template": {"settings": {"index": {"lifecycle": lifecycle}}}});
            let named = json!({"name": "audit-events", "index_template": template});
            (200, json!({"index_templates": [named]}))
        };
        let by_day = || template(json!({"name": "keep", "parse_origination_date": "true"}));
        let phases = json!({"delete": {"min_age": "2d", "actions": {"delete": {}}}});
        let policy = || (200, json!({"keep": {"policy": {"phases": phases}}}));
        let error = |status, kind: &str| (status, json!({"error": {"type": kind, "reason": "no"}}));

        let found = asked(by_day(), policy()).await;
        assert!(matches!(found, Retention::ByDay(ages) if ages.deletes.is_some()));
        let no_name = asked(
            template(json!({"parse_origination_date": "true"})),
            policy(),
        )
        .await;
        assert_eq!(no_name, Retention::Unbound);
        let by_creation = asked(template(json!({"name": "keep"})), policy()).await;
        assert_eq!(by_creation, Retention::Unbound);
        // May not see templates, but policies.
        let found = asked(error(403, "security_exception"), policy()).await;
        assert!(matches!(found, Retention::ByDay(_)));
        let missing = asked(by_day(), error(404, "resource_not_found_exception")).await;
        assert_eq!(missing, Retention::Missing("keep".to_owned()));
        let refused = asked(by_day(), error(403, "security_exception")).await;
        assert!(matches!(refused, Retention::NotKnown(reason) if reason.ends_with(": no")));
        let no_handler = json!({"error": "no handler found for uri [/_ilm/policy/keep]"});
        for gone in [(400, no_handler), error(410, "api_not_available_exception")] {
            assert_eq!(asked(by_day(), gone).await, Retention::NoLifecycle);
        }
    }
}
