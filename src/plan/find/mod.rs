//! Finds the mishap: searches the archived WAL for what was dropped, emptied, deleted, and for the marks that people set,
//! and says for each the target that stops just before it.
//!
//! [`gather`] puts together what the log tells of a transaction, [`names`] knows what the numbers are called and
//! [`renames`] follows what changes of that, [`judge`] says what it means, [`ends`] reads where a transaction ended that
//! the summaries do not tell, [`cuts`] knows where they do not tell all.

mod cuts;
mod ends;
mod finding;
mod gather;
mod judge;
mod names;
mod renames;
pub(super) mod search;
#[cfg(test)]
mod tests;

use chrono::{DateTime, Utc};
use serde::Serialize;

pub use finding::{FindKind, Finding, NamedDatabase, NamedRelation};

use self::search::{Searched, Stretch, Terms};
use super::{
    TableName, Watch,
    histories::Histories,
    path::{self, Run},
    resolve,
};
use crate::{
    error::{Error, Result},
    postgres::{Lsn, SegmentName, TimelineHistory, TimelineId},
    repository::{BackupDocument, ClusterName, Incarnation, System},
};

/// Deletions and updates of fewer rows are not told unless they are asked for by table or transaction.
const MANY_ROWS: u64 = 1000;
/// So many deletions and updates, those of the most rows, are told when nothing is asked for.
const MOST: usize = 10;

/// Where a search begins or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// At a time.
    Time(DateTime<Utc>),
    /// At an address.
    Lsn(Lsn),
}

/// What is searched for.
#[derive(Clone, Debug, Default)]
pub struct FindRequest {
    /// What happened to tables of that name.
    pub table: Option<TableName>,
    /// What happened in, or to, that database: its name, or its OID.
    pub database: Option<String>,
    /// What that transaction did: its number in 32 or 64 bits.
    pub xid: Option<u64>,
    /// Nothing before that.
    pub from: Option<Edge>,
    /// Nothing after that.
    pub to: Option<Edge>,
    /// These kinds; [`FindKind::usual`] when there are none.
    pub kinds: Vec<FindKind>,
    /// Along the way to this timeline; the newest without it.
    pub timeline: Option<TimelineId>,
    /// No more than so many: the newest.
    pub limit: usize,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FindReport {
    /// The cluster.
    pub cluster: ClusterName,
    /// The system that was searched.
    pub incarnation: Incarnation,
    /// The timeline to which the path leads that was searched.
    pub timeline: TimelineId,
    /// Where the search began.
    pub from: Lsn,
    /// Where it ended: the end of the last segment.
    pub to: Lsn,
    /// What was found, in the order of the log.
    pub findings: Vec<Finding>,
    /// How many more there were before these.
    pub more: usize,
    /// What a person should know of the search.
    pub remarks: Vec<String>,
}

/// Searches the archive of the newest of a cluster's systems, which comes last.
pub async fn find(systems: &[System], request: &FindRequest, watch: &Watch) -> Result<FindReport> {
    for system in systems.iter().rev() {
        let (mut backups, _) = system.readable_backups().await?;
        if backups.is_empty() {
            continue;
        }
        backups.sort_by_key(|b| b.stop_lsn);
        let mut report = Finder { system, request, watch, backups }.find().await?;
        if systems.len() > 1 {
            let remark = format!("only system {} was searched, the newest with a backup", report.incarnation);
            report.remarks.push(remark);
        }
        return Ok(report);
    }
    Err(Error::not_found("there is no backup yet, so that nothing can be recovered").hint("take one: walden backup"))
}

struct Finder<'a> {
    system: &'a System,
    request: &'a FindRequest,
    watch: &'a Watch,
    backups: Vec<BackupDocument>,
}

