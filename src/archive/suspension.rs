//! Suspended archiving: a person has decided that the disk of the server matters more than recovery to instants of the
//! next while. PostgreSQL is then told "archived" for segments that are stored nowhere, and this is written down.
//!
//! The record is a file of this host, because the repository may be the very thing that is away:
//! `<state_dir>/suspended/<cluster>/<system>-<incarnation>`. Its first line says who suspended what, when and why; each
//! further one names a file that PostgreSQL was told is archived, durable before it was told. While the record is there
//! archiving is suspended, and as soon as it has another name it is not: there is no state between. Whatever is doubtful
//! about it counts as not suspended.
//!
//! What has ended stays as `<system>-<incarnation>.ended-<id>` until the repository has its note.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use chrono::{DateTime, Utc};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::data_directory;
use crate::{
    config::{ClusterConfig, Config, prove_state_dir},
    error::{Error, Kind, Result},
    postgres::{ControlFile, Lsn, SegmentName, WalFile},
    repository::{ClusterName, Incarnation, Suspended},
};

/// Where records of a cluster are, and what they must fit.
#[derive(Clone, Debug)]
pub struct Suspensions {
    state_dir: PathBuf,
    pub(super) cluster: ClusterName,
    number: u32,
    repository: String,
    pgdata: Option<PathBuf>,
    pub(super) level: i32,
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What its first line says.
    pub begun: Begun,
    /// The system whose archiving it is about.
    pub incarnation: Incarnation,
    /// What PostgreSQL was told is archived.
    pub skipped: BTreeSet<WalFile>,
    /// Where it lies.
    pub(super) path: PathBuf,
}

/// The first line of a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// Of this file.
    pub format: u32,
    /// When, who and why.
    #[serde(flatten)]
    pub suspended: Suspended,
    /// The URL of the repository.
    pub repository: String,
    /// The data directory, by its canonical path.
    pub pgdata: PathBuf,
    /// Where the archive ended, if that was known.
    pub from: Option<Lsn>,
}

impl Record {
    /// The segments among what was skipped.
    pub fn segments(&self) -> impl Iterator<Item = SegmentName> {
        self.skipped.iter().filter_map(|file| if let WalFile::Segment(name) = file { Some(*name) } else { None })
    }

    /// Where history files are that could not be stored.
    pub(super) fn histories(&self) -> PathBuf {
        self.path.with_file_name(format!("{}.histories", self.incarnation))
    }
}

impl Suspensions {
    /// Those of a cluster as it is configured.
    pub fn of(config: &Config, cluster: &ClusterConfig) -> Result<Self> {
        Ok(Self {
            state_dir: config.archive.state_dir.clone(),
            cluster: cluster.name.clone(),
            number: cluster.incarnation,
            repository: config.repository()?.url.to_string(),
            pgdata: cluster.pgdata().ok().map(PathBuf::from),
            level: config.archive.compression.fast,
        })
    }

    fn folder(&self) -> PathBuf {
        self.state_dir.join("suspended").join(self.cluster.as_str())
    }

    fn incarnation(&self, pgdata: &Path) -> Result<Incarnation> {
        Ok(Incarnation { system: ControlFile::read(pgdata)?.system, number: self.number })
    }

    /// The record that holds for the configured data directory; none when archiving is not suspended.
    pub fn current(&self) -> Result<Option<Record>> {
        let folder = self.folder();
        let there = fs::exists(&folder).map_err(|e| Error::io("look for", &folder, e))?;
        match self.pgdata.as_deref().filter(|_| there) {
            Some(pgdata) => self.fitting(pgdata),
            None => Ok(None),
        }
    }

    /// The record that holds for a data directory: one of this repository and this very directory. A copy of the cluster
    /// on this host is not meant.
    fn fitting(&self, pgdata: &Path) -> Result<Option<Record>> {
        let incarnation = self.incarnation(pgdata)?;
        let path = self.folder().join(incarnation.to_string());
        let Some(record) = read(path, incarnation)? else { return Ok(None) };
        let canonical = fs::canonicalize(pgdata).map_err(|e| Error::io("find", pgdata, e))?;
        let fits = record.begun.repository == self.repository && record.begun.pgdata == canonical;
        Ok(fits.then_some(record))
    }

