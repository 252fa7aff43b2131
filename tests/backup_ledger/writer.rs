//! The transactions that go on during a backup, and where each of them was committed.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use walden::postgres::Lsn;
use walden_testkit::{postgres::Cluster, run::run};

/// Accounts that transactions move balances of.
const ACCOUNTS: u32 = 20_000;

/// The tables that are written.
pub fn prepare(cluster: &Cluster) {
    cluster.psql(&format!(
        "create table ledger (n bigint primary key, a int, b int, xid xid8);
         create table account as select k, 0::numeric as balance, repeat('x', 100) as filler
            from generate_series(0, {ACCOUNTS} - 1) as k;
         create unique index on account (k)"
    ));
}

/// One transaction: its effect on accounts can be told from its row in the ledger.
fn transaction(n: u64, rng: &mut fastrand::Rng) -> String {
    let (a, b) = (rng.u32(..ACCOUNTS), rng.u32(..ACCOUNTS));
    let end = if rng.u32(0..8) == 0 { "rollback" } else { "commit" };
    format!(
        "begin; update account set balance = balance + {n} where k = {a};
         update account set balance = balance + {n} where k = {b};
         insert into ledger values ({n}, {a}, {b}, pg_current_xact_id()); {end};\n"
    )
}

/// Runs some transactions, from that number on.
pub fn some(cluster: &Cluster, first: u64, count: u64, rng: &mut fastrand::Rng) {
    let sql: String = (first..first + count).map(|n| transaction(n, rng)).collect();
    cluster.psql(&sql);
}

/// Does the work while transactions are written, from that number on, and while tables come, grow, shrink and go. Gives
/// back those that were committed, with their ids.
pub fn during<T>(
    cluster: &Cluster,
    first: u64,
    mut rng: fastrand::Rng,
    work: impl FnOnce() -> T,
) -> (T, Vec<(u64, u64)>) {
    let stop = AtomicBool::new(false);
    let mut churning = rng.fork();
    let done = thread::scope(|scope| {
        scope.spawn(|| {
            let mut next = first;
            while !stop.load(Ordering::Relaxed) {
                some(cluster, next, 7, &mut rng);
                next += 7;
            }
        });
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                cluster.psql(&churn(&mut churning));
            }
        });
        // Both end also when the work panics.
        let _stopper = Stopper(&stop);
        work()
    });
    let written = cluster.psql(&format!("select n, xid from ledger where n >= {first}"));
    let pair = |line: &str| {
        let (n, xid) = line.split_once('|')?;
        Some((n.parse().ok()?, xid.parse().ok()?))
    };
    (done, written.lines().filter_map(pair).collect())
}

struct Stopper<'a>(&'a AtomicBool);

impl Drop for Stopper<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn churn(rng: &mut fastrand::Rng) -> String {
    let mut sql = String::new();
    for _ in 0..4 {
        let (table, rows) = (rng.u32(0..4), rng.u32(1..6000));
        let name = format!("churn{table}");
        let _ = match rng.u32(0..5) {
            0 => writeln!(sql, "drop table if exists {name};"),
            1 => writeln!(sql, "create table if not exists {name} (n int, t text); truncate {name};"),
            2 => writeln!(
                sql,
                "create table if not exists {name} (n int, t text); delete from {name} where n > {rows}; vacuum {name};"
            ),
            _ => writeln!(
                sql,
                "create table if not exists {name} (n int, t text);
                 insert into {name} select n, repeat('c', 100) from generate_series(1, {rows}) as n;"
            ),
        };
    }
    sql
}

/// Where each transaction was committed, by `pg_waldump`, from there on.
pub fn commits(cluster: &Cluster, timeline: u64, start: Lsn) -> BTreeMap<u64, Lsn> {
    let pg_wal = cluster.pgdata().join("pg_wal");
    let mut waldump = cluster.pg("pg_waldump");
    waldump.args(["-p", pg_wal.to_str().unwrap(), "-t", &timeline.to_string(), "-s", &start.to_string()]);
    // It ends with an error where the log ends.
    let said = run(waldump.args(["-r", "Transaction"]));
    let mut found = BTreeMap::new();
    for line in said.stdout.lines().filter(|line| line.contains("desc: COMMIT")) {
        let field = |from: &str| Some(line.split_once(from)?.1.split_once(',')?.0.trim());
        if let (Some(xid), Some(lsn)) = (field("tx: "), field("lsn: ")) {
            found.insert(xid.parse().unwrap(), lsn.parse().unwrap());
        }
    }
    assert!(!found.is_empty(), "pg_waldump says too little: {said}");
    found
}
