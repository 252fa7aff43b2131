//! What S3 can do to a push, a fetch and a backup: the exit codes that PostgreSQL acts on, what the user is told, and
//! that all is well once the store is.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::{fs, process::Stdio, time::Duration};

use walden_testkit::{
    postgres::any,
    protected::{Place, Protected},
    run::{Ran, run},
    s3::{Fault, S3Server, What},
};

/// Faults are given up soon.
const SHORT: [(&str, &str); 2] = [("WALDEN_REPOSITORY_REQUEST_TIMEOUT", "500ms"), ("WALDEN_REPOSITORY_DEADLINE", "2s")];
const FETCHED: &str = "pg_wal/RECOVERYXLOG";

/// A cluster whose segments wait for the test to archive them.
fn waiting(server: &S3Server) -> Protected {
    Protected::new(any(), Place::Bucket(server), |b| b.setting("archive_command", "false"))
}

fn push(p: &Protected, name: &str) -> Ran {
    let ran = run(p.small_program("walden-archive").arg(format!("pg_wal/{name}")).envs(SHORT));
    no_secret(ran)
}

fn fetch(p: &Protected, name: &str) -> Ran {
    let _ = fs::remove_file(p.cluster.pgdata().join(FETCHED));
    let ran = run(p.small_program("walden-restore").args([name, FETCHED]).envs(SHORT));
    let delivered = p.cluster.pgdata().join(FETCHED).exists();
    assert_eq!(delivered, ran.code == Some(0), "a file stands there only when it was delivered: {ran}");
    no_secret(ran)
}

fn no_secret(ran: Ran) -> Ran {
    assert!(!format!("{}{}", ran.stdout, ran.stderr).contains("test/secret+key"), "a secret is told: {ran}");
    ran
}

/// What was said names the bucket or the object, and what to do.
#[track_caller]
fn says(ran: &Ran, words: &[&str]) {
    for word in words.iter().chain(&["walden-test", "hint: "]) {
        assert!(ran.stderr.contains(word), "no {word:?} in {ran}");
    }
}

#[track_caller]
fn whole(p: &Protected, name: &str) {
    let original = fs::read(p.cluster.pgdata().join("pg_wal").join(name)).unwrap();
    assert!(original == fs::read(p.cluster.pgdata().join(FETCHED)).unwrap(), "{name} came back changed");
}

fn object(server: &S3Server, name: &str) -> Option<String> {
    server.keys().into_iter().find(|key| key.ends_with(name))
}

/// Each fault, the code of a push under it (a fetch answers 200), and a word of what is said.
fn lasting() -> Vec<(What, i32, &'static str)> {
    vec![
        (What::Error(403, "AccessDenied"), 2, "AccessDenied"),
        (What::Error(403, "SignatureDoesNotMatch"), 2, "access key"),
        (What::Error(403, "ExpiredToken"), 2, "expired"),
        (What::Error(404, "NoSuchBucket"), 2, "there is no bucket"),
        (What::Error(500, "InternalError"), 1, "InternalError"),
        (What::Error(503, "SlowDown"), 1, "SlowDown"),
        (What::Stall, 1, "no answer"),
        (What::Close, 1, "no answer"),
    ]
}

#[test]
fn no_fault_makes_a_push_succeed_or_a_fetch_prove_absence() {
    let server = S3Server::start();
    let p = waiting(&server);
    let absent = p.cluster.switch_wal();
    let there = p.cluster.switch_wal();
    for (what, code, word) in lasting() {
        eprintln!("{what:?}");
        // Whether the first request meets it, or only the one that matters.
        for fault in [Fault::new(what.clone()), Fault::new(what.clone()).on("PutObject")] {
            server.fault(fault);
            let pushed = push(&p, &absent);
            pushed.expect_code(code);
            says(&pushed, &[word]);
            server.heal();
            assert_eq!(object(&server, &absent), None, "{what:?}: {pushed}");
        }
    }
    push(&p, &there).expect_code(0);
    for (what, _, word) in lasting() {
        eprintln!("{what:?}");
        let on_segment = Fault::new(what.clone()).on("GetObject").key("/wal/");
        for fault in [Fault::new(what.clone()), on_segment.clone()] {
            server.fault(fault);
            let fetched = fetch(&p, &there);
            fetched.expect_code(200);
            says(&fetched, &[word]);
            server.heal();
        }
        // Nor is what is really not there called absent while that can't be proven: the segment's own absence, and that
        // no later one is there.
        let later = format!("{}F0", &there[..22]);
        for fault in [on_segment, Fault::new(what.clone()).on("ListObjectsV2")] {
            server.fault(fault);
            fetch(&p, &later).expect_code(200);
            server.heal();
        }
        fetch(&p, &later).expect_code(1);
        fetch(&p, &there).expect_code(0);
        whole(&p, &there);
    }
    // The hole that all those pushes have left is closed as if nothing had been.
    fetch(&p, &absent).expect_code(200);
    push(&p, &absent).expect_code(0);
    fetch(&p, &absent).expect_code(0);
    whole(&p, &absent);
}

#[test]
fn a_deleted_version_is_doubt_and_not_absence() {
    let server = S3Server::start();
    let p = waiting(&server);
    let name = p.cluster.switch_wal();
    push(&p, &name).expect_code(0);
    server.fault(Fault::new(What::DeleteMarker).on("GetObject").key(name.as_str()));
    let fetched = fetch(&p, &name);
    fetched.expect_code(200);
    says(&fetched, &["deleted", &name]);
}

