//! The backup that a new one is compared with: what has not changed since is named where it already lies.
//!
//! Its start and stop lie on the history of the server's timeline, before each fork: of a backup from an abandoned
//! branch nothing is taken. A file is the same only when its file system says so in every way and it was last written
//! before the ancestor began to read; all else is compared by content, block by block where there is a map of them.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fs::Metadata,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::runtime::Handle;

use super::origin;
use crate::{
    error::Result,
    postgres::TimelineHistory,
    repository::{BackupDocument, BackupId, File, Hashed, Layer, LayerBlocks, Origin, Part, PartIndex, System},
    seal::BlockMap,
};

/// Indexes of parts that are kept in memory; each is a few megabytes at most.
const INDEXES: usize = 8;

/// A backup to compare with.
pub struct Ancestor {
    system: System,
    block_size: u32,
    /// Where its files were read, when that was this host.
    origin: Option<Origin>,
    files: HashMap<PathBuf, File>,
    parts: HashMap<(BackupId, u32), Part>,
    bad: HashMap<String, Vec<u32>>,
    indexes: Mutex<VecDeque<((BackupId, u32), Arc<PartIndex>)>>,
}

impl std::fmt::Debug for Ancestor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ancestor").field("files", &self.files.len()).finish_non_exhaustive()
    }
}

/// The blocks of a file as the ancestor has them.
#[derive(Debug, PartialEq, Eq)]
pub struct Known {
    /// Their hashes.
    pub map: BlockMap,
    /// For each block the number of the layer, in the file's list, that holds it.
    pub layer: Vec<usize>,
}

/// Finds the newest backup that lies on `history`, and whose parts are there. `here` is where the new backup reads.
pub async fn find(system: &System, history: &TimelineHistory, here: &Origin) -> Result<Option<Ancestor>> {
    for document in system.backups().await?.into_iter().rev() {
        if !is_on(history, &document) {
            continue;
        }
        match Ancestor::open(system, &document, here).await {
            Ok(ancestor) => return Ok(Some(ancestor)),
            Err(error) => tracing::warn!("backup {} is not compared with: {error}", document.id),
        }
    }
    Ok(None)
}

fn is_on(history: &TimelineHistory, backup: &BackupDocument) -> bool {
    history.contains(backup.timeline, backup.start_lsn) && history.contains(backup.timeline, backup.stop_lsn)
}

impl Ancestor {
    async fn open(system: &System, document: &BackupDocument, here: &Origin) -> Result<Self> {
        let manifest = system.manifest(document).await?;
        let there = parts_there(system, manifest.parts.iter().map(|p| p.backup)).await?;
        let parts: HashMap<_, _> = manifest
            .parts
            .into_iter()
            .filter(|part| there.get(&(part.backup, part.number)) == Some(&part.length))
            .map(|part| ((part.backup, part.number), part))
            .collect();
        let is_there = |file: &File| file.layers.iter().all(|l| parts.contains_key(&(l.backup, l.part)));
        let files = manifest.files.into_iter().filter(is_there).map(|file| (file.path.clone(), file)).collect();
        let mut bad: HashMap<String, Vec<u32>> = HashMap::new();
        for page in &document.bad_pages {
            bad.entry(page.path.clone()).or_default().push(page.block);
        }
        Ok(Self {
            system: system.clone(),
            block_size: manifest.block_size,
            origin: manifest.origin.filter(|origin| origin.host == here.host),
            files,
            parts,
            bad,
            indexes: Mutex::default(),
        })
    }

    /// The file of that path.
    pub fn file(&self, path: &Path) -> Option<&File> {
        self.files.get(path)
    }

    /// The pages of that file that were wrong then.
    pub fn bad_pages(&self, path: &Path) -> &[u32] {
        path.to_str().and_then(|path| self.bad.get(path)).map_or(&[], Vec::as_slice)
    }

    /// The file of that path, when the file system proves that it is still the same.
    pub fn unchanged(&self, path: &Path, now: &Metadata) -> Option<&File> {
        let file = self.file(path)?;
        let (then, stat) = (file.stat?, origin::stat(now));
        let device = self.origin.as_ref()?.file_systems.iter().find(|f| f.device == stat.device)?;
        let same = then == stat && file.size == now.len() && file.mtime == origin::mtime(now);
        (same && file.mtime < device.began && stat.ctime < device.began).then_some(file)
    }

