//! Headers of WAL pages and segments (`XLogPageHeaderData`, `XLogLongPageHeaderData` in
//! `src/include/access/xlog_internal.h`).

use super::fields::Fields;
use crate::{
    error::{Error, Result},
    postgres::{Lsn, SegmentName, SegmentSize, SystemId, TimelineId, Version},
};

/// Bytes of the header of every page but a segment's first.
pub const SHORT_HEADER: usize = 24;
/// Bytes of the header of a segment's first page. They tell all that [`SegmentHeader`] holds.
pub const LONG_HEADER: usize = 40;

/// The page begins with the rest of a record that the page before began (`XLP_FIRST_IS_CONTRECORD`).
const CONTINUED: u16 = 0x0001;
/// The header is a long one (`XLP_LONG_HEADER`).
const LONG: u16 = 0x0002;

/// The header of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageHeader {
    /// The version that wrote it.
    pub version: Version,
    /// `xlp_magic`: beta releases of one version differ in it.
    pub magic: u16,
    /// `xlp_info`, the flags.
    pub flags: u16,
    /// The timeline that wrote it.
    pub timeline: TimelineId,
    /// The address that the page says it has.
    pub address: Lsn,
    /// How many bytes of a record that began earlier are still to come, from this page's first on; 0 when none.
    pub remaining: u32,
}

impl PageHeader {
    /// Reads the header at the start of `page`, which should lie at `address`.
    ///
    /// The error says what is wrong with the page; that the page lies at another address is the caller's to judge.
    pub fn parse(page: &[u8], address: Lsn) -> Result<Self> {
        let bad = |what: String| Error::damaged(format!("the WAL page at {address} {what}"));
        let short = || bad(format!("is cut off after {} bytes", page.len()));
        let mut fields = Fields::of(page);
        let magic = fields.u16().ok_or_else(short)?;
        let flags = fields.u16().ok_or_else(short)?;
        let timeline = fields.u32().ok_or_else(short)?;
        let own = Lsn(fields.u64().ok_or_else(short)?);
        let remaining = fields.u32().ok_or_else(short)?;
        fields.skip(4).ok_or_else(short)?;
        let Some(version) = Version::from_page_magic(magic) else {
            return Err(unknown_magic(magic, address));
        };
        if flags & !all_flags(version) != 0 {
            return Err(bad(format!("has flags that PostgreSQL {version} does not know: {flags:04X}")));
        }
        let timeline = TimelineId::new(timeline).map_err(|_| bad("belongs to timeline 0".into()))?;
        Ok(Self { version, magic, flags, timeline, address: own, remaining })
    }

    /// Whether the page begins with the rest of a record.
    #[must_use]
    pub fn is_continued(&self) -> bool {
        self.flags & CONTINUED != 0
    }

    /// Whether the header is a long one, which a segment's first page has.
    #[must_use]
    pub fn is_long(&self) -> bool {
        self.flags & LONG != 0
    }

    /// Whether the record that the page before began was given up after a crash, and this page starts with the
    /// record that says so (`XLP_FIRST_IS_OVERWRITE_CONTRECORD`).
    #[must_use]
    pub fn is_overwritten(&self) -> bool {
        self.flags & if self.version.0 >= 19 { 0x0004 } else { 0x0008 } != 0
    }

    /// Where the page's data begins.
    #[must_use]
    pub fn data_offset(&self) -> usize {
        if self.is_long() { LONG_HEADER } else { SHORT_HEADER }
    }
}

/// `XLP_ALL_FLAGS`.
fn all_flags(version: Version) -> u16 {
    if version.0 >= 19 { 0x0007 } else { 0x000F }
}

fn unknown_magic(magic: u16, address: Lsn) -> Error {
    if magic == 0 {
        return Error::damaged(format!("the WAL page at {address} is empty"));
    }
    let error = Error::damaged(format!("the WAL page at {address} has the unknown magic number {magic:04X}"));
    if Version::from_page_magic(magic.swap_bytes()).is_some() {
        return error.hint("it was written on a machine of the other byte order, which Walden does not read");
    }
    error.hint("it is no WAL, or written by a PostgreSQL that is newer than this Walden")
}

