//! Files out of their layers: the newest first, so that no block is written twice, and of the older ones only what is
//! still needed is read.
//!
//! Several files are put together at a time, backup by backup: their layers in one part are neighbours, and frames
//! that they share are fetched once.

use std::{io::Read, ops::Range};

use super::{
    fetch::{PartName, Piece, Run, copy, fill, runs},
    proof,
};
use crate::{
    error::{Error, Result},
    postgres::incremental::IncrementalHeader,
    repository::{BackupId, File, Hashed, Layer, LayerKind},
    seal::{BlockHash, BlockMap},
};

/// No file of PostgreSQL has more blocks.
const MOST_BLOCKS: u64 = 1 << 24;

/// Takes bytes to their place in a file.
pub type Write<'a> = dyn FnMut(u64, &[u8]) -> Result<()> + 'a;

/// What is known of the blocks of one file.
#[derive(Debug)]
struct Merge {
    block_size: usize,
    /// The hashes of the known blocks; the others' are those of zeros.
    map: BlockMap,
    known: Vec<bool>,
    /// No older layer counts for a block from here on: the file ended before it once.
    limit: usize,
    /// How many blocks before the limit are not known.
    missing: usize,
}

impl Merge {
    fn new(blocks: usize, block_size: usize) -> Self {
        let map = BlockMap::zeros(blocks, block_size);
        Self { block_size, map, known: vec![false; blocks], limit: blocks, missing: blocks }
    }

    /// Whether a block must still be found.
    fn needs(&self, block: usize) -> bool {
        block < self.limit && !self.known[block]
    }

    /// Notes a block that was needed.
    fn put(&mut self, block: usize, hash: BlockHash) {
        self.map.set(block, hash);
        self.known[block] = true;
        self.missing -= 1;
    }

    /// A layer of a file with so many blocks is done with.
    fn cut(&mut self, blocks: usize) {
        if blocks < self.limit {
            self.missing -= self.known[blocks..self.limit].iter().filter(|known| !**known).count();
            self.limit = blocks;
        }
    }

    /// The stretches of needed blocks among the first `blocks`.
    fn stretches(&self, blocks: usize) -> Vec<Range<usize>> {
        let mut found: Vec<Range<usize>> = Vec::new();
        for block in (0..blocks.min(self.limit)).filter(|block| !self.known[*block]) {
            match found.last_mut() {
                Some(last) if last.end == block => last.end += 1,
                _ => found.push(block..block + 1),
            }
        }
        found
    }

    /// Takes neighbouring blocks that are all needed.
    fn whole(&mut self, stretch: Range<usize>, from: &mut dyn Read, write: &mut Write<'_>) -> Result<()> {
        let size = self.block_size;
        let mut next = stretch.start;
        copy(from, (stretch.len() * size) as u64, |bytes| {
            for (block, content) in (next..).zip(bytes.chunks_exact(size)) {
                self.put(block, BlockHash::of(content));
            }
            write((next * size) as u64, bytes)?;
            next += bytes.len() / size;
            Ok(())
        })
    }

    /// Takes from an incremental file of `length` bytes what is needed; gives back how many blocks the file had then
    /// that older layers count for.
    fn changes(&mut self, length: u64, from: &mut dyn Read, write: &mut Write<'_>) -> Result<usize> {
        let size = self.block_size;
        let header = IncrementalHeader::read(from, size as u32, length)?;
        let mut content = vec![0; size];
        let mut skipped = 0;
        for block in header.blocks.iter().map(|block| *block as usize) {
            if !self.needs(block) {
                skipped += size as u64;
                continue;
            }
            copy(from, std::mem::take(&mut skipped), |_| Ok(()))?;
            fill(from, &mut content)?;
            self.put(block, BlockHash::of(&content));
            write((block * size) as u64, &content)?;
        }
        Ok(header.truncation as usize)
    }
}

/// A file that is put together.
#[derive(Debug)]
pub struct Layered<'a> {
    /// The file.
    pub file: &'a File,
    merge: Merge,
    /// The layers that were not looked at yet, oldest first.
    older: &'a [Layer],
    /// The layer that is being read, and how many blocks the file had then.
    now: Option<(&'a Layer, usize)>,
}

