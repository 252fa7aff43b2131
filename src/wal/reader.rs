//! [`Reader`]: walks the records of consecutive segments, as `xlogreader.c` does for recovery: each one's CRC and
//! its link to the record before are proven, across pages and segments. Memory stays small whatever the record:
//! of those that tell no fact only the CRC is computed.

use std::collections::VecDeque;

use super::{
    Fact, Record, SegmentHeader,
    decode::{decode, needed},
    page::{LONG_HEADER, PageHeader},
    record::{self, HEADER, RecordHeader},
};
use crate::postgres::{Lsn, TimelineId};

/// The most bytes of one record that are held. A commit of sixteen million subtransactions fits.
pub(super) const HELD: usize = 64 << 20;

/// Why no record follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// All that was given was read.
    OfInput {
        /// The record that begins before the end of the input and does not end there.
        unfinished: Option<Lsn>,
    },
    /// There are zeros where the next record would start: the WAL was not written further.
    Zeros {
        /// That place.
        at: Lsn,
    },
    /// What follows is no continuation of this WAL: old bytes of a recycled file, or damage.
    Garbage {
        /// Where the record that is not sound starts, or would start.
        at: Lsn,
        /// What is wrong with it.
        why: String,
    },
}

/// Reads records out of segments that are fed in their order on one path of timelines: where the path leaves a
/// timeline, the younger timeline's copy of the segment.
///
/// The first segment may begin in the middle of a record, which is passed over.
#[derive(Debug)]
pub struct Reader {
    /// The address of the next byte that is fed.
    position: Lsn,
    /// The header of the segment that is being read.
    segment: Option<SegmentHeader>,
    timeline: Option<TimelineId>,
    /// Bytes of a page that is not complete yet.
    gathered: Vec<u8>,
    state: State,
    /// The start of the last whole record.
    last: Option<Lsn>,
    /// Where the next record starts, or the page in front of it.
    next: Lsn,
    found: VecDeque<Record>,
    end: Option<End>,
    /// How many bytes of `leading` are kept.
    keeps: usize,
    leading: Option<Leading>,
}

/// What the first pages continue: a record that began before them.
#[derive(Debug)]
pub(super) struct Leading {
    /// How many of its bytes are left where the first page begins.
    pub left: u32,
    /// How many of these were read.
    pub read: u32,
    /// The CRC-32C of those.
    pub crc: u32,
    /// The first of those.
    pub bytes: Vec<u8>,
    /// Where the next record may start, when all were read.
    pub end: Lsn,
}

#[derive(Debug)]
enum State {
    /// No record was seen yet; the one that began before the first page may still go on.
    Seeking,
    /// The next record begins with the next page.
    Between,
    /// In the middle of a record.
    Within(Unfinished),
    /// After a switch record: the next record begins with the next segment.
    Switched,
}

/// A record of which some pages are still to come.
#[derive(Debug)]
pub(super) struct Unfinished {
    pub start: Lsn,
    length: u32,
    /// How many of its bytes were read.
    pub read: u32,
    header: [u8; HEADER],
    parsed: Option<RecordHeader>,
    /// The CRC-32C of those after the header.
    pub crc: u32,
    /// The first bytes after the header, of a record that tells a fact.
    pub body: Vec<u8>,
}

impl Reader {
    /// A reader whose first byte will be the one at `start`, the first of a segment.
    #[must_use]
    pub fn new(start: Lsn) -> Self {
        Self {
            position: start,
            segment: None,
            timeline: None,
            gathered: Vec::new(),
            state: State::Seeking,
            last: None,
            next: start,
            found: VecDeque::new(),
            end: None,
            keeps: 0,
            leading: None,
        }
    }

    /// The same, which keeps as many bytes of the record that the first pages continue.
    pub(super) fn keeping(start: Lsn, bytes: usize) -> Self {
        Self { keeps: bytes, ..Self::new(start) }
    }

