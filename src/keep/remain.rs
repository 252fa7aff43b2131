//! What can be recovered once a plan has been carried out, as far as listings tell. Pure.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{
    choose::Chosen,
    inventory::{Backup, Inventory},
    path::{Segments, Way},
};
use crate::{
    postgres::{Lsn, TimelineId},
    repository::BackupId,
};

/// An unbroken stretch of a timeline that can be recovered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Remains {
    /// The timeline.
    pub timeline: TimelineId,
    /// The backup that it begins with.
    pub backup: BackupId,
    /// How many backups lie in it.
    pub backups: u64,
    /// Where that backup is consistent.
    pub from: Lsn,
    /// When it was.
    pub since: DateTime<Utc>,
    /// The end of the last segment.
    pub to: Lsn,
    /// Whether more is to come: the timeline lives, and this is its end.
    pub goes_on: bool,
}

/// What can be recovered along each timeline with these segments and the backups that stay. What a timeline shares with
/// its ancestors is told of them.
#[must_use]
pub fn remains(found: &Inventory, chosen: &Chosen, there: &Segments) -> Vec<Remains> {
    let size = found.segment_size;
    let mut all = Vec::new();
    for (timeline, line) in &found.lines {
        let way = Way::new(&line.history, there, size);
        let mut backups: Vec<&Backup> = found
            .backups
            .iter()
            .filter(|backup| chosen.kept.contains_key(&backup.id) && backup.lies_on(&line.history))
            .collect();
        backups.sort_by_key(|backup| (backup.start, backup.id));
        let mut own: Vec<Remains> = Vec::new();
        for backup in backups {
            let (first, after) = backup.span(size);
            let end = way.end(first);
            if end < after {
                continue;
            }
            let to = Lsn(end.saturating_mul(size.bytes()));
            match own.last_mut().filter(|last| last.to == to) {
                Some(last) => last.backups += 1,
                None => own.push(Remains {
                    timeline: *timeline,
                    backup: backup.id,
                    backups: 1,
                    from: backup.stop,
                    since: backup.stopped,
                    to,
                    goes_on: false,
                }),
            }
        }
        if let Some(last) = own.last_mut() {
            last.goes_on = chosen.living.contains_key(timeline);
        }
        let reaches = |one: &Remains| one.to > way.fork();
        all.extend(own.into_iter().filter(reaches));
    }
    all
}
