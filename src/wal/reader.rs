//! [`Reader`]: walks the records of consecutive segments, as `xlogreader.c` does for recovery: each one's CRC and
//! its link to the record before are proven, across pages and segments. Memory stays small whatever the record:
//! of those that tell no fact only the CRC is computed.

use std::borrow::Cow;

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
    Within(Box<Unfinished>),
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
        Records { reader: self, bytes, page: Page::default() }
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

    /// Takes the next page out of `bytes`; what there is of it is kept when it is not whole. None when nothing more can
    /// come of them.
    fn turn<'a>(&mut self, bytes: &mut &'a [u8]) -> Option<Page<'a>> {
        loop {
            if self.end.is_some() {
                return None;
            }
            let wanted = self.segment.map_or(LONG_HEADER, |segment| segment.block_size as usize);
            let address = self.position;
            if self.gathered.is_empty() && self.segment.is_some() && bytes.len() >= wanted {
                let (page, rest) = bytes.split_at(wanted);
                *bytes = rest;
                self.position = address + wanted as u64;
                return Some(Page { bytes: page.into(), address, offset: wanted });
            }
            let (more, rest) = bytes.split_at(bytes.len().min(wanted - self.gathered.len()));
            self.gathered.extend_from_slice(more);
            *bytes = rest;
            if self.gathered.len() < wanted {
                return None;
            }
            if self.segment.is_some() {
                self.position = address + wanted as u64;
                return Some(Page { bytes: std::mem::take(&mut self.gathered).into(), address, offset: wanted });
            }
            // The first page: its header tells how long it is.
            match SegmentHeader::parse(&self.gathered) {
                Ok(header) => self.segment = Some(header),
                Err(error) => self.garbage(address, error),
            }
        }
    }

    fn garbage(&mut self, at: Lsn, why: impl ToString) {
        self.end = Some(End::Garbage { at, why: why.to_string() });
    }

    /// Judges a page, and goes to where records start on it. The record that was open, when it ends here.
    fn enter(&mut self, page: &mut Page<'_>) -> Option<Record> {
        let segment = self.segment?;
        let first = segment.size.offset_of(page.address) == 0;
        if matches!(self.state, State::Switched) && !first {
            return None;
        }
        if page.bytes.iter().take(LONG_HEADER).all(|byte| *byte == 0) && !matches!(self.state, State::Within(_)) {
            self.end = Some(End::Zeros { at: self.next });
            return None;
        }
        match self.header(&page.bytes, page.address, first) {
            Ok(header) => self.resume(page, &header),
            Err(why) => {
                let at = self.open();
                self.garbage(at, why);
                None
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

    /// Finishes what was open when the page began: goes to where the next record starts on it, if one does.
    fn resume(&mut self, page: &mut Page<'_>, header: &PageHeader) -> Option<Record> {
        let data = header.data_offset();
        let continued = header.is_continued();
        match std::mem::replace(&mut self.state, State::Between) {
            State::Seeking => {
                let offset = if continued { data + align(header.remaining as usize) } else { data };
                if continued && self.keeps > 0 {
                    self.lead(&page.bytes, header);
                }
                if offset >= page.bytes.len() {
                    self.state = State::Seeking;
                } else {
                    self.next = header.address + if continued { offset as u64 } else { 0 };
                    page.offset = offset;
                }
            }
            State::Between | State::Switched if continued => {
                self.garbage(self.next, format!("the WAL page at {} continues no record", header.address));
            }
            State::Between | State::Switched => page.offset = data,
            // The server crashed, and gave that record up when it came back.
            State::Within(_) if header.is_overwritten() => page.offset = data,
            State::Within(record) if !continued || header.remaining != record.length - record.read => {
                self.garbage(record.start, format!("the WAL page at {} does not continue it", header.address));
            }
            State::Within(record) => return self.go_on(record, page, data),
        }
        None
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
    fn go_on(&mut self, mut record: Box<Unfinished>, page: &mut Page<'_>, data: usize) -> Option<Record> {
        let left = (record.length - record.read) as usize;
        let here = left.min(page.bytes.len() - data);
        if let Err(why) = record.add(&page.bytes[data..data + here], self.last) {
            self.garbage(record.start, why);
            return None;
        }
        if here < left {
            self.state = State::Within(record);
            return None;
        }
        page.offset = data + align(here);
        let header = record.parsed?;
        let whole = self.whole(record.start, page.next(), &header, record.crc, &record.body);
        self.leave_if_switched(page);
        whole
    }

    #[inline(always)]
    /// The next record that starts on the page. None when no more of them are whole there.
    fn record(&mut self, page: &mut Page<'_>) -> Option<Record> {
        let rest = page.bytes.get(page.offset..)?;
        let length = u32::from_le_bytes(*rest.first_chunk()?);
        let start = page.next();
        let Some((head, body)) = rest.get(..length as usize).and_then(<[u8]>::split_first_chunk) else {
            self.partly(start, length, rest);
            return None;
        };
        let header = RecordHeader::parse(head)?;
        if let Some(why) = header.fault(start, self.last) {
            self.garbage(start, why);
            return None;
        }
        page.offset += align(length as usize);
        let crc = crc32c::crc32c_append(crc32c::crc32c(body), &head[..HEADER - 4]);
        let whole = self.whole(start, page.next(), &header, crc, body);
        self.leave_if_switched(page);
        whole
    }

    /// Of what starts here, `rest` is all that the page has: no record, or one that goes on.
    fn partly(&mut self, start: Lsn, length: u32, rest: &[u8]) {
        if length == 0 {
            self.end = Some(End::Zeros { at: self.next });
        } else if (length as usize) < HEADER || length > record::LONGEST {
            self.garbage(start, format!("a record cannot have {length} bytes"));
        } else {
            let mut record = Box::new(Unfinished::new(start, length));
            match record.add(rest, self.last) {
                Ok(()) => self.state = State::Within(record),
                Err(why) => self.garbage(start, why),
            }
        }
    }

    /// A record of which all bytes were read.
    #[inline(always)]
    fn whole(&mut self, start: Lsn, end: Lsn, header: &RecordHeader, crc: u32, body: &[u8]) -> Option<Record> {
        if crc != header.crc {
            self.garbage(start, "the record's CRC is wrong");
            return None;
        }
        let Some(fact) = self.fact(header, body) else {
            self.garbage(start, "the record's CRC is right, but it is not laid out as its version does");
            return None;
        };
        self.last = Some(start);
        self.next = end;
        if let (Fact::Switch, Some(segment)) = (&fact, self.segment) {
            self.next = Lsn(end.0.next_multiple_of(segment.size.bytes()));
            self.state = State::Switched;
        }
        let RecordHeader { prev, xid, rmid, info, length, .. } = *header;
        Some(Record { start, end: self.next, prev, xid, rmid, info, length, fact })
    }

    /// Nothing after a switch is to be read on its page.
    fn leave_if_switched(&self, page: &mut Page<'_>) {
        if matches!(self.state, State::Switched) {
            page.offset = page.bytes.len();
        }
    }

    #[inline(always)]
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

/// A page that is being read.
#[derive(Debug, Default)]
struct Page<'a> {
    bytes: Cow<'a, [u8]>,
    address: Lsn,
    /// How far it was read.
    offset: usize,
}

impl Page<'_> {
    /// The address of the byte that comes next.
    fn next(&self) -> Lsn {
        self.address + self.offset as u64
    }
}

/// The records in the bytes that [`Reader::read`] was given.
#[derive(Debug)]
pub struct Records<'a> {
    reader: &'a mut Reader,
    bytes: &'a [u8],
    page: Page<'a>,
}

impl Iterator for Records<'_> {
    type Item = Record;

    #[inline]
    fn next(&mut self) -> Option<Record> {
        loop {
            if let Some(record) = self.reader.record(&mut self.page) {
                return Some(record);
            }
            self.page = self.reader.turn(&mut self.bytes)?;
            if let Some(record) = self.reader.enter(&mut self.page) {
                return Some(record);
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
