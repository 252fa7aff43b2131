//! Hand-made logs, with the numbers that PostgreSQL writes for such statements.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

use chrono::{DateTime, Utc};

use super::{
    finding::{FindKind, Finding},
    gather::{Gatherer, Wanted},
    judge::Judge,
    names::Names,
};
use crate::{
    postgres::{
        Lsn, Version,
        sql::catalogue::{DatabaseName, RelationKind, RelationName},
    },
    repository::CatalogueEntry,
    wal::{Change, Dropped, Fact, List, Lock, RelFile, Rest, RowCount, RowCounts, Rows, Summary, Told, TransactionEnd},
};

const SHOP: u32 = 5;

fn file(number: u32) -> RelFile {
    RelFile { tablespace: 1663, database: SHOP, number }
}

fn time(lsn: u64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_795_255_200 + i64::try_from(lsn).unwrap(), 0).unwrap()
}

/// A log that is written line by line: each at the next LSN.
struct Log {
    version: u32,
    wanted: Wanted,
    lsn: u64,
    summary: Summary,
    names: Names,
}

impl Log {
    fn new(version: u32) -> Self {
        let mut names = Names::default();
        let database = DatabaseName { oid: SHOP, name: "shop".into(), tablespace: 1663, listed: true };
        names.add(Lsn(1), CatalogueEntry::Database(database));
        let wanted = Wanted { rows: Some(1000), marks_invalid: Some(true), ..Wanted::default() };
        Self { version, wanted, lsn: 100, summary: Summary::default(), names }
    }

    fn relation(&mut self, at: u64, (oid, number): (u32, u32), name: &str, kind: RelationKind, parent: Option<u32>) {
        let (schema, name) = name.split_once('.').unwrap_or(("public", name));
        self.names.add(
            Lsn(at),
            CatalogueEntry::Relation(RelationName {
                database: SHOP,
                oid,
                schema: schema.into(),
                name: name.into(),
                kind,
                file: Some(number).filter(|n| *n != 0),
                tablespace: 1663,
                parent,
            }),
        );
    }

    /// A table with its index, as a catalogue has it.
    fn table(mut self, oid: u32, number: u32, name: &str) -> Self {
        self.relation(1, (oid, number), name, RelationKind::Table, None);
        self.relation(1, (oid + 1, number + 1), &format!("{name}_pkey"), RelationKind::Index, Some(oid));
        self
    }

    fn tell(&mut self, xid: u32, fact: Fact) -> &mut Self {
        self.lsn += 10;
        self.summary.changes.items.push(Told { lsn: Lsn(self.lsn), end: Lsn(self.lsn + 8), xid, fact });
        self
    }

    fn lock(&mut self, xid: u32, relations: &[u32]) -> &mut Self {
        let locks = relations.iter().map(|oid| Lock { xid, database: SHOP, relation: *oid }).collect();
        self.tell(0, Fact::Locks { locks })
    }

    fn create(&mut self, xid: u32, numbers: &[u32]) -> &mut Self {
        for number in numbers {
            self.tell(xid, Fact::FileCreate { file: file(*number) });
        }
        self
    }

    fn rows(&mut self, xid: u32, number: u32, (inserted, updated, deleted): (u64, u64, u64), images: u64) -> &mut Self {
        let lsn = Lsn(self.lsn + 1);
        let rows = RowCount { file: file(number), xid, lsn, inserted, updated, deleted, images, unended: false };
        self.summary.rows.items.push(rows);
        self
    }

    /// `removed` in the order of the statements; the record has them the other way round.
    fn end(&mut self, xid: u32, subs: &[u32], removed: &[u32], dropped: &[u32]) -> TransactionEnd {
        let mut end = TransactionEnd::new(xid, time(self.lsn + 10));
        end.subtransactions = subs.to_vec();
        end.removed = removed.iter().rev().map(|n| file(*n)).collect();
        if self.version >= 15 {
            end.dropped = dropped.iter().map(|oid| Dropped { database: SHOP, relation: *oid }).collect();
        }
        end
    }

    fn commit(&mut self, xid: u32, subs: &[u32], removed: &[u32], dropped: &[u32]) -> u64 {
        let end = self.end(xid, subs, removed, dropped);
        self.tell(xid, Fact::Commit(Box::new(end)));
        self.lsn
    }

