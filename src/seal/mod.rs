//! The byte pipeline: zstd frames and hashes, and back. Knows neither PostgreSQL nor stores.
//!
//! Everything Walden stores is a row of zstd frames that `zstd -d` reads: independent frames of at most 1 MiB of
//! content, each with its checksum, so that a reader can start at any of them. A *head* is a skippable frame in
//! front that holds JSON; a *seek table* is a skippable frame at the end in zstd's published seekable format.

pub mod age;
mod blocks;
mod frame;
mod hash;
mod seek;
mod team;

pub use blocks::{BlockHash, BlockMap};
pub use frame::{
    FRAME_CONTENT, FrameWriter, HEAD_LIMIT, Head, head, head_json, index_frame, read_head, read_index_frame,
};
pub use hash::{Blake3, HashReader, HashWriter, blake3, sha256};
pub use seek::{FrameSize, SeekTable};
pub use team::FrameTeam;

/// Whether there is nothing but zeros in it.
#[must_use]
pub fn is_zeros(bytes: &[u8]) -> bool {
    // A row of them at a time: so it is as fast as memory is.
    bytes.chunks(256).all(|row| row.iter().fold(0, |all, byte| all | byte) == 0)
}
