//! What goes wrong when PostgreSQL is recovered by hand, each time shown on a real server first: data that is missing
//! without a word, or an error at the end of an hour's replay. Then what Walden says before it writes a byte.

#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

use std::{fs, path::PathBuf};

use walden_testkit::{
    by_hand::ByHand,
    postgres::{Cluster, Stop, any, for_each_version},
    protected::{Place, Protected},
    run::Ran,
};

/// A cluster with an empty table `t`.
fn protected() -> Protected {
    let p = Protected::new(any(), Place::Directory, |b| b);
    p.cluster.psql("create table t (n int)");
    p
}

/// Commits a row; gives the transaction, and a moment after it.
fn commit(cluster: &Cluster, n: u32) -> (String, String) {
    cluster.psql(&format!("insert into t values ({n})"));
    (cluster.psql(&format!("select xmin from t where n = {n}")), now(cluster))
}

fn now(cluster: &Cluster) -> String {
    cluster.psql("select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || ' UTC'")
}

fn rows(cluster: &Cluster) -> String {
    cluster.psql("select coalesce(string_agg(n::text, ',' order by n), 'none') from t")
}

/// Starts a copy that is to come out of recovery, and gives its rows.
fn promoted(copy: &mut Cluster) -> String {
    copy.start();
    copy.wait_for("select pg_is_in_recovery()", "f");
    rows(copy)
}

/// Starts a copy that is to wait at its target, and gives its rows.
fn paused(copy: &mut Cluster) -> String {
    copy.start();
    copy.wait_for("select pg_get_wal_replay_pause_state()", "paused");
    rows(copy)
}

/// Both `plan` and `restore` refuse this, say these words, and nothing is there afterwards.
#[track_caller]
fn refused(p: &Protected, code: i32, wish: &[&str], said: &[&str]) {
    let pgdata = p.scene.path().join("refused");
    let restore = [&["restore", "--yes", "--start", "--pgdata", pgdata.to_str().unwrap()], wish].concat();
    for arguments in [[&["plan"], wish].concat(), restore] {
        let ran = p.walden(&arguments);
        ran.expect_code(code);
        for words in said {
            assert!(ran.stderr.contains(words), "\"{words}\" is not said: {ran}");
        }
    }
    assert!(!pgdata.exists() && !p.scene.path().join(".refused.walden-restore.json").exists());
}

fn plan(p: &Protected, wish: &[&str]) -> serde_json::Value {
    serde_json::from_str(p.walden([&["--json", "plan"], wish].concat()).ok()).unwrap()
}

fn try_restore(p: &Protected, name: &str, wish: &[&str]) -> (PathBuf, Ran) {
    let pgdata = p.scene.path().join(name);
    let ran = p.walden([&["restore", "--yes", "--pgdata", pgdata.to_str().unwrap()], wish].concat());
    (pgdata, ran)
}

/// A copy made by Walden, not started yet.
fn restore(p: &Protected, name: &str, wish: &[&str]) -> Cluster {
    let (pgdata, ran) = try_restore(p, name, wish);
    ran.expect_code(0);
    Cluster::adopt(pgdata, p.cluster.installation())
}

/// A copy made and started by Walden, which holds what was reached against the plan.
fn recovered(p: &Protected, name: &str, wish: &[&str]) -> Cluster {
    let sockets = format!("--set=unix_socket_directories={}", p.scene.folder(&format!("s-{name}")).display());
    let (pgdata, ran) = try_restore(p, name, &[wish, &["--start", &sockets]].concat());
    ran.expect_code(0);
    Cluster::attach(pgdata, p.cluster.installation())
}

/// The object of a segment.
fn object(p: &Protected, name: &str) -> PathBuf {
    let system = p.cluster.psql("select system_identifier from pg_control_system()");
    p.repository.join(format!("main/{system}-1/wal/{}/{}/{name}", &name[..8], &name[8..16]))
}

