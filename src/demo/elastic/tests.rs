use std::io::Write as _;

use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

use super::*;

struct Set {
    server: StandInElasticsearch,
    client: Client,
}

async fn set(options: ElasticsearchOptions) -> Set {
    Set {
        server: StandInElasticsearch::start(options).await.unwrap(),
        client: Client::builder().no_proxy().build().unwrap(),
    }
}

fn line(index: &str, id: &str, document: &str) -> String {
    format!(
        "{}\n{document}\n",
        json!({"create": {"_index": index, "_id": id}})
    )
}

impl Set {
    async fn bulk(&self, body: impl Into<reqwest::Body>) -> (StatusCode, Value) {
        self.send("POST", "/_bulk", body).await
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        body: impl Into<reqwest::Body>,
    ) -> (StatusCode, Value) {
        let response = self.request(method, path).body(body).send().await.unwrap();
        assert_eq!(response.headers()["x-elastic-product"], "Elasticsearch");
        (response.status(), response.json().await.unwrap())
    }

    async fn get(&self, path: &str) -> Value {
        self.send("GET", path, "").await.1
    }

    fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let url = format!("{}{path}", self.server.url());
        self.client
            .request(method.parse().unwrap(), url)
            .header("content-type", "application/x-ndjson")
    }
}

fn statuses(answer: &Value) -> Vec<u64> {
    let items = answer["items"].as_array().unwrap();
    let status = |item: &Value| {
        let item = item.as_object().unwrap().values().next().unwrap();
        item["status"].as_u64().unwrap()
    };
    items.iter().map(status).collect()
}

