//! What each backup is held against: the truth, PostgreSQL's own checks, and its own copy of a cluster that rests.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use walden_testkit::{
    postgres::{Cluster, Stop},
    run::run,
};

use crate::{History, Taken, removed};

impl History<'_> {
    /// Restores a backup, starts it, and holds it against the truth.
    pub fn check(&self, number: usize, taken: &Taken) {
        let what = format!("{}: {}", self.told, taken.how);
        let (pgdata, space) = (self.p.scene.path().join("copy"), self.p.scene.path().join("copy-space"));
        let sockets = format!("--set=unix_socket_directories={}", self.p.scene.folder("copy-sockets").display());
        let backup = format!("--backup={}", taken.id);
        let start = ["--start", "--then=promote", "--set=listen_addresses=", &sockets, &backup];
        self.restore(&pgdata, &space, &start, &what);
        let mut copy = Cluster::attach(&pgdata, self.installation);
        taken.truth.check(&copy, &what);
        let ran = run(copy.pg("pg_amcheck").args(["--all", "--install-missing", "--heapallindexed", "--parent-check"]));
        assert!(ran.code == Some(0), "{what}: {ran}");
        copy.stop(Stop::Immediate);
        removed(&pgdata);
        removed(&space);
        if number.is_multiple_of(3) {
            self.export(&taken.id, &what);
        }
        self.say(&format!("{} holds", taken.id));
    }

    fn restore(&self, pgdata: &Path, space: &Path, more: &[&str], what: &str) {
        let mut restore = self.p.command(["-q", "restore", "--to", "immediate", "--yes", "--pgdata"]);
        restore.arg(pgdata).arg(format!("--map={}={}", self.space.display(), space.display()));
        let ran = run(restore.args(more));
        assert!(ran.code == Some(0), "{what}: {ran}");
    }

    /// What is exported is what pg_verifybackup takes, WAL and all.
    fn export(&self, id: &str, what: &str) {
        let scene = &self.p.scene;
        let [to, plain, space] = ["exported", "plain", "plain-space"].map(|name| scene.path().join(name));
        let ran = self.p.walden(["-q", "export", "--backup", id, "--to", to.to_str().unwrap()]);
        assert!(ran.code == Some(0), "{what}: {ran}");
        let untar = |name: &str, into: &Path| {
            scene.owner().make_folder(into);
            run(scene.owner().command("tar").arg("-xf").arg(to.join(name)).arg("-C").arg(into)).expect_code(0);
        };
        untar("base.tar", &plain);
        for entry in fs::read_dir(&to).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let Some(oid) = name.strip_suffix(".tar").filter(|oid| oid.parse::<u32>().is_ok()) else { continue };
            untar(&name, &space);
            let link = plain.join("pg_tblspc").join(oid);
            let _ = fs::remove_file(&link);
            symlink(&space, link).unwrap();
        }
        untar("pg_wal.tar", &plain.join("pg_wal"));
        fs::copy(to.join("backup_manifest"), plain.join("backup_manifest")).unwrap();
        scene.owner().own(&plain.join("backup_manifest"));
        fs::set_permissions(&plain, fs::Permissions::from_mode(0o700)).unwrap();
        let verify = self.installation.program("pg_verifybackup");
        let ran = run(scene.owner().command(verify).arg(&plain));
        assert!(ran.code == Some(0), "{what}: {ran}");
        [to, plain, space].iter().for_each(|path| _ = removed(path));
    }

    /// Of a cluster that rests, what is restored of a local backup is what pg_basebackup copies, byte for byte.
    pub fn is_frozen_as_postgresql_copies_it(&mut self) {
        self.p.cluster.psql("alter system set autovacuum = off; select pg_reload_conf()");
        for database in self.databases.iter().map(String::as_str).chain(["postgres"]) {
            self.p.cluster.psql_db(database, "vacuum freeze");
        }
        self.backup_at_rest();
        self.p.cluster.psql("checkpoint");
        let [theirs, their_space, ours, our_space] =
            ["theirs", "theirs-space", "ours", "ours-space"].map(|name| self.p.scene.path().join(name));
        let mut program = self.p.cluster.pg("pg_basebackup");
        program.args(["-c", "fast", "--no-sync", "-T"]);
        program.arg(format!("{}={}", self.space.display(), their_space.display()));
        run(program.arg("-D").arg(&theirs)).expect_code(0);
        let id = self.backup_at_rest();
        self.restore(&ours, &our_space, &[&format!("--backup={id}")], &self.told);
        let (their, our) = (files(&theirs), files(&ours));
        let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<BTreeSet<_>>();
        assert_eq!(names(&our), names(&their), "{}: {id}", self.told);
        assert!(their.len() > 500, "{}", their.len());
        for (path, content) in &their {
            assert!(our[path] == *content, "{}: {} differs in backup {id}", self.told, path.display());
        }
        [theirs, their_space, ours, our_space].iter().for_each(|path| _ = removed(path));
    }

    fn backup_at_rest(&mut self) -> String {
        let truth = crate::Truth::of(&self.p.cluster);
        let ran = self.p.walden(["-q", "backup"]);
        assert!(ran.code == Some(0), "{}: {ran}", self.told);
        let id = ran.stdout.trim().to_owned();
        self.taken.push(Taken { how: format!("backup {id} at rest"), id: id.clone(), truth });
        id
    }
}

/// What a restore must not change.
fn files(pgdata: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let folders =
        ["base", "global", "pg_tblspc", "pg_xact", "pg_multixact", "pg_commit_ts", "pg_logical", "pg_twophase"];
    let mut folders: Vec<PathBuf> = folders.map(PathBuf::from).into();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(pgdata.join(&folder)).unwrap() {
            let path = folder.join(entry.unwrap().file_name());
            // Links of tablespaces are followed.
            if fs::metadata(pgdata.join(&path)).unwrap().is_dir() {
                folders.push(path);
            } else if path != Path::new("global/pg_control") {
                let content = fs::read(pgdata.join(&path)).unwrap();
                found.insert(path, content);
            }
        }
    }
    found
}
