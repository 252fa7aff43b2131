//! Says what it means that a transaction removed files, made files and held locks: which tables it dropped, emptied or
//! wrote anew.
//!
//! The numbers of files change: what a transaction does to a table's file is followed from one to the next, so that the
//! happenings must be judged in the order of the log.

use super::{
    finding::{FindKind, Finding, NamedDatabase, NamedRelation, list},
    gather::{FileRows, Happening, What, Work},
    names::{FIRST_NORMAL, Names},
};
use crate::{
    postgres::{Lsn, TimelineId, Version, sql::catalogue::RelationKind},
    wal::{Parameters, RelFile},
};

type Key = (u32, u32);

/// Judges happenings in the order of the log.
#[derive(Debug)]
pub(super) struct Judge<'n> {
    names: &'n mut Names,
    version: Version,
    /// Of deletions and updates those of at least that many rows.
    rows: u64,
    /// Of transactions only what the one did that was asked for.
    xid: bool,
    findings: Vec<Finding>,
}

/// What became of relations.
#[derive(Debug, Default, PartialEq)]
struct Fates {
    dropped: Vec<Key>,
    truncated: Vec<Key>,
    rewritten: Vec<Key>,
}

impl<'n> Judge<'n> {
    pub fn new(names: &'n mut Names, version: Version, rows: u64, xid: bool) -> Self {
        Self { names, version, rows, xid, findings: Vec::new() }
    }

    pub fn finish(self) -> Vec<Finding> {
        self.findings
    }

    pub fn judge(&mut self, happening: &Happening) {
        let lsn = happening.lsn;
        let database = |oid| NamedDatabase { oid, name: self.names.database(oid, lsn).map(str::to_owned) };
        match &happening.what {
            What::Transaction(work) => self.transaction(happening, work),
            What::DropDatabase { oid } => {
                let database = database(*oid);
                let what = format!("dropped database {database}");
                self.found(FindKind::DropDatabase, happening, what).database = Some(database);
            }
            What::CreateDatabase { oid } => {
                let database = database(*oid);
                let what = format!("created database {database}");
                self.found(FindKind::CreateDatabase, happening, what).database = Some(database);
            }
            What::DropTablespace { oid } => {
                let name = self.names.tablespace(*oid, lsn);
                let what = format!("dropped tablespace {}", name.map_or_else(|| oid.to_string(), str::to_owned));
                self.found(FindKind::DropTablespace, happening, what);
            }
            What::RestorePoint { name } => {
                self.found(FindKind::RestorePoint, happening, format!("restore point \"{name}\""));
            }
            What::Message { database: oid, prefix, text, size } => {
                let database = Some(*oid).filter(|oid| *oid != 0).map(database);
                let text = text.split(char::is_control).next().unwrap_or_default();
                let cut = if text.len() < *size as usize { "..." } else { "" };
                self.found(FindKind::Message, happening, format!("message {prefix}: {text}{cut}")).database = database;
            }
            What::ParameterChange { before, now } => {
                self.found(FindKind::ParameterChange, happening, changes(before.as_ref(), now));
            }
            What::TimelineSwitch { timeline, previous } => {
                let what = format!("timeline {timeline} began, out of timeline {previous}");
                self.found(FindKind::TimelineSwitch, happening, what);
            }
        }
    }

    fn transaction(&mut self, happening: &Happening, work: &Work) {
        if self.xid && !work.asked {
            // What it did to files matters to what comes after it.
            if !work.aborted {
                self.fates(work, happening.lsn);
            }
            return;
        }
        if work.aborted {
            let what = format!("rolled back{}", self.summary(work, happening.lsn));
            self.found(FindKind::Abort, happening, what);
            return;
        }
        let fates = self.fates(work, happening.lsn);
        let mut told = false;
        for (kind, verb, keys) in [
            (FindKind::Drop, "dropped", &fates.dropped),
            (FindKind::Truncate, "truncated", &fates.truncated),
            (FindKind::Rewrite, "rewrote", &fates.rewritten),
        ] {
            let relations = self.subjects(keys, happening.lsn, kind);
            if !relations.is_empty() {
                let what = format!("{verb} {}", list(&relations));
                let found = self.found(kind, happening, what);
                found.database = relations.first().map(|r| r.database.clone());
                found.relations = relations;
                told = true;
            }
        }
        let least = if work.asked { 1 } else { self.rows };
        for rows in work.rows.iter().filter(|r| r.changed() >= least) {
            told |= self.mass(happening, work, rows);
        }
        if work.asked && !told {
            let what = format!("committed{}", self.summary(work, happening.lsn));
            self.found(FindKind::Commit, happening, what);
        }
    }

