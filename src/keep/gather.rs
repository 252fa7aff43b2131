//! Reads what an expiry is planned from. Changes nothing.
//!
//! What cannot be read becomes a doubt, and a doubt keeps everything of its system; what does not answer is an error.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{
    compact,
    inventory::{Attempt, Backup, Beside, BesideKind, Folder, Holding, Inventory, Line},
};
use crate::{
    error::{Error, Kind, Result},
    postgres::{SegmentName, TimelineHistory, TimelineId, WalFile},
    repository::{
        BackupDocument, BackupId, BackupObject, RollUpName, Stored, System, hold::HoldDocument, lease::Lease, piece_of,
        segment_of, summaries::Need,
    },
    store::{Key, Listed},
    wal::Fact,
};

/// Listings that are asked for at a time.
const PARALLEL: usize = 32;
/// Manifests that are read at a time.
const MANIFESTS: usize = 8;
/// Names that are asked for at a time: the most that S3 gives.
const PAGE: usize = 1000;
/// So many segments at the end of a timeline are looked at for a time.
const LOOKED_AT: usize = 16;

/// What is known of a system, and the documents of its backups.
pub async fn gather(system: &System, now: DateTime<Utc>) -> Result<(Inventory, Vec<BackupDocument>)> {
    let condemned = system.condemned().await?;
    let backing_up = Lease::holder(system, "backup", now).await?.is_some();
    let compacting = Lease::holder(system, compact::LEASE, now).await?.is_some();
    let mut doubts = Vec::new();
    let mut folders = folders(system).await?;
    let documents = documents(system, &mut folders, &mut doubts).await?;
    let attempts = attempts(system, &folders, &condemned.1.backups, &mut doubts).await?;
    let damaged = system.damage_note().await?.1;
    let is_damaged = |id: &BackupId| damaged.objects.iter().any(|object| object.backups.contains(id));
    let backups: Vec<Backup> = documents
        .iter()
        .map(|document| Backup {
            bad: is_damaged(&document.id) || !document.bad_pages.is_empty(),
            ..Backup::of(document)
        })
        .filter(|backup| !condemned.1.backups.contains(&backup.id))
        .collect();
    let mut found = Inventory {
        incarnation: system.folder.incarnation,
        first_seen: system.document.first_seen,
        segment_size: system.document.segment_size,
        backups,
        lines: BTreeMap::new(),
        folders,
        attempts,
        pins: system.pins().await?.into_iter().map(|pin| pin.backup).collect(),
        holds: system.holds(now).await?.iter().map(holding).collect(),
        backing_up,
        compacting,
        condemned,
        needed: BTreeMap::new(),
        doubts,
    };
    lines(system, &mut found).await?;
    Ok((found, documents))
}

/// Reads those manifests of these backups that were not read yet, and says which parts they need.
pub async fn manifests(
    system: &System,
    found: &mut Inventory,
    documents: &[BackupDocument],
    wanted: &BTreeSet<BackupId>,
) -> Result<()> {
    let read = |document: &BackupDocument| {
        let document = document.clone();
        async move {
            let needed = match system.parts_by_folder(&document).await {
                Ok(needed) => Ok(needed),
                Err(error) => Err(doubt(error)?),
            };
            Ok::<_, Error>((document.id, needed))
        }
    };
    let is_wanted = |id: &BackupId| wanted.contains(id) && !found.needed.contains_key(id);
    let wanted = documents.iter().filter(|document| is_wanted(&document.id));
    let read: Vec<_> = stream::iter(wanted.map(read)).buffered(MANIFESTS).try_collect().await?;
    found.needed.extend(read);
    Ok(())
}

/// An error that says that something cannot be read, in words; any other stays one.
fn doubt(error: Error) -> Result<String> {
    match error.kind() {
        Kind::Damaged | Kind::NotFound | Kind::Refused => Ok(error.to_string()),
        _ => Err(error),
    }
}

/// Who holds what.
#[must_use]
pub fn holding(hold: &HoldDocument) -> Holding {
    let until = crate::human::time(hold.expires);
    let work = if hold.left { format!("what comes after a {}", hold.held.work) } else { hold.held.work.clone() };
    Holding {
        who: format!("{work} on {} (process {}, until {until})", hold.by.host, hold.by.pid),
        backups: hold.held.backups.iter().copied().collect(),
        wal: hold.held.wal.clone(),
    }
}

