//! Dead letters in the index of a real Elasticsearch that are done with, cut off between any two
//! requests, or kept again at just that time.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use teleport_event_indexer::checkpoint::{DeadLetter, DocumentForm};
use teleport_event_indexer::elastic::dead_letters::{DeadLetterIndex, INDEX, Settled};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::install;
use crate::support::elasticsearch::{Elasticsearch, NEWEST};
use crate::support::journey::{client, installer};
use crate::support::stand_ins::{block_on, spawn};

/// What becomes of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Passes,
    NeverComes,
    LosesItsAnswer,
}

/// Says so of each, by its number.
type Decide = Arc<dyn Fn(usize) -> Fate + Send + Sync>;

/// One state's letters in an Elasticsearch.
struct Letters {
    server: &'static Elasticsearch,
    state: &'static str,
    index: DeadLetterIndex,
}

impl Letters {
    fn of(state: &'static str) -> Option<Self> {
        let server = Elasticsearch::shared(NEWEST, false)?;
        install(server, state);
        let index = DeadLetterIndex::new(client(&installer(state, server)), state);
        let letters = Self {
            server,
            state,
            index,
        };
        Some(letters)
    }

    /// The same letters by a way on which each request has a fate.
    fn by(&self, decide: impl Fn(usize) -> Fate + Send + Sync + 'static) -> DeadLetterIndex {
        let target = self.server.url().replace("http://", "");
        let address = gate(target.parse().expect("an address"), Arc::new(decide));
        let indexer = installer(self.state, self.server);
        let path = indexer.directory().join("config.toml");
        let settings = std::fs::read_to_string(path).expect("it is there");
        let settings = settings.replace(&target, &address.to_string());
        indexer.write("config.toml", &settings);
        DeadLetterIndex::new(client(&indexer), self.state)
    }

    fn keep_all(&self) {
        block_on(self.index.keep(&all(), u64::MAX)).expect("there is room");
    }

    /// Letters that are told of, each of which must be whole; and those that have settled.
    fn told(&self) -> (Vec<String>, Vec<Settled>) {
        self.server.refresh(INDEX);
        let (told, next) = block_on(self.index.page(None)).expect("nothing is in its way");
        assert!(next.is_none());
        let whole: BTreeMap<_, _> = all()
            .into_iter()
            .map(|letter| (letter.document_id.clone(), letter))
            .collect();
        for letter in &told {
            assert!(*letter == whole[&letter.document_id], "not as it was");
        }
        let (settled, _) = block_on(self.index.settled(None)).expect("nothing is in its way");
        let summary = block_on(self.index.summary()).expect("nothing is in its way");
        assert_eq!(summary.count, told.len() as u64, "one has lost its parts");
        let told = told.into_iter().map(|letter| letter.document_id);
        (told.collect(), settled)
    }

    fn markers(&self) -> Vec<Settled> {
        block_on(self.index.settle(&keys())).expect("nothing is in its way");
        let (told, settled) = self.told();
        assert!(told.is_empty(), "{told:?}");
        let ids: Vec<_> = settled.iter().map(|s| &*s.document_id).collect();
        assert_eq!(ids, [LARGE_TEXT, LARGE_BYTES, BYTES]);
        settled
    }

    /// Documents of all kinds.
    fn left(&self) -> Vec<String> {
        self.server.refresh(INDEX);
        let ids = self.server.all_documents(INDEX).into_keys();
        let ids = ids.map(|(_, id)| id);
        ids.filter(|id| id.starts_with(&format!("{}/", self.state)))
            .collect()
    }
}

const LARGE_TEXT: &str = "large text";
const LARGE_BYTES: &str = "large, bytes";
const BYTES: &str = "small, bytes";

fn all() -> Vec<DeadLetter> {
    // Nothing that packs well.
    let mut random = 1_u64;
    let mut next = || {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        format!("{random:016x}")
    };
    let large: String = std::iter::repeat_with(&mut next).take(100_000).collect();
    let texts = [("small text", "1".to_owned()), (LARGE_TEXT, large.clone())];
    let texts = texts.map(|(id, text)| (id, format!("{{\"x\":\"{text}\"}}"), DocumentForm::Json));
    let bytes = [(BYTES, "1".to_owned()), (LARGE_BYTES, large)];
    let bytes = bytes.map(|(id, bytes)| (id, bytes, DocumentForm::Protobuf));
    let letters = texts.into_iter().chain(bytes);
    letters
        .map(|(id, document, form)| letter(id, "i", document, form))
        .collect()
}

/// A document that was refused for its mapping.
pub(super) fn letter(
    id: &str,
    index_name: &str,
    document: String,
    form: DocumentForm,
) -> DeadLetter {
    DeadLetter {
        document_id: id.to_owned(),
        index_name: index_name.to_owned(),
        event_type: "user.login".to_owned(),
        time_ms: None,
        document: document.into_bytes(),
        form,
        status: Some(400),
        error_type: "mapper_parsing_exception".to_owned(),
        reason: String::new(),
        first_seen_ms: 0,
    }
}

fn keys() -> Vec<(String, String)> {
    let letters = all().into_iter();
    letters.map(|l| (l.document_id, l.index_name)).collect()
}

/// A way to an Elasticsearch. Clients here send the head of a request with one write, and no request
/// before they have the answer to the last one.
fn gate(target: SocketAddr, decide: Decide) -> SocketAddr {
    let listener = block_on(TcpListener::bind("127.0.0.1:0")).expect("a port is free");
    let address = listener.local_addr().expect("it listens");
    let count = Arc::new(AtomicUsize::new(0));
    spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(passed(client, target, decide.clone(), count.clone()));
        }
    });
    address
}

