//! `walden wal receive` beside real servers: what it stores is what the server wrote, nothing is missing whatever dies, and
//! what it tells the server is true.
//!
//! `WALDEN_TEST_LONG=1` for more rounds of what is killed at random; its figures are on standard error.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod receiver;

use std::{
    collections::BTreeSet,
    fs,
    thread::sleep,
    time::{Duration, Instant},
};

use receiver::{Archived, Load, Receiver, configure, files, flushed, protected, wait_flushed, wait_received, write};
use rustix::process::Signal;
use walden::postgres::Lsn;
use walden_testkit::{
    disk::Disk,
    postgres::{Cluster, Installation, Stop, any, for_each_version},
    protected::{Place, Protected},
    s3::{Fault, S3Server, What},
};

const FIRST: &str = "00000001";

fn is_long() -> bool {
    std::env::var("WALDEN_TEST_LONG").is_ok_and(|n| n != "0")
}

/// Where the slot holds WAL from, or nothing.
fn slot(cluster: &Cluster) -> String {
    cluster.psql("select restart_lsn from pg_replication_slots where slot_name = 'walden_main'")
}

/// Whether the log in the repository reaches to where the server has flushed its own: but for the header of a page.
#[track_caller]
fn reaches(archived: &Archived, timeline: &str, flushed: Lsn) {
    let (end, _) = archived.commits(timeline);
    assert!(end.0 + 64 > flushed.0, "the archive ends at {end}, the server's log at {flushed}");
}

#[test]
fn what_is_stored_is_what_the_server_wrote() {
    for_each_version(|installation| {
        let p = protected(installation, Place::Directory, "flush_interval = \"200ms\"", |b| b);
        let receiver = Receiver::start(&p);
        write(&p.cluster, 5);
        wait_flushed(&p.cluster);
        let archived = Archived::of(&p);
        assert!(archived.same_as_pg_wal(&p.cluster) >= 5, "{}", receiver.log());
        reaches(&archived, FIRST, flushed(&p.cluster));
        // An orderly end leaves nothing behind but the slot.
        write(&p.cluster, 1);
        wait_received(&p.cluster);
        let last = flushed(&p.cluster);
        assert_eq!(receiver.end(Signal::TERM).code(), Some(0));
        reaches(&Archived::of(&p), FIRST, last);
        assert_ne!(slot(&p.cluster), "");
        let spool = files(&p.scene.path().join("state/receive"));
        let nothing = spool.iter().all(|file| file.ends_with("boot") || file.ends_with("lock"));
        assert!(nothing, "{spool:?}");
        // The next one goes on there, beside a second one that is told to wait.
        write(&p.cluster, 2);
        let receiver = Receiver::start(&p);
        let second = p.walden(["wal", "receive"]);
        second.expect_code(4);
        assert!(second.stderr.contains("another receive is running"), "{second}");
        wait_flushed(&p.cluster);
        let archived = Archived::of(&p);
        reaches(&archived, FIRST, flushed(&p.cluster));
        assert!(archived.same_as_pg_wal(&p.cluster) >= 8, "{}", receiver.log());
        receiver.end(Signal::TERM);
        p.walden(["wal", "receive", "--drop-slot"]).expect_code(0);
        assert_eq!(slot(&p.cluster), "");
    });
}

#[test]
fn no_kill_of_the_receiver_leaves_a_gap() {
    let s3 = S3Server::start();
    let p = protected(any(), Place::Bucket(&s3), "flush_interval = \"50ms\"", |b| b);
    let load = Load::start(&p.cluster, 3);
    let rounds = if is_long() { 60 } else { 12 };
    for round in 0..rounds {
        let receiver = Receiver::start(&p);
        sleep(Duration::from_millis(37 * (round % 7)));
        receiver.end(Signal::KILL);
        write(&p.cluster, 1);
    }
    let receiver = Receiver::start(&p);
    wait_flushed(&p.cluster);
    let archived = Archived::in_bucket(&s3);
    let mut p = p;
    p.cluster.kill9();
    let acknowledged = load.acknowledged();
    assert!(acknowledged.len() > 100, "{}", acknowledged.len());
    assert!(archived.same_as_pg_wal(&p.cluster) >= rounds as usize, "{}", receiver.log());
    let (_, commits) = archived.commits(FIRST);
    assert!(commits.len() > 100, "{}", commits.len());
}

