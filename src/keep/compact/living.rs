//! What is living in the parts that are written anew: the members that some manifest points at.

use std::collections::{BTreeMap, BTreeSet};

use super::Sparse;
use crate::{
    backup::header_length,
    error::{Error, Result},
    postgres::incremental::incremental_path,
    repository::{BackupDocument, BackupId, File, Layer, LayerKind, Part, PartName, System},
};

/// tar's unit.
const UNIT: u64 = 512;

/// All of it.
#[derive(Debug, Default)]
pub struct Living {
    /// Of each part.
    pub parts: BTreeMap<PartName, Source>,
    /// The backups that point at one of them.
    pub backups: BTreeSet<BackupId>,
}

/// A part, and what is living in it.
#[derive(Debug)]
pub struct Source {
    /// The part, as a manifest lists it.
    pub part: Part,
    /// By the offset of its first byte in the content.
    pub members: BTreeMap<u64, Member>,
}

/// A living member.
#[derive(Debug)]
pub struct Member {
    /// Where its header begins.
    pub begin: u64,
    /// The layer that it is.
    pub layer: Layer,
    /// The file, as the newest of the manifests has it.
    pub file: File,
}

impl Member {
    /// Where what follows it begins.
    pub fn end(&self) -> u64 {
        (self.layer.offset + self.layer.length).next_multiple_of(UNIT)
    }
}

impl Living {
    /// Reads the manifests of all backups.
    pub async fn read(system: &System, backups: &[BackupDocument], sparse: &[Sparse]) -> Result<Self> {
        let wanted: BTreeSet<PartName> = sparse.iter().map(|part| (part.backup, part.number)).collect();
        let mut living = Self::default();
        for backup in backups {
            let manifest = system.manifest(backup).await?;
            let name = |part: &Part| (part.backup, part.number);
            for part in manifest.parts.into_iter().filter(|part| wanted.contains(&name(part))) {
                living.backups.insert(backup.id);
                living.parts.entry(name(&part)).or_insert(Source { part, members: BTreeMap::new() });
            }
            for file in manifest.files.iter() {
                for layer in file.layers.iter().filter(|layer| wanted.contains(&(layer.backup, layer.part))) {
                    living.add(&file, layer).map_err(|e| e.context(format!("the manifest of backup {}", backup.id)))?;
                }
            }
        }
        Ok(living)
    }

    fn add(&mut self, file: &File, layer: &Layer) -> Result<()> {
        let name = (layer.backup, layer.part);
        let odd = || Error::damaged(format!("{} lies where nothing can lie", file.path.display()));
        let source = self.parts.get_mut(&name).ok_or_else(odd)?;
        let header = match layer.kind {
            LayerKind::Whole => header_length(&file.path)?,
            LayerKind::Incremental => header_length(&incremental_path(&file.path))?,
        };
        let begin = layer.offset.checked_sub(header).filter(|begin| begin.is_multiple_of(UNIT)).ok_or_else(odd)?;
        let member = Member { begin, layer: layer.clone(), file: file.clone() };
        if member.end() > source.part.frames.content() {
            return Err(odd());
        }
        match source.members.insert(layer.offset, member) {
            Some(before) if before.layer.length != layer.length => Err(odd()),
            _ => Ok(()),
        }
    }

    /// The folders that the parts lie in.
    pub fn folders(&self) -> Vec<BackupId> {
        let folders: BTreeSet<BackupId> = self.parts.keys().map(|(backup, _)| *backup).collect();
        folders.into_iter().collect()
    }

    /// Bytes of content that are living.
    pub fn bytes(&self) -> u64 {
        let members = self.parts.values().flat_map(|source| source.members.values());
        members.map(|member| member.end() - member.begin).sum()
    }
}

impl Source {
    /// The living stretches of the content, rising: where each begins and ends. Neighbours are one.
    pub fn runs(&self) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for member in self.members.values() {
            match runs.last_mut().filter(|(_, end)| *end >= member.begin) {
                Some((_, end)) => *end = member.end().max(*end),
                None => runs.push((member.begin, member.end())),
            }
        }
        runs
    }
}
