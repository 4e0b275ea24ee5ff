//! Workers on a store that keeps its promises over a network that keeps none: requests are lost
//! before or after they were carried out, or carried out late; lists are old; workers hang, die,
//! leave and join; no two clocks agree; some read by search and some by export.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use super::cut::Cut;
use super::worker::{Answer, Ended, Finish, Next, Request, Rules, Worker};
use super::{ChunkMark, Listing, Piece, PieceState, Progress, Tally, Version};
use crate::demo::events::random::Random;
use crate::event::DAY_MS;

/// One event each millisecond of the audit log.
const EVENTS: i64 = 60;
const PIECE: i64 = 12;
/// Chunks of the events of each piece.
const CHUNKS: i64 = 5;
const RULES: Rules = Rules {
    lease: Duration::from_millis(600),
    turn: Duration::from_millis(10),
};
/// From then on nothing breaks any more, ms.
const PEACE: u64 = 8_000;
/// By then all must have ended.
const END: u64 = 60_000;

/// What Elasticsearch does: compare-and-set on documents, and searches that are late.
#[derive(Default)]
struct Store {
    pieces: BTreeMap<String, (Piece, Version)>,
    shown: BTreeMap<String, (Piece, Version)>,
    seq_no: u64,
    settled: Vec<bool>,
}

impl Store {
    fn write(&mut self, id: &str, piece: &Piece, over: Option<Version>) -> Answer {
        let before = self.pieces.get(id);
        if before.map(|(_, version)| *version) != over {
            return Answer::Conflict;
        }
        if let Some((before, _)) = before {
            let (was, is) = (before.progress.position_ms, piece.progress.position_ms);
            assert!(is >= was, "{id} moves back from {was} to {is}");
            assert_ne!(before.state, PieceState::Done, "{id} was done");
        }
        let is_settled = |event: i64| !has(piece, event) || self.settled[place(event)];
        let reached = piece.progress.position_ms;
        assert!(
            (piece.from_ms..reached).all(is_settled),
            "{id} at {reached}"
        );
        if piece.state == PieceState::Done {
            assert!((piece.from_ms..piece.to_ms).all(is_settled), "{id} is done");
        }
        for mark in &piece.progress.chunks {
            let mut events =
                (piece.from_ms..piece.to_ms).filter(|event| chunk(*event) == mark.chunk);
            assert!(events.all(is_settled), "{id} with {}", mark.chunk);
        }
        self.seq_no += 1;
        let version = Version {
            seq_no: self.seq_no,
            primary_term: 1,
        };
        self.pieces.insert(id.to_owned(), (piece.clone(), version));
        Answer::Written(version)
    }

    fn carry_out(&mut self, request: &Request) -> Answer {
        match request {
            Request::Write { id, piece, over } => self.write(id, piece, *over),
            Request::Look(id) => match self.pieces.get(id) {
                Some((piece, version)) => Answer::Found(Box::new(piece.clone()), *version),
                None => Answer::Missing,
            },
            Request::List => {
                let count = |state| {
                    let pieces = self.shown.values();
                    pieces.filter(|(piece, _)| piece.state == state).count() as u64
                };
                let open = self.shown.iter();
                let open = open.filter(|(_, (piece, _))| piece.state != PieceState::Done);
                Answer::Listed(Box::new(Listing {
                    pieces: open
                        .map(|(id, (piece, version))| (id.clone(), piece.clone(), *version))
                        .collect(),
                    n_pieces: self.shown.len() as u64,
                    n_done: count(PieceState::Done),
                    n_leased: count(PieceState::Leased),
                    ..Listing::default()
                }))
            }
        }
    }
}

fn place(event: i64) -> usize {
    usize::try_from(event).expect("events begin at 0")
}

fn chunk(event: i64) -> String {
    format!("{}-{}", event / PIECE, event % CHUNKS)
}

fn has(piece: &Piece, event: i64) -> bool {
    (piece.from_ms..piece.to_ms).contains(&event) && piece.part.has(&chunk(event))
}

