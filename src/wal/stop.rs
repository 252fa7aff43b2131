//! PostgreSQL's stop rule: where a recovery that replays these records ends (`recoveryStopsBefore` and
//! `recoveryStopsAfter` in `src/backend/access/transam/xlogrecovery.c`).
//!
//! What is found is an address, so that PostgreSQL can be handed that instead of the wish: a
//! `recovery_target_lsn` of [`Stop::record`] with `recovery_target_inclusive` as [`Stop::inclusive`] says. Thus a
//! few wishes can be granted that PostgreSQL has no setting for: a subtransaction, an xid in 64 bits, the moment
//! before a restore point, the last record that is there.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Fact, Prepared, Record, Summary, TransactionEnd, widen_xid};
use crate::postgres::Lsn;

/// What recovery should reach. Exclusive means: stop just before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopRule {
    /// The last record there is.
    Latest,
    /// Up to a time: stops before the first commit or abort, in LSN order, that is later (inclusive), or not
    /// earlier (exclusive). Times need not rise from commit to commit.
    Time {
        /// The time.
        time: DateTime<Utc>,
        /// Whether commits of exactly that microsecond are wanted.
        inclusive: bool,
    },
    /// Up to the end of a transaction, commit or abort. A subtransaction stands for its top transaction.
    Xid {
        /// Its number: the 32 bits that WAL holds, or, when higher than these allow, with the epoch.
        xid: u64,
        /// Whether it is wanted itself.
        inclusive: bool,
    },
    /// Up to the first record that starts at the address or later. One that only contains the address does not
    /// count.
    Lsn {
        /// The address.
        lsn: Lsn,
        /// Whether that record is wanted itself.
        inclusive: bool,
    },
    /// Up to the first restore point of that name.
    Name {
        /// The name.
        name: String,
        /// Whether that record is wanted itself. It changes nothing in the data.
        inclusive: bool,
    },
}

impl StopRule {
    /// Whether recovery may stop at a record that starts in a segment, as far as its summary tells. False is certain.
    #[must_use]
    pub fn may_stop_in(&self, summary: &Summary) -> bool {
        match self {
            Self::Latest => false,
            Self::Time { time, inclusive } => {
                summary.times.is_some_and(|(_, greatest)| greatest > *time || (!inclusive && greatest == *time))
            }
            // The low 32 bits are what WAL holds.
            Self::Xid { xid, .. } => summary.may_end(*xid as u32),
            Self::Lsn { lsn, .. } => summary.last.is_some_and(|last| last >= *lsn),
            Self::Name { name, .. } => summary.turns.items.iter().any(|told| names(&told.fact, name)),
        }
    }
}

/// A commit or an abort, and where it is recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The top transaction.
    pub xid: u32,
    /// When.
    pub time: DateTime<Utc>,
    /// The start of its record.
    pub lsn: Lsn,
    /// Committed, or else aborted.
    pub committed: bool,
}

/// Where recovery stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// The start of the record that it stops at: the `recovery_target_lsn`.
    pub record: Lsn,
    /// Whether that record is replayed: the `recovery_target_inclusive`.
    pub inclusive: bool,
    /// The end of the last record that is replayed. A new timeline would begin here.
    pub end: Lsn,
    /// The WAL must be there up to this address, because PostgreSQL reads the record that it stops before.
    pub needed: Lsn,
    /// The commit or abort that it stops at, when the record is one.
    pub at: Option<Ended>,
    /// The last transaction that will be there, of those that were shown.
    pub last_wanted: Option<Ended>,
    /// The first transaction that will not; `None` while no further commit was shown.
    pub first_unwanted: Option<Ended>,
    /// The transactions that were prepared in the records shown, and are neither committed nor rolled back.
    pub prepared: Vec<Prepared>,
}

/// What was seen when no more records came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Where recovery stops; `None` when it would run past the last record without reaching the target.
    pub stop: Option<Stop>,
    /// The start and the end of the last record.
    pub last_record: Option<(Lsn, Lsn)>,
    /// The last commit.
    pub last_commit: Option<Ended>,
}

/// Watches the records of one path in order and finds where recovery stops.
#[derive(Debug)]
pub struct StopFinder {
    rule: StopRule,
    /// Replay starts here; records before it decide nothing.
    from: Lsn,
    near_xid: Option<u64>,
    last_record: Option<(Lsn, Lsn)>,
    last_commit: Option<Ended>,
    prepared: BTreeMap<u32, Prepared>,
    stop: Option<Stop>,
}

