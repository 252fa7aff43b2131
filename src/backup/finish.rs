//! How every backup begins and ends, whichever way its bytes come: its id, the wait for the WAL that makes it
//! consistent, the manifest, and the document that makes it exist.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use tokio::sync::Mutex;

use super::{
    ancestor::Ancestor,
    catalogue,
    request::{BackupRequest, Surroundings},
    workers::Haul,
};
use crate::{
    error::{Error, Result},
    postgres::{ControlFile, Lsn, SegmentName, backup_label::BackupLabel, sql::Session},
    repository::{
        BackupDocument, BackupId, Directory, FORMAT, Manifest, Origin, PartSummary, System, Tablespace, lease::Lease,
    },
};

/// A backup whose bytes are in the repository, and what the server said about it.
#[derive(Debug)]
pub struct Taken {
    /// Its id.
    pub id: BackupId,
    /// The control file that was stored.
    pub control: ControlFile,
    /// `server_version_num`.
    pub version_number: u32,
    /// The `backup_label` that was stored.
    pub label: BackupLabel,
    /// WAL up to there makes it consistent.
    pub stop: Lsn,
    /// When it was begun.
    pub started: DateTime<Utc>,
    /// When the server ended it.
    pub stopped: DateTime<Utc>,
    /// Files, parts and bad pages.
    pub haul: Haul,
    /// The directories below the data directory, parents before children.
    pub directories: Vec<Directory>,
    /// The tablespaces outside the data directory.
    pub tablespaces: Vec<Tablespace>,
    /// The names of its databases and relations.
    pub catalogue: catalogue::Taken,
    /// Where the files were read, when that was here.
    pub origin: Option<Origin>,
    /// The backup whose layers the files may name.
    pub ancestor: Option<Arc<Ancestor>>,
}

