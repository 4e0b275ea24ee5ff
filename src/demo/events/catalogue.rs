//! Which types of events there are and how often each comes, and those that belong to no session.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use super::cast::{Host, Person, remote};
use super::random::Random;
use super::rfc3339;
use super::sessions::Open;
use super::{services, shells};

/// The state of the make-believe cluster while events are made up.
pub(super) struct Scene {
    pub(super) random: Random,
    pub(super) cluster: String,
    /// The time of the event that is being made.
    pub(super) now: DateTime<Utc>,
    pub(super) shells: Open,
    pub(super) databases: Open,
    pub(super) apps: Open,
    pub(super) desktops: Open,
    /// Sessions that have ended and whose recording is not yet uploaded.
    pub(super) recorded: Open,
}

type Make = fn(&mut Scene) -> Value;

/// How many in 1,000 or so, and what makes the event. The proportions are those of a cluster
/// where people and machines work all day: certificates, requests and queries, and among them a
/// trickle of administration.
const TYPES: &[(u64, Make)] = &[
    (170, cert_create),
    (110, kube_request),
    (90, services::database_query),
    (80, services::app_request),
    (60, shells::session_command),
    (50, shells::session_network),
    (45, user_login),
    (40, shells::exec),
    (35, shells::session_disk),
    (35, shells::session_start),
    (34, shells::session_end),
    (33, shells::session_upload),
    (33, shells::session_data),
    (20, services::database_parse),
    (14, services::database_start),
    (13, services::database_end),
    (12, shells::resize),
    (12, shells::sftp),
    (10, services::app_start),
    (9, services::app_end),
    (9, mfa_challenge),
    (8, instance_join),
    (8, bot_join),
    (6, shells::scp),
    (6, shells::port),
    (5, shells::subsystem),
    (5, shells::client_disconnect),
    (5, services::clipboard),
    (4, services::desktop_start),
    (4, services::desktop_end),
    (4, shells::session_join),
    (4, shells::session_leave),
    (4, auth_failed),
    (4, access_request_create),
    (3, access_request_review),
    (3, user_update),
    (2, user_create),
    (2, role_change),
    (2, join_token_create),
    (2, mfa_add),
    (2, device_enroll),
    (2, saml_idp_auth),
    (2, shells::session_rejected),
    (2, shells::x11_forward),
    (2, spiffe_svid),
    (1, lock_created),
    (1, access_list_create),
    (1, recording_access),
    (1, unknown),
];

impl Scene {
    pub(super) fn new(random: Random, cluster: &str) -> Self {
        Self {
            random,
            cluster: cluster.to_owned(),
            now: DateTime::UNIX_EPOCH,
            shells: Open::default(),
            databases: Open::default(),
            apps: Open::default(),
            desktops: Open::default(),
            recorded: Open::default(),
        }
    }

    /// The next event; it takes place at `time`.
    pub(super) fn event(&mut self, time: DateTime<Utc>) -> Value {
        self.now = time;
        let total = TYPES.iter().map(|(weight, _)| weight).sum();
        let mut left = self.random.below(total);
        let make = TYPES.iter().find_map(|(weight, make)| {
            let found = left < *weight;
            left = left.saturating_sub(*weight);
            found.then_some(*make)
        });
        let mut event = make.expect("a number below the sum of all weights")(self);
        event["time"] = Value::from(rfc3339(time));
        event["uid"] = Value::from(self.random.uuid());
        event["cluster_name"] = Value::from(self.cluster.as_str());
        if event["ei"].is_null() {
            event["ei"] = Value::from(0);
        }
        event
    }

    fn person(&mut self) -> (Person, Value) {
        let person = Person::any(&mut self.random);
        (person, person.fields(&self.cluster))
    }
}

/// All the fields of several objects; a later one wins.
pub(super) fn merged<const N: usize>(parts: [Value; N]) -> Value {
    let objects = parts.into_iter().filter_map(|part| match part {
        Value::Object(object) => Some(object),
        _ => None,
    });
    Value::Object(objects.flatten().collect())
}

fn user_login(scene: &mut Scene) -> Value {
    let (person, fields) = scene.person();
    let from = remote(&mut scene.random);
    let agent = "Mozilla/5.0 (X11; Linux x86_64) Example/1.0";
    if scene.random.chance(12) {
        return json!({
            "event": "user.login", "code": "T1000W", "method": "local", "success": false,
            "user": person.user, "error": "invalid username, password or second factor",
            "message": "invalid username, password or second factor",
            "addr.remote": from, "user_agent": agent,
        });
    }
    let sso = scene.random.chance(60);
    let attributes = json!({"attributes": {
        "groups": ["engineering", "on-call"], "name": person.user, "nested": [["a", "b"], []],
        "http://schemas.example.com/claims/mail": [person.user],
    }});
    merged([
        fields,
        json!({
            "event": "user.login", "code": if sso { "T1001I" } else { "T1000I" },
            "method": if sso { "saml" } else { "local" }, "success": true,
            "addr.remote": from, "user_agent": agent, "required_private_key_policy": "none",
            "applied_login_rules": [],
        }),
        if sso {
            attributes
        } else {
            json!({"mfa_device": {
                "mfa_device_name": "key", "mfa_device_uuid": scene.random.uuid(), "mfa_device_type": "WebAuthn",
            }})
        },
    ])
}

