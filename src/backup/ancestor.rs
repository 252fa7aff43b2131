//! The backup that a new one is compared with: what has not changed since is named where it already lies.
//!
//! Its start and stop lie on the history of the server's timeline, before each fork: of a backup from an abandoned
//! branch nothing is taken. A file is the same only when its file system says so in every way and it was last written
//! before the ancestor began to read. All else is compared by content, block by block where there is a map of them.
//! What was stored by an attempt that was killed serves in the same way.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs::Metadata,
    path::Path,
};

use futures_util::{StreamExt, stream};
use tokio::runtime::Handle;

use super::origin;
use crate::{
    error::{Kind, Result},
    postgres::{Lsn, TimelineHistory, TimelineId},
    repository::{
        BackupDocument, BackupId, BadPage, File, Files, Hashed, IntentDocument, LayerMaps, Origin, Overlaid, Part,
        PartName, System, overlay,
    },
    store::Key,
};

/// Indexes that are read at a time.
const AT_ONCE: usize = 8;

/// A backup to compare with.
pub struct Ancestor {
    system: System,
    block_size: u32,
    /// The backup itself; `None` where there are attempts alone.
    base: Option<BackupDocument>,
    /// The newest last: what it knows of a file counts.
    readings: Vec<Reading>,
    since: Option<Since>,
    parts: HashMap<PartName, Part>,
    /// Nothing of these is used.
    damaged: HashSet<PartName>,
    bad: HashMap<String, Vec<u32>>,
    maps: LayerMaps,
}

/// Files that were read at one time, in the order of their paths.
struct Reading {
    /// Where, when that was on this host.
    origin: Option<Origin>,
    /// Whether the backup has them so, and no attempt.
    of_backup: bool,
    files: Files,
}

/// A file that has not changed: the number of a reading, and its own number there.
#[derive(Clone, Copy, Debug)]
pub struct Same {
    reading: u32,
    file: u32,
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
        let readings: Vec<_> = self.readings.iter().map(|reading| reading.files.len()).collect();
        f.debug_struct("Ancestor").field("readings", &readings).finish_non_exhaustive()
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
    let attempts = system.attempts(ancestor.base.as_ref().map(|base| base.id)).await?;
    if let Some(copies) = &system.copies {
        copies.tidy(ancestor.base.as_ref(), &attempts.iter().map(|attempt| attempt.id).collect::<Vec<_>>());
    }
    for attempt in attempts {
        let elsewhere = attempt.origin.as_ref().is_some_and(|there| here.is_some_and(|here| there.host != here.host));
        if attempt.timeline == history.timeline && attempt.block_size == block_size && !elsewhere {
            ancestor.attempt(attempt).await?;
        }
    }
    Ok(ancestor.readings.iter().any(|reading| !reading.files.is_empty()).then_some(ancestor))
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
    let mut sealed = None;
    ancestor.damaged = damaged(system).await?;
    let (backups, unreadable) = system.readable_backups().await?;
    for (id, error) in unreadable {
        tracing::warn!("backup {id} is not compared with: {error}");
    }
    for document in backups.into_iter().rev().filter(|document| is_on(history, document)) {
        match ancestor.backup(&document, here).await {
            Ok(()) => {
                ancestor.base = Some(document);
                return Ok(ancestor);
            }
            // Of an older one of this host's own a copy may be kept.
            Err(error) if error.kind() == Kind::Refused => sealed = sealed.or(Some((document.id, error))),
            Err(error) => tracing::warn!("backup {} is not compared with: {error}", document.id),
        }
    }
    if let Some((id, error)) = sealed {
        tracing::warn!("everything is stored again, for this host has kept nothing of backup {id}, and {error}");
    }
    Ok(ancestor)
}

