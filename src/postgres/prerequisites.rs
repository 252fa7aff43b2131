//! What archiving and backups ask of a server besides what [`server_facts`](Session::server_facts) tells: settings
//! that make what is archived worth something, the rights of our role, the clock.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{Version, sql::Session};
use crate::error::{Error, Result};

/// What a server answers about them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prerequisites {
    /// Our role, quoted as SQL wants it.
    pub role: String,
    /// The functions that a backup and a check call and that the role may not, as GRANT names them.
    pub forbidden: Vec<&'static str>,
    /// Whether the role sees every setting (`pg_read_all_settings`).
    pub reads_all_settings: bool,
    /// `full_page_writes`.
    pub full_page_writes: bool,
    /// `fsync`.
    pub fsync: bool,
    /// `archive_timeout`; zero when it is off.
    pub archive_timeout: Duration,
    /// `max_wal_size` in bytes.
    pub max_wal_size: u64,
    /// Whether `archive_mode` or `wal_level` was changed in a file and waits for a restart.
    pub pending_restart: bool,
    /// The server's clock.
    pub now: DateTime<Utc>,
}

/// What a backup calls, and `pg_switch_wal`, which proves archiving.
fn functions(version: Version) -> [&'static str; 3] {
    if version.0 >= 15 {
        ["pg_backup_start(text, boolean)", "pg_backup_stop(boolean)", "pg_switch_wal()"]
    } else {
        ["pg_start_backup(text, boolean, boolean)", "pg_stop_backup(boolean, boolean)", "pg_switch_wal()"]
    }
}

impl Session {
    /// Asks for them.
    pub async fn prerequisites(&self) -> Result<Prerequisites> {
        let functions = functions(self.version());
        let may = functions.map(|f| format!("has_function_privilege('{f}', 'EXECUTE')")).join(", ");
        let setting = |name: &str| format!("(SELECT setting FROM pg_settings WHERE name = '{name}')");
        let sql = format!(
            "SELECT quote_ident(current_user), pg_has_role(current_user, 'pg_read_all_settings', 'USAGE'), \
             {}, {}, {}, {}, (SELECT bool_or(pending_restart) FROM pg_settings \
             WHERE name IN ('archive_mode', 'wal_level')), \
             (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, {may}",
            setting("full_page_writes"),
            setting("fsync"),
            setting("archive_timeout"),
            setting("max_wal_size"),
        );
        let odd = || Error::failed("PostgreSQL answers a question about its settings in an unknown form");
        let row = self.query(&sql).await?.pop().ok_or_else(odd)?;
        let text = |at: usize| row.get(at).and_then(Option::as_deref).unwrap_or_default();
        let number = |at: usize| text(at).parse::<u64>().map_err(|_| odd());
        let forbidden = functions.into_iter().enumerate().filter(|(i, _)| text(8 + i) != "t").map(|(_, f)| f);
        Ok(Prerequisites {
            role: text(0).to_owned(),
            reads_all_settings: text(1) == "t",
            full_page_writes: text(2) == "on",
            fsync: text(3) == "on",
            archive_timeout: Duration::from_secs(number(4)?),
            max_wal_size: number(5)? << 20,
            pending_restart: text(6) == "t",
            now: text(7).parse().ok().and_then(DateTime::from_timestamp_micros).ok_or_else(odd)?,
            forbidden: forbidden.collect(),
        })
    }

    /// Writes a small record that means nothing, so that there is WAL to switch. Recovery passes over it.
    pub async fn write_small_record(&self) -> Result<()> {
        self.query("SELECT pg_logical_emit_message(false, 'walden', 'check')").await.map(drop)
    }
}
