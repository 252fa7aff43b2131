//! Planning by summaries must tell exactly what planning by all records tells, whatever the log.

mod archived;

use chrono::{DateTime, Utc};
use proptest::prelude::*;

use super::survey::{Seen, Survey};
use crate::{
    postgres::{Lsn, TimelineId},
    wal::{Checkpoint, Ended, Fact, Parameters, Prepared, Record, StopRule, Summary, Told, TransactionEnd, WalLevel},
};

/// The length of the segments, in bytes.
const SEGMENT: u64 = 400;

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(seconds, 0).unwrap()
}

/// Few numbers, names and times, so that they meet.
fn fact() -> impl Strategy<Value = Fact> {
    let end =
        (3..12_u32, 0..20_i64, any::<bool>(), prop::option::of(12..15_u32)).prop_map(|(xid, time, prepared, sub)| {
            TransactionEnd {
                prepared,
                subtransactions: sub.into_iter().collect(),
                ..TransactionEnd::new(xid, at(time))
            }
        });
    let number = |n: u64| (n << 32) + 20;
    prop_oneof![
        12 => Just(Fact::Other),
        6 => end.clone().prop_map(|end| Fact::Commit(end.into())),
        3 => end.prop_map(|end| Fact::Abort(end.into())),
        2 => (3..12_u32).prop_map(|xid| Fact::Prepare(Prepared { xid, gid: format!("p{xid}"), time: at(1) })),
        2 => (0..3_u8).prop_map(|n| Fact::RestorePoint { name: format!("r{n}"), time: at(2) }),
        1 => (0..3_u64).prop_map(move |epoch| Fact::Checkpoint(checkpoint(number(epoch)))),
        1 => (1..9_i32, 0..20).prop_map(|(n, minimal)| Fact::ParameterChange(parameters(n, minimal == 0))),
        1 => (1..4_u32).prop_map(|oid| Fact::TablespaceCreate { oid, path: format!("/t{oid}") }),
        1 => (1..4_u32).prop_map(|oid| Fact::TablespaceDrop { oid }),
    ]
}

fn checkpoint(next_xid: u64) -> Checkpoint {
    let timeline = TimelineId::FIRST;
    Checkpoint { shutdown: false, redo: Lsn(0), timeline, previous: timeline, wal_level: None, next_xid, time: at(0) }
}

fn parameters(number: i32, minimal: bool) -> Parameters {
    Parameters {
        max_connections: number,
        max_worker_processes: 9 - number,
        max_wal_senders: 1,
        max_prepared_transactions: 1,
        max_locks_per_transaction: 1,
        wal_level: Some(if minimal { WalLevel::Minimal } else { WalLevel::Replica }),
        wal_log_hints: false,
        track_commit_timestamp: false,
    }
}

/// Records of 8 to 1200 bytes: some straddle segments, and some segments hold no start of a record.
fn log() -> impl Strategy<Value = Vec<Record>> {
    let length = prop_oneof![12 => 1..8_u64, 1 => 50..150_u64];
    prop::collection::vec((fact(), length), 1..60).prop_map(|facts| {
        let mut start = Lsn(SEGMENT + 40);
        let record = |(fact, length): (Fact, u64)| {
            let (here, end) = (start, start + length * 8);
            start = end;
            Record { start: here, end, prev: Lsn(0), xid: 0, rmid: 0, info: 0, length: 8, fact }
        };
        facts.into_iter().map(record).collect()
    })
}

fn rule(log: &[Record]) -> BoxedStrategy<StopRule> {
    let end = log.last().map_or(0, |record| record.end.0);
    prop_oneof![
        (0..21_i64, any::<bool>()).prop_map(|(time, inclusive)| StopRule::Time { time: at(time), inclusive }),
        (SEGMENT..=end, any::<bool>()).prop_map(|(lsn, inclusive)| StopRule::Lsn { lsn: Lsn(lsn), inclusive }),
        (3..15_u64, 0..3_u64, any::<bool>())
            .prop_map(|(xid, epoch, inclusive)| StopRule::Xid { xid: xid + (epoch << 32), inclusive }),
        (0..3_u8, any::<bool>()).prop_map(|(n, inclusive)| StopRule::Name { name: format!("r{n}"), inclusive }),
        Just(StopRule::Latest),
    ]
    .boxed()
}

