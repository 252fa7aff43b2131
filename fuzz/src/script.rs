//! WAL out of arbitrary bytes: a row of steps, so that what a fuzzer changes is a record's content and not its CRC.
//!
//! The first byte chooses the version, the second the size of the pieces that the reader is fed. Then each step is a
//! byte for what is done, and its operands, little-endian: see [`build`]. `seeds` writes the same of real WAL.

use super::writer::{Kind, PAGE, SEGMENT, Writer};

/// Where the WAL begins.
pub const START: u64 = 0x500_0000;

/// The page magics of PostgreSQL 14 to 19.
const MAGICS: [u16; 6] = [0xD10D, 0xD110, 0xD113, 0xD116, 0xD118, 0xD121];

/// The WAL is never longer, whatever the script says.
const LONGEST: usize = 2 * SEGMENT;

/// WAL that was built.
#[derive(Debug)]
pub struct Built {
    /// Whole pages. What follows in the last segment is zeros.
    pub bytes: Vec<u8>,
    /// The major version.
    pub version: u32,
    /// In pieces of how many bytes to read it.
    pub chunk: usize,
}

struct Steps<'a>(&'a [u8]);

impl<'a> Steps<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn number(&mut self, bytes: usize) -> usize {
        self.take(bytes).iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte))
    }
}

/// Builds the WAL that a script describes.
#[must_use]
pub fn build(script: &[u8]) -> Built {
    let mut steps = Steps(script);
    let version = steps.number(1) % MAGICS.len();
    let chunk = [1, 63, 4096, 8191, 8192, 8193, 100_003, usize::MAX][steps.number(1) % 8];
    let mut writer = Writer::new(START, MAGICS[version]);
    let mut damage = Vec::new();
    while !steps.0.is_empty() && writer.bytes.len() < LONGEST {
        match steps.number(1) % 8 {
            // A record as it is: resource manager, info, xid, length, body.
            0..=2 => {
                let kind = kind(&mut steps);
                let length = steps.number(2);
                writer.record(kind, steps.take(length));
            }
            // A record by its main data.
            3 => {
                let kind = kind(&mut steps);
                let length = steps.number(2);
                writer.plain(kind, steps.take(length));
            }
            // Many small ones: how many, then one as above.
            4 => {
                let count = steps.number(1);
                let kind = kind(&mut steps);
                let length = steps.number(1);
                let body = steps.take(length);
                for number in 0..count as u32 {
                    writer.record(Kind { xid: kind.xid.wrapping_add(number), ..kind }, body);
                }
            }
            // A long one that tells nothing, up to a few bytes before or after the end of the page or segment.
            5 => {
                let left = steps.number(1) * 8;
                let whole = if steps.number(1) % 2 == 0 { SEGMENT } else { writer.free() };
                let room = whole - writer.bytes.len() % whole.max(1);
                let body = vec![0x5A; room.saturating_sub(left)];
                writer.plain(Kind { rmid: 10, info: 0, xid: 5 }, &body);
            }
            6 if steps.number(1) % 2 == 0 => writer.switch(),
            6 => writer.torn(),
            // A byte that is changed at the end, when all CRCs are right.
            _ => damage.push((steps.number(3), steps.number(1))),
        }
    }
    let Writer { mut bytes, .. } = writer;
    bytes.resize(bytes.len().next_multiple_of(PAGE), 0);
    for (at, change) in damage {
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= change as u8;
        }
    }
    Built { bytes, version: 14 + version as u32, chunk }
}

fn kind(steps: &mut Steps<'_>) -> Kind {
    Kind { rmid: steps.number(1) as u8, info: steps.number(1) as u8, xid: steps.number(4) as u32 }
}
