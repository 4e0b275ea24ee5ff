//! What one daemon does next to lead, or to wait for its turn. Pure: it is told what time it is and
//! what was answered.

use std::time::Duration;

use super::{Head, has_ended};
use crate::share::Version;

/// How many times a lease is renewed before it would end.
const RENEWALS: u32 = 3;

/// How patient candidates are.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// How long a lease lasts. Too short: a pause of the network costs the lead. Too long: the log
    /// stands still for so long when a leader has died.
    pub lease: Duration,
    /// News of the state are written this far apart at least. Less costs Elasticsearch; more is read
    /// again when a leader has died.
    pub publish: Duration,
    /// How often those who wait look.
    pub poll: Duration,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Next<P> {
    /// Send this, and tell what was answered.
    Ask(Request<P>),
    /// Nothing until then, unless something happens.
    Wait(Duration),
    /// Begin to work on this state.
    Lead(Box<Head<P>>),
    /// The lease is over: send nothing more, and end the work.
    Stop,
    /// There is nothing left to do.
    Ended(Ended),
}

/// Why a candidate has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to leave.
    Left,
    /// The state was there, and is no more.
    Gone,
}

/// What is asked of Elasticsearch.
#[derive(Clone, Debug, PartialEq)]
pub enum Request<P> {
    /// Get the head as it is at this moment.
    Look,
    /// Write it.
    Write {
        /// What it becomes.
        head: Box<Head<P>>,
        /// What it replaces; `None`: it must not be there.
        over: Option<Version>,
    },
}

/// What was answered.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer<P> {
    /// To [`Request::Look`].
    Found(Box<Head<P>>, Version),
    /// To [`Request::Look`]: there is none.
    Missing,
    /// To [`Request::Write`].
    Written(Version),
    /// To [`Request::Write`]: there is a newer version, or none any more.
    Conflict,
    /// It may have been carried out or not.
    Unknown,
}

/// One process that may lead.
#[derive(Debug)]
pub struct Candidate<P> {
    /// For people.
    owner: String,
    /// No other process has it.
    nonce: String,
    rules: Rules,
    n_claims: u64,
    /// The version seen last, and when it was first seen.
    watched: Option<(Version, Duration)>,
    has_seen: bool,
    look_at: Duration,
    held: Option<Held<P>>,
    failures: u32,
    leaving: bool,
    ended: Option<Ended>,
}

#[derive(Debug)]
struct Held<P> {
    /// As it is written next.
    head: Head<P>,
    over: Option<Version>,
    goal: Goal,
    /// From then on others may take it.
    valid_until: Duration,
    /// When the last write was sent that was answered.
    sent: Duration,
    /// Not before this.
    again: Duration,
    /// A write was refused: whose is the document?
    look: bool,
    begun: bool,
    /// How many contents were published, how many of them when the last write was made, and
    /// how many Elasticsearch is known to have.
    n_published: u64,
    n_asked: u64,
    n_written: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    Claim,
    Lead,
    Release,
}

impl<P: Clone + Default> Candidate<P> {
    /// A process that leads as soon as nobody else does. `nonce` is random.
    pub fn new(owner: String, nonce: String, rules: Rules) -> Self {
        Self {
            owner,
            nonce,
            rules,
            n_claims: 0,
            watched: None,
            has_seen: false,
            look_at: Duration::ZERO,
            held: None,
            failures: 0,
            leaving: false,
            ended: None,
        }
    }

    /// What to do at `now`, a time of this machine's monotonic clock.
    pub fn next(&mut self, now: Duration) -> Next<P> {
        if let Some(held) = &mut self.held {
            if now < held.valid_until {
                return held.next(now, &self.rules);
            }
            let was_leading = held.begun;
            self.let_go(now);
            if was_leading {
                return Next::Stop;
            }
        }
        if self.leaving {
            return Next::Ended(self.ended.unwrap_or(Ended::Left));
        }
        match self.ended {
            Some(ended) => Next::Ended(ended),
            None if now < self.look_at => Next::Wait(self.look_at),
            None => Next::Ask(Request::Look),
        }
    }

    /// Takes the answer to a request that was sent at `sent`.
    pub fn answered(
        &mut self,
        request: &Request<P>,
        sent: Duration,
        now: Duration,
        answer: Answer<P>,
    ) {
        match answer {
            Answer::Unknown => self.failures = self.failures.saturating_add(1),
            _ => self.failures = 0,
        }
        let again = now + self.pause();
        match request {
            Request::Look if self.held.is_some() => self.looked(now, again, answer),
            Request::Look => self.seen(now, again, answer),
            Request::Write { head, .. } => {
                let is_release = head.claim.is_none();
                self.written(is_release, sent, now, again, answer);
            }
        }
    }

    /// Writes this soon; the number by which [`Candidate::is_written`] knows it. `None` if the lease
    /// is lost.
    pub fn publish(&mut self, content: P) -> Option<u64> {
        let held = self.held.as_mut()?;
        held.head.content = content;
        held.n_published += 1;
        Some(held.n_published)
    }

    /// The number of what was published last.
    pub fn published(&self) -> Option<u64> {
        self.held.as_ref().map(|held| held.n_published)
    }

    /// Whether Elasticsearch has what was published under this number, or something newer.
    pub fn is_written(&self, number: u64) -> bool {
        let held = self.held.as_ref();
        held.is_some_and(|held| held.n_written >= number)
    }

