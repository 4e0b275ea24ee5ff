//! A real Elasticsearch with users, behind two hosts that end TLS, of which one dies and comes
//! back.

use serde_json::Value;
use teleport_event_indexer::config::CaFingerprint;

use super::{Api, START, start_time};
use crate::support::elasticsearch::{Elasticsearch, NEWEST, NEWEST_8};
use crate::support::journey::Journey;
use crate::support::listener::{Authority, Listener};

const EVENTS: u64 = 20_000;

#[test]
fn a_host_of_the_newest_elasticsearch_dies_and_comes_back() {
    a_host_dies(NEWEST);
}

#[test]
fn a_host_of_the_newest_elasticsearch_8_dies_and_comes_back() {
    a_host_dies(NEWEST_8);
}

fn a_host_dies(version: &'static str) {
    let Some(elasticsearch) = Elasticsearch::shared(version, true) else {
        return;
    };
    let Some(teleport) = Api::Export.log(EVENTS, &[]) else {
        return;
    };
    let journey = Journey::new("e2e-hosts", &teleport, elasticsearch, &start_time());
    let authority = Authority::new();
    let [first, second] = [(); 2].map(|()| {
        let conduct = authority.ends_tls(&["127.0.0.1"], None);
        let target = elasticsearch.url().replace("http://", "");
        Listener::before(target.parse().expect("it is an address"), conduct)
    });
    let [a, b] = [&first, &second].map(|host| format!("https://{}", host.address));
    let hosts = format!("--elasticsearch-hosts={a},{b}");
    let fingerprint = CaFingerprint::of(&authority.der());
    let fingerprint = format!("--elasticsearch-ca-fingerprint={fingerprint}");
    // Small requests, so that some are under way whenever a host dies.
    let small = "--elasticsearch-batch-documents=100";
    let args = [&START[..], &[&hosts, &fingerprint, small]].concat();
    let mut running = journey.spawn(&args);
    journey.wait_for_created(EVENTS / 10, &mut running);
    first.dies();
    let created = journey.created();
    journey.wait_for_created(created + EVENTS / 10, &mut running);
    let first = first.revived();
    second.dies();
    let output = running.wait();
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert!(second.n_accepted() > 0 && first.n_accepted() > 0);
    assert_eq!(journey.assert_complete() as u64, EVENTS);
    let run = &journey.status()["runs"][0];
    let settled = |name: &str| run[name].as_u64();
    let twice = settled("already_there").expect("status counts them");
    assert_eq!(settled("created"), Some(EVENTS - twice));
    assert_eq!(run["dead_letters"], Value::from(0));
}
