//! `pg_control` (`src/include/catalog/pg_control.h`): what a cluster says about itself, read from the file's
//! bytes, and the guard that keeps a restored copy from starting without its `backup_label`.
//!
//! PostgreSQL overwrites the file in place while others may read it, so [`ControlFile::read`] reads again until
//! the CRC is right. The layouts of 14 to 18 were compared with `pg_controldata`; that of 19 is from its sources
//! before release.

use std::{fmt, fs, path::Path, str::FromStr, thread, time::Duration};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Lsn, SegmentSize, SystemId, TimelineId, Version};
use crate::error::{Error, Kind, Result};

/// Where the file lies in the data directory (`XLOG_CONTROL_FILE`).
pub const CONTROL_FILE: &str = "global/pg_control";

/// What the guard writes as the checkpoint's location: no WAL record starts there, in any cluster.
pub const GUARD: Lsn = Lsn(0xDEAD);

/// `offsetof(ControlFileData, checkPoint)`, the same in all versions.
const CHECKPOINT_AT: usize = 32;
/// `offsetof(ControlFileData, checkPointCopy)`.
const COPY_AT: usize = 40;

/// Reading again makes sense while a write may be under way; a file that is wrong for this long is damaged.
const READ_ATTEMPTS: u32 = 50;
const READ_PAUSE: Duration = Duration::from_millis(10);

/// How much WAL a server writes (`wal_level`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WalLevel {
    /// Too little for archiving: recovery cannot pass such a stretch.
    Minimal,
    /// Enough for archiving and standbys.
    Replica,
    /// Enough for logical decoding too.
    Logical,
}

impl WalLevel {
    /// From the number in `pg_control` and in WAL records.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        [Self::Minimal, Self::Replica, Self::Logical].get(number as usize).copied()
    }
}

impl FromStr for WalLevel {
    type Err = Error;

    /// As the setting has it.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "minimal" => Ok(Self::Minimal),
            "replica" => Ok(Self::Replica),
            "logical" => Ok(Self::Logical),
            _ => Err(Error::failed(format!("wal_level is \"{text}\", which is unknown"))),
        }
    }
}

impl fmt::Display for WalLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Minimal => "minimal",
            Self::Replica => "replica",
            Self::Logical => "logical",
        })
    }
}

/// What the server was doing when it last wrote the file (`DBState`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Starting up.
    Startup,
    /// Shut down in order.
    ShutDown,
    /// A standby that was shut down in order.
    ShutDownInRecovery,
    /// Shutting down.
    ShuttingDown,
    /// In crash recovery.
    InCrashRecovery,
    /// In archive recovery, as a standby or on the way to a target.
    InArchiveRecovery,
    /// In production, or killed while it was.
    InProduction,
}

impl State {
    fn from_number(number: u32) -> Option<Self> {
        use State::{
            InArchiveRecovery, InCrashRecovery, InProduction, ShutDown, ShutDownInRecovery, ShuttingDown, Startup,
        };
        [Startup, ShutDown, ShutDownInRecovery, ShuttingDown, InCrashRecovery, InArchiveRecovery, InProduction]
            .get(number as usize)
            .copied()
    }
}

impl fmt::Display for State {
    /// In the words of `pg_controldata`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Startup => "starting up",
            Self::ShutDown => "shut down",
            Self::ShutDownInRecovery => "shut down in recovery",
            Self::ShuttingDown => "shutting down",
            Self::InCrashRecovery => "in crash recovery",
            Self::InArchiveRecovery => "in archive recovery",
            Self::InProduction => "in production",
        })
    }
}

/// The settings that must not be lower on a server in recovery than they were on the one that wrote the WAL
/// (`CheckRequiredParameterValues` in `xlogrecovery.c`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequiredSettings {
    /// `max_connections`.
    pub max_connections: u32,
    /// `max_worker_processes`.
    pub max_worker_processes: u32,
    /// `max_wal_senders`.
    pub max_wal_senders: u32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: u32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: u32,
}

impl RequiredSettings {
    /// The higher of both, setting by setting: enough for WAL written under either.
    #[must_use]
    pub fn at_least(self, other: Self) -> Self {
        Self {
            max_connections: self.max_connections.max(other.max_connections),
            max_worker_processes: self.max_worker_processes.max(other.max_worker_processes),
            max_wal_senders: self.max_wal_senders.max(other.max_wal_senders),
            max_prepared_transactions: self.max_prepared_transactions.max(other.max_prepared_transactions),
            max_locks_per_transaction: self.max_locks_per_transaction.max(other.max_locks_per_transaction),
        }
    }

