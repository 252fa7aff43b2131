//! The segments of the simulated archive: commits every few milliseconds, a checkpoint now and then, no-ops in between.
//! All are laid out alike, so that what a segment tells is known without its bytes, and its bytes without those before.

use chrono::{DateTime, TimeDelta, Utc};
use walden::{
    postgres::{Lsn, SegmentName, SegmentSize, SystemId, TimelineId, Version},
    seal::Blake3,
    wal::{
        Checkpoint, Ended, Fact, List, RelFile, Rest, RowCount, RowCounts, Summary, Told, WalLevel,
        summary::SUMMARY_FORMAT,
    },
};

pub const SIZE: SegmentSize = SegmentSize::DEFAULT;
/// The system that wrote it all.
pub const SYSTEM: SystemId = SystemId(7);
/// The version that wrote it all.
pub const VERSION: Version = Version(17);
/// Commits in one segment.
pub const COMMITS: u64 = 400;
/// Microseconds from one commit to the next.
pub const BETWEEN: i64 = 5_000;

const BYTES: u64 = 16 << 20;
const PAGE: usize = 8192;
/// A checkpoint every so many segments.
const CHECKPOINTS: u64 = 16;
/// Microseconds from 1970 to PostgreSQL's epoch.
const EPOCH: i64 = 946_684_800_000_000;

/// One timeline of the archive.
#[derive(Clone, Copy, Debug)]
pub struct Writer {
    /// The timeline.
    pub timeline: u32,
    /// When its segment 0 would have been written.
    pub began: DateTime<Utc>,
    /// Where the clock was wrong.
    pub wrong: Option<Wrong>,
}

/// A stretch of segments in which the clock was set back.
#[derive(Clone, Copy, Debug)]
pub struct Wrong {
    /// The number of the first segment.
    pub from: u64,
    /// The number of the first one in which it was right again.
    pub to: u64,
    /// By how much.
    pub by: TimeDelta,
}

/// Where the records of every segment start, from its first byte.
#[derive(Clone, Debug)]
pub struct Layout {
    /// A checkpoint, or a no-op in its place.
    checkpoint: (u64, u64),
    commits: Vec<u64>,
    records: u64,
    last: u64,
}

impl Layout {
    pub fn new() -> Self {
        let writer = Writer { timeline: 1, began: DateTime::UNIX_EPOCH, wrong: None };
        writer.build(1, 0).1
    }
}

impl Writer {
    /// When commit `n` of segment `number` happened.
    pub fn time(&self, number: u64, n: u64) -> DateTime<Utc> {
        let wrong = self.wrong.filter(|wrong| (wrong.from..wrong.to).contains(&number));
        let time = self.began + TimeDelta::microseconds((number * COMMITS + n) as i64 * BETWEEN);
        time - wrong.map_or(TimeDelta::zero(), |wrong| wrong.by)
    }

    fn xid(number: u64, n: u64) -> u32 {
        (1_000 + number * COMMITS + n) as u32
    }

    pub fn ended(&self, layout: &Layout, number: u64, n: u64) -> Ended {
        Ended {
            xid: Self::xid(number, n),
            time: self.time(number, n),
            lsn: Lsn(number * BYTES + layout.commits[n as usize]),
            committed: true,
        }
    }

    fn checkpoint(&self, number: u64) -> Checkpoint {
        let timeline = TimelineId::new(self.timeline).expect("a timeline");
        Checkpoint {
            shutdown: false,
            redo: Lsn(number * BYTES),
            timeline,
            previous: timeline,
            wal_level: Some(WalLevel::Replica),
            next_xid: u64::from(Self::xid(number, 0)),
            time: DateTime::from_timestamp(self.time(number, 0).timestamp(), 0).expect("a time"),
        }
    }

    /// What segment `number` tells.
    pub fn summary(&self, layout: &Layout, number: u64) -> Summary {
        let base = Lsn(number * BYTES);
        let (first, last) = (self.ended(layout, number, 0), self.ended(layout, number, COMMITS - 1));
        let turns = number.is_multiple_of(CHECKPOINTS).then(|| Told {
            lsn: base + layout.checkpoint.0,
            end: base + layout.checkpoint.1,
            xid: 0,
            fact: Fact::Checkpoint(self.checkpoint(number)),
        });
        Summary {
            format: SUMMARY_FORMAT,
            records: layout.records,
            first: Some(base + layout.checkpoint.0),
            prev: Some(Lsn(base.0 - BYTES + layout.last)),
            last: Some(base + layout.last),
            end: base + BYTES,
            commits: COMMITS,
            times: Some((first.time, last.time)),
            xids: Some((first.xid, last.xid)),
            first_commit: Some(first),
            last_commit: Some(last),
            turns: List { items: turns.into_iter().collect(), cut: false },
            ..Summary::default()
        }
    }

