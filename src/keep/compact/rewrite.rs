//! The manifest of a backup that points at the new parts, and the document that makes it count.

use std::collections::BTreeSet;

use super::copy::Moves;
use crate::{
    error::{Error, Kind, Result},
    repository::{BackupDocument, BackupId, File, NeededOf, Part, PartName, System},
};

/// A backup that is to point at the new parts.
pub struct Rewritten {
    /// The document that names its new manifest.
    pub document: BackupDocument,
    /// The parts that it needs, and their lengths.
    parts: Vec<(PartName, u64)>,
}

/// Puts a manifest that says where everything lies now. The document must be as it is stored, without what it leaves out.
pub async fn manifest(
    system: &System,
    backup: &BackupDocument,
    parts: &[Part],
    moves: &Moves,
    level: i32,
) -> Result<Rewritten> {
    let mut manifest = system.manifest(backup).await?;
    let mut needed: BTreeSet<PartName> = BTreeSet::new();
    let place = |mut file: File| {
        for layer in &mut file.layers {
            if let Some(place) = moves.get(&((layer.backup, layer.part), layer.offset)) {
                *layer = place.of(layer);
            }
            needed.insert((layer.backup, layer.part));
        }
        file
    };
    manifest.files = std::mem::take(&mut manifest.files).iter().map(place).collect();
    manifest.parts.extend_from_slice(parts);
    manifest.parts.retain(|part| needed.contains(&(part.backup, part.number)));
    let references: BTreeSet<BackupId> = needed.iter().map(|(of, _)| *of).filter(|of| *of != backup.id).collect();
    let own = |number: u32| needed.contains(&(backup.id, number));
    let dropped: u64 = backup.parts.iter().filter(|part| !own(part.number)).map(|part| part.length).sum();
    let number = system.newest_manifest(backup.id).await? + 1;
    let needed_parts = NeededOf::all(&manifest.parts);
    let parts = manifest.parts.iter().map(|part| ((part.backup, part.number), part.length)).collect();
    let (manifest_blake3, _) = system.put_manifest(manifest, number, level).await?;
    let document = BackupDocument {
        manifest: number,
        manifest_blake3,
        references: references.into_iter().collect(),
        needed_parts,
        parts: backup.parts.iter().filter(|part| own(part.number)).cloned().collect(),
        stored: backup.stored.saturating_sub(dropped),
        ..backup.clone()
    };
    Ok(Rewritten { document, parts })
}

/// Makes it count, unless the backup is gone, or is going. Refused when somebody took this compaction for dead.
pub async fn publish(system: &System, new: &Rewritten, number: u32) -> Result<bool> {
    let (id, document) = (new.document.id, &new.document);
    let given_up = || {
        Error::refused(
            "this compaction was taken for dead, and an expiry has given it up; every backup is whole, as it was",
        )
        .hint("it had lost its lease: this host did not reach the repository for some minutes; try again")
    };
    match system.newest_number(id).await? {
        0 => return Ok(false),
        newest if newest >= number => return Err(given_up()),
        _ => {}
    }
    let condemned = system.condemned().await?.1;
    if condemned.backups.contains(&id) {
        return Ok(false);
    }
    if !new.is_whole(system).await? || new.parts.iter().any(|(name, _)| condemned.has_part(*name)) {
        return Err(given_up());
    }
    match system.publish(document, number).await {
        Ok(()) => {}
        Err(error) if error.kind() == Kind::Refused => return Err(given_up()),
        Err(error) => return Err(error),
    }
    // Whoever slept in between may have named what is gone by now, and that must not count.
    if !system.condemned().await?.1.backups.contains(&id) && new.is_whole(system).await? {
        return Ok(true);
    }
    system.store.delete(&system.folder.backup_document(id, number)?).await?;
    Ok(false)
}

impl Rewritten {
    /// Whether all parts are there that it needs.
    async fn is_whole(&self, system: &System) -> Result<bool> {
        let there = system.parts_there(self.document.references.iter().copied().chain([self.document.id])).await?;
        Ok(self.parts.iter().all(|(name, length)| there.get(name) == Some(length)))
    }
}
