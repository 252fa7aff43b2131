//! Restores on real servers: what is there afterwards, what a kill leaves, and what is refused.

use std::{
    fs,
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

use walden_testkit::{
    postgres::{Cluster, any, for_each_version},
    protected::{Place, Protected},
    run::{Ran, run},
};

/// A cluster with a backup and rows on both sides of it.
fn protected() -> Protected {
    let p = Protected::new(any(), Place::Directory, |b| b);
    fill(&p);
    p
}

fn fill(p: &Protected) {
    p.cluster.psql("create table t as select n, repeat('x', 100) as text from generate_series(1, 20000) as n");
    let _ = p.backup();
    p.cluster.psql("insert into t select n, 'later' from generate_series(20001, 20100) as n");
    p.archive();
}

fn restore(p: &Protected, to: &str, pgdata: &Path, more: &[&str]) -> Ran {
    p.walden(arguments(to, pgdata, more))
}

fn arguments<'a>(to: &'a str, pgdata: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["restore", "--to", to, "--pgdata", text(pgdata), "--yes"];
    arguments.extend(more);
    arguments
}

fn verify(p: &Protected, pgdata: &Path) {
    let owner = p.cluster.owner();
    let program = p.cluster.installation().program("pg_verifybackup");
    run(owner.command(program).arg("-n").arg(pgdata)).expect_code(0);
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of the test's own")
}

/// The mark beside a directory.
fn mark(pgdata: &Path) -> PathBuf {
    pgdata
        .with_file_name(format!(".{}.walden-restore.json", text(pgdata).rsplit_once('/').map_or("", |(_, name)| name)))
}

/// A socket folder and a port for a copy.
fn apart(p: &Protected) -> [String; 2] {
    [
        format!("--set=unix_socket_directories={}", p.scene.folder("sockets").display()),
        "--set=listen_addresses=".to_owned(),
    ]
}

#[test]
fn a_copy_is_what_postgresql_verifies_and_reaches_what_was_planned() {
    for_each_version(|installation| {
        let p = Protected::new(installation, Place::Directory, |b| b);
        fill(&p);
        let pgdata = p.scene.path().join("copy");
        restore(&p, "latest", &pgdata, &[]).expect_code(0);
        verify(&p, &pgdata);
        assert!(!mark(&pgdata).exists() && pgdata.join("recovery.signal").exists());

        let [sockets, tcp] = apart(&p);
        let started = p.scene.path().join("started");
        let ran = restore(&p, "latest", &started, &["--start", &sockets, &tcp]);
        assert!(ran.ok().contains("as planned") && ran.stdout.contains("timeline 2"), "{ran}");
        let copy = Cluster::attach(&started, installation);
        assert_eq!(copy.psql("select count(*) from t"), "20100");

        // Its WAL is held back, nothing of it is lost, and the words say why.
        copy.psql("create table own as select 1; select pg_switch_wal()");
        copy.psql("checkpoint");
        let failed = || copy.psql("select failed_count > 0 from pg_stat_archiver") == "t";
        while !failed() {
            sleep(Duration::from_millis(100));
        }
        assert_eq!(copy.psql("select archived_count from pg_stat_archiver"), "0");
        let ready = fs::read_dir(started.join("pg_wal/archive_status")).unwrap().flatten();
        assert!(ready.map(|e| e.file_name()).any(|n| n.to_str().unwrap().ends_with(".ready")));
    });
}

#[test]
fn every_way_to_stop_is_reached_and_reported() {
    let p = protected();
    let xid = p.cluster.psql("begin; insert into t values (30000, 'x'); select pg_current_xact_id(); commit");
    let xid = xid.lines().find(|l| l.parse::<u64>().is_ok()).unwrap().to_owned();
    p.cluster.psql("select pg_create_restore_point('here')");
    p.cluster.psql("insert into t values (30001, 'after')");
    let drop = p.cluster.psql("begin; select pg_current_xact_id(); drop table t; commit");
    let drop = drop.lines().find(|l| l.parse::<u64>().is_ok()).unwrap().to_owned();
    p.archive();
    let [sockets, tcp] = apart(&p);
    // A dropped table is there, and locked by the transaction that was about to drop it.
    let pgdata = p.scene.path().join("dropped");
    let ran = restore(&p, &format!("before:xid:{drop}"), &pgdata, &["--start", &sockets, &tcp]);
    assert!(ran.ok().contains(" public.t cannot be read before it is open for writing"), "{ran}");
    let copy = Cluster::attach(&pgdata, p.cluster.installation());
    copy.psql("select pg_wal_replay_resume()");
    assert_eq!(copy.psql("select count(*) from t"), "20102");
    std::mem::drop(copy);
    for (number, (to, then, rows)) in [
        (format!("before:xid:{xid}"), "pause", "20100"),
        (format!("xid:{xid}"), "pause", "20101"),
        ("name:here".to_owned(), "promote", "20101"),
        ("immediate".to_owned(), "promote", "20000"),
        ("name:here".to_owned(), "shutdown", ""),
    ]
    .into_iter()
    .enumerate()
    {
        let pgdata = p.scene.path().join(format!("copy{number}"));
        let ran = restore(&p, &to, &pgdata, &["--start", "--then", then, "--json", &sockets, &tcp]);
        let told: serde_json::Value = serde_json::from_str(ran.ok()).unwrap();
        let outcome = told["reached"]["outcome"].as_str().unwrap();
        assert_eq!(
            outcome,
            [("pause", "paused"), ("promote", "promoted"), ("shutdown", "shut_down")]
                .iter()
                .find(|(t, _)| *t == then)
                .unwrap()
                .1
        );
        if then == "shutdown" {
            assert!(!pgdata.join("postmaster.pid").exists());
        } else {
            let copy = Cluster::attach(&pgdata, p.cluster.installation());
            assert_eq!(copy.psql("select count(*) from t"), rows, "{to}");
        }
    }
}

