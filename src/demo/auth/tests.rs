use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::TryStreamExt as _;
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::json;
use tokio_rustls::TlsConnector;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::*;
use crate::demo::certs::{Identity, IdentityOptions, KeyKind};
use crate::demo::events::{self, Id};
use crate::event::Timestamp;
use crate::teleport::proto::auditlog::audit_log_service_client::AuditLogServiceClient;
use crate::teleport::proto::auditlog::{self, GetUnstructuredEventsRequest, Order};
use crate::teleport::proto::auth::PingRequest;
use crate::teleport::proto::auth::auth_service_client::AuthServiceClient;

/// As a client of Teleport dials: the identity's authorities only, the internal name, ALPN `h2`.
async fn dial(
    address: SocketAddr,
    identity: &Identity,
    with_certificate: bool,
) -> Result<Channel, tonic::transport::Error> {
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_slice(identity.authorities.as_bytes()).unwrap();
    roots.add(authority).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut tls = if with_certificate {
        let certificate = CertificateDer::from_pem_slice(identity.certificate.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
        builder
            .with_client_auth_cert(vec![certificate], key)
            .unwrap()
    } else {
        builder.with_no_client_auth()
    };
    tls.alpn_protocols = vec![
        b"teleport-auth@64656d6f.teleport.cluster.local".to_vec(),
        b"h2".to_vec(),
    ];
    let connector = TlsConnector::from(Arc::new(tls));
    let connector = tower::service_fn(move |_| {
        let connector = connector.clone();
        async move {
            let stream = TcpStream::connect(address).await?;
            // hex("demo"): the name by which Teleport's clients ask for the cluster "demo".
            let name = ServerName::try_from("64656d6f.teleport.cluster.local").unwrap();
            connector.connect(name, stream).await.map(TokioIo::new)
        }
    });
    Endpoint::from_static("http://teleport.cluster.local")
        .connect_with_connector(connector)
        .await
}

struct Set {
    server: StandInAuth,
    client: AuditLogServiceClient<Channel>,
}

async fn set(options: AuthOptions) -> Set {
    let cluster = Cluster::new("demo").unwrap();
    let identity = cluster.identity(&IdentityOptions::default()).unwrap();
    let server = StandInAuth::start(&cluster, options).await.unwrap();
    let channel = dial(server.address(), &identity, true).await.unwrap();
    let client = AuditLogServiceClient::new(channel);
    Set {
        server,
        client: client.max_decoding_message_size(64 << 20),
    }
}

fn midnight() -> DateTime<Utc> {
    "2026-03-04T00:00:00Z".parse().unwrap()
}

fn seconds(time: DateTime<Utc>) -> Option<auditlog::Timestamp> {
    Some(auditlog::Timestamp {
        seconds: time.timestamp(),
        nanos: 0,
    })
}

fn event(uid: &str, kind: &str, time: DateTime<Utc>) -> AuditEvent {
    let event = json!({"uid": uid, "event": kind, "time": time.to_rfc3339()});
    events::encode(&event, Id::OfEvent)
}

/// `count` events, a second apart from midnight on, named by their number.
fn numbered(count: i64) -> Vec<AuditEvent> {
    let one = |n: i64| {
        let kind = if n % 2 == 0 { "even" } else { "odd" };
        event(&n.to_string(), kind, midnight() + TimeDelta::seconds(n))
    };
    (0..count).map(one).collect()
}

fn ids<'a>(items: impl IntoIterator<Item = &'a auditlog::EventUnstructured>) -> Vec<String> {
    let id = |item: &auditlog::EventUnstructured| String::from_utf8(item.id.to_vec()).unwrap();
    items.into_iter().map(id).collect()
}

impl Set {
    async fn chunks(&mut self, date: Option<auditlog::Timestamp>) -> Result<Vec<String>, Status> {
        let request = auditlog::GetEventExportChunksRequest { date };
        let stream = self.client.get_event_export_chunks(request).await?;
        let chunks = stream.into_inner().map_ok(|item| item.chunk);
        chunks.try_collect().await
    }

