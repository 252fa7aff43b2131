//! The moment before a table or a database was dropped, as an exclusive LSN.

use super::{path::Run, resolve::Watch, target::Point};
use crate::{
    error::{Error, Result},
    postgres::{Lsn, TimelineHistory},
    repository::{BackupDocument, System},
};

/// What of the log is searched.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window<'a> {
    /// The system.
    pub(super) system: &'a System,
    /// The path.
    pub(super) history: &'a TimelineHistory,
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
    let _ = (window.system, window.history, window.run, window.usable, window.begin, window.watch);
    Err(Error::invalid(format!("before-{point} is not supported yet")))
}