async fn passed(client: TcpStream, target: SocketAddr, decide: Decide, count: Arc<AtomicUsize>) {
    let server = TcpStream::connect(target).await.expect("it listens");
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let loses_answers = AtomicBool::new(false);
    let requests = async {
        let mut piece = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from_client.read(&mut piece).await {
            let piece = &piece[..length];
            if ["GET /", "POST /"]
                .iter()
                .any(|m| piece.starts_with(m.as_bytes()))
            {
                let number = count.fetch_add(1, Ordering::Relaxed);
                let decide = decide.clone();
                // Which may wait, or ask Elasticsearch itself.
                let fate = tokio::task::spawn_blocking(move || decide(number));
                match fate.await.expect("it decides") {
                    Fate::Passes => {}
                    Fate::NeverComes => return,
                    Fate::LosesItsAnswer => loses_answers.store(true, Ordering::Relaxed),
                }
            }
            if to_server.write_all(piece).await.is_err() {
                return;
            }
        }
    };
    let answers = async {
        let mut piece = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from_server.read(&mut piece).await {
            let is_lost = loses_answers.load(Ordering::Relaxed);
            if is_lost || to_client.write_all(&piece[..length]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = requests => {}
        () = answers => {}
    }
}

/// All that comes after the request of this number never comes.
fn cut_at(cut: usize, fate: Fate) -> impl Fn(usize) -> Fate {
    move |number| match number {
        number if number < cut => Fate::Passes,
        number if number == cut => fate,
        _ => Fate::NeverComes,
    }
}

#[test]
fn what_is_done_with_is_whole_or_told_of_wherever_it_is_cut_off() {
    let Some(letters) = Letters::of("cut-off") else {
        return;
    };
    for fate in [Fate::NeverComes, Fate::LosesItsAnswer] {
        let mut requests = 0;
        loop {
            letters.keep_all();
            let cut = letters.by(cut_at(requests, fate));
            let done = block_on(cut.settle(&keys()));
            let (told, settled) = letters.told();
            for id in [BYTES, LARGE_TEXT, LARGE_BYTES] {
                let is_told = told.iter().any(|told| told == id);
                let is_marked = settled.iter().any(|settled| settled.document_id == id);
                assert!(is_told ^ is_marked, "{id} after {requests} requests");
            }
            if done.is_ok() {
                break;
            }
            requests += 1;
        }
        assert_eq!(requests, 2, "few for many, and it was cut at each");

        let mut requests = 0;
        loop {
            letters.keep_all();
            let markers = letters.markers();
            let cut = letters.by(cut_at(requests, fate));
            let done = block_on(cut.forget(&markers));
            // Whoever leads next goes on.
            let (told, again) = letters.told();
            assert!(told.is_empty(), "{told:?}");
            block_on(letters.index.forget(&again)).expect("nothing is in its way");
            assert_eq!(letters.left(), [""; 0], "after {requests} requests");
            if done.is_ok() {
                break;
            }
            requests += 1;
        }
        assert_eq!(requests, 3, "few for many, and it was cut at each");
    }

    letters.keep_all();
    block_on(letters.index.settle(&keys()[..2])).expect("nothing is in its way");
    letters.server.refresh(INDEX);
    block_on(letters.index.clear()).expect("nothing is in its way");
    assert_eq!(letters.left(), [""; 0]);
}

#[test]
fn what_is_kept_again_meanwhile_stays_whole() {
    let Some(letters) = Letters::of("kept-again") else {
        return;
    };
    let letters = Arc::new(letters);
    let keeps_at = |request: usize| {
        let letters = letters.clone();
        move |number| {
            if number == request {
                letters.keep_all();
            }
            Fate::Passes
        }
    };
    letters.keep_all();
    block_on(letters.by(keeps_at(1)).settle(&keys())).expect("nothing is in its way");
    assert_eq!(letters.told().0.len(), 4);
    for request in 0..3 {
        let markers = letters.markers();
        let forgets = letters.by(keeps_at(request));
        block_on(forgets.forget(&markers)).expect("nothing is in its way");
        let (told, settled) = letters.told();
        assert_eq!((told.len(), settled.len()), (4, 0), "at {request}");
    }

    // Half kept: the parts are there anew, their letters are not.
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let counts = letters.by(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        Fate::Passes
    });
    block_on(counts.keep(&all(), u64::MAX)).expect("there is room");
    let last = count.load(Ordering::Relaxed) - 1;
    let markers = letters.markers();
    let (arrives, arrived) = mpsc::channel();
    let (go, goes) = mpsc::channel();
    let goes = std::sync::Mutex::new(goes);
    let waits = letters.by(move |number| {
        if number == last {
            arrives.send(()).expect("it is waited for");
            let goes = goes.lock().expect("nobody panics");
            goes.recv().expect("it is told to go");
        }
        Fate::Passes
    });
    let keeps = thread::spawn(move || block_on(waits.keep(&all(), u64::MAX)));
    arrived.recv().expect("it comes to its last request");
    block_on(letters.index.forget(&markers)).expect("nothing is in its way");
    go.send(()).expect("it waits");
    keeps.join().expect("it ends").expect("there is room");
    assert_eq!(letters.told().0.len(), 4);
}
