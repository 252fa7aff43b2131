//! What proves a file's content while it passes by: the hash of its bytes, or one over the hashes of its blocks.

use super::fetch::ANOTHER;
use crate::{
    error::{Error, Result},
    repository::{File, Hashed},
    seal::{Blake3, BlockHash, BlockMap},
};

/// What was seen of a file's content so far, from its first byte on.
pub enum Proof {
    /// Of a file whose bytes are hashed.
    Content {
        /// The hash.
        hasher: Box<blake3::Hasher>,
        /// The checksum.
        crc32c: u32,
    },
    /// Of a file whose blocks are hashed.
    Blocks {
        /// Bytes of a block.
        size: usize,
        /// The whole blocks.
        map: BlockMap,
        /// What there is of the next.
        rest: Vec<u8>,
    },
}

impl Proof {
    /// The proof that this file needs. `block_size` is the manifest's.
    pub fn of(file: &File, block_size: u32) -> Self {
        match file.hashed {
            Hashed::Content => Self::Content { hasher: Box::default(), crc32c: 0 },
            Hashed::Blocks => Self::Blocks { size: block_size as usize, map: BlockMap::default(), rest: Vec::new() },
        }
    }

    /// Takes the next bytes.
    pub fn see(&mut self, mut bytes: &[u8]) {
        match self {
            Self::Content { hasher, crc32c } => {
                hasher.update(bytes);
                *crc32c = crc32c::crc32c_append(*crc32c, bytes);
            }
            Self::Blocks { size, map, rest } => {
                if !rest.is_empty() {
                    let (more, behind) = bytes.split_at(bytes.len().min(*size - rest.len()));
                    rest.extend_from_slice(more);
                    bytes = behind;
                    if rest.len() == *size {
                        map.push(BlockHash::of(rest));
                        rest.clear();
                    }
                }
                let blocks = bytes.chunks_exact(*size);
                rest.extend_from_slice(blocks.remainder());
                blocks.for_each(|block| map.push(BlockHash::of(block)));
            }
        }
    }

    /// Whether that was the file.
    pub fn holds(&self, file: &File) -> bool {
        match self {
            Self::Content { hasher, crc32c } => Blake3::from(&**hasher) == file.blake3 && *crc32c == file.crc32c,
            Self::Blocks { size, map, rest } => rest.is_empty() && proves(map, *size, file),
        }
    }

    /// An error when that was not the file.
    pub fn check(&self, file: &File) -> Result<()> {
        if self.holds(file) { Ok(()) } else { Err(wrong(file)) }
    }
}

/// Whether these are the blocks of the file.
pub fn proves(map: &BlockMap, block_size: usize, file: &File) -> bool {
    map.root() == file.blake3 && map.crc32c(block_size) == file.crc32c
}

/// The error of a file whose content is not the one that was backed up.
pub fn wrong(file: &File) -> Error {
    let mut places: Vec<_> = file.layers.iter().map(|l| format!("part {} of backup {}", l.part, l.backup)).collect();
    places.dedup();
    let place = if places.is_empty() { String::new() } else { format!(" in {}", places.join(", ")) };
    Error::damaged(format!("{}{place} does not have the content that the manifest tells", file.path.display()))
        .hint(ANOTHER)
}
