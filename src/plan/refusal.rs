//! Why a target cannot be reached, and what can: the words of exit code 3.

use std::time::Duration;

use chrono::TimeDelta;

use super::{
    drops::Missed,
    name,
    path::{self, Run},
    resolve::Planner,
    search::{Edge, Found, Gap, Reach},
    survey::{Moment, Stop},
    target::Point,
};
use crate::{
    error::Error,
    human,
    postgres::{Lsn, SegmentName, TimelineHistory},
    repository::{BackupDocument, GapNote},
};

impl Planner<'_> {
    pub(super) fn no_backup(&self, history: &TimelineHistory) -> Error {
        Error::not_found(match self.request.backup {
            Some(id) => format!("backup {id} does not lie on the way to timeline {}", history.timeline),
            None => format!("no backup lies on the way to timeline {}", history.timeline),
        })
        .hint("walden list shows the backups and their timelines")
    }

    pub(super) fn broken(&self, backup: &BackupDocument, runs: &[Run]) -> Error {
        let size = self.system.document.segment_size;
        let first = size.number_of(backup.start_lsn);
        let missing = runs.iter().find(|r| r.holds(first)).map_or(first, Run::whole_end);
        let name = SegmentName::from_number(backup.timeline, missing, size).map_or_else(String::new, |n| n.to_string());
        Error::not_found(format!("backup {} cannot be used: segment {name}, which it needs, is missing", backup.id))
            .hint("bring the segment back from another copy, or use another backup: walden list")
    }

    pub(super) fn ambiguous<'f>(&self, found: impl Iterator<Item = &'f Found>) -> Error {
        let one = |f: &Found| {
            let last = f.seen.last_commit.as_ref().map_or_else(String::new, |commit| {
                format!(" (last transaction in: {}, committed {})", number(commit), human::exact_time(commit.time))
            });
            format!("timeline {} at {}{last}", f.history.timeline, f.stop.map_or(f.backup.stop_lsn, |s| s.lsn))
        };
        let list: Vec<String> = found.map(one).collect();
        Error::ambiguous(format!("{} lies on several timelines: {}", self.request.target, list.join(", ")))
            .hint("say which one: --timeline N")
    }

    pub(super) fn several(&self, matches: &[Moment]) -> Error {
        let list: Vec<String> = matches.iter().map(|m| format!("{} ({})", m.lsn, human::exact_time(m.time))).collect();
        let choice = if self.request.target.before { "before:" } else { "" };
        Error::ambiguous(format!("{} is in the log {} times: {}", self.request.target, matches.len(), list.join(", ")))
            .hint(format!(
                "say which by its LSN, for instance --to {choice}{}",
                matches.first().map_or(Lsn::INVALID, |m| m.lsn)
            ))
    }

    /// A time that comes again, because the clock went back: `stop` is where replay from the earliest backup stops, where
    /// that means the time.
    pub(super) fn readings(&self, stop: Option<Stop>, earliest: Edge, others: &[(&BackupDocument, Stop)]) -> Error {
        let target = &self.request.target;
        let again = others.iter().map(|(backup, stop)| format!("{} in replay from backup {}", stop.lsn, backup.id));
        let first = stop.map(|stop| format!("{} in replay from an earlier backup", stop.lsn));
        let list: Vec<String> = first.into_iter().chain(again).collect();
        let said = match (stop, list.as_slice()) {
            (None, [only]) => format!(
                "{target} lies before the first usable backup was consistent ({}); but the server's clock went back, and it comes again: {only}",
                earliest.lsn
            ),
            _ => format!(
                "{target} means {} places, because the server's clock went back: {}",
                list.len(),
                list.join(", ")
            ),
        };
        let choices: Vec<String> =
            stop.iter().chain(others.iter().map(|(_, stop)| stop)).map(|s| format!("--to before:{}", s.lsn)).collect();
        Error::ambiguous(said).hint(format!("choose by LSN: {}", choices.join(" or ")))
    }

    pub(super) fn too_early(&self, earliest: Edge) -> Error {
        let what = match self.request.backup {
            Some(id) => format!("backup {id} was consistent"),
            None => "the first usable backup was consistent".into(),
        };
        Error::not_found(format!(
            "{} lies before {what} ({}, {})",
            self.request.target,
            earliest.lsn,
            human::time(earliest.time)
        ))
        .hint(format!("the earliest instant that can be reached is {}", instant(earliest)))
    }

    /// Between two windows of one row of segments, in which nothing is missing.
    pub(super) fn between(&self, before: &Reach, after: Edge) -> Error {
        let why = before.why.as_deref().unwrap_or("the log breaks there");
        Error::not_found(format!(
            "{} lies where the archive cannot be recovered: {why}; {}",
            self.request.target,
            self.last_commit(before)
        ))
        .hint(nearest(before, after))
    }

    /// Behind everything in a window; `gap` is what is missing behind it.
    pub(super) fn too_late(&self, reach: &Reach, gap: Option<Gap>, history: &TimelineHistory) -> Error {
        let target = &self.request.target;
        let last_commit = self.last_commit(reach);
        let ordered = matches!(target.point, Point::Time(_) | Point::Lsn(_));
        if let (Some(why), true) = (&reach.why, ordered || gap.is_none()) {
            return Error::not_found(format!("{target} cannot be reached: {why}; {last_commit}"))
                .hint(format!("the latest instant before that is --to {}", reach.end));
        }
        if let (Some(gap), true) = (gap, ordered) {
            let (missing, why) = (self.missing(gap, history), self.why_missing(gap, history));
            let refused = Error::not_found(format!(
                "{target} lies in a gap of the archive: {missing} missing{why}; {last_commit}"
            ));
            return match gap.after {
                Some(after) => refused.hint(nearest(reach, after)),
                None => refused.hint(format!(
                    "the latest instant before the gap is --to {}; nothing behind it can be recovered, because no backup was taken there",
                    reach.end
                )),
            };
        }
        let missing = match &target.point {
            Point::Time(time) => match reach.last.as_ref().map(|m| *time - m.time) {
                Some(over) => format!("{target} is {} after everything in the archive", length(over)),
                None => format!("{target} is after everything in the archive"),
            },
            Point::Xid(xid) => format!("transaction {xid} did not end within the archive"),
            Point::Name(name) => format!("there is no restore point \"{name}\" in the archive"),
            _ => format!("{target} is after the end of the archive ({})", reach.end),
        };
        let gap = gap.map_or_else(
            || self.why_no_more(reach.end),
            |gap| {
                let (missing, why) = (self.missing(gap, history), self.why_missing(gap, history));
                format!(", as far as that reaches: behind it {missing} missing{why}")
            },
        );
        Error::not_found(format!("{missing}{gap}; {last_commit}"))
            .hint("everything there is: --to latest; if the server still runs: select pg_switch_wal(), and plan again")
    }

    /// No such drop in any window on the way to a timeline.
    pub(super) fn no_drop(&self, missed: &Missed, history: &TimelineHistory, gaps: usize) -> Error {
        let what = match &self.request.target.point {
            Point::DropDatabase(name) => format!("no drop of the database {}", name::quoted(name)),
            point => format!("no {point}").replacen("drop:", "drop of ", 1),
        };
        let gaps = match gaps {
            0 => "",
            1 => ", but for a gap of the archive",
            _ => ", but for gaps of the archive",
        };
        let until = missed.until.map_or_else(String::new, |time| format!(" ({})", human::exact_time(time)));
        let refused = Error::not_found(format!(
            "{what} is in the archive: the way to timeline {} was searched from {} ({}) to {}{until}{gaps}",
            history.timeline,
            missed.from,
            human::time(missed.since),
            missed.to
        ));
        let dropped = missed.dropped.iter().map(|(name, time)| {
            let time = time.map_or_else(String::new, |time| format!(" ({})", human::exact_time(time)));
            format!("{name}{time}")
        });
        let mut hints = Vec::new();
        for (said, names) in [
            ("dropped or truncated was", dropped.collect::<Vec<_>>()),
            ("known, and neither dropped nor truncated, is", missed.known.clone()),
        ] {
            if !names.is_empty() {
                hints.push(format!("{said} {}", names.join(", ")));
            }
        }
        hints.push("all that was dropped: walden find --kind drop,truncate,drop-database".into());
        refused.hint(hints.join("; "))
    }

    /// What `latest` leaves behind a gap.
    pub(super) fn lost_behind(&self, gap: Gap, history: &TimelineHistory) -> String {
        format!(
            "the archive goes on behind a gap ({} missing{}), but no backup was taken there: nothing behind the gap can be recovered; take a backup",
            self.missing(gap, history),
            self.why_missing(gap, history)
        )
    }

    fn missing(&self, gap: Gap, history: &TimelineHistory) -> String {
        let size = self.system.document.segment_size;
        let name = |number| path::segment_on(history, number, size).map_or_else(String::new, |n| n.to_string());
        match gap.last - gap.first {
            0 => format!("{} is", name(gap.first)),
            more => format!("{} segments, {} to {}, are", more + 1, name(gap.first), name(gap.last)),
        }
    }

    /// Why they are missing, where a person let them go.
    fn why_missing(&self, gap: Gap, history: &TimelineHistory) -> String {
        let name = |number| path::segment_on(history, number, self.system.document.segment_size);
        let let_go = |note: &&GapNote| (gap.first..=gap.last).filter_map(name).any(|name| note.holds(name));
        let note = self.suspensions.iter().find(let_go);
        note.map(|note| format!(": {}", note.suspended)).unwrap_or_default()
    }

    /// That what comes after the end of the archive was let go.
    fn why_no_more(&self, end: Lsn) -> String {
        let size = self.system.document.segment_size;
        let behind = |note: &&GapNote| {
            let mut missing = note.missing.iter().filter_map(|row| row.first.start(size).ok());
            note.suspended.resumed.is_none() || missing.any(|start| start.0 + size.bytes() > end.0)
        };
        let note = self.suspensions.iter().rfind(behind);
        note.map(|note| format!("; {}", note.suspended)).unwrap_or_default()
    }

    fn last_commit(&self, reach: &Reach) -> String {
        match &reach.last {
            Some(last) => format!(
                "the last commit before that is transaction {} at {}, {} ago",
                number(last),
                human::exact_time(last.time),
                length(self.request.now - last.time)
            ),
            None => "no commit is in the archive after the backup".into(),
        }
    }
}

fn number(moment: &Moment) -> u32 {
    moment.xid.unwrap_or_default()
}

fn instant(edge: Edge) -> String {
    format!("--to {} ({})", edge.lsn, human::time(edge.time))
}

fn nearest(before: &Reach, after: Edge) -> String {
    let time = before.last.as_ref().map_or_else(String::new, |m| format!(" ({})", human::exact_time(m.time)));
    format!(
        "the nearest instants that can be reached are --to {}{time} before the gap and {} after it",
        before.end,
        instant(after)
    )
}

/// A length of time; none is negative.
fn length(delta: TimeDelta) -> String {
    human::duration(delta.to_std().unwrap_or(Duration::ZERO))
}
