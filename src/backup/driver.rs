//! The flow of a backup, from the connection to the document that makes it exist.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU32},
    time::Duration,
};

use tokio::runtime::Handle;

use super::{
    catalogue,
    finish::{Taken, finish, new_id},
    part::Attributes,
    source::{self, Pages},
    throttle::Throttle,
    workers::{self, Haul, Job},
};
use crate::{
    clock::{Clock, Random},
    error::{Error, Result},
    interrupt::Interrupt,
    postgres::{
        Conninfo, ControlFile, Lsn,
        backup_label::BackupLabel,
        control::{CONTROL_FILE, WalLevel},
        datadir::{self, Rules, Walk},
        sql::{ArchiveMode, BackupStop, ServerFacts, Session},
    },
    progress::Progress,
    repository::{
        BackupDocument, BackupId, ClusterName, Directory, Incarnation, System, Tablespace, join, lease::Lease,
    },
    store::Store,
};

/// How a backup is to be taken.
#[derive(Clone, Debug)]
pub struct BackupRequest {
    /// What the user calls it.
    pub label: Option<String>,
    /// The data directory, on this host.
    pub pgdata: PathBuf,
    /// How to reach the server that runs in it.
    pub conninfo: Conninfo,
    /// The incarnation as the configuration has it.
    pub incarnation: u32,
    /// How many files are read at a time.
    pub parallel: usize,
    /// zstd's level.
    pub level: i32,
    /// The most bytes to read in a second.
    pub rate_limit: Option<u64>,
    /// Paths below the data directory to leave out.
    pub exclude: Vec<PathBuf>,
    /// How long to wait for the archive at the end.
    pub archive_timeout: Duration,
}

/// What goes with the work.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The time of day.
    pub clock: Arc<dyn Clock>,
    /// Random names.
    pub random: Arc<Random>,
    /// Who watches.
    pub progress: Arc<dyn Progress>,
    /// Who may ask to stop.
    pub interrupt: Interrupt,
}

/// A backup that exists.
#[derive(Debug)]
pub struct BackupOutcome {
    /// Its document.
    pub document: BackupDocument,
    /// What a base backup cannot hold, in words.
    pub skipped: Vec<String>,
    /// What its catalogue could not tell, in words.
    pub unnamed: Vec<String>,
}

/// Takes a backup.
pub async fn backup(
    store: Arc<dyn Store>,
    cluster: &ClusterName,
    request: &BackupRequest,
    around: &Surroundings,
) -> Result<BackupOutcome> {
    let control = ControlFile::read(&request.pgdata)?;
    let session = Session::open(&request.conninfo).await?;
    let facts = session.server_facts().await?;
    check_server(&facts, &control, request)?;
    let incarnation = Incarnation { system: control.system, number: request.incarnation };
    let system = System::open(store, cluster, incarnation).await?;
    let lease = Lease::take(&system, "backup", around.clock.clone(), &around.random).await?;
    let lease = Arc::new(tokio::sync::Mutex::new(lease));
    let driver = Driver { system, request, around, control, facts };
    let done = tokio::select! {
        done = driver.run(session) => done,
        lost = renew(lease.clone()) => Err(lost),
    };
    // A lease that could not be given back ends by itself.
    if let Ok(lease) = Arc::try_unwrap(lease)
        && let Err(error) = lease.into_inner().release().await
    {
        tracing::warn!(%error, "the lease of this backup was not given back");
    }
    done
}

async fn renew(lease: Arc<tokio::sync::Mutex<Lease>>) -> Error {
    loop {
        tokio::time::sleep(Lease::interval()).await;
        if let Err(error) = lease.lock().await.renew().await {
            return error;
        }
    }
}

/// What must hold before anything is begun.
fn check_server(facts: &ServerFacts, control: &ControlFile, request: &BackupRequest) -> Result<()> {
    if facts.system != control.system {
        return Err(Error::invalid(format!(
            "the server belongs to system {}, but {} to system {}",
            facts.system,
            request.pgdata.display(),
            control.system
        ))
        .hint("correct connection or pgdata of the cluster in walden.toml"));
    }
    if facts.in_recovery {
        return Err(
            Error::invalid("the server is a standby, or still in recovery").hint("take the backup on the primary")
        );
    }
    if facts.wal_level == WalLevel::Minimal {
        return Err(Error::invalid("wal_level is minimal: what is written cannot be archived")
            .hint("set wal_level = replica and restart the server"));
    }
    if facts.archive_mode == ArchiveMode::Off {
        return Err(Error::invalid("archive_mode is off: the backup could never be recovered")
            .hint("walden init prints the lines for postgresql.conf; a restart is needed"));
    }
    Ok(())
}

struct Driver<'a> {
    system: System,
    request: &'a BackupRequest,
    around: &'a Surroundings,
    control: ControlFile,
    facts: ServerFacts,
}

