//! Backups that store only what changed: each is complete, whatever happened to the cluster in between and whichever
//! other backups are gone.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde_json::Value;
use walden_testkit::{
    postgres::{Cluster, Installation, any, for_each_version},
    protected::{Place, Protected},
    run::run,
};

fn backups(p: &Protected) -> PathBuf {
    let system = p.cluster.psql("select system_identifier from pg_control_system()");
    p.repository.join(format!("main/{system}-1/backups"))
}

fn manifest(folder: &Path, id: &str) -> Value {
    let stored = fs::read(folder.join(id).join("manifest-1.json.zst")).unwrap();
    serde_json::from_slice(&zstd::decode_all(&stored[..]).unwrap()).unwrap()
}

fn document(folder: &Path, id: &str) -> Value {
    serde_json::from_slice(&fs::read(folder.join(id).join("backup-1.json")).unwrap()).unwrap()
}

/// The layers of each file that has some: backup and kind.
fn layers(manifest: &Value) -> BTreeMap<String, Vec<(String, String)>> {
    let text = |layer: &Value, key: &str, absent: &str| layer[key].as_str().unwrap_or(absent).to_owned();
    let of = |file: &Value| {
        let layers = file["layers"].as_array().into_iter().flatten();
        layers.map(|l| (text(l, "backup", ""), text(l, "kind", "whole"))).collect()
    };
    manifest["files"].as_array().unwrap().iter().map(|f| (f["path"].as_str().unwrap().to_owned(), of(f))).collect()
}

fn restore(p: &Protected, id: &str, name: &str) -> PathBuf {
    let pgdata = p.scene.path().join(name);
    let space = p.scene.path().join(format!("{name}-space"));
    let mut arguments = vec!["-q".to_owned(), "restore".into(), "--to=immediate".into(), format!("--backup={id}")];
    arguments.extend([format!("--pgdata={}", pgdata.display()), "--yes".into()]);
    if p.scene.path().join("space").exists() {
        arguments.push(format!("--map={}={}", p.scene.path().join("space").display(), space.display()));
    }
    p.walden(arguments).expect_code(0);
    let verify = p.cluster.installation().program("pg_verifybackup");
    run(p.cluster.owner().command(verify).arg("-n").arg(&pgdata)).expect_code(0);
    pgdata
}

/// The relation files of a data directory.
fn relations(pgdata: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders: Vec<PathBuf> = ["base", "global", "pg_tblspc"].map(PathBuf::from).into();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(pgdata.join(&folder)).unwrap() {
            let path = folder.join(entry.unwrap().file_name());
            let name = path.file_name().unwrap().to_str().unwrap();
            // Links of tablespaces are followed.
            if fs::metadata(pgdata.join(&path)).unwrap().is_dir() {
                if name != "pgsql_tmp" {
                    folders.push(path);
                }
            } else if name != "pg_control" && !name.starts_with("pg_internal.init") {
                let content = fs::read(pgdata.join(&path)).unwrap();
                found.insert(path, content);
            }
        }
    }
    found
}

/// How the bytes of a backup come.
type Way = &'static [&'static str];
const LOCAL: Way = &["-q", "backup"];
const REMOTE: Way = &["-q", "backup", "--remote"];

fn backup(p: &Protected, way: Way) -> String {
    p.walden(way).ok().to_owned()
}

/// Takes a backup of a server that rests, restores it, and holds each relation's file against the server's own.
fn backup_and_compare(p: &Protected, folder: &Path, way: Way) -> String {
    let id = backup(p, way);
    let pgdata = restore(p, &id, "compared");
    let (ours, theirs) = (relations(&pgdata), relations(p.cluster.pgdata()));
    assert!(theirs.len() > 200);
    let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(&ours), names(&theirs));
    for (path, content) in &theirs {
        assert!(ours[path] == *content, "{} differs in backup {id}", path.display());
    }
    fs::remove_dir_all(&pgdata).unwrap();
    let _ = fs::remove_dir_all(p.scene.path().join("compared-space"));
    // What is listed as referred to is what the manifest points into.
    let used: BTreeSet<String> = layers(&manifest(folder, &id)).into_values().flatten().map(|(of, _)| of).collect();
    let mut told: BTreeSet<String> = document(folder, &id)["references"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r.as_str().unwrap().to_owned())
        .collect();
    told.insert(id.clone());
    assert_eq!(used, told);
    id
}

