//! The ledger: what was committed is written down outside the database, and every restore must hold exactly the rows
//! that PostgreSQL's own stop rule grants to its target. Targets of every kind are drawn at random.
//!
//! `pg_waldump` of each version is the witness of where and when each transaction ended. `WALDEN_TEST_LONG=1` draws
//! two hundred targets a version instead of a few, another number as many; `WALDEN_TEST_SEED` repeats a run.

#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    thread,
};

use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use walden::postgres::Lsn;
use walden_testkit::{
    postgres::{Cluster, Installation, Stop, for_each_version},
    protected::{Place, Protected},
    run::run_with_input,
    s3::S3Server,
};

/// A commit or abort, as pg_waldump tells it.
#[derive(Clone, Debug)]
struct Ended {
    lsn: Lsn,
    xid: u32,
    time: DateTime<Utc>,
    committed: bool,
}

/// What happened, and what it put into the table.
struct Ledger {
    /// In the order of the log.
    ended: Vec<Ended>,
    /// Starts of all records.
    records: BTreeSet<Lsn>,
    /// Restore points by name.
    names: BTreeMap<String, Lsn>,
    /// Rows by the transaction that inserted them.
    rows: BTreeMap<u32, Vec<String>>,
    /// Subtransactions and their top transactions.
    subs: BTreeMap<u32, u32>,
    /// Where the first backup was consistent.
    earliest: Lsn,
}

/// One connection's work: inserts, some rolled back, some with subtransactions, some prepared.
fn work(cluster: &Cluster, worker: u32, round: u32, rng: &mut fastrand::Rng) -> Vec<(u32, u32, String)> {
    let mut sql = String::new();
    for n in 0..25 {
        let row = format!("{worker}.{round}.{n}");
        let insert = format!("insert into ledger values ('{row}');");
        let tell = format!("select 'xid', pg_current_xact_id()::xid, pg_current_xact_id()::xid, '{row}';");
        let _ = match rng.u32(0..10) {
            0 => writeln!(sql, "begin; {insert} rollback;"),
            1 => writeln!(
                sql,
                "begin; {insert} {tell} savepoint s; insert into ledger values ('{row}s'); \
                 select 'xid', pg_current_xact_id()::xid, xmin, '{row}s' from ledger where row = '{row}s'; release s; commit;"
            ),
            2 => writeln!(
                sql,
                "begin; {insert} {tell} prepare transaction '{row}'; {} prepared '{row}';",
                if rng.bool() { "commit" } else { "rollback" }
            ),
            3 => writeln!(sql, "select pg_create_restore_point('point {row}') is null; begin; {insert} {tell} commit;"),
            4 => writeln!(sql, "begin; {insert} {tell} update counters set n = n + 1; commit; select pg_sleep(0.01);"),
            _ => writeln!(sql, "begin; {insert} {tell} commit;"),
        };
    }
    let mut psql = cluster.pg("psql");
    psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-h"]).arg(cluster.socket_dir());
    psql.args(["-p", &cluster.port().to_string(), "-U", "postgres", "-d", "postgres", "-F", " "]);
    let ran = run_with_input(&mut psql, &sql);
    let tell = |line: &str| {
        let mut fields = line.strip_prefix("xid ")?.split(' ');
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?, fields.next()?.to_owned()))
    };
    ran.ok().lines().filter_map(tell).collect()
}

/// Load in several rounds, with a backup before each of the first ones.
fn load(p: &Protected, rng: &mut fastrand::Rng) -> Ledger {
    p.cluster
        .psql("create table ledger (row text); create index on ledger (row); create table counters as select 0 as n");
    p.cluster.psql("create extension amcheck");
    let mut told = Vec::new();
    for round in 0..4 {
        if round < 3 {
            let _ = p.backup();
        }
        thread::scope(|scope| {
            let workers: Vec<_> = (0..3)
                .map(|worker| {
                    let (mut rng, cluster) = (rng.fork(), &p.cluster);
                    scope.spawn(move || work(cluster, worker, round, &mut rng))
                })
                .collect();
            told.extend(workers.into_iter().flat_map(|w| w.join().unwrap()));
        });
        if round == 1 {
            p.cluster.psql("checkpoint");
            let _ = p.cluster.switch_wal();
        }
    }
    let _ = p.archive();
    let listed: serde_json::Value = serde_json::from_str(p.walden(["list", "--json"]).ok()).unwrap();
    let backups = &listed["systems"][0]["backups"];
    let first = backups[0]["start_lsn"].as_str().unwrap().to_owned();
    let (ended, records, names) = witness(&p.cluster, &first);
    let mut ledger = Ledger {
        ended,
        records,
        names,
        rows: BTreeMap::new(),
        subs: BTreeMap::new(),
        earliest: backups[0]["stop_lsn"].as_str().unwrap().parse().unwrap(),
    };
    for (top, sub, row) in told {
        ledger.rows.entry(top).or_default().push(row);
        if sub != top {
            ledger.subs.insert(sub, top);
        }
    }
    ledger
}

