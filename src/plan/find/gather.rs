//! Gathers what belongs together out of what the log tells in its order: the files, locks and rows of each transaction
//! until it ends, and the marks that stand alone. Knows numbers only; [`super::judge`] says what they mean.

use std::collections::HashMap;

use chrono::{DateTime, Utc};

use super::{cuts::Cuts, names::FIRST_NORMAL};
use crate::{
    postgres::{Lsn, TimelineId},
    wal::{
        self, Change, Dropped, Fact, Named, Parameters, RelFile, RowCount, Rows, Summary, Told, TransactionEnd,
        summary::FEW,
    },
};

/// Transactions that are followed at a time. What is more is forgotten, those with the fewest rows first.
const OPEN: usize = 300_000;
/// Transactions and marks that are kept: the newest.
const KEPT: usize = 300_000;

/// Something that the log tells of.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Happening {
    /// Where the record starts that made it last: a commit, or the record itself.
    pub lsn: Lsn,
    /// Where the first record starts that recovery must not replay, to be just before it.
    pub stop: Lsn,
    /// When; by the server's clock.
    pub time: Option<DateTime<Utc>>,
    /// The transaction; 0 when there is none.
    pub xid: u32,
    /// What it is.
    pub what: What,
}

/// What the log tells of.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum What {
    Transaction(Box<Work>),
    DropDatabase { oid: u32 },
    CreateDatabase { oid: u32 },
    DropTablespace { oid: u32 },
    RestorePoint { name: String },
    Message { database: u32, prefix: String, text: String, size: u32 },
    ParameterChange { before: Option<Parameters>, now: Parameters },
    TimelineSwitch { timeline: TimelineId, previous: TimelineId },
}

/// What a transaction did.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Work {
    /// Whether it was rolled back.
    pub aborted: bool,
    /// Its end is not known yet: it did nothing but change rows.
    pub unended: bool,
    /// Whether it is the one that was asked for.
    pub asked: bool,
    /// The files that were there before it, and are removed with it; in the order of the removals.
    pub removed: Vec<RelFile>,
    /// The files that it made and left, in their order.
    pub created: Vec<RelFile>,
    /// The relations that it locked against everybody: database and OID, in their order.
    pub locks: Vec<(u32, u32)>,
    /// The relations that were dropped with it (since 15), its own among them.
    pub dropped: Vec<Dropped>,
    /// The files that it made, those included that it removed again.
    pub made: Vec<RelFile>,
    /// The rows that it changed.
    pub rows: Vec<FileRows>,
}

/// The rows of one file that a transaction changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileRows {
    pub file: RelFile,
    pub inserted: u64,
    pub updated: u64,
    pub deleted: u64,
    pub images: u64,
    /// A record that was counted last.
    pub listed: Lsn,
    /// There may be more of them, where the log does not tell all.
    pub at_least: bool,
}

impl FileRows {
    pub fn changed(&self) -> u64 {
        self.updated + self.deleted
    }
}

/// What is gathered.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wanted {
    /// Transactions that deleted or updated at least that many rows of a table; none without it.
    pub rows: Option<u64>,
    /// All of this transaction, rolled back or not.
    pub xid: Option<u32>,
    /// Whether databases that were made, and messages, are told too.
    pub marks: bool,
    /// Whether this server marks a database as invalid before it drops it (minor releases since August 2023);
    /// unknown without it.
    pub marks_invalid: Option<bool>,
}

/// A row of a shared catalogue by its place.
type Place = (RelFile, u32, u16);

/// What a transaction that has not ended did so far.
#[derive(Debug, Default)]
struct Open {
    first: Lsn,
    last: Lsn,
    /// With where they were first told.
    locks: Vec<(Lsn, (u32, u32))>,
    renamings: Vec<Renaming>,
    /// Whether it updated rows of `pg_type`.
    types: bool,
    made: Vec<RelFile>,
    /// Deleted rows of shared catalogues.
    deletes: Vec<Place>,
    rows: Vec<FileRows>,
}

/// Gathers along one path.
#[derive(Debug)]
pub(super) struct Gatherer {
    wanted: Wanted,
    open: HashMap<u32, Open>,
    /// Where rows of shared catalogues were last overwritten in place.
    inplace: HashMap<Place, Lsn>,
    /// The last time that the log told.
    pub time: Option<DateTime<Utc>>,
    parameters: Option<Parameters>,
    pub happenings: Vec<Happening>,
    /// The names that rows of catalogues were given on the way: where, in which file, and what.
    pub named: Vec<(Lsn, RelFile, Named)>,
    /// The segments that do not tell of all rows.
    pub cuts: Cuts,
    /// The first record of the segment before.
    previous: Option<Lsn>,
    /// The names that transactions changed, in the order of their commits.
    pub renamings: Vec<Renamings>,
    /// The relations that committed transactions held locked against everybody, in the order of the commits.
    pub locked: Vec<(Lsn, (u32, u32))>,
    /// Where catalogues of a database were given new files, out of which no names are told; 0 for those that all share.
    pub remapped: Vec<(Lsn, u32)>,
    /// Whether happenings were forgotten.
    pub forgotten: bool,
}

