//! A bucket that fails at one request of a backup that builds on others, whichever it is: what is listed can be restored,
//! and the next backup is as good as if nothing had been.
//!
//! `WALDEN_TEST_LONG` fails each request in turn instead of some of them; `WALDEN_TEST_SEED` repeats a run.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of a test may panic and tell like the test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use walden_testkit::{
    postgres::any,
    protected::{Place, Protected},
    run::run,
    s3::{Fault, S3Server, What},
};

/// Faults are given up soon.
const SHORT: [(&str, &str); 2] = [("WALDEN_REPOSITORY_REQUEST_TIMEOUT", "500ms"), ("WALDEN_REPOSITORY_DEADLINE", "2s")];

fn listed(p: &Protected) -> BTreeSet<String> {
    let document: Value = serde_json::from_str(p.walden(["list", "--json"]).ok()).unwrap();
    let backups = document["systems"][0]["backups"].as_array().unwrap();
    backups.iter().map(|b| b["id"].as_str().unwrap().to_owned()).collect()
}

/// The relation files of a data directory.
fn relations(pgdata: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders: Vec<PathBuf> = ["base", "global"].map(PathBuf::from).into();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(pgdata.join(&folder)).unwrap() {
            let path = folder.join(entry.unwrap().file_name());
            let name = path.file_name().unwrap().to_str().unwrap();
            if pgdata.join(&path).is_dir() {
                folders.push(path);
            } else if name != "pg_control" && !name.starts_with("pg_internal.init") {
                let content = fs::read(pgdata.join(&path)).unwrap();
                found.insert(path, content);
            }
        }
    }
    found
}

/// Restores a backup, and holds it against what the resting server's files were.
fn check(p: &Protected, id: &str, theirs: &BTreeMap<PathBuf, Vec<u8>>, what: &str) {
    let pgdata = p.scene.path().join("copy");
    let mut restore = p.command(["-q", "restore", "--to=immediate", "--yes", "--backup", id, "--pgdata"]);
    let ran = run(restore.arg(&pgdata));
    assert!(ran.code == Some(0), "{what}: {ran}");
    let ours = relations(&pgdata);
    let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&ours), names(theirs), "{what}");
    for (path, content) in theirs {
        assert!(ours[path] == *content, "{what}: {} differs", path.display());
    }
    fs::remove_dir_all(&pgdata).unwrap();
}

#[test]
fn whichever_request_fails_nothing_is_listed_that_cannot_be_restored() {
    let server = S3Server::start();
    let p = Protected::new(any(), Place::Bucket(&server), |b| b.setting("autovacuum", "off"));
    p.cluster.psql("create table t as select n, repeat('x', 100) as text from generate_series(1, 20000) as n");
    let _ = p.backup();
    let seed = std::env::var("WALDEN_TEST_SEED").ok().and_then(|s| s.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    let mut rng = fastrand::Rng::with_seed(seed);
    let is_long = std::env::var("WALDEN_TEST_LONG").is_ok_and(|n| n != "0");
    let mut known = listed(&p);
    let (mut at, mut failed) = (0, 0);
    loop {
        p.cluster.psql(&format!("update t set text = md5(text) where n % 997 = {at}; checkpoint"));
        // Once, or from then on, as if the backup had been killed.
        let (fault, how) = match rng.bool() {
            true => (Fault::new(What::Error(403, "AccessDenied")).skip(at).times(1), "once"),
            false => (Fault::new(What::Error(403, "AccessDenied")).skip(at), "from then on"),
        };
        let before = server.requests().len();
        server.fault(fault);
        let ran = run(p.command(["-q", "backup"]).envs(SHORT));
        server.heal();
        let all = server.requests().len() - before;
        let what = format!("seed {seed}: request {at} fails {how}");
        eprintln!("{what}: {:?}", ran.code);
        if at >= all {
            assert_eq!(ran.code, Some(0), "{what}: {ran}");
            break;
        }
        failed += usize::from(ran.code != Some(0));
        let again = p.walden(["-q", "backup"]);
        assert!(again.code == Some(0), "{what}: {again}");
        let theirs = relations(p.cluster.pgdata());
        let there = listed(&p);
        assert!(there.contains(again.stdout.trim()), "{what}");
        for id in there.difference(&known) {
            check(&p, id, &theirs, &what);
        }
        assert!(there.is_superset(&known), "{what}: a backup is gone");
        known = there;
        assert_eq!(server.open_uploads(), 0, "{what}: an upload was left open");
        at += if is_long { 1 } else { rng.usize(1..20) };
    }
    assert!(failed > 2, "seed {seed}: only {failed} backups failed");
}