impl StopFinder {
    /// A finder for a recovery that starts to replay at `from` (the backup's redo point). Records before it may
    /// be shown: they tell the last commit, and never stop anything.
    #[must_use]
    pub fn new(rule: StopRule, from: Lsn) -> Self {
        Self { rule, from, near_xid: None, last_record: None, last_commit: None, prepared: BTreeMap::new(), stop: None }
    }

    /// Makes known a 64-bit xid that was next about when the records begin, for instance from `pg_control`.
    /// Without it an epoch in the target is compared from the first checkpoint record on.
    #[must_use]
    pub fn near_xid(mut self, next_xid: u64) -> Self {
        self.near_xid = Some(next_xid);
        self
    }

    /// Shows the next record. Once [`StopFinder::stop`] is known, further records tell the first transaction that
    /// is not wanted; [`StopFinder::is_settled`] says when that is known too.
    pub fn show(&mut self, record: &Record) {
        self.tell(record.start, record.end, &record.fact);
    }

    /// Passes over the records of a segment in which [`StopRule::may_stop_in`] says that recovery does not stop, all of
    /// which start where replay does or later.
    pub fn pass(&mut self, summary: &Summary) {
        if let Some(stop) = &mut self.stop {
            stop.first_unwanted = stop.first_unwanted.take().or_else(|| summary.first_commit.clone());
            return;
        }
        for told in &summary.turns.items {
            self.tell(told.lsn, told.end, &told.fact);
        }
        self.last_commit = summary.last_commit.clone().or(self.last_commit.take());
        self.last_record = summary.last.map(|last| (last, summary.end)).or(self.last_record);
    }

    fn tell(&mut self, start: Lsn, end: Lsn, fact: &Fact) {
        let ended = ended(start, fact);
        if let Some(stop) = &mut self.stop {
            if stop.first_unwanted.is_none() {
                stop.first_unwanted = ended.filter(|end| end.committed);
            }
            return;
        }
        if let Fact::Checkpoint(checkpoint) = fact {
            self.near_xid = Some(checkpoint.next_xid);
        }
        let replayed = start >= self.from;
        if replayed && self.stops_before(start, fact) {
            let first_unwanted = ended.clone().filter(|end| end.committed);
            let replayed_to = self.last_record.map_or(start, |(_, end)| end);
            self.stop = Some(Stop { first_unwanted, end: replayed_to, ..self.stop_at(start, end, false, ended) });
            return;
        }
        self.replay(start, end, fact, ended.clone());
        if replayed && self.stops_after(start, fact) {
            self.stop = Some(self.stop_at(start, end, true, ended));
        }
    }

    /// Where recovery stops, as soon as that is known.
    #[must_use]
    pub fn stop(&self) -> Option<&Stop> {
        self.stop.as_ref()
    }

