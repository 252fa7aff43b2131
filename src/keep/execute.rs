//! Carries out the plan for one system.
//!
//! First everything that goes is condemned, by a document that only one expiry can put after the one that was planned on.
//! Then it is looked who needs some of it all the same: backups under way, restores, pins and backups that came while
//! it was planned. Whoever comes later sees what is condemned. Then attempts are given up, documents of backups go before
//! what they name, parts before WAL, and WAL oldest first; so a kill at any instant leaves whole backups alone, and the
//! next expiry, which finds the condemnation, ends what was begun.

use std::collections::BTreeSet;

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;

use super::{
    gather,
    inventory::{BesideKind, Folder},
    mirrors::{Mirrored, Mirrors, Owed},
    path,
    plan::{FolderWork, SystemPlan, horizons},
    ranges::Ranges,
};
use crate::{
    clock::Clock,
    error::{Error, Kind, Result},
    interrupt::Interrupt,
    postgres::{SegmentName, SegmentSize, TimelineId, WalFile},
    repository::{BackupDocument, BackupId, BackupObject, Condemned, System},
    seal,
    store::{self, Key, Put},
};

/// Objects that are deleted with one request.
const BATCH: usize = 1000;
/// Folders of backups that are looked at at a time.
const PARALLEL: usize = 32;
/// So many objects that could not be deleted are told by their names.
const TOLD: usize = 20;

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Done {
    /// Objects that were deleted.
    pub deleted: u64,
    /// Objects that the store did not let go: how many, and some of them with its words. They stay condemned.
    pub locked: u64,
    /// Some of them.
    pub told: Vec<String>,
    /// What stayed although it was planned to go, in words: somebody came to need it.
    pub spared: Vec<String>,
    /// What came of it in other repositories that hold the same.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<Mirrored>,
}

impl Done {
    /// Whether something stays that only a person can let go.
    #[must_use]
    pub fn needs_person(&self) -> bool {
        self.locked > 0 || self.mirrors.iter().any(|mirror| mirror.needs_person)
    }
}

/// Carries out a plan, in the other repositories first.
pub async fn execute(
    system: &System,
    plan: &SystemPlan,
    mirrors: &Mirrors<'_>,
    clock: &dyn Clock,
    interrupt: &Interrupt,
) -> Result<Done> {
    let spared = begin(system, plan, clock).await?;
    let gone = spared.leaves(plan, system.document.segment_size);
    let (owed, told) = mirrors.remove(system, plan, &gone, clock, interrupt).await?;
    let mut done = remove(system, plan, spared, interrupt).await?;
    end(system, plan, owed, &done, clock).await?;
    done.mirrors = told;
    Ok(done)
}

/// Condemns, and looks who needs some of it all the same.
pub(super) async fn begin(system: &System, plan: &SystemPlan, clock: &dyn Clock) -> Result<Spared> {
    if !plan.condemned.is_empty() && !system.condemn(plan.after, &plan.condemned).await? {
        return Err(Error::refused("another expiry was carried out since this one was planned").hint("plan again"));
    }
    // From here on what was condemned is final.
    let known = system.horizons().await?;
    for name in horizons(plan, system.document.segment_size) {
        system.raise_horizon(&known, name).await?;
    }
    let mut spared = look_again(system, plan, clock).await?;
    for (id, work) in plan.folders.iter().filter(|(_, work)| work.give_up) {
        if system.give_up(*id, clock.now()).await? == Put::Exists && system.backup_exists(*id).await? {
            spared.backup(system, *id).await?;
        }
        // A backup that goes is left to those who look whether it does.
        for (backup, number) in work.closes.iter().filter(|(backup, _)| !plan.condemned.backups.contains(backup)) {
            system.close(*backup, *number).await?;
            // It may have been written since this was planned: then it counts, and what it names.
            if system.backup_exists(*backup).await? {
                spared.needs(&system.backup(*backup).await?);
            }
        }
    }
    Ok(spared)
}

/// Removes what is not spared.
pub(super) async fn remove(system: &System, plan: &SystemPlan, spared: Spared, interrupt: &Interrupt) -> Result<Done> {
    let mut work = Work { system, interrupt, batch: Vec::new(), done: Done::default() };
    work.documents(plan, &spared).await?;
    if !work.is_stuck(plan, &spared).await? {
        work.folders(plan, &spared).await?;
        work.archive(plan, &spared).await?;
    }
    work.done.spared = spared.words.into_iter().collect();
    Ok(work.done)
}

