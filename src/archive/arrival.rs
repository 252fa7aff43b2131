//! A file of the archive as it arrives on this host: written under a temporary name, proven while it is written, and
//! then renamed to where it is wanted.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    ops::ControlFlow,
    os::unix::fs::{MetadataExt, OpenOptionsExt, fchown},
    path::{Path, PathBuf},
};

use crate::{
    error::{Error, Result},
    interrupt::Interrupt,
    postgres::{SystemId, WalFile},
    repository::wal_object::{WalHead, WalObject},
    store::Key,
    wal::{self, SegmentCheck},
};

/// What PostgreSQL's startup process calls a segment that it is about to replay (`XLogFileRead`, xlogrecovery.c).
pub(super) const RECOVERED: &str = "RECOVERYXLOG";

/// An object of the archive that is there, and what it has to be.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) object: WalObject,
    pub(super) key: Key,
    pub(super) file: WalFile,
    pub(super) system: SystemId,
    /// Whether its file has to be durable when it is written.
    pub(super) durable: bool,
}

/// A file that is whole and proven, under a temporary name. It is gone when this is dropped.
#[derive(Debug)]
pub(super) struct Arrived {
    path: PathBuf,
    size: u64,
    kept: bool,
}

impl Arrived {
    /// Writes and proves it at `path`, with the owner and the rights that a file in the folder `near` has. Ends early
    /// when `wanted` says no. Call it on a thread of its own.
    pub(super) fn write(found: Found, path: PathBuf, near: &Path, wanted: impl Fn() -> bool) -> Result<Self> {
        let (mut proof, durable) = (Proof::begin(&found)?, found.durable);
        Self::made(path, near, durable, |to, path| {
            let head = found.object.read(|bytes| {
                if !wanted() {
                    return Err(Interrupt::error());
                }
                proof.feed(bytes)?;
                to.write_all(bytes).map_err(|e| Error::io("write", path, e))?;
                Ok(ControlFlow::Continue(()))
            })?;
            proof.end()?;
            Ok(head.size)
        })
    }

    /// What `make` writes into a file at `path`, and says the length of; synced where it has to be durable.
    pub(super) fn made(
        path: PathBuf,
        near: &Path,
        durable: bool,
        make: impl FnOnce(&mut File, &Path) -> Result<u64>,
    ) -> Result<Self> {
        let mut to = create(&path, near)?;
        let mut arrived = Self { path, size: 0, kept: false };
        arrived.size = make(&mut to, &arrived.path)?;
        if durable {
            to.sync_all().map_err(|e| Error::io("fsync", &arrived.path, e))?;
        }
        Ok(arrived)
    }

    /// Where it lies.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its length in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Gives it another name on the same file system, under which it stays.
    pub(super) fn keep_as(mut self, name: &Path) -> io::Result<()> {
        fs::rename(&self.path, name)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Arrived {
    fn drop(&mut self) {
        if !self.kept {
            // What remains of it is of no use, and is removed later.
            _ = fs::remove_file(&self.path);
        }
    }
}

/// Renames a proven file to its destination, or copies it there where that lies on another file system.
pub(super) fn deliver(path: &Path, destination: &Path) -> Result<()> {
    let folder = folder_of(destination);
    match fs::rename(path, destination) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            let temporary = temporary_in(folder);
            let copied = copy(path, &temporary, folder)
                .and_then(|()| fs::rename(&temporary, destination).map_err(|e| Error::io("rename to", destination, e)));
            _ = fs::remove_file(if copied.is_ok() { path } else { &temporary });
            copied?;
        }
        renamed => renamed.map_err(|e| Error::io("rename to", destination, e))?,
    }
    if destination.file_name().is_some_and(|name| name == RECOVERED) {
        // PostgreSQL itself makes it durable under its own name (`KeepFileRestoredFromArchive`, xlogarchive.c).
        return Ok(());
    }
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| Error::io("fsync", folder, e))
}

fn copy(path: &Path, temporary: &Path, near: &Path) -> Result<()> {
    let mut to = create(temporary, near)?;
    let copied = File::open(path).and_then(|mut from| io::copy(&mut from, &mut to)).and_then(|_| to.sync_all());
    copied.map_err(|e| Error::io("write", temporary, e))
}

/// The folder that a path lies in.
pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A temporary name in `pg_wal`. PostgreSQL itself removes files of such names when it starts (`RemoveTempXlogFiles`,
/// xlog.c).
pub(super) fn temporary_in(folder: &Path) -> PathBuf {
    folder.join(format!("xlogtemp.walden.{}", std::process::id()))
}

/// A new file that the server can use like one of its own in the folder `near`.
fn create(path: &Path, near: &Path) -> Result<File> {
    _ = fs::remove_file(path);
    let near = fs::metadata(near).map_err(|e| Error::io("stat", near, e))?;
    let file = OpenOptions::new().write(true).create_new(true).mode(near.mode() & 0o666).open(path);
    let file = file.map_err(|e| Error::io("create", path, e))?;
    if rustix::process::geteuid().is_root() {
        fchown(&file, Some(near.uid()), Some(near.gid())).map_err(|e| Error::io("give away", path, e))?;
    }
    Ok(file)
}

/// Proves what the object's own hash does not: that it is the file that was asked for.
struct Proof {
    file: WalFile,
    system: SystemId,
    pages: Option<SegmentCheck>,
    header: Option<Vec<u8>>,
}

impl Proof {
    fn begin(found: &Found) -> Result<Self> {
        let head: Option<&WalHead> = found.object.head.as_ref();
        if let Some(head) = head.filter(|head| head.name != found.file) {
            return Err(Error::damaged(format!("{} says that it holds {}", found.key, head.name)));
        }
        let segment = match found.file {
            WalFile::Segment(name) => Some(name),
            _ => None,
        };
        let pages = segment.zip(head).map(|(name, head)| SegmentCheck::new(name, head.size));
        Ok(Self { file: found.file, system: found.system, pages, header: segment.map(|_| Vec::new()) })
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some(front) = &mut self.header {
            front.extend_from_slice(&bytes[..bytes.len().min(64)]);
            if front.len() >= wal::page::LONG_HEADER {
                check_header(front, self.file, self.system)?;
                self.header = None;
            }
        }
        self.pages.as_mut().map_or(Ok(()), |pages| pages.feed(bytes))
    }

    fn end(self) -> Result<()> {
        self.pages.map_or(Ok(()), |pages| pages.finish().map(drop))
    }
}

fn check_header(front: &[u8], file: WalFile, system: SystemId) -> Result<()> {
    let WalFile::Segment(name) = file else { return Ok(()) };
    let header = wal::SegmentHeader::parse(front)?;
    header.check_name(name)?;
    if header.system != system {
        return Err(Error::damaged(format!(
            "{name} in the repository belongs to system {}, not to {system}",
            header.system
        )));
    }
    Ok(())
}
