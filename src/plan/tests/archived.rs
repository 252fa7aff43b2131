//! The same held to archived segments: a scan must tell what reading all of them tells.

use std::{io::Write, path::Path, sync::Arc};

use chrono::{DateTime, Utc};
use proptest::prelude::*;

use super::{at, fact, rule, show};
use crate::{
    clock::Random,
    interrupt::Interrupter,
    plan::{
        Watch,
        scan::scan,
        survey::{Seen, Survey},
    },
    postgres::{Lsn, SegmentName, SegmentSize, TimelineId, Version, WalFile},
    progress::Unwatched,
    repository::{self, Incarnation, Stored, System, SystemDocument, wal_object::WalHead},
    seal::{self, FrameWriter},
    store::{Store, dir::DirStore},
    wal::{
        Fact, Reader, Record, Summarizer, TransactionEnd,
        testing::{SEGMENT, Writer},
    },
};
/// Microseconds since the start of the year 2000.
fn timestamp(time: DateTime<Utc>) -> [u8; 8] {
    (time.timestamp_micros() - 946_684_800_000_000).to_le_bytes()
}

/// Bytes of a record in PostgreSQL 17: resource manager, info, xid, main data.
fn encode(fact: &Fact) -> (u8, u8, u32, Vec<u8>) {
    let numbers = |numbers: &[u32]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    let end = |end: &TransactionEnd| {
        let subs = &end.subtransactions;
        let mut main = timestamp(end.time).to_vec();
        let info = u32::from(!subs.is_empty()) << 1 | u32::from(end.prepared) << 4;
        main.extend(numbers(&[info]));
        if !subs.is_empty() {
            main.extend(numbers(&[subs.len() as u32]));
            main.extend(numbers(subs));
        }
        if end.prepared {
            main.extend(numbers(&[end.xid]));
        }
        main
    };
    match fact {
        Fact::Commit(e) => (1, if e.prepared { 0xB0 } else { 0x80 }, e.xid, end(e)),
        Fact::Abort(e) => (1, if e.prepared { 0xC0 } else { 0xA0 }, e.xid, end(e)),
        Fact::Prepare(p) => {
            let mut main = numbers(&[0, 0, p.xid, 5]);
            main.extend(timestamp(p.time));
            main.extend([0; 30]);
            main.extend((p.gid.len() as u16 + 1).to_le_bytes());
            main.extend([0; 16]);
            main.extend(p.gid.as_bytes());
            main.push(0);
            (1, 0x10, p.xid, main)
        }
        Fact::RestorePoint { name, time } => {
            let mut main = timestamp(*time).to_vec();
            main.extend(name.as_bytes());
            main.resize(72, 0);
            (0, 0x70, 0, main)
        }
        Fact::Checkpoint(c) => {
            let mut main = numbers(&[0, 0, 1, 1, 0, 1]);
            main.extend(c.next_xid.to_le_bytes());
            main.extend([0; 32]);
            main.extend(c.time.timestamp().to_le_bytes());
            main.resize(88, 0);
            (0, 0x10, 0, main)
        }
        Fact::ParameterChange(p) => {
            let level = p.wal_level.map_or(1, |level| level as u32);
            let mut main = numbers(&[p.max_connections as u32, p.max_worker_processes as u32, 1, 1, 1, level]);
            main.extend([0; 4]);
            (0, 0x60, 0, main)
        }
        Fact::TablespaceCreate { oid, path } => (5, 0, 9, [&oid.to_le_bytes(), path.as_bytes(), &[0]].concat()),
        Fact::TablespaceDrop { oid } => (5, 0x10, 9, oid.to_le_bytes().to_vec()),
        _ => (10, 0, 9, vec![1; 40]),
    }
}

