//! Whether the archive leads from each of its ends to the other: what the listing, the histories and the links between
//! the records of segments tell, as findings. Pure.

use super::report::{Finding, LostInstants, Wrong};
use crate::{
    error::Result,
    plan::window::{Break, Gap, Gathered, Instant, Timelines, WindowEnd},
    postgres::{SegmentName, TimelineId},
    repository::{Horizons, SystemFolder},
};

/// The places that no recovery passes.
pub fn broken(folder: &SystemFolder, gathered: &Gathered<'_>) -> Result<Vec<Finding>> {
    let mut found: Vec<&Break> = gathered.breaks().map(|(_, found)| found).collect();
    found.sort_by_key(|found| (found.segment, found.at));
    found.dedup_by_key(|found| (found.segment, found.at));
    let mut findings = Vec::new();
    for Break { segment, end, .. } in found {
        let key = folder.segment(*segment)?;
        findings.push(match end {
            WindowEnd::Damaged { what, .. } => Finding::new(key, Wrong::Content, what),
            WindowEnd::Broken { at, what } => {
                Finding::new(key, Wrong::Chain, format!("the records do not go on at {at}: {what}"))
            }
            WindowEnd::Pieces { what, .. } => Finding::new(folder.pieces(*segment)?, Wrong::Content, what),
            WindowEnd::Archive | WindowEnd::Missing { .. } | WindowEnd::Minimal { .. } => continue,
        });
    }
    Ok(findings)
}

/// History files that are missing or damaged.
pub fn histories(folder: &SystemFolder, timelines: &Timelines) -> Result<Vec<Finding>> {
    let lost = timelines.timelines.iter().filter_map(|t| Some((t.timeline, t.lost_history.as_ref()?)));
    lost.map(|(timeline, why)| {
        let wrong = if why.ends_with("is missing") { Wrong::Missing } else { Wrong::Content };
        let costs = format!("nothing on timeline {timeline} can be recovered");
        Ok(Finding::new(folder.history(timeline)?, wrong, why).costs(costs))
    })
    .collect()
}

/// Segments that are missing, and not because somebody let them go or an expiry removed them.
pub fn missing(folder: &SystemFolder, timelines: &Timelines, horizons: &Horizons) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for gap in timelines.timelines.iter().flat_map(|t| &t.gaps).filter(|gap| is_damage(gap, horizons)) {
        findings.push(row(folder, gap.first, gap.last, gap.segments)?);
    }
    for backup in timelines.backups() {
        let missing = backup.broken.iter().flat_map(|broken| &broken.missing);
        let told = |name: &&SegmentName| {
            let mut gaps = timelines.timelines.iter().flat_map(|t| &t.gaps);
            !gaps.any(|gap| gap.first.timeline == name.timeline && (gap.first..=gap.last).contains(name))
        };
        let missing: Vec<SegmentName> = missing.filter(told).copied().collect();
        if let (Some(first), Some(last)) = (missing.first(), missing.last()) {
            findings.push(row(folder, *first, *last, missing.len() as u64)?.backups(vec![backup.id]));
        }
    }
    Ok(findings)
}

fn row(folder: &SystemFolder, first: SegmentName, last: SegmentName, count: u64) -> Result<Finding> {
    let why = if count == 1 { "the segment is not there".into() } else { format!("{count} segments are not there") };
    let through = if first == last { None } else { Some(folder.segment(last)?.to_string()) };
    Ok(Finding { through, objects: count, ..Finding::new(folder.segment(first)?, Wrong::Missing, why) })
}

/// What an expiry has removed is below the horizon; what a person let go is told by a note.
fn is_damage(gap: &Gap, horizons: &Horizons) -> bool {
    gap.suspended.is_none() && horizons.get(&gap.first.timeline).is_none_or(|horizon| gap.last >= *horizon)
}

/// The instants that could be recovered if nothing were damaged (`intact`), and cannot.
pub fn lost(intact: &Timelines, now: &Timelines, horizons: &Horizons) -> Vec<LostInstants> {
    let mut lost: Vec<LostInstants> = Vec::new();
    let mut add = |timeline, from: Instant, to: Instant| {
        let known = |l: &LostInstants| (l.from.lsn, l.to.lsn) == (from.lsn, to.lsn);
        if from.lsn < to.lsn && !lost.iter().any(known) {
            lost.push(LostInstants { timeline, from, to });
        }
    };
    for before in &intact.timelines {
        let timeline = before.timeline;
        let left = now.get(timeline).map_or(&[][..], |t| &t.windows);
        for window in &before.windows {
            let mut at = window.from;
            for part in left.iter().filter(|part| part.from.lsn < window.to.lsn && part.to.lsn > window.from.lsn) {
                add(timeline, at, part.from);
                at = part.to;
            }
            add(timeline, at, window.to);
        }
        for gap in before.gaps.iter().filter(|gap| is_damage(gap, horizons)) {
            let (from, to) = around(gap, timeline, now);
            add(timeline, from, to);
        }
    }
    lost
}

/// The last instant before a gap that can be recovered, and the first one behind it.
fn around(gap: &Gap, timeline: TimelineId, now: &Timelines) -> (Instant, Instant) {
    let windows = now.get(timeline).map_or(&[][..], |t| &t.windows);
    let before = windows.iter().rev().find(|window| window.to.lsn <= gap.to.lsn).map(|window| window.to);
    let behind = windows.iter().find(|window| window.from.lsn >= gap.to.lsn).map(|window| window.from);
    let end = now.get(timeline).and_then(|t| t.rows.last()).map(|row| row.to);
    (before.unwrap_or(gap.from), behind.or(end).unwrap_or(gap.to))
}
