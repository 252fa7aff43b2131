//! Where segments lie ready before a recovery asks for them: `.<name>.walden-prefetch` beside the data directory, or
//! beside the folder that its `pg_wal` leads to, on the same file system; where no folder can be made there, one in the
//! state folder, from which they are copied.
//!
//! Beside each segment lies a small file that says which repository and system it came from, in which run of the machine, and
//! what told the proven file from any other of that name. What has none, or one that does not fit, is never delivered. One process works in
//! a spool at a time, so that whatever it finds there and does not know is left over, and is removed.

use std::{
    collections::HashSet,
    fs::{self, DirBuilder, File},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, MetadataExt, chown},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use rustix::fs::{FlockOperation, flock};

use super::{arrival::Arrived, shipped::FileId};
use crate::{
    config::prove_state_dir,
    error::{Error, Result},
    postgres::SegmentName,
};

/// Tells this run of the machine from any other.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";
/// The ending of the small file.
const PROOF: &str = ".proven";

/// The spool of one data directory, held by this process.
#[derive(Debug)]
pub(super) struct Spool {
    folder: PathBuf,
    /// What the segments have to come from.
    source: String,
    /// Whether nothing is to remain when this is dropped.
    passing: bool,
    temporaries: AtomicU64,
    _held: File,
}

/// What of an earlier process's work is of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inherit {
    /// Nothing, and nothing is left to others.
    Nothing,
    /// What was fetched within that time before that instant.
    Fresh(Duration, SystemTime),
}

impl Spool {
    /// The spool of a data directory, made where it is missing. Refused while another process holds it.
    pub(super) fn open(pgdata: &Path, state_dir: &Path, source: &str, inherit: Inherit) -> Result<Self> {
        let near = real_pg_wal(pgdata)?;
        let beside = beside(pgdata, &near).map(|folder| make(&folder, &near).map(|()| folder));
        let folder = match beside {
            Some(Ok(folder)) => folder,
            other => {
                if let Some(Err(error)) = other {
                    tracing::debug!("no prefetched segments beside {}: {error}", pgdata.display());
                }
                let folder = in_state_dir(state_dir, &near)?;
                make(&folder, &near)?;
                folder
            }
        };
        let held = hold(&folder)?;
        let passing = inherit == Inherit::Nothing;
        // What was not durable when the machine went down may look whole.
        let boot = fs::read_to_string(BOOT).map_err(|e| Error::io("read", Path::new(BOOT), e))?;
        let spool = Self {
            folder,
            source: format!("{source}\n{}", boot.trim()),
            passing,
            temporaries: AtomicU64::new(0),
            _held: held,
        };
        spool.remove_all_but(|name| match inherit {
            Inherit::Nothing => false,
            Inherit::Fresh(age, now) => spool.is_fresh(name, age, now),
        })?;
        Ok(spool)
    }

    /// Removes what is left of any earlier work for a data directory, unless another process is at it.
    pub(super) fn clear(pgdata: &Path, state_dir: &Path) -> Result<()> {
        let near = real_pg_wal(pgdata)?;
        let folders = [beside(pgdata, &near), in_state_dir(state_dir, &near).ok()];
        for folder in folders.into_iter().flatten().filter(|folder| folder.is_dir()) {
            if let Ok(held) = hold(&folder) {
                // It empties and removes the folder when it is dropped.
                let temporaries = AtomicU64::new(0);
                drop(Self { folder, source: String::new(), passing: true, temporaries, _held: held });
            }
        }
        Ok(())
    }

    /// The segment's file, when it lies ready.
    pub(super) fn ready(&self, name: SegmentName) -> Option<(PathBuf, u64)> {
        let path = self.place(name);
        let id = FileId::of(&path).ok()?;
        let proof = fs::read_to_string(self.proof(name)).ok()?;
        (proof == self.proof_of(name, &id)).then_some((path, id.size()))
    }

    /// A name for a file that is being written.
    pub(super) fn temporary(&self) -> PathBuf {
        self.folder.join(format!("{}.tmp", self.temporaries.fetch_add(1, Ordering::Relaxed)))
    }

    /// Keeps a proven file as the segment.
    pub(super) fn keep(&self, name: SegmentName, arrived: Arrived) -> Result<()> {
        let place = self.place(name);
        arrived.keep_as(&place).map_err(|e| Error::io("rename to", &place, e))?;
        // After the rename, which changes the times.
        let id = FileId::of(&place)?;
        let temporary = self.temporary();
        let written =
            fs::write(&temporary, self.proof_of(name, &id)).and_then(|()| fs::rename(&temporary, self.proof(name)));
        written.map_err(|e| Error::io("write", &temporary, e))
    }

    /// Removes every segment but these, with all that belongs to none of them. Files that are being written stay.
    pub(super) fn keep_only(&self, names: &HashSet<SegmentName>) -> Result<()> {
        self.remove(|entry| match segment_of(entry) {
            Some(name) => !names.contains(&name),
            None => false,
        })
    }

