//! What the log up to the stop tells: where recovery would stop, and what it will have replayed by then. It is told by
//! summaries of segments, and by the records of the few segments that decide. [`StopFinder`] decides by PostgreSQL's
//! own rules.

use std::{collections::HashMap, ops::ControlFlow};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    postgres::{Lsn, RequiredSettings},
    wal::{Ended, Ending, Fact, Record, StopFinder, StopRule, Summary, WalLevel},
};

/// A transaction's end, or a restore point, in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Where its record starts.
    pub lsn: Lsn,
    /// The transaction; none of a restore point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xid: Option<u32>,
    /// When, by the server's clock.
    pub time: DateTime<Utc>,
    /// Whether it was rolled back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub aborted: bool,
}

/// A tablespace that replay creates, at the path it had then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatedTablespace {
    /// Where the record starts.
    pub lsn: Lsn,
    /// Its OID.
    pub oid: u32,
    /// The folder that replay will use.
    pub path: String,
}

/// Where recovery stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// The start of the record that decides.
    pub lsn: Lsn,
    /// Whether that record is replayed.
    pub inclusive: bool,
    /// The end of that record: PostgreSQL has to read it whole.
    pub end: Lsn,
}

impl Stop {
    /// How far replay has come then. A backup from a standby may be consistent at the end of the very last record.
    #[must_use]
    pub fn replayed(&self) -> Lsn {
        if self.inclusive { self.end } else { self.lsn }
    }
}

/// Is shown the log of one path in order, segment by segment.
#[derive(Debug)]
pub struct Survey {
    rule: StopRule,
    begin: Lsn,
    finder: StopFinder,
    /// Looks for what else matches the target, once a stop is known.
    again: Option<StopFinder>,
    near_xid: Option<u64>,
    /// Where the checkpoints lie of which the time is wanted.
    wanted_checkpoints: Vec<Lsn>,
    seen: Seen,
}

/// What was seen of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Where recovery stops.
    pub stop: Option<Stop>,
    /// All that match the target: more than one is for a person to choose from.
    pub matches: Vec<Moment>,
    /// The last commit that will be there.
    pub last_commit: Option<Moment>,
    /// The first commit that will not be there; where none follows, the abort that recovery stops before.
    pub first_left_out: Option<Moment>,
    /// Whether a commit or abort at or before the time that is wanted was seen.
    pub reached_time: bool,
    /// Whether a commit or abort of exactly the time that is wanted was seen.
    pub met_time: bool,
    /// The last whole record: its start and its end.
    pub last_record: Option<(Lsn, Lsn)>,
    /// Times of the checkpoints that were asked for, by the LSN of their records.
    pub checkpoints: HashMap<Lsn, DateTime<Utc>>,
    /// Each change of the settings a recovering server needs.
    pub required: Vec<(Lsn, RequiredSettings)>,
    /// Tablespaces that replay creates, those that it drops again among them: it needs their folders.
    pub tablespaces: Vec<CreatedTablespace>,
    /// Names of transactions that are prepared and not finished at the stop.
    pub prepared: Vec<String>,
    /// Where the log says `wal_level = minimal`: nothing after it can be recovered from before it.
    pub minimal: Option<Lsn>,
}

impl Survey {
    /// For a rule, from the record at `begin` on. `checkpoints` are those of which the time is wanted.
    #[must_use]
    pub fn new(rule: StopRule, begin: Lsn, checkpoints: Vec<Lsn>) -> Self {
        let finder = StopFinder::new(rule.clone(), begin);
        let seen = Seen::default();
        Self { rule, begin, finder, again: None, near_xid: None, wanted_checkpoints: checkpoints, seen }
    }

    /// Whether the next segment must be shown record by record: its summary leaves open where recovery stops.
    #[must_use]
    pub fn needs_records(&self, summary: &Summary) -> bool {
        summary.first.is_some_and(|first| first < self.begin)
            || !matches!(summary.ending, Ending::Full | Ending::Switch)
            || summary.turns.items.iter().any(|told| says_minimal(&told.fact))
            || (self.looks_for_a_stop() && self.rule.may_stop_in(summary))
    }

    /// Takes the next segment by its summary: none of its records is needed.
    pub fn pass(&mut self, summary: &Summary) {
        let replayed = self.finder.stop().is_none();
        self.finder.pass(summary);
        if let Some(again) = &mut self.again {
            again.pass(summary);
        }
        for told in &summary.turns.items {
            self.note(told.lsn, &told.fact, replayed);
        }
        if let (true, StopRule::Time { time, .. }) = (replayed, &self.rule) {
            self.seen.reached_time |= summary.times.is_some_and(|(least, _)| least <= *time);
            self.seen.met_time |= summary.times.is_some_and(|(least, greatest)| least == *time || greatest == *time);
        }
    }

