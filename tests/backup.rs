//! Backups of a server that goes on working.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

use std::{collections::BTreeSet, fs, os::unix::fs::FileExt, path::PathBuf, process::Stdio, thread, time::Duration};

use walden_testkit::{
    postgres::{any, for_each_version},
    protected::{Place, Protected},
};

/// The folder of a backup in a directory repository.
fn folder(p: &Protected, id: &str) -> PathBuf {
    let system = p.cluster.psql("select system_identifier from pg_control_system()");
    p.repository.join(format!("main/{system}-1/backups/{id}"))
}

fn manifest(p: &Protected, id: &str) -> serde_json::Value {
    let stored = fs::read(folder(p, id).join("manifest-1.json.zst")).unwrap();
    serde_json::from_slice(&zstd::decode_all(&stored[..]).unwrap()).unwrap()
}

#[test]
fn a_backup_is_listed_with_what_it_opens() {
    for_each_version(|installation| {
        let p = Protected::new(installation, Place::Directory, |b| b);
        p.cluster.psql("create table t as select generate_series(1, 100000) as n");
        let taken = p.walden(["backup", "--label", "first of all"]);
        let id = taken.ok().lines().last().unwrap_or_default().to_owned();
        let listed = p.walden(["list"]);
        assert!(listed.ok().contains(&id) && listed.ok().contains("first of all"), "{listed}");
        let json = p.walden(["list", "--json"]);
        let document: serde_json::Value = serde_json::from_str(json.ok()).unwrap();
        let backup = &document["systems"][0]["backups"][0];
        assert_eq!(backup["id"], id.as_str());
        assert!(backup["size"].as_u64().unwrap() > 20_000_000);
    });
}

#[test]
fn the_catalogue_has_the_names_of_every_database() {
    for_each_version(|installation| {
        let p = Protected::new(installation, Place::Directory, |b| b);
        p.cluster.psql("create database shop");
        p.cluster.psql("create database shut");
        p.cluster.psql("alter database shut allow_connections false");
        p.cluster.psql_db("shop", "create schema \"Old\"");
        p.cluster.psql_db("shop", "create table \"Old\".\"T ä\" (id serial primary key, t text)");
        p.cluster.psql_db("shop", "truncate \"Old\".\"T ä\"");
        p.cluster.psql("vacuum full pg_database");
        let taken = p.walden(["backup"]);
        assert!(taken.stderr.contains("database shut are not known: it takes no connections"), "{taken}");
        let id = taken.ok().lines().last().unwrap_or_default().to_owned();
        let stored = fs::read(folder(&p, &id).join("catalogue-1.json.zst")).unwrap();
        let text = String::from_utf8(zstd::decode_all(&stored[..]).unwrap()).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines[0]["catalogue"]["backup"], id.as_str());
        let one = |kind: &str, name: &str| {
            let found: Vec<_> = lines.iter().map(|l| &l[kind]).filter(|l| l["name"] == name).collect();
            assert_eq!(found.len(), 1, "{name}: {found:?}");
            found[0].clone()
        };
        let shop = one("database", "shop");
        assert_eq!((&shop["listed"], one("database", "shut").get("listed")), (&true.into(), None));
        assert_eq!(one("tablespace", "pg_default")["oid"], 1663);
        let table = one("relation", "T ä");
        let number = |sql: &str| p.cluster.psql_db("shop", sql).parse::<u64>().unwrap();
        assert_eq!(table["oid"], number("select '\"Old\".\"T ä\"'::regclass::oid"));
        assert_eq!(table["file"], number("select pg_relation_filenode('\"Old\".\"T ä\"')"));
        assert_eq!((&table["schema"], &table["kind"], &table["database"]), (&"Old".into(), &"r".into(), &shop["oid"]));
        assert_eq!(one("relation", "T ä_pkey")["parent"], table["oid"]);
        // Mapped, moved, and told once.
        let databases = one("relation", "pg_database");
        assert_eq!((&databases["database"], &databases["oid"]), (&0.into(), &1262.into()));
        assert_eq!(databases["file"], number("select pg_relation_filenode('pg_database')"));
        assert_ne!(databases["file"], 1262);
    });
}

