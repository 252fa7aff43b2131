//! Block maps: a hash and a checksum of each block of a file, by which a later backup finds what has changed, and by
//! which a file is proven whose blocks come from several places.
//!
//! The hash is BLAKE3, cut to 128 bits: a checksum of 32 bits would call two different blocks the same every day in a
//! database of some terabytes. The CRC-32C of the blocks is there to be combined into the file's, which PostgreSQL's
//! `backup_manifest` wants.

use std::{array::from_fn, sync::OnceLock};

use super::Blake3;
use crate::error::{Error, Result};

/// What tells a block apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockHash {
    /// The first 128 bits of its BLAKE3.
    pub blake3: [u8; 16],
    /// Its CRC-32C.
    pub crc32c: u32,
}

impl BlockHash {
    /// Bytes of one as it is stored.
    pub const LENGTH: usize = 20;

    /// The hash of this block.
    #[must_use]
    pub fn of(block: &[u8]) -> Self {
        let mut blake3 = [0; 16];
        blake3.copy_from_slice(&::blake3::hash(block).as_bytes()[..16]);
        Self { blake3, crc32c: crc32c::crc32c(block) }
    }

    fn write(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.blake3);
        to.extend_from_slice(&self.crc32c.to_le_bytes());
    }

    fn read(bytes: &[u8; Self::LENGTH]) -> Self {
        let [blake3 @ .., a, b, c, d] = *bytes;
        Self { blake3, crc32c: u32::from_le_bytes([a, b, c, d]) }
    }
}

/// What becomes of a CRC when a block follows. It is the sum of what becomes of each of its bytes, which is looked up:
/// [`crc32c::crc32c_combine`] finds it out anew for each block, and that takes longer than to compress the block.
struct Shift([[u32; 256]; 4]);

/// By the power of two that the block size is.
static SHIFTS: [OnceLock<Shift>; usize::BITS as usize] = [const { OnceLock::new() }; usize::BITS as usize];

impl Shift {
    fn over(block_size: usize) -> Self {
        let bits: [u32; 32] = from_fn(|bit| crc32c::crc32c_combine(1 << bit, 0, block_size));
        let of_byte = |byte: usize, value: usize| {
            (0..8).filter(|bit| value >> bit & 1 == 1).fold(0, |sum, bit| sum ^ bits[byte * 8 + bit])
        };
        Self(from_fn(|byte| from_fn(|value| of_byte(byte, value))))
    }

    fn of(&self, crc: u32) -> u32 {
        crc.to_le_bytes().iter().zip(&self.0).fold(0, |sum, (byte, table)| sum ^ table[usize::from(*byte)])
    }
}

/// The hashes of blocks, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockMap {
    hashes: Vec<BlockHash>,
}

impl BlockMap {
    /// Of a file with `blocks` blocks, all of them zeros.
    #[must_use]
    pub fn zeros(blocks: usize, block_size: usize) -> Self {
        Self { hashes: vec![BlockHash::of(&vec![0; block_size]); blocks] }
    }

    /// Of the bytes of whole blocks.
    #[must_use]
    pub fn of(bytes: &[u8], block_size: usize) -> Self {
        Self { hashes: bytes.chunks_exact(block_size).map(BlockHash::of).collect() }
    }

    /// The hashes.
    #[must_use]
    pub fn hashes(&self) -> &[BlockHash] {
        &self.hashes
    }

    /// Adds the next block's.
    pub fn push(&mut self, hash: BlockHash) {
        self.hashes.push(hash);
    }

    /// Puts a hash in another's place. A block past the end is no one's.
    pub fn set(&mut self, block: usize, hash: BlockHash) {
        if let Some(place) = self.hashes.get_mut(block) {
            *place = hash;
        }
    }

    /// Makes it the map of a file of `blocks` blocks: what is beyond goes, what is missing is like no block.
    pub fn resize(&mut self, blocks: usize) {
        self.hashes.resize(blocks, BlockHash { blake3: [0; 16], crc32c: 0 });
    }

    /// One hash for all of them: BLAKE3 of the blocks' 16 bytes each, one after the other.
    #[must_use]
    pub fn root(&self) -> Blake3 {
        let mut hasher = ::blake3::Hasher::new();
        for hash in &self.hashes {
            hasher.update(&hash.blake3);
        }
        Blake3::from(&hasher)
    }

    /// The CRC-32C of all bytes, of blocks of `block_size` bytes.
    #[must_use]
    pub fn crc32c(&self, block_size: usize) -> u32 {
        match SHIFTS.get(block_size.trailing_zeros() as usize).filter(|_| block_size.is_power_of_two()) {
            Some(shift) => {
                let shift = shift.get_or_init(|| Shift::over(block_size));
                self.hashes.iter().fold(0, |crc, hash| shift.of(crc) ^ hash.crc32c)
            }
            None => self.hashes.iter().fold(0, |crc, hash| crc32c::crc32c_combine(crc, hash.crc32c, block_size)),
        }
    }

    /// As it is stored: 20 bytes a block, the hash and the CRC, little-endian.
    pub fn write(&self, to: &mut Vec<u8>) {
        to.reserve(self.hashes.len() * BlockHash::LENGTH);
        for hash in &self.hashes {
            hash.write(to);
        }
    }

    /// Reads what [`BlockMap::write`] has written.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let (hashes, rest) = bytes.as_chunks::<{ BlockHash::LENGTH }>();
        if !rest.is_empty() {
            return Err(Error::damaged("a block map is cut short"));
        }
        Ok(Self { hashes: hashes.iter().map(BlockHash::read).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_map_is_read_as_it_is_written_and_its_sum_is_the_files(blocks in prop::collection::vec(any::<[u8; 64]>(), 0..50)) {
            let bytes = blocks.concat();
            let map = BlockMap::of(&bytes, 64);
            let mut stored = Vec::new();
            map.write(&mut stored);
            prop_assert_eq!(stored.len(), blocks.len() * BlockHash::LENGTH);
            prop_assert_eq!(&BlockMap::read(&stored).unwrap(), &map);
            prop_assert_eq!(map.crc32c(64), crc32c::crc32c(&bytes));
            let of_odd = BlockMap::of(&bytes, 32 * 3);
            prop_assert_eq!(of_odd.crc32c(96), crc32c::crc32c(&bytes[..bytes.len() / 96 * 96]));
            if !stored.is_empty() {
                prop_assert!(BlockMap::read(&stored[1..]).is_err());
            }
        }

        #[test]
        fn another_block_or_another_order_is_another_root(mut blocks in prop::collection::vec(any::<[u8; 64]>(), 2..20), at: prop::sample::Index) {
            let root = BlockMap::of(&blocks.concat(), 64).root();
            let at = at.index(blocks.len() - 1);
            if blocks[at] != blocks[at + 1] {
                blocks.swap(at, at + 1);
                prop_assert_ne!(BlockMap::of(&blocks.concat(), 64).root(), root);
                blocks.swap(at, at + 1);
            }
            blocks[at][5] ^= 1;
            prop_assert_ne!(BlockMap::of(&blocks.concat(), 64).root(), root);
        }
    }
}
