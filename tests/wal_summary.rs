//! Segment summaries of real WAL of every version: each tells what the records of its segment tell, with those that
//! straddle segments joined, and the facts are those that this version's `pg_waldump` prints.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use walden::{
    postgres::{Lsn, SegmentName, TimelineId, Version},
    wal::{
        Change, End, Ending, Fact, Joined, Reader, Record, RelFile, RowCount, RowCounts, SegmentHeader, Summarizer,
        Summary, TransactionEnd,
    },
};
use walden_testkit::{
    postgres::{Cluster, Installation, Stop, for_each_version},
    run::run,
    scene::Scene,
};

/// A cluster with segments of 1 MB, so that many records straddle them, which archives into a folder.
struct Archived {
    scene: Scene,
    archive: PathBuf,
    cluster: Cluster,
}

impl Archived {
    fn new(pg: &Installation) -> Self {
        let scene = Scene::new();
        let archive = scene.folder("archive");
        let command = format!("test -f {0}/%f || {{ cp %p {0}/%f.tmp && mv {0}/%f.tmp {0}/%f; }}", archive.display());
        let cluster = Cluster::builder(pg)
            .wal_segment_size(1)
            .archiving(command)
            .setting("wal_level", "logical")
            .setting("max_prepared_transactions", 10)
            .setting("min_wal_size", "2MB")
            .setting("max_wal_size", "1GB")
            .start();
        Self { scene, archive, cluster }
    }

    /// The archived segments with their bytes.
    fn segments(&self) -> Vec<(SegmentName, Vec<u8>)> {
        let names = fs::read_dir(&self.archive).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<SegmentName> = names.filter_map(|name| name.parse().ok()).collect();
        names.sort();
        assert!(names.iter().all(|name| name.timeline == TimelineId::FIRST));
        names.into_iter().map(|name| (name, fs::read(self.archive.join(name.to_string())).unwrap())).collect()
    }

    /// What `pg_waldump` prints: the address of each record, its manager, and its description.
    fn pg_waldump(&self, segments: &[(SegmentName, Vec<u8>)]) -> Vec<(Lsn, String, String)> {
        let mut command = self.cluster.pg("pg_waldump");
        command.env("TZ", "UTC").arg("--path").arg(&self.archive);
        command.arg(segments[0].0.to_string()).arg(segments[segments.len() - 1].0.to_string());
        let line = |line: &str| {
            let (head, description) = line.strip_prefix("rmgr: ")?.split_once(", desc: ")?;
            let lsn = head.split_once("lsn: ")?.1.split_once(',')?.0.parse().ok()?;
            Some((lsn, head.split_once(' ')?.0.to_owned(), description.to_owned()))
        };
        run(&mut command).stdout.lines().map(|text| line(text).unwrap()).collect()
    }

