//! Names for the numbers of the log: out of the catalogues of the backups along the path, and out of the log itself for
//! what was made in between. A name holds from where it is found on; before that, the first there is is the best, unless
//! the log tells that it was another one. What [`super::renames`] makes uncertain has no name.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    finding::{NamedDatabase, NamedRelation},
    gather::{Happening, What},
};
use crate::{
    error::{Kind, Result},
    plan::{TableName, name},
    postgres::{
        Lsn,
        sql::catalogue::{RelationKind, RelationName},
    },
    repository::{BackupDocument, CatalogueEntry, System},
    wal::{self, Named, RelFile},
};

/// Relations below this OID are PostgreSQL's own (`FirstNormalObjectId` in `src/include/access/transam.h`).
pub(super) const FIRST_NORMAL: u32 = 16384;

/// Numbers that need names.
#[derive(Clone, Debug, Default)]
pub(super) struct Interest {
    /// Relations: the OID of the database, and their own.
    relations: HashSet<(u32, u32)>,
    files: HashSet<RelFile>,
    /// Relations that may be called so, whatever their numbers.
    table: Option<TableName>,
    /// Tables that are called nearly so.
    like: Option<TableName>,
}

impl Interest {
    pub fn of(happenings: &[Happening], table: Option<&TableName>, like: Option<&TableName>) -> Self {
        let mut interest = Self { table: table.cloned(), like: like.cloned(), ..Self::default() };
        for happening in happenings {
            let What::Transaction(work) = &happening.what else { continue };
            interest.relations.extend(work.locks.iter().copied());
            interest.relations.extend(work.dropped.iter().map(|d| (d.database, d.relation)));
            interest.files.extend(work.removed.iter().chain(work.rows.iter().map(|r| &r.file)));
        }
        interest
    }

    /// Relations besides.
    pub fn add(&mut self, relations: impl IntoIterator<Item = (u32, u32)>) {
        self.relations.extend(relations);
    }

    fn covers(&self, relation: &RelationName) -> bool {
        matches!(relation.oid, wal::named::CLASS | wal::named::TYPE | wal::named::DATABASE)
            || self.relations.contains(&(relation.database, relation.oid))
            || file_of(relation).is_some_and(|file| self.files.contains(&file))
            || relation.kind.is_table()
                && relation.parent.is_some_and(|table| self.relations.contains(&(relation.database, table)))
            || self.table.as_ref().is_some_and(|t| t.table == relation.name)
            || relation.kind.is_table() && self.like.as_ref().is_some_and(|t| is_like(t, &relation.name))
    }
}

/// Stands for the name of a schema that is not known.
pub(super) const UNKNOWN: &str = "?";

fn is_like(wanted: &TableName, name: &str) -> bool {
    name::likeness(&wanted.table, name) >= name::ALIKE
}

fn file_of(relation: &RelationName) -> Option<RelFile> {
    Some(RelFile { tablespace: relation.tablespace, database: relation.database, number: relation.file? })
}

/// Names, each from where on it holds; none where it is not known. A relation of which the name is not known, but what it
/// is, has an empty one.
pub(super) type Since<T> = Vec<(Lsn, Option<T>)>;

/// The entry that tells the name at `lsn`.
pub(super) fn entry_at<T>(since: &Since<T>, lsn: Lsn) -> Option<(Lsn, &T)> {
    let entry = since.iter().rev().find(|(from, _)| *from <= lsn).or(since.first())?;
    Some((entry.0, entry.1.as_ref()?))
}

fn at<T>(since: &Since<T>, lsn: Lsn) -> Option<&T> {
    entry_at(since, lsn).map(|(_, name)| name)
}

/// The names that are known.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) relations: HashMap<(u32, u32), Since<RelationName>>,
    files: HashMap<RelFile, (u32, u32)>,
    pub(super) databases: HashMap<u32, Since<String>>,
    pub(super) tablespaces: HashMap<u32, Since<String>>,
    pub(super) schemas: HashMap<(u32, u32), Since<String>>,
    /// Schemas that were renamed: from where on, in which database, what they were called before and, where it is known,
    /// what they are called since.
    pub(super) renamed_schemas: Vec<(Lsn, u32, String, Option<String>)>,
    /// Databases whose `pg_class` or `pg_type` lies in a file of which the log tells no names, and from where on.
    pub(super) blind: HashMap<u32, Lsn>,
    /// The last catalogue that has a relation, and the last there is.
    seen: HashMap<(u32, u32), Lsn>,
    last: Option<Lsn>,
}

