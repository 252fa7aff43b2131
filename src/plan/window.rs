//! What of a system can be recovered: the tree of its timelines, the backups on them, and the windows that these and an
//! unbroken row of segments open.
//!
//! This is made of listings, history files, the documents of backups and a handful of summaries at the ends of rows, so
//! that it stays cheap on archives of a million segments. What only the records in the middle tell (a `wal_level =
//! minimal`, a segment that does not go on from the one before it) is looked for when [`Depth::Records`] is asked for.

mod draw;
mod edges;
mod gather;
mod rows;
mod suspended;

pub use edges::Break;
pub use gather::{Damage, Depth, Gathered, timelines};

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::{
    postgres::{Lsn, SegmentName, TimelineId},
    repository::{BackupId, GapNote, Suspended, SystemDocument},
};

/// The timelines of one system.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Timelines {
    /// The system.
    pub system: SystemDocument,
    /// Its timelines by their numbers, so that a parent comes before its children.
    pub timelines: Vec<Timeline>,
    /// Backups whose documents are damaged: nothing more is known of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<Unreadable>,
    /// When archiving was suspended, the oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub suspensions: Vec<GapNote>,
    /// Why the records of the WAL cannot be read here: of it no more is known than the names of its segments tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unread: Option<String>,
}

impl Timelines {
    /// The timeline that the cluster writes, as far as can be told.
    #[must_use]
    pub fn live(&self) -> Option<&Timeline> {
        self.timelines.iter().find(|t| t.live)
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, timeline: TimelineId) -> Option<&Timeline> {
        self.timelines.iter().find(|t| t.timeline == timeline)
    }

    /// All backups, oldest first.
    #[must_use]
    pub fn backups(&self) -> Vec<&BackupMark> {
        let mut backups: Vec<_> = self.timelines.iter().flat_map(|t| &t.backups).collect();
        backups.sort_by_key(|b| b.id);
        backups
    }

    /// Where the way to `to` leaves `ancestor`, with the time of the last commit before that. The inner value is none
    /// for the timeline itself, the outer one when the way does not lead through `ancestor`.
    #[must_use]
    pub fn left(&self, to: &Timeline, ancestor: TimelineId) -> Option<Option<(Lsn, Option<DateTime<Utc>>)>> {
        let (mut at, mut left) = (to, None);
        while at.timeline != ancestor {
            let fork = at.fork.as_ref()?;
            left = Some((fork.lsn, fork.left));
            // Parents are older: this comes to an end.
            at = self.get(fork.parent).filter(|parent| parent.timeline < at.timeline)?;
        }
        Some(left)
    }

    /// Says which timeline the cluster writes: somebody has seen its server.
    pub fn set_live(&mut self, live: TimelineId) {
        if self.get(live).is_some() {
            self.timelines.iter_mut().for_each(|t| t.live = t.timeline == live);
        }
    }
}

/// One timeline.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Timeline {
    /// Its number.
    pub timeline: TimelineId,
    /// Whether the cluster writes it, as far as can be told: the one that was written last.
    pub live: bool,
    /// Where it left its parent; none of the first, nor where that is not known.
    pub fork: Option<Fork>,
    /// Why its history is not known. Nothing on it can be recovered then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost_history: Option<String>,
    /// How many whole segments of its own the archive has.
    pub segments: u64,
    /// The bytes of their objects.
    pub stored: u64,
    /// Its own unbroken rows of segments, oldest first.
    pub rows: Vec<Row>,
    /// What is missing between those rows, and between them and where it left its parent.
    pub gaps: Vec<Gap>,
    /// What can be recovered along it, its ancestors up to their forks included, oldest first.
    pub windows: Vec<Window>,
    /// The backups that were taken on it, oldest first.
    pub backups: Vec<BackupMark>,
}

/// Where a timeline left its parent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fork {
    /// The parent.
    pub parent: TimelineId,
    /// The first byte that is not the parent's.
    pub lsn: Lsn,
    /// Why, in PostgreSQL's words.
    pub reason: String,
    /// When the last transaction committed that it has from its parent.
    pub left: Option<DateTime<Utc>>,
    /// When the server was promoted.
    pub promoted: Option<DateTime<Utc>>,
}

