//! What can befall backups that build on others: damage below them, a restore in place that is killed, files that change
//! while they are read. A restore gives back exactly the backup, or says what is broken.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use walden_testkit::{
    postgres::{Cluster, any},
    protected::{Place, Protected},
    run::{Ran, run},
};

fn quiet(rows: u32) -> Protected {
    let p = Protected::new(any(), Place::Directory, |b| b.setting("autovacuum", "off"));
    p.cluster.psql(&format!(
        "create table t as select n, md5(n::text) || repeat('x', 100) as text from generate_series(1, {rows}) as n"
    ));
    // So that not every page changes when it is read for the first time.
    p.cluster.psql("vacuum (freeze) t; checkpoint");
    p
}

fn backups(p: &Protected) -> PathBuf {
    let system = p.cluster.psql("select system_identifier from pg_control_system()");
    p.repository.join(format!("main/{system}-1/backups"))
}

fn manifest(folder: &Path, id: &str) -> Value {
    let stored = fs::read(folder.join(id).join("manifest-1.json.zst")).unwrap();
    serde_json::from_slice(&zstd::decode_all(&stored[..]).unwrap()).unwrap()
}

fn part(folder: &Path, id: &str, number: u64) -> PathBuf {
    folder.join(id).join(format!("part-{number:05}.tar.zst"))
}

/// The layers of a file: backup, part, offset and length.
fn layers(manifest: &Value, path: &str) -> Vec<(String, u64, u64, u64)> {
    let file = manifest["files"].as_array().unwrap().iter().find(|f| f["path"] == path).unwrap();
    let number = |layer: &Value, key: &str| layer[key].as_u64().unwrap();
    let place = |layer: &Value| {
        let backup = layer["backup"].as_str().unwrap().to_owned();
        (backup, number(layer, "part"), number(layer, "offset"), number(layer, "length"))
    };
    file["layers"].as_array().unwrap().iter().map(place).collect()
}

fn arguments(id: &str, pgdata: &Path, more: &[&str]) -> Vec<String> {
    let mut arguments = ["-q", "restore", "--to", "immediate", "--yes", "--backup", id].map(str::to_owned).to_vec();
    arguments.extend(["--pgdata".to_owned(), pgdata.display().to_string()]);
    arguments.extend(more.iter().map(|m| (*m).to_owned()));
    arguments
}

fn restore(p: &Protected, id: &str, pgdata: &Path, more: &[&str]) -> Ran {
    p.walden(arguments(id, pgdata, more))
}

/// Every file of a data directory with its mode and content.
fn tree(pgdata: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(pgdata.join(&folder)).unwrap() {
            let path = folder.join(entry.unwrap().file_name());
            let metadata = fs::symlink_metadata(pgdata.join(&path)).unwrap();
            if metadata.is_dir() {
                folders.push(path);
            // These tell when they were made.
            } else if !["backup_manifest", "postgresql.auto.conf"].iter().any(|own| path == Path::new(own)) {
                let content = fs::read(pgdata.join(&path)).unwrap();
                found.insert(path, (metadata.permissions().mode(), content));
            }
        }
    }
    found
}

#[track_caller]
fn same(found: &BTreeMap<PathBuf, (u32, Vec<u8>)>, wanted: &BTreeMap<PathBuf, (u32, Vec<u8>)>, what: &str) {
    let names = |tree: &BTreeMap<PathBuf, _>| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(wanted), "{what}");
    for (path, content) in wanted {
        assert!(found[path] == *content, "{what}: {} differs", path.display());
    }
}

/// Changes an object, which stays the servers' user's.
fn put(p: &Protected, path: &Path, bytes: &[u8]) {
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
    p.cluster.owner().own(path);
}

/// The mark beside a directory that is not finished.
fn mark(pgdata: &Path) -> PathBuf {
    pgdata.with_file_name(format!(".{}.walden-restore.json", pgdata.file_name().unwrap().display()))
}

