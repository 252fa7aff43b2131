//! Whether the copy fits: free space, file system by file system, against what will be written there.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::{
    error::{Error, Result},
    human,
    plan::WAL_AT_A_TIME,
};

/// Bytes that will be written below a directory, and bytes that lie there and will be overwritten or removed.
#[derive(Clone, Debug)]
pub struct Need {
    /// The directory; it may not exist yet.
    pub path: PathBuf,
    /// Bytes of files.
    pub bytes: u64,
    /// Whether what lies there makes room.
    pub replaces: bool,
}

#[derive(Debug)]
struct FileSystem {
    path: PathBuf,
    need: u64,
    free: u64,
}

/// An error that names how much lacks, when it does not fit. `wal` are the bytes of WAL that recovery replays below
/// `waldir`: only what stays at a time must fit; gives a warning when all of it would not.
pub fn check(needs: &[Need], waldir: &Path, wal: u64) -> Result<Option<String>> {
    let mut systems: BTreeMap<u64, FileSystem> = BTreeMap::new();
    let least = Need { path: waldir.to_path_buf(), bytes: wal.min(WAL_AT_A_TIME), replaces: false };
    for need in needs.iter().chain([&least]) {
        let existing = nearest(&need.path);
        let device = fs::metadata(&existing).map_err(|e| Error::io("stat", &existing, e))?.dev();
        let stat =
            rustix::fs::statvfs(&existing).map_err(|e| Error::io("ask for the free space of", &existing, e.into()))?;
        let system = systems.entry(device).or_insert_with(|| FileSystem {
            path: existing,
            need: 0,
            free: stat.f_bavail * stat.f_frsize,
        });
        system.need += need.bytes;
        if need.replaces {
            system.free += used(&need.path, device);
        }
    }
    if let Some(short) = systems.values().find(|s| s.need > s.free) {
        let (need, free) = (human::size(short.need), human::size(short.free));
        return Err(Error::failed(format!(
            "the copy needs {need} on the file system of {}, where {free} are free: {} lack",
            short.path.display(),
            human::size(short.need - short.free)
        ))
        .hint(
            "free space there, or restore elsewhere: --pgdata, --map OLD=NEW for tablespaces, --waldir for the WAL",
        ));
    }
    let rest = wal - least.bytes;
    let device = fs::metadata(nearest(waldir)).map(|m| m.dev()).unwrap_or_default();
    let tight = systems.get(&device).is_some_and(|s| s.need + rest > s.free);
    Ok(tight.then(|| {
        format!(
            "recovery replays {} of WAL; were PostgreSQL to keep all of it at a time, the file system of {} would be full",
            human::size(wal),
            waldir.display()
        )
    }))
}

fn nearest(path: &Path) -> PathBuf {
    path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/")).to_path_buf()
}

/// Bytes that the files below a directory take on that device; what cannot be read counts as nothing.
fn used(path: &Path, device: u64) -> u64 {
    let Ok(entries) = fs::read_dir(path) else { return 0 };
    entries
        .flatten()
        .filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)))
        .filter(|(_, metadata)| metadata.dev() == device)
        .map(|(path, metadata)| if metadata.is_dir() { used(&path, device) } else { metadata.blocks() * 512 })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_fit_is_refused_before_anything_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("not/yet/there");
        let need = |bytes| Need { path: path.clone(), bytes, replaces: false };
        assert!(check(&[need(1)], &path, 1).unwrap().is_none());
        let error = check(&[need(u64::MAX / 4)], &path, 1).unwrap_err();
        assert!(error.to_string().contains("lack") && !path.exists(), "{error}");
        assert!(check(&[need(1)], &path, u64::MAX / 4).unwrap().is_some());
    }
}
