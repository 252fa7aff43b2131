//! Objects of the archive whose head was lost or damaged go on working; objects whose content was damaged do not.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

use std::{fs, path::PathBuf};

use walden_testkit::{
    postgres::{Stop, any},
    protected::{Place, Protected},
    run::{Ran, run},
};

fn objects(p: &Protected) -> Vec<PathBuf> {
    let mut objects = Vec::new();
    let system = fs::read_dir(p.repository.join("main")).unwrap().next().unwrap().unwrap().path();
    for log in fs::read_dir(system.join("wal/00000001")).unwrap() {
        objects.extend(fs::read_dir(log.unwrap().path()).unwrap().map(|object| object.unwrap().path()));
    }
    objects.retain(|path| path.file_name().unwrap().len() == 24);
    objects.sort();
    objects
}

fn fetch(p: &Protected, name: &str) -> Ran {
    run(p.command(["wal", "fetch", name, "pg_wal/RECOVERYXLOG"]).current_dir(p.cluster.pgdata()))
}

type Damage = fn(&[u8]) -> Vec<u8>;

/// Where the frames of an object begin.
fn content(object: &[u8]) -> usize {
    8 + u32::from_le_bytes(object[4..8].try_into().unwrap()) as usize
}

#[test]
fn what_lost_its_head_is_read_and_what_lost_its_content_is_not() {
    let mut p = Protected::new(any(), Place::Directory, |b| b);
    p.cluster.psql("create table t as select generate_series(1, 1000) as n");
    let _ = p.backup();
    p.cluster.psql("insert into t select generate_series(1, 100000)");
    let kept = p.archive();
    let original = fs::read(p.cluster.pgdata().join("pg_wal").join(&kept)).unwrap();
    p.cluster.psql("select pg_create_restore_point('here')");
    let _ = p.archive();
    p.cluster.stop(Stop::Fast);
    let plan = |to: &str| p.walden(["--json", "plan", "--to", to]);
    let before = plan("name:here").ok().to_owned();
    let whole: Vec<_> = objects(&p).into_iter().map(|path| (fs::read(&path).unwrap(), path)).collect();
    let breaks: [(&str, Damage); 2] = [
        ("the JSON of the head is broken", |object| {
            let mut object = object.to_vec();
            object[8] = b'!';
            object
        }),
        ("the head is gone", |object| object[content(object)..].to_vec()),
    ];
    let same = |text: &str| {
        let plan: serde_json::Value = serde_json::from_str(text).unwrap();
        (plan["stop"].clone(), plan["backup"]["id"].clone(), plan["segments"].clone())
    };
    for (what, damage) in breaks {
        whole.iter().for_each(|(object, path)| fs::write(path, damage(object)).unwrap());
        let fetched = fetch(&p, &kept);
        fetched.expect_code(0);
        assert!(fetched.stderr.contains("the head of"), "{what}: no warning: {fetched}");
        assert!(fs::read(p.cluster.pgdata().join("pg_wal/RECOVERYXLOG")).unwrap() == original, "{what}");
        let planned = plan("name:here");
        assert_eq!(same(planned.ok()), same(&before), "{what}");
        assert!(planned.stderr.contains("the head of"), "{what}: no warning: {planned}");
        plan("latest").expect_code(0);
        // PostgreSQL has removed the file by now. Pushing the same again finds its content there.
        fs::write(p.cluster.pgdata().join("pg_wal").join(&kept), &original).unwrap();
        let again = run(p.command(["wal", "push", &format!("pg_wal/{kept}")]).current_dir(p.cluster.pgdata()));
        again.expect_code(0);
        // A byte of content that is wrong is still found.
        let (_, path) = whole.iter().find(|(_, path)| path.ends_with(&kept)).unwrap();
        let mut object = fs::read(path).unwrap();
        let middle = object.len() / 2;
        object[middle] ^= 1;
        fs::write(path, object).unwrap();
        let damaged = fetch(&p, &kept);
        damaged.expect_code(200);
        assert!(damaged.stderr.contains("is damaged"), "{what}: {damaged}");
        let refused = plan("name:here");
        refused.expect_code(3);
        assert!(refused.stderr.contains("is damaged"), "{what}: the damage is not named: {refused}");
        // Whole, but under another segment's name.
        let (other, _) = whole.iter().find(|(_, path)| !path.ends_with(&kept)).unwrap();
        fs::write(path, damage(other)).unwrap();
        fetch(&p, &kept).expect_code(200);
    }
    whole.iter().for_each(|(object, path)| fs::write(path, object).unwrap());
    assert_eq!(same(plan("name:here").ok()), same(&before));
}