/// The id of this second; when a backup has it already, of the next.
pub async fn new_id(system: &System, around: &Surroundings) -> Result<BackupId> {
    loop {
        let id = BackupId::at(around.clock.now());
        if system.store.list(&system.folder.backup(id), None, 1).await?.is_empty() {
            return Ok(id);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Does the work while the lease of the cluster's backup is held, and kept.
pub async fn with_lease<T>(system: &System, around: &Surroundings, work: impl Future<Output = Result<T>>) -> Result<T> {
    let lease = Lease::take(system, "backup", around.clock.clone(), &around.random).await?;
    let lease = Arc::new(Mutex::new(lease));
    let done = tokio::select! {
        done = work => done,
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

async fn renew(lease: Arc<Mutex<Lease>>) -> Error {
    loop {
        tokio::time::sleep(Lease::interval()).await;
        if let Err(error) = lease.lock().await.renew().await {
            return error;
        }
    }
}

/// Waits for the archive, and makes the backup exist.
pub async fn finish(
    system: &System,
    request: &BackupRequest,
    around: &Surroundings,
    mut taken: Taken,
) -> Result<BackupDocument> {
    let (timeline, size) = (taken.label.timeline, taken.control.segment_size);
    let first = SegmentName::holding(timeline, taken.label.start, size);
    let last = SegmentName::holding(timeline, Lsn(taken.stop.0 - 1), size);
    Archive { system, request, around, first, last }.wait(&taken.control).await?;
    let manifest = manifest(system, &mut taken);
    let (content, files) = (manifest.files.iter().map(|f| f.size).sum(), manifest.files.len() as u64);
    let tablespaces = manifest.tablespaces.clone();
    let references: BTreeSet<_> = manifest.parts.iter().map(|p| p.backup).filter(|b| *b != taken.id).collect();
    let (manifest_blake3, length) = system.put_manifest(manifest, 1, request.level).await?;
    let Taken { control, haul, catalogue, .. } = taken;
    let mut bad_pages = haul.bad;
    bad_pages.sort_by(|a, b| (&a.path, a.block).cmp(&(&b.path, b.block)));
    let document = BackupDocument {
        format: FORMAT,
        id: taken.id,
        label: request.label.clone(),
        cluster: system.folder.cluster.clone(),
        incarnation: system.folder.incarnation,
        postgres: control.version,
        server_version_num: taken.version_number,
        catalog_version: control.catalog_version,
        timeline,
        start_lsn: taken.label.start,
        checkpoint_lsn: taken.label.checkpoint,
        stop_lsn: taken.stop,
        started: taken.started,
        stopped: taken.stopped,
        first_segment: first,
        last_segment: last,
        size: content,
        files,
        stored: haul.parts.iter().map(|p| p.length).sum::<u64>() + length + catalogue.length,
        parts: haul.parts.iter().map(|p| PartSummary { number: p.number, length: p.length }).collect(),
        references: references.into_iter().collect(),
        manifest: 1,
        manifest_blake3,
        catalogue: catalogue.number,
        data_checksums: control.has_checksums(),
        bad_pages,
        tablespaces,
        required: control.required,
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        walden: env!("CARGO_PKG_VERSION").to_owned(),
    };
    system.publish(&document, 1).await?;
    roll_up(system, around).await;
    around.progress.finish();
    Ok(document)
}

/// Rolls up what has come to an end since the last backup. The backup exists by now, and needs none of it.
async fn roll_up(system: &System, around: &Surroundings) {
    /// A terabyte of WAL.
    const MOST: usize = 256;
    match system.roll_up(MOST, &*around.progress, &around.interrupt).await {
        Ok(rolled) => {
            for (name, why) in rolled.damaged {
                tracing::warn!("{name} is in no roll-up: {why}");
            }
        }
        Err(error) => {
            tracing::warn!(
                "the summaries of WAL were not rolled up, which makes plans slower: {error}; walden wal summarize does it"
            );
        }
    }
}

fn manifest(system: &System, taken: &mut Taken) -> Manifest {
    taken.haul.files.sort_by(|a, b| a.path.cmp(&b.path));
    taken.haul.parts.sort_by_key(|p| p.number);
    let mut parts = taken.ancestor.as_ref().map_or_else(Vec::new, |a| a.parts_of(taken.haul.files.iter()));
    parts.extend(taken.haul.parts.iter().cloned());
    Manifest {
        format: FORMAT,
        backup: taken.id,
        incarnation: system.folder.incarnation,
        block_size: taken.control.block_size,
        origin: taken.origin.take(),
        tablespaces: std::mem::take(&mut taken.tablespaces),
        directories: std::mem::take(&mut taken.directories),
        parts,
        files: std::mem::take(&mut taken.haul.files),
    }
}

/// The segments that a backup is of no use without.
struct Archive<'a> {
    system: &'a System,
    request: &'a BackupRequest,
    around: &'a Surroundings,
    first: SegmentName,
    last: SegmentName,
}

impl Archive<'_> {
    /// Waits until all of them are there.
    async fn wait(&self, control: &ControlFile) -> Result<()> {
        let (size, timeline) = (control.segment_size, self.first.timeline);
        let (from, to) = (self.first.number(size)?, self.last.number(size)?);
        self.around.progress.start("waiting for the archive", None);
        let begun = Instant::now();
        loop {
            self.around.interrupt.check()?;
            let there = self.system.segments(timeline, Some(self.first), Some(self.last)).await?;
            if there.len() as u64 == to - from + 1 {
                return Ok(());
            }
            let there: HashSet<_> = there.into_iter().map(|(name, _)| name).collect();
            let missing = (from..=to)
                .filter_map(|n| SegmentName::from_number(timeline, n, size))
                .find(|name| !there.contains(name));
            let missing = missing.map_or_else(String::new, |n| n.to_string());
            self.around.progress.message(&missing);
            if begun.elapsed() > self.request.archive_timeout {
                return Err(Error::failed(format!(
                    "segment {missing} did not reach the archive within {}; without it the backup is of no use and was not recorded{}",
                    crate::human::duration(self.request.archive_timeout),
                    self.complaint().await,
                ))
                .hint("the server's log says why archive_command fails; walden check tries it"));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// What the server itself says about its archiving, where it says something.
    async fn complaint(&self) -> String {
        let Ok(session) = Session::open(&self.request.conninfo).await else { return String::new() };
        match session.archiver().await {
            Ok(status) => match status.last_failed {
                Some((file, at)) => format!("; archive_command last failed on {file} at {}", crate::human::time(at)),
                None => String::new(),
            },
            Err(_) => String::new(),
        }
    }
}
