//! What goes on in sessions with databases, applications and desktops.

use serde_json::{Value, json};

use super::catalogue::{Scene, merged};
use super::rfc3339;
use super::sessions::{Open, Session, ended, some, started};

fn databases(scene: &mut Scene) -> &mut Open {
    &mut scene.databases
}

fn apps(scene: &mut Scene) -> &mut Open {
    &mut scene.apps
}

fn desktops(scene: &mut Scene) -> &mut Open {
    &mut scene.desktops
}

fn database(scene: &mut Scene, session: &Session) -> Value {
    merged([
        session.person.fields(&scene.cluster),
        json!({
            "sid": session.sid, "db_service": "orders", "db_protocol": "postgres",
            "db_uri": "orders.example.internal:5432", "db_name": "orders", "db_user": "reader",
            "db_type": "self-hosted", "db_origin": "dynamic", "private_key_policy": "none",
            "db_labels": {"env": "prod", "example.com/tier": "1"}, "namespace": "default",
            "server_id": session.host.id(), "addr.remote": session.remote,
        }),
    ])
}

pub(super) fn database_start(scene: &mut Scene) -> Value {
    let session = started(scene, databases);
    let success = scene.random.chance(90);
    let error = json!({"error": "access to db denied", "message": "access to db denied"});
    let own = json!({
        "event": "db.session.start", "code": if success { "TDB00I" } else { "TDB00W" },
        "success": success, "postgres_pid": scene.random.between(100, 90_000),
    });
    let error = if success { json!({}) } else { error };
    merged([database(scene, &session), own, error])
}

pub(super) fn database_query(scene: &mut Scene) -> Value {
    let session = some(scene, databases);
    let customer = scene.random.between(1, 1_000_000);
    let own = json!({
        "event": "db.session.query", "code": "TDB02I", "ei": scene.random.between(1, 5_000),
        "db_query": format!("SELECT id, total\nFROM orders\tWHERE customer = {customer} -- \"o\""),
        "success": true, "affected_records": scene.random.below(500),
        "db_query_parameters": [],
    });
    merged([database(scene, &session), own])
}

pub(super) fn database_parse(scene: &mut Scene) -> Value {
    let session = some(scene, databases);
    let own = json!({
        "event": "db.session.postgres.statements.parse", "code": "TPG00I",
        "statement_name": format!("S_{}", scene.random.below(40)),
        "query": "SELECT name FROM customers WHERE id = $1", "ei": scene.random.between(1, 5_000),
        "parameter_types": [[23, "int4"], []],
    });
    merged([database(scene, &session), own])
}

pub(super) fn database_end(scene: &mut Scene) -> Value {
    let session = ended(scene, databases);
    let own = json!({
        "event": "db.session.end", "code": "TDB01I", "ei": scene.random.between(2, 5_001),
        "session_start": rfc3339(session.started), "session_stop": rfc3339(scene.now),
        "participants": [session.person.user],
    });
    merged([database(scene, &session), own])
}

fn app(scene: &mut Scene, session: &Session) -> Value {
    merged([
        session.person.fields(&scene.cluster),
        json!({
            "sid": session.sid, "namespace": "default", "server_id": session.host.id(),
            "app_name": "grafana", "app_uri": "http://127.0.0.1:3000",
            "app_public_addr": "grafana.example.com", "app_labels": {"team": "observability"},
            "addr.remote": session.remote,
        }),
    ])
}

pub(super) fn app_start(scene: &mut Scene) -> Value {
    let session = started(scene, apps);
    let own = json!({
        "event": "app.session.start", "code": "T2007I", "public_addr": "grafana.example.com",
    });
    merged([app(scene, &session), own])
}

pub(super) fn app_request(scene: &mut Scene) -> Value {
    let session = some(scene, apps);
    let own = json!({
        "event": "app.session.request", "code": "T2009I", "method": "GET",
        "path": "/api/dashboards/uid/Üb3r", "raw_query": "from=now-6h&to=now&refresh=",
        "status_code": scene.random.pick(&[200, 200, 200, 304, 404, 502]),
        "session_chunk_id": scene.random.uuid(),
    });
    merged([app(scene, &session), own])
}

pub(super) fn app_end(scene: &mut Scene) -> Value {
    let session = ended(scene, apps);
    let own = json!({"event": "app.session.end", "code": "T2011I"});
    merged([app(scene, &session), own])
}

fn desktop(scene: &mut Scene, session: &Session) -> Value {
    merged([
        session.person.fields(&scene.cluster),
        json!({
            "sid": session.sid, "namespace": "default", "proto": "tdp", "success": true,
            "desktop_addr": "192.0.2.77:3389", "desktop_name": "win-77", "windows_user": "Administrator",
            "windows_domain": "corp.example.com", "windows_desktop_service": session.host.id(),
            "desktop_labels": {"teleport.dev/os": "Windows Server 2022", "teleport.dev/dns_host_name": ""},
            "addr.remote": session.remote, "allow_user_creation": false, "nla": true,
        }),
    ])
}

pub(super) fn desktop_start(scene: &mut Scene) -> Value {
    let session = started(scene, desktops);
    let own = json!({"event": "windows.desktop.session.start", "code": "TDP00I"});
    merged([desktop(scene, &session), own])
}

pub(super) fn desktop_end(scene: &mut Scene) -> Value {
    let session = ended(scene, desktops);
    let own = json!({
        "event": "windows.desktop.session.end", "code": "TDP01I", "recorded": true,
        "session_start": rfc3339(session.started), "session_stop": rfc3339(scene.now),
        "participants": [session.person.user],
    });
    merged([desktop(scene, &session), own])
}

pub(super) fn clipboard(scene: &mut Scene) -> Value {
    let session = some(scene, desktops);
    let (event, code) = scene.random.pick(&[
        ("desktop.clipboard.send", "TDP02I"),
        ("desktop.clipboard.receive", "TDP03I"),
    ]);
    let own = json!({"event": event, "code": code, "length": scene.random.between(1, 20_000)});
    merged([desktop(scene, &session), own])
}
