//! What a search finds, in words and in numbers.

use std::{fmt, str::FromStr};

use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer};

use crate::{
    error::{Error, Result},
    plan::{TableName, name::quoted},
    postgres::{Lsn, TimelineId, sql::catalogue::RelationKind},
    wal::RelFile,
};

/// What can be searched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FindKind {
    /// Tables, and what else stands beside them in a schema, were dropped.
    Drop,
    /// Tables were emptied by `TRUNCATE`.
    Truncate,
    /// Tables were written anew: `VACUUM FULL`, `CLUSTER`, some forms of `ALTER TABLE`.
    Rewrite,
    /// Many rows of a table were deleted.
    Delete,
    /// Many rows of a table were updated.
    Update,
    /// A database was dropped.
    DropDatabase,
    /// A database was made.
    CreateDatabase,
    /// A tablespace was dropped.
    DropTablespace,
    /// `pg_create_restore_point()`.
    RestorePoint,
    /// `pg_logical_emit_message()`.
    Message,
    /// The server was started with other settings.
    ParameterChange,
    /// A timeline began.
    TimelineSwitch,
    /// The transaction that was asked for was committed.
    Commit,
    /// The transaction that was asked for was rolled back.
    Abort,
}

impl FindKind {
    /// All, by the names that are typed.
    pub const ALL: [(Self, &str); 14] = [
        (Self::Drop, "drop"),
        (Self::Truncate, "truncate"),
        (Self::Rewrite, "rewrite"),
        (Self::Delete, "delete"),
        (Self::Update, "update"),
        (Self::DropDatabase, "drop-database"),
        (Self::CreateDatabase, "create-database"),
        (Self::DropTablespace, "drop-tablespace"),
        (Self::RestorePoint, "restore-point"),
        (Self::Message, "message"),
        (Self::ParameterChange, "parameter-change"),
        (Self::TimelineSwitch, "timeline-switch"),
        (Self::Commit, "commit"),
        (Self::Abort, "abort"),
    ];

    /// What is searched for when nothing is said: not what applications do all the time.
    #[must_use]
    pub fn usual() -> Vec<Self> {
        let unusual = [Self::CreateDatabase, Self::Message];
        Self::ALL.iter().map(|(kind, _)| *kind).filter(|kind| !unusual.contains(kind)).collect()
    }
}

impl fmt::Display for FindKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::ALL.iter().find(|(kind, _)| kind == self).map_or("", |(_, name)| name))
    }
}

impl FromStr for FindKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.iter().find(|(_, name)| *name == text).map(|(kind, _)| *kind).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|(_, name)| *name).collect();
            Error::invalid(format!("\"{text}\" cannot be searched for")).hint(format!("one of {}", names.join(", ")))
        })
    }
}

impl Serialize for FindKind {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// A row of what was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// What it is.
    pub kind: FindKind,
    /// When, by the server's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<DateTime<Utc>>,
    /// Where it is recorded: the commit of its transaction, or the record itself.
    pub lsn: Lsn,
    /// The timeline that this is on.
    pub timeline: TimelineId,
    /// The transaction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xid: Option<u32>,
    /// What happened, in words.
    pub what: String,
    /// The database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<NamedDatabase>,
    /// The relations.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub relations: Vec<NamedRelation>,
    /// Rows deleted.
    #[serde(skip_serializing_if = "is_zero")]
    pub deleted: u64,
    /// Rows updated.
    #[serde(skip_serializing_if = "is_zero")]
    pub updated: u64,
    /// There may have been more: the summaries of the segments do not tell of small changes on a busy server.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub at_least: bool,
    /// A record of these changes that was counted last.
    #[serde(skip)]
    pub(super) listed: Lsn,
    /// Where recovery has to stop to be just before it: the start of the first record that it must not replay.
    pub stop: Lsn,
    /// Whether the end of its transaction is still to be looked up.
    #[serde(skip)]
    pub(super) pending: bool,
    /// `--to` for [`crate::plan::Target`]; none when no backup leads there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// `--timeline`, where `--to` alone would mean several places.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_timeline: Option<TimelineId>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Finding {
    /// Says that the numbers of rows are the least that there were.
    pub(super) fn mark_at_least(&mut self) {
        let Some((verb, rest)) = self.what.split_once(' ').filter(|_| !self.at_least) else { return };
        self.what = format!("{verb} at least {rest}");
        self.at_least = true;
    }
}

/// A database by its number and, where it is known, its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NamedDatabase {
    /// Its OID.
    pub oid: u32,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl fmt::Display for NamedDatabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => f.write_str(&quoted(name)),
            None => write!(f, "{}", self.oid),
        }
    }
}

/// A relation by its numbers and, where they are known, its names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NamedRelation {
    /// Its database.
    pub database: NamedDatabase,
    /// Its OID in `pg_class`; for a relation of which only the file is known, the file's number.
    pub oid: u32,
    /// Its schema.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it is: `pg_class.relkind`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<RelationKind>,
    /// Its file, as far as this is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<RelFile>,
}

impl NamedRelation {
    /// Whether it is called so, as far as the name goes.
    #[must_use]
    pub fn is_called(&self, name: &TableName) -> bool {
        let is = |wanted: &Option<String>, has: &Option<String>| wanted.is_none() || wanted == has;
        self.name.as_ref() == Some(&name.table)
            && is(&name.schema, &self.schema)
            && is(&name.database, &self.database.name)
    }
}

impl fmt::Display for NamedRelation {
    /// `shop.public.orders`, or its numbers.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.schema, &self.name) {
            (Some(schema), Some(name)) => write!(f, "{}.{}.{}", self.database, quoted(schema), quoted(name)),
            (None, Some(name)) => write!(f, "{}.?.{}", self.database, quoted(name)),
            _ => write!(f, "relation {} of database {}", self.oid, self.database),
        }
    }
}

/// `table a.b.c`, `tables a.b.c and a.b.d`, `views ...`: the first few by their names. What is not known by its name says
/// itself that it is a relation.
pub(super) fn list(relations: &[NamedRelation]) -> String {
    const SHOWN: usize = 4;
    let named = relations.iter().all(|r| r.name.is_some());
    let noun = match relations.first().map(|r| r.kind).filter(|_| named) {
        Some(Some(first)) if relations.iter().all(|r| r.kind == Some(first)) => match first {
            RelationKind::View => "view",
            RelationKind::MaterializedView => "materialized view",
            RelationKind::Sequence => "sequence",
            RelationKind::Index | RelationKind::PartitionedIndex => "index",
            RelationKind::ForeignTable => "foreign table",
            RelationKind::Toast => "TOAST table",
            RelationKind::Other => "type",
            RelationKind::Table | RelationKind::PartitionedTable => "table",
        },
        Some(Some(_)) if relations.iter().all(|r| r.kind.is_some_and(RelationKind::is_table)) => "table",
        _ => "",
    };
    let plural = match (noun, relations.len()) {
        ("", _) | (_, 1) => noun.to_owned(),
        ("index", _) => "indexes".into(),
        _ => format!("{noun}s"),
    };
    let mut names: Vec<String> = relations.iter().take(SHOWN).map(ToString::to_string).collect();
    if relations.len() > SHOWN {
        names.push(format!("{} more", relations.len() - SHOWN));
    }
    let last = names.pop().unwrap_or_default();
    let names = if names.is_empty() { last } else { format!("{} and {last}", names.join(", ")) };
    if plural.is_empty() { names } else { format!("{plural} {names}") }
}
