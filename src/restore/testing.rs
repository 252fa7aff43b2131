//! Histories of backups for tests: files that change, shrink and grow, what is stored of them each time, and what they
//! must be when they are restored.

use std::collections::BTreeMap;

use chrono::DateTime;
use proptest::prelude::*;

use super::fetch::PartName;
use crate::{
    postgres::incremental::IncrementalHeader,
    repository::{File, Hashed, Layer, LayerBlocks, LayerKind, Manifest, PartIndex},
    seal::BlockMap,
};

/// Bytes of a block.
pub const BLOCK: usize = 64;

/// What befalls a file between two backups. A block is filled with one byte.
#[derive(Clone, Debug)]
pub enum Step {
    /// Nothing.
    Same,
    /// It is written anew, and stored whole.
    Whole(Vec<u8>),
    /// It is cut off, then grows, then some blocks change.
    Edit {
        /// What is left of it.
        cut: Option<usize>,
        /// What comes behind.
        grow: Vec<u8>,
        /// What is changed.
        set: Vec<(usize, u8)>,
        /// Blocks that are stored although they are the same.
        more: Vec<usize>,
    },
}

/// The steps of each file from backup to backup.
pub fn histories() -> impl Strategy<Value = Vec<Vec<Step>>> {
    // Zeros matter most: they are in no layer.
    let byte = prop_oneof![Just(0_u8), any::<u8>()];
    let cut = prop::option::of(0..12_usize);
    let grow = prop::collection::vec(byte.clone(), 0..6);
    let set = prop::collection::vec((0..12_usize, byte.clone()), 0..5);
    let more = prop::collection::vec(0..12_usize, 0..3);
    let edit = (cut, grow, set, more).prop_map(|(cut, grow, set, more)| Step::Edit { cut, grow, set, more });
    let whole = prop::collection::vec(byte, 0..10).prop_map(Step::Whole);
    let step = prop_oneof![2 => Just(Step::Same), 1 => whole, 6 => edit];
    prop::collection::vec(prop::collection::vec(step, 3), 1..8)
}

/// A layer as a simple model has it: the bytes of its blocks, and how many blocks the file had that older ones count
/// for.
#[derive(Clone)]
struct Laid {
    blocks: BTreeMap<usize, u8>,
    end: usize,
}

/// The byte that block is filled with.
fn resolve(laid: &[Laid], block: usize) -> u8 {
    for layer in laid.iter().rev() {
        match layer.blocks.get(&block) {
            Some(byte) => return *byte,
            None if block >= layer.end => return 0,
            None => {}
        }
    }
    0
}

/// The backups of such a history.
pub struct History {
    /// The content of each part.
    pub parts: BTreeMap<PartName, Vec<u8>>,
    /// The index of each part.
    pub indexes: BTreeMap<PartName, PartIndex>,
    /// Each backup: its files and what they hold.
    pub backups: Vec<Vec<(File, Vec<u8>)>>,
}

impl History {
    /// Carries the steps out.
    pub fn of(steps: &[Vec<Step>]) -> Self {
        let mut history = Self { parts: BTreeMap::new(), indexes: BTreeMap::new(), backups: Vec::new() };
        let mut states: Vec<(Vec<u8>, Vec<Laid>, Vec<Layer>)> = vec![Default::default(); steps[0].len()];
        for (number, steps) in steps.iter().enumerate() {
            let part: PartName = (format!("20261121T01{number:02}00Z").parse().unwrap(), 1);
            let mut index = PartIndex::default();
            let mut stored = vec![7; 100];
            for (step, (bytes, laid, layers)) in steps.iter().zip(&mut states) {
                let layer = |kind, offset: usize, length: usize, map| Layer {
                    backup: part.0,
                    part: part.1,
                    offset: offset as u64,
                    length: length as u64,
                    kind,
                    map: Some(map),
                };
                match step {
                    Step::Same => {}
                    Step::Whole(new) => {
                        bytes.clone_from(new);
                        *laid = vec![Laid { blocks: new.iter().copied().enumerate().collect(), end: new.len() }];
                        let content = content(new);
                        let map = index.add(&LayerBlocks::Whole(BlockMap::of(&content, BLOCK)));
                        *layers = vec![layer(LayerKind::Whole, stored.len(), content.len(), map)];
                        stored.extend(content);
                    }
                    Step::Edit { cut, grow, set, more } => {
                        let end = cut.map_or(bytes.len(), |cut| cut.min(bytes.len()));
                        bytes.truncate(end);
                        bytes.extend(grow);
                        for (block, byte) in set.iter().filter(|(block, _)| *block < 12) {
                            if let Some(place) = bytes.get_mut(*block) {
                                *place = *byte;
                            }
                        }
                        let is_needed = |(block, byte): &(usize, u8)| {
                            let there = if *block < end { resolve(laid, *block) } else { 0 };
                            there != *byte || more.contains(block)
                        };
                        let blocks: BTreeMap<_, _> = bytes.iter().copied().enumerate().filter(is_needed).collect();
                        let numbers: Vec<u32> = blocks.keys().map(|b| *b as u32).collect();
                        let changed = content(&blocks.values().copied().collect::<Vec<_>>());
                        let map = index.add(&LayerBlocks::Changed(numbers.clone(), BlockMap::of(&changed, BLOCK)));
                        let header = IncrementalHeader { blocks: numbers, truncation: end as u32 };
                        let length = header.file_size(BLOCK as u32) as usize;
                        layers.push(layer(LayerKind::Incremental, stored.len(), length, map));
                        stored.extend(header.to_bytes(BLOCK as u32));
                        stored.extend(changed);
                        laid.push(Laid { blocks, end });
                    }
                }
                stored.extend([9; 30]);
            }
            history.parts.insert(part, stored);
            history.indexes.insert(part, index);
            let files = states.iter().enumerate();
            let files = files.map(|(at, (bytes, _, layers))| (file(at, bytes, layers), content(bytes)));
            history.backups.push(files.collect());
        }
        history
    }
}

/// The bytes of these blocks.
pub fn content(blocks: &[u8]) -> Vec<u8> {
    blocks.iter().flat_map(|byte| [*byte; BLOCK]).collect()
}

fn file(number: usize, blocks: &[u8], layers: &[Layer]) -> File {
    let content = content(blocks);
    File {
        path: format!("base/{number}").into(),
        size: content.len() as u64,
        mtime: DateTime::UNIX_EPOCH,
        mode: 0o600,
        blake3: BlockMap::of(&content, BLOCK).root(),
        hashed: Hashed::Blocks,
        crc32c: crc32c::crc32c(&content),
        stat: None,
        layers: layers.to_vec(),
    }
}

/// A manifest of these files.
pub fn manifest(files: Vec<File>) -> Manifest {
    Manifest {
        format: 1,
        backup: "20261121T014500Z".parse().unwrap(),
        incarnation: "7-1".parse().unwrap(),
        block_size: BLOCK as u32,
        origin: None,
        tablespaces: vec![],
        directories: vec![],
        parts: vec![],
        files: files.into_iter().collect(),
    }
}
