//! What lies in the folder of one system, as an expiry is planned from it: plain values, gathered once.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};

use super::ranges::Ranges;
use crate::{
    postgres::{Lsn, SegmentName, SegmentSize, TimelineHistory, TimelineId},
    repository::{BackupDocument, BackupId, BackupObject, Condemned, Incarnation, RollUpName},
};

/// One system.
#[derive(Clone, Debug)]
pub struct Inventory {
    /// The system.
    pub incarnation: Incarnation,
    /// When it was first seen.
    pub first_seen: DateTime<Utc>,
    /// The size of its segments.
    pub segment_size: SegmentSize,
    /// The backups that exist and are not condemned, oldest first.
    pub backups: Vec<Backup>,
    /// The timelines that have WAL, a history or a backup. Of each the history is known.
    pub lines: BTreeMap<TimelineId, Line>,
    /// What lies in `backups/`.
    pub folders: BTreeMap<BackupId, Folder>,
    /// Attempts that are no backups, and what each may come to need: its own parts and those of these.
    pub attempts: BTreeMap<BackupId, Attempt>,
    /// The pinned ones.
    pub pins: BTreeSet<BackupId>,
    /// What restores and exports read.
    pub holds: Vec<Holding>,
    /// Whether somebody has the lease of a backup.
    pub backing_up: bool,
    /// Whether somebody has the lease of a compaction.
    pub compacting: bool,
    /// What is condemned, and the number under which it says so.
    pub condemned: (u32, Condemned),
    /// Which parts kept backups need, or why that is not known. Filled in once it is known which are kept.
    pub needed: BTreeMap<BackupId, Result<BTreeMap<BackupId, BTreeSet<u32>>, String>>,
    /// What cannot be read, in words: then nothing of this system is removed.
    pub doubts: Vec<String>,
}

/// A backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// Its id.
    pub id: BackupId,
    /// What the user called it.
    pub label: Option<String>,
    /// The timeline it was taken on.
    pub timeline: TimelineId,
    /// Where replay starts.
    pub start: Lsn,
    /// Where it is consistent.
    pub stop: Lsn,
    /// When it was begun.
    pub started: DateTime<Utc>,
    /// When it was complete.
    pub stopped: DateTime<Utc>,
    /// Whether pages of it were damaged, or a verification has found damage that it costs.
    pub bad: bool,
    /// Older ones whose parts it needs.
    pub references: Vec<BackupId>,
    /// Its own parts, with the lengths of the objects.
    pub parts: Vec<(u32, u64)>,
    /// The numbers of its manifest, catalogue and extra files that count.
    pub numbers: (u32, Option<u32>, Option<u32>),
}

impl Backup {
    /// What of a document matters here.
    #[must_use]
    pub fn of(document: &BackupDocument) -> Self {
        Self {
            id: document.id,
            label: document.label.clone(),
            timeline: document.timeline,
            start: document.start_lsn,
            stop: document.stop_lsn,
            started: document.started,
            stopped: document.stopped,
            bad: !document.bad_pages.is_empty(),
            references: document.references.clone(),
            parts: document.parts.iter().map(|part| (part.number, part.length)).collect(),
            numbers: (document.manifest, document.catalogue, document.extra.as_ref().map(|extra| extra.number)),
        }
    }

    /// Whether recovery along that history can begin with it: it began and ended before each fork.
    #[must_use]
    pub fn lies_on(&self, history: &TimelineHistory) -> bool {
        history.contains(self.timeline, self.start) && history.contains(self.timeline, self.stop)
    }

    /// The numbers of the first segment that it needs, and of the first after the last one.
    #[must_use]
    pub fn span(&self, size: SegmentSize) -> (u64, u64) {
        (size.number_of(self.start), size.number_of(Lsn(self.stop.0.saturating_sub(1))) + 1)
    }
}

