//! The backup that a new one is compared with: what has not changed since is named where it already lies.
//!
//! Its start and stop lie on the history of the server's timeline, before each fork: of a backup from an abandoned
//! branch nothing is taken. A file is the same only when its file system says so in every way and it was last written
//! before the ancestor began to read. All else is compared by content, block by block where there is a map of them.
//! What was stored by an attempt that was killed serves in the same way.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs::Metadata,
    path::{Path, PathBuf},
};

use futures_util::{StreamExt, stream};
use tokio::runtime::Handle;

use super::origin;
use crate::{
    error::Result,
    postgres::{Lsn, TimelineHistory, TimelineId},
    repository::{
        BackupDocument, BackupId, BadPage, File, Hashed, IntentDocument, LayerMaps, Origin, Overlaid, Part, System,
        overlay,
    },
};

/// Indexes that are read at a time.
const AT_ONCE: usize = 16;

/// A backup to compare with.
pub struct Ancestor {
    system: System,
    block_size: u32,
    /// The backup itself; `None` where there are attempts alone.
    base: Option<BackupDocument>,
    /// Where its files were read, of each reading that was on this host.
    origins: Vec<Origin>,
    files: HashMap<PathBuf, Known>,
    since: Option<Since>,
    parts: HashMap<(BackupId, u32), Part>,
    bad: HashMap<String, Vec<u32>>,
    maps: LayerMaps,
}

/// A file that is known.
struct Known {
    file: File,
    /// The number of the reading that it is from.
    reading: Option<usize>,
    /// Whether the backup has it so, and no attempt.
    of_backup: bool,
}

/// From where on the log tells what has changed in the backup's files.
#[derive(Clone, Copy, Debug)]
pub struct Since {
    /// The timeline it was taken on.
    pub timeline: TimelineId,
    /// Where its replay starts.
    pub start: Lsn,
    /// Where it is consistent: no page of it is younger.
    pub stop: Lsn,
    /// Whether pages had checksums.
    pub data_checksums: bool,
}

impl std::fmt::Debug for Ancestor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ancestor").field("files", &self.files.len()).finish_non_exhaustive()
    }
}

/// Finds the newest backup that lies on `history`, and whose parts are there, with what attempts after it have stored.
/// `here` is where the new backup reads, when it reads itself.
pub async fn find(
    system: &System,
    history: &TimelineHistory,
    here: Option<&Origin>,
    block_size: u32,
) -> Result<Option<Ancestor>> {
    let mut ancestor = newest(system, history, here, block_size).await?;
    for attempt in system.attempts(ancestor.base.as_ref().map(|base| base.id)).await? {
        let elsewhere = attempt.origin.as_ref().is_some_and(|there| here.is_some_and(|here| there.host != here.host));
        if attempt.timeline == history.timeline && attempt.block_size == block_size && !elsewhere {
            ancestor.attempt(attempt).await?;
        }
    }
    Ok((!ancestor.files.is_empty()).then_some(ancestor))
}

/// The newest backup that lies on `history`, and nothing of what came after.
pub async fn find_backup(system: &System, history: &TimelineHistory, block_size: u32) -> Result<Option<Ancestor>> {
    let ancestor = newest(system, history, None, block_size).await?;
    Ok(ancestor.base.is_some().then_some(ancestor))
}

async fn newest(
    system: &System,
    history: &TimelineHistory,
    here: Option<&Origin>,
    block_size: u32,
) -> Result<Ancestor> {
    let mut ancestor = Ancestor::nothing(system, block_size);
    for document in system.backups().await?.into_iter().rev().filter(|document| is_on(history, document)) {
        match ancestor.backup(&document, here).await {
            Ok(()) => {
                ancestor.base = Some(document);
                break;
            }
            Err(error) => tracing::warn!("backup {} is not compared with: {error}", document.id),
        }
    }
    Ok(ancestor)
}

fn is_on(history: &TimelineHistory, backup: &BackupDocument) -> bool {
    history.contains(backup.timeline, backup.start_lsn) && history.contains(backup.timeline, backup.stop_lsn)
}

impl Ancestor {
    fn nothing(system: &System, block_size: u32) -> Self {
        Self {
            system: system.clone(),
            block_size,
            base: None,
            origins: Vec::new(),
            files: HashMap::new(),
            since: None,
            parts: HashMap::new(),
            bad: HashMap::new(),
            maps: LayerMaps::new(system.clone()),
        }
    }

    async fn backup(&mut self, document: &BackupDocument, here: Option<&Origin>) -> Result<()> {
        let manifest = self.system.manifest(document).await?;
        let there = self.system.parts_there(manifest.parts.iter().map(|p| p.backup)).await?;
        for part in manifest.parts {
            match there.get(&(part.backup, part.number)) {
                Some(length) if *length == part.length => _ = self.parts.insert((part.backup, part.number), part),
                found => tracing::warn!(
                    "part {} of backup {} {}: what lies in it is stored again, and older backups that need it cannot be restored",
                    part.number,
                    part.backup,
                    if found.is_some() { "does not have its length" } else { "is missing" }
                ),
            }
        }
        let origin = manifest.origin.filter(|origin| here.is_some_and(|here| origin.host == here.host));
        let origin = origin.map(|origin| self.reading(origin));
        self.take(origin, true, manifest.files, &document.bad_pages);
        let BackupDocument { timeline, start_lsn: start, stop_lsn: stop, data_checksums, .. } = *document;
        self.since = Some(Since { timeline, start, stop, data_checksums });
        Ok(())
    }

