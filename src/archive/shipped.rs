//! What this host remembers as shipped: files of `pg_wal` that are durable in the repository though PostgreSQL has not
//! asked for them yet, so that its own call is answered at once.
//!
//! Each has a small file, `<state_dir>/shipped/<repository id>/<cluster>/<system>-<incarnation>/<name>`, which says what
//! told the file in `pg_wal` from any other of that name. Whatever is doubtful, a record that cannot be read or that
//! fits another file, counts for nothing: the file is pushed again, which is always right.

use std::{
    collections::HashSet,
    fmt, fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use crate::{
    config,
    error::{Error, Result},
    postgres::WalFile,
    repository::{RepositoryDocument, SystemFolder},
};

/// What tells a file from any other that had or will have its name: a recycled segment, another cluster's, a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileId {
    /// That of the file at this path.
    pub(super) fn of(path: &Path) -> Result<Self> {
        let found = fs::metadata(path).map_err(|e| Error::io("stat", path, e))?;
        Ok(Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }

    /// The file's length in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, inode, size, modified, changed } = self;
        writeln!(
            f,
            "walden-shipped 1 {device} {inode} {size} {}.{:09} {}.{:09}",
            modified.0, modified.1, changed.0, changed.1
        )
    }
}

/// The records of one system in one repository.
#[derive(Debug)]
pub(super) struct Shipped {
    folder: PathBuf,
}

impl Shipped {
    /// The records below `state_dir`. Refused where somebody else could write some: a false record would lose WAL.
    pub(super) fn open(state_dir: &Path, repository: &RepositoryDocument, system: &SystemFolder) -> Result<Self> {
        config::prove_state_dir(state_dir)?;
        let folder = state_dir.join("shipped").join(repository.folder_name()?).join(system.prefix());
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(|e| Error::io("create", &folder, e))?;
        Ok(Self { folder })
    }

    /// Whether this very file was shipped to any repository: a first look that needs none.
    pub(super) fn anywhere(state_dir: &Path, file: WalFile, id: &FileId) -> bool {
        let below = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let systems = below(&state_dir.join("shipped")).flat_map(|id| below(&id).collect::<Vec<_>>());
        let mut systems = systems.flat_map(|cluster| below(&cluster).collect::<Vec<_>>());
        systems.any(|folder| Self { folder }.knows(file, id))
    }

    /// Whether this very file is durable in the repository.
    pub(super) fn knows(&self, file: WalFile, id: &FileId) -> bool {
        fs::read_to_string(self.place(file)).is_ok_and(|record| record == id.to_string())
    }

    /// Writes down that it is. Not synced: a record that is lost costs a second push.
    pub(super) fn remember(&self, file: WalFile, id: &FileId) -> io::Result<()> {
        // Another process that ships the same file writes the same.
        let temporary = self.folder.join(format!("{file}.tmp"));
        fs::write(&temporary, id.to_string())?;
        fs::rename(&temporary, self.place(file))
    }

    /// Forgets all files but these, which still wait for PostgreSQL's call.
    pub(super) fn keep_only(&self, waiting: &HashSet<WalFile>) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_str().map(|name| name.strip_suffix(".tmp").unwrap_or(name));
            let file = name.and_then(|name| name.parse::<WalFile>().ok());
            if file.is_some_and(|file| !waiting.contains(&file)) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn place(&self, file: WalFile) -> PathBuf {
        self.folder.join(file.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::repository::{FORMAT, Incarnation};

    fn repository(id: &str) -> RepositoryDocument {
        let made = chrono::DateTime::UNIX_EPOCH;
        RepositoryDocument { format: FORMAT, id: id.into(), made, mirror_of: None }
    }

    fn system() -> SystemFolder {
        let incarnation = "7300000000000000001-1".parse::<Incarnation>().unwrap();
        SystemFolder { cluster: "main".parse().unwrap(), incarnation }
    }

    #[test]
    fn only_the_very_file_is_known_and_only_in_its_repository() {
        let folder = tempfile::tempdir().unwrap();
        let (state, wal) = (folder.path().join("state"), folder.path().join("000000010000000000000001"));
        let file: WalFile = "000000010000000000000001".parse().unwrap();
        fs::write(&wal, "one").unwrap();
        let id = FileId::of(&wal).unwrap();
        let shipped = Shipped::open(&state, &repository("a1"), &system()).unwrap();
        assert!(!shipped.knows(file, &id));
        shipped.remember(file, &id).unwrap();
        assert!(shipped.knows(file, &id));
        assert!(Shipped::open(&state, &repository("a1"), &system()).unwrap().knows(file, &id), "after a restart");
        assert!(!Shipped::open(&state, &repository("b2"), &system()).unwrap().knows(file, &id), "another repository");
        // The same name and content again, but another file.
        fs::rename(&wal, folder.path().join("old")).unwrap();
        fs::write(&wal, "one").unwrap();
        assert!(!shipped.knows(file, &FileId::of(&wal).unwrap()));
        shipped.keep_only(&HashSet::new()).unwrap();
        assert!(!shipped.knows(file, &id));
    }

    #[test]
    fn a_folder_that_others_may_write_in_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let refused = Shipped::open(folder.path(), &repository("a1"), &system()).unwrap_err();
        assert!(refused.to_string().contains("nobody else can write"), "{refused}");
        assert!(Shipped::open(&folder.path().join("x"), &repository("../b"), &system()).is_err());
    }
}
