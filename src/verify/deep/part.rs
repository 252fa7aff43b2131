//! A part, frame by frame: each must hold what the table says, all of them together must have the hash that the manifests
//! tell, and each file or layer in it the hashes that the index tells.

use std::io::{self, Read};

use tokio::runtime::Handle;

use crate::{
    error::{Error, Result},
    postgres::incremental::IncrementalHeader,
    repository::{BackupId, File, Hashed, LayerBlocks, LayerKind, NeededPart, Part, PartIndex, System, join},
    seal::{Blake3, BlockHash, BlockMap, FRAME_CONTENT, FrameSize, SeekTable},
    store::bridge::{self, BodyReader},
};

/// Bytes handled at a time.
const CHUNK: usize = 256 << 10;

/// Reads a part, and proves all of it. `needed` is what the manifests tell of it.
pub async fn check(system: &System, (backup, number): (BackupId, u32), length: u64, needed: &NeededPart) -> Result<()> {
    if length != needed.length {
        return Err(Error::damaged(format!("it is {length} bytes long, and was written with {}", needed.length)));
    }
    let Some((part, index)) = system.unlisted_part(backup, number, length).await? else {
        return Err(Error::damaged("it has no index of what is in it"));
    };
    if part.blake3 != needed.blake3 || hashed(&part.frames) != needed.hashed {
        return Err(Error::damaged("its index is that of another part than the manifest tells"));
    }
    let key = system.folder.part(backup, number)?;
    let body = BodyReader::new(system.store.get(&key, None).await?.body, Handle::current());
    let block_size = system.document.block_size as usize;
    join(tokio::task::spawn_blocking(move || prove(body, &part, &index, block_size)).await)?
}

/// How many bytes of the object are hashed: those before the index.
fn hashed(frames: &SeekTable) -> u64 {
    frames.frames().iter().rev().skip(1).map(|frame| u64::from(frame.stored)).sum()
}

fn prove(body: impl Read, part: &Part, index: &PartIndex, block_size: usize) -> Result<()> {
    let (content, last) = match part.frames.frames().split_last() {
        Some((last, content)) => (content, *last),
        None => return Err(Error::damaged("it has no frames")),
    };
    let mut frames = Frames::new(body, content);
    members(&mut frames, part, index, block_size)?;
    io::copy(&mut frames, &mut io::sink()).map_err(unreadable)?;
    let Frames { mut body, hasher, .. } = frames;
    if Blake3::from(&hasher) != part.blake3 {
        return Err(Error::damaged("its bytes do not have the hash that the manifest tells"));
    }
    let skipped = io::copy(&mut (&mut body).take(u64::from(last.stored)), &mut io::sink()).map_err(unreadable)?;
    let mut table = Vec::new();
    let expected = part.frames.to_bytes();
    body.take(expected.len() as u64 + 1).read_to_end(&mut table).map_err(unreadable)?;
    if skipped != u64::from(last.stored) || table != expected {
        return Err(Error::damaged("it does not end with the table of its frames"));
    }
    Ok(())
}

/// The files that were stored in it, each held against the index.
fn members(frames: &mut dyn Read, part: &Part, index: &PartIndex, block_size: usize) -> Result<()> {
    let own = |file: &&File| file.layers.last().is_some_and(|l| (l.backup, l.part) == (part.backup, part.number));
    let mut files: Vec<&File> = index.files.iter().filter(own).collect();
    files.sort_by_key(|file| file.layers.last().map(|layer| layer.offset));
    let mut at = 0;
    for file in files {
        let Some(layer) = file.layers.last() else { continue };
        let what = |e: Error| e.context(file.path.display());
        let skip = layer.offset.checked_sub(at).ok_or_else(|| what(Error::damaged("it overlaps another file")))?;
        pass(frames, skip, |_| {}).map_err(what)?;
        let blocks = index.blocks(layer).map_err(what)?;
        member(frames, file, blocks, block_size).map_err(what)?;
        at = layer.offset + layer.length;
    }
    Ok(())
}

