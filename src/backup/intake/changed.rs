//! A file of which the server sends only the blocks that changed since the ancestor (17 on): they become a layer over
//! the ancestor's, and the map of the file is the ancestor's with theirs in it.
//!
//! The layer is written in PostgreSQL's own format, but the file past the ancestor's end, or past where it was cut off
//! since, always lies in it, as in every layer of ours: there the server leaves out pages of zeros, which are in no WAL.

use std::{
    collections::BTreeSet,
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::{
    Taking,
    arrival::{Arriving, Judge},
    unreadable,
};
use crate::{
    backup::{
        changes::Merge,
        source::{Found, Stored},
    },
    error::{Error, Result},
    postgres::{
        backup_manifest::ManifestFile,
        datadir::FileKind,
        incremental::{IncrementalHeader, incremental_of},
    },
    repository::{File, Hashed, LayerBlocks, Overlaid},
    seal::{BlockHash, blake3},
};

/// Counts what is read.
struct Counted<'a> {
    from: &'a mut dyn Read,
    crc32c: u32,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.crc32c = crc32c::crc32c_append(self.crc32c, &buffer[..count]);
        Ok(count)
    }
}

/// The file that changed blocks are of, if that is what the server sends under this name.
pub(super) fn changed_file(path: &Path) -> Option<PathBuf> {
    incremental_of(path).filter(|of| matches!(FileKind::of(of), FileKind::Relation(_)))
}

impl Taking {
    /// Stores the changed blocks of `path`.
    pub(super) fn changed(&mut self, path: PathBuf, file: &mut Arriving<'_>) -> Result<Stored> {
        let block_size = self.intake.block_size;
        let (known, old) = self.known(&path)?;
        let mut from = Counted { from: &mut *file.from, crc32c: 0 };
        let header = IncrementalHeader::read(&mut from, block_size, file.size)
            .map_err(|e| e.context(format_args!("receive {}", file.path.display())))?;
        let blocks = result_blocks(&header, self.intake.relation_segment_blocks)
            .ok_or_else(|| Error::damaged(format!("the server sent a {} that is too long", file.path.display())))?;
        let known_blocks = old.map.hashes().len() as u32;
        let sent: BTreeSet<u32> = header.blocks.iter().copied().collect();
        let kept = self.kept(&path).min(known_blocks).min(header.truncation);
        let layer: BTreeSet<u32> = sent.iter().copied().chain(kept..blocks).collect();
        let mut now = Arriving {
            path,
            size: u64::from(blocks) * u64::from(block_size),
            attributes: file.attributes,
            from: &mut io::empty(),
        };
        let mut judge = Judge::new(self.pages_of(&now.path));
        let ancestor = self.intake.ancestor.as_ref();
        let bad = ancestor.map_or(&[][..], |ancestor| ancestor.bad_pages(&now.path)).iter().copied();
        judge.bad.extend(bad.filter(|block| *block < blocks && !layer.contains(block)));
        let stored = if blocks == 0 {
            let (blake3, hashed) = (blake3(&[]), Hashed::Content);
            now.stored(Found { blake3, hashed, crc32c: 0, layers: Vec::new() }, &[])
        } else if layer.is_empty() && blocks == known_blocks {
            let File { blake3, hashed, crc32c, layers, .. } = known;
            now.stored(Found { blake3, hashed, crc32c, layers }, &judge.bad)
        } else {
            let header = IncrementalHeader { blocks: layer.into_iter().collect(), truncation: blocks };
            self.layer(&mut now, known, old, header, judge, |number, block| match sent.contains(&number) {
                true => from.read_exact(block).map_err(unreadable),
                false => {
                    block.fill(0);
                    Ok(())
                }
            })?
        };
        // It must be at its end by now, and what is left proves that it is not.
        io::copy(&mut from, &mut io::sink()).map_err(unreadable)?;
        self.intake.throttle.pass(file.size);
        self.intake.progress.advance(now.size);
        let path = std::mem::take(&mut file.path);
        self.as_sent.push(ManifestFile { path, size: file.size, crc32c: from.crc32c });
        self.merged += 1;
        Ok(stored)
    }

    /// How many of its first blocks were there all the time.
    fn kept(&self, path: &Path) -> u32 {
        let FileKind::Relation(relation) = FileKind::of(path) else { return 0 };
        let first = relation.first_block(self.intake.relation_segment_blocks);
        self.intake.incremental.as_ref().map_or(0, |cuts| cuts.kept(path, first))
    }

    /// The ancestor's file and its blocks. Where they are not to be had, the backup must be taken in another way.
    fn known(&self, path: &Path) -> Result<(File, Overlaid)> {
        let known = self.intake.ancestor.as_ref().and_then(|ancestor| {
            let file = ancestor.file(path)?;
            let blocks = ancestor.blocks(&file, &self.shelf.runtime)?;
            Some((file, blocks))
        });
        known.ok_or_else(|| {
            let _ = self.intake.without_map.set(path.to_path_buf());
            Error::failed(format!("no map of the ancestor's {} was kept", path.display()))
        })
    }

    /// Stores the blocks that the header names, as `next` gives them.
    fn layer(
        &mut self,
        file: &mut Arriving<'_>,
        known: File,
        old: Overlaid,
        header: IncrementalHeader,
        mut judge: Judge,
        mut next: impl FnMut(u32, &mut [u8]) -> Result<()>,
    ) -> Result<Stored> {
        let block_size = self.intake.block_size;
        let block = &mut self.buffer[..block_size as usize];
        let part = self.shelf.part()?;
        let newest = part.begin_changes(&file.path, &header, block_size, file.attributes)?;
        let mut merge = Merge::new(old, header.truncation as usize);
        for number in &header.blocks {
            next(*number, block)?;
            judge.page(*number, block);
            part.data(block)?;
            merge.put(*number, BlockHash::of(block));
        }
        judge.bad.sort_unstable();
        let (found, stored) = merge.found(&known.layers, newest, block_size);
        let Stored { file, bad } = file.stored(found, &judge.bad);
        Ok(Stored { file: part.record(file, Some(&LayerBlocks::Changed(header.blocks, stored)), &bad), bad })
    }
}

/// The length in blocks of the file that is meant; `None` when no file can be so long. A server may tell a truncation
/// length that reaches into the next file of the relation.
fn result_blocks(header: &IncrementalHeader, most: u32) -> Option<u32> {
    let header = IncrementalHeader { blocks: header.blocks.clone(), truncation: header.truncation.min(most) };
    Some(header.result_blocks()).filter(|blocks| *blocks <= most)
}
