//! What one record adds to a summary.

use super::{RowCount, Summary, Told};
use crate::{
    postgres::Lsn,
    wal::{Change, Ended, Fact, Record, RelFile, TransactionEnd, named::TYPE},
};

/// The tablespace `pg_global`, where the shared catalogues lie (`GLOBALTABLESPACE_OID`).
const GLOBAL: u32 = 1664;

impl Summary {
    /// Adds a whole record, except what it says about rows. Whether a list grew.
    pub(super) fn add(&mut self, record: Record) -> bool {
        self.records = self.records.saturating_add(1);
        self.first.get_or_insert(record.start);
        self.prev.get_or_insert(record.prev);
        self.last = Some(record.start);
        self.end = record.end;
        match &record.fact {
            Fact::Commit(end) => self.ended(record.start, end, true),
            Fact::Abort(end) => self.ended(record.start, end, false),
            _ => {}
        }
        let list = match List::of(&record.fact) {
            List::None => return false,
            List::Turns => &mut self.turns,
            List::Changes => &mut self.changes,
        };
        list.items.push(Told { lsn: record.start, end: record.end, xid: record.xid, fact: record.fact });
        true
    }

    fn ended(&mut self, lsn: Lsn, end: &TransactionEnd, committed: bool) {
        let ends = if committed { &mut self.commits } else { &mut self.aborts };
        *ends = ends.saturating_add(1);
        let (least, greatest) = self.times.unwrap_or((end.time, end.time));
        self.times = Some((least.min(end.time), greatest.max(end.time)));
        self.cover(end.xid);
        end.subtransactions.iter().for_each(|xid| self.cover(*xid));
        if committed {
            let ended = Ended { xid: end.xid, time: end.time, lsn, committed };
            self.first_commit.get_or_insert_with(|| ended.clone());
            self.last_commit = Some(ended);
        }
    }

    /// Widens the arc of `xids` to hold `xid`, on the side where that takes less.
    fn cover(&mut self, xid: u32) {
        let (first, last) = self.xids.unwrap_or((xid, xid));
        let (before, after) = (first.wrapping_sub(xid), xid.wrapping_sub(last));
        self.xids = Some(if xid.wrapping_sub(first) <= last.wrapping_sub(first) {
            (first, last)
        } else if before < after {
            (xid, last)
        } else {
            (first, xid)
        });
    }
}

/// The list that a fact belongs into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum List {
    None,
    Turns,
    Changes,
}

impl List {
    fn of(fact: &Fact) -> Self {
        match fact {
            Fact::Commit(end) | Fact::Abort(end) if end.prepared => Self::Turns,
            Fact::Commit(end) if end.catalogues => Self::Changes,
            Fact::Commit(end) | Fact::Abort(end) => {
                let plain = end.removed.is_empty() && end.dropped.is_empty() && end.subtransactions.is_empty();
                if plain { Self::None } else { Self::Changes }
            }
            Fact::Prepare(_)
            | Fact::RestorePoint { .. }
            | Fact::Checkpoint(_)
            | Fact::CheckpointRedo { .. }
            | Fact::EndOfRecovery { .. }
            | Fact::BackupEnd { .. }
            | Fact::ParameterChange(_)
            | Fact::OverwriteContrecord { .. }
            | Fact::TablespaceCreate { .. }
            | Fact::TablespaceDrop { .. } => Self::Turns,
            Fact::FileCreate { .. }
            | Fact::FileTruncate { .. }
            | Fact::DatabaseCreate { .. }
            | Fact::DatabaseDrop { .. }
            | Fact::Locks { .. }
            | Fact::RelationMap { .. }
            | Fact::Named { .. }
            | Fact::Renamed { .. }
            | Fact::Message { .. } => Self::Changes,
            // Every renaming of a table renames its type.
            Fact::Rows(rows) if rows.file.number == TYPE && rows.change == Change::Update => Self::Changes,
            Fact::Rows(rows) if rows.file.tablespace == GLOBAL && rows.change != Change::Insert => Self::Changes,
            Fact::Rows(_) | Fact::PageImage { .. } | Fact::Assignment { .. } | Fact::Switch | Fact::Other => Self::None,
        }
    }
}

impl RowCount {
    /// An empty count for what a record says about rows, if it does.
    pub(super) fn of(record: &Record) -> Option<Self> {
        let file = match &record.fact {
            Fact::Rows(rows) | Fact::Named { rows, .. } | Fact::Renamed { rows, .. }
                if rows.change != Change::Inplace =>
            {
                rows.file
            }
            Fact::PageImage { file, .. } => *file,
            _ => return None,
        };
        if record.xid == 0 {
            return None;
        }
        Some(Self {
            file,
            xid: record.xid,
            lsn: record.start,
            inserted: 0,
            updated: 0,
            deleted: 0,
            images: 0,
            unended: false,
        })
    }

    /// Adds what a record says about rows.
    pub(super) fn add(&mut self, fact: &Fact) {
        match fact {
            Fact::Rows(rows) | Fact::Named { rows, .. } | Fact::Renamed { rows, .. } => {
                let count = match rows.change {
                    Change::Insert => &mut self.inserted,
                    Change::Update => &mut self.updated,
                    Change::Delete => &mut self.deleted,
                    Change::Inplace => return,
                };
                *count = count.saturating_add(rows.count.into());
            }
            Fact::PageImage { pages, .. } => self.images = self.images.saturating_add((*pages).into()),
            _ => {}
        }
    }

    /// Rows updated and deleted.
    #[must_use]
    pub fn changed(&self) -> u64 {
        self.updated.saturating_add(self.deleted)
    }

    /// All changes together.
    pub(super) fn total(&self) -> u64 {
        self.inserted.saturating_add(self.updated).saturating_add(self.deleted).saturating_add(self.images)
    }
}

/// The file that a record makes or fills.
pub(super) fn filled(fact: &Fact) -> Option<RelFile> {
    match fact {
        Fact::Rows(rows) | Fact::Named { rows, .. } | Fact::Renamed { rows, .. } => Some(rows.file),
        Fact::PageImage { file, .. } | Fact::FileCreate { file } => Some(*file),
        _ => None,
    }
}
