//! The repository's machine loses power, and what was not synced is gone: whatever was acknowledged is there all the same.
//! Nothing but a disk that forgets can tell; a program that is killed leaves everything to the kernel.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use walden_testkit::{
    disk::Disk,
    postgres::any,
    protected::{Place, Protected},
    run::run,
    scene::Scene,
};

/// A cluster that archives into a repository on such a disk; `None` where there can be no such disk.
fn protected() -> Option<(Protected, Disk)> {
    let mut p = Protected::new(any(), Place::Directory, |b| b.setting("wal_keep_size", "1GB"));
    let folder = p.scene.folder("disk");
    let disk = Disk::mount(&folder)?;
    p.cluster.owner().own(&folder);
    p.move_to(&folder);
    p.cluster.psql("create table t as select n, repeat('x', 500) as text from generate_series(1, 20000) as n");
    Some((p, disk))
}

/// Goes on with what is left of the disk after its power is lost now.
fn lose_power(p: &mut Protected, disk: &Disk) -> Disk {
    let folder = p.scene.path().join("after");
    let after = disk.after_power_loss(&folder);
    p.repository = folder.join("repository");
    let text = fs::read_to_string(&p.config).unwrap();
    p.scene.write("walden.toml", text.replace("/disk/", "/after/"));
    after
}

/// The object of a segment.
fn object(repository: &Path, name: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(repository).ok()?.flatten();
    let mut found = entries.filter_map(|entry| match entry.file_type().ok()?.is_dir() {
        true => object(&entry.path(), name),
        false => (entry.file_name() == name).then(|| entry.path()),
    });
    found.next()
}

#[test]
fn the_disk_forgets_what_was_not_synced() {
    let scene = Scene::new();
    let folder = scene.path().join("disk");
    let Some(disk) = Disk::mount(&folder) else { return };
    let synced = fs::File::create(folder.join("synced")).unwrap();
    fs::write(folder.join("synced"), "content").unwrap();
    synced.sync_all().unwrap();
    fs::write(folder.join("written"), "content").unwrap();
    let after = scene.path().join("after");
    let _after = disk.after_power_loss(&after);
    assert_eq!(fs::read_to_string(after.join("synced")).unwrap(), "content");
    let written = fs::read_to_string(after.join("written")).unwrap_or_default();
    assert_eq!(written, "");
}

#[test]
fn a_segment_that_postgresql_may_remove_is_in_the_repository() {
    let Some((mut p, disk)) = protected() else { return };
    let mut archived = Vec::new();
    for round in 0..4 {
        p.cluster.psql(&format!("update t set text = repeat('{round}', 500) where n % 4 = {round}"));
        archived.push(p.archive());
    }
    let _after = lose_power(&mut p, &disk);
    for name in archived {
        let object = object(&p.repository, &name).unwrap_or_else(|| panic!("{name} is gone"));
        let content = zstd::stream::decode_all(fs::File::open(object).unwrap()).unwrap();
        assert!(content == fs::read(p.cluster.pgdata().join("pg_wal").join(&name)).unwrap(), "{name} is another");
    }
}

#[test]
fn a_backup_that_was_reported_restores() {
    let Some((mut p, disk)) = protected() else { return };
    let first = p.backup();
    p.cluster.psql("update t set text = 'changed' where n % 100 = 0");
    let second = p.backup();
    let _after = lose_power(&mut p, &disk);
    for id in [first, second] {
        let pgdata = p.scene.path().join(&id);
        let mut restore = p.command(["-q", "restore", "--to=immediate", "--yes", "--backup", &id]);
        run(restore.arg("--pgdata").arg(&pgdata)).expect_code(0);
        let verify = p.cluster.installation().program("pg_verifybackup");
        run(p.cluster.owner().command(verify).arg("-n").arg(&pgdata)).expect_code(0);
    }
}

#[test]
fn a_restore_that_was_reported_is_whole() {
    let Some((mut p, disk)) = protected() else { return };
    let _ = p.backup();
    let pgdata = p.scene.path().join("disk/copy");
    p.walden(["-q", "restore", "--to=immediate", "--yes", "--pgdata", pgdata.to_str().unwrap()]).expect_code(0);
    let _after = lose_power(&mut p, &disk);
    let verify = p.cluster.installation().program("pg_verifybackup");
    run(p.cluster.owner().command(verify).arg("-n").arg(p.scene.path().join("after/copy"))).expect_code(0);
}
