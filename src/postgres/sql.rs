//! What Walden asks of a running server by SQL, as typed calls.
//!
//! A [`Session`] is one connection. The server ends a backup that its session does not outlive, so a backup keeps
//! its session from [`Session::backup_start`] to [`Session::backup_stop`].

pub mod catalogue;
pub mod environment;
mod retained;
mod summaries;

pub use retained::Slot;
pub use summaries::{SummaryRow, SummaryRows};

use std::{collections::HashMap, future::Future, path::PathBuf, str::FromStr, time::Duration};

use chrono::{DateTime, Utc};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Row, SimpleQueryMessage, error::SqlState, types::ToSql};

use super::{Conninfo, Lsn, SegmentSize, SystemId, TimelineId, Version, WalFile, control::WalLevel};
use crate::error::{Error, Result};

/// How long a call may take that does no work on the server.
const QUICK: Duration = Duration::from_secs(60);

/// `archive_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveMode {
    /// Nothing is archived.
    Off,
    /// A primary archives.
    On,
    /// A standby archives too.
    Always,
}

impl FromStr for ArchiveMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "off" => Ok(Self::Off),
            "on" => Ok(Self::On),
            "always" => Ok(Self::Always),
            _ => Err(Error::failed(format!("archive_mode is \"{text}\", which is unknown"))),
        }
    }
}

/// What a server says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFacts {
    /// `server_version_num`, for instance 170011.
    pub version_number: u32,
    /// The major version.
    pub version: Version,
    /// The system identifier.
    pub system: SystemId,
    /// The data directory; `None` when the role may not see it (it needs `pg_read_all_settings`).
    pub data_directory: Option<PathBuf>,
    /// `postgresql.conf`, `pg_hba.conf`, `pg_ident.conf`; those that the role may see.
    pub config_files: Vec<PathBuf>,
    /// `wal_level`.
    pub wal_level: WalLevel,
    /// `archive_mode`.
    pub archive_mode: ArchiveMode,
    /// `archive_command`; empty when unset or not visible.
    pub archive_command: String,
    /// `archive_library` (15 and later); empty when unset.
    pub archive_library: String,
    /// Whether the server is in recovery, as a standby is.
    pub in_recovery: bool,
    /// The timeline that it writes, or replays.
    pub timeline: TimelineId,
    /// The size of a data page in bytes.
    pub block_size: u32,
    /// The size of a WAL segment.
    pub segment_size: SegmentSize,
    /// Whether pages have checksums.
    pub data_checksums: bool,
    /// `shared_preload_libraries`.
    pub shared_preload_libraries: String,
    /// `stats_temp_directory`, which only 14 has.
    pub stats_temp_directory: Option<PathBuf>,
}

/// What the server hands over at the end of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupStop {
    /// Where the backup ends: WAL up to there makes it consistent.
    pub stop: Lsn,
    /// The content of `backup_label`.
    pub label: String,
    /// The content of `tablespace_map`; empty without tablespaces, and then no such file is written.
    pub tablespace_map: String,
}

/// One row of `pg_stat_archiver`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArchiverStatus {
    /// How many files were archived since the counters were reset.
    pub archived: i64,
    /// The last of them, and when.
    pub last_archived: Option<(WalFile, DateTime<Utc>)>,
    /// How many attempts failed.
    pub failed: i64,
    /// The last of them, and when.
    pub last_failed: Option<(WalFile, DateTime<Utc>)>,
}

impl ArchiverStatus {
    /// Whether the last attempt failed.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        let archived = self.last_archived.map(|(_, at)| at);
        self.last_failed.is_some_and(|(_, at)| archived.is_none_or(|archived| at > archived))
    }
}

/// How far a recovery has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryStatus {
    /// Whether the server is still in recovery.
    pub in_recovery: bool,
    /// The end of the last record that was replayed; `None` when there was no recovery.
    pub replayed: Option<Lsn>,
    /// Whether replay stands still at the target.
    pub paused: bool,
    /// When the last replayed transaction committed or aborted.
    pub last_transaction: Option<DateTime<Utc>>,
}

/// A connection to a server. Dropping it closes the connection.
#[derive(Debug)]
pub struct Session {
    client: Client,
    driver: JoinHandle<()>,
    server: String,
    number: u32,
    version: Version,
}