#[test]
fn a_second_backup_at_the_same_time_is_refused() {
    let p = Protected::new(any(), Place::Directory, |b| b);
    p.cluster.psql("create table t as select generate_series(1, 3000000) as n");
    let mut slow = p.command(["-q", "backup"]);
    let mut slow = slow.env("WALDEN_BACKUP_RATE_LIMIT", "20MB").stdout(Stdio::null()).spawn().unwrap();
    let lease = folder(&p, "x").ancestors().nth(2).unwrap().join("lease/backup");
    while !lease.exists() {
        thread::sleep(Duration::from_millis(20));
    }
    let refused = p.walden(["backup"]);
    refused.expect_code(4);
    assert!(refused.stderr.contains("another backup is running"), "{refused}");
    // A killed one does not block the next.
    slow.kill().unwrap();
    slow.wait().unwrap();
    let id = p.backup();
    let document: serde_json::Value = serde_json::from_str(p.walden(["list", "--json"]).ok()).unwrap();
    let listed = document["systems"][0]["backups"].as_array().unwrap();
    assert_eq!(
        listed.iter().map(|b| b["id"].as_str().unwrap()).collect::<Vec<_>>(),
        [id],
        "only the whole one is listed"
    );
}

#[test]
fn a_backup_holds_what_postgresql_itself_would_store() {
    for_each_version(|installation| {
        let p = Protected::new(installation, Place::Directory, |b| b);
        let space = p.scene.folder("space");
        p.cluster.psql(&format!("create tablespace apart location '{}'", space.display()));
        p.cluster.psql("create table t tablespace apart as select generate_series(1, 1000) as n");
        p.cluster.psql("create unlogged table u as select generate_series(1, 1000) as n");
        // Names that are left out by their place alone must not be left out elsewhere.
        fs::create_dir(p.cluster.pgdata().join("mine")).unwrap();
        fs::write(p.cluster.pgdata().join("mine/postmaster.opts"), "x").unwrap();
        p.scene.owner().own(&p.cluster.pgdata().join("mine"));
        p.cluster.psql("checkpoint");
        let (id, base) = (p.backup(), p.scene.folder("base"));
        let mapping = format!("{}={}", space.display(), p.scene.folder("mapped").display());
        let connection =
            ["-h", p.cluster.socket_dir().to_str().unwrap(), "-p", &p.cluster.port().to_string(), "-U", "postgres"]
                .map(str::to_owned);
        let more = ["-D", base.to_str().unwrap(), "-T", &mapping, "-X", "none", "-c", "fast"].map(str::to_owned);
        p.cluster.pg_run("pg_basebackup", connection.into_iter().chain(more));
        let theirs: serde_json::Value =
            serde_json::from_slice(&fs::read(base.join("backup_manifest")).unwrap()).unwrap();
        let paths = |files: &serde_json::Value, field: &str| -> BTreeSet<String> {
            files.as_array().unwrap().iter().map(|f| f[field].as_str().unwrap().to_owned()).collect()
        };
        let (ours, theirs) = (paths(&manifest(&p, &id)["files"], "path"), paths(&theirs["Files"], "Path"));
        // A plain pg_basebackup makes the links itself and needs no map; it leaves files out by name wherever they lie.
        let differ: Vec<_> = ours.symmetric_difference(&theirs).collect();
        assert_eq!(differ, ["mine/postmaster.opts", "tablespace_map"], "PostgreSQL {}", installation.major);
        assert!(ours.iter().any(|f| f.starts_with("pg_tblspc/")), "{ours:?}");
    });
}

