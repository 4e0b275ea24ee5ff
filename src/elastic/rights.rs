//! Who may write: roles, users and API keys, made by `install` where it is asked to.
//!
//! [`plan`] only reads; [`Plan::apply`] makes what is missing. As with templates all of it may be
//! repeated: what is there is left as it is, what somebody has edited is replaced only if asked
//! for, and a second run makes no second key.
//!
//! | found | state | [`Plan::apply`] |
//! |---|---|---|
//! | nothing | [`State::Absent`] | creates it |
//! | the same rights | [`State::UpToDate`] | nothing; another key or password only if asked for |
//! | others, as this program has left them | [`State::Outdated`] | updates it; the secret stays |
//! | anything else | [`State::Edited`] | refuses, or overwrites; the secret stays |
//! | this user may not look | [`State::Hidden`] | nothing: somebody else has to |
//!
//! The fingerprint in the `metadata` of each tells the third from the fourth.

mod compared;
mod role;
mod step;

use std::error::Error;
use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};

use super::assets::{
    Answer, Difference, InstallError, Method, Outcome, Request, exchange, failure,
};
use crate::elastic::{dead_letters, work};
use crate::secret::Secret;

pub use role::Rights;

/// What is to be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Which rights.
    pub rights: Rights,
    /// The name of the index template, from which those of role and key are made.
    pub template: String,
    /// The indices that the rights are for.
    pub index_wildcard: String,
    /// Whether there is to be a role.
    pub role: bool,
    /// The name of a user with that role.
    pub user: Option<String>,
    /// Whether there is to be an API key.
    pub api_key: bool,
    /// Whether a user or key that is there gets a new secret.
    pub new_secret: bool,
    /// Whether a writer may share backfills, too.
    pub work: bool,
}

/// The kinds of holders of rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A named set of rights.
    Role,
    /// Has a password, and rights by its role.
    User,
    /// Has rights of its own.
    ApiKey,
}

/// How a holder stands in Elasticsearch; see the table of the [module](self).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It is not there.
    Absent,
    /// It is there with the same rights.
    UpToDate,
    /// It is there as this program left it, with other rights.
    Outdated,
    /// Its rights are not what this program gave.
    Edited,
    /// This user may not look; why not.
    Hidden(String),
}

/// A holder of rights and what is to happen to it; shown as its kind and name.
#[derive(Clone, Debug)]
pub struct Step {
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// How it stands.
    pub state: State,
    /// Where it differs.
    pub differences: Vec<Difference>,
    /// Ids of the API keys of this name that work.
    pub ids: Vec<String>,
    new_secret: bool,
    body: Value,
}

/// What was done.
#[derive(Debug)]
pub struct Made {
    /// To the holder.
    pub outcome: Outcome,
    /// The new secret, in the form in which the configuration takes it.
    pub secret: Option<Secret>,
}

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
pub enum RightsError {
    /// This user may not do it: somebody else has to.
    #[error("{0}")]
    Forbidden(String),
    /// A request failed.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// Somebody else's work is in the way; nothing was sent.
    #[error(
        "the {0}, edited or made by somebody else, is in the way: compare, then repeat with \
         --overwrite to replace"
    )]
    InTheWay(String),
    /// An API key would have less than asked for.
    #[error(
        "no API key was made, since a key can do no more than whoever makes it, and this user \
         lacks {0}: make it as another user, or use --create-user"
    )]
    TooFew(String),
    /// Whoever asks is an API key itself.
    #[error(
        "no API key was made, since Elasticsearch lets no API key make another one that has rights: \
         install with user and password"
    )]
    AskedByKey,
    /// The system gives no random numbers.
    #[error("the system gives no random numbers for a password")]
    NoRandomness,
}

/// What there is to do.
#[derive(Debug)]
pub struct Plan {
    /// In the order in which they are made.
    pub steps: Vec<Step>,
    wanted: Wanted,
}

/// Compares the holders of rights with what Elasticsearch has. `None` where security is switched
/// off: there everybody may do everything.
///
/// # Errors
/// If an answer is an error for another reason than a missing privilege.
pub async fn plan<S, E>(send: S, wanted: Wanted) -> Result<Option<Plan>, InstallError>
where
    S: AsyncFn(Request) -> Result<Answer, E>,
    E: Error + Send + Sync + 'static,
{
    let mut steps = Vec::new();
    for mut step in wanted.steps() {
        let Some(found) = step.find(&send).await? else {
            return Ok(None);
        };
        step.judge(found);
        steps.push(step);
    }
    Ok(Some(Plan { steps, wanted }))
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Role => "role",
            Self::User => "user",
            Self::ApiKey => "API key",
        })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

impl Wanted {
    fn role_name(&self) -> String {
        self.rights.role_name(&self.template)
    }

    fn role_body(&self) -> Value {
        let mut role = self.rights.role(&self.index_wildcard);
        if self.work
            && self.rights == Rights::Writer
            && let Some(indices) = role["indices"].as_array_mut()
        {
            for (name, privileges) in [
                (work::INDEX, work::PRIVILEGES),
                (dead_letters::INDEX, dead_letters::PRIVILEGES),
            ] {
                indices.push(json!({"names": [name], "privileges": privileges}));
            }
        }
        role
    }

