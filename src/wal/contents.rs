//! [`Contents`]: what one segment holds, for a person who looks at it: counts, every commit and abort, whatever else is
//! worth a line. A record that straddles two segments belongs to the one it starts in.

use std::{borrow::Cow, collections::BTreeMap};

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{End, Ended, Ending, Fact, List, Reader, Record, SegmentHeader, Told};
use crate::postgres::{Lsn, SegmentSize};

/// The most entries of [`Contents::events`].
const EVENTS: usize = 10_000;

/// What one segment holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// The segment's header; none when it is not sound.
    pub header: Option<SegmentHeader>,
    /// The start of the first record that starts in it.
    pub first: Option<Lsn>,
    /// The start of the last whole record.
    pub last: Option<Lsn>,
    /// The end of that record; after a switch: the end of the segment.
    pub end: Lsn,
    /// Its records by resource manager, those with the most bytes first.
    pub managers: Vec<ManagerCount>,
    /// Commits, prepared ones included.
    pub commits: u64,
    /// Aborts, prepared ones included.
    pub aborts: u64,
    /// The least and the greatest time of commits and aborts.
    pub times: Option<(DateTime<Utc>, DateTime<Utc>)>,
    /// Every commit and abort, where they were asked for.
    pub transactions: Vec<Ended>,
    /// What is worth a line each: restore points, checkpoints, parameter changes, tablespaces, databases, messages,
    /// commits that remove something.
    pub events: List<Told>,
    /// How its records end.
    pub ending: Ending,
    /// The record at its end that goes on in a segment which was not fed.
    pub unfinished: Option<Lsn>,
}

impl Contents {
    /// How many records there are.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.managers.iter().map(|count| count.records).sum()
    }

    /// How many bytes the records have.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.managers.iter().map(|count| count.bytes).sum()
    }
}

/// The records of one resource manager.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ManagerCount {
    /// Its name, as `pg_waldump` has it.
    pub name: Cow<'static, str>,
    /// How many.
    pub records: u64,
    /// Their bytes, headers and page images included.
    pub bytes: u64,
}

/// Looks through the bytes of one segment and, while [`Inspector::wants_more`], those of the segments after it.
#[derive(Debug)]
pub struct Inspector {
    reader: Reader,
    /// Where the segment ends.
    limit: Lsn,
    each: bool,
    managers: BTreeMap<u8, ManagerCount>,
    found: Contents,
}

impl Inspector {
    /// For the segment of `size` whose first byte is at `start`. With `each` every commit and abort is kept.
    #[must_use]
    pub fn new(start: Lsn, size: SegmentSize, each: bool) -> Self {
        let found = Contents { end: start, ..Contents::default() };
        let limit = start + size.bytes();
        Self { reader: Reader::new(start), limit, each, managers: BTreeMap::new(), found }
    }

    /// Takes the next bytes, from the segment's first one on.
    pub fn feed(&mut self, bytes: &[u8]) {
        for record in self.reader.read(bytes) {
            if record.start < self.limit {
                let count = self.managers.entry(record.rmid).or_insert_with(|| ManagerCount::of(record.rmid));
                count.records += 1;
                count.bytes += u64::from(record.length);
                self.found.add(record, self.each);
            }
        }
        self.found.header = self.found.header.or(self.reader.segment().copied());
    }

    /// Whether the segment's last record goes on after the bytes that were fed.
    #[must_use]
    pub fn wants_more(&self) -> bool {
        self.unfinished().is_some()
    }

    /// Where that record starts.
    #[must_use]
    pub fn unfinished(&self) -> Option<Lsn> {
        match self.reader.end() {
            End::OfInput { unfinished } => unfinished.filter(|start| *start < self.limit),
            _ => None,
        }
    }

    /// What was found.
    #[must_use]
    pub fn finish(self) -> Contents {
        let unfinished = self.unfinished();
        let mut found = self.found;
        found.unfinished = unfinished;
        found.managers = self.managers.into_values().collect();
        found.managers.sort_by_key(|count| std::cmp::Reverse(count.bytes));
        match self.reader.end() {
            // Read to its end, whatever comes after it.
            _ if found.end >= self.limit => {}
            End::Zeros { .. } => found.ending = Ending::Zeros,
            End::Garbage { at, why } if at < self.limit => found.ending = Ending::Broken { at, why },
            End::OfInput { .. } | End::Garbage { .. } => {}
        }
        found
    }
}

impl Contents {
    fn add(&mut self, record: Record, each: bool) {
        self.first.get_or_insert(record.start);
        self.last = Some(record.start);
        self.end = record.end;
        let (is_event, end) = match &record.fact {
            Fact::Switch => {
                self.ending = Ending::Switch;
                return;
            }
            Fact::Commit(end) | Fact::Abort(end) => (!end.removed.is_empty() || !end.dropped.is_empty(), Some(end)),
            fact => (is_rare(fact), None),
        };
        if let Some(end) = end {
            let committed = matches!(record.fact, Fact::Commit(_));
            *if committed { &mut self.commits } else { &mut self.aborts } += 1;
            let (least, greatest) = self.times.unwrap_or((end.time, end.time));
            self.times = Some((least.min(end.time), greatest.max(end.time)));
            if each {
                self.transactions.push(Ended { xid: end.xid, time: end.time, lsn: record.start, committed });
            }
        }
        if is_event {
            let Record { start: lsn, end, xid, fact, .. } = record;
            self.events.cut |= self.events.items.len() == EVENTS;
            self.events.items.extend((!self.events.cut).then_some(Told { lsn, end, xid, fact }));
        }
    }
}

/// Whether it is worth a line, and rare enough for one.
fn is_rare(fact: &Fact) -> bool {
    !matches!(
        fact,
        Fact::Switch
            | Fact::CheckpointRedo { .. }
            | Fact::FileCreate { .. }
            | Fact::Locks { .. }
            | Fact::Rows(_)
            | Fact::Named { .. }
            | Fact::Renamed { .. }
            | Fact::PageImage { .. }
            | Fact::Assignment { .. }
            | Fact::Other
    )
}

impl ManagerCount {
    fn of(rmid: u8) -> Self {
        Self { name: manager_name(rmid), records: 0, bytes: 0 }
    }
}

/// The name of a resource manager (`src/include/access/rmgrlist.h`). `pg_waldump` does not know those of extensions
/// either.
#[must_use]
pub fn manager_name(rmid: u8) -> Cow<'static, str> {
    const BUILT_IN: [&str; 23] = [
        "XLOG",
        "Transaction",
        "Storage",
        "CLOG",
        "Database",
        "Tablespace",
        "MultiXact",
        "RelMap",
        "Standby",
        "Heap2",
        "Heap",
        "Btree",
        "Hash",
        "Gin",
        "Gist",
        "Sequence",
        "SPGist",
        "BRIN",
        "CommitTs",
        "ReplicationOrigin",
        "Generic",
        "LogicalMessage",
        "XLOG2",
    ];
    BUILT_IN.get(usize::from(rmid)).map_or_else(|| format!("custom{rmid:03}").into(), |name| (*name).into())
}
