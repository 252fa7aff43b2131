//! Archiving as PostgreSQL does it: `archive_command`, `restore_command`, and what must never be archived.

use std::{fs, os::unix::process::CommandExt, path::PathBuf};

use rustix::process::{Pid, Signal, kill_process_group};

use walden_testkit::{
    postgres::{any, for_each_version},
    protected::{Place, Protected},
    run::{Ran, run},
};

/// `walden-restore NAME DESTINATION` from the data directory.
fn restore(p: &Protected, name: &str, destination: &str, more: &[&str]) -> Ran {
    let mut command = p.scene.command("walden-restore");
    command.current_dir(p.cluster.pgdata()).arg("--config").arg(&p.config).args(more).args([name, destination]);
    run(&mut command)
}

/// `walden-archive PATH` from the data directory.
fn archive(p: &Protected, path: &str) -> Ran {
    let mut command = p.scene.command("walden-archive");
    command.current_dir(p.cluster.pgdata()).arg("--config").arg(&p.config).arg(path);
    run(&mut command)
}

fn object(p: &Protected, name: &str) -> PathBuf {
    let system = p.cluster.psql("select system_identifier from pg_control_system()");
    p.repository.join(format!("main/{system}-1/wal/{}/{}/{name}", &name[..8], &name[8..16]))
}

#[test]
fn a_segment_comes_back_as_it_went() {
    for_each_version(|installation| {
        let p = Protected::new(installation, Place::Directory, |b| b);
        p.cluster.psql("create table t as select generate_series(1, 100000) as n");
        let name = p.archive();
        let original = fs::read(p.cluster.pgdata().join("pg_wal").join(&name)).unwrap();
        restore(&p, &name, "pg_wal/RECOVERYXLOG", &[]).expect_code(0);
        let back = fs::read(p.cluster.pgdata().join("pg_wal/RECOVERYXLOG")).unwrap();
        assert!(original == back, "PostgreSQL {}: {name} came back changed", installation.major);
        // The public tool reads the object as well: the head is a frame that zstd passes over.
        let with_zstd =
            std::process::Command::new("zstd").arg("-dcq").stdin(fs::File::open(object(&p, &name)).unwrap()).output();
        if let Ok(output) = with_zstd {
            assert!(output.stdout == original, "zstd -d gives other bytes");
        }
    });
}

#[test]
fn the_same_again_is_a_success_and_other_content_is_refused() {
    let p = Protected::new(any(), Place::Directory, |b| b);
    p.cluster.psql("create table t as select generate_series(1, 1000) as n");
    let name = p.archive();
    let path = format!("pg_wal/{name}");
    archive(&p, &path).expect_code(0);
    // Another valid segment under that name: the same system's WAL after a rollback would look like this.
    let file = p.cluster.pgdata().join(&path);
    let mut bytes = fs::read(&file).unwrap();
    let before = fs::read(object(&p, &name)).unwrap();
    bytes[4000] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let refused = archive(&p, &path);
    refused.expect_code(4);
    assert!(refused.stderr.contains("other content") && refused.stderr.contains("BLAKE3"), "{refused}");
    assert_eq!(fs::read(object(&p, &name)).unwrap(), before, "what was archived must not change");
}

#[test]
fn what_is_no_segment_of_this_system_is_refused_before_a_byte_is_stored() {
    let p = Protected::new(any(), Place::Directory, |b| b);
    let other = Protected::new(any(), Place::Directory, |b| b);
    let name = other.archive();
    let pg_wal = p.cluster.pgdata().join("pg_wal");
    // A name far ahead, so that the server does not come to it while the test runs.
    let ahead = "0000000100000000000000F1";
    fs::write(pg_wal.join(ahead), vec![b'A'; 1000]).unwrap();
    archive(&p, &format!("pg_wal/{ahead}")).expect_code(4);
    fs::write(pg_wal.join(ahead), vec![0; 16 << 20]).unwrap();
    archive(&p, &format!("pg_wal/{ahead}")).expect_code(4);
    let foreign = fs::read(other.cluster.pgdata().join("pg_wal").join(&name)).unwrap();
    fs::write(pg_wal.join(ahead), &foreign).unwrap();
    archive(&p, &format!("pg_wal/{ahead}")).expect_code(4);
    // Under its own name it is whole, but of another system.
    fs::write(pg_wal.join(&name), &foreign).ok();
    let refused = archive(&p, &format!("pg_wal/{name}"));
    refused.expect_code(4);
    assert!(refused.stderr.contains("belongs to system"), "{refused}");
    assert!(!object(&p, ahead).exists());
}

