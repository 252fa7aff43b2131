//! How far a mirror is known to be in step with the first, as this host remembers it, so that only what came since has
//! to be listed. Whatever is doubtful (no record, another repository's, an old one) means that everything is compared,
//! which is always right.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::{
    config,
    error::{Error, Result},
    postgres::{SegmentName, TimelineId},
    repository::{BackupId, RepositoryDocument, SystemFolder},
};

/// After this time everything is compared again.
const BELIEVED: TimeDelta = TimeDelta::hours(24);

/// Up to where two repositories hold the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Positions {
    /// The newest segment of each timeline.
    segments: Vec<SegmentName>,
    /// The newest backup.
    pub backup: Option<BackupId>,
}

impl Positions {
    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The newest segment of a timeline.
    pub fn segment(&self, timeline: TimelineId) -> Option<SegmentName> {
        self.segments.iter().find(|name| name.timeline == timeline).copied()
    }

    /// Takes note of a segment.
    pub fn saw(&mut self, timeline: TimelineId, name: SegmentName) {
        match self.segments.iter_mut().find(|known| known.timeline == timeline) {
            Some(known) => *known = name.max(*known),
            None => self.segments.push(name),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Record {
    /// The id of the first.
    first: String,
    /// When everything was compared last.
    whole: DateTime<Utc>,
    positions: Positions,
}

/// The record of one system in one mirror: `<state_dir>/mirrors/<mirror's id>/<cluster>/<system>-<incarnation>/`.
#[derive(Debug)]
pub struct InStep {
    folder: PathBuf,
    first: String,
}

impl InStep {
    /// The record below `state_dir`, which has to be ours alone: a false one would leave a mirror behind.
    pub fn open(
        state_dir: &Path,
        first: &RepositoryDocument,
        mirror: &RepositoryDocument,
        system: &SystemFolder,
    ) -> Result<Self> {
        config::prove_state_dir(state_dir)?;
        let folder = state_dir.join("mirrors").join(mirror.folder_name()?).join(system.prefix());
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(|e| Error::io("create", &folder, e))?;
        Ok(Self { folder, first: first.id.clone() })
    }

    /// Waits until no other process of this host copies to that mirror; nobody else does while the file is held.
    pub async fn alone(&self) -> Result<File> {
        loop {
            match self.try_alone()? {
                Some(lock) => return Ok(lock),
                None => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }

    /// The same, unless another process does.
    pub fn try_alone(&self) -> Result<Option<File>> {
        let path = self.folder.join("lock");
        let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = open.map_err(|e| Error::io("open", &path, e))?;
        Ok(flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok().then_some(file))
    }

    /// How far it is; nothing where that is doubtful.
    pub(super) fn read(&self, now: DateTime<Utc>) -> Positions {
        let record = fs::read(self.place()).ok().and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
        let fresh = |record: &Record| {
            let age = now - record.whole;
            record.first == self.first && age >= TimeDelta::zero() && age < BELIEVED
        };
        record.filter(fresh).map(|record| record.positions).unwrap_or_default()
    }

    /// Writes down how far it is; `whole` when everything was compared.
    pub(super) fn write(&self, positions: &Positions, whole: bool, now: DateTime<Utc>) -> io::Result<()> {
        let before = || serde_json::from_slice::<Record>(&fs::read(self.place()).ok()?).ok();
        let compared = if whole { Some(now) } else { before().map(|record| record.whole) };
        // Without a comparison of everything behind it, it tells nothing.
        let Some(whole) = compared else { return Ok(()) };
        let record = Record { first: self.first.clone(), whole, positions: positions.clone() };
        let temporary = self.folder.join(format!("in-step.{}.tmp", std::process::id()));
        fs::write(&temporary, serde_json::to_vec(&record)?)?;
        fs::rename(&temporary, self.place())
    }

    fn place(&self) -> PathBuf {
        self.folder.join("in-step")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::FORMAT;

    fn repository(id: &str) -> RepositoryDocument {
        RepositoryDocument { format: FORMAT, id: id.into(), made: DateTime::UNIX_EPOCH, mirror_of: None }
    }

    #[test]
    fn what_is_doubtful_counts_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let system = SystemFolder { cluster: "main".parse().unwrap(), incarnation: "7-1".parse().unwrap() };
        let open = |first, mirror| InStep::open(&state, &repository(first), &repository(mirror), &system).unwrap();
        let now = DateTime::UNIX_EPOCH + TimeDelta::days(3);
        let mut positions = Positions::default();
        positions.saw(TimelineId::FIRST, "000000010000000000000007".parse().unwrap());
        positions.saw(TimelineId::FIRST, "000000010000000000000003".parse().unwrap());
        open("a", "b").write(&positions, false, now).unwrap();
        assert!(open("a", "b").read(now).is_empty(), "never compared wholly");
        open("a", "b").write(&positions, true, now).unwrap();
        let later = now + TimeDelta::hours(23);
        open("a", "b").write(&positions, false, later).unwrap();
        assert_eq!(open("a", "b").read(later), positions);
        assert_eq!(positions.segment(TimelineId::FIRST).unwrap().to_string(), "000000010000000000000007");
        for (first, mirror, when) in [
            ("a", "c", later),
            ("c", "b", later),
            ("a", "b", now + TimeDelta::hours(25)),
            ("a", "b", now - TimeDelta::hours(1)),
        ] {
            assert!(open(first, mirror).read(when).is_empty(), "{first} {mirror} {when}");
        }
        fs::write(open("a", "b").place(), "{").unwrap();
        assert!(open("a", "b").read(later).is_empty());
    }

    #[test]
    fn one_process_copies_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let system = SystemFolder { cluster: "main".parse().unwrap(), incarnation: "7-1".parse().unwrap() };
        let step = InStep::open(&folder.path().join("s"), &repository("a"), &repository("b"), &system).unwrap();
        let held = step.try_alone().unwrap();
        assert!(held.is_some() && step.try_alone().unwrap().is_none());
        drop(held);
        assert!(step.try_alone().unwrap().is_some());
    }
}