/// Work on a piece, by what this process knows: what it has been told, and what it has done.
struct Work {
    piece: Piece,
    /// Its events that are to be read, oldest first.
    left: Vec<i64>,
    by_export: bool,
}

impl Work {
    fn begin(piece: Piece, by_export: bool) -> Self {
        let is_marked = |event: i64| {
            let mut marks = piece.progress.chunks.iter();
            marks.any(|mark| mark.chunk == chunk(event))
        };
        // A search knows neither parts nor what has been read of chunks.
        let left = if by_export {
            (piece.from_ms..piece.to_ms)
                .filter(|event| has(&piece, *event) && !is_marked(*event))
                .filter(|event| *event >= piece.progress.position_ms)
                .collect()
        } else {
            (piece.progress.position_ms..piece.to_ms).collect()
        };
        Self {
            piece,
            left,
            by_export,
        }
    }

    fn progress(&self) -> Progress {
        let position_ms = self.left.first().copied().unwrap_or(self.piece.to_ms);
        let mut chunks = Vec::new();
        if self.by_export {
            let span = self.piece.from_ms..self.piece.to_ms;
            let mut names: Vec<_> = span
                .filter(|event| has(&self.piece, *event))
                .map(chunk)
                .collect();
            names.sort();
            names.dedup();
            names.retain(|name| self.left.iter().all(|event| chunk(*event) != *name));
            chunks = names
                .into_iter()
                .map(|chunk| ChunkMark {
                    day: 0,
                    chunk,
                    cursor: None,
                })
                .collect();
        }
        Progress {
            position_ms,
            chunks,
        }
    }

    /// How it is cut; it may turn out to be too small for that.
    fn cut(&self) -> Cut {
        match self.by_export {
            true => Cut::Chunks(2),
            false => Cut::Time(2),
        }
    }
}

/// A process: the worker, its clock, and the work on a piece.
struct Process {
    worker: Worker,
    /// Of its clock, in thousandths of the true one.
    rate: u64,
    offset: u64,
    asked: Option<(u64, Request, u64)>,
    work: Option<Work>,
    by_export: bool,
    ended: Option<Ended>,
    hangs_until: u64,
    dead: bool,
}

impl Process {
    fn clock(&self, now: u64) -> Duration {
        Duration::from_millis(self.offset + now * self.rate / 1000)
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A worker's turn.
    Turn(usize),
    /// A request arrives.
    Arrive(usize, u64),
    /// Its answer does.
    Answer(usize, u64),
    Refresh,
}

struct World {
    random: Random,
    store: Store,
    processes: Vec<Process>,
    /// Requests that were sent and have not arrived, and answers on their way.
    requests: BTreeMap<u64, Request>,
    answers: BTreeMap<u64, Answer>,
    queue: BinaryHeap<Reverse<(u64, u64, Event)>>,
    serial: u64,
    takeovers: u32,
    /// By time, and by chunks.
    cuts: [u32; 2],
}

impl World {
    fn at(&mut self, time: u64, event: Event) {
        self.serial += 1;
        self.queue.push(Reverse((time, self.serial, event)));
    }

    fn join(&mut self, now: u64) {
        let n = self.processes.len();
        let planned = (EVENTS / PIECE).unsigned_abs();
        let (rate, offset) = (900 + self.random.below(200), self.random.below(1_000_000));
        self.processes.push(Process {
            worker: Worker::new(format!("{n}"), format!("w{n}"), planned, RULES),
            rate,
            offset,
            asked: None,
            work: None,
            by_export: self.random.one_in(2),
            ended: None,
            hangs_until: 0,
            dead: false,
        });
        self.at(now + 1, Event::Turn(n));
    }

