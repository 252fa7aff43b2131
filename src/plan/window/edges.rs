//! What summaries tell of the ends of a row of segments: times, the last commit, and where recovery cannot go on.

use std::ops::ControlFlow;

use chrono::{DateTime, Utc};

use super::WindowEnd;
use crate::{
    error::{Error, Kind, Result},
    interrupt::Interrupt,
    plan::survey::says_minimal,
    postgres::{Lsn, SegmentName},
    progress::Progress,
    repository::{
        Stored, System, join,
        pieces::PieceEnd,
        summaries::{Fault, Need, SegmentSummary},
        wal_object,
    },
    wal::{Ended, Ending, Fact, Reader, Record, Told},
};

/// A place that no recovery can pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Break {
    /// The segment that was looked at.
    pub segment: SegmentName,
    /// Nothing from here on can be reached from before it.
    pub at: Lsn,
    /// The end of the last record that can be reached.
    pub proven: Lsn,
    /// Why.
    pub end: WindowEnd,
    /// The last commit that was seen before it.
    pub last_commit: Option<Ended>,
}

/// What a walk over summaries has seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Seen {
    /// The end of the last whole record.
    pub end: Option<Lsn>,
    /// The last commit.
    pub last_commit: Option<Ended>,
    /// The first time in it: of a commit, an abort, a checkpoint.
    pub first_time: Option<DateTime<Utc>>,
    /// The greatest time in it.
    pub last_time: Option<DateTime<Utc>>,
    /// Where no recovery passes, by LSN.
    pub breaks: Vec<Break>,
    /// Why nothing was seen but the names of segments.
    pub unread: Option<String>,
}

impl Seen {
    /// Takes the next summary, of the segment that begins at `start`.
    fn add(&mut self, found: &SegmentSummary, start: Lsn) {
        let summary = &found.summary;
        match &found.fault {
            Some(Fault::Damaged { why }) => {
                return self.stop(found.name, start, WindowEnd::Damaged { segment: found.name, what: why.clone() });
            }
            Some(Fault::Unlinked { at, why, .. }) => {
                self.stop(found.name, start, WindowEnd::Broken { at: *at, what: why.clone() });
            }
            None => {}
        }
        if let Some(told) = summary.turns.items.iter().find(|told| says_minimal(&told.fact)) {
            self.last_commit = summary.first_commit.clone().filter(|c| c.lsn < told.lsn).or(self.last_commit.take());
            self.stop(found.name, told.lsn, WindowEnd::Minimal { at: told.lsn });
        }
        if summary.records > 0 {
            self.end = Some(summary.end);
        }
        self.last_commit = summary.last_commit.clone().or(self.last_commit.take());
        let times =
            summary.turns.items.iter().filter_map(time_of).chain(summary.times.into_iter().flat_map(|t| [t.0, t.1]));
        for time in times {
            self.first_time = Some(self.first_time.map_or(time, |first| first.min(time)));
            self.last_time = Some(self.last_time.map_or(time, |last| last.max(time)));
        }
        if let Ending::Broken { at, why } = &summary.ending {
            self.stop(found.name, *at, WindowEnd::Broken { at: *at, what: why.clone() });
        } else if let Some(PieceEnd { end, why: Some(why) }) = &found.pieces {
            self.stop(found.name, *end, WindowEnd::Pieces { segment: found.name, what: why.clone() });
        }
    }

    fn stop(&mut self, segment: SegmentName, at: Lsn, end: WindowEnd) {
        let proven = match &end {
            // Its last record may go on in the segment that is damaged.
            WindowEnd::Damaged { .. } => self.end.unwrap_or(at).min(at),
            WindowEnd::Broken { at, .. } | WindowEnd::Minimal { at } => *at,
            WindowEnd::Archive | WindowEnd::Missing { .. } | WindowEnd::Pieces { .. } => at,
        };
        self.breaks.push(Break { segment, at, proven, end, last_commit: self.last_commit.clone() });
    }
}

