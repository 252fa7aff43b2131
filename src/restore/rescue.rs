//! The newest WAL of a directory that is about to be replaced: what of its `pg_wal` the repository lacks is pushed, or
//! moved aside. It holds the newest transactions, and nothing else does.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::sync_folder;
use crate::{
    archive::{self, Push},
    error::{Error, Result},
    postgres::{
        ControlFile, SegmentName, SegmentSize, WalFile,
        settings::{self, AUTO_CONF},
    },
    repository::System,
    wal::PageHeader,
};

/// What of a `pg_wal` has to be brought to safety.
#[derive(Clone, Debug)]
pub struct Rescue {
    /// The files, history files first.
    pub files: Vec<PathBuf>,
    /// Whether they belong into this archive: they are this system's, and not a copy's that was never adopted.
    pub belongs: bool,
    /// Where they go otherwise.
    pub aside: PathBuf,
}

/// What became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rescued {
    /// Files that are now in the repository.
    pub pushed: usize,
    /// Files that were moved aside.
    pub aside: usize,
}

impl Rescue {
    /// Looks at the data directory `pgdata`, which may be anything. Reads only.
    pub async fn look(pgdata: &Path, system: &System, aside: PathBuf) -> Result<Self> {
        let control = ControlFile::read(pgdata).ok();
        let same_system = control.as_ref().is_some_and(|c| c.system == system.folder.incarnation.system);
        let auto_conf = fs::read_to_string(pgdata.join(AUTO_CONF)).unwrap_or_default();
        let mut files = Vec::new();
        for (file, path) in wal_files(&pgdata.join("pg_wal"))? {
            if !same_system || !is_stored(system, file).await? {
                files.push(path);
            }
        }
        Ok(Self { files, belongs: same_system && !settings::is_applied(&auto_conf), aside })
    }

    /// Brings everything to safety.
    pub async fn carry_out(&self, pgdata: &Path, system: &System, level: i32) -> Result<Rescued> {
        let mut rescued = Rescued::default();
        for path in &self.files {
            if self.belongs && self.push(path, pgdata, system, level).await {
                rescued.pushed += 1;
            } else {
                move_aside(path, &self.aside)?;
                rescued.aside += 1;
            }
        }
        Ok(rescued)
    }

    async fn push(&self, path: &Path, pgdata: &Path, system: &System, level: i32) -> bool {
        let request = Push {
            path: path.to_path_buf(),
            pgdata: Some(pgdata.to_path_buf()),
            incarnation: system.folder.incarnation.number,
            level,
        };
        let pushed = async {
            let store = match system.store.to_write() {
                Some(open) => open.await?,
                None => system.store.clone(),
            };
            archive::push(store, &system.folder.cluster, &request).await
        };
        match pushed.await {
            Ok(_) => true,
            Err(error) => {
                tracing::info!(%error, "{} is moved aside", path.display());
                false
            }
        }
    }
}

/// The files of a `pg_wal` that hold WAL or a history, histories first: recycled segments are passed over, which
/// wait under a future name with content of the past.
pub fn wal_files(pg_wal: &Path) -> Result<Vec<(WalFile, PathBuf)>> {
    let failed = |e| Error::io("read the directory", pg_wal, e);
    let entries = match fs::read_dir(pg_wal) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let file = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse::<WalFile>().ok());
        match file {
            Some(WalFile::Segment(name) | WalFile::Partial(name)) if !holds(&path, name)? => {}
            Some(file) if !matches!(file, WalFile::BackupLabel(..)) => found.push((file, path)),
            _ => {}
        }
    }
    found.sort_by_key(|(file, path)| (!matches!(file, WalFile::History(_)), path.clone()));
    Ok(found)
}

/// Whether the first page of the file is the one that its name tells.
fn holds(path: &Path, name: SegmentName) -> Result<bool> {
    let failed = |e| Error::io("read", path, e);
    let file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let mut page = Vec::new();
    file.take(8192).read_to_end(&mut page).map_err(failed)?;
    let Ok(start) = SegmentSize::new(length).and_then(|size| name.start(size)) else { return Ok(false) };
    Ok(PageHeader::parse(&page, start).is_ok_and(|header| header.address == start))
}

async fn is_stored(system: &System, file: WalFile) -> Result<bool> {
    match file {
        WalFile::Segment(name) => Ok(!system.segments(name.timeline, Some(name), Some(name)).await?.is_empty()),
        WalFile::History(timeline) => match system.history(timeline).await {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == crate::error::Kind::NotFound => Ok(false),
            Err(e) => Err(e),
        },
        _ => Ok(false),
    }
}

fn move_aside(path: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
    let Some(name) = path.file_name() else { return Ok(()) };
    let to = folder.join(name);
    match fs::rename(path, &to) {
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::XDEV.raw_os_error()) => {
            let copied = fs::copy(path, &to).and_then(|_| File::open(&to)?.sync_all());
            copied.map_err(|e| Error::io("move aside to", &to, e))?;
            sync_folder(folder)?;
            fs::remove_file(path).map_err(|e| Error::io("remove", path, e))?;
        }
        moved => moved.map_err(|e| Error::io("move aside to", &to, e))?,
    }
    sync_folder(folder)?;
    path.parent().map_or(Ok(()), sync_folder)?;
    folder.parent().map_or(Ok(()), sync_folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recycled_segments_hold_nothing() {
        let folder = tempfile::tempdir().unwrap();
        // A page of PostgreSQL 15 at 0/1000000: magic, flags, timeline, address.
        let mut segment = vec![0; 16 << 20];
        segment[..4].copy_from_slice(&[0x10, 0xD1, 2, 0]);
        segment[4] = 1;
        segment[8..16].copy_from_slice(&0x0100_0000_u64.to_le_bytes());
        for name in ["000000010000000000000001", "000000010000000000000009", "00000002.history", "xlogtemp.5"] {
            fs::write(folder.path().join(name), &segment).unwrap();
        }
        let found: Vec<_> = wal_files(folder.path()).unwrap().iter().map(|(file, _)| file.to_string()).collect();
        assert_eq!(found, ["00000002.history", "000000010000000000000001"]);
        assert!(wal_files(Path::new("/nonexistent")).unwrap().is_empty());
    }

    #[test]
    fn what_is_moved_aside_keeps_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let (from, aside) = (folder.path().join("x"), folder.path().join("aside"));
        fs::write(&from, "wal").unwrap();
        move_aside(&from, &aside).unwrap();
        assert!(!from.exists());
        assert_eq!(fs::read_to_string(aside.join("x")).unwrap(), "wal");
    }
}
