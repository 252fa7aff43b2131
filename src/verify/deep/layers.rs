//! The manifest of a backup against the indexes of the parts: each file lies where the manifest says, and the newest
//! layers' blocks, laid over the older ones', are the blocks whose hash the manifest tells.

use std::{collections::HashMap, sync::Arc};

use tokio::{runtime::Handle, sync::Mutex};

use super::{check::Checker, objects::Name};
use crate::{
    error::{Error, Kind, Result},
    repository::{
        BackupDocument, BackupObject, File, Hashed, LayerBlocks, LayerMaps, Manifest, PartName, System, join, overlay,
    },
};

/// A manifest of a million files takes 100 MB: one at a time.
static TURN: Mutex<()> = Mutex::const_new(());

/// Of a manifest; of any other object nothing.
pub async fn check(checker: &Checker, name: &Name) -> Result<()> {
    let Name::Other(_) = name else { return Ok(()) };
    let folder = &checker.system.folder;
    let key = name.key(&checker.system)?;
    let Some(id) = folder.backup_of(&key) else { return Ok(()) };
    let (Some(BackupObject::Manifest(_)), Some(backup)) = (folder.object_of(id, &key), checker.backups.get(&id)) else {
        return Ok(());
    };
    let _turn = TURN.lock().await;
    prove(&checker.system, backup).await
}

async fn prove(system: &System, backup: &BackupDocument) -> Result<()> {
    let manifest = Arc::new(system.manifest(backup).await?);
    let (system, runtime) = (system.clone(), Handle::current());
    join(tokio::task::spawn_blocking(move || layered(&system, &manifest, &runtime)).await)?
}

/// The files of several layers.
fn layered(system: &System, manifest: &Manifest, runtime: &Handle) -> Result<()> {
    let parts: HashMap<PartName, usize> =
        manifest.parts.iter().enumerate().map(|(at, part)| ((part.backup, part.number), at)).collect();
    let maps = LayerMaps::new(system.clone());
    let mut files: Vec<(PartName, usize)> = Vec::new();
    for (number, file) in manifest.files.iter().enumerate() {
        if let (Hashed::Blocks, [.., newest]) = (file.hashed, file.layers.as_slice())
            && file.layers.len() > 1
        {
            files.push(((newest.backup, newest.part), number));
        }
    }
    // Neighbours lie in the same parts, whose indexes are kept a while.
    files.sort_unstable();
    for (_, number) in files {
        let file = manifest.files.at(number);
        let blocks = blocks(&file, manifest, &parts, &maps, runtime)?;
        let Some(blocks) = blocks else { continue };
        let block_size = manifest.block_size as usize;
        let count = usize::try_from(file.size / u64::from(manifest.block_size)).unwrap_or(usize::MAX);
        let map = overlay(count, block_size, &blocks).map;
        if map.root() != file.blake3 || map.crc32c(block_size) != file.crc32c {
            return Err(Error::damaged(format!(
                "{} cannot be put together: its layers do not have the blocks that the manifest tells",
                file.path.display()
            )));
        }
    }
    Ok(())
}

/// The blocks of each layer; none where there is no map of one, or it cannot be read.
fn blocks(
    file: &File,
    manifest: &Manifest,
    parts: &HashMap<PartName, usize>,
    maps: &LayerMaps,
    runtime: &Handle,
) -> Result<Option<Vec<LayerBlocks>>> {
    let mut found = Vec::with_capacity(file.layers.len());
    for layer in &file.layers {
        let Some(part) = parts.get(&(layer.backup, layer.part)).and_then(|at| manifest.parts.get(*at)) else {
            return Err(Error::damaged(format!("part {} of backup {} is not listed", layer.part, layer.backup)));
        };
        match maps.blocks(part, layer, runtime) {
            Ok(Some(blocks)) => found.push(blocks),
            Ok(None) => return Ok(None),
            // What is wrong with a part is told of the part.
            Err(error) if error.kind() == Kind::Damaged => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(Some(found))
}