    fn findings(mut self) -> Vec<Finding> {
        let mut gatherer = Gatherer::new(self.wanted);
        self.summary.changes = List { items: std::mem::take(&mut self.summary.changes.items), cut: false };
        gatherer.segment(&self.summary);
        gatherer.finish();
        self.names.follow(std::mem::take(&mut gatherer.named), &gatherer);
        let least = self.wanted.rows.unwrap_or(u64::MAX);
        let mut judge = Judge::new(&mut self.names, Version(self.version), least, self.wanted.xid.is_some());
        for happening in &gatherer.happenings {
            judge.judge(happening);
        }
        judge.finish()
    }

    fn words(self) -> Vec<String> {
        self.findings().into_iter().map(|f| f.what).collect()
    }
}

#[test]
fn a_dropped_table_is_named_with_its_commit() {
    for version in [14, 15, 18] {
        let mut log = Log::new(version).table(16389, 16389, "orders");
        log.lock(700, &[16389, 16390]);
        let commit = log.commit(700, &[], &[16389, 16390], &[16389, 16390]);
        let findings = log.findings();
        assert_eq!(findings.len(), 1, "{findings:?}");
        let found = &findings[0];
        assert_eq!((found.kind, found.what.as_str()), (FindKind::Drop, "dropped table shop.public.orders"));
        assert_eq!((found.lsn, found.stop, found.xid), (Lsn(commit), Lsn(commit), Some(700)));
        assert_eq!(found.time, Some(time(commit)));
        assert_eq!(found.relations.len(), 1);
    }
}

#[test]
fn what_is_rolled_back_is_no_mishap_unless_it_is_asked_for() {
    for asked in [None, Some(700)] {
        let mut log = Log::new(17).table(16389, 16389, "orders");
        log.wanted.xid = asked;
        log.lock(700, &[16389]).rows(700, 16389, (3, 0, 5000), 0);
        let end = log.end(700, &[], &[16500], &[]);
        log.tell(700, Fact::Abort(Box::new(end)));
        let words = log.words();
        match asked {
            None => assert!(words.is_empty(), "{words:?}"),
            Some(_) => {
                let all = "rolled back: inserted 3 in shop.public.orders, deleted 5000 in shop.public.orders";
                assert_eq!(words, [all]);
            }
        }
    }
}

#[test]
fn a_truncated_table_keeps_its_name_through_its_files() {
    for version in [14, 16] {
        let mut log = Log::new(version).table(16389, 16389, "orders");
        log.lock(700, &[16389]).create(700, &[16500, 16501]).rows(700, 16501, (0, 0, 0), 1);
        log.commit(700, &[], &[16389, 16390], &[]);
        // The rows lie in the new file now, and a second time another one is made.
        log.rows(701, 16500, (0, 0, 2000), 0);
        log.commit(701, &[702], &[], &[]);
        log.lock(703, &[16389]).create(703, &[16600, 16601]);
        log.commit(703, &[], &[16500, 16501], &[]);
        assert_eq!(
            log.words(),
            [
                "truncated table shop.public.orders",
                "deleted 2000 rows of shop.public.orders",
                "truncated table shop.public.orders"
            ],
            "{version}"
        );
    }
}

#[test]
fn a_table_that_is_written_anew_lends_a_transient_ones_file() {
    for version in [14, 17] {
        let mut log = Log::new(version).table(16389, 16389, "orders");
        // VACUUM FULL: the transient table 16500, then the index.
        log.lock(700, &[16389]).create(700, &[16500, 16503]).lock(700, &[16500]).rows(700, 16500, (10_000, 0, 0), 0);
        log.commit(700, &[], &[16390, 16389], &[16500]);
        log.rows(701, 16500, (0, 3000, 0), 0);
        log.commit(701, &[702], &[], &[]);
        let mut findings = log.findings();
        let update = findings.pop().unwrap();
        assert_eq!((update.kind, update.updated), (FindKind::Update, 3000));
        assert_eq!(update.what, "updated 3000 rows of shop.public.orders", "{version}");
        assert_eq!(findings.pop().unwrap().what, "rewrote table shop.public.orders");
        assert!(findings.is_empty(), "{findings:?}");
    }
}

#[test]
fn a_move_to_another_tablespace_is_no_truncation() {
    let mut log = Log::new(16).table(16389, 16389, "orders");
    log.lock(700, &[16389]).create(700, &[16500]).rows(700, 16500, (0, 0, 0), 80);
    log.commit(700, &[], &[16389], &[]);
    assert_eq!(log.words(), ["rewrote table shop.public.orders"]);
}