#[test]
fn damage_in_an_older_backup_is_told_by_whoever_needs_it() {
    let p = quiet(40_000);
    let folder = backups(&p);
    let first = p.backup();
    p.cluster.psql("update t set text = 'changed' where n % 4000 = 7");
    let second = p.backup();
    let table = p.cluster.psql("select pg_relation_filepath('t')");
    let (backup, number, offset, length) = layers(&manifest(&folder, &second), &table)[0].clone();
    assert_eq!(backup, first);
    let path = part(&folder, &first, number);
    let whole = fs::read(&path).unwrap();
    // In the middle of the frame that holds the middle of the table.
    let listed = manifest(&folder, &first)["parts"].clone();
    let listed = listed.as_array().unwrap().iter().find(|p| p["number"] == number).unwrap().clone();
    let (mut stored, mut content) = (0, 0);
    let frames = listed["frames"].as_array().unwrap();
    let sizes = frames.iter().map(|f| (f[0].as_u64().unwrap(), f[1].as_u64().unwrap()));
    let at = sizes
        .map(|(s, c)| {
            let frame = (stored, content);
            (stored, content) = (stored + s, content + c);
            (frame, s, c)
        })
        .find(|((_, begin), _, c)| (*begin..begin + c).contains(&(offset + length / 2)))
        .map(|((begin, _), s, _)| begin + s / 2)
        .unwrap();
    let mut damaged = whole.clone();
    damaged[at as usize] ^= 0x40;
    put(&p, &path, &damaged);
    let pgdata = p.scene.path().join("copy");
    for id in [&second, &first] {
        let _ = fs::remove_dir_all(&pgdata);
        let _ = fs::remove_file(mark(&pgdata));
        let ran = restore(&p, id, &pgdata, &[]);
        ran.expect_code(6);
        assert!(ran.stderr.contains(&format!("part {number} of backup {first}")), "{ran}");
        assert!(mark(&pgdata).exists() && !pgdata.join("global/pg_control").exists(), "{ran}");
    }
    // Brought back, it goes on.
    put(&p, &path, &whole);
    restore(&p, &first, &pgdata, &[]).expect_code(0);
}

#[test]
fn no_byte_that_is_wrong_comes_back_unnoticed() {
    let p = quiet(20_000);
    let folder = backups(&p);
    let mut id = p.backup();
    for round in 0..3 {
        p.cluster.psql(&format!("update t set text = md5(text) where n % 500 = {round}"));
        id = p.backup();
    }
    let wanted = p.scene.path().join("wanted");
    restore(&p, &id, &wanted, &[]).expect_code(0);
    let wanted = tree(&wanted);
    let parts = manifest(&folder, &id)["parts"].clone();
    let parts = parts.as_array().unwrap();
    let seed = fastrand::u64(..);
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut told = 0;
    for round in 0..12 {
        let of = &parts[rng.usize(..parts.len())];
        let (backup, number) = (of["backup"].as_str().unwrap(), of["number"].as_u64().unwrap());
        let path = part(&folder, backup, number);
        let whole = fs::read(&path).unwrap();
        let mut damaged = whole.clone();
        let at = rng.usize(..damaged.len());
        damaged[at] ^= 1 << rng.u32(0..8);
        put(&p, &path, &damaged);
        let pgdata = p.scene.path().join(format!("copy-{round}"));
        let ran = restore(&p, &id, &pgdata, &[]);
        let what = format!("seed {seed}: byte {at} of part {number} of {backup}");
        if ran.code == Some(0) {
            // It was in what this backup does not need.
            same(&tree(&pgdata), &wanted, &what);
        } else {
            told += 1;
            ran.expect_code(6);
            assert!(ran.stderr.contains(&format!("part {number} of backup {backup}")), "{what}: {ran}");
            assert!(!pgdata.join("global/pg_control").exists(), "{what}");
        }
        put(&p, &path, &whole);
        let _ = fs::remove_dir_all(&pgdata);
    }
    assert!(told > 0, "seed {seed}: every byte that was changed was one that nobody needs");
}

/// What becomes of an object's bytes.
type Damage = fn(&[u8]) -> Option<Vec<u8>>;

