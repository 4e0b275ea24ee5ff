//! A backfill that several processes share, each with a state file of its own, on a real
//! Elasticsearch with security.

use serde_json::{Value, json};

use crate::support::elasticsearch::{Elasticsearch, Options, PASSWORD as SUPERUSER, oldest};
use crate::support::faketeleport::FakeTeleport;
use crate::support::journey::{Journey, PASSWORD, days_ago};
use crate::support::program::{Indexer, Running};
use crate::support::wait_until;

const NAME: &str = "share";

/// What `install` of the superuser says.
fn install(server: &Elasticsearch, more: &[&str]) -> String {
    let indexer = Indexer::new();
    let settings = format!(
        r#"[forward.elasticsearch]
        hosts = [{url:?}]
        user = "elastic"
        password = {SUPERUSER:?}
        index = "{NAME}-%Y.%m.%d"
        install = {{ template = {NAME:?}, policy = {NAME:?}, replicas = 0, retention = "never" }}
        "#,
        url = server.url()
    );
    indexer.write("config.toml", &settings);
    let output = indexer.run(&[&["-c", "config.toml", "install"], more].concat());
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    output.stdout
}

/// A log of so many days up to the last midnight, and its span. All days are alike, whatever time it
/// is: a piece of a day that has just begun would be done before anything can break, or be cut.
fn log_of_whole_days(days: u64, more: &[&str]) -> Option<(FakeTeleport, [String; 2])> {
    let [from, to] = [days, 0].map(days_ago);
    // The last of its days is the one that begins at `to`.
    let count = (days + 1).to_string();
    let size = ["--days", &count, "--now", &to];
    let teleport = FakeTeleport::start(&[&size[..], more].concat())?;
    Some((teleport, [from, to]))
}

/// What Elasticsearch knows of the share.
fn status(worker: &Journey<'_>, share: &str) -> Value {
    let output = worker.run(&["status", "--share", share, "--json"]);
    serde_json::from_str(&output.stdout).expect("status prints JSON")
}

fn wait_for(running: &Running, text: &str) {
    wait_until(text, || {
        let said = running.stderr();
        if said.contains(text) {
            Ok(())
        } else {
            Err(said)
        }
    });
}

fn refused(worker: &Journey<'_>, args: &[&str], code: i32, text: &str) {
    let output = worker.spawn(args).wait();
    assert_eq!(output.code, Some(code), "{}", output.stderr);
    assert!(output.stderr.contains(text), "{}", output.stderr);
}

#[test]
fn workers_die_hang_leave_and_join_and_each_event_is_there_once() {
    let security = Options {
        security: true,
        ..Options::default()
    };
    let Some(mut server) = Elasticsearch::start(security) else {
        return;
    };
    let Some((teleport, [from, to])) = log_of_whole_days(4, &["--events", "8000"]) else {
        return;
    };
    let yesterday = days_ago(1);
    // A piece takes some seconds, so that there is something to break.
    let settings = "limits.backfill.events-per-second = 400";
    let first = Journey::new(NAME, &teleport, &server, settings);
    let worker = || Journey::installed(NAME, NAME, &teleport, &server, settings);
    let (second, third) = (worker(), worker());
    let range = ["backfill", "--from", &from, "--to", &to];
    let args = [&range[..], &["--share", "all", "--lease", "2"]].concat();

    let missing = format!(
        "error: the index template teleport-event-indexer-work is not in Elasticsearch at {}/\n\
         hint: run `teleport-event-indexer install --work` first",
        server.url()
    );
    refused(&first, &args, 1, &missing);
    let said = install(&server, &["--work"]);
    assert!(said.contains("index template teleport-event-indexer-work: created\n"));
    let hint = "hint: give `read`, `index`, `delete` and `auto_configure` on it, as `install \
                --work --create-role` does";
    refused(&first, &args, 1, hint);
    let warned = first.spawn(&["check"]).wait().stdout;
    let lacks = "warn  the user lacks read and index and delete and auto_configure on \
                 teleport-event-indexer-work";
    assert!(warned.contains(lacks), "{warned}");
    install(&server, &["--work", "--create-role"]);
    let user = json!({"password": PASSWORD, "roles": [format!("{NAME}-writer")]});
    let path = format!("/_security/user/{NAME}");
    server.request("PUT", &path, &user).success();
    let checked = first.spawn(&["check"]).wait().stdout;
    assert!(
        checked.contains("ok    privileges to share backfills\n"),
        "{checked}"
    );

    let hangs = second.spawn(&args);
    wait_for(&hangs, "working on a piece");
    // No other lease ends, so it is its piece that somebody takes over.
    hangs.pause();
    let mut dies = first.spawn(&args);
    let stays = third.spawn(&args);
    wait_for(&dies, "working on a piece");
    wait_for(&stays, "working on a piece");
    wait_until("its piece is taken over", || {
        let said = [dies.stderr(), stays.stderr()].concat();
        said.contains("taken_over=1").then_some(()).ok_or(said)
    });
    hangs.resume();
    wait_for(&hangs, "the lease of the piece is lost");
    dies.kill();
    server.kill();
    server.restart();
    let joins = first.spawn(&args);
    for running in [hangs, stays, joins] {
        let output = running.wait();
        assert_eq!(output.code, Some(0), "{}", output.stderr);
        let total = "done by all workers together: ";
        assert!(output.stderr.contains(total), "{}", output.stderr);
    }
    first.assert_complete();
    let all = status(&first, "all");
    assert_eq!(all["state"], "done");
    assert_eq!(all["done"], all["pieces"]);
    let sum = |name: &str| all["tally"][name].as_u64().expect("a count");
    assert!(sum("created") + sum("already_there") >= 8000, "{all}");

    let other = [
        "backfill", "--from", &from, "--to", &yesterday, "--share", "all",
    ];
    let error = format!(
        "error: share all is about something else: --to is {to} there, {yesterday} here; \
         give the same, or choose another name"
    );
    refused(&first, &other, 2, &error);

    leave_and_cancel(&first, &second, &range);
    first.assert_complete();
}

