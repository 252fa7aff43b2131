//! Backups from standbys: where they are consistent, who archives their WAL, and what breaks them off.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use serde_json::Value;
use walden_testkit::{
    postgres::{Cluster, Installation, any, for_each_version},
    protected::{Place, Protected},
    run::{Ran, run},
};

const WAYS: [&[&str]; 2] = [&["-q", "backup"], &["-q", "backup", "--remote"]];
const SUM: &str = "select count(*), sum(n), md5(string_agg(filler, '' order by n)) from t";

/// A cluster that ends a segment of 1 MB now and then, and has some rows.
fn protected(installation: &Installation) -> Protected {
    let p = Protected::new(installation, Place::Directory, |b| {
        // From 17 on the server can tell what has changed.
        let b = if installation.major >= 17 { b.setting("summarize_wal", "on") } else { b };
        b.wal_segment_size(1).setting("log_replication_commands", "on")
    });
    p.cluster.psql("create table t (n int, filler text)");
    p.cluster
        .psql("insert into t select n, repeat('x', 100) from generate_series(1, 20000) as n; create index on t (n)");
    p
}

/// A run of `walden` on the host of another server than the primary.
fn on(p: &Protected, server: &Cluster, arguments: &[&str]) -> Command {
    let mut command = p.command(arguments);
    command.env("WALDEN_CLUSTER_MAIN_PGDATA", server.pgdata());
    command.env("WALDEN_CLUSTER_MAIN_CONNECTION", server.conninfo());
    command
}

/// Does the work while rows are written.
fn under_load<T>(p: &Protected, work: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                p.cluster.psql(
                    "insert into t select max(n) + 1, repeat('x', 500) from t; \
                     update t set filler = filler || 'y' where n % 97 = 0",
                );
            }
        });
        let done = work();
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        done
    })
}

fn listed(p: &Protected) -> Vec<Value> {
    let document: Value = serde_json::from_str(p.walden(["list", "--json"]).ok()).unwrap();
    document["systems"][0]["backups"].as_array().unwrap().clone()
}

fn restore(p: &Protected, backup: &str, to: &str, pgdata: &Path, more: &[&str]) -> Ran {
    let mut command = p.command(["restore", "--yes", "--backup", backup, "--to", to, "--pgdata"]);
    run(command.arg(pgdata).args(more))
}

fn started(p: &Protected, backup: &str, to: &str, more: &[&str]) -> Cluster {
    let pgdata = p.scene.path().join(format!("{backup}-{}", to.replace(['/', ' ', ':'], "-")));
    let sockets = format!("--set=unix_socket_directories={}", p.scene.folder("sockets").display());
    restore(p, backup, to, &pgdata, &[&["--start", "--set=listen_addresses=", &sockets], more].concat()).expect_code(0);
    Cluster::attach(pgdata, p.cluster.installation())
}

fn lsn(p: &Protected, text: &Value) -> u64 {
    p.cluster.psql(&format!("select '{}'::pg_lsn - '0/0'", text.as_str().unwrap())).parse().unwrap()
}

#[test]
fn leads_to_every_target_behind_its_end_and_to_none_before() {
    for_each_version(|installation| {
        let p = protected(installation);
        let standby = p.cluster.standby(p.scene.path().join("standby"));
        let ids = WAYS.map(|way| under_load(&p, || run(&mut on(&p, &standby, way)).ok().to_owned()));
        let then = p.cluster.psql("select clock_timestamp()::timestamptz(6) at time zone 'UTC' || '+00'");
        let at_that_time = p.cluster.psql(SUM);
        p.cluster.psql("select pg_sleep(0.01); delete from t where n % 2 = 0");
        let at_the_end = p.cluster.psql(SUM);
        p.archive();
        let version = installation.major;

        let backups = listed(&p);
        assert_eq!(p.walden(["list"]).ok().matches("(standby)").count(), 2);
        for (backup, id) in backups.iter().zip(&ids) {
            assert_eq!((&backup["id"], &backup["from_standby"]), (&Value::from(id.as_str()), &Value::from(true)));
            for (to, wanted) in [("latest", &at_the_end), (then.as_str(), &at_that_time)] {
                let copy = started(&p, id, to, &[]);
                assert_eq!(&copy.psql(SUM), wanted, "PostgreSQL {version} {id} {to}");
                // One that is paused takes no extension.
                if to == "latest" {
                    copy.pg_run("pg_amcheck", ["--install-missing", "--heapallindexed", "--database=postgres"]);
                }
            }
            // The first place that it leads to is where it ends.
            let end = backup["stop_lsn"].as_str().unwrap();
            for to in ["immediate", end] {
                let copy = started(&p, id, to, &["--then", "pause"]);
                let reached = copy.psql("select pg_last_wal_replay_lsn() - '0/0'").parse::<u64>().unwrap();
                assert!(reached >= lsn(&p, &backup["stop_lsn"]), "PostgreSQL {version} {id} {to} {reached}");
                assert_ne!(copy.psql("select count(*) from t"), "0");
            }
            let earlier = lsn(&p, &backup["stop_lsn"]) - 8;
            let earlier = format!("{:X}/{:X}", earlier >> 32, earlier & 0xFFFF_FFFF);
            p.walden(["plan", "--to", &earlier, "--backup", id]).expect_code(3);

            // What PostgreSQL itself thinks of the files.
            let pgdata = p.scene.path().join(format!("verified-{id}"));
            restore(&p, id, "latest", &pgdata, &[]).expect_code(0);
            assert!(!pgdata.join("standby.signal").exists() && pgdata.join("recovery.signal").exists());
            let label = fs::read_to_string(pgdata.join("backup_label")).unwrap();
            assert!(label.contains("BACKUP FROM: standby"), "{label}");
            let program = p.cluster.installation().program("pg_verifybackup");
            run(p.cluster.owner().command(program).arg("-n").arg(&pgdata)).expect_code(0);
        }
    });
}

