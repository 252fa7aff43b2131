//! What the WAL summaries of PostgreSQL 17 and later tell of the time since the ancestor began: the blocks of main forks
//! that may differ, so that the others need not be read.
//!
//! They are believed under these conditions alone; else every block is read.
//! - The ancestor was taken on the timeline that is written now. On one timeline no `pg_rewind` and no recovery to
//!   an older time can have put other bytes in place: both lead to a new one. `pg_resetwal` removes all summaries
//!   (`KillExistingWALSummaries` in pg_resetwal.c).
//! - The ancestor was at its end before this one starts. A standby's backup starts at its last restart point, which may
//!   lie before that: the ancestor could then hold what the log tells only later.
//! - They cover the log from the ancestor's start to this one's without a gap. The summarizer leaves a gap where
//!   `wal_level` was `minimal` (`SummarizeXlogRecord` in walsummarizer.c).
//! - Page checksums are on, or off, now as then.
//! - The file was in the ancestor itself. What a killed attempt has stored tells no LSN.
//! - It is a main fork: a free space map is not logged, and a visibility map is changed by records that do not name its
//!   blocks.
//!
//! Of such a file a block is the ancestor's when no summary names it and the fork was never, in between, so short that
//! the block was gone. The rule is that of `GetFileBackupMethod` in basebackup_incremental.c, read the safe way: all
//! blocks that any summary names are read, those too that a later truncation made of no interest.

mod cuts;

pub use cuts::Cuts;

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    time::{Duration, Instant},
};

use super::ancestor::Since;
use crate::{
    error::{Error, Result},
    postgres::{
        Lsn, TimelineId,
        relation::{Fork, RelationFile, database_of},
        sql::{Session, SummaryRow, SummaryRows},
    },
};

/// More blocks than these are not held: where so much has changed, every block is read. 64 MiB of numbers.
const MOST: usize = 16 << 20;
/// So long the summarizer may stand still before it is waited for no longer. The checkpoint that begins a backup wakes
/// it.
const STILL: Duration = Duration::from_secs(10);
/// How often it is asked how far it is.
const PAUSE: Duration = Duration::from_millis(100);

/// What has changed.
#[derive(Debug, Default)]
pub struct Changed {
    /// By tablespace, database and number.
    relations: HashMap<(u32, u32, u32), Blocks>,
    /// Databases that were copied, moved or dropped, with the tablespace.
    databases: HashSet<(u32, u32)>,
    held: usize,
}

#[derive(Debug, Default)]
struct Blocks {
    /// The least length that the fork had.
    limit: Option<u32>,
    numbers: Vec<u32>,
}

/// What has changed from the ancestor's start to `start`; `None` where that is not known.
pub async fn changed(
    session: &Session,
    since: &Since,
    timeline: TimelineId,
    start: Lsn,
    checksums: bool,
) -> Option<Changed> {
    if !since.can_be_told(timeline, start, checksums) {
        return None;
    }
    match read(session, timeline, since.start, start).await {
        Ok(changed) => changed,
        Err(error) => {
            tracing::warn!("WAL summaries are not used: {error}");
            None
        }
    }
}

impl Since {
    /// Whether a backup that starts there, of a cluster with or without checksums, may believe summaries.
    fn can_be_told(&self, timeline: TimelineId, start: Lsn, checksums: bool) -> bool {
        self.timeline == timeline && self.stop <= start && self.data_checksums == checksums
    }
}

async fn read(session: &Session, timeline: TimelineId, from: Lsn, to: Lsn) -> Result<Option<Changed>> {
    if !session.summarizes_wal().await? {
        return Ok(None);
    }
    let summaries = complete(session, timeline, from, to).await?;
    let mut changed = Changed::default();
    for summary in summaries {
        session.wal_summary(timeline, summary, SummaryRows::All, |row| changed.take(row)).await?;
        if changed.held > MOST && changed.settle() > MOST / 2 {
            tracing::info!("WAL summaries name more than {} blocks: every block is read", MOST / 2);
            return Ok(None);
        }
    }
    changed.settle();
    Ok(Some(changed))
}

