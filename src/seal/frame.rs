//! zstd frames: independent, of at most 1 MiB of content, with checksums; and the head, a skippable frame of JSON
//! in front of them (RFC 8878, section 3.1.2).

use std::io::{self, Write};

use serde::{Serialize, de::DeserializeOwned};
use zstd::bulk::Compressor;
use zstd::zstd_safe::CParameter;

use super::seek::{FrameSize, SeekTable};
use crate::error::{Error, Result};

/// The most content of one frame, in bytes.
pub const FRAME_CONTENT: usize = 1 << 20;

/// The most bytes of JSON in a head: one GET of this and eight bytes more always reads it whole.
pub const HEAD_LIMIT: usize = 64 << 10;

/// The skippable frame that holds a head: the sixth of the sixteen magic numbers that are free for anybody's use.
const HEAD_MAGIC: u32 = 0x184D_2A55;

/// Makes frames, one after the other.
pub(super) struct FrameMaker {
    compressor: Compressor<'static>,
    frame: Vec<u8>,
}

impl std::fmt::Debug for FrameMaker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameMaker").finish_non_exhaustive()
    }
}

impl FrameMaker {
    pub(super) fn new(level: i32) -> io::Result<Self> {
        let mut compressor = Compressor::new(level)?;
        compressor.set_parameter(CParameter::ChecksumFlag(true))?;
        Ok(Self { compressor, frame: vec![0; zstd::zstd_safe::compress_bound(FRAME_CONTENT)] })
    }

    /// The frame of at most [`FRAME_CONTENT`] bytes.
    pub(super) fn make(&mut self, content: &[u8]) -> io::Result<&[u8]> {
        let length = self.compressor.compress_to_buffer(content, &mut self.frame[..])?;
        Ok(&self.frame[..length])
    }
}

/// Cuts what is written into it into frames and writes these on.
///
/// A frame ends when it holds 1 MiB, and where [`FrameWriter::cut`] asks for it.
pub struct FrameWriter<W> {
    inner: W,
    maker: FrameMaker,
    content: Vec<u8>,
    table: SeekTable,
    written: u64,
}

impl<W> std::fmt::Debug for FrameWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameWriter").field("written", &self.written).finish_non_exhaustive()
    }
}

impl<W: Write> FrameWriter<W> {
    /// Compresses at zstd's `level` into `inner`.
    pub fn new(inner: W, level: i32) -> io::Result<Self> {
        Ok(Self {
            inner,
            maker: FrameMaker::new(level)?,
            content: Vec::with_capacity(FRAME_CONTENT),
            table: SeekTable::default(),
            written: 0,
        })
    }

    /// Bytes of content taken in so far: the offset of the next byte.
    pub fn offset(&self) -> u64 {
        self.table.content() + self.content.len() as u64
    }

    /// Bytes of the frame that is being filled.
    pub fn pending(&self) -> usize {
        self.content.len()
    }

    /// Ends the frame here, so that the next byte starts one.
    pub fn cut(&mut self) -> io::Result<()> {
        if self.content.is_empty() {
            return Ok(());
        }
        let content = std::mem::take(&mut self.content);
        let done = self.emit(&content);
        self.content = content;
        self.content.clear();
        done
    }

    /// Writes a frame of so much content on as it is; what was begun ends before it.
    pub fn pass(&mut self, frame: &[u8], content: u32) -> io::Result<()> {
        self.cut()?;
        self.inner.write_all(frame)?;
        self.table.push(FrameSize { stored: frame.len() as u32, content });
        self.written += frame.len() as u64;
        Ok(())
    }

    fn emit(&mut self, content: &[u8]) -> io::Result<()> {
        let frame = self.maker.make(content)?;
        self.inner.write_all(frame)?;
        self.table.push(FrameSize { stored: frame.len() as u32, content: content.len() as u32 });
        self.written += frame.len() as u64;
        Ok(())
    }

    /// Ends the last frame. Gives back the inner writer, the sizes of the frames, and how many bytes went out.
    pub fn finish(mut self) -> io::Result<(W, SeekTable, u64)> {
        self.cut()?;
        if self.table.frames().is_empty() {
            // zstd takes no bytes at all for a truncated file.
            self.emit(&[])?;
        }
        Ok((self.inner, self.table, self.written))
    }
}

