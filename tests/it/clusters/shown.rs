//! A process in which each cluster has a fault of its own, and what each place says of them where one
//! may ask: the page, `/readyz`, the metrics, `status` as text and as JSON.

use teleport_event_indexer::demo::auth::Unreadable;

use super::*;

/// Of these, `refused` has two dead letters, `hidden` an open gap, `shut` a blocked index with two documents.
const NAMES: [&str; 5] = ["well", "refused", "hidden", "shut", "broken"];

fn with_faults() -> Clusters {
    let mut clusters = Clusters::new(&NAMES);
    for (n, name) in (0..).zip(NAMES) {
        let auth = &clusters.teleport(name).auth;
        auth.control().set_export(false);
        if name == "hidden" {
            let refused = Unreadable::Refused(Code::Internal);
            auth.control().set_unreadable(Some((4000, refused)));
        }
        let mut small = event(n, "user.login", midnight(1));
        let mut large = event(
            n + 100,
            "session.command",
            midnight(1) + TimeDelta::hours(1),
        );
        large["command"] = "x".repeat(5000).into();
        for event in [&mut small, &mut large] {
            event["cluster_name"] = domain(name).into();
        }
        clusters.append_these(name, vec![small, large]);
    }
    let [refused, shut] = [domain("refused"), domain("shut")];
    let control = clusters.elasticsearch.control();
    control.add_rule(move |operation| operation.contains(&refused).then(Refusal::mapping_failure));
    control.add_rule(move |operation| operation.contains(&shut).then(Refusal::closed_index));
    clusters
}

const LAST: &str = "; the last of them, ";

/// What differs between two looks, or is told elsewhere.
fn essence(clusters: &Clusters, cluster: &Value) -> Value {
    let state = cluster["state"].as_str().expect("the daemon was asked");
    let live = &cluster["live"];
    json!({
        "state": masked(state, clusters.indexer.directory()),
        "name": cluster["name"], "cluster": cluster["cluster"], "daemon": cluster["daemon"],
        "ready": cluster["ready"], "identity": cluster["identity"],
        "gaps": cluster["gaps"], "blocked": cluster["blocked"], "dead_letters": cluster["dead_letters"],
        "troubles": live["troubles"], "held_up": live["held_up"],
    })
}

