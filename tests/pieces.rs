//! A segment that is not complete, in pieces: recovery reaches the last record that is whole in them, nobody gets them who
//! must not, and what was made of them never comes back as the segment.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use walden::{
    clock::Random,
    postgres::{Lsn, SegmentName, SegmentSize, TimelineId},
    repository::System,
    store::{Store, dir::DirStore},
    wal::Reader,
};
use walden_testkit::{
    postgres::{Cluster, Stop, any, for_each_version},
    protected::{Place, Protected},
    run::{Ran, run},
};

/// The bytes of one piece.
const EACH: usize = 5_000;

/// A cluster with a backup, all of whose WAL is archived. There is nothing that writes by itself.
fn protected(installation: &walden_testkit::postgres::Installation) -> Protected {
    let p = Protected::new(installation, Place::Directory, |b| b.setting("autovacuum", "off"));
    p.cluster.psql("create table t as select n, repeat('x', 100) as text from generate_series(1, 2000) as n");
    let _ = p.backup();
    p.cluster.psql("insert into t select n, 'archived' from generate_series(2001, 2100) as n");
    p.archive();
    p
}

/// The segment in use and how much of it is written.
fn current(cluster: &Cluster) -> (SegmentName, usize) {
    let end: Lsn = cluster.psql("select pg_current_wal_flush_lsn()").parse().unwrap();
    let size = SegmentSize::DEFAULT;
    (SegmentName::holding(TimelineId::FIRST, end, size), size.offset_of(end) as usize)
}

/// Stores what is written of the segment in use in pieces, as a receiver would: those of another one overlap them.
fn stream(p: &Protected) -> SegmentName {
    let (name, end) = current(&p.cluster);
    let wal = fs::read(p.cluster.pgdata().join("pg_wal").join(name.to_string())).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let system = system(p).await;
        let own = (0..end).step_by(EACH);
        for from in own.chain((EACH / 2..end).step_by(3 * EACH)) {
            let bytes = wal[from..end.min(from + EACH)].to_vec();
            system.put_piece(name, from as u64, bytes.into(), 1).await.unwrap();
        }
    });
    own(p, &places(p, name).0);
    name
}

/// Hands over a folder of the repository with what is in it.
fn own(p: &Protected, folder: &Path) {
    p.cluster.owner().own(folder);
    fs::read_dir(folder).unwrap().for_each(|entry| p.cluster.owner().own(&entry.unwrap().path()));
}

async fn system(p: &Protected) -> System {
    let store = DirStore::open(p.repository.clone(), Arc::new(Random::from_system())).unwrap();
    let store: Arc<dyn Store> = Arc::new(store);
    System::all(&store, &"main".parse().unwrap()).await.unwrap().remove(0)
}

/// The folder of a segment's pieces, and its own object.
fn places(p: &Protected, name: SegmentName) -> (PathBuf, PathBuf) {
    let system = fs::read_dir(p.repository.join("main")).unwrap().next().unwrap().unwrap().path();
    let folder = system.join(format!("wal/{}/{:08X}", name.timeline.hex(), name.log));
    (folder.join(format!("{name}.pieces")), folder.join(name.to_string()))
}

fn json(ran: &Ran) -> serde_json::Value {
    serde_json::from_str(ran.ok()).unwrap()
}

#[test]
fn recovery_reaches_the_last_record_that_was_streamed() {
    for_each_version(|installation| {
        let p = protected(installation);
        p.cluster.psql("insert into t select n, 'streamed' from generate_series(2101, 2200) as n");
        p.cluster.psql("create table stays as select 1 as a");
        let name = stream(&p);
        p.cluster.psql("insert into t select n, 'lost' from generate_series(2201, 2300) as n");

        let plan = json(&p.walden(["plan", "--to", "latest", "--json"]));
        assert_eq!(plan["last_segment"], name.to_string());
        let bytes = plan["from_pieces"].as_u64().unwrap();
        assert!(bytes > 0, "{plan}");
        let listed = p.walden(["list"]);
        assert!(listed.ok().contains(&format!("the last {bytes} bytes from pieces")), "{listed}");

        let copy = p.restored("latest", "latest", &["--then", "promote"]);
        assert_eq!(copy.psql("select count(*) from t"), "2200");
        assert_eq!(copy.psql("select a from stays"), "1");
    });
}

