//! What keeps WAL on the server: its replication slots, which hold it back for those who have not received it yet, and
//! a segment that waits to be full.

use std::time::Duration;

use super::Session;
use crate::{
    error::{Error, Result},
    postgres::Lsn,
};

/// A replication slot that holds WAL back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// Whether somebody receives by it.
    pub active: bool,
    /// `wal_status`: `reserved`; `extended` when it holds more than `max_wal_size`; `unreserved` when what it holds may go
    /// any moment; `lost` when some of it is gone.
    pub status: String,
    /// From where on it holds WAL; none when that is lost.
    pub from: Option<Lsn>,
}

impl Session {
    /// `archive_timeout`; zero when it is off.
    pub async fn archive_timeout(&self) -> Result<Duration> {
        let sql = "SELECT setting::bigint FROM pg_settings WHERE name = 'archive_timeout'";
        let seconds: i64 = self.one(sql, &[]).await?.get(0);
        Ok(Duration::from_secs(seconds.unsigned_abs()))
    }

    /// The slots that hold WAL back, or did until it was lost.
    pub async fn slots(&self) -> Result<Vec<Slot>> {
        let sql = "SELECT slot_name, active, coalesce(wal_status, ''), restart_lsn FROM pg_replication_slots \
                   WHERE restart_lsn IS NOT NULL OR wal_status = 'lost' ORDER BY slot_name";
        let odd = || Error::failed("PostgreSQL answers a question about its slots in an unknown form");
        let slot = |row: Vec<Option<String>>| {
            let [name, active, status, from] = <[_; 4]>::try_from(row).map_err(|_| odd())?;
            Ok(Slot {
                name: name.ok_or_else(odd)?,
                active: active.as_deref() == Some("t"),
                status: status.unwrap_or_default(),
                from: from.map(|lsn| lsn.parse()).transpose()?,
            })
        };
        self.query(sql).await?.into_iter().map(slot).collect()
    }
}
