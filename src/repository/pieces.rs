//! The pieces of a segment that is not complete yet: what `wal receive` stores every second, so that a host that burns
//! takes less with it than a segment.
//!
//! A piece is an object of its own below `<segment>.pieces/`, named after the bytes of the segment that it holds. The
//! pieces of two receivers may overlap, with other borders; the bytes of both must be equal. As soon as the whole segment
//! is in the archive its pieces mean nothing any more: nobody reads them, and expire removes them. Pieces count only of
//! the segment right after the last whole one: whoever stores them stores a segment whole before it tells anybody that a
//! piece of the next one is safe.

mod proven;
mod run;

use std::io::Write;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use proven::{PieceEnd, PieceWal};
pub use run::{PieceRun, RunEnd};

use super::{System, documents::FORMAT, join, layout};
use crate::{
    error::{Error, Result},
    postgres::{SegmentName, SystemId, Version},
    seal::{self, Blake3, FrameWriter, age::Declared},
    store::{self, Key, Put},
    wal::{SegmentHeader, page::LONG_HEADER},
};

/// The most bytes of WAL in one piece: readers hold a few at a time.
pub const LONGEST_PIECE: usize = 2 << 20;

/// A piece in the listing of a segment's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Piece {
    /// The offset in the segment of its first byte.
    pub from: u32,
    /// The offset of the first byte after it.
    pub to: u32,
    /// The length of its object in bytes.
    pub length: u64,
}

/// How a piece came to be stored: it is durable in the repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredPiece {
    /// The length of its object in bytes.
    pub length: u64,
    /// Whether it was there before, with the same content.
    pub already: bool,
}

/// What stands in front of a piece.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PieceHead {
    format: u32,
    segment: SegmentName,
    from: u32,
    to: u32,
    /// Of the bytes of WAL.
    blake3: Blake3,
    /// Bytes of the zstd frames after the head.
    compressed: u64,
    postgres: Version,
    system: SystemId,
}

impl System {
    /// Stores the bytes of `segment` from offset `from` on as a piece, compressed at zstd's `level`: at least one, at most
    /// [`LONGEST_PIECE`]. When it answers, they are durable.
    ///
    /// The same piece again is a success; other bytes under the same name are `Refused`, and so is a segment's beginning
    /// that is not that of this system.
    pub async fn put_piece(&self, segment: SegmentName, from: u64, bytes: Bytes, level: i32) -> Result<StoredPiece> {
        let size = self.document.segment_size.bytes();
        let to = from + bytes.len() as u64;
        if bytes.is_empty() || bytes.len() > LONGEST_PIECE || to > size {
            return Err(Error::internal(format!("a piece cannot hold the bytes from {from} to {to} of {segment}")));
        }
        if from == 0 && bytes.len() >= LONG_HEADER {
            self.prove_beginning(segment, &bytes)?;
        }
        // A segment has at most 1 GB.
        let (from, to) = (from as u32, to as u32);
        let key = self.folder.piece(segment, from, to)?;
        let mut head = PieceHead {
            format: FORMAT,
            segment,
            from,
            to,
            blake3: seal::blake3(&bytes),
            compressed: 0,
            postgres: self.document.postgres,
            system: self.folder.incarnation.system,
        };
        let blake3 = head.blake3;
        let object = tokio::task::spawn_blocking(move || {
            let failed = |e| Error::internal("compress").source(e);
            let mut frames = FrameWriter::new(Vec::new(), level).map_err(failed)?;
            frames.write_all(&bytes).map_err(failed)?;
            let (frames, _, compressed) = frames.finish().map_err(failed)?;
            head.compressed = compressed;
            let mut object = seal::head(&head)?;
            object.extend_from_slice(&frames);
            Ok::<_, Error>(object)
        });
        let object = join(object.await)??;
        let length = object.len() as u64;
        if self.store.put(&key, object.into()).await? == Put::Created {
            return Ok(StoredPiece { length, already: false });
        }
        let (theirs, length) = match self.store.declared(&key).await? {
            Some(Declared { blake3: Some(theirs), .. }) => (theirs, length),
            _ => self.piece_head(segment, from, to, &key).await.map(|(head, length)| (head.blake3, length))?,
        };
        if theirs == blake3 {
            return Ok(StoredPiece { length, already: true });
        }
        Err(Error::refused(format!(
            "{key} is in the repository already with other content: there BLAKE3 {}, here BLAKE3 {}",
            theirs.short(),
            blake3.short()
        ))
        .hint(
            "two servers write the same WAL: one of them is a copy of the other, or was rolled back; nothing was overwritten. \
             Stop the copy, or give this server its own archive: walden init --new-incarnation, then walden backup",
        ))
    }

