//! Writes WAL as PostgreSQL lays it out, with right CRCs and links over records of any content.

/// Bytes of a page.
pub const PAGE: usize = 8192;
/// Bytes of a segment: the smallest that PostgreSQL allows.
pub const SEGMENT: usize = 1 << 20;
/// Bytes of a record's header.
pub const HEADER: usize = 24;

const CONTINUED: u16 = 1;
const LONG: u16 = 2;

/// Appends records, starting with a segment.
#[derive(Debug)]
pub struct Writer {
    /// What was written.
    pub bytes: Vec<u8>,
    start: u64,
    prev: u64,
    magic: u16,
}

/// What a record's header says besides its length, link and CRC.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// The resource manager.
    pub rmid: u8,
    /// `xl_info`.
    pub info: u8,
    /// The transaction.
    pub xid: u32,
}

impl Writer {
    /// A writer whose first segment begins at `start`, for the version of PostgreSQL with that page magic.
    #[must_use]
    pub fn new(start: u64, magic: u16) -> Self {
        Self { bytes: Vec::new(), start, prev: start.saturating_sub(64), magic }
    }

    /// A record of this body: block references and data, as they are. Gives the address where it starts.
    pub fn record(&mut self, kind: Kind, body: &[u8]) -> u64 {
        self.begin(0);
        let start = self.position();
        let record = self.bytes_of(kind, body);
        self.prev = start;
        self.append(&record);
        start
    }

    /// A record whose main data is `main`, without block references.
    pub fn plain(&mut self, kind: Kind, main: &[u8]) -> u64 {
        let mut body = vec![254];
        body.extend_from_slice(&(main.len() as u32).to_le_bytes());
        body.extend_from_slice(main);
        self.record(kind, &body)
    }

    /// A switch record, and zeros up to the end of the segment.
    pub fn switch(&mut self) {
        self.record(Kind { rmid: 0, info: 0x40, xid: 0 }, &[]);
        self.fill();
    }

    /// The beginning of a record that goes on past this page, and the record that gives it up after a crash.
    pub fn torn(&mut self) {
        self.begin(0);
        let torn = self.position();
        let record = self.bytes_of(Kind { rmid: 10, info: 0, xid: 9 }, &[7; 2 * PAGE]);
        self.bytes.extend_from_slice(&record[..self.free()]);
        self.begin(if self.magic >= 0xD120 { 4 } else { 8 });
        let main = [torn.to_le_bytes(), [0; 8]].concat();
        self.plain(Kind { rmid: 0, info: 0xD0, xid: 0 }, &main);
    }

    /// Zeros up to the end of the segment.
    pub fn fill(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(SEGMENT), 0);
    }

    /// How many bytes are free on the page.
    #[must_use]
    pub fn free(&self) -> usize {
        self.bytes.len().next_multiple_of(PAGE) - self.bytes.len()
    }

    fn position(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    fn bytes_of(&self, kind: Kind, body: &[u8]) -> Vec<u8> {
        let mut record = Vec::with_capacity(HEADER + body.len());
        record.extend_from_slice(&((HEADER + body.len()) as u32).to_le_bytes());
        record.extend_from_slice(&kind.xid.to_le_bytes());
        record.extend_from_slice(&self.prev.to_le_bytes());
        record.extend_from_slice(&[kind.info, kind.rmid, 0, 0]);
        let crc = crc32c::crc32c_append(crc32c::crc32c(body), &record);
        record.extend_from_slice(&crc.to_le_bytes());
        record.extend_from_slice(body);
        record
    }

    /// Starts a page when one is due.
    fn begin(&mut self, flags: u16) {
        if self.free() == 0 {
            self.page(flags, 0);
        }
    }

    fn page(&mut self, flags: u16, remaining: usize) {
        let long = self.bytes.len().is_multiple_of(SEGMENT);
        let flags = flags | if long { LONG } else { 0 };
        let address = self.position();
        self.bytes.extend_from_slice(&self.magic.to_le_bytes());
        self.bytes.extend_from_slice(&flags.to_le_bytes());
        self.bytes.extend_from_slice(&1_u32.to_le_bytes());
        self.bytes.extend_from_slice(&address.to_le_bytes());
        self.bytes.extend_from_slice(&(remaining as u32).to_le_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        if long {
            self.bytes.extend_from_slice(&7_u64.to_le_bytes());
            self.bytes.extend_from_slice(&(SEGMENT as u32).to_le_bytes());
            self.bytes.extend_from_slice(&(PAGE as u32).to_le_bytes());
        }
    }

    fn append(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.free() == 0 {
                self.page(CONTINUED, bytes.len());
            }
            let (here, rest) = bytes.split_at(bytes.len().min(self.free()));
            self.bytes.extend_from_slice(here);
            bytes = rest;
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
    }
}