    fn mass(&mut self, happening: &Happening, work: &Work, rows: &FileRows) -> bool {
        let key = self.key_of(rows.file, work);
        if self.is_system(key, happening.lsn) || self.kind(key, happening.lsn) == Some(RelationKind::Toast) {
            return false;
        }
        let mut relation = self.names.named_relation(key, happening.lsn);
        relation.file = Some(rows.file);
        let count = |n: u64| if n == 1 { "1 row".to_owned() } else { format!("{n} rows") };
        let kind = if rows.deleted > 0 { FindKind::Delete } else { FindKind::Update };
        let what = match (rows.deleted, rows.updated) {
            (0, n) => format!("updated {} of {relation}", count(n)),
            (n, 0) => format!("deleted {} of {relation}", count(n)),
            (n, m) => format!("deleted {} of {relation}, and updated {m}", count(n)),
        };
        let found = self.found(kind, happening, what);
        (found.deleted, found.updated) = (rows.deleted, rows.updated);
        found.listed = rows.listed;
        if rows.at_least {
            found.mark_at_least();
        }
        found.database = Some(relation.database.clone());
        found.relations = vec![relation];
        true
    }

    /// What a transaction did to rows, in words.
    fn summary(&self, work: &Work, lsn: Lsn) -> String {
        let mut parts = Vec::new();
        for rows in &work.rows {
            let key = self.key_of(rows.file, work);
            if self.is_system(key, lsn) {
                continue;
            }
            let relation = self.names.named_relation(key, lsn);
            for (verb, count) in [("inserted", rows.inserted), ("updated", rows.updated), ("deleted", rows.deleted)] {
                if count > 0 {
                    parts.push(format!("{verb} {count} in {relation}"));
                }
            }
        }
        if parts.is_empty() { String::new() } else { format!(": {}", parts.join(", ")) }
    }

    /// What became of the relations whose files the transaction removed.
    fn fates(&mut self, work: &Work, lsn: Lsn) -> Fates {
        let old: Vec<(RelFile, Key)> = work.removed.iter().map(|file| (*file, self.key_of(*file, work))).collect();
        let made = |key: &Key| work.made.iter().any(|f| (f.database, f.number) == *key);
        let mut fates = Fates { dropped: self.dropped(work, &old, lsn), ..Fates::default() };
        fates.dropped.retain(|key| !made(key));
        let kept: Vec<(RelFile, Key)> = old.into_iter().filter(|(_, key)| !fates.dropped.contains(key)).collect();
        // `make_new_heap()` in `src/backend/commands/cluster.c`: a transient table, which is called after the one that it
        // is to replace, lends its file.
        for file in &work.created {
            if let Some(table) = self.replaced((file.database, file.number), lsn) {
                self.names.link(*file, table);
                fates.rewritten.push(table);
            }
        }
        if !fates.rewritten.is_empty() {
            return fates;
        }
        // The same without its name: it is locked under its own number.
        let transient = work.created.iter().find(|f| {
            let key = (f.database, f.number);
            let was_dropped = work.dropped.iter().any(|d| (d.database, d.relation) == key);
            let lasts = || self.names.outlived(key, lsn) == Some(true) || self.names.relation(key, lsn).is_some();
            work.locks.contains(&key) && (was_dropped || self.version.0 < 15 && !lasts())
        });
        if let Some(file) = transient {
            let is_index = |kind| matches!(kind, RelationKind::Index | RelationKind::Toast);
            let table = |key: &&(RelFile, Key)| !self.kind(key.1, lsn).is_some_and(is_index);
            let tables: Vec<Key> = kept.iter().filter(table).map(|(_, key)| *key).collect();
            // Which of several tables took which file is not told.
            if let [only] = tables[..] {
                self.names.link(*file, only);
            }
            fates.rewritten = tables;
            return fates;
        }
        // `TRUNCATE` and a move to another tablespace give each file its successor, one by one.
        if kept.len() == work.created.len() {
            for ((_, key), file) in kept.iter().zip(&work.created) {
                self.names.link(*file, *key);
                let copied = work.rows.iter().any(|r| r.file == *file && r.images > 0);
                match self.kind(*key, lsn) {
                    Some(RelationKind::Table | RelationKind::MaterializedView) if copied => fates.rewritten.push(*key),
                    Some(RelationKind::Table | RelationKind::MaterializedView) => fates.truncated.push(*key),
                    // The index of a table without a name is written anew with it.
                    None if !copied => fates.truncated.push(*key),
                    _ => {}
                }
            }
        }
        fates
    }

    fn dropped(&self, work: &Work, old: &[(RelFile, Key)], lsn: Lsn) -> Vec<Key> {
        if self.version.0 >= 15 {
            let keys = work.dropped.iter().map(|d| (d.database, d.relation));
            // What has neither a name nor a file is a temporary table's.
            return keys
                .filter(|key| self.names.relation(*key, lsn).is_some() || old.iter().any(|(_, o)| o == key))
                .collect();
        }
        let mut dropped: Vec<Key> = Vec::new();
        for (_, key) in old {
            let gone = match self.names.outlived(*key, lsn) {
                Some(outlived) => !outlived,
                // What was made instead of it has a name of its own.
                None => work.created.first().is_none_or(|f| {
                    let new = (f.database, f.number);
                    self.kind(new, lsn).is_some() && self.replaced(new, lsn).is_none()
                }),
            };
            if gone && !dropped.contains(key) {
                dropped.push(*key);
            }
        }
        // A partitioned table has no file. It is gone when all its partitions are.
        for key in &work.locks {
            let mut partitions = self.names.partitions(*key, lsn).peekable();
            if !dropped.contains(key) && partitions.peek().is_some() && partitions.all(|p| dropped.contains(&p)) {
                dropped.push(*key);
            }
        }
        dropped
    }

