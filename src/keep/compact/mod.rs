//! Compaction: parts of which only a little is living are written anew without the rest.
//!
//! A backup that goes leaves of its parts what younger backups need: a file here and there that has not changed since.
//! Such members are copied into parts of a folder of their own, frame by frame as they are where a whole frame is living,
//! and each backup that points at them gets a new manifest and then a new document. The old parts are left to the next
//! expiry, because nobody needs them any more. The database is not asked.
//!
//! To everybody else a compaction is an attempt at a backup that will never be one. Its intent, put before anything is
//! looked at for good, names the folders whose parts it reads, and which documents it is about to write. Whoever takes it
//! for dead writes these himself, as they stand: then it finds the names taken. Killed at any instant it leaves every
//! backup as it was, or as it is to be.

mod copy;
mod living;
mod rewrite;
mod select;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::Serialize;

pub use self::select::Sparse;
use self::{
    copy::{Copying, Moves},
    living::Living,
};
use crate::{
    clock::{Clock, Random},
    error::{Error, Kind, Result},
    interrupt::Interrupt,
    pace::Throttle,
    progress::Progress,
    repository::{BackupDocument, BackupId, FORMAT, Incarnation, IntentDocument, Part, System, join, lease::Lease},
};

/// How it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compacting {
    /// Parts of whose content less than so many per cent is living are written anew.
    pub below: u8,
    /// About so many bytes of the repository are copied at the most.
    pub limit: u64,
    /// At most so many bytes a second.
    pub rate_limit: Option<u64>,
    /// zstd's level for what is not taken over as it is.
    pub level: i32,
}

/// Those who watch it, and tell it the time.
#[derive(Debug)]
pub struct Around {
    /// The time of day.
    pub clock: Arc<dyn Clock>,
    /// Random names.
    pub random: Arc<Random>,
    /// Who watches.
    pub progress: Arc<dyn Progress>,
    /// Who may ask to stop.
    pub interrupt: Interrupt,
}

/// What is to be written anew in one system.
#[derive(Clone, Debug, Serialize)]
pub struct CompactionPlan {
    /// The system.
    pub system: Incarnation,
    /// The parts, those with the least in them first.
    pub parts: Vec<Sparse>,
    /// How many more there are, for which the limit is too low.
    pub later: u64,
}

/// What came of it in one system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Compacted {
    /// Where the new parts lie.
    pub folder: Option<BackupId>,
    /// How many parts were written anew.
    pub parts: u64,
    /// The bytes of their objects: they come free with the next expiry.
    pub old_bytes: u64,
    /// The bytes of the new ones.
    pub new_bytes: u64,
    /// The backups that point at the new ones.
    pub backups: Vec<BackupId>,
    /// Backups that went meanwhile.
    pub gone: Vec<BackupId>,
}

/// Looks which parts are mostly dead, once these backups are gone. Reads the manifests of all others, and changes nothing.
/// Refused where they are encrypted and cannot be opened here.
pub async fn plan_compaction(system: &System, how: &Compacting, gone: &[BackupId]) -> Result<CompactionPlan> {
    let mut backups = system.backups().await?;
    backups.retain(|backup| !gone.contains(&backup.id));
    let references = system.references(&backups).await.map_err(|error| match error.kind() {
        Kind::Refused => error
            .context("compaction reads manifests and parts, which this host cannot open")
            .hint("run walden compact on a host that holds the identity; walden expire needs none"),
        _ => error,
    })?;
    let (parts, later) = select::select(&references, how);
    Ok(CompactionPlan { system: system.folder.incarnation, parts, later })
}

/// Carries a plan out.
pub async fn carry_out_compaction(
    system: &System,
    plan: &CompactionPlan,
    how: &Compacting,
    around: &Around,
) -> Result<Compacted> {
    if plan.parts.is_empty() {
        return Ok(Compacted::default());
    }
    let mut lease = Lease::take(system, LEASE, around.clock.clone(), &around.random).await?;
    let done = {
        let work = compact(system, plan, how, around);
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => break done,
                () = tokio::time::sleep(Lease::interval()) => lease.renew().await?,
            }
        }
    };
    around.progress.finish();
    if let Err(error) = lease.release().await {
        tracing::debug!(%error, "the lease of this compaction was not given back");
    }
    done
}