/// The standby has made a restart point in the segment that the primary is writing, and nobody writes on.
fn idle(p: &Protected, standby: &Cluster) -> String {
    p.archive();
    p.cluster.psql("insert into t values (0, 'the last'); checkpoint");
    p.cluster.wait_replayed_by(standby);
    standby.psql("checkpoint");
    p.cluster.psql("select pg_walfile_name(pg_current_wal_lsn())")
}

#[test]
fn an_idle_primary_is_asked_for_its_last_segment_or_it_is_named() {
    for_each_version(|installation| {
        let p = protected(installation);
        let standby = p.cluster.standby(p.scene.path().join("standby"));
        for way in WAYS {
            let last = idle(&p, &standby);
            let before = listed(&p).len();
            let in_vain = run(on(&p, &standby, way).env("WALDEN_ARCHIVE_TIMEOUT", "2s"));
            in_vain.expect_code(1);
            assert!(in_vain.stderr.contains(&format!("segment {last} did not reach the archive")), "{in_vain}");
            assert!(in_vain.stderr.contains("or primary under [cluster.main]"), "{in_vain}");
            // The way that is configured leads elsewhere.
            let mut lost = on(&p, &standby, way);
            lost.env("WALDEN_ARCHIVE_TIMEOUT", "2s").env("WALDEN_CLUSTER_MAIN_PRIMARY", standby.conninfo());
            let lost = run(&mut lost);
            lost.expect_code(1);
            assert!(lost.stderr.contains("a server that is a standby itself"), "{lost}");
            assert_eq!(listed(&p).len(), before, "a backup without its WAL is listed");

            let taken = run(on(&p, &standby, way).env("WALDEN_CLUSTER_MAIN_PRIMARY", p.cluster.conninfo()));
            assert_eq!(listed(&p)[before]["id"], taken.ok());
            assert_eq!(listed(&p)[before]["last_segment"], last.as_str());
            assert_eq!(
                started(&p, taken.ok(), "latest", &[]).psql("select max(filler) from t where n = 0"),
                "the last"
            );
        }
    });
}

/// A backup of that server that has begun, and stands still until it is told to go on.
fn halted(p: &Protected, server: &Cluster, way: &[&str]) -> Child {
    let mut command = on(p, server, way);
    command.env("WALDEN_BACKUP_RATE_LIMIT", "10MB").stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    // The session that began it waits for nothing but its end.
    let begun = "select (select count(*) from pg_stat_activity where state = 'idle' and query ~ 'pg_(backup_start|start_backup)') \
                 + (select count(*) from pg_stat_progress_basebackup where backup_streamed > 100000)";
    server.wait_for(begun, "1");
    signal(&child, rustix::process::Signal::STOP);
    child
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
}

/// What it says when it has ended, which it may not do well.
fn ends_badly(child: Child) -> String {
    signal(&child, rustix::process::Signal::CONT);
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(1), "{said}");
    said
}

