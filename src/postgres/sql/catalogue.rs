//! What a server's databases and relations are called, with the numbers that the WAL knows them by.

use std::pin::pin;

use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};
use tokio_postgres::types::ToSql;

use super::{QUICK, Session};
use crate::error::{Error, Result};

/// A database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseName {
    /// Its OID.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// The OID of its tablespace.
    pub tablespace: u32,
    /// Whether its relations are known: not those of a database that takes no connections.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub listed: bool,
}

/// A tablespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablespaceName {
    /// Its OID.
    pub oid: u32,
    /// Its name.
    pub name: String,
}

/// A schema.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaName {
    /// The OID of its database.
    pub database: u32,
    /// Its OID.
    pub oid: u32,
    /// Its name.
    pub name: String,
}

/// A relation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelationName {
    /// The OID of its database; 0 for what all databases share.
    pub database: u32,
    /// Its OID in `pg_class`.
    pub oid: u32,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: RelationKind,
    /// The number of its file, where it has one. Of a mapped catalogue too, which `pg_class` does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<u32>,
    /// The OID of the tablespace that its file lies in.
    pub tablespace: u32,
    /// The relation that it belongs to: an index's or TOAST table's table, a partition's partitioned table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<u32>,
}

/// `pg_class.relkind`. In JSON it is PostgreSQL's own letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RelationKind {
    /// An ordinary table.
    #[serde(rename = "r")]
    Table,
    /// A partitioned table: it has no file.
    #[serde(rename = "p")]
    PartitionedTable,
    /// A materialised view.
    #[serde(rename = "m")]
    MaterializedView,
    /// What is too long for a table's own rows.
    #[serde(rename = "t")]
    Toast,
    /// An index.
    #[serde(rename = "i")]
    Index,
    /// The index of a partitioned table: it has no file.
    #[serde(rename = "I")]
    PartitionedIndex,
    /// A sequence.
    #[serde(rename = "S")]
    Sequence,
    /// A view.
    #[serde(rename = "v")]
    View,
    /// A table that lies elsewhere.
    #[serde(rename = "f")]
    ForeignTable,
    /// A composite type, or something that Walden does not know.
    #[serde(rename = "c", other)]
    Other,
}

impl RelationKind {
    /// For PostgreSQL's letter.
    #[must_use]
    pub fn from_letter(letter: char) -> Self {
        match letter {
            'r' => Self::Table,
            'p' => Self::PartitionedTable,
            'm' => Self::MaterializedView,
            't' => Self::Toast,
            'i' => Self::Index,
            'I' => Self::PartitionedIndex,
            'S' => Self::Sequence,
            'v' => Self::View,
            'f' => Self::ForeignTable,
            _ => Self::Other,
        }
    }

    /// Whether it holds rows that a person made: what people call a table.
    #[must_use]
    pub fn is_table(self) -> bool {
        matches!(self, Self::Table | Self::PartitionedTable | Self::MaterializedView)
    }
}

/// Temporary relations are left out. `pg_relation_filenode` is asked for mapped catalogues alone: it would take every
/// relation into the server's cache.
const RELATIONS: &str = "\
    SELECT CASE WHEN c.relisshared THEN 0::oid ELSE d.oid END, c.oid, n.nspname::text, c.relname::text, c.relkind::text, \
           CASE WHEN c.relfilenode <> 0 THEN c.relfilenode \
                WHEN c.relkind IN ('r', 't', 'i', 'm', 'S') THEN pg_relation_filenode(c.oid) END, \
           CASE WHEN c.reltablespace <> 0 THEN c.reltablespace ELSE d.dattablespace END, \
           coalesce(i.indrelid, t.oid, p.inhparent) \
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         CROSS JOIN (SELECT oid, dattablespace FROM pg_database WHERE datname = current_database()) d \
         LEFT JOIN pg_index i ON i.indexrelid = c.oid \
         LEFT JOIN pg_class t ON c.relkind = 't' AND t.reltoastrelid = c.oid \
         LEFT JOIN pg_inherits p ON c.relispartition AND p.inhrelid = c.oid \
    WHERE c.relpersistence <> 't' AND (c.relkind <> 'v' OR n.nspname NOT IN ('pg_catalog', 'information_schema'))";

impl Session {
    /// The databases, and for each whether it takes connections.
    pub async fn databases(&self) -> Result<Vec<(DatabaseName, bool)>> {
        let sql = "SELECT oid, datname::text, dattablespace, datallowconn FROM pg_database ORDER BY oid";
        let rows = self.rows(sql, &[]).await?;
        let database = |row: &super::Row| DatabaseName {
            oid: row.get(0),
            name: row.get(1),
            tablespace: row.get(2),
            listed: false,
        };
        Ok(rows.iter().map(|row| (database(row), row.get(3))).collect())
    }

    /// The tablespaces.
    pub async fn tablespaces(&self) -> Result<Vec<TablespaceName>> {
        let rows = self.rows("SELECT oid, spcname::text FROM pg_tablespace ORDER BY oid", &[]).await?;
        Ok(rows.iter().map(|row| TablespaceName { oid: row.get(0), name: row.get(1) }).collect())
    }

    /// The schemas of the session's database, temporary ones left out.
    pub async fn schemas(&self) -> Result<Vec<SchemaName>> {
        let sql = "SELECT d.oid, n.oid, n.nspname::text FROM pg_namespace n, pg_database d \
                   WHERE d.datname = current_database() AND n.nspname !~ '^pg_(toast_)?temp_' ORDER BY n.oid";
        let rows = self.rows(sql, &[]).await?;
        let schema = |row: &super::Row| SchemaName { database: row.get(0), oid: row.get(1), name: row.get(2) };
        Ok(rows.iter().map(schema).collect())
    }

    /// Hands on every relation of the session's database and of what all databases share, one by one: there can be
    /// millions. Ends at the first error of `each`.
    pub async fn relations(&self, mut each: impl FnMut(RelationName) -> Result<()>) -> Result<()> {
        let what = "list the relations";
        let slow = |_| Error::failed(format!("{what} (PostgreSQL at {}): no answer", self.server));
        let none: [&(dyn ToSql + Sync); 0] = [];
        let asked = tokio::time::timeout(QUICK, self.client.query_raw(RELATIONS, none)).await.map_err(slow)?;
        let mut rows = pin!(asked.map_err(|e| self.failed(what, e))?);
        while let Some(row) =
            tokio::time::timeout(QUICK, rows.try_next()).await.map_err(slow)?.map_err(|e| self.failed(what, e))?
        {
            let kind: String = row.get(4);
            each(RelationName {
                database: row.get(0),
                oid: row.get(1),
                schema: row.get(2),
                name: row.get(3),
                kind: RelationKind::from_letter(kind.chars().next().unwrap_or_default()),
                file: row.get(5),
                tablespace: row.get(6),
                parent: row.get(7),
            })?;
        }
        Ok(())
    }
}