#[test]
fn a_copy_without_its_label_or_signal_does_not_start() {
    let p = protected();
    for missing in ["backup_label", "recovery.signal"] {
        let pgdata = p.scene.path().join(missing);
        restore(&p, "latest", &pgdata, &[]).expect_code(0);
        fs::remove_file(pgdata.join(missing)).unwrap();
        let owner = p.cluster.owner();
        let sockets = format!("-kunix={}", p.scene.folder("s").display()).replace("unix=", "");
        let mut command = owner.command(p.cluster.installation().program("postgres"));
        let ran = run(command.arg("-D").arg(&pgdata).arg(sockets).args(["-c", "listen_addresses="]));
        assert_ne!(ran.code, Some(0), "{missing}: {ran}");
        assert!(ran.stderr.contains("checkpoint record"), "{missing}: {ran}");
    }
}

#[test]
fn what_was_killed_goes_on_with_the_same_command() {
    let p = Protected::new(any(), Place::Directory, |b| b);
    p.cluster.psql("create table t as select n, md5(n::text) as text from generate_series(1, 400000) as n");
    let _ = p.backup();
    p.archive();
    let pgdata = p.scene.path().join("copy");
    for _ in 0..3 {
        let mut killed = p.command(arguments("latest", &pgdata, &[])).spawn().unwrap();
        while !pgdata.join("base").exists() {
            sleep(Duration::from_millis(1));
        }
        sleep(Duration::from_millis(30));
        killed.kill().unwrap();
        killed.wait().unwrap();
        if mark(&pgdata).exists() {
            assert!(!pgdata.join("global/pg_control").exists() || pgdata.join("backup_manifest").exists());
        }
    }
    if mark(&pgdata).exists() {
        let other = restore(&p, "immediate", &pgdata, &[]);
        other.expect_code(4);
        assert!(other.stderr.contains("unfinished restore"), "{other}");
        let ran = restore(&p, "latest", &pgdata, &[]);
        assert!(ran.ok().contains("go on with the restore"), "{ran}");
    }
    verify(&p, &pgdata);
    assert!(!mark(&pgdata).exists());
}

#[test]
fn a_damaged_part_is_told_and_leaves_the_mark() {
    let p = protected();
    let system = p.cluster.psql("select system_identifier from pg_control_system()");
    let backups = p.repository.join(format!("main/{system}-1/backups"));
    let backup = fs::read_dir(backups).unwrap().flatten().next().unwrap().path();
    let part = backup.join("part-00001.tar.zst");
    let whole = fs::read(&part).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 0x40;
    let put = |bytes: &[u8]| {
        fs::remove_file(&part).unwrap();
        fs::write(&part, bytes).unwrap();
        p.cluster.owner().own(&part);
    };
    let pgdata = p.scene.path().join("copy");
    for bytes in [&damaged[..], &whole[..whole.len() / 2]] {
        put(bytes);
        restore(&p, "latest", &pgdata, &[]).expect_code(6);
        assert!(mark(&pgdata).exists() && !pgdata.join("global/pg_control").exists());
    }
    put(&whole);
    restore(&p, "latest", &pgdata, &[]).expect_code(0);
    verify(&p, &pgdata);
}

