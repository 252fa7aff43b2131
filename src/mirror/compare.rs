//! Two repositories side by side: what the first has and a mirror lacks, in the order in which it is to be copied. Of
//! each no more than a page of names is held, however many there are.

use std::collections::VecDeque;

use super::in_step::Positions;
use crate::{
    error::Result,
    postgres::{SegmentName, TimelineId},
    repository::{BackupId, System, segment_of},
    store::{self, Key, Listed, Store},
};

/// Names that are asked for at a time.
const PAGE: usize = 1000;
/// How many objects of the archive are handed over at a time.
const BATCH: usize = 256;

/// What a mirror lacks.
#[derive(Debug)]
pub enum Lack {
    /// Objects that need no others.
    Objects(Vec<Listed>),
    /// A backup, or what is missing of one.
    Backup(Missing),
    /// An object that is there, but not with the length that it has in the first, which is given last.
    Differs(Listed, u64),
}

/// What is missing of a backup.
#[derive(Debug)]
pub struct Missing {
    /// The backup.
    pub id: BackupId,
    /// Everything but its documents.
    pub objects: Vec<Listed>,
    /// Its documents, which make it exist.
    pub documents: Vec<Listed>,
}

/// A comparison that goes on as it is asked.
#[derive(Debug)]
pub struct Comparison<'a> {
    first: &'a System,
    mirror: &'a dyn Store,
    since: Positions,
    /// How far the first goes, as it was seen.
    seen: Positions,
    stages: VecDeque<Stage>,
    present: Option<(Stage, SideBySide<'a>)>,
    ready: VecDeque<Lack>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Wal(TimelineId),
    Backups,
    Notes,
}

impl<'a> Comparison<'a> {
    /// Of everything after `since`; of everything when that is empty.
    pub async fn new(first: &'a System, mirror: &'a dyn Store, since: Positions) -> Result<Self> {
        let timelines = first.timelines().await?;
        let mut histories = Vec::new();
        for timeline in timelines.iter().filter(|timeline| **timeline != TimelineId::FIRST) {
            histories.extend(history(first, mirror, *timeline).await?);
        }
        let whole = since.is_empty();
        let mut stages: VecDeque<Stage> = timelines.into_iter().map(Stage::Wal).collect();
        stages.push_back(Stage::Backups);
        if whole {
            stages.push_back(Stage::Notes);
        }
        let ready = if histories.is_empty() { VecDeque::new() } else { VecDeque::from([Lack::Objects(histories)]) };
        Ok(Self { first, mirror, seen: since.clone(), since, stages, present: None, ready })
    }

    /// What is lacking next; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Lack>> {
        loop {
            if let Some(lack) = self.ready.pop_front() {
                return Ok(Some(lack));
            }
            let Some((stage, side)) = &mut self.present else {
                let Some(stage) = self.stages.pop_front() else { return Ok(None) };
                let (prefix, after) = self.begin(stage)?;
                self.present = Some((stage, SideBySide::new(&*self.first.store, self.mirror, prefix, after)));
                continue;
            };
            let stage = *stage;
            let more = match stage {
                Stage::Wal(timeline) => wal(side, timeline, &mut self.seen, &mut self.ready).await?,
                Stage::Backups => backup(self.first, side, &mut self.seen, &mut self.ready).await?,
                Stage::Notes => notes(self.first, side, &mut self.ready).await?,
            };
            if !more {
                self.present = None;
            }
        }
    }

    /// How far the first went, once there is nothing more.
    pub fn seen(self) -> Positions {
        self.seen
    }

    fn begin(&self, stage: Stage) -> Result<(String, Option<Key>)> {
        let folder = &self.first.folder;
        Ok(match stage {
            Stage::Wal(timeline) => {
                let size = self.first.document.segment_size;
                let after = self.since.segment(timeline).and_then(|name| name.number(size).ok());
                // What came out of its order lies this far back at most; a whole comparison finds the rest.
                let after = after.and_then(|n| SegmentName::from_number(timeline, n.saturating_sub(SLACK), size));
                (folder.timeline(timeline), after.map(|name| folder.segment(name)).transpose()?)
            }
            Stage::Backups => {
                let after = self.since.backup.map(|id| Key::new(format!("{}~", folder.backup(id)).replace('~', "zzz")));
                (folder.backups(), after.transpose()?)
            }
            Stage::Notes => (folder.notes_of_all_kinds(), None),
        })
    }
}

/// Segments before the newest that was in step that are looked at again.
const SLACK: u64 = 512;