/// A timeline.
#[derive(Clone, Debug)]
pub struct Line {
    /// Its history.
    pub history: TimelineHistory,
    /// Its own segments.
    pub rows: Vec<Row>,
    /// The last of them.
    pub last: Option<SegmentName>,
    /// The last time that its own segments tell; `None` where they tell none.
    pub written: Option<DateTime<Utc>>,
    /// What lies beside its segments.
    pub beside: Vec<Beside>,
    /// Its roll-ups, with the lengths of the objects.
    pub roll_ups: Vec<(RollUpName, u64)>,
}

/// Segments that follow each other. A million of them take 4 MB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The number of the first.
    pub first: u64,
    /// The lengths of their objects in bytes, as far as 32 bits tell them.
    pub lengths: Vec<u32>,
}

impl Line {
    /// One of which nothing is known yet.
    #[must_use]
    pub fn empty(timeline: TimelineId) -> Self {
        Self {
            history: TimelineHistory::root(timeline),
            rows: Vec::new(),
            last: None,
            written: None,
            beside: Vec::new(),
            roll_ups: Vec::new(),
        }
    }

    /// Adds a segment; they come in their order.
    pub fn add(&mut self, number: u64, length: u64) {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        match self.rows.last_mut().filter(|row| row.first + row.lengths.len() as u64 == number) {
            Some(row) => row.lengths.push(length),
            None => self.rows.push(Row { first: number, lengths: vec![length] }),
        }
    }

    /// The numbers of its segments.
    #[must_use]
    pub fn there(&self) -> Ranges {
        let mut there = Ranges::default();
        self.rows.iter().for_each(|row| there.add(row.first, row.first + row.lengths.len() as u64));
        there
    }

    /// Whether there are pieces of a segment behind its last whole one.
    #[must_use]
    pub fn ends_in_pieces(&self) -> bool {
        let last =
            self.beside.iter().filter(|beside| beside.what == BesideKind::Pieces).map(|beside| beside.name).max();
        last.is_some_and(|last| self.last.is_none_or(|whole| whole < last))
    }

    /// The bytes of the objects of the segments from `first` on and before `end`.
    #[must_use]
    pub fn bytes(&self, first: u64, end: u64) -> u64 {
        let within = |row: &Row| {
            let at = |number: u64| {
                usize::try_from(number.saturating_sub(row.first)).unwrap_or(usize::MAX).min(row.lengths.len())
            };
            row.lengths[at(first)..at(end)].iter().map(|length| u64::from(*length)).sum::<u64>()
        };
        self.rows.iter().map(within).sum()
    }
}

/// Objects that lie beside a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beside {
    /// The segment.
    pub name: SegmentName,
    /// What they are.
    pub what: BesideKind,
    /// How many.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What lies beside a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BesideKind {
    /// `<segment>.pieces/`
    Pieces,
    /// `<segment>.partial/`
    Partials,
    /// `<segment>.<offset>.backup`
    Label(u32),
}

/// What lies in the folder of a backup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Folder {
    /// Everything but parts, with the lengths in bytes.
    pub objects: Vec<(BackupObject, u64)>,
    /// Parts: their numbers, and the lengths of the objects.
    pub parts: Vec<(u32, u64)>,
    /// Whether its document is the tombstone of an attempt.
    pub given_up: bool,
    /// Objects that no Walden of this version writes: they are left alone.
    pub strangers: u64,
}

impl Folder {
    /// The highest number of a document in it.
    #[must_use]
    pub fn newest_document(&self) -> Option<u32> {
        let numbers = self.objects.iter().filter_map(|(object, _)| match object {
            BackupObject::Document(number) => Some(*number),
            _ => None,
        });
        numbers.max()
    }
}

/// A backup that was begun and does not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The timeline it is taken on.
    pub timeline: TimelineId,
    /// The backups whose parts it may need.
    pub references: BTreeSet<BackupId>,
    /// Of a compaction, the documents that it is about to write.
    pub publishes: BTreeMap<BackupId, u32>,
}

/// What somebody reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// Who, in words.
    pub who: String,
    /// Backups.
    pub backups: BTreeSet<BackupId>,
    /// Rows of segments.
    pub wal: Vec<(SegmentName, SegmentName)>,
}