#[test]
fn nothing_that_is_there_is_overwritten_unasked() {
    let p = protected();
    let full = p.scene.folder("full");
    fs::write(full.join("precious"), "x").unwrap();
    let refused = restore(&p, "latest", &full, &[]);
    refused.expect_code(4);
    restore(&p, "latest", &full, &["--force"]).expect_code(4);
    restore(&p, "latest", &full, &["--delta"]).expect_code(4);
    assert!(full.join("precious").exists() && !mark(&full).exists());
    // A running server's directory is left alone, whatever is asked for.
    for flag in ["--delta", "--force"] {
        let ran = restore(&p, "latest", p.cluster.pgdata(), &[flag]);
        ran.expect_code(4);
        assert!(ran.stderr.contains("a server runs"), "{ran}");
    }
    assert_eq!(p.cluster.psql("select 1"), "1");
    // Nobody to ask, and nobody answered beforehand.
    let unasked = p.walden(["restore", "--to", "latest", "--pgdata", p.scene.path().join("x").to_str().unwrap()]);
    unasked.expect_code(2);
    assert!(!p.scene.path().join("x").exists());
    restore(&p, "name:nowhere", &p.scene.path().join("x"), &[]).expect_code(3);
}

#[test]
fn a_tablespace_is_restored_twice_on_one_host() {
    let p = Protected::new(any(), Place::Directory, |b| b);
    let original = p.scene.folder("space");
    p.cluster.psql(&format!("create tablespace s location '{}'", original.display()));
    p.cluster.psql("create table t tablespace s as select generate_series(1, 1000) as n");
    let _ = p.backup();
    p.archive();
    let refused = restore(&p, "latest", &p.scene.path().join("a"), &[]);
    refused.expect_code(4);
    assert!(refused.stderr.contains("--map"), "{refused}");
    let [sockets, tcp] = apart(&p);
    for name in ["a", "b"] {
        let (pgdata, space) = (p.scene.path().join(name), p.scene.path().join(format!("space-{name}")));
        let map = format!("{}={}", original.display(), space.display());
        restore(&p, "latest", &pgdata, &["--map", &map]).expect_code(0);
        verify(&p, &pgdata);
        let again = p.scene.path().join(format!("again-{name}"));
        let map = format!("{}={}", original.display(), p.scene.path().join(format!("space-again-{name}")).display());
        restore(&p, "latest", &again, &["--map", &map, "--start", &sockets, &tcp]).expect_code(0);
        let copy = Cluster::attach(&again, p.cluster.installation());
        assert_eq!(copy.psql("select count(*) from t"), "1000");
        let path = copy.psql("select pg_tablespace_location(oid) from pg_tablespace where spcname = 's'");
        assert_eq!(Path::new(&path), p.scene.path().join(format!("space-again-{name}")));
    }
    assert_eq!(p.cluster.psql("select count(*) from t"), "1000");
}

#[test]
fn a_copy_is_mended_and_its_newest_wal_is_saved() {
    let mut p = protected();
    let waldir = p.scene.path().join("wal");
    let pgdata = p.scene.path().join("copy");
    restore(&p, "latest", &pgdata, &["--waldir", waldir.to_str().unwrap()]).expect_code(0);
    verify(&p, &pgdata);
    assert_eq!(fs::read_link(pgdata.join("pg_wal")).unwrap(), waldir);
    fs::write(pgdata.join("base/stranger"), "x").unwrap();
    fs::write(pgdata.join("PG_VERSION"), "99\n").unwrap();
    let mended = restore(&p, "latest", &pgdata, &["--delta"]);
    assert!(mended.ok().contains("of them kept"), "{mended}");
    assert!(!pgdata.join("base/stranger").exists());
    verify(&p, &pgdata);

    // The cluster's own directory: what its pg_wal holds and the repository lacks is not lost.
    p.cluster.psql("insert into t values (1, 'newest')");
    p.cluster.kill9();
    let old = p.cluster.pgdata().to_owned();
    let ran = restore(&p, "latest", &old, &["--force"]);
    assert!(ran.ok().contains("WAL files of the old directory"), "{ran}");
    verify(&p, &old);
}

