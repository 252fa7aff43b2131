//! A folder that files are written below without ever following a link, and what files there are given: owners by their
//! names where this host knows them, modes, extended attributes, times.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{DirBuilderExt, fchown},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, XattrFlags},
    io::Errno,
    process::{Gid, Uid},
};

use super::owner::Owner;
use crate::{
    error::{Error, Result},
    postgres::account,
    repository::Member,
};

/// The folder, held open.
#[derive(Debug)]
pub struct Ground {
    path: PathBuf,
    handle: OwnedFd,
}

impl Ground {
    /// The folder at `path`; `None` when there is none.
    pub fn open(path: &Path) -> Result<Option<Self>> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(handle) => Ok(Some(Self { path: path.to_path_buf(), handle })),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(Error::io("open", path, e.into())),
        }
    }

    /// The same, with `folders` made where they are missing, the outermost first, for their owner alone.
    pub fn make(path: &Path, folders: &[&Path], owner: &Owner) -> Result<Self> {
        for folder in folders {
            match fs::DirBuilder::new().mode(0o700).create(folder) {
                Ok(()) => {
                    if owner.hand_over {
                        std::os::unix::fs::lchown(folder, Some(owner.uid), Some(owner.gid))
                            .map_err(|e| Error::io("hand over", folder, e))?;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Error::io("create", folder, e)),
            }
        }
        Self::open(path)?.ok_or_else(|| Error::failed(format!("{} has vanished", path.display())))
    }

    /// The path on this host of a path below.
    pub fn whole(&self, path: &Path) -> PathBuf {
        self.path.join(path)
    }

    /// Whether this is the root of the file system.
    pub fn is_root_folder(&self) -> bool {
        self.path == Path::new("/")
    }

    /// Opens a folder below; empty for itself. `LOOP` when a link is on the way.
    pub fn folder(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let below = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        rustix::fs::openat2(&self.handle, path, flags, Mode::empty(), below)
    }
}

/// Owner, group and mode of a member as they are to be on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    uid: u32,
    gid: u32,
    mode: u32,
}

impl Stamp {
    /// By the names in the archive, else by the numbers.
    pub fn of(member: &Member) -> Self {
        Self {
            uid: account::user_number(&member.user.1).unwrap_or(member.user.0),
            gid: account::group_number(&member.group.1).unwrap_or(member.group.0),
            mode: member.mode,
        }
    }

    /// Whether a file has them.
    pub fn is(&self, stat: &Stat) -> bool {
        (stat.st_uid, stat.st_gid, stat.st_mode & 0o7777) == (self.uid, self.gid, self.mode)
    }

    /// Gives them to a link; only root can, and links need none.
    pub fn own_link(&self, folder: impl AsFd, name: &OsStr) {
        let ids = (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)));
        let _ = rustix::fs::chownat(folder, name, ids.0, ids.1, AtFlags::SYMLINK_NOFOLLOW);
    }

    /// Gives them to an open file, with its extended attributes and its time; what could not be given is told. What only
    /// lies there to be looked at gets no set-user-ID bits, and of its owner as much as can be.
    pub fn put(&self, file: &File, member: &Member, in_place: bool) -> io::Result<Vec<String>> {
        let mut remarks = Vec::new();
        let root = rustix::process::geteuid().is_root();
        let owned = fchown(file, Some(self.uid), Some(self.gid));
        match owned {
            Err(e) if root => return Err(e),
            Err(_) if in_place => remarks.push(format!(
                "it belonged to {}:{}, and only root can hand it over",
                called(&member.user),
                called(&member.group)
            )),
            _ => {}
        }
        for (name, value) in &member.xattrs {
            let set = rustix::fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty());
            if let (Err(e), true) = (set, !has(file, name, value)) {
                let name = String::from_utf8_lossy(name);
                remarks.push(format!("its attribute {name} cannot be set ({})", io::Error::from(e).kind()));
            }
        }
        // With another owner than it had, such a bit would mean something else.
        let bits = if in_place && remarks.is_empty() { 0o7777 } else { 0o1777 };
        rustix::fs::fchmod(file, Mode::from_raw_mode(self.mode & bits))?;
        let time = Timespec {
            tv_sec: member.mtime.timestamp(),
            tv_nsec: member.mtime.timestamp_subsec_nanos().min(999_999_999).into(),
        };
        rustix::fs::futimens(file, &Timestamps { last_access: time, last_modification: time })?;
        Ok(remarks)
    }
}

fn has(file: &File, name: &[u8], value: &[u8]) -> bool {
    let mut there = vec![0; value.len() + 1];
    rustix::fs::fgetxattr(file, name, there.as_mut_slice()).is_ok_and(|length| &there[..length] == value)
}

fn called((number, name): &(u32, String)) -> String {
    if name.is_empty() { number.to_string() } else { name.clone() }
}
