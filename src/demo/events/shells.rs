//! What goes on in sessions on machines, and in their recordings.

use serde_json::{Value, json};

use super::cast::Person;
use super::catalogue::{Scene, merged};
use super::rfc3339;
use super::sessions::{Open, Session, ended, some, started};

fn shells(scene: &mut Scene) -> &mut Open {
    &mut scene.shells
}

fn recorded(scene: &mut Scene) -> &mut Open {
    &mut scene.recorded
}

pub(super) fn session_start(scene: &mut Scene) -> Value {
    let session = started(scene, shells);
    let own = json!({
        "event": "session.start", "code": "T2000I",
        "size": scene.random.pick(&["80:25", "120:40", "211:58"]),
        "initial_command": [], "session_recording": "node", "reason": "",
        "access_requests": null,
    });
    merged([session.fields(&scene.cluster), own])
}

pub(super) fn session_data(scene: &mut Scene) -> Value {
    let session = some(scene, shells);
    let own = json!({
        "event": "session.data", "code": "T2006I", "ei": 2_147_483_646,
        "rx": scene.random.between(900, 6_000_000_000), "tx": scene.random.between(900, 90_000_000),
    });
    merged([session.fields(&scene.cluster), own])
}

pub(super) fn session_end(scene: &mut Scene) -> Value {
    let session = ended(scene, shells);
    scene.recorded.push(session.clone());
    let interactive = scene.random.chance(80);
    let own = json!({
        "event": "session.end", "code": "T2004I", "ei": scene.random.between(3, 900),
        "interactive": interactive, "enhanced_recording": scene.random.chance(30),
        "participants": [session.person.user],
        "session_start": rfc3339(session.started), "session_stop": rfc3339(scene.now),
        "session_recording": "node",
        "initial_command": if interactive { json!([]) } else { json!(["/bin/sh", "-c", "uptime"]) },
    });
    merged([session.fields(&scene.cluster), own])
}

pub(super) fn session_upload(scene: &mut Scene) -> Value {
    let session = ended(scene, recorded);
    json!({
        "event": "session.upload", "code": "T2005I", "ei": 2_147_483_647, "sid": session.sid,
        "url": format!("s3://recordings.example.com/sessions/{}.tar", session.sid),
    })
}

fn guest(scene: &mut Scene, event: &str, code: &str) -> Value {
    let session = some(scene, shells);
    let guest = Person::any(&mut scene.random);
    let own = json!({"event": event, "code": code, "ei": scene.random.between(1, 50)});
    merged([
        session.fields(&scene.cluster),
        guest.fields(&scene.cluster),
        own,
    ])
}

pub(super) fn session_join(scene: &mut Scene) -> Value {
    guest(scene, "session.join", "T2001I")
}

pub(super) fn session_leave(scene: &mut Scene) -> Value {
    guest(scene, "session.leave", "T2003I")
}

pub(super) fn resize(scene: &mut Scene) -> Value {
    let session = some(scene, shells);
    let own = json!({
        "event": "resize", "code": "T2002I", "ei": scene.random.between(1, 400),
        "size": format!("{}:{}", scene.random.between(80, 240), scene.random.between(20, 70)),
    });
    merged([session.fields(&scene.cluster), own])
}

/// What the enhanced recording of a session sees of its processes.
fn process(scene: &mut Scene) -> (Session, Value) {
    let session = some(scene, shells);
    let pid = scene.random.between(1_000, 4_000_000);
    let process = json!({
        "pid": pid, "cgroup_id": 4_294_967_296_u64 + scene.random.below(1 << 20),
        "program": scene.random.pick(&["bash", "curl", "psql", "python3", "kubectl", "ls"]),
        "ei": scene.random.between(1, 900),
    });
    let fields = merged([session.fields(&scene.cluster), process]);
    (session, fields)
}

pub(super) fn session_command(scene: &mut Scene) -> Value {
    let (_, fields) = process(scene);
    let argv = scene.random.pick(&[
        &["-la", "/var/log"][..],
        &[],
        &["-c", "select 1"],
        &["--output=json", "get", "pods"],
        &["-sS", "https://status.example.com/größe?q=1"],
    ]);
    let own = json!({
        "event": "session.command", "code": "T4000I", "argv": argv,
        "path": scene.random.pick(&["/bin/ls", "/usr/bin/curl", "/usr/bin/psql"]),
        "ppid": scene.random.between(1, 4_000_000), "return_code": 0,
    });
    merged([fields, own])
}