    /// Each setting's name and value.
    #[must_use]
    pub fn each(self) -> [(&'static str, u32); 5] {
        [
            ("max_connections", self.max_connections),
            ("max_worker_processes", self.max_worker_processes),
            ("max_wal_senders", self.max_wal_senders),
            ("max_prepared_transactions", self.max_prepared_transactions),
            ("max_locks_per_transaction", self.max_locks_per_transaction),
        ]
    }
}

/// The copy of the last checkpoint's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Where recovery from this checkpoint starts.
    pub redo: Lsn,
    /// The timeline it was written on.
    pub timeline: TimelineId,
    /// The timeline before, when the checkpoint began a new one; else the same.
    pub previous_timeline: TimelineId,
    /// The next transaction id, with its epoch in the high 32 bits.
    pub next_xid: u64,
    /// When it was written, to the second.
    pub time: DateTime<Utc>,
}

/// What `pg_control` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlFile {
    /// The system identifier.
    pub system: SystemId,
    /// `PG_CONTROL_VERSION`: the layout of the file.
    pub control_version: u32,
    /// `CATALOG_VERSION_NO`.
    pub catalog_version: u32,
    /// PostgreSQL's major version, told from the two numbers above.
    pub version: Version,
    /// What the server was doing.
    pub state: State,
    /// When the file was last written, to the second.
    pub modified: DateTime<Utc>,
    /// Where the last checkpoint's record starts; [`GUARD`] in a guarded copy.
    pub checkpoint: Lsn,
    /// That record.
    pub checkpoint_copy: Checkpoint,
    /// How far a server in recovery must at least replay; `0/0` when not in recovery.
    pub minimum_recovery: Lsn,
    /// The timeline of that position, when there is one.
    pub minimum_recovery_timeline: Option<TimelineId>,
    /// Where the backup that this copy recovers from started; `0/0` when none is unfinished.
    pub backup_start: Lsn,
    /// Where that backup ended, when it was taken from a standby.
    pub backup_end: Lsn,
    /// Whether recovery must see the end-of-backup record before the cluster is consistent.
    pub backup_end_required: bool,
    /// `wal_level`.
    pub wal_level: WalLevel,
    /// `wal_log_hints`.
    pub wal_log_hints: bool,
    /// The settings that recovery needs.
    pub required: RequiredSettings,
    /// `track_commit_timestamp`.
    pub track_commit_timestamp: bool,
    /// The size of a data page in bytes.
    pub block_size: u32,
    /// How many blocks a file of a large relation holds.
    pub relation_segment_blocks: u32,
    /// The size of a WAL page in bytes.
    pub wal_block_size: u32,
    /// The size of a WAL segment.
    pub segment_size: SegmentSize,
    /// The version of the page checksums; 0 without checksums.
    pub data_checksum_version: u32,
}

impl ControlFile {
    /// Reads the bytes of `pg_control`; those after its CRC do not matter and may be missing.
    /// An error of kind `Damaged` when the CRC is wrong, of kind `Invalid` when the version is unknown.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let layout = Layout::of(bytes)?;
        layout.check_crc(bytes)?;
        let at = Fields(bytes);
        let (xid, time) = (layout.next_xid, layout.checkpoint_time);
        let base = layout.base;
        let number = |value: u32, what: &str| {
            Error::damaged(format!("pg_control: {value} is no {what}, although the CRC is right"))
        };
        let control_version = at.u32(8)?;
        let catalog_version = at.u32(12)?;
        let state = at.u32(16)?;
        let wal_level = at.u32(base + 44)?;
        Ok(Self {
            system: SystemId(at.u64(0)?),
            control_version,
            catalog_version,
            version: layout.version,
            state: State::from_number(state).ok_or_else(|| number(state, "state"))?,
            modified: at.time(24)?,
            checkpoint: Lsn(at.u64(CHECKPOINT_AT)?),
            checkpoint_copy: Checkpoint {
                redo: Lsn(at.u64(COPY_AT)?),
                timeline: TimelineId::new(at.u32(COPY_AT + 8)?)?,
                previous_timeline: TimelineId::new(at.u32(COPY_AT + 12)?)?,
                next_xid: at.u64(COPY_AT + xid)?,
                time: at.time(COPY_AT + time)?,
            },
            minimum_recovery: Lsn(at.u64(base + 8)?),
            minimum_recovery_timeline: TimelineId::new(at.u32(base + 16)?).ok(),
            backup_start: Lsn(at.u64(base + 24)?),
            backup_end: Lsn(at.u64(base + 32)?),
            backup_end_required: at.bool(base + 40)?,
            wal_level: WalLevel::from_number(wal_level).ok_or_else(|| number(wal_level, "wal_level"))?,
            wal_log_hints: at.bool(base + 48)?,
            required: RequiredSettings {
                max_connections: at.u32(base + 52)?,
                max_worker_processes: at.u32(base + 56)?,
                max_wal_senders: at.u32(base + 60)?,
                max_prepared_transactions: at.u32(base + 64)?,
                max_locks_per_transaction: at.u32(base + 68)?,
            },
            track_commit_timestamp: at.bool(base + 72)?,
            block_size: at.u32(base + 88)?,
            relation_segment_blocks: at.u32(base + 92)?,
            wal_block_size: at.u32(base + 96)?,
            segment_size: SegmentSize::new(at.u32(base + 100)?.into())?,
            data_checksum_version: at.u32(base + 124)?,
        })
    }

    /// Reads `global/pg_control` below `pgdata`, again and again for half a second while its CRC is wrong.
    pub fn read(pgdata: &Path) -> Result<Self> {
        Ok(Self::read_with_bytes(pgdata)?.0)
    }

    /// Like [`ControlFile::read`], with the very bytes whose CRC was right: what a backup stores.
    pub fn read_with_bytes(pgdata: &Path) -> Result<(Self, Vec<u8>)> {
        let path = pgdata.join(CONTROL_FILE);
        let mut attempt = 1;
        loop {
            let bytes = fs::read(&path).map_err(|e| match e.kind() {
                std::io::ErrorKind::NotFound => Error::not_found(format!("{} is missing", path.display()))
                    .hint("give the data directory itself, the one that holds PG_VERSION"),
                _ => Error::io("read", &path, e),
            })?;
            match Self::parse(&bytes) {
                Ok(control) => return Ok((control, bytes)),
                Err(e) if e.kind() == Kind::Damaged && attempt < READ_ATTEMPTS => thread::sleep(READ_PAUSE),
                Err(e) => return Err(e.context(path.display())),
            }
            attempt += 1;
        }
    }

    /// Whether the cluster has page checksums.
    #[must_use]
    pub fn has_checksums(&self) -> bool {
        self.data_checksum_version != 0
    }

    /// Whether this is a copy that cannot start without its `backup_label`.
    #[must_use]
    pub fn is_guarded(&self) -> bool {
        self.checkpoint == GUARD
    }

    /// The directory below each tablespace that belongs to this version (`TABLESPACE_VERSION_DIRECTORY`),
    /// for instance `PG_17_202406281`.
    #[must_use]
    pub fn tablespace_directory(&self) -> String {
        format!("PG_{}_{}", self.version, self.catalog_version)
    }
}

