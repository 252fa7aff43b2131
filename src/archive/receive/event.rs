//! What a receiver tells whoever runs it.

use std::fmt;

use serde::Serialize;

use crate::{
    human,
    postgres::{Lsn, SegmentName, TimelineId},
};

/// Something that happened. docs/JSON.md tells the fields.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// What a receiver before this one had received and not stored is in the repository now.
    Recovered {
        /// How many bytes of WAL.
        bytes: u64,
    },
    /// WAL comes in.
    Streaming {
        /// The timeline.
        timeline: TimelineId,
        /// The first byte that is asked for.
        from: Lsn,
        /// The slot.
        slot: String,
        /// Whether the slot was made for this.
        new_slot: bool,
        /// Whether commits on the server wait for this receiver.
        synchronous: bool,
    },
    /// A part of a segment is durable in the repository.
    Piece {
        /// The segment.
        segment: SegmentName,
        /// The offset of its first byte in the segment.
        from: u64,
        /// The offset of the first byte after it.
        to: u64,
        /// Whether it was there before.
        already: bool,
    },
    /// A whole segment is durable in the repository.
    Segment {
        /// The segment.
        segment: SegmentName,
        /// Whether it was there before.
        already: bool,
    },
    /// The history of a timeline is durable in the repository.
    History {
        /// The timeline.
        timeline: TimelineId,
    },
    /// The server went over to another timeline.
    Switched {
        /// The timeline that is over.
        from: TimelineId,
        /// The next one.
        to: TimelineId,
        /// Its first byte.
        at: Lsn,
    },
    /// WAL that neither the server nor the repository has.
    Gap(Gap),
    /// The connection to the server is lost, or cannot be had.
    Disconnected {
        /// Why.
        error: String,
        /// After how many seconds it is tried again.
        retry: f64,
    },
    /// The repository does not take what was received.
    RepositoryFails {
        /// Why.
        error: String,
        /// The bytes that are only in the spool.
        waiting: u64,
    },
    /// The repository takes it again.
    RepositoryWorks,
    /// The spool is full: nothing more is received until the repository has taken some of it.
    SpoolFull {
        /// The bytes in it.
        bytes: u64,
    },
    /// What the slot makes the server keep.
    Slot(SlotState),
    /// The repository has WAL of a timeline that is not on this server's way.
    OtherTimeline {
        /// The timeline that the server is on.
        server: TimelineId,
        /// The newest in the repository.
        repository: TimelineId,
    },
}

/// Somebody who is told. Cheap, may be called from any thread, and never fails.
pub trait Listener: fmt::Debug + Send + Sync {
    /// That happened.
    fn tell(&self, event: &Event);
}

/// WAL that neither the server nor the repository has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// The timeline of its first segment.
    pub timeline: TimelineId,
    /// Its first byte.
    pub from: Lsn,
    /// The first byte that the server has again.
    pub to: Lsn,
    /// The segments that are missing, in rows: the first and the last of each.
    pub missing: Vec<(SegmentName, SegmentName)>,
}

/// What a slot makes the server keep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SlotState {
    /// The slot.
    pub slot: String,
    /// Bytes of WAL that the server keeps for it.
    pub retained: u64,
    /// `max_slot_wal_keep_size`: where it loses the slot rather than keep more; `None` where it keeps everything, until
    /// the disk is full.
    pub keep_limit: Option<String>,
    /// Whether that is more than `[receive] slot_limit`.
    pub above_limit: bool,
}

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// Somebody has to look at it.
    Warning,
    /// Worth a line.
    Notable,
    /// All is as ever.
    Usual,
}

impl Event {
    /// How much it matters.
    #[must_use]
    pub fn weight(&self) -> Weight {
        match self {
            Self::Gap(_)
            | Self::Disconnected { .. }
            | Self::RepositoryFails { .. }
            | Self::SpoolFull { .. }
            | Self::OtherTimeline { .. } => Weight::Warning,
            Self::Slot(slot) if slot.above_limit => Weight::Warning,
            Self::Piece { .. } => Weight::Usual,
            Self::Recovered { .. }
            | Self::Streaming { .. }
            | Self::Segment { .. }
            | Self::History { .. }
            | Self::Switched { .. }
            | Self::RepositoryWorks
            | Self::Slot(_) => Weight::Notable,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let there = |already: bool| if already { "is in the repository already" } else { "stored" };
        match self {
            Self::Recovered { bytes } => {
                write!(f, "{} of WAL from before the start are in the repository now", human::size(*bytes))
            }
            Self::Streaming { timeline, from, slot, new_slot, synchronous } => {
                let slot_is = if *new_slot { ", which was made" } else { "" };
                let waits = if *synchronous { "; commits wait for it" } else { "" };
                write!(f, "receiving timeline {timeline} from {from} on, slot {slot}{slot_is}{waits}")
            }
            Self::Piece { segment, from, to, already } => {
                write!(f, "{segment} from {from:08X} to {to:08X} {}", there(*already))
            }
            Self::Segment { segment, already } => write!(f, "{segment} {}", there(*already)),
            Self::History { timeline } => write!(f, "the history of timeline {timeline} is in the repository"),
            Self::Switched { from, to, at } => write!(f, "timeline {from} is over; timeline {to} goes on at {at}"),
            Self::Gap(gap) => gap.fmt(f),
            Self::Disconnected { error, retry } => write!(f, "{error}; trying again in {retry:.1} s"),
            Self::RepositoryFails { error, waiting } => {
                write!(f, "{} wait for the repository: {error}; trying again", human::size(*waiting))
            }
            Self::RepositoryWorks => write!(f, "the repository takes WAL again"),
            Self::SpoolFull { bytes } => write!(
                f,
                "the spool is full ({}): nothing more is received until the repository has taken some of it; the server keeps its WAL",
                human::size(*bytes)
            ),
            Self::Slot(slot) => slot.fmt(f),
            Self::OtherTimeline { server, repository } => write!(
                f,
                "the repository has WAL of timeline {repository}, and this server is on timeline {server}: is it the one that is to be followed?"
            ),
        }
    }
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the WAL from {} to {} is neither on the server nor in the repository", self.from, self.to)?;
        let rows = self
            .missing
            .iter()
            .map(|(first, last)| if first == last { first.to_string() } else { format!("{first} to {last}") });
        let shown: Vec<String> = rows.take(8).collect();
        if !shown.is_empty() {
            let more = if self.missing.len() > shown.len() { " and more" } else { "" };
            write!(f, " ({}{more})", shown.join(", "))?;
        }
        Ok(())
    }
}

impl fmt::Display for SlotState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {} makes the server keep {} of WAL", self.slot, human::size(self.retained))?;
        match &self.keep_limit {
            None => write!(f, "; max_slot_wal_keep_size is not set: nothing stops that from filling its disk"),
            Some(limit) => write!(f, "; above max_slot_wal_keep_size = {limit} it loses the slot"),
        }
    }
}
