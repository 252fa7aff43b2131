//! Everything that a drawing of timelines shows, in lanes and in time.

use chrono::{DateTime, Utc};

use super::words;
use crate::{
    human,
    plan::window::{BackupMark, Timeline, Timelines},
    postgres::{Lsn, TimelineId},
};

/// A drawing before it has a form.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    /// The lanes from top to bottom: those of a system together, children below their parents.
    pub lanes: Vec<Lane>,
    /// The first time in it.
    pub from: DateTime<Utc>,
    /// The last time in it that something happened.
    pub last: DateTime<Utc>,
    /// When it was drawn.
    pub now: DateTime<Utc>,
}

/// One timeline.
#[derive(Clone, Debug, PartialEq)]
pub struct Lane {
    /// Which of the systems it belongs to.
    pub system: usize,
    /// Its number.
    pub timeline: TimelineId,
    /// Whether the cluster writes it.
    pub live: bool,
    /// Where it comes from.
    pub birth: Option<Birth>,
    /// What is drawn on it; later ones over earlier ones.
    pub spans: Vec<Span>,
    /// The backups on it.
    pub backups: Vec<Mark>,
    /// When it was last heard of.
    pub end: Option<DateTime<Utc>>,
}

/// Where a lane leaves its parent's.
#[derive(Clone, Debug, PartialEq)]
pub struct Birth {
    /// The parent's lane.
    pub parent: usize,
    /// The time of the last commit that both have.
    pub left: DateTime<Utc>,
    /// When the new timeline began.
    pub begins: DateTime<Utc>,
    /// In words.
    pub title: String,
}

/// What a stretch of a lane is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// WAL that no backup leads to.
    Wal,
    /// Every instant can be recovered.
    Recoverable,
    /// Segments are missing.
    Gap,
}

/// A stretch of a lane.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// What it is.
    pub kind: SpanKind,
    /// From when.
    pub from: DateTime<Utc>,
    /// To when.
    pub to: DateTime<Utc>,
    /// Where it begins in the log.
    pub from_lsn: Lsn,
    /// Where it ends in the log.
    pub to_lsn: Lsn,
    /// In words.
    pub title: String,
}

/// A backup on a lane.
#[derive(Clone, Debug, PartialEq)]
pub struct Mark {
    /// When it was consistent.
    pub at: DateTime<Utc>,
    /// Whether it can be used.
    pub usable: bool,
    /// Whether some of its pages had wrong checksums.
    pub damaged: bool,
    /// In words.
    pub title: String,
}

impl Scene {
    /// What is known of the systems, at an instant. None when nothing in it has a time.
    #[must_use]
    pub fn of(systems: &[Timelines], now: DateTime<Utc>) -> Option<Self> {
        let mut lanes = Vec::new();
        for (number, timelines) in systems.iter().enumerate() {
            let known = |id| timelines.get(id).is_some();
            let roots: Vec<_> =
                timelines.timelines.iter().filter(|t| t.fork.as_ref().is_none_or(|f| !known(f.parent))).collect();
            for root in roots {
                place(&mut lanes, number, timelines, root, None);
            }
        }
        // The cluster goes on in its last system alone.
        lanes.iter_mut().for_each(|lane| lane.live &= lane.system + 1 == systems.len());
        let spans = || lanes.iter().flat_map(|l: &Lane| &l.spans);
        let marks = || lanes.iter().flat_map(|l| &l.backups);
        let births = || lanes.iter().filter_map(|l| l.birth.as_ref());
        let from = spans().map(|s| s.from).chain(marks().map(|m| m.at)).chain(births().map(|b| b.left)).min()?;
        let last = spans().map(|s| s.to).chain(marks().map(|m| m.at)).chain(births().map(|b| b.begins)).max()?;
        Some(Self { lanes, from, last, now: now.max(last) })
    }

    /// Whether anything of that kind is in it.
    #[must_use]
    pub fn shows(&self, kind: SpanKind) -> bool {
        self.lanes.iter().flat_map(|l| &l.spans).any(|s| s.kind == kind)
    }
}

/// Puts a timeline and its descendants below each other. Of several children the one that left last comes first: no
/// line from a parent to a child crosses another lane then.
fn place(lanes: &mut Vec<Lane>, system: usize, all: &Timelines, timeline: &Timeline, parent: Option<usize>) {
    let index = lanes.len();
    lanes.push(lane(system, all, timeline, parent));
    let mut children: Vec<&Timeline> = all
        .timelines
        .iter()
        .filter(|t| t.fork.as_ref().is_some_and(|f| f.parent == timeline.timeline && t.timeline > timeline.timeline))
        .collect();
    children.sort_by_key(|t| std::cmp::Reverse((t.fork.as_ref().map(|f| f.lsn), t.timeline)));
    for child in children {
        place(lanes, system, all, child, Some(index));
    }
}

