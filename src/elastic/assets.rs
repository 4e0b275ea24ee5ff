//! The index template, the lifecycle policy and the users' component template: how they are
//! rendered for one server, compared with what Elasticsearch holds, and installed.
//!
//! [`plan`] only reads. It says of each asset what would happen to it and why; [`Plan::apply`]
//! does it, and [`Plan::verify`] asks Elasticsearch what a new index would get. All of them may be
//! repeated at any time: a finished installation is found up to date.
//!
//! | found in Elasticsearch | state | what [`Plan::apply`] does |
//! |---|---|---|
//! | nothing | [`State::Absent`] | creates it |
//! | the same content | [`State::UpToDate`] | nothing |
//! | an older or otherwise configured one of ours, untouched | [`State::Outdated`] | replaces it |
//! | one of ours from a newer version of this program | [`State::Newer`] | refuses, or overwrites |
//! | anything else | [`State::Edited`] | refuses, or overwrites |
//! | a component template of whatever content | [`State::Kept`] | nothing: it is the user's |
//!
//! "Untouched" is known from a fingerprint of the content that each asset carries in its `_meta`.
//!
//! The functions take the way to send a request as an argument, so that they depend on no client.

mod compare;
mod exchange;
mod render;
mod retention;
mod wanted;
mod work;

use std::error::Error;
use std::fmt;

use serde_json::{Value, json};

use exchange::lacking;
use wanted::Wanted;

pub(super) use compare::Content;
pub(super) use exchange::{exchange, failure, has_no_handler, percent_encoded};

pub use compare::Difference;
pub use exchange::{Answer, InstallError, Method, Request};
pub use render::{Server, Settings, Version, installer_role, writer_role};
pub use retention::{Age, Ages, Retention, retention};
pub use work::plan_work;

/// The kinds of assets, in the order in which they must be installed: a template may name only a
/// component that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asset {
    /// The lifecycle policy.
    Policy,
    /// The component template in which users add to the index template.
    Component,
    /// The index template.
    Template,
}

impl fmt::Display for Asset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Policy => "lifecycle policy",
            Self::Component => "component template",
            Self::Template => "index template",
        })
    }
}

impl Asset {
    fn path(self, name: &str) -> String {
        let name = percent_encoded(name);
        match self {
            Self::Policy => format!("/_ilm/policy/{name}"),
            Self::Component => format!("/_component_template/{name}"),
            Self::Template => format!("/_index_template/{name}"),
        }
    }

    /// The asset in the answer to a GET of it.
    fn found_in(self, name: &str, body: &Value) -> Option<Value> {
        let asset = match self {
            Self::Policy => body.get(name)?.get("policy"),
            Self::Component => body.pointer("/component_templates/0/component_template"),
            Self::Template => body.pointer("/index_templates/0/index_template"),
        };
        asset.cloned()
    }

    fn into_body(self, asset: Value) -> Value {
        match self {
            Self::Policy => json!({"policy": asset}),
            Self::Component | Self::Template => asset,
        }
    }

    fn version(self, asset: &Value) -> Option<u64> {
        match self {
            Self::Policy => asset.pointer("/_meta/version")?.as_u64(),
            Self::Component | Self::Template => asset.get("version")?.as_u64(),
        }
    }
}

/// How an asset stands in Elasticsearch; see the table of the [module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is not there.
    Absent,
    /// It is there with the same content.
    UpToDate,
    /// It is there as this program left it, with other content.
    Outdated,
    /// A newer version of this program installed it.
    Newer,
    /// Its content is not what this program wrote.
    Edited,
    /// It is the user's own; its content does not matter.
    Kept,
}

/// What was done about an asset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was not there before.
    Created,
    /// It took the place of an older one of ours.
    Updated,
    /// It took the place of somebody's work, as asked for.
    Overwritten,
    /// There was nothing to do.
    UpToDate,
    /// It was left as the user has it.
    Kept,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Overwritten => "overwritten",
            Self::UpToDate => "up to date",
            Self::Kept => "yours, left as it is",
        })
    }
}

