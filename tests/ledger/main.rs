//! The ledger: what was committed is written down outside the database. Every plan must stop where PostgreSQL's own stop
//! rule does, and every restore must hold exactly the rows that the rule grants. Targets of every kind are drawn at
//! random.
//!
//! `pg_waldump` of each version is the witness of where and when each transaction ended. `WALDEN_TEST_LONG=1` draws
//! two hundred targets a version instead of a few, another number as many; `WALDEN_TEST_SEED` repeats a run.

#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

mod load;
mod oracle;

use serde_json::Value;
use walden::postgres::Lsn;
use walden_testkit::{
    clock::Clock,
    postgres::{Cluster, Installation, Stop, any, for_each_version},
    protected::{Place, Protected},
    run::Ran,
    s3::S3Server,
};

use self::oracle::{Answer, Ended, Ledger};

/// How many targets are planned, and how many of them restored.
#[derive(Clone, Copy)]
struct Count {
    plans: usize,
    restores: usize,
}

impl Count {
    /// So many, or those of the long run.
    fn or_long(plans: usize, restores: usize) -> Self {
        let long = std::env::var("WALDEN_TEST_LONG").ok().map(|n| n.parse().unwrap_or(1));
        match long.filter(|n| *n > 0).map(|n| if n == 1 { 200 } else { n }) {
            Some(long) => Self { plans: plans.max(long), restores: restores.max(long) },
            None => Self { plans, restores },
        }
    }
}

/// One cluster, what happened on it, and its archive.
struct Scene<'a> {
    p: Protected,
    installation: &'a Installation,
    ledger: Ledger,
    rng: fastrand::Rng,
    /// Of this run, for messages.
    told: String,
    restored: usize,
}

