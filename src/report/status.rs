//! The state of a cluster's recoverability: what there is, and what needs a person. Pure: what was seen comes in.

mod archiving;
mod suspended;

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{doctor::Advice, escape::plain, lag::Lag, words};
use crate::{
    human,
    mirror::State,
    plan::window::{BackupMark, Timeline, Timelines, WindowEnd},
    postgres::{
        Lsn, SegmentName, SegmentSize, SystemId, TimelineId, Version, WalFile,
        archive_status::Waiting,
        pg_wal::PgWal,
        sql::{ArchiveMode, ArchiverStatus, Slot},
    },
    repository::{BackupId, Incarnation, Suspended},
};

/// What was seen of a cluster. The server and its files are looked at before the repository: what was said to be
/// archived is there then, or never came.
#[derive(Debug)]
pub struct Seen<'a> {
    /// Its systems in the repository, the newest last.
    pub systems: &'a [Timelines],
    /// Why the repository could not be read, where it could not.
    pub unreachable: Option<String>,
    /// The system of its data directory, when that is at hand.
    pub here: Option<Incarnation>,
    /// Its `pg_wal`.
    pub wal: Result<PgWal, NotSeen>,
    /// What this host knows of suspended archiving.
    pub suspended: Result<SuspendedSeen, NotSeen>,
    /// What its server says of archiving.
    pub server: Result<ServerSeen, NotSeen>,
    /// When all that was seen.
    pub now: DateTime<Utc>,
}

/// Why something was not seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotSeen {
    /// In words.
    pub why: String,
    /// Whether it was looked for: where nothing is configured there is nothing to look for.
    pub tried: bool,
}

/// What a host knows of suspended archiving, with the segments that were not archived because of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SuspendedSeen {
    /// The suspension that lasts.
    pub current: Option<(Suspended, Vec<SegmentName>)>,
    /// Those that have ended, and that the repository does not know of.
    pub not_noted: Vec<(Suspended, Vec<SegmentName>)>,
}

/// What a server says of its archiving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSeen {
    /// Its system.
    pub system: SystemId,
    /// `archive_mode`.
    pub mode: ArchiveMode,
    /// `archive_command`.
    pub command: String,
    /// `archive_library`.
    pub library: String,
    /// Whether it is in recovery: a standby writes no WAL of its own.
    pub in_recovery: bool,
    /// The timeline that it writes, or replays.
    pub timeline: TimelineId,
    /// The size of its segments.
    pub segment_size: SegmentSize,
    /// `archive_timeout`; zero when it is off.
    pub archive_timeout: Duration,
    /// The end of the WAL that it has written, or replayed.
    pub lsn: Lsn,
    /// Its replication slots that hold WAL back.
    pub slots: Vec<Slot>,
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
    /// How many backups there are; none where the repository could not be read.
    pub backups: Option<usize>,
    /// The newest of them.
    pub newest_backup: Option<NewestBackup>,
    /// What waits in `pg_wal`.
    pub waiting: Option<WaitingFiles>,
    /// How far the repository is behind the server.
    pub lag: Lag,
    /// What the server archived last.
    pub last_archived: Option<Archived>,
    /// What its `archive_command` failed on last.
    pub last_failed: Option<Archived>,
    /// Whether the last attempt failed; none where the server does not tell.
    pub failing: Option<bool>,
    /// How many attempts failed since the server's counters were reset; none where the server does not tell.
    pub failed: Option<i64>,
    /// Segments that PostgreSQL holds for archived and the repository does not have; none where that cannot be told.
    pub not_arrived: Option<NotArrived>,
    /// Whether archiving is suspended, as this host or else the repository knows; none where neither does.
    pub suspended: Option<bool>,
    /// Who suspended it, when and why; and what PostgreSQL was told is archived since, as far as this host knows.
    pub suspension: Option<Suspension>,
    /// The server's replication slots that hold WAL back; none where the server does not tell.
    pub slots: Option<Vec<HeldBack>>,
    /// Why the repository could not be read, where it could not.
    pub unreachable: Option<String>,
    /// How the other repositories stand beside the first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<State>,
    /// What needs a person.
    pub concerns: Vec<Concern>,
    /// What to do before it is needed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub advice: Vec<Concern>,
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

/// Segments that PostgreSQL holds for archived and the repository does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NotArrived {
    /// How many are known.
    pub segments: usize,
    /// The first.
    pub first: Option<SegmentName>,
    /// The last.
    pub last: Option<SegmentName>,
}

/// A suspension that lasts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Suspension {
    /// When, who and why.
    #[serde(flatten)]
    pub by: Suspended,
    /// How many segments PostgreSQL was told are archived; none where this host does not know.
    pub skipped: Option<usize>,
    /// The first of them.
    pub first: Option<SegmentName>,
    /// The last of them.
    pub last: Option<SegmentName>,
}

/// A replication slot that holds WAL back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HeldBack {
    /// Its name.
    pub slot: String,
    /// Whether somebody receives by it.
    pub active: bool,
    /// `wal_status` as PostgreSQL tells it.
    pub status: String,
    /// How many bytes of WAL it holds back; none when they are lost.
    pub bytes: Option<u64>,
}

