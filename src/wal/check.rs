//! Is this file the segment that its name says, whole? Asked before a segment is archived: PostgreSQL recycles
//! files, so that one which was copied too early or by a wrong hand holds old WAL in its second half, and
//! nobody would notice before the day of recovery.

use super::page::{LONG_HEADER, PageHeader, SegmentHeader};
use crate::{
    error::{Error, Result},
    postgres::{Lsn, SegmentName, SegmentSize, SystemId, TimelineId, Version},
};

/// What the pages of a checked segment say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentFacts {
    /// The version that wrote it.
    pub version: Version,
    /// The system that wrote it.
    pub system: SystemId,
    /// The LSN of its first byte.
    pub start: Lsn,
    /// Its size.
    pub size: SegmentSize,
    /// The timelines that wrote its pages, oldest first, each with the address of its first page. None is
    /// younger than the timeline in the name; one that is older must be an ancestor of it.
    pub timelines: Vec<(TimelineId, Lsn)>,
    /// How far its WAL goes.
    pub end: SegmentEnd,
}

/// How far the WAL in a segment goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentEnd {
    /// Every page is in its place.
    Full,
    /// `pg_switch_wal()` or `archive_timeout` closed it early: PostgreSQL reads nothing after the record.
    Switch {
        /// Start of the `XLOG_SWITCH` record.
        record: Lsn,
        /// What follows is not zeros: the server crashed before it had padded the recycled file.
        leftovers: bool,
    },
    /// A `.partial` file: the page at `next` is not there.
    Partial {
        /// Address of the first page that is missing.
        next: Lsn,
    },
}

/// Checks a segment that is fed in chunks of any size, in constant memory.
///
/// It refuses a file unless each page carries its own address, the same version as the first, and a timeline
/// that is neither older than the page before nor younger than the name, up to the end or up to an
/// `XLOG_SWITCH` record. [`SegmentCheck::partial`] is content with a sound beginning.
///
/// One refused file is PostgreSQL's own doing: a standby with `archive_mode = always` that follows a promotion
/// archives the old timeline's last segment, cut off at the switch, under its full name (`WalReceiverMain`).
#[derive(Debug)]
pub struct SegmentCheck {
    name: SegmentName,
    length: u64,
    partial: bool,
    header: Option<SegmentHeader>,
    /// Bytes of the page that is not complete yet.
    gathered: Vec<u8>,
    /// How many bytes lie in pages that were judged.
    judged: u64,
    /// The last bytes of the page before, where a switch record may begin.
    tail: Option<[u8; 16]>,
    timelines: Vec<(TimelineId, Lsn)>,
    /// The switch record that ends the WAL of the page before, if one does.
    switch: Option<Lsn>,
    end: SegmentEnd,
}

/// Checks a whole segment that lies in memory; see [`SegmentCheck`].
pub fn check_segment(name: SegmentName, bytes: &[u8]) -> Result<SegmentFacts> {
    let mut check = SegmentCheck::new(name, bytes.len() as u64);
    check.feed(bytes)?;
    check.finish()
}

impl SegmentCheck {
    /// A check of segment `name`, whose file has `length` bytes.
    #[must_use]
    pub fn new(name: SegmentName, length: u64) -> Self {
        Self {
            name,
            length,
            partial: false,
            header: None,
            gathered: Vec::new(),
            judged: 0,
            tail: None,
            timelines: Vec::new(),
            switch: None,
            end: SegmentEnd::Full,
        }
    }

    /// A check of the file `<name>.partial`: its beginning must be right, and it may end anywhere.
    #[must_use]
    pub fn partial(name: SegmentName, length: u64) -> Self {
        Self { partial: true, ..Self::new(name, length) }
    }

    /// The segment's header, as soon as its first [`LONG_HEADER`] bytes were fed.
    #[must_use]
    pub fn header(&self) -> Option<&SegmentHeader> {
        self.header.as_ref()
    }

