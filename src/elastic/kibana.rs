//! Kibana: the data view of audit events, dashboards and saved searches.
//!
//! The data view is compared with what is there. Of dashboards only their ids are: Kibana rewrites
//! what it is given, and differently in each version, so an edited one cannot be told from one that
//! is as it was. What is there is therefore left as it is unless overwriting is asked for.
//!
//! Ids of saved objects are unique across spaces, so in another space than the default one they end
//! in the space's name.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::{Value, json};

use super::assets::{Difference, Outcome};
use super::client::{Answer, Body, Client, ClientError, Method};

/// What Kibana's lists show it as.
const NAME: &str = "Teleport Audit Events";
const TIME_FIELD: &str = "time";
/// The data view's id, with which all other ids begin.
const ID: &str = "teleport-audit-events";

const OBJECTS: &[&str] = &[
    include_str!("../../templates/kibana/overview.ndjson"),
    include_str!("../../templates/kibana/sessions.ndjson"),
    include_str!("../../templates/kibana/database.ndjson"),
    include_str!("../../templates/kibana/kubernetes.ndjson"),
    include_str!("../../templates/kibana/privileges.ndjson"),
];

/// A request to Kibana; shown as its console takes it, a file's content as it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Reads if `None`, else sends with POST.
    pub content: Option<Content>,
    /// The path, with the space.
    pub path: String,
}

/// What a request sends.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// A JSON body.
    Json(Value),
    /// A form whose one part is a file of NDJSON.
    File(String),
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.content {
            None => write!(f, "GET kbn:{}", self.path),
            Some(Content::Json(body)) => write!(f, "POST kbn:{}\n{body:#}", self.path),
            Some(Content::File(text)) => {
                write!(
                    f,
                    "POST kbn:{} (as the part `file` of a form)\n{}",
                    self.path,
                    text.trim_end()
                )
            }
        }
    }
}

/// Where to, and for what.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The space; the default one if `None`.
    pub space: Option<String>,
    /// The indices of the data view.
    pub index_wildcard: String,
    /// Replace what is there.
    pub overwrite: bool,
}

/// What became of one thing; shown in one line.
#[derive(Clone, Debug)]
pub struct Done {
    what: String,
    outcome: Outcome,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.outcome {
            Outcome::Kept => write!(f, "{}: there already, left as it is", self.what),
            outcome => write!(f, "{}: {outcome}", self.what),
        }
    }
}

/// Why something is not in Kibana.
#[derive(Debug, thiserror::Error)]
pub enum KibanaError {
    /// The request did not get through.
    #[error("cannot {doing}")]
    Send {
        /// What was tried.
        doing: &'static str,
        /// What the client says.
        source: Box<ClientError>,
    },
    /// There is no answer.
    #[error("no answer from Kibana at {url}: {reason}")]
    NoAnswer {
        /// Where it was expected.
        url: String,
        /// What happened there.
        reason: String,
    },
    /// An answer that is an error.
    #[error("Kibana refused to {doing} (HTTP {status}): {reason}")]
    Refused {
        /// What was tried.
        doing: &'static str,
        /// The HTTP status.
        status: u16,
        /// Kibana's own words.
        reason: String,
    },
    /// Whoever answered is no Kibana.
    #[error("what answers there is no Kibana (HTTP {status})")]
    NotKibana {
        /// The HTTP status.
        status: u16,
    },
    /// Somebody has edited the data view.
    #[error(
        "the data view {NAME} was edited: {}; compare, then repeat with --overwrite to replace",
        list(.0)
    )]
    Edited(Vec<Difference>),
    /// Single objects were refused.
    #[error("Kibana did not take {}", .0.join("; "))]
    Objects(Vec<String>),
}

impl KibanaError {
    /// What somebody should do; `None` where the message says it all.
    pub fn mend(&self) -> Option<&'static str> {
        match self {
            Self::Refused { status: 401, .. } => Some(
                "Kibana is asked with the credentials for Elasticsearch: check user and password or \
                 api-key in [forward.elasticsearch]",
            ),
            Self::Refused { status: 403, .. } => Some(
                "in this space the user needs the Kibana privileges All for Discover, Dashboard, \
                 Visualize Library, Data View Management and Saved Objects Management",
            ),
            Self::Refused { reason, .. } if reason.starts_with("Duplicate data view") => {
                Some("rename or delete in Kibana the data view that somebody has made")
            }
            Self::Refused { status: 404, .. } => Some("check --kibana-space, or make the space"),
            Self::NotKibana { .. } | Self::NoAnswer { .. } => {
                Some("check the URL of --kibana, with its base path if it has one")
            }
            Self::Refused { .. } | Self::Send { .. } | Self::Edited(_) | Self::Objects(_) => None,
        }
    }
}

