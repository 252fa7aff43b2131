//! Plans: a wish resolved to one backup, one path of timelines and one exact LSN, with the proof that every segment
//! up to it is there. Reads only.
//!
//! PostgreSQL is always handed an LSN, because it checks a time or a name only while it replays, and tells after an
//! hour that there was no such thing.

mod chain;
mod drops;
mod name;
mod path;
mod refusal;
mod resolve;
mod scan;
mod survey;
mod target;

pub use name::TableName;
pub use path::reach;
pub use resolve::{PlanRequest, Watch, plan};
pub use survey::{CreatedTablespace, Moment, Stop};
pub use target::{Point, Target};

use serde::{Deserialize, Serialize};

use crate::{
    postgres::{RequiredSettings, SegmentName, TimelineId},
    repository::{BackupDocument, ClusterName, Incarnation},
};

/// How to reach a target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The cluster.
    pub cluster: ClusterName,
    /// The system and its incarnation.
    pub incarnation: Incarnation,
    /// What was wished.
    pub target: Target,
    /// The backup that recovery begins with.
    pub backup: BackupDocument,
    /// `recovery_target_timeline`.
    pub timeline: TimelineId,
    /// Where recovery stops; `None` means as soon as the backup is consistent.
    pub stop: Option<Stop>,
    /// The first segment that is needed.
    pub first_segment: SegmentName,
    /// The last segment that is needed.
    pub last_segment: SegmentName,
    /// How many segments from the first to the last.
    pub segments: u64,
    /// The bytes of their objects.
    pub wal_bytes: u64,
    /// The last commit that will be there, of those after the backup began.
    pub last_commit: Option<Moment>,
    /// The first transaction that will not be there.
    pub first_left_out: Option<Moment>,
    /// What the recovering server needs at least: the backup's settings and every change on the way.
    pub required: RequiredSettings,
    /// Tablespaces that replay creates at their old paths.
    pub created_tablespaces: Vec<CreatedTablespace>,
    /// Names of transactions that are prepared, and not finished, at the stop.
    pub prepared: Vec<String>,
    /// What a person should know before going on.
    pub warnings: Vec<String>,
}