impl<W: Write> Write for FrameWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A whole frame at hand needs no copy.
        if self.content.is_empty() && bytes.len() >= FRAME_CONTENT {
            self.emit(&bytes[..FRAME_CONTENT])?;
            return Ok(FRAME_CONTENT);
        }
        let taken = bytes.len().min(FRAME_CONTENT - self.content.len());
        self.content.extend_from_slice(&bytes[..taken]);
        if self.content.len() == FRAME_CONTENT {
            self.cut()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// What stands between a head's own fields and its checksum: eight hexadecimal digits, `"}`.
const CHECKSUM: &[u8] = b",\"crc32c\":\"";
/// The bytes of that and of the checksum.
const CLOSING: usize = CHECKSUM.len() + 8 + 2;

/// The JSON of a head: an object whose last field is the CRC-32C of everything before that field.
pub fn head_json<T: Serialize>(document: &T) -> Result<Vec<u8>> {
    let mut json = serde_json::to_vec(document).map_err(|e| Error::internal("write a head as JSON").source(e))?;
    if json.pop() != Some(b'}') {
        return Err(Error::internal("a head that is no object"));
    }
    let checksum = crc32c::crc32c(&json);
    json.extend_from_slice(CHECKSUM);
    json.extend_from_slice(format!("{checksum:08x}\"}}").as_bytes());
    Ok(json)
}

/// Whether the checksum at the end of a head is that of what is before it. An older head has none.
fn is_sound(json: &[u8]) -> bool {
    let Some(at) = json.len().checked_sub(CLOSING) else { return true };
    let (before, closing) = json.split_at(at);
    let (name, value) = closing.split_at(CHECKSUM.len());
    let digits = &value[..8];
    if name == CHECKSUM {
        return *digits == *format!("{:08x}", crc32c::crc32c(before)).as_bytes();
    }
    // The checksum of a head whose name for it is damaged.
    !(name.ends_with(b"\":\"") && digits.iter().all(u8::is_ascii_hexdigit))
}

/// A head as it stands at the front of an object: a skippable frame that holds `document` as JSON.
pub fn head<T: Serialize>(document: &T) -> Result<Vec<u8>> {
    let json = head_json(document)?;
    if json.len() > HEAD_LIMIT {
        return Err(Error::internal(format!("a head of {} bytes is over the limit of {HEAD_LIMIT}", json.len())));
    }
    let mut frame = Vec::with_capacity(8 + json.len());
    frame.extend_from_slice(&HEAD_MAGIC.to_le_bytes());
    frame.extend_from_slice(&(json.len() as u32).to_le_bytes());
    frame.extend_from_slice(&json);
    Ok(frame)
}

/// The skippable frame that holds an index: the seventh of those numbers.
const INDEX_MAGIC: u32 = 0x184D_2A56;

/// An index as it stands behind the content of an object: a skippable frame, so that `zstd -d` passes over it, that
/// holds the bytes compressed.
pub fn index_frame(bytes: &[u8], level: i32) -> io::Result<Vec<u8>> {
    let mut compressor = Compressor::new(level)?;
    compressor.set_parameter(CParameter::ChecksumFlag(true))?;
    let compressed = compressor.compress(bytes)?;
    let length = u32::try_from(compressed.len()).map_err(|_| io::Error::other("an index of over 4 GiB"))?;
    let mut frame = Vec::with_capacity(8 + compressed.len());
    frame.extend_from_slice(&INDEX_MAGIC.to_le_bytes());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&compressed);
    Ok(frame)
}

/// The bytes of an index, of which there may be `limit` at most.
pub fn read_index_frame(frame: &[u8], limit: usize) -> Result<Vec<u8>> {
    let damaged = || Error::damaged("the index of an object cannot be read");
    let (magic, rest) = frame.split_first_chunk::<4>().ok_or_else(damaged)?;
    let (length, compressed) = rest.split_first_chunk::<4>().ok_or_else(damaged)?;
    if u32::from_le_bytes(*magic) != INDEX_MAGIC || u32::from_le_bytes(*length) as usize != compressed.len() {
        return Err(damaged());
    }
    let decoder = zstd::Decoder::with_buffer(compressed).map_err(|e| damaged().source(e))?;
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(decoder, limit as u64 + 1), &mut bytes)
        .map_err(|e| damaged().source(e))?;
    if bytes.len() > limit { Err(damaged()) } else { Ok(bytes) }
}

/// What stands at the front of an object.
#[derive(Debug)]
pub enum Head<T> {
    /// A head, and the number of bytes up to its end.
    Present(T, usize),
    /// A head that cannot be read, and the number of bytes up to its end.
    Unreadable(serde_json::Error, usize),
    /// Zstd frames without a head.
    Absent,
}

