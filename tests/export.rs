//! The ways out: a backup that is exported is one of PostgreSQL's own, whose tools verify and extract it and whose server
//! starts on it; and a backup that refers to no other is restored without Walden, as docs/FORMAT.md tells.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

use std::{fs, path::Path, process::Command};

use walden_testkit::{
    postgres::{Cluster, for_each_version},
    protected::{Place, Protected},
    run::run,
};

fn untar(p: &Protected, tar: &Path, into: &Path) {
    p.scene.owner().make_folder(into);
    let mut command = p.scene.owner().command("tar");
    run(command.arg("-xf").arg(tar).arg("-C").arg(into)).expect_code(0);
}

#[test]
fn postgresqls_own_tools_take_it_from_there() {
    for_each_version(|installation| {
        let p = Protected::new(installation, Place::Directory, |b| b.setting("autovacuum", "off"));
        let space = p.scene.folder("space");
        p.cluster.psql(&format!("create tablespace apart location '{}'", space.display()));
        p.cluster.psql("create table t as select n, repeat('x', 100) as text from generate_series(1, 30000) as n");
        p.cluster.psql("create table s tablespace apart as select generate_series(1, 30000) as n");
        let _ = p.backup();
        p.cluster.psql("update t set text = 'changed' where n % 3000 = 7");
        p.cluster.psql("update s set n = n + 1 where n % 3000 = 7");
        let id = p.backup();
        let sums = ["t", "s"].map(|table| format!("select md5(string_agg(x::text, ',' order by n)) from {table} x"));
        let expected = sums.each_ref().map(|sum| p.cluster.psql(sum));

        let to = p.scene.path().join("exported");
        let arguments = ["export", "--backup", &id, "--to", to.to_str().unwrap()];
        let ran = p.walden(arguments);
        assert!(ran.ok().contains("base.tar") && ran.stdout.contains("pg_wal.tar"), "{ran}");
        p.walden(arguments).expect_code(4);
        p.walden(["export", "--backup", "20200101T000000Z", "--to", "/nowhere/x"]).expect_code(1);
        let oid = p.cluster.psql("select oid from pg_tablespace where spcname = 'apart'");
        let names: std::collections::BTreeSet<String> =
            fs::read_dir(&to).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        let own = ["backup_manifest".to_owned(), "base.tar".into(), "pg_wal.tar".into(), format!("{oid}.tar")];
        assert_eq!(names, own.into_iter().collect());
        if installation.major >= 18 {
            // Of tar sets from 18 on; it cannot read the WAL in them.
            let verify = p.cluster.installation().program("pg_verifybackup");
            run(p.cluster.owner().command(verify).arg("-n").arg(&to)).expect_code(0);
        }

        let (pgdata, moved) = (p.scene.path().join("by-hand"), p.scene.path().join("moved"));
        untar(&p, &to.join("base.tar"), &pgdata);
        untar(&p, &to.join(format!("{oid}.tar")), &moved);
        let link = pgdata.join("pg_tblspc").join(&oid);
        assert_eq!(fs::read_link(&link).unwrap(), space);
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(&moved, &link).unwrap();
        let map = pgdata.join("tablespace_map");
        let text = fs::read_to_string(&map).unwrap();
        let manifest = to.join("backup_manifest");
        untar(&p, &to.join("pg_wal.tar"), &pgdata.join("pg_wal"));
        run(Command::new("cp").arg(&manifest).arg(&pgdata)).expect_code(0);
        p.scene.owner().own(&pgdata.join("backup_manifest"));
        let verify = p.cluster.installation().program("pg_verifybackup");
        run(p.cluster.owner().command(verify).arg(&pgdata)).expect_code(0);
        fs::write(&map, text.replace(space.to_str().unwrap(), moved.to_str().unwrap())).unwrap();
        let auto_conf = pgdata.join("postgresql.auto.conf");
        let settings = fs::read_to_string(&auto_conf).unwrap();
        fs::write(auto_conf, format!("{settings}archive_mode = off\n")).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(&pgdata, mode).unwrap();
        let mut copy = Cluster::adopt(&pgdata, installation);
        copy.start();
        assert_eq!(sums.each_ref().map(|sum| copy.psql(sum)), expected);
    });
}

/// The commands of docs/FORMAT.md; `S` is the system's folder, `ID` the backup, `DIR` where it goes.
const BY_HAND: &str = r#"set -e
for p in $S/backups/$ID/part-*.tar.zst; do zstd -dcq < $p | tar x -C $DIR; done
zstd -dcq < $S/backups/$ID/manifest-1.json.zst | grep -o '"directories":\[[^]]*' | grep -o '"path":"[^"]*"' | cut -d '"' -f 4 |
    (cd $DIR && xargs mkdir -p)
chmod -R go= $DIR
cat >> $DIR/postgresql.auto.conf <<END
restore_command = 'zstd -dcq < $S/wal/\$(echo %f | cut -c 1-8)/\$(echo %f | cut -c 9-16)/%f > %p'
archive_mode = off
END
touch $DIR/recovery.signal
"#;

#[test]
fn a_first_backup_is_restored_by_zstd_and_tar_alone() {
    for program in ["zstd", "tar", "xargs"] {
        if Command::new(program).arg("--version").output().is_err() {
            eprintln!("{program} is not installed: the restore by hand is not tried");
            return;
        }
    }
    let format = include_str!("../docs/FORMAT.md");
    for line in BY_HAND.lines().filter(|line| line.contains("zstd")) {
        assert!(format.contains(line.trim()), "docs/FORMAT.md does not say {line}");
    }
    for_each_version(|installation| {
        let p = Protected::new(installation, Place::Directory, |b| b.setting("autovacuum", "off"));
        p.cluster.psql("create table t as select n, md5(n::text) as text from generate_series(1, 50000) as n");
        let id = p.backup();
        p.cluster.psql("update t set text = 'after the backup' where n % 100 = 7");
        p.archive();
        let sum = "select md5(string_agg(t::text, ',' order by n)) from t";
        let expected = p.cluster.psql(sum);

        let pgdata = p.scene.folder("by-hand");
        let system = p.cluster.psql("select system_identifier from pg_control_system()");
        let folder = p.repository.join(format!("main/{system}-1"));
        let mut shell = p.scene.owner().command("sh");
        shell.args(["-c", BY_HAND]).env("S", &folder).env("ID", &id).env("DIR", &pgdata);
        run(&mut shell).expect_code(0);
        let mut copy = Cluster::adopt(&pgdata, installation);
        copy.start();
        copy.wait_for("select pg_is_in_recovery()", "f");
        assert_eq!(copy.psql(sum), expected);
    });
}