/// What pg_waldump says of all WAL from there on.
fn witness(cluster: &Cluster, start: &str) -> (Vec<Ended>, BTreeSet<Lsn>, BTreeMap<String, Lsn>) {
    let pg_wal = cluster.pgdata().join("pg_wal");
    let mut waldump = cluster.pg("pg_waldump");
    waldump.args(["-p", pg_wal.to_str().unwrap(), "-t", "1", "-s", start]).env("TZ", "UTC");
    // It ends with an error where the log ends.
    let said = walden_testkit::run::run(&mut waldump).stdout;
    let (mut ended, mut records, mut names) = (Vec::new(), BTreeSet::new(), BTreeMap::new());
    for line in said.lines() {
        let field = |from: &str, to: &str| line.split_once(from)?.1.split_once(to).map(|(value, _)| value.trim());
        let Some(lsn) = field("lsn: ", ",").and_then(|lsn| lsn.parse::<Lsn>().ok()) else { continue };
        let desc = line.split_once("desc: ").map_or("", |(_, desc)| desc);
        records.insert(lsn);
        if let Some(name) = desc.strip_prefix("RESTORE_POINT ") {
            names.entry(name.split(';').next().unwrap_or(name).trim().to_owned()).or_insert(lsn);
        }
        let (kind, rest) = desc.split_once(' ').unwrap_or((desc, ""));
        let committed = match kind {
            "COMMIT" | "COMMIT_PREPARED" => true,
            "ABORT" | "ABORT_PREPARED" => false,
            _ => continue,
        };
        let mut xid = field("tx: ", ",").and_then(|xid| xid.parse().ok()).unwrap_or(0);
        let mut time = rest;
        if kind.ends_with("PREPARED") {
            let (prepared, after) = rest.split_once(": ").unwrap_or_else(|| panic!("{line}"));
            xid = prepared.trim().parse().unwrap_or_else(|_| panic!("{line}"));
            time = after;
        }
        let time = time.split(" UTC").next().unwrap_or_default();
        let time =
            NaiveDateTime::parse_from_str(time, "%Y-%m-%d %H:%M:%S%.f").unwrap_or_else(|e| panic!("{line}: {e}"));
        ended.push(Ended { lsn, xid, time: time.and_utc(), committed });
    }
    assert!(ended.len() > 200 && !names.is_empty(), "pg_waldump says too little:\n{said}");
    (ended, records, names)
}

/// A target, and the first LSN whose commits it does not grant; `None` when it cannot be reached.
fn draw(ledger: &Ledger, rng: &mut fastrand::Rng) -> (String, Option<Lsn>) {
    let after: Vec<&Ended> = ledger.ended.iter().filter(|e| e.lsn >= ledger.earliest).collect();
    let one = after[rng.usize(..after.len())];
    let beyond = |lsn: Lsn| Lsn(lsn.0 + 1);
    let text = |time: DateTime<Utc>| time.format("%Y-%m-%d %H:%M:%S%.6f UTC").to_string();
    match rng.u32(0..12) {
        0 => ("latest".into(), Some(Lsn(u64::MAX))),
        1 | 2 => {
            let time = one.time + TimeDelta::microseconds(rng.i64(-300..300));
            let stop = ledger.ended.iter().find(|e| e.time > time).map(|e| e.lsn);
            (text(time), stop.filter(|lsn| *lsn >= ledger.earliest))
        }
        3 => {
            let stop = ledger.ended.iter().find(|e| e.time >= one.time).map(|e| e.lsn);
            (format!("before:{}", text(one.time)), stop.filter(|lsn| *lsn >= ledger.earliest))
        }
        4 | 5 => {
            let wanted = Lsn(one.lsn.0 + rng.u64(0..3) * 8);
            let record = ledger.records.range(wanted..).next();
            (wanted.to_string(), record.map(|lsn| beyond(*lsn)))
        }
        6 => {
            let wanted = Lsn(one.lsn.0 + rng.u64(0..3) * 8);
            (format!("before:{wanted}"), ledger.records.range(wanted..).next().map(|_| wanted))
        }
        7 => (format!("xid:{}", one.xid), Some(beyond(one.lsn))),
        8 => (format!("before:xid:{}", one.xid), Some(one.lsn)),
        9 => {
            let Some((sub, top)) = ledger.subs.iter().nth(rng.usize(..ledger.subs.len())) else {
                return ("latest".into(), Some(Lsn(u64::MAX)));
            };
            let end = ledger.ended.iter().find(|e| e.xid == *top).unwrap_or_else(|| panic!("{top} did not end"));
            (format!("xid:{sub}"), Some(beyond(end.lsn)).filter(|_| end.lsn >= ledger.earliest))
        }
        kind => {
            let (name, lsn) = ledger.names.iter().nth(rng.usize(..ledger.names.len())).unwrap();
            let reached = Some(*lsn).filter(|lsn| *lsn >= ledger.earliest);
            if kind == 10 {
                (format!("name:{name}"), reached.map(beyond))
            } else {
                (format!("before:name:{name}"), reached)
            }
        }
    }
}

