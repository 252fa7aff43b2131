//! The `wal` room beside PostgreSQL's own reader: real WAL of every version, every record compared with what that
//! version's `pg_waldump` prints, and every archived segment found whole.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use walden::{
    postgres::{Lsn, SegmentName, SegmentSize, TimelineId, WalFile},
    wal::{
        End, Fact, Reader, Record, SegmentCheck, SegmentEnd, SegmentHeader, StopFinder, StopRule, check_segment,
        contents::manager_name,
    },
};
use walden_testkit::{
    postgres::{Cluster, Installation, Stop, any, for_each_version},
    protected::{Place, Protected},
    run::run,
    scene::Scene,
};

/// How `pg_waldump` writes times.
const TIME: &str = "%Y-%m-%d %H:%M:%S%.6f UTC";

/// One line of `pg_waldump`.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    manager: String,
    length: u32,
    xid: u32,
    start: Lsn,
    prev: Lsn,
    ended: Option<Ended>,
}

/// What `pg_waldump` says of a commit or an abort.
#[derive(Debug, PartialEq, Eq)]
struct Ended {
    committed: bool,
    xid: u32,
    time: String,
    subtransactions: usize,
}

impl Line {
    fn of(record: &Record) -> Self {
        let ended = match &record.fact {
            Fact::Commit(end) | Fact::Abort(end) => Some(Ended {
                committed: matches!(record.fact, Fact::Commit(_)),
                xid: end.xid,
                time: end.time.format(TIME).to_string(),
                subtransactions: end.subtransactions.len(),
            }),
            _ => None,
        };
        let manager = manager_name(record.rmid).into_owned();
        Self { manager, length: record.length, xid: record.xid, start: record.start, prev: record.prev, ended }
    }

    /// `rmgr: Heap        len (rec/tot):     54/   150, tx:        733, lsn: 0/01501E08, prev 0/01501DD0, desc: ...`
    fn parse(line: &str) -> Option<Self> {
        let (head, description) = line.strip_prefix("rmgr: ")?.split_once(", desc: ")?;
        let (manager, rest) = head.split_once(' ')?;
        let mut fields = rest.split(", ");
        let length = fields.next()?.rsplit_once('/')?.1.trim().parse().ok()?;
        let xid: u32 = fields.next()?.strip_prefix("tx:")?.trim().parse().ok()?;
        let start = fields.next()?.strip_prefix("lsn: ")?.parse().ok()?;
        let prev = fields.next()?.strip_prefix("prev ")?.parse().ok()?;
        let ended = if manager == "Transaction" { Ended::parse(xid, description) } else { None };
        Some(Self { manager: manager.to_owned(), length, xid, start, prev, ended })
    }
}

impl Ended {
    /// `COMMIT 2026-11-21 04:20:01.123456 UTC; subxacts: 7 8; ...`, `ABORT_PREPARED 734: 2026-...`
    fn parse(xid: u32, description: &str) -> Option<Self> {
        let (word, rest) = description.split_once(' ')?;
        let committed = word.starts_with("COMMIT");
        if !committed && !word.starts_with("ABORT") {
            return None;
        }
        let (xid, rest) = match rest.split_once(": ").filter(|_| word.ends_with("_PREPARED")) {
            Some((own, rest)) => (own.rsplit(' ').next()?.parse().ok()?, rest),
            None => (xid, rest),
        };
        let time = rest.get(..30)?.to_owned();
        let subtransactions =
            rest.split_once("subxacts: ").map_or("", |(_, list)| list.split(';').next().unwrap_or(""));
        Some(Self { committed, xid, time, subtransactions: subtransactions.split_whitespace().count() })
    }
}

/// A cluster that archives into a folder.
struct Archived {
    scene: Scene,
    archive: PathBuf,
    cluster: Cluster,
}

impl Archived {
    fn new(pg: &Installation, segment_mb: u32) -> Self {
        let scene = Scene::new();
        let archive = scene.folder("archive");
        let command = format!("test -f {0}/%f || {{ cp %p {0}/%f.tmp && mv {0}/%f.tmp {0}/%f; }}", archive.display());
        let cluster = Cluster::builder(pg)
            .wal_segment_size(segment_mb)
            .archiving(command)
            .setting("wal_level", "logical")
            .setting("max_prepared_transactions", 10)
            .setting("min_wal_size", format!("{}MB", 2 * segment_mb))
            // No checkpoint of its own: it would lie in the segment that is taken away.
            .setting("max_wal_size", "1GB")
            .start();
        Self { scene, archive, cluster }
    }

