//! What one worker does next. Pure: it is told what time it is and what was answered.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::cut::Cut;
use super::{Listing, Piece, PieceState, Progress, Tally, Version};

/// How many times a lease is renewed before it would end.
const RENEWALS: u32 = 3;

/// Clocks run at slightly different rates: nobody calls a lease ended before this share of it more.
const MARGIN: u32 = 10;

/// How patient workers are.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// How long a lease lasts at least. Too short: a pause of the machine costs the lease, and the
    /// work since the last progress is done twice. Too long: what a dead worker held waits.
    pub lease: Duration,
    /// All workers together claim a piece, and renew a lease, about this often at most.
    pub turn: Duration,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// Send this, and tell what was answered.
    Ask(Request),
    /// Nothing until then, unless something happens.
    Wait(Duration),
    /// Begin to work on this piece.
    Work(Piece),
    /// The lease is lost: end the work, and write nothing of it down.
    GiveUp,
    /// There is nothing left to do.
    Ended(Ended),
}

/// Why a worker has ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ended {
    /// All pieces are done.
    Complete(Tally),
    /// Somebody has given up the whole.
    Cancelled,
    /// It was told to leave.
    Left,
}

/// What is asked of Elasticsearch.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// Search for the share's pieces.
    List,
    /// Get one as it is at this moment.
    Look(String),
    /// Write one.
    Write {
        /// The document's id.
        id: String,
        /// What it becomes.
        piece: Box<Piece>,
        /// What it replaces; `None`: it must not be there.
        over: Option<Version>,
    },
}

/// What was answered.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// To [`Request::List`].
    Listed(Box<Listing>),
    /// To [`Request::Look`].
    Found(Box<Piece>, Version),
    /// To [`Request::Look`]: no such document.
    Missing,
    /// To [`Request::Write`].
    Written(Version),
    /// To [`Request::Write`]: there is a newer version.
    Conflict,
    /// It may have been carried out or not.
    Unknown,
}

/// How work on a piece has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// Everything in it is settled.
    Done,
    /// It goes back, for others to go on.
    Back,
    /// It is large: what is left of it becomes new ones.
    Cut(Cut),
}

/// One process that works on a share.
#[derive(Debug)]
pub struct Worker {
    /// For people.
    owner: String,
    /// No other process has it.
    nonce: String,
    rules: Rules,
    planned: u64,
    /// Leases when the pieces were last listed.
    n_leased: u64,
    n_claims: u64,
    /// Leased pieces: the version seen last, and when it was first seen.
    watched: HashMap<String, (Version, Duration)>,
    held: Option<Held>,
    seek_at: Duration,
    listed_at: Option<Duration>,
    failures: u32,
    leaving: bool,
    ended: Option<Ended>,
}

#[derive(Debug)]
struct Held {
    id: String,
    /// As it was last known to be, with the progress made since.
    piece: Piece,
    version: Version,
    goal: Goal,
    /// The next write.
    due: Duration,
    /// From then on others may take it.
    valid_until: Duration,
    since: Duration,
    /// A write was refused: whose is the document?
    look: bool,
    begun: bool,
    tally_before: Tally,
    worked_before_ms: u64,
    /// Of a cut, those that are not there yet.
    parts: VecDeque<Piece>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    Claim,
    Work,
    Done,
    Back,
}

impl Worker {
    /// A worker on a share that was cut into `planned` pieces at first. `nonce` is random.
    pub fn new(owner: String, nonce: String, planned: u64, rules: Rules) -> Self {
        Self {
            owner,
            nonce,
            rules,
            planned,
            n_leased: 0,
            n_claims: 0,
            watched: HashMap::new(),
            held: None,
            seek_at: Duration::ZERO,
            listed_at: None,
            failures: 0,
            leaving: false,
            ended: None,
        }
    }

    /// What to do at `now`, a time of this machine's monotonic clock.
    pub fn next(&mut self, now: Duration) -> Next {
        if let Some(held) = &mut self.held {
            if now < held.valid_until {
                return held.next(now);
            }
            let was_working = held.goal == Goal::Work && held.begun;
            self.let_go(now);
            if was_working {
                return Next::GiveUp;
            }
        }
        if self.leaving {
            return Next::Ended(self.ended.unwrap_or(Ended::Left));
        }
        match self.ended {
            Some(ended) => Next::Ended(ended),
            None if now < self.seek_at => Next::Wait(self.seek_at),
            None => Next::Ask(Request::List),
        }
    }

