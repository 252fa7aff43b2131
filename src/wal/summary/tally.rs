//! Counts the rows that transactions change within one segment, and keeps what a head has room for.
//!
//! Almost all transactions of a busy server change a row or two, and are over within the segment: nobody looks for them,
//! and they would fill any head. What adds up to something over many segments is what goes on at the end of one. So what a
//! transaction did is weighed when it ends, subtransactions together with it, and of those that go on all is kept.

use std::{
    cmp::Reverse,
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use super::{FEW, RowCount, RowCounts, rest::Rest};
use crate::wal::{Fact, Record, RelFile, TransactionEnd};

/// How many pairs of file and transaction are held at a time, at most, where they are bounded.
const PAIRS: usize = 4 << 10;
/// And where they are not.
const PAIRS_OF_WHOLE: usize = 256 << 10;
/// The most pairs with few changes of transactions that ended: a segment with more of them tells none.
const SMALL: usize = 32;
/// How many files are sought one by one.
const NEAR: usize = 24;

/// Counts rows by file and transaction.
#[derive(Debug)]
pub(super) struct Tally {
    bounded: bool,
    /// What transactions did that have not ended.
    open: HashMap<u32, Work, Plain>,
    /// How many pairs `open` has.
    pairs: usize,
    /// The transaction of the last record, taken out of `open`: the next one is often of the same.
    last: Option<(u32, Work)>,
    /// The top transactions of subtransactions, where they are told before the end.
    tops: HashMap<u32, u32>,
    /// What transactions did that ended.
    ended: Vec<RowCount>,
    /// How many of these are small.
    small: usize,
    rest: Rest,
}

/// What one transaction did.
#[derive(Debug, Default)]
struct Work {
    counts: Vec<RowCount>,
    /// The places of all, when there are many.
    places: HashMap<RelFile, usize, Plain>,
}

/// Spreads xids and numbers of files, which follow each other. A hash that guards against chosen ones would only cost time:
/// whoever can choose them can write any WAL.
#[derive(Debug, Default)]
struct Numbers(u64);

type Plain = BuildHasherDefault<Numbers>;

impl Hasher for Numbers {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32((*byte).into()));
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

impl Tally {
    pub fn new(bounded: bool) -> Self {
        Self {
            bounded,
            open: HashMap::default(),
            pairs: 0,
            last: None,
            tops: HashMap::new(),
            ended: Vec::new(),
            small: 0,
            rest: Rest::default(),
        }
    }

    /// Takes in a record.
    pub fn count(&mut self, record: &Record) {
        match &record.fact {
            Fact::Commit(end) | Fact::Abort(end) => self.end(end),
            Fact::Assignment { top, subtransactions } if self.bounded => {
                self.tops.extend(subtransactions.iter().map(|xid| (*xid, *top)));
                if self.tops.len() > self.most() {
                    self.put_back();
                    self.merge_subtransactions();
                }
            }
            fact => {
                if let Some(count) = RowCount::of(record).filter(|count| !self.bounded || !count.is_of_catalogue()) {
                    self.change(count, fact);
                }
            }
        }
    }

    fn change(&mut self, count: RowCount, fact: &Fact) {
        let work = match &mut self.last {
            Some((xid, work)) if *xid == count.xid => work,
            _ => {
                self.put_back();
                let work = self.open.remove(&count.xid).unwrap_or_default();
                &mut self.last.insert((count.xid, work)).1
            }
        };
        let before = work.counts.len();
        work.at(count).add(fact);
        self.pairs += work.counts.len() - before;
        if self.pairs > self.most() {
            self.put_back();
            self.make_room();
        }
    }

    fn most(&self) -> usize {
        if self.bounded { PAIRS } else { PAIRS_OF_WHOLE }
    }

    fn put_back(&mut self) {
        if let Some((xid, work)) = self.last.take() {
            self.open.insert(xid, work);
        }
    }

    fn take(&mut self, xid: u32) -> Option<Work> {
        let work = match self.last.take_if(|(last, _)| *last == xid) {
            Some((_, work)) => Some(work),
            None => self.open.remove(&xid),
        };
        self.pairs -= work.as_ref().map_or(0, |work| work.counts.len());
        work
    }

    fn end(&mut self, end: &TransactionEnd) {
        let mut work = self.take(end.xid);
        for xid in &end.subtransactions {
            let Some(sub) = self.take(*xid) else { continue };
            if self.bounded {
                work.get_or_insert_default().merge(end.xid, sub);
            } else {
                self.ended.extend(sub.counts);
            }
        }
        if !self.tops.is_empty() {
            end.subtransactions.iter().for_each(|xid| _ = self.tops.remove(xid));
        }
        // The pages of a file that takes the place of another one tell how it was filled.
        let replaces = !end.removed.is_empty();
        for count in work.into_iter().flat_map(|work| work.counts) {
            if self.bounded && count.is_small() && !(replaces && count.images > 0) {
                self.small += 1;
                if self.small > SMALL {
                    self.rest.add(&count, false);
                    continue;
                }
            }
            self.ended.push(count);
        }
        if self.ended.len() > self.most() {
            self.forget_ended();
        }
    }

    /// Gives up half of what ended: that with the fewest changes.
    fn forget_ended(&mut self) {
        self.ended.sort_unstable_by_key(RowCount::rank);
        self.ended.drain(self.most() / 2..).for_each(|count| self.rest.add(&count, false));
    }

    /// Puts subtransactions to their top ones, then gives up half of what is still too much: that with the fewest changes.
    fn make_room(&mut self) {
        self.merge_subtransactions();
        if self.pairs <= self.most() / 4 * 3 {
            return;
        }
        let mut counts: Vec<RowCount> = self.open.drain().flat_map(|(_, work)| work.counts).collect();
        counts.sort_unstable_by_key(RowCount::rank);
        counts.drain(self.most() / 2..).for_each(|count| self.rest.add(&count, true));
        self.pairs = counts.len();
        counts.into_iter().for_each(|count| *self.open.entry(count.xid).or_default().at(count) = count);
    }

    fn merge_subtransactions(&mut self) {
        let tops = std::mem::take(&mut self.tops);
        for (xid, top) in &tops {
            let Some(sub) = self.take(*xid) else { continue };
            let work = self.open.entry(*top).or_default();
            let before = work.counts.len();
            work.merge(*top, sub);
            self.pairs += work.counts.len() - before;
        }
    }

    /// What there is, those with the most changes first.
    pub fn finish(mut self) -> RowCounts {
        self.put_back();
        self.merge_subtransactions();
        if self.small > SMALL {
            let rest = &mut self.rest;
            self.ended.retain(|count| {
                // A file that replaces another one has images.
                let small = count.is_small() && count.images == 0;
                if small {
                    rest.add(count, false);
                }
                !small
            });
        }
        let mut items = self.ended;
        let open = self.open.into_values().flat_map(|work| work.counts);
        items.extend(open.map(|count| RowCount { unended: true, ..count }));
        let mut counts = RowCounts { items, cut: false, rest: None };
        counts.leave_out(self.rest);
        counts.sort();
        counts
    }
}

impl Work {
    /// The count of that file; the given one when there is none yet.
    fn at(&mut self, count: RowCount) -> &mut RowCount {
        let near = self.counts.len() <= NEAR;
        let known = if near {
            self.counts.iter().position(|known| known.file == count.file)
        } else {
            if self.places.is_empty() {
                self.places.extend(self.counts.iter().enumerate().map(|(place, known)| (known.file, place)));
            }
            self.places.get(&count.file).copied()
        };
        let place = known.unwrap_or_else(|| {
            self.counts.push(count);
            if !near {
                self.places.insert(count.file, self.counts.len() - 1);
            }
            self.counts.len() - 1
        });
        &mut self.counts[place]
    }

    /// Takes over what a subtransaction did.
    fn merge(&mut self, xid: u32, sub: Self) {
        for count in sub.counts {
            let empty = RowCount { xid, inserted: 0, updated: 0, deleted: 0, images: 0, ..count };
            let sum = self.at(empty);
            sum.lsn = sum.lsn.min(count.lsn);
            sum.inserted = sum.inserted.saturating_add(count.inserted);
            sum.updated = sum.updated.saturating_add(count.updated);
            sum.deleted = sum.deleted.saturating_add(count.deleted);
            sum.images = sum.images.saturating_add(count.images);
        }
    }
}

impl RowCount {
    /// Whether it has fewer changes than anybody looks for.
    pub(super) fn is_small(&self) -> bool {
        self.total() < FEW
    }

    /// Whether the file is that of a catalogue, as `initdb` made it: each `CREATE TABLE` writes to a dozen of them.
    fn is_of_catalogue(&self) -> bool {
        /// `FirstNormalObjectId` in `src/include/access/transam.h`.
        const FIRST_NORMAL: u32 = 16384;
        self.file.number < FIRST_NORMAL
    }

    /// The order in which counts are kept: what was updated and deleted can be looked for.
    pub(super) fn rank(&self) -> impl Ord + use<> {
        (Reverse(self.updated.saturating_add(self.deleted)), Reverse(self.total()), self.lsn)
    }
}

#[cfg(test)]
mod tests;
