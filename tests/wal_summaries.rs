//! Backups of a server that keeps WAL summaries (17 and later): what no summary names is not read, and the copy is right
//! all the same.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

use std::fs;

use serde_json::Value;
use walden_testkit::{
    postgres::{Cluster, Installation, for_each_version},
    protected::{Place, Protected},
    run::run,
};

const MB: u64 = 1 << 20;
const SUM: &str = "select md5(string_agg(t::text, ',' order by n)) from t";

fn on_each(test: impl Fn(&Installation)) {
    for_each_version(|installation| {
        if installation.major >= 17 {
            test(installation);
        }
    });
}

fn summarizing(installation: &Installation, checksums: bool) -> Protected {
    Protected::new(installation, Place::Directory, |b| {
        b.checksums(checksums)
            .setting("autovacuum", "off")
            .setting("summarize_wal", "on")
            .setting("max_wal_size", "4GB")
    })
}

/// A table of so many megabytes, in which a row can change within its page.
fn fill(p: &Protected, megabytes: u64) {
    p.cluster.psql("create table t (n int, text text) with (fillfactor = 90)");
    let rows = megabytes * 128 * 7;
    p.cluster.psql(&format!("insert into t select n, repeat('x', 960) from generate_series(1, {rows}) as n"));
    let size: u64 = p.cluster.psql("select pg_relation_size('t')").parse().unwrap();
    assert!(size > megabytes * MB * 9 / 10, "{size}");
}

/// Takes a backup; gives its document.
fn backup(p: &Protected) -> Value {
    serde_json::from_str(p.walden(["-q", "--json", "backup"]).ok()).unwrap()
}

fn read(document: &Value) -> u64 {
    document["read"].as_u64().unwrap()
}

/// The copy, recovered and promoted; pg_verifybackup and pg_amcheck have said that it is right.
fn restored(p: &Protected, document: &Value, name: &str) -> Cluster {
    let pgdata = p.scene.path().join(name);
    let backup = format!("--backup={}", document["id"].as_str().unwrap());
    let sockets = format!("--set=unix_socket_directories={}", p.scene.folder(&format!("{name}-sockets")).display());
    let common = ["-q", "restore", "--to=immediate", "--yes", &backup];
    let checked = p.scene.path().join(format!("{name}-checked"));
    p.walden([&common[..], &["--pgdata", checked.to_str().unwrap()]].concat()).expect_code(0);
    let verify = p.cluster.installation().program("pg_verifybackup");
    run(p.cluster.owner().command(verify).arg("-n").arg(&checked)).expect_code(0);
    fs::remove_dir_all(&checked).unwrap();
    let more = ["--start", "--then=promote", "--set=listen_addresses=", &sockets, "--pgdata", pgdata.to_str().unwrap()];
    p.walden([&common[..], &more].concat()).expect_code(0);
    let copy = Cluster::attach(&pgdata, p.cluster.installation());
    copy.pg_run("pg_amcheck", ["--install-missing", "--heapallindexed", "--database=postgres"]);
    copy
}

#[test]
fn of_a_great_table_only_the_blocks_that_changed_are_read() {
    on_each(|installation| {
        let p = summarizing(installation, true);
        fill(&p, 200);
        p.cluster.psql("create index on t (n)");
        p.cluster.psql("vacuum freeze t");
        let first = backup(&p);
        assert!(read(&first) > 200 * MB);
        let change = |to: &str| p.cluster.psql(&format!("update t set text = '{to}' where n in (7, 70007, 150007)"));
        change("changed");
        let second = backup(&p);
        assert!(read(&second) < 8 * MB, "{} bytes were read", read(&second));
        assert!(second["stored"].as_u64().unwrap() < 4 * MB);
        assert_eq!(restored(&p, &second, "copy").psql(SUM), p.cluster.psql(SUM));

        // Switched off, and where the summaries are gone, all is read, and found to be what was not read before.
        change("again");
        let mut without = p.command(["-q", "--json", "backup"]);
        without.env("WALDEN_BACKUP_WAL_SUMMARIES", "false");
        let third: Value = serde_json::from_str(run(&mut without).ok()).unwrap();
        assert!(read(&third) > 180 * MB);
        assert!(third["stored"].as_u64().unwrap() < 4 * MB);
        change("and again");
        p.cluster.psql("checkpoint");
        // The one that would cover the change must be there to be removed.
        let written =
            "select max(end_lsn) >= (select redo_lsn from pg_control_checkpoint()) from pg_available_wal_summaries()";
        p.cluster.wait_for(written, "t");
        for entry in fs::read_dir(p.cluster.pgdata().join("pg_wal/summaries")).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        let fourth = backup(&p);
        assert!(read(&fourth) > 180 * MB);
        assert_eq!(restored(&p, &fourth, "last").psql(SUM), p.cluster.psql(SUM));
    });
}