    /// All that came before the stream ended, and how it ended.
    async fn read(
        &mut self,
        date: Option<auditlog::Timestamp>,
        chunk: &str,
        cursor: &str,
    ) -> (Vec<auditlog::ExportEventUnstructured>, Result<(), Status>) {
        let request = auditlog::ExportUnstructuredEventsRequest {
            date,
            chunk: chunk.to_owned(),
            cursor: cursor.to_owned(),
        };
        let mut stream = match self.client.export_unstructured_events(request).await {
            Ok(stream) => stream.into_inner(),
            Err(status) => return (Vec::new(), Err(status)),
        };
        let mut items = Vec::new();
        loop {
            match stream.message().await {
                Ok(Some(item)) => items.push(item),
                Ok(None) => return (items, Ok(())),
                Err(status) => return (items, Err(status)),
            }
        }
    }

    async fn search(
        &mut self,
        request: GetUnstructuredEventsRequest,
    ) -> Result<(Vec<String>, String), Status> {
        let page = self
            .client
            .get_unstructured_events(request)
            .await?
            .into_inner();
        Ok((ids(&page.items), page.last_key))
    }
}

fn search(from: i64, to: i64, limit: i32) -> GetUnstructuredEventsRequest {
    GetUnstructuredEventsRequest {
        start_date: seconds(midnight() + TimeDelta::seconds(from)),
        end_date: seconds(midnight() + TimeDelta::seconds(to)),
        limit,
        order: Order::Ascending.into(),
        ..GetUnstructuredEventsRequest::default()
    }
}

#[tokio::test]
async fn chunks_hold_every_event_of_the_day_once_and_resume_after_a_cursor() {
    let mut set = set(AuthOptions {
        chunk_events: 4,
        ..AuthOptions::default()
    })
    .await;
    let tomorrow = midnight() + TimeDelta::days(1);
    set.server.control().append(numbered(10));
    set.server.control().append([event("late", "x", tomorrow)]);
    // Any time of the day means the day.
    let day = seconds(midnight() + TimeDelta::hours(17));

    let chunks = set.chunks(day).await.unwrap();
    assert_eq!(chunks.len(), 3);
    let mut seen = BTreeSet::new();
    for chunk in &chunks {
        let (items, end) = set.read(day, chunk, "").await;
        end.unwrap();
        assert!(items.len() <= 4);
        let events = items.iter().map(|item| item.event.as_ref().unwrap());
        let names = ids(events);
        for (item, n) in items.iter().zip(1..) {
            let (rest, end) = set.read(day, chunk, &item.cursor).await;
            end.unwrap();
            let rest = ids(rest.iter().map(|item| item.event.as_ref().unwrap()));
            assert_eq!(rest, names[n..]);
        }
        assert!(names.into_iter().all(|name| seen.insert(name)));
    }
    assert_eq!(seen.len(), 10);

    set.server.control().append(numbered(1));
    let more = set.chunks(day).await.unwrap();
    assert_eq!(more.len(), 4);
    assert!(chunks.iter().all(|chunk| more.contains(chunk)));
    let empty = set.chunks(seconds(midnight() - TimeDelta::days(9))).await;
    assert_eq!(empty.unwrap(), Vec::<String>::new());

    let code = |end: Result<(), Status>| end.unwrap_err().code();
    assert_eq!(
        code(set.read(day, &chunks[0], "c1:x").await.1),
        Code::InvalidArgument
    );
    assert_eq!(
        code(set.read(day, &chunks[0], "c1:5").await.1),
        Code::InvalidArgument
    );
    assert_eq!(code(set.read(day, "none", "").await.1), Code::NotFound);
    assert_eq!(
        code(set.read(seconds(tomorrow), &chunks[0], "").await.1),
        Code::NotFound
    );
    assert_eq!(
        code(set.read(None, &chunks[0], "").await.1),
        Code::InvalidArgument
    );
    assert_eq!(
        set.chunks(None).await.unwrap_err().code(),
        Code::InvalidArgument
    );

    set.server.control().set_export(false);
    assert_eq!(
        set.chunks(day).await.unwrap_err().code(),
        Code::Unimplemented
    );
    assert_eq!(
        code(set.read(day, &chunks[0], "").await.1),
        Code::Unimplemented
    );
}

