//! One holder of rights: how it is looked for, compared and made.

use std::error::Error;

use serde_json::{Value, json};

use super::{Kind, State, Step, compared};
use crate::elastic::assets::{
    Answer, InstallError, Method, Outcome, Request, exchange, failure, has_no_handler,
    percent_encoded,
};

/// What a look for a holder gave.
pub(super) enum Found {
    Nothing,
    Holders(Vec<Value>),
    Forbidden(String),
}

impl Kind {
    fn place(self) -> &'static str {
        match self {
            Self::Role => "/_security/role",
            Self::User => "/_security/user",
            Self::ApiKey => "/_security/api_key",
        }
    }

    /// The privileges of which one lets a user make it.
    pub fn needs(self) -> &'static str {
        match self {
            Self::Role | Self::User => "manage_security",
            Self::ApiKey => "manage_own_api_key, manage_api_key, manage_security",
        }
    }
}

impl Step {
    /// Looks for the holder; nothing where security is switched off.
    pub(super) async fn find<S, E>(&self, send: &S) -> Result<Option<Found>, InstallError>
    where
        S: AsyncFn(Request) -> Result<Answer, E>,
        E: Error + Send + Sync + 'static,
    {
        let name = percent_encoded(&self.name);
        let place = self.kind.place();
        let paths = match self.kind {
            Kind::Role | Kind::User => vec![format!("{place}/{name}")],
            // Who may not see those of others may see its own.
            Kind::ApiKey => vec![
                format!("{place}?name={name}"),
                format!("{place}?name={name}&owner=true"),
            ],
        };
        let mut forbidden = String::new();
        for path in paths {
            let doing = format!("look for the {self} (GET {path})");
            let request = Request {
                method: Method::Get,
                path,
                body: None,
            };
            let answer = exchange(send, request, &doing).await?;
            let found = match answer.status {
                200..300 => self.holders(answer.body),
                404 => Found::Nothing,
                400 if has_no_handler(&answer.body) => return Ok(None),
                _ => match failure(doing, &answer) {
                    failed @ InstallError::Forbidden { .. } => {
                        forbidden = failed.to_string();
                        continue;
                    }
                    other => return Err(other),
                },
            };
            return Ok(Some(found));
        }
        Ok(Some(Found::Forbidden(forbidden)))
    }

    fn holders(&self, mut body: Value) -> Found {
        let holders: Vec<Value> = match self.kind {
            Kind::Role | Kind::User => body
                .get_mut(&self.name)
                .map(Value::take)
                .into_iter()
                .collect(),
            Kind::ApiKey => {
                let now = chrono::Utc::now().timestamp_millis();
                let keys = body["api_keys"].as_array().into_iter().flatten();
                let works = |key: &&Value| {
                    let expiration = key["expiration"].as_i64();
                    key["invalidated"] != true && expiration.is_none_or(|end| end > now)
                };
                keys.filter(works).cloned().collect()
            }
        };
        if holders.is_empty() {
            Found::Nothing
        } else {
            Found::Holders(holders)
        }
    }

    pub(super) fn judge(&mut self, found: Found) {
        let holders = match found {
            Found::Nothing => return,
            Found::Forbidden(reason) => {
                self.state = State::Hidden(reason);
                return;
            }
            Found::Holders(holders) => holders,
        };
        let ours = compared::content(self.kind, &self.body);
        // Of several keys with one name any that is as it should be will do.
        let best = holders
            .iter()
            .map(|holder| {
                let theirs = compared::content(self.kind, holder);
                (ours.differences(&theirs), theirs)
            })
            .min_by_key(|(differences, _)| differences.len());
        let (differences, theirs) = best.expect("there is one");
        self.state = if differences.is_empty() {
            State::UpToDate
        } else if theirs.recorded_fingerprint() == Some(theirs.fingerprint().as_str()) {
            State::Outdated
        } else {
            State::Edited
        };
        self.differences = differences;
        let ids = holders.iter().filter_map(|key| key["id"].as_str());
        self.ids = ids.map(str::to_owned).collect();
    }

    /// What would be done; nothing if it is refused, or somebody else has to.
    pub(super) fn outcome(&self, overwrite: bool) -> Option<Outcome> {
        match self.state {
            State::Absent => Some(Outcome::Created),
            State::UpToDate => Some(Outcome::UpToDate),
            State::Outdated => Some(Outcome::Updated),
            State::Edited => overwrite.then_some(Outcome::Overwritten),
            State::Hidden(_) => None,
        }
    }

    pub(super) fn makes_secret(&self) -> bool {
        self.kind != Kind::Role && (self.state == State::Absent || self.new_secret)
    }

    /// Whether [`Plan::apply`](super::Plan::apply) makes a secret, unless it fails.
    pub fn will_make_secret(&self, overwrite: bool) -> bool {
        self.makes_secret() && self.outcome(overwrite).is_some()
    }

    /// The request that makes it, or makes it as it should be. It holds no secret: where a
    /// password belongs there is a word for it.
    pub fn request(&self, overwrite: bool) -> Option<Request> {
        let is_there = self.state == State::UpToDate && !self.makes_secret();
        let is_refused = self.state == State::Edited && !overwrite;
        (!is_there && !is_refused).then(|| self.making())
    }

    fn making(&self) -> Request {
        let mut body = self.body.clone();
        let place = self.kind.place();
        let (method, path) = match (self.kind, self.ids.first()) {
            (Kind::ApiKey, Some(id)) if !self.makes_secret() => {
                (Method::Put, format!("{place}/{}", percent_encoded(id)))
            }
            (Kind::ApiKey, _) => {
                body["name"] = json!(self.name);
                (Method::Post, place.to_owned())
            }
            _ => (
                Method::Put,
                format!("{place}/{}", percent_encoded(&self.name)),
            ),
        };
        let is_unknown = matches!(self.state, State::Hidden(_));
        if self.kind == Kind::User && (self.makes_secret() || is_unknown) {
            body["password"] = json!("<password>");
        }
        Request {
            method,
            path,
            body: Some(body),
        }
    }
}