/// A day of an export that takes long is cut by its chunks, so that others can help.
#[test]
fn a_large_day_of_an_export_is_cut_and_each_event_is_there_once() {
    let Some(server) = Elasticsearch::start(Options {
        version: oldest(),
        ..Options::default()
    }) else {
        return;
    };
    let events = ["--events", "8000", "--chunk", "100"];
    let Some((teleport, [from, to])) = log_of_whole_days(2, &events) else {
        return;
    };
    let settings = "limits.backfill.events-per-second = 250";
    let first = Journey::new(NAME, &teleport, &server, settings);
    install(&server, &["--work"]);
    let worker = || Journey::installed(NAME, NAME, &teleport, &server, settings);
    let (second, third) = (worker(), worker());
    let args = [
        "backfill", "--from", &from, "--to", &to, "--share", "large", "--lease", "1",
    ];
    let cuts = first.spawn(&args);
    wait_for(&cuts, "the piece is large: what is left of it is cut");
    wait_for(&cuts, "of 4 settled_up_to");
    let mut dies = second.spawn(&args);
    wait_for(&dies, "of 4 settled_up_to");
    // What a search shows is a second old, and more.
    wait_until("its status tells of a part", || {
        let shown = first.run(&["status", "--share", "large"]).stdout;
        let workers = status(&first, "large")["workers"].clone();
        let mut parts = workers.as_array().into_iter().flatten();
        let is_part = |worker: &Value| {
            worker["part"]
                .as_str()
                .is_some_and(|it| it.ends_with(" of 4"))
        };
        let tells = shown.contains(" of 4), complete up to ") && parts.any(is_part);
        tells.then_some(()).ok_or(format!("{shown}\n{workers}"))
    });
    dies.kill();
    let helps = third.spawn(&args);
    for running in [cuts, helps] {
        let output = running.wait();
        assert_eq!(output.code, Some(0), "{}", output.stderr);
    }
    assert_eq!(first.assert_complete(), 8000);
    let all = status(&first, "large");
    assert_eq!(all["state"], "done");
    let n_pieces = all["pieces"].as_u64().expect("a count");
    assert!(n_pieces >= 6, "two days, and a day's parts: {all}");
}

/// Told to stop, a worker gives its piece back at once; when all is cancelled, all end.
fn leave_and_cancel(first: &Journey<'_>, second: &Journey<'_>, range: &[&str]) {
    // So long a lease that nothing here waits for its end.
    let args = [range, &["--share", "more", "--lease", "600"]].concat();
    let mut leaves = first.spawn(&args);
    wait_for(&leaves, "working on a piece");
    leaves.interrupt();
    let output = leaves.wait();
    assert_eq!(output.code, Some(1), "{}", output.stderr);
    let said = "stopped before the end; the same command joins in again";
    assert!(output.stderr.contains(said), "{}", output.stderr);
    wait_until("nobody works on it", || match status(first, "more") {
        more if more["in_work"] == 0 && more["done"] == 0 => Ok(()),
        more => Err(more.to_string()),
    });
    let mut stays = second.spawn(&args);
    wait_for(&stays, "working on a piece");
    first.run(&["backfill", "--share", "more", "--cancel"]);
    // It would learn it from a renewal, after a third of the lease, or at the end of the piece.
    wait_until("it has ended", || {
        (!stays.is_running()).then_some(()).ok_or("it runs")
    });
    let output = stays.wait();
    assert_eq!(output.code, Some(1), "{}", output.stderr);
    assert!(
        output.stderr.contains("share more was cancelled"),
        "{}",
        output.stderr
    );
    assert_eq!(status(first, "more")["state"], "cancelled");
    refused(
        first,
        &args,
        2,
        "error: share more was cancelled: choose another name",
    );
}
