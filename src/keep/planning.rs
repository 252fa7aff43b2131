//! Makes the plan of an expiry, of what was found and of the rules. Pure.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Duration, Utc};

use super::{
    choose::Chosen,
    inventory::{Attempt, Backup, BesideKind, Folder, Inventory},
    path::{self, Segments},
    plan::{Fate, FolderWork, GoneParts, GoneWal, LineWork, Litter, Standing, SystemPlan, Why},
    policy::Policy,
    ranges::Ranges,
    remain,
};
use crate::{
    postgres::SegmentName,
    repository::{BackupId, BackupObject, Condemned, RollUpName},
};

/// What an attempt that was killed has stored serves the next backup, at most this long.
const ATTEMPTS_SERVE: Duration = Duration::days(7);

/// The kept backups whose manifests have to be read before it can be said which parts go: those that refer to a folder
/// in which there are parts that are not a kept backup's own.
#[must_use]
pub fn manifests_wanted(found: &Inventory, chosen: &Chosen) -> BTreeSet<BackupId> {
    let mut wanted = BTreeSet::new();
    let kept = || found.backups.iter().filter(|backup| chosen.kept.contains_key(&backup.id));
    for (id, folder) in &found.folders {
        let own: BTreeSet<u32> =
            kept().filter(|backup| backup.id == *id).flat_map(|b| b.parts.iter().map(|(number, _)| *number)).collect();
        if folder.parts.iter().any(|(number, _)| !own.contains(number)) {
            wanted.extend(kept().filter(|b| b.id != *id && b.references.contains(id)).map(|b| b.id));
        }
    }
    wanted
}

/// Makes the plan for one system.
#[must_use]
pub fn plan(found: &Inventory, chosen: &Chosen, policy: &Policy, now: DateTime<Utc>) -> SystemPlan {
    let mut planning = Planning {
        found,
        chosen,
        policy,
        now,
        plan: SystemPlan {
            system: found.incarnation,
            backups: found.backups.iter().map(|backup| fate(backup, chosen)).collect(),
            wal: Vec::new(),
            parts: Vec::new(),
            litter: Litter::default(),
            remains: Vec::new(),
            held: Vec::new(),
            doubts: found.doubts.clone(),
            condemned: found.condemned.1.clone(),
            after: found.condemned.0,
            folders: BTreeMap::new(),
            archive: BTreeMap::new(),
            standing: standing(found, chosen),
        },
    };
    planning.make();
    planning.plan
}

fn standing(found: &Inventory, chosen: &Chosen) -> BTreeMap<BackupId, Standing> {
    let kept = found.backups.iter().filter(|backup| chosen.kept.contains_key(&backup.id));
    kept.filter_map(|backup| Some((backup.id, Standing::new(backup, found.folders.get(&backup.id)?)))).collect()
}

fn fate(backup: &Backup, chosen: &Chosen) -> Fate {
    let kept = chosen.kept.get(&backup.id).cloned().unwrap_or_default();
    Fate { id: backup.id, label: backup.label.clone(), kept }
}

struct Planning<'a> {
    found: &'a Inventory,
    chosen: &'a Chosen,
    policy: &'a Policy,
    now: DateTime<Utc>,
    plan: SystemPlan,
}

