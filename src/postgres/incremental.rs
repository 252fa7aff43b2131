//! PostgreSQL 17's incremental files: the changed blocks of a relation's file (`src/include/backup/
//! basebackup_incremental.h`, `GetIncrementalHeaderSize` in `basebackup_incremental.c`, and `make_rfile` in
//! `src/bin/pg_combinebackup/reconstruct.c`).
//!
//! A header of 32-bit words in the byte order of the machine that wrote it, little-endian here: the magic number, how
//! many blocks follow, the truncation length in blocks, the number of each block, rising. When blocks follow, the
//! header is filled up with zeros to a multiple of the block size, so that they lie aligned. Block numbers count from
//! the start of this file, not of the fork. The file that is meant is as long as the truncation length says, or up to
//! the highest block when that is longer; what no layer holds is zeros.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

use crate::error::{Error, Result};

/// `INCREMENTAL_MAGIC`.
const MAGIC: u32 = 0xd3ae_1f0d;
/// What the name of such a file begins with.
const PREFIX: &str = "INCREMENTAL.";
/// Relation files have at most so many blocks: a gigabyte of the smallest, by default, and some builds have greater
/// ones.
const MOST_BLOCKS: u32 = 1 << 24;

/// The header of an incremental file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncrementalHeader {
    /// The blocks that follow, rising.
    pub blocks: Vec<u32>,
    /// The length of the file that is meant, in blocks, when no block lies beyond.
    pub truncation: u32,
}

impl IncrementalHeader {
    /// Bytes of a header for `blocks` blocks.
    #[must_use]
    pub fn size(blocks: usize, block_size: u32) -> u64 {
        let words = 12 + 4 * blocks as u64;
        if blocks == 0 { words } else { words.next_multiple_of(u64::from(block_size)) }
    }

    /// Bytes of the whole file.
    #[must_use]
    pub fn file_size(&self, block_size: u32) -> u64 {
        Self::size(self.blocks.len(), block_size) + self.blocks.len() as u64 * u64::from(block_size)
    }

    /// The length of the file that is meant, in blocks.
    #[must_use]
    pub fn result_blocks(&self) -> u32 {
        self.blocks.last().map_or(self.truncation, |last| self.truncation.max(last + 1))
    }

    /// As it stands at the front of the file.
    #[must_use]
    pub fn to_bytes(&self, block_size: u32) -> Vec<u8> {
        let size = Self::size(self.blocks.len(), block_size) as usize;
        let mut bytes = Vec::with_capacity(size);
        for word in [MAGIC, self.blocks.len() as u32, self.truncation].iter().chain(&self.blocks) {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.resize(size, 0);
        bytes
    }

    /// Reads the header, up to the first block. `length` is that of the whole file in bytes, which bounds what is
    /// read.
    pub fn read(from: &mut (impl Read + ?Sized), block_size: u32, length: u64) -> Result<Self> {
        let (magic, count, truncation) = (word(from)?, word(from)?, word(from)?);
        let damaged = |what: &str| Error::damaged(format!("an incremental file {what}"));
        if magic != MAGIC {
            return Err(damaged("does not begin with its magic number"));
        }
        let expected = Self::size(count as usize, block_size) + u64::from(count) * u64::from(block_size);
        if expected != length {
            return Err(damaged("does not have the length that its header tells"));
        }
        if count > MOST_BLOCKS || truncation > MOST_BLOCKS {
            return Err(damaged("is of a file that is too long"));
        }
        let mut words = vec![0; 4 * count as usize];
        from.read_exact(&mut words).map_err(failed)?;
        let blocks: Vec<u32> = words.as_chunks().0.iter().map(|w| u32::from_le_bytes(*w)).collect();
        let rising = blocks.is_sorted_by(|a, b| a < b) && blocks.last().is_none_or(|last| *last < MOST_BLOCKS);
        if !rising {
            return Err(damaged("has block numbers that do not rise"));
        }
        let rest = Self::size(blocks.len(), block_size) - 12 - 4 * u64::from(count);
        let skipped = io::copy(&mut from.take(rest), &mut io::sink()).map_err(failed)?;
        if skipped != rest {
            return Err(damaged("ends inside its header"));
        }
        Ok(Self { blocks, truncation })
    }
}

/// The name that a file's changed blocks have: `base/5/INCREMENTAL.16384` for `base/5/16384`.
#[must_use]
pub fn incremental_path(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(PREFIX);
    name.push(path.file_name().unwrap_or_default());
    path.with_file_name(name)
}

/// The file that an incremental one is of; `None` for any other name.
#[must_use]
pub fn incremental_of(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?.strip_prefix(PREFIX)?;
    Some(path.with_file_name(name))
}

fn word(from: &mut (impl Read + ?Sized)) -> Result<u32> {
    let mut bytes = [0; 4];
    from.read_exact(&mut bytes).map_err(failed)?;
    Ok(u32::from_le_bytes(bytes))
}

fn failed(error: io::Error) -> Error {
    // What is read may bring an error of ours with it.
    error.downcast::<Error>().unwrap_or_else(|e| Error::damaged("an incremental file cannot be read").source(e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_go_both_ways() {
        let path = Path::new("base/5/16384_vm.1");
        assert_eq!(incremental_path(path), Path::new("base/5/INCREMENTAL.16384_vm.1"));
        assert_eq!(incremental_of(&incremental_path(path)).unwrap(), path);
        assert_eq!(incremental_of(path), None);
    }

    proptest! {
        #[test]
        fn a_header_is_read_as_it_is_written(blocks in prop::collection::btree_set(0..200_000_u32, 0..5000), truncation in 0..200_000_u32) {
            let header = IncrementalHeader { blocks: blocks.into_iter().collect(), truncation };
            let bytes = header.to_bytes(8192);
            prop_assert_eq!(bytes.len() as u64, IncrementalHeader::size(header.blocks.len(), 8192));
            let mut from = &bytes[..];
            prop_assert_eq!(&IncrementalHeader::read(&mut from, 8192, header.file_size(8192)).unwrap(), &header);
            prop_assert!(from.is_empty());
            for cut in [0, 5, bytes.len() - 1] {
                prop_assert!(IncrementalHeader::read(&mut &bytes[..cut], 8192, header.file_size(8192)).is_err());
            }
        }

        #[test]
        fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), magic: bool, length: u64) {
            if magic && bytes.len() >= 4 {
                bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
            }
            let _ = IncrementalHeader::read(&mut &bytes[..], 8192, length);
        }
    }
}