fn list(differences: &[Difference]) -> String {
    let texts: Vec<String> = differences.iter().map(Difference::to_string).collect();
    texts.join(", ")
}

impl Wanted {
    fn path(&self, path: &str) -> String {
        match &self.space {
            Some(space) => format!("/s/{space}/api/{path}"),
            None => format!("/api/{path}"),
        }
    }

    /// An id of the embedded objects in this space.
    fn id(&self, id: &str) -> String {
        match &self.space {
            Some(space) => format!("{id}-{space}"),
            None => id.to_owned(),
        }
    }

    fn data_view(&self) -> Value {
        json!({
            "title": self.index_wildcard,
            "name": NAME,
            "timeFieldName": TIME_FIELD,
        })
    }

    /// The data view is asked for, by its id.
    fn look(&self) -> Request {
        Request {
            content: None,
            path: self.path(&format!("data_views/data_view/{}", self.id(ID))),
        }
    }

    /// There need be no index yet.
    fn create(&self) -> Request {
        let mut view = self.data_view();
        view["id"] = json!(self.id(ID));
        view["allowNoIndex"] = json!(true);
        Request {
            content: Some(Content::Json(json!({"data_view": view, "override": false}))),
            path: self.path("data_views/data_view"),
        }
    }

    /// Sets what is ours and leaves what a user has added, such as runtime fields.
    fn update(&self) -> Request {
        Request {
            content: Some(Content::Json(json!({"data_view": self.data_view()}))),
            ..self.look()
        }
    }

    /// Takes these objects in.
    fn import(&self, objects: &[Value]) -> Request {
        let lines = objects.iter().map(|object| format!("{object}\n"));
        Request {
            content: Some(Content::File(lines.collect())),
            path: self.path(&format!(
                "saved_objects/_import?overwrite={}",
                self.overwrite
            )),
        }
    }

    /// The embedded objects with their ids in this space.
    fn objects(&self) -> Vec<Value> {
        let lines = OBJECTS.iter().flat_map(|file| file.lines());
        let objects = lines.map(|line| {
            let mut object: Value =
                serde_json::from_str(line).expect("a test reads every embedded object");
            rename(&mut object["id"], self);
            let references = object["references"].as_array_mut().into_iter().flatten();
            for reference in references {
                rename(&mut reference["id"], self);
            }
            object
        });
        objects.collect()
    }

    /// The requests of a first installation.
    pub fn requests(&self) -> [Request; 2] {
        [self.create(), self.import(&self.objects())]
    }

    /// Puts everything there. What was done is reported even if something fails then.
    ///
    /// # Errors
    /// If an answer is an error or none comes.
    pub async fn install(
        &self,
        client: &Client,
        mut report: impl FnMut(Done),
    ) -> Result<(), KibanaError> {
        let view = self.install_data_view(client).await;
        let edited = match view {
            Ok(outcome) => {
                let what = format!("data view {NAME}");
                report(Done { what, outcome });
                Ok(())
            }
            // It is there, so the dashboards can use it.
            Err(edited @ KibanaError::Edited(_)) => Err(edited),
            Err(other) => return Err(other),
        };
        self.install_objects(client, &mut report).await?;
        edited
    }

    async fn install_data_view(&self, client: &Client) -> Result<Outcome, KibanaError> {
        let doing = "look for the data view";
        let answer = exchange(client, self.look(), doing).await?;
        // As it says of a space, too.
        let absent = b"[index-pattern/";
        if answer.status == 404 && memchr::memmem::find(&answer.body, absent).is_some() {
            let doing = "create the data view";
            accepted(exchange(client, self.create(), doing).await?, doing)?;
            return Ok(Outcome::Created);
        }
        let found = accepted(answer, doing)?;
        let found = &found["data_view"];
        if !found.is_object() {
            return Err(KibanaError::NotKibana { status: 200 });
        }
        let ours = self.data_view();
        let members = ours.as_object().into_iter().flatten();
        let differences: Vec<Difference> = members
            .filter(|(key, value)| found[*key] != **value)
            .map(|(key, value)| Difference {
                path: key.clone(),
                theirs: found[key].as_str().map(str::to_owned),
                ours: value.as_str().map(str::to_owned),
            })
            .collect();
        if differences.is_empty() {
            return Ok(Outcome::UpToDate);
        }
        if !self.overwrite {
            return Err(KibanaError::Edited(differences));
        }
        let doing = "change the data view";
        accepted(exchange(client, self.update(), doing).await?, doing)?;
        Ok(Outcome::Overwritten)
    }