fn quiet(installation: &Installation) -> Protected {
    Protected::new(installation, Place::Directory, |b| b.setting("autovacuum", "off"))
}

#[test]
fn whatever_happens_in_between_each_backup_is_the_cluster() {
    for_each_version(|installation| whatever_happens(&quiet(installation), &[LOCAL]));
}

#[test]
fn whatever_happens_in_between_each_remote_backup_is_the_cluster() {
    for_each_version(|installation| whatever_happens(&quiet(installation), &[REMOTE]));
}

#[test]
fn either_way_goes_on_from_the_other() {
    for_each_version(|installation| whatever_happens(&quiet(installation), &[REMOTE, LOCAL]));
}

/// A server that knows what has changed.
fn summarizing(installation: &Installation) -> Protected {
    Protected::new(installation, Place::Directory, |b| {
        b.setting("autovacuum", "off").setting("summarize_wal", "on").setting("log_replication_commands", "on")
    })
}

fn for_each_that_summarizes(test: impl Fn(&Installation)) {
    for_each_version(|installation| {
        if installation.major >= 17 {
            test(installation);
        }
    });
}

/// How often the server was asked for what changed alone, and how often for everything.
fn asked(p: &Protected) -> (usize, usize) {
    let log = p.cluster.log();
    let asked = log.lines().filter(|line| line.contains("received replication command: BASE_BACKUP"));
    let (changes, everything): (Vec<_>, Vec<_>) = asked.partition(|line| line.contains(", INCREMENTAL"));
    (changes.len(), everything.len())
}

#[test]
fn what_the_server_says_of_changes_is_the_cluster() {
    for_each_that_summarizes(|installation| {
        let p = summarizing(installation);
        whatever_happens(&p, &[REMOTE]);
        assert_eq!(asked(&p), (6, 1), "PostgreSQL {}\n{}", installation.major, p.cluster.log_tail());
        // What is read of a server that rests has not changed, whatever its size.
        let _ = backup(&p, REMOTE);
        let folder = backups(&p);
        let [before, after] = [backup(&p, REMOTE), backup(&p, REMOTE)].map(|id| layers(&manifest(&folder, &id)));
        let stored =
            after.iter().filter(|(path, _)| path.starts_with("base/")).find(|(path, of)| before[*path] != **of);
        assert_eq!(stored, None, "PostgreSQL {}", installation.major);
    });
}

#[test]
fn either_way_goes_on_from_what_the_server_said() {
    for_each_that_summarizes(|installation| {
        let p = summarizing(installation);
        whatever_happens(&p, &[LOCAL, REMOTE]);
        assert_eq!(asked(&p), (3, 0), "PostgreSQL {}\n{}", installation.major, p.cluster.log_tail());
        // Out again as one of PostgreSQL's own.
        let (to, pgdata) = (p.scene.path().join("exported"), p.scene.path().join("by-hand"));
        p.cluster.psql("drop table small");
        p.cluster.psql("drop tablespace apart");
        let _ = backup(&p, LOCAL);
        p.cluster.psql("update t set text = 'once more' where n % 50 = 0");
        let id = backup(&p, REMOTE);
        p.walden(["export", "--backup", &id, "--to", to.to_str().unwrap()]).expect_code(0);
        p.scene.owner().make_folder(&pgdata);
        run(p.scene.owner().command("tar").arg("-xf").arg(to.join("base.tar")).arg("-C").arg(&pgdata)).expect_code(0);
        fs::copy(to.join("backup_manifest"), pgdata.join("backup_manifest")).unwrap();
        p.scene.owner().own(&pgdata.join("backup_manifest"));
        let verify = p.cluster.installation().program("pg_verifybackup");
        run(p.cluster.owner().command(verify).arg("-n").arg(&pgdata)).expect_code(0);
        let copy = started(&p, &id, "latest", "copy", &[]);
        let sum = "select md5(string_agg(t::text, ',' order by n, text)) from t";
        assert_eq!(copy.psql(sum), p.cluster.psql(sum));
        copy.pg_run("pg_amcheck", ["--install-missing", "--heapallindexed", "--database=postgres"]);
    });
}