/// Guards the bytes of a `pg_control`: its checkpoint location becomes `0/DEAD` and its CRC fits again; nothing
/// else changes. With `backup_label` PostgreSQL takes the checkpoint from there and recovers; without it, it finds
/// no checkpoint record and does not start.
pub fn guard(bytes: &mut [u8]) -> Result<()> {
    let layout = Layout::of(bytes)?;
    layout.check_crc(bytes)?;
    bytes[CHECKPOINT_AT..CHECKPOINT_AT + 8].copy_from_slice(&GUARD.0.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..layout.crc]);
    bytes[layout.crc..layout.crc + 4].copy_from_slice(&crc.to_le_bytes());
    Ok(())
}

/// Where the fields lie that moved between versions, in bytes.
struct Layout {
    version: Version,
    /// From the start of the checkpoint's copy to its `nextXid`.
    next_xid: usize,
    /// From the start of the checkpoint's copy to its `time`.
    checkpoint_time: usize,
    /// `offsetof(ControlFileData, unloggedLSN)`: the first field after the checkpoint's copy.
    base: usize,
    /// `offsetof(ControlFileData, crc)`.
    crc: usize,
}

impl Layout {
    fn of(bytes: &[u8]) -> Result<Self> {
        let at = Fields(bytes);
        let (control, catalog) = (at.u32(8)?, at.u32(12)?);
        let until_18 = |major, crc| Self { version: Version(major), next_xid: 24, checkpoint_time: 64, base: 128, crc };
        let layout = match (control, catalog) {
            (1300, 202_107_181) => until_18(14, 288),
            (1300, 202_209_061) => until_18(15, 288),
            (1300, 202_307_071) => until_18(16, 288),
            (1700, _) => until_18(17, 288),
            (1800, _) => until_18(18, 292),
            (1902 | 1903, _) => Self { version: Version(19), next_xid: 32, checkpoint_time: 72, base: 136, crc: 300 },
            _ => {
                let swapped = [1300, 1700, 1800, 1902, 1903].contains(&control.swap_bytes());
                let hint = if swapped {
                    "it was written by a machine of the other byte order"
                } else {
                    "Walden knows the control files of PostgreSQL 14 to 19"
                };
                return Err(Error::invalid(format!(
                    "pg_control has version {control} and catalog version {catalog}, which is unknown"
                ))
                .hint(hint));
            }
        };
        if bytes.len() < layout.crc + 4 {
            return Err(short(bytes.len()));
        }
        Ok(layout)
    }

