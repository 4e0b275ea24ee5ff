//! A backfill that any number of machines share, by documents in Elasticsearch alone.
//!
//! The range is cut into [`Piece`]s, each a document. A worker takes one by compare-and-set, renews
//! its lease while it works, writes into it how far everything is settled, and marks it as done at
//! the end. [`worker::Worker`] decides all of that and sends nothing itself.
//!
//! # Whose lease has ended
//! No clock is compared with that of another machine. A lease has ended for whoever has seen the
//! very same version of its document for longer than the lease says, by its own monotonic clock.
//! Each renewal makes a new version, so a holder that lives never looks as if it did not for longer
//! than its renewals take to show. One that was wrong about it changes nothing: whatever is written
//! names the version that it replaces, and Elasticsearch refuses it if there is a newer one.
//!
//! # What makes it safe
//! - A piece is done, and its position moves, only by a write of who holds it, and over the version
//!   that it knows. A holder that was stopped for hours can therefore write nothing any more.
//! - A write that was carried out but not answered shows when it is repeated: it conflicts, and the
//!   document bears the claim of who asks. Each claim has an id of its own.
//! - What two workers send twice, as one did not know that its lease had ended, has the same ids.
//! - Pieces are never deleted, and a piece that is cut has the new ones there first. So who sees
//!   all pieces done sees the whole range done, however old what a search shows may be.
//! - A piece is cut in time, or by the chunks of an export, which have no order in time: each part
//!   then has the whole span, lists it for itself, and keeps those chunks whose names fall to it. A
//!   chunk that is listed late falls to one of them, too.

use serde::{Deserialize, Serialize};

use crate::teleport::part::Part;

pub mod cut;
pub mod worker;

#[cfg(test)]
mod tests;

/// What is shared: the same for all that work on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Its name.
    #[serde(rename = "share")]
    pub name: String,
    /// How far it has come as a whole.
    pub state: ShareState,
    /// The cluster whose audit log is read.
    pub cluster: String,
    /// The start, inclusive; ms since 1970.
    pub from_ms: i64,
    /// The end, exclusive.
    pub to_ms: i64,
    /// Days before this were left out as too old when it was made.
    pub first_ms: i64,
    /// How long a piece is.
    pub piece_ms: i64,
    /// The filters in their canonical text.
    pub filters: String,
    /// The pattern of index names.
    pub index: String,
    /// The form of documents.
    pub schema: String,
    /// Pieces that it was cut into at first; 0 while they are being made.
    pub planned: u64,
    /// Who made it, for people.
    pub made_by: String,
}

/// How far a share has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShareState {
    /// Some pieces may be missing yet.
    Planning,
    /// All pieces are there.
    Planned,
    /// Nobody is to work on it any more.
    Cancelled,
}

impl Share {
    /// The pieces as they are cut at first: at multiples of their length, so that days are days.
    pub fn pieces(&self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut from_ms = self.first_ms;
        while from_ms < self.to_ms {
            let next = (from_ms.div_euclid(self.piece_ms) + 1) * self.piece_ms;
            let to_ms = next.min(self.to_ms);
            pieces.push(Piece::new(&self.name, from_ms, to_ms));
            from_ms = to_ms;
        }
        pieces
    }
}

/// A part of the range that one worker reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// The name of what it is part of.
    pub share: String,
    /// How it stands.
    pub state: PieceState,
    /// The start, inclusive; ms since 1970.
    pub from_ms: i64,
    /// The end, exclusive. It moves only to where the piece was cut.
    pub to_ms: i64,
    /// Which of the span's chunks, where a day of an export was too large for one piece. Whoever reads
    /// it by search, or with a version that knows of no parts, reads all. It stands in the id alone:
    /// such a version writes the document back without fields that it does not know. Taken for the
    /// whole then, it would be cut into pieces that are there already, and rely on it.
    #[serde(skip)]
    pub part: Part,
    /// How far everything is settled.
    pub progress: Progress,
    /// What has become of its events.
    pub tally: Tally,
    /// Who works on it, for people.
    pub owner: Option<String>,
    /// Who works on it: no two claims have the same one.
    pub claim: Option<String>,
    /// For how long a claim lasts after each write.
    pub lease_ms: u64,
    /// How often it was taken from somebody whose lease had ended.
    pub taken_over: u32,
    /// How long it was worked on, by the clocks of those who did.
    pub worked_ms: u64,
}

