//! The block maps of layers: out of the indexes of the parts that hold them, and laid over each other to the map of a
//! file.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::runtime::Handle;

use super::{BackupId, Layer, LayerBlocks, Part, PartIndex, System};
use crate::{error::Result, seal::BlockMap};

/// Bytes of maps that are kept. One part has some hundred kilobytes of them, at most a few megabytes; the layers of
/// neighbouring files lie in the same parts.
const KEPT: usize = 64 << 20;

/// Fetches block maps, and keeps the indexes that were asked for last.
#[derive(Debug)]
pub struct LayerMaps {
    system: System,
    kept: Mutex<VecDeque<Kept>>,
}

type Kept = ((BackupId, u32), Arc<PartIndex>);

impl LayerMaps {
    /// Those of a system's parts.
    #[must_use]
    pub fn new(system: System) -> Self {
        Self { system, kept: Mutex::default() }
    }

    /// The blocks of a layer, which lies in `part`; `None` where no map of it was stored. Not on a thread that drives
    /// the runtime.
    pub fn blocks(&self, part: &Part, layer: &Layer, runtime: &Handle) -> Result<Option<LayerBlocks>> {
        let name = (part.backup, part.number);
        if let Some(index) = self.known(name) {
            return index.blocks(layer);
        }
        let index = match self.system.copies.as_ref().and_then(|copies| copies.maps(name)) {
            Some(kept) => kept,
            None => match runtime.block_on(self.system.part_index(part))? {
                Some(index) => index.without_files(),
                None => return Ok(None),
            },
        };
        let index = Arc::new(index);
        self.keep(name, index.clone());
        index.blocks(layer)
    }

    fn known(&self, name: (BackupId, u32)) -> Option<Arc<PartIndex>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(of, _)| *of == name)?;
        let found = kept.remove(at)?;
        let index = found.1.clone();
        kept.push_front(found);
        Some(index)
    }

    fn keep(&self, name: (BackupId, u32), index: Arc<PartIndex>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.iter().all(|(of, _)| *of != name) {
            kept.push_front((name, index));
        }
        let mut bytes = 0;
        let fits = kept.iter().take_while(|(_, index)| {
            bytes += index.maps().len();
            bytes <= KEPT
        });
        let fits = fits.count().max(1);
        kept.truncate(fits);
    }
}

/// The blocks of a file.
#[derive(Debug, PartialEq, Eq)]
pub struct Overlaid {
    /// Their hashes; that of zeros for a block in no layer.
    pub map: BlockMap,
    /// For each block the number of the layer, in the file's list, that holds it.
    pub layer: Vec<Option<usize>>,
}

/// Lays the layers of a file of `blocks` blocks over each other, oldest first: of a block that several hold the last
/// one's counts, and what lies past the file's end counts for nothing.
#[must_use]
pub fn overlay(blocks: usize, block_size: usize, layers: &[LayerBlocks]) -> Overlaid {
    let mut whole = Overlaid { map: BlockMap::zeros(blocks, block_size), layer: vec![None; blocks] };
    for (number, layer) in layers.iter().enumerate() {
        let mut put = |block: usize, hash| {
            whole.map.set(block, hash);
            if let Some(place) = whole.layer.get_mut(block) {
                *place = Some(number);
            }
        };
        match layer {
            LayerBlocks::Whole(map) => map.hashes().iter().enumerate().for_each(|(block, hash)| put(block, *hash)),
            LayerBlocks::Changed(numbers, map) => {
                numbers.iter().zip(map.hashes()).for_each(|(block, hash)| put(*block as usize, *hash));
            }
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_layer_of_a_block_counts() {
        let block = |byte: u8| [byte; 8];
        let whole = LayerBlocks::Whole(BlockMap::of(&[block(1), block(2), block(3)].concat(), 8));
        let changed = LayerBlocks::Changed(vec![1, 4, 9], BlockMap::of(&[block(7), block(8), block(9)].concat(), 8));
        let known = overlay(5, 8, &[whole, changed]);
        assert_eq!(known.map, BlockMap::of(&[block(1), block(7), block(3), block(0), block(8)].concat(), 8));
        assert_eq!(known.layer, [Some(0), Some(1), Some(0), None, Some(1)]);
    }
}
