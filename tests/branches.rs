//! Archives of several timelines: what was dropped on which of them, and what a record is that only one of them finished.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

use std::fs;

use serde_json::Value;
use walden::postgres::Lsn;
use walden_testkit::{
    postgres::{Cluster, Stop, any, for_each_version},
    protected::{Place, Protected},
    run::{Ran, run},
};

fn json(p: &Protected, arguments: &[&str]) -> Value {
    let ran = p.walden([&["--json"], arguments].concat());
    serde_json::from_str(ran.ok()).unwrap()
}

/// Restores to that target and promotes: a new branch, which its own `walden adopt` makes the cluster.
fn branch(p: &Protected, name: &str, to: &[&str]) -> Cluster {
    let pgdata = p.scene.path().join(name);
    let path = pgdata.to_str().unwrap();
    p.walden([&["-q", "restore", "--yes", "--then", "promote", "--pgdata", path, "--to"], to].concat()).expect_code(0);
    let mut copy = Cluster::adopt(&pgdata, p.cluster.installation());
    copy.start();
    copy.wait_for("select pg_is_in_recovery()", "f");
    let config = fs::read_to_string(&p.config)
        .unwrap()
        .replace(p.cluster.pgdata().to_str().unwrap(), path)
        .replace(&p.cluster.conninfo(), &copy.conninfo());
    let config = p.scene.write(&format!("{name}.toml"), config);
    let mut adopt = p.scene.walden();
    adopt.arg("--config").arg(&config).args(["adopt", "--pgdata", path]);
    run(&mut adopt).expect_code(0);
    copy
}

fn archive(cluster: &Cluster) -> String {
    let name = cluster.switch_wal();
    cluster.wait_archived(&name);
    name
}

fn refused(p: &Protected, arguments: &[&str], said: &[&str]) -> Ran {
    let ran = p.walden([&["plan", "--to"], arguments].concat());
    ran.expect_code(3);
    for text in said {
        assert!(ran.stderr.contains(text), "\"{text}\" is not said: {ran}");
    }
    ran
}