#[test]
fn where_the_server_cannot_tell_everything_comes_and_it_is_said_once() {
    for_each_that_summarizes(|installation| {
        let p = quiet(installation);
        let folder = backups(&p);
        p.cluster.psql("create table t as select n, repeat('x', 100) as text from generate_series(1, 20000) as n");
        p.cluster.psql("vacuum freeze t");
        let table = p.cluster.psql("select pg_relation_filepath('t')");
        let first = backup(&p, REMOTE);
        p.cluster.append_configuration("summarize_wal = on\nwal_summary_keep_time = 0\n");
        p.cluster.reload();
        p.cluster.wait_for("show summarize_wal", "on");
        // Its summaries of what came before are gone, or were never made.
        p.cluster.psql("update t set text = 'changed' where n % 4000 = 7");
        p.cluster.wait_for("select count(*) > 0 from pg_stat_activity where backend_type = 'walsummarizer'", "t");
        let note = "note: the server sent everything, not what changed alone";
        let away = |p: &Protected| {
            let summaries = p.cluster.pgdata().join("pg_wal/summaries");
            for entry in fs::read_dir(summaries).unwrap() {
                fs::remove_file(entry.unwrap().path()).unwrap();
            }
        };
        p.cluster.psql("checkpoint; select pg_switch_wal(); checkpoint");
        p.cluster.wait_for("select count(*) > 0 from pg_available_wal_summaries()", "t");
        away(&p);
        let taken = p.walden(["backup", "--remote"]);
        assert_eq!(taken.stderr.matches(note).count(), 1, "{taken}");
        let second = taken.ok().lines().last().unwrap().to_owned();
        let kinds = layers(&manifest(&folder, &second))[&table].clone();
        assert_eq!(kinds, [(first.clone(), "whole".to_owned()), (second.clone(), "incremental".to_owned())]);
        // From there on it can.
        p.cluster.psql("update t set text = 'again' where n % 4000 = 8");
        let taken = p.walden(["backup", "--remote"]);
        assert!(!taken.stderr.contains("note:"), "{taken}");
        let third = taken.ok().lines().last().unwrap().to_owned();
        let newest = layers(&manifest(&folder, &third))[&table].last().cloned();
        assert_eq!(newest, Some((third.clone(), "incremental".to_owned())));

        // An ancestor whose maps cannot be read.
        for id in [&first, &second, &third] {
            for entry in fs::read_dir(folder.join(id)).unwrap() {
                let path = entry.unwrap().path();
                if path.file_name().unwrap().to_str().unwrap().starts_with("part-") {
                    let mut bytes = fs::read(&path).unwrap();
                    let index = bytes.windows(4).rposition(|w| w == [0x56, 0x2A, 0x4D, 0x18]).unwrap();
                    bytes[index + 12..index + 40].fill(0xFF);
                    fs::write(&path, bytes).unwrap();
                }
            }
        }
        p.cluster.psql("update t set text = 'and again' where n % 4000 = 9");
        let taken = p.walden(["backup", "--remote"]);
        assert_eq!(taken.stderr.matches(note).count(), 1, "{taken}");
        let fourth = taken.ok().lines().last().unwrap().to_owned();
        assert_eq!(layers(&manifest(&folder, &fourth))[&table], [(fourth.clone(), "whole".to_owned())]);
        let pgdata = restore(&p, &fourth, "compared");
        let same = fs::read(p.cluster.pgdata().join(&table)).unwrap() == fs::read(pgdata.join(&table)).unwrap();
        assert!(same, "PostgreSQL {}: {table} differs in backup {fourth}", installation.major);
    });
}

#[test]
fn whatever_happens_in_between_summaries_of_the_log_tell_it() {
    // With checksums a hint bit is logged like a change, so that each block is the server's to the last bit.
    for_each_that_summarizes(|installation| {
        let p = Protected::new(installation, Place::Directory, |b| {
            b.checksums(true).setting("autovacuum", "off").setting("summarize_wal", "on")
        });
        whatever_happens(&p, &[LOCAL]);
    });
}

