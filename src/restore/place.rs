//! The place where a copy is made: the data directory, and with it the tablespaces and the WAL folder that lie
//! elsewhere, each held open. Every path of a manifest is opened below one of them; none can lead out, and no link on
//! the way is followed (`openat2` with `RESOLVE_BENEATH`).

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{BufWriter, Write},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps},
    io::Errno,
};

use super::owner::Owner;
use crate::error::{Error, Result};

/// A directory that is held open.
#[derive(Debug)]
struct Root {
    path: PathBuf,
    handle: OwnedFd,
}

/// The directories of one copy.
#[derive(Debug)]
pub struct Place {
    data: Root,
    wal: Option<Root>,
    /// By the path below the data directory, `pg_tblspc/<oid>`.
    tablespaces: HashMap<PathBuf, Root>,
    owner: Option<(rustix::process::Uid, rustix::process::Gid)>,
}

/// What a file is given besides its content.
#[derive(Clone, Copy, Debug)]
pub struct Attributes {
    /// Permissions.
    pub mode: u32,
    /// When it was last changed.
    pub mtime: chrono::DateTime<chrono::Utc>,
}

const BELOW: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

impl Place {
    /// Makes the directories where they are missing, and opens them.
    pub fn open(
        pgdata: &Path,
        mode: u32,
        waldir: Option<&Path>,
        tablespaces: &[(u32, PathBuf)],
        owner: &Owner,
    ) -> Result<Self> {
        let ids = owner.ids();
        let mut others = HashMap::new();
        for (oid, path) in tablespaces {
            others.insert(Path::new("pg_tblspc").join(oid.to_string()), Root::open(path, mode, ids)?);
        }
        Ok(Self {
            data: Root::open(pgdata, mode, ids)?,
            wal: waldir.map(|path| Root::open(path, mode, ids)).transpose()?,
            tablespaces: others,
            owner: ids,
        })
    }

