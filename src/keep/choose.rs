//! Which backups stay, and from which of them each timeline that lives goes on. Pure.
//!
//! The systems of a cluster are looked at together: after `pg_upgrade` the backups of the old system go as those of the
//! new one come. A timeline lives when it was written within the window, or when nothing came after it: no sound backup
//! of another way was begun after its last word. Where its last word is not known it lives, and so does always the
//! youngest timeline of the youngest system; one without any WAL of its own does not. What lives keeps its base, the newest sound backup from before the window
//! (or the oldest there is), and all WAL since.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};

use super::{
    inventory::{Backup, Inventory},
    path::{self, Segments, Way},
    policy::{Policy, Reason},
};
use crate::{
    postgres::TimelineId,
    repository::{BackupId, BackupObject},
};

/// What stays of one system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// The backups that stay, and why.
    pub kept: BTreeMap<BackupId, BTreeSet<Reason>>,
    /// The timelines that live, and the backup that each goes on from; all its WAL is kept where there is none.
    pub living: BTreeMap<TimelineId, Option<BackupId>>,
    /// The backups that can be restored, as far as listings tell, without damage.
    pub sound: BTreeSet<BackupId>,
}

/// Chooses, for each of these systems.
#[must_use]
pub fn choose(found: &[Inventory], policy: &Policy, now: DateTime<Utc>) -> Vec<Chosen> {
    let since = policy.since(now);
    let mut chosen: Vec<Chosen> = found.iter().map(|one| Chosen { sound: sound(one), ..Chosen::default() }).collect();
    for (at, one) in found.iter().enumerate() {
        chosen[at].living = living(found, &chosen, at, since)
            .into_iter()
            .map(|timeline| (timeline, base(one, &chosen[at].sound, timeline, since)))
            .collect();
    }
    for (one, chosen) in found.iter().zip(&mut chosen) {
        always(one, chosen, policy, since);
    }
    by_rules(found, &mut chosen, policy, false);
    by_rules(found, &mut chosen, policy, true);
    newest(found, &mut chosen);
    chosen
}

/// What each rule names: of all backups, and again of the sound ones alone, so that a damaged backup never takes the
/// place of one that could be restored.
fn by_rules(found: &[Inventory], chosen: &mut [Chosen], policy: &Policy, sound_alone: bool) {
    let counts = |at: usize, id| !sound_alone || chosen[at].sound.contains(&id);
    let mut all: Vec<(BackupId, usize)> = (0..found.len())
        .flat_map(|at| found[at].backups.iter().map(move |backup| (backup.id, at)))
        .filter(|(id, at)| counts(*at, *id))
        .collect();
    all.sort_by(|a, b| b.cmp(a));
    let instants: Vec<_> = all.iter().map(|(id, _)| id.instant()).collect();
    for ((id, at), reasons) in all.into_iter().zip(policy.name(&instants)).filter(|(_, reasons)| !reasons.is_empty()) {
        chosen[at].kept.entry(id).or_default().extend(reasons);
    }
}

/// What stays whatever the counts are.
fn always(found: &Inventory, chosen: &mut Chosen, policy: &Policy, since: DateTime<Utc>) {
    let mut keep = |id: BackupId, reason| _ = chosen.kept.entry(id).or_default().insert(reason);
    for backup in &found.backups {
        if !found.doubts.is_empty() {
            keep(backup.id, Reason::Doubt);
        }
        if policy.is_empty() {
            keep(backup.id, Reason::NoRules);
        }
        if policy.window.is_some() && backup.stopped > since {
            keep(backup.id, Reason::Window);
        }
        if found.pins.contains(&backup.id) {
            keep(backup.id, Reason::Pinned);
        }
        if found.holds.iter().any(|hold| hold.backups.contains(&backup.id)) {
            keep(backup.id, Reason::Held);
        }
    }
    if !policy.is_empty() {
        let reason = if policy.window.is_some() { Reason::Window } else { Reason::Newest };
        chosen.living.values().flatten().for_each(|id| keep(*id, reason));
    }
}

