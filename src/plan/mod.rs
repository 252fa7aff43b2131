//! Plans: a wish resolved to one backup, one path of timelines and one exact LSN, with the proof that every segment
//! up to it is there. Reads only.
//!
//! PostgreSQL is always handed an LSN, because it checks a time or a name only while it replays, and tells after an
//! hour that there was no such thing.

mod drops;
mod estimate;
mod find;
mod finish;
mod histories;
mod host;
mod name;
mod passing;
mod path;
mod refusal;
mod resolve;
mod scan;
mod search;
mod survey;
mod target;
#[cfg(test)]
mod tests;
mod whole;
pub mod window;

pub use estimate::Estimate;
pub use find::{Edge, FindKind, FindReport, FindRequest, Finding, NamedDatabase, NamedRelation, find};
pub use host::{About, Difference, Host};
pub use name::TableName;
pub use resolve::{PlanRequest, Watch, plan};
pub use survey::{CreatedTablespace, Moment, Stop};
pub use target::{Point, Target};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    error::Result,
    postgres::{Lsn, RequiredSettings, SegmentName, SegmentSize, TimelineId},
    repository::{BackupDocument, ClusterName, Incarnation},
};

/// PostgreSQL removes WAL that it has replayed while it goes on; about this much of it, in bytes, stays at a time when
/// nothing in the configuration says otherwise (`max_wal_size`).
pub const WAL_AT_A_TIME: u64 = 1 << 30;

/// How to reach a target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The cluster.
    pub cluster: ClusterName,
    /// The system and its incarnation.
    pub incarnation: Incarnation,
    /// What was wished.
    pub target: Target,
    /// When it was planned.
    #[serde(default)]
    pub planned: DateTime<Utc>,
    /// The backup that recovery begins with.
    pub backup: BackupDocument,
    /// `recovery_target_timeline`.
    pub timeline: TimelineId,
    /// The timelines that recovery passes through, the backup's first.
    #[serde(default)]
    pub path: Vec<Passed>,
    /// Where recovery stops; `None` means as soon as the backup is consistent.
    pub stop: Option<Stop>,
    /// The first segment that is needed.
    pub first_segment: SegmentName,
    /// The last segment that is needed.
    pub last_segment: SegmentName,
    /// How many bytes of the last segment are needed, where there are only pieces of it; 0 where it is whole. A recovery
    /// is served them because its plan names that segment as its last.
    #[serde(default, skip_serializing_if = "is_none_of_them")]
    pub from_pieces: u64,
    /// How many segments from the first to the last.
    pub segments: u64,
    /// The bytes of their objects.
    pub wal_bytes: u64,
    /// The bytes that are fetched of the backup's parts and of those of older backups that it needs.
    #[serde(default)]
    pub backup_bytes: u64,
    /// The bytes that must be free for the copy: the cluster's files, and the WAL that stays at a time
    /// ([`WAL_AT_A_TIME`]).
    #[serde(default)]
    pub disk_bytes: u64,
    /// The last commit that will be there, as far as the log was looked at: from the backup on at least, and for `latest`
    /// some way back before it.
    pub last_commit: Option<Moment>,
    /// The first committed transaction that will not be there. One that was rolled back only where recovery stops before
    /// that and no commit follows in the archive.
    pub first_left_out: Option<Moment>,
    /// For `latest`: how many seconds before the plan was made its last commit was. A crash of the server loses what
    /// came after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind_seconds: Option<f64>,
    /// What the recovering server needs at least: the backup's settings and every change on the way.
    pub required: RequiredSettings,
    /// Those of them that were raised after the backup began.
    #[serde(default)]
    pub raised: Vec<Raised>,
    /// Tablespaces that replay creates at their old paths.
    pub created_tablespaces: Vec<CreatedTablespace>,
    /// Names of transactions that are prepared, and not finished, at the stop.
    pub prepared: Vec<String>,
    /// How long it will take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate: Option<Estimate>,
    /// What a person should know before going on.
    pub warnings: Vec<String>,
}

impl Plan {
    /// The last segment that is needed and whole, of a system with segments of that size.
    pub fn last_whole_segment(&self, size: SegmentSize) -> Result<SegmentName> {
        let last = self.last_segment.number(size)?;
        if self.from_pieces == 0 || last == 0 {
            return Ok(self.last_segment);
        }
        let last_byte = Lsn(last * size.bytes() - 1);
        let on = self.path.iter().find(|passed| passed.left.is_none_or(|left| last_byte < left));
        Ok(SegmentName::holding(on.map_or(self.timeline, |passed| passed.timeline), last_byte, size))
    }

    /// The segments of each timeline on the way: the first and the last. Of one in which a timeline is left both copies
    /// are among them.
    #[must_use]
    pub fn rows(&self, size: SegmentSize) -> Vec<(SegmentName, SegmentName)> {
        let mut rows = Vec::new();
        let mut begin = self.first_segment.number(size).unwrap_or(0);
        for passed in &self.path {
            let name = |number| SegmentName::from_number(passed.timeline, number, size);
            let last = match passed.left {
                Some(left) => name(size.number_of(left)),
                None => Some(self.last_segment),
            };
            rows.extend(name(begin).zip(last).filter(|(first, last)| first <= last));
            begin = passed.left.map_or(begin, |left| size.number_of(left));
        }
        rows
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_none_of_them(bytes: &u64) -> bool {
    *bytes == 0
}

/// A timeline on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passed {
    /// The timeline.
    pub timeline: TimelineId,
    /// Where recovery leaves it for the next one; none of the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<Lsn>,
}

/// A setting that a recovering server needs to be higher than when the backup was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Raised {
    /// Its name.
    pub setting: String,
    /// What it was for the backup.
    pub from: u32,
    /// What it must be at least.
    pub to: u32,
    /// Where the log says so first.
    pub lsn: Lsn,
}
