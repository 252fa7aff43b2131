//! From a target to an exact stop: along each timeline's path, in each unbroken window of it.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};

use super::{
    Plan, chain,
    drops::{self, Window},
    path::{self, Run},
    scan::{self, Walked},
    survey::{Moment, Seen, Stop, Survey},
    target::{Point, Target},
};
use crate::{
    error::{Error, Kind, Result},
    interrupt::Interrupt,
    postgres::{Lsn, SegmentName, TimelineHistory, TimelineId},
    progress::Progress,
    repository::{BackupDocument, BackupId, System},
    wal::StopRule,
};

/// What is wished, and what of the choice was made by a person.
#[derive(Clone, Debug)]
pub struct PlanRequest {
    /// The target.
    pub target: Target,
    /// This backup and no other.
    pub backup: Option<BackupId>,
    /// This timeline and no other.
    pub timeline: Option<TimelineId>,
}

/// Who watches, and who may ask to stop.
#[derive(Clone, Debug)]
pub struct Watch {
    /// Who watches.
    pub progress: Arc<dyn Progress>,
    /// Who may ask to stop.
    pub interrupt: Interrupt,
}

/// Makes a plan from the systems of a cluster, the newest of which comes last. An error of kind `NotFound` says why
/// the target cannot be reached, and what can.
pub async fn plan(systems: &[System], request: &PlanRequest, watch: &Watch) -> Result<Plan> {
    let mut first_error = None;
    for system in systems.iter().rev() {
        let backups = system.backups().await?;
        let wanted = |b: &BackupDocument| request.backup.is_none_or(|id| b.id == id);
        if !backups.iter().any(wanted) {
            continue;
        }
        let planner = Planner { system, request, watch, backups };
        match planner.plan().await {
            Err(error) if error.kind() == Kind::NotFound => first_error = first_error.or(Some(error)),
            done => return done,
        }
    }
    Err(first_error.unwrap_or_else(|| match request.backup {
        Some(id) => Error::not_found(format!("there is no backup {id}")).hint("walden list shows the backups"),
        None => Error::not_found("there is no backup yet").hint("take one: walden backup"),
    }))
}

pub(super) struct Planner<'a> {
    pub(super) system: &'a System,
    pub(super) request: &'a PlanRequest,
    watch: &'a Watch,
    backups: Vec<BackupDocument>,
}

/// Where a target lies on one path.
pub(super) struct Found {
    pub(super) history: TimelineHistory,
    run: Run,
    pub(super) backup: BackupDocument,
    seen: Seen,
    pub(super) stop: Option<Stop>,
    warnings: Vec<String>,
    /// Segments that were read through, by number: from, and to (not included).
    read: (u64, u64),
}

/// Why a window does not hold a target.
enum Miss {
    /// The target lies before the window's first backup was consistent.
    Before { earliest: Lsn, time: Option<DateTime<Utc>> },
    /// The target lies after everything in the window.
    After { last: Option<Moment>, end: Lsn, why: Option<String> },
}