    fn check_crc(&self, bytes: &[u8]) -> Result<()> {
        let stored = Fields(bytes).u32(self.crc)?;
        let computed = crc32c::crc32c(&bytes[..self.crc]);
        if stored == computed {
            Ok(())
        } else {
            Err(Error::damaged(format!("pg_control: CRC {stored:08x} does not fit its content ({computed:08x})")))
        }
    }
}

/// Little-endian fields by offset.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N]> {
        let bytes = self.0.get(at..at + N).and_then(|b| b.try_into().ok());
        bytes.ok_or_else(|| short(self.0.len()))
    }

    fn u32(&self, at: usize) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(at)?))
    }

    fn u64(&self, at: usize) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(at)?))
    }

    fn bool(&self, at: usize) -> Result<bool> {
        Ok(self.array::<1>(at)?[0] != 0)
    }

    /// A `pg_time_t`: seconds since 1970.
    fn time(&self, at: usize) -> Result<DateTime<Utc>> {
        let seconds = i64::from_le_bytes(self.array(at)?);
        DateTime::from_timestamp(seconds, 0)
            .ok_or_else(|| Error::damaged(format!("pg_control: {seconds} seconds since 1970 is no time")))
    }
}

fn short(length: usize) -> Error {
    Error::damaged(format!("pg_control is cut short: it has {length} bytes"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A control file of PostgreSQL 17 with the fields that have no plausible default.
    pub(crate) fn seventeen() -> Vec<u8> {
        let mut bytes = vec![0; 8192];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &7_710_471_693_270_213_272_u64.to_le_bytes());
        put(8, &1700_u32.to_le_bytes());
        put(12, &202_406_281_u32.to_le_bytes());
        put(16, &6_u32.to_le_bytes());
        put(32, &0x147_C948_u64.to_le_bytes());
        put(40, &0x147_C910_u64.to_le_bytes());
        put(48, &2_u32.to_le_bytes());
        put(52, &1_u32.to_le_bytes());
        put(64, &((3_u64 << 32) | 738).to_le_bytes());
        put(128 + 44, &1_u32.to_le_bytes());
        put(128 + 52, &100_u32.to_le_bytes());
        put(128 + 88, &8192_u32.to_le_bytes());
        put(128 + 100, &(16_u32 << 20).to_le_bytes());
        seal(&mut bytes);
        bytes
    }

    fn seal(bytes: &mut [u8]) {
        let crc = crc32c::crc32c(&bytes[..288]);
        bytes[288..292].copy_from_slice(&crc.to_le_bytes());
    }

    #[test]
    fn reads_the_fields() {
        let control = ControlFile::parse(&seventeen()).unwrap();
        assert_eq!(control.version, Version(17));
        assert_eq!(control.state, State::InProduction);
        assert_eq!(control.checkpoint_copy.timeline.get(), 2);
        assert_eq!(control.checkpoint_copy.next_xid, (3 << 32) + 738);
        assert_eq!(control.required.max_connections, 100);
        assert_eq!(control.tablespace_directory(), "PG_17_202406281");
        assert!(!control.has_checksums() && !control.is_guarded());
    }

    #[test]
    fn the_guard_changes_the_checkpoint_and_the_crc_alone() {
        let before = seventeen();
        let mut after = before.clone();
        guard(&mut after).unwrap();
        let changed: Vec<usize> = (0..before.len()).filter(|&i| before[i] != after[i]).collect();
        assert!(changed.iter().all(|i| (32..40).contains(i) || (288..292).contains(i)), "{changed:?}");
        let guarded = ControlFile::parse(&after).unwrap();
        assert!(guarded.is_guarded());
        assert_eq!(guarded.checkpoint.to_string(), "0/DEAD");
    }

    #[test]
    fn no_byte_before_the_crc_can_change_unnoticed() {
        for at in (0..292).step_by(3) {
            let mut bytes = seventeen();
            bytes[at] ^= 1;
            assert!(ControlFile::parse(&bytes).is_err(), "byte {at}");
            assert!(guard(&mut bytes).is_err(), "byte {at}");
        }
    }

    #[test]
    fn short_and_foreign_files_are_errors() {
        for length in [0, 8, 15, 291] {
            assert_eq!(ControlFile::parse(&seventeen()[..length]).unwrap_err().kind(), Kind::Damaged);
        }
        let mut old = seventeen();
        old[8..12].copy_from_slice(&1201_u32.to_le_bytes());
        assert_eq!(ControlFile::parse(&old).unwrap_err().kind(), Kind::Invalid);
    }

    #[test]
    fn the_higher_setting_wins() {
        let a = RequiredSettings { max_connections: 100, max_wal_senders: 1, ..Default::default() };
        let b = RequiredSettings { max_connections: 50, max_wal_senders: 10, ..Default::default() };
        let both = a.at_least(b);
        assert_eq!((both.max_connections, both.max_wal_senders), (100, 10));
    }
}