    fn tablespace(&self) -> PathBuf {
        let folder = self.scene.folder("tablespace");
        self.cluster.psql(&format!("CREATE TABLESPACE ts LOCATION '{}'", folder.display()));
        folder
    }

    /// The segments of a timeline in the archive, in their order.
    fn segments(&self, timeline: u32) -> Vec<SegmentName> {
        let timeline = TimelineId::new(timeline).unwrap();
        let names = fs::read_dir(&self.archive).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
        let mut segments: Vec<SegmentName> = names.filter_map(|name| name.parse().ok()).collect();
        segments.retain(|name| name.timeline == timeline);
        segments.sort();
        segments
    }

    /// Walks segments with Walden.
    fn walk(&self, names: &[SegmentName], chunk: usize) -> (Vec<Record>, Reader) {
        let first = fs::read(self.archive.join(names[0].to_string())).unwrap();
        let mut reader = Reader::new(SegmentHeader::parse(&first).unwrap().start);
        let mut records = Vec::new();
        for name in names {
            let bytes = fs::read(self.archive.join(name.to_string())).unwrap();
            for part in bytes.chunks(chunk) {
                records.extend(reader.read(part));
            }
        }
        (records, reader)
    }

    /// Walks segments with `pg_waldump`.
    fn pg_waldump(&self, names: &[SegmentName]) -> Vec<Line> {
        let mut command = self.cluster.pg("pg_waldump");
        command.env("TZ", "UTC").arg("--path").arg(&self.archive);
        command.arg(names[0].to_string()).arg(names[names.len() - 1].to_string());
        // It ends with an error when the last record goes on in a segment that is not there.
        let ran = run(&mut command);
        let lines: Vec<Line> = ran.stdout.lines().filter_map(Line::parse).collect();
        assert_eq!(lines.len(), ran.stdout.lines().count(), "a line that this test cannot read");
        lines
    }

    /// Every record of a timeline's segments is what `pg_waldump` says, and every segment is whole.
    fn compare(&self, timeline: u32) -> Vec<Record> {
        let names = self.segments(timeline);
        let (records, reader) = self.walk(&names, 100_003);
        assert!(matches!(reader.end(), End::OfInput { .. }), "{:?}", reader.end());
        let theirs = self.pg_waldump(&names);
        assert!(theirs.len() > 1_000 && theirs.iter().filter(|line| line.ended.is_some()).count() > 100);
        for (record, line) in records.iter().zip(&theirs) {
            assert_eq!(&Line::of(record), line);
        }
        assert_eq!(records.len(), theirs.len());
        for name in names {
            let bytes = fs::read(self.archive.join(name.to_string())).unwrap();
            let facts = check_segment(name, &bytes).unwrap();
            assert_eq!(u32::from(self.cluster.installation().major), facts.version.0);
        }
        self.compare_shown(&self.segments(timeline), &theirs);
        records
    }

    /// What `walden wal show` says of each segment adds up to what `pg_waldump` says of all.
    fn compare_shown(&self, names: &[SegmentName], theirs: &[Line]) {
        let (mut managers, mut ended) = (BTreeMap::new(), Vec::new());
        for name in names {
            let path = self.archive.join(name.to_string());
            let mut command = self.scene.walden();
            let ran = run(command.args(["--json", "wal", "show"]).arg(path));
            let shown: serde_json::Value = serde_json::from_str(ran.ok()).unwrap();
            for manager in shown["managers"].as_array().unwrap() {
                let count = managers.entry(manager["name"].as_str().unwrap().to_owned()).or_insert((0, 0));
                count.0 += manager["records"].as_u64().unwrap();
                count.1 += manager["bytes"].as_u64().unwrap();
            }
            ended.extend(shown["transactions"].as_array().unwrap().iter().map(|end| {
                let time: chrono::DateTime<chrono::Utc> = end["time"].as_str().unwrap().parse().unwrap();
                let xid = end["xid"].as_u64().unwrap();
                (
                    end["lsn"].as_str().unwrap().parse().unwrap(),
                    xid,
                    time.format(TIME).to_string(),
                    end["committed"] == true,
                )
            }));
        }
        assert_eq!(managers, self.pg_waldump_stats(names));
        let expected: Vec<(Lsn, u64, String, bool)> = theirs
            .iter()
            .filter_map(|line| {
                line.ended.as_ref().map(|end| (line.start, end.xid.into(), end.time.clone(), end.committed))
            })
            .collect();
        assert_eq!(ended, expected);
    }

