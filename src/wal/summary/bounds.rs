//! What of a summary is kept where there is no room for all.

use serde::Serialize;

use super::{Ending, List, Rest, RowCount, RowCounts, Summary, Told};
use crate::wal::{Change, Fact, WalLevel, runs};

/// What the fields of fixed size may take, in bytes of JSON.
const FIXED: usize = 1 << 10;
/// The most bytes of JSON that one fact may take.
const FACT: usize = 4 << 10;
/// The most items that one fact may list.
const LISTED: usize = 80;
/// The most bytes of a text.
const TEXT: usize = 512;
/// The most counts of rows that have many changes.
const LARGE: usize = 64;
/// The most counts of rows with few changes, of transactions that go on past the segment.
const UNENDED: usize = 32;
/// The most bytes of JSON that the counts of rows may take.
const ROWS: usize = 12 << 10;

impl Summary {
    /// The most bytes of JSON that a bounded summary takes.
    pub const LONGEST: usize = 48 << 10;

    /// Cuts the lists so that the summary fits into [`Summary::LONGEST`].
    pub(super) fn bound(&mut self) {
        if let Ending::Broken { why, .. } = &mut self.ending {
            shorten_text(why, TEXT / 4);
        }
        let mut room = Self::LONGEST - FIXED - length(&self.lead) - length(&self.tail);
        room -= self.turns.fit(room * 2 / 5, turn_rank);
        room -= self.changes.fit(room * 5 / 8, change_rank);
        self.rows.fit(room.min(ROWS));
    }

    /// Keeps the memory small when a fact was added: cuts its lists and texts, and drops what matters least when there are
    /// more than `items` facts.
    pub(super) fn prune(&mut self, items: usize) {
        for (list, rank) in [(&mut self.turns, turn_rank as fn(&Told) -> u8), (&mut self.changes, change_rank)] {
            if let Some(told) = list.items.last_mut() {
                list.cut |= shorten(&mut told.fact);
            }
            if list.items.len() > items {
                list.keep(items / 2, rank);
            }
        }
    }
}

impl List<Told> {
    /// Keeps what has room in so many bytes of JSON, the lowest rank first. The bytes that were taken.
    fn fit(&mut self, room: usize, rank: fn(&Told) -> u8) -> usize {
        // A comma each; the brackets are among what is fixed.
        let lengths: Vec<usize> = self.items.iter().map(|told| length(told) + 1).collect();
        let taken = lengths.iter().sum();
        if taken <= room && lengths.iter().all(|length| *length <= FACT) {
            return taken;
        }
        let mut order: Vec<usize> = (0..self.items.len()).collect();
        order.sort_by_key(|at| rank(&self.items[*at]));
        let mut kept = vec![false; self.items.len()];
        let mut left = room;
        for at in order {
            if lengths[at] <= FACT && lengths[at] <= left {
                left -= lengths[at];
                kept[at] = true;
            }
        }
        self.retain(&kept);
        room - left
    }

    /// Keeps so many items, the lowest rank first.
    fn keep(&mut self, items: usize, rank: fn(&Told) -> u8) {
        let mut order: Vec<usize> = (0..self.items.len()).collect();
        order.sort_by_key(|at| rank(&self.items[*at]));
        let mut kept = vec![false; self.items.len()];
        order.into_iter().take(items).for_each(|at| kept[at] = true);
        self.retain(&kept);
    }

    fn retain(&mut self, kept: &[bool]) {
        let mut kept = kept.iter();
        self.items.retain(|_| kept.next() == Some(&true));
        self.cut = true;
    }
}

impl RowCounts {
    /// Keeps what has room in so many bytes of JSON.
    fn fit(&mut self, room: usize) {
        let (small, large): (Vec<_>, Vec<_>) = self.items.drain(..).partition(|c| c.unended && c.is_small());
        let (small, large) = (kept(small, UNENDED, RowCount::age), kept(large, LARGE, RowCount::rank));
        let mut left = room;
        let mut fits = |count: &RowCount| {
            let length = length(count) + 1;
            let fits = length <= left;
            left -= if fits { length } else { 0 };
            fits
        };
        let mut rest = Rest::default();
        for (count, wanted) in large.into_iter().chain(small) {
            if wanted && fits(&count) {
                self.items.push(count);
            } else {
                rest.add(&count, count.unended);
            }
        }
        self.leave_out(rest);
        self.sort();
    }
}

