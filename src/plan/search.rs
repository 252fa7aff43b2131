//! Looks for a target on one path of timelines: in each unbroken window of it, the newest first.

use std::ops::Range;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{
    drops::{self, Missed, Sought, Window},
    passing,
    path::{self, Run},
    resolve::Planner,
    scan::{self, Scanned},
    survey::{Moment, Seen, Stop, Survey},
    target::Point,
};
use crate::{
    error::{Error, Kind, Result},
    postgres::{Lsn, TimelineHistory},
    repository::{
        BackupDocument,
        summaries::{Fault, Need},
    },
    wal::{End, StopRule, Summary},
};

/// Backups whose beginnings are looked at at a time.
const PARALLEL: usize = 8;
/// Segments behind such a beginning in which a transaction's end is looked for: at first, and then.
const NEAR: [usize; 2] = [2, 64];

/// Where a target lies on one path.
pub(super) struct Found {
    pub(super) history: TimelineHistory,
    pub(super) run: Run,
    pub(super) backup: BackupDocument,
    pub(super) seen: Seen,
    pub(super) stop: Option<Stop>,
    pub(super) warnings: Vec<String>,
    /// What was seen begins here.
    pub(super) begin: Lsn,
    /// The numbers of the segments that are proven.
    pub(super) proven: Range<u64>,
}

/// Why a window does not hold a target.
pub(super) enum Miss {
    /// The target lies before the window's first backup was consistent.
    Before(Edge),
    /// The target lies after everything in the window.
    After(Reach),
    /// No such drop is in the window.
    NoDrop(Missed),
}

/// The earliest instant of a window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Edge {
    pub(super) lsn: Lsn,
    pub(super) time: DateTime<Utc>,
}

/// How far a window goes.
#[derive(Clone, Debug)]
pub(super) struct Reach {
    /// The last commit.
    pub(super) last: Option<Moment>,
    /// The end of the last record.
    pub(super) end: Lsn,
    /// Why it ends there, when it is not the end of what is archived.
    pub(super) why: Option<String>,
}

/// Segments that are missing, by number, and the first instant behind them that can be reached.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gap {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) after: Option<Edge>,
}

impl Edge {
    pub(super) fn of(backup: &BackupDocument) -> Self {
        Self { lsn: backup.stop_lsn, time: backup.stopped }
    }
}

/// A row of segments, and the backups in it that recovery can begin with, oldest first.
#[derive(Clone, Copy)]
struct Place<'a> {
    history: &'a TimelineHistory,
    run: &'a Run,
    usable: &'a [&'a BackupDocument],
    /// What lies before does not count.
    from: Option<Lsn>,
}

