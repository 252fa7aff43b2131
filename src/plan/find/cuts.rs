//! Where the summaries do not list all that transactions changed, so that a count can only be a least one.

use crate::{
    postgres::Lsn,
    wal::{Summary, summary::FEW},
};

/// A segment whose counts of rows are cut.
#[derive(Clone, Copy, Debug)]
struct Cut {
    /// Its first record.
    first: Lsn,
    /// The end of its last.
    end: Lsn,
    /// Whether transactions are missing that went on past it.
    unended: bool,
}

/// The segments whose counts of rows are cut, in the order of the log.
#[derive(Debug, Default)]
pub(super) struct Cuts {
    segments: Vec<Cut>,
    /// How many rows one transaction can have changed that is listed nowhere, because it changed few in each segment.
    unlisted: u64,
}

impl Cuts {
    /// Takes in the next segment.
    pub fn note(&mut self, summary: &Summary) {
        let (Some(first), true) = (summary.first, summary.rows.cut) else { return };
        let most = summary.rows.rest.map_or(FEW, |rest| rest.most_unended);
        self.unlisted = self.unlisted.saturating_add(most);
        self.segments.push(Cut { first, end: summary.end, unended: most > 0 });
    }

    /// What may be missing of a search for transactions that updated or deleted so many rows of a table, in words.
    pub fn remark(&self, rows: u64) -> Option<String> {
        let segments = match self.segments.len() {
            1 => "1 segment".to_owned(),
            n => format!("{n} segments"),
        };
        if self.segments.is_empty() || self.unlisted < rows && rows >= FEW {
            None
        } else if rows < FEW {
            Some(format!("of {segments} only what changed {FEW} rows of a table or more is told, and little besides"))
        } else {
            Some(format!(
                "a transaction that changed few rows in each of many segments may be missing: {segments} do not tell of all"
            ))
        }
    }

    /// Whether something can be missing of a transaction that was listed last by a record at `listed`, and ended at `end`.
    pub fn miss(&self, listed: Lsn, end: Lsn) -> bool {
        let begin = self.segments.partition_point(|cut| cut.first <= listed);
        let after = self.segments[begin..].iter().take_while(|cut| cut.first <= end);
        after.clone().any(|cut| cut.unended || end <= cut.end)
    }

    /// Whether something can be missing of a transaction that goes on, and was listed last at `listed`.
    pub fn miss_since(&self, listed: Lsn) -> bool {
        self.segments.iter().rev().take_while(|cut| cut.first > listed).any(|cut| cut.unended)
    }

    /// Whether something can be missing of a transaction that begins to be listed at `listed`: it may have been under way
    /// in the segment before.
    pub fn miss_before(&self, previous: Option<Lsn>) -> bool {
        let last = self.segments.last();
        last.is_some_and(|cut| cut.unended && Some(cut.first) == previous)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::{Rest, RowCounts};

    fn cuts(segments: &[(u64, Option<u64>)]) -> Cuts {
        let mut cuts = Cuts::default();
        for (first, most_unended) in segments {
            let rest = most_unended.map(|most| Rest { pairs: 1, most, most_unended: most, ..Rest::default() });
            let rows = RowCounts { items: Vec::new(), cut: true, rest };
            cuts.note(&Summary { first: Some(Lsn(*first)), end: Lsn(first + 99), rows, ..Summary::default() });
        }
        cuts
    }

    #[test]
    fn what_goes_on_is_missing_where_such_was_left_out() {
        let cuts = cuts(&[(100, Some(0)), (200, Some(7)), (400, None)]);
        // It ended in a segment of which only what ended there is missing.
        assert!(cuts.miss(Lsn(50), Lsn(150)));
        // It was listed there, or went on.
        assert!(!cuts.miss(Lsn(120), Lsn(150)) && !cuts.miss(Lsn(50), Lsn(99)));
        assert!(cuts.miss(Lsn(120), Lsn(350)) && cuts.miss(Lsn(350), Lsn(950)));
        assert!(!cuts.miss(Lsn(450), Lsn(950)));
        assert!(cuts.miss_since(Lsn(250)) && !cuts.miss_since(Lsn(400)));
        assert!(cuts.remark(7 + FEW).is_some() && cuts.remark(8 + FEW).is_none() && cuts.remark(1).is_some());
        assert_eq!(Cuts::default().remark(1), None);
    }
}
