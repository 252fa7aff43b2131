//! Rows of segments by their numbers: which are there, which lie on a path, which are missing.

use std::{collections::BTreeMap, ops::Range};

use crate::{
    postgres::{SegmentName, SegmentSize, TimelineHistory, TimelineId},
    repository::Stored,
};

/// Every segment that was listed, with the length of its object.
#[derive(Debug, Default)]
pub(super) struct Listing {
    timelines: BTreeMap<TimelineId, Listed>,
}

#[derive(Debug, Default)]
struct Listed {
    /// In the order of their numbers; in pieces is the last of a row at most.
    segments: Vec<(SegmentName, Stored)>,
    rows: Vec<Range<u64>>,
}

/// An unbroken row of segments along a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// The parts of each timeline, without a gap between them.
    pub parts: Vec<(TimelineId, Range<u64>)>,
    /// Of its last segment there are only pieces.
    pub in_pieces: bool,
}

impl Run {
    pub fn first(&self) -> u64 {
        self.parts.first().map_or(0, |(_, numbers)| numbers.start)
    }

    /// The first number that is not in it.
    pub fn end(&self) -> u64 {
        self.parts.last().map_or(0, |(_, numbers)| numbers.end)
    }

    /// The number of the first segment that is not whole.
    pub fn whole_end(&self) -> u64 {
        self.end() - u64::from(self.in_pieces)
    }

    pub fn holds(&self, number: u64) -> bool {
        (self.first()..self.end()).contains(&number)
    }

    /// The same without what comes before `start` and from `end` on.
    pub fn within(&self, start: u64, end: u64) -> Self {
        let cut = |(timeline, numbers): &(TimelineId, Range<u64>)| {
            let numbers = numbers.start.max(start)..numbers.end.min(end);
            (!numbers.is_empty()).then_some((*timeline, numbers))
        };
        let in_pieces = self.in_pieces && end >= self.end();
        Self { parts: self.parts.iter().filter_map(cut).collect(), in_pieces }
    }
}

impl Listing {
    /// Adds all segments of a timeline, sorted by their names. Names that are impossible at this size are passed over.
    pub fn add(&mut self, timeline: TimelineId, mut segments: Vec<(SegmentName, Stored)>, size: SegmentSize) {
        let mut rows: Vec<Range<u64>> = Vec::new();
        segments.retain(|(name, _)| name.number(size).is_ok());
        for number in segments.iter().filter_map(|(name, _)| name.number(size).ok()) {
            match rows.last_mut().filter(|row| row.end == number) {
                Some(row) => row.end += 1,
                None => rows.push(number..number + 1),
            }
        }
        self.timelines.insert(timeline, Listed { segments, rows });
    }

    /// How many whole segments of that timeline there are, and the bytes of all objects.
    pub fn count(&self, timeline: TimelineId) -> (u64, u64) {
        let segments = self.timelines.get(&timeline).map_or(&[][..], |l| &l.segments);
        let whole = segments.iter().filter(|(_, stored)| !stored.is_in_pieces()).count();
        (whole as u64, segments.iter().map(|(_, stored)| stored.length()).sum())
    }

    /// Whether of segment `number` of a timeline there are only pieces.
    pub fn is_in_pieces(&self, timeline: TimelineId, number: u64) -> bool {
        let segments = self.timelines.get(&timeline).map_or(&[][..], |l| &l.segments);
        let last = segments.last().filter(|(_, stored)| stored.is_in_pieces());
        last.is_some() && self.rows(timeline).last().is_some_and(|row| row.end == number + 1)
    }

    /// The unbroken rows of a timeline's own segments.
    pub fn rows(&self, timeline: TimelineId) -> &[Range<u64>] {
        self.timelines.get(&timeline).map_or(&[], |l| &l.rows)
    }