#[tokio::test]
async fn each_operation_gets_its_answer_in_order_and_an_id_is_taken_once() {
    let set = set(ElasticsearchOptions::default()).await;
    let body = [
        line("a-1", "1", r#"{"n":1}"#),
        line("a-1", "2", r#"{"n":1,"n":2}"#),
        line("a-1", "1", r#"{"n":3}"#),
        line("a-2", "1", r#"{"n":4,"time":"2026-03-04T05:06:07.891Z"}"#),
        line("a-1", "", r#"{"n":5}"#),
        line("A-1", "6", r#"{"n":6}"#),
        "{\"index\":{\"_index\":\"a-1\",\"_id\":\"1\"}}\n{\"n\":7}\n".to_owned(),
        "{\"delete\":{\"_index\":\"a-1\",\"_id\":\"1\"}}\n".to_owned(),
        line("a-1", "9", "[]"),
    ]
    .concat();
    let (status, answer) = set.bulk(body.clone()).await;
    assert_eq!(status, 200);
    assert_eq!(answer["errors"], true);
    assert_eq!(
        statuses(&answer),
        [201, 400, 409, 201, 400, 400, 400, 400, 400]
    );
    let item = &answer["items"][0]["create"];
    assert_eq!(
        (&item["_index"], &item["_id"], &item["result"]),
        (&json!("a-1"), &json!("1"), &json!("created"))
    );
    let kind = |n: usize| {
        let item = answer["items"][n]
            .as_object()
            .unwrap()
            .values()
            .next()
            .unwrap();
        item["error"]["type"].as_str().unwrap().to_owned()
    };
    assert_eq!(kind(1), "document_parsing_exception");
    assert_eq!(kind(2), "version_conflict_engine_exception");
    assert_eq!(kind(5), "invalid_index_name_exception");
    assert!(answer["items"][7]["delete"].is_object());

    let control = set.server.control();
    assert_eq!(
        (
            control.count(),
            control.duplicates_refused(),
            control.n_items(201)
        ),
        (2, 1, 2)
    );
    let documents = control.documents();
    assert_eq!(documents[0].source, r#"{"n":1}"#);
    assert_eq!(
        (documents[1].index.as_str(), documents[1].id.as_str()),
        ("a-2", "1")
    );

    let path = "/_bulk?filter_path=took,errors,items.*.status,items.*.error.type";
    let (_, filtered) = set.send("POST", path, body).await;
    assert_eq!(
        statuses(&filtered),
        [409, 400, 409, 409, 400, 400, 400, 400, 400]
    );
    let conflict = json!({"create": {
        "status": 409, "error": {"type": "version_conflict_engine_exception"},
    }});
    assert_eq!(filtered["items"][0], conflict);
    let fresh = line("a-3", "1", "{}") + &line("a-3", "2", "{}");
    let (_, answer) = set.send("PUT", path, fresh).await;
    let created = json!({"create": {"status": 201}});
    let took = answer["took"].clone();
    assert_eq!(
        answer,
        json!({"took": took, "errors": false, "items": [created, created]})
    );
    let (_, answer) = set
        .send(
            "POST",
            "/a-3/_bulk?filter_path=errors,items.*.error",
            "{\"create\":{\"_id\":\"3\"}}\n{}\n",
        )
        .await;
    assert_eq!(answer, json!({"errors": false}));
    assert_eq!(control.count(), 5);
}

#[tokio::test]
async fn a_malformed_request_is_refused_as_a_whole() {
    let set = set(ElasticsearchOptions {
        max_content_bytes: 5_000,
        ..ElasticsearchOptions::default()
    })
    .await;
    let good = line("a", "1", "{}");
    let long = line("a", &"x".repeat(513), "{}");
    for bad in [
        String::new(),
        good.trim_end().to_owned(),
        format!("{good}\n{good}"),
        format!("{good}{{\"create\":{{\"_index\":\"a\",\"_id\":\"2\"}}}}\n"),
        format!("{good}{{\"create\":{{\"_index\":\"a\",\"_id\":\"2\",\"_x\":1}}}}\n{{}}\n"),
        format!("{good}{{\"upsert\":{{\"_index\":\"a\",\"_id\":\"2\"}}}}\n{{}}\n"),
        format!("{good}{{\"create\":{{}},\"index\":{{}}}}\n{{}}\n"),
        format!("{good}{{\"create\":{{\"_id\":\"2\"}}}}\n{{}}\n"),
        format!("{good}{long}"),
    ] {
        let (status, answer) = set.bulk(bad.clone()).await;
        assert_eq!(
            (status.as_u16(), &answer["status"]),
            (400, &json!(400)),
            "{bad}"
        );
        assert!(answer["error"]["reason"].is_string());
    }
    assert_eq!(set.send("POST", "/_bulk?op=x", good.clone()).await.0, 400);

    let wrong_type = set.server.url() + "/_bulk";
    let response = set
        .client
        .post(wrong_type)
        .header("content-type", "text/plain")
        .body(good.clone());
    assert_eq!(response.send().await.unwrap().status(), 406);

    let zipped = |text: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let large = line("a", "1", &format!("{{\"x\":\"{}\"}}", "y".repeat(5_000)));
    assert!(zipped(&large).len() < 5_000);
    for (body, encoding) in [
        (large.clone().into_bytes(), "identity"),
        (zipped(&large), "gzip"),
    ] {
        let mut request = set.request("POST", "/_bulk").body(body);
        if encoding == "gzip" {
            request = request.header("content-encoding", "gzip");
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 413);
        assert_eq!(response.headers()["connection"], "close");
        assert_eq!(response.text().await.unwrap(), "");
    }
    assert_eq!(set.server.control().count(), 0);

    let request = set
        .request("POST", "/_bulk")
        .header("content-encoding", "gzip");
    let response = request.body(zipped(&good)).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(set.server.control().count(), 1);
    assert!(set.server.control().n_bulk_bytes() > zipped(&good).len() as u64);
    let request = set
        .request("POST", "/_bulk")
        .header("content-encoding", "gzip");
    assert_eq!(request.body("no gzip").send().await.unwrap().status(), 400);
}

#[tokio::test]
async fn documents_can_be_counted_found_and_paged_through() {
    let set = set(ElasticsearchOptions::default()).await;
    let body: String = (0..10)
        .map(|n| {
            let document = format!(
                "{{\"n\":{n},\"time\":\"2026-03-04T00:00:0{}.000Z\"}}",
                9 - n
            );
            line(
                &format!("audit-events-2026.03.0{}", 1 + n % 2),
                &format!("id{n}"),
                &document,
            )
        })
        .collect();
    set.bulk(body).await;

    assert_eq!(set.get("/audit-events-*/_count").await["count"], 10);
    assert_eq!(
        set.get("/audit-events-2026.03.01,audit-events-2026.03.02/_count")
            .await["count"],
        10
    );
    assert_eq!(
        set.get("/audit%2Devents-%2A01/_count?filter_path=count")
            .await,
        json!({"count": 5})
    );
    assert_eq!(set.get("/none-*/_count").await["count"], 0);
    let (status, answer) = set.send("GET", "/none/_count", "").await;
    assert_eq!(
        (status.as_u16(), &answer["error"]["type"]),
        (404, &json!("index_not_found_exception"))
    );

    let found = set.get("/audit-events-2026.03.02/_doc/id3").await;
    assert_eq!(
        (&found["found"], &found["_source"]["n"]),
        (&json!(true), &json!(3))
    );
    let (status, absent) = set
        .send("GET", "/audit-events-2026.03.02/_doc/id2", "")
        .await;
    assert_eq!((status.as_u16(), &absent["found"]), (404, &json!(false)));

    for (sort, expected) in [
        (
            json!([{"time": "asc"}, "_id"]),
            [9, 8, 7, 6, 5, 4, 3, 2, 1, 0],
        ),
        (
            json!([{"_id": {"order": "asc"}}]),
            [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
        ),
        (
            json!({"time": {"order": "desc"}}),
            [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
        ),
    ] {
        let mut query = json!({"size": 4, "sort": sort, "query": {"match_all": {}}});
        let mut seen: Vec<u64> = Vec::new();
        loop {
            let (_, answer) = set
                .send("POST", "/audit-events-*/_search", query.to_string())
                .await;
            assert_eq!(answer["hits"]["total"]["value"], 10);
            let hits = answer["hits"]["hits"].as_array().unwrap().clone();
            let Some(last) = hits.last() else {
                break;
            };
            query["search_after"] = last["sort"].clone();
            seen.extend(hits.iter().map(|hit| hit["_source"]["n"].as_u64().unwrap()));
        }
        assert_eq!(seen, expected);
    }
    let query = json!({"from": 9, "size": 4, "_source": false}).to_string();
    let (_, answer) = set.send("GET", "/_search", query).await;
    assert_eq!(answer["hits"]["hits"].as_array().unwrap().len(), 1);
    assert!(answer["hits"]["hits"][0].get("_source").is_none());
    let query = json!({"query": {"term": {"n": 1}}}).to_string();
    assert_eq!(set.send("GET", "/_search", query).await.0, 400);

    assert_eq!(
        set.send("POST", "/audit-*/_refresh", "").await.1["_shards"]["failed"],
        0
    );
    let rows = set.get("/_cat/indices/audit-*?format=json").await;
    assert_eq!(rows[1]["index"], "audit-events-2026.03.02");
    assert_eq!(rows[1]["docs.count"], "5");
    let text = set
        .request("GET", "/_cat/indices")
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    assert!(
        text.starts_with("green open audit-events-2026.03.01 "),
        "{text}"
    );
    assert_eq!(set.get("/_cluster/health").await["status"], "green");
    assert_eq!(set.get("/").await["version"]["number"], "9.5.3");
    let (status, answer) = set
        .send("POST", "/_security/user/_has_privileges?x=y", "{}")
        .await;
    assert_eq!(status, 400);
    let expected =
        "no handler found for uri [/_security/user/_has_privileges?x=y] and method [POST]";
    assert_eq!(answer["error"], expected);
}

#[tokio::test]
async fn templates_and_policies_come_back_as_they_were_given() {
    let set = set(ElasticsearchOptions::default()).await;
    let template =
        json!({"index_patterns": ["audit-events-*"], "version": 3, "_meta": {"by": "x"}});
    let policy = json!({"policy": {"phases": {"hot": {"actions": {}}}}});
    for path in [
        "/_index_template/t",
        "/_component_template/t@custom",
        "/_ilm/policy/p",
    ] {
        let (status, answer) = set.send("GET", path, "").await;
        assert_eq!(status, 404);
        assert_eq!(answer["error"]["type"], "resource_not_found_exception");
        let body = if path.contains("ilm") {
            &policy
        } else {
            &template
        };
        for _ in 0..2 {
            let (status, answer) = set.send("PUT", path, body.to_string()).await;
            assert_eq!(
                (status.as_u16(), answer),
                (200, json!({"acknowledged": true}))
            );
        }
    }
    let stored = set.get("/_index_template/t").await;
    assert_eq!(
        stored,
        json!({"index_templates": [{"name": "t", "index_template": template}]})
    );
    let stored = set.get("/_component_template/*").await;
    assert_eq!(stored["component_templates"][0]["name"], "t@custom");
    assert_eq!(
        stored["component_templates"][0]["component_template"],
        template
    );
    let stored = set.get("/_ilm/policy/p").await;
    assert_eq!(
        (&stored["p"]["version"], &stored["p"]["policy"]),
        (&json!(2), &policy["policy"])
    );
    assert_eq!(
        set.get("/_index_template/none*").await,
        json!({"index_templates": []})
    );
    assert_eq!(set.send("PUT", "/_ilm/policy/p", "{").await.0, 400);
}

#[tokio::test]
async fn it_fails_as_it_is_told_and_counts() {
    let set = set(ElasticsearchOptions {
        keep_bodies: true,
        ..ElasticsearchOptions::default()
    })
    .await;
    let control = set.server.control().clone();
    let body = [
        line("a-1", "1", r#"{"text":"poison"}"#),
        line("a-1", "2", r#"{"text":"fine"}"#),
        line("a-2", "3", r#"{"text":"fine"}"#),
    ]
    .concat();
    control.add_rule(|operation| operation.contains("poison").then(Refusal::mapping_failure));
    control.add_rule(|operation| (operation.index == "a-2").then(|| Refusal::write_block("a-2")));
    let (_, answer) = set.bulk(body.clone()).await;
    assert_eq!(statuses(&answer), [400, 201, 403]);
    assert_eq!(
        answer["items"][2]["create"]["error"]["type"],
        "cluster_block_exception"
    );
    control.clear_rules();

    control.answer_next(
        1,
        Answer::Status {
            status: 429,
            body: "{\"status\":429}".to_owned(),
            retry_after: Some(2),
        },
    );
    let response = set
        .request("POST", "/_bulk")
        .body(body.clone())
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "2");
    assert_eq!(control.count(), 1);

    control.answer_next(1, Answer::Drop);
    let request = set.request("POST", "/_bulk").body(body.clone());
    request.send().await.unwrap_err();
    assert_eq!(control.count(), 1);
    control.answer_next(1, Answer::StoreAndDrop);
    let request = set.request("POST", "/_bulk").body(body.clone());
    request.send().await.unwrap_err();
    assert_eq!(control.count(), 3);
    let (_, answer) = set.bulk(body.clone()).await;
    assert_eq!(statuses(&answer), [409, 409, 409]);
    assert_eq!(control.duplicates_refused(), 4);
    assert_eq!(control.bodies().last().unwrap(), body.as_bytes());

    // A hanging request ends with the server, and the port is free again.
    control.answer_next(1, Answer::Hang);
    let hanging = tokio::spawn(set.request("POST", "/_bulk").body(body.clone()).send());
    let n_requests = control.n_bulk_requests();
    while control.n_bulk_requests() == n_requests && !hanging.is_finished() {
        tokio::task::yield_now().await;
    }
    let port = set.server.address().port();
    set.server.stop().await;
    hanging.await.unwrap().unwrap_err();
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .await
        .unwrap();
}

#[tokio::test]
async fn credentials_are_asked_for() {
    let password = Secret::new("p w");
    let set = set(ElasticsearchOptions {
        credentials: Some(Credentials::Basic {
            user: "elastic".to_owned(),
            password,
        }),
        version: "8.4.1".to_owned(),
        ..ElasticsearchOptions::default()
    })
    .await;
    let (status, answer) = set.send("GET", "/", "").await;
    assert_eq!(status, 401);
    assert_eq!(answer["error"]["type"], "security_exception");
    let basic = |password| {
        set.request("GET", "/")
            .basic_auth("elastic", Some(password))
            .send()
    };
    assert_eq!(basic("wrong").await.unwrap().status(), 401);
    let answer: Value = basic("p w").await.unwrap().json().await.unwrap();
    assert_eq!(answer["version"]["number"], "8.4.1");

    set.server.control().require(Some(Credentials::ApiKey {
        id: "i".to_owned(),
        key: Secret::new("k"),
    }));
    assert_eq!(basic("p w").await.unwrap().status(), 401);
    // base64 of i:k
    let request = set
        .request("POST", "/_bulk")
        .header("authorization", "ApiKey aTpr");
    let response = request.body(line("a", "1", "{}")).send().await.unwrap();
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn documents_outlive_the_server_in_a_file_and_a_sink_keeps_none() {
    let directory = tempfile::tempdir().unwrap();
    let database = Some(directory.path().join("elasticsearch.sqlite"));
    let options = ElasticsearchOptions {
        database,
        ..ElasticsearchOptions::default()
    };
    let first = set(options.clone()).await;
    first
        .bulk(line("a", "1", "{}") + &line("b", "1", "{}"))
        .await;
    first.server.stop().await;
    let second = set(options).await;
    assert_eq!(second.server.control().count(), 2);
    let (_, answer) = second
        .bulk(line("b", "1", "{}") + &line("b", "2", "{}"))
        .await;
    assert_eq!(statuses(&answer), [409, 201]);
    assert_eq!(second.get("/b/_count").await["count"], 2);

    let sink = set(ElasticsearchOptions {
        sink: true,
        ..ElasticsearchOptions::default()
    })
    .await;
    let (_, answer) = sink.bulk("anything\n".repeat(6)).await;
    assert_eq!(statuses(&answer), [201, 201, 201]);
    assert_eq!(
        (
            sink.server.control().n_items(201),
            sink.server.control().count()
        ),
        (3, 0)
    );
}
