//! WAL summaries of PostgreSQL 17 and later: which blocks of which relations a stretch of the log has changed
//! (`src/backend/backup/walsummaryfuncs.c`).

use std::pin::pin;

use futures_util::TryStreamExt;
use tokio_postgres::types::ToSql;

use super::Session;
use crate::{
    error::Result,
    postgres::{Lsn, TimelineId},
};

/// A row of `pg_wal_summary_contents` about a main fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SummaryRow {
    /// The OID of its tablespace.
    pub tablespace: u32,
    /// The OID of its database; 0 of a shared relation.
    pub database: u32,
    /// `relfilenode`; 0 when the whole database was copied, moved or dropped.
    pub relation: u32,
    /// A block; the length, in blocks, when `is_limit`.
    pub block: u32,
    /// Whether the fork was, at some time, no longer than `block` blocks; 0 when it was made or dropped.
    pub is_limit: bool,
}

/// Which rows of a summary are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SummaryRows {
    /// All.
    All,
    /// Those that tell a limit.
    Limits,
}

impl Session {
    /// Whether the server keeps WAL summaries.
    pub async fn summarizes_wal(&self) -> Result<bool> {
        if self.version.0 < 17 {
            return Ok(false);
        }
        Ok(self.text("SELECT current_setting('summarize_wal', true)", &[]).await?.as_deref() == Some("on"))
    }

    /// Whether the role may read them: superusers may, and whoever was granted to execute the functions.
    pub async fn may_read_wal_summaries(&self) -> Result<bool> {
        let sql = "SELECT bool_and(has_function_privilege(oid, 'EXECUTE'))::text FROM pg_proc \
                   WHERE proname IN ('pg_available_wal_summaries', 'pg_wal_summary_contents')";
        Ok(self.text(sql, &[]).await?.as_deref() == Some("true"))
    }

    /// The stretches of a timeline's log that there are summaries of.
    pub async fn wal_summaries(&self, timeline: TimelineId) -> Result<Vec<(Lsn, Lsn)>> {
        let sql = "SELECT start_lsn::text, end_lsn::text FROM pg_available_wal_summaries() WHERE tli = $1";
        let rows = self.rows(sql, &[&i64::from(timeline.get())]).await?;
        rows.iter().map(|row| Ok((row.get::<_, String>(0).parse()?, row.get::<_, String>(1).parse()?))).collect()
    }

    /// What the summary of that stretch says of main forks, row by row.
    pub async fn wal_summary(
        &self,
        timeline: TimelineId,
        (start, end): (Lsn, Lsn),
        wanted: SummaryRows,
        mut each: impl FnMut(SummaryRow),
    ) -> Result<()> {
        let sql = "SELECT reltablespace, reldatabase, relfilenode, relblocknumber, is_limit_block \
                   FROM pg_wal_summary_contents($1, $2::text::pg_lsn, $3::text::pg_lsn) \
                   WHERE relforknumber = 0 AND (is_limit_block OR NOT $4)";
        let (start, end) = (start.to_string(), end.to_string());
        let failed = |e| self.failed("read a WAL summary", e);
        let parameters: [&(dyn ToSql + Sync); 4] =
            [&i64::from(timeline.get()), &start, &end, &(wanted == SummaryRows::Limits)];
        let mut rows = pin!(self.client.query_raw(sql, parameters).await.map_err(failed)?);
        while let Some(row) = rows.try_next().await.map_err(failed)? {
            each(SummaryRow {
                tablespace: row.get(0),
                database: row.get(1),
                relation: row.get(2),
                // A BlockNumber: it has 32 bits, and the highest is none.
                block: u32::try_from(row.get::<_, i64>(3)).unwrap_or(u32::MAX),
                is_limit: row.get(4),
            });
        }
        Ok(())
    }
}
