//! The seek table: where each frame of an object begins. At the end of a part it stands in zstd's seekable format
//! (`contrib/seekable_format/zstd_seekable_compression_format.md` of zstd), version 0.1.0, without checksums, because
//! every frame carries its own.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

const SKIPPABLE_MAGIC: u32 = 0x184D_2A5E;
const SEEKABLE_MAGIC: u32 = 0x8F92_EAB1;
const FOOTER: usize = 9;

/// The sizes of one frame in bytes. In JSON a pair, `[stored, content]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, u32)", into = "(u32, u32)")]
pub struct FrameSize {
    /// As stored, compressed.
    pub stored: u32,
    /// Its content.
    pub content: u32,
}

impl From<(u32, u32)> for FrameSize {
    fn from((stored, content): (u32, u32)) -> Self {
        Self { stored, content }
    }
}

impl From<FrameSize> for (u32, u32) {
    fn from(size: FrameSize) -> Self {
        (size.stored, size.content)
    }
}

/// The frames of an object in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<FrameSize>", into = "Vec<FrameSize>")]
pub struct SeekTable {
    frames: Vec<FrameSize>,
    content: u64,
}

impl From<Vec<FrameSize>> for SeekTable {
    fn from(frames: Vec<FrameSize>) -> Self {
        let content = frames.iter().map(|f| u64::from(f.content)).sum();
        Self { frames, content }
    }
}

impl From<SeekTable> for Vec<FrameSize> {
    fn from(table: SeekTable) -> Self {
        table.frames
    }
}

impl SeekTable {
    /// Adds a frame at the end.
    pub fn push(&mut self, frame: FrameSize) {
        self.content += u64::from(frame.content);
        self.frames.push(frame);
    }

    /// The frames.
    #[must_use]
    pub fn frames(&self) -> &[FrameSize] {
        &self.frames
    }

    /// Bytes of content of all frames.
    #[must_use]
    pub fn content(&self) -> u64 {
        self.content
    }

    /// Where to begin reading for the content at `offset`: the offset of that frame in the object, and the offset
    /// of its first byte in the content. `None` past the end.
    #[must_use]
    pub fn seek(&self, offset: u64) -> Option<(u64, u64)> {
        let (mut stored, mut content) = (0, 0);
        for frame in &self.frames {
            if offset < content + u64::from(frame.content) {
                return Some((stored, content));
            }
            stored += u64::from(frame.stored);
            content += u64::from(frame.content);
        }
        None
    }

    /// Where in the object the last frame lies, when it has no content: an index of what is in the others.
    #[must_use]
    pub fn index(&self) -> Option<std::ops::Range<u64>> {
        let last = self.frames.last().filter(|last| last.content == 0 && last.stored > 0)?;
        let stored: u64 = self.frames.iter().map(|f| u64::from(f.stored)).sum();
        Some(stored - u64::from(last.stored)..stored)
    }

    /// The table as it stands at the end of an object.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let length = self.frames.len() * 8 + FOOTER;
        let mut bytes = Vec::with_capacity(8 + length);
        bytes.extend_from_slice(&SKIPPABLE_MAGIC.to_le_bytes());
        bytes.extend_from_slice(&(length as u32).to_le_bytes());
        for frame in &self.frames {
            bytes.extend_from_slice(&frame.stored.to_le_bytes());
            bytes.extend_from_slice(&frame.content.to_le_bytes());
        }
        bytes.extend_from_slice(&(self.frames.len() as u32).to_le_bytes());
        bytes.push(0);
        bytes.extend_from_slice(&SEEKABLE_MAGIC.to_le_bytes());
        bytes
    }

    /// Reads the table at the end of `tail`, which must hold all of it.
    pub fn from_tail(tail: &[u8]) -> Result<Self> {
        let bad = || Error::damaged("the object does not end with a seek table");
        let footer = tail.len().checked_sub(FOOTER).and_then(|at| tail.get(at..)).ok_or_else(bad)?;
        let word = |bytes: &[u8]| bytes.try_into().map(u32::from_le_bytes).map_err(|_| bad());
        if word(&footer[5..])? != SEEKABLE_MAGIC || footer[4] != 0 {
            return Err(bad());
        }
        let count = word(&footer[..4])? as usize;
        let length = count.checked_mul(8).ok_or_else(bad)?;
        let start = tail.len().checked_sub(FOOTER + length).ok_or_else(bad)?;
        let frames = tail[start..start + length]
            .chunks_exact(8)
            .map(|pair| Ok(FrameSize { stored: word(&pair[..4])?, content: word(&pair[4..])? }))
            .collect::<Result<Vec<_>>>()?;
        Ok(frames.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn finds_the_frame_of_an_offset() {
        let table = SeekTable::from(vec![(10, 100).into(), (20, 50).into()]);
        assert_eq!(table.seek(0), Some((0, 0)));
        assert_eq!(table.seek(99), Some((0, 0)));
        assert_eq!(table.seek(100), Some((10, 100)));
        assert_eq!(table.seek(150), None);
    }

    proptest! {
        #[test]
        fn a_table_is_read_as_it_is_written(frames: Vec<(u32, u32)>, before: Vec<u8>) {
            let table = SeekTable::from(frames.into_iter().map(FrameSize::from).collect::<Vec<_>>());
            let tail = [before, table.to_bytes()].concat();
            prop_assert_eq!(SeekTable::from_tail(&tail).unwrap(), table);
        }

        #[test]
        fn no_tail_makes_it_panic(bytes: Vec<u8>) {
            let _ = SeekTable::from_tail(&bytes);
        }
    }
}
