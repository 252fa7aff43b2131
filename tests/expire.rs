//! Expiry on a real cluster: what stays can be restored, what goes is what a dry run tells, and a kill at any request
//! leaves whole backups alone and a rerun that ends what was begun.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use serde_json::Value;
use walden::{
    clock::{Random, SystemClock},
    interrupt::Interrupter,
    keep::{self, Policy},
    repository::System,
    store::{
        Store,
        dir::DirStore,
        faulty::{Faulty, Trouble},
    },
};
use walden_testkit::{
    postgres::any,
    protected::{Place, Protected},
    run::run,
    s3::S3Server,
};

/// A cluster with this many backups that build on each other, and WAL between and after them.
fn with_backups(place: Place<'_>, count: usize) -> (Protected, Vec<String>) {
    let p = Protected::new(any(), place, |b| b.setting("autovacuum", "off"));
    p.cluster.psql("create table t as select n, repeat('x', 100) as text from generate_series(1, 20000) as n");
    p.cluster.psql("create table marks (n int)");
    let mut ids = Vec::new();
    for number in 0..count {
        p.cluster.psql(&format!(
            "update t set text = md5(text) where n % 97 = {number}; insert into marks values ({number})"
        ));
        let _ = p.archive();
        ids.push(p.backup());
        let _ = p.archive();
    }
    p.cluster.psql("insert into marks values (1000)");
    let _ = p.archive();
    (p, ids)
}

fn rules(p: &Protected, keep: &str) {
    let text = fs::read_to_string(&p.config).unwrap();
    let before = text.split("\n[keep]").next().unwrap();
    p.scene.write("walden.toml", format!("{before}\n[keep]\n{keep}\n"));
}

fn listed(p: &Protected) -> Vec<String> {
    let document: Value = serde_json::from_str(p.walden(["list", "--json"]).ok()).unwrap();
    let backups = document["systems"][0]["backups"].as_array().unwrap();
    backups.iter().map(|b| b["id"].as_str().unwrap().to_owned()).collect()
}

/// Restores a backup, or the end of the log, and has PostgreSQL's own program look at it.
fn restore(p: &Protected, wish: &[&str]) {
    let pgdata = p.scene.path().join("copy");
    let mut command = p.command(["-q", "restore", "--yes", "--pgdata"]);
    run(command.arg(&pgdata).args(wish)).expect_code(0);
    let verify = p.cluster.installation().program("pg_verifybackup");
    run(p.cluster.owner().command(verify).arg("-n").arg(&pgdata)).expect_code(0);
    fs::remove_dir_all(&pgdata).unwrap();
}

fn what_stays_can_be_restored(place: Place<'_>) {
    let (p, ids) = with_backups(place, 4);
    // Without rules nothing of it goes.
    p.walden(["expire"]).expect_code(0);
    assert_eq!(listed(&p), ids);

    rules(&p, "last = 2");
    let dry = p.walden(["expire", "--dry-run"]);
    assert_eq!(listed(&p), ids);
    let done = p.walden(["expire"]);
    assert_eq!(dry.ok(), done.ok());
    assert_eq!(listed(&p), ids[2..]);
    for id in &ids[2..] {
        restore(&p, &["--to=immediate", "--backup", id]);
    }
    restore(&p, &["--to=latest"]);
    let again = p.walden(["expire"]);
    assert!(again.ok().contains("nothing goes"), "{again}");
    // The next one builds on what is left.
    let next = p.backup();
    restore(&p, &["--to=immediate", "--backup", &next]);
}

#[test]
fn what_stays_in_a_directory_can_be_restored() {
    what_stays_can_be_restored(Place::Directory);
}

#[test]
fn what_stays_in_a_bucket_can_be_restored() {
    let server = S3Server::start();
    what_stays_can_be_restored(Place::Bucket(&server));
    assert!(server.requests().iter().any(|request| request.operation == "DeleteObjects"));
}