/// How a piece stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PieceState {
    /// Nobody works on it.
    Open,
    /// Somebody does, or did.
    Leased,
    /// Everything in it is settled.
    Done,
    /// Given up with the whole share.
    Stopped,
}

/// How far everything of a piece is settled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Everything before this; ms since 1970.
    pub position_ms: i64,
    /// Beyond it, of the chunks of an export.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chunks: Vec<ChunkMark>,
}

/// How far a chunk is settled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkMark {
    /// The day for which it was listed, counted from 1970-01-01.
    pub day: i32,
    /// The chunk, in the server's words.
    pub chunk: String,
    /// Up to there, in the server's words; `None`: all of it.
    pub cursor: Option<String>,
}

/// What has become of events. Those that were sent, but not counted before a worker died, count as
/// there already when the next one sends them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Read from Teleport.
    pub events: u64,
    /// New in Elasticsearch.
    pub created: u64,
    /// Those of them in safe form.
    pub safe_form: u64,
    /// Found there.
    pub already_there: u64,
    /// Refused, and kept in the state file of the worker that met them.
    pub dead_letters: u64,
    /// Spans that could not be read.
    pub gaps: u64,
}

impl Tally {
    /// Both together.
    #[must_use]
    pub fn plus(self, more: Self) -> Self {
        Self {
            events: self.events + more.events,
            created: self.created + more.created,
            safe_form: self.safe_form + more.safe_form,
            already_there: self.already_there + more.already_there,
            dead_letters: self.dead_letters + more.dead_letters,
            gaps: self.gaps + more.gaps,
        }
    }
}

impl Piece {
    /// A piece that nobody has worked on.
    pub fn new(share: &str, from_ms: i64, to_ms: i64) -> Self {
        Self {
            share: share.to_owned(),
            state: PieceState::Open,
            from_ms,
            to_ms,
            part: Part::WHOLE,
            progress: Progress {
                position_ms: from_ms,
                chunks: Vec::new(),
            },
            tally: Tally::default(),
            owner: None,
            claim: None,
            lease_ms: 0,
            taken_over: 0,
            worked_ms: 0,
        }
    }

    /// With what only the id of its document tells.
    #[must_use]
    pub fn with_id(self, id: &str) -> Self {
        let last = id.rsplit('/').next();
        let part = last.and_then(|last| last.split_once("of"));
        let part = part.and_then(|(number, of)| Part::new(number.parse().ok()?, of.parse().ok()?));
        Self {
            part: part.unwrap_or_default(),
            ..self
        }
    }

    /// The id of the document of a new piece. Two with the same one cover the same.
    pub fn id(&self) -> String {
        let span = format!("{}/{}-{}", self.share, self.from_ms, self.to_ms);
        match self.part {
            Part::WHOLE => span,
            Part { number, of } => format!("{span}/{number}of{of}"),
        }
    }
}

/// Which state of a document a write replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// `_seq_no`
    pub seq_no: u64,
    /// `_primary_term`
    pub primary_term: u64,
}

/// What a search shows of a share; it may be some seconds old.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listing {
    /// Pieces that are not done, or the first of them, with their documents' ids.
    pub pieces: Vec<(String, Piece, Version)>,
    /// Pieces in all.
    pub n_pieces: u64,
    /// Those that are done.
    pub n_done: u64,
    /// Those with a lease, which may have ended.
    pub n_leased: u64,
    /// The whole was given up.
    pub cancelled: bool,
    /// Of all pieces.
    pub tally: Tally,
    /// How long all of them were worked on.
    pub worked_ms: u64,
}
