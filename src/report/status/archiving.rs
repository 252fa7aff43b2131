//! What of archiving needs a person: `archive_command` fails, is off, or answers "archived" for what never arrives; the
//! disk of `pg_wal` fills up.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{Archived, HeldBack, NotArrived, Seen, ServerSeen, Status};
use crate::{
    human,
    postgres::{
        SegmentName,
        archive_status::Waiting,
        sql::{ArchiveMode, Slot},
    },
    report::{archive_command, escape::plain, lag, words},
};

/// A disk that is full within this time needs a person.
const SOON: Duration = Duration::from_secs(3600);
/// So few free bytes are too few, however slowly they go: four segments of the usual size.
const LITTLE: u64 = 64 << 20;

impl Status {
    pub(super) fn archiving(&mut self, seen: &Seen<'_>) {
        match &seen.server {
            Ok(server) => {
                self.archiver(server, seen.now);
                if server.in_recovery {
                    self.notes.push("the server is a standby, or still in recovery: the primary archives".into());
                } else {
                    self.settings(server);
                    self.arrival(seen);
                }
                self.slots(server);
            }
            Err(not) if not.tried => self.notes.push(format!("the server could not be asked: {}", not.why)),
            Err(_) => {}
        }
        if let Err(not) = seen.wal.as_ref().map_err(|not| not.clone())
            && not.tried
        {
            self.notes.push(format!("pg_wal could not be looked at: {}", not.why));
        }
        let stuck = seen.waiting().filter(Waiting::is_stuck);
        if let Some(waiting) = stuck {
            self.concern(
                format!("archiving does not keep up: {waiting}"),
                "walden check looks for the cause; pg_wal grows until it has caught up",
            );
        }
        self.room(stuck.is_some() || self.failing == Some(true));
    }

    fn archiver(&mut self, server: &ServerSeen, now: DateTime<Utc>) {
        let archiver = &server.archiver;
        self.last_archived = archiver.last_archived.map(|(file, at)| Archived { file, at });
        self.last_failed = archiver.last_failed.map(|(file, at)| Archived { file, at });
        (self.failing, self.failed) = (Some(archiver.is_failing()), Some(archiver.failed));
        if let Some((file, at)) = archiver.last_failed.filter(|_| archiver.is_failing()) {
            let times = if archiver.failed == 1 { "once".into() } else { format!("{} times", archiver.failed) };
            self.concern(
                format!("archive_command fails: last on {file}, {} ago, {times} in all", words::ago(at, now)),
                "the server's log says why; walden check looks for the cause",
            );
        }
    }

    /// Whether archiving is on, and is ours.
    fn settings(&mut self, server: &ServerSeen) {
        const SET: &str = "walden init prints the lines for postgresql.conf; then walden check";
        if server.mode == ArchiveMode::Off {
            self.concern(
                "archive_mode is off: nothing is archived",
                "walden init prints the lines for postgresql.conf; then restart the server, and walden check",
            );
        } else if !server.library.is_empty() {
            let what = format!("archive_library = '{}' archives in place of archive_command", plain(&server.library));
            self.concern(what, format!("set archive_library = ''; {SET}"));
        } else if server.command.is_empty() {
            self.concern("archive_command is empty: segments wait in pg_wal until the disk is full", SET);
        } else if archive_command::is_idle(&server.command) {
            let shown = plain(&archive_command::shown(&server.command));
            self.concern(format!("archive_command is {shown}: PostgreSQL removes WAL that is stored nowhere"), SET);
        } else if !archive_command::is_ours(&server.command) {
            let shown = plain(&archive_command::shown(&server.command));
            self.notes.push(format!("archive_command is {shown}, which does not name walden-archive"));
        }
    }

    /// Whether what PostgreSQL was told is archived has arrived.
    fn arrival(&mut self, seen: &Seen<'_>) {
        if seen.unreachable.is_some() {
            return;
        }
        let missing = lag::not_arrived(seen, &seen.written());
        self.not_arrived = Some(NotArrived {
            segments: missing.len(),
            first: missing.first().copied(),
            last: missing.last().copied(),
        });
        // What lies before the newest usable backup is a gap in the past; what lies behind it is being lost now.
        let newest = seen.systems.last().and_then(|system| {
            let usable = system.backups().into_iter().rfind(|backup| backup.broken.is_none())?;
            Some(SegmentName::holding(usable.timeline, usable.start_lsn, system.system.segment_size))
        });
        let (past, now): (Vec<_>, Vec<_>) = missing.into_iter().partition(|name| newest.is_some_and(|n| *name < n));
        let told = |names: &[SegmentName]| match names {
            [] => None,
            [one] => Some(format!("PostgreSQL holds for archived {one}, but it is not in the repository")),
            [first, .., last] => Some(format!(
                "PostgreSQL holds for archived {} segments, {first} to {last}, but they are not in the repository",
                names.len()
            )),
        };
        if let Some(what) = told(&past) {
            self.notes.push(format!("{what}; what still lies in pg_wal can be archived by hand: walden wal push"));
        }
        if let Some(what) = told(&now) {
            self.concern(
                what,
                "archive_command answers 0 without archiving, or archives to another place: walden check. Archive by hand what still lies in pg_wal: walden wal push; then take a backup: walden backup",
            );
        }
    }

    fn slots(&mut self, server: &ServerSeen) {
        let held = |slot: &Slot| HeldBack {
            slot: slot.name.clone(),
            active: slot.active,
            status: slot.status.clone(),
            bytes: slot.from.map(|from| server.lsn.since(from)),
        };
        let slots: Vec<HeldBack> = server.slots.iter().map(held).collect();
        for HeldBack { slot, active, status, bytes } in &slots {
            let name = plain(slot);
            let who = if *active { "" } else { ", by which nobody receives," };
            let mend =
                format!("let its receiver catch up; or if nobody needs it: select pg_drop_replication_slot('{name}')");
            match (status.as_str(), bytes) {
                ("lost", _) => self.concern(format!("the WAL that replication slot {name} needs is gone"), mend),
                ("extended" | "unreserved", Some(bytes)) if !active || status == "unreserved" => self.concern(
                    format!("replication slot {name}{who} holds back {} of WAL in pg_wal", human::size(*bytes)),
                    mend,
                ),
                ("extended", Some(bytes)) => self
                    .notes
                    .push(format!("replication slot {name} holds back {} of WAL in pg_wal", human::size(*bytes))),
                _ => {}
            }
        }
        self.slots = Some(slots);
    }

    /// Whether the disk of `pg_wal` is about to be full. While archiving works, PostgreSQL removes segments.
    fn room(&mut self, grows: bool) {
        let (free, full) = (self.lag.pg_wal_free_bytes, self.lag.pg_wal_full_seconds);
        let soon = full.filter(|full| grows && *full < SOON.as_secs_f64());
        let mend = "make room there, or mend archiving; when it is full, PostgreSQL stops. The last resort, which ends what can be recovered until the next backup: walden wal suspend";
        match (free, soon) {
            (Some(free), Some(full)) => {
                let full = human::duration(Duration::from_secs_f64(full));
                self.concern(
                    format!("pg_wal's file system has {} free: at this rate it is full in {full}", human::size(free)),
                    mend,
                );
            }
            (Some(free), None) if free < LITTLE => {
                self.concern(format!("pg_wal's file system has only {} free", human::size(free)), mend);
            }
            _ => {}
        }
    }
}