/// A segment that is missing, or a restore_command that fails, is the end of the archive to PostgreSQL: it opens the
/// database without the rows that come after, and calls that a success.
#[test]
fn a_missing_segment_ends_recovery_in_silence() {
    let p = protected();
    let hand = ByHand::beside(&p);
    let base = hand.backup(&p.cluster, "base");
    let _ = p.backup();
    commit(&p.cluster, 1);
    let _ = p.archive();
    commit(&p.cluster, 2);
    let wished = now(&p.cluster);
    let (third, _) = commit(&p.cluster, 3);
    let lost = p.archive();
    commit(&p.cluster, 4);
    let _ = p.archive();

    // Credentials that have run out, say. PostgreSQL takes any exit code up to 125 for "no such file".
    let expired = format!("if [ %f = {lost} ]; then echo 403 Forbidden >&2; exit 1; fi; {}", hand.copying());
    assert_eq!(promoted(&mut hand.copy(&base, "expired", &[("restore_command", &expired)])), "1");
    // Walden's restore_command fails so that PostgreSQL stops, and goes on once the repository is back.
    let mut copy = restore(&p, "doubt", &["--to", "latest"]);
    let away = p.scene.path().join("away");
    fs::rename(&p.repository, &away).unwrap();
    let log = copy.start_to_fail();
    assert!(log.contains("child process exited with exit code 200"), "{log}");
    fs::rename(&away, &p.repository).unwrap();
    assert_eq!(promoted(&mut copy), "1,2,3,4");

    fs::remove_file(hand.archived(&lost)).unwrap();
    assert_eq!(promoted(&mut hand.copy(&base, "missing", &[])), "1");
    fs::remove_file(object(&p, &lost)).unwrap();
    // As long as there is no backup behind the gap, and when there is one.
    refused(&p, 3, &["--to", &wished], &["gap", &lost, "no backup was taken there"]);
    refused(&p, 3, &["--to", &format!("xid:{third}")], &["did not end within the archive", &lost]);
    let warnings = plan(&p, &["--to", "latest"])["warnings"].to_string();
    assert!(warnings.contains(&lost) && warnings.contains("take a backup"), "{warnings}");
    let _ = p.backup();
    refused(&p, 3, &["--to", &wished], &["gap", &lost, "before the gap", "after it"]);
}

/// The first try went to row 1 and archived its own timeline. The second try wants row 2, and follows the timeline of
/// the first, because "latest" is PostgreSQL's default: it stops at the right time in the wrong history.
#[test]
fn a_second_try_follows_the_first_into_the_wrong_history() {
    let mut p = protected();
    let hand = ByHand::beside(&p);
    let base = hand.backup(&p.cluster, "base");
    let _ = p.backup();
    p.cluster.stop(Stop::Fast);
    p.cluster.append_configuration("max_connections = 150\n");
    p.cluster.start();
    let (_, at_first) = commit(&p.cluster, 1);
    let (_, at_second) = commit(&p.cluster, 2);
    commit(&p.cluster, 3);
    p.cluster.psql("select pg_create_restore_point('three')");
    let _ = p.archive();
    let target = |time| {
        [
            ("recovery_target_time", time),
            ("recovery_target_action", "promote"),
            ("archive_mode", "on"),
            ("max_connections", "150"),
        ]
    };
    let mut first = hand.copy(&base, "first", &target(&at_first));
    assert_eq!(promoted(&mut first), "1");
    commit(&first, 100);
    let name = first.switch_wal();
    first.wait_archived(&name);

    assert_eq!(promoted(&mut hand.copy(&base, "second", &target(&at_second))), "1");

    refused(&p, 3, &["--to", &at_second], &["several timelines", "timeline 1", "timeline 2", "--timeline"]);
    assert_eq!(rows(&recovered(&p, "right", &["--to", &at_second, "--timeline", "1"])), "1,2");
    // What only one of them holds needs no choice, and the plan has seen all of the way to it.
    let only = plan(&p, &["--to", "name:three"]);
    assert_eq!((&only["timeline"], &only["required"]["max_connections"]), (&1.into(), &150.into()), "{only}");
}

