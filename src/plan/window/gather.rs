//! Gathers what is known of a system, from which its [`Timelines`] are drawn.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::{
    Timelines, Unreadable, WindowEnd,
    edges::{self, Break, Seen},
    rows::{Listing, Run},
};
use crate::{
    error::{Kind, Result},
    plan::Watch,
    postgres::{SegmentName, SegmentSize, TimelineHistory, TimelineId},
    progress::Unwatched,
    repository::{BackupDocument, BackupId, DamageNote, GapNote, Stored, System},
};

/// Rows whose ends are read at a time.
const PARALLEL: usize = 8;

/// How closely is looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// At the ends of each unbroken row of segments.
    Ends,
    /// At the summary of each segment: whether each goes on from the one before it, whether its object is whole, and
    /// where the log says `wal_level = minimal`.
    Records,
}

/// The timelines of a system, with everything that lies on them.
pub async fn timelines(system: &System, depth: Depth, watch: &Watch) -> Result<Timelines> {
    let known = Damage::noted(&system.damage_note().await?.1);
    Gathered::new(system, depth, watch).await?.timelines(&known).await
}

/// What is known to be of no use, besides what the listing and the summaries tell.
#[derive(Clone, Debug, Default)]
pub struct Damage {
    /// Backups that nothing can be restored from, and why.
    pub backups: BTreeMap<BackupId, String>,
    /// Segments that no recovery passes, and why.
    pub segments: BTreeMap<SegmentName, String>,
    /// Whether to believe that whatever else was found damaged is whole: to tell what the damage costs.
    pub spared: bool,
}

impl Damage {
    /// What a verification has found.
    #[must_use]
    pub fn noted(note: &DamageNote) -> Self {
        let mut damage = Self::default();
        for object in &note.objects {
            damage.segments.extend(object.segment().map(|name| (name, object.words())));
            damage.backups.extend(object.backups.iter().map(|id| (*id, object.words())));
        }
        damage
    }

    /// Whether a place is one that recovery does not pass.
    pub(super) fn is_break(&self, found: &Break) -> bool {
        !self.spared || matches!(found.end, WindowEnd::Minimal { .. })
    }
}

/// What lies in the archive of a system, listed and looked at once.
pub struct Gathered<'a> {
    gather: Gather<'a>,
    notes: Vec<GapNote>,
    unreadable: Vec<Unreadable>,
}

impl std::fmt::Debug for Gathered<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gathered").finish_non_exhaustive()
    }
}

impl<'a> Gathered<'a> {
    /// Lists and looks.
    pub async fn new(system: &'a System, depth: Depth, watch: &'a Watch) -> Result<Self> {
        let (backups, damaged) = system.readable_backups().await?;
        let unreadable = damaged.into_iter().map(|(id, error)| Unreadable { id, why: error.to_string() }).collect();
        let mut ids: BTreeSet<TimelineId> = system.timelines().await?.into_iter().collect();
        ids.extend(backups.iter().map(|b| b.timeline));
        let mut listing = Listing::default();
        let mut histories = BTreeMap::new();
        for &id in &ids {
            listing.add(id, system.segments_and_pieces(id, None, None).await?, system.document.segment_size);
            let history = match system.history(id).await {
                Err(error) if error.kind() == Kind::NotFound => Err(format!("{}.history is missing", id.hex())),
                Err(error) if matches!(error.kind(), Kind::Damaged | Kind::Refused) => Err(error.to_string()),
                history => Ok(history?),
            };
            histories.insert(id, history);
        }
        let size = system.document.segment_size;
        let (seen, damage) = (HashMap::new(), Damage::default());
        let mut gather = Gather { system, depth, watch, size, listing, histories, backups, seen, damage };
        gather.look().await?;
        Ok(Self { gather, notes: system.gap_notes().await?, unreadable })
    }

    /// What of it can be recovered, in spite of that damage.
    pub async fn timelines(&mut self, damage: &Damage) -> Result<Timelines> {
        self.gather.damage = damage.clone();
        let mut timelines = self.gather.put_together().await?;
        timelines.unreadable.clone_from(&self.unreadable);
        timelines.explain(self.notes.clone());
        Ok(timelines)
    }

    /// How many segments there are, and the bytes of their objects.
    #[must_use]
    pub fn segments(&self) -> (u64, u64) {
        let counts = self.gather.histories.keys().map(|timeline| self.gather.listing.count(*timeline));
        counts.fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1))
    }

    /// Where the looking has found that no recovery passes, on each timeline.
    pub fn breaks(&self) -> impl Iterator<Item = (TimelineId, &Break)> {
        self.gather.seen.iter().flat_map(|(last, seen)| seen.breaks.iter().map(|found| (last.timeline, found)))
    }
}

pub(super) struct Gather<'a> {
    pub system: &'a System,
    depth: Depth,
    pub watch: &'a Watch,
    pub size: SegmentSize,
    pub listing: Listing,
    /// Of each timeline; or why it is not known.
    pub histories: BTreeMap<TimelineId, std::result::Result<TimelineHistory, String>>,
    pub backups: Vec<BackupDocument>,
    /// What was seen of each row, by its last segment.
    pub seen: HashMap<SegmentName, Seen>,
    pub damage: Damage,
}

impl Gather<'_> {
    /// Looks at the ends of every row, or at all of it.
    async fn look(&mut self) -> Result<()> {
        let mut rows = Vec::new();
        for (&timeline, history) in &self.histories {
            let runs = history.as_ref().map(|h| self.listing.runs(h, self.size)).unwrap_or_default();
            for row in self.listing.rows(timeline) {
                // With the one before it on the path: whether it goes on from there is looked at, too.
                let run =
                    runs.iter().find(|r| r.holds(row.start)).map(|r| r.within(row.start.saturating_sub(1), row.end));
                let run = run.unwrap_or_else(|| Run {
                    parts: vec![(timeline, row.clone())],
                    in_pieces: self.listing.is_in_pieces(timeline, row.end - 1),
                });
                rows.push(self.listing.segments(&run));
            }
        }
        let bytes = rows.iter().map(|r| r.len() as u64).sum::<u64>() * self.size.bytes();
        let progress = if self.depth == Depth::Records { self.watch.progress.clone() } else { Arc::new(Unwatched) };
        progress.start("reading what the WAL holds", Some(bytes));
        let (system, depth, interrupt) = (self.system, self.depth, &self.watch.interrupt);
        let look = |segments: Vec<(SegmentName, Stored)>| {
            let progress = progress.clone();
            async move {
                let seen = match depth {
                    Depth::Ends => edges::ends(system, &segments, &*progress, interrupt).await?,
                    Depth::Records => edges::walk(system, &segments, &*progress, interrupt).await?,
                };
                Ok(segments.last().map(|(name, _)| (*name, seen)))
            }
        };
        let seen: Result<Vec<_>> =
            stream::iter(rows.into_iter().map(look)).buffer_unordered(PARALLEL).try_collect().await;
        progress.finish();
        self.seen = seen?.into_iter().flatten().collect();
        Ok(())
    }
}