    /// Takes the next record. Breaks when nothing after it matters.
    pub fn see(&mut self, record: &Record) -> ControlFlow<()> {
        if record.start < self.begin {
            return ControlFlow::Continue(());
        }
        if says_minimal(&record.fact) {
            self.seen.minimal = Some(record.start);
            return ControlFlow::Break(());
        }
        let known = self.finder.stop().is_some();
        self.finder.show(record);
        let stop = self.finder.stop().map(|stop| stop.inclusive);
        self.note(record.start, &record.fact, !known && stop != Some(false));
        if let Some(again) = &mut self.again {
            again.show(record);
            if again.stop().is_some() {
                self.matched(record);
            }
        } else if stop.is_some() && !known {
            self.matched(record);
        }
        if self.is_done() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Whether nothing that may follow matters.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.seen.minimal.is_some() || (!self.looks_for_a_stop() && self.finder.is_settled())
    }

    /// Whether it is known where recovery stops.
    #[must_use]
    pub fn has_stop(&self) -> bool {
        self.finder.stop().is_some()
    }

    fn looks_for_a_stop(&self) -> bool {
        !self.has_stop() || self.wants_every_match()
    }

    /// Of transactions and names every match is looked for, to the end.
    fn wants_every_match(&self) -> bool {
        matches!(self.rule, StopRule::Xid { .. } | StopRule::Name { .. })
    }

    /// Writes a match down and looks for the next one behind it.
    fn matched(&mut self, record: &Record) {
        self.seen.matches.extend(moment(record));
        if !self.wants_every_match() {
            return;
        }
        let again = StopFinder::new(self.rule.clone(), Lsn(record.start.0 + 1));
        self.again = Some(match self.near_xid {
            Some(xid) => again.near_xid(xid),
            None => again,
        });
    }

    /// Writes down what a record tells besides; `replayed` says whether recovery will replay it.
    fn note(&mut self, lsn: Lsn, fact: &Fact, replayed: bool) {
        if let Fact::Checkpoint(checkpoint) = fact {
            self.near_xid = Some(checkpoint.next_xid);
        }
        if !replayed {
            return;
        }
        match fact {
            Fact::Commit(end) | Fact::Abort(end) => {
                if let StopRule::Time { time, .. } = self.rule {
                    self.seen.reached_time |= end.time <= time;
                    self.seen.met_time |= end.time == time;
                }
            }
            Fact::Checkpoint(checkpoint) if self.wanted_checkpoints.contains(&lsn) => {
                self.seen.checkpoints.insert(lsn, checkpoint.time);
            }
            Fact::ParameterChange(parameters) => self.seen.required.push((lsn, parameters.required())),
            Fact::TablespaceCreate { oid, path } => {
                self.seen.tablespaces.push(CreatedTablespace { lsn, oid: *oid, path: path.clone() });
            }
            _ => {}
        }
    }

    /// What is known when there are no more records.
    #[must_use]
    pub fn finish(self) -> Seen {
        let found = self.finder.finish();
        let mut seen = self.seen;
        seen.last_record = found.last_record;
        seen.last_commit = found.last_commit.map(Moment::from);
        if let Some(stop) = found.stop {
            seen.stop = Some(Stop { lsn: stop.record, inclusive: stop.inclusive, end: stop.needed });
            seen.last_commit = stop.last_wanted.map(Moment::from);
            seen.first_left_out = stop.first_unwanted.or(stop.at.filter(|_| !stop.inclusive)).map(Moment::from);
            seen.prepared = stop.prepared.into_iter().map(|p| p.gid).collect();
        }
        seen
    }
}

impl From<Ended> for Moment {
    fn from(end: Ended) -> Self {
        Self { lsn: end.lsn, xid: Some(end.xid), time: end.time, aborted: !end.committed }
    }
}

fn moment(record: &Record) -> Option<Moment> {
    let (xid, time, aborted) = match &record.fact {
        Fact::Commit(end) => (Some(end.xid), end.time, false),
        Fact::Abort(end) => (Some(end.xid), end.time, true),
        Fact::RestorePoint { time, .. } => (None, *time, false),
        _ => return None,
    };
    Some(Moment { lsn: record.start, xid, time, aborted })
}

pub(super) fn says_minimal(fact: &Fact) -> bool {
    let level = match fact {
        Fact::ParameterChange(parameters) => parameters.wal_level,
        Fact::Checkpoint(checkpoint) => checkpoint.wal_level,
        Fact::CheckpointRedo { wal_level } | Fact::EndOfRecovery { wal_level, .. } => *wal_level,
        _ => None,
    };
    level == Some(WalLevel::Minimal)
}
