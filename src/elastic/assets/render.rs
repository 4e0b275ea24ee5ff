//! The embedded assets, and how they are filled in for one server and one configuration.

use std::num::NonZeroU32;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::compare::Content;
use crate::document::Schema;

const TEMPLATE: &str = include_str!("../../../templates/audit-events.json");
const TEMPLATE_BEFORE_8_11: &str = include_str!("../../../templates/audit-events-before-8.11.json");
const DYNAMIC_TEMPLATE: &str = include_str!("../../../templates/audit-events-dynamic.json");
const TEMPLATE_ECS: &str = include_str!("../../../templates/audit-events-ecs.json");
const POLICY: &str = include_str!("../../../ilm/audit-events.json");
const WRITER_ROLE: &str = include_str!("../../../templates/elasticsearch-writer-role.json");
const INSTALLER_ROLE: &str = include_str!("../../../templates/elasticsearch-installer-role.json");

/// The version of an Elasticsearch server, compared part by part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 9 in 9.5.3.
    pub major: u16,
    /// 5 in 9.5.3.
    pub minor: u16,
    /// 3 in 9.5.3.
    pub patch: u16,
}

impl Version {
    /// The version with these three parts.
    pub const fn new(major: u16, minor: u16, patch: u16) -> Self {
        Self {
            major,
            minor,
            patch,
        }
    }

    /// Reads `version.number` of a server's greeting; whatever follows a `-` or `+` is left out.
    pub fn parse(number: &str) -> Option<Self> {
        let number = number.split(['-', '+']).next()?;
        let mut parts = number.split('.').map(|part| part.parse().ok());
        let version = Self::new(parts.next()??, parts.next()??, parts.next()??);
        parts.next().is_none().then_some(version)
    }
}

/// What the server says of itself that bears on the assets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    /// `version.number` of the greeting.
    pub version: Version,
    /// Whether `version.build_flavor` is `serverless`: such a server has neither lifecycle
    /// policies nor shards that one could count.
    pub serverless: bool,
}

/// What is to be installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Name of the index template. Its component template, which belongs to the user, is called
    /// the same with `@custom` added.
    pub template: String,
    /// Name of the lifecycle policy.
    pub policy: String,
    /// The indices the template is for, as a wildcard: `audit-events-*`.
    pub index_wildcard: String,
    /// Whether index names end in `-YYYY.MM.DD`, so that age can be counted from the day in the
    /// name. An index whose name ends otherwise could not be created with that setting.
    pub daily: bool,
    /// Which fields documents have.
    pub schema: Schema,
    /// The age in days at which an index is deleted; none keeps all for ever.
    pub retention_days: Option<NonZeroU32>,
    /// Primary shards of each index.
    pub shards: NonZeroU32,
    /// Copies of each shard; none is one copy as soon as there is a second node to hold it.
    pub replicas: Option<u32>,
    /// How long it takes at most until a search finds a document.
    pub refresh_interval: Duration,
    /// The template of Teleport's guide, which leaves all fields to Elasticsearch's guesses, in
    /// place of the typed one.
    pub dynamic: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            template: "audit-events".to_owned(),
            policy: "audit-events".to_owned(),
            index_wildcard: "audit-events-*".to_owned(),
            daily: true,
            schema: Schema::Raw,
            retention_days: NonZeroU32::new(365),
            shards: NonZeroU32::MIN,
            replicas: None,
            refresh_interval: Duration::from_secs(5),
            dynamic: false,
        }
    }
}

impl Settings {
    /// Name of the component template in which users add to the index template.
    pub fn component(&self) -> String {
        format!("{}@custom", self.template)
    }
}

/// The lifecycle policy, without the `policy` around it that a request needs.
pub(super) fn policy(settings: &Settings) -> Value {
    let mut policy = embedded(POLICY)["policy"].take();
    let phases = members(&mut policy["phases"]);
    match settings.retention_days {
        Some(days) => {
            phases["delete"]["min_age"] = json!(format!("{days}d"));
            // Elasticsearch refuses a policy that deletes before it warms. Nothing is gained
            // either by merging what is to be deleted within the hour.
            if days.get() <= days_until_warm(phases) {
                phases.remove("warm");
            }
        }
        None => {
            phases.remove("delete");
        }
    }
    stamped(policy)
}