impl<'a> Scene<'a> {
    fn new(installation: &'a Installation, place: Place<'_>, clock: Option<&Clock>) -> Self {
        let seed =
            std::env::var("WALDEN_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
        let mut rng = fastrand::Rng::with_seed(seed);
        // Segments of other sizes go the same road.
        let segment_mb = match installation.major {
            14 => 1,
            16 => 64,
            _ => 16,
        };
        let mut p = Protected::new(installation, place, |b| {
            let b = clock.map_or(b.clone(), |clock| b.clock(clock));
            b.wal_segment_size(segment_mb)
                .setting("max_prepared_transactions", 10)
                .setting("wal_keep_size", "1GB")
                .setting("track_commit_timestamp", "on")
        });
        let ledger = load::load(&p, clock, &mut rng);
        // The copies take its port.
        p.cluster.stop(Stop::Fast);
        let told = format!("PostgreSQL {}, seed {seed}", installation.major);
        Self { p, installation, ledger, rng, told, restored: 0 }
    }

    /// Holds the plan for a target, and if that is wished the restore, against what is right.
    fn check(&mut self, target: &str, more: &[&str], answer: &Answer, restore: bool) {
        let ran = self.p.walden([&["--json", "plan", "--to", target], more].concat());
        let what = format!("{}: {target} {more:?}: {answer:?}", self.told);
        let stop = match (answer, ran.code) {
            (Answer::No | Answer::Perhaps(_), Some(3)) => return,
            (Answer::Several(places), Some(3)) => return self.choose(target, &ran, places, restore),
            (Answer::At(stop) | Answer::Perhaps(stop), Some(0)) => Some(*stop),
            (Answer::All, Some(0)) => None,
            _ => panic!("{what}: {ran}"),
        };
        let plan: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{what}: {e}: {ran}"));
        let limit = stop.map_or(Lsn(u64::MAX), oracle::Stop::limit);
        if let Some(stop) = stop {
            let planned = (&plan["stop"]["lsn"], &plan["stop"]["inclusive"]);
            assert_eq!(planned, (&Value::from(stop.lsn.to_string()), &Value::from(stop.inclusive)), "{what}: {ran}");
        }
        // One from before the backup began need not be named.
        let begin: Lsn = plan["backup"]["start_lsn"].as_str().unwrap().parse().unwrap();
        let last = self.ledger.ended.iter().rfind(|e| e.committed && e.lsn < limit);
        let named = |e: &Ended| plan["last_commit"]["xid"] == e.xid || e.lsn < begin;
        assert!(last.is_none_or(named), "{what}: {last:?}: {ran}");
        // A rollback that the target is near to may be named in its place.
        let mut after = self.ledger.ended.iter().filter(|e| e.lsn >= limit);
        let out = [after.clone().next(), after.find(|e| e.committed)].map(|e| e.map_or(Value::Null, |e| e.xid.into()));
        assert!(out.contains(&plan["first_left_out"]["xid"]), "{what}: {out:?}: {ran}");
        if restore {
            let (rows, wanted) = (self.restore(target, more), self.ledger.rows(limit));
            let missing: Vec<_> = wanted.iter().filter(|r| !rows.contains(r)).collect();
            let extra: Vec<_> = rows.iter().filter(|r| !wanted.contains(r)).collect();
            assert!(missing.is_empty() && extra.is_empty(), "{what}: missing {missing:?}, too many {extra:?}");
        }
    }

    /// A time that means several places: all are told, and each can be chosen, by its LSN and by its backup.
    fn choose(&mut self, target: &str, refused: &Ran, places: &[(String, oracle::Stop)], restore: bool) {
        for (backup, stop) in places {
            let answer = Answer::At(*stop);
            assert!(refused.stderr.contains(&stop.lsn.to_string()), "{}: {stop:?}: {refused}", self.told);
            self.check(&format!("before:{}", stop.lsn), &[], &answer, restore);
            self.check(target, &["--backup", backup], &answer, false);
        }
    }

    /// Restores a target, starts the copy, and gives the rows it holds.
    fn restore(&mut self, target: &str, more: &[&str]) -> Vec<String> {
        self.restored += 1;
        let pgdata = self.p.scene.path().join(format!("restored-{}", self.restored));
        // With --start the restore itself compares what was reached with the plan.
        let restore = ["-q", "restore", "--yes", "--start", "--to", target, "--pgdata", pgdata.to_str().unwrap()];
        self.p.walden([&restore, more].concat()).expect_code(0);
        let mut copy = Cluster::attach(&pgdata, self.installation);
        let mut rows: Vec<String> = copy.psql("select row from ledger").lines().map(str::to_owned).collect();
        rows.sort();
        if self.restored.is_multiple_of(5) {
            let checks = ["--database=postgres", "--heapallindexed", "--parent-check"];
            // The last of them needs a copy that takes writes.
            copy.pg_run("pg_amcheck", &checks[..if target == "latest" { 3 } else { 2 }]);
        }
        copy.stop(Stop::Immediate);
        drop(copy);
        std::fs::remove_dir_all(&pgdata).unwrap();
        rows
    }
}

fn the_ledger_holds(installation: &Installation, place: Place<'_>, count: Count) {
    let mut scene = Scene::new(installation, place, None);
    for number in 0..count.plans {
        let (target, answer) = scene.ledger.draw(&mut scene.rng);
        scene.check(&target, &[], &answer, number < count.restores);
    }
}

#[test]
fn every_target_restores_the_rows_committed_by_then() {
    let count = Count::or_long(40, 4);
    for_each_version(|installation| the_ledger_holds(installation, Place::Directory, count));
}

#[test]
fn every_target_restores_the_rows_committed_by_then_from_a_bucket() {
    let count = Count::or_long(3, 3);
    for_each_version(|installation| {
        let server = S3Server::start();
        the_ledger_holds(installation, Place::Bucket(&server), count);
    });
}

/// A server whose clock is set back again and again under load. A time can then mean two places, and a person chooses.
#[test]
fn a_clock_that_goes_back_misleads_nobody() {
    let Some(clock) = Clock::find() else { return };
    let count = Count::or_long(30, 3);
    let run = |installation: &Installation| {
        clock.set(0.0);
        let mut scene = Scene::new(installation, Place::Directory, Some(&clock));
        let times: Vec<_> = scene.ledger.ended.iter().map(|e| e.time).collect();
        assert!(!times.is_sorted(), "{}: the clock did not go back", scene.told);
        let mut several = 0;
        for number in 0..count.plans {
            // Every other one with several answers, if there are such.
            let mut drawn: Vec<_> = (0..100).map(|_| scene.ledger.draw_time(&mut scene.rng)).collect();
            let wanted = drawn.iter().position(|(_, a)| matches!(a, Answer::Several(_)) == (number % 2 == 0));
            let (target, answer) = drawn.swap_remove(wanted.unwrap_or_default());
            several += usize::from(matches!(answer, Answer::Several(_)));
            scene.check(&target, &[], &answer, number < count.restores);
        }
        eprintln!("{}: {several} of {} times mean several places", scene.told, count.plans);
    };
    if count.plans >= 200 { for_each_version(run) } else { run(any()) }
}