/// Segments of 1 MB: facts with pauses between them, some of which are filled by a record that goes on for more than a
/// segment, and some by a switch.
fn segments() -> impl Strategy<Value = Vec<u8>> {
    let pause = prop_oneof![8 => 0..9_000_usize, 2 => 9_000..200_000_usize, 1 => 900_000..2_200_000_usize];
    let one = (fact(), pause, prop::bool::weighted(0.04));
    prop::collection::vec(one, 5..50).prop_map(|facts| {
        let mut wal = Writer::at(SEGMENT as u64);
        for (fact, pause, switches) in facts {
            let (rmid, info, xid, main) = encode(&fact);
            wal.record(rmid, info, xid, &main);
            if pause > 0 {
                wal.record(10, 0, 9, &vec![1; pause]);
            }
            if switches && !wal.bytes.len().is_multiple_of(SEGMENT) {
                wal.switch();
            }
        }
        wal.fill();
        wal.bytes
    })
}

fn read(wal: &[u8]) -> Vec<Record> {
    Reader::new(Lsn(SEGMENT as u64)).read(wal).collect()
}

/// Archives segments in a folder, every third one as an older Walden did, and gives their names and lengths.
async fn archive(folder: &Path, wal: &[u8]) -> (System, Vec<(SegmentName, Stored)>) {
    let random = Arc::new(Random::seeded(1));
    let store: Arc<dyn Store> = Arc::new(DirStore::create(folder.to_path_buf(), random).unwrap());
    let document = SystemDocument {
        format: repository::FORMAT,
        cluster: "main".parse().unwrap(),
        incarnation: "7-1".parse::<Incarnation>().unwrap(),
        postgres: Version(17),
        segment_size: SegmentSize::new(SEGMENT as u64).unwrap(),
        block_size: 8192,
        first_seen: at(0),
    };
    let system = System::init(store.clone(), document).await.unwrap();
    let mut names = Vec::new();
    for (number, bytes) in (1..).zip(wal.chunks(SEGMENT)) {
        let name = SegmentName::from_number(TimelineId::FIRST, number, system.document.segment_size).unwrap();
        let object = object(name, bytes, number % 3 != 0);
        names.push((name, Stored::Whole(object.len() as u64)));
        store.put(&system.folder.segment(name).unwrap(), object.into()).await.unwrap();
    }
    (system, names)
}

/// The object of a segment; an older Walden put no summary into its head.
fn object(name: SegmentName, bytes: &[u8], summarised: bool) -> Vec<u8> {
    let mut frames = FrameWriter::new(Vec::new(), 1).unwrap();
    frames.write_all(bytes).unwrap();
    let (frames, _, compressed) = frames.finish().unwrap();
    let start = name.start(SegmentSize::new(SEGMENT as u64).unwrap()).unwrap();
    let mut summarizer = Summarizer::new(start);
    summarizer.feed(bytes);
    let mut head = WalHead {
        format: repository::FORMAT,
        name: WalFile::Segment(name),
        size: bytes.len() as u64,
        blake3: seal::blake3(bytes),
        compressed,
        postgres: Some(Version(17)),
        system: None,
        timeline: Some(TimelineId::FIRST),
        first_lsn: Some(start),
        summary: summarised.then(|| summarizer.finish()),
    };
    [head.to_bytes().unwrap(), frames].concat()
}

fn watch() -> Watch {
    Watch { progress: Arc::new(Unwatched), interrupt: Interrupter::new().listen() }
}

/// Where recovery stops, by the scan and by all records. Where the log ends is asked of both only when neither stopped.
fn both(wal: &[u8], records: &[Record], survey: impl Fn() -> Survey, begin: Lsn) -> (Seen, Seen) {
    let mut whole = survey();
    let _ = show(&mut whole, &records.iter().collect::<Vec<_>>());
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let (seen, _) = runtime.block_on(async {
        let (system, names) = archive(&folder.path().join("repository"), wal).await;
        let skip = (begin.0 as usize - SEGMENT) / SEGMENT;
        scan(&system, &names[skip..], survey(), &watch()).await.unwrap()
    });
    let (mut seen, mut expected) = (seen.finish(), whole.finish());
    if expected.stop.is_some() && seen.stop.is_some() {
        (expected.last_record, seen.last_record) = (None, None);
    }
    (seen, expected)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn a_scan_tells_what_all_records_tell(
        (wal, records, rule, begin) in segments().prop_flat_map(|wal| {
            let records = read(&wal);
            let (rule, count) = (rule(&records), records.len());
            (Just(wal), Just(records), rule, 0..count)
        })
    ) {
        let begin = records[begin].start;
        let survey = || Survey::new(rule.clone(), begin, records.iter().map(|r| r.start).collect());
        let (seen, expected) = both(&wal, &records, survey, begin);
        prop_assert_eq!(seen, expected);
    }
}

