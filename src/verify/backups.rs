//! Whether everything that the backups need is there, as far as names and lengths tell. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::report::{Finding, Leftovers, Looked, Wrong};
use crate::{
    error::Result,
    keep::inventory::Folder,
    repository::{BackupDocument, BackupId, BackupObject, Needs, PartName, SystemFolder},
};

/// What is known of a backup.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its document.
    pub document: BackupDocument,
    /// What its manifest needs; or why that is not known.
    pub needs: Result<Needs, Unknown>,
}

/// Why it is not known what a backup needs.
#[derive(Clone, Debug)]
pub enum Unknown {
    /// Its manifest is damaged.
    Damaged(String),
    /// This host may not read it.
    Refused(String),
}

/// What was found about the backups of a system.
#[derive(Debug, Default)]
pub struct Judged {
    /// What is damaged.
    pub damage: Vec<Finding>,
    /// The backups that nothing can be restored from, and why.
    pub lost: BTreeMap<BackupId, String>,
    /// What no backup needs.
    pub leftovers: Leftovers,
    /// The backups that need each part.
    pub needed: BTreeMap<PartName, Vec<BackupId>>,
    /// What was looked at.
    pub looked: Looked,
    /// What could not be.
    pub remarks: Vec<String>,
}

/// A part that backups need.
#[derive(Debug, Default)]
struct Needed {
    /// None where only the number is known.
    length: Option<u64>,
    backups: Vec<BackupId>,
}

/// Holds what the backups need against what lies in their folders. Of the `unreadable` ones the documents are damaged.
pub fn judge(
    folder: &SystemFolder,
    folders: &BTreeMap<BackupId, Folder>,
    backups: &[Known],
    unreadable: &BTreeSet<BackupId>,
) -> Result<Judged> {
    let mut judged = Judged::default();
    let mut needed: BTreeMap<PartName, Needed> = BTreeMap::new();
    for Known { document, needs } in backups {
        judged.looked.backups += 1;
        judged.own_objects(folder, folders.get(&document.id), document)?;
        let own = || document.parts.iter().map(|part| ((document.id, part.number), Some(part.length)));
        let told = || {
            let of = document.needed_parts.iter().filter(|of| of.backup != document.id);
            of.flat_map(|of| of.parts.iter().map(|number| ((of.backup, *number), None)))
        };
        let parts: Vec<(PartName, Option<u64>)> = match needs {
            Ok(needs) => {
                judged.looked.layers += needs.layers;
                needs.parts.iter().map(|(name, length)| (*name, Some(*length))).collect()
            }
            Err(Unknown::Damaged(why)) => {
                let key = folder.manifest(document.id, document.manifest)?;
                // A missing one was found by its name.
                if !judged.damage.iter().any(|found| found.object == key.as_str()) {
                    judged.damage.push(Finding::new(key, Wrong::Content, why).backups(vec![document.id]));
                }
                judged.lost.entry(document.id).or_insert_with(|| "its manifest is damaged".into());
                Vec::new()
            }
            Err(Unknown::Refused(why)) => {
                judged.remarks.push(format!(
                    "backup {}: its parts were looked for by the names and lengths that its document tells: {why}",
                    document.id
                ));
                own().chain(told()).collect()
            }
        };
        for (name, length) in parts {
            let part = needed.entry(name).or_default();
            part.length = part.length.or(length);
            part.backups.push(document.id);
        }
    }
    judged.parts(folder, folders, needed)?;
    judged.left(folder, folders, backups, unreadable);
    Ok(judged)
}