/// The names that a transaction changed.
#[derive(Debug)]
pub(super) struct Renamings {
    /// Where its commit starts.
    pub lsn: Lsn,
    /// In the order of the log.
    pub items: Vec<Renaming>,
    /// The relations that it locked against everybody, as every renaming of a table does, and where.
    pub locks: Vec<(Lsn, (u32, u32))>,
    /// Whether it changed types, as every renaming of a table does, and none of an index.
    pub types: bool,
}

/// An update of a row that gives something its name.
#[derive(Debug)]
pub(super) struct Renaming {
    pub lsn: Lsn,
    /// The catalogue.
    pub file: RelFile,
    /// Where the old row lay.
    pub place: (u32, u16),
    pub how: How,
}

/// What is known of the new row.
#[derive(Debug)]
pub(super) enum How {
    /// Where it lies, and all of it that matters.
    Whole { place: (u32, u16), named: Named },
    /// Where it lies, and the bytes from that one on that changed; unknown ones without them.
    Changed { place: (u32, u16), at: u8, bytes: Option<Vec<u8>> },
}

impl Gatherer {
    pub fn new(wanted: Wanted) -> Self {
        Self {
            wanted,
            open: HashMap::new(),
            inplace: HashMap::new(),
            time: None,
            parameters: None,
            happenings: Vec::new(),
            named: Vec::new(),
            cuts: Cuts::default(),
            previous: None,
            renamings: Vec::new(),
            locked: Vec::new(),
            remapped: Vec::new(),
            forgotten: false,
        }
    }

    /// Takes in the next segment.
    pub fn segment(&mut self, summary: &Summary) {
        // Rows first: what ends within the segment ends after them.
        for rows in &summary.rows.items {
            self.rows(rows);
        }
        self.cuts.note(summary);
        self.previous = summary.first.or(self.previous);
        let mut told: Vec<&Told> = summary.turns.items.iter().chain(&summary.changes.items).collect();
        told.sort_by_key(|t| t.lsn);
        for told in told {
            self.tell(told);
        }
        if let Some((_, last)) = summary.times {
            self.time = Some(last);
        }
        self.forget();
    }

    /// A gap of the log: what was under way may have ended in it.
    pub fn gap(&mut self) {
        self.rest();
        self.inplace.clear();
        self.parameters = None;
    }

    /// The end of the log that is searched: transactions whose ends are not told have changed rows only.
    pub fn finish(&mut self) {
        self.rest();
        self.happenings.sort_by_key(|h| h.lsn);
    }

    pub fn rows(&mut self, rows: &RowCount) {
        if rows.xid == 0 {
            return;
        }
        let changed = rows.updated + rows.deleted;
        let all = self.wanted.xid.is_some() || self.wanted.rows.is_some_and(|least| least < FEW);
        let open = self.open.get(&rows.xid);
        let own = open.is_some_and(|o| o.made.contains(&rows.file));
        // Few rows in each of many segments are many.
        let many = changed >= FEW || changed > 0 && rows.unended;
        let wanted = self.wanted.rows.is_some() && many || all || own || rows.images > 0;
        if !(wanted || open.is_some_and(|o| o.rows.iter().any(|r| r.file == rows.file))) {
            return;
        }
        let known = open.and_then(|o| o.rows.iter().find(|r| r.file == rows.file).map(|r| r.listed));
        let missed = match known.or(open.map(|o| o.first)) {
            Some(listed) => self.cuts.miss_since(listed),
            None => self.cuts.miss_before(self.previous),
        };
        let open = self.open(rows.xid, rows.lsn);
        open.count(FileRows { at_least: missed, ..rows.into() });
    }

    fn open(&mut self, xid: u32, lsn: Lsn) -> &mut Open {
        let open = self.open.entry(xid).or_insert_with(|| Open { first: lsn, ..Open::default() });
        open.first = open.first.min(lsn);
        open.last = open.last.max(lsn);
        open
    }