#[test]
fn on_damage_no_backup_is_built() {
    let damage: [(&str, Damage); 3] = [
        ("missing", |_| None),
        ("cut", |bytes| Some(bytes[..bytes.len() / 2].to_vec())),
        ("index", |bytes| {
            // The index is the skippable frame before the seek table: its last byte but the table's.
            let footer = bytes.len() - 9;
            let frames = u32::from_le_bytes(bytes[footer..footer + 4].try_into().unwrap()) as usize;
            let mut damaged = bytes.to_vec();
            damaged[footer - frames * 8 - 8 - 3] ^= 0x10;
            Some(damaged)
        }),
    ];
    let ways: [&[&str]; 2] = [&["backup"], &["backup", "--remote"]];
    for (way, (what, damage)) in ways.into_iter().flat_map(|way| damage.map(|damage| (way, damage))) {
        let what = format!("{way:?}, {what}");
        let p = quiet(20_000);
        let folder = backups(&p);
        let table = p.cluster.psql("select pg_relation_filepath('t')");
        let first = p.backup();
        p.cluster.psql("update t set text = 'changed' where n % 4000 = 7");
        let second = p.backup();
        let number = layers(&manifest(&folder, &second), &table)[0].1;
        let path = part(&folder, &first, number);
        let whole = fs::read(&path).unwrap();
        match damage(&whole) {
            Some(bytes) => put(&p, &path, &bytes),
            None => fs::remove_file(&path).unwrap(),
        }
        p.cluster.psql("update t set text = 'again' where n % 4000 = 9");
        let ran = p.walden(way);
        let third = ran.ok().lines().last().unwrap().to_owned();
        let object = format!("{first}/part-{number:05}.tar.zst");
        let named = format!("part {number} of backup {first}");
        assert!(ran.stderr.contains(&object) || ran.stderr.contains(&named), "{what}: nothing warns: {ran}");
        let told = manifest(&folder, &third);
        let of_table = layers(&told, &table);
        assert!(of_table.len() == 1 && of_table[0].0 == third, "{what}: {of_table:?}");
        let uses = |part: &Value| part["backup"] == first.as_str() && part["number"] == number;
        // With a broken index the files in a part are whole; what is known to be unchanged stays there.
        assert!(what.ends_with("index") || !told["parts"].as_array().unwrap().iter().any(uses), "{what}");
        let pgdata = p.scene.path().join("copy");
        restore(&p, &third, &pgdata, &[]).expect_code(0);
        let (ours, theirs) = (tree(&pgdata.join("base")), tree(&p.cluster.pgdata().join("base")));
        for (path, content) in theirs.iter().filter(|(path, _)| !path.ends_with("pg_internal.init")) {
            assert!(ours.get(path) == Some(content), "{what}: {} differs", path.display());
        }
    }
}

#[test]
fn a_restore_in_place_that_is_killed_goes_on_to_the_same_bytes() {
    let p = quiet(250_000);
    let first = p.backup();
    p.cluster.psql("update t set text = repeat('y', 130) where n % 150 < 4");
    p.cluster.psql("create table more as select generate_series(1, 50000) as n");
    let second = p.backup();
    let begun = Instant::now();
    let fresh = p.scene.path().join("fresh");
    restore(&p, &second, &fresh, &[]).expect_code(0);
    let wanted = tree(&fresh);
    let longest = u64::try_from(begun.elapsed().as_millis()).unwrap();
    let seed = fastrand::u64(..);
    let mut rng = fastrand::Rng::with_seed(seed);
    let pgdata = p.scene.path().join("copy");
    restore(&p, &first, &pgdata, &[]).expect_code(0);
    let mut killed = 0;
    for round in 0..8 {
        let mut command = p.command(arguments(&second, &pgdata, &["--delta"]));
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        // The first ones early, the later ones anywhere.
        thread::sleep(Duration::from_millis(rng.u64(1..=longest * (round + 1) / 8 + 1)));
        let _ = child.kill();
        if child.wait().unwrap().success() {
            continue;
        }
        killed += 1;
        assert!(mark(&pgdata).exists() || !changed(&pgdata, &wanted), "seed {seed}: changed without a mark");
        assert!(
            !mark(&pgdata).exists()
                || !pgdata.join("global/pg_control").exists()
                || pgdata.join("backup_manifest").exists(),
            "seed {seed}: what is half done looks whole"
        );
    }
    restore(&p, &second, &pgdata, &["--delta"]).expect_code(0);
    same(&tree(&pgdata), &wanted, &format!("seed {seed}, killed {killed} times"));
    let verify = p.cluster.installation().program("pg_verifybackup");
    run(p.cluster.owner().command(verify).arg("-n").arg(&pgdata)).expect_code(0);
    assert!(!mark(&pgdata).exists());
}