    /// Takes the answer to a request that was sent at `sent`. Where the lease turns out to be lost
    /// the next thing to do is [`Next::GiveUp`].
    pub fn answered(&mut self, request: &Request, sent: Duration, now: Duration, answer: Answer) {
        match answer {
            Answer::Unknown => self.failures = self.failures.saturating_add(1),
            _ => self.failures = 0,
        }
        let again = now + self.pause();
        match (request, answer) {
            (Request::List, Answer::Listed(listing)) => {
                self.listed_at = Some(now);
                self.seen(*listing, now);
            }
            (Request::List, _) => self.seek_at = again,
            (Request::Look(_), answer) => self.looked(now, again, answer),
            (Request::Write { over: None, .. }, answer) => {
                let Some(held) = &mut self.held else { return };
                match answer {
                    // One with the same id covers the same.
                    Answer::Written(_) | Answer::Conflict => drop(held.parts.pop_front()),
                    _ => held.due = again,
                }
            }
            (Request::Write { over: Some(_), .. }, answer) => {
                self.written(sent, now, again, answer)
            }
        }
    }

    /// How far the work on the held piece has come, and what has become of its events since it
    /// was begun.
    pub fn progress(&mut self, progress: Progress, tally: Tally) {
        if let Some(held) = &mut self.held
            && held.goal == Goal::Work
        {
            if progress.position_ms >= held.piece.progress.position_ms {
                held.piece.progress = progress;
            }
            held.piece.tally = held.tally_before.plus(tally);
        }
    }

    /// The work on the held piece has ended.
    pub fn finished(&mut self, finish: Finish, now: Duration) {
        let Some(held) = &mut self.held else { return };
        held.due = now;
        held.goal = match finish {
            Finish::Back => Goal::Back,
            Finish::Done => {
                held.piece.progress = Progress {
                    position_ms: held.piece.to_ms,
                    chunks: Vec::new(),
                };
                Goal::Done
            }
            Finish::Cut(cut) if held.cut(cut) => Goal::Done,
            Finish::Cut(_) => Goal::Back,
        };
    }

    /// Ends once the piece that it holds, if any, is given back. Work on it is to be ended first.
    pub fn leave(&mut self, now: Duration) {
        self.leaving = true;
        if let Some(held) = &mut self.held
            && (held.goal == Goal::Claim || !held.begun)
        {
            held.goal = Goal::Back;
            held.due = now;
        }
    }

    /// The piece that it holds, as it is known.
    pub fn held(&self) -> Option<&Piece> {
        self.held.as_ref().map(|held| &held.piece)
    }

    fn let_go(&mut self, now: Duration) {
        self.held = None;
        // In turn with the others, however small the pieces are.
        self.seek_at = self
            .listed_at
            .map_or(now, |listed| now.max(listed + self.turn()));
    }

    /// How long one of so many workers waits for its turn.
    fn turn(&self) -> Duration {
        let n_workers = u32::try_from(self.n_leased.max(1)).unwrap_or(u32::MAX);
        self.rules.turn.saturating_mul(n_workers)
    }

    fn lease(&self) -> Duration {
        self.rules.lease.max(self.turn() * RENEWALS)
    }

    fn pause(&self) -> Duration {
        let pause = self.rules.turn * (1 << self.failures.min(5));
        pause.min(self.rules.lease / 6)
    }

    fn seen(&mut self, listing: Listing, now: Duration) {
        self.n_leased = listing.n_leased;
        if listing.cancelled {
            self.ended = Some(Ended::Cancelled);
            return;
        }
        if listing.n_pieces >= self.planned && listing.n_done == listing.n_pieces {
            self.ended = Some(Ended::Complete(listing.tally));
            return;
        }
        let mut before = std::mem::take(&mut self.watched);
        let mut open = Vec::new();
        let mut expired = Vec::new();
        for (id, piece, version) in listing.pieces {
            match piece.state {
                PieceState::Open => open.push((id, piece, version)),
                PieceState::Leased => {
                    let seen = before.remove(&id).filter(|(seen, _)| *seen == version);
                    let (_, since) = seen.unwrap_or((version, now));
                    self.watched.insert(id.clone(), (version, since));
                    let lease = Duration::from_millis(piece.lease_ms);
                    if now.saturating_sub(since) > lease + lease / MARGIN {
                        expired.push((id, piece, version));
                    }
                }
                PieceState::Done | PieceState::Stopped => {}
            }
        }
        let mut free = if open.is_empty() { expired } else { open };
        if free.is_empty() {
            self.seek_at = now + self.turn();
            return;
        }
        // Not all the same one.
        let seed = self.nonce.bytes().fold(self.n_claims, |seed, byte| {
            seed.wrapping_mul(31).wrapping_add(byte.into())
        });
        let place = usize::try_from(seed % free.len() as u64).unwrap_or(0);
        let (id, piece, version) = free.swap_remove(place);
        self.claim(id, piece, version, now);
    }