    /// Everything that plans and searches look for.
    fn work(&self) {
        let cluster = &self.cluster;
        let tablespace = self.scene.folder("tablespace");
        let copied: String = (0..3_000).map(|n| format!("{n}\t{}\n", "c".repeat(n % 150))).collect();
        let file = self.scene.write("rows", &copied);
        cluster.psql(&format!(
            "CREATE TABLESPACE ts LOCATION '{}';
             CREATE TABLE t (id int PRIMARY KEY, v text);
             COPY t FROM '{}';
             CREATE TABLE u TABLESPACE ts AS SELECT g AS id, repeat('z', 100) AS z FROM generate_series(1, 5000) g;
             CREATE INDEX ON u (z);",
            tablespace.display(),
            file.display(),
        ));
        for method in ["off", "on", "pglz", "lz4", "zstd"] {
            // Not every build knows every method.
            let _ =
                cluster.try_psql(&format!("SET wal_compression = '{method}'; CHECKPOINT; UPDATE t SET v = v || 'x'"));
        }
        cluster.psql(
            "DELETE FROM t WHERE id % 3 = 0;
             UPDATE t SET id = id + 100000 WHERE id % 5 = 0;
             VACUUM FULL t; VACUUM FULL pg_class; TRUNCATE u; INSERT INTO u VALUES (1, 'z'); DELETE FROM u; VACUUM u;
             BEGIN; INSERT INTO t VALUES (-1, 'a'); SAVEPOINT a; INSERT INTO t VALUES (-2, 'b'); SAVEPOINT b;
             INSERT INTO t VALUES (-3, 'c'); ROLLBACK TO b; RELEASE a; COMMIT;
             BEGIN; CREATE TABLE never (i int); SAVEPOINT a; INSERT INTO never VALUES (1); ROLLBACK;
             DO $$ BEGIN FOR i IN 1..300 LOOP BEGIN INSERT INTO t VALUES (-10 - i, 's'); EXCEPTION WHEN OTHERS THEN NULL;
             END; END LOOP; END $$;
             DO $$ BEGIN FOR i IN 1..500 LOOP UPDATE t SET v = v || '.' WHERE id = i; COMMIT; END LOOP; END $$;
             BEGIN; CREATE TABLE p (i int); INSERT INTO p VALUES (1); PREPARE TRANSACTION 'kept';
             BEGIN; DROP TABLE u; PREPARE TRANSACTION 'dropped';
             COMMIT PREPARED 'kept'; ROLLBACK PREPARED 'dropped';
             CREATE TABLE parted (k int, v int) PARTITION BY LIST (k);
             CREATE TABLE p1 PARTITION OF parted FOR VALUES IN (1); CREATE TABLE p2 PARTITION OF parted FOR VALUES IN (2);
             INSERT INTO parted SELECT 1, g FROM generate_series(1, 50) g; UPDATE parted SET k = 2;
             SELECT pg_create_restore_point('before deploy');
             SELECT pg_logical_emit_message(true, 'deploy', 'before 123');
             SELECT pg_logical_emit_message(false, 'long', repeat('m', 2500000));
             CREATE DATABASE d; ALTER DATABASE d SET TABLESPACE ts; DROP DATABASE d; VACUUM pg_database;
             DROP TABLE t, u, p, parted;",
        );
        // Before 15 there is only this way.
        let strategy = if cluster.installation().major >= 15 { "STRATEGY file_copy" } else { "" };
        cluster.psql(&format!("CREATE DATABASE e {strategy}; DROP DATABASE e; DROP TABLESPACE ts;"));
        let last = cluster.switch_wal();
        cluster.wait_archived(&last);
    }

    /// Crashes the server in the middle of a record that begins in one segment and should have ended in the next.
    fn tear_a_record(&mut self) {
        let cluster = &mut self.cluster;
        cluster.psql(
            "CHECKPOINT;
             DO $$ DECLARE size int := setting::int FROM pg_settings WHERE name = 'wal_segment_size';
             BEGIN WHILE size - (pg_current_wal_insert_lsn() - '0/0') % size > 16384 LOOP
             PERFORM pg_logical_emit_message(false, '', repeat('f', 500)); END LOOP; END $$",
        );
        cluster.psql("SELECT pg_logical_emit_message(true, 'torn', repeat('xyzxz', 123456))\\g /dev/null");
        let ends = cluster.psql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
        cluster.kill9();
        fs::remove_file(cluster.pgdata().join("pg_wal").join(ends)).unwrap();
        cluster.append_configuration("max_connections = 77\n");
        cluster.start();
    }
}