impl Planning<'_> {
    fn make(&mut self) {
        let mut needed = path::there(self.found);
        if self.found.doubts.is_empty() {
            let wanted = self.wal_needed();
            let nothing = Ranges::default();
            for (timeline, there) in &mut needed {
                *there = there.and(wanted.get(timeline).unwrap_or(&nothing));
            }
            self.condemn_backups();
            self.archive(&needed, &wanted);
            self.folders();
            self.tell_held();
        }
        self.plan.remains = remain::remains(self.found, self.chosen, &needed);
    }

    /// The segments that must stay, there or still to come.
    fn wal_needed(&self) -> Segments {
        let (found, size) = (self.found, self.found.segment_size);
        let mut needed = Segments::new();
        if self.policy.is_empty() {
            found.lines.keys().for_each(|timeline| _ = needed.insert(*timeline, Ranges::from_on(0)));
        }
        for backup in found.backups.iter().filter(|backup| self.chosen.kept.contains_key(&backup.id)) {
            let (first, end) = backup.span(size);
            for line in found.lines.values().filter(|line| backup.lies_on(&line.history)) {
                path::add(&mut needed, path::along(&line.history, first, end, size));
            }
        }
        for (timeline, base) in &self.chosen.living {
            let Some(line) = found.lines.get(timeline) else { continue };
            let base = base.and_then(|id| found.backups.iter().find(|backup| backup.id == id));
            let first = base.map_or(0, |backup| backup.span(size).0);
            path::add(&mut needed, path::along(&line.history, first, u64::MAX, size));
        }
        // Where a backup that is being taken begins is not known yet; on a standby it can be a while ago.
        for attempt in found.attempts.values().filter(|a| found.backing_up && a.publishes.is_empty()) {
            if let Some(line) = found.lines.get(&attempt.timeline) {
                path::add(&mut needed, path::along(&line.history, 0, u64::MAX, size));
            }
        }
        for hold in &found.holds {
            for (timeline, held) in path::named(&hold.wal, size) {
                needed.entry(timeline).or_default().add_all(&held);
            }
        }
        for (timeline, condemned) in path::named(&found.condemned.1.wal, size) {
            if let Some(ranges) = needed.get_mut(&timeline) {
                *ranges = ranges.without(&condemned);
            }
        }
        needed
    }

    fn condemn_backups(&mut self) {
        let gone = self.plan.backups.iter().filter(|fate| fate.kept.is_empty()).map(|fate| fate.id);
        let new = Condemned { backups: gone.collect(), ..Condemned::default() };
        self.plan.condemned.add(new);
    }

    /// What goes of the archive: `needed` is what stays of what is there, `wanted` what stays of what may come, too.
    fn archive(&mut self, needed: &Segments, wanted: &Segments) {
        let size = self.found.segment_size;
        let nothing = Ranges::default();
        for (timeline, line) in &self.found.lines {
            let (there, wanted) = (line.there(), wanted.get(timeline).unwrap_or(&nothing));
            let gone = there.without(needed.get(timeline).unwrap_or(&nothing));
            for (first, end) in gone.iter() {
                let name = |number| SegmentName::from_number(*timeline, number, size);
                let (Some(first_name), Some(last_name)) = (name(first), name(end - 1)) else { continue };
                let bytes = line.bytes(first, end);
                self.plan.wal.push(GoneWal { first: first_name, last: last_name, segments: end - first, bytes });
            }
            let mut work = LineWork { segments: gone, ..LineWork::default() };
            for beside in &line.beside {
                let Ok(number) = beside.name.number(size) else { continue };
                let stays = wanted.has(number) && !(beside.what == BesideKind::Pieces && there.has(number));
                if !stays {
                    work.beside.push((beside.name, beside.what));
                    self.plan.litter.add(beside.objects, beside.bytes);
                }
            }
            for (name, length) in &line.roll_ups {
                let (first, newest) = (u64::from(name.log) * size.per_log(), newest_of(&line.roll_ups, name.log));
                if wanted.and(&Ranges::of(first, first + size.per_log())).is_empty() || *name < newest {
                    work.roll_ups.push(*name);
                    self.plan.litter.add(1, *length);
                }
            }
            self.plan.archive.insert(*timeline, work);
        }
        let rows = self.plan.wal.iter().map(|wal| (wal.first, wal.last)).collect();
        self.plan.condemned.add(Condemned { wal: rows, ..Condemned::default() });
    }

    fn folders(&mut self) {
        let found = self.found;
        for (id, folder) in &found.folders {
            let work = match found.backups.iter().find(|backup| backup.id == *id) {
                Some(backup) if self.chosen.kept.contains_key(id) => self.kept_folder(backup, folder),
                Some(_) => self.gone_folder(*id, folder, Why::Expired),
                None if folder.given_up => self.gone_folder(*id, folder, Why::Attempt),
                None => match found.attempts.contains_key(id) && !found.condemned.1.backups.contains(id) {
                    true if self.is_alive(*id) => continue,
                    true => {
                        let new = Condemned { attempts: vec![*id], ..Condemned::default() };
                        self.plan.condemned.add(new);
                        let mut work = self.gone_folder(*id, folder, Why::Attempt);
                        work.give_up = true;
                        work.closes = found.attempts.get(id).map(|a| a.publishes.clone()).unwrap_or_default();
                        work
                    }
                    false => self.gone_folder(*id, folder, Why::Unneeded),
                },
            };
            if work != FolderWork::default() {
                self.plan.folders.insert(*id, work);
            }
        }
        self.pardon();
        let parts = self.plan.folders.iter().filter(|(_, work)| !work.parts.is_empty());
        let parts = parts.map(|(id, work)| (*id, work.parts.clone())).collect();
        self.plan.condemned.add(Condemned { parts, ..Condemned::default() });
    }

    /// Parts that were condemned and spared, because somebody came to need them, and are needed still.
    fn pardon(&mut self) {
        let (found, folders) = (self.found, &self.plan.folders);
        for (id, rows) in &mut self.plan.condemned.parts {
            let Some(folder) = found.folders.get(id) else { continue };
            let goes = folders.get(id).map_or_else(Ranges::default, |work| Ranges::of_rows(&work.parts));
            let mut stays = Ranges::default();
            folder.parts.iter().for_each(|(number, _)| stays.add(u64::from(*number), u64::from(*number) + 1));
            *rows = Ranges::of_rows(rows).without(&stays.without(&goes)).rows();
        }
        self.plan.condemned.parts.retain(|_, rows| !rows.is_empty());
    }

    /// Whether an attempt may still become a backup, or serve the next one. Clocks may be wrong: whoever gives it up puts
    /// a tombstone first.
    fn is_alive(&self, id: BackupId) -> bool {
        let found = self.found;
        if found.attempts.get(&id).is_some_and(|attempt| !attempt.publishes.is_empty()) {
            return found.compacting && !found.condemned.1.attempts.contains(&id);
        }
        let newer = found.backups.iter().any(|backup| backup.id > id);
        let served = newer || id.instant() + ATTEMPTS_SERVE < self.now;
        found.backing_up || !(served || found.condemned.1.attempts.contains(&id))
    }

    /// Of a backup that stays: what is superseded, and parts of its folder that nobody needs.
    fn kept_folder(&mut self, backup: &Backup, folder: &Folder) -> FolderWork {
        let mut work = FolderWork::default();
        let standing = Standing::new(backup, folder);
        let held = self.found.holds.iter().any(|hold| hold.backups.contains(&backup.id));
        for (object, length) in folder.objects.iter().filter(|(object, _)| !held && standing.supersedes(*object)) {
            work.object(*object);
            self.plan.litter.add(1, *length);
        }
        let own: BTreeSet<u32> = backup.parts.iter().map(|(number, _)| *number).collect();
        self.gone_parts(backup.id, folder, Why::Attempt, &own, &mut work);
        work
    }

    /// Of a backup or attempt that goes: everything but what others need.
    fn gone_folder(&mut self, id: BackupId, folder: &Folder, why: Why) -> FolderWork {
        let mut work = FolderWork::default();
        for (object, length) in &folder.objects {
            match object {
                // The tombstone of an attempt stays for ever: it may be asleep.
                BackupObject::Document(_) if folder.given_up => continue,
                object => work.object(*object),
            }
            self.plan.litter.add(1, *length);
        }
        self.gone_parts(id, folder, why, &BTreeSet::new(), &mut work);
        work
    }

    fn gone_parts(&mut self, id: BackupId, folder: &Folder, why: Why, own: &BTreeSet<u32>, work: &mut FolderWork) {
        if self.reader_of(id).is_some() {
            return;
        }
        let Some(needed) = self.needed_of(id) else { return };
        let (mut parts, mut bytes) = (0, 0);
        for (number, length) in &folder.parts {
            if own.contains(number) || needed.iter().any(|numbers| numbers.contains(number)) {
                continue;
            }
            (parts, bytes) = (parts + 1, bytes + length);
            work.part(*number);
        }
        if parts > 0 {
            self.plan.parts.push(GoneParts { backup: id, why, parts, bytes });
        }
    }

    /// What backups that stay need of the parts in another folder. `None` where that is not known of one of them: it may
    /// be everything.
    fn needed_of(&self, id: BackupId) -> Option<Vec<&BTreeSet<u32>>> {
        let kept = self.found.backups.iter().filter(|backup| self.chosen.kept.contains_key(&backup.id));
        let others = kept.filter(|backup| backup.id != id && backup.references.contains(&id));
        let known = others.map(|backup| self.found.needed.get(&backup.id)?.as_ref().ok());
        Some(known.collect::<Option<Vec<_>>>()?.into_iter().filter_map(|needed| needed.get(&id)).collect())
    }

    /// Who reads, or may come to refer to, the parts of that folder.
    fn reader_of(&self, id: BackupId) -> Option<String> {
        let hold = self.found.holds.iter().find(|hold| hold.backups.contains(&id)).map(|hold| hold.who.clone());
        hold.or_else(|| {
            let refers = |(attempt, facts): (&BackupId, &Attempt)| {
                (facts.references.contains(&id) && self.is_alive(*attempt)).then(|| match self.found.backing_up {
                    _ if !facts.publishes.is_empty() => format!("compaction {attempt}, which is under way"),
                    true => format!("backup {attempt}, which is being taken"),
                    false => format!("the next backup, which may go on from attempt {attempt}"),
                })
            };
            self.found.attempts.iter().find_map(refers)
        })
    }

    fn tell_held(&mut self) {
        let found = self.found;
        let mut held = Vec::new();
        for id in found.folders.keys().filter(|id| !self.chosen.kept.contains_key(id)) {
            if let Some(reader) = self.reader_of(*id) {
                held.push(format!("what is left of backup {id} stays for {reader}"));
            }
        }
        for (id, attempt) in found.attempts.iter().filter(|(id, _)| self.is_alive(**id)) {
            held.push(match found.backing_up {
                _ if !attempt.publishes.is_empty() => {
                    format!("compaction {id} is under way: what it reads and writes stays")
                }
                true => format!(
                    "backup {id} is being taken: what it has stored stays, and the WAL of timeline {}",
                    attempt.timeline
                ),
                false => format!("what attempt {id} has stored stays for the next backup"),
            });
        }
        for (id, why) in found.needed.iter().filter_map(|(id, needed)| Some((id, needed.as_ref().err()?))) {
            self.plan.doubts.push(format!("backup {id} keeps all that it may need: {why}"));
        }
        for (id, folder) in found.folders.iter().filter(|(_, folder)| folder.strangers > 0) {
            held.push(format!(
                "{} objects in the folder of backup {id} are not of this version of Walden, and are left alone",
                folder.strangers
            ));
        }
        self.plan.held = held;
    }
}

fn newest_of(roll_ups: &[(RollUpName, u64)], log: u32) -> RollUpName {
    let of_log = roll_ups.iter().map(|(name, _)| *name).filter(|name| name.log == log);
    of_log.max().unwrap_or(RollUpName { log, number: 0, row: None })
}
