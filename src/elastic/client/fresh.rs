//! Credentials that change while the program runs. What the files hold is looked at now and then;
//! new credentials are shown to the server first, and only if it takes them do requests go with
//! them. What cannot be read, or what the server refuses, changes nothing; requests under way end
//! as they began.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::Value;
use tokio::time::{Instant, sleep};
use tracing::{error, info, warn};

use super::access::{Access, Files};
use super::{Answer, Body, Client, ClientError, ErrorAnswer, Method};
use crate::elastic::assets::percent_encoded;
use crate::output::Chain;
use crate::telemetry::{Alarm, Life};

/// How often the files are looked at: an operator who writes a new key waits for it.
const INTERVAL: Duration = Duration::from_secs(10);

/// How often refused credentials are shown again: some realms lock out whoever does so too often.
const REFUSED_INTERVAL: Duration = Duration::from_mins(1);

/// How often the server is asked when an API key ends: somebody may let it live longer.
const LIFE_INTERVAL: Duration = Duration::from_hours(1);

/// What came of a look at the files.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    Same,
    Renewed,
    /// For the reason told.
    Kept(String),
}

impl Client {
    /// Takes over new credentials when their files change, until it is dropped, which it may be at
    /// any point. `asked` ends when somebody wants the files read at once; `tell` is told how
    /// long those in use hold, as far as that is known. Says in the log when they end soon.
    pub async fn keep_fresh(&self, mut asked: impl AsyncFnMut(), tell: impl Fn(Option<Life>)) {
        let mut told = None;
        let (mut life, mut alarm) = (None, Alarm::default());
        let mut next_question = Instant::now();
        loop {
            if next_question <= Instant::now()
                && let Ok(known) = self.credentials_life().await
            {
                life = known;
                tell(life);
                next_question = Instant::now() + LIFE_INTERVAL;
            }
            let now = Utc::now();
            if let Some(life) = life.filter(|life| alarm.is_due(*life, now)) {
                warn_of_end(life, now);
            }
            let is_kept = told.is_some();
            let interval = if is_kept { REFUSED_INTERVAL } else { INTERVAL };
            tokio::select! {
                // A signal that has come is not forgotten; a sleep is begun anew.
                () = asked() => {}
                () = sleep(interval) => {}
            }
            match self.look().await {
                Look::Same => told = None,
                Look::Renewed => {
                    info!("credentials for Elasticsearch renewed");
                    next_question = Instant::now();
                    told = None;
                }
                Look::Kept(reason) => {
                    if told.as_ref() != Some(&reason) {
                        warn!("keeping the credentials for Elasticsearch read before: {reason}");
                    }
                    told = Some(reason);
                }
            }
        }
    }

    /// From when until when the credentials in use hold, which may be a client certificate and an API
    /// key: that which ends first. `None` if they do not end, or the server does not say.
    async fn credentials_life(&self) -> Result<Option<Life>, ClientError> {
        let access = self.access();
        let key = match access.files.api_key_id() {
            None => None,
            Some(id) => {
                // Any key may ask about itself.
                let path = format!(
                    "/_security/api_key?id={}&filter_path=api_keys.creation,api_keys.expiration",
                    percent_encoded(&id)
                );
                let answer = self.request_by(&access, Method::Get, &path, Body::Empty);
                life_of_key(&answer.await?)
            }
        };
        let lives = [access.files.certificate_life(), key];
        Ok(lives.into_iter().flatten().min_by_key(|life| life.end))
    }

    /// Takes over what the files hold now, if it can be used. For those who wait for the server.
    pub async fn look_again(&self) {
        match self.look().await {
            Look::Renewed => info!("credentials for Elasticsearch renewed"),
            Look::Same | Look::Kept(_) => {}
        }
    }

    async fn look(&self) -> Look {
        match self.fresh_access().await {
            Ok(None) => Look::Same,
            Ok(Some(fresh)) => {
                let mut access = self
                    .shared
                    .access
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                *access = Arc::new(fresh);
                Look::Renewed
            }
            Err(unusable) => Look::Kept(Chain(&unusable).to_string()),
        }
    }

    /// An access with what the files hold, if that is new and the server takes it.
    async fn fresh_access(&self) -> Result<Option<Access>, ClientError> {
        let files = Files::read(&self.shared.config)?;
        if files == self.access().files {
            return Ok(None);
        }
        let fresh = Access::new(&self.shared.config, files, &self.shared.headers)?;
        let answer = self.request_by(&fresh, Method::Get, "/", Body::Empty);
        let answer = answer.await?;
        match answer.status {
            // Known, and not allowed to see this page.
            200..=299 | 403 => Ok(Some(fresh)),
            401 => Err(ClientError::Refused(ErrorAnswer::read(&answer))),
            _ => Err(ClientError::Unfit(format!(
                "Elasticsearch does not tell whether it takes those in the files now: {}",
                ErrorAnswer::read(&answer)
            ))),
        }
    }
}

/// What a server says of one API key; `None` if that does not end, or it does not say.
fn life_of_key(answer: &Answer) -> Option<Life> {
    let body: Value = serde_json::from_slice(&answer.body).ok()?;
    let key = body.get("api_keys")?.get(0)?;
    let ms = |name: &str| key.get(name)?.as_i64();
    Life::from_millis(ms("creation")?, ms("expiration")?)
}

fn warn_of_end(life: Life, now: DateTime<Utc>) {
    let end = life.end.to_rfc3339_opts(SecondsFormat::Secs, true);
    let mend =
        "put another API key or certificate into its file: it is taken over without a restart";
    if now < life.end {
        warn!(
            mend,
            "the credentials for Elasticsearch expire soon, at {end}"
        );
    } else {
        error!(mend, "the credentials for Elasticsearch expired at {end}");
    }
}
