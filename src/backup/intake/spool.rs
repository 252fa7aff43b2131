//! Room on disk for one file while it arrives. Whether a file is stored whole again or only in its changed blocks is
//! known when all of it was seen, and a stream cannot be read twice. Memory would have to hold a gigabyte, and the
//! changed blocks alone would not do, because the whole file may be wanted after all.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FallocateFlags, Mode, OFlags},
    io::Errno,
};

/// A file without a name, used again for each file that arrives: it never needs more room than the greatest of them.
#[derive(Debug)]
pub(super) struct Spool {
    /// What is written and read.
    pub file: File,
}

impl Spool {
    /// In `TMPDIR`, or in `/var/tmp`, which is for what is great and lies on a disk (file-hierarchy(7)).
    pub(super) fn make() -> io::Result<Self> {
        let folder = std::env::var_os("TMPDIR").filter(|folder| !folder.is_empty());
        Self::make_in(&folder.map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from))
    }

    fn make_in(folder: &Path) -> io::Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        if let Ok(unnamed) = rustix::fs::open(folder, flags, Mode::from_raw_mode(0o600)) {
            return Ok(Self { file: unnamed.into() });
        }
        // A file system that makes none without a name: it has one for an instant.
        let path = folder.join(format!("walden-{}", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        fs::remove_file(&path)?;
        Ok(Self { file })
    }

    /// Makes sure, where the file system can, that so many bytes will fit.
    pub(super) fn reserve(&self, bytes: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, bytes) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            reserved => Ok(reserved?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn has_room_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::make_in(folder.path()).unwrap();
        spool.reserve(1 << 20).unwrap();
        spool.file.write_all_at(b"x", (1 << 20) - 1).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(spool.reserve(u64::MAX >> 1).is_err());
        assert!(Spool::make_in(Path::new("/nowhere")).is_err());
    }
}