/// The history file of a timeline, if the mirror lacks it.
async fn history(first: &System, mirror: &dyn Store, timeline: TimelineId) -> Result<Option<Listed>> {
    let key = first.folder.history(timeline)?;
    let length = async |store: &dyn Store| match store::listed_length(store, &key).await {
        Ok(length) => Ok(Some(length)),
        Err(error) if error.kind() == crate::error::Kind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    Ok(match (length(&*first.store).await?, length(mirror).await?) {
        (Some(length), None) => Some(Listed { key, length }),
        _ => None,
    })
}

async fn wal(
    side: &mut SideBySide<'_>,
    timeline: TimelineId,
    seen: &mut Positions,
    ready: &mut VecDeque<Lack>,
) -> Result<bool> {
    let mut batch = Vec::new();
    let mut last: Option<String> = None;
    let more = loop {
        let Some(pair) = side.next().await? else { break false };
        if let Some(name) = segment_of(&pair.listed.key) {
            seen.saw(timeline, name);
            last = Some(format!("{}.pieces/", pair.listed.key));
        }
        // The whole segment has taken over from its pieces.
        if last.as_ref().is_some_and(|pieces| pair.listed.key.as_str().starts_with(pieces.as_str())) {
            continue;
        }
        match pair.theirs {
            None => batch.push(pair.listed),
            Some(length) if length != pair.listed.length => ready.push_back(Lack::Differs(pair.listed, length)),
            Some(_) => {}
        }
        if batch.len() >= BATCH {
            break true;
        }
    };
    if !batch.is_empty() {
        ready.push_back(Lack::Objects(batch));
    }
    Ok(more)
}

/// One folder of the backups.
async fn backup(
    first: &System,
    side: &mut SideBySide<'_>,
    seen: &mut Positions,
    ready: &mut VecDeque<Lack>,
) -> Result<bool> {
    let Some(begin) = side.peek().await? else { return Ok(false) };
    let Some(id) = first.folder.backup_of(&begin.key) else {
        side.next().await?;
        return Ok(true);
    };
    let prefix = first.folder.backup(id);
    let (mut exists, mut missing) = (false, Missing { id, objects: Vec::new(), documents: Vec::new() });
    while side.peek().await?.is_some_and(|listed| listed.key.as_str().starts_with(&prefix)) {
        let Some(Pair { listed, theirs }) = side.next().await? else { break };
        let is_document = first.folder.is_backup_document(&listed.key);
        exists |= is_document;
        match theirs {
            Some(length) if length != listed.length => ready.push_back(Lack::Differs(listed, length)),
            Some(_) => {}
            None if is_document => missing.documents.push(listed),
            None => missing.objects.push(listed),
        }
    }
    // What an attempt left is copied with the first backup that needs it.
    if exists {
        seen.backup = seen.backup.max(Some(id));
        if !(missing.objects.is_empty() && missing.documents.is_empty()) {
            ready.push_back(Lack::Backup(missing));
        }
    }
    Ok(true)
}

async fn notes(first: &System, side: &mut SideBySide<'_>, ready: &mut VecDeque<Lack>) -> Result<bool> {
    let mut batch = Vec::new();
    let more = loop {
        let Some(Pair { listed, theirs }) = side.next().await? else { break false };
        if theirs.is_none() && !first.folder.is_of_one_repository(&listed.key) {
            batch.push(listed);
        }
        if batch.len() >= BATCH {
            break true;
        }
    };
    if !batch.is_empty() {
        ready.push_back(Lack::Objects(batch));
    }
    Ok(more)
}

/// An object of the first, and the length that it has in the mirror.
struct Pair {
    listed: Listed,
    theirs: Option<u64>,
}

/// The objects of the first in the order of their keys, each held against the mirror.
#[derive(Debug)]
struct SideBySide<'a> {
    first: Pages<'a>,
    mirror: Pages<'a>,
}

impl<'a> SideBySide<'a> {
    fn new(first: &'a dyn Store, mirror: &'a dyn Store, prefix: String, after: Option<Key>) -> Self {
        Self { first: Pages::new(first, prefix.clone(), after.clone()), mirror: Pages::new(mirror, prefix, after) }
    }

    async fn peek(&mut self) -> Result<Option<&Listed>> {
        self.first.peek().await
    }

    async fn next(&mut self) -> Result<Option<Pair>> {
        let (ours, theirs) = tokio::join!(self.first.fill(), self.mirror.fill());
        ours.and(theirs)?;
        let Some(listed) = self.first.page.pop_front() else { return Ok(None) };
        // What only the mirror has is no business of the first's.
        while self.mirror.peek().await?.is_some_and(|theirs| theirs.key < listed.key) {
            self.mirror.page.pop_front();
        }
        let theirs = self.mirror.page.pop_front_if(|theirs| theirs.key == listed.key).map(|theirs| theirs.length);
        Ok(Some(Pair { listed, theirs }))
    }
}

/// A listing, page by page.
#[derive(Debug)]
struct Pages<'a> {
    store: &'a dyn Store,
    prefix: String,
    after: Option<Key>,
    page: VecDeque<Listed>,
    ended: bool,
}

impl<'a> Pages<'a> {
    fn new(store: &'a dyn Store, prefix: String, after: Option<Key>) -> Self {
        Self { store, prefix, after, page: VecDeque::new(), ended: false }
    }

    async fn peek(&mut self) -> Result<Option<&Listed>> {
        self.fill().await?;
        Ok(self.page.front())
    }

    async fn fill(&mut self) -> Result<()> {
        if self.page.is_empty() && !self.ended {
            let page = self.store.list(&self.prefix, self.after.as_ref(), PAGE).await?;
            self.ended = page.len() < PAGE;
            self.after = page.last().map(|listed| listed.key.clone()).or(self.after.take());
            self.page = page.into();
        }
        Ok(())
    }
}
