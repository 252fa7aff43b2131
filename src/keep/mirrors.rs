//! The same removal in the other repositories that hold the same objects.
//!
//! Nothing is decided there. What was condemned in the first, and is spared by nobody, is removed from each mirror before it
//! is removed from the first; a mirror that is away, or lacks something that stays, owes it, and that is written down in the
//! first. What goes is always named by a condemnation, never by a comparison: what the first has lost by misfortune stays
//! in its mirrors.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::Serialize;

use super::{
    execute::{self, Done},
    gather,
    inventory::{Folder, Line},
    path,
    plan::{FolderWork, LineWork, Litter, SystemPlan, horizons},
    ranges::Ranges,
};
use crate::{
    clock::Clock,
    error::{Error, Kind, Result},
    interrupt::Interrupt,
    mirror::Mirror,
    postgres::TimelineId,
    repository::{BackupId, BackupObject, Condemned, RepositoryDocument, RepositoryName, System},
};

/// What each has yet to remove.
pub type Owed = BTreeMap<RepositoryName, Condemned>;

/// The other repositories that this host knows of.
#[derive(Debug)]
pub struct Mirrors<'a> {
    /// They.
    pub all: &'a [Arc<Mirror>],
    /// What the first one says of itself.
    pub first: RepositoryDocument,
}

/// What came of it in one of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mirrored {
    /// What the configuration calls it.
    pub name: RepositoryName,
    /// Objects that were deleted.
    pub deleted: u64,
    /// Objects that the store did not let go.
    pub locked: u64,
    /// Why it has still to remove some of it, in words; `null` where all is gone.
    pub owes: Option<String>,
    /// Whether a person is needed for that: it is not only away for a while, or behind.
    pub needs_person: bool,
}

impl Mirrors<'_> {
    /// Removes from each what goes, and what it owed. Gives back what each owes now, and what is to be told.
    pub(super) async fn remove(
        &self,
        system: &System,
        plan: &SystemPlan,
        gone: &Condemned,
        clock: &dyn Clock,
        interrupt: &Interrupt,
    ) -> Result<(Owed, Vec<Mirrored>)> {
        let mut owed = plan.condemned.owed.clone();
        for name in self.all.iter().map(|mirror| &mirror.name) {
            owed.entry(name.clone()).or_default();
        }
        owed.values_mut().for_each(|owes| owes.add(gone.clone()));
        let mut told = Vec::new();
        for mirror in self.all {
            let Some(owes) = owed.get_mut(&mirror.name).filter(|owes| !owes.is_empty()) else { continue };
            let removed = self.remove_from(mirror, system, plan, owes, clock, interrupt).await;
            // Whoever was told to stop stops here: nothing has gone from the first.
            interrupt.check()?;
            let mut one =
                Mirrored { name: mirror.name.clone(), deleted: 0, locked: 0, owes: None, needs_person: false };
            match removed {
                Ok(done) => {
                    (one.deleted, one.locked) = (done.deleted, done.locked);
                    one.owes = done.spared.first().cloned();
                    if let Some(locked) = done.told.first() {
                        one.needs_person = true;
                        one.owes = Some(format!("it does not let go of {} objects, such as {locked}", done.locked));
                    }
                }
                Err(error) => {
                    one.needs_person = !matches!(error.kind(), Kind::Unavailable | Kind::NotFound);
                    one.owes = Some(error.to_string());
                }
            }
            if one.owes.is_none() {
                *owes = Condemned::default();
            }
            told.push(one);
        }
        Ok((owed, told))
    }

    async fn remove_from(
        &self,
        mirror: &Mirror,
        first: &System,
        plan: &SystemPlan,
        gone: &Condemned,
        clock: &dyn Clock,
        interrupt: &Interrupt,
    ) -> Result<Done> {
        let there = mirror.open(&self.first).await?;
        let system = System { store: there.store.clone(), ..first.clone() };
        let folders = gather::folders(&system).await?;
        lacks_nothing(mirror, plan, &folders)?;
        let mut its_plan = SystemPlan {
            system: plan.system,
            backups: plan.backups.clone(),
            wal: Vec::new(),
            parts: Vec::new(),
            litter: Litter::default(),
            remains: Vec::new(),
            held: Vec::new(),
            doubts: Vec::new(),
            condemned: gone.clone(),
            after: system.condemned().await?.0,
            folders: works(&folders, plan, gone),
            archive: BTreeMap::new(),
            standing: plan.standing.clone(),
        };
        archive(&system, &mut its_plan).await?;
        let spared = execute::begin(&system, &its_plan, clock).await?;
        let done = execute::remove(&system, &its_plan, spared, interrupt).await?;
        execute::end(&system, &its_plan, Owed::new(), &done, clock).await?;
        Ok(done)
    }
}

