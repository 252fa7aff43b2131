//! One search along one path: gather, name, judge, choose, and look up what is still missing.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};

use super::{
    cuts::Cuts,
    ends::{self, Ends},
    finding::{FindKind, Finding, NamedRelation},
    gather::{Gatherer, Happening, Wanted, What, Work},
    judge::Judge,
    names::{Interest, Names},
};
use crate::{
    error::Result,
    plan::{TableName, Watch, path::Run},
    postgres::Lsn,
    repository::{BackupDocument, System, summaries::Need},
    wal::Ending,
};

/// Where to search.
#[derive(Clone, Copy, Debug)]
pub(in crate::plan) struct Stretch<'a> {
    pub system: &'a System,
    /// The unbroken rows of segments on it.
    pub runs: &'a [Run],
    /// The backups on it, by where they end.
    pub backups: &'a [&'a BackupDocument],
    /// What happened before does not count.
    pub from: Lsn,
    /// What happened after does not count.
    pub to: Option<Lsn>,
    /// What happened after that time does not count.
    pub until: Option<DateTime<Utc>>,
}

/// What to search for.
#[derive(Clone, Debug)]
pub(in crate::plan) struct Terms<'a> {
    pub kinds: &'a [FindKind],
    pub table: Option<&'a TableName>,
    /// Tables that are called nearly so are told in [`Searched::tables`].
    pub like: Option<&'a TableName>,
    pub database: Option<&'a str>,
    pub xid: Option<u32>,
    /// Deletions and updates of at least that many rows.
    pub rows: u64,
    /// Of deletions and updates as many, those of the most rows.
    pub top: usize,
}

/// The clock of a server may go back this far, and no further, for a search by time to find everything.
const CLOCK: TimeDelta = TimeDelta::hours(1);

/// What a search gives.
#[derive(Debug)]
pub(in crate::plan) struct Searched {
    /// In the order of the log.
    pub findings: Vec<Finding>,
    /// Whether older things were forgotten, because there were too many.
    pub forgotten: bool,
    /// What is not known, in words.
    pub unknown: Vec<String>,
    /// The last time that the log tells.
    pub last_time: Option<DateTime<Utc>>,
    /// The tables that are known at its end and called nearly as was asked.
    pub tables: Vec<NamedRelation>,
    /// The databases that are known.
    pub databases: Vec<String>,
    /// How far the last segment reaches, where there are only pieces of it.
    pub pieces: Option<Lsn>,
}

/// Searches.
pub(in crate::plan) async fn search(stretch: Stretch<'_>, terms: &Terms<'_>, watch: &Watch) -> Result<Searched> {
    let Gathered { mut gathered, parts, mut unknown, pieces } = gather(stretch, terms, watch).await?;
    if let Some(xid) = terms.xid {
        let known = gathered.happenings.iter().any(|h| matches!(&h.what, What::Transaction(work) if work.asked));
        if !known {
            // It left nothing that a summary tells. Its end is looked up.
            let work = Work { unended: true, asked: true, ..Work::default() };
            let what = What::Transaction(Box::new(work));
            let happening = Happening { lsn: stretch.from, stop: stretch.from, time: None, xid, what };
            gathered.happenings.push(happening);
        }
    }
    let mut interest = Interest::of(&gathered.happenings, terms.table, terms.like);
    interest.add(gathered.renamings.iter().flat_map(|r| &r.locks).map(|(_, relation)| *relation));
    let mut names = Names::read(stretch.system, &catalogues(stretch), interest).await?;
    let size = stretch.system.document.segment_size;
    stretch.runs.iter().skip(1).for_each(|run| names.gap(Lsn(run.first * size.bytes())));
    names.follow(std::mem::take(&mut gathered.named), &gathered);
    let version = stretch.system.document.postgres;
    let mut judge = Judge::new(&mut names, version, terms.rows, terms.xid.is_some());
    for happening in &gathered.happenings {
        judge.judge(happening);
    }
    let mut findings: Vec<Finding> = judge.finish().into_iter().filter(|f| terms.cover(f)).collect();
    most(&mut findings, terms.top.saturating_mul(2), terms.xid.is_some());
    look_up(stretch, &parts, &gathered.cuts, &mut findings, watch).await?;
    most(&mut findings, terms.top, terms.xid.is_some());
    findings.retain(|f| f.stop >= stretch.from && stretch.to.is_none_or(|to| f.lsn < to));
    findings.sort_by_key(|f| f.lsn);
    unknown.extend(gathered.cuts.remark(terms.rows));
    let tables = terms.like.map_or_else(Vec::new, |like| names.tables_like(like));
    let databases = names.databases();
    let (forgotten, last_time) = (gathered.forgotten, gathered.time);
    Ok(Searched { findings, forgotten, unknown, last_time, tables, databases, pieces })
}