    /// Whether further records can tell nothing more.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.stop.as_ref().is_some_and(|stop| stop.first_unwanted.is_some())
    }

    /// What is known when there are no more records.
    #[must_use]
    pub fn finish(self) -> Seen {
        let Self { rule, from, last_record, last_commit, prepared, mut stop, .. } = self;
        if let (StopRule::Latest, Some((start, end))) = (rule, last_record.filter(|(start, _)| *start >= from)) {
            stop = Some(Stop {
                record: start,
                inclusive: true,
                end,
                needed: end,
                at: None,
                last_wanted: last_commit.clone(),
                first_unwanted: None,
                prepared: prepared.into_values().collect(),
            });
        }
        Seen { stop, last_record, last_commit }
    }

    fn replay(&mut self, start: Lsn, end: Lsn, fact: &Fact, ended: Option<Ended>) {
        self.last_record = Some((start, end));
        if let Some(commit) = ended.filter(|end| end.committed) {
            self.last_commit = Some(commit);
        }
        match fact {
            Fact::Prepare(prepared) => drop(self.prepared.insert(prepared.xid, prepared.clone())),
            Fact::Commit(end) | Fact::Abort(end) if end.prepared => drop(self.prepared.remove(&end.xid)),
            _ => {}
        }
    }

    fn stop_at(&self, record: Lsn, end: Lsn, inclusive: bool, at: Option<Ended>) -> Stop {
        Stop {
            record,
            inclusive,
            end,
            needed: end,
            at,
            last_wanted: self.last_commit.clone(),
            first_unwanted: None,
            prepared: self.prepared.values().cloned().collect(),
        }
    }

    /// `recoveryStopsBefore`.
    fn stops_before(&self, start: Lsn, fact: &Fact) -> bool {
        match &self.rule {
            StopRule::Lsn { lsn, inclusive: false } => start >= *lsn,
            StopRule::Time { time, inclusive: true } => transaction_end(fact).is_some_and(|end| end.time > *time),
            StopRule::Time { time, inclusive: false } => transaction_end(fact).is_some_and(|end| end.time >= *time),
            StopRule::Xid { xid, inclusive: false } => self.ends(fact, *xid),
            StopRule::Name { name, inclusive: false } => names(fact, name),
            _ => false,
        }
    }

    /// `recoveryStopsAfter`.
    fn stops_after(&self, start: Lsn, fact: &Fact) -> bool {
        match &self.rule {
            StopRule::Lsn { lsn, inclusive: true } => start >= *lsn,
            StopRule::Xid { xid, inclusive: true } => self.ends(fact, *xid),
            StopRule::Name { name, inclusive: true } => names(fact, name),
            _ => false,
        }
    }

    /// Whether a record ends the transaction `wanted`, or the one that it is a subtransaction of.
    fn ends(&self, fact: &Fact, wanted: u64) -> bool {
        // The low 32 bits are what WAL holds.
        let narrow = wanted as u32;
        let found = transaction_end(fact).is_some_and(|end| end.includes(narrow));
        let known_epoch = self.near_xid.filter(|_| wanted > u32::MAX.into());
        found && known_epoch.is_none_or(|near| widen_xid(narrow, near) == wanted)
    }
}

fn transaction_end(fact: &Fact) -> Option<&TransactionEnd> {
    match fact {
        Fact::Commit(end) | Fact::Abort(end) => Some(end),
        _ => None,
    }
}

fn ended(lsn: Lsn, fact: &Fact) -> Option<Ended> {
    let end = transaction_end(fact)?;
    Some(Ended { xid: end.xid, time: end.time, lsn, committed: matches!(fact, Fact::Commit(_)) })
}