fn time_of(told: &Told) -> Option<DateTime<Utc>> {
    match &told.fact {
        Fact::Checkpoint(checkpoint) => Some(checkpoint.time),
        Fact::EndOfRecovery { time, .. } | Fact::RestorePoint { time, .. } => Some(*time),
        _ => None,
    }
}

/// Whether another object would have to be found: nothing can be said of what this one holds.
fn is_lost(error: &Error) -> bool {
    matches!(error.kind(), Kind::Damaged | Kind::NotFound | Kind::Refused)
}

/// Walks the summaries of segments that follow each other. Damaged objects are breaks, not errors.
pub(super) async fn walk(
    system: &System,
    segments: &[(SegmentName, Stored)],
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<Seen> {
    let size = system.document.segment_size;
    let mut seen = Seen::default();
    let mut coming = system.summaries(segments.to_vec(), Need::Planning);
    while let Some(found) = coming.next().await? {
        interrupt.check()?;
        seen.add(&found, found.name.start(size)?);
        progress.advance(size.bytes());
    }
    Ok(seen)
}

/// What the end of a row of segments tells: its last two, so that a record over both counts.
pub(super) async fn ends(
    system: &System,
    segments: &[(SegmentName, Stored)],
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<Seen> {
    let two = &segments[segments.len().saturating_sub(2)..];
    let mut seen = match walk(system, two, progress, interrupt).await {
        Err(error) if error.kind() == Kind::Refused => return unread(system, segments, &error),
        seen => seen?,
    };
    if segments.len() > 2 {
        seen.first_time = walk(system, &segments[..1], progress, interrupt).await?.first_time.or(seen.first_time);
    }
    Ok(seen)
}

/// What the names of segments tell that this host may not read.
fn unread(system: &System, segments: &[(SegmentName, Stored)], error: &Error) -> Result<Seen> {
    let whole = segments.iter().rev().find(|(_, stored)| matches!(stored, Stored::Whole(_)));
    let size = system.document.segment_size;
    let end = whole.map(|(name, _)| name.start(size).map(|start| Lsn(start.0 + size.bytes()))).transpose()?;
    Ok(Seen { end, unread: Some(error.to_string()), ..Seen::default() })
}

/// The times that the segment of a fork tells: of the last commit before the fork, and of the promotion. Its records are
/// read: a summary does not tell on which side of the fork its commits are.
pub(super) async fn fork(system: &System, name: SegmentName, switch: Lsn) -> Result<Times> {
    let start = name.start(system.document.segment_size)?;
    let object = match wal_object::open(&*system.store, &system.folder.segment(name)?).await {
        Err(error) if is_lost(&error) => return Ok((None, None)),
        object => object?,
    };
    let read = join(
        tokio::task::spawn_blocking(move || {
            let (mut reader, mut times) = (Reader::new(start), (None, None));
            object.read(|bytes| {
                for record in reader.read(bytes) {
                    if !see_fork(&mut times, &record, switch) {
                        return Ok(ControlFlow::Break(()));
                    }
                }
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(times)
        })
        .await,
    )?;
    match read {
        Err(error) if is_lost(&error) => Ok((None, None)),
        read => read,
    }
}

/// When the last commit before a fork was, and when the promotion.
pub(super) type Times = (Option<DateTime<Utc>>, Option<DateTime<Utc>>);

/// Whether more has to be seen.
fn see_fork((left, promoted): &mut Times, record: &Record, switch: Lsn) -> bool {
    match &record.fact {
        Fact::Commit(end) if record.start < switch => *left = Some(end.time),
        Fact::EndOfRecovery { time, .. } if record.start >= switch => *promoted = Some(*time),
        Fact::Checkpoint(checkpoint) if record.start >= switch => *promoted = Some(checkpoint.time),
        Fact::Commit(end) if record.start >= switch => *promoted = Some(end.time),
        _ => {}
    }
    promoted.is_none()
}
