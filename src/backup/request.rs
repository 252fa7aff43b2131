//! What is asked for when a backup is to be taken, what comes of it, and what the server must be like.

use std::{path::PathBuf, sync::Arc, time::Duration};

use super::{local, remote};
use crate::{
    clock::{Clock, Random},
    error::{Error, Result},
    interrupt::Interrupt,
    postgres::{Conninfo, control::WalLevel, sql::ArchiveMode},
    progress::Progress,
    repository::{self, BackupDocument, BackupId, ClusterName, Copies, System},
    store::Store,
};

/// How a backup is to be taken.
#[derive(Clone, Debug)]
pub struct BackupRequest {
    /// What the user calls it.
    pub label: Option<String>,
    /// Where the bytes come from.
    pub way: Way,
    /// How to reach the server.
    pub conninfo: Conninfo,
    /// How to reach its primary when it is a standby: at the end of the backup the primary is to end its segment.
    pub primary: Option<Conninfo>,
    /// The incarnation as the configuration has it.
    pub incarnation: u32,
    /// How many files are read at a time at most, the local way.
    pub parallel: usize,
    /// zstd's level.
    pub level: i32,
    /// The most bytes to read in a second.
    pub rate_limit: Option<u64>,
    /// Whether the server's WAL summaries may spare the reading of unchanged blocks, the local way.
    pub wal_summaries: bool,
    /// Paths below the data directory to leave out.
    pub exclude: Vec<PathBuf>,
    /// Files, folders and patterns outside the data directory to save as well, all absolute.
    pub files: Vec<String>,
    /// How long to wait for the archive at the end.
    pub archive_timeout: Duration,
    /// The state folder, where what the next backup compares with is kept: for a repository that this host may not be
    /// able to read.
    pub keep_copies: Option<PathBuf>,
}

/// Where the bytes of a backup come from.
#[derive(Clone, Debug)]
pub enum Way {
    /// From the data directory, which lies on this host.
    Local(PathBuf),
    /// From the server, over a replication connection.
    Remote,
}

impl BackupRequest {
    /// What `backup_label` will say.
    pub(super) fn label_for(&self, id: BackupId) -> String {
        format!("walden {}", self.label.as_deref().unwrap_or(&id.to_string()))
    }
}

impl BackupRequest {
    /// The system, with what this host has kept of its newest backup and will keep of this one.
    pub(super) async fn with_copies(&self, system: System) -> Result<System> {
        let Some(state_dir) = &self.keep_copies else { return Ok(system) };
        let repository = repository::open(&*system.store).await?;
        let copies = Copies::open(state_dir, &repository, &system.folder)
            .inspect_err(|e| tracing::warn!("nothing is kept that the next backup could be compared with: {e}"));
        Ok(System { copies: copies.ok().map(Arc::new), ..system })
    }
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
    /// What else is worth telling, in words.
    pub notes: Vec<String>,
}

/// Takes a backup.
pub async fn backup(
    store: Arc<dyn Store>,
    cluster: &ClusterName,
    request: &BackupRequest,
    around: &Surroundings,
) -> Result<BackupOutcome> {
    match &request.way {
        Way::Local(pgdata) => local::backup(store, cluster, request, pgdata, around).await,
        Way::Remote => remote::backup(store, cluster, request, around).await,
    }
}

/// What must hold before anything is begun: a backup without its WAL is none. That of a server in recovery is archived
/// by another.
pub(super) fn check_archiving(in_recovery: bool, wal_level: WalLevel, archive_mode: ArchiveMode) -> Result<()> {
    if in_recovery {
        return Ok(());
    }
    if wal_level == WalLevel::Minimal {
        return Err(Error::invalid("wal_level is minimal: what is written cannot be archived")
            .hint("set wal_level = replica and restart the server"));
    }
    if archive_mode == ArchiveMode::Off {
        return Err(Error::invalid("archive_mode is off: the backup could never be recovered")
            .hint("walden init prints the lines for postgresql.conf; a restart is needed"));
    }
    Ok(())
}