#[test]
fn a_promotion_in_the_middle_is_one_error_and_nothing_is_listed() {
    for_each_version(|installation| {
        for (number, way) in WAYS.iter().enumerate() {
            let p = protected(installation);
            let standby = p.cluster.standby(p.scene.path().join("standby"));
            let backup = halted(&p, &standby, way);
            standby.psql("select pg_promote()");
            standby.wait_for("select pg_is_in_recovery()", "f");
            let said = ends_badly(backup);
            assert!(said.contains("the standby was promoted during online backup"), "{said}");
            assert!(said.contains("Try taking another online backup"), "{said}");
            assert!(listed(&p).is_empty(), "PostgreSQL {} {number}", installation.major);
            // The next one is a primary's.
            let id = run(&mut on(&p, &standby, way)).ok().to_owned();
            let taken = &listed(&p)[0];
            assert_eq!((&taken["id"], &taken["from_standby"]), (&Value::from(id), &Value::from(false)));
            assert_eq!(taken["timeline"], 2);
        }
    });
}

#[test]
fn what_changed_is_told_across_a_promotion() {
    for_each_version(|installation| {
        let p = protected(installation);
        p.walden(WAYS[1]).expect_code(0);
        let standby = p.cluster.standby(p.scene.path().join("standby"));
        p.cluster.psql("update t set filler = 'before' where n % 1000 = 1");
        p.cluster.wait_replayed_by(&standby);
        standby.psql("select pg_promote()");
        standby.wait_for("select pg_is_in_recovery()", "f");
        standby.psql("update t set filler = 'after' where n % 1000 = 2");
        let taken = run(on(&p, &standby, WAYS[1]).env("WALDEN_LOG", "warn"));
        if installation.major >= 17 {
            assert!(standby.log().contains(", INCREMENTAL"), "{}", standby.log_tail());
            assert!(!taken.stderr.contains("note:"), "{taken}");
        }
        let copy = started(&p, taken.ok(), "immediate", &["--then", "pause"]);
        assert_eq!(copy.psql(SUM), standby.psql(SUM), "PostgreSQL {}", installation.major);
    });
}

#[test]
fn a_standby_that_goes_over_to_another_timeline_in_the_middle() {
    let p = protected(any());
    let first = p.cluster.standby(p.scene.path().join("first"));
    let second = first.standby(p.scene.path().join("second"));
    let backup = halted(&p, &second, WAYS[0]);
    first.psql("select pg_promote()");
    first.wait_for("select pg_is_in_recovery()", "f");
    first.psql("insert into t values (0, 'on the new timeline'); checkpoint");
    first.wait_replayed_by(&second);
    second.psql("checkpoint");
    let said = ends_badly(backup);
    assert!(said.contains("went over from timeline 1 to timeline 2"), "{said}");
    assert!(listed(&p).is_empty());
    // From then on it is a standby like any other, of another primary.
    let mut command = on(&p, &second, WAYS[1]);
    let id = run(command.env("WALDEN_CLUSTER_MAIN_PRIMARY", first.conninfo())).ok().to_owned();
    assert_eq!(listed(&p)[0]["timeline"], 2);
    assert_eq!(started(&p, &id, "latest", &[]).psql("select filler from t where n = 0"), "on the new timeline");
}

#[test]
fn a_standby_that_lives_on_the_archive_alone() {
    for_each_version(|installation| {
        let p = protected(installation);
        let first = p.backup();
        let pgdata = p.scene.path().join("standby");
        restore(&p, &first, "latest", &pgdata, &["--standby"]).expect_code(0);
        let mut standby = Cluster::adopt(&pgdata, installation);
        standby.start();
        for way in WAYS {
            p.archive();
            p.cluster.psql("insert into t select max(n) + 1, 'more' from t; checkpoint");
            p.archive();
            // Idle or not, what it has replayed is archived.
            let id = run(&mut on(&p, &standby, way)).ok().to_owned();
            let copy = started(&p, &id, "latest", &["--then", "promote"]);
            assert_eq!(copy.psql(SUM), p.cluster.psql(SUM), "PostgreSQL {}", installation.major);
        }
        // A copy of it becomes the cluster as any other does.
        let id = listed(&p).last().unwrap()["id"].as_str().unwrap().to_owned();
        let sockets = format!("--set=unix_socket_directories={}", p.scene.folder("sockets").display());
        let pgdata = p.scene.path().join("heir");
        let more = ["--start", "--then", "promote", "--set=listen_addresses=", &sockets];
        restore(&p, &id, "latest", &pgdata, &more).expect_code(0);
        let heir = Cluster::attach(&pgdata, installation);
        let adopted = p.walden(["adopt", "--pgdata", pgdata.to_str().unwrap()]);
        assert!(adopted.ok().contains("timeline 2"), "{adopted}");
        let taken = run(&mut on(&p, &heir, WAYS[0]));
        taken.expect_code(0);
    });
}
