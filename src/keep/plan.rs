//! The plan of an expiry: what goes, why, and what can be recovered afterwards. A dry run prints it, and a real run
//! carries it out.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{
    inventory::{Backup, BesideKind, Folder},
    path,
    policy::Reason,
    ranges::Ranges,
    remain::Remains,
};
use crate::{
    postgres::{SegmentName, SegmentSize, TimelineId},
    repository::{BackupId, BackupObject, Condemned, Incarnation, RollUpName},
};

/// What is to be done with one system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SystemPlan {
    /// The system.
    pub system: Incarnation,
    /// Its backups, oldest first, and what becomes of each.
    pub backups: Vec<Fate>,
    /// The WAL that goes.
    pub wal: Vec<GoneWal>,
    /// The parts that go, by the folders they lie in.
    pub parts: Vec<GoneParts>,
    /// Other objects that go, and their bytes: superseded documents, pieces of segments, roll-ups, labels.
    pub litter: Litter,
    /// What can be recovered afterwards.
    pub remains: Vec<Remains>,
    /// What stays for now, and why, in words.
    pub held: Vec<String>,
    /// What could not be read, in words. Nothing of the system goes then.
    pub doubts: Vec<String>,
    /// What has to be condemned, what was condemned before included.
    #[serde(skip)]
    pub condemned: Condemned,
    /// The number under which that was said on which this plan is built.
    #[serde(skip)]
    pub after: u32,
    /// What has to be done in the folders of backups.
    #[serde(skip)]
    pub folders: BTreeMap<BackupId, FolderWork>,
    /// What has to be done in the archive.
    #[serde(skip)]
    pub archive: BTreeMap<TimelineId, LineWork>,
    /// What counts of the backups that stay.
    #[serde(skip)]
    pub standing: BTreeMap<BackupId, Standing>,
}

/// The numbers of what counts of a backup: lower ones are superseded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Of its document.
    pub document: u32,
    /// Of its manifest.
    pub manifest: u32,
    /// Of its catalogue.
    pub catalogue: Option<u32>,
    /// Of its files from outside the data directory.
    pub extra: Option<u32>,
}

impl Standing {
    pub(super) fn new(backup: &Backup, folder: &Folder) -> Self {
        let (manifest, catalogue, extra) = backup.numbers;
        Self { document: folder.newest_document().unwrap_or(0), manifest, catalogue, extra }
    }

    /// Whether an object of that backup's folder counts no more.
    #[must_use]
    pub fn supersedes(&self, object: BackupObject) -> bool {
        match object {
            BackupObject::Document(number) => number < self.document,
            BackupObject::Manifest(number) => number < self.manifest,
            BackupObject::Catalogue(number) => self.catalogue.is_some_and(|counts| number < counts),
            BackupObject::Extra(number) => self.extra.is_some_and(|counts| number < counts),
            BackupObject::Intent(_) | BackupObject::About(_) | BackupObject::Part(_) => false,
        }
    }
}

/// What becomes of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fate {
    /// Its id.
    pub id: BackupId,
    /// What the user called it.
    pub label: Option<String>,
    /// Why it stays; empty when it goes.
    pub kept: BTreeSet<Reason>,
}

/// A row of segments that goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GoneWal {
    /// The first.
    pub first: SegmentName,
    /// The last.
    pub last: SegmentName,
    /// How many.
    pub segments: u64,
    /// The bytes of their objects.
    pub bytes: u64,
}

/// Why parts go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// Their backup goes, and no other needs them.
    Expired,
    /// Their backup is gone, and the last that needed them goes or is gone.
    Unneeded,
    /// They were stored by an attempt that never became a backup.
    Attempt,
}

/// Parts that go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GoneParts {
    /// The folder they lie in.
    pub backup: BackupId,
    /// Why.
    pub why: Why,
    /// How many.
    pub parts: u64,
    /// The bytes of the objects.
    pub bytes: u64,
}

/// Small objects that go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Litter {
    /// How many.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Litter {
    pub(super) fn add(&mut self, objects: u64, bytes: u64) {
        self.objects += objects;
        self.bytes += bytes;
    }
}

/// What has to be done in the folder of a backup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FolderWork {
    /// Whether an attempt is to be given up first.
    pub give_up: bool,
    /// Documents that it can write no more then, because these numbers are taken.
    pub closes: BTreeMap<BackupId, u32>,
    /// Documents that go before all else, the lowest number first.
    pub documents: Vec<u32>,
    /// What goes after them.
    pub objects: Vec<BackupObject>,
    /// Parts that go then: first and last numbers.
    pub parts: Vec<(u32, u32)>,
}

impl FolderWork {
    /// That object goes, which is no part.
    pub fn object(&mut self, object: BackupObject) {
        match object {
            BackupObject::Document(number) => {
                let at = self.documents.partition_point(|other| *other < number);
                self.documents.insert(at, number);
            }
            other => self.objects.push(other),
        }
    }

    /// That part goes; they come in their order.
    pub fn part(&mut self, number: u32) {
        match self.parts.last_mut().filter(|(_, last)| last + 1 == number) {
            Some((_, last)) => *last = number,
            None => self.parts.push((number, number)),
        }
    }
}

/// What has to be done with the WAL of a timeline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LineWork {
    /// Segments that go.
    pub segments: Ranges,
    /// Whatever lies in these folders goes, and these labels.
    pub beside: Vec<(SegmentName, BesideKind)>,
    /// Roll-ups that go.
    pub roll_ups: Vec<RollUpName>,
}

impl SystemPlan {
    /// How many objects go.
    #[must_use]
    pub fn objects(&self) -> u64 {
        self.wal.iter().map(|wal| wal.segments).sum::<u64>()
            + self.parts.iter().map(|parts| parts.parts).sum::<u64>()
            + self.litter.objects
    }

    /// The bytes that come free.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.wal.iter().map(|wal| wal.bytes).sum::<u64>()
            + self.parts.iter().map(|parts| parts.bytes).sum::<u64>()
            + self.litter.bytes
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.objects() == 0 && self.condemned.is_empty() && self.folders.values().all(|work| !work.give_up)
    }
}

/// The first number after those that go, by timeline: below it names are refused from then on.
#[must_use]
pub fn horizons(plan: &SystemPlan, size: SegmentSize) -> Vec<SegmentName> {
    let last = |(timeline, rows): (TimelineId, Ranges)| {
        let (_, end) = rows.iter().next_back()?;
        SegmentName::from_number(timeline, end, size)
    };
    path::named(&plan.condemned.wal, size).into_iter().filter_map(last).collect()
}
