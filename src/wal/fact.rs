//! What records say, as far as recovery is planned, and mishaps are found, by it.

use std::{fmt, str::FromStr};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{runs, summary::base64};
use crate::{
    error::{Error, Result},
    postgres::{Lsn, RequiredSettings, TimelineId, text_in_json},
};

/// What a record says. In JSON: an object whose `what` names the kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Fact {
    /// A transaction committed.
    Commit(Box<TransactionEnd>),
    /// A transaction was rolled back.
    Abort(Box<TransactionEnd>),
    /// A transaction was prepared for two-phase commit.
    Prepare(Prepared),
    /// `pg_create_restore_point()` was called.
    RestorePoint {
        /// The name that it was given.
        name: String,
        /// When.
        time: DateTime<Utc>,
    },
    /// A checkpoint was completed.
    Checkpoint(Checkpoint),
    /// An online checkpoint began here (since 17).
    CheckpointRedo {
        /// `wal_level` at that instant.
        wal_level: Option<WalLevel>,
    },
    /// Recovery ended, perhaps by a promotion.
    EndOfRecovery {
        /// When.
        time: DateTime<Utc>,
        /// The timeline that begins here.
        timeline: TimelineId,
        /// The timeline it comes from.
        previous: TimelineId,
        /// `wal_level` (since 17).
        wal_level: Option<WalLevel>,
    },
    /// A base backup ended.
    BackupEnd {
        /// Where it began: the LSN that `pg_backup_start` returned.
        start: Lsn,
    },
    /// The settings that a standby must follow were changed, or the server was started with others.
    ParameterChange(Parameters),
    /// The rest of the segment is empty.
    Switch,
    /// A record that a crash cut off is given up.
    OverwriteContrecord {
        /// Its address.
        overwritten: Lsn,
        /// When.
        time: DateTime<Utc>,
    },
    /// A tablespace was created.
    TablespaceCreate {
        /// Its OID.
        oid: u32,
        /// The folder it lies in.
        path: String,
    },
    /// A tablespace was dropped.
    TablespaceDrop {
        /// Its OID.
        oid: u32,
    },
    /// A file was made for a relation (`XLOG_SMGR_CREATE`, main fork only).
    FileCreate {
        /// The file.
        file: RelFile,
    },
    /// A relation was cut off at its end (`XLOG_SMGR_TRUNCATE`): by vacuum, or by a `TRUNCATE` of a table that the same
    /// transaction made.
    FileTruncate {
        /// The file.
        file: RelFile,
        /// The blocks that are left.
        blocks: u32,
    },
    /// A database was made.
    DatabaseCreate {
        /// Its OID.
        oid: u32,
        /// The OID of its tablespace.
        tablespace: u32,
        /// The database that it was copied from file by file; none when its pages went through the log (since 15).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        template: Option<u32>,
    },
    /// The files of a database were removed: by `DROP DATABASE`, or by moving it to another tablespace.
    DatabaseDrop {
        /// Its OID.
        oid: u32,
        /// The OIDs of the tablespaces that they lay in.
        tablespaces: Vec<u32>,
    },
    /// Transactions hold `ACCESS EXCLUSIVE` locks on relations.
    Locks {
        /// Each transaction with its relation.
        locks: Vec<Lock>,
    },
    /// A mapped catalogue was given another file.
    RelationMap {
        /// The OID of the database; 0 for the catalogues that all databases share.
        database: u32,
    },
    /// `pg_logical_emit_message()` was called.
    Message {
        /// Whether it belongs to the transaction.
        transactional: bool,
        /// The OID of the database.
        database: u32,
        /// The first 200 bytes of its prefix.
        prefix: String,
        /// Its first 200 bytes, as far as they are text. Empty behind a prefix of several kilobytes.
        text: String,
        /// All its bytes.
        size: u32,
    },
    /// Rows of a relation were inserted, updated or deleted.
    Rows(Rows),
    /// A row was inserted or updated that gives something its name: a relation, schema, database or tablespace.
    Named {
        /// The row; of an update the old one.
        rows: Rows,
        /// The name.
        named: Box<Named>,
        /// The page and the line pointer of the new row, of an update.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<(u32, u16)>,
    },
    /// A row that gives something its name was updated in its OID, name or schema, of which the record has the bytes that
    /// changed; or perhaps in these.
    Renamed {
        /// The old row.
        rows: Rows,
        /// The page and the line pointer of the new one.
        to: (u32, u16),
        /// Where in the row the bytes begin that changed.
        at: u8,
        /// Those, as far as they belong to OID, name and schema; in JSON base64. Unknown where the record does not tell.
        #[serde(default, skip_serializing_if = "Option::is_none", with = "base64")]
        bytes: Option<Vec<u8>>,
    },
    /// A page image was logged without rows: an index or a whole relation was written anew.
    PageImage {
        /// The file of the first page.
        file: RelFile,
        /// How many pages.
        pages: u32,
    },
    /// Subtransactions that have numbers belong to this transaction, which goes on (`XLOG_XACT_ASSIGNMENT`: every 64 of
    /// them are told).
    Assignment {
        /// The top transaction.
        top: u32,
        /// Its subtransactions.
        subtransactions: Vec<u32>,
    },
    /// Anything else.
    #[serde(other)]
    Other,
}