fn expected(ledger: &Ledger, limit: Lsn) -> Vec<String> {
    let there = ledger.ended.iter().filter(|e| e.committed && e.lsn < limit);
    let mut rows: Vec<String> = there.flat_map(|e| ledger.rows.get(&e.xid).cloned().unwrap_or_default()).collect();
    rows.sort();
    rows
}

/// Restores a target, starts the copy, and gives the rows it holds.
fn restored(p: &Protected, installation: &Installation, target: &str, number: usize) -> Vec<String> {
    let pgdata = p.scene.path().join(format!("restored-{number}"));
    // With --start the restore itself compares what was reached with the plan.
    p.walden(["-q", "restore", "--yes", "--start", "--to", target, "--pgdata", pgdata.to_str().unwrap()])
        .expect_code(0);
    let mut copy = Cluster::attach(&pgdata, installation);
    let mut rows: Vec<String> = copy.psql("select row from ledger").lines().map(str::to_owned).collect();
    rows.sort();
    if number.is_multiple_of(5) {
        copy.pg_run(
            "pg_amcheck",
            ["--database=postgres", "--heapallindexed", "--parent-check"].iter().take(if target == "latest" {
                3
            } else {
                2
            }),
        );
    }
    copy.stop(Stop::Immediate);
    drop(copy);
    std::fs::remove_dir_all(&pgdata).unwrap();
    rows
}

fn the_ledger_holds(installation: &Installation, place: Place<'_>, few: usize) {
    let seed = std::env::var("WALDEN_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    let long = std::env::var("WALDEN_TEST_LONG")
        .ok()
        .map(|n| n.parse().unwrap_or(1))
        .map_or(0, |n| if n == 1 { 200 } else { n });
    let mut rng = fastrand::Rng::with_seed(seed);
    // Segments of other sizes go the same road.
    let segment_mb = match installation.major {
        14 => 1,
        16 => 64,
        _ => 16,
    };
    let mut p = Protected::new(installation, place, |b| {
        b.wal_segment_size(segment_mb)
            .setting("max_prepared_transactions", 10)
            .setting("wal_keep_size", "1GB")
            .setting("track_commit_timestamp", "on")
    });
    let ledger = load(&p, &mut rng);
    // The copies take its port.
    p.cluster.stop(Stop::Fast);
    for number in 0..few.max(long) {
        let (target, limit) = draw(&ledger, &mut rng);
        let what = format!("PostgreSQL {}, seed {seed}, target {number}: {target}", installation.major);
        match limit {
            Some(limit) => {
                let (rows, wanted) = (restored(&p, installation, &target, number), expected(&ledger, limit));
                let missing: Vec<_> = wanted.iter().filter(|r| !rows.contains(r)).collect();
                let extra: Vec<_> = rows.iter().filter(|r| !wanted.contains(r)).collect();
                assert!(missing.is_empty() && extra.is_empty(), "{what}: missing {missing:?}, too many {extra:?}");
            }
            None => {
                let refused = p.walden(["plan", "--to", &target]);
                assert_eq!(refused.code, Some(3), "{what}: {refused}");
            }
        }
    }
}

#[test]
fn every_target_restores_the_rows_committed_by_then() {
    for_each_version(|installation| the_ledger_holds(installation, Place::Directory, 6));
}

#[test]
fn every_target_restores_the_rows_committed_by_then_from_a_bucket() {
    for_each_version(|installation| {
        let server = S3Server::start();
        the_ledger_holds(installation, Place::Bucket(&server), 4);
    });
}