#[test]
fn a_server_that_restarts_or_crashes_is_followed_on() {
    let mut p = protected(any(), Place::Directory, "", |b| b);
    let receiver = Receiver::start(&p);
    for round in 0..4 {
        write(&p.cluster, 2);
        if round % 2 == 0 {
            // A server that stops has waited until everything is stored, its last checkpoint too.
            p.cluster.stop(Stop::Fast);
        } else {
            p.cluster.kill9();
        }
        p.cluster.start();
    }
    write(&p.cluster, 1);
    p.cluster.wait_for("select count(*) from pg_stat_replication where application_name = 'walden'", "1");
    wait_flushed(&p.cluster);
    let archived = Archived::of(&p);
    reaches(&archived, FIRST, flushed(&p.cluster));
    assert!(archived.same_as_pg_wal(&p.cluster) >= 9, "{}", receiver.log());
    assert!(receiver.log().contains("trying again"), "{}", receiver.log());
}

#[test]
fn a_standby_that_is_promoted_is_followed_to_its_timeline() {
    for_each_version(|installation| {
        let p = protected(installation, Place::Directory, "flush_interval = \"100ms\"", |b| b);
        write(&p.cluster, 1);
        let standby = p.cluster.standby(p.scene.path().join("standby"));
        let text = fs::read_to_string(&p.config).unwrap();
        p.scene.write("walden.toml", text.replace(&p.cluster.conninfo(), &standby.conninfo()));
        let receiver = Receiver::start(&p);
        write(&p.cluster, 2);
        p.cluster.wait_replayed_by(&standby);
        standby.psql("select pg_promote()");
        write(&standby, 2);
        wait_flushed(&standby);
        let archived = Archived::of(&p);
        reaches(&archived, "00000002", flushed(&standby));
        let history = files(&p.repository).into_iter().find(|path| path.ends_with("00000002.history"));
        let history = zstd::stream::decode_all(fs::File::open(history.unwrap()).unwrap()).unwrap();
        assert_eq!(history, fs::read(standby.pgdata().join("pg_wal/00000002.history")).unwrap());
        // The old timeline's log goes up to the switch, wherever in a segment that is.
        let switch = String::from_utf8(history).unwrap();
        let switch: Lsn = switch.split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!(archived.commits(FIRST).0.0 + 64 > switch.0, "{}", receiver.log());
        assert!(archived.same_as_pg_wal(&standby) >= 3, "{}", receiver.log());
        receiver.end(Signal::KILL);
        // A new start finds its way along the history.
        let receiver = Receiver::start(&p);
        write(&standby, 1);
        wait_flushed(&standby);
        reaches(&Archived::of(&p), "00000002", flushed(&standby));
        receiver.end(Signal::TERM);
    });
}

#[test]
fn a_standby_that_was_promoted_and_burns_is_recovered_from_pieces_alone() {
    for_each_version(|installation| {
        let p = protected(installation, Place::Directory, "flush_interval = \"100ms\"", |b| b);
        let mut standby = p.cluster.standby(p.scene.path().join("standby"));
        let receiver = Receiver::start(&p);
        let _ = p.backup();
        p.cluster.psql("create table t as select 'before' as text");
        p.cluster.wait_replayed_by(&standby);
        wait_flushed(&p.cluster);
        receiver.end(Signal::TERM);
        standby.psql("select pg_promote()");
        let text = fs::read_to_string(&p.config).unwrap();
        p.scene.write("walden.toml", text.replace(&p.cluster.conninfo(), &standby.conninfo()));
        let receiver = Receiver::start(&p);
        // Its first segment, in which the timelines part, is not complete.
        standby.psql("insert into t values ('after')");
        wait_flushed(&standby);
        receiver.end(Signal::KILL);
        standby.kill9();
        let copy = p.restored("latest", "copy", &[]);
        assert_eq!(copy.psql("select string_agg(text, ' ' order by text desc) from t"), "before after");
    });
}

/// Kills everything under a load of commits that wait for the receiver.
fn acknowledged_commits(installation: &Installation, flushed_when: &str) -> (Protected, BTreeSet<u32>) {
    let receive = format!("flushed_when = \"{flushed_when}\"");
    let mut p = protected(installation, Place::Directory, &receive, |b| b);
    let acknowledged = acknowledged(&mut p);
    (p, acknowledged)
}

fn acknowledged(p: &mut Protected) -> BTreeSet<u32> {
    p.cluster.psql("create table if not exists load (x text)");
    let receiver = Receiver::start(p);
    // Its WAL comes by this way alone.
    let _ = p.backup();
    p.cluster.psql("alter system set synchronous_standby_names = 'walden'");
    p.cluster.reload();
    receiver.end(Signal::TERM);
    let receiver = Receiver::start(p);
    receiver.wait_for("commits wait for it");
    let load = Load::start(&p.cluster, 4);
    sleep(Duration::from_secs(2));
    receiver.end(Signal::KILL);
    p.cluster.kill9();
    let acknowledged: BTreeSet<u32> = load.acknowledged().into_iter().map(|(_, xid)| xid).collect();
    assert!(acknowledged.len() > 50, "{}", acknowledged.len());
    acknowledged
}