/// One asset and what is to happen to it; shown as its kind and name.
#[derive(Clone, Debug)]
pub struct Step {
    /// What it is.
    pub asset: Asset,
    /// Its name in Elasticsearch.
    pub name: String,
    /// How it stands there.
    pub state: State,
    /// Where it differs; only for [`State::Outdated`], [`State::Newer`] and [`State::Edited`].
    pub differences: Vec<Difference>,
    request: Request,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.asset, self.name)
    }
}

impl Step {
    /// The outcome if this step is applied; none if it is refused.
    pub fn outcome(&self, overwrite: bool) -> Option<Outcome> {
        match self.state {
            State::Absent => Some(Outcome::Created),
            State::UpToDate => Some(Outcome::UpToDate),
            State::Outdated => Some(Outcome::Updated),
            State::Newer | State::Edited => overwrite.then_some(Outcome::Overwritten),
            State::Kept => Some(Outcome::Kept),
        }
    }

    /// The request that this step sends; none if there is nothing to do or it is refused.
    pub fn request(&self, overwrite: bool) -> Option<&Request> {
        match self.outcome(overwrite)? {
            Outcome::Created | Outcome::Updated | Outcome::Overwritten => Some(&self.request),
            Outcome::UpToDate | Outcome::Kept => None,
        }
    }
}

/// Something a user should know about an installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// The server has no index lifecycle management.
    NoLifecycle,
    /// The index template leaves fields to guesses.
    Guesses,
    /// The index template changes while indices may exist.
    ExistingIndices,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoLifecycle => {
                "this Elasticsearch has no index lifecycle management: no index will be deleted \
                 by age, and the index template names no lifecycle policy"
            }
            Self::Guesses => {
                "Elasticsearch guesses each field by the first event that has it; events that do \
                 not fit go into safe form. Without dynamic the typed template takes its place"
            }
            Self::ExistingIndices => {
                "the index template takes effect with the next index; those that exist keep their \
                 mapping"
            }
        })
    }
}

/// What an installation would do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The assets, in the order in which they are installed.
    pub steps: Vec<Step>,
    /// What else there is to say.
    pub notes: Vec<Note>,
    template: Value,
}

/// What Elasticsearch says a new index would get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything that the index template says.
    AsInstalled,
    /// Not what the index template says, although that is the one that applies.
    Differs(Vec<Difference>),
    /// Another index template with a higher priority applies.
    Shadowed,
    /// This user may not ask; the reason is the server's.
    NotAllowed(String),
}

/// Compares the assets for this server and these settings with what Elasticsearch holds.
///
/// # Errors
/// If an asset cannot be read, be it for the connection, for a missing privilege, or because
/// Elasticsearch refuses. A server without lifecycle policies is no error but a [`Note`].
pub async fn plan<S, E>(send: S, server: Server, settings: &Settings) -> Result<Plan, InstallError>
where
    S: AsyncFn(Request) -> Result<Answer, E>,
    E: Error + Send + Sync + 'static,
{
    let Looked {
        steps,
        has_lifecycle,
        template,
    } = look(send, server, settings).await;
    let steps = steps.into_iter().map(|(_, step)| step);
    let steps = steps.collect::<Result<Vec<Step>, InstallError>>()?;
    let replaces = |step: &Step| {
        step.asset == Asset::Template && !matches!(step.state, State::Absent | State::UpToDate)
    };
    let notes = [
        (!has_lifecycle, Note::NoLifecycle),
        (settings.dynamic, Note::Guesses),
        (steps.iter().any(replaces), Note::ExistingIndices),
    ];
    let notes = notes.into_iter().filter(|(holds, _)| *holds);
    Ok(Plan {
        steps,
        notes: notes.map(|(_, note)| note).collect(),
        template,
    })
}

/// How the assets stand, each by itself.
#[derive(Debug)]
pub struct Looked {
    /// What would happen to each asset, or why it cannot be told, in the order in which they are
    /// installed. The policy is missing where the server knows none.
    pub steps: Vec<(Asset, Result<Step, InstallError>)>,
    /// Whether the server knows lifecycle policies, as far as this user can see.
    pub has_lifecycle: bool,
    template: Value,
}