/// A fact as a line, when it is one of those that are compared with `pg_waldump`.
fn ours(record: &Record) -> Option<String> {
    Some(match &record.fact {
        Fact::Rows(rows) | Fact::Named { rows, .. } | Fact::Renamed { rows, .. } => {
            format!("{:?} {} {} {} {}", rows.change, rows.file, rows.block, rows.offset, rows.count)
        }
        Fact::PageImage { file, pages } => format!("images {file} {pages}"),
        Fact::FileCreate { file } => format!("create {file}"),
        Fact::FileTruncate { file, blocks } => format!("truncate {file} {blocks}"),
        Fact::DatabaseCreate { oid, tablespace, template } => format!("create {tablespace}/{oid} {template:?}"),
        Fact::DatabaseDrop { oid, tablespaces } => format!("drop {oid} {tablespaces:?}"),
        Fact::Locks { locks } => {
            locks.iter().map(|l| format!("xid {} db {} rel {} ", l.xid, l.database, l.relation)).collect()
        }
        Fact::RelationMap { database } => format!("map {database}"),
        Fact::Message { transactional, prefix, size, .. } => format!("message {transactional} {prefix} {size}"),
        Fact::Commit(end) | Fact::Abort(end) if !end.removed.is_empty() || !end.dropped.is_empty() => {
            let dropped: Vec<_> = end.dropped.iter().map(|d| (d.database, d.relation)).collect();
            format!("removed {:?} dropped {dropped:?}", end.removed)
        }
        _ => return None,
    })
}

/// `base/5/16389`, `global/1262`, `pg_tblspc/16400/PG_17_202406281/5/16389`.
fn rel_file(path: &str) -> RelFile {
    let parts: Vec<&str> = path.split('/').collect();
    let number = |text: &str| text.parse().unwrap();
    match parts[..] {
        ["global", file] => RelFile { tablespace: 1664, database: 0, number: number(file) },
        ["base", database, file] => RelFile { tablespace: 1663, database: number(database), number: number(file) },
        ["pg_tblspc", tablespace, _, database, file] => {
            RelFile { tablespace: number(tablespace), database: number(database), number: number(file) }
        }
        _ => panic!("{path}"),
    }
}

/// The word after the first `before` in `text`, without its comma.
fn after<'a>(text: &'a str, before: &str) -> Option<&'a str> {
    let rest = text.split_once(before)?.1.trim_start();
    Some(rest.split([' ', ',', ';']).next().unwrap_or(rest))
}

/// The same line out of what `pg_waldump` says. It calls fields in other ways from version to version.
fn theirs(manager: &str, description: &str) -> Option<String> {
    let (op, rest) = description.split_once(' ').unwrap_or((description, ""));
    let op = op.trim_end_matches("+INIT");
    match (manager, op) {
        ("Heap", "INSERT" | "DELETE" | "UPDATE" | "HOT_UPDATE" | "INPLACE") | ("Heap2", "MULTI_INSERT") => {
            Some(rows(op, rest))
        }
        ("XLOG", "FPI") => {
            let main = !description.contains(" fork ");
            let file = after(description, "blkref #0: rel ").unwrap();
            main.then(|| format!("images {file} {}", description.matches("blkref #").count()))
        }
        ("Storage", "CREATE") => {
            let main = !rest.rsplit('/').next().unwrap().contains('_');
            main.then(|| format!("create {}", rel_file(rest)))
        }
        ("Storage", "TRUNCATE") => {
            let (path, blocks) = rest.split_once(" to ").unwrap();
            Some(format!("truncate {} {}", rel_file(path), blocks.split_once(' ').unwrap().0))
        }
        ("Database", "DROP") => {
            let folders = rest.trim_start_matches("dir ").split_whitespace();
            let pairs: Vec<(&str, &str)> = folders.map(|folder| folder.split_once('/').unwrap()).collect();
            let tablespaces: Vec<u32> = pairs.iter().map(|pair| pair.0.parse().unwrap()).collect();
            Some(format!("drop {} {tablespaces:?}", pairs[0].1))
        }
        ("Database", _) => {
            let words: Vec<&str> = rest.split_whitespace().collect();
            Some(match words[..] {
                ["copy", "dir", from, "to", to] => {
                    let template: u32 = from.split_once('/').unwrap().1.parse().unwrap();
                    format!("create {to} {:?}", Some(template))
                }
                ["create", "dir", made] => format!("create {made} None"),
                _ => panic!("{description}"),
            })
        }
        ("Standby", "LOCK") => Some(format!("{} ", rest.trim_end())),
        ("RelMap", _) => Some(format!("map {}", after(rest, "database ").unwrap())),
        ("LogicalMessage", _) => {
            let prefix = rest.split('"').nth(1).unwrap();
            let size = rest.split_once("payload (").unwrap().1.split(' ').next().unwrap();
            Some(format!("message {} {prefix} {size}", rest.starts_with("transactional")))
        }
        ("Transaction", _) if op.starts_with("COMMIT") || op.starts_with("ABORT") => {
            let list = |name: &str| {
                let list = rest.split_once(name).map_or("", |(_, list)| list.split(';').next().unwrap_or(""));
                list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
            };
            let removed: Vec<RelFile> = list("; rels: ").iter().map(|path| rel_file(path)).collect();
            let dropped = list("; dropped stats: ");
            let dropped: Vec<(u32, u32)> = dropped
                .iter()
                .filter_map(|item| item.strip_prefix("2/")?.split_once('/'))
                .map(|(database, relation)| (database.parse().unwrap(), relation.parse().unwrap()))
                .collect();
            (!removed.is_empty() || !dropped.is_empty()).then(|| format!("removed {removed:?} dropped {dropped:?}"))
        }
        _ => None,
    }
}