/// The kind of lease that a compaction holds.
pub const LEASE: &str = "compaction";

async fn compact(system: &System, plan: &CompactionPlan, how: &Compacting, around: &Around) -> Result<Compacted> {
    around.progress.start("reading manifests", None);
    let backups = system.backups().await?;
    let living = Living::read(system, &backups, &plan.parts).await?;
    let Some(newest) = backups.last().filter(|_| !living.backups.is_empty()) else {
        return Ok(Compacted::default());
    };
    let concerned: Vec<&BackupDocument> = backups.iter().filter(|b| living.backups.contains(&b.id)).collect();
    let mut publishes = BTreeMap::new();
    for backup in &concerned {
        publishes.insert(backup.id, system.newest_number(backup.id).await? + 1);
    }
    let id = new_id(system, around).await?;
    let intent = IntentDocument {
        format: FORMAT,
        id,
        timeline: newest.timeline,
        begun: around.clock.now(),
        block_size: system.document.block_size,
        origin: None,
        references: living.folders(),
        publishes: publishes.clone(),
    };
    system.intend(&intent, 1).await?;
    prove_free(system, &living, &publishes).await?;
    let (parts, moves) = copy(system, id, living, how, around).await?;
    let mut done = Compacted {
        folder: Some(id),
        parts: plan.parts.len() as u64,
        old_bytes: plan.parts.iter().map(|part| part.length).sum(),
        new_bytes: parts.iter().map(|part| part.length).sum(),
        ..Compacted::default()
    };
    around.progress.start("writing manifests", None);
    for backup in concerned {
        around.interrupt.check()?;
        let number = publishes[&backup.id];
        match again(system, backup, number, &parts, &moves, how.level).await? {
            true => done.backups.push(backup.id),
            false => done.gone.push(backup.id),
        }
    }
    // It will never be a backup, and nothing more will come.
    system.give_up(id, around.clock.now()).await?;
    Ok(done)
}

/// Writes a backup's manifest and document anew. False when it is gone.
async fn again(
    system: &System,
    backup: &BackupDocument,
    number: u32,
    parts: &[Part],
    moves: &Moves,
    level: i32,
) -> Result<bool> {
    let newest = system.newest_number(backup.id).await?;
    let stored = if newest == 0 { None } else { system.document_of(backup.id, newest).await? };
    match stored {
        Some(stored) => {
            rewrite::publish(system, &rewrite::manifest(system, &stored, parts, moves, level).await?, number).await
        }
        None => Ok(false),
    }
}

/// The id of this second; when a backup has it already, of the next.
async fn new_id(system: &System, around: &Around) -> Result<BackupId> {
    loop {
        let id = BackupId::at(around.clock.now());
        if system.store.list(&system.folder.backup(id), None, 1).await?.is_empty() {
            return Ok(id);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// That no expiry removes what is about to be read: one that begins after the intent sees that.
async fn prove_free(system: &System, living: &Living, publishes: &BTreeMap<BackupId, u32>) -> Result<()> {
    let condemned = system.condemned().await?.1;
    let goes = publishes.keys().any(|id| condemned.backups.contains(id))
        || living.parts.keys().any(|name| condemned.has_part(*name));
    let there = system.parts_there(living.folders().into_iter()).await?;
    let is_gone = |(name, source): (_, &living::Source)| there.get(name) != Some(&source.part.length);
    if goes || living.parts.iter().any(is_gone) {
        return Err(Error::refused("an expiry removes some of what was to be copied; nothing was changed")
            .hint("try again when it is over"));
    }
    Ok(())
}

async fn copy(
    system: &System,
    id: BackupId,
    living: Living,
    how: &Compacting,
    around: &Around,
) -> Result<(Vec<Part>, Moves)> {
    around.progress.start("copying what is living", Some(living.bytes()));
    let copying = Copying {
        system: system.clone(),
        id,
        level: how.level,
        throttle: Throttle::new(how.rate_limit),
        interrupt: around.interrupt.clone(),
        progress: around.progress.clone(),
        runtime: tokio::runtime::Handle::current(),
    };
    join(tokio::task::spawn_blocking(move || copying.all(living)).await)?
}
