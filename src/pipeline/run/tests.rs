//! The whole loop, with a real state file, against random answers, random orders and crashes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use chrono::{DateTime, NaiveDate, SecondsFormat};
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;

use super::*;
use crate::checkpoint::{DeadLetterFilter, SourceMode, Window};
use crate::demo::events::{Id, Random, encode};
use crate::document::IndexPattern;
use crate::event::DAY_MS;
use crate::pipeline::batch::BatchLimits;
use crate::pipeline::delivery::{Attempt, Fault, Outcome, Refusal};
use crate::pipeline::unless_stopped;

const CLUSTER: &str = "c";
const FROM_MS: i64 = 20_000 * DAY_MS;
const DAYS: i64 = 3;
const TO_MS: i64 = FROM_MS + DAYS * DAY_MS;
const WINDOW_MS: i64 = DAY_MS / 3;

/// Index and id of a document.
type Key = (String, String);

/// What is special about an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    Filtered,
    /// Elasticsearch takes it in safe form only.
    Refused,
    /// Elasticsearch does not take it at all.
    RefusedForGood,
    /// Its body is no Struct.
    Malformed,
    /// A search cannot hand it out; an export does.
    Unreadable,
}

/// What Elasticsearch does with a request.
#[derive(Clone, Copy, Debug)]
enum Reply {
    Ordinary,
    /// Nothing is stored, and there is no answer.
    Lost,
    /// Everything is stored, and there is no answer.
    AnswerLost,
    /// Every so many-th document is rejected.
    Rejects(usize),
    /// The index of the first document takes nothing for so many requests.
    BlocksIndex(u32),
    /// The credentials are refused.
    BlocksAll,
    TooLarge,
}

/// How a process ends before it is done.
#[derive(Clone, Copy, Debug)]
enum End {
    /// Killed at this request, which is carried out or not.
    AtRequest { n: usize, is_stored: bool },
    /// Killed after so many ms.
    After(u64),
    /// Asked to end after so many ms.
    Stopped(u64),
}

#[derive(Clone, Debug)]
struct Plan {
    export: bool,
    kinds: Vec<Kind>,
    page: usize,
    replies: Vec<Reply>,
    ends: Vec<End>,
    batch: usize,
    in_flight: usize,
    blocked_bytes: u64,
    seed: u64,
}

fn plan() -> impl Strategy<Value = Plan> {
    let kind = prop_oneof![
        12 => Just(Kind::Plain),
        1 => Just(Kind::Filtered),
        1 => Just(Kind::Refused),
        1 => Just(Kind::RefusedForGood),
        1 => Just(Kind::Malformed),
        1 => Just(Kind::Unreadable),
    ];
    let reply = prop_oneof![
        3 => Just(Reply::Ordinary),
        1 => Just(Reply::Lost),
        1 => Just(Reply::AnswerLost),
        1 => (1..4_usize).prop_map(Reply::Rejects),
        1 => (1..20_u32).prop_map(Reply::BlocksIndex),
        1 => Just(Reply::BlocksAll),
        1 => Just(Reply::TooLarge),
    ];
    let end = prop_oneof![
        2 => (0..12_usize, any::<bool>()).prop_map(|(n, is_stored)| End::AtRequest { n, is_stored }),
        2 => (0..8000_u64).prop_map(End::After),
        1 => (0..8000_u64).prop_map(End::Stopped),
    ];
    let blocked_bytes = prop_oneof![Just(0), Just(600), Just(1 << 20)];
    let work = (
        any::<bool>(),
        prop::collection::vec(kind, 4..40),
        1..6_usize,
    );
    let faults = (
        prop::collection::vec(reply, 0..30),
        prop::collection::vec(end, 0..6),
    );
    let settings = (1..6_usize, 1..4_usize, blocked_bytes, any::<u64>());
    (work, faults, settings).prop_map(|(work, faults, settings)| Plan {
        export: work.0,
        kinds: work.1,
        page: work.2,
        replies: faults.0,
        ends: faults.1,
        batch: settings.0,
        in_flight: settings.1,
        blocked_bytes: settings.2,
        seed: settings.3,
    })
}

/// What Elasticsearch holds and is going to do. It outlives the processes.
struct World {
    stored: BTreeSet<Key>,
    replies: VecDeque<Reply>,
    /// Indices that take nothing for so many more requests.
    blocked: BTreeMap<String, u32>,
    random: Random,
}

/// Elasticsearch as one process sees it.
struct Server {
    world: Arc<Mutex<World>>,
    /// Kills the process.
    crash: CancellationToken,
    /// At which request, and whether that is carried out.
    fatal: Option<(usize, bool)>,
    n_requests: Mutex<usize>,
}