/// Backups by these ways in turn.
fn whatever_happens(p: &Protected, ways: &[Way]) {
    let installation = p.cluster.installation();
    let folder = backups(p);
    let space = p.scene.folder("space");
    p.cluster.psql(&format!("create tablespace apart location '{}'", space.display()));
    p.cluster.psql("create table t as select n, repeat('x', 100) as text from generate_series(1, 60000) as n");
    p.cluster.psql("create index on t (n)");
    p.cluster.psql("create table small as select generate_series(1, 100) as n");
    let mut ways = ways.iter().cycle();
    let mut backup_and_compare = || backup_and_compare(p, &folder, ways.next().unwrap());
    let first = backup_and_compare();
    let table = p.cluster.psql("select pg_relation_filepath('t')");

    // Nothing has changed.
    let second = backup_and_compare();
    let (whole, nothing) = (document(&folder, &first), document(&folder, &second));
    let stored = |document: &Value| document["stored"].as_u64().unwrap();
    assert!(stored(&nothing) * 5 < stored(&whole), "{} and {}", stored(&nothing), stored(&whole));
    assert_eq!(nothing["references"], serde_json::json!([first]));
    assert_eq!(layers(&manifest(&folder, &second))[&table], [(first.clone(), "whole".to_owned())]);

    // Some blocks have.
    p.cluster.psql("update t set text = 'changed' where n % 6000 = 7");
    let third = backup_and_compare();
    let kinds = layers(&manifest(&folder, &third))[&table].clone();
    assert_eq!(kinds, [(first, "whole".to_owned()), (third, "incremental".to_owned())]);

    let mut steps: Vec<Vec<&str>> = vec![
        // Truncation by vacuum.
        vec!["delete from t where n > 30000", "vacuum t"],
        // Growth over it; a table that becomes another file; databases that are copies.
        vec![
            "insert into t select n, 'again' from generate_series(60001, 120000) as n",
            "truncate small",
            "insert into small select generate_series(1, 50000)",
            "create database copy template template0",
            "create database other template postgres",
        ],
        // File numbers that are somebody else's; a tablespace.
        vec![
            "vacuum full t",
            "drop table small",
            "create table small as select generate_series(1, 60000) as n",
            "alter table small set tablespace apart",
            "drop database copy",
        ],
        // And back.
        vec![
            "update t set text = 'there' where n < 100",
            "update small set n = n + 1 where n % 3000 = 0",
            "alter table small set tablespace pg_default",
            "reindex table t",
        ],
    ];
    if installation.major >= 15 {
        steps[3].push("create database filed template other strategy file_copy");
    }
    for step in steps {
        for sql in step {
            p.cluster.psql(sql);
        }
        let _ = backup_and_compare();
    }
}