    /// Suspends archiving. Refused where somebody else could write in the state folder. A record that is there stays as it
    /// is; the answer is the one that holds now, and whether it is new.
    pub fn begin(&self, suspended: Suspended, from: Option<Lsn>) -> Result<(Record, bool)> {
        let pgdata = self.pgdata.as_deref().ok_or_else(|| Error::invalid("no data directory is configured"))?;
        prove_state_dir(&self.state_dir)?;
        let incarnation = self.incarnation(pgdata)?;
        let _lock = self.lock()?;
        if let Some(record) = self.fitting(pgdata)? {
            return Ok((record, false));
        }
        let path = self.folder().join(incarnation.to_string());
        let begun = Begun {
            format: 1,
            suspended,
            repository: self.repository.clone(),
            pgdata: fs::canonicalize(pgdata).map_err(|e| Error::io("find", pgdata, e))?,
            from,
        };
        if let Some(other) = read(path.clone(), incarnation)? {
            return Err(Error::refused(format!(
                "archiving of system {incarnation} is suspended already, for {} and {}",
                other.begun.pgdata.display(),
                other.begun.repository
            ))
            .hint("resume it with the configuration that it was suspended with, or remove its record from [archive] state_dir"));
        }
        let mut line = serde_json::to_string(&begun).map_err(|e| Error::internal("write a record").source(e))?;
        line.push('\n');
        let temporary = path.with_file_name(format!("{incarnation}.new"));
        let written = write_synced(&temporary, line.as_bytes()).and_then(|()| fs::rename(&temporary, &path));
        written.and_then(|()| self.sync_folders()).map_err(|e| Error::io("write", &path, e))?;
        Ok((Record { begun, incarnation, skipped: BTreeSet::new(), path }, true))
    }

    /// Whether archiving is suspended for the data directory that this file lies in, where that can be told for certain.
    #[must_use]
    pub fn is_suspended(&self, path: &Path) -> bool {
        // Nearly always there is no such folder, and nothing more is looked at.
        self.folder().exists() && self.record_for(path).ok().flatten().is_some()
    }

    fn record_for(&self, path: &Path) -> Result<Option<Record>> {
        self.fitting(&data_directory(path, self.pgdata.as_deref())?)
    }

    /// Takes down that PostgreSQL is told this file is archived: when it answers with the suspension, it may be told so.
    /// None where archiving is not suspended, and for history files, which are stored even then.
    pub async fn skip(&self, path: &Path) -> Option<Suspended> {
        if !self.folder().exists() {
            return None;
        }
        match wal_file(path) {
            Ok(WalFile::History(_)) | Err(_) => None,
            Ok(file) => self.certainly(path, move |suspensions, path| suspensions.take_down(path, file)).await,
        }
    }

    /// The same for a history file that could not be stored because of this error: where the repository does not answer,
    /// a copy is kept here until it does.
    pub async fn keep_after(&self, path: &Path, error: &Error) -> Option<Suspended> {
        if !matches!(error.kind(), Kind::Unavailable | Kind::Denied | Kind::Failed) || !self.folder().exists() {
            return None;
        }
        match wal_file(path) {
            Ok(file @ WalFile::History(_)) => {
                self.certainly(path, move |suspensions, path| {
                    let _lock = suspensions.lock()?;
                    let Some(record) = suspensions.record_for(path)? else { return Ok(None) };
                    let folder = record.histories();
                    make_folder(&folder)?;
                    let content = fs::read(path).map_err(|e| Error::io("read", path, e))?;
                    let place = folder.join(file.to_string());
                    let written = write_synced(&place, &content).and_then(|()| sync(&folder));
                    written.and_then(|()| suspensions.sync_folders()).map_err(|e| Error::io("write", &place, e))?;
                    append(&record, file)?;
                    Ok(Some(record.begun.suspended))
                })
                .await
            }
            _ => None,
        }
    }

    /// What is doubtful counts as not suspended: the file is pushed, which is always right.
    async fn certainly(
        &self,
        path: &Path,
        work: impl FnOnce(&Self, &Path) -> Result<Option<Suspended>> + Send + 'static,
    ) -> Option<Suspended> {
        let (own, path) = (self.clone(), path.to_path_buf());
        let done = tokio::task::spawn_blocking(move || work(&own, &path)).await;
        match done.unwrap_or_else(|e| Err(Error::internal("a worker thread stopped").source(e))) {
            Ok(suspended) => suspended,
            Err(error) => {
                tracing::warn!("whether archiving is suspended is in doubt, and so it counts as not: {error}");
                None
            }
        }
    }

    fn take_down(&self, path: &Path, file: WalFile) -> Result<Option<Suspended>> {
        prove_state_dir(&self.state_dir)?;
        let _lock = self.lock()?;
        let Some(record) = self.record_for(path)? else { return Ok(None) };
        append(&record, file)?;
        Ok(Some(record.begun.suspended))
    }

    /// Ends the suspension: from here on PostgreSQL is told "archived" for what is stored alone. None when archiving is
    /// not suspended.
    pub fn end(&self, now: DateTime<Utc>) -> Result<Option<Record>> {
        if !self.folder().exists() {
            return Ok(None);
        }
        prove_state_dir(&self.state_dir)?;
        let _lock = self.lock()?;
        let Some(mut record) = self.current()? else { return Ok(None) };
        record.begun.suspended.resumed = Some(now);
        let failed = |e| Error::io("write", &record.path, e);
        let ended = format!("{}.ended-{}", record.incarnation, record.begun.suspended.id);
        let ended = record.path.with_file_name(ended);
        // When it ended is part of what ended: it is there, and durable, before it has.
        let line = serde_json::to_string(&record.begun).map_err(|e| Error::internal("write a record").source(e))?;
        let all = record.skipped.iter().fold(format!("{line}\n"), |all, file| format!("{all}{file}\n"));
        write_synced(&ended, all.as_bytes()).and_then(|()| self.sync_folders()).map_err(failed)?;
        fs::remove_file(&record.path).and_then(|()| self.sync_folders()).map_err(failed)?;
        record.path = ended;
        Ok(Some(record))
    }

