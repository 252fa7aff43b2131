//! Plans on real archives: what cannot be reached is said before anything is written, with what can.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

use std::{fs, path::PathBuf};

use walden_testkit::{
    postgres::{Cluster, Stop, any, for_each_version},
    protected::{Place, Protected},
    run::Ran,
};

fn plan(p: &Protected, arguments: &[&str]) -> serde_json::Value {
    let ran = p.walden([&["--json", "plan"], arguments].concat());
    serde_json::from_str(ran.ok()).unwrap()
}

fn refused(p: &Protected, to: &str, said: &[&str]) -> Ran {
    let ran = p.walden(["plan", "--to", to]);
    ran.expect_code(3);
    for text in said {
        assert!(ran.stderr.contains(text), "\"{text}\" is not said: {ran}");
    }
    ran
}

fn object(p: &Protected, name: &str) -> PathBuf {
    object_of(p, &p.cluster, name)
}

fn restore(p: &Protected, name: &str, arguments: &[&str]) -> PathBuf {
    let pgdata = p.scene.path().join(name);
    p.walden([&["-q", "restore", "--yes", "--pgdata", pgdata.to_str().unwrap()], arguments].concat()).expect_code(0);
    pgdata
}

fn now(p: &Protected) -> String {
    p.cluster.psql("select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || ' UTC'")
}

#[test]
fn what_lies_outside_the_archive_is_said_with_what_can_be_reached() {
    let p = Protected::new(any(), Place::Directory, |b| b);
    p.cluster.psql("create table t (n int)");
    let _ = p.archive();
    refused(&p, "latest", &["no backup yet"]);
    let before = now(&p);
    p.cluster.psql("insert into t values (1)");
    let _ = p.backup();
    p.cluster.psql("insert into t values (2)");
    let _ = p.archive();
    // PostgreSQL itself gives later data than was asked for, without a word.
    refused(&p, &before, &["lies before the first usable backup", "earliest instant"]);
    refused(&p, "0/1000028", &["earliest instant"]);
    // PostgreSQL itself says so after all of the replay.
    let after = now(&p);
    refused(&p, &after, &["after everything in the archive", "the last commit before that", "--to latest"]);
    refused(&p, "xid:99999999", &["did not end within the archive"]);
    refused(&p, "name:nothing", &["no restore point \"nothing\""]);
    refused(&p, "F/0", &["after the end of the archive"]);
    p.walden(["plan", "--to", "2026-11-21 10:00:00"]).expect_code(2);
    assert_eq!(plan(&p, &["--to", "latest"])["timeline"], 1);
}

#[test]
fn a_gap_is_named_with_the_instants_on_both_sides() {
    let p = Protected::new(any(), Place::Directory, |b| b);
    p.cluster.psql("create table t (n int)");
    let _ = p.backup();
    p.cluster.psql("insert into t values (1)");
    let _ = p.archive();
    p.cluster.psql("insert into t values (2)");
    let inside = now(&p);
    p.cluster.psql("insert into t values (3)");
    let lost = p.archive();
    let _ = p.backup();
    p.cluster.psql("insert into t values (4)");
    let _ = p.archive();
    let whole = plan(&p, &["--to", &inside]);
    fs::remove_file(object(&p, &lost)).unwrap();
    refused(&p, &inside, &["lies in a gap", &lost, "before the gap", "after it"]);
    // On both sides of it recovery goes on working.
    assert_ne!(plan(&p, &["--to", "latest"])["backup"]["id"], whole["backup"]["id"]);
    let first = whole["backup"]["id"].as_str().unwrap();
    assert_eq!(plan(&p, &["--to", "immediate", "--backup", first])["backup"]["id"], first);
    // A segment that is there and not whole is found before anything is restored.
    let last = plan(&p, &["--to", "latest"])["last_segment"].as_str().unwrap().to_owned();
    let bytes = fs::read(object(&p, &last)).unwrap();
    fs::write(object(&p, &last), &bytes[..bytes.len() - 100]).unwrap();
    p.walden(["plan", "--to", "latest"]).expect_code(6);
    fs::write(object(&p, &last), bytes).unwrap();
}

#[test]
fn a_second_recovery_takes_the_rows_of_the_right_branch() {
    for_each_version(|installation| {
        let mut p = Protected::new(installation, Place::Directory, |b| b);
        p.cluster.psql("create table t (n int)");
        let _ = p.backup();
        let commit = |p: &Protected, n: u32| {
            p.cluster.psql(&format!("insert into t values ({n})"));
            let xid = p.cluster.psql("select max(xmin::text::bigint) from t");
            (xid, now(p))
        };
        let (first, at_first) = commit(&p, 1);
        let (_, at_second) = commit(&p, 2);
        let (third, _) = commit(&p, 3);
        let _ = p.archive();
        p.cluster.stop(Stop::Fast);
        // The first try goes to the first row, becomes the cluster, and goes on.
        let pgdata = restore(&p, "try", &["--to", &format!("xid:{first}"), "--then", "promote"]);
        let mut copy = Cluster::adopt(&pgdata, installation);
        copy.start();
        copy.wait_for("select pg_is_in_recovery()", "f");
        copy.psql("insert into t values (100)");
        let config = p.scene.write(
            "copy.toml",
            fs::read_to_string(&p.config)
                .unwrap()
                .replace(p.cluster.pgdata().to_str().unwrap(), pgdata.to_str().unwrap())
                .replace(&p.cluster.conninfo(), &copy.conninfo()),
        );
        // What a copy writes stays with it until somebody decides.
        let held = copy.switch_wal();
        assert!(!object_of(&p, &copy, &held).exists(), "a copy archives before it was adopted");
        let mut adopt = p.scene.walden();
        adopt.arg("--config").arg(&config).args(["adopt", "--pgdata", pgdata.to_str().unwrap()]);
        walden_testkit::run::run(&mut adopt).expect_code(0);
        copy.psql("insert into t values (200)");
        let name = copy.switch_wal();
        copy.wait_archived(&name);
        copy.stop(Stop::Fast);
        // Both branches hold something at that time and later: a person chooses.
        p.cluster.start();
        refused(&p, &at_second, &["several timelines"]);
        let on_first = restore(&p, "first", &["--to", &at_first, "--timeline", "1"]);
        let on_third = restore(&p, "third", &["--to", &format!("xid:{third}"), "--timeline", "1"]);
        let on_second = restore(&p, "second", &["--to", "latest"]);
        p.cluster.stop(Stop::Fast);
        for (pgdata, rows) in [(on_first, "1"), (on_third, "1,2,3"), (on_second, "1,100,200")] {
            let mut copy = Cluster::adopt(&pgdata, installation);
            copy.start();
            copy.wait_for("select case when pg_is_in_recovery() then pg_get_wal_replay_pause_state() else 'promoted' end in ('paused', 'promoted')", "t");
            assert_eq!(
                copy.psql("select string_agg(n::text, ',' order by n) from t"),
                rows,
                "PostgreSQL {}",
                installation.major
            );
        }
    });
}

fn object_of(p: &Protected, cluster: &Cluster, name: &str) -> PathBuf {
    let system = cluster.psql("select system_identifier from pg_control_system()");
    p.repository.join(format!("main/{system}-1/wal/{}/{}/{name}", &name[..8], &name[8..16]))
}
