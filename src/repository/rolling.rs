//! Rolling up: which roll-ups there are, and writing those of the logs that are complete and have none yet.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;

use super::{
    RollUpName, System, layout,
    rollup::RollUp,
    summaries::{Need, source::Source},
};
use crate::{
    error::{Kind, Result},
    interrupt::Interrupt,
    postgres::{SegmentName, TimelineId},
    progress::Progress,
    store::{Key, Put},
    wal::Summary,
};

/// Heads that are read at a time.
const HEADS: usize = 64;

/// The newest roll-up of each log of a timeline.
pub(super) type RollUps = BTreeMap<u32, RollUpName>;

/// What was rolled up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RolledUp {
    /// Roll-ups that were written.
    pub logs: u64,
    /// Segments in them.
    pub segments: u64,
    /// Complete logs that are still without one.
    pub left: u64,
    /// Segments that are in none, because they are damaged: each with what is wrong.
    pub damaged: Vec<(SegmentName, String)>,
}

impl System {
    /// The newest roll-up of each log of a timeline from `first` on.
    pub async fn roll_ups(&self, timeline: TimelineId, first: u32) -> Result<RollUps> {
        const PAGE: usize = 1000;
        let prefix = self.folder.roll_ups(timeline);
        let mut after = Some(Key::new(format!("{prefix}{first:08X}-0"))?);
        let mut newest = RollUps::new();
        loop {
            let page = self.store.list(&prefix, after.as_ref(), PAGE).await?;
            for name in page.iter().filter_map(|listed| layout::roll_up_of(&listed.key)) {
                let highest = newest.entry(name.log).or_insert(name);
                *highest = name.max(*highest);
            }
            if page.len() < PAGE {
                return Ok(newest);
            }
            after = page.last().map(|l| l.key.clone());
        }
    }

    /// Writes the roll-ups of complete logs that have none, of `most` logs at most, the newest first. A log is complete
    /// when a later one is there, on its own timeline or on one that branched off it: whatever comes late, or never, is
    /// read from the heads.
    pub async fn roll_up(&self, most: usize, progress: &dyn Progress, interrupt: &Interrupt) -> Result<RolledUp> {
        let missing = self.missing_roll_ups().await?;
        let source = Source::new(self.clone(), Need::Finding, &[]);
        let size = self.document.segment_size;
        let mut done = RolledUp { left: missing.len() as u64, ..RolledUp::default() };
        let logs = missing.len().min(most);
        if logs > 0 {
            progress.start("rolling up the summaries of WAL", Some(logs as u64 * size.per_log() * size.bytes()));
        }
        for (timeline, log) in missing.into_iter().take(most) {
            interrupt.check()?;
            let segments = self.roll_up_log(&source, timeline, log, &mut done.damaged).await?;
            progress.advance(size.per_log() * size.bytes());
            done.logs += 1;
            done.left -= 1;
            done.segments += segments;
        }
        Ok(done)
    }

    /// Complete logs without a roll-up, the newest first.
    async fn missing_roll_ups(&self) -> Result<Vec<(TimelineId, u32)>> {
        let mut logs: BTreeMap<TimelineId, BTreeSet<u32>> = BTreeMap::new();
        for timeline in self.timelines().await? {
            let folders = self.store.folders(&self.folder.timeline(timeline)).await?;
            let found = folders.iter().filter(|name| name.len() == 8).filter_map(|n| u32::from_str_radix(n, 16).ok());
            logs.insert(timeline, found.collect());
        }
        let mut latest: BTreeMap<TimelineId, u32> = BTreeMap::new();
        for (timeline, own) in &logs {
            let Some(last) = own.last().copied() else { continue };
            let ancestors = match self.history(*timeline).await {
                Ok(history) => history.ancestors,
                Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Damaged) => Vec::new(),
                Err(error) => return Err(error),
            };
            for timeline in ancestors.iter().map(|entry| entry.timeline).chain([*timeline]) {
                let known = latest.entry(timeline).or_insert(last);
                *known = last.max(*known);
            }
        }
        let mut missing = Vec::new();
        for (timeline, own) in logs {
            let latest = latest.get(&timeline).copied().unwrap_or(0);
            let complete: Vec<u32> = own.into_iter().filter(|log| *log < latest).collect();
            let Some(first) = complete.first() else { continue };
            let there = self.roll_ups(timeline, *first).await?;
            missing.extend(complete.into_iter().filter(|log| !there.contains_key(log)).map(|log| (timeline, log)));
        }
        missing.sort_unstable_by_key(|(timeline, log)| std::cmp::Reverse((*log, *timeline)));
        Ok(missing)
    }

    /// Writes the roll-up of one log. How many segments are in it.
    async fn roll_up_log(
        &self,
        source: &Source,
        timeline: TimelineId,
        log: u32,
        damaged: &mut Vec<(SegmentName, String)>,
    ) -> Result<u64> {
        // And the first one behind it: the last record may go on there.
        let first = |log| SegmentName { timeline, log, segment: 0 };
        let listed = self.segments(timeline, Some(first(log)), Some(first(log + 1))).await?;
        let one = |(name, length)| async move {
            let summary = match source.head(name, length).await {
                Ok(Some(summary)) => Ok(summary),
                Ok(None) => source.bounded_records(name, length).await,
                Err(error) => Err(error),
            };
            match summary {
                Ok(summary) => Ok((name, length, Ok(summary))),
                Err(error) if error.kind() == Kind::Damaged => Ok((name, length, Err(error.to_string()))),
                Err(error) => Err(error),
            }
        };
        let found: Vec<(SegmentName, u64, Result<Summary, String>)> =
            stream::iter(listed.into_iter().map(one)).buffered(HEADS).try_collect().await?;
        let (mut segments, mut behind) = (Vec::with_capacity(found.len()), None);
        for (name, length, summary) in found {
            match summary {
                Ok(summary) if name.log > log => behind = Some(summary),
                Ok(summary) => segments.push((name, length, summary)),
                Err(why) if name.log == log => damaged.push((name, why)),
                Err(_) => {}
            }
        }
        let count = segments.len() as u64;
        let (size, version) = (self.document.segment_size, self.document.postgres);
        let roll_up = RollUp::new((timeline, log), segments, size, version);
        let row = roll_up.row(behind, version);
        let bytes = super::join(tokio::task::spawn_blocking(move || roll_up.to_bytes()).await)??;
        let key = self.folder.roll_up(timeline, RollUpName { log, number: 1, row })?;
        match self.store.put(&key, bytes.into()).await? {
            Put::Created => Ok(count),
            // Somebody else was as quick.
            Put::Exists => Ok(0),
        }
    }
}
