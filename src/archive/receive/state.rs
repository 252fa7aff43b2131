//! What the halves of a receiver tell each other: the one that listens to the server says what lies in the spool, the
//! other says what of it is durable in the repository.

use std::{collections::VecDeque, sync::Arc};

use tokio::sync::watch;

use crate::postgres::{Lsn, SegmentName, SegmentSize, TimelineId};

/// A place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) timeline: TimelineId,
    pub(super) lsn: Lsn,
}

/// Something that lies in the spool until it is durable in the repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// A history file: it comes before the first segment of its timeline.
    History(TimelineId),
    /// A segment, as far as it was received.
    Segment(HeldSegment),
}

/// A segment in the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeldSegment {
    pub(super) name: SegmentName,
    /// How many bytes of it were received.
    pub(super) length: u64,
    /// How many of these are durable in the repository, as pieces.
    pub(super) stored: u64,
    /// Whether no more will be received.
    pub(super) over: bool,
}

/// What both know.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    /// What waits, the oldest first.
    pub(super) queue: VecDeque<Held>,
    /// Up to where all that came is in the spool.
    pub(super) received: Option<Position>,
    /// Up to where that was made durable in the spool.
    pub(super) synced: Option<Position>,
    /// Up to where everything is durable in the repository.
    pub(super) stored: Option<Position>,
    /// Whether the repository failed the last time.
    pub(super) failing: bool,
    /// Whether somebody waits for each byte: it is stored without waiting for more.
    pub(super) eager: bool,
    /// The same for what was received up to there.
    pub(super) urged: Option<Lsn>,
}

/// The one place where both look, and wait for the other.
#[derive(Clone, Debug, Default)]
pub(super) struct Shared(Arc<watch::Sender<State>>);

impl Shared {
    /// Changes it; whoever waits looks again.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut result = None;
        self.0.send_modify(|state| result = Some(change(state)));
        #[expect(clippy::unwrap_used, reason = "send_modify calls the closure once")]
        result.unwrap()
    }

    /// Looks at it. Must not be held across anything that changes it.
    pub(super) fn see<T>(&self, see: impl FnOnce(&State) -> T) -> T {
        see(&self.0.borrow())
    }

    /// Somebody who waits for changes.
    pub(super) fn watch(&self) -> watch::Receiver<State> {
        self.0.subscribe()
    }
}

impl State {
    /// Bytes in the spool.
    pub(super) fn held(&self) -> u64 {
        self.segments().map(|segment| segment.length).sum()
    }

    fn segments(&self) -> impl DoubleEndedIterator<Item = &HeldSegment> {
        self.queue.iter().filter_map(|held| match held {
            Held::Segment(segment) => Some(segment),
            Held::History(_) => None,
        })
    }

    /// The segment in the spool of that name.
    pub(super) fn segment(&mut self, name: SegmentName) -> Option<&mut HeldSegment> {
        self.queue.iter_mut().find_map(|held| match held {
            Held::Segment(segment) if segment.name == name => Some(segment),
            _ => None,
        })
    }

    /// Whether nothing is left that is not durable in the repository.
    pub(super) fn is_stored(&self) -> bool {
        self.queue.iter().all(|held| matches!(held, Held::Segment(s) if s.stored == s.length && !s.over))
    }

    /// The bytes that are in the spool alone.
    pub(super) fn waiting(&self) -> u64 {
        self.segments().map(|segment| segment.length - segment.stored).sum()
    }

    /// Writes down that so many bytes of a segment are durable in the repository, up to `lsn`. What lies behind something
    /// that still waits does not count yet.
    pub(super) fn has_stored(&mut self, name: SegmentName, bytes: u64, lsn: Lsn) {
        let first = matches!(self.queue.front(), Some(Held::Segment(segment)) if segment.name == name);
        self.set_stored(name, bytes);
        if first {
            self.stored = Some(Position { timeline: name.timeline, lsn });
        }
    }

    /// Writes down what was found to be in the repository.
    pub(super) fn set_stored(&mut self, name: SegmentName, bytes: u64) {
        if let Some(segment) = self.segment(name) {
            segment.stored = bytes;
        }
    }

    /// The first in the queue is done with: everything up to what the next one has in the repository is there.
    pub(super) fn pop(&mut self, size: SegmentSize) {
        self.queue.pop_front();
        match self.queue.front() {
            Some(Held::Segment(HeldSegment { name, stored, .. })) => {
                let start = name.start(size).ok();
                self.stored = start.map(|start| Position { timeline: name.timeline, lsn: start + *stored });
            }
            Some(Held::History(_)) => {}
            None => self.stored = self.received,
        }
    }
}