/// Reads the head at the front of `bytes`, the first `8 + HEAD_LIMIT` bytes of an object (or all of it).
/// Unknown fields are passed over, so that a later Walden may add facts.
pub fn read_head<T: DeserializeOwned>(bytes: &[u8]) -> Result<Head<T>> {
    let word = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let (Some(magic), Some(length)) = (word(0), word(4)) else {
        return Err(Error::damaged(format!("the object is only {} bytes long", bytes.len())));
    };
    if magic == zstd::zstd_safe::zstd_sys::ZSTD_MAGICNUMBER {
        return Ok(Head::Absent);
    }
    if magic != HEAD_MAGIC || length as usize > HEAD_LIMIT {
        return Err(Error::damaged("the object begins neither with a head nor with a zstd frame"));
    }
    let end = 8 + length as usize;
    let json = bytes.get(8..end).ok_or_else(|| Error::damaged("the object ends inside its head"))?;
    if !is_sound(json) {
        return Ok(Head::Unreadable(serde::de::Error::custom("its checksum is wrong"), end));
    }
    Ok(match serde_json::from_slice(json) {
        Ok(document) => Head::Present(document, end),
        Err(error) => Head::Unreadable(error, end),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Read;

    fn sealed(pieces: &[Vec<u8>], cuts: bool) -> (Vec<u8>, SeekTable) {
        let mut writer = FrameWriter::new(Vec::new(), 1).unwrap();
        for piece in pieces {
            writer.write_all(piece).unwrap();
            if cuts {
                writer.cut().unwrap();
            }
        }
        let (stored, table, written) = writer.finish().unwrap();
        assert_eq!(written, stored.len() as u64);
        (stored, table)
    }

    #[test]
    fn zstd_reads_an_object_and_passes_over_its_head() {
        let content: Vec<u8> = (0..3_000_000_u32).map(|i| (i / 7) as u8).collect();
        let (frames, table) = sealed(std::slice::from_ref(&content), false);
        assert_eq!(table.frames().len(), 3);
        let mut object = head(&serde_json::json!({"size": 3})).unwrap();
        let head_length = object.len();
        object.extend_from_slice(&frames);
        let mut back = Vec::new();
        zstd::Decoder::new(&object[..]).unwrap().read_to_end(&mut back).unwrap();
        assert!(back == content);
        match read_head::<serde_json::Value>(&object).unwrap() {
            Head::Present(value, end) => assert_eq!((value["size"].as_u64(), end), (Some(3), head_length)),
            other => panic!("the head is there: {other:?}"),
        }
        assert!(matches!(read_head::<serde_json::Value>(&frames).unwrap(), Head::Absent));
        object[9] = b'?';
        let unreadable = read_head::<serde_json::Value>(&object).unwrap();
        assert!(matches!(unreadable, Head::Unreadable(_, end) if end == head_length));
    }

    #[test]
    fn an_index_is_passed_over_and_found_again() {
        let (mut object, mut table) = sealed(&[b"content".to_vec()], false);
        assert_eq!(table.index(), None);
        let frame = index_frame(b"what is in it", 1).unwrap();
        table.push(FrameSize { stored: frame.len() as u32, content: 0 });
        object.extend_from_slice(&frame);
        object.extend_from_slice(&table.to_bytes());
        assert_eq!(zstd::decode_all(&object[..]).unwrap(), b"content");
        let range = table.index().unwrap();
        let found = &object[range.start as usize..range.end as usize];
        assert_eq!(read_index_frame(found, 13).unwrap(), b"what is in it");
        assert!(read_index_frame(found, 12).is_err());
        let mut broken = found.to_vec();
        *broken.last_mut().unwrap() ^= 1;
        assert!(read_index_frame(&broken, 100).is_err());
        assert!(read_index_frame(&found[..found.len() - 1], 100).is_err());
    }

    #[test]
    fn no_byte_of_a_head_changes_unnoticed() {
        let whole = head(&serde_json::json!({ "size": 3, "name": "0000000100000000DEADBEEF" })).unwrap();
        for at in 0..whole.len() {
            for change in [0x01, 0x20, 0x80] {
                let mut bytes = whole.clone();
                bytes[at] ^= change;
                let read = read_head::<serde_json::Value>(&bytes);
                assert!(!matches!(read, Ok(Head::Present(..))), "byte {at} of {}", String::from_utf8_lossy(&bytes));
            }
        }
        // One without a checksum is of an older Walden.
        let json = br#"{"size":3,"first_lsn":"0/40000000"}"#;
        let bytes = [&HEAD_MAGIC.to_le_bytes()[..], &(json.len() as u32).to_le_bytes(), json].concat();
        assert!(matches!(read_head::<serde_json::Value>(&bytes), Ok(Head::Present(..))));
    }

    #[test]
    fn a_damaged_front_is_named() {
        let whole = head(&serde_json::json!({"a": 1})).unwrap();
        for bytes in [&whole[..3], &whole[..10], b"junkjunkjunk".as_slice(), &[]] {
            let error = read_head::<serde_json::Value>(bytes).unwrap_err();
            assert_eq!(error.kind(), crate::error::Kind::Damaged);
        }
    }

    proptest! {
        #[test]
        fn any_pieces_come_back(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..5000), 0..20), cuts: bool) {
            let (stored, table) = sealed(&pieces, cuts);
            let mut back = Vec::new();
            zstd::Decoder::new(&stored[..]).unwrap().read_to_end(&mut back).unwrap();
            let whole = pieces.concat();
            prop_assert_eq!(table.content(), whole.len() as u64);
            prop_assert_eq!(back, whole);
        }

        #[test]
        fn no_front_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = read_head::<serde_json::Value>(&bytes);
        }
    }
}