    /// Judges the next bytes of the file. After an error the file is refused, whatever follows.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<()> {
        loop {
            let wanted = self.header.map_or(LONG_HEADER, |header| header.block_size as usize);
            if self.gathered.is_empty() && self.header.is_some() && bytes.len() >= wanted {
                let (page, rest) = bytes.split_at(wanted);
                self.judge(page)?;
                bytes = rest;
                continue;
            }
            let (more, rest) = bytes.split_at(bytes.len().min(wanted - self.gathered.len()));
            self.gathered.extend_from_slice(more);
            bytes = rest;
            if self.gathered.len() < wanted {
                return Ok(());
            }
            let page = std::mem::take(&mut self.gathered);
            if self.header.is_none() {
                self.header = Some(self.read_header(&page)?);
                self.gathered = page;
            } else {
                self.judge(&page)?;
            }
        }
    }

    /// What the pages that were judged so far say; none before the first bytes.
    #[must_use]
    pub fn so_far(&self) -> Option<SegmentFacts> {
        self.header.map(|header| self.facts(&header, self.end))
    }

    /// The verdict, when all bytes were fed.
    pub fn finish(self) -> Result<SegmentFacts> {
        let fed = self.judged + self.gathered.len() as u64;
        let Some(header) = self.header else {
            return Err(self.bad(format!("has only {fed} bytes")));
        };
        if fed != self.length {
            return Err(self.bad(format!("had {} bytes when it was opened, but {fed} were read", self.length)));
        }
        let mut end = self.end;
        if self.partial && end == SegmentEnd::Full && fed < header.size.bytes() {
            end = SegmentEnd::Partial { next: header.start + self.judged };
        }
        Ok(self.facts(&header, end))
    }

    fn facts(&self, header: &SegmentHeader, end: SegmentEnd) -> SegmentFacts {
        SegmentFacts {
            version: header.version,
            system: header.system,
            start: header.start,
            size: header.size,
            timelines: self.timelines.clone(),
            end,
        }
    }

    fn read_header(&self, bytes: &[u8]) -> Result<SegmentHeader> {
        let header = SegmentHeader::parse(bytes).map_err(|error| error.context(self.what()))?;
        header.check_name(self.name)?;
        let size = header.size.bytes();
        if self.length > size || (!self.partial && self.length != size) {
            return Err(self.bad(format!("has {} bytes, but its header says {size}", self.length)));
        }
        Ok(header)
    }

    fn judge(&mut self, page: &[u8]) -> Result<()> {
        let Some(header) = self.header else { return Ok(()) };
        let address = header.start + self.judged;
        self.judged += page.len() as u64;
        if self.end == SegmentEnd::Full {
            match self.in_place(page, address, &header) {
                Ok(found) => self.note(page, &found),
                Err(error) => self.wal_ends(page, address, error)?,
            }
        } else if let SegmentEnd::Switch { leftovers, .. } = &mut self.end {
            *leftovers |= !is_zero(page);
        }
        Ok(())
    }

    /// The header of a page that is where it says it is.
    fn in_place(&self, page: &[u8], address: Lsn, segment: &SegmentHeader) -> Result<PageHeader> {
        let found = PageHeader::parse(page, address)?;
        let bad = |what: String| Err(Error::damaged(format!("the WAL page at {address} {what}")));
        let before = self.timelines.last().map_or(segment.timeline, |(timeline, _)| *timeline);
        if found.address != address {
            bad(format!("holds the WAL of {}", found.address))
        } else if found.magic != segment.page.magic {
            bad(format!("was written by PostgreSQL {}, the first by {}", found.version, segment.version))
        } else if found.is_long() != (address == segment.start) {
            bad("has the header of another place in a segment".into())
        } else if found.timeline < before || found.timeline > self.name.timeline {
            bad(format!("was written by timeline {}, after pages of {before}", found.timeline))
        } else {
            Ok(found)
        }
    }

    fn note(&mut self, page: &[u8], header: &PageHeader) {
        if self.timelines.last().is_none_or(|(timeline, _)| *timeline < header.timeline) {
            self.timelines.push((header.timeline, header.address));
        }
        self.switch = closing_switch(page, header, self.tail.as_ref());
        self.tail = page.last_chunk().copied();
    }

    /// What to make of the first page that is not in place.
    fn wal_ends(&mut self, page: &[u8], address: Lsn, error: Error) -> Result<()> {
        if let Some(record) = self.switch {
            self.end = SegmentEnd::Switch { record, leftovers: !is_zero(page) };
        } else if self.partial && !self.timelines.is_empty() {
            self.end = SegmentEnd::Partial { next: address };
        } else {
            return Err(error.context(self.what()).hint(
                "the segment is not finished or was damaged; PostgreSQL archives an unfinished one under its full name \
                 only on a standby with archive_mode = always, after the server that it follows was promoted",
            ));
        }
        Ok(())
    }

    fn what(&self) -> String {
        format!("segment {}{}", self.name, if self.partial { ".partial" } else { "" })
    }

    fn bad(&self, what: String) -> Error {
        Error::damaged(format!("{} {what}", self.what()))
    }
}

