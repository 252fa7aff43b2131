//! The WAL of a segment out of its pieces, proven: every page in its place, of this system and of this timeline or an
//! ancestor of it, and the end of its last whole record found. What follows that is no WAL that anybody may replay.

use super::{PieceRun, RunEnd, System};
use crate::{
    error::{Error, Kind, Result},
    postgres::{Lsn, SegmentName, TimelineId},
    wal::{End, Reader, SegmentCheck, SegmentEnd, SegmentHeader, page::LONG_HEADER},
};

/// Reads the proven WAL out of pieces, in whole pages. The page on which the last whole record ends is filled up with
/// zeros behind it; a record that is not whole is handed out as far as whole pages have it.
#[derive(Debug)]
pub struct PieceWal {
    system: System,
    segment: SegmentName,
    start: Lsn,
    run: PieceRun,
    check: SegmentCheck,
    reader: Reader,
    block_size: Option<usize>,
    /// The page that is not complete yet.
    page: Vec<u8>,
    /// How many bytes were handed out.
    given: u64,
    end: Option<PieceEnd>,
}

/// How far the pieces of a segment reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PieceEnd {
    /// The end of the last whole record; the segment's start when none ends in them.
    pub end: Lsn,
    /// Why they reach no further although something later was stored.
    pub why: Option<String>,
}

impl System {
    /// Opens the pieces of a segment. None where there are none.
    pub async fn open_pieces(&self, segment: SegmentName) -> Result<Option<PieceWal>> {
        let pieces = self.pieces(segment).await?;
        if pieces.is_empty() {
            return Ok(None);
        }
        let size = self.document.segment_size;
        let start = segment.start(size)?;
        Ok(Some(PieceWal {
            system: self.clone(),
            segment,
            start,
            run: self.join_pieces(segment, pieces),
            check: SegmentCheck::partial(segment, size.bytes()),
            reader: Reader::new(start),
            block_size: None,
            page: Vec::new(),
            given: 0,
            end: None,
        }))
    }
}

impl PieceWal {
    /// The next pages; none at the end. `Damaged` when the pieces contradict each other, or hold other WAL.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        while self.end.is_none() {
            let Some(bytes) = self.run.next().await? else { return self.finish().await };
            self.page.extend_from_slice(&bytes);
            let Some(block_size) = self.block_size()? else { continue };
            let whole = self.page.len() / block_size * block_size;
            if whole > 0 {
                let rest = self.page.split_off(whole);
                let pages = std::mem::replace(&mut self.page, rest);
                self.judge(&pages)?;
                self.given += whole as u64;
                return Ok(Some(pages));
            }
        }
        Ok(None)
    }

    /// How many bytes of the segment are proven, up to the end of the last whole record.
    #[must_use]
    pub fn proven(&self) -> u64 {
        self.end.as_ref().map_or(0, |end| end.end.since(self.start))
    }

    /// How far they reach, once all was handed out.
    #[must_use]
    pub fn end(&self) -> Option<&PieceEnd> {
        self.end.as_ref()
    }

    /// The size of a page, once the first bytes tell it.
    fn block_size(&mut self) -> Result<Option<usize>> {
        if self.block_size.is_none() && self.page.len() >= LONG_HEADER {
            let header = SegmentHeader::parse(&self.page).map_err(|error| self.bad(error))?;
            let (own, document) = (self.system.folder.incarnation.system, &self.system.document);
            if (header.system, header.version, header.size) != (own, document.postgres, document.segment_size) {
                let what = format!("they are of system {}, PostgreSQL {}", header.system, header.version);
                return Err(self.bad(what));
            }
            self.block_size = Some(header.block_size as usize);
        }
        Ok(self.block_size)
    }

    fn judge(&mut self, pages: &[u8]) -> Result<()> {
        self.check.feed(pages)?;
        self.reader.read(pages).for_each(drop);
        let written = !matches!(self.reader.end(), End::Zeros { .. });
        match self.check.so_far().map(|facts| facts.end) {
            Some(SegmentEnd::Partial { next }) if written => {
                Err(self.bad(format!("the page at {next} is not in its place")))
            }
            _ => Ok(()),
        }
    }

    /// The last page, where a whole record ends on it.
    async fn finish(&mut self) -> Result<Option<Vec<u8>>> {
        let mut last = None;
        if let (Some(block_size), false) = (self.block_size, self.page.is_empty()) {
            let mut page = std::mem::take(&mut self.page);
            // Not with zeros: the rest of a record may be zeros, and was not there.
            page.resize(block_size, 0xFF);
            if matches!(self.reader.end(), End::OfInput { .. }) {
                self.reader.read(&page).for_each(drop);
            }
            let ends = self.reader.proven().since(self.start + self.given);
            if ends > 0 {
                page.truncate(usize::try_from(ends).unwrap_or(block_size));
                page.resize(block_size, 0);
                self.check.feed(&page)?;
                self.given += block_size as u64;
                last = Some(page);
            }
        }
        let timelines = self.check.so_far().map(|facts| facts.timelines).unwrap_or_default();
        prove_ancestry(&self.system, self.segment, &timelines).await?;
        let why = match self.run.end() {
            None | Some(RunEnd::Whole | RunEnd::Latest) => None,
            Some(RunEnd::Damaged { why }) => Some(why.clone()),
            Some(RunEnd::Missing { next }) => Some(format!(
                "of the pieces of {} those from offset {:08X} to {next:08X} are missing",
                self.segment,
                self.run.bytes()
            )),
        };
        self.end = Some(PieceEnd { end: self.reader.proven(), why });
        Ok(last)
    }

    fn bad(&self, what: impl std::fmt::Display) -> Error {
        bad(self.segment, what)
    }
}

/// Pages of an earlier timeline are right only if that is an ancestor of the segment's.
async fn prove_ancestry(system: &System, segment: SegmentName, timelines: &[(TimelineId, Lsn)]) -> Result<()> {
    let own = segment.timeline;
    let Some((foreign, _)) = timelines.iter().find(|(timeline, _)| *timeline != own) else { return Ok(()) };
    let history = system.history(own).await.map_err(|error| match error.kind() {
        Kind::NotFound => {
            bad(segment, format!("they hold pages of timeline {foreign}, and the history of timeline {own} is missing"))
        }
        _ => error,
    })?;
    match timelines.iter().find(|(timeline, _)| !history.includes(*timeline)) {
        None => Ok(()),
        Some((stranger, _)) => {
            Err(bad(segment, format!("they hold pages of timeline {stranger}, which is no ancestor of timeline {own}")))
        }
    }
}

fn bad(segment: SegmentName, what: impl std::fmt::Display) -> Error {
    Error::damaged(format!("the pieces of {segment} cannot be used: {what}"))
}