/// Each with whether it is among the first so many by that order.
fn kept<K: Ord>(
    mut counts: Vec<RowCount>,
    most: usize,
    order: impl FnMut(&RowCount) -> K,
) -> impl Iterator<Item = (RowCount, bool)> {
    counts.sort_by_cached_key(order);
    counts.into_iter().enumerate().map(move |(place, count)| (count, place < most))
}

impl RowCount {
    /// Files that were written as wholes come first, then transactions by their first record.
    fn age(&self) -> impl Ord + use<> {
        (self.images == 0, self.lsn)
    }
}

fn length(value: &impl Serialize) -> usize {
    serde_json::to_vec(value).map_or(usize::MAX / 4, |json| json.len())
}

/// What decides where recovery can go comes first, then open transactions.
fn turn_rank(told: &Told) -> u8 {
    match &told.fact {
        // It voids the tail of the segment before.
        Fact::OverwriteContrecord { .. } => 0,
        Fact::Checkpoint(checkpoint) if checkpoint.timeline != checkpoint.previous => 0,
        Fact::Checkpoint(checkpoint) if checkpoint.wal_level == Some(WalLevel::Minimal) => 1,
        Fact::CheckpointRedo { wal_level: Some(WalLevel::Minimal) } => 1,
        Fact::Prepare(_) | Fact::Commit(_) | Fact::Abort(_) => 2,
        Fact::Checkpoint(_) | Fact::CheckpointRedo { .. } => 3,
        _ => 1,
    }
}

/// What removes something comes first, and last the transactions that only have subtransactions.
fn change_rank(told: &Told) -> u8 {
    match &told.fact {
        Fact::DatabaseCreate { .. } | Fact::DatabaseDrop { .. } => 0,
        Fact::Commit(end) | Fact::Abort(end) if end.removed.is_empty() && end.dropped.is_empty() => 5,
        Fact::Commit(_) | Fact::Abort(_) => 0,
        Fact::Rows(rows) if rows.change == Change::Update => 4,
        Fact::Rows(_) | Fact::FileTruncate { .. } | Fact::RelationMap { .. } => 1,
        Fact::Message { .. } => 2,
        _ => 3,
    }
}

/// Cuts lists and texts. Whether anything was cut.
fn shorten(fact: &mut Fact) -> bool {
    match fact {
        Fact::Commit(end) | Fact::Abort(end) => {
            let lists = shorten_list(&mut end.removed) | shorten_list(&mut end.dropped);
            let lists = lists | shorten_xids(&mut end.subtransactions);
            lists | end.gid.as_mut().is_some_and(|gid| shorten_text(gid, TEXT))
        }
        Fact::DatabaseDrop { tablespaces, .. } => shorten_list(tablespaces),
        Fact::Locks { locks } => shorten_list(locks),
        Fact::Prepare(prepared) => shorten_text(&mut prepared.gid, TEXT),
        Fact::RestorePoint { name: text, .. } => shorten_text(text, TEXT),
        _ => false,
    }
}

fn shorten_list<T>(list: &mut Vec<T>) -> bool {
    let cut = list.len() > LISTED;
    list.truncate(LISTED);
    list.shrink_to_fit();
    cut
}

fn shorten_xids(xids: &mut Vec<u32>) -> bool {
    let kept = runs::of(xids).take(LISTED).map(<[u32]>::len).sum::<usize>().min(runs::MOST / 2);
    let cut = xids.len() > kept;
    xids.truncate(kept);
    xids.shrink_to_fit();
    cut
}

fn shorten_text(text: &mut String, most: usize) -> bool {
    let cut = text.len() > most;
    text.truncate(text.floor_char_boundary(most));
    cut
}
