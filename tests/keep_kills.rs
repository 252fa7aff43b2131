//! Whoever removes or writes anew is killed with SIGKILL, or has others beside it, or is refused: the real programs, over a
//! real S3 server that takes its time. What is kept stays whole, and can be restored.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

use std::{
    fs,
    process::{Child, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::Value;
use walden_testkit::{
    postgres::any,
    protected::{Place, Protected},
    run::run,
    s3::{Fault, S3Server, What},
};

/// What is kept of the backups, and that expiry compacts.
const RULES: &str = "[keep]\nlast = 2\ncompact = 60\n";

/// A cluster with four backups, of the first of which little is living.
fn churned(server: &S3Server) -> (Protected, Vec<String>) {
    let p = Protected::new(any(), Place::Bucket(server), |b| b.setting("autovacuum", "off"));
    p.cluster
        .psql("create table great as select n, repeat(md5(n::text), 8) as text from generate_series(1, 60000) as n");
    p.cluster.psql("create table small as select n, md5(n::text) as text from generate_series(1, 20000) as n");
    p.cluster.psql("vacuum freeze great; vacuum freeze small; checkpoint");
    let mut ids = vec![p.backup()];
    p.cluster.psql("drop table great; checkpoint");
    for number in 0..3 {
        p.cluster.psql(&format!("update small set text = md5(text) where n % 997 = {number}"));
        let _ = p.archive();
        ids.push(p.backup());
        let _ = p.archive();
    }
    (p, ids)
}

fn rules(p: &Protected, rules: &str) {
    let text = fs::read_to_string(&p.config).unwrap();
    p.scene.write("walden.toml", format!("{text}\n{rules}"));
}

fn listed(p: &Protected) -> Vec<String> {
    let document: Value = serde_json::from_str(p.walden(["list", "--json"]).ok()).unwrap();
    let backups = document["systems"][0]["backups"].as_array().unwrap();
    backups.iter().map(|b| b["id"].as_str().unwrap().to_owned()).collect()
}

fn started(p: &Protected, arguments: &[&str]) -> Child {
    p.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Restores each backup and the end of the log, and has PostgreSQL's own program look at them.
fn each_can_be_restored(p: &Protected, ids: &[String]) {
    let wishes = ids.iter().map(|id| vec!["--to=immediate", "--backup", id]).chain([vec!["--to=latest"]]);
    for wish in wishes {
        let pgdata = p.scene.path().join("copy");
        run(p.command(["-q", "restore", "--yes", "--pgdata"]).arg(&pgdata).args(wish)).expect_code(0);
        verified(p, &pgdata);
        fs::remove_dir_all(&pgdata).unwrap();
    }
}

fn verified(p: &Protected, pgdata: &std::path::Path) {
    let verify = p.cluster.installation().program("pg_verifybackup");
    run(p.cluster.owner().command(verify).arg("-n").arg(pgdata)).expect_code(0);
}

#[test]
fn whoever_is_killed_while_expiring_and_compacting_leaves_whole_backups() {
    let server = S3Server::start();
    let (p, ids) = churned(&server);
    rules(&p, RULES);
    server.set_latency(Duration::from_millis(5));
    let (mut kills, mut time) = (0, Duration::from_millis(60));
    loop {
        let mut expiry = started(&p, &["expire"]);
        sleep(time);
        let ended = expiry.try_wait().unwrap();
        if ended.is_none() {
            expiry.kill().unwrap();
            kills += 1;
        }
        let output = expiry.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        p.walden(["verify"]).expect_code(0);
        assert_eq!(listed(&p)[listed(&p).len() - 2..], ids[2..], "after {kills} kills: {said}");
        if let Some(status) = ended {
            assert!(status.success(), "after {kills} kills: {said}");
            if said.contains("nothing goes") && !said.contains("written anew") {
                break;
            }
        }
        // Longer and longer, so that each goes a little further.
        time = time * 5 / 4;
    }
    assert!(kills > 4, "{kills} kills");
    server.set_latency(Duration::ZERO);
    assert_eq!(listed(&p), ids[2..]);
    p.walden(["verify", "--deep"]).expect_code(0);
    assert!(p.walden(["compact", "--dry-run"]).ok().contains("in no part"), "what was begun was ended");
    each_can_be_restored(&p, &ids[2..]);
}

#[test]
fn a_restore_that_runs_keeps_what_it_reads() {
    let server = S3Server::start();
    let (p, ids) = churned(&server);
    rules(&p, "[keep]\nlast = 1\n");
    let pgdata = p.scene.path().join("copy");
    let wish = ["-q", "restore", "--yes", "--rate-limit=8MB", "--to=immediate", "--backup", &ids[0], "--pgdata"];
    let restore = started(&p, &[&wish[..], &[pgdata.to_str().unwrap()]].concat());
    let begun = Instant::now();
    while !server.keys().iter().any(|key| key.contains("/lease/hold")) {
        assert!(begun.elapsed() < Duration::from_secs(30), "no hold came: {:?}", server.keys());
        sleep(Duration::from_millis(5));
    }
    let expired = p.walden(["expire"]);
    assert!(expired.ok().contains("held"), "{expired}");
    assert!(!pgdata.join("global/pg_control").exists(), "the restore was over before");
    assert_eq!(listed(&p), [ids[0].clone(), ids[3].clone()]);
    let restored = restore.wait_with_output().unwrap();
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    verified(&p, &pgdata);
    fs::remove_dir_all(&pgdata).unwrap();
    each_can_be_restored(&p, &ids[3..]);
}

#[test]
fn a_store_that_refuses_to_delete_loses_nothing_and_is_told() {
    let server = S3Server::start();
    let (p, ids) = churned(&server);
    rules(&p, RULES);
    server.fault(Fault::new(What::Error(403, "AccessDenied")).on("DeleteObjects"));
    let refused = p.walden(["expire"]);
    refused.expect_code(5);
    assert!(refused.stderr.contains("refused access") && refused.stderr.contains("delete objects"), "{refused}");
    p.walden(["verify", "--deep"]).expect_code(0);
    server.heal();
    p.walden(["expire"]).expect_code(0);
    assert_eq!(listed(&p), ids[2..]);
    p.walden(["expire"]).expect_code(0);
    each_can_be_restored(&p, &ids[2..]);
}
