//! Which segments of which timelines lead along a history.

use std::collections::BTreeMap;

use super::{inventory::Inventory, ranges::Ranges};
use crate::postgres::{Lsn, SegmentName, SegmentSize, TimelineHistory, TimelineId};

/// Numbers of segments by timeline.
pub type Segments = BTreeMap<TimelineId, Ranges>;

/// The segments on the way to a history's timeline, from number `first` on and before `end`. Of a segment in which a
/// timeline was left both copies are among them.
pub fn along(history: &TimelineHistory, first: u64, end: u64, size: SegmentSize) -> Vec<(TimelineId, u64, u64)> {
    let mut way = Vec::new();
    let mut begin = first;
    for entry in &history.ancestors {
        // A switch at the very start of a segment leaves nothing of it to the older timeline.
        let left = entry.switch.0.div_ceil(size.bytes());
        way.push((entry.timeline, begin, left.min(end)));
        begin = begin.max(size.number_of(entry.switch));
    }
    way.push((history.timeline, begin, end));
    way.retain(|(_, first, end)| first < end);
    way
}

/// Adds these segments.
pub fn add(to: &mut Segments, way: Vec<(TimelineId, u64, u64)>) {
    for (timeline, first, end) in way {
        to.entry(timeline).or_default().add(first, end);
    }
}

/// Rows of segments by their names.
pub fn named(rows: &[(SegmentName, SegmentName)], size: SegmentSize) -> Segments {
    let mut found = Segments::new();
    for (first, last) in rows {
        if let (Ok(begin), Ok(end)) = (first.number(size), last.number(size)) {
            found.entry(first.timeline).or_default().add(begin, end + 1);
        }
    }
    found
}

/// What can be recovered with these segments along a history: of each number whether the segment that recovery reads is
/// among them.
pub struct Way<'a> {
    history: &'a TimelineHistory,
    there: &'a Segments,
    size: SegmentSize,
}

impl<'a> Way<'a> {
    /// The way to a history's timeline through these segments.
    pub fn new(history: &'a TimelineHistory, there: &'a Segments, size: SegmentSize) -> Self {
        Self { history, there, size }
    }

    /// The end of the unbroken row of segments that begins with number `first`: the first that is missing.
    pub fn end(&self, first: u64) -> u64 {
        let mut at = first;
        loop {
            let Some(name) = self.history.segment(at, self.size) else { return at };
            let Some(row) = self.there.get(&name.timeline).and_then(|ranges| ranges.end_from(at)) else { return at };
            // The segment in which a timeline was left is the younger one's.
            match self.history.left(name.timeline).ok().flatten().map(|switch| self.size.number_of(switch)) {
                Some(left) if row >= left => at = left,
                _ => return row,
            }
        }
    }

    /// Where the timeline itself begins on it.
    pub fn fork(&self) -> Lsn {
        self.history.ancestors.last().map_or(Lsn(0), |entry| entry.switch)
    }
}

/// The segments of a system that are there and not condemned.
#[must_use]
pub fn there(found: &Inventory) -> Segments {
    let condemned = named(&found.condemned.1.wal, found.segment_size);
    let nothing = Ranges::default();
    let left = |(timeline, line): (&TimelineId, &super::inventory::Line)| {
        (*timeline, line.there().without(condemned.get(timeline).unwrap_or(&nothing)))
    };
    found.lines.iter().map(left).collect()
}
