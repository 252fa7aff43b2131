//! The state of a cluster's recoverability: what there is, and what needs a person. Pure: what was seen comes in.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{escape::plain, words};
use crate::{
    human,
    plan::window::{BackupMark, Timeline, Timelines, WindowEnd},
    postgres::{TimelineId, Version, WalFile, archive_status::Waiting, sql::ArchiverStatus},
    repository::{BackupId, Incarnation},
};

/// What was seen of a cluster.
#[derive(Debug)]
pub struct Seen<'a> {
    /// Its systems in the repository, the newest last.
    pub systems: &'a [Timelines],
    /// The system of its data directory, when that is at hand.
    pub here: Option<Incarnation>,
    /// What waits in its `pg_wal`, when that is at hand.
    pub waiting: Option<Waiting>,
    /// What its server says of archiving; or why it could not be asked. None when no connection is configured.
    pub server: Option<Result<ServerSeen, String>>,
    /// When all that was seen.
    pub now: DateTime<Utc>,
}

/// What a server says of its archiving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSeen {
    /// Whether `archive_mode` is off.
    pub off: bool,
    /// `pg_stat_archiver`.
    pub archiver: ArchiverStatus,
}

/// The state of a cluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Status {
    /// `ok`, unless something needs a person.
    pub verdict: Verdict,
    /// The system that the cluster is now.
    pub system: Option<Incarnation>,
    /// PostgreSQL's major version.
    pub postgres: Option<Version>,
    /// The timeline that it writes.
    pub timeline: Option<TimelineId>,
    /// What can be recovered, in words.
    pub recoverable: String,
    /// The last window of that timeline.
    pub window: Option<crate::plan::window::Window>,
    /// How old the last archived commit is, in seconds.
    pub last_commit_age_seconds: Option<i64>,
    /// How many backups there are.
    pub backups: usize,
    /// The newest of them.
    pub newest_backup: Option<NewestBackup>,
    /// What waits in `pg_wal`.
    pub waiting: Option<WaitingFiles>,
    /// What the server archived last.
    pub last_archived: Option<Archived>,
    /// What needs a person.
    pub concerns: Vec<Concern>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// Whether something needs a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Nothing does.
    Ok,
    /// Something does.
    NeedsPerson,
}

/// The newest backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NewestBackup {
    /// Its id.
    pub id: BackupId,
    /// What the user called it.
    pub label: Option<String>,
    /// When it was complete.
    pub stopped: DateTime<Utc>,
    /// How long ago that was, in seconds.
    pub age_seconds: i64,
    /// The size of the cluster's files in bytes.
    pub size: u64,
    /// Whether it can be used.
    pub usable: bool,
}

/// What waits in `pg_wal`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct WaitingFiles {
    /// How many files.
    pub files: usize,
    /// For how long the oldest has, in seconds.
    pub oldest_seconds: u64,
}

/// A file that was archived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Archived {
    /// Its name.
    pub file: WalFile,
    /// When.
    pub at: DateTime<Utc>,
}

/// Something that needs a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Concern {
    /// What it is.
    pub what: String,
    /// What to do.
    pub mend: String,
}