/// The summaries from `from` to `to`, waited for.
async fn complete(session: &Session, timeline: TimelineId, from: Lsn, to: Lsn) -> Result<Vec<(Lsn, Lsn)>> {
    let (mut reached, mut since) = (from, Instant::now());
    loop {
        let mut summaries = session.wal_summaries(timeline).await?;
        summaries.retain(|(start, end)| *start < to && *end > from);
        let now = covered(&mut summaries, from);
        if now >= to {
            return Ok(summaries);
        }
        if now > reached {
            (reached, since) = (now, Instant::now());
        }
        // Summaries are written in the order of the log: what is missing before one will not come.
        if since.elapsed() > STILL || summaries.iter().any(|(start, _)| *start > now) {
            return Err(Error::failed(format!(
                "they cover the log of timeline {timeline} from {from} to {now}, but not to {to}"
            )));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// How far the log is covered from `from` on without a gap. Puts the stretches in order.
fn covered(summaries: &mut [(Lsn, Lsn)], from: Lsn) -> Lsn {
    summaries.sort_unstable();
    let further = |reached: Lsn, (start, end): &(Lsn, Lsn)| if *start <= reached { reached.max(*end) } else { reached };
    summaries.iter().fold(from, further)
}

impl Changed {
    fn take(&mut self, row: SummaryRow) {
        if row.relation == 0 {
            self.databases.insert((row.tablespace, row.database));
            return;
        }
        let blocks = self.relations.entry((row.tablespace, row.database, row.relation)).or_default();
        if row.is_limit {
            blocks.limit = Some(blocks.limit.unwrap_or(row.block).min(row.block));
        } else {
            blocks.numbers.push(row.block);
            self.held += 1;
        }
    }

    /// Puts the numbers in order, each once; how many there are.
    fn settle(&mut self) -> usize {
        self.held = 0;
        for blocks in self.relations.values_mut() {
            blocks.numbers.sort_unstable();
            blocks.numbers.dedup();
            self.held += blocks.numbers.len();
        }
        self.held
    }

    /// The blocks of a file, counted from its start and rising, that may differ from the ancestor's: the file has `now`
    /// blocks, then it had `then`, and `first` is the number of its first one in the fork. `None` when that is all.
    #[must_use]
    pub fn blocks(&self, path: &Path, first: u32, then: u32, now: u32) -> Option<Vec<u32>> {
        let file = RelationFile::parse(path.file_name()?.to_str()?).filter(|file| file.fork == Fork::Main)?;
        let (tablespace, database) = database_of(path.parent()?)?;
        if self.databases.contains(&(tablespace, database)) {
            return None;
        }
        let nothing = Blocks::default();
        let blocks = self.relations.get(&(tablespace, database, file.number)).unwrap_or(&nothing);
        let limit = blocks.limit.map_or(u32::MAX, |limit| limit.saturating_sub(first));
        let kept = then.min(now).min(limit);
        if kept == 0 {
            return None;
        }
        let from = blocks.numbers.partition_point(|number| *number < first);
        let named = blocks.numbers[from..].iter().map(|number| number - first).take_while(|number| *number < kept);
        Some(named.chain(kept..now).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(relation: u32, block: u32, is_limit: bool) -> SummaryRow {
        SummaryRow { tablespace: 1663, database: 5, relation, block, is_limit }
    }

    fn of(rows: impl IntoIterator<Item = SummaryRow>) -> Changed {
        let mut changed = Changed::default();
        rows.into_iter().for_each(|row| changed.take(row));
        changed.settle();
        changed
    }

    fn blocks(changed: &Changed, path: &str, first: u32, then: u32, now: u32) -> Option<Vec<u32>> {
        changed.blocks(Path::new(path), first, then, now)
    }

    #[test]
    fn what_is_named_or_new_or_was_gone_is_read() {
        let changed = of([row(7, 9, false), row(7, 3, false), row(7, 3, false), row(8, 4, true), row(8, 2, false)]);
        // One that no record changed.
        assert_eq!(blocks(&changed, "base/5/6", 0, 10, 10), Some(vec![]));
        assert_eq!(blocks(&changed, "base/5/7", 0, 10, 10), Some(vec![3, 9]));
        // It has grown, by blocks that need no record when they are zeros.
        assert_eq!(blocks(&changed, "base/5/7", 0, 5, 11), Some(vec![3, 5, 6, 7, 8, 9, 10]));
        assert_eq!(blocks(&changed, "base/5/7", 0, 10, 6), Some(vec![3]));
        // Cut to 4 blocks at some time, and grown again.
        assert_eq!(blocks(&changed, "base/5/8", 0, 6, 7), Some(vec![2, 4, 5, 6]));
        assert_eq!(blocks(&changed, "base/5/8", 0, 3, 3), Some(vec![2]));
    }

    #[test]
    fn later_files_of_a_fork_count_from_their_own_start() {
        let changed =
            of([row(7, 99, false), row(7, 100, false), row(7, 205, false), row(8, 150, true), row(9, 100, true)]);
        assert_eq!(blocks(&changed, "base/5/7.1", 100, 100, 100), Some(vec![0]));
        assert_eq!(blocks(&changed, "base/5/7.2", 200, 10, 10), Some(vec![5]));
        assert_eq!(blocks(&changed, "base/5/8", 0, 100, 100), Some(vec![]));
        assert_eq!(blocks(&changed, "base/5/8.1", 100, 60, 60), Some((50..60).collect()));
        // Gone and made again.
        assert_eq!(blocks(&changed, "base/5/9.1", 100, 60, 60), None);
    }

    #[test]
    fn what_was_made_anew_and_what_is_no_main_fork_is_read_wholly() {
        let mut changed = of([row(7, 0, true), row(7, 1, false)]);
        for path in ["base/5/7", "base/5/6_fsm", "base/5/6_vm", "base/5/6_init", "base/5/PG_VERSION", "pg_xact/0000"] {
            assert_eq!(blocks(&changed, path, 0, 10, 10), None, "{path}");
        }
        assert_eq!(blocks(&changed, "base/5/6", 0, 0, 10), None);
        // A database that is a copy of files.
        changed.take(SummaryRow { tablespace: 1663, database: 6, relation: 0, block: 0, is_limit: true });
        assert_eq!(blocks(&changed, "base/6/8", 0, 10, 10), None);
        assert_eq!(blocks(&changed, "pg_tblspc/1700/PG_17_1/6/8", 0, 10, 10), Some(vec![]));
        assert_eq!(blocks(&changed, "base/5/8", 0, 10, 10), Some(vec![]));
    }

    #[test]
    fn summaries_are_not_believed_across_timelines_or_before_the_ancestors_end() {
        let [first, second] = [1, 2].map(|number| TimelineId::new(number).unwrap());
        let since = Since { timeline: first, start: Lsn(100), stop: Lsn(200), data_checksums: true };
        assert!(since.can_be_told(first, Lsn(200), true));
        assert!(!since.can_be_told(second, Lsn(300), true));
        assert!(!since.can_be_told(first, Lsn(150), true));
        assert!(!since.can_be_told(first, Lsn(300), false));
    }

    #[test]
    fn a_gap_ends_what_is_covered() {
        let at = |pairs: &[(u64, u64)], from| {
            let mut summaries: Vec<_> = pairs.iter().map(|(a, b)| (Lsn(*a), Lsn(*b))).collect();
            covered(&mut summaries, Lsn(from)).0
        };
        assert_eq!(at(&[(30, 40), (10, 20), (20, 30)], 15), 40);
        assert_eq!(at(&[(10, 20), (21, 30)], 15), 20);
        assert_eq!(at(&[(10, 20), (12, 18), (18, 30)], 10), 30);
        assert_eq!(at(&[(16, 20)], 15), 15);
        assert_eq!(at(&[], 15), 15);
    }
}