    /// The blocks of a file; `None` where no map of them was kept, or where it cannot be read. Not on a thread that
    /// drives the runtime.
    pub fn blocks(&self, file: &File, runtime: &Handle) -> Option<Known> {
        if file.hashed != Hashed::Blocks {
            return None;
        }
        let known = self.assemble(file, runtime);
        match known {
            Ok(known) => known.filter(|known| known.map.root() == file.blake3),
            Err(error) => {
                tracing::warn!("{} is stored whole: {error}", file.path.display());
                None
            }
        }
    }

    fn assemble(&self, file: &File, runtime: &Handle) -> Result<Option<Known>> {
        let count = usize::try_from(file.size / u64::from(self.block_size)).unwrap_or(usize::MAX);
        let layers = file.layers.iter().map(|layer| self.layer_blocks(layer, runtime));
        Ok(layers.collect::<Result<Option<Vec<_>>>>()?.map(|layers| merge(count, self.block_size as usize, &layers)))
    }

    fn layer_blocks(&self, layer: &Layer, runtime: &Handle) -> Result<Option<LayerBlocks>> {
        let key = (layer.backup, layer.part);
        let lock = || self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
        let found = lock().iter().find(|(of, _)| *of == key).map(|(_, index)| index.clone());
        if let Some(index) = found {
            return index.blocks(layer);
        }
        let Some(part) = self.parts.get(&key) else { return Ok(None) };
        let Some(index) = runtime.block_on(self.system.part_index(part))? else { return Ok(None) };
        let index = Arc::new(index);
        let mut kept = lock();
        kept.push_front((key, index.clone()));
        kept.truncate(INDEXES);
        drop(kept);
        index.blocks(layer)
    }

    /// Those of its parts that these files point into.
    pub fn parts_of<'a>(&self, files: impl Iterator<Item = &'a File>) -> Vec<Part> {
        let wanted: HashSet<_> = files.flat_map(|f| &f.layers).map(|l| (l.backup, l.part)).collect();
        let mut parts: Vec<Part> = wanted.iter().filter_map(|key| self.parts.get(key)).cloned().collect();
        parts.sort_by_key(|part| (part.backup, part.number));
        parts
    }
}

/// Lays the layers of a file of `count` blocks over each other, oldest first.
fn merge(count: usize, block_size: usize, layers: &[LayerBlocks]) -> Known {
    let mut known = Known { map: BlockMap::zeros(count, block_size), layer: vec![0; count] };
    for (number, blocks) in layers.iter().enumerate() {
        let mut put = |block: usize, hash| {
            known.map.set(block, hash);
            if let Some(place) = known.layer.get_mut(block) {
                *place = number;
            }
        };
        match blocks {
            LayerBlocks::Whole(map) => map.hashes().iter().enumerate().for_each(|(block, hash)| put(block, *hash)),
            LayerBlocks::Changed(numbers, map) => {
                numbers.iter().zip(map.hashes()).for_each(|(block, hash)| put(*block as usize, *hash));
            }
        }
    }
    known
}

/// The parts of these backups that are in the repository, with their lengths in bytes.
async fn parts_there(
    system: &System,
    backups: impl Iterator<Item = BackupId>,
) -> Result<HashMap<(BackupId, u32), u64>> {
    let mut there = HashMap::new();
    for backup in backups.collect::<HashSet<_>>() {
        let folder = system.folder.backup(backup);
        for object in crate::store::list_all(&*system.store, &folder).await? {
            if let Some(number) = system.folder.part_number(backup, &object.key) {
                there.insert((backup, number), object.length);
            }
        }
    }
    Ok(there)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_layer_of_a_block_counts() {
        let block = |byte: u8| [byte; 8];
        let whole = LayerBlocks::Whole(BlockMap::of(&[block(1), block(2), block(3)].concat(), 8));
        let changed = LayerBlocks::Changed(vec![1, 4, 9], BlockMap::of(&[block(7), block(8), block(9)].concat(), 8));
        let known = merge(5, 8, &[whole, changed]);
        assert_eq!(known.map, BlockMap::of(&[block(1), block(7), block(3), block(0), block(8)].concat(), 8));
        assert_eq!(known.layer, [0, 1, 0, 0, 1]);
    }
}