/// A backup was taken after a stray copy had branched off, so the branch is not in its history. PostgreSQL follows the
/// newest timeline all the same, and says at the start that it cannot.
#[test]
fn a_backup_that_is_younger_than_the_branch_cannot_follow_it() {
    let p = protected();
    let hand = ByHand::beside(&p);
    let (early, _) = (hand.backup(&p.cluster, "early"), p.backup());
    let (_, at_first) = commit(&p.cluster, 1);
    commit(&p.cluster, 2);
    let _ = p.archive();
    let target =
        [("recovery_target_time", at_first.as_str()), ("recovery_target_action", "promote"), ("archive_mode", "on")];
    let mut stray = hand.copy(&early, "stray", &target);
    assert_eq!(promoted(&mut stray), "1");
    commit(&stray, 100);
    let name = stray.switch_wal();
    stray.wait_archived(&name);
    let (late, backup) = (hand.backup(&p.cluster, "late"), p.backup());
    commit(&p.cluster, 3);
    let _ = p.archive();

    let log = hand.copy(&late, "failed", &[]).start_to_fail();
    assert!(log.contains("requested timeline 2 is not a child of this server's history"), "{log}");

    let wish = ["--to", "latest", "--timeline", "2", "--backup", &backup];
    refused(&p, 3, &wish, &[&format!("backup {backup} does not lie on the way to timeline 2")]);
    // Left to choose, it takes for each timeline a backup that leads there.
    assert_ne!(plan(&p, &["--to", "latest", "--timeline", "2"])["backup"]["id"], backup.as_str());
    let mut copy = recovered(&p, "right", &["--to", "latest", "--timeline", "1"]);
    assert_eq!(rows(&copy), "1,2,3");
    copy.stop(Stop::Immediate);
}

/// "Just before now", on a system that was idle since: PostgreSQL knows that a time is reached only when it meets a
/// later commit. It replays everything there is, then fails.
#[test]
fn a_time_after_the_last_commit_is_never_reached() {
    let p = protected();
    let hand = ByHand::beside(&p);
    let base = hand.backup(&p.cluster, "base");
    let _ = p.backup();
    let (xid, after) = commit(&p.cluster, 1);
    let _ = p.archive();

    let log = hand.copy(&base, "failed", &[("recovery_target_time", &after)]).start_to_fail();
    assert!(log.contains("recovery ended before configured recovery target was reached"), "{log}");

    refused(
        &p,
        3,
        &["--to", &after],
        &["after everything in the archive", &format!("transaction {xid}"), "--to latest"],
    );
    assert_eq!(rows(&recovered(&p, "right", &["--to", "latest"])), "1");
}

/// A time before the backup: PostgreSQL can only begin where the backup was consistent, stops at the first commit after
/// that, and says nothing. What it shows is younger than what was wished.
#[test]
fn a_time_before_the_backup_gives_later_data() {
    let p = protected();
    let hand = ByHand::beside(&p);
    let (_, wished) = commit(&p.cluster, 1);
    commit(&p.cluster, 2);
    let base = hand.backup(&p.cluster, "base");
    let _ = p.backup();
    commit(&p.cluster, 3);
    let _ = p.archive();

    assert_eq!(paused(&mut hand.copy(&base, "later", &[("recovery_target_time", &wished)])), "1,2");

    refused(&p, 3, &["--to", &wished], &["lies before the first usable backup", "earliest instant"]);
}