fn summary(records: &[&Record]) -> Summary {
    let ends = |committed: Option<bool>| {
        records.iter().filter_map(move |r| match &r.fact {
            Fact::Commit(end) if committed != Some(false) => Some((r.start, end, true)),
            Fact::Abort(end) if committed != Some(true) => Some((r.start, end, false)),
            _ => None,
        })
    };
    let mut commits =
        ends(Some(true)).map(|(lsn, end, committed)| Ended { xid: end.xid, time: end.time, lsn, committed });
    let times = || ends(None).map(|(_, end, _)| end.time);
    let xids = || ends(None).flat_map(|(_, end, _)| end.subtransactions.iter().copied().chain([end.xid]));
    let turn = |fact: &Fact| match fact {
        Fact::Commit(end) | Fact::Abort(end) => end.prepared,
        Fact::Other => false,
        _ => true,
    };
    let mut summary = Summary {
        records: records.len() as u64,
        first: records.first().map(|r| r.start),
        last: records.last().map(|r| r.start),
        end: records.last().map_or(Lsn(0), |r| r.end),
        times: times().min().zip(times().max()),
        xids: xids().min().zip(xids().max()),
        first_commit: commits.next(),
        last_commit: None,
        ..Summary::default()
    };
    summary.last_commit = commits.next_back().or_else(|| summary.first_commit.clone());
    for r in records.iter().filter(|r| turn(&r.fact)) {
        summary.turns.items.push(Told { lsn: r.start, end: r.end, xid: r.xid, fact: r.fact.clone() });
    }
    summary
}

fn show(survey: &mut Survey, records: &[&Record]) -> bool {
    records.iter().any(|record| survey.see(record).is_break())
}

/// Feeds segments as a scan does; tells what was seen, and of how many segments the records were read.
fn by_summaries(mut survey: Survey, log: &[Record]) -> (Seen, usize) {
    let segments: Vec<Vec<&Record>> = log
        .iter()
        .collect::<Vec<_>>()
        .chunk_by(|a, b| a.start.0 / SEGMENT == b.start.0 / SEGMENT)
        .map(<[_]>::to_vec)
        .collect();
    let mut read = 0;
    for (index, segment) in segments.iter().enumerate() {
        let summary = summary(segment);
        let last = index + 1 == segments.len();
        let done = if last || survey.needs_records(&summary) {
            read += 1;
            show(&mut survey, segment)
        } else {
            survey.pass(&summary);
            survey.is_done()
        };
        if done {
            break;
        }
    }
    (survey.finish(), read)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn summaries_tell_what_the_records_tell(
        (log, rule, begin) in log().prop_flat_map(|log| {
            let (rule, count) = (rule(&log), log.len());
            (Just(log), rule, 0..count)
        })
    ) {
        let begin = log[begin].start;
        let log: Vec<Record> = log.into_iter().filter(|r| r.start.0 / SEGMENT >= begin.0 / SEGMENT).collect();
        let survey = || Survey::new(rule.clone(), begin, log.iter().map(|r| r.start).step_by(2).collect());
        let mut whole = survey();
        let _ = show(&mut whole, &log.iter().collect::<Vec<_>>());
        let (mut seen, read) = by_summaries(survey(), &log);
        let mut expected = whole.finish();
        // Where the log ends is asked only of one that is read to its end.
        if expected.stop.is_some() {
            (expected.last_record, seen.last_record) = (None, None);
        }
        prop_assert_eq!(seen, expected);
        let few = matches!(rule, StopRule::Time { .. } | StopRule::Lsn { .. } | StopRule::Latest);
        prop_assert!(!few || read <= 4, "{} segments were read", read);
    }
}
