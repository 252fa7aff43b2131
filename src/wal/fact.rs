//! What records say, as far as recovery is planned by it. The layouts differ between versions; each decoder names
//! its source.

use std::{fmt, str::FromStr};

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::{
    fields::Fields,
    record::{RecordHeader, resource_manager},
};
use crate::{
    error::{Error, Result},
    postgres::{Lsn, RequiredSettings, TimelineId, Version, text_in_json},
};

/// What a record says. In JSON: an object whose `what` names the kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Fact {
    /// A transaction committed.
    Commit(TransactionEnd),
    /// A transaction was rolled back.
    Abort(TransactionEnd),
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
        /// Its prefix.
        prefix: String,
        /// Its first 200 bytes, as far as they are text.
        text: String,
        /// All its bytes.
        size: u32,
    },
    /// Rows of a relation were inserted, updated or deleted.
    Rows(Rows),
    /// A page image was logged without rows: an index or a whole relation was written anew.
    PageImage {
        /// The file of the first page.
        file: RelFile,
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
    /// Updated.
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

/// The end of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionEnd {
    /// The top transaction; for a prepared one its own, not that of the session that finished it.
    pub xid: u32,
    /// When, by the server's clock.
    pub time: DateTime<Utc>,
    /// Its subtransactions that ended with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
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
    fn from_number(number: i32) -> Option<Self> {
        match number {
            0 => Some(Self::Minimal),
            1 => Some(Self::Replica),
            2 => Some(Self::Logical),
            _ => None,
        }
    }
}

/// Whether the bytes of such a record are needed to tell its fact.
pub(super) fn is_told(rmid: u8, info: u8) -> bool {
    match rmid {
        resource_manager::XLOG => {
            matches!(info & 0xF0, 0x00 | 0x10 | 0x40 | 0x50 | 0x60 | 0x70 | 0x90 | 0xD0 | 0xE0)
        }
        resource_manager::XACT => info & 0x70 <= 0x40,
        resource_manager::TABLESPACE => matches!(info & 0xF0, 0x00 | 0x10),
        _ => false,
    }
}

/// The fact that a record with this main data tells; `None` when the data is not what the version writes.
pub(super) fn decode(header: &RecordHeader, main: &[u8], version: Version) -> Option<Fact> {
    let fields = Fields::of(main);
    match header.rmid {
        resource_manager::XLOG => xlog(header.info & 0xF0, fields, version),
        resource_manager::XACT => xact(header, fields, version),
        resource_manager::TABLESPACE => tablespace(header.info & 0xF0, fields),
        _ => Some(Fact::Other),
    }
}

/// `src/include/catalog/pg_control.h` (the opcodes) and `src/include/access/xlog_internal.h`.
fn xlog(op: u8, mut fields: Fields<'_>, version: Version) -> Option<Fact> {
    Some(match op {
        0x00 | 0x10 => Fact::Checkpoint(checkpoint(op == 0x00, fields, version)?),
        0x40 => Fact::Switch,
        0x50 => Fact::BackupEnd { start: Lsn(fields.u64()?) },
        0x60 => Fact::ParameterChange(parameters(fields)?),
        0x70 => Fact::RestorePoint { time: timestamp(fields.i64()?), name: fields.text() },
        0x90 => Fact::EndOfRecovery {
            time: timestamp(fields.i64()?),
            timeline: TimelineId::new(fields.u32()?).ok()?,
            previous: TimelineId::new(fields.u32()?).ok()?,
            wal_level: if version.0 >= 17 { WalLevel::from_number(fields.i32()?) } else { None },
        },
        0xD0 => Fact::OverwriteContrecord { overwritten: Lsn(fields.u64()?), time: timestamp(fields.i64()?) },
        0xE0 => Fact::CheckpointRedo { wal_level: fields.i32().and_then(WalLevel::from_number) },
        _ => Fact::Other,
    })
}

