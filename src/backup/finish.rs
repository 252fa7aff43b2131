//! How every backup begins and ends, whichever way its bytes come: its id, the wait for the WAL that makes it
//! consistent, the manifest, and the document that makes it exist.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use tokio::sync::Mutex;

use super::{
    ancestor::Ancestor,
    archived::Archived,
    catalogue, extra,
    request::{BackupRequest, Surroundings},
    workers::Haul,
};
use crate::{
    error::{Error, Kind, Result},
    postgres::{ControlFile, Lsn, SegmentName, TimelineHistory, TimelineId, backup_label::BackupLabel},
    repository::{
        AncestorLeft, BackupDocument, BackupId, Directory, Environment, FORMAT, Manifest, NeededOf, Origin,
        PartSummary, System, Tablespace, lease::Lease,
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
    /// Where the server says that it ends.
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
    /// Its files from outside the data directory.
    pub extra: extra::Taken,
    /// The history of the server's timeline, where it is known.
    pub history: Option<TimelineHistory>,
    /// How many bytes were read of the data directory, when that was here.
    pub read: Option<u64>,
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
    taken.stop = end(&taken)?;
    let (timeline, size, from_standby) = (taken.label.timeline, taken.control.segment_size, taken.label.from_standby());
    let first = SegmentName::holding(timeline, taken.label.start, size);
    let last = SegmentName::holding(timeline, Lsn(taken.stop.0 - 1), size);
    Archived { system, request, around, first, last, from_standby }.wait().await?;
    let manifest = manifest(system, &mut taken);
    let (content, files) = (manifest.files.iter().map(|f| f.size).sum(), manifest.files.len() as u64);
    let tablespaces = manifest.tablespaces.clone();
    let parts: Vec<_> = manifest.parts.iter().map(|p| (p.backup, p.number, p.length)).collect();
    let needed_parts = NeededOf::all(&manifest.parts);
    let references: BTreeSet<_> = manifest.parts.iter().map(|p| p.backup).filter(|b| *b != taken.id).collect();
    let (manifest_blake3, length) = system.put_manifest(manifest, 1, request.level).await?;
    let Taken { control, haul, catalogue, extra, .. } = taken;
    let environment = Environment { block_size: control.block_size, ..catalogue.environment };
    let mut bad_pages = haul.bad;
    bad_pages.sort_by(|a, b| (&a.path, a.block).cmp(&(&b.path, b.block)));
    let mut document = BackupDocument {
        format: FORMAT,
        id: taken.id,
        label: request.label.clone(),
        cluster: system.folder.cluster.clone(),
        incarnation: system.folder.incarnation,
        postgres: control.version,
        server_version_num: taken.version_number,
        catalog_version: control.catalog_version,
        timeline,
        from_standby,
        start_lsn: taken.label.start,
        checkpoint_lsn: taken.label.checkpoint,
        stop_lsn: taken.stop,
        started: taken.started,
        stopped: taken.stopped,
        first_segment: first,
        last_segment: last,
        size: content,
        files,
        read: taken.read,
        stored: haul.parts.iter().map(|p| p.length).sum::<u64>()
            + length
            + catalogue.length
            + extra.object.as_ref().map_or(0, |e| e.length),
        parts: haul.parts.iter().map(|p| PartSummary { number: p.number, length: p.length }).collect(),
        references: references.into_iter().collect(),
        needed_parts,
        ancestors: taken.history.and_then(|history| ancestors(history, timeline)),
        manifest: 1,
        manifest_blake3,
        catalogue: catalogue.number,
        catalogue_blake3: catalogue.blake3,
        about: None,
        extra: extra.object,
        extra_left_out: extra.left_out,
        environment: Some(environment),
        data_checksums: control.has_checksums(),
        bad_pages,
        tablespaces,
        required: control.required,
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        walden: env!("CARGO_PKG_VERSION").to_owned(),
    };
    prove_again(system, &document, &parts).await?;
    let told = document.clone();
    if system.store.encrypts() {
        system.put_about(&mut document, request.level).await?;
    }
    system.publish(&document, 1).await?;
    if let Some(copies) = &system.copies {
        copies.tidy(Some(&document), &[]);
    }
    roll_up(system, around).await;
    around.progress.finish();
    Ok(BackupDocument { about: document.about, ..told })
}

/// The ancestors of a backup's timeline, when that is the one whose history is known.
fn ancestors(history: TimelineHistory, timeline: TimelineId) -> Option<Vec<AncestorLeft>> {
    let left =
        history.ancestors.into_iter().map(|entry| AncestorLeft { timeline: entry.timeline, switch: entry.switch });
    (history.timeline == timeline).then(|| left.collect())
}

/// That no expiry has taken away, or is about to, what the backup needs: one that took this backup for dead, because it
/// had lost its lease. Should it do so right now, the document cannot be written any more: a tombstone is in its place.
async fn prove_again(system: &System, document: &BackupDocument, parts: &[(BackupId, u32, u64)]) -> Result<()> {
    let (first, last) = (document.first_segment, document.last_segment);
    let removed = |what: String| {
        Error::refused(format!("an expiry removes {what}, which this backup needs; it was not recorded"))
            .hint("take the backup again")
    };
    let (_, condemned) = system.condemned().await?;
    if condemned.touches(first, last).is_some() || system.horizons().await?.get(&first.timeline) > Some(&first) {
        return Err(removed(format!("WAL from {first} on")));
    }
    let size = system.document.segment_size;
    let found = system.segments(first.timeline, Some(first), Some(last)).await?.len() as u64;
    if found != last.number(size)? + 1 - first.number(size)? {
        return Err(removed(format!("WAL between {first} and {last}")));
    }
    let there = system.parts_there(parts.iter().map(|(backup, ..)| *backup)).await?;
    match parts.iter().find(|(backup, number, length)| there.get(&(*backup, *number)) != Some(length)) {
        Some((backup, number, _)) => Err(removed(format!("part {number} of backup {backup}"))),
        None => Ok(()),
    }
}

/// WAL up to there makes the backup consistent. On a standby it is what the stored control file asks for, because there
/// PostgreSQL writes no record of the end (`do_pg_backup_stop` in xlog.c, `InitWalRecovery` in xlogrecovery.c).
fn end(taken: &Taken) -> Result<Lsn> {
    let Taken { label, control, .. } = taken;
    if !label.from_standby() {
        return Ok(taken.stop);
    }
    match control.minimum_recovery_timeline {
        Some(timeline) if timeline != label.timeline => Err(Error::failed(format!(
            "the standby went over from timeline {} to timeline {timeline} while it was backed up",
            label.timeline
        ))
        .hint("take the backup again once the standby has replayed a checkpoint of the new timeline")),
        Some(_) if control.minimum_recovery > label.checkpoint => Ok(control.minimum_recovery),
        _ => Err(Error::failed(format!(
            "the standby has replayed nothing since the checkpoint at {} that its backup begins with",
            label.checkpoint
        ))
        .hint("take the backup again when it has")),
    }
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
        // It is encrypted, and not for this host: one with an identity does it.
        Err(error) if error.kind() == Kind::Refused => tracing::debug!(%error, "nothing is rolled up here"),
        Err(error) => {
            tracing::warn!(
                "the summaries of WAL were not rolled up, which makes plans slower: {error}; walden wal summarize does it"
            );
        }
    }
}

fn manifest(system: &System, taken: &mut Taken) -> Manifest {
    taken.haul.files.sort();
    taken.haul.parts.sort_by_key(|p| p.number);
    let mut parts = taken.ancestor.as_ref().map_or_else(Vec::new, |a| a.parts_of(&taken.haul.files));
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
