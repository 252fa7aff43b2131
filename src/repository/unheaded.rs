//! The proof of an archived file whose head is lost: what it is comes from the key, and its content must bear that
//! out by itself. The checksums of the zstd frames have proven each byte by then; here the pages of a segment must be
//! those of its name and its system, each of its records must have its CRC, and a partial segment must have the hash
//! that its key tells.

use super::{documents::FORMAT, layout, wal_object::WalHead};
use crate::{
    error::{Error, Result},
    postgres::{SystemId, TimelineHistory, WalFile},
    seal::Blake3,
    store::Key,
    wal::{End, Reader, SegmentCheck, SegmentEnd, SegmentHeader, Summarizer, page::LONG_HEADER},
};

/// Judges the content of one file as it is read.
#[derive(Debug)]
pub(super) struct Unheaded {
    /// The file that the key names.
    file: WalFile,
    system: SystemId,
    hash: Option<Blake3>,
    /// The first bytes of a segment, until they tell its size; all of a history file.
    gathered: Vec<u8>,
    pages: Option<(SegmentCheck, Reader, Summarizer)>,
}

impl Unheaded {
    /// For the object of that key.
    pub fn new(key: &Key) -> Result<Self> {
        let (incarnation, file, hash) = layout::archived(key)
            .ok_or_else(|| Error::damaged("it has no head, and its name does not tell what it should hold"))?;
        Ok(Self { file, system: incarnation.system, hash, gathered: Vec::new(), pages: None })
    }

    /// Judges the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        match (self.file, &mut self.pages) {
            (WalFile::Segment(_), Some((check, reader, summarizer))) => {
                check.feed(bytes)?;
                reader.read(bytes).for_each(drop);
                summarizer.feed(bytes);
            }
            (WalFile::Segment(name), None) => {
                self.gathered.extend_from_slice(bytes);
                if self.gathered.len() >= LONG_HEADER {
                    let header = SegmentHeader::parse(&self.gathered)?;
                    header.check_name(name)?;
                    let check = SegmentCheck::new(name, header.size.bytes());
                    self.pages = Some((check, Reader::new(header.start), Summarizer::whole(header.start)));
                    let gathered = std::mem::take(&mut self.gathered);
                    return self.feed(&gathered);
                }
            }
            (WalFile::History(_), _) => self.gathered.extend_from_slice(bytes),
            (WalFile::Partial(_) | WalFile::BackupLabel(..), _) => {}
        }
        Ok(())
    }

    /// The verdict, when all bytes were fed: the head made anew.
    pub fn finish(mut self, size: u64, blake3: Blake3, compressed: u64) -> Result<WalHead> {
        let mut head = self.told(size, blake3, compressed);
        match (self.file, self.pages.take()) {
            (WalFile::Segment(_), None) => Err(Error::damaged("its content is shorter than a page header")),
            (WalFile::Segment(name), Some((check, reader, summarizer))) => {
                let facts = check.finish()?;
                if facts.system != self.system {
                    return Err(Error::damaged(format!("{name} belongs to system {}, not to this one", facts.system)));
                }
                match reader.end() {
                    End::Garbage { at, why } => {
                        return Err(Error::damaged(format!("its records cannot be read at {at}: {why}")));
                    }
                    // A switch record that began in the segment before is not seen as one.
                    End::Zeros { at } if !matches!(facts.end, SegmentEnd::Switch { .. }) => {
                        return Err(Error::damaged(format!("its records end at {at}")));
                    }
                    _ => {}
                }
                (head.postgres, head.system) = (Some(facts.version), Some(facts.system));
                (head.timeline, head.first_lsn) = (Some(name.timeline), Some(facts.start));
                head.summary = Some(summarizer.finish());
                Ok(head)
            }
            (WalFile::History(timeline), _) => {
                TimelineHistory::parse(timeline, &String::from_utf8_lossy(&self.gathered)).map(|_| head)
            }
            (WalFile::Partial(_), _) if self.hash != Some(blake3) => {
                Err(Error::damaged("its content does not have the hash that its name tells"))
            }
            (WalFile::Partial(_) | WalFile::BackupLabel(..), _) => Ok(head),
        }
    }

    /// What is known before the verdict.
    pub fn told(&self, size: u64, blake3: Blake3, compressed: u64) -> WalHead {
        WalHead {
            format: FORMAT,
            name: self.file,
            size,
            blake3,
            compressed,
            postgres: None,
            system: None,
            timeline: None,
            first_lsn: None,
            summary: None,
        }
    }
}