    fn steps(&self) -> Vec<Step> {
        let name = self.role_name();
        let role = self.role_body();
        let mut steps = Vec::new();
        let mut add = |kind, name: &str, body| {
            steps.push(Step {
                kind,
                name: name.to_owned(),
                state: State::Absent,
                differences: Vec::new(),
                ids: Vec::new(),
                new_secret: self.new_secret && kind != Kind::Role,
                body: compared::stamped(kind, body),
            });
        };
        if self.role || self.user.is_some() {
            add(Kind::Role, &name, role.clone());
        }
        if let Some(user) = &self.user {
            add(Kind::User, user, json!({"roles": [name], "enabled": true}));
        }
        if self.api_key {
            let mut rights = role;
            rights
                .as_object_mut()
                .expect("a role is an object")
                .remove("metadata");
            add(
                Kind::ApiKey,
                &name,
                json!({"role_descriptors": {name.as_str(): rights}}),
            );
        }
        steps
    }
}

impl Plan {
    /// Whether the rights are those of who reads for `verify`.
    pub fn is_for_verifier(&self) -> bool {
        self.wanted.rights == Rights::Verifier
    }

    /// Does what there is to do about one of the steps.
    ///
    /// # Errors
    /// If this user may not, if somebody's work is in the way, or if a request fails.
    pub async fn apply<S, E>(
        &self,
        step: &Step,
        send: S,
        overwrite: bool,
    ) -> Result<Made, RightsError>
    where
        S: AsyncFn(Request) -> Result<Answer, E>,
        E: Error + Send + Sync + 'static,
    {
        if let State::Hidden(reason) = &step.state {
            return Err(RightsError::Forbidden(reason.clone()));
        }
        let Some(outcome) = step.outcome(overwrite) else {
            return Err(RightsError::InTheWay(step.to_string()));
        };
        let Some(mut request) = step.request(overwrite) else {
            return Ok(Made {
                outcome,
                secret: None,
            });
        };
        if step.kind == Kind::ApiKey {
            let lacking = self.lacking(&send).await?;
            if !lacking.is_empty() {
                return Err(RightsError::TooFew(lacking.join(", ")));
            }
        }
        let mut secret = None;
        if let Some(body) = &mut request.body
            && body.get("password").is_some()
        {
            let password = password()?;
            body["password"] = json!(password.expose());
            secret = Some(password);
        }
        let doing = format!("make the {step} ({} {})", request.method, request.path);
        let answer = exchange(&send, request, &doing).await?;
        if answer.status >= 300 {
            return Err(match failure(doing, &answer) {
                forbidden @ InstallError::Forbidden { .. } => {
                    RightsError::Forbidden(forbidden.to_string())
                }
                InstallError::Refused {
                    status: 400,
                    reason,
                    ..
                } if reason.starts_with("creating derived api keys") => RightsError::AskedByKey,
                other => other.into(),
            });
        }
        if step.kind == Kind::ApiKey && step.makes_secret() {
            let encoded = answer.body["encoded"].as_str();
            let encoded = encoded.ok_or(InstallError::Unexpected { doing })?;
            secret = Some(Secret::new(encoded));
        }
        let is_new = secret.is_some();
        let outcome = match outcome {
            Outcome::UpToDate if is_new && step.kind == Kind::User => Outcome::Updated,
            _ if is_new => Outcome::Created,
            other => other,
        };
        Ok(Made { outcome, secret })
    }

    /// What of the rights this user lacks.
    async fn lacking<S, E>(&self, send: &S) -> Result<Vec<String>, InstallError>
    where
        S: AsyncFn(Request) -> Result<Answer, E>,
        E: Error + Send + Sync + 'static,
    {
        let role = self.wanted.role_body();
        let request = Request {
            method: Method::Post,
            path: "/_security/user/_has_privileges".to_owned(),
            body: Some(json!({
                "cluster": role["cluster"],
                "index": role["indices"],
            })),
        };
        let doing = "ask for this user's privileges".to_owned();
        let answer = exchange(send, request, &doing).await?;
        if answer.status >= 300 {
            return Err(failure(doing, &answer));
        }
        let lacks = |has: &Value, wanted: &Value| -> Vec<String> {
            let names = wanted.as_array().into_iter().flatten();
            let names = names.filter_map(Value::as_str);
            let lacking = names.filter(|name| has[*name] != true);
            lacking.map(str::to_owned).collect()
        };
        let mut lacking = lacks(&answer.body["cluster"], &role["cluster"]);
        for of_indices in role["indices"].as_array().into_iter().flatten() {
            let indices = of_indices["names"][0].as_str().unwrap_or_default();
            let names = lacks(&answer.body["index"][indices], &of_indices["privileges"]);
            lacking.extend(names.iter().map(|name| format!("{name} on {indices}")));
        }
        Ok(lacking)
    }
}

/// 192 bits at random, in characters that need no quoting anywhere.
fn password() -> Result<Secret, RightsError> {
    let mut bytes = [0; 24];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| RightsError::NoRandomness)?;
    Ok(Secret::new(BASE64_URL_SAFE_NO_PAD.encode(bytes)))
}