/// Says that what was condemned is gone, and what other repositories have yet to remove of it.
pub(super) async fn end(system: &System, plan: &SystemPlan, owed: Owed, done: &Done, clock: &dyn Clock) -> Result<()> {
    let condemned = !plan.condemned.is_empty();
    if (condemned && done.locked == 0) || owed != plan.condemned.owed {
        // What somebody needed all the same is planned anew by the next expiry; what was locked stays condemned.
        let left = if done.locked == 0 { Condemned::default() } else { plan.condemned.clone() };
        system.condemn(plan.after + u32::from(condemned), &Condemned { owed, ..left }).await?;
    }
    system.clear_holds(clock.now()).await
}

/// What must stay although the plan says otherwise.
#[derive(Debug, Default)]
pub(super) struct Spared {
    /// Folders of which no part goes.
    folders: BTreeSet<BackupId>,
    /// Backups of which nothing goes.
    backups: BTreeSet<BackupId>,
    wal: path::Segments,
    words: BTreeSet<String>,
}

/// Looks who came to need something while it was planned. Everything that came later sees what is condemned.
async fn look_again(system: &System, plan: &SystemPlan, clock: &dyn Clock) -> Result<Spared> {
    let mut spared = Spared::default();
    let size = system.document.segment_size;
    let planned: BTreeSet<BackupId> = plan.backups.iter().map(|fate| fate.id).collect();
    for name in system.store.folders(&system.folder.backups()).await? {
        let Ok(id) = name.parse::<BackupId>() else { continue };
        let given_up = plan.folders.get(&id).is_some_and(|work| work.give_up);
        if planned.contains(&id) || given_up || plan.condemned.backups.contains(&id) {
            continue;
        }
        let listed = system.store.list(&system.folder.backup(id), None, BATCH).await?;
        let mut folder = Folder::default();
        folder.objects.extend(listed.iter().filter_map(|l| Some((system.folder.object_of(id, &l.key)?, l.length))));
        spared.folder(system, id, &folder).await?;
    }
    for hold in system.holds(clock.now()).await?.iter().map(gather::holding) {
        for id in &hold.backups {
            spared.spare(*id, format!("{} reads backup {id}", hold.who));
        }
        for (timeline, rows) in path::named(&hold.wal, size) {
            spared.wal.entry(timeline).or_default().add_all(&rows);
        }
    }
    for pin in system.pins().await? {
        if plan.condemned.backups.contains(&pin.backup) && system.backup_exists(pin.backup).await? {
            spared.backup(system, pin.backup).await?;
        }
    }
    Ok(spared)
}

impl Spared {
    /// What goes of what is condemned.
    fn leaves(&self, plan: &SystemPlan, size: SegmentSize) -> Condemned {
        let Condemned { backups, parts, wal, .. } = plan.condemned.clone();
        let nothing = Ranges::default();
        let rows = |(timeline, rows): (TimelineId, Ranges)| {
            let left = rows.without(self.wal.get(&timeline).unwrap_or(&nothing));
            let name = move |number| SegmentName::from_number(timeline, number, size);
            left.iter().filter_map(|(first, end)| Some((name(first)?, name(end - 1)?))).collect::<Vec<_>>()
        };
        Condemned {
            backups: backups.into_iter().filter(|id| !self.backups.contains(id)).collect(),
            parts: parts.into_iter().filter(|(id, _)| !self.folders.contains(id)).collect(),
            wal: path::named(&wal, size).into_iter().flat_map(rows).collect(),
            ..Condemned::default()
        }
    }

    fn spare(&mut self, id: BackupId, why: String) {
        self.folders.insert(id);
        if self.backups.insert(id) {
            self.words.insert(why);
        }
    }

    fn needs(&mut self, backup: &BackupDocument) {
        self.folders.extend(backup.references.iter().copied());
    }

    /// What a folder needs that was not planned for: a backup, or one that is being taken.
    async fn folder(&mut self, system: &System, id: BackupId, folder: &Folder) -> Result<()> {
        if folder.objects.iter().any(|(object, _)| matches!(object, BackupObject::Document(_))) {
            return self.backup(system, id).await;
        }
        let intents: Vec<u32> = folder
            .objects
            .iter()
            .filter_map(|(object, _)| if let BackupObject::Intent(number) = object { Some(*number) } else { None })
            .collect();
        if !intents.is_empty() {
            let attempt = gather::attempt(system, id, &intents).await?;
            self.folders.extend(attempt.references);
        }
        Ok(())
    }

    /// A backup that is there, and was not, or was not to stay, when it was planned.
    async fn backup(&mut self, system: &System, id: BackupId) -> Result<()> {
        let document = match system.backup(id).await {
            Ok(document) => document,
            // It was given up.
            Err(error) if error.kind() == Kind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        self.spare(id, format!("backup {id} is to stay"));
        self.needs(&document);
        let size = system.document.segment_size;
        let (first, last) = (document.first_segment.number(size)?, document.last_segment.number(size)?);
        for timeline in system.timelines().await? {
            self.wal.entry(timeline).or_default().add(first, last + 1);
        }
        Ok(())
    }
}

/// Deleting, in batches.
struct Work<'a> {
    system: &'a System,
    interrupt: &'a Interrupt,
    batch: Vec<Key>,
    done: Done,
}