fn days_until_warm(phases: &Map<String, Value>) -> u32 {
    phases["warm"]["min_age"]
        .as_str()
        .and_then(|age| age.strip_suffix('d'))
        .and_then(|days| days.parse().ok())
        .expect("the embedded policy counts the warm phase in days")
}

/// The component template: empty, and from then on the user's own.
pub(super) fn component() -> Value {
    json!({
        "template": {},
        "_meta": {
            "description": "Yours: settings and fields to add to the index template of audit \
                            events. What that template sets itself stays as it is."
        }
    })
}

/// The index template. `lifecycle` is false where the server knows no lifecycle policies, and so
/// no settings that name one.
pub(super) fn template(settings: &Settings, server: Server, lifecycle: bool) -> Value {
    let mut template = if settings.dynamic {
        embedded(DYNAMIC_TEMPLATE)
    } else {
        typed(server.version)
    };
    if settings.schema == Schema::Ecs {
        let mut ecs = embedded(TEMPLATE_ECS)["mappings"].take();
        let properties = &mut template["template"]["mappings"]["properties"];
        members(properties).append(members(&mut ecs["properties"]));
    }
    template["index_patterns"] = json!([settings.index_wildcard]);
    template["composed_of"] = json!([settings.component()]);

    let index = &mut template["template"]["settings"]["index"];
    index["refresh_interval"] = json!(time_value(settings.refresh_interval));
    if !server.serverless {
        index["number_of_shards"] = json!(settings.shards);
        match settings.replicas {
            Some(replicas) => index["number_of_replicas"] = json!(replicas),
            // A fixed count would leave each index of a single node yellow for ever.
            None => index["auto_expand_replicas"] = json!("0-1"),
        }
        if lifecycle {
            index["lifecycle"] = json!({"name": settings.policy});
            if settings.daily {
                index["lifecycle"]["parse_origination_date"] = json!(true);
            }
        }
    }

    stamped(template)
}

/// The typed template as this version of Elasticsearch takes it.
fn typed(version: Version) -> Value {
    let mut template = embedded(TEMPLATE);
    if version >= Version::new(8, 13, 0) {
        // Before, a field too many is an event that is refused; now it is merely not indexed.
        let settings = &mut template["template"]["settings"]["index"];
        settings["mapping"]["total_fields"]["ignore_dynamic_beyond_limit"] = json!(true);
    }
    if version < Version::new(8, 11, 0) {
        // An object that no mapping names would be refused; later ones take it apart into fields.
        let mut older = embedded(TEMPLATE_BEFORE_8_11)["mappings"].take();
        let mappings = &mut template["template"]["mappings"];
        // Only the first dynamic template that fits counts.
        let rules = list(&mut older["dynamic_templates"]);
        rules.append(list(&mut mappings["dynamic_templates"]));
        mappings["dynamic_templates"] = older["dynamic_templates"].take();
        members(&mut mappings["properties"]).append(members(&mut older["properties"]));
    }
    template
}

/// A length of time as Elasticsearch's settings have it.
fn time_value(time: Duration) -> String {
    match time.subsec_millis() {
        0 => format!("{}s", time.as_secs()),
        _ => format!("{}ms", time.as_millis()),
    }
}

/// The role of the user who writes: it can add documents and create the index of a new day, and
/// can neither read, change nor delete. The body of `PUT /_security/role/NAME`.
pub fn writer_role(index_wildcard: &str) -> Value {
    let mut role = embedded(WRITER_ROLE);
    role["indices"][0]["names"] = json!([index_wildcard]);
    role
}

/// The role of the user who installs; the daemon does not need it. The body of
/// `PUT /_security/role/NAME`.
pub fn installer_role() -> Value {
    embedded(INSTALLER_ROLE)
}

/// Records the fingerprint of an asset in itself, so that a later edit shows.
pub(super) fn stamped(mut asset: Value) -> Value {
    let fingerprint = Content::of(&asset).fingerprint();
    asset["_meta"]["content_sha256"] = json!(fingerprint);
    asset
}

pub(super) fn embedded(text: &str) -> Value {
    serde_json::from_str(text).expect("a test reads every embedded asset")
}

fn members(value: &mut Value) -> &mut Map<String, Value> {
    value
        .as_object_mut()
        .expect("the embedded assets have an object here")
}

