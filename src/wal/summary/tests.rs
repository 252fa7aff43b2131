//! A summary fits whatever its segment tells, agrees with the records themselves, and keeps what matters most.

use proptest::prelude::*;

use super::*;
use crate::{
    postgres::{TimelineId, Version},
    wal::{
        Change, Dropped, Lock, Prepared, Reader, Record, Rows, TransactionEnd,
        testing::{PAGE, SEGMENT, Writer},
    },
};

const START: u64 = 0x500_0000;

fn summarize(start: u64, bytes: &[u8], whole: bool) -> Summary {
    let start = Lsn(start);
    let mut summarizer = if whole { Summarizer::whole(start) } else { Summarizer::new(start) };
    bytes.chunks(70_001).for_each(|chunk| summarizer.feed(chunk));
    let summary = summarizer.finish();
    if !whole {
        let json = serde_json::to_string(&summary).unwrap();
        assert!(json.len() <= Summary::LONGEST, "{}", json.len());
        assert_eq!(serde_json::from_str::<Summary>(&json).unwrap(), summary);
    }
    summary
}

/// The summaries of all segments, joined along.
fn joined(bytes: &[u8], whole: bool) -> (Vec<Summary>, Vec<Joined>) {
    let segments = bytes.chunks(SEGMENT).enumerate();
    let mut all: Vec<Summary> =
        segments.map(|(n, bytes)| summarize(START + (n * SEGMENT) as u64, bytes, whole)).collect();
    let mut outcomes = Vec::new();
    for at in 0..all.len() {
        let (before, after) = all.split_at_mut(at + 1);
        for next in after {
            let outcome = before[at].join(next, Version(17));
            outcomes.push(outcome.clone());
            if outcome != Joined::GoesOn {
                break;
            }
        }
    }
    (all, outcomes)
}

fn records(bytes: &[u8]) -> Vec<Record> {
    let mut reader = Reader::new(Lsn(START));
    reader.read(bytes).collect()
}

/// Each summary tells exactly the records that start in its segment.
fn agrees(bytes: &[u8], summaries: &[Summary]) {
    let all = records(bytes);
    for (n, summary) in summaries.iter().enumerate() {
        let from = START + (n * SEGMENT) as u64;
        let own: Vec<&Record> = all.iter().filter(|r| (from..from + SEGMENT as u64).contains(&r.start.0)).collect();
        assert_eq!(summary.records, own.len() as u64, "segment {n}");
        if summary.tail.is_none() {
            assert_eq!(summary.first, own.first().map(|r| r.start));
            assert_eq!(summary.prev, own.first().map(|r| r.prev));
            assert_eq!(summary.last, own.last().map(|r| r.start));
        }
        let ends: Vec<(bool, u32)> = own
            .iter()
            .filter_map(|r| match &r.fact {
                Fact::Commit(end) => Some((true, end.xid)),
                Fact::Abort(end) => Some((false, end.xid)),
                _ => None,
            })
            .collect();
        assert_eq!(summary.commits, ends.iter().filter(|end| end.0).count() as u64);
        assert_eq!(summary.aborts, ends.iter().filter(|end| !end.0).count() as u64);
        assert!(ends.iter().all(|end| summary.may_end(end.1)));
        for told in summary.turns.items.iter().chain(&summary.changes.items) {
            let record = own.iter().find(|r| r.start == told.lsn).expect("a record");
            assert_eq!((record.end, record.xid, &record.fact), (told.end, told.xid, &told.fact));
        }
        let messages = own.iter().filter(|r| matches!(r.fact, Fact::Message { .. })).count();
        assert_eq!(summary.changes.items.iter().filter(|t| matches!(t.fact, Fact::Message { .. })).count(), messages);
        if let Some(last) = own.last().filter(|_| summary.tail.is_none()) {
            assert_eq!(summary.end, last.end);
        }
    }
}

