//! Timeline history files (`src/backend/access/transam/timeline.c`): from which timeline, and at which LSN,
//! each timeline branched off.

use super::{Lsn, SegmentName, SegmentSize, TimelineId};
use crate::error::{Error, Result};

/// One line of a history file: WAL up to `switch` belongs to `timeline`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryEntry {
    /// The ancestor.
    pub timeline: TimelineId,
    /// Where its child branched off: the first byte that is not the ancestor's.
    pub switch: Lsn,
    /// Why, in PostgreSQL's words.
    pub reason: String,
}

/// A timeline and its ancestors, oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineHistory {
    /// The timeline itself.
    pub timeline: TimelineId,
    /// Its ancestors, oldest first, each with the LSN where it was left.
    pub ancestors: Vec<HistoryEntry>,
}

impl TimelineHistory {
    /// A timeline without ancestors, as timeline 1 is: it has no history file.
    #[must_use]
    pub fn root(timeline: TimelineId) -> Self {
        Self { timeline, ancestors: Vec::new() }
    }

    /// Reads the history file of `timeline` by PostgreSQL's rules (`readTimeLineHistory`): blank lines and
    /// comments are passed over, timelines must rise, the last must be below `timeline`.
    ///
    /// A switch point may lie before those of older timelines: PostgreSQL adds the whole history of the timeline that
    /// recovery was told to follow, also when it ended before that had begun (`writeTimeLineHistory`). Nothing past that
    /// point is part of the history (`tliOfPointInHistory`), so the older ones were left there at the latest, too.
    pub fn parse(timeline: TimelineId, text: &str) -> Result<Self> {
        let bad = |line: &str, why: &str| {
            Error::damaged(format!("{}.history: {why}: \"{}\"", timeline.hex(), line.trim_end()))
        };
        let mut ancestors: Vec<HistoryEntry> = Vec::new();
        for line in text.lines() {
            let trimmed = line.trim_start();
            if trimmed.is_empty() || trimmed.starts_with('#') {
                continue;
            }
            let mut fields = trimmed.splitn(3, |c: char| c.is_ascii_whitespace());
            let parent = fields.next().and_then(|f| f.parse().ok()).ok_or_else(|| bad(line, "no timeline number"))?;
            let switch = fields.next().and_then(|f| f.parse().ok()).ok_or_else(|| bad(line, "no switch point"))?;
            if ancestors.last().is_some_and(|last| last.timeline >= parent) {
                return Err(bad(line, "timelines must rise"));
            }
            ancestors.iter_mut().for_each(|older| older.switch = older.switch.min(switch));
            let reason = fields.next().unwrap_or_default().trim().to_owned();
            ancestors.push(HistoryEntry { timeline: parent, switch, reason });
        }
        if ancestors.last().is_some_and(|last| last.timeline >= timeline) {
            return Err(bad("", "an ancestor is not older than the timeline itself"));
        }
        Ok(Self { timeline, ancestors })
    }

    /// The history of a timeline of this history; `None` of one that is not in it.
    #[must_use]
    pub fn of_ancestor(mut self, timeline: TimelineId) -> Option<Self> {
        if timeline != self.timeline {
            let at = self.ancestors.iter().position(|entry| entry.timeline == timeline)?;
            self.ancestors.truncate(at);
        }
        Some(Self { timeline, ..self })
    }

    /// Which timeline of this history the byte at `lsn` belongs to.
    #[must_use]
    pub fn at(&self, lsn: Lsn) -> TimelineId {
        self.ancestors.iter().find(|entry| lsn < entry.switch).map_or(self.timeline, |entry| entry.timeline)
    }

    /// The name of segment `number` on the way to this timeline: where a timeline was left inside a segment, the younger
    /// timeline's copy, because the older one's may be partial or missing. `None` past the end of the address space.
    #[must_use]
    pub fn segment(&self, number: u64, size: SegmentSize) -> Option<SegmentName> {
        let last_byte = Lsn(number.checked_mul(size.bytes())?.checked_add(size.bytes() - 1)?);
        SegmentName::from_number(self.at(last_byte), number, size)
    }

    /// Where `ancestor` was left on the way to this timeline; `None` for the timeline itself.
    /// An error when `ancestor` does not belong to this history.
    pub fn left(&self, ancestor: TimelineId) -> Result<Option<Lsn>> {
        if ancestor == self.timeline {
            return Ok(None);
        }
        self.ancestors.iter().find(|entry| entry.timeline == ancestor).map(|entry| Some(entry.switch)).ok_or_else(
            || Error::not_found(format!("timeline {ancestor} is no ancestor of timeline {}", self.timeline)),
        )
    }

    /// Whether the log position `lsn`, reached on `timeline`, lies on this history
    /// (`tliOfPointInHistory` and the fork check of `xlogrecovery.c`).
    #[must_use]
    pub fn contains(&self, timeline: TimelineId, lsn: Lsn) -> bool {
        match self.left(timeline) {
            Ok(None) => true,
            Ok(Some(switch)) => lsn <= switch,
            Err(_) => false,
        }
    }

    /// Whether `timeline` is this one or an ancestor of it.
    #[must_use]
    pub fn includes(&self, timeline: TimelineId) -> bool {
        self.left(timeline).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tli(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    #[test]
    fn each_byte_belongs_to_one_timeline() {
        let text =
            "# comment\n1\t0/5000000\tno recovery target specified\n\n3\t0/7000028\tbefore 2026-11-21 01:47:27+00\n";
        let history = TimelineHistory::parse(tli(4), text).unwrap();
        assert_eq!(history.at(Lsn(0x4FF_FFFF)), tli(1));
        assert_eq!(history.at(Lsn(0x500_0000)), tli(3));
        assert_eq!(history.at(Lsn(0x700_0028)), tli(4));
        assert_eq!(history.left(tli(3)).unwrap(), Some(Lsn(0x700_0028)));
        assert_eq!(history.ancestors[1].reason, "before 2026-11-21 01:47:27+00");
        assert!(history.contains(tli(1), Lsn(0x500_0000)));
        assert!(!history.contains(tli(1), Lsn(0x500_0001)));
        assert!(!history.contains(tli(2), Lsn(1)));
    }

    #[test]
    fn what_recovery_never_reached_is_no_part_of_the_history() {
        let text = "1\t0/3000000\tx\n2\t0/5000000\tx\n3\t0/7000000\tx\n4\t0/4000000\tafter LSN 0/3FFFFC0\n";
        let history = TimelineHistory::parse(tli(5), text).unwrap();
        let at = |lsn: u64| history.at(Lsn(lsn)).to_string();
        assert_eq!([at(0x2FF_FFFF), at(0x3FF_FFFF), at(0x400_0000), at(0x600_0000)], ["1", "2", "5", "5"]);
        for passed in [2, 3, 4] {
            assert!(history.contains(tli(passed), Lsn(0x400_0000)));
            assert!(!history.contains(tli(passed), Lsn(0x400_0001)));
        }
    }

    #[test]
    fn refuses_what_postgresql_refuses() {
        for text in ["x\t0/1\n", "1\n", "1\t0/1\n1\t0/2\n", "3\t0/1\n2\t0/9\n", "5\t0/1\n"] {
            assert!(TimelineHistory::parse(tli(4), text).is_err(), "{text:?}");
        }
    }
}
