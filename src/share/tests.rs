//! Workers on a store that keeps its promises over a network that keeps none: requests are lost
//! before or after they were carried out, or carried out late; lists are old; workers hang, die,
//! leave and join; no two clocks agree. They read by search or by export, as it comes, and some are
//! of a version that knows nothing of parts of the chunks.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use super::cut::Cut;
use super::worker::{Answer, Ended, Finish, Next, Request, Rules, Worker};
use super::{ChunkMark, Listing, Piece, PieceState, Progress, Tally, Version};
use crate::demo::events::random::Random;
use crate::event::DAY_MS;
use crate::teleport::part::Part;

/// One event each millisecond of the audit log.
const EVENTS: i64 = 60;
const PIECE: i64 = 12;
/// Of a piece, before it is cut.
const CHUNKS: i64 = 7;
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
        let part = part_of(id);
        if before.map(|(_, version)| *version) != over {
            return Answer::Conflict;
        }
        if let Some((before, _)) = before {
            let (was, is) = (before.progress.position_ms, piece.progress.position_ms);
            assert!(is >= was, "{id} moves back from {was} to {is}");
            assert_ne!(before.state, PieceState::Done, "{id} was done");
        }
        let all_settled = |from, to| own(part, from, to).all(|event| self.settled[place(event)]);
        let reached = piece.progress.position_ms;
        assert!(all_settled(piece.from_ms, reached), "{id} at {reached}");
        if piece.state == PieceState::Done {
            assert!(all_settled(piece.from_ms, piece.to_ms), "{id} is done");
        }
        for mark in &piece.progress.chunks {
            let mut marked = (piece.from_ms..piece.to_ms).filter(|event| is_marked(mark, *event));
            let unsettled = marked.find(|event| !self.settled[place(*event)]);
            assert_eq!(unsettled, None, "{id} has {mark:?}");
            let is_own = part.has(&mark.chunk);
            assert!(over.is_some() || is_own, "{id} begins with {mark:?}");
        }
        let is_cut = before.is_some_and(|(before, _)| piece.to_ms < before.to_ms);
        self.seq_no += 1;
        let version = Version {
            seq_no: self.seq_no,
            primary_term: 1,
        };
        // As a document is: what stands in its id alone is not in it.
        let part = Part::WHOLE;
        let document = Piece {
            part,
            ..piece.clone()
        };
        self.pieces.insert(id.to_owned(), (document, version));
        if is_cut {
            assert_eq!(self.in_none(|_| true), None, "{id} was cut");
        }
        Answer::Written(version)
    }

    /// An event that is in none of these pieces.
    fn in_none(&self, is_meant: impl Fn(&Piece) -> bool) -> Option<i64> {
        let mut missing = vec![true; place(EVENTS)];
        for (id, (piece, _)) in &self.pieces {
            if is_meant(piece) {
                for event in own(part_of(id), piece.from_ms, piece.to_ms) {
                    missing[place(event)] = false;
                }
            }
        }
        (0..EVENTS).find(|event| missing[place(*event)])
    }

    fn carry_out(&mut self, request: &Request, knows_parts: bool) -> Answer {
        match request {
            Request::Write { id, piece, over } => self.write(id, piece, *over),
            Request::Look(id) => match self.pieces.get(id) {
                Some((piece, version)) => {
                    Answer::Found(Box::new(piece.clone().with_id(id)), *version)
                }
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
                        .map(|(id, (piece, version))| {
                            let mut piece = piece.clone();
                            if knows_parts {
                                piece = piece.with_id(id);
                            }
                            (id.clone(), piece, *version)
                        })
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
    format!("c{}", (event * 5 + event / 3) % CHUNKS)
}

fn day(event: i64) -> i32 {
    i32::try_from(event / PIECE).expect("there are few")
}

/// The part that a document is about, by its id.
fn part_of(id: &str) -> Part {
    Piece::new("s", 0, 0).with_id(id).part
}

/// Events of a span whose chunks are in a part.
fn own(part: Part, from: i64, to: i64) -> impl Iterator<Item = i64> {
    (from..to).filter(move |event| part.has(&chunk(*event)))
}

/// Where a mark says that an event is settled.
fn is_marked(mark: &ChunkMark, event: i64) -> bool {
    let is_before = |cursor: &String| event <= cursor.parse().expect("it is our own");
    mark.day == day(event)
        && mark.chunk == chunk(event)
        && mark.cursor.as_ref().is_none_or(is_before)
}

/// The work on a piece. It knows what is settled by what the piece says and what it has done.
struct Work {
    piece: Piece,
    by_export: bool,
    /// No session recordings are to be read, so that chunks are written down.
    marks_chunks: bool,
    known: Vec<bool>,
}

impl Work {
    fn begin(piece: Piece, random: &mut Random) -> Self {
        let by_export = !random.one_in(3);
        let marks = if by_export {
            &piece.progress.chunks[..]
        } else {
            &[]
        };
        let is_known = |event| {
            event < piece.progress.position_ms || marks.iter().any(|mark| is_marked(mark, event))
        };
        Self {
            known: (0..EVENTS).map(is_known).collect(),
            by_export,
            marks_chunks: !random.one_in(4),
            piece,
        }
    }

    fn own(&self) -> impl Iterator<Item = i64> {
        let part = if self.by_export {
            self.piece.part
        } else {
            Part::WHOLE
        };
        own(part, self.piece.from_ms, self.piece.to_ms)
    }

    fn open(&self) -> Vec<i64> {
        self.own()
            .filter(|event| !self.known[place(*event)])
            .collect()
    }

    /// Settles one event: by search any, by export the next of any chunk.
    fn settle(&mut self, random: &mut Random, settled: &mut [bool]) {
        let open = self.open();
        if open.is_empty() {
            return;
        }
        let any = usize::try_from(random.below(open.len() as u64)).expect("there are few");
        let next = open.iter().find(|event| chunk(**event) == chunk(open[any]));
        let event = if self.by_export {
            *next.expect("it is one itself")
        } else {
            open[any]
        };
        settled[place(event)] = true;
        self.known[place(event)] = true;
    }

    fn progress(&self) -> Progress {
        let open = self.open();
        let position_ms = match open.first() {
            None => self.piece.to_ms,
            Some(_) if self.by_export => self.piece.progress.position_ms,
            Some(event) => *event,
        };
        let mut chunks = Vec::new();
        if !self.marks_chunks {
            chunks.clone_from(&self.piece.progress.chunks);
        } else if self.by_export {
            // The last known one of each, up to the first open one.
            let mut marks: BTreeMap<(i32, String), Option<i64>> = BTreeMap::new();
            for event in self.own().filter(|event| self.known[place(*event)]) {
                marks.insert((day(event), chunk(event)), Some(event));
            }
            for event in &open {
                marks.entry((day(*event), chunk(*event))).or_insert(None);
            }
            let is_open = |key: &(i32, String)| {
                let mut open = open.iter();
                open.any(|event| (day(*event), chunk(*event)) == *key)
            };
            for (key, last) in marks {
                let cursor = is_open(&key).then_some(last);
                // Begun, or done.
                if cursor != Some(None) {
                    let cursor = cursor.flatten().map(|event| event.to_string());
                    let (day, chunk) = key;
                    chunks.push(ChunkMark { day, chunk, cursor });
                }
            }
        }
        Progress {
            position_ms,
            chunks,
        }
    }

    /// How it could be cut.
    fn cut(&self, knows_parts: bool) -> Option<Cut> {
        let open = self.open();
        let left_ms = self.piece.to_ms - open.first()?;
        let chunks: BTreeSet<_> = open.iter().map(|event| chunk(*event)).collect();
        if self.by_export {
            (knows_parts && chunks.len() > 1).then_some(Cut::Chunks(2))
        } else {
            (left_ms > 3).then_some(Cut::Time(2))
        }
    }
}

/// A process: the worker, its clock, and the work on a piece.
struct Process {
    worker: Worker,
    /// Its version does.
    knows_parts: bool,
    /// Of its clock, in thousandths of the true one.
    rate: u64,
    offset: u64,
    asked: Option<(u64, Request, u64)>,
    work: Option<Work>,
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
            knows_parts: !self.random.one_in(5),
            rate,
            offset,
            asked: None,
            work: None,
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
                    process.work = Some(Work::begin(piece, &mut self.random));
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

    fn work(&mut self, n: usize, now: u64) {
        let process = &mut self.processes[n];
        let clock = process.clock(now);
        let Some(work) = &mut process.work else {
            return;
        };
        work.settle(&mut self.random, &mut self.store.settled);
        let progress = work.progress();
        let is_done = progress.position_ms == work.piece.to_ms;
        process.worker.progress(progress, Tally::default());
        if is_done {
            process.work = None;
            process.worker.finished(Finish::Done, clock);
        } else if self.random.one_in(15)
            && let Some(cut) = work.cut(process.knows_parts)
        {
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
                    let answer = self
                        .store
                        .carry_out(&request, self.processes[n].knows_parts);
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

/// What there was.
#[derive(Default)]
struct Seen {
    takeovers: u32,
    workers: usize,
    /// Pieces that are parts of the chunks, and those that are parts of parts.
    parts: usize,
    finer: usize,
}

fn simulate(seed: u64) -> Seen {
    let mut world = World {
        random: Random::new(seed),
        store: Store::default(),
        processes: Vec::new(),
        requests: BTreeMap::new(),
        answers: BTreeMap::new(),
        queue: BinaryHeap::new(),
        serial: 0,
        takeovers: 0,
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
    let is_done = |piece: &Piece| piece.state == PieceState::Done;
    assert_eq!(world.store.in_none(is_done), None);
    // Open ones: whoever wanted to cut a piece had lost it, and the request for a part came when all was done.
    let mut pieces = world.store.pieces.values();
    assert!(pieces.all(|(piece, _)| matches!(piece.state, PieceState::Done | PieceState::Open)));
    let parts = world
        .store
        .pieces
        .keys()
        .map(|id| part_of(id))
        .filter(|part| !part.is_whole());
    let parts: Vec<_> = parts.map(|part| part.of).collect();
    Seen {
        takeovers: world.takeovers,
        workers: world.processes.len(),
        parts: parts.len(),
        finer: parts.into_iter().filter(|of| *of > 2).count(),
    }
}

#[test]
fn whatever_breaks_each_piece_is_done_once_all_of_it_is_settled() {
    let mut all = Seen::default();
    for seed in 0..4_000 {
        // Its number is in the output of a failure.
        println!("seed {seed}");
        let seen = simulate(seed);
        all.takeovers += seen.takeovers;
        all.workers = all.workers.max(seen.workers);
        all.parts += seen.parts;
        all.finer += seen.finer;
    }
    assert!(all.takeovers > 4_000, "{} leases ended", all.takeovers);
    assert!(all.workers > 5, "{} workers", all.workers);
    assert!(all.parts > 8_000, "{} parts of chunks", all.parts);
    assert!(all.finer > 1_000, "{} parts of parts", all.finer);
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
