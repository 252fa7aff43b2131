//! Compaction: parts of which only a little is living are written anew, and every backup stays what it was, byte for
//! byte, whatever happens in between.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

use std::{
    collections::BTreeSet,
    fs,
    ops::Range,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use walden::{
    Error, Result,
    clock::{Clock, Random, SystemClock},
    interrupt::Interrupter,
    keep::{
        self, Policy,
        compact::{Around, Compacting, carry_out_compaction, plan_compaction},
    },
    progress::Unwatched,
    repository::System,
    store::{
        Answer, Download, Key, Listed, Put, Store, Upload,
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

/// A cluster of whose first backup little is living: what was large in it is gone, what never changed is not.
fn churned(place: Place<'_>, encrypted: bool) -> (Protected, Vec<String>) {
    let p = Protected::new(any(), place, |b| b.setting("autovacuum", "off"));
    if encrypted {
        let identity = p.scene.path().join("identity.txt");
        let made = run(p.command(["keys", "generate", "--output"]).arg(&identity));
        p.walden(["keys", "add", made.ok()]).expect_code(0);
        let text = fs::read_to_string(&p.config).unwrap();
        let named = format!("[encryption]\nidentity_file = \"{}\"", identity.display());
        p.scene.write("walden.toml", text.replace("[encryption]", &named));
    }
    p.cluster
        .psql("create table great as select n, repeat(md5(n::text), 8) as text from generate_series(1, 300000) as n");
    p.cluster.psql("create table small as select n, md5(n::text) as text from generate_series(1, 30000) as n");
    p.cluster.psql("vacuum freeze great; vacuum freeze small; checkpoint");
    let _ = p.backup();
    p.cluster.psql("drop table great; checkpoint");
    let mut ids = Vec::new();
    for number in 0..2 {
        p.cluster.psql(&format!("update small set text = md5(text) where n % 997 = {number}"));
        let _ = p.archive();
        ids.push(p.backup());
        let _ = p.archive();
    }
    let text = fs::read_to_string(&p.config).unwrap();
    p.scene.write("walden.toml", format!("{text}\n[keep]\nlast = 2\n"));
    p.walden(["expire"]).expect_code(0);
    (p, ids)
}

fn how() -> Compacting {
    Compacting { below: 60, limit: u64::MAX, rate_limit: None, level: 1 }
}

/// A backup as pg_basebackup would have written it.
fn export(p: &Protected, id: &str, name: &str) -> PathBuf {
    let to = p.scene.path().join(name);
    run(p.command(["-q", "export", "--backup", id, "--to"]).arg(&to)).expect_code(0);
    to
}

#[track_caller]
fn same(before: &Path, after: &Path) {
    run(Command::new("diff").arg("-r").arg(before).arg(after)).expect_code(0);
}

fn each_backup_stays_what_it_was(place: Place<'_>, encrypted: bool) {
    let (p, ids) = churned(place, encrypted);
    let before: Vec<_> = ids.iter().map(|id| export(&p, id, &format!("before-{id}"))).collect();
    let bytes = || {
        let document: serde_json::Value = serde_json::from_str(p.walden(["list", "--space", "--json"]).ok()).unwrap();
        let parts = &document["systems"][0]["parts"];
        (parts["bytes"].as_u64().unwrap(), parts["content"].as_u64().unwrap(), parts["living"].as_u64().unwrap())
    };
    let (stored, content, living) = bytes();

    let dry = p.walden(["compact", "--dry-run"]);
    assert!(dry.ok().contains("written anew: part"), "{dry}");
    assert_eq!(bytes(), (stored, content, living));
    let done = p.walden(["compact"]);
    assert_eq!(dry.ok(), done.ok());
    assert!(done.stderr.contains("2 backups have new manifests"), "{done}");
    for (id, before) in ids.iter().zip(&before) {
        same(before, &export(&p, id, &format!("between-{id}")));
    }
    p.walden(["verify", "--deep"]).expect_code(0);
    p.walden(["expire"]).expect_code(0);
    let (stored_now, content_now, living_now) = bytes();
    assert!(
        stored_now < stored && content_now < content && living_now == living,
        "{stored_now} {content_now} {living_now}"
    );
    assert!(living_now * 10 > content_now * 9, "{living_now} of {content_now} are living");
    for (id, before) in ids.iter().zip(&before) {
        same(before, &export(&p, id, &format!("after-{id}")));
    }
    p.walden(["verify", "--deep", "--anew"]).expect_code(0);
    assert!(p.walden(["expire"]).ok().contains("nothing goes"));
    assert!(!p.walden(["compact"]).ok().contains("written anew"));

    // The next one builds on what was written anew.
    p.cluster.psql("update small set text = md5(text) where n % 997 = 5");
    let next = p.backup();
    let document: serde_json::Value = serde_json::from_str(p.walden(["list", "--json"]).ok()).unwrap();
    let newest = document["systems"][0]["backups"].as_array().unwrap().last().unwrap().clone();
    assert!(newest["stored"].as_u64().unwrap() < stored_now / 2, "{newest}");
    for wish in [["--to=immediate", "--backup", next.as_str()].as_slice(), &["--to=latest"]] {
        let pgdata = p.scene.path().join("copy");
        run(p.command(["-q", "restore", "--yes", "--pgdata"]).arg(&pgdata).args(wish)).expect_code(0);
        let verify = p.cluster.installation().program("pg_verifybackup");
        run(p.cluster.owner().command(verify).arg("-n").arg(&pgdata)).expect_code(0);
        fs::remove_dir_all(&pgdata).unwrap();
    }
}

#[test]
fn each_backup_in_a_directory_stays_what_it_was() {
    each_backup_stays_what_it_was(Place::Directory, false);
}

#[test]
fn each_backup_in_an_encrypted_repository_stays_what_it_was() {
    each_backup_stays_what_it_was(Place::Directory, true);
}

#[test]
fn each_backup_in_a_bucket_stays_what_it_was() {
    each_backup_stays_what_it_was(Place::Bucket(&S3Server::start()), false);
}

#[test]
fn an_expiry_that_is_told_to_compacts() {
    let (p, ids) = churned(Place::Directory, false);
    let before = export(&p, &ids[1], "before");
    let text = fs::read_to_string(&p.config).unwrap();
    p.scene.write("walden.toml", text.replace("last = 2", "last = 1\ncompact = 60"));
    let dry = p.walden(["expire", "--dry-run"]);
    let done = p.walden(["expire"]);
    assert_eq!(dry.ok(), done.ok());
    assert!(done.stdout.contains("written anew: part") && done.stderr.contains("1 backups have new"), "{done}");
    let second = p.walden(["expire"]);
    assert!(second.ok().contains("that no backup needs any more"), "{second}");
    same(&before, &export(&p, &ids[1], "after"));
}

// Kills, faults, and others in between.

fn store_of(folder: &Path) -> Arc<dyn Store> {
    Arc::new(DirStore::open(folder.to_owned(), Arc::new(Random::seeded(7))).unwrap())
}

/// Forgets who had leases and holds: they are taken for dead.
fn forget_leases(folder: &Path) {
    for system in fs::read_dir(folder.join("main")).unwrap().flatten() {
        let _ = fs::remove_dir_all(system.path().join("lease"));
    }
}

async fn system_of(store: &Arc<dyn Store>) -> Result<System> {
    Ok(System::all(store, &"main".parse().unwrap()).await?.pop().unwrap())
}

async fn compact(store: &Arc<dyn Store>) -> Result<bool> {
    let system = system_of(store).await?;
    let interrupter = Interrupter::new();
    let around = Around {
        clock: Arc::new(SystemClock),
        random: Arc::new(Random::from_system()),
        progress: Arc::new(Unwatched),
        interrupt: interrupter.listen(),
    };
    let plan = plan_compaction(&system, &how(), &[]).await?;
    carry_out_compaction(&system, &plan, &how(), &around).await.map(|done| done.folder.is_some())
}

async fn expire(store: &Arc<dyn Store>, last: u32) -> Result<()> {
    let policy = Policy { last, ..Policy::default() };
    let plan = keep::plan_expiry(store, &"main".parse().unwrap(), &policy, SystemClock.now()).await?;
    let interrupter = Interrupter::new();
    keep::carry_out(&plan, &[], Arc::new(SystemClock), &Random::from_system(), &interrupter.listen()).await.map(drop)
}

/// The backups that are listed, each of which has all that it needs.
async fn whole(store: &Arc<dyn Store>, what: &str) -> Vec<String> {
    let system = system_of(store).await.unwrap();
    let backups = system.backups().await.unwrap();
    for backup in &backups {
        let needed = system.parts_needed(backup).await.unwrap();
        let there = system.parts_there(needed.iter().map(|part| part.backup)).await.unwrap();
        for part in needed {
            let name = (part.backup, part.number);
            assert_eq!(there.get(&name), Some(&part.length), "{what}: backup {} lacks part {name:?}", backup.id);
        }
    }
    backups.iter().map(|backup| backup.id.to_string()).collect()
}

/// Parts that are there, and nobody needs.
async fn litter(store: &Arc<dyn Store>) -> usize {
    system_of(store).await.unwrap().stock().await.unwrap().unneeded.len()
}

/// Each request is tried in a long run, each so many in a short one.
fn step(short: usize) -> usize {
    if std::env::var("WALDEN_TEST_LONG").is_ok_and(|long| long != "0") { 1 } else { short }
}

fn copy(p: &Protected) -> PathBuf {
    let to = p.scene.path().join("tried");
    let _ = fs::remove_dir_all(&to);
    run(Command::new("cp").arg("-al").arg(&p.repository).arg(&to)).expect_code(0);
    to
}

#[test]
fn a_kill_or_a_fault_at_any_request_leaves_every_backup_whole() {
    let (p, ids) = churned(Place::Directory, false);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for (number, trouble) in [Trouble::Die, Trouble::LoseAnswer, Trouble::Fail].into_iter().enumerate() {
        for at in (number..).step_by(step(7)) {
            let what = format!("{trouble:?} at {at}");
            let folder = copy(&p);
            let met = runtime.block_on(async {
                let (plain, faulty) = (store_of(&folder), Arc::new(Faulty::new(store_of(&folder), at, trouble)));
                let _ = compact(&(faulty.clone() as Arc<dyn Store>)).await;
                assert_eq!(whole(&plain, &what).await, ids, "{what}");
                forget_leases(&folder);
                // Whatever was left, an expiry clears it up, and the next compaction ends what was begun.
                expire(&plain, 2).await.unwrap();
                assert_eq!(whole(&plain, &what).await, ids, "{what}");
                compact(&plain).await.unwrap();
                expire(&plain, 2).await.unwrap();
                assert_eq!(whole(&plain, &what).await, ids, "{what}");
                assert_eq!(litter(&plain).await, 0, "{what}");
                assert!(!compact(&plain).await.unwrap(), "{what}");
                faulty.met()
            });
            if !met {
                break;
            }
        }
    }
}

/// A store in which, before one of its calls, an expiry takes everybody for dead and does its work.
#[derive(Debug)]
struct Meanwhile {
    inner: Arc<dyn Store>,
    folder: PathBuf,
    calls: AtomicUsize,
    at: usize,
    last: u32,
}

impl Meanwhile {
    async fn call<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        if self.calls.fetch_add(1, Ordering::SeqCst) == self.at {
            forget_leases(&self.folder);
            let (inner, last) = (self.inner.clone(), self.last);
            // Another process, which knows nothing of this one.
            let other = std::thread::spawn(move || {
                tokio::runtime::Runtime::new().unwrap().block_on(expire(&inner, last)).unwrap();
            });
            other.join().unwrap();
        }
        work.await
    }
}

impl Store for Meanwhile {
    fn url(&self) -> String {
        self.inner.url()
    }

    fn put<'a>(&'a self, key: &'a Key, bytes: Bytes) -> Answer<'a, Put> {
        Box::pin(self.call(self.inner.put(key, bytes)))
    }

    fn upload<'a>(&'a self, key: &'a Key) -> Answer<'a, Box<dyn Upload>> {
        Box::pin(self.call(self.inner.upload(key)))
    }

    fn get<'a>(&'a self, key: &'a Key, range: Option<Range<u64>>) -> Answer<'a, Download> {
        Box::pin(self.call(self.inner.get(key, range)))
    }

    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a Key>, limit: usize) -> Answer<'a, Vec<Listed>> {
        Box::pin(self.call(self.inner.list(prefix, after, limit)))
    }

    fn folders<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<String>> {
        Box::pin(self.call(self.inner.folders(prefix)))
    }

    fn delete<'a>(&'a self, key: &'a Key) -> Answer<'a, ()> {
        Box::pin(self.call(self.inner.delete(key)))
    }

    fn delete_many<'a>(&'a self, keys: &'a [Key]) -> Answer<'a, Vec<(Key, Error)>> {
        Box::pin(self.call(self.inner.delete_many(keys)))
    }
}

