//! The load: several connections at once, backups between, and what each transaction wrote.

use std::{
    fmt::Write as _,
    thread,
    time::{Duration, Instant},
};

use walden_testkit::{clock::Clock, postgres::Cluster, protected::Protected, run::run_with_input};

use crate::oracle::Ledger;

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

/// Load in several rounds, with a backup before each of the first ones. Before each round and in the middle of it a
/// clock is set back to about the beginning of the first, so that many a time comes several times.
pub fn load(p: &Protected, clock: Option<&Clock>, rng: &mut fastrand::Rng) -> Ledger {
    p.cluster
        .psql("create table ledger (row text); create index on ledger (row); create table counters as select 0 as n");
    p.cluster.psql("create extension amcheck");
    let (mut told, begun) = (Vec::new(), Instant::now());
    for round in 0..4 {
        if round < 3 {
            let _ = p.backup();
        }
        let (before, amid) = (rng.f64(), rng.f64());
        let set = |again: f64| clock.map(|clock| clock.set(again - begun.elapsed().as_secs_f64()));
        set(before);
        thread::scope(|scope| {
            let workers: Vec<_> = (0..3)
                .map(|worker| {
                    let (mut rng, cluster) = (rng.fork(), &p.cluster);
                    scope.spawn(move || work(cluster, worker, round, &mut rng))
                })
                .collect();
            thread::sleep(Duration::from_millis(100));
            set(amid);
            told.extend(workers.into_iter().flat_map(|w| w.join().unwrap()));
        });
        if round == 1 {
            p.cluster.psql("checkpoint");
            let _ = p.cluster.switch_wal();
        }
    }
    let _ = p.archive();
    Ledger::read(p, told)
}
