//! A file being written: it has no name that a listing shows until it is whole and durable.
//!
//! Its writer holds a lock on it, which ends with the process, however that ends. A file that nobody has written to
//! for a day and nobody holds was left by a killed writer, and is removed by the next one.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{Advice, CWD, FlockOperation, RenameFlags, fadvise, flock, renameat_with},
    io::Errno,
};

use super::{Put, Root, WRITING, failed, is_absent, make_folders, sync_folder, tag_of};
use crate::{
    error::{Error, Result},
    store::{Key, Tag},
};

/// How long a file lies untouched before it counts as left behind.
const LEFT_BEHIND: Duration = Duration::from_secs(24 * 3600);

/// A file in [`WRITING`]. It is removed when this is dropped.
#[derive(Debug)]
pub(super) struct Temporary {
    path: PathBuf,
    file: File,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // What cannot be removed now is swept later, and nothing ever reads it.
        let _ = fs::remove_file(&self.path);
    }
}

impl Temporary {
    /// A new, empty file, locked.
    pub(super) fn create(root: &Root) -> Result<Self> {
        let folder = root.path.join(WRITING);
        let path = folder.join(root.random.name());
        let create = || OpenOptions::new().write(true).create_new(true).mode(0o640).open(&path);
        let file = match create() {
            Err(e) if is_absent(&e) => {
                root.must_stand()?;
                make_folders(&folder).and_then(|()| create())
            }
            other => other,
        };
        let file = file.map_err(|e| failed("create", &path, e))?;
        let temporary = Self { path, file };
        // Where a file system knows no locks nobody can take this one either, and nothing is swept.
        let _ = flock(&temporary.file, FlockOperation::NonBlockingLockExclusive);
        temporary.sweep(&folder);
        Ok(temporary)
    }

    /// Appends.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| failed("write", &self.path, e))
    }

    /// Makes the file durable, and then lets it appear as `key` if no such object is there.
    pub(super) fn publish(self, root: &Root, key: &Key) -> Result<Put> {
        self.file.sync_all().map_err(|e| failed("make durable", &self.path, e))?;
        // It is on disk; the cache belongs to the database.
        let _ = fadvise(&self.file, 0, None, Advice::DontNeed);
        let path = root.file(key);
        match self.link(root, &path) {
            Ok(()) => {
                path.parent().map_or(Ok(()), sync_folder)?;
                Ok(Put::Created)
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let put = root.settle_existing(key)?;
                // NFS repeats a request whose answer was lost, and then finds its own link.
                Ok(if self.is_at(&path) { Put::Created } else { put })
            }
            Err(e) => Err(link_failed(key, &path, e)),
        }
    }

    /// Makes the file durable, and then lets it take the place of the object `key`, if that still has this tag. Whoever
    /// replaces an object holds a lock on it, so that of two the second finds another object.
    pub(super) fn replace(self, root: &Root, key: &Key, tag: &Tag) -> Result<Put> {
        self.file.sync_all().map_err(|e| failed("make durable", &self.path, e))?;
        let _ = fadvise(&self.file, 0, None, Advice::DontNeed);
        let path = root.file(key);
        let there = root.open(key)?;
        // As elsewhere: a file system without locks has none to wait for.
        let _ = flock(&there, FlockOperation::LockExclusive);
        if tag_of(&there, &path)? != *tag || tag_of(&root.open(key)?, &path)? != *tag {
            return Ok(Put::Exists);
        }
        self.exchange(&path).map_err(|e| match is_absent(&e) {
            true => Error::not_found(format!("{key}, which was to be replaced, is gone")),
            false => failed("replace", &path, e),
        })?;
        path.parent().map_or(Ok(()), sync_folder)?;
        Ok(Put::Created)
    }

    /// Swaps the file with the one at `path`, which is then removed with this. Unlike a plain rename it does not bring
    /// back what was deleted a moment ago.
    fn exchange(&self, path: &Path) -> io::Result<()> {
        match renameat_with(CWD, &self.path, CWD, path, RenameFlags::EXCHANGE) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => fs::rename(&self.path, path),
            other => Ok(other?),
        }
    }

    /// Links the file to `path`, whose folders are made. Another process may be removing them as empty.
    fn link(&self, root: &Root, path: &Path) -> io::Result<()> {
        let attempt = || {
            path.parent().map_or(Ok(()), |folder| root.make_way(folder))?;
            fs::hard_link(&self.path, path)
        };
        let mut tries = 0;
        loop {
            match attempt() {
                Err(e) if e.kind() == io::ErrorKind::NotFound && tries < 100 => tries += 1,
                other => return other,
            }
        }
    }

    fn is_at(&self, path: &Path) -> bool {
        match (self.file.metadata(), fs::symlink_metadata(path)) {
            (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
            _ => false,
        }
    }

    /// Removes what killed writers left in `folder`. The ages are taken from the file system's own clock, whose
    /// present is this file's own time. What cannot be looked at or removed is left for another day.
    fn sweep(&self, folder: &Path) {
        let Ok(now) = self.file.metadata().and_then(|m| m.modified()) else { return };
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let old = entry
                .metadata()
                .and_then(|m| m.modified())
                .is_ok_and(|modified| now.duration_since(modified).is_ok_and(|age| age > LEFT_BEHIND));
            if old
                && File::open(entry.path())
                    .is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok())
            {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

fn link_failed(key: &Key, path: &Path, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotADirectory => {
            Error::invalid(format!("{key} cannot be written: part of its path is an object itself"))
        }
        io::ErrorKind::CrossesDevices => {
            failed("write", path, error).hint("the whole repository has to lie on one file system")
        }
        io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied => failed("write", path, error)
            .hint("the repository needs the right to write, and a file system with hard links"),
        _ => failed("write", path, error),
    }
}