    fn turn(&mut self, n: usize, now: u64) {
        let breaks = now < PEACE;
        let process = &mut self.processes[n];
        if process.dead || process.ended.is_some() {
            return;
        }
        if now < process.hangs_until {
            let then = process.hangs_until;
            return self.at(then, Event::Turn(n));
        }
        let clock = process.clock(now);
        if breaks {
            match self.random.below(400) {
                0 => {
                    process.dead = true;
                    return self.join(now + 50);
                }
                1 => {
                    // Longer than a lease.
                    process.hangs_until = now + 300 + self.random.below(2_000);
                    let then = process.hangs_until;
                    return self.at(then, Event::Turn(n));
                }
                2 => {
                    if let Some(work) = process.work.take() {
                        process.worker.progress(work.progress(), Tally::default());
                        process.worker.finished(Finish::Back, clock);
                    }
                    process.worker.leave(clock);
                    self.join(now + 20);
                }
                _ => {}
            }
        }
        self.work(n, now);
        let process = &mut self.processes[n];
        if process.asked.is_none() {
            match process.worker.next(clock) {
                Next::Work(piece) => {
                    self.takeovers += piece.taken_over;
                    process.work = Some(Work::begin(piece, process.by_export));
                }
                Next::GiveUp => process.work = None,
                Next::Wait(_) => {}
                Next::Ended(ended) => {
                    if let Ended::Complete(_) = ended {
                        assert!(self.store.settled.iter().all(|settled| *settled));
                    }
                    process.ended = Some(ended);
                    return;
                }
                Next::Ask(request) => self.send(n, now, request),
            }
        }
        let soon = now + 1 + self.random.below(12);
        self.at(soon, Event::Turn(n));
    }

    /// Events settle in any order; the position follows the unbroken part.
    fn work(&mut self, n: usize, now: u64) {
        let process = &mut self.processes[n];
        let clock = process.clock(now);
        let Some(work) = &mut process.work else {
            return;
        };
        if !work.left.is_empty() {
            let place_of_one = self.random.below(work.left.len() as u64);
            let event = work.left.remove(usize::try_from(place_of_one).unwrap());
            self.store.settled[place(event)] = true;
        }
        process.worker.progress(work.progress(), Tally::default());
        if work.left.is_empty() {
            process.work = None;
            process.worker.finished(Finish::Done, clock);
        } else if self.random.one_in(60) {
            let cut = work.cut();
            self.cuts[usize::from(work.by_export)] += 1;
            process.work = None;
            process.worker.finished(Finish::Cut(cut), clock);
        }
    }

    fn send(&mut self, n: usize, now: u64, request: Request) {
        let breaks = now < PEACE;
        self.serial += 1;
        let number = self.serial;
        let late = if breaks && self.random.one_in(15) {
            self.random.below(1_500)
        } else {
            self.random.below(15)
        };
        self.processes[n].asked = Some((number, request.clone(), now));
        // Lost on the way there.
        if !(breaks && self.random.one_in(12)) {
            self.requests.insert(number, request);
            self.at(now + 1 + late, Event::Arrive(n, number));
        }
        // Whoever waits gives up at some time, which is the answer if there is none before.
        self.at(now + 400, Event::Answer(n, number));
    }