fn is_zero(page: &[u8]) -> bool {
    // A row of them at a time: so it is as fast as memory is.
    page.chunks(256).all(|row| row.iter().fold(0, |all, byte| all | byte) == 0)
}

/// The start of the `XLOG_SWITCH` record that ends the WAL on this page, when one does.
///
/// PostgreSQL zeroes what follows such a record, on its own page and on all further ones (`CopyXLogRecordToWAL` in
/// `xlog.c`), and its last eight bytes (info 0x40, resource manager 0, padding, CRC) are never all zero. So it can
/// only lie where the page's last byte that is not zero belongs to those eight; its CRC proves it. Its first bytes
/// may lie in `tail`, the end of the page before, which is `None` for a segment's first page: then there is no CRC.
fn closing_switch(page: &[u8], header: &PageHeader, tail: Option<&[u8; 16]>) -> Option<Lsn> {
    let data = header.data_offset();
    let last = page.iter().rposition(|byte| *byte != 0)?;
    let end = (last | 7) + 1;
    if last < data || page.get(end - 8)? & 0xF0 != 0x40 || page.get(end - 7..end - 4)? != [0; 3] {
        return None;
    }
    if end - data >= 24 {
        return is_switch(&page[end - 24..end]).then(|| header.address + (end - 24) as u64);
    }
    let missing = 24 - (end - data);
    if !header.is_continued() || header.remaining as usize != end - data || missing > 16 {
        return None;
    }
    let found = tail.is_none_or(|tail| is_switch(&[&tail[16 - missing..], &page[data..end]].concat()));
    found.then(|| Lsn(header.address.0.saturating_sub(missing as u64)))
}