/// As [`plan`], for whoever only looks: what cannot be read hides nothing else.
pub async fn look<S, E>(send: S, server: Server, settings: &Settings) -> Looked
where
    S: AsyncFn(Request) -> Result<Answer, E>,
    E: Error + Send + Sync + 'static,
{
    let mut steps = Vec::new();
    let policy = Wanted {
        asset: Asset::Policy,
        name: settings.policy.clone(),
        content: render::policy(settings),
    };
    let policy = if server.serverless {
        Ok(None)
    } else {
        policy.compare(&send).await
    };
    let has_lifecycle = !matches!(policy, Ok(None));
    steps.extend(policy.transpose().map(|policy| (Asset::Policy, policy)));

    let template = render::template(settings, server, has_lifecycle);
    for wanted in [
        Wanted {
            asset: Asset::Component,
            name: settings.component(),
            content: render::component(),
        },
        Wanted {
            asset: Asset::Template,
            name: settings.template.clone(),
            content: template.clone(),
        },
    ] {
        let asset = wanted.asset;
        let step = wanted.compare(&send).await;
        let step =
            step.map(|step| step.expect("only lifecycle policies may be unknown to a server"));
        steps.push((asset, step));
    }
    Looked {
        steps,
        has_lifecycle,
        template,
    }
}

/// The index template that Elasticsearch would take for a new index of that name: of those that
/// are for it, the one of the highest priority. `None`: there is none.
///
/// To simulate an index takes the right to manage templates; to list them does not.
///
/// # Errors
/// If the templates cannot be listed.
pub async fn applying<S, E>(send: S, index_name: &str) -> Result<Option<String>, InstallError>
where
    S: AsyncFn(Request) -> Result<Answer, E>,
    E: Error + Send + Sync + 'static,
{
    let request = Request {
        method: Method::Get,
        path: "/_index_template".to_owned(),
        body: None,
    };
    let doing = "list the index templates (GET /_index_template)".to_owned();
    let answer = exchange(&send, request, &doing).await?;
    if answer.status >= 300 {
        return Err(failure(doing, &answer));
    }
    let templates = answer.body["index_templates"].as_array();
    let templates = templates.ok_or(InstallError::Unexpected { doing })?;
    let is_for_it = |template: &&Value| {
        let patterns = template["index_template"]["index_patterns"].as_array();
        let mut patterns = patterns.into_iter().flatten().filter_map(Value::as_str);
        patterns.any(|pattern| is_match(pattern, index_name))
    };
    let priority = |template: &&Value| template["index_template"]["priority"].as_u64();
    let first = templates.iter().filter(is_for_it).max_by_key(priority);
    Ok(first.and_then(|template| Some(template["name"].as_str()?.to_owned())))
}

/// Whether a name fits a pattern in which each `*` stands for any text.
fn is_match(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(name) = name.strip_prefix(start) else {
        return false;
    };
    // What stands between two stars may be taken where it is met first.
    let mut left = name;
    let mut parts = rest.split('*').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return left.ends_with(part);
        }
        match left.split_once(part) {
            Some((_, behind)) => left = behind,
            None => return false,
        }
    }
    true
}