fn cert_create(scene: &mut Scene) -> Value {
    let (person, fields) = scene.person();
    let login = person.login(&mut scene.random);
    let expires = rfc3339(scene.now + TimeDelta::hours(12));
    merged([
        fields,
        json!({
            "event": "cert.create", "code": "TC000I", "cert_type": "user",
            "user_agent": "tsh/18.2.0 grpc-go/1.69.2",
            "identity": {
                "user": person.user, "roles": person.roles(), "logins": [login],
                "expires": expires, "route_to_cluster": scene.cluster, "traits": {"logins": [login]},
                "client_ip": "203.0.113.9", "prev_identity_expires": "0001-01-01T00:00:00Z",
                "private_key_policy": "none", "disallow_reissue": scene.random.chance(5),
            },
            "cert_authority": {"type": "user", "domain": scene.cluster, "subject_key_id": scene.random.hex(40)},
        }),
    ])
}

fn kube_request(scene: &mut Scene) -> Value {
    let (_, fields) = scene.person();
    let pod = format!("api-{}", scene.random.hex(8));
    let kind = scene
        .random
        .pick(&["pods", "configmaps", "secrets", "events"]);
    let verb = scene.random.pick(&["GET", "GET", "GET", "PATCH", "DELETE"]);
    merged([
        fields,
        json!({
            "event": "kube.request", "code": "T3009I", "proto": "kube", "verb": verb,
            "request_path": format!("/api/v1/namespaces/default/{kind}/{pod}"),
            "resource_api_group": "core/v1", "resource_kind": kind, "resource_name": pod,
            "resource_namespace": "default", "namespace": "default",
            "response_code": scene.random.pick(&[200, 200, 200, 403, 404]),
            "kubernetes_cluster": "prod-eu", "kubernetes_users": [], "kubernetes_groups": ["system:masters"],
            "kubernetes_labels": {"app.kubernetes.io/name": "api", "app": "api"},
            "server_id": Host::any(&mut scene.random).id(), "login": "",
            "addr.local": "192.0.2.1:3026", "addr.remote": remote(&mut scene.random),
        }),
    ])
}

fn auth_failed(scene: &mut Scene) -> Value {
    let host = Host::any(&mut scene.random);
    let own = json!({
        "event": "auth", "code": "T3007W", "success": false, "user": Person::any(&mut scene.random).user,
        "error": "ssh: principal \"nobody\" not in the set of valid principals: [\"root\"]",
        "addr.local": host.address(3022), "addr.remote": remote(&mut scene.random), "login": "nobody",
    });
    merged([host.fields(), own])
}

fn resource(scene: &mut Scene, event: &str, code: &str, name: &str, own: Value) -> Value {
    let (person, fields) = scene.person();
    let resource = json!({
        "event": event, "code": code, "name": name, "updated_by": person.user,
        "expires": "0001-01-01T00:00:00Z", "success": true, "addr.remote": remote(&mut scene.random),
    });
    merged([fields, resource, own])
}

fn role_change(scene: &mut Scene) -> Value {
    let (event, code) = scene.random.pick(&[
        ("role.created", "T9000I"),
        ("role.updated", "T9002I"),
        ("role.updated", "T9002I"),
    ]);
    resource(scene, event, code, "db-reader", json!({}))
}

/// `roles` beside `user_roles`, and a connector.
fn user_create(scene: &mut Scene) -> Value {
    let own = json!({"roles": ["access"], "connector": "local"});
    resource(scene, "user.create", "T1002I", "novák@example.com", own)
}

fn user_update(scene: &mut Scene) -> Value {
    let own = json!({"roles": ["access", "editor"], "connector": "okta", "user_origin": 2});
    resource(scene, "user.update", "T1003I", "novák@example.com", own)
}

fn lock_created(scene: &mut Scene) -> Value {
    let own = json!({
        "target": {"user": "henrik@example.org"}, "lock": {"target": {"user": "henrik@example.org"}},
    });
    let name = scene.random.uuid();
    resource(scene, "lock.created", "TLK00I", &name, own)
}

fn access_list_create(scene: &mut Scene) -> Value {
    let name = scene.random.uuid();
    let own = json!({"access_list_title": "Zugriff auf die Datenbank", "members": []});
    resource(scene, "access_list.create", "TAL001I", &name, own)
}

fn join_token_create(scene: &mut Scene) -> Value {
    let own = json!({"join_method": "kubernetes", "roles": ["Node", "App"]});
    resource(
        scene,
        "join_token.create",
        "TJT00I",
        "************************ab12",
        own,
    )
}