/// What no manifest that is left points into goes, as an expiry would have it.
fn delete(folder: &Path, id: &str) {
    for name in ["backup-1.json", "manifest-1.json.zst"] {
        fs::remove_file(folder.join(id).join(name)).unwrap();
    }
    let mut kept = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if folder.join(&name).join("backup-1.json").exists() {
            for part in manifest(folder, &name)["parts"].as_array().unwrap() {
                kept.insert((part["backup"].as_str().unwrap().to_owned(), part["number"].as_u64().unwrap()));
            }
        }
    }
    for entry in fs::read_dir(folder.join(id)).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let number = name.strip_prefix("part-").and_then(|n| n.strip_suffix(".tar.zst")).map(|n| n.parse().unwrap());
        if number.is_some_and(|number| !kept.contains(&(id.to_owned(), number))) {
            fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn any_backup_can_go_and_the_others_stay_whole() {
    let p = quiet(any());
    let folder = backups(&p);
    p.cluster.psql("create table t as select n, repeat('x', 100) as text from generate_series(1, 40000) as n");
    let mut rng = fastrand::Rng::with_seed(4);
    let mut taken: Vec<(String, String)> = Vec::new();
    for round in 0..14 {
        let of = rng.u32(50..4000);
        p.cluster.psql(&format!("update t set text = 'round {round}' where n % 4001 = {of}"));
        let sum = p.cluster.psql("select md5(string_agg(t::text, ',' order by n)) from t");
        taken.push((p.backup(), sum));
        if round % 3 == 2 {
            let gone = taken.remove(rng.usize(0..taken.len() - 1));
            delete(&folder, &gone.0);
        }
    }
    for (index, (id, sum)) in taken.iter().enumerate() {
        let copy = started(&p, id, "immediate", &format!("copy-{index}"), &[]);
        assert_eq!(copy.psql("select md5(string_agg(t::text, ',' order by n)) from t"), *sum, "backup {id}");
        copy.pg_run("pg_amcheck", ["--install-missing", "--heapallindexed", "--database=postgres"]);
    }
}

/// A started copy that was promoted.
fn started(p: &Protected, id: &str, to: &str, name: &str, more: &[&str]) -> Cluster {
    let pgdata = p.scene.path().join(name);
    let (backup, sockets) = (format!("--backup={id}"), p.scene.folder(&format!("{name}-sockets")));
    let sockets = format!("--set=unix_socket_directories={}", sockets.display());
    let mut arguments =
        vec!["-q", "restore", "--to", to, "--yes", "--start", "--then=promote", "--set=listen_addresses="];
    arguments.extend(["--pgdata", pgdata.to_str().unwrap(), &backup, &sockets]);
    arguments.extend(more);
    p.walden(arguments).expect_code(0);
    Cluster::attach(&pgdata, p.cluster.installation())
}

#[test]
fn an_abandoned_branch_is_no_ancestor() {
    for_each_version(|installation| {
        let p = quiet(installation);
        let folder = backups(&p);
        p.cluster.psql("create table t as select n, repeat('x', 100) as text from generate_series(1, 40000) as n");
        let common = p.backup();
        p.cluster.psql("update t set text = 'before' where n % 400 = 0");
        p.cluster.psql("select pg_create_restore_point('fork')");
        p.cluster.psql("update t set text = 'abandoned' where n % 400 = 1");
        let abandoned = p.backup();
        p.archive();
        let copy = started(&p, &common, "name:fork", "copy", &[]);
        copy.psql("update t set text = 'kept' where n % 400 = 2");
        p.walden(["adopt", "--pgdata", copy.pgdata().to_str().unwrap()]).expect_code(0);
        let mut taken = p.command(["-q", "backup"]);
        taken.env("WALDEN_CLUSTER_MAIN_PGDATA", copy.pgdata()).env("WALDEN_CLUSTER_MAIN_CONNECTION", copy.conninfo());
        let id = run(&mut taken).ok().to_owned();
        let used: BTreeSet<String> =
            layers(&manifest(&folder, &id)).into_values().flatten().map(|(backup, _)| backup).collect();
        assert!(used.contains(&common) && !used.contains(&abandoned), "{used:?}");
        let sum = "select md5(string_agg(t::text, ',' order by n)) from t";
        let expected = copy.psql(sum);
        assert_eq!(started(&p, &id, "immediate", "again", &[]).psql(sum), expected);
    });
}

#[test]
fn a_file_that_was_written_is_found_out_though_its_time_was_set_back() {
    let p = quiet(any());
    let folder = backups(&p);
    p.cluster.psql("create table t as select n, repeat('x', 100) as text from generate_series(1, 20000) as n");
    let _ = backup_and_compare(&p, &folder, LOCAL);
    let path = p.cluster.pgdata().join(p.cluster.psql("select pg_relation_filepath('t')"));
    let before = fs::metadata(&path).unwrap();
    p.cluster.psql("update t set text = repeat('y', 100) where n = 5");
    p.cluster.psql("checkpoint");
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(before.modified().unwrap()).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mtime_nsec(), before.mtime_nsec());
    let _ = backup_and_compare(&p, &folder, LOCAL);
}

#[test]
fn what_a_killed_backup_has_stored_is_not_stored_again() {
    killed(LOCAL, LOCAL);
}

#[test]
fn nor_what_a_killed_remote_backup_has_stored() {
    killed(REMOTE, REMOTE);
    killed(REMOTE, LOCAL);
}

