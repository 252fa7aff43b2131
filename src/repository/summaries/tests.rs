//! Summaries are the same wherever they come from.

use std::io::Write;

use chrono::DateTime;

use super::*;
use crate::{
    interrupt::Interrupter,
    postgres::{SegmentSize, TimelineId, Version, WalFile},
    progress::Unwatched,
    repository::{FORMAT, RollUpName, SystemDocument, rollup::RollUp, testing, wal_object::WalHead},
    seal::{FrameWriter, blake3},
    store::Key,
    wal::{
        Ending, Fact, Prepared, Summarizer, Told, TransactionEnd,
        testing::{PAGE, SEGMENT, Writer},
    },
};

const START: u64 = 0x500_0000;
const FIRST: u64 = START / SEGMENT as u64;

/// An archive of segments of 1 MB in a folder.
struct Archive {
    system: System,
    folder: tempfile::TempDir,
}

impl Archive {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let segment_size = SegmentSize::new(SEGMENT as u64).unwrap();
        let document = SystemDocument { segment_size, ..testing::document() };
        Self { system: testing::system(folder.path(), document).await, folder }
    }

    /// Stores the segments of a log that begins at segment `first`; `head` makes the summary in each head.
    async fn store(&self, timeline: u32, first: u64, wal: &[u8], head: impl Fn(&mut Option<Summary>)) -> Path {
        let mut path = Vec::new();
        for (bytes, number) in wal.chunks(SEGMENT).zip(first..) {
            let name = name(timeline, number);
            let object = object(name, bytes, &head);
            path.push((name, Stored::Whole(object.len() as u64)));
            let key = self.system.folder.segment(name).unwrap();
            self.system.store.put(&key, object.into()).await.unwrap();
        }
        path
    }

    async fn all(&self, path: &[(SegmentName, Stored)], need: Need) -> Vec<SegmentSummary> {
        let mut summaries = self.system.summaries(path.to_vec(), need);
        let mut all = Vec::new();
        while let Some(summary) = summaries.next().await.unwrap() {
            all.push(summary);
        }
        all
    }

    fn file(&self, key: &Key) -> std::path::PathBuf {
        self.folder.path().join("repository").join(key.as_str())
    }

    /// Rolls up the log of segments of a timeline, whether or not it is complete.
    async fn roll_up(&self, path: &[(SegmentName, Stored)], wal: &[u8]) {
        let summaries = path.iter().zip(wal.chunks(SEGMENT));
        let segments =
            summaries.map(|((name, stored), bytes)| (*name, stored.length(), summarize(*name, bytes, false)));
        let (name, _) = path[0];
        let document = &self.system.document;
        let place = (name.timeline, name.log);
        let made = RollUp::new(place, segments.collect(), document.segment_size, document.postgres);
        let bytes = made.clone().to_bytes().unwrap();
        assert_eq!(RollUp::from_bytes(&bytes, true).unwrap(), made);
        let named = RollUpName { log: name.log, number: 1, row: None };
        let key = self.system.folder.roll_up(name.timeline, named).unwrap();
        self.system.store.put(&key, bytes.into()).await.unwrap();
    }
}

type Path = Vec<(SegmentName, Stored)>;

fn name(timeline: u32, number: u64) -> SegmentName {
    let size = SegmentSize::new(SEGMENT as u64).unwrap();
    SegmentName::from_number(TimelineId::new(timeline).unwrap(), number, size).unwrap()
}

fn object(name: SegmentName, bytes: &[u8], head: impl Fn(&mut Option<Summary>)) -> Vec<u8> {
    let mut frames = FrameWriter::new(Vec::new(), 1).unwrap();
    frames.write_all(bytes).unwrap();
    let (frames, _, compressed) = frames.finish().unwrap();
    let mut summary = Some(summarize(name, bytes, false));
    head(&mut summary);
    let mut head = WalHead {
        format: FORMAT,
        name: WalFile::Segment(name),
        size: SEGMENT as u64,
        blake3: blake3(bytes),
        compressed,
        postgres: Some(Version(17)),
        system: None,
        timeline: Some(name.timeline),
        first_lsn: None,
        summary,
    };
    [head.to_bytes().unwrap(), frames].concat()
}

fn summarize(name: SegmentName, bytes: &[u8], whole: bool) -> Summary {
    let start = name.start(SegmentSize::new(SEGMENT as u64).unwrap()).unwrap();
    let mut summarizer = if whole { Summarizer::whole(start) } else { Summarizer::new(start) };
    summarizer.feed(bytes);
    summarizer.finish()
}