#[test]
fn every_kind_of_target_lies_in_pieces_too() {
    let p = protected(any());
    let xid = p.cluster.psql("begin; insert into t values (3001, 'one'); select pg_current_xact_id(); commit");
    let xid = xid.lines().find(|l| l.parse::<u64>().is_ok()).unwrap().to_owned();
    p.cluster.psql("select pg_create_restore_point('here')");
    let time =
        p.cluster.psql("select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || ' UTC'");
    p.cluster.psql("insert into t values (3002, 'two')");
    let lsn = p.cluster.psql("select pg_current_wal_insert_lsn()");
    p.cluster.psql("insert into t values (3003, 'three'); drop table if exists nothing");
    p.cluster.psql("create table gone as select 1 as a");
    p.cluster.psql("drop table gone");
    p.cluster.psql("insert into t values (3004, 'four')");
    let name = stream(&p);
    let found = json(&p.walden(["find", "--kind", "drop", "--json"]));
    assert_eq!(found["findings"][0]["kind"], "drop", "{found}");
    for (to, rows) in [
        (format!("xid:{xid}"), "2101"),
        (format!("before:xid:{xid}"), "2100"),
        ("name:here".to_owned(), "2101"),
        (time, "2101"),
        (format!("before:{lsn}"), "2102"),
        ("before-drop:gone".to_owned(), "2103"),
        ("latest".to_owned(), "2104"),
    ] {
        let plan = json(&p.walden(["plan", "--to", &to, "--json"]));
        assert_eq!(plan["last_segment"], name.to_string(), "{to}");
        assert!(plan["from_pieces"].as_u64().is_some_and(|bytes| bytes > 0), "{to}: {plan}");
        let folder = to.replace([':', ' ', '/'], "-");
        let copy = p.restored(&to, &folder, &[]);
        assert_eq!(copy.psql("select count(*) from t"), rows, "{to}");
    }
}

#[test]
fn a_lost_piece_ends_what_can_be_reached_and_is_told() {
    let p = protected(any());
    p.cluster.psql("insert into t select n, 'before' from generate_series(2101, 2110) as n");
    let (_, before) = current(&p.cluster);
    p.cluster.psql("insert into t select n, repeat('y', 900) from generate_series(2201, 2300) as n");
    let name = stream(&p);
    let (folder, _) = places(&p, name);
    let pieces = || {
        let mut pieces: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        pieces.sort();
        pieces
    };
    // All that hold some byte in the middle of what came last.
    let lost = before + 3 * EACH;
    for path in pieces() {
        let (from, to) = path.file_name().unwrap().to_str().unwrap().split_once('-').unwrap();
        let [from, to] = [from, to].map(|offset| usize::from_str_radix(offset, 16).unwrap());
        if (from..to).contains(&lost) {
            fs::remove_file(path).unwrap();
        }
    }
    let plan = json(&p.walden(["plan", "--to", "latest", "--json"]));
    assert!(plan["from_pieces"].as_u64().unwrap() < lost as u64, "{plan}");
    assert!(plan["warnings"].to_string().contains("are missing"), "{plan}");
    let listed = p.walden(["list"]);
    assert!(listed.ok().contains(&format!("of the pieces of {name} those from offset")), "{listed}");
    let copy = p.restored("latest", "copy", &["--then", "promote"]);
    assert_eq!(copy.psql("select count(*) from t"), "2110", "the transaction that was torn is not there");
    // The segment itself takes over, whatever became of its pieces.
    assert_eq!(p.archive(), name.to_string());
    let plan = json(&p.walden(["plan", "--to", "latest", "--json", "--timeline", "1"]));
    assert!(plan.get("from_pieces").is_none() && !plan["warnings"].to_string().contains("missing"), "{plan}");
    let listed = p.walden(["list"]);
    assert!(!listed.ok().contains("pieces"), "{listed}");
}

/// A data directory that nobody starts, for fetching into.
fn fetch(p: &Protected, pgdata: &Path, name: SegmentName, until: Option<SegmentName>, to: &str) -> Ran {
    let mut arguments = vec!["wal".to_owned(), "fetch".to_owned()];
    arguments.extend(until.map(|until| format!("--until={until}")));
    arguments.extend([name.to_string(), format!("pg_wal/{to}")]);
    let _ = fs::remove_file(pgdata.join("pg_wal").join(to));
    run(p.command(arguments).current_dir(pgdata))
}