fn fault(what: &str) -> Fault {
    Fault {
        what: what.to_owned(),
        ..Fault::default()
    }
}

fn refusal(status: u16) -> Refusal {
    Refusal {
        status,
        error_type: "document_parsing_exception".to_owned(),
        reason: "no".to_owned(),
    }
}

impl World {
    /// Carries a request out, but for every so many-th document.
    fn carry_out(&mut self, body: &[u8], rejects: Option<usize>) -> Vec<Outcome> {
        let lines: Vec<Value> = body
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect();
        let mut outcomes = Vec::new();
        for (n, lines) in lines.chunks(2).enumerate() {
            let text = |name: &str| lines[0]["create"][name].as_str().unwrap().to_owned();
            let key = (text("_index"), text("_id"));
            let is_safe_form = lines[1].get("event_indexer.raw").is_some();
            outcomes.push(if self.blocked.contains_key(&key.0) {
                Outcome::Blocked(fault("blocked"))
            } else if rejects.is_some_and(|every| n % every == 0) {
                Outcome::Transient(fault("rejected"))
            } else if lines[1]["event"] == "refused for good"
                || lines[1]["event"] == "refused" && !is_safe_form
            {
                Outcome::Refused(refusal(400))
            } else if self.stored.insert(key) {
                Outcome::Created
            } else {
                Outcome::AlreadyThere
            });
        }
        self.blocked.retain(|_, left| {
            *left -= 1;
            *left > 0
        });
        outcomes
    }

    fn answer(&mut self, body: &[u8], operations: usize) -> Attempt {
        let reply = self.replies.pop_front().unwrap_or(Reply::Ordinary);
        match reply {
            Reply::Lost => return Attempt::Transient(fault("lost")),
            Reply::BlocksAll => return Attempt::Blocked(fault("who are you?")),
            Reply::TooLarge if operations > 1 => return Attempt::TooLarge(refusal(413)),
            Reply::BlocksIndex(requests) => {
                let action = body.split(|byte| *byte == b'\n').next().unwrap();
                let action: Value = serde_json::from_slice(action).unwrap();
                let index = action["create"]["_index"].as_str().unwrap();
                self.blocked.insert(index.to_owned(), requests);
            }
            _ => {}
        }
        let rejects = match reply {
            Reply::Rejects(every) => Some(every),
            _ => None,
        };
        let outcomes = self.carry_out(body, rejects);
        assert_eq!(outcomes.len(), operations);
        match reply {
            Reply::AnswerLost => Attempt::Transient(fault("lost on the way back")),
            _ if outcomes.iter().all(|outcome| *outcome == Outcome::Created) => Attempt::AllCreated,
            _ => Attempt::Items(outcomes),
        }
    }
}

impl Sink for Server {
    async fn send(&self, body: Bytes, operations: usize) -> Attempt {
        let pause = self.world.lock().unwrap().random.below(1500);
        sleep(Duration::from_millis(pause)).await;
        let n = {
            let mut n_requests = self.n_requests.lock().unwrap();
            *n_requests += 1;
            *n_requests - 1
        };
        match self.fatal {
            Some((fatal, is_stored)) if fatal == n => {
                if is_stored {
                    self.world.lock().unwrap().carry_out(&body, None);
                }
                self.crash.cancel();
                std::future::pending().await
            }
            _ => self.world.lock().unwrap().answer(&body, operations),
        }
    }
}

/// One event of the audit log.
#[derive(Clone)]
struct Logged {
    kind: Kind,
    time_ms: i64,
    event: AuditEvent,
}

impl Logged {
    fn gap(&self) -> Gap {
        Gap {
            reason: "event_unreadable".to_owned(),
            from_ms: self.time_ms,
            to_ms: self.time_ms + 1,
            ..Gap::default()
        }
    }
}

/// The source: it reads as the real ones do, from where the state file says.
struct Reader {
    checkpoint: Arc<Checkpoint>,
    run: RunId,
    log: Arc<Vec<Logged>>,
    page: usize,
    random: Random,
}