#[test]
fn an_index_that_is_built_anew_is_not_told() {
    let mut log = Log::new(16).table(16389, 16389, "orders");
    log.lock(700, &[16390]).create(700, &[16500]).rows(700, 16500, (0, 0, 0), 80);
    log.commit(700, &[], &[16390], &[]);
    assert_eq!(log.words(), [""; 0]);
}

#[test]
fn several_tables_of_one_transaction_are_one_row() {
    for version in [14, 17] {
        let mut log = Log::new(version);
        let mut removed = Vec::new();
        for number in 0..6 {
            let oid = 17000 + number * 10;
            log = log.table(oid, oid, &format!("old.t{number}"));
            removed.extend([oid, oid + 1]);
        }
        // In a subtransaction, and with what belongs to a temporary table.
        log.lock(701, &removed);
        let mut dropped = removed.clone();
        dropped.push(20_000);
        log.commit(700, &[701], &removed, &dropped);
        let findings = log.findings();
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].relations.len(), 6, "{version}");
        assert_eq!(findings[0].what, "dropped tables shop.old.t0, shop.old.t1, shop.old.t2, shop.old.t3 and 2 more");
    }
}

#[test]
fn a_partitioned_table_goes_with_all_its_partitions() {
    for version in [14, 17] {
        for (removed, said) in [
            (vec![17001, 17002], "dropped tables shop.public.p, shop.public.p1 and shop.public.p2"),
            (vec![17001], "dropped table shop.public.p1"),
        ] {
            let mut log = Log::new(version);
            log.relation(1, (17000, 0), "p", RelationKind::PartitionedTable, None);
            log.relation(1, (17001, 17001), "p1", RelationKind::Table, Some(17000));
            log.relation(1, (17002, 17002), "p2", RelationKind::Table, Some(17000));
            let mut locks = vec![17000];
            locks.extend(&removed);
            log.lock(700, &locks);
            let dropped = if removed.len() == 2 { locks.clone() } else { removed.clone() };
            log.commit(700, &[], &removed, &dropped);
            assert_eq!(log.words(), [said], "{version}");
        }
    }
}

#[test]
fn what_has_no_name_is_told_by_its_numbers() {
    let mut log = Log::new(17);
    log.lock(700, &[16700]);
    log.commit(700, &[], &[16700], &[16700]);
    assert_eq!(log.words(), ["dropped relation 16700 of database shop"]);
}

#[test]
fn rows_count_over_subtransactions_and_segments() {
    let mut log = Log::new(15).table(16389, 16389, "orders").table(16400, 16400, "\"o\".Big");
    log.rows(701, 16389, (0, 0, 600), 0).rows(702, 16389, (0, 0, 600), 0).rows(703, 16389, (0, 0, 900), 0);
    log.rows(800, 16400, (0, 0, 5000), 0);
    log.commit(700, &[701, 702], &[], &[]);
    let findings = log.findings();
    let told: Vec<_> = findings.iter().map(|f| (f.what.as_str(), f.deleted, f.pending)).collect();
    // 703 is nobody's, and too small; 800's end is told nowhere yet.
    assert_eq!(
        told,
        [
            ("deleted 5000 rows of shop.\"\"\"o\"\"\".\"Big\"", 5000, true),
            ("deleted 1200 rows of shop.public.orders", 1200, false)
        ]
    );
}

fn shared(number: u32, change: Change, (block, offset): (u32, u16)) -> Fact {
    let file = RelFile { tablespace: 1664, database: 0, number };
    Fact::Rows(Rows { change, file, block, offset, count: 1 })
}