fn names(fact: &Fact, wanted: &str) -> bool {
    matches!(fact, Fact::RestorePoint { name, .. } if name == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    fn record(start: u64, fact: Fact) -> Record {
        Record { start: Lsn(start), end: Lsn(start + 8), prev: Lsn(0), xid: 0, rmid: 0, info: 0, length: 8, fact }
    }

    fn end(xid: u32, seconds: i64, subtransactions: &[u32], prepared: bool) -> TransactionEnd {
        let subtransactions = subtransactions.to_vec();
        TransactionEnd { subtransactions, prepared, ..TransactionEnd::new(xid, at(seconds)) }
    }

    fn checkpoint(next_xid: u64) -> Fact {
        let timeline = crate::postgres::TimelineId::FIRST;
        Fact::Checkpoint(super::super::Checkpoint {
            shutdown: false,
            redo: Lsn(0),
            timeline,
            previous: timeline,
            wal_level: None,
            next_xid,
            time: at(0),
        })
    }

    /// The clock is set back between 30 and 40, and an abort is the last to be late.
    fn log() -> Vec<Record> {
        vec![
            record(8, Fact::Commit(end(1, 1, &[], false).into())),
            record(16, Fact::Prepare(Prepared { xid: 2, gid: "two".into(), time: at(50) })),
            record(24, Fact::RestorePoint { name: "r".into(), time: at(60) }),
            record(32, Fact::Commit(end(3, 30, &[31, 32], false).into())),
            record(40, Fact::Other),
            record(48, Fact::Commit(end(4, 20, &[], false).into())),
            record(56, Fact::RestorePoint { name: "r".into(), time: at(60) }),
            record(64, Fact::Abort(end(5, 40, &[], false).into())),
            record(72, Fact::Commit(end(2, 41, &[], true).into())),
            record(80, checkpoint((1 << 32) + 9)),
            record(88, Fact::Commit(end(3, 42, &[], false).into())),
        ]
    }

    fn find(rule: StopRule) -> Seen {
        let mut finder = StopFinder::new(rule, Lsn(16));
        log().iter().for_each(|record| finder.show(record));
        finder.finish()
    }

    /// The address and the inclusiveness that PostgreSQL is handed.
    fn address(rule: StopRule) -> Option<(u64, bool)> {
        find(rule).stop.map(|stop| (stop.record.0, stop.inclusive))
    }

    #[test]
    fn a_time_stops_before_the_first_that_is_later_aborts_included() {
        let time = |seconds, inclusive| StopRule::Time { time: at(seconds), inclusive };
        assert_eq!(address(time(0, true)), Some((32, false)), "what was before the start of replay does not count");
        assert_eq!(address(time(25, true)), Some((32, false)), "though a commit after it is earlier");
        assert_eq!(address(time(30, true)), Some((64, false)));
        assert_eq!(address(time(30, false)), Some((32, false)));
        assert_eq!(address(time(40, true)), Some((72, false)), "a prepared one counts when it commits");
        assert_eq!(address(time(41, true)), Some((88, false)));
        assert_eq!(address(time(42, true)), None, "restore points and checkpoints do not stop it");
    }

    #[test]
    fn an_xid_stops_at_the_end_of_its_top_transaction() {
        let xid = |xid, inclusive| StopRule::Xid { xid, inclusive };
        assert_eq!(address(xid(3, true)), Some((32, true)));
        assert_eq!(address(xid(3, false)), Some((32, false)));
        assert_eq!(address(xid(32, false)), Some((32, false)));
        assert_eq!(address(xid(5, true)), Some((64, true)));
        assert_eq!(address(xid(2, true)), Some((72, true)), "not where it was prepared");
        assert_eq!(address(xid(1, true)), None);
        let mut finder = StopFinder::new(xid((1 << 32) + 3, true), Lsn(16)).near_xid(5);
        log().iter().for_each(|record| finder.show(record));
        assert_eq!(finder.stop().unwrap().record, Lsn(88), "the epoch tells the two apart");
    }

    #[test]
    fn an_lsn_stops_at_the_first_record_that_starts_there_or_later() {
        let lsn = |lsn, inclusive| StopRule::Lsn { lsn: Lsn(lsn), inclusive };
        assert_eq!(address(lsn(40, true)), Some((40, true)));
        assert_eq!(address(lsn(41, true)), Some((48, true)), "40 contains it, and goes by");
        assert_eq!(address(lsn(41, false)), Some((48, false)));
        assert_eq!(address(lsn(0, true)), Some((16, true)));
        assert_eq!(address(lsn(89, true)), None);
    }

    #[test]
    fn a_name_stops_at_its_first_restore_point() {
        let name = |name: &str, inclusive| StopRule::Name { name: name.into(), inclusive };
        assert_eq!(address(name("r", true)), Some((24, true)));
        assert_eq!(address(name("r", false)), Some((24, false)));
        assert_eq!(address(name("R", true)), None);
    }

    #[test]
    fn a_stop_names_what_will_be_there_and_what_will_not() {
        let stop = find(StopRule::Time { time: at(30), inclusive: true }).stop.unwrap();
        assert_eq!((stop.end, stop.needed), (Lsn(64), Lsn(72)));
        assert_eq!(stop.at.unwrap().xid, 5);
        assert_eq!(stop.last_wanted.unwrap().xid, 4);
        assert_eq!(stop.first_unwanted.unwrap().xid, 2, "the abort is no transaction that will be missing");
        assert_eq!(stop.prepared[0].gid, "two");
        let stop = find(StopRule::Xid { xid: 2, inclusive: true }).stop.unwrap();
        assert_eq!((stop.end, stop.needed), (Lsn(80), Lsn(80)));
        assert_eq!(stop.last_wanted.unwrap().xid, 2);
        assert_eq!(stop.first_unwanted.unwrap().lsn, Lsn(88));
        assert!(stop.prepared.is_empty());
    }

    #[test]
    fn latest_is_the_last_record() {
        let seen = find(StopRule::Latest);
        let stop = seen.stop.unwrap();
        assert_eq!((stop.record, stop.inclusive, stop.end), (Lsn(88), true, Lsn(96)));
        assert_eq!(seen.last_record, Some((Lsn(88), Lsn(96))));
        assert_eq!(StopFinder::new(StopRule::Latest, Lsn(0)).finish().stop, None);
    }
}
