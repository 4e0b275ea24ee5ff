//! One asset as it should be, and how it stands in Elasticsearch.

use std::error::Error;

use serde_json::Value;

use super::compare::{Content, Difference};
use super::exchange::{
    Answer, InstallError, Method, Request, error_type, exchange, failure, has_no_handler,
};
use super::{Asset, State, Step};

/// An asset as it should be.
pub(super) struct Wanted {
    pub(super) asset: Asset,
    pub(super) name: String,
    pub(super) content: Value,
}

impl Wanted {
    pub(super) fn doing(&self, verb: &str) -> String {
        let path = self.asset.path(&self.name);
        format!("{verb} the {} {} (GET {path})", self.asset, self.name)
    }

    /// Looks at what Elasticsearch has; nothing if the server does not know such assets.
    pub(super) async fn compare<S, E>(self, send: &S) -> Result<Option<Step>, InstallError>
    where
        S: AsyncFn(Request) -> Result<Answer, E>,
        E: Error + Send + Sync + 'static,
    {
        let doing = self.doing("read");
        let path = self.asset.path(&self.name);
        let request = Request {
            method: Method::Get,
            path: path.clone(),
            body: None,
        };
        let answer = exchange(send, request, &doing).await?;
        let (state, differences) = match answer.status {
            200..300 => {
                let found = self.asset.found_in(&self.name, &answer.body);
                self.judge(&found.ok_or(InstallError::Unexpected { doing })?)
            }
            404 if error_type(&answer.body) == Some("resource_not_found_exception") => {
                (State::Absent, Vec::new())
            }
            // Lifecycle policies are a module that a build may lack (400, no handler) and that
            // serverless projects have switched off (404 or 410).
            404 | 410 if self.asset == Asset::Policy => return Ok(None),
            400 if self.asset == Asset::Policy && has_no_handler(&answer.body) => return Ok(None),
            _ => return Err(failure(doing, &answer)),
        };
        Ok(Some(Step {
            asset: self.asset,
            name: self.name,
            state,
            differences,
            request: Request {
                method: Method::Put,
                path,
                body: Some(self.asset.into_body(self.content)),
            },
        }))
    }

    fn judge(&self, found: &Value) -> (State, Vec<Difference>) {
        if self.asset == Asset::Component {
            return (State::Kept, Vec::new());
        }
        let ours = Content::of(&self.content);
        let theirs = Content::of(found);
        let differences = ours.differences(&theirs);
        let state = if differences.is_empty() {
            State::UpToDate
        } else if theirs.recorded_fingerprint() != Some(theirs.fingerprint().as_str()) {
            State::Edited
        } else if self.asset.version(found) > self.asset.version(&self.content) {
            State::Newer
        } else {
            State::Outdated
        };
        (state, differences)
    }
}