impl Status {
    /// Judges what was seen.
    #[must_use]
    pub fn of(seen: &Seen<'_>) -> Self {
        let system = seen.systems.last();
        let live = system.and_then(Timelines::live);
        let backups = system.map(Timelines::backups).unwrap_or_default();
        let window = live.and_then(|t| t.windows.last()).cloned();
        let age = |then: DateTime<Utc>| (seen.now - then).num_seconds();
        let mut status = Self {
            verdict: Verdict::Ok,
            system: system.map(|s| s.system.incarnation),
            postgres: system.map(|s| s.system.postgres),
            timeline: live.map(|t| t.timeline),
            recoverable: live
                .map_or_else(|| "nothing is archived yet".to_owned(), |live| words::recoverable(live, seen.now)),
            last_commit_age_seconds: window.as_ref().and_then(|w| w.to.time).map(age),
            window,
            backups: backups.len(),
            newest_backup: backups.last().map(|b| NewestBackup {
                id: b.id,
                label: b.label.clone(),
                stopped: b.stopped,
                age_seconds: age(b.stopped),
                size: b.size,
                usable: b.broken.is_none(),
            }),
            waiting: seen.waiting.map(|w| WaitingFiles { files: w.files, oldest_seconds: w.oldest.as_secs() }),
            last_archived: None,
            concerns: Vec::new(),
            notes: Vec::new(),
        };
        status.archiving(seen);
        match (system, live) {
            (Some(system), live) => {
                status.systems(seen, system);
                match live {
                    Some(live) => status.windows(live),
                    None => status
                        .concern("nothing is archived yet", "walden check says why; then take a backup: walden backup"),
                }
                status.branches(system, seen.now);
                status.backups(&backups);
            }
            (None, _) => status.concern("the cluster is not in the repository yet", "begin with: walden init"),
        }
        if !status.concerns.is_empty() {
            status.verdict = Verdict::NeedsPerson;
        }
        status
    }

    fn concern(&mut self, what: impl Into<String>, mend: impl Into<String>) {
        self.concerns.push(Concern { what: what.into(), mend: mend.into() });
    }

    fn archiving(&mut self, seen: &Seen<'_>) {
        match &seen.server {
            Some(Ok(server)) => {
                let archiver = &server.archiver;
                self.last_archived = archiver.last_archived.map(|(file, at)| Archived { file, at });
                if server.off {
                    self.concern(
                        "archive_mode is off: nothing is archived",
                        "walden init prints the lines for postgresql.conf; then restart the server, and walden check",
                    );
                }
                if let Some((file, at)) = archiver.last_failed.filter(|_| archiver.is_failing()) {
                    let times = if archiver.failed == 1 { "once".into() } else { format!("{} times", archiver.failed) };
                    self.concern(
                        format!(
                            "archive_command fails: last on {file}, {} ago, {times} in all",
                            words::ago(at, seen.now)
                        ),
                        "the server's log says why; walden check looks for the cause",
                    );
                }
            }
            Some(Err(why)) => self.notes.push(format!("the server could not be asked: {why}")),
            None => {}
        }
        if let Some(waiting) = seen.waiting.filter(Waiting::is_stuck) {
            self.concern(
                format!("archiving does not keep up: {waiting}"),
                "walden check looks for the cause; pg_wal grows until it has caught up",
            );
        }
    }

    fn systems(&mut self, seen: &Seen<'_>, system: &Timelines) {
        if let Some(here) = seen.here.filter(|here| *here != system.system.incarnation) {
            let known = seen.systems.iter().any(|s| s.system.incarnation == here);
            let what = format!(
                "the data directory is system {here}, and the newest in the repository is {}",
                system.system.incarnation
            );
            let mend = match known {
                true => "check [cluster] pgdata: is it an old copy?",
                false => "if the cluster was made anew (pg_upgrade): walden init, then walden backup",
            };
            self.concern(what, mend);
        }
        if seen.systems.len() > 1 {
            self.notes
                .push(format!("{} earlier systems of this cluster are kept: walden list", seen.systems.len() - 1));
        }
    }

    fn windows(&mut self, live: &Timeline) {
        if let Some(lost) = &live.lost_history {
            self.concern(
                format!("nothing on timeline {} can be recovered: {lost}", live.timeline),
                format!("archive it by hand: walden wal push pg_wal/{}.history", live.timeline.hex()),
            );
            return;
        }
        let take = "take a backup: walden backup";
        match live.windows.last() {
            None if live.backups.is_empty() => self.concern("there is no backup", take),
            None => self.concern("no backup has the WAL that it needs", take),
            Some(last) => {
                if let Some(end) = words::end(&last.end) {
                    let what = format!("nothing after {} can be recovered: {}", last.to.lsn, plain(&end));
                    let mend = match last.end {
                        WindowEnd::Minimal { .. } => {
                            "set wal_level = replica, restart the server, and take a backup: walden backup"
                        }
                        _ => {
                            "take a backup: walden backup. If another copy of the segment exists, archive it: walden wal push"
                        }
                    };
                    self.concern(what, mend);
                }
            }
        }
        let earlier = live.windows.len().saturating_sub(1);
        for window in live.windows.iter().take(earlier) {
            if let Some(end) = words::end(&window.end) {
                self.notes.push(format!("a gap after {}: {}", window.to.lsn, plain(&end)));
            }
        }
    }