/// A place in the log, and a time that belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Instant {
    /// The address.
    pub lsn: Lsn,
    /// The time by the server's clock.
    pub time: Option<DateTime<Utc>>,
}

/// An unbroken row of segments of one timeline.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The first segment.
    pub first: SegmentName,
    /// The last segment.
    pub last: SegmentName,
    /// How many.
    pub segments: u64,
    /// Of the last one there are only pieces.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub in_pieces: bool,
    /// Where it begins, and a time found near there.
    pub from: Instant,
    /// The end of its last whole record, and the last time found before that.
    pub to: Instant,
}

/// Segments that are missing between others that are there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// The first that is missing.
    pub first: SegmentName,
    /// The last that is missing.
    pub last: SegmentName,
    /// How many.
    pub segments: u64,
    /// What is there before it.
    pub from: Instant,
    /// What is there after it.
    pub to: Instant,
    /// That a person let them go, if that is why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspended: Option<Suspended>,
}

/// An unbroken interval of instants that can be recovered along a timeline.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Window {
    /// Where its first backup is consistent, and the first full second that is certainly after that.
    pub from: Instant,
    /// The end of the last record that is proven, and when the last transaction before it committed; no time when none
    /// did since `from`.
    pub to: Instant,
    /// The last commit: its transaction. No target in time may lie after it.
    pub last_xid: Option<u32>,
    /// The backups that it can begin with, oldest first.
    pub backups: Vec<BackupId>,
    /// The first segment.
    pub first_segment: SegmentName,
    /// The last segment.
    pub last_segment: SegmentName,
    /// How many.
    pub segments: u64,
    /// Its records could not be read here: `to` is the end of its last segment, and no times are known.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unread: bool,
    /// How many bytes at its end come out of pieces: those of its last segment, where that is not whole.
    #[serde(skip_serializing_if = "super::is_none_of_them")]
    pub from_pieces: u64,
    /// Why it goes no further.
    pub end: WindowEnd,
}

/// Why a window goes no further.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "why", rename_all = "kebab-case")]
pub enum WindowEnd {
    /// Nothing later is in the archive.
    Archive,
    /// A segment is missing.
    Missing {
        /// The first.
        segment: SegmentName,
        /// That a person let it go, if that is why.
        #[serde(skip_serializing_if = "Option::is_none")]
        suspended: Option<Suspended>,
    },
    /// The object of a segment is damaged.
    Damaged {
        /// The segment.
        segment: SegmentName,
        /// What is wrong with it.
        what: String,
    },
    /// The pieces of a segment that is not whole reach no further, though later ones are there.
    Pieces {
        /// The segment.
        segment: SegmentName,
        /// What is wrong with them.
        what: String,
    },
    /// The server was started with `wal_level = minimal`.
    Minimal {
        /// Where the log says so.
        at: Lsn,
    },
    /// The records do not go on.
    Broken {
        /// Where.
        at: Lsn,
        /// What is wrong there.
        what: String,
    },
}

/// A backup, and whether it can be used.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BackupMark {
    /// Its id.
    pub id: BackupId,
    /// What the user called it.
    pub label: Option<String>,
    /// The timeline it was taken on.
    pub timeline: TimelineId,
    /// Whether the server was a standby.
    pub from_standby: bool,
    /// Where replay starts.
    pub start_lsn: Lsn,
    /// Where it is consistent.
    pub stop_lsn: Lsn,
    /// When it began.
    pub started: DateTime<Utc>,
    /// When it was complete.
    pub stopped: DateTime<Utc>,
    /// The size of the cluster's files in bytes.
    pub size: u64,
    /// Bytes that it added to the repository.
    pub stored: u64,
    /// How many pages had wrong checksums.
    pub bad_pages: usize,
    /// Why it cannot be used.
    pub broken: Option<Broken>,
    /// From where on it can be used.
    pub from: Instant,
    /// The end of the unbroken row of segments after it on its own timeline.
    pub recoverable_to: Option<Lsn>,
    /// How far recovery from it reaches on its own timeline.
    pub until: Option<Instant>,
}

/// A backup whose document is damaged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unreadable {
    /// Its id.
    pub id: BackupId,
    /// What is wrong with it.
    pub why: String,
}

/// Why a backup cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Broken {
    /// In words.
    pub why: String,
    /// The segments that it needs itself and that are missing.
    pub missing: Vec<SegmentName>,
}