fn member(from: &mut dyn Read, file: &File, blocks: Option<LayerBlocks>, block_size: usize) -> Result<()> {
    let Some(layer) = file.layers.last() else { return Ok(()) };
    let wrong = || Error::damaged("it does not have the content that the index tells");
    let right = match (layer.kind, file.hashed) {
        (LayerKind::Whole, Hashed::Content) => {
            let (mut hasher, mut crc32c) = (blake3::Hasher::new(), 0);
            pass(from, layer.length, |bytes| {
                hasher.update(bytes);
                crc32c = crc32c::crc32c_append(crc32c, bytes);
            })?;
            layer.length == file.size && Blake3::from(&hasher) == file.blake3 && crc32c == file.crc32c
        }
        (LayerKind::Whole, Hashed::Blocks) => {
            let map = map_of(from, layer.length, block_size)?;
            let alone = file.layers.len() == 1;
            let is_file = !alone || map.root() == file.blake3 && map.crc32c(block_size) == file.crc32c;
            is_file && blocks.is_none_or(|known| known == LayerBlocks::Whole(map))
        }
        (LayerKind::Incremental, _) => {
            let header = IncrementalHeader::read(from, block_size as u32, layer.length)?;
            let length = (header.blocks.len() * block_size) as u64;
            let map = map_of(from, length, block_size)?;
            blocks.is_none_or(|known| known == LayerBlocks::Changed(header.blocks, map))
        }
    };
    if right { Ok(()) } else { Err(wrong()) }
}

/// The hashes of the next blocks.
fn map_of(from: &mut dyn Read, length: u64, block_size: usize) -> Result<BlockMap> {
    let mut map = BlockMap::default();
    let mut block = vec![0; block_size];
    if !length.is_multiple_of(block_size as u64) {
        return Err(Error::damaged("it does not consist of whole blocks"));
    }
    for _ in 0..length / block_size as u64 {
        from.read_exact(&mut block).map_err(unreadable)?;
        map.push(BlockHash::of(&block));
    }
    Ok(map)
}

/// Hands the next bytes on.
fn pass(from: &mut dyn Read, mut length: u64, mut each: impl FnMut(&[u8])) -> Result<()> {
    let mut buffer = vec![0; CHUNK.min(usize::try_from(length).unwrap_or(CHUNK))];
    while length > 0 {
        let wanted = buffer.len().min(usize::try_from(length).unwrap_or(usize::MAX));
        from.read_exact(&mut buffer[..wanted]).map_err(unreadable)?;
        each(&buffer[..wanted]);
        length -= wanted as u64;
    }
    Ok(())
}

fn unreadable(error: io::Error) -> Error {
    bridge::from_io(error, |e| Error::damaged("it ends before its last file does").source(e))
}

/// The content of frames, each of which must be as long as the table says, compressed and not; hashed as it is stored.
struct Frames<'a, R> {
    body: R,
    table: std::slice::Iter<'a, FrameSize>,
    decompressor: Option<zstd::bulk::Decompressor<'static>>,
    hasher: blake3::Hasher,
    stored: Vec<u8>,
    content: Vec<u8>,
    given: usize,
}

impl<'a, R: Read> Frames<'a, R> {
    fn new(body: R, table: &'a [FrameSize]) -> Self {
        Self {
            body,
            table: table.iter(),
            decompressor: None,
            hasher: blake3::Hasher::new(),
            stored: Vec::new(),
            content: Vec::new(),
            given: 0,
        }
    }

    /// Takes in the next frame. False when there are no more.
    fn next(&mut self) -> Result<bool> {
        let Some(frame) = self.table.next() else { return Ok(false) };
        let (stored, content) = (frame.stored as usize, frame.content as usize);
        if content > FRAME_CONTENT || stored > 2 * FRAME_CONTENT {
            return Err(Error::damaged(format!("its table tells of a frame of {content} bytes")));
        }
        self.stored.resize(stored, 0);
        self.body.read_exact(&mut self.stored).map_err(unreadable)?;
        self.hasher.update(&self.stored);
        if self.decompressor.is_none() {
            let started = zstd::bulk::Decompressor::new();
            self.decompressor = Some(started.map_err(|e| Error::internal("start the zstd decoder").source(e))?);
        }
        let Some(decompressor) = &mut self.decompressor else { return Ok(false) };
        self.content.resize(content, 0);
        let length = decompressor
            .decompress_to_buffer(&self.stored, &mut self.content[..])
            .map_err(|e| Error::damaged("a frame cannot be decompressed").source(e))?;
        if length != content {
            return Err(Error::damaged(format!("a frame holds {length} bytes where its table says {content}")));
        }
        self.given = 0;
        Ok(true)
    }
}

impl<R: Read> Read for Frames<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.given == self.content.len() {
            if !self.next().map_err(bridge::into_io)? {
                return Ok(0);
            }
        }
        let count = buffer.len().min(self.content.len() - self.given);
        buffer[..count].copy_from_slice(&self.content[self.given..][..count]);
        self.given += count;
        Ok(count)
    }
}