#[test]
fn a_damaged_page_is_named_and_the_backup_kept() {
    let p = Protected::new(any(), Place::Directory, |b| b);
    p.cluster.psql("create table t as select generate_series(1, 10000) as n; checkpoint");
    let path = p.cluster.psql("select pg_relation_filepath('t')");
    let file = fs::OpenOptions::new().write(true).open(p.cluster.pgdata().join(&path)).unwrap();
    file.write_all_at(b"rotten", 3 * 8192 + 5000).unwrap();
    let taken = p.walden(["backup"]);
    taken.expect_code(6);
    assert!(taken.stderr.contains(&format!("page 3 of {path}")), "{taken}");
    let document: serde_json::Value = serde_json::from_str(p.walden(["list", "--json"]).ok()).unwrap();
    let bad = &document["systems"][0]["backups"][0]["bad_pages"];
    assert_eq!(bad, &serde_json::json!([{ "path": path, "block": 3 }]));
}

#[test]
fn kill_9_at_any_instant_leaves_only_whole_backups() {
    let p = Protected::new(any(), Place::Directory, |b| b);
    p.cluster.psql("create table t as select generate_series(1, 500000) as n");
    let mut rng = fastrand::Rng::with_seed(7);
    for _ in 0..8 {
        let mut backup = p.command(["-q", "backup"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        thread::sleep(Duration::from_millis(rng.u64(5..1500)));
        // One that has ended already is as good.
        let _ = backup.kill();
        backup.wait().unwrap();
        let document: serde_json::Value = serde_json::from_str(p.walden(["list", "--json"]).ok()).unwrap();
        for backup in document["systems"][0]["backups"].as_array().unwrap() {
            let folder = folder(&p, backup["id"].as_str().unwrap());
            for part in backup["parts"].as_array().unwrap() {
                let path = folder.join(format!("part-{:05}.tar.zst", part["number"].as_u64().unwrap()));
                assert_eq!(fs::metadata(&path).unwrap().len(), part["length"].as_u64().unwrap(), "{}", path.display());
            }
        }
    }
    let id = p.backup();
    assert!(p.walden(["list"]).ok().contains(&id));
}

#[test]
fn a_backup_without_its_wal_is_no_backup() {
    let p = Protected::new(any(), Place::Directory, |b| b);
    p.cluster.append_configuration("archive_command = 'false'\n");
    p.cluster.reload();
    let mut backup = p.command(["backup"]);
    let failed = walden_testkit::run::run(backup.env("WALDEN_ARCHIVE_TIMEOUT", "3s"));
    failed.expect_code(1);
    assert!(failed.stderr.contains("did not reach the archive"), "{failed}");
    assert!(p.walden(["list"]).ok().contains("no backup"));
}

/// The greatest memory that a run held, in bytes.
fn peak(mut command: std::process::Command) -> u64 {
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut greatest = 0;
    loop {
        let ended = child.try_wait().unwrap();
        // One that has ended has no memory any more.
        let text = fs::read_to_string(&status).unwrap_or_default();
        if let Some(line) = text.lines().find(|line| line.starts_with("VmHWM:")) {
            greatest = line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10;
        }
        if let Some(status) = ended {
            assert!(status.success(), "{status}");
            return greatest;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn many_files_take_little_memory() {
    const FILES: u64 = 60_000;
    // Of which some 20 are of parts that are being written, however many files there are.
    const MOST: u64 = 44 << 20;
    let p = Protected::new(any(), Place::Directory, |b| b);
    // The second finds all files as the first has left them.
    let runs = || [peak(p.command(["-q", "backup"])), peak(p.command(["-q", "backup"]))];
    let few = runs();
    for database in 0..FILES / 1000 {
        let folder = p.cluster.pgdata().join(format!("base/{}", 50_000 + database));
        fs::create_dir(&folder).unwrap();
        p.scene.owner().own(&folder);
        for number in 0..1000 {
            let path = folder.join(format!("{}", 16_384 + number));
            fs::write(&path, format!("{database} {number}")).unwrap();
            p.scene.owner().own(&path);
        }
    }
    let many = runs();
    for (few, many) in few.into_iter().zip(many) {
        assert!(many < few + MOST, "{} MiB with few files, {} MiB with many", few >> 20, many >> 20);
    }
}