fn lane(system: usize, all: &Timelines, timeline: &Timeline, parent: Option<usize>) -> Lane {
    let begins = begin(timeline);
    let birth = timeline.fork.as_ref().zip(parent).and_then(|(fork, parent)| {
        let left = fork.left.or(begins)?;
        let title = words::fork(fork);
        Some(Birth { parent, left, begins: begins.unwrap_or(left).max(left), title })
    });
    let mut spans = rows(timeline, begins);
    spans.extend(windows(all, timeline, begins));
    spans.extend(timeline.gaps.iter().filter_map(|gap| {
        let (from, to) = (gap.from.time.or(gap.to.time)?, gap.to.time.or(gap.from.time)?);
        let title = words::missing(gap);
        Some(Span { kind: SpanKind::Gap, from, to: to.max(from), from_lsn: gap.from.lsn, to_lsn: gap.to.lsn, title })
    }));
    let backups: Vec<Mark> = timeline.backups.iter().map(mark).collect();
    let end =
        spans.iter().map(|s| s.to).chain(backups.iter().map(|b| b.at)).chain(birth.iter().map(|b| b.begins)).max();
    Lane { system, timeline: timeline.timeline, live: timeline.live, birth, spans, backups, end }
}

fn begin(timeline: &Timeline) -> Option<DateTime<Utc>> {
    let promoted = timeline.fork.as_ref().and_then(|f| f.promoted);
    let row = timeline.rows.first().and_then(|r| r.from.time);
    promoted.or(row).or_else(|| timeline.backups.first().map(|b| b.started))
}

/// The WAL itself, whether anything leads to it or not.
fn rows(timeline: &Timeline, begins: Option<DateTime<Utc>>) -> Vec<Span> {
    let span = |row: &crate::plan::window::Row| {
        let (from, to) = (row.from.time.or(row.to.time)?, row.to.time.or(row.from.time)?);
        let from = begins.map_or(from, |begins| from.max(begins));
        let title = format!("{} segments of WAL, {} to {}", row.segments, row.first, row.last);
        let (from_lsn, to_lsn) = (row.from.lsn, row.to.lsn);
        Some(Span { kind: SpanKind::Wal, from, to: to.max(from), from_lsn, to_lsn, title })
    };
    timeline.rows.iter().filter_map(span).collect()
}

/// What can be recovered of this timeline: by its own windows, and by those of its descendants up to where they left.
fn windows(all: &Timelines, timeline: &Timeline, begins: Option<DateTime<Utc>>) -> Vec<Span> {
    let fork = timeline.fork.as_ref();
    let mut spans: Vec<Span> = Vec::new();
    for other in &all.timelines {
        let Some(left) = all.left(other, timeline.timeline) else { continue };
        for window in &other.windows {
            let mut span = Span {
                kind: SpanKind::Recoverable,
                from: window.from.time.unwrap_or_default(),
                to: window.to.time.or(window.from.time).unwrap_or_default(),
                from_lsn: window.from.lsn,
                to_lsn: window.to.lsn,
                title: String::new(),
            };
            if let (Some(fork), Some(begins)) = (fork.filter(|f| f.lsn > span.from_lsn), begins) {
                (span.from, span.from_lsn) = (begins, fork.lsn);
            }
            if let Some((lsn, time)) = left.filter(|(lsn, _)| *lsn < span.to_lsn) {
                (span.to, span.to_lsn) = (time.unwrap_or(span.to), lsn);
            }
            if span.from_lsn <= span.to_lsn && window.from.time.is_some() {
                span.to = span.to.max(span.from);
                spans.push(span);
            }
        }
    }
    spans.sort_by_key(|s| (s.from_lsn, s.to_lsn));
    let mut merged: Vec<Span> = Vec::new();
    for span in spans {
        match merged.last_mut().filter(|last| last.to_lsn >= span.from_lsn) {
            Some(last) if span.to_lsn > last.to_lsn => (last.to, last.to_lsn) = (span.to.max(last.to), span.to_lsn),
            Some(_) => {}
            None => merged.push(span),
        }
    }
    for span in &mut merged {
        let (from, to) = (human::time(span.from), human::time(span.to));
        span.title = format!("recoverable from {from} to {to}, {} to {}", span.from_lsn, span.to_lsn);
    }
    merged
}

fn mark(backup: &BackupMark) -> Mark {
    let label = backup.label.as_ref().map(|l| format!(" \"{l}\"")).unwrap_or_default();
    let mut title = format!("backup {}{label}, {}", backup.id, human::size(backup.size));
    if let Some(broken) = &backup.broken {
        title = format!("{title}: cannot be used, {}", broken.why);
    }
    if backup.bad_pages > 0 {
        title = format!("{title}: {} damaged pages", backup.bad_pages);
    }
    let at = backup.from.time.filter(|_| backup.broken.is_none()).unwrap_or(backup.stopped);
    Mark { at, usable: backup.broken.is_none(), damaged: backup.bad_pages > 0, title }
}
