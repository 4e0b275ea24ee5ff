//! Who we are to Elasticsearch: a user with a password, or an API key. What lies in a file can be
//! read from there again.

use std::path::PathBuf;

use super::api_key;
use super::keys::{self, Key};
use super::resolver::Resolver;
use super::secret_file::{self, SecretFileError};
use super::sources::Value;
use super::values::{self, Problem};
use crate::secret::Secret;

/// What the `Authorization` header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Auth {
    /// A user of Elasticsearch.
    Basic {
        /// Has no colon.
        user: String,
        /// May have any character.
        password: Secret,
    },
    /// What follows the word `ApiKey` in the header.
    ApiKey(Secret),
}

/// Where a secret lies, and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthFile {
    /// The file.
    pub path: PathBuf,
    kind: Kind,
}

/// What a secret is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    /// The password of this user.
    Password {
        user: String,
    },
    /// `user:password`.
    CloudAuth,
    ApiKey,
}

/// Why a file's secret cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthFileError {
    /// There is none.
    #[error("no secret in the file {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: SecretFileError,
    },
    /// It is none of those that Elasticsearch takes.
    #[error("the secret in the file {} {problem}", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, without it.
        problem: String,
    },
}

impl AuthFile {
    /// Reads the secret again.
    ///
    /// # Errors
    /// If there is none now, or none of the kind that was there.
    pub fn read(&self) -> Result<Auth, AuthFileError> {
        let path = || self.path.clone();
        let (secret, _) = secret_file::read(&self.path).map_err(|source| AuthFileError::File {
            path: path(),
            source,
        })?;
        self.kind
            .auth(secret)
            .map_err(|problem| AuthFileError::Unfit {
                path: path(),
                problem,
            })
    }
}

impl Kind {
    fn auth(&self, secret: Secret) -> Result<Auth, Problem> {
        match self {
            Self::Password { user } => Ok(Auth::Basic {
                user: user.clone(),
                password: secret,
            }),
            Self::CloudAuth => match secret.expose().split_once(':') {
                Some((user, password)) if !user.is_empty() && !password.is_empty() => {
                    Ok(Auth::Basic {
                        user: user.to_owned(),
                        password: Secret::new(password),
                    })
                }
                _ => Err("must be user:password".to_owned()),
            },
            Self::ApiKey => match api_key::header_form(secret.expose()) {
                Ok(key) => Ok(Auth::ApiKey(key)),
                Err(error) => Err(error.to_string()),
            },
        }
    }
}

/// Reads the settings of the one way to log in, if there is one.
pub(super) fn resolve(resolver: &mut Resolver) -> Option<(Auth, Option<AuthFile>)> {
    for (key, other) in [
        (&keys::API_KEY, &keys::USER),
        (&keys::API_KEY, &keys::PASSWORD),
        (&keys::API_KEY, &keys::CLOUD_AUTH),
        (&keys::CLOUD_AUTH, &keys::USER),
        (&keys::CLOUD_AUTH, &keys::PASSWORD),
    ] {
        resolver.exclude(key, other, "keep one way to log in");
    }
    let user = resolver.unshown(&keys::USER, user);
    let password = resolver.secret(&keys::PASSWORD);
    match (
        resolver.is_set(&keys::USER),
        resolver.is_set(&keys::PASSWORD),
    ) {
        (true, false) => resolver.wrong(&keys::USER, "goes with password, which is not set"),
        (false, true) => resolver.wrong(&keys::PASSWORD, "goes with user, which is not set"),
        _ => {}
    }
    if let Some(secret) = resolver.secret(&keys::CLOUD_AUTH) {
        return of_kind(resolver, &keys::CLOUD_AUTH, Kind::CloudAuth, secret);
    }
    if let Some(secret) = resolver.secret(&keys::API_KEY) {
        return of_kind(resolver, &keys::API_KEY, Kind::ApiKey, secret);
    }
    let kind = Kind::Password { user: user? };
    of_kind(resolver, &keys::PASSWORD, kind, password?)
}

/// The API key with which `verify` reads.
pub(super) fn verifier(resolver: &mut Resolver) -> Option<Auth> {
    let secret = resolver.secret(&keys::VERIFIER_API_KEY)?;
    let (auth, _) = of_kind(resolver, &keys::VERIFIER_API_KEY, Kind::ApiKey, secret)?;
    Some(auth)
}

fn of_kind(
    resolver: &mut Resolver,
    key: &Key,
    kind: Kind,
    secret: Secret,
) -> Option<(Auth, Option<AuthFile>)> {
    match kind.auth(secret) {
        Ok(auth) => {
            let file = resolver.secret_path(key);
            Some((auth, file.map(|path| AuthFile { path, kind })))
        }
        Err(problem) => {
            resolver.wrong(key, problem);
            None
        }
    }
}

/// HTTP ends the user at the first colon.
fn user(value: &Value) -> Result<String, Problem> {
    let user = values::text(value)?;
    if user.contains(':') {
        return Err("must not contain a colon; user:password together is cloud-auth".to_owned());
    }
    Ok(user)
}
