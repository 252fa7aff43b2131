//! Backups that another attempt, a standby or a lost folder stand behind.

use std::{
    fs,
    process::{Command, Stdio},
};

use walden_testkit::{postgres::any, protected::Place};

use crate::scene::{Backup, Keyless, SECRET, until};

const LOCAL: &[&str] = &["--json", "backup"];
const REMOTE: &[&str] = &["--json", "backup", "--remote"];

/// Begins a backup and kills it when it has stored all parts: it waits for the end of its WAL, which is not archived.
/// Gives the id that it would have had.
fn kill(k: &Keyless, way: &[&str]) -> String {
    let p = &k.p;
    let folders = || fs::read_dir(backups(k)).unwrap().flatten().map(|entry| entry.path()).collect::<Vec<_>>();
    let before = folders();
    p.cluster.psql("alter system set archive_command = 'false'");
    p.cluster.reload();
    let mut command = p.command(way);
    let mut running = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut attempt = None;
    until("the server waits for the archive", || {
        assert!(running.try_wait().unwrap().is_none(), "it ended before it was killed");
        attempt = folders().into_iter().find(|folder| !before.contains(folder));
        let has_part = |folder: &std::path::PathBuf| folder.join("part-00001.tar.zst.age").exists();
        attempt.as_ref().is_some_and(has_part)
            && p.cluster.psql("select failed_count > 0 and last_failed_time > stats_reset from pg_stat_archiver") == "t"
    });
    running.kill().unwrap();
    running.wait().unwrap();
    let attempt = attempt.unwrap();
    assert!(!attempt.join("backup-1.json").exists());
    p.cluster.psql("alter system reset archive_command");
    p.cluster.reload();
    attempt.file_name().unwrap().to_str().unwrap().to_owned()
}

fn backups(k: &Keyless) -> std::path::PathBuf {
    let system = fs::read_dir(k.p.repository.join("main")).unwrap().next().unwrap().unwrap();
    system.path().join("backups")
}

/// Changes every row, so that a backup has much to store.
fn churn(k: &Keyless) {
    k.p.cluster.psql(&format!("update {SECRET} set text = md5(text) || repeat('y', 200); vacuum {SECRET}; checkpoint"));
}

fn take(k: &Keyless, way: &[&str]) -> Backup {
    k.backup_by(k.p.command(way))
}

#[test]
fn what_a_killed_attempt_has_stored_is_used_as_long_as_this_host_knows_what_it_was() {
    let k = Keyless::new(any(), Place::Directory);
    k.write(1, 20_000);
    k.p.archive();
    k.backup("first");
    for way in [LOCAL, REMOTE] {
        churn(&k);
        let attempt = kill(&k, way);
        let taken = take(&k, way);
        let references = fs::read_to_string(backups(&k).join(&taken.id).join("backup-1.json")).unwrap();
        assert!(references.contains(&attempt), "{attempt} is not built on: {}", taken.said);
        assert!(taken.stored < 500_000, "{} bytes", taken.stored);
        assert!(!taken.said.contains("stored again"), "{}", taken.said);
    }
    // Whoever does not know says so, and stores everything.
    churn(&k);
    let attempt = kill(&k, LOCAL);
    fs::remove_dir_all(k.p.scene.path().join("state/comparison")).unwrap();
    let taken = take(&k, LOCAL);
    assert!(taken.said.contains(&format!("what attempt {attempt} has stored is stored again")), "{}", taken.said);
    assert_eq!(taken.said.matches("everything is stored again").count(), 1, "{}", taken.said);
    k.p.archive();
    k.owner(&["verify", "--deep"]).expect_code(0);
    assert_eq!(k.rows_by(&k.identity, "copy"), "20000");
}

#[test]
fn a_standby_is_backed_up_either_way_and_compared_with_what_its_host_has_kept() {
    let k = Keyless::new(any(), Place::Directory);
    let p = &k.p;
    k.write(1, 20_000);
    p.archive();
    let standby = p.cluster.standby(p.scene.path().join("standby"));
    let on_standby = |way: &[&str]| -> Command {
        let mut command = p.command(way);
        command.env("WALDEN_CLUSTER_MAIN_PGDATA", standby.pgdata());
        command.env("WALDEN_CLUSTER_MAIN_CONNECTION", standby.conninfo());
        command.env("WALDEN_CLUSTER_MAIN_PRIMARY", p.cluster.conninfo());
        command.env("WALDEN_ARCHIVE_STATE_DIR", p.scene.path().join("state-of-the-standby"));
        command
    };
    let of_primary = k.backup("of the primary");
    let first = k.backup_by(on_standby(LOCAL));
    assert!(first.said.contains("everything is stored again"), "{}", first.said);
    assert!(first.stored * 2 > of_primary.stored, "{} after {}", first.stored, of_primary.stored);
    for way in [LOCAL, REMOTE] {
        k.write(0, 0);
        p.cluster.wait_replayed_by(&standby);
        let next = k.backup_by(on_standby(way));
        assert!(next.stored * 5 < first.stored, "{} after {}: {}", next.stored, first.stored, next.said);
    }
    p.archive();
    let listed = p.walden(["list"]);
    assert_eq!(listed.ok().matches("(standby)").count(), 3, "{listed}");
    k.owner(&["verify", "--deep"]).expect_code(0);
    assert_eq!(k.rows_by(&k.identity, "copy"), "20002");
}