#[tokio::test]
async fn a_search_pages_through_a_range_with_both_its_ends() {
    let mut set = set(AuthOptions::default()).await;
    set.server.control().append(numbered(700));
    let numbers = |range: std::ops::RangeInclusive<i64>| -> Vec<String> {
        range.map(|n| n.to_string()).collect()
    };

    let mut request = search(10, 19, 4);
    let (page, key) = set.search(request.clone()).await.unwrap();
    assert_eq!(page, numbers(10..=13));
    request.start_key = key;
    let (page, key) = set.search(request.clone()).await.unwrap();
    assert_eq!(page, numbers(14..=17));
    // A late event before the key does not disturb it, one after it is found.
    set.server.control().append([
        event("before", "x", midnight() + TimeDelta::seconds(12)),
        event("after", "x", midnight() + TimeDelta::seconds(18)),
    ]);
    request.start_key = key;
    let (page, key) = set.search(request.clone()).await.unwrap();
    assert_eq!((page.concat().as_str(), key.as_str()), ("18after19", ""));

    // A page that is filled by the last event has no last key.
    assert_eq!(
        set.search(search(20, 23, 4)).await.unwrap(),
        (numbers(20..=23), String::new())
    );
    let (page, key) = set.search(search(100, 699, 0)).await.unwrap();
    assert_eq!(page.len(), 500);
    assert_ne!(key, "");

    let mut descending = search(30, 33, 3);
    descending.order = Order::DescendingUnspecified.into();
    let (page, key) = set.search(descending.clone()).await.unwrap();
    assert_eq!(page, ["33", "32", "31"]);
    descending.start_key = key;
    assert_eq!(
        set.search(descending).await.unwrap(),
        (numbers(30..=30), String::new())
    );

    let mut odd = search(40, 49, 4);
    odd.event_types = vec!["odd".to_owned(), "never".to_owned()];
    let (page, key) = set.search(odd.clone()).await.unwrap();
    assert_eq!(page, ["41", "43", "45", "47"]);
    odd.start_key = key;
    assert_eq!(
        set.search(odd).await.unwrap(),
        (numbers(49..=49), String::new())
    );

    let mut lost = search(50, 59, 4);
    lost.start_key = "68f1b1a7-0000-4000-8000-000000000000".to_owned();
    assert_eq!(set.search(lost).await.unwrap(), (Vec::new(), String::new()));
    for refused in [search(0, 1, 10_001), search(2, 1, 1)] {
        let status = set.search(refused).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
    }
    let last = set.server.control().requests().pop().unwrap();
    let time = |seconds| {
        Some(Timestamp {
            seconds: midnight().timestamp() + seconds,
            nanos: 0,
        })
    };
    let expected = Request::Search {
        from: time(2),
        to: time(1),
        types: Vec::new(),
        limit: 1,
        start_key: String::new(),
        ascending: true,
    };
    assert_eq!(last, expected);
}