/// That a mirror has all that stays, as it is now: else what goes may be what it can be restored from.
fn lacks_nothing(mirror: &Mirror, plan: &SystemPlan, folders: &BTreeMap<BackupId, Folder>) -> Result<()> {
    let has = |(id, standing): &(&BackupId, &super::plan::Standing)| {
        folders.get(*id).and_then(Folder::newest_document) == Some(standing.document)
    };
    match plan.standing.iter().find(|one| !has(one)) {
        None => Ok(()),
        Some((id, _)) => Err(Error::not_found(format!("it has not yet got backup {id}, which stays, as it is now"))
            .hint(format!("walden sync {}", mirror.name))),
    }
}

/// What goes of the folders that a mirror has.
fn works(folders: &BTreeMap<BackupId, Folder>, plan: &SystemPlan, gone: &Condemned) -> BTreeMap<BackupId, FolderWork> {
    let expired: BTreeSet<&BackupId> = gone.backups.iter().collect();
    let mut works = BTreeMap::new();
    for (id, folder) in folders {
        let goes = |object: BackupObject| match plan.standing.get(id) {
            Some(standing) => standing.supersedes(object),
            None => expired.contains(id),
        };
        let mut work = FolderWork::default();
        folder.objects.iter().map(|(object, _)| *object).filter(|object| goes(*object)).for_each(|o| work.object(o));
        let parts = gone.parts.get(id).map(|rows| Ranges::of_rows(rows)).unwrap_or_default();
        let there = folder.parts.iter().map(|(number, _)| *number);
        there.filter(|number| parts.has(u64::from(*number))).for_each(|number| work.part(number));
        if work != FolderWork::default() {
            works.insert(*id, work);
        }
    }
    works
}

/// What goes of the archive that a mirror has: it is looked at where something is condemned.
async fn archive(system: &System, plan: &mut SystemPlan) -> Result<()> {
    let size = system.document.segment_size;
    let ends: BTreeMap<TimelineId, u64> =
        horizons(plan, size).into_iter().filter_map(|name| Some((name.timeline, name.number(size).ok()?))).collect();
    for (timeline, gone) in path::named(&plan.condemned.wal, size) {
        let mut line = Line::empty(timeline);
        let logs: BTreeSet<u64> =
            gone.iter().flat_map(|(first, end)| first / size.per_log()..=(end - 1) / size.per_log()).collect();
        let logs: Vec<String> = logs.iter().map(|log| format!("{log:08X}")).collect();
        gather::logs(system, timeline, &logs, &mut line).await?;
        let there = line.there();
        let mut work = LineWork { segments: there.and(&gone), ..LineWork::default() };
        let beside = line.beside.iter().filter(|beside| beside.name.number(size).is_ok_and(|at| gone.has(at)));
        work.beside.extend(beside.map(|beside| (beside.name, beside.what)));
        gather::roll_ups(system, timeline, &mut line).await?;
        let (left, horizon) = (there.without(&gone), ends.get(&timeline).copied().unwrap_or(0));
        for (name, _) in line.roll_ups.iter().filter(|(name, _)| logs.contains(&format!("{:08X}", name.log))) {
            let first = u64::from(name.log) * size.per_log();
            let end = first + size.per_log();
            if end <= horizon && left.and(&Ranges::of(first, end)).is_empty() {
                work.roll_ups.push(*name);
            }
        }
        plan.archive.insert(timeline, work);
    }
    Ok(())
}