    /// Removes everything.
    pub(super) fn end(&self) {
        // What cannot be removed now is by the next who opens it.
        _ = self.remove_all_but(|_| false);
        _ = fs::remove_dir(&self.folder);
    }

    fn remove_all_but(&self, wanted: impl Fn(SegmentName) -> bool) -> Result<()> {
        self.remove(|entry| segment_of(entry).is_none_or(|name| !wanted(name)))
    }

    fn remove(&self, unwanted: impl Fn(&str) -> bool) -> Result<()> {
        let failed = |e| Error::io("tidy", &self.folder, e);
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name().to_str().is_none_or(&unwanted) {
                let path = entry.path();
                let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
                let removed = if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                match removed {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn is_fresh(&self, name: SegmentName, age: Duration, now: SystemTime) -> bool {
        let made = || fs::metadata(self.proof(name)).and_then(|found| found.modified());
        // One from the future is as good as none.
        self.ready(name).is_some() && made().is_ok_and(|made| now.duration_since(made).is_ok_and(|since| since < age))
    }

    fn place(&self, name: SegmentName) -> PathBuf {
        self.folder.join(name.to_string())
    }

    fn proof(&self, name: SegmentName) -> PathBuf {
        self.folder.join(format!("{name}{PROOF}"))
    }

    fn proof_of(&self, name: SegmentName, id: &FileId) -> String {
        format!("walden-prefetched 1\n{}\n{name}\n{id}", self.source)
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if self.passing {
            self.end();
        } else {
            // It stays while something is in it.
            _ = fs::remove_dir(&self.folder);
        }
    }
}

/// The segment that a file in the spool is, or tells of.
fn segment_of(entry: &str) -> Option<SegmentName> {
    entry.strip_suffix(PROOF).unwrap_or(entry).parse().ok()
}

/// Where the `pg_wal` of a data directory really is.
fn real_pg_wal(pgdata: &Path) -> Result<PathBuf> {
    let pg_wal = pgdata.join("pg_wal");
    fs::canonicalize(&pg_wal).map_err(|e| Error::io("find", &pg_wal, e))
}

/// The folder beside the data directory, or beside the one that `pg_wal` leads to: not inside of either, and not on
/// another file system.
fn beside(pgdata: &Path, pg_wal: &Path) -> Option<PathBuf> {
    let pgdata = fs::canonicalize(pgdata).ok()?;
    let neighbour = if pg_wal.starts_with(&pgdata) { &pgdata } else { pg_wal };
    let (parent, name) = (neighbour.parent()?, neighbour.file_name()?);
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
    if parent.starts_with(&pgdata) || device(parent)? != device(pg_wal)? {
        return None;
    }
    let mut folder = std::ffi::OsString::from(".");
    folder.push(name);
    folder.push(".walden-prefetch");
    Some(parent.join(folder))
}

fn in_state_dir(state_dir: &Path, pg_wal: &Path) -> Result<PathBuf> {
    prove_state_dir(state_dir)?;
    let name = blake3::hash(pg_wal.as_os_str().as_bytes()).to_hex();
    Ok(state_dir.join("prefetch").join(&name[..16]))
}

/// Makes the folder for the owner of `pg_wal`. An error when somebody else could write in it.
fn make(folder: &Path, pg_wal: &Path) -> Result<()> {
    let owner = fs::metadata(pg_wal).map_err(|e| Error::io("stat", pg_wal, e))?;
    let us = rustix::process::geteuid();
    match DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) if us.is_root() => chown(folder, Some(owner.uid()), Some(owner.gid())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().mode(0o700).recursive(true).create(folder)
        }
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
    .map_err(|e| Error::io("create", folder, e))?;
    let found = fs::symlink_metadata(folder).map_err(|e| Error::io("stat", folder, e))?;
    let ours = found.uid() == us.as_raw() || (us.is_root() && found.uid() == owner.uid());
    if found.is_dir() && ours && found.mode() & 0o077 == 0 {
        return Ok(());
    }
    Err(Error::refused(format!("{} is not a folder of ours alone", folder.display())).hint("remove it"))
}

/// Holds the folder for this process.
fn hold(folder: &Path) -> Result<File> {
    let held = File::open(folder).map_err(|e| Error::io("open", folder, e))?;
    let taken = || Error::unavailable(format!("another process works in {}", folder.display()));
    flock(&held, FlockOperation::NonBlockingLockExclusive).map_err(|_| taken())?;
    // Whoever held it before may have removed it.
    let same = |a: fs::Metadata, b: fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    match held.metadata().and_then(|a| fs::symlink_metadata(folder).map(|b| same(a, b))) {
        Ok(true) => Ok(held),
        _ => Err(taken()),
    }
}