#[test]
fn what_is_pinned_stays_and_what_is_promised_is_not_deleted() {
    let (p, ids) = with_backups(Place::Directory, 3);
    rules(&p, "last = 1");
    p.walden(["pin", &ids[0]]).expect_code(0);
    p.walden(["delete", &ids[0]]).expect_code(4);
    p.walden(["delete", "20200101T000000Z"]).expect_code(1);
    p.walden(["expire"]).expect_code(0);
    assert_eq!(listed(&p), [ids[0].clone(), ids[2].clone()]);
    // What comes now is recovered from the newest.
    let refused = p.walden(["delete", &ids[2]]);
    refused.expect_code(4);
    assert!(refused.stderr.contains("could not be recovered"), "{refused}");
    p.walden(["unpin", &ids[0]]).expect_code(0);
    p.walden(["expire"]).expect_code(0);
    assert_eq!(listed(&p), ids[2..]);
    // The only one.
    p.walden(["delete", "--force", &ids[2]]).expect_code(4);
    restore(&p, &["--to=latest"]);
}

#[test]
fn what_a_copy_is_yet_to_replay_stays_for_a_while() {
    let (p, ids) = with_backups(Place::Directory, 2);
    rules(&p, "last = 1");
    restore(&p, &["--to=immediate", "--backup", &ids[0]]);
    let held = p.walden(["expire"]);
    assert!(held.ok().contains("held"), "{held}");
    assert_eq!(listed(&p), ids);
}

#[test]
fn a_backup_under_way_keeps_what_it_builds_on() {
    let (p, ids) = with_backups(Place::Directory, 2);
    rules(&p, "last = 1");
    p.cluster.psql("update t set text = md5(text) where n % 2 = 0; checkpoint");
    let mut slow = p.command(["-q", "backup", "--rate-limit=2MB"]);
    let slow = slow.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let system = p.cluster.psql("select system_identifier from pg_control_system()");
    let folder = p.repository.join(format!("main/{system}-1/backups"));
    let begun = || {
        let mut folders = fs::read_dir(&folder).unwrap().flatten().map(|entry| entry.path());
        folders.any(|path| path.join("intent-1.json").exists() && !path.join("backup-1.json").exists())
    };
    while !begun() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let expired = p.walden(["expire"]);
    assert!(expired.ok().contains("is being taken"), "{expired}");
    assert_eq!(listed(&p), ids[1..]);
    let ended = slow.wait_with_output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let new = String::from_utf8(ended.stdout).unwrap().trim().to_owned();
    // Now it is the last one, and keeps what it needs of those that are gone.
    p.walden(["expire"]).expect_code(0);
    assert_eq!(listed(&p), std::slice::from_ref(&new));
    restore(&p, &["--to=immediate", "--backup", &new]);
    restore(&p, &["--to=latest"]);
}

#[test]
fn a_name_below_the_horizon_is_refused_unless_it_is_there() {
    let p = Protected::new(any(), Place::Directory, |b| b.setting("wal_keep_size", "1GB"));
    p.cluster.psql("create table t (n int)");
    let _ = p.backup();
    let old = p.archive();
    let _ = p.backup();
    let _ = p.archive();
    rules(&p, "last = 1");
    p.walden(["expire"]).expect_code(0);
    let path = p.cluster.pgdata().join("pg_wal").join(&old);
    assert!(path.exists(), "{} was kept by the server", path.display());
    let push = |name: &Path| p.walden([Path::new("wal"), Path::new("push"), name]);
    let refused = push(&path);
    refused.expect_code(4);
    assert!(refused.stderr.contains("removed by walden expire"), "{refused}");
}

// A kill at any request.

fn store_of(folder: &Path) -> Arc<dyn Store> {
    Arc::new(DirStore::open(folder.to_owned(), Arc::new(Random::seeded(7))).unwrap())
}