impl Drop for Session {
    fn drop(&mut self) {
        // The server sees the end of the connection and rolls back what was not finished, a backup too.
        self.driver.abort();
    }
}

impl Session {
    /// Connects. The time for that, name resolution and authentication included, is limited by `connect_timeout`.
    pub async fn open(conninfo: &Conninfo) -> Result<Self> {
        let tls = conninfo.tls.connector()?;
        let connecting = conninfo.config.connect(tls);
        let answer = match conninfo.timeout {
            Some(limit) => tokio::time::timeout(limit, connecting).await.map_err(|_| {
                Error::failed(format!("connect to PostgreSQL ({conninfo}): no answer within {} s", limit.as_secs()))
                    .hint("check host and port of the connection string")
            })?,
            None => connecting.await,
        };
        let (client, connection) = answer.map_err(|e| connect_failed(conninfo, e))?;
        let driver = tokio::spawn(async move {
            // Its error also reaches whoever waits for an answer.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to PostgreSQL ended");
            }
        });
        let mut session = Self { client, driver, server: conninfo.to_string(), number: 0, version: Version::OLDEST };
        session.prepare().await?;
        Ok(session)
    }

    /// Settings of a role or database must not cut a backup short or lead names astray.
    async fn prepare(&mut self) -> Result<()> {
        let settings = "SET search_path = pg_catalog; SET statement_timeout = 0; SET lock_timeout = 0; \
                        SET idle_session_timeout = 0; SET idle_in_transaction_session_timeout = 0; \
                        SET DateStyle = 'ISO'; SET standard_conforming_strings = on";
        let number = self.text("SELECT current_setting('server_version_num')", &[]).await?;
        self.number = number
            .and_then(|n| n.parse().ok())
            .ok_or_else(|| Error::failed(format!("PostgreSQL ({}) tells no version", self.server)))?;
        self.version = Version::from_server_number(self.number)?;
        self.quick("set up the session", self.client.batch_execute(settings)).await
    }

    /// The server's major version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Whether the connection still stands; a backup asks now and then.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.client.is_closed()
    }

    /// What the server says about itself.
    pub async fn server_facts(&self) -> Result<ServerFacts> {
        let names = [
            "archive_command",
            "archive_library",
            "archive_mode",
            "block_size",
            "config_file",
            "data_checksums",
            "data_directory",
            "hba_file",
            "ident_file",
            "shared_preload_libraries",
            "stats_temp_directory",
            "wal_level",
            "wal_segment_size",
        ];
        let rows =
            self.rows("SELECT name, setting FROM pg_settings WHERE name = ANY($1)", &[&names.as_slice()]).await?;
        let settings: HashMap<String, String> =
            rows.iter().map(|row| (row.get(0), row.get::<_, Option<String>>(1).unwrap_or_default())).collect();
        let get = |name: &str| settings.get(name).map(String::as_str).unwrap_or_default();
        let path = |name: &str| Some(get(name)).filter(|v| !v.is_empty()).map(PathBuf::from);
        let unknown = |name: &str| {
            Error::failed(format!("PostgreSQL ({}) says {name} = \"{}\", which is unknown", self.server, get(name)))
        };
        let in_recovery = self.in_recovery().await?;
        let system = self.one("SELECT system_identifier FROM pg_control_system()", &[]).await?;
        Ok(ServerFacts {
            version_number: self.number,
            version: self.version,
            system: SystemId(system.get::<_, i64>(0) as u64),
            data_directory: path("data_directory"),
            config_files: ["config_file", "hba_file", "ident_file"].into_iter().filter_map(path).collect(),
            wal_level: get("wal_level").parse()?,
            archive_mode: get("archive_mode").parse()?,
            // The server shows an empty command as "(disabled)".
            archive_command: Some(get("archive_command")).filter(|c| *c != "(disabled)").unwrap_or_default().to_owned(),
            archive_library: get("archive_library").to_owned(),
            in_recovery,
            timeline: self.timeline(in_recovery).await?,
            block_size: get("block_size").parse().map_err(|_| unknown("block_size"))?,
            segment_size: SegmentSize::new(get("wal_segment_size").parse().map_err(|_| unknown("wal_segment_size"))?)?,
            data_checksums: get("data_checksums") == "on",
            shared_preload_libraries: get("shared_preload_libraries").to_owned(),
            stats_temp_directory: path("stats_temp_directory"),
        })
    }

    /// The timeline that the server writes; on a standby the one that it receives or last made a restart point on.
    async fn timeline(&self, in_recovery: bool) -> Result<TimelineId> {
        let number = if in_recovery {
            let sql = "SELECT greatest(timeline_id, \
                       (SELECT received_tli FROM pg_stat_wal_receiver)) FROM pg_control_checkpoint()";
            self.one(sql, &[]).await?.get::<_, i32>(0) as u32
        } else {
            let name = self.text("SELECT pg_walfile_name(pg_current_wal_insert_lsn())", &[]).await?;
            let digits = name.as_deref().and_then(|n| n.get(..8)).unwrap_or_default();
            u32::from_str_radix(digits, 16).unwrap_or_default()
        };
        TimelineId::new(number)
    }

    /// Whether the server is in recovery.
    pub async fn in_recovery(&self) -> Result<bool> {
        Ok(self.one("SELECT pg_is_in_recovery()", &[]).await?.get(0))
    }

    /// Begins a backup and gives the LSN where it starts. Without `fast` the server spreads the checkpoint that this
    /// takes over minutes.
    pub async fn backup_start(&self, label: &str, fast: bool) -> Result<Lsn> {
        let sql = if self.version.0 >= 15 {
            "SELECT pg_backup_start($1, $2)::text"
        } else {
            "SELECT pg_start_backup($1, $2, false)::text"
        };
        let what = "start a backup";
        let row = self.client.query_one(sql, &[&label, &fast]).await.map_err(|e| self.failed(what, e))?;
        self.parse(what, row.get(0))
    }

    /// Ends the backup of this session. It does not wait until the server's own archiving has caught up; on a
    /// primary the WAL is switched, so that the last segment is archived soon.
    pub async fn backup_stop(&self) -> Result<BackupStop> {
        let sql = if self.version.0 >= 15 {
            "SELECT lsn::text, labelfile, spcmapfile FROM pg_backup_stop(false)"
        } else {
            "SELECT lsn::text, labelfile, spcmapfile FROM pg_stop_backup(false, false)"
        };
        let what = "stop the backup";
        let row = self.client.query_one(sql, &[]).await.map_err(|e| self.failed(what, e))?;
        let (label, map): (String, Option<String>) = (row.get(1), row.get(2));
        Ok(BackupStop { stop: self.parse(what, row.get(0))?, label, tablespace_map: map.unwrap_or_default() })
    }

    /// Ends the current WAL segment and gives the end of what it holds; the segment is archived soon. When nothing was
    /// written since the last switch PostgreSQL does nothing, and gives the start of the segment in use.
    pub async fn switch_wal(&self) -> Result<Lsn> {
        self.lsn("switch the WAL", "SELECT pg_switch_wal()::text", &[]).await
    }

    /// The end of the WAL that was written; on a standby, of what was replayed.
    pub async fn current_wal_lsn(&self) -> Result<Lsn> {
        let sql = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
                   ELSE pg_current_wal_lsn() END::text";
        self.lsn("read the end of the WAL", sql, &[]).await
    }

    /// Writes a restore point and gives the end of its record.
    pub async fn create_restore_point(&self, name: &str) -> Result<Lsn> {
        self.lsn("create a restore point", "SELECT pg_create_restore_point($1)::text", &[&name]).await
    }

    /// `pg_stat_archiver`. Names that PostgreSQL does not archive are left out.
    pub async fn archiver(&self) -> Result<ArchiverStatus> {
        let sql = "SELECT archived_count, last_archived_wal, last_archived_time, \
                   failed_count, last_failed_wal, last_failed_time FROM pg_stat_archiver";
        let row = self.one(sql, &[]).await?;
        let last = |at: usize| {
            let name: Option<String> = row.get(at);
            name.and_then(|n| n.parse().ok()).zip(row.get::<_, Option<DateTime<Utc>>>(at + 1))
        };
        Ok(ArchiverStatus { archived: row.get(0), last_archived: last(1), failed: row.get(3), last_failed: last(4) })
    }

    /// How far recovery has come.
    pub async fn recovery(&self) -> Result<RecoveryStatus> {
        let sql = "SELECT running, pg_last_wal_replay_lsn()::text, pg_last_xact_replay_timestamp(), \
                   CASE WHEN running THEN pg_get_wal_replay_pause_state() = 'paused' ELSE false END \
                   FROM (SELECT pg_is_in_recovery() AS running) recovery";
        let row = self.one(sql, &[]).await?;
        let replayed: Option<String> = row.get(1);
        Ok(RecoveryStatus {
            in_recovery: row.get(0),
            replayed: replayed.map(|lsn| lsn.parse()).transpose()?,
            last_transaction: row.get(2),
            paused: row.get(3),
        })
    }

    /// Lets a paused recovery go on: at its target it then does what `recovery_target_action` did not, and promotes.
    pub async fn resume_recovery(&self) -> Result<()> {
        self.one("SELECT pg_wal_replay_resume()::text", &[]).await.map(drop)
    }

    /// Runs any SQL, several statements too, and gives the rows of all of them as text. The search path is `pg_catalog`,
    /// so that names of tables need their schema.
    pub async fn query(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        let answer = self.client.simple_query(sql).await.map_err(|e| self.failed("run SQL", e))?;
        let rows = answer.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect()),
            _ => None,
        });
        Ok(rows.collect())
    }

    async fn lsn(&self, what: &str, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Lsn> {
        let row = self.quick(what, self.client.query_one(sql, parameters)).await?;
        self.parse(what, row.get(0))
    }

    async fn text(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Option<String>> {
        Ok(self.one(sql, parameters).await?.get(0))
    }

    async fn one(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Row> {
        self.quick("ask", self.client.query_one(sql, parameters)).await
    }

    async fn rows(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
        self.quick("ask", self.client.query(sql, parameters)).await
    }

    /// Waits for an answer, but not for ever.
    async fn quick<T>(
        &self,
        what: &str,
        answer: impl Future<Output = std::result::Result<T, tokio_postgres::Error>>,
    ) -> Result<T> {
        match tokio::time::timeout(QUICK, answer).await {
            Ok(answer) => answer.map_err(|e| self.failed(what, e)),
            Err(_) => Err(Error::failed(format!(
                "{what}: PostgreSQL ({}) did not answer within {} s",
                self.server,
                QUICK.as_secs()
            ))),
        }
    }

    fn parse<T: FromStr<Err = Error>>(&self, what: &str, text: Option<String>) -> Result<T> {
        let text = text.ok_or_else(|| Error::failed(format!("{what}: PostgreSQL ({}) gave nothing", self.server)))?;
        text.parse().map_err(|e: Error| e.context(what))
    }

    fn failed(&self, what: &str, error: tokio_postgres::Error) -> Error {
        let denied = error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE);
        let closed = error.is_closed();
        let hint = error.as_db_error().and_then(|said| said.hint()).map(str::to_owned);
        let made = describe(format!("{what} (PostgreSQL at {})", self.server), error);
        if denied {
            made.hint("connect as a superuser, or grant EXECUTE on the function that is named to this role")
        } else if closed {
            made.hint("the server ended the connection: see its log")
        } else if let Some(hint) = hint {
            made.hint(hint)
        } else {
            made
        }
    }
}

fn connect_failed(conninfo: &Conninfo, error: tokio_postgres::Error) -> Error {
    let hint = match error.code() {
        Some(code) if code.code().starts_with("28") => "check user, password and pg_hba.conf",
        Some(&SqlState::CANNOT_CONNECT_NOW) => "PostgreSQL is starting or stopping: try again",
        Some(&SqlState::TOO_MANY_CONNECTIONS) => "raise max_connections, or close other connections",
        Some(_) => "see the server's log",
        None => "is PostgreSQL running, and does the connection string name its host (or socket directory) and port?",
    };
    describe(format!("connect to PostgreSQL ({conninfo})"), error).hint(hint)
}

/// What the server said where it said something, else what went wrong on the way. Neither holds a password.
fn describe(what: String, error: tokio_postgres::Error) -> Error {
    match error.as_db_error() {
        Some(said) => {
            let detail = said.detail().map(|d| format!(" ({d})")).unwrap_or_default();
            Error::failed(format!("{what}: {}{detail}", said.message()))
        }
        None => Error::failed(what).source(error),
    }
}