/// What the summaries of a path should be, from whole summaries of its segments.
fn expected(path: &[(SegmentName, Stored)], wal: &[&[u8]]) -> Vec<Summary> {
    let mut all: Vec<Summary> = path.iter().zip(wal).map(|((name, _), bytes)| summarize(*name, bytes, true)).collect();
    for at in 0..all.len() {
        let (before, after) = all.split_at_mut(at + 1);
        for next in after {
            if before[at].join(next, Version(17)) != Joined::GoesOn {
                break;
            }
        }
    }
    all
}

/// What readers look at.
fn told(summary: &Summary) -> impl PartialEq + std::fmt::Debug + use<> {
    let s = summary.clone();
    (
        (s.records, s.first, s.prev, s.last, s.end, s.ending),
        (s.commits, s.aborts, s.times, s.last_commit),
        s.turns,
        s.changes,
    )
}

fn commit(writer: &mut Writer, xid: u32) {
    writer.record(1, 0, xid, &i64::from(xid).to_le_bytes());
}

fn message(size: usize) -> Vec<u8> {
    let mut main = 5_u32.to_le_bytes().to_vec();
    main.extend_from_slice(&[0; 4]);
    main.extend_from_slice(&7_u64.to_le_bytes());
    main.extend_from_slice(&(size as u64).to_le_bytes());
    main.extend_from_slice(b"prefix\0");
    main.resize(main.len() + size, b'x');
    main
}

/// A commit of so many subtransactions that a head does not hold it.
fn long_commit(writer: &mut Writer, xid: u32) {
    let mut main = 5_i64.to_le_bytes().to_vec();
    main.extend_from_slice(&2_u32.to_le_bytes());
    main.extend_from_slice(&9_000_u32.to_le_bytes());
    (0..9_000_u32).for_each(|n| main.extend_from_slice(&(n * 2).to_le_bytes()));
    writer.record(1, 0x80, xid, &main);
}

/// So many segments, the end of each in another kind of record. From segment `fork` on it is timeline 2's, and other.
fn wal(segments: usize, fork: Option<usize>) -> Vec<u8> {
    let mut writer = Writer::at(START);
    let mut xid = 100;
    while writer.bytes.len() < segments * SEGMENT {
        let at = writer.bytes.len() / SEGMENT;
        if fork.is_some_and(|fork| writer.bytes.len() >= fork * SEGMENT + 20 * PAGE) {
            writer.timeline = 2;
            xid = xid.max(5_000);
        }
        if SEGMENT - writer.bytes.len() % SEGMENT > PAGE {
            xid += 1;
            commit(&mut writer, xid);
            writer.record(10, 0, 1, &[1; 3_000]);
            continue;
        }
        writer.fill_page([8, 24, 64, 200][at % 4]);
        match at % 5 {
            0 => commit(&mut writer, xid + 50),
            1 => _ = writer.record(21, 0, xid, &message(20_000)),
            2 => long_commit(&mut writer, xid),
            3 => _ = writer.record(10, 0, 1, &[1; 60_000]),
            _ => _ = writer.record(21, 0, xid, &message(SEGMENT + SEGMENT / 2)),
        }
    }
    writer.bytes.truncate(segments * SEGMENT);
    writer.bytes
}