fn commit(writer: &mut Writer, xid: u32) -> Lsn {
    writer.record(1, 0, xid, &i64::from(xid).to_le_bytes())
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

/// A commit of so many subtransactions.
fn subtransactions(count: u32) -> Vec<u8> {
    let mut main = 5_i64.to_le_bytes().to_vec();
    main.extend_from_slice(&2_u32.to_le_bytes());
    main.extend_from_slice(&count.to_le_bytes());
    (0..count).for_each(|xid| main.extend_from_slice(&xid.to_le_bytes()));
    main
}

/// Fills the segment except for its last bytes.
fn fill_segment(writer: &mut Writer, left: usize) {
    while SEGMENT - writer.bytes.len() % SEGMENT > PAGE {
        writer.record(10, 0, 1, &[1; 3_000]);
    }
    writer.fill_page(left);
}

#[test]
fn a_record_that_straddles_is_told_where_it_starts() {
    for left in [8, 16, 24, 32, 64] {
        for size in [10, 5_000, 20_000, 3 * SEGMENT] {
            let mut writer = Writer::at(START);
            commit(&mut writer, 1);
            fill_segment(&mut writer, left);
            let start = writer.record(21, 0, 3, &message(size));
            commit(&mut writer, 2);
            writer.fill();
            let (summaries, outcomes) = joined(&writer.bytes, false);
            assert!(outcomes.iter().all(|o| matches!(o, Joined::Whole | Joined::GoesOn)), "{outcomes:?}");
            agrees(&writer.bytes, &summaries);
            let told = summaries[0].changes.items.last().unwrap();
            assert_eq!((told.lsn, told.xid), (start, 3));
            let Fact::Message { prefix, text, size: told, .. } = &told.fact else { panic!() };
            assert_eq!((prefix.as_str(), text.len(), *told as usize), ("prefix", size.min(200), size));
            assert!(summaries.iter().all(|s| s.tail.is_none() && s.lead.is_none() && s.suffices(true)));
        }
    }
}

#[test]
fn what_is_too_long_to_be_kept_is_marked_and_still_proven() {
    let mut writer = Writer::at(START);
    fill_segment(&mut writer, 64);
    let start = writer.record(1, 0x80, 77, &subtransactions(9_000));
    commit(&mut writer, 2);
    writer.fill();
    let (cut, outcomes) = joined(&writer.bytes, false);
    assert_eq!(outcomes, [Joined::Whole]);
    assert!(cut[0].tail.as_ref().unwrap().unknown && !cut[0].suffices(false) && cut[1].suffices(true));
    assert_eq!((cut[0].last, cut[0].end, cut[0].commits), (Some(start), cut[1].first.unwrap(), 0));
    let (whole, _) = joined(&writer.bytes, true);
    agrees(&writer.bytes, &whole);
    assert!(whole[0].may_end(8_999) && whole[0].commits == 1);
    let mut again = whole[0].clone();
    assert_eq!(again.join(&mut whole[1].clone(), Version(17)), Joined::Whole);
    assert_eq!(again, whole[0]);
    // One byte in the second segment.
    for at in [SEGMENT + 100, SEGMENT + 3 * PAGE + 99] {
        let mut damaged = writer.bytes.clone();
        damaged[at] ^= 1;
        let (summaries, outcomes) = joined(&damaged, false);
        let Joined::Broken { why, .. } = &outcomes[0] else { panic!("{outcomes:?}") };
        assert!(why.contains("CRC"), "{why}");
        assert_eq!((summaries[0].commits, summaries[0].last), (0, Some(start)));
    }
}

#[test]
fn a_record_that_is_given_up_does_not_count() {
    let mut writer = Writer::at(START);
    let before = commit(&mut writer, 1);
    while writer.bytes.len() < SEGMENT - PAGE {
        writer.record(10, 0, 1, &[1; 3_000]);
    }
    let last = commit(&mut writer, 2);
    let torn = writer.torn();
    let overwrite = writer.overwrite(torn);
    commit(&mut writer, 3);
    writer.fill();
    let (summaries, outcomes) = joined(&writer.bytes, false);
    assert_eq!(outcomes, [Joined::Whole]);
    agrees(&writer.bytes, &summaries);
    assert_eq!((summaries[0].first, summaries[0].last, &summaries[0].tail), (Some(before), Some(last), &None));
    assert_eq!((summaries[1].first, summaries[1].prev), (Some(overwrite), Some(last)));
}

#[test]
fn a_switch_that_straddles_empties_the_next_segment() {
    for left in [8, 16, 24, 32] {
        let mut writer = Writer::at(START);
        commit(&mut writer, 1);
        fill_segment(&mut writer, left);
        let switch = writer.switch();
        commit(&mut writer, 2);
        writer.fill();
        let (summaries, outcomes) = joined(&writer.bytes, false);
        assert!(outcomes.iter().all(|o| *o == Joined::Whole), "{outcomes:?}");
        agrees(&writer.bytes, &summaries);
        assert_eq!(summaries[0].last, Some(switch));
        if left < 24 {
            assert_eq!(summaries[1].ending, Ending::Switch);
            assert_eq!(summaries[0].end, Lsn(START + 2 * SEGMENT as u64));
            let alone = summarize(START + SEGMENT as u64, &writer.bytes[SEGMENT..2 * SEGMENT], false);
            assert_eq!(alone.ending, Ending::Switch);
        }
    }
}

#[test]
fn segments_of_different_chains_do_not_join() {
    let make = |size: usize, xid| {
        let mut writer = Writer::at(START);
        fill_segment(&mut writer, 64);
        writer.record(21, 0, xid, &message(size));
        commit(&mut writer, xid);
        writer.fill();
        let halves = writer.bytes.split_at(SEGMENT);
        (summarize(START, halves.0, false), summarize(START + SEGMENT as u64, halves.1, false))
    };
    let (first, second) = make(100, 1);
    let (other, other_second) = make(100, 2);
    let (longer, _) = make(200, 1);
    let broken = |a: &Summary, b: &Summary| {
        let outcome = a.clone().join(&mut b.clone(), Version(17));
        let Joined::Broken { why, .. } = outcome else { panic!("{outcome:?}") };
        why
    };
    assert!(broken(&longer, &second).contains("not continued"));
    assert!(broken(&Summary { tail: None, ..first.clone() }, &second).contains("another record"));
    assert!(broken(&first, &Summary { lead: None, ..second.clone() }).contains("not continued"));
    assert!(broken(&Summary { ending: Ending::Zeros, ..first.clone() }, &second).contains("nothing"));
    let prev = Some(Lsn(START + 8));
    assert!(broken(&first, &Summary { prev, ..second.clone() }).contains("follows"));
    // The piece of the message that differs is in the first segment.
    assert_eq!(other.clone().join(&mut other_second.clone(), Version(17)), Joined::Whole);
}

#[test]
fn the_arc_of_xids_goes_over_the_end_of_the_circle() {
    let mut writer = Writer::at(START);
    for xid in [u32::MAX - 5, 10, u32::MAX - 20, 3, 30] {
        commit(&mut writer, xid);
    }
    writer.fill();
    let summary = summarize(START, &writer.bytes, false);
    assert_eq!(summary.xids, Some((u32::MAX - 20, 30)));
    assert!(summary.may_end(u32::MAX) && summary.may_end(29) && !summary.may_end(31) && !summary.may_end(1 << 31));
    assert_eq!(summary.times.unwrap().0.timestamp_micros() % 1_000_000, 3);
    assert_eq!((summary.first_commit.unwrap().xid, summary.last_commit.unwrap().xid), (u32::MAX - 5, 30));
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z]{0,20}", "\\PC{0,300}", "[\\x00-\\x1f\"]{0,1200}"]
}