    pub fn tell(&mut self, told: &Told) {
        let (lsn, xid) = (told.lsn, told.xid);
        match &told.fact {
            Fact::Locks { locks } => {
                for lock in locks {
                    let open = self.open(lock.xid, lsn);
                    let relation = (lock.database, lock.relation);
                    // Locks that are held long are told again and again.
                    if open.locks.iter().all(|(_, known)| *known != relation) {
                        open.locks.push((lsn, relation));
                    }
                }
            }
            Fact::FileCreate { file } if xid != 0 => self.open(xid, lsn).made.push(*file),
            Fact::Rows(rows) if rows.file.number == wal::named::TYPE => self.open(xid, lsn).types = true,
            Fact::Rows(rows) => {
                // A catalogue that was written anew, perhaps that of the databases.
                if rows.file.database == 0 && rows.file.number >= FIRST_NORMAL && rows.change == Change::Update {
                    let place = (rows.block, rows.offset);
                    let how = How::Changed { place, at: 0, bytes: None };
                    self.renamed(xid, Renaming { lsn, file: rows.file, place, how });
                }
                self.shared_row(lsn, xid, rows);
            }
            Fact::Named { rows, named, to: Some(to) } => {
                let how = How::Whole { place: *to, named: (**named).clone() };
                self.renamed(xid, Renaming { lsn, file: rows.file, place: (rows.block, rows.offset), how });
                self.shared_row(lsn, xid, rows);
            }
            Fact::Renamed { rows, to, at, bytes } => {
                let how = How::Changed { place: *to, at: *at, bytes: bytes.clone() };
                self.renamed(xid, Renaming { lsn, file: rows.file, place: (rows.block, rows.offset), how });
                self.shared_row(lsn, xid, rows);
            }
            Fact::RelationMap { database } => self.remapped.push((lsn, *database)),
            Fact::Named { rows, named, to: None } => {
                self.named.push((lsn, rows.file, (**named).clone()));
                if self.named.len() >= 2 * KEPT {
                    self.named.drain(..KEPT);
                    self.forgotten = true;
                }
            }
            Fact::Commit(end) => self.end(lsn, end, false),
            Fact::Abort(end) => self.end(lsn, end, true),
            Fact::DatabaseDrop { oid, .. } => self.database_drop(lsn, xid, *oid),
            Fact::DatabaseCreate { oid, .. } if self.wanted.marks => {
                self.push(lsn, lsn, self.time, xid, What::CreateDatabase { oid: *oid });
            }
            Fact::TablespaceDrop { oid } => {
                self.push(lsn, lsn, self.time, xid, What::DropTablespace { oid: *oid });
            }
            Fact::RestorePoint { name, time } => {
                self.time = Some(*time);
                self.push(lsn, lsn, Some(*time), 0, What::RestorePoint { name: name.clone() });
            }
            Fact::Message { database, prefix, text, size, .. } if self.wanted.marks => {
                let what =
                    What::Message { database: *database, prefix: prefix.clone(), text: text.clone(), size: *size };
                self.push(lsn, lsn, self.time, xid, what);
            }
            Fact::ParameterChange(now) => {
                let before = self.parameters.replace(*now);
                self.push(lsn, lsn, self.time, 0, What::ParameterChange { before, now: *now });
            }
            Fact::Checkpoint(checkpoint) => {
                self.time = Some(self.time.map_or(checkpoint.time, |t| t.max(checkpoint.time)));
                self.switch(lsn, checkpoint.timeline, checkpoint.previous);
            }
            Fact::EndOfRecovery { time, timeline, previous, .. } => {
                self.time = Some(*time);
                self.switch(lsn, *timeline, *previous);
            }
            _ => {}
        }
    }

    fn renamed(&mut self, xid: u32, renaming: Renaming) {
        if xid != 0 {
            self.open(xid, renaming.lsn).renamings.push(renaming);
        }
    }

    fn switch(&mut self, lsn: Lsn, timeline: TimelineId, previous: TimelineId) {
        if timeline != previous {
            self.push(lsn, lsn, self.time, 0, What::TimelineSwitch { timeline, previous });
        }
    }

    fn shared_row(&mut self, lsn: Lsn, xid: u32, rows: &Rows) {
        if rows.file.database != 0 {
            return;
        }
        let place = (rows.file, rows.block, rows.offset);
        if xid != 0 {
            self.open(xid, lsn);
        }
        match rows.change {
            Change::Inplace => _ = self.inplace.insert(place, lsn),
            Change::Delete if xid != 0 => self.open(xid, lsn).deletes.push(place),
            _ => {}
        }
    }

    /// `dropdb()` in `src/backend/commands/dbcommands.c`: the row of the database is marked in place as invalid, then
    /// deleted, then the files go. Files that go without a deleted row were moved to another tablespace (`movedb()`).
    fn database_drop(&mut self, lsn: Lsn, xid: u32, oid: u32) {
        let Some(open) = self.open.get(&xid).filter(|o| !o.deletes.is_empty()) else { return };
        let mark = open.deletes.iter().filter_map(|place| self.inplace.get(place)).max().copied();
        // Vacuum, too, writes the row in place. Before the first record of the transaction it may have been that.
        let is_mark = |at: &Lsn| match self.wanted.marks_invalid {
            _ if *at >= open.first => true,
            Some(known) => known,
            None => open.first.0 - at.0 < 1 << 20,
        };
        let stop = mark.filter(is_mark).map_or(open.first, |at| at.min(lsn));
        self.push(lsn, stop, self.time, xid, What::DropDatabase { oid });
    }