    /// Until when this process may send; `None`: it does not lead.
    pub fn valid_until(&self) -> Option<Duration> {
        let held = self.held.as_ref().filter(|held| held.begun);
        held.map(|held| held.valid_until)
    }

    /// Ends, once a claim that may be under way is given back. One that leads ends its work first,
    /// and then calls [`Candidate::release`].
    pub fn leave(&mut self) {
        self.leaving = true;
        if let Some(held) = &mut self.held
            && !held.begun
        {
            held.goal = Goal::Release;
        }
    }

    /// Gives the lead back, with what was published last; the work has ended.
    pub fn release(&mut self, now: Duration) {
        self.leaving = true;
        if let Some(held) = &mut self.held {
            held.goal = Goal::Release;
            held.again = now;
        }
    }

    fn let_go(&mut self, now: Duration) {
        self.held = None;
        self.watched = None;
        self.look_at = now;
    }

    fn pause(&self) -> Duration {
        let pause = self.rules.poll / 8 * (1 << self.failures.min(3));
        pause.min(self.rules.poll)
    }

    /// Somebody else's head, or nobody's.
    fn seen(&mut self, now: Duration, again: Duration, answer: Answer<P>) {
        let (head, version) = match answer {
            Answer::Found(head, version) => (head, version),
            Answer::Missing if self.has_seen => {
                self.ended = Some(Ended::Gone);
                return;
            }
            Answer::Missing => {
                self.claim(Head::default(), None, now);
                return;
            }
            _ => {
                self.look_at = again;
                return;
            }
        };
        self.has_seen = true;
        let seen = self.watched.filter(|(seen, _)| *seen == version);
        let (_, since) = *self.watched.insert(seen.unwrap_or((version, now)));
        let has_ended = has_ended(now.saturating_sub(since), head.lease_ms);
        if self.leaving {
            // It does not begin what it would have to give back.
        } else if head.claim.is_none() || has_ended {
            self.claim(*head, Some(version), now);
        } else {
            self.look_at = now + self.rules.poll;
        }
    }

    fn claim(&mut self, head: Head<P>, over: Option<Version>, now: Duration) {
        self.n_claims += 1;
        let lease = self.rules.lease;
        let taken_over = head
            .taken_over
            .saturating_add(u64::from(head.claim.is_some()));
        self.held = Some(Held {
            head: Head {
                leader: Some(self.owner.clone()),
                claim: Some(format!("{}-{}", self.nonce, self.n_claims)),
                lease_ms: u64::try_from(lease.as_millis()).unwrap_or(u64::MAX),
                taken_over,
                content: head.content,
            },
            over,
            goal: Goal::Claim,
            valid_until: now + lease,
            sent: now,
            again: now,
            look: false,
            begun: false,
            n_published: 0,
            n_asked: 0,
            n_written: 0,
        });
    }

    /// A write was answered.
    fn written(
        &mut self,
        is_release: bool,
        sent: Duration,
        now: Duration,
        again: Duration,
        answer: Answer<P>,
    ) {
        let Some(held) = &mut self.held else { return };
        match answer {
            Answer::Written(_) if is_release => {
                self.held = None;
                self.ended = Some(Ended::Left);
            }
            Answer::Written(version) => {
                self.has_seen = true;
                held.over = Some(version);
                held.n_written = held.n_asked;
                held.sent = sent;
                held.again = now;
                held.valid_until = sent + self.rules.lease;
                if held.goal == Goal::Claim {
                    held.goal = Goal::Lead;
                }
            }
            Answer::Conflict => {
                held.look = true;
                held.again = now;
            }
            _ => held.again = again,
        }
    }

    /// After a conflict: is it our own write that was not answered?
    fn looked(&mut self, now: Duration, again: Duration, answer: Answer<P>) {
        let Some(held) = &mut self.held else { return };
        match answer {
            Answer::Found(head, version) if head.claim == held.head.claim => {
                // As it was sent at an unknown time the lease is as long as it was.
                held.over = Some(version);
                held.look = false;
                held.again = now;
                held.sent = Duration::ZERO;
                if held.goal == Goal::Claim {
                    held.goal = Goal::Lead;
                }
            }
            // Another's, or given back as we wanted.
            Answer::Found(..) | Answer::Missing => held.valid_until = now,
            _ => held.again = again,
        }
    }
}

impl<P: Clone> Held<P> {
    fn next(&mut self, now: Duration, rules: &Rules) -> Next<P> {
        if self.goal == Goal::Lead && !self.begun {
            self.begun = true;
            return Next::Lead(Box::new(self.head.clone()));
        }
        let due = match self.goal {
            Goal::Lead if !self.look => {
                let has_news = self.n_published > self.n_written;
                let wait = match has_news {
                    true => rules.publish,
                    false => rules.lease / RENEWALS,
                };
                self.again.max(self.sent + wait)
            }
            _ => self.again,
        };
        if now < due {
            return Next::Wait(due.min(self.valid_until));
        }
        if self.look {
            return Next::Ask(Request::Look);
        }
        self.n_asked = self.n_published;
        let mut head = Box::new(self.head.clone());
        if self.goal == Goal::Release {
            (head.leader, head.claim) = (None, None);
        }
        Next::Ask(Request::Write {
            head,
            over: self.over,
        })
    }
}