    /// The counts of rows that a segment of a busy server has in its head.
    pub fn rows(&self, number: u64) -> RowCounts {
        let count = |n: u64| RowCount {
            file: RelFile { tablespace: 1663, database: 5, number: 16_384 + n as u32 % 8 },
            xid: Self::xid(number, n),
            lsn: Lsn(number * BYTES + n),
            inserted: 3,
            updated: 5,
            deleted: 0,
            images: 0,
            unended: true,
        };
        let rest =
            Rest { pairs: 25_000, updated: 20_000, inserted: 9_000, most: 9, most_unended: 0, ..Rest::default() };
        RowCounts { items: (0..40).map(count).collect(), cut: true, rest: Some(rest) }
    }

    /// The bytes of segment `number`.
    pub fn segment(&self, number: u64) -> Vec<u8> {
        let layout = Layout::new();
        self.build(number, number * BYTES - BYTES + layout.last).0
    }

    fn build(&self, number: u64, prev: u64) -> (Vec<u8>, Layout) {
        let mut bytes = Bytes { bytes: Vec::with_capacity(BYTES as usize), writer: *self, start: number * BYTES, prev };
        let checkpoint = if number.is_multiple_of(CHECKPOINTS) {
            bytes.record(0, 0x10, 0, &self.checkpoint_bytes(number))
        } else {
            bytes.record(0, 0x20, 0, &[0; 88])
        };
        let mut layout = Layout { checkpoint, commits: Vec::new(), records: 1, last: 0 };
        for n in 0..COMMITS {
            bytes.record(0, 0x20, 0, &[0; 41_000]);
            let time = self.time(number, n).timestamp_micros() - EPOCH;
            layout.commits.push(bytes.record(1, 0, Self::xid(number, n), &time.to_le_bytes()).0);
        }
        layout.last = bytes.fill();
        layout.records += 2 * COMMITS + 1;
        (bytes.bytes, layout)
    }

    fn checkpoint_bytes(&self, number: u64) -> Vec<u8> {
        let checkpoint = self.checkpoint(number);
        let mut main = checkpoint.redo.0.to_le_bytes().to_vec();
        main.extend([self.timeline, self.timeline, 0, 1].iter().flat_map(|n| n.to_le_bytes()));
        main.extend(checkpoint.next_xid.to_le_bytes());
        main.extend([0; 32]);
        main.extend(checkpoint.time.timestamp().to_le_bytes());
        main.resize(88, 0);
        main
    }
}

struct Bytes {
    bytes: Vec<u8>,
    writer: Writer,
    start: u64,
    prev: u64,
}

impl Bytes {
    /// Appends a record; where it starts and ends.
    fn record(&mut self, rmid: u8, info: u8, xid: u32, main: &[u8]) -> (u64, u64) {
        if self.bytes.len().is_multiple_of(PAGE) {
            self.page(0);
        }
        let start = self.bytes.len() as u64;
        let mut body = vec![254];
        body.extend((main.len() as u32).to_le_bytes());
        body.extend(main);
        let mut record = (24 + body.len() as u32).to_le_bytes().to_vec();
        record.extend(xid.to_le_bytes());
        record.extend(self.prev.to_le_bytes());
        record.extend([info, rmid, 0, 0]);
        record.extend(crc32c::crc32c_append(crc32c::crc32c(&body), &record).to_le_bytes());
        record.extend(body);
        let mut rest = record.as_slice();
        while !rest.is_empty() {
            if self.bytes.len().is_multiple_of(PAGE) {
                self.page(rest.len() as u32);
            }
            let (here, more) = rest.split_at(rest.len().min(PAGE - self.bytes.len() % PAGE));
            self.bytes.extend_from_slice(here);
            rest = more;
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        self.prev = self.start + start;
        (start, self.bytes.len() as u64)
    }

    /// The header of a page that begins with so many bytes of the record before.
    fn page(&mut self, left: u32) {
        let first = self.bytes.is_empty();
        let flags = u16::from(left > 0) | if first { 2 } else { 0 };
        let address = self.start + self.bytes.len() as u64;
        self.bytes.extend(0xD116_u16.to_le_bytes());
        self.bytes.extend(flags.to_le_bytes());
        self.bytes.extend(self.writer.timeline.to_le_bytes());
        self.bytes.extend(address.to_le_bytes());
        self.bytes.extend(left.to_le_bytes());
        self.bytes.extend([0; 4]);
        if first {
            self.bytes.extend(SYSTEM.0.to_le_bytes());
            self.bytes.extend((BYTES as u32).to_le_bytes());
            self.bytes.extend((PAGE as u32).to_le_bytes());
        }
    }

    /// A no-op up to the end of the segment; where it starts.
    fn fill(&mut self) -> u64 {
        let at = self.bytes.len();
        let pages = (BYTES as usize - at) / PAGE;
        let room = BYTES as usize - at - 24 * pages - if at.is_multiple_of(PAGE) { 24 } else { 0 };
        let room = if at.is_multiple_of(PAGE) { room + 24 } else { room };
        self.record(0, 0x20, 0, &vec![0; room - 29]).0
    }
}

pub fn name(timeline: u32, number: u64) -> SegmentName {
    SegmentName::from_number(TimelineId::new(timeline).expect("a timeline"), number, SIZE).expect("a segment")
}

/// A hash that nobody compares.
pub fn any_hash() -> Blake3 {
    walden::seal::blake3(b"")
}