/// Parts that a verification has found damaged.
async fn damaged(system: &System) -> Result<HashSet<PartName>> {
    let (_, note) = system.damage_note().await?;
    let keys = note.objects.iter().filter_map(|object| Key::new(object.key.as_str()).ok());
    let part = |key: Key| {
        let backup = system.folder.backup_of(&key)?;
        Some((backup, system.folder.part_number(backup, &key)?))
    };
    Ok(keys.filter_map(part).collect())
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
            readings: Vec::new(),
            since: None,
            parts: HashMap::new(),
            damaged: HashSet::new(),
            bad: HashMap::new(),
            maps: LayerMaps::new(system.clone()),
        }
    }

    async fn backup(&mut self, document: &BackupDocument, here: Option<&Origin>) -> Result<()> {
        let manifest = self.system.manifest(document).await?;
        let there = self.system.parts_there(manifest.parts.iter().map(|p| p.backup)).await?;
        for part in manifest.parts {
            let name = (part.backup, part.number);
            match there.get(&name).filter(|_| !self.damaged.contains(&name)) {
                Some(length) if *length == part.length => _ = self.parts.insert((part.backup, part.number), part),
                found => tracing::warn!(
                    "part {} of backup {} {}: what lies in it is stored again, and older backups that need it cannot be restored",
                    part.number,
                    part.backup,
                    if self.damaged.contains(&name) {
                        "is damaged"
                    } else if found.is_some() {
                        "does not have its length"
                    } else {
                        "is missing"
                    }
                ),
            }
        }
        let origin = manifest.origin.filter(|origin| here.is_some_and(|here| origin.host == here.host));
        let files = self.stored(manifest.files);
        self.take_bad(&files, &document.bad_pages);
        self.readings.push(Reading { origin, of_backup: true, files });
        let BackupDocument { timeline, start_lsn: start, stop_lsn: stop, data_checksums, .. } = *document;
        self.since = Some(Since { timeline, start, stop, data_checksums });
        Ok(())
    }

    /// Takes in what a backup had stored that never came to be.
    async fn attempt(&mut self, attempt: IntentDocument) -> Result<()> {
        let there = self.system.parts_there([attempt.id].into_iter()).await?;
        let system = self.system.clone();
        let system = &system;
        let mut found =
            stream::iter(there)
                .map(|((backup, number), length)| async move {
                    (number, system.unlisted_part(backup, number, length).await)
                })
                .buffer_unordered(AT_ONCE);
        let mut all = Files::default();
        while let Some((number, read)) = found.next().await {
            match read {
                Ok(Some((part, index))) => {
                    self.parts.insert((part.backup, part.number), part);
                    let files = self.stored(index.files.into_iter().collect());
                    self.take_bad(&files, &index.bad_pages);
                    all.append(files);
                }
                Ok(None) => {}
                Err(error) if error.kind() == Kind::Refused => {
                    tracing::warn!("what attempt {} has stored is stored again: {error}", attempt.id);
                    break;
                }
                Err(error) => tracing::warn!("part {number} of attempt {} is not used: {error}", attempt.id),
            }
        }
        all.sort();
        self.readings.push(Reading { origin: attempt.origin, of_backup: false, files: all });
        Ok(())
    }

    /// Those of these files whose parts are all there.
    fn stored(&self, mut files: Files) -> Files {
        let is_stored = |file: File| file.layers.iter().all(|l| self.parts.contains_key(&(l.backup, l.part)));
        let kept: Vec<bool> = files.iter().map(is_stored).collect();
        files.retain(|number| kept[number]);
        files
    }

    /// Takes in the bad pages of these files, in place of what was known of them.
    fn take_bad(&mut self, files: &Files, bad_pages: &[BadPage]) {
        if !self.bad.is_empty() {
            for path in files.paths().filter_map(Path::to_str) {
                self.bad.remove(path);
            }
        }
        for page in bad_pages {
            self.bad.entry(page.path.clone()).or_default().push(page.block);
        }
    }

    /// Forgets what an expiry removes, or has removed since it was read. After the intent that refers to it: an expiry
    /// that begins later sees that.
    pub async fn forget_condemned(&mut self) -> Result<()> {
        let (_, condemned) = self.system.condemned().await?;
        let there = self.system.parts_there(self.references().into_iter()).await?;
        let before = self.parts.len();
        self.parts.retain(|name, part| there.get(name) == Some(&part.length) && !condemned.has_part(*name));
        if self.parts.len() < before {
            tracing::warn!(
                "an expiry removes {} parts that this backup would have built on: what lies in them is stored again",
                before - self.parts.len()
            );
            for mut reading in std::mem::take(&mut self.readings) {
                reading.files = self.stored(reading.files);
                self.readings.push(reading);
            }
        }
        Ok(())
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
    pub fn files(&self) -> impl Iterator<Item = File> {
        let counts = |path: &Path, reading: usize| self.find(path).is_some_and(|same| same.reading as usize == reading);
        let readings = self.readings.iter().enumerate();
        readings.flat_map(move |(number, reading)| reading.files.iter().filter(move |file| counts(&file.path, number)))
    }

    fn find(&self, path: &Path) -> Option<Same> {
        self.readings
            .iter()
            .enumerate()
            .rev()
            .find_map(|(number, reading)| Some(Same { reading: number as u32, file: reading.files.find(path)? as u32 }))
    }

    /// The file of that path.
    pub fn file(&self, path: &Path) -> Option<File> {
        let Same { reading, file } = self.find(path)?;
        Some(self.readings[reading as usize].files.at(file as usize))
    }

    /// The file of that path, when the backup has it so: what the log tells since its start holds for it.
    pub fn file_of_backup(&self, path: &Path) -> Option<File> {
        let Same { reading, file } = self.find(path)?;
        let Reading { of_backup, files, .. } = &self.readings[reading as usize];
        of_backup.then(|| files.at(file as usize))
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
    pub fn unchanged(&self, path: &Path, now: &Metadata) -> Option<Same> {
        let found = self.find(path)?;
        let Reading { origin, files, .. } = &self.readings[found.reading as usize];
        let file = files.at(found.file as usize);
        let (then, stat) = (file.stat?, origin::stat(now));
        let device = origin.as_ref()?.file_systems.iter().find(|f| f.device == stat.device)?;
        let same = then == stat && file.size == now.len() && file.mtime == origin::mtime(now);
        (same && file.mtime < device.began && stat.ctime < device.began).then_some(found)
    }

    /// Takes out the files that have not changed, and forgets the others.
    pub fn take(&mut self, same: &[Same]) -> Files {
        let mut all = Files::default();
        for (number, mut reading) in std::mem::take(&mut self.readings).into_iter().enumerate() {
            let mut wanted = vec![false; reading.files.len()];
            same.iter().filter(|s| s.reading as usize == number).for_each(|s| wanted[s.file as usize] = true);
            reading.files.retain(|file| wanted[file]);
            all.append(reading.files);
        }
        all
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
    pub fn parts_of(&self, files: &Files) -> Vec<Part> {
        let wanted: HashSet<_> = files.iter().flat_map(|f| f.layers).map(|l| (l.backup, l.part)).collect();
        let mut parts: Vec<Part> = wanted.iter().filter_map(|key| self.parts.get(key)).cloned().collect();
        parts.sort_by_key(|part| (part.backup, part.number));
        parts
    }
}