impl Judged {
    /// The objects of a backup that are not parts.
    fn own_objects(&mut self, keys: &SystemFolder, there: Option<&Folder>, backup: &BackupDocument) -> Result<()> {
        let length = |object| there?.objects.iter().find(|(of, _)| *of == object).map(|(_, length)| *length);
        let id = backup.id;
        let manifest = BackupObject::Manifest(backup.manifest);
        if length(manifest).is_none() {
            let found = Finding::new(keys.key_of(id, manifest)?, Wrong::Missing, "the manifest is not there");
            self.damage.push(found.backups(vec![id]));
            self.lost.insert(id, "its manifest is missing".into());
        }
        if let Some(catalogue) = backup.catalogue.map(BackupObject::Catalogue)
            && length(catalogue).is_none()
        {
            let found = Finding::new(keys.key_of(id, catalogue)?, Wrong::Missing, "the catalogue is not there");
            self.damage.push(found.costs(NAMES));
        }
        if let Some(about) = backup.about.map(|about| BackupObject::About(about.number))
            && length(about).is_none()
        {
            let found = Finding::new(keys.key_of(id, about)?, Wrong::Missing, "it is not there");
            self.damage.push(found.costs(ABOUT));
        }
        if let Some(extra) = &backup.extra {
            let (object, costs) = (BackupObject::Extra(extra.number), extra_costs(id));
            match length(object) {
                Some(length) if length == extra.length => {}
                Some(length) => {
                    let why = format!("it is {length} bytes long, and was written with {}", extra.length);
                    self.damage.push(Finding::new(keys.key_of(id, object)?, Wrong::Length, why).costs(costs));
                }
                None => {
                    let why = "the files from outside the data directory are not there";
                    self.damage.push(Finding::new(keys.key_of(id, object)?, Wrong::Missing, why).costs(costs));
                }
            }
        }
        Ok(())
    }

    fn parts(
        &mut self,
        keys: &SystemFolder,
        folders: &BTreeMap<BackupId, Folder>,
        needed: BTreeMap<PartName, Needed>,
    ) -> Result<()> {
        for ((of, number), part) in &needed {
            let parts = folders.get(of).map_or(&[][..], |folder| &folder.parts);
            let there = parts.binary_search_by_key(number, |(number, _)| *number).ok().map(|at| parts[at].1);
            self.looked.parts += 1;
            self.looked.part_bytes += there.unwrap_or(0);
            let (wrong, why) = match there {
                Some(length) => match part.length.filter(|written| *written != length) {
                    None => continue,
                    Some(written) => {
                        (Wrong::Length, format!("it is {length} bytes long, and was written with {written}"))
                    }
                },
                None => (Wrong::Missing, "the part is not there".to_owned()),
            };
            let key = keys.part(*of, *number)?;
            let word = if wrong == Wrong::Missing { "missing" } else { "damaged" };
            for backup in &part.backups {
                let of = if of == backup { String::new() } else { format!(" of backup {of}") };
                self.lost.entry(*backup).or_insert_with(|| format!("part {number}{of}, which it needs, is {word}"));
            }
            self.damage.push(Finding::new(key, wrong, why).backups(part.backups.clone()));
        }
        let unneeded = folders.iter().flat_map(|(id, folder)| folder.parts.iter().map(|part| (*id, *part)));
        for (_, (_, length)) in unneeded.filter(|(id, (number, _))| !needed.contains_key(&(*id, *number))) {
            self.leftovers.parts += 1;
            self.leftovers.bytes += length;
        }
        self.needed = needed.into_iter().map(|(name, part)| (name, part.backups)).collect();
        Ok(())
    }

    /// What attempts have left.
    fn left(
        &mut self,
        keys: &SystemFolder,
        folders: &BTreeMap<BackupId, Folder>,
        backups: &[Known],
        unreadable: &BTreeSet<BackupId>,
    ) {
        let exist: BTreeSet<BackupId> =
            backups.iter().map(|known| known.document.id).chain(unreadable.clone()).collect();
        for (id, folder) in folders.iter().filter(|(id, _)| !exist.contains(id)) {
            self.leftovers.attempts += 1;
            let has = |wanted: fn(&BackupObject) -> bool| folder.objects.iter().any(|(object, _)| wanted(object));
            // One that an expiry has given up has a tombstone for a document.
            if has(|o| matches!(o, BackupObject::Manifest(_))) && !has(|o| matches!(o, BackupObject::Document(_))) {
                self.remarks.push(format!(
                    "{} has a manifest and no document: a backup that was killed right before its end, or one whose document is gone",
                    keys.backup(*id)
                ));
            }
        }
    }
}

/// What is lost with a catalogue.
pub const NAMES: &str = "no instant: what databases and tables were called is not known from this backup";

/// What is lost with what the document of a backup leaves out.
pub const ABOUT: &str = "no instant: the backup's label, and what it tells of its host";

/// What is lost with files from outside the data directory.
pub fn extra_costs(backup: BackupId) -> String {
    format!(
        "the files of backup {backup} from outside its data directory; restore without them: --extra-files leave-out"
    )
}
