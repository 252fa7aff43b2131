//! What the records up to the stop tell: where recovery would stop, and what it will have replayed by then.
//!
//! PostgreSQL's own rules (`recoveryStopsBefore` and `recoveryStopsAfter` in `xlogrecovery.c`) decide where that is:
//! a time stops before the first commit or abort past it in the order of the log, a transaction at its own end, a
//! name at the first restore point of that name, an LSN at the first record that starts there or later.

use std::{
    collections::{BTreeMap, HashMap},
    ops::ControlFlow,
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::target::Point;
use crate::{
    postgres::{Lsn, RequiredSettings},
    wal::{Fact, Record, WalLevel},
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

/// What was seen of the log so far.
#[derive(Clone, Debug)]
pub struct Survey {
    point: Point,
    before: bool,
    begin: Lsn,
    /// Where recovery stops, once found.
    pub stop: Option<Stop>,
    /// All that match the target: more than one is for a person to choose from.
    pub matches: Vec<Moment>,
    /// The last commit that will be there.
    pub last_commit: Option<Moment>,
    /// The first transaction's end that will not be there.
    pub first_left_out: Option<Moment>,
    /// Whether a commit or abort at or before the time that is wanted was seen.
    pub reached_time: bool,
    /// The last whole record: its start and its end.
    pub last_record: Option<(Lsn, Lsn)>,
    /// Times of checkpoints by the LSN of their records.
    pub checkpoints: HashMap<Lsn, DateTime<Utc>>,
    /// The greatest values that the log has for the settings a recovering server needs.
    pub required: Option<RequiredSettings>,
    /// Tablespaces that replay creates.
    pub tablespaces: Vec<CreatedTablespace>,
    /// Transactions that are prepared and not finished, by their xids.
    pub prepared: BTreeMap<u32, String>,
    /// Where the log says `wal_level = minimal`: nothing after it can be recovered from before it.
    pub minimal: Option<Lsn>,
    next_xid: Option<u64>,
}

impl Survey {
    /// For a target, from the record at `begin` on.
    #[must_use]
    pub fn new(point: Point, before: bool, begin: Lsn) -> Self {
        Self {
            point,
            before,
            begin,
            stop: None,
            matches: Vec::new(),
            last_commit: None,
            first_left_out: None,
            reached_time: false,
            last_record: None,
            checkpoints: HashMap::new(),
            required: None,
            tablespaces: Vec::new(),
            prepared: BTreeMap::new(),
            minimal: None,
            next_xid: None,
        }
    }

    /// Takes the next record. Breaks when nothing after it matters.
    pub fn see(&mut self, record: &Record) -> ControlFlow<()> {
        if record.start < self.begin {
            return ControlFlow::Continue(());
        }
        if says_minimal(&record.fact) {
            self.minimal = Some(record.start);
            return ControlFlow::Break(());
        }
        if let Fact::Checkpoint(checkpoint) = &record.fact {
            self.next_xid = Some(checkpoint.next_xid);
        }
        let moment = moment(record);
        if let Some(stop) = self.stop {
            return self.go_on(record, moment, stop);
        }
        if self.decides(record) {
            let inclusive = !self.before && !matches!(self.point, Point::Time(_));
            self.stop = Some(Stop { lsn: record.start, inclusive, end: record.end });
            if inclusive {
                self.take(record, moment.as_ref());
            } else {
                self.first_left_out = moment.clone().filter(|m| m.xid.is_some());
            }
            self.matches.extend(moment);
            return match self.point {
                Point::Xid(_) | Point::Name(_) => ControlFlow::Continue(()),
                _ => ControlFlow::Break(()),
            };
        }
        self.take(record, moment.as_ref());
        ControlFlow::Continue(())
    }

    /// After the stop only other matches are looked for, and what comes next.
    fn go_on(&mut self, record: &Record, moment: Option<Moment>, stop: Stop) -> ControlFlow<()> {
        if let Some(moment) = moment {
            if self.first_left_out.is_none() && moment.xid.is_some() && record.start > stop.lsn {
                self.first_left_out = Some(moment.clone());
            }
            if self.decides(record) {
                self.matches.push(moment);
            }
        }
        ControlFlow::Continue(())
    }

    fn decides(&self, record: &Record) -> bool {
        match (&self.point, &record.fact) {
            (Point::Time(wanted), Fact::Commit(end) | Fact::Abort(end)) => {
                if self.before {
                    end.time >= *wanted
                } else {
                    end.time > *wanted
                }
            }
            (Point::Xid(wanted), Fact::Commit(end) | Fact::Abort(end)) => {
                end.includes(*wanted as u32)
                    && (*wanted <= u64::from(u32::MAX) || self.full(*wanted as u32) == Some(*wanted))
            }
            (Point::Name(wanted), Fact::RestorePoint { name, .. }) => name == wanted,
            (Point::Lsn(wanted), _) => record.start >= *wanted,
            _ => false,
        }
    }

    /// A 32-bit xid with the epoch it has near the last checkpoint's next one.
    fn full(&self, xid: u32) -> Option<u64> {
        let next = self.next_xid?;
        let distance = xid.wrapping_sub(next as u32) as i32;
        next.checked_add_signed(distance.into())
    }

    /// A record that will be replayed.
    fn take(&mut self, record: &Record, moment: Option<&Moment>) {
        self.last_record = Some((record.start, record.end));
        if let (Point::Time(wanted), Some(moment)) = (&self.point, moment)
            && moment.xid.is_some()
            && moment.time <= *wanted
        {
            self.reached_time = true;
        }
        match &record.fact {
            Fact::Commit(end) | Fact::Abort(end) => {
                if end.prepared {
                    self.prepared.remove(&end.xid);
                }
                if matches!(record.fact, Fact::Commit(_)) {
                    self.last_commit = moment.cloned();
                }
            }
            Fact::Prepare(prepared) => {
                self.prepared.insert(prepared.xid, prepared.gid.clone());
            }
            Fact::Checkpoint(checkpoint) => {
                self.checkpoints.insert(record.start, checkpoint.time);
            }
            Fact::ParameterChange(parameters) => {
                let now = parameters.required();
                self.required = Some(self.required.map_or(now, |before| before.at_least(now)));
            }
            Fact::TablespaceCreate { oid, path } => {
                self.tablespaces.push(CreatedTablespace { lsn: record.start, oid: *oid, path: path.clone() });
            }
            Fact::TablespaceDrop { oid } => self.tablespaces.retain(|t| t.oid != *oid),
            _ => {}
        }
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

fn says_minimal(fact: &Fact) -> bool {
    let level = match fact {
        Fact::ParameterChange(parameters) => parameters.wal_level,
        Fact::Checkpoint(checkpoint) => checkpoint.wal_level,
        Fact::CheckpointRedo { wal_level } | Fact::EndOfRecovery { wal_level, .. } => *wal_level,
        _ => None,
    };
    level == Some(WalLevel::Minimal)
}