impl Work<'_> {
    async fn delete(&mut self, key: Key) -> Result<()> {
        self.batch.push(key);
        if self.batch.len() < BATCH { Ok(()) } else { self.flush().await }
    }

    /// Everything that was said so far is gone, or told, before anything else is done.
    async fn flush(&mut self) -> Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.interrupt.check()?;
        let batch = std::mem::take(&mut self.batch);
        let failed = self.system.store.delete_many(&batch).await?;
        self.done.deleted += (batch.len() - failed.len()) as u64;
        self.done.locked += failed.len() as u64;
        for (key, error) in failed {
            if self.done.told.len() < TOLD {
                self.done.told.push(format!("{key}: {error}"));
            }
        }
        Ok(())
    }

    /// The documents: what they name is whole until they are gone. Of several the highest counts, and goes last.
    async fn documents(&mut self, plan: &SystemPlan, spared: &Spared) -> Result<()> {
        let system = self.system;
        let look = |(id, work)| async move {
            let (id, work): (&BackupId, &FolderWork) = (id, work);
            // A compaction may have put one since.
            let goes = plan.condemned.backups.contains(id);
            Ok::<_, Error>((*id, if goes { system.document_numbers(*id).await? } else { work.documents.clone() }))
        };
        let folders = plan.folders.iter().filter(|(id, _)| !spared.backups.contains(id));
        let found: Vec<(BackupId, Vec<u32>)> = stream::iter(folders.map(look)).buffered(PARALLEL).try_collect().await?;
        let mut newest = Vec::new();
        for (id, mut numbers) in found {
            newest.extend(numbers.pop().map(|number| (id, number)));
            for number in numbers {
                self.delete(system.folder.backup_document(id, number)?).await?;
            }
        }
        self.flush().await?;
        for (id, number) in newest {
            self.delete(system.folder.backup_document(id, number)?).await?;
        }
        self.flush().await
    }

    /// Whether a document could not be deleted of a backup that was to go: it may need any part, and its WAL.
    async fn is_stuck(&self, plan: &SystemPlan, spared: &Spared) -> Result<bool> {
        for id in plan.condemned.backups.iter().filter(|id| self.done.locked > 0 && !spared.backups.contains(id)) {
            if self.system.backup_exists(*id).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Manifests and what else lies beside them, then parts.
    async fn folders(&mut self, plan: &SystemPlan, spared: &Spared) -> Result<()> {
        for (id, work) in plan.folders.iter().filter(|(id, _)| !spared.backups.contains(id)) {
            for object in &work.objects {
                self.delete(self.system.folder.key_of(*id, *object)?).await?;
            }
        }
        for (id, work) in plan.folders.iter().filter(|(id, _)| !spared.folders.contains(id)) {
            for number in work.parts.iter().flat_map(|(first, last)| *first..=*last) {
                self.delete(self.system.folder.part(*id, number)?).await?;
            }
        }
        self.flush().await
    }

    /// WAL, oldest first, and what lies beside it.
    async fn archive(&mut self, plan: &SystemPlan, spared: &Spared) -> Result<()> {
        let (size, nothing) = (self.system.document.segment_size, Ranges::default());
        for (timeline, work) in &plan.archive {
            let spared = spared.wal.get(timeline).unwrap_or(&nothing);
            for number in work.segments.without(spared).iter().flat_map(|(first, end)| first..end) {
                if let Some(name) = SegmentName::from_number(*timeline, number, size) {
                    self.delete(self.system.folder.segment(name)?).await?;
                }
            }
            for (name, what) in &work.beside {
                if !spared.has(name.number(size)?) || *what == BesideKind::Pieces {
                    self.beside(*name, *what).await?;
                }
            }
            for name in &work.roll_ups {
                self.delete(self.system.folder.roll_up(*timeline, *name)?).await?;
            }
        }
        self.flush().await
    }

    async fn beside(&mut self, name: SegmentName, what: BesideKind) -> Result<()> {
        let folder = match what {
            BesideKind::Label(offset) => {
                let label = WalFile::BackupLabel(name, offset);
                return self.delete(self.system.folder.wal_file(label, seal::blake3(b""))?).await;
            }
            BesideKind::Pieces => self.system.folder.pieces(name)?,
            BesideKind::Partials => self.system.folder.partials(name)?,
        };
        for listed in store::list_all(&*self.system.store, &folder).await? {
            self.delete(listed.key).await?;
        }
        Ok(())
    }
}