impl Planner<'_> {
    /// Looks for the target on one path; with `from`, in what lies at or after that LSN alone.
    pub(super) async fn on_path(&self, history: &TimelineHistory, from: Option<Lsn>) -> Result<Found> {
        let candidates = self.candidates(history);
        // The newest backup that may lead there is enough, nearly always: what lies before it need not be listed.
        let near = match self.request.target.point {
            Point::Lsn(lsn) => candidates.iter().rposition(|b| b.stop_lsn <= lsn),
            Point::Latest => candidates.len().checked_sub(1),
            _ => None,
        };
        if let Some(near) = near.filter(|near| *near > 0) {
            match self.on_runs(history, &candidates[near..], from).await {
                Err(error) if error.kind() == Kind::NotFound => {}
                found => return found,
            }
        }
        self.on_runs(history, &candidates, from).await
    }

    async fn on_runs(
        &self,
        history: &TimelineHistory,
        candidates: &[&BackupDocument],
        from: Option<Lsn>,
    ) -> Result<Found> {
        let size = self.system.document.segment_size;
        let Some(first) = candidates.first() else { return Err(self.no_backup(history)) };
        let runs = path::runs(self.system, history, size.number_of(first.start_lsn)).await?;
        let mut after: Option<Edge> = None;
        let mut refusal: Option<Error> = None;
        let mut missed: Option<Missed> = None;
        for (index, run) in runs.iter().enumerate().rev() {
            let gap = runs.get(index + 1).map(|next| Gap { first: run.whole_end(), last: next.first - 1, after });
            let usable: Vec<_> =
                candidates.iter().copied().filter(|b| self.run_of(std::slice::from_ref(run), b).is_some()).collect();
            if usable.is_empty() {
                continue;
            }
            match self.in_run(Place { history, run, usable: &usable, from }).await? {
                Ok(mut found) => {
                    if let (Point::Latest, Some(gap)) = (&self.request.target.point, gap) {
                        found.warnings.push(self.lost_behind(gap, history));
                    }
                    return Ok(found);
                }
                Err(Miss::Before(edge)) => after = Some(edge),
                Err(Miss::NoDrop(here)) => {
                    missed = Some(match missed {
                        Some(later) => later.with(here),
                        None => here,
                    });
                }
                // Idle since its backup, which tells the time as well.
                Err(Miss::After(reach)) if reach.last.is_none() && self.is_before(usable[0]) => {
                    after = Some(Edge::of(usable[0]));
                }
                Err(Miss::After(reach)) => {
                    refusal.get_or_insert_with(|| self.too_late(&reach, gap, history));
                    // Times and addresses rise from window to window; the others may lie in an older one.
                    if matches!(self.request.target.point, Point::Time(_) | Point::Lsn(_) | Point::Latest) {
                        break;
                    }
                }
            }
        }
        if let Some(missed) = missed {
            return Err(self.no_drop(&missed, history, runs.len() - 1));
        }
        Err(refusal.or(after.map(|edge| self.too_early(edge))).unwrap_or_else(|| self.broken(first, &runs)))
    }

    fn is_before(&self, backup: &BackupDocument) -> bool {
        matches!(self.request.target.point, Point::Time(wanted) if wanted < backup.started)
    }

    /// Looks in one unbroken row of segments. What begins after a place where its log breaks is a window of its own.
    async fn in_run(&self, mut place: Place<'_>) -> Result<Result<Found, Miss>> {
        let mut before: Option<Reach> = None;
        loop {
            match (self.in_window(place).await?, before) {
                (Err(Miss::After(reach)), _) => {
                    let whole = place.usable;
                    let behind = whole.partition_point(|b| b.start_lsn < reach.end);
                    if behind == 0 || behind == whole.len() {
                        return Ok(Err(Miss::After(reach)));
                    }
                    place.usable = &whole[behind..];
                    before = Some(reach).filter(|reach| whole[0].stop_lsn <= reach.end);
                }
                (Err(Miss::Before(edge)), Some(reach)) => return Err(self.between(&reach, edge)),
                (other, _) => return Ok(other),
            }
        }
    }

    /// Looks in one window, from its first usable backup on.
    async fn in_window(&self, place: Place<'_>) -> Result<Result<Found, Miss>> {
        let size = self.system.document.segment_size;
        let Place { history, run, usable, from } = place;
        let (Some(&oldest), Some(&newest)) = (usable.first(), usable.last()) else {
            return Err(Error::internal("a window without a backup"));
        };
        let behind = |start: &BackupDocument| from.map_or(start.start_lsn, |from| from.max(start.start_lsn));
        let is_beyond = |begin: Lsn| size.number_of(begin) >= run.end();
        let nothing = || Miss::After(Reach { last: None, end: Lsn(run.end() * size.bytes()), why: None });
        let rule = match self.request.target.rule() {
            Some(rule) => rule,
            None if is_beyond(behind(oldest)) => return Ok(Err(nothing())),
            None => {
                let window = Window { system: self.system, run, usable, begin: behind(oldest), watch: self.watch };
                match drops::resolve(window, &self.request.target.point).await? {
                    Sought::At(lsn) => StopRule::Lsn { lsn, inclusive: false },
                    Sought::Missed(missed) => return Ok(Err(Miss::NoDrop(missed))),
                }
            }
        };
        // Where the stop is known, what lies before the last backup that leads there is not looked at again.
        let start = match &rule {
            StopRule::Lsn { lsn, .. } => usable.iter().rev().find(|b| b.stop_lsn <= *lsn).copied(),
            StopRule::Latest => Some(newest),
            _ => Some(oldest),
        };
        let Some(start) = start else { return Ok(Err(Miss::Before(Edge::of(oldest)))) };
        let begin = behind(start);
        if is_beyond(begin) {
            return Ok(Err(nothing()));
        }
        let (begin, seen, scanned) = self.look(place, rule, begin).await?;
        let warnings = match self.request.target.point {
            Point::Latest => shortened(&seen, &scanned)?,
            _ => Vec::new(),
        };
        let Some(stop) = self.stop(&seen, &scanned) else {
            let before = self.precedes(place, &seen, oldest);
            return Ok(Err(if before { Miss::Before(Edge::of(oldest)) } else { Miss::After(after(&seen, &scanned)) }));
        };
        if seen.matches.len() > 1 {
            return Err(self.several(&seen.matches));
        }
        let backup = self.begins_with(place, begin, &seen, stop).cloned();
        if let (Point::Time(wanted), None) = (&self.request.target.point, from) {
            let others = self.other_readings(run, usable, stop, *wanted).await?;
            if !others.is_empty() {
                return Err(self.readings(backup.is_some().then_some(stop), Edge::of(oldest), &others));
            }
        }
        let Some(backup) = backup else { return Ok(Err(Miss::Before(Edge::of(oldest)))) };
        let first = size.number_of(begin);
        let proven = first..first + scanned.segments as u64;
        let (history, run) = (history.clone(), run.clone());
        Ok(Ok(Found { history, run, backup, seen, stop: Some(stop), warnings, begin, proven }))
    }

    /// What the log tells from `begin` on, or from a later backup on where that tells the same: from which of them on.
    async fn look(&self, place: Place<'_>, rule: StopRule, begin: Lsn) -> Result<(Lsn, Seen, Scanned)> {
        if let Point::Time(wanted) = self.request.target.point
            && let Some(later) = passing::newest(self.system, place.run, place.usable, begin, wanted).await?
        {
            let (seen, scanned) = self.look_from(place, rule.clone(), later.start_lsn).await?;
            if seen.last_commit.is_some() {
                return Ok((later.start_lsn, seen, scanned));
            }
            // Idle since then: what was passed over tells the last commit.
        }
        let (seen, scanned) = self.look_from(place, rule, begin).await?;
        Ok((begin, seen, scanned))
    }

    async fn look_from(&self, place: Place<'_>, rule: StopRule, begin: Lsn) -> Result<(Seen, Scanned)> {
        let segments = place.run.from(self.system.document.segment_size.number_of(begin));
        let survey = Survey::new(rule, begin, place.usable.iter().map(|b| b.checkpoint_lsn).collect());
        let (survey, scanned) = scan::scan(self.system, segments, survey, self.watch).await?;
        Ok((survey.finish(), scanned))
    }

    /// The stop that was found; at the end of the archive the last record, where that is what is wished.
    fn stop(&self, seen: &Seen, scanned: &Scanned) -> Option<Stop> {
        let last = seen.last_record.map(|(lsn, end)| Stop { lsn, inclusive: true, end });
        match self.request.target.point {
            Point::Latest => last,
            Point::Lsn(lsn) => seen.stop.or_else(|| last.filter(|_| lsn <= scanned.proven && seen.minimal.is_none())),
            // The time at which the window ends: all that is there is wanted.
            Point::Time(_) => seen.stop.or_else(|| last.filter(|_| seen.met_time)),
            _ => seen.stop,
        }
    }

    /// The newest backup that leads to the stop; none when the target lies before the first one that does.
    fn begins_with<'b>(&self, place: Place<'b>, begin: Lsn, seen: &Seen, stop: Stop) -> Option<&'b BackupDocument> {
        let leads =
            |b: &&BackupDocument| b.stop_lsn <= stop.replayed() && (place.from.is_some() || b.start_lsn >= begin);
        let mut leading = place.usable.iter().copied().filter(leads);
        if self.precedes(place, seen, leading.clone().next()?) {
            return None;
        }
        leading.next_back()
    }

    /// Whether a time lies before that backup, the first one. Where no transaction ended by then, its checkpoint tells, to
    /// the second.
    fn precedes(&self, place: Place<'_>, seen: &Seen, first: &BackupDocument) -> bool {
        let Point::Time(wanted) = self.request.target.point else { return false };
        let later = |checkpoint: &DateTime<Utc>| *checkpoint + TimeDelta::seconds(1) > wanted;
        place.from.is_none() && !seen.reached_time && seen.checkpoints.get(&first.checkpoint_lsn).is_none_or(later)
    }

    /// Times in the log can go back. Another backup whose replay would stop elsewhere, having passed the wanted
    /// time, makes the target mean two things.
    async fn other_readings<'b>(
        &self,
        run: &Run,
        usable: &[&'b BackupDocument],
        stop: Stop,
        wanted: DateTime<Utc>,
    ) -> Result<Vec<(&'b BackupDocument, Stop)>> {
        let later = usable.iter().copied().filter(|b| b.start_lsn > stop.lsn);
        let read = stream::iter(later.map(|backup| self.reads_otherwise(run, backup, wanted))).buffered(PARALLEL);
        let mut read = std::pin::pin!(read);
        let mut others: Vec<(&BackupDocument, Stop)> = Vec::new();
        while let Some(other) = read.try_next().await? {
            others.extend(other.filter(|(_, stop)| others.iter().all(|(_, known)| known != stop)));
        }
        Ok(others)
    }

    /// Where replay from that backup would stop, if it passes the wanted time before.
    async fn reads_otherwise<'b>(
        &self,
        run: &Run,
        backup: &'b BackupDocument,
        wanted: DateTime<Utc>,
    ) -> Result<Option<(&'b BackupDocument, Stop)>> {
        let segments = run.from(self.system.document.segment_size.number_of(backup.start_lsn));
        if self.is_past(segments, backup.start_lsn, wanted).await? {
            return Ok(None);
        }
        let Some(rule) = self.request.target.rule() else { return Ok(None) };
        let survey = Survey::new(rule, backup.start_lsn, Vec::new());
        let (survey, _) = scan::scan(self.system, segments, survey, self.watch).await?;
        let seen = survey.finish();
        Ok(seen.stop.filter(|s| s.replayed() >= backup.stop_lsn && seen.reached_time).map(|stop| (backup, stop)))
    }

    /// Whether the first commit or abort from `begin` on is certainly later than `wanted`, as it is unless the clock went
    /// back.
    async fn is_past(&self, segments: scan::Segments<'_>, begin: Lsn, wanted: DateTime<Utc>) -> Result<bool> {
        for count in NEAR {
            let near = segments.iter().take(count).copied().collect();
            let mut summaries = self.system.summaries(near, Need::Planning);
            while let Some(next) = scan::following(&mut summaries, &self.watch.interrupt).await? {
                match next.summary.times {
                    Some((least, _)) if least <= wanted => return Ok(false),
                    Some(_) if ends_after(&next.summary, begin) => return Ok(true),
                    _ => {}
                }
            }
        }
        Ok(false)
    }
}