#[test]
fn a_commit_that_waited_survives_the_loss_of_the_repositorys_power() {
    for flushed_when in ["stored", "spooled"] {
        let mut p = protected(any(), Place::Directory, "", |b| b);
        let folder = p.scene.folder("disk");
        let Some(disk) = Disk::mount(&folder) else { return };
        p.cluster.owner().own(&folder);
        p.move_to(&folder);
        let text = fs::read_to_string(&p.config).unwrap();
        p.scene.write("walden.toml", format!("{text}\n[receive]\nflushed_when = \"{flushed_when}\"\n"));
        let acknowledged = acknowledged(&mut p);
        // Nobody is left who could sync anything.
        let after = p.scene.path().join("after");
        let _after = disk.after_power_loss(&after);
        p.repository = after.join("repository");
        let text = fs::read_to_string(&p.config).unwrap();
        p.scene.write("walden.toml", text.replace("/disk/", "/after/"));
        if flushed_when == "spooled" {
            let receiver = Receiver::launch(&p, &[]);
            receiver.wait_for("connect to PostgreSQL");
        }
        recovers(&p, &acknowledged);
    }
}

/// Whether a recovery to the latest instant has them all.
fn recovers(p: &Protected, acknowledged: &BTreeSet<u32>) {
    let copy = p.restored("latest", "copy", &[]);
    let xids: Vec<String> = acknowledged.iter().map(u32::to_string).collect();
    let lost = format!(
        "select count(*) from unnest('{{{}}}'::text[]) as x where pg_xact_status(x::xid8) is distinct from 'committed'",
        xids.join(",")
    );
    assert_eq!(copy.psql(&lost), "0");
    let rows: usize = copy.psql("select count(*) from load").parse().unwrap();
    assert!(rows >= acknowledged.len(), "{rows} rows of {} commits", acknowledged.len());
}

#[test]
fn a_commit_that_waited_for_the_repository_is_recovered_from_it() {
    for_each_version(|installation| {
        let (p, acknowledged) = acknowledged_commits(installation, "stored");
        let (_, commits) = Archived::of(&p).commits(FIRST);
        assert!(acknowledged.is_subset(&commits), "{:?}", acknowledged.difference(&commits));
        recovers(&p, &acknowledged);
    });
}

#[test]
fn a_commit_that_waited_for_the_spool_is_brought_in_without_the_server() {
    let (p, acknowledged) = acknowledged_commits(any(), "spooled");
    // The server is gone for good. What is in the spool comes first.
    let receiver = Receiver::launch(&p, &[]);
    receiver.wait_for("connect to PostgreSQL");
    assert!(receiver.log().contains("from before the start"), "{}", receiver.log());
    let (_, commits) = Archived::of(&p).commits(FIRST);
    assert!(acknowledged.is_subset(&commits), "{:?}", acknowledged.difference(&commits));
    recovers(&p, &acknowledged);
}

#[test]
fn a_repository_that_was_away_gets_everything_and_the_server_may_stop_meanwhile() {
    let s3 = S3Server::start();
    let mut p = protected(any(), Place::Bucket(&s3), "flush_interval = \"100ms\"\nspool_limit = \"3MB\"", |b| b);
    let text = fs::read_to_string(&p.config).unwrap();
    p.scene.write(
        "walden.toml",
        text.replace("[repository]", "[repository]\ndeadline = \"1s\"\nrequest_timeout = \"1s\""),
    );
    let receiver = Receiver::start(&p);
    write(&p.cluster, 1);
    wait_flushed(&p.cluster);
    s3.fault(Fault::new(What::Error(503, "SlowDown")).on("PutObject"));
    write(&p.cluster, 1);
    receiver.wait_for("wait for the repository");
    // Nothing is promised, so that the server need not wait when it stops.
    p.cluster.wait_for("select flush_lsn is null and write_lsn is not null from pg_stat_replication", "t");
    let mut took = Vec::new();
    for megabytes in [6, 1] {
        let begun = Instant::now();
        p.cluster.stop(Stop::Fast);
        took.push(begun.elapsed());
        p.cluster.start();
        write(&p.cluster, megabytes);
        receiver.wait_for("the spool is full");
        p.cluster.wait_for("select count(*) from pg_stat_replication", "0");
    }
    s3.heal();
    receiver.wait_for("the repository takes WAL again");
    p.cluster.wait_for("select count(*) from pg_stat_replication where application_name = 'walden'", "1");
    wait_flushed(&p.cluster);
    let archived = Archived::in_bucket(&s3);
    reaches(&archived, FIRST, flushed(&p.cluster));
    assert!(archived.same_as_pg_wal(&p.cluster) >= 8, "{}", receiver.log());
    let patient = took.iter().all(|took| *took < Duration::from_secs(60));
    assert!(patient, "the server waited {took:?} for a repository that is away");
}