/// `HOT_UPDATE old_xmax: 6, old_off: 39, ..., new_off: 46, blkref #0: rel 1663/1/2610 blk 0`, until 15
/// `HOT_UPDATE off 37 xmax 6 flags 0x60 ; new off 46 xmax 0, blkref #0: rel 1663/1/2610 blk 0`.
fn rows(op: &str, rest: &str) -> String {
    const MOVED_TO_ANOTHER_PARTITION: u32 = 0x10;
    let (fields, blocks) = rest.split_once("blkref #0: rel ").unwrap();
    let file = blocks.split(' ').next().unwrap();
    let old = blocks.split_once("blkref #1: rel ").filter(|(_, old)| !old.contains("fork vm") || old.starts_with(file));
    let old = old.filter(|(_, old)| !old.split(',').next().unwrap().contains(" fork "));
    let place = if op == "UPDATE" { old.map_or(blocks, |(_, old)| old) } else { blocks };
    let block = after(place, "blk ").unwrap();
    let flags = after(fields, "flags: 0x").or(after(fields, "flags 0x")).unwrap_or("0");
    let moved = u32::from_str_radix(flags, 16).unwrap() & MOVED_TO_ANOTHER_PARTITION != 0;
    let change = match op {
        "INSERT" | "MULTI_INSERT" => Change::Insert,
        "DELETE" if !moved => Change::Delete,
        "INPLACE" => Change::Inplace,
        _ => Change::Update,
    };
    if op == "MULTI_INSERT" {
        let count = after(fields, "ntuples: ").unwrap_or_else(|| fields.split(' ').next().unwrap());
        return format!("{change:?} {file} {block} 0 {count}");
    }
    let offset = after(fields, "off: ").or(after(fields, "off ")).unwrap();
    format!("{change:?} {file} {block} {offset} 1")
}

fn records(segments: &[(SegmentName, Vec<u8>)]) -> Vec<Record> {
    let mut reader = Reader::new(SegmentHeader::parse(&segments[0].1).unwrap().start);
    let records = segments.iter().flat_map(|(_, bytes)| reader.read(bytes).collect::<Vec<_>>()).collect();
    assert!(matches!(reader.end(), End::OfInput { .. }), "{:?}", reader.end());
    records
}

/// The summaries of all segments, joined along.
fn summaries(segments: &[(SegmentName, Vec<u8>)], version: Version, whole: bool) -> Vec<Summary> {
    let mut all: Vec<Summary> = segments
        .iter()
        .map(|(_, bytes)| {
            let start = SegmentHeader::parse(bytes).unwrap().start;
            let mut summarizer = if whole { Summarizer::whole(start) } else { Summarizer::new(start) };
            bytes.chunks(123_457).for_each(|chunk| summarizer.feed(chunk));
            let summary = summarizer.finish();
            let json = serde_json::to_string(&summary).unwrap();
            assert!(whole || json.len() <= Summary::LONGEST, "{}", json.len());
            assert_eq!(serde_json::from_str::<Summary>(&json).unwrap(), summary);
            summary
        })
        .collect();
    for at in 0..all.len() {
        let (before, after) = all.split_at_mut(at + 1);
        let outcomes = after.iter_mut().map(|next| before[at].join(next, version));
        let last = outcomes.into_iter().find(|outcome| *outcome != Joined::GoesOn);
        assert!(last.is_none_or(|outcome| outcome == Joined::Whole), "{}", segments[at].0);
    }
    all
}

