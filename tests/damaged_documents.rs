//! One damaged document, manifest or history file stands in the way of what needs it, and of nothing else; whoever looks is
//! told which it is.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

use std::{fs, path::PathBuf};

use serde_json::Value;
use walden_testkit::{
    postgres::any,
    protected::{Place, Protected},
    run::{Ran, run},
};

/// The folder of the one system.
fn system(p: &Protected) -> PathBuf {
    fs::read_dir(p.repository.join("main")).unwrap().next().unwrap().unwrap().path()
}

/// Flips a bit in the middle of an object; gives back what it was.
fn damage(object: &PathBuf) -> Vec<u8> {
    let before = fs::read(object).unwrap();
    let mut bytes = before.clone();
    bytes[before.len() / 2] ^= 1;
    fs::write(object, bytes).unwrap();
    before
}

fn json(ran: &Ran) -> Value {
    serde_json::from_str(ran.ok()).unwrap()
}

#[test]
fn one_damaged_backup_does_not_stop_what_is_done_with_others() {
    let p = Protected::new(any(), Place::Directory, |b| b.setting("autovacuum", "off"));
    p.cluster.psql("create table t as select generate_series(1, 1000) as n");
    let ids: Vec<String> = (0..3)
        .map(|n| {
            p.cluster.psql(&format!("update t set n = n + {n} where n < 10; checkpoint"));
            p.backup()
        })
        .collect();
    let whole = json(&p.walden(["--json", "list", "--space"]));
    assert_eq!(whole["systems"][0]["unknown_needs"], Value::Array(vec![]), "{whole}");
    assert!(whole["systems"][0]["backups"][0]["freed_without"].is_u64(), "{whole}");

    for name in ["backup-1.json", "manifest-1.json.zst"] {
        let object = system(&p).join("backups").join(&ids[1]).join(name);
        let before = damage(&object);
        let told = p.walden(["list", "--space"]);
        told.expect_code(6);
        let line = format!("what backup {} needs is not known", ids[1]);
        assert!(told.stdout.contains(&line) && told.stdout.contains(name) && told.stdout.contains(&ids[2]), "{told}");
        // What it may need is not called free.
        assert!(told.stdout.contains("not known") && !told.stdout.contains("no backup needs"), "{told}");
        let found = p.walden(["--json", "list", "--space"]);
        let found: Value = serde_json::from_str(&found.expect_code(6).stdout).unwrap();
        let found = &found["systems"][0];
        assert_eq!(found["unknown_needs"][0]["backup"], ids[1], "{found}");
        assert!(found["unneeded"].is_null(), "{found}");
        let needed = found["backups"].as_array().unwrap().iter().find(|b| b["id"] == ids[2]).unwrap();
        assert!(needed["freed_without"].is_null() && needed["needs"].is_array(), "{found}");

        // A pin is about one backup; of that one the damage is told.
        for (command, id) in [("pin", &ids[0]), ("unpin", &ids[0]), ("pin", &ids[1]), ("unpin", &ids[1])] {
            let ran = p.walden([command, id]);
            let is_told = ran.expect_code(0).stderr.contains(name);
            assert_eq!(is_told, *id == ids[1] && name == "backup-1.json", "{ran}");
        }
        p.walden(["pin", "20200101T000000Z"]).expect_code(1);
        fs::write(&object, before).unwrap();
        assert_eq!(json(&p.walden(["--json", "list", "--space"])), whole, "everything is still there");
    }
    // Who removes keeps everything while a document is in doubt, and a backup that can be restored in any case.
    let rules = fs::read_to_string(&p.config).unwrap() + "\n[keep]\nlast = 1\n";
    p.scene.write("walden.toml", rules);
    for (id, name) in [(&ids[1], "backup-1.json"), (&ids[2], "manifest-1.json.zst")] {
        let object = system(&p).join("backups").join(id).join(name);
        let before = damage(&object);
        let expired = p.walden(["expire"]);
        assert!(expired.stdout.contains(name) || expired.stderr.contains(name), "{expired}");
        fs::write(&object, before).unwrap();
        let found = json(&p.walden(["--json", "list", "--space"]));
        if name == "backup-1.json" {
            assert_eq!(found, whole, "everything is still there: {expired}");
        } else {
            assert_eq!(listed(&found), ids[1..], "{expired}");
        }
        p.walden(["verify"]).expect_code(0);
    }
    // So it does where a deep look has found the newest damaged, until another finds it whole.
    let object = system(&p).join("backups").join(&ids[2]).join("part-00001.tar.zst");
    let before = damage(&object);
    p.walden(["verify", "--deep"]).expect_code(6);
    let expired = p.walden(["expire"]);
    assert_eq!(listed(&json(&p.walden(["--json", "list"]))), ids[1..], "{expired}");
    fs::write(&object, before).unwrap();
    p.walden(["verify", "--deep", "--anew"]).expect_code(0);
    p.walden(["expire"]).expect_code(0);
    assert_eq!(listed(&json(&p.walden(["--json", "list"]))), ids[2..]);
}