/// What lies in the folders of backups.
pub async fn folders(system: &System) -> Result<BTreeMap<BackupId, Folder>> {
    let names = system.store.folders(&system.folder.backups()).await?;
    let list = |id: BackupId| async move {
        let mut folder = Folder::default();
        pages(system, &system.folder.backup(id), |listed| match system.folder.object_of(id, &listed.key) {
            Some(BackupObject::Part(number)) => folder.parts.push((number, listed.length)),
            Some(object) => folder.objects.push((object, listed.length)),
            None => folder.strangers += 1,
        })
        .await?;
        // Numbers of more than five digits sort before shorter ones.
        folder.parts.sort_unstable();
        Ok((id, folder))
    };
    let ids = names.iter().filter_map(|name| name.parse().ok());
    stream::iter(ids.map(list)).buffered(PARALLEL).try_collect().await
}

/// Hands on everything below a prefix, page by page.
async fn pages(system: &System, prefix: &str, mut each: impl FnMut(&Listed)) -> Result<()> {
    let mut after: Option<Key> = None;
    loop {
        let page = system.store.list(prefix, after.as_ref(), PAGE).await?;
        page.iter().for_each(&mut each);
        match page.last() {
            Some(last) if page.len() == PAGE => after = Some(last.key.clone()),
            _ => return Ok(()),
        }
    }
}

fn numbers(folder: &Folder, of: impl Fn(BackupObject) -> Option<u32>) -> Vec<u32> {
    folder.objects.iter().filter_map(|(object, _)| of(*object)).collect()
}

/// The documents of the backups that exist; notes which are tombstones.
async fn documents(
    system: &System,
    folders: &mut BTreeMap<BackupId, Folder>,
    doubts: &mut Vec<String>,
) -> Result<Vec<BackupDocument>> {
    let newest = folders.iter().filter_map(|(id, folder)| {
        let numbers = numbers(folder, |object| if let BackupObject::Document(n) = object { Some(n) } else { None });
        Some((*id, numbers.into_iter().max()?))
    });
    let read = |(id, number)| async move { (id, system.document_of(id, number).await) };
    let read: Vec<_> =
        stream::iter(newest.collect::<Vec<_>>().into_iter().map(read)).buffered(PARALLEL).collect().await;
    let mut documents = Vec::new();
    for (id, document) in read {
        match document {
            Ok(Some(document)) => documents.push(document),
            Ok(None) => folders.entry(id).or_default().given_up = true,
            Err(error) => doubts.push(doubt(error)?),
        }
    }
    Ok(documents)
}

/// Backups that were begun and do not exist.
async fn attempts(
    system: &System,
    folders: &BTreeMap<BackupId, Folder>,
    condemned: &[BackupId],
    doubts: &mut Vec<String>,
) -> Result<BTreeMap<BackupId, Attempt>> {
    let mut attempts = BTreeMap::new();
    for (id, folder) in folders.iter().filter(|(id, _)| !condemned.contains(id)) {
        let exists = folder.objects.iter().any(|(object, _)| matches!(object, BackupObject::Document(_)));
        let intents = numbers(folder, |object| if let BackupObject::Intent(n) = object { Some(n) } else { None });
        if exists || intents.is_empty() {
            continue;
        }
        match attempt(system, *id, &intents).await {
            Ok(attempt) => _ = attempts.insert(*id, attempt),
            Err(error) => doubts.push(doubt(error)?),
        }
    }
    Ok(attempts)
}

/// What an attempt says of itself in all that it has said.
pub async fn attempt(system: &System, id: BackupId, intents: &[u32]) -> Result<Attempt> {
    let mut attempt =
        Attempt { timeline: TimelineId::FIRST, references: BTreeSet::from([id]), publishes: BTreeMap::new() };
    for number in intents {
        let intent = system.intent(id, *number).await?;
        attempt.timeline = intent.timeline;
        attempt.references.extend(intent.references);
        attempt.publishes.extend(intent.publishes);
    }
    Ok(attempt)
}

