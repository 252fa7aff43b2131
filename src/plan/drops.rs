//! The moment before a table or a database was dropped, as an exclusive LSN; and where there is no such drop, what is
//! called nearly so.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::{
    find::{
        FindKind, Finding, NamedDatabase,
        search::{Searched, Stretch, Terms, search},
    },
    name::{self, TableName},
    path::Run,
    resolve::Watch,
    target::Point,
};
use crate::{
    error::{Error, Result},
    human,
    postgres::Lsn,
    repository::{BackupDocument, System},
};

/// So many names that are like the one that is missed are told.
const ALIKE: usize = 3;

/// What of the log is searched.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window<'a> {
    /// The system.
    pub(super) system: &'a System,
    /// The unbroken row of segments on it.
    pub(super) run: &'a Run,
    /// The backups that recovery in it can begin with, oldest first; there is at least one.
    pub(super) usable: &'a [&'a BackupDocument],
    /// Where the search begins: what happened before does not count.
    pub(super) begin: Lsn,
    /// Who watches.
    pub(super) watch: &'a Watch,
}

/// What a search gave.
pub(super) enum Sought {
    /// Where the first record starts that recovery must not replay.
    At(Lsn),
    /// There is no such drop.
    Missed(Missed),
}

/// What was searched in vain, and what is called nearly as the drop that was looked for.
#[derive(Clone, Debug)]
pub(super) struct Missed {
    /// Where the search began, and when that was.
    pub(super) from: Lsn,
    pub(super) since: DateTime<Utc>,
    /// Where it ended, and the last time that the log tells there.
    pub(super) to: Lsn,
    pub(super) until: Option<DateTime<Utc>>,
    /// What was dropped, and when.
    pub(super) dropped: Vec<(String, Option<DateTime<Utc>>)>,
    /// What was not dropped.
    pub(super) known: Vec<String>,
}

impl Missed {
    /// Both this and what was searched in vain before it.
    pub(super) fn with(mut self, earlier: Self) -> Self {
        (self.from, self.since) = (earlier.from, earlier.since);
        self.dropped.extend(earlier.dropped);
        self.dropped.truncate(ALIKE);
        self
    }
}

/// Looks for the drop that `point` names (one of [`Point::Drop`] and [`Point::DropDatabase`]). An error of kind
/// `Ambiguous` lists the drops when there are several.
pub(super) async fn resolve(window: Window<'_>, point: &Point) -> Result<Sought> {
    let kinds: &[FindKind] = match point {
        Point::DropDatabase(_) => &[FindKind::DropDatabase],
        _ => &[FindKind::Drop, FindKind::Truncate],
    };
    let stretch = Stretch {
        system: window.system,
        runs: std::slice::from_ref(window.run),
        backups: window.usable,
        from: window.begin,
        to: None,
        until: None,
    };
    let like = if let Point::Drop(name) = point { Some(name) } else { None };
    let terms = Terms { kinds, table: None, like, database: None, xid: None, rows: u64::MAX, top: 0 };
    let searched = search(stretch, &terms, window.watch).await?;
    Ok(match choose(&searched.findings, point)? {
        Some(lsn) => Sought::At(lsn),
        None => Sought::Missed(missed(window, searched, point)),
    })
}

/// The last of the drops of what `point` names. What has that name in several places is for a person to choose.
fn choose(findings: &[Finding], point: &Point) -> Result<Option<Lsn>> {
    // By what was dropped, the last time.
    let mut places: BTreeMap<String, &Finding> = BTreeMap::new();
    for finding in findings {
        match point {
            Point::Drop(name) => {
                for relation in finding.relations.iter().filter(|r| r.is_called(name)) {
                    places.insert(relation.to_string(), finding);
                }
            }
            Point::DropDatabase(name) => {
                let is = |d: &&NamedDatabase| d.name.as_ref() == Some(name);
                if finding.database.as_ref().is_some_and(|d| is(&d)) {
                    places.insert(name.clone(), finding);
                }
            }
            _ => {}
        }
    }
    if places.len() > 1 {
        let list: Vec<String> = places
            .iter()
            .map(|(name, finding)| format!("{name}{} (--to before:{})", at(finding.time), finding.stop))
            .collect();
        return Err(Error::ambiguous(format!("several tables of that name were dropped: {}", list.join(", ")))
            .hint("name it whole, as in before-drop:DATABASE.SCHEMA.TABLE, or take one of these --to"));
    }
    Ok(places.into_values().next().map(|finding| finding.stop))
}

fn at(time: Option<DateTime<Utc>>) -> String {
    time.map_or_else(String::new, |time| format!(" at {}", human::exact_time(time)))
}

fn missed(window: Window<'_>, searched: Searched, point: &Point) -> Missed {
    let size = window.system.document.segment_size;
    let (mut dropped, mut known) = match point {
        Point::Drop(wanted) => {
            let relations = searched.findings.iter().flat_map(|f| f.relations.iter().map(|r| (r, f.time)));
            let dropped: Vec<_> = relations
                .filter_map(|(r, time)| {
                    Some((likeness(wanted, (&r.database.name, &r.schema), r.name.as_ref()?), r.to_string(), time))
                })
                .collect();
            let known = searched.tables.iter().filter_map(|r| {
                Some((likeness(wanted, (&r.database.name, &r.schema), r.name.as_ref()?), r.to_string()))
            });
            (dropped, known.collect::<Vec<_>>())
        }
        Point::DropDatabase(wanted) => {
            let databases =
                searched.findings.iter().filter_map(|f| Some((f.database.as_ref()?.name.as_ref()?, f.time)));
            let dropped =
                databases.map(|(name, time)| (name::likeness(wanted, name), name::quoted(name), time)).collect();
            let known = searched.databases.iter().map(|name| (name::likeness(wanted, name), name::quoted(name)));
            (dropped, known.collect())
        }
        _ => (Vec::new(), Vec::new()),
    };
    // Of several drops of one name the last is told.
    dropped.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(b.2.cmp(&a.2)));
    dropped.dedup_by(|a, b| a.1 == b.1);
    known.retain(|(_, name)| dropped.iter().all(|(_, gone, _)| gone != name));
    known.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    known.dedup_by(|a, b| a.1 == b.1);
    let is_alike = |likeness: f64| likeness >= name::ALIKE;
    Missed {
        from: window.begin,
        since: window.usable.first().map_or(DateTime::UNIX_EPOCH, |backup| backup.started),
        to: searched.pieces.unwrap_or(Lsn(window.run.whole_end() * size.bytes())),
        until: searched.last_time,
        dropped: dropped
            .into_iter()
            .filter(|d| is_alike(d.0))
            .map(|(_, name, time)| (name, time))
            .take(ALIKE)
            .collect(),
        known: known.into_iter().filter(|k| is_alike(k.0)).map(|(_, name)| name).take(ALIKE).collect(),
    }
}

/// How much a table's names are like the wanted ones; of names that are equally like it those that lie where it is wanted
/// come first.
fn likeness(wanted: &TableName, place: (&Option<String>, &Option<String>), table: &str) -> f64 {
    let is =
        |wanted: &Option<String>, has: &Option<String>| if wanted.is_some() && wanted == has { 0.001 } else { 0.0 };
    name::likeness(&wanted.table, table) + is(&wanted.database, place.0) + is(&wanted.schema, place.1)
}