    fn run(&mut self) {
        while let Some(Reverse((now, _, event))) = self.queue.pop() {
            assert!(now < END, "it does not end");
            match event {
                Event::Turn(n) => self.turn(n, now),
                Event::Arrive(n, number) => {
                    let request = self.requests.remove(&number).expect("it was sent");
                    let answer = self.store.carry_out(&request);
                    // Lost on the way back.
                    if now >= PEACE || !self.random.one_in(12) {
                        self.answers.insert(number, answer);
                        let then = now + 1 + self.random.below(15);
                        self.at(then, Event::Answer(n, number));
                    }
                }
                // Whoever hangs does not even hear of it.
                Event::Answer(n, number) if now < self.processes[n].hangs_until => {
                    let then = self.processes[n].hangs_until;
                    self.at(then, Event::Answer(n, number));
                }
                Event::Answer(n, number) => {
                    let answer = self.answers.remove(&number).unwrap_or(Answer::Unknown);
                    let process = &mut self.processes[n];
                    if let Some((asked, request, sent)) = process.asked.take() {
                        if asked == number {
                            let (sent, clock) = (process.clock(sent), process.clock(now));
                            process.worker.answered(&request, sent, clock, answer);
                        } else {
                            process.asked = Some((asked, request, sent));
                        }
                    }
                }
                Event::Refresh => {
                    self.store.shown = self.store.pieces.clone();
                    let all_ended = |process: &Process| process.dead || process.ended.is_some();
                    if !self.processes.iter().all(all_ended) {
                        let then = now + 1 + self.random.below(120);
                        self.at(then, Event::Refresh);
                    }
                }
            }
        }
    }
}

/// The world at its end.
fn simulate(seed: u64) -> World {
    let mut world = World {
        random: Random::new(seed),
        store: Store::default(),
        processes: Vec::new(),
        requests: BTreeMap::new(),
        answers: BTreeMap::new(),
        queue: BinaryHeap::new(),
        serial: 0,
        takeovers: 0,
        cuts: [0; 2],
    };
    world.store.settled = vec![false; place(EVENTS)];
    for from_ms in (0..EVENTS).step_by(usize::try_from(PIECE).unwrap()) {
        let piece = Piece::new("s", from_ms, from_ms + PIECE);
        world.store.write(&piece.id(), &piece, None);
    }
    for _ in 0..=world.random.below(4) {
        world.join(0);
    }
    world.at(1, Event::Refresh);
    world.run();
    let complete = |process: &&Process| matches!(process.ended, Some(Ended::Complete(_)));
    assert!(world.processes.iter().any(|process| complete(&process)));
    let pieces = world.store.pieces.values().map(|(piece, _)| piece);
    let (done, open): (Vec<_>, Vec<_>) = pieces.partition(|piece| piece.state == PieceState::Done);
    for event in 0..EVENTS {
        assert!(
            done.iter().any(|piece| has(piece, event)),
            "{event} is in none"
        );
    }
    // Whoever wanted to cut a piece had lost it, and the request for a part came when all was done.
    assert!(open.iter().all(|piece| piece.state == PieceState::Open));
    world
}

#[test]
fn whatever_breaks_each_piece_is_done_once_all_of_it_is_settled() {
    let (mut takeovers, mut most) = (0, 0);
    let mut cuts = [0; 2];
    for seed in 0..4_000 {
        // Its number is in the output of a failure.
        println!("seed {seed}");
        let world = simulate(seed);
        takeovers += world.takeovers;
        most = most.max(world.processes.len());
        cuts = [0, 1].map(|by| cuts[by] + world.cuts[by]);
    }
    assert!(takeovers > 4_000, "{takeovers} leases ended too soon");
    assert!(most > 5, "{most} workers");
    assert!(cuts.iter().all(|n_cuts| *n_cuts > 1_000), "{cuts:?} cuts");
}

#[test]
fn a_share_is_cut_at_multiples_of_its_pieces() {
    let share = super::Share {
        name: "s".into(),
        state: super::ShareState::Planning,
        cluster: "c".into(),
        from_ms: DAY_MS / 2,
        to_ms: 3 * DAY_MS + 1,
        first_ms: DAY_MS / 2,
        piece_ms: DAY_MS,
        filters: String::new(),
        index: String::new(),
        schema: String::new(),
        planned: 0,
        made_by: String::new(),
    };
    let pieces = share.pieces();
    let spans: Vec<_> = pieces.iter().map(|p| (p.from_ms, p.to_ms)).collect();
    assert_eq!(
        spans,
        [
            (DAY_MS / 2, DAY_MS),
            (DAY_MS, 2 * DAY_MS),
            (2 * DAY_MS, 3 * DAY_MS),
            (3 * DAY_MS, 3 * DAY_MS + 1)
        ]
    );
}