#[test]
fn a_dropped_database_is_left_before_it_is_marked() {
    let drop = Fact::DatabaseDrop { oid: SHOP, tablespaces: vec![1663] };
    // Vacuum writes the row in place, and that of another database; the owner's dependency goes first.
    for (known, first_delete, marked, stop) in [
        (Some(true), false, true, 130),
        (Some(true), true, true, 140),
        (None, false, true, 130),
        (Some(false), false, false, 130),
        (Some(false), true, false, 130),
    ] {
        let mut log = Log::new(17);
        log.wanted.marks_invalid = known;
        log.tell(0, shared(1262, Change::Inplace, (0, 7)));
        log.tell(0, shared(1262, Change::Inplace, (0, 3)));
        if first_delete {
            log.tell(700, shared(1214, Change::Delete, (2, 9)));
        }
        if marked {
            log.tell(0, shared(1262, Change::Inplace, (0, 7)));
        }
        log.tell(700, shared(1262, Change::Delete, (0, 7)));
        log.tell(0, shared(1262, Change::Inplace, (0, 3)));
        log.tell(700, drop.clone());
        let findings = log.findings();
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].what, "dropped database shop");
        assert_eq!(findings[0].stop, Lsn(stop), "{known:?} {first_delete} {marked}");
    }
    // ALTER DATABASE ... SET TABLESPACE.
    let mut log = Log::new(17);
    log.tell(700, shared(1262, Change::Update, (0, 7)));
    log.tell(701, drop);
    assert_eq!(log.words(), [""; 0]);
}

/// The first of these segments has `first` rows of a deletion that goes on, and so on; the commit is in the last.
fn trickle(segments: &[(u64, Option<Rest>)], subs: &[u32]) -> Vec<(String, u64, bool)> {
    let mut log = Log::new(17).table(16389, 16389, "orders");
    let mut gatherer = Gatherer::new(log.wanted);
    for (at, (deleted, rest)) in segments.iter().enumerate() {
        let lsn = |n: u64| Lsn(0x100_0000 * (at as u64 + 1) + n);
        let count = RowCount {
            file: file(16389),
            xid: 700,
            lsn: lsn(40),
            inserted: 0,
            updated: 0,
            deleted: *deleted,
            images: 0,
            unended: at + 1 < segments.len(),
        };
        let items = Some(count).filter(|count| count.deleted > 0).into_iter().collect();
        let rows = RowCounts { items, cut: rest.is_some(), rest: *rest };
        let mut summary = Summary { first: Some(lsn(8)), end: lsn(100), rows, ..Summary::default() };
        if at + 1 == segments.len() {
            let end = TransactionEnd { subtransactions: subs.to_vec(), ..TransactionEnd::new(700, time(1)) };
            // It has something to tell, so that it is told.
            let end = TransactionEnd { removed: vec![file(16500)], ..end };
            let fact = Fact::Commit(Box::new(end));
            summary.changes.items.push(Told { lsn: lsn(90), end: lsn(98), xid: 700, fact });
        }
        gatherer.segment(&summary);
    }
    gatherer.finish();
    let mut judge = Judge::new(&mut log.names, Version(17), 1000, false);
    gatherer.happenings.iter().for_each(|happening| judge.judge(happening));
    let found = judge.finish().into_iter().filter(|f| f.deleted > 0);
    found.map(|f| (f.what, f.deleted, f.at_least)).collect()
}

#[test]
fn few_rows_in_each_of_many_segments_are_a_deletion() {
    let small = Some(Rest { pairs: 9, deleted: 9, most: 1, ..Rest::default() });
    let cut = Some(Rest { pairs: 9, deleted: 9, most: 1, most_unended: 1, ..Rest::default() });
    let found = |rows: u64| vec![(format!("deleted {rows} rows of shop.public.orders"), rows, false)];
    let at_least = |rows: u64| vec![(format!("deleted at least {rows} rows of shop.public.orders"), rows, true)];
    // Where it goes on it is listed, however little it does there.
    let even = |rest, last| [vec![(19, rest); 60], vec![last]].concat();
    assert_eq!(trickle(&even(small, (25, small)), &[]), found(60 * 19 + 25));
    assert_eq!(trickle(&even(small, (0, None)), &[]), found(60 * 19));
    assert_eq!(trickle(&even(small, (0, small)), &[]), at_least(60 * 19));
    assert_eq!(trickle(&even(cut, (25, None)), &[]), found(60 * 19 + 25));
    // Its subtransactions may have done more.
    assert_eq!(trickle(&even(cut, (25, None)), &[701]), at_least(60 * 19 + 25));
    assert_eq!(trickle(&even(None, (25, cut)), &[]), found(60 * 19 + 25));
    // It was not listed once.
    assert_eq!(trickle(&[(900, None), (0, cut), (900, None)], &[]), at_least(1800));
    assert_eq!(trickle(&[(900, None), (0, small), (900, None)], &[]), found(1800));
    assert_eq!(trickle(&[(0, cut), (1800, None)], &[]), at_least(1800));
}