fn alike(found: &[SegmentSummary], expected: &[Summary], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found.fault, None, "{what}: {}", found.name);
        assert_eq!(told(&found.summary), told(expected), "{what}: {}", found.name);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_records_and_roll_ups_tell_the_same() {
    let wal = wal(14, None);
    let bytes: Vec<&[u8]> = wal.chunks(SEGMENT).collect();
    let none = |summary: &mut Option<Summary>| *summary = None;
    let later = |summary: &mut Option<Summary>| summary.as_mut().unwrap().format = 99;
    for (what, head) in [
        ("heads", &(|_: &mut Option<Summary>| {}) as &dyn Fn(&mut Option<Summary>)),
        ("records", &none),
        ("a later format", &later),
    ] {
        let archive = Archive::new().await;
        let path = archive.store(1, FIRST, &wal, head).await;
        let expected = expected(&path, &bytes);
        alike(&archive.all(&path, Need::Finding).await, &expected, what);
        archive.roll_up(&path, &wal).await;
        alike(&archive.all(&path, Need::Finding).await, &expected, &format!("{what}, rolled up"));
        // Any part of the path tells the same, but for the record at its end.
        for (from, to) in [(3, 13), (5, 14), (6, 9), (2, 12)] {
            let part = archive.all(&path[from..to], Need::Finding).await;
            alike(&part[..to - from - 3], &expected[from..to - 3], &format!("{what}, a part"));
        }
        for (n, segment) in archive.all(&path, Need::Planning).await.iter().enumerate() {
            let summary = &segment.summary;
            assert_eq!(
                (summary.last_commit.as_ref(), &summary.turns),
                (expected[n].last_commit.as_ref(), &expected[n].turns)
            );
        }
        let last = archive.system.last_commit(&path[..4]).await.unwrap();
        assert_eq!(last, expected[3].last_commit);
        assert_eq!(archive.system.last_commit(&[]).await.unwrap(), None);
        let one = archive.system.summary(path[3].0, path[3].1, Need::Planning).await.unwrap();
        assert_eq!((one.summary.first, one.summary.last), (expected[3].first, expected[3].last));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_roll_up_does_not_lead_astray_where_a_path_leaves_its_timeline() {
    for fork in 7..12 {
        let (old, new) = (wal(14, None), wal(18, Some(fork)));
        let archive = Archive::new().await;
        let parent = archive.store(1, FIRST, &old, |_| {}).await;
        let child = archive.store(2, FIRST + fork as u64, &new[fork * SEGMENT..], |_| {}).await;
        archive.roll_up(&parent, &old).await;
        archive.roll_up(&child, &new[fork * SEGMENT..]).await;
        let path = [&parent[..fork], &child].concat();
        let bytes: Vec<&[u8]> = old.chunks(SEGMENT).take(fork).chain(new.chunks(SEGMENT).skip(fork)).collect();
        alike(&archive.all(&path, Need::Finding).await, &expected(&path, &bytes), &format!("fork {fork}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_and_broken_links_are_told_with_the_segment() {
    let wal = wal(14, None);
    let archive = Archive::new().await;
    let path = archive.store(1, FIRST, &wal, |_| {}).await;
    archive.roll_up(&path, &wal).await;
    let expected = expected(&path, &wal.chunks(SEGMENT).collect::<Vec<_>>());
    // Cut off since it was rolled up.
    let mut listed = path.clone();
    let cut = archive.file(&archive.system.folder.segment(path[8].0).unwrap());
    let object = std::fs::read(&cut).unwrap();
    std::fs::write(&cut, &object[..object.len() - 10]).unwrap();
    listed[8].1 = Stored::Whole(object.len() as u64 - 10);
    let found = archive.all(&listed, Need::Planning).await;
    assert!(matches!(&found[8].fault, Some(Fault::Damaged { why }) if why.contains("bytes long")), "{:?}", found[8]);
    let sound = found[8].sound().unwrap_err();
    assert_eq!(sound.kind(), Kind::Damaged);
    assert!(found.iter().enumerate().all(|(n, s)| n == 8 || s.fault.is_none()));
    assert_eq!(found[13].summary.records, expected[13].records);
    std::fs::write(&cut, &object).unwrap();
    // The log of another server from the seventh segment on.
    let other = Archive::new().await;
    let mut mixed = other.store(1, FIRST, &wal[..7 * SEGMENT], |_| {}).await;
    let mut strange = Writer::at(START + 7 * SEGMENT as u64);
    (0..200).for_each(|xid| commit(&mut strange, xid));
    strange.fill();
    mixed.extend(other.store(1, FIRST + 7, &strange.bytes, |_| {}).await);
    let found = other.all(&mixed, Need::Planning).await;
    let Some(Fault::Unlinked { before, .. }) = &found[7].fault else { panic!("{:?}", found[7]) };
    assert_eq!(*before, mixed[6].0);
    assert!(found[7].sound().unwrap_err().to_string().contains("does not go on from"));
    assert_eq!(found[7].summary.commits, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_complete_logs_are_rolled_up_and_each_once() {
    let wal = wal(10, None);
    let archive = Archive::new().await;
    let path = archive.store(1, FIRST, &wal, |summary| *summary = None).await;
    let interrupter = Interrupter::new();
    let roll_up = async || archive.system.roll_up(9, &Unwatched, &interrupter.listen()).await.unwrap();
    assert_eq!(roll_up().await, crate::repository::RolledUp::default());
    // A segment of the next log.
    let mut later = Writer::at(1 << 32);
    commit(&mut later, 7);
    later.fill();
    archive.store(1, (1 << 32) / SEGMENT as u64, &later.bytes, |_| {}).await;
    let damaged = archive.file(&archive.system.folder.segment(path[2].0).unwrap());
    let object = std::fs::read(&damaged).unwrap();
    std::fs::write(&damaged, &object[..object.len() - 10]).unwrap();
    let rolled = roll_up().await;
    assert_eq!((rolled.logs, rolled.segments, rolled.left, rolled.damaged.len()), (1, 9, 0, 1));
    assert_eq!(rolled.damaged[0].0, path[2].0);
    assert_eq!(roll_up().await.logs, 0);
    std::fs::write(&damaged, object).unwrap();
    // What the roll-up lacks is read from the segment.
    let expected = expected(&path, &wal.chunks(SEGMENT).collect::<Vec<_>>());
    alike(&archive.all(&path, Need::Finding).await, &expected, "with a hole");
}

#[test]
fn a_roll_up_tells_until_when_its_log_goes_or_nothing() {
    // As if these were the last four segments of a log.
    let mut writer = Writer::at(START);
    for last in [7, 7, 0, 1_000_001] {
        while SEGMENT - writer.bytes.len() % SEGMENT > PAGE {
            commit(&mut writer, 5);
            writer.record(10, 0, 1, &[1; 3_000]);
        }
        writer.fill_page(if last == 0 { 200 } else { 8 });
        match last {
            0 => _ = writer.record(10, 0, 1, &[1; 60_000]),
            last => commit(&mut writer, last),
        }
    }
    writer.fill();
    let summaries: Vec<Summary> =
        writer.bytes.chunks(SEGMENT).zip(FIRST..).map(|(bytes, n)| summarize(name(1, n), bytes, false)).collect();
    let without = |missing, summaries: &[Summary], behind: Option<&Summary>| {
        let named = |(segment, summary): (u32, &Summary)| (SegmentName { segment, ..name(1, 0) }, 9, summary.clone());
        let segments = (252..).zip(summaries).map(named).filter(|(name, ..)| name.segment != missing).collect();
        let roll_up = RollUp::new((TimelineId::FIRST, 0), segments, SegmentSize::DEFAULT, Version(17));
        let row = roll_up.row(behind.cloned(), Version(17));
        row.map(|row| format!("{}-{} {}", row.first, row.last, row.until.format("%T")))
    };
    let until = |summaries: &[Summary], behind: Option<&Summary>| without(0, summaries, behind);
    let (log, behind) = (&summaries[..4], Some(&summaries[4]));
    assert_eq!(until(log, behind).as_deref(), Some("252-255 00:00:02"), "the last commit ends in the next log");
    assert_eq!(without(253, log, behind).as_deref(), Some("254-255 00:00:02"));
    assert_eq!(without(255, log, behind).as_deref(), Some("252-254 00:00:01"), "what goes on is no commit");
    assert_eq!(until(log, None), None);
    assert_eq!(until(log, Some(&summaries[1])), None);
    assert_eq!(until(&log[..2], behind), None, "it ends in a commit");
    type Change<'a> = &'a dyn Fn(&mut Summary);
    let changed = |changes: &[(usize, Change<'_>)]| {
        let mut log = log.to_vec();
        changes.iter().for_each(|(at, change)| change(&mut log[*at]));
        until(&log, behind)
    };
    let earlier = |summary: &mut Summary| summary.times = Some((DateTime::UNIX_EPOCH, DateTime::UNIX_EPOCH));
    assert!(changed(&[(0, &earlier)]).is_some());
    assert_eq!(changed(&[(1, &|summary| summary.turns.cut = true)]), None);
    assert_eq!(changed(&[(2, &|summary| summary.ending = Ending::Zeros)]), None);
    let add = |summary: &mut Summary, fact| {
        let (lsn, end) = (summary.end, summary.end);
        summary.turns.items.push(Told { lsn, end, xid: 9, fact });
    };
    let time = DateTime::UNIX_EPOCH;
    let prepare = |summary: &mut Summary| add(summary, Fact::Prepare(Prepared { xid: 9, gid: "p".into(), time }));
    let end = |summary: &mut Summary| {
        add(summary, Fact::Abort(TransactionEnd { prepared: true, ..TransactionEnd::new(9, time) }.into()));
    };
    assert_eq!(changed(&[(1, &prepare)]), None, "it is open at the end");
    assert!(changed(&[(1, &prepare), (2, &end)]).is_some());
    assert!(changed(&[(2, &end)]).is_some(), "an earlier log has it");
}