#[test]
fn a_gap_is_named_and_passed_only_when_that_is_asked_for() {
    let p = protected(any(), Place::Directory, "slot_limit = \"1kB\"", |b| b.setting("wal_keep_size", "0"));
    p.cluster.psql("alter system set archive_command = 'true'");
    p.cluster.psql("alter system set min_wal_size = '2MB'");
    p.cluster.psql("alter system set max_wal_size = '2MB'");
    p.cluster.reload();
    let receiver = Receiver::start(&p);
    write(&p.cluster, 2);
    wait_flushed(&p.cluster);
    receiver.wait_for("makes the server keep");
    assert!(receiver.log().contains("max_slot_wal_keep_size is not set"), "{}", receiver.log());
    receiver.end(Signal::TERM);
    let first = p.cluster.psql("select pg_walfile_name(pg_current_wal_lsn())");
    p.walden(["wal", "receive", "--drop-slot"]).expect_code(0);
    for _ in 0..4 {
        write(&p.cluster, 2);
        p.archive();
        p.cluster.psql("checkpoint");
    }
    p.cluster.wait_for(&format!("select count(*) from pg_ls_waldir() where name = '{first}'"), "0");
    let refused = p.walden(["wal", "receive"]);
    refused.expect_code(4);
    assert!(refused.stderr.contains("is neither on the server nor in the repository"), "{refused}");
    assert!(refused.stderr.contains(&format!("({first}")), "{refused}");
    assert!(refused.stderr.contains("--accept-gap"), "{refused}");
    let receiver = Receiver::launch(&p, &["--accept-gap"]);
    receiver.wait_for("receiving timeline");
    write(&p.cluster, 1);
    wait_flushed(&p.cluster);
    let archived = Archived::of(&p);
    assert!(archived.has(&first) && archived.same_as_pg_wal(&p.cluster) > 0, "{}", receiver.log());
}

#[test]
fn another_system_behind_the_connection_is_refused() {
    let mut p = protected(any(), Place::Directory, "", |b| b);
    let other = Cluster::builder(any()).wal_segment_size(1).start();
    let right = fs::read_to_string(&p.config).unwrap();
    let wrong = right.replace(&p.cluster.conninfo(), &other.conninfo());
    let before = files(&p.repository);
    p.scene.write("walden.toml", &wrong);
    let refused = p.walden(["wal", "receive"]);
    refused.expect_code(2);
    assert!(refused.stderr.contains("has no system"), "{refused}");
    assert_eq!(files(&p.repository), before);
    assert_eq!(other.psql("select count(*) from pg_replication_slots"), "0");
    // The same while one runs: the other server comes up in the place of the first.
    p.scene.write("walden.toml", &right);
    let receiver = Receiver::start(&p);
    p.cluster.stop(Stop::Fast);
    let (ours, port) = (p.cluster.socket_dir().to_owned(), p.cluster.port());
    let mut other = other;
    other.stop(Stop::Fast);
    other.option(&format!("unix_socket_directories={},{}", other.socket_dir().display(), ours.display()));
    other.option(&format!("port={port}"));
    other.start();
    let (status, log) = receiver.ended();
    assert_eq!(status.code(), Some(4), "{log}");
    assert!(log.contains("what was received before is of system"), "{log}");
    configure(&p, "");
}

/// How much of what was acknowledged is lost when the host burns at any instant: measured by killing the receiver and the
/// server at once, from what is in the repository alone.
#[test]
fn what_is_lost_with_the_host_is_seconds_at_most() {
    let rounds = if is_long() { 20 } else { 2 };
    let mut ages = Vec::new();
    let mut p = protected(any(), Place::Directory, "", |b| b);
    for round in 0..rounds {
        let receiver = Receiver::start(&p);
        let load = Load::start(&p.cluster, 4);
        sleep(Duration::from_millis(1500 + 173 * (round * 7 % 11)));
        let killed = Instant::now();
        receiver.end(Signal::KILL);
        let archived = Archived::of(&p);
        p.cluster.kill9();
        let (_, commits) = archived.commits(FIRST);
        let lost = load.acknowledged().into_iter().filter(|(at, xid)| *at < killed && !commits.contains(xid));
        let oldest = lost.map(|(at, _)| killed - at).max().unwrap_or_default();
        eprintln!("round {round}: the oldest commit that was lost was acknowledged {oldest:?} before the end");
        ages.push(oldest);
        p.cluster.start();
    }
    ages.sort();
    let median = ages[ages.len() / 2];
    eprintln!("lost with the host: {median:?} in the middle, {:?} at most, of {rounds} rounds", ages[ages.len() - 1]);
    // Not a promise about time: without pieces it would be everything since the last whole segment.
    assert!(ages.iter().all(|age| *age < Duration::from_secs(10)), "{ages:?}");
}