#[test]
fn a_drop_is_found_on_the_branch_that_it_happened_on() {
    for_each_version(|installation| {
        let mut p = Protected::new(installation, Place::Directory, |b| b);
        p.cluster.psql("create table twin (n int); create table old (n int); create table new (n int)");
        p.cluster.psql("create table early (n int); insert into twin values (1)");
        let _ = p.backup();
        p.cluster.psql("drop table early");
        p.cluster.psql("select pg_create_restore_point('here')");
        p.cluster.psql("insert into twin values (2); insert into old values (1)");
        p.cluster.psql("drop table old");
        p.cluster.psql("insert into twin values (3)");
        p.cluster.psql("drop table twin");
        p.cluster.psql("select pg_create_restore_point('twice')");
        p.cluster.psql("select pg_create_restore_point('twice')");
        let _ = p.archive();
        p.cluster.stop(Stop::Fast);
        let mut second = branch(&p, "second", &["name:here"]);
        second.psql("insert into twin values (20); insert into new values (1)");
        second.psql("drop table new");
        second.psql("insert into twin values (30)");
        second.psql("drop table twin");
        second.psql("create table early (n int)");
        let _ = archive(&second);
        second.stop(Stop::Fast);

        // Each row says its timeline, and where its way would be two without it, the choice.
        let rows = |arguments: &[&str]| {
            let found = json(&p, &[&["find", "--kind", "drop"], arguments].concat());
            let row = |f: &Value| {
                let text = |field: &str| f[field].as_str().unwrap().to_owned();
                (text("what"), f["timeline"].as_u64().unwrap(), f["to_timeline"].as_u64(), text("to"))
            };
            found["findings"].as_array().unwrap().iter().map(row).collect::<Vec<_>>()
        };
        let table = |name: &str| format!("dropped table postgres.public.{name}");
        let said = |rows: &[(String, u64, Option<u64>, String)]| {
            rows.iter().map(|(what, on, choice, _)| (what.clone(), *on, *choice)).collect::<Vec<_>>()
        };
        let (on_second, on_first) = (rows(&[]), rows(&["--timeline", "1"]));
        let early = (table("early"), 1, None);
        assert_eq!(said(&on_second), [early.clone(), (table("new"), 2, Some(2)), (table("twin"), 2, Some(2))]);
        assert_eq!(said(&on_first), [early, (table("old"), 1, Some(1)), (table("twin"), 1, Some(1))]);
        let shown = p.walden(["find", "--kind", "drop"]);
        assert!(shown.ok().contains("TIMELINE") && shown.stdout.contains("--timeline 2"), "{shown}");
        assert!(shown.stderr.contains("timeline 1 leaves the way to timeline 2"), "{shown}");

        // A table that was dropped on both asks; what was dropped on one of them leads there.
        refused(&p, &["before-drop:twin"], &["several timelines", "timeline 1 at ", "timeline 2 at ", "--timeline N"]);
        let timeline = |arguments: &[&str]| json(&p, &[&["plan", "--to"], arguments].concat())["timeline"].clone();
        assert_eq!([timeline(&["before-drop:old"]), timeline(&["before-drop:new"])], [1, 2]);
        refused(&p, &["before-drop:new", "--timeline", "1"], &["no drop of new", "the way to timeline 1"]);
        // Before the branches part there is one drop, whichever of them is followed.
        let early = json(&p, &["plan", "--to", "before-drop:early"]);
        assert_eq!(format!("before:{}", early["stop"]["lsn"].as_str().unwrap()), on_first[0].3);
        // Twice on one branch is not once on the other.
        refused(&p, &["name:twice"], &["2 times"]);

        // Each leads to just before that drop on that branch.
        let restored = |name: &str, arguments: &[&str], ask: &str| {
            let pgdata = p.scene.path().join(name);
            let to = [&["-q", "restore", "--yes", "--clone", "--start", "--then", "promote"], arguments].concat();
            p.walden([&to[..], &["--pgdata", pgdata.to_str().unwrap()]].concat()).expect_code(0);
            let mut copy = Cluster::attach(&pgdata, installation);
            copy.wait_for("select pg_is_in_recovery()", "f");
            let answer = copy.psql(ask);
            copy.stop(Stop::Immediate);
            answer
        };
        let both = "select string_agg(n::text, ',' order by n) from twin";
        for (name, row, timeline, left) in [("a", &on_first[2], "1", "1,2,3"), ("b", &on_second[2], "2", "1,20,30")] {
            let to = ["--to", row.3.as_str(), "--timeline", timeline];
            assert_eq!(restored(name, &to, both), left, "PostgreSQL {}", installation.major);
        }
        assert_eq!(restored("c", &["--to", "before-drop:twin", "--timeline", "2"], both), "1,20,30");
        assert_eq!(restored("d", &["--to", "before-drop:old"], both), "1,2");
    });
}

/// What `walden wal show` says of that segment.
fn show(p: &Protected, segment: &str) -> Value {
    json(p, &["wal", "show", segment])
}