    async fn install_objects(
        &self,
        client: &Client,
        report: &mut impl FnMut(Done),
    ) -> Result<(), KibanaError> {
        let doing = "import dashboards and saved searches";
        let objects = self.objects();
        let mut answer = accepted(exchange(client, self.import(&objects), doing).await?, doing)?;
        // Where one object is there already Kibana takes none, but says which.
        let there = if self.overwrite {
            BTreeSet::new()
        } else {
            conflicts(&answer)
        };
        if !there.is_empty() {
            let rest = objects
                .iter()
                .filter(|object| !there.contains(&key_of(object)));
            let rest: Vec<Value> = rest.cloned().collect();
            if rest.is_empty() {
                answer = json!({"success": true});
            } else {
                answer = accepted(exchange(client, self.import(&rest), doing).await?, doing)?;
            }
        }
        let refused: Vec<String> = answer["errors"]
            .as_array()
            .into_iter()
            .flatten()
            .map(told)
            .collect();
        if !refused.is_empty() || answer["success"] != true {
            return Err(KibanaError::Objects(refused));
        }
        let replaced: BTreeSet<Key> = answer["successResults"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|result| result["overwrite"] == true)
            .map(key_of)
            .collect();
        for object in &objects {
            let key = key_of(object);
            // Charts are parts of dashboards.
            let kind = match key.0.as_str() {
                "search" => "saved search",
                "dashboard" => "dashboard",
                _ => continue,
            };
            let title = object["attributes"]["title"].as_str().unwrap_or_default();
            report(Done {
                what: format!("{kind} {title}"),
                outcome: if there.contains(&key) {
                    Outcome::Kept
                } else if replaced.contains(&key) {
                    Outcome::Overwritten
                } else {
                    Outcome::Created
                },
            });
        }
        Ok(())
    }
}

/// Type and id.
type Key = (String, String);

fn key_of(object: &Value) -> Key {
    let text = |key: &str| object[key].as_str().unwrap_or_default().to_owned();
    (text("type"), text("id"))
}

fn conflicts(answer: &Value) -> BTreeSet<Key> {
    let errors = answer["errors"].as_array().into_iter().flatten();
    let is_conflict = |error: &&Value| error["error"]["type"] == "conflict";
    errors.filter(is_conflict).map(key_of).collect()
}

fn told(error: &Value) -> String {
    let (kind, id) = key_of(error);
    let why = &error["error"];
    let words = why["message"].as_str().or(why["type"].as_str());
    format!("the {kind} {id}: {}", words.unwrap_or("no reason given"))
}

fn rename(id: &mut Value, wanted: &Wanted) {
    if let Some(old) = id.as_str() {
        *id = json!(wanted.id(old));
    }
}

async fn exchange(
    client: &Client,
    request: Request,
    doing: &'static str,
) -> Result<Answer, KibanaError> {
    let (method, body) = match request.content {
        None => (Method::Get, Body::Empty),
        Some(Content::Json(body)) => (Method::Post, Body::Json(body.to_string().into())),
        Some(Content::File(text)) => (Method::Post, Body::NdjsonFile(text.into())),
    };
    let answer = client.request(method, &request.path, body).await;
    answer.map_err(|error| match error {
        ClientError::NoAnswer { url, reason, .. } => KibanaError::NoAnswer { url, reason },
        error => KibanaError::Send {
            doing,
            source: Box::new(error),
        },
    })
}