#[test]
fn absent_is_answered_only_when_it_is_proven() {
    let p = Protected::new(any(), Place::Directory, |b| b);
    let first = p.archive();
    p.cluster.psql("create table t(n int)");
    let second = p.archive();
    let next = format!("{}{:08X}", &second[..16], u32::from_str_radix(&second[16..], 16).unwrap() + 1);
    restore(&p, &next, "pg_wal/RECOVERYXLOG", &[]).expect_code(1);
    restore(&p, "00000002.history", "pg_wal/RECOVERYHISTORY", &[]).expect_code(1);
    assert!(!p.cluster.pgdata().join("pg_wal/RECOVERYXLOG").exists());
    // The plan of this recovery names it.
    restore(&p, &next, "pg_wal/RECOVERYXLOG", &["--until", &next]).expect_code(200);
    restore(&p, &format!("00000002{}", &next[8..]), "pg_wal/RECOVERYXLOG", &["--until", &next]).expect_code(1);
    // A hole: a later segment is there.
    let hidden = object(&p, &first).with_extension("hidden");
    fs::rename(object(&p, &first), &hidden).unwrap();
    let hole = restore(&p, &first, "pg_wal/RECOVERYXLOG", &[]);
    hole.expect_code(200);
    assert!(hole.stderr.contains("hole"), "{hole}");
    fs::rename(&hidden, object(&p, &first)).unwrap();
    // A truncated object, a flipped bit, an empty one.
    let whole = fs::read(object(&p, &second)).unwrap();
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x10;
    for damaged in [&whole[..whole.len() / 2], &whole[..3], &[], &flipped] {
        fs::write(object(&p, &second), damaged).unwrap();
        restore(&p, &second, "pg_wal/RECOVERYXLOG", &[]).expect_code(200);
        assert!(!p.cluster.pgdata().join("pg_wal/RECOVERYXLOG").exists());
    }
    fs::write(object(&p, &second), &whole).unwrap();
    restore(&p, &second, "pg_wal/RECOVERYXLOG", &[]).expect_code(0);
    // No repository at all, and a wrong flag.
    fs::rename(&p.repository, p.repository.with_extension("away")).unwrap();
    restore(&p, &next, "pg_wal/RECOVERYXLOG", &[]).expect_code(200);
    archive(&p, &format!("pg_wal/{second}")).expect_code(2);
    restore(&p, &next, "pg_wal/RECOVERYXLOG", &["--bogus"]).expect_code(200);
}

#[test]
fn two_clusters_share_a_repository_and_nothing_else() {
    let p = Protected::new(any(), Place::Directory, |b| b);
    let q = Protected::new(any(), Place::Directory, |b| b);
    let url = format!("file://{}", p.repository.display());
    let mut init = q.command(["init"]);
    run(init.env("WALDEN_REPOSITORY_URL", &url)).expect_code(0);
    let (a, b) = (p.archive(), q.archive());
    let mut push = q.scene.command("walden-archive");
    push.current_dir(q.cluster.pgdata()).arg("--config").arg(&q.config).arg(format!("pg_wal/{b}"));
    run(push.env("WALDEN_REPOSITORY_URL", &url)).expect_code(0);
    restore(&p, &a, "pg_wal/RECOVERYXLOG", &[]).expect_code(0);
    let original = fs::read(p.cluster.pgdata().join("pg_wal").join(&a)).unwrap();
    assert!(original == fs::read(p.cluster.pgdata().join("pg_wal/RECOVERYXLOG")).unwrap());
}