/// The ids of the backups in what `walden list` says.
fn listed(document: &Value) -> Vec<String> {
    let backups = document["systems"][0]["backups"].as_array().unwrap();
    backups.iter().map(|backup| backup["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_damaged_history_stops_plans_on_its_own_timeline_alone() {
    let p = Protected::new(any(), Place::Directory, |b| b);
    p.cluster.psql("create table t as select generate_series(1, 1000) as n");
    let _ = p.backup();
    p.cluster.psql("insert into t values (1); select pg_create_restore_point('here')");
    let _ = p.archive();
    let _ = p.archive();
    // Two timelines that left the first one where it is now, and wrote nothing yet.
    let switch = p.cluster.psql("select pg_current_wal_lsn()");
    for timeline in 2..=3 {
        let name = format!("{timeline:08X}.history");
        let file = p.cluster.pgdata().join("pg_wal").join(&name);
        fs::write(&file, format!("1\t{switch}\tno recovery target specified\n")).unwrap();
        p.cluster.owner().own(&file);
        let mut push = p.command(["wal", "push", &format!("pg_wal/{name}")]);
        run(push.current_dir(p.cluster.pgdata())).expect_code(0);
    }
    let plan = |more: &[&str]| p.walden([&["--json", "plan", "--to", "name:here"], more].concat());
    let stop = |ran: &Ran| json(ran)["stop"].clone();
    let whole = stop(&plan(&[]));
    let object = |timeline: u32| system(&p).join(format!("wal/{timeline:08X}/{timeline:08X}.history"));
    type Change = fn(&PathBuf);
    let cut = |object: &PathBuf| {
        let bytes = fs::read(object).unwrap();
        fs::write(object, &bytes[..bytes.len() - 20]).unwrap();
    };
    let changes: [Change; 2] = [cut, |object| fs::remove_file(object).unwrap()];
    for change in changes {
        let before = [2, 3].map(|timeline| fs::read(object(timeline)).unwrap());
        // PostgreSQL's own test of a timeline is its history: a folder with nothing in it is none.
        fs::write(object(2).with_file_name("other"), "").unwrap();
        fs::write(object(3).with_file_name("other"), "").unwrap();

        change(&object(2));
        let planned = plan(&[]);
        assert_eq!(stop(&planned), whole);
        let warned = json(&planned)["warnings"].to_string();
        assert!(warned.contains("timeline 2 is left out"), "{warned}");
        let found = p.walden(["find"]);
        assert!(found.expect_code(0).stdout.contains("timeline 2") || found.stderr.contains("timeline 2"), "{found}");
        plan(&["--timeline", "2"]).expect_code(if object(2).exists() { 6 } else { 3 });

        // What the newest holds is what is wanted where nothing else is said.
        change(&object(3));
        for refused in [plan(&[]), p.walden(["plan", "--to", "latest"]), p.walden(["find"])] {
            let words = ["timeline 3 is the newest", "--timeline 1"];
            assert!(refused.code != Some(0) && words.iter().all(|word| refused.stderr.contains(word)), "{refused}");
        }
        assert_eq!(stop(&plan(&["--timeline", "1"])), whole);
        p.walden(["find", "--timeline", "1"]).expect_code(0);
        for (timeline, bytes) in (2..).zip(before) {
            fs::write(object(timeline), bytes).unwrap();
        }
        assert_eq!(stop(&plan(&[])), whole);
    }
}
