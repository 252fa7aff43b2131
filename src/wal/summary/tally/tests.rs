//! What a tally of rows counts, and what it tells of what there was no room for.

#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

use chrono::DateTime;

use super::*;
use crate::{
    postgres::Lsn,
    wal::{Change, Rows},
};

/// A tally of a head, and the place of the next record.
struct Log {
    tally: Tally,
    lsn: u64,
}

fn file(number: u32) -> RelFile {
    RelFile { tablespace: 1663, database: 5, number }
}

impl Log {
    fn new() -> Self {
        Self { tally: Tally::new(true), lsn: 0x100_0000 }
    }

    fn tell(&mut self, xid: u32, fact: Fact) {
        let (start, end) = (Lsn(self.lsn), Lsn(self.lsn + 64));
        self.lsn += 64;
        self.tally.count(&Record { start, end, prev: Lsn(0), xid, rmid: 0, info: 0, length: 64, fact });
    }

    fn delete(&mut self, xid: u32, number: u32, rows: u32) {
        for _ in 0..rows {
            let rows = Rows { change: Change::Delete, file: file(number), block: 1, offset: 1, count: 1 };
            self.tell(xid, Fact::Rows(rows));
        }
    }

    fn end(&mut self, xid: u32, subtransactions: Vec<u32>) {
        let end = TransactionEnd { subtransactions, ..TransactionEnd::new(xid, DateTime::UNIX_EPOCH) };
        self.tell(xid, Fact::Commit(end.into()));
    }

    /// What many clients do: each transaction is short, and is over soon.
    fn work(&mut self, transactions: u32) {
        for xid in 100_000..100_000 + transactions {
            for number in [16_400, 16_410, 16_420] {
                self.delete(xid, number, 1);
            }
            self.end(xid, Vec::new());
        }
    }

    /// The counts that are listed: transaction, deleted rows, and whether it goes on; and what is left out.
    fn finish(self) -> (Vec<(u32, u64, bool)>, Rest) {
        let counts = self.tally.finish();
        assert_eq!(counts.cut, counts.rest.is_some());
        let listed = counts.items.iter().map(|count| (count.xid, count.deleted, count.unended));
        (listed.collect(), counts.rest.unwrap_or_default())
    }
}

#[test]
fn all_is_listed_as_long_as_there_is_little() {
    let mut log = Log::new();
    log.work(5);
    log.delete(7, 1259, 100);
    let (listed, rest) = log.finish();
    assert_eq!((listed.len(), rest), (15, Rest::default()), "catalogues apart");
}

#[test]
fn many_small_transactions_are_a_sum() {
    let mut log = Log::new();
    log.delete(7, 16_400, 1);
    log.delete(8, 16_400, 20);
    log.delete(9, 16_400, 19);
    log.end(8, Vec::new());
    log.end(9, Vec::new());
    log.work(10_000);
    log.delete(7, 16_400, 1);
    let (listed, rest) = log.finish();
    assert_eq!(listed, [(8, 20, false), (7, 2, true)]);
    assert_eq!((rest.pairs, rest.deleted, rest.most, rest.most_unended), (30_001, 30_019, 19, 0));
}

#[test]
fn a_loop_of_subtransactions_is_one_deletion() {
    for (ends, busy) in [(true, false), (true, true), (false, false), (false, true)] {
        let mut log = Log::new();
        let subs: Vec<u32> = (1_000..31_000).collect();
        for (n, some) in subs.chunks(64).enumerate() {
            some.iter().for_each(|xid| log.delete(*xid, 16_400, 1));
            if busy && n % 100 == 0 {
                log.work(1_500);
            }
            if some.len() == 64 {
                log.tell(some[0], Fact::Assignment { top: 999, subtransactions: some.to_vec() });
            }
        }
        if ends {
            log.end(999, subs);
        }
        let (listed, rest) = log.finish();
        // The last ones were not told yet.
        let sum: u64 = listed.iter().map(|(_, deleted, _)| deleted).sum();
        assert_eq!(sum, 30_000);
        assert_eq!(listed[0], if ends { (999, 30_000, false) } else { (999, 29_952, true) });
        assert_eq!(listed.len(), if ends { 1 } else { 49 });
        assert_eq!(rest.most_unended, 0);
    }
}

#[test]
fn what_there_is_no_room_for_is_told() {
    let mut log = Log::new();
    let deleted: u64 = (0..20_000_u32).map(|n| u64::from(n % 7 + 1)).sum();
    for n in 0..20_000 {
        log.delete(1_000 + n, 16_400, n % 7 + 1);
    }
    log.delete(3, 16_400, 50);
    let (listed, rest) = log.finish();
    assert_eq!(listed[0], (3, 50, true));
    assert!((PAIRS / 2..=PAIRS).contains(&listed.len()), "{}", listed.len());
    assert_eq!(listed.iter().map(|count| count.1).sum::<u64>() + rest.deleted, deleted + 50);
    assert!(rest.most_unended == 7 && rest.pairs >= 20_000 - PAIRS as u64, "{rest:?}");
}

#[test]
fn a_transaction_of_many_tables_counts_each() {
    let mut log = Log::new();
    for turn in 0..3 {
        for number in 0..1_000 {
            log.delete(7, 20_000 + number, 10 + turn);
        }
    }
    log.end(7, Vec::new());
    let (listed, rest) = log.finish();
    assert_eq!(listed, vec![(7, 33, false); 1_000]);
    assert_eq!(rest, Rest::default());
}

#[test]
fn how_a_file_was_filled_that_replaces_another_is_kept() {
    let mut log = Log::new();
    log.tell(7, Fact::PageImage { file: file(16_500), pages: 3 });
    log.tell(8, Fact::PageImage { file: file(16_501), pages: 3 });
    let end = TransactionEnd { removed: vec![file(16_400)], ..TransactionEnd::new(7, DateTime::UNIX_EPOCH) };
    log.tell(7, Fact::Commit(end.into()));
    log.work(1_000);
    let (listed, _) = log.finish();
    assert_eq!(listed, [(7, 0, false), (8, 0, true)]);
}
