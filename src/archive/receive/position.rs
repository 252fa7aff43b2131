//! Where to begin: at the first segment on the server's way that the repository does not have, and which segments are
//! missing where the server does not have it any more.

use std::collections::HashSet;

use super::event::Gap;
use crate::{
    error::{Error, Result},
    postgres::{Lsn, SegmentName, SegmentSize, TimelineHistory, TimelineId},
    repository::{System, piece_of, segment_of},
    store,
};

/// The segments of a server's way: each by the name under which recovery would ask for it.
#[derive(Clone, Debug)]
pub(super) struct Way {
    pub(super) history: TimelineHistory,
    pub(super) size: SegmentSize,
}

impl Way {
    /// The segment of that number: of the timeline that its last byte belongs to.
    pub(super) fn segment(&self, number: u64) -> Result<SegmentName> {
        let last = Lsn((number + 1) * self.size.bytes() - 1);
        SegmentName::from_number(self.history.at(last), number, self.size)
            .ok_or_else(|| Error::invalid(format!("segment {number} is past the end of the log")))
    }

    fn has(&self, name: SegmentName) -> bool {
        name.number(self.size).and_then(|number| self.segment(number)).is_ok_and(|on_way| on_way == name)
    }

    /// The timelines of the way, the newest first.
    fn timelines(&self) -> impl Iterator<Item = TimelineId> {
        let ancestors = self.history.ancestors.iter().rev().map(|ancestor| ancestor.timeline);
        std::iter::once(self.history.timeline).chain(ancestors)
    }
}

/// The number of the first segment to ask for. `slot` is where the slot begins to hold WAL, `flushed` where the server is.
pub(super) async fn begin(system: &System, way: &Way, slot: Option<Lsn>, flushed: Lsn) -> Result<u64> {
    let held = slot.map(|lsn| way.size.number_of(lsn));
    let Some(next) = after_last(system, way).await? else {
        return Ok(held.unwrap_or_else(|| way.size.number_of(flushed)));
    };
    // What the slot still holds can be had, also where others left a hole.
    match held {
        Some(held) if held < next => Ok(missing(system, way, held, next).await?.first().copied().unwrap_or(next)),
        _ => Ok(next),
    }
}

/// The number of the segment after the last one on the way that is whole in the repository, or of the last one that has
/// pieces there.
async fn after_last(system: &System, way: &Way) -> Result<Option<u64>> {
    for timeline in way.timelines() {
        let prefix = system.folder.timeline(timeline);
        let mut logs: Vec<String> = system.store.folders(&prefix).await?;
        logs.retain(|log| log.len() == 8 && u32::from_str_radix(log, 16).is_ok());
        logs.sort();
        for log in logs.iter().rev() {
            let mut last = None;
            for object in store::list_all(&*system.store, &format!("{prefix}{log}/")).await? {
                let whole = segment_of(&object.key);
                let begun = || piece_of(&object.key).map(|(name, ..)| name);
                let Some(name) = whole.or_else(begun).filter(|name| way.has(*name)) else { continue };
                last = last.max(Some(name.number(way.size)? + u64::from(whole.is_some())));
            }
            if last.is_some() {
                return Ok(last);
            }
        }
    }
    Ok(None)
}

/// The numbers from `first` on and before `end` whose segments are not whole in the repository.
pub(super) async fn missing(system: &System, way: &Way, first: u64, end: u64) -> Result<Vec<u64>> {
    let mut there = HashSet::new();
    let (Some(last), true) = (end.checked_sub(1), first < end) else { return Ok(Vec::new()) };
    for timeline in way.timelines() {
        let name = |number| SegmentName::from_number(timeline, number, way.size);
        there.extend(system.segments(timeline, name(first), name(last)).await?.into_iter().map(|(name, _)| name));
    }
    let mut missing = Vec::new();
    for number in first..end {
        if !there.contains(&way.segment(number)?) {
            missing.push(number);
        }
    }
    Ok(missing)
}

/// What lies between `first` and `end` in neither place.
pub(super) async fn gap(system: &System, way: &Way, first: u64, end: u64) -> Result<Gap> {
    let mut rows: Vec<(u64, u64)> = Vec::new();
    for number in missing(system, way, first, end).await? {
        match rows.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => rows.push((number, number)),
        }
    }
    let names = rows.iter().map(|(first, last)| Ok((way.segment(*first)?, way.segment(*last)?)));
    Ok(Gap {
        timeline: way.segment(first)?.timeline,
        from: Lsn(first * way.size.bytes()),
        to: Lsn(end * way.size.bytes()),
        missing: names.collect::<Result<_>>()?,
    })
}