    /// Takes in what a backup had stored that never came to be.
    async fn attempt(&mut self, attempt: IntentDocument) -> Result<()> {
        let there = self.system.parts_there([attempt.id].into_iter()).await?;
        let origin = attempt.origin.map(|origin| self.reading(origin));
        let system = &self.system;
        let mut found =
            stream::iter(there)
                .map(|((backup, number), length)| async move {
                    (number, system.unlisted_part(backup, number, length).await)
                })
                .buffer_unordered(AT_ONCE);
        let mut indexes = Vec::new();
        while let Some((number, read)) = found.next().await {
            match read {
                Ok(Some((part, index))) => indexes.push((part, index.files, index.bad_pages)),
                Ok(None) => {}
                Err(error) => tracing::warn!("part {number} of attempt {} is not used: {error}", attempt.id),
            }
        }
        drop(found);
        for (part, files, bad) in indexes {
            self.parts.insert((part.backup, part.number), part);
            self.take(origin, false, files, &bad);
        }
        Ok(())
    }

    fn reading(&mut self, origin: Origin) -> usize {
        self.origins.push(origin);
        self.origins.len() - 1
    }

    /// Takes in files whose parts are all there, in place of what was known of them.
    fn take(&mut self, reading: Option<usize>, of_backup: bool, files: Vec<File>, bad_pages: &[BadPage]) {
        for file in files {
            if file.layers.iter().all(|l| self.parts.contains_key(&(l.backup, l.part))) {
                if let Some(path) = file.path.to_str() {
                    self.bad.remove(path);
                }
                self.files.insert(file.path.clone(), Known { file, reading, of_backup });
            }
        }
        for page in bad_pages {
            self.bad.entry(page.path.clone()).or_default().push(page.block);
        }
    }

    /// The backups that its files lie in.
    pub fn references(&self) -> Vec<BackupId> {
        let all: BTreeSet<_> = self.parts.keys().map(|(backup, _)| *backup).collect();
        all.into_iter().collect()
    }

    /// The backup itself.
    pub fn base(&self) -> Option<&BackupDocument> {
        self.base.as_ref()
    }

    /// All files.
    pub fn files(&self) -> impl Iterator<Item = &File> {
        self.files.values().map(|known| &known.file)
    }

    /// The file of that path.
    pub fn file(&self, path: &Path) -> Option<&File> {
        self.files.get(path).map(|known| &known.file)
    }

    /// The file of that path, when the backup has it so: what the log tells since its start holds for it.
    pub fn file_of_backup(&self, path: &Path) -> Option<&File> {
        self.files.get(path).filter(|known| known.of_backup).map(|known| &known.file)
    }

    /// From where on the log tells what has changed; `None` where all that is known comes from attempts.
    pub fn since(&self) -> Option<&Since> {
        self.since.as_ref()
    }

    /// The pages of that file that were wrong then.
    pub fn bad_pages(&self, path: &Path) -> &[u32] {
        path.to_str().and_then(|path| self.bad.get(path)).map_or(&[], Vec::as_slice)
    }

    /// The file of that path, when the file system proves that it is still the same.
    pub fn unchanged(&self, path: &Path, now: &Metadata) -> Option<&File> {
        let Known { reading, file, .. } = self.files.get(path)?;
        let (then, stat) = (file.stat?, origin::stat(now));
        let device = self.origins.get((*reading)?)?.file_systems.iter().find(|f| f.device == stat.device)?;
        let same = then == stat && file.size == now.len() && file.mtime == origin::mtime(now);
        (same && file.mtime < device.began && stat.ctime < device.began).then_some(file)
    }

    /// The blocks of a file; `None` where no map of them was kept, or where it cannot be read. Not on a thread that
    /// drives the runtime.
    pub fn blocks(&self, file: &File, runtime: &Handle) -> Option<Overlaid> {
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

    fn assemble(&self, file: &File, runtime: &Handle) -> Result<Option<Overlaid>> {
        let count = usize::try_from(file.size / u64::from(self.block_size)).unwrap_or(usize::MAX);
        let layers = file.layers.iter().map(|layer| match self.parts.get(&(layer.backup, layer.part)) {
            Some(part) => self.maps.blocks(part, layer, runtime),
            None => Ok(None),
        });
        Ok(layers.collect::<Result<Option<Vec<_>>>>()?.map(|layers| overlay(count, self.block_size as usize, &layers)))
    }

    /// Those of its parts that these files point into.
    pub fn parts_of<'a>(&self, files: impl Iterator<Item = &'a File>) -> Vec<Part> {
        let wanted: HashSet<_> = files.flat_map(|f| &f.layers).map(|l| (l.backup, l.part)).collect();
        let mut parts: Vec<Part> = wanted.iter().filter_map(|key| self.parts.get(key)).cloned().collect();
        parts.sort_by_key(|part| (part.backup, part.number));
        parts
    }
}
