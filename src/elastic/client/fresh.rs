//! Credentials that change while the program runs. What the files hold is looked at now and then;
//! new credentials are shown to the server first, and only if it takes them do requests go with
//! them. What cannot be read, or what the server refuses, changes nothing; requests under way end
//! as they began.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::sleep;
use tracing::{info, warn};

use super::access::{Access, Files};
use super::{Body, Client, ClientError, ErrorAnswer, Method};
use crate::output::Chain;

/// How often the files are looked at: an operator who writes a new key waits for it.
const INTERVAL: Duration = Duration::from_secs(10);

/// How often refused credentials are shown again: some realms lock out whoever does so too often.
const REFUSED_INTERVAL: Duration = Duration::from_mins(1);

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
    /// long those in use hold, as far as that is known.
    pub async fn keep_fresh(
        &self,
        mut asked: impl AsyncFnMut(),
        tell: impl Fn(Option<(i64, i64)>),
    ) {
        let mut told = None;
        tell(self.credentials_life_ms());
        loop {
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
                    tell(self.credentials_life_ms());
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

    /// From when until when the client certificate holds, in milliseconds since 1970; `None` without
    /// one. When an API key ends is not for the writer to know.
    fn credentials_life_ms(&self) -> Option<(i64, i64)> {
        self.access().files.certificate_life_ms()
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
                let mut access = self.0.access.lock().unwrap_or_else(PoisonError::into_inner);
                *access = Arc::new(fresh);
                Look::Renewed
            }
            Err(unusable) => Look::Kept(Chain(&unusable).to_string()),
        }
    }

    /// An access with what the files hold, if that is new and the server takes it.
    async fn fresh_access(&self) -> Result<Option<Access>, ClientError> {
        let files = Files::read(&self.0.config)?;
        if files == self.access().files {
            return Ok(None);
        }
        let fresh = Access::new(&self.0.config, files, &self.0.headers)?;
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