/// What the summary of one segment must tell: that of its records, one by one.
fn expected(own: &[&Record]) -> Summary {
    let mut summary = Summary { records: own.len() as u64, ..Summary::default() };
    let mut rows: BTreeMap<(RelFile, u32), RowCount> = BTreeMap::new();
    let made: BTreeSet<(u32, u32)> = own
        .iter()
        .filter_map(|record| match record.fact {
            Fact::DatabaseCreate { oid, .. } => Some((oid, record.xid)),
            _ => None,
        })
        .collect();
    for record in own {
        let end = |end: &TransactionEnd, times: Option<_>| match times {
            None => Some((end.time, end.time)),
            Some((least, most)) => Some((end.time.min(least), end.time.max(most))),
        };
        let (file, add): (RelFile, [u64; 4]) = match &record.fact {
            Fact::Commit(commit) => {
                summary.commits += 1;
                summary.times = end(commit, summary.times);
                continue;
            }
            Fact::Abort(abort) => {
                summary.aborts += 1;
                summary.times = end(abort, summary.times);
                continue;
            }
            Fact::Rows(r) | Fact::Named { rows: r, .. } | Fact::Renamed { rows: r, .. } => match r.change {
                Change::Insert => (r.file, [r.count.into(), 0, 0, 0]),
                Change::Update => (r.file, [0, 1, 0, 0]),
                Change::Delete => (r.file, [0, 0, 1, 0]),
                Change::Inplace => continue,
            },
            Fact::PageImage { file, pages } if record.xid != 0 => (*file, [0, 0, 0, (*pages).into()]),
            _ => continue,
        };
        if made.contains(&(file.database, record.xid)) {
            continue;
        }
        let [inserted, updated, deleted, images] = add;
        let row = RowCount {
            file,
            xid: record.xid,
            lsn: record.start,
            inserted: 0,
            updated: 0,
            deleted: 0,
            images: 0,
            unended: false,
        };
        let row = rows.entry((file, record.xid)).or_insert(row);
        row.inserted += inserted;
        row.updated += updated;
        row.deleted += deleted;
        row.images += images;
    }
    summary.rows.items = rows.into_values().collect();
    summary
}

fn by_place(rows: &[RowCount]) -> Vec<RowCount> {
    let mut rows = rows.to_vec();
    rows.iter_mut().for_each(|row| row.unended = false);
    rows.sort_by_key(|row| (row.file, row.xid));
    rows
}

/// All rows together: inserted, updated, deleted, and pages; the catalogues apart, which heads leave out.
fn counted(rows: &RowCounts) -> [u64; 4] {
    assert!(rows.rest.is_some() == rows.cut);
    let rest = rows.rest.unwrap_or_default();
    let tables = rows.items.iter().filter(|row| row.file.number >= 16384);
    tables.fold([rest.inserted, rest.updated, rest.deleted, rest.images], |[i, u, d, p], row| {
        [i + row.inserted, u + row.updated, d + row.deleted, p + row.images]
    })
}

