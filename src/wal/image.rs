//! Page images out of records, compressed ones too (`RestoreBlockImage` in `xlogreader.c`).

use std::borrow::Cow;

/// The largest page that PostgreSQL can be built for.
const LARGEST: usize = 32 << 10;

/// The image of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Image<'a> {
    /// Its bytes, of which the hole is left out.
    pub bytes: &'a [u8],
    /// Where in the page the hole begins.
    pub hole: usize,
    /// How its bytes are compressed.
    pub compression: Compression,
}

/// `wal_compression`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Compression {
    /// Not at all.
    #[default]
    None,
    /// PostgreSQL's own.
    Pglz,
    /// A block of LZ4 (since 15).
    Lz4,
    /// A frame of zstd (since 15).
    Zstd,
}

impl<'a> Image<'a> {
    /// The page without its hole; none when its bytes make no sense.
    pub(super) fn page(&self) -> Option<Cow<'a, [u8]>> {
        match self.compression {
            Compression::None => Some(self.bytes.into()),
            Compression::Pglz => pglz(self.bytes).map(Cow::Owned),
            Compression::Lz4 => lz4(self.bytes).map(Cow::Owned),
            Compression::Zstd => zstd::bulk::decompress(self.bytes, LARGEST).ok().map(Cow::Owned),
        }
    }
}

/// `pglz_decompress` in `src/common/pg_lzcompress.c`.
fn pglz(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut page = Vec::with_capacity(8 << 10);
    while let Some((control, rest)) = bytes.split_first() {
        bytes = rest;
        for bit in 0..8 {
            let Some((&first, rest)) = bytes.split_first() else { break };
            bytes = rest;
            if control & (1 << bit) == 0 {
                page.push(first);
                continue;
            }
            let distance = usize::from(first & 0xF0) << 4 | usize::from(next(&mut bytes)?);
            let mut length = usize::from(first & 0x0F) + 3;
            if length == 18 {
                length += usize::from(next(&mut bytes)?);
            }
            repeat(&mut page, distance, length)?;
        }
        if page.len() > LARGEST {
            return None;
        }
    }
    Some(page)
}

/// LZ4's block format: <https://github.com/lz4/lz4/blob/dev/doc/lz4_Block_format.md>.
fn lz4(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut page = Vec::with_capacity(8 << 10);
    loop {
        let token = next(&mut bytes)?;
        let count = length(&mut bytes, token >> 4)?;
        let (literals, rest) = bytes.split_at_checked(count)?;
        page.extend_from_slice(literals);
        bytes = rest;
        // The last sequence is literals alone.
        if bytes.is_empty() {
            return (page.len() <= LARGEST).then_some(page);
        }
        let distance = usize::from(next(&mut bytes)?) | usize::from(next(&mut bytes)?) << 8;
        let count = length(&mut bytes, token & 0x0F)? + 4;
        repeat(&mut page, distance, count)?;
    }
}

/// A length that begins in a token's half, and goes on in bytes behind it.
fn length(bytes: &mut &[u8], half: u8) -> Option<usize> {
    let mut length = usize::from(half);
    if half == 15 {
        loop {
            let more = next(bytes)?;
            length += usize::from(more);
            if more < 255 {
                break;
            }
        }
    }
    Some(length)
}

fn next(bytes: &mut &[u8]) -> Option<u8> {
    let (first, rest) = bytes.split_first()?;
    *bytes = rest;
    Some(*first)
}

/// Repeats what lies that far behind; the copy may run into itself.
fn repeat(page: &mut Vec<u8>, distance: usize, length: usize) -> Option<()> {
    if distance == 0 || page.len() + length > LARGEST {
        return None;
    }
    let start = page.len().checked_sub(distance)?;
    for at in start..start + length {
        page.push(*page.get(at)?);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_repeats_is_unpacked() {
        let page = |bytes: &[u8], compression| {
            let image = Image { bytes, hole: 0, compression };
            image.page().map(|page| String::from_utf8(page.into_owned()).unwrap())
        };
        // "ab", then two back six times; a long run; the last control bits stand for nothing.
        let packed = [0b1100, b'a', b'b', 0x03, 2, 0x0F, 1, 10];
        assert_eq!(page(&packed, Compression::Pglz).unwrap(), format!("abababab{}", "b".repeat(28)));
        assert_eq!(page(&[0b1, 0x03], Compression::Pglz), None);
        assert_eq!(page(&[0b1, 0x03, 9], Compression::Pglz), None, "nothing lies so far behind");
        let packed = [0x22, b'a', b'b', 2, 0, 0x1F, b'c', 1, 0, 6, 0x10, b'd'];
        assert_eq!(page(&packed, Compression::Lz4).unwrap(), format!("abababab{}d", "c".repeat(26)));
        for end in 0..packed.len() {
            let cut = page(&packed[..end], Compression::Lz4);
            assert!(cut.is_none_or(|text| text.len() < 36), "{end}");
        }
        let packed = zstd::bulk::compress(b"ababababab", 1).unwrap();
        assert_eq!(page(&packed, Compression::Zstd).unwrap(), "ababababab");
        assert_eq!(page(&packed[..8], Compression::Zstd), None);
    }
}