    /// The directory that a path of the manifest lies in, and the rest of the path; empty for that directory itself.
    fn find<'a>(&self, path: &'a Path) -> (&Root, &'a Path) {
        if let Some(wal) = &self.wal
            && let Ok(rest) = path.strip_prefix("pg_wal")
        {
            return (wal, rest);
        }
        let mut parts = path.components();
        if !self.tablespaces.is_empty()
            && let (Some(folder), Some(oid)) = (parts.next(), parts.next())
            && let Some(root) = self.tablespaces.get(&Path::new(folder.as_os_str()).join(oid.as_os_str()))
        {
            return (root, parts.as_path());
        }
        (&self.data, path)
    }

    /// The path on this host, for messages and for walks.
    #[must_use]
    pub fn whole(&self, path: &Path) -> PathBuf {
        let (root, rest) = self.find(path);
        if rest.as_os_str().is_empty() { root.path.clone() } else { root.path.join(rest) }
    }

    fn at(&self, path: &Path, flags: OFlags, mode: u32) -> Result<OwnedFd, Errno> {
        let (root, rest) = self.find(path);
        let rest = if rest.as_os_str().is_empty() { Path::new(".") } else { rest };
        rustix::fs::openat2(&root.handle, rest, flags | OFlags::CLOEXEC, Mode::from_raw_mode(mode), BELOW)
    }

    fn failed(&self, doing: &str, path: &Path, error: Errno) -> Error {
        let made = Error::io(doing, &self.whole(path), error.into());
        match error {
            Errno::LOOP => made.hint("a symbolic link lies there; nothing is written through links"),
            Errno::NOSYS => made.hint("Walden needs Linux 5.6 or later to restore"),
            _ => made,
        }
    }

    /// Makes a file that must not be there.
    pub fn create(&self, path: &Path) -> Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        self.at(path, flags, 0o600).map(File::from).map_err(|e| self.failed("create", path, e))
    }

    /// Opens a file for reading; `None` when there is no regular file.
    pub fn read(&self, path: &Path) -> Result<Option<File>> {
        match self.at(path, OFlags::RDONLY | OFlags::NONBLOCK, 0) {
            Ok(handle) => {
                let stat = rustix::fs::fstat(&handle).map_err(|e| self.failed("stat", path, e))?;
                Ok((FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile).then(|| handle.into()))
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(e) => Err(self.failed("open", path, e)),
        }
    }

    /// Opens a file to be changed in place; `None` when that must not be: it is no regular file, has another name
    /// besides this one, or may not be written.
    pub fn modify(&self, path: &Path) -> Result<Option<File>> {
        match self.at(path, OFlags::RDWR | OFlags::NONBLOCK, 0) {
            Ok(handle) => {
                let stat = rustix::fs::fstat(&handle).map_err(|e| self.failed("stat", path, e))?;
                let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
                Ok((regular && stat.st_nlink == 1).then(|| handle.into()))
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ISDIR | Errno::ACCESS | Errno::NXIO) => Ok(None),
            Err(e) => Err(self.failed("open", path, e)),
        }
    }

    /// Gives an open file its permissions, owner and time.
    pub fn finish(&self, path: &Path, file: &File, attributes: Attributes) -> Result<()> {
        let failed = |e| self.failed("set the attributes of", path, e);
        if let Some((uid, gid)) = self.owner {
            rustix::fs::fchown(file, Some(uid), Some(gid)).map_err(failed)?;
        }
        rustix::fs::fchmod(file, Mode::from_raw_mode(attributes.mode & 0o7777)).map_err(failed)?;
        let time = Timespec {
            tv_sec: attributes.mtime.timestamp(),
            tv_nsec: attributes.mtime.timestamp_subsec_nanos().min(999_999_999).into(),
        };
        rustix::fs::futimens(file, &Timestamps { last_access: time, last_modification: time }).map_err(failed)
    }

    /// Makes a directory, or finds it, and gives it its permissions.
    pub fn directory(&self, path: &Path, mode: u32) -> Result<()> {
        let (_, rest) = self.find(path);
        if let (Some(parent), Some(name)) = (path.parent(), path.file_name())
            && !rest.as_os_str().is_empty()
        {
            let above =
                self.at(parent, OFlags::DIRECTORY | OFlags::RDONLY, 0).map_err(|e| self.failed("open", parent, e))?;
            match rustix::fs::mkdirat(&above, name, Mode::from_raw_mode(0o700)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(self.failed("create", path, e)),
            }
        }
        let handle = self.at(path, OFlags::DIRECTORY | OFlags::RDONLY, 0).map_err(|e| self.failed("open", path, e))?;
        adopt(&handle, mode, self.owner).map_err(|e| self.failed("set the attributes of", path, e))
    }

    /// Makes the symbolic link `path` to `to`.
    pub fn link(&self, path: &Path, to: &Path) -> Result<()> {
        let whole = self.data.path.join(path);
        match rustix::fs::readlinkat(&self.data.handle, path, Vec::new()) {
            Ok(there) if there.as_bytes() == to.as_os_str().as_bytes() => return Ok(()),
            Ok(_) => rustix::fs::unlinkat(&self.data.handle, path, AtFlags::empty())
                .map_err(|e| Error::io("replace", &whole, e.into()))?,
            Err(_) => {}
        }
        rustix::fs::symlinkat(to, &self.data.handle, path).map_err(|e| Error::io("link", &whole, e.into()))?;
        if let Some((uid, gid)) = self.owner {
            rustix::fs::chownat(&self.data.handle, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|e| Error::io("hand over", &whole, e.into()))?;
        }
        Ok(())
    }

    /// Removes a file; one that is not there is a success.
    pub fn remove(&self, path: &Path) -> Result<()> {
        let parent = path.parent().unwrap_or(Path::new(""));
        let Some(name) = path.file_name() else { return Ok(()) };
        let above = match self.at(parent, OFlags::DIRECTORY | OFlags::RDONLY, 0) {
            Ok(above) => above,
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(self.failed("open", parent, e)),
        };
        match rustix::fs::unlinkat(&above, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(self.failed("remove", path, e)),
        }
    }

    /// Renames a file within one directory, over another.
    pub fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let parent = from.parent().unwrap_or(Path::new(""));
        let (Some(old), Some(new)) = (from.file_name(), to.file_name()) else { return Ok(()) };
        let above =
            self.at(parent, OFlags::DIRECTORY | OFlags::RDONLY, 0).map_err(|e| self.failed("open", parent, e))?;
        rustix::fs::renameat(&above, old, &above, new).map_err(|e| self.failed("rename", from, e))
    }

    /// Writes a small file in place of one that may be there, durably but for its name.
    pub fn write(&self, path: &Path, content: &[u8], attributes: Attributes) -> Result<()> {
        let failed = |e| Error::io("write", &self.whole(path), e);
        self.write_by(path, attributes, |to| to.write_all(content).map_err(failed))
    }

    /// The same of a file that `content` writes.
    pub fn write_by(
        &self,
        path: &Path,
        attributes: Attributes,
        content: impl FnOnce(&mut BufWriter<&File>) -> Result<()>,
    ) -> Result<()> {
        self.remove(path)?;
        let file = self.create(path)?;
        let mut to = BufWriter::new(&file);
        content(&mut to)?;
        to.flush().map_err(|e| Error::io("write", &self.whole(path), e))?;
        drop(to);
        self.finish(path, &file, attributes)?;
        file.sync_all().map_err(|e| Error::io("fsync", &self.whole(path), e))
    }

    /// Makes a file or the entries of a directory durable; empty for the data directory.
    pub fn sync(&self, path: &Path) -> Result<()> {
        let handle = self.at(path, OFlags::RDONLY | OFlags::NONBLOCK, 0).map_err(|e| self.failed("open", path, e))?;
        rustix::fs::fsync(&handle).map_err(|e| self.failed("fsync", path, e))
    }

    /// Makes the names of the directories themselves durable, and of everything at their top.
    pub fn sync_roots(&self) -> Result<()> {
        for root in [&self.data].into_iter().chain(&self.wal).chain(self.tablespaces.values()) {
            rustix::fs::fsync(&root.handle).map_err(|e| Error::io("fsync", &root.path, e.into()))?;
            root.path.parent().map_or(Ok(()), super::sync_folder)?;
        }
        Ok(())
    }
}

impl Root {
    fn open(path: &Path, mode: u32, owner: Option<(rustix::process::Uid, rustix::process::Gid)>) -> Result<Self> {
        fs::create_dir_all(path).map_err(|e| Error::io("create", path, e))?;
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let handle = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| Error::io("open", path, e.into()))?;
        adopt(&handle, mode, owner).map_err(|e| Error::io("set the attributes of", path, e.into()))?;
        Ok(Self { path: path.to_path_buf(), handle })
    }
}

fn adopt(
    handle: &OwnedFd,
    mode: u32,
    owner: Option<(rustix::process::Uid, rustix::process::Gid)>,
) -> Result<(), Errno> {
    if let Some((uid, gid)) = owner {
        rustix::fs::fchown(handle, Some(uid), Some(gid))?;
    }
    rustix::fs::fchmod(handle, Mode::from_raw_mode(mode & 0o7777))
}