impl Plan {
    /// Sends what there is to send and reports each step when it is done.
    ///
    /// # Errors
    /// [`InstallError::InTheWay`], before anything is sent, if an asset is [`State::Edited`] or
    /// [`State::Newer`] and `overwrite` is false; else if a request fails, in which case what was
    /// reported before stays installed and the installation may be repeated.
    pub async fn apply<S, E>(
        &self,
        send: S,
        overwrite: bool,
        mut report: impl FnMut(&Step, Outcome),
    ) -> Result<(), InstallError>
    where
        S: AsyncFn(Request) -> Result<Answer, E>,
        E: Error + Send + Sync + 'static,
    {
        let assets: Vec<String> = self
            .steps
            .iter()
            .filter(|step| step.outcome(overwrite).is_none())
            .map(|step| match step.state {
                State::Newer => format!("the {step} of a newer version of this program"),
                _ => format!("the {step}, edited or made by somebody else,"),
            })
            .collect();
        if !assets.is_empty() {
            return Err(InstallError::InTheWay { assets });
        }
        for step in &self.steps {
            if let Some(request) = step.request(overwrite) {
                let doing = format!("install the {step} ({} {})", request.method, request.path);
                let answer = exchange(&send, request.clone(), &doing).await?;
                if answer.status >= 300 {
                    return Err(failure(doing, &answer));
                }
            }
            let outcome = step.outcome(overwrite).expect("refused steps ended above");
            report(step, outcome);
        }
        Ok(())
    }

