//! The moment before a table or a database was dropped, as an exclusive LSN.

use std::collections::BTreeMap;

use super::{
    find::{
        FindKind, Finding, NamedDatabase,
        search::{Stretch, Terms, search},
    },
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

/// Where the first record starts that recovery must not replay, for the drop that `point` names (one of
/// [`Point::Drop`] and [`Point::DropDatabase`]); `None` when there is no such drop in the window. An error of kind
/// `NotFound` lists the drops when there are several.
pub(super) async fn resolve(window: Window<'_>, point: &Point) -> Result<Option<Lsn>> {
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
    let terms = Terms { kinds, table: None, database: None, xid: None, rows: u64::MAX, top: 0 };
    choose(&search(stretch, &terms, window.watch).await?.findings, point)
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
            .map(|(name, finding)| {
                let time = finding.time.map_or_else(String::new, |t| format!(" at {}", human::exact_time(t)));
                format!("{name}{time} (--to before:{})", finding.stop)
            })
            .collect();
        return Err(Error::not_found(format!("several tables of that name were dropped: {}", list.join(", ")))
            .hint("name it whole, as in before-drop:DATABASE.SCHEMA.TABLE, or take one of these --to"));
    }
    Ok(places.into_values().next().map(|finding| finding.stop))
}
