//! What a damaged object costs, by what it is. Pure.

use std::collections::BTreeMap;

use super::{
    backups::{ABOUT, NAMES, extra_costs},
    deep::{Bad, Name},
    report::{Finding, Wrong},
};
use crate::{
    plan::window::Damage,
    postgres::WalFile,
    repository::{BackupId, BackupObject, PartName, SystemFolder, archived, is_kit, piece_of, roll_up_of},
};

/// The finding about an object whose content is damaged. What no recovery can use any more is added to `damage`.
pub fn finding(
    folder: &SystemFolder,
    bad: &Bad,
    needed: &BTreeMap<PartName, Vec<BackupId>>,
    damage: &mut Damage,
) -> Finding {
    let found = Finding::new(&bad.key, Wrong::Content, &bad.why);
    if bad.wrong == Wrong::Head {
        return Finding { wrong: Wrong::Head, ..found }
            .costs("no instant: it is read instead of its head, which takes longer");
    }
    if let Name::Segment(name) = bad.name {
        damage.segments.insert(name, bad.why.clone());
        return found;
    }
    if let Some(id) = folder.backup_of(&bad.key) {
        return match folder.object_of(id, &bad.key) {
            Some(BackupObject::Part(number)) => {
                let backups = needed.get(&(id, number)).cloned().unwrap_or_default();
                for backup in &backups {
                    let of = if id == *backup { String::new() } else { format!(" of backup {id}") };
                    let why = format!("part {number}{of}, which it needs, is damaged");
                    damage.backups.entry(*backup).or_insert(why);
                }
                found.backups(backups)
            }
            Some(BackupObject::Manifest(_)) => {
                damage.backups.entry(id).or_insert_with(|| "its manifest is damaged".into());
                found.backups(vec![id])
            }
            Some(BackupObject::Catalogue(_)) => found.costs(NAMES),
            Some(BackupObject::About(_)) => found.costs(ABOUT),
            Some(BackupObject::Extra(_)) => found.costs(extra_costs(id)),
            Some(BackupObject::Document(_)) => found.backups(vec![id]),
            Some(BackupObject::Intent(_)) | None => found.costs("no instant: it tells of how the backup was begun"),
        };
    }
    if piece_of(&bad.key).is_some() {
        return found.costs("what was streamed of a segment that is not whole yet, from this piece on");
    }
    if is_kit(&bad.key) || folder.is_note_of_kit(&bad.key) {
        return found.costs("no instant: a recovery kit; make another: walden kit export --to-repository");
    }
    if roll_up_of(&bad.key).is_some() {
        return found.costs("no instant: plans read the heads of the segments instead");
    }
    match archived(&bad.key) {
        Some((_, WalFile::History(timeline), _)) => {
            found.costs(format!("nothing on timeline {timeline} can be recovered"))
        }
        Some((_, WalFile::BackupLabel(..), _)) => found.costs("no instant: no recovery reads it"),
        Some((_, WalFile::Partial(_), _)) => {
            found.costs("what a server had written of that segment when it was left for another timeline")
        }
        Some((_, WalFile::Segment(_), _)) | None => found.costs("no instant"),
    }
}
