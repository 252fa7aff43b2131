//! Draws the [`Timelines`] of a system from what was gathered of it.

use std::{collections::BTreeMap, ops::Range};

use chrono::{DateTime, DurationRound, TimeDelta, Utc};

use super::{
    BackupMark, Broken, Fork, Gap, Instant, Row, Timeline, Timelines, Window, WindowEnd,
    edges::{self, Break, Seen},
    gather::Gather,
    rows::{self, Run},
};
use crate::{
    error::{Kind, Result},
    plan::path::{lies_on, segment_on},
    postgres::{Lsn, SegmentName, TimelineHistory, TimelineId},
    progress::Unwatched,
    repository::BackupDocument,
    wal::Ended,
};

/// A part of a run that recovery can pass from end to end.
struct Stretch {
    from: Lsn,
    to: Lsn,
    stop: Option<Break>,
}

impl Gather<'_> {
    /// The timelines, as far as what was gathered tells.
    pub async fn put_together(&mut self) -> Result<Timelines> {
        let mut timelines: Vec<Timeline> = Vec::new();
        let mut breaks: BTreeMap<TimelineId, Vec<Break>> = BTreeMap::new();
        let mut gaps: BTreeMap<TimelineId, Vec<Gap>> = BTreeMap::new();
        for (timeline, history) in self.histories.clone() {
            let (segments, stored) = self.listing.count(timeline);
            let mut made = Timeline {
                timeline,
                live: false,
                fork: None,
                lost_history: history.as_ref().err().cloned(),
                segments,
                stored,
                rows: self.rows(timeline)?,
                gaps: Vec::new(),
                windows: Vec::new(),
                backups: Vec::new(),
            };
            if let Ok(history) = &history {
                let runs = self.listing.runs(history, self.size);
                made.fork = self.fork(history, &runs).await?;
                let mut here = self.breaks(history, &runs, &breaks);
                made.windows = self.windows(history, &runs, &mut here).await?;
                breaks.insert(timeline, here);
                for (on, gap) in self.gaps(history, &runs)? {
                    let known = gaps.entry(on).or_default();
                    if !known.iter().any(|g| g.first == gap.first) {
                        known.push(gap);
                    }
                }
            }
            made.backups = self.marks(timeline, &made.windows);
            timelines.push(made);
        }
        for timeline in &mut timelines {
            timeline.gaps = gaps.remove(&timeline.timeline).unwrap_or_default();
            timeline.gaps.sort_by_key(|g| g.first);
        }
        let unread = self.seen.values().find_map(|seen| seen.unread.clone());
        let mut timelines = Timelines {
            system: self.system.document.clone(),
            timelines,
            unreadable: Vec::new(),
            suspensions: Vec::new(),
            unread,
        };
        if let Some(live) = timelines.timelines.iter().max_by_key(|t| (last_sign(t), t.timeline)).map(|t| t.timeline) {
            timelines.set_live(live);
        }
        Ok(timelines)
    }

    fn rows(&self, timeline: TimelineId) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for row in self.listing.rows(timeline) {
            let name = |number| SegmentName::from_number(timeline, number, self.size);
            let (Some(first), Some(last)) = (name(row.start), name(row.end - 1)) else { continue };
            let seen = self.seen.get(&last).cloned().unwrap_or_default();
            rows.push(Row {
                first,
                last,
                segments: row.end - row.start,
                in_pieces: self.listing.is_in_pieces(timeline, row.end - 1),
                from: Instant { lsn: first.start(self.size)?, time: seen.first_time },
                to: Instant { lsn: seen.end.unwrap_or(last.start(self.size)?), time: seen.last_time },
            });
        }
        Ok(rows)
    }

    /// What the fork segment tells of the fork.
    async fn fork(&self, history: &TimelineHistory, runs: &[Run]) -> Result<Option<Fork>> {
        let Some(entry) = history.ancestors.last() else { return Ok(None) };
        let (switch, number) = (entry.switch, self.size.number_of(entry.switch));
        let mut told: (Option<DateTime<Utc>>, Option<DateTime<Utc>>) = (None, None);
        if let Some(run) = runs.iter().find(|r| r.holds(number)) {
            let segments = self.listing.segments(&run.within(number, number + 1));
            if let Some((name, _)) = segments.first() {
                told = edges::fork(self.system, *name, switch).await?;
            }
        }
        // Nothing was committed in that segment before the fork: some time earlier, then.
        let before = runs.iter().find(|r| number > 0 && r.holds(number - 1));
        if let (None, Some(run)) = (told.0, before) {
            told.0 = self.last_commit(run, run.first(), number).await?.map(|c| c.time);
        }
        let (left, promoted) = told;
        Ok(Some(Fork { parent: entry.timeline, lsn: switch, reason: entry.reason.clone(), left, promoted }))
    }

    /// The last commit in the segments of a run from number `first` on and before `end`.
    async fn last_commit(&self, run: &Run, first: u64, end: u64) -> Result<Option<Ended>> {
        match self.system.last_commit(&self.listing.segments(&run.within(first, end))).await {
            Err(error) if error.kind() == Kind::Refused => Ok(None),
            found => found,
        }
    }

    /// Where no recovery along the path passes: what holds for the parent up to the fork, and what was seen since.
    fn breaks(&self, history: &TimelineHistory, runs: &[Run], known: &BTreeMap<TimelineId, Vec<Break>>) -> Vec<Break> {
        let parent = history.ancestors.last();
        let mut breaks: Vec<Break> = parent
            .and_then(|entry| Some((entry.switch, known.get(&entry.timeline)?)))
            .map(|(switch, known)| known.iter().filter(|b| b.at < switch).cloned().collect())
            .unwrap_or_default();
        for (timeline, numbers) in runs.iter().flat_map(|run| &run.parts).filter(|(t, _)| *t == history.timeline) {
            let last = SegmentName::from_number(*timeline, numbers.end - 1, self.size);
            let seen = last.and_then(|last| self.seen.get(&last)).into_iter().flat_map(|seen| &seen.breaks);
            breaks.extend(seen.filter(|found| self.damage.is_break(found)).cloned());
            breaks.extend(self.known(*timeline, numbers));
        }
        breaks.sort_by_key(|b| b.at);
        breaks.dedup_by_key(|b| b.at);
        breaks
    }

    /// Segments of a row that are known to be damaged.
    fn known(&self, timeline: TimelineId, numbers: &Range<u64>) -> Vec<Break> {
        let known = self.damage.segments.iter().filter(|(name, _)| name.timeline == timeline);
        let broken = |(name, what): (&SegmentName, &String)| {
            let at = name.start(self.size).ok().filter(|at| numbers.contains(&self.size.number_of(*at)))?;
            let end = WindowEnd::Damaged { segment: *name, what: what.clone() };
            Some(Break { segment: *name, at, proven: at, end, last_commit: None })
        };
        known.filter_map(broken).collect()
    }

    async fn windows(
        &mut self,
        history: &TimelineHistory,
        runs: &[Run],
        breaks: &mut Vec<Break>,
    ) -> Result<Vec<Window>> {
        let mut windows = Vec::new();
        for (index, run) in runs.iter().enumerate() {
            let candidates: Vec<BackupDocument> =
                self.backups.iter().filter(|b| lies_on(b, history) && self.is_usable(run, b)).cloned().collect();
            if candidates.is_empty() {
                continue;
            }
            let seen = self.end_of(run).await?;
            breaks.extend(
                seen.breaks
                    .iter()
                    .filter(|b| self.damage.is_break(b) && !breaks.iter().any(|k| k.at == b.at))
                    .cloned()
                    .collect::<Vec<_>>(),
            );
            breaks.sort_by_key(|b| b.at);
            for stretch in self.stretches(run, breaks) {
                let mut usable: Vec<&BackupDocument> =
                    candidates.iter().filter(|b| b.start_lsn >= stretch.from && b.stop_lsn <= stretch.to).collect();
                usable.sort_by_key(|b| b.start_lsn);
                if !usable.is_empty() {
                    let next = runs.get(index + 1).and_then(|_| segment_on(history, run.whole_end(), self.size));
                    windows.extend(self.window(run, &stretch, &usable, &seen, next).await?);
                }
            }
        }
        Ok(windows)
    }

    fn is_usable(&self, run: &Run, backup: &BackupDocument) -> bool {
        !self.damage.backups.contains_key(&backup.id) && self.is_whole(run, backup)
    }

    /// Whether a run has everything that the backup itself needs.
    fn is_whole(&self, run: &Run, backup: &BackupDocument) -> bool {
        let last = backup.last_segment.number(self.size);
        let holds = |number| run.holds(number) && number < run.whole_end();
        holds(self.size.number_of(backup.start_lsn)) && last.is_ok_and(holds)
    }

    /// What was seen of the end of a run; where a path leaves a row before its end, that is looked at now.
    async fn end_of(&mut self, run: &Run) -> Result<Seen> {
        let segments = self.listing.segments(&run.within(run.end().saturating_sub(2), run.end()));
        let Some((last, _)) = segments.last() else { return Ok(Seen::default()) };
        if let Some(seen) = self.seen.get(last) {
            return Ok(seen.clone());
        }
        let seen = edges::ends(self.system, &segments, &Unwatched, &self.watch.interrupt).await?;
        self.seen.insert(*last, seen.clone());
        Ok(seen)
    }

    fn stretches(&self, run: &Run, breaks: &[Break]) -> Vec<Stretch> {
        let end = Lsn(run.end() * self.size.bytes());
        let start = Lsn(run.first() * self.size.bytes());
        let (mut from, mut stretches) = (start, Vec::new());
        for stop in breaks.iter().filter(|b| (start..end).contains(&b.at)) {
            stretches.push(Stretch { from, to: stop.at, stop: Some(stop.clone()) });
            from = stop.at;
        }
        stretches.push(Stretch { from, to: end, stop: None });
        stretches
    }

    async fn window(
        &self,
        run: &Run,
        stretch: &Stretch,
        usable: &[&BackupDocument],
        seen: &Seen,
        next: Option<SegmentName>,
    ) -> Result<Option<Window>> {
        let Some(oldest) = usable.first() else { return Ok(None) };
        let (to, commit) = match &stretch.stop {
            None => (seen.end.unwrap_or(stretch.to), seen.last_commit.clone()),
            Some(stop) => (stop.proven, stop.last_commit.clone()),
        };
        let last = self.size.number_of(Lsn(to.0.saturating_sub(1)));
        let commit = match commit {
            Some(commit) => Some(commit),
            // In the segments at the end there is none. One before the backup was consistent is of no use.
            None if seen.unread.is_some() => None,
            None => self.last_commit(run, self.size.number_of(oldest.stop_lsn), last).await?,
        };
        let commit = commit.filter(|commit| commit.lsn >= oldest.stop_lsn);
        let segments = run.within(self.size.number_of(oldest.start_lsn), last + 1);
        let first = segments.parts.first().and_then(|(t, n)| SegmentName::from_number(*t, n.start, self.size));
        let end = segments.parts.last().and_then(|(t, n)| SegmentName::from_number(*t, n.end - 1, self.size));
        let (Some(first_segment), Some(last_segment)) = (first, end) else { return Ok(None) };
        Ok(Some(Window {
            from: consistent(oldest, commit.as_ref().map(|c| c.time)),
            to: Instant { lsn: to.max(oldest.stop_lsn), time: commit.as_ref().map(|c| c.time) },
            last_xid: commit.map(|c| c.xid),
            backups: usable.iter().map(|b| b.id).collect(),
            first_segment,
            last_segment,
            segments: segments.end() - segments.first(),
            unread: seen.unread.is_some(),
            from_pieces: if segments.in_pieces { to.since(last_segment.start(self.size)?) } else { 0 },
            end: match (&stretch.stop, next) {
                (Some(stop), _) => stop.end.clone(),
                (None, Some(segment)) => WindowEnd::Missing { segment, suspended: None },
                (None, None) => WindowEnd::Archive,
            },
        }))
    }

    /// The gaps of a path, each with the timeline that would have it.
    fn gaps(&self, history: &TimelineHistory, runs: &[Run]) -> Result<Vec<(TimelineId, Gap)>> {
        let mut gaps = Vec::new();
        for (timeline, numbers) in rows::gaps(runs, history, self.size) {
            let name = |number| SegmentName::from_number(timeline, number, self.size);
            let (Some(first), Some(last)) = (name(numbers.start), name(numbers.end - 1)) else { continue };
            let before = runs.iter().rev().find(|r| r.whole_end() <= numbers.start).and_then(|r| r.parts.last());
            let after = runs.iter().find(|r| r.first() >= numbers.end).and_then(|r| r.parts.first());
            let seen = |piece: Option<&(TimelineId, Range<u64>)>, number: fn(&Range<u64>) -> u64| {
                let (timeline, numbers) = piece?;
                let row = self.listing.rows(*timeline).iter().find(|row| row.contains(&number(numbers)))?;
                self.seen.get(&SegmentName::from_number(*timeline, row.end - 1, self.size)?)
            };
            gaps.push((
                timeline,
                Gap {
                    first,
                    last,
                    segments: numbers.end - numbers.start,
                    from: Instant {
                        lsn: first.start(self.size)?,
                        time: seen(before, |n| n.end - 1).and_then(|seen| seen.last_time),
                    },
                    to: Instant {
                        lsn: Lsn(numbers.end * self.size.bytes()),
                        time: seen(after, |n| n.start).and_then(|seen| seen.first_time),
                    },
                    suspended: None,
                },
            ));
        }
        Ok(gaps)
    }

    fn marks(&self, timeline: TimelineId, windows: &[Window]) -> Vec<BackupMark> {
        let own = self.backups.iter().filter(|b| b.timeline == timeline);
        own.map(|backup| {
            let window = windows.iter().find(|w| w.backups.contains(&backup.id));
            BackupMark {
                id: backup.id,
                label: backup.label.clone(),
                timeline,
                from_standby: backup.from_standby,
                start_lsn: backup.start_lsn,
                stop_lsn: backup.stop_lsn,
                started: backup.started,
                stopped: backup.stopped,
                size: backup.size,
                stored: backup.stored,
                bad_pages: backup.bad_pages.len(),
                broken: if window.is_some() { None } else { Some(self.why_broken(backup)) },
                from: consistent(backup, window.and_then(|w| w.to.time)),
                recoverable_to: window.and_then(|_| self.row_end(backup)),
                until: window.map(|w| w.to),
            }
        })
        .collect()
    }

    fn row_end(&self, backup: &BackupDocument) -> Option<Lsn> {
        let history = self.histories.get(&backup.timeline)?.as_ref().ok()?;
        let runs = self.listing.runs(history, self.size);
        runs.iter().find(|run| self.is_whole(run, backup)).map(|run| Lsn(run.whole_end() * self.size.bytes()))
    }

    fn why_broken(&self, backup: &BackupDocument) -> Broken {
        if let Some(why) = self.damage.backups.get(&backup.id) {
            return Broken { why: why.clone(), missing: Vec::new() };
        }
        let history = match self.histories.get(&backup.timeline) {
            Some(Ok(history)) => history,
            Some(Err(lost)) => return Broken { why: lost.clone(), missing: Vec::new() },
            None => return Broken { why: "its timeline is not known".into(), missing: Vec::new() },
        };
        let runs = self.listing.runs(history, self.size);
        let last = backup.last_segment.number(self.size).unwrap_or_default();
        let needed = self.size.number_of(backup.start_lsn)..=last;
        let missing: Vec<SegmentName> = needed
            .filter(|number| !runs.iter().any(|run| run.holds(*number) && *number < run.whole_end()))
            .filter_map(|number| segment_on(history, number, self.size))
            .collect();
        let why = match missing.as_slice() {
            [] => "the WAL that it needs itself cannot be replayed".to_owned(),
            [one] => format!("segment {one}, which it needs itself, is missing"),
            [first, .., last] => {
                format!("{} segments that it needs itself are missing, {first} to {last}", missing.len())
            }
        };
        Broken { why, missing }
    }
}

/// From where on a backup can be used. Its log tells the time of its checkpoint to the second alone: the next full
/// second is the first that certainly lies behind it, unless the window ends before that.
fn consistent(backup: &BackupDocument, end: Option<DateTime<Utc>>) -> Instant {
    let next = backup.stopped.duration_trunc(TimeDelta::seconds(1)).unwrap_or(backup.stopped) + TimeDelta::seconds(1);
    let time = end.filter(|end| *end >= backup.stopped).map_or(next, |end| next.min(end));
    Instant { lsn: backup.stop_lsn, time: Some(time) }
}

/// The last time that anything was written on a timeline.
fn last_sign(timeline: &Timeline) -> Option<DateTime<Utc>> {
    let rows = timeline.rows.iter().filter_map(|row| row.to.time);
    let backups = timeline.backups.iter().map(|b| b.stopped);
    let fork = timeline.fork.iter().filter_map(|f| f.promoted);
    rows.chain(backups).chain(fork).max()
}