#[test]
fn an_adopted_copy_is_the_cluster_and_its_rows_can_be_recovered() {
    for_each_version(|installation| {
        let p = Protected::new(installation, Place::Directory, |b| b);
        fill(&p);
        let [sockets, tcp] = apart(&p);
        let pgdata = p.scene.path().join("copy");
        restore(&p, "latest", &pgdata, &["--start", "--then", "pause", &sockets, &tcp]).expect_code(0);
        let copy = Cluster::attach(&pgdata, installation);
        let adopt = || p.walden(["adopt", "--pgdata", text(&pgdata)]);
        let early = adopt();
        early.expect_code(4);
        assert!(early.stderr.contains("still in recovery"), "{early}");
        copy.psql("select pg_wal_replay_resume()");
        while copy.psql("select pg_is_in_recovery()") == "t" {
            sleep(Duration::from_millis(50));
        }
        copy.psql("insert into t values (50000, 'on the new timeline')");
        copy.psql("select pg_switch_wal()");
        let adopted = adopt();
        assert!(adopted.ok().contains("timeline 2") && adopted.stdout.contains("has arrived"), "{adopted}");
        let auto_conf = fs::read_to_string(pgdata.join("postgresql.auto.conf")).unwrap();
        assert!(!auto_conf.contains("recovery_target") && auto_conf.contains("walden-archive"), "{auto_conf}");
        adopt().expect_code(4);

        // What the copy wrote is in the archive: a restore along its timeline has it, one along the old has not.
        let again = p.scene.path().join("again");
        let sockets = format!("--set=unix_socket_directories={}", p.scene.folder("sockets2").display());
        for (timeline, rows) in [("2", "20101"), ("1", "20100")] {
            let more = ["--timeline", timeline, "--force", "--start", "--then", "pause", &sockets, &tcp];
            restore(&p, "latest", &again, &more).expect_code(0);
            assert_eq!(Cluster::attach(&again, installation).psql("select count(*) from t"), rows);
        }
    });
}

#[test]
fn two_copies_of_one_name_cannot_both_be_the_cluster() {
    let p = protected();
    let tcp = "--set=listen_addresses=";
    let copies = ["a", "b"].map(|name| {
        let sockets = format!("--set=unix_socket_directories={}", p.scene.folder(&format!("s{name}")).display());
        let pgdata = p.scene.path().join(name);
        restore(&p, "latest", &pgdata, &["--start", &sockets, tcp]).expect_code(0);
        let copy = Cluster::attach(&pgdata, p.cluster.installation());
        copy.psql(&format!("create table only_{name} as select 1; select pg_switch_wal()"));
        copy
    });
    let [first, second] = copies.each_ref().map(|copy| p.walden(["adopt", "--pgdata", text(copy.pgdata())]));
    first.expect_code(0);
    second.expect_code(4);
    assert!(second.stderr.contains("--new-incarnation"), "{second}");
}

#[test]
fn a_clone_archives_nothing_and_is_never_adopted() {
    let p = protected();
    let [sockets, tcp] = apart(&p);
    let pgdata = p.scene.path().join("clone");
    let made = restore(&p, "latest", &pgdata, &["--clone", "--start", &sockets, &tcp]);
    assert!(!made.ok().contains("walden adopt") && made.stdout.contains("an independent copy"), "{made}");
    let copy = Cluster::attach(&pgdata, p.cluster.installation());
    assert_eq!(copy.psql("show archive_mode"), "off");
    let refused = p.walden(["adopt", "--pgdata", text(&pgdata)]);
    refused.expect_code(4);
    assert!(refused.stderr.contains("--clone"), "{refused}");
}

#[test]
fn what_a_restore_took_is_what_the_next_is_estimated_by() {
    let p = protected();
    let estimate = || -> serde_json::Value {
        let plan: serde_json::Value =
            serde_json::from_str(p.walden(["--json", "plan", "--to", "latest"]).ok()).unwrap();
        plan["estimate"].clone()
    };
    assert_eq!(estimate()["basis"], "assumed");
    let [sockets, tcp] = apart(&p);
    let ran = restore(&p, "latest", &p.scene.path().join("first"), &["--start", &sockets, &tcp]);
    assert!(ran.ok().contains("estimated ") && ran.stdout.contains(", took "), "{ran}");

    let system = p.cluster.psql("select system_identifier from pg_control_system()");
    let notes = p.repository.join(format!("main/{system}-1/notes/restores"));
    let note: serde_json::Value = serde_json::from_slice(&fs::read(notes.join("1.json")).unwrap()).unwrap();
    let measured = estimate();
    assert!(measured["basis"].as_str().unwrap().starts_with("measured on "), "{measured}");
    // The same again takes as long again.
    for (phase, seconds) in [("files", "files_seconds"), ("wal", "wal_seconds")] {
        let (took, estimated) = (note[phase]["seconds"].as_f64().unwrap(), measured[seconds].as_f64().unwrap());
        assert!((took - estimated).abs() < 0.001, "{phase}: {note} {measured}");
    }

    // Who may not write is told nothing, and who finds damage in a note goes by what is assumed.
    fs::write(notes.join("2.json"), "{").unwrap();
    fs::remove_file(notes.join("1.json")).unwrap();
    assert_eq!(estimate()["basis"], "assumed");
    fs::remove_dir_all(&notes).unwrap();
    fs::write(&notes, "no folder").unwrap();
    restore(&p, "latest", &p.scene.path().join("second"), &[]).expect_code(0);
}