/// The file of a relation (`RelFileLocator`, before 16 `RelFileNode`): it changes when the relation is written anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelFile {
    /// The OID of the tablespace.
    pub tablespace: u32,
    /// The OID of the database; 0 for what all databases share.
    pub database: u32,
    /// Its number: often, not always, the relation's OID.
    pub number: u32,
}

impl fmt::Display for RelFile {
    /// As `pg_waldump` writes it: `1663/5/16389`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.tablespace, self.database, self.number)
    }
}

impl FromStr for RelFile {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut numbers = text.split('/').map(str::parse);
        match (numbers.next(), numbers.next(), numbers.next(), numbers.next()) {
            (Some(Ok(tablespace)), Some(Ok(database)), Some(Ok(number)), None) => {
                Ok(Self { tablespace, database, number })
            }
            _ => Err(Error::invalid(format!("\"{text}\" does not name a relation's file")).hint("as in 1663/5/16389")),
        }
    }
}

text_in_json!(RelFile);

/// An `ACCESS EXCLUSIVE` lock (`xl_standby_lock`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Lock {
    /// The transaction; it may be a subtransaction.
    pub xid: u32,
    /// The OID of the database; 0 for what all databases share.
    pub database: u32,
    /// The OID of the relation in `pg_class`.
    pub relation: u32,
}

/// A relation that was dropped (since 15: the statistics that a commit drops name the OID in `pg_class`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Dropped {
    /// The OID of the database; 0 for what all databases share.
    pub database: u32,
    /// The OID of the relation in `pg_class`.
    pub relation: u32,
}

/// What was done to rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// Inserted.
    Insert,
    /// Updated; also deleted from one partition to be inserted into another.
    Update,
    /// Deleted.
    Delete,
    /// Overwritten where it lies, outside of any transaction.
    Inplace,
}

/// Rows of one heap page that one record changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rows {
    /// What was done.
    pub change: Change,
    /// The table's file.
    pub file: RelFile,
    /// The page: where the row lay.
    pub block: u32,
    /// Its line pointer on that page, from 1; 0 where the record names several.
    pub offset: u16,
    /// How many rows.
    pub count: u16,
}

/// The name of what a row of `pg_class`, `pg_namespace`, `pg_database` or `pg_tablespace` stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// Its OID.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// A relation's schema, by its OID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<u32>,
    /// What a relation is: `pg_class.relkind`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<char>,
}

/// The end of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionEnd {
    /// The top transaction; for a prepared one its own, not that of the session that finished it.
    pub xid: u32,
    /// When, by the server's clock.
    pub time: DateTime<Utc>,
    /// Its subtransactions that ended with it. In JSON a run of several is the list of its first and its last.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "runs")]
    pub subtransactions: Vec<u32>,
    /// `COMMIT PREPARED` or `ROLLBACK PREPARED`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub prepared: bool,
    /// The name of the prepared transaction, when `wal_level` is logical.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<String>,
    /// The database it worked in, when the record tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<u32>,
    /// The files of relations that are removed with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<RelFile>,
    /// The relations that are dropped with it (since 15).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<Dropped>,
    /// It changed catalogues, or held relations locked against everybody.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub catalogues: bool,
}