    /// Asks Elasticsearch what an index of that name would get, for instance the next day's.
    ///
    /// # Errors
    /// If the request fails for another reason than a missing privilege.
    pub async fn verify<S, E>(&self, send: S, index_name: &str) -> Result<Verdict, InstallError>
    where
        S: AsyncFn(Request) -> Result<Answer, E>,
        E: Error + Send + Sync + 'static,
    {
        let request = Request {
            method: Method::Post,
            path: format!(
                "/_index_template/_simulate_index/{}",
                percent_encoded(index_name)
            ),
            body: None,
        };
        let doing = format!(
            "simulate the index {index_name} ({} {})",
            request.method, request.path
        );
        let answer = exchange(&send, request, &doing).await?;
        if answer.status >= 300 {
            return match failure(doing, &answer) {
                InstallError::Forbidden {
                    privileges, reason, ..
                } => Ok(Verdict::NotAllowed(lacking(&privileges, &reason))),
                other => Err(other),
            };
        }
        let name = self.steps.last().map(|step| step.name.as_str());
        let mut overlapping = answer.body["overlapping"].as_array().into_iter().flatten();
        if overlapping.any(|template| template["name"].as_str() == name) {
            return Ok(Verdict::Shadowed);
        }
        let ours = Content::of(&json!({"template": self.template["template"]}));
        let theirs = Content::of(&json!({"template": answer.body["template"]}));
        let differences = ours.missing_from(&theirs);
        if differences.is_empty() {
            Ok(Verdict::AsInstalled)
        } else {
            Ok(Verdict::Differs(differences))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::convert::Infallible;

    use super::*;

    const SERVER: Server = Server {
        version: Version::new(9, 5, 3),
        serverless: false,
    };
    const TEMPLATE: &str = "/_index_template/audit-events";
    const POLICY: &str = "/_ilm/policy/audit-events";

    /// Stores assets and gives them back in other words, as Elasticsearch does; answers that a
    /// test has scripted come first.
    #[derive(Default)]
    struct Fake {
        stored: RefCell<BTreeMap<String, Value>>,
        scripted: BTreeMap<(&'static str, &'static str), (u16, Value)>,
        sent: RefCell<Vec<String>>,
    }

    impl Fake {
        fn script(
            mut self,
            method: &'static str,
            path: &'static str,
            answer: (u16, Value),
        ) -> Self {
            self.scripted.insert((method, path), answer);
            self
        }

        fn answer(&self, request: Request) -> Answer {
            let Request { method, path, body } = request;
            let method = method.to_string();
            self.sent.borrow_mut().push(format!("{method} {path}"));
            let scripted = self
                .scripted
                .iter()
                .find(|((m, p), _)| (*m, *p) == (method.as_str(), path.as_str()));
            if let Some((_, (status, body))) = scripted {
                return Answer {
                    status: *status,
                    body: body.clone(),
                };
            }
            if let Some(body) = body {
                self.stored.borrow_mut().insert(path, body);
                return ok(json!({"acknowledged": true}));
            }
            let name = path.rsplit('/').next().unwrap();
            if path.contains("_simulate_index") {
                let template = self.stored.borrow()[TEMPLATE]["template"].clone();
                return ok(json!({"template": reworded(template), "overlapping": []}));
            }
            let Some(asset) = self.stored.borrow().get(&path).cloned() else {
                return Answer {
                    status: 404,
                    body: json!({"error": {"type": "resource_not_found_exception"}}),
                };
            };
            ok(if path.starts_with("/_ilm/") {
                json!({name: {"version": 3, "policy": asset["policy"], "in_use_by": {}}})
            } else if path.starts_with("/_component") {
                json!({"component_templates": [{"name": name, "component_template": asset}]})
            } else {
                let mut asset = asset;
                asset["template"] = reworded(asset["template"].take());
                asset["created_date_millis"] = json!(1_795_426_300_103_i64);
                json!({"index_templates": [{"name": name, "index_template": asset}]})
            })
        }

        async fn plan(&self, settings: &Settings) -> Result<Plan, InstallError> {
            plan(
                async |request| Ok::<_, Infallible>(self.answer(request)),
                SERVER,
                settings,
            )
            .await
        }

        async fn apply(&self, plan: &Plan, overwrite: bool) -> Result<Vec<String>, InstallError> {
            let mut done = Vec::new();
            plan.apply(
                async |request| Ok::<_, Infallible>(self.answer(request)),
                overwrite,
                |step, outcome| done.push(format!("{step}: {outcome}")),
            )
            .await?;
            Ok(done)
        }

        async fn verify(&self, plan: &Plan) -> Result<Verdict, InstallError> {
            plan.verify(
                async |request| Ok::<_, Infallible>(self.answer(request)),
                "audit-events-2026.01.02",
            )
            .await
        }

        /// A server on which everything is installed.
        async fn installed() -> Self {
            let fake = Self::default();
            let plan = fake.plan(&Settings::default()).await.unwrap();
            fake.apply(&plan, false).await.unwrap();
            fake.sent.borrow_mut().clear();
            fake
        }

        fn edit(&self, path: &str, pointer: &str, value: Value) {
            *self
                .stored
                .borrow_mut()
                .get_mut(path)
                .unwrap()
                .pointer_mut(pointer)
                .unwrap() = value;
        }

        fn writes(&self) -> Vec<String> {
            let sent = self.sent.borrow();
            sent.iter()
                .filter(|line| line.starts_with("PUT"))
                .cloned()
                .collect()
        }
    }

    fn ok(body: Value) -> Answer {
        Answer { status: 200, body }
    }

    /// Settings come back as texts.
    fn reworded(mut template: Value) -> Value {
        let index = &mut template["settings"]["index"];
        for value in index.as_object_mut().unwrap().values_mut() {
            if !value.is_object() && !value.is_string() {
                *value = json!(value.to_string());
            }
        }
        template
    }

    fn states(plan: &Plan) -> Vec<State> {
        plan.steps.iter().map(|step| step.state).collect()
    }

    #[tokio::test]
    async fn everything_is_created_once_and_then_found_up_to_date() {
        let fake = Fake::default();
        let plan = fake.plan(&Settings::default()).await.unwrap();
        assert_eq!(plan.notes, []);
        assert_eq!(
            fake.apply(&plan, false).await.unwrap(),
            [
                "lifecycle policy audit-events: created",
                "component template audit-events@custom: created",
                "index template audit-events: created",
            ]
        );
        assert_eq!(
            fake.writes(),
            [
                "PUT /_ilm/policy/audit-events",
                "PUT /_component_template/audit-events@custom",
                "PUT /_index_template/audit-events",
            ]
        );
        assert_eq!(fake.verify(&plan).await.unwrap(), Verdict::AsInstalled);

        fake.sent.borrow_mut().clear();
        let again = fake.plan(&Settings::default()).await.unwrap();
        assert_eq!(
            fake.apply(&again, true).await.unwrap(),
            [
                "lifecycle policy audit-events: up to date",
                "component template audit-events@custom: yours, left as it is",
                "index template audit-events: up to date",
            ]
        );
        assert_eq!(fake.writes(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn our_own_work_is_replaced_when_the_settings_change() {
        let fake = Fake::installed().await;
        let settings = Settings {
            replicas: Some(2),
            ..Settings::default()
        };
        let plan = fake.plan(&settings).await.unwrap();
        assert_eq!(
            states(&plan),
            [State::UpToDate, State::Kept, State::Outdated]
        );
        let differences: Vec<_> = plan.steps[2]
            .differences
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            differences,
            [
                "template.settings.index.auto_expand_replicas: 0-1 → (absent)",
                "template.settings.index.number_of_replicas: (absent) → 2",
            ]
        );
        assert_eq!(plan.notes, [Note::ExistingIndices]);
        fake.apply(&plan, false).await.unwrap();
        assert_eq!(fake.writes(), ["PUT /_index_template/audit-events"]);
        let again = fake.plan(&settings).await.unwrap();
        assert_eq!(
            states(&again),
            [State::UpToDate, State::Kept, State::UpToDate]
        );
    }

    #[tokio::test]
    async fn somebodys_edit_is_refused_whole_unless_overwritten() {
        let fake = Fake::installed().await;
        fake.edit(POLICY, "/policy/phases/delete/min_age", json!("30d"));
        let plan = fake.plan(&Settings::default()).await.unwrap();
        assert_eq!(states(&plan), [State::Edited, State::Kept, State::UpToDate]);
        assert_eq!(
            plan.steps[0].differences[0].to_string(),
            "phases.delete.min_age: 30d → 365d"
        );
        insta::assert_snapshot!(
            fake.apply(&plan, false).await.unwrap_err(),
            @"nothing was installed, since the lifecycle policy audit-events, edited or made by somebody else, is in the way: compare, then repeat with --overwrite to replace"
        );
        assert_eq!(fake.writes(), Vec::<String>::new());
        assert_eq!(
            fake.apply(&plan, true).await.unwrap()[0],
            "lifecycle policy audit-events: overwritten"
        );
        let again = fake.plan(&Settings::default()).await.unwrap();
        assert_eq!(again.steps[0].state, State::UpToDate);
    }

    #[tokio::test]
    async fn a_template_of_a_newer_version_is_not_downgraded() {
        let fake = Fake::installed().await;
        fake.edit(TEMPLATE, "/version", json!(99));
        let content = Content::of(&fake.stored.borrow()[TEMPLATE]);
        fake.edit(
            TEMPLATE,
            "/_meta/content_sha256",
            json!(content.fingerprint()),
        );
        let plan = fake.plan(&Settings::default()).await.unwrap();
        assert_eq!(plan.steps[2].state, State::Newer);
        assert!(matches!(
            fake.apply(&plan, false).await,
            Err(InstallError::InTheWay { .. })
        ));
    }

    #[tokio::test]
    async fn a_server_without_lifecycle_policies_gets_a_template_that_names_none() {
        let no_handler = json!({"error": "no handler found for uri [/_ilm/policy/audit-events] and method [GET]", "status": 400});
        let gone = json!({"error": {"type": "api_not_available_exception", "reason": "not here"}});
        for answer in [(400, no_handler), (410, gone)] {
            let fake = Fake::default().script("GET", POLICY, answer);
            let plan = fake.plan(&Settings::default()).await.unwrap();
            assert_eq!(plan.notes, [Note::NoLifecycle]);
            fake.apply(&plan, false).await.unwrap();
            assert_eq!(fake.writes().len(), 2);
            let settings = &fake.stored.borrow()[TEMPLATE]["template"]["settings"]["index"];
            assert_eq!(settings["lifecycle"], Value::Null);
        }
    }

    #[tokio::test]
    async fn missing_privileges_are_named() {
        let reason = "action [cluster:admin/ilm/put] is unauthorized for user [writer] with effective roles [writer], this action is granted by the cluster privileges [manage_ilm,manage,all]";
        let body = json!({"error": {"type": "security_exception", "reason": reason}});
        let fake = Fake::default().script("PUT", POLICY, (403, body.clone()));
        let plan = fake.plan(&Settings::default()).await.unwrap();
        insta::assert_snapshot!(
            fake.apply(&plan, false).await.unwrap_err(),
            @"Elasticsearch does not let this user install the lifecycle policy audit-events (PUT /_ilm/policy/audit-events): it takes one of the privileges manage_ilm, manage, all"
        );

        let simulate = "/_index_template/_simulate_index/audit-events-2026.01.02";
        let fake = Fake::default().script("POST", simulate, (403, body));
        let plan = fake.plan(&Settings::default()).await.unwrap();
        assert_eq!(
            fake.verify(&plan).await.unwrap(),
            Verdict::NotAllowed("it takes one of the privileges manage_ilm, manage, all".into())
        );
    }

    #[tokio::test]
    async fn a_refusal_is_shown_with_all_its_causes_and_ends_the_installation() {
        let fake = Fake::default().script(
            "PUT",
            TEMPLATE,
            (
                400,
                json!({"error": {
                    "type": "illegal_argument_exception",
                    "reason": "composable template [audit-events] is invalid",
                    "caused_by": {"type": "x", "reason": "invalid composite mappings",
                                  "caused_by": {"type": "y", "reason": "no handler for type [z]"}}
                }}),
            ),
        );
        let plan = fake.plan(&Settings::default()).await.unwrap();
        insta::assert_snapshot!(
            fake.apply(&plan, false).await.unwrap_err(),
            @"Elasticsearch refused to install the index template audit-events (PUT /_index_template/audit-events) (HTTP 400, illegal_argument_exception): composable template [audit-events] is invalid: invalid composite mappings: no handler for type [z]"
        );

        let unavailable = Fake::default().script("GET", TEMPLATE, (503, Value::Null));
        insta::assert_snapshot!(
            unavailable.plan(&Settings::default()).await.unwrap_err(),
            @"Elasticsearch refused to read the index template audit-events (GET /_index_template/audit-events) (HTTP 503, unknown error): no reason given"
        );
    }

    #[test]
    fn a_pattern_fits_as_elasticsearch_has_it() {
        for (pattern, name, fits) in [
            ("audit-events-*", "audit-events-2026.01.02", true),
            ("audit-events-*", "audit-events", false),
            ("*", "audit-events", true),
            ("audit-events", "audit-events", true),
            ("audit-events", "audit-events-1", false),
            ("*-2026.*", "audit-events-2026.01.02", true),
            ("*-2026", "audit-events-2026.01.02", false),
            ("a*t*s", "audit-events", true),
            ("a*t*x*s", "audit-events", false),
            ("ab*bc", "abc", false),
            ("a**c", "abc", true),
        ] {
            assert_eq!(is_match(pattern, name), fits, "{pattern} {name}");
        }
    }

    #[tokio::test]
    async fn verification_sees_another_template_in_front_and_a_changed_setting() {
        let simulate = "/_index_template/_simulate_index/audit-events-2026.01.02";
        let shadowed = json!({"template": {}, "overlapping": [{"name": "audit-events"}]});
        let fake = Fake::default().script("POST", simulate, (200, shadowed));
        let plan = fake.plan(&Settings::default()).await.unwrap();
        assert_eq!(fake.verify(&plan).await.unwrap(), Verdict::Shadowed);

        let fake = Fake::installed().await;
        fake.edit(TEMPLATE, "/template/settings/index/codec", json!("default"));
        let Verdict::Differs(differences) = fake.verify(&plan).await.unwrap() else {
            panic!("the codec is another one");
        };
        assert_eq!(differences.len(), 1, "{differences:?}");
    }

    #[test]
    fn a_request_is_shown_as_the_console_takes_it() {
        let request = Request {
            method: Method::Put,
            path: Asset::Policy.path("so/so"),
            body: Some(json!({"policy": {}})),
        };
        insta::assert_snapshot!(request, @r#"
        PUT /_ilm/policy/so%2Fso
        {
          "policy": {}
        }
        "#);
    }
}