/// Every object below a folder.
fn objects(folder: &Path) -> BTreeSet<String> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let all = runtime.block_on(async { walden::store::list_all(&*store_of(folder), "").await }).unwrap();
    let counts = |key: &String| !key.contains("/lease/") && !key.contains("/notes/condemned/");
    all.into_iter().map(|listed| listed.key.to_string()).filter(counts).collect()
}

/// Whether each backup that is listed has all its parts and the WAL that makes it consistent.
fn each_listed_backup_is_whole(folder: &Path, what: &str) -> usize {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let [system] = System::all(&store_of(folder), &"main".parse().unwrap()).await.unwrap().try_into().unwrap();
        let system: System = system;
        let backups = system.backups().await.unwrap();
        for backup in &backups {
            let needed = system.parts_by_folder(backup).await.unwrap();
            let there = system.parts_there(needed.keys().copied()).await.unwrap();
            let all = needed.iter().flat_map(|(of, numbers)| numbers.iter().map(move |number| (*of, *number)));
            assert!(all.into_iter().all(|part| there.contains_key(&part)), "{what}: backup {} lacks parts", backup.id);
            let (first, last) = (backup.first_segment, backup.last_segment);
            let wal = system.segments(first.timeline, Some(first), Some(last)).await.unwrap();
            let size = system.document.segment_size;
            let wanted = last.number(size).unwrap() + 1 - first.number(size).unwrap();
            assert_eq!(wal.len() as u64, wanted, "{what}: backup {} lacks WAL", backup.id);
        }
        backups.len()
    })
}

/// Expires with trouble at one request; whether it was met.
fn expire(folder: &Path, at: usize, trouble: Trouble) -> (bool, bool) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let faulty = Arc::new(Faulty::new(store_of(folder), at, trouble));
        let store: Arc<dyn Store> = faulty.clone();
        let (cluster, policy) = ("main".parse().unwrap(), Policy { last: 2, ..Policy::default() });
        let interrupter = Interrupter::new();
        let random = Random::from_system();
        let expired = async {
            let now = walden::clock::Clock::now(&SystemClock);
            let plan = keep::plan_expiry(&store, &cluster, &policy, now).await?;
            keep::carry_out(&plan, &[], Arc::new(SystemClock), &random, &interrupter.listen()).await
        };
        (expired.await.is_ok(), faulty.met())
    })
}

#[test]
fn a_kill_at_any_request_leaves_whole_backups_and_a_rerun_that_ends_it() {
    let (p, _) = with_backups(Place::Directory, 5);
    let copy = |name: &str| -> PathBuf {
        let to = p.scene.path().join(name);
        let _ = fs::remove_dir_all(&to);
        run(Command::new("cp").args(["-al"]).arg(&p.repository).arg(&to)).expect_code(0);
        to
    };
    let clean = copy("clean");
    assert_eq!(expire(&clean, usize::MAX, Trouble::Die), (true, false));
    let (expected, before) = (objects(&clean), objects(&p.repository));
    assert!(expected.is_subset(&before) || expected.difference(&before).all(|key| key.contains("/notes/horizon/")));
    assert_eq!(each_listed_backup_is_whole(&clean, "clean"), 2);

    for trouble in [Trouble::Die, Trouble::LoseAnswer, Trouble::Fail] {
        for at in 0.. {
            let what = format!("{trouble:?} at {at}");
            let folder = copy("killed");
            let (_, met) = expire(&folder, at, trouble);
            let left = each_listed_backup_is_whole(&folder, &what);
            assert!((2..=5).contains(&left), "{what}: {left} backups");
            // The lease of this very process stays, and would keep the next one waiting.
            for lease in fs::read_dir(folder.join("main")).unwrap().flatten() {
                let _ = fs::remove_dir_all(lease.path().join("lease"));
            }
            assert_eq!(expire(&folder, usize::MAX, Trouble::Die), (true, false), "{what}");
            assert_eq!(objects(&folder), expected, "{what}");
            if !met {
                break;
            }
        }
    }
}
