//! Candidates on a store that keeps its promise over a network that keeps none: requests are lost
//! before or after they were carried out, or carried out late; processes hang, die, leave and
//! join; no two clocks agree.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use super::Head;
use super::candidate::{Answer, Candidate, Ended, Next, Request, Rules};
use crate::demo::events::random::Random;
use crate::share::Version;

const RULES: Rules = Rules {
    lease: Duration::from_millis(800),
    publish: Duration::from_millis(200),
    poll: Duration::from_millis(40),
};
/// How clocks run, in thousandths of the true one: as differently as may be.
const RATES: [u64; 3] = [955, 1000, 1045];
const SEEDS: u64 = 3_000;
/// Until then things break, ms.
const PEACE: u64 = 12_000;
const END: u64 = 20_000;

/// A state: which one it is. What it was made from is known to the world.
type State = u64;

/// A process: the candidate, its clock, and the state that it works on.
struct Process {
    candidate: Candidate<Content>,
    /// Of its clock, in thousandths of the true one.
    rate: u64,
    offset: u64,
    asked: Option<(u64, Request<Content>, u64)>,
    works_on: Option<State>,
    hangs_until: u64,
    dead: bool,
    ended: bool,
}

/// As in a document, by name.
#[derive(Clone, Debug, Default, PartialEq)]
struct Content(State);

impl Process {
    fn clock(&self, now: u64) -> Duration {
        Duration::from_millis(self.offset + now * self.rate / 1000)
    }

    /// What whoever sends for it asks each time.
    fn may_send(&self, now: u64) -> bool {
        let until = self.candidate.valid_until();
        let is_alive = !self.dead && !self.ended && self.works_on.is_some();
        is_alive && until.is_some_and(|until| self.clock(now) < until)
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A process has its turn.
    Turn(usize),
    /// A request arrives.
    Arrive(usize, u64),
    /// Its answer does.
    Answer(usize, u64),
}

struct World {
    random: Random,
    /// From then on nothing breaks any more.
    peace: u64,
    head: Option<(Head<Content>, Version)>,
    /// What each state was made from.
    made_from: Vec<State>,
    processes: Vec<Process>,
    requests: BTreeMap<u64, Request<Content>>,
    answers: BTreeMap<u64, Answer<Content>>,
    queue: BinaryHeap<Reverse<(u64, u64, Event)>>,
    serial: u64,
    /// When somebody last might send.
    led_at: u64,
    longest_pause: u64,
    leads: u64,
}

impl World {
    fn new(seed: u64, peace: u64) -> Self {
        Self {
            random: Random::new(seed),
            peace,
            head: None,
            made_from: vec![0],
            processes: Vec::new(),
            requests: BTreeMap::new(),
            answers: BTreeMap::new(),
            queue: BinaryHeap::new(),
            serial: 0,
            led_at: 0,
            longest_pause: 0,
            leads: 0,
        }
    }

    fn at(&mut self, time: u64, event: Event) {
        self.serial += 1;
        self.queue.push(Reverse((time, self.serial, event)));
    }

    fn join(&mut self, now: u64) {
        let n = self.processes.len();
        let rate = RATES[usize::try_from(self.random.below(3)).unwrap()];
        let offset = self.random.below(1_000_000);
        self.processes.push(Process {
            candidate: Candidate::new(format!("{n}"), format!("c{n}"), RULES),
            rate,
            offset,
            asked: None,
            works_on: None,
            hangs_until: 0,
            dead: false,
            ended: false,
        });
        self.at(now + 1, Event::Turn(n));
    }

    fn descends(&self, mut state: State, from: State) -> bool {
        while state > from {
            state = self.made_from[usize::try_from(state).unwrap()];
        }
        state == from
    }

