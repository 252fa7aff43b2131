//! Backups over the replication protocol: what they hold, how they are restored, and what breaks off.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use serde_json::Value;
use walden_testkit::{
    postgres::{Cluster, Installation, any, for_each_version},
    protected::{Place, Protected},
    run::{Ran, run},
    s3::{CERTIFICATE, CERTIFICATE_KEY},
};

fn remote(p: &Protected) -> String {
    let taken = p.walden(["-q", "backup", "--remote"]);
    taken.ok().to_owned()
}

fn folder(p: &Protected, id: &str) -> PathBuf {
    let system = p.cluster.psql("select system_identifier from pg_control_system()");
    p.repository.join(format!("main/{system}-1/backups/{id}"))
}

fn manifest(p: &Protected, id: &str) -> Value {
    let stored = fs::read(folder(p, id).join("manifest-1.json.zst")).unwrap();
    serde_json::from_slice(&zstd::decode_all(&stored[..]).unwrap()).unwrap()
}

fn listed(p: &Protected) -> Vec<Value> {
    let document: Value = serde_json::from_str(p.walden(["list", "--json"]).ok()).unwrap();
    document["systems"][0]["backups"].as_array().unwrap().clone()
}

/// A restore that is started, on a socket of its own.
fn restore(p: &Protected, to: &str, pgdata: &Path, more: &[String]) -> Ran {
    let sockets = format!("--set=unix_socket_directories={}", p.scene.folder("sockets").display());
    let mut arguments: Vec<String> =
        ["restore", "--to", to, "--pgdata", pgdata.to_str().unwrap(), "--yes"].map(str::to_owned).to_vec();
    arguments.extend(more.iter().cloned());
    if !more.iter().any(|m| m == "--no-start") {
        arguments.extend([sockets, "--set=listen_addresses=".to_owned(), "--start".to_owned()]);
    }
    arguments.retain(|a| a != "--no-start");
    p.walden(arguments)
}

#[test]
fn holds_what_a_local_one_holds() {
    for_each_version(|installation| {
        let p = Protected::new(installation, Place::Directory, |b| b);
        let space = p.scene.folder("space");
        p.cluster.psql(&format!("create tablespace apart location '{}'", space.display()));
        p.cluster.psql("create table t tablespace apart as select generate_series(1, 1000) as n");
        p.cluster.psql("create unlogged table u as select generate_series(1, 1000) as n");
        // Tablespaces in odd places: inside the data directory, and without a link.
        let inside = p.cluster.pgdata().join("inside");
        p.scene.owner().make_folder(&inside);
        p.cluster.psql(&format!("create tablespace inside location '{}'", inside.display()));
        p.cluster.psql("create table i tablespace inside as select 1");
        p.cluster.psql("set allow_in_place_tablespaces = on; create tablespace here location ''");
        p.cluster.psql("create table h tablespace here as select 1");
        // Left out although PostgreSQL would send them.
        for name in ["recovery.signal", "backup_label.old", "mine/wanted", "mine/not"] {
            let path = p.cluster.pgdata().join(name);
            p.scene.owner().make_folder(path.parent().unwrap());
            fs::write(&path, "x").unwrap();
            p.scene.owner().own(&path);
        }
        let taken = |arguments: &[&str]| {
            let mut command = p.command(arguments);
            let ran = run(command.env("WALDEN_BACKUP_EXCLUDE", "mine/not"));
            manifest(&p, ran.ok())
        };
        let (local, remote) = (taken(&["-q", "backup"]), taken(&["-q", "backup", "--remote"]));
        let by_path = |manifest: &Value, list: &str| -> BTreeMap<String, Value> {
            let entries = manifest[list].as_array().unwrap().iter();
            entries.map(|e| (e["path"].as_str().unwrap().to_owned(), e["mode"].clone())).collect()
        };
        let mut files = (by_path(&local, "files"), by_path(&remote, "files"));
        // The server makes these itself, for the one as for the other.
        for made in ["backup_label", "tablespace_map"] {
            assert!(files.0.remove(made).is_some() && files.1.remove(made).is_some());
        }
        let differ: Vec<_> = files
            .0
            .iter()
            .filter(|f| files.1.get(f.0) != Some(f.1))
            .chain(files.1.iter().filter(|f| files.0.get(f.0) != Some(f.1)))
            .collect();
        assert!(differ.is_empty(), "PostgreSQL {}: {differ:?}", installation.major);
        assert!(files.0.contains_key("mine/wanted") && !files.0.contains_key("mine/not"), "{:?}", files.0);
        assert_eq!(
            by_path(&local, "directories"),
            by_path(&remote, "directories"),
            "PostgreSQL {}",
            installation.major
        );
        for field in ["tablespaces", "block_size", "incarnation"] {
            assert_eq!(local[field], remote[field]);
        }
        let map = |m: &Value| {
            m["files"].as_array().unwrap().iter().find(|f| f["path"] == "tablespace_map").unwrap()["crc32c"].clone()
        };
        assert_eq!(map(&local), map(&remote));
        let backups = listed(&p);
        for field in ["postgres", "server_version_num", "catalog_version", "timeline", "data_checksums", "required"] {
            assert_eq!(backups[0][field], backups[1][field], "{field}");
        }
    });
}