impl Reader {
    /// Events that are read one after the other, in pages; `step` gives the step of a page that
    /// ends before the n-th.
    fn pages(
        &mut self,
        lane: u64,
        events: &[Logged],
        is_search: bool,
        step: impl Fn(usize) -> Step,
    ) -> VecDeque<Page> {
        let mut pages = VecDeque::new();
        let mut next = 0;
        while next < events.len() {
            let rest = &events[next..];
            let is_hidden = |logged: &Logged| is_search && logged.kind == Kind::Unreadable;
            let hidden = rest.iter().position(is_hidden).unwrap_or(rest.len());
            let most = 1 + self.random.below(self.page as u64);
            let n_events = hidden.min(usize::try_from(most).unwrap());
            let (read, gap) = match n_events {
                0 => (1, Some(rest[0].gap())),
                n_events => (n_events, None),
            };
            next += read;
            let page = &rest[..n_events];
            let wanted = page.iter().filter(|logged| logged.kind != Kind::Filtered);
            let events: Vec<_> = wanted.map(|logged| logged.event.clone()).collect();
            pages.push_back(Page {
                lane: Lane(lane),
                filtered: (n_events - events.len()) as u64,
                events,
                reached: Some(step(next)),
                gap,
            });
        }
        pages.push_back(Page::step(Lane(lane), step(usize::MAX)));
        pages
    }

    fn windows(&mut self) -> Result<Vec<VecDeque<Page>>, CheckpointError> {
        let mut run = self.checkpoint.run(self.run)?;
        if run.windows.is_empty() && run.position_ms < TO_MS {
            let planned = (FROM_MS..TO_MS).step_by(usize::try_from(WINDOW_MS).unwrap());
            run.windows = planned
                .map(|from_ms| Window {
                    from_ms,
                    to_ms: from_ms + WINDOW_MS,
                    reached_ms: from_ms,
                })
                .collect();
            self.checkpoint.add_windows(self.run, &run.windows)?;
        }
        let mut lanes = Vec::new();
        for (lane, window) in run.windows.iter().enumerate() {
            let log = self.log.clone();
            let is_in =
                |logged: &&Logged| (window.reached_ms..window.to_ms).contains(&logged.time_ms);
            let events: Vec<_> = log.iter().filter(is_in).cloned().collect();
            lanes.push(self.pages(lane as u64, &events, true, |next| Step::Window {
                from_ms: window.from_ms,
                to_ms: window.to_ms,
                reached_ms: events.get(next).map_or(window.to_ms, |next| next.time_ms),
            }));
        }
        Ok(lanes)
    }

    fn chunks(&mut self) -> Result<Vec<VecDeque<Page>>, CheckpointError> {
        let mut lanes = Vec::new();
        for day in 0..DAYS {
            let date = date(day);
            let end_ms = FROM_MS + (day + 1) * DAY_MS;
            let names = ["0".to_owned(), "1".to_owned()];
            let listed = self
                .checkpoint
                .add_listing(self.run, date, end_ms, &names)?;
            for chunk in listed.unfinished {
                let events = of_chunk(&self.log, day, &chunk.name);
                let begin: usize = chunk.cursor.map_or(0, |cursor| cursor.parse().unwrap());
                let lane = lanes.len() as u64;
                lanes.push(self.pages(lane, &events[begin..], false, |next| {
                    let (date, chunk) = (date, chunk.name.clone());
                    match next {
                        usize::MAX => Step::ChunkDone { date, chunk },
                        next => Step::Chunk {
                            date,
                            chunk,
                            cursor: (begin + next).to_string(),
                        },
                    }
                }));
            }
        }
        Ok(lanes)
    }
}

impl Source for Reader {
    type Error = CheckpointError;

    async fn run(
        mut self,
        pages: PageSender,
        stop: CancellationToken,
    ) -> Result<(), CheckpointError> {
        let mut lanes = match self.checkpoint.run(self.run)?.mode {
            Some(SourceMode::Export) => self.chunks()?,
            _ => self.windows()?,
        };
        while !lanes.is_empty() {
            let pause = Duration::from_millis(self.random.below(200));
            let lane = usize::try_from(self.random.below(lanes.len() as u64)).unwrap();
            let Some(page) = lanes[lane].pop_front() else {
                lanes.swap_remove(lane);
                continue;
            };
            let send = async {
                sleep(pause).await;
                pages.send(page).await
            };
            match unless_stopped(&stop, send).await {
                Some(Ok(())) => {}
                Some(Err(_)) | None => break,
            }
        }
        Ok(())
    }
}

fn date(day: i64) -> NaiveDate {
    let day = i32::try_from(FROM_MS / DAY_MS + day).unwrap();
    NaiveDate::from_epoch_days(day).unwrap()
}

/// The events of a day are in two chunks by turns.
fn of_chunk(log: &[Logged], day: i64, chunk: &str) -> Vec<Logged> {
    let of_day = log
        .iter()
        .filter(|logged| (logged.time_ms - FROM_MS) / DAY_MS == day);
    let turns = of_day.enumerate();
    let of_chunk = turns.filter(|(n, _)| (n % 2).to_string() == chunk);
    of_chunk.map(|(_, logged)| logged.clone()).collect()
}

