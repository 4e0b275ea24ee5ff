//! A large piece becomes smaller ones.

use std::collections::VecDeque;

use super::{Piece, Progress};
use crate::teleport::part::Part;

/// How a large piece is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// So many begin where its position stands, one after the other.
    Time(u32),
    /// So many have its span, and each some of its chunks.
    Chunks(u32),
}

impl Cut {
    /// Into how many.
    pub fn pieces(self) -> u32 {
        match self {
            Self::Time(pieces) | Self::Chunks(pieces) => pieces,
        }
    }

    /// What is left of a piece, in new ones. The old one may end at its position, where they begin or
    /// before.
    pub(super) fn parts_of(self, piece: &Piece) -> VecDeque<Piece> {
        let Piece { from_ms, to_ms, .. } = *piece;
        let Progress {
            position_ms,
            chunks,
        } = &piece.progress;
        let new = |from_ms, to_ms, part| Piece {
            part,
            ..Piece::new(&piece.share, from_ms, to_ms)
        };
        match self {
            Self::Time(parts) => {
                let left_ms = to_ms - position_ms;
                let bound = |part| position_ms + left_ms * i64::from(part) / i64::from(parts);
                let spans = (0..parts).map(|part| (bound(part), bound(part + 1)));
                let spans = spans.filter(|(from_ms, to_ms)| from_ms < to_ms);
                spans
                    .map(|(from_ms, to_ms)| new(from_ms, to_ms, piece.part))
                    .collect()
            }
            Self::Chunks(parts) => {
                let with_marks = |part: Part| {
                    let mut new = new(from_ms, to_ms, part);
                    let own = chunks.iter().filter(|mark| part.has(&mark.chunk));
                    new.progress.chunks = own.cloned().collect();
                    new
                };
                let parts = piece.part.cut(parts).unwrap_or_default();
                parts.into_iter().map(with_marks).collect()
            }
        }
    }
}