    /// The relation that a file is of.
    fn key_of(&self, file: RelFile, work: &Work) -> Key {
        // A new relation's first file has its OID for a number.
        let same = (file.database, file.number);
        let known = || {
            self.kind(same, Lsn(u64::MAX)).is_some()
                || work.locks.contains(&same)
                || work.dropped.iter().any(|d| (d.database, d.relation) == same)
        };
        match self.names.relation_of(file) {
            Some(key) => key,
            None if known() => same,
            // Of a transaction that did nothing else with files, all locks are on what it dropped.
            None => match work.locks[..] {
                [only] if work.removed == [file] => only,
                _ => same,
            },
        }
    }

    /// The table that a transient one is made to replace, as its name tells.
    fn replaced(&self, transient: Key, lsn: Lsn) -> Option<Key> {
        let name = self.names.relation(transient, lsn)?;
        Some((transient.0, name.name.strip_prefix("pg_temp_")?.parse().ok()?))
    }

    fn kind(&self, key: Key, lsn: Lsn) -> Option<RelationKind> {
        self.names.relation(key, lsn).map(|r| r.kind)
    }

    fn is_system(&self, key: Key, lsn: Lsn) -> bool {
        match self.names.relation(key, lsn) {
            Some(name) => matches!(name.schema.as_str(), "pg_catalog" | "information_schema"),
            None => key.0 == 0 || key.1 < FIRST_NORMAL,
        }
    }

    /// Those of the relations that a person would name: tables, and what else there is when there are none. Indexes and
    /// TOAST tables go with their tables.
    fn subjects(&self, keys: &[Key], lsn: Lsn, kind: FindKind) -> Vec<NamedRelation> {
        let keys: Vec<Key> = keys.iter().copied().filter(|key| !self.is_system(*key, lsn)).collect();
        let is = |wanted: fn(Option<RelationKind>) -> bool| {
            keys.iter().copied().filter(|key| wanted(self.kind(*key, lsn))).collect::<Vec<_>>()
        };
        let tables = is(|kind| kind.is_some_and(|k| k.is_table() || k == RelationKind::ForeignTable));
        let others = is(|kind| match kind {
            Some(kind) => matches!(kind, RelationKind::View | RelationKind::Sequence),
            None => true,
        });
        let chosen = if tables.is_empty() { others } else { tables };
        let mut relations: Vec<_> = chosen.into_iter().map(|key| self.names.named_relation(key, lsn)).collect();
        if kind == FindKind::Drop {
            relations.sort_by_key(|r| r.oid);
        }
        relations
    }

    fn found(&mut self, kind: FindKind, happening: &Happening, what: String) -> &mut Finding {
        self.findings.push(Finding {
            kind,
            time: happening.time,
            lsn: happening.lsn,
            timeline: TimelineId::FIRST,
            xid: Some(happening.xid).filter(|xid| *xid != 0),
            what,
            database: None,
            relations: Vec::new(),
            deleted: 0,
            updated: 0,
            at_least: false,
            listed: happening.lsn,
            stop: happening.stop,
            pending: match &happening.what {
                What::Transaction(work) => work.unended,
                What::DropDatabase { .. } | What::DropTablespace { .. } => true,
                _ => false,
            },
            to: None,
            to_timeline: None,
        });
        let last = self.findings.len() - 1;
        &mut self.findings[last]
    }
}

/// The settings that changed, with their old and new values; all of them when the old ones are not known.
fn changes(before: Option<&Parameters>, now: &Parameters) -> String {
    let values = |p: &Parameters| {
        let level = p.wal_level.map_or_else(|| "unknown".to_owned(), |l| format!("{l:?}").to_lowercase());
        let on = |on: bool| if on { "on" } else { "off" }.to_owned();
        [
            ("max_connections", p.max_connections.to_string()),
            ("max_worker_processes", p.max_worker_processes.to_string()),
            ("max_wal_senders", p.max_wal_senders.to_string()),
            ("max_prepared_transactions", p.max_prepared_transactions.to_string()),
            ("max_locks_per_transaction", p.max_locks_per_transaction.to_string()),
            ("wal_level", level),
            ("wal_log_hints", on(p.wal_log_hints)),
            ("track_commit_timestamp", on(p.track_commit_timestamp)),
        ]
    };
    let now = values(now);
    let words: Vec<String> = match before.map(values) {
        None => now.iter().map(|(name, value)| format!("{name} = {value}")).collect(),
        Some(before) => before
            .iter()
            .zip(&now)
            .filter(|(old, new)| old != new)
            .map(|((name, old), (_, new))| format!("{name} {old} -> {new}"))
            .collect(),
    };
    if words.is_empty() {
        "settings were written again, unchanged".into()
    } else {
        format!("settings: {}", words.join(", "))
    }
}