fn list(value: &mut Value) -> &mut Vec<Value> {
    value
        .as_array_mut()
        .expect("the embedded assets have a list here")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Server = Server {
        version: Version::new(8, 4, 1),
        serverless: false,
    };
    const NEW: Server = Server {
        version: Version::new(9, 5, 3),
        serverless: false,
    };

    #[test]
    fn versions_are_read_and_ordered() {
        assert_eq!(Version::parse("9.5.3"), Some(Version::new(9, 5, 3)));
        assert_eq!(
            Version::parse("8.13.0-SNAPSHOT"),
            Some(Version::new(8, 13, 0))
        );
        for number in ["", "9", "9.5", "9.5.x", "9.5.3.1"] {
            assert_eq!(Version::parse(number), None, "{number}");
        }
        assert!(Version::new(8, 4, 1) < Version::new(8, 13, 0));
    }

    #[test]
    fn policy_follows_the_retention() {
        let phases = |days| {
            let policy = policy(&Settings {
                retention_days: NonZeroU32::new(days),
                ..Settings::default()
            });
            (
                policy["phases"]["warm"]["min_age"].clone(),
                policy["phases"]["delete"]["min_age"].clone(),
            )
        };
        assert_eq!(phases(365), (json!("7d"), json!("365d")));
        assert_eq!(phases(8), (json!("7d"), json!("8d")));
        assert_eq!(phases(7), (Value::Null, json!("7d")));
        assert_eq!(phases(0), (json!("7d"), Value::Null), "kept for ever");
    }

    /// Late events and backfills are written into past days, which no phase may therefore close.
    #[test]
    fn policy_never_makes_an_index_read_only() {
        let policy = embedded(POLICY);
        for (name, phase) in policy["policy"]["phases"].as_object().unwrap() {
            for action in phase["actions"].as_object().unwrap().keys() {
                assert!(
                    ["set_priority", "forcemerge", "delete"].contains(&action.as_str()),
                    "{name}: {action}"
                );
            }
        }
    }

    #[test]
    fn settings_of_the_template_for_a_new_and_an_old_server() {
        let settings = |server, settings: &Settings| {
            template(settings, server, true)["template"]["settings"]["index"].clone()
        };
        insta::assert_snapshot!(settings(NEW, &Settings::default()), @r#"{"auto_expand_replicas":"0-1","codec":"best_compression","lifecycle":{"name":"audit-events","parse_origination_date":true},"mapping":{"ignore_malformed":true,"total_fields":{"ignore_dynamic_beyond_limit":true,"limit":2000}},"number_of_shards":1,"refresh_interval":"5s"}"#);
        let monthly = Settings {
            policy: "keep".to_owned(),
            daily: false,
            replicas: Some(2),
            refresh_interval: Duration::from_millis(500),
            ..Settings::default()
        };
        insta::assert_snapshot!(settings(OLD, &monthly), @r#"{"codec":"best_compression","lifecycle":{"name":"keep"},"mapping":{"ignore_malformed":true,"total_fields":{"limit":2000}},"number_of_replicas":2,"number_of_shards":1,"refresh_interval":"500ms"}"#);
        let serverless = Server {
            serverless: true,
            ..NEW
        };
        insta::assert_snapshot!(settings(serverless, &monthly), @r#"{"codec":"best_compression","mapping":{"ignore_malformed":true,"total_fields":{"ignore_dynamic_beyond_limit":true,"limit":2000}},"refresh_interval":"500ms"}"#);
        let without = template(&monthly, NEW, false);
        assert_eq!(
            without["template"]["settings"]["index"]["lifecycle"],
            Value::Null
        );
    }

    /// Teleport's guide has `"settings": {}` and `"dynamic": "true"`; how many copies there are and
    /// how long is the user's choice all the same.
    #[test]
    fn the_dynamic_template_leaves_fields_to_elasticsearch() {
        let dynamic = Settings {
            dynamic: true,
            ..Settings::default()
        };
        for server in [OLD, NEW] {
            let template = template(&dynamic, server, true);
            insta::allow_duplicates! {
                insta::assert_snapshot!(template["template"]["settings"], @r#"{"index":{"auto_expand_replicas":"0-1","lifecycle":{"name":"audit-events","parse_origination_date":true},"number_of_shards":1,"refresh_interval":"5s"}}"#);
            }
            let mappings = template["template"]["mappings"].as_object().unwrap();
            assert_eq!(
                mappings.keys().collect::<Vec<_>>(),
                ["dynamic", "properties"]
            );
            assert_eq!(mappings["dynamic"], "true");
            let fields = mappings["properties"].as_object().unwrap();
            assert_eq!(fields.keys().collect::<Vec<_>>(), ["event_indexer"]);
        }
    }

    /// What this program writes itself has the same types, whichever template is chosen.
    #[test]
    fn our_own_fields_are_typed_alike_in_both_templates() {
        let own = |template: &Value| {
            let content = Content::of(&template["template"]["mappings"]);
            let differences = content.differences(&Content::of(&Value::Null));
            let fields = differences.into_iter().filter_map(|difference| {
                // One has dots in its names, the other objects in objects.
                let path = difference.path.replace("properties.", "");
                path.starts_with("event_indexer")
                    .then_some((path, difference.ours))
            });
            fields.collect::<std::collections::BTreeMap<_, _>>()
        };
        let typed = own(&embedded(TEMPLATE));
        assert!(typed.contains_key("event_indexer.raw.type"), "{typed:?}");
        assert_eq!(typed, own(&embedded(DYNAMIC_TEMPLATE)));
    }

    #[test]
    fn mappings_of_the_template_for_a_new_and_an_old_server() {
        let rules = |minor, patch| {
            let template = typed(Version::new(8, minor, patch));
            let mappings = &template["template"]["mappings"];
            let names: Vec<String> = mappings["dynamic_templates"]
                .as_array()
                .unwrap()
                .iter()
                .flat_map(|rule| rule.as_object().unwrap().keys().cloned())
                .collect();
            (names, mappings["properties"]["body"]["type"].clone())
        };
        let same = ["open_maps", "bodies", "strings", "fractions"];
        let newer = (same.map(String::from).into(), json!("keyword"));
        let (names, body) = rules(4, 1);
        assert_eq!(
            (names[0].as_str(), &names[1..]),
            ("objects", &same.map(String::from)[..])
        );
        assert_eq!(body, json!("flattened"));
        assert_eq!(rules(10, 4), rules(4, 1));
        for (minor, patch) in [(11, 0), (12, 2), (13, 0), (19, 21)] {
            assert_eq!(rules(minor, patch), newer);
        }
    }

    #[test]
    fn names_reach_the_template_and_the_writer_role() {
        let settings = Settings {
            template: "teleport".to_owned(),
            index_wildcard: "teleport-*".to_owned(),
            ..Settings::default()
        };
        let template = template(&settings, NEW, true);
        assert_eq!(template["index_patterns"], json!(["teleport-*"]));
        assert_eq!(template["composed_of"], json!(["teleport@custom"]));
        assert_eq!(
            writer_role("teleport-*")["indices"],
            json!([{"names": ["teleport-*"], "privileges": ["create_doc", "auto_configure"]}])
        );
        assert_eq!(
            installer_role()["cluster"],
            json!(["monitor", "manage_index_templates", "manage_ilm"])
        );
    }

    #[test]
    fn fields_of_ecs_are_there_only_where_asked_for() {
        let raw = Settings::default();
        let ecs = Settings {
            schema: Schema::Ecs,
            ..raw.clone()
        };
        for version in [OLD, NEW] {
            let [raw, mut both] =
                [&raw, &ecs].map(|settings| template(settings, version, true)["template"].take());
            let added = embedded(TEMPLATE_ECS)["mappings"]["properties"].take();
            let fields = members(&mut both["mappings"]["properties"]);
            for (name, mapping) in added.as_object().expect("it is an object") {
                assert_eq!(raw["mappings"]["properties"].get(name), None);
                assert_eq!(fields.remove(name).as_ref(), Some(mapping));
            }
            assert_eq!(both, raw, "all else is the same");
        }
    }

    #[test]
    fn every_asset_carries_the_fingerprint_of_its_content() {
        for asset in [
            policy(&Settings::default()),
            template(&Settings::default(), OLD, true),
        ] {
            let content = Content::of(&asset);
            assert_eq!(
                content.recorded_fingerprint(),
                Some(content.fingerprint().as_str())
            );
        }
    }
}