    /// The unbroken rows on the path to a history's timeline. The segment in which a timeline was left is the next
    /// one's.
    pub fn runs(&self, history: &TimelineHistory, size: SegmentSize) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        let mut begin = 0;
        let ancestors = history.ancestors.iter().map(|e| (e.timeline, size.number_of(e.switch)));
        for (timeline, end) in ancestors.chain([(history.timeline, u64::MAX)]) {
            for row in self.rows(timeline) {
                let numbers = row.start.max(begin)..row.end.min(end);
                if numbers.is_empty() {
                    continue;
                }
                let in_pieces = self.is_in_pieces(timeline, numbers.end - 1);
                // Nothing goes on from a segment that is not whole.
                match runs.last_mut().filter(|run| run.end() == numbers.start && !run.in_pieces) {
                    Some(run) => {
                        run.parts.push((timeline, numbers));
                        run.in_pieces = in_pieces;
                    }
                    None => runs.push(Run { parts: vec![(timeline, numbers)], in_pieces }),
                }
            }
            begin = begin.max(end);
        }
        runs
    }

    /// The segments of a run, and how each is stored.
    pub fn segments(&self, run: &Run) -> Vec<(SegmentName, Stored)> {
        let mut segments = Vec::new();
        for (timeline, numbers) in &run.parts {
            let Some(listed) = self.timelines.get(timeline) else { continue };
            let mut before = 0;
            for row in &listed.rows {
                if row.contains(&numbers.start) {
                    let at = usize::try_from(before + numbers.start - row.start).unwrap_or(usize::MAX);
                    let count = usize::try_from(numbers.end - numbers.start).unwrap_or(usize::MAX);
                    segments.extend(listed.segments.iter().skip(at).take(count));
                }
                before += row.end - row.start;
            }
        }
        segments
    }
}

/// The numbers that are missing between runs, split where a path goes over to the next timeline.
pub(super) fn gaps(runs: &[Run], history: &TimelineHistory, size: SegmentSize) -> Vec<(TimelineId, Range<u64>)> {
    let mut gaps = Vec::new();
    for pair in runs.windows(2) {
        let [before, after] = pair else { continue };
        let mut begin = before.whole_end();
        for (timeline, end) in history.ancestors.iter().map(|e| (e.timeline, size.number_of(e.switch))) {
            let end = end.min(after.first());
            if begin < end {
                gaps.push((timeline, begin..end));
                begin = end;
            }
        }
        if begin < after.first() {
            gaps.push((history.timeline, begin..after.first()));
        }
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(names: &[&str]) -> Listing {
        let mut listing = Listing::default();
        let mut all: BTreeMap<TimelineId, Vec<(SegmentName, Stored)>> = BTreeMap::new();
        for name in names {
            let name: SegmentName = name.parse().unwrap();
            all.entry(name.timeline).or_default().push((name, Stored::Whole(100)));
        }
        for (timeline, segments) in all {
            listing.add(timeline, segments, SegmentSize::DEFAULT);
        }
        listing
    }

    fn timeline(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    #[test]
    fn a_path_takes_the_younger_copy_and_leaves_the_older_tail() {
        let listing = listing(&[
            "000000010000000000000001",
            "000000010000000000000002",
            "000000010000000000000003",
            "000000010000000000000004",
            "000000020000000000000003",
            "000000020000000000000006",
        ]);
        let history = TimelineHistory::parse(timeline(2), "1\t0/3000028\tx\n").unwrap();
        let runs = listing.runs(&history, SegmentSize::DEFAULT);
        assert_eq!(runs.len(), 2);
        assert_eq!(runs[0].parts, [(timeline(1), 1..3), (timeline(2), 3..4)]);
        let names: Vec<String> = listing.segments(&runs[0]).iter().map(|(name, _)| name.to_string()).collect();
        assert_eq!(names, ["000000010000000000000001", "000000010000000000000002", "000000020000000000000003"]);
        assert_eq!(listing.segments(&runs[1])[0].0.to_string(), "000000020000000000000006");
        assert_eq!(gaps(&runs, &history, SegmentSize::DEFAULT), [(timeline(2), 4..6)]);
        assert_eq!(runs[0].within(2, 9).parts, [(timeline(1), 2..3), (timeline(2), 3..4)]);
        assert_eq!(listing.rows(timeline(1)).first(), Some(&(1..5)));
    }

    #[test]
    fn a_gap_over_a_fork_is_told_by_both_names() {
        let listing = listing(&["000000010000000000000001", "000000020000000000000005"]);
        let history = TimelineHistory::parse(timeline(2), "1\t0/3000028\tx\n").unwrap();
        let runs = listing.runs(&history, SegmentSize::DEFAULT);
        assert_eq!(gaps(&runs, &history, SegmentSize::DEFAULT), [(timeline(1), 2..3), (timeline(2), 3..5)]);
    }
}