/// Whether a directory without a mark is a mixture: neither the new backup nor the old, which had no table more.
fn changed(pgdata: &Path, wanted: &BTreeMap<PathBuf, (u32, Vec<u8>)>) -> bool {
    let there = tree(pgdata);
    let new: Vec<_> = wanted.keys().filter(|path| !there.contains_key(*path)).collect();
    !new.is_empty() && !there.contains_key(Path::new("global/pg_control"))
}

const CHURN: [&str; 3] = [
    // Relations that vanish.
    "create table gone as select n, repeat('g', 200) as g from generate_series(1, 8000) as n; drop table gone;",
    // One that shrinks and grows by megabytes.
    "delete from tide where n > 2000; vacuum tide;
     insert into tide select n, repeat('t', 200) from generate_series(2001, 30000) as n;",
    // One that becomes another file, and one that only grows.
    "truncate other; insert into other select n, repeat('o', 200) from generate_series(1, 9000) as n;
     insert into growing select n, repeat('w', 500) from generate_series(1, 1500) as n;",
];

#[test]
fn what_vanishes_shrinks_or_grows_while_it_is_read_is_mended_by_its_wal() {
    let p = Protected::new(any(), Place::Directory, |b| b);
    p.cluster.psql(
        "create table fixed as select n, md5(n::text) || repeat('x', 300) as text from generate_series(1, 60000) as n;
             create table tide as select n, repeat('t', 200) as t from generate_series(1, 30000) as n;
             create table other (n int, o text); create table growing (n int, w text); create index on growing (n)",
    );
    let stop = AtomicBool::new(false);
    let taken: Vec<String> = thread::scope(|scope| {
        for churn in CHURN {
            let (stop, cluster) = (&stop, &p.cluster);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    cluster.psql(&format!("{churn} select pg_sleep(0.2)"));
                }
            });
        }
        let take = |number| {
            p.cluster.psql(&format!("update fixed set text = md5(text) where n % 1000 = {number}"));
            // Slowly, so that much happens to what is read.
            let mut command = p.command(["-q", "backup"]);
            let ran = run(command.env("WALDEN_BACKUP_RATE_LIMIT", "25MB"));
            stop.fetch_or(ran.code != Some(0), Ordering::Relaxed);
            ran.ok().to_owned()
        };
        let taken = (0..3).map(take).collect();
        stop.store(true, Ordering::Relaxed);
        taken
    });
    let sum = "select md5(string_agg(x::text, ',' order by n, x::text)) from";
    let sums = ["fixed", "tide", "other", "growing"].map(|table| format!("{sum} {table} x"));
    let expected = sums.each_ref().map(|sum| p.cluster.psql(sum));
    p.archive();
    for (number, id) in taken.iter().enumerate() {
        for to in if number == 2 { &["immediate", "latest"][..] } else { &["latest"] } {
            let pgdata = p.scene.path().join(format!("copy-{number}-{to}"));
            let sockets = format!("--set=unix_socket_directories={}", p.scene.folder("sockets").display());
            let start = ["--start", "--then=promote", "--set=listen_addresses=", &sockets];
            let mut restore = p.command(["-q", "restore", "--yes", "--to", *to, "--backup", id, "--pgdata"]);
            run(restore.arg(&pgdata).args(start)).expect_code(0);
            let copy = Cluster::attach(&pgdata, any());
            if *to == "latest" {
                assert_eq!(sums.each_ref().map(|sum| copy.psql(sum)), expected, "backup {id}");
            }
            let checks = ["--install-missing", "--heapallindexed", "--parent-check", "--database=postgres"];
            copy.pg_run("pg_amcheck", checks);
            drop(copy);
            fs::remove_dir_all(&pgdata).unwrap();
        }
    }
}
