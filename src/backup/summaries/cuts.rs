//! How short main forks have been since the ancestor began. A server that sends changed blocks alone leaves out pages of
//! zeros behind such a cut: it adds more pages to a file than it needs, which no record tells, and it names a block only
//! when a record does (`GetFileBackupMethod` in basebackup_incremental.c). What the ancestor has in their place was cut
//! off, and must not come back.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
};

use super::complete;
use crate::{
    backup::ancestor::Since,
    error::{Error, Result},
    postgres::{
        Lsn, TimelineId,
        relation::{Fork, RelationFile, database_of},
        sql::{Session, SummaryRow, SummaryRows},
    },
};

/// The least lengths that forks had.
#[derive(Debug, Default)]
pub struct Cuts {
    /// In blocks, by tablespace, database and number.
    limits: HashMap<(u32, u32, u32), u32>,
    /// Databases that were copied, moved or dropped, with the tablespace.
    databases: HashSet<(u32, u32)>,
}

impl Cuts {
    /// Those between the ancestor's start and `start`.
    pub async fn since(session: &Session, since: &Since, timeline: TimelineId, start: Lsn) -> Result<Self> {
        // The backup after this one has one on the same timeline again.
        if since.timeline != timeline {
            return Err(Error::failed("the last backup was taken on another timeline"));
        }
        let mut cuts = Self::default();
        for summary in complete(session, timeline, since.start, start).await? {
            session.wal_summary(timeline, summary, SummaryRows::Limits, |row| cuts.take(row)).await?;
        }
        Ok(cuts)
    }

    fn take(&mut self, row: SummaryRow) {
        if row.relation == 0 {
            self.databases.insert((row.tablespace, row.database));
        } else {
            let limit = self.limits.entry((row.tablespace, row.database, row.relation)).or_insert(row.block);
            *limit = row.block.min(*limit);
        }
    }

    /// How many of the file's first blocks were never cut off, when `first` is the number of its first one in the fork.
    /// None of a file that is no main fork: nothing is told of it.
    #[must_use]
    pub fn kept(&self, path: &Path, first: u32) -> u32 {
        let file = path.file_name().and_then(|name| RelationFile::parse(name.to_str()?));
        let place = path.parent().and_then(database_of);
        let (Some(file), Some((tablespace, database))) = (file.filter(|file| file.fork == Fork::Main), place) else {
            return 0;
        };
        if self.databases.contains(&(tablespace, database)) {
            return 0;
        }
        self.limits.get(&(tablespace, database, file.number)).map_or(u32::MAX, |limit| limit.saturating_sub(first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_that_a_fork_was_counts() {
        let mut cuts = Cuts::default();
        for (relation, block) in [(7, 150), (7, 110), (7, 130), (8, 0)] {
            cuts.take(SummaryRow { tablespace: 1663, database: 5, relation, block, is_limit: true });
        }
        cuts.take(SummaryRow { tablespace: 1663, database: 6, relation: 0, block: 0, is_limit: true });
        let kept = |path: &str, first| cuts.kept(Path::new(path), first);
        assert_eq!(kept("base/5/7", 0), 110);
        assert_eq!(kept("base/5/7.1", 100), 10);
        assert_eq!(kept("base/5/7.2", 200), 0);
        assert_eq!(kept("base/5/8", 0), 0);
        assert_eq!(kept("base/5/9", 0), u32::MAX);
        assert_eq!(kept("pg_tblspc/1700/PG_17_1/5/7", 0), u32::MAX);
        assert_eq!(kept("base/6/7", 0), 0, "a database that is a copy of files");
        assert_eq!(kept("base/5/9_vm", 0), 0, "of a visibility map no summary tells all");
    }
}
