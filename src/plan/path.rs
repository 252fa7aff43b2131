//! The path of a recovery: which segments lead from a backup along a timeline's history, and which of them are there.

use crate::{
    error::Result,
    postgres::{SegmentName, SegmentSize, TimelineHistory},
    repository::{BackupDocument, Stored, System},
};

/// The name of segment `number` on the way to a history's timeline: where a timeline was left inside a segment, the
/// younger timeline's copy, because the older one's may be partial or missing.
#[must_use]
pub fn segment_on(history: &TimelineHistory, number: u64, size: SegmentSize) -> Option<SegmentName> {
    history.segment(number, size)
}

/// Whether recovery along `history` can begin with that backup: it began and ended before each fork.
#[must_use]
pub fn lies_on(backup: &BackupDocument, history: &TimelineHistory) -> bool {
    history.contains(backup.timeline, backup.start_lsn) && history.contains(backup.timeline, backup.stop_lsn)
}

/// An unbroken row of segments on a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The number of the first.
    pub first: u64,
    /// The segments, and how each is stored: in pieces only the last can be.
    pub segments: Vec<(SegmentName, Stored)>,
}

impl Run {
    /// The number of the first segment after it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.first + self.segments.len() as u64
    }

    /// The number of the first segment that is not whole.
    #[must_use]
    pub fn whole_end(&self) -> u64 {
        self.end() - u64::from(self.ends_in_pieces())
    }

    /// Whether of its last segment there are only pieces.
    #[must_use]
    pub fn ends_in_pieces(&self) -> bool {
        self.segments.last().is_some_and(|(_, stored)| stored.is_in_pieces())
    }

    /// The segments from `number` on.
    #[must_use]
    pub fn from(&self, number: u64) -> &[(SegmentName, Stored)] {
        let skip = usize::try_from(number.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.segments.get(skip..).unwrap_or_default()
    }

    /// Whether segment `number` is in it.
    #[must_use]
    pub fn holds(&self, number: u64) -> bool {
        (self.first..self.end()).contains(&number)
    }

    /// Whether all that a backup itself needs is in it: of that a segment counts only when it is whole.
    #[must_use]
    pub fn is_enough_for(&self, backup: &BackupDocument, size: SegmentSize) -> bool {
        let last = backup.last_segment.number(size);
        self.holds(size.number_of(backup.start_lsn))
            && last.is_ok_and(|last| last < self.whole_end() && self.holds(last))
    }
}

/// The unbroken rows of segments on the path to `history`'s timeline from segment `first` on, oldest first.
pub async fn runs(system: &System, history: &TimelineHistory, first: u64) -> Result<Vec<Run>> {
    let size = system.document.segment_size;
    let mut runs: Vec<Run> = Vec::new();
    let mut begin = first;
    let timelines = history.ancestors.iter().map(|entry| (entry.timeline, Some(entry.switch)));
    for (timeline, left) in timelines.chain([(history.timeline, None)]) {
        // The segment in which the timeline was left is the next one's.
        let end = left.map(|switch| size.number_of(switch));
        if end.is_some_and(|end| end <= begin) {
            continue;
        }
        let name = |number| SegmentName::from_number(timeline, number, size);
        let last = end.and_then(|end| name(end - 1));
        for (segment, stored) in system.segments_and_pieces(timeline, name(begin), last).await? {
            let number = segment.number(size)?;
            // Nothing goes on from a segment that is not whole.
            match runs.last_mut().filter(|run| run.whole_end() == number) {
                Some(run) => {
                    run.segments.truncate(usize::try_from(number - run.first).unwrap_or(usize::MAX));
                    run.segments.push((segment, stored));
                }
                None => runs.push(Run { first: number, segments: vec![(segment, stored)] }),
            }
        }
        begin = end.unwrap_or(begin);
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::TimelineId;

    #[test]
    fn at_a_switch_the_younger_copy_is_taken() {
        let two = TimelineId::new(2).unwrap();
        let history = TimelineHistory::parse(two, "1\t0/3000028\tx\n").unwrap();
        let size = SegmentSize::DEFAULT;
        let name = |number| segment_on(&history, number, size).unwrap().to_string();
        assert_eq!(name(2), "000000010000000000000002");
        assert_eq!(name(3), "000000020000000000000003");
        let border = TimelineHistory::parse(two, "1\t0/3000000\tx\n").unwrap();
        assert_eq!(segment_on(&border, 2, size).unwrap().to_string(), "000000010000000000000002");
        assert_eq!(segment_on(&border, 3, size).unwrap().to_string(), "000000020000000000000003");
    }
}
