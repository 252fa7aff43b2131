//! The restore itself, from the mark to the last rename.

use std::{
    collections::HashSet,
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{
    clear,
    extra::Written,
    fetch::Source,
    files::Job,
    mark::{Mark, Phase},
    place::Place,
    prepare::{Before, Restore, is_vacant},
    rescue::Rescued,
    settle::Settle,
};
use crate::{
    error::{Error, Result},
    plan::Watch,
    postgres::{
        backup_label::{BACKUP_LABEL, TABLESPACE_MAP},
        control::CONTROL_FILE,
        settings::AUTO_CONF,
    },
    repository::{FORMAT, join},
};

/// zstd's level for WAL that is pushed before it is lost.
const RESCUE_LEVEL: i32 = 1;

/// A copy that is ready to be started.
#[derive(Clone, Debug, Serialize)]
pub struct Restored {
    /// The data directory.
    pub pgdata: PathBuf,
    /// How many files it has.
    pub files: usize,
    /// Their size in bytes.
    pub bytes: u64,
    /// How many of them were there already, and right.
    pub kept: usize,
    /// Whether this went on with a restore that was killed.
    pub resumed: bool,
    /// WAL files of the old directory that were pushed.
    pub wal_pushed: usize,
    /// WAL files of the old directory that were moved aside.
    pub wal_aside: usize,
    /// Where to, if any were.
    pub aside: Option<PathBuf>,
    /// What became of the files that lay outside the data directory; `None` where there were none.
    pub extra: Option<Written>,
    /// How long it took.
    #[serde(serialize_with = "seconds")]
    pub took: Duration,
}

fn seconds<S: serde::Serializer>(took: &Duration, to: S) -> std::result::Result<S::Ok, S::Error> {
    to.serialize_f64(took.as_secs_f64())
}

/// Files that are not written as the backup has them, but made at the end.
fn is_special(path: &Path) -> bool {
    [CONTROL_FILE, BACKUP_LABEL, TABLESPACE_MAP, AUTO_CONF].iter().any(|special| path == Path::new(special))
}

impl Restore {
    /// Makes the copy. When it fails or is killed the directory stays marked, and the same request goes on with it.
    pub async fn run(self, watch: &Watch) -> Result<Restored> {
        let since = Instant::now();
        let pgdata = self.request.pgdata.clone();
        let mark = self.mark(if self.rescue.is_some() { Phase::Clearing } else { Phase::Writing });
        let _lock = self.lock()?;
        mark.write()?;
        let rescued = self.clear().await?;
        let mark = self.mark(Phase::Writing);
        if self.rescue.is_some() {
            mark.write()?;
        }
        let place = Arc::new(self.place()?);
        let job = Arc::new(Job {
            source: Source::new(self.system.clone(), self.manifest.clone(), self.request.rate_limit),
            manifest: self.manifest.clone(),
            place: place.clone(),
            parallel: self.request.parallel,
            progress: watch.progress.clone(),
            interrupt: watch.interrupt.clone(),
        });
        let kept = self.files(&job).await?;
        let extra = match &self.extra {
            Some(extra) => extra.write(&self.system).await?,
            None => None,
        };
        let settle = Settle::fetch(&self, &job).await?;
        let made = {
            let place = place.clone();
            tokio::task::spawn_blocking(move || settle.carry_out(&place))
        };
        join(made.await)??;
        mark.remove()?;
        watch.progress.finish();
        Ok(Restored {
            pgdata,
            files: self.manifest.files.len(),
            bytes: self.manifest.files.iter().map(|f| f.size).sum(),
            kept,
            resumed: self.before == Before::Unfinished,
            wal_pushed: rescued.pushed,
            wal_aside: rescued.aside,
            aside: self.rescue.filter(|_| rescued.aside > 0).map(|r| r.aside),
            extra,
            took: since.elapsed(),
        })
    }

    /// Locks the directory against another restore, for as long as what is given back lives.
    fn lock(&self) -> Result<File> {
        let pgdata = &self.request.pgdata;
        fs::create_dir_all(pgdata).map_err(|e| Error::io("create", pgdata, e))?;
        let lock = File::open(pgdata).map_err(|e| Error::io("open", pgdata, e))?;
        let locked = rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive);
        // Some network file systems know no locks.
        if locked == Err(rustix::io::Errno::WOULDBLOCK) {
            return Err(Error::refused(format!("another restore into {} is under way", pgdata.display()))
                .hint("wait for it, or end it"));
        }
        if self.before == Before::Nothing && !is_vacant(pgdata)? {
            return Err(Error::refused(format!("{} is not empty any more", pgdata.display()))
                .hint("somebody writes there; restore elsewhere"));
        }
        Ok(lock)
    }

    fn mark(&self, phase: Phase) -> Mark {
        Mark { format: FORMAT, begun: self.begun, phase, plan: self.plan.clone(), request: self.request.clone() }
    }

    /// Brings old WAL to safety, then makes the directory impossible to start, then removes what must not stay.
    async fn clear(&self) -> Result<Rescued> {
        let pgdata = &self.request.pgdata;
        let mut rescued = Rescued::default();
        if self.before == Before::Nothing {
            return Ok(rescued);
        }
        if let Some(rescue) = &self.rescue {
            rescued = rescue.carry_out(pgdata, &self.system, RESCUE_LEVEL).await?;
        }
        let (pgdata, before) = (pgdata.clone(), self.before);
        let manifest = self.manifest.clone();
        let others = self.links();
        join(
            tokio::task::spawn_blocking(move || {
                clear::control(&pgdata)?;
                if before == Before::Removed {
                    if let Some((_, waldir)) = others.iter().find(|(path, _)| path == Path::new("pg_wal")) {
                        clear::contents(waldir)?;
                    }
                    return clear::contents(&pgdata);
                }
                clear::strangers(&pgdata, &manifest, &others)
            })
            .await,
        )??;
        Ok(rescued)
    }

    /// The links of the copy: path below the data directory, and where it points.
    pub(super) fn links(&self) -> Vec<(PathBuf, PathBuf)> {
        let tablespaces = self.tablespaces.iter();
        let wal = self.waldir.iter().map(|path| (PathBuf::from("pg_wal"), path.clone()));
        tablespaces.map(|(oid, path)| (Path::new("pg_tblspc").join(oid.to_string()), path.clone())).chain(wal).collect()
    }

    /// Makes the directories.
    fn place(&self) -> Result<Place> {
        let mode_of = |path: &str| self.manifest.directories.iter().find(|d| d.path == Path::new(path)).map(|d| d.mode);
        // initdb gives all directories the same permissions.
        let mode = mode_of("base").unwrap_or(0o700);
        let place = Place::open(&self.request.pgdata, mode, self.waldir.as_deref(), &self.tablespaces, &self.owner)?;
        for special in ["global", "pg_wal", "pg_tblspc"] {
            place.directory(Path::new(special), mode_of(special).unwrap_or(mode))?;
        }
        for directory in &self.manifest.directories {
            place.directory(&directory.path, directory.mode)?;
        }
        for tablespace in self.plan.created_tablespaces.iter().filter(|t| !t.path.is_empty()) {
            Place::open(Path::new(&tablespace.path), mode, None, &[], &self.owner)?;
        }
        Ok(place)
    }

    /// Writes the files and makes them durable; gives back how many were right already.
    async fn files(&self, job: &Arc<Job>) -> Result<usize> {
        let all: Vec<usize> =
            (0..self.manifest.files.len()).filter(|i| !is_special(self.manifest.files.path(*i))).collect();
        let size = |files: &[usize]| files.iter().map(|i| self.manifest.files.at(*i).size).sum();
        let mut kept = HashSet::new();
        if matches!(self.before, Before::Unfinished | Before::Compared) {
            job.progress.start("comparing", Some(size(&all)));
            kept = job.right_files(|path| !is_special(path)).await?;
        }
        let wanted: Vec<usize> = all.iter().copied().filter(|i| !kept.contains(i)).collect();
        let mut mended = HashSet::new();
        if self.before != Before::Nothing {
            for index in &wanted {
                if job.can_mend(*index)? {
                    mended.insert(*index);
                } else {
                    job.place.remove(self.manifest.files.path(*index))?;
                }
            }
        }
        job.progress.start("restoring", Some(size(&wanted)));
        job.write(&wanted, mended).await?;
        job.progress.start("making it durable", Some(size(&all)));
        job.sync(all).await?;
        let (place, manifest) = (job.place.clone(), self.manifest.clone());
        let synced = tokio::task::spawn_blocking(move || {
            manifest.directories.iter().try_for_each(|d| place.sync(&d.path))?;
            place.sync_roots()
        });
        join(synced.await)??;
        Ok(kept.len())
    }
}
