//! What a restore is asked to do.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{
    postgres::{TimelineId, settings::TargetAction},
    repository::BackupId,
};

/// What was wished for, in the words in which it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// The target as it was typed: "10 minutes ago" stays the same wish when it is repeated later.
    pub to: String,
    /// The backup that was asked for.
    pub backup: Option<BackupId>,
    /// The timeline that was asked for.
    pub timeline: Option<TimelineId>,
}

/// What the server does once it has reached the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Then {
    /// Stay read-only until somebody has looked.
    Pause,
    /// Open a new timeline and accept writes.
    Promote,
    /// Shut down.
    Shutdown,
}

impl From<Then> for TargetAction {
    fn from(then: Then) -> Self {
        match then {
            Then::Pause => Self::Pause,
            Then::Promote => Self::Promote,
            Then::Shutdown => Self::Shutdown,
        }
    }
}

/// Where files go that lay outside the data directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExtraFiles {
    /// Into a folder beside the copy, to be looked at.
    #[default]
    Beside,
    /// To where they were.
    InPlace,
    /// Nowhere.
    LeaveOut,
}

/// How to carry out a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreRequest {
    /// What was wished for.
    pub wish: Wish,
    /// The data directory to make.
    pub pgdata: PathBuf,
    /// Tablespaces that go elsewhere: from the location in the backup to the new one, both absolute.
    #[serde(default)]
    pub maps: Vec<(PathBuf, PathBuf)>,
    /// Where `pg_wal` is to lie, when not in the data directory.
    #[serde(default)]
    pub waldir: Option<PathBuf>,
    /// Whether the copy becomes a standby: it recovers on after the target's timeline, and promotes by hand alone.
    pub standby: bool,
    /// What the server does at the target.
    pub then: Then,
    /// Whether archiving is off for good.
    pub clone: bool,
    /// Whether what is in the directory is compared and mended.
    pub delta: bool,
    /// Whether what is in the directory is removed first.
    pub force: bool,
    /// Who is to own the files: a name or a number.
    pub owner: Option<String>,
    /// `restore_command`, as the shell and PostgreSQL want it.
    pub restore_command: String,
    /// Further settings for the copy.
    #[serde(default)]
    pub settings: Vec<(String, String)>,
    /// Where files go that lay outside the data directory.
    #[serde(default)]
    pub extra_files: ExtraFiles,
    /// How many parts are fetched at a time.
    pub parallel: usize,
    /// The most bytes of files to fetch, or to read and compare, in a second.
    #[serde(default)]
    pub rate_limit: Option<u64>,
}

impl RestoreRequest {
    /// Whether `other` asks for the same copy in the same place; how it is made may differ.
    #[must_use]
    pub fn asks_the_same(&self, other: &Self) -> bool {
        let what = |r: &Self| {
            (
                r.wish.clone(),
                r.pgdata.clone(),
                r.maps.clone(),
                r.waldir.clone(),
                (r.standby, r.then, r.clone),
                r.settings.clone(),
            )
        };
        what(self) == what(other)
    }
}