    fn branches(&mut self, system: &Timelines, now: DateTime<Utc>) {
        for other in system.timelines.iter().filter(|t| !t.live && !t.windows.is_empty()) {
            // An ancestor that ends where it was left is no branch.
            let left = system.live().and_then(|live| system.left(live, other.timeline)).flatten();
            let end = other.windows.last().map(|w| w.to.lsn);
            if left.is_none_or(|(lsn, _)| end.is_some_and(|end| end > lsn)) {
                self.notes.push(format!(
                    "timeline {} goes on beside: {}",
                    other.timeline,
                    words::recoverable(other, now)
                ));
            }
        }
    }

    fn backups(&mut self, backups: &[&BackupMark]) {
        for (number, backup) in backups.iter().rev().enumerate() {
            let newest = number == 0;
            if let Some(broken) = &backup.broken {
                let what = format!("backup {} cannot be used: {}", backup.id, plain(&broken.why));
                if newest { self.concern(what, "take another: walden backup") } else { self.notes.push(what) }
            }
            if backup.bad_pages > 0 {
                let what = format!("backup {} has {} damaged pages", backup.id, backup.bad_pages);
                let mend =
                    "walden list --json names them; recover the tables from an older backup, and look at the disk";
                if newest { self.concern(what, mend) } else { self.notes.push(what) }
            }
        }
    }
}

impl NewestBackup {
    /// `20261121T014500Z, 8 h 12 min old, 1.2 GB`.
    #[must_use]
    pub fn words(&self) -> String {
        let age = Duration::from_secs(self.age_seconds.max(0).unsigned_abs());
        let label = self.label.as_deref().map(|l| format!(" \"{}\"", plain(l))).unwrap_or_default();
        format!("{}{label}, {} old, {}", self.id, human::duration(age), human::size(self.size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::trees::{self, at};

    fn status(systems: &[Timelines], change: impl FnOnce(&mut Seen<'_>)) -> Status {
        let mut seen = Seen { systems, here: None, waiting: None, server: None, now: at("21 10:05") };
        change(&mut seen);
        Status::of(&seen)
    }

    #[test]
    fn what_is_well_needs_nobody() {
        let well = status(&trees::single(), |seen| {
            seen.waiting = Some(Waiting { files: 1, oldest: Duration::from_secs(2) });
            seen.server = Some(Ok(ServerSeen { off: false, archiver: ArchiverStatus::default() }));
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
        let stuck = Waiting { files: 2, oldest: Duration::from_secs(900) };
        told(status(&trees::single(), |seen| seen.waiting = Some(stuck)), "2 files wait", "walden check");
        let file = "000000010000000000000029".parse().unwrap();
        let archiver =
            ArchiverStatus { failed: 3, last_failed: Some((file, at("21 10:04"))), ..ArchiverStatus::default() };
        let server = ServerSeen { off: false, archiver };
        told(status(&trees::single(), |seen| seen.server = Some(Ok(server))), "3 times in all", "server's log");
        let mut damaged = trees::single();
        damaged[0].timelines[0].backups[1].bad_pages = 2;
        told(status(&damaged, |_| {}), "2 damaged pages", "older backup");
        let mut cut = trees::gap();
        cut[0].timelines[0].windows.pop();
        told(status(&cut, |_| {}), "nothing after 0/F000000", "walden backup");
        let other = "1-1".parse().unwrap();
        told(status(&trees::single(), |seen| seen.here = Some(other)), "data directory is system 1-1", "pg_upgrade");
    }
}