    /// Records and bytes of each resource manager that has any.
    fn pg_waldump_stats(&self, names: &[SegmentName]) -> BTreeMap<String, (u64, u64)> {
        let mut command = self.cluster.pg("pg_waldump");
        command.arg("--stats=rmgr").arg("--path").arg(&self.archive);
        command.arg(names[0].to_string()).arg(names[names.len() - 1].to_string());
        let printed = run(&mut command).stdout;
        // Type, N, (%), record size, (%), image size, (%), combined size, (%)
        let rows = printed.lines().map(|line| line.replace(['(', ')'], " "));
        rows.filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let number = |at: usize| words.get(at)?.parse::<u64>().ok();
            let (records, bytes) = (number(1)?, number(7)?);
            (records > 0 && words[0] != "Total").then(|| (words[0].to_owned(), (records, bytes)))
        })
        .collect()
    }
}

/// Everything that makes records of interest, and enough of the others to cross segments of `mb` MB.
fn work(archived: &Archived, mb: u32) {
    let cluster = &archived.cluster;
    cluster.psql(
        "CREATE TABLE IF NOT EXISTS t (id bigserial PRIMARY KEY, v text);
         DO $$ BEGIN FOR i IN 1..200 LOOP INSERT INTO t (v) VALUES (i); COMMIT; END LOOP; END $$;
         BEGIN; INSERT INTO t (v) VALUES ('a'); SAVEPOINT a; INSERT INTO t (v) VALUES ('b'); SAVEPOINT b;
         INSERT INTO t (v) VALUES ('c'); ROLLBACK TO b; RELEASE a; COMMIT;
         BEGIN; INSERT INTO t (v) VALUES ('x'); SAVEPOINT a; INSERT INTO t (v) VALUES ('y'); ROLLBACK;
         BEGIN; INSERT INTO t (v) VALUES ('p'); SAVEPOINT s; INSERT INTO t (v) VALUES ('q');
         PREPARE TRANSACTION 'to be kept';
         BEGIN; INSERT INTO t (v) VALUES ('p'); PREPARE TRANSACTION 'to be dropped';
         COMMIT PREPARED 'to be kept'; ROLLBACK PREPARED 'to be dropped';
         SELECT pg_create_restore_point('before deploy');
         SELECT pg_switch_wal();
         SELECT pg_logical_emit_message(true, 'test', repeat('x', 2500000));
         BEGIN; DO $$ BEGIN FOR i IN 1..300 LOOP BEGIN INSERT INTO t (v) VALUES ('s'); EXCEPTION WHEN OTHERS THEN NULL;
         END; END LOOP; END $$; COMMIT;
          CREATE TABLE u AS SELECT g AS id, repeat('z', 100) AS z FROM generate_series(1, 10000) g;
         CREATE INDEX ON u (z); DELETE FROM u WHERE id % 7 = 0; VACUUM FULL u; TRUNCATE u; DROP TABLE u;",
    );
    for method in ["on", "pglz", "lz4", "zstd"] {
        // Not every version, nor every build of it, knows every method.
        let tried = cluster.try_psql(&format!(
            "SET wal_compression = '{method}'; CHECKPOINT; UPDATE t SET v = v || '.' WHERE id % 3 = 0"
        ));
        let unknown =
            |error: &String| error.contains("invalid value for parameter") && !["on", "pglz"].contains(&method);
        assert!(tried.as_ref().err().is_none_or(unknown) || cluster.installation().major == 14, "{tried:?}");
    }
    for strategy in ["FILE_COPY", "WAL_LOG"] {
        let clause = if cluster.installation().major == 14 { String::new() } else { format!("STRATEGY {strategy}") };
        cluster.psql(&format!("CREATE DATABASE d {clause}; ALTER DATABASE d SET TABLESPACE ts; DROP DATABASE d"));
    }
    for _ in 0..5 {
        cluster.psql("INSERT INTO t (v) SELECT repeat('k', (random() * 3000)::int) FROM generate_series(1, 9)");
        cluster.switch_wal();
    }
    cluster.psql(&format!(
        "SELECT count(pg_logical_emit_message(false, '', repeat('y', 50000)))
        FROM generate_series(1, {})",
        mb * 25
    ));
    let last = cluster.switch_wal();
    cluster.wait_archived(&last);
}

