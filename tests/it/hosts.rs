//! Several hosts of one Elasticsearch, of which some are away at times, and hosts behind a path.

use std::time::Duration;

use insta::assert_snapshot;

use crate::support::listener::{Conduct, Listener};
use crate::support::program::Indexer;
use crate::support::rig::{Rig, backfill, realistic, wait_until_said};
use crate::support::stand_ins::NOBODY;

const EVENTS: u64 = 4_000;

/// Most requests at a time, as the program has it if nothing is set.
const IN_FLIGHT: u64 = 4;

/// Some hundred requests, each of which takes a moment.
fn rig() -> Rig {
    let mut rig = Rig::new("", "batch-documents = 20");
    rig.append(realistic(21, EVENTS, 4, 1));
    rig.elasticsearch().set_delay(Duration::from_millis(10));
    rig
}

fn with_hosts(hosts: &[&Listener]) -> Vec<String> {
    let urls = hosts.iter().map(|host| format!("http://{}", host.address));
    let urls: Vec<_> = urls.collect();
    let mut args = backfill(4, 1);
    args.push(format!("--elasticsearch-hosts={}", urls.join(",")));
    args
}

#[test]
fn hosts_that_die_and_come_back_lose_and_double_nothing() {
    let rig = rig();
    let target = rig.elasticsearch_address();
    let first = Listener::before(target, Conduct::Passes);
    let second = Listener::before(target, Conduct::Passes);
    let running = rig.spawn(&with_hosts(&[&first, &second]));
    rig.wait_until_stored(EVENTS / 8);
    assert_eq!(second.n_accepted(), 0, "the first one is well");
    first.dies();
    rig.wait_until_stored(EVENTS / 4);
    assert!(second.n_accepted() > 0);

    // The one that was dead is there again, and the other one hangs up on whoever comes.
    let first = first.revived();
    let n_before = second.n_accepted();
    second.conducts(Conduct::HangsUp);
    rig.wait_until_stored(EVENTS / 2);
    assert!(first.n_accepted() > 0);
    // Nobody goes there but those who were under way, each once or so.
    let n_in_vain = second.n_accepted() - n_before;
    assert!(n_in_vain <= 3 * IN_FLIGHT, "{n_in_vain} came in vain");

    // Nobody is there for a while.
    first.dies();
    wait_until_said(&running, "trying again");
    rig.assert_nothing_was_passed();
    second.conducts(Conduct::Passes);
    let output = running.wait();
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    rig.assert_complete();
    let counts = rig.backfill().counts;
    assert_eq!(counts.created + counts.already_there, EVENTS);
    assert_eq!((counts.events, counts.dead_letters), (EVENTS, 0));
}

#[test]
fn each_host_that_does_not_answer_is_told() {
    let indexer = Indexer::new();
    let nobody = NOBODY.parse().expect("it is an address");
    let hangs_up = Listener::before(nobody, Conduct::HangsUp);
    let hosts = format!(
        "--elasticsearch-hosts=http://{NOBODY},https://nothing.invalid:9200,http://{}",
        hangs_up.address
    );
    assert_snapshot!(indexer.seen(&["install", &hosts]), @"
    exit code 1
    --- stderr
    error: no answer from Elasticsearch at http://127.0.0.1:PORT/: nothing listens there; at https://nothing.invalid:9200/: the name does not resolve; at http://127.0.0.1:PORT/: it closes the connection without an answer
    hint: check hosts in [forward.elasticsearch], and that Elasticsearch runs there
    ");
}

/// As an Elasticsearch does that wants TLS.
#[test]
fn a_host_that_closes_plain_connections_is_told() {
    let nobody = NOBODY.parse().expect("it is an address");
    let hangs_up = Listener::before(nobody, Conduct::HangsUp);
    let host = format!("--elasticsearch-hosts=http://{}", hangs_up.address);
    assert_snapshot!(Indexer::new().seen(&["install", &host]), @"
    exit code 1
    --- stderr
    error: no answer from Elasticsearch at http://127.0.0.1:PORT/: it closes the connection without an answer
    hint: check hosts in [forward.elasticsearch]: https:// in place of http://?
    ");
}

#[test]
fn a_host_without_a_port_is_told_which_one_is_meant() {
    let indexer = Indexer::new();
    let args = ["install", "--elasticsearch-hosts=http://127.0.0.99"];
    assert_snapshot!(indexer.seen(&args), @"
    exit code 1
    --- stderr
    error: no answer from Elasticsearch at http://127.0.0.99/: nothing listens there
    hint: check hosts in [forward.elasticsearch]: without a port they mean 80 or 443, and Elasticsearch's own is 9200
    ");
}

/// As behind a proxy that serves more than Elasticsearch.
#[test]
fn a_path_before_each_request_is_kept() {
    let rig = rig();
    let strips = Conduct::Strips("/behind/a%20path");
    let listener = Listener::before(rig.elasticsearch_address(), strips);
    let mut args = backfill(4, 1);
    let host = format!("http://{}/behind/a path", listener.address);
    args.push(format!("--elasticsearch-hosts={host}"));
    rig.run_to(0, &args);
    rig.assert_complete();
    let hosts = format!("--elasticsearch-hosts={host}/");
    rig.run_to(0, &["install", "--overwrite", &hosts]);
}
