//! Plans on real archives: what cannot be reached is said before anything is written, with what can.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

use std::{fs, path::PathBuf};

use walden::postgres::Lsn;
use walden_testkit::{
    postgres::{Cluster, Stop, any, for_each_version},
    protected::{Place, Protected},
    run::{Ran, run},
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
    let latest = plan(&p, &["--to", "latest"]);
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let (earliest, opened) = (text(&latest["backup"]["stop_lsn"]), text(&latest["backup"]["stopped"]));
    let opened = format!("{} UTC", opened[..19].replace('T', " "));
    // PostgreSQL itself gives later data than was asked for, without a word.
    let too_early = ["lies before the first usable backup", "earliest instant", &earliest, &opened];
    refused(&p, &before, &too_early);
    refused(&p, "0/1000028", &too_early);
    // PostgreSQL itself says so after all of the replay.
    let after = now(&p);
    let xid = latest["last_commit"]["xid"].to_string();
    let too_late = ["after everything in the archive", "the last commit before that", &xid, " ago", "--to latest"];
    refused(&p, &after, &too_late);
    assert!(latest["behind_seconds"].as_f64().unwrap() >= 0.0, "{latest}");
    let shown = p.walden(["plan", "--to", "latest"]);
    assert!(shown.ok().contains("a crash of the server now would lose what came after it"), "{shown}");
    refused(&p, "xid:99999999", &["did not end within the archive"]);
    refused(&p, "name:nothing", &["no restore point \"nothing\""]);
    refused(&p, "F/0", &["after the end of the archive"]);
    p.walden(["plan", "--to", "2026-11-21 10:00:00"]).expect_code(2);
    assert_eq!(plan(&p, &["--to", "latest"])["timeline"], 1);
}

#[test]
fn the_time_at_which_a_window_ends_lies_in_it() {
    let p = Protected::new(any(), Place::Directory, |b| b);
    p.cluster.psql("create table t (n int)");
    let _ = p.archive();
    let _ = p.backup();
    // Nothing was committed since: the last commit lies before the backup.
    let idle = plan(&p, &["--to", "latest"]);
    assert!(idle["last_commit"]["xid"].as_u64().is_some() && idle["behind_seconds"].as_f64().unwrap() > 0.0, "{idle}");
    assert!(idle["last_commit"]["lsn"].as_str().unwrap().parse::<Lsn>().unwrap() < lsn(&idle["backup"]["start_lsn"]));
    let shown = p.walden(["plan", "--to", "latest"]);
    assert!(shown.ok().contains("the last commit in the archive was"), "{shown}");

    // The backup's checkpoint tells its time to the second.
    p.cluster.psql("select pg_sleep(1.1)");
    p.cluster.psql("insert into t values (1)");
    let _ = p.archive();
    let latest = plan(&p, &["--to", "latest"]);
    let last = latest["last_commit"].clone();
    let time = last["time"].as_str().unwrap();
    let exact = plan(&p, &["--to", time]);
    assert_eq!((&exact["stop"], &exact["last_commit"]), (&latest["stop"], &last));
    assert_eq!(exact["first_left_out"], serde_json::Value::Null);
    let before = plan(&p, &["--to", &format!("before:{time}")]);
    assert_eq!((&before["stop"]["lsn"], &before["first_left_out"]), (&last["lsn"], &last));
    // A microsecond later nothing in the archive says that the server did not commit more by then.
    let (seconds, micros) = time.trim_end_matches('Z').split_once('.').unwrap();
    let later = format!("{seconds}.{:06}Z", micros.parse::<u32>().unwrap() + 1);
    refused(&p, &later, &["after everything in the archive"]);
    // The transaction that was rolled back last ends a window like one that was committed.
    p.cluster.psql("begin; insert into t values (2); rollback");
    let _ = p.archive();
    let till = plan(&p, &["--to", &later]);
    assert_eq!((&till["last_commit"], till["stop"]["inclusive"].as_bool()), (&last, Some(false)));
    assert_eq!(till["first_left_out"]["aborted"], true, "{till}");
    p.cluster.psql("insert into t values (3)");
    let _ = p.archive();
    let till = plan(&p, &["--to", &later]);
    let third = p.cluster.psql("select xmin from t where n = 3");
    assert_eq!(till["first_left_out"]["xid"].to_string(), third, "{till}");
}