/// Writes rows until it is told to end.
struct Load<'a> {
    p: &'a Protected,
    stop: AtomicBool,
}

impl<'a> Load<'a> {
    fn during<T>(p: &'a Protected, work: impl FnOnce() -> T) -> T {
        let load = Self { p, stop: AtomicBool::new(false) };
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                while !load.stop.load(Ordering::Relaxed) {
                    load.p.cluster.psql(
                        "insert into t select max(n) + 1, repeat('x', 500) from t; update t set filler = filler || 'y' where n % 97 = 0",
                    );
                }
            });
            let done = work();
            load.stop.store(true, Ordering::Relaxed);
            writer.join().unwrap();
            done
        })
    }
}

#[test]
fn is_restored_to_the_latest_and_to_a_time_with_its_tablespaces() {
    for_each_version(|installation| {
        let p = Protected::new(installation, Place::Directory, |b| b);
        let space = p.scene.folder("space");
        p.cluster.psql(&format!("create tablespace apart location '{}'", space.display()));
        p.cluster.psql("create table t (n int, filler text) tablespace apart");
        p.cluster.psql(
            "insert into t select n, repeat('x', 100) from generate_series(1, 50000) as n; create index on t (n)",
        );
        let id = Load::during(&p, || remote(&p));
        let then = p.cluster.psql("select clock_timestamp()::timestamptz(6) at time zone 'UTC' || '+00'");
        let sum = "select count(*), sum(n), md5(string_agg(filler, '' order by n)) from t";
        let at_that_time = p.cluster.psql(sum);
        p.cluster.psql("select pg_sleep(0.01); delete from t where n % 2 = 0");
        let at_the_end = p.cluster.psql(sum);
        p.archive();
        for (number, (to, wanted)) in [("latest", &at_the_end), (then.as_str(), &at_that_time)].into_iter().enumerate()
        {
            let pgdata = p.scene.path().join(format!("copy{number}"));
            let map = format!("--map={}={}", space.display(), p.scene.path().join(format!("space{number}")).display());
            let backup = format!("--backup={id}");
            restore(&p, to, &pgdata, &[map, backup]).expect_code(0);
            let copy = Cluster::attach(&pgdata, installation);
            assert_eq!(&copy.psql(sum), wanted, "PostgreSQL {} {to}", installation.major);
            // One that is paused takes no extension.
            if to == "latest" {
                copy.pg_run("pg_amcheck", ["--install-missing", "--heapallindexed", "--database=postgres"]);
            }
        }
        // What PostgreSQL itself thinks of the files.
        let pgdata = p.scene.path().join("verified");
        let map = format!("--map={}={}", space.display(), p.scene.path().join("space9").display());
        restore(&p, "latest", &pgdata, &[map, "--no-start".to_owned()]).expect_code(0);
        let program = p.cluster.installation().program("pg_verifybackup");
        run(p.cluster.owner().command(program).arg("-n").arg(&pgdata)).expect_code(0);
    });
}