/// DROP DATABASE removes the files before it commits, and marks the database as invalid before that, outside the
/// transaction. No time and no transaction number stops early enough.
#[test]
fn a_dropped_database_comes_back_by_no_time_and_no_transaction() {
    for_each_version(|installation| {
        let p = Protected::new(installation, Place::Directory, |b| b.setting("autovacuum", "off"));
        let hand = ByHand::beside(&p);
        p.cluster.psql("create database gone");
        p.cluster.psql_db("gone", "create table precious as select 10 as n");
        let base = hand.backup(&p.cluster, "base");
        let _ = p.backup();
        p.cluster.psql("create table t (n int)");
        let before = now(&p.cluster);
        p.cluster.psql("drop database gone");
        let (next, _) = commit(&p.cluster, 1);
        let dropping = (next.parse::<u32>().unwrap() - 1).to_string();
        let _ = p.archive();

        for (name, target, value) in
            [("by-time", "recovery_target_time", &before), ("by-xid", "recovery_target_xid", &dropping)]
        {
            let mut copy = hand.copy(&base, name, &[(target, value), ("recovery_target_inclusive", "off")]);
            assert_eq!(paused(&mut copy), "none");
            let failed = copy.try_psql_db("gone", "select n from precious").unwrap_err();
            assert!(failed.contains("cannot connect to invalid database \"gone\""), "{failed}");
        }

        // The plan stops before that mark, which is earlier than every time and transaction of the drop.
        let wish = ["--to", "before-drop-database:gone"];
        let stop = plan(&p, &wish)["stop"].clone();
        let by_xid = plan(&p, &["--to", &format!("before:xid:{dropping}")])["stop"].clone();
        let lsn = |stop: &serde_json::Value| stop["lsn"].as_str().unwrap().parse::<walden::postgres::Lsn>().unwrap();
        assert!(stop["inclusive"] == false && lsn(&stop) < lsn(&by_xid), "{stop} {by_xid}");
        let copy = recovered(&p, "right", &wish);
        assert_eq!(copy.psql_db("gone", "select n from precious"), "10", "PostgreSQL {}", installation.major);
    });
}

/// A copy on a smaller machine, with settings to match. PostgreSQL refuses to start; where the setting was raised after
/// the backup it stops in the middle of replay and waits, which looks as if it hung.
#[test]
fn settings_lower_than_the_primarys_stop_recovery() {
    for_each_version(|installation| {
        let mut p = Protected::new(installation, Place::Directory, |b| b);
        p.cluster.psql("create table t (n int)");
        let hand = ByHand::beside(&p);
        let (low, _) = (hand.backup(&p.cluster, "low"), p.backup());
        p.cluster.stop(Stop::Fast);
        p.cluster.append_configuration("max_connections = 150\n");
        p.cluster.start();
        commit(&p.cluster, 1);
        let high = hand.backup(&p.cluster, "high");
        let _ = p.archive();

        let log = hand.copy(&high, "refused", &[("max_connections", "20")]).start_to_fail();
        assert!(log.contains("insufficient parameter settings") && log.contains("where its value was 150"), "{log}");
        let mut copy = hand.copy(&low, "waiting", &[]);
        copy.start();
        copy.wait_for("select pg_get_wal_replay_pause_state()", "paused");
        assert_eq!(rows(&copy), "none");
        let log = copy.log();
        assert!(log.contains("hot standby is not possible because of insufficient parameter settings"), "{log}");

        // The plan has read the change in the log. Less than it says is refused, and the copy gets as much by itself.
        let backups = p.walden(["list", "--json"]);
        let backups: serde_json::Value = serde_json::from_str(backups.ok()).unwrap();
        let first = backups["systems"][0]["backups"][0]["id"].as_str().unwrap();
        let wish = ["--to", "latest", "--backup", first];
        assert_eq!(plan(&p, &wish)["required"]["max_connections"], 150);
        let (pgdata, ran) = try_restore(&p, "less", &[&wish[..], &["--set", "max_connections=100"]].concat());
        ran.expect_code(2);
        assert!(ran.stderr.contains("max_connections must be at least 150") && !pgdata.exists(), "{ran}");
        let copy = recovered(&p, "right", &wish);
        assert_eq!((rows(&copy).as_str(), copy.psql("show max_connections").as_str()), ("1", "150"));
    });
}