/// Waits for what the page says of all in one sentence, and checks that everybody else says the same of
/// all and of each.
fn assert_all_tell(clusters: &Clusters, page: &str, sentence: &str, troubles: &[&str]) {
    let mask = |text: &str| masked(text, clusters.indexer.directory());
    // Which one is the last of those that are well changes all the time.
    let cut = |text: &str| match text.split_once(LAST) {
        Some((head, last)) if last.contains(": Up to date, complete up to ") => {
            format!("{head}{LAST}…")
        }
        _ => mask(text).trim_end().to_owned(),
    };
    let picture = || get(page, "/status.json").success().json();
    let in_one = |picture: &Value| cut(picture["state"].as_str().unwrap_or_default());
    wait_until("the page says what is expected", || {
        let ready = get(page, "/readyz");
        let ready: Vec<String> = ready.text().lines().map(&mask).collect();
        let said = in_one(&picture());
        let is_there = said == sentence
            // A moment after the index has closed they are in the state file.
            && picture()["clusters"][3]["blocked"]["count"] == 2
            && ready.len() == troubles.len()
            && ready
                .iter()
                .zip(troubles)
                .all(|(said, words)| said.contains(words));
        is_there
            .then_some(())
            .ok_or_else(|| format!("{said}\n{ready:?}"))
    });

    let listen = ["--listen-addr", page];
    let shown = picture();
    let json = clusters.status(&listen);
    let text = clusters.run(0, &[&["status"][..], &listen].concat()).stdout;
    assert_keeps_to_schema(&shown);
    assert_keeps_to_schema(&json);
    assert_eq!(in_one(&json), in_one(&shown));
    assert_eq!(json["ready"], shown["ready"]);
    let mut parts = text.split("\n\n");
    let first = parts.next().expect("there is text");
    assert_eq!(cut(first), format!("now            {sentence}"));

    let of = |picture: &Value| picture["clusters"].as_array().cloned().unwrap_or_default();
    let (shown, json) = (of(&shown), of(&json));
    let all = |pictures: &[Value]| {
        pictures
            .iter()
            .map(|one| essence(clusters, one))
            .collect::<Vec<_>>()
    };
    assert_eq!(all(&json), all(&shown));
    let texts: Vec<&str> = parts.collect();
    assert_eq!(texts.len(), shown.len());
    let mut ready = String::new();
    for (cluster, text) in shown.iter().zip(texts) {
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let name = word(&cluster["name"]);
        let lines: Vec<String> = mask(text).lines().map(str::to_owned).collect();
        let mut expected = vec![
            format!("name           {name}"),
            format!("gaps           {}", cluster["gaps"]["count"]),
            format!(
                "dead letters   {} ({} bytes)",
                cluster["dead_letters"]["count"], cluster["dead_letters"]["bytes"]
            ),
            mask(&format!("now            {}", word(&cluster["state"]))),
        ];
        let live = &cluster["live"];
        for (n, trouble) in live["troubles"]
            .as_array()
            .into_iter()
            .flatten()
            .enumerate()
        {
            ready += &format!("{name}: {}\n", word(trouble));
            if n > 0 {
                expected.push(format!("  held up: {}", word(trouble)));
            }
        }
        for held in live["held_up"].as_array().into_iter().flatten() {
            let [index, since, what, mend] =
                ["index", "since", "what", "mend"].map(|of| word(&held[of]));
            expected.push(mask(&format!(
                "  held up: {index} since {since}: {what}; {mend}"
            )));
        }
        for line in expected {
            let line = line.trim_end();
            assert!(
                lines.iter().any(|said| said == line),
                "{line}\nis not in\n{text}"
            );
        }
        let number = |metric_name: &str, labels: &str| {
            metric(
                page,
                &format!("event_indexer_{metric_name}{{cluster=\"{name}\"{labels}}}"),
            )
        };
        let is_ready = f64::from(u8::from(cluster["ready"] == json!(true)));
        assert_eq!(number("ready", ""), Some(is_ready), "{name}");
        for (metric_name, labels, value) in [
            ("open_gaps", "", cluster["gaps"]["count"].as_f64()),
            (
                "dead_letters",
                "",
                cluster["dead_letters"]["count"].as_f64(),
            ),
            (
                "blocked_documents",
                "",
                cluster["blocked"]["count"].as_f64(),
            ),
            (
                "blocked_indices",
                ",reason=\"closed\"",
                live["held_up"].as_array().map(|held| held.len() as f64),
            ),
        ] {
            // Those of the state file are up to ten seconds old there.
            wait_until(&format!("{metric_name} of {name} is {value:?}"), || {
                let found = number(metric_name, labels);
                let is_it = found == value || (found.is_none() && cluster["runs"] == json!([]));
                is_it.then_some(()).ok_or_else(|| format!("{found:?}"))
            });
        }
    }
    let told = get(page, "/readyz").text().to_owned();
    assert_eq!(
        told,
        if ready.is_empty() {
            "ready\n".to_owned()
        } else {
            ready
        }
    );
}

#[test]
fn every_place_tells_the_same_of_clusters_with_a_fault_each() {
    let clusters = with_faults();
    let mut running = clusters.spawn(&ANYWHERE);
    assert_all_tell(
        &clusters,
        &address(&running),
        "All 5 clusters are followed, but for 1 open gap, 2 dead letters and 1 blocked index; the last of them, …",
        &["ready"],
    );
    running.terminate();
    assert_eq!(running.wait().code, Some(0));

    // Two more that are down, beside what is there.
    clusters.configure(&format!(
        "[[cluster]]\nname = \"away\"\n[cluster.teleport]\naddr = \"{NOBODY}\"\n\
         identity = \"identity-well\"\n"
    ));
    let identity = clusters.indexer.directory().join("identity-broken");
    fs::write(&identity, "no identity").expect("the folder takes it");
    let mut running = clusters.spawn(&ANYWHERE);
    assert_all_tell(
        &clusters,
        &address(&running),
        "2 of 6 clusters held up; broken: Held up: not followed since TIME: the identity file identity-broken: it \
         should hold a private key, a certificate and the cluster's CAs as PEM.",
        &[
            "broken: not followed since TIME",
            "away: Teleport fails since TIME",
            "away: Elasticsearch has not answered yet",
        ],
    );
    let letters = ["dead-letters", "list", "--json", "--cluster", "refused"];
    let letters: Value =
        serde_json::from_str(&clusters.run(0, &letters).stdout).expect("it is JSON");
    assert_eq!(letters.as_array().map(Vec::len), Some(2), "{letters}");
    running.terminate();
    // Those that are not followed were told of.
    assert_eq!(running.wait().code, Some(0));
}