    fn claim(&mut self, id: String, piece: Piece, version: Version, now: Duration) {
        self.n_claims += 1;
        let lease = self.lease();
        let (tally_before, worked_before_ms) = (piece.tally, piece.worked_ms);
        let taken_over = piece.taken_over + u32::from(piece.state == PieceState::Leased);
        self.held = Some(Held {
            id,
            piece: Piece {
                owner: Some(self.owner.clone()),
                claim: Some(format!("{}-{}", self.nonce, self.n_claims)),
                lease_ms: u64::try_from(lease.as_millis()).unwrap_or(u64::MAX),
                taken_over,
                ..piece
            },
            version,
            goal: Goal::Claim,
            due: now,
            valid_until: now + lease,
            since: now,
            look: false,
            begun: false,
            tally_before,
            worked_before_ms,
            parts: VecDeque::new(),
        });
    }

    /// A write was answered that replaces the held piece.
    fn written(&mut self, sent: Duration, now: Duration, again: Duration, answer: Answer) {
        let Some(held) = &mut self.held else { return };
        match answer {
            Answer::Written(version) => {
                held.version = version;
                match held.goal {
                    Goal::Claim | Goal::Work => {
                        held.goal = Goal::Work;
                        let lease = Duration::from_millis(held.piece.lease_ms);
                        held.valid_until = sent + lease;
                        held.due = sent + lease / RENEWALS;
                    }
                    Goal::Done | Goal::Back => self.let_go(now),
                }
            }
            Answer::Conflict => {
                held.look = true;
                held.due = now;
            }
            _ => held.due = again,
        }
    }

    /// After a conflict: is it our own write that was not answered?
    fn looked(&mut self, now: Duration, again: Duration, answer: Answer) {
        let Some(held) = &mut self.held else { return };
        let (piece, version) = match answer {
            Answer::Found(piece, version) => (piece, version),
            Answer::Missing => {
                held.valid_until = now;
                return;
            }
            _ => {
                held.due = again;
                return;
            }
        };
        if piece.claim != held.piece.claim {
            // Another's, or given back as we wanted.
            held.valid_until = now;
        } else if piece.state == PieceState::Done {
            self.let_go(now);
        } else {
            held.version = version;
            held.look = false;
            held.due = now;
            if held.goal == Goal::Claim {
                held.goal = Goal::Work;
            }
        }
    }
}

impl Held {
    /// False if it cannot be cut.
    fn cut(&mut self, cut: Cut) -> bool {
        let parts = cut.parts_of(&self.piece);
        // Else it would end as done, and never have been begun anew.
        if parts.len() < 2 || parts.iter().any(|part| part.id() == self.id) {
            return false;
        }
        self.parts = parts;
        self.piece.to_ms = self.piece.progress.position_ms;
        self.piece.progress.chunks.clear();
        true
    }

    fn next(&mut self, now: Duration) -> Next {
        if self.goal == Goal::Work && !self.begun {
            self.begun = true;
            return Next::Work(self.piece.clone());
        }
        if now < self.due {
            return Next::Wait(self.due.min(self.valid_until));
        }
        if self.look {
            return Next::Ask(Request::Look(self.id.clone()));
        }
        if let Some(part) = self.parts.front() {
            return Next::Ask(Request::Write {
                id: part.id(),
                piece: Box::new(part.clone()),
                over: None,
            });
        }
        Next::Ask(Request::Write {
            id: self.id.clone(),
            piece: Box::new(self.as_written(now)),
            over: Some(self.version),
        })
    }

    fn as_written(&self, now: Duration) -> Piece {
        let worked = now.saturating_sub(self.since).as_millis();
        let mut piece = self.piece.clone();
        piece.worked_ms = self.worked_before_ms + u64::try_from(worked).unwrap_or(0);
        piece.state = match self.goal {
            Goal::Claim | Goal::Work => PieceState::Leased,
            Goal::Done => PieceState::Done,
            Goal::Back => {
                (piece.owner, piece.claim) = (None, None);
                PieceState::Open
            }
        };
        piece
    }
}