fn lsn(value: &serde_json::Value) -> Lsn {
    value.as_str().unwrap().parse().unwrap()
}

#[test]
fn a_gap_is_named_with_the_instants_on_both_sides() {
    let p = Protected::new(any(), Place::Directory, |b| b);
    p.cluster.psql("create table t (n int)");
    let _ = p.backup();
    p.cluster.psql("insert into t values (1)");
    let old = p.cluster.psql("select xmin from t where n = 1");
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
    let backup = plan(&p, &["--to", "latest"])["backup"].clone();
    let behind = format!("--to {}", backup["stop_lsn"].as_str().unwrap());
    refused(&p, &inside, &["lies in a gap", &lost, "before the gap", "after it", &old, " ago", &behind, " UTC)"]);
    // What happened before the gap is found there.
    assert_eq!(plan(&p, &["--to", &format!("xid:{old}")])["last_commit"]["xid"].to_string(), old);
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

/// Commits as pg_waldump tells them, from there on: where each is recorded, and its transaction.
fn commits(p: &Protected, start: &str) -> Vec<(Lsn, u32)> {
    let mut waldump = p.cluster.pg("pg_waldump");
    waldump.arg("-p").arg(p.cluster.pgdata().join("pg_wal")).args(["-t", "1", "-r", "Transaction", "-s", start]);
    // It ends with an error where the log ends.
    let said = run(&mut waldump).stdout;
    let commit = |line: &str| {
        let field = |from: &str| line.split_once(from)?.1.split_once(',').map(|(value, _)| value.trim().to_owned());
        line.contains("desc: COMMIT ").then_some(())?;
        Some((field("lsn: ")?.parse().ok()?, field("tx: ")?.parse().ok()?))
    };
    said.lines().filter_map(commit).collect()
}

#[test]
fn a_plan_names_the_last_that_is_in_and_the_first_that_is_out() {
    for_each_version(|installation| {
        let p = Protected::new(installation, Place::Directory, |b| b.setting("max_prepared_transactions", 5));
        p.cluster.psql("create table t (n int)");
        let _ = p.backup();
        let mut asked = Vec::new();
        for n in 0..6 {
            p.cluster.psql(&format!("insert into t values ({n})"));
            asked.push(now(&p));
            p.cluster.psql("begin; insert into t values (100); rollback");
            if n % 2 == 0 {
                let _ = p.archive();
            }
        }
        let _ = p.archive();
        let start = plan(&p, &["--to", "latest"])["backup"]["start_lsn"].as_str().unwrap().to_owned();
        let commits = commits(&p, &start);
        assert!(commits.len() >= 6, "{commits:?}");
        asked.extend(commits.iter().skip(2).flat_map(|(lsn, xid)| {
            [format!("{lsn}"), format!("before:{lsn}"), format!("xid:{xid}"), format!("before:xid:{xid}")]
        }));
        for target in asked {
            let plan = plan(&p, &["--to", &target]);
            let stop: Lsn = plan["stop"]["lsn"].as_str().unwrap().parse().unwrap();
            let inclusive = plan["stop"]["inclusive"].as_bool().unwrap();
            let is_in = |lsn: Lsn| lsn < stop || (inclusive && lsn == stop);
            let last = commits.iter().rfind(|(lsn, _)| is_in(*lsn)).map(|(_, xid)| *xid);
            let first = commits.iter().find(|(lsn, _)| !is_in(*lsn)).map(|(_, xid)| *xid);
            let (planned_last, planned_first) = (&plan["last_commit"]["xid"], &plan["first_left_out"]["xid"]);
            let what = format!("PostgreSQL {}, {target}: {plan}", installation.major);
            assert_eq!(planned_last.as_u64().map(|x| x as u32), last, "{what}");
            // One that was rolled back is named where recovery stops before that and no commit follows.
            if plan["first_left_out"]["aborted"] == true {
                assert_eq!(first, None, "{what}");
            } else {
                assert_eq!(planned_first.as_u64().map(|x| x as u32), first, "{what}");
            }
        }
    });
}

#[test]
fn only_the_segments_that_decide_are_read() {
    let p = Protected::new(any(), Place::Directory, |b| b);
    p.cluster.psql("create table t (n int)");
    let _ = p.backup();
    let (mut segments, mut times) = (Vec::new(), Vec::new());
    for n in 0..8 {
        p.cluster.psql(&format!("insert into t select {n} from generate_series(1, 1000)"));
        times.push(now(&p));
        p.cluster.psql("insert into t values (0)");
        segments.push(p.archive());
    }
    let to = ["--to", times[4].as_str()];
    let mut whole = plan(&p, &to);
    assert_eq!(whole["last_segment"], segments[4].as_str());
    // Their contents are lost, their heads are not: whoever reads their records fails.
    let first = whole["first_segment"].as_str().unwrap().to_owned();
    for segment in segments.iter().filter(|s| **s != segments[4] && **s != first) {
        let mut bytes = fs::read(object(&p, segment)).unwrap();
        let end = bytes.len();
        bytes[end - 500..].fill(0xFF);
        fs::write(object(&p, segment), bytes).unwrap();
    }
    let mut again = plan(&p, &to);
    (whole["planned"], again["planned"]) = (().into(), ().into());
    assert_eq!(again, whole);
}

#[test]
fn a_damaged_segment_ends_what_can_be_reached_before_it_and_no_more() {
    let p = Protected::new(any(), Place::Directory, |b| b);
    p.cluster.psql("create table t (n int)");
    let _ = p.backup();
    let (mut segments, mut times) = (Vec::new(), Vec::new());
    for n in 0..5 {
        p.cluster.psql(&format!("insert into t values ({n})"));
        times.push(now(&p));
        p.cluster.psql("insert into t values (100)");
        segments.push(p.archive());
    }
    let damaged = object(&p, &segments[2]);
    let bytes = fs::read(&damaged).unwrap();
    fs::write(&damaged, &bytes[..bytes.len() - 100]).unwrap();
    assert_eq!(plan(&p, &["--to", &times[1]])["last_segment"], segments[1].as_str());
    refused(&p, &times[3], &["cannot be reached", &segments[2], "the last commit before that", "--to "]);
    let latest = p.walden(["plan", "--to", "latest"]);
    latest.expect_code(6);
    assert!(latest.stderr.contains(&segments[2]), "{latest}");
    // A backup behind it opens a new window, and the old one stays.
    let _ = p.backup();
    let _ = p.archive();
    assert_eq!(plan(&p, &["--to", "latest"])["warnings"], serde_json::json!([]));
    assert_eq!(plan(&p, &["--to", &times[1]])["last_segment"], segments[1].as_str());
    refused(&p, &times[3], &["cannot be recovered", &segments[2], "before the gap", "after it"]);
}

#[test]
fn settings_that_were_raised_after_the_backup_are_planned() {
    let mut p = Protected::new(any(), Place::Directory, |b| b);
    p.cluster.psql("create table t (n int)");
    let _ = p.backup();
    p.cluster.psql("insert into t values (1)");
    let early = now(&p);
    p.cluster.psql("insert into t values (2)");
    let before = p.cluster.psql("show max_connections").parse::<u32>().unwrap();
    p.cluster.psql(&format!("alter system set max_connections = {}", before + 50));
    p.cluster.stop(Stop::Fast);
    p.cluster.start();
    p.cluster.psql("insert into t values (3)");
    let _ = p.archive();
    let plan_early = plan(&p, &["--to", &early]);
    assert_eq!(
        (&plan_early["required"]["max_connections"], &plan_early["raised"]),
        (&before.into(), &Vec::<u32>::new().into())
    );
    let late = plan(&p, &["--to", "latest"]);
    assert_eq!(late["required"]["max_connections"], before + 50);
    let raised = &late["raised"][0];
    assert_eq!(
        (&raised["setting"], &raised["from"], &raised["to"]),
        (&"max_connections".into(), &before.into(), &(before + 50).into())
    );
    let shown = p.walden(["plan", "--to", "latest"]);
    assert!(shown.ok().contains(&format!("max_connections {} (raised from {before} at ", before + 50)), "{shown}");
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
        run(&mut adopt).expect_code(0);
        copy.psql("insert into t values (200)");
        let name = copy.switch_wal();
        copy.wait_archived(&name);
        copy.stop(Stop::Fast);
        // Both branches hold something at that time and later: a person chooses.
        p.cluster.start();
        refused(&p, &at_second, &["several timelines", "timeline 1 at ", "timeline 2 at ", "committed ", "--timeline"]);
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