/// A state file, an audit log, an Elasticsearch, and processes that come and go.
struct Walk {
    plan: Plan,
    storage: TempDir,
    run: RunId,
    log: Arc<Vec<Logged>>,
    world: Arc<Mutex<World>>,
}

impl Walk {
    fn new(plan: &Plan) -> Self {
        let storage = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(storage.path()).unwrap();
        let run = checkpoint
            .backfill_run(CLUSTER, FROM_MS, TO_MS, "")
            .unwrap()
            .id;
        let mode = if plan.export {
            SourceMode::Export
        } else {
            SourceMode::Search
        };
        checkpoint.set_mode(run, mode).unwrap();
        let distance = DAYS * DAY_MS / i64::try_from(plan.kinds.len()).unwrap();
        let logged = plan.kinds.iter().zip(0..).map(|(&kind, n)| {
            let time_ms = FROM_MS + n * distance;
            let time = DateTime::from_timestamp_millis(time_ms).unwrap();
            let event_type = match kind {
                Kind::Refused => "refused",
                Kind::RefusedForGood => "refused for good",
                _ => "plain",
            };
            let mut event = encode(
                &json!({"event": event_type, "uid": n.to_string(),
                    "time": time.to_rfc3339_opts(SecondsFormat::Millis, true)}),
                Id::OfEvent,
            );
            if kind == Kind::Malformed {
                event.body = Bytes::from_static(b"\xff");
            }
            Logged {
                kind,
                time_ms,
                event,
            }
        });
        Self {
            storage,
            run,
            log: Arc::new(logged.collect()),
            world: Arc::new(Mutex::new(World {
                stored: BTreeSet::new(),
                replies: plan.replies.iter().copied().collect(),
                blocked: BTreeMap::new(),
                random: Random::new(plan.seed),
            })),
            plan: plan.clone(),
        }
    }

    /// A process, until it is done or this end. How the run ended, if it did.
    fn live(&self, life: u64, end: Option<End>) -> Option<Summary> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let (crash, stop) = (CancellationToken::new(), CancellationToken::new());
        let checkpoint = Arc::new(Checkpoint::open(self.storage.path()).unwrap());
        let source = Reader {
            checkpoint: checkpoint.clone(),
            run: self.run,
            log: self.log.clone(),
            page: self.plan.page,
            random: Random::new(self.plan.seed.wrapping_add(life)),
        };
        let pipeline = Pipeline {
            sink: Server {
                world: self.world.clone(),
                crash: crash.clone(),
                fatal: match end {
                    Some(End::AtRequest { n, is_stored }) => Some((n, is_stored)),
                    _ => None,
                },
                n_requests: Mutex::new(0),
            },
            checkpoint,
            run: self.run,
            cluster: CLUSTER.into(),
            encoder: Encoder::new(&IndexPattern::default()),
            settings: Settings {
                batch: BatchLimits {
                    bytes: 1 << 16,
                    documents: self.plan.batch,
                    age: Duration::from_millis(100),
                },
                in_flight: self.plan.in_flight,
                in_flight_bytes: 8 << 10,
                grace_period: Duration::from_secs(3),
                dead_letter_bytes: 1 << 20,
                blocked_bytes: self.plan.blocked_bytes,
            },
            stats: Arc::default(),
        };
        runtime.block_on(async {
            let killed = async {
                match end {
                    Some(End::After(ms)) => sleep(Duration::from_millis(ms)).await,
                    _ => crash.cancelled().await,
                }
            };
            let stopped = async {
                if let Some(End::Stopped(ms)) = end {
                    sleep(Duration::from_millis(ms)).await;
                    stop.cancel();
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                summary = pipeline.run(source, stop.clone()) => Some(summary.unwrap()),
                () = killed => None,
                () = stopped => None,
            }
        })
        // The runtime is dropped here, which waits for a commit that was under way: the process
        // died behind it.
    }

    /// Where each event has to be.
    fn key(&self, logged: &Logged) -> Key {
        let mut encoder = Encoder::new(&IndexPattern::default());
        let out = &mut Vec::new();
        let encoded = match logged.kind {
            Kind::Malformed => {
                let id = DocumentId::of_raw(&logged.event).to_string();
                return (String::new(), id);
            }
            Kind::Unreadable if !self.plan.export => {
                let (id, document) = gap::opened(CLUSTER, &logged.gap());
                encoder
                    .encode_own(logged.time_ms, id, &document, out)
                    .unwrap()
            }
            _ => encoder.encode(&logged.event, out).unwrap(),
        };
        (encoded.index_name.to_string(), encoded.id.to_string())
    }

