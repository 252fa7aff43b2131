//! What happens to an archive: suspension, adoption, two writers. None of it needs an identity.

use std::{fs, path::Path};

use walden_testkit::{
    postgres::{Cluster, Stop, any},
    protected::Place,
    run::{Ran, run},
};

use crate::scene::{Keyless, SECRET, bytes_below, until};

#[test]
fn a_suspension_ends_with_a_backup_and_the_gap_is_told() {
    let k = Keyless::with(any(), Place::Directory, "", |b| {
        b.wal_segment_size(1).setting("min_wal_size", "2MB").setting("max_wal_size", "4MB")
    });
    let p = &k.p;
    k.write(1, 1000);
    p.archive();
    k.backup("before");
    p.walden(["wal", "suspend", "--yes", "--reason", "the disk is full"]).expect_code(0);
    k.write(1001, 1100);
    let first = p.cluster.switch_wal();
    let inside = p.cluster.psql("select pg_current_wal_lsn()");
    until("the segment is gone", || {
        k.write(0, 0);
        p.cluster.wait_archived(&p.cluster.switch_wal());
        p.cluster.psql("checkpoint");
        !p.cluster.pgdata().join("pg_wal").join(&first).exists()
    });
    let resumed = k.json(&["wal", "resume"]);
    assert_eq!(resumed["gaps"][0]["missing"][0]["first"], first.as_str(), "{resumed:#}");
    assert!(resumed["backup"]["id"].is_string(), "{resumed:#}");
    k.write(1101, 1200);
    p.archive();
    for told in [p.walden(["list"]), k.owner(&["list"])] {
        assert!(told.ok().contains("the disk is full"), "{told}");
    }
    let refused = k.owner(&["plan", "--to", &inside]);
    assert!(refused.expect_code(3).stderr.contains("the disk is full"), "{refused}");
    assert_eq!(k.rows_by(&k.identity, "after"), p.cluster.psql(&format!("select count(*) from {SECRET}")));
}

#[test]
fn a_copy_that_another_host_has_restored_is_adopted_and_backed_up() {
    let mut k = Keyless::with(any(), Place::Directory, "", |b| b);
    k.write(1, 20_000);
    k.p.archive();
    let first = k.backup("before");
    k.write(20_001, 20_100);
    k.p.archive();
    let copy = k.copy_by(&k.identity, "copy", &["--then=promote"]);
    copy.wait_for("select pg_is_in_recovery()", "f");
    let (old, conninfo) = (k.p.cluster.pgdata().display().to_string(), k.p.cluster.conninfo());
    k.p.cluster.stop(Stop::Fast);
    let text = fs::read_to_string(&k.p.config).unwrap();
    let text = text.replace(&conninfo, &copy.conninfo()).replace(&old, &copy.pgdata().display().to_string());
    k.p.scene.write("walden.toml", text);
    let adopted = k.json(&["adopt", "--pgdata", copy.pgdata().to_str().unwrap()]);
    assert!(adopted["adopted"]["proof"].is_string() && adopted["adopted"]["timeline"] == 2, "{adopted:#}");
    // What this host has kept of the backup before is compared with, though all files are new.
    assert!(adopted["backup"]["stored"].as_u64().unwrap() * 5 < first.stored, "{adopted:#} after {}", first.stored);
    k.p.cluster = copy;
    k.write(20_101, 20_200);
    k.p.archive();
    let after = k.backup("after");
    assert!(!after.said.contains("stored again"), "{}", after.said);
    assert_eq!(k.rows_by(&k.identity, "again"), "20200");
}

/// `walden-archive` as that server starts it, on a host that remembers what lies in `state`.
fn push(k: &Keyless, server: &Cluster, file: &str, state: &str) -> Ran {
    let mut command = k.p.small_program("walden-archive");
    command.env("WALDEN_ARCHIVE_STATE_DIR", k.p.scene.path().join(state));
    run(command.current_dir(server.pgdata()).arg(format!("pg_wal/{file}")))
}

fn promote(standby: &Cluster, n: u32) -> String {
    standby.psql("select pg_promote()");
    standby.wait_for("select pg_is_in_recovery()", "f");
    standby.psql(&format!("insert into {SECRET} values ({n}, 'promoted')"));
    standby.switch_wal()
}

fn stored(folder: &Path, name: &str) -> Vec<u8> {
    let of = |path: &Path| path.file_name().is_some_and(|file| file == name);
    bytes_below(folder).into_iter().find(|(path, _)| of(path)).unwrap().1
}

#[test]
fn of_two_writers_the_second_is_refused_though_nobody_there_can_read_what_the_first_stored() {
    let k = Keyless::with(any(), Place::Directory, "", |b| b.wal_segment_size(1));
    let p = &k.p;
    k.write(1, 100);
    p.archive();
    k.backup("both");
    let first = p.cluster.standby(p.scene.path().join("first"));
    let second = p.cluster.standby(p.scene.path().join("second"));
    for standby in [&first, &second] {
        p.cluster.wait_replayed_by(standby);
    }
    let won = promote(&first, 1001);
    first.wait_archived(&won);
    k.write(101, 110);
    p.cluster.wait_replayed_by(&second);
    assert_eq!(promote(&second, 1002), won);
    second.wait_for("select failed_count > 0 from pg_stat_archiver", "t");
    let files = ["00000002.history", &won];
    let before = files.map(|file| stored(&p.repository, file));
    for file in files {
        for state in ["state", "state-of-the-second"] {
            let refused = push(&k, &second, file, state);
            let said = &refused.expect_code(4).stderr;
            assert!(said.contains("two servers write the same WAL") && said.contains("BLAKE3"), "{refused}");
        }
        // The same again, by a host that remembers and by one that has lost what it remembered.
        for state in ["state", "lost"] {
            assert!(push(&k, &first, file, state).expect_code(0).stderr.is_empty());
        }
    }
    assert!(before == files.map(|file| stored(&p.repository, file)), "what was archived must not change");
    let copy = k.copy_by(&k.identity, "chosen", &["--timeline=2", "--clone", "--then=promote"]);
    assert_eq!(copy.psql(&format!("select max(n) from {SECRET}")), "1001");
}