impl<'a> Layered<'a> {
    /// Nothing is known yet. `block_size` is the manifest's.
    pub fn new(file: &'a File, block_size: u32) -> Result<Self> {
        let size = u64::from(block_size);
        let fits = |length: u64| length.is_multiple_of(size) && length / size <= MOST_BLOCKS;
        let layers_fit = file.layers.iter().all(|l| l.kind == LayerKind::Incremental || fits(l.length));
        if file.hashed != Hashed::Blocks || !fits(file.size) || !layers_fit {
            return Err(Error::damaged(format!("the manifest does not tell where {} lies", file.path.display())));
        }
        let merge = Merge::new((file.size / size) as usize, block_size as usize);
        Ok(Self { file, merge, older: &file.layers, now: None })
    }

    /// Notes that a block is in its place already.
    pub fn keep(&mut self, block: usize, hash: BlockHash) {
        if self.merge.needs(block) {
            self.merge.put(block, hash);
        }
    }

    /// The stretches of the file, in bytes, that no layer holds: they are zeros.
    pub fn zeros(&self) -> impl Iterator<Item = Range<u64>> {
        let size = self.merge.block_size as u64;
        let unknown = self.merge.known.iter().enumerate().filter(|(_, known)| !**known);
        unknown.map(move |(block, _)| block as u64 * size..(block as u64 + 1) * size)
    }

    /// An error when that was not the file.
    pub fn check(&self) -> Result<()> {
        if proof::proves(&self.merge.map, self.merge.block_size, self.file) {
            Ok(())
        } else {
            Err(proof::wrong(self.file))
        }
    }

    /// The newest layer that was not looked at yet, while anything is missing.
    fn next(&self) -> Option<&'a Layer> {
        self.older.last().filter(|_| self.merge.missing > 0)
    }

    /// Begins with the next layer, when it is of that backup; gives back what is wanted of it.
    fn begin(&mut self, backup: BackupId, number: usize) -> Vec<(PartName, Piece)> {
        let Some(layer) = self.next().filter(|layer| layer.backup == backup) else { return Vec::new() };
        self.older = &self.older[..self.older.len() - 1];
        let part = (layer.backup, layer.part);
        let size = self.merge.block_size as u64;
        let blocks = (layer.length / size) as usize;
        self.now = Some((layer, blocks));
        match layer.kind {
            LayerKind::Incremental => {
                vec![(part, Piece { offset: layer.offset, length: layer.length, file: number })]
            }
            LayerKind::Whole => {
                let piece = |stretch: Range<usize>| Piece {
                    offset: layer.offset + stretch.start as u64 * size,
                    length: stretch.len() as u64 * size,
                    file: number,
                };
                self.merge.stretches(blocks).into_iter().map(|stretch| (part, piece(stretch))).collect()
            }
        }
    }

    fn read(&mut self, piece: &Piece, from: &mut dyn Read, write: &mut Write<'_>) -> Result<()> {
        let Some((layer, blocks)) = &mut self.now else { return Ok(()) };
        match layer.kind {
            LayerKind::Whole => {
                let size = self.merge.block_size as u64;
                let first = ((piece.offset - layer.offset) / size) as usize;
                self.merge.whole(first..first + (piece.length / size) as usize, from, write)
            }
            LayerKind::Incremental => {
                *blocks = self.merge.changes(piece.length, from, write).map_err(|e| {
                    let place = format!("part {} of backup {}", layer.part, layer.backup);
                    e.context(format!("{} in {place}", self.file.path.display()))
                })?;
                Ok(())
            }
        }
    }

    fn end(&mut self) {
        if let Some((_, blocks)) = self.now.take() {
            self.merge.cut(blocks);
        }
    }
}

/// Puts files together: `fetch` hands the pieces of a run to what it is given, `write` takes bytes to their place in
/// the file of that number. What no layer holds is not written.
pub fn lay(
    files: &mut [Layered<'_>],
    mut fetch: impl FnMut(&Run, &mut dyn FnMut(&Piece, &mut dyn Read) -> Result<()>) -> Result<()>,
    mut write: impl FnMut(usize, u64, &[u8]) -> Result<()>,
) -> Result<()> {
    while let Some(backup) = files.iter().filter_map(Layered::next).map(|layer| layer.backup).max() {
        let pieces: Vec<_> =
            files.iter_mut().enumerate().flat_map(|(number, file)| file.begin(backup, number)).collect();
        for run in runs(pieces, u64::MAX) {
            fetch(&run, &mut |piece, from| {
                files[piece.file].read(piece, from, &mut |at, bytes| write(piece.file, at, bytes))
            })?;
        }
        files.iter_mut().for_each(Layered::end);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