/// Whether these 24 bytes are a whole `XLOG_SWITCH` record.
fn is_switch(record: &[u8]) -> bool {
    record.starts_with(&24_u32.to_le_bytes())
        && record[16] & 0xF0 == 0x40
        && record[17] == 0
        && record[20..] == crc32c::crc32c(&record[..20]).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{PAGE, SEGMENT as SIZE, header},
        *,
    };

    const START: u64 = 0x500_0000;

    fn name() -> SegmentName {
        "000000030000000000000050".parse().unwrap()
    }

    /// A segment of 1 MB in which every page is in place.
    fn segment() -> Vec<u8> {
        (0..SIZE)
            .step_by(PAGE)
            .flat_map(|offset| {
                let mut page = header(0xD116, if offset == 0 { 2 } else { 0 }, 3, START + offset as u64, 0);
                page.resize(PAGE, 0xEE);
                page
            })
            .collect()
    }

    fn switch_record() -> Vec<u8> {
        let mut record = vec![0; 20];
        record[0] = 24;
        record[8] = 0x99;
        record[16] = 0x40;
        record.extend_from_slice(&crc32c::crc32c(&record).to_le_bytes());
        record
    }

    /// Ends the WAL with a switch record at `offset` of page 5.
    fn switched(offset: usize) -> Vec<u8> {
        let mut bytes = segment();
        let at = 5 * PAGE + offset;
        bytes[at..].fill(0);
        bytes[at..at + 24].copy_from_slice(&switch_record());
        bytes
    }

    /// Ends the WAL with a switch record whose first `before` bytes are the end of page 4.
    fn straddling(before: usize) -> Vec<u8> {
        let mut bytes = segment();
        let (first, second) = (switch_record()[..before].to_vec(), switch_record()[before..].to_vec());
        let at = 5 * PAGE;
        bytes[at..].fill(0);
        bytes[at - before..at].copy_from_slice(&first);
        bytes[at..at + 24].copy_from_slice(&header(0xD116, 1, 3, START + at as u64, second.len() as u32));
        bytes[at + 24..at + 24 + second.len()].copy_from_slice(&second);
        bytes
    }

    #[test]
    fn a_full_segment_passes_in_chunks_of_any_size() {
        let bytes = segment();
        let whole = check_segment(name(), &bytes).unwrap();
        assert_eq!((whole.end, whole.timelines.len()), (SegmentEnd::Full, 1));
        for chunk in [1, 39, 8191, 8192, 10_000, SIZE] {
            let mut check = SegmentCheck::new(name(), SIZE as u64);
            bytes.chunks(chunk).for_each(|part| check.feed(part).unwrap());
            assert_eq!(check.finish().unwrap(), whole);
        }
    }

    #[test]
    fn a_switch_ends_the_wal() {
        for offset in [24, 32, 4096, PAGE - 32, PAGE - 24] {
            let record = Lsn(START + (5 * PAGE + offset) as u64);
            let facts = check_segment(name(), &switched(offset)).unwrap();
            assert_eq!(facts.end, SegmentEnd::Switch { record, leftovers: false });
            let mut recycled = switched(offset);
            recycled[9 * PAGE..].fill(0xAB);
            let facts = check_segment(name(), &recycled).unwrap();
            assert_eq!(facts.end, SegmentEnd::Switch { record, leftovers: true });
        }
        for before in [8, 16] {
            let record = Lsn(START + (5 * PAGE - before) as u64);
            let facts = check_segment(name(), &straddling(before)).unwrap();
            assert_eq!(facts.end, SegmentEnd::Switch { record, leftovers: false });
        }
    }

    #[test]
    fn a_switch_that_began_in_the_segment_before_ends_the_wal() {
        let mut bytes = vec![0; SIZE];
        bytes[..40].copy_from_slice(&header(0xD116, 3, 3, START, 16));
        bytes[40..56].copy_from_slice(&switch_record()[8..]);
        let facts = check_segment(name(), &bytes).unwrap();
        assert_eq!(facts.end, SegmentEnd::Switch { record: Lsn(START - 8), leftovers: false });
    }

    #[test]
    fn anything_else_that_ends_early_is_refused() {
        let refused = |bytes: &[u8]| check_segment(name(), bytes).unwrap_err().to_string();
        let mut zeros = segment();
        zeros[7 * PAGE..].fill(0);
        assert_eq!(refused(&zeros), "segment 000000030000000000000050: the WAL page at 0/500E000 is empty");
        let mut wrong_crc = switched(64);
        wrong_crc[5 * PAGE + 64 + 8] ^= 1;
        assert!(refused(&wrong_crc).contains("0/500C000 is empty"));
        let mut recycled = segment();
        recycled[7 * PAGE + 8..7 * PAGE + 16].copy_from_slice(&0x400_E000_u64.to_le_bytes());
        assert!(refused(&recycled).contains("the WAL page at 0/500E000 holds the WAL of 0/400E000"));
        let mut younger = segment();
        younger[PAGE + 4] = 4;
        assert!(refused(&younger).contains("timeline 4"));
        let mut older = segment();
        older[PAGE + 4] = 2;
        assert!(refused(&older).contains("timeline 2"));
        let mut other_version = segment();
        other_version[PAGE] = 0x18;
        assert!(refused(&other_version).contains("PostgreSQL 18"));
        assert!(refused(&segment()[..SIZE - 1]).contains("1048575 bytes"));
        assert!(refused(&segment()[..20]).contains("20 bytes"));
        assert!(refused(b"").contains("0 bytes"));
        assert!(refused(&[b'x'; 1000]).contains("unknown magic"));
    }

    #[test]
    fn older_timelines_are_reported() {
        let mut bytes = segment();
        for page in 0..3 {
            bytes[page * PAGE + 4] = 1;
        }
        let tli = |number| TimelineId::new(number).unwrap();
        let facts = check_segment(name(), &bytes).unwrap();
        assert_eq!(facts.timelines, [(tli(1), Lsn(START)), (tli(3), Lsn(START + 3 * PAGE as u64))]);
    }

    #[test]
    fn a_partial_file_may_end_anywhere() {
        let check = |bytes: &[u8]| {
            let mut check = SegmentCheck::partial(name(), bytes.len() as u64);
            check.feed(bytes)?;
            check.finish()
        };
        let mut bytes = segment();
        bytes[7 * PAGE..].fill(0x11);
        let next = Lsn(START + 7 * PAGE as u64);
        assert_eq!(check(&bytes).unwrap().end, SegmentEnd::Partial { next });
        assert_eq!(check(&bytes[..7 * PAGE + 100]).unwrap().end, SegmentEnd::Partial { next });
        assert_eq!(check(&segment()).unwrap().end, SegmentEnd::Full);
        assert!(check(&[0; PAGE]).unwrap_err().to_string().contains(".partial"));
        bytes[9] = 1;
        assert!(check(&bytes).is_err());
    }
}