/// A file that was archived, or could not be.
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

impl Seen<'_> {
    /// What waits in `pg_wal`, when that is at hand.
    fn waiting(&self) -> Option<Waiting> {
        let wal = self.wal.as_ref().ok()?;
        let oldest = wal.ready.iter().map(|marked| marked.age).max().unwrap_or_default();
        Some(Waiting { files: wal.ready.len(), oldest })
    }

    /// The systems in the repository with the identifier of the one that is written, the newest last.
    fn written(&self) -> Vec<&Timelines> {
        let server = self.server.as_ref().ok().map(|server| server.system);
        let last = self.systems.last().map(|last| last.system.incarnation.system);
        let wanted = server.or(self.here.map(|here| here.system)).or(last);
        self.systems.iter().filter(|system| Some(system.system.incarnation.system) == wanted).collect()
    }
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
        let waiting = seen.waiting();
        let mut status = Self {
            verdict: Verdict::Ok,
            system: system.map(|s| s.system.incarnation),
            postgres: system.map(|s| s.system.postgres),
            timeline: live.map(|t| t.timeline),
            recoverable: match (live, &seen.unreachable) {
                (Some(live), _) => words::recoverable(live, seen.now),
                (None, Some(_)) => "not known: the repository could not be read".to_owned(),
                (None, None) => "nothing is archived yet".to_owned(),
            },
            last_commit_age_seconds: window.as_ref().and_then(|w| w.to.time).map(age),
            window,
            backups: seen.unreachable.is_none().then_some(backups.len()),
            newest_backup: backups.last().map(|b| NewestBackup {
                id: b.id,
                label: b.label.clone(),
                stopped: b.stopped,
                age_seconds: age(b.stopped),
                size: b.size,
                usable: b.broken.is_none(),
            }),
            waiting: waiting.map(|w| WaitingFiles { files: w.files, oldest_seconds: w.oldest.as_secs() }),
            lag: Lag::of(seen, seen.written().last().copied()),
            last_archived: None,
            last_failed: None,
            failing: None,
            failed: None,
            not_arrived: None,
            suspended: None,
            suspension: None,
            slots: None,
            unreachable: seen.unreachable.clone(),
            mirrors: Vec::new(),
            concerns: Vec::new(),
            advice: Vec::new(),
            notes: Vec::new(),
        };
        status.judge(seen, system, &backups);
        if !status.concerns.is_empty() {
            status.verdict = Verdict::NeedsPerson;
        }
        status
    }

    /// What is to be said of it.
    fn judge(&mut self, seen: &Seen<'_>, system: Option<&Timelines>, backups: &[&BackupMark]) {
        if let Some(why) = &seen.unreachable {
            self.concern(
                format!("the repository could not be read: {why}"),
                "walden check looks for the cause; PostgreSQL keeps its WAL until it is archived",
            );
        }
        self.archiving(seen);
        self.suspensions(seen);
        match system {
            Some(system) => {
                self.systems(seen, system);
                match system.live() {
                    Some(live) => self.windows(live, system.unread.is_some()),
                    None => self
                        .concern("nothing is archived yet", "walden check says why; then take a backup: walden backup"),
                }
                self.branches(system, seen.now);
                self.backups(backups);
                if let Some(why) = &system.unread {
                    self.notes.push(format!("times of the archive are not known here: {}", plain(why)));
                }
            }
            None if seen.unreachable.is_some() => {}
            None => self.concern("the cluster is not in the repository yet", "begin with: walden init"),
        }
    }

    /// Adds how the other repositories stand.
    pub fn beside(&mut self, mirrors: Vec<State>, now: DateTime<Utc>) {
        for mirror in mirrors.iter().filter(|mirror| mirror.needs_person(now)) {
            let what = format!("repository {}: {}", mirror.name, mirror.words(now));
            self.concern(
                what,
                "walden sync says what hinders it, and copies what is missing; walden check looks at it",
            );
            self.verdict = Verdict::NeedsPerson;
        }
        self.mirrors = mirrors;
    }

    /// Adds what is to be done in time.
    pub fn advise(&mut self, advice: Vec<Advice>) {
        for Advice { what, mend, grave, .. } in advice {
            let place = if grave { &mut self.concerns } else { &mut self.advice };
            place.push(Concern { what, mend });
            if grave {
                self.verdict = Verdict::NeedsPerson;
            }
        }
    }

    fn concern(&mut self, what: impl Into<String>, mend: impl Into<String>) {
        self.concerns.push(Concern { what: what.into(), mend: mend.into() });
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

    fn windows(&mut self, live: &Timeline, unread: bool) {
        let take = "take a backup: walden backup";
        if let Some(lost) = &live.lost_history {
            self.concern(
                format!("nothing on timeline {} can be recovered: {lost}", live.timeline),
                // Its document tells the history for those who cannot read the file.
                match unread {
                    true => take.to_owned(),
                    false => format!("archive it by hand: walden wal push pg_wal/{}.history", live.timeline.hex()),
                },
            );
            return;
        }
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
pub(super) mod testing;
#[cfg(test)]
mod tests;