    /// The pieces of a segment, sorted by their first and then their last byte. None where there are none; where the
    /// segment is whole in the archive, they mean nothing.
    pub async fn pieces(&self, segment: SegmentName) -> Result<Vec<Piece>> {
        let listed = store::list_all(&*self.store, &self.folder.pieces(segment)?).await?;
        let mut pieces: Vec<Piece> = listed
            .iter()
            .filter_map(|object| {
                let (of, from, to) = layout::piece_of(&object.key)?;
                (of == segment && u64::from(to) <= self.document.segment_size.bytes()).then_some(Piece {
                    from,
                    to,
                    length: object.length,
                })
            })
            .collect();
        pieces.sort();
        Ok(pieces)
    }

    fn prove_beginning(&self, segment: SegmentName, bytes: &[u8]) -> Result<()> {
        let header = SegmentHeader::parse(bytes).and_then(|header| header.check_name(segment).map(|()| header));
        let header = header.map_err(|error| Error::refused(error.to_string()).hint("nothing was stored"))?;
        let own = (self.folder.incarnation.system, self.document.postgres, self.document.segment_size);
        if (header.system, header.version, header.size) == own {
            return Ok(());
        }
        Err(Error::refused(format!(
            "{segment} is of system {}, PostgreSQL {}, with segments of {} bytes; the archive is that of system {}, PostgreSQL {}, with {}",
            header.system,
            header.version,
            header.size.bytes(),
            own.0,
            own.1,
            own.2.bytes(),
        ))
        .hint("nothing was stored; this is the WAL of another server, or of this one after pg_upgrade or pg_resetwal"))
    }

    async fn piece_head(&self, segment: SegmentName, from: u32, to: u32, key: &Key) -> Result<(PieceHead, u64)> {
        let object = store::read(&*self.store, key, OBJECT_LIMIT).await?;
        let (head, _) = PieceHead::parse(&object, key)?;
        head.check(segment, (from, to), self.folder.incarnation.system, key)?;
        Ok((head, object.len() as u64))
    }
}

/// No object of a piece is longer than this many bytes: zstd makes noise a little longer than it was.
const OBJECT_LIMIT: u64 = LONGEST_PIECE as u64 + (1 << 17);

impl PieceHead {
    /// The head of an object, and where its frames begin.
    fn parse(object: &[u8], key: &Key) -> Result<(Self, usize)> {
        let bad = |what: &str| Err(damaged(key, what));
        match seal::read_head::<Self>(object).map_err(|e| damaged(key, &e.to_string()))? {
            seal::Head::Present(head, _) if head.format > FORMAT => Err(Error::refused(format!(
                "{key} has format {}; this Walden knows formats up to {FORMAT}",
                head.format
            ))
            .hint("use the version of Walden that wrote it, or a newer one")),
            seal::Head::Present(head, end) if end as u64 + head.compressed == object.len() as u64 => Ok((head, end)),
            seal::Head::Present(..) => bad("it does not have the length that its head tells"),
            seal::Head::Unreadable(..) | seal::Head::Absent => bad("its head cannot be read"),
        }
    }

    fn check(&self, segment: SegmentName, (from, to): (u32, u32), system: SystemId, key: &Key) -> Result<()> {
        if (self.segment, self.from, self.to, self.system) == (segment, from, to, system) {
            return Ok(());
        }
        Err(damaged(
            key,
            &format!(
                "its head says that it holds the bytes from {} to {} of {} of system {}",
                self.from, self.to, self.segment, self.system
            ),
        ))
    }
}

fn damaged(key: &Key, what: &str) -> Error {
    Error::damaged(format!("{key} is damaged: {what}"))
}

#[cfg(test)]
mod tests;
