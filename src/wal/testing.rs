//! Writes WAL as PostgreSQL 17 lays it out, for tests.

use crate::postgres::Lsn;

pub(crate) const PAGE: usize = 8192;
/// Segments of the tests have 1 MB.
pub(crate) const SEGMENT: usize = 1 << 20;
pub(crate) const MAGIC: u16 = 0xD116;

const CONTINUED: u16 = 1;
const LONG: u16 = 2;
const OVERWRITTEN: u16 = 8;

/// A page header as PostgreSQL writes it, a long one where the flags say so.
pub(crate) fn header(magic: u16, flags: u16, timeline: u32, address: u64, remaining: u32) -> Vec<u8> {
    let mut page = Vec::with_capacity(40);
    page.extend_from_slice(&magic.to_le_bytes());
    page.extend_from_slice(&flags.to_le_bytes());
    page.extend_from_slice(&timeline.to_le_bytes());
    page.extend_from_slice(&address.to_le_bytes());
    page.extend_from_slice(&remaining.to_le_bytes());
    page.extend_from_slice(&[0; 4]);
    if flags & LONG != 0 {
        page.extend_from_slice(&7_u64.to_le_bytes());
        page.extend_from_slice(&(SEGMENT as u32).to_le_bytes());
        page.extend_from_slice(&(PAGE as u32).to_le_bytes());
    }
    page
}

/// Appends records, starting with a segment.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) bytes: Vec<u8>,
    pub(crate) start: Lsn,
    pub(crate) timeline: u32,
    pub(crate) prev: Lsn,
}

impl Writer {
    pub(crate) fn at(start: u64) -> Self {
        Self { bytes: Vec::new(), start: Lsn(start), timeline: 1, prev: Lsn(start - 64) }
    }

    /// The address of the next byte.
    pub(crate) fn position(&self) -> Lsn {
        self.start + self.bytes.len() as u64
    }

    /// A record whose main data is `main`; where it starts.
    pub(crate) fn record(&mut self, rmid: u8, info: u8, xid: u32, main: &[u8]) -> Lsn {
        self.begin(0);
        let start = self.position();
        let bytes = record(self.prev, rmid, info, xid, main);
        self.prev = start;
        self.append(&bytes);
        start
    }

    /// The beginning of a record that goes on past the end of this page, and is never finished.
    pub(crate) fn torn(&mut self) -> Lsn {
        self.begin(0);
        let start = self.position();
        let bytes = record(self.prev, 10, 0, 9, &[7; 2 * PAGE]);
        self.bytes.extend_from_slice(&bytes[..PAGE - self.bytes.len() % PAGE]);
        start
    }

    /// What PostgreSQL writes on the next page after it found a torn record.
    pub(crate) fn overwrite(&mut self, torn: Lsn) -> Lsn {
        self.begin(OVERWRITTEN);
        self.record(0, 0xD0, 0, &[torn.0.to_le_bytes(), [0; 8]].concat())
    }

    /// A switch record, and zeros up to the end of the segment.
    pub(crate) fn switch(&mut self) -> Lsn {
        self.begin(0);
        let start = self.position();
        let mut bytes = record(self.prev, 0, 0x40, 0, &[]);
        bytes.truncate(24);
        self.prev = start;
        self.append(&bytes);
        self.fill();
        start
    }

    /// Records of `rmid` 10 until `left` bytes are free on the page.
    pub(crate) fn fill_page(&mut self, left: usize) {
        self.begin(0);
        let free = PAGE - self.bytes.len() % PAGE - left;
        if free > 0 {
            self.record(10, 0, 1, &vec![1; free - 24 - 5]);
        }
        assert_eq!(PAGE - self.bytes.len() % PAGE, left);
    }

    /// Zeros up to the end of the segment.
    pub(crate) fn fill(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(SEGMENT), 0);
    }

    /// Starts a page when one is due.
    fn begin(&mut self, flags: u16) {
        if self.bytes.len().is_multiple_of(PAGE) {
            self.page(flags, 0);
        }
    }

    fn page(&mut self, flags: u16, remaining: usize) {
        let long = if self.bytes.len().is_multiple_of(SEGMENT) { LONG } else { 0 };
        let header = header(MAGIC, flags | long, self.timeline, self.position().0, remaining as u32);
        self.bytes.extend_from_slice(&header);
    }

    fn append(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.bytes.len().is_multiple_of(PAGE) {
                self.page(CONTINUED, bytes.len());
            }
            let (here, rest) = bytes.split_at(bytes.len().min(PAGE - self.bytes.len() % PAGE));
            self.bytes.extend_from_slice(here);
            bytes = rest;
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
    }
}

fn record(prev: Lsn, rmid: u8, info: u8, xid: u32, main: &[u8]) -> Vec<u8> {
    let mut body = vec![254];
    body.extend_from_slice(&(main.len() as u32).to_le_bytes());
    body.extend_from_slice(main);
    if main.is_empty() {
        body.clear();
    }
    let mut head = (24 + body.len() as u32).to_le_bytes().to_vec();
    head.extend_from_slice(&xid.to_le_bytes());
    head.extend_from_slice(&prev.0.to_le_bytes());
    head.extend_from_slice(&[info, rmid, 0, 0]);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&body), &head);
    head.extend_from_slice(&crc.to_le_bytes());
    head.extend_from_slice(&body);
    head
}