/// The facts of a segment that belong into the lists, those that only a search needs last.
fn listed(own: &[&Record]) -> (Vec<Lsn>, Vec<Lsn>) {
    let turn = |fact: &Fact| match fact {
        Fact::Commit(end) | Fact::Abort(end) => end.prepared,
        Fact::Prepare(_)
        | Fact::RestorePoint { .. }
        | Fact::Checkpoint(_)
        | Fact::CheckpointRedo { .. }
        | Fact::BackupEnd { .. }
        | Fact::ParameterChange(_)
        | Fact::OverwriteContrecord { .. }
        | Fact::TablespaceCreate { .. }
        | Fact::TablespaceDrop { .. } => true,
        _ => false,
    };
    let change = |fact: &Fact| match fact {
        Fact::Commit(end) if end.catalogues => !end.prepared,
        Fact::Commit(end) | Fact::Abort(end) => {
            let plain = end.removed.is_empty() && end.dropped.is_empty() && end.subtransactions.is_empty();
            !plain && !end.prepared
        }
        Fact::Rows(rows) if rows.file.number == 1247 => rows.change == Change::Update,
        Fact::Rows(rows) => rows.file.tablespace == 1664 && rows.change != Change::Insert,
        Fact::FileTruncate { .. }
        | Fact::DatabaseCreate { .. }
        | Fact::DatabaseDrop { .. }
        | Fact::Locks { .. }
        | Fact::RelationMap { .. }
        | Fact::Named { .. }
        | Fact::Renamed { .. }
        | Fact::Message { .. } => true,
        _ => false,
    };
    let of = |fits: &dyn Fn(&Fact) -> bool| {
        own.iter().filter(|record| fits(&record.fact)).map(|record| record.start).collect()
    };
    (of(&turn), of(&change))
}

/// What a summary tells agrees with the records that start in its segment.
fn agrees(summary: &Summary, own: &[&Record]) {
    let expected = expected(own);
    assert_eq!(summary.records, expected.records);
    assert_eq!((summary.commits, summary.aborts, summary.times), (expected.commits, expected.aborts, expected.times));
    assert_eq!((summary.first, summary.prev), (own.first().map(|r| r.start), own.first().map(|r| r.prev)));
    assert_eq!(summary.last, own.last().map(|r| r.start));
    assert!(own.last().is_none_or(|last| summary.end == last.end));
    assert_eq!(by_place(&summary.rows.items), expected.rows.items);
    let (turns, changes) = listed(own);
    assert_eq!(summary.turns.items.iter().map(|told| told.lsn).collect::<Vec<_>>(), turns);
    let told = summary.changes.items.iter().filter(|told| !matches!(told.fact, Fact::FileCreate { .. }));
    assert_eq!(told.map(|told| told.lsn).collect::<Vec<_>>(), changes);
    let all: BTreeMap<Lsn, &&Record> = own.iter().map(|record| (record.start, record)).collect();
    for told in summary.turns.items.iter().chain(&summary.changes.items) {
        let record = all[&told.lsn];
        assert_eq!((told.end, told.xid, &told.fact), (record.end, record.xid, &record.fact));
    }
    let ended = own.iter().filter_map(|record| match &record.fact {
        Fact::Commit(end) => Some((true, end, record.start)),
        Fact::Abort(end) => Some((false, end, record.start)),
        _ => None,
    });
    for (_, end, _) in ended.clone() {
        assert!(summary.may_end(end.xid) && end.subtransactions.iter().all(|xid| summary.may_end(*xid)));
    }
    let mut commits = ended.filter(|end| end.0).map(|(_, end, lsn)| (end.xid, lsn));
    let (first, last) = (summary.first_commit.as_ref(), summary.last_commit.as_ref());
    assert_eq!(commits.next(), first.map(|commit| (commit.xid, commit.lsn)));
    assert_eq!(commits.next_back().or(first.map(|c| (c.xid, c.lsn))), last.map(|commit| (commit.xid, commit.lsn)));
}

