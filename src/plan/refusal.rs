//! Why a target cannot be reached, and what can: the words of exit code 3.

use chrono::{DateTime, Utc};

use super::{
    path::{self, Run},
    resolve::{Found, Planner},
    survey::Moment,
    target::Point,
};
use crate::{
    error::Error,
    postgres::{Lsn, SegmentName, TimelineHistory},
    repository::BackupDocument,
};

impl Planner<'_> {
    pub(super) fn broken(&self, backup: &BackupDocument, runs: &[Run]) -> Error {
        let size = self.system.document.segment_size;
        let first = size.number_of(backup.start_lsn);
        let missing = runs.iter().find(|r| r.holds(first)).map_or(first, Run::end);
        let name = SegmentName::from_number(backup.timeline, missing, size).map_or_else(String::new, |n| n.to_string());
        Error::not_found(format!("backup {} cannot be used: segment {name}, which it needs, is missing", backup.id))
            .hint("bring the segment back from another copy, or use another backup: walden list")
    }

    pub(super) fn ambiguous<'f>(&self, found: impl Iterator<Item = &'f Found>) -> Error {
        let list: Vec<String> = found
            .map(|f| format!("timeline {} at {}", f.history.timeline, f.stop.map_or(f.backup.stop_lsn, |s| s.lsn)))
            .collect();
        Error::not_found(format!("{} lies on several timelines: {}", self.request.target, list.join(", ")))
            .hint("say which one: --timeline N")
    }

    pub(super) fn several(&self, matches: &[Moment]) -> Error {
        let list: Vec<String> =
            matches.iter().map(|m| format!("{} ({})", m.lsn, m.time.format("%Y-%m-%d %H:%M:%S%.6f UTC"))).collect();
        let choice = if self.request.target.before { "before:" } else { "" };
        Error::not_found(format!("{} is in the log {} times: {}", self.request.target, matches.len(), list.join(", ")))
            .hint(format!(
                "say which by its LSN, for instance --to {choice}{}",
                matches.first().map_or(Lsn::INVALID, |m| m.lsn)
            ))
    }

    pub(super) fn too_early(&self, earliest: Lsn, time: Option<DateTime<Utc>>) -> Error {
        let when = time.map_or_else(String::new, |t| format!(", {}", t.format("%Y-%m-%d %H:%M:%S UTC")));
        let what = match self.request.backup {
            Some(id) => format!("backup {id} was consistent"),
            None => "the first usable backup was consistent".into(),
        };
        Error::not_found(format!("{} lies before {what} ({earliest}{when})", self.request.target))
            .hint(format!("the earliest instant that can be reached is --to {earliest}"))
    }

    pub(super) fn too_late(
        &self,
        last: Option<&Moment>,
        end: Lsn,
        why: Option<String>,
        later: Option<(Lsn, SegmentName)>,
        run: &Run,
        history: &TimelineHistory,
    ) -> Error {
        let target = &self.request.target;
        let last_commit = last.map_or_else(
            || "no commit is in the archive after the backup".to_owned(),
            |m| {
                format!(
                    "the last commit before that is transaction {} at {}",
                    m.xid.unwrap_or_default(),
                    m.time.format("%Y-%m-%d %H:%M:%S%.6f UTC")
                )
            },
        );
        if let Some((earliest, _)) = later {
            let missing = path::segment_on(history, run.end(), self.system.document.segment_size);
            let missing = missing.map_or_else(String::new, |n| n.to_string());
            return Error::not_found(format!(
                "{target} lies in a gap of the archive: {missing} is missing; {last_commit}"
            ))
            .hint(format!(
                "the nearest instants that can be reached are --to {end} before the gap and --to {earliest} after it"
            ));
        }
        if let Some(why) = why {
            return Error::not_found(format!("{target} cannot be reached: {why}; {last_commit}"))
                .hint(format!("the latest instant before that is --to {end}"));
        }
        let missing = match &target.point {
            Point::Time(time) => match last.map(|m| *time - m.time) {
                Some(over) => {
                    format!("{target} is {} s after everything in the archive", over.num_milliseconds() as f64 / 1000.0)
                }
                None => format!("{target} is after everything in the archive"),
            },
            Point::Xid(xid) => format!("transaction {xid} did not end within the archive"),
            Point::Name(name) => format!("there is no restore point \"{name}\" in the archive"),
            Point::Drop(name) => format!("no drop of {name} is in the archive"),
            Point::DropDatabase(name) => format!("no drop of the database {name} is in the archive"),
            _ => format!("{target} is after the end of the archive ({end})"),
        };
        Error::not_found(format!("{missing}; {last_commit}"))
            .hint("everything there is: --to latest; if the server still runs: select pg_switch_wal(), and plan again")
    }
}