impl Driver<'_> {
    async fn run(&self, session: Session) -> Result<BackupOutcome> {
        let id = new_id(&self.system, self.around).await?;
        let label = format!("walden {}", self.request.label.as_deref().unwrap_or(&id.to_string()));
        self.around.progress.start("waiting for the checkpoint", None);
        let started = self.around.clock.now();
        let start = session.backup_start(&label, true).await?;
        let walk = self.walk().await?;
        self.around.progress.start("backing up", Some(walk.size()));
        let job = Arc::new(self.job(id, start, &walk));
        let level = self.request.level;
        let (haul, mut catalogue) = tokio::join!(
            workers::run(job.clone(), self.request.parallel),
            catalogue::take(&self.system, &self.request.conninfo, id, started, level),
        );
        let (mut haul, unnamed) = (haul?, std::mem::take(&mut catalogue.missing));
        let (stop, last) = self.last_part(&job, session).await?;
        haul.files.extend(last.files);
        haul.parts.extend(last.parts);
        let taken = Taken {
            id,
            control: self.control.clone(),
            version_number: self.facts.version_number,
            label: BackupLabel::parse(&stop.label)?,
            stop: stop.stop,
            started,
            stopped: self.around.clock.now(),
            haul,
            directories: directories(&walk),
            tablespaces: tablespaces(&walk),
            catalogue,
        };
        let document = finish(&self.system, self.request, self.around, taken).await?;
        let skipped = walk.skipped.iter().map(|s| format!("{} {}", s.path.display(), s.why)).collect();
        Ok(BackupOutcome { document, skipped, unnamed })
    }

    async fn walk(&self) -> Result<Walk> {
        let mut rules = Rules::of(&self.control);
        if let Some(directory) = &self.facts.stats_temp_directory {
            rules = rules.statistics_directory(&self.request.pgdata, directory);
        }
        let (root, exclude) = (self.request.pgdata.clone(), self.request.exclude.clone());
        join(
            tokio::task::spawn_blocking(move || {
                let mut walk = datadir::walk(&root, &rules)?;
                walk.files.retain(|f| !exclude.iter().any(|e| f.path.starts_with(e)));
                walk.directories.retain(|d| !exclude.iter().any(|e| d.path.starts_with(e) && d.path != *e));
                Ok(walk)
            })
            .await,
        )?
    }

    fn job(&self, backup: BackupId, start: Lsn, walk: &Walk) -> Job {
        let files = walk.files.iter().filter(|f| !workers::is_control(f)).cloned().collect();
        Job {
            system: self.system.clone(),
            backup,
            root: self.request.pgdata.clone(),
            pages: self.control.has_checksums().then_some(Pages { size: self.control.block_size, first: 0, start }),
            relation_segment_blocks: self.control.relation_segment_blocks,
            level: self.request.level,
            throttle: Throttle::new(self.request.rate_limit),
            progress: self.around.progress.clone(),
            interrupt: self.around.interrupt.clone(),
            parts: AtomicU32::new(0),
            queue: workers::queue(files),
        }
    }

    /// The last part: the control file, read after everything else, and what `pg_backup_stop` gives.
    async fn last_part(&self, job: &Arc<Job>, session: Session) -> Result<(BackupStop, Haul)> {
        self.around.interrupt.check()?;
        let runtime = Handle::current();
        let (control_job, pgdata) = (job.clone(), self.request.pgdata.clone());
        let mut haul = Haul::default();
        let attributes = Attributes { mode: 0o600, mtime: self.around.clock.now() };
        let (part, control) = join(
            tokio::task::spawn_blocking(move || {
                let mut part = control_job.begin_part(&runtime)?;
                let (_, bytes) = ControlFile::read_with_bytes(&pgdata)?;
                let file = source::store_bytes(Path::new(CONTROL_FILE), &bytes, attributes, &mut part)?;
                Ok::<_, Error>((part, file))
            })
            .await,
        )??;
        haul.files.push(control);
        let stop = session.backup_stop().await?;
        let texts = [("backup_label", stop.label.clone()), ("tablespace_map", stop.tablespace_map.clone())];
        let (files, part) = join(
            tokio::task::spawn_blocking(move || {
                let mut part = part;
                let mut files = Vec::new();
                for (path, text) in texts.iter().filter(|(_, text)| !text.is_empty()) {
                    files.push(source::store_bytes(Path::new(path), text.as_bytes(), attributes, &mut part)?);
                }
                Ok::<_, Error>((files, part.finish()?))
            })
            .await,
        )??;
        haul.files.extend(files);
        haul.parts.push(part);
        Ok((stop, haul))
    }
}

/// The directories below the data directory.
fn directories(walk: &Walk) -> Vec<Directory> {
    let below = walk.directories.iter().filter(|d| !d.path.as_os_str().is_empty());
    below.map(|d| Directory { path: d.path.clone(), mode: d.mode }).collect()
}

/// The tablespaces outside the data directory.
fn tablespaces(walk: &Walk) -> Vec<Tablespace> {
    let outside = walk.tablespaces.iter().filter(|t| !t.in_place);
    outside.map(|t| Tablespace { oid: t.oid, location: t.location.to_string_lossy().into_owned() }).collect()
}
