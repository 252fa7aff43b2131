//! What a verification has found: plain values, for words and for JSON.

use serde::Serialize;

use super::deep::Deep;
use crate::{
    plan::window::{Instant, Window},
    postgres::TimelineId,
    repository::{BackupId, Incarnation},
};

/// How closely was looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Depth {
    /// At names, lengths, manifests, and how the records of segments are linked.
    Fast,
    /// At the content of objects as well.
    Deep,
}

/// What is wrong with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wrong {
    /// It is not there.
    Missing,
    /// It has another length than it was written with.
    Length,
    /// It does not hold what was written.
    Content,
    /// Its head is lost or damaged; what it holds is whole, and proves itself.
    Head,
    /// Recovery cannot go on from the segment before it.
    Chain,
}

/// A damaged object, or a row of segments that are missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its key; of several the first.
    pub object: String,
    /// The last of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub through: Option<String>,
    /// How many they are.
    pub objects: u64,
    /// What is wrong.
    pub wrong: Wrong,
    /// The same in words.
    pub why: String,
    /// The backups that nothing can be restored from because of it.
    pub backups: Vec<BackupId>,
    /// What it costs besides backups and instants, or that it costs nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub costs: Option<String>,
    /// The other repositories that have it whole.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub whole_in: Vec<String>,
    /// What a person can do.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mend: Vec<String>,
}

impl Finding {
    /// One object.
    #[must_use]
    pub fn new(object: impl ToString, wrong: Wrong, why: impl Into<String>) -> Self {
        Self {
            object: object.to_string(),
            through: None,
            objects: 1,
            wrong,
            why: why.into(),
            backups: Vec::new(),
            costs: None,
            whole_in: Vec::new(),
            mend: Vec::new(),
        }
    }

    /// With the backups that it costs.
    #[must_use]
    pub fn backups(self, backups: Vec<BackupId>) -> Self {
        Self { backups, ..self }
    }

    /// With what else it costs.
    #[must_use]
    pub fn costs(self, costs: impl Into<String>) -> Self {
        Self { costs: Some(costs.into()), ..self }
    }
}

/// A backup that nothing can be restored from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LostBackup {
    /// Its id.
    pub id: BackupId,
    /// Why.
    pub why: String,
}

/// Instants that cannot be recovered because something is damaged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LostInstants {
    /// The timeline.
    pub timeline: TimelineId,
    /// Everything behind this,
    pub from: Instant,
    /// and before this.
    pub to: Instant,
}

/// What can be recovered along a timeline.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recoverable {
    /// The timeline.
    pub timeline: TimelineId,
    /// Whether the cluster writes it.
    pub live: bool,
    /// The unbroken intervals.
    pub windows: Vec<Window>,
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Looked {
    /// Backups that exist.
    pub backups: u64,
    /// Parts that they need.
    pub parts: u64,
    /// Bytes of these objects.
    pub part_bytes: u64,
    /// Layers of their files.
    pub layers: u64,
    /// Whole segments.
    pub segments: u64,
    /// Bytes of the objects in the archive.
    pub segment_bytes: u64,
}

/// What attempts and superseded versions have left: no damage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Leftovers {
    /// Folders of attempts that are no backups.
    pub attempts: u64,
    /// Parts that no backup needs.
    pub parts: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The state of one system in one repository.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The system.
    pub incarnation: Incarnation,
    /// How closely was looked.
    pub depth: Depth,
    /// What was looked at.
    pub looked: Looked,
    /// What was read, where the content was looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deep: Option<Deep>,
    /// What is damaged.
    pub damage: Vec<Finding>,
    /// The backups that this costs.
    pub lost_backups: Vec<LostBackup>,
    /// The instants that this costs.
    pub lost_instants: Vec<LostInstants>,
    /// What can still be recovered.
    pub recoverable: Vec<Recoverable>,
    /// What is there besides.
    pub leftovers: Leftovers,
    /// What a person should look at, and could not be checked.
    pub remarks: Vec<String>,
}
