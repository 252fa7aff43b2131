//! Files in blocks: what has changed since the ancestor is stored as a layer on top of its layers, or the whole file
//! again when it would cost more to read the layers than the file.
//!
//! The blocks that differ are read a second time, and stored and hashed from that reading: what the map says of a
//! block is always of the bytes that were stored. A block that changes after the first reading is one that the server
//! changed after the backup had begun, so that the replay of its WAL mends it.
//!
//! Where WAL summaries name the blocks that can differ, the others are not read: their hashes are the ancestor's, and so
//! are the bytes that a restore yields.

use rustix::fs::Advice;

use super::source::{CHUNK, Found, Into, Opened, Reading, Stored, Watch, read_up_to};
use crate::{
    error::{Error, Result},
    postgres::incremental::IncrementalHeader,
    repository::{File, Hashed, Layer, LayerBlocks, Overlaid},
    seal::{BlockHash, BlockMap},
};

/// What a request costs, in bytes that could be read in its time.
const REQUEST: u64 = 256 << 10;

/// Stores a file of whole blocks. `named` are those that can differ from the ancestor's, rising, where that is known.
pub(super) fn store(
    opened: &Opened,
    block_size: u32,
    named: Option<&[u32]>,
    into: &mut Into<'_>,
    watch: Watch<'_>,
) -> Result<Stored> {
    let ancestor = into.ancestor.and_then(|a| Some((a, a.file(&opened.path)?)));
    let known = ancestor.and_then(|(a, file)| {
        let known = a.blocks(&file, &into.shelf.runtime)?;
        Some((a, file, known))
    });
    let mut seen = 0;
    if let Some((ancestor, file, known)) = known {
        let most = most_changes(&file, opened.size, block_size);
        let compared = match named.filter(|named| named.len() <= most) {
            Some(named) => Compared::Changed(compare_named(opened, block_size, &known, named, watch)?),
            None => compare(opened, block_size, &known, most, watch)?,
        };
        match compared {
            Compared::Changed(blocks) => {
                let old = ancestor.bad_pages(&opened.path);
                let bad = old.iter().copied().filter(|block| blocks.binary_search(block).is_err()).collect();
                return layer(opened, block_size, Changes { file, known, blocks, bad }, into, watch);
            }
            Compared::TooMany(read) => seen = read,
        }
    }
    whole(opened, block_size, seen, into, watch)
}

/// Whether one more layer on top of those of a file would be better than the whole file again.
pub(super) fn takes_a_layer(file: &File, block_size: u32) -> bool {
    most_changes(file, file.size, block_size) > 0
}

/// How many blocks may have changed before the file is stored whole again: when reading all layers would come to one
/// and a half times the file. Half of the file is the most.
fn most_changes(file: &File, size: u64, block_size: u32) -> usize {
    let worth = (size + REQUEST) / 2 * 3;
    let layers = file.layers.iter().map(|layer| layer.length + REQUEST).sum::<u64>() + REQUEST;
    let blocks = worth.saturating_sub(layers).min(size / 2) / u64::from(block_size);
    usize::try_from(blocks).unwrap_or(usize::MAX)
}

enum Compared {
    /// These blocks differ, rising.
    Changed(Vec<u32>),
    /// More differ than it is worth: so many bytes were read.
    TooMany(u64),
}

fn compare(opened: &Opened, block_size: u32, known: &Overlaid, most: usize, watch: Watch<'_>) -> Result<Compared> {
    let mut buffer = vec![0; CHUNK];
    let (mut at, mut changed) = (0, Vec::new());
    let mut old = known.map.hashes().iter();
    while at < opened.size {
        watch.interrupt.check()?;
        let wanted = buffer.len().min(usize::try_from(opened.size - at).unwrap_or(usize::MAX));
        watch.throttle.pass(wanted as u64);
        let chunk = &mut buffer[..wanted];
        let filled = read_up_to(&opened.from, at, chunk).map_err(|e| Error::io("read", &opened.full, e))?;
        chunk[filled..].fill(0);
        let first = (at / u64::from(block_size)) as u32;
        for (number, block) in (first..).zip(chunk.chunks_exact(block_size as usize)) {
            if old.next() != Some(&BlockHash::of(block)) {
                changed.push(number);
            }
        }
        watch.progress.advance(wanted as u64);
        at += wanted as u64;
        if changed.len() > most {
            return Ok(Compared::TooMany(at));
        }
    }
    Ok(Compared::Changed(changed))
}

/// Which of these blocks differ. Nothing else is read.
fn compare_named(
    opened: &Opened,
    block_size: u32,
    known: &Overlaid,
    named: &[u32],
    watch: Watch<'_>,
) -> Result<Vec<u32>> {
    // Advice that is not taken costs nothing.
    let _ = rustix::fs::fadvise(&opened.from, 0, None, Advice::Random);
    let size = block_size as usize;
    let at_once = CHUNK.div_ceil(size);
    let mut buffer = vec![0; at_once * size];
    let (mut changed, mut left) = (Vec::new(), opened.size);
    for neighbours in named.chunk_by(|one, next| one + 1 == *next).flat_map(|run| run.chunks(at_once)) {
        watch.interrupt.check()?;
        let chunk = &mut buffer[..neighbours.len() * size];
        watch.throttle.pass(chunk.len() as u64);
        let at = u64::from(neighbours[0]) * u64::from(block_size);
        let filled = read_up_to(&opened.from, at, chunk).map_err(|e| Error::io("read", &opened.full, e))?;
        chunk[filled..].fill(0);
        for (number, block) in neighbours.iter().zip(chunk.chunks_exact(size)) {
            if known.map.hashes().get(*number as usize) != Some(&BlockHash::of(block)) {
                changed.push(*number);
            }
        }
        watch.progress.advance(chunk.len() as u64);
        left = left.saturating_sub(chunk.len() as u64);
    }
    watch.progress.advance(left);
    Ok(changed)
}