/// The cluster listens on TCP with TLS, where one role may replicate with a password, and nobody else do anything.
fn behind_tcp(p: &mut Protected) {
    let key = p.scene.write("server.key", CERTIFICATE_KEY);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let certificate = p.scene.write("server.pem", CERTIFICATE);
    p.cluster.psql("create role carrier login replication password 'not shown'");
    p.cluster.append_configuration(&format!(
        "ssl = on\nssl_key_file = '{}'\nssl_cert_file = '{}'\nlog_replication_commands = on\n",
        key.display(),
        certificate.display()
    ));
    let hba = "local all postgres trust\nhostssl replication carrier 127.0.0.1/32 scram-sha-256\n";
    fs::write(p.cluster.pgdata().join("pg_hba.conf"), hba).unwrap();
    p.cluster.reload();
    p.cluster.wait_for("select count(*) from pg_hba_file_rules where type = 'hostssl'", "1");
    p.cluster.wait_for("show ssl", "on");
}

#[test]
fn a_backup_host_needs_a_role_for_replication_and_nothing_else() {
    for_each_version(|installation| {
        let mut p = Protected::new(installation, Place::Directory, |b| b.tcp());
        p.cluster.psql("create table t as select generate_series(1, 1000) as n");
        behind_tcp(&mut p);
        let root = p.scene.write("root.crt", CERTIFICATE);
        let passwords = p.scene.write("passwords", "localhost:*:replication:carrier:not shown\n");
        fs::set_permissions(&passwords, fs::Permissions::from_mode(0o600)).unwrap();
        let connection = format!(
            "host=localhost hostaddr=127.0.0.1 port={} user=carrier passfile={} sslmode=verify-full sslrootcert={} channel_binding=require",
            p.cluster.port(),
            passwords.display(),
            root.display()
        );
        let url = p.repository.display().to_string();
        let text = format!("[repository]\nurl = \"file://{url}\"\n\n[cluster.main]\nconnection = \"{connection}\"\n");
        p.config = p.scene.write("backup-host.toml", text);
        p.walden(["init"]).expect_code(0);
        let local = p.walden(["backup"]);
        local.expect_code(2);
        assert!(local.stderr.contains("walden backup --remote"), "{local}");
        let taken = p.walden(["backup", "--remote", "--rate-limit", "700MB"]);
        assert!(!taken.to_string().contains("not shown"), "{taken}");
        let id = taken.ok().lines().last().unwrap().to_owned();
        assert!(p.cluster.log().contains("MAX_RATE 716800"), "{}", p.cluster.log_tail());
        // The names of its relations are told by SQL, which this role may not speak.
        assert!(taken.stderr.contains("no catalogue of names"), "{taken}");
        let pgdata = p.scene.path().join("copy");
        restore(&p, "latest", &pgdata, &[format!("--backup={id}")]).expect_code(0);
        assert_eq!(Cluster::attach(&pgdata, installation).psql("select count(*) from t"), "1000");
    });
}

#[test]
fn damaged_pages_are_named_as_the_local_way_names_them() {
    for_each_version(|installation| {
        let p = Protected::new(installation, Place::Directory, |b| b);
        p.cluster.psql("create table t as select generate_series(1, 10000) as n; checkpoint");
        let path = p.cluster.psql("select pg_relation_filepath('t')");
        let file = fs::OpenOptions::new().write(true).open(p.cluster.pgdata().join(&path)).unwrap();
        // More than the server itself names in its log.
        let blocks = [0, 1, 3, 5, 7, 8, 20];
        for block in blocks {
            file.write_all_at(b"rotten", block * 8192 + 5000).unwrap();
        }
        for arguments in [vec!["backup"], vec!["backup", "--remote"]] {
            let taken = p.walden(arguments);
            taken.expect_code(6);
            assert!(taken.stderr.contains(&format!("page 20 of {path}")), "{taken}");
        }
        let backups = listed(&p);
        let bad: Vec<Value> = blocks.iter().map(|b| serde_json::json!({ "path": path, "block": b })).collect();
        assert_eq!(backups[1]["bad_pages"], Value::Array(bad), "PostgreSQL {}", installation.major);
        assert_eq!(backups[0]["bad_pages"], backups[1]["bad_pages"]);
    });
}