async fn lines(system: &System, found: &mut Inventory) -> Result<()> {
    let mut timelines: BTreeSet<TimelineId> = system.timelines().await?.into_iter().collect();
    timelines.extend(found.backups.iter().map(|backup| backup.timeline));
    timelines.extend(found.attempts.values().map(|attempt| attempt.timeline));
    for timeline in timelines {
        let history = match system.history(timeline).await {
            Ok(history) => history,
            Err(error) => {
                found.doubts.push(format!("the history of timeline {timeline} is not known: {}", doubt(error)?));
                TimelineHistory::root(timeline)
            }
        };
        let mut line = Line { history, ..Line::empty(timeline) };
        let found_logs = system.store.folders(&system.folder.timeline(timeline)).await?;
        logs(system, timeline, &found_logs, &mut line).await?;
        roll_ups(system, timeline, &mut line).await?;
        line.written = match written(system, timeline, &line).await {
            // It is encrypted, and not for this host. A timeline of which no time is known stays.
            Err(error) if error.kind() == Kind::Refused => None,
            written => written?,
        };
        found.lines.insert(timeline, line);
    }
    Ok(())
}

/// The roll-ups of a timeline.
pub(super) async fn roll_ups(system: &System, timeline: TimelineId, line: &mut Line) -> Result<()> {
    pages(system, &system.folder.roll_ups(timeline), |listed| {
        let name = listed.key.as_str().rsplit_once('/').and_then(|(_, name)| name.strip_suffix(".json.zst"));
        let name = name.and_then(|name| name.parse::<RollUpName>().ok());
        line.roll_ups.extend(name.map(|name| (name, listed.length)));
    })
    .await
}

/// These logs of the archive of a timeline, many at a time.
pub(super) async fn logs(system: &System, timeline: TimelineId, logs: &[String], line: &mut Line) -> Result<()> {
    let prefix = system.folder.timeline(timeline);
    let list = |log: &String| {
        let prefix = format!("{prefix}{log}/");
        async move {
            let (mut segments, mut beside) = (Vec::new(), Vec::new());
            pages(system, &prefix, |listed| match segment_of(&listed.key) {
                Some(name) => segments.push((name, listed.length)),
                None => beside.extend(lies_beside(listed)),
            })
            .await?;
            Ok::<_, Error>((segments, beside))
        }
    };
    let mut coming = stream::iter(logs.iter().map(list)).buffered(PARALLEL);
    while let Some((segments, beside)) = coming.try_next().await? {
        for (name, length) in segments {
            line.last = Some(name);
            line.add(name.number(system.document.segment_size)?, length);
        }
        for one in beside {
            match line.beside.last_mut().filter(|last| (last.name, last.what) == (one.name, one.what)) {
                Some(last) => (last.objects, last.bytes) = (last.objects + 1, last.bytes + one.bytes),
                None => line.beside.push(one),
            }
        }
    }
    Ok(())
}

/// What an object in the archive is that is no segment; none of a history file, and of what is not ours.
fn lies_beside(listed: &Listed) -> Option<Beside> {
    let beside = |name, what| Some(Beside { name, what, objects: 1, bytes: listed.length });
    if let Some((name, ..)) = piece_of(&listed.key) {
        return beside(name, BesideKind::Pieces);
    }
    let (folder, last) = listed.key.as_str().rsplit_once('/')?;
    if let Ok(WalFile::BackupLabel(name, offset)) = last.parse() {
        return beside(name, BesideKind::Label(offset));
    }
    let name: SegmentName = folder.strip_suffix(".partial")?.rsplit_once('/')?.1.parse().ok()?;
    beside(name, BesideKind::Partials)
}

/// The last time that the end of a timeline tells.
async fn written(system: &System, timeline: TimelineId, line: &Line) -> Result<Option<DateTime<Utc>>> {
    let Some(row) = line.rows.last() else { return Ok(None) };
    let size = system.document.segment_size;
    for count in [2, LOOKED_AT] {
        let skipped = row.lengths.len().saturating_sub(count);
        let name = |at: usize| SegmentName::from_number(timeline, row.first + at as u64, size);
        let segments = row.lengths.iter().enumerate().skip(skipped);
        let segments =
            segments.filter_map(|(at, length)| Some((name(at)?, Stored::Whole(u64::from(*length))))).collect();
        let mut last = None;
        let mut summaries = system.summaries(segments, Need::Planning);
        while let Some(found) = summaries.next().await? {
            let summary = found.summary;
            let told = summary.turns.items.iter().filter_map(|told| match &told.fact {
                Fact::Checkpoint(checkpoint) => Some(checkpoint.time),
                Fact::EndOfRecovery { time, .. } | Fact::RestorePoint { time, .. } => Some(*time),
                _ => None,
            });
            last = told.chain(summary.times.map(|(_, last)| last)).chain(last).max();
        }
        if last.is_some() {
            return Ok(last);
        }
    }
    Ok(None)
}