pub(super) fn session_network(scene: &mut Scene) -> Value {
    let (session, fields) = process(scene);
    let own = json!({
        "event": "session.network", "code": "T4002I", "version": 4, "operation": 0, "action": 1,
        "src_addr": session.host.address(0).trim_end_matches(":0"),
        "dst_addr": format!("203.0.113.{}", scene.random.between(1, 254)),
        "dst_port": scene.random.pick(&[53, 80, 443, 5432]),
    });
    merged([fields, own])
}

pub(super) fn session_disk(scene: &mut Scene) -> Value {
    let (_, fields) = process(scene);
    let own = json!({
        "event": "session.disk", "code": "T4001I", "flags": 2_100_000,
        "path": scene.random.pick(&["/etc/hosts", "/etc/profile.d/", "/var/lib/app/data.db"]),
        "return_code": scene.random.pick(&[0, -2, -13]),
    });
    merged([fields, own])
}

pub(super) fn exec(scene: &mut Scene) -> Value {
    let session = some(scene, shells);
    let failed = scene.random.chance(15);
    let own = json!({
        "event": "exec", "code": if failed { "T3002E" } else { "T3002I" },
        "command": scene.random.pick(&["uptime", "sudo systemctl restart app", "ls -l /srv"]),
        // A text, in Teleport's events, and only sometimes there.
        "exitCode": if failed { "1" } else { "0" },
    });
    let error = if failed {
        json!({"exitError": "exit status 1"})
    } else {
        json!({})
    };
    merged([session.fields(&scene.cluster), own, error])
}

/// A file transfer by the old protocol.
pub(super) fn scp(scene: &mut Scene) -> Value {
    let session = some(scene, shells);
    let (action, code) = scene
        .random
        .pick(&[("download", "T3004I"), ("upload", "T3005I")]);
    let own = json!({
        "event": "scp", "code": code, "action": action, "path": "~/report.csv",
        "command": "scp -f ~/report.csv", "exitCode": "0",
    });
    merged([session.fields(&scene.cluster), own])
}

/// `action` is a number here, where it is a text in `scp`.
pub(super) fn sftp(scene: &mut Scene) -> Value {
    let session = some(scene, shells);
    let (action, code) = scene
        .random
        .pick(&[(1, "TS001I"), (2, "TS002I"), (3, "TS003I")]);
    let own = json!({
        "event": "sftp", "code": code, "action": action, "working_directory": "/home",
        "path": "/home/überblick.txt", "flags": 577, "attributes": {"permissions": 420},
    });
    merged([session.fields(&scene.cluster), own])
}

/// Bears `addr` beside `addr.local` and `addr.remote`.
pub(super) fn port(scene: &mut Scene) -> Value {
    let session = some(scene, shells);
    let (code, success) =
        scene
            .random
            .pick(&[("T3003I", true), ("T3003S", true), ("T3003E", false)]);
    let own = json!({
        "event": "port", "code": code, "addr": "127.0.0.1:8080", "success": success,
    });
    merged([session.fields(&scene.cluster), own])
}

pub(super) fn subsystem(scene: &mut Scene) -> Value {
    let session = some(scene, shells);
    let own = json!({
        "event": "subsystem", "code": "T3001I", "name": "sftp", "exitError": "",
    });
    merged([session.fields(&scene.cluster), own])
}

pub(super) fn x11_forward(scene: &mut Scene) -> Value {
    let session = some(scene, shells);
    let success = scene.random.chance(70);
    let own = json!({
        "event": "x11-forward", "code": if success { "T3008I" } else { "T3008W" },
        "success": success,
    });
    merged([session.fields(&scene.cluster), own])
}

pub(super) fn client_disconnect(scene: &mut Scene) -> Value {
    let session = some(scene, shells);
    let own = json!({
        "event": "client.disconnect", "code": "T3006I",
        "reason": "client exceeded idle timeout of 10m0s",
    });
    merged([session.fields(&scene.cluster), own])
}

pub(super) fn session_rejected(scene: &mut Scene) -> Value {
    let session = some(scene, shells);
    let own = json!({
        "event": "session.rejected", "code": "T1006W", "max": 3,
        "reason": "concurrent session limit exceeded",
    });
    merged([session.fields(&scene.cluster), own])
}