/// Crashes the server in the middle of a record, so that its beginning is archived and its end never was written.
fn tear_a_record(archived: &mut Archived) {
    let cluster = &mut archived.cluster;
    cluster.psql(
        "CHECKPOINT;
         DO $$ DECLARE size int := setting::int FROM pg_settings WHERE name = 'wal_segment_size';
         BEGIN WHILE size - (pg_current_wal_insert_lsn() - '0/0') % size > 16384 LOOP
         PERFORM pg_logical_emit_message(false, '', repeat('f', 500)); END LOOP; END $$",
    );
    let begins = cluster.psql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    cluster.psql("SELECT pg_logical_emit_message(true, 'torn', repeat('xyzxz', 123456))\\g /dev/null");
    let ends = cluster.psql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    assert_ne!(begins, ends);
    cluster.kill9();
    fs::remove_file(cluster.pgdata().join("pg_wal").join(ends)).unwrap();
    cluster.append_configuration("max_connections = 77\n");
    cluster.start();
}

/// Replaces the server by a standby of it that was promoted.
fn promote_a_standby(archived: &mut Archived, tablespace: &Path) {
    let (scene, cluster) = (&archived.scene, &archived.cluster);
    let pgdata = scene.path().join("standby");
    let mapping = format!("{}={}", tablespace.display(), scene.folder("mapped").display());
    let arguments = ["-D", pgdata.to_str().unwrap(), "-c", "fast", "-T", &mapping];
    cluster.pg_run("pg_basebackup", arguments);
    scene.write("standby/standby.signal", "");
    let mut standby = Cluster::adopt(pgdata, cluster.installation());
    standby.append_configuration(&format!("primary_conninfo = '{}'\n", cluster.conninfo()));
    standby.start();
    let written = cluster.psql("INSERT INTO t (v) VALUES ('last'); SELECT pg_current_wal_flush_lsn()");
    standby.wait_for(&format!("SELECT pg_last_wal_replay_lsn() >= '{written}'"), "t");
    archived.cluster.kill9();
    standby.psql("SELECT pg_promote()\\g /dev/null");
    archived.cluster = standby;
}

fn has(records: &[Record], fits: impl Fn(&Fact) -> bool) -> bool {
    records.iter().any(|record| fits(&record.fact))
}

fn facts_of_the_first_timeline(records: &[Record], tablespace: &Path) {
    let path = tablespace.to_str().unwrap();
    assert!(has(records, |f| matches!(f, Fact::TablespaceCreate { oid, path: p } if p == path && *oid > 16_000)));
    assert!(has(records, |f| matches!(f, Fact::RestorePoint { name, .. } if name == "before deploy")));
    assert!(has(records, |f| matches!(f, Fact::ParameterChange(p) if p.max_connections == 77)));
    let torn = records.iter().find_map(|record| match record.fact {
        Fact::OverwriteContrecord { overwritten, .. } => Some((record, overwritten)),
        _ => None,
    });
    let (overwrite, torn) = torn.expect("a record that was given up");
    assert!(torn < overwrite.start && !records.iter().any(|record| record.start == torn));
    for (gid, committed) in [("to be kept", true), ("to be dropped", false)] {
        let prepared = records.iter().find_map(|record| match &record.fact {
            Fact::Prepare(prepared) if prepared.gid == gid => Some(prepared.xid),
            _ => None,
        });
        let xid = prepared.expect(gid);
        let ended = |fact: &Fact| match fact {
            Fact::Commit(end) if committed => end.prepared && end.xid == xid && end.gid.as_deref() == Some(gid),
            Fact::Abort(end) if !committed => end.prepared && end.xid == xid && end.gid.as_deref() == Some(gid),
            _ => false,
        };
        assert!(has(records, ended));
        let rule = StopRule::Xid { xid: xid.into(), inclusive: false };
        let mut finder = StopFinder::new(rule, records[0].start);
        records.iter().for_each(|record| finder.show(record));
        let stop = finder.finish().stop.expect("it ended");
        assert_eq!(stop.at.unwrap().committed, committed);
        assert!(stop.prepared.iter().any(|open| open.gid == gid));
    }
    for record in records {
        if let Fact::Checkpoint(checkpoint) = &record.fact {
            assert!(checkpoint.redo <= record.start && checkpoint.next_xid > 700, "{checkpoint:?}");
            assert_eq!(checkpoint.wal_level.is_some(), has(records, |f| matches!(f, Fact::CheckpointRedo { .. })));
        }
    }
}