    fn end(&mut self, lsn: Lsn, end: &TransactionEnd, aborted: bool) {
        self.time = Some(end.time);
        let asked = self.wanted.xid.is_some_and(|xid| end.includes(xid));
        let mut open = self.open.remove(&end.xid).unwrap_or_default();
        for xid in &end.subtransactions {
            if let Some(sub) = self.open.remove(xid) {
                open.add(sub);
            }
        }
        if aborted && !asked {
            return;
        }
        let hidden = !end.subtransactions.is_empty() && self.cuts.miss_since(open.first);
        for rows in &mut open.rows {
            rows.at_least |= hidden || self.cuts.miss(rows.listed, lsn);
        }
        if !aborted {
            self.locked.extend(open.locks.iter().map(|(_, relation)| (lsn, *relation)));
            let mut items = std::mem::take(&mut open.renamings);
            items.sort_by_key(|r| r.lsn);
            if !items.is_empty() {
                self.renamings.push(Renamings { lsn, items, locks: open.locks.clone(), types: open.types });
            }
            if self.locked.len().max(self.renamings.len()) >= 4 * KEPT {
                self.locked.drain(..self.locked.len() / 2);
                self.renamings.drain(..self.renamings.len() / 2);
                self.forgotten = true;
            }
        }
        let created = open.made.iter().filter(|f| !end.removed.contains(f)).copied().collect();
        let removed: Vec<RelFile> = end.removed.iter().filter(|f| !open.made.contains(f)).copied().collect();
        let structural = !removed.is_empty() || !end.dropped.is_empty();
        let massive = self.wanted.rows.is_some_and(|least| open.rows.iter().any(|r| r.changed() >= least));
        if structural || massive || asked {
            let work = Work {
                aborted,
                unended: false,
                asked,
                removed: removed.into_iter().rev().collect(),
                created,
                locks: open.locks.into_iter().map(|(_, relation)| relation).collect(),
                dropped: end.dropped.clone(),
                made: open.made,
                rows: open.rows,
            };
            self.push(lsn, lsn, Some(end.time), end.xid, What::Transaction(Box::new(work)));
        }
    }

    fn push(&mut self, lsn: Lsn, stop: Lsn, time: Option<DateTime<Utc>>, xid: u32, what: What) {
        self.happenings.push(Happening { lsn, stop, time, xid, what });
        if self.happenings.len() >= 2 * KEPT {
            self.happenings.drain(..KEPT);
            self.forgotten = true;
        }
    }

    /// What is left of transactions whose ends are told nowhere, because they did nothing but change rows.
    fn rest(&mut self) {
        for (xid, open) in std::mem::take(&mut self.open) {
            let massive = self.wanted.rows.is_some_and(|least| open.rows.iter().any(|r| r.changed() >= least));
            let asked = self.wanted.xid == Some(xid);
            if massive || asked {
                let Open { locks, rows, .. } = open;
                let locks = locks.into_iter().map(|(_, relation)| relation).collect();
                let work = Work { unended: true, asked, locks, rows, ..Work::default() };
                self.push(open.last, open.last, None, xid, What::Transaction(Box::new(work)));
            }
        }
    }

    fn forget(&mut self) {
        if self.open.len() <= OPEN {
            return;
        }
        let weight = |open: &Open| open.rows.iter().map(FileRows::changed).sum::<u64>();
        let mut weights: Vec<(u64, Lsn)> = self.open.values().map(|o| (weight(o), o.first)).collect();
        let (_, middle, _) = weights.select_nth_unstable(OPEN / 2);
        let middle = *middle;
        self.open.retain(|_, open| (weight(open), open.first) > middle);
    }
}

impl Open {
    fn add(&mut self, other: Self) {
        self.locks.extend(other.locks);
        self.renamings.extend(other.renamings);
        self.types |= other.types;
        self.made.extend(other.made);
        other.rows.into_iter().for_each(|rows| self.count(rows));
    }

    fn count(&mut self, rows: FileRows) {
        match self.rows.iter_mut().find(|r| r.file == rows.file) {
            Some(sum) => {
                sum.inserted += rows.inserted;
                sum.updated += rows.updated;
                sum.deleted += rows.deleted;
                sum.images += rows.images;
                sum.listed = sum.listed.max(rows.listed);
                sum.at_least |= rows.at_least;
            }
            None => self.rows.push(rows),
        }
    }
}

impl From<&RowCount> for FileRows {
    fn from(rows: &RowCount) -> Self {
        let RowCount { file, lsn: listed, inserted, updated, deleted, images, .. } = *rows;
        Self { file, inserted, updated, deleted, images, listed, at_least: false }
    }
}