/// One is killed, and another taken.
fn killed(way: Way, then: Way) {
    let p = quiet(any());
    let folder = backups(&p);
    // Two files past the length at which a part closes would take long; the last part of a thread counts, too, when the
    // kill comes after it was put.
    p.cluster.psql(
        "create table t as select n, md5(n::text) || repeat('x', 400) as text from generate_series(1, 700000) as n",
    );
    p.cluster.psql("vacuum freeze t; checkpoint");
    let mut slow = p.command(way);
    slow.env("WALDEN_BACKUP_RATE_LIMIT", "100MB").env("WALDEN_BACKUP_PARALLEL", "1");
    let mut slow = slow.stdout(std::process::Stdio::null()).spawn().unwrap();
    let attempt = loop {
        let parts = fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
        if let Some(attempt) = parts.into_iter().find(|path| path.join("part-00001.tar.zst").exists()) {
            break attempt;
        }
        assert!(slow.try_wait().unwrap().is_none(), "it ended before its first part was there");
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    slow.kill().unwrap();
    slow.wait().unwrap();
    assert!(!attempt.join("backup-1.json").exists());
    let stored = fs::metadata(attempt.join("part-00001.tar.zst")).unwrap().len();
    let id = backup_and_compare(&p, &folder, then);
    let attempt = attempt.file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(document(&folder, &id)["references"], serde_json::json!([attempt]));
    assert!(document(&folder, &id)["stored"].as_u64().unwrap() < stored);
}

/// `list --space --json`: the system.
fn space(p: &Protected) -> Value {
    let listed: Value = serde_json::from_str(p.walden(["list", "--space", "--json"]).ok()).unwrap();
    listed["systems"][0].clone()
}

/// What the parts come to that this backup's manifest alone lists, by the manifests as they are stored.
fn alone(folder: &Path, id: &str, others: &[&str]) -> u64 {
    let parts = |id: &str| {
        let manifest = manifest(folder, id);
        let of = |part: &Value| (part["backup"].to_string(), part["number"].as_u64().unwrap());
        let parts = manifest["parts"].as_array().unwrap();
        parts.iter().map(|part| (of(part), part["length"].as_u64().unwrap())).collect::<BTreeMap<_, _>>()
    };
    let others: Vec<_> = others.iter().map(|other| parts(other)).collect();
    let mine = parts(id).into_iter().filter(|(name, _)| others.iter().all(|other| !other.contains_key(name)));
    mine.map(|(_, length)| length).sum()
}

#[test]
fn the_list_tells_what_would_come_free_and_what_nobody_needs() {
    let p = quiet(any());
    let folder = backups(&p);
    p.cluster.psql("create table t as select n, repeat('x', 100) as text from generate_series(1, 60000) as n");
    let first = p.backup();
    p.cluster.psql("update t set text = 'changed' where n % 6000 = 7");
    let second = p.backup();
    // What an attempt leaves that was killed.
    let attempt = folder.join("20000101T000000Z");
    fs::create_dir(&attempt).unwrap();
    fs::copy(folder.join(&first).join("part-00001.tar.zst"), attempt.join("part-00003.tar.zst")).unwrap();
    let length = fs::metadata(attempt.join("part-00003.tar.zst")).unwrap().len();
    let other = |document: &Value| {
        let own: u64 = document["parts"].as_array().unwrap().iter().map(|p| p["length"].as_u64().unwrap()).sum();
        document["stored"].as_u64().unwrap() - own
    };

    let told = space(&p);
    for (backup, others) in [(&first, [second.as_str()]), (&second, [first.as_str()])] {
        let told = told["backups"].as_array().unwrap().iter().find(|b| b["id"] == **backup).unwrap().clone();
        let expected = alone(&folder, backup, &others) + other(&document(&folder, backup));
        assert_eq!(told["freed_without"].as_u64().unwrap(), expected, "{backup}");
        assert!(expected < told["size"].as_u64().unwrap());
    }
    assert_eq!(told["backups"][0]["needs"], serde_json::json!([]));
    assert_eq!(told["backups"][1]["needs"][0]["backup"], first.as_str());
    assert_eq!(
        told["unneeded"],
        serde_json::json!([{ "backup": "20000101T000000Z", "begun": null, "exists": false, "parts": [3], "bytes": length }])
    );
    let (content, living) = (told["parts"]["content"].as_u64().unwrap(), told["parts"]["living"].as_u64().unwrap());
    assert!(living < content && living * 10 > content * 9, "{living} of {content}");

    // Without the first, the second alone needs what it needs of it.
    delete(&folder, &first);
    let told = space(&p);
    let expected = alone(&folder, &second, &[]) + other(&document(&folder, &second));
    assert_eq!(told["backups"][0]["freed_without"].as_u64().unwrap(), expected);
    assert_eq!(told["backups"][0]["needs"][0]["backup"], first.as_str());
    assert_eq!(told["unneeded"].as_array().unwrap().len(), 1);
    let table = p.walden(["list", "--space"]);
    assert!(table.ok().contains("no backup needs 1 parts"), "{}", table.stdout);
    // A manifest that cannot be read is no proof that nobody needs a part.
    fs::write(folder.join(&second).join("manifest-1.json.zst"), "nothing").unwrap();
    p.walden(["list", "--space"]).expect_code(6);
    p.walden(["list"]).expect_code(0);
}