impl Planner<'_> {
    async fn plan(&self) -> Result<Plan> {
        let histories = self.histories().await?;
        let (Some(main), others) = (histories.first(), histories.get(1..).unwrap_or_default()) else {
            return Err(Error::not_found("the repository holds no timeline of this system"));
        };
        if self.request.target.point == Point::Immediate {
            return self.immediate(&histories).await;
        }
        let found = self.on_path(main, None).await;
        let mut branches = self.elsewhere(main, found.as_ref().ok(), others).await?;
        if self.request.target.point == Point::Latest {
            let mut found = found?;
            found.warnings.extend(branches.iter().map(|b| {
                format!(
                    "timeline {} goes on beside timeline {}; give --timeline {} to follow it",
                    b.history.timeline, main.timeline, b.history.timeline
                )
            }));
            return self.finish(found).await;
        }
        match found {
            Ok(found) if branches.is_empty() => self.finish(found).await,
            Err(error) if error.kind() == Kind::NotFound => match branches.pop() {
                Some(only) if branches.is_empty() => self.finish(only).await,
                Some(last) => Err(self.ambiguous(branches.iter().chain([&last]))),
                None => Err(error),
            },
            Ok(found) => Err(self.ambiguous([&found].into_iter().chain(&branches))),
            Err(error) => Err(error),
        }
    }

    /// The histories of the timelines that come into question, the newest first.
    async fn histories(&self) -> Result<Vec<TimelineHistory>> {
        let mut timelines = match self.request.timeline {
            Some(timeline) => vec![timeline],
            None => self.system.timelines().await?,
        };
        timelines.sort();
        let mut histories = Vec::new();
        for timeline in timelines.into_iter().rev() {
            match self.system.history(timeline).await {
                Ok(history) => histories.push(history),
                Err(error) if error.kind() == Kind::NotFound && self.request.timeline.is_none() => {
                    tracing::warn!("timeline {timeline} has WAL but no history file; it is left out");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(histories)
    }

    fn candidates(&self, history: &TimelineHistory) -> Vec<&BackupDocument> {
        let wanted = |b: &&BackupDocument| self.request.backup.is_none_or(|id| b.id == id) && path::lies_on(b, history);
        let mut candidates: Vec<_> = self.backups.iter().filter(wanted).collect();
        candidates.sort_by_key(|b| b.start_lsn);
        candidates
    }

    async fn immediate(&self, histories: &[TimelineHistory]) -> Result<Plan> {
        let newest = histories
            .iter()
            .flat_map(|h| self.candidates(h).into_iter().map(move |b| (h, b)))
            .filter(|(h, b)| self.request.timeline.is_some() || b.timeline == h.timeline)
            .max_by_key(|(_, b)| b.id);
        let Some((history, backup)) = newest else {
            return Err(Error::not_found("no backup lies on that timeline").hint("walden list shows the backups"));
        };
        let size = self.system.document.segment_size;
        let runs = path::runs(self.system, history, size.number_of(backup.start_lsn)).await?;
        let run = self.run_of(&runs, backup).ok_or_else(|| self.broken(backup, &runs))?;
        let seen = Seen::default();
        let found = Found {
            history: history.clone(),
            run: run.clone(),
            backup: backup.clone(),
            seen,
            stop: None,
            warnings: Vec::new(),
            read: (0, 0),
        };
        self.finish(found).await
    }

    /// The run that holds everything the backup itself needs.
    fn run_of<'r>(&self, runs: &'r [Run], backup: &BackupDocument) -> Option<&'r Run> {
        let size = self.system.document.segment_size;
        let (first, last) = (size.number_of(backup.start_lsn), backup.last_segment.number(size).ok()?);
        runs.iter().find(|run| run.holds(first) && run.holds(last))
    }

    /// Looks for the target on one path; with `from`, in what lies at or after that LSN alone.
    async fn on_path(&self, history: &TimelineHistory, from: Option<Lsn>) -> Result<Found> {
        let size = self.system.document.segment_size;
        let candidates = self.candidates(history);
        let Some(first) = candidates.first() else {
            return Err(Error::not_found(match self.request.backup {
                Some(id) => format!("backup {id} does not lie on the way to timeline {}", history.timeline),
                None => format!("no backup lies on the way to timeline {}", history.timeline),
            })
            .hint("walden list shows the backups and their timelines"));
        };
        let runs = path::runs(self.system, history, size.number_of(first.start_lsn)).await?;
        let mut later: Option<(Lsn, SegmentName)> = None;
        for run in runs.iter().rev() {
            let mut usable: Vec<_> =
                candidates.iter().copied().filter(|b| self.run_of(std::slice::from_ref(run), b).is_some()).collect();
            while !usable.is_empty() {
                match self.in_window(history, run, &usable, from).await? {
                    Ok(found) => return Ok(found),
                    Err(Miss::Before { earliest, time }) => {
                        let missing = run.first.checked_sub(1).and_then(|n| path::segment_on(history, n, size));
                        if run.first > runs.first().map_or(0, |r| r.first)
                            && let Some(missing) = missing
                        {
                            later = Some((earliest, missing));
                            break;
                        }
                        return Err(self.too_early(earliest, time));
                    }
                    Err(Miss::After { last, end, why }) => {
                        // What began after the place where this window ended is a window of its own.
                        let rest: Vec<_> = usable.iter().copied().filter(|b| b.start_lsn >= end).collect();
                        if rest.is_empty() || rest.len() == usable.len() {
                            return Err(self.too_late(last.as_ref(), end, why, later, run, history));
                        }
                        usable = rest;
                    }
                }
            }
        }
        Err(self.broken(first, &runs))
    }

    /// Looks for the target in one unbroken row of segments, from its first usable backup on.
    async fn in_window(
        &self,
        history: &TimelineHistory,
        run: &Run,
        usable: &[&BackupDocument],
        from: Option<Lsn>,
    ) -> Result<Result<Found, Miss>> {
        let size = self.system.document.segment_size;
        let point = &self.request.target.point;
        let (Some(&oldest), Some(&newest)) = (usable.first(), usable.last()) else {
            return Err(Error::internal("a window without a backup"));
        };
        let start = match point {
            Point::Lsn(lsn) => match usable.iter().rev().find(|b| b.stop_lsn <= *lsn) {
                Some(backup) => backup,
                None => return Ok(Err(Miss::Before { earliest: oldest.stop_lsn, time: Some(oldest.stopped) })),
            },
            Point::Latest => newest,
            _ => oldest,
        };
        let begin = from.map_or(start.start_lsn, |from| from.max(start.start_lsn));
        let first = size.number_of(begin);
        if first >= run.end() {
            return Ok(Err(Miss::After { last: None, end: Lsn(run.end() * size.bytes()), why: None }));
        }
        let rule = match self.request.target.rule() {
            Some(rule) => rule,
            None => {
                let window = Window { system: self.system, history, run, usable, begin, watch: self.watch };
                match drops::resolve(window, point).await? {
                    Some(lsn) => StopRule::Lsn { lsn, inclusive: false },
                    None => {
                        let end = Lsn(run.end() * size.bytes());
                        return Ok(Err(Miss::After { last: None, end, why: None }));
                    }
                }
            }
        };
        let (seen, walked) = self.walk(run, rule, first, begin).await?;
        let stop = match self.stop(&seen, &walked) {
            Some(stop) => stop,
            None => return Ok(Err(self.after(&seen, &walked))),
        };
        if seen.matches.len() > 1 {
            return Err(self.several(&seen.matches));
        }
        let Some(&backup) =
            usable.iter().rev().find(|b| b.stop_lsn <= stop.lsn && (from.is_some() || b.start_lsn >= begin))
        else {
            return Ok(Err(Miss::Before { earliest: oldest.stop_lsn, time: Some(oldest.stopped) }));
        };
        if let Point::Time(wanted) = point
            && !seen.reached_time
            && from.is_none()
            && seen.checkpoints.get(&backup.checkpoint_lsn).is_none_or(|at| *at + TimeDelta::seconds(1) > *wanted)
        {
            return Ok(Err(Miss::Before { earliest: backup.stop_lsn, time: Some(backup.stopped) }));
        }
        if let Point::Time(_) = point
            && from.is_none()
        {
            self.other_readings(run, usable, &stop).await?;
        }
        let read = (first, size.number_of(Lsn(walked.proven.0.saturating_sub(1))) + 1);
        let run = run.clone();
        Ok(Ok(Found {
            history: history.clone(),
            run,
            backup: backup.clone(),
            seen,
            stop: Some(stop),
            warnings: Vec::new(),
            read,
        }))
    }

    async fn walk(&self, run: &Run, rule: StopRule, first: u64, begin: Lsn) -> Result<(Seen, Walked)> {
        let skip = usize::try_from(first.saturating_sub(run.first)).unwrap_or(usize::MAX);
        let segments: Vec<_> = run.segments.iter().skip(skip).map(|(name, _)| *name).collect();
        let total = segments.len() as u64 * self.system.document.segment_size.bytes();
        self.watch.progress.start("reading the WAL", Some(total));
        let walked = scan::walk(
            self.system,
            segments,
            self.watch.progress.clone(),
            self.watch.interrupt.clone(),
            Survey::new(rule, begin),
            |survey: &mut Survey, record| survey.see(record),
        )
        .await;
        self.watch.progress.finish();
        walked.map(|(survey, walked)| (survey.finish(), walked))
    }

    /// The stop that was found; at the end of the archive the last record, where that is what is wished.
    fn stop(&self, seen: &Seen, walked: &Walked) -> Option<Stop> {
        let last = seen.last_record.map(|(lsn, end)| Stop { lsn, inclusive: true, end });
        match self.request.target.point {
            Point::Latest => last,
            Point::Lsn(lsn) => seen.stop.or_else(|| last.filter(|_| lsn <= walked.proven && seen.minimal.is_none())),
            _ => seen.stop,
        }
    }

    fn after(&self, seen: &Seen, walked: &Walked) -> Miss {
        use crate::wal::End;
        let why = match (&seen.minimal, &walked.end) {
            (Some(at), _) => Some(format!("at {at} the server was started with wal_level = minimal")),
            (None, Some(End::Garbage { at, why })) => Some(format!("the WAL cannot be read at {at}: {why}")),
            _ => None,
        };
        Miss::After { last: seen.last_commit.clone(), end: seen.minimal.unwrap_or(walked.proven), why }
    }

    /// Times in the log can go back. Another backup whose replay would stop elsewhere, having passed the wanted
    /// time, makes the target mean two things.
    async fn other_readings(&self, run: &Run, usable: &[&BackupDocument], stop: &Stop) -> Result<()> {
        let size = self.system.document.segment_size;
        for backup in usable.iter().filter(|b| b.start_lsn > stop.lsn) {
            let Some(rule) = self.request.target.rule() else { continue };
            let (seen, _) = self.walk(run, rule, size.number_of(backup.start_lsn), backup.start_lsn).await?;
            if let Some(other) = seen.stop.filter(|s| s.lsn >= backup.stop_lsn && seen.reached_time) {
                return Err(Error::not_found(format!(
                    "{} means two places, because the server's clock went back: {} in replay from an earlier backup, {} in replay from backup {}",
                    self.request.target, stop.lsn, other.lsn, backup.id
                ))
                .hint(format!("choose one: --to before:{} or --to before:{}", stop.lsn, other.lsn)));
            }
        }
        Ok(())
    }

    /// Other timelines on which the target lies too, at another place than on `main`.
    async fn elsewhere(
        &self,
        main: &TimelineHistory,
        found: Option<&Found>,
        others: &[TimelineHistory],
    ) -> Result<Vec<Found>> {
        let size = self.system.document.segment_size;
        let mut branches: Vec<Found> = Vec::new();
        for other in others {
            let fork = fork(main, other);
            if found
                .and_then(|f| f.stop)
                .is_some_and(|stop| stop.lsn < fork && self.request.target.point != Point::Latest)
            {
                continue;
            }
            let own = SegmentName::holding(other.timeline, fork, size);
            let has_own = !self.system.segments(other.timeline, Some(own), None).await?.is_empty();
            if !has_own {
                continue;
            }
            match self.on_path(other, Some(fork)).await {
                Ok(branch) if branch.stop.is_some_and(|stop| stop.lsn >= fork && stop.end > fork) => {
                    branches.push(branch)
                }
                Ok(_) => {}
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(branches)
    }

    /// Proves what was not read, and writes the plan down.
    async fn finish(&self, found: Found) -> Result<Plan> {
        let size = self.system.document.segment_size;
        let Found { mut history, run, backup, seen, stop, mut warnings, read } = found;
        let first = size.number_of(backup.start_lsn);
        let consistent = backup.last_segment.number(size)?;
        let last = stop.map_or(consistent, |stop| size.number_of(Lsn(stop.end.0 - 1)).max(consistent));
        // The timeline on which the stop itself lies is enough, where its own segments are there: a promotion from it
        // then leaves a history that rises.
        if let Some(stop) = stop {
            let own = history.at(stop.lsn);
            if own != history.timeline
                && let Ok(shorter) = self.system.history(own).await
                && path::lies_on(&backup, &shorter)
                && path::segment_on(&shorter, last, size) == path::segment_on(&history, last, size)
            {
                history = shorter;
            }
        }
        let skip = usize::try_from(first - run.first).unwrap_or(usize::MAX);
        let count = usize::try_from(last + 1 - first).unwrap_or(usize::MAX);
        let segments: Vec<_> = run.segments.iter().skip(skip).take(count).copied().collect();
        let (Some((first_segment, _)), Some((last_segment, _))) = (segments.first(), segments.last()) else {
            return Err(self.broken(&backup, std::slice::from_ref(&run)));
        };
        if segments.len() < count {
            return Err(self.broken(&backup, std::slice::from_ref(&run)));
        }
        let unread: Vec<_> = segments
            .iter()
            .zip(first..)
            .filter(|(_, n)| !(read.0..read.1).contains(n))
            .map(|((name, _), _)| *name)
            .collect();
        chain::prove(self.system, &unread).await?;
        if !seen.prepared.is_empty() {
            warnings.push(format!(
                "{} prepared transactions are unfinished at the stop; finish them by COMMIT PREPARED or ROLLBACK PREPARED",
                seen.prepared.len()
            ));
        }
        if let (Point::Xid(xid), true) = (&self.request.target.point, self.request.target.before) {
            warnings.push(format!(
                "at the stop transaction {xid} is still under way: a table that it dropped, truncated or altered is locked, and can be read only after promotion (--then promote)"
            ));
        }
        if !backup.bad_pages.is_empty() {
            warnings.push(format!("backup {} has {} pages with wrong checksums", backup.id, backup.bad_pages.len()));
        }
        if let Some(moment) =
            seen.matches.first().filter(|m| m.aborted && matches!(self.request.target.point, Point::Xid(_)))
        {
            warnings.push(format!("transaction {} was rolled back", moment.xid.unwrap_or_default()));
        }
        let (first_segment, last_segment) = (*first_segment, *last_segment);
        Ok(Plan {
            cluster: self.system.folder.cluster.clone(),
            incarnation: self.system.folder.incarnation,
            target: self.request.target.clone(),
            timeline: history.timeline,
            stop,
            first_segment,
            last_segment,
            segments: segments.len() as u64,
            wal_bytes: segments.iter().map(|(_, length)| length).sum(),
            last_commit: seen.last_commit,
            first_left_out: seen.first_left_out,
            required: seen.required.map_or(backup.required, |r| r.at_least(backup.required)),
            created_tablespaces: seen.tablespaces.into_iter().filter(|t| t.lsn >= backup.start_lsn).collect(),
            prepared: seen.prepared,
            warnings,
            backup,
        })
    }
}

/// The first byte that the two histories do not share.
fn fork(a: &TimelineHistory, b: &TimelineHistory) -> Lsn {
    let left = |from: &TimelineHistory, ancestor| from.left(ancestor).ok().flatten();
    let shared = a.ancestors.iter().map(|e| e.timeline).chain([a.timeline]).take_while(|t| b.includes(*t)).last();
    match shared {
        Some(timeline) => match (left(a, timeline), left(b, timeline)) {
            (Some(x), Some(y)) => x.min(y),
            (Some(x), None) | (None, Some(x)) => x,
            (None, None) => Lsn(u64::MAX),
        },
        None => Lsn::INVALID,
    }
}