    /// The records that end in `bytes`, which follow those of the call before. Chunks may have any size.
    /// The iterator must be run to its end, or the reader be given up.
    pub fn read<'a>(&'a mut self, bytes: &'a [u8]) -> Records<'a> {
        Records { reader: self, bytes }
    }

    /// The header of the segment that is being read, once its first 40 bytes were fed.
    #[must_use]
    pub fn segment(&self) -> Option<&SegmentHeader> {
        self.segment.as_ref()
    }

    /// The start of the last record that was read whole.
    #[must_use]
    pub fn last(&self) -> Option<Lsn> {
        self.last
    }

    /// How far the WAL is proven: the end of the last record that was read whole.
    #[must_use]
    pub fn proven(&self) -> Lsn {
        self.next
    }

    /// Why there are no more records.
    #[must_use]
    pub fn end(&self) -> End {
        let unfinished = match &self.state {
            State::Within(record) => Some(record.start),
            _ => None,
        };
        self.end.clone().unwrap_or(End::OfInput { unfinished })
    }

    /// What the first pages continued, if they did.
    pub(super) fn leading(&self) -> Option<&Leading> {
        self.leading.as_ref()
    }

    /// The record whose next bytes are still to come.
    pub(super) fn unfinished(&self) -> Option<&Unfinished> {
        match (&self.state, &self.end) {
            (State::Within(record), None) => Some(record),
            _ => None,
        }
    }

    /// Whether the last record was a switch.
    pub(super) fn is_switched(&self) -> bool {
        matches!(self.state, State::Switched)
    }

    /// Takes one page, or what there is of one, from `bytes`. False when nothing more can come of them.
    fn advance(&mut self, bytes: &mut &[u8]) -> bool {
        if self.end.is_some() {
            return false;
        }
        let wanted = self.segment.map_or(LONG_HEADER, |segment| segment.block_size as usize);
        if self.gathered.is_empty() && self.segment.is_some() && bytes.len() >= wanted {
            let (page, rest) = bytes.split_at(wanted);
            *bytes = rest;
            self.page(page);
            return true;
        }
        let (more, rest) = bytes.split_at(bytes.len().min(wanted - self.gathered.len()));
        self.gathered.extend_from_slice(more);
        *bytes = rest;
        if self.gathered.len() < wanted {
            return false;
        }
        if self.segment.is_none() {
            // The first page: its header tells how long it is.
            match SegmentHeader::parse(&self.gathered) {
                Ok(header) => self.segment = Some(header),
                Err(error) => self.garbage(self.position, error),
            }
        } else {
            let page = std::mem::take(&mut self.gathered);
            self.page(&page);
            self.gathered = page;
            self.gathered.clear();
        }
        true
    }

    fn garbage(&mut self, at: Lsn, why: impl ToString) {
        self.end = Some(End::Garbage { at, why: why.to_string() });
    }

    /// Reads one whole page.
    fn page(&mut self, page: &[u8]) {
        let address = self.position;
        self.position = address + page.len() as u64;
        let Some(segment) = self.segment else { return };
        let first = segment.size.offset_of(address) == 0;
        if matches!(self.state, State::Switched) && !first {
            return;
        }
        if page.iter().take(LONG_HEADER).all(|byte| *byte == 0) && !matches!(self.state, State::Within(_)) {
            self.end = Some(End::Zeros { at: self.next });
            return;
        }
        match self.header(page, address, first) {
            Ok(header) => {
                if let Some(offset) = self.resume(page, &header) {
                    self.records(page, address, offset);
                }
            }
            Err(why) => {
                let at = self.open();
                self.garbage(at, why);
            }
        }
    }

    /// Where the record starts that cannot be read further.
    fn open(&self) -> Lsn {
        if let State::Within(record) = &self.state { record.start } else { self.next }
    }