struct Changes {
    file: File,
    known: Overlaid,
    blocks: Vec<u32>,
    /// Pages that were wrong in the ancestor and have not changed.
    bad: Vec<u32>,
}

/// Stores the changed blocks on top of the ancestor's layers, of which those go that have no block left.
fn layer(opened: &Opened, block_size: u32, changes: Changes, into: &mut Into<'_>, watch: Watch<'_>) -> Result<Stored> {
    let Changes { file, known, blocks, mut bad } = changes;
    if blocks.is_empty() && file.size == opened.size {
        let found = Found { blake3: file.blake3, hashed: Hashed::Blocks, crc32c: file.crc32c, layers: file.layers };
        return Ok(opened.stored(found, &bad));
    }
    let count = (opened.size / u64::from(block_size)) as u32;
    bad.retain(|block| *block < count);
    let part = into.shelf.part()?;
    let header = IncrementalHeader { blocks, truncation: count };
    let newest = part.begin_changes(&opened.path, &header, block_size, opened.attributes)?;
    let mut reading = Reading::new(opened);
    let mut buffer = vec![0; block_size as usize];
    let mut merge = Merge::new(known, count as usize);
    for number in &header.blocks {
        let block = reading.read(u64::from(*number) * u64::from(block_size), &mut buffer, watch)?;
        part.data(block)?;
        merge.put(*number, BlockHash::of(block));
    }
    bad.append(&mut reading.bad);
    bad.sort_unstable();
    let (found, stored) = merge.found(&file.layers, newest, block_size);
    Ok(opened.record(part, found, Some(&LayerBlocks::Changed(header.blocks, stored)), &bad))
}

/// The blocks of a file while changed ones are laid over the ancestor's.
pub(super) struct Merge {
    map: BlockMap,
    /// For each block the number of the ancestor's layer that still counts for it.
    layer: Vec<Option<usize>>,
    /// The changed ones alone.
    stored: BlockMap,
}

impl Merge {
    /// The ancestor's, of a file that has `count` blocks now. Those past the ancestor's end must all be put.
    pub(super) fn new(known: Overlaid, count: usize) -> Self {
        let Overlaid { mut map, mut layer } = known;
        map.resize(count);
        layer.resize(count, None);
        Self { map, layer, stored: BlockMap::default() }
    }

    /// The next changed block.
    pub(super) fn put(&mut self, number: u32, hash: BlockHash) {
        self.stored.push(hash);
        self.map.set(number as usize, hash);
        if let Some(layer) = self.layer.get_mut(number as usize) {
            *layer = None;
        }
    }

    /// The file, and the map of its `newest` layer. Of the older ones those go that have no block left.
    pub(super) fn found(self, older: &[Layer], newest: Layer, block_size: u32) -> (Found, BlockMap) {
        let mut needed = vec![false; older.len()];
        self.layer.iter().flatten().for_each(|owner| needed[*owner] = true);
        let layers = older.iter().zip(needed).filter(|(_, needed)| *needed).map(|(layer, _)| layer.clone());
        let layers = layers.chain([newest]).collect();
        let (blake3, crc32c) = (self.map.root(), self.map.crc32c(block_size as usize));
        (Found { blake3, hashed: Hashed::Blocks, crc32c, layers }, self.stored)
    }
}

/// Stores the whole file, with a map of its blocks. The first `seen` bytes were counted as read before.
fn whole(opened: &Opened, block_size: u32, seen: u64, into: &mut Into<'_>, watch: Watch<'_>) -> Result<Stored> {
    let part = into.shelf.part()?;
    let layer = part.begin(&opened.path, opened.size, opened.attributes)?;
    let mut reading = Reading::new(opened);
    let mut buffer = vec![0; CHUNK];
    let mut map = BlockMap::default();
    let mut at = 0;
    while at < opened.size {
        let wanted = buffer.len().min(usize::try_from(opened.size - at).unwrap_or(usize::MAX));
        let chunk = reading.read(at, &mut buffer[..wanted], watch)?;
        chunk.chunks_exact(block_size as usize).for_each(|block| map.push(BlockHash::of(block)));
        part.data(chunk)?;
        at += wanted as u64;
        watch.progress.advance(at.saturating_sub(seen.max(at - wanted as u64)));
    }
    let crc32c = map.crc32c(block_size as usize);
    let found = Found { blake3: map.root(), hashed: Hashed::Blocks, crc32c, layers: vec![layer] };
    Ok(opened.record(part, found, Some(&LayerBlocks::Whole(map)), &reading.bad))
}

#[cfg(test)]
mod tests;
