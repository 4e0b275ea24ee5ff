//! A project of Elastic Cloud Serverless: no lifecycle policies, no number of shards, no version
//! that means anything.

use insta::assert_snapshot;
use teleport_event_indexer::demo::certs::IdentityOptions;
use teleport_event_indexer::demo::elastic::ElasticsearchOptions;
use teleport_event_indexer::demo::events::{Id, encode};

use crate::support::program::Indexer;
use crate::support::rig::{midnight, realistic, rfc3339};
use crate::support::stand_ins::{Teleport, elasticsearch};

#[test]
fn a_serverless_project_is_recognised_and_needs_no_policy() {
    let elasticsearch = elasticsearch(ElasticsearchOptions {
        serverless: true,
        // As serverless projects say, however new they are.
        version: "8.11.0".to_owned(),
        ..ElasticsearchOptions::default()
    });
    let teleport = Teleport::start("a.example");
    let events = realistic(3, 1_000, 2, 1);
    let log = teleport.auth.control();
    log.append(events.map(|event| encode(&event, Id::OfEvent)));
    let indexer = Indexer::new();
    indexer.configure(&teleport.addr(), &elasticsearch.url(), "");
    indexer.identify(&teleport.cluster, &IdentityOptions::default());

    assert_snapshot!(indexer.seen(&["install", "-c", "config.toml"]), @r#"
    exit code 0
    --- stdout
    component template audit-events@custom: created
    index template audit-events: created
    --- stderr
    TIME  INFO connected to Elasticsearch at http://127.0.0.1:PORT/ version="Serverless"
    note: this Elasticsearch has no index lifecycle management: no index will be deleted by age, and the index template names no lifecycle policy
    verified: a new index audit-events-TODAY gets this template
    "#);
    assert_snapshot!(indexer.seen(&["check", "-c", "config.toml"]), @r#"
    exit code 0
    --- stdout
    ok    Teleport 18.2.0, cluster a.example, connected straight to the Auth Service
    ok    credentials of user teleport-event-indexer, valid until TIME
    ok    audit events by the export API, 0 chunks today
    ok    Elasticsearch Serverless
    ok    privileges to write
    ok    component template audit-events@custom: there
    ok    index template audit-events: up to date
    warn  this Elasticsearch has no index lifecycle management: no index will be deleted by age, and the index template names no lifecycle policy
    ok    a new index audit-events-TODAY gets this template
    --- stderr
    TIME  INFO credentials read cluster=a.example address=127.0.0.1:PORT expires=TIME
    TIME  INFO connected to Teleport at 127.0.0.1:PORT, straight to the Auth Service cluster="a.example" version="18.2.0"
    TIME  INFO connected to Elasticsearch at http://127.0.0.1:PORT/ version="Serverless"
    "#);
    let start = format!("--start-time={}", rfc3339(midnight(2)));
    let args = ["start", "-c", "config.toml", "--exit-on-last-event", &start];
    let output = indexer.run(&args);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert_eq!(elasticsearch.control().count(), 1_000);
}