    /// The page's header, when the page lies where it should (`XLogReaderValidatePageHeader`).
    fn header(&mut self, page: &[u8], address: Lsn, first: bool) -> Result<PageHeader, String> {
        let header = PageHeader::parse(page, address).map_err(|error| error.to_string())?;
        let bad = |what: String| Err(format!("the WAL page at {address} {what}"));
        if header.address != address {
            return bad(format!("holds the WAL of {}", header.address));
        }
        if header.is_long() != first {
            return bad("has the header of another place in a segment".into());
        }
        if self.timeline.is_some_and(|timeline| header.timeline < timeline) {
            return bad(format!("belongs to timeline {}, older than the page before", header.timeline));
        }
        if first {
            let now = SegmentHeader::parse(page).map_err(|error| error.to_string())?;
            let before = self.segment.unwrap_or(now);
            if (now.system, now.version, now.size, now.block_size)
                != (before.system, before.version, before.size, before.block_size)
            {
                return bad("belongs to another system, or to another version of PostgreSQL".into());
            }
            self.segment = Some(now);
        }
        self.timeline = Some(header.timeline);
        Ok(header)
    }

    /// Finishes what was open when the page began. Where the next record starts on it, if one does.
    fn resume(&mut self, page: &[u8], header: &PageHeader) -> Option<usize> {
        let data = header.data_offset();
        let continued = header.is_continued();
        match std::mem::replace(&mut self.state, State::Between) {
            State::Seeking => {
                let offset = if continued { data + align(header.remaining as usize) } else { data };
                if continued && self.keeps > 0 {
                    self.lead(page, header);
                }
                if offset >= page.len() {
                    self.state = State::Seeking;
                    return None;
                }
                self.next = header.address + if continued { offset as u64 } else { 0 };
                Some(offset)
            }
            State::Between | State::Switched if continued => {
                self.garbage(self.next, format!("the WAL page at {} continues no record", header.address));
                None
            }
            State::Between | State::Switched => Some(data),
            // The server crashed, and gave that record up when it came back.
            State::Within(_) if header.is_overwritten() => Some(data),
            State::Within(record) if !continued || header.remaining != record.length - record.read => {
                self.garbage(record.start, format!("the WAL page at {} does not continue it", header.address));
                None
            }
            State::Within(record) => self.go_on(record, page, header.address, data),
        }
    }

    /// Takes what this page has of the record that began before the first one.
    fn lead(&mut self, page: &[u8], header: &PageHeader) {
        let left = header.remaining;
        let new = Leading { left, read: 0, crc: 0, bytes: Vec::new(), end: header.address };
        let leading = self.leading.get_or_insert(new);
        if leading.left - leading.read != left {
            return;
        }
        let bytes = &page[header.data_offset()..];
        let bytes = &bytes[..bytes.len().min(left as usize)];
        leading.read += bytes.len() as u32;
        leading.crc = crc32c::crc32c_append(leading.crc, bytes);
        leading.bytes.extend_from_slice(&bytes[..bytes.len().min(self.keeps - leading.bytes.len())]);
        leading.end = header.address + align(header.data_offset() + bytes.len()) as u64;
    }

    /// Reads on in a record whose next bytes are at `data`.
    fn go_on(&mut self, mut record: Unfinished, page: &[u8], address: Lsn, data: usize) -> Option<usize> {
        let left = (record.length - record.read) as usize;
        let here = left.min(page.len() - data);
        if let Err(why) = record.add(&page[data..data + here], self.last) {
            self.garbage(record.start, why);
            return None;
        }
        if here < left {
            self.state = State::Within(record);
            return None;
        }
        let offset = data + align(here);
        let header = record.parsed?;
        self.whole(record.start, address + offset as u64, &header, record.crc, &record.body).then_some(offset)
    }