#[test]
fn a_cluster_without_checksums_and_with_other_segments() {
    let p = Protected::new(any(), Place::Directory, |b| b.checksums(false).wal_segment_size(1));
    p.cluster.psql("create table t as select generate_series(1, 10000) as n");
    let id = remote(&p);
    assert_eq!(listed(&p)[0]["data_checksums"], false);
    let pgdata = p.scene.path().join("copy");
    restore(&p, "latest", &pgdata, &[format!("--backup={id}")]).expect_code(0);
    assert_eq!(Cluster::attach(&pgdata, any()).psql("select count(*) from t"), "10000");
}

/// Only whole backups are listed: each part that a document names is there.
fn all_listed_are_whole(p: &Protected) {
    for backup in listed(p) {
        let folder = folder(p, backup["id"].as_str().unwrap());
        for part in backup["parts"].as_array().unwrap() {
            let path = folder.join(format!("part-{:05}.tar.zst", part["number"].as_u64().unwrap()));
            assert_eq!(fs::metadata(&path).unwrap().len(), part["length"].as_u64().unwrap(), "{}", path.display());
        }
    }
}

/// A backup that takes its time.
fn slow(p: &Protected) -> Child {
    let mut command = p.command(["-q", "backup", "--remote", "--rate-limit", "10MB"]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    p.cluster.wait_for("select count(*) from pg_stat_progress_basebackup where backup_streamed > 1000000", "1");
    child
}

#[test]
fn whatever_is_killed_only_whole_backups_are_listed() {
    let mut p = Protected::new(any(), Place::Directory, |b| b);
    p.cluster.psql("create table t as select generate_series(1, 500000) as n");
    let mut rng = fastrand::Rng::with_seed(11);
    for _ in 0..6 {
        let mut backup =
            p.command(["-q", "backup", "--remote"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        thread::sleep(Duration::from_millis(rng.u64(5..1500)));
        // One that has ended already is as good.
        let _ = backup.kill();
        backup.wait().unwrap();
        all_listed_are_whole(&p);
    }
    let before: BTreeSet<String> = listed(&p).iter().map(|b| b["id"].to_string()).collect();
    let broken = slow(&p);
    p.cluster.kill9();
    let ended = broken.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1), "{}", String::from_utf8_lossy(&ended.stderr));
    p.cluster.start();
    all_listed_are_whole(&p);
    assert_eq!(listed(&p).iter().map(|b| b["id"].to_string()).collect::<BTreeSet<_>>(), before);
    let id = remote(&p);
    assert!(listed(&p).iter().any(|b| b["id"] == id.as_str()));
}

#[test]
fn an_interrupt_ends_it_on_the_server_too() {
    for_each_version(interrupted);
}

fn interrupted(installation: &Installation) {
    let p = Protected::new(installation, Place::Directory, |b| b);
    p.cluster.psql("create table t as select generate_series(1, 500000) as n");
    let child = slow(&p);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(130), "{}", String::from_utf8_lossy(&ended.stderr));
    p.cluster.wait_for("select count(*) from pg_stat_progress_basebackup", "0");
    let log = p.cluster.log();
    assert!(log.contains("canceling statement due to user request"), "{}", p.cluster.log_tail());
    assert!(p.walden(["list"]).ok().contains("no backup"));
    // Its lease does not stand in the way.
    let _ = remote(&p);
}