#[test]
fn pieces_are_for_a_recovery_that_ends_in_them_and_nobody_else() {
    let p = protected(any());
    p.cluster.psql("insert into t select n, 'streamed' from generate_series(2101, 2200) as n");
    let name = stream(&p);
    let pgdata = p.scene.path().join("copy");
    let text = pgdata.to_str().unwrap();
    p.walden(["restore", "--to", "latest", "--pgdata", text, "--yes"]).expect_code(0);
    assert!(fs::read_to_string(pgdata.join("postgresql.auto.conf")).unwrap().contains(&format!("--until {name}")));
    let next = name.next(SegmentSize::DEFAULT).unwrap();
    let arrived = |to: &str| pgdata.join("pg_wal").join(to);
    let fetched = |until: Option<SegmentName>, to: &str| fetch(&p, &pgdata, name, until, to);

    fetched(Some(name), "RECOVERYXLOG").expect_code(0);
    let file = fs::read(arrived("RECOVERYXLOG")).unwrap();
    let (_, end) = current(&p.cluster);
    let source = fs::read(p.cluster.pgdata().join("pg_wal").join(name.to_string())).unwrap();
    let proven = file.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    assert!(file.len() == 16 << 20 && proven <= end && file[..proven] == source[..proven]);

    // No plan names it, or another segment as its last one: it is absent, or it is missing.
    fetched(None, "RECOVERYXLOG").expect_code(1);
    fetched(Some(next), "RECOVERYXLOG").expect_code(200);
    // A tool that asks for one file.
    fetched(Some(name), &name.to_string()).expect_code(200);
    // A server that archives what it restores.
    let auto = fs::read_to_string(arrived("../postgresql.auto.conf")).unwrap();
    fs::write(arrived("../postgresql.auto.conf"), format!("{auto}archive_mode = always\n")).unwrap();
    let refused = fetched(Some(name), "RECOVERYXLOG");
    assert!(refused.expect_code(200).stderr.contains("archive_mode = always"), "{refused}");
    fs::write(arrived("../postgresql.auto.conf"), auto).unwrap();
    // A standby asks again, until the whole segment is there.
    fs::rename(arrived("../recovery.signal"), arrived("../standby.signal")).unwrap();
    fetched(Some(name), "RECOVERYXLOG").expect_code(1);
    assert!(!arrived("RECOVERYXLOG").exists() && !arrived(&name.to_string()).exists());
    p.archive();
    fetched(Some(name), "RECOVERYXLOG").expect_code(0);
    assert_eq!(fs::read(arrived("RECOVERYXLOG")).unwrap()[..end], source[..end]);
}

#[test]
fn a_segment_made_of_pieces_never_comes_back_as_whole() {
    let mut p = protected(any());
    p.cluster.psql("insert into t select n, 'streamed' from generate_series(2101, 2200) as n");
    let name = stream(&p);
    // What was streamed is all that is left of the server.
    p.cluster.stop(Stop::Immediate);
    let copy = p.restored("latest", "copy", &["--then", "promote"]);
    assert_eq!(copy.psql("select count(*) from t"), "2200");
    let made = copy.pgdata().join("pg_wal").join(name.to_string());
    assert!(made.exists(), "the copy restored it");
    let pushed = run(p.command(["wal", "push", &format!("pg_wal/{name}")]).current_dir(copy.pgdata()));
    assert!(pushed.code != Some(0), "{pushed}");
    let (folder, object) = places(&p, name);
    assert!(!object.exists());

    copy.psql("insert into t values (4000, 'after')");
    p.walden(["adopt", "--pgdata", copy.pgdata().to_str().unwrap()]).expect_code(0);
    copy.psql("insert into t values (4001, 'adopted')");
    let last = copy.switch_wal();
    copy.wait_archived(&last);
    assert!(!object.exists() && folder.exists());
    assert!(!object.with_file_name(format!("{name}.partial")).exists());
    let again = p.restored("latest", "again", &["--then", "promote"]);
    assert_eq!(again.psql("select count(*) from t"), "2202");

    // A file whose last page alone is not full: all its pages are in place.
    let full = copy.psql("select pg_walfile_name(pg_current_wal_insert_lsn())");
    copy.psql("create table more as select n, repeat('z', 1000) as text from generate_series(1, 40000) as n");
    let mut bytes = fs::read(copy.pgdata().join("pg_wal").join(&full)).unwrap();
    let name: SegmentName = full.parse().unwrap();
    let start = name.start(SegmentSize::DEFAULT).unwrap();
    let last = Reader::new(start).read(&bytes).last().unwrap();
    assert!(last.start > start + ((16 << 20) - 8000), "the record begins on the last page");
    bytes[last.start.since(start) as usize..].fill(0);
    let forged = p.scene.write(&full, &bytes);
    let pushed = p.walden(["wal", "push", forged.to_str().unwrap()]);
    assert!(pushed.code != Some(0) && pushed.stderr.contains("not complete"), "{pushed}");
}