#[test]
fn a_record_that_its_timeline_left_unfinished_is_shown_as_its_branches_have_it() {
    let mut p = Protected::new(any(), Place::Directory, |b| b.wal_segment_size(1));
    p.cluster.psql("create table t (n int, filler text)");
    let _ = p.backup();
    p.cluster.psql("insert into t select n, repeat('x', 300) from generate_series(1, 20000) n");
    let _ = p.archive();
    let system = p.cluster.psql("select system_identifier from pg_control_system()");
    let object = |name: &str| p.repository.join(format!("main/{system}-1/wal/{}/{}/{name}", &name[..8], &name[8..16]));
    // A segment whose last record goes on in the next one.
    let first = json(&p, &["plan", "--to", "immediate"])["last_segment"].as_str().unwrap().to_owned();
    let number = |name: &str| u32::from_str_radix(&name[16..], 16).unwrap();
    let name = |timeline: u32, number: u32| format!("{timeline:08X}{:08X}{number:08X}", 0);
    let (segment, record) = (number(&first) + 1..)
        .map(|n| (n, show(&p, &name(1, n))))
        .find(|(n, shown)| {
            let lsn = |field: &str| shown[field].as_str().unwrap().parse::<Lsn>().unwrap();
            lsn("end").0 > u64::from(*n + 1) << 20 && lsn("last").0 < (u64::from(*n + 1) << 20) - 8
        })
        .map(|(n, shown)| (n, shown["last"].as_str().unwrap().to_owned()))
        .unwrap();
    let whole = show(&p, &name(1, segment));
    p.cluster.stop(Stop::Fast);
    for (timeline, to) in [(2, format!("before:{record}")), (3, record.clone())] {
        let mut copy = branch(&p, &format!("branch{timeline}"), &[&to, "--timeline", "1"]);
        assert_eq!(archive(&copy)[..8], format!("{timeline:08X}"));
        copy.stop(Stop::Fast);
    }
    // Its own timeline has lost the rest of it; one that left later has it.
    fs::remove_file(object(&name(1, segment + 1))).unwrap();
    assert_eq!(show(&p, &name(1, segment)), whole);
    // The one that is left begins before it.
    fs::remove_file(object(&name(3, segment + 1))).unwrap();
    let shown = show(&p, &name(1, segment));
    assert_eq!((&shown["unfinished"], &shown["ending"]), (&record.as_str().into(), &"full".into()), "{shown}");
    let said = p.walden(["wal", "show", &name(1, segment)]);
    assert!(said.ok().contains("the next segment, where it goes on, is not there"), "{said}");
    // The history of the third would bring it back; without that nobody has the record.
    fs::remove_file(
        object(&name(1, segment))
            .parent()
            .unwrap()
            .parent()
            .unwrap()
            .parent()
            .unwrap()
            .join("00000003/00000003.history"),
    )
    .unwrap();
    let shown = show(&p, &name(1, segment));
    assert_eq!(shown["given_up"], serde_json::json!({ "timeline": 2, "lsn": record }), "{shown}");
    let said = p.walden(["wal", "show", &name(1, segment)]);
    assert!(said.ok().contains(&format!("timeline 2, which begins at {record}, does not have it")), "{said}");
    // On that timeline the same segment goes on with what it wrote instead.
    assert_eq!(show(&p, &name(2, segment))["unfinished"], Value::Null);
}

/// PostgreSQL writes the whole history of the timeline that it was told to follow, also where recovery ended before that
/// had begun.
#[test]
fn a_way_back_behind_several_forks_leaves_a_history_that_leads_on() {
    let mut p = Protected::new(any(), Place::Directory, |b| b);
    p.cluster.psql("create table t as select 1 as n");
    let _ = p.backup();
    p.cluster.psql("select pg_create_restore_point('here')");
    p.cluster.psql("insert into t values (2)");
    let _ = p.archive();
    p.cluster.stop(Stop::Fast);
    for (name, to, rows) in [
        ("second", "name:here", "1"),
        ("third", "latest", "1,20"),
        ("fourth", "name:here", "1"),
        ("fifth", "latest", "1,20"),
    ] {
        let mut branch = branch(&p, name, &[to]);
        assert_eq!(branch.psql("select string_agg(n::text, ',' order by n) from t"), rows, "{name}");
        branch.psql("insert into t values (20)");
        let _ = archive(&branch);
        branch.stop(Stop::Fast);
    }
    // Each was left where it was, or where the way back passed it by.
    let plan = json(&p, &["plan", "--to", "latest"]);
    assert_eq!(plan["timeline"], 5);
}