    /// Reads the records that start on this page from `offset` on.
    fn records(&mut self, page: &[u8], address: Lsn, mut offset: usize) {
        while let Some((length, rest)) = page.get(offset..).and_then(|rest| Some((rest.first_chunk()?, rest))) {
            let start = address + offset as u64;
            let length = u32::from_le_bytes(*length);
            if length == 0 {
                self.end = Some(End::Zeros { at: self.next });
                return;
            }
            if (length as usize) < HEADER || length > record::LONGEST {
                return self.garbage(start, format!("a record cannot have {length} bytes"));
            }
            let Some(body) = rest.get(HEADER..length as usize) else {
                let mut record = Unfinished::new(start, length);
                match record.add(rest, self.last) {
                    Ok(()) => self.state = State::Within(record),
                    Err(why) => self.garbage(start, why),
                }
                return;
            };
            let Some(header) = rest.first_chunk().and_then(RecordHeader::parse) else { return };
            if let Some(why) = header.fault(start, self.last) {
                return self.garbage(start, why);
            }
            offset += align(length as usize);
            let crc = crc32c::crc32c_append(crc32c::crc32c(body), &rest[..HEADER - 4]);
            if !self.whole(start, address + offset as u64, &header, crc, body) {
                return;
            }
        }
    }

    /// Hands out a record of which all bytes were read. False when nothing after it is to be read on this page.
    fn whole(&mut self, start: Lsn, end: Lsn, header: &RecordHeader, crc: u32, body: &[u8]) -> bool {
        if crc != header.crc {
            self.garbage(start, "the record's CRC is wrong");
            return false;
        }
        let Some(fact) = self.fact(header, body) else {
            self.garbage(start, "the record's CRC is right, but it is not laid out as its version does");
            return false;
        };
        let switched = fact == Fact::Switch;
        let end = match self.segment {
            Some(segment) if switched => Lsn(end.0.next_multiple_of(segment.size.bytes())),
            _ => end,
        };
        if switched {
            self.state = State::Switched;
        }
        self.last = Some(start);
        self.next = end;
        self.found.push_back(Record {
            start,
            end,
            prev: header.prev,
            xid: header.xid,
            rmid: header.rmid,
            info: header.info,
            length: header.length,
            fact,
        });
        !switched
    }

    fn fact(&self, header: &RecordHeader, body: &[u8]) -> Option<Fact> {
        decode(header, body, self.segment?.version)
    }
}

impl Unfinished {
    fn new(start: Lsn, length: u32) -> Self {
        Self { start, length, read: 0, header: [0; HEADER], parsed: None, crc: 0, body: Vec::new() }
    }

    /// Its header, as far as it was read.
    pub(super) fn header(&self) -> &[u8] {
        &self.header[..HEADER.min(self.read as usize)]
    }

    /// Adds the record's next bytes. An error when its header, now complete, cannot be right.
    fn add(&mut self, bytes: &[u8], prev: Option<Lsn>) -> Result<(), String> {
        let read = self.read as usize;
        self.read += bytes.len() as u32;
        let (head, body) = bytes.split_at(bytes.len().min(HEADER.saturating_sub(read)));
        if !head.is_empty() {
            self.header[read..read + head.len()].copy_from_slice(head);
        }
        if self.parsed.is_none() && read + bytes.len() >= HEADER {
            self.parsed = RecordHeader::parse(&self.header);
            if let Some(why) = self.parsed.and_then(|header| header.fault(self.start, prev)) {
                return Err(why);
            }
        }
        self.crc = crc32c::crc32c_append(self.crc, body);
        let needed = self.parsed.map_or(0, |header| needed(header.rmid, header.info)).min(HELD);
        self.body.extend_from_slice(&body[..body.len().min(needed - self.body.len())]);
        if self.read == self.length {
            self.crc = crc32c::crc32c_append(self.crc, &self.header[..HEADER - 4]);
        }
        Ok(())
    }
}

/// The records in the bytes that [`Reader::read`] was given.
#[derive(Debug)]
pub struct Records<'a> {
    reader: &'a mut Reader,
    bytes: &'a [u8],
}

impl Iterator for Records<'_> {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        loop {
            if let Some(record) = self.reader.found.pop_front() {
                return Some(record);
            }
            if !self.reader.advance(&mut self.bytes) {
                return None;
            }
        }
    }
}

/// Rounded up to where a record may start (`MAXALIGN`).
fn align(bytes: usize) -> usize {
    bytes.next_multiple_of(8)
}

#[cfg(test)]
mod tests;