#[test]
fn what_passes_by_itself_is_not_even_noticed() {
    let server = S3Server::start();
    let p = waiting(&server);
    for what in
        [What::Error(500, "InternalError"), What::Error(503, "SlowDown"), What::Close, What::Error(403, "ExpiredToken")]
    {
        eprintln!("{what:?}");
        let name = p.cluster.switch_wal();
        server.fault(Fault::new(what.clone()).times(1));
        push(&p, &name).expect_code(0);
        server.fault(Fault::new(what.clone()).on("PutObject").times(1));
        push(&p, &name).expect_code(0);
        server.heal();
        server.fault(Fault::new(what).times(1));
        fetch(&p, &name).expect_code(0);
        whole(&p, &name);
        server.heal();
    }
}

#[test]
fn a_push_whose_answer_was_lost_knows_its_own_object() {
    let server = S3Server::start();
    let p = waiting(&server);
    let name = p.cluster.switch_wal();
    let before = server.count("PutObject");
    server.fault(Fault::new(What::LoseAnswer).on("PutObject").times(1));
    push(&p, &name).expect_code(0);
    assert_eq!(server.count("PutObject") - before, 2, "the answer was lost, and the put repeated");
    fetch(&p, &name).expect_code(0);
    whole(&p, &name);
    // With every answer lost it is in doubt, and the repetition settles it.
    let next = p.cluster.switch_wal();
    server.fault(Fault::new(What::LoseAnswer).on("PutObject"));
    server.fault(Fault::new(What::Close).on("HeadObject"));
    push(&p, &next).expect_code(1);
    server.heal();
    push(&p, &next).expect_code(0);
    assert_eq!(server.keys().iter().filter(|key| key.ends_with(&next)).count(), 1);
}

#[test]
fn a_broken_answer_is_resumed_or_refused() {
    let server = S3Server::start();
    let p = waiting(&server);
    p.cluster.psql("create table t as select random() as n from generate_series(1, 200000)");
    let name = p.cluster.switch_wal();
    push(&p, &name).expect_code(0);
    let on_segment = |what| Fault::new(what).on("GetObject").key(name.as_str());
    for what in [What::CutBody, What::StallBody] {
        server.fault(on_segment(what.clone()).times(3));
        fetch(&p, &name).expect_code(0);
        whole(&p, &name);
        server.heal();
    }
    // Not one byte ever comes: there is nothing to resume.
    server.fault(on_segment(What::StallBody).times(1));
    server.fault(on_segment(What::Error(503, "SlowDown")));
    fetch(&p, &name).expect_code(200);
    server.heal();
    server.fault(on_segment(What::FlipBit));
    let flipped = fetch(&p, &name);
    flipped.expect_code(200);
    assert!(flipped.stderr.contains(&name), "{flipped}");
    server.heal();
    fetch(&p, &name).expect_code(0);
    whole(&p, &name);
}

#[test]
fn two_pushes_of_one_segment_at_once_make_one_object() {
    let server = S3Server::start();
    let p = waiting(&server);
    for _ in 0..5 {
        let name = p.cluster.switch_wal();
        server.fault(Fault::new(What::Delay(Duration::from_millis(300))).on("PutObject").times(2));
        let start = || {
            let mut command = p.small_program("walden-archive");
            command.arg(format!("pg_wal/{name}")).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        for child in [start(), start()] {
            let ended = child.wait_with_output().unwrap();
            assert_eq!(ended.status.code(), Some(0), "{}", String::from_utf8_lossy(&ended.stderr));
        }
        server.heal();
        assert_eq!(server.keys().iter().filter(|key| key.ends_with(&name)).count(), 1);
        fetch(&p, &name).expect_code(0);
        whole(&p, &name);
    }
}

#[test]
fn a_backup_that_fails_half_way_does_not_exist_and_the_next_one_does() {
    let server = S3Server::start();
    let p = Protected::new(any(), Place::Bucket(&server), |b| b);
    // More than one part of an upload, and not to be compressed away.
    p.cluster.psql("create table t as select sha512((n || 'x')::bytea) as n from generate_series(1, 300000) as n");
    let backup = || no_secret(run(p.command(["-q", "backup"]).envs(SHORT)));
    let listed = || {
        let document: serde_json::Value = serde_json::from_str(p.walden(["list", "--json"]).ok()).unwrap();
        document["systems"][0]["backups"].as_array().unwrap().len()
    };
    let (refused, failed) = (What::Error(403, "AccessDenied"), What::Error(500, "InternalError"));
    for (operation, key, faults) in [
        ("CreateMultipartUpload", "/part-", vec![refused.clone(), failed.clone(), What::Close]),
        // A part is given as long as it would take on a slow line, so that only a refusal ends soon.
        ("UploadPart", "/part-", vec![refused.clone()]),
        ("CompleteMultipartUpload", "/part-", vec![refused.clone(), failed.clone(), What::Close]),
        ("PutObject", "/manifest-", vec![refused.clone(), failed.clone()]),
        ("PutObject", "/backup-", vec![refused.clone(), failed.clone()]),
    ] {
        for what in faults {
            eprintln!("{what:?} on {operation} of {key}");
            server.fault(Fault::new(what).on(operation).key(key));
            let ran = backup();
            ran.expect_code(5);
            says(&ran, &[&key[1..]]);
            server.heal();
            assert_eq!(listed(), 0, "{ran}");
            assert_eq!(server.open_uploads(), 0, "an upload was left open: {ran}");
        }
    }
    // An answer that was lost on the way is no failure.
    server.fault(Fault::new(What::LoseAnswer).on("CompleteMultipartUpload").times(1));
    server.fault(Fault::new(What::LoseAnswer).on("PutObject").key("/backup-").times(1));
    backup().expect_code(0);
    server.heal();
    backup().expect_code(0);
    assert_eq!(listed(), 2);
}