fn checkpoint(shutdown: bool, mut fields: Fields<'_>, version: Version) -> Option<Checkpoint> {
    let redo = Lsn(fields.u64()?);
    let timeline = TimelineId::new(fields.u32()?).ok()?;
    let previous = TimelineId::new(fields.u32()?).ok()?;
    // fullPageWrites and padding.
    fields.skip(4)?;
    // wal_level came with 17, in what was padding.
    let wal_level = fields.i32()?;
    let wal_level = if version.0 >= 17 { WalLevel::from_number(wal_level) } else { None };
    if version.0 >= 19 {
        // logicalDecodingEnabled and padding.
        fields.skip(8)?;
    }
    let next_xid = fields.u64()?;
    // nextOid to oldestMultiDB, with padding up to the time; nextMultiOffset has 8 bytes since 19.
    fields.skip(32)?;
    let time = DateTime::from_timestamp(fields.i64()?, 0)?;
    Some(Checkpoint { shutdown, redo, timeline, previous, wal_level, next_xid, time })
}

fn parameters(mut fields: Fields<'_>) -> Option<Parameters> {
    Some(Parameters {
        max_connections: fields.i32()?,
        max_worker_processes: fields.i32()?,
        max_wal_senders: fields.i32()?,
        max_prepared_transactions: fields.i32()?,
        max_locks_per_transaction: fields.i32()?,
        wal_level: WalLevel::from_number(fields.i32()?),
        wal_log_hints: fields.u8()? != 0,
        track_commit_timestamp: fields.u8()? != 0,
    })
}

/// `src/include/access/xact.h`.
fn xact(header: &RecordHeader, fields: Fields<'_>, version: Version) -> Option<Fact> {
    let op = header.info & 0x70;
    Some(match op {
        0x00 | 0x30 => Fact::Commit(transaction_end(header, fields, version)?),
        0x20 | 0x40 => Fact::Abort(transaction_end(header, fields, version)?),
        0x10 => Fact::Prepare(prepared(fields, version)?),
        _ => Fact::Other,
    })
}

/// `ParseCommitRecord` and `ParseAbortRecord` in `rmgrdesc/xactdesc.c`: the parts that `xinfo` announces follow each
/// other in the order of the tests below.
fn transaction_end(header: &RecordHeader, mut fields: Fields<'_>, version: Version) -> Option<TransactionEnd> {
    const HAS_INFO: u8 = 0x80;
    let prepared = header.info & 0x70 >= 0x30;
    let time = timestamp(fields.i64()?);
    let info = if header.info & HAS_INFO != 0 { fields.u32()? } else { 0 };
    let has = |bit: u32| info & (1 << bit) != 0;
    let mut end = TransactionEnd::new(header.xid, time);
    end.prepared = prepared;
    if has(0) {
        // The database and its tablespace.
        fields.skip(8)?;
    }
    if has(1) {
        let count = fields.count()?;
        let xids = fields.take(count.checked_mul(4)?)?.as_chunks().0;
        end.subtransactions = xids.iter().map(|xid| u32::from_le_bytes(*xid)).collect();
    }
    if has(2) {
        // Files that are removed.
        skip_list(&mut fields, 12)?;
    }
    if has(8) {
        // Dropped statistics came with 15, and grew to 64-bit object ids with 18.
        skip_list(&mut fields, if version.0 >= 18 { 16 } else { 12 })?;
    }
    if has(3) {
        // Cache invalidation messages.
        skip_list(&mut fields, 16)?;
    }
    if has(4) {
        end.xid = fields.u32()?;
        if has(7) {
            end.gid = Some(fields.text());
        }
    } else if prepared {
        return None;
    }
    Some(end)
}

fn skip_list(fields: &mut Fields<'_>, item: usize) -> Option<()> {
    let count = fields.count()?;
    fields.skip(count.checked_mul(item)?)
}

/// `xl_xact_prepare`, and after it the name.
fn prepared(mut fields: Fields<'_>, version: Version) -> Option<Prepared> {
    // magic and total_len.
    fields.skip(8)?;
    let xid = fields.u32()?;
    // The database.
    fields.skip(4)?;
    let time = timestamp(fields.i64()?);
    // owner, nsubxacts, ncommitrels, nabortrels; ncommitstats and nabortstats came with 15; then ninvalmsgs,
    // initfileinval and a byte of padding.
    fields.skip(16 + if version.0 >= 15 { 8 } else { 0 } + 6)?;
    let length = usize::from(fields.u16()?);
    // origin_lsn and origin_timestamp.
    fields.skip(16)?;
    let gid = Fields::of(fields.take(length)?).text();
    Some(Prepared { xid, gid, time })
}

