//! Windows and timelines of real archives: what is said to be recoverable can be planned, and what lies just outside
//! cannot.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

use std::{fs, path::PathBuf};

use serde_json::Value;
use walden_testkit::{
    postgres::{Cluster, Stop, any},
    protected::{Place, Protected},
    run::run,
};

fn json(p: &Protected, arguments: &[&str]) -> Value {
    let ran = p.walden([&["--json"], arguments].concat());
    serde_json::from_str(ran.ok()).unwrap()
}

/// The timelines of the first system, as `list` tells them.
fn listed(p: &Protected) -> Vec<Value> {
    json(p, &["list"])["systems"][0]["timelines"].as_array().unwrap().clone()
}

fn object(p: &Protected, cluster: &Cluster, name: &str) -> PathBuf {
    let system = cluster.psql("select system_identifier from pg_control_system()");
    p.repository.join(format!("main/{system}-1/wal/{}/{}/{name}", &name[..8], &name[8..16]))
}

/// Inserts a row and gives the time just after that.
fn commit(cluster: &Cluster, n: u32) -> String {
    cluster.psql(&format!("insert into t values ({n})"));
    cluster.psql("select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
}

fn code(p: &Protected, arguments: &[&str]) -> i32 {
    p.walden([&["plan"], arguments].concat()).code.unwrap()
}

/// A time of `--json`, moved.
fn moved(time: &Value, micros: i64) -> String {
    let time: chrono::DateTime<chrono::Utc> = time.as_str().unwrap().parse().unwrap();
    (time + chrono::TimeDelta::microseconds(micros)).to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}

/// Recovers to `to` along the timeline before, lets the copy become the cluster, and gives it, running.
fn branch(p: &Protected, name: &str, to: &[&str], n: u32) -> Cluster {
    let pgdata = p.scene.path().join(name);
    let restore = ["-q", "restore", "--yes", "--then", "promote", "--pgdata", pgdata.to_str().unwrap()];
    p.walden([&restore[..], to].concat()).expect_code(0);
    let mut copy = Cluster::adopt(&pgdata, p.cluster.installation());
    copy.start();
    copy.wait_for("select pg_is_in_recovery()", "f");
    let text = fs::read_to_string(&p.config).unwrap();
    let text = text
        .replace(p.cluster.pgdata().to_str().unwrap(), pgdata.to_str().unwrap())
        .replace(&p.cluster.conninfo(), &copy.conninfo());
    let config = p.scene.write(&format!("{name}.toml"), text);
    let mut adopt = p.scene.walden();
    run(adopt.arg("--config").arg(&config).args(["adopt", "--pgdata", pgdata.to_str().unwrap()])).expect_code(0);
    commit(&copy, n);
    copy.wait_archived(&copy.switch_wal());
    copy
}

#[test]
fn the_ends_of_a_window_are_true() {
    let p = Protected::new(any(), Place::Directory, |b| b);
    p.cluster.psql("create table t (n int)");
    let _ = p.archive();
    assert!(listed(&p)[0]["windows"].as_array().unwrap().is_empty());
    assert!(p.walden(["list"]).ok().contains("no backup of system"));
    let _ = p.backup();
    // The window opens at a full second.
    p.cluster.psql("select pg_sleep(1.1)");
    for n in 0..3 {
        commit(&p.cluster, n);
    }
    let _ = p.archive();
    let window = listed(&p)[0]["windows"][0].clone();
    let (from, to) = (&window["from"], &window["to"]);
    let lsn = |end: &Value| end["lsn"].as_str().unwrap().to_owned();
    for target in [lsn(from), lsn(to), moved(&from["time"], 0), moved(&to["time"], -1)] {
        assert_eq!(code(&p, &["--to", &target]), 0, "{target} of {window}");
    }
    let past = |lsn: &str| {
        let (high, low) = lsn.split_once('/').unwrap();
        format!("{high}/{:X}", u64::from_str_radix(low, 16).unwrap() + 1)
    };
    for target in [past(&lsn(to)), moved(&from["time"], -60_000_000), moved(&to["time"], 1)] {
        assert_eq!(code(&p, &["--to", &target]), 3, "{target} of {window}");
    }
    let said = p.walden(["list"]);
    assert!(said.ok().contains("recoverable from ") && said.stdout.contains("the last archived commit is"), "{said}");
    assert_eq!(window["end"]["why"], "archive");
    let status = p.walden(["status"]);
    assert!(status.ok().contains("nothing needs a person") && status.stdout.contains("was archived last"), "{status}");
    let drawn = p.walden(["timeline"]);
    assert!(drawn.ok().is_ascii() && drawn.stdout.contains("# backup") && drawn.stdout.contains("1 live"), "{drawn}");
}

#[test]
fn branches_and_holes_are_told_as_they_are() {
    let mut p = Protected::new(any(), Place::Directory, |b| b);
    p.cluster.psql("create table t (n int)");
    let first = p.backup();
    let at_one = commit(&p.cluster, 1);
    commit(&p.cluster, 2);
    let _ = p.archive();
    p.cluster.stop(Stop::Fast);
    // Back to the first row, and from that branch a branch of its own.
    let mut second = branch(&p, "second", &["--to", &at_one, "--timeline", "1"], 100);
    let lost = second.switch_wal();
    let at_hundred = commit(&second, 101);
    let lost = if object(&p, &second, &lost).exists() { lost } else { second.switch_wal() };
    second.wait_archived(&lost);
    commit(&second, 102);
    second.wait_archived(&second.switch_wal());
    let to = ["--to", &at_hundred, "--timeline", "2"];
    let mut third = branch(&p, "third", &to, 200);
    let timelines = listed(&p);
    assert_eq!(timelines.iter().map(|t| t["timeline"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2, 3]);
    for timeline in &timelines {
        assert_eq!(timeline["windows"].as_array().unwrap().len(), 1, "{timeline}");
        assert_eq!(timeline["windows"][0]["backups"][0], first.as_str());
    }
    // A segment is lost: what lies before it can still be recovered, nothing after it can.
    fs::remove_file(object(&p, &second, &lost)).unwrap();
    let timelines = listed(&p);
    let hole = &timelines[1]["gaps"][0];
    assert_eq!((hole["first"].as_str(), hole["last"].as_str()), (Some(lost.as_str()), Some(lost.as_str())), "{hole}");
    let window = &timelines[1]["windows"][0];
    assert_eq!(window["end"], serde_json::json!({ "why": "missing", "segment": lost }));
    let to = window["to"]["lsn"].as_str().unwrap();
    assert_eq!(code(&p, &["--to", to, "--timeline", "2"]), 0);
    assert_eq!(code(&p, &["--to", &at_hundred, "--timeline", "2"]), 3);
    assert!(p.walden(["list"]).ok().contains(&lost));
    let drawn = p.walden(["timeline"]);
    for text in [&format!("segment {lost} is missing"), "forked from timeline 2", "forked from timeline 1", "  1 live"]
    {
        assert!(drawn.ok().contains(text), "{text}: {drawn}");
    }
    // The data directory is on timeline 1 still: that one is live, whatever was written elsewhere since.
    let told = json(&p, &["timeline"]);
    let live: Vec<_> = told["systems"][0]["timelines"].as_array().unwrap().iter().map(|t| t["live"] == true).collect();
    assert_eq!(live.iter().filter(|live| **live).count(), 1);
    // Files are written over, whole.
    let [svg, html] = ["t.svg", "t.html"].map(|name| p.scene.path().join(name));
    for _ in 0..2 {
        let arguments = ["timeline", "--svg", svg.to_str().unwrap(), "--html", html.to_str().unwrap()];
        assert!(p.walden(arguments).ok().is_empty());
        assert!(fs::read_to_string(&svg).unwrap().ends_with("</svg>\n"));
        assert!(fs::read_to_string(&html).unwrap().contains(&lost));
    }
    p.walden(["timeline", "--svg", "/nowhere/t.svg"]).expect_code(1);
    second.stop(Stop::Fast);
    third.stop(Stop::Fast);
}

#[test]
fn an_idle_archive_and_a_backup_without_its_wal() {
    let p = Protected::new(any(), Place::Directory, |b| b);
    p.cluster.psql("create table t (n int)");
    let id = p.backup();
    // Nothing was committed since: the backup itself is what there is.
    let window = listed(&p)[0]["windows"][0].clone();
    assert!(window["to"]["time"].is_null(), "{window}");
    assert_eq!(code(&p, &["--to", "latest"]), 0);
    assert!(p.walden(["list"]).ok().contains("nothing was committed since"));
    let document = json(&p, &["list"]);
    let needed = document["systems"][0]["backups"][0]["first_segment"].as_str().unwrap().to_owned();
    fs::remove_file(object(&p, &p.cluster, &needed)).unwrap();
    let document = json(&p, &["list"]);
    let system = &document["systems"][0];
    assert!(system["timelines"][0]["windows"].as_array().unwrap().is_empty());
    assert_eq!(system["backups"][0]["broken"]["missing"][0], needed.as_str());
    assert!(system["backups"][0]["recoverable_to"].is_null());
    let said = p.walden(["list"]);
    assert!(said.ok().contains(&id) && said.stdout.contains("its WAL is missing"), "{said}");
    let status = p.walden(["status"]);
    status.expect_code(1);
    assert!(status.stdout.contains("no backup has the WAL that it needs"), "{status}");
    let told: Value = serde_json::from_str(&p.walden(["status", "--json"]).expect_code(1).stdout).unwrap();
    assert_eq!(told["clusters"][0]["verdict"], "needs-person");
    // The mend that is told mends it.
    let _ = p.backup();
    let status = p.walden(["status"]);
    assert!(status.ok().contains("note") && status.stdout.contains(&id), "{status}");
}

#[test]
fn failing_archiving_needs_a_person() {
    let p = Protected::new(any(), Place::Directory, |b| b);
    let empty = p.walden(["status"]);
    empty.expect_code(1);
    assert!(empty.stdout.contains("hint: ") && empty.stdout.contains("walden backup"), "{empty}");
    p.cluster.psql("create table t (n int)");
    let _ = p.backup();
    assert_eq!(p.walden(["status"]).code, Some(0));
    let command = p.cluster.psql("show archive_command");
    p.cluster.psql("alter system set archive_command = 'false'");
    p.cluster.psql("select pg_reload_conf()");
    commit(&p.cluster, 1);
    p.cluster.switch_wal();
    p.cluster.wait_for("select failed_count > 0 from pg_stat_archiver", "t");
    let failing = p.walden(["status"]);
    failing.expect_code(1);
    assert!(failing.stdout.contains("archive_command fails"), "{failing}");
    assert!(!failing.stdout.contains(&command), "a command may hold secrets");
}

#[test]
fn what_only_the_middle_of_a_row_tells_is_found_when_asked_for() {
    let mut p = Protected::new(any(), Place::Directory, |b| b);
    p.cluster.psql("create table t (n int)");
    let first = p.backup();
    commit(&p.cluster, 1);
    let restart = |p: &mut Protected, settings: [(&str, &str); 3]| {
        for (name, value) in settings {
            p.cluster.psql(&format!("alter system set {name} = {value}"));
        }
        p.cluster.stop(Stop::Fast);
        p.cluster.start();
    };
    restart(&mut p, [("archive_mode", "off"), ("max_wal_senders", "0"), ("wal_level", "minimal")]);
    restart(&mut p, [("archive_mode", "on"), ("max_wal_senders", "5"), ("wal_level", "replica")]);
    let _ = p.archive();
    let second = p.backup();
    for n in 2..6 {
        commit(&p.cluster, n);
        let _ = p.archive();
    }
    let told = json(&p, &["timeline", "--deep"]);
    let windows = told["systems"][0]["timelines"][0]["windows"].as_array().unwrap().clone();
    assert_eq!(windows.len(), 2, "{told}");
    assert_eq!((&windows[0]["backups"][0], &windows[1]["backups"][0]), (&first.into(), &second.into()));
    assert_eq!(windows[0]["end"]["why"], "minimal");
    let at = windows[0]["end"]["at"].as_str().unwrap();
    assert!(p.walden(["timeline", "--deep"]).ok().contains(&format!("at {at} the server was started with wal_level")));
    // It is where the planner sees it, too.
    let first = windows[0]["backups"][0].as_str().unwrap();
    let refused = p.walden(["plan", "--to", windows[1]["to"]["lsn"].as_str().unwrap(), "--backup", first]);
    refused.expect_code(3);
    assert!(refused.stderr.contains(at), "{refused}");
}