/// The body of a success.
fn accepted(answer: Answer, doing: &'static str) -> Result<Value, KibanaError> {
    let status = answer.status;
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    if (200..300).contains(&status) && body.is_object() {
        return Ok(body);
    }
    // Kibana's errors have these members, Elasticsearch's and a proxy's do not.
    let message = body["message"].as_str();
    match message {
        Some(message) if body["statusCode"] == status => Err(KibanaError::Refused {
            doing,
            status,
            reason: message.to_owned(),
        }),
        // Before it is asked itself, a proxy or Elasticsearch behind it may refuse.
        _ if matches!(status, 401 | 403 | 429 | 500..) => Err(KibanaError::Refused {
            doing,
            status,
            reason: "no reason given".to_owned(),
        }),
        _ => Err(KibanaError::NotKibana { status }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(space: Option<&str>) -> Wanted {
        Wanted {
            space: space.map(str::to_owned),
            index_wildcard: "audit-events-*".to_owned(),
            overwrite: false,
        }
    }

    /// Each value of a key with one of these names, also within JSON that is a text within JSON.
    fn values(value: &Value, names: &[&str], found: &mut Vec<Value>) {
        match value {
            Value::Object(members) => {
                for (key, value) in members {
                    if names.contains(&key.as_str()) {
                        found.push(value.clone());
                    }
                    values(value, names, found);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| values(item, names, found)),
            Value::String(text) if text.starts_with(['{', '[']) => {
                let inner: Value = serde_json::from_str(text).expect("JSON within JSON");
                values(&inner, names, found);
            }
            _ => {}
        }
    }

    #[test]
    fn every_field_that_an_object_names_is_in_the_template() {
        let template = include_str!("../../templates/audit-events.json");
        let template: Value = serde_json::from_str(template).unwrap();
        let known = &template["template"]["mappings"]["properties"];
        let mut n_fields = 0;
        for object in wanted(None).objects() {
            let mut fields = Vec::new();
            values(&object, &["field", "columns"], &mut fields);
            let mut queries = Vec::new();
            values(&object, &["query"], &mut queries);
            let mut names: Vec<String> = Vec::new();
            for field in fields {
                match field {
                    Value::String(name) => names.push(name),
                    Value::Array(list) => {
                        names.extend(list.iter().map(|name| name.as_str().unwrap().to_owned()));
                    }
                    other => panic!("{other}"),
                }
            }
            for query in queries.iter().filter_map(Value::as_str) {
                // In KQL a field stands before a colon or a comparison.
                for operator in [" :", " >="] {
                    for (place, _) in query.match_indices(operator) {
                        let before = query.get(..place).unwrap();
                        let name = before.rsplit([' ', '(']).next().unwrap();
                        names.push(name.to_owned());
                    }
                }
            }
            for name in &names {
                assert!(known.get(name).is_some(), "{}: {name}", object["id"]);
            }
            n_fields += names.len();
        }
        assert!(n_fields > 80, "{n_fields}");
    }

    /// What Kibana 8.8 and newer check of what they import: they refuse members they do not know.
    #[test]
    fn objects_have_the_members_that_kibana_knows_of_their_type() {
        // Each a kind by its name in JSON; all others may be left out.
        let of_all = [
            ("title", "text"),
            ("description", "text"),
            ("version", "number"),
            ("kibanaSavedObjectMeta", "object"),
        ];
        let of_type = |kind: &str| match kind {
            "visualization" => &[("visState", "JSON"), ("uiStateJSON", "JSON")][..],
            "search" => &[("columns", "list"), ("sort", "list"), ("hits", "number")][..],
            "dashboard" => &[
                ("panelsJSON", "JSON"),
                ("optionsJSON", "JSON"),
                ("timeRestore", "bool"),
                ("hits", "number"),
            ][..],
            other => panic!("{other} is not among what is installed"),
        };
        let is_a = |value: &Value, kind: &str| match kind {
            "text" => value.is_string(),
            "number" => value.is_u64(),
            "bool" => value.is_boolean(),
            "list" => value.is_array(),
            "object" => value.is_object(),
            _ => inner(value).is_some(),
        };
        for object in wanted(None).objects() {
            let (kind, id) = key_of(&object);
            let around: Vec<_> = object.as_object().unwrap().keys().collect();
            let known = [
                "attributes",
                "coreMigrationVersion",
                "id",
                "migrationVersion",
                "references",
                "type",
            ];
            assert_eq!(around, known, "{id}");
            // The oldest Kibana takes nothing that is newer than itself.
            assert_eq!(object["coreMigrationVersion"], "8.0.0");
            assert_eq!(object["migrationVersion"], json!({kind.as_str(): "8.0.0"}));
            for (name, value) in object["attributes"].as_object().unwrap() {
                let mut known = of_all.iter().chain(of_type(&kind));
                let known = known.find(|(known, _)| known == name);
                let (_, kind) = known.unwrap_or_else(|| panic!("{id}: {name}"));
                assert!(is_a(value, kind), "{id}: {name} is no {kind}");
            }
            let meta = &object["attributes"]["kibanaSavedObjectMeta"];
            assert_eq!(meta.as_object().unwrap().len(), 1, "{id}");
            let source = inner(&meta["searchSourceJSON"]).unwrap();
            assert_eq!(source["query"]["language"], "kuery", "{id}");
            assert!(source["filter"].is_array(), "{id}");
            match kind.as_str() {
                "visualization" => is_chart(&inner(&object["attributes"]["visState"]).unwrap()),
                "dashboard" => is_grid(&inner(&object["attributes"]["panelsJSON"]).unwrap()),
                _ => {
                    let sort = &object["attributes"]["sort"];
                    assert_eq!(*sort, json!([[TIME_FIELD, "desc"]]), "{id}");
                }
            }
            if kind != "dashboard" {
                let references = object["references"].as_array().unwrap();
                let names: Vec<_> = references
                    .iter()
                    .map(|reference| &reference["name"])
                    .collect();
                assert_eq!(names, [&source["indexRefName"]], "{id}");
            }
        }
    }

    /// What a text of JSON within JSON says.
    fn inner(value: &Value) -> Option<Value> {
        serde_json::from_str(value.as_str()?).ok()
    }

    /// Counts, by time or by the values of fields, of a type that has these roles for them.
    fn is_chart(state: &Value) {
        let roles: &[&str] = match state["type"].as_str() {
            Some("histogram") => &["segment", "group"],
            Some("table") => &["bucket"],
            other => panic!("{other:?}"),
        };
        assert_eq!(
            state["params"].get("type").unwrap_or(&state["type"]),
            &state["type"]
        );
        let aggregations = state["aggs"].as_array().unwrap();
        for (place, aggregation) in aggregations.iter().enumerate() {
            assert_eq!(aggregation["id"], (place + 1).to_string());
            let role = aggregation["schema"].as_str().unwrap();
            match aggregation["type"].as_str().unwrap() {
                "count" => assert_eq!((place, role), (0, "metric")),
                "date_histogram" => assert_eq!(role, "segment"),
                "terms" => {
                    assert!(roles.contains(&role), "{role}");
                    assert_eq!(aggregation["params"]["orderBy"], "1");
                }
                other => panic!("{other}"),
            }
        }
    }

    /// Panels stand within the 48 columns of a dashboard and not over each other.
    fn is_grid(panels: &Value) {
        let mut cells = BTreeSet::new();
        for panel in panels.as_array().unwrap() {
            let number = |key: &str| panel["gridData"][key].as_u64().unwrap();
            assert_eq!(panel["gridData"]["i"], panel["panelIndex"]);
            assert!(number("w") > 0 && number("x") + number("w") <= 48);
            for x in number("x")..number("x") + number("w") {
                for y in number("y")..number("y") + number("h") {
                    assert!(cells.insert((x, y)), "{panel}");
                }
            }
        }
    }

    #[test]
    fn references_lead_to_the_view_or_an_object_in_the_same_space() {
        for space in [None, Some("security")] {
            let wanted = wanted(space);
            let objects = wanted.objects();
            let mut keys: BTreeSet<Key> = objects.iter().map(key_of).collect();
            assert_eq!(keys.len(), objects.len(), "ids are unique");
            keys.insert(("index-pattern".to_owned(), wanted.id(ID)));
            let end = space.map_or_else(String::new, |space| format!("-{space}"));
            for object in &objects {
                assert!(object["id"].as_str().unwrap().ends_with(&end));
                let references = object["references"].as_array().unwrap();
                assert!(!references.is_empty());
                for reference in references {
                    assert!(keys.contains(&key_of(reference)), "{reference}");
                }
                // Panels name their references.
                let panels = object["attributes"]["panelsJSON"].as_str().unwrap_or("[]");
                let panels: Vec<Value> = serde_json::from_str(panels).unwrap();
                for panel in panels {
                    let text = |key: &str| panel[key].as_str().unwrap();
                    let name = format!("{}:{}", text("panelIndex"), text("panelRefName"));
                    let named = references
                        .iter()
                        .find(|reference| reference["name"] == name);
                    assert_eq!(named.unwrap()["type"], panel["type"]);
                }
            }
        }
    }
}
