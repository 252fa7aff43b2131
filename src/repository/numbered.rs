//! Documents that change: each version is a new object with the next number, and the highest one counts. Of several
//! writers that began with the same version put-if-absent lets one win; the others see that, and begin again.
//!
//! Lower numbers are deleted, but never the highest: numbers only rise, so that a writer that slept through all of it
//! finds a higher number than its own.

use serde::{Serialize, de::DeserializeOwned};

use super::{document, documents, layout};
use crate::{
    error::{Error, Kind, Result},
    store::{self, Key, Put, Store},
};

/// The numbers there are in a folder, rising.
pub(super) async fn numbers(store: &dyn Store, folder: &str) -> Result<Vec<u32>> {
    let listed = store::list_all(store, folder).await?;
    let mut numbers: Vec<u32> = listed.iter().filter_map(|l| layout::number_of(&l.key, "")).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// The key of one version.
pub(super) fn key(folder: &str, number: u32) -> Result<Key> {
    Key::new(format!("{folder}{number}.json"))
}

/// The version that counts, with its number; 0 where there is none.
pub(super) async fn highest<T: DeserializeOwned>(store: &dyn Store, folder: &str) -> Result<(u32, Option<T>)> {
    let mut gone = None;
    for _ in 0..4 {
        let Some(number) = numbers(store, folder).await?.last().copied() else { return Ok((0, None)) };
        match gone.take() {
            // It is listed still, and cannot be read.
            Some((same, error)) if same == number => return Err(error),
            _ => {}
        }
        match document(store, &key(folder, number)?).await {
            Ok(found) => return Ok((number, Some(found))),
            // One that vanishes between listing and reading was overtaken; a bucket that keeps versions calls it damaged.
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Damaged) => gone = Some((number, error)),
            Err(error) => return Err(error),
        }
    }
    Err(Error::unavailable(format!("the documents in {folder} change faster than they can be read")))
}

/// Writes the version after `number`. [`Put::Exists`] when somebody else has written that one, or a later one.
pub(super) async fn put_next<T: Serialize>(store: &dyn Store, folder: &str, number: u32, document: &T) -> Result<Put> {
    let next = number + 1;
    let name = key(folder, next)?;
    if store.put(&name, documents::to_bytes(&name, document)?.into()).await? == Put::Exists {
        return Ok(Put::Exists);
    }
    let found = numbers(store, folder).await?;
    if found.last().is_some_and(|highest| *highest > next) {
        return Ok(Put::Exists);
    }
    // Old numbers do no harm: a writer that may not delete leaves them.
    for old in found.into_iter().filter(|old| *old < next) {
        if let Err(error) = store.delete(&key(folder, old)?).await {
            tracing::debug!(%error, "old versions in {folder} stay");
            break;
        }
    }
    Ok(Put::Created)
}
