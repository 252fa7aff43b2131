//! What an expiry has condemned: it is being deleted, and nothing new may come to need it.
//!
//! The document with the highest number counts, and each one is made from the one before: of two expiries that planned
//! from the same one only one can put the next, and the other plans anew. A condemnation is final. When whoever put it
//! is killed, the next expiry ends what was begun; what has gone by then is put down by a next number without it.
//!
//! Who is about to need something (a backup, of its ancestor) says so first, by an intent, and reads this then. An
//! expiry puts this first and looks for intents then. So one of the two sees the other.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{BackupId, FORMAT, PartName, RepositoryName, System, numbered};
use crate::{error::Result, postgres::SegmentName, store::Put};

/// The folder below `notes/`.
const CONDEMNED: &str = "condemned";

/// Everything that is condemned.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condemned {
    /// The format of the repository.
    pub format: u32,
    /// When an expiry put it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<DateTime<Utc>>,
    /// Where that expiry runs.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// Backups that will not exist any more.
    #[serde(default)]
    pub backups: Vec<BackupId>,
    /// Attempts that will never be backups: their folders get a tombstone in place of a document.
    #[serde(default)]
    pub attempts: Vec<BackupId>,
    /// Parts, by the folders they lie in: first and last numbers, both included.
    #[serde(default)]
    pub parts: BTreeMap<BackupId, Vec<(u32, u32)>>,
    /// Rows of segments: the first and the last, both included, of one timeline.
    #[serde(default)]
    pub wal: Vec<(SegmentName, SegmentName)>,
    /// What other repositories that hold the same have yet to remove of what is gone here, by the names that the
    /// configuration calls them. One that was named once is always named, so that a host that does not know of it adds
    /// to what it owes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub owed: BTreeMap<RepositoryName, Condemned>,
}

impl Condemned {
    /// Whether nothing is, whatever others owe.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.backups.is_empty() && self.attempts.is_empty() && self.parts.is_empty() && self.wal.is_empty()
    }

    /// Whether that part is.
    #[must_use]
    pub fn has_part(&self, (backup, number): PartName) -> bool {
        self.parts.get(&backup).is_some_and(|rows| rows.iter().any(|(first, last)| (*first..=*last).contains(&number)))
    }

    /// The first condemned row that holds one of these segments, which are of one timeline.
    #[must_use]
    pub fn touches(&self, first: SegmentName, last: SegmentName) -> Option<(SegmentName, SegmentName)> {
        let same = |row: &&(SegmentName, SegmentName)| row.0.timeline == first.timeline;
        self.wal.iter().filter(same).find(|row| row.0 <= last && first <= row.1).copied()
    }

    /// Adds what another condemns; what others owe is left as it is.
    pub fn add(&mut self, other: Self) {
        self.backups.extend(other.backups);
        self.attempts.extend(other.attempts);
        for (backup, rows) in other.parts {
            self.parts.entry(backup).or_default().extend(rows);
        }
        self.wal.extend(other.wal);
        self.backups.sort_unstable();
        self.backups.dedup();
        self.attempts.sort_unstable();
        self.attempts.dedup();
        self.parts.values_mut().for_each(|rows| {
            rows.sort_unstable();
            rows.dedup();
        });
        self.wal.sort_unstable();
        self.wal.dedup();
    }
}

impl System {
    /// What is condemned at this instant, and the number under which it says so (0: nothing ever was).
    pub async fn condemned(&self) -> Result<(u32, Condemned)> {
        let (number, found) = numbered::highest(&*self.store, &self.folder.notes(CONDEMNED)).await?;
        Ok((number, found.unwrap_or_default()))
    }

    /// Puts what is condemned from now on in place of what was under `number`. False when another expiry was first: then
    /// nothing that was planned counts any more.
    pub async fn condemn(&self, number: u32, condemned: &Condemned) -> Result<bool> {
        let document = Condemned { format: FORMAT, ..condemned.clone() };
        let put = numbered::put_next(&*self.store, &self.folder.notes(CONDEMNED), number, &document).await?;
        Ok(put == Put::Created)
    }
}
