//! One WAL record: its header (`XLogRecord` in `src/include/access/xlogrecord.h`), and the way through its block
//! references to its main data (`DecodeXLogRecord` in `xlogreader.c`).

use super::{Fact, fields::Fields};
use crate::postgres::{Lsn, Version};

/// Bytes of a record's header. Every record starts at a multiple of eight.
pub(super) const HEADER: usize = 24;
/// No record is longer: PostgreSQL holds one in a single allocation (`MaxAllocSize`).
pub(super) const LONGEST: u32 = 0x3FFF_FFFF;

/// The resource managers whose records say something that recovery is planned by.
pub mod resource_manager {
    /// Checkpoints, switches, restore points, parameter changes.
    pub const XLOG: u8 = 0;
    /// Commits, aborts, prepared transactions.
    pub const XACT: u8 = 1;
    /// Tablespaces.
    pub const TABLESPACE: u8 = 5;
    /// The highest number of a built-in one (19: `XLOG2`).
    pub(in super::super) const LAST_BUILT_IN: u8 = 22;
    /// Extensions have numbers from here on.
    pub(in super::super) const FIRST_CUSTOM: u8 = 128;
}

/// A record whose CRC is right and which follows the record before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its address: what `pg_waldump` prints, and what an LSN target is compared with.
    pub start: Lsn,
    /// The first byte after it (after a switch: the next segment).
    pub end: Lsn,
    /// The start of the record before it.
    pub prev: Lsn,
    /// The transaction that wrote it; 0 when none did.
    pub xid: u32,
    /// The resource manager, by number.
    pub rmid: u8,
    /// `xl_info`: the upper four bits are the resource manager's.
    pub info: u8,
    /// Its length in bytes, header included (`xl_tot_len`).
    pub length: u32,
    /// What it says.
    pub fact: Fact,
}

/// The header of a record.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordHeader {
    pub length: u32,
    pub xid: u32,
    pub prev: Lsn,
    pub info: u8,
    pub rmid: u8,
    pub crc: u32,
}

impl RecordHeader {
    pub(super) fn parse(bytes: &[u8; HEADER]) -> Option<Self> {
        let mut fields = Fields::of(bytes);
        let length = fields.u32()?;
        let xid = fields.u32()?;
        let prev = Lsn(fields.u64()?);
        let info = fields.u8()?;
        let rmid = fields.u8()?;
        fields.skip(2)?;
        let crc = fields.u32()?;
        Some(Self { length, xid, prev, info, rmid, crc })
    }

    /// What is wrong with the header of a record at `start` that should follow the one at `prev`
    /// (`ValidXLogRecordHeader`).
    pub(super) fn fault(&self, start: Lsn, prev: Option<Lsn>) -> Option<String> {
        if (self.length as usize) < HEADER || self.length > LONGEST {
            return Some(format!("a record cannot have {} bytes", self.length));
        }
        if self.rmid > resource_manager::LAST_BUILT_IN && self.rmid < resource_manager::FIRST_CUSTOM {
            return Some(format!("there is no resource manager {}", self.rmid));
        }
        match prev {
            Some(prev) if prev != self.prev => {
                Some(format!("the record says that it follows {}, but the one before it is {prev}", self.prev))
            }
            None if self.prev >= start => Some(format!("the record says that it follows {}", self.prev)),
            _ => None,
        }
    }
}

/// The main data in `body`, a record without its header of which `length` bytes belong to it. `None` when the block
/// references make no sense. `body` may be cut short; then so is the main data.
pub(super) fn main_data(body: &[u8], length: usize, version: Version) -> Option<&[u8]> {
    let mut fields = Fields::of(body);
    let mut headers = 0;
    let mut blocks = 0;
    let main = loop {
        if headers == length {
            break 0;
        }
        let id = fields.u8()?;
        match id {
            255 => {
                headers += 2;
                break usize::from(fields.u8()?);
            }
            254 => {
                headers += 5;
                break usize::try_from(fields.u32()?).ok()?;
            }
            253 => {
                fields.skip(2)?;
                headers += 3;
            }
            252 => {
                fields.skip(4)?;
                headers += 5;
            }
            0..=32 => {
                let (header, data) = block(&mut fields, version)?;
                headers += 1 + header;
                blocks += data;
            }
            _ => return None,
        }
    };
    let start = headers + blocks;
    if start.checked_add(main)? != length {
        return None;
    }
    Some(body.get(start..).unwrap_or_default())
}

/// Passes over one block reference: the bytes of its header after the id, and those of its image and data, which
/// lie further on.
fn block(fields: &mut Fields<'_>, version: Version) -> Option<(usize, usize)> {
    const HAS_IMAGE: u8 = 0x10;
    const SAME_RELATION: u8 = 0x80;
    const HAS_HOLE: u8 = 0x01;
    // BKPIMAGE_IS_COMPRESSED until 14; since 15 one bit each for pglz, lz4 and zstd.
    let compressed = if version.0 < 15 { 0x02 } else { 0x1C };
    let flags = fields.u8()?;
    let mut data = usize::from(fields.u16()?);
    let mut header = 3;
    if flags & HAS_IMAGE != 0 {
        data += usize::from(fields.u16()?);
        fields.skip(2)?;
        let image = fields.u8()?;
        header += 5;
        if image & HAS_HOLE != 0 && image & compressed != 0 {
            fields.skip(2)?;
            header += 2;
        }
    }
    if flags & SAME_RELATION == 0 {
        fields.skip(12)?;
        header += 12;
    }
    fields.skip(4)?;
    Some((header + 4, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_main_data_behind_images() {
        // Block 0: image of 4 bytes with a hole, compressed by lz4, 2 bytes of data, then 3 bytes of main data.
        let mut body = vec![0, 0x30, 2, 0, 4, 0, 9, 0, 0x01 | 0x08, 7, 0];
        body.extend_from_slice(&[1; 12]);
        body.extend_from_slice(&[2; 4]);
        body.extend_from_slice(&[252, 9, 9, 9, 9, 253, 8, 8, 255, 3]);
        body.extend_from_slice(b"IMAGDAmai");
        assert_eq!(main_data(&body, body.len(), Version(15)), Some(&b"mai"[..]));
        assert_eq!(main_data(&body, body.len(), Version(14)), None, "14 has no hole length here");
        assert_eq!(main_data(&body[..body.len() - 2], body.len(), Version(15)), Some(&b"m"[..]), "cut");
        assert_eq!(main_data(&[], 0, Version(15)), Some(&b""[..]));
        assert_eq!(main_data(&[77], 1, Version(15)), None);
        assert_eq!(main_data(&[254, 255, 255, 255, 255], 5, Version(15)), None);
    }
}