    fn carry_out(&mut self, request: &Request<Content>) -> Answer<Content> {
        let (head, over) = match request {
            Request::Look => {
                return match &self.head {
                    Some((head, version)) => Answer::Found(Box::new(head.clone()), *version),
                    None => Answer::Missing,
                };
            }
            Request::Write { head, over } => (head, over),
        };
        if self.head.as_ref().map(|(_, version)| *version) != *over {
            return Answer::Conflict;
        }
        let before = self.head.as_ref().map_or(0, |(head, _)| head.content.0);
        let is = head.content.0;
        assert!(self.descends(is, before), "{is} forgets {before}");
        self.serial += 1;
        let version = Version {
            seq_no: self.serial,
            primary_term: 1,
        };
        self.head = Some(((**head).clone(), version));
        Answer::Written(version)
    }

    fn turn(&mut self, n: usize, now: u64) {
        let process = &mut self.processes[n];
        if process.dead || process.ended {
            return;
        }
        if now < process.hangs_until {
            let then = process.hangs_until;
            return self.at(then, Event::Turn(n));
        }
        let clock = process.clock(now);
        if now < self.peace {
            match self.random.below(600) {
                0 => {
                    process.dead = true;
                    return self.join(now + 30);
                }
                1 => {
                    // Often longer than a lease.
                    process.hangs_until = now + 100 + self.random.below(2_500);
                    let then = process.hangs_until;
                    return self.at(then, Event::Turn(n));
                }
                2 => {
                    match process.works_on.take() {
                        Some(_) => process.candidate.release(clock),
                        None => process.candidate.leave(),
                    }
                    self.join(now + 20);
                }
                _ => {}
            }
        }
        let process = &mut self.processes[n];
        if process.may_send(now) && self.random.one_in(3) {
            // It has settled something.
            let state = self.made_from.len() as u64;
            let before = process.works_on.replace(state).unwrap();
            self.made_from.push(before);
            let number = process.candidate.publish(Content(state));
            assert!(!process.candidate.is_written(number.unwrap()));
        }
        if process.asked.is_none() {
            match process.candidate.next(clock) {
                Next::Lead(head) => {
                    // Nobody else can have written since.
                    process.works_on = Some(head.content.0);
                    self.leads += 1;
                }
                Next::Stop => process.works_on = None,
                Next::Wait(_) => {}
                Next::Ended(ended) => {
                    assert_eq!(ended, Ended::Left);
                    assert!(process.works_on.is_none());
                    process.ended = true;
                }
                Next::Ask(request) => self.ask(n, now, request),
            }
        }
        let pause = 1 + self.random.below(20);
        self.at(now + pause, Event::Turn(n));
    }

    fn ask(&mut self, n: usize, now: u64, request: Request<Content>) {
        self.serial += 1;
        let id = self.serial;
        let process = &mut self.processes[n];
        process.asked = Some((id, request.clone(), now));
        self.requests.insert(id, request);
        let breaks = now < self.peace;
        let there = 1 + self.random.below(10);
        match self.random.below(12) {
            // Lost on its way.
            0 if breaks => {}
            // Carried out much later, when nobody waits for it.
            1 if breaks => {
                let late = there + self.random.below(3_000);
                self.at(now + late, Event::Arrive(n, id));
            }
            _ => self.at(now + there, Event::Arrive(n, id)),
        }
        // Whoever asked gives up waiting.
        self.answers.insert(id, Answer::Unknown);
        self.at(now + 150, Event::Answer(n, id));
    }

    fn arrive(&mut self, n: usize, id: u64, now: u64) {
        let request = self.requests.remove(&id).unwrap();
        let answer = self.carry_out(&request);
        if now < self.peace && self.random.one_in(12) {
            return;
        }
        let back = 1 + self.random.below(10);
        if let Some(place) = self.answers.get_mut(&id) {
            *place = answer;
            self.at(now + back, Event::Answer(n, id));
        }
    }

    fn answer(&mut self, n: usize, id: u64, now: u64) {
        let process = &mut self.processes[n];
        if !process.dead && now < process.hangs_until {
            let then = process.hangs_until;
            return self.at(then, Event::Answer(n, id));
        }
        let Some(answer) = self.answers.remove(&id) else {
            return;
        };
        let clock = process.clock(now);
        if let Some((_, request, sent)) = process.asked.take_if(|(asked, ..)| *asked == id) {
            let sent = process.clock(sent);
            process.candidate.answered(&request, sent, clock, answer);
        }
    }