#[test]
fn hint_bits_that_are_not_logged_may_stay_behind() {
    on_each(|installation| {
        let p = summarizing(installation, false);
        fill(&p, 30);
        let _ = backup(&p);
        // Every page gets hint bits, and none of them a record.
        p.cluster.psql("select count(*) from t");
        p.cluster.psql("update t set text = 'changed' where n = 7");
        let second = backup(&p);
        assert!(read(&second) < 8 * MB, "{} bytes were read", read(&second));
        let copy = restored(&p, &second, "copy");
        assert_eq!(copy.psql(SUM), p.cluster.psql(SUM));
        // They are set again, and another backup of the original takes them from there.
        p.cluster.psql("delete from t where n % 1000 = 1");
        let third = backup(&p);
        assert_eq!(restored(&p, &third, "third").psql(SUM), p.cluster.psql(SUM));
    });
}

#[test]
fn what_was_cut_and_grew_again_and_what_took_anothers_number_is_read_anew() {
    on_each(|installation| {
        let p = summarizing(installation, true);
        fill(&p, 30);
        p.cluster.psql("create database one");
        p.cluster
            .psql_db("one", "create table t as select n, repeat('1', 100) as text from generate_series(1, 40000) n");
        p.cluster.psql("create database two template one");
        p.cluster.psql_db("two", "update t set text = repeat('2', 100)");
        p.cluster.psql_db("two", "vacuum full t");
        p.cluster.psql("create database reused oid 50000 template one strategy file_copy");
        let _ = backup(&p);

        // Shorter and longer again, by other rows; the blocks in between were never named by number alone.
        p.cluster.psql("delete from t where n > 5000");
        p.cluster.psql("vacuum t");
        p.cluster.psql("insert into t select n, repeat('y', 960) from generate_series(5001, 20000) as n");
        // Another database under the same number, whose files have the numbers of the one that was there.
        p.cluster.psql("drop database reused");
        p.cluster.psql("create database reused oid 50000 template one");
        p.cluster.psql_db("reused", "update t set text = repeat('3', 100) where n < 20000");
        let second = backup(&p);
        let copy = restored(&p, &second, "copy");
        let others = "select md5(string_agg(t::text, ',' order by n)) from t";
        assert_eq!(copy.psql(SUM), p.cluster.psql(SUM));
        for database in ["one", "two", "reused"] {
            assert_eq!(copy.psql_db(database, others), p.cluster.psql_db(database, others), "{database}");
        }

        // A copy of files writes no block's number into the log.
        p.cluster.psql("drop database reused");
        p.cluster.psql("create database reused oid 50000 template two strategy file_copy");
        let third = backup(&p);
        let copy = restored(&p, &third, "third");
        assert_eq!(copy.psql_db("reused", others), p.cluster.psql_db("two", others));
    });
}

/// A relation's end is cut off, and pages come back there that were never written to: PostgreSQL adds more of them at a
/// time than it needs, zeros of which the log says nothing. What stood in their place must not come back.
#[test]
fn what_was_cut_off_does_not_come_back_in_pages_that_are_empty() {
    on_each(|installation| {
        for way in [&[][..], &["--remote"]] {
            let p = summarizing(installation, true);
            let backup = || -> Value {
                serde_json::from_str(p.walden([&["-q", "--json", "backup"], way].concat()).ok()).unwrap()
            };
            fill(&p, 8);
            p.cluster.psql("vacuum freeze t");
            let rows: u32 = p.cluster.psql("select count(*) from t").parse().unwrap();
            // The log of the time since the one that counts knows nothing of the table's beginning.
            let _ = backup();
            let _ = backup();
            p.cluster.psql(&format!("delete from t where n > {}", rows / 10 * 9));
            p.cluster.psql("vacuum t");
            // Many rows at a time: the file grows by more pages than the last of them need.
            let program = format!("seq {} {} | sed 's/$/\\t{}/'", rows + 1, rows + 300, "y".repeat(960));
            p.cluster.psql(&format!("copy t from program $${program}$$"));
            p.cluster.psql("create extension pageinspect");
            let empty = "select count(*) from generate_series(0, pg_relation_size('t') / 8192 - 1) as b
                         where get_raw_page('t', b::int) = decode(repeat('00', 8192), 'hex')";
            assert_ne!(p.cluster.psql(empty), "0", "no page came back empty");
            let second = backup();
            assert!(second["stored"].as_u64().unwrap() < 3 * MB, "{way:?}: not by what changed alone");
            assert_eq!(restored(&p, &second, "copy").psql(SUM), p.cluster.psql(SUM), "{way:?}");
        }
    });
}
