//! Joining pieces: the longest unbroken run of bytes from a segment's first on, each piece proven by its hash, and by the
//! bytes of every other piece that overlaps it.

use std::{fmt, io::Read, pin::Pin};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};

use super::{LONGEST_PIECE, OBJECT_LIMIT, Piece, PieceHead, System, damaged};
use crate::{
    error::{Error, Kind, Result},
    postgres::SegmentName,
    seal, store,
};

/// Pieces that are fetched at a time.
const PARALLEL: usize = 16;

/// Why a run of pieces goes no further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunEnd {
    /// It is the whole segment.
    Whole,
    /// Nothing that comes later was stored.
    Latest,
    /// The bytes from the run's end on are missing, and later ones are there.
    Missing {
        /// The offset of the first byte that is there.
        next: u32,
    },
    /// The piece that goes on at the run's end is damaged.
    Damaged {
        /// What is wrong with it.
        why: String,
    },
}

type Fetched = (Piece, Result<Bytes>);

/// The bytes of a segment as its pieces have them, from the first on.
pub struct PieceRun {
    segment: SegmentName,
    size: u64,
    coming: Pin<Box<dyn Stream<Item = Fetched> + Send>>,
    /// The bytes before `at` that a later piece may have as well.
    held: Vec<u8>,
    at: u32,
    /// A damaged piece that should have gone on at `at`: the first byte after it, and what is wrong with it.
    fault: Option<(u32, String)>,
    end: Option<RunEnd>,
}

impl fmt::Debug for PieceRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PieceRun").field("segment", &self.segment).field("at", &self.at).finish_non_exhaustive()
    }
}

impl System {
    /// Joins pieces of one segment, sorted as [`System::pieces`] gives them.
    #[must_use]
    pub fn join_pieces(&self, segment: SegmentName, pieces: Vec<Piece>) -> PieceRun {
        let system = self.clone();
        let coming = stream::iter(pieces).map(move |piece| fetch(system.clone(), segment, piece)).buffered(PARALLEL);
        let size = self.document.segment_size.bytes();
        PieceRun { segment, size, coming: Box::pin(coming), held: Vec::new(), at: 0, fault: None, end: None }
    }
}

impl PieceRun {
    /// The next bytes; none when the run is at its end. `Damaged` when two pieces have different bytes in the same place.
    ///
    /// A damaged piece is as good as one that is not there: what of it others have is taken from them.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        while self.end.is_none() {
            let Some((piece, fetched)) = self.coming.next().await else {
                self.end = Some(match self.fault.take() {
                    Some((_, why)) => RunEnd::Damaged { why },
                    None if u64::from(self.at) == self.size => RunEnd::Whole,
                    None => RunEnd::Latest,
                });
                break;
            };
            if piece.from > self.at {
                self.end = Some(match self.fault.take() {
                    Some((_, why)) => RunEnd::Damaged { why },
                    None => RunEnd::Missing { next: piece.from },
                });
                break;
            }
            match fetched {
                Ok(bytes) => {
                    let fresh = self.add(piece, &bytes)?;
                    if !fresh.is_empty() {
                        return Ok(Some(fresh));
                    }
                }
                Err(error) if error.kind() == Kind::Damaged => {
                    tracing::warn!("{error}");
                    if piece.to > self.fault.as_ref().map_or(self.at, |(to, _)| *to) {
                        self.fault = Some((piece.to, error.to_string()));
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// How many bytes the run has, from the segment's first on, of those that were handed out.
    #[must_use]
    pub fn bytes(&self) -> u32 {
        self.at
    }

    /// Why it goes no further, once it is at its end.
    #[must_use]
    pub fn end(&self) -> Option<&RunEnd> {
        self.end.as_ref()
    }

    /// Compares what is known already, and takes the rest.
    fn add(&mut self, piece: Piece, bytes: &[u8]) -> Result<Vec<u8>> {
        // Pieces come in the order of their first bytes: nobody asks again for what lies before this one's.
        let before = self.at as usize - self.held.len();
        self.held.drain(..(piece.from as usize).saturating_sub(before).min(self.held.len()));
        let (known, fresh) = bytes.split_at(bytes.len().min((self.at - piece.from) as usize));
        if let Some(differs) = known.iter().zip(&self.held).position(|(a, b)| a != b) {
            return Err(Error::damaged(format!(
                "two pieces of {} have different bytes at offset {:08X}, the one from {:08X} to {:08X} and one before it",
                self.segment,
                piece.from as usize + differs,
                piece.from,
                piece.to
            ))
            .hint("two servers write the same WAL: one of them is a copy of the other, or was rolled back; stop one of them"));
        }
        if !fresh.is_empty() {
            self.held.extend_from_slice(fresh);
            self.at = piece.to;
            self.fault.take_if(|(to, _)| *to <= piece.to);
        }
        Ok(fresh.to_vec())
    }
}

impl System {
    /// Reads a piece, and proves it.
    pub async fn prove_piece(&self, segment: SegmentName, piece: Piece) -> Result<()> {
        read(self, segment, piece).await.map(drop)
    }
}

async fn fetch(system: System, segment: SegmentName, piece: Piece) -> Fetched {
    (piece, read(&system, segment, piece).await)
}

/// The bytes of a piece, proven.
async fn read(system: &System, segment: SegmentName, piece: Piece) -> Result<Bytes> {
    let key = system.folder.piece(segment, piece.from, piece.to)?;
    let object = store::read(&*system.store, &key, OBJECT_LIMIT).await.map_err(|error| match error.kind() {
        // Somebody removed it: what is left is to be judged without it.
        Kind::NotFound => damaged(&key, "it was there a moment ago, and is gone"),
        _ => error,
    })?;
    let (head, end) = PieceHead::parse(&object, &key)?;
    head.check(segment, (piece.from, piece.to), system.folder.incarnation.system, &key)?;
    let length = (piece.to - piece.from) as usize;
    let mut content = Vec::with_capacity(length.min(LONGEST_PIECE));
    zstd::Decoder::new(&object[end..])
        .and_then(|frames| frames.take(length as u64 + 1).read_to_end(&mut content))
        .map_err(|e| damaged(&key, &format!("its frames cannot be read: {e}")))?;
    if content.len() != length || seal::blake3(&content) != head.blake3 {
        return Err(damaged(&key, "its content does not have the hash that its head tells"));
    }
    Ok(content.into())
}