#[tokio::test]
async fn a_page_ends_at_a_mebibyte_but_a_larger_event_goes_out_alone() {
    let mut set = set(AuthOptions::default()).await;
    let with_bytes = |n: i64, bytes: usize| {
        let time = midnight() + TimeDelta::seconds(n);
        let text = "x".repeat(bytes);
        let event = json!({"uid": n.to_string(), "time": time.to_rfc3339(), "text": text});
        events::encode(&event, Id::OfEvent)
    };
    let sizes = [400_000, 400_000, 400_000, 3_000_000, 10];
    set.server
        .control()
        .append((0..).zip(sizes).map(|(n, bytes)| with_bytes(n, bytes)));
    let mut request = search(0, 9, 100);
    let mut pages = Vec::new();
    loop {
        let (page, key) = set.search(request.clone()).await.unwrap();
        pages.push(page.join(","));
        if key.is_empty() {
            break;
        }
        request.start_key = key;
    }
    assert_eq!(pages, ["0,1", "2", "3", "4"]);

    let control = set.server.control().clone();
    let cannot = |how| control.set_unreadable(Some((2_000_000, how)));
    cannot(Unreadable::Hidden);
    let (page, key) = set.search(search(2, 9, 100)).await.unwrap();
    assert_eq!((page.concat().as_str(), key.as_str()), ("2", ""));
    assert_eq!(
        set.search(search(3, 9, 100)).await.unwrap(),
        (Vec::new(), String::new())
    );
    cannot(Unreadable::Refused(Code::ResourceExhausted));
    let status = set.search(search(2, 9, 100)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let (page, key) = set.search(search(2, 9, 1)).await.unwrap();
    assert_eq!((page.concat().as_str(), key.is_empty()), ("2", false));
}

#[tokio::test]
async fn failures_come_as_planned_and_are_counted() {
    let mut set = set(AuthOptions::default()).await;
    set.server.control().append(numbered(5));
    let control = set.server.control().clone();
    let day = seconds(midnight());

    control.fail_next(Method::Search, 2, Code::ResourceExhausted);
    control.fail_next(Method::ListChunks, 1, Code::Unavailable);
    for _ in 0..2 {
        let status = set.search(search(0, 9, 0)).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
    }
    assert_eq!(set.search(search(0, 9, 0)).await.unwrap().0.len(), 5);
    assert_eq!(set.chunks(day).await.unwrap_err().code(), Code::Unavailable);
    let chunk = set.chunks(day).await.unwrap().remove(0);

    control.break_next_stream(2, Code::Internal);
    let (items, end) = set.read(day, &chunk, "").await;
    assert_eq!((items.len(), end.unwrap_err().code()), (2, Code::Internal));
    let (rest, end) = set.read(day, &chunk, &items[1].cursor).await;
    end.unwrap();
    assert_eq!(rest.len(), 3);

    assert_eq!(control.n_calls(Method::Search), 3);
    assert_eq!(control.n_handed_out(Method::Search), 5);
    assert_eq!(control.n_handed_out(Method::ReadChunk), 5);
    assert_eq!(control.n_handed_out(Method::ListChunks), 1);

    // The connection is gone, the next call makes a new one.
    assert_eq!(control.n_connections(), 1);
    control.drop_connections();
    while set.search(search(0, 9, 0)).await.is_err() {}
    assert_eq!(control.n_connections(), 2);

    control.set_delay(Duration::from_secs(3_600));
    let (mut client, server) = (set.client.clone(), set.server);
    let n_before = control.n_calls(Method::Search);
    let hanging =
        tokio::spawn(async move { client.get_unstructured_events(search(0, 9, 0)).await });
    while control.n_calls(Method::Search) == n_before && !hanging.is_finished() {
        tokio::task::yield_now().await;
    }
    let port = server.address().port();
    server.stop().await;
    hanging.await.unwrap().unwrap_err();
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .await
        .unwrap();
}

#[tokio::test]
async fn only_certificates_of_the_user_authority_are_let_in() {
    let cluster = Cluster::new("demo").unwrap();
    let server = StandInAuth::start(&cluster, AuthOptions::default())
        .await
        .unwrap();
    let now = Utc::now();
    let good = cluster
        .identity(&IdentityOptions {
            key: KeyKind::Ed25519,
            ..IdentityOptions::default()
        })
        .unwrap();
    let expired = cluster
        .identity(&IdentityOptions {
            not_before: now - TimeDelta::hours(3),
            not_after: now - TimeDelta::hours(2),
            ..IdentityOptions::default()
        })
        .unwrap();
    let mut stranger = Cluster::new("demo")
        .unwrap()
        .identity(&IdentityOptions::default())
        .unwrap();
    stranger.authorities.clone_from(&good.authorities);

    let channel = dial(server.address(), &good, true).await.unwrap();
    let answer = AuthServiceClient::new(channel)
        .ping(PingRequest {})
        .await
        .unwrap();
    assert_eq!(answer.get_ref().cluster_name, "demo");
    assert_eq!(answer.get_ref().server_version, "18.2.0");

    let channel = dial(server.address(), &good, false).await.unwrap();
    let status = AuthServiceClient::new(channel.clone())
        .ping(PingRequest {})
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    let request = search(0, 1, 1);
    let status = AuditLogServiceClient::new(channel)
        .get_unstructured_events(request)
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);

    // With TLS 1.3 a client learns only at its first read that it was refused.
    for refused in [expired, stranger] {
        if let Ok(channel) = dial(server.address(), &refused, true).await {
            let answer = AuthServiceClient::new(channel).ping(PingRequest {}).await;
            assert_ne!(answer.unwrap_err().code(), Code::PermissionDenied);
        }
    }
    // The server counts after it has told the client.
    while server.control().n_failed_handshakes() < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(server.control().n_connections(), 2);
}