/// What the first 40 bytes of a segment say about all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The version that wrote it.
    pub version: Version,
    /// The system that wrote it.
    pub system: SystemId,
    /// The timeline that wrote the first page: the one in the segment's name, or an ancestor of it.
    pub timeline: TimelineId,
    /// The LSN of its first byte.
    pub start: Lsn,
    /// How many bytes it should have.
    pub size: SegmentSize,
    /// Bytes of a page (`xlp_xlog_blcksz`): 8192 unless PostgreSQL was built otherwise.
    pub block_size: u32,
    /// The header of the first page.
    pub page: PageHeader,
}

impl SegmentHeader {
    /// Reads the first [`LONG_HEADER`] bytes of a segment.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let address = Lsn(bytes.get(8..16).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes));
        let bad = |what: String| Error::damaged(format!("the segment header at {address} {what}"));
        let short = || bad(format!("is cut off after {} bytes", bytes.len()));
        let page = PageHeader::parse(bytes, address)?;
        if !page.is_long() {
            return Err(bad("is that of a page in a segment's middle".into()));
        }
        let mut fields = Fields::of(bytes);
        fields.skip(SHORT_HEADER).ok_or_else(short)?;
        let system = SystemId(fields.u64().ok_or_else(short)?);
        let size = fields.u32().ok_or_else(short)?;
        let block_size = fields.u32().ok_or_else(short)?;
        let size = SegmentSize::try_from(size).map_err(|error| bad("is impossible".into()).source(error))?;
        if !block_size.is_power_of_two() || !(1 << 10..=1 << 16).contains(&block_size) {
            return Err(bad(format!("says that a page has {block_size} bytes, which PostgreSQL does not allow")));
        }
        if size.offset_of(address) != 0 {
            return Err(bad(format!("is not at the start of a segment of {} MB", size.bytes() >> 20)));
        }
        Ok(Self { version: page.version, system, timeline: page.timeline, start: address, size, block_size, page })
    }

    /// Whether a segment with this header can bear `name`: the address is that of the name, and the timeline is
    /// not younger than the name's.
    pub fn check_name(&self, name: SegmentName) -> Result<()> {
        let expected = name.start(self.size)?;
        if self.start != expected {
            let own = SegmentName::holding(name.timeline, self.start, self.size);
            return Err(Error::damaged(format!("segment {name} holds the WAL of {own}"))
                .hint("a file was copied or renamed by hand; only PostgreSQL may write to pg_wal"));
        }
        if self.timeline > name.timeline {
            return Err(Error::damaged(format!(
                "segment {name} was written by timeline {}, which is younger than its name's",
                self.timeline
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing::header, *};

    #[test]
    fn reads_a_segment_header() {
        let bytes = header(0xD116, LONG | CONTINUED, 3, 0x500_0000, 77);
        let read = SegmentHeader::parse(&bytes).unwrap();
        assert_eq!(read.version, Version(17));
        assert_eq!((read.system, read.timeline.get(), read.start), (SystemId(7), 3, Lsn(0x500_0000)));
        assert_eq!((read.size.bytes(), read.block_size, read.page.remaining), (1 << 20, 8192, 77));
        read.check_name("000000040000000000000050".parse().unwrap()).unwrap();
        let foreign = read.check_name("000000040000000000000051".parse().unwrap()).unwrap_err();
        assert_eq!(foreign.to_string(), "segment 000000040000000000000051 holds the WAL of 000000040000000000000050");
        assert!(read.check_name("000000020000000000000050".parse().unwrap()).is_err());
    }

    #[test]
    fn says_what_is_wrong() {
        let error = |bytes: &[u8]| SegmentHeader::parse(bytes).unwrap_err();
        assert!(error(b"").to_string().contains("cut off after 0 bytes"));
        assert!(error(&header(0xD116, LONG, 1, 0, 0)[..30]).to_string().contains("cut off after 30"));
        assert!(error(&[0; 40]).to_string().contains("is empty"));
        assert!(error(&header(0x16D1, LONG, 1, 0, 0)).hint_text().unwrap().contains("byte order"));
        assert!(error(&header(0xD116, 0x0012, 1, 0, 0)).to_string().contains("flags"));
        assert!(error(&header(0xD121, 0x000A, 1, 0, 0)).to_string().contains("flags"));
        assert!(error(&header(0xD116, LONG, 0, 0, 0)).to_string().contains("timeline 0"));
        assert!(error(&header(0xD116, 0, 1, 0, 0)).to_string().contains("middle"));
        assert!(error(&header(0xD116, LONG, 1, 8192, 0)).to_string().contains("not at the start"));
    }
}