    fn run(mut self, seed: u64) -> Self {
        for _ in 0..3 {
            self.join(0);
        }
        while let Some(Reverse((now, _, event))) = self.queue.pop() {
            if now > END {
                break;
            }
            match event {
                Event::Turn(n) => self.turn(n, now),
                Event::Arrive(n, id) => self.arrive(n, id, now),
                Event::Answer(n, id) => self.answer(n, id, now),
            }
            let senders = self
                .processes
                .iter()
                .filter(|process| process.may_send(now));
            let senders = senders.count();
            assert!(senders <= 1, "seed {seed}: {senders} may send at {now} ms");
            if senders == 1 {
                self.longest_pause = self.longest_pause.max(now - self.led_at);
                self.led_at = now;
            }
        }
        assert!(self.led_at + 1_500 > END, "seed {seed}: nobody leads");
        self
    }
}

#[test]
fn one_leads_at_a_time_and_nothing_that_was_written_is_forgotten() {
    let (mut leads, mut states) = (0, 0);
    for seed in 0..SEEDS {
        let world = World::new(seed, PEACE).run(seed);
        leads += world.leads;
        states += world.made_from.len() as u64;
    }
    // Leads change hands, and the state goes on.
    assert!(leads > 5 * SEEDS, "{leads}");
    assert!(states > 100 * SEEDS, "{states}");
}

/// Without faults of the network, a leader that dies is followed within its lease and the tenth by the
/// slowest clock, and two looks.
#[test]
fn another_takes_over_in_time() {
    for (dies, longest) in [(true, 880 * 1000 / 955 + 2 * 40 + 80), (false, 40 + 80)] {
        for seed in 0..100 {
            let mut world = World::new(seed, 0);
            world.join(0);
            world.join(0);
            let (mut ended_at, mut first) = (None, None);
            let taken_at = loop {
                let Reverse((now, _, event)) = world.queue.pop().unwrap();
                match event {
                    Event::Turn(n) => world.turn(n, now),
                    Event::Arrive(n, id) => world.arrive(n, id, now),
                    Event::Answer(n, id) => world.answer(n, id, now),
                }
                let leads = |p: &Process| p.may_send(now);
                let leader = world.processes.iter().position(leads);
                match (leader, ended_at) {
                    (Some(leader), None) if now > 5_000 => {
                        ended_at = Some(now);
                        first = Some(leader);
                        let process = &mut world.processes[leader];
                        if dies {
                            process.dead = true;
                        } else {
                            process.works_on = None;
                            process.candidate.release(process.clock(now));
                        }
                    }
                    (Some(leader), Some(_)) if Some(leader) != first => break now,
                    _ => {}
                }
            };
            let pause = taken_at - ended_at.unwrap();
            assert!(pause <= longest, "seed {seed}: {pause} ms");
        }
    }
}

#[test]
fn a_state_that_is_gone_is_no_new_one() {
    let mut candidate: Candidate<Content> = Candidate::new("a".into(), "n".into(), RULES);
    let now = Duration::ZERO;
    let Next::Ask(look) = candidate.next(now) else {
        panic!("it looks first");
    };
    let head = Head {
        leader: Some("b".into()),
        claim: Some("b-1".into()),
        lease_ms: 800,
        taken_over: 0,
        content: Content(1),
    };
    let version = Version {
        seq_no: 1,
        primary_term: 1,
    };
    candidate.answered(&look, now, now, Answer::Found(Box::new(head), version));
    let now = RULES.poll;
    let Next::Ask(look) = candidate.next(now) else {
        panic!("it looks again");
    };
    candidate.answered(&look, now, now, Answer::Missing);
    assert_eq!(candidate.next(now), Next::Ended(Ended::Gone));
}