#[test]
fn every_record_on_every_version() {
    for_each_version(|pg| {
        let mut archived = Archived::new(pg, 1);
        let tablespace = archived.tablespace();
        work(&archived, 1);
        tear_a_record(&mut archived);
        work(&archived, 1);
        let first = archived.compare(1);
        facts_of_the_first_timeline(&first, &tablespace);
        promote_a_standby(&mut archived, &tablespace);
        work(&archived, 1);
        let second = archived.compare(2);
        assert!(has(&second, |fact| match fact {
            Fact::EndOfRecovery { timeline, previous, .. } => (timeline.get(), previous.get()) == (2, 1),
            Fact::Checkpoint(c) => (c.timeline.get(), c.previous.get()) == (2, 1),
            _ => false,
        }));
        the_path_of_both(&archived, &second);
        archived.cluster.stop(Stop::Immediate);
    });
}

/// At the switch the path takes the younger timeline's copy of the segment.
fn the_path_of_both(archived: &Archived, second: &[Record]) {
    let young = archived.segments(2);
    let switch = young[0];
    let mut path: Vec<SegmentName> =
        archived.segments(1).into_iter().filter(|old| (old.log, old.segment) < (switch.log, switch.segment)).collect();
    path.extend(young);
    let (records, reader) = archived.walk(&path, usize::MAX);
    assert!(matches!(reader.end(), End::OfInput { .. }), "{:?}", reader.end());
    assert!(records.len() > second.len() && records.ends_with(second));
    let timelines = check_segment(switch, &fs::read(archived.archive.join(switch.to_string())).unwrap()).unwrap();
    assert!(timelines.timelines.last().unwrap().0.get() <= 2 && timelines.timelines[0].0.get() == 1);
    let partial = fs::read_dir(&archived.archive).unwrap().find_map(|file| {
        let file = file.unwrap();
        match file.file_name().to_str()?.parse() {
            Ok(WalFile::Partial(name)) => Some((name, fs::read(file.path()).unwrap())),
            _ => None,
        }
    });
    let (name, bytes) = partial.expect("the first timeline's last segment");
    let mut check = SegmentCheck::partial(name, bytes.len() as u64);
    check.feed(&bytes).unwrap();
    assert!(matches!(check.finish().unwrap().end, SegmentEnd::Partial { .. }));
    assert!(check_segment(name, &bytes).is_err());
}

/// One version; all of them in the long run.
fn on_some(test: impl Fn(&Installation)) {
    if std::env::var_os("WALDEN_TEST_LONG").is_some_and(|long| long == "1") {
        for_each_version(test);
    } else {
        test(any());
    }
}

#[test]
fn segments_of_other_sizes() {
    on_some(|pg| {
        for mb in [16, 64] {
            let archived = Archived::new(pg, mb);
            let _ = archived.tablespace();
            work(&archived, mb);
            archived.compare(1);
        }
    });
}

/// The server is killed while it writes, again and again.
#[test]
fn crashes_leave_wal_that_is_read_as_recovery_reads_it() {
    on_some(|pg| {
        let mut archived = Archived::new(pg, 1);
        archived.cluster.psql("CREATE TABLE c (id bigserial, v text)");
        for crash in 0..6 {
            let load = "DO $$ BEGIN LOOP INSERT INTO c (v) SELECT repeat(md5(random()::text), (random() * 900)::int);
                COMMIT; PERFORM pg_logical_emit_message(false, 'm', repeat('m', (random() * 90000)::int)); END LOOP; END $$";
            let mut psql = archived.cluster.pg("psql");
            psql.args(["-X", "-d", &archived.cluster.conninfo(), "-c", load])
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            let mut psql = psql.spawn().unwrap();
            std::thread::sleep(Duration::from_millis(150 + 70 * crash));
            archived.cluster.kill9();
            assert!(!psql.wait().unwrap().success());
            archived.cluster.start();
        }
        archived
            .cluster
            .psql("DO $$ BEGIN FOR i IN 1..200 LOOP INSERT INTO c (v) VALUES (i); COMMIT; END LOOP; END $$");
        let last = archived.cluster.switch_wal();
        archived.cluster.wait_archived(&last);
        archived.compare(1);
    });
}