fn file() -> impl Strategy<Value = RelFile> {
    (prop_oneof![Just(1663), Just(1664)], any::<u32>(), any::<u32>())
        .prop_map(|(tablespace, database, number)| RelFile { tablespace, database, number })
}

fn end() -> impl Strategy<Value = TransactionEnd> {
    let lists = (
        proptest::collection::vec(any::<u32>(), 0..200),
        proptest::collection::vec(file(), 0..200),
        proptest::collection::vec((any::<u32>(), any::<u32>()), 0..200),
    );
    (any::<u32>(), any::<i64>(), any::<bool>(), proptest::option::of(text()), lists).prop_map(
        |(xid, time, prepared, gid, (subtransactions, removed, dropped))| TransactionEnd {
            prepared,
            gid,
            subtransactions,
            removed,
            dropped: dropped.into_iter().map(|(database, relation)| Dropped { database, relation }).collect(),
            ..TransactionEnd::new(xid, DateTime::from_timestamp_micros(time % (1 << 50)).unwrap())
        },
    )
}

fn fact() -> impl Strategy<Value = Fact> {
    let time = || any::<u32>().prop_map(|s| DateTime::from_timestamp(s.into(), 123_456_000).unwrap());
    prop_oneof![
        end().prop_map(|end| Fact::Commit(end.into())),
        end().prop_map(|end| Fact::Abort(end.into())),
        (any::<u32>(), text(), time()).prop_map(|(xid, gid, time)| Fact::Prepare(Prepared { xid, gid, time })),
        (text(), time()).prop_map(|(name, time)| Fact::RestorePoint { name, time }),
        (any::<u32>(), text()).prop_map(|(oid, path)| Fact::TablespaceCreate { oid, path }),
        (any::<u64>(), time()).prop_map(|(lsn, time)| Fact::OverwriteContrecord { overwritten: Lsn(lsn), time }),
        file().prop_map(|file| Fact::FileCreate { file }),
        proptest::collection::vec(any::<u32>(), 0..300).prop_map(|t| Fact::DatabaseDrop { oid: 1, tablespaces: t }),
        proptest::collection::vec((any::<u32>(), any::<u32>()), 0..300).prop_map(|locks| Fact::Locks {
            locks: locks.into_iter().map(|(xid, relation)| Lock { xid, database: 5, relation }).collect()
        }),
        (text(), text()).prop_map(|(prefix, text)| Fact::Message {
            transactional: true,
            database: 5,
            prefix: prefix.chars().take(50).collect(),
            text: text.chars().take(50).collect(),
            size: u32::MAX
        }),
        (file(), 0..4_u8, any::<u16>()).prop_map(|(file, change, count)| Fact::Rows(Rows {
            change: [Change::Insert, Change::Update, Change::Delete, Change::Inplace][usize::from(change)],
            file,
            block: u32::MAX,
            offset: 7,
            count
        })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn whatever_a_segment_tells_its_summary_fits(
        facts in proptest::collection::vec((fact(), any::<u32>()), 0..400),
        ends in proptest::collection::vec(any::<u8>(), 0..8300),
        repeats in 1..12_u64,
    ) {
        let mut summarizer = Summarizer::new(Lsn(START));
        let mut whole = Summarizer::whole(Lsn(START));
        let mut start = u64::MAX / 2;
        for _ in 0..repeats {
            for (fact, xid) in &facts {
                let record = Record {
                    start: Lsn(start), end: Lsn(start + 8), prev: Lsn(start - 8),
                    xid: *xid, rmid: 0, info: 0, length: 8, fact: fact.clone(),
                };
                start += 8;
                summarizer.gathered.take(record.clone());
                whole.gathered.take(record);
            }
        }
        let mut summary = summarizer.finish();
        summary.lead = Some(Lead {
            left: u32::MAX, here: u32::MAX, crc: u32::MAX, end: Lsn(u64::MAX), until: Lsn(u64::MAX),
            bytes: Some(ends[..ends.len().min(8192)].to_vec()),
        });
        summary.tail = Some(Tail {
            start: Lsn(u64::MAX), prev: Some(Lsn(u64::MAX)), here: u32::MAX, crc: u32::MAX,
            bytes: Some(ends[..ends.len().min(8192 + 24)].to_vec()), unknown: true,
        });
        summary.ending = Ending::Broken { at: Lsn(u64::MAX), why: "\u{1}".repeat(5000) };
        summary.bound();
        let json = serde_json::to_string(&summary).unwrap();
        prop_assert!(json.len() <= Summary::LONGEST, "{}", json.len());
        prop_assert_eq!(&serde_json::from_str::<Summary>(&json).unwrap(), &summary);
        let whole = whole.finish();
        prop_assert_eq!(summary.xids, whole.xids);
        prop_assert_eq!(summary.commits, whole.commits);
        for (list, all) in [(&summary.turns, &whole.turns), (&summary.changes, &whole.changes)] {
            prop_assert!(list.items.iter().is_sorted_by_key(|told| told.lsn));
            if !list.cut {
                prop_assert_eq!(list, all);
            }
        }
        if !summary.rows.cut {
            prop_assert_eq!(&summary.rows, &whole.rows);
        }
        prop_assert!(summary.rows.items.iter().is_sorted_by_key(|count| std::cmp::Reverse(count.total())));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// However the records fall on the ends of segments, each is told once, where it starts.
    #[test]
    fn joined_summaries_tell_each_record_once(
        ends in proptest::collection::vec((0..96_usize, 0..5_u8, 0..30_000_usize, 0..3_usize), 1..5),
    ) {
        let mut writer = Writer::at(START);
        let mut xid = 1;
        for (left, kind, size, after) in ends {
            fill_segment(&mut writer, left.next_multiple_of(8).max(8));
            match kind {
                0 => writer.record(21, 0, xid, &message(size)),
                1 => writer.record(1, 0x80, xid, &subtransactions(size as u32 / 8)),
                2 => writer.record(14, 0, xid, &vec![1; size]),
                3 => writer.record(21, 0, xid, &message(size * 100)),
                _ => writer.switch(),
            };
            (0..after).for_each(|n| _ = commit(&mut writer, xid + 1 + n as u32));
            xid += 10;
        }
        writer.fill();
        let (whole, outcomes) = joined(&writer.bytes, true);
        prop_assert!(outcomes.iter().all(|o| matches!(o, Joined::Whole | Joined::GoesOn)), "{:?}", outcomes);
        prop_assert!(whole.iter().all(|summary| summary.tail.is_none() && summary.lead.is_none()));
        agrees(&writer.bytes, &whole);
        let (bounded, again) = joined(&writer.bytes, false);
        prop_assert_eq!(outcomes, again);
        for (bounded, whole) in bounded.iter().zip(&whole) {
            if bounded.suffices(true) {
                prop_assert_eq!(bounded, whole);
            }
            let chain = |s: &Summary| (s.records, s.first, s.prev, s.last, s.end, s.ending.clone());
            prop_assert_eq!(chain(bounded), chain(whole));
        }
    }
}

#[test]
fn what_matters_most_is_kept() {
    let mut summarizer = Summarizer::new(Lsn(START));
    let mut tell = |n: u64, fact| {
        let (start, end) = (Lsn(START + n * 8), Lsn(START + n * 8 + 8));
        summarizer.gathered.take(Record { start, end, prev: Lsn(0), xid: 7, rmid: 0, info: 0, length: 8, fact });
    };
    let file = RelFile { tablespace: 1663, database: 5, number: 20_000 };
    let end = || TransactionEnd { subtransactions: vec![8, 9], ..TransactionEnd::new(7, DateTime::UNIX_EPOCH) };
    for n in 0..9_000 {
        let gid = format!("transaction {n}");
        tell(3 * n, Fact::Prepare(Prepared { xid: 7, gid, time: DateTime::UNIX_EPOCH }));
        tell(3 * n + 1, Fact::Commit(end().into()));
        tell(3 * n + 2, Fact::FileCreate { file });
    }
    tell(27_000, Fact::RestorePoint { name: "r".into(), time: DateTime::UNIX_EPOCH });
    tell(27_001, Fact::Commit(TransactionEnd { removed: vec![file], ..end() }.into()));
    let timeline = TimelineId::new(3).unwrap();
    tell(27_002, Fact::EndOfRecovery { time: DateTime::UNIX_EPOCH, timeline, previous: timeline, wal_level: None });
    let summary = summarizer.finish();
    assert!(summary.turns.cut && summary.changes.cut && !summary.suffices(false));
    assert!(summary.turns.items.len() > 50 && summary.changes.items.len() > 50);
    let turns: Vec<&Fact> = summary.turns.items.iter().rev().take(2).map(|told| &told.fact).collect();
    assert!(matches!(turns[..], [Fact::EndOfRecovery { .. }, Fact::RestorePoint { .. }]), "{turns:?}");
    assert!(matches!(&summary.changes.items.last().unwrap().fact, Fact::Commit(end) if end.removed == [file]));
    assert_eq!((summary.commits, summary.records), (9_001, 27_003));
}

#[test]
fn a_loop_of_subtransactions_takes_no_room() {
    let end = TransactionEnd {
        subtransactions: (8..5_000).chain([6_000, 6_001, 7_000]).collect(),
        ..TransactionEnd::new(7, DateTime::UNIX_EPOCH)
    };
    let json = serde_json::to_string(&Fact::Commit(end.clone().into())).unwrap();
    assert!(json.contains("[[8,4999],6000,6001,7000]"), "{json}");
    assert_eq!(serde_json::from_str::<Fact>(&json).unwrap(), Fact::Commit(end.into()));
    assert!(serde_json::from_str::<Fact>(&json.replace("4999", "4294967295")).is_err());
}
