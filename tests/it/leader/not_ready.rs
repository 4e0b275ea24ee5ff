//! Commands that are done soon, where Elasticsearch cannot yet answer: it has just started, or our
//! index was just made.

use teleport_event_indexer::demo::elastic::ElasticsearchOptions;

use crate::support::program::Indexer;
use crate::support::stand_ins;

/// How often it is asked before it can answer.
const TOO_EARLY: usize = 3;

#[test]
fn what_asks_once_asks_again_until_the_shards_are_there() {
    let elasticsearch = stand_ins::elasticsearch(ElasticsearchOptions::default());
    let control = elasticsearch.control();
    let indexer = Indexer::new();
    let settings = format!(
        "state = \"elasticsearch\"\nstate-name = \"early\"\nforward.elasticsearch.hosts = [{:?}]\n",
        elasticsearch.url()
    );
    indexer.write("config.toml", &settings);
    for args in [
        &["status"][..],
        &["dead-letters", "list"],
        &["state", "move", "--to", "sqlite", "--storage", "state"],
    ] {
        control.has_no_shard(TOO_EARLY);
        let before = control.requests().len();
        let output = indexer.run(&[&["-c", "config.toml"], args].concat());
        // So much it can say once it is answered.
        let said = "there is no state early in Elasticsearch";
        assert_eq!(output.code, Some(1), "{}", output.stderr);
        assert!(output.stderr.contains(said), "{args:?}: {}", output.stderr);
        let asked = control.requests().split_off(before);
        let head = "/teleport-event-indexer-work/_doc/state%3Aearly";
        let n_asked = asked.iter().filter(|request| request.path == head);
        assert_eq!(n_asked.count(), TOO_EARLY + 1, "{args:?}: {asked:?}");
    }
}