    /// Checks that nothing lies before the position, or before what was reached, that has not
    /// settled; the keys of all that has.
    fn check(&self) -> Result<BTreeSet<Key>, TestCaseError> {
        let checkpoint = Checkpoint::open(self.storage.path()).unwrap();
        let run = checkpoint.run(self.run).unwrap();
        let letters = checkpoint.dead_letters(&DeadLetterFilter::default(), 1000);
        let letters = letters.unwrap().into_iter();
        let mut settled: BTreeSet<Key> = letters.map(|l| (l.index_name, l.document_id)).collect();
        for (index, _) in checkpoint.blocked_indices(self.run).unwrap() {
            let waiting = checkpoint.waiting(self.run, &index, 1000, 1 << 20).unwrap();
            settled.extend(waiting.into_iter().map(|w| (index.clone(), w.document_id)));
        }
        settled.extend(self.world.lock().unwrap().stored.iter().cloned());

        let gaps = checkpoint.open_gaps(self.run, false).unwrap();
        let is_settled = |logged: &Logged| {
            let is_told = || gaps.iter().any(|gap| gap.is_same(&logged.gap()));
            let is_hidden = logged.kind == Kind::Unreadable && !self.plan.export;
            let is_there = settled.contains(&self.key(logged));
            logged.kind == Kind::Filtered || is_there && (!is_hidden || is_told())
        };
        for logged in self.log.iter() {
            let is_passed = |from_ms, to_ms| (from_ms..to_ms).contains(&logged.time_ms);
            let mut spans = run.windows.iter();
            let is_passed = is_passed(FROM_MS, run.position_ms)
                || spans.any(|window| is_passed(window.from_ms, window.reached_ms));
            prop_assert!(
                is_settled(logged) || !is_passed,
                "{:?} of {} was passed by {run:?}",
                logged.kind,
                logged.time_ms
            );
        }
        for day in 0..DAYS {
            for chunk in checkpoint.chunks(self.run, date(day)).unwrap() {
                let events = of_chunk(&self.log, day, &chunk.name);
                let passed = match chunk.cursor {
                    _ if chunk.done => events.len(),
                    Some(cursor) => cursor.parse().unwrap(),
                    None => 0,
                };
                prop_assert!(
                    events[..passed].iter().all(is_settled),
                    "{day} {}",
                    chunk.name
                );
            }
        }
        Ok(settled)
    }

    /// Checks that all has come, each to its one place.
    fn check_end(&self, settled: &BTreeSet<Key>) -> Result<(), TestCaseError> {
        let wanted = self
            .log
            .iter()
            .filter(|logged| logged.kind != Kind::Filtered);
        let mut wanted: BTreeSet<Key> = wanted.map(|logged| self.key(logged)).collect();
        // What came, but made no document, is told of as well.
        let malformed = self
            .log
            .iter()
            .filter(|l| l.kind == Kind::Malformed)
            .count();
        let checkpoint = Checkpoint::open(self.storage.path()).unwrap();
        for gap in checkpoint.open_gaps(self.run, false).unwrap() {
            let (id, document) = gap::opened(CLUSTER, &gap);
            let mut encoder = Encoder::new(&IndexPattern::default());
            let encoded = encoder.encode_own(gap.from_ms, id, &document, &mut Vec::new());
            let encoded = encoded.unwrap();
            wanted.insert((encoded.index_name.to_string(), encoded.id.to_string()));
        }
        prop_assert_eq!(settled, &wanted);
        let letters = checkpoint.count_dead_letters(&DeadLetterFilter::default());
        let refused = self
            .log
            .iter()
            .filter(|l| l.kind == Kind::RefusedForGood)
            .count();
        prop_assert_eq!(letters.unwrap(), (refused + malformed) as u64);
        prop_assert!(checkpoint.blocked_indices(self.run).unwrap().is_empty());
        checkpoint.finish_run(self.run).unwrap();
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Whatever is answered, in whatever order, and whenever the process dies: the next one finds
    /// nothing passed that has not settled, and in the end everything has come, once.
    #[test]
    fn nothing_is_passed_and_everything_comes_once(plan in plan()) {
        let walk = Walk::new(&plan);
        let mut life = 0;
        for &end in &plan.ends {
            walk.live(life, Some(end));
            walk.check()?;
            life += 1;
        }
        let summary = walk.live(life, None);
        prop_assert_eq!(summary, Some(Summary { complete: true, abandoned: 0 }));
        let settled = walk.check()?;
        walk.check_end(&settled)?;
    }
}
