//! One WAL record: its header (`XLogRecord` in `src/include/access/xlogrecord.h`), and the way through its block
//! references to its main data (`DecodeXLogRecord` in `xlogreader.c`).

use super::{
    Fact, RelFile,
    fields::Fields,
    image::{Compression, Image},
};
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
    /// Files of relations that are made or cut off.
    pub const SMGR: u8 = 2;
    /// Databases.
    pub const DATABASE: u8 = 4;
    /// Tablespaces.
    pub const TABLESPACE: u8 = 5;
    /// The files of mapped catalogues.
    pub const RELMAP: u8 = 7;
    /// What a hot standby needs: locks.
    pub const STANDBY: u8 = 8;
    /// Tables, continued: several rows at once.
    pub const HEAP2: u8 = 9;
    /// Tables.
    pub const HEAP: u8 = 10;
    /// `pg_logical_emit_message()`.
    pub const LOGICALMSG: u8 = 21;
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

/// What a record without its header is made of.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Body<'a> {
    /// The main data; cut short when the body was.
    pub main: &'a [u8],
    /// The blocks that it calls 0 and 1.
    pub blocks: [Option<Block>; 2],
    /// How many blocks it refers to.
    pub count: u32,
    /// What it holds of the block that it calls 0.
    pub content: Content<'a>,
}

/// What a record holds of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Content<'a> {
    /// Its image, if there is one.
    pub image: Option<Image<'a>>,
    /// Its data.
    pub data: &'a [u8],
}

/// A block that a record refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub file: RelFile,
    /// 0 is the main fork.
    pub fork: u8,
    pub number: u32,
}

impl<'a> Body<'a> {
    /// Takes `body` apart, of which `length` bytes belong to the record. `None` when the block references make no sense.
    /// `body` may be cut short behind them.
    pub(super) fn parse(body: &'a [u8], length: usize, version: Version) -> Option<Self> {
        let mut fields = Fields::of(body);
        let mut headers = 0;
        let mut data = 0;
        let mut blocks = [None; 2];
        let mut count = 0;
        let mut file = None;
        let mut content = None;
        let main = loop {
            // All that is left are images and data: there is no main data.
            if headers + data >= length {
                break 0;
            }
            match fields.u8()? {
                id @ 0..=32 => {
                    let reference = Reference::parse(&mut fields, &mut file, version)?;
                    headers += 1 + reference.header;
                    if id == 0 {
                        content =
                            Some((data, (reference.image, reference.hole, reference.compression), reference.data));
                    }
                    data += reference.image + reference.data;
                    count += 1;
                    if let Some(place) = blocks.get_mut(usize::from(id)) {
                        *place = Some(reference.block);
                    }
                }
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
                _ => return None,
            }
        };
        let start = headers + data;
        if start.checked_add(main)? != length {
            return None;
        }
        let bytes = |from: usize, length: usize| body.get(headers + from..headers + from + length).unwrap_or_default();
        let content = content.map_or_else(Content::default, |(from, (image, hole, compression), length)| Content {
            image: (image > 0).then(|| Image { bytes: bytes(from, image), hole, compression }),
            data: bytes(from + image, length),
        });
        Some(Self { main: body.get(start..).unwrap_or_default(), blocks, count, content })
    }
}

/// One block reference.
struct Reference {
    block: Block,
    /// Bytes of its header after the id.
    header: usize,
    /// Bytes of its image, which lies further on; 0 when there is none.
    image: usize,
    /// Where in the page the bytes begin that the image leaves out.
    hole: usize,
    /// How the image is compressed.
    compression: Compression,
    /// Bytes of its data, which follow the image.
    data: usize,
}

impl Reference {
    /// Reads the header behind the id. `file` is the one of the reference before, and becomes this one's.
    fn parse(fields: &mut Fields<'_>, file: &mut Option<RelFile>, version: Version) -> Option<Self> {
        const FORK: u8 = 0x0F;
        const HAS_IMAGE: u8 = 0x10;
        const SAME_RELATION: u8 = 0x80;
        const HAS_HOLE: u8 = 0x01;
        let flags = fields.u8()?;
        let data = usize::from(fields.u16()?);
        let mut header = 3;
        let (mut image, mut hole, mut compression) = (0, 0, Compression::None);
        if flags & HAS_IMAGE != 0 {
            image = usize::from(fields.u16()?);
            hole = usize::from(fields.u16()?);
            let info = fields.u8()?;
            // BKPIMAGE_IS_COMPRESSED until 14; since 15 one bit each for pglz, lz4 and zstd.
            compression = match info & if version.0 < 15 { 0x02 } else { 0x1C } {
                0 => Compression::None,
                0x02 | 0x04 => Compression::Pglz,
                0x08 => Compression::Lz4,
                _ => Compression::Zstd,
            };
            header += 5;
            if info & HAS_HOLE != 0 && compression != Compression::None {
                fields.skip(2)?;
                header += 2;
            }
        }
        if flags & SAME_RELATION == 0 {
            *file = Some(fields.rel_file()?);
            header += 12;
        }
        let block = Block { file: (*file)?, fork: flags & FORK, number: fields.u32()? };
        Some(Self { block, header: header + 4, image, hole, compression, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Block 0: image of 4 bytes with a hole, compressed by lz4, 2 bytes of data; block 1 in the same file; then 3 bytes of
    /// main data.
    fn body() -> Vec<u8> {
        let mut body = vec![0, 0x30, 2, 0, 4, 0, 9, 0, 0x01 | 0x08, 7, 0];
        body.extend_from_slice(&[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 77, 0, 0, 0]);
        body.extend_from_slice(&[1, 0x82, 0, 0, 78, 0, 0, 0]);
        body.extend_from_slice(&[252, 9, 9, 9, 9, 253, 8, 8, 255, 3]);
        body.extend_from_slice(b"IMAGDAmai");
        body
    }

    #[test]
    fn finds_the_main_data_behind_images() {
        let body = body();
        let main = |body: &[u8], length, version| Body::parse(body, length, Version(version)).map(|b| b.main.to_vec());
        assert_eq!(main(&body, body.len(), 15).unwrap(), b"mai");
        assert_eq!(main(&body, body.len(), 14), None, "14 has no hole length here");
        assert_eq!(main(&body[..body.len() - 2], body.len(), 15).unwrap(), b"m", "cut");
        assert_eq!(main(&[], 0, 15).unwrap(), b"");
        let image = [vec![0, 0x10, 0, 0, 4, 0, 0, 0, 0], vec![1; 16], b"IMAG".to_vec()].concat();
        assert_eq!(main(&image, image.len(), 15).unwrap(), b"", "a page image alone");
        assert_eq!(main(&[77], 1, 15), None);
        assert_eq!(main(&[254, 255, 255, 255, 255], 5, 15), None);
        assert_eq!(main(&[0, 0x80, 0, 0, 1, 0, 0, 0], 8, 15), None, "the same file as none");
    }

    #[test]
    fn tells_the_blocks() {
        let body = body();
        let body = Body::parse(&body, body.len(), Version(15)).unwrap();
        let file = RelFile { tablespace: 1, database: 2, number: 3 };
        assert_eq!(body.blocks[0], Some(Block { file, fork: 0, number: 77 }));
        assert_eq!(body.blocks[1], Some(Block { file, fork: 2, number: 78 }));
        assert_eq!(body.count, 2);
    }
}