/// What to say of a log that ends before what is archived. A damaged object is not passed over in silence: it may be
/// brought back.
fn shortened(seen: &Seen, scanned: &Scanned) -> Result<Vec<String>> {
    if let Some(segment) = scanned.fault.as_ref().filter(|s| matches!(s.fault, Some(Fault::Damaged { .. }))) {
        segment.sound()?;
    }
    let Reach { end, why, .. } = after(seen, scanned);
    let why = why.map(|why| format!("{why}; the plan ends there ({end}): nothing behind it can be recovered"));
    Ok(why.into_iter().collect())
}

/// Whether a transaction ended in the segment at or after `begin`, as far as the summary tells.
fn ends_after(summary: &Summary, begin: Lsn) -> bool {
    summary.first.is_some_and(|first| first >= begin) || summary.last_commit.as_ref().is_some_and(|c| c.lsn >= begin)
}

fn after(seen: &Seen, scanned: &Scanned) -> Reach {
    let fault = scanned.fault.as_ref().and_then(|segment| segment.sound().err());
    let why = match (&seen.minimal, fault, &scanned.end) {
        (Some(at), ..) => Some(format!("at {at} the server was started with wal_level = minimal")),
        (None, Some(fault), _) => Some(fault.to_string()),
        (None, None, Some(End::Garbage { at, why })) => Some(format!("the WAL cannot be read at {at}: {why}")),
        _ => scanned.short.clone(),
    };
    Reach { last: seen.last_commit.clone(), end: seen.minimal.unwrap_or(scanned.proven), why }
}