    /// What has ended and is not in the repository yet, and the suspension that lasts, if there is one.
    pub fn pending(&self) -> Result<Vec<Record>> {
        let (folder, mut found) = (self.folder(), Vec::new());
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            entries => entries.map_err(|e| Error::io("read", &folder, e))?,
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let parts = name.to_str().unwrap_or_default().split_once(".ended-");
            if let Some((incarnation, id)) = parts
                && let Ok(incarnation) = incarnation.parse::<Incarnation>()
            {
                // Killed while it ended: it still lasts, and will end anew.
                let lasting = read(folder.join(incarnation.to_string()), incarnation)?;
                if lasting.is_none_or(|lasting| lasting.begun.suspended.id != id) {
                    found.extend(read(entry.path(), incarnation)?);
                }
            }
        }
        found.extend(self.current()?);
        Ok(found)
    }

    /// Whether something ended that is not in the repository yet.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let entries = fs::read_dir(self.folder()).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| entry.file_name().to_string_lossy().contains(".ended-"))
    }

    /// The repository has what this record tells.
    pub(super) fn forget(&self, record: &Record) -> Result<()> {
        let _lock = self.lock()?;
        match fs::remove_file(&record.path).and_then(|()| self.sync_folders()) {
            // Somebody else stored its note as well.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            gone => gone.map_err(|e| Error::io("remove", &record.path, e)),
        }
    }

    fn lock(&self) -> Result<File> {
        let folder = self.folder();
        make_folder(&folder)?;
        let path = folder.join("lock");
        let failed = |e| Error::io("lock", &path, e);
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path).map_err(failed)?;
        flock(&file, FlockOperation::LockExclusive).map_err(|e| failed(e.into()))?;
        Ok(file)
    }

    fn sync_folders(&self) -> io::Result<()> {
        let folder = self.folder();
        folder.ancestors().take(3).try_for_each(sync)
    }
}

fn wal_file(path: &Path) -> Result<WalFile> {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default().parse()
}

fn make_folder(folder: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|e| Error::io("create", folder, e))
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn write_synced(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Adds a name, unless it is there. A line that was torn by a crash is ended first; nobody was told of it.
fn append(record: &Record, file: WalFile) -> Result<()> {
    if record.skipped.contains(&file) {
        return Ok(());
    }
    let add = || {
        let text = fs::read(&record.path)?;
        let mut to = OpenOptions::new().append(true).open(&record.path)?;
        let torn = text.last().is_some_and(|last| *last != b'\n');
        to.write_all(format!("{}{file}\n", if torn { "\n" } else { "" }).as_bytes())?;
        to.sync_all()
    };
    add().map_err(|e: io::Error| Error::io("write", &record.path, e))
}

fn read(path: PathBuf, incarnation: Incarnation) -> Result<Option<Record>> {
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(|e| Error::io("read", &path, e))?,
    };
    let mut lines = text.lines();
    let begun: Begun = serde_json::from_str(lines.next().unwrap_or_default())
        .map_err(|e| Error::damaged(format!("{} is not the record of a suspension", path.display())).source(e))?;
    if begun.format != 1 {
        return Err(Error::refused(format!("{} was written by a newer Walden", path.display())));
    }
    let skipped = lines.filter_map(|line| line.parse().ok()).collect();
    Ok(Some(Record { begun, incarnation, skipped, path }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_line_is_nothing_and_the_next_name_stands_by_itself() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("7-1");
        let suspended = Suspended {
            id: "a".into(),
            reason: None,
            who: "x".into(),
            host: "h".into(),
            suspended: "2026-11-21T10:00:00Z".parse().unwrap(),
            resumed: None,
        };
        let begun = Begun { format: 1, suspended, repository: "file:///r".into(), pgdata: "/d".into(), from: None };
        fs::write(&path, format!("{}\n000000010000000000000001\n0000000100", serde_json::to_string(&begun).unwrap()))
            .unwrap();
        let incarnation: Incarnation = "7-1".parse().unwrap();
        let record = || read(path.clone(), incarnation).unwrap().unwrap();
        assert_eq!(record().skipped.len(), 1);
        append(&record(), "000000010000000000000002".parse().unwrap()).unwrap();
        append(&record(), "000000010000000000000002".parse().unwrap()).unwrap();
        let names: Vec<String> = record().segments().map(|name| name.to_string()).collect();
        assert_eq!(names, ["000000010000000000000001", "000000010000000000000002"]);
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 4);
        fs::write(&path, "{").unwrap();
        assert!(read(path.clone(), incarnation).is_err());
        assert_eq!(read(folder.path().join("none"), incarnation).unwrap(), None);
    }
}