#[test]
fn an_expiry_at_any_instant_that_takes_it_for_dead_harms_no_backup() {
    let (p, ids) = churned(Place::Directory, false);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    // The same rules, and such that one of the backups goes meanwhile.
    for last in [2, 1] {
        let mut ended = BTreeSet::new();
        for at in (last as usize..).step_by(step(5)) {
            let what = format!("an expiry with last = {last} at {at}");
            let folder = copy(&p);
            let met = runtime.block_on(async {
                let plain = store_of(&folder);
                let store = Meanwhile { inner: plain.clone(), folder: folder.clone(), calls: 0.into(), at, last };
                let store = Arc::new(store);
                ended.insert(compact(&(store.clone() as Arc<dyn Store>)).await.is_ok());
                let met = store.calls.load(Ordering::SeqCst) > at;
                let left = if met { &ids[2 - last as usize..] } else { &ids };
                assert_eq!(whole(&plain, &what).await, left, "{what}");
                forget_leases(&folder);
                expire(&plain, last).await.unwrap();
                compact(&plain).await.unwrap();
                expire(&plain, last).await.unwrap();
                assert_eq!(whole(&plain, &what).await, ids[2 - last as usize..], "{what}");
                assert_eq!(litter(&plain).await, 0, "{what}");
                met
            });
            if !met {
                break;
            }
        }
        assert_eq!(ended.len(), 2, "some were given up, others came to their end");
    }
}