/// Bears an `id` of its own beside `uid`.
fn access_request_create(scene: &mut Scene) -> Value {
    let (_, fields) = scene.person();
    let own = json!({
        "event": "access_request.create", "code": "T5000I", "id": scene.random.uuid(),
        "state": "PENDING", "roles": ["db-admin"], "reason": "störung #4711 — \"urgent\"\n",
        "expires": rfc3339(scene.now + TimeDelta::hours(8)), "max_duration": "0001-01-01T00:00:00Z",
        "resource_ids": [{"cluster": scene.cluster, "kind": "node", "name": Host::any(&mut scene.random).id()}],
    });
    merged([fields, own])
}

fn access_request_review(scene: &mut Scene) -> Value {
    let (person, fields) = scene.person();
    let own = json!({
        "event": "access_request.review", "code": "T5002I", "id": scene.random.uuid(),
        "state": "APPROVED", "proposed_state": "APPROVED", "reviewer": person.user,
        "reason": "", "annotations": {"pagerduty_services": ["payments"]},
    });
    merged([fields, own])
}

fn bot_join(scene: &mut Scene) -> Value {
    json!({
        "event": "bot.join", "code": "TJ001I", "bot_name": "github-deploy", "method": "github",
        "success": true, "token_name": "github-bot", "user_name": "bot-github-deploy",
        "bot_instance_id": scene.random.uuid(), "addr.remote": remote(&mut scene.random),
        "attributes": {
            "actor": "ada-example", "event_name": "push", "ref": "refs/heads/main",
            "run_id": scene.random.between(3_000_000_000, 9_000_000_000).to_string(),
            "sha": scene.random.hex(40), "environment": "",
        },
    })
}

fn instance_join(scene: &mut Scene) -> Value {
    let host = Host::any(&mut scene.random);
    json!({
        "event": "instance.join", "code": "TJ002I", "host_id": host.id(), "node_name": host.name,
        "role": "Instance", "method": "kubernetes", "success": true, "token_name": "k8s",
        "token_expires": "0001-01-01T00:00:00Z", "addr.remote": remote(&mut scene.random),
        "attributes": {"kubernetes": {"pod": {"name": host.name}}, "type": "in_cluster"},
    })
}

fn mfa_challenge(scene: &mut Scene) -> Value {
    let (_, fields) = scene.person();
    let own = json!({
        "event": "mfa_auth_challenge.create", "code": "T1015I",
        "challenge_scope": "CHALLENGE_SCOPE_LOGIN", "challenge_allow_reuse": false,
    });
    merged([fields, own])
}

fn mfa_add(scene: &mut Scene) -> Value {
    let (_, fields) = scene.person();
    let own = json!({
        "event": "mfa.add", "code": "T1006I", "mfa_device_name": "schlüssel",
        "mfa_device_type": "WebAuthn", "mfa_device_uuid": scene.random.uuid(),
        "addr.remote": remote(&mut scene.random),
    });
    merged([fields, own])
}

fn device_enroll(scene: &mut Scene) -> Value {
    let (_, fields) = scene.person();
    let own = json!({
        "event": "device.enroll", "code": "TV005I", "success": true,
        "device": {
            "asset_tag": scene.random.hex(10).to_uppercase(), "device_id": scene.random.uuid(),
            "os_type": 2, "credential_id": scene.random.uuid(), "device_origin": 1,
        },
    });
    merged([fields, own])
}

/// `session_id` where others have `sid`, and attributes that are lists of lists.
fn saml_idp_auth(scene: &mut Scene) -> Value {
    let (person, fields) = scene.person();
    let own = json!({
        "event": "saml.idp.auth", "code": "TSI000I", "success": true,
        "session_id": scene.random.hex(64), "service_provider_entity_id": "https://sp.example.com/saml",
        "service_provider_shortcut": "", "attribute_values": [["mail", [person.user]], []],
    });
    merged([fields, own])
}

fn spiffe_svid(scene: &mut Scene) -> Value {
    json!({
        "event": "spiffe.svid.issued", "code": "TSPIFFE000I", "user": "bot-workload", "user_kind": 2,
        "spiffe_id": format!("spiffe://{}/payments", scene.cluster), "svid_type": "x509",
        "serial_number": scene.random.hex(32), "dns_sans": null, "ip_sans": [], "hint": "",
    })
}

fn recording_access(scene: &mut Scene) -> Value {
    let (_, fields) = scene.person();
    let own = json!({
        "event": "session.recording.access", "code": "T2012I", "sid": scene.random.uuid(),
        "session_type": "ssh", "format": "", "success": true,
    });
    merged([fields, own])
}

/// How an Auth Service hands out an event whose type is newer than itself.
fn unknown(scene: &mut Scene) -> Value {
    let inner = json!({"event": "quantum.entangle", "code": "TQE01I", "spin": [0.5, -0.5]});
    json!({
        "event": "unknown", "code": "TCC00E", "unknown_event": "quantum.entangle",
        "unknown_code": "TQE01I", "data": inner.to_string(), "user": Person::any(&mut scene.random).user,
    })
}