impl TransactionEnd {
    /// One of which only this is known.
    #[must_use]
    pub fn new(xid: u32, time: DateTime<Utc>) -> Self {
        Self {
            xid,
            time,
            subtransactions: Vec::new(),
            prepared: false,
            gid: None,
            database: None,
            removed: Vec::new(),
            dropped: Vec::new(),
            catalogues: false,
        }
    }

    /// Whether `xid` is this transaction or a subtransaction of it.
    #[must_use]
    pub fn includes(&self, xid: u32) -> bool {
        self.xid == xid || self.subtransactions.contains(&xid)
    }
}

/// A prepared transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// Its xid.
    pub xid: u32,
    /// The name that it was given.
    pub gid: String,
    /// When.
    pub time: DateTime<Utc>,
}

/// A checkpoint record (`CheckPoint` in `src/include/catalog/pg_control.h`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Written at shutdown, or at the end of recovery; otherwise online.
    pub shutdown: bool,
    /// Where replay from it starts.
    pub redo: Lsn,
    /// The timeline.
    pub timeline: TimelineId,
    /// The timeline before; another one where a shutdown checkpoint begins a timeline.
    pub previous: TimelineId,
    /// `wal_level` (since 17).
    pub wal_level: Option<WalLevel>,
    /// The next xid to be given out, in 64 bits.
    pub next_xid: u64,
    /// When, to the second.
    pub time: DateTime<Utc>,
}

/// The settings that recovery needs to be at least as high, and two more (`xl_parameter_change`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameters {
    /// `max_connections`.
    pub max_connections: i32,
    /// `max_worker_processes`.
    pub max_worker_processes: i32,
    /// `max_wal_senders`.
    pub max_wal_senders: i32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: i32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: i32,
    /// `wal_level`; `None` when it is one that Walden does not know.
    pub wal_level: Option<WalLevel>,
    /// `wal_log_hints`.
    pub wal_log_hints: bool,
    /// `track_commit_timestamp`.
    pub track_commit_timestamp: bool,
}

impl Parameters {
    /// What a server that replays from here on needs at least.
    #[must_use]
    pub fn required(&self) -> RequiredSettings {
        let number = |setting: i32| u32::try_from(setting).unwrap_or(0);
        RequiredSettings {
            max_connections: number(self.max_connections),
            max_worker_processes: number(self.max_worker_processes),
            max_wal_senders: number(self.max_wal_senders),
            max_prepared_transactions: number(self.max_prepared_transactions),
            max_locks_per_transaction: number(self.max_locks_per_transaction),
        }
    }
}

/// `wal_level`. What was written under `minimal` cannot be replayed onto a base backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WalLevel {
    /// Only enough for crash recovery.
    Minimal,
    /// Enough for archiving.
    Replica,
    /// With what logical decoding needs.
    Logical,
}

impl WalLevel {
    pub(super) fn from_number(number: i32) -> Option<Self> {
        match number {
            0 => Some(Self::Minimal),
            1 => Some(Self::Replica),
            2 => Some(Self::Logical),
            _ => None,
        }
    }
}

/// The 64-bit form of `xid`, when it was given out near `near` (for instance the `next_xid` of the nearest
/// checkpoint): the one less than half the circle of 2^32 away.
#[must_use]
pub fn widen_xid(xid: u32, near: u64) -> u64 {
    // The distance from the low half of `near`, as a signed number.
    let distance = xid.wrapping_sub(near as u32) as i32;
    near.checked_add_signed(distance.into()).unwrap_or(xid.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fact_is_small() {
        assert!(size_of::<Fact>() <= 72, "{} bytes are moved with each record", size_of::<Fact>());
    }

    #[test]
    fn a_narrow_xid_finds_its_epoch() {
        assert_eq!(widen_xid(1_000, 2_000), 1_000);
        assert_eq!(widen_xid(5, (1 << 32) - 10), (1 << 32) + 5);
        assert_eq!(widen_xid(u32::MAX, (3 << 32) + 10), (3 << 32) - 1);
        assert_eq!(widen_xid(u32::MAX, 10), u64::from(u32::MAX), "there was nothing before the first");
    }
}