impl Names {
    /// Out of the catalogues of `backups`, oldest first.
    pub async fn read(system: &System, backups: &[&BackupDocument], interest: Interest) -> Result<Self> {
        let mut names = Self::default();
        let interest = Arc::new(interest);
        for backup in backups {
            let interest = interest.clone();
            let keep = move |kept: &mut Vec<CatalogueEntry>, entry| match &entry {
                CatalogueEntry::Relation(relation) if !interest.covers(relation) => {}
                _ => kept.push(entry),
            };
            match system.catalogue(backup, Vec::new(), keep).await {
                Ok(entries) => entries.into_iter().for_each(|entry| names.add(backup.stop_lsn, entry)),
                // Names are a help: where a catalogue is lost or damaged, the numbers stand for themselves.
                Err(error) if matches!(error.kind(), Kind::Damaged | Kind::Refused) => {
                    tracing::warn!("names are missing: {error}");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(names)
    }

    /// Adds what a catalogue has that was taken at `lsn`.
    pub fn add(&mut self, lsn: Lsn, entry: CatalogueEntry) {
        match entry {
            CatalogueEntry::Catalogue { .. } => self.last = Some(lsn),
            CatalogueEntry::Tablespace(t) => add(self.tablespaces.entry(t.oid).or_default(), lsn, t.name),
            CatalogueEntry::Database(d) => add(self.databases.entry(d.oid).or_default(), lsn, d.name),
            CatalogueEntry::Schema(s) => add(self.schemas.entry((s.database, s.oid)).or_default(), lsn, s.name),
            CatalogueEntry::Relation(relation) => {
                let key = (relation.database, relation.oid);
                let tells = matches!(relation.oid, wal::named::CLASS | wal::named::TYPE);
                if tells && relation.file != Some(relation.oid) {
                    let sound = self.relations.get(&key).and_then(|since| since.last()).map_or(Lsn(0), |(lsn, _)| *lsn);
                    self.blind.entry(relation.database).or_insert(sound);
                }
                if let Some(file) = file_of(&relation) {
                    self.files.insert(file, key);
                }
                self.seen.insert(key, lsn);
                add(self.relations.entry(key).or_default(), lsn, relation);
            }
        }
    }

    /// Adds what the log tells, once all catalogues are read. `file` is the catalogue's.
    pub fn named(&mut self, lsn: Lsn, file: RelFile, named: Named) {
        let Named { oid, name, schema, kind } = named;
        match (file.number, schema.zip(kind)) {
            (wal::named::DATABASE, _) => add(self.databases.entry(oid).or_default(), lsn, name),
            (wal::named::TABLESPACE, _) => add(self.tablespaces.entry(oid).or_default(), lsn, name),
            (wal::named::NAMESPACE, _) => add(self.schemas.entry((file.database, oid)).or_default(), lsn, name),
            (_, Some((schema, kind))) => {
                let schema = self.schemas.get(&(file.database, schema)).and_then(|since| at(since, lsn));
                let relation = RelationName {
                    database: file.database,
                    oid,
                    schema: schema.cloned().unwrap_or_else(|| UNKNOWN.into()),
                    name,
                    kind: RelationKind::from_letter(kind),
                    file: None,
                    tablespace: 0,
                    parent: None,
                };
                add(self.relations.entry((file.database, oid)).or_default(), lsn, relation);
            }
            _ => {}
        }
    }

    /// The relation of that database and OID, as it was called at `lsn`.
    pub fn relation(&self, key: (u32, u32), lsn: Lsn) -> Option<&RelationName> {
        at(self.relations.get(&key)?, lsn)
    }

    /// The relation that a file is, or was, of.
    pub fn relation_of(&self, file: RelFile) -> Option<(u32, u32)> {
        self.files.get(&file).copied()
    }

    /// Whether a catalogue after `lsn` has the relation; unknown where there is no such catalogue.
    pub fn outlived(&self, key: (u32, u32), lsn: Lsn) -> Option<bool> {
        self.last.filter(|last| *last > lsn)?;
        Some(self.seen.get(&key).is_some_and(|seen| *seen > lsn))
    }

    /// What the log tells of a file: from then on it is that relation's.
    pub fn link(&mut self, file: RelFile, relation: (u32, u32)) {
        self.files.insert(file, relation);
    }

    /// The partitions of a partitioned table that are known.
    pub fn partitions(&self, table: (u32, u32), lsn: Lsn) -> impl Iterator<Item = (u32, u32)> {
        let of =
            move |name: &RelationName| name.kind.is_table() && name.database == table.0 && name.parent == Some(table.1);
        self.relations.iter().filter(move |(_, since)| at(since, lsn).is_some_and(of)).map(|(key, _)| *key)
    }

    /// A database, as it was called at `lsn`.
    pub fn database(&self, oid: u32, lsn: Lsn) -> Option<&str> {
        at(self.databases.get(&oid)?, lsn).map(String::as_str)
    }

    /// The tables that are called nearly so, by the last names that are known.
    pub fn tables_like(&self, wanted: &TableName) -> Vec<NamedRelation> {
        let last = Lsn(u64::MAX);
        let keys = self
            .relations
            .keys()
            .filter(|key| self.relation(**key, last).is_some_and(|r| r.kind.is_table() && is_like(wanted, &r.name)));
        keys.map(|key| self.named_relation(*key, last)).collect()
    }

    /// The names of all databases that are known.
    pub fn databases(&self) -> Vec<String> {
        let last = Lsn(u64::MAX);
        self.databases.keys().filter_map(|oid| self.database(*oid, last)).map(str::to_owned).collect()
    }

    /// What a relation's schema was called at `lsn`.
    pub(super) fn schema(&self, key: (u32, u32), lsn: Lsn) -> Option<String> {
        let (from, relation) = entry_at(self.relations.get(&key)?, lsn)?;
        let mut schema = Some(relation.schema.clone());
        for (at, _, before, after) in self.renamed_schemas.iter().filter(|(_, database, ..)| *database == key.0) {
            if from < *at && *at <= lsn && schema.as_ref() == Some(before) {
                schema.clone_from(after);
            } else if lsn < *at && *at <= from {
                // What was found later may have been called otherwise.
                schema = None;
            }
        }
        schema.filter(|schema| schema != UNKNOWN)
    }

    /// A relation with all its names at `lsn`.
    pub fn named_relation(&self, key: (u32, u32), lsn: Lsn) -> NamedRelation {
        let name = self.relation(key, lsn);
        NamedRelation {
            database: NamedDatabase { oid: key.0, name: self.database(key.0, lsn).map(str::to_owned) },
            oid: key.1,
            schema: self.schema(key, lsn),
            name: name.map(|n| n.name.clone()).filter(|name| !name.is_empty()),
            kind: name.map(|n| n.kind),
            file: None,
        }
    }

    /// A tablespace, as it was called at `lsn`.
    pub fn tablespace(&self, oid: u32, lsn: Lsn) -> Option<&str> {
        at(self.tablespaces.get(&oid)?, lsn).map(String::as_str)
    }
}

fn add<T>(since: &mut Since<T>, lsn: Lsn, name: T) {
    let place = since.partition_point(|(from, _)| *from <= lsn);
    since.insert(place, (lsn, Some(name)));
}

/// From `lsn` on it is called so. What it was called before that is not known from what it was called later.
pub(super) fn turn<T: PartialEq>(since: &mut Since<T>, lsn: Lsn, name: Option<T>) {
    let place = since.partition_point(|(from, _)| *from <= lsn);
    match place.checked_sub(1).map(|before| since[before].1 == name) {
        Some(true) => {}
        Some(false) => since.insert(place, (lsn, name)),
        None => since.splice(0..0, [(Lsn(0), None), (lsn, name)]).for_each(drop),
    }
}