/// `src/include/commands/tablespace.h`.
fn tablespace(op: u8, mut fields: Fields<'_>) -> Option<Fact> {
    let oid = fields.u32()?;
    Some(match op {
        0x00 => Fact::TablespaceCreate { oid, path: fields.text() },
        0x10 => Fact::TablespaceDrop { oid },
        _ => Fact::Other,
    })
}

/// A `TimestampTz`: microseconds since the start of the year 2000. What no calendar holds becomes its first or last
/// instant, so that it compares as PostgreSQL compares it.
fn timestamp(micros: i64) -> DateTime<Utc> {
    const POSTGRES_EPOCH: i64 = 946_684_800;
    let bound = if micros < 0 { DateTime::<Utc>::MIN_UTC } else { DateTime::<Utc>::MAX_UTC };
    DateTime::from_timestamp(POSTGRES_EPOCH, 0)
        .and_then(|epoch| epoch.checked_add_signed(TimeDelta::microseconds(micros)))
        .unwrap_or(bound)
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

    fn header(rmid: u8, info: u8) -> RecordHeader {
        RecordHeader { length: 0, xid: 7, prev: Lsn(0), info, rmid, crc: 0 }
    }

    #[test]
    fn a_prepared_commit_bears_its_own_xid() {
        for (version, stats_item) in [(14, 0), (17, 12), (18, 16)] {
            let bits = 0b1_1001_1111_u32 & !if version == 14 { 1 << 8 } else { 0 };
            let mut main = 1_000_000_i64.to_le_bytes().to_vec();
            main.extend_from_slice(&bits.to_le_bytes());
            main.extend_from_slice(&[0; 8]);
            main.extend_from_slice(&[2, 0, 0, 0, 51, 0, 0, 0, 52, 0, 0, 0]);
            main.extend_from_slice(&[1, 0, 0, 0]);
            main.extend_from_slice(&[0xAA; 12]);
            if stats_item > 0 {
                main.extend_from_slice(&[1, 0, 0, 0]);
                main.resize(main.len() + stats_item, 0xBB);
            }
            main.extend_from_slice(&[1, 0, 0, 0]);
            main.extend_from_slice(&[0xCC; 16]);
            main.extend_from_slice(&[50, 0, 0, 0]);
            main.extend_from_slice(b"my gid\0");
            let Some(Fact::Commit(end)) = decode(&header(1, 0xB0), &main, Version(version)) else {
                panic!("{version}");
            };
            assert_eq!(end.time.to_rfc3339(), "2000-01-01T00:00:01+00:00");
            assert_eq!((end.xid, end.prepared, end.gid.as_deref()), (50, true, Some("my gid")));
            assert!(end.includes(50) && end.includes(52) && !end.includes(7));
            assert_eq!(decode(&header(1, 0xB0), &main[..40], Version(version)), None);
        }
    }

    #[test]
    fn times_that_no_calendar_holds_still_compare() {
        assert_eq!(timestamp(i64::MAX), DateTime::<Utc>::MAX_UTC);
        assert_eq!(timestamp(i64::MIN), DateTime::<Utc>::MIN_UTC);
        assert_eq!(timestamp(-1).to_rfc3339(), "1999-12-31T23:59:59.999999+00:00");
    }

    #[test]
    fn a_narrow_xid_finds_its_epoch() {
        assert_eq!(widen_xid(1_000, 2_000), 1_000);
        assert_eq!(widen_xid(5, (1 << 32) - 10), (1 << 32) + 5);
        assert_eq!(widen_xid(u32::MAX, (3 << 32) + 10), (3 << 32) - 1);
        assert_eq!(widen_xid(u32::MAX, 10), u64::from(u32::MAX), "there was nothing before the first");
    }
}
