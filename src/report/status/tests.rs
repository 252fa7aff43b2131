//! The verdict on what was seen.

use super::{
    testing::{seen, server},
    *,
};
use crate::{
    postgres::pg_wal::Marked,
    report::trees::{self, at},
};

fn status(systems: &[Timelines], change: impl FnOnce(&mut Seen<'_>)) -> Status {
    let mut seen = seen(systems);
    change(&mut seen);
    Status::of(&seen)
}

fn ready(seconds: &[u64]) -> Result<PgWal, NotSeen> {
    let file = WalFile::Segment("000000010000000000000029".parse().unwrap());
    let marked = seconds.iter().map(|seconds| Marked { file, age: Duration::from_secs(*seconds) });
    Ok(PgWal { ready: marked.collect(), ..PgWal::default() })
}

#[test]
fn what_is_well_needs_nobody() {
    let well = status(&trees::single(), |seen| {
        seen.wal = ready(&[2]);
        seen.server = Ok(server());
    });
    assert_eq!((well.verdict, well.concerns, well.notes), (Verdict::Ok, vec![], vec![]));
    assert_eq!(well.last_commit_age_seconds, Some(420));
    // A branch that was left is worth knowing, and so is a gap that a backup lies behind.
    let branch = status(&trees::branch(), |_| {});
    assert_eq!(branch.verdict, Verdict::Ok);
    assert!(branch.notes[0].starts_with("timeline 1 goes on beside"), "{branch:?}");
    let gap = status(&trees::gap(), |_| {});
    assert_eq!(gap.verdict, Verdict::Ok);
    assert!(gap.notes[0].contains("00000001000000000000000F is missing"), "{gap:?}");
}

#[test]
fn what_is_not_well_comes_with_its_mend() {
    let told = |status: Status, what: &str, mend: &str| {
        assert_eq!(status.verdict, Verdict::NeedsPerson);
        let found = status.concerns.iter().any(|c| c.what.contains(what) && c.mend.contains(mend));
        assert!(found, "{what}: {status:?}");
    };
    told(status(&[], |_| {}), "not in the repository", "walden init");
    told(status(&trees::empty(), |_| {}), "nothing is archived", "walden backup");
    told(status(&trees::unusable(), |_| {}), "no backup has the WAL", "walden backup");
    told(status(&trees::unusable(), |_| {}), "cannot be used", "walden backup");
    told(status(&trees::single(), |seen| seen.wal = ready(&[900, 1])), "2 files wait", "walden check");
    let file = "000000010000000000000029".parse().unwrap();
    let archiver = ArchiverStatus { failed: 3, last_failed: Some((file, at("21 10:04"))), ..ArchiverStatus::default() };
    let with = |server| status(&trees::single(), |seen| seen.server = Ok(server));
    told(with(ServerSeen { archiver, ..server() }), "3 times in all", "server's log");
    told(with(ServerSeen { mode: ArchiveMode::Off, ..server() }), "archive_mode is off", "restart");
    told(with(ServerSeen { command: "/bin/true".into(), ..server() }), "stored nowhere", "walden init");
    told(with(ServerSeen { command: String::new(), ..server() }), "until the disk is full", "walden init");
    told(with(ServerSeen { library: "basic_archive".into(), ..server() }), "in place of", "archive_library = ''");
    let slot = |active, status: &str| {
        let slot = Slot { name: "s".into(), active, status: status.into(), from: Some(Lsn(0)) };
        with(ServerSeen { slots: vec![slot], ..server() })
    };
    told(slot(false, "extended"), "slot s, by which nobody receives, holds back 656 MB", "pg_drop_replication_slot");
    told(slot(true, "lost"), "is gone", "receiver");
    assert_eq!((slot(true, "extended").verdict, slot(false, "reserved").verdict), (Verdict::Ok, Verdict::Ok));
    assert_eq!(slot(false, "reserved").slots.unwrap()[0].bytes, Some(656 << 20));
    told(status(&[], |seen| seen.unreachable = Some("no answer".into())), "no answer", "walden check");
    let mut told_archived = server();
    told_archived.archiver.last_archived = Some((file, at("21 10:04")));
    let lying = with(told_archived);
    assert_eq!(lying.not_arrived.unwrap().segments, 1);
    told(lying, "000000010000000000000029, but it is not in the repository", "answers 0 without archiving");
    let mut damaged = trees::single();
    damaged[0].timelines[0].backups[1].bad_pages = 2;
    told(status(&damaged, |_| {}), "2 damaged pages", "older backup");
    let mut cut = trees::gap();
    cut[0].timelines[0].windows.pop();
    told(status(&cut, |_| {}), "nothing after 0/F000000", "walden backup");
    let other = "1-1".parse().unwrap();
    told(status(&trees::single(), |seen| seen.here = Some(other)), "data directory is system 1-1", "pg_upgrade");
}
