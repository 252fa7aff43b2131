//! What a deep verification has found damaged, so that plans and lists know of it: a note for each repository, because a
//! copy elsewhere may be whole. Of `notes/damage/<n>.json` the highest number counts. An object is taken off the note
//! when it was read again and is whole, or is not there any more.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{BackupId, FORMAT, System, numbered, segment_of};
use crate::{
    error::{Kind, Result},
    postgres::SegmentName,
    store::{Key, Put},
};

/// The folder below `notes/`.
const DAMAGE: &str = "damage";

/// The note.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamageNote {
    /// The format of the repository.
    pub format: u32,
    /// When it was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noted: Option<DateTime<Utc>>,
    /// What is damaged.
    pub objects: Vec<DamagedObject>,
}

/// An object that was read, and is not what was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedObject {
    /// Its key.
    pub key: String,
    /// What is wrong with it.
    pub why: String,
    /// When it was found.
    pub found: DateTime<Utc>,
    /// The backups that nothing can be restored from because of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backups: Vec<BackupId>,
}

impl DamagedObject {
    /// The segment that it is of, if it is one's.
    #[must_use]
    pub fn segment(&self) -> Option<SegmentName> {
        segment_of(&Key::new(self.key.as_str()).ok()?)
    }

    /// What is known of it, in words.
    #[must_use]
    pub fn words(&self) -> String {
        format!("{} is damaged, as walden verify found at {}", self.key, crate::human::time(self.found))
    }
}

impl System {
    /// What was found damaged, with the number of the note. Of several repositories that are read as one nothing: what
    /// one has damaged another gives.
    pub async fn damage_note(&self) -> Result<(u32, DamageNote)> {
        if self.store.has_copies() {
            return Ok(Default::default());
        }
        match numbered::highest::<DamageNote>(&*self.store, &self.folder.notes(DAMAGE)).await {
            Ok((number, note)) => Ok((number, note.unwrap_or_default())),
            Err(error) if error.kind() == Kind::Damaged => {
                tracing::warn!("{error}; what it tells of damage is not known until the next walden verify --deep");
                // That one puts the next.
                let numbers = numbered::numbers(&*self.store, &self.folder.notes(DAMAGE)).await?;
                Ok((numbers.last().copied().unwrap_or(0), DamageNote::default()))
            }
            Err(error) => Err(error),
        }
    }

    /// Writes the note after `number`. [`Put::Exists`] when somebody else has written it.
    pub async fn put_damage_note(&self, number: u32, note: &DamageNote) -> Result<Put> {
        let note = DamageNote { format: FORMAT, ..note.clone() };
        numbered::put_next(&*self.store, &self.folder.notes(DAMAGE), number, &note).await
    }
}
