//! Notes of restores: what each took, for estimates of the next. Nothing's safety rests on them.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{BackupId, System, document, documents, layout};
use crate::{
    error::{Error, Result},
    store::{self, Key, Put, Store},
};

/// The folder below `notes/`.
const RESTORES: &str = "restores";
/// How many notes a writer leaves.
const KEPT: usize = 20;

/// Work that was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// How many bytes of it.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
}

/// What a restore took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RestoreNote {
    /// The format of the repository.
    pub format: u32,
    /// When it was done.
    pub done: DateTime<Utc>,
    /// The name of the host it was restored on.
    pub host: String,
    /// The version of Walden that restored it.
    pub walden: String,
    /// The backup.
    pub backup: BackupId,
    /// The files: bytes written, and the time until they were durable. Absent where files that were there already were
    /// kept, which takes another time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<Measured>,
    /// The WAL: bytes of the segments replayed, and the time from the start of the server until it had done what it was
    /// to do. Absent where restore did not start the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wal: Option<Measured>,
    /// How long the plan had estimated, in seconds, for what was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimated_seconds: Option<f64>,
}

impl System {
    /// The newest notes of restores, at most so many, the newest first. A note that cannot be read is left out.
    pub async fn restore_notes(&self, most: usize) -> Result<Vec<RestoreNote>> {
        let folder = self.folder.notes(RESTORES);
        let mut notes = Vec::new();
        for number in self.note_numbers(&folder).await?.into_iter().rev().take(most) {
            match document(&*self.store, &key(&folder, number)?).await {
                Ok(note) => notes.push(note),
                Err(error) => tracing::debug!(%error, "a note of a restore is left out"),
            }
        }
        Ok(notes)
    }

    /// Adds a note, and clears old ones where that is allowed.
    pub async fn add_restore_note(&self, note: &RestoreNote) -> Result<()> {
        match self.store.to_write() {
            Some(open) => Self { store: open.await?, ..self.clone() }.put_restore_note(note).await,
            None => self.put_restore_note(note).await,
        }
    }

    async fn put_restore_note(&self, note: &RestoreNote) -> Result<()> {
        let folder = self.folder.notes(RESTORES);
        for _ in 0..4 {
            let numbers = self.note_numbers(&folder).await?;
            let next = numbers.last().map_or(1, |last| last + 1);
            let name = key(&folder, next)?;
            if self.store.put(&name, documents::to_bytes(&name, note)?.into()).await? == Put::Created {
                for old in numbers.iter().rev().skip(KEPT - 1) {
                    self.store.delete(&key(&folder, *old)?).await?;
                }
                return Ok(());
            }
        }
        Err(Error::unavailable(format!("the notes in {folder} change faster than one can be added")))
    }

    pub(super) async fn note_numbers(&self, folder: &str) -> Result<Vec<u32>> {
        numbers(&*self.store, folder).await
    }
}

/// The numbers of the notes in a folder, rising.
pub(super) async fn numbers(store: &dyn Store, folder: &str) -> Result<Vec<u32>> {
    let listed = store::list_all(store, folder).await?;
    let mut numbers: Vec<u32> = listed.iter().filter_map(|l| layout::number_of(&l.key, "")).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

pub(super) fn key(folder: &str, number: u32) -> Result<Key> {
    Key::new(format!("{folder}{number}.json"))
}