/// A time without its zone means the time of the restored server, wherever that thinks it is: hours too late, which
/// fails at the end of replay, or hours too early, which gives the wrong rows in silence.
#[test]
fn a_time_without_its_zone_means_another_time() {
    let p = protected();
    let hand = ByHand::beside(&p);
    let base = hand.backup(&p.cluster, "base");
    let _ = p.backup();
    let (_, wished) = commit(&p.cluster, 1);
    commit(&p.cluster, 2);
    let _ = p.archive();
    let bare = wished.strip_suffix(" UTC").unwrap();

    let zone = |zone| [("recovery_target_time", bare), ("timezone", zone)];
    let log = hand.copy(&base, "new-york", &zone("America/New_York")).start_to_fail();
    assert!(log.contains("recovery ended before configured recovery target was reached"), "{log}");
    assert_eq!(paused(&mut hand.copy(&base, "tokyo", &zone("Asia/Tokyo"))), "none");

    refused(&p, 2, &["--to", bare], &["zone"]);
    // With its zone it is one LSN, which means the same everywhere.
    let stops = |to: &str| plan(&p, &["--to", to])["stop"]["lsn"].clone();
    let in_tokyo = p.cluster.psql(&format!(
        "select to_char('{wished}'::timestamptz at time zone 'Asia/Tokyo', 'YYYY-MM-DD HH24:MI:SS.US') || '+09:00'"
    ));
    assert_eq!(stops(&wished), stops(&in_tokyo));
    assert_eq!(rows(&recovered(&p, "right", &["--to", &in_tokyo, "--set", "timezone=Asia/Tokyo"])), "1");
}

/// A tablespace that was created after the backup: replay creates it again under the path it had. On the same host that
/// is where the living cluster keeps its data, and the copy writes into it.
#[test]
fn a_tablespace_is_created_again_at_the_path_of_the_living_cluster() {
    for_each_version(|installation| {
        let mut p = Protected::new(installation, Place::Directory, |b| b);
        let hand = ByHand::beside(&p);
        let base = hand.backup(&p.cluster, "base");
        let _ = p.backup();
        let space = p.scene.folder("space");
        p.cluster.psql(&format!("create tablespace s location '{}'", space.display()));
        p.cluster.psql("create table t (n int) tablespace s");
        let (_, at_first) = commit(&p.cluster, 1);
        let (second, _) = commit(&p.cluster, 2);
        p.cluster.psql("checkpoint");
        let _ = p.archive();

        // The copy stops at row 1, and writes that into the files of the living cluster.
        let target = [("recovery_target_time", at_first.as_str()), ("recovery_target_action", "promote")];
        let mut copy = hand.copy(&base, "naive", &target);
        assert_eq!(promoted(&mut copy), "1");
        copy.stop(Stop::Fast);
        p.cluster.stop(Stop::Fast);
        p.cluster.start();
        assert_eq!(rows(&p.cluster), "1", "the living cluster has lost row 2");

        let told = plan(&p, &["--to", "latest"]);
        assert_eq!(told["created_tablespaces"][0]["path"], space.to_str().unwrap());
        let map = format!("{}={}", space.display(), p.scene.path().join("elsewhere").display());
        for wish in [&["--to", "latest"][..], &["--to", "latest", "--map", &map]] {
            let (pgdata, ran) = try_restore(&p, "refused", wish);
            ran.expect_code(4);
            assert!(ran.stderr.contains(space.to_str().unwrap()) && ran.stderr.contains("replay"), "{ran}");
            assert!(!pgdata.exists());
        }
        // Once the path is free, as on another host, the copy has it to itself.
        p.cluster.stop(Stop::Fast);
        fs::rename(&space, p.scene.path().join("moved")).unwrap();
        assert_eq!(rows(&recovered(&p, "right", &["--to", &format!("xid:{second}")])), "1,2");
    });
}

/// The same, when the tablespace was dropped since and its folder is gone: replay wants the folder back.
#[test]
fn a_tablespace_that_is_gone_is_created_again() {
    let p = protected();
    let hand = ByHand::beside(&p);
    let base = hand.backup(&p.cluster, "base");
    let _ = p.backup();
    let space = p.scene.folder("space");
    p.cluster.psql(&format!("create tablespace s location '{}'", space.display()));
    p.cluster.psql("drop tablespace s");
    fs::remove_dir(&space).unwrap();
    commit(&p.cluster, 1);
    let _ = p.archive();

    let log = hand.copy(&base, "failed", &[]).start_to_fail();
    assert!(log.contains(&format!("directory \"{}\" does not exist", space.display())), "{log}");

    assert_eq!(plan(&p, &["--to", "latest"])["created_tablespaces"][0]["path"], space.to_str().unwrap());
    assert_eq!(rows(&recovered(&p, "right", &["--to", "latest"])), "1");
}