#[test]
fn any_segment_size_is_archived() {
    for mb in [1, 64, 128] {
        let p = Protected::new(any(), Place::Directory, |b| b.wal_segment_size(mb));
        p.cluster.psql("create table t as select generate_series(1, 200000) as n");
        let name = p.archive();
        restore(&p, &name, "pg_wal/RECOVERYXLOG", &[]).expect_code(0);
        let original = fs::read(p.cluster.pgdata().join("pg_wal").join(&name)).unwrap();
        assert!(original == fs::read(p.cluster.pgdata().join("pg_wal/RECOVERYXLOG")).unwrap(), "{mb} MB");
    }
}

#[test]
fn kill_9_in_a_push_loses_nothing() {
    let p = Protected::new(any(), Place::Directory, |b| b.setting("wal_keep_size", "1GB"));
    p.cluster.psql("create table t as select generate_series(1, 1000000) as n");
    let _ = p.archive();
    let (repository, away) = (p.repository.clone(), p.repository.with_extension("away"));
    fs::rename(&repository, &away).unwrap();
    let mut init = p.command(["init"]);
    run(&mut init).expect_code(0);
    let mut names: Vec<_> = fs::read_dir(away.join("main")).unwrap().map(|e| e.unwrap().path()).collect();
    let folder = names.pop().unwrap().join("wal/00000001/00000000");
    let mut rng = fastrand::Rng::with_seed(3);
    for entry in fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.len() != 24 {
            continue;
        }
        let path = format!("pg_wal/{name}");
        for _ in 0..3 {
            let mut push = p.scene.command("walden-archive");
            push.current_dir(p.cluster.pgdata()).arg("--config").arg(&p.config).arg(&path);
            let mut push = push.process_group(0).spawn().unwrap();
            std::thread::sleep(std::time::Duration::from_millis(rng.u64(0..120)));
            // The small program and what it runs; one that has ended already is as good.
            let _ = kill_process_group(Pid::from_child(&push), Signal::KILL);
            push.wait().unwrap();
            // What is there under the name is whole, or it is not there.
            let there = restore(&p, &name, "pg_wal/RECOVERYXLOG", &[]);
            assert!(there.code == Some(0) || !object(&p, &name).exists(), "{there}");
        }
        archive(&p, &path).expect_code(0);
        restore(&p, &name, "pg_wal/RECOVERYXLOG", &[]).expect_code(0);
    }
}

#[test]
fn on_a_standby_doubt_is_asked_again_except_while_it_is_promoted() {
    let p = Protected::new(any(), Place::Directory, |b| b);
    let name = p.archive();
    fs::write(object(&p, &name), b"damaged").unwrap();
    let (standby, promote) = (p.cluster.pgdata().join("standby.signal"), p.cluster.pgdata().join("promote"));
    // The running server looks at neither of these files by itself.
    restore(&p, &name, "pg_wal/RECOVERYXLOG", &[]).expect_code(200);
    fs::write(&standby, "").unwrap();
    restore(&p, &name, "pg_wal/RECOVERYXLOG", &[]).expect_code(1);
    fs::write(&promote, "").unwrap();
    restore(&p, &name, "pg_wal/RECOVERYXLOG", &[]).expect_code(200);
    let mut despite = p.scene.command("walden-restore");
    despite.current_dir(p.cluster.pgdata()).arg("--config").arg(&p.config).args([&name, "pg_wal/RECOVERYXLOG"]);
    run(despite.env("WALDEN_RESTORE_PROMOTE_DESPITE_DOUBT", "true")).expect_code(1);
    fs::remove_file(standby).unwrap();
    fs::remove_file(promote).unwrap();
}