impl Terms<'_> {
    fn cover(&self, finding: &Finding) -> bool {
        let table = |name: &TableName| finding.relations.iter().any(|r| r.is_called(name));
        let database = |name: &str| {
            let is = |d: &super::NamedDatabase| d.name.as_deref() == Some(name) || d.oid.to_string() == name;
            finding.database.as_ref().is_some_and(is)
        };
        self.kinds.contains(&finding.kind)
            && self.table.is_none_or(table)
            && self.database.is_none_or(database)
            && self.xid.is_none_or(|_| finding.xid.is_some())
    }
}

/// Keeps of deletions and updates as many as that, those of the most rows.
fn most(findings: &mut Vec<Finding>, top: usize, all: bool) {
    let weight = |f: &Finding| f.deleted + f.updated;
    let mut weights: Vec<u64> = findings.iter().map(weight).filter(|w| *w > 0).collect();
    if all || weights.len() <= top {
        return;
    }
    weights.sort_unstable_by(|a, b| b.cmp(a));
    let least = weights.get(top.saturating_sub(1)).copied().unwrap_or(0);
    let mut left = top;
    findings.retain(|f| {
        let kept = weight(f) == 0 || weight(f) >= least && left > 0;
        left -= usize::from(kept && weight(f) > 0);
        kept
    });
}

/// What the summaries tell.
struct Gathered {
    gathered: Gatherer,
    /// Of each unbroken row of segments.
    parts: Vec<Vec<Ends>>,
    /// What is not known, in words.
    unknown: Vec<String>,
    /// How far the last segment reaches, where there are only pieces of it.
    pieces: Option<Lsn>,
}

async fn gather(stretch: Stretch<'_>, terms: &Terms<'_>, watch: &Watch) -> Result<Gathered> {
    let size = stretch.system.document.segment_size;
    let wants = |kind| terms.kinds.contains(&kind);
    let wanted = Wanted {
        rows: (wants(FindKind::Delete) || wants(FindKind::Update)).then_some(terms.rows),
        xid: terms.xid,
        marks: wants(FindKind::Message) || wants(FindKind::CreateDatabase),
        marks_invalid: marks_invalid(stretch.backups),
    };
    let mut gatherer = Gatherer::new(wanted);
    let (mut searched, mut unknown, mut pieces) = (Vec::new(), Vec::new(), None);
    let parts: Vec<Vec<_>> = stretch
        .runs
        .iter()
        .map(|run| {
            let last = stretch.to.map_or(u64::MAX, |to| size.number_of(to));
            let numbered = (run.first..).zip(run.segments.iter().copied());
            numbered.filter(|(n, _)| *n <= last).map(|(_, segment)| segment).collect()
        })
        .collect();
    let total = parts.iter().map(|p| p.len() as u64 * size.bytes()).sum();
    watch.progress.start("searching the WAL", Some(total));
    'search: for part in parts {
        let mut ranges = Vec::with_capacity(part.len());
        let mut summaries = stretch.system.summaries(part, Need::Finding);
        while let Some(segment) = summaries.next().await? {
            watch.interrupt.check()?;
            let broken = match &segment.summary.ending {
                Ending::Broken { at, why } => Some(format!("{} cannot be read at {at}: {why}", segment.name)),
                _ => segment.pieces.as_ref().and_then(|pieces| pieces.why.clone()),
            };
            pieces = segment.pieces.as_ref().map(|pieces| pieces.end);
            if let Some(why) = segment.sound().err().map(|e| e.to_string()).or(broken) {
                unknown.push(format!("what happened there is not known: {why}"));
            }
            ranges.push((segment.name, segment.summary.xids));
            gatherer.segment(&segment.summary);
            watch.progress.advance(size.bytes());
            let begins = segment.summary.times.map(|(first, _)| first);
            if begins.zip(stretch.until).is_some_and(|(begins, until)| begins > until + CLOCK) {
                searched.push(ranges);
                break 'search;
            }
        }
        gatherer.gap();
        searched.push(ranges);
    }
    watch.progress.finish();
    gatherer.finish();
    Ok(Gathered { gathered: gatherer, parts: searched, unknown, pieces })
}