/// The backups on which it rests that others go: those that timelines go on from, and the newest. None where none goes.
#[must_use]
pub fn relied_on(found: &Inventory, chosen: &Chosen) -> BTreeSet<BackupId> {
    if found.backups.iter().all(|backup| chosen.kept.contains_key(&backup.id)) {
        return BTreeSet::new();
    }
    let newest = chosen.kept.keys().rev().find(|id| chosen.sound.contains(id));
    chosen.living.values().flatten().chain(newest).copied().collect()
}

/// The newest sound backup of the cluster stays whatever else is said, and where none is sound the newest.
fn newest(found: &[Inventory], chosen: &mut [Chosen]) {
    let ids = |at: usize| found[at].backups.iter().map(move |backup| (backup.id, at));
    let all = || (0..found.len()).flat_map(ids);
    let newest = all().filter(|(id, at)| chosen[*at].sound.contains(id)).max().or_else(|| all().max());
    if let Some((id, at)) = newest {
        let reasons = chosen[at].kept.entry(id).or_default();
        if reasons.is_empty() {
            reasons.insert(Reason::Newest);
        }
    }
}

/// The backups whose own WAL, parts and manifest are there, and which are not known to be damaged.
fn sound(found: &Inventory) -> BTreeSet<BackupId> {
    let there = path::there(found);
    found.backups.iter().filter(|backup| is_sound(found, backup, &there)).map(|backup| backup.id).collect()
}

fn is_sound(found: &Inventory, backup: &Backup, there: &Segments) -> bool {
    let (first, end) = backup.span(found.segment_size);
    let reaches = |line: &super::inventory::Line| {
        backup.lies_on(&line.history) && Way::new(&line.history, there, found.segment_size).end(first) >= end
    };
    let parts = |folder: &super::inventory::Folder| {
        // In order, so that they can be looked up.
        backup.parts.iter().all(|part| folder.parts.binary_search(part).is_ok())
    };
    let manifest = |folder: &super::inventory::Folder| {
        folder.objects.iter().any(|(object, _)| *object == BackupObject::Manifest(backup.numbers.0))
    };
    let is_whole = |folder: &super::inventory::Folder| manifest(folder) && parts(folder);
    // Where its manifest was read, it can be read.
    let is_known = !matches!(found.needed.get(&backup.id), Some(Err(_)));
    !backup.bad && is_known && found.lines.values().any(reaches) && found.folders.get(&backup.id).is_some_and(is_whole)
}

fn living(found: &[Inventory], chosen: &[Chosen], at: usize, since: DateTime<Utc>) -> Vec<TimelineId> {
    let youngest = found.iter().enumerate().max_by_key(|(_, one)| (one.first_seen, one.incarnation)).map(|(at, _)| at);
    let last = found[at].lines.keys().next_back().filter(|_| youngest == Some(at));
    let lives = |timeline: &TimelineId, line: &super::inventory::Line| {
        if last == Some(timeline) {
            return true;
        }
        if line.last.is_none() && !line.ends_in_pieces() {
            // It has nothing of its own that could be recovered.
            return false;
        }
        let Some(written) = line.written else { return true };
        // Of pieces behind its last segment the time is not known: only what came before the window ends such a timeline.
        let after = |(other, backup): (usize, &Backup)| {
            backup.started > written
                && (!line.ends_in_pieces() || backup.started <= since)
                && chosen[other].sound.contains(&backup.id)
                && !(other == at && backup.lies_on(&line.history))
        };
        let mut all = (0..found.len()).flat_map(|other| found[other].backups.iter().map(move |backup| (other, backup)));
        written >= since || !all.any(after)
    };
    found[at].lines.iter().filter(|(timeline, line)| lives(timeline, line)).map(|(timeline, _)| *timeline).collect()
}

/// The backup that every instant since `since` on that timeline is recovered from, or the earliest that there is.
fn base(found: &Inventory, sound: &BTreeSet<BackupId>, timeline: TimelineId, since: DateTime<Utc>) -> Option<BackupId> {
    let history = &found.lines.get(&timeline)?.history;
    let on = || found.backups.iter().filter(|b| sound.contains(&b.id) && b.lies_on(history));
    let before = on().filter(|b| b.stopped <= since).max_by_key(|b| (b.stop, b.id));
    before.or_else(|| on().min_by_key(|b| (b.stop, b.id))).map(|b| b.id)
}
