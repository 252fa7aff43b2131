//! Which host the files are on, and what its file systems' clocks say: what a file's times can be believed against.

use std::{
    collections::BTreeMap,
    fs::{self, File, Metadata},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use chrono::{DateTime, Utc};
use rustix::fs::{Mode, OFlags};

use crate::{
    clock::Random,
    repository::{FileStat, FileSystem, Origin},
};

/// The origin of the files in these directories, now: before any of them is read. A file system where nothing may be
/// written is left out, and its files will be compared by their content.
pub fn of(directories: &[PathBuf], random: &Random) -> Origin {
    let mut began = BTreeMap::new();
    for directory in directories {
        if let Some(metadata) = touched(directory, random) {
            // Several directories of one file system: the earliest time is the one that all files can be held against.
            began.entry(metadata.dev()).or_insert_with(|| mtime(&metadata));
        }
    }
    let file_systems = began.into_iter().map(|(device, began)| FileSystem { device, began }).collect();
    Origin { host: host(), file_systems }
}

/// What the file system says of a file that is made there now. It needs no name; where that cannot be had it gets one
/// for an instant.
fn touched(directory: &Path, random: &Random) -> Option<Metadata> {
    let mode = Mode::from_raw_mode(0o600);
    let unnamed = rustix::fs::open(directory, OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, mode);
    if let Ok(handle) = unnamed {
        return File::from(handle).metadata().ok();
    }
    let path = directory.join(format!(".walden-{}", random.name()));
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let handle = rustix::fs::open(&path, flags, mode).ok()?;
    let metadata = File::from(handle).metadata().ok();
    // One that a kill leaves behind is empty, and nobody minds it.
    let _ = fs::remove_file(&path);
    metadata
}

/// A name of this host that no other has, without telling the machine id, which is meant to stay here
/// (machine-id(5)).
fn host() -> String {
    let id = fs::read_to_string("/etc/machine-id").ok().filter(|id| !id.trim().is_empty());
    let id = id.unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned());
    let key = blake3::derive_key("walden 2026 host of a backup", id.trim().as_bytes());
    blake3::hash(&key).to_hex()[..16].to_owned()
}

/// What tells this file apart.
pub fn stat(metadata: &Metadata) -> FileStat {
    FileStat { ctime: time(metadata.ctime(), metadata.ctime_nsec()), inode: metadata.ino(), device: metadata.dev() }
}

/// When it was last written.
pub fn mtime(metadata: &Metadata) -> DateTime<Utc> {
    time(metadata.mtime(), metadata.mtime_nsec())
}

fn time(seconds: i64, nanoseconds: i64) -> DateTime<Utc> {
    u32::try_from(nanoseconds).ok().and_then(|n| DateTime::from_timestamp(seconds, n)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_written_later_is_not_older_and_nothing_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let origin = of(&[folder.path().into(), folder.path().into()], &Random::seeded(1));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let path = folder.path().join("later");
        fs::write(&path, "x").unwrap();
        let metadata = fs::metadata(path).unwrap();
        assert_eq!(origin.file_systems.len(), 1);
        assert_eq!(origin.file_systems[0].device, metadata.dev());
        assert!(mtime(&metadata) >= origin.file_systems[0].began);
        assert!(stat(&metadata).ctime >= origin.file_systems[0].began);
        assert_eq!(of(&["/nowhere".into()], &Random::seeded(1)).file_systems, []);
    }
}
