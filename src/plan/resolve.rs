//! From a target to a plan: on the newest timeline, and on every other that goes on beside it.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::{
    Plan,
    histories::Histories,
    path::{self, Run},
    search::Found,
    survey::Seen,
    target::{Point, Target},
};
use crate::{
    error::{Error, Kind, Result},
    interrupt::Interrupt,
    postgres::{Lsn, SegmentName, TimelineHistory, TimelineId},
    progress::Progress,
    repository::{BackupDocument, BackupId, GapNote, System},
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
    /// None of these backups.
    pub without: Vec<BackupId>,
    /// When it is wished: what "how long ago" counts from.
    pub now: DateTime<Utc>,
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
/// the target cannot be reached, and what can; one of kind `Ambiguous` says what the target may mean.
pub async fn plan(systems: &[System], request: &PlanRequest, watch: &Watch) -> Result<Plan> {
    let mut first_error = None;
    for system in systems.iter().rev() {
        let (mut backups, damaged) = system.readable_backups().await?;
        let wanted = |id: BackupId| request.backup.is_none_or(|wanted| id == wanted);
        if !backups.iter().any(|b| wanted(b.id))
            && let Some((id, error)) = damaged.into_iter().find(|(id, _)| wanted(*id))
        {
            return Err(error.context(format!("backup {id} cannot be used")));
        }
        backups.retain(|b| !request.without.contains(&b.id));
        if !backups.iter().any(|b| wanted(b.id)) {
            continue;
        }
        let suspensions = system.gap_notes().await?;
        let planner = Planner { system, request, watch, suspensions, backups };
        match planner.whole().await {
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
    pub(super) watch: &'a Watch,
    /// When archiving was suspended, the oldest first.
    pub(super) suspensions: Vec<GapNote>,
    pub(super) backups: Vec<BackupDocument>,
}

impl Planner<'_> {
    /// Where the target lies, and the backup that leads there.
    pub(super) async fn find(&self) -> Result<Found> {
        let (histories, lost) = self.histories().await?;
        let mut found = self.find_on(&histories).await?;
        found.warnings.extend(lost);
        Ok(found)
    }

    async fn find_on(&self, histories: &[TimelineHistory]) -> Result<Found> {
        let (Some(main), others) = (histories.first(), histories.get(1..).unwrap_or_default()) else {
            return Err(Error::not_found("the repository holds no timeline of this system"));
        };
        if self.request.target.point == Point::Immediate {
            return self.immediate(histories).await;
        }
        let found = match self.on_path(main, None).await {
            Err(error) if error.kind() != Kind::NotFound => return Err(error),
            found => found,
        };
        let mut branches = self.elsewhere(main, found.as_ref().ok(), others).await?;
        if self.request.target.point == Point::Latest {
            let mut found = found?;
            found.warnings.extend(branches.iter().map(|b| {
                format!(
                    "timeline {} goes on beside timeline {}; give --timeline {} to follow it",
                    b.history.timeline, main.timeline, b.history.timeline
                )
            }));
            return Ok(found);
        }
        match found {
            Ok(found) if branches.is_empty() => Ok(found),
            Err(error) => match branches.pop() {
                Some(only) if branches.is_empty() => Ok(only),
                Some(last) => Err(self.ambiguous(branches.iter().chain([&last]))),
                None => Err(error),
            },
            Ok(found) => Err(self.ambiguous([&found].into_iter().chain(&branches))),
        }
    }

    /// The histories of the timelines that come into question, the newest first, and in words which are left out.
    async fn histories(&self) -> Result<(Vec<TimelineHistory>, Vec<String>)> {
        if let Some(timeline) = self.request.timeline {
            return Ok((vec![self.system.history(timeline).await?], Vec::new()));
        }
        let found = Histories::of(self.system).await?;
        // Consistency is reached on the backup's own timeline.
        if self.request.target.point != Point::Immediate || self.request.backup.is_none() {
            found.newest()?;
        }
        let remarks = found.remarks();
        Ok((found.known, remarks))
    }

    /// The backups that may be used on the way to a history's timeline, oldest first.
    pub(super) fn candidates(&self, history: &TimelineHistory) -> Vec<&BackupDocument> {
        let wanted = |b: &&BackupDocument| self.request.backup.is_none_or(|id| b.id == id) && path::lies_on(b, history);
        let mut candidates: Vec<_> = self.backups.iter().filter(wanted).collect();
        candidates.sort_by_key(|b| b.start_lsn);
        candidates
    }

    async fn immediate(&self, histories: &[TimelineHistory]) -> Result<Found> {
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
        Ok(Found {
            history: history.clone(),
            run: run.clone(),
            backup: backup.clone(),
            seen: Seen::default(),
            stop: None,
            warnings: Vec::new(),
            begin: Lsn(u64::MAX),
            proven: 0..0,
        })
    }

    /// The run that holds everything the backup itself needs.
    pub(super) fn run_of<'r>(&self, runs: &'r [Run], backup: &BackupDocument) -> Option<&'r Run> {
        runs.iter().find(|run| run.is_enough_for(backup, self.system.document.segment_size))
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
            // What both share is the same place on both. Of other targets the branch may hold another one.
            let ordered = matches!(self.request.target.point, Point::Time(_) | Point::Lsn(_));
            if ordered && found.and_then(|f| f.stop).is_some_and(|stop| stop.lsn < fork) {
                continue;
            }
            let own = SegmentName::holding(other.timeline, fork, size);
            let has_own = !self.system.segments_and_pieces(other.timeline, Some(own), None).await?.is_empty();
            if !has_own {
                continue;
            }
            match self.on_path(other, Some(fork)).await {
                Ok(branch) if branch.stop.is_some_and(|stop| stop.lsn >= fork && stop.end > fork) => {
                    branches.push(branch)
                }
                Ok(_) => {}
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) => return Err(error.context(format!("on timeline {}", other.timeline))),
            }
        }
        Ok(branches)
    }
}

/// The first byte that the two histories do not share.
pub(super) fn fork(a: &TimelineHistory, b: &TimelineHistory) -> Lsn {
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
