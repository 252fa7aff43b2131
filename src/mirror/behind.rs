//! How far a mirror is behind the first.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{
    Opened,
    compare::{Comparison, Lack},
    in_step::Positions,
};
use crate::{
    error::Result,
    postgres::SegmentName,
    repository::{BackupId, System, segment_of, wal_object},
};

/// What a mirror lacks of one system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Behind {
    /// How many segments.
    pub segments: usize,
    /// How many objects in all.
    pub objects: usize,
    /// Their bytes.
    pub bytes: u64,
    /// The backups that do not exist there.
    pub backups: Vec<BackupId>,
    /// When the oldest of all that came to be, as far as that is known.
    pub since: Option<DateTime<Utc>>,
    /// Objects that are there with another length.
    pub differing: Vec<String>,
}

impl Behind {
    /// Whether nothing is lacking.
    #[must_use]
    pub fn is_in_step(&self) -> bool {
        *self == Self::default()
    }
}

/// Compares everything.
pub async fn behind(first: &System, mirror: &Opened) -> Result<Behind> {
    let mut found = Behind::default();
    let mut oldest: Option<SegmentName> = None;
    let mut comparison = Comparison::new(first, &*mirror.store, Positions::default()).await?;
    while let Some(lack) = comparison.next().await? {
        let listed = match lack {
            Lack::Objects(listed) => listed,
            Lack::Differs(listed, _) => {
                found.differing.push(listed.key.to_string());
                continue;
            }
            Lack::Backup(missing) => {
                if !missing.documents.is_empty() {
                    found.backups.push(missing.id);
                    found.since = found.since.min(Some(missing.id.instant())).or(Some(missing.id.instant()));
                }
                missing.objects.into_iter().chain(missing.documents).collect()
            }
        };
        found.objects += listed.len();
        found.bytes += listed.iter().map(|listed| listed.length).sum::<u64>();
        for name in listed.iter().filter_map(|listed| segment_of(&listed.key)) {
            found.segments += 1;
            // Of the newest timeline the first that is lacking; older ones end where it begins.
            oldest = oldest.filter(|oldest| oldest.timeline >= name.timeline).or(Some(name));
        }
    }
    if let Some(oldest) = oldest {
        let head = wal_object::read_head(&*first.store, &first.folder.segment(oldest)?).await;
        // A head that cannot be read tells no time; that it cannot is told by others.
        let ended = head.ok().and_then(|head| head.summary?.times).map(|(_, last)| last);
        found.since = [found.since, ended].into_iter().flatten().min();
    }
    Ok(found)
}
