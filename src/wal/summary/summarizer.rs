//! [`Summarizer`]: computes the summary of one segment from its bytes.

use super::{Ending, Lead, SUMMARY_FORMAT, Summary, Tail, add::filled, tally::Tally};
use crate::{
    postgres::Lsn,
    wal::{
        End, Fact, Reader, Record,
        decode::Interest,
        reader::{HELD, Leading, Unfinished},
        record::{HEADER, RecordHeader, resource_manager},
    },
};

/// The most bytes of the record at either end of a segment that a bounded summary holds.
const ENDS: usize = 8 << 10;
/// The most items of a list that are held at a time in a bounded summary.
const ITEMS: usize = 2 << 10;

/// Computes the summary of one segment from its bytes.
#[derive(Debug)]
pub struct Summarizer {
    reader: Reader,
    pub(super) gathered: Gathered,
}

/// What the records read so far tell.
#[derive(Debug)]
pub(super) struct Gathered {
    summary: Summary,
    rows: Tally,
    /// The databases that were made, and by which transactions.
    databases: Vec<(u32, u32)>,
    bounded: bool,
}

impl Summarizer {
    /// For the segment that begins at `start`. Its lists are cut so that the summary fits into the head of an object:
    /// in JSON it has at most [`Summary::LONGEST`] bytes.
    #[must_use]
    pub fn new(start: Lsn) -> Self {
        Self { reader: Reader::keeping(start, ENDS), gathered: Gathered::new(start, true) }
    }

    /// The same with whole lists, whatever their length. Only of [`Summary::rows`] no more than some hundred thousand are
    /// told.
    #[must_use]
    pub fn whole(start: Lsn) -> Self {
        Self { reader: Reader::keeping(start, HELD), gathered: Gathered::new(start, false) }
    }

    /// Takes the next bytes of the segment.
    pub fn feed(&mut self, bytes: &[u8]) {
        for record in self.reader.read(bytes) {
            self.gathered.take(record);
        }
    }

    /// The summary, when all bytes were fed.
    #[must_use]
    pub fn finish(self) -> Summary {
        let Self { reader, gathered: Gathered { mut summary, rows, bounded, .. } } = self;
        let kept = if bounded { ENDS } else { HELD };
        summary.ending = match reader.end() {
            End::OfInput { .. } if reader.is_switched() => Ending::Switch,
            End::OfInput { .. } => Ending::Full,
            End::Zeros { .. } => Ending::Zeros,
            End::Garbage { at, why } => Ending::Broken { at, why },
        };
        summary.rows = rows.finish();
        summary.tail = reader.unfinished().map(|record| Tail::of(record, reader.last(), kept));
        if let Some(tail) = &summary.tail {
            summary.first.get_or_insert(tail.start);
            summary.last = Some(tail.start);
            summary.prev = summary.prev.or_else(|| tail.header().map(|header| header.prev));
        }
        if let (Some(leading), Some(segment)) = (reader.leading(), reader.segment()) {
            let until = segment.start + segment.size.bytes();
            if summary.records == 0 && summary.ending == Ending::Zeros && ends_a_switch(leading) {
                summary.ending = Ending::Switch;
                summary.end = until;
            }
            summary.lead = Some(Lead::of(leading, until));
        }
        if bounded {
            summary.bound();
        }
        summary
    }
}

impl Gathered {
    fn new(start: Lsn, bounded: bool) -> Self {
        Self {
            summary: Summary { format: SUMMARY_FORMAT, end: start, ..Summary::default() },
            rows: Tally::new(bounded),
            databases: Vec::new(),
            bounded,
        }
    }

    pub(super) fn take(&mut self, mut record: Record) {
        if let Fact::DatabaseCreate { oid, .. } = record.fact {
            self.databases.push((oid, record.xid));
        }
        match filled(&record.fact) {
            Some(file) if !self.databases.is_empty() && self.databases.contains(&(file.database, record.xid)) => {
                record.fact = Fact::Other
            }
            _ => self.rows.count(&record),
        }
        if self.summary.add(record) && self.bounded {
            self.summary.prune(ITEMS);
        }
    }
}

/// Whether these last bytes of a record are those of a switch: its header says so, and it has nothing else.
fn ends_a_switch(leading: &Leading) -> bool {
    // xl_info and xl_rmid are the first two of the last eight bytes.
    let bytes = leading.bytes.len().checked_sub(8).and_then(|at| leading.bytes.get(at..at + 2));
    (leading.left as usize) < HEADER && bytes == Some(&[0x40, resource_manager::XLOG])
}

impl Lead {
    fn of(leading: &Leading, until: Lsn) -> Self {
        let Leading { left, read, crc, end, .. } = *leading;
        Self { left, here: read, crc, end, until, bytes: Some(leading.bytes.clone()) }
    }
}

impl Tail {
    fn of(record: &Unfinished, prev: Option<Lsn>, kept: usize) -> Self {
        let mut bytes = record.header().to_vec();
        bytes.extend_from_slice(&record.body[..record.body.len().min(kept)]);
        let mut tail =
            Self { start: record.start, prev, here: record.read, crc: record.crc, bytes: Some(bytes), unknown: false };
        if tail.interest() == Interest::None {
            tail.bytes.iter_mut().for_each(|bytes| bytes.truncate(HEADER));
        }
        tail
    }

    /// The record's header, when it is whole.
    pub(super) fn header(&self) -> Option<RecordHeader> {
        self.bytes.as_deref()?.first_chunk().and_then(RecordHeader::parse)
    }
}