/// By the name of a segment, out of the repository.
#[test]
fn a_segment_of_the_archive_is_shown() {
    let p = Protected::new(any(), Place::Directory, |builder| builder.wal_segment_size(1));
    p.cluster.psql("SELECT pg_switch_wal()");
    p.cluster.psql("CHECKPOINT; CREATE TABLE t (n int); SELECT pg_create_restore_point('before deploy')");
    // It goes on in the next segment, and is counted where it starts.
    let begins = p.cluster.psql("SELECT pg_walfile_name(pg_current_wal_lsn())");
    p.cluster.psql("SELECT pg_logical_emit_message(true, 'long', repeat('xyzxz', 500000))\\g /dev/null");
    let _ = p.archive();
    let shown: serde_json::Value = serde_json::from_str(p.walden(["--json", "wal", "show", &begins]).ok()).unwrap();
    assert_eq!((&shown["ending"], &shown["unfinished"]), (&"full".into(), &serde_json::Value::Null), "{shown}");
    let event =
        |what: &str| shown["events"]["items"].as_array().unwrap().iter().any(|told| told["fact"]["what"] == what);
    assert!(event("restore-point") && event("checkpoint"));
    let text = p.walden(["wal", "show", "--ends", &begins]);
    let commits = shown["transactions"].as_array().unwrap();
    assert!(!commits.is_empty());
    for commit in commits {
        let (lsn, xid) = (commit["lsn"].as_str().unwrap(), commit["xid"].to_string());
        assert!(text.ok().lines().any(|line| line.starts_with(lsn) && line.contains(&xid) && line.ends_with("commit")));
    }
    assert!(text.ok().contains("restore point \"before deploy\" at 20"), "{text}");
    let middle = begins.parse::<SegmentName>().unwrap().next(SegmentSize::new(1 << 20).unwrap()).unwrap().to_string();
    let middle: serde_json::Value = serde_json::from_str(p.walden(["--json", "wal", "show", &middle]).ok()).unwrap();
    assert_eq!(
        (&middle["records"], &middle["ending"]),
        (&0.into(), &"full".into()),
        "nothing starts in the middle of it"
    );
    p.walden(["wal", "show", "0000000100000000000000FF"]).expect_code(1);
    p.walden(["wal", "show", "./0000000100000000000000FF"]).expect_code(1);
    p.walden(["wal", "show", p.config.to_str().unwrap()]).expect_code(6);
}

/// Bytes of a real archive are changed at random: nothing panics, and no record is read that was not written.
#[test]
fn damaged_segments_are_read_up_to_the_damage() {
    let archived = Archived::new(any(), 1);
    let _ = archived.tablespace();
    work(&archived, 1);
    let names = archived.segments(1);
    let (records, _) = archived.walk(&names, usize::MAX);
    let whole: Vec<u8> =
        names.iter().flat_map(|name| fs::read(archived.archive.join(name.to_string())).unwrap()).collect();
    let mut random = fastrand::Rng::with_seed(5);
    for _ in 0..300 {
        let mut bytes = whole.clone();
        for _ in 0..random.usize(1..5) {
            let at = random.usize(..bytes.len());
            let end = bytes.len().min(at + random.usize(1..50));
            bytes[at..end].fill(random.u8(..));
        }
        let mut reader = Reader::new(names[0].start(SegmentSize::new(1 << 20).unwrap()).unwrap());
        let read: Vec<Record> = reader.read(&bytes).collect();
        assert!(read.len() <= records.len() && read == records[..read.len()], "{:?}", reader.end());
        let first = &bytes[..1 << 20];
        let _ = check_segment(names[0], first);
        let mut partial = SegmentCheck::partial(names[0], 1 << 20);
        let _ = partial.feed(first).and_then(|()| partial.finish());
    }
}