/// Whether the server marks a database before it drops it: by the minor releases at the backups. Unknown where it was
/// updated in between.
fn marks_invalid(backups: &[&BackupDocument]) -> Option<bool> {
    let marks = |backup: &&BackupDocument| match backup.server_version_num {
        number @ ..150_000 => number >= 140_009,
        number => number >= 150_004,
    };
    let (first, last) = (backups.first().map(marks)?, backups.last().map(marks)?);
    (first == last).then_some(first)
}

/// The backups whose catalogues matter: the last before the stretch, those in it, and the first after it.
fn catalogues<'a>(stretch: Stretch<'a>) -> Vec<&'a BackupDocument> {
    let known: Vec<_> = stretch.backups.iter().copied().filter(|b| b.catalogue.is_some()).collect();
    let first = known.iter().rposition(|b| b.stop_lsn <= stretch.from).unwrap_or(0);
    let end = stretch.to.and_then(|to| known.iter().position(|b| b.stop_lsn > to)).map_or(known.len(), |at| at + 1);
    known.get(first..end.max(first)).unwrap_or_default().to_vec()
}

/// Finds the ends of transactions that are not known yet, and drops what was rolled back or did not end.
async fn look_up(
    stretch: Stretch<'_>,
    searched: &[Vec<Ends>],
    cuts: &Cuts,
    findings: &mut Vec<Finding>,
    watch: &Watch,
) -> Result<()> {
    let size = stretch.system.document.segment_size;
    let mut ended = HashMap::new();
    for part in searched {
        let Some((name, _)) = part.first() else { continue };
        let begin = name.start(size)?;
        let end = Lsn(begin.0 + part.len() as u64 * size.bytes());
        let pending = findings.iter().filter(|f| f.pending && f.lsn < end);
        let wanted: HashMap<u32, Lsn> =
            pending.filter_map(|f| Some((f.xid?, f.lsn))).filter(|(xid, _)| !ended.contains_key(xid)).collect();
        ended.extend(ends::find(stretch.system, part, wanted, watch).await?);
    }
    findings.retain_mut(|finding| {
        if !finding.pending {
            return true;
        }
        let asked = finding.kind == FindKind::Commit;
        let end = finding.xid.and_then(|xid| ended.get(&xid));
        if matches!(finding.kind, FindKind::DropDatabase | FindKind::DropTablespace) {
            // It cannot be rolled back.
            finding.time = end.map(|end| end.time).or(finding.time);
            return true;
        }
        let Some(end) = end else { return false };
        (finding.lsn, finding.stop, finding.time, finding.pending) = (end.lsn, end.lsn, Some(end.time), false);
        if finding.deleted + finding.updated > 0 && cuts.miss(finding.listed, end.lsn) {
            finding.mark_at_least();
        }
        if !end.committed {
            finding.kind = FindKind::Abort;
            finding.what = format!("rolled back{}", finding.what.strip_prefix("committed").unwrap_or_default());
        }
        end.committed || asked
    });
    Ok(())
}