/// The work has made a record of each kind.
fn nothing_is_missing(records: &[Record], version: Version) {
    let has = |what: &str, fits: &dyn Fn(&Fact) -> bool| {
        assert!(records.iter().any(|record| fits(&record.fact)), "PostgreSQL {version} wrote no {what}");
    };
    for change in [Change::Insert, Change::Update, Change::Delete, Change::Inplace] {
        has("row", &|fact| matches!(fact, Fact::Rows(rows) if rows.change == change));
    }
    has("rows", &|fact| matches!(fact, Fact::Rows(rows) if rows.count > 1));
    has("page image", &|fact| matches!(fact, Fact::PageImage { .. }));
    has("truncation", &|fact| matches!(fact, Fact::FileTruncate { .. }));
    has("copied database", &|fact| matches!(fact, Fact::DatabaseCreate { template: Some(_), .. }));
    has("dropped database", &|fact| matches!(fact, Fact::DatabaseDrop { .. }));
    has("lock", &|fact| matches!(fact, Fact::Locks { .. }));
    has("map", &|fact| matches!(fact, Fact::RelationMap { .. }));
    has("message", &|fact| matches!(fact, Fact::Message { text, .. } if text == "before 123"));
    has("tablespace", &|fact| matches!(fact, Fact::TablespaceDrop { .. }));
    has("removed file", &|fact| matches!(fact, Fact::Commit(end) if !end.removed.is_empty() && end.database.is_some()));
    has("file of an abort", &|fact| matches!(fact, Fact::Abort(end) if !end.removed.is_empty()));
    has("prepared commit", &|fact| matches!(fact, Fact::Commit(end) if end.prepared));
    has("subtransactions", &|fact| matches!(fact, Fact::Commit(end) if end.subtransactions.len() == 300));
    has("record that was given up", &|fact| matches!(fact, Fact::OverwriteContrecord { .. }));
    if version.0 >= 15 {
        has("dropped relation", &|fact| matches!(fact, Fact::Commit(end) if !end.dropped.is_empty()));
        has("logged database", &|fact| matches!(fact, Fact::DatabaseCreate { template: None, .. }));
    }
}

#[test]
fn summaries_tell_what_the_records_tell() {
    for_each_version(|pg| {
        let version = Version(pg.major.into());
        let mut archived = Archived::new(pg);
        archived.work();
        archived.tear_a_record();
        archived.work();
        let segments = archived.segments();
        let records = records(&segments);
        let lines = archived.pg_waldump(&segments);
        archived.cluster.stop(Stop::Immediate);

        nothing_is_missing(&records, version);
        let mine: Vec<(Lsn, String)> = records.iter().filter_map(|r| Some((r.start, ours(r)?))).collect();
        let printed = lines.iter().filter_map(|(lsn, manager, text)| Some((*lsn, theirs(manager, text)?)));
        let printed: Vec<(Lsn, String)> = printed.collect();
        for (mine, printed) in mine.iter().zip(&printed) {
            assert_eq!(mine, printed, "PostgreSQL {version}");
        }
        assert_eq!(mine.len(), printed.len());

        let whole = summaries(&segments, version, true);
        let bounded = summaries(&segments, version, false);
        let (mut cut, mut straddling) = (0, 0);
        for (n, (name, bytes)) in segments.iter().enumerate() {
            let start = SegmentHeader::parse(bytes).unwrap().start;
            let own = records.iter().filter(|record| record.start >= start && record.start < start + (1 << 20));
            let own: Vec<&Record> = own.collect();
            straddling += usize::from(own.last().is_some_and(|r| r.end > start + (1 << 20)));
            let (whole, bounded) = (&whole[n], &bounded[n]);
            // The last segment ends at a switch; what begins there and goes on is given up.
            assert!(whole.tail.is_none() && whole.suffices(true), "{name}");
            assert!(n == 0 || whole.lead.is_none(), "{name}");
            assert!(matches!(whole.ending, Ending::Full | Ending::Switch), "{name}: {:?}", whole.ending);
            agrees(whole, &own);
            cut += usize::from(!bounded.suffices(true) || bounded.rows.cut);
            if bounded.suffices(false) {
                assert_eq!(bounded.turns, whole.turns, "{name}");
            }
            if bounded.suffices(true) {
                assert_eq!(&Summary { rows: whole.rows.clone(), ..bounded.clone() }, whole, "{name}");
                assert_eq!(counted(&bounded.rows), counted(&whole.rows), "{name}");
            }
        }
        eprintln!(
            "PostgreSQL {version}: {} segments, {} records, {} compared with pg_waldump, {straddling} straddle, {cut} cut",
            segments.len(),
            records.len(),
            mine.len(),
        );
        assert!(straddling > 5 && segments.len() > 12);
    });
}