impl Finder<'_> {
    async fn find(&self) -> Result<FindReport> {
        let size = self.system.document.segment_size;
        let all = Histories::of(self.system).await?;
        let history = match self.request.timeline {
            Some(timeline) => all.get(timeline)?,
            None => all.newest()?,
        };
        let Some(history) = history else {
            return Err(Error::not_found("the repository holds no such timeline of this system"));
        };
        let backups: Vec<_> = self.backups.iter().filter(|b| path::lies_on(b, history)).collect();
        let Some(first) = backups.iter().min_by_key(|b| b.start_lsn) else {
            return Err(Error::not_found(format!("no backup lies on the way to timeline {}", history.timeline))
                .hint("walden list shows the backups and their timelines"));
        };
        let begin = self.begin(&backups).unwrap_or(first);
        let mut runs = path::runs(self.system, history, size.number_of(begin.start_lsn)).await?;
        // What was archived before there was a gap is only worth a look where a backup leads there.
        let reach = |run: &Run| backups.iter().filter(|b| self.leads(b, run)).map(|b| b.stop_lsn).min();
        runs.retain(|run| reach(run).is_some());
        let (Some(start), Some(end)) = (runs.first(), runs.last()) else {
            return Err(Error::not_found(format!(
                "the WAL that the backups of timeline {} need is missing",
                history.timeline
            )));
        };
        let (from, to) = (Lsn(start.first * size.bytes()), Lsn(end.whole_end() * size.bytes()));
        let (lower, upper) = (self.request.from, self.request.to);
        let stretch = Stretch {
            system: self.system,
            runs: &runs,
            backups: &backups,
            from: match lower {
                Some(Edge::Lsn(lsn)) => lsn,
                _ => begin.start_lsn,
            },
            to: match upper {
                Some(Edge::Lsn(lsn)) => Some(lsn),
                _ => None,
            },
            until: match upper {
                Some(Edge::Time(time)) => Some(time),
                _ => None,
            },
        };
        let usual = FindKind::usual();
        let kinds = if self.request.kinds.is_empty() { &usual } else { &self.request.kinds };
        let Searched { mut findings, forgotten, mut unknown, pieces, .. } =
            search::search(stretch, &self.terms(kinds), self.watch).await?;
        let to = pieces.unwrap_or(to);
        findings.retain(|f| {
            let early = |edge| matches!((edge, f.time), (Some(Edge::Time(edge)), Some(time)) if time < edge);
            let late = |edge| matches!((edge, f.time), (Some(Edge::Time(edge)), Some(time)) if time > edge);
            !early(lower) && !late(upper)
        });
        let more = findings.len().saturating_sub(self.request.limit);
        findings.drain(..more);
        let forks = self.forks(history, &all.known).await?;
        for finding in &mut findings {
            finding.timeline = history.at(finding.lsn);
            let run = runs.iter().find(|run| run.holds(size.number_of(finding.stop)));
            if run.and_then(reach).is_some_and(|earliest| earliest <= finding.stop) {
                finding.to = Some(format!("before:{}", finding.stop));
                let elsewhere = forks.iter().any(|(_, fork)| finding.stop >= *fork);
                finding.to_timeline = elsewhere.then_some(history.timeline);
            }
        }
        unknown.extend(self.remarks(&runs, history, &forks, forgotten));
        unknown.extend(all.remarks());
        Ok(FindReport {
            cluster: self.system.folder.cluster.clone(),
            incarnation: self.system.folder.incarnation,
            timeline: history.timeline,
            from: stretch.from.max(from),
            to: stretch.to.map_or(to, |upper| upper.min(to)),
            findings,
            more,
            remarks: unknown,
        })
    }

    fn terms<'t>(&'t self, kinds: &'t [FindKind]) -> Terms<'t> {
        let request = self.request;
        let asked = |kind| request.kinds.contains(&kind);
        let particular = request.xid.is_some() || request.table.is_some();
        let mass = asked(FindKind::Delete) || asked(FindKind::Update) || particular;
        Terms {
            kinds,
            table: request.table.as_ref(),
            like: None,
            database: request.database.as_deref(),
            xid: request.xid.map(|xid| (xid & u64::from(u32::MAX)) as u32),
            rows: if particular { 1 } else { MANY_ROWS },
            top: if mass { request.limit } else { MOST },
        }
    }

    /// The last backup before the search begins: its catalogue has the names.
    fn begin<'b>(&self, backups: &[&'b BackupDocument]) -> Option<&'b BackupDocument> {
        let before = |b: &&&BackupDocument| match self.request.from {
            Some(Edge::Lsn(lsn)) => b.stop_lsn <= lsn,
            Some(Edge::Time(time)) => b.stopped <= time,
            None => false,
        };
        backups.iter().rev().find(before).copied()
    }

    fn leads(&self, backup: &BackupDocument, run: &Run) -> bool {
        run.is_enough_for(backup, self.system.document.segment_size)
    }

    /// Other timelines that go on beside the path, and where they leave it.
    async fn forks(&self, history: &TimelineHistory, all: &[TimelineHistory]) -> Result<Vec<(TimelineId, Lsn)>> {
        let size = self.system.document.segment_size;
        let mut forks = Vec::new();
        for other in all.iter().filter(|h| h.timeline != history.timeline) {
            let fork = resolve::fork(history, other);
            let own = SegmentName::holding(other.timeline, fork, size);
            if !self.system.segments_and_pieces(other.timeline, Some(own), None).await?.is_empty() {
                forks.push((other.timeline, fork));
            }
        }
        Ok(forks)
    }

    fn remarks(
        &self,
        runs: &[Run],
        history: &TimelineHistory,
        forks: &[(TimelineId, Lsn)],
        forgotten: bool,
    ) -> Vec<String> {
        let size = self.system.document.segment_size;
        let mut remarks: Vec<String> = forks
            .iter()
            .map(|(timeline, fork)| {
                format!("timeline {timeline} leaves the way to timeline {} at {fork} and was not searched further; do so with --timeline {timeline}", history.timeline)
            })
            .collect();
        for pair in runs.windows(2) {
            if let [before, after] = pair {
                let (end, begin) = (Lsn(before.whole_end() * size.bytes()), Lsn(after.first * size.bytes()));
                remarks.push(format!("the archive has a gap from {end} to {begin}: what happened in it is not known"));
            }
        }
        if forgotten {
            remarks.push(
                "there is too much to tell: the oldest is left out; narrow the search by --from, --to or --kind".into(),
            );
        }
        remarks
    }
}