/// Puts what is there of the last segment up to `cut` into pieces instead: those of one receiver that cuts at every
/// `each` bytes, and a few of another.
async fn in_pieces(system: &System, names: &mut [(SegmentName, Stored)], wal: &[u8], cut: usize, each: usize) {
    let (name, stored) = names.last_mut().unwrap();
    system.store.delete(&system.folder.segment(*name).unwrap()).await.unwrap();
    *stored = Stored::Pieces(1);
    let segment = &wal[wal.len() - SEGMENT..][..cut];
    let ranges = (0..cut).step_by(each).map(|from| (from, cut.min(from + each)));
    let others = (each / 2..cut).step_by(7 * each).map(|from| (from, cut.min(from + each)));
    for (from, to) in ranges.chain(others) {
        let bytes = segment[from..to].to_vec().into();
        system.put_piece(*name, from as u64, bytes, 1).await.unwrap();
    }
}

/// The records that are whole in the log up to `cut` bytes of its last segment. The one of a switch ends where the segment
/// does, and is whole before that.
fn read_to(wal: &[u8], cut: usize) -> Vec<Record> {
    let end = Lsn((wal.len() + cut) as u64);
    let mut records = read(wal);
    records.retain(|r| if r.fact == Fact::Switch { r.start + 64 <= end } else { r.end <= end });
    records
}

proptest! {
    // A failure is a whole log: too long to be kept beside the code.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(8) })]

    #[test]
    fn a_scan_of_pieces_tells_what_their_records_tell(
        (wal, records, cut, each, rule, begin) in (segments(), 1..=SEGMENT, 5_000..300_000_usize)
            .prop_filter("it is not plain what is whole, or nothing is", |(wal, cut, _)| {
                let end = Lsn((wal.len() + cut) as u64);
                let switch = |r: &Record| r.fact == Fact::Switch && r.start < end && r.start + 64 > end;
                // Up to seven bytes behind a record are no part of it.
                let torn = |r: &Record| switch(r) || r.end > end && r.end < end + 8;
                !read(wal).iter().any(torn) && !read_to(wal, *cut).is_empty()
            })
            .prop_flat_map(|(wal, cut, each)| {
                let records = read_to(&wal, cut);
                let (rule, count) = (rule(&records), records.len());
                (Just(wal), Just(records), Just(cut), Just(each), rule, 0..count)
            })
    ) {
        let begin = records[begin].start;
        let survey = || Survey::new(rule.clone(), begin, records.iter().map(|r| r.start).collect());
        let mut whole = survey();
        let _ = show(&mut whole, &records.iter().collect::<Vec<_>>());
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let (seen, scanned) = runtime.block_on(async {
            let (system, mut names) = archive(&folder.path().join("repository"), &wal).await;
            in_pieces(&system, &mut names, &wal, cut, each).await;
            let skip = (begin.0 as usize - SEGMENT) / SEGMENT;
            scan(&system, &names[skip..], survey(), &watch()).await.unwrap()
        });
        let (mut seen, mut expected) = (seen.finish(), whole.finish());
        prop_assert_eq!((scanned.short, scanned.fault), (None, None));
        if expected.stop.is_some() && seen.stop.is_some() {
            (expected.last_record, seen.last_record) = (None, None);
        }
        prop_assert_eq!(seen, expected);
    }
}
